//! How agent and conductor meet: a line of JSON each way, proofs that both know the key, and what clocks say. `agent` and
//! `remote` call it.

use std::fs::File;
use std::io::{BufRead, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, crypto};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::plan::Plan;
use crate::sys::now_ns;

/// Both sides have to speak the same.
const PROTOCOL: u32 = 1;
/// How long one side may keep the other waiting before there is a worker.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// No line is longer: what listens on a network does not trust lengths.
const LINE_BYTES_MAX: u64 = 1 << 20;
/// Questions about the clock; the fastest answer is the nearest to the truth.
const CLOCK_ASKS: usize = 32;

/// What a side says of itself first.
#[derive(Debug, Serialize, Deserialize)]
struct Hello {
    protocol: u32,
    version: String,
    /// Random, so that no proof serves twice.
    nonce: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Proof {
    proof: String,
}

/// What a conductor wants.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Ask {
    /// What the agent's clock says.
    Clock,
    /// A worker with this plan, whose secret is left out. Boxed: it is far larger than the rest.
    Work(Box<Plan>),
}

/// What an agent answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Said {
    /// CLOCK_MONOTONIC there.
    Clock(u64),
}

/// How an agent's clock stands to this machine's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Clock {
    /// To be added there to have the time here.
    pub(crate) offset_ns: i64,
    /// It may be wrong by so much either way.
    pub(crate) uncertainty_ns: u64,
}

/// Sets what both sides want of a socket.
pub(super) fn prepare(stream: &TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    Ok(stream.set_write_timeout(Some(ANSWER_MAX))?)
}

/// The agent's half.
pub(super) fn accept(secret: &str, reader: &mut impl BufRead, stream: &TcpStream) -> Result<()> {
    let own = Hello::new()?;
    write_line(stream, &own)?;
    let other = Hello::read(reader)?;
    let said = read_line::<Proof>(reader)?.context("it went without a proof")?;
    if !is_proof(secret, &said.proof, &text("conductor", &own, &other))? {
        bail!("refused: it has another secret");
    }
    write_line(stream, &Proof { proof: proof(secret, &text("agent", &own, &other))? })
}

/// The conductor's half.
pub(super) fn connect(secret: &str, reader: &mut impl BufRead, stream: &TcpStream) -> Result<()> {
    let agent = Hello::read(reader)?;
    let own = Hello::new()?;
    write_line(stream, &own)?;
    write_line(stream, &Proof { proof: proof(secret, &text("conductor", &agent, &own))? })?;
    let Some(said) = read_line::<Proof>(reader)? else {
        bail!("it refused us: it has to be started with the same secret (JWT_SECRET)");
    };
    if !is_proof(secret, &said.proof, &text("agent", &agent, &own))? {
        bail!("it does not know the secret");
    }
    Ok(())
}

impl Hello {
    fn new() -> Result<Hello> {
        let mut random = [0_u8; 16];
        File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut random)).context("no random numbers")?;
        Ok(Hello {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").into(),
            nonce: format!("{:032x}", u128::from_be_bytes(random)),
        })
    }

    fn read(reader: &mut impl BufRead) -> Result<Hello> {
        let hello = read_line::<Hello>(reader)?.context("it said nothing")?;
        if hello.protocol != PROTOCOL {
            bail!(
                "it is roomwire-bench {} and speaks another protocol; this is {}",
                hello.version,
                env!("CARGO_PKG_VERSION")
            );
        }
        Ok(hello)
    }
}

/// What a proof is made of. No token looks like it: a token has no space.
fn text(side: &str, agent: &Hello, conductor: &Hello) -> String {
    format!("roomwire-bench {side} {} {}", agent.nonce, conductor.nonce)
}

fn proof(secret: &str, text: &str) -> Result<String> {
    crypto::sign(text.as_bytes(), &EncodingKey::from_secret(secret.as_bytes()), Algorithm::HS256).context("cannot sign")
}

fn is_proof(secret: &str, proof: &str, text: &str) -> Result<bool> {
    let key = DecodingKey::from_secret(secret.as_bytes());
    // What is no base64 is no proof either.
    Ok(crypto::verify(proof, text.as_bytes(), &key, Algorithm::HS256).unwrap_or(false))
}

/// Asks an agent for its time until one answer was fast enough to be near.
pub(super) fn clock(reader: &mut impl BufRead, stream: &TcpStream) -> Result<Clock> {
    let mut best: Option<Clock> = None;
    for _ in 0..CLOCK_ASKS {
        let asked_ns = now_ns();
        write_line(stream, &Ask::Clock)?;
        let Said::Clock(there_ns) = read_line(reader)?.context("it went")?;
        let clock = between(asked_ns, there_ns, now_ns());
        if best.is_none_or(|best| clock.uncertainty_ns < best.uncertainty_ns) {
            best = Some(clock);
        }
    }
    best.context("no answer about the clock")
}

/// The agent read its clock at some moment between question and answer: most likely in the middle.
fn between(asked_ns: u64, there_ns: u64, answered_ns: u64) -> Clock {
    let middle_ns = asked_ns.midpoint(answered_ns);
    let uncertainty_ns = answered_ns.saturating_sub(asked_ns).div_ceil(2);
    // Both are times since a boot: far below what an i64 holds.
    Clock { offset_ns: middle_ns.cast_signed() - there_ns.cast_signed(), uncertainty_ns }
}

pub(super) fn write_line(mut stream: &TcpStream, value: &impl Serialize) -> Result<()> {
    Ok(stream.write_all((serde_json::to_string(value)? + "\n").as_bytes())?)
}

/// `None` at the end of what comes.
pub(super) fn read_line<T: DeserializeOwned>(reader: &mut impl BufRead) -> Result<Option<T>> {
    let mut line = String::new();
    reader.by_ref().take(LINE_BYTES_MAX).read_line(&mut line).context("no answer")?;
    if line.is_empty() {
        return Ok(None);
    }
    if !line.ends_with('\n') {
        bail!("not a line of roomwire-bench");
    }
    Ok(Some(serde_json::from_str(&line).context("not a line of roomwire-bench")?))
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// What agent and conductor make of each other with these secrets.
    fn meet(of_agent: &'static str, of_conductor: &str) -> (Result<()>, Result<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("bound");
        let agent = thread::spawn(move || {
            let (stream, _) = listener.accept().expect("a conductor");
            accept(of_agent, &mut BufReader::new(stream.try_clone().expect("a descriptor")), &stream)
        });
        let stream = TcpStream::connect(addr).expect("listening");
        let met = connect(of_conductor, &mut BufReader::new(stream.try_clone().expect("a descriptor")), &stream);
        drop(stream);
        (agent.join().expect("no panic"), met)
    }

    #[test]
    fn only_who_has_the_secret_is_let_in() {
        let (agent, conductor) = meet("one", "one");
        agent.expect("the same secret");
        conductor.expect("the same secret");
        let (agent, conductor) = meet("one", "other");
        assert!(agent.is_err_and(|error| error.to_string().contains("another secret")));
        assert!(conductor.is_err_and(|error| error.to_string().contains("JWT_SECRET")));
    }

    #[test]
    fn a_proof_of_one_side_or_of_another_time_is_none() {
        let hello = |nonce: &str| Hello { protocol: 1, version: String::new(), nonce: nonce.into() };
        let mine = proof("s", &text("agent", &hello("a"), &hello("b"))).expect("signs");
        let holds =
            |side: &str, a: &str, b: &str| is_proof("s", &mine, &text(side, &hello(a), &hello(b))).expect("reads");
        assert!(holds("agent", "a", "b"));
        assert!(!holds("conductor", "a", "b") && !holds("agent", "b", "a") && !holds("agent", "a", "c"));
        assert!(!is_proof("s", "no base64!", "x").expect("reads"));
    }

    #[test]
    fn the_clock_is_taken_from_the_middle() {
        let clock = between(1_000, 50_000, 1_200);
        assert_eq!(clock, Clock { offset_ns: -48_900, uncertainty_ns: 100 });
    }

    #[test]
    fn what_is_no_line_of_ours_is_an_error_and_the_end_is_none() {
        let read = |bytes: &[u8]| read_line::<Proof>(&mut BufReader::new(bytes));
        assert!(read(b"").expect("the end").is_none());
        assert!(read(b"GET / HTTP/1.1\r\n").is_err());
        assert!(read(b"{\"proof\":\"x\"}").is_err(), "no end of line");
        assert!(read(&vec![b'x'; 2 << 20]).is_err());
        assert_eq!(read(b"{\"proof\":\"x\"}\n").expect("a line").expect("there").proof, "x");
    }
}
