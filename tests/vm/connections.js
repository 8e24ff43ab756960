// As many connections as one node in the lab can hold: `scripts/vm connections`. The package runs as its unit, the kernel is tuned as an
// operator would; roomwire-bench, in the same machine, opens authenticated and joined connections step by step. What each step costs in
// user and kernel memory is read there; then all of them chat while they are held, and every ledger has to add up.
//
//   node vm/connections.js --deb DEB --to N --step N --minutes M --rate R --report DIR
import { mkdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { sleep } from '../server.js';
import { chart } from './chart.js';
import { inside, must, patiently, put } from './lab.js';

const { values } = parseArgs({ options: {
  deb: { type: 'string' }, to: { type: 'string' }, step: { type: 'string' }, minutes: { type: 'string' }, rate: { type: 'string' }, report: { type: 'string' },
} });
const [TO, STEP, MINUTES, RATE] = [values.to, values.step, values.minutes, values.rate].map(Number);
const MEMBERS = 10, WORKERS = 2, SAMPLE_MS = 15_000;
// A connection that answers no ping is closed after a minute: what is held for longer has answered.
const HEARTBEAT_SECS = 30;
const DIR = '/run/lab';
const began = Date.now();
const say = (text) => console.log(`${((Date.now() - began) / 1000).toFixed(0).padStart(5)} s  ${text}`);

/** The machine as an operator sets it up: package, tuning, limits of the unit and of the node. */
async function prepare() {
  await put(values.deb);
  await must(`cd /root && apt-get install -y ./${path.basename(values.deb)}`);
  await must(`roomwire-tuning apply --connections ${TO}`);
  // Under emulation a watchdog of 10 s would judge the emulator.
  await must(`mkdir -p /etc/systemd/system/roomwire.service.d && printf '[Service]\\nTimeoutStartSec=300\\nWatchdogSec=300\\nLimitNOFILE=${Math.ceil(TO * 1.1) + 10_000}\\n' >/etc/systemd/system/roomwire.service.d/lab.conf && systemctl daemon-reload`);
  // As much as an operator of so many would give: a longer queue, more buffers; and time for handshakes, which the emulator needs.
  await must(`printf 'ROOMWIRE_LIMITS__CONNECTIONS_MAX=${TO + 100}\\nROOMWIRE_LISTEN__BACKLOG=65535\\nROOMWIRE_LIMITS__HANDSHAKE_MS_MAX=60000\\nROOMWIRE_RING__BUFFERS=8192\\nROOMWIRE_RING__CQ_ENTRIES=65536\\n' >>/etc/roomwire/roomwire.env; rm -rf ${DIR}; mkdir -p ${DIR}; systemctl restart roomwire`);
  return must(`. /etc/os-release; echo "$PRETTY_NAME, Linux $(uname -r), $(nproc) cores, $(awk '/^MemTotal/ {print int($2 / 1024)}' /proc/meminfo) MiB; $(roomwire --version)"`);
}

/** Memory and sockets of the machine now, in bytes and counts. */
async function sample() {
  const text = await patiently(`pid=$(systemctl show roomwire -p MainPID --value); date +'at %s'; grep -hE '^(VmRSS|RssAnon|RssFile|RssShmem):' /proc/$pid/status; grep -E '^(MemAvailable|Slab|SUnreclaim|VmallocUsed|PageTables|KernelStack):' /proc/meminfo
    awk '/^(TCP|TCPv6|request_sock_TCP|sock_inode_cache|filp|dentry|eventpoll_epi|io_kiocb|kmalloc-[a-z0-9-]*) / {print "slab." $1, $3 * $4}' /proc/slabinfo
    awk '$1 == "TCP:" {print "tcp.inuse", $3; print "tcp.memory", $11 * 4096}' /proc/net/sockstat
    awk '{print "cpu", ($14 + $15) / 100}' /proc/$pid/stat; ps -C roomwire-bench -o rss= | awk '{sum += $1} END {print "bench.rss", sum * 1024}'
    awk '/^Tcp: [0-9]/ {print "segments", $11 + $12; print "segments.again", $13}' /proc/net/snmp
    curl -s -m 60 http://127.0.0.1:9090/metrics | grep -E '^roomwire_(connections|peers_vanished_total|messages_received_total|deliveries_total|shard_buffers_exhausted_total|shard_reads_paused_total|shard_mesh_spills_total|shard_turns_total) '; true`);
  const found = {};
  for (const line of text.split('\n')) {
    const [name, value, unit] = line.trim().split(/\s+/);
    if (name) found[name.replace(/:$/, '')] = Number(value) * (unit === 'kB' ? 1024 : 1);
  }
  return found;
}

const unit = (at) => `bench-${at}`;
const seconds = Math.round(MINUTES * 60);

/** Opens the connections of step `at`; they wait, answering heartbeats, until the word to chat is given. */
async function open(at, count) {
  const command = `roomwire-bench fanout --rooms ${count / MEMBERS} --members ${MEMBERS} --publishers ${MEMBERS} --rate ${RATE * count / TO} --warm-up 5 --seconds ${seconds} --drain 60`
    + ` --sources 250 --workers ${WORKERS} --first-user ${at * STEP} --run-id s${at} --lag-ms-max 600000 --cpu-percent-max 100 --label step-${at} --json ${DIR}/${at}.json`
    + ` --between "touch ${DIR}/ready-${at}; until [ -e ${DIR}/go ]; do sleep 2; done"`;
  await patiently(`test -e ${DIR}/${at}.sh || { printf '%s\\n' '${command}' >${DIR}/${at}.sh; systemd-run --quiet --unit=${unit(at)} -p EnvironmentFile=/etc/roomwire/roomwire.env -p LimitNOFILE=${count + 1_000} -p StandardOutput=file:${DIR}/${at}.log -p StandardError=file:${DIR}/${at}.log -p RemainAfterExit=yes sh ${DIR}/${at}.sh; }`);
  for (;;) {
    const out = await patiently(`test -e ${DIR}/ready-${at} && echo ready; systemctl show ${unit(at)} -p SubState --value`);
    if (out.startsWith('ready')) return;
    if (!/running|start/.test(out)) throw new Error(`step ${at} ended: ${(await inside(`tail -n 5 ${DIR}/${at}.log`)).out}`);
    await sleep(3_000);
  }
}

const perConnection = (to, from, name, count) => Math.round(((to[name] ?? 0) - (from[name] ?? 0)) / count);

/** What each connection has cost so far, in bytes. */
function costs(now, empty) {
  const count = now.roomwire_connections;
  return {
    connections: count,
    server_rss: perConnection(now, empty, 'VmRSS', count),
    kernel_slab_both_ends: perConnection(now, empty, 'Slab', count),
    kernel_vmalloc: perConnection(now, empty, 'VmallocUsed', count),
    load_rss: perConnection(now, empty, 'bench.rss', count),
    machine_both_ends: Math.round((empty.MemAvailable - now.MemAvailable) / count),
  };
}

async function hold(steps) {
  await patiently(`touch ${DIR}/go`);
  const samples = [];
  const before = Number(await patiently('date +%s'));
  for (;;) {
    samples.push(await sample());
    const states = await patiently(`systemctl show ${steps.map((_, at) => unit(at)).join(' ')} -p SubState --value | sort | uniq -c`);
    if (!/running/.test(states)) break;
    if (samples.at(-1).at - before > seconds + 600) throw new Error(`the load does not end: ${states}`);
    await sleep(SAMPLE_MS);
  }
  return samples.filter((one) => one.at - before <= seconds);
}

/** What the ledgers of all steps say. */
async function verdicts(steps) {
  const sum = { sent: 0, deliveries: 0, lost: 0, doubled: 0, out_of_order: 0, acks: 0, acks_lost: 0 };
  const wrong = [];
  let slowest = null;
  for (const at of steps.keys()) {
    const out = await patiently(`cat ${DIR}/${at}.json || true`);
    if (!out.startsWith('{')) { wrong.push(`step ${at} has no report: ${(await inside(`tail -n 5 ${DIR}/${at}.log`)).out}`); continue; }
    const { load, delivery, ...own } = JSON.parse(out);
    sum.sent += load.sent;
    sum.deliveries += load.deliveries.arrived;
    sum.lost += load.deliveries.expected - load.deliveries.arrived;
    sum.doubled += load.deliveries.doubled;
    sum.out_of_order += load.deliveries.out_of_order + load.deliveries.seq_breaks;
    sum.acks += load.acks.arrived;
    sum.acks_lost += load.acks.expected - load.acks.arrived;
    wrong.push(...[...own.void, ...own.invalid].map((what) => `step ${at}: ${what}`));
    if (!slowest || delivery.p99_ms > slowest.p99_ms) slowest = delivery;
  }
  return { sum, wrong, slowest };
}

const machine = await prepare();
say(machine);
const empty = await sample();
const steps = [], opened = [];
let stopped = '';
for (let open_so_far = 0, at = 0; open_so_far < TO; at += 1) {
  const count = Math.min(STEP, TO - open_so_far);
  const from = Number(await patiently('date +%s'));
  try { await open(at, count); } catch (error) { stopped = error.message; say(`STOPPED: ${stopped}: ${JSON.stringify(await sample())}`); break; }
  const now = await sample();
  opened.push(now);
  open_so_far += count;
  steps.push({ ...costs(now, empty), seconds: now.at - from, available_mib: Math.round(now.MemAvailable / 1048576) });
  say(JSON.stringify(steps.at(-1)));
}
if (steps.length === 0) throw new Error(stopped);
say(`holding ${steps.at(-1).connections} for ${MINUTES} minutes`);
const held = await hold(steps);
const { sum, wrong, slowest } = await verdicts(steps);
const least = Math.min(...held.map((one) => one.roomwire_connections));
const [first, last] = [held[0], held.at(-1)];
const segments = Math.round((last.segments - first.segments) / (last.at - first.at));
const cpu = (last.cpu - first.cpu) / (last.at - first.at);
const report = {
  machine, command: `scripts/vm connections --to ${TO} --step ${STEP} --minutes ${MINUTES} --rate ${RATE}`, heartbeat_secs: HEARTBEAT_SECS, stopped,
  steps, held: { seconds: last.at - first.at, connections_least: least, tcp_segments_per_second: segments, server_cores: Number(cpu.toFixed(3)), peers_vanished: last.roomwire_peers_vanished_total, ...sum, slowest_step_delivery: slowest },
  wrong, slab_bytes_per_connection: Object.fromEntries(Object.keys(opened.at(-1)).filter((name) => name.startsWith('slab.')).map((name) => [name.slice(5), perConnection(opened.at(-1), empty, name, steps.at(-1).connections)]).filter(([, bytes]) => bytes !== 0)),
  samples: [empty, ...opened, ...held],
};
mkdirSync(values.report, { recursive: true });
writeFileSync(path.join(values.report, 'connections.json'), `${JSON.stringify(report, null, 1)}\n`);
const line = (name, of) => ({ name, points: [[0, of(empty)], ...opened.map((now) => [now.roomwire_connections, of(now)])] });
writeFileSync(path.join(values.report, 'connections.svg'), chart({
  title: 'Memory against connections, one node', xTitle: 'authenticated connections, each in a room of ten', yTitle: 'MiB above the empty node',
  xLabel: (value) => `${value / 1000}K`,
  series: [
    line('server (RSS)', (now) => (now.VmRSS - empty.VmRSS) / 1048576),
    line('kernel, both ends (slab)', (now) => (now.Slab - empty.Slab) / 1048576),
    line('load (RSS)', (now) => ((now['bench.rss'] || 0) - (empty['bench.rss'] || 0)) / 1048576),
    line('all, both ends', (now) => (empty.MemAvailable - now.MemAvailable) / 1048576),
  ],
}));
say(JSON.stringify(report.held));
for (const what of wrong) say(`WRONG: ${what}`);
await inside(`systemctl stop ${steps.map((_, at) => unit(at)).join(' ')}; systemctl stop roomwire`);
process.exit(wrong.length || stopped || least < TO ? 1 : 0);
