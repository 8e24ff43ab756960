//! The secret of `--dev`: random, but kept in the data directory, so that open demo tabs still hold valid tokens after a
//! restart and resume by themselves.

use crate::auth::token::SECRET_BYTES_MIN;
use crate::cli::Failure;
use crate::config::{Secret, Settings};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Where `--dev` keeps its secret.
#[must_use]
pub fn dev_secret_path(settings: &Settings) -> PathBuf {
    settings.data_dir.join("dev-secret")
}

/// The configured secret; with `--dev` and none configured, the kept one, made at the first start. `None` where the key set
/// of an issuer takes its place.
pub(super) fn of(settings: &Settings) -> Result<Option<Secret>, Failure> {
    if let Some(secret) = settings.secret() {
        return Ok(Some(secret.clone()));
    }
    if !settings.dev {
        // The configuration's checks let this pass only beside `auth.jwks`.
        return Ok(None);
    }
    let path = dev_secret_path(settings);
    let kept = keep(&settings.data_dir, &path);
    kept.map(Some).map_err(|error| Failure::runtime(format!("{}: {error}", path.display())))
}

fn keep(dir: &Path, path: &Path) -> io::Result<Secret> {
    match std::fs::read_to_string(path) {
        Ok(text) if text.trim().len() >= SECRET_BYTES_MIN => return Ok(Secret::new(text.trim().to_owned())),
        // Cut off by a crash in the middle of its making: nobody holds a token of it.
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut bytes = [0; 48];
    getrandom::fill(&mut bytes).map_err(|error| io::Error::other(error.to_string()))?;
    let secret = STANDARD.encode(bytes);
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let fresh = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    writeln!(file, "{secret}")?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)?;
    Ok(Secret::new(secret))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn the_secret_is_made_once_for_its_owner_alone() {
        let dir = std::env::temp_dir().join(format!("roomwire-secret-{}", std::process::id()));
        let path = dir.join("dev-secret");
        let first = keep(&dir, &path).expect("made");
        assert!(first.expose().len() >= SECRET_BYTES_MIN);
        assert_eq!(keep(&dir, &path).expect("kept"), first);
        let mode = std::fs::metadata(&path).map(|metadata| metadata.permissions().mode() & 0o777).unwrap_or_default();
        assert_eq!(mode, 0o600);

        std::fs::write(&path, "cut").expect("writable");
        assert_ne!(keep(&dir, &path).expect("made anew"), first);
        let _ = std::fs::remove_dir_all(&dir);
    }
}
