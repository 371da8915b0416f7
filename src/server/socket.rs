//! The app's socket as hyper has it ([`AppSocket`]): it puts our lines in place of hyper's, gives up on an app that takes
//! nothing, and closes so that the app gets what was said last.

use super::*;

/// After our side of a connection has ended, what the app still sends is read and dropped for this long. Closing
/// with unread bytes makes the kernel send a reset, which takes the reply (a 413, say) out of the app's hands.
const LINGER: Duration = Duration::from_secs(5);

/// While draining, an app that sends nothing for this long has nothing on the way. Many pools keep their end of an
/// idle connection open until they want to use it, and a stop must not wait for them.
const QUIET: Duration = Duration::from_millis(100);

/// The app's socket: lingers when it closes, or resets if the handler asked for it.
#[derive(Debug)]
pub(super) struct AppSocket<S: Wire> {
    stream: S,
    connection: Connection,
    lingering: Option<Lingering>,
    idle_timeout: Duration,
    /// Runs while the app takes nothing of what is written.
    stalled: Option<Deadline>,
    /// What goes out in place of the first bytes that hyper wants written.
    instead: Option<Instead>,
}

/// A reply's head, or words for a wordless refusal of hyper's.
#[derive(Debug)]
struct Instead {
    text: Buffer,
    done: usize,
    /// How many of hyper's bytes it is for.
    of: usize,
}

/// How long an app that has been told goodbye is still listened to.
#[derive(Debug)]
struct Lingering {
    end: Pin<Box<tokio::time::Sleep>>,
    latest: Instant,
    /// Whether the end was brought nearer because a drain has begun.
    hurried: bool,
}

impl Lingering {
    fn new() -> Self {
        let latest = Instant::now() + LINGER;
        Self { end: Box::pin(tokio::time::sleep_until(latest)), latest, hurried: false }
    }

    /// From now on only as long as the app goes on sending.
    fn hurry(&mut self) {
        self.hurried = true;
        self.end.as_mut().reset(self.latest.min(Instant::now() + QUIET));
    }
}

impl<S: Wire> AppSocket<S> {
    pub(super) fn new(stream: S, connection: Connection, idle_timeout: Duration) -> Self {
        Self { stream, connection, lingering: None, idle_timeout, stalled: None, instead: None }
    }

    /// Writes what hyper wants written, with the head that the handler gave, or better words for hyper's own.
    fn write(&mut self, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if self.instead.is_none() {
            match self.find_instead(bufs)? {
                Some(instead) => self.instead = Some(instead),
                None => return Pin::new(&mut self.stream).poll_write_vectored(cx, bufs),
            }
        }
        let Some(Instead { text, done, of }) = &mut self.instead else { return Poll::Ready(Ok(0)) };
        // hyper comes again with the same bytes until they are said to be written.
        let behind = bufs.get(1..).unwrap_or_default();
        let mut slices = [io::IoSlice::new(&[]); MOST_SLICES];
        let most = behind.len().min(MOST_SLICES - 1);
        slices[1..=most].copy_from_slice(&behind[..most]);
        while *done < text.len() {
            slices[0] = io::IoSlice::new(&text[*done..]);
            match ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, &slices[..=most]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => *done += n,
            }
        }
        let written = *of + (*done - text.len());
        self.instead = None;
        Poll::Ready(Ok(written))
    }

    /// What is to go in place of the first buffer, if anything is.
    fn find_instead(&self, bufs: &[io::IoSlice<'_>]) -> io::Result<Option<Instead>> {
        let Some(first) = bufs.first() else { return Ok(None) };
        let text = match self.connection.0.lines.take() {
            // SECURITY: a reply without its head must not go out as if it were one.
            Some(lines) => Some(lines.in_place_of(first).ok_or(io::ErrorKind::InvalidData)?),
            None if bufs.len() == 1 => wordless::words(first).map(Buffer::from),
            None => None,
        };
        Ok(text.map(|text| Instead { text, done: 0, of: first.len() }))
    }

    fn in_time<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        in_time(&mut self.stalled, self.idle_timeout, cx, written)
    }
}

/// Passes on what became of a write; one that has waited too long fails. An app that stops reading would otherwise hold
/// its connection, and WeChat's, for ever.
fn in_time<T>(
    stalled: &mut Option<Deadline>,
    timeout: Duration,
    cx: &mut Context<'_>,
    written: Poll<io::Result<T>>,
) -> Poll<io::Result<T>> {
    if written.is_ready() {
        *stalled = None;
        return written;
    }
    let stalled = stalled.get_or_insert_with(|| Deadline::after(timeout));
    ready!(Pin::new(stalled).poll(cx));
    Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the app has stopped reading its reply")))
}

/// Buffers that are written at once behind a head: the body's, which are few.
const MOST_SLICES: usize = 8;

/// What an app's bytes come over.
pub(super) trait Wire: AsyncRead + AsyncWrite + Unpin {
    /// Whether they are encrypted.
    const TLS: bool;

    /// The socket at the bottom, if it is one that can be reset.
    fn tcp(&self) -> Option<&TcpStream>;
}

impl Wire for TcpStream {
    const TLS: bool = false;

    fn tcp(&self) -> Option<&TcpStream> {
        Some(self)
    }
}

impl Wire for UnixStream {
    const TLS: bool = false;

    fn tcp(&self) -> Option<&TcpStream> {
        None
    }
}

impl Wire for TlsStream<TcpStream> {
    const TLS: bool = true;

    fn tcp(&self) -> Option<&TcpStream> {
        Some(self.get_ref().0)
    }
}

impl<S: Wire> Drop for AppSocket<S> {
    fn drop(&mut self) {
        if self.connection.0.reset.get()
            && let Some(tcp) = self.stream.tcp()
        {
            let _ = SockRef::from(tcp).set_linger(Some(Duration::ZERO));
        }
    }
}

impl<S: Wire> AsyncRead for AppSocket<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: Wire> AsyncWrite for AppSocket<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = self.write(cx, &[io::IoSlice::new(buf)]);
        self.in_time(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = self.write(cx, bufs);
        self.in_time(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let written = Pin::new(&mut self.stream).poll_flush(cx);
        self.in_time(cx, written)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.connection.0.reset.get() {
            // A clean end of stream is what the reset is there to prevent.
            return Poll::Ready(Ok(()));
        }
        let draining = this.connection.0.draining.get();
        let lingering = match &mut this.lingering {
            Some(lingering) => lingering,
            none => {
                let said = Pin::new(&mut this.stream).poll_shutdown(cx);
                none.insert({
                    // Of TLS a last word is written, which an app that reads nothing never takes.
                    ready!(in_time(&mut this.stalled, this.idle_timeout, cx, said))?;
                    Lingering::new()
                })
            }
        };
        if draining && !lingering.hurried {
            lingering.hurry();
        }
        let mut scratch = [0; 4096];
        loop {
            if lingering.end.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut buf = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut this.stream).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => {
                    if draining {
                        lingering.hurry();
                    }
                }
                // The app has closed, too, or is gone.
                _ => return Poll::Ready(Ok(())),
            }
        }
    }
}
