// The kill -9 ledger: many clients publish into several rooms while the server is killed at random moments and started again
// and while clients lose their connections; clients resume by (epoch, seq) and send again what was not acked.
// At the end each room's history is the truth, and every client must have received exactly that: each message once, in seq order.
//
//   node ledger/kill.js [--seed N] [--kills N] [--clients N] [--rooms N]
//
// The seed fixes the plan (who sends when, when the server dies), not the scheduling of the machine.
import { parseArgs } from 'node:util';
import { Server, sleep } from '../server.js';
import { check, readHistories, settle } from './check.js';
import { LedgerClient } from './client.js';
import { Ledger } from './ledger.js';
import { newSeed, randomFrom } from './random.js';

const UP_MS_MIN = 700, UP_MS_SPREAD = 2_500;

const { values } = parseArgs({ options: {
  seed: { type: 'string', default: String(newSeed()) }, kills: { type: 'string', default: '5' },
  clients: { type: 'string', default: '24' }, rooms: { type: 'string', default: '4' },
} });
const [SEED, KILLS, CLIENTS, ROOMS] = [values.seed, values.kills, values.clients, values.rooms].map(Number);

const ledger = new Ledger();

async function run() {
  const started = Date.now();
  const random = randomFrom(SEED);
  const server = await Server.create();
  const url = async (user) => `${server.ws}/ws?token=${await server.token(user)}`;
  try {
    await server.start();
    const rooms = Array.from({ length: ROOMS }, (_, n) => `ledger-${n}`);
    const clients = Array.from({ length: CLIENTS }, (_, n) => new LedgerClient(ledger, {
      name: `client-${n}`, rooms: [rooms[n % ROOMS], rooms[(n + 1) % ROOMS]], random: randomFrom(SEED + n + 1), dial: ({ name }) => url(name), ordered: true,
    }));
    for (const client of clients) client.connect();
    const publishers = clients.map((client) => client.publishUntilTold());
    for (let kill = 0; kill < KILLS; kill++) {
      await sleep(UP_MS_MIN + random() * UP_MS_SPREAD);
      await server.kill();
      await sleep(random() * 300);
      await server.start();
    }
    await sleep(UP_MS_MIN + random() * UP_MS_SPREAD);
    for (const client of clients) client.publishing = false;
    await Promise.all(publishers);
    await settle(ledger, clients);
    const voids = check(ledger, clients, rooms, [await readHistories(ledger, await url('auditor'), rooms)]);
    for (const client of clients) client.end();
    const line = Object.entries({ seed: SEED, clients: CLIENTS, rooms: ROOMS, kills: KILLS, ...ledger.count, voids, violations: ledger.violated }).map(([name, value]) => `${name}=${value}`).join(' ');
    console.log(`ledger: ${line} seconds=${((Date.now() - started) / 1000).toFixed(1)}`);
    if (ledger.violated) console.log(`The server's last lines:\n  ${server.log.slice(-20).join('\n  ')}`);
  } finally {
    await server.end();
  }
}

try {
  await run();
} catch (error) {
  ledger.violate(error.stack);
}
for (const violation of ledger.violations.slice(0, 30)) console.error(`VIOLATION ${violation}`);
if (ledger.violated) console.error(`${ledger.violated} violations; again with: node ledger/kill.js --seed ${SEED} --kills ${KILLS} --clients ${CLIENTS} --rooms ${ROOMS}`);
process.exit(ledger.violated ? 1 : 0);
