//! The settings as a user writes them: one table, from which come the flags, the environment's names, the file's
//! keys, the help and the README.
//!
//! Setting `foo_bar` is the flag `--foo-bar`, the variable `WECHAT_SIDECAR_FOO_BAR` and the TOML key `foo_bar`.
//! SECURITY: a secret is never a flag, because every user of the machine may read a command line.

use std::fmt::Write;
use std::time::Duration;

/// What every variable of ours begins with.
pub const ENV_PREFIX: &str = "WECHAT_SIDECAR_";

/// One setting.
#[derive(Debug)]
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
    /// A scheme, a host and a port.
    Origin,
    /// An address to connect to.
    Address,
    /// Host names.
    Hosts,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// Where replicas share tokens.
    Store,
    /// What keys begin with.
    Prefix,
    /// What is logged.
    Filter,
    /// A length of time, from and up to.
    Duration(Duration, Duration),
    /// A number of bytes, from and up to.
    Size(u64, u64),
    /// A number, from and up to.
    Count(u64, u64),
    /// `true` or `false`.
    Switch,
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
pub const ACCOUNT_KEYS: &[&str] = &["appid", "secret", "secret_file", "token_endpoint"];

/// Every setting, in the order people read about them.
pub static SETTINGS: &[Setting] = &[
    Setting {
        key: "appid",
        value: "APPID",
        kind: Kind::AppId,
        default: Fallback::None,
        help: "The account's appid, such as wx0123456789abcdef",
        forms: Forms::All,
        commands: SERVE,
    },
    Setting {
        key: "secret",
        value: "APPSECRET",
        kind: Kind::Secret,
        default: Fallback::None,
        help: "The account's AppSecret; never a flag, because every user of a machine may read a command line",
        forms: Forms::NoFlag,
        commands: SERVE,
    },
    Setting {
        key: "secret_file",
        value: "PATH",
        kind: Kind::Path,
        default: Fallback::None,
        help: "A file that holds just the AppSecret, instead of `secret`",
        forms: Forms::All,
        commands: SERVE,
    },
    Setting {
        key: "listen",
        value: "ADDRESS:PORT",
        kind: Kind::Listen,
        default: Fallback::Text("127.0.0.1:7200"),
        help: "Where your app calls; port 0 takes a free one and the log says which",
        forms: Forms::All,
        commands: SERVE,
    },
    Setting {
        key: "admin_listen",
        value: "ADDRESS:PORT",
        kind: Kind::Listen,
        default: Fallback::Text("127.0.0.1:7201"),
        help: "Where the status page, /metrics and the probes are",
        forms: Forms::All,
        commands: REACH,
    },
    Setting {
        key: "ca_dir",
        value: "PATH",
        kind: Kind::Path,
        default: Fallback::None,
        help: "The folder that `wechat-sidecar ca` made; with it, `listen` is an HTTPS proxy to WeChat, too",
        forms: Forms::All,
        commands: SERVE,
    },
    Setting {
        key: "tls_listen",
        value: "ADDRESS:PORT",
        kind: Kind::Listen,
        default: Fallback::None,
        help: "Where to be api.weixin.qq.com itself, over TLS, such as 127.0.0.1:443; needs ca_dir",
        forms: Forms::All,
        commands: SERVE,
    },
    Setting {
        key: "upstream",
        value: "URL",
        kind: Kind::Origin,
        default: Fallback::Text("https://api.weixin.qq.com"),
        help: "WeChat: a scheme, a host and perhaps a port; http:// on loopback only",
        forms: Forms::All,
        commands: HOSTS,
    },
    Setting {
        key: "upstream_address",
        value: "ADDRESS",
        kind: Kind::Address,
        default: Fallback::None,
        help: "Where to connect to (ip or ip:port), instead of resolving the upstream's name; TLS keeps that name",
        forms: Forms::All,
        commands: SERVE,
    },
    Setting {
        key: "upstream_hosts",
        value: "NAMES",
        kind: Kind::Hosts,
        default: Fallback::None,
        help: "More hosts that calls may name, beside WeChat's and the upstream's; commas between them",
        forms: Forms::All,
        commands: HOSTS,
    },
    Setting {
        key: "upstream_ca_file",
        value: "PATH",
        kind: Kind::Path,
        default: Fallback::None,
        help: "CA certificates (PEM) to trust for the upstream, beside the built-in ones",
        forms: Forms::All,
        commands: SERVE,
    },
    Setting {
        key: "token_endpoint",
        value: "ENDPOINT",
        kind: Kind::OneOf(&["stable_token", "token"]),
        default: Fallback::Text("stable_token"),
        help: "Which endpoint issues the token: stable_token, or the classic token for a single replica or a store",
        forms: Forms::All,
        commands: SERVE,
    },
    Setting {
        key: "store",
        value: "STORE",
        kind: Kind::Store,
        default: Fallback::Text("memory"),
        help: "Where replicas share tokens: memory (nowhere), or a Redis or Valkey such as rediss://user@host:6379",
        forms: Forms::All,
        commands: SERVE,
    },
    Setting {
        key: "store_password_file",
        value: "PATH",
        kind: Kind::Path,
        default: Fallback::None,
        help: "A file that holds just the password to Redis, instead of one in `store`",
        forms: Forms::All,
        commands: SERVE,
    },
    Setting {
        key: "store_ca_file",
        value: "PATH",
        kind: Kind::Path,
        default: Fallback::None,
        help: "CA certificates (PEM) to trust for a Redis over TLS, instead of the built-in ones",
        forms: Forms::All,
        commands: SERVE,
    },
    Setting {
        key: "store_key_file",
        value: "PATH",
        kind: Kind::Path,
        default: Fallback::None,
        help: "Keys that encrypt the token in Redis, one a line: the first seals, all open",
        forms: Forms::All,
        commands: SERVE,
    },
    Setting {
        key: "store_prefix",
        value: "PREFIX",
        kind: Kind::Prefix,
        default: Fallback::Text("wechat-sidecar"),
        help: "What every key in Redis begins with; one for each environment that must not share tokens",
        forms: Forms::All,
        commands: SERVE,
    },
    Setting {
        key: "config",
        value: "PATH",
        kind: Kind::Path,
        default: Fallback::None,
        help: "A TOML file of settings, where [[account]] tables may stand",
        forms: Forms::NoFile,
        commands: &[Verb::Run, Verb::Check, Verb::Wait, Verb::Ca],
    },
    Setting {
        key: "log",
        value: "FILTER",
        kind: Kind::Filter,
        default: Fallback::Text("info"),
        help: "What is logged: off, error, warn, info, debug or trace, and target=level pairs after commas",
        forms: Forms::All,
        commands: &[Verb::Run, Verb::Check, Verb::Simulate, Verb::Demo],
    },
    Setting {
        key: "log_format",
        value: "FORMAT",
        kind: Kind::OneOf(&["text", "json"]),
        default: Fallback::Text("text"),
        help: "How it is logged, to standard error: text, or json (one object a line)",
        forms: Forms::All,
        commands: &[Verb::Run, Verb::Check, Verb::Simulate],
    },
    Setting {
        key: "connect_timeout",
        value: "DURATION",
        kind: TIMEOUT,
        default: Fallback::Text("5s"),
        help: "The longest a connection to the upstream may take, TLS included",
        forms: Forms::All,
        commands: SERVE,
    },
    Setting {
        key: "response_timeout",
        value: "DURATION",
        kind: TIMEOUT,
        default: Fallback::Text("30s"),
        help: "The longest until the reply's head, from the request's last byte",
        forms: Forms::All,
        commands: SERVE,
    },
    Setting {
        key: "idle_timeout",
        value: "DURATION",
        kind: TIMEOUT,
        default: Fallback::Text("60s"),
        help: "The longest pause within a body, either way",
        forms: Forms::All,
        commands: SERVE,
    },
    Setting {
        key: "fetch_timeout",
        value: "DURATION",
        kind: TIMEOUT,
        default: Fallback::Text("10s"),
        help: "The longest one fetch of a token may take, as a whole",
        forms: Forms::All,
        commands: SERVE,
    },
    Setting {
        key: "token_wait",
        value: "DURATION",
        kind: Kind::Duration(Duration::ZERO, Duration::from_secs(60)),
        default: Fallback::Text("2s"),
        help: "The longest a call waits for a token; several SDKs give up after 3s in all",
        forms: Forms::All,
        commands: SERVE,
    },
    Setting {
        key: "drain_delay",
        value: "DURATION",
        kind: Kind::Duration(Duration::ZERO, Duration::from_secs(3600)),
        default: Fallback::Text("0s"),
        help: "How long calls are still taken after a stop was asked for, while /readyz says no",
        forms: Forms::All,
        commands: SERVE,
    },
    Setting {
        key: "grace_period",
        value: "DURATION",
        kind: Kind::Duration(Duration::ZERO, Duration::from_secs(3600)),
        default: Fallback::Text("30s"),
        help: "How long calls in flight may finish after a stop was asked for",
        forms: Forms::All,
        commands: SERVE,
    },
    Setting {
        key: "quit_endpoint",
        value: "SWITCH",
        kind: Kind::Switch,
        default: Fallback::Text("false"),
        help: "Whether POST /quit on the admin port, from this machine, is a clean stop; for Jobs",
        forms: Forms::All,
        commands: SERVE,
    },
    Setting {
        key: "workers",
        value: "NUMBER",
        kind: Kind::Count(1, 256),
        default: Fallback::Found("the CPUs it is given, at most 4"),
        help: "Threads that serve calls",
        forms: Forms::All,
        commands: SERVE,
    },
    Setting {
        key: "replay_limit",
        value: "SIZE",
        kind: Kind::Size(0, 10 * GIB),
        default: Fallback::Text("16MiB"),
        help: "The largest request body that is kept, so that the call can go again with a new token",
        forms: Forms::All,
        commands: SERVE,
    },
    Setting {
        key: "replay_budget",
        value: "SIZE",
        kind: Kind::Size(0, 64 * GIB),
        default: Fallback::Text("64MiB"),
        help: "What all kept bodies may take together",
        forms: Forms::All,
        commands: SERVE,
    },
    Setting {
        key: "max_body",
        value: "SIZE",
        kind: Kind::Size(1, 10 * GIB),
        default: Fallback::Text("128MiB"),
        help: "The largest request body; a larger one is answered 413",
        forms: Forms::All,
        commands: SERVE,
    },
    Setting {
        key: "max_head",
        value: "SIZE",
        kind: Kind::Size(KIB, MIB),
        default: Fallback::Text("64KiB"),
        help: "The largest request head; a larger one is answered 431",
        forms: Forms::All,
        commands: SERVE,
    },
    Setting {
        key: "timeout",
        value: "DURATION",
        kind: Kind::Duration(Duration::ZERO, Duration::from_secs(3600)),
        default: Fallback::Text("60s"),
        help: "How long to wait; 0s asks once",
        forms: Forms::FlagOnly,
        commands: &[Verb::Wait],
    },
    Setting {
        key: "for",
        value: "WHAT",
        kind: Kind::OneOf(&["ready", "live"]),
        default: Fallback::Text("ready"),
        help: "What to wait for: ready (every account has a token), or live (it answers at all)",
        forms: Forms::FlagOnly,
        commands: &[Verb::Wait],
    },
    Setting {
        key: "sim_listen",
        value: "ADDRESS:PORT",
        kind: Kind::Listen,
        default: Fallback::Text("127.0.0.1:7300"),
        help: "Where the simulated API is",
        forms: Forms::FlagOnly,
        commands: SIMULATE,
    },
    Setting {
        key: "sim_tls_listen",
        value: "ADDRESS:PORT",
        kind: Kind::Listen,
        default: Fallback::None,
        help: "Where it is over TLS too, under a CA made for this run",
        forms: Forms::FlagOnly,
        commands: SIMULATE,
    },
    Setting {
        key: "control_listen",
        value: "ADDRESS:PORT",
        kind: Kind::Listen,
        default: Fallback::Text("127.0.0.1:7301"),
        help: "Where its levers are: void a token, change the secret, fail",
        forms: Forms::FlagOnly,
        commands: SIMULATE,
    },
    Setting {
        key: "sim_appid",
        value: "APPID",
        kind: Kind::AppId,
        default: Fallback::Text("wx0123456789abcdef"),
        help: "The account it knows",
        forms: Forms::FlagOnly,
        commands: SIMULATE,
    },
    Setting {
        key: "app_secret",
        value: "APPSECRET",
        kind: Kind::Secret,
        default: Fallback::Text("0123456789abcdef0123456789abcdef"),
        help: "That account's AppSecret, made up: never give a real one here",
        forms: Forms::FlagOnly,
        commands: SIMULATE,
    },
    Setting {
        key: "dir",
        value: "PATH",
        kind: Kind::Path,
        default: Fallback::Text("./wechat-sidecar-ca"),
        help: "The folder to make the CA in, or to find it in",
        forms: Forms::FlagOnly,
        commands: &[Verb::Ca],
    },
    Setting {
        key: "ca_out",
        value: "PATH",
        kind: Kind::Path,
        default: Fallback::None,
        help: "Writes the CA of --tls-listen here, for the sidecar's --upstream-ca-file",
        forms: Forms::FlagOnly,
        commands: SIMULATE,
    },
    Setting {
        key: "token_length",
        value: "NUMBER",
        kind: Kind::Count(32, 8192),
        default: Fallback::Text("157"),
        help: "How long its tokens are, in characters",
        forms: Forms::FlagOnly,
        commands: SIMULATE,
    },
    Setting {
        key: "expires_in",
        value: "SECONDS",
        kind: Kind::Count(1, 86_400),
        default: Fallback::Text("7200"),
        help: "How long its tokens live",
        forms: Forms::FlagOnly,
        commands: SIMULATE,
    },
];

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_has_a_name_of_its_own_and_one_line_of_help() {
        let mut keys: Vec<_> = SETTINGS.iter().map(|s| s.key).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), SETTINGS.len());
        for setting in SETTINGS {
            assert!(!setting.help.contains('\n') && !setting.help.contains('|'), "{}", setting.key);
            assert!(!setting.help.ends_with('.') && setting.help.len() < 110, "{}", setting.key);
            assert!(!setting.commands.is_empty(), "{}", setting.key);
            assert!(setting.key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{}", setting.key);
        }
    }

    #[test]
    fn a_real_secret_is_never_a_flag() {
        for setting in SETTINGS.iter().filter(|s| s.is_secret() && s.key != "app_secret") {
            assert!(!setting.is_flag(), "{}", setting.key);
        }
    }

    #[test]
    fn one_key_gives_every_form() {
        let setting = get("upstream_ca_file");
        assert_eq!(setting.flag(), "upstream-ca-file");
        assert_eq!(setting.env(), "WECHAT_SIDECAR_UPSTREAM_CA_FILE");
        assert_eq!(get("sim_listen").flag(), "listen");
    }

    #[test]
    fn a_slip_finds_the_name_that_was_meant() {
        let near = |written| nearest(written, SETTINGS.iter().filter(|s| s.is_env()).map(|s| s.key));
        assert_eq!(near("app_id"), Some("appid"));
        assert_eq!(near("secret-file"), Some("secret_file"));
        assert_eq!(near("App_Secret"), Some("secret"));
        assert_eq!(near("conect_timeout"), Some("connect_timeout"));
        assert_eq!(near("listne"), Some("listen"));
        assert_eq!(near("banana"), None);
    }

    #[test]
    fn the_readme_table_is_the_code() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
        let readme = std::fs::read_to_string(path).expect("README.md stands at the top of the repository");
        let (_, rest) = readme.split_once("<!-- settings -->\n").expect("README.md has <!-- settings -->");
        let (table, _) = rest.split_once("<!-- /settings -->").expect("README.md has <!-- /settings -->");
        assert!(
            table.trim() == readme_table().trim(),
            "README.md's settings are not the code's; put this between the marks:\n{}",
            readme_table()
        );
    }
}
