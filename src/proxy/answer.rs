//! The calls that are answered here and never forwarded: an SDK that asks for a token gets its account's
//! placeholder, in WeChat's shape.
//!
//! `expires_in` is the integer 7200: SDKs take up to 1,500 s off, and some have integer types (`sdks.md` 3). However
//! often an SDK asks, nothing is fetched.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, header};
use zeroize::Zeroizing;

use crate::clients::KEY_HEADER;
use crate::proxy::route::Routes;

/// The largest body of a token request; WeChat's own is under 300 bytes.
pub const MAX_TOKEN_REQUEST: usize = 64 * 1024;

/// Answers `/cgi-bin/token` and `/cgi-bin/stable_token` as WeChat would, with a placeholder.
#[must_use]
pub fn token(
    routes: &Routes,
    method: &Method,
    path: &str,
    query: &str,
    headers: &HeaderMap,
    body: &[u8],
) -> Response<Bytes> {
    let stable = path == "/cgi-bin/stable_token";
    if stable && method != Method::POST {
        return error(43002, "require POST method");
    }
    let asked = Asked { query, body: std::str::from_utf8(body).unwrap_or_default() };
    if asked.param("grant_type").as_deref() != Some("client_credential") {
        return error(40002, "invalid grant_type");
    }
    let Some(appid) = asked.param("appid") else { return error(41002, "appid missing") };
    // Any secret will do: it is ours that counts. None at all is a mistake WeChat would name, too.
    let Some(secret) = asked.param("secret") else { return error(41004, "appsecret missing") };
    let secret = Zeroizing::new(secret);
    let account = routes.account(&appid);
    let Some(clients) = routes.clients() else {
        return account.map_or_else(unknown_appid, |account| placeholder(account.placeholder()));
    };
    // Where keys are asked for, the secret is one, unless the header has it.
    let key = match headers.get(KEY_HEADER) {
        Some(key) => key.to_str().unwrap_or_default(),
        None => &secret,
    };
    let Some(client) = clients.by_key(key) else {
        return error(
            40125,
            "invalid appsecret (this wechat-sidecar asks for a key of its client_keys_file in place of the AppSecret)",
        );
    };
    match account.filter(|account| client.may_be(account.appid())) {
        Some(account) => placeholder(&account.placeholder_for(key)),
        None => unknown_appid(),
    }
}

fn placeholder(token: &str) -> Response<Bytes> {
    ok(&format!(r#"{{"access_token":"{token}","expires_in":7200}}"#))
}

/// What WeChat says to an appid it does not know, for one that we do not hold.
#[must_use]
pub fn unknown_appid() -> Response<Bytes> {
    error(
        40013,
        "invalid appid (wechat-sidecar holds no such account; configure it, or correct the app's appid)",
    )
}

/// A token request: parameters in the query (classic), in a JSON body (stable), or in a form.
struct Asked<'a> {
    query: &'a str,
    body: &'a str,
}

impl Asked<'_> {
    fn param(&self, name: &str) -> Option<String> {
        let in_form = |text: &str| {
            form_urlencoded::parse(text.as_bytes())
                .find(|(key, _)| key == name)
                .map(|(_, value)| value.into_owned())
        };
        let found = in_form(self.query).or_else(|| {
            match serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(self.body) {
                Ok(object) => object.get(name)?.as_str().map(str::to_owned),
                Err(_) => in_form(self.body.trim()),
            }
        });
        found.filter(|value| !value.is_empty())
    }
}

fn ok(json: &str) -> Response<Bytes> {
    let mut reply = Response::new(Bytes::copy_from_slice(json.as_bytes()));
    // 200 and this type, always: co-wechat-api decides by it whether to parse (sdks.md 3).
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}

fn error(errcode: i32, errmsg: &str) -> Response<Bytes> {
    ok(&format!(r#"{{"errcode":{errcode},"errmsg":"{errmsg}"}}"#))
}
