//! Words for hyper's refusals: what it cannot read as a request it answers by itself, with a bare head. `words` finds
//! that head at the end of what hyper writes, and gives the reply the app should get instead: JSON, and a header that
//! names the cause, like every other error of ours.

use crate::error::{Cause, Failure};

/// hyper's own answers, byte for byte (`auto_date_header` is off). No other write ends so: WeChat's heads have more
/// headers than these two, ours have a body, and a piece of a body that does is cut before its last byte.
const ANSWERS: [(&[u8], Cause, &str); 3] = [
    (
        b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
        Cause::BadRequest,
        "the request is not sound HTTP/1.1, or its target has a byte that must be percent-encoded (such as \" < > or a space); nothing was sent. The sidecar's log has the reason",
    ),
    (
        b"HTTP/1.1 414 URI Too Long\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
        Cause::TargetTooLong,
        "the request target is longer than 65,534 bytes; nothing was sent. Send the parameters in the body",
    ),
    (
        b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
        Cause::HeadTooLarge,
        "the request head is larger than max_head, or has more than 100 headers; nothing was sent. Send fewer or shorter headers, or raise max_head",
    ),
];

/// Whether `bytes` end in what may be taken for an answer of hyper's.
#[must_use]
pub fn is_an_answer(bytes: &[u8]) -> bool {
    // Nearly all fail this, by their last bytes.
    bytes.ends_with(b"\r\ncontent-length: 0\r\n\r\n")
}

/// What to write in place of `bytes`, if they end in an answer of hyper's.
pub(super) fn words(bytes: &[u8]) -> Option<Vec<u8>> {
    if !is_an_answer(bytes) {
        return None;
    }
    let (answer, cause, message) = ANSWERS.iter().find(|(answer, ..)| bytes.ends_with(answer))?;
    let mut text = bytes[..bytes.len() - answer.len()].to_vec();
    text.extend_from_slice(&Failure::new(*cause, *message).to_bytes());
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hypers_own_answers_are_given_words() {
        for (answer, cause, _) in ANSWERS {
            let before = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
            let said = String::from_utf8(words(&[before, answer].concat()).unwrap()).unwrap();
            assert!(said.starts_with("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 4"), "{said}");
            assert!(said.contains(&format!("x-wechat-sidecar-error: {}\r\n", cause.name())), "{said}");
            let (head, body) = said.rsplit_once("\r\n\r\n").unwrap();
            assert!(
                head.ends_with(&format!("content-length: {}", body.len()))
                    && head.contains("connection: close")
            );
            assert!(body.contains("wechat-sidecar: "));
        }
        for other in [
            &b"HTTP/1.1 400 Bad Request\r\nserver: nginx\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"[..],
            b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
            b"",
        ] {
            assert_eq!(words(other), None);
        }
    }
}
