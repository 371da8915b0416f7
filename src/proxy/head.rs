//! Heads as they are handed on: `RequestHead` is what goes to WeChat, [`ReplyHead`] what goes to the app. Both are
//! the lines that came, byte for byte and in their order, without those that concern just one connection
//! (RFC 9110 7.6.1) and with what is ours to say in its place. Pure.
//!
//! Lines and not a map of headers: WeChat and the app get the names as they were spelled, and a header costs a copy
//! instead of two hashes and an allocation (`perf.md`: half of all instructions were maps and what fills them).

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use crate::buffer::Buffer;
use crate::server::framing::RawHead;
use crate::server::spliced;
use crate::syntax::Field;

/// The names that a value of `Connection` takes away, without those that go anyway.
///
/// SECURITY: framing and target are ours to say; naming them here must not take them away before we have looked.
pub(super) fn named(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&b| b == b',').map(<[u8]>::trim_ascii).filter(|name| {
        !name.is_empty()
            && !name.eq_ignore_ascii_case(b"keep-alive")
            && !name.eq_ignore_ascii_case(b"close")
            && !matches!(Field::of(name), Field::ContentLength | Field::Host)
    })
}

/// The headers of a request on its way to WeChat.
#[derive(Debug)]
pub(super) struct RequestHead(Buffer);

impl RequestHead {
    /// Takes the head that an app sent, request line included, and what hyper read in it.
    pub(super) fn new(raw: &RawHead, read: &HeaderMap, ours: Ours<'_>) -> Self {
        let mut out = Self(Buffer::with_capacity(raw.text().len() + 64));
        let mut write = |named: &[&[u8]]| {
            out.0.clear();
            let (mut left, mut names_others) = (ours, false);
            // They are among the few that hyper has read, if they are there at all.
            if !read.keys().any(|name| ours.private.contains(name)) {
                left.private = &[];
            }
            // Lines go on as they are, in runs that end where one does not.
            let (text, mut run) = (raw.text(), raw.lines().first().map_or(0, |line| line.from as usize));
            for line in raw.lines() {
                let (from, next) = (line.from as usize, line.to as usize + 2);
                let (what, name) = (line.field, &text[from..from + line.name as usize]);
                if out.goes_as_it_is(what, name, named, &left) {
                    continue;
                }
                out.0.extend_from_slice(&text[run..from]);
                run = next;
                names_others |= out.header(what, name, &text[from..next - 2], &mut left);
            }
            out.0.extend_from_slice(&text[run..raw.lines().last().map_or(run, |line| line.to as usize + 2)]);
            // SECURITY: what goes is what was checked. The guard hands a head over for each that hyper reads, so this
            // cannot be; if it were, the head as hyper read it is the one that was.
            if raw.read() != read.len() {
                debug_assert_eq!(raw.read(), read.len(), "the head is another request's");
                out.0.clear();
                (left, names_others) = (ours, false);
                for (name, value) in read {
                    let name = name.as_str().as_bytes();
                    let line = [name, b": ", value.as_bytes(), b"\r\n"].concat();
                    let what = Field::of(name);
                    if out.goes_as_it_is(what, name, named, &left) {
                        out.0.extend_from_slice(&line);
                    } else {
                        names_others |= out.header(what, name, &line[..line.len() - 2], &mut left);
                    }
                }
            }
            if let Some(host) = left.host {
                out.line(b"Host", host.as_bytes());
            }
            if let Some(length) = left.length.filter(|_| left.says_length) {
                out.number(b"Content-Length", length);
            }
            out.0.extend_from_slice(b"\r\n");
            names_others
        };
        // Hardly anyone names a header in `Connection`, and it may stand behind the one it names.
        if write(&[]) {
            let named = read.get_all(header::CONNECTION).iter().flat_map(|value| named(value.as_bytes()));
            write(&named.collect::<Vec<_>>());
        }
        out
    }

    /// The lines, with the empty one after them.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether a header goes on just as it came, as most do.
    fn goes_as_it_is(&self, what: Field, name: &[u8], others: &[&[u8]], left: &Ours<'_>) -> bool {
        let named = || {
            left.private.iter().any(|other| other.as_str().as_bytes().eq_ignore_ascii_case(name))
                || others.iter().any(|other| other.eq_ignore_ascii_case(name))
        };
        match what {
            Field::Other | Field::ContentEncoding => !named(),
            Field::AcceptEncoding => left.identity.is_none() && !named(),
            _ => false,
        }
    }

    /// Writes what becomes of a header that does not. Whether it names others that must not go on either.
    fn header(&mut self, what: Field, name: &[u8], line: &[u8], left: &mut Ours<'_>) -> bool {
        match what {
            Field::Host => {
                if let Some(host) = left.host.take() {
                    self.line(name, host.as_bytes());
                }
            }
            Field::ContentLength => {
                if let Some(length) = left.length.take() {
                    self.number(name, length);
                }
            }
            Field::AcceptEncoding if left.identity.is_some() => {
                if left.identity == Some(true) {
                    self.line(name, b"identity");
                }
                left.identity = Some(false);
            }
            Field::Connection => return named(&line[name.len() + 1..]).next().is_some(),
            // hyper has answered `Expect: 100-continue`, or will when it reads the body.
            _ => {}
        }
        false
    }

    fn line(&mut self, name: &[u8], value: &[u8]) {
        for part in [name, b": ", value, b"\r\n"] {
            self.0.extend_from_slice(part);
        }
    }

    fn number(&mut self, name: &[u8], value: u64) {
        // As many digits as the largest has.
        let (mut digits, mut at, mut left) = ([0; 20], 20, value);
        loop {
            at -= 1;
            digits[at] = b'0' + (left % 10) as u8;
            left /= 10;
            if left == 0 {
                break;
            }
        }
        self.line(name, &digits[at..]);
    }
}

/// What is ours to say in a request's head, and has still to be said.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ours<'a> {
    /// What becomes the `Host`.
    pub(super) host: Option<&'a HeaderValue>,
    /// The body's length, which becomes the `Content-Length` where the app said one.
    pub(super) length: Option<u64>,
    /// Whether it is said where the app did not.
    pub(super) says_length: bool,
    /// Whether compressed replies are declined; `false` once that is said.
    pub(super) identity: Option<bool>,
    /// Headers that go no further.
    pub(super) private: &'a [HeaderName],
}

/// The head of a reply on its way to the app.
#[derive(Clone, Debug)]
pub struct ReplyHead {
    /// What WeChat answered.
    pub status: StatusCode,
    /// Whether the body has a Content-Encoding other than `identity`, so that it cannot be read.
    pub is_encoded: bool,
    /// The length of a body that is not here: of a reply to HEAD.
    pub length_without_body: Option<u64>,
    pub(super) lines: spliced::Lines,
}

impl ReplyHead {
    /// Puts a header of ours behind the others, in place of one of that name.
    pub fn set(&mut self, name: &str, value: &str) {
        self.lines.set(name, value);
    }

    /// Status line and headers, as they go.
    #[must_use]
    pub fn into_lines(self) -> spliced::Lines {
        self.lines
    }

    /// What may echo a credential.
    pub fn text_mut(&mut self) -> &mut [u8] {
        self.lines.text_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAW: &str = "POST /x HTTP/1.1\r\nhOsT: a\r\nX-One: 1\r\nConnection: keep-alive, X-Two\r\nx-two: 2\r\nX-ONE:3\r\nTE: trailers\r\nExpect: 100-continue\r\ncontent-LENGTH: 007\r\nAccept-Encoding: br\r\nX-Empty:\r\naccept-encoding: gzip\r\n\r\n";

    /// As hyper would read it.
    fn read(raw: &str) -> HeaderMap {
        let mut map = HeaderMap::new();
        for line in raw.split("\r\n").skip(1).filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':').unwrap();
            map.append(name.parse::<header::HeaderName>().unwrap(), value.trim().parse().unwrap());
        }
        map
    }

    fn written(raw: &str, length: u64, says_length: bool, identity: bool) -> String {
        let host = HeaderValue::from_static("wechat");
        let private = [header::HeaderName::from_static("x-private")];
        let ours = Ours {
            host: Some(&host),
            length: Some(length),
            says_length,
            identity: identity.then_some(true),
            private: &private,
        };
        let head = RequestHead::new(&RawHead::sound(raw.as_bytes()), &read(raw), ours);
        String::from_utf8(head.as_bytes().to_vec()).unwrap()
    }

    #[test]
    fn lines_go_as_they_came_but_for_what_is_ours_or_the_neighbours() {
        assert_eq!(
            written(RAW, 7, false, true),
            "hOsT: wechat\r\nX-One: 1\r\nX-ONE:3\r\ncontent-LENGTH: 7\r\nAccept-Encoding: identity\r\nX-Empty:\r\n\r\n"
        );
        assert_eq!(
            written(RAW, u64::MAX, true, false),
            "hOsT: wechat\r\nX-One: 1\r\nX-ONE:3\r\ncontent-LENGTH: 18446744073709551615\r\nAccept-Encoding: br\r\nX-Empty:\r\naccept-encoding: gzip\r\n\r\n"
        );
        assert_eq!(
            written("POST /x HTTP/1.0\r\nX-Private: 1\r\nX-A: b\r\nx-PRIVATE: 2\r\n\r\n", 0, true, true),
            "X-A: b\r\nHost: wechat\r\nContent-Length: 0\r\n\r\n"
        );
        assert_eq!(
            written("GET /x HTTP/1.1\r\nHost: a\r\nA: 1\r\nConnection: a\r\n\r\n", 0, false, true),
            "Host: wechat\r\n\r\n"
        );
    }

    #[test]
    fn a_name_in_connection_takes_a_header_away_but_never_framing_or_host() {
        let named: Vec<_> = named(b"keep-alive, X-A ,host,,Content-Length,close, \xe4").collect();
        assert_eq!(named, [&b"X-A"[..], b"\xe4"]);
    }
}
