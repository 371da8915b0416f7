//! Who is listened to at all: no page of a browser on this machine, nobody who came by another's name, and where a
//! header is asked for, nobody without it.

use crate::rig::{RawUpstream, Reply, Sidecar};

async fn ask(sidecar: &Sidecar, headers: &str) -> Reply {
    sidecar.call(format!("GET /cgi-bin/x HTTP/1.1\r\n{headers}\r\n")).await
}

#[tokio::test]
async fn a_page_in_a_browser_on_this_machine_is_turned_away() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::before(&upstream).await;
    for (why, headers) in [
        (
            "fetch() from another site",
            "Origin: https://evil.example\r\nSec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: cors\r\n",
        ),
        ("a form of another site", "Origin: https://evil.example\r\n"),
        ("a sandboxed frame", "Origin: null\r\n"),
        (
            "a picture, which has no Origin",
            "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\nSec-Fetch-Dest: image\r\n",
        ),
        ("a page of another port of this machine", "Sec-Fetch-Site: same-site\r\n"),
        ("a page that seems to be ours", "Sec-Fetch-Site: same-origin\r\n"),
        ("an extension", "Origin: chrome-extension://abcdefgh\r\n"),
    ] {
        let reply = ask(&sidecar, &format!("Host: 127.0.0.1:7200\r\n{headers}")).await;
        reply.assert_ours(403, "browser");
        assert_eq!(reply.all("access-control-allow-origin"), [""; 0], "{why}");
    }
    let preflight = "OPTIONS /cgi-bin/x HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: https://evil.example\r\nAccess-Control-Request-Method: POST\r\n\r\n";
    sidecar.call(preflight).await.assert_ours(403, "browser");
    let token = "GET /cgi-bin/token?grant_type=client_credential&appid=wx0123456789abcdef&secret=x HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: null\r\n\r\n";
    sidecar.call(token).await.assert_ours(403, "browser");
    assert_eq!(upstream.connections(), 0, "nothing reached the upstream");
    for app in ["", "Sec-Fetch-Mode: cors\r\nUser-Agent: node\r\n", "Referer: https://servicewechat.com/\r\n"]
    {
        assert_eq!(ask(&sidecar, &format!("Host: 127.0.0.1\r\n{app}")).await.cause(), "-", "{app}");
    }
}

#[tokio::test]
async fn a_name_that_was_made_to_resolve_to_this_machine_is_turned_away() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::before(&upstream).await;
    for host in [
        "evil.example",
        "evil.example:7200",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "evil.example@127.0.0.1",
        "api.weixin.qq.com.evil.example",
        "a b",
        "中文",
    ] {
        ask(&sidecar, &format!("Host: {host}\r\n")).await.assert_ours(421, "misdirected");
    }
    assert_eq!(upstream.connections(), 0, "nothing reached the upstream");
    for host in [
        "127.0.0.1:7200",
        "localhost:7200",
        "[::1]:7200",
        "10.0.0.7",
        "api.weixin.qq.com",
        "api2.weixin.qq.com:80",
    ] {
        assert_eq!(ask(&sidecar, &format!("Host: {host}\r\n")).await.cause(), "-", "{host}");
    }
    assert_eq!(sidecar.call("GET /cgi-bin/x HTTP/1.0\r\n\r\n").await.cause(), "-", "HTTP/1.0 needs no Host");
    let named = Sidecar::set(&upstream, &[("listen_hosts", "wechat-sidecar,sidecar.local")]).await;
    assert_eq!(ask(&named, "Host: sidecar.local:7200\r\n").await.cause(), "-");
    assert_eq!(ask(&named, "Host: a\r\n").await.cause(), "misdirected");
}

#[tokio::test]
async fn an_app_that_was_tricked_into_a_request_does_not_know_the_header() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::set(&upstream, &[("require_header", "X-From-App: yes")]).await;
    for headers in [
        "",
        "X-From-App: no\r\n",
        "X-From-App:\r\n",
        "X-From-App: yes\r\nX-From-App: yes\r\n",
        "X-From-Apps: yes\r\n",
    ] {
        ask(&sidecar, &format!("Host: 127.0.0.1\r\n{headers}")).await.assert_ours(403, "required-header");
    }
    let token = "GET /cgi-bin/token?grant_type=client_credential&appid=wx0123456789abcdef&secret=x HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n";
    sidecar.call(token).await.assert_ours(403, "required-header");
    assert_eq!(upstream.connections(), 0, "nothing reached the upstream");
    let reply = ask(&sidecar, "Host: 127.0.0.1\r\nA: 1\r\nx-from-app: yes\r\n").await;
    assert_eq!(reply.cause(), "-");
    let head = upstream.the_call().head;
    assert!(
        head.contains("A: 1\r\n") && !head.to_ascii_lowercase().contains("x-from-app"),
        "it is for us alone: {head}"
    );
}
