//! Which keys the upstream may have: [`Pins`] are SHA-256 digests of public keys (RFC 7469's), one of which must belong to
//! the upstream's own certificate or to a CA that its certificate leads to.
//!
//! SECURITY: pins come on top. Chain and name are verified first and always, and there is no way to have pins instead. A
//! certificate that is only sent along proves nothing, as anybody may send a CA's: the chain has to lead to the pinned
//! key, which is verified by trusting that key alone.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

/// Digests of public keys. Empty: any key will do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pins(Vec<[u8; 32]>);

impl Pins {
    /// Reads pins with commas between them, each `sha256/` and 32 bytes in base64, as OkHttp writes them; curl's
    /// `sha256//` is taken, too.
    ///
    /// # Errors
    /// A sentence with the remedy.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut pins: Vec<[u8; 32]> = Vec::new();
        for pin in text.split(',').map(str::trim) {
            // curl writes two slashes; one may also begin the digest, as base64 has it.
            let written = pin.strip_prefix("sha256/").unwrap_or_default();
            let spellings = [Some(written), written.strip_prefix('/')];
            let digest = |text| STANDARD.decode(text).ok().and_then(|digest| digest.try_into().ok());
            let digest = spellings.into_iter().flatten().find_map(digest).ok_or_else(|| {
                "a pin is not sha256/ and 44 characters of base64; copy one of those that a refused connection names in the log"
                    .to_owned()
            })?;
            if !pins.contains(&digest) {
                pins.push(digest);
            }
        }
        Ok(Self(pins))
    }

    /// Whether any key will do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    fn have(&self, key: &[u8]) -> bool {
        self.0.iter().any(|pin| pin == digest(&SHA256, key).as_ref())
    }
}

/// A certificate's pin, as it would be written; `None` when it cannot be read.
#[must_use]
pub fn pin_of(certificate: &CertificateDer<'_>) -> Option<String> {
    Some(format!("sha256/{}", STANDARD.encode(digest(&SHA256, &key_of(certificate)?))))
}

/// A certificate's public key with its algorithm (SubjectPublicKeyInfo), in DER.
fn key_of(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    Some(parsed.subject_public_key_info().as_ref().to_vec())
}

/// Verifies as ever, and then looks for a pinned key.
#[derive(Debug)]
pub(super) struct Pinned {
    usual: Arc<WebPkiServerVerifier>,
    pins: Pins,
    /// Trusts those of the roots that are pinned, if any.
    roots: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl Pinned {
    /// Verification by these roots and pins.
    ///
    /// # Errors
    /// The roots cannot be used.
    pub(super) fn new(
        roots: RootCertStore,
        pins: Pins,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, String> {
        let of = |roots: RootCertStore| {
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .map_err(|error| error.to_string())
        };
        let pinned = roots.roots.iter().filter(|root| pins.have(&sequence(&root.subject_public_key_info)));
        let pinned = RootCertStore { roots: pinned.cloned().collect() };
        let pinned = if pinned.is_empty() { None } else { Some(of(pinned)?) };
        Ok(Self { usual: of(roots)?, pins, roots: pinned, provider })
    }

    /// Trusts this one certificate.
    fn only(&self, ca: &CertificateDer<'_>) -> Option<Arc<WebPkiServerVerifier>> {
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned()).ok()?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider)).build().ok()
    }
}

/// What an anchor leaves out: the tag and the length in front of the key.
fn sequence(content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let mut der = vec![0x30];
    match length {
        0..=0x7f => der.push(length as u8),
        0x80..=0xff => der.extend([0x81, length as u8]),
        _ => der.extend([0x82, (length >> 8) as u8, length as u8]),
    }
    der.extend_from_slice(content);
    der
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verify = |by: &WebPkiServerVerifier| {
            by.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
        };
        let verified = verify(&self.usual)?;
        let pinned = |certificate| key_of(certificate).is_some_and(|key| self.pins.have(&key));
        if pinned(end_entity)
            || self.roots.as_ref().is_some_and(|roots| verify(roots).is_ok())
            || intermediates
                .iter()
                .filter(|certificate| pinned(certificate))
                .filter_map(|certificate| self.only(certificate))
                .any(|only| verify(&only).is_ok())
        {
            return Ok(verified);
        }
        let seen: Vec<_> = std::iter::once(end_entity).chain(intermediates).filter_map(pin_of).collect();
        Err(Error::General(format!(
            "its certificate is sound, but none of its keys is one of upstream_pins; it came with {}",
            seen.join(", ")
        )))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

    use super::*;

    type Ca = CertifiedIssuer<'static, KeyPair>;

    fn ca_params() -> CertificateParams {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    }

    fn root() -> Ca {
        CertifiedIssuer::self_signed(ca_params(), KeyPair::generate().unwrap()).unwrap()
    }

    fn leaf(ca: &Ca) -> CertificateDer<'static> {
        let params = CertificateParams::new(["api.weixin.qq.com".to_owned()]).unwrap();
        params.signed_by(&KeyPair::generate().unwrap(), ca).unwrap().der().clone()
    }

    /// Whether a server with this chain is taken under these pins, by whoever trusts `root`.
    fn taken(root: &Ca, chain: &[CertificateDer<'static>], name: &str, pins: &[String]) -> bool {
        let mut roots = RootCertStore::empty();
        roots.add(root.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let pinned = Pinned::new(roots, Pins::parse(&pins.join(",")).unwrap(), provider).unwrap();
        // A day within what rcgen makes valid by default (1975 to 4096).
        let now = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));
        let name = ServerName::try_from(name.to_owned()).unwrap();
        pinned.verify_server_cert(&chain[0], &chain[1..], &name, &[], now).is_ok()
    }

    #[test]
    fn a_pin_may_be_of_the_certificate_or_of_a_ca_above_it_and_must_be_one_of_them() {
        let root = root();
        let middle = CertifiedIssuer::signed_by(ca_params(), KeyPair::generate().unwrap(), &root).unwrap();
        let chain = [leaf(&middle), middle.der().clone()];
        let pin = |certificate: &CertificateDer<'_>| pin_of(certificate).unwrap();
        let name = "api.weixin.qq.com";
        let backup = pin(self::root().der());
        for good in [pin(&chain[0]), pin(&chain[1]), pin(root.der())] {
            assert!(taken(&root, &chain, name, &[backup.clone(), good.clone()]));
            assert!(
                !taken(&root, &chain, "evil.example", std::slice::from_ref(&good)),
                "a pin does not replace the name"
            );
            assert!(!taken(&self::root(), &chain, name, &[good]), "nor the chain");
        }
        assert!(!taken(&root, &chain, name, &[backup]));
    }

    #[test]
    fn a_pinned_ca_that_is_only_sent_along_proves_nothing() {
        let (root, pinned) = (root(), root());
        let chain = [leaf(&root), pinned.der().clone()];
        assert!(!taken(&root, &chain, "api.weixin.qq.com", &[pin_of(pinned.der()).unwrap()]));
    }

    #[test]
    fn a_pin_is_read_in_either_spelling_and_anything_else_is_refused() {
        let pin = "sha256/47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
        let both = format!("{pin}, {}", pin.replace("sha256/", "sha256//"));
        assert_eq!(Pins::parse(&both).unwrap().len(), 1, "the same twice");
        let slashed = "sha256//7DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
        assert_eq!(Pins::parse(slashed).unwrap().len(), 1, "a slash may be the digest's own");
        for bad in [
            "",
            "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
            "sha1/2jmj7l5rSw0yVb/vlWAYkK/YBwk=",
            "sha256/AAAA",
            "sha256/x y",
        ] {
            assert!(Pins::parse(bad).unwrap_err().contains("; copy one"), "{bad}");
        }
    }
}
