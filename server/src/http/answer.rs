//! JSON answers, and errors as `{"error":{"code","message","retryAfterMs"}}`.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use roomwire_engine::bridge::Answer;
use roomwire_wire::message::{ErrorCode, ServerMessage};
use serde_json::{Value, json};

/// When to come back where nobody knows better.
const RETRY_AFTER_MS: u32 = 1_000;

/// Why a call is not served.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    code: &'static str,
    message: &'static str,
    retry_after_ms: Option<u32>,
}

impl Problem {
    fn new(status: StatusCode, code: &'static str, message: &'static str) -> Problem {
        Problem { status, code, message, retry_after_ms: None }
    }

    pub(super) fn bad_request(message: &'static str) -> Problem {
        Problem::refused(ErrorCode::BadRequest, message, None)
    }

    pub(super) fn bad_json(message: &'static str) -> Problem {
        Problem::refused(ErrorCode::BadJson, message, None)
    }

    pub(super) fn not_found(message: &'static str) -> Problem {
        Problem::refused(ErrorCode::NotFound, message, None)
    }

    pub(super) fn forbidden(message: &'static str) -> Problem {
        Problem::refused(ErrorCode::Forbidden, message, None)
    }

    pub(super) fn too_large(message: &'static str) -> Problem {
        Problem::refused(ErrorCode::TooLarge, message, None)
    }

    pub(super) fn unavailable(message: &'static str) -> Problem {
        Problem::refused(ErrorCode::Unavailable, message, Some(RETRY_AFTER_MS))
    }

    pub(super) fn unauthorized(message: &'static str) -> Problem {
        Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
    }

    pub(super) fn method_not_allowed() -> Problem {
        Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path has other methods")
    }

    /// The protocol's own codes, each with its status.
    pub(super) fn refused(code: ErrorCode, message: &'static str, retry_after_ms: Option<u32>) -> Problem {
        let status = match code {
            ErrorCode::BadJson | ErrorCode::BadRequest | ErrorCode::UnknownType => StatusCode::BAD_REQUEST,
            ErrorCode::Forbidden => StatusCode::FORBIDDEN,
            ErrorCode::NotFound => StatusCode::NOT_FOUND,
            ErrorCode::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            ErrorCode::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            ErrorCode::Unavailable | ErrorCode::Draining => StatusCode::SERVICE_UNAVAILABLE,
        };
        Problem { status, code: code.as_str(), message, retry_after_ms }
    }

    /// The state machine answered another question than was asked.
    pub(super) fn mismatch(answer: &Answer) -> Problem {
        tracing::error!(?answer, "an HTTP call got an answer of another kind");
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "internal error")
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut error = json!({ "code": self.code, "message": self.message });
        if let Some(ms) = self.retry_after_ms {
            error["retryAfterMs"] = ms.into();
        }
        let mut response = json_answer(self.status, &json!({ "error": error }));
        let headers = response.headers_mut();
        if let Some(ms) = self.retry_after_ms {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(ms.div_ceil(1000).max(1)));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// A JSON answer that nobody may keep.
pub(super) fn json_answer(status: StatusCode, value: &Value) -> Response {
    json_bytes(status, value.to_string().into_bytes())
}

/// A message of the wire protocol as an answer.
pub(super) fn message_answer(message: &ServerMessage<'_>) -> Response {
    let mut bytes = Vec::new();
    message.write(&mut bytes);
    json_bytes(StatusCode::OK, bytes)
}

fn json_bytes(status: StatusCode, bytes: Vec<u8>) -> Response {
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    (status, headers, bytes).into_response()
}
