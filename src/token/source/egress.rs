//! The way out with a fixed address: [`Egress`], an HTTP proxy that token fetches alone go through.
//!
//! WeChat takes token fetches from whitelisted addresses only, and calls from anywhere (`wechat-api.md` 6), so it is
//! enough that fetches leave by one door. TLS to WeChat goes through it end to end (CONNECT): the proxy sees a host
//! name and no secret.

use std::fmt;
use std::net::IpAddr;

use http::Uri;
use percent_encoding::percent_decode_str;
use zeroize::Zeroizing;

/// `http://[user:password@]host:port`, or the same over TLS with `https://`.
///
/// SECURITY: prints without user and password.
#[derive(Clone)]
pub struct Egress {
    url: String,
    host: String,
    login: Option<(String, Zeroizing<String>)>,
}

impl Egress {
    /// Reads a proxy as a user writes it.
    ///
    /// # Errors
    /// A sentence on what is wrong and what to write instead, without user and password.
    pub fn parse(text: &str) -> Result<Self, String> {
        let remedy =
            "write it as http://proxy.example.com:3128, with user:password@ before the host if it asks";
        let uri: Uri = text.parse().map_err(|_| format!("it is not a URL; {remedy}"))?;
        let scheme = match uri.scheme_str() {
            Some("http") => "http",
            Some("https") => "https",
            _ => return Err(format!("it does not begin with http:// or https://; {remedy}")),
        };
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() || text.contains('#') {
            return Err(format!("it has a path or a query, which a proxy has not; {remedy}"));
        }
        let authority = uri.authority().ok_or_else(|| format!("it names no host; {remedy}"))?;
        let (login, address) = match authority.as_str().rsplit_once('@') {
            Some((login, address)) => (Some(login), address),
            None => (None, authority.as_str()),
        };
        let port = authority.port_u16().filter(|&port| port != 0);
        if authority.host().is_empty() || port.is_none() {
            return Err(format!("it has no host and port; {remedy}"));
        }
        let decode = |text: &str| {
            percent_decode_str(text)
                .decode_utf8()
                .ok()
                .filter(|text| !text.chars().any(char::is_control))
                .map(|text| text.into_owned())
                .ok_or_else(|| format!("its user or password is not text; {remedy}"))
        };
        let login = match login {
            Some(login) => {
                let (user, password) = login.split_once(':').unwrap_or((login, ""));
                Some((decode(user)?, Zeroizing::new(decode(password)?)))
            }
            None => None,
        };
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        Ok(Self { url: format!("{scheme}://{address}"), host, login })
    }

    /// Whether the way to it is TLS, too.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.url.starts_with("https://")
    }

    /// Whether it is on this machine.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        match self.host.parse::<IpAddr>() {
            Ok(ip) => ip.is_loopback(),
            Err(_) => self.host.eq_ignore_ascii_case("localhost"),
        }
    }

    pub(super) fn proxy(&self) -> reqwest::Result<reqwest::Proxy> {
        let proxy = reqwest::Proxy::all(&self.url)?;
        Ok(match &self.login {
            Some((user, password)) => proxy.basic_auth(user, password),
            None => proxy,
        })
    }
}

impl fmt::Display for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

impl fmt::Debug for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.url, if self.login.is_some() { " with ***" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_a_host_and_a_port_and_perhaps_a_login_that_never_prints() {
        let egress = Egress::parse("http://me:p%40ss@proxy.example.com:3128").unwrap();
        assert_eq!(egress.to_string(), "http://proxy.example.com:3128");
        assert_eq!(format!("{egress:?}"), "http://proxy.example.com:3128 with ***");
        let (user, password) = egress.login.clone().unwrap();
        assert_eq!((&user[..], &password[..]), ("me", "p@ss"));
        assert!(!egress.is_loopback());
        for (here, url) in
            [("http://[::1]:1/", "http://[::1]:1"), ("https://localhost:2", "https://localhost:2")]
        {
            let egress = Egress::parse(here).unwrap();
            assert!(egress.is_loopback() && egress.login.is_none());
            assert_eq!(egress.to_string(), url);
        }
    }

    #[test]
    fn what_is_no_proxy_is_refused_without_its_password() {
        for bad in [
            "",
            "proxy:3128",
            "socks5://proxy:1080",
            "http://proxy",
            "http://:80",
            "http://proxy:0",
            "http://proxy:99999",
            "http://proxy:80/path",
            "http://proxy:80?x=1",
            "http://me:hunter2@proxy",
            "http://me:hunter%00@proxy:80",
            "http://me:hunter2@proxy:80#x",
        ] {
            let told = Egress::parse(bad).unwrap_err();
            assert!(told.contains("; write it as") && !told.contains("hunter"), "{bad}: {told}");
        }
    }
}
