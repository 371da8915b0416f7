//! Real Redis servers for tests: each in a folder of its own, on a free port and a Unix socket, gone when dropped.
//!
//! The unit tests of the store take this file, too; so it uses nothing of the crate.

#![allow(clippy::unwrap_used, reason = "it is how a test fails")]
#![allow(dead_code, reason = "each of the two who take it uses a part")]

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use tempfile::TempDir;

/// What may be asked of a Redis before a test fails: 30 s.
const TRIES: u32 = 1500;
const PAUSE: Duration = Duration::from_millis(20);

/// A Redis.
pub(crate) struct Server {
    options: Vec<String>,
    dir: TempDir,
    port: u16,
    process: Option<Child>,
}

impl Server {
    /// With these further options, such as `--maxmemory 1`; `{dir}` in them is its folder.
    pub(crate) fn start(options: &[&str]) -> Self {
        Self::of(options, |_| {})
    }

    /// Over TLS on [`Self::port`], with a certificate for localhost under [`Self::ca`].
    pub(crate) fn tls() -> Self {
        let tls = ["--tls-cert-file {dir}/cert", "--tls-key-file {dir}/key", "--tls-auth-clients no"];
        Self::of(&[&tls[..], &["--tls-port {port}"]].concat(), |dir| {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut ca = rcgen::CertificateParams::default();
            ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            let ca = rcgen::CertifiedIssuer::self_signed(ca, key).unwrap();
            let key = rcgen::KeyPair::generate().unwrap();
            let cert = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
            let cert = cert.signed_by(&key, &ca).unwrap();
            std::fs::write(dir.join("ca"), ca.pem()).unwrap();
            std::fs::write(dir.join("cert"), cert.pem()).unwrap();
            std::fs::write(dir.join("key"), key.serialize_pem()).unwrap();
        })
    }

    /// A Cluster of one, with all slots.
    pub(crate) fn cluster() -> Self {
        let server = Self::start(&["--cluster-enabled yes"]);
        server.cli(&["cluster", "addslotsrange", "0", "16383"]);
        server.until("the cluster is whole", |server| {
            server.cli(&["cluster", "info"]).contains("cluster_state:ok")
        });
        server
    }

    /// A Sentinel that watches `primary` under the name `mymaster`.
    pub(crate) fn sentinel(primary: &Server) -> Self {
        let port = primary.port;
        Self::of(&["--sentinel"], |dir| {
            std::fs::write(dir.join("conf"), format!("sentinel monitor mymaster 127.0.0.1 {port} 1\n"))
                .unwrap();
        })
    }

    fn of(options: &[&str], prepare: impl Fn(&Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("conf"), "").unwrap();
        prepare(dir.path());
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let mut server = Self { options, dir, port: 0, process: None };
        // Another test may take the port between here and there.
        for _ in 0..10 {
            server.port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            if server.spawn() {
                return server;
            }
        }
        panic!("redis-server does not start: {}", server.log());
    }

    /// Whether it runs and answers.
    fn spawn(&mut self) -> bool {
        let (dir, port) = (self.dir.path().to_str().unwrap(), self.port.to_string());
        let listen =
            if self.options.iter().any(|option| option.starts_with("--tls-port")) { "0" } else { &port };
        let mut command = Command::new("redis-server");
        command.arg(format!("{dir}/conf")).args(["--port", listen, "--dir", dir, "--bind", "127.0.0.1"]);
        command.args(["--unixsocket", &format!("{dir}/sock"), "--logfile", &format!("{dir}/log")]);
        if !self.options.iter().any(|option| option == "--sentinel") {
            command.args(["--save", "", "--appendonly", "no", "--enable-debug-command", "yes"]);
        }
        for option in &self.options {
            command.args(option.replace("{dir}", dir).replace("{port}", &port).split(' '));
        }
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let process = spawned.unwrap_or_else(|error| {
            panic!("redis-server cannot be started ({error}); on Debian: apt-get install redis-server")
        });
        self.process = Some(process);
        for _ in 0..TRIES {
            if self.process.as_mut().unwrap().try_wait().unwrap().is_some() {
                return false;
            }
            let answer = self.try_cli(&["ping"]);
            if answer.contains("PONG") || answer.contains("NOAUTH") || answer.contains("NOPERM") {
                return true;
            }
            sleep(PAUSE);
        }
        panic!("redis-server does not answer: {}", self.log());
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// `redis://` to it.
    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("sock")
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.dir.path().join("ca")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Has `redis-cli` ask it over its socket, and says what it said.
    pub(crate) fn cli(&self, args: &[&str]) -> String {
        let said = self.try_cli(args);
        assert!(!said.starts_with("Could not connect"), "{args:?}: {said}");
        said
    }

    fn try_cli(&self, args: &[&str]) -> String {
        let output = Command::new("redis-cli").arg("-s").arg(self.socket()).args(args).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&said).trim_end_matches('\n').to_owned()
    }

    /// Waits until `what` is so.
    pub(crate) fn until(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        for _ in 0..TRIES {
            if is_so(self) {
                return;
            }
            sleep(PAUSE);
        }
        panic!("waited in vain until {what}: {}", self.log());
    }

    /// As `kill -9`.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Starts again on the same port, empty.
    pub(crate) fn start_again(&mut self) {
        self.kill();
        for _ in 0..100 {
            if self.spawn() {
                return;
            }
            sleep(PAUSE);
        }
        panic!("redis-server does not start again: {}", self.log());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
