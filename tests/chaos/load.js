// The load of a scenario: clients of the ledger over all nodes, and what is asked of them at its end.
import { Cluster, until } from '../cluster.js';
import { check, readHistories, settle } from '../ledger/check.js';
import { LedgerClient } from '../ledger/client.js';
import { Ledger } from '../ledger/ledger.js';
import { randomFrom } from '../ledger/random.js';

export class Load {
  /**
   * `members` clients in each of `rooms` rooms, each client in two of them; each publishes every `gapMs` on average. They connect
   * to a random node each time, every third through the balancer.
   */
  constructor(/** @type {Cluster} */ cluster, { name, seed, rooms = 8, members = 6, gapMs = 60, cuts = 0.0005, repeats = 0.01, backOff = [100, 2_000] }) {
    Object.assign(this, { cluster, ledger: new Ledger(), gapMs, cuts, repeats });
    this.rooms = Array.from({ length: rooms }, (_, n) => `${name}-${seed}-${n}`);
    const count = (rooms * members) / 2;
    this.clients = Array.from({ length: count }, (_, n) => {
      const random = randomFrom(seed + n + 1);
      const dial = async (client) => cluster.url(client.name, n % 3 === 0 ? 'haproxy' : cluster.nodes[Math.floor(random() * cluster.nodes.length)]);
      return new LedgerClient(this.ledger, { name: `${name}-${n}`, rooms: [this.rooms[n % rooms], this.rooms[(n + 1) % rooms]], random, dial, backOff });
    });
  }

  /** Connects all and lets them publish. */
  async start() {
    for (const client of this.clients) client.connect();
    const tookMs = await until(() => this.clients.every((client) => !client.waitsFor()), 60_000);
    if (tookMs === null) throw new Error(`clients are not in after 60 s: ${this.clients.map((client) => client.waitsFor()).find(Boolean)}`);
    this.publishers = this.clients.map((client) => client.publishUntilTold(this));
    this.ledger.mark();
    return this;
  }

  /** How long until every client has had an ack and something new in each of its rooms; null if not within `msMax`. */
  async recovered(msMax = 60_000) {
    const before = this.clients.map((client) => [client.acks.size, ...[...client.rooms.values()].map((room) => room.got.length)]);
    const isBack = (client, at) => [client.acks.size, ...[...client.rooms.values()].map((room) => room.got.length)].every((now, n) => now > before[at][n]);
    return until(() => this.clients.every(isBack), msMax, 20);
  }

  /** Lets them come to rest, and checks everything against what each node tells. Adds its counts to `figures`. */
  async finish(figures, settleMsMax = 60_000) {
    for (const client of this.clients) client.publishing = false;
    await Promise.all(this.publishers);
    figures.settle_ms = Math.round(await settle(this.ledger, this.clients, settleMsMax));
    const histories = [];
    for (const node of this.cluster.nodes) histories.push(await readHistories(this.ledger, this.cluster.url('auditor', node), this.rooms));
    figures.voids = check(this.ledger, this.clients, this.rooms, histories);
    for (const client of this.clients) client.end();
    const { published, acked, deliveries, retries, resumes, refused } = this.ledger.count;
    Object.assign(figures, { clients: this.clients.length, published, acked, deliveries, retries, resumes, refused, violations: this.ledger.violated });
    return this.ledger.violations;
  }
}
