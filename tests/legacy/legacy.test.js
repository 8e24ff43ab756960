// A public promise: a client that knows only the old basic messages works unchanged. It connects to `/` with its token in
// the query, joins without options, sends without a clientId, and tells events apart by `type`.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import WebSocket from 'ws';
import { Client } from '../client.js';
import { Server } from '../server.js';

/** Every field of each message, as protocol v1 fixes it. */
const FIELDS = {
  connected: ['connectionId', 'heartbeatMs', 'message', 'node', 'timestamp', 'type', 'userId'],
  chat_message: ['content', 'epoch', 'messageId', 'roomId', 'seq', 'timestamp', 'type', 'userId', 'username'],
  room_history: ['complete', 'epoch', 'messages', 'more', 'roomId', 'seq', 'type'],
  user_joined: ['roomId', 'timestamp', 'type', 'userId', 'username'],
  user_left: ['roomId', 'timestamp', 'type', 'userId', 'username'],
  typing: ['roomId', 'timestamp', 'type', 'userId', 'username'],
  read_receipt: ['messageId', 'roomId', 'timestamp', 'type', 'userId'],
  pong: ['timestamp', 'type'],
  error: ['code', 'message', 'type'],
};
const HISTORY_MESSAGE = ['content', 'epoch', 'messageId', 'readBy', 'roomId', 'seq', 'timestamp', 'userId', 'username'];

let server;
const clients = [];
before(async () => { server = await (await Server.create()).start(); });
after(async () => {
  await Promise.all(clients.map((client) => client.end()));
  await server.end();
});

async function connect(user, path) {
  const client = await Client.connect(server, user, path);
  clients.push(client);
  return client;
}

function assertFields(message) {
  assert.deepEqual(Object.keys(message).sort(), FIELDS[message.type], `fields of ${JSON.stringify(message)}`);
  if ('timestamp' in message) assert.ok(Math.abs(Date.now() - message.timestamp) < 60_000, `timestamp is Unix ms: ${message.timestamp}`);
}

/** An old client gets nothing whose type it does not know, and no field is missing or new. */
function assertOldMessagesOnly(client) {
  for (const message of client.received) {
    assert.ok(FIELDS[message.type], `an old client does not know ${JSON.stringify(message)}`);
    assertFields(message);
    for (const old of message.messages ?? []) {
      const fields = Object.keys(old).filter((name) => name !== 'type').sort();
      assert.deepEqual(fields, HISTORY_MESSAGE, `fields of ${JSON.stringify(old)}`);
    }
  }
}

test('it is welcomed by name, on / and on /ws', async () => {
  for (const path of ['/', '/ws']) {
    const { hello } = await connect('Grace Hopper', path);
    assertFields(hello);
    assert.equal(hello.message, 'Welcome Grace Hopper!');
    assert.equal(typeof hello.userId, 'string');
    assert.equal(typeof hello.connectionId, 'string');
  }
});

test('the joiner hears of itself first, then gets the history', async () => {
  const ada = await connect('ada');
  ada.send({ type: 'join_room', roomId: 'old:join' });
  const joined = await ada.next('user_joined');
  assert.deepEqual([joined.userId, joined.username, joined.roomId], [ada.hello.userId, 'ada', 'old:join']);
  const history = await ada.next('room_history');
  assert.deepEqual(history.messages, []);
  assert.deepEqual([history.seq, history.epoch, history.complete, history.more], [0, 0, true, false]);
  assertOldMessagesOnly(ada);
});

test('a message without clientId reaches the room, the sender too, and is not acked', async () => {
  const [ada, ben] = [await connect('ada'), await connect('ben')];
  for (const client of [ada, ben]) {
    client.send({ type: 'join_room', roomId: 'old:chat' });
    await client.next('room_history');
  }
  ada.send({ type: 'chat_message', roomId: 'old:chat', content: 'Grüße, "Ben" \\ \u{1F44B}\n<b>' });
  const [sent, got] = [await ada.next('chat_message'), await ben.next('chat_message')];
  assert.deepEqual(sent, got, 'everybody gets the same bytes');
  assert.equal(got.content, 'Grüße, "Ben" \\ \u{1F44B}\n<b>');
  assert.deepEqual([got.userId, got.username, got.roomId, got.seq], [ada.hello.userId, 'ada', 'old:chat', 1]);
  await ada.settle();
  for (const client of [ada, ben]) assertOldMessagesOnly(client);
  assert.equal(ada.received.filter((message) => message.type === 'chat_message').length, 1);
});

test('publishing before joining works, and the history has it', async () => {
  const [ada, ben] = [await connect('ada'), await connect('ben')];
  ben.send({ type: 'join_room', roomId: 'old:early' });
  await ben.next('room_history');
  ada.send({ type: 'chat_message', roomId: 'old:early', content: 'not joined yet' });
  assert.equal((await ben.next('chat_message')).content, 'not joined yet');
  ada.send({ type: 'join_room', roomId: 'old:early' });
  const history = await ada.next('room_history');
  assert.deepEqual(history.messages.map((message) => [message.content, message.seq, message.readBy]), [['not joined yet', 1, []]]);
  for (const client of [ada, ben]) assertOldMessagesOnly(client);
});

test('messages sent right behind the handshake are not lost', async () => {
  const ben = await connect('ben');
  ben.send({ type: 'join_room', roomId: 'old:hasty' });
  await ben.next('room_history');
  const hasty = new Client('hasty', `${server.ws}/?token=${await server.token('hasty')}`);
  clients.push(hasty);
  hasty.socket.on('open', () => {
    for (let n = 1; n <= 20; n++) hasty.send({ type: 'chat_message', roomId: 'old:hasty', content: `hasty ${n}` });
  });
  for (let n = 1; n <= 20; n++) assert.equal((await ben.next('chat_message')).content, `hasty ${n}`);
});

test('typing reaches the room; ping is answered', async () => {
  const [ada, ben] = [await connect('ada'), await connect('ben')];
  ben.send({ type: 'join_room', roomId: 'old:typing' });
  await ben.next('room_history');
  ada.send({ type: 'typing', roomId: 'old:typing' });
  const typing = await ben.next('typing');
  assert.deepEqual([typing.userId, typing.username, typing.roomId], [ada.hello.userId, 'ada', 'old:typing']);
  assertFields(await ada.settle());
  for (const client of [ada, ben]) assertOldMessagesOnly(client);
});

test('a read receipt reaches the room and stays with the message', async () => {
  const [ada, ben] = [await connect('ada'), await connect('ben')];
  for (const client of [ada, ben]) {
    client.send({ type: 'join_room', roomId: 'old:read' });
    await client.next('room_history');
  }
  ada.send({ type: 'chat_message', roomId: 'old:read', content: 'read me' });
  const { messageId } = await ben.next('chat_message');
  ben.send({ type: 'read_receipt', roomId: 'old:read', messageId });
  const receipt = await ada.next('read_receipt');
  assert.deepEqual([receipt.userId, receipt.messageId, receipt.roomId], [ben.hello.userId, messageId, 'old:read']);
  ada.send({ type: 'join_room', roomId: 'old:read' });
  const history = await ada.next('room_history');
  assert.deepEqual(history.messages[0].readBy, [ben.hello.userId]);
  for (const client of [ada, ben]) assertOldMessagesOnly(client);
});

test('leaving and dying are told to the others, not to the leaver', async () => {
  const [ada, ben, cleo] = [await connect('ada'), await connect('ben-leaves'), await connect('cleo-dies')];
  for (const client of [ada, ben, cleo]) {
    client.send({ type: 'join_room', roomId: 'old:leave' });
    await client.next('room_history');
  }
  ben.send({ type: 'leave_room', roomId: 'old:leave' });
  const left = await ada.next('user_left');
  assert.deepEqual([left.userId, left.username, left.roomId], [ben.hello.userId, 'ben-leaves', 'old:leave']);
  await ben.settle();
  assert.ok(!ben.received.some((message) => message.type === 'user_left'), 'a leaver does not hear of itself');
  cleo.socket.terminate();
  assert.equal((await ada.next('user_left')).userId, cleo.hello.userId);
  assertOldMessagesOnly(ada);
});

test('what it gets wrong is answered with an error, and the connection lives', async () => {
  const ada = await connect('ada');
  const wrong = [
    ['no json', 'bad_json'], ['{"type":"dance"}', 'unknown_type'], ['{"type":"join_room"}', 'bad_request'],
    ['{"type":"join_room","roomId":"no spaces"}', 'bad_request'], ['{"type":"chat_message","roomId":"old:x","content":5}', 'bad_request'],
    [`{"type":"join_room","roomId":"user:someone-else"}`, 'forbidden'],
  ];
  for (const [text, code] of wrong) {
    ada.socket.send(text);
    assert.equal((await ada.next('error')).code, code, text);
  }
  await ada.settle();
  assertOldMessagesOnly(ada);
});

test('a bad token is upgraded and closed with 1008', async () => {
  for (const query of ['', '?token=', '?token=a.b.c']) {
    const socket = new WebSocket(`${server.ws}/${query}`);
    const [code, reason] = await new Promise((resolve, reject) => {
      socket.on('close', (closeCode, text) => resolve([closeCode, String(text)]));
      socket.on('error', reject);
    });
    assert.deepEqual([code, reason], [1008, 'Authentication failed'], `/${query}`);
  }
});
