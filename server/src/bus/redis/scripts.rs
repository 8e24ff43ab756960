//! The Lua files, each with `live.lua` before it, by the hash under which Redis keeps them.
//!
//! Each connection loads all of them when it is made; `SCRIPT FLUSH` and a restart are answered with NOSCRIPT and cost
//! one more round trip (`link`).

use redis::{Cmd, cmd};
use std::sync::LazyLock;

/// One script of ORDERING.md, and the start-up check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "ORDERING.md's own names")]
pub enum Script {
    Sequence,
    Publish,
    Void1,
    Void2,
    Head,
    Begin,
    Finish,
    Retire,
    Log,
    LogRead,
    Check,
}

impl Script {
    /// Every script.
    pub const ALL: [Script; 11] = [
        Script::Sequence,
        Script::Publish,
        Script::Void1,
        Script::Void2,
        Script::Head,
        Script::Begin,
        Script::Finish,
        Script::Retire,
        Script::Log,
        Script::LogRead,
        Script::Check,
    ];

    fn body(self) -> &'static str {
        match self {
            Script::Sequence => include_str!("lua/seq.lua"),
            Script::Publish => include_str!("lua/pub.lua"),
            Script::Void1 => include_str!("lua/void1.lua"),
            Script::Void2 => include_str!("lua/void2.lua"),
            Script::Head => include_str!("lua/head.lua"),
            Script::Begin => include_str!("lua/begin.lua"),
            Script::Finish => include_str!("lua/finish.lua"),
            Script::Retire => include_str!("lua/retire.lua"),
            Script::Log => include_str!("lua/log.lua"),
            Script::LogRead => include_str!("lua/logread.lua"),
            Script::Check => include_str!("lua/check.lua"),
        }
    }

    fn loaded(self) -> &'static Loaded {
        &LOADED[self as usize]
    }

    /// `SCRIPT LOAD` of it.
    #[must_use]
    pub fn load(self) -> Cmd {
        let mut load = cmd("SCRIPT");
        load.arg("LOAD").arg(&self.loaded().text);
        load
    }

    /// `EVALSHA` of it on the keys of a room (`rw:{room}:...`), without arguments yet.
    #[must_use]
    pub fn call(self, room: &str) -> Cmd {
        let mut call = cmd("EVALSHA");
        call.arg(&self.loaded().hash).arg(ROOM_KEYS.len());
        for key in ROOM_KEYS {
            call.arg(format!("rw:{{{room}}}:{key}"));
        }
        call
    }
}

/// What a room has in Redis, all under one hash tag; `live.lua` names them in this order.
const ROOM_KEYS: [&str; 6] = ["h", "p", "d0", "d1", "log", "rb"];

/// A script's whole text and its SHA-1.
struct Loaded {
    text: String,
    hash: String,
}

static LOADED: LazyLock<Vec<Loaded>> = LazyLock::new(|| {
    let load = |script: Script| {
        let text = format!("{}\n{}", include_str!("lua/live.lua"), script.body());
        let hash = sha1_smol::Sha1::from(&text).digest().to_string();
        Loaded { text, hash }
    };
    Script::ALL.into_iter().map(load).collect()
});
