//! Ten sidecars for one account, which know nothing of each other: with the stable endpoint none harms another.

#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

use std::collections::BTreeSet;
use std::time::Duration;

use wechat_sidecar::sim::Kind;

use crate::wechat_rig::{APPID, App, Sidecar, Wechat};

const REPLICAS: usize = 10;

struct Replica {
    side: Sidecar,
    app: App,
}

impl Replica {
    fn start(wechat: &Wechat) -> Self {
        let side = Sidecar::start(&wechat.settings(&["--workers", "1"]), &wechat.env());
        let app = App::new(side.addresses);
        Self { side, app }
    }
}

/// Every replica makes a call, all at once; how many of the calls went twice.
async fn all_call(fleet: &[Replica], name: &str) -> usize {
    let calls: Vec<_> = fleet
        .iter()
        .enumerate()
        .map(|(n, replica)| {
            let (app, id) = (replica.app.clone(), format!("{name} {n}"));
            tokio::spawn(async move { app.message(&id).await })
        })
        .collect();
    let mut twice = 0;
    for call in calls {
        let reply = call.await.unwrap();
        reply.assert_ok();
        twice += usize::from(reply.attempts().is_some());
    }
    twice
}

#[tokio::test]
async fn ten_sidecars_that_start_together_and_restart_in_turn_never_void_each_others_token() {
    let wechat = Wechat::plain().await;
    let mut fleet: Vec<Replica> = (0..REPLICAS).map(|_| Replica::start(&wechat)).collect();
    assert_eq!(all_call(&fleet, "at the start").await, 0);
    for n in 0..REPLICAS {
        let replica = fleet.remove(n);
        replica.side.stop().await;
        fleet.insert(n, Replica::start(&wechat));
        assert_eq!(all_call(&fleet, &format!("after restart {n}")).await, 0);
    }
    let counts = wechat.sim.counts();
    assert!(counts.refusals.is_empty(), "{:?}", counts.refusals);
    assert_eq!((counts.fetches.granted, counts.fetches.fresh, counts.fetches.forced), (20, 1, 0));
    let live = wechat.sim.live_tokens(APPID);
    assert!(live.len() == 1 && live[0].kind == Kind::Stable, "{live:?}");
    assert_eq!(counts.max_sends_of_a_call, 1);
}

#[tokio::test]
async fn a_renewal_by_one_of_ten_harms_no_call_of_the_others() {
    let wechat = Wechat::plain().await;
    let mut fleet: Vec<Replica> = (0..REPLICAS).map(|_| Replica::start(&wechat)).collect();
    all_call(&fleet, "at the start").await;
    let old = wechat.sim.live_token(APPID).unwrap();
    // In the token's last five minutes one of them restarts, and is given the next one.
    wechat.sim.advance(Duration::from_secs(7200 - 200));
    fleet.pop().unwrap().side.stop().await;
    fleet.push(Replica::start(&wechat));
    assert_eq!(all_call(&fleet, "during the handover").await, 0, "old and new both work");
    assert_ne!(wechat.sim.live_token(APPID).unwrap(), old);
    // The clocks of the others have not moved, so they learn of the end by a refusal: once each, and no call fails.
    wechat.sim.advance(Duration::from_secs(301));
    assert_eq!(all_call(&fleet, "after it").await, REPLICAS - 1);
    assert_eq!(all_call(&fleet, "and then").await, 0);
    let counts = wechat.sim.counts();
    assert_eq!((counts.fetches.fresh, counts.max_sends_of_a_call, counts.max_accepts_of_a_call), (2, 2, 1));
    let tokens: BTreeSet<String> =
        wechat.sim.seen().iter().rev().take(REPLICAS).map(|s| s.target.clone()).collect();
    assert_eq!(tokens.len(), 1, "all of them are at the same token");
}
