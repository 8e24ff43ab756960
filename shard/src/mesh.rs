//! The lock-free lanes between threads and their doorbells (DESIGN.md, Shape 3 and 6).
//!
//! One bounded lane for each ordered pair of threads: first in, first out, one producer, one consumer. What does not fit
//! waits with its sender, in order, so nothing is ever dropped and nobody ever waits. Messages gather in the lanes
//! during a turn; `flush` rings each bell once, at its end.
//!
//! Who calls it: each shard's turn, and the bridge. What it never does: carry what a thread sends to itself.

pub use crate::doorbell::Doorbell;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use roomwire_engine::mesh::{ToBridge, ToShard};
use roomwire_engine::names::ShardId;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

/// Messages that all lanes to one thread hold together; divided among them, so that a node of many shards does not
/// pay for the square of their number.
const LANES_MESSAGES_MAX: usize = 16 * 1024;

/// The most messages that one lane holds.
const LANE_MESSAGES_MAX: usize = 4 * 1024;

/// The fewest.
const LANE_MESSAGES_MIN: usize = 256;

/// Messages taken from one lane before the next has its go.
const LANE_BATCH_MAX: usize = 64;

/// The sending end of a lane.
#[derive(Debug)]
struct Outgoing<T> {
    lane: Sender<T>,
    bell: Arc<Doorbell>,
    spilled: VecDeque<T>,
    /// Something was put on the lane since the bell was last rung.
    touched: bool,
}

impl<T> Outgoing<T> {
    /// Sends or spills. Whether it spilled.
    fn send(&mut self, message: T) -> bool {
        if !self.spilled.is_empty() {
            self.spilled.push_back(message);
            return true;
        }
        match self.lane.try_send(message) {
            Ok(()) => {
                self.touched = true;
                false
            }
            Err(TrySendError::Full(message)) => {
                // The receiver has to turn before anything moves again, so it is rung in any case.
                self.touched = true;
                self.spilled.push_back(message);
                true
            }
            // The receiver has ended: the node stops, and nobody is left whom the message concerns.
            Err(TrySendError::Disconnected(_)) => false,
        }
    }

    /// Moves spilled messages on and rings. How many are still spilled.
    fn flush(&mut self) -> usize {
        while let Some(message) = self.spilled.pop_front() {
            self.touched = true;
            match self.lane.try_send(message) {
                Ok(()) => {}
                Err(TrySendError::Full(message)) => {
                    self.spilled.push_front(message);
                    break;
                }
                Err(TrySendError::Disconnected(_)) => self.spilled.clear(),
            }
        }
        if std::mem::take(&mut self.touched) {
            // All of this turn's messages are on the lane; what is spilled is on top of a full one.
            self.bell.ring_for(self.lane.len());
        }
        self.spilled.len()
    }
}

/// The receiving ends of all lanes to one thread.
#[derive(Debug)]
struct Incoming<T> {
    lanes: Vec<Receiver<T>>,
    /// Whose turn it is to be first.
    first: usize,
}

impl<T> Incoming<T> {
    fn receive(&mut self, most: usize, inbox: &mut Vec<T>) -> usize {
        let lanes = self.lanes.len();
        let mut taken = 0;
        let mut empty = 0;
        let mut at = self.first;
        while taken < most && empty < lanes {
            let batch = LANE_BATCH_MAX.min(most - taken);
            let before = inbox.len();
            inbox.extend(self.lanes[at].try_iter().take(batch));
            let got = inbox.len() - before;
            taken += got;
            empty = if got < batch { empty + 1 } else { 0 };
            at = if at + 1 == lanes { 0 } else { at + 1 };
        }
        self.first = at;
        taken
    }

    fn has_mail(&self) -> bool {
        self.lanes.iter().any(|lane| !lane.is_empty())
    }

    fn holds(&self, messages: usize) -> bool {
        self.lanes.iter().any(|lane| lane.len() >= messages)
    }
}

/// A shard's ends of all lanes.
#[derive(Debug)]
pub struct ShardMesh {
    bell: Arc<Doorbell>,
    incoming: Incoming<ToShard>,
    /// By shard; the shard's own place is empty.
    shards: Vec<Option<Outgoing<ToShard>>>,
    bridge: Outgoing<ToBridge>,
    spilled_total: u64,
}

impl ShardMesh {
    /// Takes up to `most` messages into `inbox`; how many.
    pub(crate) fn receive(&mut self, most: usize, inbox: &mut Vec<ToShard>) -> usize {
        self.incoming.receive(most, inbox)
    }

    /// Queues a message to another shard.
    pub(crate) fn send(&mut self, to: ShardId, message: ToShard) {
        match self.shards.get_mut(usize::from(to.0)).and_then(Option::as_mut) {
            Some(outgoing) => self.spilled_total += u64::from(outgoing.send(message)),
            None => debug_assert!(false, "a message to {to:?} is not for the mesh"),
        }
    }

    /// Queues a message to the bridge.
    pub(crate) fn send_to_bridge(&mut self, message: ToBridge) {
        self.spilled_total += u64::from(self.bridge.send(message));
    }

    /// Ends a turn: moves spilled messages on, rings the bells. How many messages are still spilled.
    pub(crate) fn flush(&mut self) -> usize {
        self.shards.iter_mut().flatten().map(Outgoing::flush).sum::<usize>() + self.bridge.flush()
    }

    /// How many messages did not fit into their lane at once, since the start.
    pub(crate) fn spilled_total(&self) -> u64 {
        self.spilled_total
    }

    /// Whether any lane to this shard holds a message.
    pub(crate) fn has_mail(&self) -> bool {
        self.incoming.has_mail()
    }

    /// The shard's own bell.
    pub(crate) fn doorbell(&self) -> &Arc<Doorbell> {
        &self.bell
    }
}

/// The bridge's ends of all lanes. `send` spills in order rather than drop or block; `flush` moves spilled messages
/// on and rings each bell once.
#[derive(Debug)]
pub struct BridgeMesh {
    bell: Arc<Doorbell>,
    incoming: Incoming<ToBridge>,
    shards: Vec<Outgoing<ToShard>>,
}

impl BridgeMesh {
    /// Takes up to `most` messages, fairly over the shards, into `inbox`; how many.
    pub fn receive(&mut self, most: usize, inbox: &mut Vec<ToBridge>) -> usize {
        self.incoming.receive(most, inbox)
    }

    /// Queues a message to a shard.
    pub fn send(&mut self, to: ShardId, message: ToShard) {
        match self.shards.get_mut(usize::from(to.0)) {
            Some(outgoing) => {
                outgoing.send(message);
            }
            None => debug_assert!(false, "there is no {to:?}"),
        }
    }

    /// Ends a turn: moves spilled messages on, rings the bells. Whether anything is still spilled: then call again
    /// within about a millisecond, for a shard that makes room rings nobody.
    pub fn flush(&mut self) -> bool {
        self.shards.iter_mut().map(Outgoing::flush).sum::<usize>() > 0
    }

    /// Whether any lane to the bridge holds so many messages.
    #[must_use]
    pub fn holds(&self, messages: usize) -> bool {
        self.incoming.holds(messages)
    }

    /// The bridge's own bell: non-blocking, to be polled, then cleared.
    #[must_use]
    pub fn doorbell(&self) -> &Arc<Doorbell> {
        &self.bell
    }
}

/// Makes the mesh of a node: one bounded lane for each ordered pair of threads, one bell per thread.
///
/// # Errors
/// From `eventfd(2)`.
pub fn mesh(shards: u16) -> io::Result<(Vec<ShardMesh>, BridgeMesh)> {
    let count = usize::from(shards);
    let lane_messages = (LANES_MESSAGES_MAX / count.max(1)).clamp(LANE_MESSAGES_MIN, LANE_MESSAGES_MAX);
    let bells = (0..count).map(|_| Doorbell::new().map(Arc::new)).collect::<io::Result<Vec<_>>>()?;
    let bridge_bell = Arc::new(Doorbell::new()?);

    // For each receiver: the lanes from each shard (none from itself), then the one from the bridge.
    let mut to_shards: Vec<Vec<Option<Outgoing<ToShard>>>> = (0..=count).map(|_| Vec::with_capacity(count)).collect();
    let mut incoming: Vec<Incoming<ToShard>> = Vec::with_capacity(count);
    for (to, bell) in bells.iter().enumerate() {
        let mut lanes = Vec::with_capacity(count);
        for (from, outgoing) in to_shards.iter_mut().enumerate() {
            if from == to {
                outgoing.push(None);
                continue;
            }
            let (sender, receiver) = bounded(lane_messages);
            lanes.push(receiver);
            outgoing.push(Some(Outgoing::new(sender, bell)));
        }
        incoming.push(Incoming { lanes, first: 0 });
    }

    let from_bridge = to_shards.pop().into_iter().flatten().flatten().collect();
    let mut to_bridge = Vec::with_capacity(count);
    let meshes = incoming
        .into_iter()
        .zip(to_shards)
        .zip(bells)
        .map(|((incoming, shards), bell)| {
            let (sender, receiver) = bounded(lane_messages);
            to_bridge.push(receiver);
            ShardMesh { bell, incoming, shards, bridge: Outgoing::new(sender, &bridge_bell), spilled_total: 0 }
        })
        .collect();
    let bridge =
        BridgeMesh { bell: bridge_bell, incoming: Incoming { lanes: to_bridge, first: 0 }, shards: from_bridge };
    Ok((meshes, bridge))
}

impl<T> Outgoing<T> {
    fn new(lane: Sender<T>, bell: &Arc<Doorbell>) -> Outgoing<T> {
        Outgoing { lane, bell: Arc::clone(bell), spilled: VecDeque::new(), touched: false }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use roomwire_engine::names::UserId;
    use std::os::fd::{AsFd, AsRawFd};

    fn message(number: u64) -> ToShard {
        ToShard::AskUser { user: UserId::new("u"), call: number }
    }

    fn number(message: &ToShard) -> u64 {
        match message {
            ToShard::AskUser { call, .. } => *call,
            other => panic!("{other:?} was not sent"),
        }
    }

    /// Waits for a ring, for ever: a lost wake-up hangs the test.
    fn sleep(bell: &Doorbell) {
        let mut poll = libc::pollfd { fd: bell.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd.
        assert_eq!(unsafe { libc::poll(&raw mut poll, 1, -1) }, 1);
        bell.clear();
    }

    /// Takes `total` numbered messages as a shard would: turn while there is mail, else arm, look again, sleep.
    fn take_all(mesh: &mut ShardMesh, total: u64, mut taken: impl FnMut(u64)) {
        let mut inbox = Vec::new();
        let mut seen = 0;
        while seen < total {
            mesh.receive(256, &mut inbox);
            for message in inbox.drain(..) {
                taken(number(&message));
                seen += 1;
            }
            mesh.flush();
            if seen == total || mesh.has_mail() {
                continue;
            }
            mesh.doorbell().arm();
            if !mesh.has_mail() {
                sleep(mesh.doorbell());
            }
            mesh.doorbell().disarm();
        }
    }

    #[test]
    fn no_wake_up_is_lost_and_no_order_broken() {
        const ROUNDS: u64 = 200_000;
        let (mut shards, mut bridge) = mesh(2).unwrap();
        let mut other = shards.pop().unwrap();
        let mut sleeper = shards.pop().unwrap();
        // Two producers; bursts of every size from 1 to 7, so that the sleeper is caught awake, asleep, and between.
        let from_shard = std::thread::spawn(move || {
            for at in 0..ROUNDS {
                other.send(ShardId(0), message(at * 2));
                if at % (at % 7 + 1) == 0 {
                    other.flush();
                }
            }
            while other.flush() > 0 {
                std::thread::yield_now();
            }
            other
        });
        let from_bridge = std::thread::spawn(move || {
            for at in 0..ROUNDS {
                bridge.send(ShardId(0), message(at * 2 + 1));
                if at % (at % 5 + 1) == 0 {
                    bridge.flush();
                }
            }
            while bridge.flush() {
                std::thread::yield_now();
            }
            bridge
        });
        let mut next = [0, 1];
        take_all(&mut sleeper, 2 * ROUNDS, |number| {
            let producer = usize::from(number % 2 == 1);
            assert_eq!(number, next[producer], "out of order");
            next[producer] += 2;
        });
        from_shard.join().unwrap();
        from_bridge.join().unwrap();
    }

    #[test]
    fn two_threads_that_wake_each_other_never_sleep_both() {
        const ROUNDS: u64 = 20_000;
        let (mut shards, _bridge) = mesh(2).unwrap();
        let mut one = shards.pop().unwrap();
        let mut zero = shards.pop().unwrap();
        let echo = std::thread::spawn(move || {
            for at in 0..ROUNDS {
                take_all(&mut one, 1, |number| assert_eq!(number, at));
                one.send(ShardId(0), message(at));
                one.flush();
            }
        });
        for at in 0..ROUNDS {
            zero.send(ShardId(1), message(at));
            zero.flush();
            take_all(&mut zero, 1, |number| assert_eq!(number, at));
        }
        echo.join().unwrap();
    }

    #[test]
    fn what_does_not_fit_waits_in_order() {
        let (mut shards, mut bridge) = mesh(1).unwrap();
        let mut shard = shards.pop().unwrap();
        let total = 3 * LANE_MESSAGES_MAX as u64;
        for at in 0..total {
            bridge.send(ShardId(0), message(at));
        }
        assert!(bridge.flush(), "two thirds are spilled");
        let mut inbox = Vec::new();
        let mut next = 0;
        loop {
            shard.receive(1000, &mut inbox);
            if inbox.is_empty() {
                break;
            }
            for message in inbox.drain(..) {
                assert_eq!(number(&message), next);
                next += 1;
            }
            bridge.flush();
        }
        assert_eq!(next, total);
        assert!(!bridge.flush());
    }

    #[test]
    fn a_noisy_sender_leaves_the_others_their_share() {
        let (mut shards, mut bridge) = mesh(2).unwrap();
        for at in 0..1000 {
            shards[1].send(ShardId(0), message(at));
        }
        bridge.send(ShardId(0), message(5000));
        let mut inbox = Vec::new();
        assert_eq!(shards[0].receive(2 * LANE_BATCH_MAX, &mut inbox), 2 * LANE_BATCH_MAX);
        assert!(inbox.iter().any(|message| number(message) == 5000));
    }

    #[test]
    fn a_bell_armed_for_a_full_hand_rings_for_no_less() {
        let (mut shards, bridge) = mesh(1).unwrap();
        let rung = || {
            let mut poll = libc::pollfd { fd: bridge.doorbell().as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one valid pollfd; returns at once.
            unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
        };
        bridge.doorbell().arm_at(3);
        for left in (0..3).rev() {
            assert!(!rung());
            shards[0].send_to_bridge(ToBridge::Drained { shard: ShardId(0) });
            shards[0].flush();
            assert_eq!(bridge.holds(3), left == 0);
        }
        assert!(rung());
        bridge.doorbell().clear();
        shards[0].send_to_bridge(ToBridge::Drained { shard: ShardId(0) });
        shards[0].flush();
        assert!(!rung(), "it rings once until it is armed again");
    }

    #[test]
    fn the_bell_rings_only_those_who_sleep() {
        let (shards, mut bridge) = mesh(1).unwrap();
        let bell = shards[0].doorbell();
        let rung = || {
            let mut poll = libc::pollfd { fd: bell.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one valid pollfd; returns at once.
            unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
        };
        bridge.send(ShardId(0), message(1));
        bridge.flush();
        assert!(!rung(), "the shard is awake");
        bell.arm();
        bridge.flush();
        assert!(!rung(), "nothing new");
        bridge.send(ShardId(0), message(2));
        bridge.flush();
        assert!(rung());
    }
}
