//! HTTP/1.1 in front of the rules: connections, bodies in both directions, and the levers that act on the wire.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::errcode::Errcode;
use super::fetch::{self, Outcome};
use super::ledger::Seen;
use super::levers::{Canned, DropWhen};
use super::message::{Ask, Body, BodyReader, Content, Query, Reply};
use super::{Core, endpoints};

/// The largest body that is read.
const MAX_BODY: u64 = 256 << 20;
/// So much of a refused body is read out of courtesy.
const SMALL: usize = 1 << 20;
/// The longest that calls wait for each other.
const GATHER: Duration = Duration::from_secs(30);
/// A made-up download repeats after so many bytes: a prime, so that no buffer's size hides a shifted copy.
const PERIOD: usize = 65_521;

static PATTERN: LazyLock<Bytes> = LazyLock::new(|| {
    let mut random = fastrand::Rng::with_seed(65_521);
    (0..PERIOD).map(|_| random.u8(..)).map(|byte| if byte == b'{' { b'}' } else { byte }).collect()
});

/// The byte at a position of a made-up download (`media_id=big-N`), for a test that checks one.
#[must_use]
pub fn download_byte(position: u64) -> u8 {
    let period = PERIOD as u64;
    usize::try_from(position % period).map_or(0, |at| PATTERN[at])
}

/// A connection as its requests know it.
#[derive(Clone, Copy)]
struct Wire {
    number: u64,
    peer: SocketAddr,
    tls: bool,
}

/// Accepts until told to stop; connections end with it.
pub(crate) async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    core: Arc<Core>,
    mut stop: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            // Also when the sender is gone: the last handle was dropped.
            _ = stop.changed() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    // Loopback or not, a reply in two writes must not wait for an ACK.
                    let _ = stream.set_nodelay(true);
                    let number = core.connected();
                    let wire = Wire { number, peer, tls: tls.is_some() };
                    let (core, tls) = (Arc::clone(&core), tls.clone());
                    connections.spawn(async move {
                        match tls {
                            None => converse(stream, core, wire).await,
                            Some(tls) => {
                                // A client that does not trust us says so by leaving.
                                if let Ok(stream) = tls.accept(stream).await {
                                    converse(stream, core, wire).await;
                                }
                            }
                        }
                    });
                }
                // Out of file descriptors, say: others will end.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            },
        }
    }
}

async fn converse(stream: impl AsyncRead + AsyncWrite + Unpin, core: Arc<Core>, wire: Wire) {
    let mut closed = core.closed();
    let service = service_fn(move |request| handle(Arc::clone(&core), wire, request));
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        // How a client leaves is its own affair.
        _ = connection => {}
        _ = closed.changed() => {}
    }
}

/// One request, from its head to its reply.
async fn handle(core: Arc<Core>, wire: Wire, request: Request<Incoming>) -> Result<Response<ReplyBody>, Cut> {
    let (head, incoming) = request.into_parts();
    let target = head.uri.to_string();
    let path = head.uri.path().to_owned();
    let seen = Seen {
        number: 0,
        connection: wire.number,
        tls: wire.tls,
        method: head.method.to_string(),
        target: target.clone(),
        headers: texts(&head.headers),
        body_length: 0,
        body_sha256: String::new(),
        body_head: Bytes::new(),
        status: 0,
        errcode: None,
        appid: None,
    };
    if is_chunked(&head.headers) {
        // Judged by the head, without errcode or body (`wechat-api.md` 3.3).
        core.write(|state, _| {
            state.ledger.counts.requests += 1;
            state.ledger.counts.chunked_refused += 1;
            state.ledger.saw(Seen { status: 412, ..seen });
        });
        // What little was sent along is read, so that closing does not reset the reply away.
        if !head.headers.contains_key(header::EXPECT) {
            let _ = http_body_util::Limited::new(incoming, SMALL).collect().await;
        }
        return Ok(respond(Reply::empty(412), None));
    }
    let body = match read(&head.headers, incoming).await {
        Ok(Some(body)) => body,
        Ok(None) => return Ok(respond(Reply::empty(413), None)),
        Err(_) => {
            core.write(|state, _| {
                state.ledger.counts.broken_off += 1;
                state.ledger.saw(seen);
            });
            return Err(Cut);
        }
    };
    let seen = Seen {
        body_length: body.length,
        body_sha256: body.sha256.clone(),
        body_head: body.head.clone(),
        ..seen
    };
    let ask = Ask {
        method: head.method.as_str(),
        target: &target,
        path: &path,
        raw_query: head.uri.query().unwrap_or_default(),
        query: Query::parse(head.uri.query().unwrap_or_default()),
        headers: &head.headers,
        body: &body,
        peer: wire.peer.ip(),
    };
    match fetch::kind_of(&path) {
        Some(kind) => {
            let mut held = core.held();
            let (outcome, delay) = core.write(|state, now| {
                state.ledger.counts.requests += 1;
                let (outcome, appid) = fetch::fetch(state, &ask, kind, now);
                let (status, errcode) = match &outcome {
                    Outcome::Reply(reply) => (reply.status, reply.errcode.map(|code| code.0)),
                    Outcome::Drop | Outcome::Hang => (0, None),
                };
                state.ledger.saw(Seen { status, errcode, appid, ..seen });
                (outcome, state.levers.fetch_delay)
            });
            // The token is issued, only its answer waits: late answers overtaken by newer ones are a real trouble.
            // An error means that the simulation ends.
            let _ = held.wait_for(|held| !held).await;
            tokio::time::sleep(delay).await;
            match outcome {
                Outcome::Reply(reply) => Ok(respond(reply, None)),
                Outcome::Drop => Err(Cut),
                Outcome::Hang => std::future::pending().await,
            }
        }
        None => call(&core, &ask, seen).await,
    }
}

async fn call(core: &Core, ask: &Ask<'_>, seen: Seen) -> Result<Response<ReplyBody>, Cut> {
    let call_id = ask.headers.get("x-call-id").and_then(|value| value.to_str().ok());
    let plan = core.write(|state, _| {
        state.ledger.counts.requests += 1;
        state.ledger.call(ask.path, call_id);
        state.levers.plan(ask.path)
    });
    if let Some(barrier) = plan.gather {
        // Whoever waits for more than come goes on alone.
        let _ = tokio::time::timeout(GATHER, barrier.wait()).await;
    }
    let reply = core.write(|state, now| {
        let (reply, appid) = match plan.canned {
            Some(canned) => (canned_reply(canned), None),
            None => endpoints::call(state, ask, plan.refuse, now),
        };
        if reply.status == 200 {
            state.ledger.judged(reply.errcode, call_id);
        }
        let errcode = reply.errcode.map(|code| code.0);
        let status = if plan.drop == Some(DropWhen::BeforeReply) { 0 } else { reply.status };
        state.ledger.saw(Seen { status, errcode, appid, ..seen });
        reply
    });
    if !plan.delay.is_zero() {
        tokio::time::sleep(plan.delay).await;
    }
    match plan.drop {
        Some(DropWhen::BeforeReply) => Err(Cut),
        drop => Ok(respond(reply, drop)),
    }
}

fn canned_reply(canned: Canned) -> Reply {
    let parsed: Value = serde_json::from_str(&canned.body).unwrap_or_default();
    let code = parsed.get("errcode");
    let code =
        code.and_then(|code| code.as_i64().or_else(|| code.as_str().and_then(|text| text.parse().ok())));
    Reply {
        status: canned.status,
        errcode: code.map(Errcode),
        ..Reply::bytes(&canned.content_type, canned.body.into())
    }
}

fn texts(headers: &HeaderMap) -> Vec<(String, String)> {
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect()
}

fn is_chunked(headers: &HeaderMap) -> bool {
    let codings = headers.get_all(header::TRANSFER_ENCODING);
    codings
        .iter()
        .any(|value| value.as_bytes().to_ascii_lowercase().windows(7).any(|part| part == b"chunked"))
}

/// Reads a body; `None` for one too large.
async fn read(headers: &HeaderMap, mut incoming: Incoming) -> Result<Option<Body>, hyper::Error> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let mut reader = BodyReader::new(content_type.unwrap_or_default());
    while let Some(frame) = incoming.frame().await {
        if let Ok(data) = frame?.into_data() {
            reader.take(&data);
        }
        if reader.length() > MAX_BODY {
            return Ok(None);
        }
    }
    Ok(Some(reader.finish()))
}

fn respond(reply: Reply, drop: Option<DropWhen>) -> Response<ReplyBody> {
    let (length, content, chunked) = match reply.content {
        Content::Bytes(bytes) => (bytes.len() as u64, Some(bytes), false),
        Content::Pattern { length, chunked } => (length, None, chunked),
    };
    let cut_at = (drop == Some(DropWhen::MidReply)).then_some(length / 2);
    let mut response =
        Response::new(ReplyBody { content, length, chunked, position: 0, cut_at, flushed: false });
    *response.status_mut() = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    if let Ok(content_type) = reply.content_type.parse()
        && !reply.content_type.is_empty()
    {
        headers.insert(header::CONTENT_TYPE, content_type);
    }
    for (name, value) in reply.headers {
        if let Ok(value) = value.parse() {
            headers.insert(name, value);
        }
    }
    response
}

/// The connection is to be closed without ceremony.
#[derive(Debug)]
struct Cut;

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("cut on purpose")
    }
}

impl std::error::Error for Cut {}

/// A reply's body on its way out.
struct ReplyBody {
    /// Bytes that are there; `None` to make them up.
    content: Option<Bytes>,
    length: u64,
    chunked: bool,
    position: u64,
    cut_at: Option<u64>,
    flushed: bool,
}

impl HttpBody for ReplyBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if self.cut_at == Some(self.position) {
            // First let what was said so far go out.
            if !std::mem::replace(&mut self.flushed, true) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            return Poll::Ready(Some(Err(Cut)));
        }
        let end = self.cut_at.unwrap_or(self.length);
        let left = usize::try_from(end - self.position).unwrap_or(usize::MAX);
        if left == 0 {
            return Poll::Ready(None);
        }
        let data = match &self.content {
            Some(bytes) => bytes.slice(..left),
            None => {
                let from = usize::try_from(self.position % PERIOD as u64).unwrap_or_default();
                PATTERN.slice(from..PERIOD.min(from.saturating_add(left)))
            }
        };
        self.position += data.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.cut_at.is_none() && self.position == self.length
    }

    fn size_hint(&self) -> SizeHint {
        if self.chunked { SizeHint::default() } else { SizeHint::with_exact(self.length - self.position) }
    }
}
