// What a whole run saw, over all its clients: counts, delays, violations, and the one message that stands at each place.
// Clients (client.js) write into it, the checks (check.js) and the runs read it.

/** Kept of all violations; the rest is only counted. */
const VIOLATIONS_MAX = 200;

export class Ledger {
  constructor() {
    this.count = { published: 0, acked: 0, retries: 0, repeats: 0, deliveries: 0, resumes: 0, cuts: 0, refused: 0, connects: 0, unreached: 0, told: 0 };
    this.closes = {}; // close code -> how often
    this.violations = [];
    this.violated = 0;
    this.places = new Map(); // room id -> (epoch and seq -> the message there)
    this.sentAt = new Map(); // client id -> when it was first sent
    this.mark();
  }

  violate(what) {
    this.violated++;
    if (this.violations.length < VIOLATIONS_MAX) this.violations.push(what);
  }

  /** Forgets the delays and silences so far: what counts begins now. */
  mark() {
    this.markedAt = performance.now();
    this.delays = []; // ms from first sending to live delivery
    this.silenceMs = 0; // the longest that any client that was connected heard nothing
  }

  /** The message at a place, one object for all who saw it; two different ones at one place break the order. */
  seen(who, roomId, { messageId, seq, epoch, content, userId }) {
    const room = this.places.get(roomId) ?? new Map();
    this.places.set(roomId, room);
    const place = `${epoch} ${seq}`;
    const before = room.get(place);
    if (!before) {
      const row = { messageId, seq, epoch, content, userId };
      room.set(place, row);
      return row;
    }
    if (before.messageId !== messageId || before.content !== content || before.userId !== userId) {
      this.violate(`${who} ${roomId}: at (${epoch}, ${seq}) stands ${messageId} "${content.slice(0, 40)}", others saw ${before.messageId} "${before.content.slice(0, 40)}"`);
    }
    return before;
  }

  /** A message came live. Its content begins with its client id. */
  arrived(content) {
    const sentAt = this.sentAt.get(content.slice(0, content.indexOf(' ')));
    if (sentAt !== undefined && sentAt >= this.markedAt) this.delays.push(performance.now() - sentAt);
  }

  /** The delay that `share` of the live deliveries since the mark did not exceed. */
  delay(share) {
    if (this.delays.length === 0) return 0;
    const sorted = Float64Array.from(this.delays).sort();
    return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
  }
}
