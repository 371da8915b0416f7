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

use crate::proxy::head::{Field, ReplyHead, named};
use crate::server::spliced::Lines;

/// The largest head.
pub(super) const MAX_HEAD: usize = 64 * 1024;

/// The most headers, and the most trailers.
const MAX_HEADERS: usize = 100;

/// The most that the chunk extensions of one body may take, and its trailers.
const MAX_EXTRA: usize = 16 * 1024;

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
    let status = StatusCode::from_u16(code).map_err(|_| "its status is not a number from 100 to 999")?;
    if status.is_informational() {
        if status == StatusCode::SWITCHING_PROTOCOLS {
            return Err("it answered 101 to a call that asked for no upgrade");
        }
        return Ok(Head::Interim(length));
    }

    let mut lines = Lines::new(code, reply.reason.unwrap_or_default(), length + 32);
    let mut framing = Framing { length: None, encoded: false, chunked: false };
    let (mut keeps, mut closes, mut is_encoded, mut takes_away) = (false, false, false, Vec::new());
    for header in reply.headers.iter() {
        let name = header.name.as_bytes();
        match Field::of(name) {
            Field::Connection => {
                let mut options = header.value.split(|&b| b == b',').map(<[u8]>::trim_ascii);
                closes |= options.clone().any(|option| option.eq_ignore_ascii_case(b"close"));
                keeps |= options.any(|option| option.eq_ignore_ascii_case(b"keep-alive"));
                takes_away.extend(named(header.value));
            }
            Field::ContentLength => {
                if framing.length(header.value)? {
                    lines.push_length(name, header.value);
                }
            }
            Field::TransferEncoding => framing.encoding(header.value)?,
            Field::Neighbours => {}
            // What these say is ours to say.
            Field::Other if starts_with_ours(name) => {}
            field => {
                is_encoded |= field == Field::ContentEncoding && !is_identity(header.value);
                lines.push(name, header.value);
            }
        }
    }
    for name in takes_away {
        lines.remove(name);
    }
    let has_body = !to_head && !matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let decoder = framing.decoder(version, has_body)?;
    let head =
        ReplyHead { status, is_encoded, length_without_body: framing.length.filter(|_| to_head), lines };
    let is_kept = !closes && (version == 1 || keeps) && !decoder.ends_with_connection();
    Ok(Head::Final(Final { length, head, decoder, is_kept }))
}

/// Whether a header is one that only we give.
fn starts_with_ours(name: &[u8]) -> bool {
    const OURS: &[u8] = b"x-wechat-sidecar-";
    name.get(..OURS.len()).is_some_and(|head| head.eq_ignore_ascii_case(OURS))
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

const DOUBTFUL: Malformed = "it answered with a Transfer-Encoding that leaves open where the answer ends";

impl Framing {
    /// Takes a Content-Length; whether it is the first.
    fn length(&mut self, value: &[u8]) -> Result<bool, Malformed> {
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
        if value.is_empty() {
            return Err("its Content-Length is not one number");
        }
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
            _ if self.chunked => Decoder::Chunks(Chunks::default()),
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
    Chunks(Chunks),
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
