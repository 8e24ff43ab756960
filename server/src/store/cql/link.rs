//! One session with the cluster: connect, look at the schema, prepare; and what its errors mean to an operator.
//!
//! Called by the worker and by the commands `roomwire store ...`. Nothing here knows rooms or messages.

use super::CqlConfig;
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use scylla::client::PoolSize;
use scylla::client::execution_profile::{ExecutionProfile, ExecutionProfileHandle};
use scylla::client::session::{Session, TlsContext};
use scylla::client::session_builder::SessionBuilder;
use scylla::errors::{
    ConnectionError, ConnectionPoolError, ConnectionSetupRequestErrorKind, DbError, ExecutionError, MetadataError,
    NewSessionError, PrepareError, RequestAttemptError,
};
use scylla::policies::load_balancing::DefaultPolicy;
use scylla::policies::speculative_execution::SimpleSpeculativeExecutionPolicy;
use scylla::statement::prepared::PreparedStatement;
use scylla::statement::{Consistency, SerialConsistency, Statement};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

/// The version of the schema that this program writes and reads.
pub(super) const SCHEMA_VERSION: i32 = 1;

/// How long the driver may take for one connection, or for what it asks the cluster about itself.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// A silent connection is asked for a sign of life so often, and dropped if none comes within as long again.
const KEEPALIVE: Duration = Duration::from_secs(3);

/// Why something could not be done.
#[derive(Clone, Debug)]
pub(super) enum Trouble {
    /// The cluster answers, and will go on answering so until somebody changes something.
    Refused(String),
    /// It may pass by itself.
    Passing(String),
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Trouble::Refused(text) | Trouble::Passing(text)) = self;
        f.write_str(text)
    }
}

impl From<ExecutionError> for Trouble {
    fn from(error: ExecutionError) -> Trouble {
        Trouble::Passing(error.to_string())
    }
}

/// A session, with the statements that the store needs.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) session: Session,
    pub(super) statements: Statements,
    /// For batches, which carry no profile of their own.
    pub(super) writes: ExecutionProfileHandle,
}

/// Every prepared statement.
#[derive(Debug)]
pub(super) struct Statements {
    pub(super) insert_message: PreparedStatement,
    pub(super) insert_marker: PreparedStatement,
    pub(super) add_reader: PreparedStatement,
    pub(super) select_place: PreparedStatement,
    pub(super) select_oldest: PreparedStatement,
    pub(super) select_newest: PreparedStatement,
    pub(super) probe: PreparedStatement,
    pub(super) select_bucket: PreparedStatement,
    pub(super) insert_bucket: PreparedStatement,
    pub(super) buckets_up: PreparedStatement,
    pub(super) buckets_down: PreparedStatement,
    pub(super) select_meta: PreparedStatement,
    pub(super) select_generation: PreparedStatement,
    pub(super) select_begun: PreparedStatement,
    pub(super) select_tail: PreparedStatement,
    pub(super) advance: PreparedStatement,
    pub(super) set_base: PreparedStatement,
    pub(super) void_if_owner: PreparedStatement,
    pub(super) void: PreparedStatement,
    pub(super) select_floor: PreparedStatement,
    pub(super) set_floor: PreparedStatement,
    pub(super) version: PreparedStatement,
}

/// The columns of a whole message, in the order of `read::MessageColumns`.
const MESSAGE: &str = "seq, gen, kind, attempt, client_id, user_id, username, content, created_at, read_by";

/// TLS as the configuration wants it: `None` without a CA file.
pub(super) fn tls(config: &CqlConfig) -> Result<Option<Arc<ClientConfig>>, String> {
    let Some(path) = &config.ca_file else { return Ok(None) };
    let unusable = |error: String| format!("store.cql.ca_file {}: {error}", path.display());
    let mut roots = rustls::RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| unusable(error.to_string()))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
        roots.add(certificate).map_err(|error| unusable(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(unusable("no certificate in it: it must hold the cluster's CA as PEM".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Some(Arc::new(tls)))
}

/// Connects, without looking at any keyspace.
pub(super) async fn connect(config: &CqlConfig, tls: Option<Arc<ClientConfig>>) -> Result<Session, Trouble> {
    let mut builder = SessionBuilder::new()
        .known_nodes(&config.nodes)
        .tls_context(tls.map(TlsContext::Rustls023))
        .default_execution_profile_handle(profile(config, Duration::ZERO))
        .pool_size(PoolSize::PerShard(NonZeroUsize::MIN))
        .tcp_nodelay(true)
        .connection_timeout(CONNECT_MAX)
        .hostname_resolution_timeout(Some(CONNECT_MAX))
        .metadata_request_clientside_timeout(CONNECT_MAX)
        .keepalive_interval(KEEPALIVE)
        .keepalive_timeout(KEEPALIVE)
        .keyspaces_to_fetch([config.keyspace.as_str()]);
    if let (Some(user), Some(password)) = (&config.user, &config.password) {
        builder = builder.user(user, password.expose());
    }
    let nodes = config.nodes.join(",");
    match builder.build().await {
        Ok(session) => Ok(session),
        Err(error) if wants_password(&error) => Err(Trouble::Refused(format!(
            "Cassandra at {nodes} asks for a password: set store.cql.user and store.cql.password"
        ))),
        Err(error) if is_login_refused(&error) => {
            let user = config.user.as_deref().unwrap_or_default();
            Err(Trouble::Refused(format!(
                "Cassandra at {nodes} refuses user \"{user}\": check store.cql.user and store.cql.password"
            )))
        }
        Err(error) => Err(Trouble::Passing(format!("Cassandra at {nodes} cannot be reached: {error}"))),
    }
}

/// How statements are sent; reads speculate.
fn profile(config: &CqlConfig, speculate_after: Duration) -> ExecutionProfileHandle {
    let mut policy = DefaultPolicy::builder().token_aware(true).permit_dc_failover(false);
    if let Some(dc) = &config.dc {
        policy = policy.prefer_datacenter(dc.clone());
    }
    let mut profile = ExecutionProfile::builder()
        .consistency(Consistency::LocalQuorum)
        .serial_consistency(Some(SerialConsistency::LocalSerial))
        .request_timeout(Some(config.timeout))
        .load_balancing_policy(policy.build());
    if !speculate_after.is_zero() {
        let speculation = SimpleSpeculativeExecutionPolicy { max_retry_count: 1, retry_interval: speculate_after };
        profile = profile.speculative_execution_policy(Some(Arc::new(speculation)));
    }
    profile.build().into_handle()
}

fn setup_error(error: &NewSessionError) -> Option<&ConnectionSetupRequestErrorKind> {
    let NewSessionError::MetadataError(MetadataError::ConnectionPoolError(ConnectionPoolError::Broken {
        last_connection_error: ConnectionError::ConnectionSetupRequestError(error),
    })) = error
    else {
        return None;
    };
    Some(&error.error)
}

fn wants_password(error: &NewSessionError) -> bool {
    matches!(setup_error(error), Some(ConnectionSetupRequestErrorKind::MissingAuthentication))
}

fn is_login_refused(error: &NewSessionError) -> bool {
    matches!(setup_error(error), Some(ConnectionSetupRequestErrorKind::DbError(DbError::AuthenticationError, _)))
}

/// Connects to a keyspace whose schema is ours, and prepares the statements.
pub(super) async fn open(config: &CqlConfig, tls: Option<Arc<ClientConfig>>) -> Result<Link, Trouble> {
    let session = connect(config, tls).await?;
    let version = schema_version(&session, &config.keyspace).await?;
    if version != SCHEMA_VERSION {
        return Err(Trouble::Refused(other_version(&config.keyspace, version)));
    }
    let writes = profile(config, Duration::ZERO);
    let statements = prepare_all(&session, config, &writes).await?;
    Ok(Link { session, statements, writes })
}

/// What to say about a schema that is not ours.
pub(super) fn other_version(keyspace: &str, version: i32) -> String {
    if version > SCHEMA_VERSION {
        format!(
            "keyspace {keyspace} has schema version {version}, this roomwire knows up to {SCHEMA_VERSION}: upgrade it \
             (`apt install ./roomwire_VERSION.deb`) to the one that migrated the keyspace, or a later one"
        )
    } else {
        format!(
            "keyspace {keyspace} has schema version {version}, this roomwire needs {SCHEMA_VERSION}: run `roomwire store migrate`"
        )
    }
}

/// The version of the keyspace's schema, which `roomwire store migrate` noted; 0 where there is none.
pub(super) async fn schema_version(session: &Session, keyspace: &str) -> Result<i32, Trouble> {
    let text = format!("SELECT version FROM {keyspace}.schema_version WHERE name = 'roomwire'");
    let mut statement = Statement::new(text);
    statement.set_is_idempotent(true);
    match session.query_unpaged(statement, ()).await {
        Ok(result) => {
            let rows = result.into_rows_result().map_err(|error| Trouble::Passing(error.to_string()))?;
            let rows = rows.rows::<(i32,)>().map_err(|error| Trouble::Passing(error.to_string()))?;
            Ok(rows.filter_map(Result::ok).map(|(version,)| version).max().unwrap_or(0))
        }
        Err(error) => match db_error(&error) {
            // The keyspace or the table does not exist.
            Some(DbError::Invalid) => Err(Trouble::Refused(format!(
                "keyspace {keyspace} has no schema of roomwire: run `roomwire store migrate`, or correct store.cql.keyspace"
            ))),
            Some(DbError::Unauthorized) => Err(Trouble::Refused(format!(
                "store.cql.user may not read keyspace {keyspace}: grant it SELECT and MODIFY there"
            ))),
            _ => Err(error.into()),
        },
    }
}

/// The row of `schema_version` that stands there while the keyspace is not whole.
pub(super) const IMPORT: &str = "import";

/// Whether no import is under way, or broke off.
pub(super) async fn check_whole(session: &Session, keyspace: &str) -> Result<(), Trouble> {
    let mut statement =
        Statement::new(format!("SELECT version FROM {keyspace}.schema_version WHERE name = '{IMPORT}'"));
    statement.set_is_idempotent(true);
    let result = session.query_unpaged(statement, ()).await?;
    let rows = result.into_rows_result().map_err(|error| Trouble::Passing(error.to_string()))?;
    if rows.rows_num() == 0 {
        return Ok(());
    }
    Err(Trouble::Refused(format!(
        "keyspace {keyspace} holds an import that did not finish: run `roomwire store import` once more with the whole file (or, \
         to go on with what is there, DELETE FROM {keyspace}.schema_version WHERE name = '{IMPORT}')"
    )))
}

/// What the cluster itself said, if it said something.
pub(super) fn db_error(error: &ExecutionError) -> Option<&DbError> {
    match error {
        ExecutionError::LastAttemptError(RequestAttemptError::DbError(error, _)) => Some(error),
        _ => None,
    }
}

async fn prepare_all(
    session: &Session,
    config: &CqlConfig,
    writes: &ExecutionProfileHandle,
) -> Result<Statements, Trouble> {
    let keyspace = &config.keyspace;
    let reads = profile(config, config.speculate_after);
    let (messages, meta, buckets) =
        (format!("{keyspace}.messages"), format!("{keyspace}.room_meta"), format!("{keyspace}.room_buckets"));
    let write = async |text: String| prepare(session, text, writes, true).await;
    let read = async |text: String| prepare(session, text, &reads, true).await;
    let serial = async |text: String| {
        let mut statement = prepare(session, text, &reads, true).await?;
        statement.set_consistency(Consistency::LocalSerial);
        Ok::<_, Trouble>(statement)
    };
    // A conditional write is never sent twice by the driver: what it did is asked, not guessed.
    let conditional = async |text: String| prepare(session, text, writes, false).await;
    let place = "room_id = ? AND bucket = ?";
    Ok(Statements {
        insert_message: write(format!(
            "INSERT INTO {messages} (room_id, bucket, seq, gen, kind, attempt, message_id, client_id, user_id, username, \
             content, created_at) VALUES (?, ?, ?, ?, 0, ?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ? AND TTL ?"
        ))
        .await?,
        insert_marker: write(format!(
            "INSERT INTO {messages} (room_id, bucket, seq, gen, kind, attempt, created_at) VALUES (?, ?, ?, ?, 1, 0, ?) USING TTL ?"
        ))
        .await?,
        add_reader: write(format!(
            "UPDATE {messages} USING TTL ? SET read_by = read_by + ? WHERE {place} AND seq = ? AND gen = ? AND kind = 0 AND attempt = ?"
        ))
        .await?,
        select_place: read(format!("SELECT {MESSAGE} FROM {messages} WHERE {place} AND seq = ?")).await?,
        select_oldest: read(format!(
            "SELECT {MESSAGE} FROM {messages} WHERE {place} AND seq >= ? AND seq <= ? ORDER BY seq ASC, gen ASC, kind DESC, attempt DESC"
        ))
        .await?,
        select_newest: read(format!("SELECT {MESSAGE} FROM {messages} WHERE {place} AND seq >= ? AND seq <= ?")).await?,
        probe: read(format!(
            "SELECT seq, kind, user_id FROM {messages} WHERE {place} AND seq >= ? AND seq <= ? ORDER BY seq ASC, gen ASC, kind DESC, attempt DESC"
        ))
        .await?,
        select_bucket: read(format!("SELECT created_at FROM {buckets} WHERE {place}")).await?,
        insert_bucket: write(format!("INSERT INTO {buckets} (room_id, bucket, created_at) VALUES (?, ?, ?)")).await?,
        buckets_up: read(format!(
            "SELECT bucket, created_at FROM {buckets} WHERE room_id = ? AND bucket >= ? AND bucket <= ? ORDER BY bucket ASC LIMIT ?"
        ))
        .await?,
        buckets_down: read(format!(
            "SELECT bucket, created_at FROM {buckets} WHERE room_id = ? AND bucket >= ? AND bucket <= ? LIMIT ?"
        ))
        .await?,
        // Both see every conditional write that was answered, and finish one that was not.
        select_meta: serial(format!("SELECT kind, n, gen, owner, base FROM {meta} WHERE room_id = ?")).await?,
        select_generation: serial(format!("SELECT gen FROM {meta} WHERE room_id = ? LIMIT 1")).await?,
        // Sees the conditional writes that were answered; far cheaper than a serial read.
        select_begun: read(format!("SELECT gen FROM {meta} WHERE room_id = ? LIMIT 1")).await?,
        // What a re-init needs of a room's last messages: not what they say.
        select_tail: read(format!(
            "SELECT seq, gen, kind, attempt, client_id, user_id, created_at FROM {messages} WHERE {place} AND seq >= ? \
             ORDER BY seq ASC, gen ASC, kind DESC, attempt DESC"
        ))
        .await?,
        advance: conditional(format!("UPDATE {meta} SET gen = ?, owner = ? WHERE room_id = ? IF gen = ?")).await?,
        set_base: conditional(format!(
            "UPDATE {meta} SET base = ? WHERE room_id = ? AND kind = 0 AND n = ? IF gen = ? AND owner = ?"
        ))
        .await?,
        void_if_owner: conditional(format!(
            "UPDATE {meta} SET base = ? WHERE room_id = ? AND kind = 1 AND n = ? IF gen = ? AND owner = ?"
        ))
        .await?,
        void: conditional(format!("UPDATE {meta} SET base = ? WHERE room_id = ? AND kind = 1 AND n = ? IF gen = ?")).await?,
        // What retention had removed before the room was imported.
        select_floor: read(format!("SELECT base FROM {meta} WHERE room_id = ? AND kind = 2 AND n = 0")).await?,
        set_floor: conditional(format!(
            "UPDATE {meta} SET base = ? WHERE room_id = ? AND kind = 2 AND n = 0 IF gen = ? AND owner = ?"
        ))
        .await?,
        version: read(format!("SELECT version FROM {keyspace}.schema_version WHERE name = 'roomwire'")).await?,
    })
}

async fn prepare(
    session: &Session,
    text: String,
    profile: &ExecutionProfileHandle,
    is_idempotent: bool,
) -> Result<PreparedStatement, Trouble> {
    let mut statement = session.prepare(text).await.map_err(|error| prepare_trouble(&error))?;
    statement.set_execution_profile_handle(Some(profile.clone()));
    statement.set_is_idempotent(is_idempotent);
    Ok(statement)
}

fn prepare_trouble(error: &PrepareError) -> Trouble {
    let text = error.to_string();
    match error {
        PrepareError::AllAttemptsFailed { first_attempt: RequestAttemptError::DbError(DbError::Invalid, why) } => {
            Trouble::Refused(format!("the schema lacks something ({why}): run `roomwire store migrate`"))
        }
        _ => Trouble::Passing(text),
    }
}
