//! Guards where one request ends and the next begins: what can be read in two ways never reaches hyper.
//!
//! hyper repairs what it can: it drops a Content-Length beside a Transfer-Encoding, merges equal Content-Lengths,
//! takes `gzip, chunked`, ends lines at a bare LF, skips any number of empty lines, and `http` cuts a target at `#`.
//! Each is sound alone, but whoever stands between the app and us (a mesh, another proxy) may repair it otherwise,
//! and then a request hides in the body of another one and leaves with our credential. So the rule is: such a
//! request gets 400, the connection ends, and nothing of it is forwarded.
//!
//! [`Guarded`] is the socket that hyper reads. It follows the framing of all that comes in, and at the first byte
//! that breaks a rule it hands out poison instead and then nothing more. hyper acts on a head only once it is
//! complete, and rules break at its last byte at the latest: so hyper answers 400 by itself and hangs up. In the
//! framing of a chunked body, the body ends with an error.
//!
//! The heads that pass are kept as they came, for whoever hands them on ([`Heads`]). And an app that brings none for too
//! long, or not all of one, is let go ([`Patience`]): hyper's own timer would be set anew for every call.

mod heads;
mod patience;
mod violation;
mod wanted;

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::rt::ReadBufCursor;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::server::framing::heads::Passed;
use crate::server::framing::patience::{Awaited, Due};
use crate::server::framing::violation::Violation;
use crate::syntax::{self, is_control, is_token, plain_number, tokens};

pub use crate::server::framing::heads::{Heads, RawHead};
pub use crate::server::framing::patience::Patience;
pub use crate::server::framing::wanted::Wanted;

/// What hyper reads in place of a byte that breaks a rule.
///
/// `\r\0` is an error in every state of its parsers: in a head, a chunk size, an extension, a trailer, and after a
/// CR. (A NUL alone is not: hyper reads over one in a chunk extension.) The empty line is for hyper's check that a
/// partial head is complete, without which it would not look again and the app would wait for its answer.
const POISON: &[u8] = b"\r\0\r\n\r\n";

/// The most that is read at once. hyper starts with 8 KiB and asks for more only while an upload fills it.
const SCRATCH: usize = 64 * 1024;

/// The longest chunk size line, extensions included. Nobody we know of sends an extension.
const MAX_SIZE_LINE: usize = 256;

/// The most that the size lines' extensions of one body may take together; above 16 KiB hyper gives up.
const MAX_EXTENSIONS: usize = 8 * 1024;

/// The most that the trailers of one body may take; above 16 KiB hyper gives up.
const MAX_TRAILERS: usize = 8 * 1024;

/// The most trailers of one body; above 100 hyper gives up.
const MAX_TRAILER_LINES: usize = 64;

/// The longest body that is believed: beyond `i64::MAX` someone else may read a negative number.
const MAX_LENGTH: u64 = i64::MAX as u64;

thread_local! {
    /// Where requests are read and checked before hyper gets them, since in hyper's own buffer that needs unsafe
    /// code. One for all connections of a worker, so an idle one costs nothing; the price is a copy of what comes in.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A connection as hyper's server sees it: `T`, without requests that can be read in two ways.
///
/// It takes the place of `hyper_util::rt::TokioIo`.
#[derive(Debug)]
pub struct Guarded<T> {
    io: T,
    framing: Framing,
    heads: Heads,
    /// What hyper is still to get of [`POISON`], once a rule was broken.
    poison: Option<&'static [u8]>,
    due: Due,
}

impl<T> Guarded<T> {
    /// Guards a connection that nothing was read from yet. The heads that come go to `heads`.
    pub fn new(io: T, heads: Heads, patience: Patience) -> Self {
        Self { io, framing: Framing::new(), heads, poison: None, due: Due::new(patience) }
    }

    /// The connection itself.
    pub fn get_ref(&self) -> &T {
        &self.io
    }
}

impl<T: AsyncRead + Unpin> hyper::rt::Read for Guarded<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut out: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(rest) = this.poison {
            // SECURITY: what the peer sends now is not even read. Without poison left, this is an end of file.
            this.poison = Some(hand_out(rest, &mut out));
            return Poll::Ready(Ok(()));
        }

        let heads = this.heads.0.borrow().number;
        let mut buffer = BUFFER.take();
        if buffer.is_empty() {
            buffer.resize(SCRATCH, 0);
        }
        let mut read = ReadBuf::new(&mut buffer[..out.remaining().min(SCRATCH)]);
        let polled = Pin::new(&mut this.io).poll_read(cx, &mut read);
        if let Poll::Ready(Ok(())) = polled {
            let bytes = read.filled();
            let scanned = this.framing.scan(bytes, &mut this.heads.0.borrow_mut());
            this.heads.0.borrow_mut().in_body = this.framing.awaited() == Awaited::Body;
            let mut hand_over = |bytes: &[u8]| {
                let mut from = 0;
                for withheld in this.heads.0.borrow_mut().withheld.drain(..) {
                    out.put_slice(&bytes[from..withheld.start]);
                    from = withheld.end;
                }
                out.put_slice(&bytes[from..]);
            };
            match scanned {
                Ok(()) => hand_over(bytes),
                Err((good, violation)) => {
                    // The reply is hyper's and has no words, so this line is where the reason is told; once, as
                    // the connection ends.
                    tracing::info!(reason = %violation, "a request can be read in two ways");
                    hand_over(&bytes[..good]);
                    this.poison = Some(hand_out(POISON, &mut out));
                }
            }
        }
        BUFFER.set(buffer);
        match polled {
            Poll::Pending => this.due.poll(cx, this.framing.awaited()),
            ready => {
                // A head that is whole begins a new time for the next, of which some may be here already.
                let whole = this.heads.0.borrow().number != heads;
                if whole || this.framing.awaited() != Awaited::Rest {
                    this.due.met();
                }
                ready
            }
        }
    }
}

/// Gives as much as there is room for, and returns the rest.
fn hand_out(bytes: &'static [u8], out: &mut ReadBufCursor<'_>) -> &'static [u8] {
    let (now, later) = bytes.split_at(bytes.len().min(out.remaining()));
    out.put_slice(now);
    later
}

impl<T: AsyncWrite + Unpin> hyper::rt::Write for Guarded<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, slices)
    }
}

/// Follows requests through a connection, however they are cut. Pure: bytes go in, and the place of the first one
/// that breaks a rule comes out. RFC 9112 is the grammar, without what it lets a recipient forgive.
#[derive(Clone, Debug)]
struct Framing {
    state: State,
    /// An empty line came before this request, as RFC 9112 2.2 asks to bear.
    empty_line: bool,
    http_11: bool,
    /// The fields that are read stand after the chunks.
    in_trailers: bool,
    /// The last byte was a head's last.
    head_ended: bool,
    length: Option<u64>,
    chunked: bool,
    /// The current field's name, as far as it may be one of the two.
    name: [u8; LONGEST_NAME],
    name_length: usize,
    /// How far the value of one of the two is.
    part: Part,
    /// The Content-Length or chunk size that is read.
    number: u64,
    /// How much of `chunked` was read.
    matched: usize,
    size_line: usize,
    extensions: usize,
    trailers: usize,
    trailer_lines: usize,
    /// The body of every request that is complete, and of the one that is not.
    #[cfg(test)]
    bodies: Vec<Vec<u8>>,
    #[cfg(test)]
    body: Vec<u8>,
}

const CONTENT_LENGTH: &[u8] = b"content-length";
const TRANSFER_ENCODING: &[u8] = b"transfer-encoding";
const LONGEST_NAME: usize = TRANSFER_ENCODING.len();
const CHUNKED: &[u8] = b"chunked";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before a request.
    Start,
    Method,
    TargetStart,
    Target,
    /// In the version, with how many of its 8 bytes came.
    Version(u8),
    /// Where a field, or the empty line after all of them, begins.
    LineStart,
    Name,
    Value(Field),
    /// After the CR of this line.
    LineEnd(Line),
    /// In a body or a chunk, with how many bytes are still to come (at least one).
    Data(u64),
    /// After a chunk's data.
    ChunkEnd,
    SizeStart,
    Size,
    /// After white space that must lead to an extension.
    SizeSpace,
    Extension,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    ContentLength,
    TransferEncoding,
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    /// An empty one before a request.
    Empty,
    /// The request line or a field.
    Field,
    /// The empty one after the head or the trailers.
    Last,
    Size,
    /// What follows a chunk's data.
    Chunk,
}

/// Of a value: white space, what counts, white space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Before,
    Inside,
    After,
}

impl Framing {
    fn new() -> Self {
        Self {
            state: State::Start,
            empty_line: false,
            http_11: false,
            in_trailers: false,
            head_ended: false,
            length: None,
            chunked: false,
            name: [0; LONGEST_NAME],
            name_length: 0,
            part: Part::Before,
            number: 0,
            matched: 0,
            size_line: 0,
            extensions: 0,
            trailers: 0,
            trailer_lines: 0,
            #[cfg(test)]
            bodies: Vec::new(),
            #[cfg(test)]
            body: Vec::new(),
        }
    }

    /// Takes what came next, and gives the heads in it to `passed`. After an error, which tells how many bytes were
    /// good, it must not be used again.
    fn scan(&mut self, bytes: &[u8], passed: &mut Passed) -> Result<(), (usize, Violation)> {
        let mut at = 0;
        // Where what belongs to the current head begins.
        let mut head = 0;
        loop {
            if self.state == State::Start
                && let Some(head) = self.plain_head(&bytes[at..])
            {
                let head = withhold(head, at, passed);
                at += head.text.len();
                passed.whole.push_back(head);
                passed.number += 1;
            }
            let skipped = self.skip(&bytes[at..]);
            at += skipped;
            let Some(&byte) = bytes.get(at) else {
                if self.is_in_head() {
                    passed.part.extend_from_slice(&bytes[head..]);
                }
                return self.count_trailers(skipped).map_err(|v| (at, v));
            };
            self.count_trailers(skipped + 1).map_err(|v| (at, v))?;
            if self.state == State::Start {
                head = at;
            }
            self.state = self.step(byte).map_err(|v| (at, v))?;
            at += 1;
            if std::mem::take(&mut self.head_ended) {
                let mut whole = std::mem::take(&mut passed.part);
                whole.extend_from_slice(&bytes[head..at]);
                passed.whole.push_back(RawHead::sound(&whole));
                passed.number += 1;
            }
        }
    }

    /// What has to come next.
    fn awaited(&self) -> Awaited {
        match self.state {
            State::Start | State::LineEnd(Line::Empty) => Awaited::Beginning,
            _ if self.is_in_head() => Awaited::Rest,
            _ => Awaited::Body,
        }
    }

    /// The head that `bytes` begin with, if it is here as a whole and there is nothing odd in it: then it is taken at
    /// once. Nearly every head is of that kind; all others go byte by byte, and the tests hold the two against each
    /// other.
    fn plain_head(&mut self, bytes: &[u8]) -> Option<RawHead> {
        let method = tokens(bytes);
        let target = bytes.get(method + 1..).filter(|_| method > 0 && bytes[method] == b' ')?;
        let length = syntax::target(target);
        let mut at = method + 1 + length;
        let http_11 = match bytes.get(at..at + 11)? {
            b" HTTP/1.1\r\n" if length > 0 => true,
            b" HTTP/1.0\r\n" if length > 0 => false,
            _ => return None,
        };
        at += 11;
        let mut head = RawHead::new();
        let mut length = None;
        while !bytes[at..].starts_with(b"\r\n") {
            let (line, _, value) = syntax::plain_line(bytes, at)?;
            match line.field {
                syntax::Field::ContentLength if length.is_some() => return None,
                syntax::Field::ContentLength => length = Some(plain_number(value)?),
                syntax::Field::TransferEncoding => return None,
                _ => {}
            }
            at = line.to as usize + 2;
            head.lines.push(line);
        }
        match length {
            None | Some(0) => self.state = self.end_request(),
            Some(left) => {
                (self.http_11, self.length) = (http_11, length);
                self.state = State::Data(left);
            }
        }
        head.text.extend_from_slice(&bytes[..at + 2]);
        Some(head)
    }

    /// Whether a head has begun and not ended.
    fn is_in_head(&self) -> bool {
        match self.state {
            State::Method | State::TargetStart | State::Target | State::Version(_) => true,
            State::LineStart | State::Name | State::Value(_) => !self.in_trailers,
            State::LineEnd(Line::Field | Line::Last) => !self.in_trailers,
            _ => false,
        }
    }

    /// How many of the next bytes change nothing. Most bytes are data, targets and values of no interest.
    fn skip(&mut self, bytes: &[u8]) -> usize {
        match self.state {
            State::Data(left) => {
                let taken = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
                #[cfg(test)]
                self.body.extend_from_slice(&bytes[..taken]);
                self.state = match left - taken as u64 {
                    0 if self.chunked => State::ChunkEnd,
                    0 => self.end_request(),
                    left => State::Data(left),
                };
                taken
            }
            State::Method => tokens(bytes),
            State::Target => syntax::target(bytes),
            State::Name => {
                let more = tokens(bytes);
                let known = self.name_length.min(LONGEST_NAME);
                let new = more.min(LONGEST_NAME - known);
                self.name[known..known + new].copy_from_slice(&bytes[..new]);
                self.name_length = self.name_length.saturating_add(more);
                more
            }
            State::Value(Field::Other) => syntax::value(bytes),
            _ => 0,
        }
    }

    /// Where one byte leads, or the rule that it breaks.
    fn step(&mut self, byte: u8) -> Result<State, Violation> {
        match self.state {
            State::Start => match byte {
                b'\r' if !self.empty_line => Ok(State::LineEnd(Line::Empty)),
                b'\r' => Err(Violation::EmptyLines),
                b'\n' => Err(Violation::LineEnd),
                _ if is_token(byte) => Ok(State::Method),
                _ => Err(Violation::RequestLine),
            },
            State::Method => match byte {
                b' ' => Ok(State::TargetStart),
                _ if is_token(byte) => Ok(State::Method),
                _ => Err(Violation::RequestLine),
            },
            State::TargetStart | State::Target => match byte {
                b' ' if self.state == State::Target => Ok(State::Version(0)),
                // SECURITY: `http` cuts the target here, and another reader may not.
                b'#' => Err(Violation::Fragment),
                0..=b' ' | 0x7f => Err(Violation::RequestLine),
                _ => Ok(State::Target),
            },
            State::Version(n) => match (n, byte) {
                (0..7, _) if byte == b"HTTP/1."[usize::from(n)] => Ok(State::Version(n + 1)),
                (7, b'0' | b'1') => {
                    self.http_11 = byte == b'1';
                    Ok(State::Version(8))
                }
                (8, b'\r') => Ok(State::LineEnd(Line::Field)),
                (8, b'\n') => Err(Violation::LineEnd),
                _ => Err(Violation::Version),
            },

            State::LineStart => match byte {
                b'\r' => Ok(State::LineEnd(Line::Last)),
                b'\n' => Err(Violation::LineEnd),
                b' ' | b'\t' => Err(Violation::Folded),
                _ if is_token(byte) => {
                    self.name[0] = byte;
                    self.name_length = 1;
                    Ok(State::Name)
                }
                _ => Err(Violation::FieldName),
            },
            State::Name => match byte {
                b':' => self.field().map(State::Value),
                // Also a space before the colon, which some drop and some take for a part of the name.
                _ => Err(Violation::FieldName),
            },
            State::Value(field) => match (field, byte) {
                (_, b'\n') => Err(Violation::LineEnd),
                (Field::Other, b'\r') => Ok(State::LineEnd(Line::Field)),
                (Field::Other, _) if is_control(byte) => Err(Violation::FieldValue),
                (Field::Other, _) => Ok(State::Value(field)),
                (Field::ContentLength, _) => self.length_step(byte),
                (Field::TransferEncoding, _) => self.encoding_step(byte),
            },

            State::LineEnd(line) if byte == b'\n' => Ok(match line {
                Line::Last if !self.in_trailers && !self.head_ended => {
                    self.head_ended = true;
                    return self.step(byte);
                }
                Line::Empty => {
                    self.empty_line = true;
                    State::Start
                }
                Line::Field => State::LineStart,
                Line::Last if self.in_trailers => self.end_request(),
                Line::Last if self.chunked => State::SizeStart,
                Line::Last => match self.length {
                    None | Some(0) => self.end_request(),
                    Some(length) => State::Data(length),
                },
                Line::Size if self.number > 0 => State::Data(self.number),
                Line::Size => {
                    self.in_trailers = true;
                    State::LineStart
                }
                Line::Chunk => State::SizeStart,
            }),
            State::LineEnd(_) => Err(Violation::LineEnd),

            State::ChunkEnd if byte == b'\r' => Ok(State::LineEnd(Line::Chunk)),
            State::ChunkEnd => Err(Violation::ChunkEnd),
            State::SizeStart | State::Size | State::SizeSpace | State::Extension => self.size_step(byte),

            // `skip` takes all data, so no byte gets here; if one did, refusing is what fails safe.
            State::Data(_) => Err(Violation::ChunkEnd),
        }
    }

    /// A name has ended: which field it is, and whether that may be here.
    fn field(&mut self) -> Result<Field, Violation> {
        let name = &self.name[..self.name_length.min(LONGEST_NAME)];
        let field = match self.name_length {
            14 if name.eq_ignore_ascii_case(CONTENT_LENGTH) => Field::ContentLength,
            17 if name.eq_ignore_ascii_case(TRANSFER_ENCODING) => Field::TransferEncoding,
            _ => Field::Other,
        };
        (self.part, self.number, self.matched) = (Part::Before, 0, 0);
        if self.in_trailers {
            self.trailer_lines += 1;
            if self.trailer_lines > MAX_TRAILER_LINES {
                return Err(Violation::Trailers);
            }
        }
        // SECURITY: two statements on where the body ends are two requests to whoever believes the other one.
        match field {
            Field::Other => Ok(field),
            _ if self.in_trailers => Err(Violation::FramingInTrailers),
            Field::ContentLength if self.length.is_some() => Err(Violation::SeveralContentLengths),
            Field::ContentLength if self.chunked => Err(Violation::BothFramings),
            Field::TransferEncoding if self.chunked => Err(Violation::SeveralTransferEncodings),
            Field::TransferEncoding if self.length.is_some() => Err(Violation::BothFramings),
            Field::TransferEncoding if !self.http_11 => Err(Violation::TransferEncodingIn10),
            _ => Ok(field),
        }
    }

    fn length_step(&mut self, byte: u8) -> Result<State, Violation> {
        match (self.part, byte) {
            (Part::Before | Part::Inside, b'0'..=b'9') => {
                self.part = Part::Inside;
                self.number = append(self.number, 10, byte - b'0').ok_or(Violation::ContentLength)?;
            }
            (Part::Inside | Part::After, b'\r') => {
                self.length = Some(self.number);
                return Ok(State::LineEnd(Line::Field));
            }
            (part, b' ' | b'\t') => self.part = after_space(part),
            // SECURITY: signs, lists, hexadecimals, nothing at all: each has a reader that takes it.
            _ => return Err(Violation::ContentLength),
        }
        Ok(State::Value(Field::ContentLength))
    }

    fn encoding_step(&mut self, byte: u8) -> Result<State, Violation> {
        match (self.part, byte) {
            (Part::Inside | Part::After, b'\r') if self.matched == CHUNKED.len() => {
                self.chunked = true;
                return Ok(State::LineEnd(Line::Field));
            }
            (part, b' ' | b'\t') => self.part = after_space(part),
            (Part::Before | Part::Inside, _)
                if CHUNKED.get(self.matched) == Some(&byte.to_ascii_lowercase()) =>
            {
                self.part = Part::Inside;
                self.matched += 1;
            }
            _ => return Err(Violation::TransferEncoding),
        }
        Ok(State::Value(Field::TransferEncoding))
    }

    fn size_step(&mut self, byte: u8) -> Result<State, Violation> {
        if self.state == State::SizeStart {
            (self.number, self.size_line) = (0, 0);
        }
        self.size_line += 1;
        if self.size_line > MAX_SIZE_LINE {
            return Err(Violation::SizeLine);
        }
        match (self.state, byte) {
            (_, b'\n') => Err(Violation::LineEnd),
            (State::Size | State::Extension, b'\r') => Ok(State::LineEnd(Line::Size)),
            (State::Extension, _) => {
                self.extensions += 1;
                if self.extensions > MAX_EXTENSIONS || is_control(byte) {
                    return Err(Violation::SizeLine);
                }
                Ok(State::Extension)
            }
            (State::Size | State::SizeSpace, b';') => Ok(State::Extension),
            (State::Size | State::SizeSpace, b' ' | b'\t') => Ok(State::SizeSpace),
            (State::SizeStart | State::Size, _) => {
                let digit = char::from(byte).to_digit(16).ok_or(Violation::ChunkSize)?;
                self.number = append(self.number, 16, digit as u8).ok_or(Violation::ChunkSize)?;
                Ok(State::Size)
            }
            _ => Err(Violation::ChunkSize),
        }
    }

    fn count_trailers(&mut self, more: usize) -> Result<(), Violation> {
        if self.in_trailers {
            self.trailers += more;
            if self.trailers > MAX_TRAILERS {
                return Err(Violation::Trailers);
            }
        }
        Ok(())
    }

    /// A request is complete.
    fn end_request(&mut self) -> State {
        *self = Self {
            head_ended: self.head_ended,
            #[cfg(test)]
            bodies: {
                self.bodies.push(std::mem::take(&mut self.body));
                std::mem::take(&mut self.bodies)
            },
            ..Self::new()
        };
        State::Start
    }
}

/// Notes which lines of a plain head, which begins at `at`, hyper is not given.
fn withhold(mut head: RawHead, at: usize, passed: &mut Passed) -> RawHead {
    if passed.wanted.takes_apart(head.text.len(), head.lines.len()) {
        for line in &head.lines {
            if !passed.wanted.has(line.field, line.of(&head.text).0) {
                let (from, to) = (at + line.from as usize, at + line.to as usize + 2);
                head.withheld += 1;
                match passed.withheld.last_mut() {
                    Some(last) if last.end == from => last.end = to,
                    _ => passed.withheld.push(from..to),
                }
            }
        }
    }
    head
}

/// Whether a head is sound and nothing belongs to it but itself, as it must be where no body is read.
///
/// # Errors
/// The rule that it breaks, in words.
pub(super) fn check_head_alone(head: &[u8]) -> Result<(), String> {
    let mut framing = Framing::new();
    framing.scan(head, &mut Passed::default()).map_err(|(_, violation)| violation.to_string())?;
    if framing.state == State::Start { Ok(()) } else { Err("it has a body".to_owned()) }
}

fn append(number: u64, radix: u64, digit: u8) -> Option<u64> {
    number.checked_mul(radix)?.checked_add(u64::from(digit)).filter(|&number| number <= MAX_LENGTH)
}

fn after_space(part: Part) -> Part {
    if part == Part::Before { Part::Before } else { Part::After }
}

#[cfg(test)]
mod tests;
