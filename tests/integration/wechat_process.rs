//! The built binary as a process: started with flags and environment, read by its log, stopped by signals.

#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use serde_json::Value;
use wechat_sidecar::app::Addresses;

use crate::wechat_rig::{App, Wechat, until};

/// A command of the binary, which hears of nothing but these arguments and this environment.
pub(crate) fn command(
    args: impl IntoIterator<Item = impl AsRef<OsStr>>,
    env: impl IntoIterator<Item = (OsString, OsString)>,
) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wechat-sidecar"));
    command.args(args).env_clear().envs(env).stdin(Stdio::null());
    command
}

/// A command that ends by itself.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// Runs one to its end, off the thread on which the simulation lives.
pub(crate) async fn run(mut command: Command) -> Ended {
    let ended = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ended { code: ended.status.code(), out: text(ended.stdout), err: text(ended.stderr) }
}

/// Everything a process has written so far, and the right to read on.
#[derive(Clone, Default)]
struct Output(Arc<Mutex<String>>, Arc<tokio::sync::Mutex<()>>);

impl Output {
    fn read(&self, from: impl Read + Send + 'static) -> JoinHandle<()> {
        let output = self.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(from).lines() {
                let _reads_on = output.1.blocking_lock();
                let line = line.unwrap_or_else(|error| format!("[not text: {error}]"));
                let mut text = output.0.lock().unwrap();
                text.push_str(&line);
                text.push('\n');
            }
        })
    }

    fn text(&self) -> String {
        self.0.lock().unwrap().clone()
    }
}

/// A sidecar that runs in a process of its own; killed when dropped.
pub(crate) struct Process {
    child: Child,
    output: Output,
    readers: Vec<JoinHandle<()>>,
    pub(crate) addresses: Addresses,
    pub(crate) app: App,
}

impl Process {
    /// In front of this WeChat, with the real addresses from its log; `more` are further flags.
    pub(crate) async fn start(wechat: &Wechat, more: &[&str]) -> Self {
        let mut args = vec![OsString::from("run")];
        args.extend(wechat.settings(more));
        Self::spawn(command(args, wechat.env())).await
    }

    /// The same, ready to serve.
    pub(crate) async fn ready(wechat: &Wechat, more: &[&str]) -> Self {
        let process = Self::start(wechat, more).await;
        process.app.until_ready().await;
        process
    }

    pub(crate) async fn spawn(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let output = Output::default();
        let readers =
            vec![output.read(child.stdout.take().unwrap()), output.read(child.stderr.take().unwrap())];
        let mut found = None;
        until("the log says where it listens", async || {
            found = addresses(&output.text());
            found.is_some() || child.try_wait().unwrap().is_some()
        })
        .await;
        let addresses = found.unwrap_or_else(|| panic!("it ended: {}", output.text()));
        Self { child, output, readers, addresses, app: App::new(addresses) }
    }

    /// What it has written.
    pub(crate) fn output(&self) -> String {
        self.output.text()
    }

    /// Leaves what it writes unread, until the guard is dropped.
    pub(crate) async fn stop_reading(&self) -> tokio::sync::OwnedMutexGuard<()> {
        Arc::clone(&self.output.1).lock_owned().await
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal, such as `-TERM`.
    pub(crate) fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.pid().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    pub(crate) async fn until_logged(&self, words: &str) {
        until(&format!("the log says {words:?}"), async || self.output().contains(words)).await;
    }

    /// Whether it has ended, and how.
    pub(crate) fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Its end, and everything it wrote.
    pub(crate) async fn end(mut self) -> (ExitStatus, String) {
        let mut status = None;
        until("the process ends", async || {
            status = self.has_ended();
            status.is_some()
        })
        .await;
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        (status.unwrap(), self.output())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended long ago.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The addresses in a log of either format.
fn addresses(log: &str) -> Option<Addresses> {
    let line = log.lines().find(|line| line.contains("listen") && line.contains("serving"))?;
    let find = |key: &str| -> Option<SocketAddr> {
        match serde_json::from_str::<Value>(line) {
            Ok(line) => line[key].as_str()?.parse().ok(),
            Err(_) => {
                let (_, rest) = line.split_once(&format!("{key}="))?;
                rest.split_whitespace().next()?.parse().ok()
            }
        }
    };
    Some(Addresses { proxy: find("listen")?, tls: None, admin: find("admin")? })
}
