//! The keeper against a WeChat of a few lines, on a paused clock: days pass in milliseconds.

mod central;
mod counted;
mod log;
mod model;
mod shared;

use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{advance, sleep, sleep_until};

use super::*;
use crate::token::source::{Class, FetchError, Pace, Want};
use crate::token::store::MemoryStore;

const WAIT: Duration = Duration::from_secs(2);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// The kind of refusal that has to wait for the breaker.
const CHRONIC: Refusal = Refusal { said: Said::Errcode(40001), chronic: true };

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// How often either endpoint may be asked.
fn pace(classic: bool) -> Pace {
    Pace {
        ahead: if classic { secs(600) } else { secs(300) },
        jitter: if classic { secs(60) } else { secs(30) },
        burst: if classic { 30 } else { 100 },
        refill: if classic { secs(60) } else { secs(1) },
        refusal_wait: if classic { secs(300) } else { secs(16) },
        voids_the_last: classic,
        look_again: None,
    }
}

/// What decides a fetch: how many came before it, and WeChat's own state.
type Script = Box<dyn FnMut(u64, &mut Rules) -> Result<Token, FetchError> + Send>;

/// WeChat's rules for one account, as far as these tests need them.
struct Rules {
    classic: bool,
    life: Duration,
    issued: u64,
    issued_at: Instant,
    latency: Duration,
    fetches: Vec<Instant>,
}

impl Rules {
    /// Someone, somewhere, makes WeChat issue another token.
    fn rotate(&mut self) {
        self.issued += 1;
        self.issued_at = Instant::now();
    }

    /// What both endpoints answer when all is well.
    fn issue(&mut self) -> Token {
        let age = self.issued_at.elapsed();
        if self.classic || self.issued == 0 || age + secs(300) >= self.life {
            self.rotate();
        }
        let left = self.life.saturating_sub(self.issued_at.elapsed());
        Token::new(&self.name(), Instant::now(), left).unwrap()
    }

    fn name(&self) -> String {
        format!("TOKEN_{}", self.issued)
    }
}

#[derive(Clone)]
struct WeChat(Arc<Mutex<(Rules, Script)>>);

impl WeChat {
    fn stable() -> Self {
        Self::scripted(|_, rules| Ok(rules.issue()))
    }

    fn classic() -> Self {
        let wechat = Self::stable();
        wechat.with(|rules| rules.classic = true);
        wechat
    }

    /// Tokens of which each lives for `life` and no two are the same, whatever the age of the one before.
    fn brief(life: Duration) -> Self {
        Self::scripted(move |n, _| Ok(Token::new(&format!("BRIEF_{n}"), Instant::now(), life).unwrap()))
    }

    fn failing(error: FetchError) -> Self {
        Self::scripted(move |_, _| Err(error.clone()))
    }

    fn scripted(script: impl FnMut(u64, &mut Rules) -> Result<Token, FetchError> + Send + 'static) -> Self {
        let rules = Rules {
            classic: false,
            life: secs(7200),
            issued: 0,
            issued_at: Instant::now(),
            latency: Duration::from_millis(80),
            fetches: Vec::new(),
        };
        Self(Arc::new(Mutex::new((rules, Box::new(script)))))
    }

    fn with<R>(&self, f: impl FnOnce(&mut Rules) -> R) -> R {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).0)
    }

    /// From now on fetches go by this script.
    fn becomes(&self, script: impl FnMut(u64, &mut Rules) -> Result<Token, FetchError> + Send + 'static) {
        self.0.lock().unwrap().1 = Box::new(script);
    }

    fn fails(&self, error: FetchError) {
        self.becomes(move |_, _| Err(error.clone()));
    }

    fn recovers(&self) {
        self.becomes(|_, rules| Ok(rules.issue()));
    }

    fn fetches(&self) -> usize {
        self.with(|rules| rules.fetches.len())
    }

    /// The least time between two fetches.
    fn least_gap(&self) -> Duration {
        self.with(|rules| rules.fetches.windows(2).map(|pair| pair[1] - pair[0]).min().unwrap())
    }

    /// Starts a keeper with a memory of its own.
    fn kept(&self) -> (TokenKeeper, JoinHandle<()>) {
        self.kept_in(MemoryStore::new())
    }

    fn kept_in<T: TokenStore>(&self, store: T) -> (TokenKeeper, JoinHandle<()>) {
        let appid = AppId::parse("wx0123456789abcdef").unwrap();
        let (keeper, worker) = TokenKeeper::new(appid, self.clone(), store);
        (keeper, tokio::spawn(worker.run()))
    }
}

impl TokenSource for WeChat {
    fn name(&self) -> &'static str {
        "simulated"
    }

    fn pace(&self) -> Pace {
        pace(self.with(|rules| rules.classic))
    }

    async fn fetch(&self, _: Want<'_>) -> Result<Token, FetchError> {
        let latency = self.with(|rules| {
            rules.fetches.push(Instant::now());
            rules.latency
        });
        sleep(latency).await;
        let (rules, script) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        script(rules.fetches.len() as u64, rules)
    }
}

fn busy() -> FetchError {
    FetchError::transient("WeChat is busy")
}

/// A refusal of a class, with the waits the source gives its code.
fn refusal(class: Class, errcode: i64, least: u64, most: u64) -> FetchError {
    FetchError {
        class,
        errcode: Some(errcode),
        sentence: format!("errcode {errcode}"),
        retry_after: secs(least),
        at_most: secs(most),
    }
}

fn another(refresh: Refresh) -> Token {
    match refresh {
        Refresh::Another(token) => token,
        other => panic!("expected another token, not {other:?}"),
    }
}

fn no(refresh: Refresh) -> String {
    match refresh {
        Refresh::No(why) => why,
        other => panic!("expected no token, not {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn three_days_pass_without_a_gap_and_without_a_needless_fetch() {
    for (wechat, most) in [(WeChat::stable(), 39), (WeChat::classic(), 42)] {
        let (keeper, _worker) = wechat.kept();
        let mut token = keeper.token(WAIT).await.unwrap();
        let end = Instant::now() + 3 * DAY;
        while Instant::now() < end {
            advance(secs(1)).await;
            let now = keeper.current().expect("a token at every second");
            if now != token {
                token = now;
                assert!(token.remaining() > secs(7190));
            }
        }
        let fetches = wechat.fetches();
        assert!((36..=most).contains(&fetches), "{fetches}");
        assert_eq!(keeper.status().failures, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_at_startup_waits_for_the_first_fetch_and_no_longer_than_it_said() {
    let wechat = WeChat::stable();
    wechat.with(|rules| rules.latency = secs(3));
    let (keeper, _worker) = wechat.kept();
    let began = Instant::now();
    let told = keeper.token(WAIT).await.unwrap_err();
    assert_eq!(began.elapsed(), WAIT);
    assert!(told.message.contains("still under way"), "{}", told.message);
    assert!(told.retry_after >= secs(1));
    assert_eq!(keeper.token(WAIT).await.unwrap().expose(), "TOKEN_1");
    assert_eq!(began.elapsed(), secs(3));
    assert_eq!(wechat.fetches(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_outage_at_startup_is_told_at_once_and_ends_within_the_backoff() {
    let wechat = WeChat::failing(busy());
    let (mut keeper, _worker) = wechat.kept();
    sleep(HOUR).await;
    let began = Instant::now();
    // Whether it is backing off or just asking, nobody waits for nothing.
    let told = keeper.token(WAIT).await.unwrap_err();
    assert!(began.elapsed() < secs(1));
    assert!(told.message.contains("WeChat is busy"), "{}", told.message);
    assert!(told.retry_after >= secs(1) && told.retry_after <= secs(73));
    assert_eq!(keeper.status().failure, Some(busy()));
    // An hour of a minute each, give or take a fifth, after the first six.
    assert!((55..=85).contains(&wechat.fetches()), "{}", wechat.fetches());
    wechat.recovers();
    let began = Instant::now();
    while keeper.current().is_none() {
        assert!(keeper.changed().await);
    }
    assert!(began.elapsed() <= secs(73));
    assert_eq!(keeper.status().failure, None);
}

#[tokio::test(start_paused = true)]
async fn through_an_outage_the_live_token_is_served_and_the_dead_one_never() {
    let wechat = WeChat::stable();
    let (keeper, _worker) = wechat.kept();
    let token = keeper.token(WAIT).await.unwrap();
    sleep(secs(6600)).await;
    wechat.fails(busy());
    for _ in 0..3600 {
        sleep(secs(1)).await;
        match keeper.current() {
            Some(now) => assert!(now == token && token.is_alive()),
            None => assert!(!token.is_alive()),
        }
    }
    let began = Instant::now();
    assert!(keeper.token(WAIT).await.unwrap_err().message.contains("busy"));
    assert!(began.elapsed() < secs(1));
    wechat.recovers();
    sleep(secs(73)).await;
    assert_eq!(keeper.current().unwrap().expose(), "TOKEN_2");
}

#[tokio::test(start_paused = true)]
async fn a_rotation_by_someone_else_costs_one_fetch_and_is_counted() {
    let wechat = WeChat::stable();
    let (keeper, _worker) = wechat.kept();
    let old = keeper.token(WAIT).await.unwrap();
    old.mark_accepted();
    sleep(secs(1800)).await;
    wechat.with(Rules::rotate);
    assert_eq!(another(keeper.refresh(&old, CHRONIC, WAIT).await).expose(), "TOKEN_2");
    assert_eq!(wechat.fetches(), 2);
    assert_eq!(keeper.status().foreign_rotations, 1);
    // One who is late, and names the old token, gets the new one for nothing.
    assert_eq!(another(keeper.refresh(&old, CHRONIC, WAIT).await).expose(), "TOKEN_2");
    assert_eq!(wechat.fetches(), 2);
    assert_eq!(keeper.status().foreign_rotations, 1);
}

#[tokio::test(start_paused = true)]
async fn a_token_refused_in_its_last_minutes_is_nobodys_fault() {
    let wechat = WeChat::stable();
    let (keeper, _worker) = wechat.kept();
    let old = keeper.token(WAIT).await.unwrap();
    sleep_until(old.expires_at() - secs(299)).await;
    another(keeper.refresh(&old, CHRONIC, WAIT).await);
    assert_eq!(keeper.status().foreign_rotations, 0);
}

#[tokio::test(start_paused = true)]
async fn ten_restarts_against_the_stable_endpoint_rotate_nothing() {
    let wechat = WeChat::stable();
    for _ in 0..10 {
        let (keeper, worker) = wechat.kept();
        assert_eq!(keeper.token(WAIT).await.unwrap().expose(), "TOKEN_1");
        sleep(secs(60)).await;
        drop(keeper);
        worker.await.unwrap();
    }
    assert_eq!(wechat.fetches(), 10);
    // The eleventh knows how much of its life is gone.
    let (keeper, _worker) = wechat.kept();
    let left = keeper.token(WAIT).await.unwrap().remaining();
    assert!(left <= secs(6600) && left > secs(6590), "{left:?}");
}

#[tokio::test(start_paused = true)]
async fn each_kind_of_failure_has_its_own_schedule() {
    for (error, attempts, gap) in [
        (refusal(Class::Config, 40125, 60, 600), 130..=165, 60),
        (refusal(Class::Ip, 40164, 60, 600), 130..=165, 60),
        (refusal(Class::Human, 40243, 600, 600), 110..=145, 600),
        (refusal(Class::AwaitAdmin, 89503, 600, 600), 110..=145, 600),
        (refusal(Class::AwaitAdmin, 89507, 3600, 3600), 19..=25, 3600),
        (refusal(Class::AwaitAdmin, 89506, 86_400, 86_400), 1..=2, 0),
        (refusal(Class::Quota, 45011, 60, 300), 240..=400, 60),
        (refusal(Class::Quota, 45009, 300, 3600), 20..=35, 300),
        (busy(), 1200..=1800, 1),
    ] {
        let wechat = WeChat::failing(error.clone());
        let (keeper, _worker) = wechat.kept();
        // Calls and refusals all day long change nothing.
        let refused = Token::new("OLD", Instant::now(), 2 * DAY).unwrap();
        let end = Instant::now() + DAY + secs(60);
        while Instant::now() < end {
            assert!(keeper.token(WAIT).await.unwrap_err().message.contains(&error.sentence));
            no(keeper.refresh(&refused, CHRONIC, WAIT).await);
            sleep(secs(7)).await;
        }
        let errcode = error.errcode;
        assert!(attempts.contains(&wechat.fetches()), "{errcode:?}: {}", wechat.fetches());
        if wechat.fetches() > 1 {
            assert!(wechat.least_gap() >= secs(gap), "{errcode:?}: {:?}", wechat.least_gap());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_thousand_refusals_are_one_fetch() {
    let wechat = WeChat::stable();
    let (keeper, _worker) = wechat.kept();
    let old = keeper.token(WAIT).await.unwrap();
    wechat.with(Rules::rotate);
    // More than the queue holds.
    let mut calls = JoinSet::new();
    for n in 0..3000 {
        let (keeper, old) = (keeper.clone(), old.clone());
        calls.spawn(async move {
            sleep(Duration::from_millis(n % 60)).await;
            keeper.refresh(&old, CHRONIC, WAIT).await
        });
    }
    for refresh in calls.join_all().await {
        assert_eq!(another(refresh).expose(), "TOKEN_2");
    }
    assert_eq!(wechat.fetches(), 2);
    assert_eq!(keeper.status().foreign_rotations, 1);
}

#[tokio::test(start_paused = true)]
async fn those_who_waited_for_one_fetch_hear_the_same() {
    let wechat = WeChat::stable();
    let (keeper, _worker) = wechat.kept();
    let token = keeper.token(WAIT).await.unwrap();
    let refuse_at_once = || {
        let mut calls = JoinSet::new();
        for _ in 0..3000 {
            let (keeper, token) = (keeper.clone(), token.clone());
            calls.spawn(async move { keeper.refresh(&token, CHRONIC, WAIT).await });
        }
        calls.join_all()
    };
    for refresh in refuse_at_once().await {
        assert_eq!(refresh, Refresh::Same(token.clone()));
    }
    assert_eq!(wechat.fetches(), 2);
    sleep(secs(5)).await;
    wechat.fails(busy());
    for refresh in refuse_at_once().await {
        assert!(no(refresh).contains("busy"));
    }
    assert_eq!(wechat.fetches(), 3);
    assert_eq!(keeper.current(), Some(token), "a live token is still served");
}

#[tokio::test(start_paused = true)]
async fn the_same_token_refused_for_an_hour_costs_a_few_fetches() {
    let wechat = WeChat::stable();
    let (keeper, _worker) = wechat.kept();
    let token = keeper.token(WAIT).await.unwrap();
    token.mark_accepted();
    let began = Instant::now();
    let (mut same, mut refused) = (0, 0);
    while began.elapsed() < HOUR {
        let asked = Instant::now();
        match keeper.refresh(&token, CHRONIC, WAIT).await {
            Refresh::Same(_) => same += 1,
            Refresh::No(why) => {
                assert_eq!(asked.elapsed(), Duration::ZERO, "a closed breaker answers at once");
                assert!(why.contains("refuses what it issues"), "{why}");
                refused += 1;
            }
            Refresh::Another(_) => panic!("there is no other"),
        }
        sleep(Duration::from_millis(100)).await;
    }
    // At once, then after 2, 4, 8, then every 16 s.
    assert!((220..=230).contains(&same), "{same}");
    assert_eq!(wechat.fetches(), same + 1);
    assert!(refused > 30_000);
    assert!(!keeper.current().unwrap().was_accepted(), "nothing was, since it was refused");
}

#[tokio::test(start_paused = true)]
async fn a_token_refused_before_its_round_has_ended_is_not_its_own_remedy() {
    let wechat = WeChat::stable();
    let (keeper, _worker) = wechat.kept();
    let first = keeper.token(WAIT).await.unwrap();
    wechat.with(Rules::rotate);
    // A call on another thread sees a token as soon as it is published, and may ask before the round is counted.
    let (reply, answer) = oneshot::channel();
    let reason = Reason::Reject { refused: first.clone(), refusal: CHRONIC };
    assert!(keeper.asks.send(Ask { reason, rounds: 0, reply }).await.is_ok());
    assert_ne!(another(answer.await.unwrap()), first);
    assert_eq!(wechat.fetches(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_is_news_does_not_wait_for_the_breaker_but_for_the_budget() {
    let wechat = WeChat::stable();
    let (keeper, _worker) = wechat.kept();
    let token = keeper.token(WAIT).await.unwrap();
    token.mark_accepted();
    // One kind of call is refused for ever: the breaker closes on it...
    assert_eq!(keeper.refresh(&token, CHRONIC, WAIT).await, Refresh::Same(token.clone()));
    no(keeper.refresh(&token, CHRONIC, WAIT).await);
    // ...while others are taken; then someone else voids the token, which one of those learns.
    token.mark_accepted();
    wechat.with(Rules::rotate);
    no(keeper.refresh(&token, CHRONIC, WAIT).await);
    let news = Refusal { chronic: false, ..CHRONIC };
    let next = another(keeper.refresh(&token, news, WAIT).await);
    assert_eq!(another(keeper.refresh(&token, CHRONIC, WAIT).await), next, "now both have it");
    // Should all kinds of calls be refused, none is taken any more, and the breaker holds for all of them.
    let (before, began) = (wechat.fetches(), Instant::now());
    while began.elapsed() < secs(60) {
        keeper.refresh(&next, news, WAIT).await;
        sleep(Duration::from_millis(10)).await;
    }
    let fetches = wechat.fetches() - before;
    assert!((4..=8).contains(&fetches), "{fetches}: at once, then after 2, 4, 8, 16 s");
}

#[tokio::test(start_paused = true)]
async fn new_tokens_that_are_all_refused_cost_a_few_fetches() {
    let wechat = WeChat::classic();
    let (keeper, _worker) = wechat.kept();
    let mut token = keeper.token(WAIT).await.unwrap();
    let began = Instant::now();
    while began.elapsed() < HOUR {
        if let Refresh::Another(new) = keeper.refresh(&token, CHRONIC, WAIT).await {
            token = new;
        }
        sleep(Duration::from_millis(100)).await;
    }
    assert!((20..=26).contains(&wechat.fetches()), "{}", wechat.fetches());
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_killed_before_every_call_is_always_replaced_at_once() {
    let wechat = WeChat::stable();
    let (keeper, _worker) = wechat.kept();
    let mut token = keeper.token(WAIT).await.unwrap();
    for n in 0..500 {
        wechat.with(Rules::rotate);
        token = another(keeper.refresh(&token, CHRONIC, WAIT).await);
        token.mark_accepted();
        assert_eq!(wechat.fetches(), n + 2);
        sleep(secs(1)).await;
    }
    assert_eq!(keeper.status().foreign_rotations, 500);
}

#[tokio::test(start_paused = true)]
async fn a_slow_fetch_outlives_those_who_gave_up_on_it() {
    let wechat = WeChat::stable();
    let (keeper, _worker) = wechat.kept();
    let old = keeper.token(WAIT).await.unwrap();
    wechat.with(|rules| {
        rules.rotate();
        rules.latency = secs(8);
    });
    let began = Instant::now();
    assert!(no(keeper.refresh(&old, CHRONIC, WAIT).await).contains("longer than 2s"));
    assert_eq!(began.elapsed(), WAIT);
    assert_eq!(keeper.current(), Some(old.clone()));
    // A call that goes away while it waits leaves nothing behind.
    assert!(timeout(secs(1), keeper.refresh(&old, CHRONIC, WAIT)).await.is_err());
    let patient = another(keeper.refresh(&old, CHRONIC, secs(60)).await);
    assert_eq!(began.elapsed(), secs(8));
    assert_eq!(keeper.current(), Some(patient));
    sleep(secs(60)).await;
    assert_eq!(wechat.fetches(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_whose_fetch_failed_is_not_forgotten() {
    let wechat = WeChat::stable();
    let (mut keeper, _worker) = wechat.kept();
    let old = keeper.token(WAIT).await.unwrap();
    wechat.with(Rules::rotate);
    wechat.fails(busy());
    assert!(no(keeper.refresh(&old, CHRONIC, WAIT).await).contains("busy"));
    let fetches = wechat.fetches();
    let asked = Instant::now();
    assert!(
        no(keeper.refresh(&old, CHRONIC, WAIT).await).contains("next attempt"),
        "nothing goes past the backoff"
    );
    assert_eq!((wechat.fetches(), asked.elapsed()), (fetches, Duration::ZERO));
    assert_eq!(keeper.current(), Some(old.clone()));
    wechat.recovers();
    while keeper.current() == Some(old.clone()) {
        assert!(keeper.changed().await);
    }
    assert!(asked.elapsed() < secs(3));
    assert_eq!(keeper.status().foreign_rotations, 1);
}

#[tokio::test(start_paused = true)]
async fn tokens_that_live_a_second_are_served_and_do_not_make_it_hammer() {
    let wechat = WeChat::brief(secs(1));
    let (keeper, _worker) = wechat.kept();
    let end = Instant::now() + HOUR;
    let (mut served, mut moments) = (0, 0);
    while Instant::now() < end {
        advance(Duration::from_millis(100)).await;
        tokio::task::yield_now().await;
        moments += 1;
        served += i32::from(keeper.current().is_some_and(|token| token.is_alive()));
    }
    assert!(wechat.fetches() <= 3700, "{}", wechat.fetches());
    assert!(wechat.least_gap() >= secs(1));
    assert!(served * 10 > moments * 6, "{served} of {moments}");
    // A call that comes between two waits for the next.
    for _ in 0..50 {
        assert!(keeper.token(WAIT).await.unwrap().is_alive());
        sleep(Duration::from_millis(310)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn tokens_that_live_a_second_cannot_burn_the_classic_quota() {
    let wechat = WeChat::brief(secs(1));
    wechat.with(|rules| rules.classic = true);
    let (keeper, _worker) = wechat.kept();
    sleep(DAY).await;
    assert!((1400..=1471).contains(&wechat.fetches()), "{}", wechat.fetches());
    let held_back = keeper.status().failure.expect("held back");
    assert!(held_back.sentence.contains("own budget"), "{}", held_back.sentence);
}

#[tokio::test(start_paused = true)]
async fn tokens_that_live_five_minutes_are_renewed_half_way() {
    let wechat = WeChat::brief(secs(300));
    let (keeper, _worker) = wechat.kept();
    keeper.token(WAIT).await.unwrap();
    let end = Instant::now() + DAY;
    while Instant::now() < end {
        advance(secs(1)).await;
        assert!(keeper.current().is_some());
    }
    assert!((550..=577).contains(&wechat.fetches()), "{}", wechat.fetches());
}

#[tokio::test(start_paused = true)]
async fn a_token_that_died_on_its_way_is_never_served() {
    let wechat = WeChat::scripted(|_, _| Ok(Token::new("LATE", Instant::now() - secs(2), secs(1)).unwrap()));
    let (keeper, _worker) = wechat.kept();
    assert!(keeper.token(WAIT).await.unwrap_err().message.contains("dead before it arrived"));
    assert!(keeper.current().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_stable_endpoint_that_keeps_the_old_token_too_long_is_asked_again_soon() {
    let wechat = WeChat::stable();
    let (keeper, _worker) = wechat.kept();
    let old = keeper.token(WAIT).await.unwrap();
    // It renews in the last minute only.
    let first = old.clone();
    wechat.becomes(move |_, rules| {
        let left = first.remaining();
        Ok(if left > secs(60) {
            Token::new(first.expose(), Instant::now(), left).unwrap()
        } else {
            rules.issue()
        })
    });
    sleep_until(old.expires_at() - secs(1)).await;
    assert_ne!(keeper.current(), Some(old));
    assert!((3..=6).contains(&wechat.fetches()), "{}", wechat.fetches());
    assert_eq!(keeper.status().foreign_rotations, 0);
}

#[tokio::test(start_paused = true)]
async fn a_new_secret_and_a_person_go_past_the_backoff() {
    let wechat = WeChat::failing(refusal(Class::Config, 40125, 60, 600));
    let (keeper, _worker) = wechat.kept();
    keeper.token(WAIT).await.unwrap_err();
    wechat.recovers();
    let began = Instant::now();
    another(keeper.fetch_now(Reason::SecretChange, WAIT).await);
    assert!(began.elapsed() < secs(1));
    assert!(keeper.current().is_some() && keeper.status().failure.is_none());
    assert!(matches!(keeper.fetch_now(Reason::Operator { force: false }, WAIT).await, Refresh::Same(_)));
    assert_eq!(wechat.fetches(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_keeper_whose_worker_is_gone_hangs_nobody() {
    let wechat = WeChat::stable();
    let (mut keeper, worker) = wechat.kept();
    let token = keeper.token(WAIT).await.unwrap();
    worker.abort();
    assert!(worker.await.unwrap_err().is_cancelled());
    while keeper.changed().await {}
    let began = Instant::now();
    assert!(no(keeper.refresh(&token, CHRONIC, WAIT).await).contains("stopped"));
    assert_eq!(keeper.token(WAIT).await.unwrap(), token, "what lives is still served");
    assert_eq!(began.elapsed(), Duration::ZERO);
    sleep(secs(7200)).await;
    assert!(keeper.token(WAIT).await.unwrap_err().message.contains("stopped"));

    // Nor is a failure of long ago told as the reason.
    let (keeper, worker) = WeChat::failing(busy()).kept();
    keeper.token(WAIT).await.unwrap_err();
    worker.abort();
    worker.await.unwrap_err();
    assert!(keeper.token(WAIT).await.unwrap_err().message.contains("stopped"));

    // A source that panics, in the middle of a fetch others wait for.
    let wechat = WeChat::scripted(|_, _| panic!("a bug"));
    let (keeper, worker) = wechat.kept();
    let told = keeper.token(WAIT).await.unwrap_err();
    assert!(told.message.contains("stopped"), "{}", told.message);
    assert!(worker.await.unwrap_err().is_panic());

    // And a worker that nobody ever ran.
    let (keeper, _worker) =
        TokenKeeper::new(AppId::parse("wx1").unwrap(), WeChat::stable(), MemoryStore::new());
    let began = Instant::now();
    keeper.token(WAIT).await.unwrap_err();
    no(keeper.refresh(&token, CHRONIC, WAIT).await);
    assert_eq!(began.elapsed(), WAIT * 2);
}

#[tokio::test(start_paused = true)]
async fn the_worker_ends_with_the_last_keeper() {
    let (keeper, worker) = WeChat::failing(refusal(Class::AwaitAdmin, 89506, 86_400, 86_400)).kept();
    let clone = keeper.clone();
    keeper.token(WAIT).await.unwrap_err();
    drop(keeper);
    sleep(secs(60)).await;
    assert!(!worker.is_finished());
    drop(clone);
    timeout(secs(1), worker).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_status_tells_names_and_times_and_no_token() {
    let wechat = WeChat::stable();
    let (keeper, _worker) = wechat.kept();
    assert_eq!(keeper.status().next_attempt, None, "the first fetch is under way");
    let token = keeper.token(WAIT).await.unwrap();
    let status = keeper.status();
    let (name, left) = status.token.unwrap();
    assert_eq!(name, token.fingerprint());
    assert!(left > secs(7190));
    assert!(status.next_attempt.unwrap() >= secs(6890) && status.next_attempt.unwrap() <= secs(6930));
    assert_eq!((status.fetches, status.failures), (1, 0));
    assert!(!format!("{status:?}").contains("TOKEN"));
}
