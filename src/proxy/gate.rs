//! Who is listened to at all: [`Gate`] turns away what a web page in a browser on this machine sends, what came by a
//! name that is not ours, and what lacks the header that only the app's own code adds.
//!
//! SECURITY: a port on loopback is open to every page that a browser there shows. A page's requests say so: `Origin` on
//! all that is not a plain GET, `Sec-Fetch-Site` on all to an address of loopback. What says neither is a GET to a name
//! of the page's own that was made to resolve to this machine (DNS rebinding), and there the `Host` tells.

use std::cell::RefCell;
use std::net::IpAddr;

use http::request::Parts;
use http::{HeaderName, HeaderValue, header};

use crate::clients::KEY_HEADER;
use crate::error::{Cause, Failure};
use crate::hosts::{self, Hosts};

/// Whom to listen to.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The names that requests in clear may come by; `None` for any.
    pub names: Option<Names>,
    /// A header that every request must have, with this value.
    pub required: Option<(HeaderName, HeaderValue)>,
}

/// The names of this sidecar, beside every address and `localhost`.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// WeChat's, the upstream's and those of `upstream_hosts`.
    pub hosts: Hosts,
    /// Those of `listen_hosts`.
    pub listen: Vec<String>,
}

impl Names {
    /// Whether a `Host` is one of them, whatever its port.
    fn have(&self, host: &str) -> bool {
        let Some((name, _)) = hosts::split(host) else { return false };
        let name = name.strip_suffix('.').unwrap_or(name);
        // An address cannot be made to resolve to another machine.
        name.parse::<IpAddr>().is_ok()
            || name.eq_ignore_ascii_case("localhost")
            || self.listen.iter().any(|known| known.eq_ignore_ascii_case(name))
            || self.hosts.certifies(name)
    }
}

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Turns away whoever has no business here.
#[derive(Clone, Debug)]
pub struct Gate {
    config: Config,
    private: Vec<HeaderName>,
    /// The `Host` that was last found to be a name of ours: an app's calls all have the same.
    known: RefCell<Vec<u8>>,
}

impl Gate {
    /// A gate.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let required = config.required.iter().map(|(name, _)| name.clone());
        let private = required.chain([HeaderName::from_static(KEY_HEADER)]).collect();
        Self { config, private, known: RefCell::default() }
    }

    /// The headers that are for us alone. SECURITY: whoever forwards a request leaves them out.
    #[must_use]
    pub fn private(&self) -> &[HeaderName] {
        &self.private
    }

    /// The headers by which it judges, and those that are for us alone.
    #[must_use]
    pub fn reads(&self) -> Vec<HeaderName> {
        [&[header::ORIGIN, SEC_FETCH_SITE], self.private()].concat()
    }

    /// Lets a request in that came by this `Host`. `in_clear` is false inside of TLS, where the certificate has settled the
    /// name.
    ///
    /// # Errors
    /// It comes from a web page, by a name that is not ours, or without the header.
    pub fn admit(&self, request: &Parts, host: Option<&[u8]>, in_clear: bool) -> Result<(), Failure> {
        let headers = &request.headers;
        // One by one: there are few, since hyper is given only those that are read, and to hash a name costs more.
        let from_a_page = headers.iter().any(|(name, value)| {
            // `none` is a person who typed the address.
            *name == header::ORIGIN || (*name == SEC_FETCH_SITE && value != "none")
        });
        if from_a_page {
            return Err(Failure::new(
                Cause::Browser,
                "the request comes from a web page in a browser (Origin or Sec-Fetch-Site), and no page may act as the account; nothing was sent. Call from the app's server; a proxy between that passes a browser's headers on must take these two away",
            ));
        }
        // As to an HTTP proxy, whose target is a URL, the router looks at that one.
        let to_us = in_clear && request.uri.scheme().is_none();
        if to_us && let Some(names) = &self.config.names {
            self.check_name(names, host)?;
        }
        if let Some((name, value)) = &self.config.required {
            // Once, with this value: a second one may be what a tricked app was made to add.
            let mut given = headers.get_all(name).iter();
            if given.next() != Some(value) || given.next().is_some() {
                return Err(Failure::new(
                    Cause::RequiredHeader,
                    format!(
                        "the request has no `{name}` with the value that require_header asks for; nothing was sent. Let the app's own code add the header to its WeChat calls"
                    ),
                ));
            }
        }
        Ok(())
    }

    fn check_name(&self, names: &Names, host: Option<&[u8]>) -> Result<(), Failure> {
        // HTTP/1.0 may have none, and no browser sends an empty one.
        let Some(host) = host.filter(|host| !host.is_empty()) else { return Ok(()) };
        if *self.known.borrow() == host {
            return Ok(());
        }
        let name = hosts::text(host);
        if name.is_some_and(|host| names.have(host)) {
            let mut known = self.known.borrow_mut();
            known.clear();
            known.extend_from_slice(host);
            return Ok(());
        }
        let shown = name.and_then(hosts::split).map_or("what is no name", |(host, _)| host);
        Err(Failure::new(
            Cause::Misdirected,
            format!(
                "the request is for {shown}, which is neither a name of this sidecar nor a host of the WeChat API; nothing was sent. Call 127.0.0.1 or localhost, or add the name to listen_hosts"
            ),
        ))
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn judged(gate: &Gate, headers: &[(&str, &str)]) -> Result<(), Cause> {
        judged_at("/cgi-bin/x", gate, headers)
    }

    fn judged_at(target: &str, gate: &Gate, headers: &[(&str, &str)]) -> Result<(), Cause> {
        let mut request = Request::get(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let host = headers.iter().find(|(name, _)| *name == "host").map(|(_, host)| host.as_bytes());
        gate.admit(&request.body(()).unwrap().into_parts().0, host, true).map_err(|failure| failure.cause)
    }

    #[test]
    fn a_web_page_is_known_by_what_browsers_add() {
        let gate = Gate::new(Config::default());
        for page in [
            ("origin", "https://evil.example"),
            ("origin", "null"),
            ("origin", ""),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
            ("sec-fetch-site", "same-origin"),
        ] {
            assert_eq!(judged(&gate, &[page]), Err(Cause::Browser), "{page:?}");
        }
        // What fetch() of Node.js sends, and a person who typed the address.
        for app in [("sec-fetch-mode", "cors"), ("sec-fetch-site", "none"), ("referer", "https://a.example/")]
        {
            assert!(judged(&gate, &[app]).is_ok(), "{app:?}");
        }
    }

    #[test]
    fn a_name_is_an_address_ours_or_wechats() {
        let listen = vec!["wechat-sidecar.default.svc".to_owned()];
        let gate = Gate::new(Config { names: Some(Names { listen, ..Names::default() }), required: None });
        for ours in [
            "127.0.0.1:7200",
            "127.0.0.1",
            "10.1.2.3:80",
            "[::1]:7200",
            "localhost:7200",
            "LOCALHOST",
            "localhost.",
            "api.weixin.qq.com",
            "api.weixin.qq.com:80",
            "wechat-sidecar.DEFAULT.svc:7200",
            "",
        ] {
            assert!(judged(&gate, &[("host", ours)]).is_ok(), "{ours}");
        }
        for foreign in [
            "evil.example",
            "evil.example:7200",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "localhost@evil.example",
            "api.weixin.qq.com.evil.example",
            "x.api.weixin.qq.com",
            "a b",
            "127.0.0.1 ",
            "2130706433",
            "0x7f.1",
        ] {
            assert_eq!(judged(&gate, &[("host", foreign)]), Err(Cause::Misdirected), "{foreign}");
        }
        assert!(
            judged_at("http://evil.example/", &gate, &[("host", "evil.example")]).is_ok(),
            "the router's affair"
        );
        let any = Gate::new(Config::default());
        assert!(judged(&any, &[("host", "evil.example")]).is_ok(), "any, where any is meant");
    }

    #[test]
    fn the_required_header_is_there_once_with_its_value_and_goes_no_further() {
        let required = Some((HeaderName::from_static("x-app"), HeaderValue::from_static("yes")));
        let gate = Gate::new(Config { names: None, required });
        assert_eq!(judged(&gate, &[("X-App", "yes"), ("x-other", "1")]), Ok(()));
        let private: Vec<_> = gate.private().iter().map(HeaderName::as_str).collect();
        assert_eq!(private, ["x-app", "x-wechat-sidecar-key"]);
        for bad in [
            &[][..],
            &[("x-app", "no")],
            &[("x-app", "")],
            &[("x-app", "yes"), ("x-app", "yes")],
            &[("x-app", "YES")],
        ] {
            assert_eq!(judged(&gate, bad), Err(Cause::RequiredHeader), "{bad:?}");
        }
    }
}
