//! What is wrong with the settings, told so that a person can act on it: [`Problem`] and the list of them.
//!
//! SECURITY: a secret's value is `***`; the value of a name we do not know is not shown at all (it may be a
//! misspelled secret), nor is a password inside a URL.

use std::fmt;
use std::path::PathBuf;

use super::settings::Setting;

/// The longest value that is shown whole.
const SHOWN: usize = 100;

/// Where something was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// On the command line: the flag without its dashes.
    Flag(String),
    /// In the environment: the variable.
    Env(String),
    /// In the file.
    File {
        /// Which file.
        path: PathBuf,
        /// In which `[[account]]`, counted from 1.
        account: Option<usize>,
        /// On which line, counted from 1.
        line: Option<usize>,
    },
    /// Nowhere: it is missing, or a default.
    Nowhere,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "flag --{flag}"),
            Self::Env(name) => write!(f, "environment variable {name}"),
            Self::File { path, account, line } => {
                write!(f, "file {}", path.display())?;
                if let Some(line) = line {
                    write!(f, ", line {line}")?;
                }
                if let Some(account) = account {
                    write!(f, ", [[account]] number {account}")?;
                }
                Ok(())
            }
            Self::Nowhere => f.write_str("not set"),
        }
    }
}

/// One thing that is wrong, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The setting, or the name that is none.
    pub key: String,
    /// Where it was written.
    pub place: Place,
    /// The value as it may be shown.
    pub value: Option<String>,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

impl Problem {
    /// A problem without a value.
    pub(super) fn new(
        key: impl Into<String>,
        place: Place,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { key: key.into(), place, value: None, what: what.into(), remedy: remedy.into() }
    }

    /// Shows the value, unless it is a secret's.
    pub(super) fn with_value(mut self, setting: &Setting, text: &str) -> Self {
        self.value = Some(if setting.is_secret() { "***".to_owned() } else { shown(text) });
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)?;
        if let Some(value) = &self.value {
            write!(f, " = {value}")?;
        }
        write!(f, " ({})\n   {}\n   To fix it: {}", self.place, self.what, self.remedy)
    }
}

/// Every problem there is: names and files first, then value by value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => writeln!(f, "There is 1 problem with the settings.")?,
            n => writeln!(f, "There are {n} problems with the settings.")?,
        }
        for (i, problem) in self.0.iter().enumerate() {
            write!(f, "\n{}. {problem}\n", i + 1)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// A value in quotes, short, without control characters, without what may be a password in a URL or an AppSecret (32
/// hex digits) that was pasted into the wrong setting.
pub(super) fn shown(text: &str) -> String {
    if text.split(|c: char| !c.is_ascii_hexdigit()).any(|run| run.len() >= 32) {
        return "\"***\"".to_owned();
    }
    let mut text = text.to_owned();
    if let (Some(scheme), Some(at)) = (text.find("://"), text.rfind('@'))
        && scheme + 3 <= at
    {
        text.replace_range(scheme + 3..at, "***");
    }
    if text.chars().count() > SHOWN {
        text = text.chars().take(SHOWN).chain("…".chars()).collect();
    }
    format!("{text:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_value_is_short_quoted_and_has_no_password() {
        assert_eq!(shown("5"), "\"5\"");
        assert_eq!(shown("a\n\u{1b}[31m"), "\"a\\n\\u{1b}[31m\"");
        assert_eq!(shown("redis://me:hunter2@host/0"), "\"redis://***@host/0\"");
        assert_eq!(shown("https://a:p@ss@host"), "\"https://***@host\"");
        assert_eq!(shown("https://0123456789abcdef0123456789abcdef"), "\"***\"");
        assert_eq!(shown(&"x".repeat(5000)).chars().count(), 103);
    }

    #[test]
    fn a_list_of_problems_reads_as_a_list_of_things_to_do() {
        let file = Place::File { path: "sidecar.toml".into(), account: Some(2), line: Some(7) };
        let problems = Problems(vec![
            Problem::new("workers", Place::Flag("workers".into()), "It is 0.", "give 1 to 256"),
            Problem::new("apid", file, "There is no such setting.", "did you mean appid?"),
        ]);
        assert_eq!(
            problems.to_string(),
            "There are 2 problems with the settings.\n\n\
             1. workers (flag --workers)\n   It is 0.\n   To fix it: give 1 to 256\n\n\
             2. apid (file sidecar.toml, line 7, [[account]] number 2)\n   There is no such setting.\n   \
             To fix it: did you mean appid?\n"
        );
    }
}
