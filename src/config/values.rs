//! Pure: a value's text becomes the value, or a [`Refusal`] that says what is wrong and what to write instead.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;

use crate::credentials::{AppId, Secret};
use crate::hosts;
use crate::origin::Origin;
use crate::telemetry;
use crate::token::redis;

/// Why a value cannot be used.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) what: String,
    pub(super) remedy: String,
    /// SECURITY: the value looks like a secret and must not be shown.
    pub(super) hide: bool,
}

impl Refusal {
    pub(super) fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), remedy: remedy.into(), hide: false }
    }

    /// From a sentence of a component, which ends in `; ` and the remedy.
    pub(super) fn from_sentence(sentence: &str) -> Self {
        match sentence.rsplit_once("; ") {
            Some((what, remedy)) => Self::new(what, remedy),
            None => Self::new(sentence, "correct the value"),
        }
    }
}

/// A result with the reason for a refusal.
pub(super) type Parsed<T> = Result<T, Refusal>;

/// An AppSecret is 32 hex digits; nothing else a user writes here is.
pub(super) fn looks_like_a_secret(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// An appid. SECURITY: one that looks like an AppSecret is refused: an appid is logged and stands in URLs.
pub(super) fn appid(text: &str) -> Parsed<AppId> {
    if looks_like_a_secret(text) {
        let what = "it looks like an AppSecret, not like an appid";
        let remedy = "give the appid (such as wx0123456789abcdef) here and the AppSecret as `secret`";
        return Err(Refusal { hide: true, ..Refusal::new(what, remedy) });
    }
    AppId::parse(text).map_err(|what| {
        Refusal::new(what, "copy the appid from WeChat's console, such as wx0123456789abcdef")
    })
}

/// An AppSecret.
pub(super) fn secret(text: &str) -> Parsed<Secret> {
    Secret::parse(text).map_err(|what| {
        Refusal::new(what, "copy the AppSecret from WeChat's console: 32 characters of 0-9 a-f")
    })
}

/// An address to listen on.
pub(super) fn listen(text: &str) -> Parsed<SocketAddr> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    if let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        let remedy = format!("add one, as in {}", SocketAddr::new(ip, 7200));
        return Err(Refusal::new("it has no port", remedy));
    }
    let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
    let Ok(port) = port.parse::<u16>() else {
        return Err(Refusal::new(
            "it is not an address and a port (0 to 65535)",
            "write it as 127.0.0.1:7200 or [::1]:7200",
        ));
    };
    if host.eq_ignore_ascii_case("localhost") {
        return Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    }
    let what = if host.is_empty() { "it names no address" } else { "its host is not an IP address" };
    let remedy =
        format!("write 127.0.0.1:{port} for this machine only, or 0.0.0.0:{port} for every interface");
    Err(Refusal::new(what, remedy))
}

/// WeChat.
pub(super) fn origin(text: &str) -> Parsed<Origin> {
    Origin::parse(text).map_err(|sentence| Refusal::from_sentence(&sentence))
}

/// An address to connect to, and the port where it has one.
pub(super) fn address(text: &str) -> Parsed<(IpAddr, Option<u16>)> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok((address.ip(), Some(address.port()).filter(|&port| port != 0)));
    }
    text.trim_matches(['[', ']']).parse().map(|ip| (ip, None)).map_err(|_| {
        Refusal::new(
            "it is not an IP address, with or without a port",
            "write it as 203.0.113.7 or 203.0.113.7:443; `getent ahosts api2.weixin.qq.com` finds some",
        )
    })
}

/// Host names with commas between them.
pub(super) fn hosts(text: &str) -> Parsed<Vec<String>> {
    let names: Result<Vec<_>, _> = text.split(',').map(hosts::parse_name).collect();
    let names = names.map_err(|sentence| Refusal::from_sentence(&sentence))?;
    if names.len() > MOST_HOSTS {
        return Err(Refusal::new("it has too many names", format!("give at most {MOST_HOSTS}")));
    }
    Ok(names)
}

/// Most names of the operator's: they all stand in one certificate.
const MOST_HOSTS: usize = 50;

/// One of these words; the answer is its index.
pub(super) fn one_of(text: &str, words: &[&str]) -> Parsed<usize> {
    words.iter().position(|word| *word == text).ok_or_else(|| {
        Refusal::new("it is not one of the words this setting knows", format!("give {}", words.join(" or ")))
    })
}

/// Yes or no.
pub(super) fn switch(text: &str) -> Parsed<bool> {
    one_of(text, &["false", "true"]).map(|index| index == 1)
}

/// Where tokens are kept: in memory, or at this address.
pub(super) fn store(text: &str) -> Parsed<Option<redis::Address>> {
    match text {
        "memory" => Ok(None),
        _ if redis::Address::is_meant(text) => redis::Address::parse(text).map(Some).map_err(|told| {
            // SECURITY: what is written in an odd way may have its password where no one looks for it.
            Refusal { hide: true, ..Refusal::from_sentence(&told) }
        }),
        _ => Err(Refusal {
            hide: text.contains('@'),
            ..Refusal::new("there is no such store", "give memory, or a Redis such as redis://host:6379")
        }),
    }
}

/// What keys begin with: nothing that a Cluster, an ACL pattern or a shell would read as something else.
pub(super) fn prefix(text: &str) -> Parsed<String> {
    let sound = |b: u8| b.is_ascii_alphanumeric() || b"._:-".contains(&b);
    if (1..=64).contains(&text.len()) && text.bytes().all(sound) {
        return Ok(text.to_owned());
    }
    let what = "it is not 1 to 64 characters of A-Z a-z 0-9 . _ : -";
    Err(Refusal::new(what, "write something short, such as wechat-sidecar or staging"))
}

/// What is logged.
pub(super) fn filter(text: &str) -> Parsed<String> {
    match telemetry::parse_filter(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(sentence) => Err(Refusal::from_sentence(&sentence)),
    }
}

/// A length of time with its unit.
pub(super) fn duration(text: &str, least: Duration, most: Duration) -> Parsed<Duration> {
    let bounds = || format!("give {} to {}", show_duration(least), show_duration(most));
    if text != "0" && !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        let remedy = format!("write {text}s for seconds or {text}ms for milliseconds");
        return Err(Refusal::new("it has no unit", remedy));
    }
    // 20 characters hold every duration in bounds; humantime can overflow on sums of huge ones.
    let value =
        Some(text).filter(|text| text.len() <= 20).and_then(|text| humantime::parse_duration(text).ok());
    let Some(value) = value else {
        let remedy = "write a number and its unit, such as 500ms, 2s or 5m";
        return Err(Refusal::new("it is not a length of time", remedy));
    };
    match value {
        v if v < least => Err(Refusal::new("it is too short", bounds())),
        v if v > most => Err(Refusal::new("it is too long", bounds())),
        v => Ok(v),
    }
}

/// A number of bytes, perhaps with a unit.
pub(super) fn size(text: &str, least: u64, most: u64) -> Parsed<u64> {
    let bounds = || format!("give {} to {}", show_size(least), show_size(most));
    let Ok(ByteSize(value)) = ByteSize::from_str(text) else {
        let remedy = "write a number of bytes, or one with a unit such as 64KiB, 16MiB or 1GiB";
        return Err(Refusal::new("it is not a size", remedy));
    };
    match value {
        v if v < least => Err(Refusal::new("it is too small", bounds())),
        v if v > most => Err(Refusal::new("it is too large", bounds())),
        v => Ok(v),
    }
}

/// A number.
pub(super) fn count(text: &str, least: u64, most: u64) -> Parsed<usize> {
    let value = text.parse::<u64>().ok().filter(|v| (least..=most).contains(v));
    value.and_then(|v| usize::try_from(v).ok()).ok_or_else(|| {
        Refusal::new(
            format!("it is not a whole number from {least} to {most}"),
            format!("give {least} to {most}"),
        )
    })
}

/// A duration as a user would write it.
fn show_duration(value: Duration) -> String {
    humantime::format_duration(value).to_string()
}

/// A size as a user would write it.
pub(super) fn show_size(value: u64) -> String {
    for (unit, name) in [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] {
        if value >= unit && value.is_multiple_of(unit) {
            return format!("{}{name}", value / unit);
        }
    }
    value.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::{Fallback, Kind, SETTINGS};

    fn any(kind: Kind, text: &str) -> Parsed<()> {
        match kind {
            Kind::AppId => appid(text).map(drop),
            Kind::Secret => secret(text).map(drop),
            Kind::Path => Ok(()),
            Kind::Listen => listen(text).map(drop),
            Kind::Origin => origin(text).map(drop),
            Kind::Address => address(text).map(drop),
            Kind::Hosts => hosts(text).map(drop),
            Kind::OneOf(words) => one_of(text, words).map(drop),
            Kind::Store => store(text).map(drop),
            Kind::Prefix => prefix(text).map(drop),
            Kind::Filter => filter(text).map(drop),
            Kind::Duration(least, most) => duration(text, least, most).map(drop),
            Kind::Size(least, most) => size(text, least, most).map(drop),
            Kind::Count(least, most) => count(text, least, most).map(drop),
            Kind::Switch => switch(text).map(drop),
        }
    }

    #[test]
    fn every_default_is_a_value_a_user_could_write() {
        for setting in SETTINGS {
            if let Fallback::Text(text) = setting.default {
                any(setting.kind, text).unwrap_or_else(|refusal| panic!("{}: {refusal:?}", setting.key));
            }
        }
    }

    #[test]
    fn no_kind_takes_an_empty_value() {
        for setting in SETTINGS.iter().filter(|s| s.kind != Kind::Path) {
            assert!(any(setting.kind, "").is_err(), "{}", setting.key);
        }
    }

    #[test]
    fn an_address_names_its_interface() {
        for (text, address) in [
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("[::1]:7200", "[::1]:7200"),
            ("localhost:7200", "127.0.0.1:7200"),
            ("0.0.0.0:80", "0.0.0.0:80"),
        ] {
            assert_eq!(listen(text).unwrap(), address.parse().unwrap());
        }
        for (text, remedy) in [
            (":7200", "127.0.0.1:7200 for this machine only"),
            ("7200", "127.0.0.1:7200 for this machine only"),
            ("*:7200", "0.0.0.0:7200 for every interface"),
            ("sidecar.local:80", "127.0.0.1:80"),
            ("127.0.0.1", "127.0.0.1:7200"),
            ("::1", "[::1]:7200"),
            ("127.0.0.1:70000", "127.0.0.1:7200"),
            ("http://127.0.0.1:x", "127.0.0.1:7200"),
        ] {
            let refusal = listen(text).unwrap_err();
            assert!(refusal.remedy.contains(remedy), "{text}: {refusal:?}");
        }
    }

    #[test]
    fn an_address_to_connect_to_may_leave_the_port_to_the_upstream() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(address("203.0.113.7").unwrap(), (ip("203.0.113.7"), None));
        assert_eq!(address("203.0.113.7:8443").unwrap(), (ip("203.0.113.7"), Some(8443)));
        assert_eq!(address("2001:db8::7").unwrap(), (ip("2001:db8::7"), None));
        assert_eq!(address("[2001:db8::7]").unwrap(), (ip("2001:db8::7"), None));
        assert_eq!(address("[2001:db8::7]:443").unwrap(), (ip("2001:db8::7"), Some(443)));
        for bad in ["api2.weixin.qq.com", "203.0.113.7:", "203.0.113.7:99999", "203.0.113", ":443"] {
            assert!(address(bad).unwrap_err().remedy.contains("203.0.113.7:443"), "{bad}");
        }
    }

    #[test]
    fn hosts_are_names_with_commas_between_them() {
        assert_eq!(hosts("a.example.com, B.example.com").unwrap(), ["a.example.com", "b.example.com"]);
        for bad in ["*.qq.com", "a,,b", "a b", "10.0.0.1", "a:80"] {
            assert!(hosts(bad).unwrap_err().remedy.contains("gateway.example.com"), "{bad}");
        }
    }

    #[test]
    fn a_duration_has_a_unit_and_bounds() {
        let read = |text| duration(text, Duration::from_millis(1), Duration::from_secs(3600));
        assert_eq!(read("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(read("1m 30s").unwrap(), Duration::from_secs(90));
        assert_eq!(read("1.5s").unwrap(), Duration::from_millis(1500));
        assert_eq!(read("1h").unwrap(), Duration::from_secs(3600));
        assert!(read("5").unwrap_err().remedy.contains("5s for seconds"));
        assert_eq!(read("0").unwrap_err().remedy, "give 1ms to 1h");
        assert_eq!(read("61m").unwrap_err().what, "it is too long");
        for bad in ["-1s", "s", "five", "5 apples", "18446744073709551615s 1000ms"] {
            assert_eq!(read(bad).unwrap_err().what, "it is not a length of time", "{bad}");
        }
        assert_eq!(duration("0", Duration::ZERO, Duration::MAX).unwrap(), Duration::ZERO);
    }

    #[test]
    fn a_size_is_bytes_or_has_a_unit() {
        let read = |text| size(text, 1024, 1 << 20);
        assert_eq!(read("16KiB").unwrap(), 16 << 10);
        assert_eq!(read("1024").unwrap(), 1024);
        assert_eq!(read("1 MiB").unwrap(), 1 << 20);
        assert_eq!(read("1023").unwrap_err().remedy, "give 1KiB to 1MiB");
        assert_eq!(read("99999999999999GiB").unwrap_err().what, "it is too large");
        for bad in ["-1", "big", "1 XB", "0x10"] {
            assert_eq!(read(bad).unwrap_err().what, "it is not a size", "{bad}");
        }
    }

    #[test]
    fn an_appid_that_looks_like_a_secret_is_not_shown() {
        assert!(appid("0123456789abcdef0123456789abcdef").unwrap_err().hide);
        assert!(!appid("wx 1").unwrap_err().hide);
    }
}
