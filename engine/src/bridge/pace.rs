//! How many rooms ask the store at once for what makes a room whole: its facts and its tail, and the conditional writes of
//! a new generation. Rooms that the bus has lost, or never had, come all at once: after a loss of Redis each room with
//! members is looked at, and each that is written to begins a generation. A store that takes a thousand appends a second
//! takes far fewer of these, and one that is swamped with them answers none in time, appends neither.
//!
//! So a room that needs the store for that needs a *permit*. The rest wait in the order in which they asked, and those for
//! whom somebody waits go first. A room holds its permit for as long as something that it asked is under way, and gives it
//! back while it only waits to try again, so rooms whose attempts fail keep nobody from trying.

use crate::names::RoomId;
use std::collections::VecDeque;

/// How much a room's turn matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Haste {
    /// Somebody waits: a publisher, or one who joins.
    Awaited,
    /// Only to be sure that nothing was missed.
    Anytime,
}

/// What a room has of a permit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Permit {
    #[default]
    None,
    Waits(Haste),
    Held,
}

/// The permits of one node.
#[derive(Debug)]
pub(super) struct Pace {
    permits_max: usize,
    held: usize,
    awaited: VecDeque<RoomId>,
    anytime: VecDeque<RoomId>,
}

impl Pace {
    pub(super) fn new(permits_max: u32) -> Pace {
        Pace { permits_max: permits_max.max(1) as usize, held: 0, awaited: VecDeque::new(), anytime: VecDeque::new() }
    }

    /// Asks for a permit: it is there at once, or the room is called up later by [`Pace::next`].
    pub(super) fn ask(&mut self, room: &RoomId, permit: &mut Permit, haste: Haste) -> bool {
        match *permit {
            Permit::Held => return true,
            Permit::Waits(before) if before == haste || before == Haste::Awaited => return false,
            Permit::None | Permit::Waits(_) => {}
        }
        if self.held < self.permits_max && self.awaited.is_empty() && self.anytime.is_empty() {
            self.held += 1;
            *permit = Permit::Held;
            return true;
        }
        *permit = Permit::Waits(haste);
        self.queue(haste).push_back(room.clone());
        false
    }

    /// The room whose turn it is, if a permit is free. It may not want one any more, or be gone.
    pub(super) fn next(&mut self) -> Option<(RoomId, Haste)> {
        if self.held >= self.permits_max {
            return None;
        }
        let awaited = self.awaited.pop_front().map(|room| (room, Haste::Awaited));
        awaited.or_else(|| self.anytime.pop_front().map(|room| (room, Haste::Anytime)))
    }

    /// A room that was called up takes its permit, if it still waits in that queue.
    pub(super) fn take(&mut self, permit: &mut Permit, haste: Haste) {
        if *permit == Permit::Waits(haste) {
            self.held += 1;
            *permit = Permit::Held;
        }
    }

    /// Gives a permit back, or lets go of the place in the queue.
    pub(super) fn give_back(&mut self, permit: &mut Permit) {
        if std::mem::take(permit) == Permit::Held {
            self.held -= 1;
        }
    }

    /// Rooms that wait, some perhaps in vain.
    pub(super) fn waiting(&self) -> usize {
        self.awaited.len() + self.anytime.len()
    }

    fn queue(&mut self, haste: Haste) -> &mut VecDeque<RoomId> {
        match haste {
            Haste::Awaited => &mut self.awaited,
            Haste::Anytime => &mut self.anytime,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(number: usize) -> RoomId {
        RoomId::new(&format!("r{number}"))
    }

    #[test]
    fn as_many_as_may_go_at_once_and_the_rest_in_their_order() {
        let mut pace = Pace::new(2);
        let mut permits = [Permit::None; 5];
        let mut at_once = Vec::new();
        for (number, permit) in permits.iter_mut().enumerate() {
            at_once.push(pace.ask(&room(number), permit, Haste::Awaited));
            pace.ask(&room(number), permit, Haste::Awaited);
        }
        assert_eq!(
            (at_once, pace.waiting()),
            (vec![true, true, false, false, false], 3),
            "asking twice changes nothing"
        );
        assert_eq!(pace.next(), None);
        pace.give_back(&mut permits[1]);
        assert_eq!(pace.next(), Some((room(2), Haste::Awaited)));
        pace.take(&mut permits[2], Haste::Awaited);
        assert_eq!((permits[2], pace.next()), (Permit::Held, None));
        // One that comes now stands behind those that wait, though a permit is free.
        pace.give_back(&mut permits[0]);
        assert!(!pace.ask(&room(0), &mut permits[0], Haste::Awaited));
        for number in [3, 4] {
            assert_eq!(pace.next(), Some((room(number), Haste::Awaited)));
        }
    }

    #[test]
    fn those_for_whom_somebody_waits_go_first_and_a_room_may_become_one() {
        let mut pace = Pace::new(1);
        let mut permits = [Permit::None; 4];
        assert!(pace.ask(&room(0), &mut permits[0], Haste::Anytime));
        pace.ask(&room(1), &mut permits[1], Haste::Anytime);
        pace.ask(&room(2), &mut permits[2], Haste::Anytime);
        pace.ask(&room(3), &mut permits[3], Haste::Awaited);
        pace.ask(&room(2), &mut permits[2], Haste::Awaited);
        pace.ask(&room(2), &mut permits[2], Haste::Anytime);
        let mut order = Vec::new();
        let mut holder = 0;
        loop {
            pace.give_back(&mut permits[holder]);
            let Some((called, haste)) = pace.next() else { break };
            let number = (0..4).find(|number| room(*number) == called).expect("one of them");
            pace.take(&mut permits[number], haste);
            if permits[number] == Permit::Held {
                order.push(number);
            }
            holder = number;
        }
        assert_eq!((order, pace.waiting()), (vec![3, 2, 1], 0), "the second entry of 2 is passed over");
    }

    #[test]
    fn a_room_that_lets_go_of_its_place_is_passed_over() {
        let mut pace = Pace::new(1);
        let (mut one, mut two) = (Permit::None, Permit::None);
        pace.ask(&room(1), &mut one, Haste::Awaited);
        pace.ask(&room(2), &mut two, Haste::Awaited);
        pace.give_back(&mut two);
        pace.give_back(&mut one);
        assert_eq!(pace.next(), Some((room(2), Haste::Awaited)));
        pace.take(&mut two, Haste::Awaited);
        assert_eq!((two, pace.next()), (Permit::None, None));
        assert!(pace.ask(&room(1), &mut one, Haste::Anytime), "the permit is free");
    }
}
