//! Replies as they should be: what comes back to the app, byte for byte.

use crate::rig::{End, Gate, RawUpstream, Reply, Sidecar, Step, say};

const GET: &str = "GET /cgi-bin/x HTTP/1.1\r\nHost: a\r\n\r\n";

/// What the app gets for a call that is answered so.
async fn answered(request: &str, answer: &str) -> Reply {
    let upstream = RawUpstream::playing([say(answer)]).await;
    let sidecar = Sidecar::before(&upstream).await;
    let reply = sidecar.call(request).await;
    assert_eq!(upstream.calls(), 1, "one call: {answer:?}");
    reply
}

#[tokio::test]
async fn a_reply_comes_back_as_it_was_sent() {
    let reply = answered(
        GET,
        "HTTP/1.1 299 Very Fine Indeed\r\nServer: nginx\r\nset-cookie: a=1\r\nX-Own: 中\r\nSet-Cookie: b=2\r\nContent-Type: text/plain\r\nCONTENT-LENGTH: 4\r\nDate: yesterday\r\nX-Empty:\r\n\r\nbody",
    )
    .await;
    reply.assert_wechats(299, "body");
    assert_eq!(reply.line, "HTTP/1.1 299 Very Fine Indeed");
    let headers: Vec<_> = reply.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(
        headers,
        [
            ("Server", "nginx"),
            ("set-cookie", "a=1"),
            ("X-Own", "中"),
            ("Set-Cookie", "b=2"),
            ("Content-Type", "text/plain"),
            ("CONTENT-LENGTH", "4"),
            ("Date", "yesterday"),
            ("X-Empty", ""),
        ]
    );
}

#[tokio::test]
async fn a_file_that_ends_like_an_answer_of_ours_comes_whole_and_the_next_reply_is_its_own() {
    let end = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    for size in [0, 10, 70_000, 300_000] {
        let body = "a".repeat(size) + end;
        let file = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let upstream = RawUpstream::playing([say(&file)]).await;
        let sidecar = Sidecar::before(&upstream).await;
        let mut client = sidecar.connect().await;
        client.call(GET).await.assert_wechats(200, &body);
        client.call("GET /no/such/thing HTTP/1.1\r\nHost: a\r\n\r\n").await.assert_ours(403, "not-allowed");
    }
}

#[tokio::test]
async fn what_only_the_sidecar_says_does_not_come_from_upstream() {
    let answer = "HTTP/1.1 200 OK\r\nX-WeChat-Sidecar-Error: no-token\r\nx-wechat-sidecar-attempts: 2\r\nContent-Length: 2\r\n\r\nok";
    assert_eq!(answered(GET, answer).await.headers, [("Content-Length".to_owned(), "2".to_owned())]);
}

#[tokio::test]
async fn no_header_is_added_to_a_reply() {
    let reply = answered(GET, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    assert_eq!(reply.headers, [("Content-Length".to_owned(), "2".to_owned())]);
}

#[tokio::test]
async fn every_status_passes() {
    for (status, body) in [
        (200, "ok"),
        (201, ""),
        (301, "x"),
        (400, "x"),
        (404, ""),
        (412, ""),
        (429, "x"),
        (500, "x"),
        (502, ""),
        (504, "x"),
        (599, ""),
        (999, "x"),
    ] {
        let reply = answered(
            GET,
            &format!("HTTP/1.1 {status} Words\r\nContent-Length: {}\r\n\r\n{body}", body.len()),
        )
        .await;
        reply.assert_wechats(status, body);
        assert_eq!(reply.line, format!("HTTP/1.1 {status} Words"));
    }
    assert_eq!(
        answered(GET, "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n").await.status,
        200,
        "a missing reason"
    );
}

#[tokio::test]
async fn headers_between_neighbours_do_not_come_back() {
    let reply = answered(
        GET,
        "HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Named\r\nX-Named: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: x\r\nProxy-Authenticate: Basic\r\nTrailer: X-T\r\nUpgrade: h2c\r\nX-Stays: 1\r\nContent-Length: 2\r\n\r\nok",
    )
    .await;
    reply.assert_wechats(200, "ok");
    let names: Vec<_> = reply.headers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names.len(), 2, "{reply:?}");
    assert!(names.contains(&"X-Stays") && names.contains(&"Content-Length"), "{reply:?}");
}

#[tokio::test]
async fn a_reply_without_a_body_has_none_and_the_connections_go_on() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::before(&upstream).await;
    let mut client = sidecar.connect().await;
    for (request, answer, status, length) in [
        (
            "HEAD",
            "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\nContent-Type: image/jpeg\r\n\r\n",
            200,
            Some("1234"),
        ),
        ("HEAD", "HTTP/1.1 200 OK\r\n\r\n", 200, None),
        ("HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 200, None),
        ("GET", "HTTP/1.1 204 No Content\r\nX-A: b\r\n\r\n", 204, None),
        ("GET", "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n", 304, None),
        // hyper leaves the length of what is not sent out, as RFC 9110 8.6 allows.
        ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 1234\r\n\r\n", 304, None),
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, Some("0")),
    ] {
        upstream.play([say(answer)]);
        let reply = client.call(GET.replace("GET", request)).await;
        assert_eq!(
            (reply.status, reply.header("content-length"), reply.text().as_str()),
            (status, length, ""),
            "{request} {answer:?}: {reply:?}"
        );
        // Had the client's or the upstream's connection been out of step, this would not be its answer.
        client.call(GET).await.assert_wechats(200, r#"{"errcode":0,"errmsg":"ok"}"#);
        assert_eq!(upstream.take_seen().len(), 2, "{request} {answer:?}");
    }
    assert_eq!(upstream.connections(), 1, "no answer ended the upstream's connection");
}

#[tokio::test]
async fn a_chunked_reply_comes_back_whole_in_the_clients_version() {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\nX-A: b\r\n\r\n4;ext=1\r\nbody\r\n00a\r\n in chunks\r\n0\r\nX-T: 1\r\n\r\n";
    let reply = answered(GET, chunked).await;
    reply.assert_wechats(200, "body in chunks");
    assert_eq!((reply.header("transfer-encoding"), reply.header("trailer")), (Some("chunked"), None));
    assert_eq!(reply.header("x-a"), Some("b"));
    let reply = answered("GET /cgi-bin/x HTTP/1.0\r\n\r\n", chunked).await;
    reply.assert_wechats(200, "body in chunks");
    assert_eq!(reply.header("transfer-encoding"), None, "HTTP/1.0 knows no chunks");
}

#[tokio::test]
async fn an_upstream_of_http_10_is_understood() {
    for (answer, body) in [
        ("HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\nbody", "body"),
        ("HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nto the end", "to the end"),
        ("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nto the end", "to the end"),
        ("HTTP/1.1 200 OK\r\n\r\n", ""),
    ] {
        let upstream = RawUpstream::start().await;
        let sidecar = Sidecar::before(&upstream).await;
        let mut client = sidecar.connect().await;
        upstream.play([[say(answer), vec![Step::Close]].concat()]);
        let reply = client.call(GET).await;
        reply.assert_wechats(200, body);
        assert!(reply.line.starts_with("HTTP/1.1 "), "we speak for ourselves: {answer:?} gave {reply:?}");
        client.call(GET).await.assert_wechats(200, r#"{"errcode":0,"errmsg":"ok"}"#);
        assert_eq!(upstream.calls(), 2, "{answer:?}");
    }
}

#[tokio::test]
async fn a_reply_streams_while_it_comes() {
    let gate = Gate::new();
    let upstream = RawUpstream::playing([vec![
        Step::ReadBody,
        Step::Say(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst".to_vec()),
        Step::Wait(gate.clone()),
        Step::Say(b"later".to_vec()),
    ]])
    .await;
    let sidecar = Sidecar::before(&upstream).await;
    let mut client = sidecar.connect().await;
    client.send(GET).await;
    assert_eq!(client.head().await.status, 200);
    assert_eq!(client.bytes(5).await, b"first", "before the rest is sent");
    gate.open();
    assert_eq!(client.bytes(5).await, b"later");
}

#[tokio::test]
async fn an_interim_answer_is_passed_over() {
    for interim in ["100 Continue\r\n", "102 Processing\r\n", "103 Early Hints\r\nLink: </a>\r\n"] {
        let reply =
            answered(GET, &format!("HTTP/1.1 {interim}\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
                .await;
        reply.assert_wechats(200, "ok");
        assert_eq!(reply.header("link"), None);
    }
}

#[tokio::test]
async fn five_megabytes_of_json_that_speak_of_40001_stream_untouched() {
    let mut body = br#"{"items":[{"errcode":40001,"errmsg":"invalid credential"}"#.to_vec();
    while body.len() < 5 << 20 {
        body.extend(br#",{"errcode":40001,"text":"access_token expired, \"errcode\":42001"}"#);
    }
    body.extend(br#"],"errcode":40001,"errmsg":"not a refusal, for its length"}"#);
    for framing in [format!("Content-Length: {}", body.len()), "Connection: close".to_owned()] {
        let mut answer =
            format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{framing}\r\n\r\n").into_bytes();
        answer.extend(&body);
        let upstream = RawUpstream::playing([[say(answer), vec![Step::Close]].concat()]).await;
        let sidecar = Sidecar::before(&upstream).await;
        let reply = sidecar.call(GET).await;
        assert_eq!((reply.status, reply.end), (200, End::Whole), "{framing}");
        assert!(reply.body == body, "the same bytes");
        assert_eq!(reply.header("x-wechat-sidecar-attempts"), None);
        assert_eq!(upstream.calls(), 1, "{framing}");
    }
}
