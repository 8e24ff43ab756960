// The kill -9 ledger: many clients publish into several rooms while the server is killed at random moments and started again
// and while clients lose their connections; clients resume by (epoch, seq) and send again what was not acked.
// At the end each room's history is the truth, and every client must have received exactly that: each message once, in seq order.
//
//   node ledger/kill.js [--seed N] [--kills N] [--clients N] [--rooms N]
//
// The seed fixes the plan (who sends when, when the server dies), not the scheduling of the machine.
import WebSocket from 'ws';
import { parseArgs } from 'node:util';
import { Server, sleep } from '../server.js';

const HISTORY_PAGE = 1000;
const SETTLE_MS_MAX = 30_000;
const BACKOFF_FIRST_MS = 50, BACKOFF_MAX_MS = 1_000;
const SEND_GAP_MS_MAX = 120;
const UP_MS_MIN = 700, UP_MS_SPREAD = 2_500;

const { values } = parseArgs({ options: {
  seed: { type: 'string', default: String(Math.floor(Math.random() * 2 ** 31)) }, kills: { type: 'string', default: '5' },
  clients: { type: 'string', default: '24' }, rooms: { type: 'string', default: '4' },
} });
const [SEED, KILLS, CLIENTS, ROOMS] = [values.seed, values.kills, values.clients, values.rooms].map(Number);

/** mulberry32 */
function randomFrom(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

const violations = [];
const count = { published: 0, acked: 0, retries: 0, repeats: 0, deliveries: 0, resumes: 0, cuts: 0, refused: 0 };
function violated(what) { violations.push(what); }

/** A client as docs/protocol.md asks for: it keeps a place per room and its messages until they are acked. */
class LedgerClient {
  constructor(server, index, rooms, random) {
    Object.assign(this, { server, index, random, name: `client-${index}`, socket: null, attempt: 0, ended: false, publishing: true });
    this.rooms = new Map(rooms.map((id) => [id, { id, place: { seq: 0, epoch: 0 }, got: [], live: false, refused: false }]));
    this.outbox = new Map(); // clientId -> message, not acked yet
    this.acks = new Map(); // clientId -> {messageId, seq, roomId}
    this.sent = []; // all, in order
  }

  async connect() {
    if (this.ended) return;
    try {
      const token = await this.server.token(this.name);
      const socket = new WebSocket(`${this.server.ws}/ws?token=${token}`);
      this.socket = socket;
      socket.on('message', (data) => { if (socket === this.socket) this.receive(JSON.parse(String(data))); });
      socket.on('error', () => {}); // 'close' follows
      socket.on('close', () => { if (socket === this.socket) this.backOff(); });
    } catch {
      this.backOff();
    }
  }

  backOff() {
    this.socket = null;
    for (const room of this.rooms.values()) room.live = false;
    const ceiling = Math.min(BACKOFF_MAX_MS, BACKOFF_FIRST_MS * 2 ** this.attempt++);
    setTimeout(() => this.connect(), Math.random() * ceiling);
  }

  cut() {
    if (!this.socket) return;
    count.cuts++;
    this.socket.terminate();
  }

  send(message) {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  receive(message) {
    const room = this.rooms.get(message.roomId);
    switch (message.type) {
      case 'connected':
        this.attempt = 0;
        for (const { id, place, got } of this.rooms.values()) {
          if (got.length) count.resumes++;
          this.send({ type: 'join_room', roomId: id, since: place.seq, epoch: place.epoch });
        }
        this.resend();
        break;
      case 'room_history':
        for (const old of message.messages) this.deliver(room, old);
        if (message.more) break;
        if (!message.complete) violated(`${this.name} ${room.id}: a resume from seq ${room.place.seq} was not complete`);
        room.live = true;
        break;
      case 'chat_message':
        if (!room.live) violated(`${this.name} ${room.id}: seq ${message.seq} came live before the resume had ended`);
        this.deliver(room, message);
        break;
      case 'ack': this.acked(message); break;
      case 'error': this.refused(message); break;
      default:
    }
  }

  deliver(room, { messageId, seq, epoch, content }) {
    const { place } = room;
    if (epoch < place.epoch || seq <= place.seq) violated(`${this.name} ${room.id}: (${epoch}, ${seq}) came after (${place.epoch}, ${place.seq})`);
    room.place = { seq, epoch };
    room.got.push({ messageId, seq, epoch, content });
    count.deliveries++;
  }

  acked({ clientId, messageId, roomId, seq }) {
    const before = this.acks.get(clientId);
    if (before && (before.messageId !== messageId || before.seq !== seq)) violated(`${this.name}: ${clientId} was acked as ${before.messageId} (${before.seq}), then as ${messageId} (${seq})`);
    if (before) count.repeats++; else count.acked++;
    this.acks.set(clientId, { messageId, seq, roomId });
    this.outbox.delete(clientId);
  }

  refused(message) {
    const held = message.clientId && this.outbox.get(message.clientId);
    if (!held || !message.retryAfterMs) return violated(`${this.name}: ${JSON.stringify(message)}`);
    count.refused++;
    this.rooms.get(held.roomId).refused = true; // its order may now differ from that of sending
    setTimeout(() => this.resend(), message.retryAfterMs);
  }

  resend() {
    for (const message of this.outbox.values()) { count.retries++; this.send(message); }
  }

  /** Publishes at random moments; now and then it sends once more what was acked long ago. */
  async publishUntilTold() {
    const ids = [...this.rooms.keys()];
    for (let n = 0; this.publishing; n++) {
      await sleep(this.random() * 2 * SEND_GAP_MS_MAX);
      const roomId = ids[Math.floor(this.random() * ids.length)];
      const clientId = `${this.name}-${n}`;
      const message = { type: 'chat_message', roomId, clientId, content: `${clientId} says ${'x'.repeat(Math.floor(this.random() * 200))}` };
      this.outbox.set(clientId, message);
      this.sent.push(message);
      count.published++;
      this.send(message);
      const old = this.sent[Math.floor(this.random() * this.sent.length)];
      if (this.random() < 0.03 && this.acks.has(old.clientId)) this.send(old);
      if (this.random() < 0.002) this.cut();
    }
  }

  end() {
    this.ended = true;
    this.socket?.close();
  }
}

/** The whole history of a room, by pages from its beginning. */
async function readHistory(server, roomId) {
  const rows = [];
  const socket = new WebSocket(`${server.ws}/ws?token=${await server.token('auditor')}`);
  await new Promise((resolve, reject) => {
    const ask = () => socket.send(JSON.stringify({ type: 'history', roomId, after: rows.at(-1)?.seq ?? 0, limit: HISTORY_PAGE }));
    let inAnswer = 0;
    socket.on('message', (data) => {
      const message = JSON.parse(String(data));
      if (message.type === 'connected') ask();
      if (message.type === 'error') reject(new Error(`history of ${roomId}: ${message.code} ${message.message}`));
      if (message.type !== 'room_history') return;
      rows.push(...message.messages);
      inAnswer += message.messages.length;
      if (message.more) return;
      if (!message.complete) violated(`${roomId}: the history after seq 0 is not complete`);
      if (inAnswer === 0) resolve();
      inAnswer = 0;
      ask();
    });
    socket.on('error', reject);
    socket.on('close', () => reject(new Error(`history of ${roomId}: connection closed`)));
  });
  socket.close();
  return rows;
}

function checkRoom(roomId, history, clients) {
  const seqs = history.map((row) => row.seq);
  for (let at = 1; at < history.length; at++) if (seqs[at] <= seqs[at - 1]) violated(`${roomId}: history has seq ${seqs[at]} after ${seqs[at - 1]}`);
  const contents = new Set(history.map((row) => row.content));
  if (contents.size !== history.length) violated(`${roomId}: ${history.length - contents.size} messages stand twice in the history`);
  const byId = new Map(history.map((row) => [row.messageId, row]));
  for (const client of clients) {
    if (client.rooms.has(roomId)) checkReceived(roomId, history, client);
    const mine = client.sent.filter((message) => message.roomId === roomId);
    for (const { clientId, content } of mine) {
      const ack = client.acks.get(clientId);
      if (!ack) { violated(`${client.name}: ${clientId} was never acked`); continue; }
      const row = byId.get(ack.messageId);
      if (!row || row.seq !== ack.seq || row.content !== content) violated(`${client.name}: ${clientId} was acked as ${ack.messageId} (${ack.seq}), the history has ${JSON.stringify(row)}`);
    }
    checkSendingOrder(client, roomId, mine);
  }
  const published = clients.reduce((sum, client) => sum + client.sent.filter((message) => message.roomId === roomId).length, 0);
  if (published !== history.length) violated(`${roomId}: ${published} published, ${history.length} in the history`);
  return seqs.length ? seqs.at(-1) - seqs.length : 0;
}

function checkReceived(roomId, history, client) {
  const { got } = client.rooms.get(roomId);
  const key = (row) => `${row.messageId} ${row.epoch} ${row.seq} ${row.content}`;
  const wanted = new Set(history.map(key)), received = new Set(got.map(key));
  const lost = history.filter((row) => !received.has(key(row)));
  const alien = got.filter((row) => !wanted.has(key(row)));
  if (lost.length) violated(`${client.name} ${roomId}: lost ${lost.length}, the first at seq ${lost[0].seq}`);
  if (alien.length) violated(`${client.name} ${roomId}: got ${alien.length} that the history does not have, the first at seq ${alien[0].seq}`);
  if (received.size !== got.length) violated(`${client.name} ${roomId}: got ${got.length - received.size} twice`);
}

function checkSendingOrder(client, roomId, mine) {
  if (client.rooms.get(roomId)?.refused) return;
  const seqs = mine.map((message) => client.acks.get(message.clientId)?.seq ?? 0);
  for (let at = 1; at < seqs.length; at++) if (seqs[at] <= seqs[at - 1]) return violated(`${client.name} ${roomId}: ${mine[at].clientId} stands before ${mine[at - 1].clientId}`);
}

async function settle(clients) {
  const until = Date.now() + SETTLE_MS_MAX;
  const open = () => clients.filter((client) => client.outbox.size || [...client.rooms.values()].some((room) => !room.live));
  while (open().length) {
    if (Date.now() > until) return violated(`${open().length} clients did not come to rest in ${SETTLE_MS_MAX} ms; ${open()[0].name} waits for ${open()[0].outbox.size} acks, its socket is ${open()[0].socket?.readyState}`);
    await sleep(50);
  }
  await sleep(500); // what is under way to a member arrives
}

async function run() {
  const started = Date.now();
  const random = randomFrom(SEED);
  const server = await Server.create();
  try {
    await server.start();
    const rooms = Array.from({ length: ROOMS }, (_, n) => `ledger-${n}`);
    const clients = Array.from({ length: CLIENTS }, (_, n) => new LedgerClient(server, n, [rooms[n % ROOMS], rooms[(n + 1) % ROOMS]], randomFrom(SEED + n + 1)));
    for (const client of clients) client.connect();
    const publishers = clients.map((client) => client.publishUntilTold());
    for (let kill = 0; kill < KILLS; kill++) {
      await sleep(UP_MS_MIN + random() * UP_MS_SPREAD);
      await server.kill();
      await sleep(random() * 300);
      await server.start();
    }
    await sleep(UP_MS_MIN + random() * UP_MS_SPREAD);
    for (const client of clients) client.publishing = false;
    await Promise.all(publishers);
    await settle(clients);
    let voids = 0;
    for (const room of rooms) voids += checkRoom(room, await readHistory(server, room), clients);
    for (const client of clients) client.end();
    const line = Object.entries({ seed: SEED, clients: CLIENTS, rooms: ROOMS, kills: KILLS, ...count, voids, violations: violations.length }).map(([name, value]) => `${name}=${value}`).join(' ');
    console.log(`ledger: ${line} seconds=${((Date.now() - started) / 1000).toFixed(1)}`);
    if (violations.length) console.log(`The server's last lines:\n  ${server.log.slice(-20).join('\n  ')}`);
  } finally {
    await server.end();
  }
}

try {
  await run();
} catch (error) {
  violated(error.stack);
}
for (const violation of violations.slice(0, 30)) console.error(`VIOLATION ${violation}`);
if (violations.length) console.error(`${violations.length} violations; again with: node ledger/kill.js --seed ${SEED} --kills ${KILLS} --clients ${CLIENTS} --rooms ${ROOMS}`);
process.exit(violations.length ? 1 : 0);
