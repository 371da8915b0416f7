//! Where a credential goes: [`write()`] puts what a route wants into the query, [`into_body`] puts a secret into the
//! JSON body of the one path that takes it there.
//!
//! What the app wrote as secret or token is replaced, present or absent; an appid is filled in where it is missing;
//! nothing else moves (`wechat-api.md` 4c, `sdks.md` 5).

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use http::uri::PathAndQuery;
use serde::Deserialize;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::account::{self, Account, Secrets, Spelled};
use crate::error::{Cause, Failure};
use crate::proxy::inject::{self, ACCESS_TOKEN, InjectError, Target};
use crate::proxy::route::{self, Action, Route, Routes, SecretForm};
use crate::token::Token;

/// The largest body a secret is written into; WeChat's own has under 200 bytes.
pub const MAX_SECRET_BODY: usize = 64 * 1024;

const APPID: &str = "appid";

/// The call's target with the credential its route wants.
///
/// # Errors
/// The target would be too long for a request line.
pub fn write(route: &Route<'_>, token: Option<&Token>) -> Result<Target, Failure> {
    let Route { account, action, target, .. } = route;
    if let Action::AppendSecret(SecretForm { secret: Some(_), .. }) = action {
        check_secret(account, &account.secrets())?;
    }
    let written = match (action, token) {
        (Action::AppendToken, Some(token)) => inject::inject(target, token.encoded().in_query()),
        (Action::AppendSecret(form), token) => append_secret(account, *form, target, token),
        _ => strip_placeholder(target),
    };
    written.map_err(|_| {
        Failure::new(
            Cause::BadTarget,
            "the request target is too long to carry the credential (65,534 bytes at most); nothing was sent. Shorten the query",
        )
    })
}

/// An account whose token comes from elsewhere may have no AppSecret here, and then no login calls.
///
/// # Errors
/// It has none.
pub fn check_secret<'a>(account: &Account, secrets: &'a Secrets) -> Result<&'a Spelled, Failure> {
    secrets.current().ok_or_else(|| {
        Failure::new(
            Cause::NoSecret,
            format!(
                "this call takes the AppSecret of {appid}, and this sidecar has none, since its tokens come from elsewhere; nothing was sent. Give the account its secret or secret_file, or make login calls through a sidecar that has it",
                appid = account.appid()
            ),
        )
    })
}

fn append_secret(
    account: &Account,
    form: SecretForm,
    target: &PathAndQuery,
    token: Option<&Token>,
) -> Result<Target, InjectError> {
    // A placeholder that an SDK adds to every call has no place here (sdks.md 5: wechatpy on jscode2session).
    let target = inject::strip(target, &[ACCESS_TOKEN])?;
    let secrets = account.secrets();
    let mut params = Vec::with_capacity(3);
    if form.wants_query(&target) {
        // An appid that is there is the account's: it chose it, and stays where it is. An empty one is none.
        if param(&target, APPID).is_none_or(|appid| appid.is_empty()) {
            params.push((APPID, account.appid().into()));
        }
        if let (Some(name), Some(secret)) = (form.secret, secrets.current()) {
            params.push((name, secret.encoded().in_query()));
        }
    }
    if let Some(token) = token {
        params.push((ACCESS_TOKEN, token.encoded().in_query()));
    }
    if params.is_empty() { Ok(Target::from(&target)) } else { inject::with_params(&target, &params) }
}

impl SecretForm {
    /// Whether the query takes the secret: always, unless a body has taken it and the query never had it.
    fn wants_query(self, target: &PathAndQuery) -> bool {
        let named = |name: Option<&str>| name.is_some_and(|name| param(target, name).is_some());
        !self.written || named(Some(APPID)) || named(self.secret)
    }
}

fn param<'a>(target: &'a PathAndQuery, name: &str) -> Option<Cow<'a, str>> {
    let query = target.query().unwrap_or_default();
    form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name).map(|(_, value)| value)
}

/// A token that calls of their own kind bring along.
const COMPONENT_TOKEN: &str = "component_access_token";

/// A user's or a component's token passes; a placeholder that an SDK sent in its place does not reach WeChat.
fn strip_placeholder(target: &PathAndQuery) -> Result<Target, InjectError> {
    let query = target.query().unwrap_or_default();
    let holds_one = |name: &&str| {
        form_urlencoded::parse(query.as_bytes())
            .any(|(other, value)| other == **name && account::is_placeholder(&value))
    };
    // Each by itself: a component's own token goes on beside a placeholder that an SDK adds to every call.
    let names: Vec<_> = [ACCESS_TOKEN, COMPONENT_TOKEN].into_iter().filter(holds_one).collect();
    if names.is_empty() {
        Ok(target.into())
    } else {
        inject::strip(target, &names).map(|left| Target::from(&left))
    }
}

/// Writes the secret into a JSON body that names an appid or a secret. Any other body stays as it came, and the
/// secret goes into the query. `None` when the body names an account we do not hold.
///
/// # Errors
/// A body that is not a JSON object, or that names two appids.
pub fn into_body<'a>(
    routes: &'a Routes,
    route: &mut Route<'a>,
    body: &[u8],
) -> Result<Option<Bytes>, Failure> {
    let Action::AppendSecret(form) = route.action else { return Ok(Some(Bytes::copy_from_slice(body))) };
    let Some(secret) = form.secret else { return Ok(Some(Bytes::copy_from_slice(body))) };
    if body.trim_ascii().is_empty() {
        return Ok(Some(Bytes::copy_from_slice(body)));
    }
    let refused = |what: &str| {
        Failure::new(
            Cause::SecretBody,
            format!(
                "the body, which the AppSecret may have to be written into, {what}; nothing was sent. Send a JSON object, or no body and the parameters in the query"
            ),
        )
    };
    let text = std::str::from_utf8(body).map_err(|_| refused("is not UTF-8"))?;
    let Object(fields) = serde_json::from_str(text).map_err(|_| refused("is not a JSON object"))?;
    let of = |name: &str| {
        fields.iter().filter(|(key, _)| key == name).map(|(_, value)| *value).collect::<Vec<_>>()
    };
    let (appids, secrets) = (of(APPID), of(secret));
    if appids.is_empty() && secrets.is_empty() {
        return Ok(Some(Bytes::copy_from_slice(body)));
    }
    if appids.len() > 1 || secrets.len() > 1 {
        return Err(refused("has a key twice"));
    }
    let named: Option<Cow<'_, str>> = match appids.first() {
        Some(appid) => Some(
            serde_json::from_str(appid.get()).map_err(|_| refused("has an appid that is not a string"))?,
        ),
        None => None,
    };
    let named = named.filter(|appid| !appid.is_empty());
    if let Some(appid) = &named {
        let Some(account) = routes.account(appid) else { return Ok(None) };
        if route.client.as_ref().is_some_and(|client| !client.may_be(account.appid())) {
            return Ok(None);
        }
        let in_query = param(&route.target, APPID).filter(|appid| !appid.is_empty());
        if in_query.is_some_and(|in_query| in_query != *appid) {
            return Err(route::two_appids());
        }
        route.account = account;
    }
    let account = route.account;
    let held = account.secrets();
    let ours = check_secret(account, &held)?;
    let quoted = |value: &str| serde_json::Value::from(value).to_string();
    let mut edits = Vec::new();
    let mut added = String::new();
    for (name, there, value) in [
        (APPID, appids.first().filter(|_| named.is_none()), account.appid().as_str()),
        (secret, secrets.first(), ours.expose()),
    ] {
        match there {
            Some(there) => {
                // A RawValue borrows from the text it was read from, so this is where it stands there.
                let at = there.get().as_ptr() as usize - text.as_ptr() as usize;
                edits.push((at, at + there.get().len(), quoted(value)));
            }
            None if name == APPID && named.is_some() => {}
            None => added.push_str(&format!("{}:{},", quoted(name), quoted(value))),
        }
    }
    if !added.is_empty() {
        let brace = text.find('{').map_or(0, |at| at + 1);
        edits.push((brace, brace, added));
    }
    edits.sort_by_key(|&(from, ..)| from);
    let mut written = String::with_capacity(text.len() + 512);
    let mut done = 0;
    for (from, to, new) in edits {
        written.push_str(&text[done..from]);
        written.push_str(&new);
        done = to;
    }
    written.push_str(&text[done..]);
    route.action = Action::AppendSecret(SecretForm { written: true, ..form });
    Ok(Some(Bytes::from(written)))
}

/// A JSON object's fields in order, twins and all, as they stand in the text.
struct Object<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Object<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Vec<(Cow<'de, str>, &'de RawValue)>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some((key, value)) = map.next_entry::<String, &'de RawValue>()? {
                    fields.push((Cow::Owned(key), value));
                }
                Ok(fields)
            }
        }
        deserializer.deserialize_map(Fields).map(Object)
    }
}

#[cfg(test)]
mod tests {
    use http::Method;
    use tokio::time::{Duration, Instant};

    use super::*;

    const OURS: &str = "wx0123456789abcdef";
    const OTHER: &str = "wxfedcba9876543210";

    fn routes() -> Routes {
        Routes::new(vec![
            account::idle(OURS, "our+secret/0123456789"),
            account::idle(OTHER, "other-secret-0123456789"),
        ])
    }

    /// What goes upstream for a target, or the action that answers it.
    fn written(target: &str) -> Result<String, Action> {
        let routes = routes();
        let route = routes.find(&Method::GET, &target.parse().unwrap()).unwrap();
        if matches!(route.action, Action::AnswerToken | Action::AnswerUnknownAppid) {
            return Err(route.action);
        }
        let token = Token::new("50_token", Instant::now(), Duration::from_secs(7200)).unwrap();
        let token = route.action.carries_token().then_some(token);
        Ok(write(&route, token.as_ref()).unwrap().as_str().to_owned())
    }

    fn body(target: &str, body: &str) -> Result<Option<(String, String)>, Failure> {
        let routes = routes();
        let mut route = routes.find(&Method::POST, &target.parse().unwrap())?;
        Ok(into_body(&routes, &mut route, body.as_bytes())?.map(|body| {
            (write(&route, None).unwrap().as_str().to_owned(), String::from_utf8(body.to_vec()).unwrap())
        }))
    }

    #[tokio::test]
    async fn a_login_gets_the_secret_and_keeps_the_rest_as_it_was() {
        let placeholder = account::idle(OURS, "12345678").placeholder().to_owned();
        for (target, expected) in [
            (
                format!(
                    "/sns/jscode2session?appid={OURS}&secret=dummy&js_code=a%2Bb&grant_type=authorization_code"
                ),
                format!(
                    "/sns/jscode2session?appid={OURS}&js_code=a%2Bb&grant_type=authorization_code&secret=our%2Bsecret%2F0123456789"
                ),
            ),
            (
                format!("/sns/jscode2session?js_code=1&access_token={placeholder}"),
                format!("/sns/jscode2session?js_code=1&appid={OURS}&secret=our%2Bsecret%2F0123456789"),
            ),
            (
                format!("/sns/oauth2/access_token?secret=a&code=1&%73ecret=b&appid={OTHER}"),
                format!("/sns/oauth2/access_token?code=1&appid={OTHER}&secret=other-secret-0123456789"),
            ),
            (
                "/sns/oauth2/refresh_token?refresh_token=r&grant_type=refresh_token".to_owned(),
                format!("/sns/oauth2/refresh_token?refresh_token=r&grant_type=refresh_token&appid={OURS}"),
            ),
            (
                format!("/donut/code2verifyinfo?access_token=x&code=1&appid={OURS}"),
                format!(
                    "/donut/code2verifyinfo?code=1&appid={OURS}&appsecret=our%2Bsecret%2F0123456789&access_token=50_token"
                ),
            ),
            (
                format!("/{OTHER}/cgi-bin/clear_quota/v2"),
                format!("/cgi-bin/clear_quota/v2?appid={OTHER}&appsecret=other-secret-0123456789"),
            ),
        ] {
            assert_eq!(written(&target).as_deref(), Ok(&expected[..]), "{target}");
        }
    }

    #[tokio::test]
    async fn a_users_token_passes_and_a_placeholder_in_its_place_does_not() {
        let own = "/sns/userinfo?access_token=users&openid=o";
        assert_eq!(written(own).as_deref(), Ok(own));
        let placeholder = account::idle(OURS, "12345678").placeholder().to_owned();
        let target = format!("/sns/userinfo?access_token={placeholder}&openid=o");
        assert_eq!(written(&target).as_deref(), Ok("/sns/userinfo?openid=o"));
        let target = format!("/cgi-bin/component/x?component_access_token={placeholder}&a=1");
        assert_eq!(written(&target).as_deref(), Ok("/cgi-bin/component/x?a=1"));
        let target = format!("/cgi-bin/user/get?component_access_token=c&access_token={placeholder}");
        assert_eq!(written(&target).as_deref(), Ok("/cgi-bin/user/get?component_access_token=c"));
        for (target, action) in [
            ("/cgi-bin/user/get?component_access_token=c", Action::KeepUserToken),
            ("/cgi-bin/token?component_access_token=c", Action::AnswerToken),
            ("/cgi-bin/stable_token?component_access_token=c", Action::AnswerToken),
        ] {
            let routes = routes();
            let route = routes.find(&Method::GET, &target.parse().unwrap()).unwrap();
            assert_eq!(route.action, action, "{target}: no parameter lets a token fetch through");
        }
        assert!(
            written("/sns/jscode2session?component_access_token=c&js_code=1")
                .unwrap()
                .contains("&secret=our")
        );
        let component = "/cgi-bin/component/api_query_auth?component_access_token=c";
        assert_eq!(written(component).as_deref(), Ok(component));
    }

    #[tokio::test]
    async fn an_account_is_chosen_by_placeholder_then_prefix_then_default_and_never_by_mistake() {
        let of = |appid: &str| account::idle(appid, "12345678").placeholder().to_owned();
        let account_of = |target: &str| {
            let routes = routes();
            let route = routes.find(&Method::GET, &target.parse().unwrap()).unwrap();
            (route.account.appid().to_string(), route.action, route.target.to_string())
        };
        let path = "/cgi-bin/user/get";
        assert_eq!(account_of(path), (OURS.into(), Action::AppendToken, path.into()));
        assert_eq!(account_of(&format!("/{OTHER}{path}")), (OTHER.into(), Action::AppendToken, path.into()));
        let both = format!("/{OURS}{path}?access_token={}", of(OTHER));
        assert_eq!(account_of(&both).0, OTHER);
        for nothing_said in ["", "50_a-real-token-that-was-pasted", "WECHAT-SIDECAR"] {
            let (account, action, _) = account_of(&format!("{path}?access_token={nothing_said}"));
            assert_eq!((&account[..], action), (OURS, Action::AppendToken), "{nothing_said}");
        }
        for spoken in [
            format!("access_token={}", &of(OTHER)[..40]),
            format!("access_token=junk&access_token={}", of(OTHER)),
            format!("access_token=&a=1&%61ccess_token={}&access_token={}", of(OTHER), of(OTHER)),
        ] {
            let (account, action, _) = account_of(&format!("{path}?{spoken}"));
            assert_eq!((&account[..], action), (OTHER, Action::AppendToken), "{spoken}");
        }
        for two in [
            format!("{path}?access_token={}&access_token={}", of(OURS), of(OTHER)),
            format!("/{OTHER}/sns/jscode2session?appid={OURS}"),
            format!("/{OTHER}/cgi-bin/token?appid={OURS}"),
            format!("/cgi-bin/token?appid={OURS}&appid={OTHER}"),
        ] {
            let failure = routes().find(&Method::GET, &two.parse().unwrap()).map(|_| ()).unwrap_err();
            assert_eq!(failure.cause, Cause::TwoAppids, "{two}");
        }
        let nested = format!("/{OTHER}/{OURS}{path}").parse().unwrap();
        assert_eq!(routes().find(&Method::GET, &nested).map(|_| ()).unwrap_err().cause, Cause::BadTarget);
        for foreign in [
            format!("{path}?access_token={}", of("wxaaaaaaaaaaaaaaaa")),
            format!("{path}?access_token={}", &of("wxaaaaaaaaaaaaaaaa")[..40]),
            format!("{path}?access_token={}", &of(OTHER)[..20]),
            format!("/wxaaaaaaaaaaaaaaaa{path}"),
            "/sns/jscode2session?appid=wxaaaaaaaaaaaaaaaa".to_owned(),
        ] {
            assert_eq!(account_of(&foreign).1, Action::AnswerUnknownAppid, "{foreign}");
        }
    }

    #[tokio::test]
    async fn a_secret_in_a_body_is_replaced_where_it_stands() {
        let path = "/cgi-bin/clear_quota/v2";
        for (target, sent, expected_target, expected_body) in [
            (path, r#"{"appid":"wx0123456789abcdef", "appsecret" : "dummy","x":12345678901234567890}"#, path.to_owned(),
                r#"{"appid":"wx0123456789abcdef", "appsecret" : "our+secret/0123456789","x":12345678901234567890}"#.to_owned()),
            (path, r#" {"appid":"wxfedcba9876543210"}"#, path.to_owned(),
                r#" {"appsecret":"other-secret-0123456789","appid":"wxfedcba9876543210"}"#.to_owned()),
            (path, r#"{"appsecret":"","appid":""}"#, path.to_owned(),
                format!(r#"{{"appsecret":"our+secret/0123456789","appid":"{OURS}"}}"#)),
            (path, "", format!("{path}?appid={OURS}&appsecret=our%2Bsecret%2F0123456789"), String::new()),
            (path, "{}", format!("{path}?appid={OURS}&appsecret=our%2Bsecret%2F0123456789"), "{}".to_owned()),
        ] {
            assert_eq!(body(target, sent).unwrap(), Some((expected_target, expected_body)), "{sent}");
        }
        assert_eq!(body(path, r#"{"appid":"wxaaaaaaaaaaaaaaaa"}"#).unwrap(), None);
    }

    #[tokio::test]
    async fn a_body_that_cannot_take_a_secret_is_refused() {
        let path = "/cgi-bin/clear_quota/v2";
        for (target, sent, cause) in [
            (path.to_owned(), "[1]", Cause::SecretBody),
            (path.to_owned(), "appid=1", Cause::SecretBody),
            (path.to_owned(), r#"{"appid":1}"#, Cause::SecretBody),
            (path.to_owned(), r#"{"appsecret":"a","appsecret":"b"}"#, Cause::SecretBody),
            (path.to_owned(), r#"{"appid":"#, Cause::SecretBody),
            (format!("{path}?appid={OURS}"), r#"{"appid":"wxfedcba9876543210"}"#, Cause::TwoAppids),
            (format!("{path}?appid={OURS}&appid={OTHER}"), "{}", Cause::TwoAppids),
        ] {
            assert_eq!(body(&target, sent).unwrap_err().cause, cause, "{target} {sent}");
        }
    }
}
