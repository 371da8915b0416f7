//! What calls cost in connections and file descriptors.

#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

use std::collections::BTreeSet;

use crate::wechat_process::Process;
use crate::wechat_rig::{App, PATIENCE, Rig, Wechat, until};

#[tokio::test]
async fn a_hundred_calls_in_a_row_take_one_connection_to_wechat() {
    for tls in [false, true] {
        let rig =
            if tls { Rig::tls(&["--workers", "1"]).await } else { Rig::plain(&["--workers", "1"]).await };
        for n in 0..100 {
            rig.app.message(&format!("{n}")).await.assert_ok();
        }
        let connections: BTreeSet<u64> = rig.seen_calls().iter().map(|seen| seen.connection).collect();
        assert_eq!(connections.len(), 1, "tls {tls}");
        assert_eq!(rig.sim.counts().connections, 2, "one for calls and one for the fetch");
    }
}

#[tokio::test]
async fn connections_that_wechat_has_closed_in_the_meantime_cost_no_call() {
    let rig = Rig::tls(&["--workers", "1"]).await;
    for n in 0..20 {
        rig.app.message(&format!("{n}")).await.assert_ok();
        let before = rig.sim.counts().connections;
        rig.sim.close_connections();
        // The simulation is on this very thread, so its connections are gone when it has had its turn.
        until("they are closed", async || rig.sim.counts().connections == before).await;
        tokio::task::yield_now().await;
        let reply = rig.app.message(&format!("{n} again")).await;
        reply.assert_ok();
        assert_eq!((reply.attempts(), rig.sim.sends_of(&format!("{n} again")).0), (None, 1));
    }
}

fn open_files(process: &Process) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", process.pid())).unwrap().count()
}

fn threads(process: &Process) -> usize {
    std::fs::read_dir(format!("/proc/{}/task", process.pid())).unwrap().count()
}

#[tokio::test]
async fn a_thousand_apps_that_come_and_go_leave_nothing_behind() {
    let wechat = Wechat::plain().await;
    let process =
        Process::ready(&wechat, &["--workers", "2", "--log", "warn,wechat_sidecar=info,access=off"]).await;
    let app = App::without_pool(process.addresses);
    // Both workers have their connection to WeChat, and the admin port has answered, before the count.
    for n in 0..50 {
        app.message(&format!("warm {n}")).await.assert_ok();
    }
    // The probes of the start are kept alive by the app that made them; nothing more will come of them.
    let before = (open_files(&process), threads(&process));
    for n in 0..1000 {
        app.message(&format!("{n}")).await.assert_ok();
    }
    until("its files are as before", async || open_files(&process) <= before.0 + 2).await;
    assert_eq!(threads(&process), before.1, "within {PATIENCE:?}");
    assert!(wechat.sim.counts().connections <= 8, "{}", wechat.sim.counts().connections);
    assert_eq!(wechat.sim.counts().max_sends_of_a_call, 1);
}
