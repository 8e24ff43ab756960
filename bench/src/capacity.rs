//! `plan`: how many boxes, Redis shards and Cassandra nodes so many connections and messages want, from the costs that a
//! suite has measured, with every assumption printed. docs/capacity.md works through a case.
//!
//! It multiplies what small runs cost: it names what to measure next, and promises nothing.

mod costs;
mod needs;
mod quantity;

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;

use crate::book;
use costs::Costs;
use needs::{ASSUMED, Needs, Use, Wanted, gib};
use quantity::{MachineSize, RoomSizes, quantity};

/// What is wanted.
#[derive(Clone, Debug, Args)]
pub(crate) struct Plan {
    /// Reports with the costs: those of a suite
    #[arg(long, value_delimiter = ',', default_value = "docs/benchmarks/suite.json", value_name = "FILE")]
    costs: Vec<PathBuf>,
    /// Connections at once, authenticated and joined
    #[arg(long, value_parser = quantity, value_name = "COUNT")]
    connections: f64,
    /// Messages a second at the peak
    #[arg(long, value_parser = quantity, value_name = "RATE")]
    messages: f64,
    /// Sizes of rooms, each with the percent of all messages that go to rooms of that size
    #[arg(long, default_value = "2:30,10:50,100:19,1000:1", value_name = "SIZE:PERCENT,...")]
    room_sizes: RoomSizes,
    /// Rooms of a connection, on average
    #[arg(long, default_value = "4", value_parser = quantity, value_name = "COUNT")]
    memberships: f64,
    /// Bytes of a message's content
    #[arg(long, default_value = "128", value_parser = quantity, value_name = "BYTES")]
    content: f64,
    /// One box: cores and GiB
    #[arg(long = "box", default_value = "16c32g", value_name = "SIZE")]
    machine: MachineSize,
    /// Its network, in bits a second each way
    #[arg(long, default_value = "10G", value_parser = quantity, value_name = "BITS")]
    network: f64,
    /// Percent of everything that stays free at the peak
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(0..=90), value_name = "PERCENT")]
    headroom: u32,
    /// Boxes that may be missing at the peak
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..=100), value_name = "BOXES")]
    lost: u32,
    /// How much the peak is above the average
    #[arg(long, default_value = "3", value_parser = quantity, value_name = "FACTOR")]
    peak: f64,
    /// Days that messages are kept
    #[arg(long, default_value = "30", value_parser = quantity, value_name = "DAYS")]
    retention: f64,
    /// Copies of each message in Cassandra
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=9), value_name = "COPIES")]
    replication: u32,
    /// Memory of one Redis, in GiB
    #[arg(long, default_value = "32", value_parser = quantity, value_name = "GIB")]
    redis_memory: f64,
    /// Rows that one Cassandra node writes a second: `roomwire store measure` against yours
    #[arg(long, default_value = "10K", value_parser = quantity, value_name = "RATE")]
    cassandra_writes: f64,
    /// Disk of one Cassandra node, in bytes
    #[arg(long, default_value = "4T", value_parser = quantity, value_name = "BYTES")]
    cassandra_disk: f64,
}

pub(crate) fn run(plan: &Plan) -> Result<bool> {
    let reports = plan.costs.iter().map(|path| book::read_json(path)).collect::<Result<Vec<_>>>()?.concat();
    let named = || plan.costs.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
    let costs = Costs::of(&reports).with_context(|| format!("{} is not enough", named()))?;
    let machine = reports.first().map(|report| &report.environment);
    let source = machine.map_or(String::new(), |on| format!("{}, {}, commit {}", on.cpu_model, on.kernel, on.commit));
    let wanted = plan.wanted()?;
    let needs = wanted.needs(&costs).map_err(|why| anyhow!(why))?;
    print!("{}", text(&wanted, &costs, &needs, &format!("{} ({source})", named())));
    Ok(true)
}

impl Plan {
    fn wanted(&self) -> Result<Wanted> {
        if self.peak < 1.0 {
            bail!("--peak: the peak cannot be below the average");
        }
        let memberships = self.connections * self.memberships;
        if let Some(large) = self.room_sizes.0.iter().find(|class| class.members > self.connections) {
            bail!("--room-sizes: a room of {} is larger than all {} connections", large.members, self.connections);
        }
        if let Some(few) = self.room_sizes.0.iter().find(|class| memberships * class.share < class.members) {
            bail!(
                "--room-sizes: {} % of {memberships} memberships do not fill one room of {}: it takes a larger part, or smaller rooms",
                few.share * 100.0,
                few.members
            );
        }
        Ok(Wanted {
            connections: self.connections,
            messages_per_second: self.messages,
            rooms: self.room_sizes.clone(),
            memberships: self.memberships,
            content_bytes: self.content,
            machine: self.machine,
            network_bits_per_second: self.network,
            headroom: f64::from(self.headroom) / 100.0,
            lost: self.lost,
            peak: self.peak,
            retention_days: self.retention,
            replication: self.replication.into(),
            redis_bytes: self.redis_memory * f64::from(1 << 30),
            cassandra_writes_per_second: self.cassandra_writes,
            cassandra_disk_bytes: self.cassandra_disk,
        })
    }
}

/// The plan as it is printed.
fn text(wanted: &Wanted, costs: &Costs, needs: &Needs, source: &str) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "{} connections in {} rooms each, {} messages/s at the peak\n",
        short(wanted.connections),
        short(wanted.memberships),
        short(wanted.messages_per_second)
    );
    for (class, rooms) in wanted.rooms.0.iter().zip(&needs.traffic.rooms) {
        let _ = writeln!(
            out,
            "  rooms of {:<8} {:>5.1} % of the messages, {} rooms",
            short(class.members),
            class.share * 100.0,
            short(*rooms)
        );
    }
    let _ = writeln!(out, "  deliveries       {}/s", short(needs.traffic.deliveries_per_second));
    let _ = writeln!(out, "  nodes that hear a message, on average: {:.1}\n", needs.hearers);
    let memory = gib(wanted.machine.memory_bytes);
    let _ = writeln!(
        out,
        "Boxes: {} of {} cores, {memory} GiB ({} may be missing)",
        needs.boxes, wanted.machine.cores, wanted.lost
    );
    let left = f64::from(needs.boxes - wanted.lost);
    let _ = writeln!(
        out,
        "  with {left} left, each: {} connections, {:.0} deliveries/s",
        short(wanted.connections / left),
        needs.traffic.deliveries_per_second / left
    );
    uses(&mut out, &needs.uses, 1.0);
    let _ = writeln!(
        out,
        "  a lost box's clients are back on the others after {:.1} s, all after a restart of all boxes after {:.0} s, by CPU alone",
        needs.back_secs, needs.all_back_secs
    );
    let sharded = if needs.redis_shards > 1 { ", with bus.redis.sharded = true" } else { "" };
    let _ = writeln!(
        out,
        "\nRedis: {} masters of {:.0} GiB{sharded}, and a replica of each",
        needs.redis_shards,
        gib(wanted.redis_bytes)
    );
    uses(&mut out, &needs.redis, f64::from(needs.redis_shards));
    for (what, bytes) in &needs.redis_bytes_by {
        let _ = writeln!(out, "    of its memory: {what:<42} {:>10.1} GiB in all", gib(*bytes));
    }
    let _ = writeln!(out, "\nCassandra: {} nodes, {} copies", needs.cassandra_nodes, wanted.replication);
    uses(&mut out, &needs.cassandra, f64::from(needs.cassandra_nodes));
    let days = wanted.retention_days;
    let _ = writeln!(
        out,
        "  {days} days of messages are {:.1} TB, {:.1} with copies",
        needs.stored_bytes / 1e12,
        needs.stored_bytes * wanted.replication / 1e12
    );
    scarcest(&mut out, wanted, needs);
    assumptions(&mut out, wanted, costs, source);
    out
}

/// What one of `machines` needs.
fn uses(out: &mut String, uses: &[Use], machines: f64) {
    for one in uses {
        let share = one.share() / machines * 100.0;
        let _ = writeln!(out, "  {:<30} {:>9.2} of {:<9.2} {share:>4.0} %", one.what, one.needed / machines, one.has);
    }
}

/// What breaks first: how many of each part every need alone would want.
fn scarcest(out: &mut String, wanted: &Wanted, needs: &Needs) {
    out.push_str("\nWhat breaks first: how many each need alone would want\n");
    let of_box: Vec<_> = needs.boxes_by.iter().map(|(what, boxes)| (*what, f64::from(*boxes))).collect();
    let of_uses = |uses: &[Use]| -> Vec<_> {
        let machines = |one: &Use| (one.share() / (1.0 - wanted.headroom)).ceil().max(1.0);
        uses.iter().map(|one| (one.what, machines(one))).collect()
    };
    for (part, mut wants) in
        [("boxes", of_box), ("Redis", of_uses(&needs.redis)), ("Cassandra", of_uses(&needs.cassandra))]
    {
        wants.sort_by(|one, other| other.1.total_cmp(&one.1));
        let wants: Vec<String> = wants.iter().map(|(what, machines)| format!("{what}: {machines}")).collect();
        let _ = writeln!(out, "  {part:<10} {}", wants.join("; "));
    }
}

fn assumptions(out: &mut String, wanted: &Wanted, costs: &Costs, source: &str) {
    let a = &ASSUMED;
    let _ = writeln!(out, "\nMeasured, {source}:");
    let extrapolated = wanted.connections / f64::from(costs.connections_measured.max(1));
    let lines = [
        ("memory of a connection, in the process", format!("{:.0} B", costs.connection_bytes)),
        ("and in the kernel, half of both ends'", format!("{:.0} B", costs.kernel_bytes)),
        ("memory of a membership with its room", format!("{:.0} B", costs.membership_bytes)),
        ("CPU of an idle connection", format!("{:.2} us a second", costs.idle_us)),
        ("CPU of a message, and of each delivery", format!("{:.0} us, {:.1} us", costs.message_us, costs.delivery_us)),
        ("of a message in the bridge's thread", format!("{:.0} us", costs.bridge_us)),
        ("CPU of a connection that comes and joins", format!("{:.0} us", costs.move_us)),
        (
            "connections of the largest run",
            format!("{}: this plan has {extrapolated:.0} times as many", costs.connections_measured),
        ),
    ];
    for (what, value) in &lines {
        let _ = writeln!(out, "  {what:<42} {value}");
    }
    out.push_str("\nAssumed:\n");
    let lines = [
        ("kept free of everything at the peak", format!("{:.0} % (--headroom)", wanted.headroom * 100.0)),
        ("the peak is above the average by", format!("{} times (--peak)", wanted.peak)),
        ("all cores do as the measured one did", "caches, interrupts and hyper-threads will say otherwise".into()),
        ("people write as much in any room", "so memberships are shared out as messages are".into()),
        ("a node hears a message from Redis", format!("{:.0} us of its bridge (docs/capacity.md)", a.hear_us)),
        (
            "order by Redis, beside the message's own",
            format!("{:.0} us of the bridge (docs/capacity.md)", a.redis_bridge_us),
        ),
        (
            "Redis, for a message and each hearer",
            format!("{:.0} us, a guess, and {:.1} us, a published figure", a.redis_message_us, a.redis_pass_us),
        ),
        (
            "Redis, for a user and a membership",
            format!("{:.0} B and {:.0} B (docs/operations.md)", a.redis_user_bytes, a.redis_membership_bytes),
        ),
        (
            "Redis, for a message of the last two days",
            format!(
                "{:.0} B for the last {:.0} of a room, {:.0} B and its content for the last {:.0} (docs/capacity.md)",
                a.redis_dedupe_bytes, a.redis_dedupe_max, a.redis_log_bytes, a.redis_log_max
            ),
        ),
        ("Redis, for a node's subscription to a room", format!("{:.0} B, a guess", a.redis_subscription_bytes)),
        (
            "Cassandra, for a message",
            format!("{:.1} statements (docs/benchmarks), {:.0} B and its content", a.statements, a.row_bytes),
        ),
        (
            "a Cassandra node writes",
            format!("{} rows a second (--cassandra-writes), a guess", short(wanted.cassandra_writes_per_second)),
        ),
        ("compaction leaves of its disk", format!("{:.0} %", a.disk_share * 100.0)),
        (
            "a delivery beside its content",
            format!("{:.0} B of JSON and frame, {:.0} B of headers", a.envelope_bytes, a.header_bytes),
        ),
        (
            "each box keeps for itself",
            format!(
                "{:.1} GiB, and {:.0} MiB of recent messages",
                gib(a.system_bytes),
                a.recent_bytes / f64::from(1 << 20)
            ),
        ),
    ];
    for (what, value) in &lines {
        let _ = writeln!(out, "  {what:<42} {value}");
    }
}

/// A number as people say it.
fn short(value: f64) -> String {
    let (scaled, letter) = match value {
        value if value >= 1e9 => (value / 1e9, "G"),
        value if value >= 1e6 => (value / 1e6, "M"),
        value if value >= 1e4 => (value / 1e3, "K"),
        value => (value, ""),
    };
    let digits = if scaled >= 100.0 || scaled.fract() < 0.05 { 0 } else { 1 };
    format!("{scaled:.digits$}{letter}")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::report::tests::report;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        plan: Plan,
    }

    fn parsed(line: &str) -> Result<Plan, String> {
        let words = std::iter::once("plan").chain(line.split_whitespace());
        Line::try_parse_from(words).map(|line| line.plan).map_err(|error| error.to_string())
    }

    fn costs() -> Costs {
        Costs::of(&costs::tests::suite()).expect("whole")
    }

    fn planned(line: &str) -> (Wanted, Needs) {
        let wanted = parsed(line).expect("right").wanted().expect("possible");
        let needs = wanted.needs(&costs()).expect("enough boxes");
        (wanted, needs)
    }

    #[test]
    fn a_small_plan_comes_out_as_by_hand() {
        let (wanted, needs) =
            planned("--connections 100K --messages 1K --room-sizes 10:100 --memberships 1 --headroom 0 --lost 0");
        assert_eq!(needs.traffic.deliveries_per_second, 10_000.0);
        assert_eq!(needs.traffic.rooms, [10_000.0]);
        assert_eq!(needs.boxes, 1);
        // On one box each message is heard once: 100,000 x 2 us + 1,000 x (100 + 24 + 28) us + 10,000 x 5 us.
        let cpu = needs.uses.iter().find(|one| one.what.starts_with("CPU")).expect("there");
        assert!((cpu.needed - 0.402).abs() < 1e-9, "{cpu:?}");
        let memory = needs.uses.iter().find(|one| one.what.starts_with("memory")).expect("there");
        let bytes = 30e6 + ASSUMED.recent_bytes + ASSUMED.system_bytes + 100e3 * (1_000.0 + 4_000.0 + 700.0);
        assert!((memory.needed - gib(bytes)).abs() < 1e-6, "{memory:?}");
        assert!((needs.hearers - 1.0).abs() < 1e-9 && needs.redis_shards == 1, "{needs:?}");
        // A third of 1,000 a second for 30 days.
        assert!((needs.stored_bytes - 1e3 / 3.0 * 86_400.0 * 30.0 * 278.0).abs() < 1.0, "{needs:?}");
        assert!(text(&wanted, &costs(), &needs, "a suite").contains("Boxes: 1 of 16 cores, 32 GiB"));
    }

    #[test]
    fn boxes_bear_the_peak_with_some_missing_and_one_fewer_would_not() {
        let (wanted, needs) = planned("--connections 10M --messages 100K/s --lost 2");
        assert!(needs.uses.iter().all(|one| one.share() <= 0.6), "{needs:?}");
        assert!(needs.uses[0].share() >= needs.uses[3].share(), "the scarcest comes first");
        let (_, without) = planned("--connections 10M --messages 100K/s --lost 0");
        assert_eq!(needs.boxes, without.boxes + 2);
        let most = needs.boxes_by.iter().map(|(_, boxes)| *boxes).max();
        assert_eq!((needs.boxes_by.len(), most), (4, Some(needs.boxes)), "the scarcest decides: {needs:?}");
        assert!(needs.boxes > 10, "{needs:?}");
        let page = text(&wanted, &costs(), &needs, "a suite");
        for part in [
            "What breaks first",
            "Assumed:",
            "Measured, a suite",
            "rooms of 1000",
            "10M connections in 4 rooms each",
            "--headroom",
        ] {
            assert!(page.contains(part), "{part}: {page}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_a_reason() {
        let refused = |line: &str| {
            parsed(line).and_then(|plan| plan.wanted().map_err(|error| error.to_string())).expect_err(line)
        };
        let common = "--connections 1K --messages 10";
        for (line, why) in [
            ("--connections many --messages 1", "no quantity"),
            ("--messages 1", "--connections"),
            (&*format!("{common} --box large"), "16c32g"),
            (&*format!("{common} --room-sizes 10:50"), "add up to 50.0"),
            (&*format!("{common} --room-sizes 10K:100"), "larger than all"),
            (&*format!("{common} --memberships 1 --room-sizes 10:99.5,1000:0.5"), "do not fill one room"),
            (&*format!("{common} --headroom 100"), "0..=90"),
            (&*format!("{common} --peak 0.5"), "below the average"),
        ] {
            assert!(refused(line).contains(why), "{line}: {}", refused(line));
        }
        let far = parsed("--connections 1G --messages 1G --room-sizes 1000:100 --box 1c1g")
            .expect("right")
            .wanted()
            .expect("fits");
        assert!(far.needs(&costs()).is_err_and(|why| why.contains("boxes are not enough")));
    }

    #[test]
    fn a_report_without_costs_is_no_source() {
        let alone = [report("fanout", 1.0, 1.0)];
        assert!(Costs::of(&alone).is_err());
    }

    #[test]
    fn numbers_are_short() {
        let said: Vec<String> = [7.0, 2.5, 1_000.0, 12_300.0, 1e7, 2.5e9].into_iter().map(short).collect();
        assert_eq!(said, ["7", "2.5", "1000", "12.3K", "10M", "2.5G"]);
    }
}
