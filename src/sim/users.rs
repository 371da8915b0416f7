//! WeChat's user login, as far as `/sns/*` needs it: codes, sessions and user tokens, which no app token replaces.
//!
//! Pure like the token rules. Any code works once, unless it begins with `bad` or `invalid`.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::errcode::Errcode;

/// A user token lives two hours.
const TOKEN_LIFE: Duration = Duration::from_secs(7200);
/// A refresh token lives thirty days.
const REFRESH_LIFE: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// Beyond so many, codes and tokens are forgotten: a simulation may run for weeks.
const REMEMBERED: usize = 50_000;

struct Login {
    appid: String,
    openid: String,
    ends_at: Duration,
}

/// Logins of users.
#[derive(Default)]
pub(crate) struct Users {
    used: HashSet<String>,
    tokens: HashMap<String, Login>,
    refresh: HashMap<String, Login>,
}

impl Users {
    /// Takes a login code, once.
    pub(crate) fn use_code(&mut self, appid: &str, code: Option<&str>) -> Result<(), Errcode> {
        let code = code.filter(|text| !text.is_empty()).ok_or(Errcode::CODE_MISSING)?;
        if code.starts_with("bad") || code.starts_with("invalid") {
            return Err(Errcode::CODE);
        }
        if self.used.len() >= REMEMBERED {
            self.used.clear();
        }
        if self.used.insert(format!("{appid} {code}")) { Ok(()) } else { Err(Errcode::CODE_USED) }
    }

    /// Notes a user token.
    pub(crate) fn add_token(&mut self, appid: &str, openid: &str, token: &str, now: Duration) {
        note(&mut self.tokens, appid, openid, token, now, TOKEN_LIFE);
    }

    /// Notes a refresh token.
    pub(crate) fn add_refresh(&mut self, appid: &str, openid: &str, token: &str, now: Duration) {
        note(&mut self.refresh, appid, openid, token, now, REFRESH_LIFE);
    }

    /// The user a refresh token is for.
    pub(crate) fn refreshed(
        &self,
        appid: &str,
        token: Option<&str>,
        now: Duration,
    ) -> Result<String, Errcode> {
        let login = token.and_then(|token| self.refresh.get(token));
        let login = login.filter(|login| login.appid == appid && now < login.ends_at);
        login.map(|login| login.openid.clone()).ok_or(Errcode::REFRESH_TOKEN)
    }

    /// The user a token is for. A bad one has the same 40001 as an app token (`wechat-api.md` 4b).
    pub(crate) fn judge(&self, token: Option<&str>, now: Duration) -> Result<(&str, &str), Errcode> {
        let token = token.filter(|text| !text.is_empty()).ok_or(Errcode::TOKEN_MISSING)?;
        let login = self.tokens.get(token).ok_or(Errcode::NOT_LATEST)?;
        if now < login.ends_at { Ok((&login.appid, &login.openid)) } else { Err(Errcode::EXPIRED) }
    }

    /// Lets every user token run out.
    pub(crate) fn expire(&mut self, now: Duration) {
        for login in self.tokens.values_mut() {
            login.ends_at = login.ends_at.min(now);
        }
    }
}

fn note(
    map: &mut HashMap<String, Login>,
    appid: &str,
    openid: &str,
    token: &str,
    now: Duration,
    life: Duration,
) {
    if map.len() >= REMEMBERED {
        map.retain(|_, login| now < login.ends_at);
    }
    if map.len() >= REMEMBERED {
        map.clear();
    }
    let login = Login { appid: appid.to_owned(), openid: openid.to_owned(), ends_at: now + life };
    map.insert(token.to_owned(), login);
}
