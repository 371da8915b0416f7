//! What bytes are to HTTP/1.1, and how the first of a kind is found fast. Pure.
//!
//! The guard before hyper and the client toward WeChat read heads by these. Nearly every head is of [`plain_line`]s,
//! and is read with them alone; whatever is not goes a slower way, which knows the rest of the grammar. Sixteen bytes are
//! looked at together, by `wide`, which has the vector instructions of each processor without unsafe code of ours.

use wide::u8x16;

/// What no field value may hold; a tab it may.
#[must_use]
pub fn is_control(byte: u8) -> bool {
    (byte < b' ' && byte != b'\t') || byte == 0x7f
}

/// The characters of methods and field names (RFC 9110 5.6.2).
#[must_use]
pub fn is_token(byte: u8) -> bool {
    TOKEN[usize::from(byte)]
}

const TOKEN: [bool; 256] = {
    let (mut table, mut byte) = ([false; 256], 0);
    while byte < 128 {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let others = b"!#$%&'*+-.^_`|~";
    let mut n = 0;
    while n < others.len() {
        table[others[n] as usize] = true;
        n += 1;
    }
    table
};

/// How many bytes are looked at together.
const BLOCK: usize = 16;

/// The block that begins at `at`. Where fewer bytes are left, zeros follow them, which are part of nothing.
#[inline(always)]
fn block(bytes: &[u8], at: usize) -> u8x16 {
    let rest = &bytes[at..];
    match rest.first_chunk::<BLOCK>() {
        Some(block) => u8x16::from(*block),
        None => last_block(rest),
    }
}

#[cold]
#[inline(never)]
fn last_block(rest: &[u8]) -> u8x16 {
    let mut last = [0; BLOCK];
    last[..rest.len()].copy_from_slice(rest);
    u8x16::from(last)
}

/// Which bytes of a block are between two.
#[inline]
fn between(block: u8x16, from: u8, to: u8) -> u8x16 {
    let above = block - u8x16::splat(from);
    above.simd_eq(above.min(u8x16::splat(to - from)))
}

/// A bit for each byte that is no letter, digit or `-`.
#[inline]
fn uncommon(block: u8x16) -> u32 {
    let letter = between(block | u8x16::splat(0x20), b'a', b'z');
    let digit = between(block, b'0', b'9');
    !(letter | digit | block.simd_eq(u8x16::splat(b'-'))).to_bitmask()
}

/// A bit for each byte that is a control character, a tab included.
#[inline]
fn controls(block: u8x16) -> u32 {
    (between(block, 0, 0x1f) | block.simd_eq(u8x16::splat(0x7f))).to_bitmask()
}

/// The place of the first byte from `at` on that has a bit in what `of` tells of its block. To `of` a zero has to have one,
/// since zeros are what stands behind the end.
#[inline(always)]
fn first(bytes: &[u8], mut at: usize, of: impl Fn(u8x16) -> u32) -> usize {
    while at < bytes.len() {
        let bits = of(block(bytes, at)) | 1 << BLOCK;
        let passed = bits.trailing_zeros() as usize;
        at += passed;
        if passed < BLOCK {
            return at;
        }
    }
    bytes.len()
}

/// How many such characters there are at the beginning. Letters, digits and `-`, of which nearly every name is made,
/// sixteen at a time.
#[must_use]
pub fn tokens(bytes: &[u8]) -> usize {
    let mut at = first(bytes, 0, uncommon);
    while bytes.get(at).is_some_and(|&b| is_token(b)) {
        at += 1;
    }
    at
}

/// How many bytes there are before the first that no request target has: a space, a control character, `#`.
#[must_use]
pub fn target(bytes: &[u8]) -> usize {
    first(bytes, 0, |block| {
        controls(block) | (block.simd_eq(u8x16::splat(b' ')) | block.simd_eq(u8x16::splat(b'#'))).to_bitmask()
    })
}

/// How many bytes there are before the first that no field value may hold.
#[must_use]
pub fn value(bytes: &[u8]) -> usize {
    first(bytes, 0, |block| controls(block) & !block.simd_eq(u8x16::splat(b'\t')).to_bitmask())
}

/// How many bytes there are before the first control character, a tab included.
#[must_use]
pub fn printable(bytes: &[u8]) -> usize {
    first(bytes, 0, controls)
}

/// A Content-Length as it is nearly always written; `None` for any other, sound or not.
#[must_use]
pub fn plain_number(value: &[u8]) -> Option<u64> {
    let digits = value.strip_prefix(b" ").unwrap_or(value);
    if digits.is_empty() || digits.len() > 15 {
        return None;
    }
    let mut number = 0;
    for &digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        number = number * 10 + u64::from(digit - b'0');
    }
    Some(number)
}

/// What a header is known by, as far as anyone on a call's way minds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// `Accept-Encoding`.
    AcceptEncoding,
    /// `Connection`.
    Connection,
    /// `Content-Encoding`.
    ContentEncoding,
    /// `Content-Length`.
    ContentLength,
    /// `Expect`.
    Expect,
    /// `Host`.
    Host,
    /// Between two neighbours, and no business of the next one.
    Neighbours,
    /// `Transfer-Encoding`.
    TransferEncoding,
    /// Any other, which passes.
    Other,
}

impl Field {
    /// Reads a name, in whatever case.
    #[must_use]
    pub fn of(name: &[u8]) -> Self {
        // By length first: most names are none of these.
        match name.len() {
            2 if is(name, b"te") => Self::Neighbours,
            4 if is(name, b"host") => Self::Host,
            6 if is(name, b"expect") => Self::Expect,
            7 if is(name, b"trailer") || is(name, b"upgrade") => Self::Neighbours,
            10 if is(name, b"connection") => Self::Connection,
            10 if is(name, b"keep-alive") => Self::Neighbours,
            14 if is(name, b"content-length") => Self::ContentLength,
            15 if is(name, b"accept-encoding") => Self::AcceptEncoding,
            16 if is(name, b"content-encoding") => Self::ContentEncoding,
            16 if is(name, b"proxy-connection") => Self::Neighbours,
            17 if is(name, b"transfer-encoding") => Self::TransferEncoding,
            18 if is(name, b"proxy-authenticate") => Self::Neighbours,
            19 if is(name, b"proxy-authorization") => Self::Neighbours,
            _ => Self::Other,
        }
    }
}

/// Whether a name of the same length is this one, of small letters and hyphens, in whatever case. Without a branch inside,
/// for vector code; what only looks alike then (a CR for a hyphen) is in no name.
fn is<const N: usize>(name: &[u8], known: &[u8; N]) -> bool {
    let same = |name: &[u8; N]| name.iter().zip(known).fold(0, |other, (a, b)| other | ((a | 0x20) ^ b)) == 0;
    name.first_chunk().is_some_and(same)
}

/// A field line in a head: what it is, where it begins, how long its name is, and where it ends, before its CR LF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its first byte.
    pub from: u32,
    /// The length of its name, which a colon follows.
    pub name: u32,
    /// Behind its last byte.
    pub to: u32,
    /// What its name is.
    pub field: Field,
}

impl Line {
    /// Of the head it is in: the name, and the value with what space is around it.
    #[must_use]
    pub fn of<'a>(&self, head: &'a [u8]) -> (&'a [u8], &'a [u8]) {
        let line = self.whole(head);
        let name = self.name as usize;
        (&line[..name], &line[name + 1..])
    }

    /// Of the head it is in: name, colon and value.
    #[must_use]
    pub fn whole<'a>(&self, head: &'a [u8]) -> &'a [u8] {
        &head[self.from as usize..self.to as usize]
    }
}

/// The field line at `from`, if it is here as a whole and there is nothing odd in it: a name, a colon, a value without
/// a control character, and CR LF. With its name and its value.
#[inline(always)]
#[must_use]
pub fn plain_line(head: &[u8], from: usize) -> Option<(Line, &[u8], &[u8])> {
    let line = head.get(from..)?;
    // Its first bytes are looked at once for both: most names end among them, and many lines.
    let begins = block(line, 0);
    let common = (uncommon(begins) | 1 << BLOCK).trailing_zeros() as usize;
    let colon = match line.get(common) {
        Some(b':') => common,
        _ => tokens(line),
    };
    let ended = controls(begins);
    let end = if ended == 0 { first(line, BLOCK, controls) } else { ended.trailing_zeros() as usize };
    let (name, value) = (line.get(..colon)?, line.get(colon + 1..end)?);
    if name.is_empty() || line[colon] != b':' || !line[end..].starts_with(b"\r\n") {
        return None;
    }
    // All of it together is far below the 4 GiB of these numbers: a buffer has 64 KiB.
    let (field, at) = (Field::of(name), |n: usize| n as u32);
    Some((Line { from: at(from), name: at(colon), to: at(from + end), field }, name, value))
}

/// The field lines of a head that was found sound, however odd it is. Its first line is none of them.
pub fn lines(head: &[u8]) -> impl Iterator<Item = Line> {
    let ends = memchr::memchr_iter(b'\n', head).map(|at| at + 1);
    let mut from = 0;
    let lines = ends.map(move |end| (std::mem::replace(&mut from, end), end - 2)).skip(1);
    lines.take_while(|(from, to)| to > from).filter_map(move |(from, to)| {
        let name = memchr::memchr(b':', &head[from..to])?;
        let (field, at) = (Field::of(&head[from..from + name]), |n: usize| n as u32);
        Some(Line { from: at(from), name: at(name), to: at(to), field })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_line_is_plain_or_none() {
        let head = b"GET / HTTP/1.1\r\nContent-Type: a b\r\nX_1:\r\n\r\n";
        let (first, name, value) = plain_line(head, 16).unwrap();
        assert_eq!((name, value), (&b"Content-Type"[..], &b" a b"[..]));
        assert_eq!(first.of(head), (name, value));
        let (second, name, value) = plain_line(head, first.to as usize + 2).unwrap();
        assert_eq!((name, value), (&b"X_1"[..], &b""[..]));
        assert_eq!(plain_line(head, second.to as usize + 2), None, "the empty one");
        assert_eq!(lines(head).collect::<Vec<_>>(), [first, second]);
        for odd in [
            "a: b",
            "a: b\r",
            "a: b\n",
            "a : b\r\n",
            " a: b\r\n",
            ":b\r\n",
            "a\r\n",
            "a:\tb\r\n",
            "a:\0\r\n",
            "",
        ] {
            assert_eq!(plain_line(odd.as_bytes(), 0), None, "{odd:?}");
        }
        assert_eq!(plain_line(b"a: b\r\n", 7), None);
    }

    proptest! {
        #[test]
        fn what_is_found_fast_is_what_is_found_slowly(bytes in prop::collection::vec(any::<u8>(), 0..40), at in 0..40_usize) {
            let slowly = |is: fn(u8) -> bool, bytes: &[u8]| bytes.iter().position(|&b| is(b)).unwrap_or(bytes.len());
            // Behind a long run of what passes, too.
            let mut long = b"Content-Type-0123456789-abcxyz-ABCXYZ-Z"[..at.min(39)].to_vec();
            long.extend_from_slice(&bytes);
            for bytes in [&bytes, &long] {
                prop_assert_eq!(tokens(bytes), slowly(|b| !is_token(b), bytes));
                prop_assert_eq!(printable(bytes), slowly(|b| b < b' ' || b == 0x7f, bytes));
                prop_assert_eq!(target(bytes), slowly(|b| b <= b' ' || b == b'#' || b == 0x7f, bytes));
                prop_assert_eq!(value(bytes), slowly(is_control, bytes));
            }
        }
    }

    #[test]
    fn every_byte_is_known_in_every_place() {
        for byte in 0..=255_u8 {
            for place in 0..16 {
                let mut bytes = [b'a'; 16];
                bytes[place] = byte;
                assert_eq!(tokens(&bytes), if is_token(byte) { 16 } else { place }, "{byte} at {place}");
                assert_eq!(printable(&bytes), if byte == b'\t' || is_control(byte) { place } else { 16 });
            }
        }
    }

    #[test]
    fn a_number_is_plain_or_none() {
        for (value, number) in [
            (" 200", Some(200)),
            ("0", Some(0)),
            (" 999999999999999", Some(999_999_999_999_999)),
            ("", None),
            (" ", None),
            ("  1", None),
            ("+1", None),
            ("1 ", None),
            ("1234567890123456", None),
        ] {
            assert_eq!(plain_number(value.as_bytes()), number, "{value:?}");
        }
    }
}
