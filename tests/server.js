// The real server as a child process: started on free ports with a data directory of its own, killed, started again.
// The binary is ROOMWIRE_BIN, or target/release/roomwire.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const HERE = path.dirname(fileURLToPath(import.meta.url));
export const TARGET = path.join(HERE, '..', 'target');
export const BINARY = path.resolve(process.env.ROOMWIRE_BIN ?? path.join(TARGET, 'release', 'roomwire'));
const START_MS_MAX = 30_000;
const STOP_MS_MAX = 40_000;
const LOG_LINES_MAX = 60;

// To the server ROOMWIRE_BIN would be a key of its configuration, and an unknown one.
const { ROOMWIRE_BIN: _, ...ENVIRONMENT } = process.env;

const children = new Set();
process.on('exit', () => { for (const child of children) child.kill('SIGKILL'); });
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => process.exit(130));

export const sleep = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });

/**
 * A free port below those that the kernel gives to outgoing connections: while a server is down for a moment, one of these
 * may take its port, be it a client of its own that tries to come back.
 */
async function freePort() {
  for (;;) {
    const port = 10_000 + Math.floor(Math.random() * 20_000);
    const probe = createServer();
    const isFree = await new Promise((resolve) => {
      probe.once('error', () => resolve(false));
      probe.listen(port, '127.0.0.1', () => resolve(true));
    });
    if (!isFree) continue;
    probe.close();
    await once(probe, 'close');
    return port;
  }
}

export class Server {
  /** Picks ports and a data directory; `settings` are more `--set key=value`. */
  static async create(settings = []) {
    const server = new Server();
    server.wsPort = await freePort();
    server.httpPort = await freePort();
    server.dir = mkdtempSync(path.join(tmpdir(), 'roomwire-test-'));
    server.settings = settings;
    server.log = [];
    server.tokens = new Map();
    return server;
  }

  get http() { return `http://127.0.0.1:${this.httpPort}`; }
  get ws() { return `ws://127.0.0.1:${this.wsPort}`; }

  /** Starts it and waits until it says that it is ready. */
  async start() {
    const sets = [`listen.addr=127.0.0.1:${this.wsPort}`, `http.addr=127.0.0.1:${this.httpPort}`, `data.dir=${this.dir}`, ...this.settings];
    const child = spawn(BINARY, ['serve', '--dev', ...sets.flatMap((set) => ['--set', set])], { stdio: ['ignore', 'pipe', 'pipe'], env: ENVIRONMENT });
    this.child = child;
    this.tokens.clear(); // --dev makes a new secret at each start
    children.add(child);
    this.ended = new Promise((resolve) => {
      child.on('error', (error) => resolve(`cannot run ${BINARY}: ${error.message}`));
      child.on('exit', (code, signal) => resolve(signal ?? `exit ${code}`));
    });
    this.ended.then(() => children.delete(child));
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (data) => this.keep(data));
    const until = Date.now() + START_MS_MAX;
    let over = null;
    this.ended.then((how) => { over = how; });
    while (!(await this.isReady())) {
      if (over) throw new Error(`the server ended while starting (${over})\n${this.log.join('\n')}`);
      if (Date.now() > until) throw new Error(`the server was not ready after ${START_MS_MAX} ms\n${this.log.join('\n')}`);
      await sleep(25);
    }
    return this;
  }

  keep(data) {
    this.log.push(...String(data).trimEnd().split('\n'));
    this.log.splice(0, this.log.length - LOG_LINES_MAX);
  }

  async isReady() {
    try {
      const answer = await fetch(`${this.http}/readyz`, { signal: AbortSignal.timeout(2000) });
      await answer.arrayBuffer();
      return answer.status === 200;
    } catch {
      return false;
    }
  }

  /** kill -9: nothing is flushed, nobody is told. */
  async kill() {
    this.child.kill('SIGKILL');
    const how = await this.ended;
    if (how !== 'SIGKILL') throw new Error(`the server had ended by itself before it was killed (${how})\n${this.log.join('\n')}`);
  }

  /** SIGTERM, twice so that it does not wait for its clients. Returns how it ended. */
  async stop() {
    if (!this.child) return null;
    this.child.kill('SIGTERM');
    await sleep(50);
    this.child.kill('SIGTERM');
    const timer = setTimeout(() => this.child.kill('SIGKILL'), STOP_MS_MAX);
    const how = await this.ended;
    clearTimeout(timer);
    return how;
  }

  /** Stops it whatever happened and removes its data. */
  async end() {
    const how = await this.stop();
    rmSync(this.dir, { recursive: true, force: true });
    return how;
  }

  async token(user) {
    if (!this.tokens.has(user)) {
      const answer = await fetch(`${this.http}/dev/token?user=${encodeURIComponent(user)}`);
      if (!answer.ok) throw new Error(`/dev/token answered ${answer.status}: ${await answer.text()}`);
      this.tokens.set(user, (await answer.json()).token);
    }
    return this.tokens.get(user);
  }
}
