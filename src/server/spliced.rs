//! A reply's head that hyper does not write: [`Lines`] are the status line and headers as WeChat sent them, which go
//! out in place of the few that hyper writes.
//!
//! What hyper says of the reply's framing and of the connection (`content-length`, `transfer-encoding`, `connection`)
//! is its own affair and stays. All else would only pass through a map that knows no spelling, to be written again.

use std::ops::Range;

use crate::buffer::Buffer;
use crate::syntax;

/// The lines of a head, without the empty one behind them.
#[derive(Clone, Debug, Default)]
pub struct Lines {
    /// `HTTP/1.1 200 OK\r\n`, then a line for each header. Which version it is is hyper's to say.
    text: Buffer,
    /// The line of Content-Length. It goes where hyper tells a length, too.
    length: Option<Range<usize>>,
}

impl Lines {
    /// Without a line yet. The first has to be the status line, with `HTTP/1.1` before it.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Self { text: Buffer::with_capacity(capacity), length: None }
    }

    /// Adds whole lines.
    pub fn extend(&mut self, lines: &[u8]) {
        self.text.extend_from_slice(lines);
    }

    /// Adds whole lines, the last of which, from there on, is the Content-Length.
    pub fn extend_with_length(&mut self, lines: &[u8], from: usize) {
        let before = self.text.len();
        self.extend(lines);
        self.length = Some(before + from..self.text.len());
    }

    /// Begins with a status line.
    #[must_use]
    pub fn new(status: u16, reason: &str, capacity: usize) -> Self {
        let mut text = Buffer::with_capacity(capacity);
        let digit = |n: u16| b'0' + (n % 10) as u8;
        text.extend_from_slice(b"HTTP/1.1");
        text.extend_from_slice(&[b' ', digit(status / 100), digit(status / 10), digit(status), b' ']);
        text.extend_from_slice(reason.as_bytes());
        text.extend_from_slice(b"\r\n");
        Self { text, length: None }
    }

    /// Adds a header.
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        for part in [name, b": ", value, b"\r\n"] {
            self.text.extend_from_slice(part);
        }
    }

    /// Adds the Content-Length.
    pub fn push_length(&mut self, name: &[u8], value: &[u8]) {
        let from = self.text.len();
        self.push(name, value);
        self.length = Some(from..self.text.len());
    }

    /// Adds a header, in place of those of its name.
    pub fn set(&mut self, name: &str, value: &str) {
        self.remove(name.as_bytes());
        self.push(name.as_bytes(), value.as_bytes());
    }

    /// Takes every header of this name out.
    pub fn remove(&mut self, name: &[u8]) {
        let old = std::mem::take(self);
        let mut at = 0;
        for (n, line) in lines(&old.text).enumerate() {
            let named = line.split(|&b| b == b':').next().unwrap_or_default();
            if n == 0 || !named.eq_ignore_ascii_case(name) {
                let from = self.text.len();
                self.text.extend_from_slice(line);
                if old.length.as_ref().is_some_and(|length| length.start == at) {
                    self.length = Some(from..self.text.len());
                }
            }
            at += line.len();
        }
    }

    /// All of it, for overwriting what must not be seen.
    pub fn text_mut(&mut self) -> &mut [u8] {
        &mut self.text
    }

    /// What is written in place of `written`, which hyper wants to write and whose end is the head it made. `None`
    /// when no head of hyper's is there.
    pub(super) fn in_place_of(mut self, written: &[u8]) -> Option<Buffer> {
        if let Some(version) = self.of_length_alone(written) {
            self.text[VERSION.len()] = version;
            self.text.extend_from_slice(b"\r\n");
            return Some(self.text);
        }
        // The last head: of what may stand before it (an interim answer, the rest of a reply without a body) hyper
        // has not got rid yet.
        let (mut from, mut at) = (0, 0);
        for line in lines(written) {
            at += line.len();
            if line == b"\r\n" && at < written.len() {
                from = at;
            }
        }
        let head = written[from..].strip_suffix(b"\r\n").filter(|head| head.ends_with(b"\r\n"))?;
        let version = head.get(..VERSION.len() + 1).filter(|version| version.starts_with(VERSION))?;
        let hypers = || lines(head).skip(1);
        let has_length = hypers().any(|line| line.starts_with(LENGTH));

        let mut out = Buffer::with_capacity(from + self.text.len() + 96);
        out.extend_from_slice(&written[..from]);
        out.extend_from_slice(version);
        match &self.length {
            Some(length) if !has_length => {
                out.extend_from_slice(&self.text[version.len()..length.start]);
                out.extend_from_slice(&self.text[length.end..]);
            }
            _ => out.extend_from_slice(&self.text[version.len()..]),
        }
        for line in hypers().filter(|line| self.length.is_none() || !line.starts_with(LENGTH)) {
            out.extend_from_slice(line);
        }
        out.extend_from_slice(b"\r\n");
        Some(out)
    }
}

impl Lines {
    /// The version's last digit, where hyper has nothing to say but the length, which WeChat said, too: nearly every
    /// reply.
    fn of_length_alone(&self, written: &[u8]) -> Option<u8> {
        let (&version, rest) = written.strip_prefix(VERSION)?.split_first()?;
        self.length.as_ref()?;
        let rest = rest.get(syntax::printable(rest)..)?.strip_prefix(b"\r\n")?.strip_prefix(LENGTH)?;
        (rest.get(syntax::printable(rest)..)? == b"\r\n\r\n").then_some(version)
    }
}

/// The lines of a text, each with its end.
fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let end = memchr::memchr(b'\n', rest).map_or(rest.len(), |at| at + 1);
        let (line, after) = rest.split_at(end);
        rest = after;
        Some(line).filter(|line| !line.is_empty())
    })
}

/// How a head begins, up to the version's last digit.
const VERSION: &[u8] = b"HTTP/1.";

const LENGTH: &[u8] = b"content-length:";

#[cfg(test)]
mod tests {
    use super::*;

    fn lines() -> Lines {
        let mut lines = Lines::new(299, "Very Fine", 64);
        lines.push(b"X-One", b"1");
        lines.push_length(b"CONTENT-Length", b"4");
        lines.push(b"x-two", b"");
        lines
    }

    fn spliced(lines: &Lines, written: &str) -> Option<String> {
        lines.clone().in_place_of(written.as_bytes()).map(|text| String::from_utf8(text.to_vec()).unwrap())
    }

    #[test]
    fn wechats_lines_stand_in_place_of_hypers_and_hypers_word_on_framing_counts() {
        let with = |middle: &str, end: &str| {
            Some(format!("HTTP/1.1 299 Very Fine\r\nX-One: 1\r\n{middle}x-two: \r\n{end}\r\n"))
        };
        for (hyper, middle, end) in [
            ("content-length: 4\r\n", "CONTENT-Length: 4\r\n", ""),
            ("", "", ""),
            ("transfer-encoding: chunked\r\n", "", "transfer-encoding: chunked\r\n"),
            ("content-length: 4\r\nconnection: close\r\n", "CONTENT-Length: 4\r\n", "connection: close\r\n"),
            ("connection: close\r\ncontent-length: 4\r\n", "CONTENT-Length: 4\r\n", "connection: close\r\n"),
            ("connection: close\r\n", "", "connection: close\r\n"),
        ] {
            assert_eq!(
                spliced(&lines(), &format!("HTTP/1.1 299 <none>\r\n{hyper}\r\n")),
                with(middle, end),
                "{hyper}"
            );
        }
        let mut bare = Lines::new(200, "OK", 0);
        bare.push(b"A", b"b");
        assert_eq!(
            spliced(&bare, "HTTP/1.0 200 OK\r\ncontent-length: 2\r\nconnection: keep-alive\r\n\r\n").unwrap(),
            "HTTP/1.0 200 OK\r\nA: b\r\ncontent-length: 2\r\nconnection: keep-alive\r\n\r\n"
        );
    }

    #[test]
    fn what_hyper_has_still_to_write_before_the_head_stays() {
        let before = "HTTP/1.1 100 Continue\r\n\r\n";
        let out = spliced(&Lines::new(200, "OK", 0), &format!("{before}HTTP/1.1 200 OK\r\n\r\n")).unwrap();
        assert_eq!(out, format!("{before}HTTP/1.1 200 OK\r\n\r\n"));
        for no_head in ["", "body", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\n\r\nbody"] {
            assert_eq!(spliced(&lines(), no_head), None, "{no_head:?}");
        }
    }

    #[test]
    fn a_header_of_ours_takes_the_place_of_theirs() {
        let mut lines = lines();
        lines.set("X-ONE", "ours");
        assert_eq!(
            spliced(&lines, "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n").unwrap(),
            "HTTP/1.1 299 Very Fine\r\nCONTENT-Length: 4\r\nx-two: \r\nX-ONE: ours\r\n\r\n"
        );
    }
}
