//! The requests of the corpus, played by a raw app before a raw upstream.
//!
//! What is so afterwards: `closed`: the sidecar ends the connection and says nothing more; `open`: it is in step, the
//! next call on it gets its own answer; `gone`: the app has left. With `cut`, no request arrives whole upstream. What is
//! sent `at once` only: an answer of ours that comes before the request's body ends the connection.

use super::entry::{Act, Entry, read};
use crate::rig::{RawUpstream, Sidecar, say, within};

const OK: &str = r#"{"errcode":0,"errmsg":"ok"}"#;

/// A request as it arrived upstream: its line, its headers sorted, its body.
type Arrived = (String, Vec<String>, Vec<u8>);

/// Takes the bytes of a connection apart, by the letter: whatever WeChat could read in two ways is a failure.
fn arrived(name: &str, mut bytes: &[u8]) -> (Vec<Arrived>, Vec<u8>) {
    let mut requests = Vec::new();
    while let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
        let head = &bytes[..end];
        let shown = String::from_utf8_lossy(head).into_owned();
        let lines: Vec<Vec<u8>> = split(head, b"\r\n");
        assert!(
            lines.iter().all(|line| !line.iter().any(|&b| b == b'\r' || b == b'\n' || b == 0)),
            "{name}: a stray CR, LF or NUL went upstream: {shown:?}"
        );
        let mut headers: Vec<String> = Vec::new();
        for line in &lines[1..] {
            let line = String::from_utf8_lossy(line).into_owned();
            let (field, value) = line.split_once(':').unwrap_or_else(|| panic!("{name}: {shown:?}"));
            assert!(!field.contains([' ', '\t']), "{name}: {shown:?}");
            headers.push(format!("{}: {}", field.to_ascii_lowercase(), value.trim_matches([' ', '\t'])));
        }
        headers.sort();
        let of = |field: &str| headers.iter().filter(|header| header.starts_with(field)).count();
        assert_eq!((of("transfer-encoding:"), of("host:")), (0, 1), "{name}: {shown:?}");
        let lengths: Vec<_> = headers.iter().filter_map(|h| h.strip_prefix("content-length: ")).collect();
        assert!(lengths.len() <= 1, "{name}: {shown:?}");
        let length: usize = lengths.first().map_or(0, |length| length.parse().expect("a length"));
        let body = &bytes[end + 4..];
        if body.len() < length {
            break;
        }
        let line = String::from_utf8_lossy(&lines[0]).into_owned();
        requests.push((line, headers, body[..length].to_vec()));
        bytes = &body[length..];
    }
    (requests, bytes.to_vec())
}

fn split(bytes: &[u8], by: &[u8]) -> Vec<Vec<u8>> {
    let mut parts = vec![Vec::new()];
    let mut rest = bytes;
    while let Some((&first, after)) = rest.split_first() {
        if rest.starts_with(by) {
            parts.push(Vec::new());
            rest = &rest[by.len()..];
        } else {
            parts.last_mut().expect("one at least").push(first);
            rest = after;
        }
    }
    parts
}

/// The bytes of every connection that came since these lengths.
fn news(upstream: &RawUpstream, before: &[usize]) -> Vec<Vec<u8>> {
    let bytes = upstream.all_bytes();
    let from = |connection: usize| before.get(connection).copied().unwrap_or(0);
    bytes.iter().enumerate().map(|(n, bytes)| bytes[from(n)..].to_vec()).collect()
}

/// Plays one entry, in pieces of this size.
async fn play(entry: &Entry, sidecar: &Sidecar, upstream: &RawUpstream, piece: usize) {
    let name = format!("{}, by {piece}", entry.name);
    let wanted = String::from_utf8_lossy(&entry.upstream).replace("UPSTREAM", &upstream.address.to_string());
    let (wanted, rest) = arrived(&name, wanted.as_bytes());
    assert!(rest.is_empty() || entry.is("cut"), "{name}: what is expected upstream is whole");
    let before: Vec<usize> = upstream.all_bytes().iter().map(Vec::len).collect();

    let mut client = sidecar.connect().await;
    let mut expected = entry.replies.iter();
    let mut forwarded = false;
    for act in &entry.acts {
        match act {
            Act::Send(bytes) => {
                for piece in bytes.chunks(piece) {
                    client.send(piece).await;
                    if bytes.len() > piece.len() {
                        tokio::task::yield_now().await;
                    }
                }
            }
            Act::Do(what) if what == "half-close" => client.half_close().await,
            Act::Do(what) if what == "reply" => {
                let reply = client.reply().await;
                expected.next().expect("a reply that is expected").check(&name, &reply);
            }
            Act::Do(what) if what == "head" => {
                let reply = client.head().await;
                expected.next().expect("a reply that is expected").check(&name, &reply);
            }
            Act::Do(what) => panic!("{name}: no such act: {what}"),
        }
    }
    if entry.is("gone") {
        drop(client);
        client = sidecar.connect().await;
    }
    for expected in expected {
        let reply = client.reply().await;
        expected.check(&name, &reply);
        if reply.status == 200 && reply.cause() == "-" {
            forwarded = true;
        }
    }
    if entry.is("closed") {
        client.assert_closed(&name).await;
        client = sidecar.connect().await;
    }
    // In step: the next call is answered as the one it is, whatever stood before it.
    let sync = format!("/cgi-bin/in-step/{}", name.len());
    let request = format!("GET {sync} HTTP/1.1\r\nHost: api.weixin.qq.com\r\n\r\n");
    if entry.is("cut") {
        upstream.until("the end of what was cut", |log| log.open == 0).await;
        client.call(request).await.assert_wechats(200, OK);
    } else {
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{sync}", sync.len());
        upstream.play([say(answer)]);
        client.call(request).await.assert_wechats(200, &sync);
    }
    if entry.is("open") {
        // Nothing is left over that would be the next answer.
        client.half_close().await;
        client.assert_closed(&name).await;
    }

    let mut requests = Vec::new();
    for bytes in news(upstream, &before) {
        let (mut whole, rest) = arrived(&name, &bytes);
        let shown = String::from_utf8_lossy(&rest);
        assert!(rest.is_empty() || entry.is("cut"), "{name}: half a request went upstream: {shown:?}");
        requests.append(&mut whole);
    }
    let line = format!("GET {sync}?access_token=TOKEN-1 HTTP/1.1");
    let position = requests.iter().position(|(first, ..)| *first == line);
    requests.remove(position.unwrap_or_else(|| panic!("{name}: the next call arrives: {requests:?}")));
    if entry.is("cut") || (entry.is("may be refused") && !forwarded) {
        assert_eq!(requests, [], "{name}: no request is whole");
    } else {
        assert_eq!(requests, wanted, "{name}: what went upstream");
    }
}

#[tokio::test]
async fn every_request_of_the_corpus_comes_to_its_outcome_and_leaves_its_connection_in_step_or_ended() {
    let entries = read("requests");
    assert!(entries.len() >= 150, "{} requests", entries.len());
    let mut failed = Vec::new();
    let mut rig = None;
    for entry in entries {
        assert!(
            ["open", "closed", "gone"].iter().filter(|after| entry.is(after)).count() == 1,
            "{}: says what becomes of its connection",
            entry.name
        );
        let longest = entry.acts.iter().map(|act| match act {
            Act::Send(bytes) => bytes.len(),
            Act::Do(_) => 0,
        });
        let longest = longest.max().unwrap_or(0);
        for piece in [longest.max(1), longest / 60 + 1] {
            if piece < longest && entry.is("at once") {
                continue;
            }
            // One of its own, where the upstream may note what it got of a call only after the app has its answer.
            let shared = rig.take().filter(|_| !entry.is("cut"));
            let (sidecar, upstream) = match shared {
                Some(shared) => shared,
                None => {
                    let upstream = RawUpstream::start().await;
                    (Sidecar::before(&upstream).await, upstream)
                }
            };
            let (entry, name) = (entry.clone(), entry.name.clone());
            let played = tokio::spawn(async move {
                within(&entry.name, play(&entry, &sidecar, &upstream, piece)).await;
                (sidecar, upstream)
            });
            match played.await {
                Ok(used) => rig = Some(used),
                Err(_) => failed.push(name),
            }
        }
    }
    // What each of them failed with stands above.
    assert_eq!(failed, [] as [String; 0]);
    let (sidecar, _upstream) = rig.expect("one that was used");
    let reply = sidecar.call("GET /cgi-bin/x HTTP/1.1\r\nHost: api.weixin.qq.com\r\n\r\n").await;
    reply.assert_wechats(200, OK);
}
