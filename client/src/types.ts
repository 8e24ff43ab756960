// What goes over the wire and what an application sees: docs/protocol.md, docs/asyncapi.json.

/** A place in a room's order. A later epoch goes before a higher seq. */
export interface Position {
  epoch: number;
  seq: number;
}

/** A message of a room. */
export interface Message extends Position {
  /** Opaque, unique. */
  messageId: string;
  roomId: string;
  userId: string;
  username: string;
  content: string;
  /** Unix milliseconds. */
  timestamp: number;
  /** Who has read it, up to 200 users; only of messages that came as history. */
  readBy?: string[];
}

/** A user who came, went or types. */
export interface UserEvent {
  roomId: string;
  userId: string;
  username: string;
  /** Unix milliseconds. */
  timestamp: number;
}

/** A user has read a message. */
export interface Receipt {
  roomId: string;
  userId: string;
  messageId: string;
  /** Unix milliseconds. */
  timestamp: number;
}

/** A watched user came or went. */
export interface Presence {
  userId: string;
  status: 'online' | 'offline';
  /** Unix milliseconds. */
  timestamp: number;
}

/** Who is in a room. */
export interface Members {
  roomId: string;
  count: number;
  /** The first 100; absent in the count that a very large room sends once a second. */
  users?: { userId: string; username: string }[];
}

/** A page of history, oldest first. */
export interface Page {
  messages: Message[];
  /** Nothing of the asked range is missing. */
  complete: boolean;
}

/** A message that is stored, and will never be lost or doubled. */
export interface Sent {
  messageId: string;
  seq: number;
  /** Unix milliseconds. */
  timestamp: number;
}

/**
 * `idle`: not started. `connecting`. `online`. `waiting`: for the next try. `closed`: for good, by `close()` or since the server said
 * so; `connect()` begins anew.
 */
export type State = 'idle' | 'connecting' | 'online' | 'waiting' | 'closed';

/** The part of a WebSocket that the client uses: the browser's, Node's, or that of the package `ws`. */
export interface Socket {
  readonly readyState: number;
  send(text: string): void;
  close(code?: number): void;
  onopen: ((event: any) => void) | null;
  onmessage: ((event: any) => void) | null;
  onclose: ((event: any) => void) | null;
  onerror: ((event: any) => void) | null;
}

/** How to make one. */
export type SocketConstructor = new (url: string, protocols?: string[]) => Socket;

export interface Options {
  /** The token, or how to get one: asked before each connection and before the token expires. */
  token: string | (() => string | Promise<string>);
  /** The WebSocket to use where there is no global one (Node 20 and older). */
  WebSocket?: SocketConstructor;
  /** Ends the client as `close()` does. */
  signal?: AbortSignal;
  /** The back-off's first and last ceiling in milliseconds; each wait is anything below it. Default: [500, 20000]. */
  backOffMs?: [number, number];
  /** Messages that may wait to be acked. Default: 1000. */
  queueMessagesMax?: number;
  /** And their UTF-16 code units together. Default: 1 Mi. */
  queueCharsMax?: number;
  /**
   * Messages of one room under way at once. Default: 1, which keeps their order even where the server refuses one for now; with more, one
   * that was refused may be overtaken.
   */
  inFlightMax?: number;
}

export interface RoomOptions {
  /** Where the application stopped, in an earlier session: it gets all that came since. */
  since?: Position;
  /** How many messages a fresh join brings, at most 1000. Default: 50. */
  history?: number;
}

/** Codes of `error` messages, and those of the client itself. New ones may come. */
export type ErrorCode =
  | 'bad_json' | 'bad_request' | 'unknown_type' | 'forbidden' | 'not_found' | 'too_large' | 'rate_limited' | 'unavailable' | 'draining'
  | 'queue_full' | 'closed' | 'timeout' | 'token' | 'left'
  | (string & {});

/** What the server refused, or what could not be done. */
export class RoomwireError extends Error {
  override name = 'RoomwireError';
  constructor(readonly code: ErrorCode, message: string) {
    super(message);
  }
}
