//! What is listened on: a port or a Unix socket, and what is accepted there.

use std::io;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::error::{Cause, Failure};
use crate::server::Connection;
use crate::server::socket::{AppSocket, Wire};

/// A listener as it is handed to a worker.
#[derive(Debug)]
pub enum Listener {
    /// A port.
    Tcp(std::net::TcpListener),
    /// A Unix socket, and the users who are answered there (`None` for all).
    Unix(std::os::unix::net::UnixListener, Option<Vec<u32>>),
}

impl From<std::net::TcpListener> for Listener {
    fn from(listener: std::net::TcpListener) -> Self {
        Self::Tcp(listener)
    }
}

/// A listener at work on a runtime.
pub(super) enum Accepting {
    Tcp(TcpListener),
    Unix(UnixListener, Option<Vec<u32>>),
}

/// A connection that was accepted.
pub(super) enum Accepted {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Accepting {
    pub(super) fn new(listener: Listener) -> io::Result<Self> {
        Ok(match listener {
            Listener::Tcp(listener) => Self::Tcp(TcpListener::from_std(listener)?),
            Listener::Unix(listener, uids) => Self::Unix(UnixListener::from_std(listener)?, uids),
        })
    }

    pub(super) async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // A small reply must not wait for the app's acknowledgement of the last one.
                let _ = stream.set_nodelay(true);
                Ok(Accepted::Tcp(stream))
            }
            Self::Unix(listener, _) => Ok(Accepted::Unix(listener.accept().await?.0)),
        }
    }

    /// Whether whoever is at the other end of a Unix socket is one of those who are answered.
    ///
    /// # Errors
    /// It is somebody else.
    pub(super) fn check_peer(&self, stream: &Accepted) -> Result<(), Failure> {
        let (Self::Unix(_, Some(uids)), Accepted::Unix(stream)) = (self, stream) else { return Ok(()) };
        // SECURITY: the kernel's word on who connected (SO_PEERCRED); without it nobody is let in.
        let uid = stream.peer_cred().map(|peer| peer.uid());
        if uid.as_ref().is_ok_and(|uid| uids.contains(uid)) {
            return Ok(());
        }
        let who =
            uid.map_or_else(|error| format!("somebody unknown ({error})"), |uid| format!("the user {uid}"));
        Err(Failure::new(
            Cause::Peer,
            format!(
                "the call is from {who}, who is none of listen_uids; nothing was sent. Add the user's number there if its app may call"
            ),
        ))
    }
}

/// The longest it may take to tell somebody no.
const REFUSAL: Duration = Duration::from_secs(10);

/// Writes this and ends the connection so that the words arrive.
pub(super) async fn say<S: Wire>(stream: S, text: &[u8]) {
    let mut socket = AppSocket::new(stream, Connection::default(), REFUSAL);
    if socket.write_all(text).await.is_ok() {
        let _ = socket.shutdown().await;
    }
}
