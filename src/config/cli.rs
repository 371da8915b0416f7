//! The command line: [`parse`] turns arguments and the environment into an [`Invocation`], or into words to
//! print and a code to exit with.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use clap_complete::Shell;

use super::problem::{Place, Problem, Problems, shown};
use super::reader::Reader;
use super::settings::{self, Setting, Verb};
use super::sources::Flags;
use super::{Config, load, manual, values};
use crate::credentials::{AppId, Secret};
use crate::hosts::Hosts;
use crate::telemetry;

/// What the caller asked for.
#[derive(Debug)]
pub enum Invocation {
    /// Serve.
    Run(Box<Config>),
    /// Validate, fetch once, explain.
    Check(Box<Config>),
    /// Wait until a running sidecar is ready.
    Wait(Wait),
    /// Be WeChat, offline.
    Simulate(Box<Simulate>),
    /// Be both, for a first look.
    Demo(Demo),
    /// Make a local CA, or find it.
    Ca(Ca),
}

/// What `wait` needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// The running sidecar's admin port, at an address one can connect to.
    pub admin: SocketAddr,
    /// How long at most; zero asks once.
    pub timeout: Duration,
    /// What for.
    pub probe: Probe,
}

/// What `wait` waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Every account has a token.
    Ready,
    /// It answers at all.
    Live,
}

impl Probe {
    /// Where the admin port answers it.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Self::Ready => "/readyz",
            Self::Live => "/livez",
        }
    }
}

/// What `simulate` needs to know.
#[derive(Clone, Debug)]
pub struct Simulate {
    /// Where the API is.
    pub listen: SocketAddr,
    /// Where it is over TLS.
    pub tls_listen: Option<SocketAddr>,
    /// Where its levers are.
    pub control_listen: SocketAddr,
    /// The account it knows.
    pub appid: AppId,
    /// That account's AppSecret, made up.
    pub app_secret: Secret,
    /// Where to write the CA of `tls_listen`.
    pub ca_out: Option<PathBuf>,
    /// How long its tokens are, in characters.
    pub token_length: usize,
    /// How long its tokens live.
    pub expires_in: Duration,
    /// What is logged and how.
    pub telemetry: telemetry::Config,
}

/// What `demo` needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demo {
    /// What is logged and how.
    pub telemetry: telemetry::Config,
}

/// What `ca` needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ca {
    /// Where the CA is, or will be.
    pub folder: PathBuf,
    /// The hosts it is good for.
    pub hosts: Hosts,
}

/// Nothing is to be run: print and exit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Help, the version, the manual or completions: for standard output, and exit code 0.
    Told(String),
    /// Bad arguments or settings: for standard error, and exit code 64.
    Refused(String),
}

impl Stop {
    /// The code to exit with.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Told(_) => 0,
            Self::Refused(_) => 64,
        }
    }
}

/// Reads a command line, its program name first, and the environment.
///
/// # Errors
/// What to print instead of running, and the exit code.
pub fn parse(
    args: impl IntoIterator<Item = OsString>,
    env: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Invocation, Stop> {
    parse_all(&with_verb(args), env.into_iter().collect())
}

/// Compiled once, whatever the arguments come from: that is 40 kB.
fn parse_all(args: &[OsString], env: Vec<Env>) -> Result<Invocation, Stop> {
    let matches = command().try_get_matches_from(args).map_err(|error| {
        let mut text = error.render().to_string();
        // SECURITY: a stray argument is named, and it may be a secret that was pasted in the wrong place.
        for arg in args.iter().filter_map(|arg| arg.to_str()).filter(|arg| values::looks_like_a_secret(arg)) {
            text = text.replace(arg, "***");
        }
        match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Stop::Told(text),
            _ => Stop::Refused(text),
        }
    })?;
    let Some((name, matches)) = matches.subcommand() else {
        unreachable!("with_verb names a command where none is")
    };
    let Some((verb, _)) = VERBS.iter().find(|(_, known)| *known == name) else {
        unreachable!("{name} is not in the table")
    };
    let flags = flags(*verb, matches);
    match verb {
        Verb::Man => return Err(Stop::Told(manual::page(public(), matches.get_one(COMMAND)))),
        Verb::Completions => {
            // clap sees to it that there is one.
            let shell = matches.get_one::<Shell>(SHELL).copied().unwrap_or(Shell::Bash);
            return Err(Stop::Told(manual::completions(public(), shell)));
        }
        Verb::Run => load(flags, env).map(|config| Invocation::Run(Box::new(config))),
        Verb::Check => load(flags, env).map(|config| Invocation::Check(Box::new(config))),
        Verb::Wait => wait(flags, env).map(Invocation::Wait),
        Verb::Simulate => simulate(flags, env).map(|sim| Invocation::Simulate(Box::new(sim))),
        Verb::Demo => demo(flags, env).map(Invocation::Demo),
        Verb::Ca => ca(flags, env).map(Invocation::Ca),
    }
    .map_err(|problems| Stop::Refused(problems.to_string()))
}

const VERBS: [(Verb, &str); 8] = [
    (Verb::Run, "run"),
    (Verb::Check, "check"),
    (Verb::Wait, "wait"),
    (Verb::Ca, "ca"),
    (Verb::Simulate, "simulate"),
    (Verb::Demo, "demo"),
    (Verb::Man, "man"),
    (Verb::Completions, "completions"),
];

/// The arguments without dashes: which command `man` is about, and for which shell `completions` are.
const COMMAND: &str = "command";
const SHELL: &str = "shell";

/// `run` is what is meant when no command is named: `wechat-sidecar --appid wx…`.
fn with_verb(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    // The name in usage lines is the one the examples use, wherever the binary lies.
    let mut args: Vec<OsString> =
        std::iter::once("wechat-sidecar".into()).chain(args.into_iter().skip(1)).collect();
    let names_none = args.get(1).is_none_or(|first| {
        let first = first.to_string_lossy();
        first.starts_with('-') && !matches!(&*first, "-h" | "--help" | "-V" | "--version")
    });
    if names_none {
        args.insert(1, "run".into());
    }
    args
}

fn flags(verb: Verb, matches: &ArgMatches) -> Flags {
    let mut flags: Flags = settings::of(verb)
        .filter(|setting| setting.is_flag())
        .filter_map(|setting| Some((setting.key, matches.get_one::<String>(setting.key)?.clone())))
        .collect();
    // Its value is left where it is: whoever gave it is told why it cannot be a flag.
    if matches.try_contains_id("secret").is_ok_and(|given| given) {
        flags.push(("secret", String::new()));
    }
    flags
}

type Env = (OsString, OsString);

fn wait(flags: Flags, env: impl IntoIterator<Item = Env>) -> Result<Wait, Problems> {
    let mut reader = Reader::new(Verb::Wait, flags, env);
    let admin = reader.listen("admin_listen");
    let timeout = reader.duration("timeout");
    let probe = reader.value("for", |text| match values::one_of(text, &["ready", "live"])? {
        0 => Ok(Probe::Ready),
        _ => Ok(Probe::Live),
    });
    if admin.is_some_and(|admin| admin.port() == 0) {
        let mut problem = Problem::new(
            "admin_listen",
            reader.place("admin_listen"),
            "It has port 0, which says nothing about where a running sidecar is.",
            "give the port the sidecar logged when it started",
        );
        problem.value = admin.map(|admin| shown(&admin.to_string()));
        reader.problems.push(problem);
    }
    // A closure, for its `?`: whatever is missing has left a problem.
    let wait = (|| Some(Wait { admin: reachable(admin?), timeout: timeout?, probe: probe? }))();
    reader.finish(wait)
}

/// An address to connect to: what listens on every interface listens on loopback too.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

fn simulate(flags: Flags, env: impl IntoIterator<Item = Env>) -> Result<Simulate, Problems> {
    let mut reader = Reader::new(Verb::Simulate, flags, env);
    let listen = reader.listen("sim_listen");
    let tls_listen = reader.listen("sim_tls_listen");
    let control_listen = reader.listen("control_listen");
    let appid = reader.value("sim_appid", values::appid);
    let app_secret = reader.value("app_secret", values::secret);
    let ca_out = reader.path("ca_out");
    let token_length = reader.count("token_length");
    let expires_in = reader.count("expires_in");
    let telemetry = reader.telemetry();
    // A closure, for its `?`: whatever is missing has left a problem.
    let simulate = (|| {
        Some(Simulate {
            listen: listen?,
            tls_listen,
            control_listen: control_listen?,
            appid: appid?,
            app_secret: app_secret?,
            ca_out,
            token_length: token_length?,
            expires_in: Duration::from_secs(u64::try_from(expires_in?).ok()?),
            telemetry: telemetry?,
        })
    })();
    reader.finish(simulate)
}

fn demo(flags: Flags, env: impl IntoIterator<Item = Env>) -> Result<Demo, Problems> {
    let mut reader = Reader::new(Verb::Demo, flags, env);
    // The demo tells its own story; log lines between its lines would drown it, unless they were asked for.
    let quiet = matches!(reader.place("log"), Place::Nowhere);
    let telemetry = reader.telemetry().map(|telemetry| match quiet {
        true => telemetry::Config { filter: "error".to_owned(), ..telemetry },
        false => telemetry,
    });
    reader.finish(telemetry.map(|telemetry| Demo { telemetry }))
}

fn ca(flags: Flags, env: impl IntoIterator<Item = Env>) -> Result<Ca, Problems> {
    let mut reader = Reader::new(Verb::Ca, flags, env);
    let origin = reader.value("upstream", values::origin);
    let hosts = super::hosts(&mut reader, origin.as_ref());
    let folder = reader.value("dir", |text| super::reader::path(text, &Place::Nowhere));
    let ca = folder.zip(hosts).map(|(folder, hosts)| Ca { folder, hosts });
    reader.finish(ca)
}

const FORMS: &str = "\
Every setting --foo-bar is also the environment variable WECHAT_SIDECAR_FOO_BAR and the key foo_bar of the TOML file \
that --config names. Flags beat the environment, which beats the file. Durations are written 500ms, 2s, 5m; sizes \
64KiB, 16MiB.";

const SECRET: &str = "\
The AppSecret is never a flag, because every user of a machine may read a command line: set WECHAT_SIDECAR_SECRET, \
or name a file that holds it with --secret-file.";

/// The whole command line, for parsing and for the help.
#[must_use]
pub fn command() -> Command {
    // SECURITY: `--secret` is known, so that whoever tries it is told why not, and its value is taken along, so that
    // no message about a stray argument shows it.
    let secret = Arg::new("secret").long("secret").hide(true).num_args(0..=1).action(ArgAction::Append);
    public().mut_subcommands(|command| match command.get_name() {
        "run" | "check" => command.arg(secret.clone()),
        _ => command,
    })
}

/// What of it is for people to write.
fn public() -> Command {
    Command::new("wechat-sidecar")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Puts the current access_token into your app's WeChat calls")
        .long_about(
            "A reverse proxy beside your app. The app calls http://127.0.0.1:7200 as if it were api.weixin.qq.com, \
             without an access_token; the sidecar keeps one fresh, puts it into every call, and sends a call again, \
             once, when WeChat says that the token was bad.",
        )
        .after_help(
            "Without a command, it is `run`.\n\n\
             Examples:\n  \
             export WECHAT_SIDECAR_SECRET=0123456789abcdef0123456789abcdef\n  \
             wechat-sidecar --appid wx0123456789abcdef\n  \
             wechat-sidecar check --config sidecar.toml\n  \
             wechat-sidecar demo\n\n\
             Exit codes: 0 after a clean stop, 64 for bad settings, 69 when a port is taken, 1 otherwise.",
        )
        .subcommand_required(true)
        .override_usage("wechat-sidecar [COMMAND] [OPTIONS]")
        .subcommands(VERBS.iter().map(|(verb, name)| subcommand(*verb, name)))
}

fn subcommand(verb: Verb, name: &'static str) -> Command {
    let command = Command::new(name).args(settings::of(verb).filter(|s| s.is_flag()).map(arg));
    match verb {
        Verb::Run => command
            .about("Serves calls until SIGTERM or Ctrl-C (what happens when no command is named)")
            .after_help(format!(
                "{SECRET}\n\n{FORMS}\n\n\
                 Examples:\n  \
                 wechat-sidecar run --config sidecar.toml\n  \
                 wechat-sidecar run --appid wx0123456789abcdef --secret-file secret.txt\n  \
                 export WECHAT_SIDECAR_SECRET=0123456789abcdef0123456789abcdef\n  \
                 wechat-sidecar run --appid wx0123456789abcdef --log debug\n\n\
                 A sidecar.toml with two accounts:\n  \
                 log_format = \"json\"\n  \
                 [[account]]\n  \
                 appid = \"wx0123456789abcdef\"\n  \
                 secret_file = \"first.secret\"  # relative to the TOML file\n  \
                 [[account]]\n  \
                 appid = \"wxfedcba9876543210\"\n  \
                 secret_file = \"second.secret\""
            )),
        Verb::Check => command
            .about("Checks the settings, fetches a token once, explains what it finds, and exits")
            .after_help(format!(
                "{SECRET}\n\n{FORMS}\n\n\
                 Examples:\n  \
                 wechat-sidecar check --config sidecar.toml\n  \
                 export WECHAT_SIDECAR_SECRET=0123456789abcdef0123456789abcdef\n  \
                 wechat-sidecar check --appid wx0123456789abcdef"
            )),
        Verb::Wait => command
            .about("Waits until a running sidecar is ready: exit code 0 when it is, 1 when time is up")
            .after_help(
                "For entrypoints and probes. --admin-listen and --config are also WECHAT_SIDECAR_ADMIN_LISTEN and \
                 WECHAT_SIDECAR_CONFIG, so that both processes can share their settings.\n\n\
                 Examples:\n  \
                 wechat-sidecar wait --timeout 30s\n  \
                 wechat-sidecar wait --admin-listen 127.0.0.1:7201 --timeout 0s\n  \
                 wechat-sidecar wait --for live --timeout 0s",
            ),
        Verb::Ca => command
            .about("Makes a local CA for apps that only call https://api.weixin.qq.com, and says how to trust it")
            .after_help(
                "With it, the sidecar is an HTTPS proxy to WeChat (--ca-dir), and api.weixin.qq.com itself \
                 (--tls-listen) for apps whose hosts file says so. The CA is good for WeChat's API hosts and those \
                 of --upstream and --upstream-hosts, and for nothing else. One that is there is used again.\n\n\
                 Examples:\n  \
                 wechat-sidecar ca\n  \
                 wechat-sidecar ca --dir /etc/wechat-sidecar/ca\n  \
                 wechat-sidecar ca --upstream-hosts gateway.example.com",
            ),
        Verb::Simulate => command
            .about("Serves a simulated WeChat API, offline, for laptops and CI")
            .after_help(
                "Examples:\n  \
                 wechat-sidecar simulate --listen 127.0.0.1:7300\n  \
                 wechat-sidecar simulate --tls-listen 127.0.0.1:7343 --ca-out ca.pem\n\n\
                 And a sidecar that calls it:\n  \
                 export WECHAT_SIDECAR_SECRET=0123456789abcdef0123456789abcdef\n  \
                 wechat-sidecar --appid wx0123456789abcdef --upstream http://127.0.0.1:7300",
            )
            .mut_arg("ca_out", |arg| arg.requires("sim_tls_listen")),
        Verb::Demo => command
            .about("Runs a sidecar and a simulated WeChat together, with nothing to set up, for a first look")
            .after_help("Examples:\n  wechat-sidecar demo\n  wechat-sidecar demo --log debug"),
        Verb::Man => command
            .about("Prints a page of the manual: the overview, or the page of one command")
            .after_help(
                "Examples:\n  \
                 wechat-sidecar man | man -l -\n  \
                 wechat-sidecar man run > /usr/local/share/man/man1/wechat-sidecar-run.1",
            )
            .arg(
                Arg::new(COMMAND)
                    .value_name("COMMAND")
                    .help("Whose page; without it, the overview")
                    .value_parser(VERBS.map(|(_, name)| name)),
            ),
        Verb::Completions => command
            .about("Prints what a shell needs to complete commands and flags")
            .after_help(
                "Examples:\n  \
                 wechat-sidecar completions bash > /etc/bash_completion.d/wechat-sidecar\n  \
                 wechat-sidecar completions zsh > /usr/local/share/zsh/site-functions/_wechat-sidecar\n  \
                 wechat-sidecar completions fish > ~/.config/fish/completions/wechat-sidecar.fish",
            )
            .arg(
                Arg::new(SHELL)
                    .value_name("SHELL")
                    .help("The shell it is for")
                    .required(true)
                    .value_parser(value_parser!(Shell)),
            ),
    }
}

fn arg(setting: &'static Setting) -> Arg {
    Arg::new(setting.key)
        .long(setting.flag())
        .value_name(setting.value)
        .help(setting.help_text())
        .action(ArgAction::Set)
}
