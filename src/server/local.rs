//! The Unix socket that apps may call instead of a port: who may open it, whose it is, and what becomes of its file.
//!
//! SECURITY: a port on loopback is open to every user of the machine; a socket's file has an owner and a mode, and the
//! kernel says which user is at the other end.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};

/// Where the socket is and for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Its file.
    pub path: PathBuf,
    /// The file's permissions.
    pub mode: u32,
    /// The users who are answered; `None` for all that can open it.
    pub uids: Option<Vec<u32>>,
}

/// The longest path: a socket's address holds 108 bytes, the last of them NUL (unix(7)).
const LONGEST_PATH: usize = 107;

/// Whether a path can be a socket's.
///
/// # Errors
/// A sentence with the remedy.
pub fn check_path(path: &Path) -> Result<(), String> {
    if path.as_os_str().len() > LONGEST_PATH {
        return Err(format!(
            "its path is longer than the {LONGEST_PATH} bytes a Unix socket may have; give a shorter one"
        ));
    }
    if path.file_name().is_none() {
        return Err("its path names no file; write it as unix:/run/wechat-sidecar/socket".to_owned());
    }
    Ok(())
}

/// A socket's file, which goes when this is dropped, if it still is the one that was made.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode: a successor may have put its own there meanwhile.
    id: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.id) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Listens on a socket of one's own. The file of one that nobody listens on any more (a crash left it) is replaced.
///
/// # Errors
/// `AddrInUse` when somebody listens there; `AlreadyExists` when the file is no socket, which is left alone.
pub fn bind(config: &Config) -> io::Result<(std::os::unix::net::UnixListener, SocketFile)> {
    let path = &config.path;
    if let Ok(found) = fs::symlink_metadata(path) {
        if !found.file_type().is_socket() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is no socket is there"));
        }
        match UnixStream::connect(path) {
            Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(error),
        }
    }
    // SECURITY: bound under another name, given its mode, and only then put in its place: at no time can somebody open it
    // whom the mode keeps out. And a rename replaces the stale file in one step.
    let new = path.with_file_name(format!(".{:016x}.new", fastrand::u64(..)));
    let made = (|| {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.bind(&SockAddr::unix(&new)?)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(config.mode))?;
        socket.listen(1024)?;
        let found = fs::symlink_metadata(&new)?;
        fs::rename(&new, path)?;
        let file = SocketFile { path: path.clone(), id: (found.dev(), found.ino()) };
        Ok((socket.into(), file))
    })();
    if made.is_err() {
        let _ = fs::remove_file(&new);
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(path: PathBuf) -> Config {
        Config { path, mode: 0o600, uids: None }
    }

    #[test]
    fn a_socket_has_its_mode_and_its_file_goes_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { mode: 0o620, ..config(dir.path().join("socket")) };
        let (listener, file) = bind(&config).unwrap();
        assert_eq!(fs::metadata(&config.path).unwrap().permissions().mode() & 0o777, 0o620);
        assert_eq!(bind(&config).unwrap_err().kind(), io::ErrorKind::AddrInUse, "somebody listens there");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "and nothing was left behind");
        drop((listener, file));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_file_that_is_none_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path().join("socket"));
        let (listener, file) = bind(&config).unwrap();
        // As a crash leaves it.
        drop(listener);
        std::mem::forget(file);
        assert!(config.path.exists());
        let (successor, _file) = bind(&config).unwrap();
        assert!(UnixStream::connect(&config.path).is_ok());
        drop(successor);

        let config = self::config(dir.path().join("notes.txt"));
        fs::write(&config.path, "mine").unwrap();
        assert_eq!(bind(&config).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&config.path).unwrap(), b"mine");
    }

    #[test]
    fn a_successors_file_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path().join("socket"));
        let (listener, file) = bind(&config).unwrap();
        drop(listener);
        let (_listener, successor) = bind(&config).unwrap();
        drop(file);
        assert!(config.path.exists());
        drop(successor);
        assert!(!config.path.exists());
    }

    #[test]
    fn a_path_must_fit_an_address() {
        assert!(check_path(Path::new("/run/wechat-sidecar/socket")).is_ok());
        assert!(check_path(&PathBuf::from(format!("/{}", "a".repeat(107)))).unwrap_err().contains("shorter"));
        assert!(check_path(Path::new("/")).is_err());
    }
}
