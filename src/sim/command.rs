//! `wechat-sidecar simulate`: a simulation that stays up until it is told to stop.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use super::{Config, DEFAULT_APPID, DEFAULT_SECRET, Limits, Sim};
use crate::credentials::{AppId, Secret};

/// What `simulate` is asked for.
#[derive(Clone, Debug)]
pub struct SimulateOptions {
    /// Where plain HTTP is served.
    pub listen: SocketAddr,
    /// Where TLS is served, if at all.
    pub tls_listen: Option<SocketAddr>,
    /// Where the control port is, if there is one. SECURITY: whoever reaches it can do with the simulation what they
    /// like; it has no password.
    pub control_listen: Option<SocketAddr>,
    /// The account.
    pub appid: AppId,
    /// Its secret.
    pub secret: Secret,
    /// The file the TLS authority is written to, in PEM.
    pub ca_out: Option<PathBuf>,
    /// The length of tokens in characters.
    pub token_length: usize,
    /// The life of tokens in seconds.
    pub expires_in: u64,
}

impl Default for SimulateOptions {
    /// Plain HTTP on 127.0.0.1:7300, the control port on 7301, the default account, the documented numbers.
    fn default() -> Self {
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let limits = Limits::default();
        Self {
            listen: local(7300),
            tls_listen: None,
            control_listen: Some(local(7301)),
            appid: known(AppId::parse(DEFAULT_APPID)),
            secret: known(Secret::parse(DEFAULT_SECRET)),
            ca_out: None,
            token_length: limits.token_length,
            expires_in: limits.life,
        }
    }
}

fn known<T>(parsed: Result<T, &'static str>) -> T {
    parsed.unwrap_or_else(|reason| unreachable!("the default account is a good one: {reason}"))
}

/// Starts a simulation and writes the authority's file. The text is what to tell the user.
///
/// # Errors
/// An address that cannot be had, a file that cannot be written, or `ca_out` without TLS.
pub async fn start(options: SimulateOptions) -> io::Result<(Sim, String)> {
    let invalid = |text: &str| io::Error::new(io::ErrorKind::InvalidInput, text.to_owned());
    if options.ca_out.is_some() && options.tls_listen.is_none() {
        return Err(invalid(
            "there is no CA to write without a TLS address; give one, or leave the file out",
        ));
    }
    if options.expires_in == 0 {
        return Err(invalid("tokens need a life; give expires_in at least 1 second"));
    }
    let sim = Sim::start(Config {
        listen: options.listen,
        tls_listen: options.tls_listen,
        control_listen: options.control_listen,
        accounts: vec![(options.appid.clone(), options.secret.clone())],
        limits: Limits { token_length: options.token_length, life: options.expires_in, ..Limits::default() },
        // Two simulations one after the other should not issue the same tokens: an old one must be seen to be old.
        seed: fastrand::u64(..),
    })
    .await?;
    if let (Some(path), Some(pem)) = (&options.ca_out, sim.ca_pem()) {
        std::fs::write(path, pem).map_err(|error| {
            let shown = path.display();
            io::Error::new(error.kind(), format!("cannot write the CA to {shown}: {error}"))
        })?;
    }
    let banner = banner(&sim, &options);
    Ok((sim, banner))
}

/// Runs `simulate` from start to `shutdown`. `announce` is given the banner once everything listens.
///
/// # Errors
/// As [`start`].
pub async fn run_command(
    options: SimulateOptions,
    announce: impl FnOnce(&str),
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let (sim, banner) = start(options).await?;
    announce(&banner);
    shutdown.await;
    sim.shutdown().await;
    Ok(())
}

/// What a user needs to know: that nothing here is real, where it listens, and how to point a sidecar at it.
fn banner(sim: &Sim, options: &SimulateOptions) -> String {
    let mut lines = vec![
        "SIMULATION of the WeChat API: no connection to Tencent, and its tokens work only here.".to_owned(),
        format!("  API       {}", sim.base_url()),
    ];
    if let Some(address) = sim.tls_addr() {
        let ca = options.ca_out.as_ref().map_or_else(
            || "its CA was not written to a file".to_owned(),
            |path| format!("CA in {}", path.display()),
        );
        lines.push(format!("  API, TLS  https://{address} ({ca})"));
    }
    if let Some(address) = sim.control_addr() {
        lines.push(format!("  control   http://{} (GET / lists the levers)", reachable(address)));
    }
    lines.push(format!(
        "  account   appid {}, tokens live {} s and have {} characters",
        options.appid,
        options.expires_in,
        sim.limits().token_length
    ));
    // SECURITY: only the well-known secret is shown; another may be somebody's real one.
    let secret = match options.secret.expose() {
        DEFAULT_SECRET => DEFAULT_SECRET,
        _ => "<the secret given>",
    };
    let command = |upstream: &str| {
        format!(
            "  WECHAT_SIDECAR_SECRET={secret} wechat-sidecar run --appid {} --upstream {upstream}",
            options.appid
        )
    };
    lines.push("Point a sidecar at it with:".to_owned());
    if reachable(sim.plain_addr()).ip().is_loopback() {
        lines.push(command(&format!("http://{}", reachable(sim.plain_addr()))));
    }
    if let (Some(upstream), Some(path)) = (sim.tls_base_url(), &options.ca_out) {
        lines.push(format!("{} --upstream-ca-file {}", command(&upstream), path.display()));
    }
    if lines.last().is_some_and(|line| line.ends_with(':')) {
        lines.pop();
        lines.push(
            "A sidecar takes http:// on loopback only: listen there, or serve TLS and write its CA."
                .to_owned(),
        );
    }
    lines.join("\n")
}

/// The address to connect to: an unspecified one is reached by loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
