//! Where Redis is, as a user writes it: [`Address`], read from one URL.
//!
//! | Form | Meaning |
//! |---|---|
//! | `redis://[user[:password]@]host[:6379][/db]` | one server; `rediss://` is the same over TLS |
//! | `unix://[user[:password]@]/path/to.sock[?db=1]` | one server on this machine; `redis+unix://` is the same |
//! | `redis+sentinel://[…@]host[:26379],host2/master[/db]` | the primary that Sentinels name; `rediss+sentinel://` over TLS |
//! | `redis+cluster://[…@]host[:6379],host2` | a Cluster; `rediss+cluster://` over TLS |

use std::fmt;
use std::path::PathBuf;

use percent_encoding::percent_decode_str;

use crate::credentials::Secret;

/// A Redis, and who we are to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// How it is reached.
    pub(super) way: Way,
    /// Whether over TLS.
    pub(super) tls: bool,
    /// The database number.
    pub(super) db: u16,
    /// The ACL user; without one it is Redis's `default`.
    pub(super) user: Option<String>,
    /// Its password. SECURITY: prints as `***`.
    pub(super) password: Option<Secret>,
}

/// How a Redis is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Way {
    One(Node),
    Socket(PathBuf),
    Sentinels { nodes: Vec<Node>, primary: String },
    Cluster(Vec<Node>),
}

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) host: String,
    pub(super) port: u16,
}

/// What a URL of ours may begin with.
const FORMS: &str = "write redis://host:6379, rediss://host:6379 (TLS), unix:///path/to.sock, redis+sentinel://host:26379/master or redis+cluster://host:6379";

impl Address {
    /// Whether `text` means to be one.
    #[must_use]
    pub fn is_meant(text: &str) -> bool {
        ["redis", "unix", "valkey"].iter().any(|scheme| text.starts_with(scheme))
    }

    /// Reads a URL.
    ///
    /// # Errors
    /// A sentence with its remedy. SECURITY: it has no part of the text in it, which may hold a password.
    pub fn parse(text: &str) -> Result<Self, String> {
        let told = |what: &str| format!("{what}; {FORMS}");
        let (scheme, rest) = text.split_once("://").ok_or_else(|| told("it is no URL"))?;
        let (rest, query) = rest.split_once('?').map_or((rest, None), |(rest, query)| (rest, Some(query)));
        if rest.contains('#') || query.is_some_and(|query| query.contains('#')) {
            return Err(
                "it has a fragment (#…), and TLS is never switched to insecure here; leave it out".into()
            );
        }
        // A password may hold what ends an authority, if it was not escaped: the last @ ends it.
        let (credentials, rest) = match rest.rsplit_once('@') {
            Some((credentials, rest)) => (Some(credentials), rest),
            None => (None, rest),
        };
        let (user, password) = credentials.map_or(Ok((None, None)), user_and_password)?;
        let (tls, kind) = match scheme {
            "redis" | "rediss" => (scheme == "rediss", "one"),
            "unix" | "redis+unix" => (false, "socket"),
            "redis+sentinel" | "rediss+sentinel" => (scheme.starts_with("rediss"), "sentinel"),
            "redis+cluster" | "rediss+cluster" => (scheme.starts_with("rediss"), "cluster"),
            _ => return Err(told("its scheme is not one of Redis")),
        };
        if kind == "socket" {
            let db = match query {
                None => 0,
                Some(query) => number(query.strip_prefix("db=").ok_or(SOCKET_QUERY)?)?,
            };
            if !rest.starts_with('/') {
                return Err("it names no absolute path; write unix:///path/to.sock".into());
            }
            return Ok(Self { way: Way::Socket(rest.into()), tls, db, user, password });
        }
        if query.is_some() {
            return Err(told("it has a query (?…), and there is nothing to say in one"));
        }
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let default_port = if kind == "sentinel" { 26379 } else { 6379 };
        let nodes = authority.split(',').map(|node| Node::parse(node, default_port));
        let mut nodes = nodes.collect::<Result<Vec<_>, _>>()?;
        let path = path.trim_end_matches('/');
        let (way, db) = match kind {
            "sentinel" => {
                let (primary, db) = path.split_once('/').unwrap_or((path, ""));
                if primary.is_empty()
                    || !primary.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b))
                {
                    return Err("it does not say which master the Sentinels are asked for; write redis+sentinel://host:26379/mymaster".into());
                }
                (Way::Sentinels { nodes, primary: primary.to_owned() }, db)
            }
            "cluster" if !path.is_empty() => {
                return Err("a Cluster has no databases; leave the path out".into());
            }
            "cluster" => (Way::Cluster(nodes), ""),
            _ if nodes.len() > 1 => {
                return Err("it names several hosts; write redis+cluster:// or redis+sentinel:// if that is what they are".into());
            }
            _ => (Way::One(nodes.remove(0)), path),
        };
        let db = if db.is_empty() { 0 } else { number(db)? };
        Ok(Self { way, tls, db, user, password })
    }

    /// Whether a password is in it.
    #[must_use]
    pub fn has_password(&self) -> bool {
        self.password.is_some()
    }

    /// Whether it is reached over TLS.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// Whether it crosses a network without TLS.
    #[must_use]
    pub fn is_in_clear(&self) -> bool {
        let is_here = |node: &Node| {
            node.host == "localhost" || node.host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
        };
        match &self.way {
            _ if self.tls => false,
            Way::Socket(_) => false,
            Way::One(node) => !is_here(node),
            Way::Sentinels { nodes, .. } | Way::Cluster(nodes) => !nodes.iter().all(is_here),
        }
    }

    /// The same with a password.
    #[must_use]
    pub fn with_password(self, password: Secret) -> Self {
        Self { password: Some(password), ..self }
    }
}

/// What a socket's URL may have behind its path.
const SOCKET_QUERY: &str =
    "only the database may stand in its query; write unix://user:password@/path/to.sock?db=1";

impl Node {
    fn parse(text: &str, default_port: u16) -> Result<Self, String> {
        const FORM: &str = "one of its hosts is not a host and a port; write them as host:6379 or [::1]:6379";
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']').ok_or(FORM)?;
                let _: std::net::Ipv6Addr = host.parse().map_err(|_| FORM)?;
                (host, rest.strip_prefix(':').or_else(|| rest.is_empty().then_some("")).ok_or(FORM)?)
            }
            None => text.split_once(':').unwrap_or((text, "")),
        };
        let sound = |b: u8| b.is_ascii_alphanumeric() || b".-_:".contains(&b);
        if host.is_empty() || !host.bytes().all(sound) {
            return Err(FORM.to_owned());
        }
        let port = if port.is_empty() { Ok(default_port) } else { port.parse().map_err(|_| FORM) };
        Ok(Self { host: host.to_owned(), port: port?.max(1) })
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// As in logs and messages: SECURITY: without user and password.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |nodes: &[Node]| nodes.iter().map(Node::to_string).collect::<Vec<_>>().join(",");
        let s = if self.tls { "s" } else { "" };
        match &self.way {
            Way::One(node) => write!(f, "redis{s}://{node}/{}", self.db),
            Way::Socket(path) => write!(f, "unix://{}?db={}", path.display(), self.db),
            Way::Sentinels { nodes, primary } => {
                write!(f, "redis{s}+sentinel://{}/{primary}/{}", list(nodes), self.db)
            }
            Way::Cluster(nodes) => write!(f, "redis{s}+cluster://{}", list(nodes)),
        }
    }
}

fn user_and_password(text: &str) -> Result<(Option<String>, Option<Secret>), String> {
    let (user, password) = text.split_once(':').map_or((text, None), |(user, word)| (user, Some(word)));
    let decoded = |text: &str| {
        let decoded = percent_decode_str(text).decode_utf8().map(|text| text.into_owned());
        decoded.map_err(|_| "its user or password is not UTF-8 text; escape it as %XX of UTF-8".to_owned())
    };
    let user = decoded(user)?;
    let password = password.filter(|word| !word.is_empty()).map(|word| {
        let word = zeroize::Zeroizing::new(decoded(word)?);
        Secret::parse(&word).map_err(|what| {
            format!("its password cannot be used: {what}; give another, or store_password_file")
        })
    });
    Ok((Some(user).filter(|user| !user.is_empty()), password.transpose()?))
}

fn number(text: &str) -> Result<u16, String> {
    text.parse()
        .map_err(|_| "its database is not a number; write it as /0 or /5 (a socket: ?db=5)".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read_and_shown_without_its_password() {
        for (text, shown) in [
            ("redis://h", "redis://h:6379/0"),
            ("redis://h:7/3", "redis://h:7/3"),
            ("redis://h/", "redis://h:6379/0"),
            ("rediss://me:pw@h:7", "rediss://h:7/0"),
            ("redis://[::1]:7/1", "redis://[::1]:7/1"),
            ("unix:///run/r.sock", "unix:///run/r.sock?db=0"),
            ("redis+unix://me:pw@/run/r.sock?db=2", "unix:///run/r.sock?db=2"),
            ("redis+sentinel://a,b:7/mymaster", "redis+sentinel://a:26379,b:7/mymaster/0"),
            ("rediss+sentinel://:pw@a/mymaster/4", "rediss+sentinel://a:26379/mymaster/4"),
            ("redis+cluster://a:7000,b:7001", "redis+cluster://a:7000,b:7001"),
        ] {
            let address = Address::parse(text).unwrap();
            assert_eq!(address.to_string(), shown);
            assert!(!format!("{address:?}").contains("pw"), "{address:?}");
        }
    }

    #[test]
    fn who_we_are_is_unescaped() {
        let address = Address::parse("redis://us%40er:p%3a%2fw@d@h/1").unwrap();
        assert_eq!(address.user.as_deref(), Some("us@er"));
        assert_eq!(address.password.unwrap().expose(), "p:/w@d");
        let address = Address::parse("redis://:pw@h").unwrap();
        assert!(address.user.is_none() && address.has_password());
        let address = Address::parse("redis://me@h").unwrap();
        assert!(!address.has_password());
    }

    #[test]
    fn what_is_none_of_them_is_refused_without_a_word_of_it() {
        for text in [
            "redis",
            "redis:",
            "redis://",
            "redis:///1",
            "redis://h:x",
            "redis://h:70000",
            "redis://h/pw",
            "redis://h/1/2",
            "redis://a,b",
            "rediss://h#insecure",
            "redis://h?pw",
            "http://h",
            "unix://pw",
            "unix:///s?user=me&pass=pw",
            "redis+sentinel://a",
            "redis+sentinel://a/m/pw",
            "redis+cluster://a/1",
            "redis://[::1",
            "redis://[pw]:1",
            "redis://a b",
            "redis://:%ff@h",
            "redis://:p%0aw@h",
        ] {
            let told = Address::parse(text).unwrap_err();
            assert!(told.contains("; ") && !told.contains("pw"), "{text}: {told}");
        }
    }
}
