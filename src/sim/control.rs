//! The control port of a simulation: every lever and every observation over HTTP and JSON, for tests in any language.
//!
//! `GET /` lists them. SECURITY: it has no password; listen on loopback, or where only a test can reach it.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::levers::{Canned, DropWhen, ExpiresIn, FOREVER, FetchFailure, RefusalShape};
use super::message::Query;
use super::rules::{Kind, Limits};
use super::{Seen, Sim};
use crate::credentials::{AppId, Secret};

/// What `GET /` answers.
const HELP: &str = r#"Control port of a SIMULATED WeChat API. It has no connection to Tencent.

Look
  GET  /state                 accounts, live tokens, quotas used, limits, levers
  GET  /counts                what happened how often
  GET  /seen                  the last requests; ?limit=N (100) and ?path=PREFIX
  GET  /ca.pem                the TLS authority, where TLS is served

Levers take a JSON body. "appid" may be left out and is then the first account. "path" is a prefix and may be left out
for all paths. "times" is a number or "forever", and 1 when left out.

Tokens
  POST /expire                {"appid"}                      its tokens run out: 42001
  POST /rotate                {"appid","kind","at_once"}     another caller fetched; kind: stable or classic
  POST /revoke_overlap        {"appid"}                      handovers end: 40001 for the older tokens
  POST /expire_user_tokens    {}
  POST /account               {"appid","secret"}             a new account, or a new secret
  POST /accept_token          {"appid","token"}              a token not issued here is good
  POST /limits                {"life","overlap","classic_per_day","stable_per_minute","stable_per_day",
                               "forced_per_day","forced_gap","resets_per_month","token_length"}, any of them
  POST /token_length          {"length":512}
  POST /advance               {"seconds":7200}               moves the simulated clock on

Token fetches
  POST /fail_fetches          {"errcode":-1,"times":3}, or instead of errcode: {"status":502}, {"body":"..."},
                              {"how":"drop"}, {"how":"hang"}, {"how":"garbage"}, {"how":"empty"}
  POST /fetch_delay           {"ms":500}
  POST /hold_fetches          {}                             answers wait
  POST /release_fetches       {}                             until this
  POST /expires_in            {"value":-1} or any JSON, {"absent":true}, {} for the truth
  POST /caller_ip             {"ip":"101.45.43.1"}           the address 40164 names

Calls
  POST /delay                 {"path","ms":500}              0 ends it
  POST /drop                  {"path","when","times"}        when: before_reply or mid_reply
  POST /fail_calls            {"path","body","status","content_type","times"}
  POST /refuse                {"path","errcode":40001}       although the token is good, until /reset_levers
  POST /gather                {"path","count":20}            that many calls wait for each other, then are judged
  POST /refusal_shape         {"shape"}                      plain, string, last, spaced, control or nested
  POST /close_connections     {}

  POST /reset_levers          {}                             tokens, limits and clock stay
  POST /reset_counts          {}
"#;

/// The simulated clock is moved a hundred years at once and no more.
const MAX_ADVANCE: u64 = 100 * 365 * 24 * 60 * 60;
/// The largest control request.
const MAX_BODY: usize = 8 << 20;

/// Serves until told to stop.
pub(crate) async fn accept(listener: TcpListener, sim: Sim, mut stop: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = stop.changed() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let _ = stream.set_nodelay(true);
                    let sim = sim.clone();
                    connections.spawn(async move {
                        let service = service_fn(|request| handle(&sim, request));
                        // How a client leaves is its own affair.
                        let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                    });
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            },
        }
    }
}

type Answer = Response<Full<Bytes>>;

async fn handle(sim: &Sim, request: Request<Incoming>) -> Result<Answer, Infallible> {
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    if let Some(answer) = look(sim, path, head.uri.query().unwrap_or_default()) {
        return Ok(match head.method {
            Method::GET | Method::HEAD => answer,
            _ => failed(StatusCode::METHOD_NOT_ALLOWED, &format!("{path} takes GET")),
        });
    }
    if !LEVERS.contains(&path) {
        return Ok(failed(StatusCode::NOT_FOUND, &format!("there is no {path}; GET / lists what there is")));
    }
    if head.method != Method::POST {
        return Ok(failed(StatusCode::METHOD_NOT_ALLOWED, &format!("{path} takes POST")));
    }
    let Ok(body) = Limited::new(body, MAX_BODY).collect().await else {
        return Ok(failed(StatusCode::BAD_REQUEST, "the body broke off or is above 8 MiB"));
    };
    Ok(match pull(sim, path, &body.to_bytes()) {
        Ok(value) => answered(StatusCode::OK, "application/json", value.to_string()),
        Err(reason) => failed(StatusCode::BAD_REQUEST, &reason),
    })
}

fn answered(status: StatusCode, content_type: &'static str, body: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    answer
}

fn failed(status: StatusCode, reason: &str) -> Answer {
    answered(status, "application/json", json!({"error": reason}).to_string())
}

/// Answers an observation; `None` when the path is none.
fn look(sim: &Sim, path: &str, query: &str) -> Option<Answer> {
    let json = |value: Value| answered(StatusCode::OK, "application/json", value.to_string());
    Some(match path {
        "/" => answered(StatusCode::OK, "text/plain; charset=utf-8", HELP.to_owned()),
        "/state" => json(sim.state()),
        "/counts" => json(json!(sim.counts())),
        "/seen" => seen(sim, &Query::parse(query)),
        "/ca.pem" => match sim.ca_pem() {
            Some(pem) => answered(StatusCode::OK, "application/x-pem-file", pem.to_owned()),
            None => failed(StatusCode::NOT_FOUND, "this simulation serves no TLS"),
        },
        _ => return None,
    })
}

fn seen(sim: &Sim, query: &Query) -> Answer {
    let Ok(limit) = query.get("limit").unwrap_or("100").parse::<usize>() else {
        return failed(StatusCode::BAD_REQUEST, "limit is not a number");
    };
    let prefix = query.get("path").unwrap_or_default();
    let mut all = sim.seen();
    all.retain(|seen| seen.target.starts_with(prefix));
    let shown: Vec<Value> = all.split_off(all.len().saturating_sub(limit)).iter().map(shown).collect();
    answered(StatusCode::OK, "application/json", Value::Array(shown).to_string())
}

/// A request with its body as text, where it is short and is text.
fn shown(seen: &Seen) -> Value {
    let mut value = json!(seen);
    let text = std::str::from_utf8(&seen.body_head).ok().filter(|text| text.len() <= 4096);
    if let (Some(fields), Some(text)) = (value.as_object_mut(), text) {
        fields.insert("body".to_owned(), text.into());
    }
    value
}

/// The paths of the levers, as [`pull`] knows them.
pub(super) const LEVERS: [&str; 24] = [
    "/accept_token",
    "/account",
    "/advance",
    "/caller_ip",
    "/close_connections",
    "/delay",
    "/drop",
    "/expire",
    "/expire_user_tokens",
    "/expires_in",
    "/fail_calls",
    "/fail_fetches",
    "/fetch_delay",
    "/gather",
    "/hold_fetches",
    "/limits",
    "/refusal_shape",
    "/refuse",
    "/release_fetches",
    "/reset_counts",
    "/reset_levers",
    "/revoke_overlap",
    "/rotate",
    "/token_length",
];

/// `times` as a number or `"forever"`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Times {
    Number(u32),
    Word(Forever),
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Forever {
    Forever,
}

impl Times {
    fn number(times: Option<Self>) -> u32 {
        match times {
            None => 1,
            Some(Self::Number(number)) => number,
            Some(Self::Word(Forever::Forever)) => FOREVER,
        }
    }
}

/// How a fetch may fail without further words.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum How {
    Drop,
    Hang,
    Garbage,
    Empty,
}

/// Every argument a lever can have. A lever says which it takes; another is an error.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Arguments {
    appid: Option<String>,
    kind: Option<Kind>,
    at_once: Option<bool>,
    secret: Option<String>,
    token: Option<String>,
    length: Option<usize>,
    seconds: Option<u64>,
    errcode: Option<i64>,
    status: Option<u16>,
    body: Option<String>,
    content_type: Option<String>,
    how: Option<How>,
    times: Option<Times>,
    ms: Option<u64>,
    ip: Option<String>,
    path: Option<String>,
    when: Option<DropWhen>,
    count: Option<u32>,
    shape: Option<RefusalShape>,
}

fn need<T>(argument: Option<T>, name: &str) -> Result<T, String> {
    argument.ok_or_else(|| format!("\"{name}\" is missing"))
}

fn parse<T: DeserializeOwned>(fields: &Map<String, Value>) -> Result<T, String> {
    serde_json::from_value(Value::Object(fields.clone())).map_err(|error| error.to_string())
}

/// The arguments a lever takes, in the words of its body.
fn takes(lever: &str) -> &'static [&'static str] {
    match lever {
        "/expire" | "/revoke_overlap" => &["appid"],
        "/rotate" => &["appid", "kind", "at_once"],
        "/account" => &["appid", "secret"],
        "/accept_token" => &["appid", "token"],
        "/token_length" => &["length"],
        "/advance" => &["seconds"],
        "/fail_fetches" => &["errcode", "status", "body", "how", "times"],
        "/fetch_delay" => &["ms"],
        "/caller_ip" => &["ip"],
        "/delay" => &["path", "ms"],
        "/drop" => &["path", "when", "times"],
        "/fail_calls" => &["path", "body", "status", "content_type", "times"],
        "/refuse" => &["path", "errcode"],
        "/gather" => &["path", "count"],
        "/refusal_shape" => &["shape"],
        _ => &[],
    }
}

/// Moves a lever.
fn pull(sim: &Sim, lever: &str, body: &[u8]) -> Result<Value, String> {
    let fields: Map<String, Value> = if body.trim_ascii().is_empty() {
        Map::new()
    } else {
        serde_json::from_slice(body).map_err(|error| format!("the body is not a JSON object: {error}"))?
    };
    let done = json!({"ok": true});
    match lever {
        "/limits" => return limits(sim, fields),
        "/expires_in" => return expires_in(sim, &fields).map(|()| done),
        _ => {}
    }
    let taken = takes(lever);
    if let Some(unknown) = fields.keys().find(|name| !taken.contains(&name.as_str())) {
        let known = if taken.is_empty() { "nothing".to_owned() } else { taken.join(", ") };
        return Err(format!("{lever} does not take \"{unknown}\"; it takes {known}"));
    }
    let given: Arguments = parse(&fields)?;
    let path = given.path.as_deref().unwrap_or("/");
    if !path.starts_with('/') {
        return Err("\"path\" begins with /".to_owned());
    }
    let ms = || need(given.ms, "ms").map(Duration::from_millis);
    match lever {
        "/expire" => sim.expire_now(&account(sim, given.appid)?),
        "/revoke_overlap" => sim.revoke_overlap(&account(sim, given.appid)?),
        "/rotate" => {
            let appid = account(sim, given.appid)?;
            match (given.kind, given.at_once) {
                (None, None) => sim.rotate(&appid),
                (kind, at_once) => {
                    let kind = kind.unwrap_or(Kind::Stable);
                    sim.rotate_kind(&appid, kind, at_once.unwrap_or(kind == Kind::Stable));
                }
            }
        }
        "/expire_user_tokens" => sim.expire_user_tokens(),
        "/account" => {
            let appid = AppId::parse(&need(given.appid, "appid")?)
                .map_err(|reason| format!("\"appid\" cannot be used: {reason}"))?;
            let secret = Secret::parse(&need(given.secret, "secret")?)
                .map_err(|reason| format!("\"secret\" cannot be used: {reason}"))?;
            sim.set_account(&appid, &secret);
        }
        "/accept_token" => sim.accept_extra_token(&account(sim, given.appid)?, &need(given.token, "token")?),
        "/token_length" => sim.token_length(need(given.length, "length")?),
        "/advance" => sim.advance(Duration::from_secs(need(given.seconds, "seconds")?.min(MAX_ADVANCE))),
        "/fail_fetches" => {
            let ways = [
                given.errcode.map(FetchFailure::Errcode),
                given.status.map(FetchFailure::Status),
                given.body.map(FetchFailure::Body),
                given.how.map(|how| match how {
                    How::Drop => FetchFailure::Drop,
                    How::Hang => FetchFailure::Hang,
                    How::Garbage => FetchFailure::Garbage,
                    How::Empty => FetchFailure::Empty,
                }),
            ];
            let mut ways = ways.into_iter().flatten();
            let (Some(failure), None) = (ways.next(), ways.next()) else {
                return Err("give exactly one of \"errcode\", \"status\", \"body\" and \"how\"".to_owned());
            };
            check_status(given.status)?;
            sim.fail_fetches(failure, Times::number(given.times));
        }
        "/fetch_delay" => sim.fetch_delay(ms()?),
        "/hold_fetches" => sim.hold_fetches(),
        "/release_fetches" => sim.release_fetches(),
        "/caller_ip" => sim.caller_ip(&need(given.ip, "ip")?),
        "/delay" => sim.delay(path, ms()?),
        "/drop" => {
            let when = given.when.unwrap_or(DropWhen::BeforeReply);
            sim.drop_connection(path, when, Times::number(given.times));
        }
        "/fail_calls" => {
            check_status(given.status)?;
            let usual = Canned::default();
            let canned = Canned {
                body: given.body.unwrap_or(usual.body),
                status: given.status.unwrap_or(usual.status),
                content_type: given.content_type.unwrap_or(usual.content_type),
            };
            sim.fail_calls(path, canned, Times::number(given.times));
        }
        "/refuse" => sim.always_refuse(path, given.errcode.unwrap_or(40001)),
        "/gather" => sim.gather(path, need(given.count, "count")?.min(100_000)),
        "/refusal_shape" => sim.refusal_shape(given.shape.unwrap_or_default()),
        "/close_connections" => sim.close_connections(),
        "/reset_levers" => sim.reset_levers(),
        "/reset_counts" => sim.reset_counts(),
        other => return Err(format!("{other} is not a lever")),
    }
    Ok(done)
}

/// A final status HTTP has room for.
fn check_status(status: Option<u16>) -> Result<(), String> {
    match status {
        Some(status) if !(200..=599).contains(&status) => Err("\"status\" is 200 to 599".to_owned()),
        _ => Ok(()),
    }
}

/// The account a lever moves: the one named, or the first.
fn account(sim: &Sim, named: Option<String>) -> Result<String, String> {
    let first = || sim.accounts().first().map(|appid| appid.as_str().to_owned());
    let appid = need(named.or_else(first), "appid")?;
    let known = sim.core.look(|state, _| state.rules.appids().any(|known| known == appid));
    if known { Ok(appid) } else { Err(format!("there is no account {appid}")) }
}

/// Changes the limits that are given and answers all of them.
fn limits(sim: &Sim, given: Map<String, Value>) -> Result<Value, String> {
    let Value::Object(mut fields) = json!(sim.limits()) else {
        return Err("limits are no object".to_owned());
    };
    fields.extend(given);
    let limits: Limits = parse(&fields)?;
    if limits.life == 0 || limits.life > 1 << 40 {
        return Err("\"life\" is 1 second at least".to_owned());
    }
    sim.set_limits(|old| *old = limits);
    Ok(json!({"ok": true, "limits": sim.limits()}))
}

fn expires_in(sim: &Sim, fields: &Map<String, Value>) -> Result<(), String> {
    let mut pairs = fields.iter();
    sim.expires_in(match (pairs.next(), pairs.next()) {
        (None, _) => None,
        (Some((name, value)), None) if name == "value" => Some(ExpiresIn::Value(value.clone())),
        (Some((name, Value::Bool(true))), None) if name == "absent" => Some(ExpiresIn::Absent),
        _ => return Err("/expires_in takes {\"value\": any JSON}, {\"absent\": true} or {}".to_owned()),
    });
    Ok(())
}
