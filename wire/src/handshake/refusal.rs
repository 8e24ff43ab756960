//! The answers to a request that is no upgrade of ours.

/// Why an upgrade is refused, as a proper HTTP answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "`status` and `reason` say it")]
pub enum Refusal {
    BadRequest(&'static str),
    Unauthorized,
    Forbidden,
    NotFound,
    MethodNotAllowed,
    ContentTooLarge,
    UpgradeRequired,
    UriTooLong,
    HeadTooLarge,
    RequestTimeout,
    Unavailable { retry_after_secs: u32 },
}

impl Refusal {
    /// The HTTP status code.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Refusal::BadRequest(_) => 400,
            Refusal::Unauthorized => 401,
            Refusal::Forbidden => 403,
            Refusal::NotFound => 404,
            Refusal::MethodNotAllowed => 405,
            Refusal::RequestTimeout => 408,
            Refusal::ContentTooLarge => 413,
            Refusal::UriTooLong => 414,
            Refusal::UpgradeRequired => 426,
            Refusal::HeadTooLarge => 431,
            Refusal::Unavailable { .. } => 503,
        }
    }

    /// The reason phrase of RFC 9110 and RFC 6585.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Refusal::BadRequest(_) => "Bad Request",
            Refusal::Unauthorized => "Unauthorized",
            Refusal::Forbidden => "Forbidden",
            Refusal::NotFound => "Not Found",
            Refusal::MethodNotAllowed => "Method Not Allowed",
            Refusal::RequestTimeout => "Request Timeout",
            Refusal::ContentTooLarge => "Content Too Large",
            Refusal::UriTooLong => "URI Too Long",
            Refusal::UpgradeRequired => "Upgrade Required",
            Refusal::HeadTooLarge => "Request Header Fields Too Large",
            Refusal::Unavailable { .. } => "Service Unavailable",
        }
    }

    /// Appends the whole answer: status line, `Connection: close`, the headers that its status asks for
    /// (`Sec-WebSocket-Version: 13`, `Upgrade: websocket`, `Allow: GET`, `Retry-After`), a short text body.
    pub fn encode(self, out: &mut Vec<u8>) {
        let status = self.status();
        let body = match self {
            Refusal::BadRequest(detail) => detail,
            Refusal::Unauthorized => "Authentication failed",
            Refusal::Forbidden => "This origin may not connect",
            Refusal::NotFound => "WebSocket lives at / and /ws",
            Refusal::UpgradeRequired => "This is a WebSocket (version 13) endpoint",
            other => other.reason(),
        };
        let mut answer = format!("HTTP/1.1 {status} {}\r\n", self.reason());
        match self {
            // Upgrade is a hop-by-hop field, so RFC 9110 section 7.8 wants it named in Connection.
            Refusal::UpgradeRequired => {
                answer.push_str("Connection: close, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n");
            }
            _ => answer.push_str("Connection: close\r\n"),
        }
        match self {
            Refusal::MethodNotAllowed => answer.push_str("Allow: GET\r\n"),
            Refusal::Unauthorized => answer.push_str("WWW-Authenticate: Bearer\r\n"),
            Refusal::Unavailable { retry_after_secs } => {
                answer.push_str(&format!("Retry-After: {retry_after_secs}\r\n"))
            }
            _ => {}
        }
        let length = body.len() + 1;
        answer
            .push_str(&format!("Content-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\n\r\n{body}\n"));
        out.extend_from_slice(answer.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Refusal; 11] = [
        Refusal::BadRequest("No key"),
        Refusal::Unauthorized,
        Refusal::Forbidden,
        Refusal::NotFound,
        Refusal::MethodNotAllowed,
        Refusal::ContentTooLarge,
        Refusal::UpgradeRequired,
        Refusal::UriTooLong,
        Refusal::HeadTooLarge,
        Refusal::RequestTimeout,
        Refusal::Unavailable { retry_after_secs: 7 },
    ];

    #[test]
    fn every_refusal_is_a_complete_http_answer() {
        for refusal in ALL {
            let mut out = Vec::new();
            refusal.encode(&mut out);
            let mut headers = [httparse::EMPTY_HEADER; 16];
            let mut answer = httparse::Response::new(&mut headers);
            let httparse::Status::Complete(head) = answer.parse(&out).expect("a valid answer") else {
                panic!("{refusal:?} has no end");
            };
            let header = |name: &str| {
                let of_name: Vec<_> = answer.headers.iter().filter(|header| header.name == name).collect();
                assert!(of_name.len() <= 1, "{name}");
                of_name.first().map(|header| std::str::from_utf8(header.value).expect("text"))
            };
            assert_eq!(answer.code, Some(refusal.status()));
            assert!(header("Connection").is_some_and(|value| value.starts_with("close")));
            assert_eq!(header("Content-Length"), Some((out.len() - head).to_string().as_str()));
            assert_eq!(header("Allow"), (refusal.status() == 405).then_some("GET"));
            assert_eq!(header("Retry-After"), (refusal.status() == 503).then_some("7"));
            assert_eq!(header("Sec-WebSocket-Version"), (refusal.status() == 426).then_some("13"));
            assert_eq!(header("Upgrade"), (refusal.status() == 426).then_some("websocket"));
        }
    }
}
