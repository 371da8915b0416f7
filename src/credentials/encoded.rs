//! Credentials as they stand in a query: [`PercentEncoded`] is one, kept so because encoding 512 characters on every call
//! would cost more than the rest of the injection; [`Encoded`] is a value that was found fit to stand there.

use std::fmt;

use zeroize::Zeroizing;

use crate::credentials::AppId;

/// All but the unreserved characters of RFC 3986 2.3 is escaped, so that no value can end the parameter it stands in.
const ESCAPED: &percent_encoding::AsciiSet =
    &percent_encoding::NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// A credential, percent-encoded. SECURITY: as secret as what went in; wiped on drop, and without a way to print it.
#[derive(Clone)]
pub struct PercentEncoded(Zeroizing<String>);

impl PercentEncoded {
    /// Encodes a value.
    #[must_use]
    pub fn of(value: &str) -> Self {
        Self(Zeroizing::new(percent_encoding::utf8_percent_encode(value, ESCAPED).to_string()))
    }

    /// The text. SECURITY: only for masks and for the wire to WeChat.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The same, for a query.
    #[must_use]
    pub fn in_query(&self) -> Encoded<'_> {
        Encoded(&self.0)
    }
}

/// A value in which nothing ends a parameter, a query or a request line.
#[derive(Clone, Copy)]
pub struct Encoded<'a>(&'a str);

impl<'a> Encoded<'a> {
    /// Takes a value that was encoded elsewhere.
    ///
    /// SECURITY: an `&` would smuggle in a second parameter, a space or control end the request line, and whoever reads
    /// a `#` cuts the target there.
    #[must_use]
    pub fn new(value: &'a str) -> Option<Self> {
        let fit = |b: u8| matches!(b, b'!'..=b'~') && !matches!(b, b'&' | b'#' | b'"' | b'<' | b'>');
        value.bytes().all(fit).then_some(Self(value))
    }

    /// The value.
    #[must_use]
    pub fn as_str(self) -> &'a str {
        self.0
    }
}

/// An appid has nothing in it that would have to be encoded.
impl<'a> From<&'a AppId> for Encoded<'a> {
    fn from(appid: &'a AppId) -> Self {
        Self(appid.as_str())
    }
}

impl fmt::Debug for Encoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_encoded_here_is_fit_for_a_query_and_other_things_are_not() {
        for value in ["50_Im7-x.~", "a+/=&#%x", "微信 \r\n\0\"<>", ""] {
            let encoded = PercentEncoded::of(value);
            assert_eq!(
                Encoded::new(encoded.expose()).unwrap().as_str(),
                encoded.in_query().as_str(),
                "{value:?}"
            );
        }
        assert_eq!(PercentEncoded::of("a&b").expose(), "a%26b");
        for bad in ["a&b", "a b", "a#b", "a\r\nb", "a\"b", "<", ">", "a\u{7f}", "\u{e9}"] {
            assert!(Encoded::new(bad).is_none(), "{bad:?}");
        }
        assert_eq!(format!("{:?}", PercentEncoded::of("a").in_query()), "***");
    }
}
