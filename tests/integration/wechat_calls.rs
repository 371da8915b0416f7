//! Every endpoint of the simulation through the sidecar, over TLS: what the app writes as a token never matters, and
//! bodies arrive byte for byte in both directions.

#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

use http::Method;
use wechat_sidecar::sim::{Seen, download_byte};

use crate::wechat_rig::{APPID, MESSAGE, PLACEHOLDER, Rig, UPLOAD, multipart, noise, sha256};

/// A call: method, path and query, body.
type Call = (Method, &'static str, &'static str);

/// The endpoints that take the app's token.
const CALLS: &[Call] = &[
    (Method::POST, "/cgi-bin/message/custom/send", MESSAGE),
    (Method::POST, "/cgi-bin/message/template/send", r#"{"touser":"o","template_id":"t","data":{}}"#),
    (Method::GET, "/cgi-bin/user/info?openid=oAAAA&lang=zh_CN", ""),
    (Method::GET, "/cgi-bin/user/get?next_openid=", ""),
    (Method::POST, "/cgi-bin/menu/create", r#"{"button":[{"type":"click","name":"今日歌曲","key":"V1"}]}"#),
    (Method::GET, "/cgi-bin/getcallbackip", ""),
    (Method::GET, "/cgi-bin/get_api_domain_ip", ""),
    (Method::POST, "/cgi-bin/media/upload?type=image", "raw bytes of a file"),
    (Method::GET, "/cgi-bin/media/get?media_id=some", ""),
    (Method::GET, "/cgi-bin/media/get?media_id=video1", ""),
    (Method::GET, "/cgi-bin/media/get/jssdk?media_id=some", ""),
    (Method::POST, "/wxa/getwxacode", r#"{"path":"pages/index"}"#),
    (Method::POST, "/wxa/getwxacodeunlimit", r#"{"scene":"a=1"}"#),
    (Method::POST, "/cgi-bin/wxaapp/createwxaqrcode", r#"{"path":"pages/index"}"#),
    (Method::POST, "/wxa/business/getuserphonenumber", r#"{"code":"0d1"}"#),
    (Method::GET, "/cgi-bin/ticket/getticket?type=jsapi", ""),
    (Method::GET, "/cgi-bin/ticket/getticket?type=wx_card", ""),
    (Method::POST, "/cgi-bin/openapi/quota/get", r#"{"cgi_path":"/cgi-bin/token"}"#),
    (Method::POST, "/wxaapi/newtmpl/addtemplate", "tid=401&kidList=1"),
    (Method::GET, "/datacube/getusersummary", ""),
    (Method::DELETE, "/wxa/anything", ""),
    (Method::PUT, "/card/anything", "x"),
];

/// What apps and SDKs write as a token: in front of the query, and behind it.
const TOKENS: &[(&str, &str)] = &[
    ("", ""),
    ("", "access_token="),
    ("access_token=", ""),
    ("", "access_token"),
    ("access_token=50_stale", ""),
    ("", "access_token=50_stale"),
    ("%61ccess_token=50_stale", ""),
    ("", "access_%74oken=50_stale"),
    ("access%5Ftoken=", ""),
    ("access_token=a", "access_token=b"),
    ("access_token=a&access_token=", "%61ccess_token=c&access_token"),
    ("", "access_token=%E4%BD%A0%20%2B+%26"),
    ("access_token=ACCESS_TOKEN", ""),
    ("", "access_token=undefined"),
    ("", "access_token=null"),
];

/// The target with something written in front of its query and behind it.
fn with(target: &str, (before, after): (&str, &str)) -> String {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let parts: Vec<&str> = [before, query, after].into_iter().filter(|part| !part.is_empty()).collect();
    if parts.is_empty() { path.to_owned() } else { format!("{path}?{}", parts.join("&")) }
}

/// The target as WeChat should have seen it, with the token last.
fn expected(target: &str, token: &str) -> String {
    let mark = if target.contains('?') { '&' } else { '?' };
    format!("{target}{mark}access_token={token}")
}

fn assert_headers(seen: &Seen) {
    for gone in ["connection", "transfer-encoding", "expect", "te", "keep-alive"] {
        assert_eq!(seen.header(gone).count(), 0, "{gone}: {seen:?}");
    }
    assert!(seen.header("host").all(|host| host.starts_with("127.0.0.1:")), "{seen:?}");
    assert_eq!(seen.header("host").count(), 1);
}

#[tokio::test]
async fn every_endpoint_works_over_tls_whatever_the_app_writes_as_its_token() {
    let rig = Rig::tls(&[]).await;
    let token = rig.sim.live_token(APPID).unwrap();
    for (method, target, body) in CALLS {
        for &tokens in TOKENS {
            let written = with(target, tokens);
            let reply = rig.app.call(method.clone(), &written, "application/json", (*body).into(), "-").await;
            reply.assert_ok();
            let seen = rig.last_call();
            assert_eq!(seen.target, expected(target, &token), "{written}");
            assert_eq!((seen.method.as_str(), seen.tls), (method.as_str(), true));
            assert_eq!(
                (seen.body_length, seen.body_sha256.clone()),
                (body.len() as u64, sha256(body.as_bytes()))
            );
            assert_headers(&seen);
        }
        let reply = rig.app.get(&with("/__echo", ("", &format!("access_token={PLACEHOLDER}")))).await;
        reply.assert_ok();
        assert_eq!(rig.last_call().target, expected("/__echo", &token));
    }
    rig.assert_clean();
    assert_eq!(rig.fetches(), 1, "one token served them all");
}

#[tokio::test]
async fn every_other_byte_of_the_query_goes_as_the_app_wrote_it() {
    let rig = Rig::tls(&[]).await;
    let token = rig.sim.live_token(APPID).unwrap();
    for query in [
        "a=%2F&b=%2f&c=+&d=%20&e=",
        "b=2&a=1&b=3&&c",
        "name=%E4%BD%A0%E5%A5%BD&x=/?:@!$'()*,;=~",
        "url=https%3A%2F%2Fexample.com%2F%3Fa%3D1%26access_token%3Dinner",
        "my_access_token=keep&access_tokens=keep&ACCESS_TOKEN=keep&access_token_=keep",
        "=&==&a==b&%",
        "a=%zz&b=%e4%bd&c=%00",
        "q=[]{}|",
    ] {
        let written = format!("/__echo?{query}&access_token=x");
        let reply = rig.app.get(&written).await;
        let masked = "*".repeat(token.len());
        let echo = &reply.assert_ok().json()["target"];
        assert_eq!(*echo, format!("/__echo?{query}&access_token={masked}"), "the app is not shown the token");
        assert_eq!(rig.last_call().target, format!("/__echo?{query}&access_token={token}"));
    }
    rig.assert_clean();
}

#[tokio::test]
async fn headers_go_as_they_came_but_those_between_two_hops() {
    let rig = Rig::tls(&[]).await;
    let request = rig
        .app
        .request(Method::POST, "/__echo")
        .header("connection", "x-private, Keep-Alive")
        .header("x-private", "1")
        .header("keep-alive", "timeout=5")
        .header("te", "trailers")
        .header("proxy-connection", "keep-alive")
        .header("proxy-authorization", "Basic eDp5")
        .header("user-agent", "SomeSDK/1.0")
        .header("cookie", "a=b")
        .header("x-twice", "1")
        .header("x-twice", "2")
        .header("accept-encoding", "gzip, br")
        .header("content-type", "application/json")
        .body(http_body_util::Full::from(MESSAGE))
        .unwrap();
    rig.app.send(request).await.assert_ok();
    let seen = rig.last_call();
    let values = |name| seen.header(name).collect::<Vec<_>>();
    for gone in ["connection", "x-private", "keep-alive", "te", "proxy-connection", "proxy-authorization"] {
        assert_eq!(values(gone), [""; 0], "{gone}");
    }
    assert_eq!(values("user-agent"), ["SomeSDK/1.0"]);
    assert_eq!(values("cookie"), ["a=b"]);
    assert_eq!(values("x-twice"), ["1", "2"]);
    assert_eq!(values("accept-encoding"), ["identity"], "a refusal in gzip would go unseen");
    assert_eq!(values("content-length"), [MESSAGE.len().to_string().as_str()]);
}

#[tokio::test]
async fn uploads_arrive_with_every_byte() {
    let rig = Rig::tls(&[]).await;
    for length in [1, 20 * 1024, 5 * 1024 * 1024, 17 * 1024 * 1024] {
        let file = noise(length);
        let raw = rig.app.call(Method::POST, UPLOAD, "image/jpeg", file.clone(), "-").await;
        let (form, content_type) = multipart(&file);
        let whole = (form.len() as u64, sha256(&form));
        let parted = rig.app.call(Method::POST, UPLOAD, content_type, form, "-").await;
        let seen = rig.last_call();
        assert_eq!((seen.body_length, seen.body_sha256), whole);
        for reply in [raw, parted] {
            let media_id = reply.assert_ok().json()["media_id"].as_str().unwrap().to_owned();
            assert_eq!(rig.sim.upload(&media_id).unwrap(), (length as u64, sha256(&file)));
        }
    }
    rig.assert_clean();
}

#[tokio::test]
async fn what_was_uploaded_comes_back_as_it_was() {
    let rig = Rig::tls(&[]).await;
    let file = noise(300 * 1024);
    let (form, content_type) = multipart(&file);
    let reply = rig.app.call(Method::POST, UPLOAD, content_type, form, "-").await;
    let media_id = reply.json()["media_id"].as_str().unwrap().to_owned();
    let back = rig.app.get(&format!("/cgi-bin/media/get?media_id={media_id}")).await;
    assert_eq!(back.header("content-type"), Some("image/jpeg"));
    assert_eq!(back.header("content-disposition"), Some("attachment; filename=\"a.jpg\""));
    assert!(back.body == file, "the file changed on its way");
}

#[tokio::test]
async fn downloads_stream_byte_for_byte_with_and_without_a_length() {
    let rig = Rig::tls(&[]).await;
    for length in [1_u64, 4095, 4096, 4097, 65_521, 5_000_000] {
        for sort in ["big", "chunked"] {
            let reply = rig.app.get(&format!("/cgi-bin/media/get?media_id={sort}-{length}")).await;
            assert_eq!(reply.status, 200);
            assert_eq!(reply.body.len() as u64, length, "{sort}-{length}");
            let same = reply.body.iter().zip(0..).all(|(&byte, at)| byte == download_byte(at));
            assert!(same, "{sort}-{length} changed on its way");
            let told = reply.header("content-length").map(str::to_owned);
            assert_eq!(told, (sort == "big").then(|| length.to_string()), "{sort}-{length}");
        }
    }
}

#[tokio::test]
async fn a_picture_comes_with_its_type_and_every_byte() {
    let rig = Rig::tls(&[]).await;
    let direct = |hyaline: &str| format!(r#"{{"scene":"a=1","is_hyaline":{hyaline}}}"#);
    let png = rig.app.post("/wxa/getwxacodeunlimit", direct("true")).await;
    assert_eq!(png.header("content-type"), Some("image/png"));
    assert!(png.body.starts_with(b"\x89PNG\r\n\x1a\n") && png.body.ends_with(b"IEND\xae\x42\x60\x82"));
    let jpeg = rig.app.post("/wxa/getwxacodeunlimit", direct("false")).await;
    assert_eq!(jpeg.header("content-type"), Some("image/jpeg"));
    assert!(jpeg.body.starts_with(b"\xff\xd8\xff\xe0") && jpeg.body.ends_with(b"\xff\xd9"));
}

#[tokio::test]
async fn a_number_beyond_what_a_double_holds_keeps_its_digits() {
    let rig = Rig::tls(&[]).await;
    let body = r#"{"touser":"o","template_id":"t","data":{}}"#;
    rig.app.post("/cgi-bin/message/template/send", body).await;
    let reply = rig.app.post("/cgi-bin/message/template/send", body).await;
    assert_eq!(reply.text(), r#"{"errcode":0,"errmsg":"ok","msgid":3333330111111111170}"#);
    assert_eq!(reply.header("content-type"), Some("application/json; encoding=utf-8"));
}

#[tokio::test]
async fn business_errors_go_to_the_app_as_wechat_wrote_them() {
    let rig = Rig::tls(&[]).await;
    let bad_media = rig.app.get("/cgi-bin/media/get?media_id=bad").await;
    assert_eq!((bad_media.status, bad_media.errcode()), (200, 40007));
    assert_eq!(bad_media.header("content-type"), Some("text/plain"));
    assert_eq!(rig.app.post("/cgi-bin/menu/create", "not json").await.errcode(), 47001);
    assert_eq!(rig.app.post("/cgi-bin/menu/create", "").await.errcode(), 44002);
    let unknown = rig.app.get("/no/such/thing").await;
    assert_eq!((unknown.status, unknown.body.len(), unknown.ours()), (404, 0, None));
    // A failed call can be looked up by its rid.
    let rid = bad_media.json()["errmsg"].as_str().unwrap().rsplit(' ').next().unwrap().to_owned();
    let told = rig.app.post("/cgi-bin/openapi/rid/get", format!(r#"{{"rid":"{rid}"}}"#)).await;
    told.assert_ok();
    assert_eq!(rig.fetches(), 1);
}

#[tokio::test]
async fn the_paths_of_head_and_an_empty_post_keep_their_meaning() {
    let rig = Rig::plain(&[]).await;
    let head = rig.app.call(Method::HEAD, "/__echo?a=1", "", bytes::Bytes::new(), "-").await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(rig.last_call().method, "HEAD");
    rig.app.post("/cgi-bin/clear_quota", "").await.assert_ok();
    assert_eq!(rig.last_call().header("content-length").collect::<Vec<_>>(), ["0"]);
}
