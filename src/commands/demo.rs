//! `demo`: the main job with no WeChat account. A simulated WeChat, the sidecar in front of it, an app that knows
//! neither secret nor token, and a token that dies under it, told step by step.
//!
//! Every line that claims something is checked: a demo that does not show what it says ends with 1.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::sync::oneshot;
use wechat_sidecar::app::App;
use wechat_sidecar::config::cli::{self, Demo, Invocation, Stop};
use wechat_sidecar::sim::{self, DEFAULT_APPID, DEFAULT_SECRET, Sim};
use wechat_sidecar::telemetry;

use super::{UntilStopped, complain, say};

/// The call of the demo: a customer service message, the kind that must not be sent twice.
const PATH: &str = "/cgi-bin/message/custom/send";
const MESSAGE: &str = r#"{"touser":"oAAAA","msgtype":"text","text":{"content":"hello"}}"#;

pub(super) async fn demo(options: &Demo) -> u8 {
    if let Err(error) = telemetry::init(&options.telemetry) {
        complain(&error);
        return 1;
    }
    match tell().await {
        Ok(()) => 0,
        Err(error) => {
            complain(&format!("the demo did not go as it should: {error}"));
            1
        }
    }
}

async fn tell() -> Result<(), String> {
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let wechat =
        Sim::start(sim::Config { listen: loopback, ..sim::Config::default() }).await.map_err(text)?;
    say(&format!("1. A simulated WeChat runs at {} (no connection to Tencent).", wechat.base_url()));

    let config = match settings(&wechat.base_url()) {
        Ok(Invocation::Run(config)) => *config,
        Ok(_) => return Err("the settings are not those of `run`".to_owned()),
        Err(Stop::Told(text) | Stop::Refused(text)) => return Err(text),
    };
    let app = App::bind(config).map_err(text)?;
    let sidecar = app.addresses();
    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = async {
        let _ = stopped.await;
    };
    let running = tokio::spawn(app.run(Box::pin(stopped) as UntilStopped));
    let client = Client::new()?;
    client.until_ready(sidecar.admin).await?;
    say(&format!(
        "2. The sidecar runs at http://{}. It alone has the AppSecret, and has fetched a token.",
        sidecar.proxy
    ));

    let url = format!("http://{}{PATH}", sidecar.proxy);
    say(&format!("3. The app sends a message, with no token and no secret:\n     POST {url}"));
    client.expect_sent(&url, None).await?;

    let dead = wechat.live_token(DEFAULT_APPID).ok_or("the simulation has issued no token")?;
    wechat.expire_now(DEFAULT_APPID);
    say(
        "4. The token dies, as it does when another program fetches one. Without a sidecar the app would now see:",
    );
    let seen = client.post(&format!("{}{PATH}?access_token={dead}", wechat.base_url())).await?;
    say(&format!("     {}", seen.body));

    say("5. The app sends the same message through the sidecar again:");
    client.expect_sent(&url, Some("2")).await?;
    let counts = wechat.counts();
    say("   WeChat refused the dead token, the sidecar fetched another and sent the call once more.");
    say("   The app noticed nothing; a header says it: x-wechat-sidecar-attempts: 2");

    say("6. Fifty calls at once meet a token that died again:");
    let fetched = counts.fetches.stable;
    wechat.expire_now(DEFAULT_APPID);
    let calls: Vec<_> = (0..50)
        .map(|_| {
            let (client, url) = (client.clone(), url.clone());
            tokio::spawn(async move { client.post(&url).await })
        })
        .collect();
    for call in calls {
        call.await.map_err(text)??.is_sent()?;
    }
    let fetches = wechat.counts().fetches.stable - fetched;
    say(&format!("   all 50 were sent, with {fetches} token fetch for all of them."));
    if fetches != 1 {
        return Err(format!("{fetches} fetches where one is enough"));
    }

    let _ = stop.send(());
    running.await.map_err(text)?.map_err(text)?;
    wechat.shutdown().await;
    say("\nDone. For real: WECHAT_SIDECAR_SECRET=... wechat-sidecar run --appid wx...");
    Ok(())
}

/// The settings a user would give, read the way a user's are.
fn settings(upstream: &str) -> Result<Invocation, Stop> {
    let args = [
        "wechat-sidecar",
        "run",
        "--appid",
        DEFAULT_APPID,
        "--upstream",
        upstream,
        "--listen",
        "127.0.0.1:0",
        "--admin-listen",
        "127.0.0.1:0",
    ];
    let env = [("WECHAT_SIDECAR_SECRET".into(), DEFAULT_SECRET.into())];
    cli::parse(args.map(Into::into), env)
}

/// An app: it knows an address and nothing else.
#[derive(Clone)]
struct Client(reqwest::Client);

struct Seen {
    attempts: Option<String>,
    body: String,
}

impl Seen {
    fn is_sent(&self) -> Result<(), String> {
        if self.body.contains(r#""errcode":0"#) { Ok(()) } else { Err(format!("the app got {}", self.body)) }
    }
}

impl Client {
    fn new() -> Result<Self, String> {
        super::local_client(Duration::from_secs(20)).map(Self)
    }

    async fn until_ready(&self, admin: SocketAddr) -> Result<(), String> {
        for _ in 0..200 {
            let ready = self.0.get(format!("http://{admin}/readyz")).send().await;
            if ready.is_ok_and(|reply| reply.status().is_success()) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Err("the sidecar did not become ready within 10 s".to_owned())
    }

    async fn post(&self, url: &str) -> Result<Seen, String> {
        let sent = self.0.post(url).header("content-type", "application/json").body(MESSAGE).send().await;
        let reply = sent.map_err(|error| error.without_url().to_string())?;
        let attempts = reply.headers().get("x-wechat-sidecar-attempts");
        let attempts = attempts.and_then(|value| value.to_str().ok()).map(str::to_owned);
        let body = reply.text().await.map_err(|error| error.without_url().to_string())?;
        Ok(Seen { attempts, body })
    }

    async fn expect_sent(&self, url: &str, attempts: Option<&str>) -> Result<(), String> {
        let seen = self.post(url).await?;
        say(&format!("     {}", seen.body));
        seen.is_sent()?;
        if seen.attempts.as_deref() == attempts {
            Ok(())
        } else {
            Err(format!("it took {:?} attempts, not {attempts:?}", seen.attempts))
        }
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
