//! The store's contract (`roomwire_engine::store`) as tests that every store has to pass; included by the tests of each.

use bytes::Bytes;
use roomwire::store::{Store, StoreEvent, StoreState};
use roomwire_engine::names::{RoomId, UserId};
use roomwire_engine::store::{From, ReadRow, RoomMeta, Row, StoreReply, StoreRequest};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Asks and waits for the answer.
pub(crate) struct Asker {
    pub(crate) store: Store,
    events: Vec<StoreEvent>,
    pub(crate) ticket: u64,
    pub(crate) state: StoreState,
    /// Goes before each room's name, where tests share a store.
    prefix: String,
}

impl Asker {
    pub(crate) fn of(store: Store, prefix: &str) -> Asker {
        Asker { store, events: Vec::new(), ticket: 0, state: StoreState::Healthy, prefix: prefix.to_owned() }
    }

    pub(crate) fn named(&self, room: &str) -> RoomId {
        RoomId::new(&format!("{}{room}", self.prefix))
    }

    pub(crate) fn ask(&mut self, request: impl FnOnce(u64) -> StoreRequest) -> StoreReply {
        self.ticket += 1;
        self.store.send(request(self.ticket));
        self.reply()
    }

    pub(crate) fn reply(&mut self) -> StoreReply {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            self.store.flush();
            self.store.receive(1, &mut self.events);
            match self.events.pop() {
                Some(StoreEvent::Reply(reply)) => return reply,
                Some(StoreEvent::Figures(figures)) => self.state = figures.state,
                None => std::thread::sleep(Duration::from_micros(200)),
            }
            assert!(Instant::now() < deadline, "no answer from the store");
        }
    }

    pub(crate) fn append(&mut self, mut rows: Vec<Row>) -> bool {
        rows.iter_mut().for_each(|row| row.room = self.named(&row.room));
        match self.ask(|ticket| StoreRequest::Append { ticket, rows }) {
            StoreReply::Appended { .. } => true,
            StoreReply::Failed { .. } => false,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn compared(&mut self, request: impl FnOnce(u64) -> StoreRequest) -> bool {
        match self.ask(request) {
            StoreReply::Compared { applied, .. } => applied,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn advance(&mut self, room: &str, expect: u64, owner: u64) -> bool {
        let room = self.named(room);
        self.compared(|ticket| StoreRequest::AdvanceGen { ticket, room, expect, owner })
    }

    pub(crate) fn set_base(&mut self, room: &str, (generation, owner): (u64, u64), base: u64, voids: &[u64]) -> bool {
        let (room, voids) = (self.named(room), voids.to_vec());
        self.compared(|ticket| StoreRequest::SetBase { ticket, room, generation, owner, base, voids })
    }

    pub(crate) fn void(&mut self, room: &str, generation: u64, seq: u64) -> bool {
        let room = self.named(room);
        self.compared(|ticket| StoreRequest::Void { ticket, room, generation, seq })
    }

    pub(crate) fn receipt(&mut self, room: &str, generation: u64, seq: u64, user: &str) -> (bool, bool) {
        let (room, user) = (self.named(room), UserId::new(user));
        match self.ask(|ticket| StoreRequest::Receipt { ticket, room, generation, seq, user }) {
            StoreReply::Receipt { found, new, .. } => (found, new),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn page(&mut self, room: &str, range: (u64, u64), limit: u32, from: From) -> (Vec<ReadRow>, bool, u64) {
        self.page_of(room, range, (limit, 1 << 20), from)
    }

    /// A page with the room's plain name in its rows.
    fn page_of(
        &mut self,
        room: &str,
        (after, before): (u64, u64),
        (limit, bytes_max): (u32, u32),
        from: From,
    ) -> (Vec<ReadRow>, bool, u64) {
        let (plain, room) = (RoomId::new(room), self.named(room));
        match self.ask(|ticket| StoreRequest::Page { ticket, room, after, before, limit, bytes_max, from }) {
            StoreReply::Page { mut rows, cut, oldest, .. } => {
                rows.iter_mut().for_each(|read| read.row.room = plain.clone());
                (rows, cut, oldest)
            }
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn seqs(&mut self, room: &str) -> Vec<u64> {
        let mut seqs = Vec::new();
        loop {
            let (page, cut, _) = self.page(room, (seqs.last().copied().unwrap_or(0), u64::MAX), 10_000, From::Oldest);
            seqs.extend(page.iter().map(|read| read.row.seq));
            if !cut {
                return seqs;
            }
        }
    }

    pub(crate) fn room(&mut self, room: &str, window: u32) -> (RoomMeta, Vec<u64>) {
        let room = self.named(room);
        match self.ask(|ticket| StoreRequest::ReadRoom { ticket, room, window }) {
            StoreReply::Room { meta, tail, .. } => (meta, tail.iter().map(|row| row.seq).collect()),
            other => panic!("{other:?}"),
        }
    }
}

/// Times are those of a message from some minutes ago, so that no retention has anything to do.
fn timestamp(seq: u64) -> u64 {
    static BASE: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    let base = BASE.get_or_init(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        u64::try_from(now.as_millis()).unwrap() - 600_000
    });
    base + seq
}

pub(crate) fn row(room: &str, seq: u64, generation: u64) -> Row {
    Row {
        room: RoomId::new(room),
        seq,
        generation,
        user: UserId::new("u1"),
        username: Arc::from("Uma"),
        content: Bytes::from(format!("message {seq}")),
        client_id: Arc::from(format!("c{seq}")),
        attempt: seq * 10,
        timestamp: timestamp(seq),
    }
}

pub(crate) fn rows(room: &str, seqs: std::ops::RangeInclusive<u64>) -> Vec<Row> {
    seqs.map(|seq| row(room, seq, 1)).collect()
}

fn seqs_of(page: &(Vec<ReadRow>, bool, u64)) -> Vec<u64> {
    page.0.iter().map(|read| read.row.seq).collect()
}

pub(crate) fn pages_run_both_ways_and_say_when_they_were_cut(store: &mut Asker) {
    assert!(store.append(rows("lobby", 1..=10)));
    assert!(store.append(rows("lobby2", 1..=3)));
    let oldest = store.page("lobby", (2, 9), 3, From::Oldest);
    assert_eq!((seqs_of(&oldest), oldest.1), (vec![3, 4, 5], true));
    let newest = store.page("lobby", (2, 9), 3, From::Newest);
    assert_eq!((seqs_of(&newest), newest.1), (vec![6, 7, 8], true));
    let exact = store.page("lobby", (2, 9), 6, From::Oldest);
    assert_eq!((seqs_of(&exact), exact.1), (vec![3, 4, 5, 6, 7, 8], false));
    let all = store.page("lobby", (0, u64::MAX), 1000, From::Newest);
    assert_eq!((seqs_of(&all), all.1, all.2), ((1..=10).collect(), false, 0));
    assert_eq!(all.0[0].row, row("lobby", 1, 1));
    assert!(seqs_of(&store.page("lobby", (5, 6), 10, From::Oldest)).is_empty());
    assert!(seqs_of(&store.page("nowhere", (0, u64::MAX), 10, From::Newest)).is_empty());

    let page = store.page_of("lobby", (0, u64::MAX), (10, 20), From::Oldest);
    assert!(page.1 && page.0.len() == 2, "two times nine bytes fit");
}

pub(crate) fn pages_and_tails_cross_what_the_store_keeps_apart(store: &mut Asker) {
    assert!(store.append(rows("long", 9_990..=10_010)));
    assert!(store.append(vec![row("long", 35_000, 1), row("long", 1, 1)]));
    let newest = store.page("long", (0, 10_006), 10, From::Newest);
    assert_eq!((seqs_of(&newest), newest.1), ((9_996..=10_005).collect(), true));
    let oldest = store.page("long", (9_994, u64::MAX), 8, From::Oldest);
    assert_eq!((seqs_of(&oldest), oldest.1), ((9_995..=10_002).collect(), true));
    let ends = store.page("long", (10_008, u64::MAX), 100, From::Oldest);
    assert_eq!((seqs_of(&ends), ends.1), (vec![10_009, 10_010, 35_000], false));
    let last = store.page("long", (0, u64::MAX), 2, From::Newest);
    assert_eq!((seqs_of(&last), last.1), (vec![10_010, 35_000], true));
    assert_eq!(store.seqs("long").len(), 23);
    assert!(store.advance("long", 0, 7), "nobody writes in a room before its first generation");
    assert_eq!(store.room("long", 24_995).1, [10_006, 10_007, 10_008, 10_009, 10_010, 35_000]);
}

pub(crate) fn an_append_never_overwrites_and_may_be_repeated(store: &mut Asker) {
    let mut other = row("lobby", 1, 1);
    other.attempt += 1;
    other.content = Bytes::from_static(b"another attempt");
    // At once, and one after the other.
    assert!(store.append(vec![row("lobby", 1, 1), other.clone()]));
    assert!(store.append(vec![other]));
    assert!(store.append(vec![row("lobby", 1, 1)]));
    let (page, _, _) = store.page("lobby", (0, 9), 9, From::Oldest);
    assert_eq!(page.len(), 1);
    assert_eq!(page[0].row, row("lobby", 1, 1));
}

/// A row with names and ids that want escaping.
pub(crate) fn odd_row(room: &str, seq: u64, generation: u64, content: &str) -> Row {
    Row {
        user: UserId::new("auth0.user:7"),
        username: Arc::from("Zoë 🙂 \u{202e}x"),
        content: Bytes::copy_from_slice(content.as_bytes()),
        client_id: Arc::from(r"a 'b'; \"),
        attempt: u64::MAX - seq,
        ..row(room, seq, generation)
    }
}

pub(crate) fn rows_come_back_as_they_were(store: &mut Asker) {
    let large = "é".repeat(16_000);
    let odd = |seq, content| odd_row("odd", seq, 3, content);
    let odd = [odd(1, ""), odd(2, r"\u0041 \n \\ 'x'; DROP TABLE messages; --"), odd(3, &large), odd(4, &large)];
    let mut together = odd.to_vec();
    together.push(row("beside", 1, 1));
    assert!(store.append(together));
    let (page, cut, _) = store.page("odd", (0, 9), 9, From::Oldest);
    assert_eq!((page.len(), cut), (4, false));
    for (read, row) in page.iter().zip(&odd) {
        assert_eq!((&read.row, read.read_by.len()), (row, 0));
    }
    assert_eq!(store.seqs("beside"), [1]);
}

pub(crate) fn the_row_of_the_highest_generation_counts_and_a_void_means_absent(store: &mut Asker) {
    assert!(store.advance("lobby", 0, 7));
    assert!(store.append(vec![row("lobby", 1, 1), row("lobby", 2, 1), row("lobby", 3, 1)]));
    assert!(store.void("lobby", 1, 2), "over a row");
    assert!(store.void("lobby", 1, 2), "again");
    assert!(store.append(vec![row("lobby", 2, 1)]), "a late append does not bring a voided seq back");
    assert!(store.append(vec![row("lobby", 3, 2)]));
    let places = |page: &[ReadRow]| page.iter().map(|read| (read.row.seq, read.row.generation)).collect::<Vec<_>>();
    let (page, _, _) = store.page("lobby", (0, 9), 9, From::Oldest);
    assert_eq!(places(&page), [(1, 1), (3, 2)]);
    let (page, _, _) = store.page("lobby", (0, 9), 9, From::Newest);
    assert_eq!(places(&page), [(1, 1), (3, 2)]);
    let (page, cut, _) = store.page("lobby", (0, 9), 1, From::Newest);
    assert_eq!((places(&page), cut), (vec![(3, 2)], true));
}

/// `open` opens the store another time.
pub(crate) fn generations_advance_once_and_bases_belong_to_their_owner(open: &dyn Fn() -> Asker) {
    let mut store = open();
    assert!(
        !store.void("lobby", 0, 1) && !store.set_base("lobby", (0, 0), 1, &[]),
        "nothing before the first generation"
    );
    assert!(store.advance("lobby", 0, 7) && store.advance("lobby", 0, 7), "a repeat finds its own change");
    assert!(!store.advance("lobby", 0, 8), "another owner came too late");
    assert!(!store.advance("lobby", 5, 8));
    assert!(!store.set_base("lobby", (1, 8), 1, &[]), "not the owner");
    assert!(store.set_base("lobby", (1, 7), 1, &[]));
    assert!(store.append(rows("lobby", 1..=5)));
    assert!(store.advance("lobby", 1, u64::MAX));
    assert!(!store.set_base("lobby", (1, 7), 3, &[]), "its generation is over");
    assert!(!store.void("lobby", 1, 5), "its generation is over");
    assert!(store.set_base("lobby", (2, u64::MAX), 8, &[6, 7]));
    assert!(store.set_base("lobby", (2, u64::MAX), 8, &[6, 7]), "again");

    drop(store);
    let mut store = open();
    let (meta, tail) = store.room("lobby", 2);
    assert_eq!((meta.generation, meta.owner), (2, u64::MAX));
    assert_eq!(meta.bases, [(1, 1), (2, 8)]);
    assert_eq!(meta.voids, [6, 7]);
    assert_eq!(tail, [4, 5]);
    assert_eq!(store.room("nowhere", 9), (RoomMeta::default(), vec![]));
}

pub(crate) fn as_many_voids_as_a_room_may_have_pending_fit_one_base(store: &mut Asker) {
    assert!(store.advance("crowd", 0, 7));
    let voids: Vec<u64> = (9_000..11_048).collect();
    assert!(store.set_base("crowd", (1, 7), 11_048, &voids));
    let (meta, _) = store.room("crowd", 0);
    assert_eq!(meta.bases, [(1, 11_048)]);
    assert!(store.append(rows("crowd", 10_990..=11_060)));
    assert_eq!(store.seqs("crowd"), (11_048..=11_060).collect::<Vec<_>>(), "voided ones are absent");
}

pub(crate) fn a_reader_is_counted_once_and_only_with_a_message(store: &mut Asker) {
    store.advance("lobby", 0, 7);
    assert!(store.append(rows("lobby", 1..=4)));
    assert_eq!(store.receipt("lobby", 1, 2, "ada"), (true, true));
    assert_eq!(store.receipt("lobby", 1, 2, "ada"), (true, false));
    assert_eq!(store.receipt("lobby", 1, 2, "bob"), (true, true));
    assert_eq!(store.receipt("lobby", 1, 4, "bob"), (true, true));
    assert_eq!(store.receipt("lobby", 2, 2, "ada"), (false, false), "another generation");
    assert_eq!(store.receipt("lobby", 1, 9, "ada"), (false, false), "no message");
    store.void("lobby", 1, 3);
    assert_eq!(store.receipt("lobby", 1, 3, "ada"), (false, false), "void");
    for reader in 0..300 {
        store.receipt("lobby", 1, 1, &format!("reader {reader:03}"));
    }
    let (page, _, _) = store.page("lobby", (0, 9), 9, From::Oldest);
    assert_eq!(page[0].read_by.len(), 200, "the list is bounded, and the next message's is found behind it");
    assert_eq!(page[1].read_by, [Box::<str>::from("ada"), Box::from("bob")]);
    assert_eq!(page[2].read_by, [Box::<str>::from("bob")]);
}
