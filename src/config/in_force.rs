//! The settings in force, as they may be shown: key, value, and where each was written.
//!
//! SECURITY: a secret is `***`, a password in a URL is hidden.

use super::Config;
use super::file::{Table, Written};
use super::problem::{Place, shown};
use super::settings::{ACCOUNT_KEYS, Fallback, Kind, SETTINGS, Setting, Verb, get};
use crate::admin::status::InForce;

/// What `run` was told and what holds by default; then, account by account, what the file's tables say.
pub(super) fn in_force(values: &Table, accounts: &[(Table, Place)], config: &Config) -> Vec<InForce> {
    let mut all = Vec::new();
    for setting in SETTINGS.iter().filter(|s| s.commands.contains(&Verb::Run) && s.key != "config") {
        match (values.get(setting.key), setting.default) {
            (Some(written), _) => all.push(told(setting, setting.key.to_owned(), written)),
            (None, Fallback::Text(text)) => all.push(by_default(setting.key, text.to_owned())),
            (None, Fallback::Found(_)) if setting.key == "workers" => {
                all.push(by_default(setting.key, config.server.workers.to_string()));
            }
            (None, Fallback::Found(_) | Fallback::None) => {}
        }
    }
    for (n, (table, _)) in accounts.iter().enumerate() {
        for key in ACCOUNT_KEYS {
            if let Some(written) = table.get(key) {
                all.push(told(get(key), format!("account {}: {key}", n + 1), written));
            }
        }
    }
    all
}

fn told(setting: &Setting, key: String, written: &Written) -> InForce {
    let value = if setting.is_secret() {
        "***".to_owned()
    } else if setting.kind == Kind::Header {
        // SECURITY: who knows the value is taken for the app.
        format!("{}: ***", written.text.split(':').next().unwrap_or_default().trim())
    } else {
        let shown = shown(&written.text);
        // Quotes are for messages, where a value stands in a sentence.
        shown.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(&shown).to_owned()
    };
    InForce { key, value, origin: written.place.to_string() }
}

fn by_default(key: &str, value: String) -> InForce {
    InForce { key: key.to_owned(), value, origin: "default".to_owned() }
}
