// docs/asyncapi.json against the real server: the document is valid, each message that it gives as an example is taken and answered as it
// says, a required field that is missing is refused, and nothing comes from the server that the document does not describe.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { after, before, test } from 'node:test';
import Ajv from 'ajv';
import { Client } from '../client.js';
import { Server } from '../server.js';

const contract = JSON.parse(readFileSync(new URL('../../docs/asyncapi.json', import.meta.url), 'utf8'));
const messages = contract.components.messages;
const name = (reference) => reference.$ref.split('/').pop();
/** What a client may send and what the server sends: the operations' messages, by their name in the document. */
const asked = Object.entries(contract.operations).filter(([, operation]) => operation.action === 'receive');
const told = contract.operations.events.messages.map(name);
/** Type of a message of the server -> check of its fields, none more and none less than the document has. */
const checks = new Map(told.map((key) => [messages[key].name, compile(closed(messages[key].payload))]));

/** The schema with every object closed: a field that the document does not name is an error. */
function closed(schema) {
  if (Array.isArray(schema)) return schema.map(closed);
  if (typeof schema !== 'object' || schema === null) return schema;
  const copy = Object.fromEntries(Object.entries(schema).map(([key, value]) => [key, closed(value)]));
  return copy.properties ? { ...copy, additionalProperties: false } : copy;
}

function compile(schema) {
  return new Ajv({ strict: false, allErrors: true }).compile({ ...schema, components: contract.components });
}

let server;
const clients = [];
before(async () => {
  const settings = ['limits.join_events_members_max=2', 'limits.messages_per_second_max=200', 'limits.messages_burst_max=200', 'drain.secs=1'];
  server = await (await Server.create(settings)).start();
});
after(async () => { await server.end(); });

async function connect(user) {
  const client = await Client.connect(server, user);
  clients.push(client);
  return client;
}

test('the document is a valid AsyncAPI 3.0 document', () => {
  const schema = JSON.parse(readFileSync(createRequire(import.meta.url).resolve('@asyncapi/specs/schemas/3.0.0-without-$id.json'), 'utf8'));
  const ajv = new Ajv({ strict: false, allErrors: true, validateFormats: false });
  assert.ok(ajv.validate(schema, contract), ajv.errorsText(ajv.errors, { separator: '\n' }));
});

test('each example fits its own schema', () => {
  for (const [key, message] of Object.entries(messages)) {
    const check = compile(closed(message.payload));
    for (const { payload } of message.examples) assert.ok(check(payload), `${key}: ${JSON.stringify(check.errors)}`);
  }
});

test('each message of a client is taken, and answered as its operation says', async () => {
  const [ada, ben] = [await connect('ada'), await connect('ben')];
  ben.send({ type: 'join_room', roomId: 'general' });
  await ben.next('room_history');
  ada.send({ type: 'chat_message', roomId: 'general', content: 'to be read' });
  const { messageId } = await ben.next('chat_message');
  const real = { messageId, token: await server.token('ada') };
  for (const [key, { reply }] of asked) {
    for (const { payload } of messages[key].examples) {
      const message = Object.fromEntries(Object.entries(payload).map(([field, value]) => [field, real[field] ?? value]));
      ada.send(message);
      // An ack is the answer only to a message that asks for one.
      if (reply && (key !== 'sendChat' || message.clientId)) await ada.next(messages[name(reply.messages[0])].name);
      const before = ada.received.length;
      await ada.settle();
      const refused = ada.received.slice(before - 1).filter(({ type }) => type === 'error');
      assert.deepEqual(refused, [], `${key} was refused: ${JSON.stringify(message)}`);
    }
  }
  assert.ok(ben.received.some(({ type }) => type === 'typing') && ben.received.some(({ type }) => type === 'read_receipt'));
});

test('a required field that is missing or of another type is refused, and the connection lives', async () => {
  const cleo = await connect('cleo');
  for (const [key] of asked) {
    const { payload, examples } = messages[key];
    for (const field of payload.required) {
      const { [field]: _, ...rest } = examples.at(-1).payload;
      for (const message of [rest, { ...rest, [field]: { not: 'of this type' } }]) {
        cleo.send(message);
        const error = await cleo.next('error');
        assert.equal(error.code, 'bad_request', `${key} without a good ${field}: ${JSON.stringify(error)}`);
      }
    }
  }
  cleo.send({ type: 'no_such_type' });
  assert.equal((await cleo.next('error')).code, 'unknown_type');
  for (let n = 0; n < 400; n++) cleo.send({ type: 'typing', roomId: 'general' });
  const limited = await cleo.next('error');
  assert.equal(limited.code, 'rate_limited');
  assert.ok(limited.retryAfterMs > 0);
});

test('all that the server sends is described, and all that is described was seen', async () => {
  const [dan, eve] = [await connect('dan'), await connect('eve')];
  for (const client of [dan, eve]) {
    client.send({ type: 'join_room', roomId: 'general' });
    await client.next('room_history');
  }
  // More than join_events_members_max users: a count in place of events.
  await dan.next('members', (message) => !('users' in message));
  dan.send({ type: 'join_room', roomId: 'two' });
  await dan.next('room_history');
  eve.send({ type: 'join_room', roomId: 'two' });
  await eve.next('room_history');
  eve.send({ type: 'leave_room', roomId: 'two' });
  await dan.next('user_left');
  server.child.kill('SIGTERM');
  await dan.next('reconnect');
  await server.ended;
  const seen = new Set();
  for (const message of clients.flatMap((client) => client.received)) {
    const check = checks.get(message.type);
    assert.ok(check, `not in the document: ${JSON.stringify(message)}`);
    assert.ok(check(message), `${JSON.stringify(message)}: ${JSON.stringify(check.errors)}`);
    seen.add(message.type);
  }
  assert.deepEqual([...seen].sort(), [...checks.keys()].sort());
});
