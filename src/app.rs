//! The only wiring: [`App::bind`] takes every port, [`App::run`] starts the threads and ends them.
//!
//! Threads: one per worker, each with a runtime, a listener and upstream connections of its own, which serve calls;
//! and the control thread, which runs everything that waits (keepers, the admin port). What a stop looks like: readiness
//! says no, and after `drain_delay` the listeners close, calls in flight finish within `grace_period`, what is left is
//! cut; the control thread ends last, because a call that still runs may need a token.

pub mod reach;
mod reload;

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::account::Account;
use crate::admin::status::Overview;
use crate::admin::{self, Admin};
use crate::app::reload::{Reload, SecretFile};
use crate::ca::{self, Identity};
use crate::config::Config;
use crate::credentials::SecretOrigin;
use crate::metrics::Hub;
use crate::proxy::Proxy;
use crate::proxy::call::ReplayBudget;
use crate::proxy::route::Routes;
use crate::proxy::upstream::Upstream;
use crate::server::entry::{Entry, Tls};
use crate::server::{self, Limits, Phase};
use crate::token::keeper::{TokenKeeper, Worker};
use crate::token::redis::Redis;
use crate::token::source::Source;
use crate::token::store::{Store, Stores};

/// How often a worker closes connections that have been idle for too long.
const SWEEP: Duration = Duration::from_secs(15);

/// How long threads may take to end once everything in them was told to.
const LAST: Duration = Duration::from_secs(2);

/// A sidecar whose ports are taken and that has yet to run.
pub struct App {
    config: Config,
    addresses: Addresses,
    /// For each worker, what it accepts on and how connections there begin.
    listeners: Vec<Vec<(std::net::TcpListener, Entry)>>,
    identity: Option<Arc<Identity>>,
    admin: std::net::TcpListener,
    accounts: Vec<Account>,
    keepers: Vec<Worker<Arc<Source>, Store>>,
    redis: Option<Redis>,
    reload: Reload,
    hangups: watch::Sender<()>,
}

/// Where it really listens.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// Where apps call.
    pub proxy: SocketAddr,
    /// Where apps call over TLS, if anywhere.
    pub tls: Option<SocketAddr>,
    /// Where probes go.
    pub admin: SocketAddr,
}

/// Why a sidecar cannot start.
#[derive(Debug)]
pub enum BindError {
    /// A port cannot be taken.
    Port {
        /// The setting that names it.
        setting: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// Something else, in a sentence.
    Other(String),
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port { setting, address, error } if error.kind() == io::ErrorKind::AddrInUse => write!(
                f,
                "{setting} = {address}: another process listens there already (perhaps another wechat-sidecar); stop it, or set {setting} to another port"
            ),
            Self::Port { setting, address, error } if error.kind() == io::ErrorKind::PermissionDenied => {
                write!(
                    f,
                    "{setting} = {address}: cannot listen there ({error}); ports below 1024 need the capability NET_BIND_SERVICE, or the sysctl net.ipv4.ip_unprivileged_port_start={}",
                    address.port()
                )
            }
            Self::Port { setting, address, error } => {
                write!(
                    f,
                    "{setting} = {address}: cannot listen there ({error}); set {setting} to an address of this machine"
                )
            }
            Self::Other(sentence) => f.write_str(sentence),
        }
    }
}

impl std::error::Error for BindError {}

impl App {
    /// Takes the ports and builds everything; nothing is sent yet.
    ///
    /// # Errors
    /// A port is taken, or the configuration cannot work after all.
    pub fn bind(config: Config) -> Result<Self, BindError> {
        let port = |setting, address| move |error| BindError::Port { setting, address, error };
        let listen = config.server.listen;
        let listeners = server::bind(listen, config.server.workers).map_err(port("listen", listen))?;
        let listen = config.admin.listen;
        let mut admin = server::bind(listen, NonZeroUsize::MIN).map_err(port("admin_listen", listen))?;
        let admin = admin.remove(0);
        let address = |listener: &std::net::TcpListener| {
            listener
                .local_addr()
                .map_err(|error| BindError::Other(format!("a listener without an address ({error})")))
        };
        let identity = config.authority.clone().map(Identity::new).transpose().map_err(BindError::Other)?;
        let tls = identity.clone().map(Tls::new).transpose().map_err(BindError::Other)?;
        let mut addresses = Addresses { proxy: address(&listeners[0])?, tls: None, admin: address(&admin)? };
        let entry = tls.clone().map_or(Entry::Http, Entry::Proxy);
        let mut listeners: Vec<_> =
            listeners.into_iter().map(|listener| vec![(listener, entry.clone())]).collect();
        if let (Some(listen), Some(tls)) = (config.server.tls_listen, tls) {
            let more = server::bind(listen, config.server.workers).map_err(port("tls_listen", listen))?;
            addresses.tls = Some(address(&more[0])?);
            for (worker, listener) in listeners.iter_mut().zip(more) {
                worker.push((listener, Entry::Tls(tls.clone())));
            }
        }

        // After the ports: one that is taken is the plainer news.
        reach::check(&config).map_err(BindError::Other)?;

        let stores = Stores::new(&config.store);
        let mut accounts = Vec::new();
        let mut keepers = Vec::new();
        let mut reload = Reload { identity: identity.clone(), ..Reload::default() };
        // The upstream's and the sources' are one.
        reload.roots.push(config.upstream.roots.clone());
        for account in &config.accounts {
            let source = config.source_for(account);
            let source = Source::new(&source, account.appid.clone(), account.secret.clone())
                .map_err(|error| BindError::Other(error.to_string()))?;
            let source = Arc::new(source);
            let store = stores.of(&account.appid, account.endpoint);
            let (keeper, worker) = TokenKeeper::new(account.appid.clone(), Arc::clone(&source), store);
            let served = Account::new(account.appid.clone(), account.secret.clone(), keeper);
            if let SecretOrigin::File(path) = &account.secret_origin {
                reload.secrets.push(SecretFile::new(served.clone(), source, path.clone()));
            }
            accounts.push(served);
            keepers.push(worker);
        }
        let redis = stores.redis().cloned();
        let hangups = watch::Sender::new(());
        Ok(Self { config, addresses, listeners, identity, admin, accounts, keepers, redis, reload, hangups })
    }

    /// Whoever sends on this has secrets and certificates read again at once.
    #[must_use]
    pub fn hangups(&self) -> watch::Sender<()> {
        self.hangups.clone()
    }

    /// The real addresses, also when port 0 was asked for.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Serves until `shutdown` ends and every call has, or the grace period is over.
    ///
    /// # Errors
    /// A thread could not be started, or ended though nobody asked it to.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> io::Result<()> {
        let Self { config, listeners, identity, admin, accounts, keepers, redis, reload, hangups, .. } = self;
        let (phase, watching) = watch::channel(Phase::Serve);
        let (control_phase, control_watching) = watch::channel(Phase::Serve);
        let (ended, mut ending) = mpsc::unbounded_channel();

        let mut workers = Vec::new();
        let budget = ReplayBudget::new(config.proxy.replay_budget);
        let hub = Hub::new(accounts.iter().map(|account| account.appid().clone()));
        for (n, listeners) in listeners.into_iter().enumerate() {
            let routes = Routes::new(accounts.clone()).speaking_for(config.hosts.clone());
            let (settings, upstream, budget) =
                (config.proxy.clone(), config.upstream.clone(), budget.clone());
            let limits =
                Limits { max_head: config.server.max_head, idle_timeout: config.upstream.idle_timeout };
            let (phase, tally) = (watching.clone(), hub.tally());
            workers.push(thread(format!("worker-{n}"), ended.clone(), move || async move {
                let upstream = Upstream::new(upstream).map_err(io::Error::other)?;
                let proxy = Rc::new(Proxy::new(&settings, routes, upstream, budget, tally));
                let sweeping = Rc::clone(&proxy);
                tokio::task::spawn_local(async move {
                    loop {
                        tokio::time::sleep(SWEEP).await;
                        sweeping.upstream().sweep();
                    }
                });
                let mut serving = JoinSet::new();
                for (listener, entry) in listeners {
                    serving.spawn_local(server::serve(
                        listener,
                        entry,
                        Rc::clone(&proxy),
                        limits,
                        phase.clone(),
                    ));
                }
                while let Some(ended) = serving.join_next().await {
                    ended.map_err(io::Error::other)??;
                }
                Ok(())
            })?);
        }
        let (quit, mut quitting) = mpsc::unbounded_channel();
        let quit = config.admin.quit.then_some(quit);
        let settings = config.in_force.clone();
        let (used, limit) = (budget, config.proxy.replay_budget);
        let control = thread("control".to_owned(), ended, move || async move {
            if let Some(redis) = redis {
                tokio::task::spawn_local(redis.run());
            }
            for keeper in keepers {
                tokio::task::spawn_local(keeper.run());
            }
            tokio::task::spawn_local(reload.run(hangups.subscribe()));
            if let Some(identity) = identity {
                tokio::task::spawn_local(async move {
                    loop {
                        tokio::time::sleep(ca::RENEW).await;
                        identity.renew();
                    }
                });
            }
            let overview = Overview::new(accounts, hub, watching)
                .with_settings(settings)
                .with_replay_budget(limit, Box::new(move || used.used()));
            let overview = Rc::new(overview);
            let remembering = Rc::clone(&overview);
            tokio::task::spawn_local(async move { remembering.remember().await });
            let admin_handler = Rc::new(Admin::new(overview).with_quit(quit));
            server::serve(admin, Entry::Http, admin_handler, admin::LIMITS, control_watching).await
        })?;

        let mut outcome = Ok(());
        let died = |name: String| {
            Err(io::Error::other(format!(
                "the thread {name} ended though nobody asked it to; this is a defect in wechat-sidecar"
            )))
        };
        tokio::select! {
            () = shutdown => {}
            Some(()) = quitting.recv() => tracing::info!("POST /quit: stopping"),
            Some(name) = ending.recv() => outcome = died(name),
        }
        if outcome.is_ok() && !config.drain_delay.is_zero() {
            phase.send_replace(Phase::Leave);
            tracing::info!(
                "stopping: not ready from now on, so that nothing new is sent here; calls are taken for {} more",
                humantime::format_duration(config.drain_delay)
            );
            tokio::select! {
                () = tokio::time::sleep(config.drain_delay) => {}
                Some(name) = ending.recv() => outcome = died(name),
            }
        }
        if outcome.is_ok() {
            tracing::info!(
                "stopping: no new connections; calls in flight have {} to finish",
                humantime::format_duration(config.grace_period)
            );
        }
        phase.send_replace(Phase::Drain);
        if tokio::time::timeout(config.grace_period, ended_all(&mut ending, workers.len())).await.is_err() {
            tracing::warn!("the grace period is over; calls that still run are cut");
        }
        phase.send_replace(Phase::Cut);
        control_phase.send_replace(Phase::Cut);
        workers.push(control);
        let joined = async {
            while workers.iter().any(|worker| !worker.is_finished()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        // A thread that does not end now is stuck in the system (a name lookup, say) and ends with the process.
        let _ = tokio::time::timeout(LAST, joined).await;
        for worker in workers.into_iter().filter(std::thread::JoinHandle::is_finished) {
            match worker.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => outcome = outcome.and(Err(error)),
                Err(_) => {
                    outcome = outcome
                        .and(Err(io::Error::other("a thread panicked; this is a defect in wechat-sidecar")))
                }
            }
        }
        outcome
    }
}

/// Waits until this many threads have said that they ended.
async fn ended_all(ending: &mut mpsc::UnboundedReceiver<String>, mut left: usize) {
    while left > 0 && ending.recv().await.is_some() {
        left -= 1;
    }
}

/// Starts a thread with a current-thread runtime of its own. `ended` hears its name when it ends, also by a panic.
fn thread<F: Future<Output = io::Result<()>>>(
    name: String,
    ended: mpsc::UnboundedSender<String>,
    work: impl FnOnce() -> F + Send + 'static,
) -> io::Result<std::thread::JoinHandle<io::Result<()>>> {
    struct Tell(String, mpsc::UnboundedSender<String>);
    impl Drop for Tell {
        fn drop(&mut self) {
            let _ = self.1.send(std::mem::take(&mut self.0));
        }
    }
    std::thread::Builder::new().name(name.clone()).spawn(move || {
        let _tell = Tell(name, ended);
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default())?;
        let outcome = runtime.block_on(work());
        // Whatever still hangs in a blocking name lookup must not hold up the stop.
        runtime.shutdown_background();
        outcome
    })
}
