// The built package against the real server, through kill -9, a cut line, a drain, rate limits and tokens that end.
import assert from 'node:assert/strict';
import { createHmac } from 'node:crypto';
import { once } from 'node:events';
import { createRequire } from 'node:module';
import { after, before, test } from 'node:test';
import WebSocket, { WebSocketServer } from 'ws';
import { Roomwire, RoomwireError } from 'roomwire';
import { FaultProxy } from '../../tests/faults/proxy.js';
import { Server, sleep } from '../../tests/server.js';

const SECRET = 'a-secret-of-the-tests-that-is-long-enough';
const WAIT_MS_MAX = 15_000;

/** HS256, as the server's `token` command makes it. */
function token(user, { ttlSecs = 3600, rooms } = {}) {
  const now = Math.floor(Date.now() / 1000);
  const part = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
  const text = `${part({ alg: 'HS256', typ: 'JWT' })}.${part({ id: user, username: user, exp: now + ttlSecs, rooms })}`;
  return `${text}.${createHmac('sha256', SECRET).update(text).digest('base64url')}`;
}

let server;
const settings = [`auth.secret=${SECRET}`, 'heartbeat.secs=1', 'drain.secs=1'];
const clients = [];
before(async () => { server = await (await Server.create(settings)).start(); });
after(async () => {
  for (const client of clients) client.close();
  await server.end();
});

function connect(user, { url = `${server.ws}/ws`, ...options } = {}) {
  const client = new Roomwire(url, { token: () => token(user), WebSocket, backOffMs: [20, 200], ...options });
  clients.push(client);
  return client;
}

/** What a room hands out, in order: texts of messages, and `gap`. */
function listen(room) {
  const heard = [];
  room.on('message', (message) => heard.push(message.content));
  room.on('gap', () => heard.push('gap'));
  return heard;
}

async function until(what, reached) {
  const end = Date.now() + WAIT_MS_MAX;
  for (let value = reached(); ; value = reached()) {
    if (value) return value;
    if (Date.now() > end) throw new Error(`after ${WAIT_MS_MAX} ms still not: ${what}`);
    await sleep(10);
  }
}

const numbers = (from, to, name) => Array.from({ length: to - from }, (_, n) => `${name} ${from + n}`);

test('the same is there for import and for require', () => {
  const required = createRequire(import.meta.url)('roomwire');
  assert.deepEqual(Object.keys(required).sort(), ['Roomwire', 'RoomwireError']);
});

test('two people chat: order, acks, typing, receipts, members, presence, history', async () => {
  const [ada, ben] = [connect('ada'), connect('ben')];
  const [here, there] = [ada.room('chat'), ben.room('chat')];
  const [heard, seen, events] = [listen(here), listen(there), []];
  for (const kind of ['join', 'leave', 'typing', 'receipt']) here.on(kind, ({ userId }) => events.push(`${kind} ${userId}`));
  await until('both are in', () => here.state === 'live' && there.state === 'live');
  const sent = await Promise.all(numbers(0, 20, 'hello').map((text) => here.send(text)));
  assert.deepEqual(sent.map(({ seq }) => seq), Array.from({ length: 20 }, (_, n) => n + 1));
  await until('both have all', () => heard.length === 20 && seen.length === 20);
  assert.deepEqual(seen, numbers(0, 20, 'hello'));
  assert.deepEqual(heard, seen);
  there.typing();
  there.read(sent[3].messageId);
  await until('typing and receipt came', () => events.includes('typing ben') && events.includes('receipt ben'));
  assert.deepEqual((await here.members()).users.map(({ userId }) => userId).sort(), ['ada', 'ben']);
  const page = await here.page({ before: 5, limit: 3 });
  assert.deepEqual([page.messages.map(({ seq }) => seq), page.complete], [[2, 3, 4], true]);
  assert.deepEqual(page.messages[2].readBy, ['ben']);
  const presence = [];
  ada.on('presence', ({ userId, status }) => presence.push(`${userId} ${status}`));
  ada.watch(['ben', 'nobody']);
  await until('presence came', () => presence.includes('ben online') && presence.includes('nobody offline'));
  there.leave();
  await until('it is told', () => events.includes('leave ben'));
});

test('kill -9 in the middle of a conversation: nothing lost, nothing twice, in order', async () => {
  const [ada, ben] = [connect('ada-k'), connect('ben-k')];
  const [here, there] = [ada.room('killed'), ben.room('killed')];
  const [heard, seen] = [listen(here), listen(there)];
  await until('both are in', () => here.state === 'live' && there.state === 'live');
  const sending = numbers(0, 150, 'word').map((text) => here.send(text));
  await until('some have come', () => seen.length > 20);
  await server.kill();
  await sleep(300);
  await server.start();
  const acks = await Promise.all(sending);
  await until('all have come', () => heard.length >= 150 && seen.length >= 150);
  assert.deepEqual(seen, numbers(0, 150, 'word'));
  assert.deepEqual(heard, seen);
  assert.equal(new Set(acks.map(({ messageId }) => messageId)).size, 150);
  assert.ok(acks.every(({ seq }, n) => n === 0 || seq > acks[n - 1].seq), 'acked in the order of sending');
});

test('a position of an earlier session brings what was missed; one that is too old brings a gap and what is kept', async () => {
  const few = await (await Server.create([`auth.secret=${SECRET}`, 'store.messages_per_room_max=10'])).start();
  try {
    const url = `${few.ws}/ws`;
    const ada = connect('ada-p', { url });
    const here = ada.room('kept');
    await until('in', () => here.state === 'live');
    for (const text of numbers(0, 5, 'early')) await here.send(text);
    await until('heard', () => here.position?.seq === 5);
    const { position } = here;
    for (const text of numbers(0, 4, 'late')) await here.send(text);
    const ben = connect('ben-p', { url });
    const again = ben.room('kept', { since: position });
    const heard = listen(again);
    await until('resumed', () => again.state === 'live');
    assert.deepEqual(heard, numbers(0, 4, 'late'));
    for (const text of numbers(0, 60, 'flood')) await here.send(text);
    // Retention looks at its rooms at the start, then once a minute.
    await few.kill();
    await few.start();
    await until('online again', () => here.state === 'live');
    let complete = true;
    while (complete) ({ complete } = await here.page({ after: 0, before: 6 }));
    const cleo = connect('cleo-p', { url });
    const old = cleo.room('kept', { since: position });
    const replaced = listen(old);
    await until('resumed', () => old.state === 'live');
    assert.deepEqual(replaced, ['gap', ...numbers(50, 60, 'flood')]);
  } finally {
    await few.end();
  }
});

test('a line that went silent is noticed, and the client resumes', async () => {
  const proxy = await FaultProxy.listen({ to: ['127.0.0.1', server.wsPort] });
  try {
    const ada = connect('ada-l');
    const ben = connect('ben-l', { url: `ws://127.0.0.1:${proxy.port}/ws` });
    const [here, there] = [ada.room('line'), ben.room('line')];
    const seen = listen(there);
    await until('both are in', () => here.state === 'live' && there.state === 'live');
    await here.send('before');
    await until('heard', () => seen.length === 1);
    proxy.set('hole', true);
    const states = [];
    ben.on('state', (state) => states.push(state));
    await here.send('meanwhile');
    await until('it is noticed', () => states.includes('waiting'));
    proxy.set('hole', false);
    proxy.cut();
    await here.send('after');
    await until('it resumed', () => seen.length === 3);
    assert.deepEqual(seen, ['before', 'meanwhile', 'after']);
  } finally {
    await proxy.close();
  }
});

test('a drain: it goes when told and comes back, nothing lost', async () => {
  const ada = connect('ada-d');
  const here = ada.room('drain');
  const heard = listen(here);
  await until('in', () => here.state === 'live');
  const reasons = [];
  ada.on('state', (state, reason) => reasons.push(reason));
  server.child.kill('SIGTERM');
  const sending = numbers(0, 10, 'still').map((text) => here.send(text));
  await server.ended;
  await server.start();
  await Promise.all(sending);
  await until('heard', () => heard.length === 10);
  assert.deepEqual(heard, numbers(0, 10, 'still'));
  assert.equal(ada.state, 'online', reasons.join('; '));
});

test('an answer that begins anew below its first page: what that page held was cut off', async () => {
  // A split of Redis at the right moment brings this about; here its words are said on cue.
  const message = (seq, epoch) => ({ type: 'chat_message', messageId: `${epoch}.${seq}`, roomId: 'split', userId: 'eve', username: 'eve', content: `${epoch}.${seq}`, timestamp: 1, seq, epoch, readBy: [] });
  const pages = [
    { messages: [message(5, 3), message(6, 3)], seq: 9, epoch: 3, complete: false, more: true },
    { messages: [message(4, 3), message(5, 4)], seq: 6, epoch: 4, complete: false, more: true },
    { messages: [message(6, 4)], seq: 6, epoch: 4, complete: false, more: false },
  ];
  const scripted = new WebSocketServer({ host: '127.0.0.1', port: 0 });
  scripted.on('connection', (socket) => {
    socket.send(JSON.stringify({ type: 'connected', message: '', timestamp: 1, userId: 'ada', connectionId: 'x', node: 'x', heartbeatMs: 30_000 }));
    socket.on('message', (data) => {
      if (JSON.parse(data).type !== 'join_room') return;
      for (const page of pages) socket.send(JSON.stringify({ type: 'room_history', roomId: 'split', ...page }));
      socket.send(JSON.stringify({ ...message(7, 4), readBy: undefined }));
    });
  });
  try {
    await once(scripted, 'listening');
    const heard = listen(connect('ada', { url: `ws://127.0.0.1:${scripted.address().port}/ws` }).room('split'));
    await until('live', () => heard.includes('4.7'));
    assert.deepEqual(heard, ['3.4', '4.5', '4.6', '4.7']);
  } finally {
    for (const socket of scripted.clients) socket.terminate();
    scripted.close();
  }
});

test('more than the server takes at once: all of it is sent in the end, in order', async () => {
  const strict = await (await Server.create([`auth.secret=${SECRET}`, 'limits.messages_per_second_max=40', 'limits.messages_burst_max=10'])).start();
  try {
    const ada = connect('ada-f', { url: `${strict.ws}/ws`, inFlightMax: 30 });
    const here = ada.room('flood');
    const heard = listen(here);
    const sending = numbers(0, 60, 'flood').map((text) => here.send(text));
    await Promise.all(sending);
    await until('heard', () => heard.length === 60);
    assert.deepEqual([...heard].sort(), numbers(0, 60, 'flood').sort());
    const ben = connect('ben-f', { url: `${strict.ws}/ws` });
    const orderly = ben.room('orderly');
    const ordered = listen(orderly);
    await Promise.all(numbers(0, 60, 'word').map((text) => orderly.send(text)));
    await until('heard', () => ordered.length === 60);
    assert.deepEqual(ordered, numbers(0, 60, 'word'));
  } finally {
    await strict.end();
  }
});

test('what may not be is refused: rooms of the token, too large, a full queue, a bad token', async () => {
  const rooms = [{ room: 'open', can: ['join', 'publish'] }, { room: 'readable', can: ['join'] }];
  const ada = connect('ada-r', { token: () => token('ada-r', { rooms }) });
  const [open, readable, secret] = [ada.room('open'), ada.room('readable'), ada.room('secret')];
  const errors = [];
  secret.on('error', ({ code }) => errors.push(code));
  await until('the secret room is refused', () => secret.state === 'left');
  assert.deepEqual(errors, ['forbidden']);
  await until('the others are not', () => open.state === 'live' && readable.state === 'live');
  await open.send('fine');
  await assert.rejects(readable.send('no'), { name: 'RoomwireError', code: 'forbidden' });
  await assert.rejects(open.send('x'.repeat(40_000)), { code: 'too_large' });
  const small = connect('ada-q', { queueMessagesMax: 2, url: 'ws://127.0.0.1:9/ws' });
  const queued = small.room('full');
  const waiting = [queued.send('1'), queued.send('2')];
  await assert.rejects(queued.send('3'), { code: 'queue_full' });
  const abort = new AbortController();
  small.close();
  for (const sent of waiting) await assert.rejects(sent, { code: 'closed' });
  await assert.rejects(queued.send('4'), RoomwireError);
  const late = connect('ada-s', { url: 'ws://127.0.0.1:9/ws' }).room('late').send('never', { signal: abort.signal });
  abort.abort(new Error('changed my mind'));
  await assert.rejects(late, /changed my mind/);
  const bad = connect('eve', { token: 'no.token.atall' });
  const states = [];
  bad.on('state', (state, reason) => states.push(`${state} ${reason}`));
  bad.connect();
  await until('it ends', () => bad.state === 'closed');
  assert.match(states.at(-1), /^closed .*authentication failed/i);
  assert.throws(() => new Roomwire('https://example.org', { token: '', WebSocket }), /ws:\/\//);
});

test('a token that ends is replaced on the open connection', async () => {
  let minted = 0;
  const ada = connect('ada-t', { token: () => { minted++; return token('ada-t', { ttlSecs: minted === 1 ? 4 : 3600 }); } });
  ada.connect();
  await until('online', () => ada.state === 'online');
  const { connectionId } = ada.hello;
  await until('a new one was asked for', () => minted === 2);
  await sleep(500);
  assert.deepEqual([ada.state, ada.hello.connectionId], ['online', connectionId]);
});
