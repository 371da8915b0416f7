//! Secrets and certificates that change under a running sidecar: proved before they count, told when they are bad, and
//! no call lost; and stops and rolling restarts under load that lose none either.

#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use wechat_sidecar::credentials::{AppId, Secret};
use wechat_sidecar::sim::DEFAULT_SECRET;

use crate::wechat_process::{Process, command};
use crate::wechat_rig::{APPID, App, Wechat, until};

const NEW: &str = "fedcba9876543210fedcba9876543210";

/// Mounts a file as Kubernetes does: a link to a folder's link to the content, of which the folder's is swapped.
struct Mount(tempfile::TempDir);

impl Mount {
    fn new(content: &str) -> Self {
        let mount = Self(tempfile::tempdir().unwrap());
        mount.becomes(content);
        std::os::unix::fs::symlink("..data/file", mount.path()).unwrap();
        mount
    }

    fn path(&self) -> std::path::PathBuf {
        self.0.path().join("file")
    }

    fn becomes(&self, content: &str) {
        let dir = self.0.path();
        let version = format!("..{}", fastrand::u64(..));
        std::fs::create_dir(dir.join(&version)).unwrap();
        std::fs::write(dir.join(&version).join("file"), content).unwrap();
        std::os::unix::fs::symlink(&version, dir.join("..tmp")).unwrap();
        std::fs::rename(dir.join("..tmp"), dir.join("..data")).unwrap();
    }
}

async fn with_secret_in(file: &Path, wechat: &Wechat, more: &[&str]) -> Process {
    let mut args = vec![OsString::from("run")];
    args.extend(wechat.settings(more));
    args.extend(["--token-wait".into(), "20s".into(), "--secret-file".into(), file.into()]);
    let process = Process::spawn(command(args, [])).await;
    process.app.until_ready().await;
    process
}

/// Calls from a pool of connections, about 200 a second where the machine can, until told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    callers: Vec<JoinHandle<()>>,
}

impl Load {
    /// `next` says whom to call; every answer must be a good one.
    fn new(next: impl Fn() -> App + Send + Sync + 'static) -> Self {
        let (stop, sent, next) =
            (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default(), Arc::new(next));
        let callers = (0..8)
            .map(|_| {
                let (stop, sent, next) = (Arc::clone(&stop), Arc::clone(&sent), Arc::clone(&next));
                tokio::spawn(async move {
                    while !stop.load(Ordering::Relaxed) {
                        next().message("-").await.assert_ok();
                        sent.fetch_add(1, Ordering::Relaxed);
                        tokio::time::sleep(Duration::from_millis(40)).await;
                    }
                })
            })
            .collect();
        Self { stop, sent, callers }
    }

    /// Waits for so many more calls.
    async fn carries(&self, more: usize) {
        let wanted = self.sent.load(Ordering::Relaxed) + more;
        until("calls are answered", async || {
            let lost = self.callers.iter().any(JoinHandle::is_finished);
            lost || self.sent.load(Ordering::Relaxed) >= wanted
        })
        .await;
        assert!(!self.callers.iter().any(JoinHandle::is_finished), "a call was lost");
    }

    async fn ends(self) {
        self.stop.store(true, Ordering::Relaxed);
        for caller in self.callers {
            caller.await.unwrap();
        }
    }
}

fn resets_secret(wechat: &Wechat, to: &str) {
    wechat.sim.set_account(&AppId::parse(APPID).unwrap(), &Secret::parse(to).unwrap());
}

#[tokio::test]
async fn a_secret_that_is_replaced_as_kubernetes_does_it_is_taken_and_no_call_is_lost() {
    let wechat = Wechat::plain().await;
    let mount = Mount::new(DEFAULT_SECRET);
    let process = with_secret_in(&mount.path(), &wechat, &[]).await;
    let app = process.app.clone();
    let load = Load::new(move || app.clone());
    load.carries(20).await;
    resets_secret(&wechat, NEW);
    mount.becomes(NEW);
    process.until_logged("WeChat takes the new AppSecret").await;
    load.carries(20).await;
    wechat.sim.rotate(APPID);
    wechat.sim.expire_now(APPID);
    load.carries(20).await;
    load.ends().await;
    // A login carries the secret, and is answered as one that does.
    let login = process.app.get("/sns/jscode2session?js_code=code-1").await;
    assert_eq!((login.status, login.errcode()), (200, 0), "{login:?}");
    let status = process.app.admin("/status").await.json();
    assert_eq!(status["accounts"][0]["problem"], serde_json::Value::Null, "{status}");
    process.signal("-TERM");
    let (status, log) = process.end().await;
    assert_eq!(status.code(), Some(0));
    assert!(!log.contains(NEW) && !log.contains(DEFAULT_SECRET), "{log}");
}

#[tokio::test]
async fn a_bad_new_secret_is_told_and_the_old_one_goes_on() {
    let wechat = Wechat::plain().await;
    let mount = Mount::new(DEFAULT_SECRET);
    let process = with_secret_in(&mount.path(), &wechat, &[]).await;
    let before = wechat.sim.live_token(APPID).unwrap();
    mount.becomes("00000000000000000000000000000bad");
    process.until_logged("the old one and its token are kept").await;
    let ready = process.app.admin("/readyz").await;
    assert_eq!(ready.status, 200, "{ready:?}");
    process.app.message("-").await.assert_ok();
    assert_eq!(wechat.sim.live_token(APPID).unwrap(), before, "nothing was voided");
    wechat.sim.expire_now(APPID);
    process.app.message("-").await.assert_ok();
    let status = process.app.admin("/status").await.json();
    let errors = status["errors"].as_array().unwrap();
    let told = errors.iter().find(|error| error["kind"] == "secret").unwrap_or_else(|| panic!("{status}"));
    assert!(told["sentence"].as_str().unwrap().contains("40125"), "{told}");

    // A person who mended the file, or WeChat's side, need not wait.
    mount.becomes("not a secret: \u{7f}");
    process.until_logged("the AppSecret was not read again").await;
    mount.becomes(NEW);
    process.until_logged("the AppSecret was not read again").await;
    resets_secret(&wechat, NEW);
    until("the new secret is in force", async || {
        process.signal("-HUP");
        tokio::time::sleep(Duration::from_millis(50)).await;
        process.output().contains("WeChat takes the new AppSecret")
    })
    .await;
    process.until_logged("SIGHUP: reading secrets and certificates again").await;
    process.app.message("-").await.assert_ok();
}

#[tokio::test]
async fn a_secret_that_was_wrong_at_the_start_needs_no_restart() {
    let wechat = Wechat::plain().await;
    let mount = Mount::new("00000000000000000000000000000bad");
    let mut args = vec![OsString::from("run")];
    args.extend(wechat.settings(&[]));
    args.extend(["--secret-file".into(), mount.path().into()]);
    let process = Process::spawn(command(args, [])).await;
    process.until_logged("no token was fetched").await;
    process.app.message("-").await.assert_no_token();
    mount.becomes(DEFAULT_SECRET);
    process.app.until_ready().await;
    process.app.message("-").await.assert_ok();
}

#[tokio::test]
async fn further_roots_are_read_again() {
    let wechat = Wechat::tls().await;
    let mount = Mount::new("nothing");
    let good = wechat.sim.ca_pem().unwrap();
    // A root of someone else's to begin with.
    let other = Wechat::tls().await;
    mount.becomes(other.sim.ca_pem().unwrap());
    let mut args: Vec<OsString> =
        vec!["run".into(), "--upstream".into(), wechat.sim.tls_base_url().unwrap().into()];
    args.extend(["--upstream-ca-file".into(), mount.path().into(), "--appid".into(), APPID.into()]);
    args.extend(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"].map(OsString::from));
    let process = Process::spawn(command(args, wechat.env())).await;
    process.until_logged("no trusted connection").await;
    mount.becomes("no certificate");
    process.until_logged("certificates were not read again").await;
    mount.becomes(good);
    process.until_logged("certificates have changed and are in force").await;
    process.app.until_ready().await;
    process.app.message("-").await.assert_ok();
}

#[tokio::test]
async fn readiness_ends_first_and_calls_are_taken_for_the_drain_delay() {
    let wechat = Wechat::plain().await;
    // Longer than any test waits: only a signal ends it.
    let process = Process::ready(&wechat, &["--drain-delay", "10m"]).await;
    process.signal("-TERM");
    until("readiness says no", async || process.app.admin("/readyz").await.status == 503).await;
    App::without_pool(process.addresses).message("-").await.assert_ok();
    let status = process.app.admin("/status").await.json();
    assert_eq!((&status["phase"], &status["stopping"]), (&"leaving".into(), &true.into()));
    assert_eq!(process.app.admin("/livez").await.status, 200);
    process.signal("-TERM");
    let (status, log) = process.end().await;
    assert_eq!(status.code(), Some(143), "a second signal ends it at once: {log}");
}

#[tokio::test]
async fn a_rolling_restart_under_load_loses_no_call() {
    let wechat = Wechat::plain().await;
    // A load balancer's view: the one that is ready. It learns of a change some time after it happened.
    let mut now = Process::ready(&wechat, &["--drain-delay", "5s"]).await;
    let target = Arc::new(std::sync::Mutex::new(now.app.clone()));
    let calls = Arc::clone(&target);
    let load = Load::new(move || calls.lock().unwrap().clone());
    for _ in 0..2 {
        load.carries(30).await;
        let next = Process::ready(&wechat, &["--drain-delay", "5s"]).await;
        now.signal("-TERM");
        until("it says so first", async || now.app.admin("/readyz").await.status == 503).await;
        load.carries(5).await;
        *target.lock().unwrap() = next.app.clone();
        load.carries(30).await;
        let (status, log) = now.end().await;
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(!log.contains("the grace period is over"), "{log}");
        wechat.sim.expire_now(APPID);
        now = next;
    }
    load.ends().await;
    let counts = wechat.sim.counts();
    assert_eq!(counts.broken_off, 0);
}

#[tokio::test]
async fn a_stop_under_load_loses_no_call_that_was_taken() {
    let wechat = Wechat::plain().await;
    let process = Process::ready(&wechat, &[]).await;
    let at = process.addresses.proxy;
    let (stop, sent) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
            tokio::spawn(async move {
                use tokio::io::{AsyncReadExt, AsyncWriteExt};
                // One connection a call, so that a refused connection is the only way to be turned away.
                while !stop.load(Ordering::Relaxed) {
                    let Ok(mut stream) = tokio::net::TcpStream::connect(at).await else { return };
                    let body = r#"{"touser":"oAAAA"}"#;
                    let head = format!(
                        "POST /cgi-bin/message/custom/send HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                        body.len()
                    );
                    let mut reply = Vec::new();
                    let _ = stream.write_all(head.as_bytes()).await;
                    let _ = stream.read_to_end(&mut reply).await;
                    // The kernel may have taken it in the moment the listener closed: it was never ours.
                    if reply.is_empty() {
                        return;
                    }
                    let reply = String::from_utf8(reply).unwrap();
                    assert!(reply.starts_with("HTTP/1.1 200") && reply.contains(r#""errcode":0"#), "{reply:?}");
                    sent.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(40)).await;
                }
            })
        })
        .collect();
    until("calls are answered", async || sent.load(Ordering::Relaxed) >= 50).await;
    process.signal("-TERM");
    for caller in callers {
        caller.await.unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    let (status, log) = process.end().await;
    assert_eq!(status.code(), Some(0), "{log}");
    // Each was carried out once, and whoever was turned away had nothing sent.
    assert_eq!(wechat.sim.counts().all_calls(), sent.load(Ordering::Relaxed) as u64);
}

#[tokio::test]
async fn a_secret_file_that_was_a_pipe_for_a_while_is_read_again() {
    let (wechat, dir) = (Wechat::plain().await, tempfile::tempdir().unwrap());
    let file = dir.path().join("secret");
    std::fs::write(&file, DEFAULT_SECRET).unwrap();
    let process = with_secret_in(&file, &wechat, &[]).await;
    std::fs::remove_file(&file).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&file).status().unwrap().success());
    process.signal("-HUP");
    process.until_logged("SIGHUP: reading secrets").await;
    process.app.message("while nobody writes to it").await.assert_ok();
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, NEW).unwrap();
    process.until_logged("there is another AppSecret").await;
}
