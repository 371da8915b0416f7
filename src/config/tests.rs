//! What a user writes, and what they get or are told, from the command line to the [`Config`].

mod arbitrary;
mod bridge;
mod guards;
mod supply;

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use super::cli::{Invocation, Stop, command, parse};
use super::*;
use crate::ca;
use crate::telemetry::Format;

const APPID: &str = "wx0123456789abcdef";
/// A secret that nothing else contains, so that a leak of it can be grepped for.
const SECRET: &str = "5ec2e75ec2e75ec2e75ec2e75ec2e75e";
const ENOUGH: [(&str, &str); 2] = [("WECHAT_SIDECAR_APPID", APPID), ("WECHAT_SIDECAR_SECRET", SECRET)];

fn invoke(line: &str, env: &[(&str, &str)]) -> Result<Invocation, Stop> {
    let args = std::iter::once("wechat-sidecar").chain(line.split_whitespace()).map(OsString::from);
    parse(args, env.iter().map(|(name, value)| (name.into(), value.into())))
}

fn run(line: &str, env: &[(&str, &str)]) -> Config {
    match invoke(line, env) {
        Ok(Invocation::Run(config)) => *config,
        other => panic!("{line}: {other:?}"),
    }
}

/// What is told on standard error. Whatever it is, it has no secret in it.
fn refused(line: &str, env: &[(&str, &str)]) -> String {
    match invoke(line, env) {
        Err(stop @ Stop::Refused(_)) => {
            assert_eq!(stop.exit_code(), 64);
            let Stop::Refused(text) = stop else { unreachable!() };
            assert!(!text.contains("5ec2e7"), "{text}");
            text
        }
        other => panic!("{line}: {other:?}"),
    }
}

#[track_caller]
fn contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in:\n{text}");
    }
}

struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    }
    /// `--config FILE` with this text in it.
    fn toml(&self, text: impl AsRef<[u8]>) -> String {
        format!("--config {}", self.write("sidecar.toml", text).display())
    }
}

#[test]
fn an_appid_and_a_secret_are_enough() {
    let config = run("", &ENOUGH);
    assert_eq!(config.accounts.len(), 1);
    assert_eq!(config.accounts[0].appid.as_str(), APPID);
    assert_eq!(config.accounts[0].secret.as_ref().unwrap().expose(), SECRET);
    assert_eq!(config.accounts[0].secret_origin, Some(SecretOrigin::Value));
    assert_eq!(config.accounts[0].endpoint, Endpoint::Stable);
    assert_eq!(config.server.listen.to_string(), "127.0.0.1:7200");
    assert_eq!(config.admin.listen.to_string(), "127.0.0.1:7201");
    assert_eq!(config.server.max_head, 64 << 10);
    assert!((1..=4).contains(&config.server.workers.get()));
    assert_eq!(config.upstream.origin.to_string(), "https://api.weixin.qq.com");
    assert_eq!(config.upstream.connect_timeout, Duration::from_secs(5));
    assert_eq!(config.upstream.response_timeout, Duration::from_secs(30));
    assert_eq!(config.upstream.idle_timeout, Duration::from_secs(60));
    assert_eq!(config.source.fetch_timeout, Duration::from_secs(10));
    assert_eq!(config.proxy.token_wait, Duration::from_secs(2));
    assert_eq!(config.grace_period, Duration::from_secs(30));
    assert_eq!((config.proxy.replay_limit, config.proxy.replay_budget), (16 << 20, 64 << 20));
    assert_eq!(config.proxy.max_body, 128 << 20);
    assert_eq!(config.telemetry, telemetry::Config::default());
    assert!(config.proxy.gate.names.is_some() && config.proxy.gate.required.is_none());
    assert!(config.proxy.keyring.is_none() && config.server.unix.is_none() && !config.core_dumps);
    let admission = &config.proxy.admission;
    assert_eq!(
        (admission.max_connections, admission.max_calls, admission.queue_length),
        (10_000, 2000, 2000)
    );
    assert_eq!((admission.queue_wait, admission.rate_wait), (Duration::from_secs(1), Duration::from_secs(2)));
    assert_eq!(config.server.head_timeout, Duration::from_secs(20));
    assert_eq!(config.server.keep_alive, Duration::from_secs(75));
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    let source = config.source_for(&config.accounts[0]);
    assert_eq!((source.endpoint, source.fetch_timeout), (Endpoint::Stable, Duration::from_secs(10)));
}

#[test]
fn flags_beat_the_environment_which_beats_the_file() {
    let files = Files::new();
    let file = files.toml("workers = 2\nmax_body = 1024\nlog_format = 'json'\nconnect_timeout = '1s'\n");
    let mut env = ENOUGH.to_vec();
    env.extend([("WECHAT_SIDECAR_WORKERS", "3"), ("WECHAT_SIDECAR_MAX_BODY", "2KiB")]);
    let config = run(&format!("{file} --workers 5"), &env);
    assert_eq!(config.server.workers.get(), 5);
    assert_eq!(config.proxy.max_body, 2048);
    assert_eq!(config.telemetry.format, Format::Json);
    assert_eq!(config.source.connect_timeout, Duration::from_secs(1));
}

#[test]
fn run_is_what_no_command_means() {
    for line in ["", "run", "--appid wx1", "--appid=wx1", "run --appid wx1"] {
        run(line, &ENOUGH);
    }
    assert!(matches!(invoke("check", &ENOUGH), Ok(Invocation::Check(_))));
    assert!(matches!(parse([], ENOUGH.map(|(k, v)| (k.into(), v.into()))), Ok(Invocation::Run(_))));
    contains(&refused("serve", &ENOUGH), &["serve"]);
}

#[test]
fn help_and_version_are_for_standard_output() {
    for line in ["--help", "-h", "help", "help run", "--version", "-V", "--workers 2 --help"] {
        let stop = invoke(line, &[]).unwrap_err();
        assert!(matches!(&stop, Stop::Told(text) if !text.is_empty()), "{line}: {stop:?}");
        assert_eq!(stop.exit_code(), 0);
    }
    let Err(Stop::Told(help)) = invoke("run --help", &[]) else { panic!() };
    contains(&help, &["--listen <ADDRESS:PORT>", "[default: 127.0.0.1:7200]", "WECHAT_SIDECAR_SECRET"]);
    assert!(!help.contains("--secret "), "{help}");
    command().debug_assert();
}

#[test]
fn every_invocation_the_help_shows_works() {
    let files = Files::new();
    files.write("secret.txt", SECRET);
    files.write("sidecar.toml", format!("appid = '{APPID}'\nsecret_file = 'secret.txt'\n"));
    let mut seen = 0;
    for help in
        ["--help", "run --help", "check --help", "wait --help", "ca --help", "simulate --help", "demo --help"]
    {
        let Err(Stop::Told(text)) = invoke(help, &[]) else { panic!("{help}") };
        let (_, examples) = text.split_once("Examples:").unwrap();
        let mut env = Vec::new();
        for line in examples.lines().map(str::trim) {
            if let Some(pair) = line.strip_prefix("export ") {
                env.push(pair.split_once('=').unwrap());
            } else if let Some(args) = line.strip_prefix("wechat-sidecar ") {
                assert!(line.len() <= 78, "{line} does not fit a terminal");
                let args = args
                    .replace("sidecar.toml", files.path("sidecar.toml").to_str().unwrap())
                    .replace("secret.txt", files.path("secret.txt").to_str().unwrap());
                // What is exported holds for the rest, but a secret is given once.
                let env =
                    if args.contains("wx0") && !args.contains("--secret-file") { &env[..] } else { &[] };
                invoke(&args, env).unwrap_or_else(|stop| panic!("{line}: {stop:?}"));
                seen += 1;
            }
        }
    }
    assert!(seen >= 17, "{seen}");
}

#[test]
fn all_problems_are_told_at_once() {
    let files = Files::new();
    let file = files.toml("idle_timeout = 5\nlisten = ':7200'\nsurprise = 1\n");
    let env = [("WECHAT_SIDECAR_WORKERS", "0"), ("WECHAT_SIDECAR_LOG", "inof")];
    let text = refused(&format!("{file} --upstream http://api.weixin.qq.com --max-head 1"), &env);
    contains(
        &text,
        &[
            "There are 9 problems",
            "surprise (file ",
            "line 3)",
            "appid (not set)",
            "secret (not set)",
            "listen = \":7200\" (file ",
            "127.0.0.1:7200 for this machine only",
            "upstream = \"http://api.weixin.qq.com\" (flag --upstream)",
            "use https://",
            "log = \"inof\" (environment variable WECHAT_SIDECAR_LOG)",
            "idle_timeout = \"5\"",
            "5s for seconds",
            "workers = \"0\"",
            "max_head = \"1\" (flag --max-head)",
            "give 1KiB to 1MiB",
        ],
    );
}

#[test]
fn an_unknown_key_is_told_with_the_name_that_was_meant_and_without_its_value() {
    let files = Files::new();
    let file = files.toml(format!("app-secret = '{SECRET}'\nconect_timeout = '1s'\n['odd key']\n"));
    let text = refused(&file, &ENOUGH);
    contains(
        &text,
        &["app-secret (file", "did you mean secret?", "did you mean connect_timeout?", "\"odd key\""],
    );
    let text = refused("", &[("WECHAT_SIDECAR_APP_ID", APPID), ("WECHAT_SIDECAR_SECRT", SECRET)]);
    contains(&text, &["did you mean WECHAT_SIDECAR_APPID?", "did you mean WECHAT_SIDECAR_SECRET?"]);
    contains(&refused("--apid x", &ENOUGH), &["--apid", "--appid"]);
    contains(&refused("", &[("WECHAT_SIDECAR_PORT", "7200")]), &["WECHAT_SIDECAR_PORT"]);
    contains(&refused(&files.toml("config = 'x'"), &ENOUGH), &["config (file", "no such setting"]);
}

#[test]
fn what_kubernetes_injects_for_a_service_is_ignored() {
    let mut env = ENOUGH.to_vec();
    env.extend([
        ("WECHAT_SIDECAR_SERVICE_HOST", "10.0.0.11"),
        ("WECHAT_SIDECAR_SERVICE_PORT", "7200"),
        ("WECHAT_SIDECAR_SERVICE_PORT_HTTP", "7200"),
        ("WECHAT_SIDECAR_PORT", "tcp://10.0.0.11:7200"),
        ("WECHAT_SIDECAR_PORT_7200_TCP", "tcp://10.0.0.11:7200"),
        ("WECHAT_SIDECAR_PORT_7200_TCP_ADDR", "10.0.0.11"),
        ("WECHAT_SIDECAR_UNKNOWN", ""),
    ]);
    run("", &env);
}

#[test]
fn a_number_in_toml_is_taken_where_it_is_unambiguous() {
    let files = Files::new();
    let config = run(&files.toml("workers = 2\nmax_body = 1_024\ngrace_period = 0\ntoken_wait = 0"), &ENOUGH);
    assert_eq!((config.server.workers.get(), config.proxy.max_body), (2, 1024));
    assert_eq!((config.grace_period, config.proxy.token_wait), (Duration::ZERO, Duration::ZERO));
    let text = refused(
        &files.toml("workers = true\nlisten = 7200\nsecret = 123\nlog = ['a']\nmax_body = 1.5\nappid = {}\nstore = 2020-01-01"),
        &[],
    );
    contains(
        &text,
        &[
            "There are 7 problems",
            "It is a boolean, not text.",
            "workers = \"NUMBER\"",
            "It is an array",
            "It is a float",
            "It is a table",
            "It is a datetime",
            "listen = \"7200\"",
            "It is an integer, not text.",
        ],
    );
}

#[test]
fn bad_toml_is_told_with_its_place_and_without_the_line() {
    let files = Files::new();
    for text in [
        format!("appid = 'wx1'\nsecret = {SECRET}\n"),
        format!("appid = 'wx1'\nsecret = '{SECRET}\n"),
        format!("appid = 'wx1'\nsecret '{SECRET}'\n"),
        format!("appid = 'wx1'\nsecret = '{SECRET}' x\n"),
        format!("secret = '{SECRET}'\nsecret = '{SECRET}'\n"),
        format!("appid = 'wx1'\n{SECRET} {SECRET}\n"),
        format!("appid = 'wx1'\nsecret = \"\\{SECRET}\"\n"),
    ] {
        let told = refused(&files.toml(&text), &[]);
        contains(&told, &["There is 1 problem", "it is not valid TOML at line 2, column "]);
    }
    contains(&refused(&files.toml(b"appid = '\xff'"), &[]), &["not UTF-8"]);
    contains(
        &refused("--config /nonexistent/x.toml", &[]),
        &["There is 1 problem", "cannot be read", "flag --config"],
    );
    contains(&refused("--config /dev/zero", &[]), &["larger than 1MiB"]);
    contains(&refused("--config /", &[]), &["cannot be read"]);
}

#[test]
fn an_empty_variable_counts_as_unset_and_an_empty_value_does_not() {
    let mut env = ENOUGH.to_vec();
    env.push(("WECHAT_SIDECAR_LISTEN", ""));
    assert_eq!(run("", &env).server.listen.port(), 7200);
    let text = refused("", &[("WECHAT_SIDECAR_APPID", APPID), ("WECHAT_SIDECAR_SECRET", "")]);
    contains(&text, &["There is 1 problem", "WECHAT_SIDECAR_SECRET is set, but empty"]);
    let files = Files::new();
    let text = refused(&files.toml("appid = ''\nsecret = ''\nlisten = ''\nupstream_ca_file = ''"), &[]);
    contains(&text, &["There are 4 problems", "appid = \"\"", "It is empty."]);
    contains(&refused("--appid= --listen=", &[]), &["appid = \"\" (flag --appid)", "listen = \"\""]);
}

#[test]
fn a_variable_that_is_not_text_is_refused() {
    let bad = || OsString::from_vec(b"\xff5ec2e7".to_vec());
    let env = [
        ("WECHAT_SIDECAR_SECRET".into(), bad()),
        ("WECHAT_SIDECAR_APPID".into(), APPID.into()),
        ("OTHER".into(), bad()),
    ];
    let Err(Stop::Refused(text)) = parse(["x".into()], env) else { panic!() };
    contains(
        &text,
        &["There is 1 problem", "secret (environment variable WECHAT_SIDECAR_SECRET)", "not UTF-8"],
    );
    assert!(!text.contains("5ec2e7"), "{text}");
}

#[test]
fn a_secret_is_never_a_flag() {
    for line in ["--secret 5ec2e7", "--secret=5ec2e7", "run --secret", "check --appid wx1 --secret 5ec2e7"] {
        let text = refused(line, &[("WECHAT_SIDECAR_APPID", APPID)]);
        contains(
            &text,
            &["There is 1 problem", "secret (flag --secret)", "WECHAT_SIDECAR_SECRET", "--secret-file"],
        );
    }
    for line in ["--app-secret=5ec2e7", "--secrt=5ec2e7", "wait --secret=5ec2e7", "--app-secret 5ec2e7"] {
        refused(line, &ENOUGH);
    }
    for line in ["", "run ", "--appid wx1 ", "wait "] {
        contains(&refused(&format!("{line}{SECRET}"), &ENOUGH), &["'***'"]);
    }
}

#[test]
fn a_secret_is_given_once() {
    let files = Files::new();
    let path = files.write("secret.txt", format!("{SECRET}\n"));
    let path = path.to_str().unwrap();
    let config = run(&format!("--secret-file {path}"), &ENOUGH[..1]);
    assert_eq!(config.accounts[0].secret.as_ref().unwrap().expose(), SECRET);
    assert_eq!(config.accounts[0].secret_origin, Some(SecretOrigin::File(path.into())));
    let text = refused(&format!("--secret-file {path}"), &ENOUGH);
    contains(
        &text,
        &["There is 1 problem", "given twice", "WECHAT_SIDECAR_SECRET", "flag --secret-file", "keep one"],
    );
    contains(
        &refused("--secret-file /nonexistent/secret", &ENOUGH[..1]),
        &["There is 1 problem", "cannot be read"],
    );
    let text = refused(&format!("--secret-file {SECRET}"), &ENOUGH[..1]);
    contains(&text, &["looks like an AppSecret", "WECHAT_SIDECAR_SECRET"]);
    refused(&format!("--appid {SECRET}"), &ENOUGH);
}

#[test]
fn a_path_in_a_file_is_relative_to_the_file() {
    let files = Files::new();
    std::fs::create_dir(files.path("conf")).unwrap();
    files.write("conf/app.secret", SECRET);
    let toml = files.write("conf/sidecar.toml", "appid = 'wx1'\nsecret_file = 'app.secret'");
    let config = run(&format!("--config {}", toml.display()), &[]);
    assert_eq!(config.accounts[0].secret_origin, Some(SecretOrigin::File(files.path("conf/app.secret"))));
    // The same words in a flag are relative to where one stands.
    let text = refused("--secret-file app.secret", &ENOUGH[..1]);
    contains(&text, &["app.secret cannot be read"]);
    assert_eq!(super::reader::path("x", &Place::Nowhere).unwrap(), Path::new("x"));
}

#[test]
fn the_top_level_account_is_the_default_else_the_first_of_the_file() {
    let files = Files::new();
    let file = files.toml(format!(
        "token_endpoint = 'token'\n[[account]]\nappid = 'wx1'\nsecret = '{SECRET}'\n\
         [[account]]\nappid = 'wx2'\nsecret = '{SECRET}'\ntoken_endpoint = 'stable_token'\n"
    ));
    let seen = |config: &Config| {
        config.accounts.iter().map(|a| (a.appid.to_string(), a.endpoint)).collect::<Vec<_>>()
    };
    let config = run(&file, &[]);
    assert_eq!(seen(&config), [("wx1".into(), Endpoint::Classic), ("wx2".into(), Endpoint::Stable)]);
    contains(&config.warnings.join("\n"), &["token_endpoint = token for wx1"]);
    let config = run(&file, &ENOUGH);
    assert_eq!(config.accounts.len(), 3);
    assert_eq!(config.accounts[0].appid.as_str(), APPID);
    contains(&refused(&file, &ENOUGH[..1]), &["There is 1 problem", "secret (not set)"]);
    contains(&refused(&file, &ENOUGH[1..]), &["There is 1 problem", "appid (not set)"]);
}

#[test]
fn what_is_wrong_with_an_account_is_told_with_its_number_and_line() {
    let files = Files::new();
    let file = files.toml(format!(
        "[[account]]\nappid = 'wx1'\nsecret = '{SECRET}'\n\
         [[account]]\nappid = 'wx1'\nsecret = '{SECRET}'\n\
         [[account]]\nappid = 'wx3'\nlisten = '127.0.0.1:1'\napp_secret = '{SECRET}'\n\
         [[account]]\nsecret = '{SECRET}'\nsecret_file = 'x'\ntoken_endpoint = 'new'\n\
         [[account]]\nappid = 'wx5'\nsecret = 5\n"
    ));
    let text = refused(&file, &[]);
    contains(
        &text,
        &[
            "There are 8 problems",
            "line 5, [[account]] number 2)\n   This account is configured twice; first here: file ",
            "sidecar.toml, line 2, [[account]] number 1.",
            "move listen above the first [[account]]",
            "did you mean secret?",
            "number 3)\n   This account has no secret.",
            "number 4)\n   This account has no appid.",
            "given twice",
            "token_endpoint = \"new\"",
            "give stable_token or token",
            "line 17, [[account]] number 5)\n   It is an integer",
        ],
    );
    contains(
        &refused(&files.toml("[account]\nappid = 'wx1'"), &ENOUGH),
        &["begin each account with a line [[account]]"],
    );
    contains(
        &refused(&files.toml(format!("[[account]]\nappid = '{APPID}'\nsecret = 'x'")), &ENOUGH),
        &["twice"],
    );
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    contains(
        &refused("--replay-limit 100MiB", &ENOUGH),
        &["replay_limit (flag --replay-limit)", "raise replay_budget to 100MiB or more"],
    );
    run("--replay-limit 0 --replay-budget 0", &ENOUGH);
    contains(&refused("--listen 0.0.0.0:7201", &ENOUGH), &["admin_listen", "the same port"]);
    run("--listen 127.0.0.1:0 --admin-listen 127.0.0.1:0", &ENOUGH);
}

#[test]
fn bounds_hold() {
    for line in [
        "--connect-timeout 0s",
        "--idle-timeout 2h",
        "--token-wait 61s",
        "--workers 257",
        "--max-head 2MiB",
        "--max-body 11GiB",
        "--store redis://:5ec2e7@127.0.0.1/0",
        "--store disk",
        "--log-format xml",
        "--upstream https://me:5ec2e7@api.weixin.qq.com",
        "--upstream-ca-file /nonexistent.pem",
    ] {
        contains(&refused(line, &ENOUGH), &["There is 1 problem", "To fix it: "]);
    }
}

#[test]
fn a_store_on_redis_is_read_whole() {
    let files = Files::new();
    let key = files.write("keys", "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n");
    let password = files.write("password", "5ec2e7\n");
    let of = |config: Config| match config.store {
        token::store::Config::Redis(store) => *store,
        token::store::Config::Memory => panic!("it is memory"),
    };
    let store = of(run("--store redis://me@127.0.0.1", &ENOUGH));
    assert_eq!((store.prefix.as_str(), store.lease), ("wechat-sidecar", Duration::from_secs(12)));
    assert!(store.seals.is_none() && !store.server.address.has_password());
    let line = format!(
        "--store unix:///run/redis.sock?db=2 --store-prefix a:b --fetch-timeout 20s --store-key-file {} --store-password-file {}",
        key.display(),
        password.display()
    );
    let store = of(run(&line, &ENOUGH));
    assert_eq!((store.prefix.as_str(), store.lease), ("a:b", Duration::from_secs(22)));
    assert!(store.seals.is_some() && store.server.address.has_password());
    assert!(!format!("{store:?}").contains("5ec2e7"), "{store:?}");
    let env = [ENOUGH[0], ENOUGH[1], ("WECHAT_SIDECAR_STORE", "rediss://me:5ec2e7@redis.example.com")];
    let store = of(run("", &env));
    assert!(store.server.address.has_password() && store.server.roots.is_none());
}

#[test]
fn what_a_store_on_redis_cannot_be_is_told_without_its_password() {
    let files = Files::new();
    let file = |name: &str, text: &str| files.write(name, text).display().to_string();
    let password = file("password", "5ec2e7");
    let ca = file("ca", &ca_pem());
    let broken = file("broken", "5ec2e7\n");
    for (line, parts) in [
        ("--store redis://me:5ec2e7@127.0.0.1".to_owned(), ["command line", "WECHAT_SIDECAR_STORE"]),
        ("--store me:5ec2e7@127.0.0.1".to_owned(), ["no such store", "redis://host:6379"]),
        ("--store redis:me:5ec2e7@127.0.0.1".to_owned(), ["no URL", "redis://host:6379"]),
        ("--store unix:///s?user=me&pass=5ec2e7".to_owned(), ["query", "unix://user:password@/path"]),
        ("--store rediss://127.0.0.1#insecure".to_owned(), ["insecure", "leave it out"]),
        (format!("--store redis://127.0.0.1 --store-ca-file {ca}"), ["store_ca_file", "rediss://"]),
        (
            format!("--store redis://127.0.0.1 --store-key-file {broken}"),
            ["line 1", "openssl rand -base64 32"],
        ),
        (
            "--store redis://127.0.0.1 --store-password-file /nonexistent".to_owned(),
            ["cannot be read", "permissions"],
        ),
        ("--store redis://127.0.0.1 --store-prefix {x}".to_owned(), ["store_prefix", "1 to 64"]),
        (format!("--store-password-file {password}"), ["store is memory", "leave store_password_file out"]),
        ("--store-prefix staging".to_owned(), ["store is memory", "leave store_prefix out"]),
    ] {
        contains(&refused(&line, &ENOUGH), &["There is 1 problem", parts[0], parts[1]]);
    }
    let env = [ENOUGH[0], ENOUGH[1], ("WECHAT_SIDECAR_STORE", "redis://:5ec2e7@127.0.0.1")];
    let twice = refused(&format!("--store-password-file {password}"), &env);
    contains(&twice, &["given twice", "environment variable WECHAT_SIDECAR_STORE", "keep one"]);
}

fn ca_pem() -> String {
    let files = Files::new();
    let folder = files.path("ca");
    let hosts = Hosts::new(&Origin::parse("https://api.weixin.qq.com").unwrap(), Vec::new());
    ca::make(&folder, &hosts).unwrap();
    std::fs::read_to_string(folder.join(ca::CERTIFICATE)).unwrap()
}

#[test]
fn what_works_but_should_be_known_is_a_warning() {
    for (line, part) in [
        ("--listen 0.0.0.0:7200", "whoever reaches it can act as the account"),
        ("--token-endpoint token", "run one replica"),
        ("--token-endpoint token --store redis://127.0.0.1", "give every replica this store"),
        ("--store redis://redis.example.com", "use rediss://, or encrypt the token"),
        ("--log info,hyper=trace", "log opens hyper beyond info"),
    ] {
        let warnings = run(line, &ENOUGH).warnings;
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        contains(&warnings[0], &[part]);
    }
    let files = Files::new();
    let file = files.toml(format!("secret = '{SECRET}'"));
    assert!(run(&file, &ENOUGH[..1]).warnings.is_empty());
    std::fs::set_permissions(files.path("sidecar.toml"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let warnings = run(&file, &ENOUGH[..1]).warnings;
    contains(&warnings[0], &["every user of this machine may read it", "chmod o-r"]);
}

#[test]
fn a_config_never_prints_its_secret() {
    let invocation = invoke("", &ENOUGH).unwrap();
    let text = format!("{invocation:?} {invocation:#?}");
    assert!(text.contains(APPID) && !text.contains("5ec2e7"), "{text}");
}

#[test]
fn the_manual_and_completions_are_printed_and_offer_no_secret() {
    let told = |line: &str| match invoke(line, &[]) {
        Err(Stop::Told(text)) => text,
        other => panic!("{line}: {other:?}"),
    };
    contains(&told("man"), &[".TH wechat-sidecar 1", "wechat\\-sidecar\\-run(1)"]);
    for sub in command().get_subcommands() {
        let page = told(&format!("man {}", sub.get_name()));
        contains(&page, &[&format!(".TH wechat-sidecar-{} 1", sub.get_name()), ".SH DESCRIPTION"]);
        assert!(!page.contains("\\-\\-secret\\fR"), "{page}");
    }
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = told(&format!("completions {shell}"));
        assert!(script.contains("secret-file") && !script.contains("--secret "), "{shell}");
    }
    contains(&refused("man banana", &[]), &["banana", "completions"]);
    contains(&refused("completions", &[]), &["<SHELL>"]);
}

#[test]
fn wait_needs_the_admin_port_only() {
    let wait = |line: &str, env: &[(&str, &str)]| match invoke(line, env) {
        Ok(Invocation::Wait(wait)) => (wait.admin.to_string(), wait.timeout.as_secs()),
        other => panic!("{line}: {other:?}"),
    };
    assert_eq!(wait("wait", &[]), ("127.0.0.1:7201".into(), 60));
    assert_eq!(wait("wait --timeout 0", &[("WECHAT_SIDECAR_TYPO", "x")]), ("127.0.0.1:7201".into(), 0));
    assert_eq!(wait("wait", &[("WECHAT_SIDECAR_ADMIN_LISTEN", "0.0.0.0:9")]).0, "127.0.0.1:9");
    assert_eq!(wait("wait --admin-listen [::]:9", &[]).0, "[::1]:9");
    let files = Files::new();
    let file =
        files.toml("admin_listen = '127.0.0.1:8'\nworkers = 'many'\ntypo = 1\n[[account]]\nappid = 1\n");
    assert_eq!(wait(&format!("wait {file}"), &[]).0, "127.0.0.1:8");
    contains(&refused("wait --admin-listen 127.0.0.1:0", &[]), &["127.0.0.1:0", "the sidecar logged"]);
    contains(&refused(&format!("wait {}", files.toml("admin_listen = true")), &[]), &["It is a boolean"]);
    contains(&refused("wait --config /nonexistent", &[]), &["cannot be read"]);
    for (line, path) in [("wait", "/readyz"), ("wait --for ready", "/readyz"), ("wait --for live", "/livez")]
    {
        assert!(
            matches!(invoke(line, &[]), Ok(Invocation::Wait(wait)) if wait.probe.path() == path),
            "{line}"
        );
    }
    contains(&refused("wait --for ever", &[]), &["--for", "ready or live"]);
}

#[test]
fn simulate_and_demo_need_nothing_at_all() {
    let sidecars =
        [("WECHAT_SIDECAR_LISTEN", "nonsense"), ("WECHAT_SIDECAR_LOG", "debug"), ("WECHAT_SIDECAR_X", "1")];
    let Ok(Invocation::Simulate(sim)) = invoke("simulate", &sidecars) else { panic!() };
    assert_eq!((sim.listen.port(), sim.control_listen.port(), sim.tls_listen), (7300, 7301, None));
    assert_eq!(sim.appid.as_str(), APPID);
    assert_eq!(sim.app_secret.expose(), "0123456789abcdef0123456789abcdef");
    assert_eq!((sim.token_length, sim.expires_in.as_secs()), (157, 7200));
    assert_eq!(sim.telemetry.filter, "debug");
    let line = "simulate --listen [::1]:0 --tls-listen 127.0.0.1:0 --ca-out ca.pem --appid wx9 --app-secret s --token-length 512 --expires-in 1";
    let Ok(Invocation::Simulate(sim)) = invoke(line, &[]) else { panic!() };
    assert_eq!((sim.appid.as_str(), sim.app_secret.expose(), sim.token_length), ("wx9", "s", 512));
    assert_eq!(sim.ca_out.as_deref(), Some(Path::new("ca.pem")));
    contains(&refused("simulate --ca-out ca.pem", &[]), &["--tls-listen"]);
    contains(&refused("simulate --expires-in 2h --token-length 1", &[]), &["There are 2 problems"]);
    let Ok(Invocation::Demo(demo)) = invoke("demo --log warn", &sidecars) else { panic!() };
    assert_eq!(demo.telemetry, telemetry::Config { filter: "warn".into(), format: Format::Text });
}

#[test]
fn a_ca_is_for_the_hosts_that_run_would_speak_for() {
    let Ok(Invocation::Ca(ca)) = invoke("ca", &[]) else { panic!() };
    assert_eq!((ca.folder.as_path(), ca.hosts.certified().len()), (Path::new("./wechat-sidecar-ca"), 5));
    let files = Files::new();
    let env = [("WECHAT_SIDECAR_UPSTREAM", "https://gateway.example.com"), ("WECHAT_SIDECAR_BANANA", "1")];
    let file = files.toml("upstream_hosts = 'other.example.com'\nappid = 'wx1'\nsecret = 'x'");
    let dir = files.path("ca");
    let line = format!("{file} --dir {}", dir.display());
    let Ok(Invocation::Ca(ca)) = invoke(&format!("ca {line}"), &env) else { panic!() };
    assert_eq!(ca.hosts.certified()[5..], ["gateway.example.com", "other.example.com"]);
    ca::make(&ca.folder, &ca.hosts).unwrap();
    let mut env = ENOUGH.to_vec();
    env.extend([
        ("WECHAT_SIDECAR_UPSTREAM", "https://gateway.example.com"),
        ("WECHAT_SIDECAR_UPSTREAM_HOSTS", "other.example.com"),
    ]);
    let config = run(&format!("--ca-dir {} --tls-listen 127.0.0.1:443", dir.display()), &env);
    assert_eq!(config.hosts, ca.hosts);
    assert_eq!(config.upstream.origin.reach(), Reach::NameElsewhere);
    assert_eq!(config.source.origin.reach(), Reach::NameElsewhere);
    contains(
        &refused("--listen 127.0.0.1:443 --tls-listen 127.0.0.1:443", &ENOUGH),
        &["There are 2 problems", "the same port", "there is no ca_dir"],
    );
    contains(&refused("ca --upstream-hosts *.qq.com", &[]), &["There is 1 problem", "wildcard"]);
}
