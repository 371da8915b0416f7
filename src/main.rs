//! Arguments to a command; exit codes; nothing else.

mod commands;

use std::io::Write;
use std::process::ExitCode;

use wechat_sidecar::config::cli::{self, Stop};

fn main() -> ExitCode {
    match cli::parse(std::env::args_os(), std::env::vars_os()) {
        Ok(invocation) => commands::execute(invocation),
        Err(stop) => {
            let code = stop.exit_code();
            // A closed pipe (`--help | head`) is no reason to fail.
            let _ = match stop {
                Stop::Told(text) => write!(std::io::stdout(), "{text}"),
                Stop::Refused(text) => writeln!(std::io::stderr(), "{text}"),
            };
            ExitCode::from(code)
        }
    }
}
