//! `roomwire store ...`: what an operator does to a store without a running node.

mod transfer;

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
    /// Write rooms and messages as JSON lines, for `import` or for keeping
    Export(transfer::ExportArgs),
    /// Take rooms and messages from an export; running it twice is as good as once
    Import(transfer::ImportArgs),
    /// Say what the store holds
    Stat(transfer::StatArgs),
}

/// `migrate` and `measure` are about the cluster, whatever `store.kind` says, and the others take a kind of their own: so
/// the keys of that store are checked too.
pub(super) fn prepare(set: &mut Vec<String>, args: &StoreArgs) {
    let kind = match &args.command {
        StoreCommand::Migrate { .. } | StoreCommand::Measure(_) => Some("cql"),
        StoreCommand::Export(args) => args.which.kind(),
        StoreCommand::Import(args) => args.which.kind(),
        StoreCommand::Stat(args) => args.which.kind(),
    };
    set.extend(kind.map(|kind| format!("store.kind={kind}")));
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
        StoreCommand::Export(args) => transfer::export(settings, args),
        StoreCommand::Import(args) => transfer::import(settings, args),
        StoreCommand::Stat(args) => transfer::stat(settings, args),
    }
}
