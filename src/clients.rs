//! Who may call, where that is asked: a [`Client`] is the holder of a key, with its accounts and perhaps an allow-list
//! of its own; [`Keyring`] is the file of keys, read again when it changes.
//!
//! A caller shows its key in a header, as the secret of a call that has one, or by the placeholder that the token
//! endpoint gave it for the key. SECURITY: such a placeholder ends in a tag, HMAC-SHA256 of the account under the key:
//! the same after a restart and on every replica, telling nothing of the key, and of no use for another account.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::{digest, hmac};
use tokio::sync::watch;

use crate::credentials::AppId;
use crate::credentials::keys;
use crate::files;
use crate::policy::{Rule, Rules};

/// The header a caller may show its key in. Never forwarded.
pub const KEY_HEADER: &str = "x-wechat-sidecar-key";

/// What the HMAC is of, in front of the appid; another use of a key gets another label.
const LABEL: &[u8] = b"wechat-sidecar placeholder 1\0";

/// How much of the HMAC a placeholder shows: 192 bits, which are 32 characters.
const TAG: usize = 24;

/// The holder of a key.
#[derive(Debug)]
pub struct Client {
    /// For people: where in the file its key stands. Tells nothing of the key.
    name: String,
    accounts: Vec<AppId>,
    allow: Option<Rules>,
}

impl Client {
    /// For logs: where in the file its key stands.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The account of a call of its that names none.
    #[must_use]
    pub fn default_account(&self) -> &AppId {
        &self.accounts[0]
    }

    /// Whether it may call as this account.
    #[must_use]
    pub fn may_be(&self, appid: &AppId) -> bool {
        self.accounts.contains(appid)
    }

    /// The rules that its calls have to match beside the account's, if it has any.
    #[must_use]
    pub fn allow(&self) -> Option<&Rules> {
        self.allow.as_ref()
    }
}

/// Every client, found by what it shows.
#[derive(Default)]
pub struct Clients {
    /// SECURITY: keys and tags are found by their digest, so that no comparison's time tells how much of a guess is
    /// right, and the keys themselves are not kept.
    by_digest: HashMap<[u8; 32], Arc<Client>>,
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clients({} keys and tags)", self.by_digest.len())
    }
}

impl Clients {
    /// Reads the file; every appid in it must be one of `accounts`.
    ///
    /// # Errors
    /// A sentence with the file, the line and the remedy.
    pub fn read(path: &Path, accounts: &[AppId]) -> Result<Self, String> {
        let mut clients = Self::default();
        for line in keys::read(path)?.lines {
            let told = |what: String| format!("{}, line {}: {what}", path.display(), line.number);
            let appids = line.appids.unwrap_or_else(|| accounts.to_vec());
            if let Some(unknown) = appids.iter().find(|appid| !accounts.contains(appid)) {
                return Err(told(format!(
                    "{unknown} is no account of this sidecar; add the account, or correct the appid"
                )));
            }
            let allow = match line.rest.strip_prefix("allow=") {
                Some(list) => Some(Rules::new(Rule::parse_list(list).map_err(told)?)),
                None if line.rest.is_empty() => None,
                None => {
                    return Err(told("what stands behind the appids is not `allow=`; write it as allow=POST /cgi-bin/message/**, /wxa/**".to_owned()));
                }
            };
            let client = Arc::new(Client { name: format!("line {}", line.number), accounts: appids, allow });
            clients.by_digest.insert(key_digest(line.key.expose()), Arc::clone(&client));
            for appid in &client.accounts {
                let tag = tag(line.key.expose(), appid);
                clients.by_digest.insert(tag_digest(&tag, appid.as_str()), Arc::clone(&client));
            }
        }
        Ok(clients)
    }

    /// The client with this key.
    #[must_use]
    pub fn by_key(&self, key: &str) -> Option<&Arc<Client>> {
        self.by_digest.get(&key_digest(key))
    }

    /// The client whose placeholder for this account ends in this tag.
    #[must_use]
    pub fn by_tag(&self, tag: &str, appid: &str) -> Option<&Arc<Client>> {
        self.by_digest.get(&tag_digest(tag, appid))
    }
}

/// What a placeholder for this account ends in when it was given for this key: `[A-Za-z0-9_-]`.
#[must_use]
pub fn tag(key: &str, appid: &AppId) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes());
    let tag = hmac::sign(&key, &[LABEL, appid.as_str().as_bytes()].concat());
    URL_SAFE_NO_PAD.encode(&tag.as_ref()[..TAG])
}

fn key_digest(key: &str) -> [u8; 32] {
    digest_of(&[b"key\0", key.as_bytes()])
}

fn tag_digest(tag: &str, appid: &str) -> [u8; 32] {
    // An appid has no NUL in it.
    digest_of(&[b"tag\0", appid.as_bytes(), b"\0", tag.as_bytes()])
}

fn digest_of(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(part);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

/// The file of keys and what it said last. Cheap to clone: one for all workers.
#[derive(Clone)]
pub struct Keyring(Arc<Shared>);

struct Shared {
    path: PathBuf,
    accounts: Vec<AppId>,
    now: watch::Sender<Arc<Clients>>,
    /// The file that was looked at last, be it good or not. For the one thread that looks.
    seen: Mutex<Option<Stamp>>,
}

/// What tells a changed file: its time, its size, and which file it is (a mounted secret is replaced by a link).
type Stamp = (SystemTime, u64, u64);

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keyring({})", self.0.path.display())
    }
}

impl Keyring {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// As [`Clients::read`].
    pub fn open(path: PathBuf, accounts: Vec<AppId>) -> Result<Self, String> {
        let seen = Mutex::new(stamp(&path));
        let clients = Clients::read(&path, &accounts)?;
        Ok(Self(Arc::new(Shared { now: watch::Sender::new(Arc::new(clients)), path, accounts, seen })))
    }

    /// The clients as of now.
    #[must_use]
    pub fn clients(&self) -> Arc<Clients> {
        Arc::clone(&self.0.now.borrow())
    }

    /// Reads the file again if it has changed. One that cannot be used changes nothing but the log: who was let in
    /// stays so until the file is right again.
    pub fn look(&self) {
        let now = stamp(&self.0.path);
        {
            let mut seen = self.0.seen.lock().unwrap_or_else(PoisonError::into_inner);
            if now.is_none() || *seen == now {
                return;
            }
            // One that cannot be opened now may be later, without another stamp. Of a pipe that is not asked: it waits.
            *seen = now.filter(|_| files::is_pipe(&self.0.path) || fs::File::open(&self.0.path).is_ok());
        }
        match Clients::read(&self.0.path, &self.0.accounts) {
            Ok(clients) => {
                self.0.now.send_replace(Arc::new(clients));
                tracing::info!(file = %self.0.path.display(), "the client keys were read again");
            }
            Err(told) => tracing::warn!("client_keys_file stays as it was: {told}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "key-0123456789abcdef";

    fn appid(text: &str) -> AppId {
        AppId::parse(text).unwrap()
    }

    fn write(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        fs::write(&path, text).unwrap();
        (dir, path)
    }

    #[test]
    fn a_tag_is_constant_safe_in_a_url_and_good_for_one_account() {
        let one = tag(KEY, &appid("wx1"));
        assert_eq!(
            one, "4x4ErOSoCKGDjdNFo0xXcirwAJG-XVF2",
            "apps keep it in files and Redis: it never changes"
        );
        assert!(one.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-'));
        assert_ne!(one, tag(KEY, &appid("wx2")));
        assert_ne!(one, tag("key-0123456789abcdeg", &appid("wx1")));
    }

    #[test]
    fn a_client_is_found_by_its_key_and_by_the_tags_of_its_accounts() {
        let (_dir, path) = write(&format!(
            "{KEY} wx1,wx2\nkey-fedcba9876543210 wx2 allow=POST /a/**\nkey-everyone-0000 *\n"
        ));
        let clients = Clients::read(&path, &[appid("wx1"), appid("wx2")]).unwrap();
        let client = clients.by_key(KEY).unwrap();
        assert_eq!((client.name(), client.default_account().as_str()), ("line 1", "wx1"));
        assert!(client.may_be(&appid("wx2")) && client.allow().is_none());
        let other = clients.by_key("key-fedcba9876543210").unwrap();
        assert!(!other.may_be(&appid("wx1")) && other.allow().is_some());
        assert!(clients.by_key("key-everyone-0000").unwrap().may_be(&appid("wx2")));
        let tag = tag(KEY, &appid("wx1"));
        assert_eq!(clients.by_tag(&tag, "wx1").unwrap().name(), "line 1");
        assert!(clients.by_tag(&tag, "wx2").is_none() && clients.by_tag(KEY, "wx1").is_none());
        assert!(clients.by_key(&tag).is_none() && clients.by_key("").is_none());
        assert!(!format!("{clients:?} {client:?}").contains("0123"));
    }

    #[test]
    fn a_file_that_names_nobodys_account_or_a_bad_rule_is_refused() {
        for (rest, part) in
            [("wx3", "no account"), ("wx1 deny=/a", "allow="), ("wx1 allow=a", "POST /cgi-bin/message")]
        {
            let (_dir, path) = write(&format!("{KEY} {rest}\n"));
            let told = Clients::read(&path, &[appid("wx1")]).unwrap_err();
            assert!(told.contains(part) && told.contains("line 1") && !told.contains("0123"), "{told}");
        }
    }

    #[test]
    fn a_changed_file_counts_and_a_broken_one_does_not() {
        let (_dir, path) = write(&format!("{KEY} wx1\n"));
        let keyring = Keyring::open(path.clone(), vec![appid("wx1")]).unwrap();
        for (text, old, new) in [
            ("key-fedcba9876543210 wx1\n", false, true),
            ("key-fedcba9876543210 wx1 nonsense\n", false, true),
            (&format!("{KEY} wx1 # back again\n"), true, false),
        ] {
            fs::write(&path, text).unwrap();
            keyring.look();
            let clients = keyring.clients();
            assert_eq!(clients.by_key(KEY).is_some(), old, "{text}");
            assert_eq!(clients.by_key("key-fedcba9876543210").is_some(), new, "{text}");
        }
        fs::remove_file(&path).unwrap();
        keyring.look();
        assert!(keyring.clients().by_key(KEY).is_some(), "a file that is gone for a moment locks nobody out");
    }
}
