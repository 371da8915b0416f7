//! Sidecars that share one Redis, at the classic endpoint, where a fetch too many voids the token of the others.

#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

use wechat_sidecar::sim::{DEFAULT_SECRET, Kind};

use crate::redis_rig::Server;
use crate::wechat_process::{Process, command, run};
use crate::wechat_rig::{APPID, App, Sidecar, Wechat, until};

const RECORD: &str = "wechat-sidecar:{wx0123456789abcdef}:token:token";

struct Replica {
    app: App,
    side: Sidecar,
}

impl Replica {
    fn start(wechat: &Wechat, redis: &Server) -> Self {
        let url = redis.url();
        let args = ["--workers", "1", "--token-endpoint", "token", "--store", &url];
        let side = Sidecar::start(&wechat.settings(&args), &wechat.env());
        Self { app: App::new(side.addresses), side }
    }

    /// The fingerprint of the token it serves.
    async fn serves(&self) -> Option<String> {
        let ready = self.app.admin("/readyz").await.json();
        ready["accounts"][0]["token"].as_str().map(str::to_owned)
    }

    /// Whether its call went through, and was sent twice for that.
    async fn call_goes_twice(&self, name: &str) -> bool {
        let reply = self.app.message(name).await;
        reply.assert_ok();
        reply.attempts().is_some()
    }
}

async fn two(wechat: &Wechat, redis: &Server) -> [Replica; 2] {
    let both = [Replica::start(wechat, redis), Replica::start(wechat, redis)];
    for replica in &both {
        replica.app.until_ready().await;
    }
    both
}

async fn until_agreed([one, other]: &[Replica; 2]) {
    until("both serve the same token", async || one.serves().await == other.serves().await).await;
}

#[tokio::test]
async fn whoever_starts_later_takes_the_token_that_is_there() {
    let (wechat, redis) = (Wechat::plain().await, Server::start(&[]));
    let both = two(&wechat, &redis).await;
    assert_eq!(wechat.sim.counts().fetches.classic, 1, "two that start together");
    for replica in both {
        replica.side.stop().await;
    }
    let third = Replica::start(&wechat, &redis);
    third.app.until_ready().await;
    assert!(!third.call_goes_twice("after a restart of all").await);
    assert_eq!(wechat.sim.counts().fetches.classic, 1);
}

#[tokio::test]
async fn a_rotation_that_one_met_is_known_to_the_other_before_its_next_call() {
    let (wechat, redis) = (Wechat::plain().await, Server::start(&[]));
    let both = two(&wechat, &redis).await;
    for n in 0..6 {
        wechat.sim.rotate_kind(APPID, Kind::Classic, true).unwrap();
        assert!(both[n % 2].call_goes_twice(&format!("{n} here")).await);
        until_agreed(&both).await;
        assert!(!both[(n + 1) % 2].call_goes_twice(&format!("{n} there")).await, "rotation {n}");
    }
    let counts = wechat.sim.counts();
    assert_eq!((counts.fetches.classic, counts.refused_with(40001)), (1 + 6, 6));
    assert_eq!((counts.max_sends_of_a_call, counts.max_accepts_of_a_call), (2, 1));
}

#[tokio::test]
async fn a_redis_in_trouble_costs_no_call_and_at_most_a_fetch_a_replica() {
    type Act = fn(&mut Server);
    let troubles: [(&str, Act, Act); 4] = [
        ("killed", Server::kill, Server::start_again),
        ("paused", |redis| drop(redis.cli(&["client", "pause", "10000"])), |_| {}),
        (
            "full",
            |redis| drop(redis.cli(&["config", "set", "maxmemory", "1"])),
            |redis| {
                redis.cli(&["config", "set", "maxmemory", "0"]);
            },
        ),
        (
            "read-only",
            |redis| drop(redis.cli(&["replicaof", "127.0.0.1", "1"])),
            |redis| {
                redis.cli(&["replicaof", "no", "one"]);
            },
        ),
    ];
    for (trouble, begin, end) in troubles {
        let (wechat, mut redis) = (Wechat::plain().await, Server::start(&[]));
        let both = two(&wechat, &redis).await;
        begin(&mut redis);
        for replica in &both {
            assert!(!replica.call_goes_twice("before the rotation").await, "{trouble}");
        }
        assert_eq!(wechat.sim.counts().fetches.classic, 1, "{trouble}");
        wechat.sim.rotate_kind(APPID, Kind::Classic, true).unwrap();
        for replica in &both {
            replica.call_goes_twice("after it").await;
        }
        let fetches = wechat.sim.counts().fetches.classic;
        assert!(fetches <= 3, "{trouble}: {fetches}");

        end(&mut redis);
        until_agreed(&both).await;
        assert_eq!(wechat.sim.counts().fetches.classic, fetches, "{trouble}: its end costs no fetch");
        for replica in &both {
            assert!(!replica.call_goes_twice("when it is over").await, "{trouble}");
        }
        wechat.sim.rotate_kind(APPID, Kind::Classic, true).unwrap();
        assert!(both[0].call_goes_twice("another rotation").await, "{trouble}");
        until_agreed(&both).await;
        assert!(!both[1].call_goes_twice("which the other knows of").await, "{trouble}");
    }
}

#[tokio::test]
async fn a_redis_that_failed_over_to_an_older_token_is_given_the_newest_again() {
    let (wechat, redis) = (Wechat::plain().await, Server::start(&[]));
    let both = two(&wechat, &redis).await;
    let older = redis.cli(&["get", RECORD]);
    // The clock of lives in the store has a second of tolerance: two fetches within it are one.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    wechat.sim.rotate_kind(APPID, Kind::Classic, true).unwrap();
    both[0].call_goes_twice("a rotation").await;
    until_agreed(&both).await;
    let newest = redis.cli(&["get", RECORD]);
    assert_ne!(newest, older);
    redis.cli(&["set", RECORD, &older, "px", "7000000"]);
    redis.cli(&["client", "kill", "type", "pubsub"]);
    until("the newest is there again", async || redis.cli(&["get", RECORD]) == newest).await;
    for replica in &both {
        assert!(!replica.call_goes_twice("after the failover").await);
    }
    assert_eq!(wechat.sim.counts().fetches.classic, 2);
}

#[tokio::test]
async fn check_says_what_it_finds_in_the_store() {
    let (wechat, mut redis) = (Wechat::plain().await, Server::start(&[]));
    let url = redis.url();
    let check = || {
        let args = wechat.settings(&["--store", &url]);
        command([std::ffi::OsString::from("check")].into_iter().chain(args), wechat.env())
    };
    for found in ["the store has no token yet", "the store has a token (fingerprint"] {
        let ended = run(check()).await;
        assert_eq!(ended.code, Some(0), "{}", ended.out);
        assert!(ended.out.contains(found), "{}", ended.out);
    }
    redis.kill();
    let ended = run(check()).await;
    assert_eq!(ended.code, Some(1), "{}", ended.out);
    assert!(ended.out.contains("the store does not work: no connection to redis://"), "{}", ended.out);
    assert!(ended.out.contains("WeChat gave a token"), "the rest is tried all the same: {}", ended.out);
}

#[tokio::test]
async fn neither_the_password_nor_a_token_is_in_the_log_whatever_happens() {
    let (wechat, mut redis) = (Wechat::plain().await, Server::start(&["--requirepass 5ec2e7"]));
    let url = redis.url().replace("redis://", "redis://:5ec2e7@");
    let mut env = wechat.env();
    env.push(("WECHAT_SIDECAR_STORE".into(), url.into()));
    let args = wechat.settings(&["--log", "info,wechat_sidecar=trace"]);
    let process =
        Process::spawn(command([std::ffi::OsString::from("run")].into_iter().chain(args), env)).await;
    process.app.until_ready().await;
    let first = wechat.sim.live_token(APPID).unwrap();
    until("it is saved", async || redis.cli(&["-a", "5ec2e7", "--no-auth-warning", "dbsize"]) == "1").await;
    redis.kill();
    wechat.sim.expire_now(APPID);
    process.app.message("while it is down").await.assert_ok();
    process.until_logged("the token store fails").await;
    redis.start_again();
    process.until_logged("the token store works again").await;
    redis.cli(&["-a", "5ec2e7", "--no-auth-warning", "config", "set", "requirepass", "another"]);
    redis.cli(&["-a", "another", "--no-auth-warning", "client", "kill", "type", "normal"]);
    process.until_logged("refuses our user and password").await;
    process.signal("-TERM");
    let (_, log) = process.end().await;
    for secret in ["5ec2e7", DEFAULT_SECRET, &first, &wechat.sim.live_token(APPID).unwrap()] {
        assert!(!log.contains(secret), "{log}");
    }
    // The second one may first be met by the connection that listens.
    assert!(log.matches("the token store fails").count() <= 2, "once an outage: {log}");
}
