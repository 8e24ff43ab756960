// A herd too large for one process: each process may hold no more descriptors than the machine allows it.
//
//   node chaos/herds.js     one of the processes; started here, and told by messages what to do
import { fork } from 'node:child_process';
import os from 'node:os';
import { fileURLToPath } from 'node:url';
import { Cluster } from '../cluster.js';
import { Herd } from './herd.js';

const FILE = fileURLToPath(import.meta.url);
const START_MS_MAX = 180_000;

export class Herds {
  /** `count` members in processes of at most `each`; the rest as for Herd. */
  constructor(cluster, { name, count, each = 7_000, ...options }) {
    const processes = Math.ceil(count / each);
    Object.assign(this, { cluster, name, count, options });
    this.shares = Array.from({ length: processes }, (_, n) => Math.floor(count / processes) + (n < count % processes ? 1 : 0));
  }

  /** Connects all; resolves when all are in. */
  async start() {
    const { port, nodes, secret } = this.cluster;
    this.children = this.shares.map((count, n) => {
      const child = fork(FILE);
      child.send({ kind: 'start', cluster: { port, nodes, secret }, options: { ...this.options, name: `${this.name}-${n}`, count } });
      return child;
    });
    await this.all('in', START_MS_MAX);
    return this;
  }

  /** Ends every connection without a word; how many ms until the last member was back in its room, or null if not within `msMax`. */
  async dropAll(msMax) {
    const began = performance.now();
    for (const child of this.children) child.send({ kind: 'drop' });
    try {
      await this.all('back', msMax);
    } catch {
      return null;
    }
    return performance.now() - began;
  }

  /** Waits until each process has said so. */
  all(word, msMax) {
    return Promise.all(this.children.map((child) => new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error(`a herd is not "${word}" after ${msMax} ms`)), msMax);
      const heard = (message) => {
        if (message.kind !== word && message.kind !== 'failed') return;
        clearTimeout(timer);
        child.off('message', heard);
        if (message.kind === word) resolve(); else reject(new Error(message.why));
      };
      child.on('message', heard);
      child.once('exit', (code) => reject(new Error(`a herd's process ended (${code})`)));
    })));
  }

  end() {
    for (const child of this.children ?? []) child.disconnect();
  }
}

/** A process of the herd. Clients are elsewhere in life: here they must not take the cores from the nodes. */
function serve() {
  os.setPriority(10);
  let herd;
  const say = (kind) => process.send?.({ kind });
  process.on('message', async ({ kind, cluster, options }) => {
    if (kind === 'start') {
      herd = new Herd(Object.assign(new Cluster(), cluster), options);
      await herd.start().then(() => say('in'), (error) => process.send({ kind: 'failed', why: error.message }));
    }
    if (kind === 'drop') {
      herd.dropAll();
      const look = setInterval(() => { if (herd.isBack()) { clearInterval(look); say('back'); } }, 20);
    }
  });
  process.on('disconnect', () => process.exit(0));
}

if (process.argv[1] === FILE) serve();
