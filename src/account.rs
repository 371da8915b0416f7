//! Who we are: an [`Account`] is one WeChat appid with its secret, the keeper of its token, and the placeholder its
//! apps get instead.

use std::sync::Arc;

use arc_swap::ArcSwap;
use zeroize::Zeroizing;

use crate::credentials::{AppId, Secret, SecretOrigin};
use crate::token::keeper::TokenKeeper;
use crate::token::percent_encode;
use crate::token::source::Endpoint;

/// One WeChat account as it was configured.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its public name.
    pub appid: AppId,
    /// Its AppSecret.
    pub secret: Secret,
    /// Where the secret came from.
    pub secret_origin: SecretOrigin,
    /// Which endpoint issues its token.
    pub endpoint: Endpoint,
}

/// One WeChat account at work. Cheap to clone.
#[derive(Clone)]
pub struct Account(Arc<Inner>);

struct Inner {
    appid: AppId,
    /// Swapped as a whole, so that a call takes no lock for it.
    secrets: ArcSwap<Secrets>,
    keeper: TokenKeeper,
    placeholder: String,
}

impl Account {
    /// An account whose token `keeper` keeps.
    #[must_use]
    pub fn new(appid: AppId, secret: Secret, keeper: TokenKeeper) -> Self {
        let secrets = ArcSwap::from_pointee(Secrets { spelled: vec![Spelled::new(secret)] });
        Self(Arc::new(Inner { placeholder: placeholder(&appid), appid, secrets, keeper }))
    }

    /// Its public name.
    #[must_use]
    pub fn appid(&self) -> &AppId {
        &self.0.appid
    }

    /// Its AppSecret as it is now, and those before it.
    #[must_use]
    pub fn secrets(&self) -> Arc<Secrets> {
        self.0.secrets.load_full()
    }

    /// Takes another AppSecret, for every call from now on.
    pub fn replace_secret(&self, secret: Secret) {
        self.0.secrets.store(Arc::new(self.secrets().followed_by(secret)));
    }

    /// Its token.
    #[must_use]
    pub fn keeper(&self) -> &TokenKeeper {
        &self.0.keeper
    }

    /// What its apps get in place of a token.
    #[must_use]
    pub fn placeholder(&self) -> &str {
        &self.0.placeholder
    }
}

/// AppSecrets that were replaced and are remembered: WeChat may echo one in a reply that is still on its way.
const REMEMBERED: usize = 4;

/// An account's AppSecret, and those before it, for masking them where they would leak.
pub struct Secrets {
    /// The latest first.
    spelled: Vec<Spelled>,
}

impl Secrets {
    /// The one in force.
    #[must_use]
    pub fn current(&self) -> &Spelled {
        &self.spelled[0]
    }

    /// All of them.
    pub fn known(&self) -> impl Iterator<Item = &Spelled> {
        self.spelled.iter()
    }

    fn followed_by(&self, secret: Secret) -> Self {
        let before = self.spelled.iter().filter(|before| before.secret != secret).take(REMEMBERED).cloned();
        Self { spelled: [Spelled::new(secret.clone())].into_iter().chain(before).collect() }
    }
}

/// An AppSecret in both spellings. SECURITY: only for the wire to WeChat, and for masks.
#[derive(Clone)]
pub struct Spelled {
    secret: Secret,
    encoded: Zeroizing<String>,
}

impl Spelled {
    fn new(secret: Secret) -> Self {
        let encoded = Zeroizing::new(percent_encode(secret.expose()));
        Self { secret, encoded }
    }

    /// The secret.
    #[must_use]
    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    /// As it is.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.secret.expose()
    }

    /// As it stands in a query.
    #[must_use]
    pub fn encoded(&self) -> &str {
        &self.encoded
    }
}

const PLACEHOLDER_HEAD: &str = "WECHAT-SIDECAR_";
const PLACEHOLDER_NOT: &str = "_not-a-";
const PLACEHOLDER_TAIL: &str = "_not-a-token_the-sidecar-puts-the-real-one-into-each-call";

/// The token an app is given: constant per account over restarts, replicas and versions, because SDKs keep it in
/// files and Redis (`sdks.md` 3); `[A-Za-z0-9_-]`, because some paste it into a URL unescaped; not made from the
/// secret; and naming its account, so that one base URL serves several.
fn placeholder(appid: &AppId) -> String {
    format!("{PLACEHOLDER_HEAD}{appid}{PLACEHOLDER_TAIL}")
}

/// Whether a token is a placeholder, of this installation or another, whole or cut: never for WeChat's eyes.
#[must_use]
pub fn is_placeholder(token: &str) -> bool {
    token.starts_with(PLACEHOLDER_HEAD)
}

/// The appid a placeholder names, or what is left of it in one that was cut: empty when it was cut before. `None` for
/// what is no placeholder.
#[must_use]
pub fn placeholder_appid(token: &str) -> Option<&str> {
    let rest = token.strip_prefix(PLACEHOLDER_HEAD)?;
    // An appid may have `_` in it, but not this.
    Some(rest.split_once(PLACEHOLDER_NOT).map_or(rest, |(appid, _)| appid))
}

/// An account for unit tests, whose keeper never runs.
#[cfg(test)]
pub(crate) fn idle(appid: &str, secret: &str) -> Account {
    use crate::token::source::{Config, Source};
    use std::time::Duration;
    let config = Config {
        endpoint: Endpoint::Stable,
        origin: crate::origin::Origin::parse("http://127.0.0.1:1").unwrap(),
        roots: crate::tls::ExtraRoots::default(),
        connect_timeout: Duration::from_secs(1),
        fetch_timeout: Duration::from_secs(1),
    };
    let appid = AppId::parse(appid).unwrap();
    let secret = Secret::parse(secret).unwrap();
    let source = Source::new(&config, appid.clone(), secret.clone()).unwrap();
    let (keeper, _worker) = TokenKeeper::new(appid.clone(), source, crate::token::store::MemoryStore::new());
    Account::new(appid, secret, keeper)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placeholder_names_its_account_and_needs_no_escape() {
        let appid = AppId::parse("wx0123456789abcdef").unwrap();
        let placeholder = placeholder(&appid);
        assert_eq!(
            placeholder,
            "WECHAT-SIDECAR_wx0123456789abcdef_not-a-token_the-sidecar-puts-the-real-one-into-each-call",
            "apps have it in files and Redis: it never changes"
        );
        assert_eq!(placeholder_appid(&placeholder), Some("wx0123456789abcdef"));
        assert!(placeholder.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-'));
        assert_eq!(placeholder_appid("50_real"), None);
        assert_eq!(placeholder_appid(&placeholder[..50]), Some("wx0123456789abcdef"), "cut behind it");
        assert_eq!(placeholder_appid(&placeholder[..33]), Some("wx0123456789abcdef"), "cut right behind it");
        assert_eq!(placeholder_appid(&placeholder[..25]), Some("wx01234567"), "cut within it: nobody's");
    }
}
