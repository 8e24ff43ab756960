// One connection to a node, made again whenever it is lost, and what goes over it.
//
// Requests for pages carry no id: one at a time is under way, and an `error` without a clientId belongs to it.

import { Emitter } from './emitter.js';
import { Room } from './room.js';
import type { Ask, Pending } from './room.js';
import { RoomwireError } from './types.js';
import type { Members, Message, Options, Presence, RoomOptions, Sent, Socket, SocketConstructor, State } from './types.js';

/** Close codes after which connecting again would not help, and why (docs/protocol.md). */
const FINAL: Readonly<Record<number, string>> = {
  1000: 'the server said goodbye',
  1002: 'the server found a protocol error',
  1003: 'the server takes no binary frames',
  1007: 'the server takes UTF-8 only',
  1008: 'authentication failed, or too many connections of this user',
  1009: 'the server found a message too large',
  4003: 'disconnected by an operator',
};
const TOO_FAST = 4029;
const TOKEN_EXPIRED = 4001;

const OPEN = 1;
const CONNECT_MS_MAX = 10_000;
const ANSWER_MS_MAX = 15_000;
/** An answer to a probe after the machine slept or the network changed. */
const PROBE_MS_MAX = 3_000;
/** A connection that lasted so long was good: the back-off begins anew. */
const STABLE_MS = 5_000;
const TYPING_EVERY_MS = 2_000;
const RETRY_MS = 1_000;
const WATCH_USERS_MAX = 500;
/** Receipts that wait for a connection; more are not sent. */
const RECEIPTS_MAX = 1_000;
const TIMER_MS_MAX = 2 ** 31 - 1;

export type ClientEvents = {
  state: [state: State, reason: string];
  presence: [presence: Presence];
  /** An `error` of the server that belongs to no message and no request, or a token that could not be had. */
  error: [error: RoomwireError];
};

/** Who is connected, and where. */
export interface Hello {
  userId: string;
  connectionId: string;
  node: string;
}

type Incoming = { type: string } & Record<string, any>;

export class Roomwire extends Emitter<ClientEvents> {
  state: State = 'idle';
  /** Of the present connection. */
  hello: Hello | null = null;

  private readonly rooms = new Map<string, Room>();
  private readonly watched = new Set<string>();
  private readonly makeSocket: SocketConstructor;
  private readonly backOffMs: [number, number];

  private socket: Socket | null = null;
  /** Rises with each connection: what belongs to an older one is stale. */
  private turn = 0;
  private attempt = 0;
  private openedAt = 0;
  private heardAt = 0;
  /** Nothing is sent before then: the server said so. */
  private pausedUntil = 0;
  private retry: Timer;
  private stopWatching: (() => void) | null = null;
  private readonly timers = new Set<Timer>();

  private asks: Ask[] = [];
  /** Under way and not answered yet; and those whose next pages are awaited, one a room at most. */
  private asked: Ask | null = null;
  private readonly paging = new Map<string, { ask: Ask; messages: Message[] }>();
  private queuedChars = 0;
  private queuedMessages = 0;
  private typedAt = 0;
  private receipts: { roomId: string; messageId: string }[] = [];

  /** `url`: of any node or the balancer, such as `wss://chat.example.org/ws`. Nothing happens before `connect()` or the first `room()`. */
  constructor(private readonly url: string, private readonly options: Options) {
    super();
    if (!/^wss?:$/.test(new URL(url).protocol)) throw new TypeError(`${url} is no WebSocket address: it begins with ws:// or wss://`);
    const socket = options.WebSocket ?? (globalThis as { WebSocket?: SocketConstructor }).WebSocket;
    if (!socket) throw new TypeError('there is no global WebSocket: give one as options.WebSocket, such as that of the package ws');
    this.makeSocket = socket;
    this.backOffMs = options.backOffMs ?? [500, 20_000];
    options.signal?.addEventListener('abort', () => this.close(), { once: true });
  }

  /** Connects, unless it does already. */
  connect(): void {
    if (this.state !== 'idle' && this.state !== 'closed') return;
    if (this.options.signal?.aborted) return;
    this.stopWatching ??= watchPage(() => this.probe());
    this.attempt = 0;
    void this.open();
  }

  /** A room: joined at once and again on each connection, until it is left. The same id gives the same room. */
  room(id: string, options: RoomOptions = {}): Room {
    let room = this.rooms.get(id);
    if (room) return room;
    room = new Room(this, id, options);
    this.rooms.set(id, room);
    if (this.state === 'online') room.join();
    else if (this.state === 'idle') this.connect();
    return room;
  }

  /** `presence` events for these users, now and at each change. */
  watch(userIds: string[]): void {
    const fresh = userIds.filter((userId) => !this.watched.has(userId));
    for (const userId of fresh) this.watched.add(userId);
    this.sendUsers('watch_presence', fresh);
  }

  unwatch(userIds: string[]): void {
    this.sendUsers('unwatch_presence', userIds.filter((userId) => this.watched.delete(userId)));
  }

  /** Ends the connection for good. What is not acked yet is rejected with `closed`. */
  close(): void {
    this.end('closed by the application');
  }

  // --- The connection ---------------------------------------------------------------------------------------------------

  private async open(): Promise<void> {
    const turn = this.drop();
    this.setState('connecting', '');
    let token: string;
    try {
      token = typeof this.options.token === 'string' ? this.options.token : await this.options.token();
    } catch (error) {
      if (turn !== this.turn) return;
      this.emit('error', new RoomwireError('token', `no token: ${reasonOf(error)}`));
      return this.backOff('no token');
    }
    if (turn !== this.turn) return;
    let socket: Socket;
    try {
      socket = new this.makeSocket(this.url, ['roomwire.v1', `bearer.${token}`]);
    } catch (error) {
      return this.end(`cannot connect: ${reasonOf(error)}`);
    }
    this.socket = socket;
    this.later(CONNECT_MS_MAX, () => { if (!this.openedAt) this.lost('no answer'); });
    socket.onmessage = (event) => { if (turn === this.turn) this.receive(String(event.data), token); };
    socket.onclose = (event) => { if (turn === this.turn) this.closed(Number(event.code), String(event.reason ?? '')); };
    socket.onerror = () => { /* a close follows */ };
  }

  /** Leaves the present connection, if there is one. */
  private drop(): number {
    const { socket } = this;
    this.socket = null;
    this.hello = null;
    for (const timer of this.timers) clearTimeout(timer);
    this.timers.clear();
    clearTimeout(this.retry);
    if (this.openedAt && Date.now() - this.openedAt > STABLE_MS) this.attempt = 0;
    this.openedAt = 0;
    const open = [...[...this.paging.values()].map(({ ask }) => ask), ...(this.asked ? [this.asked] : []), ...this.asks];
    this.asks = open.filter((ask) => ask.again);
    this.asked = null;
    this.paging.clear();
    for (const room of this.rooms.values()) for (const pending of room.pending.values()) pending.inFlight = false;
    socket?.close(1000);
    return ++this.turn;
  }

  private closed(code: number, reason: string): void {
    const why = FINAL[code];
    if (why) return this.end(reason || why);
    if (code === TOO_FAST) this.pausedUntil = Date.now() + STABLE_MS;
    if (code === TOKEN_EXPIRED) this.attempt = 0;
    this.lost(reason || `closed with ${code}`);
  }

  private lost(reason: string): void {
    this.drop();
    this.backOff(reason);
  }

  /** Full jitter, so that many clients do not come back as one. */
  private backOff(reason: string): void {
    const [first, last] = this.backOffMs;
    const waitMs = Math.max(Math.random() * Math.min(last, first * 2 ** this.attempt++), this.pausedUntil - Date.now());
    this.retry = setTimeout(() => void this.open(), waitMs);
    this.setState('waiting', reason);
  }

  private end(reason: string): void {
    this.drop();
    this.stopWatching?.();
    this.stopWatching = null;
    const error = new RoomwireError('closed', reason);
    for (const ask of this.asks.splice(0)) ask.failed(error);
    for (const room of this.rooms.values()) {
      for (const pending of room.pending.values()) pending.reject(error);
      room.pending.clear();
      for (const counting of room.counting.splice(0)) counting.reject(error);
    }
    this.receipts = [];
    this.queuedChars = this.queuedMessages = 0;
    this.setState('closed', reason);
  }

  /** The page is seen again, or the network is back: what looks connected may not be, and a wait may be over. */
  private probe(): void {
    if (this.state === 'waiting' && Date.now() >= this.pausedUntil) return void this.open();
    if (this.state !== 'online') return;
    const askedAt = Date.now();
    this.say({ type: 'ping' });
    this.later(PROBE_MS_MAX, () => { if (this.heardAt < askedAt) this.lost('no answer'); });
  }

  /** Browsers do not show the server's pings: one of our own tells whether anybody is there. */
  private listen(heartbeatMs: number): void {
    this.later(heartbeatMs, () => {
      if (Date.now() - this.heardAt >= heartbeatMs) this.probe();
      this.listen(heartbeatMs);
    });
  }

  // --- What comes in ----------------------------------------------------------------------------------------------------

  private receive(text: string, token: string): void {
    this.heardAt = Date.now();
    let message: Incoming;
    try {
      message = JSON.parse(text) as Incoming;
    } catch {
      return; // other software on the same Redis may send anything
    }
    const room = this.rooms.get(message.roomId);
    switch (message.type) {
      case 'connected': return this.connected(message, token);
      case 'chat_message': return room?.take(message as unknown as Message);
      case 'room_history': return this.paged(message);
      case 'ack': return this.acked(message);
      case 'error': return this.refused(message);
      case 'user_joined': return room?.emit('join', strip(message));
      case 'user_left': return room?.emit('leave', strip(message));
      case 'typing': return room?.emit('typing', strip(message));
      case 'read_receipt': return room?.emit('receipt', strip(message));
      case 'presence': return this.emit('presence', strip(message));
      case 'members': {
        const asked = message.users && room?.counting.shift();
        if (asked) asked.resolve(strip(message));
        else room?.emit('count', message.count);
        return;
      }
      case 'refreshed': return this.refreshBefore(message.expiresAt);
      case 'reconnect': return this.later(message.afterMs, () => { this.attempt = 0; void this.open(); });
    }
  }

  private connected({ userId, connectionId, node, heartbeatMs }: Incoming, token: string): void {
    this.openedAt = Date.now();
    this.hello = { userId, connectionId, node };
    this.setState('online', '');
    if (heartbeatMs > 0) this.listen(heartbeatMs);
    this.refreshBefore(expiryOf(token));
    for (const room of this.rooms.values()) {
      room.join();
      for (const _ of room.counting) this.say({ type: 'members', roomId: room.id });
    }
    this.sendUsers('watch_presence', [...this.watched]);
    this.flush();
    this.askNext();
  }

  private refused({ code, message, clientId, retryAfterMs }: Incoming): void {
    const error = new RoomwireError(code, message);
    const again = code === 'unavailable' || code === 'rate_limited' || code === 'draining';
    const waitMs = retryAfterMs ?? RETRY_MS;
    if (code === 'rate_limited') this.pausedUntil = Date.now() + waitMs;
    for (const room of this.rooms.values()) {
      const pending = clientId === undefined ? undefined : room.pending.get(clientId);
      if (!pending) continue;
      if (!again) return this.settle(room, pending, () => pending.reject(error));
      // The whole queue of the room waits, so that its order stays.
      return this.later(waitMs, () => { pending.inFlight = false; this.flush(); });
    }
    const { asked } = this;
    if (!asked) return this.emit('error', error);
    this.asked = null;
    if (again) {
      this.asks.push(asked);
      this.later(waitMs, () => this.askNext());
    } else {
      asked.failed(error);
      this.askNext();
    }
  }

  // --- Asking for pages -------------------------------------------------------------------------------------------------

  /** @internal */
  ask(ask: Ask): void {
    if (this.state === 'closed') return ask.failed(new RoomwireError('closed', 'the client is closed'));
    this.asks.push(ask);
    this.askNext();
  }

  private askNext(): void {
    if (this.asked || !this.openedAt) return;
    const at = this.asks.findIndex(({ room }) => !this.paging.has(room.id));
    const ask = this.asks[at];
    if (!ask) return;
    if (Date.now() < this.pausedUntil) return this.later(this.pausedUntil - Date.now() + 1, () => this.askNext());
    this.asks.splice(at, 1);
    this.asked = ask;
    this.say(ask.request);
    this.later(ANSWER_MS_MAX, () => { if (this.asked === ask) this.lost('no answer to a request'); });
  }

  /** More pages may be long in coming, while Redis is away: meanwhile other rooms may ask. */
  private paged(page: Incoming): void {
    let paging = this.paging.get(page.roomId);
    if (!paging && this.asked?.room.id === page.roomId) {
      paging = { ask: this.asked!, messages: [] };
      this.asked = null;
      this.paging.set(page.roomId, paging);
    }
    if (!paging) return;
    const messages = page.messages as Message[];
    const last = paging.messages.at(-1);
    // The order was rebuilt behind what has come: the answer begins anew.
    if (last && messages[0] && messages[0].seq <= last.seq) paging.messages = [];
    paging.messages.push(...messages);
    if (!page.more) {
      const { ask, messages } = paging;
      this.paging.delete(page.roomId);
      ask.done({ messages, complete: page.complete });
      ask.room.place({ epoch: page.epoch, seq: page.seq });
    }
    this.flush();
    this.askNext();
  }

  /** @internal */
  askMembers(room: Room): Promise<Members> {
    return new Promise((resolve, reject) => {
      if (this.state === 'closed') return reject(new RoomwireError('closed', 'the client is closed'));
      room.counting.push({ resolve, reject });
      this.say({ type: 'members', roomId: room.id });
    });
  }

  // --- Sending ----------------------------------------------------------------------------------------------------------

  /** @internal */
  enqueue(room: Room, content: string, { clientId = makeId(), signal }: { clientId?: string; signal?: AbortSignal }): Promise<Sent> {
    return new Promise((resolve, reject) => {
      if (signal?.aborted) return reject(signal.reason);
      if (this.state === 'closed') return reject(new RoomwireError('closed', 'the client is closed'));
      if (room.pending.has(clientId)) return reject(new RoomwireError('bad_request', 'this clientId waits for its ack already'));
      const { queueMessagesMax = 1000, queueCharsMax = 1024 * 1024 } = this.options;
      if (this.queuedMessages >= queueMessagesMax || this.queuedChars + content.length > queueCharsMax) {
        return reject(new RoomwireError('queue_full', 'too many messages wait to be acked'));
      }
      const pending: Pending = { clientId, content, inFlight: false, resolve, reject };
      room.pending.set(clientId, pending);
      this.queuedMessages++;
      this.queuedChars += content.length;
      signal?.addEventListener('abort', () => this.settle(room, pending, () => reject(signal.reason)), { once: true });
      this.flush();
    });
  }

  private acked({ roomId, clientId, messageId, seq, timestamp }: Incoming): void {
    const room = this.rooms.get(roomId);
    const pending = room?.pending.get(clientId);
    if (room && pending) this.settle(room, pending, () => pending.resolve({ messageId, seq, timestamp }));
  }

  private settle(room: Room, pending: Pending, how: () => void): void {
    if (room.pending.get(pending.clientId) !== pending) return;
    room.pending.delete(pending.clientId);
    this.queuedMessages--;
    this.queuedChars -= pending.content.length;
    how();
    if (room.state === 'left' && !room.pending.size) this.rooms.delete(room.id);
    this.flush();
  }

  /** Sends what may be sent: of each room the first few, in order. */
  private flush(): void {
    if (!this.openedAt) return;
    if (Date.now() < this.pausedUntil) return this.later(this.pausedUntil - Date.now() + 1, () => this.flush());
    this.sendReceipts();
    const most = this.options.inFlightMax ?? 1;
    for (const room of this.rooms.values()) {
      let count = 0;
      for (const pending of room.pending.values()) {
        if (count++ >= most) break;
        if (pending.inFlight) continue;
        pending.inFlight = true;
        this.say({ type: 'chat_message', roomId: room.id, content: pending.content, clientId: pending.clientId });
      }
    }
  }

  /** @internal */
  sendTyping(room: Room): void {
    const now = Date.now();
    // While a request is under way an error could not be told apart.
    if (this.asked || now - this.typedAt < TYPING_EVERY_MS || now < this.pausedUntil) return;
    this.typedAt = now;
    this.say({ type: 'typing', roomId: room.id });
  }

  /** @internal */
  sendReceipt(room: Room, messageId: string): void {
    if (this.receipts.length < RECEIPTS_MAX) this.receipts.push({ roomId: room.id, messageId });
    this.sendReceipts();
  }

  private sendReceipts(): void {
    if (this.asked || !this.openedAt || Date.now() < this.pausedUntil) return;
    for (const receipt of this.receipts.splice(0)) this.say({ type: 'read_receipt', ...receipt });
  }

  /** @internal */
  leave(room: Room): void {
    this.say({ type: 'leave_room', roomId: room.id });
    this.forget(room, new RoomwireError('left', 'the room was left'));
  }

  /** @internal Nothing more is heard of it; what is not acked yet is still sent. */
  forget(room: Room, error: RoomwireError): void {
    room.setState('left');
    const [gone, kept] = [this.asks.filter((ask) => ask.room === room), this.asks.filter((ask) => ask.room !== room)];
    this.asks = kept;
    for (const ask of gone) ask.failed(error);
    for (const counting of room.counting.splice(0)) counting.reject(error);
    if (!room.pending.size) this.rooms.delete(room.id);
  }

  private sendUsers(type: string, userIds: string[]): void {
    for (let at = 0; at < userIds.length; at += WATCH_USERS_MAX) this.say({ type, userIds: userIds.slice(at, at + WATCH_USERS_MAX) });
  }

  /** Without a connection it is not said: each caller says it again at the next, or need not. */
  private say(message: Record<string, unknown>): void {
    if (this.openedAt && this.socket?.readyState === OPEN) this.socket.send(JSON.stringify(message));
  }

  // --- Tokens and time --------------------------------------------------------------------------------------------------

  /** Brings a new token some time before this one expires; if that fails, the server closes with 4001 and the client comes back. */
  private refreshBefore(expiresAtMs: number): void {
    const { token } = this.options;
    if (!expiresAtMs || typeof token === 'string') return;
    const leftMs = expiresAtMs - Date.now();
    this.later(Math.max(leftMs - 60_000, leftMs / 2, RETRY_MS), async () => {
      const { turn } = this;
      const fresh = await Promise.resolve().then(token).catch(() => null);
      if (fresh && turn === this.turn) this.say({ type: 'refresh', token: fresh });
    });
  }

  /** A timer of this connection. */
  private later(ms: number, act: () => void): void {
    const timer: Timer = setTimeout(() => {
      this.timers.delete(timer);
      act();
    }, Math.min(Math.max(0, ms), TIMER_MS_MAX));
    this.timers.add(timer);
  }

  private setState(state: State, reason: string): void {
    if (this.state === state) return;
    this.state = state;
    this.emit('state', state, reason);
  }
}

type Timer = ReturnType<typeof setTimeout> | undefined;

function strip<T>({ type: _, ...rest }: Incoming): T {
  return rest as T;
}

function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** Unique among the ids of one user in one room; nothing depends on its being hard to guess. */
function makeId(): string {
  const part = () => Math.random().toString(36).slice(2, 12);
  return `${Date.now().toString(36)}-${part()}${part()}`;
}

/** When a JWT expires, in Unix milliseconds; 0 if it does not say so. Nothing is verified here: the server does that. */
function expiryOf(token: string): number {
  try {
    const claims = JSON.parse(atob((token.split('.')[1] ?? '').replace(/-/g, '+').replace(/_/g, '/'))) as { exp?: number };
    return (claims.exp ?? 0) * 1000;
  } catch {
    return 0;
  }
}

/** Calls `back` when a browser's page may have been away: seen again, restored, or online again. */
function watchPage(back: () => void): () => void {
  const page = globalThis as { addEventListener?: Window['addEventListener']; removeEventListener?: Window['removeEventListener']; document?: Document };
  const { document } = page;
  if (!page.addEventListener || !document) return () => { /* not a page */ };
  const seen = () => { if (document.visibilityState === 'visible') back(); };
  page.addEventListener('online', back);
  page.addEventListener('pageshow', back);
  document.addEventListener('visibilitychange', seen);
  return () => {
    page.removeEventListener?.('online', back);
    page.removeEventListener?.('pageshow', back);
    document.removeEventListener('visibilitychange', seen);
  };
}
