//! What a failed fetch means: [`FetchError`], its [`Class`], and the one table that says for each `errcode` of the
//! token endpoints how long to wait and what the operator should do.
//!
//! Codes and their meanings are `wechat-api.md` 1 and 2. Asking again costs something at every one of them: quota,
//! or, where an administrator has to confirm the address, the address itself ("this IP may be unable to call for a
//! long time"). So a code's wait is part of its meaning.

use std::net::IpAddr;
use std::time::Duration;

use crate::credentials::Secret;
use crate::credentials::encoded::PercentEncoded;

/// What kind of failure it was, by who can end it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Time: the network, a busy WeChat, a reply that made no sense.
    Transient,
    /// Time, and more of it: too many requests this minute or this day.
    Quota,
    /// Whoever wrote the settings.
    Config,
    /// Whoever keeps the account's IP whitelist.
    Ip,
    /// The account's administrator, who has been asked, or has refused, to let this address in.
    AwaitAdmin,
    /// A person at the WeChat console: something is frozen.
    Human,
}

impl Class {
    /// Every class, for tables and metrics.
    pub const ALL: &[Self] =
        &[Self::Transient, Self::Quota, Self::Config, Self::Ip, Self::AwaitAdmin, Self::Human];

    /// Its name in metrics and in the status: an interface, dashboards match on it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Transient => "transient",
            Self::Quota => "quota",
            Self::Config => "config",
            Self::Ip => "ip",
            Self::AwaitAdmin => "await-admin",
            Self::Human => "human",
        }
    }
}

/// A fetch that brought no token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchError {
    /// Who can end it.
    pub class: Class,
    /// WeChat's code, when it was WeChat who refused.
    pub errcode: Option<i64>,
    /// For the operator: what happened, what it means, what to do. Never holds a credential.
    pub sentence: String,
    /// The least wait before the next attempt.
    pub retry_after: Duration,
    /// What the wait, doubling with every further failure, grows to.
    pub at_most: Duration,
}

impl FetchError {
    /// A failure that time heals: 1 s to the next attempt, growing to a minute.
    #[must_use]
    pub fn transient(sentence: impl Into<String>) -> Self {
        let (least, most) = TRANSIENT;
        Self::of(Class::Transient, None, sentence.into(), secs(least), secs(most))
    }

    /// We ourselves held the fetch back, and may go on after `wait`.
    pub(in crate::token) fn held_back(sentence: String, wait: Duration) -> Self {
        Self::of(Class::Transient, None, sentence, wait, wait.max(secs(TRANSIENT.1)))
    }

    /// WeChat answered with an `errcode` other than 0.
    pub(super) fn refused(errcode: i64, errmsg: &str, secret: &Secret) -> Self {
        let Rule { class, wait: (least, most), meaning } = rule(errcode);
        let errmsg = presentable(errmsg, secret);
        let mut sentence =
            format!("WeChat answered the token request with errcode {errcode} ({errmsg}): {meaning}");
        if matches!(class, Class::Ip | Class::AwaitAdmin) {
            match addresses(&errmsg).as_slice() {
                [] => {}
                seen => sentence.push_str(&format!("; the address WeChat saw is {}", seen.join(" and "))),
            }
        }
        Self::of(class, Some(errcode), sentence, secs(least), secs(most))
    }

    fn of(
        class: Class,
        errcode: Option<i64>,
        sentence: String,
        retry_after: Duration,
        at_most: Duration,
    ) -> Self {
        Self { class, errcode, sentence, retry_after, at_most }
    }
}

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// First wait and longest wait, in seconds.
type Wait = (u64, u64);

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;

const TRANSIENT: Wait = (1, MINUTE);
/// A code we do not know may mean anything, so we ask a stranger less often than a busy WeChat.
const UNKNOWN: Wait = (10, 5 * MINUTE);
/// "retry next minute": the quota is counted by the minute.
const MINUTE_QUOTA: Wait = (MINUTE, 5 * MINUTE);
const DAY_QUOTA: Wait = (5 * MINUTE, HOUR);
/// Nobody mends a setting faster, and a changed secret is tried at once anyway.
const SETTINGS: Wait = (MINUTE, 10 * MINUTE);
/// Hammering while an address is unconfirmed gets it blocked, so these poll slowly and do not start fast.
const SLOW_POLL: Wait = (10 * MINUTE, 10 * MINUTE);
const REFUSED_FOR_AN_HOUR: Wait = (HOUR, HOUR);
const REFUSED_FOR_A_DAY: Wait = (24 * HOUR, 24 * HOUR);

struct Rule {
    class: Class,
    wait: Wait,
    meaning: &'static str,
}

fn rule(errcode: i64) -> Rule {
    use Class::{AwaitAdmin, Config, Human, Ip, Quota, Transient};
    let (class, wait, meaning) = match errcode {
        -1 => (Transient, TRANSIENT, "WeChat is busy; it is asked again shortly"),
        40001 => (
            Config,
            SETTINGS,
            "the AppSecret is wrong or belongs to another appid; compare appid and secret with the WeChat console",
        ),
        40002 => (
            Config,
            SETTINGS,
            "WeChat did not understand the grant type we always send; something on the way changes requests, check upstream",
        ),
        40013 => (
            Config,
            SETTINGS,
            "WeChat knows no such appid; check appid, letter by letter and in its case, with the WeChat console",
        ),
        40125 => (
            Config,
            SETTINGS,
            "the AppSecret is wrong, or was reset since; put the current one into secret or secret_file",
        ),
        40164 | 61004 => (
            Ip,
            SETTINGS,
            "this machine's public address is not in the account's IP whitelist; add it in the WeChat console, under the settings of the AppSecret",
        ),
        40243 => (
            Human,
            SLOW_POLL,
            "the AppSecret is frozen; unfreeze it in the WeChat console, which takes 10 minutes to take effect",
        ),
        41002 => (
            Config,
            SETTINGS,
            "the request arrived without the appid we always send; something on the way changes requests, check upstream",
        ),
        41004 => (
            Config,
            SETTINGS,
            "the request arrived without the AppSecret we always send; something on the way changes requests, check upstream",
        ),
        43002 => (
            Config,
            SETTINGS,
            "WeChat wants POST here and saw another method; something on the way changes requests, check upstream",
        ),
        43003 => (
            Config,
            SETTINGS,
            "WeChat wants https; write upstream with https:// and let nothing on the way take the TLS off",
        ),
        45009 => (
            Quota,
            DAY_QUOTA,
            "the day's quota of token fetches is used up; find the other program that fetches with this AppSecret and stop it; the quota returns with the next day, or at once by clearing it in the WeChat console",
        ),
        45011 => (
            Quota,
            MINUTE_QUOTA,
            "too many token fetches this minute; it is asked again after a minute, and if this goes on another program is fetching with this AppSecret",
        ),
        50004 => (
            Config,
            SETTINGS,
            "this account may not fetch tokens; check in the WeChat console what kind of account the appid is and whether it is verified",
        ),
        50007 => (
            Human,
            SLOW_POLL,
            "the account is frozen; its owner has to have it unfrozen in the WeChat console",
        ),
        61024 => (
            Config,
            SETTINGS,
            "this account is run by a third-party platform, whose own token is wanted; take an appid that fetches its token by AppSecret",
        ),
        89501..=89505 => (
            AwaitAdmin,
            SLOW_POLL,
            "WeChat has asked the account's administrator to let this address in; have them confirm the message in WeChat; we ask every 10 minutes, since asking more often gets the address blocked",
        ),
        89506 => (
            AwaitAdmin,
            REFUSED_FOR_A_DAY,
            "the account's administrator has refused this address, and WeChat wants no request from it for 24 hours; talk to them, or add the address to the IP whitelist and restart",
        ),
        89507 => (
            AwaitAdmin,
            REFUSED_FOR_AN_HOUR,
            "the account's administrator has refused this address, and WeChat wants no request from it for an hour; talk to them, or add the address to the IP whitelist and restart",
        ),
        _ => (
            Transient,
            UNKNOWN,
            "a code we know nothing about; look it up at developers.weixin.qq.com; it is asked again, at longer and longer intervals",
        ),
    };
    Rule { class, wait, meaning }
}

/// The longest `errmsg` that is shown: a log line is for reading.
const MAX_ERRMSG: usize = 300;

/// WeChat's `errmsg`, fit to be shown.
///
/// SECURITY: a reply may quote what it was sent. Controls go first, so that none can split a secret and hide it, the
/// secret goes next, and the cut comes last, so that it cannot leave half of one.
pub(super) fn presentable(errmsg: &str, secret: &Secret) -> String {
    let clean: String = errmsg.chars().filter(|c| !c.is_control()).collect();
    let encoded = PercentEncoded::of(secret.expose());
    let clean = clean.replace(secret.expose(), "***").replace(encoded.expose(), "***");
    clean.trim().chars().take(MAX_ERRMSG).collect()
}

/// Every address `errmsg` names, each once: WeChat writes `invalid ip 101.45.43.1 ipv6 ::ffff:101.45.43.1, not in
/// whitelist`, and other wordings elsewhere, so anything that reads as an address is taken.
fn addresses(errmsg: &str) -> Vec<String> {
    let mut seen: Vec<String> = Vec::new();
    for word in errmsg.split(|c: char| !(c.is_ascii_hexdigit() || c == '.' || c == ':')) {
        // `::ffff:1.2.3.4` reads as it is; `requestIP:1.2.3.4.` only without its edges.
        let address = word.parse().or_else(|_| word.trim_matches([':', '.']).parse::<IpAddr>());
        let Ok(address) = address.map(|a: IpAddr| a.to_canonical()) else { continue };
        // A lone `::` is punctuation to whoever wrote it.
        if !address.is_unspecified() && !seen.contains(&address.to_string()) {
            seen.push(address.to_string());
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENTED: &[i64] = &[
        -1, 40001, 40002, 40013, 40125, 40164, 40243, 41002, 41004, 43002, 43003, 45009, 45011, 50004, 50007,
        61004, 61024, 89501, 89502, 89503, 89504, 89505, 89506, 89507,
    ];

    fn refused(errcode: i64, errmsg: &str) -> FetchError {
        FetchError::refused(errcode, errmsg, &Secret::parse("s3cr3t&%").unwrap())
    }

    #[test]
    fn every_documented_code_has_a_class_a_wait_and_a_remedy() {
        for &code in DOCUMENTED {
            let error = refused(code, "why");
            assert_eq!(error.errcode, Some(code));
            assert!(error.sentence.contains(&format!("errcode {code} (why)")), "{}", error.sentence);
            assert!(error.retry_after >= secs(1) && error.retry_after <= error.at_most, "{code}");
            assert!(!error.sentence.contains("know nothing"), "{code}");
        }
        let class = |code| refused(code, "").class;
        assert_eq!(class(-1), Class::Transient);
        assert_eq!(class(45009), Class::Quota);
        assert_eq!(class(45011), Class::Quota);
        for code in [40001, 40002, 40013, 40125, 41002, 41004, 43002, 43003, 50004, 61024] {
            assert_eq!(class(code), Class::Config, "{code}");
        }
        for code in [40164, 61004] {
            assert_eq!(class(code), Class::Ip, "{code}");
        }
        for code in [89501, 89502, 89503, 89504, 89505, 89506, 89507] {
            assert_eq!(class(code), Class::AwaitAdmin, "{code}");
        }
        for code in [40243, 50007] {
            assert_eq!(class(code), Class::Human, "{code}");
        }
    }

    #[test]
    fn the_readme_says_what_to_do_about_every_code() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
        let readme = std::fs::read_to_string(path).expect("README.md stands at the top of the repository");
        // The first cells of its tables: `| 40001, 40125 | ...`.
        let cells = readme.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
        let codes: Vec<_> = cells.flat_map(|cell| cell.split(", ")).collect();
        for code in DOCUMENTED.iter().map(i64::to_string) {
            assert!(
                codes.contains(&code.as_str()),
                "README.md: tell in the table of errcodes what {code} means"
            );
        }
    }

    #[test]
    fn an_unknown_code_waits_longer_than_a_busy_wechat() {
        let unknown = refused(99_999, "?");
        assert_eq!(unknown.class, Class::Transient);
        assert!(unknown.retry_after > refused(-1, "").retry_after);
    }

    #[test]
    fn waits_are_as_long_as_wechat_says() {
        assert_eq!(refused(45011, "").retry_after, secs(60));
        assert_eq!(refused(45009, "").at_most, secs(3600));
        assert_eq!(refused(89503, "").retry_after, secs(600));
        assert_eq!(refused(89506, "").retry_after, secs(86_400));
        assert_eq!(refused(89507, "").retry_after, secs(3600));
    }

    #[test]
    fn the_address_wechat_saw_is_named_once() {
        let both = "invalid ip 101.45.43.1 ipv6 ::ffff:101.45.43.1, not in whitelist hint: [jotvMa01143580]";
        assert!(refused(40164, both).sentence.ends_with("the address WeChat saw is 101.45.43.1"));
        let other = "access clientip is not registered requestIP:2001:db8::7 rid: 62c66213-76542f8c-06b14179";
        assert!(refused(61004, other).sentence.ends_with("the address WeChat saw is 2001:db8::7"));
        assert!(refused(61004, "requestIP:1.2.3.4.").sentence.ends_with("saw is 1.2.3.4"));
        assert!(!refused(40164, "rid: 62c66213-76542f8c :: .").sentence.contains("saw is"));
        assert!(!refused(40125, both).sentence.contains("saw is"));
    }

    #[test]
    fn an_errmsg_is_cut_cleaned_and_never_quotes_the_secret() {
        let told = refused(40125, "secret s3cr3t&% or s3cr3t%26%25 or s3cr\u{1b}3t&%\r\nX: y").sentence;
        assert!(told.contains("secret *** or *** or ***X: y"), "{told}");
        let long = format!("{}s3cr3t&%", "x".repeat(MAX_ERRMSG - 2));
        let told = refused(40125, &long).sentence;
        assert!(!told.contains("s3"), "{told}");
        assert!(told.len() < MAX_ERRMSG + 300);
    }
}
