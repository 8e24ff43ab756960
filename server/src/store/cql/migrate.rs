//! `roomwire store migrate`: keyspace and tables from the files of `server/schema/cql`, as often as one likes.
//!
//! The table `schema_version` notes each file that was run, so that a later program finds what is left to do, and an
//! older one that it must not touch this. What it never does: change a keyspace that is there, or drop anything.

use super::CqlConfig;
use super::link::{self, SCHEMA_VERSION, Trouble};
use scylla::client::session::Session;
use scylla::errors::{DbError, ExecutionError};
use scylla::statement::{Consistency, Statement};
use std::time::Duration;

/// Each version's statements.
const FILES: [(i32, &str); 1] = [(1, include_str!("../../../schema/cql/0001-tables.cql"))];
/// A change of the schema may take so long.
const CHANGE_MAX: Duration = Duration::from_secs(30);
/// About so many files cover the time that messages are kept.
const WINDOWS: u64 = 20;
/// The window where messages are kept for ever.
const WINDOW_DAYS_ENDLESS: u64 = 30;

/// How a keyspace that does not exist yet is replicated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Replication {
    /// So many copies in each data centre.
    Everywhere(u8),
    /// (data centre, copies).
    PerDc(Vec<(String, u8)>),
}

impl std::str::FromStr for Replication {
    type Err = String;

    fn from_str(text: &str) -> Result<Replication, String> {
        let wrong = || "expected a number of copies such as 3, or data centres such as dc1:3,dc2:3".to_owned();
        let copies = |text: &str| text.trim().parse::<u8>().ok().filter(|copies| *copies > 0).ok_or_else(wrong);
        if !text.contains(':') {
            return Ok(Replication::Everywhere(copies(text)?));
        }
        let parts = text.split(',').map(|part| {
            let (dc, number) = part.split_once(':').ok_or_else(wrong)?;
            let dc = dc.trim();
            let valid = |letter: char| letter.is_ascii_alphanumeric() || "_-.".contains(letter);
            if dc.is_empty() || !dc.chars().all(valid) {
                return Err(wrong());
            }
            Ok((dc.to_owned(), copies(number)?))
        });
        Ok(Replication::PerDc(parts.collect::<Result<_, String>>()?))
    }
}

impl Replication {
    fn cql(&self) -> String {
        let parts = match self {
            Replication::Everywhere(copies) => format!(", 'replication_factor': '{copies}'"),
            Replication::PerDc(dcs) => dcs.iter().map(|(dc, copies)| format!(", '{dc}': '{copies}'")).collect(),
        };
        format!("{{'class': 'NetworkTopologyStrategy'{parts}}}")
    }
}

/// What a migration found and did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Migrated {
    /// The version before; 0 where there was no schema.
    pub from: i32,
    /// The version now.
    pub to: i32,
    /// Whether the keyspace was made.
    pub made_keyspace: bool,
}

/// Brings the keyspace to this program's version.
///
/// # Errors
/// One line for the operator.
pub fn migrate(config: &CqlConfig, replication: &Replication) -> Result<Migrated, String> {
    super::blocking(config, async |config, tls| {
        let session = link::connect(config, tls).await?;
        let made_keyspace = make_keyspace(&session, &config.keyspace, replication).await?;
        let keyspace = &config.keyspace;
        change(
            &session,
            format!(
                "CREATE TABLE IF NOT EXISTS {keyspace}.schema_version (name text, version int, applied_at timestamp, \
                 PRIMARY KEY (name, version))"
            ),
        )
        .await?;
        let from = link::schema_version(&session, keyspace).await?;
        if from > SCHEMA_VERSION {
            return Err(Trouble::Refused(link::other_version(keyspace, from)));
        }
        session.use_keyspace(keyspace.as_str(), false).await.map_err(|error| Trouble::Passing(error.to_string()))?;
        let window_days = window_days(config.retention).to_string();
        for (version, file) in FILES.iter().filter(|(version, _)| *version > from) {
            for statement in statements(file) {
                change(&session, statement.replace("$WINDOW_DAYS", &window_days)).await?;
            }
            // Also a plain write: two migrations at once write the same.
            let note = format!(
                "INSERT INTO {keyspace}.schema_version (name, version, applied_at) VALUES ('roomwire', {version}, toTimestamp(now()))"
            );
            change(&session, note).await?;
        }
        Ok(Migrated { from, to: SCHEMA_VERSION, made_keyspace })
    })
}

/// The statements of a file, without its comments.
fn statements(file: &str) -> Vec<String> {
    let code: Vec<&str> = file.lines().filter(|line| !line.trim_start().starts_with("--")).collect();
    code.join("\n").split(';').map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()).collect()
}

fn window_days(retention: Duration) -> u64 {
    if retention.is_zero() { WINDOW_DAYS_ENDLESS } else { retention.as_secs().div_ceil(WINDOWS * super::DAY.as_secs()) }
}

/// Makes the keyspace if it is missing; whether it was. Nothing is asked of an existing one, not even the right to
/// make one.
async fn make_keyspace(session: &Session, keyspace: &str, replication: &Replication) -> Result<bool, Trouble> {
    let look = Statement::new("SELECT keyspace_name FROM system_schema.keyspaces WHERE keyspace_name = ?");
    let found = session.query_unpaged(look, (keyspace,)).await?;
    let found = found.into_rows_result().map_err(|error| Trouble::Passing(error.to_string()))?;
    if found.rows_num() > 0 {
        return Ok(false);
    }
    let replication = replication.cql();
    change(
        session,
        format!("CREATE KEYSPACE IF NOT EXISTS {keyspace} WITH replication = {replication} AND durable_writes = true"),
    )
    .await?;
    Ok(true)
}

/// Runs one statement of a migration.
async fn change(session: &Session, text: String) -> Result<(), Trouble> {
    let mut statement = Statement::new(text);
    statement.set_is_idempotent(true);
    statement.set_request_timeout(Some(CHANGE_MAX));
    statement.set_consistency(Consistency::LocalQuorum);
    match session.query_unpaged(statement, ()).await {
        Ok(_) => Ok(()),
        Err(error) => Err(explained(&error)),
    }
}

fn explained(error: &ExecutionError) -> Trouble {
    match link::db_error(error) {
        Some(DbError::Unauthorized) => Trouble::Refused(
            "store.cql.user may not change the schema: migrate as a user who may CREATE, and grant SELECT and MODIFY to the \
             one that serves"
                .to_owned(),
        ),
        Some(DbError::Unavailable { .. }) => Trouble::Passing(format!(
            "too few nodes are up for a quorum of the keyspace ({error}): is its replication above the number of nodes?"
        )),
        _ => Trouble::Passing(error.to_string()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that fails may panic")]
mod tests {
    use super::*;

    #[test]
    fn replication_is_a_number_or_one_for_each_data_centre() {
        let cql = |text: &str| text.parse::<Replication>().map(|replication| replication.cql());
        assert_eq!(cql("3").unwrap(), "{'class': 'NetworkTopologyStrategy', 'replication_factor': '3'}");
        assert_eq!(cql("dc1:3, dc2:2").unwrap(), "{'class': 'NetworkTopologyStrategy', 'dc1': '3', 'dc2': '2'}");
        for wrong in ["", "0", "x", "dc1:", ":3", "dc1:0", "dc1:3,", "d'c:3", "300"] {
            assert!(cql(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn files_are_split_into_statements_and_the_last_is_our_version() {
        for (place, (version, file)) in (1i32..).zip(FILES) {
            assert_eq!(version, place);
            let statements = statements(file);
            assert!(
                !statements.is_empty() && statements.iter().all(|text| text.starts_with("CREATE TABLE IF NOT EXISTS "))
            );
        }
        assert_eq!(FILES.last().map(|file| file.0), Some(SCHEMA_VERSION));
        let windows = [0, 1, 30, 365].map(|days| window_days(super::super::DAY * days));
        assert_eq!(windows, [30, 1, 2, 19]);
    }
}
