//! How a token lies at rest when a key was given: [`Seals`], AES-256-GCM with a list of keys.
//!
//! The first key seals, every key opens, so that keys can be changed one replica at a time: add the new key below the
//! old one everywhere, then move it to the top, then drop the old one.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use crate::files;

/// The keys of `store_key_file`. Cheap to clone.
#[derive(Clone)]
pub struct Seals(Arc<[LessSafeKey]>);

impl fmt::Debug for Seals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Seals({})", self.0.len())
    }
}

/// The longest key file that is read.
const MAX_FILE: u64 = 4096;
/// The most keys that make sense.
const MAX_KEYS: usize = 16;

impl Seals {
    /// Reads the keys: one a line, 32 bytes in base64; `#` begins a comment.
    ///
    /// # Errors
    /// A sentence with its remedy, without a character of the content.
    pub fn read(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let bytes = files::read(path, MAX_FILE)
            .map_err(|error| format!("{shown} cannot be read ({error}); check the path and its permissions"))?
            .bytes;
        let text = std::str::from_utf8(&bytes).map_err(|_| format!("{shown} is not text; {MAKE}"))?;
        if text.len() as u64 > MAX_FILE {
            return Err(format!("{shown} is larger than {MAX_FILE} bytes; {MAKE}"));
        }
        let mut keys = Vec::new();
        for (n, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let bytes = STANDARD.decode(line).map(Zeroizing::new).ok().filter(|bytes| bytes.len() == 32);
            let key = bytes.and_then(|bytes| UnboundKey::new(&AES_256_GCM, &bytes).ok());
            let key = key.ok_or_else(|| format!("line {} of {shown} is not a key; {MAKE}", n + 1))?;
            keys.push(LessSafeKey::new(key));
        }
        match keys.len() {
            0 => Err(format!("{shown} has no key in it; {MAKE}")),
            1..=MAX_KEYS => Ok(Self(keys.into())),
            _ => Err(format!("{shown} has more than {MAX_KEYS} keys; drop the old ones")),
        }
    }

    /// Seals `text` with the first key, bound to `bound`.
    pub(super) fn seal(&self, text: &str, bound: &str) -> Result<String, &'static str> {
        let mut nonce = [0; NONCE_LEN];
        // Random nonces: one key may seal 2^32 times (NIST SP 800-38D 8.3), and a token is sealed once an hour or so.
        SystemRandom::new().fill(&mut nonce).map_err(|_| "the system has no random numbers")?;
        let mut sealed = Zeroizing::new(Vec::with_capacity(text.len() + 64));
        sealed.extend_from_slice(text.as_bytes());
        let nonce_used = Nonce::assume_unique_for_key(nonce);
        let tag = self.0[0].seal_in_place_separate_tag(nonce_used, Aad::from(bound), &mut sealed);
        let tag = tag.map_err(|_| "the token cannot be sealed")?;
        Ok(STANDARD.encode([&nonce[..], &sealed, tag.as_ref()].concat()))
    }

    /// Opens what any of the keys sealed.
    pub(super) fn open(&self, sealed: &str, bound: &str) -> Option<Zeroizing<String>> {
        let bytes = STANDARD.decode(sealed).ok()?;
        let (nonce, sealed) = bytes.split_at_checked(NONCE_LEN)?;
        self.0.iter().find_map(|key| {
            let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
            let mut opened = Zeroizing::new(sealed.to_vec());
            let text = key.open_in_place(nonce, Aad::from(bound), &mut opened).ok()?;
            std::str::from_utf8(text).ok().map(|text| Zeroizing::new(text.to_owned()))
        })
    }
}

/// How a key is made.
const MAKE: &str = "it must hold one key a line, 32 bytes in base64; `openssl rand -base64 32` makes one";

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    const TWO: &str = "ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA=";

    fn seals(text: &str) -> Result<Seals, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Seals::read(file.path())
    }

    #[test]
    fn the_first_key_seals_and_every_key_opens() {
        let old = seals(&format!("# 2025\n{ONE}\n")).unwrap();
        let both = seals(&format!("{TWO} # 2026\r\n\n{ONE}")).unwrap();
        let new = seals(TWO).unwrap();
        let sealed = old.seal("a token", "bound").unwrap();
        assert!(!sealed.contains("token") && sealed != old.seal("a token", "bound").unwrap());
        assert_eq!(**both.open(&sealed, "bound").as_ref().unwrap(), "a token");
        assert!(new.open(&sealed, "bound").is_none());
        let sealed = both.seal("a token", "bound").unwrap();
        assert!(new.open(&sealed, "bound").is_some() && old.open(&sealed, "bound").is_none());
    }

    #[test]
    fn what_was_touched_does_not_open() {
        let seals = seals(ONE).unwrap();
        let sealed = seals.seal("a token", "bound").unwrap();
        assert!(seals.open(&sealed, "to another").is_none());
        let mut bytes = STANDARD.decode(&sealed).unwrap();
        for at in 0..bytes.len() {
            bytes[at] ^= 1;
            assert!(seals.open(&STANDARD.encode(&bytes), "bound").is_none(), "{at}");
            bytes[at] ^= 1;
        }
        for garbage in ["", "%", "AAAA", ONE] {
            assert!(seals.open(garbage, "bound").is_none(), "{garbage}");
        }
    }

    #[test]
    fn a_file_that_holds_no_keys_is_refused_without_a_word_of_it() {
        let short = &ONE[4..];
        let many = format!("{ONE}\n").repeat(17);
        let long = "#".repeat(5000);
        for text in ["", "# nothing", "secret", short, &format!("{ONE}\nsecret"), &many, &long] {
            let told = seals(text).unwrap_err();
            assert!(told.contains("; ") && !told.contains("secret") && !told.contains(short), "{told}");
        }
        assert!(Seals::read(Path::new("/nonexistent")).unwrap_err().contains("cannot be read"));
    }
}
