//! The real Cassandra of the tests: `ROOMWIRE_TEST_CASSANDRA` names the directory of a `scripts/cassandra up --secure --dir ...`;
//! `scripts/test` starts one. Without it these tests say so and pass.

#![allow(dead_code, reason = "each test uses a part of it")]

use roomwire::config::Secret;
use roomwire::store::cql::CqlConfig;
use roomwire::store::cql::migrate::{Replication, migrate};
use std::path::{Path, PathBuf};

pub(crate) fn directory() -> Option<PathBuf> {
    let directory = std::env::var_os("ROOMWIRE_TEST_CASSANDRA").map(PathBuf::from);
    if directory.is_none() {
        println!("skipped: ROOMWIRE_TEST_CASSANDRA names no Cassandra (see scripts/cassandra)");
    }
    directory
}

pub(crate) fn config(directory: &Path, keyspace: &str) -> CqlConfig {
    let address = std::fs::read_to_string(directory.join("address")).expect("scripts/cassandra wrote it");
    CqlConfig {
        user: Some("cassandra".to_owned()),
        password: Some(Secret::new("cassandra".to_owned())),
        ..CqlConfig::new(address.trim().split(',').map(str::to_owned).collect(), keyspace.to_owned())
    }
}

/// A new keyspace of this run, with the schema in it.
pub(crate) fn keyspace(directory: &Path, name: &str) -> CqlConfig {
    let config = config(directory, &format!("{name}{}", std::process::id()));
    let migrated = migrate(&config, &Replication::Everywhere(1)).expect("the schema is made");
    assert!(migrated.made_keyspace);
    config
}
