//! `compare`: the same work for Roomwire and its peers, in turn, so that what else the machine does falls on all of them
//! alike; medians and ratios. What cannot be set up or does not do some work is left out with a line that says so.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::Parser;

use crate::args::{Common, Compare, Run};
use crate::peer::Peer;
use crate::report::Report;
use crate::{book, runs, sys, table};

/// The work by name, as a line that could be typed. A storm all at once would be late by what the load itself needs to
/// connect.
const WORK: &[(&str, &str)] = &[
    ("room-of-1000", "fanout --rooms 1 --members 1000 --rate 20 --seconds {seconds}"),
    ("200-rooms-of-10", "fanout --rooms 200 --members 10 --rate 1000 --seconds {seconds}"),
    ("storm", "storm --rooms 200 --members 20 --rate 200 --over 2 --seconds {seconds}"),
    // Next to no chatting, and rooms of two, since the peers do not tell a room who comes and goes: so what it costs is the
    // connections' own: accept, upgrade, token, join.
    ("accepts", "storm --rooms 2000 --members 2 --rate 1 --over 2 --seconds {seconds}"),
    ("echo", "echo --connections 2000 --rate 5000 --seconds {seconds}"),
    ("idle", "idle --connections {connections} --hold {seconds}"),
    ("rates", "latency --from 500 --to 16000 --refine 0 --no-closed-loop --seconds {seconds}"),
];
/// Descriptors of a process that are no connections.
const DESCRIPTORS_KEPT: u64 = 1_500;

/// Whether there is work of that name.
#[cfg(test)]
pub(crate) fn knows(work: &str) -> bool {
    WORK.iter().any(|(name, _)| *name == work)
}

pub(crate) fn run(compare: &Compare) -> Result<bool> {
    if sys::cores() < 2 {
        bail!("it takes two cores: one for the server, one for the load");
    }
    let work = chosen(&compare.work)?;
    let connections = connections_within(compare.connections)?;
    let peers = ready(Peer::all(&compare.peers, &compare.only)?)?;
    let out = out_folder(&compare.out)?;
    let mut common = compare.common.clone();
    common.outputs.json.get_or_insert_with(|| out.join("compare.json"));
    let (mut reports, mut failures) = (Vec::new(), 0);
    for (name, line) in work {
        let line = line.replace("{seconds}", &compare.seconds.to_string());
        let run = parse(&line.replace("{connections}", &connections.to_string()))?;
        for round in 1..=common.rounds {
            for peer in peers.iter().filter(|peer| peer.can(name)) {
                println!("\n== {name}, round {round} of {}, {}", common.rounds, peer.name);
                match once(peer, name, &run, &common, compare.port, &out) {
                    Ok(made) => reports.extend(made),
                    Err(error) => {
                        println!("{}: {error:#}", peer.name);
                        failures += 1;
                    }
                }
                // Each time: who stops it halfway keeps what there is.
                runs::write(&reports, &common.outputs)?;
            }
        }
    }
    let table = table::table(&reports);
    println!("\n{table}");
    book::write(&out.join("compare.md"), &table)?;
    Ok(failures == 0 && !reports.is_empty() && !reports.iter().any(Report::is_failure))
}

/// The work that was asked for; of none, all.
fn chosen(names: &[String]) -> Result<Vec<(&'static str, &'static str)>> {
    if let Some(stranger) = names.iter().find(|name| !WORK.iter().any(|(known, _)| known == name)) {
        let known: Vec<&str> = WORK.iter().map(|(name, _)| *name).collect();
        bail!("no work is called {stranger}: {}", known.join(", "));
    }
    Ok(WORK.iter().filter(|(name, _)| names.is_empty() || names.iter().any(|wanted| wanted == name)).copied().collect())
}

/// As many connections as the descriptors of one process allow.
pub(crate) fn connections_within(wanted: u32) -> Result<u32> {
    let descriptors = sys::raise_descriptors().context("cannot read the limit of descriptors")?;
    let most = u32::try_from(descriptors.saturating_sub(DESCRIPTORS_KEPT)).unwrap_or(u32::MAX).max(1);
    if wanted > most {
        println!("{descriptors} descriptors (ulimit -n): {most} idle connections");
    }
    Ok(wanted.min(most))
}

/// Those that could be set up.
fn ready(peers: Vec<Peer>) -> Result<Vec<Peer>> {
    let mut ready = Vec::new();
    for peer in peers {
        println!("setting up {}", peer.name);
        match peer.set_up() {
            Ok(()) => ready.push(peer),
            Err(error) => println!("left out: {}: {error:#}", peer.name),
        }
    }
    if ready.is_empty() {
        bail!("no peer is left");
    }
    Ok(ready)
}

/// A line as people type it, without what is common to all runs.
pub(crate) fn parse(line: &str) -> Result<Run> {
    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        run: Run,
    }
    let words = std::iter::once("roomwire-bench").chain(line.split(' ')).chain(["--secret", "given later"]);
    Ok(Line::try_parse_from(words).with_context(|| format!("a line of ours is wrong: {line}"))?.run)
}

/// The folder that data and reports go to, made if it is not there, by its full path: servers change theirs.
pub(crate) fn out_folder(out: &Path) -> Result<PathBuf> {
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    out.canonicalize().context("the folder of reports has gone")
}

/// One run with a server that is new and has an empty folder, printed.
pub(crate) fn once(peer: &Peer, work: &str, run: &Run, common: &Common, port: u16, out: &Path) -> Result<Vec<Report>> {
    let data = Data::new(out)?;
    let mut run = run.clone();
    let echoes = matches!(run, Run::Echo(_));
    *run.common_mut() = Common {
        addr: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, port))],
        path: None,
        dialect: peer.dialect(),
        pid: Vec::new(),
        spawn: vec![peer.command(port, &data.0, echoes)],
        server_cpu: common.server_cpu.clone().or_else(|| Some("0".into())),
        client_cpu: common.client_cpu.clone().or_else(|| Some("1".into())),
        rounds: 1,
        label: Some(peer.name.clone()),
        scenario: Some(work.to_owned()),
        config: common.config.clone().or_else(|| Some(peer.config().to_owned())),
        ..common.clone()
    };
    let reports = runs::measure(&run)?;
    reports.iter().for_each(Report::print);
    Ok(reports)
}

/// A server's folder, removed in the end.
struct Data(PathBuf);

impl Data {
    fn new(out: &Path) -> Result<Data> {
        let path = out.join(format!("data.{}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Data(path))
    }
}

impl Drop for Data {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_one_that_could_be_typed() {
        for (name, line) in WORK {
            let run = parse(&line.replace("{seconds}", "3").replace("{connections}", "7"));
            assert!(run.is_ok(), "{name}: {:#}", run.expect_err("no run"));
        }
        assert!(parse("fanout --rooms many").is_err());
    }

    #[test]
    fn work_is_chosen_by_name() {
        assert_eq!(chosen(&[]).expect("all").len(), WORK.len());
        assert_eq!(chosen(&["idle".into()]).expect("one").len(), 1);
        assert!(chosen(&["sleep".into()]).is_err_and(|error| error.to_string().contains("room-of-1000")));
    }
}
