//! Targets, methods and hosts that would lead elsewhere: nothing ever leaves for another host, and no path brings
//! anyone a credential that it should not.

use crate::rig::{RawUpstream, SECRET, Sidecar};

fn request(line: &str) -> String {
    format!("{line} HTTP/1.1\r\nHost: api.weixin.qq.com\r\n\r\n")
}

/// Each request line gets this error of ours, and nothing is forwarded.
async fn refused(rows: &[(&str, &str)], status: u16, cause: &str) {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::before(&upstream).await;
    for (why, line) in rows {
        let reply = sidecar.call(request(line)).await;
        assert_eq!((reply.status, reply.cause()), (status, cause), "{why}: {line} got {reply:?}");
        reply.assert_ours(status, cause);
    }
    assert_eq!(upstream.connections(), 0, "nothing reached the upstream");
}

#[tokio::test]
async fn a_target_that_names_a_host_gets_400() {
    refused(
        &[
            ("absolute form, of a host beside WeChat's", "GET http://mp.weixin.qq.com/cgi-bin/x"),
            ("absolute form, of another host", "GET https://evil.example/cgi-bin/x"),
            ("absolute form with a port", "POST http://127.0.0.1:80/cgi-bin/x"),
            ("absolute form with user info", "GET http://a:b@evil.example/cgi-bin/x"),
            ("absolute form without a path", "GET http://evil.example"),
            ("absolute form, another scheme", "GET ftp://evil.example/cgi-bin/x"),
            ("scheme-relative", "GET //evil.example/cgi-bin/x"),
            ("scheme-relative, nothing else", "GET //"),
            ("scheme-relative, three slashes", "GET ///evil.example/cgi-bin/x"),
            ("behind an account's prefix", "GET //wx0123456789abcdef/cgi-bin/x"),
            ("asterisk form", "OPTIONS *"),
            ("asterisk form of a GET", "GET *"),
            ("authority form without CONNECT", "GET api.weixin.qq.com:443"),
        ],
        400,
        "bad-target",
    )
    .await;
}

#[tokio::test]
async fn a_target_that_is_no_target_gets_400_from_the_parser() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::before(&upstream).await;
    for (why, line) in [
        ("a host and nothing else", "GET @evil.example/"),
        ("a host behind an @", "GET @evil.example/cgi-bin/x"),
        ("a port and nothing else", "GET :80/"),
        ("a port", "GET :80"),
        ("a path without its slash", "GET cgi-bin/x"),
        ("a query without a path", "GET ?a=b"),
        ("a backslash for the slash", "GET \\evil.example\\cgi-bin"),
        ("a percent sign", "GET %2fcgi-bin/x"),
    ] {
        let reply = sidecar.call(request(line)).await;
        assert_eq!(reply.status, 400, "{why}: {line} got {reply:?}");
    }
    assert_eq!(upstream.connections(), 0, "nothing reached the upstream");
}

#[tokio::test]
async fn a_method_that_is_not_for_us_gets_405() {
    refused(
        &[
            ("a tunnel to the upstream", "CONNECT api.weixin.qq.com:443"),
            ("a tunnel elsewhere", "CONNECT evil.example:80"),
            ("an echo of the credential", "TRACE /cgi-bin/x"),
        ],
        405,
        "method-not-allowed",
    )
    .await;
}

#[tokio::test]
async fn a_path_that_means_a_guarded_one_to_a_normalizer_gets_400() {
    refused(
        &[
            ("dot segments to the token", "GET /sns/jscode2session/../../cgi-bin/token"),
            ("dot segments from a guarded path", "GET /sns/jscode2session/../../cgi-bin/user/get"),
            ("one dot segment", "GET /cgi-bin/x/../token"),
            ("a dot", "GET /cgi-bin/./token"),
            ("encoded dots", "GET /cgi-bin/x/%2e%2e/token"),
            ("encoded dots, upper case", "GET /cgi-bin/x/%2E%2E/token"),
            ("half encoded dots", "GET /cgi-bin/x/.%2e/token"),
            ("dots encoded twice", "GET /cgi-bin/x/%252e%252e/token"),
            ("an encoded slash", "GET /cgi-bin%2Ftoken"),
            ("an encoded slash, lower case", "GET /cgi-bin%2ftoken"),
            ("an encoded backslash", "GET /cgi-bin%5Ctoken"),
            ("an encoded letter", "GET /cgi-bin/%74oken"),
            ("two slashes", "GET /cgi-bin//token"),
            ("a slash at the end", "GET /cgi-bin/token/"),
            ("another case", "GET /CGI-BIN/token"),
            ("another case of the last", "POST /cgi-bin/Stable_Token"),
            ("parameters of a segment", "GET /cgi-bin/token;a=b"),
            ("parameters in the middle", "GET /cgi-bin;a=b/token"),
            ("an encoded NUL", "GET /cgi-bin/token%00"),
            ("an encoded space", "GET /cgi-bin/token%20"),
            ("up from the root", "GET /../cgi-bin/token"),
            ("the secret's path", "GET /sns//jscode2session"),
            ("the secret's path in capitals", "GET /SNS/JSCODE2SESSION"),
            ("a user's path left by dots", "GET /sns/x/../../cgi-bin/user/get"),
            ("a user's path entered by dots", "GET /cgi-bin/../sns/userinfo"),
            ("behind an account's prefix", "GET /wx0123456789abcdef/cgi-bin/x/../token"),
        ],
        400,
        "ambiguous-path",
    )
    .await;
}

#[tokio::test]
async fn a_path_with_a_backslash_never_reaches_a_guarded_one() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::before(&upstream).await;
    for line in ["GET /cgi-bin\\token", "GET /cgi-bin/x\\..\\token", "GET /sns\\jscode2session"] {
        let reply = sidecar.call(request(line)).await;
        assert_eq!(reply.status, 400, "{line} got {reply:?}");
    }
    assert_eq!(upstream.connections(), 0, "nothing reached the upstream");
}

#[tokio::test]
async fn an_odd_path_that_means_no_other_row_goes_byte_for_byte() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::set(&upstream, &[("allow", "/**")]).await;
    for path in [
        "/",
        "/cgi-bin/a/../b",
        "/cgi-bin/./a",
        "/a%2Fb//c",
        "/a%2fb",
        "/cgi-bin/a/",
        "/CGI-BIN/A",
        "/a;b=c/d",
        "/%E4%B8%AD%E6%96%87",
        "/中文",
        "/{}|^\"",
        "/a%zz%",
        "/~!$&'()*+,=:@-._",
        "/a+b%20c",
        "/cgi-bin/tokens",
        "/cgi-bin/token/get",
        "/x/cgi-bin/token",
    ] {
        let reply = sidecar.call(request(&format!("GET {path}"))).await;
        assert_eq!(reply.status, 200, "{path}: {reply:?}");
        assert_eq!(upstream.the_call().line(), format!("GET {path}?access_token=TOKEN-1 HTTP/1.1"));
    }
}

#[tokio::test]
async fn whatever_the_host_the_call_goes_to_the_upstream_under_its_name() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::configured(&upstream, |config| config.proxy.gate.names = None).await;
    for host in
        ["evil.example", "evil.example:443", "[::1]", "", "a b", "api.weixin.qq.com@evil.example", "中文"]
    {
        let raw = format!(
            "GET /cgi-bin/x HTTP/1.1\r\nHost: {host}\r\nX-Forwarded-Host: evil.example\r\nForwarded: host=evil.example\r\n\r\n"
        );
        let reply = sidecar.call(raw).await;
        assert_eq!(reply.status, 200, "{host}: {reply:?}");
        assert_eq!(upstream.the_call().all("host"), [upstream.address.to_string()], "{host}");
    }
}

#[tokio::test]
async fn a_token_is_asked_for_and_answered_here() {
    let upstream = RawUpstream::start().await;
    let sidecar = Sidecar::before(&upstream).await;
    let line =
        format!("GET /cgi-bin/token?grant_type=client_credential&appid=wx0123456789abcdef&secret={SECRET}");
    let reply = sidecar.call(request(&line)).await;
    assert_eq!(reply.status, 200);
    assert!(!reply.text().contains("TOKEN-1"), "the app gets a placeholder: {}", reply.text());
    assert_eq!(upstream.connections(), 0);
}
