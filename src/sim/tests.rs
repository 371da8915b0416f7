//! The simulated WeChat over real sockets: what a client sees, and what the levers do to it.

use std::net::SocketAddr;

use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

mod operate;

const APP: &str = DEFAULT_APPID;

struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    fn errcode(&self) -> i64 {
        self.json()["errcode"].as_i64().unwrap()
    }

    fn has(&self, header: &str) -> bool {
        self.head.lines().any(|line| line.eq_ignore_ascii_case(header))
    }
}

/// Sends bytes and reads one answer, leaving the connection open. None when it closes before the head.
async fn exchange(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), request: &[u8]) -> Option<Answer> {
    stream.write_all(request).await.unwrap();
    let mut read = Vec::new();
    let end = loop {
        if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(&mut read).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(read[..end].to_vec()).unwrap();
    let mut body = read.split_off(end);
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    while length.is_none_or(|length: usize| body.len() < length) {
        match stream.read_buf(&mut body).await {
            Ok(0) | Err(_) => break,
            Ok(_) if length.is_none() && body.ends_with(b"0\r\n\r\n") => break,
            Ok(_) => {}
        }
    }
    Some(Answer { status: head.split(' ').nth(1)?.parse().ok()?, head, body })
}

async fn send(address: SocketAddr, request: &[u8]) -> Option<Answer> {
    exchange(&mut TcpStream::connect(address).await.unwrap(), request).await
}

async fn get(address: SocketAddr, target: &str) -> Answer {
    send(address, format!("GET {target} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap()
}

fn post_bytes(target: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!("POST {target} HTTP/1.1\r\nhost: x\r\n{headers}content-length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

async fn post(address: SocketAddr, target: &str, body: &str) -> Answer {
    send(address, &post_bytes(target, "", body.as_bytes())).await.unwrap()
}

async fn sim() -> Sim {
    Sim::start(Config::default()).await.unwrap()
}

fn ask_stable(force: bool) -> String {
    json!({"grant_type": "client_credential", "appid": APP, "secret": DEFAULT_SECRET, "force_refresh": force})
        .to_string()
}

fn classic_target() -> String {
    format!("/cgi-bin/token?grant_type=client_credential&appid={APP}&secret={DEFAULT_SECRET}")
}

async fn stable(sim: &Sim) -> String {
    let answer = post(sim.plain_addr(), "/cgi-bin/stable_token", &ask_stable(false)).await;
    answer.json()["access_token"].as_str().unwrap().to_owned()
}

const SEND: &str = "/cgi-bin/message/custom/send?access_token=";

#[tokio::test]
async fn both_endpoints_issue_tokens_and_business_calls_take_them() {
    let sim = sim().await;
    let answer = get(sim.plain_addr(), &classic_target()).await;
    assert!(answer.has("content-type: application/json; charset=utf-8"));
    assert_eq!(answer.json()["expires_in"], 7200);
    let classic = answer.json()["access_token"].as_str().unwrap().to_owned();
    let stable = stable(&sim).await;
    assert_eq!((classic.len(), stable.len()), (512, 512));
    for token in [&classic, &stable] {
        let answer = post(sim.plain_addr(), &format!("{SEND}{token}"), "{\"touser\":\"o\"}").await;
        assert_eq!(answer.text(), r#"{"errcode":0,"errmsg":"ok"}"#);
        assert!(answer.has("content-type: application/json; encoding=utf-8"));
    }
    assert_eq!(sim.live_token(APP), Some(stable));
    let counts = sim.counts();
    assert_eq!((counts.fetches.classic, counts.fetches.stable, counts.fetches.granted), (1, 1, 2));
    assert_eq!((counts.calls_to("/cgi-bin/message/custom/send"), counts.accepted), (2, 2));
}

#[tokio::test]
async fn the_token_endpoints_say_what_is_wrong() {
    let sim = sim().await;
    let address = sim.plain_addr();
    let classic = |query: &str| format!("/cgi-bin/token?{query}");
    for (target, errcode) in [
        (classic(""), 40002),
        (classic("grant_type=password&appid=a&secret=b"), 40002),
        (classic("grant_type=client_credential"), 41002),
        (classic(&format!("grant_type=client_credential&appid={APP}")), 41004),
        (classic("grant_type=client_credential&appid=wxother&secret=s"), 40013),
        (classic(&format!("grant_type=client_credential&appid={APP}&secret=wrong")), 40125),
        ("/cgi-bin/stable_token".to_owned(), 43002),
    ] {
        let answer = get(address, &target).await;
        assert_eq!((answer.status, answer.errcode()), (200, errcode), "{target}");
    }
    for (body, errcode) in [
        ("", 44002),
        ("grant_type=client_credential", 47001),
        ("{}", 40002),
        (r#"{"grant_type":"client_credential"}"#, 41002),
        (r#"{"grant_type":"client_credential","appid":"wx0123456789abcdef"}"#, 41004),
        (r#"{"grant_type":"client_credential","appid":"wx0123456789abcdef","secret":"x"}"#, 40125),
        (r#"{"grant_type":"client_credential","appid":"wxother","secret":"x"}"#, 40013),
    ] {
        assert_eq!(post(address, "/cgi-bin/stable_token", body).await.errcode(), errcode, "{body}");
    }
    assert_eq!(sim.counts().fetches.refusals[&40002], 3);
    assert!(sim.live_token(APP).is_none());
}

#[tokio::test]
async fn a_bad_token_is_told_by_errcode_at_http_200() {
    let sim = sim().await;
    let token = stable(&sim).await;
    let address = sim.plain_addr();
    sim.expire_now(APP);
    let answer = post(address, &format!("{SEND}{token}"), "{}").await;
    assert_eq!((answer.status, answer.errcode()), (200, 42001));
    let errmsg = answer.json()["errmsg"].as_str().unwrap().to_owned();
    let rid = errmsg.strip_prefix("access_token expired rid: ").unwrap();
    assert_eq!(rid.split('-').map(str::len).collect::<Vec<_>>(), [8, 8, 8]);
    let second = stable(&sim).await;
    sim.rotate(APP);
    let answer = post(address, &format!("{SEND}{second}"), "{}").await;
    assert!(answer.text().starts_with(r#"{"errcode":40001,"errmsg":"invalid credential, access_token is"#));
    assert_eq!(post(address, &format!("{SEND}made-up"), "{}").await.errcode(), 40014);
    assert_eq!(post(address, SEND, "{}").await.errcode(), 41001);
    assert_eq!(post(address, "/cgi-bin/message/custom/send", "{}").await.errcode(), 41001);
    let live = sim.live_token(APP).unwrap();
    assert_eq!(post(address, &format!("{SEND}{live}"), "{}").await.errcode(), 0);
    let counts = sim.counts();
    let refused = [42001, 40001, 40014, 41001].map(|errcode| counts.refused_with(errcode));
    assert_eq!((refused, counts.accepted, counts.unknown_tokens), ([1, 1, 1, 2], 1, 1));
}

#[tokio::test]
async fn two_tokens_on_one_call_are_refused_and_counted() {
    let sim = sim().await;
    let token = stable(&sim).await;
    let twice = format!("{SEND}{token}&access%5Ftoken={token}");
    assert_eq!(post(sim.plain_addr(), &twice, "{}").await.errcode(), 40014);
    let unreplaced = format!("{SEND}wechat-sidecar-placeholder");
    assert_eq!(post(sim.plain_addr(), &unreplaced, "{}").await.errcode(), 40014);
    let counts = sim.counts();
    assert_eq!((counts.duplicate_tokens, counts.placeholders, counts.unknown_tokens), (1, 1, 1));
}

#[tokio::test]
async fn hours_pass_at_once() {
    let sim = sim().await;
    let token = stable(&sim).await;
    sim.advance(Duration::from_secs(6800));
    assert_eq!(stable(&sim).await, token);
    sim.advance(Duration::from_secs(200));
    let renewed = stable(&sim).await;
    assert_ne!(renewed, token);
    for token in [&token, &renewed] {
        assert_eq!(post(sim.plain_addr(), &format!("{SEND}{token}"), "{}").await.errcode(), 0);
    }
    sim.revoke_overlap(APP);
    assert_eq!(post(sim.plain_addr(), &format!("{SEND}{token}"), "{}").await.errcode(), 40001);
    assert_eq!(post(sim.plain_addr(), &format!("{SEND}{renewed}"), "{}").await.errcode(), 0);
}

#[tokio::test]
async fn a_chunked_request_is_412_without_an_errcode() {
    let sim = sim().await;
    let token = stable(&sim).await;
    let request = format!(
        "POST {SEND}{token} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n"
    );
    let answer = send(sim.plain_addr(), request.as_bytes()).await.unwrap();
    assert_eq!((answer.status, answer.body.len()), (412, 0));
    let counts = sim.counts();
    assert_eq!((counts.chunked_refused, counts.all_calls()), (1, 0));
    assert_eq!(sim.seen().last().unwrap().status, 412);
}

#[tokio::test]
async fn a_connection_is_kept_and_has_a_number() {
    let sim = sim().await;
    let token = stable(&sim).await;
    let mut stream = TcpStream::connect(sim.plain_addr()).await.unwrap();
    let request = post_bytes(&format!("{SEND}{token}"), "x-call-id: 7\r\n", b"{}");
    for _ in 0..3 {
        assert_eq!(exchange(&mut stream, &request).await.unwrap().errcode(), 0);
    }
    let numbers: Vec<u64> = sim.seen().iter().map(|seen| seen.connection).collect();
    assert_eq!(numbers, [1, 2, 2, 2]);
    let counts = sim.counts();
    assert_eq!((counts.connections, counts.max_sends_of_a_call, counts.max_accepts_of_a_call), (2, 3, 3));
    assert_eq!(sim.sends_of("7"), (3, 3));
    sim.close_connections();
    assert!(exchange(&mut stream, b"").await.is_none());
}

#[tokio::test]
async fn echo_tells_what_arrived_byte_for_byte() {
    let sim = sim().await;
    let token = stable(&sim).await;
    let target = format!("/__echo?b=%7e&a=+&a=%E5%BE%AE&&x=/?&access_token={token}&");
    let answer =
        send(sim.plain_addr(), &post_bytes(&target, "X-Two: b\r\nx-one: a\r\n", b"\0body")).await.unwrap();
    let echoed = answer.json();
    assert_eq!((echoed["method"].as_str(), echoed["target"].as_str()), (Some("POST"), Some(target.as_str())));
    assert_eq!(
        echoed["headers"],
        json!([["host", "x"], ["x-two", "b"], ["x-one", "a"], ["content-length", "5"]])
    );
    assert_eq!(echoed["body_length"], 5);
    assert_eq!(echoed["body_sha256"], message::hex(&Sha256::digest(b"\0body")));
    let seen = sim.seen().pop().unwrap();
    assert_eq!((seen.target.as_str(), &seen.body_head[..]), (target.as_str(), b"\0body".as_slice()));
    assert_eq!((seen.path(), seen.appid.as_deref()), ("/__echo", Some(APP)));
    assert_eq!(get(sim.plain_addr(), "/__echo").await.errcode(), 41001);
}

#[tokio::test]
async fn an_upload_comes_back_as_it_was_sent() {
    let sim = sim().await;
    let token = stable(&sim).await;
    let file: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
    let target = format!("/cgi-bin/media/upload?access_token={token}&type=image");
    let open = b"--B\r\nContent-Disposition: form-data; name=\"media\"; filename=\"a.jpg\"\r\n\r\n";
    let body = [open.as_slice(), &file, b"\r\n--B--\r\n"].concat();
    let request = post_bytes(&target, "content-type: multipart/form-data; boundary=B\r\n", &body);
    let answer = send(sim.plain_addr(), &request).await.unwrap();
    assert!(answer.has("content-type: text/plain"));
    let media_id = answer.json()["media_id"].as_str().unwrap().to_owned();
    assert_eq!(sim.upload(&media_id), Some((300_000, message::hex(&Sha256::digest(&file)))));
    let answer =
        get(sim.plain_addr(), &format!("/cgi-bin/media/get?access_token={token}&media_id={media_id}")).await;
    assert!(answer.has("content-disposition: attachment; filename=\"a.jpg\"") && answer.body == file);
    let empty = post_bytes(
        &target,
        "content-type: multipart/form-data; boundary=B\r\n",
        &[open.as_slice(), b"\r\n--B--\r\n"].concat(),
    );
    assert_eq!(send(sim.plain_addr(), &empty).await.unwrap().errcode(), 44001);
    assert_eq!(post(sim.plain_addr(), &target, "").await.errcode(), 41005);
}

#[tokio::test]
async fn big_downloads_stream_with_and_without_a_length() {
    let sim = sim().await;
    let token = stable(&sim).await;
    let target = |media_id: &str| format!("/cgi-bin/media/get?access_token={token}&media_id={media_id}");
    let answer = get(sim.plain_addr(), &target("big-200000")).await;
    assert!(answer.has("content-length: 200000") && answer.has("content-type: image/jpeg"));
    assert!(answer.body.iter().zip(0..).all(|(&byte, at)| byte == download_byte(at)));
    assert_eq!(answer.body.len(), 200_000);
    let answer = get(sim.plain_addr(), &target("chunked-200000")).await;
    assert!(answer.has("transfer-encoding: chunked") && answer.body.len() > 200_000);
    assert_eq!(get(sim.plain_addr(), &target("invalid")).await.errcode(), 40007);
    assert_eq!(get(sim.plain_addr(), &target("big-x")).await.errcode(), 40007);
    assert_eq!(get(sim.plain_addr(), &target("")).await.errcode(), 41006);
    assert!(get(sim.plain_addr(), &target("video1")).await.json()["video_url"].is_string());
    assert!(get(sim.plain_addr(), &target("any")).await.body.starts_with(b"\xff\xd8"));
}

#[tokio::test]
async fn the_endpoints_answer_as_documented() {
    let sim = sim().await;
    let token = stable(&sim).await;
    let at = sim.plain_addr();
    let with = |path: &str| format!("{path}?access_token={token}");
    let get_with = |path: &str, more: &str| format!("{path}?access_token={token}&{more}");
    let info = get(at, &get_with("/cgi-bin/user/info", "openid=o1&lang=zh_CN")).await.json();
    assert!(info["openid"] == "o1" && info.get("errcode").is_none());
    assert_eq!(get(at, &get_with("/cgi-bin/user/info", "")).await.errcode(), 40003);
    assert_eq!(get(at, &with("/cgi-bin/user/get")).await.json()["total"], 2);
    assert_eq!(post(at, &with("/cgi-bin/menu/create"), "{\"button\":[]}").await.errcode(), 0);
    assert_eq!(post(at, &with("/cgi-bin/menu/create"), "").await.errcode(), 44002);
    assert_eq!(post(at, &with("/cgi-bin/menu/create"), "x").await.errcode(), 47001);
    assert_eq!(get(at, &with("/cgi-bin/menu/create")).await.errcode(), 43002);
    let mut ids = Vec::new();
    for _ in 0..2 {
        let answer = post(at, &with("/cgi-bin/message/template/send"), "{}").await;
        ids.push(answer.json()["msgid"].as_u64().unwrap());
    }
    assert!(ids[0] < 1 << 53 && ids[1] > 1 << 53, "{ids:?}");
    let code = with("/wxa/getwxacodeunlimit");
    let image = post(at, &code, r#"{"scene":"a=1"}"#).await;
    assert!(image.has("content-type: image/jpeg") && image.body.starts_with(b"\xff\xd8"));
    let image = post(at, &code, r#"{"scene":"a=1","is_hyaline":true}"#).await;
    assert!(image.has("content-type: image/png") && image.body.starts_with(b"\x89PNG\r\n\x1a\n"));
    let refused = post(at, &code, "{}").await;
    assert!(refused.errcode() == 40129 && refused.has("content-type: text/plain"));
    let phone = post(at, &with("/wxa/business/getuserphonenumber"), r#"{"code":"c"}"#).await.json();
    assert_eq!(phone["phone_info"]["watermark"]["appid"], APP);
    let ticket = get_with("/cgi-bin/ticket/getticket", "type=jsapi");
    let first = get(at, &ticket).await.json()["ticket"].clone();
    assert!(first.is_string() && get(at, &ticket).await.json()["ticket"] == first);
    let quota =
        post(at, &with("/cgi-bin/openapi/quota/get"), r#"{"cgi_path":"/cgi-bin/stable_token"}"#).await;
    assert_eq!(quota.json()["quota"], json!({"daily_limit": 500_000, "used": 1, "remain": 499_999}));
    assert_eq!(post(at, &with("/wxa/some/new/path"), "{}").await.errcode(), 0);
    for first in ["bizwifi", "donut", "marketing", "pay", "payfeedback", "shakearound"] {
        assert_eq!(post(at, &with(&format!("/{first}/some/path")), "{}").await.errcode(), 0, "{first}");
    }
    let unknown = get(at, &with("/nothing/here")).await;
    assert_eq!((unknown.status, unknown.body.len()), (404, 0));
}

#[tokio::test]
async fn the_login_of_a_multi_platform_app_takes_token_and_secret() {
    let sim = sim().await;
    let token = stable(&sim).await;
    let own = format!("access_token={token}&appid={APP}&appsecret={DEFAULT_SECRET}");
    let full = format!("{own}&grant_type=authorization_code");
    for (query, errcode) in [
        (format!("appid={APP}&appsecret={DEFAULT_SECRET}&code=c"), 41001),
        (format!("access_token={token}&code=c"), 10_001_002),
        (format!("access_token={token}&appid={APP}&code=c"), 10_001_003),
        (format!("access_token={token}&appid={APP}&appsecret=x&code=c"), 10_001_003),
        (format!("{own}&code=c"), 10_001_004),
        (full.clone(), 10_001_001),
        (format!("{full}&code=c"), 0),
        (format!("{full}&code=c"), 10_001_001),
    ] {
        let answer = get(sim.plain_addr(), &format!("/donut/code2verifyinfo?{query}")).await;
        assert_eq!(answer.errcode(), errcode, "{query}");
        assert_eq!(answer.text().contains("user_id"), errcode == 0);
    }
}

#[tokio::test]
async fn rid_get_gives_the_token_of_a_failed_call_away() {
    let sim = sim().await;
    let first = stable(&sim).await;
    sim.rotate(APP);
    let failed = post(sim.plain_addr(), &format!("{SEND}{first}&x=1"), "{\"a\":1}").await;
    let rid = failed.json()["errmsg"].as_str().unwrap().rsplit(' ').next().unwrap().to_owned();
    let target = format!("/cgi-bin/openapi/rid/get?access_token={}", sim.live_token(APP).unwrap());
    let told = post(sim.plain_addr(), &target, &json!({"rid": rid}).to_string()).await.json();
    assert_eq!(told["request"]["request_url"], format!("access_token={first}&x=1"));
    assert_eq!(told["request"]["request_body"], "{\"a\":1}");
    assert_eq!(post(sim.plain_addr(), &target, r#"{"rid":"x"}"#).await.errcode(), 76001);
}

#[tokio::test]
async fn logins_take_the_secret_and_user_tokens_are_their_own() {
    let sim = sim().await;
    let app_token = stable(&sim).await;
    let at = sim.plain_addr();
    let code = |query: &str| format!("/sns/jscode2session?grant_type=authorization_code&{query}");
    let own = format!("appid={APP}&secret={DEFAULT_SECRET}");
    for (query, errcode) in [
        (String::new(), 41002),
        (format!("appid={APP}"), 41004),
        (format!("appid={APP}&secret=x"), 40125),
        (own.clone(), 41008),
        (format!("{own}&js_code=bad"), 40029),
    ] {
        let answer = get(at, &code(&query)).await;
        assert_eq!(answer.errcode(), errcode, "{query}");
        assert!(answer.has("content-type: text/plain"));
    }
    let session = get(at, &code(&format!("{own}&js_code=c1"))).await.json();
    assert!(session["session_key"].is_string() && session["openid"].is_string());
    assert_eq!(get(at, &code(&format!("{own}&js_code=c1"))).await.errcode(), 40163);

    let login = get(at, &format!("/sns/oauth2/access_token?{own}&code=c2")).await.json();
    let (token, openid) = (login["access_token"].as_str().unwrap(), login["openid"].as_str().unwrap());
    let info = |token: &str| format!("/sns/userinfo?access_token={token}&openid={openid}");
    assert_eq!(get(at, &info(token)).await.json()["openid"], openid);
    assert_eq!(get(at, &format!("/sns/auth?access_token={token}&openid={openid}")).await.errcode(), 0);
    let refused = get(at, &info(&app_token)).await;
    assert!(refused.errcode() == 40001 && refused.text().contains("access_token is invalid or not latest"));
    sim.expire_user_tokens();
    assert_eq!(get(at, &info(token)).await.errcode(), 42001);
    let refresh = login["refresh_token"].as_str().unwrap();
    let again = format!("/sns/oauth2/refresh_token?appid={APP}&grant_type=refresh_token&refresh_token=");
    let fresh = get(at, &format!("{again}{refresh}")).await.json();
    assert_eq!(get(at, &info(fresh["access_token"].as_str().unwrap())).await.json()["openid"], openid);
    assert_eq!(get(at, &format!("{again}x")).await.errcode(), 40030);
    assert_eq!(post(at, &format!("{SEND}{token}"), "{}").await.errcode(), 40014, "no user token is an app's");
}

#[tokio::test]
async fn quota_is_cleared_by_secret() {
    let sim = sim().await;
    sim.set_limits(|limits| limits.classic_per_day = 1);
    let at = sim.plain_addr();
    get(at, &classic_target()).await;
    assert_eq!(get(at, &classic_target()).await.errcode(), 45009);
    let clear = "/cgi-bin/clear_quota/v2";
    assert_eq!(post(at, clear, "{}").await.errcode(), 41002);
    assert_eq!(post(at, &format!("{clear}?appid={APP}&appsecret=x"), "").await.errcode(), 40125);
    let body = json!({"appid": APP, "appsecret": DEFAULT_SECRET}).to_string();
    assert_eq!(post(at, clear, &body).await.errcode(), 0);
    assert_eq!(get(at, &classic_target()).await.json()["expires_in"], 7200);
}

#[tokio::test]
async fn fetches_fail_in_every_way_a_network_and_wechat_know() {
    let sim = sim().await;
    let at = sim.plain_addr();
    let fetch = post_bytes("/cgi-bin/stable_token", "", ask_stable(false).as_bytes());
    sim.fail_fetches(FetchFailure::Errcode(40164), 1);
    sim.fail_fetches(FetchFailure::Status(502), 1);
    sim.fail_fetches(FetchFailure::Garbage, 1);
    sim.fail_fetches(FetchFailure::Empty, 1);
    sim.fail_fetches(FetchFailure::Body("{}".to_owned()), 1);
    sim.fail_fetches(FetchFailure::Drop, 1);
    let refused = send(at, &fetch).await.unwrap();
    let told = "invalid ip 101.45.43.1 ipv6 ::ffff:101.45.43.1, not in whitelist";
    assert!(refused.errcode() == 40164 && refused.text().contains(told));
    let gateway = send(at, &fetch).await.unwrap();
    assert!(gateway.status == 502 && gateway.has("content-type: text/html"));
    assert!(serde_json::from_slice::<Value>(&send(at, &fetch).await.unwrap().body).is_err());
    assert!(send(at, &fetch).await.unwrap().body.is_empty());
    assert_eq!(send(at, &fetch).await.unwrap().text(), "{}");
    assert!(send(at, &fetch).await.is_none());
    assert!(sim.live_token(APP).is_none());
    assert_eq!(send(at, &fetch).await.unwrap().json()["expires_in"], 7200);
    assert_eq!(sim.counts().fetches.failed, 6);

    sim.fail_fetches(FetchFailure::Hang, FOREVER);
    let hung = tokio::spawn(async move { send(at, &fetch).await });
    sim.until(|counts| counts.fetches.failed == 7).await;
    sim.close_connections();
    assert!(hung.await.unwrap().is_none());
}

#[tokio::test]
async fn a_fetch_is_told_any_life() {
    let sim = sim().await;
    let fetch = async || post(sim.plain_addr(), "/cgi-bin/stable_token", &ask_stable(false)).await.json();
    for told in [json!(-1), json!("7200"), json!(1e30), json!(null), json!({})] {
        sim.expires_in(Some(ExpiresIn::Value(told.clone())));
        assert_eq!(fetch().await["expires_in"], told);
    }
    sim.expires_in(Some(ExpiresIn::Absent));
    assert!(fetch().await.get("expires_in").is_none());
    sim.expires_in(None);
    assert!(fetch().await["expires_in"].is_u64());
}

#[tokio::test]
async fn held_fetches_have_their_token_and_wait_with_the_answer() {
    let sim = sim().await;
    sim.hold_fetches();
    let at = sim.plain_addr();
    let held = tokio::spawn(async move { post(at, "/cgi-bin/stable_token", &ask_stable(false)).await });
    sim.until(|counts| counts.fetches.granted == 1).await;
    let token = sim.live_token(APP).unwrap();
    assert!(!held.is_finished());
    sim.release_fetches();
    assert_eq!(held.await.unwrap().json()["access_token"], token);
}

#[tokio::test]
async fn gathered_calls_are_judged_together() {
    let sim = sim().await;
    let token = stable(&sim).await;
    sim.gather("/cgi-bin/message", 5);
    let at = sim.plain_addr();
    let call = |token: String| {
        tokio::spawn(async move { post(at, &format!("{SEND}{token}"), "{}").await.errcode() })
    };
    let mut calls: Vec<_> = (0..4).map(|_| call(token.clone())).collect();
    sim.until(|counts| counts.all_calls() == 4).await;
    sim.expire_now(APP);
    calls.push(call(token));
    for call in calls {
        assert_eq!(call.await.unwrap(), 42001);
    }
}

#[tokio::test]
async fn calls_fail_as_the_levers_say() {
    let sim = sim().await;
    let token = stable(&sim).await;
    let at = sim.plain_addr();
    let call = post_bytes(&format!("{SEND}{token}"), "x-call-id: c\r\n", b"{}");
    sim.drop_connection("/cgi-bin/message", DropWhen::BeforeReply, 1);
    sim.drop_connection("/cgi-bin/message", DropWhen::MidReply, 1);
    assert!(send(at, &call).await.is_none());
    let half = send(at, &call).await.unwrap();
    assert!(half.has("content-length: 27") && half.body.len() == 13);
    assert_eq!(sim.sends_of("c"), (2, 2), "a dropped call was carried out");

    let odd = Canned {
        body: r#"{"errmsg":"x","errcode":"40001"}"#.to_owned(),
        status: 201,
        content_type: "a/b".to_owned(),
    };
    sim.fail_calls("/cgi-bin", odd.clone(), 1);
    let answer = send(at, &call).await.unwrap();
    assert!(answer.status == 201 && answer.has("content-type: a/b") && answer.text() == odd.body);

    sim.always_refuse("/cgi-bin/message", 40001);
    assert_eq!(send(at, &call).await.unwrap().errcode(), 40001);
    assert_eq!(send(at, &call).await.unwrap().errcode(), 40001);
    sim.delay("/", Duration::from_millis(30));
    let before = Instant::now();
    send(at, &call).await.unwrap();
    assert!(before.elapsed() >= Duration::from_millis(30));
    sim.reset_levers();
    assert_eq!(send(at, &call).await.unwrap().errcode(), 0);
}

#[tokio::test]
async fn a_refusal_is_written_in_every_shape_wechat_has_used() {
    let sim = sim().await;
    let target = format!("{SEND}made-up");
    for (shape, start, strict) in [
        (RefusalShape::Plain, "{\"errcode\":40014,", true),
        (RefusalShape::String, "{\"errcode\":\"40014\",", true),
        (RefusalShape::Last, "{\"ip_list\":[],", true),
        (RefusalShape::Spaced, "\r\n {", true),
        (RefusalShape::Control, "{\"errmsg\":", false),
        (RefusalShape::Nested, "{\"base_resp\":{\"errcode\":40014", true),
    ] {
        sim.refusal_shape(shape);
        let answer = post(sim.plain_addr(), &target, "{}").await;
        assert!(answer.text().starts_with(start), "{}", answer.text());
        assert_eq!(serde_json::from_slice::<Value>(&answer.body).is_ok(), strict);
    }
    assert_eq!(sim.counts().refused_with(40014), 6);
}

#[tokio::test]
async fn tls_is_served_with_a_certificate_of_its_own_authority() {
    let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let sim = Sim::start(Config { tls_listen: Some(local), ..Config::default() }).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ca.pem");
    std::fs::write(&path, sim.ca_pem().unwrap()).unwrap();
    let client = crate::tls::client_config(&crate::tls::ExtraRoots::read(&path).unwrap());
    let connector = tokio_rustls::TlsConnector::from(client);
    for name in ["api.weixin.qq.com", "localhost", "127.0.0.1"] {
        let stream = TcpStream::connect(sim.tls_addr().unwrap()).await.unwrap();
        let mut stream = connector.connect(name.try_into().unwrap(), stream).await.unwrap();
        let request = format!("GET {} HTTP/1.1\r\nhost: x\r\n\r\n", classic_target());
        assert_eq!(exchange(&mut stream, request.as_bytes()).await.unwrap().json()["expires_in"], 7200);
    }
    assert!(sim.seen()[0].tls);
    let stream = TcpStream::connect(sim.tls_addr().unwrap()).await.unwrap();
    let stranger = tokio_rustls::TlsConnector::from(crate::tls::client_config(&Default::default()));
    assert!(stranger.connect("localhost".try_into().unwrap(), stream).await.is_err());
}

#[tokio::test]
async fn it_ends_with_its_last_handle_or_when_told() {
    let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let sim = Sim::start(Config { control_listen: Some(local), ..Config::default() }).await.unwrap();
    let (plain, control) = (sim.plain_addr(), sim.control_addr().unwrap());
    let mut idle = TcpStream::connect(plain).await.unwrap();
    sim.until(|counts| counts.connections == 1).await;
    let other = sim.clone();
    drop(sim);
    assert_eq!(get(plain, "/x").await.status, 404);
    drop(other);
    assert_eq!(idle.read(&mut [0]).await.unwrap_or(0), 0);
    assert!(TcpStream::connect(control).await.is_err() || send(control, b"").await.is_none());

    let again = Sim::start(Config { listen: plain, ..Config::default() }).await;
    if let Ok(sim) = again {
        sim.shutdown().await;
        assert!(TcpStream::connect(plain).await.is_err());
    }
    let none = Config { accounts: Vec::new(), ..Config::default() };
    assert!(Sim::start(none).await.is_err());
}
