//! The settings as a user writes them: one table, from which come the flags, the environment's names, the file's
//! keys, the help and the README.
//!
//! Setting `foo_bar` is the flag `--foo-bar`, the variable `WECHAT_SIDECAR_FOO_BAR` and the TOML key `foo_bar`.
//! SECURITY: a secret is never a flag, because every user of the machine may read a command line.

#[cfg(test)]
mod tests;

mod guards;
mod others;
mod serving;

use std::fmt::Write;
use std::sync::LazyLock;
use std::time::Duration;

use guards::GUARDS;
use others::OTHERS;
use serving::SERVING;

/// What every variable of ours begins with.
pub const ENV_PREFIX: &str = "WECHAT_SIDECAR_";

/// One setting.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Its name in a file; the other forms follow from it.
    pub key: &'static str,
    /// What stands for the value in the help.
    pub value: &'static str,
    /// What the value must be.
    pub kind: Kind,
    /// What holds when nobody sets it.
    pub default: Fallback,
    /// One line for the help and the README.
    pub help: &'static str,
    /// Where it may be written.
    pub forms: Forms,
    /// Which commands take it.
    pub commands: &'static [Verb],
}

/// What a value must be, bounds included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An appid.
    AppId,
    /// An AppSecret: never shown.
    Secret,
    /// A file.
    Path,
    /// An address to listen on.
    Listen,
    /// The same, or a Unix socket.
    ListenAnywhere,
    /// A scheme, a host and a port.
    Origin,
    /// The same, of a proxy, and perhaps a login.
    Proxy,
    /// An address to connect to.
    Address,
    /// Host names.
    Hosts,
    /// What may be called, or not.
    Rules,
    /// How often.
    Rates,
    /// The name of a header and its value.
    Header,
    /// A file's permissions, in octal.
    Mode,
    /// Numbers of users.
    Uids,
    /// Digests of public keys.
    Pins,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// Where replicas share tokens.
    Store,
    /// What keys begin with.
    Prefix,
    /// A Redis.
    Redis,
    /// Formats of apps that have yet to move.
    Bridge,
    /// true or false.
    Switch,
    /// What is logged.
    Filter,
    /// A length of time, from and up to.
    Duration(Duration, Duration),
    /// A number of bytes, from and up to.
    Size(u64, u64),
    /// A number, from and up to.
    Count(u64, u64),
}

/// What holds when nobody sets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// Nothing.
    None,
    /// This text, as if a user had written it.
    Text(&'static str),
    /// Something found out at the start; the words say what.
    Found(&'static str),
}

/// Where a setting may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forms {
    /// Flag, environment and file.
    All,
    /// Environment and file: a secret.
    NoFlag,
    /// Flag and environment: it names the file.
    NoFile,
    /// A flag of one command.
    FlagOnly,
}

/// The commands of the binary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Serve.
    Run,
    /// Validate, fetch once, explain.
    Check,
    /// Until a running sidecar is ready.
    Wait,
    /// WeChat's API, offline.
    Simulate,
    /// Both together, for a first look.
    Demo,
    /// A local CA, made or found.
    Ca,
    /// The manual, a page a command.
    Man,
    /// What a shell completes.
    Completions,
}

const SERVE: &[Verb] = &[Verb::Run, Verb::Check];
const REACH: &[Verb] = &[Verb::Run, Verb::Check, Verb::Wait];
const HOSTS: &[Verb] = &[Verb::Run, Verb::Check, Verb::Ca];
const SIMULATE: &[Verb] = &[Verb::Simulate];

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIMEOUT: Kind = Kind::Duration(Duration::from_millis(1), Duration::from_secs(3600));

/// The keys of an `[[account]]` table.
pub const ACCOUNT_KEYS: &[&str] = &[
    "appid",
    "secret",
    "secret_file",
    "token_endpoint",
    "bridge",
    "allow",
    "deny",
    "rates",
    "max_account_calls",
];

/// Every setting, in the order people read about them.
pub static SETTINGS: LazyLock<Vec<Setting>> = LazyLock::new(|| [SERVING, GUARDS, OTHERS].concat());

impl Setting {
    /// The flag without its dashes, such as `foo-bar`.
    #[must_use]
    pub fn flag(&self) -> String {
        // `simulate` has a listener and an appid of its own, with other defaults than the sidecar's.
        self.key.strip_prefix("sim_").unwrap_or(self.key).replace('_', "-")
    }

    /// The variable, such as `WECHAT_SIDECAR_FOO_BAR`.
    #[must_use]
    pub fn env(&self) -> String {
        format!("{ENV_PREFIX}{}", self.key.to_ascii_uppercase())
    }

    /// Whether a command line may have it.
    #[must_use]
    pub fn is_flag(&self) -> bool {
        self.forms != Forms::NoFlag
    }

    /// Whether the environment may have it.
    #[must_use]
    pub fn is_env(&self) -> bool {
        self.forms != Forms::FlagOnly
    }

    /// Whether a file may have it.
    #[must_use]
    pub fn is_file_key(&self) -> bool {
        matches!(self.forms, Forms::All | Forms::NoFlag)
    }

    /// Whether its value must never be seen.
    #[must_use]
    pub fn is_secret(&self) -> bool {
        self.kind == Kind::Secret
    }

    /// The help with what holds by default.
    #[must_use]
    pub fn help_text(&self) -> String {
        match self.default {
            Fallback::None => self.help.to_owned(),
            Fallback::Text(text) | Fallback::Found(text) => format!("{} [default: {text}]", self.help),
        }
    }
}

/// The setting with this key. Keys are written in this crate only, so an unknown one is a mistake of ours.
#[must_use]
pub fn get(key: &str) -> &'static Setting {
    SETTINGS.iter().find(|setting| setting.key == key).unwrap_or_else(|| unreachable!("no setting {key}"))
}

/// The settings a command takes.
pub fn of(command: Verb) -> impl Iterator<Item = &'static Setting> {
    SETTINGS.iter().filter(move |setting| setting.commands.contains(&command))
}

/// The README's table, between its `<!-- settings -->` marks.
#[must_use]
pub fn readme_table() -> String {
    let mut table =
        String::from("| Key | Flag | Environment | Default | What it is |\n|---|---|---|---|---|\n");
    for setting in SETTINGS.iter().filter(|setting| setting.is_env()) {
        let key =
            if setting.is_file_key() { format!("`{}`", setting.key) } else { "not in a file".to_owned() };
        let flag = if setting.is_flag() {
            format!("`--{} {}`", setting.flag(), setting.value)
        } else {
            "never a flag".to_owned()
        };
        let default = match setting.default {
            Fallback::None => String::new(),
            Fallback::Text(text) => format!("`{text}`"),
            Fallback::Found(text) => text.to_owned(),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(table, "| {key} | {flag} | `{}` | {default} | {} |", setting.env(), setting.help);
    }
    table
}

/// The name a user most likely meant, if one is near.
pub(super) fn nearest<'a>(written: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let written = written.to_ascii_lowercase().replace('-', "_");
    names
        .map(|name| (distance(&written, name), name))
        .filter(|(distance, name)| {
            *distance <= (name.len() / 3).max(1) || (name.len() >= 5 && written.contains(name))
        })
        .min()
        .map(|(_, name)| name)
}

/// Levenshtein's: how many characters to add, drop or change.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let changed = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}
