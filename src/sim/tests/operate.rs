//! The control port, and the product's `simulate`.

use super::*;
use crate::sim::command::{SimulateOptions, run_command, start};

fn local() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

async fn controlled() -> (Sim, SocketAddr) {
    let sim = Sim::start(Config { control_listen: Some(local()), ..Config::default() }).await.unwrap();
    let control = sim.control_addr().unwrap();
    (sim, control)
}

#[tokio::test]
async fn the_control_port_lists_every_lever_it_has() {
    let (_sim, control) = controlled().await;
    let help = get(control, "/").await;
    assert!(help.has("content-type: text/plain; charset=utf-8") && help.text().contains("SIMULATED"));
    for line in help.text().lines().filter(|line| line.starts_with("  POST ")) {
        let lever = line.split_whitespace().nth(1).unwrap();
        let answer = post(control, lever, "").await;
        assert_ne!(answer.status, 404, "{lever}");
        let wrong = post(control, lever, r#"{"nonsense":1}"#).await;
        assert!(wrong.status == 400 && wrong.json()["error"].is_string(), "{lever}: {}", wrong.text());
        assert_eq!(get(control, lever).await.status, 405, "{lever}");
    }
    for lever in control::LEVERS {
        assert!(help.text().contains(&format!("POST {lever} ")), "{lever} is not listed");
    }
}

#[tokio::test]
async fn levers_work_over_the_control_port() {
    let (sim, control) = controlled().await;
    let token = stable(&sim).await;
    let ok = async |lever: &str, body: &str| {
        let answer = post(control, lever, body).await;
        assert_eq!((answer.status, &answer.json()["ok"]), (200, &json!(true)), "{lever} {}", answer.text());
    };
    let call = async |token: &str| post(sim.plain_addr(), &format!("{SEND}{token}"), "{}").await;
    ok("/expire", &json!({"appid": APP}).to_string()).await;
    assert_eq!(call(&token).await.errcode(), 42001);
    let token = stable(&sim).await;
    ok("/rotate", "{}").await;
    assert_eq!(call(&token).await.errcode(), 40001);
    ok("/rotate", r#"{"kind":"classic","at_once":false}"#).await;
    ok("/advance", r#"{"seconds":7200}"#).await;
    assert!(sim.live_token(APP).is_none());
    ok("/accept_token", r#"{"token":"mine"}"#).await;
    assert_eq!(call("mine").await.errcode(), 0);
    ok("/fail_calls", r#"{"path":"/cgi-bin/message","body":"no","status":500,"times":2}"#).await;
    assert_eq!(
        (call("mine").await.status, call("mine").await.status, call("mine").await.status),
        (500, 500, 200)
    );
    ok("/refuse", r#"{"errcode":48001}"#).await;
    assert_eq!(call("mine").await.errcode(), 48001);
    ok("/drop", r#"{"when":"before_reply"}"#).await;
    assert!(send(sim.plain_addr(), &post_bytes(&format!("{SEND}mine"), "", b"{}")).await.is_none());
    ok("/reset_levers", "").await;
    ok("/refusal_shape", r#"{"shape":"string"}"#).await;
    assert_eq!(call("x").await.json()["errcode"], "40014");

    let fetch = async || post(sim.plain_addr(), "/cgi-bin/stable_token", &ask_stable(false)).await;
    ok("/fail_fetches", r#"{"errcode":-1,"times":"forever"}"#).await;
    assert_eq!((fetch().await.errcode(), fetch().await.errcode()), (-1, -1));
    ok("/reset_levers", "").await;
    ok("/fail_fetches", r#"{"status":503}"#).await;
    assert_eq!((fetch().await.status, fetch().await.status), (503, 200));
    ok("/expires_in", r#"{"value":null}"#).await;
    assert_eq!(fetch().await.json()["expires_in"], Value::Null);
    ok("/expires_in", r#"{"absent":true}"#).await;
    assert!(fetch().await.json().get("expires_in").is_none());
    ok("/account", &json!({"appid": APP, "secret": "changed"}).to_string()).await;
    assert_eq!(fetch().await.errcode(), 40125);
    ok("/limits", r#"{"stable_per_day":1}"#).await;
    assert_eq!(sim.limits(), Limits { stable_per_day: 1, ..Limits::default() });
    ok("/token_length", r#"{"length":64}"#).await;
    assert_eq!(sim.limits().token_length, 64);
}

#[tokio::test]
async fn the_control_port_shows_what_was_seen() {
    let (sim, control) = controlled().await;
    let token = stable(&sim).await;
    post(sim.plain_addr(), &format!("{SEND}{token}"), "{\"a\":1}").await;
    let counts = get(control, "/counts").await.json();
    assert_eq!((&counts["fetches"]["stable"], &counts["accepted"]), (&json!(1), &json!(1)));
    let seen = get(control, "/seen?path=/cgi-bin/message&limit=5").await.json();
    assert_eq!(seen.as_array().unwrap().len(), 1);
    assert_eq!(
        (&seen[0]["body"], &seen[0]["errcode"], &seen[0]["connection"]),
        (&json!("{\"a\":1}"), &json!(0), &json!(2))
    );
    let state = get(control, "/state").await.json();
    assert_eq!(state["accounts"][0]["live_tokens"][0]["token"], token);
    assert!(!state.to_string().contains(DEFAULT_SECRET));
    post(control, "/reset_counts", "").await;
    assert_eq!(sim.counts(), Counts::default());
    assert_eq!(get(control, "/ca.pem").await.status, 404);
}

#[tokio::test]
async fn bad_input_to_the_control_port_is_told_in_json() {
    let (_sim, control) = controlled().await;
    for (lever, body, told) in [
        ("/expire", "[]", "not a JSON object"),
        ("/expire", "{", "not a JSON object"),
        ("/expire", r#"{"appid":"wxnobody"}"#, "no account wxnobody"),
        ("/expire", r#"{"token":"x"}"#, "does not take \"token\""),
        ("/advance", "{}", "\"seconds\" is missing"),
        ("/advance", r#"{"seconds":-1}"#, "invalid value"),
        ("/fail_fetches", "{}", "exactly one of"),
        ("/fail_fetches", r#"{"errcode":1,"how":"drop"}"#, "exactly one of"),
        ("/fail_fetches", r#"{"status":99}"#, "200 to 599"),
        ("/fail_fetches", r#"{"how":"explode"}"#, "unknown variant"),
        ("/fail_calls", r#"{"path":"x"}"#, "begins with /"),
        ("/account", r#"{"appid":"w x","secret":"s"}"#, "cannot be used"),
        ("/limits", r#"{"life":0}"#, "1 second at least"),
        ("/limits", r#"{"lives":9}"#, "unknown field"),
        ("/expires_in", r#"{"absent":false}"#, "takes"),
    ] {
        let answer = post(control, lever, body).await;
        assert_eq!(answer.status, 400, "{lever} {body}");
        assert!(answer.json()["error"].as_str().unwrap().contains(told), "{body}: {}", answer.text());
    }
    assert_eq!(post(control, "/nothing", "").await.status, 404);
    assert_eq!(post(control, "/state", "").await.status, 405);
    assert_eq!(get(control, "/seen?limit=x").await.status, 400);
}

#[tokio::test]
async fn simulate_says_what_it_is_and_how_to_use_it() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    let options = SimulateOptions {
        listen: local(),
        tls_listen: Some(local()),
        control_listen: Some(local()),
        ca_out: Some(ca.clone()),
        token_length: 100,
        expires_in: 60,
        ..SimulateOptions::default()
    };
    let (sim, banner) = start(options.clone()).await.unwrap();
    assert!(banner.starts_with("SIMULATION") && banner.contains("no connection to Tencent"), "{banner}");
    let run = format!(
        "WECHAT_SIDECAR_SECRET={DEFAULT_SECRET} wechat-sidecar run --appid {APP} --upstream {}",
        sim.base_url()
    );
    assert!(banner.contains(&run), "{banner}");
    let tls = format!("--upstream {} --upstream-ca-file {}", sim.tls_base_url().unwrap(), ca.display());
    assert!(banner.contains(&tls) && banner.contains(&sim.control_addr().unwrap().to_string()), "{banner}");
    assert_eq!(std::fs::read_to_string(&ca).unwrap(), sim.ca_pem().unwrap());
    assert_eq!(stable(&sim).await.len(), 100);

    let taken = SimulateOptions { listen: sim.plain_addr(), ..options.clone() };
    let told = start(taken).await.unwrap_err();
    assert_eq!(told.kind(), io::ErrorKind::AddrInUse);
    assert!(told.to_string().contains(&sim.plain_addr().to_string()), "{told}");
    assert!(start(SimulateOptions { tls_listen: None, ..options.clone() }).await.is_err());
    let nowhere = SimulateOptions { ca_out: Some(dir.path().join("no/such")), ..options.clone() };
    assert!(start(nowhere).await.unwrap_err().to_string().contains("no/such"));

    let other = Secret::parse("somebodys-real-one").unwrap();
    let (_sim, banner) = start(SimulateOptions { secret: other, ..options }).await.unwrap();
    assert!(!banner.contains("somebodys"), "{banner}");
}

#[tokio::test]
async fn simulate_announces_then_runs_until_told_to_stop() {
    let options = SimulateOptions { listen: local(), control_listen: None, ..SimulateOptions::default() };
    let (told, asked) = tokio::sync::oneshot::channel::<String>();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(async move {
        let announce = move |banner: &str| drop(told.send(banner.to_owned()));
        run_command(options, announce, async move { drop(stopped.await) }).await
    });
    let banner = asked.await.unwrap();
    let (_, address) = banner.split_once("http://").unwrap();
    let address: SocketAddr = address.split_whitespace().next().unwrap().parse().unwrap();
    assert_eq!(get(address, "/cgi-bin/user/get").await.errcode(), 41001);
    stop.send(()).unwrap();
    running.await.unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}
