//! Who we are: an [`Account`] is one WeChat appid with its secret, the keeper of its token, the placeholder its apps get
//! instead, and the [`Terms`] on which they call.

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::clients;
use crate::credentials::alphabet::Alphabet;
use crate::credentials::encoded::PercentEncoded;
use crate::credentials::{AppId, Secret, SecretOrigin};
use crate::policy::Policy;
use crate::rates::Rates;
use crate::slots::Slots;
use crate::token::bridge::format::Format;
use crate::token::keeper::TokenKeeper;
use crate::token::source::Endpoint;

/// One WeChat account as it was configured.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its public name.
    pub appid: AppId,
    /// Its AppSecret, if this sidecar has it.
    pub secret: Option<Secret>,
    /// Where the secret came from.
    pub secret_origin: Option<SecretOrigin>,
    /// Which endpoint issues its token.
    pub endpoint: Endpoint,
    /// Where apps that have yet to move look for its token.
    pub bridge: Vec<Format>,
    /// On which terms its apps call.
    pub terms: Terms,
}

/// What an account's apps may call, how often, and how much at once. Cheap to clone: clones count together.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Which paths.
    pub policy: Policy,
    /// How often.
    pub rates: Rates,
    /// How many calls at once.
    pub calls: Slots,
}

impl Default for Terms {
    fn default() -> Self {
        Self { policy: Policy::default(), rates: Rates::default(), calls: Slots::unlimited() }
    }
}

/// One WeChat account at work. Cheap to clone.
#[derive(Clone)]
pub struct Account(Arc<Inner>, Terms);

struct Inner {
    appid: AppId,
    /// Swapped as a whole, so that a call takes no lock for it.
    secrets: ArcSwap<Secrets>,
    keeper: TokenKeeper,
    placeholder: String,
}

impl Account {
    /// An account whose token `keeper` keeps. Without a secret it has no login calls.
    #[must_use]
    pub fn new(appid: AppId, secret: Option<Secret>, keeper: TokenKeeper) -> Self {
        let secrets =
            ArcSwap::from_pointee(Secrets { spelled: secret.map(Spelled::new).into_iter().collect() });
        let placeholder = placeholder(&appid);
        Self(Arc::new(Inner { placeholder, appid, secrets, keeper }), Terms::default())
    }

    /// The same account on these terms.
    #[must_use]
    pub fn on(self, terms: Terms) -> Self {
        Self(self.0, terms)
    }

    /// On which terms its apps call.
    #[must_use]
    pub fn terms(&self) -> &Terms {
        &self.1
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

    /// The same for the holder of a client key: it names the account, and ends in what only that key makes.
    #[must_use]
    pub fn placeholder_for(&self, key: &str) -> String {
        let appid = self.appid();
        format!("{PLACEHOLDER_HEAD}{appid}{PLACEHOLDER_BOUND}{}", clients::tag(key, appid))
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
    /// The one in force, if this sidecar has it.
    #[must_use]
    pub fn current(&self) -> Option<&Spelled> {
        self.spelled.first()
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
    encoded: PercentEncoded,
    alphabet: Alphabet,
}

impl Spelled {
    fn new(secret: Secret) -> Self {
        let encoded = PercentEncoded::of(secret.expose());
        let alphabet = Alphabet::of(&[secret.expose(), encoded.expose()]);
        Self { secret, encoded, alphabet }
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
    pub fn encoded(&self) -> &PercentEncoded {
        &self.encoded
    }

    /// The bytes both are made of.
    #[must_use]
    pub fn alphabet(&self) -> &Alphabet {
        &self.alphabet
    }
}

const PLACEHOLDER_HEAD: &str = "WECHAT-SIDECAR_";
const PLACEHOLDER_NOT: &str = "_not-a-";
const PLACEHOLDER_BOUND: &str = "_not-a-token_key-";
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

/// What a placeholder that was given for a client key ends in.
#[must_use]
pub fn placeholder_tag(token: &str) -> Option<&str> {
    token.strip_prefix(PLACEHOLDER_HEAD)?.split_once(PLACEHOLDER_BOUND).map(|(_, tag)| tag)
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
        proxy: None,
        connect_timeout: Duration::from_secs(1),
        fetch_timeout: Duration::from_secs(1),
    };
    let appid = AppId::parse(appid).unwrap();
    let secret = Secret::parse(secret).unwrap();
    let source = Source::new(&config, appid.clone(), secret.clone()).unwrap();
    let (keeper, _worker) = TokenKeeper::new(appid.clone(), source, crate::token::store::MemoryStore::new());
    Account::new(appid, Some(secret), keeper)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_that_was_replaced_is_remembered_for_a_while() {
        let account = idle("wx1", "first");
        for n in 0..10 {
            account.replace_secret(Secret::parse(&format!("secret&{n}")).unwrap());
        }
        let secrets = account.secrets();
        assert_eq!(
            (secrets.current().unwrap().expose(), secrets.current().unwrap().encoded().expose()),
            ("secret&9", "secret%269")
        );
        let known: Vec<_> = secrets.known().map(Spelled::expose).collect();
        assert_eq!(known, ["secret&9", "secret&8", "secret&7", "secret&6", "secret&5"]);
        account.replace_secret(Secret::parse("secret&8").unwrap());
        let secrets = account.secrets();
        let known: Vec<_> = secrets.known().map(Spelled::expose).collect();
        assert_eq!(known, ["secret&8", "secret&9", "secret&7", "secret&6", "secret&5"], "each is known once");
    }

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
        assert_eq!(placeholder_tag(&placeholder), None);
        let bound = idle("wx0123456789abcdef", "12345678").placeholder_for("key-0123456789abcdef");
        let tag = clients::tag("key-0123456789abcdef", &appid);
        assert_eq!(
            bound,
            format!("WECHAT-SIDECAR_wx0123456789abcdef_not-a-token_key-{tag}"),
            "nor does this one"
        );
        assert_eq!(
            (placeholder_appid(&bound), placeholder_tag(&bound)),
            (Some("wx0123456789abcdef"), Some(&tag[..]))
        );
        assert_eq!(placeholder_appid(&placeholder[..50]), Some("wx0123456789abcdef"), "cut behind it");
        assert_eq!(placeholder_appid(&placeholder[..33]), Some("wx0123456789abcdef"), "cut right behind it");
        assert_eq!(placeholder_appid(&placeholder[..25]), Some("wx01234567"), "cut within it: nobody's");
    }
}
