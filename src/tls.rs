//! How we trust WeChat: one rustls client configuration, for calls and for token fetches alike; and who we are to those
//! who call our admin port over TLS ([`ServerIdentity`]).
//!
//! Roots are Mozilla's, built in (webpki-roots), so that an empty image works; a file may add others, and is read again
//! while we run ([`ExtraRoots::reread`]), and [`pins`] may ask for more than a chain. Names are always verified and there is
//! no switch that says otherwise. The provider is ring: aws-lc's first use costs about 45 ms of entropy collection, ring
//! 9 ms to the first answer (`perf.md`).

pub mod pins;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use tokio_rustls::TlsAcceptor;

use crate::files;
use pins::{Pinned, Pins};

/// Roots to trust beside Mozilla's, and the keys that a server must have besides, if any are pinned. Clones see the same
/// ones, also after they were read again.
#[derive(Clone, Default)]
pub struct ExtraRoots {
    file: Option<Arc<FromFile>>,
    pins: Pins,
}

struct FromFile {
    path: PathBuf,
    pem: Mutex<Vec<u8>>,
    pins: Pins,
    verifier: Arc<Verifier>,
}

impl fmt::Debug for ExtraRoots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.file.as_ref().map(|file| &file.path);
        f.debug_struct("ExtraRoots").field("path", &path).field("pins", &self.pins).finish()
    }
}

impl ExtraRoots {
    /// Reads every certificate of a PEM file.
    ///
    /// # Errors
    /// A sentence that names the file and the remedy: unreadable, no certificate in it, or one that cannot be a root.
    pub fn read(path: &Path) -> Result<Self, String> {
        let pem = read_pem(path)?;
        Ok(Self { file: Some(Arc::new(FromFile::new(path, pem, Pins::default())?)), pins: Pins::default() })
    }

    /// The certificates of a PEM file, as they stand there, once they have been found good.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_pem(path: &Path) -> Result<Vec<u8>, String> {
        let pem = read_pem(path)?;
        parse(path, &pem).map(|_| pem)
    }

    /// The same roots, for a server that must have one of these keys.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn pinned(self, pins: Pins) -> Result<Self, String> {
        let file = self.file.map(|file| {
            let pem = file.pem.lock().unwrap_or_else(PoisonError::into_inner).clone();
            FromFile::new(&file.path, pem, pins.clone()).map(Arc::new)
        });
        Ok(Self { file: file.transpose()?, pins })
    }

    /// Whether there is a file to read again.
    #[must_use]
    pub fn are_from_a_file(&self) -> bool {
        self.file.is_some()
    }

    /// Reads the file again, if there is one. Whether it has other certificates now, which every connection from now
    /// on is held against.
    ///
    /// # Errors
    /// As [`read`](Self::read); the roots stay what they were.
    pub fn reread(&self) -> Result<bool, String> {
        let Some(file) = &self.file else { return Ok(false) };
        let pem = read_pem(&file.path)?;
        let mut before = file.pem.lock().unwrap_or_else(PoisonError::into_inner);
        if *before == pem {
            return Ok(false);
        }
        file.verifier.0.store(current(&parse(&file.path, &pem)?, &file.pins)?);
        *before = pem;
        Ok(true)
    }
}

fn read_pem(path: &Path) -> Result<Vec<u8>, String> {
    let shown = path.display();
    let pem = files::read(path, MAX_PEM)
        .map_err(|error| format!("{shown} cannot be read ({error}); check the path and its permissions"))?;
    if pem.bytes.len() as u64 > MAX_PEM {
        return Err(format!("{shown} is larger than 4 MiB; give CA certificates in PEM form"));
    }
    Ok(pem.bytes.to_vec())
}

/// The largest PEM file that is read; all of Mozilla's roots come to 0.2 MiB.
const MAX_PEM: u64 = 4 << 20;

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

impl FromFile {
    fn new(path: &Path, pem: Vec<u8>, pins: Pins) -> Result<Self, String> {
        let verifier = Arc::new(Verifier(ArcSwap::new(current(&parse(path, &pem)?, &pins)?)));
        Ok(Self { path: path.to_owned(), pem: Mutex::new(pem), pins, verifier })
    }
}

/// A verifier with Mozilla's roots and these, which asks for one of the pinned keys besides, if any are.
fn current(extra: &[CertificateDer<'static>], pins: &Pins) -> Result<Arc<Current>, String> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    for root in extra {
        // Checked when the file was read; a root that is refused here is simply not trusted.
        let _ = roots.add(root.clone());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let unusable =
        |error: String| format!("these roots cannot be used ({error}); give CA certificates in PEM form");
    Ok(Arc::new(if pins.is_empty() {
        let usual = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
        Current::Usual(usual.map_err(|error| unusable(error.to_string()))?)
    } else {
        Current::Pinned(Pinned::new(roots, pins.clone(), provider).map_err(unusable)?)
    }))
}

/// Who verifies now.
#[derive(Debug)]
enum Current {
    Usual(Arc<WebPkiServerVerifier>),
    Pinned(Pinned),
}

impl Current {
    fn get(&self) -> &dyn ServerCertVerifier {
        match self {
            Self::Usual(usual) => &**usual,
            Self::Pinned(pinned) => pinned,
        }
    }
}

/// The verifier in force. SECURITY: every question goes to rustls' own, whole; this only lets it be another one later.
#[derive(Debug)]
struct Verifier(ArcSwap<Current>);

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.0.load().get().verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.load().get().verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.load().get().verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.load().get().supported_verify_schemes()
    }
}

/// The client side of TLS 1.2 and 1.3, speaking HTTP/1.1.
#[must_use]
pub fn client_config(extra: &ExtraRoots) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap_or_else(|error| unreachable!("ring speaks TLS 1.2 and 1.3: {error}"));
    let mut config = match &extra.file {
        // SECURITY: `dangerous` is rustls's word for any verifier but its own; ours ask that one first.
        Some(file) => {
            let verifier = Arc::clone(&file.verifier) as Arc<dyn ServerCertVerifier>;
            let mut config =
                config.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
            // A session that is taken up again is not verified again, and the file may have changed since.
            config.resumption = rustls::client::Resumption::disabled();
            config
        }
        None if extra.pins.is_empty() => {
            let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
            config.with_root_certificates(roots).with_no_client_auth()
        }
        None => {
            let verifier = current(&[], &extra.pins)
                .unwrap_or_else(|error| unreachable!("Mozilla's roots can be used: {error}"));
            let verifier = Arc::new(Verifier(ArcSwap::new(verifier)));
            config.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

/// A certificate and its key, as a TLS server shows and uses them. Clones show the same one, also after it was read again.
#[derive(Clone)]
pub struct ServerIdentity {
    files: Arc<[PathBuf; 2]>,
    shown: Arc<Shown>,
    acceptor: TlsAcceptor,
}

/// The certificate in force.
#[derive(Debug)]
struct Shown(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl fmt::Debug for ServerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerIdentity(***)")
    }
}

impl ServerIdentity {
    /// Reads a chain of certificates, our own first, and its key, both PEM.
    ///
    /// # Errors
    /// A sentence that names the file and the remedy, never the key.
    pub fn read(certificate: &Path, key: &Path) -> Result<Self, String> {
        let shown = Arc::new(Shown(ArcSwap::from_pointee(read_pair(certificate, key)?)));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("no TLS can be had ({error}); this is a defect in wechat-sidecar"))?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&shown) as _);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let files = Arc::new([certificate.to_owned(), key.to_owned()]);
        Ok(Self { files, shown, acceptor: TlsAcceptor::from(Arc::new(config)) })
    }

    /// Reads both files again. Whether there is another certificate now, which every connection from now on is shown.
    ///
    /// # Errors
    /// As [`read`](Self::read); what is shown stays what it was.
    pub fn reread(&self) -> Result<bool, String> {
        let fresh = read_pair(&self.files[0], &self.files[1])?;
        let changed = self.shown.0.load().cert != fresh.cert;
        if changed {
            self.shown.0.store(Arc::new(fresh));
        }
        Ok(changed)
    }

    pub(crate) fn acceptor(&self) -> &TlsAcceptor {
        &self.acceptor
    }
}

fn read_pair(certificate: &Path, key: &Path) -> Result<CertifiedKey, String> {
    let shown = certificate.display();
    let cannot = |error: String| {
        format!("{shown} cannot be read ({error}); give a PEM file of certificates, the server's own first")
    };
    let pem = files::read(certificate, MAX_PEM).map_err(|error| cannot(error.to_string()))?.bytes;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let chain = chain.map_err(|error| cannot(error.to_string()))?;
    if chain.is_empty() {
        return Err(format!(
            "{shown} has no certificate in it; give a PEM file of certificates, the server's own first"
        ));
    }
    let key_shown = key.display();
    // SECURITY: the reader's own words name no content.
    let cannot = |error: String| {
        format!("{key_shown} cannot be read ({error}); give the certificate's private key in PEM form")
    };
    let pem = files::read(key, MAX_PEM).map_err(|error| cannot(error.to_string()))?.bytes;
    let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| cannot(error.to_string()))?;
    CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider()).map_err(|error| {
        format!("{shown} and {key_shown} do not make a server ({error}); give a certificate and the key it was made for")
    })
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
    fn a_file_without_an_end_is_refused_and_not_read_into_memory() {
        let told = ExtraRoots::read(Path::new("/dev/zero")).unwrap_err();
        assert!(told.contains("larger than 4 MiB; give CA certificates"), "{told}");
    }

    #[test]
    fn a_file_that_changed_is_read_again_and_a_bad_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        std::fs::write(&path, authority("one")).unwrap();
        let roots = ExtraRoots::read(&path).unwrap();
        let verifier = || Arc::as_ptr(&roots.file.as_ref().unwrap().verifier.0.load());
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
    #[test]
    fn a_servers_certificate_is_read_again_with_its_key_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let (certificate, key) = (dir.path().join("tls.crt"), dir.path().join("tls.key"));
        let made = || rcgen::generate_simple_self_signed(["sidecar.example".to_owned()]).unwrap();
        let (one, two) = (made(), made());
        std::fs::write(&certificate, one.cert.pem()).unwrap();
        std::fs::write(&key, one.signing_key.serialize_pem()).unwrap();
        let identity = ServerIdentity::read(&certificate, &key).unwrap();
        let shown = || identity.shown.0.load().cert[0].clone();
        assert_eq!(identity.reread(), Ok(false));
        std::fs::write(&certificate, two.cert.pem()).unwrap();
        assert!(identity.reread().unwrap_err().contains("do not make a server"), "half of it is there");
        assert_eq!(shown(), *one.cert.der());
        std::fs::write(&key, two.signing_key.serialize_pem()).unwrap();
        assert_eq!(identity.clone().reread(), Ok(true));
        assert_eq!(shown(), *two.cert.der());
    }
}
