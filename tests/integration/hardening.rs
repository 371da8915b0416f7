//! The built binary keeps its memory to itself: no core file, and nothing of it in /proc for other processes of the
//! same user, the environment with the secret above all.

#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

use std::os::unix::fs::MetadataExt;

use wechat_sidecar::sim::DEFAULT_SECRET;

use crate::wechat_process::Process;
use crate::wechat_rig::Wechat;

fn proc(process: &Process, file: &str) -> String {
    format!("/proc/{}/{file}", process.pid())
}

#[tokio::test]
async fn a_running_sidecar_leaves_no_core_and_shows_other_processes_nothing() {
    let wechat = Wechat::plain().await;
    let process = Process::ready(&wechat, &[]).await;
    let limits = std::fs::read_to_string(proc(&process, "limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().collect::<Vec<_>>()[4..6], ["0", "0"], "{core}");
    // What is not dumpable is root's (proc(5)), whoever runs it. As root, which these tests may be, only the limit tells.
    for file in ["environ", "mem", "maps"] {
        assert_eq!(std::fs::metadata(proc(&process, file)).unwrap().uid(), 0, "{file}");
    }
}

#[tokio::test]
async fn another_process_of_the_same_user_cannot_read_the_environment() {
    let wechat = Wechat::plain().await;
    let process = Process::ready(&wechat, &["--core-dumps", "on"]).await;
    let environment = std::fs::read_to_string(proc(&process, "environ")).unwrap();
    assert!(environment.contains(DEFAULT_SECRET), "so this test looks at the right place");
    drop(process);
    let process = Process::ready(&wechat, &[]).await;
    match std::fs::read_to_string(proc(&process, "environ")) {
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied),
        // Root may read everything, and is the only one.
        Ok(_) => assert_eq!(std::fs::metadata(proc(&process, "environ")).unwrap().uid(), 0),
    }
}
