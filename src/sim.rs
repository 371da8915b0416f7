//! The WeChat API in this process: for tests, laptops and CI. It has no connection to Tencent.
//!
//! [`Sim`] is the handle: it starts the servers, moves the levers and shows what was seen. Every lever is also on the
//! control port ([`control`]); [`command`] is the product's `simulate`. What WeChat does with tokens is in [`rules`].
//!
//! A simulation has its own clock, which begins at 0 and can be moved on ([`Sim::advance`]), so that hours pass at
//! once. Delays on the wire ([`Sim::delay`]) are real time.
//!
//! Tokens of a simulation are worth nothing, so nothing here hides them.

mod certificate;
pub mod command;
pub mod control;
mod endpoints;
mod errcode;
mod fetch;
mod ledger;
mod levers;
mod message;
pub mod rules;
mod serve;
mod sns;
mod users;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use crate::credentials::{AppId, Secret};

pub use errcode::Errcode;
pub use ledger::{Counts, Fetches, SEEN, Seen};
pub use levers::{Canned, DropWhen, ExpiresIn, FOREVER, FetchFailure, RefusalShape};
pub use rules::{Kind, Limits, Live};
pub use serve::download_byte;

use endpoints::Shelf;
use ledger::Ledger;
use levers::Levers;
use rules::Rules;
use users::Users;

/// The appid of the account a simulation has unless told otherwise.
pub const DEFAULT_APPID: &str = "wx0123456789abcdef";
/// And its secret.
pub const DEFAULT_SECRET: &str = "0123456789abcdef0123456789abcdef";

/// What a simulation listens on and knows.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where plain HTTP is served; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where TLS is served, if at all.
    pub tls_listen: Option<SocketAddr>,
    /// Where the control port is, if there is one.
    pub control_listen: Option<SocketAddr>,
    /// The accounts. Levers without an appid move the first.
    pub accounts: Vec<(AppId, Secret)>,
    /// The numbers in the rules.
    pub limits: Limits,
    /// What tokens are made from: the same seed makes the same tokens.
    pub seed: u64,
}

impl Default for Config {
    /// One account, plain HTTP on a free loopback port, the documented numbers.
    fn default() -> Self {
        let account = AppId::parse(DEFAULT_APPID).ok().zip(Secret::parse(DEFAULT_SECRET).ok());
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            tls_listen: None,
            control_listen: None,
            accounts: account.into_iter().collect(),
            limits: Limits::default(),
            seed: 1,
        }
    }
}

/// Everything that changes, behind one lock.
pub(crate) struct State {
    rules: Rules,
    users: Users,
    levers: Levers,
    ledger: Ledger,
    shelf: Shelf,
    advanced: Duration,
}

/// What the servers share.
pub(crate) struct Core {
    state: Mutex<State>,
    started: Instant,
    connections: AtomicU64,
    held: watch::Sender<bool>,
    closed: watch::Sender<()>,
    changed: watch::Sender<()>,
}

impl Core {
    /// Reads or writes the state at the present simulated time, and wakes who waits for a change.
    fn write<T>(&self, act: impl FnOnce(&mut State, Duration) -> T) -> T {
        let done = self.look(act);
        self.changed.send_replace(());
        done
    }

    /// Reads the state; nobody is woken.
    fn look<T>(&self, act: impl FnOnce(&mut State, Duration) -> T) -> T {
        // A test that panicked while it held the lock must not take the others with it.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.started.elapsed() + state.advanced;
        act(&mut state, now)
    }

    fn connected(&self) -> u64 {
        self.write(|state, _| state.ledger.counts.connections += 1);
        self.connections.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn held(&self) -> watch::Receiver<bool> {
        self.held.subscribe()
    }

    fn closed(&self) -> watch::Receiver<()> {
        self.closed.subscribe()
    }
}

/// Ends the servers when the last handle is dropped.
struct Guard {
    stop: watch::Sender<bool>,
    servers: Mutex<Vec<JoinHandle<()>>>,
}

/// A running simulation. Clones are the same one; it ends with the last of them, or by [`Sim::shutdown`].
#[derive(Clone)]
pub struct Sim {
    core: Arc<Core>,
    /// None in the control port's own handle, which must not keep itself alive.
    guard: Option<Arc<Guard>>,
    accounts: Arc<[AppId]>,
    addresses: Addresses,
    ca_pem: Option<Arc<str>>,
}

/// Where a simulation listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Addresses {
    /// Plain HTTP.
    pub plain: SocketAddr,
    /// TLS.
    pub tls: Option<SocketAddr>,
    /// The control port.
    pub control: Option<SocketAddr>,
}

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sim").field(&self.addresses).finish()
    }
}

impl Sim {
    /// Binds every listener, then serves on the current tokio runtime.
    ///
    /// # Errors
    /// An address that cannot be had, with the address in the message, or a configuration without an account.
    pub async fn start(config: Config) -> io::Result<Self> {
        if config.accounts.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a simulation needs an account"));
        }
        let plain = bind(config.listen).await?;
        let tls = match config.tls_listen {
            Some(address) => Some(bind(address).await?),
            None => None,
        };
        let control = match config.control_listen {
            Some(address) => Some(bind(address).await?),
            None => None,
        };
        let address =
            |listener: &Option<TcpListener>| listener.as_ref().map(TcpListener::local_addr).transpose();
        let addresses =
            Addresses { plain: plain.local_addr()?, tls: address(&tls)?, control: address(&control)? };

        let mut rules = Rules::new(config.limits, config.seed);
        for (appid, secret) in &config.accounts {
            // SECURITY: the simulated WeChat has to know the secret it compares with.
            rules.set_account(appid.as_str(), secret.expose());
        }
        let core = Arc::new(Core {
            state: Mutex::new(State {
                rules,
                users: Users::default(),
                levers: Levers::default(),
                ledger: Ledger::default(),
                shelf: Shelf::default(),
                advanced: Duration::ZERO,
            }),
            started: Instant::now(),
            connections: AtomicU64::new(0),
            held: watch::Sender::new(false),
            closed: watch::Sender::new(()),
            changed: watch::Sender::new(()),
        });
        let stop = watch::Sender::new(false);
        let mut servers = Vec::new();
        servers.push(tokio::spawn(serve::accept(plain, None, Arc::clone(&core), stop.subscribe())));
        let mut ca_pem = None;
        if let Some(listener) = tls {
            let (tls, pem) = certificate::make()?;
            ca_pem = Some(pem.into());
            let acceptor = Some(TlsAcceptor::from(tls));
            servers.push(tokio::spawn(serve::accept(
                listener,
                acceptor,
                Arc::clone(&core),
                stop.subscribe(),
            )));
        }
        let accounts = config.accounts.into_iter().map(|(appid, _)| appid).collect();
        let mut sim = Self { core, guard: None, accounts, addresses, ca_pem };
        if let Some(listener) = control {
            servers.push(tokio::spawn(control::accept(listener, sim.clone(), stop.subscribe())));
        }
        sim.guard = Some(Arc::new(Guard { stop, servers: Mutex::new(servers) }));
        Ok(sim)
    }

    /// Stops listening, closes every connection, and returns when that is done.
    pub async fn shutdown(&self) {
        let Some(guard) = &self.guard else { return };
        guard.stop.send_replace(true);
        let servers = std::mem::take(&mut *guard.servers.lock().unwrap_or_else(PoisonError::into_inner));
        for server in servers {
            // A server that panicked is stopped, too.
            let _ = server.await;
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Where plain HTTP is served.
    #[must_use]
    pub fn plain_addr(&self) -> SocketAddr {
        self.addresses.plain
    }

    /// Where TLS is served.
    #[must_use]
    pub fn tls_addr(&self) -> Option<SocketAddr> {
        self.addresses.tls
    }

    /// Where the control port is.
    #[must_use]
    pub fn control_addr(&self) -> Option<SocketAddr> {
        self.addresses.control
    }

    /// The authority that signed the TLS certificate, in PEM. The certificate is for `api.weixin.qq.com`,
    /// `localhost`, `127.0.0.1` and `::1`.
    #[must_use]
    pub fn ca_pem(&self) -> Option<&str> {
        self.ca_pem.as_deref()
    }

    /// `http://` and the plain address.
    #[must_use]
    pub fn base_url(&self) -> String {
        format!("http://{}", self.addresses.plain)
    }

    /// `https://` and the TLS address, or `localhost` where the certificate does not name the address.
    #[must_use]
    pub fn tls_base_url(&self) -> Option<String> {
        let named = |ip: IpAddr| ip == Ipv4Addr::LOCALHOST || ip == Ipv6Addr::LOCALHOST;
        self.addresses.tls.map(|address| match address.ip() {
            ip if named(ip) => format!("https://{address}"),
            _ => format!("https://localhost:{}", address.port()),
        })
    }

    /// The accounts it knows from its configuration.
    #[must_use]
    pub fn accounts(&self) -> &[AppId] {
        &self.accounts
    }
}

/// Levers on tokens.
impl Sim {
    /// Lets every token of an account run out now: the next call with one is refused with 42001.
    pub fn expire_now(&self, appid: &str) {
        self.core.write(|state, now| state.rules.expire(appid, now));
    }

    /// Does as another caller would: of each kind the account has a live token of (stable, if it has none), a new one
    /// is fetched. A stable one by a forced refresh, which ends the old at once; a classic one with its handover.
    pub fn rotate(&self, appid: &str) {
        self.core.write(|state, now| {
            let live = state.rules.live(appid, now);
            let has = |kind| live.iter().any(|live| live.kind == kind);
            if has(Kind::Stable) || live.is_empty() {
                state.rules.rotate(appid, Kind::Stable, true, now);
            }
            if has(Kind::Classic) {
                state.rules.rotate(appid, Kind::Classic, false, now);
            }
        });
    }

    /// As [`Sim::rotate`] for one kind; `at_once` ends the old token now instead of in five minutes. Returns the new
    /// token, unless there is no such account.
    pub fn rotate_kind(&self, appid: &str, kind: Kind, at_once: bool) -> Option<String> {
        self.core.write(|state, now| state.rules.rotate(appid, kind, at_once, now).map(|grant| grant.token))
    }

    /// Ends handovers now: of each kind only the newest token still works.
    pub fn revoke_overlap(&self, appid: &str) {
        self.core.write(|state, now| state.rules.revoke_overlap(appid, now));
    }

    /// Lets every user token run out.
    pub fn expire_user_tokens(&self) {
        self.core.write(|state, now| state.users.expire(now));
    }

    /// Registers an account, or changes an account's secret: the old one is then refused with 40125.
    pub fn set_account(&self, appid: &AppId, secret: &Secret) {
        // SECURITY: the simulated WeChat has to know the secret it compares with.
        self.core.write(|state, _| state.rules.set_account(appid.as_str(), secret.expose()));
    }

    /// Declares a token good that was not issued here.
    pub fn accept_extra_token(&self, appid: &str, token: &str) {
        self.core.write(|state, _| state.rules.accept_extra(appid, token));
    }

    /// Changes the numbers in the rules: lives, quotas, token length.
    pub fn set_limits(&self, change: impl FnOnce(&mut Limits)) {
        self.core.write(|state, _| {
            let mut limits = state.rules.limits().clone();
            change(&mut limits);
            state.rules.set_limits(limits);
        });
    }

    /// The numbers in force.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.core.look(|state, _| state.rules.limits().clone())
    }

    /// The length of tokens made from now on, at least 16.
    pub fn token_length(&self, length: usize) {
        self.set_limits(|limits| limits.token_length = length);
    }

    /// Moves the simulated clock on.
    pub fn advance(&self, by: Duration) {
        self.core.write(|state, _| state.advanced = state.advanced.saturating_add(by));
    }

    /// The simulated time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.core.look(|_, now| now)
    }
}

/// Levers on token fetches.
impl Sim {
    /// The next fetches fail, after those already set to. [`FOREVER`] is until [`Sim::reset_levers`].
    pub fn fail_fetches(&self, failure: FetchFailure, times: u32) {
        self.core.write(|state, _| state.levers.fail_fetches(failure, times));
    }

    /// Answers to fetches wait so long after the token was issued.
    pub fn fetch_delay(&self, delay: Duration) {
        self.core.write(|state, _| state.levers.fetch_delay = delay);
    }

    /// Answers to fetches wait until [`Sim::release_fetches`]. Their tokens are issued on arrival.
    pub fn hold_fetches(&self) {
        self.core.held.send_replace(true);
    }

    /// Lets held answers go.
    pub fn release_fetches(&self) {
        self.core.held.send_replace(false);
    }

    /// What fetches are told instead of the true `expires_in`; `None` is the truth.
    pub fn expires_in(&self, told: Option<ExpiresIn>) {
        self.core.write(|state, _| state.levers.expires_in = told);
    }

    /// The address that 40164 names, `101.45.43.1` unless changed.
    pub fn caller_ip(&self, ip: &str) {
        self.core.write(|state, _| state.levers.caller_ip = ip.to_owned());
    }
}

/// Levers on calls. A prefix is of the path; they do not move token fetches.
impl Sim {
    /// Replies wait so long; zero ends it.
    pub fn delay(&self, prefix: &str, delay: Duration) {
        self.core.write(|state, _| state.levers.delay(prefix, delay));
    }

    /// The next calls have their connection closed, after they were carried out.
    pub fn drop_connection(&self, prefix: &str, when: DropWhen, times: u32) {
        self.core.write(|state, _| state.levers.drop_connection(prefix, when, times));
    }

    /// The next calls have this reply, whatever their token.
    pub fn fail_calls(&self, prefix: &str, reply: Canned, times: u32) {
        self.core.write(|state, _| state.levers.fail_calls(prefix, reply, times));
    }

    /// Calls are refused with this errcode although their token is good, until [`Sim::reset_levers`].
    pub fn always_refuse(&self, prefix: &str, errcode: i64) {
        self.core.write(|state, _| state.levers.always_refuse(prefix, Errcode(errcode)));
    }

    /// The next `count` calls wait for each other (30 s at most) and are then judged together.
    pub fn gather(&self, prefix: &str, count: u32) {
        self.core.write(|state, _| state.levers.gather(prefix, count));
    }

    /// How token refusals are written.
    pub fn refusal_shape(&self, shape: RefusalShape) {
        self.core.write(|state, _| state.levers.shape = shape);
    }

    /// Closes every connection now, idle ones included; the listeners stay.
    pub fn close_connections(&self) {
        self.core.closed.send_replace(());
    }

    /// Puts every lever back, and releases held fetches. Tokens, limits, clock and counts stay.
    pub fn reset_levers(&self) {
        self.core.write(|state, _| state.levers = Levers::default());
        self.release_fetches();
    }
}

/// What was seen.
impl Sim {
    /// How often what happened.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.core.look(|state, _| state.ledger.counts.clone())
    }

    /// The last requests, the oldest first; at most [`SEEN`], and fewer if their bodies are large.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        self.core.look(|state, _| state.ledger.seen().cloned().collect())
    }

    /// Begins counting anew and forgets the requests seen.
    pub fn reset_counts(&self) {
        self.core.write(|state, _| state.ledger.reset());
    }

    /// Waits until the counts are as wanted.
    pub async fn until(&self, mut wanted: impl FnMut(&Counts) -> bool) {
        let mut changed = self.core.changed.subscribe();
        while !self.core.look(|state, _| wanted(&state.ledger.counts)) {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// How often a call with this `x-call-id` was sent, and how often it was accepted.
    #[must_use]
    pub fn sends_of(&self, call_id: &str) -> (u64, u64) {
        self.core.look(|state, _| state.ledger.sends_of(call_id))
    }

    /// The newest token of an account that works.
    #[must_use]
    pub fn live_token(&self, appid: &str) -> Option<String> {
        self.live_tokens(appid).into_iter().next().map(|live| live.token)
    }

    /// Every token of an account that works, the newest first.
    #[must_use]
    pub fn live_tokens(&self, appid: &str) -> Vec<Live> {
        self.core.look(|state, now| state.rules.live(appid, now))
    }

    /// The length and SHA-256 (lower-case hex) of an uploaded file.
    #[must_use]
    pub fn upload(&self, media_id: &str) -> Option<(u64, String)> {
        self.core.look(|state, _| state.shelf.upload(media_id).map(|file| (file.length, file.sha256.clone())))
    }

    /// Accounts, tokens, quotas and levers, as JSON.
    #[must_use]
    pub fn state(&self) -> Value {
        self.core.look(|state, now| {
            let appids: Vec<String> = state.rules.appids().map(str::to_owned).collect();
            let accounts: Vec<Value> = appids
                .iter()
                .map(|appid| {
                    let (classic, stable, forced) = state.rules.used_today(appid, now);
                    serde_json::json!({
                        "appid": appid,
                        "live_tokens": state.rules.live(appid, now),
                        "used_today": {"classic": classic, "stable": stable, "forced": forced},
                    })
                })
                .collect();
            serde_json::json!({
                "simulated_seconds": now.as_secs(),
                "addresses": self.addresses,
                "accounts": accounts,
                "limits": state.rules.limits(),
                "levers": state.levers.shown(),
                "fetches_held": *self.core.held.borrow(),
            })
        })
    }
}

async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}")))
}
