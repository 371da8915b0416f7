//! Who may ask the admin port for more than probes: [`Keys`], read from a file of one `key appid[,appid...]` a line.
//!
//! SECURITY: a key is kept as its SHA-256 only, so there is none to leak; what a caller
//! presents is compared with all of them, in the same time whichever it is, if any.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use subtle::{ConditionallySelectable, ConstantTimeEq};

use crate::credentials::{AppId, keys};

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
        let file = keys::read(path)?;
        let mut found = Vec::with_capacity(file.lines.len());
        for line in file.lines {
            if !line.rest.is_empty() {
                return Err(format!(
                    "{}, line {}: there is more behind the appids, and these keys have nothing but accounts; take it out",
                    path.display(),
                    line.number
                ));
            }
            let scope = line.appids.map_or(Scope::All, Scope::These);
            found.push(Key { digest: digest(line.key.expose()), scope, line: line.number });
        }
        Ok(Self { keys: found.into(), open: file.open })
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
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        std::fs::write(&path, text).unwrap();
        let keys = Keys::read(&path).unwrap();
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
        std::fs::write(&path, format!("{ONE} wx1 allow=/a")).unwrap();
        let told = Keys::read(&path).unwrap_err();
        assert!(told.contains("line 1: there is more behind") && !told.contains(ONE), "{told}");
    }
}
