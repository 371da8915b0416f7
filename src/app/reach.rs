//! Whether the upstream's name leads to WeChat or back to us: with `tls_listen` a hosts file says that we are
//! api.weixin.qq.com, and it says so to our own connections, too.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};

use crate::config::{Config, Supply};
use crate::origin::{LOOP_REMEDY, Reach};

/// Looks where the upstream is found, if we may be what is found there. Asks the system's resolver, and waits for it.
///
/// # Errors
/// The upstream or the central server is this sidecar; a sentence with the remedy.
pub fn check(config: &Config) -> Result<(), String> {
    if let Supply::Central(central) = &config.supply
        && central.origin.is_loopback()
        && central.origin.port() == config.admin.listen.port()
    {
        let origin = &central.origin;
        return Err(format!(
            "central = {origin}: that is the admin port of this sidecar itself; let central name another one, or leave it out and fetch from WeChat"
        ));
    }
    let origin = &config.upstream.origin;
    let found: Vec<SocketAddr> = match origin.reach() {
        Reach::Address(address) => vec![address],
        Reach::Name | Reach::NameElsewhere if config.server.tls_listen.is_none() && !origin.is_loopback() => {
            return Ok(());
        }
        // A name without an address is in no hosts file; that there is none is told when a call needs it.
        Reach::Name | Reach::NameElsewhere => {
            (origin.host(), origin.port()).to_socket_addrs().map(Iterator::collect).unwrap_or_default()
        }
    };
    let ours = [Some(config.server.listen), config.server.tls_listen, Some(config.admin.listen)];
    for address in found {
        let elsewhere = origin.check_peer(address);
        let listened = ours.into_iter().flatten().any(|listen| is_at(listen, address));
        match elsewhere {
            Err(told) => return Err(format!("upstream = {origin}: {told}")),
            Ok(()) if listened => {
                return Err(format!(
                    "upstream = {origin}: {address} is where this sidecar itself listens; {LOOP_REMEDY}"
                ));
            }
            Ok(()) => {}
        }
    }
    Ok(())
}

/// Whether who connects to `address` meets whoever listens on `listen`.
fn is_at(listen: SocketAddr, address: SocketAddr) -> bool {
    listen.port() != 0
        && listen.port() == address.port()
        && (listen.ip() == address.ip() || (listen.ip().is_unspecified() && is_local(address.ip())))
}

/// Whether an address is one of this machine's: only such a one can be bound.
fn is_local(ip: IpAddr) -> bool {
    ip.is_loopback() || UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_listens_everywhere_is_met_at_every_address_of_this_machine() {
        let at = |listen: &str, address: &str| is_at(listen.parse().unwrap(), address.parse().unwrap());
        assert!(at("127.0.0.1:443", "127.0.0.1:443") && at("0.0.0.0:443", "127.0.0.1:443"));
        assert!(!at("127.0.0.1:443", "127.0.0.1:444") && !at("127.0.0.1:0", "127.0.0.1:443"));
        assert!(!at("0.0.0.0:443", "192.0.2.1:443") && !at("127.0.0.1:443", "192.0.2.1:443"));
    }
}
