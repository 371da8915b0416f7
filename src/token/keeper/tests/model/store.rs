//! A store as replicas meet it over a network: every step takes time, and may take effect without being answered.

use super::super::*;
use super::Wrongs;
use crate::token::store::{Kept, Standing, StoreError};

/// A lease that is not given back ends after this.
const LEASE: Duration = secs(12);

/// The most that a replica may ask of its store within a minute: a few things for each that happens, and two a second
/// while another holds the lease.
const MOST_A_MINUTE: u64 = 600;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mood {
    Well,
    Down,
    Hanging,
    /// Answers late, sometimes later than it is waited for.
    Slow,
    /// Says that it saved, and did not.
    Forgetful,
}

/// What a store can lose.
#[derive(Clone, Copy, Debug)]
pub(super) enum Lost {
    All,
    /// It falls back to what it had before the last save.
    TheLast,
}

struct Inner {
    rng: fastrand::Rng,
    mood: Mood,
    cut: Vec<bool>,
    dying: Vec<bool>,
    kept: Option<Record>,
    before: Option<Record>,
    lease: Option<(u64, Instant)>,
    leases: u64,
    /// When the last fault ended, or now if there is one.
    sound_since: Instant,
    ops: Vec<(Instant, u64)>,
}

/// What is stored: a token comes out of it as another object than went in.
#[derive(Clone)]
struct Record {
    value: String,
    fetched_at: Instant,
    expires_at: Instant,
    standing: Standing,
}

#[derive(Clone)]
pub(super) struct Store {
    inner: Arc<Mutex<Inner>>,
    /// One for each replica: the order in which one channel wakes several is left to chance, and not to the seed's.
    news: Vec<watch::Sender<()>>,
    wrongs: Wrongs,
}

impl Store {
    pub(super) fn new(seed: u64, replicas: usize, wrongs: Wrongs) -> Self {
        let inner = Inner {
            rng: fastrand::Rng::with_seed(seed ^ 0x5702e),
            mood: Mood::Well,
            cut: vec![false; replicas],
            dying: vec![false; replicas],
            kept: None,
            before: None,
            lease: None,
            leases: 0,
            sound_since: Instant::now(),
            ops: vec![(Instant::now(), 0); replicas],
        };
        let news = (0..replicas).map(|_| watch::channel(()).0).collect();
        Self { inner: Arc::new(Mutex::new(inner)), news, wrongs }
    }

    pub(super) fn view(&self, number: usize) -> View {
        View { store: self.clone(), number }
    }

    fn with<R>(&self, f: impl FnOnce(&mut Inner) -> R) -> R {
        f(&mut self.inner.lock().unwrap())
    }

    fn fault(&self, change: impl FnOnce(&mut Inner)) {
        self.with(|inner| {
            change(inner);
            inner.sound_since = Instant::now();
        });
        self.tell();
    }

    fn tell(&self) {
        for replica in &self.news {
            replica.send_replace(());
        }
    }

    pub(super) fn is_now(&self, mood: Mood) {
        self.fault(|inner| inner.mood = mood);
    }

    pub(super) fn cut(&self, number: usize, cut: bool) {
        self.fault(|inner| inner.cut[number] = cut);
    }

    pub(super) fn dies(&self, number: usize, dying: bool) {
        self.fault(|inner| inner.dying[number] = dying);
    }

    pub(super) fn loses(&self, what: Lost) {
        self.fault(|inner| match what {
            Lost::All => (inner.kept, inner.lease) = (None, None),
            Lost::TheLast => (inner.kept, inner.lease) = (inner.before.clone(), None),
        });
    }

    /// Since when every replica could rely on it.
    pub(super) fn sound_since(&self) -> Instant {
        self.with(|inner| {
            let sound = inner.mood == Mood::Well && inner.cut.iter().all(|cut| !cut);
            if sound { inner.sound_since } else { Instant::now() }
        })
    }

    /// Has everyone look, for whoever missed what there was to hear.
    pub(super) fn wakes_now_and_then(&self) -> JoinHandle<()> {
        let store = self.clone();
        tokio::spawn(async move {
            loop {
                sleep(secs(5)).await;
                store.tell();
            }
        })
    }
}

/// The store as one replica sees it.
pub(super) struct View {
    store: Store,
    number: usize,
}

impl View {
    /// One step: the way there, what it does, the way back.
    async fn ask<R>(&self, does: impl FnOnce(&mut Inner) -> R) -> Result<R, StoreError> {
        let (mood, there, back) = self.store.with(|inner| {
            let (since, ops) = &mut inner.ops[self.number];
            if since.elapsed() >= secs(60) {
                (*since, *ops) = (Instant::now(), 0);
            }
            *ops += 1;
            let (ops, most) = (*ops, if inner.mood == Mood::Slow { 200 } else { 3 });
            self.store.wrongs.unless(ops != MOST_A_MINUTE, || {
                format!("replica {} asks its store without rest", self.number)
            });
            let mut millis = || Duration::from_millis(inner.rng.u64(..most * 2));
            let (there, back) = (millis(), millis());
            (if inner.cut[self.number] { Mood::Hanging } else { inner.mood }, there, back)
        });
        sleep(there).await;
        match mood {
            Mood::Down => return Err(StoreError("connection refused".to_owned())),
            Mood::Hanging => std::future::pending().await,
            Mood::Well | Mood::Slow | Mood::Forgetful => {}
        }
        let done = self.store.with(does);
        sleep(back).await;
        Ok(done)
    }

    fn tell(&self) {
        self.store.tell();
    }
}

impl TokenStore for View {
    type Lease = Lease;

    fn name(&self) -> &'static str {
        "modelled"
    }

    async fn load(&self) -> Result<Option<Kept>, StoreError> {
        self.ask(|inner| {
            let record = inner.kept.clone().filter(|record| Instant::now() < record.expires_at)?;
            let life = record.expires_at - record.fetched_at;
            let token = Token::new(&record.value, record.fetched_at, life).unwrap();
            Some(Kept { token, standing: record.standing })
        })
        .await
    }

    async fn save(&self, token: &Token) -> Result<(), StoreError> {
        self.ask(|inner| {
            if inner.mood == Mood::Forgetful
                || inner.kept.as_ref().is_some_and(|kept| kept.fetched_at >= token.fetched_at())
            {
                return;
            }
            inner.before = inner.kept.replace(Record {
                value: token.expose().to_owned(),
                fetched_at: token.fetched_at(),
                expires_at: token.expires_at(),
                standing: Standing::Good,
            });
            self.tell();
        })
        .await
    }

    async fn refuse(&self, token: &Token, news: bool) -> Result<(), StoreError> {
        self.ask(|inner| {
            if let Some(kept) = inner.kept.as_mut().filter(|kept| kept.value == token.expose()) {
                kept.standing = Standing::Refused { news };
                self.tell();
            }
        })
        .await
    }

    async fn lease(&self) -> Result<Option<Lease>, StoreError> {
        // Taken where the store is, whether the answer arrives or not.
        let number = self
            .ask(|inner| {
                let now = Instant::now();
                if inner.lease.is_some_and(|(_, until)| now < until) {
                    return None;
                }
                inner.leases += 1;
                inner.lease = Some((inner.leases, now + LEASE));
                Some(inner.leases)
            })
            .await?;
        Ok(number.map(|lease| Lease { view: Self { store: self.store.clone(), number: self.number }, lease }))
    }

    fn news(&self) -> watch::Receiver<()> {
        self.store.news[self.number].subscribe()
    }
}

pub(super) struct Lease {
    view: View,
    lease: u64,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let number = self.view.number;
        self.view.store.with(|inner| {
            let reached = !inner.dying[number] && !inner.cut[number] && inner.mood == Mood::Well;
            if reached && inner.lease.is_some_and(|(lease, _)| lease == self.lease) {
                inner.lease = None;
            }
        });
        self.view.tell();
    }
}
