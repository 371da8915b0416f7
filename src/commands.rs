//! What each command does, and the code it ends with: 0 well, 64 bad configuration, 69 a port is taken, 1 otherwise.

mod ca;
mod check;
mod demo;
mod run;
mod simulate;
mod wait;

use std::io::Write;
use std::pin::Pin;
use std::process::ExitCode;
use std::time::Duration;

use wechat_sidecar::config::cli::Invocation;
use wechat_sidecar::{signal, telemetry};

/// A port is taken (`EX_UNAVAILABLE`).
const PORT_TAKEN: u8 = 69;

/// Ends when a sidecar shall stop: of one type, so that what serves is compiled once.
type UntilStopped = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Runs a command to its end.
pub(crate) fn execute(invocation: Invocation) -> ExitCode {
    // The main thread only waits: for signals, and for the threads it started.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("the system gives no event queue ({error}); raise the limit on open files"));
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(async {
        match invocation {
            Invocation::Run(config) => run::run(*config).await,
            Invocation::Check(config) => check::check(*config).await,
            Invocation::Ca(options) => ca::ca(&options),
            Invocation::Wait(wait) => wait::wait(&wait).await,
            Invocation::Simulate(options) => simulate::simulate(*options).await,
            Invocation::Demo(demo) => demo::demo(&demo).await,
        }
    });
    runtime.shutdown_background();
    telemetry::flush();
    ExitCode::from(code)
}

/// What a command that serves needs first: the log, and a stop by signal. The signals come before any port: from the
/// moment something can call us, a SIGTERM must be a clean stop.
fn prepare(telemetry: &telemetry::Config) -> Result<signal::Shutdown, u8> {
    let told = |error: &str| {
        complain(error);
        1
    };
    telemetry::init(telemetry).map_err(|error| told(&error))?;
    signal::install().map_err(|error| told(&format!("signals cannot be caught ({error})")))
}

/// Prints a line for the person who asked. A closed pipe (`| head`) is no reason to fail.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Prints a line on what went wrong, behind what was logged before it.
fn complain(line: &str) {
    telemetry::flush();
    let _ = writeln!(std::io::stderr(), "wechat-sidecar: {line}");
}

/// A client for addresses of this machine, which no proxy setting may divert.
fn local_client(timeout: Duration) -> Result<reqwest::Client, String> {
    reqwest::Client::builder()
        .no_proxy()
        .timeout(timeout)
        // Clear text: no roots are needed, and loading the system's would cost more than the call.
        .tls_backend_preconfigured((*wechat_sidecar::tls::client_config(&Default::default())).clone())
        .build()
        .map_err(|error| format!("no HTTP client ({error})"))
}
