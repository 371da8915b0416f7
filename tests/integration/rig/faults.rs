//! A network as it can be: [`Faults`] stands between two ends of a TCP connection, and each connection through it has a
//! [`Fate`], by chance and by the weather.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::ServerConfig;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use super::ms;

/// What becomes of a connection.
#[derive(Clone, Debug)]
pub(crate) enum Fate {
    /// Pieces pass, each as late as this and up to so much more, and no more than so many bytes at once.
    Passes { late: Duration, jitter: Duration, piece: usize },
    /// It is closed as soon as it is made.
    Refused,
    /// After so many bytes in one direction, both ends are reset.
    Reset { after: usize, back: bool },
    /// After so many bytes in one direction, nothing more passes in it but its end: within a TLS record, a truncation.
    Ends { after: usize, back: bool },
    /// After so many bytes in one direction, both end, each cleanly as far as TCP goes: another truncation of TLS.
    Cut { after: usize, back: bool },
    /// After so many bytes in one direction, nothing passes any more in either, for so long.
    Swallows { after: usize, back: bool, held: Duration },
    /// A server answers that is not the one that is meant: its certificate is not good.
    Impostor(usize),
}

/// What every connection may meet...
pub(crate) const SLOW: [&str; 3] = ["latency", "jitter", "bandwidth"];
/// ...and what is a fault, beside the names of the impostors.
pub(crate) const BROKEN: [&str; 5] = ["refused", "reset", "half-close", "cut", "blackhole"];

/// A certificate that is not good: what is wrong with it, and it.
pub(crate) type Impostor = (&'static str, Arc<ServerConfig>);

/// How likely what is.
#[derive(Clone, Copy, Debug)]
struct Weather {
    /// Of a hundred connections, how many have a fault.
    faults: u8,
    /// Every connection has this fate, whatever else is said.
    only: Option<&'static str>,
}

/// A proxy with faults.
pub(crate) struct Faults {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    weather: Arc<Mutex<Weather>>,
    met: Arc<Mutex<Met>>,
    kinds: Vec<&'static str>,
    sever: watch::Sender<()>,
    accepting: JoinHandle<()>,
}

/// What its connections had to bear.
#[derive(Clone, Debug, Default)]
pub(crate) struct Met {
    pub(crate) connections: usize,
    pub(crate) faults: usize,
    /// Connections by what became of them.
    pub(crate) kinds: BTreeMap<&'static str, usize>,
    /// Bytes that were given to an impostor within TLS.
    pub(crate) trusted: usize,
}

impl Faults {
    /// Before `target`, and in fair weather; impostors show these certificates.
    pub(crate) async fn before(target: SocketAddr, seed: u64, impostors: Vec<Impostor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("its address");
        let weather = Arc::new(Mutex::new(Weather { faults: 0, only: None }));
        let met = Arc::new(Mutex::new(Met::default()));
        let (now, noted) = (Arc::clone(&weather), Arc::clone(&met));
        let kinds: Vec<_> =
            SLOW.into_iter().chain(BROKEN).chain(impostors.iter().map(|impostor| impostor.0)).collect();
        let broken = kinds[SLOW.len()..].to_vec();
        let severed = watch::Sender::new(());
        let sever = severed.clone();
        let accepting = tokio::spawn(async move {
            let mut rng = fastrand::Rng::with_seed(seed);
            let (mut slow, mut broken) = (Deck::new(["none"].into_iter().chain(SLOW)), Deck::new(broken));
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let Weather { faults, only } = *now.lock().expect("no panic");
                let has_fault = rng.u8(..100) < faults;
                let kind = only
                    .unwrap_or_else(|| if has_fault { broken.draw(&mut rng) } else { slow.draw(&mut rng) });
                let fate = fate(&mut rng, kind, &impostors);
                {
                    let mut met = noted.lock().expect("no panic");
                    met.connections += 1;
                    met.faults += usize::from(!matches!(fate, Fate::Passes { .. }));
                    *met.kinds.entry(kind).or_default() += 1;
                }
                let (impostors, noted) = (impostors.clone(), Arc::clone(&noted));
                let (rng, mut severed) = (rng.fork(), severed.subscribe());
                connections.spawn(async move {
                    let through = async {
                        match fate {
                            Fate::Refused => {}
                            Fate::Impostor(which) => pose(stream, &impostors[which].1, &noted).await,
                            fate => carry(stream, target, fate, rng).await,
                        }
                    };
                    tokio::select! {
                        () = through => {}
                        _ = severed.changed() => {}
                    }
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Self { address, weather, met, kinds, sever, accepting }
    }

    /// Ends the connections there are; of those to come so many of a hundred have a fault.
    pub(crate) fn is_now(&self, faults: u8) {
        self.becomes(Weather { faults, only: None });
    }

    /// Ends the connections there are; those to come all have this fate.
    pub(crate) fn only(&self, kind: &'static str) {
        self.becomes(Weather { faults: 0, only: Some(kind) });
    }

    fn becomes(&self, weather: Weather) {
        *self.weather.lock().expect("no panic") = weather;
        self.sever();
    }

    /// Ends the connections there are.
    pub(crate) fn sever(&self) {
        self.sever.send_replace(());
    }

    /// Everything that may become of a connection here.
    pub(crate) fn kinds(&self) -> &[&'static str] {
        &self.kinds
    }

    /// What happened so far.
    pub(crate) fn met(&self) -> Met {
        self.met.lock().expect("no panic").clone()
    }

    /// Fails unless each of them became of some.
    pub(crate) fn assert_every_kind_was_met(&self) {
        let met = self.met();
        let missing: Vec<_> = self.kinds.iter().filter(|kind| !met.kinds.contains_key(*kind)).collect();
        assert!(missing.is_empty(), "nobody met {missing:?}: {met:?}");
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Cards, shuffled again when all have been drawn: each comes up, however few are drawn.
struct Deck {
    all: Vec<&'static str>,
    left: Vec<&'static str>,
}

impl Deck {
    fn new(all: impl IntoIterator<Item = &'static str>) -> Self {
        Self { all: all.into_iter().collect(), left: Vec::new() }
    }

    fn draw(&mut self, rng: &mut fastrand::Rng) -> &'static str {
        if self.left.is_empty() {
            self.left.clone_from(&self.all);
            rng.shuffle(&mut self.left);
        }
        self.left.pop().expect("a card")
    }
}

fn fate(rng: &mut fastrand::Rng, kind: &str, impostors: &[Impostor]) -> Fate {
    // A handshake has about 2 KiB in each direction, and a call a few hundred bytes.
    let (after, back) = (rng.usize(..6000), rng.bool());
    let passes = |late, jitter, piece| Fate::Passes { late: ms(late), jitter: ms(jitter), piece };
    match kind {
        "none" => passes(0, 0, usize::MAX),
        "latency" => passes(1 + rng.u64(..4), 0, usize::MAX),
        "jitter" => passes(0, 8, 700),
        // At best 160 bytes a millisecond.
        "bandwidth" => passes(1, 0, 160),
        "refused" => Fate::Refused,
        "reset" => Fate::Reset { after, back },
        "half-close" => Fate::Ends { after, back },
        "cut" => Fate::Cut { after, back },
        "blackhole" => Fate::Swallows { after, back, held: ms(3000) },
        name => Fate::Impostor(impostors.iter().position(|other| other.0 == name).expect("an impostor")),
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
        // What is dropped ends.
        Some(Stop::Cut | Stop::End) | None => {}
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    End,
    Cut,
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
    let (late, jitter, piece) = match fate {
        Fate::Passes { late, jitter, piece } => (*late, *jitter, *piece),
        _ => (Duration::ZERO, Duration::ZERO, usize::MAX),
    };
    let (limit, then) = match *fate {
        Fate::Reset { after, back: of } if of == back => (after, Stop::Reset),
        Fate::Ends { after, back: of } if of == back => (after, Stop::End),
        Fate::Cut { after, back: of } if of == back => (after, Stop::Cut),
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
            let wait = late + jitter.mul_f64(rng.f64());
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
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
