//! What a keeper counts, and a secret that is to be proved.

use super::*;

fn fetched(keeper: &TokenKeeper, reason: &str, outcome: &str) -> u64 {
    let counted = keeper.status().counted;
    let found = counted.fetches.iter().find(|(r, o, _)| (*r, *o) == (reason, outcome));
    found.unwrap_or_else(|| panic!("no {reason} {outcome}")).2
}

#[tokio::test(start_paused = true)]
async fn fetches_are_counted_by_why_and_what_came_of_them() {
    let wechat = WeChat::stable();
    let (keeper, _worker) = wechat.kept();
    let token = keeper.token(WAIT).await.unwrap();
    assert_eq!(fetched(&keeper, "startup", "fetched"), 1);
    assert!(matches!(keeper.refresh(&token, CHRONIC, WAIT).await, Refresh::Same(_)));
    assert_eq!(fetched(&keeper, "refused", "same-again"), 1);
    wechat.fails(refusal(Class::Ip, 40164, 60, 600));
    no(keeper.fetch_now(Reason::Operator { force: false }, WAIT).await);
    assert_eq!(fetched(&keeper, "operator", "ip"), 1);
    let status = keeper.status();
    assert_eq!(status.counted.fetches.iter().map(|(.., n)| n).sum::<u64>(), status.fetches);
    let (ago, reason) = status.counted.refreshed.unwrap();
    assert!(ago < secs(5) && reason.contains("was refused with 40001"), "{reason}");
    assert!(status.counted.held_back.is_some(), "the same token came back: the breaker closes");
    assert_eq!(status.counted.leases[0], ("acquired", 3));
    assert!(keeper.troubles().is_empty(), "whoever asked was told");
    // What nobody asked for is for all to read.
    sleep(2 * HOUR).await;
    let troubles = keeper.troubles();
    assert_eq!(troubles[0].kind, "token");
    assert!(troubles[0].sentence.contains("40164"));
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_wechat_does_not_take_changes_nothing() {
    let wechat = WeChat::stable();
    let (keeper, _worker) = wechat.kept();
    let token = keeper.token(WAIT).await.unwrap();
    let next = keeper.status().next_attempt.unwrap();
    wechat.fails(refusal(Class::Config, 40125, 60, 600));
    assert!(no(keeper.fetch_now(Reason::SecretChange, WAIT).await).contains("40125"));
    assert_eq!(fetched(&keeper, "secret-change", "config"), 1);
    let status = keeper.status();
    assert_eq!((status.failure, keeper.current()), (None, Some(token.clone())));
    assert!(status.next_attempt.unwrap() <= next, "the schedule is what it was");

    // And a refusal has its fetch at once, with the old secret, as if nobody had tried another.
    wechat.becomes(|_, rules| {
        rules.rotate();
        Ok(rules.issue())
    });
    token.mark_accepted();
    another(keeper.refresh(&token, Refusal { said: Said::Errcode(42001), chronic: false }, WAIT).await);
    sleep(secs(30)).await;
    assert_eq!(wechat.fetches(), 3, "and nobody goes on trying by himself");
}
