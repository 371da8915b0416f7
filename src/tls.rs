//! How we trust WeChat: one rustls client configuration, for calls and for token fetches alike; and who we are to those
//! who call our admin port over TLS ([`ServerIdentity`]).
//!
//! Roots are Mozilla's, built in (webpki-roots), so that an empty image works; a file may add others, and [`pins`] may ask
//! for more than a chain. Names are always verified and there is no switch that says otherwise. The provider is ring: aws-lc's first use costs
//! about 45 ms of entropy collection, ring 9 ms to the first answer (`perf.md`).

pub mod pins;

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use pins::{Pinned, Pins};

/// Roots to trust beside Mozilla's, and the keys that a server must have besides, if any are pinned.
#[derive(Clone, Default)]
pub struct ExtraRoots(Vec<CertificateDer<'static>>, Pins);

impl std::fmt::Debug for ExtraRoots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ExtraRoots({}, {:?})", self.0.len(), self.1)
    }
}

impl ExtraRoots {
    /// Reads every certificate of a PEM file.
    ///
    /// # Errors
    /// A sentence that names the file and the remedy: unreadable, no certificate in it, or one that cannot be a root.
    pub fn read(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let pem = std::fs::read(path).map_err(|error| {
            format!("{shown} cannot be read ({error}); check the path and its permissions")
        })?;
        let mut roots = Vec::new();
        let mut store = RootCertStore::empty();
        for found in CertificateDer::pem_slice_iter(&pem) {
            let root = found.map_err(|error| {
                format!("{shown} is not valid PEM ({error:?}); give CA certificates in PEM form")
            })?;
            store
                .add(root.clone())
                .map_err(|error| format!("{shown} has a certificate that cannot be a root ({error}); give CA certificates in PEM form"))?;
            roots.push(root);
        }
        if roots.is_empty() {
            return Err(format!("{shown} has no certificate in it; give CA certificates in PEM form"));
        }
        Ok(Self(roots, Pins::default()))
    }

    /// The same roots, for a server that must have one of these keys.
    #[must_use]
    pub fn pinned(self, pins: Pins) -> Self {
        Self(self.0, pins)
    }
}

/// The client side of TLS 1.2 and 1.3, speaking HTTP/1.1.
#[must_use]
pub fn client_config(extra: &ExtraRoots) -> Arc<ClientConfig> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    for root in &extra.0 {
        // Checked when the file was read; a root that is refused here is simply not trusted.
        let _ = roots.add(root.clone());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap_or_else(|error| unreachable!("ring speaks TLS 1.2 and 1.3: {error}"));
    let mut config = if extra.1.is_empty() {
        config.with_root_certificates(roots).with_no_client_auth()
    } else {
        // SECURITY: `dangerous` is rustls's word for any verifier but its own; this one asks that one first.
        let pinned = Pinned::new(roots, extra.1.clone(), provider)
            .unwrap_or_else(|error| unreachable!("there are roots: {error}"));
        config.dangerous().with_custom_certificate_verifier(Arc::new(pinned)).with_no_client_auth()
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

/// A certificate and its key, as a TLS server shows and uses them.
#[derive(Clone)]
pub struct ServerIdentity(TlsAcceptor);

impl std::fmt::Debug for ServerIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServerIdentity(***)")
    }
}

impl ServerIdentity {
    /// Reads a chain of certificates, our own first, and its key, both PEM.
    ///
    /// # Errors
    /// A sentence that names the file and the remedy, never the key.
    pub fn read(certificate: &Path, key: &Path) -> Result<Self, String> {
        let shown = certificate.display();
        let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect);
        let chain = chain.map_err(|error| {
            format!(
                "{shown} cannot be read ({error}); give a PEM file of certificates, the server's own first"
            )
        })?;
        if chain.is_empty() {
            return Err(format!(
                "{shown} has no certificate in it; give a PEM file of certificates, the server's own first"
            ));
        }
        let key_shown = key.display();
        // SECURITY: the reader's own words name no content.
        let key = PrivateKeyDer::from_pem_file(key).map_err(|error| {
            format!("{key_shown} cannot be read ({error}); give the certificate's private key in PEM form")
        })?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("no TLS can be had ({error}); this is a defect in wechat-sidecar"))?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|error| format!("{shown} and {key_shown} do not make a server ({error}); give a certificate and the key it was made for"))?;
        let mut config = config;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }

    pub(crate) fn acceptor(&self) -> &TlsAcceptor {
        &self.0
    }
}
