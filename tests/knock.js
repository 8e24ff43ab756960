// Connections that come one after the other, many at a time: each is opened, greeted and closed. Whoever is not greeted was refused, and it is kept why.
import WebSocket from 'ws';

/** Longer than the kernel sends a SYN again for (1, 3, 7, 15 s), as an overfull backlog asks for. */
const GREETED_MS_MAX = 30_000;

export class Knocker {
  greeted = 0;
  /** Node that greeted -> how often. */
  nodes = {};
  /** Why somebody was not greeted -> how often. */
  refused = {};
  slowestMs = 0;
  #url;
  #knocking = true;
  #workers;

  /** `url(user)`: where that user connects, with a token; `workers`: how many are under way at once. */
  constructor(url, workers) {
    this.#url = url;
    this.#workers = Array.from({ length: workers }, (_, n) => this.#work(`knock-${n}`));
  }

  async #work(user) {
    while (this.#knocking) await this.#knock(user);
  }

  #knock(user) {
    return new Promise((resolve) => {
      const at = performance.now();
      const socket = new WebSocket(this.#url(user), { perMessageDeflate: false, handshakeTimeout: GREETED_MS_MAX });
      let why = '', greeted = false;
      const timer = setTimeout(() => { why ||= `not greeted in ${GREETED_MS_MAX} ms`; socket.terminate(); }, GREETED_MS_MAX);
      socket.on('message', (data) => {
        const { type, node } = JSON.parse(String(data));
        if (greeted || type !== 'connected') return;
        greeted = true;
        this.greeted += 1;
        this.nodes[node] = (this.nodes[node] ?? 0) + 1;
        this.slowestMs = Math.max(this.slowestMs, performance.now() - at);
        socket.close(1000);
      });
      socket.on('error', (error) => { why ||= error.code ?? error.message; });
      socket.on('close', (code) => {
        clearTimeout(timer);
        if (!greeted) {
          why ||= `closed with ${code}`;
          this.refused[why] = (this.refused[why] ?? 0) + 1;
        }
        resolve();
      });
    });
  }

  get refusals() { return Object.values(this.refused).reduce((sum, count) => sum + count, 0); }

  /** Ends it, once those under way were greeted or refused. */
  async end() {
    this.#knocking = false;
    await Promise.all(this.#workers);
    return this;
  }
}
