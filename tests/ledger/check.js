// What must hold at the end of a run: each room's history is the truth, the same on every node; every client received exactly
// that, each message once, in order; what was acked stands there as it was acked.
import WebSocket from 'ws';
import { sleep } from '../server.js';

const HISTORY_PAGE = 1000;
const HISTORY_MS_MAX = 60_000;

/** Waits until every client is live in its rooms and has all its acks. Returns how long it took, in ms. */
export async function settle(ledger, clients, msMax = 30_000) {
  const began = performance.now();
  for (;;) {
    const open = clients.map((client) => client.waitsFor()).filter(Boolean);
    const tookMs = performance.now() - began;
    if (!open.length) {
      await sleep(500); // what is under way to a member arrives
      return tookMs;
    }
    if (tookMs > msMax) {
      ledger.violate(`${open.length} clients did not come to rest in ${msMax} ms: ${open.slice(0, 3).join('; ')}`);
      return tookMs;
    }
    await sleep(50);
  }
}

/** The whole history of rooms, by pages from its beginning; `url` carries the token. */
export async function readHistories(ledger, url, roomIds) {
  const histories = new Map();
  const socket = new WebSocket(url, { perMessageDeflate: false });
  const timer = setTimeout(() => socket.terminate(), HISTORY_MS_MAX);
  try {
    const inbox = [];
    let wake = () => {};
    socket.on('message', (data) => { inbox.push(JSON.parse(String(data))); wake(); });
    socket.on('error', () => {}); // 'close' follows
    socket.on('close', (code) => { inbox.push({ type: 'closed', code }); wake(); });
    const next = async () => {
      while (!inbox.length) await new Promise((resolve) => { wake = resolve; });
      return inbox.shift();
    };
    await next(); // connected
    for (const roomId of roomIds) histories.set(roomId, await readHistory(ledger, socket, next, roomId));
  } finally {
    clearTimeout(timer);
    socket.close();
  }
  return histories;
}

async function readHistory(ledger, socket, next, roomId) {
  const rows = [];
  for (let inAnswer = -1; inAnswer !== 0;) {
    socket.send(JSON.stringify({ type: 'history', roomId, after: rows.at(-1)?.seq ?? 0, limit: HISTORY_PAGE }));
    inAnswer = 0;
    for (let more = true; more;) {
      const message = await next();
      if (message.type === 'closed') throw new Error(`history of ${roomId}: connection closed (${message.code})`);
      if (message.type === 'error' && !message.retryAfterMs) throw new Error(`history of ${roomId}: ${message.code} ${message.message}`);
      if (message.type === 'error') { await sleep(message.retryAfterMs); inAnswer = -1; break; }
      if (message.type !== 'room_history') continue;
      rows.push(...message.messages);
      inAnswer += message.messages.length;
      more = message.more;
      if (!more && !message.complete) ledger.violate(`${roomId}: the history after seq 0 is not complete`);
    }
  }
  return rows;
}

/** Checks all rooms against `histories`, one map per node. Returns the number of voids. */
export function check(ledger, clients, roomIds, histories) {
  let voids = 0;
  for (const roomId of roomIds) {
    const [truth, ...others] = histories.map((history) => history.get(roomId));
    for (const other of others) {
      const same = other.length === truth.length && other.every((row, at) => row.messageId === truth[at].messageId && row.seq === truth[at].seq && row.content === truth[at].content);
      if (!same) ledger.violate(`${roomId}: two nodes tell two histories, of ${truth.length} and ${other.length} messages`);
    }
    voids += checkRoom(ledger, roomId, truth, clients);
  }
  return voids;
}

function checkRoom(ledger, roomId, history, clients) {
  for (let at = 1; at < history.length; at++) {
    const [before, row] = [history[at - 1], history[at]];
    if (row.seq <= before.seq || row.epoch < before.epoch) ledger.violate(`${roomId}: the history has (${row.epoch}, ${row.seq}) after (${before.epoch}, ${before.seq})`);
  }
  const contents = new Set(history.map((row) => row.content));
  if (contents.size !== history.length) ledger.violate(`${roomId}: ${history.length - contents.size} messages stand twice in the history`);
  const byId = new Map(history.map((row) => [row.messageId, row]));
  let published = 0;
  for (const client of clients) {
    if (client.rooms.has(roomId)) checkReceived(ledger, roomId, history, client);
    const mine = client.sent.filter((message) => message.roomId === roomId);
    published += mine.length;
    for (const { clientId, content } of mine) {
      const ack = client.acks.get(clientId);
      if (!ack) { ledger.violate(`${client.name}: ${clientId} was never acked`); continue; }
      const row = byId.get(ack.messageId);
      if (!row || row.seq !== ack.seq || row.content !== content) ledger.violate(`${client.name}: ${clientId} was acked as ${ack.messageId} (${ack.seq}), the history has ${JSON.stringify(row)}`);
    }
    checkSendingOrder(ledger, roomId, mine, client);
  }
  if (published !== history.length) ledger.violate(`${roomId}: ${published} published, ${history.length} in the history`);
  return history.length ? history.at(-1).seq - history.length : 0;
}

function checkReceived(ledger, roomId, history, client) {
  const { got } = client.rooms.get(roomId);
  const key = (row) => `${row.messageId} ${row.epoch} ${row.seq} ${row.content}`;
  const wanted = new Set(history.map(key)), received = new Set(got.map(key));
  const lost = history.filter((row) => !received.has(key(row)));
  const alien = got.filter((row) => !wanted.has(key(row)));
  if (lost.length) ledger.violate(`${client.name} ${roomId}: lost ${lost.length}, the first at (${lost[0].epoch}, ${lost[0].seq})`);
  if (alien.length) ledger.violate(`${client.name} ${roomId}: got ${alien.length} that the history does not have, the first at (${alien[0].epoch}, ${alien[0].seq})`);
  if (received.size !== got.length) ledger.violate(`${client.name} ${roomId}: got ${got.length - received.size} twice`);
}

/** What one connection sent keeps its order, but for what was refused or sent again elsewhere. */
function checkSendingOrder(ledger, roomId, mine, client) {
  const kept = mine.filter((message) => !client.disordered.has(message.clientId));
  const seqs = kept.map((message) => client.acks.get(message.clientId)?.seq ?? Infinity);
  for (let at = 1; at < seqs.length; at++) {
    if (seqs[at] <= seqs[at - 1]) { ledger.violate(`${client.name} ${roomId}: ${kept[at].clientId} stands before ${kept[at - 1].clientId}`); return; }
  }
}
