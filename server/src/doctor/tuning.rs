//! The kernel's settings, by the table that `roomwire-tuning` works from (`tuning/keys.tsv`), profile `density`.

use super::machine::memory_kib;
use super::{Finding, Verdict};

/// The table; its head explains the columns.
const TABLE: &str = include_str!("../../../tuning/keys.tsv");

/// One line of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Row<'a> {
    path: &'a str,
    at_least: bool,
    value: &'a str,
    limits: &'a str,
    why: &'a str,
}

fn rows(table: &str) -> impl Iterator<Item = Row<'_>> {
    table.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let mut cells = line.split('\t');
        let (path, mode, value) = (cells.next()?, cells.next()?, cells.next()?);
        let (limits, why) = (cells.nth(2)?, cells.next()?);
        Some(Row { path, at_least: mode == "atleast", value, limits, why })
    })
}

/// One finding for each setting that is off, or one for all that are fine.
pub(super) fn examine(connections: u64) -> Vec<Finding> {
    let mut fine = 0;
    let mut findings = Vec::new();
    for row in rows(TABLE) {
        // What stands for several files is looked at by the script, and so is what this profile leaves alone.
        // Tracked connections are a finding of their own.
        if row.value == "-" || row.value == "@conntrack" || row.path.contains('*') {
            continue;
        }
        let path = if row.path.starts_with('/') { row.path.to_owned() } else { format!("/proc/sys/{}", row.path) };
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        let now = chosen(&text);
        let wanted = value_of(row.value, connections, &now);
        if is_as_wanted(&now, &wanted, row.at_least) {
            fine += 1;
            continue;
        }
        let name = if row.path.starts_with('/') { row.path.to_owned() } else { row.path.replace('/', ".") };
        let found = format!("{now}, wanted {wanted}");
        findings.push(Finding::limits(name, found, format!("{}: {}", row.limits, row.why), cure(connections)));
    }
    if fine > 0 {
        findings.insert(0, Finding::fine("kernel settings", format!("{fine} of {} as wanted", fine + findings.len())));
    } else if findings.is_empty() {
        findings.push(Finding { verdict: Verdict::Unknown, ..Finding::fine("kernel settings", "none can be read") });
    }
    findings
}

fn cure(connections: u64) -> String {
    format!("roomwire-tuning apply --connections {connections}")
}

/// Of a choice like `always [madvise] never` the chosen word; of anything else its words.
fn chosen(text: &str) -> String {
    match text.split_once('[').and_then(|(_, rest)| rest.split_once(']')) {
        Some((word, _)) => word.to_owned(),
        None => text.split_whitespace().collect::<Vec<_>>().join(" "),
    }
}

/// What a cell stands for on this machine; the same rules stand in `roomwire-tuning`, `value_of`.
fn value_of(cell: &str, connections: u64, now: &str) -> String {
    let kib = memory_kib().unwrap_or(0);
    match cell {
        "@descriptors" => (connections + connections / 4 + 10_000).to_string(),
        "@files" => (connections + connections / 4 + 75_536).to_string(),
        "@tcp_mem" => {
            // SAFETY: takes no pointer.
            let page_kib = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4_096) / 1024;
            let pages = kib / page_kib.max(1);
            format!("{} {} {}", pages / 10, pages * 15 / 100, pages / 4)
        }
        "@conntrack" => (2 * connections).min(kib * 1024 / 16 / 320).to_string(),
        "@timewait" => 1_000_000.min(kib * 1024 / 64 / 280).to_string(),
        "@io_uring" => if now == "1" { "1" } else { "0" }.to_owned(),
        value => value.to_owned(),
    }
}

/// Whether each number is what is wanted, or higher where that is as good.
fn is_as_wanted(now: &str, wanted: &str, at_least: bool) -> bool {
    if !at_least {
        return now == wanted;
    }
    let mut now = now.split(' ').map(|word| word.parse::<u64>().unwrap_or(0));
    wanted.split(' ').map(|word| word.parse::<u64>().unwrap_or(0)).all(|least| now.next().is_some_and(|is| is >= least))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_table_is_understood() {
        let lines = TABLE.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).count();
        assert_eq!(rows(TABLE).count(), lines);
        for row in rows(TABLE) {
            assert!(
                !value_of(row.value, 1_000, "0").starts_with('@'),
                "{} has a value that only the script knows",
                row.path
            );
        }
    }

    #[test]
    fn higher_is_as_good_only_where_the_table_says_so() {
        assert!(is_as_wanted("4096 131072 6291456", "4096 16384 1048576", true));
        assert!(!is_as_wanted("4096 8192 6291456", "4096 16384 1048576", true));
        assert!(!is_as_wanted("60", "20", false));
        assert_eq!(chosen("always [madvise] never\n"), "madvise");
        assert_eq!(chosen("4096\t16384\t33554432\n"), "4096 16384 33554432");
    }

    #[test]
    fn io_uring_for_one_group_is_not_opened_to_all() {
        assert_eq!(value_of("@io_uring", 1, "1"), "1");
        assert_eq!(value_of("@io_uring", 1, "2"), "0");
    }
}
