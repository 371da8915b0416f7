//! Settings that nobody would write: whatever they are, they are taken or told, nothing panics, and no secret is seen.

use proptest::prelude::*;

use super::super::settings::SETTINGS;
use super::*;

/// A value that is what it is for some setting, or for none.
fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => proptest::sample::select(vec![
            "", "0", "1", "-1", "5s", "0s", "999999999999y", "1MiB", "18446744073709551615GiB", "127.0.0.1:0", "0.0.0.0:1",
            "[::1]:7200", "localhost", "https://api.weixin.qq.com", "http://127.0.0.1:1", "http://a:b@c/", "stable", "classic",
            "memory", "redis://x", "json", "text", "trace", "off", "/", "/dev/null", "/nonexistent", "wx0123456789abcdef", "auto",
        ]).prop_map(str::to_owned),
        2 => "[ -~]{0,30}",
        1 => "\\PC{0,12}",
        1 => Just(SECRET.to_owned()),
        1 => Just(format!("{SECRET} {SECRET}")),
    ]
}

fn key() -> impl Strategy<Value = String> {
    let known: Vec<_> = SETTINGS.iter().map(|setting| setting.key.to_owned()).collect();
    prop_oneof![6 => proptest::sample::select(known), 1 => "[a-z_]{1,12}", 1 => Just("secretx".to_owned())]
}

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out + "\""
}

/// A file of settings that is nearly one.
fn file() -> impl Strategy<Value = String> {
    let line = prop_oneof![
        8 => (key(), value()).prop_map(|(key, value)| format!("{key} = {}", quoted(&value))),
        1 => (key(), any::<i64>()).prop_map(|(key, number)| format!("{key} = {number}")),
        1 => (key(), value()).prop_map(|(key, value)| format!("{key} = {value}")),
        2 => Just("[[account]]".to_owned()),
        1 => Just(format!("appid = \"{APPID}\"\nsecret = \"{SECRET}\"")),
        1 => key().prop_map(|key| format!("[{key}]")),
        1 => Just("account = [1, {}]".to_owned()),
        1 => "[ -~\n]{0,20}",
    ];
    proptest::collection::vec(line, 0..8).prop_map(|lines| lines.join("\n"))
}

/// What is told of a configuration, taken or not: all of it, in every form.
fn told(flags: Flags, env: Vec<(OsString, OsString)>) -> String {
    match load(flags, env) {
        Ok(config) => format!("{config:?}"),
        Err(problems) => format!("{problems} {problems:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_file_of_anything_is_taken_or_told_and_shows_no_secret(
        text in prop_oneof![4 => file().prop_map(String::into_bytes), 1 => proptest::collection::vec(any::<u8>(), 0..200)],
    ) {
        let files = Files::new();
        let path = files.write("sidecar.toml", &text);
        let flags = vec![("config", path.display().to_string())];
        let told = told(flags, Vec::new());
        // Where a secret is the value of something else, or the name, it was no secret to whoever wrote it.
        let lines = String::from_utf8_lossy(&text);
        let elsewhere = lines.lines().any(|line| {
            line.contains("5ec2e7") && !line.trim_start().starts_with("secret =") && !line.starts_with("appid")
        });
        prop_assert!(elsewhere || !told.contains("5ec2e7"), "{}\n{}", lines, told);
    }

    #[test]
    fn variables_of_anything_are_taken_or_told_and_show_no_secret(
        variables in proptest::collection::vec((key(), value()), 0..8),
        bytes in proptest::collection::vec(any::<u8>(), 0..20),
        odd in key(),
    ) {
        let name = |key: &str| OsString::from(format!("WECHAT_SIDECAR_{}", key.to_uppercase()));
        let mut env: Vec<(OsString, OsString)> =
            variables.iter().map(|(key, value)| (name(key), value.into())).collect();
        env.push((name(&odd), OsString::from_vec(bytes)));
        env.push(("WECHAT_SIDECAR_SECRET".into(), SECRET.into()));
        // Files that are named may be anything; none of them is written.
        let elsewhere = variables.iter().any(|(key, value)| key != "secret" && value.contains("5ec2e7"));
        let told = told(Vec::new(), env);
        prop_assert!(elsewhere || !told.contains("5ec2e7"), "{:?}\n{}", variables, told);
    }
}
