// Several nodes over one real Redis and one real Cassandra: who is where and what a node that dies leaves, a join while Redis is
// away, clocks that differ, and what a node that does not fit in is told.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after, before, test } from 'node:test';
import { Client } from '../client.js';
import { Cluster, until } from '../cluster.js';
import { Knocker } from '../knock.js';
import { check, readHistories, settle } from '../ledger/check.js';
import { LedgerClient } from '../ledger/client.js';
import { Ledger } from '../ledger/ledger.js';
import { randomFrom } from '../ledger/random.js';
import { sleep } from '../server.js';

/** After the last connection of a user; then others hear of it. */
const GRACE_MS = 5_000;
let cluster, redis;
const open = [];
const told = []; // all of presence:updates

async function connect(user, node) {
  const client = new Client(user, cluster.url(user, node));
  open.push(client);
  await client.next('connected');
  return client;
}

async function join(client, roomId) {
  client.send({ type: 'join_room', roomId });
  return client.next('room_history', (page) => page.roomId === roomId);
}

const presence = async (node, user) => (await cluster.get(node, `/v1/users/${user}/presence`))[1];
const updates = (user) => told.filter(({ userId }) => userId === user).map(({ type }) => type);
const seen = (watcher, user) => watcher.received.filter(({ type, userId }) => type === 'presence' && userId === user).map(({ status }) => status);

before(async () => {
  cluster = await Cluster.up();
  redis = cluster.redis();
  const updated = cluster.redis();
  await updated.subscribe('presence:updates');
  updated.on('message', (channel, text) => told.push(JSON.parse(text)));
});
after(async () => {
  for (const client of open) client.socket.terminate();
  await cluster?.down();
});

test('a user on two nodes is online until both let go, and the nodes that hold the user are named', async () => {
  const watcher = await connect('watcher', 'node3');
  watcher.send({ type: 'watch_presence', userIds: ['ada'] });
  await watcher.next('presence', ({ status }) => status === 'offline');
  const [first, second] = [await connect('ada', 'node1'), await connect('ada', 'node2')];
  await watcher.next('presence', ({ status }) => status === 'online');
  for (const node of cluster.nodes) {
    const found = await until(async () => (await presence(node, 'ada')).nodes.length === 2, 15_000);
    const { status, nodes, complete } = await presence(node, 'ada');
    assert.deepEqual([status, nodes.sort(), complete], ['online', ['node1', 'node2'], true], `${node} after ${found} ms`);
  }
  await first.end();
  await sleep(GRACE_MS + 1_500);
  const { status, nodes } = await presence('node1', 'ada');
  assert.deepEqual([status, nodes], ['online', ['node2']]);
  assert.deepEqual([seen(watcher, 'ada'), updates('ada')], [['offline', 'online'], ['user_online']], 'nobody hears of the first leaving');
  await second.end();
  await watcher.next('presence', ({ status }) => status === 'offline');
  await sleep(1_000);
  assert.deepEqual([seen(watcher, 'ada'), updates('ada')], [['offline', 'online', 'offline'], ['user_online', 'user_offline']]);
  assert.deepEqual((await presence('node3', 'ada')).nodes, []);
});

test('members are counted over all nodes, and each coming and going is told once everywhere', async () => {
  const members = await Promise.all(cluster.nodes.map((node, n) => connect(`m${n}`, node)));
  for (const member of members) await join(member, 'crowd');
  const again = await connect('m0', 'node2');
  await join(again, 'crowd');
  const heard = (member, event) => member.received.filter(({ type, roomId }) => type === event && roomId === 'crowd').map(({ userId }) => userId);
  await until(() => heard(members[0], 'user_joined').length === 3, 15_000);
  members[2].send({ type: 'members', roomId: 'crowd' });
  const { count, users } = await members[2].next('members');
  assert.deepEqual([count, users.map(({ userId }) => userId).sort()], [3, ['m0', 'm1', 'm2']]);
  await again.end();
  await members[1].end();
  await members[2].next('user_left');
  await sleep(1_000);
  assert.deepEqual(heard(members[0], 'user_joined'), ['m0', 'm1', 'm2']);
  for (const member of [members[0], members[2]]) assert.deepEqual(heard(member, 'user_left'), ['m1']);
});

test('users of a node that is killed go offline within 30 s, told once', async () => {
  const users = ['k0', 'k1', 'k2'];
  const watchers = [await connect('left', 'node1'), await connect('right', 'node3')];
  for (const watcher of watchers) {
    watcher.send({ type: 'watch_presence', userIds: users });
    assert.notEqual(await until(() => users.every((user) => seen(watcher, user).length === 1), 15_000), null);
  }
  for (const user of users) await connect(user, 'node2');
  const stays = await connect('k2', 'node1');
  const isOnline = () => watchers.every((watcher) => users.every((user) => seen(watcher, user).at(-1) === 'online'));
  assert.notEqual(await until(isOnline, 15_000), null);
  await cluster.kill('node2');
  const isOffline = async () => (await Promise.all(['k0', 'k1'].map((user) => presence('node3', user)))).every(({ status }) => status === 'offline');
  // A lease ends 25 s after its last beat and is looked at every few seconds; the rest is for a busy machine.
  const tookMs = await until(isOffline, 60_000, 100);
  assert.ok(tookMs !== null && tookMs <= 40_000, `offline after ${tookMs} ms`);
  console.log(`    offline ${Math.round(tookMs)} ms after the kill`);
  await sleep(GRACE_MS);
  for (const user of ['k0', 'k1']) {
    assert.deepEqual(updates(user), ['user_online', 'user_offline'], user);
    for (const watcher of watchers) assert.deepEqual(seen(watcher, user), ['offline', 'online', 'offline'], `${watcher.user} of ${user}`);
  }
  assert.deepEqual([updates('k2'), (await presence('node3', 'k2')).nodes], [['user_online'], ['node1']]);
  await stays.end();
  await cluster.start('node2');
});

test('a node that does not fit in ends with one line that says why', async () => {
  const refused = async (sets, words) => {
    const error = await cluster.start('node3', sets).then(() => null, (failed) => failed.message);
    assert.ok(error, `node3 started with ${sets}`);
    for (const word of words) assert.ok(error.includes(word), `${sets}: no "${word}" in:\n${error}`);
    assert.ok(!error.includes('panicked'), error);
  };
  await cluster.stop('node3');
  await refused(['node.id=node1'], ['node.id `node1` is taken', `pid ${cluster.pid('node1')}`]);
  await refused(['store.kind=embedded'], ['store.kind = cql']);
  await refused(['store.cql.keyspace=nowhere'], ['another store', 'keyspace nowhere', 'store.cql.keyspace']);
  await cluster.start('node3');
  assert.equal((await cluster.get('node1', '/readyz'))[1].status, 'ready', 'the first one goes on');
});

test('clocks that differ change neither order nor who is online', async () => {
  await cluster.stop('node2');
  process.env.CLUSTER_CLOCK = '-400s';
  await cluster.start('node2');
  delete process.env.CLUSTER_CLOCK;
  const behind = await until(async () => Math.abs(await cluster.metric('node2', 'cluster_clock_ahead_seconds') - 400) < 10, 15_000);
  assert.notEqual(behind, null, 'the metric tells how far the clock of Redis is ahead');
  const members = await Promise.all(cluster.nodes.map((node, n) => connect(`c${n}`, node)));
  for (const member of members) await join(member, 'clocks');
  for (let n = 0; n < 30; n++) assert.equal((await members[n % 3].publish('clocks', `m${n}`, `clock-${n}`)).seq, n + 1);
  const again = await members[0].publish('clocks', 'm1', 'clock-1');
  assert.equal(again.seq, 31, 'another user, another message');
  assert.equal((await (await connect('c1', 'node3')).publish('clocks', 'm1', 'clock-1')).seq, 2, 'a retry elsewhere');
  for (const member of members) {
    await member.next('chat_message', ({ seq }) => seq === 31);
    const got = member.received.filter(({ type, roomId }) => type === 'chat_message' && roomId === 'clocks').map(({ seq }) => seq);
    assert.deepEqual(got, Array.from({ length: 31 }, (_, n) => n + 1));
  }
  await sleep(30_000); // longer than a lease
  for (let n = 0; n < 3; n++) {
    assert.equal((await presence('node1', `c${n}`)).status, 'online');
    assert.deepEqual(updates(`c${n}`), ['user_online']);
  }
  await cluster.stop('node2');
  await cluster.start('node2');
});

test('a join while Redis is away gets what is certain, and the rest when it is back', async () => {
  const writer = await connect('w', 'node2');
  await join(writer, 'away');
  for (let n = 1; n <= 3; n++) await writer.publish('away', `m${n}`, `away-${n}`);
  await redis.flushall(); // the next message begins a generation: what was before is certain
  for (let n = 4; n <= 5; n++) await writer.publish('away', `m${n}`, `away-${n}`);
  await cluster.kill('redis1');
  const [one, two] = [await connect('j1', 'node1'), await connect('j2', 'node1')];
  for (const client of [one, two]) {
    const page = await join(client, 'away');
    assert.deepEqual([page.messages.map(({ seq }) => seq), page.more, page.complete], [[1, 2, 3], true, false]);
    const empty = await join(client, 'away:new');
    assert.deepEqual([empty.messages, empty.more], [[], true], 'the second room does not wait for the first');
  }
  one.send({ type: 'typing', roomId: 'away' });
  await two.next('typing', ({ userId }) => userId === 'j1');
  one.send({ type: 'chat_message', roomId: 'away', content: 'too early', clientId: 'early' });
  const { code, retryAfterMs } = await one.next('error', ({ clientId }) => clientId === 'early');
  assert.ok(code === 'unavailable' && retryAfterMs > 0);
  const [status, body] = await cluster.get('node1', '/v1/rooms/away/messages?before=3');
  assert.deepEqual([status, body.messages.map(({ seq }) => seq), body.complete], [200, [1, 2], true], JSON.stringify(body));
  await sleep(3_000);
  assert.ok(![one, two].some((client) => client.received.some((message) => message.type === 'error' && !message.clientId)), 'nobody is told twice');
  await cluster.start('redis1');
  const began = performance.now();
  for (const client of [one, two]) {
    const page = await client.next('room_history', ({ roomId, more }) => roomId === 'away' && !more);
    assert.deepEqual([page.messages.map(({ seq }) => seq), page.complete], [[4, 5], true]);
  }
  console.log(`    the rest came ${Math.round(performance.now() - began)} ms after Redis was back`);
  await one.publish('away', 'm6', 'away-6');
  for (const client of [one, two, writer]) {
    await client.next('chat_message', ({ content }) => content === 'm6');
    const all = client.received.filter(({ roomId }) => roomId === 'away');
    const seqs = all.flatMap((message) => (message.type === 'chat_message' ? [message] : message.messages ?? [])).map(({ seq }) => seq);
    assert.deepEqual(seqs.slice().sort((a, b) => a - b), [1, 2, 3, 4, 5, seqs.at(-1)], `${client.user}: no gap, nothing twice`);
  }
});

test('two nodes take turns on one port: nobody is refused, and who chats resumes', async () => {
  const addr = `127.0.0.1:${cluster.port + 55}`;
  const shared = [`listen.addr=${addr}`, 'listen.share=true'];
  const url = (user) => `ws://${addr}/ws?token=${cluster.token(user)}`;
  await cluster.stop('node2');
  await cluster.stop('node3');
  await cluster.start('node2', shared);
  const ledger = new Ledger(), rooms = ['turn-0', 'turn-1', 'turn-2'];
  const clients = Array.from({ length: 12 }, (_, n) => new LedgerClient(ledger, {
    name: `turn-${n}`, rooms: [rooms[n % 3], rooms[(n + 1) % 3]], random: randomFrom(n + 1), dial: async ({ name }) => url(name),
  }));
  for (const client of clients) client.connect();
  const publishers = clients.map((client) => client.publishUntilTold({ cuts: 0 }));
  const knocker = new Knocker(url, 32);
  for (const [old, next] of [['node2', 'node3'], ['node3', 'node2'], ['node2', 'node3']]) {
    await cluster.start(next, shared);
    assert.notEqual(await until(() => knocker.nodes[next] > 0, 15_000), null, `${next} greets somebody`);
    // It stands still for a moment, so that connections wait in its backlog.
    await cluster.pause(old);
    await sleep(300);
    const pid = cluster.pid(old);
    process.kill(pid, 'SIGTERM');
    await cluster.resume(old);
    const tookMs = await until(() => { try { return !process.kill(pid, 0); } catch { return true; } }, 20_000);
    assert.notEqual(tookMs, null, `${old} ends`);
    assert.notEqual(await until(() => clients.every(({ node }) => node === next), 15_000), null, `all are on ${next}`);
  }
  await knocker.end();
  for (const client of clients) client.publishing = false;
  await Promise.all(publishers);
  await settle(ledger, clients);
  check(ledger, clients, rooms, [await readHistories(ledger, url('auditor'), rooms)]);
  for (const client of clients) client.end();
  const migrates = readFileSync('/proc/sys/net/ipv4/tcp_migrate_req', 'utf8').trim() === '1';
  console.log(`    ${knocker.greeted} greeted, refused ${JSON.stringify(knocker.refused)}, the backlog ${migrates ? 'moves' : 'is reset'}; ${ledger.count.acked} acked, ${ledger.count.resumes} resumes`);
  // Without net.ipv4.tcp_migrate_req what waits in a backlog is lost with its listener.
  if (!migrates) delete knocker.refused.ECONNRESET;
  assert.deepEqual([knocker.refused, ledger.violations], [{}, []]);
});
