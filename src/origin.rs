//! The one place credentials may go: [`Origin`], a scheme, a host and a port, and nothing else; and [`Reach`], how
//! that host is found.
//!
//! SECURITY: `http://` is for tests and is taken on loopback only; a path, a query or user info in the setting is
//! refused, because a credential would then go somewhere other than what the operator reads.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use http::HeaderValue;
use http::uri::{Authority, Scheme, Uri};
use rustls::pki_types::ServerName;

/// `https://host[:port]`, or `http://` on loopback: where WeChat is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    tls: bool,
    host: String,
    port: u16,
    authority: Authority,
    reach: Reach,
}

/// How a connection to the origin finds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// By its name.
    #[default]
    Name,
    /// By its name, but never on this machine: a hosts file may point the name at us, and a call would go round for
    /// ever.
    NameElsewhere,
    /// At this address, whatever the name resolves to. TLS still asks for the name.
    Address(SocketAddr),
}

impl Origin {
    /// Reads an origin as a user writes it, for example `https://api.weixin.qq.com`.
    ///
    /// # Errors
    /// A sentence with the remedy.
    pub fn parse(text: &str) -> Result<Self, String> {
        let remedy = "write it as https://api.weixin.qq.com";
        let uri: Uri = text.parse().map_err(|error| format!("it is not a URL ({error}); {remedy}"))?;
        let tls = match uri.scheme() {
            Some(s) if *s == Scheme::HTTPS => true,
            Some(s) if *s == Scheme::HTTP => false,
            _ => return Err(format!("it does not begin with https://; {remedy}")),
        };
        let authority = uri.authority().ok_or_else(|| format!("it names no host; {remedy}"))?.clone();
        if authority.as_str().contains('@') {
            return Err(format!("it has a user name in it; {remedy}"));
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() || text.contains('#') {
            return Err(format!("it has a path or a query, which calls bring themselves; {remedy}"));
        }
        let host = authority.host().to_owned();
        if host.is_empty() {
            return Err(format!("it names no host; {remedy}"));
        }
        // Not authority.port(): that is None for a port that is no number, too.
        let written_port = authority.as_str().strip_prefix(&host).unwrap_or_default();
        let port = match (written_port, tls) {
            ("", true) => 443,
            ("", false) => 80,
            (port, _) => port
                .strip_prefix(':')
                .and_then(|port| port.parse().ok())
                .filter(|&port| port != 0)
                .ok_or_else(|| format!("its port is not 1 to 65535; {remedy}"))?,
        };
        let origin = Self { tls, host, port, authority, reach: Reach::Name };
        if tls && ServerName::try_from(origin.host()).is_err() {
            return Err(format!("its host is neither a DNS name nor an address; {remedy}"));
        }
        if !tls && !origin.is_loopback() {
            return Err(
                "http:// would send the access token in clear; it is for tests and taken on loopback (127.0.0.1, [::1], localhost) only; use https://".to_owned(),
            );
        }
        Ok(origin)
    }

    /// Whether the connection is TLS.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// Host name or address, an IPv6 address without its brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }

    /// Port, the scheme's own when none was written.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The `Host` header's value: as written, so `host` or `host:port`.
    #[must_use]
    pub fn host_header(&self) -> HeaderValue {
        HeaderValue::from_str(self.authority.as_str()).unwrap_or_else(|_| HeaderValue::from_static("invalid"))
    }

    /// The origin as an absolute URL in front of a path that begins with `/`.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("{self}{path}")
    }

    /// The same origin, found in this way.
    #[must_use]
    pub fn reached(self, reach: Reach) -> Self {
        Self { reach, ..self }
    }

    /// How it is found.
    #[must_use]
    pub fn reach(&self) -> Reach {
        self.reach
    }

    /// What a connection must not have come to: ourselves. A sentence, if it has.
    ///
    /// # Errors
    /// The hosts file points the name at this machine, and the remedy.
    pub fn check_peer(&self, peer: SocketAddr) -> Result<(), String> {
        if self.reach == Reach::NameElsewhere && peer.ip().to_canonical().is_loopback() {
            return Err(format!(
                "{} resolves to {}, which is this sidecar; {LOOP_REMEDY}",
                self.host,
                peer.ip()
            ));
        }
        Ok(())
    }

    /// Whether the operator named this machine: a test's WeChat.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        match self.host().parse::<IpAddr>() {
            Ok(ip) => ip.is_loopback(),
            Err(_) => self.host().eq_ignore_ascii_case("localhost"),
        }
    }
}

/// What to do when the upstream's name leads to ourselves.
pub const LOOP_REMEDY: &str = "set upstream_address to an address of the real host, or set upstream to \
     https://api2.weixin.qq.com and leave that name out of the hosts file";

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.authority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_a_scheme_a_host_and_a_port() {
        let wechat = Origin::parse("https://api.weixin.qq.com").unwrap();
        assert_eq!((wechat.is_tls(), wechat.host(), wechat.port()), (true, "api.weixin.qq.com", 443));
        assert_eq!(wechat.host_header(), "api.weixin.qq.com");
        assert_eq!(wechat.url("/cgi-bin/token"), "https://api.weixin.qq.com/cgi-bin/token");
        let local = Origin::parse("http://[::1]:8080/").unwrap();
        assert_eq!((local.is_tls(), local.host(), local.port()), (false, "::1", 8080));
        assert_eq!(local.host_header(), "[::1]:8080");
    }

    #[test]
    fn clear_text_leaves_this_machine_never() {
        for good in ["http://127.0.0.1:1", "http://localhost", "http://127.8.8.8:80"] {
            assert!(Origin::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "http://api.weixin.qq.com",
            "http://10.0.0.1",
            "http://localhost.evil.example",
            "http://127.0.0.1.evil.example",
        ] {
            assert!(Origin::parse(bad).unwrap_err().contains("loopback"), "{bad}");
        }
    }

    #[test]
    fn a_name_that_must_be_elsewhere_is_not_found_here() {
        let origin = Origin::parse("https://api.weixin.qq.com").unwrap().reached(Reach::NameElsewhere);
        for here in ["127.0.0.1:443", "127.8.8.8:1", "[::1]:443", "[::ffff:127.0.0.1]:443"] {
            assert!(
                origin.check_peer(here.parse().unwrap()).unwrap_err().contains("upstream_address"),
                "{here}"
            );
        }
        assert!(origin.check_peer("192.0.2.1:443".parse().unwrap()).is_ok());
        assert!(origin.reached(Reach::Name).check_peer("127.0.0.1:443".parse().unwrap()).is_ok());
    }

    #[test]
    fn what_is_more_than_an_origin_is_refused() {
        for bad in [
            "",
            "api.weixin.qq.com",
            "//api.weixin.qq.com",
            "ftp://a",
            "https://",
            "https://a/path",
            "https://a?x=1",
            "https://u:p@a",
            "https://a:0",
            "https://a:99999",
            "https://a#f",
            "https://a b",
            "https://a..b",
            "https://-a",
        ] {
            assert!(Origin::parse(bad).is_err(), "{bad:?}");
        }
    }
}
