//! Nothing leaks back: an upstream that echoes the token and the secret, in headers and bodies, whole and in pieces.

use crate::rig::{RawUpstream, Reply, SECRET, Sidecar, Step, say};

const TOKEN: &str = "TOKEN-1";

/// What the app gets from an upstream that does this.
async fn told(request: &str, steps: Vec<Step>) -> Reply {
    let upstream = RawUpstream::playing([steps]).await;
    let sidecar = Sidecar::before(&upstream).await;
    let reply = sidecar.call(request).await;
    assert_eq!(upstream.calls(), 1);
    let text = format!("{:?} {}", reply.headers, reply.text());
    assert!(!text.contains(TOKEN) && !text.contains(SECRET), "{request:?}: {text}");
    reply
}

fn masked(text: &str) -> String {
    text.replace(TOKEN, &"*".repeat(TOKEN.len())).replace(SECRET, &"*".repeat(SECRET.len()))
}

fn echoes() -> Vec<String> {
    vec![
        format!(r#"{{"errcode":0,"request":{{"request_url":"access_token={TOKEN}&a=1"}}}}"#),
        format!(r#"{{"errcode":40003,"errmsg":"secret={SECRET} rid: 1"}}"#),
        format!(r#"{{"a":"{TOKEN}{TOKEN}{SECRET}{TOKEN}","b":"TOKEN","c":"{}"}}"#, &SECRET[..31]),
        format!("[\"{TOKEN}\"]"),
        format!("<html>{SECRET}</html>"),
        format!(" \r\n{{\"x\":\"{TOKEN}"),
        format!("\u{feff}{{\"x\":\"{TOKEN}\"}}"),
        format!(r#"{{"pad":"{}","x":"{TOKEN}"}}"#, "p".repeat(20_000)),
    ]
}

#[tokio::test]
async fn a_body_that_echoes_a_credential_comes_with_as_many_stars() {
    for path in
        ["/cgi-bin/openapi/rid/get", "/sns/jscode2session?js_code=1", "/cgi-bin/clear_quota/v2", "/wxa/any"]
    {
        for body in echoes() {
            let request = format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
            for content_type in ["application/json", "text/plain", "image/jpeg"] {
                let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\n");
                let whole = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
                let reply = told(&request, say(&whole)).await;
                assert_eq!((reply.status, reply.text()), (200, masked(&body)), "{path}");
            }
        }
    }
}

#[tokio::test]
async fn a_credential_is_masked_however_the_reply_is_cut() {
    let request = "GET /cgi-bin/x HTTP/1.1\r\nHost: a\r\n\r\n";
    let body = format!(r#"{{"errcode":0,"url":"access_token={TOKEN}&a=1","s":"{SECRET}","t":"TOKEN-"}}"#);
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";
    let spelled = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
    let reply = told(request, vec![Step::ReadBody, Step::Spell(spelled.into_bytes())]).await;
    assert_eq!(reply.text(), masked(&body));
    let mut chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n");
    for byte in body.chars() {
        chunked.push_str(&format!("1\r\n{byte}\r\n"));
    }
    chunked.push_str("0\r\n\r\n");
    let reply = told(request, say(&chunked)).await;
    assert_eq!(reply.text(), masked(&body));
    let closed = vec![Step::ReadBody, Step::Say(format!("{head}\r\n{body}").into_bytes()), Step::Close];
    assert_eq!(told(request, closed).await.text(), masked(&body));
}

#[tokio::test]
async fn a_header_that_echoes_a_credential_is_masked() {
    let request = "GET /cgi-bin/x HTTP/1.1\r\nHost: a\r\n\r\n";
    let answer = format!(
        "HTTP/1.1 302 Found\r\nLocation: https://elsewhere/?access_token={TOKEN}\r\nX-Secret: {SECRET}\r\nContent-Length: 0\r\n\r\n"
    );
    let reply = told(request, say(&answer)).await;
    assert_eq!(reply.header("location"), Some(&*masked(&format!("https://elsewhere/?access_token={TOKEN}"))));
    assert_eq!(reply.header("x-secret"), Some(&*masked(SECRET)));
}

#[tokio::test]
async fn a_refused_token_and_the_one_after_it_are_both_masked() {
    let refused = format!(r#"{{"errcode":42001,"errmsg":"access_token expired {TOKEN}"}}"#);
    let answer = |body: &str| say(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    let upstream =
        RawUpstream::playing([answer(&refused), answer(r#"{"was":"TOKEN-1","is":"TOKEN-2"}"#)]).await;
    let sidecar = Sidecar::before(&upstream).await;
    let reply = sidecar.call("GET /cgi-bin/x HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(reply.text(), r#"{"was":"*******","is":"*******"}"#);
}

#[tokio::test]
async fn a_token_that_was_replaced_is_masked_in_later_calls_and_in_plain_text() {
    let answer = |body: &str| say(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    let refused = r#"{"errcode":42001,"errmsg":"access_token expired"}"#;
    // As rid/get does: it speaks of an earlier call, whose token WeChat may take for five more minutes.
    let upstream = RawUpstream::playing([
        answer(refused),
        answer("{}"),
        answer("url a?access_token=TOKEN-1 and TOKEN-2"),
    ])
    .await;
    let sidecar = Sidecar::before(&upstream).await;
    let request = "GET /cgi-bin/x HTTP/1.1\r\nHost: a\r\n\r\n";
    sidecar.call(request).await.assert_wechats(200, "{}");
    let later = sidecar.call(request).await;
    assert_eq!(later.text(), "url a?access_token=******* and *******");
}
