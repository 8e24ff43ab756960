// Ephemeral traffic under a fault: one client types on one node, another hears it on another node; how long it took.
import WebSocket from 'ws';

const EVERY_MS = 50;

export class TypingProbe {
  constructor(cluster, roomId) { Object.assign(this, { cluster, roomId, delays: [], sentAt: [] }); }

  async start() {
    const [near, far] = await Promise.all(['typist', 'listener'].map((user, at) => this.join(user, this.cluster.nodes[at])));
    this.sockets = [near, far];
    // Typing carries nothing of our own but its order, and none is lost on a quiet room: the first heard is the first sent.
    far.on('message', (data) => {
      if (!String(data).startsWith('{"type":"typing"')) return;
      const at = this.sentAt.shift();
      if (at !== undefined) this.delays.push(performance.now() - at);
    });
    this.timer = setInterval(() => {
      if (this.sentAt.length > 10) this.sentAt = []; // one was shed: begin anew
      this.sentAt.push(performance.now());
      near.send(JSON.stringify({ type: 'typing', roomId: this.roomId }));
    }, EVERY_MS);
    return this;
  }

  join(user, node) {
    return new Promise((resolve, reject) => {
      const socket = new WebSocket(this.cluster.url(user, node), { perMessageDeflate: false });
      socket.on('error', reject);
      socket.on('message', (data) => {
        const { type } = JSON.parse(String(data));
        if (type === 'connected') socket.send(JSON.stringify({ type: 'join_room', roomId: this.roomId }));
        if (type === 'room_history') resolve(socket);
      });
    });
  }

  /** The delays since the last call, in ms. */
  take() { return this.delays.splice(0); }

  end() {
    clearInterval(this.timer);
    for (const socket of this.sockets) socket.close();
  }
}
