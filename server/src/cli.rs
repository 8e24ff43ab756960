//! The command line: what `roomwire` can be asked, and how each command ends. Exit statuses are in [`Failure`].

mod generate;
mod measure;
mod store;

use crate::auth::{Authenticator, Mint};
use crate::config::{Host, Layers, Problems, Secret, Settings, Sources, show};
use crate::{boot, doctor, logs};
use clap::{Args, Parser, Subcommand};
use std::io::Write as _;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

/// How a command fails.
#[derive(Debug)]
pub struct Failure {
    /// The exit status: 1 at run time, 2 for the command line or a checked configuration, 78 (EX_CONFIG) where `serve`
    /// can never start like this.
    pub status: u8,
    /// What to print, one line for each cause.
    pub message: String,
}

impl Failure {
    /// It failed at run time; trying again may help.
    pub fn runtime(message: impl Into<String>) -> Failure {
        Failure { status: 1, message: message.into() }
    }

    /// The configuration that was to be checked or shown is wrong.
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure { status: 2, message: message.into() }
    }

    /// The configuration or this kernel will not do; trying again does not help.
    pub fn config(message: impl Into<String>) -> Failure {
        Failure { status: 78, message: message.into() }
    }
}

/// With the commit, which a figure means nothing without.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("BUILD_COMMIT"), ")");

/// A WebSocket server for rooms: one order, durable before seen, gapless resume.
#[derive(Debug, Parser)]
#[command(name = "roomwire", version, long_version = VERSION, propagate_version = true, arg_required_else_help = true)]
#[command(
    after_help = "Exit status: 0 done, 1 failed at run time, 2 wrong usage or configuration, 78 `serve` cannot start like this."
)]
pub struct Cli {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct ConfigArgs {
    /// The configuration file (TOML)
    #[arg(long, global = true, value_name = "FILE", env = "ROOMWIRE_CONFIG")]
    config: Option<PathBuf>,
    /// Set one key, as often as needed; goes before environment and file
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node
    Serve(ServeArgs),
    /// Say all that is wrong with the configuration; exit status 0 or 2
    CheckConfig(DevArgs),
    /// Show every effective value and where it came from, secrets hidden
    PrintConfig {
        #[command(flatten)]
        dev: DevArgs,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Look at this machine: what would keep a node from serving or limit it, and the cure; exit status 0, 1 or 78
    Doctor(DoctorArgs),
    /// Print a configuration file with every key and its default
    GenConfig,
    /// Mint a token for a user, signed with auth.secret
    Token(TokenArgs),
    /// Work on the store: its schema, moving rooms from one store to another, figures, speed
    Store(store::StoreArgs),
    /// Print the version
    Version,
    /// Write man pages, completions or the configuration reference
    #[command(hide = true)]
    Generate(generate::GenerateArgs),
}

#[derive(Clone, Copy, Debug, Args)]
struct DevArgs {
    /// As `serve --dev` would have it
    #[arg(long)]
    dev: bool,
}

#[derive(Clone, Copy, Debug, Args)]
struct ServeArgs {
    /// A local trial: loopback only, a secret of its own, the demo page. Insecure
    #[arg(long)]
    dev: bool,
    /// Answer each message with itself, and nothing else: for conformance runs
    #[arg(long)]
    echo: bool,
}

#[derive(Clone, Copy, Debug, Args)]
struct DoctorArgs {
    #[command(flatten)]
    dev: DevArgs,
    /// How many connections the node is to hold; by default what its configuration allows
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    connections: Option<u64>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct TokenArgs {
    #[command(flatten)]
    dev: DevArgs,
    /// The user's id: up to 123 of the characters A-Z a-z 0-9 _ . : -
    #[arg(long, value_name = "ID")]
    user: String,
    /// The name that others see; by default the id
    #[arg(long)]
    name: Option<String>,
    /// How long it is valid: seconds, or a number with s, m, h or d
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration_secs)]
    ttl: u64,
    /// A room it allows, as often as needed: GLOB, GLOB=join or GLOB=join,publish. By default all rooms
    #[arg(long = "room", visible_alias = "rooms", value_name = "GLOB[=RIGHTS]", value_parser = room_rights)]
    rooms: Vec<(String, bool, bool)>,
}

/// Runs what the command line asks.
///
/// # Errors
/// [`Failure`]: the status and the lines to end with.
pub fn run(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        Command::Serve(args) => serve(cli.config, args),
        Command::CheckConfig(args) => {
            let settings = settings(cli.config, args.dev).map_err(|problems| Failure::usage(problems.to_string()))?;
            for warning in &settings.warnings {
                eprintln!("warning: {warning}");
            }
            print("configuration is fine");
            Ok(())
        }
        Command::PrintConfig { dev, json } => {
            let settings = settings(cli.config, dev.dev).map_err(|problems| Failure::usage(problems.to_string()))?;
            let text = if json { show::effective_json(&settings) } else { show::effective_toml(&settings) };
            print(text.trim());
            Ok(())
        }
        Command::Doctor(args) => examine(cli.config, args),
        Command::GenConfig => {
            print(show::example().trim_end());
            Ok(())
        }
        Command::Token(args) => token(cli.config, args),
        Command::Store(args) => store_command(cli.config, &args),
        Command::Version => {
            print(&format!("roomwire {VERSION}"));
            Ok(())
        }
        Command::Generate(args) => generate::run(&args),
    }
}

/// Prints lines. A reader that has gone, as `head` does, is no error of ours.
fn print(lines: &str) {
    let _ = writeln!(std::io::stdout(), "{lines}");
}

fn settings(args: ConfigArgs, dev: bool) -> Result<Settings, Problems> {
    Settings::resolve(Layers::read(&sources(args))?, &Host::read(), dev)
}

fn sources(args: ConfigArgs) -> Sources {
    Sources { file: args.config, environment: std::env::vars_os().collect(), set: args.set }
}

fn serve(config: ConfigArgs, args: ServeArgs) -> Result<(), Failure> {
    let sources = sources(config);
    let read = Layers::read(&sources).and_then(|layers| Settings::resolve(layers, &Host::read(), args.dev));
    let settings = read.map_err(|problems| Failure::config(problems.to_string()))?;
    let filter = logs::start(&settings.config.log).map_err(Failure::config)?;
    let again = Box::new(move || Layers::read(&sources));
    boot::serve(&settings, args.echo, (again, filter))
}

fn examine(config: ConfigArgs, args: DoctorArgs) -> Result<(), Failure> {
    let settings = settings(config, args.dev.dev).map_err(|problems| Failure::config(problems.to_string()))?;
    let connections = args.connections.unwrap_or_else(|| {
        // Resolving filled it in.
        u64::from(settings.config.limits.connections_max.unwrap_or_default())
    });
    let report = doctor::examine(&settings, connections);
    if args.json {
        print(&serde_json::to_string_pretty(&report).unwrap_or_default());
    } else {
        print(&report.text());
    }
    match report.status() {
        0 => Ok(()),
        status => Err(Failure { status, message: String::new() }),
    }
}

fn store_command(mut config: ConfigArgs, args: &store::StoreArgs) -> Result<(), Failure> {
    store::prepare(&mut config.set, args);
    let settings = Layers::read(&sources(config)).and_then(|layers| Settings::resolve_for_store(layers, &Host::read()));
    store::run(&settings.map_err(|problems| Failure::usage(problems.to_string()))?, args)
}

fn token(config: ConfigArgs, args: TokenArgs) -> Result<(), Failure> {
    let settings = settings(config, args.dev.dev).map_err(|problems| Failure::usage(problems.to_string()))?;
    let secret = match settings.secret() {
        Some(secret) => secret.clone(),
        None if settings.dev => dev_secret(&settings)?,
        None => {
            return Err(Failure::usage(
                "no `auth.secret` to sign with: tokens of `auth.jwks` are made by their issuer",
            ));
        }
    };
    let limit = settings.config.limits.token_bytes_max;
    let authenticator = Authenticator::new(Some(&secret), None, &settings.config.auth, limit);
    let mint = Mint { user: args.user, name: args.name, ttl_secs: args.ttl, rooms: args.rooms };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let token = authenticator
        .mint(&mint, u64::try_from(now).unwrap_or(u64::MAX))
        .map_err(|rejected| Failure::usage(format!("such a token would be refused: {rejected}")))?;
    print(&token);
    Ok(())
}

/// The secret that `serve --dev` made.
fn dev_secret(settings: &Settings) -> Result<Secret, Failure> {
    let path = boot::dev_secret_path(settings);
    let text = std::fs::read_to_string(&path).map_err(|error| {
        Failure::runtime(format!("{}: {error}; `roomwire serve --dev` makes it at its first start", path.display()))
    })?;
    Ok(Secret::new(text.trim().to_owned()))
}

fn duration_secs(text: &str) -> Result<u64, String> {
    let (number, unit) = text.split_at(text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len()));
    let seconds = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err("expected seconds, or a number with s, m, h or d".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "expected a number, such as 90, 15m, 12h or 30d".to_owned())?;
    number.checked_mul(seconds).filter(|secs| *secs > 0).ok_or_else(|| "expected a time above zero".to_owned())
}

fn room_rights(text: &str) -> Result<(String, bool, bool), String> {
    let Some((room, rights)) = text.split_once('=') else { return Ok((text.to_owned(), true, true)) };
    let (mut join, mut publish) = (false, false);
    for right in rights.split(',') {
        match right.trim() {
            "join" => join = true,
            "publish" => publish = true,
            other => return Err(format!("unknown right `{other}`: expected join, publish, or both with a comma")),
        }
    }
    Ok((room.to_owned(), join, publish))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn times_are_numbers_with_units() {
        assert_eq!(duration_secs("90"), Ok(90));
        assert_eq!(duration_secs("15m"), Ok(900));
        assert_eq!(duration_secs("30d"), Ok(2_592_000));
        for wrong in ["", "h", "0", "-1", "1w", "99999999999999999999", "999999999999999999d"] {
            assert!(duration_secs(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn rights_follow_a_room() {
        assert_eq!(room_rights("news*"), Ok(("news*".to_owned(), true, true)));
        assert_eq!(room_rights("news=join"), Ok(("news".to_owned(), true, false)));
        assert_eq!(room_rights("news=publish,join"), Ok(("news".to_owned(), true, true)));
        assert!(room_rights("news=write").is_err());
    }
}
