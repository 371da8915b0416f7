//! What a token endpoint's reply says: [`parse_reply`], pure, lenient in what it takes.
//!
//! Bodies of this API are known to hold raw control characters and invalid UTF-8, numbers written as strings, and
//! an `errcode` under status 200 (`wechat-api.md` 3.3). What cannot be a token is refused as transient: garbage
//! passes, and a live token is served meanwhile.

use std::time::Duration;

use http::StatusCode;
use serde_json::{Map, Value};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::errcode::{FetchError, presentable};
use crate::credentials::Secret;
use crate::token::Token;

/// The life of a token whose reply names none: the least stable_token ever returns (`wechat-api.md` 2, T4).
const ASSUMED_LIFE: i64 = 300;
/// Twelve times the documented 7200 s. What is above is no life but a mistake, which we would serve for days.
pub(super) const LONGEST_LIFE: i64 = 86_400;

/// Reads one reply. The life counts from `asked_at`; the secret is only looked for, to keep it out of the error.
///
/// # Errors
/// What it says instead of a token, or that it makes no sense.
pub fn parse_reply(
    status: StatusCode,
    body: &[u8],
    asked_at: Instant,
    secret: &Secret,
) -> Result<Token, FetchError> {
    let said = read_object(body);
    if let Some(object) = &said {
        // An errcode is heard before anything else, whatever the status and even beside a token.
        refusal(object, secret)?;
    }
    if !status.is_success() {
        return Err(FetchError::transient(unsuccessful(status)));
    }
    let Some(mut object) = said else {
        return Err(FetchError::transient(format!(
            "the reply to the token request is not a JSON object ({} bytes); it is asked again, and if this goes on something else than WeChat answers, check upstream",
            body.len()
        )));
    };
    let Some(Value::String(value)) = object.remove("access_token") else {
        return Err(FetchError::transient(
            "the reply to the token request has no access_token in it; it is asked again, and if this goes on something else than WeChat answers, check upstream",
        ));
    };
    let value = Zeroizing::new(value);
    let life = life(object.get("expires_in")).map_err(|what| {
        FetchError::transient(format!(
            "the token WeChat issued cannot be used, {what}; it is asked again shortly"
        ))
    })?;
    Token::new(&value, asked_at, life).map_err(|what| {
        FetchError::transient(format!(
            "the token WeChat issued cannot be used: {what}; it is asked again shortly"
        ))
    })
}

/// The body as a JSON object, if it is one, after what strict JSON would trip over is gone: invalid UTF-8 becomes
/// U+FFFD and control characters become spaces, neither of which can turn a bad token into a good one.
pub(super) fn read_object(body: &[u8]) -> Option<Map<String, Value>> {
    let mut text = Zeroizing::new(String::with_capacity(body.len()));
    for chunk in body.utf8_chunks() {
        text.extend(chunk.valid().chars().map(|c| if c.is_ascii_control() { ' ' } else { c }));
        if !chunk.invalid().is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }
    match serde_json::from_str(text.trim_start_matches('\u{feff}')) {
        Ok(Value::Object(object)) => Some(object),
        _ => None,
    }
}

/// `Err` when the object names an errcode other than 0.
fn refusal(object: &Map<String, Value>, secret: &Secret) -> Result<(), FetchError> {
    let errmsg = object.get("errmsg").and_then(Value::as_str).unwrap_or_default();
    match object.get("errcode") {
        None | Some(Value::Null) => Ok(()),
        Some(written) => match integer(written) {
            Some(0) => Ok(()),
            Some(errcode) => Err(FetchError::refused(errcode, errmsg, secret)),
            None => Err(FetchError::transient(format!(
                "WeChat answered the token request with an errcode that is no number ({}); it is asked again shortly",
                presentable(errmsg, secret)
            ))),
        },
    }
}

fn unsuccessful(status: StatusCode) -> String {
    let code = status.as_u16();
    if status.is_redirection() {
        format!(
            "the token request was answered with a redirect ({code}), which is never followed because it carries the AppSecret; check that upstream is WeChat"
        )
    } else if status.is_server_error() {
        format!("WeChat answered the token request with HTTP {code}; it is asked again shortly")
    } else {
        format!(
            "the token request was answered with HTTP {code}; it is asked again, and if this goes on check that upstream is WeChat"
        )
    }
}

fn life(written: Option<&Value>) -> Result<Duration, String> {
    let seconds = match written {
        None | Some(Value::Null) => ASSUMED_LIFE,
        Some(written) => integer(written).ok_or("its expires_in is not a whole number of seconds")?,
    };
    match u64::try_from(seconds) {
        Ok(0) | Err(_) => Err(format!("it is dead on arrival (expires_in {seconds})")),
        Ok(_) if seconds > LONGEST_LIFE => {
            Err(format!("its expires_in of {seconds} is absurd (7200 is documented)"))
        }
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
    }
}

/// A whole number, however it is written: `7200`, `7200.0`, `"7200"`.
pub(super) fn integer(written: &Value) -> Option<i64> {
    match written {
        Value::Number(number) => number.as_i64().or_else(|| number.as_f64().and_then(whole)),
        Value::String(text) => {
            let text = text.trim();
            text.parse().ok().or_else(|| text.parse().ok().and_then(whole))
        }
        _ => None,
    }
}

/// A float that is a whole number a float holds exactly (below 2^53).
#[expect(clippy::cast_possible_truncation, reason = "whole and below 2^53")]
fn whole(number: f64) -> Option<i64> {
    (number.fract() == 0.0 && number.abs() < 9_007_199_254_740_992.0).then_some(number as i64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::token::source::Class;

    fn parse(status: u16, body: impl AsRef<[u8]>) -> Result<Token, FetchError> {
        let secret = Secret::parse("s3cr3t").unwrap();
        parse_reply(StatusCode::from_u16(status).unwrap(), body.as_ref(), Instant::now(), &secret)
    }

    fn life_of(expires_in: &str) -> Result<u64, String> {
        let body = format!(r#"{{"access_token":"TOK","expires_in":{expires_in}}}"#);
        match parse(200, body) {
            Ok(token) => Ok((token.expires_at() - token.fetched_at()).as_secs()),
            Err(error) => {
                assert_eq!((error.class, error.errcode), (Class::Transient, None));
                assert!(!error.sentence.contains("TOK"));
                Err(error.sentence)
            }
        }
    }

    #[test]
    fn a_token_is_taken_with_its_life() {
        let token = parse(200, r#"{"access_token":"50_Im7-x","expires_in":7200}"#).unwrap();
        assert_eq!(token.expose(), "50_Im7-x");
        assert_eq!(token.expires_at() - token.fetched_at(), Duration::from_secs(7200));
        let odd = b"\xef\xbb\xbf \n{\"errcode\":0,\"errmsg\":\"o\x01k\xff\",\"expires_in\":345,\"access_token\":\"T\"}\r\n";
        assert_eq!(parse(200, odd).unwrap().expose(), "T");
    }

    #[test]
    fn a_life_may_be_written_in_many_ways() {
        for (written, seconds) in [
            ("7200", 7200),
            ("1", 1),
            ("300", 300),
            ("\"7200\"", 7200),
            ("\" 7200 \"", 7200),
            ("7200.0", 7200),
            ("7.2e3", 7200),
            ("null", 300),
            ("86400", 86_400),
        ] {
            assert_eq!(life_of(written), Ok(seconds), "{written}");
        }
        assert_eq!(parse(200, r#"{"access_token":"T"}"#).unwrap().remaining().as_secs(), 299);
    }

    #[test]
    fn a_life_that_cannot_be_is_refused() {
        for dead in ["0", "-1", "\"-7200\"", "-0.0", "-99999999"] {
            assert!(life_of(dead).unwrap_err().contains("dead on arrival"), "{dead}");
        }
        for absurd in [
            "86401",
            "\"86401\"",
            "999999999999",
            "1e300",
            "18446744073709551616",
            "7200.5",
            "\"soon\"",
            "\"\"",
        ] {
            let told = life_of(absurd).unwrap_err();
            assert!(told.contains("absurd") || told.contains("whole number"), "{absurd}: {told}");
        }
        for odd in ["true", "[7200]", "{}", "\"NaN\"", "\"inf\""] {
            assert!(life_of(odd).unwrap_err().contains("whole number"), "{odd}");
        }
    }

    #[test]
    fn a_reply_that_makes_no_sense_is_transient() {
        for (status, body) in [
            (200, ""),
            (200, "   "),
            (200, "<html>sign in</html>"),
            (200, "{"),
            (200, "[]"),
            (200, "null"),
            (200, "{}"),
            (200, r#"{"errcode":0,"errmsg":"ok"}"#),
            (200, r#"{"access_token":null,"expires_in":7200}"#),
            (200, r#"{"access_token":42,"expires_in":7200}"#),
            (200, r#"{"access_token":"","expires_in":7200}"#),
            (200, r#"{"access_token":"a b","expires_in":7200}"#),
            (200, r#"{"errcode":"what","access_token":"T"}"#),
            (200, "<xml><errcode>40125</errcode></xml>"),
            (500, r#"{"access_token":"T","expires_in":7200}"#),
            (502, "bad gateway"),
            (404, ""),
            (412, ""),
            (302, ""),
        ] {
            let error = parse(status, body).unwrap_err();
            assert_eq!((error.class, error.errcode), (Class::Transient, None), "{status} {body}");
            assert!(error.retry_after <= Duration::from_secs(1), "{status} {body}");
        }
        let long = format!(r#"{{"access_token":"{}","expires_in":7200}}"#, "a".repeat(4097));
        assert!(parse(200, long).is_err());
    }

    #[test]
    fn an_errcode_is_heard_first_whatever_the_status_and_even_beside_a_token() {
        for (status, body) in [
            (200, r#"{"errcode":40125,"errmsg":"invalid appsecret rid: 1"}"#),
            (200, r#"{"errmsg":"x","errcode":"40125"}"#),
            (200, r#"{"errcode":40125.0}"#),
            (200, r#"{"errcode":40125,"errmsg":42}"#),
            (200, r#"{"access_token":"T","expires_in":7200,"errcode":40125}"#),
            (500, r#"{"errcode":40125}"#),
            (401, r#"{"errcode":40125}"#),
        ] {
            let error = parse(status, body).unwrap_err();
            assert_eq!((error.class, error.errcode), (Class::Config, Some(40125)), "{body}");
        }
    }

    #[test]
    fn an_error_never_quotes_the_secret() {
        for body in [
            r#"{"errcode":40125,"errmsg":"bad s3cr3t"}"#,
            r#"{"errcode":"x","errmsg":"bad s3cr3t"}"#,
            "s3cr3t",
        ] {
            let told = parse(200, body).unwrap_err();
            assert!(!format!("{told:?}").contains("s3cr3t"), "{told:?}");
        }
    }

    /// JSON, nearly JSON, and neither.
    fn replies() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            8 => proptest::sample::select(vec![
                "{", "}", "[", "]", ",", ":", "\"access_token\"", "\"expires_in\"", "\"errcode\"", "\"errmsg\"", "7200", "0",
                "-1", "40125", "1e400", "null", "\"s3cr3t\"", "\"50_token\"", "\"\\u0000\"", "\u{feff}", " ", "\u{1}",
                "{\"access_token\":\"50_token\",\"expires_in\":", "{\"errcode\":",
            ]).prop_map(|text| text.as_bytes().to_vec()),
            1 => proptest::collection::vec(any::<u8>(), 0..6),
        ];
        proptest::collection::vec(piece, 0..16).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn whatever_is_answered_is_a_sound_token_or_an_error_without_a_secret(
            status in 100..600_u16, body in replies(),
        ) {
            match parse(status, &body) {
                Ok(token) => {
                    let life = token.expires_at() - token.fetched_at();
                    prop_assert!((200..300).contains(&status));
                    prop_assert!(life > Duration::ZERO && life <= Duration::from_secs(86_400));
                    prop_assert!(!token.expose().is_empty() && token.expose().bytes().all(|b| b.is_ascii_graphic()));
                    prop_assert!(String::from_utf8_lossy(&body).contains("access_token"));
                }
                Err(error) => {
                    let told = format!("{error:?}");
                    prop_assert!(!told.contains("s3cr3t") && !told.contains("50_token"), "{}", told);
                    prop_assert!(!error.sentence.chars().any(char::is_control), "{}", told);
                    prop_assert!(error.retry_after <= error.at_most && error.retry_after >= Duration::from_secs(1));
                }
            }
        }

        #[test]
        fn a_token_survives_being_written_in_any_way_that_is_json(
            value in "[!-~]{1,40}", life in 1..86_400_i64, quoted in any::<bool>(), space in "[ \n\t]{0,3}", twin in any::<bool>(),
        ) {
            let life_text = if quoted { format!("\"{life}\"") } else { life.to_string() };
            let mut body = format!(
                "{space}{{{space}\"expires_in\"{space}:{space}{life_text}{space},\"access_token\":{}{space}}}",
                Value::from(value.clone())
            );
            if twin {
                body = body.replacen('{', "{\"errcode\":0,\"errmsg\":\"ok\",\"rid\":{},", 1);
            }
            let token = parse(200, &body).unwrap();
            prop_assert_eq!(token.expose(), value);
            prop_assert_eq!(token.expires_at() - token.fetched_at(), Duration::from_secs(life as u64));
        }
    }
}
