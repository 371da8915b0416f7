//! Lists, keys, sockets, limits and pins, as a user writes them.

use http::Method;

use super::*;

/// Whether an account's apps may call this.
fn may(account: &account::Config, call: &str) -> bool {
    let (method, path) = call.split_once(' ').unwrap();
    account.terms.policy.check(&method.parse::<Method>().unwrap(), path).is_ok()
}

#[test]
fn lists_stand_in_flags_as_text_and_in_a_file_as_arrays() {
    let files = Files::new();
    let toml = files.toml("allow = ['GET /a/**', 'default']\ndeny = \"/cgi-bin/menu/**, /a/b\"\nlisten_hosts = ['one', 'two']\n");
    for config in [run(&toml, &ENOUGH), {
        let mut env = ENOUGH.to_vec();
        env.extend([
            ("WECHAT_SIDECAR_ALLOW", "GET /a/**,default"),
            ("WECHAT_SIDECAR_DENY", "/cgi-bin/menu/**,/a/b"),
            ("WECHAT_SIDECAR_LISTEN_HOSTS", "one,two"),
        ]);
        run("", &env)
    }] {
        let account = &config.accounts[0];
        assert!(may(account, "GET /a/c") && may(account, "POST /cgi-bin/user/get"));
        assert!(
            !may(account, "POST /a/c") && !may(account, "GET /a/b") && !may(account, "GET /cgi-bin/menu/get")
        );
        assert_eq!(config.proxy.gate.names.unwrap().listen, ["one", "two"]);
    }
}

#[test]
fn an_account_has_its_own_lists_or_those_of_all() {
    let files = Files::new();
    let config = run(
        &files.toml(format!(
            "allow = ['/wxa/**']\nrates = '10/s /wxa/x'\nmax_account_calls = 7\n\
             [[account]]\nappid = 'wx1'\nsecret = '{SECRET}'\n\
             [[account]]\nappid = 'wx2'\nsecret = '{SECRET}'\nallow = ['/cgi-bin/**']\ndeny = ['/cgi-bin/menu/**']\nmax_account_calls = 3\nrates = ['5/m /cgi-bin/x']"
        )),
        &[],
    );
    let [one, two] = &config.accounts[..] else { panic!() };
    assert!(may(one, "GET /wxa/x") && !may(one, "GET /cgi-bin/x"));
    assert!(!may(two, "GET /wxa/x") && may(two, "GET /cgi-bin/x") && !may(two, "GET /cgi-bin/menu/get"));
    assert_eq!((one.terms.calls.most(), two.terms.calls.most()), (7, 3));
    assert!(format!("{:?}", one.terms.rates).contains("/wxa/x"));
    assert!(format!("{:?}", two.terms.rates).contains("/cgi-bin/x"));
}

#[test]
fn two_accounts_of_the_same_lists_count_apart() {
    let files = Files::new();
    let text =
        ["wx1", "wx2"].map(|appid| format!("[[account]]\nappid = '{appid}'\nsecret = '{SECRET}'\n")).concat();
    let config = run(&files.toml(format!("max_account_calls = 1\nrates = '1/d /a'\n{text}")), &[]);
    let _taken = config.accounts[0].terms.calls.take().unwrap();
    assert!(config.accounts[1].terms.calls.take().is_some());
    for account in &config.accounts {
        assert_eq!(account.terms.rates.turn(&Method::GET, "/a", Duration::ZERO), Ok(Duration::ZERO));
    }
}

#[test]
fn a_list_that_cannot_be_used_is_told_once_with_its_place() {
    let files = Files::new();
    let text = refused(
        &files.toml(format!(
            "allow = ['cgi-bin/x']\nrates = '60 /a'\n[[account]]\nappid = 'wx1'\nsecret = '{SECRET}'\ndeny = ['/a/**/b']\n[[account]]\nappid = 'wx2'\nsecret = '{SECRET}'\nmax_account_calls = 0\n"
        )),
        &[],
    );
    contains(
        &text,
        &[
            "There are 4 problems",
            "allow = \"cgi-bin/x\" (file ",
            "write it as POST /cgi-bin/message/**",
            "rates = \"60 /a\" (file ",
            "write it as 60/m /wxa/getwxacodeunlimit",
            "deny = \"/a/**/b\" (file ",
            "[[account]] number 1",
            "max_account_calls = \"0\" (file ",
        ],
    );
    contains(&refused("--allow=", &ENOUGH), &["allow = \"\" (flag --allow)", "leave it out"]);
    contains(&refused(&files.toml("allow = [['/a']]"), &ENOUGH), &["allow (file", "not text"]);
    contains(&refused(&files.toml("workers = [1]"), &ENOUGH), &["workers (file", "It is an array, not text"]);
}

#[test]
fn a_unix_socket_is_named_in_place_of_an_address() {
    let files = Files::new();
    let config = run("--listen unix:/run/sidecar.sock --listen-mode 0660 --listen-uids 1000,1001", &ENOUGH);
    let unix = config.server.unix.unwrap();
    assert_eq!((unix.path.to_str().unwrap(), unix.mode), ("/run/sidecar.sock", 0o660));
    assert_eq!(unix.uids, Some(vec![1000, 1001]));
    assert!(config.proxy.gate.names.is_none(), "no browser gets there");
    let unix = run(&files.toml("listen = 'unix:sidecar.sock'"), &ENOUGH).server.unix.unwrap();
    assert_eq!((unix.path, unix.mode, unix.uids), (files.path("sidecar.sock"), 0o600, None));
    for (line, parts) in [
        ("--listen-mode 0600", &["listen_mode", "listen is none"][..]),
        ("--listen-uids 0", &["listen_uids", "listen is none"]),
        ("--listen unix: ", &["listen", "path"]),
        ("--listen unix:/a --listen-mode 888", &["listen_mode", "octal"]),
        ("--listen unix:/a --listen-mode 1777", &["listen_mode", "octal"]),
        ("--listen unix:/a --listen-uids root", &["listen_uids", "id -u"]),
    ] {
        contains(&refused(line, &ENOUGH), parts);
    }
    contains(
        &refused(&files.toml("listen = 'unix:/a'\nlisten_mode = 600"), &ENOUGH),
        &["listen_mode", "in quotes"],
    );
    let long = format!("--listen unix:/{}", "a".repeat(120));
    contains(&refused(&long, &ENOUGH), &["107 bytes", "give a shorter one"]);
}

#[test]
fn client_keys_are_for_accounts_that_are_here() {
    let files = Files::new();
    let keys = files.write("keys", format!("key-0123456789abcdef {APPID}\n"));
    let line = format!("--client-keys-file {}", keys.display());
    let config = run(&format!("{line} --listen 0.0.0.0:7200"), &ENOUGH);
    assert!(config.proxy.keyring.unwrap().clients().by_key("key-0123456789abcdef").is_some());
    assert!(config.proxy.gate.names.is_none(), "beyond loopback names are the network's affair");
    let [warning] = &config.warnings[..] else { panic!("{:?}", config.warnings) };
    contains(warning, &["client keys cross the network in clear"]);
    files.write("keys", "key-0123456789abcdef wxother\n");
    contains(&refused(&line, &ENOUGH), &["client_keys_file", "line 1: wxother is no account"]);
    files.write("keys", "short wx1\n");
    let text = refused(&line, &ENOUGH);
    contains(&text, &["line 1", "openssl rand"]);
    assert!(!text.contains("short wx1"), "{text}");
    contains(
        &refused("--client-keys-file /does/not/exist", &ENOUGH),
        &["client_keys_file", "cannot be read"],
    );
}

#[test]
fn a_required_header_is_one_that_only_the_app_would_send() {
    let files = Files::new();
    let toml = |header: &str| files.toml(format!("require_header = '{header}'"));
    let (name, value) = run(&toml("X-From-App:  yes sir "), &ENOUGH).proxy.gate.required.unwrap();
    assert_eq!((name.as_str(), value.to_str().unwrap()), ("x-from-app", "yes sir"));
    for bad in [
        "x-from-app",
        "x from app: yes",
        ": yes",
        "x:",
        "Host: a",
        "Content-Type: json",
        "user-agent: a",
        "x: \u{e9}",
    ] {
        contains(&refused(&toml(bad), &ENOUGH), &["require_header", "write it as"]);
    }
}

#[test]
fn pins_want_a_backup_and_tls() {
    const ONE: &str = "sha256/47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
    const TWO: &str = "sha256/LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=";
    let config = run(&format!("--upstream-pins {ONE},{TWO}"), &ENOUGH);
    assert!(config.warnings.is_empty());
    let (calls, fetches) = (format!("{:?}", config.upstream.roots), format!("{:?}", config.source.roots));
    assert!(calls == fetches && calls.contains("Pins([["), "calls and fetches alike: {calls}");
    let warnings = run(&format!("--upstream-pins {ONE}"), &ENOUGH).warnings;
    contains(&warnings.concat(), &["upstream_pins (flag --upstream-pins) has one pin", "add a backup"]);
    contains(&refused("--upstream-pins sha1/abcd", &ENOUGH), &["upstream_pins", "sha256/"]);
    let line = format!("--upstream http://127.0.0.1:1 --upstream-pins {ONE},{TWO}");
    contains(&refused(&line, &ENOUGH), &["upstream_pins", "no key to pin"]);
}
