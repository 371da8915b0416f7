//! An upstream that does not answer: each way has its own error of ours, at once, and no call goes twice.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::rig::tls::Authority;
use crate::rig::{Gate, Idle, RawUpstream, Setup, Sidecar, Step, Tokens, ms, no_one_listens, say};

const GET: &str = "GET /cgi-bin/x HTTP/1.1\r\nHost: a\r\n\r\n";
const POST: &str = "POST /cgi-bin/x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
const OK: &str = r#"{"errcode":0,"errmsg":"ok"}"#;

/// A sidecar before whatever is at `origin`.
async fn before(origin: &str) -> (Sidecar, Tokens) {
    let tokens = Tokens::start().await;
    let setup = Setup::new(origin, &tokens).with(|config| config.upstream.connect_timeout = ms(300));
    (setup.start().await, tokens)
}

#[tokio::test]
async fn a_port_nobody_listens_on_is_told_as_connect() {
    let (nobody, _held) = no_one_listens();
    let (sidecar, _tokens) = before(&nobody).await;
    for request in [GET, POST] {
        let mut client = sidecar.connect().await;
        client.call(request).await.assert_ours(502, "connect");
        client.call(GET).await.assert_ours(502, "connect");
    }
}

#[tokio::test]
async fn a_name_that_does_not_resolve_is_told() {
    let (sidecar, _tokens) = before("https://no-such-host.invalid").await;
    let reply = sidecar.call(GET).await;
    // Whether the resolver says no, or nothing, is the machine's affair.
    let told = matches!((reply.status, reply.cause()), (502, "connect") | (504, "connect-timeout"));
    assert!(told, "{reply:?}");
}

#[tokio::test]
async fn a_connection_that_is_never_made_is_told_as_connect_timeout() {
    // A queue that is full: what comes now is not answered.
    let full = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    full.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    full.listen(0).unwrap();
    let address = full.local_addr().unwrap().as_socket().unwrap();
    let connect = move || TcpStream::connect_timeout(&address, Duration::from_millis(200));
    let mut waiting = Vec::new();
    while let Ok(stream) = tokio::task::spawn_blocking(connect).await.unwrap() {
        waiting.push(stream);
        assert!(waiting.len() < 64, "the queue does not fill");
    }
    let (sidecar, _tokens) = before(&format!("http://{address}")).await;
    sidecar.call(GET).await.assert_ours(504, "connect-timeout");
}

#[tokio::test]
async fn a_tls_handshake_that_is_never_answered_is_told_as_connect_timeout() {
    let silent = RawUpstream::start().await;
    let (sidecar, _tokens) = before(&format!("https://localhost:{}", silent.address.port())).await;
    sidecar.call(GET).await.assert_ours(504, "connect-timeout");
    assert_eq!(silent.calls(), 0);
}

#[tokio::test]
async fn an_upstream_that_is_not_the_one_we_trust_gets_not_a_byte_of_the_call() {
    let (ours, others) = (Authority::new(), Authority::new());
    let tokens = Tokens::start().await;
    for (why, upstream) in [
        ("an unknown authority", RawUpstream::with_tls(others.server("localhost")).await),
        ("another name", RawUpstream::with_tls(ours.server("api.weixin.qq.com")).await),
    ] {
        let sidecar = Setup::new(&upstream.origin(), &tokens)
            .with(|config| config.upstream.roots = ours.roots())
            .start()
            .await;
        let reply = sidecar.call(POST).await;
        assert_eq!(reply.status, 502, "{why}: {reply:?}");
        reply.assert_ours(502, "tls");
        assert_eq!((upstream.calls(), upstream.bytes()), (0, 0), "{why}");
    }
    let trusted = RawUpstream::with_tls(ours.server("localhost")).await;
    let sidecar = Setup::new(&trusted.origin(), &tokens)
        .with(|config| config.upstream.roots = ours.roots())
        .start()
        .await;
    sidecar.call(POST).await.assert_wechats(200, OK);
    assert_eq!(trusted.the_call().body, b"hello");
}

#[tokio::test]
async fn an_upstream_that_speaks_no_tls_is_told_as_tls() {
    let plain = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = plain.local_addr().unwrap().port();
    let answering = tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        while let Ok((mut stream, _)) = plain.accept().await {
            let mut hello = [0; 1024];
            let _ = stream.read(&mut hello).await;
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
        }
    });
    let (sidecar, _tokens) = before(&format!("https://localhost:{port}")).await;
    sidecar.call(GET).await.assert_ours(502, "tls");
    answering.abort();
}

#[tokio::test]
async fn an_upstream_that_goes_before_it_answers_is_told_as_closed_and_not_asked_again() {
    let read = Step::ReadBody;
    for (why, play) in [
        ("closes after the request", vec![read.clone(), Step::Close]),
        ("ends its side after the request", vec![read.clone(), Step::HalfClose]),
        ("resets after the request", vec![read.clone(), Step::Reset]),
        ("resets after the head", vec![Step::Reset]),
        ("closes in the status line", vec![read.clone(), Step::Say(b"HTTP/1.1 20".to_vec()), Step::Close]),
        (
            "closes in the head",
            vec![read.clone(), Step::Say(b"HTTP/1.1 200 OK\r\nX-A: b\r\n".to_vec()), Step::Close],
        ),
        (
            "resets in the head",
            vec![read.clone(), Step::Say(b"HTTP/1.1 200 OK\r\nX-A: b\r\n".to_vec()), Step::Reset],
        ),
        (
            "closes after a 100",
            vec![read.clone(), Step::Say(b"HTTP/1.1 100 Continue\r\n\r\n".to_vec()), Step::Close],
        ),
    ] {
        for pooled in [false, true] {
            let upstream = RawUpstream::start().await;
            let sidecar = Sidecar::before(&upstream).await;
            let mut client = sidecar.connect().await;
            if pooled {
                client.call(GET).await.assert_wechats(200, OK);
                upstream.the_call();
            }
            upstream.play([play.clone()]);
            let reply = client.call(POST).await;
            assert_eq!(
                (reply.status, reply.cause()),
                (502, "upstream-closed"),
                "{why}, pooled: {pooled}: {reply:?}"
            );
            reply.assert_ours(502, "upstream-closed");
            assert_eq!(upstream.the_call().connection, 0, "{why}, pooled: {pooled}");
            // The app's connection is none the worse for it.
            client.call(GET).await.assert_wechats(200, OK);
            assert_eq!(upstream.the_call().connection, 1, "{why}, pooled: {pooled}");
        }
    }
}

#[tokio::test]
async fn a_pooled_connection_that_died_is_replaced_and_the_call_goes_once() {
    for idle in [
        Idle::Close,
        Idle::Reset,
        Idle::Say(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong".to_vec()),
        Idle::Say(b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".to_vec()),
        Idle::Say(b"\0".to_vec()),
    ] {
        for request in [GET, POST] {
            let upstream = RawUpstream::start().await;
            let sidecar = Sidecar::before(&upstream).await;
            sidecar.call(GET).await.assert_wechats(200, OK);
            assert_eq!(upstream.the_call().connection, 0, "{idle:?}");
            upstream.when_idle(idle.clone()).await;
            sidecar.call(request).await.assert_wechats(200, OK);
            assert_eq!(upstream.the_call().connection, 1, "{idle:?}");
        }
    }
}

#[tokio::test]
async fn an_upstream_that_closes_after_each_reply_costs_no_more_than_a_call() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::before(&upstream).await;
    let reply = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let mut client = sidecar.connect().await;
    let mut lost = 0;
    for n in 0..200 {
        upstream.play([vec![Step::ReadBody, Step::Say(reply.to_vec()), Step::Close]]);
        match client.call(POST).await {
            reply if reply.status == 200 => reply.assert_wechats(200, "ok"),
            reply => {
                reply.assert_ours(502, "upstream-closed");
                lost += 1;
            }
        }
        assert!(lost <= 1, "call {n}: once seen, such an upstream is not trusted again");
    }
}

#[tokio::test]
async fn many_pooled_connections_that_died_are_replaced() {
    let gate = Gate::new();
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::before(&upstream).await;
    for _ in 0..3 {
        upstream.play((0..5).map(|_| {
            [vec![Step::Wait(gate.clone())], say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")].concat()
        }));
        let mut clients = Vec::new();
        for _ in 0..5 {
            let mut client = sidecar.connect().await;
            client.send(POST).await;
            clients.push(client);
        }
        upstream.until("five calls", |log| log.seen.len() == 5).await;
        gate.open();
        for client in &mut clients {
            client.reply().await.assert_wechats(200, "ok");
        }
        upstream.take_seen();
        upstream.when_idle(Idle::Close).await;
        sidecar.call(POST).await.assert_wechats(200, OK);
        upstream.the_call();
        upstream.when_idle(Idle::Close).await;
    }
}

#[tokio::test]
async fn an_answer_that_is_not_http_is_told_as_malformed() {
    let head = |lines: &str| format!("HTTP/1.1 200 OK\r\n{lines}\r\n");
    for (why, answer) in [
        ("garbage", "\x00\x01\x02 garbage\r\n\r\n".to_owned()),
        ("SSH", "SSH-2.0-OpenSSH_9.6\r\n\r\n".into()),
        ("HTML without a head", "<html>503</html>\r\n\r\n".into()),
        ("HTTP/2's preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into()),
        ("HTTP/2 in the old form", "HTTP/2 200 OK\r\nContent-Length: 0\r\n\r\n".into()),
        ("a status of two digits", "HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n".into()),
        ("a status of letters", "HTTP/1.1 abc OK\r\nContent-Length: 0\r\n\r\n".into()),
        ("a request", "GET / HTTP/1.1\r\nHost: a\r\n\r\n".into()),
        ("a NUL in a value", head("X-A: a\0b\r\nContent-Length: 0\r\n")),
        ("a bell in a value", head("X-A: \x07\r\nContent-Length: 0\r\n")),
        ("a bare CR in a value", head("X-A: a\rb\r\nContent-Length: 0\r\n")),
        ("a line without a colon", head("X-A\r\nContent-Length: 0\r\n")),
        ("a space before the colon", head("Content-Length : 0\r\n")),
        ("a fold", head("X-A: a\r\n b\r\nContent-Length: 0\r\n")),
        ("two lengths", head("Content-Length: 5\r\nContent-Length: 6\r\n") + "hello!"),
        ("a list of lengths", head("Content-Length: 5, 6\r\n") + "hello!"),
        ("a negative length", head("Content-Length: -5\r\n") + "hello"),
        ("a length with a sign", head("Content-Length: +5\r\n") + "hello"),
        ("a length in words", head("Content-Length: five\r\n") + "hello"),
        (
            "a length and an encoding",
            head("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n") + "5\r\nhello\r\n0\r\n\r\n",
        ),
        (
            "an encoding and a length",
            head("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n") + "5\r\nhello\r\n0\r\n\r\n",
        ),
        ("an unknown encoding", head("Transfer-Encoding: gzip\r\nConnection: close\r\n") + "hello"),
        ("chunked before another encoding", head("Transfer-Encoding: chunked, gzip\r\n") + "hello"),
        ("101 headers", head(&"X-A: a\r\n".repeat(101))),
        ("a head of 200 KiB", head(&format!("X-A: {}\r\n", "a".repeat(200 << 10)))),
        (
            "switching protocols",
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n".into(),
        ),
        ("switching protocols unasked", "HTTP/1.1 101 Switching Protocols\r\n\r\n".into()),
    ] {
        let upstream = RawUpstream::playing([[say(answer), vec![Step::Close]].concat()]).await;
        let sidecar = Sidecar::before(&upstream).await;
        let mut client = sidecar.connect().await;
        let reply = client.call(POST).await;
        assert_eq!((reply.status, reply.cause()), (502, "upstream-malformed"), "{why}: {reply:?}");
        reply.assert_ours(502, "upstream-malformed");
        assert_eq!(upstream.the_call().body, b"hello", "{why}");
        client.call(GET).await.assert_wechats(200, OK);
        assert_eq!(upstream.the_call().connection, 1, "{why}: not on the same connection");
    }
}

#[tokio::test]
async fn an_upgrade_is_neither_asked_for_nor_made() {
    let upstream = RawUpstream::playing([say(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n\x01\x02",
    )])
    .await;
    let sidecar = Sidecar::before(&upstream).await;
    let request = "GET /cgi-bin/x HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: eA==\r\n\r\n";
    sidecar.call(request).await.assert_ours(502, "upstream-malformed");
    let seen = upstream.the_call();
    assert!(seen.all("upgrade").is_empty() && seen.all("connection").is_empty(), "{}", seen.head);
}

#[tokio::test]
async fn an_upstream_that_does_not_answer_in_time_is_told_as_response_timeout() {
    let partly = |bytes: &str| vec![Step::ReadBody, Step::Say(bytes.as_bytes().to_vec()), Step::Hang];
    for (why, play) in [
        ("says nothing", vec![Step::Hang]),
        ("says half a head", partly("HTTP/1.1 200 OK\r\nX-A")),
        ("says only 100", partly("HTTP/1.1 100 Continue\r\n\r\n")),
    ] {
        let upstream = RawUpstream::playing([play]).await;
        let sidecar =
            Sidecar::configured(&upstream, |config| config.upstream.response_timeout = ms(200)).await;
        let mut client = sidecar.connect().await;
        let reply = client.call(POST).await;
        assert_eq!((reply.status, reply.cause()), (504, "response-timeout"), "{why}: {reply:?}");
        reply.assert_ours(504, "response-timeout");
        assert_eq!(upstream.the_call().body, b"hello", "{why}");
        // A late answer must not become the next call's.
        upstream.until("the end of the connection", |log| log.open == 0).await;
        client.call(GET).await.assert_wechats(200, OK);
        upstream.the_call();
    }
}

#[tokio::test]
async fn an_upstream_that_does_not_read_is_told_as_response_timeout() {
    let upstream = RawUpstream::playing([vec![Step::Freeze]]).await;
    let sidecar = Sidecar::configured(&upstream, |config| config.upstream.response_timeout = ms(500)).await;
    let body = "a".repeat(24 << 20);
    let request =
        format!("POST /cgi-bin/x HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    sidecar.call(request).await.assert_ours(504, "response-timeout");
    assert_eq!(upstream.calls(), 1);
}
