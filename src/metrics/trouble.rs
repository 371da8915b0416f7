//! The last errors in words, for the page and the status: [`Troubles`], a bounded ring. One that repeats is told once,
//! with how often and when last, so that a storm of one error leaves room for the others.
//!
//! SECURITY: sentences are made for the log and for the app, which never see a credential either.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use tokio::time::Instant;

use crate::credentials::AppId;

/// Errors that are remembered; each kind, account and subject counts once.
const MOST: usize = 24;

/// The longest sentence that is kept, in characters.
const LONGEST: usize = 600;

/// An error that goes on is worth a log line once in so long.
const LOG_AGAIN: Duration = Duration::from_secs(60);

/// One error, and how often it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// What kind: the cause of an error of ours, or a word such as `token`.
    pub kind: &'static str,
    /// Whose, if anyone's.
    pub account: Option<AppId>,
    /// What it concerns, where one kind has several: the API whose quota is used up. Empty otherwise.
    pub subject: String,
    /// What happened, what it means, what to do; as it was the last time.
    pub sentence: String,
    /// How often since the process began.
    pub times: u64,
    /// When last.
    pub at: Instant,
    logged_at: Instant,
}

/// The last errors. Whoever writes never waits: while it is being read, an error is only not remembered.
#[derive(Debug, Default)]
pub struct Troubles(Mutex<VecDeque<Trouble>>);

impl Troubles {
    /// Keeps an error. Says whether it is worth a log line: the first of its kind, and then once a minute.
    pub fn tell(&self, kind: &'static str, account: Option<&AppId>, sentence: &str) -> bool {
        self.tell_of(kind, account, "", sentence)
    }

    /// The same for one of several things that this kind of error may concern; each counts by itself.
    pub fn tell_of(
        &self,
        kind: &'static str,
        account: Option<&AppId>,
        subject: &str,
        sentence: &str,
    ) -> bool {
        let mut ring = match self.0.try_lock() {
            Ok(ring) => ring,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        let now = Instant::now();
        let before = ring.iter().position(|known| {
            known.kind == kind && known.account.as_ref() == account && known.subject == subject
        });
        let mut trouble = match before.and_then(|at| ring.remove(at)) {
            Some(known) => known,
            None => Trouble {
                kind,
                account: account.cloned(),
                subject: subject.to_owned(),
                sentence: String::new(),
                times: 0,
                at: now,
                logged_at: now,
            },
        };
        let worth_a_line = trouble.times == 0 || trouble.logged_at.elapsed() >= LOG_AGAIN;
        if worth_a_line {
            trouble.logged_at = now;
        }
        if trouble.sentence != sentence {
            trouble.sentence = sentence.chars().take(LONGEST).collect();
        }
        trouble.times += 1;
        trouble.at = now;
        if ring.len() >= MOST {
            ring.pop_front();
        }
        ring.push_back(trouble);
        worth_a_line
    }

    /// All of them, the one that came last at the end.
    #[must_use]
    pub fn recent(&self) -> Vec<Trouble> {
        self.lock().iter().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Trouble>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_storm_is_one_entry_and_one_log_line_a_minute() {
        let troubles = Troubles::default();
        let appid = AppId::parse("wx1").unwrap();
        assert!(troubles.tell("connect", Some(&appid), "no connection"));
        for _ in 0..1000 {
            assert!(!troubles.tell("connect", Some(&appid), "no connection, again"));
        }
        assert!(troubles.tell("tls", None, "no trust"));
        tokio::time::advance(Duration::from_secs(61)).await;
        assert!(troubles.tell("connect", Some(&appid), "no connection"));
        let recent = troubles.recent();
        assert_eq!(recent.len(), 2);
        assert_eq!((recent[1].kind, recent[1].times), ("connect", 1002));
        assert_eq!(recent[1].sentence, "no connection");
    }

    #[test]
    fn it_does_not_grow() {
        let troubles = Troubles::default();
        for n in 0..1000 {
            let appid = AppId::parse(&format!("wx{n}")).unwrap();
            troubles.tell("no-token", Some(&appid), &"x".repeat(10_000));
        }
        let recent = troubles.recent();
        assert_eq!(recent.len(), MOST);
        assert!(recent.iter().all(|trouble| trouble.sentence.len() == LONGEST));
    }
}
