//! How we speak to WeChat: [`Upstream`] sends one request on a connection of its own pool and gives the reply as it
//! comes. Everything about that conversation is decided here and nowhere else: connections, TLS, timeouts, and
//! whether a connection that died may be replaced.
//!
//! One per worker: no other thread ever sees these connections.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Uri, header, response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::task::AbortHandle;
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsConnector;
use tower_service::Service;

use crate::error::{Cause, Failure};
use crate::origin::{Origin, Reach};
use crate::proxy::call::{Outgoing, Progress};
use crate::tls::{self, ExtraRoots};

/// Where WeChat is and how long it may take.
#[derive(Clone, Debug)]
pub struct Config {
    /// The one host calls go to.
    pub origin: Origin,
    /// Roots to trust beside Mozilla's.
    pub roots: ExtraRoots,
    /// The longest a connection, TLS included, may take.
    pub connect_timeout: Duration,
    /// The longest until the reply's head, from the last byte of the request.
    pub response_timeout: Duration,
    /// The longest pause in a body, either way.
    pub idle_timeout: Duration,
}

/// An idle connection is used again for this long. Well below the 60 to 75 s after which servers close theirs: a
/// call that meets a closing connection fails, because it cannot be known whether it was read.
const KEEP_IDLE: Duration = Duration::from_secs(45);

/// An upstream that closes a connection sooner than this after a reply, without having said so, keeps none alive.
const HARDLY_IDLE: Duration = Duration::from_secs(1);

/// Once that was seen, connections are used for one call each for so long. A call on a connection that is just being
/// closed fails, because it cannot be known whether it was read: this bounds such calls to one in so much time.
const DISTRUST: Duration = Duration::from_secs(30);

/// Idle connections kept per worker.
const MOST_IDLE: usize = 512;

/// hyper's read buffer per connection: one big download must not grow the process by tens of MiB (`perf.md`).
const READ_BUFFER: usize = 128 * 1024;

/// The largest reply head.
const MAX_HEAD: usize = 64 * 1024;

/// The pool, the connector and the clock of one worker.
pub struct Upstream {
    config: Config,
    connector: HttpConnector,
    address: Uri,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    pool: Rc<Pool>,
}

/// Why sending failed, and whether WeChat can have seen any of it.
#[derive(Debug)]
pub struct NotAnswered {
    /// What the app is told.
    pub failure: Failure,
    /// False when not a byte of the request was written.
    pub sent: bool,
}

impl NotAnswered {
    fn before_sending(cause: Cause, message: String) -> Self {
        Self { failure: Failure::new(cause, message), sent: false }
    }

    fn after_sending(cause: Cause, message: String) -> Self {
        Self { failure: Failure::new(cause, message), sent: true }
    }
}

impl Upstream {
    /// A worker's way to WeChat. Connects to nothing yet.
    ///
    /// # Errors
    /// The origin's host cannot be a TLS server's name.
    pub fn new(config: Config) -> Result<Self, String> {
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        // Finds a peer that vanished without a word (a NAT that forgot) while a slow reply is awaited.
        connector.set_keepalive(Some(Duration::from_secs(30)));
        let tls = if config.origin.is_tls() {
            let name = ServerName::try_from(config.origin.host().to_owned())
                .map_err(|_| format!("{} cannot be a TLS server's name", config.origin.host()))?;
            Some((TlsConnector::from(Arc::clone(&tls::client_config(&config.roots))), name))
        } else {
            None
        };
        let address = match config.origin.reach() {
            Reach::Address(address) => address.to_string(),
            Reach::Name | Reach::NameElsewhere => {
                let host = config.origin.host();
                let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
                format!("{host}:{}", config.origin.port())
            }
        };
        // The connector reads only host and port; http:// keeps it from thinking about TLS, which is ours.
        let address =
            format!("http://{address}/").parse().map_err(|_| format!("{} is not a host", config.origin))?;
        Ok(Self { connector, address, tls, pool: Rc::new(Pool::default()), config })
    }

    /// The configuration it was made with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Sends one request and waits for the reply's head.
    ///
    /// The request goes out at most once. A pooled connection that turns out dead before a byte was written is
    /// replaced by another; after that a failure is told.
    ///
    /// # Errors
    /// [`NotAnswered`]: WeChat could not be reached, did not answer in time, or answered what is not HTTP.
    pub async fn send(
        &self,
        mut request: Request<Outgoing>,
        progress: &Progress,
    ) -> Result<Reply, NotAnswered> {
        while let Some(connection) = self.pool.take() {
            if !connection.is_fit().await {
                self.pool.found_closed(&connection);
                continue;
            }
            match self.exchange(connection.wire, request, progress).await {
                Ok(reply) => return Ok(reply),
                Err(Unsent::Back(back)) => request = back,
                Err(Unsent::Told(told)) => {
                    if told.failure.cause == Cause::UpstreamClosed {
                        self.pool.distrust();
                    }
                    return Err(told);
                }
            }
        }
        let wire = self.connect().await?;
        self.exchange(wire, request, progress).await.map_err(|unsent| match unsent {
            Unsent::Told(told) => told,
            Unsent::Back(_) => NotAnswered::before_sending(
                Cause::UpstreamClosed,
                format!(
                    "{} closed the new connection before the call was sent; try again",
                    self.config.origin
                ),
            ),
        })
    }

    /// Closes connections that have been idle for too long. To be called now and then.
    pub fn sweep(&self) {
        self.pool.sweep();
    }

    async fn exchange(
        &self,
        mut wire: Wire,
        request: Request<Outgoing>,
        progress: &Progress,
    ) -> Result<Reply, Unsent> {
        let mut answer = std::pin::pin!(wire.sender.try_send_request(request));
        let timeout = self.config.response_timeout;
        let mut deadline = std::pin::pin!(tokio::time::sleep(timeout));
        let answer = loop {
            tokio::select! {
                biased;
                answer = &mut answer => break answer,
                () = &mut deadline => {
                    // A long upload has not asked for its answer yet: the time counts from its last byte, and an
                    // app that pauses is no fault of WeChat's.
                    let last = if progress.waits_for_app() { Instant::now() } else { progress.last() };
                    let due = last + timeout;
                    if due <= Instant::now() {
                        return Err(Unsent::Told(NotAnswered::after_sending(
                            Cause::ResponseTimeout,
                            format!("{} did not answer within response_timeout ({}). The call may or may not have taken effect; it was not sent again", self.config.origin, humantime::format_duration(timeout)),
                        )));
                    }
                    deadline.as_mut().reset(due);
                }
            }
        };
        match answer {
            Ok(reply) if reply.status().is_informational() => Err(Unsent::Told(NotAnswered::after_sending(
                Cause::UpstreamMalformed,
                format!(
                    "{} answered {} to a call that asked for no upgrade",
                    self.config.origin,
                    reply.status()
                ),
            ))),
            Ok(reply) if has_doubtful_end(reply.headers()) => Err(Unsent::Told(NotAnswered::after_sending(
                Cause::UpstreamMalformed,
                format!(
                    "{} answered with a Transfer-Encoding that leaves open where the answer ends. The call may or may not have taken effect; it was not sent again",
                    self.config.origin
                ),
            ))),
            Ok(reply) => {
                let (head, incoming) = reply.into_parts();
                let body = ReplyBody {
                    front: VecDeque::new(),
                    rest: Some(incoming),
                    connection: Some((wire, Rc::clone(&self.pool))),
                    request_is_out: progress.is_out(),
                    idle_timeout: self.config.idle_timeout,
                    idle: None,
                };
                Ok(Reply { head, body })
            }
            Err(mut error) => match error.take_message() {
                Some(request) => Err(Unsent::Back(request)),
                None => Err(Unsent::Told(self.told(error.error(), progress))),
            },
        }
    }

    async fn connect(&self) -> Result<Wire, NotAnswered> {
        let Config { origin, connect_timeout, .. } = &self.config;
        match tokio::time::timeout(*connect_timeout, self.connect_unbounded()).await {
            Ok(connected) => connected,
            Err(_) => Err(NotAnswered::before_sending(
                Cause::ConnectTimeout,
                format!(
                    "no connection to {origin} within connect_timeout ({}); nothing was sent. Check the network, DNS and egress rules",
                    humantime::format_duration(*connect_timeout)
                ),
            )),
        }
    }

    async fn connect_unbounded(&self) -> Result<Wire, NotAnswered> {
        let origin = &self.config.origin;
        let mut connector = self.connector.clone();
        let tcp = connector.call(self.address.clone()).await.map_err(|error| {
            let why = innermost(&error);
            // The system's words for EMFILE and ENFILE: the trouble is on this side then.
            let remedy = if why.contains("Too many open files") {
                "Raise the limit on open files of this process (ulimit -n, LimitNOFILE)"
            } else {
                "Check the network, DNS and egress rules"
            };
            NotAnswered::before_sending(
                Cause::Connect,
                format!("no connection to {origin} ({why}); nothing was sent. {remedy}"),
            )
        })?;
        // A peer that cannot be told has hung up, which is told below.
        if let Ok(peer) = tcp.inner().peer_addr() {
            origin.check_peer(peer).map_err(|what| {
                NotAnswered::before_sending(Cause::Connect, format!("nothing was sent: {what}"))
            })?;
        }
        match &self.tls {
            None => handshake(tcp).await,
            Some((tls, name)) => {
                let stream = tls.connect(name.clone(), tcp.into_inner()).await.map_err(|error| {
                    NotAnswered::before_sending(
                        Cause::Tls,
                        format!("no trusted connection to {origin} ({error}); nothing was sent. If a company proxy or a test upstream signs with its own CA, name it in upstream_ca_file"),
                    )
                })?;
                handshake(TokioIo::new(stream)).await
            }
        }
    }

    fn told(&self, error: &hyper::Error, progress: &Progress) -> NotAnswered {
        let origin = &self.config.origin;
        if let Some(broken) = progress.broken() {
            return NotAnswered { failure: broken.failure(), sent: true };
        }
        if error.is_parse() || error.is_parse_too_large() {
            return NotAnswered::after_sending(
                Cause::UpstreamMalformed,
                format!(
                    "{origin} answered what is not HTTP ({error}). The call may or may not have taken effect; it was not sent again"
                ),
            );
        }
        NotAnswered::after_sending(
            Cause::UpstreamClosed,
            format!(
                "{origin} closed the connection before it answered ({}). The call may or may not have taken effect; it was not sent again",
                innermost(error)
            ),
        )
    }
}

enum Unsent {
    /// Not a byte was written; here it is again.
    Back(Request<Outgoing>),
    /// It cannot be sent again.
    Told(NotAnswered),
}

/// One connection. Without its sender it ends when what is under way has; `task` can end it at once.
struct Wire {
    sender: http1::SendRequest<Outgoing>,
    task: AbortHandle,
}

async fn handshake<T>(io: T) -> Result<Wire, NotAnswered>
where
    T: hyper::rt::Read + hyper::rt::Write + Unpin + 'static,
{
    let made = http1::Builder::new()
        .preserve_header_case(true)
        .max_buf_size(READ_BUFFER)
        .max_header_size(MAX_HEAD)
        .handshake(io)
        .await;
    let (sender, connection) =
        made.map_err(|error| NotAnswered::before_sending(Cause::UpstreamClosed, error.to_string()))?;
    // Its errors reach whoever uses the sender.
    let task = tokio::task::spawn_local(async move { drop(connection.await) }).abort_handle();
    Ok(Wire { sender, task })
}

/// Whether a reply has another Transfer-Encoding than `chunked`, which we never ask for and would hand on as if it
/// were the body, or a Content-Length beside it: hyper reads by the chunks then, but leaves the length in the head,
/// where it would cut the body for the app.
fn has_doubtful_end(headers: &HeaderMap) -> bool {
    let mut encodings = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (encodings.next(), encodings.next()) {
        (None, _) => false,
        (Some(one), None) if one.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") => {
            headers.contains_key(header::CONTENT_LENGTH)
        }
        _ => true,
    }
}

/// The cause at the bottom, which says more than the layers above it.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// Idle connections, the one used last on top.
#[derive(Default)]
struct Pool {
    idle: RefCell<VecDeque<Idle>>,
    /// Until then nothing is kept.
    distrusted_until: Cell<Option<Instant>>,
}

struct Idle {
    wire: Wire,
    idle_since: Instant,
}

impl Idle {
    /// Whether the next call may go out on it now. Never waits for the other side: a connection that is still busy
    /// (its last call's upload goes on after an early answer) is not idle and is dropped.
    async fn is_fit(&self) -> bool {
        // Lets the runtime look at the sockets, and the connection's task see that its peer has closed or, right
        // after a reply, note that the reply has ended.
        for _ in 0..3 {
            tokio::task::yield_now().await;
            if self.wire.sender.is_ready() || self.wire.sender.is_closed() {
                break;
            }
        }
        self.wire.sender.is_ready() && !self.wire.sender.is_closed()
    }
}

impl Pool {
    fn take(&self) -> Option<Idle> {
        loop {
            // Not in a `while let`, which would hold the borrow while the body wants it.
            let connection = self.idle.borrow_mut().pop_back()?;
            if connection.wire.sender.is_closed() {
                self.found_closed(&connection);
            } else if connection.idle_since.elapsed() < KEEP_IDLE {
                return Some(connection);
            }
        }
    }

    fn put(&self, wire: Wire) {
        if self.distrusted_until.get().is_some_and(|until| Instant::now() < until) {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        if idle.len() >= MOST_IDLE {
            idle.pop_front();
        }
        idle.push_back(Idle { wire, idle_since: Instant::now() });
    }

    fn found_closed(&self, connection: &Idle) {
        if connection.wire.sender.is_closed() && connection.idle_since.elapsed() < HARDLY_IDLE {
            self.distrust();
        }
    }

    /// The other side closes connections it seems to keep.
    fn distrust(&self) {
        self.distrusted_until.set(Some(Instant::now() + DISTRUST));
        drop(self.idle.take());
    }

    fn sweep(&self) {
        self.idle
            .borrow_mut()
            .retain(|idle| !idle.wire.sender.is_closed() && idle.idle_since.elapsed() < KEEP_IDLE);
    }
}

/// What WeChat answered.
pub struct Reply {
    /// Status and headers, as they came.
    pub head: response::Parts,
    /// The body, as it comes.
    pub body: ReplyBody,
}

/// A reply's body as it streams; what was looked at already stands in front. Gives its connection back when it has
/// been read to the end, and closes it otherwise.
pub struct ReplyBody {
    front: VecDeque<Bytes>,
    rest: Option<Incoming>,
    connection: Option<(Wire, Rc<Pool>)>,
    request_is_out: Rc<Cell<bool>>,
    idle_timeout: Duration,
    idle: Option<Pin<Box<Sleep>>>,
}

/// Why a reply's body ended before its end.
#[derive(Debug)]
pub struct Cut(pub Failure);

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for Cut {}

impl ReplyBody {
    /// The next piece, which stays in front of the body for whoever reads it later. `None` at the end.
    ///
    /// # Errors
    /// The body broke off or stopped coming.
    pub async fn look(&mut self) -> Result<Option<Bytes>, Cut> {
        let next = std::future::poll_fn(|cx| self.poll_rest(cx)).await;
        match next {
            Some(Ok(piece)) => {
                self.front.push_back(piece.clone());
                Ok(Some(piece))
            }
            Some(Err(cut)) => Err(cut),
            None => Ok(None),
        }
    }

    /// All that was looked at so far.
    #[must_use]
    pub fn looked_at(&self) -> Vec<u8> {
        self.front.iter().flat_map(|piece| piece.iter().copied()).collect()
    }

    /// Ends a request that was answered before it had gone out, together with its connection. Left to itself it
    /// would wait, and keep the body, for as long as the other side does not close.
    pub fn end_upload(&mut self) {
        if !self.request_is_out.get()
            && let Some((wire, _)) = self.connection.take()
        {
            wire.task.abort();
        }
    }

    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Cut>>> {
        loop {
            let Some(rest) = &mut self.rest else { return Poll::Ready(None) };
            match Pin::new(rest).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    self.idle = None;
                    match frame.into_data() {
                        Ok(piece) if !piece.is_empty() => return Poll::Ready(Some(Ok(piece))),
                        // Trailers end here: `Trailer` and `TE` are between neighbours only.
                        _ => {}
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    self.close();
                    return Poll::Ready(Some(Err(Cut(Failure::new(
                        Cause::UpstreamClosed,
                        format!(
                            "WeChat's reply broke off before its end ({}). The call may have taken effect; it was not sent again",
                            innermost(&error)
                        ),
                    )))));
                }
                Poll::Ready(None) => {
                    self.finish();
                    return Poll::Ready(None);
                }
                Poll::Pending => {
                    let timeout = self.idle_timeout;
                    let idle = self.idle.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
                    ready!(idle.as_mut().poll(cx));
                    self.close();
                    return Poll::Ready(Some(Err(Cut(Failure::new(
                        Cause::IdleTimeout,
                        format!(
                            "WeChat's reply stopped coming for longer than idle_timeout ({}). The call may have taken effect; it was not sent again",
                            humantime::format_duration(timeout)
                        ),
                    )))));
                }
            }
        }
    }

    fn close(&mut self) {
        self.rest = None;
        self.connection = None;
    }

    /// Read to the end: the connection may carry the next call.
    fn finish(&mut self) {
        self.rest = None;
        self.idle = None;
        // An answer that came before the end of the request: the connection has still to carry the rest.
        if !self.request_is_out.get() {
            return;
        }
        if let Some((wire, pool)) = self.connection.take()
            && !wire.sender.is_closed()
        {
            pool.put(wire);
        }
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if let Some(piece) = self.front.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        self.poll_rest(cx).map(|next| next.map(|piece| piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.front.is_empty() && self.rest.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let front: u64 = self.front.iter().map(|piece| piece.len() as u64).sum();
        match self.rest.as_ref().map(Body::size_hint) {
            None => SizeHint::with_exact(front),
            Some(hint) => match hint.exact() {
                Some(rest) => SizeHint::with_exact(front + rest),
                None => SizeHint::default(),
            },
        }
    }
}

impl Drop for ReplyBody {
    fn drop(&mut self) {
        // hyper does not poll a body it knows to be at its end (HEAD, 204, Content-Length: 0, or the last byte
        // passed): the connection is free all the same.
        if self.rest.as_ref().is_some_and(Body::is_end_stream) {
            self.finish();
        }
    }
}
