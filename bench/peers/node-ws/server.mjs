// The peer that most teams build first: `ws` for the sockets, `ioredis` to publish each message on the room's channel and to
// hear it back, so that several such processes could share the rooms. It speaks the basic messages of the protocol
// (`join_room`, `chat_message`, `ping`, with `--echo` each message comes back) and promises nothing: no order across nodes, no
// store, no resume, no acks. One process, one thread, and a Redis that it starts beside itself.
//
//   PORT=9001 [JWT_SECRET=...] node server.mjs [--echo]
//
// With JWT_SECRET the HS256 token of the query is checked, without it every token is taken as it is.
import { spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { createServer } from 'node:http';
import Redis from 'ioredis';
import { WebSocketServer } from 'ws';
import { verify } from '../token.mjs';

const port = Number(process.env.PORT ?? 9001);
const echo = process.argv.includes('--echo');

// A Redis of its own on a free port; it ends with this process.
async function startRedis() {
  const redisPort = port + 2;
  const child = spawn('redis-server', ['--port', redisPort, '--bind', '127.0.0.1', '--save', '', '--appendonly', 'no'], { stdio: 'ignore' });
  process.on('exit', () => child.kill('SIGKILL'));
  child.on('exit', () => process.exit(1));
  return redisPort;
}

const rooms = new Map(); // room -> the sockets in it
let publisher, subscriber;
if (!echo) {
  const options = { port: await startRedis(), retryStrategy: () => 50, enableAutoPipelining: true };
  [publisher, subscriber] = [new Redis(options), new Redis(options)];
  for (const client of [publisher, subscriber]) client.on('error', () => {}); // until Redis is up
  await publisher.ping();
  subscriber.on('message', (channel, text) => {
    for (const socket of rooms.get(channel) ?? []) socket.send(text);
  });
}

function join(socket, channel) {
  if (socket.rooms.has(channel)) return undefined;
  socket.rooms.add(channel);
  const members = rooms.get(channel);
  if (members) return void members.add(socket);
  rooms.set(channel, new Set([socket]));
  return subscriber.subscribe(channel);
}

function leave(socket, channel) {
  socket.rooms.delete(channel);
  const members = rooms.get(channel);
  members?.delete(socket);
  if (members?.size === 0) {
    rooms.delete(channel);
    subscriber.unsubscribe(channel);
  }
}

async function hear(socket, text) {
  const message = JSON.parse(text);
  const { id, username } = socket.user;
  if (message.type === 'join_room') {
    await (socket.joining = join(socket, `room:${message.roomId}`));
  } else if (message.type === 'leave_room') {
    leave(socket, `room:${message.roomId}`);
  } else if (message.type === 'chat_message') {
    publisher.publish(`room:${message.roomId}`, JSON.stringify({
      type: 'chat_message', messageId: randomUUID(), roomId: message.roomId, userId: id, username,
      content: message.content, timestamp: Date.now(),
    }));
  } else if (message.type === 'ping') {
    await socket.joining; // its pong says that the join before it is done
    socket.send(JSON.stringify({ type: 'pong', timestamp: Date.now() }));
  }
}

const server = createServer((request, response) => response.writeHead(426).end());
const sockets = new WebSocketServer({ noServer: true, perMessageDeflate: false, maxPayload: 64 * 1024 });
server.on('upgrade', (request, connection, head) => {
  let claims = null;
  try {
    claims = verify(new URL(request.url, 'http://localhost').searchParams.get('token') ?? '');
  } catch {
    // Malformed: refused below.
  }
  if (!claims) return connection.end('HTTP/1.1 401 Unauthorized\r\n\r\n');
  sockets.handleUpgrade(request, connection, head, (socket) => {
    socket.on('error', () => {}); // `close` follows
    if (echo) return socket.on('message', (data, isBinary) => socket.send(data, { binary: isBinary }));
    socket.user = { id: claims.id ?? claims.sub, username: claims.username ?? claims.name };
    socket.rooms = new Set();
    socket.on('message', (data) => hear(socket, data.toString()));
    socket.on('close', () => [...socket.rooms].forEach((channel) => leave(socket, channel)));
    socket.send(JSON.stringify({ type: 'connected', message: `Welcome ${socket.user.username}!`, timestamp: Date.now(), userId: socket.user.id }));
  });
});
server.listen(port, '127.0.0.1', 4096, () => console.error(`ws and ioredis peer on 127.0.0.1:${port}${echo ? ', echo' : ''}`));
process.on('SIGTERM', () => process.exit(0));
