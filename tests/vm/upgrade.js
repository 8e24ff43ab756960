// An upgrade that refuses nobody, by the very commands of docs/operations.md: `scripts/vm upgrade`. Two instances of roomwire@ take turns on port 8080, over Redis
// and Cassandra on this machine. Meanwhile clients with a ledger chat, and others knock: they connect, are greeted and go, one after the other. The old instance
// stands still for a moment before it is stopped, so that connections wait in its backlog. Once with the kernel's own settings, then tuned.
//
//   node vm/upgrade.js --old OLD.deb --new NEW.deb --redis PORT --cassandra PORT --report DIR
import path from 'node:path';
import { parseArgs } from 'node:util';
import { until } from '../cluster.js';
import { Chat, knocked, quietly } from './chat.js';
import { inside, lastWords, must, operations, outside, put } from './lab.js';
import { fail, keepReport, runSteps } from './steps.js';

const { values } = parseArgs({ options: {
  old: { type: 'string' }, new: { type: 'string' }, redis: { type: 'string' }, cassandra: { type: 'string' }, report: { type: 'string' },
} });
const KNOCKERS = 16;
const [CONFIG, COMMANDS] = operations('### An upgrade that refuses nobody');

/** The command of docs/operations.md that fits, without what is said of it. */
function told(pattern) {
  const line = COMMANDS.split('\n').find((text) => pattern.test(text)) ?? fail(`docs/operations.md has no ${pattern} any more`);
  return line.replace(/ +#.*/, '');
}

const chat = new Chat();
let secret = '', serves = 'a';

const other = () => (serves === 'a' ? 'b' : 'a');
/** The documented command for a and b, or the same for b and a. */
const command = (pattern) => (serves === 'a' ? told(pattern) : told(pattern).replace(/@([ab])\b/g, (_, name) => `@${name === 'a' ? 'b' : 'a'}`));
const install = (deb) => must(`cd /root && ${told(/^apt install/).replace('apt', 'apt-get -y --allow-downgrades').replace('./newer.deb', `./${path.basename(deb)}`)}`);
const field = (instance, name) => must(`systemctl show roomwire@${instance} -p ${name} --value`);
const binary = async (instance) => must(`readlink /proc/${await field(instance, 'MainPID')}/exe`);
const migrated = async () => (await must("nstat -asz TcpExtTCPMigrateReqSuccess TcpExtTCPMigrateReqFailure | awk '/^Tcp/ {print $2}'")).split('\n').map(Number);

/** Starts the other instance, has the old one stand still for a second, stops it, while others knock. */
async function turn() {
  const old = serves, next = other();
  const before = await migrated();
  let waited = 0;
  const { refusals, said } = await knocked(secret, KNOCKERS, async (knocker) => {
    await must(command(/^systemctl start/));
    if (await until(() => knocker.nodes[`box7-${next}`] > 0, 60_000) === null) fail(`${next} greets nobody`);
    await must(`systemctl kill -s STOP roomwire@${old}; sleep 1`);
    waited = Number(await must("ss -Hltn sport = :8080 | awk '{sum += $2} END {print sum}'"));
    // systemd wakes what stands still once it was told to end.
    await must(command(/^systemctl stop/));
    if (await field(old, 'Result') !== 'success' || await field(old, 'ActiveState') !== 'inactive') fail(`${old} did not end in order`);
    await chat.areOn([`box7-${next}`]);
    await must(command(/^systemctl enable roomwire@b &&/));
    serves = next;
  });
  const [moved, lost] = (await migrated()).map((count, at) => count - before[at]);
  return {
    refusals,
    said: `${old} to ${next}: ${said}; ${waited} waited in backlogs when ${old} was stopped, ${moved} moved to ${next} by the kernel, ${lost} failed to; all chat on within ${await chat.recovered()} ms`,
  };
}

/** A turn in which nobody may be refused. */
async function quietTurn() {
  const { refusals, said } = await turn();
  return refusals ? fail(said) : said;
}

const STEPS = {
  async install() {
    await put(values.old, values.new);
    await install(values.old);
    secret = (await must('cat /etc/roomwire/roomwire.env')).match(/^JWT_SECRET=(.+)$/m)?.[1] ?? fail('no secret was made');
    for (const name of ['a', 'b']) {
      const config = outside(CONFIG, values).replace('"box7-a"', `"box7-${name}"`).replace(':9091', name === 'a' ? ':9091' : ':9092');
      await must(`printf '%s' '${config}' >/etc/roomwire/${name}.toml`);
    }
    // Under emulation a watchdog would judge the emulator; and now nothing waits for a drain of 30 s.
    await must("mkdir -p /etc/systemd/system/roomwire@.service.d && printf '[Service]\\nTimeoutStartSec=300\\nWatchdogSec=0\\n' >/etc/systemd/system/roomwire@.service.d/lab.conf && systemctl daemon-reload && echo ROOMWIRE_DRAIN__SECS=8 >>/etc/roomwire/roomwire.env");
    await must('set -a; . /etc/roomwire/roomwire.env; roomwire store migrate --replication 1 --config /etc/roomwire/a.toml && roomwire check-config --config /etc/roomwire/a.toml && roomwire check-config --config /etc/roomwire/b.toml');
    return must('. /etc/os-release; echo "$PRETTY_NAME, Linux $(uname -r), $(nproc) cores; $(roomwire version)"');
  },

  async start() {
    await must(told(/^systemctl enable --now/));
    await chat.start(secret);
    return `the clients chat on ${JSON.stringify(chat.nodes())}; "${await field('a', 'StatusText')}"`;
  },

  // It may refuse some, and need not.
  async untuned() {
    const before = await must('sysctl -n net.ipv4.tcp_migrate_req');
    return `net.ipv4.tcp_migrate_req ${before}: ${(await turn()).said}`;
  },

  async tuned() {
    await must(told(/^roomwire-tuning/));
    return `net.ipv4.tcp_migrate_req ${await must('sysctl -n net.ipv4.tcp_migrate_req')}: ${await quietTurn()}`;
  },

  async upgrade() {
    const pid = await field(serves, 'MainPID');
    await install(values.new);
    if (await field(serves, 'MainPID') !== pid) fail('the package restarted an instance');
    const [left, was] = [await binary(serves), serves];
    if (!left.endsWith('(deleted)')) fail(`${was} runs ${left}`);
    const said = await quietTurn();
    return `${was} went on with ${left}; ${said}; ${serves} runs ${await binary(serves)}`;
  },

  async does_not_start() {
    const file = `/etc/roomwire/${other()}.toml`;
    await must(`cp -p ${file} /root/kept.toml && echo 'nonsense = 1' >>${file}`);
    const said = await quietly(secret, KNOCKERS, async () => {
      if ((await inside(command(/^systemctl start/))).status === 0) fail('it started');
      await chat.recovered();
    });
    const status = await field(other(), 'ExecMainStatus');
    await must(`cp -p /root/kept.toml ${file}; systemctl reset-failed roomwire@${other()}`);
    return `${other()} with a bad file ended with ${status}, ${serves} serves on: ${said}`;
  },

  async back() {
    await install(values.old);
    return `the older package again; ${await quietTurn()}`;
  },

  ledger: () => chat.verdict(),
};

const report = await runSteps('upgrade', STEPS, lastWords);
keepReport(values.report, 'upgrade', 'An upgrade in the lab', report);
await inside('systemctl stop roomwire@a roomwire@b');
process.exit(report.some((entry) => !entry.ok) ? 1 : 0);
