//! What is read again while we run: AppSecrets, further roots and the local CA, when their files change or a SIGHUP
//! comes.
//!
//! Files are looked at every few seconds instead of being watched: Kubernetes swaps a symlink two folders up, systemd
//! and `kubectl cp` rename, some network file systems tell nobody; a look at the content sees all of them, and a few
//! small reads cost nothing.
//!
//! A new AppSecret takes the place of the old one only after a fetch has proved it. One that WeChat refuses is told, and
//! the old secret and token are kept; it is tried again now and then, since whoever reset a secret may be early or late.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::account::Account;
use crate::ca::Identity;
use crate::credentials::{Secret, read_secret_file};
use crate::files;
use crate::tls::{ExtraRoots, ServerIdentity};
use crate::token::keeper::{Reason, Refresh};
use crate::token::source::{Source, Supplier, TokenSource};

/// How often files are looked at.
const EVERY: Duration = Duration::from_secs(2);
/// A secret that WeChat did not take is tried again after this long, then twice as long, up to the most.
const AGAIN: Duration = Duration::from_secs(60);
const AT_MOST: Duration = Duration::from_secs(600);
/// The longest the fetch that proves a secret may take, with what goes before it.
const PATIENCE: Duration = Duration::from_secs(60);

/// What may change.
#[derive(Default)]
pub(super) struct Reload {
    pub(super) secrets: Vec<SecretFile>,
    pub(super) roots: Vec<ExtraRoots>,
    pub(super) identity: Option<Arc<Identity>>,
    pub(super) admin: Option<ServerIdentity>,
}

/// An account whose secret stands in a file.
pub(super) struct SecretFile {
    account: Account,
    source: Arc<Source>,
    path: PathBuf,
    refused: Option<Refused>,
    unreadable: bool,
}

/// A secret that WeChat did not take.
struct Refused {
    secret: Secret,
    again_at: Instant,
    wait: Duration,
}

impl SecretFile {
    pub(super) fn new(account: Account, source: Arc<Source>, path: PathBuf) -> Self {
        Self { account, source, path, refused: None, unreadable: false }
    }
}

impl Reload {
    /// Looks again and again; at once when `hangups` changes.
    pub(super) async fn run(mut self, mut hangups: watch::Receiver<()>) {
        let mut told: [String; 3] = Default::default();
        loop {
            let asked = tokio::select! {
                () = tokio::time::sleep(EVERY) => false,
                hung_up = hangups.changed() => match hung_up {
                    Ok(()) => true,
                    // Nobody will ever send one.
                    Err(_) => {
                        tokio::time::sleep(EVERY).await;
                        false
                    }
                },
            };
            if asked {
                let files = self.secrets.len()
                    + self.roots.len()
                    + usize::from(self.identity.is_some())
                    + usize::from(self.admin.is_some());
                tracing::info!(
                    files,
                    "SIGHUP: reading secrets and certificates again; other settings need a restart"
                );
            }
            for file in &mut self.secrets {
                file.look(asked).await;
            }
            for roots in &self.roots {
                let reread = off_thread({
                    let roots = roots.clone();
                    move || roots.reread()
                });
                tell("upstream_ca_file", reread.await, &mut told[0]);
            }
            if let Some(identity) = &self.identity {
                let identity = Arc::clone(identity);
                tell("ca_dir", off_thread(move || identity.reread()).await, &mut told[1]);
            }
            if let Some(admin) = self.admin.clone() {
                tell("admin_cert_file", off_thread(move || admin.reread()).await, &mut told[2]);
            }
        }
    }
}

/// Reads where a slow disk holds nobody up.
async fn off_thread<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(read).await.unwrap_or_else(|_| Err("the read was given up".to_owned()))
}

/// Says what became of certificates, once for each failure.
fn tell(setting: &str, reread: Result<bool, String>, told: &mut String) {
    match reread {
        Ok(changed) => {
            told.clear();
            if changed {
                tracing::info!(setting, "certificates have changed and are in force");
            }
        }
        Err(why) if *told != why => {
            tracing::warn!(setting, "certificates were not read again, and those there are stay: {why}");
            *told = why;
        }
        Err(_) => {}
    }
}

impl SecretFile {
    /// Looks whether the file has another secret, and takes it if it is good. `asked`: by a person, who wants no wait.
    async fn look(&mut self, asked: bool) {
        // What `--secret-file <(command)` says, it says once.
        if files::is_pipe(&self.path) {
            return;
        }
        let path = self.path.clone();
        let (appid, keeper) = (self.account.appid(), self.account.keeper());
        let secret = match off_thread(move || read_secret_file(&path)).await {
            Ok(secret) => secret,
            Err(why) => {
                if !std::mem::replace(&mut self.unreadable, true) {
                    tracing::warn!(%appid, "the AppSecret was not read again, and the one there is stays: {why}");
                    keeper.trouble("secret", &why);
                }
                return;
            }
        };
        self.unreadable = false;
        if self.account.secrets().current().is_some_and(|current| secret == *current.secret()) {
            self.refused = None;
            return;
        }
        // Another one than was refused, or a person who knows better.
        self.refused.take_if(|refused| refused.secret != secret || asked);
        if self.refused.as_ref().is_some_and(|refused| Instant::now() < refused.again_at) {
            return;
        }
        if self.source.supplier() != Supplier::WeChat {
            // Tokens come from elsewhere, so that it is for login calls only, and no fetch can prove it.
            tracing::info!(%appid, path = %self.path.display(), "there is another AppSecret; it is in force");
            self.account.replace_secret(secret);
            return;
        }
        tracing::info!(%appid, path = %self.path.display(), "there is another AppSecret; trying it with a token fetch");
        self.source.propose_secret(Some(secret.clone()));
        match keeper.fetch_now(Reason::SecretChange, PATIENCE).await {
            Refresh::Another(_) | Refresh::Same(_) => {
                self.account.replace_secret(secret);
                self.refused = None;
                tracing::info!(%appid, "WeChat takes the new AppSecret; it is in force");
            }
            Refresh::No(why) => {
                self.source.propose_secret(None);
                let wait = self.refused.as_ref().map_or(AGAIN, |refused| (refused.wait * 2).min(AT_MOST));
                let sentence = format!(
                    "the new AppSecret in {} is not in force, and the old one and its token are kept: {why}",
                    self.path.display()
                );
                let again_s = wait.as_secs();
                tracing::warn!(%appid, again_s, "{sentence}");
                keeper.trouble("secret", &sentence);
                self.refused = Some(Refused { secret, again_at: Instant::now() + wait, wait });
            }
        }
    }
}
