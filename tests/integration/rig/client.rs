//! An app that speaks bytes: [`RawClient`] sends what it is told to, however wrong, and reads what comes back.

use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::within;

/// One connection to the sidecar.
pub(crate) struct RawClient {
    reading: Reading,
    writing: Box<dyn AsyncWrite + Send + Unpin>,
    unread: Vec<u8>,
}

type Reading = Box<dyn AsyncRead + Send + Unpin>;

/// How a reply ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// As its head announced, or with a clean close where that is its end.
    Whole,
    /// With a clean close before its announced end.
    Short,
    /// With a reset.
    Reset,
}

/// One reply.
pub(crate) struct Reply {
    /// `HTTP/1.1 200 OK`.
    pub(crate) line: String,
    /// The number in it; 0 when the connection closed without a reply.
    pub(crate) status: u16,
    /// Names and values, as they came.
    pub(crate) headers: Vec<(String, String)>,
    /// What came of the body, chunks put together.
    pub(crate) body: Vec<u8>,
    /// How it ended.
    pub(crate) end: End,
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown: String = self.text().chars().take(300).collect();
        write!(f, "{:?} {:?} {shown:?}, {:?}", self.line, self.headers, self.end)
    }
}

impl Reply {
    /// Every value of a header.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        let named = self.headers.iter().filter(|(other, _)| other.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str()).collect()
    }

    /// The value of a header that occurs at most once.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let all = self.all(name);
        assert!(all.len() < 2, "several {name}: {all:?}");
        all.first().copied()
    }

    /// The cause, when the reply is an error of ours.
    pub(crate) fn cause(&self) -> &str {
        self.header("x-wechat-sidecar-error").unwrap_or("-")
    }

    /// The body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Fails unless this is a whole error of ours, in our form.
    #[track_caller]
    pub(crate) fn assert_ours(&self, status: u16, cause: &str) {
        assert_eq!((self.status, self.cause(), self.end), (status, cause, End::Whole), "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        let body: serde_json::Value = serde_json::from_slice(&self.body).expect("our errors are JSON");
        let errcode = body["errcode"].as_i64().expect("our errors have an errcode");
        assert_eq!(errcode == -1, status >= 500, "-1 invites a retry, which is for 5xx: {body}");
        assert!(body["errmsg"].as_str().is_some_and(|text| text.starts_with("wechat-sidecar: ")), "{body}");
    }

    /// Fails unless this is a whole reply with this status and body that came from upstream.
    #[track_caller]
    pub(crate) fn assert_wechats(&self, status: u16, body: impl AsRef<[u8]>) {
        assert_eq!((self.status, self.cause(), self.end), (status, "-", End::Whole), "{self:?}");
        assert_eq!(self.text(), String::from_utf8_lossy(body.as_ref()), "{self:?}");
    }
}

impl RawClient {
    /// One to this address.
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("the sidecar accepts");
        stream.set_nodelay(true).expect("a socket option");
        let (reading, writing) = stream.into_split();
        Self { reading: Box::new(reading), writing: Box::new(writing), unread: Vec::new() }
    }

    /// One over TLS, or whatever else carries bytes.
    pub(crate) fn over(stream: impl AsyncRead + AsyncWrite + Send + 'static) -> Self {
        let (reading, writing) = tokio::io::split(stream);
        Self { reading: Box::new(reading), writing: Box::new(writing), unread: Vec::new() }
    }

    /// Sends these bytes; whether the other side took them is not its business.
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = within("sending", self.writing.write_all(bytes.as_ref())).await;
    }

    /// Ends our side of the connection.
    pub(crate) async fn half_close(&mut self) {
        let _ = self.writing.shutdown().await;
    }

    /// Sends a request and reads its reply at the same time, as a reply may come before the request has gone out.
    pub(crate) async fn call(&mut self, request: impl AsRef<[u8]>) -> Reply {
        let request = request.as_ref();
        let head = request.starts_with(b"HEAD ");
        let Self { reading, writing, unread } = self;
        let mut sending = std::pin::pin!(async {
            let _ = writing.write_all(request).await;
        });
        let mut reply = std::pin::pin!(within("the reply", read_reply(reading, unread, head)));
        tokio::select! {
            reply = &mut reply => reply,
            () = &mut sending => reply.await,
        }
    }

    /// Reads the next reply.
    pub(crate) async fn reply(&mut self) -> Reply {
        within("the reply", read_reply(&mut self.reading, &mut self.unread, false)).await
    }

    /// Reads no more than a head (of a reply whose body is not to be waited for).
    pub(crate) async fn head(&mut self) -> Reply {
        within("the reply's head", read_reply(&mut self.reading, &mut self.unread, true)).await
    }

    /// Reads until this many more bytes have come, and gives all that is unread.
    pub(crate) async fn bytes(&mut self, least: usize) -> Vec<u8> {
        within("some bytes", async {
            while self.unread.len() < least {
                let n = self.reading.read_buf(&mut self.unread).await.expect("bytes");
                assert!(n > 0, "the connection closed after {} of {least} bytes", self.unread.len());
            }
        })
        .await;
        std::mem::take(&mut self.unread)
    }

    /// Reads to the end of the connection: what still came, and how it ended.
    pub(crate) async fn rest(&mut self) -> (Vec<u8>, End) {
        let end = within("the end of the connection", async {
            loop {
                match self.reading.read_buf(&mut self.unread).await {
                    Ok(0) => return End::Whole,
                    Ok(_) => {}
                    Err(_) => return End::Reset,
                }
            }
        })
        .await;
        (std::mem::take(&mut self.unread), end)
    }

    /// Fails unless the sidecar closes this connection, cleanly and without another word.
    pub(crate) async fn assert_closed(&mut self, why: &str) {
        let (rest, end) = self.rest().await;
        assert_eq!((String::from_utf8_lossy(&rest).into_owned(), end), (String::new(), End::Whole), "{why}");
    }
}

/// Reads one reply. `head_only`: it has no body, whatever its head says.
async fn read_reply(reading: &mut Reading, unread: &mut Vec<u8>, head_only: bool) -> Reply {
    let mut reply =
        Reply { line: String::new(), status: 0, headers: Vec::new(), body: Vec::new(), end: End::Whole };
    let mut more = async |unread: &mut Vec<u8>| match reading.read_buf(unread).await {
        Ok(0) => Err(End::Short),
        Ok(_) => Ok(()),
        Err(_) => Err(End::Reset),
    };
    let length = loop {
        if let Some(at) = unread.windows(4).position(|four| four == b"\r\n\r\n") {
            break at;
        }
        if let Err(end) = more(unread).await {
            reply.end = end;
            reply.body = std::mem::take(unread);
            return reply;
        }
    };
    let head: Vec<u8> = unread.drain(..length + 4).collect();
    let mut lines = head[..length].split(|&b| b == b'\n').map(|line| {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        String::from_utf8_lossy(line).into_owned()
    });
    reply.line = lines.next().expect("a status line");
    reply.status = reply.line.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    for line in lines {
        let (name, value) = line.split_once(':').expect("a header");
        reply.headers.push((name.to_owned(), value.trim().to_owned()));
    }
    if head_only || reply.status < 200 || [204, 304].contains(&reply.status) {
        return reply;
    }
    let chunked = reply.header("transfer-encoding") == Some("chunked");
    let length = reply.header("content-length").map(|length| length.parse::<usize>().expect("a length"));
    assert!(!(chunked && length.is_some()), "both framings: {reply:?}");
    loop {
        let taken = match (chunked, length) {
            (true, _) => take_chunk(unread, &mut reply.body),
            (false, Some(length)) => {
                let left = length - reply.body.len();
                reply.body.extend(unread.drain(..left.min(unread.len())));
                reply.body.len() == length
            }
            (false, None) => {
                reply.body.append(unread);
                false
            }
        };
        if taken {
            return reply;
        }
        if let Err(end) = more(unread).await {
            // Without a length, a clean close is the end.
            let whole = !chunked && length.is_none() && end == End::Short;
            reply.end = if whole { End::Whole } else { end };
            return reply;
        }
    }
}

/// Moves whole chunks into the body. True at the last one.
fn take_chunk(unread: &mut Vec<u8>, body: &mut Vec<u8>) -> bool {
    loop {
        let Some(line) = unread.windows(2).position(|two| two == b"\r\n") else { return false };
        let size = std::str::from_utf8(&unread[..line]).expect("a chunk size");
        let size = usize::from_str_radix(size, 16).expect("a chunk size");
        let end = line + 2 + size + 2;
        if unread.len() < end {
            return false;
        }
        assert_eq!(&unread[end - 2..end], b"\r\n", "a chunk ends with CR LF (and no trailers come)");
        body.extend_from_slice(&unread[line + 2..end - 2]);
        unread.drain(..end);
        if size == 0 {
            return true;
        }
    }
}
