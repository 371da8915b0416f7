//! Which paths pass, for which account, with which credential: [`Routes::find`] gives every request its [`Route`].
//!
//! What may be called at all is the account's [`Policy`](crate::policy::Policy); where client keys are asked for, a
//! call without a known one has no way.
//!
//! One static table, matched on the very bytes that go upstream. SECURITY: a path that would mean another row of the
//! table to whoever normalizes it (`..`, `%2e`, `//`, a backslash, another case) is refused, so that
//! `/sns/jscode2session/../../cgi-bin/token` cannot bring anyone a real token; every other path goes as it came.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Method, Uri, Version};

use crate::account::{self, Account};
use crate::clients::{Client, Clients, KEY_HEADER, Keyring};
use crate::error::{Cause, Failure};
use crate::hosts::{self, Hosts};
use crate::policy::{Denied, shown};
use crate::proxy::known::Known;
use crate::proxy::{inject, readings};
use crate::server::framing::RawHead;

/// What a path needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Our token goes into the query, and a refusal of it is noticed. Nearly every path.
    AppendToken,
    /// The account's appid and secret go along, where WeChat wants them (`wechat-api.md` 4c).
    AppendSecret(SecretForm),
    /// The call carries a token of its own (a user's, a component's): it passes as it came and is never judged.
    KeepUserToken,
    /// Asks for a token: answered here, with a placeholder.
    AnswerToken,
    /// Wants the secret of an account we do not hold: answered here, in WeChat's words. An app that is set up for
    /// another account must not act as ours.
    AnswerUnknownAppid,
}

/// How a path wants the account's credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecretForm {
    /// The secret's parameter: `secret` or `appsecret`; `None` where only the appid is wanted.
    pub secret: Option<&'static str>,
    /// Whether our token goes along.
    pub token: bool,
    /// Whether it may stand in a JSON body instead of the query.
    pub body: bool,
    /// Whether the body has been given it.
    pub written: bool,
}

impl Action {
    /// Whether the call goes nowhere, so that there is nothing to allow.
    fn is_answered_here(self) -> bool {
        matches!(self, Self::AnswerToken | Self::AnswerUnknownAppid)
    }

    /// Whether the call carries our token, so that WeChat may refuse it.
    #[must_use]
    pub fn carries_token(self) -> bool {
        matches!(self, Self::AppendToken | Self::AppendSecret(SecretForm { token: true, .. }))
    }
}

/// One request's way: whose credential, and where it goes.
#[derive(Clone)]
pub struct Route<'a> {
    /// Whose credential.
    pub account: &'a Account,
    /// Which, and how.
    pub action: Action,
    /// Path and query as the app wrote them, less an account's prefix.
    pub target: PathAndQuery,
    /// Who calls, where client keys are asked for. On the token endpoint that is found out while it is answered.
    pub client: Option<Arc<Client>>,
}

const SECRET: Action =
    Action::AppendSecret(SecretForm { secret: Some("secret"), token: false, body: false, written: false });
const APPID: Action =
    Action::AppendSecret(SecretForm { secret: None, token: false, body: false, written: false });
const APPSECRET: Action =
    Action::AppendSecret(SecretForm { secret: Some("appsecret"), token: false, body: true, written: false });
const TOKEN_AND_APPSECRET: Action =
    Action::AppendSecret(SecretForm { secret: Some("appsecret"), token: true, body: false, written: false });

/// The table: exact paths first, then prefixes; what is in neither gets our token. Source: `wechat-api.md` 4.
const EXACT: &[(&str, Action)] = &[
    ("/cgi-bin/token", Action::AnswerToken),
    ("/cgi-bin/stable_token", Action::AnswerToken),
    ("/sns/jscode2session", SECRET),
    ("/sns/oauth2/access_token", SECRET),
    ("/sns/oauth2/refresh_token", APPID),
    ("/cgi-bin/clear_quota/v2", APPSECRET),
    ("/donut/code2verifyinfo", TOKEN_AND_APPSECRET),
];
const PREFIXES: &[(&str, Action)] =
    &[("/sns/", Action::KeepUserToken), ("/cgi-bin/component/", Action::KeepUserToken)];

fn action(path: &str) -> Action {
    let exact = EXACT.iter().find(|(exact, _)| *exact == path);
    let row = exact.or_else(|| PREFIXES.iter().find(|(prefix, _)| path.starts_with(prefix)));
    row.map_or(Action::AppendToken, |(_, action)| *action)
}

/// The accounts and the table. Immutable; every worker has its own.
#[derive(Clone)]
pub struct Routes {
    accounts: Vec<Account>,
    by_appid: HashMap<String, usize>,
    /// How long appids are: nearly no first segment of a path is.
    lengths: RangeInclusive<usize>,
    /// How the appids begin, each way once.
    initials: Vec<u8>,
    hosts: Hosts,
    keyring: Option<Keyring>,
    known: Known,
}

impl Routes {
    /// Routes for these accounts, of which the first is the default.
    ///
    /// # Panics
    /// Without an account; the configuration always has one.
    #[must_use]
    pub fn new(accounts: Vec<Account>) -> Self {
        assert!(!accounts.is_empty(), "a configuration has at least one account");
        let by_appid = accounts.iter().enumerate().map(|(i, a)| (a.appid().as_str().to_owned(), i)).collect();
        let lengths = accounts.iter().map(|account| account.appid().as_str().len());
        let lengths = lengths.clone().min().unwrap_or_default()..=lengths.max().unwrap_or_default();
        let (hosts, known) = (Hosts::default(), Known::default());
        let mut initials: Vec<u8> =
            accounts.iter().filter_map(|account| account.appid().as_str().bytes().next()).collect();
        initials.sort_unstable();
        initials.dedup();
        Self { accounts, by_appid, lengths, initials, hosts, keyring: None, known }
    }

    /// The same routes, speaking for these hosts.
    #[must_use]
    pub fn speaking_for(self, hosts: Hosts) -> Self {
        Self { hosts, ..self }
    }

    /// The same routes, for those who show a key of this ring.
    #[must_use]
    pub fn for_clients(self, keyring: Option<Keyring>) -> Self {
        Self { keyring, ..self }
    }

    /// Who may call, if that is asked.
    #[must_use]
    pub fn clients(&self) -> Option<Arc<Clients>> {
        self.keyring.as_ref().map(Keyring::clients)
    }

    /// The account of an appid.
    #[must_use]
    pub fn account(&self, appid: &str) -> Option<&Account> {
        self.by_appid.get(appid).map(|&i| &self.accounts[i])
    }

    /// Finds the way of a request without headers.
    ///
    /// # Errors
    /// As [`find_for`](Self::find_for).
    pub fn find(&self, method: &Method, uri: &Uri) -> Result<Route<'_>, Failure> {
        self.find_for(method, uri, &HeaderMap::new())
    }

    /// Finds the way of a request.
    ///
    /// # Errors
    /// What cannot be a WeChat call: `CONNECT`, `TRACE`, a target that is not a path, an ambiguous path. And what may not
    /// be one: a path that is not allowed, a caller without a key.
    pub fn find_for(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<Route<'_>, Failure> {
        // SECURITY: sdks.md 7, 8: a target that does not begin with one slash could name another host to whoever
        // builds a URL from it; TRACE would echo the credential.
        if method == Method::CONNECT || method == Method::TRACE {
            return Err(Failure::new(
                Cause::MethodNotAllowed,
                format!(
                    "{method} is not forwarded; nothing was sent. Set this address as the WeChat base URL; or, to use it as an HTTPS proxy, make a CA with `wechat-sidecar ca` and name it in ca_dir"
                ),
            ));
        }
        let target = match (uri.path_and_query(), uri.scheme(), uri.authority()) {
            (Some(target), None, None) => target,
            // As to an HTTP proxy: whoever is named there is reached through us, or not at all.
            (Some(target), Some(scheme), Some(authority)) if self.speaks_for(scheme, authority) => target,
            _ => return Err(bad_target()),
        };
        if !target.as_str().starts_with('/') || target.as_str().starts_with("//") {
            return Err(bad_target());
        }
        let (prefix, target) = take_prefix(self, target);
        let twice = matches!(prefix, Prefix::Of(_)) && matches!(take_prefix(self, &target).0, Prefix::Of(_));
        if target.as_str().starts_with("//") || twice {
            return Err(bad_target());
        }
        let path = target.path();
        let known = self.known.find(path);
        let (action, is_plain) = match known.reading {
            Some(reading) => reading,
            None => {
                let (action, is_plain) = (action(path), readings::is_plain(path));
                if !is_plain && readings::any(path, |meant| self::action(meant) != action) {
                    return Err(ambiguous("which decides about the credential"));
                }
                self.known.read(known, path, action, is_plain);
                (action, is_plain)
            }
        };
        let query = target.query().unwrap_or_default();
        // Acting for a component or one of its merchants: the token is not ours to judge (wechat-api.md 4d).
        // SECURITY: only where ours would have gone. On a token path it would let a fetch through to WeChat, which
        // voids the token of everyone else and shows the app a real one.
        let mut action = match action {
            Action::AppendToken if named(query, "component_access_token").any(|token| !token.is_empty()) => {
                Action::KeepUserToken
            }
            action => action,
        };
        let client = match self.clients() {
            Some(clients) if action != Action::AnswerToken => {
                Some(identify(&clients, action, query, headers)?)
            }
            _ => None,
        };
        let default = client.as_ref().and_then(|client| self.account(client.default_account().as_str()));
        let default = default.unwrap_or(&self.accounts[0]);
        let Some(mut account) = self.choose(query, prefix, default)? else {
            return Ok(Route { account: default, action: Action::AnswerUnknownAppid, target, client });
        };
        if let Action::AppendSecret(_) | Action::AnswerToken = action {
            let named = self.of_appid(query)?;
            if let (Asked::Ours(named), Prefix::Of(prefix)) = (&named, prefix)
                && named.appid().as_str() != prefix
            {
                return Err(two_appids());
            }
            match named {
                Asked::Nobody => {}
                Asked::Ours(named) => account = named,
                Asked::Unknown => action = Action::AnswerUnknownAppid,
            }
        }
        if client.as_ref().is_some_and(|client| !client.may_be(account.appid())) {
            // As any account that is not there for this caller.
            action = Action::AnswerUnknownAppid;
        }
        let route = Route { account, action, target, client };
        // SECURITY: what a client's key allows is asked every time; and what is answered here was not asked at all, so that
        // nothing is known by it of the next call of this path, which may go out.
        if route.client.is_some() || route.action.is_answered_here() {
            route.check_read(method, is_plain)?;
        } else if !self.known.is_allowed(known, method, account.appid()) {
            route.check_read(method, is_plain)?;
            self.known.allow(known, route.target.path(), method, account.appid());
        }
        Ok(route)
    }

    fn speaks_for(&self, scheme: &Scheme, authority: &Authority) -> bool {
        let port = match scheme.as_str() {
            "http" => 80,
            "https" => 443,
            _ => return false,
        };
        self.hosts.takes(authority.as_str(), port)
    }

    /// Whether a call that came over TLS is for a host we speak for. The app verified a certificate of ours and
    /// believes that this is the host it names; in clear, as a base URL, it names whom it likes.
    ///
    /// # Errors
    /// It names another, or none.
    pub fn check_host(&self, uri: &Uri, host: Option<&[u8]>) -> Result<(), Failure> {
        let host = match host {
            Some(host) => hosts::text(host),
            // HTTP/1.0, with a target that says it.
            None => uri.authority().map(Authority::as_str),
        };
        match host {
            Some(host) if self.hosts.certifies_host(host) => Ok(()),
            host => {
                let host = host.and_then(hosts::split).map_or("no host", |(host, _)| host);
                Err(Failure::new(
                    Cause::Misdirected,
                    format!(
                        "the call is for {host}, which is no host of the WeChat API; nothing was sent. Check why this name leads here (hosts file, hostAliases), or, if it is one, add it to upstream_hosts and make a CA for it"
                    ),
                ))
            }
        }
    }

    /// Whose call it is, by what the app wrote: the account its placeholder names, else the one its path begins with,
    /// else the default.
    ///
    /// The one rule for tokens that an app sends: what begins like a placeholder speaks for the account it names, and
    /// for nobody if that is none of ours, or cut off (`None`: an app that is set up for another account must not act
    /// as ours). Any other token (empty, a real one that was pasted) says nothing, and is replaced.
    ///
    /// # Errors
    /// Placeholders of two accounts.
    fn choose<'a>(
        &'a self,
        query: &str,
        prefix: Prefix<'_>,
        default: &'a Account,
    ) -> Result<Option<&'a Account>, Failure> {
        let mut placeholder: Option<Cow<'_, str>> = None;
        for token in named(query, inject::ACCESS_TOKEN) {
            let Some(appid) = account::placeholder_appid(&token) else { continue };
            if placeholder.as_deref().is_some_and(|other| other != appid) {
                return Err(two_appids());
            }
            placeholder = Some(Cow::Owned(appid.to_owned()));
        }
        Ok(match (placeholder, prefix) {
            (Some(appid), _) => self.account(&appid),
            (None, Prefix::Of(appid)) => self.account(appid),
            (None, Prefix::None) => Some(default),
        })
    }

    /// The account that a login or another call with the secret names by its `appid`.
    fn of_appid(&self, query: &str) -> Result<Asked<'_>, Failure> {
        let mut appids = named(query, "appid").filter(|appid| !appid.is_empty());
        let Some(appid) = appids.next() else { return Ok(Asked::Nobody) };
        if appids.any(|other| other != appid) {
            return Err(two_appids());
        }
        Ok(self.account(&appid).map_or(Asked::Unknown, Asked::Ours))
    }
}

impl Route<'_> {
    /// Whether the account, and the client, may make this call. What is answered here goes nowhere, and always may.
    ///
    /// # Errors
    /// The path is not allowed, or would not be once normalized.
    pub fn check(&self, method: &Method) -> Result<(), Failure> {
        self.check_read(method, readings::is_plain(self.target.path()))
    }

    /// The same, when it is known whether the path has other readings than itself.
    fn check_read(&self, method: &Method, is_plain: bool) -> Result<(), Failure> {
        if self.action.is_answered_here() {
            return Ok(());
        }
        let (policy, path) = (&self.account.terms().policy, self.target.path());
        policy.check(method, path).map_err(|denied| not_allowed(method, path, &denied))?;
        let allow = self.client.as_ref().and_then(|client| Some((client.allow()?, client.name())));
        if let Some((rules, name)) = allow
            && rules.find(method, path).is_none()
        {
            return Err(Failure::new(
                Cause::NotAllowed,
                format!(
                    "{method} {} is in no rule of this client's key ({name} of client_keys_file); nothing was sent. Call what it allows, or add the path to its allow=",
                    shown(path)
                ),
            ));
        }
        if is_plain && policy.is_lower() && allow.is_none_or(|(rules, _)| rules.is_lower()) {
            return Ok(());
        }
        // SECURITY: the bytes that go upstream are allowed; what WeChat may read them as must be, too.
        let denied = |meant: &str| {
            let meant = meant.to_ascii_lowercase();
            policy.check_folded(method, &meant).is_err()
                || allow.is_some_and(|(rules, _)| rules.find_folded(method, &meant).is_none())
        };
        if readings::any(path, denied) {
            return Err(ambiguous("which is not allowed"));
        }
        Ok(())
    }
}

fn ambiguous(what: &str) -> Failure {
    Failure::new(
        Cause::AmbiguousPath,
        format!(
            "the path would mean another one once normalized (dot segments, double slashes, escapes, letter case), {what}; nothing was sent. Write the path as WeChat documents it"
        ),
    )
}

fn not_allowed(method: &Method, path: &str, denied: &Denied) -> Failure {
    let path = shown(path);
    let message = match denied {
        Denied::By(rule) => format!(
            "{method} {path} is denied by the rule {rule}; nothing was sent. Take the rule out of deny if the app needs the path"
        ),
        Denied::Unlisted => format!(
            "{method} {path} is in no rule of allow; nothing was sent. If the app needs it, add it, as in allow = [\"default\", \"/new/path/**\"] (default stands for the paths that are known)"
        ),
    };
    Failure::new(Cause::NotAllowed, message)
}

/// Who calls: by the key in the header, else by the placeholder that was given for a key, else by a key that an SDK
/// sends as the secret it was told.
fn identify(
    clients: &Clients,
    action: Action,
    query: &str,
    headers: &HeaderMap,
) -> Result<Arc<Client>, Failure> {
    let told = |what: &str| {
        Failure::new(
            Cause::ClientKey,
            format!(
                "{what}; nothing was sent. Give the app a key of client_keys_file: as its AppSecret, if it fetches a token here and sends what it gets, or in the header {KEY_HEADER}"
            ),
        )
    };
    // SECURITY: a key that is shown decides, be it wrong; no other one is tried instead.
    if let Some(key) = headers.get(KEY_HEADER) {
        let client = key.to_str().ok().and_then(|key| clients.by_key(key));
        return client.cloned().ok_or_else(|| told("the call has a client key that is not known"));
    }
    let mut what = "the call has no client key";
    for token in named(query, inject::ACCESS_TOKEN) {
        let Some(appid) = account::placeholder_appid(&token) else { continue };
        what = "the call has a placeholder that was given for no key that is known";
        if let Some(client) = account::placeholder_tag(&token).and_then(|tag| clients.by_tag(tag, appid)) {
            return Ok(Arc::clone(client));
        }
    }
    if let Action::AppendSecret(SecretForm { secret: Some(secret), .. }) = action
        && let Some(client) = named(query, secret).find_map(|key| clients.by_key(&key).cloned())
    {
        return Ok(client);
    }
    Err(told(what))
}

/// Which account a call asks for by its appid.
enum Asked<'a> {
    Nobody,
    Ours(&'a Account),
    Unknown,
}

/// What a path begins with.
#[derive(Clone, Copy)]
enum Prefix<'a> {
    None,
    Of(&'a str),
}

/// An appid in front of the path, and the target without it.
///
/// Any appid counts, also one that is not ours, so that its calls are refused instead of made as the default
/// account: `wx` and 16 hex digits, which begins no path of WeChat's. An appid of another form counts if it is ours.
fn take_prefix<'a>(routes: &Routes, target: &'a PathAndQuery) -> (Prefix<'a>, PathAndQuery) {
    let whole = target.as_str();
    // Nearly every path begins like neither an appid of WeChat's nor one of ours.
    let initial = whole.as_bytes().get(1).copied().unwrap_or_default();
    if initial != b'w' && !routes.initials.contains(&initial) {
        return (Prefix::None, target.clone());
    }
    let end = memchr::memchr2(b'/', b'?', &whole.as_bytes()[1..]);
    let segment = end.map_or(&whole[1..], |end| &whole[1..=end]);
    let like_an_appid = segment.len() == 18
        && segment.starts_with("wx")
        && segment[2..].bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f'));
    let is_ours = || routes.lengths.contains(&segment.len()) && routes.account(segment).is_some();
    if !like_an_appid && !is_ours() {
        return (Prefix::None, target.clone());
    }
    let rest = &whole[1 + segment.len()..];
    // The prefix alone is the root's.
    let rest = if rest.starts_with('/') { rest.to_owned() } else { format!("/{rest}") };
    PathAndQuery::try_from(rest).map_or((Prefix::None, target.clone()), |rest| (Prefix::Of(segment), rest))
}

/// A call that names two accounts is nobody's.
pub(super) fn two_appids() -> Failure {
    Failure::new(
        Cause::TwoAppids,
        "the call names two different accounts, so it cannot be known whose it is; nothing was sent. Send one appid, and no other account's placeholder or path",
    )
}

/// The `Host` of a head, of which there must be one (RFC 9112 3.2; HTTP/1.0 may go without). Which one it is does not
/// matter here: calls go to the upstream, under its name.
///
/// SECURITY: whoever stands in front of us may have chosen by another of the two than we would.
///
/// # Errors
/// [`Cause::BadHost`].
pub fn one_host(version: Version, head: &RawHead) -> Result<Option<&[u8]>, Failure> {
    let mut hosts = head.hosts();
    let what = match (hosts.next(), hosts.next()) {
        (None, _) if version >= Version::HTTP_11 => "no Host",
        (host, None) => return Ok(host),
        (_, Some(_)) => "several Hosts",
    };
    Err(Failure::new(
        Cause::BadHost,
        format!("the request has {what}; nothing was sent. Send the one Host header that HTTP/1.1 asks for"),
    ))
}

/// The values of a query's parameters of this name, as WeChat will read them: name and value decoded. Only what may
/// have the name is decoded, which is hardly ever anything.
fn named<'a>(query: &'a str, name: &'a str) -> impl Iterator<Item = Cow<'a, str>> {
    // None of it is shorter than the name, however it is written.
    let query = if query.len() < name.len() { "" } else { query };
    let named = inject::pieces(query).filter(move |piece| inject::names(piece, name));
    named.map(|piece| {
        let value = memchr::memchr(b'=', piece.as_bytes()).map_or("", |at| &piece[at + 1..]);
        match memchr::memchr2(b'%', b'+', value.as_bytes()) {
            None => Cow::Borrowed(value),
            Some(_) => {
                form_urlencoded::parse(piece.as_bytes()).next().map_or_else(Cow::default, |(_, value)| value)
            }
        }
    })
}

fn bad_target() -> Failure {
    Failure::new(
        Cause::BadTarget,
        "the request target is neither a path nor a URL of the WeChat API, and nothing is forwarded to another host; nothing was sent. Set this address as the WeChat base URL, and write paths as WeChat documents them (/cgi-bin/...)",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_which_credential_a_path_gets() {
        for (path, expected) in [
            ("/cgi-bin/message/custom/send", Action::AppendToken),
            ("/wxa/getwxacodeunlimit", Action::AppendToken),
            ("/cgi-bin/token", Action::AnswerToken),
            ("/cgi-bin/stable_token", Action::AnswerToken),
            ("/cgi-bin/tokens", Action::AppendToken),
            ("/sns/jscode2session", SECRET),
            ("/sns/userinfo", Action::KeepUserToken),
            ("/sns/auth", Action::KeepUserToken),
            ("/cgi-bin/component/api_query_auth", Action::KeepUserToken),
            ("/donut/code2verifyinfo", TOKEN_AND_APPSECRET),
        ] {
            assert_eq!(action(path), expected, "{path}");
        }
    }
}
