//! Replies that lie about their end: the app sees that something is missing, or an error; never a part that looks
//! whole, and never another reply's bytes.

use crate::rig::{End, RawUpstream, Reply, Sidecar, Step, ms, say};

const GET: &str = "GET /cgi-bin/x HTTP/1.1\r\nHost: a\r\n\r\n";
const GET_10: &str = "GET /cgi-bin/x HTTP/1.0\r\nHost: a\r\n\r\n";
const OK: &str = r#"{"errcode":0,"errmsg":"ok"}"#;

/// How an upstream leaves.
#[derive(Clone, Copy, Debug)]
enum Way {
    Close,
    Reset,
    Stall,
}

impl Way {
    fn step(self) -> Step {
        match self {
            Self::Close => Step::Close,
            Self::Reset => Step::Reset,
            Self::Stall => Step::Hang,
        }
    }
}

/// What the app gets when the upstream says this and then leaves. The pause lets it be sent on first.
async fn cut(request: &str, answer: &str, way: Way) -> Reply {
    let play = [say(answer), vec![Step::Pause(ms(50)), way.step()]].concat();
    let upstream = RawUpstream::playing([play]).await;
    let sidecar = Sidecar::configured(&upstream, |config| config.upstream.idle_timeout = ms(200)).await;
    let mut client = sidecar.connect().await;
    let reply = client.call(request).await;
    assert_eq!(upstream.calls(), 1, "{answer:?}, {way:?}");
    // Whatever happened: on this connection comes nothing more, or the answer to the next call.
    if reply.end == End::Whole && request == GET {
        client.call(GET).await.assert_wechats(200, OK);
    } else {
        let (rest, _) = client.rest().await;
        assert_eq!(String::from_utf8_lossy(&rest), "", "{answer:?}, {way:?}");
    }
    reply
}

#[tokio::test]
async fn a_reply_that_is_cut_is_seen_to_be_cut() {
    let head = |lines: &str| format!("HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n{lines}\r\n");
    for (why, answer) in [
        ("a length", head("Content-Length: 100\r\n") + "only this"),
        ("a length, nothing came", head("Content-Length: 5000\r\n")),
        ("chunks", head("Transfer-Encoding: chunked\r\n") + "9\r\nonly this\r\n"),
        ("within a chunk", head("Transfer-Encoding: chunked\r\n") + "64\r\nonly this"),
        ("before the last empty line", head("Transfer-Encoding: chunked\r\n") + "9\r\nonly this\r\n0\r\n"),
    ] {
        for way in [Way::Close, Way::Reset, Way::Stall] {
            for request in [GET, GET_10] {
                let reply = cut(request, &answer, way).await;
                assert_eq!(reply.status, 200, "{why}, {way:?}, {request:?}: {reply:?}");
                assert_ne!(reply.end, End::Whole, "{why}, {way:?}, {request:?}: {reply:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_reply_that_breaks_as_it_comes_is_seen_to_have_been_one() {
    // An app that got no byte at all would take its connection for one that was closed while idle, and call again. Too long
    // to be looked at first; and what breaks it is here with its head.
    let body = "x".repeat(5000);
    let answer =
        format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1388\r\n{body}\r\nno size\r\n");
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::before(&upstream).await;
    let mut client = sidecar.connect().await;
    client.call(GET).await.assert_wechats(200, OK);
    upstream.play([say(&answer)]);
    let reply = client.call(GET).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_ne!(reply.end, End::Whole, "{reply:?}");
    assert_eq!(reply.body, body.as_bytes());
}

#[tokio::test]
async fn a_reply_without_a_length_that_is_reset_is_seen_to_be_cut() {
    for version in ["HTTP/1.0", "HTTP/1.1"] {
        let answer = format!("{version} 200 OK\r\nContent-Type: text/plain\r\n\r\nonly this");
        for way in [Way::Reset, Way::Stall] {
            for request in [GET, GET_10] {
                let reply = cut(request, &answer, way).await;
                assert_ne!(reply.end, End::Whole, "{version}, {way:?}, {request:?}: {reply:?}");
            }
        }
        // Its close is its end; nobody can know more.
        cut(GET_10, &answer, Way::Close).await.assert_wechats(200, "only this");
        cut(GET, &answer, Way::Close).await.assert_wechats(200, "only this");
    }
}

#[tokio::test]
async fn a_bad_chunk_cuts_the_reply() {
    for (why, chunks) in [
        ("a size that is no number", "9\r\nonly this\r\nx\r\n"),
        ("no size", "9\r\nonly this\r\n\r\n0\r\n\r\n"),
        ("a chunk longer than its size", "8\r\nonly this\r\n0\r\n\r\n"),
        ("a size beyond u64", "9\r\nonly this\r\nfffffffffffffffff\r\n"),
        ("a bare CR in an extension", "9\r\nonly this\r\n4;a\rb\r\nmore\r\n0\r\n\r\n"),
    ] {
        for request in [GET, GET_10] {
            let answer = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
            let reply = cut(request, &answer, Way::Stall).await;
            // All of it may come at once, and then the app has seen nothing yet: either is honest.
            let honest = reply.end != End::Whole || reply.cause() == "upstream-closed";
            assert!(honest, "{why}, {request:?}: {reply:?}");
        }
    }
}

#[tokio::test]
async fn a_reply_that_breaks_while_it_is_looked_at_is_an_error_of_ours() {
    let head = |lines: &str| format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{lines}\r\n");
    for (why, answer) in [
        ("nothing came", head("Content-Length: 100\r\n")),
        ("before the errcode", head("Content-Length: 100\r\n") + r#"{"errmsg":"#),
        ("in the errcode", head("Content-Length: 100\r\n") + r#"{"errcode":400"#),
        ("after a refusal's errcode", head("Content-Length: 100\r\n") + r#"{"errcode":40001,"errmsg":"inv"#),
        ("after a refusal's last brace", head("Content-Length: 100\r\n") + r#"{"errcode":40001}"#),
        ("in chunks", head("Transfer-Encoding: chunked\r\n") + "11\r\n{\"errcode\":40001}\r\n"),
    ] {
        for (way, status, cause) in [
            (Way::Close, 502, "upstream-closed"),
            (Way::Reset, 502, "upstream-closed"),
            (Way::Stall, 504, "idle-timeout"),
        ] {
            let reply = cut(GET, &answer, way).await;
            assert_eq!((reply.status, reply.cause()), (status, cause), "{why}, {way:?}: {reply:?}");
            reply.assert_ours(status, cause);
        }
    }
    // Without a length a reset is the only sign of a cut.
    let answer = head("Connection: close\r\n") + r#"{"errcode":40001,"errmsg":"inv"#;
    cut(GET, &answer, Way::Reset).await.assert_ours(502, "upstream-closed");
    cut(GET, &answer, Way::Close).await.assert_wechats(200, r#"{"errcode":40001,"errmsg":"inv"#);
}

#[tokio::test]
async fn bytes_beyond_a_replys_length_never_reach_anyone() {
    let extra = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstray";
    for (why, answer, body) in [
        ("after a length", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "ok"),
        ("after no body", "HTTP/1.1 204 No Content\r\n\r\n", ""),
        (
            "after the last chunk",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            "ok",
        ),
        ("after a length of 0", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", ""),
    ] {
        for later in [false, true] {
            let play = if later {
                [say(answer), vec![Step::Pause(ms(20))], say(extra)].concat()
            } else {
                say(format!("{answer}{extra}"))
            };
            let upstream = RawUpstream::playing([play]).await;
            let sidecar = Sidecar::before(&upstream).await;
            let mut client = sidecar.connect().await;
            let reply = client.call(GET).await;
            assert_eq!((reply.text().as_str(), reply.end), (body, End::Whole), "{why}: {reply:?}");
            if later {
                tokio::time::sleep(ms(60)).await;
            }
            client.call(GET).await.assert_wechats(200, OK);
            let seen = upstream.take_seen();
            assert_eq!(seen.len(), 2, "{why}, later: {later}");
            assert_eq!(
                seen[1].connection, 1,
                "{why}, later: {later}: a connection out of step is not used again"
            );
        }
    }
}

#[tokio::test]
async fn equal_lengths_said_twice_are_one_length() {
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok";
    let upstream = RawUpstream::playing([say(answer)]).await;
    let sidecar = Sidecar::before(&upstream).await;
    sidecar.call(GET).await.assert_wechats(200, "ok");
}

#[tokio::test]
async fn a_slow_reply_that_keeps_coming_is_not_cut() {
    let body = "0123456789".repeat(4);
    let mut play =
        say(format!("HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: {}\r\n\r\n", body.len()));
    for byte in body.bytes() {
        play.extend([Step::Pause(ms(20)), Step::Say(vec![byte])]);
    }
    let upstream = RawUpstream::playing([play]).await;
    let sidecar = Sidecar::configured(&upstream, |config| {
        // Less than the whole takes, far more than a pause.
        config.upstream.idle_timeout = ms(700);
        config.upstream.response_timeout = ms(700);
    })
    .await;
    sidecar.call(GET).await.assert_wechats(200, body);
}

#[tokio::test]
async fn a_cut_reply_ends_only_its_own_connections() {
    let upstream = RawUpstream::playing([[
        say("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart"),
        vec![Step::Close],
    ]
    .concat()])
    .await;
    let sidecar = Sidecar::before(&upstream).await;
    let mut other = sidecar.connect().await;
    let mut client = sidecar.connect().await;
    // Sent with a second request behind it, which must not be answered with the rest of the first.
    client.send([GET, GET].concat()).await;
    assert_ne!(client.reply().await.end, End::Whole);
    other.call(GET).await.assert_wechats(200, OK);
    assert_eq!(upstream.calls(), 2);
}
