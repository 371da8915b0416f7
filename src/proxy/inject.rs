//! How a credential gets into a query: every parameter of its name is taken out, ours is put at the end, and every
//! other byte stays as the app wrote it. Pure: a target goes in, a target comes out.
//!
//! Nothing is decoded and encoded again, because an app may have signed its query, WeChat reads some of it raw, and
//! `+`, `%20` and `%2F` are not ours to judge. A name is what stands before the first `=` of a piece between two
//! `&`; it is compared after percent-decoding, as WeChat will read it, and with its case.

use std::borrow::Cow;
use std::fmt;
use std::fmt::Write as _;

use http::uri::PathAndQuery;

use crate::buffer::Buffer;
use crate::credentials::encoded::Encoded;

/// The parameter that carries the credential (`wechat-api.md` 4).
pub const ACCESS_TOKEN: &str = "access_token";

/// The longest list of keys that goes into a log line.
const MAX_KEYS: usize = 256;

/// The longest key that is written out. WeChat's longest, `component_access_token`, has 22 characters; what is much
/// longer is rather a value that lost its name.
const MAX_KEY: usize = 40;

/// What stands for the rest of a key or a list that is cut.
const CUT: &str = "...";

/// A path and query as they go upstream, the credential in them. Not checked a second time by a type of `http`, which
/// would walk a token of 512 characters byte by byte (`perf.md`: a tenth of a call).
///
/// SECURITY: prints as nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct Target(Buffer);

impl Target {
    /// What stands in the request line.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The same as text.
    #[cfg(test)]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap()
    }
}

impl From<&PathAndQuery> for Target {
    fn from(target: &PathAndQuery) -> Self {
        let mut out = Buffer::with_capacity(target.as_str().len());
        out.extend_from_slice(target.as_str().as_bytes());
        Self(out)
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Target(***)")
    }
}

/// Why a target could not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InjectError {
    /// With the credential it is longer than 65,534 bytes, the most an `http::Uri` holds.
    TooLong,
    /// The target is one that takes no query (`*`).
    Invalid,
}

impl fmt::Display for InjectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooLong => "the path and query are too long to add a credential",
            Self::Invalid => "the path and query cannot take a credential",
        })
    }
}

impl std::error::Error for InjectError {}

/// Removes every `access_token` and appends `credential`.
///
/// # Errors
/// [`InjectError`], when the result is no valid target.
pub fn inject(target: &PathAndQuery, credential: Encoded<'_>) -> Result<Target, InjectError> {
    with_params(target, &[(ACCESS_TOKEN, credential)])
}

/// Removes every parameter of each name, then appends each `(name, value)` in order.
///
/// # Errors
/// [`InjectError`], when the result is no valid target.
pub fn with_params(target: &PathAndQuery, params: &[(&str, Encoded<'_>)]) -> Result<Target, InjectError> {
    if !target.as_str().starts_with('/') {
        return Err(InjectError::Invalid);
    }
    rewrite(target, |name| params.iter().any(|(param, _)| names(name, param)), params)
}

/// Removes every parameter of each name and appends nothing. A query that is left without a piece goes with its `?`.
///
/// # Errors
/// [`InjectError`], when the result is no valid target; taking away never makes it so.
pub fn strip(target: &PathAndQuery, remove: &[&str]) -> Result<PathAndQuery, InjectError> {
    let goes = |piece: &str| remove.iter().any(|param| names(piece, param));
    if !target.query().is_some_and(|query| query.split('&').any(goes)) {
        return Ok(target.clone());
    }
    let Target(out) = rewrite(target, goes, &[])?;
    PathAndQuery::try_from(&out[..]).map_err(|_| InjectError::Invalid)
}

/// The names in a query for a log line: comma-joined, as they were written, cut at 256 bytes.
///
/// SECURITY: never a value; and what is not a printable ASCII character is percent-encoded, so that no key can
/// forge a line.
#[must_use]
pub fn query_keys(query: &str) -> Cow<'_, str> {
    // Most queries have one name, which is written as it is.
    let only = key_of(query);
    if only.len() <= MAX_KEY && only.bytes().all(|byte| byte.is_ascii_graphic()) && !query.contains('&') {
        return Cow::Borrowed(only);
    }
    let mut keys = String::with_capacity(query.len().min(MAX_KEYS));
    for piece in query.split('&').filter(|piece| !piece.is_empty()) {
        let before = keys.len();
        if before > 0 {
            keys.push(',');
        }
        let key = key_of(piece).as_bytes();
        for &byte in key.iter().take(MAX_KEY) {
            if byte.is_ascii_graphic() {
                keys.push(char::from(byte));
            } else {
                // Writing to a String cannot fail.
                let _ = write!(keys, "%{byte:02X}");
            }
        }
        if key.len() > MAX_KEY {
            keys.push_str(CUT);
        }
        // Room is kept for `,...`, which says that there was more.
        if keys.len() > MAX_KEYS - CUT.len() - 1 {
            keys.truncate(before);
            keys.push(',');
            keys.push_str(CUT);
            break;
        }
    }
    Cow::Owned(keys)
}

/// Copies what stays and appends `params`.
fn rewrite(
    target: &PathAndQuery,
    goes: impl Fn(&str) -> bool,
    params: &[(&str, Encoded<'_>)],
) -> Result<Target, InjectError> {
    let whole = target.as_str();
    let (path, query) = match memchr::memchr(b'?', whole.as_bytes()) {
        Some(at) => (&whole[..at], Some(&whole[at + 1..])),
        None => (whole, None),
    };
    let added = params.iter().map(|(name, value)| name.len() + value.as_str().len() + 2).sum::<usize>();
    let mut out = Buffer::with_capacity(whole.len() + added + 1);
    out.extend_from_slice(path.as_bytes());
    let mut separator = b'?';
    for piece in query.into_iter().flat_map(pieces) {
        if !goes(piece) {
            out.push(separator);
            out.extend_from_slice(piece.as_bytes());
            separator = b'&';
        }
    }
    if !params.is_empty() {
        // What stays is one empty piece: `/p?` gets our parameter, and no `&` before it.
        if out.len() == path.len() + 1 {
            out.truncate(path.len());
            separator = b'?';
        }
        for (name, value) in params {
            out.push(separator);
            out.extend_from_slice(name.as_bytes());
            out.push(b'=');
            out.extend_from_slice(value.as_str().as_bytes());
            separator = b'&';
        }
    }
    if out.len() > usize::from(u16::MAX - 1) {
        return Err(InjectError::TooLong);
    }
    Ok(Target(out))
}

/// What stands between the `&` of a query.
pub(super) fn pieces(query: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(query);
    std::iter::from_fn(move || {
        let query = rest?;
        match memchr::memchr(b'&', query.as_bytes()) {
            Some(at) => {
                rest = Some(&query[at + 1..]);
                Some(&query[..at])
            }
            None => rest.take(),
        }
    })
}

fn key_of(piece: &str) -> &str {
    memchr::memchr(b'=', piece.as_bytes()).map_or(piece, |at| &piece[..at])
}

/// Whether a piece's name reads as `param` to whoever decodes it.
///
/// SECURITY: comparing the bytes alone would let `%61ccess_token` pass beside ours, and WeChat would choose.
pub(super) fn names(piece: &str, param: &str) -> bool {
    // Hardly any name is as long, or longer for its escapes.
    if piece.len() < param.len() {
        return false;
    }
    let key = key_of(piece);
    key == param || (key.contains('%') && decoded(key.as_bytes()).eq(param.bytes()))
}

/// A name as a form decoder reads it: `%XX` is a byte, `+` a space, a broken `%` itself.
fn decoded(key: &[u8]) -> impl Iterator<Item = u8> + '_ {
    let mut rest = key;
    std::iter::from_fn(move || {
        let (&first, after) = rest.split_first()?;
        rest = after;
        Some(match (first, after) {
            (b'%', &[high, low, ref after @ ..]) => match (hex(high), hex(low)) {
                (Some(high), Some(low)) => {
                    rest = after;
                    high << 4 | low
                }
                _ => b'%',
            },
            (b'+', _) => b' ',
            _ => first,
        })
    })
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What was written, as `http` reads it: it takes every target that we write.
    fn as_read(written: Result<Target, InjectError>) -> Result<PathAndQuery, InjectError> {
        written.map(|target| {
            let read = PathAndQuery::try_from(target.as_str()).unwrap();
            assert_eq!(read.as_str(), target.as_str());
            read
        })
    }

    fn encoded(value: &str) -> Encoded<'_> {
        Encoded::new(value).unwrap()
    }

    fn inject(target: &PathAndQuery, credential: &str) -> Result<PathAndQuery, InjectError> {
        as_read(super::inject(target, encoded(credential)))
    }

    fn with_params(target: &PathAndQuery, params: &[(&str, &str)]) -> Result<PathAndQuery, InjectError> {
        let params: Vec<_> = params.iter().map(|(name, value)| (*name, encoded(value))).collect();
        as_read(super::with_params(target, &params))
    }

    fn target(text: &str) -> PathAndQuery {
        PathAndQuery::try_from(text).unwrap()
    }

    fn injected(text: &str) -> String {
        inject(&target(text), "T").unwrap().as_str().to_owned()
    }

    #[test]
    fn ours_goes_last_and_every_other_byte_stays() {
        for (before, after) in [
            ("/p", "/p?access_token=T"),
            ("/p?", "/p?access_token=T"),
            ("/", "/?access_token=T"),
            ("/p?access_token=x", "/p?access_token=T"),
            ("/p?access_token", "/p?access_token=T"),
            ("/p?access_token=", "/p?access_token=T"),
            ("/p?access_token=x&", "/p?access_token=T"),
            ("/p?a=1&access_token=x&b=2", "/p?a=1&b=2&access_token=T"),
            ("/p?access_token=x&b=2", "/p?b=2&access_token=T"),
            ("/p?a=1&access_token=x", "/p?a=1&access_token=T"),
            ("/p?access_token=x&a=1&access_token=y&access_token", "/p?a=1&access_token=T"),
            ("/p?access_token=x=y?z&a=1", "/p?a=1&access_token=T"),
            ("/p?a=1&", "/p?a=1&&access_token=T"),
            ("/p?&&", "/p?&&&access_token=T"),
            ("/p?a=1&&b=2", "/p?a=1&&b=2&access_token=T"),
            ("/p?b=2&a=%2F+%20/&b=2&a=&a", "/p?b=2&a=%2F+%20/&b=2&a=&a&access_token=T"),
            ("/p?q=微信&x=%zz", "/p?q=微信&x=%zz&access_token=T"),
            ("/a%2fb/../c;d?e;access_token=1", "/a%2fb/../c;d?e;access_token=1&access_token=T"),
            ("/p?a=?access_token=x", "/p?a=?access_token=x&access_token=T"),
            ("/access_token=x", "/access_token=x?access_token=T"),
        ] {
            assert_eq!(injected(before), after, "{before}");
        }
    }

    #[test]
    fn a_name_is_read_as_wechat_reads_it() {
        for gone in
            ["%61ccess_token=x", "access%5Ftoken=x", "access%5ftoken", "%61%63%63%65%73%73%5F%74oken=1"]
        {
            assert_eq!(injected(&format!("/p?{gone}")), "/p?access_token=T", "{gone}");
        }
        for stays in [
            "Access_token=x",
            "ACCESS_TOKEN=x",
            "access+token=x",
            "access_token+=x",
            "access_token%20=x",
            "%2561ccess_token=x",
            "access_token%=x",
            "access_token%5=x",
            "access_token%zz=x",
            "access%5Gtoken=x",
            "access_token[]=x",
            "component_access_token=x",
            "access_toke=x",
            "=access_token",
            "%",
            "",
        ] {
            let after = injected(&format!("/p?a&{stays}"));
            assert_eq!(after, format!("/p?a&{stays}&access_token=T"));
        }
    }

    #[test]
    fn several_are_put_in_order_and_taken_out_wherever_they_were() {
        let out = with_params(
            &target("/sns/x?secret=old&a=1&appid=old&grant_type=g"),
            &[("appid", "wx1"), ("secret", "s%2B")],
        );
        assert_eq!(out.unwrap(), "/sns/x?a=1&grant_type=g&appid=wx1&secret=s%2B");
        assert_eq!(with_params(&target("/p?a"), &[]).unwrap(), "/p?a");
    }

    #[test]
    fn stripping_takes_out_and_adds_nothing() {
        for (before, after) in [
            ("/p", "/p"),
            ("/p?", "/p?"),
            ("/p?a=1&", "/p?a=1&"),
            ("/p?access_token=x", "/p"),
            ("/p?access_token=x&", "/p?"),
            ("/p?a=1&%61ccess_token=x&b", "/p?a=1&b"),
            ("/p?secret=1&access_token=x&a", "/p?a"),
        ] {
            assert_eq!(strip(&target(before), &["access_token", "secret"]).unwrap(), after, "{before}");
        }
    }

    #[test]
    fn a_target_that_cannot_be_is_an_error() {
        let long = format!("/{}", "a".repeat(65_000));
        assert!(inject(&target(&long), &"t".repeat(500)).is_ok());
        assert_eq!(inject(&target(&long), &"t".repeat(600)), Err(InjectError::TooLong));
        assert_eq!(inject(&PathAndQuery::from_static("*"), "T"), Err(InjectError::Invalid));
    }

    #[test]
    fn a_log_line_gets_keys_and_never_a_value() {
        assert_eq!(query_keys(""), "");
        assert_eq!((query_keys("debug=secret=secret"), query_keys("=secret")), ("debug".into(), "".into()));
        assert_eq!(query_keys("a=secret&&b=secret=secret&%61=&d"), "a,b,%61,d");
        assert_eq!(query_keys("a\n\x7fb 微=1"), "a%0A%7Fb%20%E5%BE%AE");
        let long = "s".repeat(512);
        let lost = query_keys(&long);
        assert_eq!(lost, format!("{}...", "s".repeat(40)));
        let long = "abcdefg=1&".repeat(200);
        let many = query_keys(&long);
        assert!(many.len() <= 256 && many.len() > 240 && many.ends_with("abcdefg,..."), "{many}");
    }

    /// Splits and decodes in another way than the code: the whole query first, then the name.
    fn read(query: &str) -> Vec<(String, String)> {
        let unescape = |text: &str| {
            let mut out = Vec::new();
            let mut chars = text.as_bytes().iter().copied().peekable();
            while let Some(byte) = chars.next() {
                let pair: Vec<u8> = chars.clone().take(2).collect();
                let escape = std::str::from_utf8(&pair)
                    .ok()
                    .filter(|p| byte == b'%' && p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()));
                match escape {
                    Some(pair) => {
                        out.push(u8::from_str_radix(pair, 16).unwrap());
                        chars.nth(1);
                    }
                    None => out.push(if byte == b'+' { b' ' } else { byte }),
                }
            }
            String::from_utf8_lossy(&out).into_owned()
        };
        query
            .split('&')
            .map(|piece| {
                let mut halves = piece.splitn(2, '=');
                (unescape(halves.next().unwrap()), halves.next().unwrap_or("").to_owned())
            })
            .collect()
    }

    fn queries() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            3 => "[a-c]{0,2}(=[a-z%+/?;=]{0,4})?",
            3 => "(access|%61ccess|acces%73|Access)(_|%5f|%5F|\\+|%)token(=[a-zA-Z0-9]{0,6})?",
            1 => "[!$%'-;=?-~\u{80}-\u{2ff}微信]{0,12}",
        ];
        proptest::collection::vec(piece, 0..8).prop_map(|pieces| pieces.join("&"))
    }

    proptest! {
        #[test]
        fn what_stays_is_identical_and_in_order(
            path in "/[!$-;=@-_a-z|~\u{e9}微]{0,20}", query in proptest::option::of(queries()), token in "[A-Za-z0-9_-]{1,40}",
        ) {
            let text = query.as_ref().map_or(path.clone(), |query| format!("{path}?{query}"));
            let out = inject(&target(&text), &token).unwrap();
            prop_assert_eq!(out.path(), &path);

            let after = out.query().unwrap();
            let mut ours = read(after);
            ours.retain(|(key, _)| key == "access_token");
            prop_assert_eq!(ours, vec![("access_token".to_owned(), token.clone())]);
            let stays: Vec<_> = query
                .iter()
                .flat_map(|query| query.split('&'))
                .filter(|piece| read(piece)[0].0 != "access_token")
                .collect();
            let ours = format!("access_token={token}");
            match stays.join("&").as_str() {
                "" => prop_assert_eq!(after, &ours),
                stays => prop_assert_eq!(after, format!("{stays}&{ours}")),
            }

            prop_assert_eq!(&inject(&out, &token).unwrap(), &out);
            prop_assert_eq!(inject(&out, "other").unwrap(), inject(&target(&text), "other").unwrap());
            let keys = query_keys(after);
            prop_assert!(keys.len() <= 256 && keys.bytes().all(|b| b.is_ascii_graphic()));
        }

        #[test]
        fn every_target_that_http_takes_comes_through(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let bytes = [b"/?".as_slice(), &bytes].concat();
            if let Ok(target) = PathAndQuery::try_from(bytes.as_slice()) {
                let out = inject(&target, "T").unwrap();
                prop_assert!(out.as_str().ends_with("access_token=T"));
                strip(&target, &["access_token"]).unwrap();
            }
        }
    }
}
