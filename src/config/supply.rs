//! Where tokens come from: WeChat, a central token server, or the store that others fill (`role`, `central*`,
//! `token_proxy`), and which of the settings exclude each other.

use std::time::Duration;

use super::problem::{Place, Problem};
use super::reader::{self, Reader, take};
use super::values::{self, Refusal};
use crate::credentials::read_secret;
use crate::origin::Origin;
use crate::token::source::{Egress, central};

/// Where tokens come from, for all accounts.
#[derive(Clone, Debug)]
pub enum Supply {
    /// WeChat, which this sidecar asks itself.
    WeChat,
    /// A central token server.
    Central(central::Config),
    /// The store, which others fill.
    Store,
}

/// Whether an account may do without an AppSecret.
pub(super) fn needs_no_secret(reader: &Reader) -> bool {
    reader.sources.values.contains_key("central") || is_follower(reader)
}

fn is_follower(reader: &Reader) -> bool {
    reader.sources.values.get("role").is_some_and(|role| *role.text == "follower")
}

/// Reads `role` and `central*`. `None` and problems when they do not go together.
pub(super) fn supply(
    reader: &mut Reader,
    connect_timeout: Option<Duration>,
    fetch_timeout: Option<Duration>,
) -> Option<Supply> {
    let follows = reader.value("role", |text| Ok(values::one_of(text, &["fetcher", "follower"])? == 1))?;
    let origin = reader.value("central", |text| {
        Origin::parse(text).map_err(|told| {
            // The origin's words are about WeChat where it shows an example.
            Refusal::from_sentence(
                &told.replace("https://api.weixin.qq.com", "https://tokens.example.com:7201"),
            )
        })
    });
    let key = reader.sources.values.get("central_key_file").and_then(|written| {
        take(&mut reader.problems, "central_key_file", written, |text| {
            let path = reader::path(text, &written.place)?;
            // SECURITY: a message about a file names its path, which here may be the key.
            if !text.contains('/') && !path.exists() && text.len() >= 16 {
                let what = "it looks like a key, not like the path of a file that holds one";
                return Err(Refusal { hide: true, ..Refusal::new(what, "name a file that holds the key") });
            }
            read_secret(&path, "key").map_err(|told| Refusal::from_sentence(&told))
        })
    });
    let roots = super::roots(reader, "central_ca_file");
    let is_set = |key: &str| reader.sources.values.contains_key(key);
    let (has_central, has_key, has_roots) =
        (is_set("central"), is_set("central_key_file"), is_set("central_ca_file"));
    let wrong = match (follows, has_central) {
        (true, true) => Some((
            "central",
            "A follower takes tokens from the store and asks nobody (role = follower).",
            "leave one of them out: role, to ask the central server, or central, to live by the store",
        )),
        (true, false) if has_memory_only(reader) => Some((
            "role",
            "A follower lives by what others put into a common store, and the store is this process's own memory.",
            "set store to the one that the fetchers use, or leave role out",
        )),
        (false, true) if !has_key => Some((
            "central_key_file",
            "The central server takes no request without a key.",
            "name a file that holds one of the keys of its central_keys_file",
        )),
        (_, false) if has_key => Some((
            "central_key_file",
            "It is the key to a central server, and there is none.",
            "set central, or leave it out",
        )),
        (_, false) if has_roots => Some((
            "central_ca_file",
            "It is for a central server, and there is none.",
            "set central, or leave it out",
        )),
        _ => None,
    };
    if let Some((key, what, remedy)) = wrong {
        reader.problems.push(Problem::new(key, reader.place(key), what, remedy));
        return None;
    }
    match (follows, has_central) {
        (true, _) => Some(Supply::Store),
        (false, false) => Some(Supply::WeChat),
        (false, true) => Some(Supply::Central(central::Config {
            origin: origin?,
            key: key?,
            roots: roots?,
            connect_timeout: connect_timeout?,
            fetch_timeout: fetch_timeout?,
        })),
    }
}

/// Whether the store is shared with nobody.
fn has_memory_only(reader: &Reader) -> bool {
    reader.sources.values.get("store").is_none_or(|store| *store.text == "memory")
}

/// Reads `token_proxy`. The outer `None` comes with a problem.
pub(super) fn egress(reader: &mut Reader, upstream: Option<&Origin>) -> Option<Option<Egress>> {
    let needless = needs_no_secret(reader);
    let Some(written) = reader.sources.values.get("token_proxy") else { return Some(None) };
    let egress = take(&mut reader.problems, "token_proxy", written, |text| {
        // SECURITY: a password, and a command line is read by every user of the machine.
        if text.contains('@') && matches!(written.place, Place::Flag(_)) {
            let what = "it has a password, and every user of this machine may read a command line";
            let remedy = "set WECHAT_SIDECAR_TOKEN_PROXY, or token_proxy in a file, instead of the flag";
            return Err(Refusal { hide: true, ..Refusal::new(what, remedy) });
        }
        // SECURITY: however it was meant, it may have a password in it.
        Egress::parse(text).map_err(|told| Refusal { hide: true, ..Refusal::from_sentence(&told) })
    })?;
    let wrong = if needless {
        Some((
            "Token fetches go through it, and with central or role = follower nothing is fetched from WeChat.",
            "leave it out here, and set it where tokens are fetched",
        ))
    } else if upstream.is_some_and(|upstream| !upstream.is_tls()) && !egress.is_loopback() {
        // SECURITY: without TLS there is no tunnel, and the proxy would be sent the AppSecret.
        Some((
            "upstream is http://, so that the AppSecret would go to the proxy in clear.",
            "use an https:// upstream, or a proxy on this machine",
        ))
    } else if egress.is_tls() && reader.sources.values.contains_key("upstream_pins") {
        Some((
            "It is an https:// proxy, whose certificate has none of the keys in upstream_pins.",
            "reach the proxy by http:// (the way to WeChat through it stays TLS), or leave upstream_pins out",
        ))
    } else {
        None
    };
    if let Some((what, remedy)) = wrong {
        reader.problems.push(Problem::new("token_proxy", reader.place("token_proxy"), what, remedy));
        return None;
    }
    Some(Some(egress))
}
