//! Stories: schedules that lead a run on purpose through one situation of several steps, each of which is a fault that
//! happens in other runs too. Chance seldom strings them together in the few seconds that a run has.
//!
//! A story waits for the step that its chapter is about, brings the next fault, and gives up what does not come. All other faults
//! go on meanwhile, and a story that is over may be told again, of another room.

use super::{ROOMS, World};
use crate::Shape;
use crate::network::SHARDS_MAX;
use crate::node::Node;
use crate::random::Random;
use roomwire_engine::bus::BusRequest;
use roomwire_engine::names::{ConnectionId, RoomId};
use std::sync::Arc;

/// One run of a cluster in so many tells a story.
const STORIES_ONE_IN: u64 = 3;
/// A chapter whose step has not come by then is given up.
const CHAPTER_MS_MAX: u64 = 6_000;
/// A story begins after so many steps on average.
const PROLOGUE_STEPS: u64 = 150;
/// So many messages come between a room's beginning and its next loss.
const MESSAGES: u64 = 3;

#[derive(Clone, Copy, Debug)]
enum Plot {
    /// A FINISH arrives twice: at once, and when the same process makes the room anew.
    LateFinish,
    /// Two processes make a room anew: the first stands still after its BEGIN until the second is done. Then Redis loses
    /// the room again.
    TwoInits,
    /// A split without strict mode: one node goes on with the old master, another makes the room anew on the present one and
    /// hears the old one still.
    OldEvents,
}

/// What was done, and so what is waited for.
#[derive(Clone, Debug)]
enum Chapter {
    Prologue,
    /// Redis has lost the room: somebody will make it anew.
    Lost,
    /// A FINISH is on its way for long; its sender sends it again.
    FinishLate {
        sender: u64,
        finish: Arc<BusRequest>,
    },
    /// Redis has lost the room again, and the sender will make it anew.
    LostAgain {
        sender: u64,
        finish: Arc<BusRequest>,
    },
    /// The first stands still: a second one will make the room.
    FirstPaused {
        first: u64,
    },
    /// The room is made, from that seq on, and the first goes on: messages will come.
    BothDone {
        seq: u64,
    },
    /// One node stays with the old master, the other has left it.
    Split {
        stays: usize,
        leaves: usize,
    },
    /// The room is live on both masters: that seq is the present one's, and the old one's messages go beyond.
    LiveTwice {
        seq: u64,
    },
}

/// A run's story.
#[derive(Debug)]
pub(super) struct Story {
    plot: Plot,
    room: RoomId,
    chapter: Chapter,
    until_ms: u64,
    /// The server of Redis that the chapter is about: with it all that is on its way to it is lost.
    replid: u64,
}

impl Story {
    /// The story of a seed, if it has one. It is drawn apart, so that the runs of all other seeds stay what they were.
    pub(super) fn of(shape: Shape, seed: u64) -> Option<Story> {
        let mut random = Random::new(seed ^ 0x0073_746f_7279);
        if shape == Shape::Node || !random.one_in(STORIES_ONE_IN) {
            return None;
        }
        let plot = [Plot::LateFinish, Plot::TwoInits, Plot::OldEvents][random.index(3)];
        Some(Story { plot, room: RoomId::new(ROOMS[0]), chapter: Chapter::Prologue, until_ms: 0, replid: 0 })
    }
}

impl World {
    /// Turns a page if its time has come. `begins`: the processes whose BEGIN of a room has just been carried out.
    pub(super) fn step_story(&mut self, begins: &[(u64, RoomId)]) {
        let Some(mut story) = self.story.take() else { return };
        if self.calm {
            return;
        }
        let now_ms = self.now.mono_ms();
        if now_ms >= story.until_ms || self.redis.replid() != story.replid {
            story.chapter = Chapter::Prologue;
        }
        if let Some(next) = self.turn_page(&mut story, begins) {
            story.chapter = next;
            (story.until_ms, story.replid) = (now_ms + CHAPTER_MS_MAX, self.redis.replid());
        }
        self.story = Some(story);
    }

    fn turn_page(&mut self, story: &mut Story, begins: &[(u64, RoomId)]) -> Option<Chapter> {
        let live = self.redis.live(&story.room);
        let begun = begins.iter().find(|(_, room)| *room == story.room).map(|(process, _)| *process);
        match (story.plot, story.chapter.clone()) {
            (_, Chapter::Prologue) => {
                if !self.random.one_in(PROLOGUE_STEPS) {
                    return None;
                }
                story.room = RoomId::new(ROOMS[self.random.index(ROOMS.len())]);
                self.redis.live(&story.room)?;
                if matches!(story.plot, Plot::OldEvents) {
                    return self.split_between(&story.room);
                }
                self.redis.lose(story.room.clone());
                Some(Chapter::Lost)
            }
            (Plot::LateFinish, Chapter::Lost) => self.delay_finish(&story.room),
            (_, Chapter::FinishLate { sender, finish }) => {
                let (_, seq) = live?;
                let BusRequest::Finish { last, .. } = &*finish else { return None };
                (seq >= last + MESSAGES).then(|| {
                    self.redis.lose(story.room.clone());
                    Chapter::LostAgain { sender, finish }
                })
            }
            (_, Chapter::LostAgain { sender, finish }) => (begun == Some(sender)).then(|| {
                self.counts.stories += 1;
                self.redis.run(self.now.mono_ms(), (*finish).clone(), &mut Vec::new());
                Chapter::Prologue
            }),
            (_, Chapter::Lost) => {
                let (first, until_ms) = (begun?, self.now.mono_ms() + CHAPTER_MS_MAX);
                let number = self.number_of(first)?;
                self.pause(number, until_ms);
                for other in (0..self.nodes.len()).filter(|other| *other != number) {
                    self.write_through(other, &story.room);
                }
                Some(Chapter::FirstPaused { first })
            }
            (_, Chapter::FirstPaused { first }) => {
                let (_, seq) = live?;
                let number = self.number_of(first)?;
                self.nodes[number].paused_until_ms = 0;
                Some(Chapter::BothDone { seq })
            }
            (_, Chapter::BothDone { seq }) => (live?.1 >= seq + 2 * MESSAGES).then(|| {
                self.counts.stories += 1;
                self.redis.lose(story.room.clone());
                Chapter::Prologue
            }),
            (_, Chapter::Split { stays, leaves }) => {
                let Some((_, seq)) = live else {
                    // Once may not do: the node may not reach Redis yet.
                    if self.random.one_in(50) {
                        self.write_through(leaves, &story.room);
                    }
                    return None;
                };
                for _ in 0..MESSAGES {
                    self.write_through(stays, &story.room);
                }
                Some(Chapter::LiveTwice { seq })
            }
            (_, Chapter::LiveTwice { seq }) => {
                let (_, old_seq) = self.old_redis.as_ref()?.live(&story.room)?;
                (old_seq > seq).then(|| {
                    self.counts.stories += 1;
                    Chapter::Prologue
                })
            }
        }
    }

    /// Splits Redis between two nodes with members of the room.
    fn split_between(&mut self, room: &RoomId) -> Option<Chapter> {
        if self.is_strict || self.old_redis.is_some() {
            return None;
        }
        let mut with_members = (0..self.nodes.len()).filter(|number| self.member_on(*number, room).is_some());
        let (stays, leaves) = (with_members.next()?, with_members.next()?);
        self.split();
        let now_ms = self.now.mono_ms();
        self.split_until_ms = now_ms + 2 * CHAPTER_MS_MAX;
        self.nodes[stays].redis()?.stay_with_old();
        let hears_until_ms = self.split_until_ms;
        self.nodes[leaves].redis()?.leave_old((now_ms, now_ms), hears_until_ms, &mut self.random, &mut self.late);
        Some(Chapter::Split { stays, leaves })
    }

    fn number_of(&self, process: u64) -> Option<usize> {
        self.nodes.iter().position(|node| node.place.process == process)
    }

    /// Breaks the connection on which a FINISH is under way, which arrives later.
    fn delay_finish(&mut self, of: &RoomId) -> Option<Chapter> {
        let now_ms = self.now.mono_ms();
        let is_it = |request: &BusRequest| matches!(request, BusRequest::Finish { room, .. } if room == of);
        let finish_of = |node: &mut Node| {
            let link = node.redis().filter(|link| !link.asks_old())?;
            link.on_its_way(is_it).cloned().map(Arc::new)
        };
        let (number, finish) =
            self.nodes.iter_mut().enumerate().find_map(|(number, node)| Some((number, finish_of(node)?)))?;
        self.cut_redis(number, now_ms);
        Some(Chapter::FinishLate { sender: self.nodes[number].place.process, finish })
    }

    /// The key of a connection of a member of the room to a node.
    fn member_on(&self, number: usize, room: &RoomId) -> Option<(usize, ConnectionId)> {
        let is_member = |client: usize| self.clients[client].rooms.get(&**room).is_some_and(|view| view.live);
        let mut links = self.links.iter();
        links
            .find(|((shard, _), link)| shard / SHARDS_MAX == number && !link.client_shut && is_member(link.client))
            .map(|(key, _)| *key)
    }

    fn write_through(&mut self, number: usize, room: &RoomId) {
        let Some(link) = self.member_on(number, room).and_then(|key| self.links.get_mut(&key)) else { return };
        self.clients[link.client].publish(room, &mut self.random, self.now.mono_ms(), &mut link.to_server);
    }
}
