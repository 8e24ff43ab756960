// From the package to its purge, on a machine with a real systemd: `scripts/vm smoke`. Each step says what it saw; the report is
// the list of them. Clients with a ledger chat through the forwarded port all the while.
//
//   node vm/smoke.js --old OLD.deb --new NEW.deb
import path from 'node:path';
import { parseArgs } from 'node:util';
import { until } from '../cluster.js';
import { sleep } from '../server.js';
import { CLIENTS, Chat } from './chat.js';
import { inside, must, put } from './lab.js';
import { REFUSALS, refused } from './refusals.js';
import { fail, runSteps } from './steps.js';

const { values } = parseArgs({ options: { old: { type: 'string' }, new: { type: 'string' } } });
const { old: OLD, new: NEW } = values;
const ENV_FILE = '/etc/roomwire/roomwire.env';

const chat = new Chat();
let secret = '';

const statusLine = async () => (await must('systemctl show roomwire -p StatusText --value'));
const field = async (name) => must(`systemctl show roomwire -p ${name} --value`);

/** Waits until the status line fits. */
async function statusBecomes(pattern, msMax = 30_000) {
  const deadline = Date.now() + msMax;
  for (let line = ''; ; await sleep(500)) {
    line = await statusLine();
    if (pattern.test(line)) return line;
    if (Date.now() > deadline) fail(`the status line stays "${line}"`);
  }
}

const STEPS = {
  async install() {
    await put(OLD, NEW);
    const out = await must(`cd /root && apt-get install -y ./${path.basename(OLD)}`);
    const [mode, file] = [await must(`stat -c '%a %U %G' ${ENV_FILE}`), await must(`cat ${ENV_FILE}`)];
    secret = file.match(/^JWT_SECRET=(.+)$/m)?.[1] ?? fail('no secret was made');
    if (mode !== '640 root roomwire') fail(`${ENV_FILE} is ${mode}`);
    if (out.includes(secret)) fail('the secret was printed');
    if (await field('ActiveState') !== 'inactive') fail('it runs though nobody started it');
    await must('roomwire check-config --config /etc/roomwire/roomwire.toml --set auth.secret=0123456789abcdef0123456789abcdef');
    await must('test -s /usr/share/man/man5/roomwire.toml.5.gz && test -s /usr/share/man/man1/roomwire-bench.1.gz && test -x /usr/sbin/roomwire-tuning && roomwire-tuning status');
    return `secret made, ${mode}, not printed; not started`;
  },

  async start() {
    // An emulated processor on a busy machine stands still for longer than any real one; and now nothing waits for a drain of 30 s.
    await must(`mkdir -p /etc/systemd/system/roomwire.service.d && printf '[Service]\\nTimeoutStartSec=300\\nWatchdogSec=30\\n' >/etc/systemd/system/roomwire.service.d/lab.conf && systemctl daemon-reload && echo ROOMWIRE_DRAIN__SECS=8 >>${ENV_FILE}`);
    const at = Date.now();
    await must('systemctl enable --now roomwire');
    const tookMs = Date.now() - at;
    return `${tookMs} ms; "${await statusBecomes(/^serving: 0 connections on \d+ shards?$/)}"`;
  },

  async chat() {
    await chat.start(secret);
    const line = await statusBecomes(/^serving: 12 connections/);
    // A socket in a ring's table belongs to no process, so that `ss` names none. Before Linux 6.13 each is a descriptor of the node.
    const held = Number(await must("ss -Htnp state established '( sport = :8080 )' | grep -c '\"roomwire\"'; true"));
    if (held !== CLIENTS) fail(`${held} sockets are descriptors of the node`);
    return `${CLIENTS} clients through the forwarded port; "${line}"; Linux ${await must('uname -r')}: ss names the node as the holder of ${held} sockets, none is in a table of its rings`;
  },

  async journal() {
    const line = await must('journalctl -u roomwire -o json --no-pager | grep -m1 "\\"MESSAGE\\":\\"ready\\""');
    const entry = JSON.parse(line);
    return `fields ${Object.keys(entry).filter((name) => !name.startsWith('_')).sort().join(' ')}`;
  },

  async reload() {
    const before = await field('MainPID');
    await must('systemctl reload roomwire', 60_000);
    if (await field('MainPID') !== before || await field('ActiveState') !== 'active') fail('the node did not live through it');
    await chat.recovered();
    return 'the same process goes on, nobody lost';
  },

  async watchdog_process() {
    const [before, restarts] = [await field('MainPID'), Number(await field('NRestarts'))];
    await must(`kill -STOP ${before}`);
    const at = Date.now();
    if (await until(async () => Number(await field('NRestarts')) > restarts && await field('ActiveState') === 'active', 180_000) === null) fail('systemd did not restart it');
    const upMs = Date.now() - at;
    return `SIGSTOP: another process serves after ${(upMs / 1000).toFixed(1)} s, clients back ${await chat.recovered()} ms later`;
  },

  async watchdog_shard() {
    const restarts = Number(await field('NRestarts'));
    // ptrace stops threads, as a fault would, and leaves the others running: PTRACE_SEIZE, then PTRACE_INTERRUPT, of all that belong to shard 0.
    // Once they are killed the tracer must go, or systemd does not see the process end.
    await must(`cat >/run/stopper.pl <<'PERL'
chomp(my $pid = \`systemctl show roomwire -p MainPID --value\`);
for my $comm (glob("/proc/$pid/task/*/comm")) {
  open my $file, '<', $comm or next; next unless <$file> =~ /^shard-0/;
  my ($thread) = $comm =~ m{task/([0-9]+)/};
  syscall(101, 0x4206, $thread + 0, 0, 0) == 0 or die "seize $thread: $!"; syscall(101, 0x4207, $thread + 0, 0, 0) == 0 or die "stop $thread: $!";
}
for (1 .. 300) { sleep 1; open my $file, '<', "/proc/$pid/stat" or last; last if <$file> =~ /\\) Z /; }
PERL
systemd-run --quiet --unit=stopper perl /run/stopper.pl; sleep 3`);
    if (await must('systemctl is-active stopper; true') !== 'active') fail(`no thread was stopped: ${(await inside('journalctl -u stopper -o cat --no-pager')).out}`);
    const at = Date.now();
    const said = await statusBecomes(/does not turn/).catch(() => statusLine());
    if (await until(async () => Number(await field('NRestarts')) > restarts && await field('ActiveState') === 'active', 180_000) === null) fail(`systemd did not restart it; "${said}"`);
    const upMs = Date.now() - at;
    await inside('systemctl stop stopper');
    return `one shard's thread stood still ("${said}"): another process serves after ${(upMs / 1000).toFixed(1)} s, clients back ${await chat.recovered()} ms later`;
  },

  // Time of day may jump; tokens are of the machine that signs them, so they last for longer than the jump.
  async clock() {
    const took = [];
    for (const [jump, to] of [['+1 hour', 'an hour on'], ['-2 hours', 'two hours back'], ['+1 hour', 'right again']]) {
      const pid = await field('MainPID');
      await must(`date -s '${jump}' >/dev/null`);
      took.push(`${to}: clients go on after ${await chat.recovered()} ms`);
      if (await field('MainPID') !== pid) fail(`it was restarted: ${took.join(', ')}`);
    }
    return took.join(', ');
  },

  async journal_gone() {
    const pid = await field('MainPID');
    await must('systemctl stop systemd-journald.socket systemd-journald-dev-log.socket systemd-journald-audit.socket systemd-journald.service 2>/dev/null; ! systemctl is-active --quiet systemd-journald');
    await must('systemctl kill -s HUP roomwire');
    const withoutMs = await chat.recovered();
    await must('systemctl start systemd-journald.socket systemd-journald-dev-log.socket systemd-journald.service');
    const since = await must("date +'%F %T'; sleep 1; systemctl kill -s HUP roomwire");
    const backMs = await chat.recovered();
    if (await field('MainPID') !== pid) fail('it was restarted');
    const logs = await until(async () => (await inside(`journalctl -u roomwire --since '${since}' -o cat --no-pager | grep -q 'configuration reloaded'`)).status === 0, 30_000);
    return `clients go on after ${withoutMs} ms without it and ${backMs} ms with it again; ${logs === null ? fail('the node does not log any more') : 'it logs again'}`;
  },

  async upgrade() {
    const [before, pid] = [await must('dpkg-query -W -f \'${Version}\' roomwire'), await field('MainPID')];
    const at = Date.now();
    await must(`cd /root && apt-get install -y ./${path.basename(NEW)}`);
    const tookMs = Date.now() - at;
    if (await field('MainPID') === pid) fail('the old process still runs');
    if (!(await must(`cat ${ENV_FILE}`)).includes(secret)) fail('the secret changed');
    const after = await must('dpkg-query -W -f \'${Version}\' roomwire');
    return `${before} to ${after} in ${(tookMs / 1000).toFixed(1)} s, drained and restarted; clients back ${await chat.recovered()} ms after, secret kept`;
  },

  ledger: () => chat.verdict(),

  ...Object.fromEntries(Object.entries(REFUSALS).map(([name, refusal]) => [name, () => refused(refusal)])),

  async remove() {
    await must('apt-get remove -y roomwire');
    if ((await inside('test -e /usr/bin/roomwire')).status === 0) fail('the binary is still there');
    await must(`test -e ${ENV_FILE} && test -d /var/lib/roomwire`);
    return 'stopped and removed; configuration, secret and messages stay';
  },

  async purge() {
    await must('apt-get purge -y roomwire');
    const left = await must('find / -xdev -name "*roomwire*" -not -path "/root/*" -not -path "/proc/*" -not -path "/sys/*" -not -path "/var/log/*" -not -path "/var/cache/*" -not -path "/etc/systemd/system/roomwire.service.d*"; getent passwd roomwire; getent group roomwire; true');
    if (left) fail(`left behind: ${left}`);
    return 'no file, no user, no group left';
  },
};

// For work on some steps: the secret is there already.
if (process.env.ROOMWIRE_VM_STEPS) secret = (await inside(`cat ${ENV_FILE}`)).out.match(/^JWT_SECRET=(.+)$/m)?.[1] ?? '';
const report = await runSteps('smoke', STEPS);
process.exit(report.some((entry) => !entry.ok) ? 1 : 0);
