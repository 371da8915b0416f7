//! What a path may mean to those who read it after us: [`any`] goes through every reading of it.
//!
//! Servers, gateways and frameworks take escapes off, follow dot segments, fold slashes, cut parameters, and each of
//! them does some of it, in an order of its own: `/cgi-bin//../token` is `/token` to whoever folds slashes first, and
//! `/cgi-bin/token` to whoever goes by RFC 3986 5.2.4. So there is no one normal form that says what a path means, and
//! all that can be come to by these steps is looked at. Nearly every path is plain, and has one reading: itself.

use std::collections::HashSet;

/// Readings that are gone through: a path with more is too clever to be forwarded. Each odd thing about a path doubles
/// them, and one that WeChat documents has none.
const MOST: usize = 64;

/// And the bytes they may have together.
const MOST_BYTES: usize = 256 * 1024;

/// What somebody does to a path before looking at it.
const STEPS: [fn(&str) -> String; 8] =
    [decode, follow_dots, fold_slashes, turn_backslashes, cut_parameters, lower, trim, cut_at_end];

/// Whether `differs` holds for any reading of `path`, or there are too many to know.
pub fn any(path: &str, differs: impl Fn(&str) -> bool) -> bool {
    if is_plain(path) {
        return differs(path);
    }
    let mut seen = HashSet::from([path.to_owned()]);
    let mut todo = vec![path.to_owned()];
    let mut bytes = path.len();
    while let Some(reading) = todo.pop() {
        if differs(&reading) || seen.len() > MOST || bytes > MOST_BYTES {
            return true;
        }
        for step in STEPS {
            let next = step(&reading);
            if !seen.contains(&next) {
                bytes += next.len();
                seen.insert(next.clone());
                todo.push(next);
            }
        }
    }
    false
}

/// Whether no step changes anything, so that a path has one reading: itself.
#[must_use]
pub fn is_plain(path: &str) -> bool {
    // As if behind something that is no slash: the first one is none too many.
    let mut before = Kind::Plain;
    for byte in path.bytes() {
        let kind = KINDS[usize::from(byte)];
        match kind {
            Kind::Plain => {}
            Kind::Odd => return false,
            Kind::Slash | Kind::Dot if before == Kind::Slash => return false,
            Kind::Slash | Kind::Dot => {}
        }
        before = kind;
    }
    before != Kind::Slash
}

/// What a byte is to the steps.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    Slash,
    Dot,
    /// A step changes it wherever it stands.
    Odd,
}

const KINDS: [Kind; 256] = {
    let (mut table, mut byte) = ([Kind::Plain; 256], 0);
    while byte < 256 {
        table[byte] = match byte as u8 {
            b'/' => Kind::Slash,
            b'.' => Kind::Dot,
            b'%' | b'\\' | b';' | b'A'..=b'Z' | 0..=b' ' | 0x7f.. => Kind::Odd,
            _ => Kind::Plain,
        };
        byte += 1;
    }
    table
};

fn decode(path: &str) -> String {
    percent_encoding::percent_decode_str(path).decode_utf8_lossy().into_owned()
}

fn follow_dots(path: &str) -> String {
    let mut segments = Vec::new();
    for segment in path.split('/').skip(1) {
        match segment {
            "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
    }
    rooted(&segments)
}

fn fold_slashes(path: &str) -> String {
    // One at the end goes, too.
    rooted(&path.split('/').filter(|segment| !segment.is_empty()).collect::<Vec<_>>())
}

fn turn_backslashes(path: &str) -> String {
    path.replace('\\', "/")
}

/// `;` begins a segment's parameters (RFC 3986 3.3).
fn cut_parameters(path: &str) -> String {
    segment_by_segment(path, |segment| segment.split(';').next().unwrap_or_default())
}

fn lower(path: &str) -> String {
    path.to_ascii_lowercase()
}

fn trim(path: &str) -> String {
    segment_by_segment(path, |segment| segment.trim_matches(|c: char| c.is_whitespace() || c.is_control()))
}

/// A NUL ends a text in C; a query or a fragment ends the path for whoever takes the escapes off and reads it anew.
fn cut_at_end(path: &str) -> String {
    path.split(['\0', '?', '#']).next().unwrap_or_default().to_owned()
}

fn segment_by_segment(path: &str, change: impl Fn(&str) -> &str) -> String {
    path.split('/').map(change).collect::<Vec<_>>().join("/")
}

fn rooted(segments: &[&str]) -> String {
    format!("/{}", segments.join("/"))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn whatever_any_server_might_make_of_a_path_is_among_its_readings() {
        for (path, meant) in [
            ("/sns/jscode2session/../../cgi-bin/token", "/cgi-bin/token"),
            ("/cgi-bin//token", "/cgi-bin/token"),
            ("/cgi-bin/token/", "/cgi-bin/token"),
            ("/cgi-bin/%74oken", "/cgi-bin/token"),
            ("/cgi-bin/%2574oken", "/cgi-bin/token"),
            ("/cgi-bin%2Ftoken", "/cgi-bin/token"),
            ("/x/%2e%2e/cgi-bin/token", "/cgi-bin/token"),
            ("/cgi-bin\\token", "/cgi-bin/token"),
            ("/CGI-BIN/Token", "/cgi-bin/token"),
            ("/cgi-bin;a=b/token;c", "/cgi-bin/token"),
            ("/cgi-bin/token%00", "/cgi-bin/token"),
            ("/cgi-bin/token%3f", "/cgi-bin/token"),
            ("/cgi-bin/token%3Fa=b", "/cgi-bin/token"),
            ("/cgi-bin/token%23", "/cgi-bin/token"),
            ("/cgi-bin/token%2523a/../b", "/cgi-bin/token"),
            ("/./cgi-bin/./token", "/cgi-bin/token"),
            ("/../../cgi-bin/token", "/cgi-bin/token"),
            // To those who do not do all of it, or in another order.
            ("/cgi-bin//../token", "/cgi-bin/token"),
            ("/cgi-bin//../token", "/token"),
            ("/cgi-bin/token/%2e%2e/..", "/cgi-bin/token"),
            ("/cgi-bin/token/..;/..", "/cgi-bin/token"),
            ("/cgi-bin/token%00/..", "/cgi-bin/token"),
            ("/cgi-bin/token/.%2e/.", "/cgi-bin/token/.%2e"),
        ] {
            assert!(any(path, |reading| reading == meant), "{path} may mean {meant}");
        }
        assert!(!any("/cgi-bin/tokens/", |reading| reading == "/cgi-bin/token"));
    }

    #[test]
    fn a_plain_path_has_one_reading_and_too_clever_a_one_too_many() {
        let looked = Cell::new(0);
        let count = |path: &str| {
            looked.set(0);
            let found = any(path, |_| {
                looked.set(looked.get() + 1);
                false
            });
            (found, looked.get())
        };
        assert_eq!(count("/cgi-bin/message/custom/send"), (false, 1));
        assert_eq!(count("/cgi-bin/A"), (false, 2));
        assert_eq!(count(&format!("/{}", "a".repeat(60_000))), (false, 1));
        assert!(count(&format!("/%{}41", "25".repeat(1000))).0, "a thousand decodings");
        assert!(count(&"/%2e%2E;a//X\\b ".repeat(2000)).0);
        let (found, readings) = count("/cgi-bin/%E4%B8%AD%E6%96%87/A+b%20c/");
        assert!(!found && readings <= 32, "what people write: {readings}");
    }
}
