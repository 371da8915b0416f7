//! What may be called: a [`Policy`] is an account's `allow` and `deny` lists, compiled, and says yes or which rule
//! says no. Deny wins; what no rule allows is refused.
//!
//! A [`Rule`] is `METHOD /path/pattern`: the method may be missing or `*`; `*` stands for anything within a segment, and
//! `/**` at the end for everything below. Rules are matched on the very bytes that go upstream. SECURITY: and once more
//! on what a server that normalizes all it can would make of them, in lower case; both must be allowed.
//!
//! Rules are kept as a tree of segments, because a list of 200 would cost a call what the rest of its way does.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use http::Method;

/// What is allowed unless a list says otherwise: everything below the first segments that WeChat's documents and the
/// SDKs know at this host (`wechat-api.md` 4; SKIT's and WxJava's tables of paths).
pub const KNOWN: &[&str] = &[
    "bizwifi",
    "bizwxaapi",
    "card",
    "cgi-bin",
    "channels",
    "cityservice",
    "componenttcb",
    "customservice",
    "cv",
    "datacube",
    "device",
    "donut",
    "hardware",
    "intp",
    "mall",
    "marketing",
    "merchant",
    "nontax",
    "product",
    "promoter",
    "publisher",
    "redpacketcover",
    "retail",
    "scan",
    "semantic",
    "shakearound",
    "shop",
    "sns",
    "tcb",
    "union",
    "user-order",
    "wedata",
    "wxa",
    "wxaapi",
    "wxadrama",
    "xpay",
];

/// The word that stands for all of [`KNOWN`] in a list.
pub const DEFAULT: &str = "default";

/// Most rules of one list.
pub const MOST_RULES: usize = 2000;

/// The longest rule, in bytes: the tree is walked by recursion, as deep as a rule has segments.
const LONGEST_RULE: usize = 512;

/// A method, or any, and a pattern of paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    text: String,
    method: Option<Method>,
    segments: Vec<String>,
    /// Whether it ends in `/**`.
    below: bool,
}

impl Rule {
    /// Reads a rule as a user writes it.
    ///
    /// # Errors
    /// A sentence with the remedy.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let remedy = "write it as POST /cgi-bin/message/**, with `*` for anything within a segment";
        let refused = |what: &str| Err(format!("{text:?} {what}; {remedy}"));
        let (method, path) = match text.split_once(char::is_whitespace) {
            Some((method, path)) => (method, path.trim_start()),
            None => ("*", text),
        };
        let method = match method {
            "*" => None,
            method if !method.is_empty() && method.bytes().all(|b| b.is_ascii_uppercase()) => {
                match Method::from_bytes(method.as_bytes()) {
                    Ok(method) => Some(method),
                    Err(_) => return refused("has no method before its path"),
                }
            }
            _ => return refused("does not begin with a method in capitals or with a path"),
        };
        if text.len() > LONGEST_RULE {
            return Err(format!("a rule is longer than {LONGEST_RULE} bytes; {remedy}"));
        }
        let Some(path) = path.strip_prefix('/') else { return refused("has no path that begins with /") };
        // SECURITY: what a path could be normalized from has no place in a rule: it would match nothing, or too much.
        let odd = |b: u8| !b.is_ascii_graphic() || matches!(b, b'%' | b'\\' | b';' | b'?' | b'#' | b'"');
        if path.bytes().any(odd) {
            return refused("has a character that no path of WeChat's has");
        }
        let mut segments: Vec<String> = path.split('/').map(str::to_owned).collect();
        let below = segments.last().is_some_and(|last| last == "**");
        if below {
            segments.pop();
        }
        if segments.iter().any(|segment| segment.contains("**")) {
            return refused("has `**` elsewhere than as its last segment");
        }
        let empty = |segment: &String| matches!(&segment[..], "" | "." | "..");
        if segments.iter().any(empty) {
            return refused("has an empty segment, or one of dots");
        }
        Ok(Self { text: text.to_owned(), method, segments, below })
    }

    /// A list: rules with commas between them, where [`DEFAULT`] stands for the known ones.
    ///
    /// # Errors
    /// A sentence with the remedy.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, String> {
        let mut rules = Vec::new();
        for item in text.split(',').map(str::trim) {
            match item {
                DEFAULT => rules.extend(Self::known()),
                "" => return Err("there is nothing between two commas; leave the empty rule out".to_owned()),
                item => rules.push(Self::parse(item)?),
            }
        }
        if rules.len() > MOST_RULES {
            return Err(format!("there are more than {MOST_RULES} rules; use `*` and `/**` to have fewer"));
        }
        Ok(rules)
    }

    /// The known prefixes as rules.
    fn known() -> impl Iterator<Item = Self> {
        KNOWN.iter().map(|first| Self {
            text: format!("/{first}/**"),
            method: None,
            segments: vec![(*first).to_owned()],
            below: true,
        })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Rules, compiled: finds the one that matches a call. Cheap to clone.
#[derive(Clone)]
pub struct Rules(Arc<Compiled>);

struct Compiled {
    rules: Vec<Rule>,
    /// As they were written.
    exact: Vec<Node>,
    /// In lower case.
    folded: Vec<Node>,
    /// Whether that changes none.
    is_lower: bool,
}

/// Where some rules have come after so many segments. The first node is the root.
#[derive(Default)]
struct Node {
    /// In order, for a search by halves: of the few that there are it is done before a hash is.
    literals: Vec<(Box<str>, usize)>,
    globs: Vec<(Box<str>, usize)>,
    /// Rules that end here, and rules that go on with `/**`.
    here: Vec<usize>,
    below: Vec<usize>,
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.rules.iter().map(Rule::to_string)).finish()
    }
}

impl Rules {
    /// Compiles rules. The number of a rule is its place in this list.
    #[must_use]
    pub fn new(rules: Vec<Rule>) -> Self {
        let compile = |fold: bool| {
            let mut nodes = vec![Node::default()];
            for (number, rule) in rules.iter().enumerate() {
                let mut at = 0;
                for segment in &rule.segments {
                    let segment = if fold { segment.to_ascii_lowercase() } else { segment.clone() };
                    at = step(&mut nodes, at, segment.into_boxed_str());
                }
                let ends = if rule.below { &mut nodes[at].below } else { &mut nodes[at].here };
                ends.push(number);
            }
            nodes
        };
        let (exact, folded) = (compile(false), compile(true));
        let upper = |segment: &String| segment.bytes().any(|b| b.is_ascii_uppercase());
        let is_lower = !rules.iter().any(|rule| rule.segments.iter().any(upper));
        Self(Arc::new(Compiled { rules, exact, folded, is_lower }))
    }

    /// The first rule, by its number, that matches these bytes.
    #[must_use]
    pub fn find(&self, method: &Method, path: &str) -> Option<usize> {
        self.look(&self.0.exact, method, path)
    }

    /// The same for a path in lower case, with the rules taken in lower case.
    #[must_use]
    pub fn find_folded(&self, method: &Method, path: &str) -> Option<usize> {
        self.look(&self.0.folded, method, path)
    }

    /// Whether the rules are the same in lower case, so that a path without capitals need not be looked for twice.
    #[must_use]
    pub fn is_lower(&self) -> bool {
        self.0.is_lower
    }

    /// A rule by its number.
    #[must_use]
    pub fn name(&self, number: usize) -> &str {
        &self.0.rules[number].text
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.rules.is_empty()
    }

    fn look(&self, nodes: &[Node], method: &Method, path: &str) -> Option<usize> {
        if self.is_empty() {
            return None;
        }
        let rest = path.strip_prefix('/')?;
        let takes = |number: &usize| self.0.rules[*number].method.as_ref().is_none_or(|m| m == method);
        let mut found: Option<usize> = None;
        let mut note = |ends: &[usize]| {
            for number in ends.iter().filter(|number| takes(number)) {
                found = Some(found.map_or(*number, |best| best.min(*number)));
            }
        };
        visit(nodes, 0, Some(rest), &mut note);
        found
    }
}

/// The node that a segment leads to, made if there is none.
fn step(nodes: &mut Vec<Node>, from: usize, segment: Box<str>) -> usize {
    let next = nodes.len();
    let node = &mut nodes[from];
    let to = if segment.contains('*') {
        match node.globs.iter().find(|(glob, _)| *glob == segment) {
            Some((_, to)) => *to,
            None => {
                node.globs.push((segment, next));
                next
            }
        }
    } else {
        match literal(node, &segment) {
            Ok(n) => node.literals[n].1,
            Err(n) => {
                node.literals.insert(n, (segment, next));
                next
            }
        }
    };
    if to == next {
        nodes.push(Node::default());
    }
    to
}

/// Where a segment stands among a node's literals, or would.
fn literal(node: &Node, segment: &str) -> Result<usize, usize> {
    // By length first, which tells most apart at once.
    node.literals.binary_search_by(|(literal, _)| {
        literal.len().cmp(&segment.len()).then_with(|| (**literal).cmp(segment))
    })
}

/// Goes down the tree as far as `rest` (the segments still to come, `None` after the last) leads, and notes the rules on
/// the way. Each node is reached by one way only, so this costs no more than there are rules, whatever the path.
fn visit(nodes: &[Node], at: usize, rest: Option<&str>, note: &mut impl FnMut(&[usize])) {
    let node = &nodes[at];
    let Some(rest) = rest else { return note(&node.here) };
    note(&node.below);
    let (segment, rest) = match memchr::memchr(b'/', rest.as_bytes()) {
        Some(at) => (&rest[..at], Some(&rest[at + 1..])),
        None => (rest, None),
    };
    if let Ok(n) = literal(node, segment) {
        visit(nodes, node.literals[n].1, rest, note);
    }
    for (glob, to) in &node.globs {
        if matches(glob.as_bytes(), segment.as_bytes()) {
            visit(nodes, *to, rest, note);
        }
    }
}

/// Whether `*` as any number of bytes makes a pattern of this text. Linear but for the last `*`, which moves on.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match (pattern.get(p), star) {
            (Some(b'*'), _) => {
                star = Some((p + 1, t));
                p += 1;
            }
            (Some(byte), _) if *byte == text[t] => (p, t) = (p + 1, t + 1),
            (_, Some((after, from))) => {
                star = Some((after, from + 1));
                (p, t) = (after, from + 1);
            }
            (_, None) => return false,
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// A path as a message may show it: printable, and no longer than a person reads.
#[must_use]
pub fn shown(path: &str) -> String {
    const MOST: usize = 120;
    let mut shown: String = path.chars().take(MOST).flat_map(char::escape_default).collect();
    if path.chars().nth(MOST).is_some() {
        shown.push_str("...");
    }
    shown
}

/// What an account's apps may call.
#[derive(Clone, Debug)]
pub struct Policy {
    allow: Rules,
    deny: Rules,
}

impl Default for Policy {
    fn default() -> Self {
        Self::new(Rule::known().collect(), Vec::new())
    }
}

/// Why a call is not allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// By this rule.
    By(String),
    /// No rule allows it.
    Unlisted,
}

impl Policy {
    /// Allows what `allow` has and `deny` has not.
    #[must_use]
    pub fn new(allow: Vec<Rule>, deny: Vec<Rule>) -> Self {
        Self { allow: Rules::new(allow), deny: Rules::new(deny) }
    }

    /// Whether a call with these bytes for its path is allowed.
    ///
    /// # Errors
    /// Why it is not.
    pub fn check(&self, method: &Method, path: &str) -> Result<(), Denied> {
        judge(&self.allow, &self.deny, method, |rules, method| rules.find(method, path))
    }

    /// Whether the rules of both lists are the same in lower case.
    #[must_use]
    pub fn is_lower(&self) -> bool {
        self.allow.is_lower() && self.deny.is_lower()
    }

    /// Whether the call would be, if a server normalized its path to this one (in lower case).
    ///
    /// # Errors
    /// Why it would not.
    pub fn check_folded(&self, method: &Method, path: &str) -> Result<(), Denied> {
        judge(&self.allow, &self.deny, method, |rules, method| rules.find_folded(method, path))
    }
}

fn judge(
    allow: &Rules,
    deny: &Rules,
    method: &Method,
    find: impl Fn(&Rules, &Method) -> Option<usize>,
) -> Result<(), Denied> {
    // SECURITY: `post` is another method than `POST`, but not to every server: what is denied is so in any case.
    if let Some(number) = find(deny, &in_capitals(method)) {
        return Err(Denied::By(deny.name(number).to_owned()));
    }
    find(allow, method).map(drop).ok_or(Denied::Unlisted)
}

fn in_capitals(method: &Method) -> Cow<'_, Method> {
    if !method.as_str().bytes().any(|byte| byte.is_ascii_lowercase()) {
        return Cow::Borrowed(method);
    }
    Method::from_bytes(method.as_str().to_ascii_uppercase().as_bytes())
        .map_or(Cow::Borrowed(method), Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(list: &str) -> Rules {
        Rules::new(Rule::parse_list(list).unwrap())
    }

    fn found(list: &str, call: &str) -> bool {
        let (method, path) = call.split_once(' ').unwrap();
        rules(list).find(&method.parse().unwrap(), path).is_some()
    }

    #[test]
    fn a_rule_matches_whole_segments_of_the_very_bytes() {
        for (list, call) in [
            ("/cgi-bin/user/get", "GET /cgi-bin/user/get"),
            ("* /cgi-bin/user/get", "POST /cgi-bin/user/get"),
            ("POST /cgi-bin/message/**", "POST /cgi-bin/message/custom/send"),
            ("/cgi-bin/**", "GET /cgi-bin/"),
            ("/**", "GET /"),
            ("/**", "GET /anything/at%20all//x"),
            ("/cgi-bin/*/get", "GET /cgi-bin/user/get"),
            ("/wxa/get*unlimit", "GET /wxa/getwxacodeunlimit"),
            ("/wxa/*code*", "GET /wxa/getwxacodeunlimit"),
            ("/a/*/**", "GET /a/b/c/d"),
            ("/wxa/getLiveInfo", "GET /wxa/getLiveInfo"),
            ("GET /a, POST /b", "POST /b"),
            ("/a/*/c, /a/b/**", "GET /a/b/d"),
            ("default", "GET /wxaapi/newtmpl/gettemplate"),
        ] {
            assert!(found(list, call), "{list}: {call}");
        }
        for (list, call) in [
            ("/cgi-bin/user/get", "GET /cgi-bin/user/get/"),
            ("/cgi-bin/user/get", "GET /cgi-bin/user/gets"),
            ("/cgi-bin/user/get", "GET /cgi-bin/user"),
            ("/cgi-bin/user/get", "GET /cgi-bin/User/get"),
            ("/cgi-bin/user/get", "GET /cgi-bin//user/get"),
            ("POST /cgi-bin/message/**", "GET /cgi-bin/message/custom/send"),
            ("/cgi-bin/**", "GET /cgi-bin"),
            ("/cgi-bin/**", "GET /cgi-binx/a"),
            ("/cgi-bin/*/get", "GET /cgi-bin/a/b/get"),
            ("/wxa/get*unlimit", "GET /wxa/getunlimits"),
            ("/a/*/**", "GET /a/b"),
            ("default", "GET /"),
            ("default", "GET /x/cgi-bin/y"),
        ] {
            assert!(!found(list, call), "{list}: {call}");
        }
    }

    #[test]
    fn a_star_tries_every_place_and_takes_no_longer_for_it() {
        assert!(matches(b"*a*b*c*", b"xxaxxbxxcxx") && matches(b"a*", b"a") && matches(b"*", b""));
        assert!(!matches(b"a*b", b"acbd") && !matches(b"a", b""));
        let long = vec![b'a'; 60_000];
        assert!(!matches(b"*a*a*a*a*b", &long), "and not in exponential time");
        let deep = format!("/{}", "a/".repeat(30_000));
        assert!(rules("/*/**, /a/*/**, /a/a/*").find(&Method::GET, &deep).is_some());
        assert!(rules("/*/*/b, /a/*/b, /*/a/b").find(&Method::GET, &deep).is_none());
    }

    #[test]
    fn deny_wins_and_tells_its_rule() {
        let list = |text| Rule::parse_list(text).unwrap();
        let policy = Policy::new(list("default, /new/**"), list("/cgi-bin/menu/**, POST /wxa/Secret"));
        let check = |method: Method, path| policy.check(&method, path);
        assert_eq!(check(Method::GET, "/new/x"), Ok(()));
        assert_eq!(check(Method::GET, "/cgi-bin/user/get"), Ok(()));
        assert_eq!(check(Method::GET, "/cgi-bin/menu/get"), Err(Denied::By("/cgi-bin/menu/**".into())));
        assert_eq!(check(Method::POST, "/wxa/Secret"), Err(Denied::By("POST /wxa/Secret".into())));
        assert_eq!(check(Method::GET, "/wxa/Secret"), Ok(()));
        assert_eq!(check(Method::GET, "/other"), Err(Denied::Unlisted));
        assert!(policy.check_folded(&Method::POST, "/wxa/secret").is_err());
        for method in ["post", "Post", "pOST"] {
            let method: Method = method.parse().unwrap();
            assert_eq!(check(method, "/wxa/Secret"), Err(Denied::By("POST /wxa/Secret".into())));
        }
        let posts = Policy::new(list("POST /a"), Vec::new());
        assert_eq!(posts.check(&"post".parse().unwrap(), "/a"), Err(Denied::Unlisted));
    }

    #[test]
    fn a_path_in_a_message_is_short_and_printable() {
        assert_eq!(shown("/cgi-bin/x"), "/cgi-bin/x");
        assert_eq!(shown("/微\u{7f}"), "/\\u{5fae}\\u{7f}");
        assert_eq!(shown(&"/a".repeat(1000)).len(), 123);
    }

    #[test]
    fn the_first_of_the_rules_that_match_is_told() {
        let rules = rules("POST /a/**, /a/b, /a/*");
        assert_eq!(rules.find(&Method::POST, "/a/b").map(|n| rules.name(n)), Some("POST /a/**"));
        assert_eq!(rules.find(&Method::GET, "/a/b").map(|n| rules.name(n)), Some("/a/b"));
    }

    #[test]
    fn a_rule_that_could_not_do_what_it_says_is_refused_with_the_remedy() {
        for bad in [
            "",
            "cgi-bin/x",
            "get /cgi-bin/x",
            "GET",
            "GET cgi-bin/x",
            "/a//b",
            "/a/",
            "//a",
            "/a/../b",
            "/./a",
            "/a%2fb",
            "/a\\b",
            "/a;b",
            "/a?b=c",
            "/a#b",
            "/a/**/b",
            "/a**",
            "/a/b**",
            "/ä",
            "/a b",
            "G-T /a",
        ] {
            let told = Rule::parse(bad).unwrap_err();
            assert!(told.contains("; write it as POST /cgi-bin/message/**"), "{bad}: {told}");
        }
        assert!(Rule::parse(&"/a".repeat(400)).is_err());
        assert!(Rule::parse_list("/a,,/b").is_err());
        assert!(Rule::parse_list(&vec!["/a"; MOST_RULES + 1].join(",")).is_err());
    }
}
