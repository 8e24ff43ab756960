//! Where a key set is: in a file, or at an address. Reads it, which blocks.
//!
//! Called by the configuration's checks, by `roomwire doctor`, and by [`super::jwks`] on a thread of its own; never on a
//! shard or on the bridge. Follows no redirect, and takes no key from a line that somebody could have written on.

use super::keys::{BadSet, DOCUMENT_BYTES_MAX, KeySet};
use crate::config::types::Auth;
use axum::http::Uri;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use ureq::http::HeaderMap;
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};

/// The longest that a fetch takes, from the look-up of the name to the last byte. Below the unit's `WatchdogSec`: a reload
/// that names another address waits for it.
const FETCH_MAX: Duration = Duration::from_secs(5);
/// A longer ETag is not sent back.
const ETAG_BYTES_MAX: usize = 256;

/// Where a key set is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Read at the start and at each reload.
    File(PathBuf),
    /// Fetched at the start, and again and again.
    Url {
        /// `https://`, or `http://` on loopback.
        url: String,
        /// Whose certificates count, as PEM; `None`: those that this machine trusts.
        ca: Option<Vec<u8>>,
    },
}

/// What was read.
#[derive(Debug)]
pub enum Found {
    /// A set, and for how long its issuer says that it holds.
    Set(KeySet, Option<Duration>),
    /// The set is the one of the last time.
    Unchanged(Option<Duration>),
}

/// Reads a source, again and again.
pub struct Reader {
    /// For messages.
    shown: String,
    way: Way,
}

enum Way {
    File(PathBuf),
    Url { url: String, agent: ureq::Agent, etag: Option<String> },
}

impl Source {
    /// What `auth.jwks` and `auth.jwks_ca_file` name.
    ///
    /// # Errors
    /// What is wrong with them, in one line.
    pub fn of(auth: &Auth) -> Result<Option<Source>, String> {
        let jwks = auth.jwks.as_deref().unwrap_or_default();
        let is_tls = jwks.starts_with("https://");
        if auth.jwks_ca_file.is_some() && !is_tls {
            return Err("`auth.jwks_ca_file` is set, but `auth.jwks` does not begin with https://".to_owned());
        }
        if auth.jwks.is_none() {
            return Ok(None);
        }
        if jwks.is_empty() {
            return Err("`auth.jwks` must not be empty: leave it out".to_owned());
        }
        if !jwks.contains("://") {
            return Ok(Some(Source::File(PathBuf::from(jwks))));
        }
        check_url(jwks)?;
        let ca = match &auth.jwks_ca_file {
            None => None,
            Some(path) => {
                let unusable = |error: String| format!("`auth.jwks_ca_file`: {path}: {error}");
                let pem = std::fs::read(path).map_err(|error| unusable(error.to_string()))?;
                certificates(&pem).map_err(unusable)?;
                Some(pem)
            }
        };
        Ok(Some(Source::Url { url: jwks.to_owned(), ca }))
    }
}

/// Without what may stand behind a `?`: some issuers want a key there.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::File(path) => path.display().fmt(f),
            Source::Url { url, .. } => f.write_str(url.split(['?', '#']).next().unwrap_or_default()),
        }
    }
}

fn check_url(url: &str) -> Result<(), String> {
    let form = "`auth.jwks` expects a file, or an address such as https://issuer.example/.well-known/jwks.json";
    let uri: Uri = url.parse().map_err(|_| form.to_owned())?;
    let authority = uri.authority().map(|authority| authority.as_str()).unwrap_or_default();
    if authority.contains('@') {
        return Err("`auth.jwks` must not carry a user or a password: key sets are public".to_owned());
    }
    let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| form.to_owned())?;
    match uri.scheme_str() {
        Some("https") => Ok(()),
        Some("http") if is_loopback(host) => Ok(()),
        Some("http") => Err("`auth.jwks` must begin with https:// unless it is on loopback: \
                             whoever is on the way could put keys of his own there"
            .to_owned()),
        _ => Err(form.to_owned()),
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

impl Reader {
    /// Looks at nothing yet but, for an https address, the certificates of authorities.
    ///
    /// # Errors
    /// There are none.
    pub fn new(source: Source) -> Result<Reader, String> {
        let shown = source.to_string();
        let way = match source {
            Source::File(path) => Way::File(path),
            Source::Url { url, ca } => {
                let agent = agent(&url, ca.as_deref()).map_err(|why| format!("{shown}: {why}"))?;
                Way::Url { url, agent, etag: None }
            }
        };
        Ok(Reader { shown, way })
    }

    /// Reads the set.
    ///
    /// # Errors
    /// Why not, with where it should be.
    pub fn read(&mut self) -> Result<Found, String> {
        let read = match &mut self.way {
            Way::File(path) => read_file(path).map(|set| Found::Set(set, None)),
            Way::Url { url, agent, etag } => fetch(agent, url, etag),
        };
        read.map_err(|why| format!("{}: {why}", self.shown))
    }
}

fn read_file(path: &Path) -> Result<KeySet, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return Err("it is no file".to_owned());
    }
    let mut document = Vec::new();
    file.take(DOCUMENT_BYTES_MAX as u64 + 1).read_to_end(&mut document).map_err(|error| error.to_string())?;
    KeySet::parse(&document).map_err(|error| error.to_string())
}

fn fetch(agent: &ureq::Agent, url: &str, etag: &mut Option<String>) -> Result<Found, String> {
    let mut request = agent.get(url).header("Accept", "application/jwk-set+json, application/json");
    if let Some(etag) = etag.as_deref() {
        request = request.header("If-None-Match", etag);
    }
    let mut response = request.call().map_err(|error| error.to_string())?;
    let fresh_for = header(response.headers(), "cache-control").and_then(max_age);
    match response.status().as_u16() {
        200 => {}
        304 if etag.is_some() => return Ok(Found::Unchanged(fresh_for)),
        status @ 300..400 => return Err(format!("answered with status {status}; redirects are not followed")),
        status => return Err(format!("answered with status {status}")),
    }
    let new_etag = header(response.headers(), "etag").filter(|etag| etag.len() <= ETAG_BYTES_MAX).map(str::to_owned);
    let body = response.body_mut().with_config().limit(DOCUMENT_BYTES_MAX as u64).read_to_vec();
    let body = body.map_err(|error| match error {
        ureq::Error::BodyExceedsLimit(_) => BadSet::TooLong.to_string(),
        error => error.to_string(),
    })?;
    let set = KeySet::parse(&body).map_err(|error| error.to_string())?;
    *etag = new_etag;
    Ok(Found::Set(set, fresh_for))
}

fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// For how long `Cache-Control` lets an answer be used without asking again.
fn max_age(cache_control: &str) -> Option<Duration> {
    let mut age = None;
    for directive in cache_control.split(',').map(|directive| directive.trim().to_ascii_lowercase()) {
        if directive == "no-cache" || directive == "no-store" {
            return Some(Duration::ZERO);
        }
        if let Some(secs) = directive.strip_prefix("max-age=") {
            age = secs.trim_matches('"').parse().ok().map(Duration::from_secs);
        }
    }
    age
}

/// One TLS, that of the rest of the server; no proxy that the environment names, no cookies, no redirects.
fn agent(url: &str, ca: Option<&[u8]>) -> Result<ureq::Agent, String> {
    let authorities = match ca {
        Some(pem) => certificates(pem)?,
        None if url.starts_with("https://") => trusted_here()?,
        None => Vec::new(),
    };
    let authorities = authorities.iter().map(|authority| Certificate::from_der(authority).to_owned()).collect();
    let tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .root_certs(RootCerts::Specific(Arc::new(authorities)))
        .build();
    let config = ureq::Agent::config_builder()
        .tls_config(tls)
        .timeout_global(Some(FETCH_MAX))
        .http_status_as_error(false)
        .max_redirects(0)
        .proxy(None)
        .user_agent(concat!("roomwire/", env!("CARGO_PKG_VERSION")))
        .build();
    Ok(ureq::Agent::new_with_config(config))
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err("no certificate in it: it must be PEM".to_owned()),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(error.to_string()),
    }
}

fn trusted_here() -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates = rustls_native_certs::load_native_certs().certs;
    if certificates.is_empty() {
        return Err("this machine trusts no authority: install ca-certificates, or set auth.jwks_ca_file".to_owned());
    }
    Ok(certificates)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(jwks: &str, ca_file: Option<&str>) -> Result<Option<Source>, String> {
        let ca_file = ca_file.map(str::to_owned);
        Source::of(&Auth { jwks: Some(jwks.to_owned()), jwks_ca_file: ca_file, ..Auth::default() })
    }

    #[test]
    fn a_file_an_https_address_or_one_on_loopback() {
        assert_eq!(Source::of(&Auth::default()), Ok(None));
        assert_eq!(of("/etc/roomwire/jwks.json", None), Ok(Some(Source::File("/etc/roomwire/jwks.json".into()))));
        for url in [
            "https://issuer.example/jwks",
            "https://issuer.example:8443/a/b?c=d",
            "http://127.0.0.1:8000/jwks",
            "http://127.9.9.9/",
            "http://[::1]:8000/jwks",
            "http://localhost/jwks",
        ] {
            assert_eq!(of(url, None), Ok(Some(Source::Url { url: url.to_owned(), ca: None })), "{url}");
        }
        for url in [
            "",
            "http://issuer.example/jwks",
            "http://10.0.0.1/jwks",
            "http://localhost.evil.example/jwks",
            "http://127.0.0.1.evil.example/jwks",
            "https://user:hunter2@issuer.example/jwks",
            "http://127.0.0.1@evil.example/jwks",
            "https://",
            "https:///jwks",
            "ftp://issuer.example/jwks",
            "file:///etc/passwd",
        ] {
            let line = of(url, None).expect_err(url);
            assert!(line.contains("auth.jwks") && !line.contains("hunter2"), "{url}: {line}");
        }
    }

    #[test]
    fn an_authority_belongs_to_https_and_has_a_certificate() {
        let line = of("http://127.0.0.1/jwks", Some("/nowhere/ca.pem")).expect_err("no TLS there");
        assert!(line.contains("does not begin with https://"), "{line}");
        let line = of("https://issuer.example/jwks", Some("/nowhere/ca.pem")).expect_err("no such file");
        assert!(line.contains("auth.jwks_ca_file") && line.contains("/nowhere/ca.pem"), "{line}");
        let line = of("https://issuer.example/jwks", Some("/dev/null")).expect_err("an empty file");
        assert!(line.contains("no certificate in it"), "{line}");
    }

    #[test]
    fn what_stands_behind_the_path_is_not_shown() {
        let source = Source::Url { url: "https://issuer.example/jwks?key=hunter2".to_owned(), ca: None };
        assert_eq!(source.to_string(), "https://issuer.example/jwks");
    }

    #[test]
    fn cache_control_says_how_long_a_set_holds() {
        let secs = |text| max_age(text).map(|age| age.as_secs());
        assert_eq!(secs("public, max-age=21600, must-revalidate"), Some(21_600));
        assert_eq!(secs("Max-Age=\"60\""), Some(60));
        assert_eq!(secs("max-age=600, no-store"), Some(0));
        assert_eq!(secs("no-cache"), Some(0));
        assert_eq!([secs("private"), secs("max-age=soon"), secs("s-maxage=9"), secs("")], [None; 4]);
    }

    #[test]
    fn a_file_is_read_up_to_its_limit() {
        let path = std::env::temp_dir().join(format!("roomwire-jwks-{}", std::process::id()));
        let mut reader = Reader::new(Source::File(path.clone())).expect("nothing is looked at");
        let mut why = |document: &[u8]| {
            std::fs::write(&path, document).expect("writable");
            reader.read().expect_err("no set").split_once(": ").map(|(_, why)| why.to_owned()).unwrap_or_default()
        };
        assert_eq!(why(&vec![b' '; DOCUMENT_BYTES_MAX + 1]), BadSet::TooLong.to_string());
        assert!(why(b"{}").starts_with("not a JSON Web Key Set"));
        std::fs::remove_file(&path).expect("it is there");
        assert!(reader.read().expect_err("gone").contains("No such file"));
        let mut directory = Reader::new(Source::File(std::env::temp_dir())).expect("nothing is looked at");
        assert!(directory.read().expect_err("a directory").ends_with("it is no file"));
    }
}
