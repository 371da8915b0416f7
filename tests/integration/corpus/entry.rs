//! How the corpus is written: files of entries, and what their lines mean.
//!
//! ```text
//! # A comment.
//! == the entry's name
//! > bytes that are sent; \r \n \t \0 \\ \xHH, \{1000*text} for text a thousand times, \H for a usual Host line
//! ! half-close          what else happens, in order: half-close, close, reset, hang, pause, reply (waits for one)
//! = 400 bad-request     a reply to the app: status and cause (`-` for WeChat's own, `*` for any), several by `or`
//! | body                what the app gets as the body of the last reply
//! ^ bytes that arrive upstream, headers in any order, UPSTREAM for its address
//! . closed              what is so afterwards; see requests.rs and replies.rs
//! ```

use std::fs;
use std::path::Path;

use crate::rig::{End, Reply};

/// What is done, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    Send(Vec<u8>),
    Do(String),
}

/// A reply that is expected: any of these.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    any_of: Vec<(u16, String)>,
    body: Option<Vec<u8>>,
}

/// One entry.
#[derive(Clone, Debug, Default)]
pub(crate) struct Entry {
    /// File and name.
    pub(crate) name: String,
    pub(crate) acts: Vec<Act>,
    pub(crate) replies: Vec<Expected>,
    /// Every byte that arrives upstream.
    pub(crate) upstream: Vec<u8>,
    pub(crate) after: Vec<String>,
}

impl Entry {
    /// Whether this stands in a line that begins with a dot.
    pub(crate) fn is(&self, what: &str) -> bool {
        self.after.iter().any(|after| after == what)
    }
}

impl Expected {
    /// Fails unless this is one of the replies that may be, and a sound one.
    #[track_caller]
    pub(crate) fn check(&self, name: &str, reply: &Reply) {
        let fits = |(status, cause): &(u16, String)| {
            reply.status == *status && (cause == "*" || cause == reply.cause())
        };
        assert!(self.any_of.iter().any(fits), "{name}: wants {:?}, got {reply:?}", self.any_of);
        for (field, value) in &reply.headers {
            let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
            assert!(!field.is_empty() && field.bytes().all(token), "{name}: {field:?}");
            assert!(!value.chars().any(|c| c.is_control() && c != '\t'), "{name}: {value:?}");
        }
        if reply.cause() != "-" {
            assert_eq!(reply.end, End::Whole, "{name}: {reply:?}");
            let body: serde_json::Value = serde_json::from_slice(&reply.body).unwrap_or_default();
            assert!(body["errcode"].is_i64() && body["errmsg"].is_string(), "{name}: {reply:?}");
        }
        if let Some(body) = &self.body {
            assert_eq!(reply.text(), String::from_utf8_lossy(body), "{name}");
        }
    }
}

/// Every entry of every file in a folder of the corpus.
pub(crate) fn read(folder: &str) -> Vec<Entry> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/integration/corpus").join(folder);
    let mut files: Vec<_> =
        fs::read_dir(folder).expect("the corpus").map(|entry| entry.expect("a file").path()).collect();
    files.sort();
    let mut entries = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("a file of the corpus is UTF-8");
        let stem = file.file_stem().expect("a name").to_string_lossy().into_owned();
        entries.extend(parse(&stem, &text));
    }
    let mut names: Vec<_> = entries.iter().map(|entry| &entry.name).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), entries.len(), "every entry has a name of its own");
    entries
}

fn parse(file: &str, text: &str) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let told = || format!("{file}, line {}: {line:?}", number + 1);
        let (mark, rest) = match line.split_once(' ') {
            Some((mark, rest)) => (mark, rest),
            None => (line, ""),
        };
        if mark == "==" {
            entries.push(Entry { name: format!("{file}: {rest}"), ..Entry::default() });
            continue;
        }
        if mark.is_empty() || mark.starts_with('#') {
            continue;
        }
        let entry = entries.last_mut().unwrap_or_else(|| panic!("{}", told()));
        match mark {
            ">" => match entry.acts.last_mut() {
                Some(Act::Send(bytes)) => bytes.extend(unescape(rest)),
                _ => entry.acts.push(Act::Send(unescape(rest))),
            },
            "!" => entry.acts.push(Act::Do(rest.to_owned())),
            "=" => {
                let any_of = rest.split(" or ").map(|one| {
                    let (status, cause) = one.split_once(' ').unwrap_or((one, "-"));
                    (status.parse().unwrap_or_else(|_| panic!("{}", told())), cause.to_owned())
                });
                entry.replies.push(Expected { any_of: any_of.collect(), body: None });
            }
            "|" => {
                let reply = entry.replies.last_mut().unwrap_or_else(|| panic!("{}", told()));
                reply.body.get_or_insert_default().extend(unescape(rest));
            }
            "^" => entry.upstream.extend(unescape(rest)),
            "." => entry.after.push(rest.to_owned()),
            _ => panic!("{}", told()),
        }
    }
    entries
}

/// The bytes that a line stands for.
fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.extend_from_slice(&rest.as_bytes()[..at]);
        let escape = &rest[at + 1..];
        let mut taken = 1;
        match escape.as_bytes().first() {
            Some(b'r') => out.push(b'\r'),
            Some(b'n') => out.push(b'\n'),
            Some(b't') => out.push(b'\t'),
            Some(b'0') => out.push(0),
            Some(b'H') => out.extend_from_slice(b"Host: api.weixin.qq.com\r\n"),
            Some(b'\\') => out.push(b'\\'),
            Some(b'x') => {
                out.push(u8::from_str_radix(&escape[1..3], 16).expect("two hexadecimal digits"));
                taken = 3;
            }
            Some(b'{') => {
                let end = escape.find('}').expect("a closing brace");
                let (times, what) = escape[1..end].split_once('*').expect("a count, a star and a text");
                out.extend(unescape(what).repeat(times.parse().expect("a count")));
                taken = end + 1;
            }
            _ => panic!("no such escape: {text:?}"),
        }
        rest = &escape[taken..];
    }
    out.extend_from_slice(rest.as_bytes());
    out
}

#[test]
fn lines_mean_the_bytes_they_say() {
    assert_eq!(unescape(r"a\r\n\t\0\\\xff\{3*xy\r}!"), b"a\r\n\t\0\\\xffxy\rxy\rxy\r!");
    let parsed =
        parse("f", "# c\n== n\n> a\\r\\n\n>  b\n! pause\n> c\n= 200\n| x\n= 400 y or 0\n^ z\n. open\n");
    assert_eq!(parsed[0].name, "f: n");
    let acts = [Act::Send(b"a\r\n b".to_vec()), Act::Do("pause".into()), Act::Send(b"c".to_vec())];
    assert_eq!(parsed[0].acts, acts);
    assert_eq!((parsed[0].replies.len(), parsed[0].upstream.as_slice()), (2, &b"z"[..]));
    assert!(parsed[0].is("open") && !parsed[0].is("closed"));
}
