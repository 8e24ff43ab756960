// A WebSocket client for tests: keeps what came in, and waits for a message of a type.
import WebSocket from 'ws';
import { sleep } from './server.js';

const WAIT_MS_MAX = 20_000;

export class Client {
  /** Connects with the token in the query, as old clients do. */
  static async connect(server, user, path = '/') {
    const client = new Client(user, `${server.ws}${path}?token=${await server.token(user)}`);
    client.hello = await client.next('connected');
    return client;
  }

  constructor(user, url, protocols = []) {
    this.user = user;
    this.received = []; // all, in order
    this.taken = 0; // how far next() has looked
    this.waiting = null;
    this.close = null;
    this.socket = new WebSocket(url, protocols);
    this.socket.on('message', (data, isBinary) => {
      if (isBinary) throw new Error(`${user}: a binary frame came`);
      this.received.push(JSON.parse(String(data)));
      this.waiting?.();
    });
    this.socket.on('close', (code, reason) => { this.close = { code, reason: String(reason) }; this.waiting?.(); });
    this.socket.on('error', (error) => { this.error = error; });
  }

  send(message) { this.socket.send(JSON.stringify(message)); }

  /** Publishes one message and waits for its ack; waits as told where the server asks for patience. */
  async publish(roomId, content, clientId) {
    for (;;) {
      this.send({ type: 'chat_message', roomId, content, clientId });
      const answer = await this.next(['ack', 'error'], (message) => message.clientId === clientId);
      if (answer.type === 'ack') return answer;
      if (!answer.retryAfterMs) throw new Error(`${this.user}: ${JSON.stringify(answer)}`);
      await sleep(answer.retryAfterMs);
    }
  }

  /** The next message of this type (or one of these) that `matches`; those before it are passed over. */
  async next(type, matches = () => true) {
    const until = Date.now() + WAIT_MS_MAX;
    for (;;) {
      while (this.taken < this.received.length) {
        const message = this.received[this.taken++];
        if ([type].flat().includes(message.type) && matches(message)) return message;
      }
      const left = until - Date.now();
      if (this.close || left <= 0) {
        const seen = this.received.slice(-10).map((message) => JSON.stringify(message)).join('\n  ');
        const why = this.close ? `the connection was closed (${this.close.code} ${this.close.reason})` : `nothing after ${WAIT_MS_MAX} ms`;
        throw new Error(`${this.user} waits for "${type}", but ${why}; last received:\n  ${seen}`);
      }
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, left);
        this.waiting = () => { clearTimeout(timer); resolve(); };
      });
      this.waiting = null;
    }
  }

  /** Asks for a pong: what the server sent before it has come in when this returns. */
  async settle() {
    this.send({ type: 'ping' });
    return this.next('pong');
  }

  async end() {
    if (this.socket.readyState === WebSocket.CLOSED) return;
    const closed = new Promise((resolve) => { this.socket.once('close', resolve); });
    this.socket.close();
    await closed;
  }
}
