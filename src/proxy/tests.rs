//! What a target becomes on its way to WeChat, for targets that nobody has thought of.

use http::{Method, Uri};
use proptest::prelude::*;

use super::route::{Action, Route, Routes};
use super::{credential, inject};
use crate::account::{self, Terms};
use crate::error::Cause;
use crate::policy::{Policy, Rule};
use crate::token::Token;

use std::time::Duration;
use tokio::time::Instant;

const OURS: &str = "wx0123456789abcdef";
const OTHER: &str = "wxfedcba9876543210";

fn routes() -> Routes {
    Routes::new(vec![
        account::idle(OURS, "our-secret-0123456789"),
        account::idle(OTHER, "other-secret-0123456789"),
    ])
}

fn token() -> Token {
    Token::new("50_the-token", Instant::now(), Duration::from_secs(7200)).unwrap()
}

/// What goes upstream, if anything does.
fn written(route: &Route<'_>) -> Option<String> {
    if matches!(route.action, Action::AnswerToken | Action::AnswerUnknownAppid) {
        return None;
    }
    let token = route.action.carries_token().then(token);
    Some(credential::write(route, token.as_ref()).ok()?.as_str().to_owned())
}

/// One thing that some server, gateway or framework does to a path before it looks at it.
#[derive(Clone, Copy, Debug)]
enum Step {
    Decode,
    DotSegments,
    Slashes,
    Backslashes,
    Parameters,
    LowerCase,
    TrailingSlash,
    CutAtEnd,
    TrimSpaces,
}

impl Step {
    const ALL: [Self; 9] = [
        Self::Decode,
        Self::DotSegments,
        Self::Slashes,
        Self::Backslashes,
        Self::Parameters,
        Self::LowerCase,
        Self::TrailingSlash,
        Self::CutAtEnd,
        Self::TrimSpaces,
    ];

    fn apply(self, path: &str) -> String {
        match self {
            Self::Decode => percent_encoding::percent_decode_str(path).decode_utf8_lossy().into_owned(),
            Self::DotSegments => {
                let mut out: Vec<&str> = Vec::new();
                for segment in path.split('/').skip(1) {
                    match segment {
                        "." => {}
                        ".." => drop(out.pop()),
                        segment => out.push(segment),
                    }
                }
                format!("/{}", out.join("/"))
            }
            Self::Slashes => {
                let mut out = String::new();
                for c in path.chars() {
                    if !(c == '/' && out.ends_with('/')) {
                        out.push(c);
                    }
                }
                out
            }
            Self::Backslashes => path.replace('\\', "/"),
            Self::Parameters => {
                path.split('/').map(|s| s.split(';').next().unwrap()).collect::<Vec<_>>().join("/")
            }
            Self::LowerCase => path.to_ascii_lowercase(),
            Self::TrailingSlash => match path.trim_end_matches('/') {
                "" => "/".to_owned(),
                rest => rest.to_owned(),
            },
            Self::CutAtEnd => path.split(['\0', '?', '#']).next().unwrap().to_owned(),
            Self::TrimSpaces => path
                .split('/')
                .map(|s| s.trim_matches(|c: char| c.is_whitespace() || c.is_control()))
                .collect::<Vec<_>>()
                .join("/"),
        }
    }
}

/// A guarded path of the table, dressed up.
fn tricky() -> impl Strategy<Value = String> {
    let guarded = proptest::sample::select(vec![
        "/cgi-bin/token",
        "/cgi-bin/stable_token",
        "/sns/jscode2session",
        "/sns/oauth2/access_token",
        "/cgi-bin/clear_quota/v2",
        "/donut/code2verifyinfo",
        "/sns/userinfo",
        "/cgi-bin/component/api_query_auth",
        "/cgi-bin/user/get",
    ]);
    let edit = (
        any::<prop::sample::Index>(),
        0_usize..3,
        proptest::sample::select(vec![
            "",
            "/",
            "//",
            "/./",
            "/x/../",
            "/../",
            "..",
            ".",
            "%2e",
            "%2E%2e",
            "%2f",
            "%5c",
            "\\",
            ";",
            ";a=b",
            "%00",
            "%3f",
            "%23",
            "%20",
            "%09",
            "%25",
            "%252e",
            "%252f",
            "%74",
            "T",
            "C",
            "%3b",
            "%3B",
            "/..;/",
            "%c0%ae",
            "a",
            "/cgi-bin/token",
            "\u{212a}",
            "%E2%84%AA",
        ]),
    );
    (guarded, proptest::collection::vec(edit, 0..4)).prop_map(|(path, edits)| {
        let mut path = path.to_owned();
        for (place, cut, insert) in edits {
            let places: Vec<usize> = (1..=path.len()).filter(|&at| path.is_char_boundary(at)).collect();
            let at = places[place.index(places.len())];
            let mut end = (at + cut).min(path.len());
            while !path.is_char_boundary(end) {
                end += 1;
            }
            path.replace_range(at..end, insert);
        }
        path
    })
}

fn queries() -> impl Strategy<Value = String> {
    let placeholder = |appid: &str| account::idle(appid, "12345678").placeholder().to_owned();
    let piece = prop_oneof![
        4 => "[a-z%&=+;?/]{0,9}",
        2 => Just("access_token=real_or_not".to_owned()),
        1 => Just(format!("access_token={}", placeholder(OURS))),
        1 => Just(format!("%61ccess_token={}", placeholder(OTHER))),
        1 => Just(format!("access_token={}", placeholder("wxaaaaaaaaaaaaaaaa"))),
        1 => Just(format!("appid={OURS}")),
        1 => Just(format!("appid={OTHER}&secret=mine")),
        1 => Just("component_access_token=c".to_owned()),
        1 => Just("%73ecret=mine&appsecret=mine".to_owned()),
    ];
    proptest::collection::vec(piece, 0..5).prop_map(|pieces| pieces.join("&"))
}

/// The pieces of a query that are not a credential's, in order.
fn rest(query: &str) -> Vec<String> {
    let names = ["access_token", "secret", "appsecret", "appid"];
    let name =
        |piece: &str| form_urlencoded::parse(piece.as_bytes()).next().map(|(name, _)| name.into_owned());
    let pieces = query.split('&').filter(|piece| !name(piece).is_some_and(|name| names.contains(&&*name)));
    pieces.filter(|piece| !piece.is_empty()).map(str::to_owned).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn no_path_becomes_another_row_of_the_table_to_whoever_normalizes_it(
        path in tricky(), steps in proptest::collection::vec(proptest::sample::select(&Step::ALL[..]), 0..6),
    ) {
        let routes = routes();
        let Ok(uri) = Uri::try_from(path.as_str()) else { return Ok(()) };
        let Ok(route) = routes.find(&Method::GET, &uri) else { return Ok(()) };
        prop_assert_eq!(route.target.path(), path.as_str());
        let mut meant = path.clone();
        for step in &steps {
            meant = step.apply(&meant);
        }
        // What it means, as a path that somebody wrote plainly.
        let plain = meant.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"/_-".contains(&b));
        if !plain || !meant.starts_with('/') || meant.starts_with("//") {
            return Ok(());
        }
        let Ok(uri) = Uri::try_from(meant.as_str()) else { return Ok(()) };
        let Ok(other) = routes.find(&Method::GET, &uri) else { return Ok(()) };
        prop_assert_eq!(route.action, other.action, "{} means {} after {:?}", path, meant, steps);
    }

    #[test]
    fn whatever_the_target_it_goes_as_it_came_but_for_the_credential(
        path in prop_oneof![tricky(), "/[ -~]{0,20}", "[ -~]{0,12}", "\\PC{0,10}"],
        query in proptest::option::of(queries()),
        prefix in proptest::sample::select(vec!["", "/wx0123456789abcdef", "/wxfedcba9876543210", "/wxaaaaaaaaaaaaaaaa"]),
        method in proptest::sample::select(vec![Method::GET, Method::POST, Method::CONNECT, Method::TRACE]),
    ) {
        let routes = routes();
        let text = format!("{prefix}{path}{}", query.as_ref().map_or(String::new(), |query| format!("?{query}")));
        let Ok(uri) = Uri::try_from(text.as_str()) else { return Ok(()) };
        let Ok(route) = routes.find(&method, &uri) else { return Ok(()) };
        prop_assert!(method != Method::CONNECT && method != Method::TRACE);
        let Some(out) = written(&route) else { return Ok(()) };
        // `http` drops what follows a `#`, which the guard refuses before it gets here.
        let text = text.split('#').next().unwrap();
        let asked = uri.path_and_query().unwrap().as_str();
        prop_assert!(asked == text || !text.starts_with('/'), "{} became {}", text, asked);
        let (asked_path, asked_query) = asked.split_once('?').unwrap_or((asked, ""));
        let (path, query) = out.split_once('?').unwrap_or((&out, ""));
        let prefix = [OURS, OTHER, "wxaaaaaaaaaaaaaaaa"]
            .iter()
            .find_map(|appid| asked_path.strip_prefix(&format!("/{appid}")));
        let without = prefix.filter(|rest| rest.is_empty() || rest.starts_with('/')).unwrap_or(asked_path);
        prop_assert!(path == without || (without.is_empty() && path == "/"), "{} became {}", asked_path, path);
        prop_assert_eq!(rest(asked_query), rest(query), "{} became {}", asked_query, query);

        let tokens: Vec<_> =
            form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name == inject::ACCESS_TOKEN).collect();
        if route.action.carries_token() {
            prop_assert_eq!(tokens.len(), 1, "{}", out);
            prop_assert_eq!(&tokens[0].1, "50_the-token");
        }
        let placeholder = tokens.iter().any(|(_, token)| account::is_placeholder(token));
        prop_assert!(!placeholder, "a placeholder reached WeChat: {}", out);
        let of_the_others = if route.account.appid().as_str() == OURS { "other-secret" } else { "our-secret" };
        prop_assert!(!out.contains(of_the_others), "another account's secret: {}", out);
    }

    #[test]
    fn a_placeholder_speaks_for_its_account_however_it_is_written_into_a_query(
        appid in "[A-Za-z0-9_-]{1,64}", escaped in any::<bool>(), other in "[a-z0-9&=]{0,8}",
    ) {
        let account = account::idle(&appid, "12345678");
        let placeholder = account.placeholder();
        prop_assert!(account::is_placeholder(placeholder));
        // An appid with the placeholder's own words in it is no appid that WeChat gives.
        if !appid.contains("_not-a-") {
            prop_assert_eq!(account::placeholder_appid(placeholder), Some(&*appid));
        }
        let value = if escaped {
            placeholder.bytes().map(|b| format!("%{b:02x}")).collect()
        } else {
            placeholder.to_owned()
        };
        let routes = Routes::new(vec![account::idle(OURS, "12345678"), account]);
        let target = format!("/cgi-bin/x?{other}&access_token={value}");
        let uri = Uri::try_from(target.as_str()).unwrap();
        if !appid.contains("_not-a-") && !other.contains("access_token") {
            let route = routes.find(&Method::GET, &uri).unwrap();
            prop_assert_eq!(route.account.appid().as_str(), &*appid);
        }
    }
}

/// Two accounts that may not do the same.
fn with_a_deny() -> Routes {
    let deny =
        |list: &str| Policy::new(Rule::parse_list("default, /x/Y").unwrap(), Rule::parse_list(list).unwrap());
    let on = |appid: &str, list: &str| {
        account::idle(appid, "12345678").on(Terms { policy: deny(list), ..Terms::default() })
    };
    Routes::new(vec![
        on(OURS, "/sns/jscode2session, POST /cgi-bin/a"),
        on("wx2222222222222222", "/cgi-bin/b"),
    ])
}

#[test]
fn a_call_that_is_answered_here_opens_no_path_that_is_denied() {
    let routes = with_a_deny();
    let find = |target: &str| {
        let found = routes.find(&Method::GET, &Uri::try_from(target).unwrap());
        found.map(|route| route.action).map_err(|failure| failure.cause)
    };
    assert_eq!(find("/sns/jscode2session?appid=wx9999999999999999"), Ok(Action::AnswerUnknownAppid));
    assert_eq!(find(&format!("/sns/jscode2session?appid={OURS}")), Err(Cause::NotAllowed));
}

proptest! {
    #[test]
    fn what_was_called_before_decides_nothing(
        calls in proptest::collection::vec((0..3_usize, 0..10_usize, 0..6_usize), 1..40),
    ) {
        let methods = [Method::GET, Method::POST, "post".parse().unwrap()];
        let paths = [
            "/cgi-bin/a", "/cgi-bin/b", "/cgi-bin/A", "/sns/jscode2session", "/sns/userinfo", "/cgi-bin/token",
            "/cgi-bin/%61", "/cgi-bin/b/../a", "/x/Y", "/other/a",
        ];
        let queries = [
            String::new(), format!("?appid={OURS}"), "?appid=wx9999999999999999".to_owned(),
            "?appid=wx2222222222222222".to_owned(), "?component_access_token=c".to_owned(),
            format!("?access_token={}", account::idle("wx2222222222222222", "12345678").placeholder()),
        ];
        let one_after_another = with_a_deny();
        for (method, path, query) in calls {
            let target = format!("{}{}", paths[path], queries[query]);
            let uri = Uri::try_from(target.as_str()).unwrap();
            let told = |routes: &Routes| {
                let found = routes.find(&methods[method], &uri);
                found.map(|route| (route.action, route.account.appid().clone())).map_err(|failure| failure.message)
            };
            prop_assert_eq!(told(&one_after_another), told(&with_a_deny()), "{} {}", methods[method], target);
        }
    }
}
