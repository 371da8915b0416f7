//! What calls are answered: about two dozen endpoints in full, every other path of WeChat's with `ok`.
//!
//! The token is judged first, then the method, then just enough of the arguments to notice a body that was lost or
//! bent on its way. Errors have HTTP status 200; the content type is as unreliable as the real one.
//!
//! `ANY /__echo` is the simulator's own: with a good token it answers what it received, for tests of byte-exactness.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use super::State;
use super::errcode::Errcode;
use super::levers::RefusalShape;
use super::message::{Ask, Content, FilePart, JSON_CHARSET, JSON_ENCODING, Reply, TEXT};
use super::sns;

/// The simulator's own endpoint.
pub(crate) const ECHO: &str = "/__echo";
/// First path segments that WeChat knows (`wechat-api.md` 4a); anything else is an empty 404.
const KNOWN: [&str; 30] = [
    "bizwallet",
    "bizwifi",
    "business",
    "card",
    "cgi-bin",
    "channels",
    "cityservice",
    "customservice",
    "cv",
    "datacube",
    "device",
    "donut",
    "intp",
    "marketing",
    "merchant",
    "pay",
    "payfeedback",
    "product",
    "product-new",
    "publisher",
    "scan",
    "semantic",
    "shakearound",
    "shop",
    "tcb",
    "union",
    "wedata",
    "wxa",
    "wxaapi",
    "xpay",
];
/// How many uploads are remembered.
const UPLOADS: usize = 32;
/// How many failed calls `rid/get` knows.
const FAILED: usize = 1024;
/// The biggest made-up download.
const BIGGEST: u64 = 4 << 30;
/// A valid PNG of one black pixel.
const PNG: &[u8] =
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\0\0\0\0\x3a\x7e\x9b\x55\0\0\0\nIDAT\
    \x78\xda\x63\x60\0\0\0\x02\0\x01\xe5\x27\xde\xfc\0\0\0\0IEND\xae\x42\x60\x82";
/// What begins and ends like a JPEG; the middle is no picture.
const JPEG: &[u8] = b"\xff\xd8\xff\xe0\0\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0simulated media\xff\xd9";

/// What calls left behind: uploads, tickets, failed calls.
#[derive(Default)]
pub(crate) struct Shelf {
    uploads: VecDeque<(String, FilePart)>,
    tickets: HashMap<String, (String, Duration)>,
    failed: VecDeque<(String, Failed)>,
    messages: u64,
}

struct Failed {
    appid: Option<String>,
    request_url: String,
    request_body: String,
    response_body: String,
    client_ip: String,
    at: Duration,
}

impl Shelf {
    /// What was uploaded as this media.
    pub(crate) fn upload(&self, media_id: &str) -> Option<&FilePart> {
        self.uploads.iter().find(|(id, _)| id == media_id).map(|(_, file)| file)
    }
}

impl State {
    /// Writes a refusal as WeChat would, and remembers it by its rid.
    pub(crate) fn refusal(
        &mut self,
        ask: &Ask<'_>,
        errcode: Errcode,
        appid: Option<&str>,
        now: Duration,
    ) -> Reply {
        let rid = self.rules.rid(now);
        let comma = if ask.path.starts_with("/sns/") { "," } else { "" };
        let errmsg = format!("{}{comma} rid: {rid}", errcode.errmsg(&self.levers.caller_ip));
        let is_token_refusal = matches!(errcode.0, 40001 | 40014 | 42001);
        let shape = if is_token_refusal { self.levers.shape } else { RefusalShape::Plain };
        let body = shaped(shape, errcode, &errmsg);
        let failed = Failed {
            appid: appid.map(str::to_owned),
            request_url: ask.raw_query.to_owned(),
            request_body: String::from_utf8_lossy(&ask.body.head[..ask.body.head.len().min(1024)])
                .into_owned(),
            response_body: body.clone(),
            client_ip: ask.peer.to_string(),
            at: now,
        };
        self.shelf.failed.push_back((rid, failed));
        if self.shelf.failed.len() > FAILED {
            self.shelf.failed.pop_front();
        }
        Reply { errcode: Some(errcode), ..Reply::bytes(content_type(ask.path), body.into()) }
    }

    /// Judges the app token of a call and writes down what is odd about it.
    fn judge(&mut self, ask: &Ask<'_>, now: Duration) -> Result<String, Errcode> {
        let tokens: Vec<&str> = ask.query.all("access_token").collect();
        let counts = &mut self.ledger.counts;
        counts.duplicate_tokens += u64::from(tokens.len() > 1);
        for token in tokens.iter().filter(|token| !token.is_empty() && !self.rules.knows(token)) {
            counts.unknown_tokens += 1;
            let spoken = token.to_ascii_lowercase();
            counts.placeholders += u64::from(spoken.contains("sidecar") || spoken.contains("placeholder"));
        }
        if tokens.len() > 1 {
            // Which of two wins is not documented; the strict reading finds who appends instead of replacing.
            return Err(Errcode::INVALID_TOKEN);
        }
        self.rules.judge(tokens.first().copied(), now).map(|owner| owner.appid)
    }
}

fn shaped(shape: RefusalShape, Errcode(code): Errcode, errmsg: &str) -> String {
    match shape {
        RefusalShape::Plain => format!(r#"{{"errcode":{code},"errmsg":"{errmsg}"}}"#),
        RefusalShape::String => format!(r#"{{"errcode":"{code}","errmsg":"{errmsg}"}}"#),
        RefusalShape::Last => format!(r#"{{"ip_list":[],"errmsg":"{errmsg}","errcode":{code}}}"#),
        RefusalShape::Spaced => {
            format!("\r\n {{\r\n\t\"errcode\" :\t{code} ,\n\"errmsg\" : \"{errmsg}\"\n}}\n")
        }
        RefusalShape::Control => format!("{{\"errmsg\":\"{errmsg}\t\u{1}\",\"errcode\":{code}}}"),
        RefusalShape::Nested => format!(r#"{{"base_resp":{{"errcode":{code},"errmsg":"{errmsg}"}}}}"#),
    }
}

/// How a path labels its JSON.
fn content_type(path: &str) -> &'static str {
    if is_image(path) || path.starts_with("/sns/") || path.starts_with("/cgi-bin/media/") {
        TEXT
    } else if path.starts_with("/wxa/") || super::fetch::kind_of(path).is_some() {
        JSON_CHARSET
    } else {
        JSON_ENCODING
    }
}

fn is_image(path: &str) -> bool {
    matches!(path, "/wxa/getwxacode" | "/wxa/getwxacodeunlimit" | "/cgi-bin/wxaapp/createwxaqrcode")
}

/// Answers a call. `refuse` is a lever's: an errcode for a call whose token is good. The second value is the account
/// the call proved to be of.
pub(crate) fn call(
    state: &mut State,
    ask: &Ask<'_>,
    refuse: Option<Errcode>,
    now: Duration,
) -> (Reply, Option<String>) {
    let first = ask.path.trim_start_matches('/').split('/').next().unwrap_or_default();
    if ask.path != ECHO && first != "sns" && !KNOWN.contains(&first) {
        return (Reply::empty(404), None);
    }
    if first == "sns" {
        return match sns::call(state, ask, refuse, now) {
            Ok((appid, reply)) => (reply, Some(appid)),
            Err(errcode) => (state.refusal(ask, errcode, None, now), None),
        };
    }
    let appid =
        if ask.path == "/cgi-bin/clear_quota/v2" { by_secret(state, ask) } else { state.judge(ask, now) };
    let appid = match appid {
        Ok(appid) => appid,
        Err(errcode) => return (state.refusal(ask, errcode, None, now), None),
    };
    let answered = refuse.map_or_else(|| answer(state, ask, &appid, now), Err);
    let reply = answered.unwrap_or_else(|errcode| state.refusal(ask, errcode, Some(&appid), now));
    (reply, Some(appid))
}

fn answer(state: &mut State, ask: &Ask<'_>, appid: &str, now: Duration) -> Result<Reply, Errcode> {
    let ok = || Reply::json(content_type(ask.path), &json!({"errcode": 0, "errmsg": "ok"}));
    let reply = |value: Value| Reply::json(content_type(ask.path), &value);
    match ask.path {
        ECHO => Ok(echo(ask)),
        "/cgi-bin/message/custom/send" | "/cgi-bin/menu/create" => posted(ask).map(|()| ok()),
        "/cgi-bin/message/template/send" => {
            posted(ask)?;
            state.shelf.messages += 1;
            // Every other one is beyond 2^53: who parses and writes it anew as a double changes it.
            let base =
                if state.shelf.messages.is_multiple_of(2) { 3_333_330_111_111_111_168 } else { 200_163_836 };
            Ok(reply(json!({"errcode": 0, "errmsg": "ok", "msgid": base + state.shelf.messages})))
        }
        "/cgi-bin/user/info" => user_info(ask).map(reply),
        "/cgi-bin/user/get" => {
            require_get(ask)?;
            let users = ["oSim000000000000000000000001", "oSim000000000000000000000002"];
            Ok(reply(json!({"total": 2, "count": 2, "data": {"openid": users}, "next_openid": users[1]})))
        }
        "/cgi-bin/getcallbackip" | "/cgi-bin/get_api_domain_ip" => {
            Ok(reply(json!({"ip_list": ["101.226.62.77", "101.226.62.78"]})))
        }
        "/cgi-bin/media/upload" => upload(state, ask, now).map(reply),
        "/cgi-bin/media/get" | "/cgi-bin/media/get/jssdk" => download(state, ask),
        "/wxa/getwxacode" | "/wxa/getwxacodeunlimit" | "/cgi-bin/wxaapp/createwxaqrcode" => code_image(ask),
        "/wxa/business/getuserphonenumber" => phone_number(ask, appid).map(reply),
        "/donut/code2verifyinfo" => verify_info(state, ask, appid, now).map(reply),
        "/cgi-bin/ticket/getticket" => ticket(state, ask, appid, now).map(reply),
        "/cgi-bin/openapi/quota/get" => quota(state, ask, appid, now).map(reply),
        "/cgi-bin/openapi/rid/get" => rid(state, ask, appid).map(reply),
        "/cgi-bin/clear_quota" | "/cgi-bin/clear_quota/v2" => {
            require_post(ask)?;
            state.rules.clear_quota(appid, now)?;
            Ok(ok())
        }
        _ => Ok(ok()),
    }
}

fn require_post(ask: &Ask<'_>) -> Result<(), Errcode> {
    if ask.method == "POST" { Ok(()) } else { Err(Errcode::REQUIRE_POST) }
}

fn require_get(ask: &Ask<'_>) -> Result<(), Errcode> {
    if ask.method == "GET" { Ok(()) } else { Err(Errcode::REQUIRE_GET) }
}

/// A POST that brings something like a JSON object. An empty body is the one a careless replay sends.
fn posted(ask: &Ask<'_>) -> Result<(), Errcode> {
    require_post(ask)?;
    if ask.body.length == 0 {
        return Err(Errcode::BODY_EMPTY);
    }
    if ask.body.looks_like_json() { Ok(()) } else { Err(Errcode::NOT_JSON) }
}

/// A POST whose JSON is needed.
fn posted_json(ask: &Ask<'_>) -> Result<Value, Errcode> {
    posted(ask)?;
    ask.json().ok_or(Errcode::NOT_JSON)
}

/// `clear_quota/v2` has appid and `appsecret` in the query or in the body; the documents disagree.
fn by_secret(state: &State, ask: &Ask<'_>) -> Result<String, Errcode> {
    require_post(ask)?;
    let body = ask.json().unwrap_or_default();
    let text = |name| ask.query.get(name).or_else(|| body.get(name).and_then(Value::as_str));
    state.rules.authenticate(text("appid"), text("appsecret"))?;
    Ok(text("appid").unwrap_or_default().to_owned())
}

fn echo(ask: &Ask<'_>) -> Reply {
    let headers: Vec<[String; 2]> = ask
        .headers
        .iter()
        .map(|(name, value)| [name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()])
        .collect();
    let value = json!({
        "method": ask.method,
        "target": ask.target,
        "headers": headers,
        "body_length": ask.body.length,
        "body_sha256": ask.body.sha256,
    });
    Reply::json("application/json", &value)
}

fn user_info(ask: &Ask<'_>) -> Result<Value, Errcode> {
    require_get(ask)?;
    let openid = ask.query.get("openid").filter(|text| !text.is_empty()).ok_or(Errcode::OPENID)?;
    Ok(json!({
        "subscribe": 1,
        "openid": openid,
        "language": ask.query.get("lang").unwrap_or("zh_CN"),
        "subscribe_time": 1_434_093_047,
        "unionid": "o6_simulated_unionid",
        "remark": "",
        "groupid": 0,
        "tagid_list": [128, 2],
        "subscribe_scene": "ADD_SCENE_QR_CODE",
        "qr_scene": 98_765,
        "qr_scene_str": "",
    }))
}

/// Takes multipart as documented, and a raw body as a courtesy to tests.
fn upload(state: &mut State, ask: &Ask<'_>, now: Duration) -> Result<Value, Errcode> {
    require_post(ask)?;
    let body = ask.body;
    let raw = || FilePart {
        filename: String::new(),
        length: body.length,
        sha256: body.sha256.clone(),
        kept: (body.length == body.head.len() as u64).then(|| body.head.clone()),
    };
    let file = match &body.file {
        Some(file) => file.clone(),
        None if body.multipart || body.length == 0 => return Err(Errcode::MEDIA_MISSING),
        None => raw(),
    };
    if file.length == 0 {
        return Err(Errcode::MEDIA_EMPTY);
    }
    let media_id = state.rules.scribble(64);
    state.shelf.uploads.push_back((media_id.clone(), file));
    if state.shelf.uploads.len() > UPLOADS {
        state.shelf.uploads.pop_front();
    }
    let sort = ask.query.get("type").unwrap_or("image");
    Ok(json!({"type": sort, "media_id": media_id, "created_at": 1_700_000_000 + now.as_secs()}))
}

/// `media_id=big-N` and `chunked-N` are downloads of N bytes, with and without Content-Length; `video…` answers
/// JSON; an uploaded one comes back; `bad…` and `invalid…` are refused; any other is a small picture.
fn download(state: &State, ask: &Ask<'_>) -> Result<Reply, Errcode> {
    require_get(ask)?;
    let media_id =
        ask.query.get("media_id").filter(|text| !text.is_empty()).ok_or(Errcode::MEDIA_ID_MISSING)?;
    if media_id.starts_with("bad") || media_id.starts_with("invalid") {
        return Err(Errcode::MEDIA_ID);
    }
    if media_id.starts_with("video") {
        return Ok(Reply::json(TEXT, &json!({"video_url": "http://video.example/simulated.mp4"})));
    }
    let sized = |text: &str| text.parse().ok().filter(|&length| length <= BIGGEST).ok_or(Errcode::MEDIA_ID);
    let (content, filename) = if let Some(length) = media_id.strip_prefix("big-") {
        (Content::Pattern { length: sized(length)?, chunked: false }, "big.jpg".to_owned())
    } else if let Some(length) = media_id.strip_prefix("chunked-") {
        (Content::Pattern { length: sized(length)?, chunked: true }, "chunked.jpg".to_owned())
    } else if let Some(file) = state.shelf.upload(media_id) {
        // An upload too big to be kept comes back in its length, but not in its bytes.
        let made_up = Content::Pattern { length: file.length, chunked: false };
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let filename = file.filename.chars().map(|c| if plain(c) { c } else { '_' }).collect();
        (file.kept.clone().map_or(made_up, Content::Bytes), filename)
    } else {
        (Content::Bytes(Bytes::from_static(JPEG)), "media.jpg".to_owned())
    };
    let reply = Reply { content, ..Reply::bytes("image/jpeg", Bytes::new()) };
    Ok(reply.header("content-disposition", format!("attachment; filename=\"{filename}\"")))
}

fn code_image(ask: &Ask<'_>) -> Result<Reply, Errcode> {
    let body = posted_json(ask)?;
    let text = |name: &str| body.get(name).and_then(Value::as_str);
    if ask.path == "/wxa/getwxacodeunlimit" && text("scene").is_none_or(|s| s.is_empty() || s.len() > 32) {
        return Err(Errcode::SCENE);
    }
    if text("page").is_some_and(|page| page.starts_with('/')) {
        return Err(Errcode::PAGE);
    }
    // Transparent codes are PNG, the others JPEG.
    Ok(if body.get("is_hyaline") == Some(&Value::Bool(true)) {
        Reply::bytes("image/png", Bytes::from_static(PNG))
    } else {
        Reply::bytes("image/jpeg", Bytes::from_static(JPEG))
    })
}

fn phone_number(ask: &Ask<'_>, appid: &str) -> Result<Value, Errcode> {
    let body = posted_json(ask)?;
    let code = body.get("code").and_then(Value::as_str).unwrap_or_default();
    if code.is_empty() || code.starts_with("bad") || code.starts_with("invalid") {
        return Err(Errcode::CODE);
    }
    Ok(json!({"errcode": 0, "errmsg": "ok", "phone_info": {
        "phoneNumber": "13580006666",
        "purePhoneNumber": "13580006666",
        "countryCode": "86",
        "watermark": {"timestamp": 1_637_744_274, "appid": appid},
    }}))
}

/// The login of a multi-platform app takes the app token and the AppSecret, and has errcodes of its own.
fn verify_info(state: &mut State, ask: &Ask<'_>, appid: &str, now: Duration) -> Result<Value, Errcode> {
    require_get(ask)?;
    if ask.query.get("appid") != Some(appid) {
        return Err(Errcode::DONUT_APPID);
    }
    let secret = ask.query.get("appsecret");
    state.rules.authenticate(Some(appid), secret).map_err(|_| Errcode::DONUT_SECRET)?;
    if ask.query.get("grant_type") != Some("authorization_code") {
        return Err(Errcode::DONUT_GRANT_TYPE);
    }
    state.users.use_code(appid, ask.query.get("code")).map_err(|_| Errcode::DONUT_CODE)?;
    let user = format!("oSim{}", state.rules.scribble(24));
    Ok(json!({
        "errcode": 0,
        "errmsg": "ok",
        "login_info": {"type": "weixinMiniProgram", "login_time": 1_700_000_000 + now.as_secs()},
        "user_info": {"user_id": user, "miniprogram_info": {"appid": appid, "openid": user}},
    }))
}

/// A ticket lives two hours, and a repeated call gives the same one.
fn ticket(state: &mut State, ask: &Ask<'_>, appid: &str, now: Duration) -> Result<Value, Errcode> {
    require_get(ask)?;
    let sort = ask.query.get("type").filter(|sort| matches!(*sort, "jsapi" | "wx_card"));
    let key = format!("{appid} {}", sort.ok_or(Errcode(40097))?);
    let life = Duration::from_secs(7200);
    if state.shelf.tickets.get(&key).is_none_or(|(_, ends_at)| now >= *ends_at) {
        let ticket = format!("sM4AOVdWfPE4DxkXGEs8V{}", state.rules.scribble(66));
        state.shelf.tickets.insert(key.clone(), (ticket, now + life));
    }
    let (ticket, ends_at) = state.shelf.tickets.get(&key).cloned().unwrap_or_default();
    let expires_in = ends_at.saturating_sub(now).as_secs();
    Ok(json!({"errcode": 0, "errmsg": "ok", "ticket": ticket, "expires_in": expires_in}))
}

/// The quota of a path: real for the token endpoints, otherwise a large number less the calls seen.
fn quota(state: &mut State, ask: &Ask<'_>, appid: &str, now: Duration) -> Result<Value, Errcode> {
    let body = posted_json(ask)?;
    let path = body.get("cgi_path").and_then(Value::as_str).unwrap_or_default();
    if !path.starts_with('/') {
        return Err(Errcode(76003));
    }
    if path.starts_with("/sns/") {
        return Err(Errcode(76022));
    }
    let (classic, stable, _) = state.rules.used_today(appid, now);
    let (daily_limit, used) = match path {
        "/cgi-bin/token" => (state.rules.limits().classic_per_day, classic),
        "/cgi-bin/stable_token" => (state.rules.limits().stable_per_day, stable),
        _ => (10_000_000, state.ledger.counts.calls_to(path)),
    };
    let remain = daily_limit.saturating_sub(used);
    let quota = json!({"daily_limit": daily_limit, "used": used, "remain": remain});
    Ok(json!({"errcode": 0, "errmsg": "ok", "quota": quota}))
}

/// Tells of a failed call, with the token it carried: the real one does, too (`wechat-api.md` 4h).
fn rid(state: &State, ask: &Ask<'_>, appid: &str) -> Result<Value, Errcode> {
    let body = posted_json(ask)?;
    let rid = body.get("rid").and_then(Value::as_str).unwrap_or_default();
    if rid.is_empty() {
        return Err(Errcode::RID_INVALID);
    }
    let found = state.shelf.failed.iter().find(|(name, _)| name == rid).map(|(_, failed)| failed);
    let own = |failed: &&Failed| failed.appid.as_deref().is_none_or(|owner| owner == appid);
    let failed = found.filter(own).ok_or(Errcode::RID_UNKNOWN)?;
    Ok(json!({"errcode": 0, "errmsg": "ok", "request": {
        "invoke_time": 1_700_000_000 + failed.at.as_secs(),
        "cost_in_ms": 30,
        "request_url": failed.request_url,
        "request_body": failed.request_body,
        "response_body": failed.response_body,
        "client_ip": failed.client_ip,
    }}))
}
