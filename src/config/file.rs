//! Reads a TOML file of settings into text with places; what a value means is not decided here.
//!
//! SECURITY: a secret may stand in the file, so no message shows a line of it (the parser's own would), and its
//! text is wiped after use.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};
use zeroize::Zeroizing;

use super::problem::{Place, Problem, shown};
use super::settings::{ACCOUNT_KEYS, Kind, SETTINGS, Setting, get, nearest};
use crate::files::{self, Content};

/// The largest file that is read: a path to the wrong one must not fill the memory.
const MAX_FILE: u64 = 1 << 20;

/// A value as someone wrote it.
pub(super) struct Written {
    pub(super) text: Zeroizing<String>,
    pub(super) place: Place,
}

/// Values by key.
pub(super) type Table = BTreeMap<&'static str, Written>;

/// What a file says.
#[derive(Default)]
pub(super) struct File {
    pub(super) values: Table,
    /// The `[[account]]` tables and where each begins.
    pub(super) accounts: Vec<(Table, Place)>,
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<String>,
}

/// Reads and takes apart a file.
///
/// # Errors
/// The one problem that keeps it from being read at all.
pub(super) fn read(path: &Path, named_by: &Place) -> Result<File, Box<Problem>> {
    let cannot = |what: String, remedy: &str| {
        let mut problem = Problem::new("config", named_by.clone(), what, remedy);
        problem.value = Some(shown(&path.display().to_string()));
        Box::new(problem)
    };
    let Content { bytes, mode } = files::read(path, MAX_FILE).map_err(|error| {
        let remedy = "check the path and its permissions: it must be a TOML file";
        cannot(format!("it cannot be read ({error})"), remedy)
    })?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(cannot("it is larger than 1MiB".to_owned(), "give a TOML file of settings"));
    }
    let text = std::str::from_utf8(&bytes)
        .map_err(|_| cannot("it is not UTF-8 text".to_owned(), "save the TOML file as UTF-8"))?;
    let document = DeTable::parse(text).map_err(|error| {
        // SECURITY: error.message() is the parser's own words; error.to_string() would show the line.
        let at = error.span().map_or_else(String::new, |span| {
            let (line, column) = position(text, span.start);
            format!(" at line {line}, column {column}")
        });
        let what = format!("it is not valid TOML{at}: {}", error.message());
        cannot(what, "correct that line; a value that is text stands in quotes, as in appid = \"wx…\"")
    })?;
    let mut reading = Reading { path, text, file: File::default() };
    reading.top(document.get_ref());
    let mut file = reading.file;
    let holds_secret = file.values.contains_key("secret")
        || file.accounts.iter().any(|(account, _)| account.contains_key("secret"));
    if holds_secret && mode & 0o004 != 0 {
        let path = path.display();
        file.warnings.push(format!(
            "{path} holds an AppSecret and every user of this machine may read it; run chmod o-r {path}, or move \
             the AppSecret to a file of its own and name that with secret_file"
        ));
    }
    Ok(file)
}

struct Reading<'a> {
    path: &'a Path,
    text: &'a str,
    file: File,
}

impl Reading<'_> {
    fn top(&mut self, table: &DeTable<'_>) {
        for (key, value) in in_order(table) {
            let place = self.place(key.span(), None);
            match (key.get_ref().as_ref(), value.get_ref()) {
                ("account", DeValue::Array(items)) if items.iter().all(|item| item.get_ref().is_table()) => {
                    for (i, item) in items.iter().enumerate() {
                        if let DeValue::Table(table) = item.get_ref() {
                            self.account(i + 1, table, item.span());
                        }
                    }
                }
                ("account", _) => self.file.problems.push(Problem::new(
                    "account",
                    place,
                    "it is not a list of tables",
                    "begin each account with a line [[account]], in double brackets",
                )),
                (name, value) => match SETTINGS.iter().find(|s| s.key == name && s.is_file_key()) {
                    Some(setting) => {
                        if let Some(written) = self.scalar(setting, value, place) {
                            self.file.values.insert(setting.key, written);
                        }
                    }
                    None => {
                        let names = SETTINGS.iter().filter(|s| s.is_file_key()).map(|s| s.key);
                        self.file.problems.push(unknown(name, place, names.chain(["account"])));
                    }
                },
            }
        }
    }

    fn account(&mut self, number: usize, table: &DeTable<'_>, span: Range<usize>) {
        let mut account = Table::new();
        for (key, value) in in_order(table) {
            let place = self.place(key.span(), Some(number));
            let name = key.get_ref().as_ref();
            if let Some(known) = ACCOUNT_KEYS.iter().find(|known| **known == name) {
                if let Some(written) = self.scalar(get(known), value.get_ref(), place) {
                    account.insert(known, written);
                }
            } else {
                let mut problem = unknown(name, place, ACCOUNT_KEYS.iter().copied());
                if SETTINGS.iter().any(|s| s.key == name && s.is_file_key()) {
                    "It is a setting of the whole sidecar, not of an account.".clone_into(&mut problem.what);
                    problem.remedy = format!("move {name} above the first [[account]]");
                }
                self.file.problems.push(problem);
            }
        }
        let place = self.place(span, Some(number));
        self.file.accounts.push((account, place));
    }

    /// A value as text. A number is taken where its digits are what one would have put in quotes.
    fn scalar(&mut self, setting: &Setting, value: &DeValue<'_>, place: Place) -> Option<Written> {
        let quoted_only = matches!(setting.kind, Kind::Secret | Kind::Path | Kind::Mode);
        let listed =
            matches!(setting.kind, Kind::Rules | Kind::Rates | Kind::Hosts | Kind::Pins | Kind::Uids);
        let text = match value {
            DeValue::Array(items)
                if listed && items.iter().all(|item| item_text(item.get_ref()).is_some()) =>
            {
                // As the other forms have it.
                let items: Vec<_> = items.iter().filter_map(|item| item_text(item.get_ref())).collect();
                items.join(", ")
            }
            DeValue::String(text) => text.as_ref().to_owned(),
            DeValue::Integer(number) if !quoted_only => number.to_string(),
            DeValue::Boolean(on) if setting.kind == Kind::Switch => on.to_string(),
            other => {
                let article =
                    if matches!(other, DeValue::Integer(_) | DeValue::Array(_)) { "an" } else { "a" };
                let what = format!("It is {article} {}, not text.", other.type_str());
                let remedy = format!("write it in quotes, as in {} = \"{}\"", setting.key, setting.value);
                self.file.problems.push(Problem::new(setting.key, place, what, remedy));
                return None;
            }
        };
        Some(Written { text: Zeroizing::new(text), place })
    }

    fn place(&self, span: Range<usize>, account: Option<usize>) -> Place {
        let line = Some(position(self.text, span.start).0);
        Place::File { path: PathBuf::from(self.path), account, line }
    }
}

/// An item of a list as text.
fn item_text(item: &DeValue<'_>) -> Option<String> {
    match item {
        DeValue::String(text) => Some(text.as_ref().to_owned()),
        DeValue::Integer(number) => Some(number.to_string()),
        _ => None,
    }
}

/// A problem with a name that is no setting. SECURITY: without the value, which may be a secret under a wrong name.
pub(super) fn unknown<'a>(name: &str, place: Place, names: impl Iterator<Item = &'a str>) -> Problem {
    let mut names: Vec<&str> = names.collect();
    let remedy = match nearest(name, names.iter().copied()) {
        Some(near) => format!("did you mean {near}?"),
        None => {
            names.sort_unstable();
            format!("remove it; there are {}", names.join(", "))
        }
    };
    let quoted = shown(name);
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-') && !name.is_empty();
    Problem::new(if plain { name } else { &quoted }, place, "There is no such setting.", remedy)
}

/// A table's entries as they stand in the file, so that problems are told from its top to its end.
fn in_order<'t, 'i>(
    table: &'t DeTable<'i>,
) -> Vec<(&'t toml::Spanned<toml::de::DeString<'i>>, &'t toml::Spanned<DeValue<'i>>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}

/// Line and column, counted from 1.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = &text.as_bytes()[..offset.min(text.len())];
    let line = before.iter().filter(|b| **b == b'\n').count() + 1;
    let start = before.iter().rposition(|b| *b == b'\n').map_or(0, |newline| newline + 1);
    (line, String::from_utf8_lossy(&before[start..]).chars().count() + 1)
}
