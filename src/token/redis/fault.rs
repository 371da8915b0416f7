//! What is wrong with Redis, in a sentence a person can act on: [`Fault`].

use std::fmt;

use ::redis::{ErrorKind, RedisError};

use super::address::{Address, Way};

/// Why Redis did not do what it was asked for: what happened, what it means and what to do.
///
/// SECURITY: nothing of a credential or of what was sent is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    sentence: String,
    /// The connection is of no use any more, or leads to the wrong server.
    pub(super) is_broken: bool,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl std::error::Error for Fault {}

/// The longest of a server's own words that are shown.
const SHOWN: usize = 160;

impl Fault {
    /// It took longer than it may.
    pub(super) fn slow(address: &Address, patience: std::time::Duration) -> Self {
        let sentence = format!(
            "no answer from {address} within {patience:?}; check that it runs, is not paused or overloaded, and that no firewall is in between"
        );
        Self { sentence, is_broken: true }
    }

    /// Nobody connects, since [`super::Redis::run`] does not run.
    pub(super) fn unconnected(address: &Address, patience: std::time::Duration) -> Self {
        let sentence =
            format!("no connection to {address} after {patience:?}; check the address, DNS and the firewall");
        Self { sentence, is_broken: false }
    }

    /// The connection that listens was closed.
    pub(super) fn ended(address: &Address) -> Self {
        let sentence = format!("{address} closed the connection; it is made again");
        Self { sentence, is_broken: true }
    }

    /// What the library has to say of it.
    pub(super) fn of(error: &RedisError, address: &Address) -> Self {
        let (what, remedy) = sentence(error, address);
        let readonly = error.code() == Some("READONLY");
        let is_broken = readonly || error.is_io_error() || error.is_unrecoverable_error();
        Self { sentence: format!("{what}; {remedy}"), is_broken }
    }
}

fn sentence(error: &RedisError, address: &Address) -> (String, &'static str) {
    let said = presentable(error, address);
    match (error.kind(), error.code().unwrap_or_default()) {
        (ErrorKind::AuthenticationFailed, _) | (_, "WRONGPASS" | "NOAUTH") => (
            format!("{address} refuses our user and password ({said})"),
            "check the user in store, and the password in it or in store_password_file (a Redis without one takes none)",
        ),
        (_, "NOPERM") => (
            format!("{address} does not let our user do what the store needs ({said})"),
            "give it the rights that the README lists under Redis",
        ),
        (_, "READONLY") => (
            format!("{address} is a replica, which takes no writes"),
            "name the primary in store, or the Sentinels, which know it",
        ),
        (_, "OOM") => (
            format!("{address} has no memory left and refuses writes"),
            "raise its maxmemory, or free some; the store needs 2 KiB an account",
        ),
        (_, "MISCONF") => (
            format!("{address} cannot save to its disk and therefore refuses writes"),
            "look at its log and its disk",
        ),
        (_, "NOREPLICAS") => (
            format!("{address} has too few replicas and therefore refuses writes"),
            "look at its replicas, or at min-replicas-to-write",
        ),
        (_, "LOADING" | "MASTERDOWN" | "TRYAGAIN") => {
            (format!("{address} is starting and not ready yet ({said})"), "it is asked again shortly")
        }
        (_, "CLUSTERDOWN") | (ErrorKind::ClusterConnectionNotFound, _) => (
            format!("the Cluster at {address} does not serve all slots, or cannot be reached ({said})"),
            "look at `redis-cli cluster info` of its nodes",
        ),
        (_, "MOVED" | "ASK" | "CROSSSLOT") => (
            format!("{address} is a node of a Cluster"),
            "write store as redis+cluster://host:6379,host2:6379",
        ),
        (ErrorKind::MasterNameNotFoundBySentinel, _) => (
            format!("the Sentinels at {address} name no such master that answers as one"),
            "check the name in store; `redis-cli -p 26379 sentinel masters` lists them",
        ),
        (ErrorKind::Io, _) => unreached(&said, address),
        (ErrorKind::Client, _) if says_certificate(&said) => unreached(&said, address),
        (ErrorKind::Parse | ErrorKind::UnexpectedReturnType, _) => (
            format!("what answers at {address} does not speak as Redis does"),
            "check the address and port in store, and whether it is TLS (rediss://)",
        ),
        (_, "ERR") if said.contains("unknown command") => (
            format!("{address} lacks a command that the store needs ({said})"),
            "use Redis 6 or later, or Valkey, with EVAL and PUBLISH",
        ),
        (_, "ERR") if said.contains("DB index") || said.contains("SELECT is not allowed") => {
            (format!("{address} has no such database"), "correct the database number at the end of store")
        }
        _ => (format!("{address} refused what it was asked for ({said})"), "look at its log"),
    }
}

fn says_certificate(said: &str) -> bool {
    said.contains("certificate") || said.contains("CryptoProvider")
}

/// Why no connection came about, or why one ended.
fn unreached(said: &str, address: &Address) -> (String, &'static str) {
    if says_certificate(said) {
        return (
            format!("{address} cannot be trusted ({said})"),
            "name the CA that signed its certificate in store_ca_file, and check the host name in store",
        );
    }
    let remedy = match (&address.way, said.contains("refused") || said.contains("No such file")) {
        (Way::Socket(_), _) => "check that Redis runs, the path in store, and the permissions of the socket",
        (_, true) => "nothing listens there: check that Redis runs, and the host and port in store",
        _ if address.tls => "check the host in store, the firewall, and that the port speaks TLS",
        _ => "check the host in store and the firewall; a port that speaks TLS needs rediss://",
    };
    (format!("no connection to {address} ({said})"), remedy)
}

/// The error's own words, short, on one line, and SECURITY: without what we sent. An unknown command is answered with
/// its arguments, and AUTH can be one.
fn presentable(error: &RedisError, address: &Address) -> String {
    let mut said = error.to_string();
    if let Some(at) = said.find(", with args beginning with") {
        said.truncate(at);
    }
    if let Some(password) = &address.password {
        said = said.replace(password.expose(), "***");
    }
    let said: String = said.chars().map(|c| if c.is_control() { ' ' } else { c }).take(SHOWN).collect();
    said.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(code: &str, detail: &str) -> String {
        let address = Address::parse("redis://me:5ec2e7@h").unwrap();
        let error = ::redis::make_extension_error(code.to_owned(), Some(detail.to_owned()));
        Fault::of(&error, &address).to_string()
    }

    #[test]
    fn every_fault_says_what_to_do() {
        for (code, remedy) in [
            ("WRONGPASS", "store_password_file"),
            ("OOM", "maxmemory"),
            ("MISCONF", "disk"),
            ("NOREPLICAS", "min-replicas-to-write"),
            ("WHATEVER", "look at its log"),
        ] {
            let told = told(code, "as Redis says");
            assert!(
                told.starts_with("redis://h:6379/0 ") && told.contains("; ") && told.contains(remedy),
                "{told}"
            );
        }
    }

    #[test]
    fn a_password_is_not_repeated_whatever_redis_says() {
        let said = "unknown command 'AUTH', with args beginning with: 'me' '5ec2e7'";
        for said in [said, "no 5ec2e7\r\n here", &"x".repeat(900)] {
            let told = told("ODD", said);
            assert!(!told.contains("5ec2e7") && !told.contains('\n') && told.len() < 300, "{told}");
        }
    }
}
