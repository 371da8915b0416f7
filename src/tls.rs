//! How we trust WeChat: one rustls client configuration, for calls and for token fetches alike.
//!
//! Roots are Mozilla's, built in (webpki-roots), so that an empty image works; a file may add others, and is read again
//! while we run ([`ExtraRoots::reread`]). Names are always verified and there is no switch that says otherwise. The
//! provider is ring: aws-lc's first use costs about 45 ms of entropy collection, ring 9 ms to the first answer
//! (`perf.md`).

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

/// Roots to trust beside Mozilla's. Clones see the same ones, also after they were read again.
#[derive(Clone, Default)]
pub struct ExtraRoots(Option<Arc<FromFile>>);

struct FromFile {
    path: PathBuf,
    pem: Mutex<Vec<u8>>,
    verifier: Arc<Verifier>,
}

impl fmt::Debug for ExtraRoots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ExtraRoots").field(&self.0.as_ref().map(|file| &file.path)).finish()
    }
}

impl ExtraRoots {
    /// Reads every certificate of a PEM file.
    ///
    /// # Errors
    /// A sentence that names the file and the remedy: unreadable, no certificate in it, or one that cannot be a root.
    pub fn read(path: &Path) -> Result<Self, String> {
        let pem = read_pem(path)?;
        let verifier = Arc::new(Verifier(ArcSwap::new(verifier(&parse(path, &pem)?)?)));
        Ok(Self(Some(Arc::new(FromFile { path: path.to_owned(), pem: Mutex::new(pem), verifier }))))
    }

    /// Reads the file again, if there is one. Whether it has other certificates now, which every connection from now
    /// on is held against.
    ///
    /// # Errors
    /// As [`read`](Self::read); the roots stay what they were.
    pub fn reread(&self) -> Result<bool, String> {
        let Some(file) = &self.0 else { return Ok(false) };
        let pem = read_pem(&file.path)?;
        let mut before = file.pem.lock().unwrap_or_else(PoisonError::into_inner);
        if *before == pem {
            return Ok(false);
        }
        file.verifier.0.store(verifier(&parse(&file.path, &pem)?)?);
        *before = pem;
        Ok(true)
    }
}

fn read_pem(path: &Path) -> Result<Vec<u8>, String> {
    let shown = path.display();
    std::fs::read(path)
        .map_err(|error| format!("{shown} cannot be read ({error}); check the path and its permissions"))
}

fn parse(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let shown = path.display();
    let mut roots = Vec::new();
    let mut store = RootCertStore::empty();
    for found in CertificateDer::pem_slice_iter(pem) {
        let root = found.map_err(|error| {
            format!("{shown} is not valid PEM ({error:?}); give CA certificates in PEM form")
        })?;
        store.add(root.clone()).map_err(|error| {
            format!(
                "{shown} has a certificate that cannot be a root ({error}); give CA certificates in PEM form"
            )
        })?;
        roots.push(root);
    }
    if roots.is_empty() {
        return Err(format!("{shown} has no certificate in it; give CA certificates in PEM form"));
    }
    Ok(roots)
}

/// rustls' own verifier, with Mozilla's roots and these.
fn verifier(extra: &[CertificateDer<'static>]) -> Result<Arc<WebPkiServerVerifier>, String> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    for root in extra {
        // Checked when the file was read; a root that is refused here is simply not trusted.
        let _ = roots.add(root.clone());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| format!("these roots cannot be used ({error}); give CA certificates in PEM form"))
}

/// The verifier in force. SECURITY: every question goes to rustls' own, whole; this only lets it be another one later.
#[derive(Debug)]
struct Verifier(ArcSwap<WebPkiServerVerifier>);

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.0.load().verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.load().verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.load().verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.load().supported_verify_schemes()
    }
}

/// The client side of TLS 1.2 and 1.3, speaking HTTP/1.1.
#[must_use]
pub fn client_config(extra: &ExtraRoots) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap_or_else(|error| unreachable!("ring speaks TLS 1.2 and 1.3: {error}"));
    let mut config = match &extra.0 {
        Some(file) => {
            let verifier = Arc::clone(&file.verifier) as Arc<dyn ServerCertVerifier>;
            config.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
        }
        None => {
            let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
            config.with_root_certificates(roots).with_no_client_auth()
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority(name: &str) -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.self_signed(&key).unwrap().pem()
    }

    #[test]
    fn a_file_that_changed_is_read_again_and_a_bad_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        std::fs::write(&path, authority("one")).unwrap();
        let roots = ExtraRoots::read(&path).unwrap();
        let verifier = || Arc::as_ptr(&roots.0.as_ref().unwrap().verifier.0.load());
        let before = verifier();
        assert_eq!(roots.reread(), Ok(false));
        std::fs::write(&path, "no certificate").unwrap();
        assert!(roots.reread().unwrap_err().contains("no certificate in it"));
        assert_eq!(verifier(), before);
        std::fs::write(&path, authority("other")).unwrap();
        assert_eq!(roots.clone().reread(), Ok(true), "clones are one");
        assert_ne!(verifier(), before);
        assert_eq!(roots.reread(), Ok(false));
        assert_eq!(ExtraRoots::default().reread(), Ok(false));
    }
}
