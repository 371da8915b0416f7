//! Bodies that are not kept go out all the same, but once; and what is kept is given back, however a call ends.

use crate::rig::{Gate, RawUpstream, Sidecar, Step, ms, say};

const OK: &str = r#"{"errcode":0,"errmsg":"ok"}"#;
const REFUSED: &str = r#"{"errcode":40001,"errmsg":"invalid credential"}"#;
const LIMIT: usize = 100_000;

fn post(body: &[u8]) -> Vec<u8> {
    let head =
        format!("POST /cgi-bin/media/upload HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn refusal() -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{REFUSED}", REFUSED.len()).into_bytes()
}

/// A sidecar that may keep one body of the limit at a time.
async fn tight(upstream: &RawUpstream) -> Sidecar {
    Sidecar::configured(upstream, |config| {
        config.proxy.replay_limit = LIMIT as u64;
        config.proxy.replay_budget = LIMIT as u64;
        config.upstream.response_timeout = ms(2000);
        config.upstream.idle_timeout = ms(2000);
    })
    .await
}

/// Fails unless a call with the largest body that fits goes twice, which takes all of the budget.
async fn assert_all_is_free(upstream: &RawUpstream, sidecar: &Sidecar, why: &str) {
    upstream.take_seen();
    upstream.play([say(refusal())]);
    let reply = sidecar.call(post(&[b'a'; LIMIT])).await;
    assert_eq!(reply.text(), OK, "{why}: the budget is free again");
    assert_eq!(upstream.take_seen().len(), 2, "{why}: the budget is free again");
}

#[tokio::test]
async fn a_body_above_the_limit_streams_and_its_refusal_goes_back_unchanged() {
    let upstream = RawUpstream::start().await;
    let sidecar = tight(&upstream).await;
    for size in [LIMIT + 1, 5_000_000] {
        let body: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
        upstream.play([say(refusal())]);
        let reply = sidecar.call(post(&body)).await;
        reply.assert_wechats(200, REFUSED);
        assert_eq!(reply.header("x-wechat-sidecar-attempts"), None);
        assert!(upstream.the_call().body == body, "{size} bytes, once");
        sidecar.call(post(&body)).await.assert_wechats(200, OK);
        assert!(upstream.the_call().body == body, "{size} bytes, once");
    }
    assert_all_is_free(&upstream, &sidecar, "after bodies above the limit").await;
}

#[tokio::test]
async fn a_body_that_finds_no_room_streams_and_its_refusal_goes_back_unchanged() {
    let gate = Gate::new();
    let upstream = RawUpstream::start().await;
    let sidecar = tight(&upstream).await;
    sidecar.call(post(b"warm")).await.assert_wechats(200, OK);
    upstream.take_seen();
    // One call holds all of the budget while it waits for its answer.
    upstream.play([[vec![Step::ReadBody, Step::Wait(gate.clone())], say(refusal())].concat()]);
    let mut holder = sidecar.connect().await;
    holder.send(post(&[b'h'; LIMIT])).await;
    upstream.until("the first call", |log| log.seen.iter().any(|seen| seen.whole)).await;
    upstream.play([say(refusal())]);
    let reply = sidecar.call(post(b"second")).await;
    reply.assert_wechats(200, REFUSED);
    let seen = upstream.seen();
    assert_eq!(seen.iter().filter(|seen| seen.body == b"second").count(), 1, "it could not go again");
    gate.open();
    holder.reply().await.assert_wechats(200, OK);
    let seen = upstream.take_seen();
    assert_eq!(seen.iter().filter(|seen| seen.body.len() == LIMIT).count(), 2, "the first could");
    assert_all_is_free(&upstream, &sidecar, "after a full budget").await;
}

#[tokio::test]
async fn what_was_kept_is_given_back_however_a_call_ends() {
    let upstream = RawUpstream::start().await;
    let sidecar = tight(&upstream).await;
    let body = vec![b'a'; LIMIT];
    let early = Step::Say(refusal());
    for (why, plays) in [
        ("an answer", vec![]),
        ("a replay", vec![say(refusal())]),
        ("a reset", vec![vec![Step::ReadBody, Step::Reset]]),
        ("garbage", vec![say("\0\r\n\r\n")]),
        ("a timeout", vec![vec![Step::Hang]]),
        ("a refusal during the upload", vec![vec![early.clone(), Step::Hang]]),
        ("a refusal during an upload that is not read", vec![vec![early, Step::Freeze]]),
        (
            "an answer during the upload",
            vec![vec![Step::Say(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec())]],
        ),
        (
            "a cut answer",
            vec![[say("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"), vec![Step::Close]].concat()],
        ),
        (
            "a long answer",
            vec![say(format!("HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n{}", "x".repeat(9000)))],
        ),
    ] {
        upstream.play(plays);
        sidecar.call(post(&body)).await;
        assert_all_is_free(&upstream, &sidecar, why).await;
    }
}

#[tokio::test]
async fn what_was_kept_is_given_back_when_a_refused_upload_is_still_open() {
    let upstream = RawUpstream::start().await;
    let sidecar = tight(&upstream).await;
    let body = vec![b'a'; LIMIT];
    upstream.play([vec![Step::Say(refusal()), Step::Hang]]);
    let mut client = sidecar.connect().await;
    // Refused when just half of it has come.
    client.send(&post(&body)[..LIMIT / 2]).await;
    upstream.until("the call", |log| log.seen.len() == 1).await;
    tokio::time::sleep(ms(100)).await;
    client.call(&post(&body)[LIMIT / 2..]).await.assert_wechats(200, OK);
    upstream.until("the end of the first attempt", |log| log.open <= 1).await;
    assert_all_is_free(&upstream, &sidecar, "after half an upload").await;
}

#[tokio::test]
async fn what_was_kept_is_given_back_when_the_app_leaves() {
    let upstream = RawUpstream::start().await;
    let sidecar = tight(&upstream).await;
    let body = vec![b'a'; LIMIT];
    for (why, bytes) in [("in its body", LIMIT / 2), ("after its body", usize::MAX)] {
        upstream.play([vec![Step::ReadBody, Step::Close]]);
        let request = post(&body);
        let mut client = sidecar.connect().await;
        client.send(&request[..bytes.min(request.len())]).await;
        upstream.until("the call", |log| !log.seen.is_empty()).await;
        drop(client);
        upstream.until("the end of the call", |log| log.open == 0).await;
        // The call ends a moment after its connection.
        tokio::time::sleep(ms(100)).await;
        assert_all_is_free(&upstream, &sidecar, why).await;
        upstream.when_idle(crate::rig::Idle::Close).await;
    }
}

#[tokio::test]
async fn what_was_kept_is_given_back_when_the_answer_begins_to_stream() {
    let gate = Gate::new();
    let upstream = RawUpstream::start().await;
    let sidecar = tight(&upstream).await;
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst".to_vec();
    let streaming =
        vec![Step::ReadBody, Step::Say(head), Step::Wait(gate.clone()), Step::Say(b"later".to_vec())];
    upstream.play([streaming]);
    let mut client = sidecar.connect().await;
    client.send(post(&[b'a'; LIMIT])).await;
    assert_eq!(client.head().await.status, 200);
    assert_all_is_free(&upstream, &sidecar, "while an answer streams").await;
    gate.open();
    assert_eq!(client.bytes(10).await, b"firstlater");
}
