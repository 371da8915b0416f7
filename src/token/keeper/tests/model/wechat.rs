//! WeChat's rules once more, for a world in which fetches take time, cross each other and get lost; and the book of
//! who fetched when.

use std::fmt::Write as _;

use super::super::*;
use super::Wrongs;
use super::schedule::Schedule;
use super::store::Store;
use crate::token::source::Supplier;

/// A replaced token goes on working for so long.
const OVERLAP: Duration = secs(300);

/// The longest a fetch takes.
const FETCH_TIMEOUT: Duration = secs(8);

/// How a fetch fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Network {
    Well,
    Slow,
    Failing,
    Hanging,
    /// The token is issued, and nobody gets it.
    LosesReplies,
    OverQuota,
}

struct Inner {
    rng: fastrand::Rng,
    began: Instant,
    classic: bool,
    life: Duration,
    network: Network,
    /// How it was, and until when.
    was: Vec<(Network, Instant)>,
    odd: bool,
    /// By number: until when each token works, and its errcode after that.
    issued: Vec<(Instant, i64)>,
    /// Until when the newest is what it was issued to be.
    expires_at: Instant,
    /// Who is fetching, since when.
    fetching: Vec<(u64, Instant)>,
    /// Every fetch: when, which replica, which life of it, what became of it.
    book: Vec<(Instant, usize, u64, String)>,
}

impl Inner {
    fn issue(&mut self, overlap: Duration) -> String {
        let now = Instant::now();
        if let Some((until, errcode)) = self.issued.last_mut()
            && *until > now + overlap
        {
            (*until, *errcode) = (now + overlap, 40001);
        }
        self.expires_at = now + self.life;
        self.issued.push((self.expires_at, 42001));
        format!("TOKEN_{}", self.issued.len())
    }

    /// What the endpoint answers: the token, and the life left of it.
    fn answer(&mut self) -> (String, Duration) {
        let left = self.expires_at.saturating_duration_since(Instant::now());
        let works = self.issued.last().is_some_and(|&(until, _)| until > Instant::now());
        let value = if !self.classic && left >= OVERLAP && works {
            format!("TOKEN_{}", self.issued.len())
        } else {
            self.issue(OVERLAP)
        };
        (value, self.expires_at - Instant::now())
    }
}

impl Inner {
    /// For how much of the last two minutes it was slow.
    fn slow_of_late(&self) -> Duration {
        let now = Instant::now();
        let (mut slow, mut from) =
            (Duration::ZERO, self.began.max(now.checked_sub(secs(120)).unwrap_or(self.began)));
        for &(network, until) in self.was.iter().chain([&(self.network, now)]) {
            if [Network::Slow, Network::Hanging].contains(&network) {
                slow += until.saturating_duration_since(from);
            }
            from = from.max(until);
        }
        slow
    }
}

#[derive(Clone)]
pub(super) struct WeChat {
    inner: Arc<Mutex<Inner>>,
    store: Store,
    wrongs: Wrongs,
    began: Instant,
}

impl WeChat {
    pub(super) fn new(schedule: &Schedule, store: Store, wrongs: Wrongs) -> Self {
        let inner = Inner {
            rng: fastrand::Rng::with_seed(schedule.seed ^ 0xfe7c4),
            began: Instant::now(),
            classic: schedule.classic,
            life: schedule.life,
            network: Network::Well,
            was: Vec::new(),
            odd: false,
            issued: Vec::new(),
            expires_at: Instant::now(),
            fetching: Vec::new(),
            book: Vec::new(),
        };
        Self { inner: Arc::new(Mutex::new(inner)), store, wrongs, began: Instant::now() }
    }

    fn with<R>(&self, f: impl FnOnce(&mut Inner) -> R) -> R {
        f(&mut self.inner.lock().unwrap())
    }

    pub(super) fn source(&self, number: usize, life: u64, follows: bool) -> Source {
        Source { wechat: self.clone(), number, life, follows }
    }

    pub(super) fn network_is(&self, network: Network) {
        self.with(|inner| {
            let before = std::mem::replace(&mut inner.network, network);
            inner.was.push((before, Instant::now()));
        });
    }

    pub(super) fn has_an_odd_path(&self, odd: bool) {
        self.with(|inner| inner.odd = odd);
    }

    /// Someone else fetches.
    pub(super) fn rotate(&self, at_once: bool) {
        self.with(|inner| inner.issue(if at_once { Duration::ZERO } else { OVERLAP }));
    }

    /// A call with this token, on the odd path or another.
    pub(super) fn judges(&self, token: &str, odd: bool) -> Result<(), i64> {
        self.with(|inner| {
            let number: usize = token.strip_prefix("TOKEN_").unwrap().parse().unwrap();
            let (until, errcode) = inner.issued[number - 1];
            match Instant::now() < until {
                false => Err(errcode),
                true if odd && inner.odd => Err(40001),
                true => Ok(()),
            }
        })
    }

    pub(super) fn fetches(&self) -> u64 {
        self.with(|inner| inner.book.len() as u64)
    }

    pub(super) fn story(&self) -> String {
        self.with(|inner| {
            let mut story = String::new();
            for (at, replica, life, outcome) in &inner.book {
                let at = (*at - self.began).as_secs_f64();
                let _ = writeln!(story, "{at:9.3} replica {replica}, life {life}: {outcome}");
            }
            story
        })
    }

    /// No life of a replica has fetched more in any time than its budget has for it.
    pub(super) fn check_budgets(&self) {
        let pace = self.pace();
        self.with(|inner| {
            let mut lives: Vec<u64> = inner.book.iter().map(|(_, _, life, _)| *life).collect();
            lives.sort_unstable();
            lives.dedup();
            for life in lives {
                let at: Vec<_> =
                    inner.book.iter().filter(|(_, _, other, _)| *other == life).map(|(at, ..)| *at).collect();
                for (n, window) in at.iter().enumerate().flat_map(|(first, &from)| {
                    at[first..].iter().enumerate().map(move |(n, &to)| (n as u32 + 1, to - from))
                }) {
                    let most = pace.burst + (window.as_millis() / pace.refill.as_millis()) as u32 + 1;
                    self.wrongs.unless(n <= most, || format!("{n} fetches within {window:?}"));
                }
            }
        });
    }

    fn pace(&self) -> Pace {
        pace(self.with(|inner| inner.classic))
    }
}

/// WeChat, as one life of a replica asks it.
pub(super) struct Source {
    wechat: WeChat,
    number: usize,
    life: u64,
    follows: bool,
}

/// A fetch under way; ends with the replica at the latest.
struct Fetching<'a>(&'a Source);

impl Drop for Fetching<'_> {
    fn drop(&mut self) {
        self.0.wechat.with(|inner| inner.fetching.retain(|(life, _)| *life != self.0.life));
    }
}

impl Source {
    fn begin(&self) -> (Fetching<'_>, Network, Duration, Duration, usize) {
        let sound_since = self.wechat.store.sound_since();
        self.wechat.with(|inner| {
            let now = Instant::now();
            // Both have seen nothing but a store that works, in all the time that one waits for a lease; and WeChat
            // was not slow for so long that one went without it.
            let quick = inner.slow_of_late() < secs(45);
            let sound = |since: Instant| quick && sound_since + secs(75) <= since;
            let other = inner.fetching.iter().find(|&&(_, since)| sound(since)).copied();
            self.wechat.wrongs.unless(other.is_none() || !sound(now), || {
                format!("two fetches at once under a store that works: {:?} and life {}", other, self.life)
            });
            let itself = inner.fetching.iter().any(|&(life, _)| life == self.life);
            self.wechat.wrongs.unless(!itself, || format!("life {} fetches twice at once", self.life));
            inner.fetching.push((self.life, now));
            inner.book.push((now, self.number, self.life, "never ended".to_owned()));
            let most =
                if inner.network == Network::Slow { FETCH_TIMEOUT } else { Duration::from_millis(300) };
            let takes = most.mul_f64(inner.rng.f64());
            let there = takes.mul_f64(inner.rng.f64());
            (Fetching(self), inner.network, there, takes - there, inner.book.len() - 1)
        })
    }
}

impl TokenSource for Source {
    fn name(&self) -> &'static str {
        "modelled"
    }

    fn pace(&self) -> Pace {
        let pace = self.wechat.pace();
        if self.follows { Pace { ahead: secs(120), ..pace } } else { pace }
    }

    fn supplier(&self) -> Supplier {
        if self.follows { Supplier::Store } else { Supplier::WeChat }
    }

    async fn fetch(&self, _: Want<'_>) -> Result<Token, FetchError> {
        if self.follows {
            return Err(FetchError::transient("nobody fetches"));
        }
        let asked_at = Instant::now();
        let (fetching, network, there, back, entry) = self.begin();
        let note = |what: &str| self.wechat.with(|inner| inner.book[entry].3 = what.to_owned());
        sleep(there).await;
        let outcome = match network {
            Network::Failing => Err(busy()),
            Network::OverQuota => Err(super::super::refusal(Class::Quota, 45011, 60, 300)),
            Network::Hanging => {
                sleep(FETCH_TIMEOUT - there).await;
                Err(FetchError::transient("no answer"))
            }
            Network::LosesReplies => {
                let (lost, _) = self.wechat.with(Inner::answer);
                note(&format!("{lost}, lost"));
                Err(FetchError::transient("the reply broke off"))
            }
            Network::Well | Network::Slow => {
                let (value, left) = self.wechat.with(Inner::answer);
                note(&format!("{value}, {left:?} left, on its way"));
                Ok(Token::new(&value, asked_at, left).unwrap())
            }
        };
        sleep(back).await;
        drop(fetching);
        note(&match &outcome {
            Ok(token) => token.expose().to_owned(),
            Err(error) => format!("{network:?}: {}", error.sentence),
        });
        outcome
    }
}
