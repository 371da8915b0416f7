//! Heads and framings that can be read in two ways, or in none: refused, the connection ended, nothing forwarded.

use crate::rig::{End, RawUpstream, Sidecar};

const HOST: &str = "Host: api.weixin.qq.com\r\n";

/// A GET with these header lines.
fn get(lines: &str) -> Vec<u8> {
    format!("GET /cgi-bin/x HTTP/1.1\r\n{HOST}{lines}\r\n").into_bytes()
}

/// A POST with these header lines and this body.
fn post(lines: &str, body: &str) -> Vec<u8> {
    format!("POST /cgi-bin/x HTTP/1.1\r\n{HOST}{lines}\r\n{body}").into_bytes()
}

fn line(line: &str) -> Vec<u8> {
    format!("{line}\r\n{HOST}\r\n").into_bytes()
}

/// Sends each and expects this status from hyper's or our own hand, the end of the connection, and silence upstream.
async fn refused(rows: Vec<(&str, Vec<u8>)>, status: u16) {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::before(&upstream).await;
    for (why, raw) in rows {
        let mut client = sidecar.connect().await;
        let reply = client.call(&raw).await;
        let shown = String::from_utf8_lossy(&raw[..raw.len().min(200)]).into_owned();
        assert_eq!((reply.status, reply.end), (status, End::Whole), "{why}: {shown:?} got {reply:?}");
        let causes = ["bad-request", "request-body", "head-too-large"];
        assert!(causes.contains(&reply.cause()), "{why}: every refusal has words and a cause: {reply:?}");
        client.assert_closed(why).await;
        assert_eq!(upstream.connections(), 0, "{why}: {shown:?} reached the upstream");
    }
    // What stands between a refusal and silence is not a sidecar that is dead.
    sidecar.call(get("")).await.assert_wechats(200, r#"{"errcode":0,"errmsg":"ok"}"#);
}

#[tokio::test]
async fn a_request_line_that_is_none_gets_400() {
    refused(
        vec![
            ("HTTP/0.9", b"GET /cgi-bin/x\r\n\r\n".to_vec()),
            ("no method", line(" /cgi-bin/x HTTP/1.1")),
            ("no target", line("GET HTTP/1.1")),
            ("an empty target", line("GET  HTTP/1.1")),
            ("two spaces before the version", line("GET /cgi-bin/x  HTTP/1.1")),
            ("a space in the target", line("GET /cgi-bin/x y HTTP/1.1")),
            ("a tab as separator", line("GET\t/cgi-bin/x\tHTTP/1.1")),
            ("a space at the end of the line", line("GET /cgi-bin/x HTTP/1.1 ")),
            ("a parenthesis in the method", line("G(ET /cgi-bin/x HTTP/1.1")),
            ("a colon in the method", line("GET: /cgi-bin/x HTTP/1.1")),
            ("UTF-8 in the method", line("GÉT /cgi-bin/x HTTP/1.1")),
            ("a NUL in the method", line("GE\0T /cgi-bin/x HTTP/1.1")),
            ("a version of the future", line("GET /cgi-bin/x HTTP/1.2")),
            ("HTTP/2.0 in the old form", line("GET /cgi-bin/x HTTP/2.0")),
            ("a lower-case version", line("GET /cgi-bin/x http/1.1")),
            ("a version with leading zeros", line("GET /cgi-bin/x HTTP/01.1")),
            ("another protocol", line("GET /cgi-bin/x ICY/1.1")),
            ("HTTP/2's preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
            ("a TLS ClientHello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03abcdefgh".to_vec()),
            ("a reply", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec()),
            (
                "a PROXY line before the request",
                [&b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n"[..], &get("")].concat(),
            ),
            ("white space before the request", [&b"  "[..], &get("")].concat()),
            ("several empty lines before the request", [&b"\r\n\r\n\r\n"[..], &get("")].concat()),
            ("a bare LF before the request", [&b"\n"[..], &get("")].concat()),
            ("a # in the target", line("GET /cgi-bin/x#y HTTP/1.1")),
            ("a # in the query", line("GET /cgi-bin/x?a=1#&access_token=y HTTP/1.1")),
            ("a NUL in the target", line("GET /cgi-bin/\0x HTTP/1.1")),
            ("a CR in the target", line("GET /cgi-bin/\rx HTTP/1.1")),
            ("an escape character in the target", line("GET /cgi-bin/\x1bx HTTP/1.1")),
            ("a DEL in the target", line("GET /cgi-bin/\x7fx HTTP/1.1")),
            ("a tab in the query", line("GET /cgi-bin/x?a=\tb HTTP/1.1")),
        ],
        400,
    )
    .await;
}

#[tokio::test]
async fn a_header_that_can_be_read_in_two_ways_gets_400() {
    refused(
        vec![
            ("obs-fold with a space", get("X-A: 1\r\n 2\r\n")),
            ("obs-fold with a tab", get("X-A: 1\r\n\t2\r\n")),
            ("obs-fold that hides a length", post("X-A: 1\r\n Content-Length: 5\r\n", "hello")),
            (
                "a fold right after the request line",
                b"GET /x HTTP/1.1\r\n X-A: 1\r\nHost: a\r\n\r\n".to_vec(),
            ),
            ("a NUL in a value", get("X-A: a\0b\r\n")),
            ("a bare CR in a value", get("X-A: a\rX-B: b\r\n")),
            ("a CR at the end of a value", get("X-A: a\r\r\n")),
            ("a bare LF as line end", get("X-A: a\nX-B: b\r\n")),
            ("a bare LF that ends the head", b"GET /cgi-bin/x HTTP/1.1\nHost: a\n\n".to_vec()),
            ("a bare LF after the request line", b"GET /cgi-bin/x HTTP/1.1\nHost: a\r\n\r\n".to_vec()),
            ("a bell in a value", get("X-A: \x07\r\n")),
            ("a DEL in a value", get("X-A: a\x7f\r\n")),
            ("a vertical tab in a value", get("X-A: a\x0bb\r\n")),
            ("a space before the colon", get("X-A : a\r\n")),
            ("a tab before the colon", get("X-A\t: a\r\n")),
            ("a space before the length's colon", post("Content-Length : 5\r\n", "hello")),
            ("a space before the encoding's colon", post("Transfer-Encoding : chunked\r\n", "0\r\n\r\n")),
            ("a line without a colon", get("X-A\r\n")),
            ("a line that begins with a colon", get(": a\r\n")),
            ("a space in a name", get("X A: a\r\n")),
            ("UTF-8 in a name", get("X-Ä: a\r\n")),
            ("a NUL in a name", get("X-\0A: a\r\n")),
            ("a second request line among the headers", get("GET /cgi-bin/y HTTP/1.1\r\n")),
            ("a slash in a name", get("X/A: a\r\n")),
            ("a CR alone where the head ends", b"GET /cgi-bin/x HTTP/1.1\r\nHost: a\r\n\rX".to_vec()),
        ],
        400,
    )
    .await;
}

#[tokio::test]
async fn two_statements_on_where_a_body_ends_get_400() {
    refused(
        vec![
            ("two equal lengths", post("Content-Length: 5\r\nContent-Length: 5\r\n", "hello")),
            ("two lengths", post("Content-Length: 5\r\nContent-Length: 6\r\n", "hello!")),
            ("two lengths in other letters", post("content-length: 5\r\nCONTENT-LENGTH: 0\r\n", "hello")),
            ("a list of equal lengths", post("Content-Length: 5, 5\r\n", "hello")),
            ("a list of lengths", post("Content-Length: 5,6\r\n", "hello!")),
            ("a length with a sign", post("Content-Length: +5\r\n", "hello")),
            ("a negative length", post("Content-Length: -5\r\n", "hello")),
            ("a negative zero", post("Content-Length: -0\r\n", "")),
            ("a hexadecimal length", post("Content-Length: 0x5\r\n", "hello")),
            ("a length with a point", post("Content-Length: 5.0\r\n", "hello")),
            ("a length with a space inside", post("Content-Length: 1 0\r\n", "hello")),
            ("an empty length", post("Content-Length:\r\n", "hello")),
            ("a length in words", post("Content-Length: five\r\n", "hello")),
            ("a length in other digits", post("Content-Length: \u{ff15}\r\n", "hello")),
            ("a length in quotes", post("Content-Length: \"5\"\r\n", "hello")),
            ("a length beyond i64", post("Content-Length: 9223372036854775808\r\n", "hello")),
            ("a length beyond u64", post("Content-Length: 18446744073709551621\r\n", "hello")),
            (
                "a length, then an encoding",
                post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
            ),
            (
                "an encoding, then a length",
                post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"),
            ),
            (
                "an encoding, and a length of 0",
                post("Transfer-Encoding: chunked\r\nContent-Length: 0\r\n", "0\r\n\r\n"),
            ),
            ("gzip, chunked", post("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n")),
            ("chunked, chunked", post("Transfer-Encoding: chunked, chunked\r\n", "0\r\n\r\n")),
            (
                "chunked twice, in two lines",
                post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
            ),
            ("chunked, identity", post("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n")),
            ("identity", post("Transfer-Encoding: identity\r\n", "")),
            ("xchunked", post("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n")),
            ("chunkedx", post("Transfer-Encoding: chunkedx\r\n", "0\r\n\r\n")),
            ("chunked with a parameter", post("Transfer-Encoding: chunked;q=1\r\n", "0\r\n\r\n")),
            ("chunked with a comma", post("Transfer-Encoding: ,chunked\r\n", "0\r\n\r\n")),
            ("chunked in quotes", post("Transfer-Encoding: \"chunked\"\r\n", "0\r\n\r\n")),
            ("an empty encoding", post("Transfer-Encoding:\r\n", "0\r\n\r\n")),
            ("a vertical tab before chunked", post("Transfer-Encoding: \x0bchunked\r\n", "0\r\n\r\n")),
            (
                "chunked in HTTP/1.0",
                format!("POST /cgi-bin/x HTTP/1.0\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
                    .into(),
            ),
        ],
        400,
    )
    .await;
}

#[tokio::test]
async fn a_chunk_that_is_none_gets_400_and_its_call_is_not_forwarded() {
    let chunked = |body: &str| post("Transfer-Encoding: chunked\r\n", body);
    refused(
        vec![
            ("a size that is no number", chunked("x\r\nhello\r\n0\r\n\r\n")),
            ("an empty size", chunked("\r\nhello\r\n0\r\n\r\n")),
            ("a negative size", chunked("-5\r\nhello\r\n0\r\n\r\n")),
            ("a size with 0x", chunked("0x5\r\nhello\r\n0\r\n\r\n")),
            ("a size with a leading space", chunked(" 5\r\nhello\r\n0\r\n\r\n")),
            ("a size beyond u64", chunked("10000000000000005\r\nhello\r\n0\r\n\r\n")),
            ("a chunk longer than its size", chunked("4\r\nhello\r\n0\r\n\r\n")),
            ("a chunk that does not end with CR LF", chunked("5\r\nhello0\r\n\r\n")),
            ("a bare LF after a size", chunked("5\nhello\r\n0\r\n\r\n")),
            ("a bare LF after a chunk", chunked("5\r\nhello\n0\r\n\r\n")),
            ("a bare CR in an extension", chunked("5;a\rb\r\nhello\r\n0\r\n\r\n")),
            ("a NUL in an extension", chunked("5;a\0b\r\nhello\r\n0\r\n\r\n")),
            ("a length among the trailers", chunked("5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n")),
            (
                "an encoding among the trailers",
                chunked("5\r\nhello\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n"),
            ),
            ("a folded trailer", chunked("5\r\nhello\r\n0\r\nX-A: a\r\n b\r\n\r\n")),
        ],
        400,
    )
    .await;
}

#[tokio::test]
async fn a_head_without_exactly_one_host_gets_400() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::before(&upstream).await;
    for (why, head) in [
        ("no Host", "GET /cgi-bin/x HTTP/1.1\r\n\r\n"),
        ("two equal ones", "GET /cgi-bin/x HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"),
        ("two", "GET /cgi-bin/x HTTP/1.1\r\nHost: a\r\nX-A: 1\r\nhost: b\r\n\r\n"),
        ("two in HTTP/1.0", "GET /cgi-bin/x HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n"),
        ("none, hidden behind Connection", "GET /cgi-bin/x HTTP/1.1\r\nConnection: host\r\n\r\n"),
        ("none, where we would answer", "GET /cgi-bin/token HTTP/1.1\r\n\r\n"),
    ] {
        let mut client = sidecar.connect().await;
        let reply = client.call(head).await;
        assert_eq!(reply.status, 400, "{why}: {reply:?}");
        reply.assert_ours(400, "bad-host");
        client.assert_closed(why).await;
    }
    assert_eq!(upstream.connections(), 0, "nothing reached the upstream");
    sidecar
        .call("GET /cgi-bin/x HTTP/1.0\r\n\r\n")
        .await
        .assert_wechats(200, r#"{"errcode":0,"errmsg":"ok"}"#);
    let seen = upstream.the_call();
    assert_eq!(
        seen.all("host"),
        [upstream.address.to_string()],
        "HTTP/1.0 needs no Host, the upstream gets one"
    );
}

#[tokio::test]
async fn a_head_that_is_too_long_gets_431_and_a_target_that_is_gets_414() {
    let many = |n: usize| (0..n).map(|n| format!("X-{n}: a\r\n")).collect::<String>();
    let long = |n: usize| format!("X-A: {}\r\n", "a".repeat(n));
    refused(
        vec![
            ("101 headers", get(&many(100))),
            ("1000 headers", get(&many(1000))),
            ("64 KiB of one header", get(&long(64 * 1024))),
            ("64 KiB of many", get(&long(7000).repeat(10))),
            ("a megabyte of one header", get(&long(1 << 20))),
            ("a megabyte of one name", get(&format!("{}: a\r\n", "a".repeat(1 << 20)))),
        ],
        431,
    )
    .await;
    // By default a target is too long for the head before it is too long for a target.
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::configured(&upstream, |config| config.server.max_head = 256 * 1024).await;
    for (length, status, cause) in
        [(65_534, 414, "target-too-long"), (200_000, 414, "target-too-long"), (65_533, 400, "bad-target")]
    {
        let reply = sidecar.call(line(&format!("GET /wxa/{} HTTP/1.1", "a".repeat(length - 4)))).await;
        assert_eq!((reply.status, reply.cause()), (status, cause), "a target of {length} + 1 bytes");
    }
    assert_eq!(upstream.connections(), 0, "nothing reached the upstream");
}

#[tokio::test]
async fn a_head_up_to_the_limit_is_forwarded() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::before(&upstream).await;
    let many: String = (0..99).map(|n| format!("X-{n}: a\r\n")).collect();
    for (why, head) in [
        ("100 headers", get(&many)),
        ("60 KiB of one header", get(&format!("X-A: {}\r\n", "a".repeat(60 * 1024)))),
        ("60 KiB of target", line(&format!("GET /wxa/{} HTTP/1.1", "a".repeat(60 * 1024)))),
        ("one empty line before the request", [&b"\r\n"[..], &get("")].concat()),
        ("a value with a tab and UTF-8", get("X-A: a\t\u{4e2d}\r\n")),
        ("white space around a length", post("Content-Length: \t5 \r\n", "hello")),
        ("a length with leading zeros", post("Content-Length: 0005\r\n", "hello")),
        (
            "CHUNKED in other letters",
            post("transfer-encoding: CHUNKED\r\n", "5;a=b\r\nhello\r\n0\r\nX-T: 1\r\n\r\n"),
        ),
    ] {
        let reply = sidecar.call(&head).await;
        assert_eq!(reply.status, 200, "{why}: {reply:?}");
        assert_eq!(upstream.take_seen().len(), 1, "{why}");
    }
}

#[tokio::test]
async fn what_follows_a_refused_request_on_its_connection_is_not_even_read() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::before(&upstream).await;
    let bad = post("Content-Length: 5\r\nContent-Length: 6\r\n", "hello!");
    let mut client = sidecar.connect().await;
    client.send([&get("")[..], &bad, &get("")].concat()).await;
    client.reply().await.assert_wechats(200, r#"{"errcode":0,"errmsg":"ok"}"#);
    assert_eq!(client.reply().await.status, 400);
    client.assert_closed("after the bad one").await;
    assert_eq!(upstream.calls(), 1, "the good one before it, and nothing after it");
}

#[tokio::test]
async fn a_request_within_a_body_stays_a_body() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::before(&upstream).await;
    let hidden = "GET /cgi-bin/hidden HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut client = sidecar.connect().await;
    client.send(post(&format!("Content-Length: {}\r\n", hidden.len()), hidden)).await;
    client.reply().await.assert_wechats(200, r#"{"errcode":0,"errmsg":"ok"}"#);
    assert_eq!(upstream.the_call().body, hidden.as_bytes());
    let body = format!("{:x}\r\n{hidden}\r\n0\r\n\r\n", hidden.len());
    client.send(post("Transfer-Encoding: chunked\r\n", &body)).await;
    client.reply().await.assert_wechats(200, r#"{"errcode":0,"errmsg":"ok"}"#);
    assert_eq!(upstream.the_call().body, hidden.as_bytes());
}

#[tokio::test]
async fn a_head_that_comes_byte_by_byte_is_a_head() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::before(&upstream).await;
    let mut client = sidecar.connect().await;
    for byte in post("Content-Length: 5\r\n", "hello") {
        client.send([byte]).await;
        tokio::time::sleep(crate::rig::ms(1)).await;
    }
    client.reply().await.assert_wechats(200, r#"{"errcode":0,"errmsg":"ok"}"#);
    assert_eq!(upstream.the_call().body, b"hello");
    // And a bad one is found at whatever byte it turns bad.
    for byte in post("Content-Length: 5\r\nContent-Length: 5\r\n", "") {
        client.send([byte]).await;
        tokio::time::sleep(crate::rig::ms(1)).await;
    }
    assert_eq!(client.reply().await.status, 400);
    client.assert_closed("a bad head, byte by byte").await;
    assert_eq!(upstream.calls(), 0);
}

#[tokio::test]
async fn of_several_requests_in_one_piece_each_is_judged_by_its_own_host() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::before(&upstream).await;
    let post =
        |path: &str, lines: &str| format!("POST {path} HTTP/1.1\r\n{lines}Content-Length: 2\r\n\r\n{{}}");
    let ours = post("/cgi-bin/ours", "Host: 127.0.0.1\r\n");
    let foreign = post("/cgi-bin/foreign", "Host: evil.example\r\n");
    // Not a plain head, and one that hyper gets as a whole.
    let odd = post("/cgi-bin/odd", "X_a:\t1\r\nHost:\tevil.example\r\n");
    let long = post("/cgi-bin/long", &format!("Host: evil.example\r\nX-A: {}\r\n", "a".repeat(12_000)));
    for requests in
        [[&ours, &foreign, &ours], [&foreign, &ours, &odd], [&odd, &long, &ours], [&ours, &ours, &long]]
    {
        let before = upstream.calls();
        let mut client = sidecar.connect().await;
        client.send(requests.map(String::as_str).concat()).await;
        for request in requests {
            let reply = client.reply().await;
            let expected = if *request == ours { 200 } else { 421 };
            assert_eq!(reply.status, expected, "{request}: {reply:?}");
        }
        assert_eq!(upstream.calls() - before, requests.iter().filter(|request| ***request == ours).count());
    }
}
