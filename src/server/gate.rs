//! Wakes of a connection's task, with one kind kept out: `Gate` is the waker that hyper's server is polled with, and
//! [`muted`] is where it does not wake.
//!
//! hyper hands a request's body over a channel, and whoever takes a piece wakes hyper to bring the next one. That is the
//! very task that takes it; and when the piece was the whole body, which it is for every small call, there is nothing to
//! bring: the task would be run once more, through all of hyper and of the call, to find that out.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Wake, Waker};

/// Passes wakes on to a task.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// Whom to wake. A task that is spawned has one waker for as long as it lives, and to read it here takes no lock: a
    /// call wakes its task three times and is polled twice.
    task: OnceLock<Waker>,
    /// Whom in its place, should it ever be polled with another one.
    another: Mutex<Option<Waker>>,
    is_another: AtomicBool,
}

impl Gate {
    /// Leads nowhere yet.
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Whom to wake from now on.
    pub(super) fn leads_to(&self, task: &Waker) {
        if self.task.get_or_init(|| task.clone()).will_wake(task) && !self.is_another.load(Ordering::Acquire)
        {
            return;
        }
        let mut another = self.another.lock().unwrap_or_else(PoisonError::into_inner);
        if another.as_ref().is_none_or(|known| !known.will_wake(task)) {
            *another = Some(task.clone());
        }
        self.is_another.store(true, Ordering::Release);
    }
}

impl Wake for Gate {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if MUTED.get() {
            KNOCKED.set(Some(Arc::clone(self)));
            return;
        }
        let another = match self.is_another.load(Ordering::Acquire) {
            true => self.another.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            false => None,
        };
        if let Some(task) = another.as_ref().or_else(|| self.task.get()) {
            task.wake_by_ref();
        }
    }
}

thread_local! {
    /// Of this thread alone: what other threads wake, a token's arrival or a stop, is never kept out.
    static MUTED: Cell<bool> = const { Cell::new(false) };
    /// Who would have been woken.
    static KNOCKED: Cell<Option<Arc<Gate>>> = const { Cell::new(None) };
}

/// Does something that may wake the task of one connection, and gives the waker in place of waking it. Whoever asks has
/// to see to it that the task is woken if it needs to be.
pub fn muted<T>(something: impl FnOnce() -> T) -> (T, Option<Waker>) {
    let muted = Unmute;
    MUTED.set(true);
    let done = something();
    drop(muted);
    (done, KNOCKED.take().map(Waker::from))
}

/// Lets wakes through again, also after a panic.
struct Unmute;

impl Drop for Unmute {
    fn drop(&mut self) {
        MUTED.set(false);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_task_is_woken_but_for_what_is_done_muted_on_its_own_thread() {
        let count = Arc::new(Count::default());
        let gate = Gate::new();
        let waker = Waker::from(Arc::clone(&gate));
        waker.wake_by_ref();
        gate.leads_to(&Waker::from(Arc::clone(&count)));
        waker.wake_by_ref();
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        let ((), knocked) = muted(|| waker.wake_by_ref());
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        knocked.expect("it would have been woken").wake();
        assert_eq!(count.0.load(Ordering::SeqCst), 2);
        let (seven, knocked) = muted(|| 7);
        assert!(seven == 7 && knocked.is_none());
        let elsewhere = waker.clone();
        let ((), knocked) = muted(|| std::thread::spawn(move || elsewhere.wake()).join().unwrap());
        assert!(knocked.is_none());
        assert_eq!(count.0.load(Ordering::SeqCst), 3);

        let other = Arc::new(Count::default());
        for _ in 0..2 {
            gate.leads_to(&Waker::from(Arc::clone(&other)));
            waker.wake_by_ref();
        }
        assert_eq!(
            (count.0.load(Ordering::SeqCst), other.0.load(Ordering::SeqCst)),
            (3, 2),
            "the last one counts"
        );
        gate.leads_to(&Waker::from(Arc::clone(&count)));
        waker.wake_by_ref();
        assert_eq!(
            (count.0.load(Ordering::SeqCst), other.0.load(Ordering::SeqCst)),
            (4, 2),
            "the first one again"
        );
    }
}
