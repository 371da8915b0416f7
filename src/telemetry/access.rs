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
    shape: Shape,
    write: Box<WriteLine>,
}

impl AccessLog {
    pub(super) fn new<W>(format: Format, colour: bool, writer: W) -> Self
    where
        W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
    {
        let shape = match (format, colour) {
            (Format::Json, _) => Shape::Json,
            (Format::Text, false) => Shape::Plain,
            (Format::Text, true) => Shape::Colour,
        };
        // A log that nobody reads any more is no reason to fail a call; the other lines take it the same way.
        Self { shape, write: Box::new(move |line| drop(writer.make_writer().write_all(line))) }
    }

    fn write(&self, entry: &Entry<'_>) {
        // Taken out and put back, so that there is nothing to be borrowed twice. A thread that ends has none any more.
        let mut page = PAGE.try_with(Cell::take).unwrap_or_default();
        page.line(self.shape, now(), entry);
        (self.write)(&page.line);
        if page.line.capacity() <= KEPT {
            let _ = PAGE.try_with(|place| place.set(page));
        }
    }
}

impl<S: Subscriber> Layer<S> for AccessLog {}

/// Takes a whole line.
type WriteLine = dyn Fn(&[u8]) + Send + Sync;

/// The three ways to write a line.
#[derive(Clone, Copy, Debug)]
enum Shape {
    Plain,
    Colour,
    Json,
}

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

/// What stands before the value of a field.
macro_rules! name {
    ($shape:expr, $name:literal) => {
        match $shape {
            Shape::Plain => concat!(" ", $name, "="),
            Shape::Colour => concat!(" \x1b[3m", $name, "\x1b[0m\x1b[2m=\x1b[0m"),
            Shape::Json => concat!(",\"", $name, "\":"),
        }
    };
}

/// Fields that nearly every line has with the same values, as one text.
macro_rules! usual {
    ($shape:expr, $($name:literal: $value:literal),+) => {
        match $shape {
            Shape::Plain => concat!($(" ", $name, "=", $value),+),
            Shape::Colour => concat!($(" \x1b[3m", $name, "\x1b[0m\x1b[2m=\x1b[0m", $value),+),
            Shape::Json => concat!($(",\"", $name, "\":", $value),+),
        }
    };
}

impl Page {
    const EMPTY: Self = Self { line: Vec::new(), second: u64::MAX, date: [0; 20] };

    fn line(&mut self, shape: Shape, now: SystemTime, entry: &Entry<'_>) {
        self.line.clear();
        self.text(match shape {
            Shape::Plain => "",
            Shape::Colour => "\x1b[2m",
            Shape::Json => "{\"timestamp\":\"",
        });
        self.time(now);
        self.text(match shape {
            Shape::Plain => "  INFO access: call",
            Shape::Colour => "\x1b[0m \x1b[32m INFO\x1b[0m \x1b[2maccess\x1b[0m\x1b[2m:\x1b[0m call",
            Shape::Json => "\",\"level\":\"INFO\",\"message\":\"call\"",
        });
        self.string(shape, name!(shape, "account"), entry.account);
        if let Some(client) = entry.client {
            self.string(shape, name!(shape, "client"), client);
        }
        self.string(shape, name!(shape, "method"), entry.method);
        self.path(shape, name!(shape, "path"), entry.path);
        self.string(shape, name!(shape, "keys"), entry.keys);
        let is_usual = entry.status == 200 && entry.error == "-" && entry.rid.is_none();
        if is_usual && entry.errcode == Some(0) {
            self.text(usual!(shape, "status": "200", "error": "\"-\"", "errcode": "0"));
        } else {
            self.number(name!(shape, "status"), entry.status.into());
            self.string(shape, name!(shape, "error"), entry.error);
            if let Some(errcode) = entry.errcode {
                self.signed(name!(shape, "errcode"), errcode);
            }
            if let Some(rid) = entry.rid {
                self.string(shape, name!(shape, "rid"), rid);
            }
        }
        if (entry.refused, entry.attempts, entry.end) == (0, 1, "whole") {
            self.text(usual!(shape, "refused": "0", "attempts": "1", "end": "\"whole\""));
        } else {
            self.signed(name!(shape, "refused"), entry.refused);
            self.number(name!(shape, "attempts"), entry.attempts.into());
            self.string(shape, name!(shape, "end"), entry.end);
        }
        self.number(name!(shape, "ms"), entry.ms);
        self.number(name!(shape, "upstream_ms"), entry.upstream_ms);
        self.number(name!(shape, "token_ms"), entry.token_ms);
        self.number(name!(shape, "own_us"), entry.own_us);
        if let Some(trace) = entry.trace {
            self.string(shape, name!(shape, "trace"), trace);
        }
        self.text(match shape {
            Shape::Plain | Shape::Colour => "\n",
            Shape::Json => ",\"target\":\"access\"}\n",
        });
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

    fn number(&mut self, name: &str, number: u64) {
        self.text(name);
        match number {
            // Most are.
            0..10 => self.line.push(b'0' + number as u8),
            _ => self.text(itoa::Buffer::new().format(number)),
        }
    }

    fn signed(&mut self, name: &str, number: i64) {
        match u64::try_from(number) {
            Ok(number) => self.number(name, number),
            Err(_) => {
                self.text(name);
                self.text(itoa::Buffer::new().format(number));
            }
        }
    }

    fn string(&mut self, shape: Shape, name: &str, string: &str) {
        self.text(name);
        if is_plain(string) {
            self.line.push(b'"');
            self.text(string);
            self.line.push(b'"');
        } else {
            self.escaped(shape, string);
        }
    }

    #[cold]
    fn escaped(&mut self, shape: Shape, string: &str) {
        // Writing to a Vec cannot fail.
        let _ = match shape {
            Shape::Plain | Shape::Colour => write!(self.line, "{string:?}"),
            Shape::Json => serde_json::to_writer(&mut self.line, string).map_err(Into::into),
        };
    }

    /// The path, without quotes in text.
    fn path(&mut self, shape: Shape, name: &str, path: &str) {
        match shape {
            Shape::Plain | Shape::Colour => {
                self.text(name);
                if is_plain(path) {
                    self.text(path);
                } else {
                    let _ = write!(self.line, "{}", path.escape_default());
                }
            }
            Shape::Json if is_plain(path) => self.string(shape, name, path),
            Shape::Json => self.string(shape, name, &path.escape_default().to_string()),
        }
    }
}

/// Whether no way to write it changes anything of it.
fn is_plain(text: &str) -> bool {
    // Without an early end, so that many bytes are looked at together.
    text.bytes().fold(true, |plain, byte| {
        plain & (b' '..=b'~').contains(&byte) & (byte != b'"') & (byte != b'\'') & (byte != b'\\')
    })
}

#[expect(clippy::disallowed_methods, reason = "a line tells people the time of day")]
fn now() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
mod tests {
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

    const SHAPES: [(Shape, Format, bool); 3] = [
        (Shape::Plain, Format::Text, false),
        (Shape::Colour, Format::Text, true),
        (Shape::Json, Format::Json, false),
    ];

    fn plain() -> Entry<'static> {
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
            for (shape, format, colour) in SHAPES {
                let (dispatch, written) = log(format, colour, "info");
                tracing::dispatcher::with_default(&dispatch, || event(&entry));
                let mut page = Page::EMPTY;
                page.line(shape, SystemTime::UNIX_EPOCH + NOW, &entry);
                prop_assert_eq!(written.take().concat(), String::from_utf8(page.line).unwrap(), "{:?}", shape);
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
                Shape::Plain,
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
