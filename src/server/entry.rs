//! What stands before HTTP on a connection: nothing ([`Entry::Http`]), a CONNECT that is answered here
//! ([`Entry::Proxy`]), or TLS from the first byte, as WeChat ([`Entry::Tls`]) or as ourselves ([`Entry::Own`]). Behind
//! each is the same HTTP and the same handler.
//!
//! A CONNECT asks for a tunnel to a host of the closed list, and gets one that ends here. SECURITY: no tunnel leads
//! anywhere else, nothing is sent for whoever asks for one, and the certificate is good for the list alone.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::ca::Identity;
use crate::error::{Cause, Failure};
use crate::hosts;
use crate::server::{AppSocket, Connection, HEAD_TIMEOUT, framing};
use crate::tls::ServerIdentity;

/// How connections of a listener begin.
#[derive(Clone, Debug)]
pub enum Entry {
    /// With HTTP.
    Http,
    /// With HTTP, or with a CONNECT to one of the hosts and then TLS.
    Proxy(Tls),
    /// With TLS.
    Tls(Tls),
    /// With TLS under a certificate of the operator's; from this machine also with HTTP.
    Own(ServerIdentity),
}

/// The TLS of an [`Entry`]: who we are and how it is spoken.
#[derive(Clone)]
pub struct Tls {
    identity: Arc<Identity>,
    acceptor: TlsAcceptor,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl Tls {
    /// TLS as this identity. Clones share the sessions that a client may resume, whichever worker it meets.
    ///
    /// # Errors
    /// A sentence: no TLS can be had.
    pub fn new(identity: Arc<Identity>) -> Result<Self, String> {
        let acceptor = TlsAcceptor::from(identity.server_config()?);
        Ok(Self { identity, acceptor })
    }
}

/// What a connection turned out to be.
pub(super) enum Opened {
    /// HTTP comes next, in clear.
    Http(TcpStream),
    /// HTTP comes next, inside.
    Tls(Box<TlsStream<TcpStream>>),
    /// It has ended.
    Over,
}

/// The longest a TLS handshake may take, from its first byte expected. An app on this machine needs milliseconds.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The largest head of a CONNECT: a name, a User-Agent, perhaps a Proxy-Authorization.
const MAX_CONNECT: usize = 8 * 1024;

/// The most headers of a CONNECT.
const MAX_CONNECT_HEADERS: usize = 64;

/// Brings a connection to where HTTP begins.
pub(super) async fn open(stream: TcpStream, entry: &Entry) -> Opened {
    match entry {
        Entry::Http => Opened::Http(stream),
        Entry::Proxy(tls) => proxy(stream, tls).await,
        Entry::Tls(tls) => match first_byte(&stream).await {
            Some(byte) if byte.is_ascii_alphabetic() => {
                let failure = Failure::new(
                    Cause::PlainHttp,
                    "this port speaks TLS, and the request came in clear; nothing was sent. Call it as https://api.weixin.qq.com, or use the address of `listen` for http://",
                );
                refuse(stream, &failure).await
            }
            Some(_) => handshake(stream, tls).await,
            None => Opened::Over,
        },
        Entry::Own(identity) => own(stream, identity).await,
    }
}

/// TLS as ourselves. A request that never leaves this machine may come in clear, so that probes need no trust.
async fn own(stream: TcpStream, identity: &ServerIdentity) -> Opened {
    match first_byte(&stream).await {
        Some(byte) if byte.is_ascii_alphabetic() && is_from_here(&stream) => Opened::Http(stream),
        Some(byte) if byte.is_ascii_alphabetic() => {
            let failure = Failure::new(
                Cause::PlainHttp,
                "this port speaks TLS to other machines, and the request came in clear; nothing was done. Call it with https:// (a Kubernetes probe with scheme: HTTPS)",
            );
            refuse(stream, &failure).await
        }
        Some(_) => {
            let accepting = identity.acceptor().accept(stream);
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, accepting).await {
                Ok(Ok(stream)) => Opened::Tls(Box::new(stream)),
                Ok(Err(error)) => {
                    tracing::debug!(%error, "a client broke off a TLS handshake; if it does not trust the certificate, tell it the CA");
                    Opened::Over
                }
                Err(_) => Opened::Over,
            }
        }
        None => Opened::Over,
    }
}

fn is_from_here(stream: &TcpStream) -> bool {
    let (Ok(peer), Ok(local)) = (stream.peer_addr(), stream.local_addr()) else { return false };
    peer.ip().to_canonical().is_loopback() || peer.ip() == local.ip()
}

/// The first byte, left where it is; `None` when there will be none.
async fn first_byte(stream: &TcpStream) -> Option<u8> {
    let mut byte = [0];
    match tokio::time::timeout(HEAD_TIMEOUT, stream.peek(&mut byte)).await {
        Ok(Ok(1)) => Some(byte[0]),
        _ => None,
    }
}

async fn proxy(mut stream: TcpStream, tls: &Tls) -> Opened {
    // One look decides: no other method that WeChat knows begins with C.
    match first_byte(&stream).await {
        Some(b'C') => {}
        Some(_) => return Opened::Http(stream),
        None => return Opened::Over,
    }
    let head = match tokio::time::timeout(HEAD_TIMEOUT, read_head(&mut stream)).await {
        Ok(Ok(Some(head))) => head,
        Ok(Ok(None)) => {
            return refuse(stream, &bad_connect(&format!("its head is larger than {MAX_CONNECT} bytes")))
                .await;
        }
        Ok(Err(_)) | Err(_) => return Opened::Over,
    };
    if let Err(failure) = check_connect(&head, &tls.identity) {
        return refuse(stream, &failure).await;
    }
    if stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.is_err() {
        return Opened::Over;
    }
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, first_byte(&stream)).await {
        Ok(Some(byte)) if byte.is_ascii_alphabetic() => {
            let failure = Failure::new(
                Cause::PlainHttp,
                "the tunnel speaks TLS, and the request came in clear; nothing was sent. Call https://api.weixin.qq.com through it",
            );
            refuse(stream, &failure).await
        }
        Ok(Some(_)) => handshake(stream, tls).await,
        Ok(None) | Err(_) => Opened::Over,
    }
}

async fn handshake(stream: TcpStream, tls: &Tls) -> Opened {
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.acceptor.accept(stream)).await {
        Ok(Ok(stream)) => Opened::Tls(Box::new(stream)),
        Ok(Err(error)) => {
            // Mostly an app that does not trust the CA. Its own error says less, so here is the remedy.
            tracing::info!(
                %error,
                "an app broke off a TLS handshake; if it does not trust the local CA, `wechat-sidecar ca` prints how to tell it"
            );
            Opened::Over
        }
        Err(_) => {
            tracing::debug!("a TLS handshake took too long");
            Opened::Over
        }
    }
}

/// Reads a head and not a byte more: what follows belongs to TLS. `None` when it is too large.
async fn read_head(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    const END: &[u8] = b"\r\n\r\n";
    let mut head = Vec::new();
    let mut seen = [0; 2048];
    loop {
        let n = stream.peek(&mut seen).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let known = head.len();
        head.extend_from_slice(&seen[..n]);
        // The end may have begun in what came before.
        let from = known.saturating_sub(END.len() - 1);
        let end = head[from..].windows(END.len()).position(|window| window == END);
        if let Some(end) = end {
            head.truncate(from + end + END.len());
        }
        let taken = head.len() - known;
        stream.read_exact(&mut seen[..taken]).await?;
        if head.len() > MAX_CONNECT {
            return Ok(None);
        }
        if end.is_some() {
            return Ok(Some(head));
        }
    }
}

/// Whether a head is a CONNECT to one of our hosts.
fn check_connect(head: &[u8], identity: &Identity) -> Result<(), Failure> {
    framing::check_head_alone(head).map_err(|what| bad_connect(&what))?;
    let mut headers = [httparse::EMPTY_HEADER; MAX_CONNECT_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err(bad_connect("it is not complete")),
        Err(error) => return Err(bad_connect(&error.to_string())),
    }
    let (method, target) = (request.method.unwrap_or_default(), request.path.unwrap_or_default());
    if method != Method::CONNECT.as_str() {
        return Err(Failure::new(
            Cause::MethodNotAllowed,
            "the method is not one that WeChat knows; nothing was sent. Use GET or POST",
        ));
    }
    let (host, port) = match hosts::split(target) {
        Some((host, Some(port))) => (host, port),
        _ => return Err(bad_connect("its target is not host:port")),
    };
    let hosts = identity.hosts();
    if !hosts.certifies(host) || !hosts.takes(target, 443) {
        tracing::info!(%host, port, "refused a CONNECT to a host that is not on the list");
        return Err(Failure::new(
            Cause::ForeignHost,
            format!(
                "{host}:{port} is no host of the WeChat API, and no tunnel leads to any other; nothing was sent. Let the app reach it without this proxy (NO_PROXY), or, if it is one, add its name to upstream_hosts and make a CA for it"
            ),
        ));
    }
    Ok(())
}

fn bad_connect(what: &str) -> Failure {
    Failure::new(
        Cause::BadTarget,
        format!(
            "this CONNECT cannot be read: {what}; nothing was sent. Write it as CONNECT api.weixin.qq.com:443 HTTP/1.1"
        ),
    )
}

/// Tells why, and ends the connection so that the words arrive.
async fn refuse(stream: TcpStream, failure: &Failure) -> Opened {
    tracing::debug!(cause = failure.cause.name(), "{}", failure.message);
    let text = failure.to_bytes();
    let mut socket = AppSocket::new(stream, Connection::default(), HANDSHAKE_TIMEOUT);
    if socket.write_all(&text).await.is_ok() {
        let _ = socket.shutdown().await;
    }
    Opened::Over
}
