//! What the commands say and the codes they end with.

#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

use std::ffi::OsString;
use std::net::TcpListener;

use wechat_sidecar::sim::{DEFAULT_SECRET, FOREVER, FetchFailure};

use crate::wechat_process::{Process, command, run};
use crate::wechat_rig::{APPID, Wechat};

fn check(wechat: &Wechat) -> Vec<OsString> {
    let mut args = vec![OsString::from("check")];
    args.extend(wechat.settings(&[]));
    args
}

fn secret(value: &str) -> Vec<(OsString, OsString)> {
    vec![("WECHAT_SIDECAR_SECRET".into(), value.into())]
}

#[tokio::test]
async fn the_log_names_the_real_addresses_in_both_formats() {
    for format in ["json", "text"] {
        let wechat = Wechat::tls().await;
        let process = Process::ready(&wechat, &["--log-format", format, "--workers", "2"]).await;
        assert!(process.addresses.proxy.port() != 0 && process.addresses.admin.port() != 0);
        assert_ne!(process.addresses.proxy, process.addresses.admin);
        process.app.message("c").await.assert_ok();
        process.until_logged("custom/send").await;
        process.signal("-TERM");
        let (status, log) = process.end().await;
        assert_eq!(status.code(), Some(0));
        if format == "json" {
            for line in log.lines() {
                let line: serde_json::Value =
                    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
                assert!(line["level"].is_string() && line["message"].is_string(), "{line}");
            }
        }
        let calls = log.lines().filter(|line| line.contains("/cgi-bin/message/custom/send")).count();
        assert_eq!(calls, 1, "one access line a call: {log}");
    }
}

#[tokio::test]
async fn a_taken_port_is_69_and_a_sentence() {
    let wechat = Wechat::plain().await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (flag, setting) in [("--listen", "listen"), ("--admin-listen", "admin_listen")] {
        for workers in ["1", "3"] {
            let mut args: Vec<OsString> =
                ["run", "--appid", APPID, "--workers", workers].map(Into::into).to_vec();
            args.extend(["--upstream".into(), OsString::from(wechat.sim.base_url())]);
            for (name, free) in [("--listen", "127.0.0.1:0"), ("--admin-listen", "127.0.0.1:0")] {
                args.push(name.into());
                args.push(if name == flag { (&address).into() } else { free.into() });
            }
            let ended = run(command(args, wechat.env())).await;
            assert_eq!(ended.code, Some(69), "{}", ended.err);
            let said = format!("{setting} = {address}: another process listens there already");
            assert!(ended.err.contains(&said), "{}", ended.err);
        }
    }
    assert_eq!(wechat.sim.counts().requests, 0, "nothing was fetched");
}

#[tokio::test]
async fn a_second_sidecar_on_the_same_port_is_refused_whatever_its_workers() {
    let wechat = Wechat::plain().await;
    let first = Process::ready(&wechat, &["--workers", "2"]).await;
    for workers in ["1", "2"] {
        let mut args: Vec<OsString> =
            ["run", "--appid", APPID, "--workers", workers].map(Into::into).to_vec();
        args.extend(["--upstream".into(), OsString::from(wechat.sim.base_url())]);
        args.extend(["--listen".into(), OsString::from(first.addresses.proxy.to_string())]);
        args.extend(["--admin-listen", "127.0.0.1:0"].map(OsString::from));
        let ended = run(command(args, wechat.env())).await;
        assert_eq!(ended.code, Some(69), "workers {workers}: {}", ended.err);
    }
    first.app.message("the first goes on").await.assert_ok();
}

#[tokio::test]
async fn bad_settings_are_64_and_all_of_them_are_told() {
    let args = [
        "run",
        "--appid",
        "not an appid",
        "--upstream",
        "http://api.weixin.qq.com",
        "--listen",
        "nowhere",
        "--workers",
        "0",
        "--token-wait",
        "soon",
        "--replay-limit",
        "1GiB",
    ];
    let hidden = "s3cret with spaces";
    let ended = run(command(args, secret(hidden))).await;
    assert_eq!(ended.code, Some(64), "{}", ended.err);
    assert_eq!(ended.out, "");
    for key in ["appid", "upstream", "listen", "workers", "token_wait", "replay_limit", "secret"] {
        assert!(ended.err.contains(key), "{key} is not told: {}", ended.err);
    }
    assert!(!ended.err.contains(hidden), "{}", ended.err);
}

#[tokio::test]
async fn check_of_a_good_configuration_is_0() {
    let wechat = Wechat::tls().await;
    let ended = run(command(check(&wechat), wechat.env())).await;
    assert_eq!(ended.code, Some(0), "{}{}", ended.out, ended.err);
    assert!(ended.out.contains(&format!("{APPID}: WeChat gave a token")), "{}", ended.out);
    let token = wechat.sim.live_token(APPID).unwrap();
    assert!(!ended.out.contains(&token) && !ended.out.contains(DEFAULT_SECRET));
    assert_eq!(wechat.sim.counts().requests, 1);
}

#[tokio::test]
async fn check_of_a_bad_one_is_1_and_says_what_to_do() {
    let wechat = Wechat::tls().await;
    let wrong = "ffffffffffffffffffffffffffffffff";
    let ended = run(command(check(&wechat), secret(wrong))).await;
    assert_eq!(ended.code, Some(1), "{}{}", ended.out, ended.err);
    let said = format!("{}{}", ended.out, ended.err);
    assert!(said.contains("40125") && said.contains("put the current one into secret"), "{said}");
    assert!(said.contains("127.0.0.1 is found at 127.0.0.1"), "{said}");
    assert!(said.contains("The settings have to change; trying again does not help"), "{said}");
    assert!(!said.contains(wrong));

    wechat.sim.fail_fetches(FetchFailure::Errcode(40164), FOREVER);
    let ended = run(command(check(&wechat), wechat.env())).await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.out.contains("101.45.43.1") && ended.out.contains("whitelist"), "{}", ended.out);
    assert!(ended.out.contains("What counts is the address WeChat saw"), "{}", ended.out);
}

#[tokio::test]
async fn check_of_an_upstream_that_is_not_there_or_not_trusted_is_1() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let args = ["check", "--appid", APPID, "--upstream", &format!("https://{free}")];
    let ended = run(command(args, secret(DEFAULT_SECRET))).await;
    assert_eq!(ended.code, Some(1), "{}{}", ended.out, ended.err);
    assert!(ended.out.contains("refused"), "{}", ended.out);

    let wechat = Wechat::tls().await;
    let args = ["check", "--appid", APPID, "--upstream", &wechat.sim.tls_base_url().unwrap()];
    let ended = run(command(args, secret(DEFAULT_SECRET))).await;
    assert_eq!(ended.code, Some(1), "{}{}", ended.out, ended.err);
    assert!(ended.out.contains("certificate") && ended.out.contains("upstream_ca_file"), "{}", ended.out);
    assert!(!format!("{}{}", ended.out, ended.err).contains(DEFAULT_SECRET));
}

#[tokio::test]
async fn wait_ends_when_the_sidecar_is_ready() {
    let wechat = Wechat::plain().await;
    wechat.sim.hold_fetches();
    let process = Process::start(&wechat, &["--fetch-timeout", "1m"]).await;
    let admin = process.addresses.admin.to_string();
    let wait = |timeout: &str| command(["wait", "--admin-listen", &admin, "--timeout", timeout], []);
    let ended = run(wait("0s")).await;
    assert_eq!(ended.code, Some(1), "{}", ended.err);
    assert!(ended.err.contains(APPID) && ended.err.contains("on the way"), "{}", ended.err);
    let waiting = tokio::spawn(run(wait("1m")));
    wechat.sim.release_fetches();
    let ended = waiting.await.unwrap();
    assert_eq!((ended.code, ended.out.as_str()), (Some(0), "ready\n"), "{}", ended.err);
}

#[tokio::test]
async fn wait_gives_up_with_the_reason() {
    let wechat = Wechat::plain().await;
    wechat.sim.fail_fetches(FetchFailure::Errcode(40164), FOREVER);
    let process = Process::start(&wechat, &[]).await;
    process.until_logged("no token was fetched").await;
    let admin = process.addresses.admin.to_string();
    let ended = run(command(["wait", "--admin-listen", &admin, "--timeout", "300ms"], [])).await;
    assert_eq!(ended.code, Some(1));
    for word in ["not ready after 300ms", APPID, "101.45.43.1", "whitelist"] {
        assert!(ended.err.contains(word), "{word}: {}", ended.err);
    }
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let ended = run(command(["wait", "--admin-listen", &free, "--timeout", "0s"], [])).await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.err.contains("nothing listens at"), "{}", ended.err);
}
