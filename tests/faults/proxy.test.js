// The fault proxy does what it says, shown on plain sockets; else a passed chaos run would prove nothing.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect, createServer } from 'node:net';
import { after, before, beforeEach, test } from 'node:test';
import { sleep } from '../server.js';
import { FaultProxy } from './proxy.js';

let server, proxy;
const open = new Set();

before(async () => {
  // Echoes; at the end of what it reads it says so and ends too.
  server = createServer({ allowHalfOpen: true }, (socket) => {
    socket.on('data', (data) => socket.write(data));
    socket.on('end', () => socket.end('bye'));
    socket.on('error', () => {});
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  proxy = await FaultProxy.listen({ to: ['127.0.0.1', server.address().port] });
});
beforeEach(() => { proxy.clear(); });
after(async () => {
  for (const socket of open) socket.destroy();
  await proxy.close();
  server.close();
});

/** A connection through the proxy: what came, when, and how it ended. */
async function dial() {
  const socket = connect({ port: proxy.port, host: '127.0.0.1', noDelay: true });
  open.add(socket);
  const seen = { socket, text: '', chunks: [], error: null, closed: false };
  socket.on('data', (data) => { seen.text += data; seen.chunks.push([performance.now(), data.length]); });
  socket.on('error', (error) => { seen.error = error.code; });
  socket.on('close', () => { seen.closed = true; });
  await once(socket, 'connect').catch(() => {}); // `error` has it
  return seen;
}

async function until(check, msMax = 5_000) {
  const end = performance.now() + msMax;
  while (!check()) {
    if (performance.now() > end) assert.fail(`not within ${msMax} ms: ${check}`);
    await sleep(2);
  }
}

test('without a fault all passes, half-closes too', async () => {
  const seen = await dial();
  const text = 'x'.repeat(3_000_000);
  seen.socket.end(text);
  await until(() => seen.closed);
  assert.equal(seen.text.length, text.length + 3);
  assert.ok(seen.text.endsWith('bye'));
  assert.equal(seen.error, null);
});

test('latency delays each chunk in both directions and keeps their order', async () => {
  const seen = await dial();
  proxy.set('latency', 100);
  const began = performance.now();
  seen.socket.write('one ');
  await sleep(20);
  seen.socket.write('two');
  await until(() => seen.text === 'one two');
  assert.ok(seen.chunks[0][0] - began >= 195, `came after ${seen.chunks[0][0] - began} ms`);
  assert.ok(seen.chunks[0][0] - began < 600);
});

test('dribble passes one byte at a time', async () => {
  const seen = await dial();
  proxy.set('dribble', 2);
  seen.socket.write('twelve bytes');
  await until(() => seen.text === 'twelve bytes');
  assert.ok(seen.chunks.every(([, length]) => length <= 3), `${seen.chunks.map(([, length]) => length)}`);
});

test('throttle holds to the rate', async () => {
  const seen = await dial();
  proxy.set('throttle', 20_000);
  const began = performance.now();
  seen.socket.write('x'.repeat(10_000));
  await until(() => seen.text.length === 10_000);
  const ms = performance.now() - began;
  assert.ok(ms > 350 && ms < 2_500, `10,000 bytes took ${ms} ms at 20,000 a second`);
});

test('a hole swallows bytes and ends until it is cleared, then all comes', async () => {
  const seen = await dial();
  proxy.set('hole');
  seen.socket.end('hello');
  await sleep(150);
  assert.deepEqual([seen.text, seen.closed], ['', false]);
  proxy.clear();
  await until(() => seen.closed);
  assert.equal(seen.text, 'hellobye');
});

test('cut ends with FIN, reset with RST, refuse takes no new connection', async () => {
  const cut = await dial();
  proxy.cut();
  await until(() => cut.closed);
  assert.equal(cut.error, null);
  const reset = await dial();
  reset.socket.write('x');
  await until(() => reset.text === 'x');
  assert.equal(proxy.reset(), 1);
  await until(() => reset.closed);
  assert.equal(reset.error, 'ECONNRESET');
  proxy.set('refuse');
  const refused = await dial();
  await until(() => refused.closed);
  assert.equal(refused.error, 'ECONNRESET');
});

test('lines of the control port are obeyed, bad ones are told', () => {
  assert.equal(proxy.obey('latency 20'), 'latency 20');
  assert.equal(proxy.obey('hole'), 'hole');
  assert.match(proxy.obey('status'), /"latency":20.*"hole":true/);
  for (const line of ['latency', 'latency -1', 'latency x', 'explode', '']) assert.match(proxy.obey(line), /^not understood/);
  assert.equal(proxy.obey('clear'), 'clear');
  assert.match(proxy.obey('status'), /"latency":0.*"hole":false/);
});
