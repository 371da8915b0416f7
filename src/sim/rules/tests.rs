//! Every token rule, and what holds whatever happens.

use super::*;
use proptest::prelude::*;

const APP: &str = "wx0123456789abcdef";

fn rules() -> Rules {
    let mut rules = Rules::new(Limits::default(), 1);
    rules.set_account(APP, "s");
    rules.set_account("wxother", "o");
    rules
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn good(rules: &Rules, grant: &Grant, now: Duration) -> bool {
    rules.judge(Some(&grant.token), now).is_ok()
}

#[test]
fn a_token_looks_like_wechats_and_its_length_is_a_setting() {
    let mut rules = rules();
    let first = rules.fetch_classic(APP, at(0)).unwrap();
    assert_eq!(first.token.len(), 512);
    assert_eq!(&first.token[..3], "50_");
    assert!(first.token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-'));
    assert_eq!((first.expires_in, first.fresh), (7200, true));
    rules.set_limits(Limits { token_length: 40, ..Limits::default() });
    assert_eq!(rules.fetch_classic(APP, at(0)).unwrap().token.len(), 40);
    rules.set_limits(Limits { token_length: 0, ..Limits::default() });
    assert_eq!(rules.fetch_classic(APP, at(0)).unwrap().token.len(), SHORTEST);
}

#[test]
fn the_same_seed_makes_the_same_tokens() {
    assert_eq!(rules().fetch_classic(APP, at(0)).unwrap(), rules().fetch_classic(APP, at(0)).unwrap());
}

#[test]
fn an_account_is_known_by_appid_and_secret() {
    let rules = rules();
    assert_eq!(rules.authenticate(Some(APP), Some("s")), Ok(()));
    assert_eq!(rules.authenticate(None, Some("s")), Err(Errcode::APPID_MISSING));
    assert_eq!(rules.authenticate(Some(""), Some("s")), Err(Errcode::APPID_MISSING));
    assert_eq!(rules.authenticate(Some(APP), None), Err(Errcode::SECRET_MISSING));
    assert_eq!(rules.authenticate(Some("wxWRONG"), Some("s")), Err(Errcode::APPID));
    assert_eq!(rules.authenticate(Some(APP), Some("S")), Err(Errcode::SECRET));
    assert_eq!(rules.authenticate(Some(APP), Some("o")), Err(Errcode::SECRET));
}

#[test]
fn every_classic_fetch_makes_a_token_and_the_one_before_works_five_minutes_more() {
    let mut rules = rules();
    let first = rules.fetch_classic(APP, at(0)).unwrap();
    let second = rules.fetch_classic(APP, at(1000)).unwrap();
    assert_ne!(first.token, second.token);
    assert!(good(&rules, &first, at(1299)) && good(&rules, &second, at(1299)));
    assert_eq!(rules.judge(Some(&first.token), at(1300)), Err(Errcode::NOT_LATEST));
    assert!(good(&rules, &second, at(8199)));
    assert_eq!(rules.judge(Some(&second.token), at(8200)), Err(Errcode::EXPIRED));
    // What a token died of does not change with time.
    assert_eq!(rules.judge(Some(&first.token), at(9000)), Err(Errcode::NOT_LATEST));
}

#[test]
fn a_third_classic_token_ends_the_first_at_once() {
    let mut rules = rules();
    let first = rules.fetch_classic(APP, at(0)).unwrap();
    let second = rules.fetch_classic(APP, at(1)).unwrap();
    let third = rules.fetch_classic(APP, at(2)).unwrap();
    assert_eq!(rules.judge(Some(&first.token), at(2)), Err(Errcode::NOT_LATEST));
    assert!(good(&rules, &second, at(2)) && good(&rules, &third, at(2)));
}

#[test]
fn a_classic_token_that_ran_out_is_not_revived_by_a_fetch() {
    let mut rules = rules();
    let first = rules.fetch_classic(APP, at(0)).unwrap();
    rules.fetch_classic(APP, at(7200)).unwrap();
    assert_eq!(rules.judge(Some(&first.token), at(7200)), Err(Errcode::EXPIRED));
}

#[test]
fn the_classic_quota_is_2000_a_day_and_begins_anew_the_next() {
    let mut rules = rules();
    for _ in 0..2000 {
        rules.fetch_classic(APP, at(5)).unwrap();
    }
    assert_eq!(rules.fetch_classic(APP, at(5)), Err(Errcode::DAY_QUOTA));
    assert_eq!(rules.fetch_classic(APP, DAY - at(1)), Err(Errcode::DAY_QUOTA));
    assert!(rules.fetch_classic("wxother", at(5)).is_ok(), "quotas are per account");
    assert!(rules.fetch_stable(APP, false, at(5)).is_ok(), "and per kind");
    assert!(rules.fetch_classic(APP, DAY).is_ok());
}

#[test]
fn a_stable_fetch_gives_the_same_token_and_its_remaining_life() {
    let mut rules = rules();
    let first = rules.fetch_stable(APP, false, at(0)).unwrap();
    assert_eq!((first.expires_in, first.fresh), (7200, true));
    let again = rules.fetch_stable(APP, false, at(6855)).unwrap();
    assert_eq!(again, Grant { token: first.token, expires_in: 345, fresh: false });
}

#[test]
fn a_stable_token_is_renewed_below_300_seconds_and_not_at_300() {
    let mut rules = rules();
    let first = rules.fetch_stable(APP, false, at(0)).unwrap();
    let at_300 = rules.fetch_stable(APP, false, at(6900)).unwrap();
    assert_eq!((at_300.expires_in, &at_300.token), (300, &first.token));
    let renewed = rules.fetch_stable(APP, false, at(6900) + Duration::from_millis(1)).unwrap();
    assert_ne!(renewed.token, first.token);
    assert_eq!(renewed.expires_in, 7200);
}

#[test]
fn the_renewed_and_the_older_stable_token_both_work_for_five_minutes() {
    let mut rules = rules();
    let first = rules.fetch_stable(APP, false, at(0)).unwrap();
    let second = rules.fetch_stable(APP, false, at(7000)).unwrap();
    assert_ne!(first.token, second.token);
    assert!(good(&rules, &first, at(7299)) && good(&rules, &second, at(7299)));
    assert_eq!(rules.judge(Some(&first.token), at(7300)), Err(Errcode::NOT_LATEST));
    assert!(good(&rules, &second, at(7300)));
}

#[test]
fn a_stable_token_nobody_renews_runs_out_after_two_hours() {
    let mut rules = rules();
    let first = rules.fetch_stable(APP, false, at(0)).unwrap();
    assert!(good(&rules, &first, at(7199)));
    assert_eq!(rules.judge(Some(&first.token), at(7200)), Err(Errcode::EXPIRED));
    assert_ne!(rules.fetch_stable(APP, false, at(7200)).unwrap().token, first.token);
}

#[test]
fn a_forced_refresh_ends_the_last_token_at_once() {
    let mut rules = rules();
    let first = rules.fetch_stable(APP, false, at(0)).unwrap();
    let forced = rules.fetch_stable(APP, true, at(0)).unwrap();
    assert!(forced.fresh);
    assert_eq!(rules.judge(Some(&first.token), at(0)), Err(Errcode::NOT_LATEST));
    assert!(good(&rules, &forced, at(0)));
}

#[test]
fn two_forced_refreshes_are_thirty_seconds_apart_or_the_second_does_nothing() {
    let mut rules = rules();
    let first = rules.fetch_stable(APP, true, at(100)).unwrap();
    let soon = rules.fetch_stable(APP, true, at(129)).unwrap();
    assert_eq!(soon, Grant { token: first.token.clone(), expires_in: 7171, fresh: false });
    let later = rules.fetch_stable(APP, true, at(130)).unwrap();
    assert_ne!(later.token, first.token);
    assert_eq!(rules.used_today(APP, at(130)), (0, 3, 2), "one that did nothing costs none of the 20");
}

#[test]
fn a_forced_refresh_is_had_twenty_times_a_day() {
    let mut rules = rules();
    for n in 0..20 {
        assert!(rules.fetch_stable(APP, true, at(n * 30)).unwrap().fresh);
    }
    assert_eq!(rules.fetch_stable(APP, true, at(700)), Err(Errcode::DAY_QUOTA));
    assert!(rules.fetch_stable(APP, false, at(700)).is_ok(), "normal mode goes on");
    assert!(rules.fetch_stable(APP, true, DAY).is_ok());
}

#[test]
fn stable_fetches_are_limited_by_the_minute_and_by_the_day() {
    let mut rules = rules();
    for _ in 0..10_000 {
        rules.fetch_stable(APP, false, at(0)).unwrap();
    }
    assert_eq!(rules.fetch_stable(APP, false, at(59)), Err(Errcode::MINUTE_QUOTA));
    assert!(rules.fetch_stable(APP, false, at(60)).is_ok());
    let documented = Limits::default();
    assert_eq!((documented.stable_per_minute, documented.stable_per_day), (10_000, 500_000));
    rules.set_limits(Limits { stable_per_day: 10_002, ..documented });
    assert!(rules.fetch_stable(APP, false, at(120)).is_ok());
    assert_eq!(rules.fetch_stable(APP, false, at(120)), Err(Errcode::DAY_QUOTA));
}

#[test]
fn the_two_kinds_and_two_accounts_never_touch_each_other() {
    let mut rules = rules();
    let stable = rules.fetch_stable(APP, false, at(0)).unwrap();
    let classic = rules.fetch_classic(APP, at(0)).unwrap();
    let other = rules.fetch_stable("wxother", false, at(0)).unwrap();
    for second in 1..10 {
        rules.fetch_classic(APP, at(second)).unwrap();
    }
    assert!(good(&rules, &stable, at(1000)));
    assert_eq!(rules.judge(Some(&classic.token), at(1000)), Err(Errcode::NOT_LATEST));
    let classic = rules.fetch_classic(APP, at(1000)).unwrap();
    rules.fetch_stable(APP, true, at(1000)).unwrap();
    assert!(good(&rules, &classic, at(1000)) && good(&rules, &other, at(1000)));
    let owner = rules.judge(Some(&other.token), at(1000)).unwrap();
    assert_eq!(owner, Owner { appid: "wxother".to_owned(), kind: Some(Kind::Stable) });
}

#[test]
fn a_call_without_a_token_or_with_a_made_up_one_is_told_so() {
    let mut rules = rules();
    assert_eq!(rules.judge(None, at(0)), Err(Errcode::TOKEN_MISSING));
    assert_eq!(rules.judge(Some(""), at(0)), Err(Errcode::TOKEN_MISSING));
    assert_eq!(rules.judge(Some("made-up"), at(0)), Err(Errcode::INVALID_TOKEN));
    rules.accept_extra(APP, "made-up");
    assert_eq!(rules.judge(Some("made-up"), at(0)).unwrap().appid, APP);
}

#[test]
fn levers_end_tokens_of_the_cause_they_name() {
    let mut rules = rules();
    let stable = rules.fetch_stable(APP, false, at(0)).unwrap();
    rules.expire(APP, at(1));
    assert_eq!(rules.judge(Some(&stable.token), at(1)), Err(Errcode::EXPIRED));
    let fetched = rules.fetch_stable(APP, false, at(1)).unwrap();
    assert!(fetched.fresh);
    rules.rotate(APP, Kind::Stable, true, at(2)).unwrap();
    assert_eq!(rules.judge(Some(&fetched.token), at(2)), Err(Errcode::NOT_LATEST));
    let classic = rules.fetch_classic(APP, at(2)).unwrap();
    rules.rotate(APP, Kind::Classic, false, at(3)).unwrap();
    assert!(good(&rules, &classic, at(3)));
    rules.revoke_overlap(APP, at(3));
    assert_eq!(rules.judge(Some(&classic.token), at(3)), Err(Errcode::NOT_LATEST));
    assert_eq!(rules.live(APP, at(3)).len(), 2, "the newest of each kind");
    assert!(rules.rotate("wxnobody", Kind::Stable, true, at(3)).is_none());
}

#[test]
fn a_short_life_is_still_a_life() {
    let mut rules = rules();
    rules.set_limits(Limits { life: 60, ..Limits::default() });
    let first = rules.fetch_stable(APP, false, at(0)).unwrap();
    assert_eq!(rules.fetch_stable(APP, false, at(30)).unwrap().token, first.token);
    assert_ne!(rules.fetch_stable(APP, false, at(31)).unwrap().token, first.token);
}

#[test]
fn a_quota_reset_frees_the_day_ten_times_a_month() {
    let mut rules = rules();
    rules.set_limits(Limits { classic_per_day: 1, ..Limits::default() });
    for _ in 0..10 {
        rules.fetch_classic(APP, at(0)).unwrap();
        assert_eq!(rules.fetch_classic(APP, at(0)), Err(Errcode::DAY_QUOTA));
        rules.clear_quota(APP, at(0)).unwrap();
    }
    assert_eq!(rules.clear_quota(APP, at(0)), Err(Errcode::RESETS_USED));
    assert!(rules.clear_quota(APP, DAY * 30).is_ok());
}

#[test]
fn old_tokens_are_forgotten_but_none_that_works() {
    let mut rules = rules();
    let stable = rules.fetch_stable(APP, false, at(0)).unwrap();
    for _ in 0..REMEMBERED + 5 {
        rules.rotate(APP, Kind::Classic, false, at(1)).unwrap();
    }
    assert!(rules.issued.len() <= REMEMBERED && rules.order.len() == rules.issued.len());
    assert!(good(&rules, &stable, at(1)));
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Classic,
    Stable(bool),
    Rotate(Kind, bool),
    Expire,
    Revoke,
    Wait(u64),
}

fn acts() -> impl Strategy<Value = Act> {
    let kind = prop_oneof![Just(Kind::Classic), Just(Kind::Stable)];
    prop_oneof![
        Just(Act::Classic),
        any::<bool>().prop_map(Act::Stable),
        (kind, any::<bool>()).prop_map(|(kind, at_once)| Act::Rotate(kind, at_once)),
        Just(Act::Expire),
        Just(Act::Revoke),
        prop_oneof![0..40_u64, 250..350_u64, 6800..7300_u64].prop_map(Act::Wait),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_only_the_documented_tokens_work(acts in prop::collection::vec(acts(), 1..60)) {
        let mut rules = rules();
        rules.set_limits(Limits { token_length: 20, ..Limits::default() });
        let mut now = at(0);
        let mut given: Vec<(Kind, String)> = Vec::new();
        for act in acts {
            let of = |rules: &Rules, kind| -> Vec<String> {
                let live = rules.live(APP, now);
                live.into_iter().filter(|live| live.kind == kind).map(|live| live.token).collect()
            };
            let stable_before = of(&rules, Kind::Stable);
            let classic_before = of(&rules, Kind::Classic);
            match act {
                Act::Classic => {
                    let grant = rules.fetch_classic(APP, now).unwrap();
                    prop_assert!(grant.fresh && grant.expires_in == 7200);
                    prop_assert_eq!(&of(&rules, Kind::Stable), &stable_before);
                    given.push((Kind::Classic, grant.token));
                }
                Act::Stable(force) => {
                    if let Ok(grant) = rules.fetch_stable(APP, force, now) {
                        prop_assert!((300..=7200).contains(&grant.expires_in));
                        let known = given.iter().any(|(_, token)| *token == grant.token);
                        prop_assert_eq!(grant.fresh, !known, "fresh is new, and only new is fresh");
                        prop_assert!(rules.judge(Some(&grant.token), now).is_ok());
                        let last = now + Duration::from_secs(grant.expires_in - 1);
                        prop_assert!(rules.judge(Some(&grant.token), last).is_ok());
                        if !known {
                            given.push((Kind::Stable, grant.token));
                        }
                    }
                    prop_assert_eq!(&of(&rules, Kind::Classic), &classic_before);
                }
                Act::Rotate(kind, at_once) => {
                    let grant = rules.rotate(APP, kind, at_once, now).unwrap();
                    if at_once {
                        prop_assert_eq!(of(&rules, kind), vec![grant.token.clone()]);
                    }
                    given.push((kind, grant.token));
                }
                Act::Expire => rules.expire(APP, now),
                Act::Revoke => rules.revoke_overlap(APP, now),
                Act::Wait(seconds) => now += at(seconds),
            }
            for kind in [Kind::Classic, Kind::Stable] {
                let works: Vec<&String> = given
                    .iter()
                    .filter(|(of, token)| *of == kind && rules.judge(Some(token), now).is_ok())
                    .map(|(_, token)| token)
                    .collect();
                let last_two: Vec<&String> =
                    given.iter().rev().filter(|(of, _)| *of == kind).take(2).map(|(_, token)| token).collect();
                prop_assert!(works.iter().all(|token| last_two.contains(token)));
            }
        }
    }
}
