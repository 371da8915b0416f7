//! What the guard lets through and what it refuses, by real hyper over a real stream of bytes.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;

/// How a stream of requests reaches the server.
#[derive(Clone, Debug)]
enum Cut {
    Whole,
    Bytes,
    Pieces(Vec<usize>),
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    /// Bodies that came to their end.
    served: Vec<Vec<u8>>,
    /// Bodies that broke.
    broken: usize,
    /// Final statuses on the wire.
    statuses: Vec<u16>,
}

/// Sends a stream to a real hyper server behind the guard, and waits until the server hangs up. Whether hyper is given
/// all lines of a head or only those that it needs makes no difference.
async fn serve(stream: &[u8], cut: Cut, end_of_file: bool) -> Seen {
    let only = Wanted::only([http::HeaderName::from_static("x-wanted")], 16 * 1024);
    let few = serve_with(only, stream, cut.clone(), end_of_file).await;
    let all = serve_with(Wanted::all(), stream, cut, end_of_file).await;
    assert_eq!(few, all, "{}", String::from_utf8_lossy(stream));
    all
}

async fn serve_with(wanted: Wanted, stream: &[u8], cut: Cut, end_of_file: bool) -> Seen {
    let (client, server) = tokio::io::duplex(if matches!(cut, Cut::Bytes) { 1 } else { 1 << 20 });
    let seen = Arc::new(Mutex::new(Seen::default()));
    let service = service_fn(|request: Request<Incoming>| {
        let seen = Arc::clone(&seen);
        async move {
            let connect = request.method() == Method::CONNECT;
            let body = request.into_body().collect().await;
            let mut seen = seen.lock().unwrap();
            let mut reply = Response::new(Full::new(Bytes::new()));
            match body {
                Ok(body) => seen.served.push(body.to_bytes().to_vec()),
                Err(_) => {
                    seen.broken += 1;
                    *reply.status_mut() = StatusCode::BAD_REQUEST;
                }
            }
            if connect {
                *reply.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
            }
            Ok::<_, Infallible>(reply)
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .half_close(true)
        .serve_connection(Guarded::new(server, Heads::of(wanted), PATIENCE), service);
    let told = converse(client, stream, cut, end_of_file);
    let (told, _) = tokio::time::timeout(Duration::from_secs(20), async { tokio::join!(told, connection) })
        .await
        .expect("the server hangs up");
    let mut seen = std::mem::take(&mut *seen.lock().unwrap());
    seen.statuses = told
        .windows(12)
        .filter(|line| line.starts_with(b"HTTP/1."))
        .map(|line| std::str::from_utf8(&line[9..]).unwrap().parse().unwrap())
        .filter(|&status| status >= 200)
        .collect();
    seen
}

/// Writes the stream, and returns all that the server said.
async fn converse(client: DuplexStream, stream: &[u8], cut: Cut, end_of_file: bool) -> Vec<u8> {
    let (mut replies, mut requests) = tokio::io::split(client);
    let write = async move {
        let mut rest = stream;
        let mut sizes = match &cut {
            Cut::Whole => vec![stream.len().max(1)],
            Cut::Bytes => vec![1],
            Cut::Pieces(sizes) => sizes.clone(),
        }
        .into_iter()
        .cycle();
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(sizes.next().unwrap()));
            // The server may hang up before it has all.
            if requests.write_all(now).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
            rest = later;
        }
        if end_of_file {
            let _ = requests.shutdown().await;
        }
        requests
    };
    let mut told = Vec::new();
    let (requests, _) = tokio::join!(write, replies.read_to_end(&mut told));
    drop(requests);
    told
}

fn on_a_runtime<F: Future>(future: F) -> F::Output {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, future)
}

/// What the guard says of a stream by itself.
fn scan(stream: &[u8]) -> (Vec<Vec<u8>>, Option<Violation>) {
    let mut framing = Framing::new();
    let violation = framing.scan(stream, &mut Passed::default()).err().map(|(_, violation)| violation);
    (framing.bodies, violation)
}

fn cuts() -> Vec<Cut> {
    let mut cuts = vec![Cut::Whole, Cut::Bytes];
    for seed in 0..6 {
        let mut random = fastrand::Rng::with_seed(seed);
        cuts.push(Cut::Pieces((0..50).map(|_| random.usize(1..24)).collect()));
    }
    cuts
}

const PATIENCE: Patience = Patience { head: Duration::from_secs(20), idle: Duration::from_secs(75) };
const CHUNKS: &str = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
const GET: &str = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";

#[test]
fn sound_requests_are_served_one_after_another() {
    let post = "POST /p?a=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello";
    let table: Vec<(String, Vec<&str>)> = vec![
        (GET.into(), vec![""]),
        ("GET / HTTP/1.1\r\n\r\n".into(), vec![""]),
        (format!("\r\n{GET}"), vec![""]),
        (format!("{post}\r\n{post}\r\n{GET}"), vec!["hello", "hello", ""]),
        (post.into(), vec!["hello"]),
        (post.repeat(5), vec!["hello"; 5]),
        (format!("{GET}{post}{GET}"), vec!["", "hello", ""]),
        ("PUT / HTTP/1.1\r\ncOnTeNt-LeNgTh:\t 2 \t\r\n\r\nab".into(), vec!["ab"]),
        ("PUT / HTTP/1.1\r\nContent-Length:2\r\n\r\nab".into(), vec!["ab"]),
        ("PUT / HTTP/1.1\r\nContent-Length: 0002\r\n\r\nab".into(), vec!["ab"]),
        (format!("POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n{GET}"), vec!["", ""]),
        (format!("GET / HTTP/1.1\r\nContent-Length: 3\r\n\r\n\r\n\r{GET}"), vec!["\r\n\r", ""]),
        (format!("POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n{GET}{GET}", GET.len()), vec![GET, ""]),
        ("POST / HTTP/1.0\r\nContent-Length: 1\r\n\r\na".into(), vec!["a"]),
        ("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET / HTTP/1.0\r\n\r\n".into(), vec!["", ""]),
        ("GET http://h/p HTTP/1.1\r\n\r\n".into(), vec![""]),
        ("OPTIONS * HTTP/1.1\r\n\r\n".into(), vec![""]),
        ("GET /\u{5fae}?\u{4fe1} HTTP/1.1\r\n\r\n".into(), vec![""]),
        ("X-!#$%&'*+.^_`|~ / HTTP/1.1\r\n\r\n".into(), vec![""]),
        ("GET / HTTP/1.1\r\nX: a\tb#\u{e9}: \"c\r\nY:\r\nZ: \r\n\r\n".into(), vec![""]),
        ("GET / HTTP/1.1\r\nX-Content-Length: a\r\nContent-Length-X: b\r\nTE: gzip\r\n\r\n".into(), vec![""]),
        ("GET / HTTP/1.1\r\nContent_Length: a\r\nContent-Lengt: b\r\n\r\n".into(), vec![""]),
        (format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n{GET}", "v".repeat(20_000)), vec!["", ""]),
        (format!("GET /{} HTTP/1.1\r\n\r\n{GET}", "p".repeat(20_000)), vec!["", ""]),
        ("POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\na".into(), vec!["a"]),
        ("GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n".into(), vec![""]),
        (format!("{CHUNKS}0\r\n\r\n{GET}"), vec!["", ""]),
        (format!("{CHUNKS}5\r\nhello\r\n0\r\n\r\n{post}"), vec!["hello", "hello"]),
        (format!("{CHUNKS}005\r\nhello\r\n000\r\n\r\n{GET}"), vec!["hello", ""]),
        (
            format!("{CHUNKS}A\r\n0123456789\r\n9\r\n\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n{GET}"),
            vec!["0123456789\r\n\r\n0\r\n\r\n", ""],
        ),
        (
            format!("{CHUNKS}3;a\r\nabc\r\n2 \t; n=\"v;\\\" \"\r\nde\r\n0;last\r\n\r\n{GET}"),
            vec!["abcde", ""],
        ),
        (format!("{CHUNKS}1\r\na\r\n0\r\nX: 1\r\nY:\r\n\r\n{GET}"), vec!["a", ""]),
        ("POST / HTTP/1.1\r\ntransfer-encoding:\tCHUNKED \r\n\r\n1\r\na\r\n0\r\n\r\n".into(), vec!["a"]),
    ];
    for (stream, bodies) in table {
        let bodies: Vec<_> = bodies.into_iter().map(|body| body.as_bytes().to_vec()).collect();
        assert_eq!(scan(stream.as_bytes()), (bodies.clone(), None), "{stream:.200}");
        for cut in cuts() {
            let seen = on_a_runtime(serve(stream.as_bytes(), cut.clone(), true));
            assert_eq!(seen.served, bodies, "{cut:?} {stream:.200}");
            assert_eq!((seen.broken, seen.statuses), (0, vec![200; bodies.len()]), "{cut:?} {stream:.200}");
        }
    }
}

#[test]
fn a_head_that_can_be_read_in_two_ways_gets_400_and_the_connection_ends() {
    use Violation as V;
    let head = |fields: &str| format!("POST / HTTP/1.1\r\nHost: x\r\n{fields}\r\n\r\n0\r\n\r\n");
    let line = |line: &str| format!("{line}\r\nHost: x\r\n\r\n");
    let table: Vec<(V, String)> = vec![
        (V::BothFramings, head("Content-Length: 5\r\nTransfer-Encoding: chunked")),
        (V::BothFramings, head("Transfer-Encoding: chunked\r\nContent-Length: 5")),
        (V::BothFramings, head("transfer-encoding: chunked\r\nX: y\r\nCONTENT-LENGTH: 0")),
        (V::SeveralContentLengths, head("Content-Length: 5\r\nContent-Length: 5")),
        (V::SeveralContentLengths, head("Content-Length: 0\r\nContent-Length: 0")),
        (V::SeveralContentLengths, head("Content-Length: 5\r\nX: y\r\ncontent-length: 6")),
        (V::ContentLength, head("Content-Length: 5, 5")),
        (V::ContentLength, head("Content-Length: 5,5")),
        (V::ContentLength, head("Content-Length: +5")),
        (V::ContentLength, head("Content-Length: -5")),
        (V::ContentLength, head("Content-Length: 0x5")),
        (V::ContentLength, head("Content-Length: 5a")),
        (V::ContentLength, head("Content-Length: 5 5")),
        (V::ContentLength, head("Content-Length: 5.0")),
        (V::ContentLength, head("Content-Length: \"5\"")),
        (V::ContentLength, head("Content-Length:")),
        (V::ContentLength, head("Content-Length: ")),
        (V::ContentLength, head("Content-Length: \u{665}")),
        (V::ContentLength, head("Content-Length: 9223372036854775808")),
        (V::ContentLength, head("Content-Length: 18446744073709551621")),
        (V::ContentLength, head("Content-Length: 99999999999999999999999999")),
        (V::ContentLength, head("Content-Length: 5\0")),
        (V::SeveralTransferEncodings, head("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked")),
        (V::TransferEncoding, head("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked")),
        (V::TransferEncoding, head("Transfer-Encoding: gzip, chunked")),
        (V::TransferEncoding, head("Transfer-Encoding: chunked, chunked")),
        (V::TransferEncoding, head("Transfer-Encoding: chunked,")),
        (V::TransferEncoding, head("Transfer-Encoding: chunked;a=b")),
        (V::TransferEncoding, head("Transfer-Encoding: chunk")),
        (V::TransferEncoding, head("Transfer-Encoding: chunkedx")),
        (V::TransferEncoding, head("Transfer-Encoding: chunked x")),
        (V::TransferEncoding, head("Transfer-Encoding: chun ked")),
        (V::TransferEncoding, head("Transfer-Encoding: \"chunked\"")),
        (V::TransferEncoding, head("Transfer-Encoding: \x0bchunked")),
        (V::TransferEncoding, head("Transfer-Encoding: identity")),
        (V::TransferEncoding, head("Transfer-Encoding:")),
        (V::TransferEncodingIn10, "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into()),
        (V::FieldName, head("Content-Length : 5")),
        (V::FieldName, head("Transfer-Encoding\t: chunked")),
        (V::FieldName, head("X Y: 5")),
        (V::FieldName, head("X\0: 5")),
        (V::FieldName, head("X")),
        (V::FieldName, head(": x")),
        (V::FieldName, head("\u{e9}: x")),
        (V::FieldName, head("(x): y")),
        (V::FieldName, head("\0")),
        (V::Folded, head("X: a\r\n b")),
        (V::Folded, head("X: a\r\n\tb: c")),
        (V::Folded, "GET / HTTP/1.1\r\n X: y\r\n\r\n".into()),
        (V::Folded, head("Transfer-Encoding: chunked\r\n , identity")),
        (V::LineEnd, head("X: a\nY: b")),
        (V::LineEnd, head("X: a\n")),
        (V::LineEnd, head("X: a\rY: b")),
        (V::LineEnd, head("X: a\r\rY: b")),
        (V::LineEnd, head("X: a\r\n\rY: b")),
        (V::LineEnd, head("Content-Length: 5\n")),
        (V::LineEnd, head("Transfer-Encoding: chunked\nX: y")),
        (V::LineEnd, "GET / HTTP/1.1\n\n".into()),
        (V::LineEnd, "GET / HTTP/1.1\r\nX: y\r\n\n".into()),
        (V::LineEnd, "GET / HTTP/1.1\r\nX: y\n\r\n".into()),
        (V::LineEnd, "GET / HTTP/1.1\r\n\rGET / HTTP/1.1\r\n\r\n".into()),
        (V::LineEnd, format!("\n{GET}")),
        (V::LineEnd, format!("\r\r\n{GET}")),
        (V::LineEnd, format!("\r\n\n{GET}")),
        (V::EmptyLines, format!("\r\n\r\n{GET}")),
        (V::FieldValue, head("X: a\0b")),
        (V::FieldValue, head("X: a\x7fb")),
        (V::FieldValue, head("X: \x1b[2J")),
        (V::FieldValue, head("X:\x0b")),
        (V::Fragment, line("GET /a#b HTTP/1.1")),
        (V::Fragment, line("GET /a?b=1#access_token=x HTTP/1.1")),
        (V::Fragment, line("GET # HTTP/1.1")),
        (V::RequestLine, line("GET /a\tb HTTP/1.1")),
        (V::RequestLine, line("GET /a\0b HTTP/1.1")),
        (V::RequestLine, line("GET /a\x7f HTTP/1.1")),
        (V::RequestLine, line("GET  / HTTP/1.1")),
        (V::RequestLine, line("GET\t/ HTTP/1.1")),
        (V::RequestLine, line(" GET / HTTP/1.1")),
        (V::RequestLine, line("GET /")),
        (V::RequestLine, line("GET")),
        (V::RequestLine, line("G\u{e9}T / HTTP/1.1")),
        (V::RequestLine, "\0".into()),
        (V::RequestLine, "GET /a\rb HTTP/1.1\r\n\r\n".into()),
        (V::RequestLine, "\x16\x03\x01\x02\0\x01\0\x01\u{fc}\x03\x03".into()),
        (V::Version, line("GET /  HTTP/1.1")),
        (V::Version, line("GET / b HTTP/1.1")),
        (V::Version, line("GET / HTTP/1.2")),
        (V::Version, line("GET / HTTP/0.9")),
        (V::Version, line("GET / http/1.1")),
        (V::Version, line("GET / HTTP/1.1 ")),
        (V::Version, line("GET / HTTP/1.11")),
        (V::Version, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into()),
    ];
    assert!(table.len() > 60);
    for (violation, stream) in table {
        assert_eq!(scan(stream.as_bytes()), (vec![], Some(violation)), "{stream:?}");
        let pipelined =
            format!("POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nok{CHUNKS}2\r\nok\r\n0\r\n\r\n{stream}");
        for cut in cuts() {
            let seen = on_a_runtime(serve(format!("{stream}{GET}").as_bytes(), cut.clone(), false));
            assert_eq!((seen.served.len(), seen.broken), (0, 0), "{cut:?} {stream:?}");
            assert_eq!(seen.statuses, [400], "{cut:?} {stream:?}");

            let seen = on_a_runtime(serve(pipelined.as_bytes(), cut.clone(), false));
            // One empty line may stand between two requests, so one more makes two.
            assert_eq!((seen.served, seen.broken), (vec![b"ok".to_vec(); 2], 0), "{cut:?} {stream:?}");
            assert_eq!(seen.statuses, [200, 200, 400], "{cut:?} {stream:?}");
        }
    }
}

#[test]
fn a_chunked_body_with_unsound_framing_never_ends_well() {
    use Violation as V;
    let table: Vec<(V, String)> = vec![
        (V::ChunkSize, "\r\n".into()),
        (V::ChunkSize, "x\r\n".into()),
        (V::ChunkSize, "0x5\r\nhello\r\n0\r\n\r\n".into()),
        (V::ChunkSize, "+5\r\nhello\r\n0\r\n\r\n".into()),
        (V::ChunkSize, "-1\r\n".into()),
        (V::ChunkSize, " 5\r\nhello\r\n0\r\n\r\n".into()),
        (V::ChunkSize, "5 \r\nhello\r\n0\r\n\r\n".into()),
        (V::ChunkSize, "5 5;a\r\nhello\r\n0\r\n\r\n".into()),
        (V::ChunkSize, ";a\r\n".into()),
        (V::ChunkSize, "8000000000000000\r\n".into()),
        (V::ChunkSize, "10000000000000005\r\nhello\r\n0\r\n\r\n".into()),
        (V::ChunkSize, "1\r\na\r\n\r\n".into()),
        (V::SizeLine, format!("{}5\r\nhello\r\n0\r\n\r\n", "0".repeat(300))),
        (V::SizeLine, format!("5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(300))),
        (V::SizeLine, format!("{}0\r\n\r\n", format!("1;{}\r\na\r\n", "e".repeat(250)).repeat(40))),
        (V::SizeLine, "5;a\0\r\nhello\r\n0\r\n\r\n".into()),
        (V::SizeLine, "0;\x7f\r\n\r\n".into()),
        (V::LineEnd, "5\nhello\r\n0\r\n\r\n".into()),
        (V::LineEnd, "0\n\n".into()),
        (V::LineEnd, "0;a\n\r\n".into()),
        (V::LineEnd, "5;a\nhello\r\n0\r\n\r\n".into()),
        (V::LineEnd, "5;a\rb\r\nhello\r\n0\r\n\r\n".into()),
        (V::LineEnd, "5\r\rhello\r\n0\r\n\r\n".into()),
        (V::LineEnd, "5\r\nhello\r\r0\r\n\r\n".into()),
        (V::LineEnd, "0\r\n\n".into()),
        (V::LineEnd, "0\r\n\rx".into()),
        (V::LineEnd, "0\r\nX: y\n\r\n".into()),
        (V::LineEnd, "0\r\nX: y\rZ: a\r\n\r\n".into()),
        (V::ChunkEnd, "5\r\nhello!\r\n0\r\n\r\n".into()),
        (V::ChunkEnd, "5\r\nhello\n0\r\n\r\n".into()),
        (V::ChunkEnd, "5\r\nhello0\r\n\r\n".into()),
        (V::Folded, "0\r\n X: y\r\n\r\n".into()),
        (V::Folded, "0\r\nX: y\r\n z\r\n\r\n".into()),
        (V::FieldName, "0\r\nX : y\r\n\r\n".into()),
        (V::FieldName, format!("0\r\n{GET}")),
        (V::FieldValue, "0\r\nX: \0\r\n\r\n".into()),
        (V::FramingInTrailers, "0\r\nContent-Length: 5\r\n\r\n".into()),
        (V::FramingInTrailers, "0\r\ntransfer-encoding: chunked\r\n\r\n".into()),
        (V::Trailers, format!("0\r\nX: {}\r\n\r\n", "y".repeat(9000))),
        (V::Trailers, format!("0\r\n{}\r\n", "X: y\r\n".repeat(65))),
    ];
    for (violation, body) in table {
        let stream = format!("{GET}{CHUNKS}{body}{GET}");
        assert_eq!(scan(stream.as_bytes()), (vec![vec![]], Some(violation)), "{body:.99?}");
        for cut in cuts() {
            let seen = on_a_runtime(serve(stream.as_bytes(), cut.clone(), false));
            assert_eq!((seen.served, seen.broken), (vec![vec![]], 1), "{cut:?} {body:.99?}");
            assert_eq!(seen.statuses, [200, 400], "{cut:?} {body:.99?}");
        }
    }
}

#[test]
fn a_request_that_breaks_off_is_not_served() {
    for stream in [
        "GET / HTTP/1.1\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nab",
        &format!("{CHUNKS}1\r\na\r\n0\r\n"),
    ] {
        assert_eq!(scan(stream.as_bytes()), (vec![], None), "{stream}");
        let seen = on_a_runtime(serve(stream.as_bytes(), Cut::Whole, true));
        assert_eq!(seen.served.len(), 0, "{stream}");
    }
}

#[test]
fn poison_is_handed_out_even_where_there_is_hardly_room() {
    use hyper::rt::Read;
    on_a_runtime(async {
        let (mut client, server) = tokio::io::duplex(64);
        client.write_all(b"GET /#").await.unwrap();
        let mut guarded = Guarded::new(server, Heads::default(), PATIENCE);
        assert_eq!(guarded.get_ref().is_write_vectored(), hyper::rt::Write::is_write_vectored(&guarded));
        let mut got = Vec::new();
        for _ in 0..14 {
            let mut room = [0; 1];
            let mut buffer = hyper::rt::ReadBuf::new(&mut room);
            std::future::poll_fn(|cx| Pin::new(&mut guarded).poll_read(cx, buffer.unfilled())).await.unwrap();
            got.extend_from_slice(buffer.filled());
        }
        assert_eq!(got, [b"GET /".as_slice(), POISON].concat());
    });
}

#[test]
fn every_head_comes_out_as_it_went_in_however_it_is_cut() {
    let heads = [
        "GET /a?b=c HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST /x HTTP/1.1\r\nhOST:a\r\ncontent-LENGTH:5\r\nX-Empty:\r\nX-Tab: a\tb\r\n\r\n",
        "POST /y HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
    ];
    let bodies = ["", "hello", "5\r\nhello\r\n0\r\nX-T: 1\r\n\r\n", ""];
    let stream: String = heads.iter().zip(bodies).map(|(head, body)| format!("{head}{body}")).collect();
    for cut in 1..=stream.len() {
        let (mut framing, mut passed) = (Framing::new(), Passed::default());
        for piece in stream.as_bytes().chunks(cut) {
            framing.scan(piece, &mut passed).unwrap();
        }
        let came: Vec<_> =
            passed.whole.iter().map(|head| String::from_utf8_lossy(head.text()).into_owned()).collect();
        assert_eq!(came, heads, "in pieces of {cut}");
        for head in &passed.whole {
            assert_eq!(head.lines(), RawHead::sound(head.text()).lines(), "in pieces of {cut}");
        }
        assert!(passed.part.is_empty());
    }
}

#[test]
fn what_is_looked_for_is_found_at_any_place() {
    for length in 0..70 {
        let mut bytes = vec![b'a'; length];
        assert_eq!(syntax::value(&bytes), length);
        for at in (0..length).rev() {
            bytes[at] = 0;
            assert_eq!(syntax::value(&bytes), at);
        }
    }
}

/// One request and its body.
fn request() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let line = ("GET|POST|PUT|DELETE|HEAD", "/[a-z0-9/?&=%._-]{0,12}");
    let fields = proptest::collection::vec(
        ("X-[A-Za-z]{1,20}|Host|Accept|content-lengt|TE", "[ \t]{0,2}([!-~]([ -~]{0,20}[!-~])?)?[ \t]?"),
        0..4,
    );
    let body = proptest::collection::vec(
        prop_oneof![3 => any::<u8>(), 1 => proptest::sample::select(b"\r\n0;:".to_vec())],
        0..60,
    );
    let chunks = proptest::collection::vec((1usize..20, "(;[a-z=\" ]{0,9})?"), 1..5);
    let trailers = proptest::collection::vec("[A-Za-z]{1,9}: [a-z ]{0,9}", 0..3);
    let framing = (0u8..3, any::<prop::sample::Index>(), chunks, trailers);
    (line, fields, body, framing).prop_map(
        |((method, target), fields, body, (kind, place, chunks, trailers))| {
            let body = if kind == 0 { Vec::new() } else { body };
            let mut fields: Vec<_> = fields.iter().map(|(name, value)| format!("{name}:{value}")).collect();
            let place = place.index(fields.len() + 1);
            match kind {
                1 => fields.insert(place, format!("Content-Length: {}", body.len())),
                2 => fields.insert(place, "transfer-encoding: Chunked".into()),
                _ => {}
            }
            let fields: String = fields.into_iter().map(|field| field + "\r\n").collect();
            let mut stream = format!("{method} {target} HTTP/1.1\r\n{fields}\r\n").into_bytes();
            if kind == 2 {
                let (mut rest, mut chunks) = (body.as_slice(), chunks.iter().cycle());
                while !rest.is_empty() {
                    let (size, extension) = chunks.next().unwrap();
                    let (now, later) = rest.split_at(rest.len().min(*size));
                    stream.extend_from_slice(format!("{:x}{extension}\r\n", now.len()).as_bytes());
                    stream.extend_from_slice(now);
                    stream.extend_from_slice(b"\r\n");
                    rest = later;
                }
                let trailers: String = trailers.into_iter().map(|trailer| trailer + "\r\n").collect();
                stream.extend_from_slice(format!("0\r\n{trailers}\r\n").as_bytes());
            } else {
                stream.extend_from_slice(&body);
            }
            (stream, body)
        },
    )
}

fn pipeline() -> impl Strategy<Value = (Vec<u8>, Vec<Vec<u8>>)> {
    proptest::collection::vec(request(), 1..5).prop_map(|requests| {
        let (streams, bodies): (Vec<_>, Vec<_>) = requests.into_iter().unzip();
        (streams.concat(), bodies)
    })
}

/// A pipeline with a few edits that a smuggler, or a broken client, would make.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let insert = proptest::sample::select(vec![
        "\r\n",
        "\n",
        "\r",
        "\0",
        " ",
        "\t",
        "#",
        ":",
        ";",
        ",",
        "0",
        "5",
        "\r\n\r\n",
        "0\r\n\r\n",
        "\r\nContent-Length: 3",
        "\r\ncontent-length:0",
        "\r\nTransfer-Encoding: chunked",
        "\r\nTE: x",
        "\r\nTransfer-Encoding: gzip, chunked",
        "\r\nConnection: close",
        "\r\nExpect: 100-continue",
        "HTTP/1.0",
        "\r\n ",
        "GET / HTTP/1.1\r\n\r\n",
    ]);
    let edit = (
        any::<prop::sample::Index>(),
        0usize..4,
        prop_oneof![
            4 => insert.prop_map(|text| text.as_bytes().to_vec()),
            1 => proptest::collection::vec(any::<u8>(), 0..3),
        ],
    );
    // Half of the edits go to the beginning of a line, where they tell most.
    let edits = proptest::collection::vec((edit, any::<bool>()), 1..4);
    (pipeline(), edits).prop_map(|((mut stream, _), edits)| {
        for ((place, cut, insert), at_line) in edits {
            let ends: Vec<_> = (0..stream.len()).filter(|&at| stream[at] == b'\r').collect();
            let at = match at_line && !ends.is_empty() {
                true => ends[place.index(ends.len())],
                false => place.index(stream.len() + 1),
            };
            let end = (at + cut * usize::from(!at_line)).min(stream.len());
            stream.splice(at..end, insert);
        }
        stream
    })
}

fn cut() -> impl Strategy<Value = Cut> {
    prop_oneof![
        Just(Cut::Whole),
        Just(Cut::Bytes),
        proptest::collection::vec(1usize..40, 1..20).prop_map(Cut::Pieces),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_bytes_are_judged_alike_however_they_are_cut(
        stream in prop_oneof![proptest::collection::vec(any::<u8>(), 0..300), mutated()],
        sizes in proptest::collection::vec(1usize..9, 1..20),
    ) {
        let mut framing = Framing::new();
        let (mut rest, mut sizes, mut passed) = (stream.as_slice(), sizes.iter().cycle(), 0);
        let (mut end, mut heads) = (Ok(()), Passed::default());
        while !rest.is_empty() && end.is_ok() {
            let (now, later) = rest.split_at(rest.len().min(*sizes.next().unwrap()));
            end = framing.scan(now, &mut heads).map_err(|(good, violation)| (passed + good, violation));
            passed += now.len();
            rest = later;
        }
        let (mut whole, mut whole_heads) = (Framing::new(), Passed::default());
        prop_assert_eq!(end, whole.scan(&stream, &mut whole_heads));
        prop_assert_eq!(framing.bodies, whole.bodies);
        for (head, of_whole) in heads.whole.iter().zip(&whole_heads.whole) {
            prop_assert_eq!((head.text(), head.lines()), (of_whole.text(), of_whole.lines()));
        }
        prop_assert_eq!(heads.number, whole_heads.number);
    }

    #[test]
    fn sound_pipelines_pass_with_their_bodies((stream, bodies) in pipeline(), cut in cut()) {
        prop_assert_eq!(scan(&stream), (bodies.clone(), None));
        let seen = on_a_runtime(serve(&stream, cut, true));
        prop_assert_eq!((&seen.served, seen.broken), (&bodies, 0));
        prop_assert_eq!(seen.statuses, vec![200; bodies.len()]);
    }

    #[test]
    fn hyper_and_the_guard_see_the_same_requests(stream in mutated(), cut in cut()) {
        let (bodies, violation) = scan(&stream);
        let seen = on_a_runtime(serve(&stream, cut, true));
        prop_assert!(bodies.starts_with(&seen.served), "{:?} {:?}", bodies, seen);
        if violation.is_some() {
            prop_assert!(seen.statuses.iter().filter(|&&status| status == 200).count() <= bodies.len());
        }
        // Fewer only because hyper ended the connection, by its own refusal or because a request asked for it.
        let closes = stream.windows(5).any(|w| w.eq_ignore_ascii_case(b"close"))
            || stream.windows(8).any(|w| w == b"HTTP/1.0");
        let refused = seen.statuses.last().is_some_and(|&status| status >= 400);
        prop_assert!(closes || refused || seen.served.len() == bodies.len(), "{:?} {:?}", bodies, seen);
    }
}

/// How a connection ends that sends these pieces, so many milliseconds apart, and how long it lasted.
async fn lasted(pieces: &[&str], pause: u64) -> (io::Result<usize>, Duration) {
    let (mut client, server) = tokio::io::duplex(1 << 16);
    let patience = Patience { head: Duration::from_secs(5), idle: Duration::from_secs(60) };
    let mut guarded = Guarded::new(server, Heads::default(), patience);
    let began = tokio::time::Instant::now();
    let reading = async {
        let mut taken = 0;
        loop {
            let mut buffer = [0; 256];
            let mut read = hyper::rt::ReadBuf::new(&mut buffer);
            let polled = std::future::poll_fn(|cx| {
                hyper::rt::Read::poll_read(Pin::new(&mut guarded), cx, read.unfilled())
            });
            match polled.await {
                Ok(()) if read.filled().is_empty() => return Ok(taken),
                Ok(()) => taken += read.filled().len(),
                Err(error) => return Err(error),
            }
        }
    };
    let writing = async {
        for piece in pieces {
            client.write_all(piece.as_bytes()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        std::future::pending::<()>().await
    };
    tokio::select! {
        ended = reading => (ended, began.elapsed()),
        () = writing => unreachable!("it waits for ever"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_has_its_time_from_the_first_byte_and_an_idle_connection_another() {
    let seconds = async |pieces: &[&str], pause| {
        let (ended, lasted) = tokio::task::LocalSet::new().run_until(lasted(pieces, pause)).await;
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut, "{pieces:?}");
        lasted.as_secs()
    };
    assert_eq!(seconds(&[], 0).await, 60, "nothing at all");
    assert_eq!(seconds(&["G"], 0).await, 5, "a beginning");
    assert_eq!(seconds(&["G"; 10], 1000).await, 5, "each further byte prolongs nothing");
    assert_eq!(seconds(&["GET / HTTP/1.1\r\nA: b\r\n\r"], 0).await, 5, "all but the end");
    assert_eq!(seconds(&["\r\n"], 0).await, 60, "an empty line is no beginning");
    assert_eq!(seconds(&[GET; 10], 4000).await, 4 * 9 + 60, "after each request it counts anew");
    assert_eq!(
        seconds(&["GET / HTTP/1.1\r\n", "A: b\r\n\r\nG"], 4000).await,
        4 + 5,
        "a second head right behind"
    );
    let body = ["POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\n", "a", "b", "c"];
    assert_eq!(seconds(&body, 70_000).await, 3 * 70 + 60, "a body is not this timer's affair");
}
