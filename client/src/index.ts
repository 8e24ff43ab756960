// The package's public face.

export { Roomwire } from './client.js';
export type { ClientEvents, Hello } from './client.js';
export type { Room, RoomEvents, RoomState } from './room.js';
export { RoomwireError } from './types.js';
export type {
  ErrorCode, Members, Message, Options, Page, Position, Presence, Receipt, RoomOptions, Sent, Socket, SocketConstructor, State, UserEvent,
} from './types.js';
