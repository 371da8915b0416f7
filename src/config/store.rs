//! `store` and what goes with it: which Redis, who we are to it, whom we trust there, and what seals the token.

use std::time::Duration;

use super::problem::{Place, Problem};
use super::reader::{Reader, path, take};
use super::settings::get;
use super::values::{self, Refusal};
use crate::credentials::read_secret;
use crate::tls::ExtraRoots;
use crate::token::redis::{self, Address};
use crate::token::store::redis::Seals;
use crate::token::store::{self, Config};

/// A lease lives for longer than the fetch that it is for.
const BEYOND_A_FETCH: Duration = Duration::from_secs(2);

/// What makes sense with Redis only.
const OF_REDIS: [&str; 4] = ["store_password_file", "store_ca_file", "store_key_file", "store_prefix"];

/// Where tokens are kept; `None` and problems when that cannot be said.
pub(super) fn read(reader: &mut Reader, fetch_timeout: Option<Duration>) -> Option<Config> {
    let before = reader.problems.len();
    let address = reader.value("store", values::store);
    let prefix = reader.value("store_prefix", values::prefix);
    let password = read_file(reader, "store_password_file", |path| read_secret(path, "password"));
    let roots = read_file(reader, "store_ca_file", ExtraRoots::read_pem);
    let seals = read_file(reader, "store_key_file", Seals::read);
    let Some(mut address) = address? else {
        for key in OF_REDIS.into_iter().filter(|key| reader.sources.values.contains_key(key)) {
            let what = "It is for a store on Redis, and store is memory.";
            let remedy = format!("set store to redis://host:6379, or leave {key} out");
            reader.problems.push(Problem::new(key, reader.place(key), what, remedy));
        }
        return Some(Config::Memory);
    };
    let place = reader.place("store");
    if address.has_password() && matches!(place, Place::Flag(_)) {
        // SECURITY: a secret is never a flag, neither whole nor as a part.
        reader.problems.push(Problem::new(
            "store",
            place.clone(),
            "A password cannot stand in a flag: every user of this machine may read a command line.",
            format!("set {}, or put the password into store_password_file", get("store").env()),
        ));
    }
    if let Some(password) = password {
        if address.has_password() {
            let what = format!("The password is given twice: here, and in store ({place}).");
            let here = reader.place("store_password_file");
            reader.problems.push(Problem::new("store_password_file", here, what, "keep one of them"));
        }
        address = address.with_password(password);
    }
    if roots.is_some() && !address.is_tls() {
        let what = format!("It is for a Redis over TLS, and store is {address}.");
        let here = reader.place("store_ca_file");
        let remedy = "write rediss:// (with two s) in store, or leave store_ca_file out";
        reader.problems.push(Problem::new("store_ca_file", here, what, remedy));
    }
    if reader.problems.len() > before {
        return None;
    }
    Some(Config::Redis(Box::new(store::redis::Config {
        server: redis::Config { address, roots },
        prefix: prefix?,
        lease: fetch_timeout? + BEYOND_A_FETCH,
        seals,
    })))
}

/// What works, but a person should know.
pub(super) fn warning(config: &Config) -> Option<String> {
    let Config::Redis(config) = config else { return None };
    let address: &Address = &config.server.address;
    (address.is_in_clear() && config.seals.is_none()).then(|| {
        format!(
            "store = {address} is reached in clear, and whoever listens on the way reads the access token; \
             use rediss://, or encrypt the token with store_key_file"
        )
    })
}

/// What a file holds, if the setting names one.
fn read_file<T>(
    reader: &mut Reader,
    key: &'static str,
    read: impl FnOnce(&std::path::Path) -> Result<T, String>,
) -> Option<T> {
    let written = reader.sources.values.get(key)?;
    take(&mut reader.problems, key, written, |text| {
        read(&path(text, &written.place)?).map_err(|told| Refusal::from_sentence(&told))
    })
}
