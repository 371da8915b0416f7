//! What was asked for: [`Config`], the struct of every component's own configuration, and [`load`], which fills it
//! from flags, the environment and a file.
//!
//! Components declare what they need and never look here. All problems are told at once, each with the place it was
//! found at, its value (never a secret's) and what to do about it.

pub mod bridge;
pub mod cli;
pub mod settings;

mod admin_port;
mod file;
mod guards;
mod in_force;
mod manual;
mod problem;
mod reader;
mod sources;
mod store;
mod supply;
#[cfg(test)]
mod tests;
mod values;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use crate::ca::Authority;
use crate::credentials::{AppId, Secret, SecretOrigin, read_secret_file};
use crate::hosts::Hosts;
use crate::origin::{Origin, Reach};
use crate::tls::ExtraRoots;
use crate::token::bridge::format::Format;
use crate::token::source::{CentralSource, Egress, Endpoint, FollowerSource};
use crate::{account, admin, proxy, server, telemetry, token};

use file::Table;
use guards::Lists;
use reader::{Reader, names_an_account, take};
use settings::Verb;
use values::{Parsed, Refusal};

pub use problem::{Place, Problem, Problems};
pub use sources::Flags;
pub use supply::Supply;

/// Most workers that are started unasked: a sidecar shares its machine with the app it serves.
const MOST_WORKERS: usize = 4;

/// Everything a sidecar needs to know, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where and with how many workers calls are accepted.
    pub server: server::Config,
    /// The limits of a call.
    pub proxy: proxy::Config,
    /// Where WeChat is and how long it may take.
    pub upstream: proxy::upstream::Config,
    /// Where all accounts' tokens come from.
    pub supply: Supply,
    /// What all accounts' token fetches from WeChat have in common.
    pub source: Source,
    /// Where tokens are kept.
    pub store: token::store::Config,
    /// The hosts that calls may name.
    pub hosts: Hosts,
    /// Who certifies us to apps that speak TLS, if anyone does.
    pub authority: Option<Arc<Authority>>,
    /// The accounts, no appid twice; the first is the default. Never empty.
    pub accounts: Vec<account::Config>,
    /// Where the bridge of the accounts that have one leads.
    pub bridge: Option<bridge::Config>,
    /// Where probes are answered, and who may ask for more.
    pub admin: admin::Config,
    /// What is logged and how.
    pub telemetry: telemetry::Config,
    /// How long calls are still taken after a stop was asked for, while readiness says no.
    pub drain_delay: Duration,
    /// How long calls in flight may finish after that.
    pub grace_period: Duration,
    /// The settings as they may be shown.
    pub in_force: Vec<admin::status::InForce>,
    /// Whether a crash, or a debugger, may see this process's memory.
    pub core_dumps: bool,
    /// What works, but a person should know; for the log, once it is set up.
    pub warnings: Vec<String>,
}

impl Config {
    /// Where and how patiently this account's tokens are fetched.
    #[must_use]
    pub fn source_for(&self, account: &account::Config) -> token::source::Config {
        token::source::Config {
            endpoint: account.endpoint,
            origin: self.source.origin.clone(),
            roots: self.source.roots.clone(),
            proxy: self.source.proxy.clone(),
            connect_timeout: self.source.connect_timeout,
            fetch_timeout: self.source.fetch_timeout,
        }
    }

    /// What brings this account's tokens.
    ///
    /// # Errors
    /// A sentence, when no HTTP client can be built, or the account lacks the AppSecret that it takes.
    pub fn token_source(&self, account: &account::Config) -> Result<token::source::Source, String> {
        let appid = account.appid.clone();
        match &self.supply {
            Supply::WeChat => {
                let secret = account.secret.clone().ok_or_else(|| {
                    format!("{appid} has no AppSecret to fetch tokens with; set secret or secret_file")
                })?;
                token::source::Source::new(&self.source_for(account), appid, secret)
            }
            Supply::Central(central) => {
                CentralSource::new(central, appid).map(token::source::Source::Central)
            }
            Supply::Store => Ok(token::source::Source::Follower(FollowerSource)),
        }
    }
}

/// What all accounts' token fetches from WeChat have in common.
#[derive(Clone, Debug)]
pub struct Source {
    /// WeChat.
    pub origin: Origin,
    /// Roots to trust beside Mozilla's.
    pub roots: ExtraRoots,
    /// The proxy that fetches go through, if one is named.
    pub proxy: Option<Egress>,
    /// The longest a connection may take.
    pub connect_timeout: Duration,
    /// The longest a whole fetch may take.
    pub fetch_timeout: Duration,
}

/// Reads everything: the flags, the environment, and the file and secret files they name.
///
/// # Errors
/// Every problem there is.
pub fn load(flags: Flags, env: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Config, Problems> {
    let mut reader = Reader::new(Verb::Run, flags, env);
    let accounts = accounts(&mut reader);
    let (listen, unix) = guards::listen(&mut reader);
    let admin = admin_port::admin(&mut reader);
    let tls_listen = reader.listen("tls_listen");
    let origin = upstream(&mut reader);
    let hosts = hosts(&mut reader, origin.as_ref());
    let authority = authority(&mut reader, hosts.as_ref());
    let pins = guards::pins(&mut reader, origin.as_ref().is_none_or(Origin::is_tls));
    let roots = roots(&mut reader, "upstream_ca_file").map(|roots| {
        roots.pinned(pins).unwrap_or_else(|error| unreachable!("the roots were read with success: {error}"))
    });
    let gate = guards::gate(&mut reader, listen, unix.is_some(), hosts.as_ref());
    let keyring = guards::keyring(&mut reader, &accounts);
    let admission = guards::admission(&mut reader);
    let head_timeout = reader.duration("head_timeout");
    let keep_alive = reader.duration("keep_alive");
    let core_dumps = guards::core_dumps(&mut reader);
    let telemetry = reader.telemetry();
    let connect_timeout = reader.duration("connect_timeout");
    let response_timeout = reader.duration("response_timeout");
    let idle_timeout = reader.duration("idle_timeout");
    let fetch_timeout = reader.duration("fetch_timeout");
    let store = store::read(&mut reader, fetch_timeout);
    let supply = supply::supply(&mut reader, connect_timeout, fetch_timeout);
    let egress = supply::egress(&mut reader, origin.as_ref());
    let bridge = bridge::read(&mut reader, &accounts, store.as_ref());
    let token_wait = reader.duration("token_wait");
    let drain_delay = reader.duration("drain_delay");
    let grace_period = reader.duration("grace_period");
    let workers = workers(&mut reader);
    let replay_limit = reader.size("replay_limit");
    let replay_budget = reader.size("replay_budget");
    let max_body = reader.size("max_body");
    let max_head = reader.size("max_head").and_then(|size| usize::try_from(size).ok());

    let admin_listen = admin.as_ref().map(|admin| admin.listen);
    for (one, other_key, other) in [
        (listen, "admin_listen", admin_listen),
        (listen, "tls_listen", tls_listen),
        (admin_listen, "tls_listen", tls_listen),
    ] {
        if let (Some(one), Some(other)) = (one, other)
            && same_port(one, other)
        {
            let for_what = if Some(one) == listen { "calls are accepted" } else { "probes are answered" };
            let what = format!("It is {other}, and {for_what} on {one}: the same port.");
            let problem = Problem::new(other_key, reader.place(other_key), what, "give it another port");
            reader.problems.push(problem);
        }
    }
    if tls_listen.is_some() && !reader.sources.values.contains_key("ca_dir") {
        reader.problems.push(Problem::new(
            "tls_listen",
            reader.place("tls_listen"),
            "It needs a certificate, and there is no ca_dir.",
            "make a CA with `wechat-sidecar ca`, and set ca_dir to its folder",
        ));
    }
    if let (Some(limit), Some(budget)) = (replay_limit, replay_budget)
        && limit > budget
    {
        let (limit, budget) = (values::show_size(limit), values::show_size(budget));
        let place = match reader.place("replay_limit") {
            Place::Nowhere => reader.place("replay_budget"),
            place => place,
        };
        reader.problems.push(Problem::new(
            "replay_limit",
            place,
            format!(
                "One kept body may take {limit}, but all of them together only {budget} (replay_budget)."
            ),
            format!("raise replay_budget to {limit} or more, or lower replay_limit to {budget} or less"),
        ));
    }

    // A closure, for its `?`: whatever is missing has left a problem.
    let mut config = (|| {
        let (mut origin, roots) = (origin?, roots?);
        if tls_listen.is_some() && origin.reach() == Reach::Name && !origin.is_loopback() {
            origin = origin.reached(Reach::NameElsewhere);
        }
        let connect_timeout = connect_timeout?;
        Some(Config {
            server: server::Config {
                listen: listen?,
                unix,
                tls_listen,
                workers: workers?,
                max_head: max_head?,
                head_timeout: head_timeout?,
                keep_alive: keep_alive?,
            },
            proxy: proxy::Config {
                max_body: max_body?,
                replay_limit: replay_limit?,
                replay_budget: replay_budget?,
                token_wait: token_wait?,
                gate,
                keyring,
                admission: admission?,
            },
            upstream: proxy::upstream::Config {
                origin: origin.clone(),
                roots: roots.clone(),
                connect_timeout,
                response_timeout: response_timeout?,
                idle_timeout: idle_timeout?,
            },
            supply: supply?,
            source: Source { origin, roots, proxy: egress?, connect_timeout, fetch_timeout: fetch_timeout? },
            store: store?,
            hosts: hosts?,
            authority,
            accounts,
            bridge,
            admin: admin?,
            telemetry: telemetry?,
            drain_delay: drain_delay?,
            grace_period: grace_period?,
            in_force: Vec::new(),
            core_dumps,
            warnings: Vec::new(),
        })
    })();
    if let Some(config) = &mut config {
        config.warnings = std::mem::take(&mut reader.sources.warnings);
        config.in_force = in_force::in_force(&reader.sources.values, &reader.sources.accounts, config);
        warn(config);
    }
    reader.finish(config)
}

/// Adds what works, but a person should know.
fn warn(config: &mut Config) {
    let listeners = [("listen", Some(config.server.listen)), ("tls_listen", config.server.tls_listen)];
    for (key, listen) in listeners {
        let Some(listen) = listen.filter(|listen| !listen.ip().is_loopback()) else { continue };
        if config.proxy.keyring.is_some() {
            if key == "listen" {
                config.warnings.push(format!(
                    "{key} = {listen} is reachable from other machines, and client keys cross the network in clear; keep \
                     it where nobody can listen in, or let apps call tls_listen"
                ));
            }
            continue;
        }
        config.warnings.push(format!(
            "{key} = {listen} is reachable from other machines, and whoever reaches it can act as the account; \
             keep it on 127.0.0.1 unless a firewall or a network policy guards the port, or ask for keys (client_keys_file)"
        ));
    }
    config.warnings.extend(config.authority.iter().filter_map(|ca| ca.ends_soon().map(str::to_owned)));
    config.warnings.extend(admin_port::warnings(config));
    let fetches = matches!(config.supply, Supply::WeChat);
    for account in config.accounts.iter().filter(|a| fetches && a.endpoint == Endpoint::Classic) {
        let rule = match config.store {
            token::store::Config::Memory => "run one replica, or use stable_token",
            token::store::Config::Redis(_) => "give every replica this store",
        };
        config.warnings.push(format!(
            "token_endpoint = token for {}: every fetch voids the token before it after five minutes, so nothing \
             else may fetch tokens for this appid; {rule}",
            account.appid
        ));
    }
    config.warnings.extend(store::warning(&config.store));
    config.warnings.extend(bridge::warnings(config));
    let strangers =
        telemetry::parse_filter(&config.telemetry.filter).map(|filter| telemetry::loud_strangers(&filter));
    for target in strangers.unwrap_or_default() {
        config.warnings.push(format!(
            "log opens {target} beyond info, and other crates' lines may show a URL with its access_token; \
             leave {target} out unless you are looking for a fault"
        ));
    }
}

/// The top-level account, if one is named, and the file's `[[account]]` tables, in this order.
fn accounts(reader: &mut Reader) -> Vec<account::Config> {
    let endpoint = reader.value("token_endpoint", endpoint).unwrap_or_default();
    let bridge = reader.value("bridge", bridge::formats).unwrap_or_default();
    let shared = Shared { endpoint, bridge, secretless: supply::needs_no_secret(reader) };
    let values = std::mem::take(&mut reader.sources.values);
    let tables = std::mem::take(&mut reader.sources.accounts);
    let lists = Lists::read(reader, &values, None);
    let mut accounts: Vec<(account::Config, Place)> = Vec::new();
    if names_an_account(&values) || tables.is_empty() {
        accounts.extend(account(reader, &values, None, &shared, &lists));
    }
    for (table, place) in &tables {
        let lists = Lists::read(reader, table, Some(&lists));
        let Some((account, at)) = account(reader, table, Some(place), &shared, &lists) else { continue };
        if let Some((_, first)) = accounts.iter().find(|(other, _)| other.appid == account.appid) {
            let what = format!("This account is configured twice; first here: {first}.");
            let mut problem = Problem::new("appid", at, what, "keep one of them");
            problem.value = Some(problem::shown(account.appid.as_str()));
            reader.problems.push(problem);
        } else {
            accounts.push((account, at));
        }
    }
    (reader.sources.values, reader.sources.accounts) = (values, tables);
    accounts.into_iter().map(|(account, _)| account).collect()
}

/// What accounts have from the settings of the whole sidecar.
struct Shared {
    endpoint: Endpoint,
    bridge: Vec<Format>,
    /// An account may lack its AppSecret: where tokens come from elsewhere, it is for login calls only.
    secretless: bool,
}

/// One account of a table, and where its appid was written; `None` and problems when it is not whole.
///
/// `begins` is where an `[[account]]` begins, `None` for the top-level account.
fn account(
    reader: &mut Reader,
    table: &Table,
    begins: Option<&Place>,
    shared: &Shared,
    lists: &Lists,
) -> Option<(account::Config, Place)> {
    let appid = match table.get("appid") {
        Some(written) => take(&mut reader.problems, "appid", written, values::appid)
            .map(|appid| (appid, written.place.clone())),
        None => {
            missing(reader, "appid", begins);
            None
        }
    };
    let secret = secret(reader, table, begins, shared.secretless);
    let endpoint = match table.get("token_endpoint").filter(|_| begins.is_some()) {
        Some(written) => take(&mut reader.problems, "token_endpoint", written, endpoint),
        None => Some(shared.endpoint),
    };
    let bridge = match table.get("bridge").filter(|_| begins.is_some()) {
        Some(written) => take(&mut reader.problems, "bridge", written, bridge::formats),
        None => Some(shared.bridge.clone()),
    };
    let (appid, place): (AppId, Place) = appid?;
    let (secret, secret_origin) = secret?.unzip();
    let (endpoint, bridge, terms) = (endpoint?, bridge?, lists.terms());
    Some((account::Config { appid, secret, secret_origin, endpoint, bridge, terms }, place))
}

/// The AppSecret of a table, if it has one; the outer `None` comes with a problem.
fn secret(
    reader: &mut Reader,
    table: &Table,
    begins: Option<&Place>,
    secretless: bool,
) -> Option<Option<(Secret, SecretOrigin)>> {
    match (table.get("secret"), table.get("secret_file")) {
        (Some(written), None) => {
            let secret = take(&mut reader.problems, "secret", written, values::secret)?;
            Some(Some((secret, SecretOrigin::Value)))
        }
        (None, Some(written)) => take(&mut reader.problems, "secret_file", written, |text| {
            let path = reader::path(text, &written.place)?;
            // SECURITY: a message about a file names its path, which here is the secret.
            if values::looks_like_a_secret(text) && !path.exists() {
                let what = "it looks like an AppSecret, not like the path of a file that holds one";
                return Err(Refusal {
                    hide: true,
                    ..Refusal::new(what, "give it as `secret` (WECHAT_SIDECAR_SECRET), or name a file")
                });
            }
            let secret = read_secret_file(&path).map_err(|told| Refusal::from_sentence(&told))?;
            Ok(Some((secret, SecretOrigin::File(path))))
        }),
        (Some(value), Some(file)) => {
            let what = format!("The secret is given twice: here, and as secret_file ({}).", file.place);
            reader.problems.push(Problem::new("secret", value.place.clone(), what, "keep one of them"));
            None
        }
        (None, None) if secretless => Some(None),
        (None, None) => {
            missing(reader, "secret", begins);
            None
        }
    }
}

/// Notes that an account lacks its appid or its secret.
fn missing(reader: &mut Reader, key: &str, begins: Option<&Place>) {
    // A file that could not be read may hold it, and whatever was wrong with it is told already.
    let number = |place: &Place| match place {
        Place::File { account, .. } => *account,
        Place::Flag(_) | Place::Env(_) | Place::Nowhere => None,
    };
    let told = reader.problems.iter().any(|problem| {
        (problem.key == key || (key == "secret" && problem.key == "secret_file"))
            && number(&problem.place) == begins.and_then(number)
    });
    if reader.sources.file_failed || told {
        return;
    }
    let env = settings::get(key).env();
    let problem = match begins {
        Some(place) => {
            let remedy = if key == "secret" {
                "add secret or secret_file to it"
            } else {
                "add appid = \"wx…\" to it"
            };
            Problem::new(key, place.clone(), format!("This account has no {key}."), remedy)
        }
        None => {
            let what = if reader.sources.empty_env.contains(&env) {
                format!("{env} is set, but empty, and the sidecar needs it to fetch tokens.")
            } else {
                "The sidecar needs it to fetch tokens.".to_owned()
            };
            let remedy = if key == "secret" {
                format!("set {env}, or name a file that holds the AppSecret with --secret-file")
            } else {
                format!("give --appid wx…, or set {env}")
            };
            Problem::new(key, Place::Nowhere, what, remedy)
        }
    };
    reader.problems.push(problem);
}

fn endpoint(text: &str) -> Parsed<Endpoint> {
    Ok(match values::one_of(text, &["stable_token", "token"])? {
        0 => Endpoint::Stable,
        _ => Endpoint::Classic,
    })
}

fn same_port(one: SocketAddr, other: SocketAddr) -> bool {
    let everywhere = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() != 0 && one.port() == other.port() && (one.ip() == other.ip() || everywhere)
}

/// `upstream`, found as `upstream_address` says.
fn upstream(reader: &mut Reader) -> Option<Origin> {
    let origin = reader.value("upstream", values::origin);
    let address = reader.value("upstream_address", values::address);
    let origin = origin?;
    let Some((ip, port)) = address else { return Some(origin) };
    let refused = if origin.host().parse::<std::net::IpAddr>().is_ok() {
        Some(("upstream is an address itself.", "leave upstream_address out, or give upstream a name"))
    } else if !origin.is_tls() && !ip.is_loopback() {
        // SECURITY: http:// is taken on loopback only, and this would lead elsewhere.
        Some(("upstream is http://, which would send the access token in clear.", "use https://"))
    } else {
        None
    };
    if let Some((what, remedy)) = refused {
        let mut problem = Problem::new("upstream_address", reader.place("upstream_address"), what, remedy);
        problem.value = Some(problem::shown(&ip.to_string()));
        reader.problems.push(problem);
        return None;
    }
    let address = SocketAddr::new(ip, port.unwrap_or(origin.port()));
    Some(origin.reached(Reach::Address(address)))
}

/// WeChat's hosts, the upstream's and `upstream_hosts`.
fn hosts(reader: &mut Reader, upstream: Option<&Origin>) -> Option<Hosts> {
    let before = reader.problems.len();
    let more = reader.value("upstream_hosts", values::hosts);
    if reader.problems.len() > before {
        return None;
    }
    Some(Hosts::new(upstream?, more.unwrap_or_default()))
}

fn authority(reader: &mut Reader, hosts: Option<&Hosts>) -> Option<Arc<Authority>> {
    let (written, hosts) = (reader.sources.values.get("ca_dir")?, hosts?);
    take(&mut reader.problems, "ca_dir", written, |text| {
        let path = reader::path(text, &written.place)?;
        let read = Authority::read(&path, hosts).map_err(|told| Refusal::from_sentence(&told));
        read.map(Arc::new)
    })
}

fn roots(reader: &mut Reader, key: &str) -> Option<ExtraRoots> {
    let Some(written) = reader.sources.values.get(key) else {
        return Some(ExtraRoots::default());
    };
    take(&mut reader.problems, key, written, |text| {
        let path = reader::path(text, &written.place)?;
        ExtraRoots::read(&path).map_err(|told| Refusal::from_sentence(&told))
    })
}

fn workers(reader: &mut Reader) -> Option<NonZeroUsize> {
    if reader.sources.values.contains_key("workers") {
        return reader.count("workers").and_then(NonZeroUsize::new);
    }
    // On Linux this knows the cgroup's quota and the affinity mask.
    let given = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    NonZeroUsize::new(given.min(MOST_WORKERS))
}
