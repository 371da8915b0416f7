//! Requests as they should be: what goes upstream, byte for byte.

use crate::rig::{RawUpstream, Sidecar};

const OK: &str = r#"{"errcode":0,"errmsg":"ok"}"#;

#[tokio::test]
async fn a_request_goes_upstream_as_it_came_but_for_host_and_token() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::before(&upstream).await;
    let reply = sidecar
        .call(
            "POST /cgi-bin/message/custom/send?a=1 HTTP/1.1\r\nhOsT: api.weixin.qq.com\r\nX-One: 1\r\nx-two: 2\r\nX-ONE: 3\r\nContent-Type: application/json\r\nCONTENT-LENGTH: 7\r\nX-Empty:\r\nX-Utf8: 中\r\n\r\n{\"a\":1}",
        )
        .await;
    reply.assert_wechats(200, OK);
    let seen = upstream.the_call();
    assert_eq!(seen.line(), "POST /cgi-bin/message/custom/send?a=1&access_token=TOKEN-1 HTTP/1.1");
    assert_eq!(
        seen.headers(),
        [
            &*format!("hOsT: {}", upstream.address),
            "X-One: 1",
            "x-two: 2",
            "X-ONE: 3",
            "Content-Type: application/json",
            "CONTENT-LENGTH: 7",
            "X-Empty:",
            "X-Utf8: 中",
        ]
    );
    assert_eq!(seen.body, b"{\"a\":1}");
}

#[tokio::test]
async fn no_header_is_added() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::before(&upstream).await;
    for (request, added) in [
        ("GET /cgi-bin/x HTTP/1.1\r\nHost: a\r\n\r\n", None),
        ("GET /cgi-bin/x HTTP/1.0\r\n\r\n", None),
        ("DELETE /cgi-bin/x HTTP/1.1\r\nHost: a\r\n\r\n", None),
        ("HEAD /cgi-bin/x HTTP/1.1\r\nHost: a\r\n\r\n", None),
        ("OPTIONS /cgi-bin/x HTTP/1.1\r\nHost: a\r\n\r\n", None),
        // Without a length WeChat answers 412.
        ("POST /cgi-bin/x HTTP/1.1\r\nHost: a\r\n\r\n", Some("content-length: 0")),
        ("POST /cgi-bin/x HTTP/1.0\r\n\r\n", Some("content-length: 0")),
        ("PUT /cgi-bin/x HTTP/1.1\r\nHost: a\r\n\r\n", Some("content-length: 0")),
        ("PATCH /cgi-bin/x HTTP/1.1\r\nHost: a\r\n\r\n", Some("content-length: 0")),
        (
            "POST /cgi-bin/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            Some("content-length: 0"),
        ),
        ("GET /cgi-bin/x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", Some("content-length: 0")),
    ] {
        assert_eq!(sidecar.call(request).await.status, 200, "{request}");
        let seen = upstream.the_call();
        let mut expected = vec![format!("host: {}", upstream.address)];
        expected.extend(added.map(str::to_owned));
        let came: Vec<_> = seen.headers().iter().map(|line| line.to_ascii_lowercase()).collect();
        assert_eq!(came, expected, "{request}");
    }
}

#[tokio::test]
async fn every_method_passes() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::before(&upstream).await;
    for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND", "get", "X-OWN"] {
        let reply = sidecar
            .call(format!("{method} /cgi-bin/x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"))
            .await;
        reply.assert_wechats(200, OK);
        let seen = upstream.the_call();
        assert_eq!(seen.line(), format!("{method} /cgi-bin/x?access_token=TOKEN-1 HTTP/1.1"));
        assert_eq!(seen.body, b"hello", "{method}");
    }
}

#[tokio::test]
async fn the_query_keeps_its_bytes_but_for_the_token() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::before(&upstream).await;
    for (query, expected) in [
        ("", "?access_token=TOKEN-1"),
        ("?", "?access_token=TOKEN-1"),
        ("?a=%2F+%20b", "?a=%2F+%20b&access_token=TOKEN-1"),
        ("?a=%2f&a=1&a=", "?a=%2f&a=1&a=&access_token=TOKEN-1"),
        ("?z=1&a=2&m=3", "?z=1&a=2&m=3&access_token=TOKEN-1"),
        ("?name=中文&x=%E4%B8%AD", "?name=中文&x=%E4%B8%AD&access_token=TOKEN-1"),
        ("?a&b=&=c&&d", "?a&b=&=c&&d&access_token=TOKEN-1"),
        ("?a=b=c==", "?a=b=c==&access_token=TOKEN-1"),
        ("?a=?&b=/:@!$'()*,;", "?a=?&b=/:@!$'()*,;&access_token=TOKEN-1"),
        ("?a={b:[1]}|^`\\", "?a={b:[1]}|^`\\&access_token=TOKEN-1"),
        ("?a=%zz%", "?a=%zz%&access_token=TOKEN-1"),
        ("?access_token=OLD", "?access_token=TOKEN-1"),
        ("?access_token=OLD&a=1", "?a=1&access_token=TOKEN-1"),
        ("?a=1&access_token=OLD&b=2&access_token=", "?a=1&b=2&access_token=TOKEN-1"),
        ("?access_token&a=1", "?a=1&access_token=TOKEN-1"),
        ("?%61ccess_token=OLD&a=1", "?a=1&access_token=TOKEN-1"),
        ("?access%5ftoken=OLD&access%5Ftoken=OLD", "?access_token=TOKEN-1"),
        (
            "?Access_Token=x&access_tokens=y&xaccess_token=z",
            "?Access_Token=x&access_tokens=y&xaccess_token=z&access_token=TOKEN-1",
        ),
        ("?a=access_token=x", "?a=access_token=x&access_token=TOKEN-1"),
    ] {
        let reply = sidecar.call(format!("GET /cgi-bin/x{query} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        assert_eq!(reply.status, 200, "{query}: {reply:?}");
        let seen = upstream.the_call();
        assert_eq!(seen.line(), format!("GET /cgi-bin/x{expected} HTTP/1.1"), "{query}");
        assert_eq!(seen.token(), "TOKEN-1");
        assert!(seen.target().ends_with("access_token=TOKEN-1"), "ours stands last: {}", seen.target());
    }
}

#[tokio::test]
async fn a_query_with_what_no_url_may_hold_gets_400_and_is_not_repaired() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::before(&upstream).await;
    // The limits of the `http` crate, which takes all else that browsers and SDKs send.
    for query in ["a=\"b\"", "a=<b", "a=b>"] {
        let reply = sidecar.call(format!("GET /cgi-bin/x?{query} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        assert_eq!(reply.status, 400, "{query}: {reply:?}");
    }
    assert_eq!(upstream.connections(), 0);
}

#[tokio::test]
async fn headers_between_neighbours_stay_between_neighbours() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::before(&upstream).await;
    let reply = sidecar
        .call(
            "POST /cgi-bin/x HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, X-Named , x-other\r\nConnection: X-Third\r\nX-Named: 1\r\nX-Other: 2\r\nX-OTHER: 3\r\nX-Third: 4\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: Basic eA==\r\nTE: trailers\r\nTrailer: X-T\r\nUpgrade: h2c\r\nX-Stays: 5\r\nAuthorization: Basic eA==\r\nCookie: a=b\r\nContent-Length: 2\r\n\r\nhi",
        )
        .await;
    reply.assert_wechats(200, OK);
    let seen = upstream.the_call();
    let mut names: Vec<_> = seen.headers().iter().filter_map(|line| line.split(':').next()).collect();
    names.sort_unstable();
    assert_eq!(names, ["Authorization", "Content-Length", "Cookie", "Host", "X-Stays"]);
    assert_eq!(seen.body, b"hi");
}

#[tokio::test]
async fn a_connection_header_cannot_take_framing_or_host_away() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::before(&upstream).await;
    for named in ["Host, Content-Length", "content-length", "close, HOST", "中, X-Named", "X-Named\t,,"] {
        let request = format!(
            "POST /cgi-bin/x HTTP/1.1\r\nHost: a\r\nConnection: {named}\r\nX-Named: 1\r\nContent-Length: 5\r\n\r\nhello"
        );
        sidecar.call(request).await.assert_wechats(200, OK);
        let seen = upstream.the_call();
        assert_eq!(seen.all("host"), [upstream.address.to_string()], "{named}");
        assert_eq!(seen.body, b"hello", "{named}");
        assert_eq!(seen.all("x-named").is_empty(), named.contains("X-Named"), "{named}");
    }
}

#[tokio::test]
async fn compression_is_declined_where_a_refusal_must_be_read() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::before(&upstream).await;
    for (path, sent, expected) in [
        ("/cgi-bin/x", "Accept-Encoding: br, gzip\r\n", vec!["identity"]),
        ("/cgi-bin/x", "Accept-Encoding: br\r\nAccept-Encoding: gzip\r\n", vec!["identity"]),
        ("/cgi-bin/x", "", vec![]),
        // A user's token is never judged, so nothing has to be read.
        ("/sns/userinfo", "Accept-Encoding: br, gzip\r\n", vec!["br, gzip"]),
    ] {
        let reply = sidecar.call(format!("GET {path} HTTP/1.1\r\nHost: a\r\n{sent}\r\n")).await;
        reply.assert_wechats(200, OK);
        assert_eq!(upstream.the_call().all("accept-encoding"), expected, "{path} {sent}");
    }
}

#[tokio::test]
async fn a_chunked_request_goes_upstream_with_a_length_and_the_same_bytes() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::before(&upstream).await;
    let body: Vec<u8> = (0..70_000_u32).map(|n| (n % 251) as u8).collect();
    for size in [1000, 4096, 65_536, 70_000] {
        let mut request =
            b"POST /cgi-bin/media/upload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n".to_vec();
        for piece in body.chunks(size) {
            request.extend(format!("{:X};ext=\"a\"\r\n", piece.len()).bytes());
            request.extend(piece);
            request.extend(b"\r\n");
        }
        request.extend(b"0\r\nX-T: 1\r\n\r\n");
        sidecar.call(request).await.assert_wechats(200, OK);
        let seen = upstream.the_call();
        assert_eq!(seen.all("content-length"), ["70000"]);
        assert!(seen.body == body, "the same bytes, in chunks of {size}");
        assert!(seen.all("trailer").is_empty() && seen.all("x-t").is_empty(), "{}", seen.head);
    }
}

#[tokio::test]
async fn an_upload_goes_upstream_byte_for_byte() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::before(&upstream).await;
    let mut body =
        b"--b\r\nContent-Disposition: form-data; name=\"media\"; filename=\"\xe4\xb8\xad.jpg\"\r\n\r\n"
            .to_vec();
    body.extend((0..=255_u8).cycle().take(300_000));
    body.extend(b"\r\n--b--\r\n");
    for pieces in [1, 7, 4096, body.len()] {
        let mut client = sidecar.connect().await;
        let head = format!(
            "POST /cgi-bin/media/upload?type=image HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        client.send(head).await;
        for piece in body.chunks(body.len().div_ceil(pieces.min(5000))) {
            client.send(piece).await;
        }
        client.reply().await.assert_wechats(200, OK);
        let seen = upstream.the_call();
        assert_eq!(seen.all("content-type"), ["multipart/form-data; boundary=b"]);
        assert!(seen.body == body, "the same bytes, in {pieces} pieces");
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let upstream = RawUpstream::start().await;
    upstream
        .play((1..=5).map(|n| crate::rig::say(format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{n}"))));
    let sidecar = Sidecar::before(&upstream).await;
    let mut client = sidecar.connect().await;
    let requests: String = (1..=5)
        .map(|n| format!("POST /cgi-bin/x{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nbody{n}"))
        .collect();
    client.send(requests).await;
    for n in 1..=5 {
        client.reply().await.assert_wechats(200, n.to_string());
    }
    let seen = upstream.take_seen();
    let came: Vec<_> = seen.iter().map(|seen| (seen.target().to_owned(), seen.body.clone())).collect();
    let expected: Vec<_> = (1..=5)
        .map(|n| (format!("/cgi-bin/x{n}?access_token=TOKEN-1"), format!("body{n}").into_bytes()))
        .collect();
    assert_eq!(came, expected);
    assert_eq!(upstream.connections(), 1, "one call at a time needs one connection");
}

#[tokio::test]
async fn an_app_that_asks_for_a_100_gets_it_and_then_its_answer() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::before(&upstream).await;
    for framing in ["Content-Length: 5", "Transfer-Encoding: chunked"] {
        let mut client = sidecar.connect().await;
        client
            .send(format!("POST /cgi-bin/x HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n{framing}\r\n\r\n"))
            .await;
        assert_eq!(client.reply().await.status, 100, "{framing}");
        client.send(if framing.ends_with('5') { "hello" } else { "5\r\nhello\r\n0\r\n\r\n" }).await;
        client.reply().await.assert_wechats(200, OK);
        let seen = upstream.the_call();
        assert_eq!(seen.body, b"hello");
        assert!(seen.all("expect").is_empty(), "{}", seen.head);
    }
}

#[tokio::test]
async fn a_connection_is_kept_as_the_app_wishes() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::before(&upstream).await;
    for (why, head, kept) in [
        ("HTTP/1.1", "GET /cgi-bin/x HTTP/1.1\r\nHost: a\r\n\r\n", true),
        ("HTTP/1.1 that closes", "GET /cgi-bin/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", false),
        ("HTTP/1.0", "GET /cgi-bin/x HTTP/1.0\r\nHost: a\r\n\r\n", false),
        ("HTTP/1.0 that stays", "GET /cgi-bin/x HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n", true),
    ] {
        let mut client = sidecar.connect().await;
        client.call(head).await.assert_wechats(200, OK);
        if kept {
            client.call(head).await.assert_wechats(200, OK);
        } else {
            client.assert_closed(why).await;
        }
        assert!(upstream.take_seen().iter().all(|seen| seen.all("connection").is_empty()), "{why}");
    }
}

#[tokio::test]
async fn several_workers_serve_like_one() {
    let upstream = RawUpstream::start().await;
    let tokens = crate::rig::Tokens::start().await;
    let sidecar = crate::rig::Setup::new(&upstream.origin(), &tokens).workers(3).start().await;
    for _ in 0..20 {
        sidecar.call("GET /cgi-bin/x HTTP/1.1\r\nHost: a\r\n\r\n").await.assert_wechats(200, OK);
    }
    assert_eq!((upstream.calls(), tokens.fetches()), (20, 1));
    sidecar.stop().await;
}
