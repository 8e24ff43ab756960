// A chat server in the usual Node way, `ws` and `ioredis`: it knows nothing of Roomwire. Rooms are Redis channels `room:{id}` that carry the JSON
// which its clients see; who is online stands in `presence:{userId}` and is told on `presence:updates`.
import { once } from 'node:events';
import { Redis } from 'ioredis';
import { WebSocketServer } from 'ws';

const PRESENCE_SECS = 300;

export class Neighbour {
  static async start(redisPort) {
    const neighbour = new Neighbour();
    neighbour.rooms = new Map(); // room id -> the sockets in it
    neighbour.parting = []; // goodbyes under way
    neighbour.publisher = new Redis({ port: redisPort, host: '127.0.0.1' });
    neighbour.subscriber = new Redis({ port: redisPort, host: '127.0.0.1' });
    neighbour.subscriber.on('message', (channel, text) => neighbour.heard(channel, text));
    await neighbour.subscriber.subscribe('presence:updates');
    neighbour.presence = []; // what came on presence:updates
    neighbour.server = new WebSocketServer({ port: 0, host: '127.0.0.1' });
    await once(neighbour.server, 'listening');
    neighbour.server.on('connection', (socket, request) => neighbour.accept(socket, new URL(request.url, 'http://x').searchParams.get('user')));
    return neighbour;
  }

  url(user) { return `ws://127.0.0.1:${this.server.address().port}/?user=${user}`; }

  async accept(socket, user) {
    socket.on('message', (data) => this.obey(socket, user, JSON.parse(String(data))));
    socket.on('close', () => this.parting.push(this.left(user)));
    await this.publisher.set(`presence:${user}`, 'online', 'EX', PRESENCE_SECS);
    await this.publisher.publish('presence:updates', JSON.stringify({ type: 'user_online', userId: user, timestamp: Date.now() }));
    socket.send(JSON.stringify({ type: 'connected', userId: user }));
  }

  async left(user) {
    for (const sockets of this.rooms.values()) for (const socket of sockets) if (socket.readyState !== 1) sockets.delete(socket);
    if (this.ended) return;
    await this.publisher.del(`presence:${user}`);
    await this.publisher.publish('presence:updates', JSON.stringify({ type: 'user_offline', userId: user, timestamp: Date.now() }));
  }

  async obey(socket, user, message) {
    const { type, roomId } = message;
    if (type === 'join_room') {
      if (!this.rooms.has(roomId)) {
        this.rooms.set(roomId, new Set());
        await this.subscriber.subscribe(`room:${roomId}`);
      }
      this.rooms.get(roomId).add(socket);
      socket.send(JSON.stringify({ type: 'joined', roomId }));
    } else if (type === 'chat_message') {
      const chat = { type, messageId: `nb-${Date.now()}-${Math.random().toString(36).slice(2)}`, roomId, userId: user, username: user, content: message.content, timestamp: Date.now() };
      await this.publisher.publish(`room:${roomId}`, JSON.stringify(chat));
    }
  }

  heard(channel, text) {
    let message;
    try { message = JSON.parse(text); } catch { return; }
    if (channel === 'presence:updates') this.presence.push(message);
    else for (const socket of this.rooms.get(channel.slice('room:'.length)) ?? []) socket.send(JSON.stringify(message));
  }

  async end() {
    this.ended = true;
    for (const socket of this.server.clients) socket.terminate();
    this.server.close();
    await once(this.server, 'close');
    await Promise.all(this.parting);
    this.publisher.disconnect();
    this.subscriber.disconnect();
  }
}
