//! Replies that would be two, or bring headers that WeChat never wrote: whatever the upstream says, the app gets one
//! sound reply, or an error of ours.

use crate::rig::{RawUpstream, Sidecar, Step, say};

const TWO_CALLS: &str = "GET /cgi-bin/x HTTP/1.1\r\nHost: a\r\n\r\n";

#[tokio::test]
async fn a_head_that_could_be_read_in_two_ways_does_not_reach_the_app() {
    for (why, head) in [
        ("a bare LF ends a value", "X-A: b\nSet-Cookie: evil=1\r\n"),
        ("a bare CR in a value", "X-A: b\rSet-Cookie: evil=1\r\n"),
        ("a NUL in a value", "X-A: b\0c\r\n"),
        ("a control character in a value", "X-A: b\x01c\r\n"),
        ("a line that goes on", "X-A: b\r\n Set-Cookie: evil=1\r\n"),
        ("a space before the colon", "Set-Cookie : evil=1\r\n"),
        ("no colon", "evil\r\n"),
        ("no name", ": evil\r\n"),
        ("a name with a space", "X A: evil\r\n"),
        ("a name with a bracket", "X(A): evil\r\n"),
    ] {
        let upstream =
            RawUpstream::playing([say(format!("HTTP/1.1 200 OK\r\n{head}Content-Length: 2\r\n\r\nok"))])
                .await;
        let sidecar = Sidecar::before(&upstream).await;
        let reply = sidecar.call(TWO_CALLS).await;
        let injected = reply.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("set-cookie"));
        let bare = reply.headers.iter().any(|(name, value)| {
            let odd = |b: u8| (b < b' ' && b != b'\t') || b == 0x7f;
            name.bytes().chain(value.bytes()).any(odd)
        });
        // A line feed alone ends a line to every reader there is, so that one is a header of WeChat's; it goes on with CR LF.
        let told = why.starts_with("a bare LF") && injected && reply.status == 200;
        assert!(
            !bare && (told || (reply.status == 502 && reply.cause() == "upstream-malformed")),
            "{why}: {reply:?}"
        );
    }
}

#[tokio::test]
async fn a_second_reply_behind_the_first_is_nobodys_answer() {
    let second = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL";
    for first in [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ] {
        let upstream =
            RawUpstream::playing([say(format!("{first}{second}")), say(format!("{first}{second}"))]).await;
        let sidecar = Sidecar::before(&upstream).await;
        let mut app = sidecar.connect().await;
        for _ in 0..2 {
            let reply = app.call(TWO_CALLS).await;
            assert!(!reply.text().contains("EVIL"), "{first:?}: {reply:?}");
        }
        assert_eq!(upstream.calls(), 2, "{first:?}: each call was sent, and got an answer of its own");
    }
}

#[tokio::test]
async fn two_statements_on_a_replys_end_are_an_error_of_ours() {
    for head in [
        "Content-Length: 2\r\nContent-Length: 20\r\n",
        "Content-Length: 2, 20\r\n",
        "Content-Length: +2\r\n",
        "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: xchunked\r\n",
    ] {
        let steps = vec![
            Step::ReadBody,
            Step::Say(format!("HTTP/1.1 200 OK\r\n{head}\r\n2\r\nok\r\n0\r\n\r\n").into_bytes()),
            Step::Close,
        ];
        let upstream = RawUpstream::playing([steps]).await;
        let sidecar = Sidecar::before(&upstream).await;
        sidecar.call(TWO_CALLS).await.assert_ours(502, "upstream-malformed");
    }
}
