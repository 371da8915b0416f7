//! A thousand calls that all meet a dead token at the same moment.

#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

use std::collections::BTreeMap;

use tokio::task::JoinSet;
use wechat_sidecar::sim::Kind;

use crate::wechat_rig::{APPID, Answer, Rig, SEND, within};

/// As many calls as the machine lets one process have connections for: a call needs four ends here, the app's, the
/// sidecar's two and WeChat's. A thousand where the limit on open files is 5,000 or more.
fn herd() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let soft = files.and_then(|rest| rest.split_whitespace().next()?.parse::<usize>().ok()).unwrap_or(1024);
    // Other tests run beside this one.
    (soft.saturating_sub(400) / 4).clamp(50, 1000)
}

/// Starts this many calls that wait for each other in front of WeChat, and kills the token when all are there.
fn stampede(rig: &Rig, count: usize) -> JoinSet<(String, Answer)> {
    rig.sim.gather(SEND, u32::try_from(count).unwrap());
    let mut calls = JoinSet::new();
    for n in 0..count {
        let app = rig.app.clone();
        calls.spawn(async move {
            let id = format!("call {n}");
            let reply = app.message(&id).await;
            (id, reply)
        });
    }
    calls
}

/// No call failed, none was sent a third time, each was accepted exactly once, and there was one fetch.
async fn assert_one_fetch_for_all(rig: &Rig, calls: JoinSet<(String, Answer)>, errcode: i64) {
    let count = calls.len();
    let mut sends = BTreeMap::new();
    for (id, reply) in within("all calls end", calls.join_all()).await {
        reply.assert_ok();
        let (sent, accepted) = rig.sim.sends_of(&id);
        assert_eq!(accepted, 1, "{id}");
        assert_eq!(reply.attempts(), (sent == 2).then_some("2"), "{id}");
        *sends.entry(sent).or_insert(0) += 1;
    }
    assert_eq!(sends, BTreeMap::from([(2, count)]), "how often calls were sent");
    let counts = rig.sim.counts();
    assert_eq!(counts.refused_with(errcode), count as u64, "all of them met the dead token");
    assert_eq!(counts.all_fetches(), 2, "the first token, and one for all");
    assert_eq!((counts.max_sends_of_a_call, counts.max_accepts_of_a_call), (2, 1));
    rig.assert_clean();
}

#[tokio::test]
async fn a_thousand_calls_that_meet_a_token_that_ran_out_are_one_fetch() {
    let rig = Rig::plain(&["--workers", "1", "--token-wait", "30s"]).await;
    rig.sim.expire_now(APPID);
    let calls = stampede(&rig, herd());
    assert_one_fetch_for_all(&rig, calls, 42001).await;
}

#[tokio::test]
async fn a_thousand_calls_on_two_workers_that_meet_a_replaced_token_are_one_fetch() {
    let rig = Rig::plain(&["--workers", "2", "--token-wait", "30s"]).await;
    rig.sim.rotate_kind(APPID, Kind::Stable, true).unwrap();
    let calls = stampede(&rig, herd());
    assert_one_fetch_for_all(&rig, calls, 40001).await;
}

#[tokio::test]
async fn a_thousand_calls_wait_for_one_slow_fetch() {
    let rig = Rig::plain(&["--workers", "2", "--token-wait", "30s", "--fetch-timeout", "30s"]).await;
    rig.sim.expire_now(APPID);
    rig.sim.hold_fetches();
    let count = herd();
    let calls = stampede(&rig, count);
    // All of them have been refused, and the one fetch has come, before its answer goes.
    let refused =
        rig.sim.until(|counts| counts.refused_with(42001) == count as u64 && counts.all_fetches() == 2);
    within("all calls are refused", refused).await;
    rig.sim.release_fetches();
    assert_one_fetch_for_all(&rig, calls, 42001).await;
}

#[tokio::test]
async fn calls_that_will_not_wait_longer_get_the_refusal_and_are_not_sent_again() {
    let rig = Rig::plain(&["--workers", "2", "--token-wait", "100ms", "--fetch-timeout", "30s"]).await;
    rig.sim.expire_now(APPID);
    rig.sim.hold_fetches();
    let calls = stampede(&rig, 100);
    for (id, reply) in within("all calls end", calls.join_all()).await {
        assert_eq!((reply.status, reply.errcode(), reply.attempts()), (200, 42001, None), "{reply:?}");
        assert_eq!(rig.sim.sends_of(&id), (1, 0), "{id}");
    }
    rig.sim.release_fetches();
    let fetched = async || rig.app.message("late").await.errcode() == 0;
    crate::wechat_rig::until("the fetch has brought its token", fetched).await;
    assert_eq!(rig.fetches(), 2);
}
