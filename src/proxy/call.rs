//! One request, able to go again: [`Call`] is the head as it will go upstream, and the body, which is kept while it
//! goes out so that the very same bytes can follow a second time.
//!
//! Which bodies can go twice: those of known length up to `replay_limit`, if `replay_budget` has room for them, and
//! those that had to be held whole anyway because they came without a length (WeChat answers chunked requests with
//! 412). Every other body streams, and its call goes once.

use std::cell::RefCell;
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::request;
use http::{HeaderName, HeaderValue, Method};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Instant;

use crate::deadline::Deadline;
use crate::error::{Cause, Failure};
use crate::proxy::head::{Ours, RequestHead};
use crate::proxy::inject::Target;
use crate::proxy::upstream;
use crate::server::framing::RawHead;
use crate::server::{Connection, gate};

/// What all calls in flight may keep of their bodies together, in bytes. Shared by all workers: one atomic add for
/// a call with a body.
#[derive(Clone, Debug)]
pub struct ReplayBudget(Arc<Budget>);

#[derive(Debug)]
struct Budget {
    total: u64,
    used: AtomicU64,
}

impl ReplayBudget {
    /// A budget of `total` bytes.
    #[must_use]
    pub fn new(total: u64) -> Self {
        Self(Arc::new(Budget { total, used: AtomicU64::new(0) }))
    }

    /// Bytes that calls in flight keep now.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.0.used.load(Ordering::Relaxed)
    }

    fn reserve(&self, bytes: u64) -> Option<Reserved> {
        let Budget { total, used } = &*self.0;
        used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(bytes).filter(|sum| sum <= total)
        })
        .ok()?;
        Some(Reserved { budget: self.clone(), bytes })
    }
}

/// A share of the budget, given back on drop.
#[derive(Debug)]
struct Reserved {
    budget: ReplayBudget,
    bytes: u64,
}

impl Reserved {
    /// Takes more; false if there is no room.
    fn grow(&mut self, bytes: u64) -> bool {
        match self.budget.reserve(bytes) {
            Some(mut more) => {
                self.bytes += std::mem::take(&mut more.bytes);
                true
            }
            None => false,
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.budget.0.used.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

/// What a body may cost.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The largest body, in bytes; above it 413.
    pub max_body: u64,
    /// The largest body of known length that is kept, in bytes.
    pub replay_limit: u64,
    /// The longest pause of the app in its body.
    pub idle_timeout: Duration,
    /// What all kept bodies may take together.
    pub budget: ReplayBudget,
}

/// One request on its way to WeChat.
pub struct Call {
    method: Method,
    head: RequestHead,
    body: Held,
}

/// How a request's head becomes that of a call.
#[derive(Clone, Copy)]
pub struct Heading<'a> {
    /// The head as the app sent it.
    pub raw: &'a RawHead,
    /// What becomes the `Host`.
    pub host: &'a HeaderValue,
    /// Headers that go no further.
    pub private: &'a [HeaderName],
    /// Whether compressed replies are declined.
    pub identity: bool,
    /// The connection it came on.
    pub connection: &'a Connection,
    /// When it came.
    pub came_at: Instant,
}

impl Call {
    /// Takes a request over: removes what is between the app and us, and holds the body, or gets ready to.
    ///
    /// # Errors
    /// The body is too large, broke off, stopped coming, or (without a length) found no room.
    pub async fn hold(
        head: &mut request::Parts,
        incoming: Incoming,
        heading: Heading<'_>,
        limits: &Limits,
    ) -> Result<Self, Failure> {
        let body = match Body::size_hint(&incoming).exact() {
            Some(length) if length > limits.max_body => return Err(too_large(limits)),
            Some(length) => Held::while_it_goes_out(incoming, length, limits, heading.came_at),
            None => Box::pin(Held::whole(incoming, limits)).await?,
        };
        Ok(Self::new(head, body, heading))
    }

    /// A call with a small body that is here already.
    #[must_use]
    pub fn of(head: &mut request::Parts, body: Bytes, heading: Heading<'_>, limits: &Limits) -> Self {
        let kept = limits.budget.reserve(0);
        let held = Held::new(None, body.len() as u64, kept, limits, heading.came_at);
        held.0.borrow_mut().chunks.push(body);
        Self::new(head, held, heading)
    }

    fn new(head: &mut request::Parts, body: Held, heading: Heading<'_>) -> Self {
        let (method, headers) = (head.method.clone(), std::mem::take(&mut head.headers));
        // WeChat wants a length (412 without), and a POST without a body has one: zero.
        let bare = matches!(method, Method::GET | Method::HEAD | Method::OPTIONS | Method::DELETE);
        let length = body.length();
        let ours = Ours {
            host: Some(heading.host),
            length: Some(length),
            says_length: length > 0 || !bare,
            identity: heading.identity.then_some(true),
            private: heading.private,
        };
        let head = RequestHead::new(heading.raw, &headers, ours);
        heading.connection.recycle(headers);
        Self { method, head, body }
    }

    /// The request with its credential: the first attempt, or the second after [`Call::again`] said yes.
    #[must_use]
    pub fn with(&self, target: &Target) -> upstream::Request {
        upstream::Request::new(&self.method, target.as_bytes(), self.head.as_bytes(), self.body.outgoing())
    }

    /// Whether it is worth asking [`again`](Self::again): what came of the body has been kept.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.body.0.borrow().kept.is_some()
    }

    /// Whether the very same bytes can go a second time. Waits for the rest of a body that WeChat refused before it
    /// had come whole, and ends the first attempt: from here on nothing more of it goes out.
    pub async fn again(&mut self) -> bool {
        self.body.complete().await
    }

    /// Gives what is kept back to the budget: this call will not go again.
    pub fn let_go(&mut self) {
        self.body.0.borrow_mut().stop_keeping();
    }

    /// Watches the body go out, for the upstream's timeout and for telling whose fault a failure was.
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress(Rc::clone(&self.body.0))
    }
}

fn too_large(limits: &Limits) -> Failure {
    Failure::new(
        Cause::BodyTooLarge,
        format!(
            "the request body is larger than max_body ({} bytes); nothing was sent. Raise max_body if WeChat takes such bodies",
            limits.max_body
        ),
    )
}

/// Why a body did not come whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The app closed, or sent what is not a body.
    Off,
    /// The app paused for longer than `idle_timeout`.
    Stalled,
}

impl Broken {
    /// The error the app gets, if it still listens.
    #[must_use]
    pub fn failure(self) -> Failure {
        match self {
            Self::Off => Failure::new(
                Cause::RequestBody,
                "the request body broke off before its end; the call did not reach WeChat whole. Send it again with all its bytes",
            ),
            Self::Stalled => Failure::new(
                Cause::RequestTimeout,
                "the app stopped sending the request body for longer than idle_timeout; the call did not reach WeChat whole",
            ),
        }
    }
}

/// A body, and as much of it as is kept.
struct Held(Rc<RefCell<Inner>>);

/// Pieces in their order. Nearly always it is one, for which no list is made.
#[derive(Default)]
struct Chunks {
    first: Bytes,
    more: Vec<Bytes>,
}

impl Chunks {
    fn push(&mut self, piece: Bytes) {
        if self.first.is_empty() {
            self.first = piece;
        } else {
            self.more.push(piece);
        }
    }

    fn get(&self, n: usize) -> Option<&Bytes> {
        match n.checked_sub(1) {
            None => Some(&self.first).filter(|first| !first.is_empty()),
            Some(n) => self.more.get(n),
        }
    }

    fn iter(&self) -> impl Iterator<Item = &Bytes> {
        (0..).map_while(|n| self.get(n))
    }
}

struct Inner {
    /// What is still to come from the app.
    rest: Option<Incoming>,
    /// What came, in order; all of it while `kept` is there.
    chunks: Chunks,
    /// Small pieces gathered into one buffer: a `Bytes` for each byte of a trickling app would cost 40 times as much.
    tail: BytesMut,
    kept: Option<Reserved>,
    length: u64,
    /// Whether `length` was known from the start; else it is what came so far.
    is_sized: bool,
    broken: Option<Broken>,
    /// Raised when a second attempt begins, so that the first one's body ends.
    attempt: u32,
    idle_timeout: Duration,
    idle: Option<Deadline>,
    last_progress: Instant,
}

/// From this size a piece is kept as it came; below it is copied, as it may pin a read buffer of 8 KiB and more.
const KEEP_AS_IT_CAME: usize = 4096;

impl Held {
    fn new(
        rest: Option<Incoming>,
        length: u64,
        kept: Option<Reserved>,
        limits: &Limits,
        now: Instant,
    ) -> Self {
        Self(Rc::new(RefCell::new(Inner {
            rest,
            chunks: Chunks::default(),
            tail: BytesMut::new(),
            kept,
            length,
            is_sized: true,
            broken: None,
            attempt: 0,
            idle_timeout: limits.idle_timeout,
            idle: None,
            last_progress: now,
        })))
    }

    fn while_it_goes_out(incoming: Incoming, length: u64, limits: &Limits, now: Instant) -> Self {
        if length == 0 {
            return Self::new(None, 0, limits.budget.reserve(0), limits, now);
        }
        let kept = if length <= limits.replay_limit { limits.budget.reserve(length) } else { None };
        Self::new(Some(incoming), length, kept, limits, now)
    }

    async fn whole(incoming: Incoming, limits: &Limits) -> Result<Self, Failure> {
        let no_room = || {
            let mut failure = Failure::new(
                Cause::OutOfBudget,
                "a request body without Content-Length has to be held whole (WeChat refuses chunked requests with 412), and replay_budget has no room for it now; nothing was sent. Send a Content-Length, or raise replay_budget",
            );
            failure.retry_after = Some(Duration::from_secs(1));
            failure
        };
        let reserved = limits.budget.reserve(0).ok_or_else(no_room)?;
        let held = Self::new(Some(incoming), 0, Some(reserved), limits, Instant::now());
        held.0.borrow_mut().is_sized = false;
        loop {
            let next = std::future::poll_fn(|cx| held.0.borrow_mut().poll_rest(cx)).await;
            let piece = match next {
                Some(Ok(piece)) => piece,
                Some(Err(broken)) => return Err(broken.failure()),
                None => break,
            };
            let mut inner = held.0.borrow_mut();
            let bytes = piece.len() as u64;
            inner.length += bytes;
            if inner.length > limits.max_body {
                return Err(too_large(limits));
            }
            if !inner.kept.as_mut().is_some_and(|kept| kept.grow(bytes)) {
                return Err(no_room());
            }
            inner.keep(piece);
        }
        let mut inner = held.0.borrow_mut();
        inner.seal();
        drop(inner);
        Ok(held)
    }

    fn length(&self) -> u64 {
        self.0.borrow().length
    }

    fn outgoing(&self) -> Outgoing {
        let inner = self.0.borrow();
        Outgoing { held: Rc::clone(&self.0), attempt: inner.attempt, next: 0, left: inner.length }
    }

    async fn complete(&mut self) -> bool {
        if self.0.borrow().kept.is_none() {
            return false;
        }
        self.0.borrow_mut().attempt += 1;
        loop {
            let next = std::future::poll_fn(|cx| self.0.borrow_mut().poll_rest(cx)).await;
            match next {
                Some(Ok(piece)) => self.0.borrow_mut().keep(piece),
                Some(Err(_)) => return false,
                None => break,
            }
        }
        let mut inner = self.0.borrow_mut();
        inner.seal();
        inner.chunks.iter().map(|chunk| chunk.len() as u64).sum::<u64>() == inner.length
    }
}

impl Inner {
    /// The next piece from the app.
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Broken>>> {
        if let Some(broken) = self.broken {
            return Poll::Ready(Some(Err(broken)));
        }
        loop {
            let Some(rest) = &mut self.rest else { return Poll::Ready(None) };
            let (polled, hyper) = gate::muted(|| Pin::new(rest).poll_frame(cx));
            let whole = match &polled {
                Poll::Ready(Some(Ok(frame))) if self.is_sized => {
                    frame.data_ref().is_some_and(|piece| piece.len() as u64 == self.length)
                }
                _ => false,
            };
            // After all of it hyper has nothing to bring.
            if let Some(hyper) = hyper.filter(|_| !whole) {
                hyper.wake();
            }
            match polled {
                Poll::Ready(Some(Ok(frame))) => {
                    // What is here at once as a whole has made no progress, and needs no clock.
                    if self.idle.take().is_some() || !whole {
                        self.last_progress = Instant::now();
                    }
                    match frame.into_data() {
                        Ok(piece) if !piece.is_empty() => return Poll::Ready(Some(Ok(piece))),
                        // Trailers have no place in a request with a length.
                        _ => {}
                    }
                }
                Poll::Ready(Some(Err(_))) => {
                    self.broken = Some(Broken::Off);
                    return Poll::Ready(Some(Err(Broken::Off)));
                }
                Poll::Ready(None) => {
                    self.rest = None;
                    self.idle = None;
                    return Poll::Ready(None);
                }
                Poll::Pending => {
                    let timeout = self.idle_timeout;
                    let idle = self.idle.get_or_insert_with(|| Deadline::after(timeout));
                    std::task::ready!(Pin::new(idle).poll(cx));
                    self.broken = Some(Broken::Stalled);
                    return Poll::Ready(Some(Err(Broken::Stalled)));
                }
            }
        }
    }

    fn keep(&mut self, piece: Bytes) {
        if self.kept.is_none() {
            return;
        }
        if piece.len() >= KEEP_AS_IT_CAME || piece.len() as u64 == self.length {
            self.seal();
            self.chunks.push(piece);
        } else {
            self.tail.extend_from_slice(&piece);
            if self.tail.len() >= 16 * KEEP_AS_IT_CAME {
                self.seal();
            }
        }
    }

    /// Moves gathered small pieces behind the others.
    fn seal(&mut self) {
        if !self.tail.is_empty() {
            let gathered = self.tail.split().freeze();
            self.chunks.push(gathered);
        }
    }

    fn stop_keeping(&mut self) {
        // Held whole, the chunks are the body itself: they stay until it has gone out.
        if self.rest.is_some() {
            self.chunks = Chunks::default();
            self.tail = BytesMut::new();
            self.kept = None;
        }
    }
}

/// A body on its way out. The first attempt of a body that still comes keeps what passes.
pub struct Outgoing {
    held: Rc<RefCell<Inner>>,
    attempt: u32,
    next: usize,
    left: u64,
}

/// Ends an attempt's body: the app broke off, or the call goes again.
#[derive(Clone, Copy, Debug)]
pub struct Ended;

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the request body ended early")
    }
}

impl std::error::Error for Ended {}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Ended;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Ended>>> {
        let this = &mut *self;
        if this.left == 0 {
            return Poll::Ready(None);
        }
        let mut inner = this.held.borrow_mut();
        if inner.attempt != this.attempt {
            return Poll::Ready(Some(Err(Ended)));
        }
        let piece = if inner.rest.is_none() && inner.broken.is_none() {
            // All of it is here already: held whole, or the second attempt.
            let Some(piece) = inner.chunks.get(this.next).cloned() else {
                return Poll::Ready(Some(Err(Ended)));
            };
            this.next += 1;
            inner.last_progress = Instant::now();
            piece
        } else {
            match std::task::ready!(inner.poll_rest(cx)) {
                Some(Ok(piece)) => {
                    inner.keep(piece.clone());
                    piece
                }
                Some(Err(_)) | None => return Poll::Ready(Some(Err(Ended))),
            }
        };
        this.left = this.left.saturating_sub(piece.len() as u64);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// A view of a body going out.
#[derive(Clone)]
pub struct Progress(Rc<RefCell<Inner>>);

impl Progress {
    /// When the last piece came or went.
    #[must_use]
    pub fn last(&self) -> Instant {
        self.0.borrow().last_progress
    }

    /// Whether more of the body is to come, and it is the app that it is waited for. `idle_timeout` watches that.
    #[must_use]
    pub fn waits_for_app(&self) -> bool {
        self.0.borrow().idle.is_some()
    }

    /// The app's failure to send its body, if that is what happened.
    #[must_use]
    pub fn broken(&self) -> Option<Broken> {
        self.0.borrow().broken
    }
}

/// Reads a small body whole, for the routes we answer ourselves.
///
/// # Errors
/// As [`Call::hold`]; a body above `limit` is too large.
pub async fn read_small(incoming: Incoming, limit: usize, idle_timeout: Duration) -> Result<Bytes, Failure> {
    let limits = Limits {
        max_body: limit as u64,
        replay_limit: 0,
        idle_timeout,
        budget: ReplayBudget::new(limit as u64),
    };
    let held = Held::whole(incoming, &limits).await.map_err(|failure| match failure.cause {
        Cause::BodyTooLarge | Cause::OutOfBudget => Failure::new(
            Cause::BodyTooLarge,
            format!("the request body is larger than this path can have ({limit} bytes); nothing was sent. Send what WeChat documents for it"),
        ),
        _ => failure,
    })?;
    let inner = held.0.borrow();
    if inner.chunks.more.is_empty() {
        return Ok(inner.chunks.first.clone());
    }
    Ok(inner.chunks.iter().flat_map(|piece| piece.iter().copied()).collect())
}
