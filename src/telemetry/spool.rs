//! Nobody waits for whoever reads the log: a [`Spool`] takes lines at once, and a thread of its own writes them.
//!
//! Standard error is often a pipe to a collector, and one that has stopped reading (a full disk, a collector that hangs)
//! takes 64 KiB and then nothing. Written by the workers themselves, the next line would stop every call and the stop,
//! too. So lines wait within bounds, and what does not fit is left out, counted, and told once there is room again.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::repeats;

/// What may wait, in bytes: a second of 1,000 calls.
const MOST: usize = 512 * 1024;

/// So long lines are gathered into one write: at 2,000 calls a second that is ten of them.
const GATHER: Duration = Duration::from_millis(5);

/// Whoever waits for all of it to be written looks so often.
const LOOK: Duration = Duration::from_millis(1);

/// Takes lines for a writer. Clones take them for the same one.
#[derive(Clone)]
pub(super) struct Spool(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    came: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    /// Lines that found no room, since the last that did.
    left_out: u64,
    writing: bool,
}

impl Spool {
    /// Starts the thread that writes to `out`.
    ///
    /// # Errors
    /// The system's, when it gives no thread.
    pub(super) fn start(out: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let lines = Arc::clone(&shared);
        std::thread::Builder::new().name("log".to_owned()).spawn(move || lines.write_to(out))?;
        Ok(Self(shared))
    }

    /// Waits until all that came is written, and no longer than `patience`.
    pub(super) fn flush(&self, patience: Duration) {
        // In sleeps, which are as long wherever a clock is set: a timed wait ends at a time by the monotonic clock, and
        // where that is faked (libfaketime), hours late.
        let mut left = patience;
        while !self.0.lock().is_written() && !left.is_zero() {
            let step = left.min(LOOK);
            std::thread::sleep(step);
            left -= step;
        }
    }
}

impl Write for Spool {
    /// Takes a whole line, or leaves it out. Never waits, and never fails.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut state = self.0.lock();
        if state.waiting.len() + line.len() > MOST {
            state.left_out += 1;
            repeats::count(1);
        } else {
            if state.waiting.is_empty() {
                self.0.came.notify_one();
            }
            state.waiting.extend_from_slice(line);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what comes, for as long as the process lives.
    fn write_to(&self, mut out: impl Write) {
        let mut lines = Vec::new();
        loop {
            let state = self.lock();
            drop(self.came.wait_while(state, |state| state.waiting.is_empty()));
            std::thread::sleep(GATHER);
            let mut state = self.lock();
            std::mem::swap(&mut state.waiting, &mut lines);
            let left_out = std::mem::take(&mut state.left_out);
            state.writing = true;
            drop(state);

            write_out(&mut out, &lines);
            lines.clear();
            if left_out > 0 {
                tracing::warn!(
                    lines = left_out,
                    "lines were left out of the log, because standard error took none for a while; calls went on. Check whatever collects the log, and its disk"
                );
            }
            self.lock().writing = false;
        }
    }
}

/// Writes all of it, however long that takes. Of an error nobody is left to be told.
fn write_out(out: &mut impl Write, mut lines: &[u8]) {
    while !lines.is_empty() {
        match out.write(lines) {
            Ok(0) => return,
            Ok(written) => lines = &lines[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Whoever shares our standard error may have made it one that does not wait; Node.js does.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(GATHER),
            Err(_) => return,
        }
    }
}

impl State {
    fn is_written(&self) -> bool {
        self.waiting.is_empty() && !self.writing
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::telemetry::left_out;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// A collector: each write waits for a word that lets it through.
    struct Collector {
        may: mpsc::Receiver<()>,
        got: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Collector {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // Nobody holds it back any more once the test has let go.
            let _ = self.may.recv();
            self.got.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn collector() -> (mpsc::Sender<()>, Arc<Mutex<Vec<u8>>>, Spool) {
        let (let_through, may) = mpsc::channel();
        let got = Arc::new(Mutex::new(Vec::new()));
        let spool = Spool::start(Collector { may, got: Arc::clone(&got) }).unwrap();
        (let_through, got, spool)
    }

    #[test]
    fn every_line_comes_whole_and_in_order() {
        let (let_through, got, mut spool) = collector();
        drop(let_through);
        let mut said = String::new();
        for n in 0..5000 {
            let line = format!("line {n}\n");
            spool.write_all(line.as_bytes()).unwrap();
            said.push_str(&line);
        }
        spool.flush(PATIENCE);
        assert_eq!(String::from_utf8(got.lock().unwrap().clone()).unwrap(), said);
    }

    #[test]
    fn a_collector_that_takes_nothing_holds_nobody_up_and_costs_bounded_memory() {
        let (let_through, got, mut spool) = collector();
        let line = [b'x'; 1024];
        let before = left_out();
        for _ in 0..3 * MOST / line.len() {
            spool.write_all(&line).unwrap();
        }
        assert!(left_out() - before >= (MOST / line.len()) as u64);
        assert!(spool.0.lock().waiting.capacity() <= 2 * MOST);
        // The end does not wait for it either.
        spool.flush(Duration::from_millis(1));
        assert!(got.lock().unwrap().is_empty());
        drop(let_through);
        spool.flush(PATIENCE);
        let written = got.lock().unwrap().len();
        assert!(written >= MOST - line.len() && written.is_multiple_of(line.len()), "{written}");
    }
}
