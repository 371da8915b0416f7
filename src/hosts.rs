//! The closed list of hosts that a call may be meant for: [`Hosts`].
//!
//! An app that has no base URL to set comes with the name of a host: in an absolute target, in a CONNECT, or in the
//! name its TLS asks for. SECURITY: whatever the name, calls go to `upstream` alone; the list decides whom we speak
//! for, so that nobody's call to another host is answered here, and no certificate names another host.

use std::net::IpAddr;
use std::sync::Arc;

use crate::origin::Origin;

/// WeChat's API and its other entries (`wechat-api.md` 1): each serves the same calls.
const WECHAT: [&str; 5] = [
    "api.weixin.qq.com",
    "api2.weixin.qq.com",
    "sh.api.weixin.qq.com",
    "sz.api.weixin.qq.com",
    "hk.api.weixin.qq.com",
];

/// The hosts we speak for. Cheap to clone; never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hosts(Arc<List>);

#[derive(Debug, PartialEq, Eq)]
struct List {
    /// Names in lower case, without a dot at the end.
    names: Vec<String>,
    /// The upstream where it is an address or this machine: calls may be meant for it, certificates are not.
    address: Option<String>,
    /// The upstream's port.
    port: u16,
}

impl Default for Hosts {
    fn default() -> Self {
        let names = WECHAT.map(str::to_owned).to_vec();
        Self(Arc::new(List { names, address: None, port: 443 }))
    }
}

impl Hosts {
    /// WeChat's own hosts, the upstream's, and what the operator adds (read by [`parse_name`]).
    #[must_use]
    pub fn new(upstream: &Origin, more: Vec<String>) -> Self {
        let mut names = WECHAT.map(str::to_owned).to_vec();
        let mut add = |name: String| {
            if !names.contains(&name) {
                names.push(name);
            }
        };
        let host = upstream.host().trim_end_matches('.').to_ascii_lowercase();
        let address = if upstream.is_loopback() || host.parse::<IpAddr>().is_ok() {
            Some(host)
        } else {
            add(host);
            None
        };
        more.into_iter().for_each(add);
        Self(Arc::new(List { names, address, port: upstream.port() }))
    }

    /// Whether a call to this `host[:port]` is one we speak for. The port is absent, its scheme's own, or the
    /// upstream's.
    #[must_use]
    pub fn takes(&self, authority: &str, scheme_port: u16) -> bool {
        split(authority).is_some_and(|(host, port)| {
            let port = port.unwrap_or(scheme_port);
            port == self.0.port && self.has(host) || port == scheme_port && self.certifies(host)
        })
    }

    /// Whether a `Host` header names a host that a certificate of ours is good for, whatever the port: that is how the
    /// app got here, be it by a redirected one.
    #[must_use]
    pub fn certifies_host(&self, authority: &str) -> bool {
        split(authority).is_some_and(|(host, _)| self.certifies(host))
    }

    /// Whether a certificate of ours is good for this name.
    #[must_use]
    pub fn certifies(&self, name: &str) -> bool {
        let name = without_dot(name);
        self.0.names.iter().any(|known| known.eq_ignore_ascii_case(name))
    }

    /// The names a certificate of ours is good for.
    #[must_use]
    pub fn certified(&self) -> &[String] {
        &self.0.names
    }

    fn has(&self, host: &str) -> bool {
        self.certifies(host)
            || self.0.address.as_deref().is_some_and(|known| known.eq_ignore_ascii_case(without_dot(host)))
    }
}

/// A `Host` as text, if it may be one.
#[must_use]
pub fn text(host: &[u8]) -> Option<&str> {
    host.is_ascii().then(|| std::str::from_utf8(host).ok())?
}

/// `host[:port]` as its two parts, an IPv6 address without its brackets. `None` for anything more or less, user info
/// above all: `api.weixin.qq.com@evil.example` is meant for evil.example.
#[must_use]
pub fn split(authority: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, port) = rest.split_once(']')?;
        (host, if port.is_empty() { None } else { Some(port.strip_prefix(':')?) })
    } else {
        match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        }
    };
    if host.is_empty() || !host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:".contains(&b)) {
        return None;
    }
    let port = match port {
        None => None,
        // Not the number's own parser alone: it takes a sign.
        Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => Some(port.parse().ok()?),
        Some(_) => return None,
    };
    Some((host, port))
}

/// A host name as the list holds it.
///
/// # Errors
/// A sentence with the remedy. No wildcards: one would make the CA good for hosts that nobody named.
pub fn parse_name(text: &str) -> Result<String, String> {
    let remedy = "write names such as gateway.example.com, with commas between them";
    let name = without_dot(text.trim()).to_ascii_lowercase();
    if name.contains('*') {
        return Err(format!("{name} is a wildcard, and the list of hosts is closed; {remedy}"));
    }
    if name.parse::<IpAddr>().is_ok() {
        return Err(format!("{name} is an address, and certificates are made for names only; {remedy}"));
    }
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // A last label of digits is an address to some resolvers (127.1).
    let last = name.rsplit('.').next().unwrap_or_default();
    if name.len() > 253 || !name.split('.').all(label) || last.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("{name:?} is not a host name; {remedy}"));
    }
    Ok(name)
}

/// `api.weixin.qq.com.` is the same host to DNS.
fn without_dot(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(upstream: &str, more: &[&str]) -> Hosts {
        Hosts::new(&Origin::parse(upstream).unwrap(), more.iter().map(|n| parse_name(n).unwrap()).collect())
    }

    #[test]
    fn the_list_is_wechats_hosts_the_upstreams_and_the_operators() {
        let hosts = hosts("https://gateway.example.com:8443", &["Other.Example.com."]);
        for good in [
            "api.weixin.qq.com",
            "API.weixin.QQ.com",
            "api.weixin.qq.com.",
            "api.weixin.qq.com:443",
            "api.weixin.qq.com.:443",
            "api2.weixin.qq.com",
            "sh.api.weixin.qq.com",
            "sz.api.weixin.qq.com",
            "hk.api.weixin.qq.com",
            "gateway.example.com",
            "gateway.example.com:8443",
            "other.example.com",
        ] {
            assert!(hosts.takes(good, 443), "{good}");
        }
        assert!(hosts.takes("api.weixin.qq.com:80", 80));
        assert_eq!(hosts.certified().len(), 7);
    }

    #[test]
    fn nobody_else_is_on_it_however_it_is_spelled() {
        let hosts = Hosts::default();
        for bad in [
            "",
            ":443",
            "qq.com",
            "weixin.qq.com",
            "mp.weixin.qq.com",
            "x.api.weixin.qq.com",
            "api.weixin.qq.com.evil.example",
            "api.weixin.qq.com..",
            "api.weixin.qq.com@evil.example",
            "evil.example@api.weixin.qq.com",
            "a:b@api.weixin.qq.com",
            "api.weixin.qq.com:",
            "api.weixin.qq.com:+443",
            "api.weixin.qq.com:22",
            "api.weixin.qq.com:443:443",
            "api.weixin.qq.com:65979",
            "api.weixin.qq.com ",
            "api.weixin.qq.com/",
            "api.weixin.qq.com%00",
            "*.weixin.qq.com",
            "[api.weixin.qq.com]x",
            "127.0.0.1",
            "localhost",
        ] {
            assert!(!hosts.takes(bad, 443), "{bad:?}");
        }
    }

    #[test]
    fn a_test_upstream_is_meant_by_its_address_and_gets_no_certificate() {
        let local = hosts("http://127.0.0.1:7300", &[]);
        assert!(local.takes("127.0.0.1:7300", 80) && !local.takes("127.0.0.1", 80));
        assert!(!local.takes("127.0.0.1:7301", 80) && !local.certifies("127.0.0.1"));
        assert!(hosts("http://[::1]:7300", &[]).takes("[::1]:7300", 80));
        let named = hosts("http://localhost:7300", &[]);
        assert!(named.takes("localhost:7300", 80) && !named.certifies("localhost"));
    }

    #[test]
    fn a_name_of_the_operators_is_one_host() {
        assert_eq!(parse_name(" Gateway.Example.com. ").unwrap(), "gateway.example.com");
        assert_eq!(parse_name("wechat").unwrap(), "wechat");
        for bad in [
            "",
            ".",
            "*",
            "*.qq.com",
            "a..b",
            "-a.b",
            "a_b",
            "a b",
            "a:80",
            "https://a",
            "127.1",
            "::1",
            "10.0.0.1",
        ] {
            assert!(parse_name(bad).unwrap_err().contains("; write names"), "{bad:?}");
        }
        assert!(parse_name(&"a.".repeat(200)).is_err());
    }
}
