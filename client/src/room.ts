// One room: its place in the order, what is asked of it, and what it still has to send. It knows no socket: the client calls it.

import type { Roomwire } from './client.js';
import { Emitter } from './emitter.js';
import type { Members, Message, Page, Position, Receipt, RoomOptions, RoomwireError, Sent, UserEvent } from './types.js';

/** The most messages that one request asks for. */
const PAGE_MAX = 1000;

export type RoomState = 'joining' | 'live' | 'left';

export type RoomEvents = {
  /** In the room's order, each once: those of the join's history first (`live` is false), then those that happen. */
  message: [message: Message, live: boolean];
  /** The join or the resume is complete, and so many messages came with it. */
  recovered: [count: number];
  /**
   * Some messages are no longer kept, or the order was rebuilt behind this client's place: what was shown should be replaced by the messages
   * that follow.
   */
  gap: [at: Position | null];
  join: [user: UserEvent];
  leave: [user: UserEvent];
  typing: [user: UserEvent];
  receipt: [receipt: Receipt];
  /** In a very large room, in place of `join` and `leave`. */
  count: [count: number];
  state: [state: RoomState];
  error: [error: RoomwireError];
};

/** A `join_room` or `history` that is to be answered by pages. @internal */
export interface Ask {
  room: Room;
  request: Record<string, unknown>;
  /** Asked again on the next connection if this one ends first. A join is not: the client joins anew. */
  again: boolean;
  done(page: Page): void;
  failed(error: RoomwireError): void;
}

/** A message that is not acked yet. @internal */
export interface Pending {
  clientId: string;
  content: string;
  inFlight: boolean;
  resolve(sent: Sent): void;
  reject(error: unknown): void;
}

const isAfter = (one: Position, other: Position): boolean => one.epoch > other.epoch || (one.epoch === other.epoch && one.seq > other.seq);

export class Room extends Emitter<RoomEvents> {
  /** Everything up to here was handed out; keep it to resume in a later session. Null before the first join. */
  position: Position | null;
  state: RoomState = 'joining';
  /** @internal clientId -> message, in the order of sending */
  readonly pending = new Map<string, Pending>();
  /** @internal */
  readonly counting: { resolve(members: Members): void; reject(error: RoomwireError): void }[] = [];
  /** Messages that came live while pages are awaited, or behind a gap that is being filled. */
  private held: Message[] = [];
  private readonly history: number;
  private refusals = 0;

  /** @internal */
  constructor(private readonly client: Roomwire, readonly id: string, options: RoomOptions) {
    super();
    this.position = options.since ?? null;
    this.history = options.history ?? 50;
  }

  /**
   * Sends a message; resolves once it is stored. Until then it is repeated over every reconnect, and still stored once.
   *
   * Rejects with a `RoomwireError` if the server refuses it for good (`forbidden`, `too_large`), if the queue is full (`queue_full`) or the client
   * was closed (`closed`); with the signal's reason if that is aborted (the message may have been stored all the same).
   */
  send(content: string, options: { clientId?: string; signal?: AbortSignal } = {}): Promise<Sent> {
    return this.client.enqueue(this, content, options);
  }

  /** Says that the user is typing: at most once in 2 s, and never queued. */
  typing(): void {
    this.client.sendTyping(this);
  }

  /** Says that the user has read a message. */
  read(messageId: string): void {
    this.client.sendReceipt(this, messageId);
  }

  /** A page of history. `before` and `after` are seqs, both exclusive. Rejects if the client is closed or the room is left. */
  page(range: { before?: number; after?: number; limit?: number } = {}): Promise<Page> {
    return new Promise((resolve, reject) => {
      const request = { type: 'history', roomId: this.id, ...range };
      this.client.ask({ room: this, request, again: true, done: resolve, failed: reject });
    });
  }

  /** Who is in the room. */
  members(): Promise<Members> {
    return this.client.askMembers(this);
  }

  /** Leaves the room. What is not acked yet is still sent. */
  leave(): void {
    this.client.leave(this);
  }

  /** @internal The connection is new: where this room goes on. */
  join(): void {
    if (this.state === 'left') return;
    this.held = [];
    this.setState('joining');
    const from = this.position;
    const request = { type: 'join_room', roomId: this.id, history: this.history, ...(from && { since: from.seq, epoch: from.epoch }) };
    this.client.ask({
      room: this, request, again: false,
      done: (page) => this.joined(from, page),
      failed: (error) => {
        if (this.state === 'left') return;
        // Asked twice, as the error may have been that of a `typing` just before.
        if (this.refusals++ === 0 && error.code === 'forbidden') return this.join();
        this.emit('error', error);
        if (error.code !== 'closed') this.client.forget(this, error);
      },
    });
  }

  /** All pages of the join have come. */
  private joined(from: Position | null, { messages, complete }: Page): void {
    if (this.state === 'left') return;
    this.refusals = 0;
    if (from && !complete) {
      this.emit('gap', from);
      this.position = null;
    }
    let count = 0;
    for (const message of messages) if (this.deliver(message, false)) count++;
    this.setState('live');
    this.emit('recovered', count);
    this.drain();
  }

  /** @internal A room without messages has a place, too. */
  place(position: Position): void {
    if (!this.position) this.position = position;
  }

  /** @internal A message that just happened. */
  take(message: Message): void {
    if (this.state !== 'live' || this.held.length) this.held.push(message);
    else this.next(message);
  }

  private next(message: Message): void {
    const at = this.position;
    if (at && message.seq > at.seq + 1) {
      this.held.unshift(message);
      this.fill(at, message.seq);
      return;
    }
    // The order was rebuilt behind our place (a failover of Redis without strict mode): this replaces what we had there.
    if (at && message.epoch > at.epoch && message.seq <= at.seq) this.emit('gap', { epoch: message.epoch, seq: message.seq - 1 });
    this.deliver(message, true);
  }

  /** Asks for the seqs between `at` and `before`. An empty, complete answer says that they were voided. */
  private fill(at: Position, before: number): void {
    const request = { type: 'history', roomId: this.id, after: at.seq, before, limit: PAGE_MAX };
    const done = ({ messages, complete }: Page) => {
      if (!complete) this.emit('gap', at);
      for (const message of messages) this.deliver(message, true);
      const full = messages.length >= PAGE_MAX;
      if (!full && this.position && this.position.seq < before - 1) this.position = { epoch: this.position.epoch, seq: before - 1 };
      this.drain();
    };
    this.client.ask({ room: this, request, again: false, done, failed: () => done({ messages: [], complete: false }) });
  }

  private drain(): void {
    const held = this.held.splice(0).sort((one, other) => (isAfter(one, other) ? 1 : -1));
    for (const message of held) {
      if (this.held.length) this.held.push(message);
      else this.next(message);
    }
  }

  /** Whether it is new. */
  private deliver(message: Message, live: boolean): boolean {
    if (this.position && !isAfter(message, this.position)) return false;
    this.position = { epoch: message.epoch, seq: message.seq };
    this.emit('message', message, live);
    return true;
  }

  /** @internal */
  setState(state: RoomState): void {
    if (this.state === state) return;
    this.state = state;
    this.emit('state', state);
  }
}
