//! Properties of what passes and of what goes again, for whatever is thrown at them: rules against a matcher that is too
//! simple to be wrong, and calls against any answers of WeChat.

use http::Method;
use proptest::prelude::*;
use wechat_sidecar::policy::{Policy, Rule, Rules};

use crate::rig::{RawUpstream, Sidecar, say};

/// Whether a pattern matches, segment by segment and star by star.
fn matches(pattern: &str, path: &str) -> bool {
    fn segment(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern, text) {
            ([], []) => true,
            ([b'*', rest @ ..], _) => (0..=text.len()).any(|at| segment(rest, &text[at..])),
            ([p, rest @ ..], [t, more @ ..]) => p == t && segment(rest, more),
            _ => false,
        }
    }
    let (pattern, below) = match pattern.strip_suffix("/**") {
        Some(pattern) => (pattern, true),
        None => (pattern, false),
    };
    let patterns: Vec<_> = pattern.split('/').collect();
    let segments: Vec<_> = path.split('/').collect();
    let whole = if below { segments.len() > patterns.len() } else { segments.len() == patterns.len() };
    whole && patterns.iter().zip(&segments).all(|(p, s)| segment(p.as_bytes(), s.as_bytes()))
}

fn paths() -> impl Strategy<Value = String> {
    proptest::collection::vec("[ab]{0,3}", 1..5).prop_map(|segments| format!("/{}", segments.join("/")))
}

fn methods() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(vec!["GET", "POST", "*", ""])
}

/// A rule as a user writes it: its method, or none, and its pattern.
fn rules() -> impl Strategy<Value = Vec<(&'static str, String)>> {
    // Two stars in a row are a rule's end, or an error.
    let segment = prop_oneof![3 => "[ab]{1,3}", 2 => "[ab]{1,2}\\*[ab]{0,2}", 1 => "\\*([ab]{1,2}\\*?)?"];
    let pattern = (proptest::collection::vec(segment, 1..4), any::<bool>())
        .prop_map(|(segments, below)| format!("/{}{}", segments.join("/"), if below { "/**" } else { "" }));
    proptest::collection::vec((methods(), pattern), 0..6)
}

fn parsed(rules: &[(&str, String)]) -> Vec<Rule> {
    rules.iter().map(|(method, pattern)| Rule::parse(&format!("{method} {pattern}")).unwrap()).collect()
}

fn first(rules: &[(&str, String)], method: &str, path: &str) -> Option<usize> {
    rules.iter().position(|(of, pattern)| (["*", ""].contains(of) || *of == method) && matches(pattern, path))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn the_tree_of_rules_finds_what_one_rule_after_the_other_finds(
        rules in rules(), path in paths(), method in proptest::sample::select(vec!["GET", "POST", "PUT"]),
    ) {
        let tree = Rules::new(parsed(&rules));
        let method_of = Method::from_bytes(method.as_bytes()).unwrap();
        prop_assert_eq!(tree.find(&method_of, &path), first(&rules, method, &path), "{:?} {}", rules, path);
    }

    #[test]
    fn what_is_denied_never_passes_and_what_no_rule_allows_neither(
        allow in rules(), deny in rules(), path in paths(), method in proptest::sample::select(vec!["GET", "POST"]),
    ) {
        let policy = Policy::new(parsed(&allow), parsed(&deny));
        let method_of = Method::from_bytes(method.as_bytes()).unwrap();
        let expected = first(&deny, method, &path).is_none() && first(&allow, method, &path).is_some();
        prop_assert_eq!(policy.check(&method_of, &path).is_ok(), expected, "{:?} {:?} {}", allow, deny, path);
    }
}

/// What WeChat says to one sending of a call, and whether it is a refusal of the token.
fn answers() -> impl Strategy<Value = (String, bool)> {
    let codes = vec![0, -1, 40001, 40014, 42001, 40003, 45009, 45011, 42002, 41001, 400_010, 4000];
    let code = proptest::sample::select(codes);
    (code, any::<bool>(), "[a-z \"\\\\]{0,12}", 0..6_usize).prop_map(|(code, quoted, said, spaces)| {
        let refused = [40001, 40014, 42001].contains(&code);
        let code = if quoted { format!("\"{code}\"") } else { code.to_string() };
        let said = serde_json::Value::from(said);
        let space = " ".repeat(spaces);
        (format!("{{{space}\"errmsg\":{said},{space}\"errcode\":{space}{code}}}"), refused)
    })
}

proptest! {
    // Each is a sidecar of its own, with an upstream and a token endpoint.
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 60, ..ProptestConfig::default() })]

    #[test]
    fn a_call_goes_again_once_if_its_first_answer_is_a_refusal_and_with_the_same_bytes(
        calls in proptest::collection::vec(
            (proptest::collection::vec(any::<u8>(), 0..3000), any::<bool>(), answers(), answers()), 1..5,
        ),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let upstream = RawUpstream::start().await;
            let sidecar = Sidecar::before(&upstream).await;
            for (body, chunked, (first, refused), (second, _)) in calls {
                let answer = |body: &str| {
                    say(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
                };
                upstream.play(if refused { vec![answer(&first), answer(&second)] } else { vec![answer(&first)] });
                let mut request = b"POST /cgi-bin/x?a=1&access_token=mine&b=2 HTTP/1.1\r\nHost: a\r\n".to_vec();
                if chunked && !body.is_empty() {
                    request.extend(format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n", body.len()).bytes());
                    request.extend_from_slice(&body);
                    request.extend_from_slice(b"\r\n0\r\n\r\n");
                } else {
                    request.extend(format!("Content-Length: {}\r\n\r\n", body.len()).bytes());
                    request.extend_from_slice(&body);
                }
                let reply = sidecar.call(&request).await;
                prop_assert_eq!(reply.text(), if refused { second } else { first });
                prop_assert_eq!(reply.header("x-wechat-sidecar-attempts"), refused.then_some("2"));
                let seen = upstream.take_seen();
                prop_assert_eq!(seen.len(), if refused { 2 } else { 1 });
                for sent in &seen {
                    prop_assert!(sent.whole && sent.body == body, "{:?}", sent.body);
                }
            }
            Ok(())
        })?;
    }
}
