//! One line a call: [`Record`] is opened when a request arrives and writes the access line when it is dropped,
//! however the call ends: whole, cut, or left by the app.
//!
//! SECURITY: of a query only the keys are written, never a value (`peers.md` 5, 15).

use std::time::Duration;

use http::uri::PathAndQuery;
use http::{Method, Request, StatusCode};
use tokio::time::Instant;

use crate::credentials::AppId;
use crate::error::Cause;
use crate::proxy::inject;
use crate::telemetry::ACCESS;

/// What is known of a call so far.
#[derive(Debug)]
pub struct Record {
    /// `None` when nobody listens: then a call costs no formatting.
    line: Option<Box<Line>>,
    started: Instant,
    /// Time spent waiting for WeChat's reply heads and for what was looked at of their bodies.
    pub upstream: Duration,
    /// Time spent waiting for a token.
    pub token_wait: Duration,
    /// How often WeChat was sent the call: 0, 1 or 2.
    pub attempts: u32,
    /// What WeChat said of the token, if it refused it: the first refusal's errcode.
    pub refused: Option<i64>,
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
}

impl Record {
    /// Opens the record of a request that has just come.
    #[must_use]
    pub fn open<B>(request: &Request<B>) -> Self {
        let line = tracing::enabled!(target: ACCESS, tracing::Level::INFO).then(|| {
            Box::new(Line {
                method: request.method().clone(),
                target: request.uri().path_and_query().cloned(),
                account: None,
            })
        });
        Self {
            line,
            started: Instant::now(),
            upstream: Duration::ZERO,
            token_wait: Duration::ZERO,
            attempts: 0,
            refused: None,
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

    /// Whose call it is.
    pub fn account(&mut self, appid: &AppId) {
        if let Some(line) = &mut self.line {
            line.account = Some(appid.clone());
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

    /// The reply's body ended before its end.
    pub fn cut(&mut self, cause: Cause) {
        self.cut = Some(cause);
    }

    /// The app has been given all of it.
    pub fn whole(&mut self) {
        self.whole = true;
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let Some(line) = &self.line else { return };
        let path = line.target.as_ref().map_or("-", PathAndQuery::path);
        let keys =
            line.target.as_ref().and_then(PathAndQuery::query).map(inject::query_keys).unwrap_or_default();
        let (status, own) = match self.head {
            Some((status, own)) => (status.as_u16(), own),
            // The app closed before it was answered: nginx's number for that.
            None => (499, Duration::ZERO),
        };
        let end = match (self.head, self.cut, self.whole) {
            (None, _, _) => "left",
            (_, Some(cause), _) => cause.name(),
            (_, None, true) => "whole",
            (_, None, false) => "left",
        };
        tracing::info!(
            target: ACCESS,
            account = line.account.as_ref().map_or("-", AppId::as_str),
            method = line.method.as_str(),
            path = %path.escape_default(),
            keys,
            status,
            error = self.cause.map_or("-", Cause::name),
            refused = self.refused.unwrap_or(0),
            attempts = self.attempts,
            end,
            ms = millis(self.started.elapsed()),
            upstream_ms = millis(self.upstream),
            token_ms = millis(self.token_wait),
            own_us = u64::try_from(own.as_micros()).unwrap_or(u64::MAX),
            "call"
        );
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
