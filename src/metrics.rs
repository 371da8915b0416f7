//! What is counted, and how without a lock: every worker owns a [`Tally`], the one writer of its counters; a [`Hub`]
//! knows all of them and sums them when someone reads ([`Hub::totals`]).
//!
//! A counter is a relaxed load and store on a line of memory that no other thread writes. Label sets are bounded: the
//! accounts that were configured, and the words of [`labels`]; never a path, never an openid.

mod histogram;
pub mod history;
pub mod labels;
pub mod process;
pub mod trouble;

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::RuntimeMetrics;
use tokio::time::Instant;

use crate::credentials::AppId;
use crate::error::Cause;
use crate::metrics::labels::{Action, Errcode, Outcome, REFUSALS};
use crate::metrics::trouble::{Trouble, Troubles};

pub use histogram::Distribution;
use histogram::{Histogram, OWN_BOUNDS, TIME_BOUNDS};

/// The account of a call that never got one: bad input, or a host that is not WeChat's.
pub const NO_ACCOUNT: &str = "none";

/// What WeChat says of an API that is called too often, in a day or in a minute.
const WECHAT_LIMITS: [i64; 2] = [45009, 45011];

/// Everything the workers count.
#[derive(Clone, Debug)]
pub struct Hub(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    accounts: Arc<[AppId]>,
    started: Instant,
    workers: Mutex<Vec<Arc<Counters>>>,
    runtimes: Mutex<Vec<RuntimeMetrics>>,
}

impl Hub {
    /// For these accounts, none of which is there twice.
    #[must_use]
    pub fn new(accounts: impl IntoIterator<Item = AppId>) -> Self {
        let mut accounts: Vec<_> = accounts.into_iter().collect();
        accounts.sort_unstable();
        Self(Arc::new(Inner {
            accounts: accounts.into(),
            started: Instant::now(),
            workers: Mutex::new(Vec::new()),
            runtimes: Mutex::new(Vec::new()),
        }))
    }

    /// The counters of one more worker, for that worker's thread.
    #[must_use]
    pub fn tally(&self) -> Tally {
        let counters = Arc::new(Counters::new(self.0.accounts.len()));
        self.0.workers.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&counters));
        Tally { accounts: Arc::clone(&self.0.accounts), counters, one_thread: PhantomData }
    }

    /// Since when it counts.
    #[must_use]
    pub fn uptime(&self) -> Duration {
        self.0.started.elapsed()
    }

    /// Counts the tasks of the runtime this is called on, too.
    pub fn runtime(&self) {
        let runtime = tokio::runtime::Handle::current().metrics();
        self.0.runtimes.lock().unwrap_or_else(PoisonError::into_inner).push(runtime);
    }

    /// Tasks that are alive: some for each thread, and one for each connection.
    #[must_use]
    pub fn tasks(&self) -> usize {
        let runtimes = self.0.runtimes.lock().unwrap_or_else(PoisonError::into_inner);
        runtimes.iter().map(RuntimeMetrics::num_alive_tasks).sum()
    }

    /// How many workers there are.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.0.workers.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// All workers' counters together, as they are now.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let accounts = &self.0.accounts;
        let mut totals = Totals {
            accounts: accounts.iter().map(|appid| appid.as_str().to_owned()).collect(),
            calls: vec![0; calls_of(accounts.len())],
            refusals: vec![0; (accounts.len() + 1) * REFUSALS.len()],
            replays: vec![0; accounts.len() + 1],
            accepted: 0,
            closed: 0,
            whole: Distribution::empty(&TIME_BOUNDS),
            upstream: Distribution::empty(&TIME_BOUNDS),
            token_wait: Distribution::empty(&TIME_BOUNDS),
            own: Distribution::empty(&OWN_BOUNDS),
        };
        totals.accounts.push(NO_ACCOUNT.to_owned());
        for worker in self.0.workers.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            for (sum, counter) in [
                (&mut totals.calls, &worker.calls),
                (&mut totals.refusals, &worker.refusals),
                (&mut totals.replays, &worker.replays),
            ] {
                sum.iter_mut().zip(counter).for_each(|(sum, counter)| *sum += read(counter));
            }
            totals.accepted += read(&worker.accepted);
            totals.closed += read(&worker.closed);
            worker.whole.add_to(&mut totals.whole);
            worker.upstream.add_to(&mut totals.upstream);
            worker.token_wait.add_to(&mut totals.token_wait);
            worker.own.add_to(&mut totals.own);
        }
        totals
    }

    /// What went wrong of late on the request's way, of all workers, the newest last.
    #[must_use]
    pub fn troubles(&self) -> Vec<Trouble> {
        let workers = self.0.workers.lock().unwrap_or_else(PoisonError::into_inner);
        workers
            .iter()
            .flat_map(|worker| [worker.troubles.recent(), worker.limits.recent()].concat())
            .collect()
    }
}

/// One worker's counters, and the one who writes them: it can go to another thread, but not be shared by two.
#[derive(Debug)]
pub struct Tally {
    accounts: Arc<[AppId]>,
    counters: Arc<Counters>,
    one_thread: PhantomData<Cell<()>>,
}

/// A call that has ended, as it is counted.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// Whose it was: what [`Tally::account`] said.
    pub account: usize,
    /// What it wanted.
    pub action: Action,
    /// What became of it.
    pub outcome: Outcome,
    /// What WeChat said of it, if it was WeChat who answered.
    pub errcode: Option<i64>,
    /// What WeChat said of its token the first time, if it refused it.
    pub refused: Option<i64>,
    /// Whether WeChat was sent it twice.
    pub replayed: bool,
    /// From its head to its reply's last byte.
    pub whole: Duration,
    /// Of that, waiting for WeChat; `None` when it was not asked.
    pub upstream: Option<Duration>,
    /// Of that, waiting for a token; `None` when none was waited for.
    pub token_wait: Option<Duration>,
    /// Of that, our own work until the reply's head; `None` when there was no reply.
    pub own: Option<Duration>,
}

impl Tally {
    /// One that nobody reads, for tests.
    #[must_use]
    pub fn alone() -> Self {
        Hub::new([]).tally()
    }

    /// The number of an account; that of none for one that was not configured.
    #[must_use]
    pub fn account(&self, appid: &AppId) -> usize {
        self.accounts.binary_search(appid).unwrap_or(self.accounts.len())
    }

    /// The label of an account's number.
    #[must_use]
    pub fn name(&self, account: usize) -> &str {
        self.accounts.get(account).map_or(NO_ACCOUNT, AppId::as_str)
    }

    /// The number of no account.
    #[must_use]
    pub fn no_account(&self) -> usize {
        self.accounts.len()
    }

    /// Counts a call that has ended.
    pub fn call(&self, ended: &Ended) {
        let counters = &*self.counters;
        let slot = slot(ended.account, ended.action, ended.outcome, Errcode::of(ended.errcode));
        add(&counters.calls[slot]);
        if let Some(refused) = ended.refused.and_then(|code| REFUSALS.iter().position(|known| *known == code))
        {
            add(&counters.refusals[ended.account * REFUSALS.len() + refused]);
        }
        if ended.replayed {
            add(&counters.replays[ended.account]);
        }
        counters.whole.observe(ended.whole);
        for (histogram, observed) in [
            (&counters.upstream, ended.upstream),
            (&counters.token_wait, ended.token_wait),
            (&counters.own, ended.own),
        ] {
            if let Some(observed) = observed {
                histogram.observe(observed);
            }
        }
    }

    /// A connection was accepted.
    pub fn connection_opened(&self) {
        add(&self.counters.accepted);
    }

    /// It has ended.
    pub fn connection_closed(&self) {
        add(&self.counters.closed);
    }

    /// WeChat said that an API is called too often: 45009, or 45011 (`wechat-api.md` 6). Keeps it for people to read,
    /// each API by itself, and gives the sentence if it is worth a log line now.
    pub fn wechat_limit(&self, errcode: i64, account: usize, api: impl FnOnce() -> String) -> Option<String> {
        if !WECHAT_LIMITS.contains(&errcode) {
            return None;
        }
        let api = api();
        let sentence = match errcode {
            45009 => format!(
                "WeChat refused {api} with 45009: the quota of this API is used up, for the day, or for the minute where it has such a one. Call it less often; openapi/quota/get tells the quota, and the WeChat console can clear it"
            ),
            _ => format!(
                "WeChat refused {api} with 45011: it is called too often within a minute. Spread the calls, for example with a limit in rates"
            ),
        };
        let told = self.counters.limits.tell_of("wechat-limit", self.accounts.get(account), &api, &sentence);
        told.then_some(sentence)
    }

    /// Keeps a failure for people to read. Says whether this cause is worth a log line now: a failure that goes on
    /// is, once a minute.
    pub fn trouble(&self, cause: Cause, account: usize, sentence: &str) -> bool {
        self.counters.troubles.tell(cause.name(), self.accounts.get(account), sentence)
    }
}

#[derive(Debug)]
struct Counters {
    calls: Vec<AtomicU64>,
    refusals: Vec<AtomicU64>,
    replays: Vec<AtomicU64>,
    accepted: AtomicU64,
    closed: AtomicU64,
    whole: Histogram,
    upstream: Histogram,
    token_wait: Histogram,
    own: Histogram,
    troubles: Troubles,
    /// Apart, so that an app that runs into many limits leaves the other errors their room.
    limits: Troubles,
}

impl Counters {
    fn new(accounts: usize) -> Self {
        let zeros = |n: usize| (0..n).map(|_| AtomicU64::new(0)).collect();
        Self {
            calls: zeros(calls_of(accounts)),
            refusals: zeros((accounts + 1) * REFUSALS.len()),
            replays: zeros(accounts + 1),
            accepted: AtomicU64::new(0),
            closed: AtomicU64::new(0),
            whole: Histogram::new(&TIME_BOUNDS),
            upstream: Histogram::new(&TIME_BOUNDS),
            token_wait: Histogram::new(&TIME_BOUNDS),
            own: Histogram::new(&OWN_BOUNDS),
            troubles: Troubles::default(),
            limits: Troubles::default(),
        }
    }
}

/// Adds one to a counter of which this thread is the only writer: no locked instruction is needed.
fn add(counter: &AtomicU64) {
    add_n(counter, 1);
}

fn add_n(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// The counters of calls: for each account and each action, one for each outcome and errcode that go together.
fn calls_of(accounts: usize) -> usize {
    (accounts + 1) * Action::ALL.len() * SLOTS
}

/// Outcomes that WeChat's errcode tells apart, each with every class of errcode; then the others.
const SLOTS: usize = Outcome::WITH_ERRCODE.len() * Errcode::COUNT + Outcome::WITHOUT_ERRCODE;

fn slot(account: usize, action: Action, outcome: Outcome, errcode: Errcode) -> usize {
    let within = match Outcome::WITH_ERRCODE.iter().position(|with| *with == outcome) {
        Some(n) => n * Errcode::COUNT + errcode.index(),
        None => Outcome::WITH_ERRCODE.len() * Errcode::COUNT + outcome.index_without_errcode(),
    };
    (account * Action::ALL.len() + action as usize) * SLOTS + within
}

/// All workers' counters together.
#[derive(Clone, Debug)]
pub struct Totals {
    /// The accounts' labels; the last is [`NO_ACCOUNT`].
    pub accounts: Vec<String>,
    calls: Vec<u64>,
    refusals: Vec<u64>,
    replays: Vec<u64>,
    /// Connections accepted.
    pub accepted: u64,
    closed: u64,
    /// Whole calls.
    pub whole: Distribution,
    /// Waiting for WeChat.
    pub upstream: Distribution,
    /// Waiting for a token, where one was waited for.
    pub token_wait: Distribution,
    /// Our own work.
    pub own: Distribution,
}

/// One counter of calls with its labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calls<'a> {
    /// The account's label.
    pub account: &'a str,
    /// What was wanted.
    pub action: Action,
    /// What became of it.
    pub outcome: Outcome,
    /// What WeChat said.
    pub errcode: Errcode,
    /// How many.
    pub count: u64,
}

impl Totals {
    /// The counters of calls that are not zero, and for every account those of a call that went well, so that a rate
    /// begins at nothing.
    pub fn calls(&self) -> impl Iterator<Item = Calls<'_>> {
        (0..self.accounts.len()).flat_map(|n| self.calls_of(n))
    }

    /// Those of one account.
    fn calls_of(&self, n: usize) -> impl Iterator<Item = Calls<'_>> {
        let account = self.accounts[n].as_str();
        let actions = Action::ALL.iter();
        actions.flat_map(move |&action| {
            Outcome::all().flat_map(move |outcome| {
                let told = Outcome::WITH_ERRCODE.contains(&outcome);
                let codes = if told { Errcode::all() } else { &[Errcode::NONE] };
                codes.iter().filter_map(move |&errcode| {
                    let count = self.calls[slot(n, action, outcome, errcode)];
                    let always = action == Action::AppendToken
                        && outcome == Outcome::Ok
                        && errcode == Errcode::NONE
                        && account != NO_ACCOUNT;
                    (count > 0 || always).then_some(Calls { account, action, outcome, errcode, count })
                })
            })
        })
    }

    /// Calls whose token WeChat refused, by account and code. Those of no account are left out: they carry no token.
    pub fn refusals(&self) -> impl Iterator<Item = (&str, i64, u64)> {
        self.accounts.iter().enumerate().filter(|(_, account)| *account != NO_ACCOUNT).flat_map(
            move |(n, account)| {
                let codes = REFUSALS.iter().enumerate();
                codes.map(move |(i, code)| (account.as_str(), *code, self.refusals[n * REFUSALS.len() + i]))
            },
        )
    }

    /// Calls that WeChat was sent twice, by account.
    pub fn replays(&self) -> impl Iterator<Item = (&str, u64)> {
        let accounts = self.accounts.iter().zip(&self.replays);
        accounts.filter(|(account, _)| *account != NO_ACCOUNT).map(|(account, n)| (account.as_str(), *n))
    }

    /// Connections that are open.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.accepted.saturating_sub(self.closed)
    }

    /// The counts of one account, as a person wants them; nothing for one that was not configured.
    #[must_use]
    pub fn summary(&self, account: &str) -> Summary {
        let n = self.accounts.iter().position(|label| label == account);
        n.map_or_else(Summary::default, |n| self.summary_of(n))
    }

    /// The counts of all accounts together, and of calls that had none.
    #[must_use]
    pub fn summary_of_all(&self) -> Summary {
        (0..self.accounts.len()).map(|n| self.summary_of(n)).fold(Summary::default(), Summary::plus)
    }

    fn summary_of(&self, n: usize) -> Summary {
        let refusals = &self.refusals[n * REFUSALS.len()..(n + 1) * REFUSALS.len()];
        let mut summary =
            Summary { refusals: refusals.iter().sum(), replays: self.replays[n], ..Summary::default() };
        for calls in self.calls_of(n) {
            summary.calls += calls.count;
            match calls.outcome {
                Outcome::Ok | Outcome::RefusedAndCured | Outcome::Left => {}
                Outcome::WechatError | Outcome::Refused => summary.wechat_errors += calls.count,
                Outcome::Cut | Outcome::Ours(_) => summary.errors += calls.count,
            }
        }
        summary
    }
}

/// Counts as a person wants them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Summary {
    /// Calls that ended.
    pub calls: u64,
    /// Calls that we answered with an error, or whose reply broke off.
    pub errors: u64,
    /// Calls that WeChat answered with an errcode or an error status.
    pub wechat_errors: u64,
    /// Calls whose token WeChat refused.
    pub refusals: u64,
    /// Calls that WeChat was sent twice.
    pub replays: u64,
}

impl Summary {
    fn plus(self, other: Self) -> Self {
        Self {
            calls: self.calls + other.calls,
            errors: self.errors + other.errors,
            wechat_errors: self.wechat_errors + other.wechat_errors,
            refusals: self.refusals + other.refusals,
            replays: self.replays + other.replays,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn appid(text: &str) -> AppId {
        AppId::parse(text).unwrap()
    }

    fn ended(account: usize) -> Ended {
        Ended {
            account,
            action: Action::AppendToken,
            outcome: Outcome::Ok,
            errcode: Some(0),
            refused: None,
            replayed: false,
            whole: Duration::from_millis(3),
            upstream: Some(Duration::from_millis(2)),
            token_wait: None,
            own: Some(Duration::from_micros(40)),
        }
    }

    #[test]
    fn what_two_workers_count_is_one_sum() {
        let hub = Hub::new([appid("wxb"), appid("wxa")]);
        let (one, other) = (hub.tally(), hub.tally());
        let wxb = one.account(&appid("wxb"));
        one.call(&ended(wxb));
        other.call(&ended(wxb));
        other.call(&Ended {
            outcome: Outcome::RefusedAndCured,
            refused: Some(42001),
            replayed: true,
            token_wait: Some(Duration::from_millis(80)),
            ..ended(wxb)
        });
        other.call(&Ended { outcome: Outcome::Ours(Cause::Connect), errcode: None, own: None, ..ended(wxb) });
        other.call(&Ended { outcome: Outcome::WechatError, errcode: Some(45009), ..ended(wxb) });
        one.connection_opened();
        other.connection_opened();
        other.connection_closed();
        let totals = hub.totals();
        assert_eq!(hub.workers(), 2);
        let calls = |outcome, errcode| {
            let errcode = Errcode::of(errcode);
            totals
                .calls()
                .filter(|c| c.account == "wxb" && c.outcome == outcome && c.errcode == errcode)
                .map(|c| c.count)
                .sum::<u64>()
        };
        assert_eq!(calls(Outcome::Ok, Some(0)), 2);
        assert_eq!(calls(Outcome::RefusedAndCured, Some(0)), 1);
        assert_eq!(calls(Outcome::Ours(Cause::Connect), None), 1);
        assert_eq!(calls(Outcome::WechatError, Some(45009)), 1);
        assert_eq!(totals.refusals().filter(|(.., n)| *n > 0).collect::<Vec<_>>(), [("wxb", 42001, 1)]);
        assert_eq!(totals.replays().collect::<Vec<_>>(), [("wxa", 0), ("wxb", 1)]);
        assert_eq!((totals.accepted, totals.open()), (2, 1));
        assert_eq!((totals.whole.count(), totals.token_wait.count(), totals.own.count()), (5, 1, 4));
        let summary = totals.summary("wxb");
        assert_eq!(
            summary,
            Summary { calls: 5, errors: 1, wechat_errors: 1, refusals: 1, replays: 1 },
            "and nobody else's"
        );
        assert_eq!(totals.summary("wxa"), Summary::default());
        assert_eq!(totals.summary_of_all(), summary);
    }

    #[test]
    fn an_account_that_was_not_configured_has_no_label() {
        let hub = Hub::new([appid("wxa")]);
        let tally = hub.tally();
        let stranger = tally.account(&appid("wx-stranger"));
        assert_eq!(stranger, tally.no_account());
        tally.call(&Ended { errcode: Some(123_456), outcome: Outcome::WechatError, ..ended(stranger) });
        let totals = hub.totals();
        let counted: Vec<_> = totals.calls().filter(|calls| calls.count > 0).collect();
        assert_eq!(counted.len(), 1);
        assert_eq!((counted[0].account, counted[0].errcode.name()), (NO_ACCOUNT, "other"));
    }

    #[test]
    fn no_two_series_share_a_counter() {
        let mut slots = std::collections::HashSet::new();
        for account in 0..2 {
            for &action in Action::ALL {
                for outcome in Outcome::all() {
                    let codes = if Outcome::WITH_ERRCODE.contains(&outcome) {
                        Errcode::all()
                    } else {
                        &[Errcode::NONE]
                    };
                    for &errcode in codes {
                        let slot = slot(account, action, outcome, errcode);
                        assert!(
                            slot < calls_of(1) && slots.insert(slot),
                            "{action:?} {outcome:?} {errcode:?}"
                        );
                    }
                }
            }
        }
        assert_eq!(slots.len(), calls_of(1), "and none is left over");
    }
}
