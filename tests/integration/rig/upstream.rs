//! WeChat as it should not be: [`RawUpstream`] plays a script of bytes for each request it gets, and remembers every
//! byte that came.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::ServerConfig;
use socket2::{Domain, SockRef, Socket as Socket2, Type};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::within;

/// What it answers when the script has ended.
const OK: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 27\r\n\r\n{\"errcode\":0,\"errmsg\":\"ok\"}";

/// One step of what is done about a request. After the last one the rest of the request's body is read, and the next
/// request waited for.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Reads the request's body.
    ReadBody,
    /// Sends these bytes.
    Say(Vec<u8>),
    /// Sends these bytes, each in a packet of its own.
    Spell(Vec<u8>),
    /// Waits until the test opens the gate.
    Wait(Gate),
    /// Says nothing for this long.
    Pause(Duration),
    /// Ends its side, reads on until the other side has ended, too.
    HalfClose,
    /// Closes.
    Close,
    /// Closes with a reset.
    Reset,
    /// Says nothing more, but reads on until the other side has ended.
    Hang,
    /// Neither reads nor says anything more, but stays.
    Freeze,
}

/// Reads the body, then sends these bytes.
pub(crate) fn say(bytes: impl AsRef<[u8]>) -> Vec<Step> {
    vec![Step::ReadBody, Step::Say(bytes.as_ref().to_vec())]
}

/// What is done on connections that wait for a request.
#[derive(Clone, Debug)]
pub(crate) enum Idle {
    /// They are closed.
    Close,
    /// They are reset.
    Reset,
    /// These bytes are sent though nobody asked.
    Say(Vec<u8>),
}

/// Holds a script up until the test says go.
#[derive(Clone, Debug)]
pub(crate) struct Gate(watch::Sender<bool>);

impl Gate {
    /// A closed one.
    pub(crate) fn new() -> Self {
        Self(watch::channel(false).0)
    }

    /// Lets every script pass.
    pub(crate) fn open(&self) {
        self.0.send_replace(true);
    }

    /// Waits until it is open.
    pub(crate) async fn pass(&self) {
        let _ = self.0.subscribe().wait_for(|&open| open).await;
    }
}

/// One request as it came.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// On which connection, from 0.
    pub(crate) connection: usize,
    /// Request line and headers, with the empty line.
    pub(crate) head: String,
    /// What came of the body.
    pub(crate) body: Vec<u8>,
    /// Whether all of it did.
    pub(crate) whole: bool,
}

impl Seen {
    /// The request line.
    pub(crate) fn line(&self) -> &str {
        self.head.lines().next().unwrap_or_default()
    }

    /// The target.
    pub(crate) fn target(&self) -> &str {
        self.line().split(' ').nth(1).unwrap_or_default()
    }

    /// The headers as they came, without the request line.
    pub(crate) fn headers(&self) -> Vec<&str> {
        self.head.split("\r\n").skip(1).filter(|line| !line.is_empty()).collect()
    }

    /// Every value of a header.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        let pairs = self.headers().into_iter().filter_map(|line| line.split_once(':'));
        pairs.filter(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).collect()
    }

    /// The token it carries; fails unless there is just one.
    #[track_caller]
    pub(crate) fn token(&self) -> &str {
        let query = self.target().split_once('?').map_or("", |(_, query)| query);
        let tokens: Vec<_> =
            query.split('&').filter_map(|piece| piece.strip_prefix("access_token=")).collect();
        assert_eq!(tokens.len(), 1, "one access_token: {}", self.target());
        tokens[0]
    }
}

/// All that has happened.
#[derive(Debug, Default)]
pub(crate) struct Log {
    /// Every request whose head came whole.
    pub(crate) seen: Vec<Seen>,
    /// Every byte, by connection.
    pub(crate) bytes: Vec<Vec<u8>>,
    /// Connections that are open.
    pub(crate) open: usize,
}

/// The upstream.
pub(crate) struct RawUpstream {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    origin: String,
    shared: Shared,
    accepting: JoinHandle<()>,
}

#[derive(Clone)]
struct Shared {
    log: watch::Sender<Log>,
    plays: Arc<Mutex<VecDeque<Vec<Step>>>>,
    idle: broadcast::Sender<Idle>,
}

/// An origin that refuses connections for as long as the socket beside it lives: bound, so that nobody else gets the
/// port, but not listening.
pub(crate) fn no_one_listens() -> (String, Socket2) {
    let socket = Socket2::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a free port");
    let address = socket.local_addr().expect("its address").as_socket().expect("an address");
    (format!("http://{address}"), socket)
}

impl RawUpstream {
    /// One that answers everything with `errcode` 0.
    pub(crate) async fn start() -> Self {
        Self::listen(None, "127.0.0.1").await
    }

    /// One that plays these scripts, a request each, and then answers with `errcode` 0.
    pub(crate) async fn playing(plays: impl IntoIterator<Item = Vec<Step>>) -> Self {
        let upstream = Self::start().await;
        upstream.play(plays);
        upstream
    }

    /// One behind TLS, called `localhost`.
    pub(crate) async fn with_tls(config: Arc<ServerConfig>) -> Self {
        Self::listen(Some(TlsAcceptor::from(config)), "localhost").await
    }

    async fn listen(tls: Option<TlsAcceptor>, host: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("its address");
        let scheme = if tls.is_some() { "https" } else { "http" };
        let shared = Shared {
            log: watch::channel(Log::default()).0,
            plays: Arc::default(),
            idle: broadcast::channel(64).0,
        };
        let serving = shared.clone();
        let accepting = tokio::spawn(async move {
            // Dropped with this task, and so are all connections.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (shared, tls) = (serving.clone(), tls.clone());
                connections.spawn(async move {
                    let _ = stream.set_nodelay(true);
                    match tls {
                        None => shared.serve(stream).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                shared.serve(stream).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, origin: format!("{scheme}://{host}:{}", address.port()), shared, accepting }
    }

    /// The `upstream` setting that leads here.
    pub(crate) fn origin(&self) -> String {
        self.origin.clone()
    }

    /// Appends to the script.
    pub(crate) fn play(&self, plays: impl IntoIterator<Item = Vec<Step>>) {
        self.shared.plays.lock().expect("no panic").extend(plays);
    }

    /// Every request so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared.log.borrow().seen.clone()
    }

    /// Every request so far, and forgets them.
    pub(crate) fn take_seen(&self) -> Vec<Seen> {
        let mut seen = Vec::new();
        self.shared.log.send_modify(|log| seen = std::mem::take(&mut log.seen));
        seen
    }

    /// The one request there was; fails if there were more or none.
    #[track_caller]
    pub(crate) fn the_call(&self) -> Seen {
        let mut seen = self.take_seen();
        assert_eq!(seen.len(), 1, "the upstream sees a call once: {seen:#?}");
        seen.remove(0)
    }

    /// How many requests there were.
    pub(crate) fn calls(&self) -> usize {
        self.shared.log.borrow().seen.len()
    }

    /// How many bytes came, over all connections.
    pub(crate) fn bytes(&self) -> usize {
        self.shared.log.borrow().bytes.iter().map(Vec::len).sum()
    }

    /// Every byte so far, by connection.
    pub(crate) fn all_bytes(&self) -> Vec<Vec<u8>> {
        self.shared.log.borrow().bytes.clone()
    }

    /// How many connections there were.
    pub(crate) fn connections(&self) -> usize {
        self.shared.log.borrow().bytes.len()
    }

    /// Waits until this is so.
    pub(crate) async fn until(&self, what: &str, so: impl FnMut(&Log) -> bool) {
        let mut log = self.shared.log.subscribe();
        within(what, log.wait_for(so)).await.expect("the log is ours");
    }

    /// Does this on all connections that wait for a request, and waits until those that end have.
    pub(crate) async fn when_idle(&self, what: Idle) {
        let ends = !matches!(what, Idle::Say(_));
        let _ = self.shared.idle.send(what);
        if ends {
            self.until("the end of the idle connections", |log| log.open == 0).await;
        } else {
            // The connection's task runs on this thread.
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Refuses connections from now on, and ends all there are.
    pub(crate) async fn stop_listening(&mut self) {
        self.accepting.abort();
        let _ = (&mut self.accepting).await;
    }
}

impl Drop for RawUpstream {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// A connection with or without TLS.
trait Socket: AsyncRead + AsyncWrite + Unpin {
    fn tcp(&self) -> &TcpStream;
}

impl Socket for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }
}

impl Socket for tokio_rustls::server::TlsStream<TcpStream> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().0
    }
}

/// Counts a connection as open while it is there.
struct Open(watch::Sender<Log>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.send_modify(|log| log.open -= 1);
    }
}

struct Connection<S> {
    stream: S,
    number: usize,
    unread: Vec<u8>,
    log: watch::Sender<Log>,
}

impl Shared {
    async fn serve(&self, stream: impl Socket) {
        let mut number = 0;
        self.log.send_modify(|log| {
            number = log.bytes.len();
            log.bytes.push(Vec::new());
            log.open += 1;
        });
        let open = Open(self.log.clone());
        let mut connection = Connection { stream, number, unread: Vec::new(), log: self.log.clone() };
        let mut idle = self.idle.subscribe();
        while let Ok(true) = connection.next(&mut idle).await {
            let play = self.plays.lock().expect("no panic").pop_front();
            if !connection.play(play.unwrap_or_else(|| say(OK))).await.unwrap_or(false) {
                break;
            }
        }
        drop(connection);
        drop(open);
    }
}

impl<S: Socket> Connection<S> {
    /// Reads on. False at the end.
    async fn read(&mut self) -> io::Result<bool> {
        let before = self.unread.len();
        let n = self.stream.read_buf(&mut self.unread).await?;
        self.log.send_modify(|log| log.bytes[self.number].extend_from_slice(&self.unread[before..]));
        Ok(n > 0)
    }

    /// Waits for a request's head. False when there is none.
    async fn next(&mut self, idle: &mut broadcast::Receiver<Idle>) -> io::Result<bool> {
        loop {
            if let Some(at) = self.unread.windows(4).position(|four| four == b"\r\n\r\n") {
                let head: Vec<u8> = self.unread.drain(..at + 4).collect();
                let head = String::from_utf8_lossy(&head).into_owned();
                let seen = Seen { connection: self.number, head, ..Seen::default() };
                self.log.send_modify(|log| log.seen.push(seen));
                return Ok(true);
            }
            let told = tokio::select! {
                more = self.read() => {
                    if !more? {
                        return Ok(false);
                    }
                    continue;
                }
                told = idle.recv(), if self.unread.is_empty() => told,
            };
            match told {
                Ok(Idle::Say(bytes)) => self.stream.write_all(&bytes).await?,
                Ok(Idle::Reset) => {
                    self.reset();
                    return Ok(false);
                }
                Ok(Idle::Close) | Err(_) => return Ok(false),
            }
        }
    }

    /// Plays one script. False when the connection is to end.
    async fn play(&mut self, steps: Vec<Step>) -> io::Result<bool> {
        // The test may take the log away at any time, so the request is found by what it is.
        let request =
            self.log.borrow().seen.iter().rev().find(|seen| seen.connection == self.number).cloned();
        let request = request.unwrap_or_default();
        let mut left = Some(request);
        for step in steps {
            match step {
                Step::ReadBody => self.read_body(&mut left).await?,
                Step::Say(bytes) => {
                    self.stream.write_all(&bytes).await?;
                    self.stream.flush().await?;
                }
                Step::Spell(bytes) => {
                    for byte in bytes {
                        self.stream.write_all(&[byte]).await?;
                        self.stream.flush().await?;
                        tokio::time::sleep(Duration::from_micros(200)).await;
                    }
                }
                Step::Wait(gate) => gate.pass().await,
                Step::Pause(pause) => tokio::time::sleep(pause).await,
                Step::HalfClose => {
                    self.stream.shutdown().await?;
                    while self.read().await? {}
                    return Ok(false);
                }
                Step::Close => return Ok(false),
                Step::Reset => {
                    self.reset();
                    return Ok(false);
                }
                Step::Hang => {
                    self.read_body(&mut left).await?;
                    while self.read().await? {}
                    return Ok(false);
                }
                Step::Freeze => std::future::pending().await,
            }
        }
        self.read_body(&mut left).await?;
        Ok(true)
    }

    /// Reads the body of the request, once, and notes what came of it also when it breaks off.
    async fn read_body(&mut self, request: &mut Option<Seen>) -> io::Result<()> {
        let Some(mut request) = request.take() else { return Ok(()) };
        let length = match request.all("content-length")[..] {
            [] => 0,
            [length] => length.parse::<usize>().expect("a length"),
            _ => panic!("several lengths: {}", request.head),
        };
        assert!(request.all("transfer-encoding").is_empty(), "WeChat answers 412 to: {}", request.head);
        let mut outcome = Ok(true);
        while self.unread.len() < length && matches!(outcome, Ok(true)) {
            outcome = self.read().await;
        }
        request.whole = self.unread.len() >= length;
        request.body = self.unread.drain(..length.min(self.unread.len())).collect();
        self.log.send_modify(|log| {
            let seen = log.seen.iter_mut().rev().find(|seen| seen.connection == self.number);
            if let Some(seen) = seen {
                *seen = request;
            }
        });
        outcome.and_then(|more| if more { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) })
    }

    fn reset(&self) {
        let _ = SockRef::from(self.stream.tcp()).set_linger(Some(Duration::ZERO));
    }
}
