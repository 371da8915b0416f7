//! `bridge` and what goes with it: for which apps that have yet to move, in which Redis, and whether theirs is taken.

use zeroize::Zeroizing;

use super::problem::{Place, Problem};
use super::reader::Reader;
use super::settings::get;
use super::values::{self, Parsed, Refusal, looks_like_a_secret};
use crate::account;
use crate::token::bridge::Bridge;
use crate::token::bridge::format::Format;
use crate::token::{redis, store};

/// Where the bridge of the accounts that have one leads.
#[derive(Clone, Debug)]
pub struct Config {
    /// The Redis of the apps; `None` where it is the store's.
    pub server: Option<redis::Config>,
    /// Whether a token that an app fetched is taken instead of fetching another.
    pub adopt: bool,
}

/// The formats, with commas between them; none for `none`.
pub(super) fn formats(text: &str) -> Parsed<Vec<Format>> {
    if text == "none" {
        return Ok(Vec::new());
    }
    // SECURITY: EasyWeChat's own key has the AppSecret in it, and might be copied here with it.
    if text.split(|c: char| !c.is_ascii_alphanumeric()).any(looks_like_a_secret) {
        let what = "a part of it looks like an AppSecret";
        let remedy = "write {secret} in its place, or better a key of your own that you give to setKey()";
        return Err(Refusal { hide: true, ..Refusal::new(what, remedy) });
    }
    let formats = text.split(',').map(|part| Format::parse(part.trim())).collect::<Result<Vec<_>, _>>();
    formats.map_err(|sentence| Refusal::from_sentence(&sentence))
}

/// Where the bridge leads; `None`, and perhaps problems, where there is none.
pub(super) fn read(
    reader: &mut Reader,
    accounts: &[account::Config],
    store: Option<&store::Config>,
) -> Option<Config> {
    let address = reader.value("bridge_store", values::redis);
    let adopt = reader.value("bridge_adopt", values::switch);
    let bridged = accounts.iter().any(|account| !account.bridge.is_empty());
    if !bridged {
        for key in ["bridge_store", "bridge_adopt"] {
            if reader.sources.values.contains_key(key) && !reader.problems.iter().any(|p| p.key == "bridge") {
                let what = "It is for a bridge, and no account has one.";
                let remedy = format!("set bridge, or leave {key} out");
                reader.problems.push(Problem::new(key, reader.place(key), what, remedy));
            }
        }
        return None;
    }
    let mut keys: Vec<(Zeroizing<String>, String)> = Vec::new();
    for account in accounts {
        for format in &account.bridge {
            let shown = format.shown(&account.appid);
            let Some(key) = format.key(&account.appid, account.secret.as_ref()) else {
                let what =
                    format!("The key of {shown} is made with the AppSecret, and this sidecar has none.");
                let remedy = "run the bridge at the sidecar that fetches, or leave it out";
                reader.problems.push(Problem::new("bridge", reader.place("bridge"), what, remedy));
                continue;
            };
            if let Some((_, other)) = keys.iter().find(|(other, _)| *other == key) {
                let what = format!("Two of its parts write one key: {other} and {shown}.");
                let remedy =
                    "leave one of them out, or write {appid} into the key where several accounts have it";
                reader.problems.push(Problem::new("bridge", reader.place("bridge"), what, remedy));
            }
            keys.push((key, shown));
        }
    }
    let place = reader.place("bridge_store");
    if address.as_ref().is_some_and(redis::Address::has_password) && matches!(place, Place::Flag(_)) {
        // SECURITY: a secret is never a flag, neither whole nor as a part.
        reader.problems.push(Problem::new(
            "bridge_store",
            place,
            "A password cannot stand in a flag: every user of this machine may read a command line.",
            format!("set {}", get("bridge_store").env()),
        ));
    }
    let of_store = match store {
        Some(store::Config::Redis(config)) => Some(&config.server),
        Some(store::Config::Memory) => None,
        // What is wrong with it is told already.
        None => return None,
    };
    if of_store.is_none() && !reader.sources.values.contains_key("bridge_store") {
        reader.problems.push(Problem::new(
            "bridge_store",
            reader.place("bridge"),
            "There is a bridge, and no Redis that it leads to.",
            "set it to the Redis of the apps, such as redis://host:6379",
        ));
    }
    let roots = of_store.and_then(|server| server.roots.clone());
    let server = address.map(|address| redis::Config { roots: roots.filter(|_| address.is_tls()), address });
    Some(Config { server, adopt: adopt? })
}

/// What a person should know at every start.
pub(super) fn warnings(config: &super::Config) -> Vec<String> {
    let Some(bridge) = &config.bridge else { return Vec::new() };
    let server = match (&bridge.server, &config.store) {
        (Some(server), _) => server,
        (None, store::Config::Redis(store)) => &store.server,
        (None, store::Config::Memory) => return Vec::new(),
    };
    let bridged = config.accounts.iter().filter(|account| !account.bridge.is_empty());
    let warning =
        |account: &account::Config| Bridge::warning(&account.appid, &account.bridge, &server.address);
    bridged.map(warning).collect()
}
