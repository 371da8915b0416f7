//! Gathers what was written, wherever it was written: flags beat the environment, which beats the file.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use zeroize::Zeroizing;

use super::file::{self, Table, Written, unknown};
use super::problem::{Place, Problem};
use super::settings::{ENV_PREFIX, SETTINGS, Verb, get};
use crate::credentials::wipe;

/// Flags as they were given: the setting's key and the text.
pub type Flags = Vec<(&'static str, String)>;

/// Everything that was written.
#[derive(Default)]
pub(super) struct Sources {
    pub(super) values: Table,
    /// The file's `[[account]]` tables and where each begins.
    pub(super) accounts: Vec<(Table, Place)>,
    /// The file could not be read, so what seems missing may stand there.
    pub(super) file_failed: bool,
    /// Variables of ours that are set to nothing, which counts as not set.
    pub(super) empty_env: Vec<String>,
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<String>,
}

impl Sources {
    /// For `run` and `check`, a name that is no setting is a problem. The other commands take what they need and
    /// leave the rest to those.
    pub(super) fn gather(
        verb: Verb,
        flags: Flags,
        env: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Self {
        let strict = matches!(verb, Verb::Run | Verb::Check);
        let takes = |key: &str| get(key).commands.contains(&verb);
        let mut sources = Self::default();
        for (key, text) in flags {
            sources.flag(key, text);
        }
        for (name, value) in env {
            sources.variable(&name, value, strict, takes);
        }
        let named = sources.values.get("config").map(|w| (w.text.to_string(), w.place.clone()));
        if let Some((path, place)) = named {
            match file::read(Path::new(&path), &place) {
                Ok(file) => sources.file(file, strict, takes),
                Err(problem) => {
                    sources.file_failed = true;
                    sources.problems.push(*problem);
                }
            }
        }
        sources
    }

    fn flag(&mut self, key: &'static str, text: String) {
        let setting = get(key);
        let place = Place::Flag(setting.flag());
        if setting.is_flag() {
            self.values.insert(key, Written { text: Zeroizing::new(text), place });
        } else {
            drop(Zeroizing::new(text));
            self.problems.push(Problem::new(
                key,
                place,
                "A secret cannot be a flag: every user of this machine may read a command line.",
                format!("set {}, or name a file that holds it with --secret-file", setting.env()),
            ));
        }
    }

    fn variable(&mut self, name: &OsStr, value: OsString, strict: bool, takes: impl Fn(&str) -> bool) {
        let Some(key) = name.as_bytes().strip_prefix(ENV_PREFIX.as_bytes()) else { return };
        let key = String::from_utf8_lossy(key);
        let name = name.to_string_lossy().into_owned();
        if value.is_empty() {
            self.empty_env.push(name);
            return;
        }
        let known = SETTINGS.iter().find(|s| s.is_env() && s.env() == name);
        let Some(setting) = known else {
            if strict && !is_service_link(&key, &value) {
                let place = Place::Env(name);
                let names: Vec<_> = SETTINGS.iter().filter(|s| s.is_env()).map(|s| s.key).collect();
                let mut problem = unknown(&key, place, names.iter().copied());
                problem.remedy = match super::settings::nearest(&key, names.iter().copied()) {
                    Some(near) => format!("did you mean {}?", get(near).env()),
                    None => "unset it; `wechat-sidecar run --help` lists the settings".to_owned(),
                };
                self.problems.push(problem);
            }
            return;
        };
        if !takes(setting.key) {
            return;
        }
        match value.into_string() {
            Ok(text) => {
                let written = Written { text: Zeroizing::new(text), place: Place::Env(name) };
                self.values.entry(setting.key).or_insert(written);
            }
            Err(value) => {
                let mut bytes = value.into_encoded_bytes();
                wipe(&mut bytes);
                self.problems.push(Problem::new(
                    setting.key,
                    Place::Env(name),
                    "Its value is not UTF-8 text.",
                    "set it to plain text",
                ));
            }
        }
    }

    fn file(&mut self, file: file::File, strict: bool, takes: impl Fn(&str) -> bool) {
        for (key, written) in file.values {
            if takes(key) {
                self.values.entry(key).or_insert(written);
            }
        }
        let mine = |problem: &Problem| {
            strict || SETTINGS.iter().any(|s| s.key == problem.key && s.is_file_key() && takes(s.key))
        };
        self.problems.extend(file.problems.into_iter().filter(mine));
        if strict {
            self.accounts = file.accounts;
            self.warnings.extend(file.warnings);
        }
    }
}

/// Whether Kubernetes put this variable there, as it does into every pod of a namespace for a Service named
/// `wechat-sidecar` (or `wechat-sidecar-admin`): `…_SERVICE_HOST`, `…_SERVICE_PORT[_NAME]`, `…_PORT` (a URL) and
/// `…_PORT_7200_TCP[_PROTO|_PORT|_ADDR]`.
/// <https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables>
fn is_service_link(key: &str, value: &OsStr) -> bool {
    let key = format!("_{key}");
    let names_a_port = |rest: &str| {
        let mut parts = rest.split('_');
        parts.next().is_some_and(|port| port.parse::<u16>().is_ok())
            && matches!(parts.next(), Some("TCP" | "UDP" | "SCTP"))
            && matches!(parts.next(), None | Some("PROTO" | "PORT" | "ADDR"))
            && parts.next().is_none()
    };
    key.ends_with("_SERVICE_HOST")
        || key.ends_with("_SERVICE_PORT")
        || key.contains("_SERVICE_PORT_")
        || key.match_indices("_PORT_").any(|(at, dash)| names_a_port(&key[at + dash.len()..]))
        // A person's own WECHAT_SIDECAR_PORT=7200 is a mistake to be told about; Kubernetes writes a URL.
        || (key.ends_with("_PORT") && value.to_string_lossy().contains("://"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kubernetes_injects_is_known_from_what_a_person_sets() {
        for (key, value) in [
            ("SERVICE_HOST", "10.0.0.11"),
            ("SERVICE_PORT", "7200"),
            ("SERVICE_PORT_HTTP", "7200"),
            ("PORT", "tcp://10.0.0.11:7200"),
            ("PORT_7200_TCP", "tcp://10.0.0.11:7200"),
            ("PORT_7200_TCP_PROTO", "tcp"),
            ("PORT_7200_TCP_PORT", "7200"),
            ("PORT_7200_TCP_ADDR", "10.0.0.11"),
            ("PORT_53_UDP_ADDR", "10.0.0.11"),
            ("ADMIN_SERVICE_HOST", "10.0.0.12"),
            ("ADMIN_PORT", "tcp://10.0.0.12:7201"),
            ("ADMIN_PORT_7201_TCP_ADDR", "10.0.0.12"),
        ] {
            assert!(is_service_link(key, value.as_ref()), "{key}");
        }
        for (key, value) in [
            ("PORT", "7200"),
            ("SECRT", "tcp://x"),
            ("PORT_HTTP", "1"),
            ("SERVICE", "x"),
            ("PORT_7200_TCP_NAME", "x"),
            ("PORT_7200", "x"),
        ] {
            assert!(!is_service_link(key, value.as_ref()), "{key}");
        }
    }
}
