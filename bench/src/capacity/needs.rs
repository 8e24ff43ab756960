//! The arithmetic of a plan: from what is wanted and what things cost to boxes, Redis shards and Cassandra nodes. Pure:
//! `capacity` reads and prints.

use super::costs::Costs;
use super::quantity::{MachineSize, RoomSizes};

/// What is wanted, and what it is to run on.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) connections: f64,
    /// At the peak.
    pub(crate) messages_per_second: f64,
    pub(crate) rooms: RoomSizes,
    pub(crate) memberships: f64,
    pub(crate) content_bytes: f64,
    pub(crate) machine: MachineSize,
    pub(crate) network_bits_per_second: f64,
    /// Of everything, what is left free at the peak.
    pub(crate) headroom: f64,
    /// Boxes that may be missing at the peak.
    pub(crate) lost: u32,
    /// Messages at the peak over messages on average.
    pub(crate) peak: f64,
    pub(crate) retention_days: f64,
    pub(crate) replication: f64,
    pub(crate) redis_bytes: f64,
    pub(crate) cassandra_writes_per_second: f64,
    pub(crate) cassandra_disk_bytes: f64,
}

/// What no suite of one node can tell. Each line of the plan's assumptions names its source.
pub(crate) struct Assumed {
    /// A node's CPU for each message that it hears from Redis, in its bridge.
    pub(crate) hear_us: f64,
    /// More of a publisher's node's bridge for each message when rooms are ordered by Redis.
    pub(crate) redis_bridge_us: f64,
    /// CPU of Redis for each message, and for each node that it is passed to.
    pub(crate) redis_message_us: f64,
    pub(crate) redis_pass_us: f64,
    /// Memory of Redis: an online user, a membership, a subscription of a node to a room, a message in the dedupe record
    /// and in the recent log.
    pub(crate) redis_user_bytes: f64,
    pub(crate) redis_membership_bytes: f64,
    pub(crate) redis_subscription_bytes: f64,
    pub(crate) redis_dedupe_bytes: f64,
    pub(crate) redis_log_bytes: f64,
    /// How many of them a room keeps there, and for how long after its last message.
    pub(crate) redis_dedupe_max: f64,
    pub(crate) redis_log_max: f64,
    pub(crate) redis_room_secs: f64,
    /// Statements of Cassandra for each message.
    pub(crate) statements: f64,
    /// A message's row beside its content.
    pub(crate) row_bytes: f64,
    /// A delivery on the wire beside its content: JSON, frame, headers of TCP, IP and Ethernet.
    pub(crate) envelope_bytes: f64,
    pub(crate) header_bytes: f64,
    /// The operating system and what else runs on a box.
    pub(crate) system_bytes: f64,
    /// Recent messages that a bridge keeps, at most.
    pub(crate) recent_bytes: f64,
    /// What compaction may need of a disk.
    pub(crate) disk_share: f64,
}

pub(crate) const ASSUMED: Assumed = Assumed {
    hear_us: 28.0,
    redis_bridge_us: 24.0,
    redis_message_us: 60.0,
    redis_pass_us: 1.5,
    redis_user_bytes: 380.0,
    redis_membership_bytes: 90.0,
    redis_subscription_bytes: 150.0,
    redis_dedupe_bytes: 110.0,
    redis_log_bytes: 290.0,
    redis_dedupe_max: 4_096.0,
    redis_log_max: 256.0,
    redis_room_secs: 172_800.0,
    statements: 1.1,
    row_bytes: 150.0,
    envelope_bytes: 260.0,
    header_bytes: 66.0,
    system_bytes: 1_073_741_824.0,
    recent_bytes: 268_435_456.0,
    disk_share: 0.5,
};

/// One thing that boxes run out of: how much of it one box needs, and has.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Use {
    pub(crate) what: &'static str,
    pub(crate) needed: f64,
    pub(crate) has: f64,
}

impl Use {
    pub(crate) fn share(&self) -> f64 {
        self.needed / self.has
    }
}

/// What follows of the wish before boxes are counted.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Traffic {
    pub(crate) deliveries_per_second: f64,
    /// Of each class of rooms, how many there are.
    pub(crate) rooms: Vec<f64>,
}

/// The plan.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Needs {
    pub(crate) traffic: Traffic,
    /// With those that may be missing.
    pub(crate) boxes: u32,
    /// With as many boxes as are left when some are missing; the scarcest first.
    pub(crate) uses: Vec<Use>,
    /// How many boxes each of them alone would want.
    pub(crate) boxes_by: Vec<(&'static str, u32)>,
    /// Nodes that hear a message, on average.
    pub(crate) hearers: f64,
    pub(crate) redis: Vec<Use>,
    pub(crate) redis_shards: u32,
    pub(crate) redis_bytes_by: Vec<(&'static str, f64)>,
    pub(crate) cassandra: Vec<Use>,
    pub(crate) cassandra_nodes: u32,
    pub(crate) stored_bytes: f64,
    /// Seconds until the connections of one lost box are back on the others, and until all of them are after a restart of
    /// everything; CPU is all that counts here.
    pub(crate) back_secs: f64,
    pub(crate) all_back_secs: f64,
}

/// More than that is no plan.
pub(crate) const BOXES_MAX: u32 = 10_000;

impl Wanted {
    fn traffic(&self) -> Traffic {
        let classes = &self.rooms.0;
        let members: f64 = classes.iter().map(|class| class.members * class.share).sum();
        // People write as much in one room as in another, so memberships are shared out as messages are.
        let memberships = self.connections * self.memberships;
        let rooms = classes.iter().map(|class| memberships * class.share / class.members).collect();
        Traffic { deliveries_per_second: self.messages_per_second * members, rooms }
    }

    /// Of `boxes`, how many hold a member of a room of so many.
    fn spread(boxes: f64, members: f64) -> f64 {
        boxes * (1.0 - (1.0 - 1.0 / boxes).powf(members))
    }

    /// Of `boxes`, how many hear a message on average.
    fn hearers(&self, boxes: f64) -> f64 {
        self.rooms.0.iter().map(|class| class.share * Wanted::spread(boxes, class.members)).sum()
    }

    /// What each of `boxes` needs.
    fn uses(&self, costs: &Costs, boxes: f64) -> Vec<Use> {
        let assumed = &ASSUMED;
        let messages = self.messages_per_second;
        let deliveries = self.traffic().deliveries_per_second;
        let heard = messages * self.hearers(boxes);
        let publishing_us = costs.message_us + assumed.redis_bridge_us;
        let cpu_us = self.connections * costs.idle_us
            + messages * publishing_us
            + heard * assumed.hear_us
            + deliveries * costs.delivery_us;
        let bridge_us = messages * (costs.bridge_us + assumed.redis_bridge_us) + heard * assumed.hear_us;
        let of_connections = costs.connection_bytes + costs.kernel_bytes + self.memberships * costs.membership_bytes;
        let memory =
            costs.base_bytes + assumed.recent_bytes + assumed.system_bytes + self.connections * of_connections / boxes;
        let message_bytes = self.content_bytes + assumed.envelope_bytes + assumed.header_bytes;
        let bits = 8.0 * message_bytes * (deliveries + heard + messages) / boxes;
        vec![
            Use { what: "CPU, cores", needed: cpu_us / boxes / 1e6, has: self.machine.cores },
            Use { what: "the bridge's core", needed: bridge_us / boxes / 1e6, has: 1.0 },
            Use { what: "memory, GiB", needed: gib(memory), has: gib(self.machine.memory_bytes) },
            Use { what: "network, Gbit/s", needed: bits / 1e9, has: self.network_bits_per_second / 1e9 },
        ]
    }

    /// The fewest boxes that have enough of what `counts`.
    fn fewest(&self, costs: &Costs, counts: impl Fn(&Use) -> bool) -> Option<u32> {
        let free = 1.0 - self.headroom;
        let fits = |left: u32| {
            self.uses(costs, f64::from(left)).iter().filter(|one| counts(one)).all(|one| one.share() <= free)
        };
        if !fits(BOXES_MAX) {
            return None;
        }
        let (mut too_few, mut enough) = (0, BOXES_MAX);
        // More boxes never need more each, so the fewest are found by halving.
        while enough - too_few > 1 {
            let middle = too_few + (enough - too_few) / 2;
            if fits(middle) { enough = middle } else { too_few = middle }
        }
        Some(enough)
    }

    /// The fewest boxes that bear it with some missing, or why there are none.
    fn boxes(&self, costs: &Costs) -> Result<u32, String> {
        if let Some(enough) = self.fewest(costs, |_| true) {
            return Ok(enough + self.lost);
        }
        let most = self.uses(costs, f64::from(BOXES_MAX));
        let worst = most.iter().max_by(|one, other| one.share().total_cmp(&other.share()));
        let what = worst.map_or("", |worst| worst.what);
        Err(format!(
            "{BOXES_MAX} boxes are not enough: each runs out of {what}; larger boxes, smaller rooms or fewer messages"
        ))
    }

    /// Everything, or what cannot be.
    pub(crate) fn needs(&self, costs: &Costs) -> Result<Needs, String> {
        let boxes = self.boxes(costs)?;
        let left = f64::from(boxes - self.lost);
        let mut uses = self.uses(costs, left);
        uses.sort_by(|one, other| other.share().total_cmp(&one.share()));
        let traffic = self.traffic();
        let redis_bytes_by = self.redis_bytes(&traffic, f64::from(boxes));
        let redis = self.redis(f64::from(boxes), &redis_bytes_by);
        let stored_bytes = self.stored_bytes();
        let cassandra = vec![
            Use {
                what: "writes/s",
                needed: self.messages_per_second * ASSUMED.statements * self.replication,
                has: self.cassandra_writes_per_second,
            },
            Use {
                what: "disk, TB",
                needed: stored_bytes * self.replication / 1e12,
                has: self.cassandra_disk_bytes * ASSUMED.disk_share / 1e12,
            },
        ];
        let nodes =
            |uses: &[Use]| uses.iter().map(|one| one.share() / (1.0 - self.headroom)).fold(0.0, f64::max).ceil() as u32;
        let cores = self.machine.cores * 1e6;
        let busy = uses.iter().find(|one| one.what.starts_with("CPU")).map_or(0.0, Use::share);
        let of_box_us = self.connections / f64::from(boxes) * costs.move_us;
        Ok(Needs {
            hearers: self.hearers(f64::from(boxes)),
            boxes_by: uses
                .iter()
                .filter_map(|one| Some((one.what, self.fewest(costs, |other| other.what == one.what)? + self.lost)))
                .collect(),
            redis_shards: nodes(&redis).max(1),
            cassandra_nodes: nodes(&cassandra).max(self.replication as u32),
            back_secs: of_box_us / f64::from((boxes - 1).max(1)) / (cores * (1.0 - busy)),
            all_back_secs: of_box_us / cores,
            traffic,
            boxes,
            uses,
            redis,
            redis_bytes_by,
            cassandra,
            stored_bytes,
        })
    }

    fn redis(&self, boxes: f64, bytes_by: &[(&'static str, f64)]) -> Vec<Use> {
        let messages = self.messages_per_second;
        let cpu_us = messages * (ASSUMED.redis_message_us + self.hearers(boxes) * ASSUMED.redis_pass_us);
        let bytes: f64 = bytes_by.iter().map(|(_, bytes)| bytes).sum();
        vec![
            Use { what: "CPU of its one thread, cores", needed: cpu_us / 1e6, has: 1.0 },
            Use { what: "memory, GiB", needed: gib(bytes), has: gib(self.redis_bytes) },
        ]
    }

    fn redis_bytes(&self, traffic: &Traffic, boxes: f64) -> Vec<(&'static str, f64)> {
        let (mut of_messages, mut subscriptions) = (0.0, 0.0);
        for (class, rooms) in self.rooms.0.iter().zip(&traffic.rooms) {
            let on_average = self.messages_per_second / self.peak * class.share;
            // As many as a room gets while it is remembered, if it does not get more than is kept.
            let of_room = on_average * ASSUMED.redis_room_secs / rooms;
            let dedupe = of_room.min(ASSUMED.redis_dedupe_max) * ASSUMED.redis_dedupe_bytes;
            let log = of_room.min(ASSUMED.redis_log_max) * (ASSUMED.redis_log_bytes + self.content_bytes);
            of_messages += rooms * (dedupe + log);
            subscriptions += rooms * Wanted::spread(boxes, class.members);
        }
        vec![
            ("recent messages and client ids of rooms", of_messages),
            ("memberships", self.connections * self.memberships * ASSUMED.redis_membership_bytes),
            ("online users", self.connections * ASSUMED.redis_user_bytes),
            ("subscriptions of nodes", subscriptions * ASSUMED.redis_subscription_bytes),
        ]
    }

    /// One copy of all messages that are kept.
    fn stored_bytes(&self) -> f64 {
        let messages = self.messages_per_second / self.peak * 86_400.0 * self.retention_days;
        messages * (self.content_bytes + ASSUMED.row_bytes)
    }
}

pub(crate) fn gib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 30)
}
