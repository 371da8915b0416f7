//! What is logged, how, and where to: standard error, so that standard output stays a command's own.
//!
//! SECURITY: a bare level such as `trace` is for our own targets only. Other crates stay at `warn` unless a filter
//! names them, because an HTTP library's trace output may show a URL with its token.

pub mod access;
mod repeats;
mod spool;
#[cfg(feature = "otel")]
pub mod traces;

use std::fs::File;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::time::Duration;

use tracing::Dispatch;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::SubscriberExt;

use access::AccessLog;
use repeats::Repeats;
pub use repeats::left_out;
use spool::Spool;

/// The target of the access log: one line a call.
pub const ACCESS: &str = "access";

/// What a bare level speaks of: this crate's modules and the access log.
const OURS: [&str; 2] = ["wechat_sidecar", ACCESS];

/// What is logged and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// A level, and `target=level` pairs, with commas between; see [`parse_filter`].
    pub filter: String,
    /// Text or JSON.
    pub format: Format,
}

impl Default for Config {
    fn default() -> Self {
        Self { filter: "info".to_owned(), format: Format::Text }
    }
}

/// How a line is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line, for machines.
    Json,
}

/// Reads a filter: `info`, `wechat_sidecar::token=trace,warn`, `info,access=off`.
///
/// The grammar is that of [`Targets`], without its trap: a bare word that is no level (`inof`) would be taken for
/// a target and silence everything else. Without a bare level, ours are at `info`.
///
/// # Errors
/// A sentence with the remedy after `; `.
pub fn parse_filter(text: &str) -> Result<Targets, String> {
    let remedy = "give off, error, warn, info, debug or trace, alone or as target=level, with commas between";
    let mut bare = None;
    let mut named = Vec::new();
    for part in text.split(',').map(str::trim) {
        let (target, level) = match part.split_once('=') {
            Some((target, level)) => (Some(target.trim()), level.trim()),
            None => (None, part),
        };
        let level = parse_level(level).ok_or_else(|| {
            if part.is_empty() {
                format!("it is empty; {remedy}")
            } else {
                format!("{level:?} is no level; {remedy}")
            }
        })?;
        match target {
            None if bare.replace(level).is_some() => {
                return Err(format!("it has two levels without a target; {remedy}"));
            }
            None => {}
            Some(target) if is_target(target) => named.push((target.to_owned(), level)),
            Some(target) => return Err(format!("{target:?} is no target; {remedy}")),
        }
    }
    let bare = bare.unwrap_or(LevelFilter::INFO);
    // An explicit target comes after ours and replaces it where both name the same.
    Ok(Targets::new()
        .with_default(bare.min(LevelFilter::WARN))
        .with_targets(OURS.map(|target| (target, bare)))
        .with_targets(named))
}

/// The targets of other crates that a filter opens beyond `info`: their lines may show a URL with its token.
#[must_use]
pub fn loud_strangers(filter: &Targets) -> Vec<String> {
    let ours = |target: &str| OURS.iter().any(|our| target.starts_with(our));
    let strangers = filter.iter().filter(|(target, level)| !ours(target) && *level > LevelFilter::INFO);
    strangers.map(|(target, _)| target.to_owned()).collect()
}

/// The log's lines on their way to standard error.
static SPOOL: OnceLock<Spool> = OnceLock::new();

/// The longest that the end of the process waits for whoever reads the log.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Makes what `config` asks for the process's own, on standard error; with colour when that is a terminal. Lines are
/// written by a thread of their own: call [`flush`] before the process ends.
///
/// # Errors
/// A sentence: the filter cannot be used, the system gives no thread, or the process has a subscriber already.
pub fn init(config: &Config) -> Result<(), String> {
    let no_log = |error| {
        format!("the log cannot be written to standard error ({error}); raise the limits of this process")
    };
    // Not under the lock of `std::io::stderr`, which would hold up whoever panics while the log waits.
    let stderr = std::io::stderr().as_fd().try_clone_to_owned().map_err(no_log)?;
    let spool = Spool::start(File::from(stderr)).map_err(no_log)?;
    let lines = spool.clone();
    let dispatch = dispatch(config, std::io::stderr().is_terminal(), move || lines.clone())?;
    tracing::dispatcher::set_global_default(dispatch)
        .map_err(|_| "logging was set up twice; only the first counts".to_owned())?;
    // It is the first, as was just found out.
    let _ = SPOOL.set(spool);
    Ok(())
}

/// Waits for what was logged to be written, but not for a log that nobody reads.
pub fn flush() {
    if let Some(spool) = SPOOL.get() {
        spool.flush(LAST_WORDS);
    }
}

/// A subscriber on a writer of one's own: for tests, with [`tracing::dispatcher::with_default`].
///
/// # Errors
/// A sentence: the filter cannot be used.
pub fn dispatch<W>(config: &Config, colour: bool, writer: W) -> Result<Dispatch, String>
where
    W: for<'w> MakeWriter<'w> + Clone + Send + Sync + 'static,
{
    dispatch_at(SystemTime, config, colour, writer)
}

/// The same with a clock of one's own.
fn dispatch_at<W, T>(clock: T, config: &Config, colour: bool, writer: W) -> Result<Dispatch, String>
where
    W: for<'w> MakeWriter<'w> + Clone + Send + Sync + 'static,
    T: FormatTime + Send + Sync + 'static,
{
    let registry =
        tracing_subscriber::registry().with(parse_filter(&config.filter)?).with(Repeats::default());
    // Outermost, where it is found first.
    let calls = AccessLog::new(config.format, colour, writer.clone());
    let lines = tracing_subscriber::fmt::layer().with_timer(clock).with_writer(writer);
    Ok(match config.format {
        Format::Text => Dispatch::new(registry.with(lines.with_ansi(colour)).with(calls)),
        // Flat: a field stands beside `message`, where log collectors look for it.
        Format::Json => Dispatch::new(
            registry
                .with(lines.json().flatten_event(true).with_current_span(false).with_span_list(false))
                .with(calls),
        ),
    })
}

fn parse_level(text: &str) -> Option<LevelFilter> {
    const LEVELS: [(&str, LevelFilter); 6] = [
        ("off", LevelFilter::OFF),
        ("error", LevelFilter::ERROR),
        ("warn", LevelFilter::WARN),
        ("info", LevelFilter::INFO),
        ("debug", LevelFilter::DEBUG),
        ("trace", LevelFilter::TRACE),
    ];
    LEVELS.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)).map(|(_, level)| *level)
}

fn is_target(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b':' | b'-' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::{Arc, Mutex};
    use tracing::Level;

    /// What was logged so far.
    #[derive(Clone, Default)]
    pub(super) struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Lines {
        /// A log that is written here.
        pub(super) fn dispatch(&self, filter: &str, format: Format) -> Dispatch {
            let writer = self.clone();
            dispatch(&Config { filter: filter.into(), format }, false, move || writer.clone()).unwrap()
        }

        pub(super) fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(filter: &str, format: Format, what: impl FnOnce()) -> String {
        let lines = Lines::default();
        tracing::dispatcher::with_default(&lines.dispatch(filter, format), what);
        lines.text()
    }

    #[test]
    fn a_bare_level_is_for_our_own_targets_only() {
        let trace = parse_filter("trace").unwrap();
        assert!(trace.would_enable("wechat_sidecar::token::keeper", &Level::TRACE));
        assert!(trace.would_enable("access", &Level::TRACE));
        for stranger in ["hyper::proto", "reqwest::connect", "rustls::client", "hyper_util"] {
            assert!(!trace.would_enable(stranger, &Level::INFO), "{stranger}");
            assert!(trace.would_enable(stranger, &Level::WARN), "{stranger}");
        }
        let off = parse_filter("off").unwrap();
        assert!(
            !off.would_enable("hyper", &Level::ERROR) && !off.would_enable("wechat_sidecar", &Level::ERROR)
        );
    }

    #[test]
    fn a_named_target_has_its_own_level() {
        let filter = parse_filter("wechat_sidecar=trace, access=off").unwrap();
        assert!(filter.would_enable("wechat_sidecar::proxy", &Level::TRACE));
        assert!(!filter.would_enable("access", &Level::ERROR));
        let filter = parse_filter("hyper=debug,WARN").unwrap();
        assert!(filter.would_enable("hyper::proto", &Level::DEBUG));
        assert!(!filter.would_enable("wechat_sidecar", &Level::INFO));
        assert_eq!(loud_strangers(&filter), ["hyper"]);
        assert!(loud_strangers(&parse_filter("trace,access=debug,hyper=info").unwrap()).is_empty());
    }

    #[test]
    fn a_filter_that_would_silence_everything_by_a_slip_is_refused() {
        for bad in [
            "",
            "inof",
            "info,",
            "hyper",
            "hyper=",
            "=info",
            "a b=info",
            "hyper=loud",
            "info,warn",
            "a[x]=info",
        ] {
            let told = parse_filter(bad).unwrap_err();
            assert!(told.contains("; give off, error, warn"), "{bad}: {told}");
        }
    }

    #[test]
    fn json_is_one_flat_object_a_line() {
        let out = logged("info", Format::Json, || {
            tracing::info!(appid = "wx1", "two\nlines");
            tracing::info!(target: "access", status = 200, "call");
            tracing::debug!("unseen");
            tracing::info!(target: "hyper", "unseen");
        });
        let lines: Vec<serde_json::Value> =
            out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2, "{out}");
        assert_eq!(lines[0]["message"], "two\nlines");
        assert_eq!(lines[0]["appid"], "wx1");
        assert_eq!(lines[1]["target"], "access");
        assert_eq!(lines[1]["level"], "INFO");
    }

    #[test]
    fn text_has_no_colour_where_none_is_asked_for() {
        let out = logged("info", Format::Text, || tracing::warn!(n = 1, "careful"));
        assert!(out.contains("WARN") && out.contains("careful n=1") && !out.contains('\u{1b}'), "{out}");
    }

    #[test]
    fn logging_is_set_up_once() {
        // Off, so that the other tests of this process stay quiet.
        let off = Config { filter: "off".into(), format: Format::Text };
        init(&off).unwrap();
        assert!(init(&off).unwrap_err().contains("twice"));
    }
}
