//! The table of settings: its names, its forms, and that the README says the same.

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
