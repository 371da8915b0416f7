//! The words that label a counter: what a call wanted ([`Action`]), what became of it ([`Outcome`]), what WeChat said
//! ([`Errcode`]). All of them are interfaces: dashboards match on them.

use crate::error::Cause;

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$each:meta])* $variant:ident => $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$each])* $variant,)* }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];
            /// The label's value.
            #[must_use]
            pub fn name(self) -> &'static str { match self { $(Self::$variant => $word,)* } }
        }
    };
}

words! {
    /// What a call wanted.
    Action {
        /// It was refused before that was known.
        None => "none",
        /// Our token in its query.
        AppendToken => "append-token",
        /// The account's appid and secret.
        AppendSecret => "append-secret",
        /// A token of its own.
        KeepUserToken => "keep-user-token",
        /// A token: answered here, with a placeholder.
        AnswerToken => "answer-token",
        /// Another account: answered here.
        AnswerUnknownAppid => "answer-unknown-appid",
    }
}

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It was answered well.
    Ok,
    /// WeChat answered with an errcode other than 0, or an error status.
    WechatError,
    /// WeChat refused the token, and took the next one.
    RefusedAndCured,
    /// WeChat refused the token, and that is what the app saw.
    Refused,
    /// The reply broke off on its way.
    Cut,
    /// The app went away.
    Left,
    /// We answered with an error.
    Ours(Cause),
}

impl Outcome {
    /// Those that WeChat answered.
    pub(super) const WITH_ERRCODE: &[Self] =
        &[Self::Ok, Self::WechatError, Self::RefusedAndCured, Self::Refused];

    /// How many others there are.
    pub(super) const WITHOUT_ERRCODE: usize = 2 + Cause::ALL.len();

    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        let others =
            [Self::Cut, Self::Left].into_iter().chain(Cause::ALL.iter().map(|&cause| Self::Ours(cause)));
        Self::WITH_ERRCODE.iter().copied().chain(others)
    }

    /// The label's value: of our own errors, the cause.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::WechatError => "wechat-error",
            Self::RefusedAndCured => "refused-and-cured",
            Self::Refused => "refused",
            Self::Cut => "cut",
            Self::Left => "left",
            Self::Ours(cause) => cause.name(),
        }
    }

    /// Where it stands among those that WeChat did not answer.
    pub(super) fn index_without_errcode(self) -> usize {
        match self {
            Self::Ours(cause) => 2 + cause as usize,
            Self::Left => 1,
            Self::Ok | Self::WechatError | Self::RefusedAndCured | Self::Refused | Self::Cut => 0,
        }
    }
}

/// The codes that say that a token is bad (`wechat-api.md` 3.1).
pub const REFUSALS: [i64; 3] = [40001, 40014, 42001];

/// WeChat's errcodes that have a label of their own, in order: the token's and the account's, those of the sender's
/// whitelist, the quotas, and the ones a busy app meets every day. Every other one is `other`.
const KNOWN: &[(i64, &str)] = &[
    (-1, "-1"),
    (0, "0"),
    (40001, "40001"),
    (40003, "40003"),
    (40007, "40007"),
    (40013, "40013"),
    (40014, "40014"),
    (40029, "40029"),
    (40037, "40037"),
    (40066, "40066"),
    (40125, "40125"),
    (40163, "40163"),
    (40164, "40164"),
    (40226, "40226"),
    (41001, "41001"),
    (41002, "41002"),
    (41004, "41004"),
    (41030, "41030"),
    (42001, "42001"),
    (43004, "43004"),
    (43101, "43101"),
    (45009, "45009"),
    (45011, "45011"),
    (45015, "45015"),
    (45047, "45047"),
    (47001, "47001"),
    (47003, "47003"),
    (48001, "48001"),
    (48004, "48004"),
    (48006, "48006"),
    (50002, "50002"),
    (61004, "61004"),
    (61007, "61007"),
    (87014, "87014"),
    (89503, "89503"),
];

/// WeChat's errcode as a label: itself, `other`, or `none` where the reply named none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Errcode(u8);

impl Errcode {
    /// No errcode was named.
    pub const NONE: Self = Self(0);
    const OTHER: Self = Self(1);
    /// How many labels there are.
    pub(super) const COUNT: usize = KNOWN.len() + 2;

    /// The label of a code.
    #[must_use]
    pub fn of(code: Option<i64>) -> Self {
        let Some(code) = code else { return Self::NONE };
        let at = KNOWN.binary_search_by_key(&code, |(known, _)| *known);
        at.ok().and_then(|at| u8::try_from(at + 2).ok()).map_or(Self::OTHER, Self)
    }

    /// The label's value.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self.0 {
            0 => "none",
            1 => "other",
            n => KNOWN[usize::from(n) - 2].1,
        }
    }

    pub(super) fn index(self) -> usize {
        usize::from(self.0)
    }

    /// All of them.
    pub(super) fn all() -> &'static [Self] {
        static ALL: [Errcode; Errcode::COUNT] = {
            let mut all = [Errcode(0); Errcode::COUNT];
            let mut n = 0;
            while n < all.len() {
                all[n] = Errcode(n as u8);
                n += 1;
            }
            all
        };
        &ALL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errcode_is_itself_or_other() {
        for (code, name) in KNOWN {
            assert_eq!(Errcode::of(Some(*code)).name(), *name);
            assert_eq!(code.to_string(), *name);
        }
        assert_eq!(Errcode::of(Some(123_456_789)).name(), "other");
        assert_eq!(Errcode::of(None), Errcode::NONE);
        assert!(KNOWN.is_sorted_by_key(|(code, _)| *code), "it is searched by halves");
        assert!(REFUSALS.iter().all(|code| Errcode::of(Some(*code)) != Errcode::OTHER));
    }

    #[test]
    fn every_outcome_has_a_name_of_its_own_in_kebab_case() {
        let mut names: Vec<_> = Outcome::all().map(Outcome::name).collect();
        assert!(names.iter().all(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')));
        names.sort_unstable();
        let before = names.len();
        names.dedup();
        assert_eq!(names.len(), before);
    }
}
