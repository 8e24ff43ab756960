//! The bearer key of `/v1`.

use super::App;
use super::answer::Problem;
use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// Lets a request pass that carries the key.
pub(super) async fn require(State(app): State<App>, request: Request, next: Next) -> Response {
    let Some(key) = app.policy().key.clone() else {
        return Problem::forbidden("this node has no http.key: set one, and send it as Authorization: Bearer <key>")
            .into_response();
    };
    let given = request.headers().get(header::AUTHORIZATION).map(|value| value.as_bytes()).and_then(bearer);
    match given {
        Some(given) if same(key.as_bytes(), given) => next.run(request).await,
        Some(_) => Problem::unauthorized("the key is wrong").into_response(),
        None => Problem::unauthorized("send the key as Authorization: Bearer <key>").into_response(),
    }
}

fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
}

/// Compares in a time that does not depend on where the two differ (only on the key's own length).
fn same(key: &[u8], given: &[u8]) -> bool {
    let mut different = u8::from(key.len() != given.len());
    for (at, byte) in key.iter().enumerate() {
        different |= byte ^ given.get(at).copied().unwrap_or(0);
    }
    std::hint::black_box(different) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_key_is_the_same() {
        assert!(same(b"secret", b"secret"));
        for other in [&b""[..], b"secre", b"secret2", b"Secret", b"secres", b"secret\0"] {
            assert!(!same(b"secret", other), "{other:?}");
        }
        assert!(!same(b"secret\0", b"secret"));
        assert_eq!(bearer(b"bEARER  k "), Some(&b"k"[..]));
        assert_eq!(bearer(b"Basic k"), None);
        assert_eq!(bearer(b"Bear"), None);
    }
}
