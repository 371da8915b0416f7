//! What may be called: by default the paths that are known, by lists what they say, and never a path that would be
//! another one to whoever normalizes it.

use std::fmt::Write;

use crate::rig::{RawUpstream, Reply, SECRET, Sidecar};

async fn ask(sidecar: &Sidecar, line: &str) -> Reply {
    sidecar.call(format!("{line} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")).await
}

/// Each line passes, byte for byte.
async fn passes(upstream: &RawUpstream, sidecar: &Sidecar, lines: &[&str]) {
    for line in lines {
        let reply = ask(sidecar, line).await;
        assert_eq!((reply.status, reply.cause()), (200, "-"), "{line}: {reply:?}");
        let expected = format!("{line}?access_token=TOKEN-1 HTTP/1.1");
        assert_eq!(upstream.the_call().line(), expected);
    }
}

/// Each line is refused, and nothing of it reaches the upstream.
async fn refused(upstream: &RawUpstream, sidecar: &Sidecar, lines: &[&str], status: u16, cause: &str) {
    let before = upstream.bytes();
    for line in lines {
        let reply = ask(sidecar, line).await;
        assert_eq!((reply.status, reply.cause()), (status, cause), "{line}: {reply:?}");
        reply.assert_ours(status, cause);
        if status == 403 {
            assert!(reply.text().contains(r#""errcode":48001"#), "{reply:?}");
        }
    }
    assert_eq!(upstream.bytes(), before, "nothing reached the upstream");
}

#[tokio::test]
async fn by_default_every_known_path_passes_and_nothing_else() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::before(&upstream).await;
    for first in wechat_sidecar::policy::KNOWN.iter().filter(|first| **first != "sns") {
        passes(&upstream, &sidecar, &[&format!("POST /{first}/any/thing"), &format!("GET /{first}/x")]).await;
    }
    let unknown = [
        "GET /",
        "GET /x",
        "GET /cgi-bin",
        "GET /cgi-binx/y",
        "GET /x/cgi-bin/y",
        "POST /mp/getmassendmsg",
        "GET /connect/oauth2/authorize",
        "GET /.well-known/x",
        "GET /CGI-BIN/user/get",
        "GET /metrics",
        "DELETE /x/y",
    ];
    refused(&upstream, &sidecar, &unknown, 403, "not-allowed").await;
    let told = ask(&sidecar, "GET /new/path").await.text();
    assert!(
        told.contains("GET /new/path is in no rule of allow")
            && told.contains(r#"[\"default\", \"/new/path/**\"]"#),
        "{told}"
    );
}

#[tokio::test]
async fn a_rule_with_capitals_holds_for_the_path_in_lower_case_too() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::set(&upstream, &[("deny", "/wxa/getLiveInfo")]).await;
    refused(&upstream, &sidecar, &["GET /wxa/getLiveInfo"], 403, "not-allowed").await;
    refused(&upstream, &sidecar, &["GET /wxa/getliveinfo", "GET /wxa/GETLIVEINFO"], 400, "ambiguous-path")
        .await;
    passes(&upstream, &sidecar, &["GET /wxa/getwxacode"]).await;
}

#[tokio::test]
async fn lists_say_what_passes_and_deny_wins_and_is_named() {
    let upstream = RawUpstream::start().await;
    let settings = [
        ("allow", "POST /cgi-bin/message/**, GET /cgi-bin/user/get, /wxa/get*, /new/*/x"),
        ("deny", "/cgi-bin/message/mass/**, * /wxa/getpaidunionid"),
    ];
    let sidecar = Sidecar::set(&upstream, &settings).await;
    let good = [
        "POST /cgi-bin/message/custom/send",
        "GET /cgi-bin/user/get",
        "POST /wxa/getwxacode",
        "PUT /new/thing/x",
    ];
    passes(&upstream, &sidecar, &good).await;
    let bad = [
        "GET /cgi-bin/message/custom/send",
        "POST /cgi-bin/user/get",
        "GET /cgi-bin/user/get/",
        "GET /cgi-bin/user/info",
        "POST /wxa/msg_sec_check",
        "POST /new/x",
        "POST /new/a/b/x",
        "POST /cgi-bin/message/mass/send",
        "GET /wxa/getpaidunionid",
        "GET /sns/jscode2session",
    ];
    refused(&upstream, &sidecar, &bad, 403, "not-allowed").await;
    let told = ask(&sidecar, "POST /cgi-bin/message/mass/send").await.text();
    assert!(told.contains("denied by the rule /cgi-bin/message/mass/**"), "{told}");
    let token =
        format!("GET /cgi-bin/token?grant_type=client_credential&appid=wx0123456789abcdef&secret={SECRET}");
    assert!(
        ask(&sidecar, &token).await.text().contains("WECHAT-SIDECAR_"),
        "what is answered here goes nowhere"
    );
}

#[tokio::test]
async fn a_path_that_normalizes_into_what_is_denied_or_out_of_what_is_allowed_is_refused() {
    let upstream = RawUpstream::start().await;
    let settings = [("allow", "/cgi-bin/**, /wxa/Exact"), ("deny", "/cgi-bin/menu/**")];
    let sidecar = Sidecar::set(&upstream, &settings).await;
    let ambiguous = [
        "GET /cgi-bin/x/../menu/get",
        "GET /cgi-bin//menu/get",
        "GET /cgi-bin/./menu/get",
        "GET /cgi-bin/%6denu/get",
        "GET /cgi-bin/%6Denu/get",
        "GET /cgi-bin/%256denu/get",
        "GET /cgi-bin/menu%2Fget",
        "GET /cgi-bin/x%2f..%2fmenu/get",
        "GET /cgi-bin/x%5c..%5cmenu/get",
        "GET /cgi-bin/Menu/get",
        "GET /cgi-bin/MENU/get",
        "GET /cgi-bin/menu;a=b/get",
        "GET /cgi-bin/x/%2e%2e/menu/get",
        "GET /cgi-bin/x/.%2E/menu/get",
        "GET /cgi-bin/menu%00/get",
        "GET /cgi-bin/../wxa/x",
        "GET /cgi-bin/x/../../shop/y",
        "GET /cgi-bin/%2e%2e/secret",
        "GET /cgi-bin/..",
        "GET /cgi-bin/..%2f..%2fshop/y",
        "GET /wx0123456789abcdef/cgi-bin/x/../menu/get",
    ];
    refused(&upstream, &sidecar, &ambiguous, 400, "ambiguous-path").await;
    // What is denied as it stands is told so, whatever it would be once normalized.
    let denied = [
        "GET /cgi-bin/menu/../user/get",
        "GET /cgi-bin/menu/%2e%2e/user/get",
        "GET /wxa/exact",
        "GET /wxa/Exact/../x",
    ];
    refused(&upstream, &sidecar, &denied, 403, "not-allowed").await;
    passes(
        &upstream,
        &sidecar,
        &["GET /wxa/Exact", "GET /cgi-bin/user/../user/get", "GET /cgi-bin/user%2Fget"],
    )
    .await;
}

#[tokio::test]
async fn a_backslash_does_not_even_get_as_far() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::set(&upstream, &[("deny", "/cgi-bin/menu/**")]).await;
    for line in [
        "GET /cgi-bin\\menu\\get",
        "GET /cgi-bin/x\\..\\menu/get",
        "GET /wxa/x\\y\\..\\..\\..\\cgi-bin/menu/get",
    ] {
        let reply = ask(&sidecar, line).await;
        assert!([400, 403].contains(&reply.status), "{line}: {reply:?}");
    }
    assert_eq!(upstream.connections(), 0);
}

#[tokio::test]
async fn each_account_has_its_own_lists_and_a_body_that_names_another_account_falls_under_that_ones() {
    let upstream = RawUpstream::start().await;
    let (tokens, files) = (crate::rig::Tokens::start().await, tempfile::tempdir().unwrap());
    let mut toml = String::from("allow = ['default', '/new/**']\n");
    for (appid, lists) in [
        ("wx0123456789abcdef", "deny = ['POST /cgi-bin/clear_quota/v2', '/cgi-bin/menu/**']"),
        ("wxfedcba9876543210", "allow = ['/cgi-bin/**']"),
        ("wx2222222222222222", ""),
    ] {
        writeln!(toml, "[[account]]\nappid = '{appid}'\nsecret = '{SECRET}'\n{lists}").unwrap();
    }
    let path = files.path().join("sidecar.toml");
    std::fs::write(&path, toml).unwrap();
    let flags = [
        ("config", path.to_str().unwrap()),
        ("upstream", &upstream.origin()),
        ("listen", "127.0.0.1:0"),
        ("admin_listen", "127.0.0.1:0"),
        ("workers", "1"),
        ("token_wait", "10s"),
    ];
    let flags = flags.map(|(key, value)| (key, value.to_owned())).into();
    let mut config = wechat_sidecar::config::load(flags, []).unwrap_or_else(|told| panic!("{told}"));
    config.source.origin = tokens.origin();
    let sidecar = crate::rig::start(config).await;
    for (line, cause) in [
        ("GET /cgi-bin/user/get", "-"),
        ("GET /new/x", "-"),
        ("GET /cgi-bin/menu/get", "not-allowed"),
        ("GET /wxfedcba9876543210/cgi-bin/menu/get", "-"),
        ("GET /wxfedcba9876543210/new/x", "not-allowed"),
        ("GET /wxfedcba9876543210/wxa/x", "not-allowed"),
        ("GET /wx2222222222222222/new/x", "-"),
        ("GET /wx2222222222222222/cgi-bin/menu/get", "-"),
    ] {
        assert_eq!(ask(&sidecar, line).await.cause(), cause, "{line}");
    }
    let clear = |prefix: &str, appid: &str| {
        let body = format!(r#"{{"appid":"{appid}"}}"#);
        format!(
            "POST {prefix}/cgi-bin/clear_quota/v2 HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let other = "/wx2222222222222222";
    assert_eq!(sidecar.call(clear(other, "wxfedcba9876543210")).await.cause(), "-");
    let before = upstream.bytes();
    assert_eq!(sidecar.call(clear(other, "wx0123456789abcdef")).await.cause(), "not-allowed");
    assert_eq!(upstream.bytes(), before);
}
