//! `roomwire store ...`: what an operator does to a store without a running node.

use super::Failure;
use super::measure::{Measure, measure};
use crate::boot;
use crate::config::Settings;
use crate::store::cql::migrate::{Replication, migrate};
use clap::{Args, Subcommand};

#[derive(Debug, Args)]
pub(super) struct StoreArgs {
    #[command(subcommand)]
    pub(super) command: StoreCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum StoreCommand {
    /// Make keyspace and tables in Cassandra or ScyllaDB, or bring them to this version
    Migrate {
        /// Copies of each row, where the keyspace is missing: a number, or one for each data centre (dc1:3,dc2:3)
        #[arg(long, value_name = "COPIES", default_value = "3")]
        replication: Replication,
    },
    /// Measure how many messages a second the cluster takes, by appends to rooms named roomwire-measure-*; kept for a day
    Measure(Measure),
}

/// `migrate` and `measure` are about the cluster, whatever `store.kind` says: so its keys are checked too.
pub(super) fn prepare(set: &mut Vec<String>, args: &StoreArgs) {
    match args.command {
        StoreCommand::Migrate { .. } | StoreCommand::Measure(_) => set.push("store.kind=cql".to_owned()),
    }
}

pub(super) fn run(settings: &Settings, args: &StoreArgs) -> Result<(), Failure> {
    match &args.command {
        StoreCommand::Migrate { replication } => {
            let config = boot::cql_config(settings);
            let done = migrate(&config, replication).map_err(Failure::runtime)?;
            let keyspace = &config.keyspace;
            if done.made_keyspace {
                super::print(&format!("made keyspace {keyspace}"));
            }
            super::print(&match done.from == done.to {
                true => format!("keyspace {keyspace} has schema version {}: nothing to do", done.to),
                false => format!("keyspace {keyspace} is at schema version {}", done.to),
            });
            Ok(())
        }
        StoreCommand::Measure(ask) => {
            super::print(&measure(boot::cql_config(settings), ask)?);
            Ok(())
        }
    }
}
