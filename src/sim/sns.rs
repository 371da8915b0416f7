//! `/sns/*`: logins of users. They take an appid and its secret, or a *user's* token, and never the app's.

use std::time::Duration;

use serde_json::{Value, json};

use super::State;
use super::errcode::Errcode;
use super::message::{Ask, Reply, TEXT};

/// Answers a call; the account it proved to be of stands beside the reply.
pub(crate) fn call(
    state: &mut State,
    ask: &Ask<'_>,
    refuse: Option<Errcode>,
    now: Duration,
) -> Result<(String, Reply), Errcode> {
    let appid = ask.query.get("appid").unwrap_or_default();
    let (appid, value) = match ask.path {
        "/sns/jscode2session" => {
            state.rules.authenticate(ask.query.get("appid"), ask.query.get("secret"))?;
            refuse.map_or(Ok(()), Err)?;
            state.users.use_code(appid, ask.query.get("js_code"))?;
            (appid.to_owned(), session(state))
        }
        "/sns/oauth2/access_token" => {
            state.rules.authenticate(ask.query.get("appid"), ask.query.get("secret"))?;
            refuse.map_or(Ok(()), Err)?;
            state.users.use_code(appid, ask.query.get("code"))?;
            let openid = format!("oSim{}", state.rules.scribble(24));
            (appid.to_owned(), login(state, appid, &openid, now))
        }
        "/sns/oauth2/refresh_token" => {
            if appid.is_empty() {
                return Err(Errcode::APPID_MISSING);
            }
            refuse.map_or(Ok(()), Err)?;
            let openid = state.users.refreshed(appid, ask.query.get("refresh_token"), now)?;
            (appid.to_owned(), login(state, appid, &openid, now))
        }
        "/sns/userinfo" | "/sns/auth" => {
            let (appid, openid) = state.users.judge(ask.query.get("access_token"), now)?;
            refuse.map_or(Ok(()), Err)?;
            if ask.query.get("openid") != Some(openid) {
                return Err(Errcode::OPENID);
            }
            (appid.to_owned(), if ask.path == "/sns/auth" { ok() } else { user(openid) })
        }
        _ => (appid.to_owned(), ok()),
    };
    Ok((appid, Reply::json(TEXT, &value)))
}

fn ok() -> Value {
    json!({"errcode": 0, "errmsg": "ok"})
}

fn session(state: &mut State) -> Value {
    let session_key = format!("{}==", state.rules.scribble(22));
    json!({"session_key": session_key, "openid": format!("oSim{}", state.rules.scribble(24))})
}

fn login(state: &mut State, appid: &str, openid: &str, now: Duration) -> Value {
    let token = format!("90_{}", state.rules.scribble(96));
    let refresh = format!("91_{}", state.rules.scribble(96));
    state.users.add_token(appid, openid, &token, now);
    state.users.add_refresh(appid, openid, &refresh, now);
    json!({
        "access_token": token,
        "expires_in": 7200,
        "refresh_token": refresh,
        "openid": openid,
        "scope": "snsapi_userinfo",
    })
}

fn user(openid: &str) -> Value {
    json!({
        "openid": openid,
        "nickname": "微信用户",
        "sex": 0,
        "province": "",
        "city": "",
        "country": "",
        "headimgurl": "https://thirdwx.qlogo.cn/mmopen/simulated/132",
        "privilege": [],
        "unionid": "o6_simulated_unionid",
    })
}
