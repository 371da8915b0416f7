//! Pinned keys: on top of a chain and a name that are verified as ever, for calls and for token fetches alike.

use wechat_sidecar::credentials::{AppId, Secret};
use wechat_sidecar::origin::Origin;
use wechat_sidecar::tls::pins::Pins;
use wechat_sidecar::token::source::{Config, Endpoint, Source, TokenSource, Want};

use crate::rig::tls::Authority;
use crate::rig::{APPID, PATIENCE, RawUpstream, Reply, SECRET, Setup, Sidecar, Tokens, say};

const CALL: &str = "GET /cgi-bin/x HTTP/1.1\r\nHost: a\r\n\r\n";
const NOBODYS: &str = "sha256/47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";

/// A call to an upstream under this authority, by a sidecar that trusts it and has these pins.
async fn called(authority: &Authority, name: &str, pins: &str) -> (Reply, usize) {
    let upstream = RawUpstream::with_tls(authority.server(name)).await;
    let tokens = Tokens::start().await;
    let pins = Pins::parse(pins).unwrap();
    let setup = Setup::new(&upstream.origin(), &tokens)
        .with(|config| config.upstream.roots = authority.roots().pinned(pins).unwrap());
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
    let roots = authority.roots().pinned(pins).unwrap();
    let sidecar =
        Setup::new(&upstream.origin(), &tokens).with(|config| config.upstream.roots = roots).start().await;
    sidecar.call(CALL).await.assert_ours(502, "tls");
    assert_eq!(upstream.calls(), 0);
}

#[tokio::test]
async fn a_secret_goes_to_a_pinned_server_only() {
    let authority = Authority::new();
    for (pins, calls) in [(authority.pin(), 1), (NOBODYS.to_owned(), 0)] {
        let upstream = RawUpstream::with_tls(authority.server("localhost")).await;
        let body = r#"{"access_token":"TOKEN-1","expires_in":7200}"#;
        upstream.play([say(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()))]);
        // As the sidecar's settings make them, for the upstream and the fetches alike.
        let mut config = None;
        let setup = Setup::new(&upstream.origin(), &Tokens::start().await);
        let _ = setup.with(|made| config = Some(made.source_for(&made.accounts[0])));
        let origin = Origin::parse(&upstream.origin()).unwrap();
        let roots = authority.roots().pinned(Pins::parse(&pins).unwrap()).unwrap();
        let config =
            Config { origin, roots, endpoint: Endpoint::Stable, fetch_timeout: PATIENCE, ..config.unwrap() };
        let (appid, secret) = (AppId::parse(APPID).unwrap(), Secret::parse(SECRET).unwrap());
        let source = Source::new(&config, appid, secret).unwrap();
        let fetched = source.fetch(Want::default()).await;
        assert_eq!((fetched.is_ok(), upstream.calls()), (calls == 1, calls), "{pins}: {fetched:?}");
        assert!(!format!("{fetched:?}").contains(SECRET));
    }
}
