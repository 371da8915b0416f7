//! Reads what keeps others out and the sidecar within its limits: lists of rules, whom the gate lets in, client keys, the
//! Unix socket, how much at once, pins.

use std::net::{Ipv4Addr, SocketAddr};

use http::{HeaderName, HeaderValue, header};

use super::file::Table;
use super::problem::{Place, Problem};
use super::reader::{self, Reader, take};
use super::settings::{Kind, get};
use super::values::{self, Parsed, Refusal};
use crate::account::{self, Terms};
use crate::clients::Keyring;
use crate::hosts::Hosts;
use crate::policy::{DEFAULT, Policy, Rule};
use crate::proxy::{admission, gate};
use crate::rates::{Rate, Rates};
use crate::server::local;
use crate::slots::Slots;
use crate::tls::pins::Pins;

/// An account's terms as they are written, from which every account gets its own.
#[derive(Clone, Default)]
pub(super) struct Lists {
    allow: Vec<Rule>,
    deny: Vec<Rule>,
    rates: Vec<Rate>,
    calls: Option<usize>,
}

impl Lists {
    /// Those of a table; what it does not have is `inherited`.
    pub(super) fn read(reader: &mut Reader, table: &Table, inherited: Option<&Self>) -> Self {
        let mut lists = inherited.cloned().unwrap_or_else(|| Self {
            // A test reads every default.
            allow: Rule::parse_list(DEFAULT).unwrap_or_default(),
            ..Self::default()
        });
        let problems = &mut reader.problems;
        let mut rules = |key| Some(take(problems, key, table.get(key)?, rules).unwrap_or_default());
        if let Some(allow) = rules("allow") {
            lists.allow = allow;
        }
        if let Some(deny) = rules("deny") {
            lists.deny = deny;
        }
        if let Some(written) = table.get("rates") {
            lists.rates = take(problems, "rates", written, rates).unwrap_or_default();
        }
        if let Some(written) = table.get("max_account_calls") {
            let Kind::Count(least, most) = get("max_account_calls").kind else {
                unreachable!("it is a number")
            };
            lists.calls =
                take(problems, "max_account_calls", written, |text| values::count(text, least, most));
        }
        lists
    }

    /// One account's terms, counted on their own.
    pub(super) fn terms(&self) -> Terms {
        Terms {
            policy: Policy::new(self.allow.clone(), self.deny.clone()),
            rates: Rates::new(self.rates.clone()),
            calls: self.calls.map_or_else(Slots::unlimited, Slots::new),
        }
    }
}

/// Where apps call: an address, or a Unix socket, beside which the address says nothing.
pub(super) fn listen(reader: &mut Reader) -> (Option<SocketAddr>, Option<local::Config>) {
    let place = reader.place("listen");
    let listen = reader.value("listen", |text| match text.strip_prefix("unix:") {
        Some(path) => {
            let path = reader::path(path, &place)?;
            local::check_path(&path).map_err(|told| Refusal::from_sentence(&told))?;
            Ok((SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), Some(path)))
        }
        None => values::listen(text).map(|address| (address, None)),
    });
    let mode = reader.value("listen_mode", mode);
    let uids = reader.value("listen_uids", uids);
    let Some((address, path)) = listen else { return (None, None) };
    if path.is_none() {
        for key in ["listen_mode", "listen_uids"] {
            if reader.sources.values.contains_key(key) {
                reader.problems.push(Problem::new(
                    key,
                    reader.place(key),
                    "It is about a Unix socket, and listen is none.",
                    "give listen = \"unix:/path/of/the/socket\", or leave it out",
                ));
            }
        }
    }
    let unix = path.zip(mode).map(|(path, mode)| local::Config { path, mode, uids });
    (Some(address), unix)
}

/// Whom the gate lets in.
pub(super) fn gate(
    reader: &mut Reader,
    listen: Option<SocketAddr>,
    unix: bool,
    hosts: Option<&Hosts>,
) -> gate::Config {
    let required = reader.value("require_header", required);
    let named = reader.value("listen_hosts", values::hosts);
    // A browser cannot reach a Unix socket. Beyond loopback names are the network's affair (a Service, a gateway), unless
    // they were told.
    let asked = !unix && (named.is_some() || listen.is_none_or(|listen| listen.ip().is_loopback()));
    let names = asked.then(|| gate::Names {
        hosts: hosts.cloned().unwrap_or_default(),
        listen: named.unwrap_or_default(),
    });
    gate::Config { names, required }
}

/// Who may call, if that is asked.
pub(super) fn keyring(reader: &mut Reader, accounts: &[account::Config]) -> Option<Keyring> {
    let written = reader.sources.values.get("client_keys_file")?;
    // Without accounts there is nothing to compare with, and other problems to tell.
    if accounts.is_empty() {
        return None;
    }
    take(&mut reader.problems, "client_keys_file", written, |text| {
        let path = reader::path(text, &written.place)?;
        let accounts = accounts.iter().map(|account| account.appid.clone()).collect();
        Keyring::open(path, accounts).map_err(|told| Refusal::from_sentence(&told))
    })
}

/// How much may go on at once.
pub(super) fn admission(reader: &mut Reader) -> Option<admission::Config> {
    let max_connections = reader.count("max_connections");
    let max_calls = reader.count("max_calls");
    let queue_length = reader.count("queue_length");
    let queue_wait = reader.duration("queue_wait");
    let rate_wait = reader.duration("rate_wait");
    Some(admission::Config {
        max_connections: max_connections?,
        max_calls: max_calls?,
        queue_length: queue_length?,
        queue_wait: queue_wait?,
        rate_wait: rate_wait?,
    })
}

/// The keys one of which the upstream must show.
pub(super) fn pins(reader: &mut Reader, tls: bool) -> Pins {
    let pins = reader.value("upstream_pins", pins_of).unwrap_or_default();
    if !pins.is_empty() && !tls {
        reader.problems.push(Problem::new(
            "upstream_pins",
            reader.place("upstream_pins"),
            "The upstream is http://, which has no key to pin.",
            "leave it out",
        ));
    }
    if pins.len() == 1 {
        let place = match reader.place("upstream_pins") {
            Place::Nowhere => String::new(),
            place => format!(" ({place})"),
        };
        reader.sources.warnings.push(format!(
            "upstream_pins{place} has one pin: on the day that key is replaced no call gets through; add a backup, such \
             as the key of another CA"
        ));
    }
    pins
}

pub(super) fn core_dumps(reader: &mut Reader) -> bool {
    reader.value("core_dumps", |text| values::one_of(text, &["off", "on"])) == Some(1)
}

/// Rules with commas between them.
pub(super) fn rules(text: &str) -> Parsed<Vec<Rule>> {
    if text.trim().is_empty() {
        return Err(Refusal::new(
            "it is empty",
            "write rules such as POST /cgi-bin/message/**, or leave it out",
        ));
    }
    Rule::parse_list(text).map_err(|told| Refusal::from_sentence(&told))
}

/// Limits with commas between them.
pub(super) fn rates(text: &str) -> Parsed<Vec<Rate>> {
    Rate::parse_list(text).map_err(|told| Refusal::from_sentence(&told))
}

/// `name: value`.
pub(super) fn required(text: &str) -> Parsed<(HeaderName, HeaderValue)> {
    let remedy = "write it as a name and a value, such as x-from-app: yes";
    // SECURITY: who knows the value is taken for the app.
    let refused = |what: &str| Refusal { hide: true, ..Refusal::new(what, remedy) };
    let (name, value) =
        text.split_once(':').ok_or_else(|| refused("it has no colon between a name and a value"))?;
    let name = HeaderName::from_bytes(name.trim().as_bytes())
        .map_err(|_| refused("what stands before the colon is not the name of a header"))?;
    let value = value.trim();
    let plain = !value.is_empty() && value.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
    let value = HeaderValue::from_str(value)
        .ok()
        .filter(|_| plain)
        .ok_or_else(|| refused("what stands behind the colon is not the value of a header"))?;
    // What clients and proxies write by themselves says nothing about who called.
    let common = [
        header::HOST,
        header::CONTENT_LENGTH,
        header::CONTENT_TYPE,
        header::TRANSFER_ENCODING,
        header::CONNECTION,
        header::ACCEPT,
        header::USER_AGENT,
        header::ORIGIN,
        header::EXPECT,
    ];
    if common.contains(&name) {
        return Err(refused("it is a header that every client sends"));
    }
    Ok((name, value))
}

/// Permissions, as chmod takes them.
pub(super) fn mode(text: &str) -> Parsed<u32> {
    let octal = (3..=4).contains(&text.len()) && text.bytes().all(|b| matches!(b, b'0'..=b'7'));
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| octal && *mode <= 0o777);
    mode.ok_or_else(|| {
        Refusal::new(
            "it is not a file's permissions in octal",
            "give 0600 (the owner), 0660 (the group, too) or 0666",
        )
    })
}

/// Numbers of users, with commas between them.
pub(super) fn uids(text: &str) -> Parsed<Vec<u32>> {
    let uids: Result<Vec<u32>, _> = text.split(',').map(|uid| uid.trim().parse()).collect();
    uids.map_err(|_| {
        Refusal::new("it is not a list of users by number", "give 1000, or 1000,1001; `id -u NAME` tells it")
    })
}

/// Pins with commas between them.
pub(super) fn pins_of(text: &str) -> Parsed<Pins> {
    Pins::parse(text).map_err(|told| Refusal::from_sentence(&told))
}
