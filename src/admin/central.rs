//! The central token server: hands the token out to those who hold a key, so that they need no AppSecret and no
//! whitelisted address, and takes their word when WeChat refuses it. What WeChat asks of whoever has several servers:
//! one place that fetches, a way to make it fetch, and the old token served on meanwhile (`wechat-api.md` 1).
//!
//! A token is asked for with `GET /v1/token`. `POST /v1/token/refresh` names the one that was refused: if it is ours,
//! one fetch is made for everyone who waits; if it is not, ours is the answer, at once.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use hyper::body::Incoming;
use serde::Serialize;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::keys::Key;
use super::{Admin, Asked, PATIENCE, Reply, reply};
use crate::account::Account;
use crate::error::{Cause, Failure};
use crate::server::Connection;
use crate::token::keeper::{Refresh, Refusal, Said};
use crate::token::{Fingerprint, Token};

/// When WeChat has just held to a token, those who still report it are late: they speak of what was answered already.
/// For so long their word is not news, and waits for the breaker.
const LATE: Duration = Duration::from_secs(2);

/// A token on its way to whoever may have it. WeChat's own names, and ours.
#[derive(Serialize)]
struct HandedOut<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'static str>,
    access_token: &'a str,
    /// Whole seconds, rounded down, never 0.
    expires_in: u64,
    fingerprint: String,
    /// Since WeChat was asked for it: of two tokens, the younger one is the newer.
    age_seconds: f64,
}

impl Admin {
    /// `GET /v1/token`.
    pub(super) async fn hand_out(
        &self,
        request: Request<Incoming>,
        connection: &Connection,
    ) -> Result<Reply, Failure> {
        let key = self.central_key(&request, connection).await?;
        let asked = Asked::read(request, &["appid"]).await?;
        let (_, account) = self.account_of(key, asked.text("appid")?)?;
        tracing::debug!(appid = %account.appid(), key_of_line = key.line, "the token is asked for");
        let token = account.keeper().token(PATIENCE).await.map_err(|none| Failure {
            cause: Cause::NoToken,
            message: none.message,
            retry_after: Some(none.retry_after),
        })?;
        handed_out(account, &token, None)
    }

    /// `POST /v1/token/refresh`.
    pub(super) async fn refresh_for_another(
        &self,
        request: Request<Incoming>,
        connection: &Connection,
    ) -> Result<Reply, Failure> {
        let key = self.central_key(&request, connection).await?;
        let asked = Asked::read(request, &["appid", "refused", "news"]).await?;
        let (at, account) = self.account_of(key, asked.text("appid")?)?;
        let held = &self.held[at];
        let refused = asked.text("refused")?.ok_or_else(|| {
            Failure::new(
                Cause::RequestBody,
                "the token that WeChat refused is not named; nothing was done. Send it, or better its fingerprint, as refused",
            )
        })?;
        let refused = Fingerprint::parse(refused).unwrap_or_else(|| Fingerprint::of(refused));
        let news = asked.flag("news")?;
        tracing::debug!(appid = %account.appid(), key_of_line = key.line, token = %refused, news, "a token is reported as refused");
        let keeper = account.keeper();
        let refresh = match keeper.find(refused) {
            Some(token) => {
                let late = held.get().is_some_and(|(name, at)| name == refused && at.elapsed() < LATE);
                let news = news && !late;
                if news {
                    // Not by a call of ours, but WeChat has taken it.
                    token.mark_accepted();
                }
                let refusal = Refusal { said: Said::Reported, chronic: !news };
                keeper.refresh(&token, refusal, PATIENCE).await
            }
            None => match keeper.token(PATIENCE).await {
                Ok(token) => Refresh::Another(token),
                Err(none) => Refresh::No(none.message),
            },
        };
        match refresh {
            Refresh::Another(token) => handed_out(account, &token, Some("another")),
            Refresh::Same(token) => {
                held.set(Some((token.fingerprint(), Instant::now())));
                handed_out(account, &token, Some("same"))
            }
            Refresh::No(why) => Err(not_refreshed(account, &why)),
        }
    }

    async fn central_key<B>(&self, request: &Request<B>, connection: &Connection) -> Result<&Key, Failure> {
        let callers = self.central.as_ref().ok_or_else(|| {
            Failure::new(
                Cause::NotOffered,
                "this sidecar is no central token server, since it has no central_keys_file; set it, or ask the sidecar that has one",
            )
        })?;
        callers.admit(request.headers(), connection).await
    }

    /// The account, if this key is good for it. SECURITY: whether there is such an account is no affair of others.
    fn account_of(&self, key: &Key, appid: Option<&str>) -> Result<(usize, &Account), Failure> {
        let account = self.account(appid).filter(|(_, account)| key.covers(account.appid()));
        account.ok_or_else(foreign_appid)
    }
}

pub(super) fn foreign_appid() -> Failure {
    Failure::new(
        Cause::ForeignAppid,
        "this key is not for that appid, or there is no such account here; nothing was done. Add the appid to the key's line, or correct it",
    )
}

pub(super) fn not_refreshed(account: &Account, why: &str) -> Failure {
    let status = account.keeper().status();
    let wait = status.next_attempt.filter(|_| status.failure.is_some()).unwrap_or_default();
    let lives = if status.token.is_some() { "; the token there is goes on being served" } else { "" };
    Failure {
        cause: Cause::NotRefreshed,
        message: format!("no other token for {}: {why}{lives}", account.appid()),
        retry_after: Some(wait.max(Duration::from_secs(1))),
    }
}

fn handed_out(account: &Account, token: &Token, result: Option<&'static str>) -> Result<Reply, Failure> {
    let expires_in = token.remaining().as_secs();
    if expires_in == 0 {
        return Err(Failure {
            cause: Cause::NoToken,
            message: format!("the token of {} is in its last second; ask again in a second", account.appid()),
            retry_after: Some(Duration::from_secs(1)),
        });
    }
    let handed_out = HandedOut {
        result,
        access_token: token.expose(),
        expires_in,
        fingerprint: token.fingerprint().to_string(),
        age_seconds: token.fetched_at().elapsed().as_secs_f64(),
    };
    // SECURITY: room enough that it never moves and leaves a copy; wiped when the reply lets go of it.
    let mut body = Zeroizing::new(Vec::with_capacity(16 * 1024));
    serde_json::to_writer(&mut *body, &handed_out)
        .map_err(|_| Failure::new(Cause::NoToken, "the token could not be written; ask again"))?;
    Ok(reply(StatusCode::OK, "application/json", Bytes::from_owner(body)))
}
