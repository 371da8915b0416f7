//! A real Redis of the test's own: Debian's redis-server on a free port, without a disk, gone when dropped.

#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use redis::aio::MultiplexedConnection;
use redis::{Cmd, FromRedisValue, cmd};

use crate::wechat_rig::until;

/// A Redis that runs.
pub(crate) struct RedisServer {
    process: Child,
    port: u16,
    connection: MultiplexedConnection,
}

impl RedisServer {
    /// On a port that was free a moment ago.
    pub(crate) async fn start() -> Self {
        loop {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            if let Some(server) = Self::start_at(port).await {
                return server;
            }
        }
    }

    /// On this port; `None` where another has it.
    pub(crate) async fn start_at(port: u16) -> Option<Self> {
        let at = port.to_string();
        let mut process = Command::new("redis-server")
            .args(["--port", &at, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server runs; it is in Debian's package of that name");
        let client = redis::Client::open(format!("redis://127.0.0.1:{port}")).unwrap();
        let mut connection = None;
        until("Redis answers", async || {
            if process.try_wait().unwrap().is_some() {
                return true;
            }
            connection = client.get_multiplexed_async_connection().await.ok();
            connection.is_some()
        })
        .await;
        match connection {
            Some(connection) => Some(Self { process, port, connection }),
            None => None,
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Its URL.
    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> T {
        command.query_async(&mut self.connection.clone()).await.unwrap()
    }

    pub(crate) async fn get(&self, key: &str) -> Option<String> {
        self.ask(cmd("GET").arg(key)).await
    }

    /// Milliseconds; -1 for a key without an end, -2 where there is none.
    pub(crate) async fn ttl(&self, key: &str) -> i64 {
        self.ask(cmd("PTTL").arg(key)).await
    }

    /// As an app would; 0 is for ever.
    pub(crate) async fn set(&self, key: &str, value: &str, seconds: u64) {
        let mut command = cmd("SET");
        command.arg(key).arg(value);
        if seconds > 0 {
            command.arg("EX").arg(seconds);
        }
        self.ask(&command).await
    }

    pub(crate) async fn delete(&self, key: &str) {
        self.ask(cmd("DEL").arg(key)).await
    }

    pub(crate) async fn keys(&self) -> Vec<String> {
        let mut keys: Vec<String> = self.ask(cmd("KEYS").arg("*")).await;
        keys.sort();
        keys
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
