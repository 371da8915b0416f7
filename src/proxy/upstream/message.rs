//! A reply as it stands on the wire: [`head`] reads one, [`Decoder`] finds the body behind it. Pure: bytes go in.
//!
//! httparse reads the lines; the rules are RFC 9112's for a client, without what it lets a recipient forgive. Where
//! hyper's client repairs (a bare LF, a list of equal lengths, a Transfer-Encoding we never asked for), this refuses:
//! whoever stands between WeChat and us may repair it otherwise, and then one app gets the answer to another's call.
//! `tests.rs` holds the two against each other.

use std::mem::MaybeUninit;

use bytes::{Buf, Bytes, BytesMut};
use http::StatusCode;
use httparse::{EMPTY_HEADER, ParserConfig, Response, Status};

use crate::proxy::head::{ReplyHead, named};
use crate::server::spliced::Lines;
use crate::syntax::{self, Field};

/// The largest head.
pub(super) const MAX_HEAD: usize = 64 * 1024;

/// The most headers, and the most trailers.
const MAX_HEADERS: usize = 100;

/// The most that the chunk extensions of one body may take, and its trailers.
const MAX_EXTRA: usize = 16 * 1024;

/// The length of `HTTP/1.1 200 `.
const STATUS: usize = 13;

/// What is wrong with a reply, in words.
pub(super) type Malformed = &'static str;

/// What the bytes so far are.
#[derive(Debug)]
pub(super) enum Head {
    /// The beginning of a head.
    Partial,
    /// A head that another one follows, of this length.
    Interim(usize),
    /// The head of the reply.
    Final(Final),
}

#[derive(Debug)]
pub(super) struct Final {
    /// How long it is.
    pub(super) length: usize,
    pub(super) head: ReplyHead,
    pub(super) decoder: Decoder,
    /// Whether the connection may carry another call.
    pub(super) is_kept: bool,
}

/// Reads a head at the beginning of `bytes`. `to_head`: it answers a HEAD.
///
/// # Errors
/// No sound head can begin so.
pub(super) fn head(bytes: &[u8], to_head: bool) -> Result<Head, Malformed> {
    match plain(bytes, to_head)? {
        Some(head) => Ok(Head::Final(head)),
        None => any(bytes, to_head),
    }
}

/// The final head that `bytes` begin with, if it is here as a whole and there is nothing odd in its lines. Nearly every
/// one is of that kind; all others are httparse's, and the tests hold the two against each other.
///
/// # Errors
/// Its lines are sound, and what they say is not.
pub(super) fn plain(bytes: &[u8], to_head: bool) -> Result<Option<Final>, Malformed> {
    // `HTTP/1.1 200 OK`: nothing interim, and nothing that is no status.
    let Some(&[b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'1', b' ', a @ b'2'..=b'9', b, c, b' ']) =
        bytes.first_chunk()
    else {
        return Ok(None);
    };
    let reason = &bytes[STATUS..];
    let reason = &reason[..syntax::printable(reason)];
    let mut at = STATUS + reason.len() + 2;
    if !b.is_ascii_digit()
        || !c.is_ascii_digit()
        || !reason.is_ascii()
        || bytes.get(at - 2..at) != Some(b"\r\n")
    {
        return Ok(None);
    }
    let digit = |digit: u8| u16::from(digit - b'0');
    let mut reading = Reading::new(digit(a) * 100 + digit(b) * 10 + digit(c))?;
    let mut lines = Lines::with_capacity(bytes.len().min(1024) + 64);
    // Lines go on as they are, in runs that end where one does not.
    let mut run = 0;
    for _ in 0..=MAX_HEADERS {
        if bytes[at..].starts_with(b"\r\n") {
            lines.extend(&bytes[run..at]);
            return if at + 2 > MAX_HEAD {
                Ok(None)
            } else {
                reading.end(lines, at + 2, 1, to_head).map(Some)
            };
        }
        let Some((line, name, value)) = syntax::plain_line(bytes, at) else { return Ok(None) };
        // One space, as everyone writes it: or the line would not go on as httparse's way writes it.
        let [b' ', value @ ..] = value else { return Ok(None) };
        if value.first() == Some(&b' ') || value.last() == Some(&b' ') {
            return Ok(None);
        }
        let next = line.to as usize + 2;
        match reading.field(line.field, name, value)? {
            Goes::On => {}
            Goes::OnAsLength => {
                lines.extend_with_length(&bytes[run..next], at - run);
                run = next;
            }
            Goes::NoFurther => {
                lines.extend(&bytes[run..at]);
                run = next;
            }
        }
        at = next;
    }
    Ok(None)
}

/// Any head.
pub(super) fn any(bytes: &[u8], to_head: bool) -> Result<Head, Malformed> {
    let mut headers = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut reply = Response::new(&mut []);
    let parser = ParserConfig::default();
    let length = match parser.parse_response_with_uninit_headers(&mut reply, bytes, &mut headers) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) if bytes.len() > MAX_HEAD => return Err("its head is larger than 64 KiB"),
        Ok(Status::Partial) => return whole_lines(bytes, 0).map(|()| Head::Partial),
        Err(httparse::Error::TooManyHeaders) => return Err("it has more than 100 headers"),
        Err(httparse::Error::Version) => return Err("its version is not HTTP/1.1"),
        Err(httparse::Error::Status) => return Err("its status line is not one"),
        Err(_) => return Err("its head has a line that is no header"),
    };
    if length > MAX_HEAD {
        return Err("its head is larger than 64 KiB");
    }
    whole_lines(&bytes[..length], 0)?;
    let (Some(code), Some(version)) = (reply.code, reply.version) else {
        return Err("its status line is not one");
    };
    if (100..200).contains(&code) {
        if code == StatusCode::SWITCHING_PROTOCOLS.as_u16() {
            return Err("it answered 101 to a call that asked for no upgrade");
        }
        return Ok(Head::Interim(length));
    }
    let mut reading = Reading::new(code)?;
    let mut lines = Lines::new(code, reply.reason.unwrap_or_default(), length + 64);
    for header in reply.headers.iter() {
        let name = header.name.as_bytes();
        match reading.field(Field::of(name), name, header.value)? {
            Goes::On => lines.push(name, header.value),
            Goes::OnAsLength => lines.push_length(name, header.value),
            Goes::NoFurther => {}
        }
    }
    reading.end(lines, length, version, to_head).map(Head::Final)
}

/// What becomes of a header.
enum Goes {
    /// To the app.
    On,
    /// The same, and where hyper says the length.
    OnAsLength,
    /// It ends here.
    NoFurther,
}

/// What the lines of a head say, read one by one.
struct Reading {
    status: StatusCode,
    framing: Framing,
    keeps: bool,
    closes: bool,
    is_encoded: bool,
    /// What `Connection` names.
    takes_away: Vec<Vec<u8>>,
}

impl Reading {
    fn new(code: u16) -> Result<Self, Malformed> {
        let status = StatusCode::from_u16(code).map_err(|_| "its status is not a number from 100 to 999")?;
        let framing = Framing { length: None, encoded: false, chunked: false };
        Ok(Self { status, framing, keeps: false, closes: false, is_encoded: false, takes_away: Vec::new() })
    }

    /// Takes a header, its value without the space around it.
    fn field(&mut self, field: Field, name: &[u8], value: &[u8]) -> Result<Goes, Malformed> {
        Ok(match field {
            Field::Connection => {
                self.connection(value);
                Goes::NoFurther
            }
            Field::ContentLength if self.framing.length(value)? => Goes::OnAsLength,
            Field::TransferEncoding => {
                self.framing.encoding(value)?;
                Goes::NoFurther
            }
            Field::ContentLength | Field::Neighbours => Goes::NoFurther,
            // What these say is ours to say.
            Field::Other if starts_with_ours(name) => Goes::NoFurther,
            Field::ContentEncoding => {
                self.is_encoded |= !is_identity(value);
                Goes::On
            }
            _ => Goes::On,
        })
    }

    fn connection(&mut self, value: &[u8]) {
        if value == b"keep-alive" {
            self.keeps = true;
            return;
        }
        let mut options = value.split(|&b| b == b',').map(<[u8]>::trim_ascii);
        self.closes |= options.clone().any(|option| option.eq_ignore_ascii_case(b"close"));
        self.keeps |= options.any(|option| option.eq_ignore_ascii_case(b"keep-alive"));
        self.takes_away.extend(named(value).map(<[u8]>::to_vec));
    }

    /// All of it was read.
    fn end(self, mut lines: Lines, length: usize, version: u8, to_head: bool) -> Result<Final, Malformed> {
        for name in &self.takes_away {
            lines.remove(name);
        }
        let has_body = !to_head && !matches!(self.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let decoder = self.framing.decoder(version, has_body)?;
        let is_kept = !self.closes && (version == 1 || self.keeps) && !decoder.ends_with_connection();
        let head = ReplyHead {
            status: self.status,
            is_encoded: self.is_encoded,
            length_without_body: self.framing.length.filter(|_| to_head),
            lines,
        };
        Ok(Final { length, head, decoder, is_kept })
    }
}

/// Whether a header is one that only we give.
fn starts_with_ours(name: &[u8]) -> bool {
    const OURS: &[u8] = b"x-wechat-sidecar-";
    matches!(name.first(), Some(b'x' | b'X'))
        && name.get(..OURS.len()).is_some_and(|head| head.eq_ignore_ascii_case(OURS))
}

/// Whether every line that ends at or behind `from` ends with CR LF.
///
/// # Errors
/// One does not.
pub(super) fn whole_lines(bytes: &[u8], from: usize) -> Result<(), Malformed> {
    let first = from == 0 && bytes.first() == Some(&b'\n');
    let from = from.saturating_sub(1);
    // Pairs, without a branch: the compiler turns it into vector code.
    let pairs = bytes[from..].iter().zip(bytes.get(from + 1..).unwrap_or_default());
    let bare = pairs.fold(first, |bare, (&before, &byte)| bare | ((byte == b'\n') & (before != b'\r')));
    if bare { Err("its head has a line that does not end with CR LF") } else { Ok(()) }
}

fn is_identity(coding: &[u8]) -> bool {
    coding
        .split(|&b| b == b',')
        .map(<[u8]>::trim_ascii)
        .all(|coding| coding.is_empty() || coding.eq_ignore_ascii_case(b"identity"))
}

/// What a head says of where its body ends.
struct Framing {
    length: Option<u64>,
    encoded: bool,
    chunked: bool,
}

/// A Content-Length of any size.
fn length(value: &[u8]) -> Result<u64, Malformed> {
    let mut number = 0_u64;
    for &byte in value {
        // SECURITY: signs, lists, spaces inside: each has a reader that takes it for another number.
        let digit = char::from(byte).to_digit(10).ok_or("its Content-Length is not one number")?;
        number = number
            .checked_mul(10)
            .and_then(|number| number.checked_add(u64::from(digit)))
            .filter(|&number| number <= i64::MAX as u64)
            .ok_or("its Content-Length is too large to be one")?;
    }
    if value.is_empty() { Err("its Content-Length is not one number") } else { Ok(number) }
}

const DOUBTFUL: Malformed = "it answered with a Transfer-Encoding that leaves open where the answer ends";

impl Framing {
    /// Takes a Content-Length; whether it is the first.
    fn length(&mut self, value: &[u8]) -> Result<bool, Malformed> {
        let number = match syntax::plain_number(value) {
            Some(number) if value[0].is_ascii_digit() => number,
            _ => length(value)?,
        };
        match self.length.replace(number) {
            None => Ok(true),
            Some(before) if before == number => Ok(false),
            Some(_) => Err("it has two Content-Lengths"),
        }
    }

    fn encoding(&mut self, value: &[u8]) -> Result<(), Malformed> {
        if std::mem::replace(&mut self.encoded, true) {
            return Err(DOUBTFUL);
        }
        self.chunked = value.eq_ignore_ascii_case(b"chunked");
        Ok(())
    }

    /// RFC 9112 6.3, without its doubtful rows.
    fn decoder(&self, version: u8, has_body: bool) -> Result<Decoder, Malformed> {
        let doubtful = self.encoded && (!self.chunked || self.length.is_some() || (has_body && version == 0));
        if doubtful {
            return Err(DOUBTFUL);
        }
        Ok(match self.length {
            _ if !has_body => Decoder::Length(0),
            _ if self.chunked => Decoder::Chunks(Box::default()),
            Some(length) => Decoder::Length(length),
            None => Decoder::Connection,
        })
    }
}

/// Where a body ends, and what of the bytes that come is the body.
#[derive(Debug)]
pub(super) enum Decoder {
    /// After this many bytes.
    Length(u64),
    /// After the last chunk and the trailers.
    Chunks(Box<Chunks>),
    /// With the connection.
    Connection,
}

/// What stands next in a body.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// This.
    Data(Bytes),
    /// What has not come yet.
    More,
    /// Nothing.
    End,
}

impl Decoder {
    /// Takes the next piece of the body out of what came.
    pub(super) fn next(&mut self, came: &mut BytesMut) -> Result<Next, Malformed> {
        match self {
            Self::Length(0) => Ok(Next::End),
            Self::Length(left) => {
                let data = take(came, *left);
                *left -= data.len() as u64;
                Ok(if data.is_empty() { Next::More } else { Next::Data(data) })
            }
            Self::Chunks(chunks) => chunks.next(came),
            Self::Connection => {
                let data = take(came, u64::MAX);
                Ok(if data.is_empty() { Next::More } else { Next::Data(data) })
            }
        }
    }

    /// Whether the end of the connection is its end, too.
    pub(super) fn ends_with_connection(&self) -> bool {
        matches!(self, Self::Connection)
    }

    /// Whether it has ended.
    pub(super) fn is_end(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunks(chunks) => chunks.state == State::End,
            Self::Connection => false,
        }
    }

    /// How much is still to come, if that is known.
    pub(super) fn left(&self) -> Option<u64> {
        match self {
            Self::Length(left) => Some(*left),
            Self::Chunks(chunks) => chunks.is_end().then_some(0),
            Self::Connection => None,
        }
    }
}

/// What is kept of a buffer is reused from this size on.
const REUSED: usize = 16 * 1024;

/// At most `most` bytes of what came. All of it without another allocation, if that fills its small buffer; a large one
/// is read into again when the piece has gone.
fn take(came: &mut BytesMut, most: u64) -> Bytes {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    if came.len() <= most && came.len() == came.capacity() && came.len() < REUSED {
        return std::mem::take(came).freeze();
    }
    came.split_to(came.len().min(most)).freeze()
}

/// Follows the chunks of a body.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    state: State,
    /// Of the chunk that is read: its size, or how much is left of it.
    size: u64,
    extensions: usize,
    trailers: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Before the first digit of a size.
    #[default]
    SizeStart,
    Size,
    /// After white space behind a size.
    SizeSpace,
    Extension,
    /// After the CR of a size line.
    SizeEnd,
    Data,
    DataEnd,
    /// After the CR behind a chunk.
    DataEndLf,
    Trailers,
    End,
}

impl Chunks {
    fn is_end(&self) -> bool {
        self.state == State::End
    }

    fn next(&mut self, came: &mut BytesMut) -> Result<Next, Malformed> {
        loop {
            match self.state {
                State::End => return Ok(Next::End),
                State::Data if self.size == 0 => self.state = State::DataEnd,
                State::Data => {
                    let data = take(came, self.size);
                    self.size -= data.len() as u64;
                    return Ok(if data.is_empty() { Next::More } else { Next::Data(data) });
                }
                state => {
                    let Some(&byte) = came.first() else { return Ok(Next::More) };
                    self.state = self.step(state, byte)?;
                    came.advance(1);
                }
            }
        }
    }

    fn step(&mut self, state: State, byte: u8) -> Result<State, Malformed> {
        const SIZE: Malformed = "a chunk size is not a hexadecimal number";
        match (state, byte) {
            (State::Size | State::SizeSpace | State::Extension, b'\r') => Ok(State::SizeEnd),
            (State::Size | State::SizeSpace, b';') => Ok(State::Extension),
            (State::Size | State::SizeSpace, b' ' | b'\t') => Ok(State::SizeSpace),
            (State::SizeStart | State::Size, _) => {
                let digit = char::from(byte).to_digit(16).ok_or(SIZE)?;
                let larger = self.size.checked_mul(16).and_then(|size| size.checked_add(u64::from(digit)));
                self.size = larger.filter(|&size| size <= i64::MAX as u64).ok_or(SIZE)?;
                Ok(State::Size)
            }
            (State::SizeSpace, _) => Err(SIZE),
            (State::Extension, _) => {
                self.extensions += 1;
                if self.extensions > MAX_EXTRA || (byte < b' ' && byte != b'\t') || byte == 0x7f {
                    return Err("a chunk extension is too long or has a control character");
                }
                Ok(State::Extension)
            }
            (State::SizeEnd, b'\n') if self.size == 0 => Ok(State::Trailers),
            (State::SizeEnd, b'\n') => Ok(State::Data),
            (State::DataEnd, b'\r') => Ok(State::DataEndLf),
            (State::DataEndLf, b'\n') => Ok(State::SizeStart),
            (State::Trailers, _) => self.trailer(byte),
            (State::SizeEnd | State::DataEnd | State::DataEndLf, _) => {
                Err("a chunk does not end where its size says, or not with CR LF")
            }
            (State::Data | State::End, _) => Err("a chunk has more than its size"),
        }
    }

    /// Trailers end here, as `Trailer` and `TE` are between neighbours only; but they must be some.
    fn trailer(&mut self, byte: u8) -> Result<State, Malformed> {
        const TRAILERS: Malformed = "the trailers are too long, or no headers";
        self.trailers.push(byte);
        if self.trailers.len() > MAX_EXTRA {
            return Err(TRAILERS);
        }
        if byte != b'\n' {
            return Ok(State::Trailers);
        }
        if !self.trailers.ends_with(b"\r\n") {
            return Err(TRAILERS);
        }
        if self.trailers != b"\r\n" && !self.trailers.ends_with(b"\r\n\r\n") {
            return Ok(State::Trailers);
        }
        match httparse::parse_headers(&self.trailers, &mut [EMPTY_HEADER; MAX_HEADERS]) {
            Ok(Status::Complete(_)) => Ok(State::End),
            _ => Err(TRAILERS),
        }
    }
}
