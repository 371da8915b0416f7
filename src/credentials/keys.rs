//! A file of keys: who may ask for what. [`read`] takes it apart into [`Line`]s, one `key appid[,appid...]` each, or
//! `key *` for all accounts; `#` begins a comment, empty lines are nothing, and what may stand behind the appids is the
//! reader's own affair.
//!
//! SECURITY: no message shows a character of a key, only its line.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use zeroize::Zeroizing;

use super::{AppId, Secret};

/// The largest file that is read, and the most keys in it: a path to the wrong one must not fill the memory.
const MAX_FILE: u64 = 1 << 20;
const MOST_KEYS: usize = 10_000;

/// The shortest key. 16 characters cannot be tried out; a shorter one invites guessing.
pub const SHORTEST: usize = 16;

/// One key and what it is good for.
#[derive(Debug)]
pub struct Line {
    /// Which line of the file, counted from 1.
    pub number: usize,
    /// The key.
    pub key: Secret,
    /// The accounts it is good for, in the order they were written; never empty. `None` for all there are.
    pub appids: Option<Vec<AppId>>,
    /// What stands behind them, if anything.
    pub rest: String,
}

/// Reads a file of keys.
///
/// # Errors
/// One sentence that names the file, the line and the remedy, never a key.
pub fn read(path: &Path) -> Result<Vec<Line>, String> {
    let shown = path.display();
    let cannot = |error: std::io::Error| {
        format!("{shown} cannot be read ({error}); check the path and its permissions")
    };
    let mut bytes = Zeroizing::new(Vec::new());
    File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes)).map_err(cannot)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(format!("{shown} is larger than 1MiB; give a file with a key on each line"));
    }
    let text = std::str::from_utf8(&bytes)
        .map_err(|_| format!("{shown} is not UTF-8 text; give a file with a key on each line"))?;
    let lines = parse(text).map_err(|(number, what)| format!("{shown}, line {number}: {what}"))?;
    if lines.is_empty() {
        return Err(format!("{shown} has no key in it; write `key appid[,appid...]` on a line for each"));
    }
    Ok(lines)
}

/// The lines of a file, or the first that is wrong and why.
fn parse(text: &str) -> Result<Vec<Line>, (usize, String)> {
    let mut lines: Vec<Line> = Vec::new();
    for (n, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let number = n + 1;
        let line = line.split_once('#').map_or(line, |(before, _)| before).trim();
        if line.is_empty() {
            continue;
        }
        if lines.len() == MOST_KEYS {
            return Err((
                number,
                format!("there are more than {MOST_KEYS} keys; share keys among those who may do the same"),
            ));
        }
        let remedy = "write `key appid[,appid...]`, or `key *` for all accounts";
        let told = |what: &str| (number, format!("{what}; {remedy}"));
        let (key, behind) =
            line.split_once(char::is_whitespace).ok_or_else(|| told("no appid behind the key"))?;
        let key = Secret::parse(key).map_err(|what| told(&format!("the key cannot be used: {what}")))?;
        if key.expose().len() < SHORTEST {
            let what = format!(
                "the key is shorter than {SHORTEST} characters, so that it could be guessed; make one with `openssl rand -hex 16`"
            );
            return Err((number, what));
        }
        if let Some(other) = lines.iter().find(|other| other.key == key) {
            return Err((
                number,
                format!("the key stands on line {} already; give every caller its own", other.number),
            ));
        }
        let behind = behind.trim_start();
        let (appids, rest) = behind.split_once(char::is_whitespace).unwrap_or((behind, ""));
        let appids = match appids {
            "*" => None,
            appids => {
                let appids: Result<Vec<_>, _> = appids.split(',').map(AppId::parse).collect();
                // SECURITY: without the text, which may be a key in the wrong place.
                Some(appids.map_err(|what| told(&format!("an appid cannot be used: {what}")))?)
            }
        };
        lines.push(Line { number, key, appids, rest: rest.trim().to_owned() });
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_key_and_its_appids() {
        let text = "\u{feff}# who calls\n\nk-0123456789abcdef wx1,wx2\r\n  k-fedcba9876543210\twx1  allow=/a, POST /b # why\n";
        let lines = parse(text).unwrap();
        let told: Vec<_> = lines
            .iter()
            .map(|l| {
                let appids: Vec<_> = l.appids.iter().flatten().map(AppId::as_str).collect();
                (l.number, l.key.expose(), appids, &l.rest[..])
            })
            .collect();
        assert_eq!(
            told,
            [
                (3, "k-0123456789abcdef", vec!["wx1", "wx2"], ""),
                (4, "k-fedcba9876543210", vec!["wx1"], "allow=/a, POST /b"),
            ]
        );
        assert!(parse("k-0123456789abcdef *").unwrap()[0].appids.is_none());
        let many: String = (0..=MOST_KEYS).map(|n| format!("key-number-{n:020} *\n")).collect();
        assert!(parse(&many).unwrap_err().1.contains("more than 10000"));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line_and_without_the_key() {
        for (text, part) in [
            ("k-0123456789abcdef", "no appid"),
            ("k-0123456789abcd\u{e9}f wx1", "cannot be used"),
            ("k-0123 wx1", "openssl rand"),
            ("k-0123456789abcdef wx1,", "an appid"),
            ("k-0123456789abcdef wx/1", "an appid"),
            ("k-0123456789abcdef wx1\nk-0123456789abcdef wx2", "line 1 already"),
        ] {
            let (number, told) = parse(text).unwrap_err();
            assert!(told.contains(part) && told.contains("; "), "{text}: {told}");
            assert!(!told.contains("0123"), "{told}");
            assert_eq!(number, text.lines().count());
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        assert!(read(&path).unwrap_err().contains("cannot be read"));
        std::fs::write(&path, "# nobody\n").unwrap();
        assert!(read(&path).unwrap_err().contains("no key in it"));
    }
}
