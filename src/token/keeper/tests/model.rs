//! The keeper under everything at once, on a paused clock: replicas over one store, calls, refusals, expiries,
//! someone else who fetches, fetches that fail, are slow or lose their reply, a store that is down, hangs, loses and
//! falls back, replicas that crash anywhere and come again. All of it by chance, from a seed.
//!
//! What must hold whatever happens is checked where it happens; that everything settles, at the end. A seed that
//! fails prints its schedule, and `MODEL_SEED=n cargo test --lib keeper::tests::model` plays it again. More of them:
//! `MODEL_SEEDS=100000`.

mod schedule;
mod store;
mod wechat;

use std::fmt::Write as _;

use super::*;
use schedule::{Event, Schedule};
use store::Store;
use wechat::WeChat;

/// How many seeds are played when nobody asks for more.
const SEEDS: u64 = 3000;

/// How long calls may wait for a token.
const PATIENCE: Duration = secs(2);

/// One replica: a process that can die.
struct Replica {
    keeper: TokenKeeper,
    worker: JoinHandle<()>,
    callers: JoinSet<()>,
}

/// What has gone wrong so far, with the time it did.
#[derive(Clone, Default)]
struct Wrongs(Arc<Mutex<Vec<String>>>);

impl Wrongs {
    fn unless(&self, right: bool, what: impl FnOnce() -> String) {
        if !right {
            self.0.lock().unwrap().push(what());
        }
    }

    fn told(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

struct Model {
    schedule: Schedule,
    wechat: WeChat,
    store: Store,
    wrongs: Wrongs,
    began: Instant,
    replicas: Vec<Option<Replica>>,
    lives: u64,
}

impl Model {
    fn new(schedule: Schedule) -> Self {
        let (wrongs, began) = (Wrongs::default(), Instant::now());
        let store = Store::new(schedule.seed, schedule.replicas, wrongs.clone());
        let wechat = WeChat::new(&schedule, store.clone(), wrongs.clone());
        let replicas = (0..schedule.replicas).map(|_| None).collect();
        Self { schedule, wechat, store, wrongs, began, replicas, lives: 0 }
    }

    fn start(&mut self, number: usize) {
        self.lives += 1;
        let follows = self.schedule.follower && number == 0 && self.schedule.replicas > 1;
        let source = self.wechat.source(number, self.lives, follows);
        let appid = AppId::parse("wx0123456789abcdef").unwrap();
        let (keeper, worker) = TokenKeeper::new(appid, source, self.store.view(number));
        let mut callers = JoinSet::new();
        for caller in 0..2 {
            let rng = fastrand::Rng::with_seed(self.schedule.seed ^ (self.lives << 8) ^ caller);
            let calls = Caller {
                keeper: keeper.clone(),
                wechat: self.wechat.clone(),
                wrongs: self.wrongs.clone(),
                rng,
                chronic: false,
                number,
            };
            callers.spawn(calls.run());
        }
        self.replicas[number] = Some(Replica { keeper, worker: tokio::spawn(worker.run()), callers });
    }

    /// As `kill -9` does: nothing is given back but what ends by itself.
    async fn crash(&mut self, number: usize) {
        let Some(mut replica) = self.replicas[number].take() else { return };
        self.store.dies(number, true);
        replica.callers.shutdown().await;
        replica.worker.abort();
        if let Err(error) = replica.worker.await {
            self.wrongs.unless(error.is_cancelled(), || format!("a worker panicked: {error}"));
        }
        self.store.dies(number, false);
    }

    async fn play(&mut self) {
        for number in 0..self.schedule.replicas {
            self.start(number);
        }
        for (at, event) in self.schedule.events.clone() {
            sleep_until(self.began + at).await;
            match event {
                Event::Network(network) => self.wechat.network_is(network),
                Event::Store(mood) => self.store.is_now(mood),
                Event::Cut(number, cut) => self.store.cut(number, cut),
                Event::Loses(what) => self.store.loses(what),
                Event::Rotate { at_once } => self.wechat.rotate(at_once),
                Event::Crash(number) => self.crash(number).await,
                Event::Start(number) if self.replicas[number].is_none() => self.start(number),
                Event::Start(_) => {}
                Event::Odd(odd) => self.wechat.has_an_odd_path(odd),
            }
            if !self.wrongs.told().is_empty() {
                return;
            }
        }
        self.settles().await;
    }

    /// With every fault over: all replicas serve one token that WeChat takes, and go on doing so.
    async fn settles(&mut self) {
        let (mut good, mut last) = (0, String::new());
        // Two fetches that crossed may leave all with the one that WeChat voids, five minutes later.
        let calm = self.schedule.calm;
        for _ in 0..calm.as_secs() {
            sleep(secs(1)).await;
            let tokens: Vec<_> = self.replicas.iter().map(|r| r.as_ref()?.keeper.current()).collect();
            let one = tokens.windows(2).all(|pair| pair[0] == pair[1]);
            let taken =
                tokens[0].as_ref().is_some_and(|token| self.wechat.judges(token.expose(), false).is_ok());
            good = if one && taken { good + 1 } else { 0 };
            last = format!("{tokens:?}, taken: {taken}");
            if good == 20 || !self.wrongs.told().is_empty() {
                return;
            }
        }
        self.wrongs.unless(false, || format!("nothing has settled {calm:?} after the last fault: {last}"));
    }

    fn end(&self) -> Result<u64, String> {
        self.wechat.check_budgets();
        let wrongs = self.wrongs.told();
        if wrongs.is_empty() {
            return Ok(self.wechat.fetches());
        }
        let mut told = format!(
            "{}\n\nMODEL_SEED={} plays it again. After {:?} of:\n{}",
            wrongs.join("\n"),
            self.schedule.seed,
            self.began.elapsed(),
            self.schedule
        );
        let _ = write!(told, "fetches:\n{}", self.wechat.story());
        Err(told)
    }
}

/// An app's calls at one replica, judged as the proxy judges them.
struct Caller {
    keeper: TokenKeeper,
    wechat: WeChat,
    wrongs: Wrongs,
    rng: fastrand::Rng,
    /// The last replay on the odd path was refused.
    chronic: bool,
    number: usize,
}

impl Caller {
    async fn run(mut self) {
        loop {
            sleep(Duration::from_millis(self.rng.u64(1..10_000))).await;
            self.call().await;
        }
    }

    fn alive(&self, token: &Token, whence: &str) {
        self.wrongs.unless(token.is_alive(), || {
            format!("{whence} of replica {} gave {}, which is dead", self.number, token.expose())
        });
    }

    async fn call(&mut self) {
        let status = self.keeper.status();
        let token = match self.keeper.current() {
            Some(token) => {
                self.alive(&token, "current()");
                token
            }
            None => {
                // What lives is served, but for the moment in which the next one is on its way.
                self.wrongs.unless(status.token.is_none() || status.next_attempt.is_none(), || {
                    format!("replica {} holds a live token back while it rests", self.number)
                });
                let asked = Instant::now();
                let Ok(token) = self.keeper.token(PATIENCE).await else {
                    let took = asked.elapsed();
                    self.wrongs.unless(took <= PATIENCE, || format!("token() took {took:?}"));
                    return;
                };
                self.alive(&token, "token()");
                token
            }
        };
        sleep(Duration::from_millis(self.rng.u64(1..80))).await;
        let odd = self.rng.u8(..10) == 0;
        let Err(errcode) = self.wechat.judges(token.expose(), odd) else {
            token.mark_accepted();
            self.chronic &= !odd;
            return;
        };
        let refusal = Refusal { said: Said::Errcode(errcode), chronic: odd && self.chronic };
        let asked = Instant::now();
        let fresh = match self.keeper.refresh(&token, refusal, PATIENCE).await {
            Refresh::Another(fresh) => {
                self.wrongs.unless(fresh != token, || format!("{} is its own remedy", token.expose()));
                fresh
            }
            Refresh::Same(fresh) => {
                self.wrongs.unless(fresh == token, || {
                    format!("{} is called the same as {}", fresh.expose(), token.expose())
                });
                fresh
            }
            Refresh::No(_) => {
                let took = asked.elapsed();
                self.wrongs.unless(took <= PATIENCE, || format!("refresh() took {took:?}"));
                return;
            }
        };
        self.alive(&fresh, "refresh()");
        sleep(Duration::from_millis(self.rng.u64(1..80))).await;
        match self.wechat.judges(fresh.expose(), odd) {
            Ok(()) => {
                fresh.mark_accepted();
                self.chronic &= !odd;
            }
            Err(_) => self.chronic |= odd,
        }
    }
}

/// Plays one seed, and gives how often was fetched.
fn play(seed: u64) -> Result<u64, String> {
    fastrand::seed(seed);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut model = Model::new(Schedule::of(seed));
        let listening = model.store.wakes_now_and_then();
        model.play().await;
        listening.abort();
        model.end()
    })
}

#[test]
fn whatever_happens_in_whatever_order_the_promises_hold_and_everything_settles() {
    let asked = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    if let Some(seed) = asked("MODEL_SEED") {
        play(seed).unwrap_or_else(|told| panic!("{told}"));
        return;
    }
    let seeds = asked("MODEL_SEEDS").unwrap_or(SEEDS);
    let next = std::sync::atomic::AtomicU64::new(0);
    let failed = Mutex::new(Vec::new());
    let fetches = std::sync::atomic::AtomicU64::new(0);
    std::thread::scope(|threads| {
        for _ in 0..2 {
            threads.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if seed >= seeds || failed.lock().unwrap().len() > 2 {
                        break;
                    }
                    match play(seed) {
                        Ok(n) => fetches.fetch_add(n, std::sync::atomic::Ordering::Relaxed),
                        Err(told) => {
                            failed.lock().unwrap().push(format!("seed {seed}: {told}"));
                            0
                        }
                    };
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
    assert!(fetches.into_inner() > seeds * 2, "something happens in them");
}
