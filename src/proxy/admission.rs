//! How much goes on at once: [`Admission`] gives a call a [`Place`] among all calls and among its account's, makes it
//! wait a little while there is none, and turns it away when that would be too long or too many wait already.
//!
//! A call's turn by its path's rate comes first: waiting for it takes up no place. Nothing here takes a lock; who waits is
//! woken by the next call of the same worker that ends, and looks by itself for places that other workers free.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use http::Method;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::account::Account;
use crate::error::{Cause, Failure};
use crate::policy::shown;
use crate::slots::{Slot, Slots};

/// How much may go on at once, in the process.
#[derive(Clone, Debug)]
pub struct Config {
    /// Connections of apps.
    pub max_connections: usize,
    /// Calls under way.
    pub max_calls: usize,
    /// Calls that wait for a place.
    pub queue_length: usize,
    /// How long they wait.
    pub queue_wait: Duration,
    /// How long a call waits for its turn by `rates`.
    pub rate_wait: Duration,
}

/// The places that all workers share. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Capacity {
    connections: Slots,
    calls: Slots,
    queue: Slots,
}

impl Capacity {
    /// As many places as this says.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self {
            connections: Slots::new(config.max_connections),
            calls: Slots::new(config.max_calls),
            queue: Slots::new(config.queue_length),
        }
    }

    /// Calls under way, and calls that wait.
    #[must_use]
    pub fn used(&self) -> (usize, usize) {
        (self.calls.used(), self.queue.used())
    }
}

/// One worker's door.
#[derive(Debug)]
pub struct Admission {
    config: Config,
    capacity: Capacity,
    waiting: Rc<Waiting>,
}

/// The calls of this worker that wait.
#[derive(Debug, Default)]
struct Waiting {
    freed: Notify,
    number: Cell<usize>,
}

/// How often a waiting call looks whether another worker has freed a place.
const LOOK: Duration = Duration::from_millis(20);

/// A call's place, among all and among its account's. Given back on drop, when the reply has gone.
#[derive(Debug)]
pub struct Place {
    /// In the order in which they are given back.
    slots: Option<(Slot, Slot)>,
    waiting: Rc<Waiting>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.slots = None;
        if self.waiting.number.get() > 0 {
            self.waiting.freed.notify_one();
        }
    }
}

impl Admission {
    /// A worker's door to the places that all share.
    #[must_use]
    pub fn new(config: Config, capacity: Capacity) -> Self {
        Self { config, capacity, waiting: Rc::default() }
    }

    /// A place for one more connection.
    ///
    /// # Errors
    /// There are as many as there may be.
    pub fn connection(&self) -> Result<Slot, Failure> {
        self.capacity.connections.take().ok_or_else(|| {
            let what = format!(
                "there are {} connections, and max_connections allows no more; nothing was sent. Try again in a moment, and let the app keep its connections; if this stays, raise the limit",
                self.config.max_connections
            );
            Failure::new(Cause::Overloaded, what).retry_after(Duration::from_secs(1))
        })
    }

    /// Waits for the call's turn, and for a place.
    ///
    /// # Errors
    /// The path is called too often, or too much goes on.
    pub async fn enter(&self, account: &Account, method: &Method, path: &str) -> Result<Place, Failure> {
        let turn = account.terms().rates.turn(method, path, self.config.rate_wait).map_err(|soon| {
            let what = format!(
                "{method} {} is called more often than its limit in rates ({}) says; nothing was sent. Call it less often, or raise the limit if WeChat's own is higher",
                shown(path), soon.limit
            );
            Failure::new(Cause::RateLimited, what).retry_after(soon.after)
        })?;
        if !turn.is_zero() {
            tokio::time::sleep(turn).await;
        }
        match self.place(account) {
            Ok(place) => Ok(place),
            // Boxed, as it is rare: what waits in here is moved about with every call.
            Err(_) => Box::pin(self.wait(account)).await,
        }
    }

    async fn wait(&self, account: &Account) -> Result<Place, Failure> {
        let full = |full: Full| {
            let what = match full {
                Full::All => {
                    format!("{} calls are under way, and max_calls allows no more", self.config.max_calls)
                }
                Full::Account => format!(
                    "{} calls are under way as {}, and max_account_calls allows no more",
                    account.terms().calls.most(),
                    account.appid()
                ),
            };
            let what = format!(
                "{what}; nothing was sent. Try again in a moment; if this stays, WeChat is slow, or the limit is too low"
            );
            Failure::new(Cause::Overloaded, what).retry_after(Duration::from_secs(1))
        };
        let Some(_queued) = self.capacity.queue.take() else {
            return self.place(account).map_err(full);
        };
        let _waits = Waits::new(&self.waiting);
        let until = Instant::now() + self.config.queue_wait;
        loop {
            let look = until.min(Instant::now() + LOOK);
            // Asked for before the look, so that a place that is freed in between is not missed.
            let freed = self.waiting.freed.notified();
            match self.place(account) {
                Ok(place) => return Ok(place),
                Err(why) if Instant::now() >= until => return Err(full(why)),
                Err(_) => {
                    let _ = tokio::time::timeout_at(look, freed).await;
                }
            }
        }
    }

    fn place(&self, account: &Account) -> Result<Place, Full> {
        let own = account.terms().calls.take().ok_or(Full::Account)?;
        let one = self.capacity.calls.take().ok_or(Full::All)?;
        Ok(Place { slots: Some((one, own)), waiting: Rc::clone(&self.waiting) })
    }
}

/// Which places are all taken.
enum Full {
    All,
    Account,
}

/// Counts one that waits for as long as it lives.
struct Waits<'a>(&'a Waiting);

impl<'a> Waits<'a> {
    fn new(waiting: &'a Waiting) -> Self {
        waiting.number.set(waiting.number.get() + 1);
        Self(waiting)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.number.set(self.0.number.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::{Terms, idle};

    fn config(max_calls: usize, queue_length: usize) -> Config {
        let (queue_wait, rate_wait) = (Duration::from_secs(1), Duration::from_secs(1));
        Config { max_connections: 1, max_calls, queue_length, queue_wait, rate_wait }
    }

    fn door(config: Config) -> Admission {
        let capacity = Capacity::new(&config);
        Admission::new(config, capacity)
    }

    async fn enter(door: &Admission, account: &Account) -> Result<Place, Cause> {
        door.enter(account, &Method::GET, "/cgi-bin/x").await.map_err(|failure| {
            assert!(failure.retry_after.is_some());
            failure.cause
        })
    }

    #[tokio::test(start_paused = true)]
    async fn who_finds_no_place_waits_for_one_and_not_for_ever() {
        let (door, account) = (door(config(1, 1)), idle("wx1", "12345678"));
        let first = enter(&door, &account).await.unwrap();
        let began = Instant::now();
        let (waited, refused) = tokio::join!(enter(&door, &account), async {
            tokio::task::yield_now().await;
            enter(&door, &account).await
        });
        assert_eq!(refused.map(drop), Err(Cause::Overloaded), "the queue is full: told at once");
        assert_eq!(waited.map(drop), Err(Cause::Overloaded));
        assert_eq!(began.elapsed(), Duration::from_secs(1));
        let (waited, ()) = tokio::join!(enter(&door, &account), async {
            tokio::time::sleep(Duration::from_millis(7)).await;
            drop(first);
        });
        assert_eq!(door.capacity.used(), (1, 0));
        drop(waited.unwrap());
        assert_eq!(door.capacity.used(), (0, 0));
        assert_eq!(began.elapsed(), Duration::from_millis(1007), "woken by the call that ended");
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_that_another_worker_frees_is_found_soon() {
        let config = config(1, 10);
        let capacity = Capacity::new(&config);
        let account = idle("wx1", "12345678");
        let doors = [0; 2].map(|_| Admission::new(config.clone(), capacity.clone()));
        let first = enter(&doors[0], &account).await.unwrap();
        let began = Instant::now();
        let (second, ()) = tokio::join!(enter(&doors[1], &account), async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            drop(first);
        });
        assert!(second.is_ok() && began.elapsed() <= LOOK);
    }

    #[tokio::test(start_paused = true)]
    async fn one_account_at_its_limit_leaves_the_others_theirs() {
        let door = door(config(10, 0));
        let few = idle("wx1", "12345678").on(Terms { calls: Slots::new(1), ..Terms::default() });
        let _one = enter(&door, &few).await.unwrap();
        assert_eq!(enter(&door, &few).await.map(drop), Err(Cause::Overloaded));
        assert!(enter(&door, &idle("wx2", "12345678")).await.is_ok());
        assert_eq!(door.capacity.used().0, 1, "who was turned away has taken no place");
    }
}
