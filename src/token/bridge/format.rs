//! Pure: under which key and in which bytes an SDK keeps its token in Redis, so that ours can be written and its own
//! be read.
//!
//! Read from the SDKs' source: WxJava 3e48dc7 (`WxMpRedisConfigImpl`, `WxMaRedisBetterConfigImpl`), EasyWeChat
//! 7a93b80 (`OfficialAccount/AccessToken.php`, with Symfony's `DefaultMarshaller`), silenceper/wechat 1797041
//! (`credential/default_access_token.go`), PowerWeChat 38a5032 (`src/kernel/accessToken.go`), wechatpy 1.8.18 and
//! 2.0.0a26 (`client/base.py`, `session/redisstorage.py`).

use std::fmt::Write as _;
use std::time::Duration;

use md5::{Digest, Md5};
use serde::Deserialize;
use serde_json::json;
use zeroize::Zeroizing;

use crate::credentials::{AppId, Secret};

/// Taken off the life of a token, so that whoever reads it has time to use it. Less than the four minutes that every
/// source renews ahead, so that a value is replaced and never missing.
const MARGIN: Duration = Duration::from_secs(60);

/// The longest key or prefix that is taken.
const MAX_ARGUMENT: usize = 256;

/// The formats, by the words of the setting `bridge`.
const KNOWN: &[Known] = &[
    Known::new("wxjava-mp", "{}:access_token:{appid}", Argument::Prefix("wx"), Shape::Plain),
    Known::new("wxjava-miniapp", "{}:access_token:{appid}", Argument::Prefix("wa"), Shape::Plain),
    Known::new("easywechat", "{}", Argument::Key, Shape::Php),
    Known::new(
        "silenceper-mp",
        "gowechat_officialaccount__access_token_{appid}",
        Argument::None,
        Shape::Plain,
    ),
    Known::new(
        "silenceper-mp-stable",
        "gowechat_officialaccount__stable_access_token_{appid}",
        Argument::None,
        Shape::Plain,
    ),
    Known::new(
        "silenceper-miniapp",
        "gowechat_miniprogram__access_token_{appid}",
        Argument::None,
        Shape::Plain,
    ),
    Known::new(
        "silenceper-miniapp-stable",
        "gowechat_miniprogram__stable_access_token_{appid}",
        Argument::None,
        Shape::Plain,
    ),
    // neededText is empty for official accounts and mini programs.
    Known::new("powerwechat", "powerwechat.access_token.{md5}", Argument::None, Shape::JsonObject),
    Known::new("wechatpy", "{}:{appid}_access_token", Argument::Prefix("wechatpy"), Shape::JsonString),
];

struct Known {
    name: &'static str,
    /// With `{}` where the argument stands.
    key: &'static str,
    argument: Argument,
    shape: Shape,
}

impl Known {
    const fn new(name: &'static str, key: &'static str, argument: Argument, shape: Shape) -> Self {
        Self { name, key, argument, shape }
    }
}

/// What may follow a format's word, after `=`.
#[derive(Clone, Copy)]
enum Argument {
    /// Nothing.
    None,
    /// The prefix its app was told to use, instead of this one.
    Prefix(&'static str),
    /// The whole key. Always asked for, because EasyWeChat's own holds the AppSecret.
    Key,
}

/// How the token stands in the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// `TOKEN`
    Plain,
    /// `"TOKEN"`, and under another key when it ends.
    JsonString,
    /// `{"access_token":"TOKEN","expires_in":7140}`
    JsonObject,
    /// `s:5:"TOKEN";`, as PHP's `serialize` writes it. Symfony reads it also where it writes igbinary.
    Php,
}

/// One SDK's way to keep a token in Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Format {
    name: &'static str,
    /// With `{appid}`, `{secret}` or `{md5}` in it.
    key: String,
    shape: Shape,
}

/// A key and its value.
pub(super) struct Entry {
    pub(super) key: Zeroizing<String>,
    pub(super) value: Zeroizing<String>,
}

impl Format {
    /// Takes one part of the setting: a word, or `word=argument`.
    ///
    /// # Errors
    /// A sentence with the remedy, which does not repeat the part.
    pub fn parse(part: &str) -> Result<Self, String> {
        let (name, argument) = match part.split_once('=') {
            Some((name, argument)) => (name, Some(argument)),
            None => (part, None),
        };
        let Some(known) = KNOWN.iter().find(|known| known.name == name) else {
            let names: Vec<_> = Self::names().collect();
            return Err(format!("it names no format that is known; there are {}", names.join(", ")));
        };
        if let Some(argument) = argument {
            check(argument)?;
        }
        let argument = match (known.argument, argument) {
            (Argument::Prefix(default), argument) => argument.unwrap_or(default),
            (Argument::None, None) => "",
            (Argument::None, Some(_)) => {
                return Err(format!("the key of {name} is fixed; write {name} without =…"));
            }
            (Argument::Key, Some(key)) => key,
            (Argument::Key, None) => {
                return Err(format!(
                    "{name} keeps the AppSecret in its key unless it is given another; write {name}=KEY with the \
                     key that the app gives to setKey(), in which {{appid}} may stand"
                ));
            }
        };
        if matches!(known.argument, Argument::Prefix(_)) && argument.contains(['{', '}']) {
            return Err(format!("a prefix is taken as it is; write {name}=PREFIX without {{ and }}"));
        }
        Ok(Self { name: known.name, key: known.key.replacen("{}", argument, 1), shape: known.shape })
    }

    /// Every word of the setting.
    pub fn names() -> impl Iterator<Item = &'static str> {
        KNOWN.iter().map(|known| known.name)
    }

    /// Its word.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Its word and its key, without a secret, for a person.
    #[must_use]
    pub fn shown(&self, appid: &AppId) -> String {
        format!("{} ({})", self.name, self.key.replace("{appid}", appid.as_str()))
    }

    /// Whether the AppSecret itself stands in its key.
    #[must_use]
    pub fn has_secret_in_key(&self) -> bool {
        self.key.contains("{secret}")
    }

    /// The key of an account; `None` where it is made with the AppSecret and there is none. SECURITY: it may have the
    /// AppSecret in it.
    #[must_use]
    pub fn key(&self, appid: &AppId, secret: Option<&Secret>) -> Option<Zeroizing<String>> {
        let key = Zeroizing::new(self.key.replace("{appid}", appid.as_str()));
        if !key.contains("{md5}") && !key.contains("{secret}") {
            return Some(key);
        }
        let secret = secret?.expose();
        let mut digits = String::with_capacity(32);
        for byte in Md5::new().chain_update(appid.as_str()).chain_update(secret).finalize() {
            // Writing to a String cannot fail.
            let _ = write!(digits, "{byte:02x}");
        }
        Some(Zeroizing::new(key.replace("{md5}", &digits).replace("{secret}", secret)))
    }

    /// What is to be set, in this order, so that the token is found under `key` for the next `ttl` seconds. `now` is the
    /// time of day, in seconds since 1970.
    pub(super) fn entries(&self, key: &str, token: &str, ttl: u64, now: u64) -> Vec<Entry> {
        let entry = |key: String, value: String| Entry { key: key.into(), value: value.into() };
        let value = match self.shape {
            Shape::Plain => token.to_owned(),
            Shape::JsonString => json!(token).to_string(),
            Shape::JsonObject => json!({ "access_token": token, "expires_in": ttl }).to_string(),
            Shape::Php => format!("s:{}:\"{token}\";", token.len()),
        };
        // When it ends first: whoever reads in between then has the old token for a moment more, and does not fetch.
        let companion = self.companion(key).map(|key| entry(key, (now + ttl).to_string()));
        companion.into_iter().chain([entry(key.to_owned(), value)]).collect()
    }

    /// The other key that belongs to `key`. wechatpy 2 takes a token for good when this is missing, and for dead when
    /// less than 60 s are left; wechatpy 1.8 does not know it.
    pub(super) fn companion(&self, key: &str) -> Option<String> {
        (self.shape == Shape::JsonString).then(|| format!("{key}_expires_at"))
    }

    /// The token in a value, if it is one of this format.
    #[must_use]
    pub fn token(&self, value: &[u8]) -> Option<Zeroizing<String>> {
        #[derive(Deserialize)]
        struct Object {
            access_token: String,
        }
        let text = std::str::from_utf8(value).ok()?;
        match self.shape {
            Shape::Plain => Some(Zeroizing::new(text.to_owned())),
            Shape::JsonString => serde_json::from_str(text).ok().map(Zeroizing::new),
            Shape::JsonObject => {
                serde_json::from_str(text).ok().map(|object: Object| Zeroizing::new(object.access_token))
            }
            Shape::Php => {
                let (length, rest) = text.strip_prefix("s:")?.split_once(":\"")?;
                let token = rest.strip_suffix("\";")?;
                (length.parse() == Ok(token.len())).then(|| Zeroizing::new(token.to_owned()))
            }
        }
    }

    /// Whether a token of an app may be taken from it: from the plain and the JSON forms.
    #[must_use]
    pub fn is_adoptable(&self) -> bool {
        self.shape != Shape::Php
    }
}

/// How long a token with this `life`, of which this is `remaining`, may be found, in seconds: always less, and `None`
/// where that is none. One that lives for seconds keeps a quarter of its life to be used in.
pub(super) fn ttl(life: Duration, remaining: Duration) -> Option<u64> {
    let margin = MARGIN.min(life / 4);
    Some(remaining.saturating_sub(margin).as_secs()).filter(|&ttl| ttl > 0)
}

/// Refuses what no key or prefix can be.
fn check(argument: &str) -> Result<(), String> {
    if argument.is_empty() {
        return Err("nothing stands after its =; write the key or the prefix there".to_owned());
    }
    if argument.len() > MAX_ARGUMENT {
        return Err(format!("a key is longer than {MAX_ARGUMENT} characters; give a shorter one"));
    }
    if !argument.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(
            "a key has white space, a control or a non-ASCII character inside; write it without".to_owned()
        );
    }
    let without = argument.replace("{appid}", "").replace("{secret}", "");
    if without.contains(['{', '}']) {
        return Err(
            "a key has { or } in it; only {appid} and {secret} are filled in, write it without others"
                .to_owned(),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "50_AbC-dEf_0123456789012345678901234567890123456789";

    fn account() -> (AppId, Secret) {
        (AppId::parse("wxAPPID").unwrap(), Secret::parse("5ec2e7").unwrap())
    }

    /// The key and the value, as text, and what comes with them.
    fn written(setting: &str) -> Vec<(String, String)> {
        let (appid, secret) = account();
        let format = Format::parse(setting).unwrap();
        let key = format.key(&appid, Some(&secret)).unwrap();
        let entries = format.entries(&key, TOKEN, 7140, 1_700_000_000);
        entries.into_iter().map(|entry| (entry.key.to_string(), entry.value.to_string())).collect()
    }

    #[test]
    fn every_format_is_written_as_its_sdk_reads_it() {
        let php = format!("s:51:\"{TOKEN}\";");
        let json = format!("{{\"access_token\":\"{TOKEN}\",\"expires_in\":7140}}");
        for (setting, key, value) in [
            ("wxjava-mp", "wx:access_token:wxAPPID", TOKEN),
            ("wxjava-mp=wx:mp:multi", "wx:mp:multi:access_token:wxAPPID", TOKEN),
            ("wxjava-miniapp", "wa:access_token:wxAPPID", TOKEN),
            ("silenceper-mp", "gowechat_officialaccount__access_token_wxAPPID", TOKEN),
            ("silenceper-mp-stable", "gowechat_officialaccount__stable_access_token_wxAPPID", TOKEN),
            ("silenceper-miniapp", "gowechat_miniprogram__access_token_wxAPPID", TOKEN),
            ("silenceper-miniapp-stable", "gowechat_miniprogram__stable_access_token_wxAPPID", TOKEN),
            ("easywechat=team.token", "team.token", &php),
            ("easywechat=token.{appid}", "token.wxAPPID", &php),
            (
                "easywechat=official_account.access_token.{appid}.{secret}.0",
                "official_account.access_token.wxAPPID.5ec2e7.0",
                &php,
            ),
            (
                "easywechat=mini_app.access_token.{appid}.{secret}.1",
                "mini_app.access_token.wxAPPID.5ec2e7.1",
                &php,
            ),
            // md5 of wxAPPID5ec2e7
            ("powerwechat", "powerwechat.access_token.cf5f537f15af8ef790714b1a543fd82c", &json),
        ] {
            assert_eq!(written(setting), [(key.to_owned(), value.to_owned())], "{setting}");
        }
        assert_eq!(
            written("wechatpy"),
            [
                ("wechatpy:wxAPPID_access_token_expires_at".to_owned(), "1700007140".to_owned()),
                ("wechatpy:wxAPPID_access_token".to_owned(), format!("\"{TOKEN}\"")),
            ]
        );
        assert_eq!(written("wechatpy=my:app")[1].0, "my:app:wxAPPID_access_token");
    }

    #[test]
    fn powerwechats_key_is_the_one_of_its_code_and_not_of_its_comment() {
        let (appid, secret) = (AppId::parse("testappid").unwrap(), Secret::parse("testsecret").unwrap());
        let format = Format::parse("powerwechat").unwrap();
        let key = format.key(&appid, Some(&secret)).unwrap();
        // Its comment shows edc5f618…, which is the digest with a newline at the end; its code adds none.
        assert_eq!(*key, "powerwechat.access_token.4ed6a2e3bfccdf98beb48489b94cf486");
        assert_eq!(format.key(&appid, None), None, "a sidecar without the AppSecret cannot know it");
        assert!(Format::parse("wechatpy").unwrap().key(&appid, None).is_some(), "and can know others");
    }

    #[test]
    fn what_is_written_is_read_again() {
        for name in Format::names() {
            let setting = if name == "easywechat" { "easywechat=a" } else { name };
            let format = Format::parse(setting).unwrap();
            for token in [TOKEN, "quote\"back\\slash", "微信"] {
                let value = format.entries("k", token, 1, 0).pop().unwrap().value;
                assert_eq!(
                    format.token(value.as_bytes()).as_deref().map(String::as_str),
                    Some(token),
                    "{name}"
                );
            }
        }
    }

    #[test]
    fn what_another_wrote_is_read_or_is_none() {
        let read = |setting: &str, value: &str| {
            Format::parse(setting).unwrap().token(value.as_bytes()).map(|token| token.to_string())
        };
        let go = r#"{"access_token":"T","expires_in":7200,"refresh_token":""}"#;
        assert_eq!(read("powerwechat", go).as_deref(), Some("T"));
        assert_eq!(read("wechatpy", " \"T\"\n").as_deref(), Some("T"));
        for (setting, value) in [
            ("powerwechat", "T"),
            ("powerwechat", r#"{"expires_in":7200}"#),
            ("powerwechat", r#"{"access_token":7,"expires_in":7200}"#),
            ("powerwechat", r#"{"access_token":"T""#),
            ("wechatpy", "T"),
            ("wechatpy", "7200"),
            ("wechatpy", "null"),
            ("easywechat=k", "T"),
            ("easywechat=k", "s:2:\"T\";"),
            ("easywechat=k", "s:1:\"T\""),
            ("easywechat=k", "s:-1:\"T\";"),
            ("easywechat=k", "i:1;"),
        ] {
            assert_eq!(read(setting, value), None, "{setting}: {value}");
        }
        assert_eq!(Format::parse("wxjava-mp").unwrap().token(b"\xff\xfe"), None);
        assert!(!Format::parse("easywechat=k").unwrap().is_adoptable());
        assert!(Format::parse("wechatpy").unwrap().is_adoptable());
    }

    #[test]
    fn a_value_lives_shorter_than_its_token_and_longer_than_no_time() {
        let late = |life, remaining| ttl(Duration::from_millis(life), Duration::from_millis(remaining));
        let of = |millis| late(millis, millis);
        assert_eq!(of(7_200_000), Some(7140));
        assert_eq!(of(301_000), Some(241), "stable_token hands out tokens with 300 s left");
        assert_eq!(of(300_000), Some(240));
        assert_eq!(of(10_000), Some(7));
        assert_eq!(of(2_000), Some(1));
        for none in [0, 1, 500, 1_000, 1_333] {
            assert_eq!(of(none), None, "{none} ms");
        }
        assert_eq!(late(7_200_000, 61_500), Some(1));
        for left in [0, 1, 30_000, 60_999] {
            assert_eq!(late(7_200_000, left), None, "it was gone, and stays so: {left} ms");
        }
        for millis in (1..20_000).chain((20_000..8_000_000).step_by(997)) {
            if let Some(ttl) = of(millis) {
                assert!(ttl > 0 && ttl * 1000 < millis, "{millis} ms: {ttl} s");
            }
        }
    }

    #[test]
    fn a_part_of_the_setting_is_told_what_is_wrong_with_it() {
        for (part, told) in [
            ("", "there are wxjava-mp, "),
            ("wxjava", "there are wxjava-mp, "),
            ("easywechat", "write easywechat=KEY"),
            ("easywechat=", "nothing stands after its ="),
            ("easywechat=a b", "white space"),
            ("easywechat={sekret}", "only {appid} and {secret}"),
            ("wxjava-mp={appid}", "without { and }"),
            ("silenceper-mp=x", "write silenceper-mp without"),
            (&format!("easywechat={}", "k".repeat(257)), "longer than 256"),
        ] {
            let sentence = Format::parse(part).unwrap_err();
            assert!(sentence.contains(told) && sentence.contains("; "), "{part}: {sentence}");
        }
        assert!(Format::parse("easywechat=a.{secret}").unwrap().has_secret_in_key());
        assert!(!Format::parse("powerwechat").unwrap().has_secret_in_key());
    }

    #[test]
    fn the_readme_tells_every_format_and_its_key() {
        let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
        for known in KNOWN {
            let key = match known.argument {
                Argument::Prefix(prefix) => known.key.replacen("{}", prefix, 1),
                Argument::None => known.key.replace("{md5}", ""),
                Argument::Key => "setKey()".to_owned(),
            };
            let is_row =
                |line: &str| line.contains(&format!("`{}", known.name)) && line.contains(&format!("`{key}"));
            assert!(readme.lines().any(is_row), "README.md: a row for {} with {key}", known.name);
        }
    }
}
