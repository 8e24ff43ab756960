// Clients with a ledger that chat with the lab's node through the forwarded port, while a run does things to it.
import { until } from '../cluster.js';
import { check, readHistories, settle } from '../ledger/check.js';
import { LedgerClient } from '../ledger/client.js';
import { Ledger } from '../ledger/ledger.js';
import { randomFrom } from '../ledger/random.js';
import { Knocker } from '../knock.js';
import { clientPort, token } from './lab.js';
import { fail } from './steps.js';

export const CLIENTS = 12;
const ROOMS = 4, GAP_MS = 600;

/** Has others knock while `act(knocker)` runs: how many were refused, and what became of all. */
export async function knocked(secret, workers, act) {
  const knocker = new Knocker((user) => `ws://127.0.0.1:${clientPort()}/ws?token=${token(secret, user)}`, workers);
  try { await act(knocker); } finally { await knocker.end(); }
  const { greeted, nodes, slowestMs, refused, refusals } = knocker;
  return { refusals, said: `${greeted} greeted (${JSON.stringify(nodes)}), slowest ${Math.round(slowestMs)} ms, refused ${JSON.stringify(refused)}` };
}

/** The same; nobody may be refused. */
export async function quietly(secret, workers, act) {
  const { refusals, said } = await knocked(secret, workers, act);
  return refusals ? fail(said) : said;
}

export class Chat {
  #ledger = new Ledger();
  // Rooms of its own, where an earlier run has left messages.
  #rooms = Array.from({ length: ROOMS }, (_, n) => `lab-${Date.now()}-${n}`);
  #clients = [];
  #publishers = [];
  #url;

  /** Connects, joins and begins to write. `secret` signs the tokens. */
  async start(secret) {
    this.#url = (user) => `ws://127.0.0.1:${clientPort()}/ws?token=${token(secret, user)}`;
    this.#clients = Array.from({ length: CLIENTS }, (_, n) => new LedgerClient(this.#ledger, {
      name: `lab-${n}`, rooms: [this.#rooms[n % ROOMS], this.#rooms[(n + 1) % ROOMS]], random: randomFrom(n + 1), dial: async ({ name }) => this.#url(name), backOff: [200, 2_000],
    }));
    for (const client of this.#clients) client.connect();
    if (await until(() => this.#clients.every((client) => !client.waitsFor()), 60_000) === null) fail(this.#waitsFor());
    this.#publishers = this.#clients.map((client) => client.publishUntilTold({ gapMs: GAP_MS, cuts: 0 }));
    await this.recovered();
  }

  /** The nodes that the clients are on, or were last, and how many on each. */
  nodes() {
    const nodes = {};
    for (const { node } of this.#clients) nodes[node] = (nodes[node] ?? 0) + 1;
    return nodes;
  }

  /** Waits until clients are on these nodes, and on no other. */
  async areOn(names, msMax = 60_000) {
    if (await until(() => Object.keys(this.nodes()).sort().join() === names.join(), msMax) === null) fail(`clients are on ${JSON.stringify(this.nodes())}`);
  }

  #waitsFor() { return this.#clients.map((client) => client.waitsFor()).find(Boolean); }

  /** How long until every client had an ack and something new in each of its rooms. */
  async recovered(msMax = 120_000) {
    const seen = (client) => [client.acks.size, ...[...client.rooms.values()].map((room) => room.got.length)];
    const before = this.#clients.map(seen);
    const tookMs = await until(() => this.#clients.every((client, at) => seen(client).every((now, n) => now > before[at][n])), msMax);
    return tookMs === null ? fail(`clients did not come back in ${msMax} ms: ${this.#waitsFor()}`) : Math.round(tookMs);
  }

  /** Ends it. Every acked message must have reached every member once, in order, and be stored. */
  async verdict() {
    for (const client of this.#clients) client.publishing = false;
    await Promise.all(this.#publishers);
    await settle(this.#ledger, this.#clients, 60_000);
    const voids = check(this.#ledger, this.#clients, this.#rooms, [await readHistories(this.#ledger, this.#url('auditor'), this.#rooms)]);
    for (const client of this.#clients) client.end();
    if (this.#ledger.violated) fail(`${this.#ledger.violated} violations: ${this.#ledger.violations.slice(0, 5).join('; ')}`);
    const { acked, deliveries, resumes } = this.#ledger.count;
    return `${acked} acked, ${deliveries} delivered, ${resumes} resumes, ${voids} voids, 0 violations; closes ${JSON.stringify(this.#ledger.closes)}`;
  }
}
