//! How long an app may take to bring a request: [`Patience`] says it, [`Due`] watches it.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use crate::deadline::Deadline;

/// How long an app may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For a head, from its first byte to its last.
    pub head: Duration,
    /// Before one.
    pub idle: Duration,
}

/// What hyper waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Awaited {
    /// The first byte of a head.
    Beginning,
    /// The rest of one.
    Rest,
    /// More of a body. `idle_timeout` watches that.
    Body,
}

/// By when the next head must begin, or end. Runs while hyper waits for one.
#[derive(Debug)]
pub(super) struct Due {
    patience: Patience,
    /// What is waited for, if anything is.
    awaited: Option<Awaited>,
    /// By when. It keeps its place from one head to the next, and may come due in vain between them.
    deadline: Option<Deadline>,
}

impl Due {
    pub(super) fn new(patience: Patience) -> Self {
        Self { patience, awaited: None, deadline: None }
    }

    /// What was waited for is here.
    pub(super) fn met(&mut self) {
        self.awaited = None;
    }

    /// Nothing has come. hyper reads where a head is due, or more of a body; while it answers it does not read.
    ///
    /// SECURITY: a head's time counts from its first byte and no further byte prolongs it, or an app that sends one a
    /// minute would hold a connection for ever.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, awaited: Awaited) -> Poll<io::Result<()>> {
        let timeout = match awaited {
            Awaited::Beginning => self.patience.idle,
            Awaited::Rest => self.patience.head,
            Awaited::Body => {
                self.met();
                return Poll::Pending;
            }
        };
        let begins = self.awaited.replace(awaited) != Some(awaited);
        let due = match &mut self.deadline {
            Some(due) => {
                if begins {
                    due.again(timeout);
                }
                due
            }
            none => none.insert(Deadline::after(timeout)),
        };
        ready!(Pin::new(due).poll(cx));
        let why = "the app has sent no whole head for too long";
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, why)))
    }
}
