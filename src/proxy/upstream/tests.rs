//! Our client against hyper's: what we take, hyper takes, and reads the same in it; what we refuse, hyper refuses too,
//! but for the rows where we are stricter on purpose. Thousands of replies, sound, odd and hostile, each cut at other
//! places; all of them from seeds, so that a failure comes again.

use bytes::{Bytes, BytesMut};
use fastrand::Rng;
use http::HeaderMap;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::message::{self, Final, Head, Malformed, Next};
use super::wire::HeadReader;
use crate::proxy::head::named;
use crate::syntax::Field;

/// What a client made of a reply.
#[derive(Debug, PartialEq, Eq)]
enum Read {
    /// No head.
    Refused,
    Reply {
        status: u16,
        /// What goes on to the app, names in lower case, sorted by name.
        headers: Vec<(String, Vec<u8>)>,
        /// `None` when it broke off.
        body: Option<Vec<u8>>,
    },
}

/// What ours makes of it, and why it refuses.
fn ours(pieces: &[&[u8]], to_head: bool) -> (Read, Option<Malformed>) {
    let mut reader = HeadReader::default();
    let mut pieces = pieces.iter();
    let (Final { head, mut decoder, .. }, mut came) = loop {
        let Some(piece) = pieces.next() else { return (Read::Refused, None) };
        match reader.take(piece, to_head) {
            Ok(Some(head)) => break head,
            Ok(None) => {}
            Err(why) => return (Read::Refused, Some(why)),
        }
    };
    let mut text = head.clone();
    let mut headers: Vec<_> = text
        .text_mut()
        .split(|&b| b == b'\n')
        .skip(1)
        .filter_map(|line| {
            let colon = memchr::memchr(b':', line)?;
            let name = String::from_utf8(line[..colon].to_ascii_lowercase()).unwrap();
            // Just what was written: a space before, CR behind.
            Some((name, line[colon + 2..line.len() - 1].to_vec()))
        })
        .collect();
    headers.sort_by(|(one, _), (other, _)| one.cmp(other));
    let mut body = Some(Vec::new());
    let mut why = None;
    loop {
        match decoder.next(&mut came) {
            Ok(Next::Data(data)) => body.iter_mut().for_each(|body| body.extend_from_slice(&data)),
            Ok(Next::End) => break,
            Ok(Next::More) => match pieces.next() {
                Some(piece) => came.extend_from_slice(piece),
                None if decoder.ends_with_connection() => break,
                None => {
                    body = None;
                    break;
                }
            },
            Err(malformed) => {
                (body, why) = (None, Some(malformed));
                break;
            }
        }
    }
    (Read::Reply { status: head.status.as_u16(), headers, body }, why)
}

async fn hypers(pieces: &[&[u8]], to_head: bool) -> Read {
    let (client, mut server) = tokio::io::duplex(1 << 20);
    let says = async move {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            server.read_buf(&mut request).await.unwrap();
        }
        for piece in pieces {
            if server.write_all(piece).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
    };
    let asks = async move {
        let (mut sender, connection) =
            http1::Builder::new().handshake::<_, Empty<Bytes>>(TokioIo::new(client)).await.unwrap();
        let driving = async { drop(connection.await) };
        let method = if to_head { "HEAD" } else { "GET" };
        let request = http::Request::builder().method(method).uri("/").body(Empty::new()).unwrap();
        let reading = async {
            let Ok(reply) = sender.send_request(request).await else { return Read::Refused };
            let (head, body) = reply.into_parts();
            if head.status == 101 {
                return Read::Refused;
            }
            let body = body.collect().await.ok().map(|body| body.to_bytes().to_vec());
            drop(sender);
            Read::Reply { status: head.status.as_u16(), headers: passing(&head.headers), body }
        };
        tokio::join!(driving, reading).1
    };
    tokio::join!(says, asks).1
}

/// What is not between neighbours.
fn passing(map: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    let away: Vec<Vec<u8>> = map
        .get_all("connection")
        .iter()
        .flat_map(|value| named(value.as_bytes()))
        .map(<[u8]>::to_ascii_lowercase)
        .collect();
    let mut length = false;
    let mut passing: Vec<_> = map
        .iter()
        .filter(|(name, _)| match Field::of(name.as_str().as_bytes()) {
            Field::Connection | Field::Neighbours | Field::TransferEncoding => false,
            Field::ContentLength => !std::mem::replace(&mut length, true),
            _ => !away.iter().any(|away| away == name.as_str().as_bytes()),
        })
        .map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()))
        .collect();
    passing.sort_by(|(one, _), (other, _)| one.cmp(other));
    passing
}

/// Where we refuse on purpose what hyper repairs, by the words we say.
const STRICTER: &[&str] = &[
    // A bare LF ends a line for hyper.
    "does not end with CR LF",
    // `5, 5`, and what is longer than i64::MAX.
    "Content-Length is not one number",
    "Content-Length is too large",
    // gzip, `gzip, chunked`, a length beside it, several of them; hyper reads on, also behind HEAD, 204 and 304.
    "leaves open where the answer ends",
    // hyper does not look at the lengths of a reply that has no body.
    "two Content-Lengths",
    // hyper hands the connection over.
    "101",
    // hyper takes anything but LF for an extension, and sizes up to u64::MAX.
    "a chunk extension",
    "a chunk size",
    // hyper ends at the first empty line of two LFs.
    "the trailers",
];

async fn compare(reply: &[u8], cuts: &[usize], to_head: bool) -> bool {
    let mut pieces = Vec::new();
    let mut rest = reply;
    for &cut in cuts {
        if cut >= rest.len() {
            break;
        }
        let (piece, after) = rest.split_at(cut);
        pieces.push(piece);
        rest = after;
    }
    pieces.push(rest);
    pieces.retain(|piece| !piece.is_empty());
    let ((ours, why), hypers) = (ours(&pieces, to_head), hypers(&pieces, to_head).await);
    let shown =
        || format!("{:?}, cut at {cuts:?}, to HEAD: {to_head}, {why:?}", String::from_utf8_lossy(reply));
    if why.is_some_and(|why| STRICTER.iter().any(|stricter| why.contains(stricter))) {
        return false;
    }
    assert_eq!(ours, hypers, "{}", shown());
    matches!(ours, Read::Reply { body: Some(_), .. })
}

/// One of these; the first half as often as the second, which is the odder one.
fn one<'a>(rng: &mut Rng, of: &[&'a str]) -> &'a str {
    of[rng.usize(..of.len())]
}

/// A reply that may be sound.
fn reply(rng: &mut Rng) -> Vec<u8> {
    let mut text = String::new();
    while rng.u8(..8) == 0 {
        text +=
            one(rng, &["HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"]);
    }
    text += match rng.u8(..8) {
        0 => one(
            rng,
            &[
                "HTTP/1.0 200 OK\r\n",
                "HTTP/1.1 200\r\n",
                "HTTP/1.1 999 \r\n",
                "HTTP/1.1 204 No Content\r\n",
                "HTTP/1.1 304 Not Modified\r\n",
                "HTTP/1.1 101 Switching\r\n",
                "HTTP/2.0 200 OK\r\n",
                "HTTP/1.1 20 OK\r\n",
                "HTTP/1.1  200 OK\r\n",
                "HTTP/1.1 200 OK\n",
                "ICY 200 OK\r\n",
                "\r\nHTTP/1.1 200 OK\r\n",
            ],
        ),
        _ => "HTTP/1.1 200 OK\r\n",
    };
    let body = &"{\"errcode\":0,\"errmsg\":\"ok\"}"[..rng.usize(..=27)];
    let (mut framing, mut sent) = match rng.u8(..3) {
        0 => (String::new(), body.to_owned()),
        1 => (format!("Content-Length: {}\r\n", body.len()), body.to_owned()),
        _ => ("Transfer-Encoding: chunked\r\n".to_owned(), chunks(rng, body)),
    };
    if rng.u8(..6) == 0 {
        let length = body.len();
        framing += &match rng.u8(..10) {
            0 => format!("Content-Length: {length}\r\n"),
            1 => format!("Content-Length: {}\r\n", length + 1),
            2 => format!("Content-Length: {length}, {length}\r\n"),
            3 => format!("content-length:\t00{length} \r\n"),
            4 => "Transfer-Encoding: gzip\r\n".to_owned(),
            5 => "transfer-encoding: CHUNKED\r\n".to_owned(),
            6 => "Transfer-Encoding: gzip, chunked\r\n".to_owned(),
            7 => "Content-Length: +1\r\n".to_owned(),
            8 => "Content-Length: 99999999999999999999\r\n".to_owned(),
            _ => "Content-Length:\r\n".to_owned(),
        };
    }
    let mut lines = vec![framing];
    for _ in 0..rng.usize(..5) {
        let line = match rng.u8(..4) {
            0 => one(
                rng,
                &[
                    "X-A: b\r\n c\r\n",
                    "X-A : b\r\n",
                    " X-A: b\r\n",
                    "X-A\r\n",
                    ": b\r\n",
                    "X-A: a\rb\r\n",
                    "X-A: a\0b\r\n",
                    "X-A: b\n",
                    "X\u{e9}: b\r\n",
                    "X-A: \u{e9}\r\n",
                    "X-A: a\tb\t\r\n",
                    "X-A:\r\n",
                ],
            ),
            _ => one(
                rng,
                &[
                    "X-A: b\r\n",
                    "x-a: c\r\n",
                    "Server: nginx\r\n",
                    "Connection: close\r\n",
                    "Connection: keep-alive, X-A\r\n",
                    "Keep-Alive: timeout=5\r\n",
                    "Content-Encoding: gzip\r\n",
                    "Set-Cookie: a=1\r\n",
                    "Trailer: X-T\r\n",
                    "Date: today\r\n",
                ],
            ),
        };
        let at = rng.usize(..=lines.len());
        lines.insert(at, line.to_owned());
    }
    if rng.u8(..40) == 0 {
        lines.push("X-Many: 1\r\n".repeat(rng.usize(90..110)));
    }
    text += &lines.concat();
    text += "\r\n";
    if rng.u8(..8) == 0 {
        sent += one(rng, &["HTTP/1.1 200 OK\r\n\r\n", "x", "\r\n", "0\r\n\r\n"]);
    }
    text += &sent;
    let mut reply = text.into_bytes();
    // Now and then a byte is another one, is missing, or is too much, or the end is missing.
    while rng.u8(..4) == 0 && !reply.is_empty() {
        let at = rng.usize(..reply.len());
        let byte = *rng.choice(b"\r\n\0 :;,0aF\x7f\t").unwrap_or(&0);
        match rng.u8(..4) {
            0 => reply[at] = byte,
            1 => drop(reply.remove(at)),
            2 => reply.insert(at, byte),
            _ => reply.truncate(at),
        }
    }
    reply
}

fn chunks(rng: &mut Rng, body: &str) -> String {
    let mut text = String::new();
    let mut rest = body;
    while !rest.is_empty() {
        let (chunk, after) = rest.split_at(rng.usize(1..=rest.len()));
        let extension = if rng.u8(..4) == 0 {
            one(rng, &[";a=b", " ", "\t;x", ";", ";a\u{e9}", " 1", ";a\rb"])
        } else {
            ""
        };
        text += &match rng.u8(..12) {
            0 => format!("00{:X}{extension}\r\n{chunk}\r\n", chunk.len()),
            1 => format!("{:x}{extension}\r\n{chunk}\n", chunk.len()),
            2 => format!("{:x}{extension}\n{chunk}\r\n", chunk.len()),
            3 => format!("{:x}{extension}\r\n{chunk}\r\n", chunk.len() + rng.usize(..2)),
            _ => format!("{:x}{extension}\r\n{chunk}\r\n", chunk.len()),
        };
        rest = after;
    }
    text += one(
        rng,
        &[
            "0\r\n\r\n",
            "0\r\n\r\n",
            "000\r\nX-T: 1\r\n\r\n",
            "0;a\r\n\r\n",
            "0\r\nX-T\r\n\r\n",
            "\r\n0\r\n\r\n",
            "",
        ],
    );
    text
}

#[tokio::test]
async fn what_we_take_hyper_takes_and_reads_alike() {
    let (mut taken, cases) = (0, 6000);
    for seed in 0..cases {
        let mut rng = Rng::with_seed(seed);
        let reply = reply(&mut rng);
        let to_head = rng.u8(..10) == 0;
        let cuts: Vec<usize> = match rng.u8(..3) {
            0 => vec![],
            1 => vec![1; reply.len()],
            _ => (0..20).map(|_| rng.usize(1..60)).collect(),
        };
        taken += u64::from(compare(&reply, &cuts, to_head).await);
    }
    // Neither all of them sound nor all of them broken would say much.
    assert!((cases / 3..cases * 9 / 10).contains(&taken), "{taken} of {cases} were taken");
}

#[test]
fn a_plain_head_is_read_as_any_other_way_reads_it() {
    let (mut plain, cases) = (0, 6000);
    for seed in 0..cases {
        let mut rng = Rng::with_seed(seed);
        let reply = reply(&mut rng);
        let to_head = rng.u8(..10) == 0;
        let any = message::any(&reply, to_head);
        match message::plain(&reply, to_head) {
            Ok(None) => continue,
            Ok(Some(read)) => {
                assert_eq!(
                    format!("{:?}", any.map(Some)),
                    format!("{:?}", Ok::<_, Malformed>(Some(Head::Final(read))))
                );
            }
            Err(why) => assert!(any.is_err(), "{why}: {any:?}"),
        }
        plain += 1;
    }
    assert!(plain > cases / 3, "{plain} of {cases} were plain");
}

#[test]
fn where_we_are_stricter_we_say_so() {
    let head = |lines: &str| format!("HTTP/1.1 200 OK\r\n{lines}\r\n");
    let chunked = |chunks: &str| head("Transfer-Encoding: chunked\r\n") + chunks;
    let rows = [
        ("a bare LF", "HTTP/1.1 200 OK\nContent-Length: 2\n\nok".to_owned()),
        ("a bare LF in one line", head("X-A: b\nContent-Length: 2\r\n") + "ok"),
        ("a list of equal lengths", head("Content-Length: 2, 2\r\n") + "ok"),
        ("a length beyond i64", head("Content-Length: 9223372036854775808\r\n")),
        ("another encoding", head("Transfer-Encoding: gzip\r\n") + "ok"),
        (
            "a length and chunks",
            head("Content-Length: 2\r\nTransfer-Encoding: chunked\r\n") + "2\r\nok\r\n0\r\n\r\n",
        ),
        ("two encodings", head("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n") + "0\r\n\r\n"),
        ("a control in an extension", chunked("2;a\0b\r\nok\r\n0\r\n\r\n")),
        ("a chunk beyond i64", chunked("8000000000000000\r\nok")),
        ("a bare LF in the trailers", chunked("0\r\nX-T: 1\n\r\n")),
        ("an upgrade", "HTTP/1.1 101 Switching Protocols\r\n\r\n".to_owned()),
    ];
    for (why, reply) in rows {
        let (_, said) = ours(&[reply.as_bytes()], false);
        let said = said.unwrap_or_else(|| panic!("{why}: it is taken"));
        assert!(STRICTER.iter().any(|stricter| said.contains(stricter)), "{why}: {said}");
    }
}

#[test]
fn a_head_that_does_not_end_is_refused_at_64_kib_and_costs_little_until_then() {
    for line in ["X-A: b\r\n", "X-Long: "] {
        let mut reader = HeadReader::default();
        let mut fed = 0;
        let refused = std::iter::once("HTTP/1.1 200 OK\r\nX-First: ")
            .chain(std::iter::repeat(line))
            .flat_map(str::bytes)
            .find_map(|byte| {
                fed += 1;
                reader.take(&[byte], false).err()
            });
        assert!(refused.is_some());
        assert_eq!(fed, 64 * 1024 + 1, "{refused:?}");
    }
}

#[test]
fn a_flood_of_interim_answers_is_refused_and_some_are_borne() {
    let interim = "HTTP/1.1 102 Processing\r\n\r\n";
    let some = interim.repeat(50) + "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    assert!(matches!(ours(&[some.as_bytes()], false), (Read::Reply { status: 200, .. }, None)));
    let piece = interim.repeat(100);
    let (_, why) = ours(&vec![piece.as_bytes(); 30], false);
    assert_eq!(why, Some("it sent interim answers without end"));
}

#[test]
fn what_follows_a_body_stays_behind_it() {
    let mut came = BytesMut::from(&b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1"[..]);
    let Ok(Head::Final(Final { length, mut decoder, is_kept, .. })) = super::message::head(&came, false)
    else {
        panic!("a sound head")
    };
    drop(came.split_to(length));
    assert_eq!(decoder.next(&mut came), Ok(Next::Data(Bytes::from_static(b"ok"))));
    assert_eq!((decoder.next(&mut came), &came[..], is_kept), (Ok(Next::End), &b"HTTP/1.1"[..], true));
}

#[test]
fn a_connection_is_kept_where_both_sides_say_so() {
    for (head, kept) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", true),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", true),
        ("HTTP/1.1 204 No Content\r\n\r\n", true),
        ("HTTP/1.1 200 OK\r\n\r\n", false),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: x, CLOSE\r\nConnection: keep-alive\r\n\r\n",
            false,
        ),
        ("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", false),
        ("HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: Keep-Alive\r\n\r\n", true),
        ("HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\n\r\n", false),
    ] {
        let Ok(Head::Final(Final { is_kept, .. })) = super::message::head(head.as_bytes(), false) else {
            panic!("a sound head: {head}")
        };
        assert_eq!(is_kept, kept, "{head}");
    }
}

#[test]
fn a_compressed_reply_is_known_by_its_codings() {
    for (lines, encoded) in [
        ("", false),
        ("Content-Encoding: identity\r\n", false),
        ("Content-Encoding: Identity, \r\n", false),
        ("Content-Encoding:\r\n", false),
        ("content-encoding: gzip\r\n", true),
        ("Content-Encoding: identity, br\r\n", true),
        ("Content-Encoding: identity\r\nContent-Encoding: deflate\r\n", true),
    ] {
        let head = format!("HTTP/1.1 200 OK\r\n{lines}\r\n");
        let Ok(Head::Final(Final { head, .. })) = super::message::head(head.as_bytes(), false) else {
            panic!("a sound head: {head}")
        };
        assert_eq!(head.is_encoded, encoded, "{lines}");
    }
}
