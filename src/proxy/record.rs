//! One line a call: [`Record`] is opened when a request arrives. When it is dropped it counts the call and writes the
//! access line, however the call ends: whole, cut, or left by the app.
//!
//! SECURITY: of a query only the keys are written, never a value (`peers.md` 5, 15).

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "otel")]
use http::HeaderValue;
use http::uri::PathAndQuery;
use http::{HeaderName, Method, Request, StatusCode};
use tokio::time::Instant;

use crate::clients::Client;
use crate::credentials::AppId;
use crate::error::{Cause, Failure};
use crate::metrics::labels::{Action, Outcome, REFUSALS};
use crate::metrics::{Ended, Tally};
use crate::policy::shown;
use crate::proxy::admission::Place;
use crate::proxy::{inject, route, told};
use crate::telemetry::ACCESS;
use crate::telemetry::access;
#[cfg(feature = "otel")]
use crate::telemetry::traces;

/// What is known of a call so far.
#[derive(Debug)]
pub struct Record {
    tally: Rc<Tally>,
    /// `None` when nobody listens: then a call costs no formatting.
    line: Option<Box<Line>>,
    #[cfg(feature = "otel")]
    span: Option<traces::Call>,
    started: Instant,
    /// Time spent waiting for WeChat's reply heads and for what was looked at of their bodies.
    pub upstream: Duration,
    /// Time spent waiting for a token.
    pub token_wait: Duration,
    /// How often WeChat was sent the call: 0, 1 or 2.
    pub attempts: u32,
    /// What WeChat said of the token, if it refused it: the first refusal's errcode.
    pub refused: Option<i64>,
    account: usize,
    action: Action,
    /// The call as WeChat got it, where its answer's first piece is still to come.
    called: Option<Box<(Method, PathAndQuery)>>,
    /// What the reply says that the app gets.
    errcode: Option<i64>,
    looked: bool,
    /// The call's place among those under way; free again when the record closes.
    pub place: Option<Place>,
    head: Option<(StatusCode, Duration)>,
    cause: Option<Cause>,
    cut: Option<Cause>,
    whole: bool,
}

#[derive(Debug)]
struct Line {
    method: Method,
    target: Option<PathAndQuery>,
    account: Option<AppId>,
    rid: Option<String>,
    trace: Option<String>,
    client: Option<Arc<Client>>,
}

/// The header that names the trace a call belongs to (W3C Trace Context).
pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

impl Record {
    /// Opens the record of a request that has just come. `tally` is this worker's.
    #[must_use]
    pub fn open<B>(request: &Request<B>, tally: &Rc<Tally>) -> Self {
        let line = tracing::enabled!(target: ACCESS, tracing::Level::INFO).then(|| {
            // One by one: there are few, since hyper is given only those that are read, and to hash a name costs more.
            let trace = request.headers().iter().find(|(name, _)| *name == TRACEPARENT);
            Box::new(Line {
                method: request.method().clone(),
                target: request.uri().path_and_query().cloned(),
                account: None,
                rid: None,
                trace: trace.and_then(|(_, parent)| told::trace_id(parent.as_bytes())).map(str::to_owned),
                client: None,
            })
        });
        Self {
            tally: Rc::clone(tally),
            line,
            #[cfg(feature = "otel")]
            span: traces::Call::open(
                request.method().as_str(),
                request.uri().path(),
                request.headers().get(TRACEPARENT).map(HeaderValue::as_bytes),
            ),
            started: Instant::now(),
            upstream: Duration::ZERO,
            token_wait: Duration::ZERO,
            attempts: 0,
            refused: None,
            account: tally.no_account(),
            action: Action::None,
            called: None,
            errcode: None,
            looked: false,
            place: None,
            head: None,
            cause: None,
            cut: None,
            whole: false,
        }
    }

    /// When the request came.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Whose call it is, and what it wants.
    pub fn route(&mut self, appid: &AppId, action: route::Action) {
        self.account = self.tally.account(appid);
        self.action = match action {
            route::Action::AppendToken => Action::AppendToken,
            route::Action::AppendSecret(_) => Action::AppendSecret,
            route::Action::KeepUserToken => Action::KeepUserToken,
            route::Action::AnswerToken => Action::AnswerToken,
            route::Action::AnswerUnknownAppid => Action::AnswerUnknownAppid,
        };
        if let Some(line) = &mut self.line {
            line.account = Some(appid.clone());
        }
    }

    /// Who calls, where that is asked.
    pub fn client(&mut self, client: Option<&Arc<Client>>) {
        if let Some(line) = &mut self.line {
            line.client = client.cloned();
        }
    }

    /// The call ends with an error of ours.
    pub fn failed(&mut self, failure: &Failure) {
        // What the app did wrong is the app's to read.
        if failure.cause.status().is_server_error() {
            self.tally.trouble(failure.cause, self.account, &failure.message);
        }
    }

    /// The reply's head is on its way to the app.
    pub fn answered(&mut self, status: StatusCode, cause: Option<Cause>) {
        // Only the line tells how long it took; without one no clock is read.
        let own = match self.line {
            Some(_) => self.started.elapsed().saturating_sub(self.upstream + self.token_wait),
            None => Duration::ZERO,
        };
        self.head = Some((status, own));
        self.cause = cause;
    }

    /// A piece of the reply's body goes to the app. Only the first is looked at.
    pub fn passed(&mut self, piece: &[u8]) {
        if std::mem::replace(&mut self.looked, true) {
            return;
        }
        self.errcode = told::errcode(piece);
        if self.errcode.is_some_and(|code| code != 0)
            && let Some(line) = &mut self.line
        {
            line.rid = told::rid(piece).map(str::to_owned);
        }
        if let Some(called) = self.called.take() {
            self.tell_limit(&called.0, called.1.path());
        }
    }

    /// WeChat's answer is here: `begins` is its first piece, which will be passed on, if that is here too. If it says that
    /// the API is called too often, that is told with the API's name.
    pub fn wechats(&mut self, begins: &[u8], method: &Method, target: &PathAndQuery) {
        if begins.is_empty() {
            self.called = Some(Box::new((method.clone(), target.clone())));
            return;
        }
        self.passed(begins);
        self.tell_limit(method, target.path());
    }

    fn tell_limit(&self, method: &Method, path: &str) {
        let api = || format!("{method} {}", shown(path));
        if let Some(errcode) = self.errcode
            && let Some(sentence) = self.tally.wechat_limit(errcode, self.account, api)
        {
            tracing::warn!(account = self.tally.name(self.account), "{sentence}");
        }
    }

    /// The reply's body ended before its end.
    pub fn cut(&mut self, failure: &Failure) {
        self.cut = Some(failure.cause);
        self.failed(failure);
    }

    /// The app has been given all of it.
    pub fn whole(&mut self) {
        self.whole = true;
    }

    /// The status the app got. If it closed before it was answered: nginx's number for that.
    fn status(&self) -> u16 {
        self.head.map_or(499, |(status, _)| status.as_u16())
    }

    #[cfg(feature = "otel")]
    fn end_span(&mut self) {
        let Some(span) = self.span.take() else { return };
        let outcome = self.outcome();
        span.end(&traces::Ended {
            account: self.tally.name(self.account),
            action: self.action.name(),
            outcome: outcome.name(),
            status: self.status(),
            errcode: self.errcode,
            attempts: self.attempts,
            upstream: self.upstream,
            token_wait: self.token_wait,
            failed: matches!(outcome, Outcome::Cut | Outcome::Ours(_)),
        });
    }

    fn outcome(&self) -> Outcome {
        if let Some(cause) = self.cause {
            return Outcome::Ours(cause);
        }
        let Some((status, _)) = self.head else { return Outcome::Left };
        if self.cut.is_some() {
            return Outcome::Cut;
        }
        if !self.whole {
            return Outcome::Left;
        }
        let errcode = self.errcode.unwrap_or_default();
        if self.refused.is_some() {
            let cured = self.attempts > 1 && !REFUSALS.contains(&errcode);
            return if cured { Outcome::RefusedAndCured } else { Outcome::Refused };
        }
        if errcode != 0 || status.is_client_error() || status.is_server_error() {
            return Outcome::WechatError;
        }
        Outcome::Ok
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let whole = self.started.elapsed();
        self.tally.call(&Ended {
            account: self.account,
            action: self.action,
            outcome: self.outcome(),
            errcode: self.errcode,
            refused: self.refused,
            replayed: self.attempts > 1,
            whole,
            upstream: (self.attempts > 0).then_some(self.upstream),
            token_wait: Some(self.token_wait).filter(|waited| !waited.is_zero()),
            own: self.head.map(|(_, own)| own),
        });
        #[cfg(feature = "otel")]
        self.end_span();
        let Some(line) = &self.line else { return };
        let path = line.target.as_ref().map_or("-", PathAndQuery::path);
        let keys =
            line.target.as_ref().and_then(PathAndQuery::query).map(inject::query_keys).unwrap_or_default();
        let (status, own) = (self.status(), self.head.map_or(Duration::ZERO, |(_, own)| own));
        let end = match (self.head, self.cut, self.whole) {
            (None, _, _) => "left",
            (_, Some(cause), _) => cause.name(),
            (_, None, true) => "whole",
            (_, None, false) => "left",
        };
        access::write(&access::Entry {
            account: line.account.as_ref().map_or("-", AppId::as_str),
            client: line.client.as_ref().map(|client| client.name()),
            method: line.method.as_str(),
            path,
            keys: &keys,
            status,
            error: self.cause.map_or("-", Cause::name),
            errcode: self.errcode,
            rid: line.rid.as_deref(),
            refused: self.refused.unwrap_or(0),
            attempts: self.attempts,
            end,
            ms: millis(whole),
            upstream_ms: millis(self.upstream),
            token_ms: millis(self.token_wait),
            own_us: u64::try_from(own.as_micros()).unwrap_or(u64::MAX),
            trace: line.trace.as_deref(),
        });
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
