// Side by side with other software on the same Redis, in both directions: a server in the usual Node way (neighbour.js) shares rooms
// and presence with a Roomwire node, and a hostile publisher gets nothing but a count.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { Redis } from 'ioredis';
import { Client } from '../client.js';
import { Server, sleep } from '../server.js';
import { Neighbour } from './neighbour.js';

const SCRIPT = path.join(path.dirname(fileURLToPath(import.meta.url)), '..', '..', 'scripts', 'redis');
const ROOM = 'interop:room';
const MB = 1024 * 1024;

let dir, server, neighbour, redis, ours, theirs;
const open = [];

before(async () => {
  dir = mkdtempSync(path.join(tmpdir(), 'roomwire-interop-'));
  const port = Number(execFileSync(SCRIPT, ['up', '--dir', dir], { encoding: 'utf8' }));
  redis = new Redis({ port, host: '127.0.0.1' });
  server = await (await Server.create(['bus.kind=redis', `bus.redis.url=redis://127.0.0.1:${port}`, 'presence.grace_ms=500'])).start();
  neighbour = await Neighbour.start(port);
  ours = await Client.connect(server, 'ada');
  theirs = new Client('zoe', neighbour.url('zoe'));
  open.push(ours, theirs);
  await theirs.next('connected');
  ours.send({ type: 'join_room', roomId: ROOM });
  await ours.next('room_history');
  theirs.send({ type: 'join_room', roomId: ROOM });
  await theirs.next('joined');
});
after(async () => {
  for (const client of open) await client.end();
  await neighbour?.end();
  await server?.end();
  redis?.disconnect();
  execFileSync(SCRIPT, ['down', '--dir', dir]);
  rmSync(dir, { recursive: true, force: true });
});

async function dropped(reason) {
  const text = await (await fetch(`${server.http}/metrics`)).text();
  return Number(new RegExp(`^roomwire_bus_dropped_total\\{reason="${reason}"\\} (\\d+)`, 'm').exec(text)?.[1] ?? 0);
}

/** Waits until `read` answers `wanted`. */
async function becomes(read, wanted, msMax = 5_000) {
  const end = Date.now() + msMax;
  for (;;) {
    const got = await read();
    if (got === wanted) return;
    if (Date.now() > end) assert.equal(got, wanted);
    await sleep(20);
  }
}

test('our messages reach their clients, with the fields that all know', async () => {
  const { messageId } = await ours.publish(ROOM, 'from "Roomwire" \u2028 ü', 'interop-1');
  const message = await theirs.next('chat_message', (chat) => chat.userId === 'ada');
  assert.equal(message.messageId, messageId);
  assert.deepEqual([message.roomId, message.username, message.content], [ROOM, 'ada', 'from "Roomwire" \u2028 ü']);
  assert.ok(Math.abs(Date.now() - message.timestamp) < 60_000);
});

test('our typing, joins and leaves reach their clients', async () => {
  ours.send({ type: 'typing', roomId: ROOM });
  assert.equal((await theirs.next('typing')).userId, 'ada');
  const ben = await Client.connect(server, 'ben');
  ben.send({ type: 'join_room', roomId: ROOM });
  assert.equal((await theirs.next('user_joined', ({ userId }) => userId === 'ben')).roomId, ROOM);
  await ben.end();
  assert.equal((await theirs.next('user_left', ({ userId }) => userId === 'ben')).roomId, ROOM);
});

test('their messages reach our clients as they are', async () => {
  theirs.send({ type: 'chat_message', roomId: ROOM, content: 'from the "usual" server \u2028 ü' });
  const [sent, got] = [await theirs.next('chat_message', ({ userId }) => userId === 'zoe'), await ours.next('chat_message', ({ userId }) => userId === 'zoe')];
  assert.deepEqual(got, sent);
  const odd = '{"type" : "poll", "roomId":"interop:room","deep":{"a":[1,2.50,null,"\\u00e9"]}}';
  await redis.publish(`room:${ROOM}`, odd);
  assert.deepEqual(await ours.next('poll'), JSON.parse(odd));
});

test('presence is theirs to read, and is told to them', async () => {
  assert.equal(await redis.get('presence:ada'), 'online');
  const seconds = await redis.ttl('presence:ada');
  assert.ok(seconds > 0 && seconds <= 300, `presence:ada ends in ${seconds} s`);
  const eve = await Client.connect(server, 'eve');
  await becomes(() => neighbour.presence.some(({ type, userId }) => type === 'user_online' && userId === 'eve'), true);
  await becomes(() => redis.get('presence:eve'), 'online');
  await eve.end();
  await becomes(() => neighbour.presence.some(({ type, userId }) => type === 'user_offline' && userId === 'eve'), true);
  await becomes(() => redis.get('presence:eve'), null);
  const { type, userId, timestamp, ...rest } = neighbour.presence.find((event) => event.type === 'user_offline' && event.userId === 'eve');
  assert.deepEqual([type, userId, rest], ['user_offline', 'eve', {}]);
  assert.ok(Math.abs(Date.now() - timestamp) < 60_000);
});

test('a hostile publisher is counted, and changes nothing', async () => {
  const messages = () => ours.received.filter(({ type }) => type === 'chat_message');
  // Not by `next`: the sender's own copy may come before its ack.
  const arrives = (text) => becomes(async () => messages().some(({ content }) => content === text), true);
  const { seq } = await ours.publish(ROOM, 'before', 'interop-before');
  await arrives('before');
  const before = messages().length;
  const real = messages().at(-1);
  const counts = { no_object: await dropped('no_object'), not_ours: await dropped('not_ours'), too_large: await dropped('too_large') };
  const bad = ['', 'nonsense', '{', '[1]', '"text"', '{"type":"chat_message"', '\u0000', '{"a":1}}', Buffer.from([0x7b, 0xff, 0xfe, 0x7d]), '{'.repeat(20_000)];
  for (const payload of bad) await redis.publish(`room:${ROOM}`, payload);
  const rw = { base: 1, stable: 1e15 };
  const forged = [
    { ...real, seq: seq + 1 }, { ...real, epoch: real.epoch + 1, seq: 1 }, { ...real, epoch: 2 ** 52, seq: 2 ** 52 }, { ...real, seq: 1e300 }, { ...real, seq: -1 },
    { ...real, seq: seq + 1, rw: { base: 1, stable: seq + 1 } }, { ...real, seq: seq + 1, rw: { ...rw, mac: 'a'.repeat(40) } }, { ...real, epoch: real.epoch + 1, rw },
    { type: 'typing', rw: null }, { type: 'typing', seq: null },
  ];
  for (const payload of forged) await redis.publish(`room:${ROOM}`, JSON.stringify(payload));
  for (const payload of ['nonsense', JSON.stringify({ room: ROOM, gen: 99, base: 1e9 }), JSON.stringify({ room: ROOM, gen: real.epoch, base: 1, void: seq + 1, mac: 'b'.repeat(40) })]) await redis.publish('rw:ctl', payload);
  const large = [100_000, MB, 100 * MB];
  for (const bytes of large) await redis.publish(`room:${ROOM}`, JSON.stringify({ type: 'bomb', bytes: 'x'.repeat(bytes) }));

  const after = await ours.publish(ROOM, 'after', 'interop-after');
  assert.equal(after.seq, seq + 1);
  await arrives('after');
  assert.deepEqual(messages().slice(before).map(({ content }) => content), ['after'], 'only the true message came');
  assert.ok(!ours.received.some(({ type }) => type === 'bomb' || type === 'poll?'));
  await becomes(async () => (await dropped('no_object')) - counts.no_object >= bad.length, true);
  assert.ok((await dropped('not_ours')) - counts.not_ours >= forged.length - 2, `${await dropped('not_ours')} not ours`);
  assert.ok((await dropped('too_large')) - counts.too_large >= 2);
  ours.send({ type: 'history', roomId: ROOM, after: seq - 1 });
  const { messages: kept, complete, epoch } = await ours.next('room_history');
  assert.deepEqual([kept.map(({ content }) => content), complete, epoch], [['before', 'after'], true, real.epoch]);
  const status = readFileSync(`/proc/${server.child.pid}/status`, 'utf8');
  const rss = Number(/VmRSS:\s+(\d+)/.exec(status)[1]) / 1024;
  assert.ok(rss < 500, `the node holds ${rss} MB after a bomb of 100 MB`);
});

test('keys of another application in the same Redis are left alone', async () => {
  await redis.mset('room:interop:room', 'theirs', 'users', 'theirs', 'presence', 'theirs');
  await ours.publish(ROOM, 'still here', 'interop-keys');
  assert.deepEqual(await redis.mget('room:interop:room', 'users', 'presence'), ['theirs', 'theirs', 'theirs']);
});
