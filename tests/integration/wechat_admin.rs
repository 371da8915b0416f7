//! What an operator sees: probes, metrics, the status, and the head of the page; and what the admin port refuses.

#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

use std::collections::{BTreeMap, BTreeSet};

use http::{Method, Request};
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use wechat_sidecar::sim::{Canned, DEFAULT_SECRET, FetchFailure};

use crate::wechat_process::Process;
use crate::wechat_rig::{APPID, App, Rig, SEND, Wechat, until, within};

/// The samples of an exposition: a series with its labels, and its value.
pub(crate) async fn metrics(app: &App) -> BTreeMap<String, f64> {
    let answer = app.admin("/metrics").await;
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let lines = answer.text().lines().filter(|line| !line.starts_with('#'));
    let sample = |line: &str| {
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line}"));
        (series.to_owned(), value.parse().unwrap_or_else(|_| panic!("no number: {line}")))
    };
    lines.map(sample).collect()
}

fn calls(outcome: &str, errcode: &str) -> String {
    format!(
        r#"wechat_sidecar_calls_total{{account="{APPID}",action="append-token",outcome="{outcome}",errcode="{errcode}"}}"#
    )
}

#[tokio::test]
async fn metrics_count_what_happened() {
    let rig = Rig::plain(&["--workers", "2"]).await;
    for _ in 0..3 {
        rig.app.message("-").await.assert_ok();
    }
    rig.sim.expire_now(APPID);
    rig.app.message("-").await.assert_ok();
    rig.sim.always_refuse("/wxa/", 40001);
    rig.app.post("/wxa/anything", "{}").await;
    rig.app.get("/sns/jscode2session?js_code=bad").await;
    rig.app.get("/cgi-bin/token?grant_type=client_credential&appid=&secret=").await;
    rig.app.get("//nowhere").await;
    // A record closes with the last byte, a moment after the app has it.
    let want = [
        (calls("ok", "0"), 3.0),
        (calls("refused-and-cured", "0"), 1.0),
        (calls("refused", "40001"), 1.0),
        (format!(r#"wechat_sidecar_refusals_total{{account="{APPID}",errcode="42001"}}"#), 1.0),
        (format!(r#"wechat_sidecar_refusals_total{{account="{APPID}",errcode="40001"}}"#), 1.0),
        (format!(r#"wechat_sidecar_replays_total{{account="{APPID}"}}"#), 2.0),
        (
            r#"wechat_sidecar_calls_total{account="none",action="none",outcome="ambiguous-path",errcode="none"}"#.into(),
            0.0,
        ),
        (
            format!(r#"wechat_sidecar_calls_total{{account="{APPID}",action="append-secret",outcome="wechat-error",errcode="40029"}}"#),
            1.0,
        ),
        ("wechat_sidecar_call_duration_seconds_count".into(), 8.0),
        ("wechat_sidecar_overhead_seconds_count".into(), 8.0),
        ("wechat_sidecar_upstream_duration_seconds_count".into(), 6.0),
        (
            format!(r#"wechat_sidecar_fetches_total{{account="{APPID}",reason="startup",outcome="fetched"}}"#),
            1.0,
        ),
        (format!(r#"wechat_sidecar_ready{{account="{APPID}"}}"#), 1.0),
        ("wechat_sidecar_stopping".into(), 0.0),
        (r#"wechat_sidecar_build_info{version="0.1.0",workers="2"}"#.into(), 1.0),
    ];
    let mut last = BTreeMap::new();
    until("the counters say so", async || {
        last = metrics(&rig.app).await;
        last.get("wechat_sidecar_call_duration_seconds_count") == Some(&8.0)
    })
    .await;
    for (series, value) in &want {
        // What never happened has no series.
        let there = last.get(series).copied().unwrap_or_default();
        if series.contains("ambiguous-path") {
            let bad = last.iter().find(|(series, _)| series.contains(r#"account="none""#)).unwrap();
            assert_eq!(*bad.1, 1.0, "{bad:?}");
        } else {
            assert_eq!(there, *value, "{series}: {last:#?}");
        }
    }
    assert!(last["wechat_sidecar_connections_accepted_total"] >= 1.0);
    let life = last[&format!(r#"wechat_sidecar_token_life_seconds{{account="{APPID}"}}"#)];
    assert!(life > 6000.0 && life <= 7200.0, "{life}");
    let buckets: Vec<_> =
        last.iter().filter(|(s, _)| s.starts_with("wechat_sidecar_call_duration_seconds_bucket")).collect();
    assert!(buckets.iter().any(|(series, n)| series.contains("+Inf") && **n == 8.0), "{buckets:?}");
    for standard in [
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_open_fds",
        "process_start_time_seconds",
    ] {
        assert!(last.contains_key(standard), "{standard}");
    }
}

#[tokio::test]
async fn labels_are_bounded_whatever_apps_send() {
    let rig = Rig::plain(&[]).await;
    for n in 0..60 {
        rig.app.get(&format!("/cgi-bin/made-up-{n}?openid=o{n}")).await;
        rig.app.get(&format!("/wx{n}stranger/cgi-bin/user/get")).await;
        let body = format!(r#"{{"errcode":{},"errmsg":"e"}}"#, 70_000 + n);
        rig.sim.fail_calls("/cgi-bin/menu", wechat_sidecar::sim::Canned { body, ..Default::default() }, 1);
        rig.app.get("/cgi-bin/menu/get").await;
    }
    let series: BTreeSet<_> = metrics(&rig.app).await.into_keys().collect();
    assert!(series.iter().any(|series| series.contains(r#"errcode="other""#)), "{series:#?}");
    assert!(series.len() < 200, "{}", series.len());
    for series in &series {
        assert!(
            !series.contains("made-up") && !series.contains("stranger") && !series.contains("70"),
            "{series}"
        );
    }
}

#[tokio::test]
async fn the_readme_tells_every_metric_and_no_other() {
    let rig = Rig::plain(&[]).await;
    rig.app.message("-").await.assert_ok();
    let text = rig.app.admin("/metrics").await;
    let live: BTreeMap<_, _> = text
        .text()
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .filter(|(name, _)| name.starts_with("wechat_sidecar_"))
        .collect();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let readme = std::fs::read_to_string(path).unwrap();
    let (_, rest) = readme.split_once("<!-- metrics -->\n").expect("README.md has <!-- metrics -->");
    let (table, _) = rest.split_once("<!-- /metrics -->").expect("README.md has <!-- /metrics -->");
    let told: BTreeMap<_, _> = table
        .lines()
        .filter_map(|line| {
            let mut cells = line.trim_matches('|').split('|').map(str::trim);
            let name = cells.next()?.trim_matches('`');
            Some((name, cells.next()?)).filter(|(name, _)| name.starts_with("wechat_sidecar_"))
        })
        .collect();
    assert_eq!(told, live, "left what README.md tells, right what /metrics has");
}

#[tokio::test]
async fn the_status_says_how_it_stands_and_hides_the_secret() {
    let rig = Rig::plain(&["--grace-period", "7s"]).await;
    rig.app.message("-").await.assert_ok();
    let answer = rig.app.admin("/status").await;
    assert!(!answer.text().contains(DEFAULT_SECRET));
    let status = answer.json();
    let account = &status["accounts"][0];
    assert_eq!(account["appid"], APPID);
    assert_eq!(
        (&account["ready"], &account["role"], &account["store"]),
        (&true.into(), &"fetches".into(), &"memory".into())
    );
    assert_eq!(account["last_refresh"]["reason"], "startup");
    assert!(account["life_left_seconds"].as_u64().unwrap() > 6000);
    assert_eq!(
        (&status["phase"], &status["ready"], &status["started"]),
        (&"serving".into(), &true.into(), &true.into())
    );
    let settings = status["settings"].as_array().unwrap();
    let find =
        |key: &str| settings.iter().find(|setting| setting["key"] == key).unwrap_or_else(|| panic!("{key}"));
    assert_eq!(
        (&find("secret")["value"], &find("secret")["origin"]),
        (&"***".into(), &"environment variable WECHAT_SIDECAR_SECRET".into())
    );
    assert_eq!(
        (&find("grace_period")["value"], &find("grace_period")["origin"]),
        (&"7s".into(), &"flag --grace-period".into())
    );
    assert_eq!(
        (&find("max_body")["value"], &find("max_body")["origin"]),
        (&"128MiB".into(), &"default".into())
    );

    rig.sim.fail_fetches(FetchFailure::Errcode(40164), u32::MAX);
    rig.sim.expire_now(APPID);
    rig.app.message("-").await;
    let status = rig.app.admin("/status").await.json();
    let account = &status["accounts"][0];
    assert_eq!((&account["problem_class"], &account["problem_errcode"]), (&"ip".into(), &40164.into()));
    let error = &status["errors"][0];
    assert_eq!((&error["kind"], &error["account"]), (&"token".into(), &APPID.into()));
    assert!(error["sentence"].as_str().unwrap().contains("IP whitelist"), "{error}");
    assert!(
        status["history"]["minutes"].as_array().unwrap().last().unwrap()["refusals"].as_u64().unwrap() >= 1
    );
}

#[tokio::test]
async fn a_limit_of_wechats_is_counted_and_shown_with_the_api_it_concerns() {
    let rig = Rig::plain(&[]).await;
    let said = |errcode: u32| Canned {
        body: format!(
            r#"{{"errcode":{errcode},"errmsg":"reach the limit rid: 62c66213-76542f8c-06b14179"}}"#
        ),
        ..Canned::default()
    };
    rig.sim.fail_calls(SEND, said(45011), 2);
    rig.sim.fail_calls("/cgi-bin/user/get", said(45009), 1);
    for _ in 0..2 {
        assert_eq!(rig.app.message("-").await.errcode(), 45011, "the app gets WeChat's words");
    }
    assert_eq!(rig.app.get("/cgi-bin/user/get?next_openid=secret-openid").await.errcode(), 45009);
    // Not of WeChat's limits.
    rig.sim.fail_calls("/cgi-bin/menu/get", said(46003), 1);
    assert_eq!(rig.app.get("/cgi-bin/menu/get").await.errcode(), 46003);

    let status = rig.app.admin("/status").await.json();
    let told: BTreeMap<_, _> = status["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|error| (error["subject"].as_str().unwrap_or_default(), error))
        .collect();
    assert_eq!(told.keys().copied().collect::<Vec<_>>(), ["GET /cgi-bin/user/get", &format!("POST {SEND}")]);
    let minute = told[&format!("POST {SEND}")[..]];
    assert_eq!(
        (&minute["kind"], &minute["account"], &minute["times"]),
        (&"wechat-limit".into(), &APPID.into(), &2.into())
    );
    let sentence = minute["sentence"].as_str().unwrap();
    assert!(
        sentence.contains("45011") && sentence.contains(SEND) && sentence.contains("rates"),
        "{sentence}"
    );
    let day = told["GET /cgi-bin/user/get"]["sentence"].as_str().unwrap();
    assert!(day.contains("45009") && !status.to_string().contains("secret-openid"), "{day}");
    let metrics = metrics(&rig.app).await;
    assert_eq!(
        (metrics[&calls("wechat-error", "45011")], metrics[&calls("wechat-error", "45009")]),
        (2.0, 1.0)
    );
}

#[tokio::test]
async fn probes_ask_about_all_accounts_or_one() {
    let wechat = Wechat::plain().await;
    wechat.sim.hold_fetches();
    let rig = Rig::unready(wechat, &[]).await;
    for probe in ["/startupz", "/readyz"] {
        assert_eq!(rig.app.admin(probe).await.status, 503, "{probe}");
    }
    assert_eq!(rig.app.admin("/livez").await.status, 200);
    rig.sim.release_fetches();
    rig.app.until_ready().await;
    assert_eq!(rig.app.admin("/startupz").await.status, 200);
    assert_eq!(rig.app.admin(&format!("/readyz?account={APPID}")).await.status, 200);
    let unknown = rig.app.admin("/readyz?account=wx-stranger").await;
    assert_eq!(unknown.status, 404, "{unknown:?}");
    for (method, path, status) in [
        (Method::POST, "/metrics", 405),
        (Method::DELETE, "/", 405),
        (Method::GET, "/quit", 405),
        (Method::POST, "/quit", 404),
        (Method::GET, "/nothing", 404),
        (Method::HEAD, "/", 200),
        (Method::GET, "/", 200),
    ] {
        let request = Request::builder().method(method.clone()).uri(rig.app.admin_url(path));
        let answer = rig.app.send(request.body(Full::default()).unwrap()).await;
        assert_eq!(answer.status, status, "{method} {path}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        if (path, status) == ("/", 200) {
            let policy = answer.header("content-security-policy").unwrap();
            assert!(policy.starts_with("default-src 'none'; ") && !policy.contains("unsafe"), "{policy}");
        }
    }
}

#[tokio::test]
async fn a_job_may_end_the_sidecar_where_that_is_allowed_and_no_web_page_may() {
    let wechat = Wechat::plain().await;
    let process = Process::ready(&wechat, &["--quit-endpoint", "true"]).await;
    process.app.message("-").await.assert_ok();
    let ask = async |more: &str| {
        let mut stream = TcpStream::connect(process.addresses.admin).await.unwrap();
        let head = format!(
            "POST /quit HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 0\r\nconnection: close\r\n{more}\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut reply = String::new();
        within("an answer", stream.read_to_string(&mut reply)).await.unwrap();
        reply
    };
    assert!(ask("origin: http://evil.example\r\n").await.starts_with("HTTP/1.1 403"));
    process.app.message("-").await.assert_ok();
    assert!(ask("").await.starts_with("HTTP/1.1 202"));
    let (status, log) = process.end().await;
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("POST /quit: stopping"), "{log}");
}

#[tokio::test]
async fn the_line_of_a_call_says_what_wechat_said() {
    let wechat = Wechat::plain().await;
    let process = Process::ready(&wechat, &["--log-format", "json"]).await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    let request =
        process.app.request(Method::GET, "/sns/jscode2session?js_code=bad").header("traceparent", &parent);
    let answer = process.app.send(request.body(Full::default()).unwrap()).await;
    let told = answer.json()["errmsg"].as_str().unwrap().to_owned();
    let rid = told.rsplit(' ').next().unwrap();
    process.until_logged(r#""target":"access""#).await;
    let log = process.output();
    let line = log.lines().find(|line| line.contains(r#""target":"access""#)).unwrap();
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!(
        (&line["errcode"], &line["rid"], &line["trace"]),
        (&40029.into(), &rid.into(), &trace.into()),
        "{line}"
    );
    let seen = wechat.sim.seen().pop().unwrap();
    let passed = seen.headers.iter().find(|(name, _)| name == "traceparent");
    assert_eq!(passed.map(|(_, value)| value), Some(&parent), "it passes as it came");
    assert!(line["own_us"].as_u64().is_some() && line["keys"] == "js_code", "{line}");
    process.app.post(SEND, "{}").await;
}
