//! Turns what was written into values, noting every problem on the way instead of stopping at the first.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::file::{Table, Written};
use super::problem::{Place, Problem, Problems};
use super::settings::{Fallback, Kind, Verb, get};
use super::sources::{Flags, Sources};
use super::values::{self, Parsed, Refusal};
use crate::telemetry::{self, Format};

/// What was written and what is wrong with it so far.
///
/// A value that cannot be had is `None` and a problem; the caller asks for all of them before it looks.
pub(super) struct Reader {
    pub(super) sources: Sources,
    pub(super) problems: Vec<Problem>,
}

impl Reader {
    pub(super) fn new(verb: Verb, flags: Flags, env: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let mut sources = Sources::gather(verb, flags, env);
        let problems = std::mem::take(&mut sources.problems);
        Self { sources, problems }
    }

    /// Where a setting was written.
    pub(super) fn place(&self, key: &str) -> Place {
        self.sources.values.get(key).map_or(Place::Nowhere, |written| written.place.clone())
    }

    /// A value that was written, or the default's; `None` when there is neither, or it cannot be used.
    pub(super) fn value<T>(&mut self, key: &str, parse: impl FnOnce(&str) -> Parsed<T>) -> Option<T> {
        match self.sources.values.get(key) {
            Some(written) => take(&mut self.problems, key, written, parse),
            None => match get(key).default {
                // A test reads every default.
                Fallback::Text(text) => parse(text).ok(),
                Fallback::None | Fallback::Found(_) => None,
            },
        }
    }

    #[inline(never)]
    pub(super) fn listen(&mut self, key: &str) -> Option<SocketAddr> {
        self.value(key, values::listen)
    }

    #[inline(never)]
    pub(super) fn duration(&mut self, key: &str) -> Option<Duration> {
        let Kind::Duration(least, most) = get(key).kind else { unreachable!("{key} is no duration") };
        self.value(key, |text| values::duration(text, least, most))
    }

    #[inline(never)]
    pub(super) fn size(&mut self, key: &str) -> Option<u64> {
        let Kind::Size(least, most) = get(key).kind else { unreachable!("{key} is no size") };
        self.value(key, |text| values::size(text, least, most))
    }

    #[inline(never)]
    pub(super) fn count(&mut self, key: &str) -> Option<usize> {
        let Kind::Count(least, most) = get(key).kind else { unreachable!("{key} is no number") };
        self.value(key, |text| values::count(text, least, most))
    }

    #[inline(never)]
    pub(super) fn switch(&mut self, key: &str) -> Option<bool> {
        self.value(key, values::switch)
    }

    #[inline(never)]
    pub(super) fn path(&mut self, key: &str) -> Option<PathBuf> {
        let written = self.sources.values.get(key)?;
        take(&mut self.problems, key, written, |text| path(text, &written.place))
    }

    /// `log` and `log_format`, where a command takes them.
    pub(super) fn telemetry(&mut self) -> Option<telemetry::Config> {
        let filter = self.value("log", values::filter);
        let format = self.value("log_format", |text| match values::one_of(text, &["text", "json"])? {
            0 => Ok(Format::Text),
            _ => Ok(Format::Json),
        });
        Some(telemetry::Config { filter: filter?, format: format? })
    }

    /// What was made, when nothing is wrong.
    pub(super) fn finish<T>(self, made: Option<T>) -> Result<T, Problems> {
        match made {
            Some(made) if self.problems.is_empty() => Ok(made),
            Some(_) | None => Err(Problems(self.problems)),
        }
    }
}

/// A written value, or `None` and one more problem.
pub(super) fn take<T>(
    problems: &mut Vec<Problem>,
    key: &str,
    written: &Written,
    parse: impl FnOnce(&str) -> Parsed<T>,
) -> Option<T> {
    match parse(&written.text) {
        Ok(value) => Some(value),
        Err(refusal) => {
            problems.push(refused(key, written, refusal));
            None
        }
    }
}

/// Not inlined, as there are a hundred callers: that is 50 kB.
#[inline(never)]
fn refused(key: &str, written: &Written, refusal: Refusal) -> Problem {
    let problem = Problem::new(key, written.place.clone(), sentence(&refusal.what), refusal.remedy);
    if refusal.hide { problem } else { problem.with_value(get(key), &written.text) }
}

/// A path as it is meant: one that stands in a file is relative to that file, so that both can move together.
pub(super) fn path(text: &str, place: &Place) -> Parsed<PathBuf> {
    if text.is_empty() {
        return Err(Refusal::new("it is empty", "give the path of a file, or leave it out"));
    }
    Ok(match place {
        Place::File { path, .. } => path.parent().map_or_else(|| PathBuf::from(text), |dir| dir.join(text)),
        Place::Flag(_) | Place::Env(_) | Place::Nowhere => PathBuf::from(text),
    })
}

/// Whether a table speaks of an account at all.
pub(super) fn names_an_account(table: &Table) -> bool {
    ["appid", "secret", "secret_file"].iter().any(|key| table.contains_key(key))
}

/// `it is empty` as a sentence of its own. A path at the start keeps its case.
fn sentence(what: &str) -> String {
    let mut text = match what.strip_prefix("it ") {
        Some(rest) => format!("It {rest}"),
        None => match what.strip_prefix("its ") {
            Some(rest) => format!("Its {rest}"),
            None => what.to_owned(),
        },
    };
    if !text.ends_with('.') {
        text.push('.');
    }
    text
}
