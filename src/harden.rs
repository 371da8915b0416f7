//! What keeps this process's memory to itself: [`harden`], called once at the start.
//!
//! SECURITY: the AppSecret and the tokens live in memory, and an AppSecret that came by the environment stays readable
//! in `/proc/PID/environ` for as long as the process runs: taking a variable out of the environment is `unsafe` in Rust
//! (another thread may read it), and would not touch that page anyway. A process that is not dumpable has all of this
//! owned by root: no core file, no ptrace and no `/proc/PID/environ` or `mem` for other processes of the same user.

use std::io;

use rustix::process::{DumpableBehavior, set_dumpable_behavior};

/// Turns core dumps off, and shuts other processes of the same user out of this one's memory.
///
/// # Errors
/// What the system refused; the process is then as safe as its user.
pub fn harden() -> io::Result<()> {
    // First what a new program of ours would inherit, should there ever be one.
    let limited = rlimit::Resource::CORE.set(0, 0);
    // The stronger of the two, whatever became of the first.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    limited
}
