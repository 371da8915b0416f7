//! When to stop: the first SIGTERM or SIGINT asks for a clean stop, a second one ends the process at once.
//!
//! A thread of its own listens, so that a second signal is heard even while the rest is stuck in its stop. SIGHUP
//! asks for files to be read again: a terminal that closes must not end a sidecar.

use std::fmt;
use std::io;
use std::sync::mpsc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{oneshot, watch};

use crate::telemetry;

/// A signal that asks to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// SIGTERM: Kubernetes, systemd, `docker stop`.
    Terminate,
    /// SIGINT: Ctrl-C.
    Interrupt,
}

impl Stop {
    /// What a shell would see of a process that this signal ended: 128 and the signal's number.
    #[must_use]
    pub fn exit_code(self) -> i32 {
        128 + match self {
            Self::Terminate => SignalKind::terminate().as_raw_value(),
            Self::Interrupt => SignalKind::interrupt().as_raw_value(),
        }
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
        })
    }
}

/// Handlers that are in place; the first signal is waited for with [`Shutdown::requested`].
#[derive(Debug)]
pub struct Shutdown {
    first: oneshot::Receiver<Stop>,
    hangups: watch::Receiver<()>,
}

impl Shutdown {
    /// Changes with every SIGHUP.
    #[must_use]
    pub fn hangups(&self) -> watch::Receiver<()> {
        self.hangups.clone()
    }

    /// Until the first SIGTERM or SIGINT, which it returns.
    pub async fn requested(self) -> Stop {
        match self.first.await {
            Ok(stop) => stop,
            // The listening thread is gone without a word, so no signal will ever come.
            Err(_) => std::future::pending().await,
        }
    }
}

/// Puts the handlers in place, before anything else starts: a signal that comes earlier would end the process.
///
/// The second SIGTERM or SIGINT ends the process with 130 (SIGINT) or 143 (SIGTERM), whatever it is doing.
///
/// # Errors
/// The system's, when handlers or their thread cannot be had.
pub fn install() -> io::Result<Shutdown> {
    let (tell, first) = oneshot::channel();
    let (ready, installed) = mpsc::channel();
    let (hang_up, hangups) = watch::channel(());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            match Signals::install(hang_up) {
                Ok(mut signals) => {
                    // The one who installs waits for this; it can only be gone with the process.
                    let _ = ready.send(Ok(()));
                    let exit = |code| {
                        telemetry::flush();
                        std::process::exit(code)
                    };
                    listen(async || signals.next().await, tell, exit).await;
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            }
        });
    })?;
    installed.recv().unwrap_or_else(|_| Err(io::Error::other("the signal thread ended at once")))?;
    Ok(Shutdown { first, hangups })
}

/// [`install`] and [`Shutdown::requested`] in one: done at the first SIGTERM or SIGINT.
///
/// Handlers are in place from the first poll on. When they cannot be had, the log says so and this never ends: the
/// system's own handling then stops the process.
pub async fn shutdown() {
    match install() {
        Ok(shutdown) => {
            shutdown.requested().await;
        }
        Err(error) => {
            tracing::error!(%error, "signals cannot be caught, so a stop will not be a clean one");
            std::future::pending().await
        }
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    hang_up: watch::Sender<()>,
}

impl Signals {
    fn install(hang_up: watch::Sender<()>) -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            hang_up,
        })
    }

    /// `None` once no more can come.
    async fn next(&mut self) -> Option<Stop> {
        loop {
            tokio::select! {
                come = self.terminate.recv() => return come.map(|()| Stop::Terminate),
                come = self.interrupt.recv() => return come.map(|()| Stop::Interrupt),
                come = self.hangup.recv() => {
                    come?;
                    self.hang_up.send_replace(());
                }
            }
        }
    }
}

/// What is done with signals, apart from where they come from.
async fn listen(
    mut next: impl AsyncFnMut() -> Option<Stop>,
    tell: oneshot::Sender<Stop>,
    exit: impl FnOnce(i32),
) {
    let Some(first) = next().await else { return };
    tracing::info!("{first}: stopping; a second signal ends the process at once");
    // Nobody waiting any more is fine: the process is ending already.
    let _ = tell.send(first);
    let Some(second) = next().await else { return };
    tracing::warn!("{second} again: ending at once, calls in flight are lost");
    exit(second.exit_code());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::process::{Child, ChildStdout, Command, Stdio};

    #[tokio::test]
    async fn the_first_signal_asks_and_the_second_ends() {
        let (send, mut receive) = tokio::sync::mpsc::channel(2);
        let (tell, first) = oneshot::channel();
        let mut code = None;
        send.send(Stop::Terminate).await.unwrap();
        send.send(Stop::Interrupt).await.unwrap();
        listen(async || receive.recv().await, tell, |c| code = Some(c)).await;
        let (_, hangups) = watch::channel(());
        assert_eq!(Shutdown { first, hangups }.requested().await, Stop::Terminate);
        assert_eq!(code, Some(130));
        assert_eq!(Stop::Terminate.exit_code(), 143);
    }

    /// Set for the process the test below sends real signals to.
    const CHILD: &str = "SIGNAL_TEST_CHILD";

    /// Nothing in a run of all tests.
    #[test]
    fn child() {
        if std::env::var_os(CHILD).is_none() {
            return;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let shutdown = install().unwrap();
        println!("\ninstalled");
        let mut hangups = shutdown.hangups();
        runtime.block_on(hangups.changed()).unwrap();
        println!("hung up");
        println!("first {}", runtime.block_on(shutdown.requested()));
        // A stop that hangs: only a second signal ends it, and the machine that runs the test after a minute.
        std::thread::sleep(std::time::Duration::from_secs(60));
    }

    fn start_child() -> (Child, BufReader<ChildStdout>) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "signal::tests::child", "--nocapture"])
            .env(CHILD, "1")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        (child, out)
    }

    fn line_with(out: &mut impl BufRead, wanted: &str) -> String {
        let mut lines = out.lines().map(Result::unwrap);
        lines.find(|line| line.contains(wanted)).unwrap_or_else(|| panic!("no line with {wanted}"))
    }

    fn kill(child: &Child, signal: &str) {
        let status = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    #[test]
    fn a_real_process_hears_its_signals() {
        let (mut child, mut out) = start_child();
        line_with(&mut out, "installed");
        kill(&child, "-HUP");
        line_with(&mut out, "hung up");
        kill(&child, "-TERM");
        assert_eq!(line_with(&mut out, "first"), "first SIGTERM");
        kill(&child, "-INT");
        assert_eq!(child.wait().unwrap().code(), Some(130));
    }
}
