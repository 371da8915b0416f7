//! When is a reply a refused token? When it is a small, complete JSON object whose first top-level `errcode` is
//! 40001, 40014 or 42001.
//!
//! Status and Content-Type do not count: WeChat answers 200 and writes JSON as `text/plain` too, also where a picture
//! was asked for. Nor does `errmsg`, whose text changes. And the body may not be strict JSON: raw control characters
//! and bytes that are not UTF-8 occur (`wechat-api.md` 3.3), so this is a scanner and not a parser. It is lenient in
//! how a value is written, and strict in what it concludes: whatever is no object in any dialect is *clean*, because
//! a call goes twice only on WeChat's own word.
//!
//! Pure: bytes go in, a [`Verdict`] comes out. It keeps a few dozen bytes of state, never allocates, and looks at
//! each byte once.

/// The most a refusal may measure, in bytes. Real ones have about 250; everything longer streams on.
pub const PREFIX: usize = 4096;

/// The codes that say that the token is bad (`wechat-api.md` 3.1). 42007 and 40082 look alike and are not.
const REFUSALS: [i64; 3] = [40001, 40014, 42001];

/// What the bytes so far say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may still be a refusal: hold the bytes back and bring more.
    Undecided,
    /// It is none, whatever follows: let it stream.
    Clean,
    /// WeChat refused the token with this code. Said at the end of the body only.
    Refused(i64),
}

/// Whether a reply is worth a look: its length is unknown or small, and its bytes are not compressed.
///
/// A reply with another Content-Encoding than `identity` cannot be read; we ask for none, so it is not a refusal of
/// WeChat's but something the app arranged for.
#[must_use]
pub fn can_be_refusal(content_length: Option<u64>, is_encoded: bool) -> bool {
    !is_encoded && content_length.is_none_or(|length| (1..=PREFIX as u64).contains(&length))
}

/// The refusal in a whole reply of the device interfaces, which nest their `errcode` one level down, in `base_resp`
/// (`wechat-api.md` 3.3). Only there: elsewhere a nested `errcode` is a word about something else.
#[must_use]
pub fn base_resp(body: &[u8]) -> Verdict {
    let reply: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let errcode = &reply["base_resp"]["errcode"];
    let errcode = errcode.as_i64().or_else(|| errcode.as_str()?.trim().parse().ok());
    errcode.filter(|code| REFUSALS.contains(code)).map_or(Verdict::Clean, Verdict::Refused)
}

/// The paths of the device interfaces.
pub const DEVICE: &str = "/device/";

/// Judges one reply body, however it is cut.
#[derive(Clone, Debug)]
pub struct Inspector {
    state: State,
    /// How many bytes came.
    seen: usize,
    /// Open brackets; 1 is the top level. At most [`PREFIX`].
    depth: u16,
    key: Key,
    /// The value of the first top-level `errcode`, while it is read.
    code: Code,
    /// It was one of [`REFUSALS`].
    refused: Option<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before the first byte, or this far into a byte order mark.
    Mark(u8),
    /// Before the first `{`.
    Start,
    /// Where a key may begin, at the top level.
    KeyStart,
    /// In a key within these quotes.
    Key(u8),
    /// After a `\` in a key within these quotes.
    KeyEscape(u8),
    /// In the digits of `\uHHHH`, with how many are still to come and what they gave so far.
    KeyUnicode { quote: u8, left: u8, unit: u16 },
    /// In a key without quotes.
    BareKey,
    /// Between a key and its colon.
    Colon,
    /// Where a value may begin, at the top level.
    ValueStart,
    /// In a number or a word, at the top level.
    Bare,
    /// In a string within these quotes, at any depth.
    Text(u8),
    /// After a `\` in such a string.
    TextEscape(u8),
    /// In an object or array below the top level.
    Nested,
    /// After a value, at the top level.
    ValueEnd,
    /// Where the value of the first `errcode` may begin.
    CodeStart,
    /// In it.
    Code,
    /// After the last `}`.
    Tail,
    /// It is decided.
    Clean,
}

impl Default for Inspector {
    fn default() -> Self {
        Self::new()
    }
}

impl Inspector {
    /// For a body of which nothing has come yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: State::Mark(0),
            seen: 0,
            depth: 0,
            key: Key::default(),
            code: Code::default(),
            refused: None,
        }
    }

    /// Takes the next bytes of the body. Never answers [`Verdict::Refused`]: more may follow.
    pub fn push(&mut self, bytes: &[u8]) -> Verdict {
        self.seen = self.seen.saturating_add(bytes.len());
        if self.seen > PREFIX {
            self.state = State::Clean;
        }
        if self.state == State::Mark(0) && is_plain_success(bytes) {
            self.state = State::Clean;
        }
        let mut rest = bytes;
        while self.state != State::Clean {
            // Most bytes of a reply stand in strings and below the top level, where few of them matter.
            rest = match self.state {
                State::Text(quote) => skip(rest, |b| b == quote || b == b'\\'),
                State::Nested => skip(rest, |b| matches!(b, b'"' | b'\'' | b'{' | b'}' | b'[' | b']')),
                _ => rest,
            };
            let Some((&byte, after)) = rest.split_first() else { return Verdict::Undecided };
            self.state = self.step(byte);
            rest = after;
        }
        Verdict::Clean
    }

    /// The verdict on the whole body. One that broke off before its last `}` is not WeChat's word.
    #[must_use]
    pub fn finish(&self) -> Verdict {
        match (self.state, self.refused) {
            (State::Tail, Some(code)) => Verdict::Refused(code),
            _ => Verdict::Clean,
        }
    }

    /// Where one byte leads. What no arm expects leads to [`State::Clean`].
    fn step(&mut self, byte: u8) -> State {
        const MARK: [u8; 3] = [0xef, 0xbb, 0xbf];
        match (self.state, byte) {
            (State::Mark(n), _) if byte == MARK[usize::from(n)] => {
                if n == 2 {
                    State::Start
                } else {
                    State::Mark(n + 1)
                }
            }
            (State::Mark(0) | State::Start, _) if is_space(byte) => State::Start,
            (State::Mark(0) | State::Start, b'{') => {
                self.depth = 1;
                State::KeyStart
            }

            (State::KeyStart, b',') => State::KeyStart,
            (State::KeyStart, _) if is_space(byte) => State::KeyStart,
            (State::KeyStart, b'}') => self.close(),
            (State::KeyStart, b'"' | b'\'') => {
                self.key = Key::default();
                State::Key(byte)
            }
            (State::KeyStart, b'{' | b'[' | b']' | b':') => State::Clean,
            (State::KeyStart, _) => {
                self.key = Key::default();
                self.key.push(u16::from(byte));
                State::BareKey
            }

            (State::Key(quote), _) if byte == quote => State::Colon,
            (State::Key(quote), b'\\') => State::KeyEscape(quote),
            (State::Key(quote), _) => {
                self.key.push(u16::from(byte));
                State::Key(quote)
            }
            (State::KeyEscape(quote), b'u') => State::KeyUnicode { quote, left: 4, unit: 0 },
            (State::KeyEscape(quote), _) => {
                self.key.push(match byte {
                    // Controls, all of them: no letter of a key we look for.
                    b'b' | b'f' | b'n' | b'r' | b't' => 0,
                    _ => u16::from(byte),
                });
                State::Key(quote)
            }
            (State::KeyUnicode { quote, left, unit }, _) => match char::from(byte).to_digit(16) {
                Some(digit) => {
                    let unit = unit << 4 | digit as u16;
                    if left > 1 {
                        return State::KeyUnicode { quote, left: left - 1, unit };
                    }
                    self.key.push(unit);
                    State::Key(quote)
                }
                None => State::Clean,
            },
            (State::BareKey, b':') => self.value(),
            (State::BareKey, _) if is_space(byte) => State::Colon,
            (State::BareKey, b',' | b'"' | b'\'' | b'{' | b'}' | b'[' | b']' | b'\\') => State::Clean,
            (State::BareKey, _) => {
                self.key.push(u16::from(byte));
                State::BareKey
            }
            (State::Colon, b':') => self.value(),
            (State::Colon, _) if is_space(byte) => State::Colon,

            (State::ValueStart, _) if is_space(byte) => State::ValueStart,
            (State::ValueStart, b'"' | b'\'') => State::Text(byte),
            (State::ValueStart, b'{' | b'[') => {
                self.depth = 2;
                State::Nested
            }
            (State::ValueStart | State::Bare | State::ValueEnd, b',') => State::KeyStart,
            (State::ValueStart | State::Bare | State::ValueEnd, b'}') => self.close(),
            (State::ValueStart | State::Bare, b'"' | b'\'' | b'{' | b'[' | b']' | b':') => State::Clean,
            (State::Bare | State::ValueEnd, _) if is_space(byte) => State::ValueEnd,
            (State::ValueStart | State::Bare, _) => State::Bare,

            (State::Text(quote), _) if byte == quote => {
                if self.depth > 1 {
                    State::Nested
                } else {
                    State::ValueEnd
                }
            }
            (State::Text(quote), b'\\') => State::TextEscape(quote),
            (State::Text(quote) | State::TextEscape(quote), _) => State::Text(quote),

            (State::Nested, b'"' | b'\'') => State::Text(byte),
            (State::Nested, b'{' | b'[') => {
                self.depth += 1;
                State::Nested
            }
            (State::Nested, b'}' | b']') => {
                self.depth -= 1;
                if self.depth > 1 { State::Nested } else { State::ValueEnd }
            }
            (State::Nested, _) => State::Nested,

            (State::CodeStart, _) if is_space(byte) => State::CodeStart,
            (State::CodeStart, b'"' | b'\'') => {
                self.code = Code { quote: Some(byte), ..Code::default() };
                State::Code
            }
            (State::CodeStart, b'0'..=b'9') => {
                self.code = Code::default();
                self.code_step(byte)
            }
            (State::Code, _) => self.code_step(byte),

            (State::Tail, _) if is_space(byte) => State::Tail,

            (
                State::Mark(_)
                | State::Start
                | State::Colon
                | State::ValueEnd
                | State::CodeStart
                | State::Tail
                | State::Clean,
                _,
            ) => State::Clean,
        }
    }

    /// A key has ended and its colon came. The first `errcode` decides; a second one is a value like others.
    fn value(&self) -> State {
        if self.refused.is_none() && self.key.is_errcode() { State::CodeStart } else { State::ValueStart }
    }

    /// The object has ended.
    fn close(&self) -> State {
        if self.refused.is_some() { State::Tail } else { State::Clean }
    }

    /// One byte of the value of `errcode`: `40001`, `40001.0`, or either within quotes, with white space inside.
    fn code_step(&mut self, byte: u8) -> State {
        let code = &mut self.code;
        match (code.part, byte) {
            (Part::Before | Part::Digits, b'0'..=b'9') => {
                // The codes have five digits, but zeros may lead: saturating is enough.
                code.number = code.number.saturating_mul(10).saturating_add(i64::from(byte - b'0'));
                code.part = Part::Digits;
                State::Code
            }
            (Part::Digits, b'.') => {
                code.part = Part::Zeros;
                State::Code
            }
            (Part::Zeros, b'0') => State::Code,
            (Part::Before | Part::After, _) if is_space(byte) => State::Code,
            (Part::Digits | Part::Zeros, _) if is_space(byte) => {
                code.part = Part::After;
                if code.quote.is_some() { State::Code } else { self.judge(State::ValueEnd) }
            }
            (Part::Digits | Part::Zeros | Part::After, _) if code.quote == Some(byte) => {
                self.judge(State::ValueEnd)
            }
            (Part::Digits | Part::Zeros, b',') if code.quote.is_none() => self.judge(State::KeyStart),
            (Part::Digits | Part::Zeros, b'}') if code.quote.is_none() => self.judge(State::Tail),
            _ => State::Clean,
        }
    }

    /// The value has ended, and `next` follows if it was a refusal.
    fn judge(&mut self, next: State) -> State {
        if !REFUSALS.contains(&self.code.number) {
            return State::Clean;
        }
        self.refused = Some(self.code.number);
        next
    }
}

/// Whether a body begins as nearly all do that have an `errcode`, which is then not looked at letter by letter.
fn is_plain_success(bytes: &[u8]) -> bool {
    bytes.strip_prefix(br#"{"errcode":0"#).is_some_and(|rest| matches!(rest.first(), Some(b',' | b'}')))
}

/// As much of a key as tells whether it is `errcode`.
#[derive(Clone, Copy, Debug, Default)]
struct Key {
    /// How many characters matched; past the end once one did not.
    matched: u8,
}

impl Key {
    const NAME: [u8; 7] = *b"errcode";
    const OTHER: u8 = u8::MAX;

    /// Takes a byte, or a UTF-16 unit from an escape.
    fn push(&mut self, unit: u16) {
        self.matched = match Self::NAME.get(usize::from(self.matched)) {
            Some(&letter) if u16::from(letter) == unit => self.matched + 1,
            _ => Self::OTHER,
        };
    }

    fn is_errcode(self) -> bool {
        usize::from(self.matched) == Self::NAME.len()
    }
}

/// The value of `errcode` as far as it was read.
#[derive(Clone, Copy, Debug, Default)]
struct Code {
    quote: Option<u8>,
    part: Part,
    number: i64,
}

#[derive(Clone, Copy, Debug, Default)]
enum Part {
    #[default]
    Before,
    Digits,
    /// After the point.
    Zeros,
    After,
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

/// Drops the bytes before the first that `matters`.
fn skip(bytes: &[u8], matters: impl Fn(u8) -> bool) -> &[u8] {
    let end = bytes.iter().position(|&b| matters(b)).unwrap_or(bytes.len());
    &bytes[end..]
}

#[cfg(test)]
mod tests;
