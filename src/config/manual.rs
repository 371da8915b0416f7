//! What `man` and a shell want to know, generated from the very definitions that parse the command line: a page of
//! the manual ([`page`]), and completions ([`completions`]).

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

/// A page in roff: the overview, or the page of one command.
pub(super) fn page(command: Command, of: Option<&String>) -> String {
    // `wechat-sidecar help` says nothing that `--help` does not.
    let mut command = command.disable_help_subcommand(true);
    // Gives a command its full name, under which its page is found: wechat-sidecar-run.
    command.build();
    let about = match of {
        Some(name) => command.find_subcommand(name).cloned().unwrap_or(command),
        None => command,
    };
    let source = concat!("wechat-sidecar ", env!("CARGO_PKG_VERSION"));
    let mut page = Vec::new();
    // Writing to memory cannot fail.
    let _ = Man::new(about).source(source).manual("wechat-sidecar").render(&mut page);
    String::from_utf8_lossy(&page).into_owned()
}

/// A script that makes a shell complete commands and flags.
pub(super) fn completions(mut command: Command, shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "wechat-sidecar", &mut script);
    let script = String::from_utf8_lossy(&script);
    // With a hyphen in the binary's name, bash's script looks for a command under one label and has it under another
    // (https://github.com/clap-rs/clap/issues/6421); once that is mended, there is nothing here to replace.
    script.replace("wechat__subcmd__sidecar", "wechat__sidecar")
}
