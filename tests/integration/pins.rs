//! Pinned keys: on top of a chain and a name that are verified as ever, for calls and for token fetches alike.

use wechat_sidecar::tls::pins::Pins;

use crate::rig::tls::Authority;
use crate::rig::{RawUpstream, Reply, Setup, Sidecar, Tokens};

const CALL: &str = "GET /cgi-bin/x HTTP/1.1\r\nHost: a\r\n\r\n";
const NOBODYS: &str = "sha256/47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";

/// A call to an upstream under this authority, by a sidecar that trusts it and has these pins.
async fn called(authority: &Authority, name: &str, pins: &str) -> (Reply, usize) {
    let upstream = RawUpstream::with_tls(authority.server(name)).await;
    let tokens = Tokens::start().await;
    let pins = Pins::parse(pins).unwrap();
    let setup = Setup::new(&upstream.origin(), &tokens)
        .with(|config| config.upstream.roots = authority.roots().pinned(pins));
    let sidecar: Sidecar = setup.start().await;
    (sidecar.call(CALL).await, upstream.calls())
}

#[tokio::test]
async fn an_upstream_whose_ca_is_pinned_is_called_and_any_other_is_not() {
    let authority = Authority::new();
    let (reply, calls) = called(&authority, "localhost", &format!("{NOBODYS}, {}", authority.pin())).await;
    assert_eq!((reply.status, calls), (200, 1), "{reply:?}");
    let (reply, calls) = called(&authority, "localhost", NOBODYS).await;
    reply.assert_ours(502, "tls");
    assert!(
        reply.text().contains("upstream_pins") && reply.text().contains("it came with sha256/"),
        "{reply:?}"
    );
    assert_eq!(calls, 0, "not a byte of the call was sent");
}

#[tokio::test]
async fn a_pin_replaces_neither_the_name_nor_the_chain() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let (reply, calls) = called(&authority, "evil.example", &authority.pin()).await;
    reply.assert_ours(502, "tls");
    assert_eq!(calls, 0);
    let upstream = RawUpstream::with_tls(stranger.server("localhost")).await;
    let tokens = Tokens::start().await;
    let pins = Pins::parse(&stranger.pin()).unwrap();
    let roots = authority.roots().pinned(pins);
    let sidecar =
        Setup::new(&upstream.origin(), &tokens).with(|config| config.upstream.roots = roots).start().await;
    sidecar.call(CALL).await.assert_ours(502, "tls");
    assert_eq!(upstream.calls(), 0);
}
