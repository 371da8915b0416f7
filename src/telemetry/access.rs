//! The access log: one line a call, in the bytes that `tracing_subscriber` would give an event with these fields, and to
//! the same writer.
//!
//! It is not an event, because one cost 23,000 instructions as text and 34,000 as JSON, beside a call of 38,000
//! (`benches/instructions.py`): each field goes through a visitor and `core::fmt`, and each piece of it is looked at for
//! escapes. Here every line of a thread is built in the same buffer and leaves it in one write, so that lines never mix.
//! What is rare, such as a quote in a path, is left to the libraries that `tracing_subscriber` uses.

use std::cell::Cell;
use std::io::Write;
use std::time::{Duration, SystemTime};

use tracing::{Subscriber, dispatcher};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::MakeWriter;

use super::Format;

/// A line's fields, in their order. What is `None` is left out.
///
/// SECURITY: the keys of a query and never a value, names and never a secret: nothing is masked here.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// The appid, or `-` where the call is nobody's.
    pub account: &'a str,
    /// Who called, where clients have keys.
    pub client: Option<&'a str>,
    /// The call's method.
    pub method: &'a str,
    /// The call's path as it came.
    pub path: &'a str,
    /// The keys of the query, with commas between.
    pub keys: &'a str,
    /// The status the app got.
    pub status: u16,
    /// Why the answer is ours, or `-` where it is WeChat's.
    pub error: &'a str,
    /// WeChat's, of the reply the app got.
    pub errcode: Option<i64>,
    /// WeChat's name for a call that failed.
    pub rid: Option<&'a str>,
    /// WeChat's errcode for the token, or 0.
    pub refused: i64,
    /// How often WeChat was sent the call.
    pub attempts: u32,
    /// How the call ended.
    pub end: &'a str,
    /// All of it, in milliseconds.
    pub ms: u64,
    /// Waiting for WeChat, in milliseconds.
    pub upstream_ms: u64,
    /// Waiting for a token, in milliseconds.
    pub token_ms: u64,
    /// Neither, until the reply's head, in microseconds.
    pub own_us: u64,
    /// The id of the W3C trace.
    pub trace: Option<&'a str>,
}

/// Writes the line of a call to where this thread's lines go. Whether one is wanted is asked before, by
/// `tracing::enabled!` with [`ACCESS`](super::ACCESS).
pub fn write(entry: &Entry<'_>) {
    dispatcher::get_default(|lines| {
        if let Some(log) = lines.downcast_ref::<AccessLog>() {
            log.write(entry);
        }
    });
}

/// Knows how lines look and where they go; [`write`] finds it among the layers.
pub(super) struct AccessLog {
    words: &'static Words,
    write: Box<WriteLine>,
}

impl AccessLog {
    pub(super) fn new<W>(format: Format, colour: bool, writer: W) -> Self
    where
        W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
    {
        let words = match (format, colour) {
            (Format::Json, _) => &JSON,
            (Format::Text, false) => &PLAIN,
            (Format::Text, true) => &COLOUR,
        };
        // A log that nobody reads any more is no reason to fail a call; the other lines take it the same way.
        Self { words, write: Box::new(move |line| drop(writer.make_writer().write_all(line))) }
    }

    fn write(&self, entry: &Entry<'_>) {
        // Taken out and put back, so that there is nothing to be borrowed twice. A thread that ends has none any more.
        let mut page = PAGE.try_with(Cell::take).unwrap_or_default();
        page.line(self.words, now(), entry);
        (self.write)(&page.line);
        if page.line.capacity() <= KEPT {
            let _ = PAGE.try_with(|place| place.set(page));
        }
    }
}

impl<S: Subscriber> Layer<S> for AccessLog {}

/// Takes a whole line.
type WriteLine = dyn Fn(&[u8]) + Send + Sync;

/// What every line has the same, in one of the three ways to write it.
struct Words {
    json: bool,
    begin: Word<16>,
    /// From the time to the account.
    account: Word<96>,
    client: Word<32>,
    method: Word<32>,
    path: Word<32>,
    keys: Word<32>,
    /// The status, the error and the errcode of nearly every line.
    clean: Word<96>,
    status: Word<32>,
    error: Word<32>,
    errcode: Word<32>,
    rid: Word<32>,
    /// That it went once and came back whole, as nearly every call.
    once: Word<96>,
    refused: Word<32>,
    attempts: Word<32>,
    end: Word<32>,
    ms: Word<32>,
    upstream_ms: Word<32>,
    token_ms: Word<32>,
    own_us: Word<32>,
    trace: Word<32>,
    last: Word<32>,
}

/// A text in a room of fixed size: all of the room is copied, in a few instructions and with no call, and what is too
/// much is cut off. A line has some ten of them, and a call of `memcpy` for each is 150 instructions more.
struct Word<const ROOM: usize> {
    room: [u8; ROOM],
    length: usize,
}

impl<const ROOM: usize> Word<ROOM> {
    const fn new(text: &str) -> Self {
        let (mut room, mut at) = ([0; ROOM], 0);
        while at < text.len() {
            room[at] = text.as_bytes()[at];
            at += 1;
        }
        Self { room, length: text.len() }
    }
}

/// `$open` and `$close` stand around each field's name.
macro_rules! words {
    ($json:literal, $begin:literal, $call:literal, $last:literal, $open:literal, $close:literal) => {
        Words {
            json: $json,
            begin: Word::new($begin),
            account: Word::new(concat!($call, $open, "account", $close)),
            client: Word::new(concat!($open, "client", $close)),
            method: Word::new(concat!($open, "method", $close)),
            path: Word::new(concat!($open, "path", $close)),
            keys: Word::new(concat!($open, "keys", $close)),
            clean: Word::new(concat!(
                $open, "status", $close, "200", $open, "error", $close, "\"-\"", $open, "errcode", $close,
                "0"
            )),
            status: Word::new(concat!($open, "status", $close)),
            error: Word::new(concat!($open, "error", $close)),
            errcode: Word::new(concat!($open, "errcode", $close)),
            rid: Word::new(concat!($open, "rid", $close)),
            once: Word::new(concat!(
                $open,
                "refused",
                $close,
                "0",
                $open,
                "attempts",
                $close,
                "1",
                $open,
                "end",
                $close,
                "\"whole\""
            )),
            refused: Word::new(concat!($open, "refused", $close)),
            attempts: Word::new(concat!($open, "attempts", $close)),
            end: Word::new(concat!($open, "end", $close)),
            ms: Word::new(concat!($open, "ms", $close)),
            upstream_ms: Word::new(concat!($open, "upstream_ms", $close)),
            token_ms: Word::new(concat!($open, "token_ms", $close)),
            own_us: Word::new(concat!($open, "own_us", $close)),
            trace: Word::new(concat!($open, "trace", $close)),
            last: Word::new($last),
        }
    };
}

static PLAIN: Words = words!(false, "", "  INFO access: call", "\n", " ", "=");
static COLOUR: Words = words!(
    false,
    "\x1b[2m",
    "\x1b[0m \x1b[32m INFO\x1b[0m \x1b[2maccess\x1b[0m\x1b[2m:\x1b[0m call",
    "\n",
    " \x1b[3m",
    "\x1b[0m\x1b[2m=\x1b[0m"
);
static JSON: Words = words!(
    true,
    "{\"timestamp\":\"",
    "\",\"level\":\"INFO\",\"message\":\"call\"",
    ",\"target\":\"access\"}\n",
    ",\"",
    "\":"
);

/// The most a thread keeps for its next line. Most have 350 bytes; a path may have 64 KiB.
const KEPT: usize = 4096;

/// The last second of the year 9999. Later ones have no place in the form.
const LAST_SECOND: u64 = 253_402_300_799;

thread_local! {
    static PAGE: Cell<Page> = const { Cell::new(Page::EMPTY) };
}

/// What a thread needs to write a line.
struct Page {
    line: Vec<u8>,
    /// The second that `date` tells. A date costs more than all the rest of its field, and is the same for many lines.
    second: u64,
    date: [u8; 20],
}

impl Default for Page {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl Page {
    const EMPTY: Self = Self { line: Vec::new(), second: u64::MAX, date: [0; 20] };

    fn line(&mut self, words: &Words, now: SystemTime, entry: &Entry<'_>) {
        self.line.clear();
        self.word(&words.begin);
        self.time(now);
        self.string(words, &words.account, entry.account);
        if let Some(client) = entry.client {
            self.string(words, &words.client, client);
        }
        self.string(words, &words.method, entry.method);
        self.path(words, entry.path);
        self.string(words, &words.keys, entry.keys);
        let is_usual = entry.status == 200 && entry.error == "-" && entry.rid.is_none();
        if is_usual && entry.errcode == Some(0) {
            self.word(&words.clean);
        } else {
            self.number(&words.status, entry.status.into());
            self.string(words, &words.error, entry.error);
            if let Some(errcode) = entry.errcode {
                self.signed(&words.errcode, errcode);
            }
            if let Some(rid) = entry.rid {
                self.string(words, &words.rid, rid);
            }
        }
        if (entry.refused, entry.attempts, entry.end) == (0, 1, "whole") {
            self.word(&words.once);
        } else {
            self.signed(&words.refused, entry.refused);
            self.number(&words.attempts, entry.attempts.into());
            self.string(words, &words.end, entry.end);
        }
        self.number(&words.ms, entry.ms);
        self.number(&words.upstream_ms, entry.upstream_ms);
        self.number(&words.token_ms, entry.token_ms);
        self.number(&words.own_us, entry.own_us);
        if let Some(trace) = entry.trace {
            self.string(words, &words.trace, trace);
        }
        self.word(&words.last);
    }

    #[inline]
    fn word<const ROOM: usize>(&mut self, word: &Word<ROOM>) {
        let end = self.line.len() + word.length;
        self.line.extend_from_slice(&word.room);
        self.line.truncate(end);
    }

    #[inline]
    fn text(&mut self, text: &str) {
        self.line.extend_from_slice(text.as_bytes());
    }

    /// `2026-11-25T04:46:53.000123Z`
    fn time(&mut self, now: SystemTime) {
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let second = since.as_secs().min(LAST_SECOND);
        if second != self.second {
            let date =
                humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + Duration::from_secs(second));
            // Twenty bytes, of which the last is a `Z`.
            let _ = write!(&mut self.date[..], "{date}");
            self.date[19] = b'.';
            self.second = second;
        }
        self.line.extend_from_slice(&self.date);
        let (mut rest, mut digits) = (since.subsec_micros(), *b"000000Z");
        for digit in digits[..6].iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        self.line.extend_from_slice(&digits);
    }

    fn number(&mut self, name: &Word<32>, number: u64) {
        self.word(name);
        match number {
            // Most are.
            0..10 => self.line.push(b'0' + number as u8),
            _ => self.text(itoa::Buffer::new().format(number)),
        }
    }

    fn signed(&mut self, name: &Word<32>, number: i64) {
        match u64::try_from(number) {
            Ok(number) => self.number(name, number),
            Err(_) => {
                self.word(name);
                self.text(itoa::Buffer::new().format(number));
            }
        }
    }

    fn string<const ROOM: usize>(&mut self, words: &Words, name: &Word<ROOM>, string: &str) {
        self.word(name);
        self.quoted(words, string);
    }

    fn quoted(&mut self, words: &Words, string: &str) {
        if is_plain(string) {
            self.in_quotes(string);
        } else {
            self.escaped(words, string);
        }
    }

    #[inline]
    fn in_quotes(&mut self, plain: &str) {
        self.line.push(b'"');
        self.text(plain);
        self.line.push(b'"');
    }

    #[cold]
    fn escaped(&mut self, words: &Words, string: &str) {
        // Writing to a Vec cannot fail.
        let _ = match words.json {
            false => write!(self.line, "{string:?}"),
            true => serde_json::to_writer(&mut self.line, string).map_err(Into::into),
        };
    }

    /// The path, without quotes in text.
    fn path(&mut self, words: &Words, path: &str) {
        self.word(&words.path);
        match (words.json, is_plain(path)) {
            (true, true) => self.in_quotes(path),
            (true, false) => self.quoted(words, &path.escape_default().to_string()),
            (false, true) => self.text(path),
            (false, false) => drop(write!(self.line, "{}", path.escape_default())),
        }
    }
}

/// Whether no way to write it changes anything of it: printable ASCII, no quotes and no backslash.
fn is_plain(text: &str) -> bool {
    // Eight bytes at a time. The last eight may overlap those before them.
    let bytes = text.as_bytes();
    match bytes.last_chunk() {
        Some(last) => {
            let (words, _) = bytes.as_chunks();
            words.iter().all(|word| is_plain_word(u64::from_ne_bytes(*word)))
                && is_plain_word(u64::from_ne_bytes(*last))
        }
        None => is_plain_word(bytes.iter().fold(each(b' '), |word, byte| word << 8 | u64::from(*byte))),
    }
}

/// The same of eight bytes. Each term sets the highest bit of a byte that it looks for, and may set that of others only
/// where another term has found something.
fn is_plain_word(word: u64) -> bool {
    let is = |byte| (word ^ each(byte)).wrapping_sub(each(1));
    let control = word.wrapping_sub(each(b' '));
    let beyond = word | word.wrapping_add(each(1));
    (control | beyond | is(b'"') | is(b'\'') | is(b'\\')) & each(0x80) == 0
}

const fn each(byte: u8) -> u64 {
    u64::from_ne_bytes([byte; 8])
}

#[expect(clippy::disallowed_methods, reason = "a line tells people the time of day")]
fn now() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;
    use tracing_subscriber::fmt::format::Writer;
    use tracing_subscriber::fmt::time::FormatTime;

    use super::*;
    use crate::telemetry::{ACCESS, Config, dispatch_at};

    /// What was written, piece by piece.
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<Vec<u8>>>>);

    impl Written {
        fn take(&self) -> Vec<String> {
            let pieces = std::mem::take(&mut *self.0.lock().unwrap());
            pieces.into_iter().map(|piece| String::from_utf8(piece).unwrap()).collect()
        }
    }

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().push(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// A clock that stands.
    struct Stopped;

    const NOW: Duration = Duration::from_micros(1_795_582_013_000_123);

    impl FormatTime for Stopped {
        fn format_time(&self, w: &mut Writer<'_>) -> std::fmt::Result {
            w.write_str("2026-11-25T04:46:53.000123Z")
        }
    }

    fn log(format: Format, colour: bool, filter: &str) -> (tracing::Dispatch, Written) {
        let (written, config) = (Written::default(), Config { format, filter: filter.to_owned() });
        let lines = written.clone();
        (dispatch_at(Stopped, &config, colour, move || lines.clone()).unwrap(), written)
    }

    /// The event that a line stands for.
    fn event(entry: &Entry<'_>) {
        tracing::info!(
            target: ACCESS,
            account = entry.account,
            client = entry.client,
            method = entry.method,
            path = %entry.path.escape_default(),
            keys = entry.keys,
            status = entry.status,
            error = entry.error,
            errcode = entry.errcode,
            rid = entry.rid,
            refused = entry.refused,
            attempts = entry.attempts,
            end = entry.end,
            ms = entry.ms,
            upstream_ms = entry.upstream_ms,
            token_ms = entry.token_ms,
            own_us = entry.own_us,
            trace = entry.trace,
            "call"
        );
    }

    static SHAPES: [(&Words, Format, bool); 3] =
        [(&PLAIN, Format::Text, false), (&COLOUR, Format::Text, true), (&JSON, Format::Json, false)];

    /// The line of a call like most.
    pub(in crate::telemetry) fn plain() -> Entry<'static> {
        Entry {
            account: "wx0123456789abcdef",
            client: None,
            method: "POST",
            path: "/cgi-bin/message/custom/send",
            keys: "access_token,debug",
            status: 200,
            error: "-",
            errcode: Some(0),
            rid: None,
            refused: 0,
            attempts: 1,
            end: "whole",
            ms: 12,
            upstream_ms: 11,
            token_ms: 0,
            own_us: 87,
            trace: None,
        }
    }

    proptest! {
        #[test]
        fn a_line_is_what_tracing_would_have_written(
            texts in proptest::collection::vec("[ -~]{0,12}|\\PC{0,6}|\\PM{0,4}|[\u{7}\u{8}\u{c}\u{7f}-\u{9f}\u{200b}\u{202e}]{0,4}|[\"\\\\'\n\t\r\0\u{1b}]{0,4}", 8),
            some in any::<[bool; 4]>(),
            numbers in any::<(u16, i64, i64, u32, u64, u64, u64, u64)>(),
            small in any::<bool>(),
        ) {
            let text = |n: usize| &texts[n][..];
            let (status, errcode, refused, attempts, ms, upstream_ms, token_ms, own_us) = numbers;
            let most = if small { 12 } else { u64::MAX };
            // As nearly every line has them, each for itself.
            let usual = |n: usize| texts[n].len() % 2 == 0;
            let entry = Entry {
                account: text(0),
                client: some[0].then_some(text(1)),
                method: text(2),
                path: text(3),
                keys: text(4),
                status: if usual(0) { 200 } else { status },
                error: if usual(5) { "-" } else { text(5) },
                errcode: if usual(1) { Some(0) } else { some[1].then_some(errcode) },
                rid: some[2].then_some(text(6)),
                refused: if usual(2) { 0 } else { refused },
                attempts: if usual(3) { 1 } else { attempts },
                end: if usual(4) { "whole" } else { text(4) },
                ms: ms % most,
                upstream_ms,
                token_ms,
                own_us: own_us % most,
                trace: some[3].then_some(text(7)),
            };
            for (words, format, colour) in SHAPES {
                let (dispatch, written) = log(format, colour, "info");
                tracing::dispatcher::with_default(&dispatch, || event(&entry));
                let mut page = Page::EMPTY;
                page.line(words, SystemTime::UNIX_EPOCH + NOW, &entry);
                prop_assert_eq!(written.take().concat(), String::from_utf8(page.line).unwrap());
            }
        }
    }

    #[test]
    fn what_would_be_escaped_is_seen_wherever_it_stands() {
        for length in 0..70 {
            assert!(is_plain(&"~ ".repeat(length)[..length]), "{length}");
            for at in 0..length {
                for odd in ['"', '\'', '\\', '\n', '\u{1f}', '\u{7f}', '微'] {
                    let text = format!("{}{odd}{}", "a".repeat(at), "a".repeat(length - at - 1));
                    assert!(!is_plain(&text), "{text:?}");
                }
            }
        }
    }

    #[test]
    fn a_line_leaves_in_one_write_and_lines_of_threads_do_not_mix() {
        let (dispatch, written) = log(Format::Json, false, "info");
        std::thread::scope(|threads| {
            for n in 0..4 {
                let dispatch = dispatch.clone();
                threads.spawn(move || {
                    tracing::dispatcher::with_default(&dispatch, || {
                        (0..100).for_each(|ms| write(&Entry { attempts: n, ms, ..plain() }));
                    });
                });
            }
        });
        let lines = written.take();
        assert_eq!(lines.len(), 400);
        for line in lines {
            let line: serde_json::Value = serde_json::from_str(line.strip_suffix('\n').unwrap()).unwrap();
            assert_eq!((&line["message"], &line["path"]), (&"call".into(), &plain().path.into()));
        }
    }

    #[test]
    fn who_wants_no_lines_of_calls_is_asked_as_for_any_other() {
        for (filter, wanted) in
            [("info", true), ("info,access=off", false), ("warn", false), ("access=info", true)]
        {
            let (dispatch, _) = log(Format::Text, false, filter);
            let is = tracing::dispatcher::with_default(
                &dispatch,
                || tracing::enabled!(target: ACCESS, tracing::Level::INFO),
            );
            assert_eq!(is, wanted, "{filter}");
        }
        // And where nobody set a log up, a line goes nowhere.
        tracing::dispatcher::with_default(&tracing::Dispatch::none(), || write(&plain()));
    }

    #[test]
    fn a_date_is_told_anew_with_every_second_and_a_long_line_keeps_no_room() {
        let mut page = Page::EMPTY;
        let mut at = |seconds: u64, micros: u64| {
            page.line(
                &PLAIN,
                SystemTime::UNIX_EPOCH + Duration::new(seconds, micros as u32 * 1000),
                &plain(),
            );
            String::from_utf8_lossy(&page.line[..27]).into_owned()
        };
        assert_eq!(at(1_767_225_599, 999_999), "2025-12-31T23:59:59.999999Z");
        assert_eq!(at(1_767_225_599, 1), "2025-12-31T23:59:59.000001Z");
        assert_eq!(at(1_767_225_600, 0), "2026-01-01T00:00:00.000000Z");
        assert_eq!(at(LAST_SECOND + 5, 0), "9999-12-31T23:59:59.000000Z");
        let long = format!("/{}", "a".repeat(2 * KEPT));
        let (dispatch, written) = log(Format::Text, false, "info");
        tracing::dispatcher::with_default(&dispatch, || write(&Entry { path: &long, ..plain() }));
        assert!(written.take().concat().contains(&long));
        assert!(PAGE.take().line.capacity() <= KEPT);
    }
}
