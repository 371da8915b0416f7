//! A file of keys: who may ask for what. [`read`] takes it apart into [`Line`]s, one `key appid[,appid...]` each, or
//! `key *` for all accounts; `#` begins a comment, empty lines are nothing, and what may stand behind the appids is the
//! reader's own affair.
//!
//! SECURITY: no message shows a character of a key, only its line.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use super::{AppId, Secret};
use crate::files::{self, Content};
use sha2::{Digest, Sha256};

/// The largest file that is read, and the most keys in it: a path to the wrong one must not fill the memory.
const MAX_FILE: u64 = 1 << 20;
const MOST_KEYS: usize = 10_000;

/// The shortest key. 16 characters cannot be tried out; a shorter one invites guessing.
pub const SHORTEST: usize = 16;

/// What a file says.
#[derive(Debug)]
pub struct KeysFile {
    /// Its keys, no one twice; never empty.
    pub lines: Vec<Line>,
    /// Everyone on this machine may read it.
    pub open: bool,
}

/// One key and what it is good for.
#[derive(Debug)]
pub struct Line {
    /// Which line of the file, counted from 1.
    pub number: usize,
    /// The key.
    pub key: Secret,
    /// The accounts it is good for, in the order they were written; never empty. `None` for all there are.
    pub appids: Option<Vec<AppId>>,
    /// What stands behind them, from the first word with a `=`.
    pub rest: String,
}

/// Reads a file of keys.
///
/// # Errors
/// One sentence that names the file, the line and the remedy, never a key.
pub fn read(path: &Path) -> Result<KeysFile, String> {
    let shown = path.display();
    let cannot =
        |error: io::Error| format!("{shown} cannot be read ({error}); check the path and its permissions");
    let Content { bytes, mode } = files::read(path, MAX_FILE).map_err(cannot)?;
    let open = mode & 0o004 != 0;
    if bytes.len() as u64 > MAX_FILE {
        return Err(format!("{shown} is larger than 1MiB; give a file of one key a line"));
    }
    let text = std::str::from_utf8(&bytes)
        .map_err(|_| format!("{shown} is not text; give a file of one key a line"))?;
    let lines = parse(text).map_err(|what| format!("{shown}, {what}"))?;
    Ok(KeysFile { lines, open })
}

const FORM: &str =
    "write a line as KEY wx0123456789abcdef, with commas between several appids, or * for all accounts";

/// The lines of a file.
fn parse(text: &str) -> Result<Vec<Line>, String> {
    let mut lines: Vec<Line> = Vec::new();
    // By digest, so that no comparison's time tells anything of a key, and ten thousand are soon compared.
    let mut seen = HashMap::new();
    for (n, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let number = n + 1;
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let (key, behind) = line.split_once(char::is_whitespace).ok_or_else(|| {
            format!("line {number} has a key without an appid, or an appid without a key; {FORM}")
        })?;
        let key = Secret::parse(key)
            .map_err(|what| format!("line {number}: the key cannot be used, {what}; {FORM}"))?;
        if key.expose().len() < SHORTEST {
            return Err(format!(
                "line {number}: the key is shorter than {SHORTEST} characters; make one with `openssl rand -hex 24`"
            ));
        }
        let digest: [u8; 32] = Sha256::digest(key.expose()).into();
        if let Some(first) = seen.insert(digest, number) {
            return Err(format!(
                "line {number}: the key of line {first} again; give it all its appids on one line"
            ));
        }
        let (appids, rest) =
            match behind.split_inclusive(char::is_whitespace).position(|word| word.contains('=')) {
                Some(words) => {
                    let at = behind.split_inclusive(char::is_whitespace).take(words).map(str::len).sum();
                    behind.split_at(at)
                }
                None => (behind, ""),
            };
        // SECURITY: without the text, which may be a key in the wrong place.
        let appids = scope(appids.trim())
            .map_err(|what| format!("line {number}: one of its appids cannot be used, {what}; {FORM}"))?;
        lines.push(Line { number, key, appids, rest: rest.trim().to_owned() });
    }
    match lines.len() {
        0 => Err(format!("there is no key in it; {FORM}")),
        n if n > MOST_KEYS => Err(format!(
            "there are more than {MOST_KEYS} keys in it; share keys among those who may see the same"
        )),
        _ => Ok(lines),
    }
}

/// The accounts that a line names.
fn scope(text: &str) -> Result<Option<Vec<AppId>>, &'static str> {
    if text == "*" {
        return Ok(None);
    }
    text.split(',').map(|appid| AppId::parse(appid.trim())).collect::<Result<_, _>>().map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

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
        assert!(parse(&many).unwrap_err().contains("more than 10000"));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line_and_without_the_key() {
        for (text, part) in [
            ("k-0123456789abcdef", "line 1 has a key without an appid"),
            ("k-0123456789abcd\u{e9}f wx1", "line 1: the key cannot be used"),
            ("# a\nk-0123 wx1", "line 2: the key is shorter"),
            ("k-0123456789abcdef wx1,", "line 1: one of its appids cannot be used, it is empty"),
            ("k-0123456789abcdef wx/1", "line 1: one of its appids"),
            ("k-0123456789abcdef allow=/a", "line 1: one of its appids"),
            ("k-0123456789abcdef wx1\nk-0123456789abcdef wx2", "line 2: the key of line 1 again"),
            ("# nobody", "no key in it"),
        ] {
            let told = parse(text).unwrap_err();
            assert!(told.contains(part) && told.contains("; "), "{text}: {told}");
            assert!(!told.contains("0123456789abcdef w") && !told.contains("k-0123"), "{told}");
        }
        assert_eq!(
            parse("k-0123456789abcdef wx1, wx2 allow=a").unwrap()[0].appids.as_ref().unwrap().len(),
            2
        );
    }

    #[test]
    fn a_file_of_keys_is_read_whoever_may_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        assert!(read(&path).unwrap_err().contains("cannot be read"));
        assert!(read(dir.path()).unwrap_err().contains("cannot be read"));
        std::fs::write(&path, "k-0123456789abcdef *").unwrap();
        for (mode, open) in [(0o600, false), (0o640, false), (0o644, true)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(read(&path).unwrap().open, open);
        }
        std::fs::write(&path, b"\xff").unwrap();
        assert!(read(&path).unwrap_err().contains("not text"));
        std::fs::write(&path, vec![b' '; 1 << 21]).unwrap();
        assert!(read(&path).unwrap_err().contains("larger than 1MiB"));
    }
}
