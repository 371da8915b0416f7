//! A token from a central token server, another sidecar that fetches for all: [`CentralSource`]. It needs no AppSecret
//! and no whitelisted address, just a key.
//!
//! `GET /v1/token?appid=` asks for the token there is, once a minute: WeChat's own advice to those who take it from a
//! central server (`wechat-api.md` 1). `POST /v1/token/refresh` names the token that was refused, by its fingerprint,
//! and says whether the refusal is news, so that the server's breaker judges it as its own. Whatever comes back, the
//! keeper's rules hold: an older token than ours is not taken, the one that was refused counts as the same.
//!
//! SECURITY: the key travels in a header, over TLS or on this machine; a redirect, which would carry it on, is not
//! followed.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use serde::Serialize;
use serde_json::Value;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::client::{Client, Names, Reply, Way};
use super::errcode::{Class, FetchError, presentable};
use super::{Pace, Supplier, TokenSource, Want, reply};
use crate::credentials::{AppId, Secret};
use crate::error::{Cause, ERROR_HEADER};
use crate::origin::Origin;
use crate::tls::ExtraRoots;
use crate::token::Token;

/// Where a central server hands out the token it has.
pub const TOKEN_PATH: &str = "/v1/token";
/// And where it is told that WeChat refused one.
pub const REFRESH_PATH: &str = "/v1/token/refresh";

/// The central server and the key to it.
#[derive(Clone)]
pub struct Config {
    /// Its admin port.
    pub origin: Origin,
    /// One of its `central_keys_file`.
    pub key: Secret,
    /// Roots to trust beside Mozilla's.
    pub roots: ExtraRoots,
    /// The longest a connection may take.
    pub connect_timeout: Duration,
    /// The longest a whole request may take.
    pub fetch_timeout: Duration,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "central {} with {}", self.origin, self.key)
    }
}

/// What is said of a token that WeChat refused: the body of [`REFRESH_PATH`].
#[derive(Serialize)]
struct Report<'a> {
    /// Whose token it was.
    appid: &'a str,
    /// Its fingerprint.
    refused: String,
    /// As [`Want::news`].
    news: bool,
}

/// It is a server of our own, and asking it costs nobody a fetch: so often, and within seconds where it fails.
const CENTRAL: Pace = Pace {
    // It renews with 300 s left or more, and we hear within a minute: with less, something is wrong there.
    ahead: Duration::from_secs(120),
    jitter: Duration::from_secs(20),
    burst: 120,
    refill: Duration::from_secs(1),
    refusal_wait: Duration::from_secs(16),
    voids_the_last: false,
    look_again: Some(Duration::from_secs(60)),
};

/// A central server that fails is asked again within this, so that nobody waits for one that is back.
const AT_MOST: Duration = Duration::from_secs(5);
/// However long the server says to wait, a person may have mended it before.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// A key it does not know, or not for this account: every attempt is counted there.
const WRONG_KEY: Duration = Duration::from_secs(15);
/// A token with less life than this would be dead before it served a call.
const LEAST_LIFE: u64 = 2;
/// What is older is a mistake: no token lives for more than a day.
const OLDEST: f64 = 86_400.0;

const NAMES: Names = Names { who: "a central token server", setting: "central", roots: "central_ca_file" };

/// `GET /v1/token` and `POST /v1/token/refresh` of another sidecar.
pub struct CentralSource {
    client: Client,
    appid: AppId,
    key: Secret,
    bearer: HeaderValue,
}

impl CentralSource {
    /// # Errors
    /// A sentence, when no HTTP client can be built.
    pub fn new(config: &Config, appid: AppId) -> Result<Self, String> {
        let client = Client::new(&Way {
            origin: &config.origin,
            roots: &config.roots,
            // The egress proxy is for WeChat's whitelist; a central server is one of our own.
            proxy: None,
            connect_timeout: config.connect_timeout,
            fetch_timeout: config.fetch_timeout,
            names: NAMES,
        })?;
        let bearer = Zeroizing::new(format!("Bearer {}", config.key.expose()));
        let mut bearer = HeaderValue::from_str(&bearer).map_err(
            |_| "the key of central_key_file is not fit for a header; give one of visible ASCII characters",
        )?;
        bearer.set_sensitive(true);
        Ok(Self { client, appid, key: config.key.clone(), bearer })
    }

    /// Reads one reply to a request that was sent at `asked_at`.
    ///
    /// # Errors
    /// What it says instead of a token, or why its token cannot be used.
    pub fn parse(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        body: &[u8],
        asked_at: Instant,
    ) -> Result<Token, FetchError> {
        let said = reply::read_object(body);
        let field = |name: &str| said.as_ref().and_then(|object| object.get(name));
        let origin = self.client.origin();
        let errmsg = field("errmsg").and_then(Value::as_str).unwrap_or_default();
        let errmsg = presentable(errmsg.trim_start_matches("wechat-sidecar: "), &self.key);
        if !status.is_success() {
            return Err(self.unsuccessful(status, headers, &errmsg));
        }
        if field("errcode").is_some_and(|errcode| reply::integer(errcode) != Some(0)) {
            return Err(ours(
                Class::Transient,
                format!(
                    "the central server at {origin} answered with an error ({errmsg}); it is asked again shortly"
                ),
            ));
        }
        let unfit = |what: &str| {
            ours(
                Class::Transient,
                format!(
                    "the central server at {origin} answered with no token that can be used: {what}; check that central names a wechat-sidecar with central_keys_file"
                ),
            )
        };
        let Some(Value::String(value)) = field("access_token") else {
            return Err(unfit("there is no access_token in it"));
        };
        let left = match field("expires_in").map(reply::integer) {
            Some(Some(left)) if left > reply::LONGEST_LIFE => return Err(unfit("its expires_in is absurd")),
            Some(Some(left)) => u64::try_from(left).unwrap_or(0),
            Some(None) | None => return Err(unfit("its expires_in is not a whole number of seconds")),
        };
        if left < LEAST_LIFE {
            return Err(ours(
                Class::Transient,
                format!(
                    "the token of the central server at {origin} is about to die (expires_in {left}), so it is not taken; it is asked again shortly, and if this goes on see what that server's log says"
                ),
            ));
        }
        // How old it is decides which of two tokens is the newer one. Nothing can be older than this machine.
        let age = field("age_seconds").and_then(Value::as_f64).filter(|age| (0.0..OLDEST).contains(age));
        let age = Duration::from_secs_f64(age.unwrap_or(0.0));
        let (fetched_at, age) = match asked_at.checked_sub(age) {
            Some(at) => (at, age),
            None => (asked_at, Duration::ZERO),
        };
        Token::new(value, fetched_at, age + Duration::from_secs(left)).map_err(unfit)
    }

    fn unsuccessful(&self, status: StatusCode, headers: &HeaderMap, errmsg: &str) -> FetchError {
        let (origin, appid, code) = (self.client.origin(), &self.appid, status.as_u16());
        let said = if errmsg.is_empty() { format!("HTTP {code}") } else { format!("HTTP {code}, {errmsg}") };
        let wait = headers
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .map_or(Duration::ZERO, Duration::from_secs)
            .min(LONGEST_WAIT);
        let (class, wait, sentence) = match code {
            401 => (
                Class::Config,
                WRONG_KEY,
                format!(
                    "the central server at {origin} does not know our key ({said}); put a key of its central_keys_file into central_key_file and restart"
                ),
            ),
            403 if headers.get(ERROR_HEADER).is_some_and(|cause| cause == Cause::CrossSite.name()) => (
                Class::Config,
                WRONG_KEY,
                format!(
                    "the central server does not go by the name in {origin} ({said}); there, add the name to admin_hosts"
                ),
            ),
            403 => (
                Class::Config,
                WRONG_KEY,
                format!(
                    "the central server at {origin} does not let us have the token of {appid} ({said}); in its central_keys_file, add {appid} to our key"
                ),
            ),
            404 | 405 => (
                Class::Config,
                WRONG_KEY,
                format!(
                    "there is no central token server at {origin} ({said}); set central_keys_file there, and check that central names its admin port"
                ),
            ),
            429 => (
                Class::Quota,
                wait,
                format!(
                    "the central server at {origin} is asked too often with our key ({said}); give each group of sidecars a key of its own"
                ),
            ),
            503 => (
                Class::Transient,
                wait,
                format!(
                    "the central server at {origin} has no other token ({errmsg}); it is asked again shortly"
                ),
            ),
            300..=399 => (
                Class::Config,
                WRONG_KEY,
                format!(
                    "the central server at {origin} answered with a redirect ({code}), which is never followed because it would carry the key on; let central name the server itself"
                ),
            ),
            _ => (
                Class::Transient,
                wait,
                format!(
                    "the central server at {origin} answered with {said}; it is asked again, and if this goes on check central"
                ),
            ),
        };
        let error = ours(class, sentence);
        FetchError { retry_after: error.retry_after.max(wait), at_most: error.at_most.max(wait), ..error }
    }
}

impl TokenSource for CentralSource {
    fn name(&self) -> &'static str {
        "central"
    }

    fn pace(&self) -> Pace {
        CENTRAL
    }

    fn supplier(&self) -> Supplier {
        Supplier::Central
    }

    async fn fetch(&self, want: Want<'_>) -> Result<Token, FetchError> {
        if want.force {
            return Err(ours(
                Class::Transient,
                "a forced refresh is not passed on, because it voids the token of everyone; force it at the central server".to_owned(),
            ));
        }
        let request = match want.refused {
            None => self.client.request(Method::GET, &format!("{TOKEN_PATH}?appid={}", self.appid)),
            Some(refused) => {
                let report = Report {
                    appid: self.appid.as_str(),
                    refused: refused.fingerprint().to_string(),
                    news: want.news,
                };
                let body = serde_json::to_vec(&report)
                    .map_err(|_| FetchError::transient("the report could not be written"))?;
                self.client
                    .request(Method::POST, REFRESH_PATH)
                    .header(CONTENT_TYPE, "application/json")
                    .body(Bytes::from(body))
            }
        };
        let reply = self.client.ask(request.header(AUTHORIZATION, self.bearer.clone()), &self.key).await;
        let Reply { status, headers, body, asked_at } =
            reply.map_err(|error| FetchError { at_most: AT_MOST, ..error })?;
        self.parse(status, &headers, &body, asked_at)
    }
}

fn ours(class: Class, sentence: String) -> FetchError {
    FetchError { class, at_most: AT_MOST, ..FetchError::transient(sentence) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "a-key-of-16-chars";

    fn source() -> CentralSource {
        let config = Config {
            origin: Origin::parse("http://127.0.0.1:1").unwrap(),
            key: Secret::parse(KEY).unwrap(),
            roots: ExtraRoots::default(),
            connect_timeout: Duration::from_secs(1),
            fetch_timeout: Duration::from_secs(1),
        };
        assert!(!format!("{config:?}").contains(KEY));
        CentralSource::new(&config, AppId::parse("wx1").unwrap()).unwrap()
    }

    fn parse(status: u16, headers: &[(&'static str, &'static str)], body: &str) -> Result<Token, FetchError> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, HeaderValue::from_static(value));
        }
        let status = StatusCode::from_u16(status).unwrap();
        let parsed = source().parse(status, &map, body.as_bytes(), Instant::now());
        if let Err(error) = &parsed {
            assert!(!format!("{error:?}").contains(KEY), "{error:?}");
            assert!(error.retry_after <= error.at_most && error.at_most <= LONGEST_WAIT, "{error:?}");
            assert!(error.sentence.contains("; "), "no remedy: {error:?}");
        }
        parsed
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_comes_with_its_age_so_that_the_newer_of_two_is_known() {
        tokio::time::advance(Duration::from_secs(1000)).await;
        let now = Instant::now();
        let token =
            parse(200, &[], r#"{"access_token":"T","expires_in":7100,"fingerprint":"x","age_seconds":99.5}"#);
        let token = token.unwrap();
        assert_eq!(now - token.fetched_at(), Duration::from_millis(99_500));
        assert_eq!(token.expires_at() - now, Duration::from_secs(7100));
        for odd in ["-1", "\"x\"", "null", "1e300", "86400"] {
            let body = format!(r#"{{"access_token":"T","expires_in":"100","age_seconds":{odd}}}"#);
            assert_eq!(parse(200, &[], &body).unwrap().fetched_at(), now, "{odd}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whatever_a_central_server_says_is_told_with_a_remedy_and_asked_again_within_reason() {
        let secs = Duration::from_secs;
        let config = |code| (code, Class::Config, WRONG_KEY);
        for ((status, class, wait), headers, body, words) in [
            (
                config(401),
                vec![],
                r#"{"errcode":48001,"errmsg":"wechat-sidecar: a-key-of-16-chars?"}"#,
                "put a key of its central_keys_file",
            ),
            (config(403), vec![], r#"{"errmsg":"no"}"#, "add wx1 to our key"),
            (
                config(403),
                vec![("x-wechat-sidecar-error", "cross-site")],
                r#"{"errmsg":"no such name"}"#,
                "add the name to admin_hosts",
            ),
            (config(404), vec![], "", "no central token server at http://127.0.0.1:1"),
            (config(302), vec![("location", "http://elsewhere/")], "", "never followed"),
            ((429, Class::Quota, secs(3)), vec![("retry-after", "3")], "", "too often"),
            (
                (503, Class::Transient, secs(7)),
                vec![("retry-after", "7")],
                r#"{"errmsg":"40164 there"}"#,
                "40164 there",
            ),
            ((503, Class::Transient, LONGEST_WAIT), vec![("retry-after", "99999")], "", "no other token"),
            ((503, Class::Transient, secs(1)), vec![("retry-after", "soon")], "", "no other token"),
            ((500, Class::Transient, secs(1)), vec![], "<html>", "HTTP 500"),
            ((200, Class::Transient, secs(1)), vec![], r#"{"errcode":-1,"errmsg":"busy"}"#, "busy"),
            (
                (200, Class::Transient, secs(1)),
                vec![],
                r#"{"access_token":"T","expires_in":1}"#,
                "about to die",
            ),
            (
                (200, Class::Transient, secs(1)),
                vec![],
                r#"{"access_token":"T","expires_in":-5}"#,
                "about to die",
            ),
            (
                (200, Class::Transient, secs(1)),
                vec![],
                r#"{"access_token":"T","expires_in":99999}"#,
                "absurd",
            ),
            ((200, Class::Transient, secs(1)), vec![], r#"{"access_token":"T"}"#, "whole number"),
            (
                (200, Class::Transient, secs(1)),
                vec![],
                r#"{"access_token":"a b","expires_in":100}"#,
                "white space",
            ),
            (
                (200, Class::Transient, secs(1)),
                vec![],
                r#"{"access_token":7,"expires_in":100}"#,
                "no access_token",
            ),
            ((200, Class::Transient, secs(1)), vec![], "not JSON", "no access_token"),
            ((200, Class::Transient, secs(1)), vec![], "", "no access_token"),
        ] {
            let error = parse(status, &headers, body).unwrap_err();
            assert!(error.sentence.contains(words), "{status} {body}: {error:?}");
            assert_eq!((error.class, error.retry_after), (class, wait), "{status} {body}");
        }
    }

    #[tokio::test]
    async fn a_forced_refresh_is_not_passed_on() {
        let error = source().fetch(Want { force: true, ..Want::default() }).await.unwrap_err();
        assert!(error.sentence.contains("force it at the central server"));
    }
}
