//! THE WAY: what happens to a request, in what order. The data plane's front page.
//!
//! `accept → record → gate → route → admit → hold → credential → inject → forward → inspect → (refresh → replay) → reply → record closes`
//!
//! `Proxy::exchange` reads from top to bottom. The steps: [`gate`] turns away who has no business here, [`route`] says
//! whose credential and where it goes, [`admission`] gives the call its turn and its place, [`call`] holds the body, [`credential`] and [`inject`] write it, [`upstream`] speaks to WeChat, [`inspect`] finds a refused
//! token, [`reply`] carries the answer back, [`record`] writes the line. [`answer`] is for what is never forwarded.
//!
//! A call goes upstream twice only because WeChat said that the token it carried was bad (40001, 40014, 42001).
//! Never because of a timeout, a reset or -1: a message sent twice is worse than an error.

pub mod admission;
pub mod answer;
pub mod call;
pub mod chronic;
pub mod credential;
pub mod gate;
pub mod head;
pub mod inject;
pub mod inspect;
mod known;
pub mod mask;
pub mod readings;
pub mod record;
pub mod reply;
pub mod route;
pub mod told;
pub mod upstream;

use std::rc::Rc;
use std::time::Duration;

use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use tokio::time::Instant;

use crate::clients::Keyring;
use crate::error::{ATTEMPTS_HEADER, Cause, Failure};
use crate::metrics::Tally;
use crate::proxy::admission::{Admission, Capacity};
use crate::proxy::call::{Call, Heading, Limits, ReplayBudget, read_small};
use crate::proxy::chronic::Chronic;
use crate::proxy::gate::Gate;
use crate::proxy::inject::Target;
use crate::proxy::inspect::{Inspector, Verdict};
use crate::proxy::mask::Mask;
use crate::proxy::record::Record;
use crate::proxy::reply::Outbound;
use crate::proxy::route::{Action, Route, Routes, SecretForm};
use crate::proxy::upstream::{NotAnswered, Reply, Upstream};
use crate::server::{Connection, Handler};
use crate::slots::Slot;
use crate::token::Token;
use crate::token::keeper::{Refresh, Refusal, Said};

/// The limits of a call.
#[derive(Clone, Debug)]
pub struct Config {
    /// The largest request body, in bytes; above it the answer is 413.
    pub max_body: u64,
    /// The largest body that is kept so that the call can go again, in bytes.
    pub replay_limit: u64,
    /// What all kept bodies may take together, in bytes.
    pub replay_budget: u64,
    /// The longest a call waits for a token.
    pub token_wait: Duration,
    /// Whom to listen to.
    pub gate: gate::Config,
    /// Who may call, if that is asked.
    pub keyring: Option<Keyring>,
    /// How much may go on at once.
    pub admission: admission::Config,
}

/// One worker's proxy: the routes, its own way to WeChat, and the limits.
pub struct Proxy {
    gate: Gate,
    admission: Admission,
    routes: Routes,
    upstream: Upstream,
    limits: Limits,
    token_wait: Duration,
    host: HeaderValue,
    chronic: Chronic,
    tally: Rc<Tally>,
}

/// What became of a call: WeChat's answer, or one of ours.
enum Answer {
    WeChats(Reply, Mask),
    Ours(Response<bytes::Bytes>),
}

impl Handler for Proxy {
    type Body = Outbound;

    fn place(&self) -> Result<Option<Slot>, Failure> {
        self.admission.connection().map(Some)
    }

    fn reads(&self) -> Option<Vec<HeaderName>> {
        Some([self.gate.reads(), vec![record::TRACEPARENT]].concat())
    }

    fn opened(&self) {
        self.tally.connection_opened();
    }

    fn closed(&self) {
        self.tally.connection_closed();
    }

    async fn handle(&self, request: Request<Incoming>, connection: &Connection) -> Response<Outbound> {
        let mut record = Record::open(&request, &self.tally);
        let http10 = request.version() < Version::HTTP_11;
        let (mut head, body) = request.into_parts();
        match self.exchange(&mut head, body, connection, &mut record).await {
            Ok(Answer::WeChats(reply, mask)) => Outbound::wechats(reply, mask, http10, connection, record),
            Ok(Answer::Ours(reply)) => Outbound::ours(reply, None, record),
            Err(failure) => {
                record.failed(&failure);
                tracing::debug!(cause = failure.cause.name(), "{}", failure.message);
                Outbound::failure(&failure, record)
            }
        }
    }
}

impl Proxy {
    /// A worker's proxy. `budget` and `capacity` are shared by all of them; `tally` is this worker's own.
    #[must_use]
    pub fn new(
        config: &Config,
        routes: Routes,
        upstream: Upstream,
        budget: ReplayBudget,
        capacity: Capacity,
        tally: Tally,
    ) -> Self {
        let limits = Limits {
            max_body: config.max_body,
            replay_limit: config.replay_limit,
            idle_timeout: upstream.config().idle_timeout,
            budget,
        };
        let host = upstream.config().origin.host_header();
        let (gate, routes) = (Gate::new(config.gate.clone()), routes.for_clients(config.keyring.clone()));
        let admission = Admission::new(config.admission.clone(), capacity);
        let (token_wait, chronic, tally) = (config.token_wait, Chronic::default(), Rc::new(tally));
        Self { gate, admission, routes, upstream, limits, token_wait, host, chronic, tally }
    }

    /// The way to WeChat, for the sweep of idle connections.
    #[must_use]
    pub fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// Carries one request to WeChat and the reply back.
    ///
    /// What is rare is boxed where it is waited for: the future of a call is moved about several times, and the largest of
    /// all that it may ever wait for is in its size (4 KB without, which was 2,000 instructions a call).
    async fn exchange(
        &self,
        head: &mut Parts,
        body: Incoming,
        connection: &Connection,
        record: &mut Record,
    ) -> Result<Answer, Failure> {
        // gate: whether to listen at all.
        let raw = connection.take_head();
        let host = route::one_host(head.version, &raw)?;
        self.gate.admit(head, host, !connection.is_tls())?;

        // route: whose credential, and where it goes.
        if connection.is_tls() {
            self.routes.check_host(&head.uri, host)?;
        }
        let mut route = self.routes.find_for(&head.method, &head.uri, &head.headers)?;
        record.route(route.account.appid(), route.action);
        record.client(route.client.as_ref());
        match route.action {
            Action::AnswerToken => {
                return Box::pin(self.answer_token(&route, head, body)).await.map(Answer::Ours);
            }
            Action::AnswerUnknownAppid => return Ok(Answer::Ours(answer::unknown_appid())),
            Action::AppendSecret(SecretForm { secret: Some(_), body: false, .. }) => {
                credential::check_secret(route.account, &route.account.secrets())?;
            }
            Action::AppendToken | Action::AppendSecret(_) | Action::KeepUserToken => {}
        }

        // admit: its turn, and its place among the calls under way.
        let place = self.admission.enter(route.account, &head.method, route.target.path()).await?;
        record.place = Some(place);

        // hold: the body is kept while it goes out, or held whole if it has no length.
        // A refusal, or an echo of our credentials, in gzip or brotli would go unseen.
        let identity = route.action != Action::KeepUserToken;
        let came_at = record.started();
        let private = self.gate.private();
        let heading = Heading { raw: &raw, host: &self.host, private, identity, connection, came_at };
        let mut call = match route.action {
            Action::AppendSecret(SecretForm { body: true, .. }) => {
                let body = read_small(body, credential::MAX_SECRET_BODY, self.limits.idle_timeout);
                let body = Box::pin(body).await?;
                let before = route.account.appid();
                match credential::into_body(&self.routes, &mut route, &body)? {
                    Some(body) => {
                        // It may have named another account of ours, on other terms.
                        record.route(route.account.appid(), route.action);
                        route.check(&head.method)?;
                        if route.account.appid() != before {
                            record.place = None;
                            let path = route.target.path();
                            record.place =
                                Some(self.admission.enter(route.account, &head.method, path).await?);
                        }
                        Call::of(head, body, heading, &self.limits)
                    }
                    None => return Ok(Answer::Ours(answer::unknown_appid())),
                }
            }
            _ => Call::hold(head, body, heading, &self.limits).await?,
        };
        // The call has its own by now, and others can use the room while it waits.
        drop(raw);

        // credential: the token that lives, or the one that a fetch in flight will bring.
        let (token, now) = self.credential(&route, record).await?;

        // inject, forward.
        let target = credential::write(&route, token.as_ref())?;
        let mut reply = self.forward(&call, target, now, record).await.map_err(|not| not.failure)?;

        // inspect: did WeChat refuse the token?
        let Some(token) = token else { return Ok(answered(reply, &route, &head.method, record)) };
        let refused = match self.inspect(&route, &mut reply, record).await? {
            Verdict::Refused(errcode) => errcode,
            Verdict::Clean | Verdict::Undecided => {
                self.accepted(&route, &token, &reply);
                call.let_go();
                return Ok(answered(reply, &route, &head.method, record));
            }
        };
        record.refused = Some(refused);

        // refresh: it names the token that was refused, whether this call can go again or not.
        let asked_at = Instant::now();
        let (appid, path) = (route.account.appid(), route.target.path());
        let refusal = Refusal { said: Said::Errcode(refused), chronic: self.chronic.has(appid, path) };
        let refresh = Box::pin(route.account.keeper().refresh(&token, refusal, self.token_wait)).await;
        record.token_wait += asked_at.elapsed();
        let fresh = match refresh {
            Refresh::Another(fresh) | Refresh::Same(fresh) => fresh,
            Refresh::No(why) => {
                tracing::debug!(errcode = refused, "a refused call goes back as it came: {why}");
                return Ok(answered(reply, &route, &head.method, record));
            }
        };

        // replay: once, the very same bytes. Whatever comes back goes to the app.
        if !call.is_kept() {
            return Ok(answered(reply, &route, &head.method, record));
        }
        reply.body.end_upload();
        if !Box::pin(call.again()).await {
            return Ok(answered(reply, &route, &head.method, record));
        }
        let target = credential::write(&route, Some(&fresh))?;
        match Box::pin(self.forward(&call, target, Instant::now(), record)).await {
            Ok(mut second) => {
                match Box::pin(self.inspect(&route, &mut second, record)).await? {
                    Verdict::Refused(_) => self.chronic.add(appid, path),
                    Verdict::Clean | Verdict::Undecided => self.accepted(&route, &fresh, &second),
                }
                Ok(answered(second, &route, &head.method, record))
            }
            // WeChat saw it just once, so the app gets what WeChat said.
            Err(NotAnswered { sent: false, .. }) => Ok(answered(reply, &route, &head.method, record)),
            // It may have taken effect: the refusal would be a lie, and the app's own retry a second message.
            Err(NotAnswered { failure, .. }) => Err(failure),
        }
    }

    /// WeChat answered a call with `token` otherwise than by refusing it. Only a 200 says that it looked.
    fn accepted(&self, route: &Route<'_>, token: &Token, reply: &Reply) {
        if reply.head.status == StatusCode::OK {
            token.mark_accepted();
            self.chronic.remove(route.account.appid(), route.target.path());
        }
    }

    /// The token the call will carry, if its route wants one; and when it is.
    async fn credential(
        &self,
        route: &Route<'_>,
        record: &mut Record,
    ) -> Result<(Option<Token>, Instant), Failure> {
        let now = Instant::now();
        if !route.action.carries_token() {
            return Ok((None, now));
        }
        let keeper = route.account.keeper();
        if let Some(token) = keeper.current_at(now) {
            return Ok((Some(token), now));
        }
        let waited = Box::pin(keeper.token(self.token_wait)).await;
        let came_at = Instant::now();
        record.token_wait += came_at - now;
        waited.map(|token| (Some(token), came_at)).map_err(|unavailable| Failure {
            cause: Cause::NoToken,
            message: unavailable.message,
            retry_after: Some(unavailable.retry_after),
        })
    }

    async fn forward(
        &self,
        call: &Call,
        target: Target,
        sent_at: Instant,
        record: &mut Record,
    ) -> Result<Reply, NotAnswered> {
        let request = call.with(&target);
        // Its room is of use to other calls while this one waits.
        drop(target);
        let outcome = self.upstream.send(request, &call.progress(), sent_at).await;
        record.upstream += match &outcome {
            Ok(reply) => reply.came_at.saturating_duration_since(sent_at),
            Err(_) => sent_at.elapsed(),
        };
        if !matches!(outcome, Err(NotAnswered { sent: false, .. })) {
            record.attempts += 1;
        }
        outcome
    }

    /// Looks at no more of the reply than it takes to know that it is no refusal.
    async fn inspect(
        &self,
        route: &Route<'_>,
        reply: &mut Reply,
        record: &mut Record,
    ) -> Result<Verdict, Failure> {
        if !inspect::can_be_refusal(reply.body.size_hint().exact(), reply.head.is_encoded) {
            return Ok(Verdict::Clean);
        }
        // What is here already is not waited for.
        let looked_at = (!reply.body.is_here()).then(Instant::now);
        let mut inspector = Inspector::new();
        let device = route.target.path().starts_with(inspect::DEVICE);
        let mut length = 0;
        let verdict = loop {
            match reply.body.look().await {
                Ok(Some(piece)) => {
                    length += piece.len();
                    match inspector.push(piece) {
                        Verdict::Undecided => {}
                        // Only at the top level, so far: `base_resp` is read when all of it is there.
                        Verdict::Clean if device && length <= inspect::PREFIX => {}
                        decided => break decided,
                    }
                }
                Ok(None) => match inspector.finish() {
                    Verdict::Clean if device => {
                        break inspect::base_resp(&reply.body.looked_at());
                    }
                    verdict => break verdict,
                },
                // Nothing has gone to the app yet, so it can be told properly.
                Err(cut) => return Err(cut.0),
            }
        };
        record.upstream += looked_at.map_or(Duration::ZERO, |looked_at| looked_at.elapsed());
        Ok(verdict)
    }

    async fn answer_token(
        &self,
        route: &Route<'_>,
        head: &Parts,
        body: Incoming,
    ) -> Result<Response<bytes::Bytes>, Failure> {
        let body = read_small(body, answer::MAX_TOKEN_REQUEST, self.limits.idle_timeout).await?;
        let query = route.target.query().unwrap_or_default();
        Ok(answer::token(&self.routes, &head.method, route.target.path(), query, &head.headers, &body))
    }
}

/// WeChat's reply, with what it may echo of the account's credentials still to be masked.
fn answered(mut reply: Reply, route: &Route<'_>, method: &Method, record: &mut Record) -> Answer {
    record.wechats(reply.body.begins(), method, &route.target);
    if record.attempts > 1 {
        reply.head.set(ATTEMPTS_HEADER.as_str(), &record.attempts.to_string());
    }
    Answer::WeChats(reply, Mask::new(route.account))
}

#[cfg(test)]
mod tests;
