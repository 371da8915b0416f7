//! The store against real servers. Time is real here; what is waited for has far more than it needs.

#[path = "../../../../tests/integration/redis_rig.rs"]
mod rig;

use tokio::task::JoinHandle;

use super::*;
use crate::token::store::contract;
use rig::Server;

const PATIENCE: Duration = Duration::from_secs(30);

/// One replica: its store, and the task that keeps the connections.
struct Replica {
    store: RedisStore,
    running: JoinHandle<()>,
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.running.abort();
    }
}

impl std::ops::Deref for Replica {
    type Target = RedisStore;

    fn deref(&self) -> &RedisStore {
        &self.store
    }
}

fn config(url: &str) -> Config {
    let address = redis::Address::parse(url).unwrap();
    let server = redis::Config { address, roots: None };
    Config { server, prefix: "wechat-sidecar".to_owned(), lease: Duration::from_secs(12), seals: None }
}

fn replica_of(config: &Config) -> Replica {
    let redis = Redis::new(config.server.clone());
    let appid = AppId::parse("wx0123456789abcdef").unwrap();
    let store = RedisStore::new(&redis, config, &appid, Endpoint::Classic);
    Replica { store, running: tokio::spawn(redis.run()) }
}

fn replica(server: &Server) -> Replica {
    replica_of(&config(&server.url()))
}

/// What a busy machine may need more than one attempt for.
async fn works<T>(what: impl AsyncFn() -> Result<T, StoreError>) -> T {
    let mut last = None;
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        match what().await {
            Ok(done) => return done,
            Err(error) => last = Some(error),
        }
        sleep(Duration::from_millis(20)).await;
    }
    panic!("{last:?}");
}

async fn until(what: &str, is_so: impl AsyncFn() -> bool) {
    let begun = Instant::now();
    while !is_so().await {
        assert!(begun.elapsed() < PATIENCE, "waited in vain until {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

fn token(value: &str) -> Token {
    Token::new(value, Instant::now(), Duration::from_secs(7200)).unwrap()
}

fn key(what: &str) -> String {
    format!("wechat-sidecar:{{wx0123456789abcdef}}:token:{what}")
}

/// The contract between two processes with these settings.
async fn keeps_the_contract(config: &Config) {
    let (here, there) = (replica_of(config), replica_of(config));
    works(async || here.load().await).await;
    works(async || there.load().await).await;
    contract::holds(&here.store, &there.store).await;
}

#[tokio::test]
async fn the_contract_holds_over_tcp() {
    let server = Server::start(&[]);
    keeps_the_contract(&config(&server.url())).await;
}

#[tokio::test]
async fn the_contract_holds_over_a_unix_socket_in_another_database() {
    let server = Server::start(&[]);
    keeps_the_contract(&config(&format!("unix://{}?db=3", server.socket().display()))).await;
    assert_eq!(server.cli(&["-n", "0", "dbsize"]), "0");
}

#[tokio::test]
async fn the_contract_holds_over_tls_with_the_ca_that_was_named() {
    let server = Server::tls();
    let mut config = config(&format!("rediss://localhost:{}", server.port()));
    let told = works(async || Ok(replica_of(&config).load().await.unwrap_err())).await;
    assert!(told.0.contains("store_ca_file"), "{told}");
    config.server.roots = Some(std::fs::read(server.ca()).unwrap());
    keeps_the_contract(&config).await;
}

#[tokio::test]
async fn the_contract_holds_for_a_user_with_just_the_rights_the_readme_names() {
    let readme = include_str!("../../../../README.md");
    let rights = readme
        .lines()
        .find(|line| line.starts_with("user wechat-sidecar on "))
        .expect("README.md names them");
    let server = Server::start(&["--requirepass nobody-needs-this"]);
    let rights: Vec<&str> = rights.split(' ').skip(1).collect();
    let said = server
        .cli(&[&["-a", "nobody-needs-this", "--no-auth-warning", "acl", "setuser"], &rights[..]].concat());
    assert_eq!(said, "OK");
    keeps_the_contract(&config(&format!("redis://wechat-sidecar:PASSWORD@127.0.0.1:{}/1", server.port())))
        .await;
}

#[tokio::test]
async fn the_contract_holds_with_a_key_and_no_token_lies_in_plain() {
    let server = Server::start(&[]);
    let mut config = config(&server.url());
    let keys = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(keys.path(), "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=").unwrap();
    config.seals = Some(Seals::read(keys.path()).unwrap());
    keeps_the_contract(&config).await;
    let replica = replica_of(&config);
    works(async || replica.save(&token("5ec2e7")).await).await;
    let dump = server.cli(&["get", &key("token")]);
    assert!(dump.contains("sealed") && !dump.contains("5ec2e7"), "{dump}");
    let without = replica_of(&self::config(&server.url()));
    assert!(works(async || without.load().await).await.is_none(), "and no one without the key takes it");
}

#[tokio::test]
async fn the_contract_holds_in_a_cluster() {
    let server = Server::cluster();
    keeps_the_contract(&config(&format!("redis+cluster://127.0.0.1:{}", server.port()))).await;
    let replica = replica(&server);
    works(async || replica.load().await).await;
}

#[tokio::test]
async fn the_contract_holds_at_the_primary_that_a_sentinel_names() {
    let primary = Server::start(&[]);
    let sentinel = Server::sentinel(&primary);
    let url = |name| format!("redis+sentinel://127.0.0.1:{}/{name}/2", sentinel.port());
    keeps_the_contract(&config(&url("mymaster"))).await;
    assert_ne!(primary.cli(&["-n", "2", "dbsize"]), "");
    let told = replica_of(&config(&url("stranger"))).load().await.unwrap_err();
    assert!(told.0.contains("check the name in store"), "{told}");
}

#[tokio::test]
async fn a_save_that_is_carried_out_late_lengthens_no_life() {
    let server = Server::start(&[]);
    let (here, there) = (replica(&server), replica(&server));
    let saved = Token::new("late", Instant::now(), Duration::from_secs(20)).unwrap();
    let (sample, _) = until_looked(&here).await;
    sleep(Duration::from_secs(2)).await;
    works(async || here.write(&saved, sample).await).await;
    let loaded = works(async || there.load().await).await.unwrap().token;
    assert!(loaded.expires_at() <= saved.expires_at());
    let left: u64 = server.cli(&["pttl", &key("token")]).parse().unwrap();
    assert!(left <= 18_000, "{left}");
}

async fn until_looked(replica: &Replica) -> (Sample, Found) {
    works(async || replica.look().await.map_err(StoreError::from)).await
}

#[tokio::test]
async fn a_fetch_that_is_saved_or_loaded_again_is_the_same_one() {
    let server = Server::start(&[]);
    let (here, there) = (replica(&server), replica(&server));
    works(async || there.load().await).await;
    let saved = token("one");
    works(async || here.save(&saved).await).await;
    let first = works(async || there.load().await).await.unwrap().token;
    there.refuse(&first, true).await.unwrap();
    for again in [&saved, &here.load().await.unwrap().unwrap().token] {
        here.save(again).await.unwrap();
        assert_eq!(there.load().await.unwrap().unwrap().standing, Standing::Refused { news: true });
    }
    there.save(&first).await.unwrap();
    let second = there.load().await.unwrap().unwrap();
    assert_eq!(second.standing, Standing::Refused { news: true }, "it is no new fetch");
    let times = |token: &Token| (token.fetched_at(), token.expires_at());
    assert_eq!(times(&second.token), times(&first));
}

#[tokio::test]
async fn a_redis_that_is_down_is_an_error_until_it_is_back_and_empty() {
    let mut server = Server::start(&[]);
    let replica = replica(&server);
    works(async || replica.save(&token("lost")).await).await;
    server.kill();
    let told = replica.load().await.unwrap_err();
    assert!(told.0.contains("check"), "{told}");
    until("it is told why", async || match replica.save(&token("x")).await {
        Err(told) => told.0.contains("nothing listens there"),
        Ok(()) => panic!("saved where?"),
    })
    .await;
    assert!(replica.refuse(&token("x"), true).await.is_err());
    assert!(replica.lease().await.is_err());
    let mut news = replica.news();
    news.mark_unchanged();
    server.start_again();
    assert!(works(async || replica.load().await).await.is_none(), "it restarted empty");
    tokio::time::timeout(PATIENCE, news.changed()).await.expect("everyone looks again").unwrap();
    works(async || replica.save(&token("again")).await).await;
    assert_eq!(replica.load().await.unwrap().unwrap().token.expose(), "again");
}

#[tokio::test]
async fn a_redis_that_is_paused_is_an_error_and_no_wait() {
    let server = Server::start(&[]);
    let replica = replica(&server);
    works(async || replica.save(&token("one")).await).await;
    server.cli(&["client", "pause", "10000"]);
    // The keeper gives up after 500 ms, so what is told must be told before.
    let told = replica.load().await.unwrap_err();
    assert!(told.0.contains("is not paused or overloaded"), "{told}");
    assert!(replica.lease().await.is_err());
    server.cli(&["client", "unpause"]);
    assert_eq!(works(async || replica.load().await).await.unwrap().token.expose(), "one");
}

#[tokio::test]
async fn a_replica_that_takes_no_writes_is_still_read() {
    let primary = Server::start(&[]);
    let second = Server::start(&[&format!("--replicaof 127.0.0.1 {}", primary.port())]);
    works(async || replica(&primary).save(&token("one")).await).await;
    second.until("it has what the primary has", |second| second.cli(&["dbsize"]) == "1");
    let replica = replica(&second);
    assert_eq!(works(async || replica.load().await).await.unwrap().token.expose(), "one");
    let told = works(async || Ok(replica.save(&token("two")).await.unwrap_err())).await;
    assert!(told.0.contains("takes no writes"), "{told}");
    until("the lease says so", async || {
        replica.lease().await.is_err_and(|told| told.0.contains("no writes"))
    })
    .await;
}

#[tokio::test]
async fn a_redis_that_is_full_is_still_read() {
    let server = Server::start(&["--maxmemory-policy noeviction"]);
    let replica = replica(&server);
    works(async || replica.save(&token("one")).await).await;
    server.cli(&["config", "set", "maxmemory", "1"]);
    let told = replica.save(&token("two")).await.unwrap_err();
    assert!(told.0.contains("raise its maxmemory"), "{told}");
    assert!(replica.lease().await.is_err_and(|told| told.0.contains("maxmemory")));
    assert_eq!(replica.load().await.unwrap().unwrap().token.expose(), "one");
}

#[tokio::test]
async fn a_wrong_password_is_told_without_it() {
    let server = Server::start(&["--requirepass right"]);
    for (url, told) in [
        (format!("redis://:5ec2e7@127.0.0.1:{}", server.port()), "refuses our user and password"),
        (format!("redis://127.0.0.1:{}", server.port()), "refuses our user and password"),
    ] {
        let replica = replica_of(&config(&url));
        until("it says why", async || {
            let said = replica.load().await.unwrap_err();
            assert!(!said.0.contains("5ec2e7"), "{said}");
            said.0.contains(told) && said.0.contains("store_password_file")
        })
        .await;
    }
    let open = Server::start(&[]);
    let replica = replica_of(&config(&format!("redis://:5ec2e7@127.0.0.1:{}", open.port())));
    until("it says why", async || replica.load().await.unwrap_err().0.contains("takes none")).await;
    let nowhere = replica_of(&config(&format!("redis://127.0.0.1:{}/99", open.port())));
    until("it says why", async || nowhere.load().await.unwrap_err().0.contains("no such database")).await;
}

#[tokio::test]
async fn what_lacks_a_right_or_speaks_another_language_is_told() {
    let server = Server::start(&[]);
    server.cli(&["acl", "setuser", "me", "on", ">pw", "~*", "&*", "+ping"]);
    let replica = replica_of(&config(&format!("redis://me:pw@127.0.0.1:{}", server.port())));
    until("it names the right", async || {
        replica.load().await.unwrap_err().0.contains("the rights that the README lists")
    })
    .await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ =
                tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let stranger = replica_of(&config(&url));
    until("it says so", async || stranger.load().await.unwrap_err().0.contains("does not speak as Redis"))
        .await;
}

#[tokio::test]
async fn what_is_in_the_keys_and_not_ours_is_ignored_and_replaced_by_the_next_save() {
    let server = Server::start(&[]);
    let replica = replica(&server);
    works(async || replica.save(&token("good")).await).await;
    let (record, lease) = (key("token"), key("lease"));
    let good = server.cli(&["get", &record]);
    let future = (u64::MAX / 2).to_string();
    let deep = "[".repeat(9000);
    let long = "x".repeat(20_000);
    let garbage: Vec<Vec<&str>> = vec![
        vec!["set", &record, "garbage"],
        vec!["set", &record, ""],
        vec!["set", &record, "\u{1}\u{ff}"],
        vec!["set", &record, "null"],
        vec!["set", &record, "{}"],
        vec!["set", &record, "{\"v\":2}"],
        vec!["set", &record, &deep],
        vec!["set", &record, &long],
        vec!["set", &record, &good],
        vec!["set", &record, &good[..good.len() / 2], "px", "100000"],
        vec!["hset", &record, "token", "stranger"],
        vec!["lpush", &record, "stranger"],
        vec!["setbit", &record, "7", "1"],
    ];
    for command in garbage {
        server.cli(&["del", &record]);
        server.cli(&command);
        assert!(replica.load().await.unwrap().is_none(), "{command:?}");
        replica.refuse(&token("good"), true).await.unwrap();
        replica.save(&token("next")).await.unwrap();
        assert_eq!(replica.load().await.unwrap().unwrap().token.expose(), "next", "{command:?}");
    }
    for value in ["garbage", "", "1234:99999999999999999999", &long, &format!("abc:{future}")] {
        server.cli(&["set", &lease, value]);
        assert!(replica.lease().await.unwrap().is_some(), "{value}");
        until("it is given back", async || server.cli(&["exists", &lease]) == "0").await;
    }
    server.cli(&["hset", &lease, "a", "b"]);
    assert!(replica.lease().await.unwrap().is_some());
}

#[tokio::test]
async fn a_record_from_a_clock_that_was_set_back_stands_in_nobodys_way() {
    let server = Server::start(&[]);
    let replica = replica(&server);
    works(async || replica.save(&token("good")).await).await;
    let mut record: serde_json::Value = serde_json::from_str(&server.cli(&["get", &key("token")])).unwrap();
    for key in ["fetched_ms", "ends_ms"] {
        record[key] = (record[key].as_u64().unwrap() + 3_600_000).into();
    }
    server.cli(&["set", &key("token"), &record.to_string(), "px", "10000000"]);
    assert!(replica.load().await.unwrap().is_none());
    replica.save(&token("next")).await.unwrap();
    assert_eq!(replica.load().await.unwrap().unwrap().token.expose(), "next");
}

#[tokio::test]
async fn an_end_that_someone_brought_forward_is_believed() {
    let server = Server::start(&[]);
    let (here, there) = (replica(&server), replica(&server));
    works(async || here.save(&token("good")).await).await;
    works(async || there.load().await).await;
    server.cli(&["expire", &key("token"), "60"]);
    for replica in [&here, &there] {
        let left = replica.load().await.unwrap().unwrap().token.remaining();
        assert!(left <= Duration::from_secs(60), "{left:?}");
    }
}

#[tokio::test]
async fn a_lease_lives_as_long_as_its_holder_and_little_longer() {
    let server = Server::start(&[]);
    let mut config = config(&server.url());
    config.lease = Duration::from_secs(2);
    let other = replica_of(&config);
    works(async || other.load().await).await;
    // On a runtime of its own, which can be killed as a process is: nothing is given back.
    let (holds, held) = tokio::sync::oneshot::channel();
    let (kill, killed) = tokio::sync::oneshot::channel::<()>();
    let holders = config.clone();
    let process = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let holder = replica_of(&holders);
            let lease = works(async || holder.lease().await).await.expect("it is free");
            holds.send(()).unwrap();
            let _ = killed.await;
            std::mem::forget((holder, lease));
        });
    });
    held.await.unwrap();
    let begun = Instant::now();
    while begun.elapsed() < config.lease * 3 {
        assert!(other.lease().await.unwrap().is_none(), "it is renewed beyond its life");
        sleep(Duration::from_millis(100)).await;
    }
    drop(kill);
    process.join().unwrap();
    until("it is taken over", async || match other.lease().await.unwrap() {
        None => false,
        Some(taken) => {
            assert!(other.lease().await.unwrap().is_none(), "by one");
            drop(taken);
            true
        }
    })
    .await;
}

#[tokio::test]
async fn a_dead_holders_lease_has_one_thief() {
    let server = Server::start(&[]);
    let replicas: Vec<Replica> = (0..8).map(|_| replica(&server)).collect();
    for replica in &replicas {
        works(async || replica.load().await).await;
    }
    // Half a second before it counts as dead.
    server.cli(&["set", &key("lease"), "abc:12000", "px", "11000"]);
    let mut stolen = Vec::new();
    let begun = Instant::now();
    while stolen.is_empty() && begun.elapsed() < PATIENCE {
        for replica in &replicas {
            stolen.extend(replica.lease().await.unwrap());
        }
    }
    assert_eq!(stolen.len(), 1);
    assert!(begun.elapsed() > Duration::from_millis(400), "it was not dead yet");
}

#[tokio::test]
async fn a_lease_that_was_stolen_is_neither_renewed_nor_given_back() {
    let server = Server::start(&[]);
    let replica = replica(&server);
    let lease = works(async || replica.lease().await).await.unwrap();
    server.cli(&["set", &key("lease"), "abc:12000", "px", "12000"]);
    sleep(HEARTBEAT * 3).await;
    drop(lease);
    sleep(HEARTBEAT * 2).await;
    assert_eq!(server.cli(&["get", &key("lease")]), "abc:12000");
    let left: u64 = server.cli(&["pttl", &key("lease")]).parse().unwrap();
    assert!(left < 12_000, "{left}");
}

#[tokio::test]
async fn a_lease_that_redis_lost_is_still_its_holders() {
    let mut server = Server::start(&[]);
    let (here, there) = (replica(&server), replica(&server));
    let _lease = works(async || here.lease().await).await.unwrap();
    server.start_again();
    until("it is written again", async || server.cli(&["exists", &key("lease")]) == "1").await;
    assert!(works(async || there.lease().await).await.is_none());
}

#[tokio::test]
async fn news_arrive_again_after_the_listening_connection_was_cut() {
    let server = Server::start(&[]);
    let (here, there) = (replica(&server), replica(&server));
    works(async || there.load().await).await;
    let listening = || server.cli(&["pubsub", "numsub", &key("news")]).ends_with("\n2");
    until("both listen", async || listening()).await;
    server.cli(&["client", "kill", "type", "pubsub"]);
    let mut news = there.news();
    until("both listen again", async || listening()).await;
    while tokio::time::timeout(Duration::from_millis(300), news.changed()).await.is_ok() {}
    works(async || here.save(&token("news")).await).await;
    tokio::time::timeout(Duration::from_secs(5), news.changed())
        .await
        .expect("sooner than by the poll")
        .unwrap();
}

#[tokio::test]
async fn two_endpoints_and_two_prefixes_are_two_worlds() {
    let server = Server::start(&[]);
    let ours = replica(&server);
    works(async || ours.save(&token("one")).await).await;
    let mut staging = config(&server.url());
    staging.prefix = "staging".to_owned();
    assert!(works(async || replica_of(&staging).load().await).await.is_none());
    let redis = Redis::new(staging.server.clone());
    let appid = AppId::parse("wx0123456789abcdef").unwrap();
    let stable = RedisStore::new(&redis, &config(&server.url()), &appid, Endpoint::Stable);
    let running = tokio::spawn(redis.run());
    assert!(works(async || stable.load().await).await.is_none());
    running.abort();
    assert_eq!(server.cli(&["keys", "*"]), key("token"));
}

#[tokio::test]
async fn whoever_does_not_run_gets_an_error() {
    let redis = Redis::new(config("redis://127.0.0.1:1").server);
    let appid = AppId::parse("wx0123456789abcdef").unwrap();
    let store = RedisStore::new(&redis, &config("redis://127.0.0.1:1"), &appid, Endpoint::Stable);
    assert!(store.load().await.unwrap_err().0.contains("no connection"));
}
