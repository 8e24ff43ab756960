// From the package to its purge, on a machine with a real systemd: `scripts/vm smoke`. Each step says what it saw; the report is
// the list of them. Clients with a ledger chat through the forwarded port all the while.
//
//   node vm/smoke.js --old OLD.deb --new NEW.deb --port PORT     PORT of this machine leads to 8080 of the lab's
import { readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { until } from '../cluster.js';
import { check, readHistories, settle } from '../ledger/check.js';
import { LedgerClient } from '../ledger/client.js';
import { Ledger } from '../ledger/ledger.js';
import { randomFrom } from '../ledger/random.js';
import { sleep } from '../server.js';
import { LAB, inside, must, put, token } from './lab.js';
import { REFUSALS, refused } from './refusals.js';

const { values } = parseArgs({ options: { old: { type: 'string' }, new: { type: 'string' }, port: { type: 'string' } } });
const { old: OLD, new: NEW, port: PORT } = values;
const CLIENTS = 12, ROOMS = 4, GAP_MS = 600;
const ENV_FILE = '/etc/roomwire/roomwire.env';
const began = Date.now();
const report = [];

const ledger = new Ledger();
const rooms = Array.from({ length: ROOMS }, (_, n) => `lab-${n}`);
let secret = '', clients = [], publishers = [];
const url = (user) => `ws://127.0.0.1:${PORT}/ws?token=${token(secret, user)}`;

const statusLine = async () => (await must('systemctl show roomwire -p StatusText --value'));
const field = async (name) => must(`systemctl show roomwire -p ${name} --value`);
const fail = (what) => { throw new Error(what); };

/** How long until every client had an ack and something new in each of its rooms. */
async function recovered(msMax = 120_000) {
  const seen = (client) => [client.acks.size, ...[...client.rooms.values()].map((room) => room.got.length)];
  const before = clients.map(seen);
  const tookMs = await until(() => clients.every((client, at) => seen(client).every((now, n) => now > before[at][n])), msMax);
  return tookMs === null ? fail(`clients did not come back in ${msMax} ms: ${clients.map((client) => client.waitsFor()).find(Boolean)}`) : Math.round(tookMs);
}

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
    await must('test -s /usr/share/man/man5/roomwire.toml.5.gz && test -x /usr/sbin/roomwire-tuning && roomwire-tuning status');
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
    clients = Array.from({ length: CLIENTS }, (_, n) => new LedgerClient(ledger, {
      name: `lab-${n}`, rooms: [rooms[n % ROOMS], rooms[(n + 1) % ROOMS]], random: randomFrom(n + 1), dial: async ({ name }) => url(name), backOff: [200, 2_000],
    }));
    for (const client of clients) client.connect();
    if (await until(() => clients.every((client) => !client.waitsFor()), 60_000) === null) fail(clients.map((client) => client.waitsFor()).find(Boolean));
    publishers = clients.map((client) => client.publishUntilTold({ gapMs: GAP_MS, cuts: 0 }));
    await recovered();
    return `${CLIENTS} clients through the forwarded port; "${await statusBecomes(/^serving: 12 connections/)}"`;
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
    await recovered();
    return 'the same process goes on, nobody lost';
  },

  async watchdog_process() {
    const [before, restarts] = [await field('MainPID'), Number(await field('NRestarts'))];
    await must(`kill -STOP ${before}`);
    const at = Date.now();
    if (await until(async () => Number(await field('NRestarts')) > restarts && await field('ActiveState') === 'active', 180_000) === null) fail('systemd did not restart it');
    const upMs = Date.now() - at;
    return `SIGSTOP: another process serves after ${(upMs / 1000).toFixed(1)} s, clients back ${await recovered()} ms later`;
  },

  async watchdog_shard() {
    const restarts = Number(await field('NRestarts'));
    // ptrace stops threads, as a fault would, and leaves the others running: PTRACE_SEIZE, then PTRACE_INTERRUPT, of all that belong to shard 0.
    await must(`cat >/run/stopper.pl <<'PERL'
chomp(my $pid = \`systemctl show roomwire -p MainPID --value\`);
for my $comm (glob("/proc/$pid/task/*/comm")) {
  open my $file, '<', $comm or next; next unless <$file> =~ /^shard-0/;
  my ($thread) = $comm =~ m{task/([0-9]+)/};
  syscall(101, 0x4206, $thread + 0, 0, 0) == 0 or die "seize $thread: $!"; syscall(101, 0x4207, $thread + 0, 0, 0) == 0 or die "stop $thread: $!";
}
sleep 300;
PERL
systemd-run --quiet --unit=stopper perl /run/stopper.pl; sleep 3`);
    if (await must('systemctl is-active stopper; true') !== 'active') fail(`no thread was stopped: ${(await inside('journalctl -u stopper -o cat --no-pager')).out}`);
    const at = Date.now();
    const said = await statusBecomes(/does not turn/).catch(() => statusLine());
    if (await until(async () => Number(await field('NRestarts')) > restarts && await field('ActiveState') === 'active', 180_000) === null) fail(`systemd did not restart it; "${said}"`);
    const upMs = Date.now() - at;
    await inside('systemctl stop stopper');
    return `one shard's thread stood still ("${said}"): another process serves after ${(upMs / 1000).toFixed(1)} s, clients back ${await recovered()} ms later`;
  },

  async upgrade() {
    const [before, pid] = [await must('dpkg-query -W -f \'${Version}\' roomwire'), await field('MainPID')];
    const at = Date.now();
    await must(`cd /root && apt-get install -y ./${path.basename(NEW)}`);
    const tookMs = Date.now() - at;
    if (await field('MainPID') === pid) fail('the old process still runs');
    if (!(await must(`cat ${ENV_FILE}`)).includes(secret)) fail('the secret changed');
    const after = await must('dpkg-query -W -f \'${Version}\' roomwire');
    return `${before} to ${after} in ${(tookMs / 1000).toFixed(1)} s, drained and restarted; clients back ${await recovered()} ms after, secret kept`;
  },

  async ledger() {
    for (const client of clients) client.publishing = false;
    await Promise.all(publishers);
    await settle(ledger, clients, 60_000);
    const voids = check(ledger, clients, rooms, [await readHistories(ledger, url('auditor'), rooms)]);
    for (const client of clients) client.end();
    if (ledger.violated) fail(`${ledger.violated} violations: ${ledger.violations.slice(0, 5).join('; ')}`);
    const { acked, deliveries, resumes } = ledger.count;
    return `${acked} acked, ${deliveries} delivered, ${resumes} resumes, ${voids} voids, 0 violations; closes ${JSON.stringify(ledger.closes)}`;
  },

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

async function step(name, act) {
  const at = Date.now();
  let saw = '', ok = true;
  try { saw = await act(); } catch (error) { [ok, saw] = [false, error.message]; }
  const seconds = ((Date.now() - at) / 1000).toFixed(1);
  report.push({ name, ok, seconds: Number(seconds), saw });
  console.log(`${ok ? 'ok  ' : 'FAIL'} ${seconds.padStart(6)} s  ${name}: ${saw}`);
}

// With ROOMWIRE_VM_STEPS only those steps, for work on one of them.
const only = process.env.ROOMWIRE_VM_STEPS?.split(',');
if (only) secret = (await inside(`cat ${ENV_FILE}`)).out.match(/^JWT_SECRET=(.+)$/m)?.[1] ?? '';
for (const [name, act] of Object.entries(STEPS)) if (!only || only.includes(name)) await step(name, act);
const failed = report.filter((entry) => !entry.ok).length;
const serial = readFileSync(path.join(LAB, 'n1', 'serial.log'), 'utf8');
if (/Kernel panic|BUG:|Oops/.test(serial)) console.log('the serial log has a fault of the kernel');
writeFileSync(path.join(LAB, 'smoke.json'), `${JSON.stringify({ seconds: (Date.now() - began) / 1000, report }, null, 1)}\n`);
console.log(`\n${report.length - failed} passed, ${failed} failed in ${((Date.now() - began) / 1000).toFixed(0)} s`);
process.exit(failed ? 1 : 0);
