//! The settings of the bridge: what may stand there, and what is told of it.

use super::*;

const STORE: &str = "--bridge-store redis://apps.example:6379";

fn bridge_of(account: &account::Config) -> Vec<&'static str> {
    account.bridge.iter().map(token::bridge::format::Format::name).collect()
}

#[test]
fn a_bridge_is_asked_for_by_name_and_says_so_at_every_start() {
    assert!(run("", &ENOUGH).bridge.is_none());
    let config = run(&format!("--bridge wxjava-mp,wechatpy=app {STORE} --bridge-adopt true"), &ENOUGH);
    assert_eq!(bridge_of(&config.accounts[0]), ["wxjava-mp", "wechatpy"]);
    assert!(config.bridge.unwrap().adopt);
    assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
    contains(
        &config.warnings[0],
        &["REAL access token", APPID, "apps.example", "app:wx0123456789abcdef_access_token"],
    );
    let with_the_store = run("--bridge wxjava-mp --store redis://replicas.example", &ENOUGH);
    assert!(with_the_store.bridge.unwrap().server.is_none());
    contains(&with_the_store.warnings.concat(), &["REAL access token", "replicas.example:6379/0"]);
    let own = "--bridge easywechat=official_account.access_token.{appid}.{secret}.0";
    let config = run(&format!("{own} {STORE}"), &ENOUGH);
    contains(&config.warnings[0], &["THE APPSECRET ITSELF STANDS IN A KEY", "setKey()"]);
    assert!(!config.warnings[0].contains("5ec2e7"));
}

#[test]
fn an_account_has_its_own_bridge_the_top_levels_or_none() {
    let files = Files::new();
    let file = files.toml(
        [
            "bridge = 'silenceper-mp'",
            "bridge_store = 'redis://:pw@apps.example'",
            "bridge_adopt = true",
            "[[account]]\nappid = 'wx1'\nsecret = 's'",
            "[[account]]\nappid = 'wx2'\nsecret = 's'\nbridge = 'none'",
            "[[account]]\nappid = 'wx3'\nsecret = 's'\nbridge = 'powerwechat'",
        ]
        .join("\n"),
    );
    let config = run(&file, &[]);
    let bridges: Vec<_> = config.accounts.iter().map(bridge_of).collect();
    assert_eq!(bridges, [vec!["silenceper-mp"], vec![], vec!["powerwechat"]]);
    let warnings = config.warnings.iter().filter(|warning| warning.contains("REAL")).count();
    assert_eq!(warnings, 2);
    assert!(!config.warnings.concat().contains("pw@"), "{:?}", config.warnings);
}

#[test]
fn a_bridge_that_cannot_work_is_refused_with_a_remedy() {
    for (line, parts) in [
        ("--bridge wxjava-mp", ["no Redis that it leads to", "redis://host:6379"]),
        (STORE, ["no account has one", "leave bridge_store out"]),
        ("--bridge-adopt true", ["no account has one", "leave bridge_adopt out"]),
        (&format!("--bridge wxjava {STORE}"), ["names no format that is known", "wxjava-mp, wxjava-miniapp"]),
        (&format!("--bridge easywechat {STORE}"), ["keeps the AppSecret in its key", "easywechat=KEY"]),
        (
            &format!("--bridge wxjava-mp,wxjava-miniapp=wx {STORE}"),
            ["write one key", "leave one of them out"],
        ),
        (
            &format!("--bridge wxjava-mp --bridge-adopt yes {STORE}"),
            ["not one of the words", "give false or true"],
        ),
        ("--bridge wxjava-mp --bridge-store http://x", ["not one of Redis", "write redis://host:6379"]),
        (
            "--bridge wxjava-mp --bridge-store redis://:pw@x",
            ["cannot stand in a flag", "WECHAT_SIDECAR_BRIDGE_STORE"],
        ),
    ] {
        let told = refused(line, &ENOUGH);
        contains(&told, &["There is 1 problem"]);
        contains(&told, &parts);
        assert!(!told.contains("pw@"), "{told}");
    }
}

#[test]
fn an_appsecret_within_a_key_is_not_shown() {
    let line = format!("--bridge easywechat=official_account.access_token.{APPID}.{SECRET}.0 {STORE}");
    contains(&refused(&line, &ENOUGH), &["looks like an AppSecret", "write {secret} in its place"]);
}
