//! Whole requests, good and bad.

use super::*;

/// The request of RFC 6455 section 1.3, for `target`, with further lines.
fn request(target: &str, lines: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: server.example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{lines}\r\n"
    )
}

#[test]
fn the_example_of_rfc_6455_section_1_3() {
    let head = request("/ws", "Origin: http://example.com\r\nSec-WebSocket-Protocol: chat, superchat\r\n");
    let upgrade = parse(head.as_bytes()).expect("a good request");
    assert_eq!(upgrade.path, "/ws");
    assert_eq!(upgrade.accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    assert_eq!(upgrade.origin, Some("http://example.com"));
    assert_eq!(upgrade.token, None);
    assert!(!upgrade.subprotocol);
    let mut out = Vec::new();
    encode_accept(&upgrade, &mut out);
    assert_eq!(
        String::from_utf8(out).expect("text"),
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
    );
}

#[test]
fn browsers_and_proxies_may_write_it_in_their_own_way() {
    let key = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n";
    for lines in [
        "host: a\r\nupgrade: WebSocket\r\nconnection: keep-alive, Upgrade\r\n",
        "HOST: a:8080\r\nUPGRADE: h2c, websocket\r\nCONNECTION: upgrade,keep-alive\r\n",
        "Host: [::1]:8080\r\nUpgrade: websocket\r\nConnection: keep-alive\r\nConnection: UPGRADE\r\n",
        "Host:a\r\nUpgrade:websocket\r\nConnection:Upgrade\r\n",
        "Host: \t a \t\r\nUpgrade: \twebsocket \r\nConnection: ,, Upgrade ,\r\n",
        "Host: a\r\nUpgrade: foo\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 0\r\n",
        "Host: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Extensions: permessage-deflate\r\n",
        "Host: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nX-Name: \u{e9}t\u{e9}\r\nCookie: a=b\r\n",
    ] {
        let head = format!("GET / HTTP/1.1\r\n{lines}{key}\r\n");
        assert!(parse(head.as_bytes()).is_ok(), "{head}: {:?}", parse(head.as_bytes()).err());
    }
}

#[test]
fn the_path_is_taken_from_every_form_of_target() {
    for (target, path) in [
        ("/", "/"),
        ("/ws", "/ws"),
        ("/?", "/"),
        ("/?token=a", "/"),
        ("/ws?x=/../", "/ws"),
        ("http://server.example.com/ws", "/ws"),
        ("HTTP://server.example.com", "/"),
        ("wss://server.example.com:443?token=a", "/"),
    ] {
        let head = request(target, "");
        assert_eq!(parse(head.as_bytes()).map(|upgrade| upgrade.path), Ok(path), "{target}");
    }
}

#[test]
fn the_token_is_found_in_each_of_its_places() {
    let bearer = "Authorization: Bearer header.token\r\n";
    let offered = "Sec-WebSocket-Protocol: roomwire.v1, bearer.offered.token\r\n";
    let both = format!("{bearer}{offered}");
    for (target, lines, token) in [
        ("/", "", None),
        ("/?token=a.b-c_d", "", Some("a.b-c_d")),
        ("/?x=1&token=a&token=b", "", Some("a")),
        ("/?token=&token=b", "", Some("b")),
        ("/?mytoken=a&Token=b&token", "", None),
        ("/?token=a%2Eb%3d%C3%A9", "", Some("a.b=é")),
        ("/?token=a+b", "", Some("a+b")),
        ("/?token=a", &both, Some("a")),
        ("/?token=", &both, Some("header.token")),
        ("/", &both, Some("header.token")),
        ("/", bearer, Some("header.token")),
        ("/", "authorization: bEARER   t  \r\n", Some("t")),
        ("/", "Authorization: Bearer\r\n", None),
        ("/", "Authorization: Bearer \r\n", None),
        ("/", "Authorization: Basic dTpw\r\n", None),
        ("/", "Authorization: Bearertoken\r\n", None),
        ("/", offered, Some("offered.token")),
        ("/", "Sec-WebSocket-Protocol: bearer.x\r\nSec-WebSocket-Protocol: roomwire.v1\r\n", Some("x")),
        ("/", "Sec-WebSocket-Protocol: bearer.\r\n", None),
        ("/", "Sec-WebSocket-Protocol: Bearer.x\r\n", None),
        ("/", "Authorization: Basic dTpw\r\nSec-WebSocket-Protocol: bearer.x\r\n", Some("x")),
    ] {
        let head = request(target, lines);
        let upgrade = parse(head.as_bytes()).expect("a good request");
        assert_eq!(upgrade.token.as_deref(), token, "{target} {lines}");
    }
}

#[test]
fn the_answer_names_our_subprotocol_and_never_the_bearer() {
    for (lines, names_it) in [
        ("", false),
        ("Sec-WebSocket-Protocol: bearer.secret\r\n", false),
        ("Sec-WebSocket-Protocol: chat, bearer.secret\r\n", false),
        ("Sec-WebSocket-Protocol: ROOMWIRE.V1, bearer.secret\r\n", false),
        ("Sec-WebSocket-Protocol: roomwire.v1\r\n", true),
        ("Sec-WebSocket-Protocol: chat,bearer.secret , roomwire.v1\r\n", true),
    ] {
        let head = request("/?token=secret", lines);
        let upgrade = parse(head.as_bytes()).expect("a good request");
        assert_eq!(upgrade.subprotocol, names_it, "{lines}");
        let mut out = Vec::new();
        encode_accept(&upgrade, &mut out);
        let answer = String::from_utf8(out).expect("text");
        assert_eq!(answer.contains("\r\nSec-WebSocket-Protocol: roomwire.v1\r\n"), names_it, "{lines}");
        assert!(!answer.contains("secret") && answer.ends_with("\r\n\r\n"), "{answer}");
    }
}

/// A head with one thing wrong, and the status that it must get.
struct Bad {
    name: String,
    head: Vec<u8>,
    status: u16,
}

/// Good headers with one of them replaced; a replacement of nothing leaves it out.
fn with_header(name: &str, lines: &str) -> Vec<u8> {
    let good = [
        ("Host", "Host: a\r\n"),
        ("Upgrade", "Upgrade: websocket\r\n"),
        ("Connection", "Connection: Upgrade\r\n"),
        ("Sec-WebSocket-Key", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"),
        ("Sec-WebSocket-Version", "Sec-WebSocket-Version: 13\r\n"),
    ];
    let mut head = "GET /ws HTTP/1.1\r\n".to_owned();
    for (of, line) in good {
        head.push_str(if of == name { lines } else { line });
    }
    if name == "More" {
        head.push_str(lines);
    }
    head.push_str("\r\n");
    head.into_bytes()
}

fn bad_request_lines() -> Vec<Bad> {
    let rest = String::from_utf8(with_header("", "")).expect("text").replacen("GET /ws HTTP/1.1\r\n", "", 1);
    let long_target = format!("GET /?token={} HTTP/1.1", "a".repeat(4096));
    let cases = [
        (405, "POST /ws HTTP/1.1"),
        (405, "PUT /ws HTTP/1.1"),
        (405, "HEAD /ws HTTP/1.1"),
        (405, "DELETE /ws HTTP/1.1"),
        (405, "OPTIONS /ws HTTP/1.1"),
        (405, "OPTIONS * HTTP/1.1"),
        (405, "PATCH /ws HTTP/1.1"),
        (405, "TRACE /ws HTTP/1.1"),
        (405, "CONNECT server.example.com:80 HTTP/1.1"),
        (405, "get /ws HTTP/1.1"),
        (405, "Get /ws HTTP/1.1"),
        (405, "GETT /ws HTTP/1.1"),
        (405, "GE /ws HTTP/1.1"),
        (405, "BREW /coffee HTTP/1.1"),
        (414, long_target.as_str()),
        (404, "GET /w HTTP/1.1"),
        (404, "GET /wss HTTP/1.1"),
        (404, "GET /ws/ HTTP/1.1"),
        (404, "GET //ws HTTP/1.1"),
        (404, "GET /WS HTTP/1.1"),
        (404, "GET /ws/x HTTP/1.1"),
        (404, "GET /%77s HTTP/1.1"),
        (404, "GET /ws%00 HTTP/1.1"),
        (404, "GET /ws;a=b HTTP/1.1"),
        (404, "GET /../ws HTTP/1.1"),
        (404, "GET /index.html HTTP/1.1"),
        (404, "GET /metrics HTTP/1.1"),
        (404, "GET ws HTTP/1.1"),
        (404, "GET * HTTP/1.1"),
        (404, "GET http://a/other HTTP/1.1"),
        (404, "GET ftp://a/ws HTTP/1.1"),
        (400, "GET http:///ws HTTP/1.1"),
        (400, "GET /ws#part HTTP/1.1"),
        (400, "GET /ws?a#part HTTP/1.1"),
        (400, "GET /ws?\u{e9} HTTP/1.1"),
        (400, "GET /ws?a\u{7f} HTTP/1.1"),
        (400, "GET /ws?a\0 HTTP/1.1"),
        (400, "GET /ws?token=% HTTP/1.1"),
        (400, "GET /ws?token=%2 HTTP/1.1"),
        (400, "GET /ws?token=%zz HTTP/1.1"),
        (400, "GET /ws?token=%+1 HTTP/1.1"),
        (400, "GET /ws?token=%ff HTTP/1.1"),
        (400, "GET /ws?token=%c3 HTTP/1.1"),
        (400, "GET /ws?token=%ed%a0%80 HTTP/1.1"),
        (400, "GET /ws HTTP/1.0"),
        (400, "GET /ws HTTP/0.9"),
        (400, "GET /ws HTTP/2.0"),
        (400, "GET /ws HTTP/2"),
        (400, "GET /ws HTTP/1.2"),
        (400, "GET /ws HTTP/1.11"),
        (400, "GET /ws HTTP/1."),
        (400, "GET /ws http/1.1"),
        (400, "GET /ws HTTPS/1.1"),
        (400, "GET /ws"),
        (400, "GET"),
        (400, "GET  /ws HTTP/1.1"),
        (400, "GET /ws  HTTP/1.1"),
        (400, "GET /ws HTTP/1.1 "),
        (400, "GET\t/ws\tHTTP/1.1"),
        (400, " GET /ws HTTP/1.1"),
        (400, "GET /w s HTTP/1.1"),
        (400, "G\u{e9}T /ws HTTP/1.1"),
        (400, "G(T /ws HTTP/1.1"),
        (400, ": /ws HTTP/1.1"),
        (400, "\r\nGET /ws HTTP/1.1"),
        (400, "\nGET /ws HTTP/1.1"),
        (400, "PRI * HTTP/2.0"),
        (400, "\u{16}\u{3}\u{1}"),
    ];
    cases.map(|(status, line)| bad(status, line, format!("{line}\r\n{rest}").into_bytes())).into()
}

fn bad_headers() -> Vec<Bad> {
    let cases = [
        (400, "Host", ""),
        (400, "Host", "Host:\r\n"),
        (400, "Host", "Host: \t\r\n"),
        (400, "Host", "Host: a\r\nHost: a\r\n"),
        (400, "Host", "Host: a\r\nhost: b\r\n"),
        (400, "Host", "Host: a, b\r\n"),
        (400, "Host", "Host: a b\r\n"),
        (400, "Host", "Host: a/b\r\n"),
        (400, "Host", "Host: u@a\r\n"),
        (400, "Host", "Host: a?b\r\n"),
        (400, "Host", "Host: \"a\"\r\n"),
        (400, "Host", "Host: \u{e9}\r\n"),
        (426, "Upgrade", ""),
        (426, "Upgrade", "Upgrade:\r\n"),
        (426, "Upgrade", "Upgrade: h2c\r\n"),
        (426, "Upgrade", "Upgrade: websockets\r\n"),
        (426, "Upgrade", "Upgrade: web socket\r\n"),
        (426, "Upgrade", "Upgrade: websocket/13\r\n"),
        (426, "Upgrade", "Upgrade: \"websocket\"\r\n"),
        (426, "Upgrade", "Upgrade: websocket;q=1\r\n"),
        (426, "Upgrade", "X-Upgrade: websocket\r\n"),
        (400, "Connection", ""),
        (400, "Connection", "Connection:\r\n"),
        (400, "Connection", "Connection: close\r\n"),
        (400, "Connection", "Connection: keep-alive\r\n"),
        (400, "Connection", "Connection: Upgraded\r\n"),
        (400, "Connection", "Connection: keep-alive Upgrade\r\n"),
        (400, "Connection", "Connection: keep-alive; Upgrade\r\n"),
        (400, "Sec-WebSocket-Key", ""),
        (400, "Sec-WebSocket-Key", "Sec-WebSocket-Key:\r\n"),
        (400, "Sec-WebSocket-Key", "Sec-WebSocket-Key: x\r\n"),
        (400, "Sec-WebSocket-Key", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA\r\n"),
        (400, "Sec-WebSocket-Key", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=\r\n"),
        (400, "Sec-WebSocket-Key", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAAA=\r\n"),
        (400, "Sec-WebSocket-Key", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAAAA\r\n"),
        (400, "Sec-WebSocket-Key", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAA\r\n"),
        (400, "Sec-WebSocket-Key", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAAAAAA==\r\n"),
        (400, "Sec-WebSocket-Key", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAB==\r\n"),
        (400, "Sec-WebSocket-Key", "Sec-WebSocket-Key: ________________________\r\n"),
        (400, "Sec-WebSocket-Key", "Sec-WebSocket-Key: AAAA AAAAAAAAAAAAAAAAA==\r\n"),
        (400, "Sec-WebSocket-Key", "Sec-WebSocket-Key: !AAAAAAAAAAAAAAAAAAAAA==\r\n"),
        (400, "Sec-WebSocket-Key", "Sec-WebSocket-Key: =AAAAAAAAAAAAAAAAAAAAA==\r\n"),
        (400, "Sec-WebSocket-Key", "Sec-WebSocket-Key: \u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}AAAAAAAAAA==\r\n"),
        (
            400,
            "Sec-WebSocket-Key",
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n",
        ),
        (400, "Sec-WebSocket-Key", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==, AAAAAAAAAAAAAAAAAAAAAA==\r\n"),
        (426, "Sec-WebSocket-Version", ""),
        (426, "Sec-WebSocket-Version", "Sec-WebSocket-Version:\r\n"),
        (426, "Sec-WebSocket-Version", "Sec-WebSocket-Version: 0\r\n"),
        (426, "Sec-WebSocket-Version", "Sec-WebSocket-Version: 7\r\n"),
        (426, "Sec-WebSocket-Version", "Sec-WebSocket-Version: 8\r\n"),
        (426, "Sec-WebSocket-Version", "Sec-WebSocket-Version: 12\r\n"),
        (426, "Sec-WebSocket-Version", "Sec-WebSocket-Version: 14\r\n"),
        (426, "Sec-WebSocket-Version", "Sec-WebSocket-Version: 013\r\n"),
        (426, "Sec-WebSocket-Version", "Sec-WebSocket-Version: 13.0\r\n"),
        (426, "Sec-WebSocket-Version", "Sec-WebSocket-Version: +13\r\n"),
        (426, "Sec-WebSocket-Version", "Sec-WebSocket-Version: 13, 8\r\n"),
        (426, "Sec-WebSocket-Version", "Sec-WebSocket-Version: 4294967309\r\n"),
        (426, "Sec-WebSocket-Version", "Sec-WebSocket-Version: thirteen\r\n"),
        (400, "Sec-WebSocket-Version", "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Version: 13\r\n"),
        (400, "Sec-WebSocket-Version", "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Version: 8\r\n"),
        (413, "More", "Content-Length: 1\r\n"),
        (413, "More", "Content-Length: 00005\r\n"),
        (413, "More", "Content-Length: 99999999999999999999999999\r\n"),
        (400, "More", "Content-Length:\r\n"),
        (400, "More", "Content-Length: -1\r\n"),
        (400, "More", "Content-Length: +0\r\n"),
        (400, "More", "Content-Length: 0x0\r\n"),
        (400, "More", "Content-Length: 0, 0\r\n"),
        (400, "More", "Content-Length: 0 0\r\n"),
        (400, "More", "Content-Length: 0\r\nContent-Length: 0\r\n"),
        (400, "More", "Content-Length: 0\r\nContent-Length: 5\r\n"),
        (400, "More", "Transfer-Encoding: chunked\r\n"),
        (400, "More", "Transfer-Encoding: identity\r\n"),
        (400, "More", "transfer-encoding:\r\n"),
        (400, "More", "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n"),
        (400, "More", "Origin: http://a\r\nOrigin: http://b\r\n"),
        (400, "More", "Origin: http://\u{e9}\r\nOrigin: http://a\r\n"),
        (400, "More", "Authorization: Bearer a\r\nAuthorization: Bearer b\r\n"),
        (400, "More", "Sec-WebSocket-Protocol: a b\r\n"),
        (400, "More", "Sec-WebSocket-Protocol: roomwire.v1, bearer.a=b\r\n"),
        (400, "More", "Sec-WebSocket-Protocol: \"roomwire.v1\"\r\n"),
        (400, "More", "Sec-WebSocket-Protocol: bearer.\u{e9}\r\n"),
        (400, "More", "Sec-WebSocket-Protocol: roomwire.v1;bearer.a\r\n"),
        (400, "More", "X-Folded: a\r\n b\r\n"),
        (400, "More", "X-Folded: a\r\n\tb\r\n"),
        (400, "More", "X-Folded: a\r\n \r\n"),
        (400, "More", " X-Space: a\r\n"),
        (400, "More", "X-Bare: a\nX-Next: b\r\n"),
        (400, "More", "X-Bare: a\rX-Next: b\r\n"),
        (400, "More", "X-Bare: a\r\r\n"),
        (400, "More", "X-Bare: a\n\r\n"),
        (400, "More", "X-Null: a\0b\r\n"),
        (400, "More", "X-Bell: a\u{7}b\r\n"),
        (400, "More", "X-Delete: a\u{7f}b\r\n"),
        (400, "More", "X-Space : a\r\n"),
        (400, "More", "X Space: a\r\n"),
        (400, "More", "X\tTab: a\r\n"),
        (400, "More", ": no name\r\n"),
        (400, "More", "no colon\r\n"),
        (400, "More", "X(Paren): a\r\n"),
        (400, "More", "X\u{e9}: a\r\n"),
        (400, "More", "X\0: a\r\n"),
        (400, "More", "\"X\": a\r\n"),
    ];
    let named = |(status, name, lines): (u16, &str, &str)| bad(status, lines, with_header(name, lines));
    cases.into_iter().map(named).collect()
}

fn bad_shapes() -> Vec<Bad> {
    let good = with_header("", "");
    let text = String::from_utf8(good.clone()).expect("text");
    let many: String = (0..96).map(|index| format!("X-{index}: a\r\n")).collect();
    let mut not_utf8 = with_header("Host", "Host: x\r\n");
    let at = not_utf8.iter().position(|&byte| byte == b'x').expect("the host");
    not_utf8[at] = 0xff;
    vec![
        bad(431, "101 headers", with_header("More", &many)),
        bad(431, "a thousand headers", with_header("More", &"a: b\r\n".repeat(1000))),
        bad(400, "nothing", Vec::new()),
        bad(400, "an empty line", b"\r\n".to_vec()),
        bad(400, "two empty lines", b"\r\n\r\n".to_vec()),
        bad(400, "a bare line feed", b"\n".to_vec()),
        bad(400, "line feeds only", text.replace('\r', "").into_bytes()),
        bad(400, "carriage returns only", text.replace('\n', "").into_bytes()),
        bad(400, "line ends the wrong way round", text.replace("\r\n", "\n\r").into_bytes()),
        bad(400, "no empty line", good[..good.len() - 2].to_vec()),
        bad(400, "half an empty line", good[..good.len() - 1].to_vec()),
        bad(400, "bytes behind the end", [&good[..], b"\x81\x80"].concat()),
        bad(400, "two requests", [&good[..], &good[..]].concat()),
        bad(400, "a host that is not UTF-8", not_utf8),
        bad(400, "a byte order mark", [b"\xef\xbb\xbf", &good[..]].concat()),
        bad(400, "zeroes", vec![0; 64]),
        bad(400, "a TLS hello", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", &[7; 64][..], b"\r\n\r\n"].concat()),
        bad(426, "an ordinary page view", b"GET / HTTP/1.1\r\nHost: a\r\nAccept: text/html\r\n\r\n".to_vec()),
        bad(400, "a page view of HTTP/1.0", b"GET / HTTP/1.0\r\n\r\n".to_vec()),
        bad(400, "a request line alone", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
    ]
}

fn bad(status: u16, name: &str, head: Vec<u8>) -> Bad {
    Bad { name: name.to_owned(), head, status }
}

#[test]
fn no_bad_request_is_upgraded_and_each_gets_its_status() {
    let corpus: Vec<Bad> = bad_request_lines().into_iter().chain(bad_headers()).chain(bad_shapes()).collect();
    assert!(corpus.len() >= 150, "{}", corpus.len());
    let mut wrong = Vec::new();
    for Bad { name, head, status } in &corpus {
        match parse(head) {
            Err(refusal) if refusal.status() == *status => {}
            verdict => wrong.push(format!("{name:?}: wanted {status}, got {verdict:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_hundred_headers_and_four_kibibytes_of_target_are_fine() {
    let many: String = (0..95).map(|index| format!("X-{index}: a\r\n")).collect();
    assert!(parse(&with_header("More", &many)).is_ok());
    let target = format!("/?token={}", "a".repeat(4096 - 8));
    assert!(parse(request(&target, "").as_bytes()).is_ok());
}

proptest::proptest! {

    #![proptest_config(crate::seeded())]

    #[test]
    fn a_damaged_request_is_refused_or_still_an_upgrade_but_never_a_panic(
        index: proptest::sample::Index,
        byte: u8,
        garbage: Vec<u8>,
    ) {
        let mut head = request("/ws?token=a%20b", "Sec-WebSocket-Protocol: roomwire.v1\r\n").into_bytes();
        let index = index.index(head.len());
        head[index] = byte;
        let _ = parse(&head);
        let _ = parse(&garbage);
        let _ = parse(&[&garbage[..], b"\r\n\r\n"].concat());
        let end = HeadScanner::default().find_end(&garbage);
        proptest::prop_assert!(end.is_none_or(|end| garbage[..end].ends_with(b"\n")));
    }
}
