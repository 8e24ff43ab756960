// A client as docs/protocol.md asks for: it keeps a place per room and its messages until they are acked, comes back with full
// jitter, leaves when it is told to, and resumes wherever it is let in. All that it sees goes into the ledger of its run.
import WebSocket from 'ws';
import { sleep } from '../server.js';

/** Messages under way: a publisher that hears no ack stops there. */
const OUTBOX_MAX = 32;
const CONNECT_MS_MAX = 10_000;
/** A room knows its last 2,048 messages again; some are under way while a repeat is. */
const REMEMBERED_MAX = 1_500;

export class LedgerClient {
  /**
   * `rooms`: ids; `random`: numbers of its seed; `dial()`: a promise of the URL to connect to, asked anew each time;
   * `ordered`: whether even retries keep their order (they do on a lone server, where none is overtaken);
   * `backOff`: [first ceiling, last ceiling] in ms.
   */
  constructor(ledger, { name, rooms, random, dial, ordered = false, backOff = [50, 1_000] }) {
    Object.assign(this, { ledger, name, random, dial, ordered, backOffMs: backOff });
    this.rooms = new Map(rooms.map((id) => [id, { id, place: { seq: 0, epoch: 0 }, got: [], live: false, heardAt: 0 }]));
    this.outbox = new Map(); // clientId -> message, not acked yet
    this.acks = new Map(); // clientId -> {messageId, seq, roomId}
    this.sent = []; // all, in order
    this.disordered = new Set(); // client ids whose place among the others is open
    this.socket = null;
    this.attempt = 0;
    this.ended = false;
    this.publishing = true;
  }

  async connect() {
    if (this.ended) return;
    try {
      const socket = new WebSocket(await this.dial(this), { handshakeTimeout: CONNECT_MS_MAX, perMessageDeflate: false });
      this.socket = socket;
      socket.on('message', (data) => {
        socket.heardAt = performance.now();
        if (socket === this.socket) this.receive(JSON.parse(String(data)));
      });
      socket.on('error', () => {}); // 'close' follows
      socket.on('ping', () => { socket.heardAt = performance.now(); });
      socket.on('close', (code) => {
        clearInterval(socket.watchdog);
        if (socket === this.socket) this.lost(socket.isConnected ? code : 0);
      });
    } catch {
      this.lost(0);
    }
  }

  /** The connection ended with this close code, 0 if there never was one. */
  lost(code) {
    this.gone();
    if (this.ended) return;
    if (code === 0) this.ledger.count.unreached++;
    else this.ledger.closes[code] = (this.ledger.closes[code] ?? 0) + 1;
    const [first, last] = this.backOffMs;
    setTimeout(() => this.connect(), this.random() * Math.min(last, first * 2 ** this.attempt++));
  }

  gone() {
    this.socket = null;
    for (const room of this.rooms.values()) room.live = false;
    if (!this.ordered) for (const clientId of this.outbox.keys()) this.disordered.add(clientId);
  }

  /** The connection ends without a word. */
  cut() {
    if (!this.socket) return;
    this.ledger.count.cuts++;
    this.socket.terminate();
  }

  /** The server said when to come back: not before, and not through the back-off. */
  leave(afterMs) {
    this.ledger.count.told++;
    const socket = this.socket;
    setTimeout(() => {
      if (socket !== this.socket || this.ended) return;
      this.gone();
      socket.close(1000);
      this.connect();
    }, afterMs);
  }

  send(message) {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  receive(message) {
    const room = this.rooms.get(message.roomId);
    switch (message.type) {
      case 'connected': this.connected(message); break;
      case 'room_history': this.history(room, message); break;
      case 'chat_message':
        if (!room.live) this.ledger.violate(`${this.name} ${room.id}: seq ${message.seq} came live before the resume had ended`);
        if (this.deliver(room, message)) this.heard(room, message);
        break;
      case 'ack': this.acked(message); break;
      case 'error': this.refused(message); break;
      case 'reconnect': this.leave(message.afterMs); break;
      default:
    }
  }

  connected({ node, heartbeatMs }) {
    Object.assign(this, { attempt: 0, node });
    const { socket } = this;
    socket.isConnected = true;
    // A server that is silent for two of its ping periods and a half is gone.
    socket.watchdog = setInterval(() => { if (performance.now() - socket.heardAt > 2.5 * heartbeatMs) socket.terminate(); }, heartbeatMs / 2);
    this.ledger.count.connects++;
    for (const { id, place, got } of this.rooms.values()) {
      if (got.length) this.ledger.count.resumes++;
      this.send({ type: 'join_room', roomId: id, since: place.seq, epoch: place.epoch });
    }
    for (const message of this.outbox.values()) this.repeat(message);
  }

  history(room, { messages, more, complete }) {
    for (const old of messages) this.deliver(room, old);
    if (more) return;
    if (!complete) this.ledger.violate(`${this.name} ${room.id}: a resume from (${room.place.epoch}, ${room.place.seq}) was not complete`);
    room.live = true;
    room.heardAt = performance.now();
  }

  /** Whether it moved the room's place forward, as it has to. */
  deliver(room, message) {
    const { place } = room;
    const { seq, epoch } = message;
    const forward = epoch >= place.epoch && seq > place.seq;
    if (!forward) this.ledger.violate(`${this.name} ${room.id}: (${epoch}, ${seq}) came after (${place.epoch}, ${place.seq})`);
    else room.place = { seq, epoch };
    room.got.push(this.ledger.seen(this.name, room.id, message));
    this.ledger.count.deliveries++;
    return forward;
  }

  heard(room, { content }) {
    const now = performance.now();
    const { ledger } = this;
    ledger.silenceMs = Math.max(ledger.silenceMs, now - Math.max(room.heardAt, ledger.markedAt));
    room.heardAt = now;
    ledger.arrived(content);
  }

  acked({ clientId, messageId, roomId, seq }) {
    const { count } = this.ledger;
    const before = this.acks.get(clientId);
    if (before && (before.messageId !== messageId || before.seq !== seq)) this.ledger.violate(`${this.name}: ${clientId} was acked as ${before.messageId} (${before.seq}), then as ${messageId} (${seq})`);
    if (before) count.repeats++; else count.acked++;
    this.acks.set(clientId, { messageId, seq, roomId });
    this.outbox.delete(clientId);
  }

  refused(message) {
    const held = this.outbox.get(message.clientId);
    if (message.clientId && !held && this.acks.has(message.clientId)) return; // a repeat of what was acked long ago: refused is fine
    if (message.code === 'draining') return; // said again on the next connection
    if (!message.retryAfterMs || (message.clientId && !held)) {
      this.ledger.violate(`${this.name}: ${JSON.stringify(message)}`);
      return;
    }
    this.ledger.count.refused++;
    if (!held) return;
    this.disordered.add(message.clientId);
    setTimeout(() => { if (this.outbox.has(held.clientId)) this.repeat(held); }, message.retryAfterMs * (1 + this.random()));
  }

  repeat(message) {
    this.ledger.count.retries++;
    this.send(message);
  }

  publish(roomId, clientId, padding) {
    const message = { type: 'chat_message', roomId, clientId, content: `${clientId} says ${'x'.repeat(padding)}` };
    this.outbox.set(clientId, message);
    this.sent.push(message);
    this.ledger.count.published++;
    this.ledger.sentAt.set(clientId, performance.now());
    if (!this.socket && !this.ordered) this.disordered.add(clientId);
    this.send(message);
  }

  /**
   * Publishes at random moments, `gapMs` apart on average, until `publishing` is false; now and then it sends once more what was
   * acked long ago (`repeats`), or loses its connection (`cuts`), each a share of the publishes.
   */
  async publishUntilTold({ gapMs = 120, repeats = 0.03, cuts = 0.002, padding = 200 } = {}) {
    const ids = [...this.rooms.keys()];
    let dueAt = performance.now();
    for (let n = 0; this.publishing; n++) {
      dueAt = Math.max(dueAt + this.random() * 2 * gapMs, performance.now() - 1_000); // what it could not send it does not make up for
      const wait = dueAt - performance.now();
      if (wait > 1) await sleep(wait);
      const roomId = ids[Math.floor(this.random() * ids.length)];
      if (this.outbox.size < OUTBOX_MAX) this.publish(roomId, `${this.name}-${n}`, Math.floor(this.random() * padding));
      const old = this.sent[Math.floor(this.random() * this.sent.length)];
      if (this.random() < repeats && old && this.isRemembered(old)) this.send(old);
      if (this.random() < cuts) this.cut();
    }
  }

  /** Acked, and not so long ago that the room may have forgotten the client id. */
  isRemembered({ clientId, roomId }) {
    const ack = this.acks.get(clientId);
    return ack !== undefined && this.rooms.get(roomId).place.seq - ack.seq < REMEMBERED_MAX;
  }

  /** What it still waits for, in words; nothing if it is at rest. */
  waitsFor() {
    const late = [...this.rooms.values()].filter((room) => !room.live).map((room) => room.id);
    if (!late.length && !this.outbox.size) return null;
    return `${this.name} (on ${this.node}, socket ${this.socket?.readyState ?? 'none'}) waits for ${this.outbox.size} acks${this.outbox.size ? ` (${this.outbox.keys().next().value} ...)` : ''}${late.length ? `, is not live in ${late.join(', ')}` : ''}`;
  }

  end() {
    this.ended = true;
    this.socket?.close();
  }
}
