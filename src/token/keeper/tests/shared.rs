//! The keeper beside a store: replicas that share one, and one that fails.

use super::*;

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

    async fn load(&self) -> Result<Option<Token>, StoreError> {
        self.mood().await?;
        self.memory.load().await
    }

    async fn save(&self, token: &Token) -> Result<(), StoreError> {
        self.mood().await?;
        self.memory.save(token).await
    }

    async fn lease(&self) -> Result<Option<Self::Lease>, StoreError> {
        self.mood().await?;
        self.memory.lease().await
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
        assert_eq!(store.load().await.unwrap(), keeper.current(), "it is used again when it is well");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_never_given_back_delays_a_fetch_by_a_second_and_no_more() {
    let wechat = WeChat::stable();
    let store = Shared::default();
    let _held = store.lease().await.unwrap().unwrap();
    let (keeper, _worker) = wechat.kept_in(store);
    let began = Instant::now();
    keeper.token(WAIT).await.unwrap();
    assert!(began.elapsed() < Duration::from_millis(1200), "{:?}", began.elapsed());
}
