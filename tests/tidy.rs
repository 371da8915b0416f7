//! Holds the house in shape: imports point only downward, files are short and say what they own, and what is
//! banned stays out. And holds what people read to what the code does: README and examples name only causes, settings
//! and command lines that exist. The checks are functions on text, tested on bad samples, so that they can fail.

#[path = "tidy/translation.rs"]
mod translation;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use wechat_sidecar::config::{cli, settings};
use wechat_sidecar::error::Cause;

/// The layers from the bottom up; a module may use its own layer and those below.
const LAYERS: &[&[&str]] = &[
    &[
        "body",
        "buffer",
        "ca",
        "clients",
        "credentials",
        "deadline",
        "error",
        "files",
        "harden",
        "hosts",
        "metrics",
        "origin",
        "policy",
        "rates",
        "readiness",
        "server",
        "signal",
        "slots",
        "syntax",
        "telemetry",
        "tls",
    ],
    &["token"],
    &["account"],
    &["admin", "proxy"],
    &["config"],
    &["app", "sim"],
    &["demo"],
    &["commands", "main"],
];

/// Who never knows whom, beside what the layers say.
const STRANGERS: &[(&str, &str)] = &[("admin", "proxy"), ("proxy", "admin"), ("app", "sim"), ("sim", "app")];

/// Who may know the simulator: it is for laptops and tests, and a served call never meets it.
const KNOWS_SIM: &[&str] = &["sim", "demo", "commands", "main"];

/// The longest a file may be.
const MAX_LINES: usize = 700;

/// What may stand at the top of the repository, beside names that begin with a dot and licenses.
const TOP: &[&str] = &[
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "Dockerfile",
    "README.md",
    "README.zh-CN.md",
    "SECURITY.md",
    "benches",
    "clippy.toml",
    "deny.toml",
    "examples",
    "rustfmt.toml",
    "src",
    "target",
    "tests",
];

#[test]
fn imports_point_only_downward() {
    report(sources().flat_map(|(path, text)| imports(&path, &text)));
}

#[test]
fn every_file_says_what_it_owns_and_is_short() {
    report(sources().flat_map(|(path, text)| shape(&path, &text)));
}

#[test]
fn what_is_banned_stays_out() {
    report(sources().flat_map(|(path, text)| banned(&path, &text)));
}

#[test]
fn the_top_of_the_repository_holds_only_what_belongs_there() {
    let entries = fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().file_name());
    report(entries.filter_map(|name| top(&name.to_string_lossy())));
}

#[test]
fn the_readme_tells_every_error_of_ours() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    report(Cause::ALL.iter().filter_map(|cause| untold(*cause, &readme)));
}

#[test]
fn every_promise_and_what_is_none_names_a_test_that_exists() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let tests =
        ["tests/integration", "tests/integration/corpus"].map(|folder| fs::read_dir(root().join(folder)));
    let tests = tests.into_iter().flat_map(Result::unwrap);
    let tests = tests.filter_map(|entry| fs::read_to_string(entry.unwrap().path()).ok());
    let code: String = tests.chain(sources().map(|(_, text)| text)).collect();
    report(["Security", "Reliability"].iter().flat_map(|chapter| unbacked(chapter, &readme, &code, &runs)));
}

/// Whether the test command runs a script: it names it, or the `run.sh` beside it, which names it.
fn runs(script: &str) -> bool {
    let read = |path: &Path| fs::read_to_string(root().join(path)).unwrap_or_default();
    let command = read(Path::new("tests/run.sh"));
    let path = Path::new(script);
    let (Some(folder), Some(stem)) = (path.parent(), path.file_stem()) else { return false };
    let suite = folder.join("run.sh");
    let through_suite = command.contains(&*suite.to_string_lossy())
        && words(&read(&suite)).contains(&&*stem.to_string_lossy());
    root().join(path).is_file() && (command.contains(script) || through_suite)
}

#[test]
fn whatever_is_shown_to_people_exists() {
    report(shown().flat_map(|(path, text)| nonexistent(&path, &text)));
}

// What is checked.

/// Every import of a file that its layer forbids.
fn imports(path: &Path, text: &str) -> Vec<String> {
    let module = module_path(path);
    let Some(from) = module.first() else { return Vec::new() };
    // lib.rs names every module; a file of tests may use what it likes.
    if from == "lib" || module.iter().any(|part| part == "tests") {
        return Vec::new();
    }
    let Some(layer) = layer(from) else {
        return vec![format!("{}: {from} is in no layer; give it one in tests/tidy.rs", path.display())];
    };
    let mut found = Vec::new();
    for to in used_modules(&module, &without_tests(&code(text))) {
        let why = match layer_or_unknown(&to) {
            None => "which is in no layer; give it one in tests/tidy.rs",
            Some(other) if other > layer => "which lies above it",
            Some(_) if STRANGERS.contains(&(from.as_str(), to.as_str())) => {
                "and the two must not know each other"
            }
            Some(_) if to == "sim" && !KNOWS_SIM.contains(&from.as_str()) => "which only commands may",
            Some(_) => continue,
        };
        found.push(format!("{}: {from} uses {to}, {why}", path.display()));
    }
    found
}

/// A file that is too long, or does not begin with what it owns.
fn shape(path: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    if !text.starts_with("//! ") {
        found.push(format!("{}: begin it with //! and what it owns", path.display()));
    }
    let lines = text.lines().count();
    if lines > MAX_LINES {
        found.push(format!("{}: {lines} lines; split it, {MAX_LINES} is the most", path.display()));
    }
    found
}

/// `unsafe`, and the clock that tests cannot pause.
fn banned(path: &Path, text: &str) -> Vec<String> {
    let code = code(text);
    let words = words(&code);
    let mut found = Vec::new();
    if words.contains(&"unsafe") {
        found.push(format!("{}: has unsafe", path.display()));
    }
    // A path or a group: std::time::Instant, std::time::{Duration, Instant}.
    for (at, _) in code.match_indices("std::time::") {
        let rest = &code[at + "std::time::".len()..];
        let named = if rest.starts_with('{') { group(rest) } else { rest.split(';').next().unwrap_or(rest) };
        let first = self::words(named);
        if (rest.starts_with('{') && first.contains(&"Instant")) || first.first() == Some(&"Instant") {
            found.push(format!("{}: has std::time::Instant; use tokio::time::Instant", path.display()));
        }
    }
    found
}

/// A name that does not belong at the top.
fn top(name: &str) -> Option<String> {
    let belongs = TOP.contains(&name) || name.starts_with('.') || name.starts_with("LICENSE");
    (!belongs).then(|| format!("{name} does not belong at the top of the repository"))
}

/// A cause that no row of the README's table tells with its status and errcode.
fn untold(cause: Cause, readme: &str) -> Option<String> {
    let row = format!("| {} | `{}` | {} |", cause.status().as_u16(), cause.name(), cause.errcode());
    let told = readme.lines().filter(|line| line.ends_with(&row)).count() == 1;
    (!told).then(|| format!("README.md: tell {cause:?} in a row of the table of failures that ends in {row}"))
}

/// Rows of a chapter's two tables, of what is promised and what is not, whose last column names no test that is one, nor
/// a script that the test command `runs`.
fn unbacked(chapter: &str, readme: &str, code: &str, runs: &dyn Fn(&str) -> bool) -> Vec<String> {
    let Some((_, rest)) = readme.split_once(&format!("\n## {chapter}\n")) else {
        return vec![format!("README.md: there is no chapter on {chapter}")];
    };
    let chapter_text = rest.split("\n## ").next().unwrap_or_default();
    let tables = chapter_text.matches("\n|---").count();
    let mut found = Vec::new();
    if tables != 2 {
        found.push(format!(
            "README.md: {chapter} has {tables} tables; give it one of promises and one of what is none"
        ));
    }
    let mut lines = chapter_text.lines().peekable();
    while let Some(row) = lines.next() {
        let is_head = lines.peek().is_some_and(|next| next.starts_with("|---"));
        if !row.starts_with('|') || row.starts_with("|---") || is_head {
            continue;
        }
        let test = row.trim_end_matches(" |").rsplit("| ").next().unwrap_or_default().trim_matches('`');
        if !(is_test(test, code) || (test.starts_with("tests/") && runs(test))) {
            found.push(format!("README.md: no such test: {row}"));
        }
    }
    found
}

/// A function of that name with a test's attribute before it.
fn is_test(name: &str, code: &str) -> bool {
    let is_marked = |(at, _): (usize, &str)| {
        let before = code[..at].trim_end().trim_end_matches("async").trim_end();
        let line = before.lines().last().unwrap_or_default().trim();
        line.starts_with("#[test]") || line.starts_with("#[tokio::test")
    };
    !name.is_empty() && code.match_indices(&format!("fn {name}(")).any(is_marked)
}

/// Variables that are no setting, and command lines that would be refused.
fn nonexistent(path: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let known: Vec<_> =
        settings::SETTINGS.iter().filter(|s| s.is_env()).map(settings::Setting::env).collect();
    for word in words(text).iter().filter(|word| word.starts_with(settings::ENV_PREFIX)) {
        if !known.iter().any(|known| known == word) {
            found.push(format!("{}: {word} is no setting", path.display()));
        }
    }
    for line in text.lines() {
        let words = line.split_whitespace().skip_while(|word| word.contains('='));
        // What the shell makes of the rest is not the command's.
        let words: Vec<_> = words.take_while(|word| !["|", ">", "&&", "&"].contains(word)).collect();
        let command = match words.as_slice() {
            [program, rest @ ..] if program.ends_with("/wechat-sidecar") || *program == "wechat-sidecar" => {
                rest
            }
            ["cargo", "run", "--release", "--", rest @ ..] => rest,
            _ => continue,
        };
        // Prose and file names begin like this, too; what runs names its command.
        let runs = command.first().is_some_and(|verb| VERBS.contains(verb));
        let args = ["wechat-sidecar"].iter().chain(command);
        if runs && let Err(error) = cli::command().try_get_matches_from(args) {
            found.push(format!("{}: {line}\n{error}", path.display()));
        }
    }
    found
}

/// The commands of the binary.
const VERBS: &[&str] = &["run", "check", "wait", "ca", "simulate", "demo", "man", "completions"];

// How it is found.

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every source file, as `src/…`, and its text.
fn sources() -> impl Iterator<Item = (PathBuf, String)> {
    let mut files = BTreeMap::new();
    let mut folders = vec![root().join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a source folder can be listed") {
            let path = entry.expect("a source folder can be listed").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source file can be read");
                files.insert(path.strip_prefix(root()).expect("sources lie below the root").to_owned(), text);
            }
        }
    }
    assert!(files.len() > 5, "the sources are not where this test looks for them");
    files.into_iter()
}

/// Everything at the top and in the examples that people read or copy.
fn shown() -> impl Iterator<Item = (PathBuf, String)> {
    let mut files = BTreeMap::new();
    let mut places = vec![root().join("README.md"), root().join("Dockerfile"), root().join("examples")];
    while let Some(path) = places.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(path).expect("a folder can be listed");
            places.extend(entries.map(|entry| entry.expect("a folder can be listed").path()));
        } else if let Ok(text) = fs::read_to_string(&path) {
            files.insert(path.strip_prefix(root()).expect("it lies below the root").to_owned(), text);
        }
    }
    assert!(files.len() > 5, "what people read is not where this test looks for it");
    files.into_iter()
}

fn report(problems: impl Iterator<Item = String>) {
    let problems: Vec<String> = problems.collect();
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

/// `src/proxy/route.rs` is `[proxy, route]`.
fn module_path(path: &Path) -> Vec<String> {
    let path = path.with_extension("");
    let mut parts: Vec<_> = path.iter().skip(1).map(|part| part.to_string_lossy().into_owned()).collect();
    if parts.len() > 1 && parts.last().is_some_and(|part| part == "mod") {
        parts.pop();
    }
    parts
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// A capital begins an item, which cannot be a module.
fn layer_or_unknown(name: &str) -> Option<usize> {
    if name.starts_with(char::is_uppercase) { Some(0) } else { layer(name) }
}

/// The top-level modules that code names, through `crate::` or enough `super::`.
fn used_modules(module: &[String], code: &str) -> Vec<String> {
    let mut used = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        // Not `$crate::` of a macro, nor `mycrate::`.
        if !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            used.extend(first_names(&code[at + "crate::".len()..]));
        }
    }
    for (at, _) in code.match_indices("super::") {
        if code[..at].ends_with("super::") || code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_')
        {
            continue;
        }
        let mut rest = &code[at..];
        let mut up = 0;
        while let Some(further) = rest.strip_prefix("super::") {
            rest = further;
            up += 1;
        }
        // Within a module written in its parent's file this is one too many, so only known modules count.
        if up >= module.len() {
            used.extend(first_names(rest).into_iter().filter(|name| layer(name).is_some()));
        }
    }
    used.sort();
    used.dedup();
    used
}

/// The first name of a path, or of each path in a group: `a::b` is `[a]`, `{a::b, c::{d, e}}` is `[a, c]`.
fn first_names(path: &str) -> Vec<String> {
    let name = |path: &str| words(path).first().map(|word| (*word).to_owned());
    if !path.starts_with('{') {
        return name(path).into_iter().filter(|_| path.starts_with(|c: char| c.is_alphabetic())).collect();
    }
    let mut names = Vec::new();
    let (mut depth, mut begins) = (0, 1);
    for (at, c) in group(path).char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if (c == ',' && depth == 1) || depth == 0 {
            names.extend(name(&path[begins..at]));
            begins = at + 1;
        }
    }
    names
}

/// From the opening brace it begins with to the closing one.
fn group(text: &str) -> &str {
    let mut depth = 0_usize;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return &text[..=at];
        }
    }
    text
}

fn words(code: &str) -> Vec<&str> {
    code.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty()).collect()
}

/// Code without what follows `#[cfg(test)]`: tests may use what they like.
fn without_tests(code: &str) -> String {
    let mut kept = String::new();
    let mut rest = code;
    while let Some((before, after)) = rest.split_once("#[cfg(test)]") {
        kept.push_str(before);
        let brace = after.find('{').unwrap_or(after.len());
        let semicolon = after.find(';').unwrap_or(after.len());
        rest = if semicolon < brace {
            &after[semicolon + 1..]
        } else {
            let block = &after[brace..];
            &block[group(block).len()..]
        };
    }
    kept + rest
}

/// Rust without comments, and with strings and characters emptied.
fn code(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skip = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(length) = raw_string(rest).filter(|_| !ends_in_word(&out)) {
            out.push_str("\"\"");
            length
        } else if c == '"' {
            out.push_str("\"\"");
            quoted(rest, '"')
        } else if c == '\'' && is_char(rest) {
            out.push_str("' '");
            quoted(rest, '\'')
        } else {
            out.push(c);
            c.len_utf8()
        };
        rest = &rest[skip..];
    }
    out
}

fn ends_in_word(text: &str) -> bool {
    text.ends_with(|c: char| c.is_alphanumeric() || c == '_')
}

/// How long a block comment is; they nest.
fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        if text[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                break;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    at
}

/// How long a raw string is, if one begins here: `r"…"`, `br#"…"#`.
fn raw_string(text: &str) -> Option<usize> {
    let after = text.strip_prefix("br").or_else(|| text.strip_prefix('r'))?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    let body = after[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let head = text.len() - body.len();
    Some(body.find(&end).map_or(text.len(), |at| head + at + end.len()))
}

/// How long a quoted string or character is.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// A character, and not a lifetime.
fn is_char(text: &str) -> bool {
    let mut chars = text.chars().skip(1);
    matches!((chars.next(), chars.next()), (Some('\\'), _) | (Some(_), Some('\'')))
}

// That it can fail.

fn found(path: &str, text: &str) -> String {
    imports(Path::new(path), text).join("\n")
}

#[test]
fn an_import_that_points_up_is_found_in_every_spelling() {
    for (path, text) in [
        ("src/token.rs", "use crate::proxy::route;"),
        ("src/token/keeper.rs", "use crate::account::Config;"),
        ("src/token/keeper.rs", "use super::super::account::Config;"),
        ("src/error.rs", "use super::token::Token;"),
        ("src/error.rs", "fn f() { crate::token::keeper::go() }"),
        ("src/error.rs", "pub(crate) use crate::{origin::Origin, token::{Token, Reason}};"),
        ("src/error.rs", "use crate::{\n    // why\n    token,\n};"),
        ("src/server.rs", "use crate::config::Config;"),
        ("src/admin.rs", "use crate::config::settings;"),
        ("src/proxy/route.rs", "use crate::app;"),
        ("src/config.rs", "use crate::app::App;"),
        ("src/proxy/mod.rs", "use crate::config::Config;"),
        ("src/error.rs", "#[cfg(test)]\nmod tests { use crate::app; }\nuse crate::token::Token;"),
        ("src/error.rs", "const A: char = '\"'; use crate::token::Token; const B: char = '\"';"),
    ] {
        assert!(found(path, text).contains("lies above"), "{path}: {text}");
    }
}

#[test]
fn planes_that_must_not_know_each_other_are_kept_apart() {
    assert!(found("src/admin.rs", "use crate::proxy::Proxy;").contains("must not know"));
    assert!(found("src/proxy/route.rs", "use crate::admin::Config;").contains("must not know"));
    assert!(found("src/sim/rules.rs", "use crate::app::App;").contains("must not know"));
    assert!(found("src/app.rs", "use crate::sim::Sim;").contains("must not know"));
    assert!(found("src/config/cli.rs", "use crate::sim::Config;").contains("lies above"));
    assert!(found("src/stray.rs", "").contains("in no layer"));
    assert!(found("src/app.rs", "use crate::stray::Thing;").contains("in no layer"));
}

#[test]
fn what_only_looks_like_an_import_is_left_alone() {
    for (path, text) in [
        ("src/error.rs", "// use crate::token::Token;\n/* crate::app /* crate::app */ crate::app */"),
        ("src/error.rs", "const A: &str = \"crate::token\\\" crate::app\";"),
        ("src/error.rs", "const A: &str = r#\"crate::token \" crate::app\"#;"),
        ("src/error.rs", "fn f<'a>(a: &'a str) {} // crate::app '"),
        ("src/error.rs", "#[cfg(test)]\nmod tests {\n use crate::app; const A: char = '}';\n}\n"),
        ("src/error.rs", "#[cfg(test)]\nmod tests;\n#[cfg(test)] use crate::app;"),
        ("src/error.rs", "use othercrate::app; $crate::app!();"),
        ("src/token/keeper.rs", "use super::{Token, store}; use super::super::origin::Origin;"),
        ("src/main.rs", "use wechat_sidecar::sim; use crate::commands;"),
        ("src/demo.rs", "use crate::{app, sim};"),
        ("src/lib.rs", "pub mod sim; use crate::sim;"),
        ("src/token/tests.rs", "use crate::sim;"),
        ("src/proxy/call.rs", "use crate::proxy::upstream; use crate::server; use crate::token::Token;"),
    ] {
        assert_eq!(found(path, text), "", "{path}: {text}");
    }
}

#[test]
fn a_shapeless_or_banned_file_is_found() {
    let path = Path::new("src/x.rs");
    assert_eq!(shape(path, "use a;\n").len(), 1);
    assert_eq!(shape(path, &"//! x\n".repeat(MAX_LINES + 1)).len(), 1);
    assert!(shape(path, &"//! x\n".repeat(MAX_LINES)).is_empty());
    for bad in [
        "unsafe { x() }",
        "use std::time::Instant;",
        "use std::time::{Duration, Instant};",
        "let t = std::time::Instant::now();",
    ] {
        assert_eq!(banned(path, bad).len(), 1, "{bad}");
    }
    for good in [
        "// unsafe",
        "let unsafe_code = \"unsafe\";",
        "use std::time::Duration; use tokio::time::Instant;",
        "let t: (std::time::Duration, Instant);",
    ] {
        assert!(banned(path, good).is_empty(), "{good}");
    }
    assert!(top("notes.txt").is_some() && top("docs").is_some());
    assert!(top("LICENSE-MIT").is_none() && top(".gitignore").is_none() && top("src").is_none());
}

#[test]
fn what_is_told_wrongly_is_found() {
    let (cause, row) = (Cause::NoToken, "| There is none | 503 | `no-token` | -1 |");
    assert!(untold(cause, row).is_none());
    for bad in ["", "no-token", "| There is none | 502 | `no-token` | -1 |", &format!("{row}\n{row}")] {
        assert!(untold(cause, bad).is_some(), "{bad}");
    }
    let head = "| Who | What | Test |\n|---|---|---|\n";
    let readme =
        |row: &str| format!("\n## Security\n\n{head}{row}\n\nBut not:\n\n{head}{row}\n\n## Next\n\n| x |\n");
    let code = "#[tokio::test(start_paused = true)]\nasync fn it_holds() {}\nfn it_helps() {}";
    let runs = |script: &str| script == "tests/fire/soak.py";
    for good in ["| a | b | `it_holds` |", "| a | b | `tests/fire/soak.py` |"] {
        assert_eq!(unbacked("Security", &readme(good), code, &runs), Vec::<String>::new());
    }
    let helper = "| a | b | `it_helps` |";
    for bad in ["| a | b | `it_hold` |", "| a | b |", "| a | b |  |", "| a | b | `tests/fire/x.py` |", helper]
    {
        assert_eq!(unbacked("Security", &readme(bad), code, &runs).len(), 2, "{bad}");
    }
    let one = format!("\n## Security\n\n{head}| a | b | `it_holds` |\n");
    assert!(unbacked("Security", &one, code, &runs)[0].contains("1 tables"));
    assert_eq!(unbacked("Security", "", "", &runs).len(), 1);
    let found = |text| nonexistent(Path::new("README.md"), text).len();
    for bad in [
        "set WECHAT_SIDECAR_BANANA=1",
        "wechat-sidecar run --listne 127.0.0.1:0",
        "target/release/wechat-sidecar wait --timeot 1s",
        "A=b cargo run --release -- demo --fast",
        "wechat-sidecar man walk | man -l -",
    ] {
        assert_eq!(found(bad), 1, "{bad}");
    }
    for good in [
        "`WECHAT_SIDECAR_LISTEN=0.0.0.0:7200`",
        "WECHAT_SIDECAR_SECRET=x wechat-sidecar run --appid wx1",
        "  wechat-sidecar:",
        "wechat-sidecar is a proxy",
        "/usr/local/bin/wechat-sidecar",
        "wechat-sidecar completions bash > wechat-sidecar.bash && source wechat-sidecar.bash",
    ] {
        assert_eq!(found(good), 0, "{good}");
    }
}
