//! The Lua files of presence and rosters, by the hash under which Redis keeps them, with the keys that each takes.

use redis::{Cmd, Pipeline, cmd};
use std::sync::LazyLock;

/// One script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Script {
    Beat,
    Users,
    Roster,
    Purge,
    Members,
}

/// What the nodes share: leases, beats, dead lives; all under one hash tag.
const NODES_KEYS: [&str; 4] = ["rw:{nodes}:beats", "rw:{nodes}:leases", "rw:{nodes}:dead", "rw:{nodes}:memory"];

struct Loaded {
    text: &'static str,
    hash: String,
}

static LOADED: LazyLock<Vec<Loaded>> = LazyLock::new(|| {
    let texts = [
        include_str!("../lua/beat.lua"),
        include_str!("../lua/users.lua"),
        include_str!("../lua/roster.lua"),
        include_str!("../lua/purge.lua"),
        include_str!("../lua/members.lua"),
    ];
    texts.into_iter().map(|text| Loaded { text, hash: sha1_smol::Sha1::from(text).digest().to_string() }).collect()
});

/// `SCRIPT LOAD` of all of them.
pub(super) fn load() -> Pipeline {
    let mut pipeline = Pipeline::new();
    for loaded in LOADED.iter() {
        pipeline.cmd("SCRIPT").arg("LOAD").arg(loaded.text);
    }
    pipeline
}

/// A command, and the hash tag of all its keys: on a cluster it says which node is asked.
#[derive(Clone, Debug)]
pub(super) struct Tagged {
    pub(super) tag: String,
    pub(super) command: Cmd,
}

impl Script {
    fn call(self, keys: &[String]) -> Cmd {
        let mut call = cmd("EVALSHA");
        call.arg(&LOADED[self as usize].hash).arg(keys.len()).arg(keys);
        call
    }

    /// On the nodes' keys.
    pub(super) fn on_nodes(self) -> Cmd {
        self.call(&NODES_KEYS.map(str::to_owned))
    }

    /// On the keys of these users: what other software reads, and which nodes hold the user, under one hash tag.
    pub(super) fn on_users<'u>(self, users: impl Iterator<Item = &'u str>) -> Cmd {
        self.call(&users.flat_map(|user| [state_key(user), nodes_key(user)]).collect::<Vec<_>>())
    }

    /// On a room's roster.
    pub(super) fn on_room(self, room: &str) -> Cmd {
        self.call(&[format!("rw:{{{room}}}:m"), format!("rw:{{{room}}}:mc")])
    }
}

/// The hash tag of the nodes' keys.
pub(super) const NODES_TAG: &str = "nodes";

/// `online` while the user is: the name is that which other software reads. Without braces the whole of it is the tag.
pub(super) fn state_key(user: &str) -> String {
    format!("presence:{user}")
}

/// The nodes that hold a user, under the tag of the state.
pub(super) fn nodes_key(user: &str) -> String {
    format!("rw:{{presence:{user}}}:n")
}

/// The tag of what a life of a node has to have removed.
pub(super) fn life_tag(node: &str, life: &str) -> String {
    format!("node:{node}/{life}")
}

/// The users, or the rooms, of one life of a node.
pub(super) fn life_key(node: &str, life: &str, what: &str) -> String {
    format!("rw:{{{}}}:{what}", life_tag(node, life))
}
