// Where tests/vm/connections.js runs its node and its load: in a machine of the lab, under systemd, or on this machine as plain processes.
//
// A place has prepare(), which starts the node and says what machine it is; shell(), a command there; pid, words of that shell for the node's process
// and load, those for the sessions of the load; open() and state() for a step of the load; and stop().
import path from 'node:path';
import { mkdirSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { availableParallelism } from 'node:os';
import { sleep } from '../server.js';
import { inside, must, patiently, put, run } from './lab.js';

/** The lab: the package runs as its unit, the kernel is tuned as an operator would. */
export function lab({ deb, to }) {
  const dir = '/run/lab';
  const unit = (at) => `bench-${at}`;
  const opened = [];
  return {
    dir, http: 9090, addr: '127.0.0.1:8080', bench: 'roomwire-bench', shell: patiently,
    pid: '$(systemctl show roomwire -p MainPID --value)', load: '-C roomwire-bench',
    workers: () => 2,
    async prepare() {
      await put(deb);
      await must(`cd /root && apt-get install -y ./${path.basename(deb)}`);
      await must(`roomwire-tuning apply --connections ${to}`);
      // Under emulation a watchdog of 10 s would judge the emulator.
      await must(`mkdir -p /etc/systemd/system/roomwire.service.d && printf '[Service]\\nTimeoutStartSec=300\\nWatchdogSec=300\\nLimitNOFILE=${Math.ceil(to * 1.1) + 10_000}\\n' >/etc/systemd/system/roomwire.service.d/lab.conf && systemctl daemon-reload`);
      // As much as an operator of so many would give: a longer queue, more buffers; and time for handshakes, which the emulator needs.
      await must(`printf 'ROOMWIRE_LIMITS__CONNECTIONS_MAX=${to + 100}\\nROOMWIRE_LISTEN__BACKLOG=65535\\nROOMWIRE_LIMITS__HANDSHAKE_MS_MAX=60000\\nROOMWIRE_RING__BUFFERS=8192\\nROOMWIRE_RING__CQ_ENTRIES=65536\\n' >>/etc/roomwire/roomwire.env; rm -rf ${dir}; mkdir -p ${dir}; systemctl restart roomwire`);
      return must(`. /etc/os-release; echo "$PRETTY_NAME, Linux $(uname -r), $(nproc) cores, $(awk '/^MemTotal/ {print int($2 / 1024)}' /proc/meminfo) MiB; $(roomwire --version)"`);
    },
    async open(at, count, command) {
      opened.push(at);
      await patiently(`test -e ${dir}/${at}.sh || { printf '%s\\n' '${command}' >${dir}/${at}.sh; systemd-run --quiet --unit=${unit(at)} -p EnvironmentFile=/etc/roomwire/roomwire.env -p LimitNOFILE=${count + 1_000} -p StandardOutput=file:${dir}/${at}.log -p StandardError=file:${dir}/${at}.log -p RemainAfterExit=yes sh ${dir}/${at}.sh; }`);
    },
    /** Whether the load of a step goes on. */
    runs: async (at) => /running|start/.test(await patiently(`systemctl show ${unit(at)} -p SubState --value`)),
    stop: () => inside(`systemctl stop ${opened.map(unit).join(' ')}; systemctl stop roomwire`),
  };
}

/** This machine. Its limit of descriptors holds for each process and for each shard's table, so it takes many of both. */
export function native({ binaries, to, port }) {
  const dir = path.resolve('target/vm/native');
  const binary = (name) => path.resolve(binaries, name);
  const children = new Map();
  const env = { ...process.env, JWT_SECRET: randomBytes(32).toString('hex') };
  let descriptors = 0;
  const start = (name, command, args) => {
    const log = openSync(path.join(dir, `${name}.log`), 'a');
    const child = spawn(command, args, { env, detached: true, stdio: ['ignore', log, log] });
    children.set(name, child);
    return child;
  };
  const end = () => {
    for (const child of children.values()) {
      try { if (child.exitCode === null) process.kill(-child.pid, 'SIGKILL'); } catch { /* it has ended */ }
    }
  };
  process.on('exit', end);
  const shell = async (command) => {
    const { status, out } = await run('sh', ['-c', command]);
    if (status !== 0) throw new Error(`${command}: status ${status}\n${out}`);
    return out;
  };
  return {
    dir, http: port + 1, addr: `127.0.0.1:${port}`, bench: binary('roomwire-bench'), shell,
    get pid() { return children.get('server').pid; },
    get load() { return [...children].filter(([name]) => name !== 'server').map(([, child]) => `-s ${child.pid}`).join(' ') || '-s 1'; },
    // Some descriptors are the worker's own.
    workers: (count) => Math.ceil(count / (descriptors - 1_000)),
    async prepare() {
      rmSync(dir, { recursive: true, force: true });
      mkdirSync(dir, { recursive: true });
      descriptors = Number(await shell('ulimit -Hn'));
      // Connections are spread by chance, so that some shards have a little more than others.
      const shards = Math.max(availableParallelism(), Math.ceil(to * 1.05 / descriptors));
      start('server', binary('roomwire'), ['serve', ...[`listen.addr=127.0.0.1:${port}`, `http.addr=127.0.0.1:${port + 1}`, `data.dir=${dir}/data`, `shards=${shards}`,
        'listen.backlog=65535', 'limits.handshake_ms_max=60000', 'ring.buffers=512', 'log.level=warn'].flatMap((set) => ['--set', set])]);
      for (let tries = 0; (await run('curl', ['-sf', `http://127.0.0.1:${port + 1}/readyz`])).status !== 0; tries += 1) {
        if (tries === 100) throw new Error(`the node does not start: ${readFileSync(path.join(dir, 'server.log'), 'utf8')}`);
        await sleep(100);
      }
      return shell(`echo "this machine, Linux $(uname -r), $(nproc) cores, $(awk '/^MemTotal/ {print int($2 / 1024)}' /proc/meminfo) MiB, ${descriptors} descriptors, ${shards} shards; $(${binary('roomwire')} version)"`);
    },
    async open(at, count, command) {
      writeFileSync(path.join(dir, `${at}.sh`), `${command}\n`);
      start(at, 'sh', ['-c', `ulimit -Sn ${descriptors}; exec sh ${dir}/${at}.sh`]);
    },
    runs: async (at) => children.get(at).exitCode === null,
    async stop() { end(); },
  };
}
