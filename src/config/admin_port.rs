//! The admin port's own settings: its names, its certificate, and who holds a key to it.

use super::problem::Problem;
use super::reader::{self, Reader, take};
use super::values::{self, Refusal};
use crate::admin::{self, keys::Keys};
use crate::tls::ServerIdentity;

/// Reads them. `None` and problems when they do not go together.
pub(super) fn admin(reader: &mut Reader) -> Option<admin::Config> {
    let listen = reader.listen("admin_listen");
    let hosts = reader.value("admin_hosts", values::hosts).unwrap_or_default();
    let before = reader.problems.len();
    let identity = identity(reader);
    let central_keys = keys(reader, "central_keys_file");
    let operator_keys = keys(reader, "operator_keys_file");
    let quit = reader.switch("quit_endpoint").unwrap_or_default();
    let listen = listen?;
    if reader.problems.len() > before {
        return None;
    }
    for (key, keys) in [("central_keys_file", &central_keys), ("operator_keys_file", &operator_keys)] {
        if keys.is_some() && identity.is_none() && !listen.ip().is_loopback() {
            // SECURITY: a credential goes over TLS, or stays on this machine.
            let what = format!(
                "The admin port is reachable from other machines (admin_listen = {listen}), and keys and tokens would go to them in clear."
            );
            let remedy = "give the port a certificate with admin_cert_file and admin_key_file, or keep admin_listen on 127.0.0.1";
            reader.problems.push(Problem::new(key, reader.place(key), what, remedy));
        }
    }
    Some(admin::Config { listen, hosts, identity, central_keys, operator_keys, quit })
}

fn identity(reader: &mut Reader) -> Option<ServerIdentity> {
    const BOTH: [&str; 2] = ["admin_cert_file", "admin_key_file"];
    let is_set = BOTH.map(|key| reader.sources.values.contains_key(key));
    match is_set {
        [false, false] => None,
        [true, true] => {
            let key = reader.path(BOTH[1])?;
            let written = reader.sources.values.get(BOTH[0])?;
            take(&mut reader.problems, BOTH[0], written, |text| {
                let certificate = reader::path(text, &written.place)?;
                ServerIdentity::read(&certificate, &key).map_err(|told| Refusal::from_sentence(&told))
            })
        }
        [has_cert, _] => {
            let (set, missing) = if has_cert { (BOTH[0], BOTH[1]) } else { (BOTH[1], BOTH[0]) };
            reader.problems.push(Problem::new(
                missing,
                reader.place(missing),
                format!("{set} is set, and a certificate is of no use without its key, nor a key without its certificate."),
                format!("set {missing}, too, or leave {set} out"),
            ));
            None
        }
    }
}

fn keys(reader: &mut Reader, key: &str) -> Option<Keys> {
    let written = reader.sources.values.get(key)?;
    take(&mut reader.problems, key, written, |text| {
        let path = reader::path(text, &written.place)?;
        // SECURITY: a message about a file names its path, which here may be a key.
        if !text.contains('/') && text.len() >= 16 && !path.exists() {
            let what = "it looks like a key, not like the path of a file that holds some";
            return Err(Refusal { hide: true, ..Refusal::new(what, "name a file with one key a line") });
        }
        Keys::read(&path).map_err(|told| Refusal::from_sentence(&told))
    })
}

/// What works, but a person should know.
pub(super) fn warnings(config: &super::Config) -> Vec<String> {
    let known: Vec<_> = config.accounts.iter().map(|account| &account.appid).collect();
    let admin = &config.admin;
    let mut warnings = Vec::new();
    for (key, keys) in
        [("central_keys_file", &admin.central_keys), ("operator_keys_file", &admin.operator_keys)]
    {
        let Some(keys) = keys else { continue };
        if keys.is_open() {
            warnings.push(format!(
                "every user of this machine may read the keys of {key}, and whoever has one can act with it; run chmod o-r on the file"
            ));
        }
        let strangers = keys.strangers(&known);
        if !strangers.is_empty() {
            let strangers: Vec<_> = strangers.iter().map(ToString::to_string).collect();
            warnings.push(format!(
                "{key} names {}, which is no account of this sidecar; correct the appid, or add the account",
                strangers.join(", ")
            ));
        }
    }
    warnings
}
