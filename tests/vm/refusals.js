// Surroundings in which a node cannot start, and what systemd shows of it then.
import { sleep } from '../server.js';
import { inside, must } from './lab.js';

const CONFIG = '/etc/roomwire/roomwire.toml';
const DROP_IN = '/run/systemd/system/roomwire.service.d';

const dropIn = (line) => `mkdir -p ${DROP_IN} && printf '[Service]\\n${line}\\n' >${DROP_IN}/99-lab.conf && systemctl daemon-reload`;
const noDropIn = `rm -rf ${DROP_IN} && systemctl daemon-reload`;
const setting = (text) => `cp -p ${CONFIG} /root/kept.toml && printf '${text}' >>${CONFIG}`;
const noSetting = `cp -p /root/kept.toml ${CONFIG}`;

/** `final`: trying again does not help, so systemd must not. `says`: what an operator finds in `systemctl status`, or else in the journal. */
export const REFUSALS = {
  wrong_value: { before: setting('\\n[heartbeats]\\nsecs = 30\\n'), after: noSetting, says: /heartbeats/, final: true },
  nofile_too_low: {
    before: `${setting('')} && sed -i 's/^# connections_max = .*/connections_max = 500000/' ${CONFIG} && ${dropIn('LimitNOFILE=4096')}`, after: `${noSetting}; ${noDropIn}`,
    says: /limits\.connections_max.* is 500000, but the limit of open descriptors, 4096/, final: true,
  },
  io_uring_forbidden: { before: dropIn('SystemCallFilter=~io_uring_setup'), after: noDropIn, says: /io_uring/, final: true },
  disk_full: {
    before: 'mkdir -p /var/lib/roomwire && mount -t tmpfs -o size=1M,mode=0750,uid=$(id -u roomwire),gid=$(id -g roomwire) full /var/lib/roomwire && head -c 2M /dev/zero >/var/lib/roomwire/filler || true',
    after: 'umount /var/lib/roomwire', says: /No space left|disk|space/i, final: false,
  },
  port_taken: {
    before: 'systemd-run --quiet --unit=squatter systemd-socket-activate -l 8080 /bin/cat && sleep 1', after: 'systemctl stop squatter',
    says: /listen\.addr .*8080 is taken by another process/, final: false,
  },
};

/** Starts the unit in such surroundings, and puts them right again: then it has to start. */
export async function refused({ before, after, says, final }) {
  await must('systemctl stop roomwire; systemctl reset-failed roomwire 2>/dev/null; true');
  await must(before);
  let said = '', restarts = 0;
  try {
    if ((await inside('systemctl start roomwire', 120_000)).status === 0) throw new Error('it started');
    await sleep(4_000);
    // While systemd tries again, its status shows only what the attempt under way said; the journal has all of them.
    said = (await inside(final ? 'systemctl status roomwire --no-pager -l' : 'journalctl -u roomwire -o cat --no-pager -n 40')).out;
    restarts = Number(await must('systemctl show roomwire -p NRestarts --value'));
  } finally {
    await must(`systemctl stop roomwire; ${after}`);
    await must('systemctl reset-failed roomwire 2>/dev/null; true');
  }
  const line = said.split('\n').find((text) => says.test(text));
  if (!line) throw new Error(`it is not said:\n${said}`);
  if (final && restarts > 0) throw new Error(`systemd tried ${restarts} times more, which cannot help:\n${said}`);
  await must('systemctl start roomwire');
  return `"${line.replace(/^.*?\]: /, '').trim()}"; starts again afterwards`;
}
