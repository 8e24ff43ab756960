// The peer that Roomwire is measured against: uWebSockets doing plain pub/sub. It speaks the basic messages of the
// protocol (`join_room`, `chat_message`, `ping`, in `--echo` each message comes back) and promises nothing: no order
// across nodes, no store, no resume, no acks. One process, one thread.
//
//   PORT=9001 [JWT_SECRET=...] node server.mjs [--echo]
//
// With JWT_SECRET the HS256 token of the query is checked, without it every token is taken as it is.
import uws from 'uwebsockets';
import { verify } from '../token.mjs';

const port = Number(process.env.PORT ?? 9001);
const echo = process.argv.includes('--echo');
let lastId = 0;

const app = uws.App();
app.ws('/*', {
  compression: 0,
  idleTimeout: 120,
  maxPayloadLength: 64 * 1024,
  maxBackpressure: 16 * 1024 * 1024,
  upgrade(response, request, context) {
    let claims = null;
    try {
      claims = verify(request.getQuery('token') ?? '');
    } catch {
      // Malformed: refused below.
    }
    if (!claims) return response.writeStatus('401 Unauthorized').end();
    response.upgrade({ id: claims.id ?? claims.sub, username: claims.username ?? claims.name },
      request.getHeader('sec-websocket-key'), '', request.getHeader('sec-websocket-extensions'), context);
  },
  open(socket) {
    if (echo) return;
    const { id, username } = socket.getUserData();
    socket.send(JSON.stringify({ type: 'connected', message: `Welcome ${username}!`, timestamp: Date.now(), userId: id }));
  },
  message(socket, data, isBinary) {
    if (echo) return void socket.send(data, isBinary);
    const message = JSON.parse(Buffer.from(data).toString());
    const { id, username } = socket.getUserData();
    if (message.type === 'join_room') {
      socket.subscribe(message.roomId);
    } else if (message.type === 'chat_message') {
      app.publish(message.roomId, JSON.stringify({
        type: 'chat_message', messageId: String(++lastId), roomId: message.roomId, userId: id, username,
        content: message.content, timestamp: Date.now(),
      }));
    } else if (message.type === 'ping') {
      socket.send(JSON.stringify({ type: 'pong', timestamp: Date.now() }));
    }
  },
});
app.listen('127.0.0.1', port, (listening) => {
  if (!listening) {
    console.error(`cannot listen on 127.0.0.1:${port}`);
    process.exit(1);
  }
  console.error(`uWebSockets peer on 127.0.0.1:${port}${echo ? ', echo' : ''}`);
});
process.on('SIGTERM', () => process.exit(0));
