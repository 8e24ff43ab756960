//! From addresses to a connection that may be used: where the master is, TLS and login, and the check that this server
//! can do what the protocol needs.

use super::commands::Dialect;
use super::config::{Address, Login, RedisConfig, Servers};
use super::scripts::Script;
use super::shared::Shared;
use redis::aio::{AsyncPushSender, MultiplexedConnection};
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ErrorKind, IntoConnectionInfo, Pipeline, ProtocolVersion,
    RedisConnectionInfo, RedisError, TlsCertificates, Value, cmd, io::tcp::TcpSettings,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// The least version: scripts that may call INFO and TIME and then write, sharded pub/sub, ACL selectors.
const MAJOR_MIN: u32 = 7;

/// How often the Sentinels are asked.
const SENTINEL_LOOK: Duration = Duration::from_secs(1);
/// The same while there is no connection.
const SENTINEL_LOOK_SOON: Duration = Duration::from_millis(250);

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ConnectError {
    /// Only the operator can put it right: one line with cause and cure.
    Operator(String),
    /// It may be better at the next try.
    Away(String),
}

impl ConnectError {
    /// The line for people.
    #[must_use]
    pub(super) fn text(&self) -> &str {
        match self {
            ConnectError::Operator(text) | ConnectError::Away(text) => text,
        }
    }
}

/// A connection, and to where.
pub(super) struct Session {
    /// The connection.
    pub(super) connection: MultiplexedConnection,
    /// The server.
    pub(super) address: Address,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("address", &self.address).finish_non_exhaustive()
    }
}

/// A plain connection to one server.
///
/// # Errors
/// [`ConnectError`].
pub(super) async fn open(
    config: &RedisConfig,
    address: &Address,
    login: &Login,
    database: i64,
    push: Option<impl AsyncPushSender>,
) -> Result<MultiplexedConnection, ConnectError> {
    let client = client(config, address, login, database).map_err(|error| said(address, &error))?;
    let mut settings = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(config.timeout))
        .set_response_timeout(Some(config.timeout));
    if let Some(push) = push {
        settings = settings.set_push_sender(push);
    }
    // The crate's own limit covers the way to the TCP connection, not what a server that hangs then fails to say.
    let connecting = client.get_multiplexed_async_connection_with_config(&settings);
    match tokio::time::timeout(2 * config.timeout, connecting).await {
        Ok(connected) => connected.map_err(|error| said(address, &error)),
        Err(_) => Err(ConnectError::Away(format!("Redis at {address} accepts connections but does not answer"))),
    }
}

fn client(config: &RedisConfig, address: &Address, login: &Login, database: i64) -> Result<Client, RedisError> {
    let (host, port) = (address.host.clone(), address.port);
    let place = if config.tls {
        ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
    } else {
        ConnectionAddr::Tcp(host, port)
    };
    let mut redis = RedisConnectionInfo::default().set_db(database).set_protocol(ProtocolVersion::RESP3);
    if let Some(user) = &login.user {
        redis = redis.set_username(user);
    }
    if let Some(password) = &login.password {
        redis = redis.set_password(password.expose());
    }
    let tcp = TcpSettings::default().set_nodelay(true).set_user_timeout(2 * config.timeout);
    let info = place.into_connection_info()?.set_redis_settings(redis).set_tcp_settings(tcp);
    if config.tls {
        return Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert: config.ca.clone() });
    }
    Client::open(info)
}

/// A connection error in our words. Never holds a password: the crate's texts name none, and ours name the address.
fn said(address: &Address, error: &RedisError) -> ConnectError {
    let code = error.code().unwrap_or_default();
    let text = error.to_string();
    let login = "check user and password in bus.redis.url (or bus.redis.user, bus.redis.password)";
    match code {
        "WRONGPASS" => ConnectError::Operator(format!("Redis at {address} refuses the password: {login}")),
        "NOAUTH" => ConnectError::Operator(format!("Redis at {address} wants a password: {login}")),
        "NOPERM" => ConnectError::Operator(format!("Redis at {address}: this user may not connect: {text}")),
        _ if error.kind() == ErrorKind::AuthenticationFailed => {
            ConnectError::Operator(format!("Redis at {address} refuses the login: {login}"))
        }
        _ if error.kind() == ErrorKind::InvalidClientConfig => {
            ConnectError::Operator(format!("Redis at {address}: {text}: check bus.redis.url and bus.redis.ca_file"))
        }
        _ if text.contains("certificate") => ConnectError::Operator(format!(
            "Redis at {address}: {text}: give the certificate of its authority with bus.redis.ca_file, and the name that \
             it was made for in bus.redis.url"
        )),
        _ => ConnectError::Away(format!("Redis at {address}: {text}")),
    }
}

/// Where the master is, as of now; of a cluster, any node.
///
/// # Errors
/// No Sentinel answers, or none knows the master.
pub(super) async fn master(shared: &Shared) -> Result<Address, ConnectError> {
    let config = &shared.config;
    match &config.servers {
        Servers::Single(address) => Ok(address.clone()),
        Servers::Cluster(_) => {
            shared.next_node().ok_or_else(|| ConnectError::Operator("bus.redis.cluster names no node".to_owned()))
        }
        Servers::Sentinel { nodes, master, login } => {
            let mut last = ConnectError::Operator("bus.redis.sentinel.nodes names no node".to_owned());
            for node in nodes {
                match ask_sentinel(config, node, master, login).await {
                    Ok(address) => return Ok(address),
                    Err(error) => last = error,
                }
            }
            Err(last)
        }
    }
}

/// Connects to the master by `attempt`. Where the Sentinels name another one meanwhile, that one is tried in its place: an old
/// master that hangs takes connections still, and would hold the attempt for as long as the timeout.
///
/// # Errors
/// Those of [`master`], or of the attempt.
pub(super) async fn with_master<T, F: Future<Output = Result<T, ConnectError>>>(
    shared: &Shared,
    attempt: impl Fn(Address) -> F,
) -> Result<T, ConnectError> {
    let mut address = master(shared).await?;
    loop {
        tokio::select! {
            biased;
            done = attempt(address.clone()) => return done,
            named = named_anew(shared, &address) => address = named,
        }
    }
}

/// The master, once the Sentinels name another than this one.
async fn named_anew(shared: &Shared, address: &Address) -> Address {
    if !matches!(shared.config.servers, Servers::Sentinel { .. }) {
        return std::future::pending().await;
    }
    loop {
        tokio::time::sleep(SENTINEL_LOOK_SOON).await;
        if let Ok(named) = master(shared).await
            && named != *address
        {
            return named;
        }
    }
}

async fn ask_sentinel(
    config: &RedisConfig,
    node: &Address,
    master: &str,
    login: &Login,
) -> Result<Address, ConnectError> {
    let mut connection = open(config, node, login, 0, None::<NoPush>).await?;
    let mut ask = cmd("SENTINEL");
    ask.arg("GET-MASTER-ADDR-BY-NAME").arg(master);
    match ask.query_async::<Option<(String, u16)>>(&mut connection).await {
        Ok(Some((host, port))) => Ok(Address { host, port }),
        Ok(None) => Err(ConnectError::Operator(format!(
            "the Sentinel at {node} knows no master `{master}`: check bus.redis.sentinel.master_name"
        ))),
        Err(error) => Err(said(node, &error)),
    }
}

/// Asks the Sentinels for as long as the bus lives, and tells both connections when the master is elsewhere: an old master that
/// is cut off from the Sentinels would go on answering.
pub(super) async fn follow_sentinels(shared: Arc<Shared>, place: watch::Sender<Option<Address>>) {
    while !shared.inward.is_closed() {
        tokio::time::sleep(SENTINEL_LOOK).await;
        // While there is no connection, whoever makes the next one asks.
        let Some(current) = place.borrow().clone() else { continue };
        if let Ok(named) = master(&shared).await {
            place.send_if_modified(|place| {
                let moved = place.as_ref() == Some(&current) && named != current;
                if moved {
                    *place = Some(named);
                }
                moved
            });
        }
    }
}

/// For connections that nobody listens on.
pub(super) type NoPush = tokio::sync::mpsc::UnboundedSender<redis::PushInfo>;

/// Loads the scripts.
///
/// # Errors
/// The connection's, or that of the first script that was refused.
pub(super) async fn load_scripts(connection: &mut MultiplexedConnection) -> Result<(), RedisError> {
    let mut pipeline = Pipeline::new();
    for script in Script::ALL {
        pipeline.add_command(script.load());
    }
    pipeline.query_async::<Vec<String>>(connection).await.map(|_| ())
}

/// Whether this server can be the bus; loads the scripts on the way.
///
/// # Errors
/// What is wrong, with its cure.
pub(super) async fn check(
    config: &RedisConfig,
    dialect: &Dialect,
    Session { connection, address }: &mut Session,
) -> Result<(), ConnectError> {
    let mut ask = Pipeline::new();
    ask.cmd("INFO").arg("server").cmd("INFO").arg("memory").cmd("INFO").arg("replication");
    let info = connection.send_packed_commands(&ask, 0, 3).await.map_err(|error| said(address, &error))?;
    let texts: Vec<&str> = info.iter().filter_map(text).collect();
    let [server, memory, replication] = texts[..] else {
        return Err(ConnectError::Operator(format!(
            "Redis at {address}: this user may not call INFO: grant what docs/operations.md lists"
        )));
    };
    check_info(config, address, server, memory, replication)?;
    load_scripts(connection).await.map_err(|error| match error.code() {
        Some("NOPERM") => ConnectError::Operator(format!(
            "Redis at {address}: this user may not load scripts: grant what docs/operations.md lists ({error})"
        )),
        _ => said(address, &error),
    })?;
    let mut call = Script::Check.call(CHECK_ROOM);
    call.arg(dialect.publish()).arg(dialect.channel(CHECK_ROOM));
    let wrong = match connection.send_packed_command(&call).await {
        Ok(Value::Array(wrong)) => wrong.iter().filter_map(text).map(str::to_owned).next(),
        Ok(Value::ServerError(error)) if error.code() == "MOVED" => None,
        Ok(Value::ServerError(error)) => Some(error.to_string()),
        Ok(_) => None,
        Err(error) => return Err(said(address, &error)),
    };
    // What a server says while it is full, lacks its replicas or cannot save: it may be better later.
    let may_pass = |wrong: &str| ["OOM", "NOREPLICAS", "MISCONF", "READONLY"].iter().any(|code| wrong.contains(code));
    match wrong {
        None => Ok(()),
        Some(wrong) if may_pass(&wrong) => Err(ConnectError::Away(format!("Redis at {address}: {wrong}"))),
        Some(wrong) => Err(ConnectError::Operator(format!(
            "Redis at {address}: this user may not do what the scripts need: {wrong}: grant what docs/operations.md lists"
        ))),
    }
}

/// No client can name it: it holds a blank.
const CHECK_ROOM: &str = "rw check";

fn check_info(
    config: &RedisConfig,
    address: &Address,
    server: &str,
    memory: &str,
    replication: &str,
) -> Result<(), ConnectError> {
    let version = field(server, "redis_version").unwrap_or("unknown");
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok()).unwrap_or(0);
    if major < MAJOR_MIN {
        return Err(ConnectError::Operator(format!(
            "Redis at {address} is of version {version}: Roomwire needs Redis {MAJOR_MIN}.0 or later, or Valkey"
        )));
    }
    let policy = field(memory, "maxmemory_policy").unwrap_or("noeviction");
    if policy != "noeviction" {
        return Err(ConnectError::Operator(format!(
            "Redis at {address} has maxmemory-policy {policy}, which would drop the order of rooms in silence: set it to \
             noeviction (CONFIG SET maxmemory-policy noeviction, and in redis.conf)"
        )));
    }
    if field(replication, "role") != Some("master") {
        let text = format!("Redis at {address} is a replica");
        return Err(match &config.servers {
            Servers::Single(_) => ConnectError::Operator(format!(
                "{text}: name the master in bus.redis.url, or let Sentinel name it (bus.redis.sentinel.nodes)"
            )),
            _ => ConnectError::Away(format!("{text} still, though it was named as the master")),
        });
    }
    let is_cluster = is_cluster(server);
    let expects = matches!(config.servers, Servers::Cluster(_));
    if is_cluster != expects {
        return Err(ConnectError::Operator(if is_cluster {
            format!("Redis at {address} is part of a cluster: name its nodes in bus.redis.cluster")
        } else {
            format!("Redis at {address} is no cluster: leave out bus.redis.cluster, and name it in bus.redis.url")
        }));
    }
    Ok(())
}

/// Whether this is a node of a cluster, by INFO: Redis and Valkey have a name each for that.
fn is_cluster(server: &str) -> bool {
    field(server, "redis_mode").or_else(|| field(server, "server_mode")) == Some("cluster")
}

/// A field of INFO.
fn field<'i>(info: &'i str, name: &str) -> Option<&'i str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// A reply's text.
pub(super) fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_known_by_the_words_of_redis_and_of_valkey() {
        assert!(is_cluster("# Server\r\nredis_version:7.0.15\r\nredis_mode:cluster\r\nos:Linux\r\n"));
        assert!(is_cluster("# Server\r\nredis_version:7.2.4\r\nvalkey_version:9.1.2\r\nserver_mode:cluster\r\n"));
        assert!(!is_cluster("# Server\r\nredis_version:7.0.15\r\nredis_mode:standalone\r\n"));
    }
}
