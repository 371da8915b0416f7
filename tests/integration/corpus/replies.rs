//! The replies of the corpus, played by a raw upstream to a raw app's call.
//!
//! What is so afterwards: `same`: the next call goes out on the connection of this one; `new`: on another; without
//! either, on any. `short`: the app sees that its reply was cut. `twice`: the call is sent again with the next token,
//! and the upstream's second answer, `{"errcode":0,"errmsg":"ok"}`, is the app's. `head`: the call is a HEAD.
//! `http10`: the app speaks HTTP/1.0. `split`: all of it once more for every place at which the reply can be cut in two.

use super::entry::{Act, Entry, read};
use crate::rig::{End, RawUpstream, Sidecar, Step, ms, within};

const OK: &str = r#"{"errcode":0,"errmsg":"ok"}"#;

/// What the upstream does about the call, its reply cut in two at `cut`.
fn steps(entry: &Entry, cut: Option<usize>) -> Vec<Step> {
    let mut steps = vec![Step::ReadBody];
    for act in &entry.acts {
        match act {
            Act::Send(bytes) => match cut {
                Some(cut) => {
                    steps.push(Step::Say(bytes[..cut].to_vec()));
                    steps.push(Step::Pause(ms(1)));
                    steps.push(Step::Say(bytes[cut..].to_vec()));
                }
                None => steps.push(Step::Say(bytes.clone())),
            },
            Act::Do(what) => steps.push(match what.as_str() {
                "close" => Step::Close,
                "reset" => Step::Reset,
                "half-close" => Step::HalfClose,
                "hang" => Step::Hang,
                "pause" => Step::Pause(ms(20)),
                other => panic!("{}: no such act: {other}", entry.name),
            }),
        }
    }
    steps
}

async fn play(entry: &Entry, sidecar: &Sidecar, upstream: &RawUpstream, cut: Option<usize>) {
    let name = match cut {
        Some(cut) => format!("{}, cut at {cut}", entry.name),
        None => entry.name.clone(),
    };
    let _ = upstream.take_seen();
    upstream.play([steps(entry, cut)]);
    let mut client = sidecar.connect().await;
    let (method, version) =
        (if entry.is("head") { "HEAD" } else { "POST" }, if entry.is("http10") { "1.0" } else { "1.1" });
    let body = if entry.is("head") { "" } else { "hello" };
    let request = format!(
        "{method} /cgi-bin/x?n=1 HTTP/{version}\r\nHost: api.weixin.qq.com\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let reply = client.call(&request).await;
    assert_eq!(entry.replies.len(), 1, "{name}: one reply to one call");
    entry.replies[0].check(&name, &reply);
    assert_eq!(reply.end != End::Whole, entry.is("short"), "{name}: {reply:?}");
    if entry.is("twice") {
        reply.assert_wechats(200, OK);
        assert_eq!(reply.header("x-wechat-sidecar-attempts"), Some("2"), "{name}");
    }

    let seen = upstream.take_seen();
    assert_eq!(seen.len(), if entry.is("twice") { 2 } else { 1 }, "{name}: how often it was sent: {seen:#?}");
    for seen in &seen {
        assert_eq!(seen.body, body.as_bytes(), "{name}");
    }
    if let [first, second] = &seen[..] {
        assert_ne!(first.token(), second.token(), "{name}: not again with the token that was refused");
    }
    // Whatever came: the next call gets its own answer, on this connection of the app's if that is whole.
    if reply.end != End::Whole || entry.is("http10") {
        let (rest, _) = client.rest().await;
        assert_eq!(String::from_utf8_lossy(&rest), "", "{name}: nothing more comes");
        client = sidecar.connect().await;
    }
    client.call("GET /cgi-bin/next HTTP/1.1\r\nHost: a\r\n\r\n").await.assert_wechats(200, OK);
    let next = upstream.the_call();
    assert_eq!(next.target().split('?').next(), Some("/cgi-bin/next"), "{name}");
    let last = seen.last().expect("one at least").connection;
    if entry.is("same") {
        assert_eq!(next.connection, last, "{name}: the connection is as good as before");
    }
    if entry.is("new") {
        assert_ne!(next.connection, last, "{name}: a connection out of step is not used again");
    }
}

#[tokio::test]
async fn every_reply_of_the_corpus_comes_to_its_outcome_and_is_asked_for_no_more_often_than_that() {
    let entries = read("replies");
    assert!(entries.len() >= 60, "{} replies", entries.len());
    let mut failed = Vec::new();
    for entry in entries {
        let upstream = RawUpstream::start().await;
        let sidecar = Sidecar::configured(&upstream, |config| {
            if entry.acts.contains(&Act::Do("hang".to_owned())) {
                config.upstream.idle_timeout = ms(500);
                config.upstream.response_timeout = ms(500);
            }
        })
        .await;
        let name = entry.name.clone();
        let played = tokio::spawn(async move {
            within(&entry.name, play(&entry, &sidecar, &upstream, None)).await;
        });
        if played.await.is_err() {
            failed.push(name);
        }
    }
    // What each of them failed with stands above.
    assert_eq!(failed, [] as [String; 0]);
}

#[tokio::test]
async fn a_reply_cut_in_two_anywhere_is_the_same_reply() {
    let entries = read("replies");
    let split: Vec<_> = entries.iter().filter(|entry| entry.is("split")).collect();
    assert!(split.len() >= 3, "some are cut");
    for entry in split {
        let [Act::Send(bytes)] = &entry.acts[..] else { panic!("{}: just bytes", entry.name) };
        let cuts: Vec<usize> = (1..bytes.len()).collect();
        // Each refusal costs a token fetch, of which there are a hundred in a row.
        for cuts in cuts.chunks(80) {
            let upstream = RawUpstream::start().await;
            let sidecar = Sidecar::before(&upstream).await;
            for &cut in cuts {
                play(entry, &sidecar, &upstream, Some(cut)).await;
            }
        }
    }
}
