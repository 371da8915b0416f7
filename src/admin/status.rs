//! How it stands, in one [`Snapshot`] that the status, the page and the probes share; [`Overview`] knows where to look
//! for it.
//!
//! SECURITY: no token and no secret is in it: tokens have a fingerprint, settings come with secrets hidden, and the
//! sentences are those of the log.

use std::cell::RefCell;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;

use crate::account::Account;
use crate::metrics::history::{Counts, History, STEP};
use crate::metrics::trouble::Trouble;
use crate::metrics::{Hub, Summary, Totals};
use crate::server::Phase;
use crate::token::keeper;
use crate::token::source::Supplier;

/// The errors that are shown.
const MOST_ERRORS: usize = 40;

/// A setting as it is in force, with a secret's value hidden.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InForce {
    /// Its key; that of an `[[account]]` begins with the account's number.
    pub key: String,
    /// What holds.
    pub value: String,
    /// Where that was written: a flag, a variable, a line of the file, or nowhere.
    pub origin: String,
}

/// How much of a budget is used.
pub type Gauge = Box<dyn Fn() -> u64>;

/// Where to look for how it stands. Lives on the control thread.
pub struct Overview {
    accounts: Vec<Account>,
    hub: Hub,
    phase: watch::Receiver<Phase>,
    settings: Vec<InForce>,
    replay_budget: (u64, Gauge),
    history: RefCell<History>,
}

impl Overview {
    /// For these accounts, the first of which is the default.
    #[must_use]
    pub fn new(accounts: Vec<Account>, hub: Hub, phase: watch::Receiver<Phase>) -> Self {
        let history = RefCell::default();
        Self { accounts, hub, phase, settings: Vec::new(), replay_budget: (0, Box::new(|| 0)), history }
    }

    /// Shows these settings.
    #[must_use]
    pub fn with_settings(mut self, settings: Vec<InForce>) -> Self {
        self.settings = settings;
        self
    }

    /// Shows this budget for kept bodies, in bytes, and what is used of it.
    #[must_use]
    pub fn with_replay_budget(mut self, limit: u64, used: Gauge) -> Self {
        self.replay_budget = (limit, used);
        self
    }

    /// Keeps the last hours, a minute at a time, for as long as it is polled.
    pub async fn remember(&self) {
        loop {
            tokio::time::sleep(STEP).await;
            let now = self.counts(&self.hub.totals());
            self.history.borrow_mut().step(now);
        }
    }

    /// How it stands now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let totals = self.hub.totals();
        let phase = *self.phase.borrow();
        let accounts: Vec<_> = self.accounts.iter().enumerate().map(|(n, a)| status(n, a, &totals)).collect();
        let mut troubles = self.hub.troubles();
        troubles.extend(self.accounts.iter().flat_map(|account| account.keeper().troubles()));
        Snapshot {
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: self.hub.uptime().as_secs(),
            workers: self.hub.workers(),
            phase: name(phase),
            stopping: phase > Phase::Serve,
            ready: phase == Phase::Serve && accounts.iter().all(|account| account.ready),
            started: accounts.iter().all(|account| account.last_refresh.is_some()),
            accounts,
            connections: Connections { open: totals.open(), accepted: totals.accepted },
            replay_budget: Budget { used_bytes: self.replay_budget.1(), limit_bytes: self.replay_budget.0 },
            counts: totals.summary_of_all(),
            history: Minutes {
                step_seconds: STEP.as_secs(),
                minutes: self.history.borrow().minutes(self.counts(&totals)),
            },
            errors: newest(troubles),
            settings: self.settings.clone(),
        }
    }

    fn counts(&self, totals: &Totals) -> Counts {
        let summary = totals.summary_of_all();
        Counts {
            calls: summary.calls,
            errors: summary.errors + summary.wechat_errors,
            refusals: summary.refusals,
            replays: summary.replays,
            refreshes: self.accounts.iter().map(|account| account.keeper().status().fetches).sum(),
        }
    }

    pub(super) fn accounts(&self) -> &[Account] {
        &self.accounts
    }

    pub(super) fn hub(&self) -> &Hub {
        &self.hub
    }
}

/// How it stands.
#[derive(Clone, Debug, Serialize)]
pub struct Snapshot {
    /// The version of this sidecar.
    pub version: &'static str,
    /// Since it began.
    pub uptime_seconds: u64,
    /// Threads that serve calls.
    pub workers: usize,
    /// `serving`, `leaving` (a stop was asked for; calls are still taken), `draining` or `ending`.
    pub phase: &'static str,
    /// Whether a stop was asked for.
    pub stopping: bool,
    /// Whether every account has a token that lives, and no stop was asked for.
    pub ready: bool,
    /// Whether every account has had a token.
    pub started: bool,
    /// The accounts, the default one first.
    pub accounts: Vec<AccountStatus>,
    /// Connections of apps.
    pub connections: Connections,
    /// What calls in flight keep of their bodies.
    pub replay_budget: Budget,
    /// Counts since it began.
    pub counts: Summary,
    /// The last hours.
    pub history: Minutes,
    /// The last errors, the newest first.
    pub errors: Vec<Told>,
    /// The settings.
    pub settings: Vec<InForce>,
}

/// Connections of apps.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Connections {
    /// Open now.
    pub open: u64,
    /// Accepted since it began.
    pub accepted: u64,
}

/// A budget.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Budget {
    /// What is used.
    pub used_bytes: u64,
    /// Of this.
    pub limit_bytes: u64,
}

/// The last hours; the minute under way is the last.
#[derive(Clone, Debug, Serialize)]
pub struct Minutes {
    /// How long a step is.
    pub step_seconds: u64,
    /// What was counted in each.
    pub minutes: Vec<Counts>,
}

/// One account.
#[derive(Clone, Debug, Serialize)]
pub struct AccountStatus {
    /// Its public name.
    pub appid: String,
    /// Whether calls that name no account are made as it.
    pub default: bool,
    /// Whether its token lives.
    pub ready: bool,
    /// The token's fingerprint.
    pub token: Option<String>,
    /// What is left of its life.
    pub life_left_seconds: Option<u64>,
    /// When it came, and why.
    pub last_refresh: Option<LastRefresh>,
    /// To the next fetch; `None` while one is under way.
    pub next_fetch_in_seconds: Option<u64>,
    /// What the last fetch failed with, and what to do; `None` after one that did not.
    pub problem: Option<String>,
    /// Its class: `transient`, `quota`, `config`, `ip`, `await-admin` or `human`.
    pub problem_class: Option<&'static str>,
    /// WeChat's code for it.
    pub problem_errcode: Option<i64>,
    /// How long the breaker holds the next fetch for a refused token back.
    pub breaker_seconds: Option<u64>,
    /// `fetches`, `asks-central` or `follows`.
    pub role: &'static str,
    /// Where its tokens come from.
    pub source: &'static str,
    /// Where they are shared.
    pub store: &'static str,
    /// Fetches since it began.
    pub fetches: u64,
    /// And how many failed.
    pub fetch_failures: u64,
    /// Tokens taken from the store.
    pub adoptions: u64,
    /// Young tokens that someone else voided.
    pub foreign_rotations: u64,
    /// Its calls.
    pub counts: Summary,
}

/// When a token came, and why.
#[derive(Clone, Debug, Serialize)]
pub struct LastRefresh {
    /// How long ago.
    pub seconds_ago: u64,
    /// Why it was fetched.
    pub reason: String,
}

/// An error in words.
#[derive(Clone, Debug, Serialize)]
pub struct Told {
    /// A cause of the sidecar's, or `token`, `store`, `secret`, `foreign-rotation`, `wechat-limit`.
    pub kind: &'static str,
    /// Whose.
    pub account: Option<String>,
    /// The API it concerns, where it concerns one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub subject: String,
    /// What happened, what it means, what to do.
    pub sentence: String,
    /// How often.
    pub times: u64,
    /// When last.
    pub seconds_ago: u64,
}

fn status(n: usize, account: &Account, totals: &Totals) -> AccountStatus {
    let appid = account.appid().as_str();
    let keeper::Status {
        token,
        failure,
        next_attempt,
        fetches,
        failures,
        foreign_rotations,
        counted,
        source,
        store,
        supplier,
        ..
    } = account.keeper().status();
    let seconds = |wait: Duration| wait.as_secs();
    AccountStatus {
        appid: appid.to_owned(),
        default: n == 0,
        ready: token.is_some(),
        token: token.map(|(fingerprint, _)| fingerprint.to_string()),
        life_left_seconds: token.map(|(_, left)| left.as_secs()),
        last_refresh: counted
            .refreshed
            .map(|(ago, reason)| LastRefresh { seconds_ago: ago.as_secs(), reason }),
        next_fetch_in_seconds: next_attempt.map(seconds),
        problem_class: failure.as_ref().map(|failure| failure.class.name()),
        problem_errcode: failure.as_ref().and_then(|failure| failure.errcode),
        problem: failure.map(|failure| failure.sentence),
        breaker_seconds: counted.held_back.map(|wait| wait.as_secs().max(1)),
        role: match supplier {
            Supplier::WeChat => "fetches",
            Supplier::Central => "asks-central",
            Supplier::Store => "follows",
        },
        source,
        store,
        fetches,
        fetch_failures: failures,
        adoptions: counted.adoptions,
        foreign_rotations,
        counts: totals.summary(appid),
    }
}

fn name(phase: Phase) -> &'static str {
    match phase {
        Phase::Serve => "serving",
        Phase::Leave => "leaving",
        Phase::Drain => "draining",
        Phase::Cut => "ending",
    }
}

/// Of all rings together, what is newest; what several workers met is one.
fn newest(mut troubles: Vec<Trouble>) -> Vec<Told> {
    troubles.sort_by_key(|trouble| std::cmp::Reverse(trouble.at));
    let mut told: Vec<Told> = Vec::new();
    for trouble in troubles {
        let account = trouble.account.map(|appid| appid.as_str().to_owned());
        if let Some(known) = told.iter_mut().find(|known| {
            known.kind == trouble.kind && known.account == account && known.subject == trouble.subject
        }) {
            known.times += trouble.times;
        } else if told.len() < MOST_ERRORS {
            told.push(Told {
                kind: trouble.kind,
                account,
                subject: trouble.subject,
                sentence: trouble.sentence,
                times: trouble.times,
                seconds_ago: trouble.at.elapsed().as_secs(),
            });
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Cause;

    #[tokio::test(start_paused = true)]
    async fn what_two_workers_met_is_one_error_and_the_newest_stands_first() {
        let account = crate::account::idle("wxa", "s3cret");
        let hub = Hub::new([account.appid().clone()]);
        let (one, other) = (hub.tally(), hub.tally());
        let (_tell, phase) = watch::channel(Phase::Serve);
        let overview = Overview::new(vec![account], hub, phase);
        one.trouble(Cause::Connect, 0, "no connection");
        tokio::time::advance(Duration::from_secs(5)).await;
        one.trouble(Cause::Tls, one.no_account(), "no trust");
        tokio::time::advance(Duration::from_secs(5)).await;
        other.trouble(Cause::Connect, 0, "no connection yet");
        let snapshot = overview.snapshot();
        let told: Vec<_> =
            snapshot.errors.iter().map(|e| (e.kind, e.times, e.seconds_ago, e.sentence.as_str())).collect();
        assert_eq!(told, [("connect", 2, 0, "no connection yet"), ("tls", 1, 5, "no trust")]);
        assert_eq!(snapshot.errors[0].account.as_deref(), Some("wxa"));
        assert_eq!((snapshot.ready, snapshot.started, snapshot.phase), (false, false, "serving"));
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_hours_are_remembered_by_the_minute() {
        let account = crate::account::idle("wxa", "s3cret");
        let hub = Hub::new([account.appid().clone()]);
        let tally = hub.tally();
        let (_tell, phase) = watch::channel(Phase::Serve);
        let overview = Overview::new(vec![account], hub, phase);
        let counted = async {
            for _ in 0..3 {
                tally.call(&crate::metrics::Ended {
                    account: 0,
                    action: crate::metrics::labels::Action::AppendToken,
                    outcome: crate::metrics::labels::Outcome::Ok,
                    errcode: Some(0),
                    refused: None,
                    replayed: false,
                    whole: Duration::ZERO,
                    upstream: None,
                    token_wait: None,
                    own: None,
                });
                tokio::time::sleep(Duration::from_secs(45)).await;
            }
        };
        tokio::select! {
            () = overview.remember() => {}
            () = counted => {}
        }
        let calls: Vec<_> = overview.snapshot().history.minutes.iter().map(|minute| minute.calls).collect();
        assert_eq!(calls, [2, 1, 0]);
    }
}
