//! The local certificate authority, for apps that will speak TLS to `api.weixin.qq.com` and nothing else:
//! [`make`] writes one to a folder, [`Authority`] is one that was read, [`Identity`] the certificate it signs for us.
//!
//! SECURITY: an app that trusts a CA trusts whoever has its key. So this one is good for the closed list of hosts and
//! for no other name or address (X.509 name constraints, which the app's own TLS enforces), its key is readable by
//! its owner only, and a certificate is made in memory, lives for 90 days and is never written anywhere.

use std::fmt;
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, NameConstraints, PublicKeyData,
};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, RootCertStore, ServerConfig};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::files::{self, Content};
use crate::hosts::Hosts;

/// The file that apps trust.
pub const CERTIFICATE: &str = "ca.pem";
/// The file that the sidecar alone may read.
pub const KEY: &str = "ca-key.pem";

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How long an authority lives. The 825 and 398 days of browsers are for servers' certificates, not for roots; and
/// the end of this one is an outage in every container that trusts it, while its constraints do not wear off.
const AUTHORITY_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// From when on its end is announced.
const LAST_DAYS: Duration = Duration::from_secs(60 * 24 * 60 * 60);
/// How long a certificate lives; a new one is made every [`RENEW`].
const LEAF_LIFE: Duration = Duration::from_secs(90 * 24 * 60 * 60);
/// Certificates begin to be valid so much earlier: an app's clock may be behind ours.
const SKEW: Duration = DAY;
/// How often a certificate is made. It costs a fraction of a millisecond, so nobody has to look at the clock.
pub const RENEW: Duration = Duration::from_secs(60 * 60);
/// The largest file that is read.
const MAX_FILE: u64 = 64 * 1024;

/// What [`make`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Made {
    /// A new authority was written.
    New,
    /// There was a good one already, and it was left as it is.
    Found,
}

/// Who may read the key's file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Readers {
    Owner,
    /// Kubernetes gives a pod without root its mounted files through the group (`fsGroup`).
    OwnerAndGroup,
}

/// Makes an authority in a folder, or finds the one that is there good for these hosts.
///
/// # Errors
/// A sentence with the remedy: the folder cannot be written, holds half a pair, an open key, or something else.
pub fn make(folder: &Path, hosts: &Hosts) -> Result<Made, String> {
    let (certificate, key) = (folder.join(CERTIFICATE), folder.join(KEY));
    // Not exists(): a link to nowhere is something, too.
    match (certificate.symlink_metadata().is_ok(), key.symlink_metadata().is_ok()) {
        (true, true) => {
            return Authority::open(folder, hosts, Readers::Owner).map(|_| Made::Found);
        }
        (false, false) => {}
        (there, _) => {
            let (there, missing) = if there { (&certificate, &key) } else { (&key, &certificate) };
            return Err(format!(
                "{} is there, but {} is not; bring the other half back, or remove this one to make a new pair, which apps then have to be told to trust",
                there.display(),
                missing.display()
            ));
        }
    }
    let cannot = |path: &Path, error: io::Error| {
        format!(
            "{} cannot be written ({error}); give another folder with --dir, or correct its permissions",
            path.display()
        )
    };
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|e| cannot(folder, e))?;
    let (pem, key_pem) = generate(hosts).map_err(|error| format!("no authority can be made ({error})"))?;
    write_new(&key, 0o600, key_pem.as_bytes()).map_err(|e| cannot(&key, e))?;
    if let Err(error) = write_new(&certificate, 0o644, pem.as_bytes()) {
        // Ours, and of no use without its other half.
        let _ = std::fs::remove_file(&key);
        return Err(cannot(&certificate, error));
    }
    // What was written is what will be read.
    Authority::open(folder, hosts, Readers::Owner).map(|_| Made::New)
}

/// A new authority: its certificate and its key.
fn generate(hosts: &Hosts) -> Result<(String, Zeroizing<String>), rcgen::Error> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut params = authority_params(&key);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: hosts.certified().iter().cloned().map(GeneralSubtree::DnsName).collect(),
        // A constraint on names says nothing on addresses, so each of them is ruled out.
        excluded_subtrees: vec![
            GeneralSubtree::IpAddress(CidrSubnet::V4([0; 4], [0; 4])),
            GeneralSubtree::IpAddress(CidrSubnet::V6([0; 16], [0; 16])),
        ],
    });
    let now = now();
    params.not_before = rcgen::date_time_ymd(1970, 1, 1) + now.saturating_sub(SKEW);
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + (now + AUTHORITY_LIFE);
    let certificate = params.self_signed(&key)?;
    Ok((certificate.pem(), Zeroizing::new(key.serialize_pem())))
}

/// What an authority and whoever signs in its name have in common. All of it follows from the key, so its certificate
/// need not be taken apart: its name holds a fingerprint, which also keeps two authorities apart in a trust store.
fn authority_params(key: &KeyPair) -> CertificateParams {
    let mut params = CertificateParams::default();
    let fingerprint = Sha256::digest(key.der_bytes());
    let fingerprint: String = fingerprint.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("wechat-sidecar local CA {fingerprint}"));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn write_new(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// An authority that was read, and the hosts it is used for.
pub struct Authority {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
    hosts: Hosts,
    ends_soon: Option<String>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("hosts", &self.hosts).finish_non_exhaustive()
    }
}

impl Authority {
    /// Reads an authority that [`make`] wrote, and tries it out: what an app's TLS would refuse is refused here, with
    /// the reason.
    ///
    /// # Errors
    /// A sentence with the remedy.
    pub fn read(folder: &Path, hosts: &Hosts) -> Result<Self, String> {
        Self::open(folder, hosts, Readers::OwnerAndGroup)
    }

    fn open(folder: &Path, hosts: &Hosts, readers: Readers) -> Result<Self, String> {
        let (certificate, key_file) = (folder.join(CERTIFICATE), folder.join(KEY));
        let shown = folder.display();
        let again = format!("make a pair with `wechat-sidecar ca --dir {shown}` in an empty folder");
        let pem = read_file(&certificate, |_| Ok(()))
            .map_err(|what| format!("{what}; `wechat-sidecar ca --dir {shown}` makes one"))?;
        let key = read_file(&key_file, |mode| {
            let (forbidden, who) = match readers {
                Readers::Owner => (0o077, "others than its owner"),
                Readers::OwnerAndGroup => (0o037, "others than its owner and group"),
            };
            if mode & forbidden == 0 {
                return Ok(());
            }
            Err(format!("has mode {:03o}, which lets {who} at the CA's key", mode & 0o777))
        })
        .map_err(|what| format!("{what}; run chmod 600 {}", key_file.display()))?;

        let root = CertificateDer::from_pem_slice(&pem)
            .map_err(|_| format!("{} holds no certificate; {again}", certificate.display()))?;
        let key = std::str::from_utf8(&key).ok().and_then(|pem| KeyPair::from_pem(pem).ok());
        let key = key.ok_or_else(|| format!("{} holds no key; {again}", key_file.display()))?;
        let issuer = Issuer::new(authority_params(&key), key);
        let folder = folder.to_owned();
        let mut authority = Self { folder, issuer, root, hosts: hosts.clone(), ends_soon: None };
        match authority.ends_by(now()) {
            Some(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
                return Err(format!(
                    "{} has run out; {again}, and tell the apps to trust it",
                    certificate.display()
                ));
            }
            Some(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }) => {
                return Err(format!("{} is not valid yet; set this machine's clock", certificate.display()));
            }
            _ => {}
        }
        if let Some(CertificateError::Expired | CertificateError::ExpiredContext { .. }) =
            authority.ends_by(now() + LAST_DAYS)
        {
            authority.ends_soon = Some(format!(
                "the CA in {shown} runs out within 60 days; {again}, and tell the apps to trust it in time"
            ));
        }
        // The first is one of WeChat's own, which every pair of ours is good for.
        let first = &hosts.certified()[..1];
        if !authority.serves(first) {
            return Err(format!(
                "{} and {} are no pair of `wechat-sidecar ca`; {again}, and use it for nothing else",
                certificate.display(),
                key_file.display()
            ));
        }
        // SECURITY: an authority without constraints could speak for everyone, and is never used.
        if authority.serves(&["unconstrained.invalid".to_owned()]) {
            return Err(format!("{} is good for any host; {again}", certificate.display()));
        }
        let beyond: Vec<&str> = hosts
            .certified()
            .iter()
            .filter(|name| !authority.serves(std::slice::from_ref(name)))
            .map(String::as_str)
            .collect();
        if !beyond.is_empty() {
            return Err(format!(
                "{} is not good for {}; make another in an empty folder with the same upstream and upstream_hosts, and tell the apps to trust it",
                certificate.display(),
                beyond.join(", ")
            ));
        }
        Ok(authority)
    }

    /// What a person should know of its end, if that is near.
    #[must_use]
    pub fn ends_soon(&self) -> Option<&str> {
        self.ends_soon.as_deref()
    }

    /// What is wrong with its own dates at a time. An authority is no server, so something always is; but the dates
    /// are looked at first.
    fn ends_by(&self, time: Duration) -> Option<CertificateError> {
        match self.verify(&self.root, &self.hosts.certified()[0], time) {
            Err(rustls::Error::InvalidCertificate(error)) => Some(error),
            _ => None,
        }
    }

    /// Whether an app that trusts it would take its certificate for these names.
    fn serves(&self, names: &[String]) -> bool {
        let Ok((leaf, _)) = self.sign(names) else { return false };
        names.iter().all(|name| self.verify(&leaf, name, now()).is_ok())
    }

    fn verify(&self, leaf: &CertificateDer<'_>, name: &str, time: Duration) -> Result<(), rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone())?;
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        let name = ServerName::try_from(name).map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(leaf, &[], &name, &[], UnixTime::since_unix_epoch(time)).map(drop)
    }

    /// A certificate for these names, and its key.
    fn sign(&self, names: &[String]) -> Result<(CertificateDer<'static>, KeyPair), rcgen::Error> {
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, names.first().map_or("", String::as_str));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        // OpenSSL's strict mode, Python's default from 3.13 on, asks for it.
        params.use_authority_key_identifier_extension = true;
        let now = now();
        params.not_before = rcgen::date_time_ymd(1970, 1, 1) + now.saturating_sub(SKEW);
        params.not_after = rcgen::date_time_ymd(1970, 1, 1) + (now + LEAF_LIFE);
        let key = KeyPair::generate()?;
        let leaf = params.signed_by(&key, &self.issuer)?;
        Ok((leaf.der().clone(), key))
    }

    fn certified_key(&self) -> Result<Arc<CertifiedKey>, String> {
        let told = |error: &dyn fmt::Display| format!("no certificate can be made ({error})");
        let (leaf, key) = self.sign(self.hosts.certified()).map_err(|error| told(&error))?;
        let der = Zeroizing::new(key.serialize_der());
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(der.as_slice()));
        let key = ring::sign::any_ecdsa_type(&key).map_err(|error| told(&error))?;
        Ok(Arc::new(CertifiedKey::new(vec![leaf], key)))
    }
}

/// Reads a small file whose permissions `allow` has seen. What fails is told without a remedy.
fn read_file(
    path: &Path,
    allow: impl FnOnce(u32) -> Result<(), String>,
) -> Result<Zeroizing<Vec<u8>>, String> {
    let shown = path.display();
    let cannot = |error: io::Error| format!("{shown} cannot be read ({error})");
    let Content { bytes, mode } = files::read(path, MAX_FILE).map_err(cannot)?;
    allow(mode).map_err(|what| format!("{shown} {what}"))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(format!("{shown} is larger than 64 KiB"));
    }
    Ok(bytes)
}

/// Who we are to an app that speaks TLS: one certificate for all hosts of the list, made anew from time to time.
pub struct Identity {
    authority: RwLock<Arc<Authority>>,
    hosts: Hosts,
    current: RwLock<Arc<CertifiedKey>>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("hosts", &self.hosts).finish_non_exhaustive()
    }
}

impl Identity {
    /// The first certificate.
    ///
    /// # Errors
    /// A sentence: it cannot be made.
    pub fn new(authority: Arc<Authority>) -> Result<Arc<Self>, String> {
        let current = RwLock::new(authority.certified_key()?);
        let hosts = authority.hosts.clone();
        Ok(Arc::new(Self { authority: RwLock::new(authority), hosts, current }))
    }

    /// Takes a new certificate, with a key of its own. To be called every [`RENEW`].
    pub fn renew(&self) {
        match self.authority().certified_key() {
            Ok(fresh) => *self.current.write().unwrap_or_else(PoisonError::into_inner) = fresh,
            // The old one is good for weeks, and this is tried again.
            Err(error) => {
                tracing::warn!(%error, "the certificate for api.weixin.qq.com could not be renewed")
            }
        }
    }

    /// Reads the authority's folder again. Whether another one is there now, under which every connection from now on
    /// is certified.
    ///
    /// # Errors
    /// As [`Authority::read`]; everything stays as it was.
    pub fn reread(&self) -> Result<bool, String> {
        let before = self.authority();
        let authority = Authority::read(&before.folder, &self.hosts)?;
        if authority.root == before.root {
            return Ok(false);
        }
        let fresh = authority.certified_key()?;
        *self.authority.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(authority);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(true)
    }

    fn authority(&self) -> Arc<Authority> {
        Arc::clone(&self.authority.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The hosts it is for.
    #[must_use]
    pub fn hosts(&self) -> &Hosts {
        &self.hosts
    }

    /// The server side of TLS 1.2 and 1.3 that shows it, speaking HTTP/1.1.
    ///
    /// # Errors
    /// A sentence: no such configuration can be made.
    pub fn server_config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, String> {
        let provider = Arc::new(ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("no TLS ({error})"))?;
        let mut config = config.with_no_client_auth().with_cert_resolver(Arc::clone(self) as _);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

impl ResolvesServerCert for Identity {
    /// SECURITY: who asks for another host, or for none, is told that we are not it.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name()?;
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        self.hosts().certifies(name).then(|| Arc::clone(&current))
    }
}

/// Since 1970. The wall clock, because that is what an app's TLS will hold the dates against.
#[expect(clippy::disallowed_methods, reason = "certificates are dated by the wall clock")]
fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// A folder as it is shown to people who will copy it into another shell.
#[must_use]
pub fn absolute(folder: &Path) -> PathBuf {
    std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::origin::Origin;

    fn hosts(more: &[&str]) -> Hosts {
        let wechat = Origin::parse("https://api.weixin.qq.com").unwrap();
        Hosts::new(&wechat, more.iter().map(|&name| name.to_owned()).collect())
    }

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o777
    }

    fn set_mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn an_authority_is_good_for_the_list_and_a_verifying_client_refuses_all_else() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("new/ca");
        let hosts = hosts(&["gateway.example.com"]);
        assert_eq!(make(&folder, &hosts), Ok(Made::New));
        let authority = Authority::read(&folder, &hosts).unwrap();
        for good in hosts.certified() {
            assert!(authority.serves(std::slice::from_ref(good)), "{good}");
        }
        for bad in [
            "evil.example",
            "qq.com",
            "weixin.qq.com",
            "mp.weixin.qq.com",
            "api.weixin.qq.com.evil.example",
            "example.com",
            "127.0.0.1",
            "::1",
        ] {
            assert!(!authority.serves(&[bad.to_owned()]), "{bad}");
            // One bad name spoils the whole certificate.
            let (leaf, _) = authority.sign(&["api.weixin.qq.com".to_owned(), bad.to_owned()]).unwrap();
            assert!(authority.verify(&leaf, "api.weixin.qq.com", now()).is_err(), "{bad}");
        }
        assert_eq!(authority.ends_soon(), None);
    }

    #[test]
    fn a_certificate_outlives_its_renewal_and_bears_a_slow_clock() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), &hosts(&[])).unwrap();
        let authority = Arc::new(Authority::read(dir.path(), &hosts(&[])).unwrap());
        let (leaf, _) = authority.sign(authority.hosts.certified()).unwrap();
        let at = |time| authority.verify(&leaf, "api.weixin.qq.com", time);
        assert!(at(now() - DAY / 2).is_ok() && at(now() + LEAF_LIFE / 2).is_ok());
        assert!(at(now() - 2 * DAY).is_err() && at(now() + LEAF_LIFE + DAY).is_err());

        let identity = Identity::new(authority).unwrap();
        let shown = || identity.current.read().unwrap().cert[0].clone();
        let first = shown();
        identity.renew();
        assert_ne!(first, shown());
    }

    #[test]
    fn the_end_of_an_authority_is_seen_coming() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), &hosts(&[])).unwrap();
        let authority = Authority::read(dir.path(), &hosts(&[])).unwrap();
        let expired = |time| {
            matches!(
                authority.ends_by(time),
                Some(CertificateError::Expired | CertificateError::ExpiredContext { .. })
            )
        };
        assert!(!expired(now()) && !expired(now() + AUTHORITY_LIFE - DAY));
        assert!(expired(now() + AUTHORITY_LIFE + DAY));
        assert!(matches!(
            authority.ends_by(Duration::ZERO),
            Some(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. })
        ));
    }

    #[test]
    fn the_key_is_for_its_owner_and_is_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("ca");
        make(&folder, &hosts(&[])).unwrap();
        let (certificate, key) = (folder.join(CERTIFICATE), folder.join(KEY));
        assert_eq!((mode(&folder), mode(&key)), (0o700, 0o600));
        let shown = format!("{:?}", Authority::read(&folder, &hosts(&[])).unwrap());
        assert!(!shown.to_lowercase().contains("key"), "{shown}");

        for open in [0o604, 0o660, 0o666, 0o602] {
            set_mode(&key, open);
            for told in [
                make(&folder, &hosts(&[])).map(drop).unwrap_err(),
                Authority::read(&folder, &hosts(&[])).map(drop).unwrap_err(),
            ] {
                assert!(told.contains(&format!("{open:03o}")) && told.contains("; run chmod 600 "), "{told}");
            }
        }
        // A pod's fsGroup: good enough to run with, not to make with.
        set_mode(&key, 0o440);
        assert!(Authority::read(&folder, &hosts(&[])).is_ok());
        assert!(make(&folder, &hosts(&[])).is_err());
        set_mode(&certificate, 0o666);
        assert!(Authority::read(&folder, &hosts(&[])).is_ok(), "the certificate is no secret");
    }

    #[test]
    fn an_authority_that_is_there_is_used_again_and_half_a_pair_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (certificate, key) = (dir.path().join(CERTIFICATE), dir.path().join(KEY));
        let read = || (std::fs::read(&certificate).unwrap(), std::fs::read(&key).unwrap());
        make(dir.path(), &hosts(&[])).unwrap();
        let before = read();
        assert_eq!(make(dir.path(), &hosts(&[])), Ok(Made::Found));
        assert_eq!(read(), before);

        let told = make(dir.path(), &hosts(&["more.example.com"])).unwrap_err();
        assert!(told.contains("not good for more.example.com; "), "{told}");

        std::fs::remove_file(&certificate).unwrap();
        let told = make(dir.path(), &hosts(&[])).unwrap_err();
        assert!(told.contains("ca-key.pem is there, but") && told.contains("ca.pem is not; "), "{told}");
        assert_eq!(std::fs::read(&key).unwrap(), before.1, "nothing is overwritten");
        let told = Authority::read(dir.path(), &hosts(&[])).map(drop).unwrap_err();
        assert!(told.contains("ca.pem cannot be read") && told.contains("wechat-sidecar ca --dir"), "{told}");
    }

    #[test]
    fn an_authority_that_was_replaced_is_read_again_and_a_broken_one_changes_nothing() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let hosts = hosts(&[]);
        make(one.path(), &hosts).unwrap();
        make(two.path(), &hosts).unwrap();
        let identity = Identity::new(Arc::new(Authority::read(one.path(), &hosts).unwrap())).unwrap();
        let shown = || identity.current.read().unwrap().cert[0].clone();
        let before = shown();
        assert_eq!(identity.reread(), Ok(false));
        std::fs::copy(two.path().join(KEY), one.path().join(KEY)).unwrap();
        assert!(identity.reread().unwrap_err().contains("are no pair"), "half of it is there");
        assert_eq!(shown(), before);
        std::fs::copy(two.path().join(CERTIFICATE), one.path().join(CERTIFICATE)).unwrap();
        assert_eq!(identity.reread(), Ok(true));
        assert_ne!(shown(), before);
        identity.authority().verify(&shown(), "api.weixin.qq.com", now()).unwrap();
    }

    #[test]
    fn what_ca_did_not_make_is_refused() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        make(one.path(), &hosts(&[])).unwrap();
        make(two.path(), &hosts(&[])).unwrap();
        let refused = || Authority::read(one.path(), &hosts(&[])).map(drop).unwrap_err();
        std::fs::copy(two.path().join(CERTIFICATE), one.path().join(CERTIFICATE)).unwrap();
        assert!(refused().contains("are no pair"), "{}", refused());

        // The right name and key, and no constraints.
        let key = KeyPair::from_pem(&std::fs::read_to_string(one.path().join(KEY)).unwrap()).unwrap();
        let mut params = authority_params(&key);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let open = params.self_signed(&key).unwrap();
        std::fs::write(one.path().join(CERTIFICATE), open.pem()).unwrap();
        assert!(refused().contains("good for any host"), "{}", refused());

        std::fs::write(one.path().join(CERTIFICATE), "nothing").unwrap();
        assert!(refused().contains("ca.pem holds no certificate"), "{}", refused());
        std::fs::copy(two.path().join(CERTIFICATE), one.path().join(CERTIFICATE)).unwrap();
        std::fs::write(one.path().join(KEY), "5ec2e7").unwrap();
        assert!(refused().contains("ca-key.pem holds no key") && !refused().contains("5ec2e7"));
        std::fs::write(one.path().join(KEY), vec![b'x'; 70_000]).unwrap();
        assert!(refused().contains("larger than 64 KiB"), "{}", refused());
    }
}
