//! The files that settings name: [`read`] takes no more of one than it may have, and waits for no pipe for ever.
//!
//! A path to the wrong file must neither fill the memory (`/dev/zero` has no end) nor hang the start without a word (a
//! named pipe that nobody writes to, which even to open waits).

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use zeroize::Zeroizing;

/// What a file holds.
#[derive(Debug)]
pub struct Content {
    /// Its bytes, wiped on drop. One more than the most: it has more than it may.
    pub bytes: Zeroizing<Vec<u8>>,
    /// Its permissions, of the very file that was read.
    pub mode: u32,
}

/// The longest that a pipe is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Pipes that are waited for at a time. Whoever opens one stays there until somebody writes, perhaps for ever; files are
/// read again every few seconds, and threads must not pile up.
const MOST_PIPES: usize = 8;

static PIPES: AtomicUsize = AtomicUsize::new(0);

/// Reads a file, but no more than one byte beyond `most`.
///
/// # Errors
/// The system's; `TimedOut` for a pipe to which nobody wrote all within five seconds.
pub fn read(path: &Path, most: u64) -> io::Result<Content> {
    if is_pipe(path) { read_pipe(path, most, PATIENCE) } else { read_now(path, most) }
}

/// Whether what is there can be read only once, as with `--secret-file <(command)`.
#[must_use]
pub fn is_pipe(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo())
}

fn read_now(path: &Path, most: u64) -> io::Result<Content> {
    let file = File::open(path)?;
    // Of what was opened, not of the path, which may lead elsewhere by then.
    let mode = file.metadata()?.permissions().mode();
    // SECURITY: room enough that what is small, as all secrets are, never moves and leaves a copy.
    let room = usize::try_from(most).unwrap_or(usize::MAX).min(64 * 1024) + 1;
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok(Content { bytes, mode })
}

fn read_pipe(path: &Path, most: u64, patience: Duration) -> io::Result<Content> {
    let nobody = |what: &str| Err(io::Error::new(io::ErrorKind::TimedOut, what));
    if PIPES.fetch_add(1, Ordering::Relaxed) >= MOST_PIPES {
        PIPES.fetch_sub(1, Ordering::Relaxed);
        return nobody("it is a pipe, and too many are waited for");
    }
    let (tell, told) = mpsc::channel();
    let path = path.to_owned();
    let started = std::thread::Builder::new().name("pipe".to_owned()).spawn(move || {
        let read = read_now(&path, most);
        PIPES.fetch_sub(1, Ordering::Relaxed);
        // Too late, perhaps.
        let _ = tell.send(read);
    });
    if let Err(error) = started {
        PIPES.fetch_sub(1, Ordering::Relaxed);
        return Err(error);
    }
    told.recv_timeout(patience)
        .unwrap_or_else(|_| nobody("it is a pipe, and nobody wrote to it, or did not end, in time"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn pipe(dir: &tempfile::TempDir, name: &str) -> std::path::PathBuf {
        let path = dir.path().join(name);
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        path
    }

    #[test]
    fn a_file_without_an_end_is_read_to_its_most() {
        assert_eq!(read(Path::new("/dev/zero"), 1000).unwrap().bytes.len(), 1001);
        assert!(read(Path::new("/"), 1000).is_err());
    }

    #[test]
    fn a_pipe_that_is_written_to_is_read_and_one_that_is_not_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let written = pipe(&dir, "written");
        let writer = std::thread::spawn({
            let path = written.clone();
            move || std::fs::write(path, "all of it").unwrap()
        });
        assert_eq!(read(&written, 1000).unwrap().bytes.as_slice(), b"all of it");
        writer.join().unwrap();
        let silent = pipe(&dir, "silent");
        assert!(is_pipe(&silent) && !is_pipe(dir.path()) && !is_pipe(&dir.path().join("absent")));
        for _ in 0..3 * MOST_PIPES {
            let given_up = read_pipe(&silent, 1000, Duration::from_millis(1)).unwrap_err();
            assert_eq!(given_up.kind(), io::ErrorKind::TimedOut);
        }
        assert!(PIPES.load(Ordering::Relaxed) <= MOST_PIPES);
        // Those who wait are let go.
        drop(std::fs::OpenOptions::new().write(true).open(&silent).unwrap());
    }
}
