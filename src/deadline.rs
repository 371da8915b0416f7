//! By when something must have happened, for next to nothing: [`Deadline`] is what `tokio::time::Sleep` is, without a
//! place in the runtime's wheel for each of the many that are made and never come due.
//!
//! A call makes several (until the reply's head, until the next piece, until the next head of the app), and tokio's
//! cost it 2,000 instructions (`perf.md`). These stand in a list of the thread, and one task looks through all of it
//! every [`GRAIN`]. So a long deadline may come a grain late, and never early; a short one is tokio's own, and exact.
//!
//! Even one timer of tokio's that only stands there costs each turn of its thread's loop 270 instructions, two looks at
//! the clock among them. So a worker has none: a [`Beat`] from another thread tells it when to look.

use std::cell::{OnceCell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};

/// How late a long deadline may come.
pub const GRAIN: Duration = Duration::from_millis(250);

/// From this length a deadline is a long one.
const LONG: Duration = Duration::from_secs(4);

/// Tells threads that have deadlines when another [`GRAIN`] has passed.
#[derive(Debug, Default)]
pub struct Beat {
    wanted: Notify,
    passed: Notify,
}

thread_local! {
    static BEAT: OnceCell<Arc<Beat>> = const { OnceCell::new() };
}

impl Beat {
    /// Lets this thread go by it. One that goes by none measures the time itself.
    pub fn lead(self: Arc<Self>) {
        BEAT.with(|beat| {
            // A second one would be no better than the first.
            let _ = beat.set(self);
        });
    }

    /// Beats for as long as somebody listens; to be run on a thread that has little else to do.
    pub async fn run(&self) {
        loop {
            self.wanted.notified().await;
            tokio::time::sleep(GRAIN).await;
            self.passed.notify_waiters();
        }
    }

    /// Waits until about a grain has passed, and at most that.
    async fn next() {
        let Some(beat) = BEAT.with(|beat| beat.get().cloned()) else {
            return tokio::time::sleep(GRAIN).await;
        };
        // Made first: it hears a beat from here on.
        let passed = beat.passed.notified();
        beat.wanted.notify_one();
        passed.await;
    }
}

/// Ends at its time. Polled by one task of one thread; dropped, it is as if it had never been.
#[derive(Debug)]
pub struct Deadline(Kind);

#[derive(Debug)]
enum Kind {
    Exact(Pin<Box<Sleep>>),
    /// Not polled yet: most deadlines are for what is there already, and stay so.
    Unasked(Instant),
    Listed(usize),
}

impl Deadline {
    /// Ends when `timeout` has passed since `from`, which is about now.
    #[must_use]
    pub fn new(from: Instant, timeout: Duration) -> Self {
        // Past what the clock can hold is as good as never, and is what tokio makes of it, too.
        let at = from.checked_add(timeout).unwrap_or_else(|| from + NEVER);
        if timeout < LONG {
            return Self(Kind::Exact(Box::pin(tokio::time::sleep_until(at))));
        }
        Self(Kind::Unasked(at))
    }

    /// Ends when `timeout` has passed.
    #[must_use]
    pub fn after(timeout: Duration) -> Self {
        Self::new(Instant::now(), timeout)
    }

    /// Lets it end when `timeout` has passed from now, whatever it was before. A long one keeps its place.
    pub fn again(&mut self, timeout: Duration) {
        let now = Instant::now();
        let in_place = match (&self.0, now.checked_add(timeout)) {
            (Kind::Listed(place), Some(at)) if timeout >= LONG => {
                LIST.with_borrow_mut(|list| list.move_to(*place, at))
            }
            _ => false,
        };
        if !in_place {
            *self = Self::new(now, timeout);
        }
    }
}

const NEVER: Duration = Duration::from_secs(86_400 * 365 * 30);

impl Future for Deadline {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.0 {
            Kind::Exact(sleep) => sleep.as_mut().poll(cx),
            Kind::Unasked(at) => {
                let at = *at;
                self.0 = Kind::Listed(LIST.with_borrow_mut(|list| list.add(at, cx.waker())));
                Poll::Pending
            }
            Kind::Listed(place) => {
                let (due, _old) = LIST.with_borrow_mut(|list| list.ask(*place, cx.waker()));
                due
            }
        }
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        if let Kind::Listed(place) = self.0 {
            // The list is gone when the thread ends. What was in it is dropped out here: a waker may be the last of
            // a task, with deadlines of its own.
            let _old = LIST.try_with(|list| list.borrow_mut().remove(place));
        }
    }
}

thread_local! {
    static LIST: RefCell<List> = const { RefCell::new(List::new()) };
}

/// The long deadlines of a thread.
#[derive(Debug)]
struct List {
    entries: Vec<Entry>,
    /// Places in `entries` that are free.
    free: Vec<usize>,
    looked_through: bool,
}

#[derive(Debug)]
enum Entry {
    Free,
    Waits(Instant, Waker),
    Due,
}

impl List {
    const fn new() -> Self {
        Self { entries: Vec::new(), free: Vec::new(), looked_through: false }
    }

    fn add(&mut self, at: Instant, waker: &Waker) -> usize {
        if !self.looked_through {
            self.looked_through = true;
            tokio::task::spawn_local(look_through(Ended));
        }
        let entry = Entry::Waits(at, waker.clone());
        match self.free.pop() {
            Some(place) => {
                self.entries[place] = entry;
                place
            }
            None => {
                self.entries.push(entry);
                self.entries.len() - 1
            }
        }
    }

    /// Whether this one is due; and the waker that is no longer needed.
    fn ask(&mut self, place: usize, waker: &Waker) -> (Poll<()>, Option<Waker>) {
        match &mut self.entries[place] {
            Entry::Waits(_, known) if known.will_wake(waker) => (Poll::Pending, None),
            Entry::Waits(_, known) => (Poll::Pending, Some(std::mem::replace(known, waker.clone()))),
            Entry::Due | Entry::Free => (Poll::Ready(()), None),
        }
    }

    /// Gives one that still waits another time. Whether it does.
    fn move_to(&mut self, place: usize, at: Instant) -> bool {
        match &mut self.entries[place] {
            Entry::Waits(known, _) => {
                *known = at;
                true
            }
            Entry::Due | Entry::Free => false,
        }
    }

    fn remove(&mut self, place: usize) -> Entry {
        self.free.push(place);
        std::mem::replace(&mut self.entries[place], Entry::Free)
    }

    /// Those that are due, and whether there are others.
    fn due(&mut self) -> (Vec<Waker>, bool) {
        let now = Instant::now();
        let mut due = Vec::new();
        let mut others = false;
        for entry in &mut self.entries {
            match entry {
                Entry::Waits(at, _) if *at <= now => {
                    if let Entry::Waits(_, waker) = std::mem::replace(entry, Entry::Due) {
                        due.push(waker);
                    }
                }
                Entry::Waits(..) => others = true,
                Entry::Free | Entry::Due => {}
            }
        }
        (due, others)
    }
}

/// Looks through the list for as long as there is something in it.
async fn look_through(ended: Ended) {
    loop {
        Beat::next().await;
        let (due, others) = LIST.with_borrow_mut(List::due);
        // Whoever is woken may make a deadline at once.
        due.into_iter().for_each(Waker::wake);
        if !others {
            break;
        }
    }
    drop(ended);
}

/// Says that nobody looks any more: also when the runtime ends.
struct Ended;

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = LIST.try_with(|list| list.borrow_mut().looked_through = false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long a deadline of `timeout` takes.
    async fn taken(timeout: Duration) -> Duration {
        let from = Instant::now();
        Deadline::after(timeout).await;
        from.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_deadline_is_exact_and_a_long_one_at_most_a_grain_late() {
        tokio::task::LocalSet::new()
            .run_until(async {
                assert_eq!(taken(Duration::from_millis(200)).await, Duration::from_millis(200));
                for timeout in [4_000, 4_001, 4_249, 30_000, 75_123].map(Duration::from_millis) {
                    let taken = taken(timeout).await;
                    // tokio's clock counts whole milliseconds.
                    let late = taken.checked_sub(timeout).expect("never early");
                    assert!(late <= GRAIN + Duration::from_millis(2), "{timeout:?}: {late:?} late");
                }
            })
            .await;
    }

    #[test]
    fn a_thread_that_is_led_has_its_deadlines_by_the_beat_of_another() {
        let beat = Arc::new(Beat::default());
        let beating = Arc::clone(&beat);
        // A thread of its own, as it is led for as long as it lives; its own clock stands still but for the beat.
        let led = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .unwrap();
            Arc::clone(&beat).lead();
            tokio::task::LocalSet::new().block_on(&runtime, async {
                let (timeout, from) = (LONG, Instant::now());
                let waiting = tokio::task::spawn_local(Deadline::after(timeout));
                for _ in 0..LONG.as_millis() / GRAIN.as_millis() {
                    tokio::task::yield_now().await;
                    beat.wanted.notified().await;
                    assert!(!waiting.is_finished(), "{:?}", from.elapsed());
                    tokio::time::advance(GRAIN).await;
                    beat.passed.notify_waiters();
                }
                waiting.await.unwrap();
                assert!(from.elapsed() >= timeout);
            });
        });
        led.join().unwrap();
        // And whoever beats does so only when that is wanted, a grain after it was.
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (passed, from) = (beating.passed.notified(), Instant::now());
            beating.wanted.notify_one();
            tokio::select! {
                () = beating.run() => unreachable!("it has no end"),
                () = passed => assert!(from.elapsed() >= GRAIN),
            }
            tokio::select! {
                () = beating.run() => unreachable!("it has no end"),
                () = beating.passed.notified() => unreachable!("nobody wants it"),
                () = tokio::time::sleep(4 * GRAIN) => {}
            }
        });
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_set_again_ends_at_its_new_time_from_whatever_it_was() {
        let second = Duration::from_secs(1);
        tokio::task::LocalSet::new()
            .run_until(async {
                for (first, then) in [(10, 20), (20, 10), (10, 1), (1, 10), (1, 2)] {
                    let mut deadline = Deadline::after(first * second);
                    // In the list, and in tokio's wheel.
                    let early = tokio::time::timeout(second / 2, &mut deadline).await;
                    assert!(early.is_err(), "{first}");
                    let from = Instant::now();
                    deadline.again(then * second);
                    (&mut deadline).await;
                    assert_eq!(from.elapsed().as_secs(), u64::from(then), "{first}, {then}");
                    deadline.again(then * second);
                    deadline.await;
                    assert_eq!(
                        from.elapsed().as_secs(),
                        u64::from(2 * then),
                        "{first}, {then}, when it was over"
                    );
                }
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_dropped_leaves_nothing_and_wakes_nobody() {
        tokio::task::LocalSet::new()
            .run_until(async {
                for _ in 0..100 {
                    let dropped = Deadline::after(Duration::from_secs(10));
                    tokio::select! {
                        biased;
                        () = dropped => unreachable!("it is ten seconds away"),
                        () = tokio::time::sleep(Duration::from_millis(100)) => {}
                    }
                }
                LIST.with_borrow(|list| {
                    assert_eq!((list.entries.len(), list.free.len()), (1, 1), "its place is used again");
                });
                // The task that looks through the list ends with the last entry, and begins again with the next.
                tokio::time::sleep(Duration::from_secs(20)).await;
                assert!(!LIST.with_borrow(|list| list.looked_through));
                assert!(taken(Duration::from_secs(10)).await >= Duration::from_secs(10));
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn many_end_each_at_its_own_time_and_never_is_far_away() {
        tokio::task::LocalSet::new()
            .run_until(async {
                let waiting: Vec<_> =
                    (4..40).rev().map(|n| tokio::task::spawn_local(taken(Duration::from_secs(n)))).collect();
                let never = tokio::task::spawn_local(taken(Duration::MAX));
                for (n, waiting) in (4..40).rev().zip(waiting) {
                    let took = waiting.await.expect("it does not panic");
                    assert_eq!(took.as_secs(), n);
                }
                assert!(!never.is_finished());
            })
            .await;
    }
}
