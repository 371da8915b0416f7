//! The ledger: hundreds of calls through a network with faults on every side, each with a name, and both ends' books
//! compared. Every call got one honest answer; WeChat saw each at most twice, and twice only after it had refused its
//! token; none was carried out twice, and none that the app was told was not sent.

use std::collections::{BTreeMap, HashMap};
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustls::pki_types::ServerName;
use tempfile::{NamedTempFile, TempDir};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_rustls::TlsConnector;
use wechat_sidecar::app::App;
use wechat_sidecar::hosts::Hosts;
use wechat_sidecar::origin::Origin;
use wechat_sidecar::sim::{self, Seen, Sim};
use wechat_sidecar::tls::{self, ExtraRoots};
use wechat_sidecar::{ca, config};

use crate::redis_rig::Server;
use crate::rig::faults::{Faults, Impostor};
use crate::rig::tls::Authority;
use crate::rig::{End, RawClient, Reply, ms, within};

const APPID: &str = sim::DEFAULT_APPID;
const REFUSALS: [i64; 3] = [40001, 40014, 42001];

/// What an app is told when nothing of its call went to WeChat.
const NOT_SENT: &[&str] = &["connect", "connect-timeout", "tls", "no-token"];
/// And when it may have.
const PERHAPS: &[&str] = &["response-timeout", "idle-timeout", "upstream-closed", "upstream-malformed"];

/// What it is told when its own bytes did not come whole, so that WeChat cannot have carried the call out.
const NOT_WHOLE: &[&str] = &["bad-request", "request-body", "request-timeout"];

/// Calls that are to go well, in spite of everything.
const ENOUGH: usize = 150;

/// One call as the app saw it; no reply where it got no connection.
#[derive(Debug)]
struct Call {
    id: String,
    reply: Option<Reply>,
}

/// How many of a hundred connections have a fault, by side, and what there is beside one sidecar in front of WeChat.
#[derive(Clone, Copy, Default)]
struct Setup {
    upstream: u8,
    tokens: u8,
    apps: u8,
    /// Apps speak TLS.
    tls: bool,
    /// There are two sidecars on one Redis over TLS.
    store: Option<u8>,
}

struct World {
    sim: Sim,
    upstream: Faults,
    tokens: Faults,
    /// One for each sidecar, where they have a store.
    stores: Vec<Faults>,
    apps: Vec<Faults>,
    /// Each sidecar, as its apps get to it without faults.
    doors: Vec<Door>,
    /// The same, through the faults.
    bad_doors: Vec<Door>,
    /// Calls that were made to see whether all is well.
    recoveries: AtomicUsize,
    redis: Option<Server>,
    _stops: Vec<oneshot::Sender<()>>,
}

/// Where apps call.
#[derive(Clone)]
struct Door {
    address: SocketAddr,
    tls: Option<TlsConnector>,
}

impl Door {
    /// A connection; none where the handshake fails.
    async fn connect(&self) -> Option<RawClient> {
        let Some(connector) = &self.tls else { return Some(RawClient::connect(self.address).await) };
        let stream = TcpStream::connect(self.address).await.expect("the sidecar accepts");
        stream.set_nodelay(true).expect("a socket option");
        let name = ServerName::try_from("api.weixin.qq.com").expect("a name");
        let stream = within("a handshake or its end", connector.connect(name, stream)).await.ok()?;
        Some(RawClient::over(stream))
    }

    async fn call(&self, request: String) -> Option<Reply> {
        Some(self.connect().await?.call(request).await)
    }
}

impl World {
    async fn start(setup: Setup) -> Self {
        let defaults = sim::Config::default();
        let sim = Sim::start(sim::Config { tls_listen: Some(defaults.listen), ..defaults }).await.unwrap();
        let tls = sim.tls_addr().unwrap();
        // Good names and times under an authority that is trusted, too, so that each has just one thing wrong.
        let trusted = Authority::new();
        let impostors: Vec<Impostor> = vec![
            ("expired", trusted.expired("localhost")),
            ("wrong-name", trusted.server("api.weixin.qq.com.evil.example")),
            ("unknown-issuer", Authority::new().server("localhost")),
        ];
        let file = pem_file(&[sim.ca_pem().unwrap(), &trusted.pem()]);
        let roots = ExtraRoots::read(file.path()).unwrap();
        let upstream = Faults::before(tls, 1, impostors.clone()).await;
        let tokens = Faults::before(tls, 2, impostors.clone()).await;
        let redis = setup.store.is_some().then(Server::tls);
        let redis_roots = redis.as_ref().map(|redis| {
            let ca = std::fs::read_to_string(redis.ca()).unwrap();
            pem_file(&[&ca, &trusted.pem()])
        });
        let app_ca = tempfile::tempdir().unwrap();
        ca::make(app_ca.path(), &Hosts::default()).unwrap();

        let mut world = Self {
            sim,
            upstream,
            tokens,
            stores: Vec::new(),
            apps: Vec::new(),
            doors: Vec::new(),
            bad_doors: Vec::new(),
            recoveries: AtomicUsize::new(0),
            redis,
            _stops: Vec::new(),
        };
        for number in 0..if setup.store.is_some() { 2 } else { 1 } {
            let mut flags = vec![
                ("appid", APPID.to_owned()),
                ("upstream", format!("https://localhost:{}", world.upstream.address.port())),
                ("listen", "127.0.0.1:0".to_owned()),
                ("admin_listen", "127.0.0.1:0".to_owned()),
                ("workers", "2".to_owned()),
                ("token_wait", if setup.store.is_some() { "20s" } else { "3s" }.to_owned()),
            ];
            if setup.tls {
                flags.push(("ca_dir", app_ca.path().to_str().unwrap().to_owned()));
                flags.push(("tls_listen", "127.0.0.1:0".to_owned()));
            }
            if let (Some(redis), Some(roots)) = (&world.redis, &redis_roots) {
                let target = SocketAddr::from(([127, 0, 0, 1], redis.port()));
                let store = Faults::before(target, 4 + number, impostors.clone()).await;
                flags.push(("store", format!("rediss://localhost:{}", store.address.port())));
                flags.push(("store_ca_file", roots.path().to_str().unwrap().to_owned()));
                world.stores.push(store);
            }
            let env = [("WECHAT_SIDECAR_SECRET".into(), sim::DEFAULT_SECRET.into())];
            let mut config = config::load(flags, env).unwrap_or_else(|problems| panic!("{problems}"));
            config.source.origin =
                Origin::parse(&format!("https://localhost:{}", world.tokens.address.port())).unwrap();
            (config.source.roots, config.upstream.roots) = (roots.clone(), roots.clone());
            (config.source.connect_timeout, config.source.fetch_timeout) = (ms(1500), ms(2000));
            config.upstream.connect_timeout = ms(1500);
            (config.upstream.response_timeout, config.upstream.idle_timeout) = (ms(2000), ms(2000));
            let app = App::bind(config).unwrap();
            let addresses = app.addresses();
            let address = addresses.tls.unwrap_or(addresses.proxy);
            let (stop, stopped) = oneshot::channel::<()>();
            tokio::spawn(app.run(async move { drop(stopped.await) }));
            world._stops.push(stop);
            let apps = Faults::before(address, 3, Vec::new()).await;
            let connector = setup.tls.then(|| connector(&app_ca));
            world.bad_doors.push(Door { address: apps.address, tls: connector.clone() });
            world.doors.push(Door { address, tls: connector });
            world.apps.push(apps);
        }
        // A sidecar that never had a token has little to show.
        world.recovers().await;
        world.upstream.is_now(setup.upstream);
        world.tokens.is_now(setup.tokens);
        world.stores.iter().for_each(|store| store.is_now(setup.store.unwrap_or(0)));
        world.apps.iter().for_each(|apps| apps.is_now(setup.apps));
        world
    }

    fn sides(&self) -> impl Iterator<Item = &Faults> {
        [&self.upstream, &self.tokens].into_iter().chain(&self.stores).chain(&self.apps)
    }

    /// Every connection is good from now on, and so is the token: calls succeed at once.
    async fn recovers(&self) {
        self.sides().for_each(|side| side.is_now(0));
        // A fetch that failed is tried again in seconds.
        for door in &self.bad_doors {
            let mut good = 0;
            within("the recovery", async {
                while good < 10 {
                    let id = format!("after-{}", self.recoveries.fetch_add(1, Ordering::Relaxed));
                    let reply = door.call(request(&id, 0, "keep-alive")).await;
                    good = if reply.is_some_and(|reply| carried_out(&reply)) { good + 1 } else { 0 };
                    tokio::time::sleep(ms(20)).await;
                }
            })
            .await;
        }
    }
}

fn pem_file(pems: &[&str]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(pems.join("\n").as_bytes()).unwrap();
    file
}

/// An app's TLS that trusts the authority in this folder.
fn connector(ca: &TempDir) -> TlsConnector {
    let roots = ExtraRoots::read(&ca.path().join(ca::CERTIFICATE)).unwrap();
    TlsConnector::from(tls::client_config(&roots))
}

/// WeChat did what it was asked for.
fn carried_out(reply: &Reply) -> bool {
    let refused = reply.text().contains("\"errcode\":4");
    reply.end == End::Whole && reply.status == 200 && reply.cause() == "-" && !refused
}

/// A message, or a question whose answer names who asked.
fn request(id: &str, kind: usize, connection: &str) -> String {
    match kind {
        0 => {
            let body = format!(r#"{{"touser":"{id}","msgtype":"text","text":{{"content":"hello"}}}}"#);
            format!(
                "POST /cgi-bin/message/custom/send HTTP/1.1\r\nHost: api.weixin.qq.com\r\nConnection: {connection}\r\nx-call-id: {id}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
        }
        _ => format!(
            "GET /cgi-bin/user/info?openid={id}&lang=zh_CN HTTP/1.1\r\nHost: api.weixin.qq.com\r\nConnection: {connection}\r\nx-call-id: {id}\r\n\r\n"
        ),
    }
}

/// So many apps make so many calls each, and go on until enough went well, while the token dies every now and then.
async fn calls(world: &World, doors: &[Door], apps: usize, each: usize) -> Vec<Call> {
    let stop = Arc::new(AtomicBool::new(false));
    let went_well = Arc::new(AtomicUsize::new(0));
    let mut running = tokio::task::JoinSet::new();
    for app in 0..apps {
        let door = doors[app % doors.len()].clone();
        let went_well = Arc::clone(&went_well);
        running.spawn(async move {
            let mut rng = fastrand::Rng::with_seed(app as u64);
            let (mut calls, mut client) = (Vec::new(), None);
            for n in 0.. {
                if n >= each && went_well.load(Ordering::Relaxed) > ENOUGH {
                    break;
                }
                let id = format!("call-{app}-{n}");
                let connected = match client.take() {
                    Some(client) => Some(client),
                    None => door.connect().await,
                };
                let Some(mut connected) = connected else {
                    calls.push(Call { id, reply: None });
                    continue;
                };
                let kind = rng.usize(..2);
                let close = rng.u8(..4) == 0;
                let reply =
                    connected.call(request(&id, kind, if close { "close" } else { "keep-alive" })).await;
                let whole = reply.end == End::Whole && reply.status > 0;
                if whole && kind == 1 && reply.cause() == "-" && reply.status == 200 {
                    let text = reply.text();
                    let mine = text.contains(&format!("\"openid\":\"{id}\"")) || text.contains("\"errcode\"");
                    assert!(mine, "{id} got the answer of another: {reply:?}");
                }
                if carried_out(&reply) {
                    went_well.fetch_add(1, Ordering::Relaxed);
                } else {
                    // WeChat remembers the last few thousand calls only.
                    tokio::time::sleep(ms(100)).await;
                }
                if whole && !close {
                    client = Some(connected);
                }
                calls.push(Call { id, reply: Some(reply) });
            }
            calls
        });
    }
    let dying = async {
        let (mut odd, mut seen) = (false, 0);
        while !stop.load(Ordering::Relaxed) {
            tokio::time::sleep(ms(300)).await;
            // However slow the machine is, a token serves every app before it dies.
            if went_well.load(Ordering::Relaxed) < seen + apps {
                continue;
            }
            seen = went_well.load(Ordering::Relaxed);
            odd = !odd;
            if odd {
                world.sim.expire_now(APPID)
            } else {
                world.sim.rotate(APPID)
            }
            // These connections would live for ever, once there is a good one.
            world.stores.iter().for_each(Faults::sever);
        }
    };
    let all = async {
        let mut all = Vec::new();
        while let Some(calls) = running.join_next().await {
            all.append(&mut calls.expect("an app does not fail"));
        }
        stop.store(true, Ordering::Relaxed);
        all
    };
    let (all, ()) =
        tokio::time::timeout(std::time::Duration::from_secs(240), async { tokio::join!(all, dying) })
            .await
            .expect("every call comes to an end");
    all
}

/// Compares what the apps were told with what WeChat saw. Gives how often what was told.
fn settle(world: &World, calls: &[Call]) -> BTreeMap<String, usize> {
    let mut by_id: HashMap<String, Vec<Seen>> = HashMap::new();
    for seen in world.sim.seen() {
        if let Some(id) = seen.header("x-call-id").next() {
            by_id.entry(id.to_owned()).or_default().push(seen.clone());
        }
    }
    let mut told: BTreeMap<String, usize> = BTreeMap::new();
    for Call { id, reply } in calls {
        let (sent, accepted) = world.sim.sends_of(id);
        let story =
            || format!("{id}: told {reply:?}, WeChat saw it {sent} times, carried it out {accepted} times");
        assert!(sent <= 2 && accepted <= 1, "{}", story());
        let seen = by_id.get(id).map_or(&[][..], Vec::as_slice);
        if sent == 2 {
            let [first, second] = seen else { panic!("{}: {seen:?}", story()) };
            let refused = first.errcode.is_some_and(|code| REFUSALS.contains(&code));
            assert!(refused, "a second time without a refusal: {}: {first:?}", story());
            assert_ne!(first.target, second.target, "with another token: {}", story());
        }
        let Some(reply) = reply else {
            assert_eq!(sent, 0, "{}", story());
            *told.entry("nothing, and it is without a connection".to_owned()).or_default() += 1;
            continue;
        };
        if reply.end != End::Whole || reply.status == 0 {
            // It sees that.
            *told.entry(format!("{}, and it is {:?}", reply.status, reply.end)).or_default() += 1;
            continue;
        }
        let what = match reply.cause() {
            "-" => {
                let body: serde_json::Value = serde_json::from_slice(&reply.body).unwrap_or_default();
                let errcode = body["errcode"].as_i64().unwrap_or(0);
                let honest = match errcode {
                    0 => accepted == 1,
                    code => REFUSALS.contains(&code) && accepted == 0 && sent >= 1,
                };
                assert!(reply.status == 200 && honest, "{}", story());
                format!("WeChat's {errcode}")
            }
            cause if NOT_SENT.contains(&cause) => {
                assert_eq!(sent, 0, "{}", story());
                cause.to_owned()
            }
            cause if NOT_WHOLE.contains(&cause) => {
                assert_eq!(accepted, 0, "{}", story());
                cause.to_owned()
            }
            cause if PERHAPS.contains(&cause) => cause.to_owned(),
            _ => panic!("{}", story()),
        };
        *told.entry(what).or_default() += 1;
    }
    told
}

/// Replies of which the app sees that they are not whole.
fn broken(told: &BTreeMap<String, usize>) -> usize {
    told.iter().filter(|(what, _)| what.contains("it is")).map(|(_, n)| n).sum()
}

#[tokio::test]
async fn through_every_fault_toward_wechat_each_call_gets_one_honest_answer_and_is_carried_out_at_most_once()
{
    let world = World::start(Setup { upstream: 45, tokens: 40, ..Setup::default() }).await;
    let calls = calls(&world, &world.doors, 24, 20).await;
    let told = settle(&world, &calls);
    // What the apps' side of it was like: nothing was wrong there.
    assert_eq!(broken(&told), 0, "{told:?}");
    assert!(told.len() >= 4 && told["WeChat's 0"] > ENOUGH, "{told:?}");
    world.upstream.assert_every_kind_was_met();
    let (upstream, tokens) = (world.upstream.met(), world.tokens.met());
    assert!(upstream.faults > 50 && tokens.connections > 1, "{upstream:?} {tokens:?}");
    assert_eq!((upstream.trusted, tokens.trusted), (0, 0), "nothing is given to an impostor");
    let counts = world.sim.counts();
    assert_eq!((counts.placeholders, counts.duplicate_tokens, counts.chunked_refused), (0, 0, 0));
    assert!(counts.max_sends_of_a_call <= 2, "none a third time: {counts:?}");
    world.recovers().await;
    // Whether a fetch came through in time above is chance; now each does.
    world.sim.expire_now(APPID);
    let reply = world.bad_doors[0].call(request("again", 0, "keep-alive")).await.unwrap();
    assert_eq!((reply.status, reply.header("x-wechat-sidecar-attempts")), (200, Some("2")), "{reply:?}");
    assert_eq!(world.sim.counts().max_sends_of_a_call, 2);
}

async fn faults_of_apps(tls: bool) {
    let world = World::start(Setup { upstream: 5, apps: 50, tls, ..Setup::default() }).await;
    let calls = calls(&world, &world.bad_doors, 24, 20).await;
    let told = settle(&world, &calls);
    assert!(told["WeChat's 0"] > ENOUGH && broken(&told) > 10, "{told:?}");
    assert!(world.apps[0].met().faults > 50, "{:?}", world.apps[0].met());
    world.apps[0].assert_every_kind_was_met();
    world.recovers().await;
}

#[tokio::test]
async fn through_every_fault_of_its_apps_no_call_is_carried_out_twice_and_the_others_do_not_notice() {
    faults_of_apps(false).await;
}

#[tokio::test]
async fn through_every_fault_of_apps_that_speak_tls_no_call_is_carried_out_twice_and_half_a_one_never() {
    faults_of_apps(true).await;
}

#[tokio::test]
async fn through_every_fault_toward_the_store_no_call_is_lost_and_each_replica_fetches_for_itself_at_most() {
    let world = World::start(Setup { store: Some(60), ..Setup::default() }).await;
    let calls = calls(&world, &world.doors, 16, 40).await;
    let told = settle(&world, &calls);
    // Two tokens may die under one call; everything else is cured, whatever the store is like.
    let refused: usize = told.iter().filter(|(what, _)| *what != "WeChat's 0").map(|(_, n)| n).sum();
    assert!(told.keys().all(|what| what.starts_with("WeChat's ")) && refused <= calls.len() / 20, "{told:?}");
    for store in &world.stores {
        let met = store.met();
        assert!(met.faults > 3 && met.trusted == 0, "nothing is given to an impostor: {met:?}");
    }

    // And one after the other, so that none hides behind another.
    for kind in world.stores[0].kinds() {
        world.recovers().await;
        world.stores.iter().for_each(|store| store.only(kind));
        let before = world.sim.counts().all_fetches();
        world.sim.expire_now(APPID);
        for (number, door) in world.doors.iter().enumerate() {
            let reply = door.call(request(&format!("{kind}-{number}"), 0, "close")).await.unwrap();
            assert!(carried_out(&reply), "{kind}: {reply:?}");
        }
        let fetches = world.sim.counts().all_fetches() - before;
        assert!((1..=2).contains(&fetches), "{kind}: {fetches} fetches for one token that died");
    }
    for store in &world.stores {
        store.assert_every_kind_was_met();
        assert_eq!(store.met().trusted, 0, "nothing is given to an impostor");
    }
    world.recovers().await;
    assert!(world.sim.counts().max_sends_of_a_call <= 2);
}

#[tokio::test]
async fn whatever_becomes_of_a_token_fetch_the_app_is_told_the_truth_and_the_next_one_mends_it() {
    let world = World::start(Setup::default()).await;
    for kind in world.tokens.kinds() {
        world.recovers().await;
        world.tokens.only(kind);
        world.sim.expire_now(APPID);
        let id = format!("while-{kind}");
        let reply = world.doors[0].call(request(&id, 0, "close")).await.unwrap();
        let told = settle(&world, &[Call { id: id.clone(), reply: Some(reply) }]);
        let (sent, accepted) = world.sim.sends_of(&id);
        // A fault that comes late in a connection may come too late.
        let cured = told.contains_key("WeChat's 0") && (sent, accepted) == (2, 1);
        let told_so = told.contains_key("WeChat's 42001") && (sent, accepted) == (1, 0);
        assert!(cured || told_so, "{kind}: {told:?}, sent {sent}, carried out {accepted}");
    }
    world.tokens.assert_every_kind_was_met();
    assert_eq!(world.tokens.met().trusted, 0, "no AppSecret is given to an impostor");
    world.recovers().await;
}
