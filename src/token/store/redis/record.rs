//! What lies in Redis: [`Record`], one account's token as a JSON object, and what makes a stranger of one.
//!
//! ```json
//! {"v":1,"appid":"wx…","endpoint":"token","fingerprint":"0123456789abcdef","fetched_ms":1785000000000,
//!  "ends_ms":1785007200000,"standing":"good","token":"…"}
//! ```
//! Times are of Redis's own clock. `standing` is `good`, `refused` or `refused-news`. With a key there is `sealed`
//! instead of `token`: base64 of nonce, text and tag, bound to everything before it but the standing.
//!
//! Public for the fuzz targets (`tests/fuzz`): whoever can write to Redis chooses these bytes.

use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::seal::Seals;
use crate::token::Fingerprint;
use crate::token::store::Standing;

/// The version this sidecar writes and reads.
const VERSION: u64 = 1;
/// Twelve times the documented 7200 s: what is above is no life of a token.
pub const LONGEST_LIFE_MS: u64 = 86_400_000;
/// A clock that was set back by less than this was only corrected.
pub const CLOCK_SLACK_MS: u64 = 2000;

/// Whose record it is.
#[derive(Clone, Debug)]
pub struct Owner {
    /// The account.
    pub appid: String,
    /// `token` or `stable_token`: the two endpoints' tokens have nothing to do with each other.
    pub endpoint: &'static str,
}

/// A record that can be trusted to be what it says. SECURITY: prints without the token.
pub struct Record {
    /// The token itself, in any characters.
    pub token: Zeroizing<String>,
    /// When it was fetched, in milliseconds of Redis's clock.
    pub fetched_ms: u64,
    /// When it ends, at the latest when its key does.
    pub ends_ms: u64,
    /// Whether WeChat still takes it.
    pub standing: Standing,
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { token, fetched_ms, ends_ms, standing } = self;
        write!(f, "Record({} {standing:?}, {fetched_ms} to {ends_ms})", Fingerprint::of(token))
    }
}

#[derive(Serialize)]
struct ToWrite<'a> {
    v: u64,
    appid: &'a str,
    endpoint: &'a str,
    fingerprint: &'a str,
    fetched_ms: u64,
    ends_ms: u64,
    standing: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sealed: Option<&'a str>,
}

#[derive(Deserialize)]
struct Written {
    appid: String,
    endpoint: String,
    fingerprint: String,
    fetched_ms: u64,
    ends_ms: u64,
    standing: String,
    token: Option<Hidden>,
    sealed: Option<String>,
}

/// SECURITY: wiped whatever becomes of it.
#[derive(Deserialize)]
#[serde(from = "String")]
struct Hidden(Zeroizing<String>);

impl From<String> for Hidden {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

/// Only what tells the version: those to come may have nothing else in common.
#[derive(Deserialize)]
struct Versioned {
    v: u64,
}

impl Standing {
    /// As it stands in a record.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Refused { news: false } => "refused",
            Self::Refused { news: true } => "refused-news",
        }
    }

    fn of(word: &str) -> Option<Self> {
        let all = [Self::Good, Self::Refused { news: false }, Self::Refused { news: true }];
        all.into_iter().find(|standing| standing.word() == word)
    }
}

/// A new record, for a token that is good. SECURITY: in plain where there is no key.
///
/// # Errors
/// The system has no random numbers to seal it with.
pub fn write(
    owner: &Owner,
    token: &str,
    (fetched_ms, ends_ms): (u64, u64),
    seals: Option<&Seals>,
) -> Result<Zeroizing<String>, &'static str> {
    let bound = bound(owner, fetched_ms, ends_ms);
    let sealed = seals.map(|seals| seals.seal(token, &bound)).transpose()?;
    let written = ToWrite {
        v: VERSION,
        appid: &owner.appid,
        endpoint: owner.endpoint,
        fingerprint: &Fingerprint::of(token).to_string(),
        fetched_ms,
        ends_ms,
        standing: Standing::Good.word(),
        token: sealed.is_none().then_some(token),
        sealed: sealed.as_deref(),
    };
    serde_json::to_string(&written).map(Zeroizing::new).map_err(|_| "the token cannot be written as JSON")
}

/// Reads a record that lives for `left_ms` more at `now_ms`.
///
/// # Errors
/// What is wrong with it, for the log, without a character of it.
pub fn read(
    owner: &Owner,
    text: &[u8],
    (now_ms, left_ms): (u64, i64),
    seals: Option<&Seals>,
) -> Result<Record, &'static str> {
    let Versioned { v } = serde_json::from_slice(text).map_err(|_| "it is not a record of ours")?;
    if v != VERSION {
        return Err("it is of another version, written by a newer or older sidecar");
    }
    let written: Written = serde_json::from_slice(text).map_err(|_| "it is not a whole record of ours")?;
    let Written { fetched_ms, ends_ms, .. } = written;
    if written.appid != owner.appid {
        return Err("it is another account's");
    }
    if written.endpoint != owner.endpoint {
        return Err("it is of the other token endpoint");
    }
    if ends_ms <= fetched_ms || ends_ms - fetched_ms > LONGEST_LIFE_MS {
        return Err("its life is absurd");
    }
    // SECURITY: the time is what the other end says, too.
    if fetched_ms > now_ms.saturating_add(CLOCK_SLACK_MS) {
        return Err("it comes from the future; the clock of Redis was set back");
    }
    let Some(left_ms) = u64::try_from(left_ms).ok() else { return Err("its key does not expire") };
    if left_ms > ends_ms.saturating_sub(now_ms).saturating_add(CLOCK_SLACK_MS) {
        return Err("its key lives longer than it says");
    }
    let standing = Standing::of(&written.standing).ok_or("it says no standing that is known")?;
    let token = match (written.token, written.sealed, seals) {
        (Some(Hidden(token)), None, None) => token,
        (None, Some(sealed), Some(seals)) => seals
            .open(&sealed, &bound(owner, fetched_ms, ends_ms))
            .ok_or("no key in store_key_file opens it")?,
        // SECURITY: whoever can write to Redis but has no key must not be able to choose our token.
        (Some(_), None, Some(_)) => return Err("it is not sealed, and there is a store_key_file"),
        (None, Some(_), None) => return Err("it is sealed, and there is no store_key_file"),
        _ => return Err("it has no token, or two"),
    };
    if Fingerprint::of(&token).to_string() != written.fingerprint {
        return Err("its fingerprint is another token's");
    }
    Ok(Record { token, fetched_ms, ends_ms: ends_ms.min(now_ms.saturating_add(left_ms)), standing })
}

/// What a sealed token is bound to.
fn bound(owner: &Owner, fetched_ms: u64, ends_ms: u64) -> String {
    format!("wechat-sidecar\n{VERSION}\n{}\n{}\n{fetched_ms}\n{ends_ms}", owner.appid, owner.endpoint)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_785_000_000_000;

    fn owner() -> Owner {
        Owner { appid: "wx1".to_owned(), endpoint: "token" }
    }

    fn seals() -> Seals {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=").unwrap();
        Seals::read(file.path()).unwrap()
    }

    fn written(seals: Option<&Seals>) -> String {
        write(&owner(), "T0KEN/+\"x", (NOW, NOW + 7_200_000), seals).unwrap().to_string()
    }

    fn at_once(text: &str, seals: Option<&Seals>) -> Result<Record, &'static str> {
        read(&owner(), text.as_bytes(), (NOW + 5, 7_199_995), seals)
    }

    #[test]
    fn what_is_written_is_read() {
        for seals in [None, Some(&seals())] {
            let text = written(seals);
            assert_eq!(text.contains("T0KEN"), seals.is_none(), "{text}");
            let record = at_once(&text, seals).unwrap();
            assert_eq!(*record.token, "T0KEN/+\"x");
            assert_eq!((record.fetched_ms, record.ends_ms), (NOW, NOW + 7_200_000));
            assert_eq!(record.standing, Standing::Good);
            let refused = text.replace("good", "refused-news");
            assert_eq!(at_once(&refused, seals).unwrap().standing, Standing::Refused { news: true });
            let record = read(&owner(), text.as_bytes(), (NOW, 1000), seals).unwrap();
            assert_eq!(record.ends_ms, NOW + 1000, "a key that ends sooner is believed");
        }
    }

    #[test]
    fn whatever_is_no_record_of_ours_is_not_taken() {
        let good = written(None);
        for (text, why) in [
            (String::new(), "not a record"),
            ("T0KEN".into(), "not a record"),
            ("null".into(), "not a record"),
            ("[1]".into(), "not a whole record"),
            ("{\"v\":1}".into(), "not a whole record"),
            (good[..good.len() - 9].to_owned(), "not a record"),
            (good.replace("\"v\":1", "\"v\":2"), "another version"),
            ("{\"v\":2,\"x\":[]}".into(), "another version"),
            (good.replace("wx1", "wx2"), "another account"),
            (good.replace("\"endpoint\":\"token\"", "\"endpoint\":\"stable_token\""), "other token endpoint"),
            (good.replace("1785007200000", "1785086400001"), "absurd"),
            (good.replace("1785007200000", "1785000000000"), "absurd"),
            (good.replace("1785007200000", "1784999999999"), "absurd"),
            (good.replace("1785000000000", "-5"), "not a whole record"),
            (good.replace("1785000000000", "1785000009999"), "future"),
            (good.replace("good", "bad"), "no standing"),
            (good.replace("T0KEN", "OTHER"), "another token's"),
            (good.replace("\"token\":\"T", "\"taken\":\"T"), "no token"),
        ] {
            let told = at_once(&text, None).unwrap_err();
            assert!(told.contains(why), "{text}: {told}");
        }
        for (left, why) in [(-1, "does not expire"), (7_300_000, "longer than it says")] {
            assert!(read(&owner(), good.as_bytes(), (NOW, left), None).unwrap_err().contains(why));
        }
    }

    #[test]
    fn a_seal_holds_what_it_is_bound_to() {
        let (seals, good) = (seals(), written(Some(&seals())));
        assert!(at_once(&good, None).unwrap_err().contains("no store_key_file"));
        assert!(at_once(&written(None), Some(&seals)).unwrap_err().contains("not sealed"));
        for touched in
            [good.replace("1785007200000", "1785007300000"), good.replace("1785000000000", "1785000000001")]
        {
            assert!(at_once(&touched, Some(&seals)).unwrap_err().contains("no key"), "{touched}");
        }
        let mut other = owner();
        other.endpoint = "stable_token";
        let moved = good.replace("\"endpoint\":\"token\"", "\"endpoint\":\"stable_token\"");
        assert!(read(&other, moved.as_bytes(), (NOW, 1000), Some(&seals)).unwrap_err().contains("no key"));
    }

    /// What may stand in the key: a record with a field that is another's, some bytes changed, or no record at all.
    fn texts() -> impl Strategy<Value = Vec<u8>> {
        let fields = vec![
            ("\"v\":1", "\"v\":1e0"),
            ("\"v\":1", "\"v\":\"1\""),
            ("wx1", "wx2"),
            ("\"token\":", "\"sealed\":"),
            ("\"endpoint\":\"token\"", "\"endpoint\":\"stable_token\""),
            ("1785000000000", "0"),
            ("1785000000000", "18446744073709551615"),
            ("1785007200000", "1785000000001"),
            ("1785007200000", "18446744073709551615"),
            ("good", "refused"),
            ("good", "refused-news"),
            ("good", "GOOD"),
            ("T0KEN", "T0KE"),
            ("}", ",\"token\":\"T\"}"),
        ];
        let edit = prop_oneof![
            3 => proptest::sample::select(fields).prop_map(|(from, to)| (from.to_owned(), to.to_owned())),
            1 => "[0-9]{1,21}".prop_map(|number| ("1785007200000".to_owned(), number)),
        ];
        let edited = (any::<bool>(), proptest::collection::vec(edit, 0..3)).prop_map(|(sealed, edits)| {
            let text = written(sealed.then(seals).as_ref());
            edits.into_iter().fold(text, |text, (from, to)| text.replace(&from, &to)).into_bytes()
        });
        let bytes = (any::<prop::sample::Index>(), any::<u8>());
        let bytes = prop_oneof![3 => Just(Vec::new()), 1 => proptest::collection::vec(bytes, 1..4)];
        prop_oneof![
            8 => (edited, bytes).prop_map(|(mut text, bytes)| {
                for (at, byte) in bytes {
                    let at = at.index(text.len());
                    text[at] = byte;
                }
                text
            }),
            1 => proptest::collection::vec(any::<u8>(), 0..300),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn whatever_token_is_written_is_read_as_it_was_and_for_no_longer(
            token in "\\PC{0,80}", appid in "\\PC{0,12}", fetched in 0..u64::MAX / 2, life in 1..=LONGEST_LIFE_MS,
            later in 0..LONGEST_LIFE_MS, sealed in any::<bool>(),
            left in prop_oneof![4 => 0..LONGEST_LIFE_MS as i64, 1 => 0..=i64::MAX],
        ) {
            let owner = Owner { appid, endpoint: "stable_token" };
            let seals = sealed.then(seals);
            let (now, ends) = (fetched + later, fetched + life);
            let text = write(&owner, &token, (fetched, ends), seals.as_ref()).unwrap();
            prop_assert!(!sealed || token.chars().count() < 8 || !text.contains(&token), "{}", *text);
            let read = read(&owner, text.as_bytes(), (now, left), seals.as_ref());
            // The key of one that has ended is gone but for the clock's slack.
            let plausible = left as u64 <= ends.saturating_sub(now) + CLOCK_SLACK_MS;
            prop_assert_eq!(read.is_ok(), plausible, "{:?}", read);
            if let Ok(record) = read {
                prop_assert_eq!((&*record.token, record.fetched_ms), (&token, fetched));
                prop_assert_eq!(record.ends_ms, ends.min(now + left as u64));
                prop_assert_eq!(record.standing, Standing::Good);
                let printed = format!("{record:?}");
                prop_assert!(token.chars().count() < 8 || !printed.contains(&token), "{}", printed);
            }
        }

        #[test]
        fn whatever_lies_in_the_key_is_a_sound_record_or_none(
            text in texts(), now in prop_oneof![Just(NOW), NOW..NOW + LONGEST_LIFE_MS, any::<u64>()], left in any::<i64>(),
            near in any::<bool>(), sealed in any::<bool>(),
        ) {
            let left = if near { (NOW + 7_200_000).saturating_sub(now) as i64 } else { left };
            let seals = sealed.then(seals);
            let Ok(record) = read(&owner(), &text, (now, left), seals.as_ref()) else { return Ok(()) };
            // With a key, nobody without it has us take what it did not seal.
            prop_assert!(!sealed || *record.token == "T0KEN/+\"x");
            prop_assert!(String::from_utf8_lossy(&text).contains(&Fingerprint::of(&record.token).to_string()));
            prop_assert!(record.fetched_ms <= now.saturating_add(CLOCK_SLACK_MS));
            prop_assert!(record.ends_ms <= now.saturating_add(left as u64), "not for longer than its key lives");
            prop_assert!(record.ends_ms <= record.fetched_ms.saturating_add(LONGEST_LIFE_MS));
        }
    }
}
