// Storms of connections before and after tuning: `scripts/vm storm`. More clients than the node has descriptors; more than fit into the backlog while the node
// stands still; many who ask for a page of history and do not read it. Each with the kernel's own settings, then again as an operator would set them.
//
//   node vm/storm.js --deb DEB --report DIR
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import WebSocket from 'ws';
import { until } from '../cluster.js';
import { sleep } from '../server.js';
import { knocked } from './chat.js';
import { clientPort, inside, lastWords, must, put, token } from './lab.js';
import { fail, keepReport, runSteps } from './steps.js';

const { values } = parseArgs({ options: { deb: { type: 'string' }, report: { type: 'string' } } });
const STORM = fileURLToPath(new URL('../storm.pl', import.meta.url));
const ENV_FILE = '/etc/roomwire/roomwire.env', DROP_IN = '/etc/systemd/system/roomwire.service.d/lab.conf';
const PATIENCE_SECS = 180, HOLD_SECS = 60;
const MANY = 1_500, FEW_DESCRIPTORS = 1_024, CROWD = 6_000, READERS = 1_500;
const ROOM = 'storm', PAGE = 50, CONTENT_BYTES = 4_000;
let secret = '';

const url = (user) => `ws://127.0.0.1:${clientPort()}/ws?token=${token(secret, user)}`;
// Under emulation a watchdog of 10 s would judge the emulator; and more than five restarts in two minutes are meant.
const restart = (descriptors = '') => must(`mkdir -p $(dirname ${DROP_IN}) && printf '[Unit]\\nStartLimitIntervalSec=0\\n[Service]\\nTimeoutStartSec=300\\nWatchdogSec=0\\n${descriptors}' >${DROP_IN} && systemctl daemon-reload && systemctl restart roomwire`);
const storm = (count, more = '') => `ulimit -n 20000; perl /root/storm.pl ${count} "$(cat /root/token)" ${PATIENCE_SECS} ${more}`;
const inOf = (line) => Number(line.match(/(\d+) upgraded/)?.[1] ?? fail(`storm.pl says ${line}`));

/** What the kernel has counted of these, by name, since it started. */
async function counted(names) {
  const out = await must(`nstat -asz ${names.map((name) => `TcpExt${name}`).join(' ')}`);
  return names.map((name) => Number(out.match(new RegExp(`^TcpExt${name}\\s+(\\d+)`, 'm'))[1]));
}

/** Runs `act` and says by how much these counts rose, and each of them. */
async function rise(names, act) {
  const before = await counted(names);
  const result = await act();
  const rises = (await counted(names)).map((count, at) => count - before[at]);
  return [result, rises, names.map((name, at) => `${name} ${rises[at]}`).join(', ')];
}

/** More clients than descriptors. */
async function descriptors(limit) {
  await restart(limit);
  const line = await must(storm(MANY));
  const nofile = (await must('cat /proc/$(systemctl show roomwire -p MainPID --value)/limits')).match(/Max open files +(\d+)/)?.[1];
  return { upgraded: inOf(line), said: `${nofile} descriptors, ${MANY} clients: ${line}` };
}

/** They come while the node stands still, as on a machine that is stopped for a moment; it goes on when all have knocked. */
async function backlog() {
  await restart();
  const goOn = "ss -Hltn sport = :8080 | awk '{printf \"%d waited in it; \", $2}'; sleep 1; systemctl kill -s CONT roomwire";
  await must(`printf '%s\\n' '${goOn.replaceAll("'", "'\\''")}' >/run/go-on.sh; systemctl kill -s STOP roomwire`);
  const [line, [overflows], counts] = await rise(['ListenOverflows', 'ListenDrops'], () => must(storm(CROWD, "'sh /run/go-on.sh'")));
  const settings = await must(`echo "somaxconn $(sysctl -n net.core.somaxconn), listen.backlog $(sed -n 's/^ROOMWIRE_LISTEN__BACKLOG=//p' ${ENV_FILE} | grep . || echo 4096)"`);
  return { upgraded: inOf(line), overflows, said: `${settings}, ${CROWD} clients while the node stood still: ${line}; ${counts}` };
}

/** They ask for a page of history each, and read nothing. Others are to be greeted all the same. */
async function memory() {
  await restart();
  await must('dmesg -C; rm -f /run/storm.log');
  let pages = 0;
  const [[line, { refusals, said }], [pressures], counts] = await rise(['TCPMemoryPressures', 'TCPAbortOnMemory', 'PruneCalled', 'TCPRcvQDrop'], async () => {
    await must(`(${storm(READERS, `true ${ROOM} ${HOLD_SECS}`)}) </dev/null >/run/storm.log 2>&1 &`);
    if (await until(async () => (await inside('cat /run/storm.log')).out !== '', PATIENCE_SECS * 1_000, 500) === null) fail('the storm does not come in');
    await sleep(5_000);
    const others = await knocked(secret, 4, async () => {
      await sleep(10_000);
      pages = Number(await must("awk '$1 == \"TCP:\" {print $11}' /proc/net/sockstat"));
    });
    return [await must('cat /run/storm.log; while pgrep -x perl >/dev/null; do sleep 1; done'), others];
  });
  const tcpMem = (await must('sysctl -n net.ipv4.tcp_mem')).split(/\s+/).map((count) => Math.round(count / 256));
  const full = Number(await must("dmesg | grep -c 'TCP: out of memory'; true"));
  return {
    pressures, full, refusals,
    said: `tcp_mem ${tcpMem.join(', ')} MiB, ${READERS} clients with ${Math.round(PAGE * CONTENT_BYTES / 1024)} KiB of history each to read: ${line}; TCP held ${Math.round(pages / 256)} MiB; ${counts}; "TCP: out of memory" in dmesg: ${full}; others meanwhile: ${said}`,
  };
}

/** Fills the room that the clients of `memory` ask for. */
async function fill() {
  const socket = new WebSocket(url('writer'));
  let acks = 0;
  socket.on('message', (data) => {
    const { type } = JSON.parse(String(data));
    if (type === 'ack') acks += 1;
    if ((type === 'connected' || type === 'ack') && acks < PAGE) socket.send(JSON.stringify({ type: 'chat_message', roomId: ROOM, content: 'x'.repeat(CONTENT_BYTES), clientId: `fill-${acks}` }));
  });
  socket.on('error', () => {}); // the count tells
  if (await until(() => acks === PAGE, 120_000) === null) fail(`${acks} messages were acked`);
  socket.close();
}

const STEPS = {
  async install() {
    await put(values.deb, STORM);
    await must(`cd /root && apt-get install -y ./${path.basename(values.deb)}`);
    secret = (await must(`cat ${ENV_FILE}`)).match(/^JWT_SECRET=(.+)$/m)?.[1] ?? fail('no secret was made');
    // One shard, so that there is one backlog; who is let in early waits until all have knocked before it asks for the upgrade.
    await must(`echo '${token(secret, 'storm')}' >/root/token; printf 'ROOMWIRE_LIMITS__HANDSHAKE_MS_MAX=${PATIENCE_SECS * 1_000}\\nROOMWIRE_LIMITS__CONNECTIONS_PER_USER_MAX=0\\nROOMWIRE_DRAIN__SECS=1\\nROOMWIRE_SHARDS=1\\n' >>${ENV_FILE}`);
    await restart();
    await fill();
    return must('. /etc/os-release; echo "$PRETTY_NAME, Linux $(uname -r), $(nproc) cores, $(awk \'/^MemTotal/ {print int($2 / 1024)}\' /proc/meminfo) MiB; $(roomwire version)"');
  },

  async descriptors_before() {
    const { upgraded, said } = await descriptors(`LimitNOFILE=${FEW_DESCRIPTORS}\\n`);
    return upgraded < MANY ? said : fail(`nobody was refused: ${said}`);
  },
  async backlog_before() {
    const { overflows, said } = await backlog();
    return overflows > 0 ? said : fail(`nothing overflowed: ${said}`);
  },
  async memory_before() {
    const { pressures, said } = await memory();
    return pressures > 0 ? said : fail(`no pressure: ${said}`);
  },

  async tune() {
    const out = await must('roomwire-tuning apply --connections 20000');
    await must(`printf 'ROOMWIRE_LISTEN__BACKLOG=65535\\n' >>${ENV_FILE}`);
    return `${out.split('\n').at(-1)}; listen.backlog 65535; the unit's own LimitNOFILE`;
  },

  async descriptors_after() {
    const { upgraded, said } = await descriptors();
    return upgraded === MANY ? said : fail(said);
  },
  async backlog_after() {
    const { upgraded, overflows, said } = await backlog();
    return upgraded === CROWD && overflows === 0 ? said : fail(said);
  },
  async memory_after() {
    const { pressures, full, refusals, said } = await memory();
    return pressures === 0 && full === 0 && refusals === 0 ? said : fail(said);
  },
};

if (process.env.ROOMWIRE_VM_STEPS) secret = (await inside(`cat ${ENV_FILE}`)).out.match(/^JWT_SECRET=(.+)$/m)?.[1] ?? '';
const report = await runSteps('storm', STEPS, lastWords);
keepReport(values.report, 'storm', 'Storms of connections in the lab', report);
process.exit(report.some((entry) => !entry.ok) ? 1 : 0);
