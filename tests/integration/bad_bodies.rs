//! Bodies that are too large, stop, break off, or come without a length.

use crate::rig::{End, Gate, RawUpstream, Sidecar, Step, ms, say, within};

const OK: &str = r#"{"errcode":0,"errmsg":"ok"}"#;

fn post(lines: &str) -> String {
    format!("POST /cgi-bin/x HTTP/1.1\r\nHost: a\r\n{lines}\r\n")
}

#[tokio::test]
async fn a_length_above_max_body_gets_413_at_once() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::configured(&upstream, |config| config.proxy.max_body = 1000).await;
    for (why, lines) in [
        ("one byte too many", "Content-Length: 1001\r\n"),
        ("the largest length there is", "Content-Length: 9223372036854775807\r\n"),
        ("an app that waits for a 100", "Content-Length: 1001\r\nExpect: 100-continue\r\n"),
    ] {
        let mut client = sidecar.connect().await;
        // Not a byte of the body is sent.
        let reply = client.call(post(lines)).await;
        assert_eq!(reply.status, 413, "{why}: {reply:?}");
        reply.assert_ours(413, "body-too-large");
        client.assert_closed(why).await;
    }
    assert_eq!(upstream.connections(), 0, "nothing reached the upstream");
    sidecar.call(post("Content-Length: 1000\r\n") + &"a".repeat(1000)).await.assert_wechats(200, OK);
}

#[tokio::test]
async fn an_app_that_is_answered_while_it_still_sends_is_told_that_the_connection_ends() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::configured(&upstream, |config| config.proxy.max_body = 1000).await;
    let early = "POST /no/such/thing HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n";
    let mut client = sidecar.connect().await;
    let reply = client.call(early).await;
    assert_eq!((reply.status, reply.header("connection")), (403, Some("close")), "{reply:?}");
    client.assert_closed("it was told").await;
    // With all of it here, there is nothing in the way of the next call.
    let mut client = sidecar.connect().await;
    let reply = client.call(early.to_owned() + "0123456789").await;
    assert_eq!((reply.status, reply.header("connection")), (403, None), "{reply:?}");
    client.call(post("Content-Length: 2\r\n") + "{}").await.assert_wechats(200, OK);
}

#[tokio::test]
async fn a_413_arrives_while_the_app_still_sends() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::configured(&upstream, |config| config.proxy.max_body = 1000).await;
    // More than all socket buffers hold, so that it is not sent before the sidecar reads it.
    let body = "a".repeat(24 << 20);
    let mut client = sidecar.connect().await;
    let mut request = post(&format!("Content-Length: {}\r\n", body.len()));
    request.push_str(&body);
    client.call(request).await.assert_ours(413, "body-too-large");
    let mut client = sidecar.connect().await;
    let request =
        post("Transfer-Encoding: chunked\r\n") + &format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    client.call(request).await.assert_ours(413, "body-too-large");
    // And where the app sends all of it before it looks for an answer, as most do.
    for lines in ["Content-Length: 3000000\r\n", "Transfer-Encoding: chunked\r\n\r\n2dc6c0\r\n"] {
        let mut client = sidecar.connect().await;
        client.send(post(lines).trim_end_matches("\r\n").to_owned() + "\r\n\r\n").await;
        client.send(&body.as_bytes()[..3_000_000]).await;
        client.reply().await.assert_ours(413, "body-too-large");
    }
    assert_eq!(upstream.connections(), 0, "nothing reached the upstream");
}

#[tokio::test]
async fn chunks_that_pass_max_body_get_413() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::configured(&upstream, |config| config.proxy.max_body = 1000).await;
    let chunk = format!("64\r\n{}\r\n", "a".repeat(100));
    let mut client = sidecar.connect().await;
    // The end of the body never comes.
    client.send(post("Transfer-Encoding: chunked\r\n") + &chunk.repeat(10) + "1\r\na\r\n").await;
    client.reply().await.assert_ours(413, "body-too-large");
    client.assert_closed("too many chunks").await;
    assert_eq!(upstream.connections(), 0, "nothing reached the upstream");
    let good = post("Transfer-Encoding: chunked\r\n") + &chunk.repeat(10) + "0\r\n\r\n";
    sidecar.call(good).await.assert_wechats(200, OK);
    assert_eq!(upstream.the_call().body.len(), 1000);
}

#[tokio::test]
async fn a_body_that_stops_coming_gets_408() {
    for (why, request, most) in [
        ("with a length", post("Content-Length: 10\r\n") + "hello", 1),
        ("with a length, before its first byte", post("Content-Length: 10\r\n"), 1),
        ("in a chunk", post("Transfer-Encoding: chunked\r\n") + "a\r\nhello", 0),
        ("between chunks", post("Transfer-Encoding: chunked\r\n") + "5\r\nhello\r\n", 0),
    ] {
        // Of its own, as the upstream may note a call's head only after the app has its answer.
        let upstream = RawUpstream::start().await;
        let sidecar = Sidecar::configured(&upstream, |config| config.upstream.idle_timeout = ms(200)).await;
        let mut client = sidecar.connect().await;
        client.send(request).await;
        let reply = client.reply().await;
        assert_eq!(reply.status, 408, "{why}: {reply:?}");
        reply.assert_ours(408, "request-timeout");
        client.assert_closed(why).await;
        upstream.until("the end of the upload", |log| log.open == 0).await;
        let seen = upstream.take_seen();
        assert!(seen.len() <= most && seen.iter().all(|seen| !seen.whole), "{why}: {seen:?}");
    }
}

#[tokio::test]
async fn a_slow_app_is_not_a_slow_upstream() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::configured(&upstream, |config| {
        config.upstream.response_timeout = ms(100);
        config.upstream.idle_timeout = ms(10_000);
    })
    .await;
    let mut client = sidecar.connect().await;
    client.send(post("Content-Length: 10\r\n") + "hello").await;
    // WeChat has not been asked yet: its time to answer has not begun.
    tokio::time::sleep(ms(400)).await;
    client.send("world").await;
    client.reply().await.assert_wechats(200, OK);
    assert_eq!(upstream.the_call().body, b"helloworld");
}

#[tokio::test]
async fn an_app_that_leaves_in_the_middle_of_its_body_sends_no_call() {
    for (why, request, most) in [
        ("with a length", post("Content-Length: 10\r\n") + "hello", 1),
        ("in a chunk", post("Transfer-Encoding: chunked\r\n") + "a\r\nhello", 0),
        ("before the last chunk", post("Transfer-Encoding: chunked\r\n") + "5\r\nhello\r\n", 0),
        ("within the trailers", post("Transfer-Encoding: chunked\r\n") + "5\r\nhello\r\n0\r\nX-A: b\r\n", 0),
    ] {
        // Of its own, as the upstream may note a call's head only after the app has its answer.
        let upstream = RawUpstream::start().await;
        let sidecar = Sidecar::before(&upstream).await;
        let mut client = sidecar.connect().await;
        client.send(&request).await;
        if most > 0 {
            upstream.until("the upload", |log| log.seen.len() == 1).await;
        }
        drop(client);
        upstream.until("the end of the upload", |log| log.open == 0).await;
        // And one that only ends its side hears what became of it.
        let mut client = sidecar.connect().await;
        client.send(&request).await;
        client.half_close().await;
        let reply = client.reply().await;
        assert_eq!((reply.status, reply.cause()), (400, "request-body"), "{why}: {reply:?}");
        client.assert_closed(why).await;
        upstream.until("the end of the upload", |log| log.open == 0).await;
        let seen = upstream.take_seen();
        assert!(seen.len() <= 2 * most && seen.iter().all(|seen| !seen.whole), "{why}: {seen:?}");
    }
}

#[tokio::test]
async fn an_app_that_ends_its_side_after_the_request_gets_its_answer() {
    let gate = Gate::new();
    let slow = vec![
        Step::ReadBody,
        Step::Wait(gate.clone()),
        Step::Say(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec()),
    ];
    let upstream = RawUpstream::playing([slow.clone(), slow]).await;
    let sidecar = Sidecar::before(&upstream).await;
    for request in
        ["GET /cgi-bin/x HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), post("Content-Length: 5\r\n") + "hello"]
    {
        let mut client = sidecar.connect().await;
        client.send(request).await;
        client.half_close().await;
        upstream.until("the call", |log| !log.seen.is_empty()).await;
        gate.open();
        client.reply().await.assert_wechats(200, "ok");
        client.assert_closed("the app has ended its side").await;
        assert_eq!(upstream.take_seen().len(), 1);
    }
}

#[tokio::test]
async fn an_app_that_leaves_before_the_answer_takes_nobody_with_it() {
    let gate = Gate::new();
    let slow = vec![
        Step::ReadBody,
        Step::Wait(gate.clone()),
        Step::Say(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec()),
    ];
    let upstream = RawUpstream::playing([slow]).await;
    let sidecar = Sidecar::before(&upstream).await;
    let mut client = sidecar.connect().await;
    client.send(post("Content-Length: 5\r\n") + "hello").await;
    upstream.until("the call", |log| log.seen.len() == 1).await;
    drop(client);
    sidecar.call(post("Content-Length: 0\r\n")).await.assert_wechats(200, OK);
    gate.open();
    assert_eq!(upstream.calls(), 2, "each was sent once");
}

#[tokio::test]
async fn a_chunked_body_that_finds_no_room_gets_503() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::configured(&upstream, |config| {
        config.proxy.replay_budget = 1000;
        config.proxy.replay_limit = 1000;
    })
    .await;
    let chunked = |n: usize| {
        post("Transfer-Encoding: chunked\r\n") + &format!("{n:x}\r\n{}\r\n0\r\n\r\n", "a".repeat(n))
    };
    let reply = sidecar.call(chunked(1001)).await;
    reply.assert_ours(503, "out-of-budget");
    assert_eq!(reply.header("retry-after"), Some("1"));
    assert_eq!(upstream.connections(), 0, "nothing reached the upstream");
    // What was taken for it is free again, each time.
    for _ in 0..5 {
        sidecar.call(chunked(1000)).await.assert_wechats(200, OK);
    }
}

#[tokio::test]
async fn a_request_that_is_cut_anywhere_gets_no_answer_or_an_error_and_is_not_forwarded_whole() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::before(&upstream).await;
    let request = post("Content-Length: 5\r\nX-A: b\r\n") + "hello";
    for at in 0..request.len() {
        let mut client = sidecar.connect().await;
        client.send(&request[..at]).await;
        client.half_close().await;
        let reply = client.reply().await;
        assert!(
            matches!((reply.status, reply.end), (0, End::Short) | (400, End::Whole)),
            "cut at {at}: {reply:?}"
        );
    }
    upstream.until("the end of the uploads", |log| log.open == 0).await;
    assert!(upstream.seen().iter().all(|seen| !seen.whole), "{:?}", upstream.seen());
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_upload_reaches_the_app_and_the_upload_goes_on() {
    let gate = Gate::new();
    let early = vec![
        Step::Say(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nearly".to_vec()),
        Step::Wait(gate.clone()),
        Step::ReadBody,
    ];
    let upstream = RawUpstream::playing([early]).await;
    let sidecar = Sidecar::before(&upstream).await;
    let mut client = sidecar.connect().await;
    let body = "a".repeat(8 << 20);
    client.send(post(&format!("Content-Length: {}\r\n", body.len())) + "a").await;
    client.reply().await.assert_wechats(200, "early");
    gate.open();
    client.send(&body[1..]).await;
    upstream.until("the upload", |log| log.seen.iter().any(|seen| seen.whole)).await;
    assert_eq!(upstream.the_call().body.len(), body.len());
    // The connection goes on, and the next call does not wait for anyone.
    client.call("GET /cgi-bin/y HTTP/1.1\r\nHost: a\r\n\r\n").await.assert_wechats(200, OK);
}

#[tokio::test]
async fn an_answer_that_ends_the_upload_reaches_the_app() {
    // As a server does that has seen enough: it answers, ends its side and reads on for a while.
    let enough = vec![
        Step::Say(
            b"HTTP/1.1 413 Payload Too Large\r\nConnection: close\r\nContent-Length: 5\r\n\r\nlarge".to_vec(),
        ),
        Step::HalfClose,
    ];
    let upstream = RawUpstream::playing([enough]).await;
    let sidecar = Sidecar::before(&upstream).await;
    let mut client = sidecar.connect().await;
    let body = "a".repeat(8 << 20);
    let reply = client.call(post(&format!("Content-Length: {}\r\n", body.len())) + &body).await;
    reply.assert_wechats(413, "large");
    assert_eq!(upstream.calls(), 1);
}

#[tokio::test]
async fn calls_in_flight_finish_after_a_stop() {
    let gate = Gate::new();
    let slow = [
        vec![Step::ReadBody, Step::Wait(gate.clone())],
        say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
    ]
    .concat();
    let upstream = RawUpstream::playing([slow]).await;
    let sidecar = Sidecar::before(&upstream).await;
    let mut client = sidecar.connect().await;
    client.send(post("Content-Length: 5\r\n") + "hello").await;
    upstream.until("the call", |log| log.seen.len() == 1).await;
    let stopping = tokio::spawn(sidecar.stop());
    gate.open();
    client.reply().await.assert_wechats(200, "ok");
    client.assert_closed("the sidecar stops").await;
    within("the stop", stopping).await.unwrap();
}

#[tokio::test]
async fn an_app_that_stops_reading_its_reply_is_let_go() {
    let body = vec![b'x'; 64 << 20];
    let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
    answer.extend_from_slice(&body);
    let upstream = RawUpstream::playing([say(&answer)]).await;
    let sidecar = Sidecar::configured(&upstream, |config| config.upstream.idle_timeout = ms(300)).await;
    let mut client = sidecar.connect().await;
    client.send("GET /cgi-bin/x HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(client.head().await.status, 200);
    // It takes no more, and stays. More than the buffers between hold is on the way.
    upstream.until("the end of the call", |log| log.seen.len() == 1 && log.open == 0).await;
    drop(client);
}

#[tokio::test]
async fn a_token_request_that_is_too_large_is_told_what_helps() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::before(&upstream).await;
    let body = "x".repeat(100_000);
    for path in ["/cgi-bin/stable_token", "/cgi-bin/clear_quota/v2"] {
        let head = format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len());
        let reply = sidecar.call(head + &body).await;
        reply.assert_ours(413, "body-too-large");
        let text = reply.text();
        assert!(text.contains("this path") && !text.contains("max_body"), "{path}: {text}");
    }
    assert_eq!(upstream.connections(), 0, "nothing reached the upstream");
}
