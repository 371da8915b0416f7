//! How we speak to WeChat: [`Upstream`] sends one request on a connection of its own pool and gives the reply as it
//! comes. Everything about that conversation is decided here and nowhere else: connections, TLS, timeouts, and
//! whether a connection that died may be replaced.
//!
//! One per worker: no other thread ever sees these connections. The HTTP is our own, over httparse: `message` reads
//! a reply, `wire` is a connection. hyper's client costs half of all instructions of a call (`perf.md`: it checks a
//! token of 512 characters byte by byte, fills a second map of headers, and speaks to a task over a channel); toward
//! the app, where hostile bytes enter, it is hyper.

mod message;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Method, Uri};
use http_body::{Body, Frame, SizeHint};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::pki_types::ServerName;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tower_service::Service;

use crate::buffer::Buffer;
use crate::deadline::Deadline;
use crate::error::{Cause, Failure};
use crate::origin::{Origin, Reach};
use crate::proxy::call::{Broken, Outgoing, Progress};
use crate::proxy::head::ReplyHead;
use crate::proxy::upstream::message::{Decoder, Final, Next};
use crate::proxy::upstream::wire::{HeadReader, NoHead, Pool, Quiet, Stuck, Upload, Wire};
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

/// A request as it goes: nothing is added to it.
pub struct Request {
    head: Buffer,
    is_head: bool,
    body: Outgoing,
}

impl Request {
    /// Of a path and query, with the credential, and of header lines with the empty one after them. The length of the body
    /// is among them.
    #[must_use]
    pub fn new(method: &Method, target: &[u8], headers: &[u8], body: Outgoing) -> Self {
        let mut head = Buffer::with_capacity(target.len() + headers.len() + SMALL);
        for part in [method.as_str().as_bytes(), b" ", target, b" HTTP/1.1\r\n", headers] {
            head.extend_from_slice(part);
        }
        Self { head, is_head: method == Method::HEAD, body }
    }
}

/// The pool, the connector and the clock of one worker.
pub struct Upstream {
    config: Config,
    connector: HttpConnector,
    address: Uri,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    pool: Rc<Pool>,
}

/// Room for the rest of a request line and a small body.
const SMALL: usize = 512;

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
    /// `now` is when it is sent. The request goes out at most once. A pooled connection that turns out dead before a byte was written is
    /// replaced by another; after that a failure is told.
    ///
    /// # Errors
    /// [`NotAnswered`]: WeChat could not be reached, did not answer in time, or answered what is not HTTP.
    pub async fn send(
        &self,
        request: Request,
        progress: &Progress,
        now: Instant,
    ) -> Result<Reply, NotAnswered> {
        let Request { head, is_head: to_head, body } = request;
        let mut upload = Upload::new(head, body);
        // Whatever the first look at it says is still so at the first write: nothing is waited for in between.
        while let Some(mut wire) = poll_fn(|cx| Poll::Ready(self.pool.take(cx, now))).await {
            match self.exchange(&mut wire, &mut upload, to_head, progress, now).await {
                Ok(answer) => return Ok(self.reply(wire, upload, answer)),
                Err(told) if !told.sent && told.failure.cause == Cause::UpstreamClosed => {}
                Err(told) => {
                    if told.failure.cause == Cause::UpstreamClosed {
                        self.pool.distrust();
                    }
                    return Err(told);
                }
            }
        }
        // Boxed, as it is rare and large: whatever waits in here is moved about with every call.
        let mut wire = Box::pin(self.connect()).await?;
        if poll_fn(|cx| Poll::Ready(wire.is_quiet(cx))).await != Quiet::Yes {
            let message = format!(
                "{} closed the new connection before the call was sent; try again",
                self.config.origin
            );
            return Err(NotAnswered::before_sending(Cause::UpstreamClosed, message));
        }
        let answer = self.exchange(&mut wire, &mut upload, to_head, progress, Instant::now()).await?;
        Ok(self.reply(wire, upload, answer))
    }

    /// Closes connections that have been idle for too long. To be called now and then.
    pub fn sweep(&self) {
        self.pool.sweep();
    }

    /// Sends, and reads at the same time: an upstream may answer before it has all of a request. The time for that runs
    /// `from` when it is sent.
    async fn exchange(
        &self,
        wire: &mut Wire,
        upload: &mut Upload,
        to_head: bool,
        progress: &Progress,
        from: Instant,
    ) -> Result<Answer, NotAnswered> {
        let timeout = self.config.response_timeout;
        let mut reader = HeadReader::default();
        let (mut is_out, mut broken, mut deadline) = (false, None, None);
        // It was found quiet a moment ago, by this very task, which is woken when that changes.
        let mut is_quiet = true;
        let answer = poll_fn(|cx| {
            if !is_out && broken.is_none() {
                match upload.poll(cx, wire) {
                    Poll::Ready(Ok(())) => is_out = true,
                    Poll::Ready(Err(Stuck::Body)) => return Poll::Ready(Err(NoAnswer::Body)),
                    // It may have said why.
                    Poll::Ready(Err(Stuck::Wire(error))) => broken = Some(error),
                    Poll::Pending => {}
                }
            }
            let head = match std::mem::take(&mut is_quiet) && is_out {
                true => Poll::Pending,
                false => reader.poll(cx, wire, to_head),
            };
            match (head, broken.take()) {
                (Poll::Ready(Ok((head, came))), _) => return Poll::Ready(Ok(Answer { head, came, is_out })),
                (Poll::Ready(Err(none)), _) => return Poll::Ready(Err(NoAnswer::Head(none))),
                (Poll::Pending, Some(error)) => {
                    return Poll::Ready(Err(NoAnswer::Head(NoHead::Broken(error))));
                }
                (Poll::Pending, None) => {}
            }
            loop {
                let due = deadline.get_or_insert_with(|| Deadline::new(from, timeout));
                ready!(Pin::new(due).poll(cx));
                // A long upload has not asked for its answer yet: the time counts from its last byte, and an app that
                // pauses is no fault of WeChat's.
                let last = if progress.waits_for_app() { Instant::now() } else { progress.last().max(from) };
                if last.elapsed() >= timeout {
                    return Poll::Ready(Err(NoAnswer::InTime));
                }
                deadline = Some(Deadline::new(last, timeout));
            }
        })
        .await;
        answer.map_err(|none| {
            // Of a write that failed inside TLS a part may have left.
            let sent = upload.has_begun() || (wire.is_tls() && matches!(none, NoAnswer::Head(_)));
            NotAnswered { failure: self.told(none, progress), sent }
        })
    }

    fn reply(&self, wire: Wire, upload: Upload, answer: Answer) -> Reply {
        let Answer { head: Final { head, mut decoder, is_kept, .. }, mut came, is_out } = answer;
        let (wire, pool, carries_on) = if is_out {
            (wire, is_kept.then(|| Rc::clone(&self.pool)), None)
        } else {
            let (wire, carries_on) = wire.carry_on(upload, self.config.idle_timeout);
            (wire, None, Some(carries_on))
        };
        let came_at = Instant::now();
        // A small answer comes whole with its head: its connection is free before anyone has looked at it.
        if decoder.left().is_some_and(|left| left <= came.len() as u64)
            && let Ok(next) = decoder.next(&mut came)
        {
            let first = if let Next::Data(piece) = next { piece } else { Bytes::new() };
            settle(pool, Rest { wire, decoder, came }, came_at);
            let coming = carries_on.map(|carries_on| Box::new(Coming::nothing(carries_on)));
            return Reply { head, body: ReplyBody { first, is_looked_at: false, coming }, came_at };
        }
        let rest = Some(Rest { wire, decoder, came });
        let idle_timeout = self.config.idle_timeout;
        let coming = Coming { rest, more: VecDeque::new(), pool, carries_on, idle_timeout, idle: None };
        let body = ReplyBody { first: Bytes::new(), is_looked_at: false, coming: Some(Box::new(coming)) };
        Reply { head, body, came_at }
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
            None => Ok(Wire::Clear(tcp.into_inner())),
            Some((tls, name)) => {
                let stream = tls.connect(name.clone(), tcp.into_inner()).await.map_err(|error| {
                    NotAnswered::before_sending(
                        Cause::Tls,
                        format!("no trusted connection to {origin} ({error}); nothing was sent. If a company proxy or a test upstream signs with its own CA, name it in upstream_ca_file"),
                    )
                })?;
                Ok(Wire::Tls(Box::new(stream)))
            }
        }
    }

    fn told(&self, none: NoAnswer, progress: &Progress) -> Failure {
        const MAYBE: &str = "The call may or may not have taken effect; it was not sent again";
        let origin = &self.config.origin;
        if let Some(broken) = progress.broken() {
            return broken.failure();
        }
        match none {
            NoAnswer::Body => Broken::Off.failure(),
            NoAnswer::InTime => {
                let timeout = humantime::format_duration(self.config.response_timeout);
                Failure::new(
                    Cause::ResponseTimeout,
                    format!("{origin} did not answer within response_timeout ({timeout}). {MAYBE}"),
                )
            }
            NoAnswer::Head(NoHead::Malformed(what)) => Failure::new(
                Cause::UpstreamMalformed,
                format!("{origin} answered what is not sound HTTP: {what}. {MAYBE}"),
            ),
            NoAnswer::Head(NoHead::Closed) => Failure::new(
                Cause::UpstreamClosed,
                format!("{origin} closed the connection before it answered. {MAYBE}"),
            ),
            NoAnswer::Head(NoHead::Broken(error)) => Failure::new(
                Cause::UpstreamClosed,
                format!("{origin} closed the connection before it answered ({}). {MAYBE}", innermost(&error)),
            ),
        }
    }
}

/// A reply's head, and what came with it.
struct Answer {
    head: Final,
    came: BytesMut,
    /// Whether all of the request has gone.
    is_out: bool,
}

/// Why there is none.
enum NoAnswer {
    Head(NoHead),
    /// The request has no more of its body.
    Body,
    InTime,
}

/// The cause at the bottom, which says more than the layers above it.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// What WeChat answered.
pub struct Reply {
    /// Status and headers, as they came.
    pub head: ReplyHead,
    /// The body, as it comes.
    pub body: ReplyBody,
    /// When the head came.
    pub came_at: Instant,
}

/// A reply's body as it streams; what was looked at already stands in front. Gives its connection back when it has
/// been read to the end, and closes it otherwise.
///
/// Small, as it is moved about: of nearly every reply all is here, and nothing has to be known of how more would come.
pub struct ReplyBody {
    /// The piece that stands in front.
    first: Bytes,
    /// Whether it has been looked at, as all that stands behind it then has been.
    is_looked_at: bool,
    /// What is not here, or was not when the head came.
    coming: Option<Box<Coming>>,
}

/// How a body comes that did not come with its head.
struct Coming {
    /// What is still to be read; `None` at the end, and when there is no more to be had.
    rest: Option<Rest>,
    /// Pieces that were looked at, behind the first.
    more: VecDeque<Bytes>,
    /// Where the connection goes afterwards, if it may.
    pool: Option<Rc<Pool>>,
    /// A request that was answered before it had gone out goes on beside its answer.
    carries_on: Option<AbortHandle>,
    idle_timeout: Duration,
    idle: Option<Deadline>,
}

struct Rest {
    wire: Wire,
    decoder: Decoder,
    /// What came and has not been handed on.
    came: BytesMut,
}

/// All of a body is here: lets its connection go, which may carry the next call.
fn settle(pool: Option<Rc<Pool>>, rest: Rest, now: Instant) {
    // SECURITY: what came behind the end would be read as the next call's answer.
    if let Some(pool) = pool
        && rest.came.is_empty()
    {
        pool.put(rest.wire, now);
    }
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
    pub async fn look(&mut self) -> Result<Option<&Bytes>, Cut> {
        if !self.first.is_empty() && !self.is_looked_at {
            self.is_looked_at = true;
            return Ok(Some(&self.first));
        }
        let Some(coming) = &mut self.coming else { return Ok(None) };
        match poll_fn(|cx| coming.poll(cx)).await {
            Some(Ok(piece)) if self.first.is_empty() => {
                (self.first, self.is_looked_at) = (piece, true);
                Ok(Some(&self.first))
            }
            Some(Ok(piece)) => {
                coming.more.push_back(piece);
                Ok(coming.more.back())
            }
            Some(Err(cut)) => Err(cut),
            None => Ok(None),
        }
    }

    /// Whether all of it is here.
    #[must_use]
    pub fn is_here(&self) -> bool {
        self.coming.as_ref().is_none_or(|coming| coming.rest.is_none())
    }

    /// The piece that stands in front, if one is here.
    #[must_use]
    pub fn begins(&self) -> &[u8] {
        &self.first
    }

    /// All that was looked at so far.
    #[must_use]
    pub fn looked_at(&self) -> Vec<u8> {
        let first = Some(&self.first).filter(|_| self.is_looked_at);
        let more = self.coming.iter().flat_map(|coming| &coming.more);
        first.into_iter().chain(more).flat_map(|piece| piece.iter().copied()).collect()
    }

    /// Ends a request that was answered before it had gone out, together with its connection. Left to itself it
    /// would wait, and keep the body, for as long as the other side does not close.
    pub fn end_upload(&mut self) {
        if let Some(coming) = &mut self.coming
            && let Some(carries_on) = coming.carries_on.take()
            && !carries_on.is_finished()
        {
            carries_on.abort();
            coming.rest = None;
        }
    }

    /// What stands in front, which what was looked at next follows.
    fn take_first(&mut self) -> Bytes {
        let next = self.coming.as_mut().and_then(|coming| coming.more.pop_front());
        std::mem::replace(&mut self.first, next.unwrap_or_default())
    }
}

impl Coming {
    /// Nothing, beside a request that goes on.
    fn nothing(carries_on: AbortHandle) -> Self {
        let (carries_on, idle_timeout) = (Some(carries_on), Duration::ZERO);
        Self { rest: None, more: VecDeque::new(), pool: None, carries_on, idle_timeout, idle: None }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Cut>>> {
        loop {
            let Some(rest) = &mut self.rest else { return Poll::Ready(None) };
            match rest.decoder.next(&mut rest.came) {
                Ok(Next::Data(piece)) => {
                    self.idle = None;
                    if let Some(rest) = self.rest.take_if(|rest| rest.decoder.is_end()) {
                        settle(self.pool.take(), rest, Instant::now());
                    }
                    return Poll::Ready(Some(Ok(piece)));
                }
                Ok(Next::End) => {
                    self.idle = None;
                    if let Some(rest) = self.rest.take() {
                        settle(self.pool.take(), rest, Instant::now());
                    }
                    return Poll::Ready(None);
                }
                Ok(Next::More) => {}
                Err(what) => return Poll::Ready(Some(Err(self.broke_off(what)))),
            }
            let wanted = rest.decoder.left();
            match rest.wire.fill(cx, &mut rest.came, wanted) {
                Poll::Ready(Ok(0)) if rest.decoder.ends_with_connection() => {
                    self.rest = None;
                    return Poll::Ready(None);
                }
                Poll::Ready(Ok(0)) => {
                    return Poll::Ready(Some(Err(self.broke_off("the connection was closed"))));
                }
                Poll::Ready(Ok(_)) => self.idle = None,
                Poll::Ready(Err(error)) => {
                    return Poll::Ready(Some(Err(self.broke_off(&innermost(&error)))));
                }
                Poll::Pending => {
                    let timeout = self.idle_timeout;
                    let idle = self.idle.get_or_insert_with(|| Deadline::after(timeout));
                    ready!(Pin::new(idle).poll(cx));
                    self.rest = None;
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

    fn broke_off(&mut self, why: &str) -> Cut {
        self.rest = None;
        Cut(Failure::new(
            Cause::UpstreamClosed,
            format!(
                "WeChat's reply broke off before its end ({why}). The call may have taken effect; it was not sent again"
            ),
        ))
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if !self.first.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(self.take_first()))));
        }
        let Some(coming) = &mut self.coming else { return Poll::Ready(None) };
        coming.poll(cx).map(|next| next.map(|piece| piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_empty() && self.is_here()
    }

    fn size_hint(&self) -> SizeHint {
        let first = self.first.len() as u64;
        let Some(coming) = &self.coming else { return SizeHint::with_exact(first) };
        let more = coming.more.iter().map(|piece| piece.len() as u64).sum::<u64>();
        match coming.rest.as_ref().map_or(Some(0), |rest| rest.decoder.left()) {
            Some(rest) => SizeHint::with_exact(first + more + rest),
            None => SizeHint::default(),
        }
    }
}
