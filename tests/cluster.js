// A real cluster for tests, by scripts/cluster: nodes, Redis, Cassandra and HAProxy on ports of its own, in a directory of its own.
import { execFile } from 'node:child_process';
import { createHmac } from 'node:crypto';
import { existsSync, mkdtempSync, readFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { Redis } from 'ioredis';
import { BINARY, sleep } from './server.js';

const ROOT = path.join(path.dirname(fileURLToPath(import.meta.url)), '..');
const SCRIPT = path.join(ROOT, 'scripts', 'cluster');
/** As many ports in a row, from the balancer's. */
const PORTS = 60;
const execute = promisify(execFile);

function isFree(port) {
  return new Promise((resolve) => {
    const probe = createServer().once('error', () => resolve(false)).once('listening', () => probe.close(() => resolve(true)));
    probe.listen(port, '127.0.0.1');
  });
}

/** The first port of a block that nobody uses now, below those that the kernel hands out. */
async function freeBlock() {
  for (let attempt = 0; attempt < 100; attempt++) {
    const base = 20_000 + Math.floor(Math.random() * 120) * PORTS;
    const free = await Promise.all(Array.from({ length: PORTS }, (_, n) => isFree(base + n)));
    if (free.every(Boolean)) return base;
  }
  throw new Error(`found no ${PORTS} free ports in a row: set CLUSTER_PORT`);
}

const base64 = (value) => Buffer.from(value).toString('base64url');

export class Cluster {
  /** Starts one. `sets`: settings of every node, `key=value`. CLUSTER_DIR and CLUSTER_PORT choose where. */
  static async up({ nodes = 3, cassandra = 1, sentinel = false, sets = [] } = {}) {
    const cluster = new Cluster();
    cluster.dir = process.env.CLUSTER_DIR ?? path.join(mkdtempSync(path.join(tmpdir(), 'roomwire-cluster-')), 'cluster');
    cluster.port = Number(process.env.CLUSTER_PORT ?? await freeBlock());
    cluster.nodes = Array.from({ length: nodes }, (_, n) => `node${n + 1}`);
    cluster.cassandras = Array.from({ length: cassandra }, (_, n) => `cassandra${n + 1}`);
    cluster.sentinel = sentinel;
    cluster.clients = [];
    try {
      const flags = ['--nodes', nodes, '--cassandra', cassandra, ...(sentinel ? ['--sentinel'] : []), ...sets.flatMap((set) => ['--set', set])];
      await cluster.run('up', ...flags.map(String));
      cluster.secret = readFileSync(path.join(cluster.dir, 'secret'), 'utf8').trim();
    } catch (error) {
      await cluster.down();
      throw error;
    }
    return cluster;
  }

  async run(...words) {
    try {
      const { stdout } = await execute(SCRIPT, words, { env: { ...process.env, CLUSTER_DIR: this.dir, CLUSTER_PORT: String(this.port), ROOMWIRE_BIN: BINARY } });
      return stdout;
    } catch (error) {
      throw new Error(`scripts/cluster ${words.join(' ')}: ${error.stderr || error.message}`);
    }
  }

  kill(name) { return this.run('kill', name); }
  stop(name) { return this.run('stop', name); }
  pause(name) { return this.run('pause', name); }
  resume(name) { return this.run('resume', name); }
  start(name, sets = []) { return this.run('start', name, ...sets.flatMap((set) => ['--set', set])); }

  async down() {
    for (const client of this.clients) client.disconnect();
    if (existsSync(path.join(this.dir, 'settings'))) await this.run('down');
  }

  /** A token of a user for an hour, signed as docs/protocol.md has it. */
  token(user) {
    const head = base64(JSON.stringify({ alg: 'HS256', typ: 'JWT' }));
    const body = base64(JSON.stringify({ sub: user, name: user, exp: Math.floor(Date.now() / 1000) + 3600 }));
    return `${head}.${body}.${createHmac('sha256', this.secret).update(`${head}.${body}`).digest('base64url')}`;
  }

  /** Where a user connects to: a node by its name, or the balancer. */
  url(user, node = 'haproxy') {
    const port = node === 'haproxy' ? this.port : this.port + 10 + Number(node.slice(4));
    return `ws://127.0.0.1:${port}/ws?token=${this.token(user)}`;
  }

  http(node) { return `http://127.0.0.1:${this.port + 20 + Number(node.slice(4))}`; }

  /** A GET of a node's HTTP API: [status, body]. */
  async get(node, route) {
    const answer = await fetch(this.http(node) + route, { headers: { authorization: `Bearer ${this.secret}` }, signal: AbortSignal.timeout(5_000) });
    const text = await answer.text();
    return [answer.status, answer.headers.get('content-type')?.includes('json') ? JSON.parse(text) : text];
  }

  /** The value of a metric of a node, summed over its labels; 0 if it is not there. */
  async metric(node, name) {
    const [, text] = await this.get(node, '/metrics');
    const lines = text.split('\n').filter((line) => line.startsWith(`roomwire_${name} `) || line.startsWith(`roomwire_${name}{`));
    return lines.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(' ') + 1)), 0);
  }

  pid(name) { return Number(readFileSync(path.join(this.dir, name, 'pid'), 'utf8')); }

  /** Resident bytes of a node. */
  rssBytes(node) {
    return Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${this.pid(node)}/status`, 'utf8'))[1]) * 1024;
  }

  redisPort(name) { return this.port + (name.startsWith('sentinel') ? 40 : 30) + Number(name.replace(/\D/g, '')); }

  /** A connection of our own to one Redis or Sentinel. */
  redis(name = 'redis1') {
    const client = new Redis({ port: this.redisPort(name), host: '127.0.0.1', retryStrategy: () => 100, maxRetriesPerRequest: null });
    client.on('error', () => {}); // it may be down on purpose
    this.clients.push(client);
    return client;
  }

  /** The name of the Redis that the Sentinels hold for the master. */
  async master() {
    if (!this.sentinel) return 'redis1';
    this.sentinelClient ??= this.redis('sentinel1');
    const [, port] = await this.sentinelClient.call('SENTINEL', 'GET-MASTER-ADDR-BY-NAME', 'roomwire');
    return `redis${Number(port) - this.port - 30}`;
  }

  logs(node, lines = 20) {
    return readFileSync(path.join(this.dir, node, 'log'), 'utf8').trimEnd().split('\n').slice(-lines).join('\n');
  }
}

/** Waits until `check` answers true; the time that it took in ms, or null if it was not within `msMax`. */
export async function until(check, msMax, everyMs = 50) {
  const began = performance.now();
  for (;;) {
    const isDone = await Promise.resolve(check()).catch(() => false);
    const tookMs = performance.now() - began;
    if (isDone) return tookMs;
    if (tookMs > msMax) return null;
    await sleep(everyMs);
  }
}
