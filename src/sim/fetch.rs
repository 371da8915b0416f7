//! The two endpoints that issue tokens: `GET /cgi-bin/token` and `POST /cgi-bin/stable_token`.

use std::time::Duration;

use serde_json::{Value, json};

use super::State;
use super::errcode::Errcode;
use super::levers::{ExpiresIn, FetchFailure};
use super::message::{Ask, JSON_CHARSET, Reply};
use super::rules::{Grant, Kind};

/// Which kind of token a path issues.
pub(crate) fn kind_of(path: &str) -> Option<Kind> {
    match path {
        "/cgi-bin/token" => Some(Kind::Classic),
        "/cgi-bin/stable_token" => Some(Kind::Stable),
        _ => None,
    }
}

/// How a fetch ends.
pub(crate) enum Outcome {
    Reply(Reply),
    /// The connection closes without an answer.
    Drop,
    /// No answer ever comes.
    Hang,
}

/// Answers a fetch. The second value is the account, where the fetch proved to be one's.
pub(crate) fn fetch(
    state: &mut State,
    ask: &Ask<'_>,
    kind: Kind,
    now: Duration,
) -> (Outcome, Option<String>) {
    let body = (kind == Kind::Stable).then(|| ask.json()).flatten();
    let text = |name: &str| match &body {
        Some(body) => body.get(name).and_then(Value::as_str),
        None => ask.query.get(name),
    };
    let force = body.as_ref().and_then(|body| body.get("force_refresh")) == Some(&Value::Bool(true));
    state.ledger.fetch(kind, force);
    if let Some(failure) = state.levers.next_failure() {
        state.ledger.counts.fetches.failed += 1;
        return (fail(state, ask, failure, now), None);
    }
    let appid = text("appid").map(str::to_owned);
    let granted = check(state, ask, kind, body.is_some(), text).and_then(|()| {
        let appid = appid.as_deref().unwrap_or_default();
        match kind {
            Kind::Classic => state.rules.fetch_classic(appid, now),
            Kind::Stable => state.rules.fetch_stable(appid, force, now),
        }
    });
    match granted {
        Ok(grant) => (Outcome::Reply(grant_reply(state, &grant)), appid),
        Err(errcode) => (Outcome::Reply(refuse(state, ask, errcode, now)), None),
    }
}

fn check<'a>(
    state: &State,
    ask: &Ask<'_>,
    kind: Kind,
    is_json: bool,
    text: impl Fn(&str) -> Option<&'a str>,
) -> Result<(), Errcode> {
    if kind == Kind::Stable {
        if ask.method != "POST" {
            return Err(Errcode::REQUIRE_POST);
        }
        if ask.body.length == 0 {
            return Err(Errcode::BODY_EMPTY);
        }
        if !is_json {
            return Err(Errcode::NOT_JSON);
        }
    }
    if text("grant_type") != Some("client_credential") {
        return Err(Errcode::GRANT_TYPE);
    }
    state.rules.authenticate(text("appid"), text("secret"))
}

fn grant_reply(state: &mut State, grant: &Grant) -> Reply {
    let fetches = &mut state.ledger.counts.fetches;
    fetches.granted += 1;
    fetches.fresh += u64::from(grant.fresh);
    let mut body = json!({"access_token": grant.token, "expires_in": grant.expires_in});
    match (&state.levers.expires_in, body.as_object_mut()) {
        (Some(ExpiresIn::Absent), Some(fields)) => drop(fields.remove("expires_in")),
        (Some(ExpiresIn::Value(value)), Some(fields)) => {
            fields.insert("expires_in".to_owned(), value.clone());
        }
        _ => {}
    }
    Reply::json(JSON_CHARSET, &body)
}

fn refuse(state: &mut State, ask: &Ask<'_>, errcode: Errcode, now: Duration) -> Reply {
    *state.ledger.counts.fetches.refusals.entry(errcode.0).or_default() += 1;
    state.refusal(ask, errcode, None, now)
}

fn fail(state: &mut State, ask: &Ask<'_>, failure: FetchFailure, now: Duration) -> Outcome {
    Outcome::Reply(match failure {
        FetchFailure::Errcode(code) => refuse(state, ask, Errcode(code), now),
        FetchFailure::Status(status) => {
            let page =
                format!("<html><head><title>{status}</title></head><body><h1>{status}</h1></body></html>");
            Reply { status, ..Reply::bytes("text/html", page.into()) }
        }
        FetchFailure::Garbage => Reply::bytes(JSON_CHARSET, "\u{1}<<<not json>>>{\"access_token\":".into()),
        FetchFailure::Empty => Reply::bytes(JSON_CHARSET, "".into()),
        FetchFailure::Body(body) => Reply::bytes(JSON_CHARSET, body.into()),
        FetchFailure::Drop => return Outcome::Drop,
        FetchFailure::Hang => return Outcome::Hang,
    })
}
