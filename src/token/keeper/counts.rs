//! What a worker counts and remembers for people: [`Counts`], which it alone writes, and [`Counted`], what they say
//! when someone reads. Nothing here is on a call's way.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::Reason;
use crate::metrics::trouble::Troubles;
use crate::token::source::{Class, FetchError};

/// Why fetches are made, as a label: an interface, dashboards match on it.
pub(super) const REASONS: [&str; 7] =
    ["startup", "ahead", "refused", "secret-change", "operator", "operator-forced", "look"];

impl Reason {
    /// Its place in [`REASONS`]; `None` for what is no fetch.
    fn index(&self) -> Option<usize> {
        Some(match self {
            Self::Startup => 0,
            Self::Ahead => 1,
            Self::Reject { .. } => 2,
            Self::SecretChange => 3,
            Self::Operator { force: false } => 4,
            Self::Operator { force: true } => 5,
            Self::Look => 6,
            Self::News => return None,
        })
    }
}

/// What a fetch that did not fail came to; failures have the name of their class.
const GOOD: [&str; 2] = ["fetched", "same-again"];
const OUTCOMES: usize = GOOD.len() + Class::ALL.len();

/// What is asked of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Load,
    Save,
    Refuse,
    Lease,
}

impl Asked {
    /// Whether a store that can only be read fails at it.
    pub(super) fn is_a_write(self) -> bool {
        !matches!(self, Self::Load)
    }
}

const ASKED: [&str; 4] = ["load", "save", "refuse", "lease"];

/// The worker's counters.
#[derive(Debug, Default)]
pub(super) struct Counts {
    fetches: [[AtomicU64; OUTCOMES]; REASONS.len()],
    store: [[AtomicU64; 2]; ASKED.len()],
    leases_held: AtomicU64,
    adoptions: AtomicU64,
    refreshed: Mutex<Option<(Instant, String)>>,
    held_back_until: Mutex<Option<Instant>>,
    pub(super) troubles: Troubles,
}

impl Counts {
    /// A fetch has brought a token, or failed.
    pub(super) fn fetch(&self, reason: &Reason, outcome: Result<bool, &FetchError>) {
        let outcome = match outcome {
            Ok(same) => usize::from(same),
            Err(error) => GOOD.len() + Class::ALL.iter().position(|class| *class == error.class).unwrap_or(0),
        };
        if let Some(reason) = reason.index() {
            self.fetches[reason][outcome].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The store has answered, or not.
    pub(super) fn store(&self, asked: Asked, worked: bool) {
        self.store[asked as usize][usize::from(!worked)].fetch_add(1, Ordering::Relaxed);
    }

    /// Another replica holds the lease.
    pub(super) fn lease_held(&self) {
        self.leases_held.fetch_add(1, Ordering::Relaxed);
    }

    /// A token is served from now on.
    pub(super) fn refreshed(&self, reason: &Reason, adopted: bool) {
        self.adoptions.fetch_add(u64::from(adopted), Ordering::Relaxed);
        let reason = if adopted { "adopted from the store".to_owned() } else { reason.to_string() };
        *self.refreshed.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), reason));
    }

    /// The breaker on refusals lets none have a fetch until then.
    pub(super) fn held_back(&self, until: Option<Instant>) {
        *self.held_back_until.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    pub(super) fn read(&self) -> Counted {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let outcomes: Vec<_> = GOOD.into_iter().chain(Class::ALL.iter().map(|class| class.name())).collect();
        let refreshed = self.refreshed.lock().unwrap_or_else(PoisonError::into_inner);
        let held_back = *self.held_back_until.lock().unwrap_or_else(PoisonError::into_inner);
        let leased = read(&self.store[Asked::Lease as usize][0]);
        let held = read(&self.leases_held);
        Counted {
            fetches: REASONS
                .iter()
                .zip(&self.fetches)
                .flat_map(|(reason, row)| {
                    outcomes.iter().zip(row).map(|(outcome, n)| (*reason, *outcome, read(n)))
                })
                .collect(),
            store: ASKED
                .iter()
                .zip(&self.store)
                .flat_map(|(asked, [ok, error])| [(*asked, "ok", read(ok)), (*asked, "error", read(error))])
                .collect(),
            leases: [
                ("acquired", leased.saturating_sub(held)),
                ("held", held),
                ("error", read(&self.store[Asked::Lease as usize][1])),
            ],
            adoptions: read(&self.adoptions),
            refreshed: refreshed.as_ref().map(|(at, reason)| (at.elapsed(), reason.clone())),
            held_back: held_back
                .map(|until| until.saturating_duration_since(Instant::now()))
                .filter(|wait| !wait.is_zero()),
        }
    }
}

/// What a worker has counted since it began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Fetches by reason and outcome (`fetched`, `same-again`, or the class of the failure).
    pub fetches: Vec<(&'static str, &'static str, u64)>,
    /// What was asked of the store (`load`, `save`, `refuse`, `lease`), and whether it worked (`ok`, `error`).
    pub store: Vec<(&'static str, &'static str, u64)>,
    /// The lease was `acquired`, `held` by another replica, or `error`.
    pub leases: [(&'static str, u64); 3],
    /// Tokens that were taken from the store.
    pub adoptions: u64,
    /// How long ago a token came, and why it was fetched.
    pub refreshed: Option<(Duration, String)>,
    /// How long the breaker on refusals holds the next fetch for a refusal back; `None` when it does not.
    pub held_back: Option<Duration>,
}
