// A TCP proxy that misbehaves on request: between clients and a node, or between a node and Redis or Cassandra.
// As a module: `const proxy = await FaultProxy.listen({ to: [host, port] }); proxy.set('latency', 200)`.
// As a program, told what to do by lines on stdin, each answered by one line on stdout:
//
//   node faults/proxy.js --listen 127.0.0.1:7000 --to 127.0.0.1:6379
//   latency MS     each chunk arrives MS later, order kept     dribble MS   one byte each MS
//   throttle BPS   bytes a second and direction                hole         half-open: nothing passes, nobody is told
//   refuse         new connections are reset                   clear        all of these off; what was held flows on
//   cut            ends all connections (FIN)                  reset        ends all connections (RST)
//   status         counts
import { once } from 'node:events';
import { connect, createServer } from 'node:net';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

/** Held of one direction; beyond, the sender waits. */
const HELD_BYTES_MAX = 1024 * 1024;
const TICK_MS = 5;

const NUMBERS = ['latency', 'throttle', 'dribble'];
const SWITCHES = ['hole', 'refuse'];
const CLEAR = { latency: 0, throttle: 0, dribble: 0, hole: false, refuse: false };

/** One direction of one connection: takes from `from` what the faults let through to `to`. */
class Pipe {
  constructor(faults, from, to) {
    Object.assign(this, { faults, from, to, queue: [], held: 0, ended: false, passedAt: 0, earnedAt: 0, credit: 0, timer: null });
    from.on('data', (chunk) => {
      this.queue.push({ chunk, at: performance.now() + faults.latency });
      this.held += chunk.length;
      if (this.held > HELD_BYTES_MAX) from.pause();
      this.pump();
    });
    from.on('end', () => { this.ended = true; this.pump(); });
    to.on('drain', () => this.pump());
  }

  /** Passes on what is due, and comes back for the rest. */
  pump() {
    clearTimeout(this.timer);
    if (this.faults.hole || this.to.destroyed) return;
    const now = performance.now();
    while (this.queue.length && this.queue[0].at <= now && !this.to.writableNeedDrain) {
      const piece = this.allowed(now);
      if (!piece) break;
      this.take(piece);
    }
    if (this.held <= HELD_BYTES_MAX && this.from.isPaused()) this.from.resume();
    if (this.queue.length) this.timer = setTimeout(() => this.pump(), Math.max(TICK_MS, this.queue[0].at - now, this.faults.dribble));
    else if (this.ended) this.to.end();
  }

  /** How many bytes of the first chunk may pass now. */
  allowed(now) {
    const { length } = this.queue[0].chunk;
    if (this.faults.dribble) return now - this.passedAt >= this.faults.dribble ? 1 : 0;
    if (!this.faults.throttle) return length;
    const earned = ((now - (this.earnedAt || now)) * this.faults.throttle) / 1000;
    this.credit = Math.min(this.credit + earned, Math.max(1, this.faults.throttle / 10));
    this.earnedAt = now;
    const piece = Math.min(length, Math.floor(this.credit));
    this.credit -= piece;
    return piece;
  }

  take(bytes) {
    const [first] = this.queue;
    this.to.write(first.chunk.subarray(0, bytes));
    this.held -= bytes;
    this.passedAt = performance.now();
    if (bytes === first.chunk.length) this.queue.shift();
    else first.chunk = first.chunk.subarray(bytes);
  }
}

export class FaultProxy {
  /** Listens on `port` (0: any) of `host` and passes on to `to`, a pair [host, port]. */
  static async listen({ to, host = '127.0.0.1', port = 0 }) {
    const proxy = new FaultProxy();
    Object.assign(proxy, { to, faults: { ...CLEAR }, pairs: new Set(), accepted: 0 });
    // A half-closed connection stays half-closed through the proxy.
    proxy.server = createServer({ allowHalfOpen: true, noDelay: true }, (socket) => proxy.accept(socket)).listen(port, host);
    await once(proxy.server, 'listening');
    proxy.port = proxy.server.address().port;
    return proxy;
  }

  accept(near) {
    this.accepted++;
    if (this.faults.refuse) { near.resetAndDestroy(); return; }
    const far = connect({ host: this.to[0], port: this.to[1], allowHalfOpen: true, noDelay: true });
    const pair = { sockets: [near, far], pipes: [new Pipe(this.faults, near, far), new Pipe(this.faults, far, near)] };
    this.pairs.add(pair);
    for (const [socket, other] of [[near, far], [far, near]]) {
      socket.on('error', (error) => { if (!this.faults.hole) { if (error.code === 'ECONNRESET' || socket === far) other.resetAndDestroy(); else other.destroy(); } });
      socket.on('close', () => { if (near.destroyed && far.destroyed) this.pairs.delete(pair); });
    }
  }

  /** Sets one fault; the others stay. */
  set(fault, value = true) {
    if (!(fault in CLEAR)) throw new Error(`no fault "${fault}": there are ${Object.keys(CLEAR).join(', ')}`);
    this.faults[fault] = value;
    this.pumpAll();
  }

  clear() {
    Object.assign(this.faults, CLEAR);
    this.pumpAll();
  }

  pumpAll() {
    for (const { pipes } of this.pairs) for (const pipe of pipes) pipe.pump();
  }

  /** Ends all connections at both sides. Returns how many. */
  cut() { return this.endAll((socket) => socket.destroy()); }
  reset() { return this.endAll((socket) => socket.resetAndDestroy()); }

  endAll(end) {
    const { size } = this.pairs;
    for (const { sockets } of this.pairs) for (const socket of sockets) end(socket);
    this.pairs.clear();
    return size;
  }

  async close() {
    this.cut();
    this.server.close();
    await once(this.server, 'close');
  }

  /** Obeys one line, and answers it. */
  obey(line) {
    const [word, argument] = line.trim().split(/\s+/);
    if (word === 'cut' || word === 'reset') return `${this[word]()} connections ended`;
    if (word === 'clear') { this.clear(); return 'clear'; }
    if (word === 'status') return JSON.stringify({ open: this.pairs.size, accepted: this.accepted, ...this.faults });
    if (SWITCHES.includes(word)) { this.set(word); return word; }
    const number = Number(argument);
    if (!NUMBERS.includes(word) || !(number >= 0)) return `not understood: ${line.trim()}`;
    this.set(word, number);
    return `${word} ${number}`;
  }
}

async function main() {
  const { values } = parseArgs({ options: { listen: { type: 'string', default: '127.0.0.1:0' }, to: { type: 'string' } } });
  const address = (text) => { const at = text.lastIndexOf(':'); return [text.slice(0, at), Number(text.slice(at + 1))]; };
  if (!values.to) throw new Error('usage: node faults/proxy.js --listen HOST:PORT --to HOST:PORT');
  const [host, port] = address(values.listen);
  const proxy = await FaultProxy.listen({ host, port, to: address(values.to) });
  console.log(`listening on ${host}:${proxy.port}`);
  for await (const line of createInterface({ input: process.stdin })) console.log(proxy.obey(line));
  await proxy.close();
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await main();
