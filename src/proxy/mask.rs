//! Nothing leaks back: our token and secret are masked where a reply echoes them.
//!
//! WeChat does so: `openapi/rid/get` returns the URL of the failed call, token included (`wechat-api.md` 4h). The
//! mask is as long as what it hides, so that a Content-Length stays true, and is made of `*`, which is no part of a
//! token, an escape or a JSON structure.
//!
//! The first 1 MiB of a reply is looked at, and goes on as it comes: no more is held back than the end of a piece that
//! could be the beginning of a credential.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::account::{Account, Secrets};
use crate::credentials::alphabet::Alphabet;
use crate::token::Token;

/// What must not be seen: an account's secrets and its tokens, those it has had of late included, in every spelling
/// they may come back in. Holds them as they are, not copies of them.
#[derive(Clone)]
pub struct Mask {
    secrets: Arc<Secrets>,
    tokens: Arc<[Token]>,
}

/// Real credentials have 32 characters and more; what is shorter than this would match by chance.
const SHORTEST: usize = 4;

impl Mask {
    /// A mask for the secret and the tokens of `account`, as they are now: to be made when the reply is here.
    #[must_use]
    pub fn new(account: &Account) -> Self {
        Self { secrets: account.secrets(), tokens: account.keeper().known() }
    }

    /// Calls `with` for each, in every spelling.
    fn each<'a>(&'a self, mut with: impl FnMut(&'a [u8], &'a Alphabet)) {
        let mut both = |plain: &'a str, encoded: &'a str, alphabet: &'a Alphabet| {
            if plain.len() >= SHORTEST {
                with(plain.as_bytes(), alphabet);
                // An escape is longer than what it stands for: equally long, they are the same.
                if encoded.len() != plain.len() {
                    with(encoded.as_bytes(), alphabet);
                }
            }
        };
        for secret in self.secrets.known() {
            both(secret.expose(), secret.encoded().expose(), secret.alphabet());
        }
        for token in self.tokens.iter() {
            both(token.expose(), token.encoded().expose(), token.alphabet());
        }
    }

    /// Masks what echoes a credential in a text that is here as a whole, such as the lines of a head.
    pub fn text(&self, text: &mut [u8]) {
        self.overwrite(text);
    }

    /// The first credential in `bytes` at or after `from`: where, and how long.
    fn find(&self, bytes: &[u8], from: usize) -> Option<(usize, usize)> {
        let rest = &bytes[from..];
        let mut first: Option<(usize, usize)> = None;
        self.each(|needle, alphabet| {
            if needle.len() > rest.len() || !alphabet.may_spell(rest, needle.len()) {
                return;
            }
            let Some(at) = search(rest, needle) else { return };
            // The earliest; of two that begin together, the longer.
            let is_first =
                first.is_none_or(|(known, length)| at < known || (at == known && needle.len() > length));
            if is_first {
                first = Some((at, needle.len()));
            }
        });
        first.map(|(at, length)| (from + at, length))
    }

    fn overwrite(&self, bytes: &mut [u8]) -> bool {
        let mut from = 0;
        while let Some((at, length)) = self.find(bytes, from) {
            bytes[at..at + length].fill(b'*');
            from = at + length;
        }
        from > 0
    }

    /// How many bytes at the end of `bytes` could be the beginning of a credential.
    fn unfinished(&self, bytes: &[u8]) -> usize {
        let Some(&last) = bytes.last() else { return 0 };
        let mut unfinished = 0;
        self.each(|needle, alphabet| {
            // Most pieces end in `}`, which no credential has in it: then there is nothing to compare.
            if !alphabet.has(last) {
                return;
            }
            let most = (needle.len() - 1).min(bytes.len());
            let found = (1..=most).rev().find(|&length| bytes.ends_with(&needle[..length]));
            unfinished = unfinished.max(found.unwrap_or(0));
        });
        unfinished
    }
}

/// Where `needle` stands. For the few bytes of most replies memmem takes longer to get ready than to search: there its
/// first byte is looked for, unless that is everywhere.
fn search(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    let (&first, rest) = needle.split_first()?;
    if bytes.len() > SHORT {
        return memchr::memmem::find(bytes, needle);
    }
    let last = bytes.len().checked_sub(rest.len())?;
    for (n, at) in memchr::memchr_iter(first, &bytes[..last]).enumerate() {
        if n == MANY {
            return memchr::memmem::find(&bytes[at..], needle).map(|further| at + further);
        }
        if bytes[at + 1..].starts_with(rest) {
            return Some(at);
        }
    }
    None
}

/// Up to this size a text is searched by the first byte.
const SHORT: usize = 2048;

/// How often the first byte may be found in vain.
const MANY: usize = 64;

/// Masks one body as it comes, piece by piece.
pub struct Masking {
    mask: Mask,
    held: BytesMut,
    /// How much may still be looked at.
    left: usize,
}

/// The most of one reply that is looked at, whatever it is. What is longer is a list or a file: searching all of it
/// would cost more than carrying it.
const MOST: usize = 1024 * 1024;

impl Masking {
    /// For a body of which nothing has come yet.
    #[must_use]
    pub fn new(mask: Mask) -> Self {
        Self { mask, held: BytesMut::new(), left: MOST }
    }

    /// Takes the next piece and gives what can go on now, which may be nothing.
    #[must_use]
    pub fn push(&mut self, piece: Bytes) -> Bytes {
        if self.left == 0 {
            return piece;
        }
        self.left = self.left.saturating_sub(piece.len());
        if self.held.is_empty() && self.mask.find(&piece, 0).is_none() {
            let held = if self.left == 0 { 0 } else { self.mask.unfinished(&piece) };
            if held == 0 {
                return piece;
            }
            self.held.extend_from_slice(&piece[piece.len() - held..]);
            return piece.slice(..piece.len() - held);
        }
        self.held.extend_from_slice(&piece);
        self.mask.overwrite(&mut self.held);
        let keep = if self.left == 0 { 0 } else { self.mask.unfinished(&self.held) };
        let go = self.held.len() - keep;
        self.held.split_to(go).freeze()
    }

    /// What is still held when the body has ended, or when it is no longer looked at. It was no credential after all.
    #[must_use]
    pub fn finish(&mut self) -> Bytes {
        self.held.split().freeze()
    }

    /// How many bytes are held back.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use tokio::time::Instant;

    use super::*;
    use crate::account;

    const TOKEN: &str = "50_aabaabaac-0123456789";
    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn mask() -> Mask {
        let mut mask = Mask::new(&account::idle("wx0123456789abcdef", SECRET));
        mask.tokens = Arc::new([Token::new(TOKEN, Instant::now(), Duration::from_secs(7200)).unwrap()]);
        mask
    }

    fn masked(pieces: &[&[u8]]) -> Vec<u8> {
        let mut masking = Masking::new(mask());
        let mut out = Vec::new();
        for piece in pieces {
            out.extend_from_slice(&masking.push(Bytes::copy_from_slice(piece)));
        }
        out.extend_from_slice(&masking.finish());
        out
    }

    #[test]
    fn a_credential_is_masked_by_as_many_stars() {
        let body = format!(r#"{{"request_url":"access_token={TOKEN}&x=1","secret":"{SECRET}"}}"#);
        let out = String::from_utf8(masked(&[body.as_bytes()])).unwrap();
        assert_eq!(out.len(), body.len());
        assert_eq!(
            out,
            format!(
                r#"{{"request_url":"access_token={}&x=1","secret":"{}"}}"#,
                "*".repeat(TOKEN.len()),
                "*".repeat(SECRET.len())
            )
        );
    }

    #[test]
    fn headers_are_masked_too() {
        let lines = |token: &str| {
            format!(" 302 Found\r\nLocation: /x?access_token={token}\r\nX-Other: as it was\r\n")
        };
        let mut text = lines(TOKEN).into_bytes();
        mask().text(&mut text);
        assert_eq!(String::from_utf8(text).unwrap(), lines(&"*".repeat(TOKEN.len())));
    }

    #[test]
    fn an_ordinary_reply_is_not_copied_and_not_held() {
        let body = Bytes::from_static(br#"{"errcode":0,"errmsg":"ok"}"#);
        let mut masking = Masking::new(mask());
        assert_eq!(masking.push(body.clone()).as_ptr(), body.as_ptr());
        assert_eq!(masking.held(), 0);
    }

    #[test]
    fn a_long_list_or_file_is_looked_at_only_at_its_beginning() {
        let mut masking = Masking::new(mask());
        let mut out = masking.push(Bytes::from(vec![b'['; MOST + 1])).len();
        out += masking.push(Bytes::from_static(TOKEN.as_bytes())).len();
        assert_eq!((out, masking.held()), (MOST + 1 + TOKEN.len(), 0));
    }

    #[test]
    fn what_only_began_like_a_credential_comes_out_as_it_was() {
        let half = &TOKEN[..10];
        assert_eq!(masked(&[half.as_bytes()]), half.as_bytes());
        assert_eq!(masked(&[half.as_bytes(), b"!", half.as_bytes()]), format!("{half}!{half}").as_bytes());
    }

    proptest! {
        #[test]
        fn a_credential_is_found_where_memmem_finds_it(
            text in "[ab]{0,300}", needle in "[ab]{4,9}", long in proptest::bool::ANY,
        ) {
            let text = if long { text.repeat(20) } else { text };
            let (text, needle) = (text.as_bytes(), needle.as_bytes());
            if needle.len() <= text.len() {
                prop_assert_eq!(search(text, needle), memchr::memmem::find(text, needle));
            }
        }

        #[test]
        fn however_it_is_cut_no_credential_comes_out_and_nothing_else_changes(
            parts in proptest::collection::vec(
                prop_oneof![
                    Just(TOKEN.to_owned()), Just(SECRET.to_owned()), Just(TOKEN[..9].to_owned()),
                    Just("50_aab".to_owned()), "[ -~]{0,12}",
                ],
                0..12,
            ),
            cuts in proptest::collection::vec(1_usize..20, 0..40),
        ) {
            let body = parts.concat().into_bytes();
            let mut pieces = Vec::new();
            let mut rest = &body[..];
            for cut in cuts {
                if cut >= rest.len() { break }
                let (piece, after) = rest.split_at(cut);
                pieces.push(piece);
                rest = after;
            }
            pieces.push(rest);
            let out = masked(&pieces);
            prop_assert_eq!(out.len(), body.len());
            let text = String::from_utf8(out.clone()).unwrap();
            prop_assert!(!text.contains(TOKEN) && !text.contains(SECRET));
            prop_assert_eq!(out, masked(&[&body]), "the cuts do not matter");
            for (ours, theirs) in text.bytes().zip(&body) {
                prop_assert!(ours == *theirs || ours == b'*');
            }
        }
    }
}
