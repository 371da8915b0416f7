//! Who we are to WeChat, and the one thing nobody else may read: [`AppId`] and [`Secret`], and where a secret
//! comes from.
//!
//! Both are checked where they enter (parse, don't validate), so that everything behind can rely on the type.
//! SECURITY: a [`Secret`] prints as `***`, is wiped when dropped, and leaves only through [`Secret::expose`],
//! whose callers are few enough to read.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zeroize::{Zeroize, Zeroizing};

use crate::files;

pub mod alphabet;
pub mod encoded;
pub mod keys;

/// An account's public name at WeChat, such as `wx0123456789abcdef`.
///
/// 1 to 64 characters of `[A-Za-z0-9_-]`: real ones are `wx` and 16 hex digits, but WeChat documents no format,
/// so only what could change the meaning of a URL, a path segment or a metric label is refused.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AppId(Arc<str>);

impl AppId {
    /// Takes an appid as a user wrote it.
    ///
    /// # Errors
    /// Says which rule was broken; an appid is no secret, so the message may be shown with the value.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if text.is_empty() {
            return Err("it is empty");
        }
        if text.len() > 64 {
            return Err("it is longer than 64 characters");
        }
        if !text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-') {
            return Err("it has a character outside A-Z a-z 0-9 _ -");
        }
        Ok(Self(text.into()))
    }

    /// The appid as WeChat spells it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AppId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for AppId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Text that must never be seen: prints as `***`, is wiped on drop.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes an AppSecret: 1 to 256 visible ASCII characters, surrounding white space (a file's last newline) and an
    /// editor's byte order mark tolerated. WeChat's own are 32 hex digits.
    ///
    /// # Errors
    /// Says which rule was broken, without a character of the value.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let text = text.trim_start_matches('\u{feff}').trim();
        if text.is_empty() {
            return Err("it is empty");
        }
        if text.len() > 256 {
            return Err("it is longer than 256 characters");
        }
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err("it has white space, a control or a non-ASCII character inside");
        }
        Ok(Self(Zeroizing::new(text.to_owned())))
    }

    /// The text itself. SECURITY: only for the request that needs it, never for a message.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The longest secret file that is read: a path to the wrong file must not fill the memory.
const MAX_SECRET_FILE: u64 = 4096;

/// Reads a secret from a file, as Kubernetes and systemd mount them.
///
/// # Errors
/// One sentence that names the path and the remedy, never the content.
pub fn read_secret_file(path: &Path) -> Result<Secret, String> {
    read_secret(path, "AppSecret")
}

/// Reads another secret than an AppSecret from a file, in the same way; `what` says which, for the message.
///
/// # Errors
/// As [`read_secret_file`].
pub fn read_secret(path: &Path, what: &str) -> Result<Secret, String> {
    let shown = path.display();
    let bytes = files::read(path, MAX_SECRET_FILE)
        .map_err(|error| {
            format!("{shown} cannot be read ({error}); check the path and its permissions: it must be a file that holds the {what}")
        })?
        .bytes;
    if bytes.len() as u64 > MAX_SECRET_FILE {
        return Err(format!("{shown} is larger than {MAX_SECRET_FILE} bytes; it must hold just the {what}"));
    }
    let text = std::str::from_utf8(&bytes)
        .map_err(|_| format!("{shown} is not text; it must hold just the {what}, on one line"))?;
    Secret::parse(text).map_err(|reason| {
        format!("the {what} in {shown} cannot be used: {reason}; it must hold just the {what}, on one line")
    })
}

/// Where an account's secret came from, so that a message can name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretOrigin {
    /// Given as a value (environment or TOML).
    Value,
    /// Read from this file.
    File(PathBuf),
}

/// Wipes a buffer that held a secret.
pub(crate) fn wipe(bytes: &mut Vec<u8>) {
    bytes.zeroize();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_appid_that_could_change_a_url_is_refused() {
        assert_eq!(AppId::parse("wx0123456789abcdef").unwrap().as_str(), "wx0123456789abcdef");
        for bad in ["", "wx/..", "wx 1", "wx%20", "wx&secret=1", "微信", &"w".repeat(65)] {
            assert!(AppId::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_secret_never_prints() {
        let secret = Secret::parse("0123456789abcdef0123456789abcdef\r\n").unwrap();
        assert_eq!(secret.expose(), "0123456789abcdef0123456789abcdef");
        assert_eq!(format!("{secret} {secret:?} {:?}", Some(&secret)), "*** *** Some(***)");
    }

    #[test]
    fn a_secret_file_may_end_in_a_newline_and_must_be_small() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        std::fs::write(&path, "s3cret\n").unwrap();
        assert_eq!(read_secret_file(&path).unwrap().expose(), "s3cret");
        std::fs::write(&path, "\u{feff}s3cret\r\n").unwrap();
        assert_eq!(read_secret_file(&path).unwrap().expose(), "s3cret", "as Windows editors write it");
        std::fs::write(&path, "s3cret\nand more\n").unwrap();
        let told = read_secret_file(&path).unwrap_err();
        assert!(!told.contains("s3cret"), "{told}");
        std::fs::write(&path, vec![b'a'; 5000]).unwrap();
        assert!(read_secret_file(&path).unwrap_err().contains("larger"));
        assert!(read_secret_file(&dir.path().join("absent")).unwrap_err().contains("absent"));
        assert!(read_secret_file(dir.path()).is_err());
    }
}
