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
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::account::{Account, is_placeholder};
use crate::admin::status::Overview;
use crate::admin::{self, Admin};
use crate::app::reload::{Reload, SecretFile};
use crate::ca::{self, Identity};
use crate::config::Config;
use crate::credentials::SecretOrigin;
use crate::deadline::Beat;
use crate::metrics::Hub;
use crate::proxy::Proxy;
use crate::proxy::admission::Capacity;
use crate::proxy::call::ReplayBudget;
use crate::proxy::route::Routes;
use crate::proxy::upstream::Upstream;
use crate::server::entry::{Entry, Tls};
use crate::server::local::{self, SocketFile};
use crate::server::{self, Limits, Listener, Phase};
use crate::token::bridge::Bridge;
use crate::token::bridge::adopt::Adopting;
use crate::token::keeper::{TokenKeeper, Worker};
use crate::token::redis::Redis;
use crate::token::source::Source;
use crate::token::store::{Store, Stores};

/// How often a worker closes connections that have been idle for too long.
const SWEEP: Duration = Duration::from_secs(15);

/// How often the file of client keys is looked at.
const LOOK_AT_KEYS: Duration = Duration::from_secs(2);

/// How long threads may take to end once everything in them was told to.
const LAST: Duration = Duration::from_secs(2);

/// A sidecar whose ports are taken and that has yet to run.
pub struct App {
    config: Config,
    addresses: Addresses,
    /// For each worker, what it accepts on and how connections there begin.
    listeners: Vec<Vec<(Listener, Entry)>>,
    socket: Option<SocketFile>,
    identity: Option<Arc<Identity>>,
    admin: std::net::TcpListener,
    accounts: Vec<Account>,
    keepers: Vec<Worker<Adopting<Arc<Source>>, Store>>,
    /// Those to apps that have yet to move, each with the keeper whose token it gives.
    bridges: Vec<(Arc<Bridge>, TokenKeeper)>,
    /// What the stores and the bridges ask.
    redis: Vec<Redis>,
    reload: Reload,
    hangups: watch::Sender<()>,
}

/// Where it really listens.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// Where apps call; port 0 when that is a Unix socket.
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
    /// A Unix socket cannot be had.
    Socket {
        /// Its file.
        path: PathBuf,
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
            Self::Socket { path, error } => {
                let path = path.display();
                match error.kind() {
                    io::ErrorKind::AddrInUse => write!(
                        f,
                        "listen = unix:{path}: another process listens there already (perhaps another wechat-sidecar); stop it, or set listen to another path"
                    ),
                    io::ErrorKind::AlreadyExists => {
                        write!(f, "listen = unix:{path}: {error}; remove it, or set listen to another path")
                    }
                    _ => write!(
                        f,
                        "listen = unix:{path}: cannot listen there ({error}); give a path in a folder that exists and that this user may write to"
                    ),
                }
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
        let address = |listener: &std::net::TcpListener| {
            listener
                .local_addr()
                .map_err(|error| BindError::Other(format!("a listener without an address ({error})")))
        };
        let (listen, workers) = (config.server.listen, config.server.workers);
        let (listeners, socket, proxy) = match &config.server.unix {
            None => {
                let listeners = server::bind(listen, workers).map_err(port("listen", listen))?;
                let proxy = address(&listeners[0])?;
                (listeners.into_iter().map(Listener::from).collect(), None, proxy)
            }
            Some(unix) => {
                let (listeners, file) = bind_unix(unix, workers)
                    .map_err(|error| BindError::Socket { path: unix.path.clone(), error })?;
                (listeners, Some(file), listen)
            }
        };
        let listen = config.admin.listen;
        let mut admin = server::bind(listen, NonZeroUsize::MIN).map_err(port("admin_listen", listen))?;
        let admin = admin.remove(0);
        let identity = config.authority.clone().map(Identity::new).transpose().map_err(BindError::Other)?;
        let tls = identity.clone().map(Tls::new).transpose().map_err(BindError::Other)?;
        let mut addresses = Addresses { proxy, tls: None, admin: address(&admin)? };
        let entry = tls.clone().map_or(Entry::Http, Entry::Proxy);
        let mut listeners: Vec<Vec<(Listener, Entry)>> =
            listeners.into_iter().map(|listener| vec![(listener, entry.clone())]).collect();
        if let (Some(listen), Some(tls)) = (config.server.tls_listen, tls) {
            let more = server::bind(listen, config.server.workers).map_err(port("tls_listen", listen))?;
            addresses.tls = Some(address(&more[0])?);
            for (worker, listener) in listeners.iter_mut().zip(more) {
                worker.push((listener.into(), Entry::Tls(tls.clone())));
            }
        }

        // After the ports: one that is taken is the plainer news.
        reach::check(&config).map_err(BindError::Other)?;

        let stores = Stores::new(&config.store);
        let mut accounts = Vec::new();
        let mut keepers = Vec::new();
        let mut bridges = Vec::new();
        let mut reload =
            Reload { identity: identity.clone(), admin: config.admin.identity.clone(), ..Reload::default() };
        // The upstream's and the sources' are one.
        reload.roots.extend(Some(&config.upstream.roots).filter(|roots| roots.are_from_a_file()).cloned());
        // The bridge's Redis, apart from the store's where it is another.
        let apart = config.bridge.as_ref().and_then(|bridge| bridge.server.clone()).map(Redis::new);
        let bridged = apart.as_ref().or(stores.redis()).cloned();
        for account in &config.accounts {
            let source = Arc::new(config.token_source(account).map_err(BindError::Other)?);
            let bridge = config.bridge.as_ref().zip(bridged.as_ref()).filter(|_| !account.bridge.is_empty());
            let bridge = bridge.map(|(bridge, redis)| {
                let (appid, secret, formats) =
                    (account.appid.clone(), account.secret.as_ref(), &account.bridge);
                Arc::new(Bridge::new(appid, secret, formats, redis.clone(), bridge.adopt, is_placeholder))
            });
            let adopting = Adopting::new(Arc::clone(&source), bridge.clone());
            let store = stores.of(&account.appid, account.endpoint);
            let (keeper, worker) = TokenKeeper::new(account.appid.clone(), adopting, store);
            bridges.extend(bridge.map(|bridge| (bridge, keeper.clone())));
            let terms = account.terms.clone();
            let served = Account::new(account.appid.clone(), account.secret.clone(), keeper).on(terms);
            if let Some(SecretOrigin::File(path)) = &account.secret_origin {
                reload.secrets.push(SecretFile::new(served.clone(), source, path.clone()));
            }
            accounts.push(served);
            keepers.push(worker);
        }
        let redis = stores.redis().cloned().into_iter().chain(apart).collect();
        let hangups = watch::Sender::new(());
        Ok(Self {
            config,
            addresses,
            listeners,
            socket,
            identity,
            admin,
            accounts,
            keepers,
            bridges,
            redis,
            reload,
            hangups,
        })
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

    /// The Unix socket that apps call, where it is one.
    #[must_use]
    pub fn socket(&self) -> Option<&Path> {
        self.config.server.unix.as_ref().map(|unix| &*unix.path)
    }

    /// Serves until `shutdown` ends and every call has, or the grace period is over.
    ///
    /// # Errors
    /// A thread could not be started, or ended though nobody asked it to.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> io::Result<()> {
        // The socket's file stays for as long as anybody may be answered there.
        let Self {
            config,
            listeners,
            socket: _socket,
            identity,
            admin,
            accounts,
            keepers,
            bridges,
            redis,
            reload,
            hangups,
            ..
        } = self;
        let (phase, watching) = watch::channel(Phase::Serve);
        let (control_phase, control_watching) = watch::channel(Phase::Serve);
        let (ended, mut ending) = mpsc::unbounded_channel();

        // What a worker does now and then it is told to from here: a timer of its own would cost it something every turn.
        let beat = Arc::new(Beat::default());
        let beating = Arc::clone(&beat);
        let (sweep, sweeps) = watch::channel(());
        let mut ticking = JoinSet::new();
        ticking.spawn(async move { beating.run().await });
        ticking.spawn(async move {
            loop {
                tokio::time::sleep(SWEEP).await;
                sweep.send_replace(());
            }
        });

        let mut workers = Vec::new();
        let budget = ReplayBudget::new(config.proxy.replay_budget);
        let hub = Hub::new(accounts.iter().map(|account| account.appid().clone()));
        let capacity = Capacity::new(&config.proxy.admission);
        for (n, listeners) in listeners.into_iter().enumerate() {
            let routes = Routes::new(accounts.clone()).speaking_for(config.hosts.clone());
            let (settings, upstream) = (config.proxy.clone(), config.upstream.clone());
            let (budget, capacity) = (budget.clone(), capacity.clone());
            let limits = Limits {
                max_head: config.server.max_head,
                idle_timeout: config.upstream.idle_timeout,
                head_timeout: config.server.head_timeout,
                keep_alive: config.server.keep_alive,
            };
            let (phase, tally, tasks) = (watching.clone(), hub.tally(), hub.clone());
            let (beat, mut sweeps) = (Arc::clone(&beat), sweeps.clone());
            workers.push(thread(format!("worker-{n}"), ended.clone(), move || async move {
                tasks.runtime();
                beat.lead();
                let upstream = Upstream::new(upstream).map_err(io::Error::other)?;
                let proxy = Rc::new(Proxy::new(&settings, routes, upstream, budget, capacity, tally));
                let sweeping = Rc::clone(&proxy);
                tokio::task::spawn_local(async move {
                    while sweeps.changed().await.is_ok() {
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
        let keyring = config.proxy.keyring.clone();
        let control = thread("control".to_owned(), ended, move || async move {
            hub.runtime();
            for redis in redis {
                tokio::task::spawn_local(redis.run());
            }
            for keeper in keepers {
                tokio::task::spawn_local(keeper.run());
            }
            if let Some(keyring) = keyring {
                tokio::task::spawn_local(async move {
                    loop {
                        tokio::time::sleep(LOOK_AT_KEYS).await;
                        // Where a slow disk holds nobody up: this thread keeps the tokens.
                        let keyring = keyring.clone();
                        let _ = tokio::task::spawn_blocking(move || keyring.look()).await;
                    }
                });
            }
            for (bridge, keeper) in bridges {
                tokio::task::spawn_local(bridge.give(keeper));
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
            let overview = Overview::new(accounts.clone(), hub, watching)
                .with_settings(settings)
                .with_replay_budget(limit, Box::new(move || used.used()));
            let overview = Rc::new(overview);
            let remembering = Rc::clone(&overview);
            tokio::task::spawn_local(async move { remembering.remember().await });
            let entry = config.admin.identity.clone().map_or(Entry::Http, Entry::Own);
            let admin_handler = Rc::new(Admin::new(&config.admin, accounts, overview).with_quit(quit));
            server::serve(admin, entry, admin_handler, admin::LIMITS, control_watching).await
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

/// A Unix socket for every worker: all of them accept on the one that there is.
fn bind_unix(config: &local::Config, workers: NonZeroUsize) -> io::Result<(Vec<Listener>, SocketFile)> {
    let (first, file) = local::bind(config)?;
    let mut listeners = Vec::new();
    for _ in 1..workers.get() {
        listeners.push(Listener::Unix(first.try_clone()?, config.uids.clone()));
    }
    listeners.push(Listener::Unix(first, config.uids.clone()));
    Ok((listeners, file))
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
