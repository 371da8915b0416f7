//! How connections are taken and let go: [`bind`] gives every worker a listener of its own, [`serve`] accepts on one
//! until told to drain.
//!
//! hyper is the HTTP engine toward the app, always: that is where hostile bytes enter. In front of its parser stands
//! [`framing`], which refuses what hyper would silently repair, and keeps from it the lines that nobody reads: they go to
//! WeChat as they came, and a header costs hyper 300 instructions. How a connection gets there, in clear or inside of
//! TLS, is [`entry`]'s.

pub mod entry;
pub mod framing;
pub mod gate;
mod listener;
pub mod local;
mod socket;
pub mod spliced;
pub mod wordless;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;

use crate::buffer::Buffer;
use crate::deadline::Deadline;
use crate::error::{ERROR_HEADER, Failure};
use crate::server::entry::{Entry, Opened};
use crate::server::framing::{Guarded, Heads, Patience, RawHead, Wanted};
use crate::server::gate::Gate;
use crate::server::listener::{Accepted, Accepting, say};
use crate::server::socket::{AppSocket, Wire};
use crate::server::spliced::Lines;
use crate::slots::Slot;

pub use crate::server::listener::Listener;

/// Where and with how many workers calls are accepted.
#[derive(Clone, Debug)]
pub struct Config {
    /// The address apps call. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// The Unix socket apps call instead of that address.
    pub unix: Option<local::Config>,
    /// The address apps call as if it were WeChat's own, over TLS. Port 0 takes a free one.
    pub tls_listen: Option<SocketAddr>,
    /// Worker threads, each with its own runtime, listener and upstream connections.
    pub workers: NonZeroUsize,
    /// The largest request head, in bytes; above it the answer is 431.
    pub max_head: usize,
    /// The longest a request's head may take, from its first byte.
    pub head_timeout: Duration,
    /// How long an idle connection is kept.
    pub keep_alive: Duration,
}

/// What one connection may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The largest request head, in bytes; above it the answer is 431.
    pub max_head: usize,
    /// The longest an app may go without taking any of its reply.
    pub idle_timeout: Duration,
    /// The longest a request's head may take, from its first byte.
    pub head_timeout: Duration,
    /// How long an idle connection is kept.
    pub keep_alive: Duration,
}

/// How far a stop has come. Only ever moves forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Connections are accepted.
    Serve,
    /// They still are, but a stop was asked for: nothing new should be sent here.
    Leave,
    /// No new connections; calls in flight finish.
    Drain,
    /// The grace period is over: what is left is cut.
    Cut,
}

/// Whoever answers requests.
pub trait Handler: 'static {
    /// The reply's body.
    type Body: http_body::Body<Data = bytes::Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>
        + 'static;

    /// A connection was accepted; for who counts them.
    fn opened(&self) {}

    /// It has ended.
    fn closed(&self) {}

    /// The headers that it reads, if it is just these: the others go by hyper, and are in [`Connection::take_head`] only.
    fn reads(&self) -> Option<Vec<HeaderName>> {
        None
    }

    /// Answers one request. Never fails: an error is a reply, too.
    fn handle(
        &self,
        request: Request<Incoming>,
        connection: &Connection,
    ) -> impl Future<Output = Response<Self::Body>>;

    /// A place for one more connection, which is given back when the connection ends; `None` if nobody counts them.
    ///
    /// # Errors
    /// There are as many as there may be.
    fn place(&self) -> Result<Option<Slot>, Failure> {
        Ok(None)
    }
}

/// What a handler may know and ask of the connection a request came on.
#[derive(Clone, Default)]
pub struct Connection(Rc<State>);

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("requests", &self.0.requests).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct State {
    requests: Cell<u64>,
    reset: Cell<bool>,
    draining: Cell<bool>,
    tls: Cell<bool>,
    heads: Heads,
    /// The head of the request that is answered.
    head: Cell<RawHead>,
    /// The lines of the reply that hyper is about to write.
    lines: RefCell<Option<Lines>>,
    peer: Cell<Option<SocketAddr>>,
    /// A map that has room, for the next one that is needed.
    map: Cell<HeaderMap>,
}

impl Connection {
    /// Who is at the other end, as far as this machine's network knows.
    #[must_use]
    pub fn peer(&self) -> Option<SocketAddr> {
        self.0.peer.get()
    }

    /// One of whose requests a handler wants these lines.
    fn wanting(wanted: Wanted) -> Self {
        Self(Rc::new(State { heads: Heads::of(wanted), ..State::default() }))
    }

    /// One with this peer.
    #[cfg(test)]
    pub(crate) fn from(peer: SocketAddr) -> Self {
        let connection = Self::default();
        connection.0.peer.set(Some(peer));
        connection
    }

    /// Whether the app speaks TLS to us, so that it believes to speak to the host it names.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.0.tls.get()
    }

    /// The head of the request that is answered, byte for byte. It is there once.
    #[must_use]
    pub fn take_head(&self) -> RawHead {
        self.0.head.take()
    }

    /// Gives the reply that is about to be returned these lines in place of those hyper writes for it; only what
    /// concerns framing and the connection stays hyper's.
    pub fn answer_with(&self, lines: Lines) {
        self.0.lines.replace(Some(lines));
    }

    /// Keeps the map of a request for the next one: hyper reads into that of the reply before.
    pub fn recycle(&self, mut map: HeaderMap) {
        map.clear();
        self.0.map.set(map);
    }

    /// An empty map, with room if there is one.
    #[must_use]
    pub fn map(&self) -> HeaderMap {
        self.0.map.take()
    }

    /// Ends the connection with a reset instead of a clean close. A reply without a length whose end is the end of
    /// the connection (HTTP/1.0) would otherwise look whole when it was cut.
    pub fn reset_when_closed(&self) {
        self.0.reset.set(true);
    }
}

/// What an idle connection gets by default: nginx's; longer than the pools of the SDKs keep theirs, so that they close
/// first and no call meets a closing connection.
pub const KEEP_ALIVE: Duration = Duration::from_secs(75);

/// What a head gets by default, which in a machine takes milliseconds.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(20);

/// hyper's read buffer per connection. Left alone it adapts up to 400 KiB, which one big upload would make every
/// worker keep (`perf.md`: +12 to +32 MiB for one stream).
const READ_BUFFER: usize = 64 * 1024;

/// A head above `max_head` but within this is read whole before it is refused, so that the app gets its 431.
const HEAD_SLACK: usize = 16 * 1024;

/// What a connection that was accepted but has sent nothing may still take to send its first request once a drain
/// has begun.
const LAST_CALL: Duration = Duration::from_millis(250);

/// Binds `workers` listeners to one address. With more than one they share the port by `SO_REUSEPORT`, and the
/// kernel spreads connections over them.
///
/// # Errors
/// The address cannot be bound; `AddrInUse` also when another process shares it by `SO_REUSEPORT`.
pub fn bind(address: SocketAddr, workers: NonZeroUsize) -> io::Result<Vec<std::net::TcpListener>> {
    let shared = workers.get() > 1;
    if shared && address.port() != 0 {
        // SO_REUSEPORT would let a second sidecar of the same user steal half of the calls in silence, so the
        // port is first taken alone.
        listen(address, false)?;
    }
    let first = listen(address, shared)?;
    let address = first.local_addr()?;
    let mut listeners = vec![first];
    for _ in 1..workers.get() {
        listeners.push(listen(address, true)?);
    }
    Ok(listeners)
}

fn listen(address: SocketAddr, shared: bool) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Without it a restart within a minute fails on connections in TIME_WAIT.
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    Ok(socket.into())
}

/// Accepts on one listener and serves every connection on this thread, until `phase` says drain and the last call
/// has ended, or until it says cut.
///
/// # Errors
/// Only when the listener cannot be handed to the runtime.
pub async fn serve<H: Handler>(
    listener: impl Into<Listener>,
    entry: Entry,
    handler: Rc<H>,
    limits: Limits,
    mut phase: watch::Receiver<Phase>,
) -> io::Result<()> {
    let listener = Accepting::new(listener.into())?;
    let wanted = handler.reads().map_or_else(Wanted::all, |names| Wanted::only(names, limits.max_head));
    let mut connections = JoinSet::new();
    let turned_away = Rc::new(Cell::new(0));
    let take = |connections: &mut JoinSet<()>, stream: Accepted| {
        let place = match listener.check_peer(&stream).and_then(|()| handler.place()) {
            Ok(place) => place,
            Err(failure) => return turn_away(connections, stream, &entry, &failure, &turned_away),
        };
        let (handler, wanted, phase) = (Rc::clone(&handler), wanted.clone(), phase.clone());
        let open = Open::new(&handler);
        match (stream, &entry) {
            (Accepted::Tcp(stream), Entry::Http) => {
                let serving = serve_connection(stream, handler, wanted, limits, phase);
                connections.spawn_local(placed(place, while_open(open, serving)));
            }
            (Accepted::Tcp(stream), entry) => {
                let opening = open_connection(stream, entry.clone(), handler, wanted, limits, phase);
                connections.spawn_local(placed(place, while_open(open, opening)));
            }
            (Accepted::Unix(stream), _) => {
                let serving = serve_connection(stream, handler, wanted, limits, phase);
                connections.spawn_local(placed(place, while_open(open, serving)));
            }
        }
    };
    let mut draining = phase.clone();
    let mut draining = pin!(async move { draining.wait_for(|&phase| phase >= Phase::Drain).await.is_ok() });
    let mut starved = false;
    loop {
        tokio::select! {
            biased;
            _ = &mut draining => break,
            accepted = listener.accept() => match accepted {
                Ok(stream) => {
                    starved = false;
                    take(&mut connections, stream);
                }
                Err(error) => accept_failed(&error, &mut starved).await,
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
    // Who stands in the queue has been told "connected" by the kernel: closing now would reset them.
    while let Some(Ok(stream)) = try_accept(&listener).await {
        take(&mut connections, stream);
    }
    drop(listener);
    let ended = async { while connections.join_next().await.is_some() {} };
    tokio::select! {
        () = ended => {}
        _ = phase.wait_for(|&phase| phase >= Phase::Cut) => {}
    }
    Ok(())
}

/// A connection that its handler knows to be open. Ends by drop.
struct Open<H: Handler>(Rc<H>);

impl<H: Handler> Open<H> {
    fn new(handler: &Rc<H>) -> Self {
        handler.opened();
        Self(Rc::clone(handler))
    }
}

impl<H: Handler> Drop for Open<H> {
    fn drop(&mut self) {
        self.0.closed();
    }
}

async fn while_open<H: Handler>(open: Open<H>, serving: impl Future<Output = ()>) {
    serving.await;
    drop(open);
}

/// The next connection of the queue, if one is there now.
async fn try_accept(listener: &Accepting) -> Option<io::Result<Accepted>> {
    tokio::select! {
        biased;
        accepted = listener.accept() => Some(accepted),
        () = tokio::task::yield_now() => None,
    }
}

/// Keeps a connection's place until it has ended.
async fn placed(place: Option<Slot>, connection: impl Future<Output = ()>) {
    connection.await;
    drop(place);
}

/// Most connections of a listener that are being told that there is no place for them. One more is just closed: saying
/// no must not cost what saying yes would.
const MOST_TURNED_AWAY: usize = 64;

/// Tells a connection why it is not served, and ends it.
fn turn_away(
    connections: &mut JoinSet<()>,
    stream: Accepted,
    entry: &Entry,
    failure: &Failure,
    turned_away: &Rc<Cell<usize>>,
) {
    tracing::debug!(cause = failure.cause.name(), "{}", failure.message);
    // Where TLS comes first, words would not be understood.
    if turned_away.get() >= MOST_TURNED_AWAY || matches!(entry, Entry::Tls(_)) {
        return;
    }
    turned_away.set(turned_away.get() + 1);
    let (text, turned_away) = (failure.to_bytes(), Rc::clone(turned_away));
    connections.spawn_local(async move {
        match stream {
            Accepted::Tcp(stream) => say(stream, &text).await,
            Accepted::Unix(stream) => say(stream, &text).await,
        }
        turned_away.set(turned_away.get() - 1);
    });
}

/// A connection that was gone before it was taken is no news. Anything else is mostly a lack of file descriptors,
/// which ends when a connection does: wait instead of spinning.
async fn accept_failed(error: &io::Error, starved: &mut bool) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    if matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted) {
        return;
    }
    // Once, until one is accepted again: this comes ten times a second.
    if !std::mem::replace(starved, true) {
        tracing::warn!(%error, "connections cannot be accepted; trying again every 100 ms (raise the limit on open files if this stays)");
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// A connection that may have more than HTTP at its beginning.
async fn open_connection<H: Handler>(
    stream: TcpStream,
    entry: Entry,
    handler: Rc<H>,
    wanted: Wanted,
    limits: Limits,
    mut phase: watch::Receiver<Phase>,
) {
    let opened = {
        let mut opening = pin!(entry::open(stream, &entry, limits));
        tokio::select! {
            biased;
            opened = &mut opening => opened,
            // Just accepted, as far as calls go.
            _ = phase.wait_for(|&phase| phase >= Phase::Drain) => {
                tokio::time::timeout(LAST_CALL, opening).await.unwrap_or(Opened::Over)
            }
        }
    };
    match opened {
        Opened::Http(stream) => serve_connection(stream, handler, wanted, limits, phase).await,
        Opened::Tls(stream) => serve_connection(*stream, handler, wanted, limits, phase).await,
        Opened::Over => {}
    }
}

async fn serve_connection<S: Wire, H: Handler>(
    stream: S,
    handler: Rc<H>,
    wanted: Wanted,
    limits: Limits,
    mut phase: watch::Receiver<Phase>,
) {
    let connection = Connection::wanting(wanted);
    connection.0.tls.set(S::TLS);
    connection.0.peer.set(stream.tcp().and_then(|tcp| tcp.peer_addr().ok()));
    let heads = connection.0.heads.clone();
    let patience = Patience { head: limits.head_timeout, idle: limits.keep_alive };
    let io = Guarded::new(AppSocket::new(stream, connection.clone(), limits.idle_timeout), heads, patience);
    let service = service_fn(|request| {
        let handler = Rc::clone(&handler);
        let connection = connection.clone();
        connection.0.requests.set(connection.0.requests.get() + 1);
        connection.0.head.set(connection.0.heads.take().unwrap_or_default());
        async move {
            let mut reply = handler.handle(request, &connection).await;
            if reply.headers().contains_key(&ERROR_HEADER) && connection.0.heads.is_in_body() {
                // Who is answered while it still sends has to be told that hyper will not read on: it would make its
                // next call on a connection that is about to end.
                reply.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, std::convert::Infallible>(reply)
        }
    });
    let serving = http1::Builder::new()
        // The guard has one of its own, which knows whether a head has begun.
        .header_read_timeout(None)
        .max_header_size(limits.max_head)
        .max_buf_size(READ_BUFFER.max(limits.max_head + HEAD_SLACK))
        // Heads keep their spelling because they go on as they came, and no head is written into a body's buffer.
        .writev(true)
        // Replies keep the Date WeChat gave them, or none.
        .auto_date_header(false)
        // An app that shuts down its sending side still waits for its answer.
        .half_close(true)
        .serve_connection(io, service);
    let mut serving = pin!(serving);
    let gate = Gate::new();
    let waker = Waker::from(Arc::clone(&gate));
    let news = phase.clone();
    let mut draining = pin!(phase.wait_for(|&phase| phase >= Phase::Drain));
    let mut is_asked = false;
    let outcome = std::future::poll_fn(|cx| {
        gate.leads_to(cx.waker());
        if let Poll::Ready(outcome) = serving.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Poll::Ready(Some(outcome));
        }
        // It wakes this task when it has news, so it is asked once, and then only when there are.
        if !std::mem::replace(&mut is_asked, true) || news.has_changed().unwrap_or(true) {
            return draining.as_mut().poll(cx).map(|_| None);
        }
        Poll::Pending
    })
    .await;
    let outcome = 'served: {
        if let Some(outcome) = outcome {
            break 'served outcome;
        }
        connection.0.draining.set(true);
        if connection.0.requests.get() == 0 {
            // Just accepted: its first request may be on the way or in the socket already. One that has not
            // come whole by then is no call in flight, and hyper would wait for the rest of its head.
            match tokio::time::timeout(LAST_CALL, first_request(&mut serving, &connection)).await {
                Ok(Some(outcome)) => break 'served outcome,
                Ok(None) => {}
                Err(_) => return,
            }
        } else {
            // What the kernel holds for us is a call that was made before we said no.
            tokio::task::yield_now().await;
        }
        serving.as_mut().graceful_shutdown();
        serving.await
    };
    match outcome {
        // The app is told that, and here what hyper found.
        Err(error) if error.is_parse() => {
            tracing::info!(error = %Chain(&error), "refused a request that is not sound HTTP/1.1; nothing was sent");
        }
        // Mostly an app that went away.
        Err(error) => tracing::debug!(error = %Chain(&error), "a client connection ended with an error"),
        Ok(()) => {}
    }
}

/// Drives a connection until its first request has been handed to the handler (`None`) or it has ended.
async fn first_request<F: Future + Unpin>(serving: &mut F, connection: &Connection) -> Option<F::Output> {
    std::future::poll_fn(|cx| match Pin::new(&mut *serving).poll(cx) {
        Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
        Poll::Pending if connection.0.requests.get() > 0 => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    })
    .await
}

/// An error with its causes, for a log line.
struct Chain<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}
