//! Where tokens come from and who is let in at the admin port: what goes together, and what is told when it does not.

use super::*;

const KEY: &str = "0f1e2d3c-followers-key";

/// Files that settings may name.
fn house() -> Files {
    let files = Files::new();
    files.write("key", format!("{KEY}\n"));
    files.write("keys", format!("{KEY} {APPID},wxnotours\n"));
    let authority = rcgen::generate_simple_self_signed(vec!["central.example.com".to_owned()]).unwrap();
    files.write("cert.pem", authority.cert.pem());
    files.write("cert.key", authority.signing_key.serialize_pem());
    files
}

/// The command line, with `@name` for a file's path.
fn line(files: &Files, line: &str) -> String {
    line.split(' ')
        .map(|word| match word.strip_prefix('@') {
            Some(name) => files.path(name).display().to_string(),
            None => word.to_owned(),
        })
        .collect::<Vec<_>>()
        .join(" ")
}

fn told(files: &Files, text: &str, env: &[(&str, &str)], parts: &[&str]) {
    let told = refused(&line(files, text), env);
    contains(&told, &["There is 1 problem", "To fix it: "]);
    contains(&told, parts);
    assert!(!told.contains("0f1e2d3c"), "{told}");
}

#[test]
fn with_a_central_server_no_secret_is_needed() {
    let files = house();
    let central = "--central https://tokens.example.com:7201 --central-key-file @key";
    let config = run(&line(&files, central), &ENOUGH[..1]);
    assert_eq!((config.accounts[0].secret.clone(), config.accounts[0].secret_origin.clone()), (None, None));
    let Supply::Central(source) = &config.supply else { panic!() };
    assert_eq!(
        (source.origin.to_string(), source.key.expose()),
        ("https://tokens.example.com:7201".into(), KEY)
    );
    assert!(!format!("{config:?}").contains("0f1e2d3c"));
    assert!(config.token_source(&config.accounts[0]).is_ok());
    // One that is there is for login calls.
    let config = run(&line(&files, central), &ENOUGH);
    assert_eq!(config.accounts[0].secret.as_ref().unwrap().expose(), SECRET);
    assert!(matches!(config.supply, Supply::Central(_)));
    let classic = run(&line(&files, &format!("{central} --token-endpoint token")), &ENOUGH);
    assert!(classic.warnings.is_empty(), "it is the server's affair: {:?}", classic.warnings);
    // A file's accounts, some with a secret, some without; a wrong one is still a problem.
    let toml = format!("[[account]]\nappid = 'wx1'\n[[account]]\nappid = 'wx2'\nsecret = '{SECRET}'\n");
    let config = run(&line(&files, &format!("{} {central}", files.toml(toml))), &[]);
    let secrets: Vec<_> = config.accounts.iter().map(|account| account.secret.is_some()).collect();
    assert_eq!(secrets, [false, true]);
    told(&files, &format!("{central} --secret-file @absent"), &ENOUGH[..1], &["absent cannot be read"]);
    assert!(matches!(run("", &ENOUGH).supply, Supply::WeChat));
}

#[test]
fn what_does_not_go_together_is_told() {
    let files = house();
    let env = &ENOUGH[..];
    let central = "--central https://tokens.example.com:7201";
    for (text, parts) in [
        (central.to_owned(), &["central_key_file (not set)", "takes no request without a key"][..]),
        ("--central-key-file @key".to_owned(), &["there is none", "set central"]),
        ("--central-ca-file @cert.pem".to_owned(), &["there is none", "set central"]),
        ("--central http://tokens.example.com --central-key-file @key".to_owned(), &["loopback"]),
        ("--central https://tokens.example.com/v1 --central-key-file @key".to_owned(), &["a path"]),
        (format!("{central} --central-key-file @absent"), &["absent cannot be read"]),
        (format!("{central} --central-key-file {KEY}"), &["looks like a key"]),
        ("--central-keys-file @absent".to_owned(), &["absent cannot be read"]),
        ("--central-keys-file @key".to_owned(), &["line 1", "without an appid"]),
        (format!("--operator-keys-file {KEY}"), &["looks like a key"]),
        ("--role follower".to_owned(), &["this process's own memory", "set store"]),
        ("--role leader".to_owned(), &["fetcher or follower"]),
        (
            format!("--role follower {central} --central-key-file @key"),
            &["asks nobody", "leave one of them out"],
        ),
        (
            format!("{central} --central-key-file @key --token-proxy http://proxy:3128"),
            &["nothing is fetched from WeChat"],
        ),
        ("--token-proxy proxy:3128".to_owned(), &["does not begin with http://"]),
        (
            "--token-proxy http://me:0f1e2d3c@proxy:3128".to_owned(),
            &["It has a password", "WECHAT_SIDECAR_TOKEN_PROXY"],
        ),
        (
            "--upstream http://127.0.0.1:1 --token-proxy http://proxy:3128".to_owned(),
            &["in clear", "a proxy on this machine"],
        ),
        (
            "--admin-cert-file @cert.pem".to_owned(),
            &["admin_key_file (not set)", "of no use without its key"],
        ),
        ("--admin-key-file @cert.key".to_owned(), &["admin_cert_file (not set)"]),
        ("--admin-cert-file @cert.key --admin-key-file @cert.key".to_owned(), &["has no certificate"]),
        ("--admin-cert-file @cert.pem --admin-key-file @cert.pem".to_owned(), &["private key"]),
        ("--admin-hosts a,,b".to_owned(), &["admin_hosts"]),
        (
            "--admin-listen 0.0.0.0:7201 --central-keys-file @keys".to_owned(),
            &["central_keys_file (flag", "in clear", "admin_cert_file"],
        ),
        (
            "--admin-listen [::]:7201 --operator-keys-file @keys".to_owned(),
            &["operator_keys_file (flag", "in clear"],
        ),
    ] {
        told(&files, &text, env, parts);
    }
}

#[test]
fn a_proxy_with_a_password_comes_from_the_environment_or_a_file() {
    let mut env = ENOUGH.to_vec();
    env.push(("WECHAT_SIDECAR_TOKEN_PROXY", "http://me:0f1e2d3c@proxy.example.com:3128"));
    let config = run("", &env);
    let proxy = config.source_for(&config.accounts[0]).proxy.unwrap();
    assert_eq!(proxy.to_string(), "http://proxy.example.com:3128");
    assert!(!format!("{config:?}").contains("0f1e2d3c"));
    env[2].1 = "http://me:0f1e2d3c@proxy.example.com";
    let text = refused("", &env);
    assert!(text.contains("host and port") && !text.contains("0f1e2d3c"), "{text}");
    run("--token-proxy http://proxy.example.com:3128", &ENOUGH);
    run("--upstream http://127.0.0.1:1 --token-proxy http://127.0.0.1:3128", &ENOUGH);
}

#[test]
fn keys_beyond_this_machine_take_a_certificate_and_what_is_odd_about_them_is_a_warning() {
    let files = house();
    let keys = "--central-keys-file @keys --operator-keys-file @keys";
    let config = run(&line(&files, keys), &ENOUGH);
    assert!(config.admin.central_keys.is_some() && config.admin.operator_keys.is_some());
    assert_eq!(config.warnings.len(), 2);
    contains(&config.warnings[0], &["central_keys_file names wxnotours, which is no account"]);
    let tls = "--admin-listen 0.0.0.0:7201 --admin-cert-file @cert.pem --admin-key-file @cert.key --admin-hosts Central.example.com";
    let config = run(&line(&files, &format!("{keys} {tls}")), &ENOUGH);
    assert!(config.admin.identity.is_some());
    assert_eq!(config.admin.hosts, ["central.example.com"]);
    std::fs::set_permissions(files.path("keys"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let config = run(&line(&files, "--central-keys-file @keys"), &ENOUGH);
    contains(&config.warnings.join("\n"), &["every user of this machine may read the keys", "chmod o-r"]);
}
