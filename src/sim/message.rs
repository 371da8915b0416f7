//! What an endpoint is asked and what it answers: [`Ask`], [`Reply`], a query taken apart, a body read without
//! being kept.

use bytes::Bytes;
use http::HeaderMap;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::errcode::Errcode;

/// How much of a body is kept to be looked at; the rest is only hashed and counted.
pub(crate) const KEPT: usize = 64 * 1024;
/// An uploaded file up to this size comes back from `media/get` byte for byte.
pub(crate) const MEDIA_KEPT: usize = 1024 * 1024;

/// JSON as the `cgi-bin` endpoints label it.
pub(crate) const JSON_ENCODING: &str = "application/json; encoding=utf-8";
/// JSON as the `wxa` endpoints label it.
pub(crate) const JSON_CHARSET: &str = "application/json; charset=utf-8";
/// JSON as the `sns`, media and image endpoints label it: the header is not reliable (`wechat-api.md` 3.3).
pub(crate) const TEXT: &str = "text/plain";

/// One request, its body already read.
pub(crate) struct Ask<'a> {
    pub(crate) method: &'a str,
    pub(crate) target: &'a str,
    pub(crate) path: &'a str,
    pub(crate) raw_query: &'a str,
    pub(crate) query: Query,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) body: &'a Body,
    pub(crate) peer: std::net::IpAddr,
}

impl Ask<'_> {
    /// The body as JSON, if it is all here and is JSON.
    pub(crate) fn json(&self) -> Option<Value> {
        let all_here = self.body.length == self.body.head.len() as u64;
        serde_json::from_slice(&self.body.head).ok().filter(|_| all_here)
    }
}

/// A reply's body: text that is there, or bytes made up on the way out so that big ones cost no memory.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    /// These bytes.
    Bytes(Bytes),
    /// So many made-up bytes, with or without saying how many.
    Pattern { length: u64, chunked: bool },
}

/// A reply before it is one of HTTP's.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) content_type: String,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) content: Content,
    /// What an observer should note as judged: `None` for a reply without errcode.
    pub(crate) errcode: Option<Errcode>,
}

impl Reply {
    pub(crate) fn json(content_type: &str, value: &Value) -> Self {
        let errcode = value.get("errcode").and_then(Value::as_i64).map(Errcode);
        let content = Content::Bytes(value.to_string().into());
        Self { status: 200, content_type: content_type.to_owned(), headers: Vec::new(), content, errcode }
    }

    pub(crate) fn bytes(content_type: &str, bytes: Bytes) -> Self {
        let content = Content::Bytes(bytes);
        Self {
            status: 200,
            content_type: content_type.to_owned(),
            headers: Vec::new(),
            content,
            errcode: None,
        }
    }

    pub(crate) fn empty(status: u16) -> Self {
        let content = Content::Bytes(Bytes::new());
        Self { status, content_type: String::new(), headers: Vec::new(), content, errcode: None }
    }

    pub(crate) fn header(mut self, name: &'static str, value: String) -> Self {
        self.headers.push((name, value));
        self
    }
}

/// A query's pairs, decoded, in order.
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(raw: &str) -> Self {
        let pairs = raw.split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(name), decode(value))
                })
                .collect(),
        )
    }

    /// The first value of a name.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Every value of a name.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        at += 1;
        let escaped = bytes
            .get(at..at + 2)
            .filter(|two| byte == b'%' && two.iter().all(u8::is_ascii_hexdigit))
            .and_then(|two| std::str::from_utf8(two).ok())
            .and_then(|two| u8::from_str_radix(two, 16).ok());
        if escaped.is_some() {
            at += 2;
        }
        out.push(escaped.unwrap_or(if byte == b'+' { b' ' } else { byte }));
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A body after it was read: its length, its hash and its beginning.
pub(crate) struct Body {
    pub(crate) length: u64,
    pub(crate) sha256: String,
    /// The first [`KEPT`] bytes.
    pub(crate) head: Bytes,
    /// The file of a multipart body.
    pub(crate) file: Option<FilePart>,
    pub(crate) multipart: bool,
}

impl Body {
    /// Whether it could be a JSON object. Not a strict look: real bodies are not always strict JSON.
    pub(crate) fn looks_like_json(&self) -> bool {
        let mut bytes = self.head.iter().copied();
        bytes.find(|b| !b.is_ascii_whitespace()) == Some(b'{')
    }
}

/// A file as it came in an upload.
#[derive(Clone)]
pub(crate) struct FilePart {
    pub(crate) filename: String,
    pub(crate) length: u64,
    pub(crate) sha256: String,
    /// All of it, if it is at most [`MEDIA_KEPT`].
    pub(crate) kept: Option<Bytes>,
}

/// Counts, hashes and keeps the beginning of what runs by.
struct Digester {
    hash: Sha256,
    length: u64,
    head: Vec<u8>,
    keep: usize,
}

impl Digester {
    fn new(keep: usize) -> Self {
        Self { hash: Sha256::new(), length: 0, head: Vec::new(), keep }
    }

    fn take(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
        let room = self.keep - self.head.len();
        self.head.extend_from_slice(&bytes[..room.min(bytes.len())]);
    }

    fn sha256(&self) -> String {
        hex(&self.hash.clone().finalize())
    }
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        // Writing to a String cannot fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}

/// Reads a body as it arrives, in memory that does not grow with it.
pub(crate) struct BodyReader {
    all: Digester,
    parts: Option<Parts>,
}

impl BodyReader {
    pub(crate) fn new(content_type: &str) -> Self {
        Self { all: Digester::new(KEPT), parts: Parts::new(content_type) }
    }

    pub(crate) fn length(&self) -> u64 {
        self.all.length
    }

    pub(crate) fn take(&mut self, bytes: &[u8]) {
        self.all.take(bytes);
        if let Some(parts) = &mut self.parts {
            parts.take(bytes);
        }
    }

    pub(crate) fn finish(self) -> Body {
        let multipart = self.parts.is_some();
        let file = self.parts.and_then(Parts::finish);
        let sha256 = self.all.sha256();
        Body { length: self.all.length, sha256, head: self.all.head.into(), file, multipart }
    }
}

/// Where in a multipart body we are.
#[derive(PartialEq)]
enum At {
    /// In a part's headers.
    Headers,
    /// In the file.
    File,
    /// In a part that is not the file, or before the first.
    Elsewhere,
    /// Behind the file, or lost.
    Behind,
}

/// Finds the first file of a multipart body (RFC 7578) without holding the body.
struct Parts {
    delimiter: Vec<u8>,
    pending: Vec<u8>,
    at: At,
    filename: String,
    file: Digester,
    complete: bool,
}

/// A part's headers are not longer than this.
const PART_HEAD: usize = 16 * 1024;

impl Parts {
    fn new(content_type: &str) -> Option<Self> {
        if !content_type.trim_start().get(..10)?.eq_ignore_ascii_case("multipart/") {
            return None;
        }
        let boundary = content_type.split(';').skip(1).find_map(|parameter| {
            let (name, value) = parameter.split_once('=')?;
            name.trim().eq_ignore_ascii_case("boundary").then(|| value.trim().trim_matches('"'))
        })?;
        Some(Self {
            delimiter: format!("\r\n--{boundary}").into_bytes(),
            // So that the delimiter is found at the very beginning, too.
            pending: b"\r\n".to_vec(),
            at: At::Elsewhere,
            filename: String::new(),
            file: Digester::new(MEDIA_KEPT),
            complete: false,
        })
    }

    fn take(&mut self, bytes: &[u8]) {
        if self.at == At::Behind {
            return;
        }
        self.pending.extend_from_slice(bytes);
        while self.step() {}
    }

    /// One step on, as long as there is one.
    fn step(&mut self) -> bool {
        match self.at {
            At::Behind => {
                self.pending = Vec::new();
                false
            }
            At::Headers => {
                let Some(end) = find(&self.pending, b"\r\n\r\n") else {
                    if self.pending.starts_with(b"--") || self.pending.len() > PART_HEAD {
                        self.at = At::Behind;
                    }
                    return self.at == At::Behind;
                };
                let head = String::from_utf8_lossy(&self.pending[..end]).into_owned();
                self.pending.drain(..end + 4);
                let named = head.split_once("filename=\"").and_then(|(_, rest)| rest.split('"').next());
                self.at = if named.is_some() || head.contains("name=\"media\"") {
                    self.filename = named.unwrap_or_default().to_owned();
                    At::File
                } else {
                    At::Elsewhere
                };
                true
            }
            At::File | At::Elsewhere => {
                let found = find(&self.pending, &self.delimiter);
                // Unless found, the delimiter may have begun in the last bytes.
                let sure = found.unwrap_or((self.pending.len() + 1).saturating_sub(self.delimiter.len()));
                if self.at == At::File {
                    self.file.take(&self.pending[..sure]);
                }
                self.pending.drain(..sure + found.map_or(0, |_| self.delimiter.len()));
                if found.is_some() {
                    self.complete = self.at == At::File;
                    self.at = if self.complete { At::Behind } else { At::Headers };
                }
                found.is_some()
            }
        }
    }

    fn finish(self) -> Option<FilePart> {
        let sha256 = self.file.sha256();
        let length = self.file.length;
        let kept = (length <= MEDIA_KEPT as u64).then(|| self.file.head.into());
        self.complete.then_some(FilePart { filename: self.filename, length, sha256, kept })
    }
}

fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    let first = *needle.first()?;
    let mut from = 0;
    while let Some(at) = hay[from..].iter().position(|&b| b == first) {
        if hay[from + at..].starts_with(needle) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_taken_apart_and_decoded() {
        let query = Query::parse("access_token=a%2Bb&x&access%5Ftoken=2&y=%zz%4&m=%E5%BE%AE+1");
        assert_eq!(query.all("access_token").collect::<Vec<_>>(), ["a+b", "2"]);
        assert_eq!((query.get("x"), query.get("y"), query.get("z")), (Some(""), Some("%zz%4"), None));
        assert_eq!(query.get("m"), Some("微 1"));
    }

    #[test]
    fn the_file_of_an_upload_is_found_however_it_is_cut_up() {
        let body = "--B\r\nContent-Disposition: form-data; name=\"description\"\r\n\r\n{}\r\n--B\r\n\
            Content-Disposition: form-data; name=\"media\"; filename=\"a.jpg\"\r\nContent-Type: image/jpeg\r\n\r\n\
            one\r\n--Atwo\r\r\n-\r\n--B--\r\n";
        for size in [1, 2, 3, 7, 1000] {
            let mut reader = BodyReader::new("multipart/form-data; charset=x; boundary=\"B\"");
            for chunk in body.as_bytes().chunks(size) {
                reader.take(chunk);
            }
            let body_read = reader.finish();
            let file = body_read.file.unwrap();
            assert_eq!(file.kept.unwrap(), "one\r\n--Atwo\r\r\n-");
            assert_eq!((file.filename.as_str(), file.length), ("a.jpg", 15));
            assert_eq!(body_read.length, body.len() as u64);
        }
    }

    #[test]
    fn an_upload_that_is_cut_off_has_no_file() {
        let mut reader = BodyReader::new("multipart/form-data; boundary=B");
        reader.take(b"--B\r\nContent-Disposition: form-data; name=\"media\"; filename=\"a\"\r\n\r\nhalf");
        assert!(reader.finish().file.is_none());
        let mut reader = BodyReader::new("application/json");
        reader.take(b" {}");
        let body = reader.finish();
        assert!(body.looks_like_json() && !body.multipart);
        assert_eq!(body.sha256, hex(&Sha256::digest(b" {}")));
    }

    #[test]
    fn only_the_beginning_of_a_big_body_is_kept() {
        let mut reader = BodyReader::new("");
        for _ in 0..3 {
            reader.take(&vec![b'x'; KEPT]);
        }
        let body = reader.finish();
        assert_eq!((body.length, body.head.len()), (3 * KEPT as u64, KEPT));
    }
}
