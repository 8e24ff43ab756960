//! What `roomwire doctor` wants to know of the cluster, without a node: whether its schema will do, how far away a majority
//! is, how many copies it keeps.

use super::CqlConfig;
use super::link::{self, Link, Trouble};
use scylla::cluster::metadata::Strategy;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How many reads are measured.
const READS: usize = 30;

/// What was found.
#[derive(Clone, Debug)]
pub struct Examined {
    /// Nodes that are known.
    pub nodes: usize,
    /// How long a read of a majority took, ascending.
    pub reads: Vec<Duration>,
    /// The copies of each message, in the data centre that has fewest; `None` if the strategy is not known.
    pub copies: Option<usize>,
}

/// Looks at the keyspace that the configuration names, and writes nothing.
///
/// # Errors
/// Why a node could not use it: one line.
pub fn examine(config: &CqlConfig) -> Result<Examined, String> {
    let tls = link::tls(config)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let looked = runtime.map_err(|error| error.to_string())?.block_on(async {
        let link = link::open(config, tls).await?;
        link::check_whole(&link.session, &config.keyspace).await?;
        look(config, &link).await
    });
    looked.map_err(|trouble: Trouble| trouble.to_string())
}

async fn look(config: &CqlConfig, link: &Link) -> Result<Examined, Trouble> {
    let mut reads = Vec::with_capacity(READS);
    for _ in 0..READS {
        let began = Instant::now();
        link.session.execute_unpaged(&link.statements.version, ()).await?;
        reads.push(began.elapsed());
    }
    reads.sort_unstable();
    let state = link.session.get_cluster_state();
    let copies = state.get_keyspace(&config.keyspace).and_then(|keyspace| match &keyspace.strategy {
        Strategy::SimpleStrategy { replication_factor } => Some(*replication_factor),
        Strategy::NetworkTopologyStrategy { datacenter_repfactors } => {
            copies(datacenter_repfactors, config.dc.as_deref())
        }
        _ => None,
    });
    Ok(Examined { nodes: state.get_nodes_info().len(), reads, copies })
}

/// Of the data centre that is asked, or else of the one with fewest.
fn copies(by_dc: &HashMap<String, usize>, dc: Option<&str>) -> Option<usize> {
    dc.map_or_else(|| by_dc.values().min().copied(), |dc| by_dc.get(dc).copied())
}
