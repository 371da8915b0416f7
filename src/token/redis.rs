//! The one way to Redis: [`Redis`], with one connection for commands and one that listens, for the whole process.
//!
//! [`Redis::run`] is the only one who connects, again and again; whoever asks something ([`Redis::ask`]) reads the
//! connection it published, and waits for one no longer than a call can wait for a token. So a name lookup that hangs
//! or a Redis that is down costs an answer's patience at most, and building one does no IO at all.
//!
//! What is heard on a channel is only ever that there may be something to see: whoever listens looks for himself. So
//! nothing is lost with a message; every connection that comes about, and a slow poll, has everyone look.

mod address;
mod fault;
mod link;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::redis::{Cmd, FromRedisValue};
use futures_util::Stream as _;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};

pub use address::Address;
pub use fault::Fault;
use link::Link;

/// The longest that one thing may take; the keeper gives up a store after 500 ms.
const PATIENCE: Duration = Duration::from_millis(400);
/// The longest that a command waits for a connection after attempts have failed: it is as good as down.
const LITTLE_PATIENCE: Duration = Duration::from_millis(100);
/// The longest that one attempt to connect may take, TLS and password included.
const CONNECT: Duration = Duration::from_secs(2);
/// The pauses between attempts grow from here...
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// ...up to here; whoever wants something meanwhile has an attempt made at once.
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
/// Attempts are never closer than this.
const LEAST_PAUSE: Duration = Duration::from_millis(50);
/// How often everyone looks without having heard anything, and the listening connection is tried.
const POLL: Duration = Duration::from_secs(10);

/// Where Redis is, and whom to trust there.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its address, with our user and password.
    pub address: Address,
    /// CA certificates (PEM) to trust instead of Mozilla's.
    pub roots: Option<Vec<u8>>,
}

/// A Redis. Cheap to clone; all clones share the connections.
#[derive(Clone)]
pub struct Redis(Arc<Inner>);

struct Inner {
    config: Config,
    state: watch::Sender<State>,
    /// Someone waits for a connection.
    wanted: Notify,
    /// Who wants to hear of what.
    channels: Mutex<BTreeMap<String, watch::Sender<()>>>,
}

/// How it stands with the connection for commands.
enum State {
    /// No attempt has ended yet.
    Begun,
    /// There is one; the number tells it from those before it.
    Up(Link, u64),
    /// There is none, and why.
    Down(Fault),
}

impl Redis {
    /// One that has yet to [run](Self::run). Does no IO.
    #[must_use]
    pub fn new(config: Config) -> Self {
        // More than one provider of cryptography in the tree, and rustls would not choose one by itself. An error says
        // that it is chosen already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (state, wanted) = (watch::Sender::new(State::Begun), Notify::new());
        Self(Arc::new(Inner { config, state, wanted, channels: Mutex::default() }))
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.0.config.address
    }

    /// Changes when something is heard on `channel`, when a connection comes about, and every ten seconds. To be asked
    /// for before it [runs](Self::run).
    pub(crate) fn listen(&self, channel: &str) -> watch::Sender<()> {
        let mut channels = self.0.channels.lock().unwrap_or_else(PoisonError::into_inner);
        channels.entry(channel.to_owned()).or_default().clone()
    }

    /// Sends one command and waits for the answer, within [`PATIENCE`].
    ///
    /// # Errors
    /// There is no connection, no answer, or Redis refused.
    pub(crate) async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Fault> {
        let begun = Instant::now();
        let (mut link, number) = self.link().await?;
        let address = self.address();
        let fault = match timeout(PATIENCE.saturating_sub(begun.elapsed()), link.ask(command)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => Fault::of(&error, address),
            Err(_) => Fault::slow(address, PATIENCE),
        };
        if fault.is_broken {
            self.0.state.send_if_modified(|state| {
                let is_ours = matches!(state, State::Up(_, current) if *current == number);
                if is_ours {
                    *state = State::Down(fault.clone());
                }
                is_ours
            });
        }
        Err(fault)
    }

    /// The connection, as soon as there is one.
    async fn link(&self) -> Result<(Link, u64), Fault> {
        let mut state = self.0.state.subscribe();
        let patience = match &*state.borrow_and_update() {
            State::Up(link, number) => return Ok((link.clone(), *number)),
            State::Begun => PATIENCE,
            State::Down(_) => LITTLE_PATIENCE,
        };
        self.0.wanted.notify_one();
        // An attempt that fails is an answer, too.
        let _ = timeout(patience, state.changed()).await;
        match &*state.borrow() {
            State::Up(link, number) => Ok((link.clone(), *number)),
            State::Down(fault) => Err(fault.clone()),
            State::Begun => Err(Fault::unconnected(self.address(), patience)),
        }
    }

    /// Connects, listens, and has everyone look now and then. Never ends.
    pub async fn run(self) {
        tokio::join!(self.stay_connected(), self.stay_listening(), async {
            loop {
                sleep(POLL).await;
                self.poke_all();
            }
        });
    }

    async fn stay_connected(&self) {
        let (mut pause, mut number) = (FIRST_PAUSE, 0);
        loop {
            let attempt = timeout(CONNECT, Link::connect(&self.0.config)).await;
            match attempt.unwrap_or_else(|_| Err(Fault::slow(self.address(), CONNECT))) {
                Ok(link) => {
                    tracing::debug!(redis = %self.address(), "connected");
                    pause = FIRST_PAUSE;
                    number += 1;
                    self.0.state.send_replace(State::Up(link, number));
                    self.poke_all();
                    let mut state = self.0.state.subscribe();
                    // The sender is ours, so this ends only when someone found the connection broken.
                    let _ = state.wait_for(|state| !matches!(state, State::Up(..))).await;
                    tracing::debug!(redis = %self.address(), "the connection is given up");
                    sleep(LEAST_PAUSE).await;
                }
                Err(fault) => {
                    tracing::debug!(redis = %self.address(), error = %fault, "not connected");
                    self.0.state.send_replace(State::Down(fault));
                    sleep(LEAST_PAUSE).await;
                    let _ =
                        timeout(pause.mul_f64(0.75 + fastrand::f64() / 2.0), self.0.wanted.notified()).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    async fn stay_listening(&self) {
        let (mut pause, mut told) = (FIRST_PAUSE, false);
        loop {
            let heard = self.hear(|| {
                pause = FIRST_PAUSE;
                if std::mem::take(&mut told) {
                    tracing::info!(redis = %self.address(), "listening again");
                }
            });
            let fault = heard.await;
            // Where nothing works, the keepers say so.
            let alone = matches!(&*self.0.state.borrow(), State::Up(..)) && pause > FIRST_PAUSE;
            if alone && !std::mem::replace(&mut told, true) {
                tracing::warn!(
                    redis = %self.address(), error = %fault,
                    "cannot listen for news of tokens; replicas hear of a new token late, by a poll every {POLL:?}"
                );
            } else {
                tracing::debug!(redis = %self.address(), error = %fault, "not listening");
            }
            sleep(pause.mul_f64(0.75 + fastrand::f64() / 2.0)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Listens until that fails. `began` is called when it works.
    async fn hear(&self, began: impl FnOnce()) -> Fault {
        let address = self.address();
        let slow = |_| Fault::slow(address, CONNECT);
        let channels = self.0.channels.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let names: Vec<&str> = channels.keys().map(String::as_str).collect();
        let listening = match timeout(CONNECT, link::listen(&self.0.config, &names)).await.map_err(slow) {
            Ok(Ok(listening)) => listening,
            Ok(Err(fault)) | Err(fault) => return fault,
        };
        began();
        self.poke_all();
        let (mut sink, mut stream) = listening.split();
        loop {
            let next = std::future::poll_fn(|context| Pin::new(&mut stream).poll_next(context));
            match timeout(POLL, next).await {
                Ok(Some(message)) => {
                    if let Some(listener) = channels.get(message.get_channel_name()) {
                        listener.send_replace(());
                    }
                }
                Ok(None) => return Fault::ended(address),
                // A connection that a firewall forgot looks like one on which nothing happens.
                Err(_) => match timeout(CONNECT, sink.ping::<::redis::Value>()).await.map_err(slow) {
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => return Fault::of(&error, address),
                    Err(fault) => return fault,
                },
            }
        }
    }

    fn poke_all(&self) {
        for listener in self.0.channels.lock().unwrap_or_else(PoisonError::into_inner).values() {
            listener.send_replace(());
        }
    }
}
