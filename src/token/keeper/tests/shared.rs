//! The keeper beside a store: replicas that share one, and one that fails.

use super::*;
use crate::token::source::FollowerSource;
use crate::token::store::{Kept, Standing, StoreError};

/// A store that many replicas share, and that can be out of order or slow.
#[derive(Clone, Default)]
struct Shared {
    memory: MemoryStore,
    mood: Arc<Mutex<Mood>>,
}

#[derive(Clone, Copy, Default)]
enum Mood {
    #[default]
    Well,
    Down,
    Hanging,
}

impl Shared {
    fn is_now(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    async fn mood(&self) -> Result<(), StoreError> {
        let mood = *self.mood.lock().unwrap();
        match mood {
            Mood::Well => Ok(()),
            Mood::Down => Err(StoreError("connection refused".to_owned())),
            Mood::Hanging => std::future::pending().await,
        }
    }
}

impl TokenStore for Shared {
    type Lease = <MemoryStore as TokenStore>::Lease;

    fn name(&self) -> &'static str {
        "shared"
    }

    async fn load(&self) -> Result<Option<Kept>, StoreError> {
        self.mood().await?;
        self.memory.load().await
    }

    async fn save(&self, token: &Token) -> Result<(), StoreError> {
        self.mood().await?;
        self.memory.save(token).await
    }

    async fn refuse(&self, token: &Token, news: bool) -> Result<(), StoreError> {
        self.mood().await?;
        self.memory.refuse(token, news).await
    }

    async fn lease(&self) -> Result<Option<Self::Lease>, StoreError> {
        self.mood().await?;
        self.memory.lease().await
    }

    fn news(&self) -> watch::Receiver<()> {
        self.memory.news()
    }
}

#[tokio::test(start_paused = true)]
async fn replicas_with_one_store_fetch_once_for_all_even_from_the_classic_endpoint() {
    let wechat = WeChat::classic();
    let store = Shared::default();
    let replicas: Vec<_> = (0..5).map(|_| wechat.kept_in(store.clone())).collect();
    for (keeper, _) in &replicas {
        assert_eq!(keeper.token(WAIT).await.unwrap().expose(), "TOKEN_1");
    }
    let old = replicas[0].0.current().unwrap();
    sleep(DAY).await;
    let fetches = wechat.fetches();
    assert!((12..=15).contains(&fetches), "{fetches}");
    // A refusal on every replica is one fetch too, and nobody takes the others for strangers.
    let calls: JoinSet<_> = replicas
        .iter()
        .map(|(keeper, _)| {
            let keeper = keeper.clone();
            async move { keeper.refresh(&keeper.current().unwrap(), CHRONIC, WAIT).await }
        })
        .collect();
    let mut tokens: Vec<_> = calls.join_all().await.into_iter().map(another).collect();
    tokens.dedup();
    assert_eq!(tokens.len(), 1);
    assert_ne!(tokens[0], old);
    assert_eq!(wechat.fetches(), fetches + 1);
    let foreign: u64 = replicas.iter().map(|(keeper, _)| keeper.status().foreign_rotations).sum();
    assert_eq!(foreign, 1, "the one who fetched; the others adopted");
}

#[tokio::test(start_paused = true)]
async fn sixteen_without_a_store_fetch_once_a_life_each_from_the_stable_endpoint() {
    let wechat = WeChat::stable();
    let replicas: Vec<_> = (0..16).map(|_| wechat.kept()).collect();
    let end = Instant::now() + 3 * DAY;
    while Instant::now() < end {
        sleep(secs(60)).await;
        assert!(replicas.iter().all(|(keeper, _)| keeper.current().is_some()));
    }
    // Three days are 36 lives; one that asks a little early is given what is left of the old one, and asks again.
    let each = wechat.fetches() as f64 / 16.0;
    assert!((36.0..=40.0).contains(&each), "{each}");
    let foreign: u64 = replicas.iter().map(|(keeper, _)| keeper.status().foreign_rotations).sum();
    assert_eq!(foreign, 0);
}

#[tokio::test(start_paused = true)]
async fn the_token_that_was_refused_is_not_adopted_again() {
    let wechat = WeChat::stable();
    let store = Shared::default();
    let (keeper, _worker) = wechat.kept_in(store.clone());
    let old = keeper.token(WAIT).await.unwrap();
    wechat.with(Rules::rotate);
    // It is in the store under a longer life than ours.
    store.save(&Token::new(old.expose(), Instant::now(), 2 * HOUR).unwrap()).await.unwrap();
    assert_eq!(another(keeper.refresh(&old, CHRONIC, WAIT).await).expose(), "TOKEN_2");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_down_or_hangs_costs_no_call() {
    let wechat = WeChat::stable();
    for mood in [Mood::Down, Mood::Hanging] {
        let store = Shared::default();
        store.is_now(mood);
        let (keeper, _worker) = wechat.kept_in(store.clone());
        let old = keeper.token(WAIT).await.expect("within the wait of a call");
        wechat.with(Rules::rotate);
        another(keeper.refresh(&old, CHRONIC, WAIT).await);
        store.is_now(Mood::Well);
        sleep(2 * HOUR).await;
        assert_eq!(
            store.load().await.unwrap().map(|kept| kept.token),
            keeper.current(),
            "it is used again when it is well"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_never_given_back_delays_a_fetch_by_as_long_as_one_may_take_and_no_more() {
    let wechat = WeChat::stable();
    let store = Shared::default();
    let _held = store.lease().await.unwrap().unwrap();
    let (keeper, _worker) = wechat.kept_in(store);
    let began = Instant::now();
    keeper.token(secs(60)).await.unwrap();
    assert!(began.elapsed() < secs(13), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_goes_from_hand_to_hand_is_waited_for_in_all_its_hands() {
    let wechat = WeChat::stable();
    let store = Shared::default();
    let first = store.lease().await.unwrap().unwrap();
    let (keeper, _worker) = wechat.kept_in(store.clone());
    // Two replicas whose fetches hang, one after the other: together that is longer than one may take.
    sleep(secs(8)).await;
    drop(first);
    let second = store.lease().await.unwrap().unwrap();
    sleep(secs(8)).await;
    assert_eq!(wechat.fetches(), 0, "one fetch at a time");
    drop(second);
    let began = Instant::now();
    keeper.token(secs(60)).await.unwrap();
    assert!(began.elapsed() < secs(1), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn what_one_replica_fetches_the_others_serve_at_once() {
    let wechat = WeChat::classic();
    let store = Shared::default();
    let (one, _worker) = wechat.kept_in(store.clone());
    let old = one.token(WAIT).await.unwrap();
    let (mut other, _worker) = wechat.kept_in(store.clone());
    assert_eq!(other.token(WAIT).await.unwrap(), old);
    old.mark_accepted();
    sleep(HOUR).await;
    wechat.with(Rules::rotate);
    let new = another(one.refresh(&old, CHRONIC, WAIT).await);
    let began = Instant::now();
    while other.current() != Some(new.clone()) {
        assert!(other.changed().await);
    }
    assert!(began.elapsed() < secs(1), "{:?}", began.elapsed());
    assert_eq!(wechat.fetches(), 2);
    assert_eq!(other.status().foreign_rotations, 0);
}

#[tokio::test(start_paused = true)]
async fn calls_at_other_replicas_wait_for_the_next_token_once_theirs_was_refused_at_one() {
    let wechat = WeChat::classic();
    let store = Shared::default();
    let (one, _worker) = wechat.kept_in(store.clone());
    let (other, _other_worker) = wechat.kept_in(store.clone());
    let old = one.token(WAIT).await.unwrap();
    assert_eq!(other.token(WAIT).await.unwrap(), old);
    old.mark_accepted();
    wechat.with(|rules| {
        rules.rotate();
        rules.latency = secs(1);
    });
    let refreshing = tokio::spawn({
        let (one, old) = (one.clone(), old.clone());
        async move { one.refresh(&old, Refusal { chronic: false, ..CHRONIC }, WAIT).await }
    });
    sleep(Duration::from_millis(300)).await;
    assert_eq!(other.current(), None, "it is known here, too");
    let new = other.token(WAIT).await.unwrap();
    assert_eq!(Refresh::Another(new), refreshing.await.unwrap());
    assert_eq!(wechat.fetches(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_suspect_token_is_served_when_no_other_can_be_had() {
    let wechat = WeChat::stable();
    let store = Shared::default();
    let (keeper, _worker) = wechat.kept_in(store.clone());
    let token = keeper.token(WAIT).await.unwrap();
    wechat.with(|rules| rules.latency = secs(8));
    store.refuse(&token, true).await.unwrap();
    sleep(secs(1)).await;
    let began = Instant::now();
    assert_eq!(keeper.token(WAIT).await.unwrap(), token, "it may be good after all");
    assert_eq!(began.elapsed(), WAIT);
    wechat.fails(busy());
    sleep(secs(8)).await;
    assert_eq!(keeper.current(), Some(token), "and it lives");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_another_replica_cannot_cure_is_cured_here_and_within_the_breaker() {
    let wechat = WeChat::stable();
    let store = Shared::default();
    let (keeper, _worker) = wechat.kept_in(store.clone());
    let token = keeper.token(WAIT).await.unwrap();
    wechat.with(Rules::rotate);
    store.refuse(&token, true).await.unwrap();
    sleep(secs(1)).await;
    let next = keeper.current().unwrap();
    assert_eq!(next.expose(), "TOKEN_2");
    // Reports of calls that are refused whatever the token do not make it hammer.
    for _ in 0..600 {
        store.refuse(&next, false).await.unwrap();
        sleep(Duration::from_millis(100)).await;
    }
    assert!((4..=8).contains(&(wechat.fetches() - 2)), "{}", wechat.fetches());
    assert_eq!(keeper.current(), Some(next));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_lost_its_token_is_given_it_again_and_an_older_one_is_not_taken_from_it() {
    let wechat = WeChat::classic();
    let store = Shared::default();
    let (one, _worker) = wechat.kept_in(store.clone());
    let old = one.token(WAIT).await.unwrap();
    let (_other, _other_worker) = wechat.kept_in(store.clone());
    old.mark_accepted();
    sleep(HOUR).await;
    wechat.with(Rules::rotate);
    let new = another(one.refresh(&old, CHRONIC, WAIT).await);
    sleep(secs(1)).await;
    for lost in [None, Some(Kept { token: old.clone(), standing: Standing::Good })] {
        store.memory.becomes(lost);
        sleep(secs(2)).await;
        assert_eq!(store.load().await.unwrap().unwrap().token, new);
        assert_eq!(one.current(), Some(new.clone()));
    }
    assert_eq!(wechat.fetches(), 2);
}

#[tokio::test(start_paused = true)]
async fn replicas_that_lose_their_store_leave_a_live_token_alone_and_agree_again_when_it_is_back() {
    let wechat = WeChat::classic();
    let store = Shared::default();
    let replicas: Vec<_> = (0..5).map(|_| wechat.kept_in(store.clone())).collect();
    let old = replicas[0].0.token(WAIT).await.unwrap();
    // Through the time in which it is renewed ahead, until five minutes before its end.
    sleep_until(old.expires_at() - secs(700)).await;
    store.is_now(Mood::Down);
    sleep_until(old.expires_at() - secs(310)).await;
    assert_eq!(wechat.fetches(), 1, "nobody fetches alone");
    store.is_now(Mood::Well);
    sleep(secs(30)).await;
    assert_eq!(wechat.fetches(), 2, "one fetches for all");
    // Where they cannot wait, each fetches, and the newest is everyone's as soon as the store is back.
    store.is_now(Mood::Hanging);
    let new = replicas[0].0.current().unwrap();
    sleep_until(new.expires_at() + secs(1)).await;
    assert_eq!(wechat.fetches(), 2 + 5);
    store.is_now(Mood::Well);
    store.memory.poke();
    sleep(secs(10)).await;
    let tokens: Vec<_> = replicas.iter().map(|(keeper, _)| keeper.current().unwrap()).collect();
    assert!(tokens.iter().all(|token| token.expose() == "TOKEN_7"), "{tokens:?}");
    assert_eq!(wechat.fetches(), 7);
}

#[tokio::test(start_paused = true)]
async fn a_follower_lives_by_the_store_and_says_when_nobody_fetches() {
    let wechat = WeChat::classic();
    let store = Shared::default();
    let appid = AppId::parse("wx0123456789abcdef").unwrap();
    let (follower, worker) = TokenKeeper::new(appid, FollowerSource, store.clone());
    let _following = tokio::spawn(worker.run());
    let told = follower.token(secs(30)).await.unwrap_err();
    assert!(told.message.contains("nobody fetches"), "{}", told.message);
    let (fetcher, fetching) = wechat.kept_in(store.clone());
    let token = fetcher.token(WAIT).await.unwrap();
    sleep(secs(1)).await;
    assert_eq!(follower.token(WAIT).await.unwrap(), token);
    assert_eq!(follower.status().failure, None);
    // What is refused there is cured by the one who fetches.
    token.mark_accepted();
    let held = follower.current().unwrap();
    held.mark_accepted();
    wechat.with(Rules::rotate);
    let news = Refusal { chronic: false, ..CHRONIC };
    let next = another(follower.refresh(&held, news, WAIT).await);
    assert_eq!((next.expose(), wechat.fetches()), ("TOKEN_3", 2), "the rotation was TOKEN_2");
    let failures = follower.status().failures;
    sleep(DAY).await;
    assert_eq!(follower.current(), fetcher.current());
    assert_eq!(follower.status().failures, failures, "nothing is missed");
    // Until it is gone.
    drop(fetcher);
    fetching.abort();
    sleep(3 * HOUR).await;
    assert!(follower.token(WAIT).await.unwrap_err().message.contains("nobody fetches"));
}

#[tokio::test(start_paused = true)]
async fn a_token_that_was_refused_here_is_not_taken_again_from_a_store_that_never_heard_of_it() {
    let wechat = WeChat::classic();
    let store = Shared::default();
    let (keeper, _worker) = wechat.kept_in(store.clone());
    let old = keeper.token(WAIT).await.unwrap();
    old.mark_accepted();
    // At once, so that by their clocks the two fetches may be one.
    wechat.with(Rules::rotate);
    let new = another(keeper.refresh(&old, CHRONIC, WAIT).await);
    store.memory.becomes(Some(Kept { token: old, standing: Standing::Good }));
    sleep(secs(5)).await;
    assert_eq!((keeper.current(), wechat.fetches()), (Some(new), 2));
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_hears_that_wechat_holds_to_the_token_tries_it_again_and_fetches_nothing() {
    let wechat = WeChat::stable();
    let store = Shared::default();
    let (one, _worker) = wechat.kept_in(store.clone());
    let (other, _other_worker) = wechat.kept_in(store.clone());
    let token = one.token(WAIT).await.unwrap();
    assert_eq!(other.token(WAIT).await.unwrap(), token);
    sleep(HOUR).await;
    let (mine, theirs) = (one.current().unwrap(), other.current().unwrap());
    // One kind of call is refused for ever, at both of them at once.
    let both = tokio::join!(one.refresh(&mine, CHRONIC, WAIT), other.refresh(&theirs, CHRONIC, WAIT));
    assert_eq!(both, (Refresh::Same(token.clone()), Refresh::Same(token.clone())));
    assert_eq!(wechat.fetches(), 2, "one fetch tells both");
    sleep(HOUR / 2).await;
    assert_eq!(wechat.fetches(), 2);
    for keeper in [&one, &other] {
        assert_eq!((keeper.current(), keeper.status().failure), (Some(token.clone()), None));
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_person_asked_for_in_vain_changes_nothing() {
    let wechat = WeChat::stable();
    let (keeper, _worker) = wechat.kept();
    let token = keeper.token(WAIT).await.unwrap();
    wechat.fails(busy());
    for force in [false, true] {
        assert!(no(keeper.fetch_now(Reason::Operator { force }, WAIT).await).contains("busy"));
        assert_eq!((keeper.current(), keeper.status().failure), (Some(token.clone()), None));
    }
    let fetches = wechat.fetches();
    sleep(HOUR).await;
    assert_eq!(wechat.fetches(), fetches, "nor is it tried again by itself");
}
