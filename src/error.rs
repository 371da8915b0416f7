//! What the app sees when we fail: a [`Failure`] knows its [`Cause`], its status and its remedy, and becomes a
//! reply in one place.
//!
//! Ours speak only when WeChat did not: a proper HTTP status, JSON with `errcode` and `errmsg` so that an SDK's own
//! error path works, and `x-wechat-sidecar-error` so that a person or a dashboard can tell whose error it is.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};

/// Names the cause of an error of ours.
pub const ERROR_HEADER: HeaderName = HeaderName::from_static("x-wechat-sidecar-error");
/// On a reply to a call that went to WeChat twice: `2`.
pub const ATTEMPTS_HEADER: HeaderName = HeaderName::from_static("x-wechat-sidecar-attempts");

macro_rules! causes {
    ($($(#[$doc:meta])* $name:ident => $status:ident, $errcode:literal, $kebab:literal;)*) => {
        /// Why we, and not WeChat, answered. The kebab-case name is an interface: dashboards match on it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Cause { $($(#[$doc])* $name,)* }

        impl Cause {
            /// Every cause, for tables and tests.
            pub const ALL: &[Self] = &[$(Self::$name,)*];
            /// The value of `x-wechat-sidecar-error`.
            #[must_use]
            pub fn name(self) -> &'static str { match self { $(Self::$name => $kebab,)* } }
            /// The HTTP status.
            #[must_use]
            pub fn status(self) -> StatusCode { match self { $(Self::$name => StatusCode::$status,)* } }
            /// The `errcode` in the body: -1 is WeChat's "busy", 48001 its "api unauthorized".
            #[must_use]
            pub fn errcode(self) -> i32 { match self { $(Self::$name => $errcode,)* } }
        }
    };
}

causes! {
    /// The request is not HTTP, can be read in two ways, or has a target that is no URI.
    BadRequest => BAD_REQUEST, 40097, "bad-request";
    /// The request target is longer than a URI may be.
    TargetTooLong => URI_TOO_LONG, 40097, "target-too-long";
    /// The request head is larger than `max_head`.
    HeadTooLarge => REQUEST_HEADER_FIELDS_TOO_LARGE, 40097, "head-too-large";
    /// The request target is not a path of this host: absolute form, `*`, `//host/…`.
    BadTarget => BAD_REQUEST, 40097, "bad-target";
    /// The head has no `Host` (HTTP/1.1), or several.
    BadHost => BAD_REQUEST, 40097, "bad-host";
    /// The path would mean a guarded one to whoever normalizes it (`..`, `%2e`, `//`), without being it.
    AmbiguousPath => BAD_REQUEST, 40097, "ambiguous-path";
    /// A call names two accounts.
    TwoAppids => BAD_REQUEST, 40097, "two-appids";
    /// The body that a secret has to be written into is not a JSON object.
    SecretBody => BAD_REQUEST, 47001, "secret-body";
    /// `CONNECT` to a host that is not one of the WeChat API.
    ForeignHost => FORBIDDEN, 48001, "foreign-host";
    /// Over TLS, a `Host` that is not one of the WeChat API.
    Misdirected => MISDIRECTED_REQUEST, 40097, "misdirected";
    /// Plain HTTP where TLS is spoken.
    PlainHttp => BAD_REQUEST, 40097, "plain-http";
    /// `CONNECT` without a local CA, or `TRACE`.
    MethodNotAllowed => METHOD_NOT_ALLOWED, 43002, "method-not-allowed";
    /// The app's body broke off or was not valid HTTP.
    RequestBody => BAD_REQUEST, 40097, "request-body";
    /// The app stopped sending its body.
    RequestTimeout => REQUEST_TIMEOUT, 40097, "request-timeout";
    /// The body is larger than `max_body`.
    BodyTooLarge => PAYLOAD_TOO_LARGE, 45002, "body-too-large";
    /// A body without Content-Length found no room in `replay_budget`.
    OutOfBudget => SERVICE_UNAVAILABLE, -1, "out-of-budget";
    /// A login call of an account whose AppSecret this sidecar has not.
    NoSecret => FORBIDDEN, 48001, "no-secret";
    /// A request to the admin port that a web page may have sent.
    CrossSite => FORBIDDEN, 48001, "cross-site";
    /// A request to the admin port without a key, or with a wrong one.
    NoKey => UNAUTHORIZED, 48001, "no-key";
    /// A key that is not for this account, or an account that is not here.
    ForeignAppid => FORBIDDEN, 48001, "foreign-appid";
    /// Too many requests with a key, or refreshes of an account.
    RateLimited => TOO_MANY_REQUESTS, 45011, "rate-limited";
    /// What this sidecar is not set up for.
    NotOffered => NOT_FOUND, 40097, "not-offered";
    /// A refresh that brought no token.
    NotRefreshed => SERVICE_UNAVAILABLE, -1, "not-refreshed";
    /// There is no token that lives.
    NoToken => SERVICE_UNAVAILABLE, -1, "no-token";
    /// No connection to WeChat within `connect_timeout`.
    ConnectTimeout => GATEWAY_TIMEOUT, -1, "connect-timeout";
    /// WeChat's host does not resolve, or refuses the connection.
    Connect => BAD_GATEWAY, -1, "connect";
    /// The connection is not the one we trust: certificate, name or protocol.
    Tls => BAD_GATEWAY, -1, "tls";
    /// No reply head within `response_timeout`.
    ResponseTimeout => GATEWAY_TIMEOUT, -1, "response-timeout";
    /// The reply's first bytes stopped coming for `idle_timeout`.
    IdleTimeout => GATEWAY_TIMEOUT, -1, "idle-timeout";
    /// The connection ended before the reply did.
    UpstreamClosed => BAD_GATEWAY, -1, "upstream-closed";
    /// What came back is not HTTP.
    UpstreamMalformed => BAD_GATEWAY, -1, "upstream-malformed";
}

/// One failed call: the cause, and a sentence that says what happened, what it means and what to do.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Which failure.
    pub cause: Cause,
    /// For the person who reads the app's log. Never holds a credential.
    pub message: String,
    /// Seconds in `Retry-After`, rounded up.
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// A failure without a `Retry-After`.
    pub fn new(cause: Cause, message: impl Into<String>) -> Self {
        Self { cause, message: message.into(), retry_after: None }
    }

    /// The reply as bytes, for where hyper does not write it. The connection ends with it.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let reply = self.reply();
        let mut text = format!("HTTP/1.1 {}\r\nconnection: close\r\n", reply.status()).into_bytes();
        for (name, value) in reply.headers().iter().filter(|(name, _)| *name != header::CONNECTION) {
            text.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
        }
        text.extend(format!("content-length: {}\r\n\r\n", reply.body().len()).bytes());
        text.extend_from_slice(reply.body());
        text
    }

    /// The reply's head and its whole body.
    #[must_use]
    pub fn reply(&self) -> Response<Bytes> {
        let body = serde_json::json!({
            "errcode": self.cause.errcode(),
            "errmsg": format!("wechat-sidecar: {}", self.message),
        });
        let mut reply = Response::new(Bytes::from(body.to_string()));
        *reply.status_mut() = self.cause.status();
        let headers = reply.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ERROR_HEADER, HeaderValue::from_static(self.cause.name()));
        if self.cause == Cause::BadHost {
            // SECURITY: a head that RFC 9112 calls bad says nothing certain about what follows it.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some(wait) = self.retry_after {
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        reply
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_has_a_name_of_its_own_and_an_error_status() {
        let mut names: Vec<_> = Cause::ALL.iter().map(|c| c.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Cause::ALL.len());
        for cause in Cause::ALL {
            assert!(cause.status().as_u16() >= 400 && cause.errcode() != 0, "{cause:?}");
            if cause.status().is_server_error() {
                assert_eq!(cause.errcode(), -1, "{cause:?}: SDKs know -1 as busy");
            }
            assert!(
                ![40001, 40014, 42001].contains(&cause.errcode()),
                "an SDK must not take ours for a refused token"
            );
        }
    }

    #[test]
    fn a_failure_is_json_with_a_header_that_names_it() {
        let mut failure = Failure::new(Cause::NoToken, "no \"token\"");
        failure.retry_after = Some(Duration::from_millis(1200));
        let reply = failure.reply();
        assert_eq!(reply.status(), 503);
        assert_eq!(reply.headers()["x-wechat-sidecar-error"], "no-token");
        assert_eq!(reply.headers()["retry-after"], "2");
        let body: serde_json::Value = serde_json::from_slice(reply.body()).unwrap();
        assert_eq!(body, serde_json::json!({"errcode": -1, "errmsg": "wechat-sidecar: no \"token\""}));
    }
}
