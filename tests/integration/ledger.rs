//! The ledger: hundreds of calls through a network with faults on every side, each with a name, and both ends' books
//! compared. Every call got one honest answer; WeChat saw each at most twice, and twice only after it had refused its
//! token; none was carried out twice, and none that the app was told was not sent.

use std::collections::{BTreeMap, HashMap};
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::oneshot;
use wechat_sidecar::app::App;
use wechat_sidecar::config;
use wechat_sidecar::origin::Origin;
use wechat_sidecar::sim::{self, Seen, Sim};
use wechat_sidecar::tls::ExtraRoots;

use crate::rig::faults::Faults;
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

/// One call as the app saw it.
#[derive(Debug)]
struct Call {
    id: String,
    reply: Reply,
}

struct World {
    sim: Sim,
    upstream: Faults,
    tokens: Faults,
    apps: Faults,
    proxy: SocketAddr,
    _stop: oneshot::Sender<()>,
}

impl World {
    /// A sidecar with faults in so many of a hundred connections to WeChat, to where its tokens come from, and of its
    /// apps.
    async fn with_faults(upstream: u8, tokens: u8, apps: u8) -> Self {
        let defaults = sim::Config::default();
        let sim = Sim::start(sim::Config { tls_listen: Some(defaults.listen), ..defaults }).await.unwrap();
        let tls = sim.tls_addr().unwrap();
        // Good names and times under an authority that is trusted, too, so that each has just one thing wrong.
        let trusted = Authority::new();
        let impostors = vec![
            trusted.expired("localhost"),
            trusted.server("api.weixin.qq.com.evil.example"),
            Authority::new().server("localhost"),
        ];
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "{}\n{}", sim.ca_pem().unwrap(), trusted.pem()).unwrap();
        let roots = ExtraRoots::read(file.path()).unwrap();

        let upstream = Faults::before(tls, upstream, 1, impostors.clone()).await;
        let tokens = Faults::before(tls, tokens, 2, impostors).await;
        let flags =
            [("appid", APPID), ("upstream", &format!("https://localhost:{}", upstream.address.port()))];
        let flags = flags.into_iter().chain([
            ("listen", "127.0.0.1:0"),
            ("admin_listen", "127.0.0.1:0"),
            ("workers", "2"),
            ("token_wait", "3s"),
        ]);
        let flags = flags.map(|(key, value)| (key, value.to_owned())).collect();
        let env = [("WECHAT_SIDECAR_SECRET".into(), sim::DEFAULT_SECRET.into())];
        let mut config = config::load(flags, env).unwrap_or_else(|problems| panic!("{problems}"));
        config.source.origin =
            Origin::parse(&format!("https://localhost:{}", tokens.address.port())).unwrap();
        (config.source.roots, config.upstream.roots) = (roots.clone(), roots);
        (config.source.connect_timeout, config.source.fetch_timeout) = (ms(1500), ms(2000));
        config.upstream.connect_timeout = ms(1500);
        (config.upstream.response_timeout, config.upstream.idle_timeout) = (ms(2000), ms(2000));
        let app = App::bind(config).unwrap();
        let proxy = app.addresses().proxy;
        let apps = Faults::before(proxy, apps, 3, Vec::new()).await;
        let (stop, stopped) = oneshot::channel::<()>();
        tokio::spawn(app.run(async move { drop(stopped.await) }));
        Self { sim, upstream, tokens, apps, proxy, _stop: stop }
    }

    /// Every connection is good from now on, and so is the token: calls succeed at once.
    async fn recovers(&self) {
        for side in [&self.upstream, &self.tokens, &self.apps] {
            side.is_now(0);
        }
        // A connection with a fault in store may still be pooled, and a fetch that failed is tried again in seconds.
        let mut good = 0;
        within("the recovery", async {
            while good < 20 {
                let mut client = RawClient::connect(self.apps.address).await;
                let reply = client.call(request(&format!("after-{good}"), 0, "keep-alive")).await;
                good =
                    if reply.status == 200 && reply.text().contains("\"errcode\":0") { good + 1 } else { 0 };
                tokio::time::sleep(ms(20)).await;
            }
        })
        .await;
    }
}

/// A message, or a question whose answer names who asked.
fn request(id: &str, kind: usize, connection: &str) -> String {
    match kind {
        0 => {
            let body = format!(r#"{{"touser":"{id}","msgtype":"text","text":{{"content":"hello"}}}}"#);
            format!(
                "POST /cgi-bin/message/custom/send HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: {connection}\r\nx-call-id: {id}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
        }
        _ => format!(
            "GET /cgi-bin/user/info?openid={id}&lang=zh_CN HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: {connection}\r\nx-call-id: {id}\r\n\r\n"
        ),
    }
}

/// So many apps make so many calls each, while the token dies every now and then.
async fn calls(world: &World, address: SocketAddr, apps: usize, each: usize) -> Vec<Call> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut running = tokio::task::JoinSet::new();
    for app in 0..apps {
        running.spawn(async move {
            let mut rng = fastrand::Rng::with_seed(app as u64);
            let (mut calls, mut client) = (Vec::new(), None);
            for n in 0..each {
                let id = format!("call-{app}-{n}");
                let mut connected = match client.take() {
                    Some(client) => client,
                    None => RawClient::connect(address).await,
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
                if whole && !close {
                    client = Some(connected);
                }
                calls.push(Call { id, reply });
            }
            calls
        });
    }
    let dying = async {
        let mut odd = false;
        while !stop.load(Ordering::Relaxed) {
            tokio::time::sleep(ms(400)).await;
            odd = !odd;
            if odd { world.sim.expire_now(APPID) } else { world.sim.rotate(APPID) }
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

#[tokio::test]
async fn through_every_fault_toward_wechat_each_call_gets_one_honest_answer_and_is_carried_out_at_most_once()
{
    let world = World::with_faults(45, 40, 0).await;
    let calls = calls(&world, world.proxy, 24, 20).await;
    let told = settle(&world, &calls);
    // What the apps' side of it was like: nothing was wrong there.
    assert!(!told.keys().any(|what| what.contains("it is")), "{told:?}");
    assert!(told.len() >= 4 && told["WeChat's 0"] > 100, "{told:?}");
    let (upstream, tokens) = (world.upstream.met(), world.tokens.met());
    assert!(upstream.faults > 50 && tokens.connections > 3, "{upstream:?} {tokens:?}");
    assert_eq!((upstream.trusted, tokens.trusted), (0, 0), "nothing is given to an impostor");
    let counts = world.sim.counts();
    assert_eq!((counts.placeholders, counts.duplicate_tokens, counts.chunked_refused), (0, 0, 0));
    assert!(counts.max_sends_of_a_call <= 2, "none a third time: {counts:?}");
    world.recovers().await;
    // Whether a fetch came through in time above is chance; now each does.
    world.sim.expire_now(APPID);
    let mut client = RawClient::connect(world.apps.address).await;
    let reply = client.call(request("again", 0, "keep-alive")).await;
    assert_eq!((reply.status, reply.header("x-wechat-sidecar-attempts")), (200, Some("2")), "{reply:?}");
    assert_eq!(world.sim.counts().max_sends_of_a_call, 2);
}

#[tokio::test]
async fn through_every_fault_of_its_apps_no_call_is_carried_out_twice_and_the_others_do_not_notice() {
    let world = World::with_faults(5, 0, 50).await;
    let calls = calls(&world, world.apps.address, 24, 20).await;
    let told = settle(&world, &calls);
    let broken: usize = told.iter().filter(|(what, _)| what.contains("it is")).map(|(_, n)| n).sum();
    assert!(told["WeChat's 0"] > 100 && broken > 10, "{told:?}");
    assert!(world.apps.met().faults > 50, "{:?}", world.apps.met());
    world.recovers().await;
}
