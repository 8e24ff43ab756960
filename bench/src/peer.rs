//! The servers that `compare` sets beside each other: a folder each, with `peer.json` (what it speaks and can do), `setup`
//! (makes it ready, or says in a line why it cannot) and `serve` (becomes the server).
//!
//! `serve` gets PORT (the next few are its own, too), DATA (an empty folder), JWT_SECRET, and ECHO where it is to echo.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::dialect::Dialect;

/// The peer that ratios are of, unless the command line says otherwise.
const FIRST: &str = "roomwire";

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) name: String,
    folder: PathBuf,
    facts: Facts,
}

/// `peer.json`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Facts {
    dialect: Dialect,
    /// The names of what it can do.
    work: Vec<String>,
    /// How it is set, in words for the report.
    config: String,
}

impl Peer {
    /// Those of `only`, in that order; of none, all in `folder`.
    pub(crate) fn all(folder: &Path, only: &[String]) -> Result<Vec<Peer>> {
        let mut names: Vec<String> = only.to_vec();
        if names.is_empty() {
            let entries = fs::read_dir(folder).with_context(|| format!("no folder of peers: {}", folder.display()))?;
            let found = entries.flatten().filter(|entry| entry.path().join("peer.json").is_file());
            names = found.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
            names.sort_by_key(|name| (name != FIRST, name.clone()));
        }
        names.iter().map(|name| Peer::read(folder, name)).collect()
    }

    /// The one whose folder this is.
    pub(crate) fn at(folder: &Path) -> Result<Peer> {
        let name = folder.file_name().with_context(|| format!("{} names no peer", folder.display()))?;
        Peer::read(folder.parent().unwrap_or(Path::new("")), &name.to_string_lossy())
    }

    fn read(folder: &Path, name: &str) -> Result<Peer> {
        let folder = folder.join(name);
        let path = folder.join("peer.json");
        let text = fs::read_to_string(&path).with_context(|| format!("no peer {name}: {}", path.display()))?;
        let facts = serde_json::from_str(&text).with_context(|| format!("{}", path.display()))?;
        Ok(Peer { name: name.to_owned(), folder, facts })
    }

    pub(crate) fn dialect(&self) -> Dialect {
        self.facts.dialect
    }

    pub(crate) fn config(&self) -> &str {
        &self.facts.config
    }

    pub(crate) fn can(&self, work: &str) -> bool {
        self.facts.work.iter().any(|own| own == work)
    }

    /// Makes it ready; the error is its last line.
    pub(crate) fn set_up(&self) -> Result<()> {
        let program = self.folder.join("setup");
        let output = Command::new(&program).stdin(Stdio::null()).stderr(Stdio::piped()).output();
        let output = output.with_context(|| format!("cannot run {}", program.display()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            bail!("{}", said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("its setup failed").trim());
        }
        Ok(())
    }

    /// The shell command that becomes the server, each time with an empty folder: what a server finds of an earlier one it
    /// reads, and keeps memory for.
    pub(crate) fn command(&self, port: u16, data: &Path, echoes: bool) -> String {
        let echo = if echoes { "ECHO=1 " } else { "" };
        let quoted = |path: &Path| format!("'{}'", path.to_string_lossy().replace('\'', r"'\''"));
        let emptied = r#"'rm -rf "$DATA" && mkdir "$DATA" && exec "$0"'"#;
        format!("env {echo}PORT={port} DATA={} sh -c {emptied} {}", quoted(data), quoted(&self.folder.join("serve")))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A folder of peers, each with this `setup`.
    fn peers(test: &str, names: &[&str], setup: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("roomwire-peers-{test}-{}", std::process::id()));
        for name in names {
            let peer = folder.join(name);
            fs::create_dir_all(&peer).expect("writable");
            fs::write(peer.join("peer.json"), r#"{"dialect":"plain","work":["idle"],"config":"plain"}"#)
                .expect("writable");
            fs::write(peer.join("setup"), setup).expect("writable");
            fs::set_permissions(peer.join("setup"), fs::Permissions::from_mode(0o755)).expect("ours");
        }
        folder
    }

    #[test]
    fn roomwire_comes_first_unless_others_are_named() {
        let folder = peers("order", &["uws", "roomwire", "alpha"], "#!/bin/sh\n");
        let names = |only: &[&str]| {
            let only: Vec<String> = only.iter().map(|name| (*name).to_owned()).collect();
            Peer::all(&folder, &only).map(|peers| peers.into_iter().map(|peer| peer.name).collect::<Vec<_>>())
        };
        assert_eq!(names(&[]).expect("all there"), ["roomwire", "alpha", "uws"]);
        assert_eq!(names(&["uws", "alpha"]).expect("both there"), ["uws", "alpha"]);
        assert!(names(&["nobody"]).is_err_and(|error| error.to_string().contains("no peer nobody")));
        fs::remove_dir_all(folder).expect("ours");
    }

    #[test]
    fn a_peer_that_cannot_be_set_up_says_why_in_a_line() {
        let folder = peers("setup", &["one"], "#!/bin/sh\necho noise >&2\necho Go is missing >&2\nexit 1\n");
        let peer = &Peer::all(&folder, &[]).expect("there")[0];
        assert_eq!(peer.set_up().expect_err("it fails").to_string(), "Go is missing");
        assert!(peer.can("idle") && !peer.can("echo"));
        let command = peer.command(9001, Path::new("/it's"), true);
        assert!(command.starts_with(r"env ECHO=1 PORT=9001 DATA='/it'\''s' sh -c '"), "{command}");
        fs::remove_dir_all(folder).expect("ours");
    }

    #[test]
    fn the_peers_of_this_repository_can_be_read() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers");
        let peers = Peer::all(&folder, &[]).expect("every peer.json is right");
        assert_eq!(peers[0].name, "roomwire");
        for peer in &peers {
            assert!(peer.facts.work.iter().all(|work| crate::compare::knows(work)), "{}", peer.name);
        }
    }
}
