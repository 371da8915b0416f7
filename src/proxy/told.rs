//! What WeChat said in a reply, for the log and the counters: its `errcode` and its `rid`, by which WeChat's own tools
//! find a failed call. Read from the reply's first piece as it passes; nothing is held back for it, and nothing is
//! decided by it: that is [`inspect`](super::inspect)'s.

use std::sync::LazyLock;

use memchr::memmem;

use crate::proxy::inspect::PREFIX;

/// Made once: that takes longer than to search a small reply.
static ERRCODE: LazyLock<memmem::Finder<'_>> = LazyLock::new(|| memmem::Finder::new("\"errcode\""));

/// The longest `rid` that is believed. Real ones are `62c66213-76542f8c-06b14179`.
const LONGEST_RID: usize = 48;

/// The first `errcode` of a JSON object, as a number or in quotes. `None` for anything else.
#[must_use]
pub fn errcode(piece: &[u8]) -> Option<i64> {
    let piece = &piece[..piece.len().min(PREFIX)];
    let text = piece.strip_prefix(b"\xef\xbb\xbf").unwrap_or(piece).trim_ascii_start();
    if text.first() != Some(&b'{') {
        return None;
    }
    // It nearly always stands first.
    let rest = match text.strip_prefix(b"{\"errcode\"") {
        Some(rest) => rest,
        None => &text[ERRCODE.find(text)? + ERRCODE.needle().len()..],
    };
    let rest = rest.trim_ascii_start();
    let value = rest.strip_prefix(b":")?.trim_ascii_start();
    let value = value.strip_prefix(b"\"").unwrap_or(value).trim_ascii_start();
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, value),
    };
    let digits = value.iter().take_while(|byte| byte.is_ascii_digit()).take(12);
    let number = digits.fold(None, |number: Option<i64>, digit| {
        Some(number.unwrap_or_default() * 10 + i64::from(digit - b'0'))
    })?;
    Some(if negative { -number } else { number })
}

/// The `rid` in an error's `errmsg`.
#[must_use]
pub fn rid(piece: &[u8]) -> Option<&str> {
    let piece = &piece[..piece.len().min(PREFIX)];
    let mark = b"rid: ";
    let rest = &piece[memmem::find(piece, mark)? + mark.len()..];
    let length = rest.iter().take_while(|b| b.is_ascii_alphanumeric() || **b == b'-').count();
    // SECURITY: hexadecimal groups and nothing else, so that no credential can pass for one.
    let rid = std::str::from_utf8(&rest[..length]).ok()?;
    let group = |part: &str| (1..=12).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_hexdigit());
    let plain = rid.contains('-') && rid.split('-').all(group);
    (plain && (1..=LONGEST_RID).contains(&length)).then_some(rid)
}

/// The trace a W3C `traceparent` names: 32 hexadecimal digits, not all of them zero.
#[must_use]
pub fn trace_id(traceparent: &[u8]) -> Option<&str> {
    let mut parts = std::str::from_utf8(traceparent).ok()?.split('-');
    let is_hex = |part: &str, length: usize| {
        part.len() == length && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let sound =
        is_hex(version, 2) && version != "ff" && is_hex(trace, 32) && is_hex(parent, 16) && is_hex(flags, 2);
    (sound && trace.bytes().any(|b| b != b'0')).then_some(trace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errcode_is_read_wherever_it_stands() {
        for (body, code) in [
            (r#"{"errcode":0,"errmsg":"ok"}"#, Some(0)),
            (r#"{"errmsg":"x","errcode": 45009 }"#, Some(45009)),
            (r#" {"errcode":"40001"}"#, Some(40001)),
            ("\u{feff}{\"errcode\":-1}", Some(-1)),
            (r#"{"errcode":null}"#, None),
            (r#"{"errcode":-}"#, None),
            (r#"{"errcode":99999999999999999999}"#, Some(999_999_999_999)),
            (r#"["errcode",1]"#, None),
            ("errcode", None),
            ("", None),
        ] {
            assert_eq!(errcode(body.as_bytes()), code, "{body}");
        }
        let late = format!(r#"{{"a":"{}","errcode":1}}"#, "x".repeat(PREFIX));
        assert_eq!(errcode(late.as_bytes()), None, "no more is looked at than a refusal may measure");
    }

    #[test]
    fn a_rid_is_hexadecimal_or_none() {
        let told = |errmsg: &str| rid(errmsg.as_bytes()).map(str::to_owned);
        assert_eq!(
            told(r#"{"errcode":40003,"errmsg":"invalid openid rid: 62c66213-76542f8c-06b14179"}"#).unwrap(),
            "62c66213-76542f8c-06b14179"
        );
        for bad in
            ["no", "rid: ", "rid: 50_token-of-mine", "rid: 0123456789abcdef0123456789abcdef", "rid: <b>"]
        {
            assert_eq!(told(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_trace_is_named_by_a_sound_traceparent() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let sound = format!("00-{trace}-00f067aa0ba902b7-01");
        assert_eq!(trace_id(sound.as_bytes()), Some(trace));
        for bad in [
            String::new(),
            trace.to_owned(),
            format!("ff-{trace}-00f067aa0ba902b7-01"),
            format!("00-{}-00f067aa0ba902b7-01", trace.to_uppercase()),
            format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            format!("00-{trace}-00f067aa0ba902b7"),
        ] {
            assert_eq!(trace_id(bad.as_bytes()), None, "{bad}");
        }
    }
}
