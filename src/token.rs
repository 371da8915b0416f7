//! The control plane's front page: what a token is, why one is fetched, and who may do it.
//!
//! `wake(Reason) → load → adopt? → lease → load again → adopt? → fetch → save → publish → release → sleep`
//!
//! One task per account walks that line ([`keeper`]) and is the only writer; every call reads what it published.
//! [`source`] is the far side that issues tokens, [`store`] the far side replicas share, [`redis`] the way to one of
//! those; and [`bridge`] hands the token to apps that have yet to move here.

pub mod bridge;
pub mod keeper;
pub mod redis;
pub mod source;
pub mod store;

/// A real server for the tests of whoever asks one.
#[cfg(test)]
#[path = "../tests/integration/redis_rig.rs"]
mod redis_rig;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::credentials::alphabet::Alphabet;
use crate::credentials::encoded::PercentEncoded;

/// The longest token that is taken. WeChat asks for room for 512 characters and warns that it may grow
/// (`wechat-api.md` 1); above this it is not a token but something that went wrong.
pub const MAX_TOKEN_LENGTH: usize = 4096;

/// An access token, how long it lives, and a name for it that may be printed.
///
/// Cheap to clone: every call in flight holds the one it went out with, so that a refresh can name it.
/// SECURITY: the value is wiped when the last clone goes, and prints as its fingerprint.
#[derive(Clone)]
pub struct Token(Arc<Inner>);

struct Inner {
    value: Zeroizing<String>,
    encoded: PercentEncoded,
    alphabet: Alphabet,
    fingerprint: Fingerprint,
    fetched_at: Instant,
    expires_at: Instant,
    accepted: AtomicBool,
}

impl Token {
    /// Takes a token as WeChat issued it.
    ///
    /// `asked_at` is when the request was *sent*: counting from the answer would overrate the life by the time the
    /// answer took. `life` is from then on.
    ///
    /// # Errors
    /// A sentence on what is wrong with it, without a character of it.
    pub fn new(value: &str, asked_at: Instant, life: Duration) -> Result<Self, &'static str> {
        if value.is_empty() {
            return Err("it is empty");
        }
        if value.len() > MAX_TOKEN_LENGTH {
            return Err("it is longer than 4096 characters");
        }
        // SECURITY: real ones use just [A-Za-z0-9_-]; white space and controls would end a request line.
        if !value.bytes().all(|b| b.is_ascii_graphic()) {
            return Err("it has white space, a control or a non-ASCII character inside");
        }
        let encoded = PercentEncoded::of(value);
        Ok(Self(Arc::new(Inner {
            fingerprint: Fingerprint::of(value),
            alphabet: Alphabet::of(&[value, encoded.expose()]),
            encoded,
            value: Zeroizing::new(value.to_owned()),
            fetched_at: asked_at,
            expires_at: asked_at + life,
            accepted: AtomicBool::new(false),
        })))
    }

    /// The token itself. SECURITY: only for a store, and for masking it where it would leak.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0.value
    }

    /// The token as it stands in a query.
    #[must_use]
    pub fn encoded(&self) -> &PercentEncoded {
        &self.0.encoded
    }

    /// The bytes that it is made of in both spellings.
    #[must_use]
    pub fn alphabet(&self) -> &Alphabet {
        &self.0.alphabet
    }

    /// Its printable name.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.0.fingerprint
    }

    /// When it was asked for.
    #[must_use]
    pub fn fetched_at(&self) -> Instant {
        self.0.fetched_at
    }

    /// When WeChat will no longer take it.
    #[must_use]
    pub fn expires_at(&self) -> Instant {
        self.0.expires_at
    }

    /// Life left; zero when it is dead.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.0.expires_at.saturating_duration_since(Instant::now())
    }

    /// Whether it may still be sent.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.is_alive_at(Instant::now())
    }

    /// The same for whoever knows what time it is.
    #[must_use]
    pub fn is_alive_at(&self, now: Instant) -> bool {
        now < self.0.expires_at
    }

    /// Notes that WeChat took it: a reply that was no refusal. One relaxed load on all but the first call.
    pub fn mark_accepted(&self) {
        if !self.0.accepted.load(Ordering::Relaxed) {
            self.0.accepted.store(true, Ordering::Relaxed);
        }
    }

    /// Forgets that WeChat took it: it was refused, and only a call from here on says that it is good again.
    pub(crate) fn forget_accepted(&self) {
        self.0.accepted.store(false, Ordering::Relaxed);
    }

    /// Whether WeChat has taken it, since it came or was last refused.
    #[must_use]
    pub fn was_accepted(&self) -> bool {
        self.0.accepted.load(Ordering::Relaxed)
    }
}

/// Two tokens are equal when WeChat would not know them apart; their lives do not count.
impl PartialEq for Token {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.value == other.0.value
    }
}
impl Eq for Token {}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({})", self.0.fingerprint)
    }
}

/// The first 8 bytes of a token's SHA-256, written as 16 hex digits: enough to tell two tokens apart in a log and
/// across replicas, useless for finding either.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 8]);

impl Fingerprint {
    /// The name of a token.
    pub fn of(value: &str) -> Self {
        let digest = Sha256::digest(value.as_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&digest[..8]);
        Self(first)
    }

    /// Reads a name as it is written. No token is as short as that.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
        u64::from_str_radix(text, 16).ok().filter(|_| digits).map(|first| Self(first.to_be_bytes()))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_life_is_counted_from_when_it_was_asked_for() {
        let asked = Instant::now();
        tokio::time::advance(Duration::from_secs(3)).await;
        let token = Token::new("abc", asked, Duration::from_secs(10)).unwrap();
        assert_eq!(token.remaining(), Duration::from_secs(7));
        tokio::time::advance(Duration::from_secs(7)).await;
        assert!(!token.is_alive());
        assert_eq!(token.remaining(), Duration::ZERO);
    }

    #[tokio::test]
    async fn a_token_prints_as_its_fingerprint_and_is_fit_for_a_query() {
        let now = Instant::now();
        let life = Duration::from_secs(7200);
        let token = Token::new("50_Im7secretsecret", now, life).unwrap();
        assert!(!format!("{token:?} {:?}", Some(&token)).contains("Im7"));
        let name = token.fingerprint().to_string();
        assert_eq!((name.len(), Fingerprint::parse(&name)), (16, Some(token.fingerprint())));
        for bad in ["", &name[1..], "+123456789abcdef", "0123456789abcdeg", "50_Im7secretsecret"] {
            assert_eq!(Fingerprint::parse(bad), None, "{bad}");
        }
        for bad in ["", "a b", "a\r\nX: y", "a\0", "微", &"a".repeat(4097)] {
            assert!(Token::new(bad, now, life).is_err(), "{bad:?}");
        }
        let odd = Token::new("a+/=&#%x_-.~", now, life).unwrap();
        assert_eq!(odd.encoded().expose(), "a%2B%2F%3D%26%23%25x_-.~");
        assert!(Token::new(&"a".repeat(512), now, life).is_ok());
        assert!(Token::new(&"a".repeat(4096), now, life).is_ok());
    }
}
