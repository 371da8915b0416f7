//! A network as it can be: [`Faults`] stands between two ends of a TCP connection, and each connection through it has a
//! [`Fate`], by chance and by the weather.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::ServerConfig;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use super::ms;

/// What becomes of a connection.
#[derive(Clone, Debug)]
pub(crate) enum Fate {
    /// Pieces pass, each as late as this and up to as much again, and no more bytes at a time.
    Passes { late: Duration, piece: usize },
    /// It is closed as soon as it is made.
    Refused,
    /// After so many bytes in one direction, both ends are reset.
    Reset { after: usize, back: bool },
    /// After so many bytes in one direction, nothing more passes in it but its end: within a TLS record, a truncation.
    Ends { after: usize, back: bool },
    /// After so many bytes in one direction, nothing passes any more in either, for so long.
    Swallows { after: usize, back: bool, held: Duration },
    /// A server answers that is not the one that is meant: its certificate is not good.
    Impostor(usize),
}

/// How likely what is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weather {
    /// Of a hundred connections, how many have a fault.
    pub(crate) faults: u8,
}

/// A proxy with faults.
pub(crate) struct Faults {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    weather: Arc<Mutex<Weather>>,
    met: Arc<Mutex<Met>>,
    accepting: JoinHandle<()>,
}

/// What its connections had to bear.
#[derive(Clone, Debug, Default)]
pub(crate) struct Met {
    pub(crate) connections: usize,
    pub(crate) faults: usize,
    /// Bytes that were given to an impostor within TLS.
    pub(crate) trusted: usize,
}

impl Faults {
    /// Before `target`, with a fault in so many of a hundred connections; impostors show these certificates.
    pub(crate) async fn before(
        target: SocketAddr,
        faults: u8,
        seed: u64,
        impostors: Vec<Arc<ServerConfig>>,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("its address");
        let (weather, met) = (Arc::new(Mutex::new(Weather { faults })), Arc::new(Mutex::new(Met::default())));
        let (now, noted) = (Arc::clone(&weather), Arc::clone(&met));
        let accepting = tokio::spawn(async move {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let faults = now.lock().expect("no panic").faults;
                let fate = fate(&mut rng, faults, impostors.len());
                {
                    let mut met = noted.lock().expect("no panic");
                    met.connections += 1;
                    met.faults += usize::from(!matches!(fate, Fate::Passes { .. }));
                }
                let (impostors, noted) = (impostors.clone(), Arc::clone(&noted));
                let rng = rng.fork();
                connections.spawn(async move {
                    match fate {
                        Fate::Refused => {}
                        Fate::Impostor(which) => pose(stream, &impostors[which], &noted).await,
                        fate => carry(stream, target, fate, rng).await,
                    }
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Self { address, weather, met, accepting }
    }

    /// From now on so many of a hundred connections have a fault.
    pub(crate) fn is_now(&self, faults: u8) {
        self.weather.lock().expect("no panic").faults = faults;
    }

    /// What happened so far.
    pub(crate) fn met(&self) -> Met {
        self.met.lock().expect("no panic").clone()
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

fn fate(rng: &mut fastrand::Rng, faults: u8, impostors: usize) -> Fate {
    // A handshake has about 2 KiB in each direction, and a call a few hundred bytes.
    let (after, back) = (rng.usize(..6000), rng.bool());
    if rng.u8(..100) >= faults {
        let piece = [usize::MAX, usize::MAX, 700, 40][rng.usize(..4)];
        return Fate::Passes { late: ms(rng.u64(..4)), piece };
    }
    match rng.u8(..12) {
        0 => Fate::Refused,
        1..=4 => Fate::Reset { after, back },
        5..=8 => Fate::Ends { after, back },
        9 | 10 if impostors > 0 => Fate::Impostor(rng.usize(..impostors)),
        _ => Fate::Swallows { after, back, held: ms(3000) },
    }
}

/// Shows a certificate that is not good, and notes whoever goes on all the same.
async fn pose(stream: TcpStream, certificate: &Arc<ServerConfig>, noted: &Mutex<Met>) {
    let Ok(mut tls) = TlsAcceptor::from(Arc::clone(certificate)).accept(stream).await else { return };
    let mut bytes = [0; 4096];
    while let Ok(n) = tls.read(&mut bytes).await {
        noted.lock().expect("no panic").trusted += n;
        if n == 0 {
            return;
        }
    }
}

async fn carry(here: TcpStream, target: SocketAddr, fate: Fate, mut rng: fastrand::Rng) {
    let Ok(there) = TcpStream::connect(target).await else { return };
    let _ = (here.set_nodelay(true), there.set_nodelay(true));
    let ((read_here, write_here), (read_there, write_there)) = (here.into_split(), there.into_split());
    let (one, other) = (rng.fork(), rng.fork());
    let mut forth = std::pin::pin!(pump(read_here, write_there, &fate, false, one));
    let mut back = std::pin::pin!(pump(read_there, write_here, &fate, true, other));
    let (mut forth_ended, mut back_ended) = (None, None);
    let fatal = loop {
        let stop = tokio::select! {
            end = &mut forth, if forth_ended.is_none() => { let stop = end.1; forth_ended = Some(end); stop }
            end = &mut back, if back_ended.is_none() => { let stop = end.1; back_ended = Some(end); stop }
        };
        if stop != Stop::End {
            break Some(stop);
        }
        if forth_ended.is_some() && back_ended.is_some() {
            break None;
        }
    };
    match fatal {
        Some(Stop::Reset) => {
            for ((_, write), _) in [forth_ended, back_ended].into_iter().flatten() {
                let _ = SockRef::from(write.as_ref()).set_linger(Some(Duration::ZERO));
            }
        }
        Some(Stop::Swallow(held)) => tokio::time::sleep(held).await,
        Some(Stop::End) | None => {}
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    End,
    Reset,
    Swallow(Duration),
}

type Ended = ((OwnedReadHalf, OwnedWriteHalf), Stop);

/// Carries one direction to its end.
async fn pump(
    mut read: OwnedReadHalf,
    mut write: OwnedWriteHalf,
    fate: &Fate,
    back: bool,
    mut rng: fastrand::Rng,
) -> Ended {
    let (late, piece) = match fate {
        Fate::Passes { late, piece } => (*late, *piece),
        _ => (Duration::ZERO, usize::MAX),
    };
    let (limit, then) = match *fate {
        Fate::Reset { after, back: of } if of == back => (after, Stop::Reset),
        Fate::Ends { after, back: of } if of == back => (after, Stop::End),
        Fate::Swallows { after, back: of, held } if of == back => (after, Stop::Swallow(held)),
        _ => (usize::MAX, Stop::End),
    };
    let mut left = limit;
    let mut bytes = vec![0; 16 * 1024];
    let stop = loop {
        let n = match read.read(&mut bytes).await {
            Ok(0) => break Stop::End,
            Ok(n) => n,
            Err(_) => break Stop::Reset,
        };
        let take = n.min(left);
        let mut failed = false;
        for part in bytes[..take].chunks(piece.min(bytes.len())) {
            if !late.is_zero() {
                tokio::time::sleep(late.mul_f64(1.0 + rng.f64())).await;
            }
            failed = failed || write.write_all(part).await.is_err();
        }
        left -= take;
        if failed {
            break Stop::Reset;
        }
        if left == 0 || take < n {
            break then;
        }
    };
    if stop == Stop::End {
        let _ = write.shutdown().await;
    }
    ((read, write), stop)
}
