//! Who may ask the admin port for more than probes: [`Keys`], read from a file of one `key appid[,appid...]` a line.
//!
//! SECURITY: a key is given to a [`Secret`] and kept as its SHA-256 only, so there is none to leak; what a caller
//! presents is compared with all of them, in the same time whichever it is, if any.

use std::fmt;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use subtle::{ConditionallySelectable, ConstantTimeEq};
use zeroize::Zeroizing;

use crate::credentials::{AppId, Secret};

/// The shortest key. At this length of hex digits a guess a millisecond takes half a billion years.
const SHORTEST: usize = 16;
/// The largest file that is read, and the most keys in it.
const MAX_FILE: u64 = 1 << 20;
const MOST_KEYS: usize = 10_000;

/// The keys of one file. Cheap to clone.
#[derive(Clone)]
pub struct Keys {
    keys: Arc<[Key]>,
    /// Everyone on this machine may read the file.
    open: bool,
}

/// One key, as far as it is remembered.
pub(super) struct Key {
    digest: [u8; 32],
    scope: Scope,
    /// Where it stands in the file: its name in logs.
    pub(super) line: usize,
}

/// The accounts that a key is good for.
enum Scope {
    /// `*`: all there are.
    All,
    These(Vec<AppId>),
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({})", self.keys.len())
    }
}

impl Keys {
    /// Reads a file of keys.
    ///
    /// # Errors
    /// A sentence that names the path, the line and the remedy, never a key.
    pub fn read(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let cannot = |error| format!("{shown} cannot be read ({error}); check the path and its permissions");
        let file = std::fs::File::open(path).map_err(cannot)?;
        let open = file.metadata().map_err(cannot)?.permissions().mode() & 0o004 != 0;
        let mut bytes = Zeroizing::new(Vec::new());
        file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(cannot)?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(format!("{shown} is larger than 1MiB; give a file of one key a line"));
        }
        let text = std::str::from_utf8(&bytes)
            .map_err(|_| format!("{shown} is not text; give a file of one key a line"))?;
        let keys = Self::parse(text).map_err(|what| format!("{shown}, {what}"))?;
        Ok(Self { open, ..keys })
    }

    /// The text of such a file.
    fn parse(text: &str) -> Result<Self, String> {
        const FORM: &str = "write a line as KEY wx0123456789abcdef, with commas between several appids, or * for all accounts";
        let mut keys: Vec<Key> = Vec::new();
        for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
            let number = number + 1;
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let (key, appids) = line.split_once(char::is_whitespace).ok_or_else(|| {
                format!("line {number} has a key without an appid, or an appid without a key; {FORM}")
            })?;
            let key = Secret::parse(key)
                .map_err(|what| format!("line {number}: the key cannot be used, {what}; {FORM}"))?;
            if key.expose().len() < SHORTEST {
                return Err(format!(
                    "line {number}: the key is shorter than {SHORTEST} characters; make one with `openssl rand -hex 24`"
                ));
            }
            let digest = digest(key.expose());
            if let Some(first) = keys.iter().find(|other| other.digest == digest) {
                return Err(format!(
                    "line {number}: the key of line {} again; give it all its appids on one line",
                    first.line
                ));
            }
            keys.push(Key {
                digest,
                scope: scope(appids.trim()).map_err(|what| format!("line {number}: {what}; {FORM}"))?,
                line: number,
            });
        }
        match keys.len() {
            0 => Err(format!("there is no key in it; {FORM}")),
            n if n > MOST_KEYS => Err(format!(
                "there are more than {MOST_KEYS} keys in it; share keys among those who may see the same"
            )),
            _ => Ok(Self { keys: keys.into(), open: false }),
        }
    }

    /// Whether everyone on this machine may read the file.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Appids that the file names and `known` lacks.
    #[must_use]
    pub fn strangers(&self, known: &[&AppId]) -> Vec<AppId> {
        let mut strangers: Vec<AppId> = Vec::new();
        for key in self.keys.iter() {
            let Scope::These(appids) = &key.scope else { continue };
            for appid in appids {
                if !known.contains(&appid) && !strangers.contains(appid) {
                    strangers.push(appid.clone());
                }
            }
        }
        strangers
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// The key that was presented, and which it is.
    ///
    /// SECURITY: looks at every key, whichever it is, and at digests, so that neither the time nor where it stops says
    /// anything about a key.
    pub(super) fn find(&self, presented: &str) -> Option<(usize, &Key)> {
        let presented = digest(presented);
        let mut found = u64::MAX;
        for (at, key) in (0..).zip(self.keys.iter()) {
            found.conditional_assign(&at, key.digest.ct_eq(&presented));
        }
        let at = usize::try_from(found).ok()?;
        self.keys.get(at).map(|key| (at, key))
    }
}

impl Key {
    /// Whether it is good for this account.
    pub(super) fn covers(&self, appid: &AppId) -> bool {
        match &self.scope {
            Scope::All => true,
            Scope::These(appids) => appids.contains(appid),
        }
    }
}

fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

fn scope(text: &str) -> Result<Scope, String> {
    if text == "*" {
        return Ok(Scope::All);
    }
    let appids: Result<Vec<_>, _> = text.split(',').map(|appid| AppId::parse(appid.trim())).collect();
    // SECURITY: without the text, which may be a key in the wrong place.
    appids.map(Scope::These).map_err(|what| format!("one of its appids cannot be used, {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "k1-0123456789abcdef";
    const TWO: &str = "fedcba9876543210+/=~";

    fn appid(text: &str) -> AppId {
        AppId::parse(text).unwrap()
    }

    #[test]
    fn a_line_is_a_key_and_its_appids() {
        let text = format!("\u{feff}# ours\n\n{ONE} wx1,wx2 # the shop\r\n  {TWO}\t* \n");
        let keys = Keys::parse(&text).unwrap();
        assert_eq!(keys.len(), 2);
        let (at, one) = keys.find(ONE).unwrap();
        assert_eq!((at, one.line), (0, 3));
        assert!(one.covers(&appid("wx1")) && one.covers(&appid("wx2")) && !one.covers(&appid("wx3")));
        let (at, two) = keys.find(TWO).unwrap();
        assert!(at == 1 && two.covers(&appid("wx3")));
        for wrong in ["", "x", &ONE[1..], &format!("{ONE}0"), "*"] {
            assert!(keys.find(wrong).is_none(), "{wrong}");
        }
        assert_eq!(keys.strangers(&[&appid("wx1")]), [appid("wx2")]);
        assert_eq!(format!("{keys:?}"), "Keys(2)");
    }

    #[test]
    fn a_file_that_cannot_be_used_is_told_with_its_line_and_without_a_key() {
        for (text, words) in [
            (String::new(), "no key in it"),
            ("# nothing\n".to_owned(), "no key in it"),
            (format!("\n{ONE}\n"), "line 2 has a key without an appid"),
            (format!("{} wx1", &ONE[..15]), "line 1: the key is shorter than 16"),
            (format!("{ONE} wx1\n{ONE} wx2"), "line 2: the key of line 1 again"),
            (format!("{ONE} wx1,{TWO}"), "appids cannot be used"),
            (format!("{ONE} wx1,"), "appids cannot be used, it is empty"),
            (format!("{ONE} {TWO} wx1"), "appids cannot be used"),
            (format!("{} wx1", "a".repeat(257)), "longer than 256"),
            (format!("{ONE}微 wx1"), "non-ASCII"),
        ] {
            let told = Keys::parse(&text).unwrap_err();
            assert!(told.contains(words) && told.contains("; "), "{text}: {told}");
            assert!(!told.contains(&ONE[..8]) && !told.contains(&TWO[..8]), "{told}");
        }
        let many: String = (0..=MOST_KEYS).map(|n| format!("key-number-{n:020} *\n")).collect();
        assert!(Keys::parse(&many).unwrap_err().contains("more than 10000"));
    }

    #[test]
    fn a_file_of_keys_is_read_whoever_may_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        assert!(Keys::read(&path).unwrap_err().contains("cannot be read"));
        assert!(Keys::read(dir.path()).unwrap_err().contains("cannot be read"));
        std::fs::write(&path, format!("{ONE} *")).unwrap();
        for (mode, open) in [(0o600, false), (0o640, false), (0o644, true)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(Keys::read(&path).unwrap().is_open(), open);
        }
        std::fs::write(&path, b"\xff").unwrap();
        assert!(Keys::read(&path).unwrap_err().contains("not text"));
        std::fs::write(&path, vec![b' '; 1 << 21]).unwrap();
        assert!(Keys::read(&path).unwrap_err().contains("larger than 1MiB"));
    }
}
