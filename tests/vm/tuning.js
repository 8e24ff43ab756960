// Kernel tuning on a real kernel: `scripts/vm tuning`. More descriptors than the kernel gives, before and after `roomwire-tuning apply`. Then what undoes it:
// rollback, also after an apply that was killed half way, persist with a read-only /etc and over a restart of the machine. Values are compared byte by byte.
//
//   node vm/tuning.js --deb DEB --report DIR
import path from 'node:path';
import { parseArgs } from 'node:util';
import { sleep } from '../server.js';
import { inside, must, put } from './lab.js';
import { fail, keepReport, runSteps } from './steps.js';

const { values } = parseArgs({ options: { deb: { type: 'string' }, report: { type: 'string' } } });
const CONNECTIONS = 1_500_000;
const DROP_IN = '/etc/systemd/system/roomwire.service.d/lab.conf';
// As `apply` reads its table: under /proc/sys, or with a leading slash under /.
const SNAPSHOT = `cd /usr/share/roomwire/tuning && grep -v '^#' keys.tsv | cut -f 1 | while read -r key; do case $key in /*) ;; *) key=/proc/sys/$key ;; esac; for file in $key; do [ ! -e $file ] || echo "$file $(od -An -v -tx1 $file | tr -d ' \\n')"; done; done`;
const LIMITS = 'cat /proc/$(systemctl show roomwire -p MainPID --value)/limits';
let original = '', limits = '';

const snapshot = () => must(SNAPSHOT);
const unit = (lines) => must(`mkdir -p $(dirname ${DROP_IN}) && printf '[Service]\\nTimeoutStartSec=300\\nWatchdogSec=300\\n${lines}' >${DROP_IN} && systemctl daemon-reload`);

/** How many descriptors a node has whose unit wants more than fs.nr_open gives: systemd starts it with as many as there are. */
async function descriptors() {
  await unit(`LimitNOFILE=${CONNECTIONS}\\n`);
  await must('systemctl restart roomwire');
  const found = (await must(LIMITS)).match(/Max open files +(\d+)/)?.[1];
  await unit('');
  await must('systemctl restart roomwire');
  return Number(found);
}

async function same(what) {
  const now = await snapshot();
  if (now === original) return `${now.split('\n').length} values as before, byte by byte`;
  const was = new Set(original.split('\n'));
  return fail(`${what} left: ${now.split('\n').filter((line) => !was.has(line)).join('; ')}`);
}

/** Kills `apply` when it has saved so many values. Exit status 137 shows that it had not ended. */
const killed = (lines) => must(`exec 2>/dev/null; roomwire-tuning apply --connections ${CONNECTIONS} --notrack 8080 >/run/apply.log 2>&1 & p=$!
  until [ "$(cat /var/lib/roomwire-tuning/saved.tsv | wc -l)" -ge ${lines} ]; do kill -0 $p || break; done; kill -9 $p; wait $p; echo "$? after $(wc -l </var/lib/roomwire-tuning/saved.tsv) saved, $(grep -c '^set' /run/apply.log) set"`);

async function reboot() {
  await inside('systemctl reboot', 60_000);
  await sleep(5_000);
  for (const until = Date.now() + 900_000; (await inside('true').catch(() => ({ status: 1 }))).status !== 0; await sleep(3_000)) if (Date.now() > until) fail('the machine did not come back');
}

const STEPS = {
  async install() {
    await put(values.deb);
    await must(`cd /root && apt-get install -y ./${path.basename(values.deb)}`);
    // The modules are loaded, so that their settings are there.
    await must('modprobe nf_conntrack');
    await unit('');
    await must('systemctl restart roomwire');
    original = await snapshot();
    limits = await must(LIMITS);
    return `${original.split('\n').length} values of the table; ${await must('. /etc/os-release; echo "$PRETTY_NAME, Linux $(uname -r), $(nproc) cores, $(awk \'/^MemTotal/ {print int($2 / 1024)}\' /proc/meminfo) MiB"')}`;
  },
  async descriptors_before() {
    const nofile = await descriptors();
    return nofile < CONNECTIONS ? `LimitNOFILE=${CONNECTIONS}: the node starts with ${nofile}` : fail('it gets all of them');
  },
  async apply() {
    const out = await must(`roomwire-tuning apply --connections ${CONNECTIONS} --notrack 8080`);
    await must(`roomwire-tuning check --connections ${CONNECTIONS}`);
    return out.split('\n').at(-1);
  },
  async descriptors_after() {
    const nofile = await descriptors();
    return nofile === CONNECTIONS ? `the node starts with ${nofile}` : fail(`it starts with ${nofile}`);
  },
  async rollback() {
    await must('roomwire-tuning rollback && systemctl restart roomwire');
    if (await must(LIMITS) !== limits) fail('the limits of the node differ');
    if ((await inside('nft list table inet roomwire_notrack')).status === 0) fail('connection tracking is not back');
    return same('rollback');
  },
  async killed_halfway() {
    const said = [];
    for (const lines of [1, 7, 14]) {
      const how = await killed(lines);
      if (!how.startsWith('137')) fail(`it had ended: ${how}`);
      await must('roomwire-tuning rollback');
      said.push(`${how}: ${await same('an apply that was killed')}`);
    }
    return said.join('; ');
  },
  async persist_read_only() {
    await must(`roomwire-tuning apply --connections ${CONNECTIONS}; mount --bind /etc /etc && mount -o remount,bind,ro /etc`);
    const { status, out } = await inside('roomwire-tuning persist');
    const left = await must('ls /etc/sysctl.d/90-roomwire.conf /etc/roomwire/tuning.conf 2>/dev/null; true');
    await must('umount /etc');
    if (status !== 2 || out.split('\n').length !== 1 || left) fail(`status ${status}, left "${left}":\n${out}`);
    await must('roomwire-tuning rollback');
    return `status ${status}, "${out}", nothing written; ${await same('rollback after it')}`;
  },
  async persist_and_restart() {
    await must(`roomwire-tuning apply --connections ${CONNECTIONS} && roomwire-tuning persist && systemctl enable --quiet roomwire`);
    await reboot();
    const { status, out } = await inside(`modprobe nf_conntrack; for n in $(seq 60); do systemctl is-active --quiet roomwire && break; sleep 2; done; roomwire-tuning check --connections ${CONNECTIONS}`);
    const off = out.split('\n').filter((line) => line.startsWith('OFF') && !/conntrack/.test(line));
    if (off.length) fail(`after the restart: ${off.join('; ')}`);
    await must('roomwire-tuning rollback');
    return `${status === 0 ? 'all' : 'all but connection tracking, whose module was loaded later,'} as applied after a restart of the machine; ${await same('rollback after it')}`;
  },
};

const report = await runSteps('tuning', STEPS);
keepReport(values.report, 'tuning', 'Kernel tuning in the lab', report);
process.exit(report.some((entry) => !entry.ok) ? 1 : 0);
