//! Past a limit the answer is 503 or 429 at once, with a time to try again, and the rest keeps working.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::rig::{Gate, RawClient, RawUpstream, Reply, Sidecar, Step, ms, say, within};

const CALL: &str = "GET /cgi-bin/x HTTP/1.1\r\nHost: a\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[track_caller]
fn assert_told_to_wait(reply: &Reply, status: u16, cause: &str) {
    reply.assert_ours(status, cause);
    let seconds: u64 = reply.header("retry-after").expect("Retry-After").parse().unwrap();
    assert!((1..=60).contains(&seconds), "{reply:?}");
}

/// An upstream that answers only once the gate is open.
async fn slow(gate: &Gate, calls: usize) -> RawUpstream {
    let answer = vec![Step::ReadBody, Step::Wait(gate.clone()), Step::Say(OK.into())];
    RawUpstream::playing(vec![answer; calls]).await
}

/// Connections on which a call is under way.
async fn under_way(sidecar: &Sidecar, upstream: &RawUpstream, calls: usize) -> Vec<RawClient> {
    let mut clients = Vec::new();
    for _ in 0..calls {
        let mut client = sidecar.connect().await;
        client.send(CALL).await;
        clients.push(client);
    }
    upstream.until("the calls are there", |log| log.seen.len() >= calls).await;
    clients
}

#[tokio::test]
async fn one_connection_more_than_there_may_be_is_told_so_and_the_others_go_on() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::set(&upstream, &[("max_connections", "2")]).await;
    let (mut one, mut two) = (sidecar.connect().await, sidecar.connect().await);
    assert_eq!((one.call(CALL).await.status, two.call(CALL).await.status), (200, 200));
    let refused = sidecar.call(CALL).await;
    assert_told_to_wait(&refused, 503, "overloaded");
    assert!(refused.text().contains("max_connections"), "{refused:?}");
    assert_eq!(one.call(CALL).await.status, 200);
    drop(two);
    within("a place", async {
        while sidecar.call(CALL).await.status != 200 {
            tokio::time::sleep(ms(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_flood_of_connections_beyond_the_limit_leaves_the_others_alone() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::set(&upstream, &[("max_connections", "1")]).await;
    let mut served = sidecar.connect().await;
    assert_eq!(served.call(CALL).await.status, 200);
    let mut flood = Vec::new();
    for _ in 0..300 {
        flood.push(sidecar.connect().await);
    }
    assert_eq!(served.call(CALL).await.status, 200);
    drop(flood);
    assert_eq!(served.call(CALL).await.status, 200);
}

#[tokio::test]
async fn a_call_beyond_the_limit_waits_and_beyond_the_queue_is_refused_at_once() {
    let gate = Gate::new();
    let upstream = slow(&gate, 3).await;
    let settings = [("max_calls", "2"), ("queue_length", "1"), ("queue_wait", "60s")];
    let sidecar = Sidecar::set(&upstream, &settings).await;
    let mut busy = under_way(&sidecar, &upstream, 2).await;
    let mut queued = sidecar.connect().await;
    queued.send(CALL).await;
    // Which of the two finds the queue full is the scheduler's affair; one of them does.
    let mut other = sidecar.connect().await;
    other.send(CALL).await;
    let (refused, mut waits) = tokio::select! {
        refused = queued.reply() => (refused, other),
        refused = other.reply() => (refused, queued),
    };
    assert_told_to_wait(&refused, 503, "overloaded");
    assert!(refused.text().contains("max_calls"), "{refused:?}");
    assert_eq!(upstream.calls(), 2);
    gate.open();
    for client in &mut busy {
        assert_eq!(client.reply().await.status, 200);
    }
    assert_eq!(waits.reply().await.status, 200, "who waited was not forgotten");
}

#[tokio::test]
async fn a_call_that_waited_too_long_is_refused_and_its_place_in_the_queue_is_free_again() {
    let gate = Gate::new();
    let upstream = slow(&gate, 1).await;
    let sidecar = Sidecar::set(&upstream, &[("max_calls", "1"), ("queue_wait", "20ms")]).await;
    let mut busy = under_way(&sidecar, &upstream, 1).await;
    for _ in 0..3 {
        assert_told_to_wait(&sidecar.call(CALL).await, 503, "overloaded");
    }
    gate.open();
    assert_eq!(busy[0].reply().await.status, 200);
    assert_eq!(sidecar.call(CALL).await.status, 200);
}

#[tokio::test]
async fn a_place_is_free_when_the_reply_has_gone_whether_the_app_still_wants_it_or_not() {
    let gate = Gate::new();
    let upstream = slow(&gate, 1).await;
    let sidecar = Sidecar::set(&upstream, &[("max_calls", "1"), ("queue_length", "0")]).await;
    let busy = under_way(&sidecar, &upstream, 1).await;
    assert_told_to_wait(&sidecar.call(CALL).await, 503, "overloaded");
    // WeChat has the call, so it is under way for as long as WeChat takes.
    drop(busy);
    assert_told_to_wait(&sidecar.call(CALL).await, 503, "overloaded");
    gate.open();
    within("the place", async {
        while sidecar.call(CALL).await.status != 200 {
            tokio::time::sleep(ms(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn an_account_has_its_own_limit_and_what_is_answered_here_needs_no_place() {
    let gate = Gate::new();
    let upstream = slow(&gate, 1).await;
    let sidecar = Sidecar::set(&upstream, &[("max_account_calls", "1"), ("queue_wait", "0s")]).await;
    let _busy = under_way(&sidecar, &upstream, 1).await;
    let refused = sidecar.call(CALL).await;
    assert_told_to_wait(&refused, 503, "overloaded");
    assert!(refused.text().contains("max_account_calls"), "{refused:?}");
    let token = "GET /cgi-bin/token?grant_type=client_credential&appid=wx0123456789abcdef&secret=x HTTP/1.1\r\nHost: a\r\n\r\n";
    assert_eq!(sidecar.call(token).await.status, 200);
    gate.open();
}

#[tokio::test]
async fn a_path_that_is_called_too_often_is_told_429_before_wechat_says_so() {
    let upstream = RawUpstream::start().await;
    let settings = [("rates", "10/h POST /cgi-bin/message/**, 3/d /wxa/code"), ("rate_wait", "0s")];
    let sidecar = Sidecar::set(&upstream, &settings).await;
    let call = async |line: &str| {
        sidecar.call(format!("{line} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")).await
    };
    assert_eq!(call("POST /cgi-bin/message/custom/send").await.status, 200);
    let refused = call("POST /cgi-bin/message/custom/send").await;
    refused.assert_ours(429, "rate-limited");
    assert!(
        refused.text().contains(r#""errcode":45011"#) && refused.text().contains("POST /cgi-bin/message/**")
    );
    let seconds: u64 = refused.header("retry-after").expect("Retry-After").parse().unwrap();
    assert!((300..=400).contains(&seconds), "an hour for nine: {seconds}");
    for other in ["GET /cgi-bin/message/x", "POST /cgi-bin/user/get", "GET /wxa/code"] {
        assert_eq!(call(other).await.status, 200, "{other} has its own limit, or none");
    }
    assert_eq!(upstream.calls(), 4);
}

#[tokio::test]
async fn a_burst_within_patience_is_spread_and_all_of_it_arrives() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::set(&upstream, &[("rates", "50/s /cgi-bin/x"), ("rate_wait", "30s")]).await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = sidecar.connect().await;
        client.send(CALL).await;
        clients.push(client);
    }
    for client in &mut clients {
        assert_eq!(client.reply().await.status, 200);
    }
    assert_eq!(upstream.calls(), 20);
}

#[tokio::test]
async fn a_head_that_trickles_is_cut_and_a_connection_that_idles_too() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::set(&upstream, &[("head_timeout", "200ms"), ("keep_alive", "300ms")]).await;
    let (mut reading, mut writing) = TcpStream::connect(sidecar.proxy).await.unwrap().into_split();
    let trickle = async {
        // A head that never ends, a byte every 20 ms.
        for byte in CALL.trim_end().bytes().chain(std::iter::repeat(b'x')) {
            let _ = writing.write_all(&[byte]).await;
            tokio::time::sleep(ms(20)).await;
        }
    };
    let mut told = Vec::new();
    let cut = async { drop(reading.read_to_end(&mut told).await) };
    within("the cut of a head that never ends", async {
        tokio::select! {
            () = cut => {}
            () = trickle => {}
        }
    })
    .await;
    assert_eq!(upstream.calls(), 0);
    let mut idle = sidecar.connect().await;
    idle.assert_closed("nothing was ever sent").await;
    let mut used = sidecar.connect().await;
    assert_eq!(used.call(CALL).await.status, 200);
    used.assert_closed("nothing more was sent").await;
    assert_eq!(upstream.calls(), 1);
}

#[tokio::test]
async fn a_limit_of_wechats_is_told_whenever_its_words_come() {
    let body = r#"{"errcode":45009,"errmsg":"reach max api daily quota limit"}"#;
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    // With its head and behind it, where the reply is inspected and where it passes unread.
    for paths in [["/cgi-bin/user/get", "/cgi-bin/menu/get"], ["/sns/userinfo", "/sns/auth"]] {
        let late = [say(head.clone()), vec![Step::Pause(ms(50))], say(body)].concat();
        let upstream = RawUpstream::playing([say(format!("{head}{body}")), late]).await;
        let sidecar = Sidecar::before(&upstream).await;
        for path in paths {
            let call = format!("GET {path}?access_token=USER HTTP/1.1\r\nHost: a\r\n\r\n");
            sidecar.call(call).await.assert_wechats(200, body);
        }
        let reply = RawClient::connect(sidecar.admin).await.call("GET /status HTTP/1.0\r\n\r\n").await;
        let status: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
        let errors = status["errors"].as_array().unwrap();
        let mut told: Vec<_> = errors.iter().map(|error| error["subject"].as_str().unwrap()).collect();
        told.sort_unstable();
        let mut apis = paths.map(|path| format!("GET {path}"));
        apis.sort_unstable();
        assert_eq!(told, apis);
    }
}
