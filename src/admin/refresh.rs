//! The passive refresh, `POST /refresh`: the app, or an operator, says that WeChat refused the token. It answers what
//! was done, and never with the token.
//!
//! A report that names no token, or the placeholder, which is all the app has, counts as a refusal of the one there
//! is. It is hearsay, so it waits for the breaker; what comes again and again is not fetched for again and again.
//! `force=true` voids whatever token there is, for an operator with a key, within the budget that WeChat grants.

use std::time::Duration;

use http::{Request, StatusCode};
use hyper::body::Incoming;

use super::central::{foreign_appid, not_refreshed};
use super::guard::{self, Bucket, Callers};
use super::{Admin, Asked, PATIENCE, Reply, reply};
use crate::account::{self, Account};
use crate::error::{Cause, Failure};
use crate::server::Connection;
use crate::token::keeper::{Reason, Refresh, Refusal, Said};
use crate::token::{Fingerprint, Token};

/// Where it is.
pub(super) const PATH: &str = "/refresh";

/// Refreshes in a row for one account, and one in so long after that: an app in a loop is no reason to fetch.
pub(super) fn budget() -> Bucket {
    Bucket::new(10, Duration::from_secs(5))
}

impl Admin {
    /// `POST /refresh`.
    pub(super) async fn refresh(
        &self,
        request: Request<Incoming>,
        connection: &Connection,
    ) -> Result<Reply, Failure> {
        let here = guard::is_here(&request, connection);
        let presented = guard::bearer(request.headers()).is_some();
        let key = match &self.operators {
            // Whoever shows a key means to be judged by it, here too.
            Some(operators) if presented || !here => {
                Some(Callers::admit(operators, request.headers(), connection).await?)
            }
            Some(_) => None,
            None if here && !presented => None,
            None => return Err(no_operators()),
        };
        let asked = Asked::read(request, &["appid", "refused", "force"]).await?;
        let refused = asked.text("refused")?;
        let named = match (asked.text("appid")?, refused.and_then(account::placeholder_appid)) {
            (Some(appid), Some(other)) if appid != other => {
                return Err(Failure::new(
                    Cause::TwoAppids,
                    "the appid and the placeholder name two accounts; nothing was done. Send one of them",
                ));
            }
            (appid, other) => appid.or(other),
        };
        let found = self.account(named);
        let (at, account) = found
            .filter(|(_, account)| key.is_none_or(|key| key.covers(account.appid())))
            .ok_or_else(foreign_appid)?;
        let force = asked.flag("force")?;
        if force && key.is_none() {
            return Err(match &self.operators {
                None => no_operators(),
                Some(_) => Failure::new(
                    Cause::NoKey,
                    "force=true voids the token of everyone, so it takes a key of operator_keys_file, also on this machine; nothing was done. Send it as Authorization: Bearer KEY",
                ),
            });
        }
        self.refreshes[at].take().map_err(|wait| guard::too_often("for this account", wait))?;
        let keeper = account.keeper();
        let before = keeper.known().last().cloned();
        if force {
            tracing::warn!(appid = %account.appid(), key_of_line = key.map(|key| key.line), "an operator forces a refresh");
            return told(account, keeper.fetch_now(Reason::Operator { force: true }, PATIENCE).await, before);
        }
        let refusal = Refusal { said: Said::Reported, chronic: true };
        let refused = refused
            .filter(|refused| !account::is_placeholder(refused))
            .map(|refused| Fingerprint::parse(refused).unwrap_or_else(|| Fingerprint::of(refused)));
        match before {
            Some(before) if refused.is_none_or(|refused| refused == before.fingerprint()) => {
                told(account, keeper.refresh(&before, refusal, PATIENCE).await, Some(before))
            }
            _ => match keeper.token(PATIENCE).await {
                Ok(token) if refused.is_some() => {
                    answer("another", &token, "that token is already replaced; nothing was done")
                }
                Ok(token) => answer("another", &token, "the first token has just come"),
                Err(none) => Err(Failure {
                    cause: Cause::NoToken,
                    message: none.message,
                    retry_after: Some(none.retry_after),
                }),
            },
        }
    }
}

fn no_operators() -> Failure {
    Failure::new(
        Cause::NoKey,
        "this takes a key, and there is no operator_keys_file to look it up in; nothing was done. Set it, or ask from this machine, without force",
    )
}

/// What came of it. SECURITY: names the token, and never shows it.
fn told(account: &Account, refresh: Refresh, before: Option<Token>) -> Result<Reply, Failure> {
    match refresh {
        Refresh::Another(token) if Some(&token) != before.as_ref() => {
            answer("another", &token, "another token is in use from now on")
        }
        Refresh::Another(token) | Refresh::Same(token) => answer(
            "same",
            &token,
            "WeChat was asked, and holds to this token; so it is not the token that is bad",
        ),
        Refresh::No(why) => match account.keeper().current() {
            Some(token) => {
                answer("held back", &token, &format!("{why}; the token there is goes on being served"))
            }
            None => Err(not_refreshed(account, &why)),
        },
    }
}

fn answer(result: &str, token: &Token, message: &str) -> Result<Reply, Failure> {
    let body = serde_json::json!({
        "result": result,
        "fingerprint": token.fingerprint().to_string(),
        "expires_in": token.remaining().as_secs(),
        "message": message,
    });
    Ok(reply(StatusCode::OK, "application/json", format!("{body}\n")))
}
