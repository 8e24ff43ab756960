// Many members that only listen: connections, rooms and presence in numbers, without the ledger's weight. They come back by
// themselves and obey `reconnect`.
import WebSocket from 'ws';
import { until } from '../cluster.js';

const CONNECTING_MAX = 200;
const START_MS_MAX = 120_000;

class Member {
  constructor(herd, index) { Object.assign(this, { herd, index, user: `${herd.name}-${index}`, attempt: 0, isIn: false, socket: null, node: null, stays: true }); }

  connect(node = this.herd.anyNode(this.avoided)) {
    if (!this.stays) return;
    this.node = node;
    const socket = new WebSocket(this.herd.cluster.url(this.user, node), { perMessageDeflate: false });
    this.socket = socket;
    socket.on('error', () => {}); // 'close' follows
    socket.on('open', () => { socket.wasOpen = true; });
    socket.on('message', (data) => { if (socket === this.socket) this.receive(String(data)); });
    socket.on('close', (code) => { if (socket === this.socket) this.lost(code, socket.wasOpen); });
  }

  receive(text) {
    if (text.startsWith('{"type":"connected"')) this.socket.send(JSON.stringify({ type: 'join_room', roomId: `${this.herd.name}-room-${this.index % this.herd.rooms}`, history: 10 }));
    else if (text.startsWith('{"type":"room_history"')) { this.isIn = true; this.attempt = 0; this.herd.arrived(this); }
    else if (text.startsWith('{"type":"reconnect"')) this.told(JSON.parse(text).afterMs);
  }

  lost(code, wasOpen) {
    this.isIn = false;
    // A balancer would not send it to a node that took no connection just now.
    this.avoided = wasOpen ? null : this.node;
    if (wasOpen) this.herd.closes[code] = (this.herd.closes[code] ?? 0) + 1;
    const [first, last] = this.herd.backOff;
    setTimeout(() => this.connect(), Math.random() * Math.min(last, first * 2 ** this.attempt++));
  }

  told(afterMs) {
    this.herd.told++;
    const { socket } = this;
    setTimeout(() => {
      if (socket !== this.socket) return;
      this.herd.left.push(performance.now());
      this.move();
    }, afterMs);
  }

  /** Leaves for another node, or for any. */
  move(node) {
    const { socket } = this;
    this.isIn = false;
    this.connect(node);
    socket.close(1000);
  }
}

export class Herd {
  constructor(cluster, { name, count, rooms, backOff = [500, 20_000] }) {
    Object.assign(this, { cluster, name, count, rooms, backOff, told: 0, left: [], closes: {}, arrivals: 0 });
    this.members = Array.from({ length: count }, (_, index) => new Member(this, index));
  }

  anyNode(but = null) {
    const nodes = this.cluster.nodes.filter((node) => node !== but);
    return nodes[Math.floor(Math.random() * nodes.length)];
  }

  /** Connects all, a bounded number at a time. */
  async start() {
    this.waiting = [...this.members];
    for (let n = 0; n < CONNECTING_MAX; n++) this.waiting.shift()?.connect();
    if (await until(() => this.isBack(), START_MS_MAX) === null) throw new Error(`only ${this.members.filter((member) => member.isIn).length} of ${this.count} clients are in after ${START_MS_MAX} ms; closes ${JSON.stringify(this.closes)}`);
    return this;
  }

  arrived() {
    this.arrivals++;
    this.waiting.shift()?.connect();
  }

  isBack() { return this.members.every((member) => member.isIn || !member.stays); }

  /** How many are on a node. */
  on(node) { return this.members.filter((member) => member.isIn && member.node === node).length; }

  /** Sends every third member to this node. */
  moveSome(node) {
    for (const member of this.members.filter((_, index) => index % 3 === 0)) member.move(node);
  }

  dropAll() {
    for (const member of this.members) member.isIn = false;
    for (const member of this.members) member.socket.terminate();
  }

  /** Lets `count` users connect to `node` who will not come back: their presence is what a dead node leaves behind. */
  async leaveBehind(node, count, round) {
    const ghosts = Array.from({ length: count }, (_, n) => Object.assign(new Member(this, n), { user: `${this.name}-ghost-${round}-${n}` }));
    for (const ghost of ghosts) ghost.connect(node);
    if (await until(() => ghosts.every((ghost) => ghost.isIn), 30_000) === null) throw new Error(`ghosts did not get into ${node}`);
    for (const ghost of ghosts) ghost.stays = false;
    this.members.push(...ghosts);
    return ghosts.map((ghost) => ghost.user);
  }

  end() {
    for (const member of this.members) { member.stays = false; member.socket?.close(); }
  }
}
