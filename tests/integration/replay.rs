//! A refused token: noticed in every form, refreshed, the call sent once more and never a third time; and never for
//! any other reason.

use crate::rig::{End, Gate, RawUpstream, Setup, Sidecar, Step, Tokens, ms, say};

const OK: &str = r#"{"errcode":0,"errmsg":"ok"}"#;
const REFUSED: &str =
    r#"{"errcode":40001,"errmsg":"invalid credential, access_token is invalid or not latest rid: 1-2-3"}"#;

fn post(body: &str) -> String {
    format!(
        "POST /cgi-bin/x?a=1 HTTP/1.1\r\nHost: a\r\nX-A: b\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// An answer of this type with a length.
fn answer(content_type: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn json(body: &str) -> String {
    answer("application/json; encoding=utf-8", body)
}

fn chunked(body: &str, size: usize) -> String {
    let chunks: String = body
        .as_bytes()
        .chunks(size)
        .map(|chunk| format!("{:x}\r\n{}\r\n", chunk.len(), String::from_utf8_lossy(chunk)))
        .collect();
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n"
    )
}

/// Fails unless the upstream saw this body with TOKEN-`n` and then the very same with the next token.
#[track_caller]
fn assert_went_twice(upstream: &RawUpstream, why: &str, n: usize, body: &[u8]) {
    let seen = upstream.take_seen();
    assert_eq!(seen.len(), 2, "{why}: the call goes twice");
    assert_eq!(seen[0].token(), format!("TOKEN-{n}"), "{why}");
    assert_eq!(seen[1].token(), format!("TOKEN-{}", n + 1), "{why}");
    let again = seen[0].head.replace(&format!("TOKEN-{n}"), &format!("TOKEN-{}", n + 1));
    assert_eq!(seen[1].head, again, "{why}: the same head, but for the token");
    assert!(seen[1].body == body, "{why}: the same body");
}

#[tokio::test]
async fn a_refusal_is_noticed_in_every_form() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::before(&upstream).await;
    let filled = |size: usize| {
        let rest = size - r#"{"errmsg":"","errcode":40001}"#.len();
        format!(r#"{{"errmsg":"{}","errcode":40001}}"#, "a".repeat(rest))
    };
    let spelled = |text: String| vec![Step::ReadBody, Step::Spell(text.into_bytes())];
    let closed = |text: &str| [say(text), vec![Step::Close]].concat();
    let rows = [
        ("40001", say(json(REFUSED))),
        ("40014", say(json(r#"{"errcode":40014,"errmsg":"invalid access_token"}"#))),
        ("42001", say(json(r#"{"errcode":42001,"errmsg":"access_token expired rid: 1-2-3"}"#))),
        ("text/plain", say(answer("text/plain", REFUSED))),
        ("an image's type", say(answer("image/jpeg", REFUSED))),
        (
            "no type at all",
            say(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{REFUSED}", REFUSED.len())),
        ),
        ("status 401", say(json(REFUSED).replace("200 OK", "401 Unauthorized"))),
        ("status 500", say(json(REFUSED).replace("200 OK", "500 Oops"))),
        ("errcode as a string", say(json(r#"{"errcode":"42001","errmsg":"access_token expired"}"#))),
        (
            "errcode last",
            say(json(r#"{"ip_list":[{"errcode":0}],"errmsg":"a \"quote\" }","errcode":42001}"#)),
        ),
        ("white space", say(json(" \r\n\t{ \"errcode\" : 40001 , \"errmsg\" : \"\" }\n"))),
        ("a byte order mark", say(json("\u{feff}{\"errcode\":40001}"))),
        ("a raw control character", say(json("{\"errmsg\":\"a\u{1}\n\",\"errcode\":40001}"))),
        ("nothing but errcode", say(json(r#"{"errcode":40001}"#))),
        ("4096 bytes", say(json(&filled(4096)))),
        ("in chunks", say(chunked(REFUSED, 1000))),
        ("in chunks of one byte", say(chunked(REFUSED, 1))),
        ("byte by byte", spelled(json(REFUSED))),
        ("chunks byte by byte", spelled(chunked(REFUSED, 7))),
        ("up to the close", closed(&format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{REFUSED}"))),
        ("from HTTP/1.0", closed(&format!("HTTP/1.0 200 OK\r\n\r\n{REFUSED}"))),
        ("after an interim answer", say(format!("HTTP/1.1 103 Early Hints\r\n\r\n{}", json(REFUSED)))),
    ];
    for (n, (why, play)) in (1..).zip(rows) {
        upstream.play([play]);
        let reply = sidecar.call(post("hello")).await;
        reply.assert_wechats(200, OK);
        assert_eq!(reply.header("x-wechat-sidecar-attempts"), Some("2"), "{why}");
        assert_went_twice(&upstream, why, n, b"hello");
    }
}

#[tokio::test]
async fn what_is_no_refusal_goes_through_once() {
    let upstream = RawUpstream::start().await;
    let tokens = Tokens::start().await;
    let sidecar = Setup::new(&upstream.origin(), &tokens).start().await;
    let filled = format!(r#"{{"errmsg":"{}","errcode":40001}}"#, "a".repeat(4096 - 28));
    assert_eq!(filled.len(), 4097);
    for (why, body) in [
        ("-1, WeChat's busy", r#"{"errcode":-1,"errmsg":"system error"}"#),
        ("45009, over quota", r#"{"errcode":45009,"errmsg":"reach max api daily quota limit"}"#),
        ("41001, no token", r#"{"errcode":41001,"errmsg":"access_token missing"}"#),
        ("42007, a user's token", r#"{"errcode":42007,"errmsg":"access_token and refresh_token exception"}"#),
        ("40082, a picture", r#"{"errcode":40082,"errmsg":"invalid banner picture size"}"#),
        ("400010", r#"{"errcode":400010}"#),
        ("a nested errcode", r#"{"base_resp":{"errcode":40001},"items":[{"errcode":42001}]}"#),
        ("an errcode in a text", r#"{"text":"\"errcode\":40001","errmsg":"{\"errcode\":40001}"}"#),
        ("an array", r#"[{"errcode":40001}]"#),
        ("a text", r#""errcode:40001""#),
        ("XML", "<xml><errcode>40001</errcode></xml>"),
        ("a word", "errcode=40001"),
        ("another key", r#"{"errcodes":40001,"Errcode":40001,"xerrcode":40001}"#),
        ("4097 bytes", &filled),
        ("a part of a refusal", r#"{"errcode":40001,"errmsg":"inv"#),
        ("success", OK),
        ("nothing", ""),
    ] {
        for reply in [json(body), chunked(body, 1000)] {
            upstream.play([say(reply)]);
            let reply = sidecar.call(post(r#"{"errcode":40001}"#)).await;
            reply.assert_wechats(200, body);
            assert_eq!(reply.header("x-wechat-sidecar-attempts"), None, "{why}");
            assert_eq!(upstream.the_call().token(), "TOKEN-1", "{why}");
        }
    }
    // A user's token is not ours to refresh.
    upstream.play([say(json(REFUSED))]);
    let reply = sidecar.call("GET /sns/userinfo?access_token=USER HTTP/1.1\r\nHost: a\r\n\r\n").await;
    reply.assert_wechats(200, REFUSED);
    assert_eq!(upstream.the_call().token(), "USER");
    assert_eq!(tokens.fetches(), 1, "nothing was refreshed");
}

#[tokio::test]
async fn any_body_goes_a_second_time_byte_for_byte() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::before(&upstream).await;
    let big: Vec<u8> = (0..3_000_000_u32).map(|n| (n * 7 % 253) as u8).collect();
    let head = |framing: &str| {
        format!("POST /cgi-bin/media/upload HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n").into_bytes()
    };
    let sized = |body: &[u8]| [&head(&format!("Content-Length: {}", body.len())), body].concat();
    let mut pieces = head("Transfer-Encoding: chunked");
    for piece in big.chunks(30_011) {
        pieces.extend(format!("{:x}\r\n", piece.len()).bytes());
        pieces.extend(piece);
        pieces.extend(b"\r\n");
    }
    pieces.extend(b"0\r\n\r\n");
    let get = b"GET /cgi-bin/x HTTP/1.1\r\nHost: a\r\n\r\n".to_vec();
    let rows = [
        ("no body", get, &b""[..]),
        ("an empty one", sized(b""), b""),
        ("one byte", sized(b"a"), b"a"),
        ("3 MB", sized(&big), &big),
        ("3 MB in chunks", pieces, &big),
    ];
    for (n, (why, request, body)) in (1..).zip(rows) {
        upstream.play([say(json(REFUSED))]);
        let reply = sidecar.call(request).await;
        reply.assert_wechats(200, OK);
        assert_went_twice(&upstream, why, n, body);
    }
    // In pieces that trickle: kept byte for byte, too.
    upstream.play([say(json(REFUSED))]);
    let mut client = sidecar.connect().await;
    for byte in post("trickling").into_bytes() {
        client.send([byte]).await;
        tokio::time::sleep(ms(1)).await;
    }
    client.reply().await.assert_wechats(200, OK);
    assert_went_twice(&upstream, "a trickle", 6, b"trickling");
}

#[tokio::test]
async fn whatever_the_body_and_however_it_comes_what_goes_again_is_what_came() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::before(&upstream).await;
    let refusal = json(r#"{"errcode":42001,"errmsg":"access_token expired"}"#);
    for seed in 0..80_u64 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let most = [0, 1, 16, 4095, 4097, 20_000, 70_000, 300_000][rng.usize(..8)];
        let length = rng.usize(..=most);
        let body: Vec<u8> = (0..length).map(|_| rng.u8(..)).collect();
        let mut request = b"POST /cgi-bin/x HTTP/1.1\r\nHost: a\r\n".to_vec();
        if rng.bool() {
            request.extend(format!("Content-Length: {length}\r\n\r\n").bytes());
            request.extend_from_slice(&body);
        } else {
            request.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
            let mut rest = &body[..];
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rng.usize(1..=rest.len().min(30_000)));
                request.extend(format!("{:x}\r\n", now.len()).bytes());
                request.extend_from_slice(now);
                request.extend_from_slice(b"\r\n");
                rest = later;
            }
            request.extend_from_slice(b"0\r\n\r\n");
        }
        // WeChat may know that the token is bad before it has the body.
        let early = rng.bool();
        upstream.play([if early { vec![Step::Say(refusal.clone().into())] } else { say(&refusal) }]);
        let mut client = sidecar.connect().await;
        let mut rest = &request[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rng.usize(1..=rest.len()));
            client.send(now).await;
            tokio::task::yield_now().await;
            rest = later;
        }
        let reply = client.reply().await;
        assert_eq!(
            (reply.status, reply.header("x-wechat-sidecar-attempts")),
            (200, Some("2")),
            "{seed}: {reply:?}"
        );
        let seen = upstream.take_seen();
        assert_eq!(seen.len(), 2, "{seed}");
        // The first may have been ended early, but what came of it is the beginning of the same.
        assert!(body.starts_with(&seen[0].body) && (early || seen[0].whole), "{seed}: {length} bytes");
        assert!(seen[1].whole && seen[1].body == body, "{seed}: {length} bytes");
        assert_ne!(seen[0].token(), seen[1].token(), "{seed}");
    }
}

#[tokio::test]
async fn a_refusal_in_the_middle_of_an_upload_is_followed_by_all_of_it() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::before(&upstream).await;
    let body: Vec<u8> = (0..6_000_000_u32).map(|n| (n * 11 % 251) as u8).collect();
    let head =
        format!("POST /cgi-bin/media/upload HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len());
    let early = Step::Say(json(REFUSED).into_bytes());
    for (n, (why, play)) in (1..).zip([
        ("answers and reads on", vec![early.clone(), Step::Hang]),
        ("answers and ends its side", vec![early.clone(), Step::HalfClose]),
        ("answers and reads no more", vec![early.clone(), Step::Pause(ms(100)), Step::Freeze]),
    ]) {
        upstream.play([play]);
        let mut client = sidecar.connect().await;
        client.send(&head).await;
        client.send(&body[..1000]).await;
        upstream.until("the call", |log| log.seen.len() == 1).await;
        let reply = client.call(&body[1000..]).await;
        reply.assert_wechats(200, OK);
        let seen = upstream.take_seen();
        assert_eq!(seen.len(), 2, "{why}");
        // How much of the first attempt went out before the refresh was done is nobody's promise.
        assert_eq!(seen[1].token(), format!("TOKEN-{}", n + 1), "{why}");
        assert!(seen[1].whole && seen[1].body == body, "{why}: all of it, byte for byte");
    }
}

#[tokio::test]
async fn a_second_refusal_goes_to_the_app_as_wechat_wrote_it() {
    let second = r#"{ "errcode":40001, "errmsg":"invalid credential  rid: 4-5-6" }"#;
    let upstream = RawUpstream::playing([say(json(REFUSED)), say(chunked(second, 9))]).await;
    let tokens = Tokens::start().await;
    let sidecar = Setup::new(&upstream.origin(), &tokens).start().await;
    let reply = sidecar.call(post("hello")).await;
    reply.assert_wechats(200, second);
    assert_eq!(reply.header("x-wechat-sidecar-attempts"), Some("2"));
    assert_eq!(reply.header("content-type"), Some("text/plain"));
    assert_went_twice(&upstream, "refused twice", 1, b"hello");
    assert_eq!(tokens.fetches(), 2);
}

#[tokio::test]
async fn where_wechat_holds_to_the_token_the_call_goes_once_more_with_it() {
    let upstream = RawUpstream::playing([say(json(REFUSED))]).await;
    let tokens = Tokens::start().await;
    tokens.hold_to_the_first();
    let sidecar = Setup::new(&upstream.origin(), &tokens).start().await;
    sidecar.call(post("hello")).await.assert_wechats(200, OK);
    let seen = upstream.take_seen();
    let carried: Vec<_> = seen.iter().map(|seen| seen.token()).collect();
    assert_eq!((carried, tokens.fetches()), (vec!["TOKEN-1", "TOKEN-1"], 2));
}

#[tokio::test]
async fn without_another_token_the_refusal_goes_back_unchanged() {
    let upstream = RawUpstream::start().await;
    let tokens = Tokens::start().await;
    let sidecar = Setup::new(&upstream.origin(), &tokens).start().await;
    sidecar.call(post("first")).await.assert_wechats(200, OK);
    upstream.take_seen();
    drop(tokens);
    upstream.play([say(json(REFUSED)), say(json(REFUSED))]);
    for _ in 0..2 {
        let reply = sidecar.call(post("hello")).await;
        reply.assert_wechats(200, REFUSED);
        assert_eq!(reply.header("x-wechat-sidecar-attempts"), None);
        upstream.the_call();
    }
}

#[tokio::test]
async fn a_replay_that_could_not_be_sent_leaves_wechats_first_answer() {
    let last = json(REFUSED).replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
    let mut upstream = RawUpstream::start().await;
    let tokens = Tokens::start().await;
    let sidecar = Setup::new(&upstream.origin(), &tokens).start().await;
    let mut client = sidecar.connect().await;
    client.call(post("first")).await.assert_wechats(200, OK);
    upstream.the_call();
    // The fetch for the refusal is answered when nobody listens any more.
    let gate = Gate::new();
    tokens.wait_for(&gate);
    upstream.play([say(last)]);
    client.send(post("hello")).await;
    tokens.until_asked(2).await;
    upstream.stop_listening().await;
    gate.open();
    let reply = client.reply().await;
    reply.assert_wechats(200, REFUSED);
    assert_eq!(reply.header("x-wechat-sidecar-attempts"), None, "WeChat saw it once");
    assert_eq!(upstream.the_call().body, b"hello");
}

#[tokio::test]
async fn a_replay_that_breaks_after_it_was_sent_is_an_error_and_not_the_first_answer() {
    let part = Step::Say(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"errmsg\":".to_vec());
    for (why, play, status, cause) in [
        ("reset", vec![Step::ReadBody, Step::Reset], 502, "upstream-closed"),
        ("closed", vec![Step::ReadBody, Step::Close], 502, "upstream-closed"),
        ("garbage", say("\0\0\r\n\r\n"), 502, "upstream-malformed"),
        ("no answer", vec![Step::Hang], 504, "response-timeout"),
        ("cut in what is looked at", vec![Step::ReadBody, part.clone(), Step::Close], 502, "upstream-closed"),
        ("stalls in what is looked at", vec![Step::ReadBody, part, Step::Hang], 504, "idle-timeout"),
    ] {
        let upstream = RawUpstream::playing([say(json(REFUSED)), play]).await;
        let sidecar = Sidecar::configured(&upstream, |config| {
            config.upstream.response_timeout = ms(400);
            config.upstream.idle_timeout = ms(400);
        })
        .await;
        let reply = sidecar.call(post("hello")).await;
        assert_eq!((reply.status, reply.cause()), (status, cause), "{why}: {reply:?}");
        reply.assert_ours(status, cause);
        assert_went_twice(&upstream, why, 1, b"hello");
    }
}

#[tokio::test]
async fn many_refusals_of_one_token_are_one_fetch_and_no_call_goes_a_third_time() {
    let upstream = RawUpstream::start().await;
    let tokens = Tokens::start().await;
    let sidecar = Setup::new(&upstream.origin(), &tokens).workers(2).start().await;
    sidecar.call(post("first")).await.assert_wechats(200, OK);
    upstream.take_seen();
    let gate = Gate::new();
    let calls = 200;
    upstream.play(
        (0..calls).map(|_| [vec![Step::ReadBody, Step::Wait(gate.clone())], say(json(REFUSED))].concat()),
    );
    let mut clients = Vec::new();
    for n in 0..calls {
        let mut client = sidecar.connect().await;
        client.send(post(&format!("call {n}"))).await;
        clients.push(client);
    }
    upstream.until("all calls", |log| log.seen.len() == calls).await;
    gate.open();
    for client in &mut clients {
        let reply = client.reply().await;
        assert_eq!((reply.status, reply.end), (200, End::Whole), "{reply:?}");
        assert_eq!(reply.text(), OK);
    }
    assert_eq!((upstream.calls(), tokens.fetches()), (2 * calls, 2));
}
