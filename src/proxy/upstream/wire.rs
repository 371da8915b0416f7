//! One connection to WeChat: [`Wire`] is its bytes, [`Upload`] a request on its way out, and [`Pool`] the connections
//! that wait for their next call. No task and no channel: whoever has a call drives its connection.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http_body::Body;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_rustls::client::TlsStream;

use crate::buffer::Buffer;
use crate::deadline::Deadline;
use crate::proxy::call::Outgoing;
use crate::proxy::upstream::message::{self, Final, Head, MAX_HEAD, Malformed};

/// An idle connection is used again for this long. Well below the 60 to 75 s after which servers close theirs: a
/// call that meets a closing connection fails, because it cannot be known whether it was read.
const KEEP_IDLE: Duration = Duration::from_secs(45);

/// An upstream that closes a connection sooner than this after a reply, without having said so, keeps none alive.
const HARDLY_IDLE: Duration = Duration::from_secs(1);

/// Once that was seen, connections are used for one call each for so long. A call on a connection that is just being
/// closed fails, because it cannot be known whether it was read: this bounds such calls to one in so much time.
const DISTRUST: Duration = Duration::from_secs(30);

/// Idle connections kept per worker: as many as a crowd of calls that is refused at once needs again a moment later.
const MOST_IDLE: usize = 1024;

/// The most that is read at once, so what one reply may keep: a big download must not grow the process by tens of
/// MiB (`perf.md`).
const READ: usize = 64 * 1024;

/// The same where it is not known how much will come.
const UNKNOWN: usize = 16 * 1024;

/// A body's piece up to this size is copied behind what goes before it, so that a small call is one write of one
/// buffer; a larger one goes as it came.
const COPIED: usize = 8 * 1024;

thread_local! {
    /// Where heads are read, one for all connections of a worker: an idle one costs nothing.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A connection, in clear or inside TLS.
pub(super) enum Wire {
    Clear(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    /// What a reply is read from while another task sends the rest of its request.
    Half(ReadHalf<Box<Wire>>),
}

impl Wire {
    /// Whether the next call may go out on it: it is open, and silent. What its last reply did not bring, and what the
    /// other side sends unasked, must not become the next call's answer.
    pub(super) fn is_quiet(&mut self, cx: &mut Context<'_>) -> Quiet {
        let mut byte = [0];
        let mut read = ReadBuf::new(&mut byte);
        // Outside of tokio's budget: one that is used up would answer "nothing here" for a connection that has ended.
        let looked = {
            let mut look =
                pin!(tokio::task::unconstrained(poll_fn(|cx| Pin::new(&mut *self).poll_read(cx, &mut read))));
            look.as_mut().poll(cx)
        };
        match looked {
            Poll::Pending => Quiet::Yes,
            Poll::Ready(Ok(())) if !read.filled().is_empty() => Quiet::OutOfStep,
            Poll::Ready(_) => Quiet::Closed,
        }
    }

    /// Reads more into `into`: what is there, up to [`READ`] bytes or as much as is `wanted`. Gives how many came;
    /// none, at the end.
    pub(super) fn fill(
        &mut self,
        cx: &mut Context<'_>,
        into: &mut BytesMut,
        wanted: Option<u64>,
    ) -> Poll<io::Result<usize>> {
        let room = wanted.map_or(UNKNOWN, |wanted| usize::try_from(wanted).unwrap_or(READ).clamp(1, READ));
        into.reserve(room);
        let tls = match self {
            Self::Clear(tcp) => return pin!(tcp.read_buf(&mut into.limit(room))).poll(cx),
            Self::Half(half) => return pin!(half.read_buf(&mut into.limit(room))).poll(cx),
            Self::Tls(tls) => tls,
        };
        // A record at a time, and several may be here. An error after some of them comes again: of TLS nothing is
        // left then, not even a proper end.
        let mut came = 0;
        while came < room {
            match pin!(tls.read_buf(&mut (&mut *into).limit(room - came))).poll(cx) {
                Poll::Ready(Ok(n)) if n > 0 => came += n,
                _ if came > 0 => break,
                ended => return ended,
            }
        }
        Poll::Ready(Ok(came))
    }

    /// Whether a write that failed may have sent something all the same: of a TLS record, a part.
    pub(super) fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// Sends the rest of a request in a task of its own, and gives what its reply is read from: an app may read its
    /// reply only after it has sent all of its request.
    pub(super) fn carry_on(self, upload: Upload, idle_timeout: Duration) -> (Self, AbortHandle) {
        let (read, write) = tokio::io::split(Box::new(self));
        let sending = tokio::task::spawn_local(send_rest(write, upload, idle_timeout));
        (Self::Half(read), sending.abort_handle())
    }
}

/// A request of which nothing has gone for twice `idle_timeout` is given up; an app that pauses is watched where its
/// body is read.
async fn send_rest(mut wire: WriteHalf<Box<Wire>>, mut upload: Upload, idle_timeout: Duration) {
    let mut idle = None;
    let mut written = upload.written;
    poll_fn(|cx| {
        let ended = upload.poll(cx, &mut wire).is_ready();
        if ended || written != upload.written {
            (idle, written) = (None, upload.written);
        }
        if ended {
            return Poll::Ready(());
        }
        Pin::new(idle.get_or_insert_with(|| Deadline::after(2 * idle_timeout))).poll(cx)
    })
    .await;
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Clear(tcp) => Pin::new(tcp).poll_read(cx, into),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, into),
            Self::Half(half) => Pin::new(half).poll_read(cx, into),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Clear(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, bytes),
            Self::Half(_) => Poll::Ready(Err(io::ErrorKind::Unsupported.into())),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Clear(tcp) => Pin::new(tcp).poll_write_vectored(cx, slices),
            Self::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, slices),
            Self::Half(_) => Poll::Ready(Err(io::ErrorKind::Unsupported.into())),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
            Self::Clear(_) | Self::Half(_) => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Clear(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
            Self::Half(_) => Poll::Ready(Ok(())),
        }
    }
}

/// What an idle connection turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quiet {
    Yes,
    Closed,
    OutOfStep,
}

/// Reads the head of a reply, over what may come before it.
#[derive(Default)]
pub(super) struct HeadReader {
    /// What came of it before, when it did not come whole.
    part: Vec<u8>,
    /// The length of the interim heads before it, which may be some and not a flood.
    interim: usize,
}

/// Why no head came.
#[derive(Debug)]
pub(super) enum NoHead {
    Malformed(Malformed),
    Closed,
    Broken(io::Error),
}

impl HeadReader {
    /// The head, and what came of the body with it.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        wire: &mut Wire,
        to_head: bool,
    ) -> Poll<Result<(Final, BytesMut), NoHead>> {
        let mut scratch = SCRATCH.take();
        if scratch.is_empty() {
            scratch.resize(READ, 0);
        }
        let head = loop {
            let mut read = ReadBuf::new(&mut scratch);
            match Pin::new(&mut *wire).poll_read(cx, &mut read) {
                Poll::Pending => break Poll::Pending,
                Poll::Ready(Err(error)) => break Poll::Ready(Err(NoHead::Broken(error))),
                Poll::Ready(Ok(())) if read.filled().is_empty() => break Poll::Ready(Err(NoHead::Closed)),
                Poll::Ready(Ok(())) => {}
            }
            match self.take(read.filled(), to_head) {
                Ok(None) => {}
                Ok(Some(head)) => break Poll::Ready(Ok(head)),
                Err(malformed) => break Poll::Ready(Err(NoHead::Malformed(malformed))),
            }
        };
        SCRATCH.set(scratch);
        head
    }

    /// Takes what came next.
    pub(super) fn take(
        &mut self,
        came: &[u8],
        to_head: bool,
    ) -> Result<Option<(Final, BytesMut)>, Malformed> {
        let known = self.part.len();
        if known > 0 {
            self.part.extend_from_slice(came);
            // A head that comes byte by byte is read again only where it may have ended.
            let from = known.saturating_sub(3);
            if self.part.len() <= MAX_HEAD && memchr::memmem::find(&self.part[from..], b"\n\r\n").is_none() {
                return message::whole_lines(&self.part, known).map(|()| None);
            }
        }
        let mut rest = if known > 0 { &self.part[..] } else { came };
        while !rest.is_empty() {
            match message::head(rest, to_head)? {
                Head::Interim(length) => {
                    self.interim += length;
                    if self.interim > MAX_HEAD {
                        return Err("it sent interim answers without end");
                    }
                    rest = &rest[length..];
                }
                Head::Final(head) => {
                    let body = BytesMut::from(&rest[head.length..]);
                    self.part = Vec::new();
                    return Ok(Some((head, body)));
                }
                Head::Partial => break,
            }
        }
        self.part = rest.to_vec();
        Ok(None)
    }
}

/// A request on its way out.
pub(super) struct Upload {
    /// The head, then small pieces of the body; and how much of it was written.
    out: Buffer,
    at: usize,
    /// A piece that goes as it came, after `out`.
    piece: Bytes,
    body: Outgoing,
    /// How many bytes have been given to the connection.
    written: u64,
}

/// Why a request does not go on.
#[derive(Debug)]
pub(super) enum Stuck {
    /// There is no more of its body.
    Body,
    Wire(io::Error),
}

impl Upload {
    /// `out` begins with the head.
    pub(super) fn new(out: Buffer, body: Outgoing) -> Self {
        Self { out, at: 0, piece: Bytes::new(), body, written: 0 }
    }

    pub(super) fn has_begun(&self) -> bool {
        self.written > 0
    }

    /// Sends what there is, until all of it has gone.
    pub(super) fn poll<W: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        wire: &mut W,
    ) -> Poll<Result<(), Stuck>> {
        let mut wire = Pin::new(wire);
        loop {
            let waits = match self.gather(cx) {
                Poll::Ready(Ok(())) => false,
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Stuck::Body)),
                Poll::Pending => true,
            };
            if self.is_written() {
                // TLS may still hold some of it.
                ready!(wire.as_mut().poll_flush(cx)).map_err(Stuck::Wire)?;
                if waits {
                    return Poll::Pending;
                }
                // Of use to the next one, while this waits for its answer.
                self.out = Buffer::default();
                self.at = 0;
                return Poll::Ready(Ok(()));
            }
            while !self.is_written() {
                let out = &self.out[self.at..];
                let written = match (out.is_empty(), self.piece.is_empty()) {
                    (_, true) => wire.as_mut().poll_write(cx, out),
                    (true, _) => wire.as_mut().poll_write(cx, &self.piece),
                    _ => {
                        wire.as_mut().poll_write_vectored(cx, &[IoSlice::new(out), IoSlice::new(&self.piece)])
                    }
                };
                let written = match ready!(written) {
                    Ok(0) => return Poll::Ready(Err(Stuck::Wire(io::ErrorKind::WriteZero.into()))),
                    Ok(written) => written,
                    Err(error) => return Poll::Ready(Err(Stuck::Wire(error))),
                };
                self.written += written as u64;
                let of_out = written.min(self.out.len() - self.at);
                self.at += of_out;
                self.piece.advance(written - of_out);
            }
        }
    }

    fn is_written(&self) -> bool {
        self.at == self.out.len() && self.piece.is_empty()
    }

    /// Brings what can go with the next write. Pending when that is not all, and the app is waited for.
    fn gather(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ()>> {
        if self.at == self.out.len() {
            self.out.clear();
            self.at = 0;
        }
        while self.piece.is_empty() && self.out.len() < 2 * COPIED {
            if self.body.is_end_stream() {
                return Poll::Ready(Ok(()));
            }
            let piece = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
                Some(Err(_)) => return Poll::Ready(Err(())),
                None => Bytes::new(),
            };
            if piece.len() <= COPIED {
                self.out.extend_from_slice(&piece);
            } else {
                self.piece = piece;
            }
        }
        // There may be more, but this is enough for now.
        Poll::Ready(Ok(()))
    }
}

/// Idle connections, the one used last on top.
#[derive(Default)]
pub(super) struct Pool {
    idle: RefCell<VecDeque<Idle>>,
    /// Until then nothing is kept.
    distrusted_until: Cell<Option<Instant>>,
}

struct Idle {
    wire: Wire,
    since: Instant,
}

impl Pool {
    /// A connection that may carry a call now.
    pub(super) fn take(&self, cx: &mut Context<'_>, now: Instant) -> Option<Wire> {
        loop {
            // Not in a `while let`, which would hold the borrow while the body wants it.
            let mut connection = self.idle.borrow_mut().pop_back()?;
            let idle_for = now.saturating_duration_since(connection.since);
            match connection.wire.is_quiet(cx) {
                Quiet::Yes if idle_for < KEEP_IDLE => return Some(connection.wire),
                Quiet::Closed if idle_for < HARDLY_IDLE => self.distrust(),
                _ => {}
            }
        }
    }

    pub(super) fn put(&self, wire: Wire, now: Instant) {
        if self.distrusted_until.get().is_some_and(|until| now < until) {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        if idle.len() >= MOST_IDLE {
            idle.pop_front();
        }
        idle.push_back(Idle { wire, since: now });
    }

    /// The other side closes connections it seems to keep.
    pub(super) fn distrust(&self) {
        self.distrusted_until.set(Some(Instant::now() + DISTRUST));
        drop(self.idle.take());
    }

    /// Closes those that have been idle for too long, or that the other side has closed.
    pub(super) fn sweep(&self) {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        self.idle
            .borrow_mut()
            .retain_mut(|idle| idle.since.elapsed() < KEEP_IDLE && idle.wire.is_quiet(&mut cx) == Quiet::Yes);
    }
}
