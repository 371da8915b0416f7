//! What several threads share without a lock, under threads that really run at the same time, for many thousand rounds.
//!
//! Each of these is one atomic or one pointer, changed by one operation; so there is no interleaving in which half of a
//! change is seen, and that is what is tested here. Whatever takes more than one operation has one writer (a keeper's
//! worker, the control thread, a worker's own counters) or a lock.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use http::Method;
use tokio::time::Instant;
use wechat_sidecar::clients::Keyring;
use wechat_sidecar::credentials::AppId;
use wechat_sidecar::metrics::Hub;
use wechat_sidecar::rates::{Rate, Rates};
use wechat_sidecar::slots::Slots;
use wechat_sidecar::token::Token;
use wechat_sidecar::token::keeper::{Refresh, Refusal, Said, TokenKeeper};
use wechat_sidecar::token::source::{FetchError, Pace, TokenSource, Want};
use wechat_sidecar::token::store::MemoryStore;

/// Longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(60);

const THREADS: usize = 6;
const ROUNDS: usize = 50_000;

fn appid() -> AppId {
    AppId::parse("wx0123456789abcdef").unwrap()
}

/// Has so many threads do this at the same time, each told its number, and gives what they found.
fn at_once<T: Send>(what: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let barrier = Barrier::new(THREADS);
    let (what, barrier) = (&what, &barrier);
    thread::scope(|scope| {
        let run = |number| {
            move || {
                barrier.wait();
                what(number)
            }
        };
        let threads: Vec<_> = (0..THREADS).map(|number| scope.spawn(run(number))).collect();
        threads.into_iter().map(|thread| thread.join().expect("it does not fail")).collect()
    })
}

#[test]
fn never_are_more_places_taken_than_there_are_and_every_one_comes_back() {
    for most in [1, 2, THREADS - 1] {
        let (slots, held) = (Slots::new(most), AtomicUsize::new(0));
        let taken = at_once(|_| {
            let mut taken = 0;
            for round in 0..ROUNDS {
                let Some(slot) = slots.take() else { continue };
                let others = held.fetch_add(1, Ordering::SeqCst);
                assert!(others < most, "{others} of {most} places were taken already");
                if round % 64 == 0 {
                    thread::yield_now();
                }
                held.fetch_sub(1, Ordering::SeqCst);
                drop(slot);
                taken += 1;
            }
            taken
        });
        assert_eq!(slots.used(), 0, "{taken:?}");
        let again: Vec<_> = (0..most).map_while(|_| slots.take()).collect();
        assert!(again.len() == most && slots.take().is_none(), "all of them are free again");
    }
}

#[test]
fn of_those_who_look_when_a_place_comes_free_one_finds_it() {
    let slots = Slots::new(1);
    let (round, looked, settled) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let found = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for number in 1..=ROUNDS {
                until(|| round.load(Ordering::SeqCst) == number);
                let slot = slots.take();
                found.store(slot.is_some(), Ordering::SeqCst);
                looked.store(number, Ordering::SeqCst);
                until(|| settled.load(Ordering::SeqCst) == number);
                drop(slot);
                until(|| round.load(Ordering::SeqCst) > number);
            }
        });
        let mut missed = 0;
        for number in 1..=ROUNDS {
            let held = until_some(|| slots.take());
            round.store(number, Ordering::SeqCst);
            drop(held);
            let mine = slots.take();
            until(|| looked.load(Ordering::SeqCst) == number);
            // Who looks before it is free finds none; then the other does.
            missed += usize::from(mine.is_none() && !found.load(Ordering::SeqCst));
            drop(mine);
            settled.store(number, Ordering::SeqCst);
        }
        round.store(ROUNDS + 1, Ordering::SeqCst);
        assert_eq!(missed, 0, "times it was free, and nobody found it");
    });
    assert_eq!(slots.used(), 0);
}

fn until(is_so: impl Fn() -> bool) {
    let _: () = until_some(|| is_so().then_some(()));
}

fn until_some<T>(found: impl Fn() -> Option<T>) -> T {
    loop {
        for _ in 0..100 {
            if let Some(found) = found() {
                return found;
            }
            std::hint::spin_loop();
        }
        thread::yield_now();
    }
}

#[test]
fn a_limit_on_a_path_lets_through_as_many_as_it_says_whoever_asks_at_the_same_time() {
    // A tenth of them may come at once, the next a quarter of an hour later.
    let rates = Rates::new(Rate::parse_list("10000/d /a/**").unwrap());
    let went = at_once(|_| {
        (0..ROUNDS).filter(|_| rates.turn(&Method::POST, "/a/b", Duration::ZERO).is_ok()).count()
    });
    let all: usize = went.iter().sum();
    // 9.6 s a call: this takes no minute.
    assert!((1000..=1006).contains(&all), "{all}: {went:?}");
}

/// WeChat with one token at a time, which dies when it is told to.
struct OneToken {
    number: AtomicU64,
    fetches: AtomicU64,
}

impl TokenSource for OneToken {
    fn name(&self) -> &'static str {
        "one"
    }

    fn pace(&self) -> Pace {
        Pace {
            ahead: Duration::from_secs(300),
            jitter: Duration::ZERO,
            burst: u32::MAX,
            refill: Duration::from_millis(1),
            refusal_wait: Duration::from_secs(1),
            voids_the_last: false,
            look_again: None,
        }
    }

    async fn fetch(&self, _: Want<'_>) -> Result<Token, FetchError> {
        self.fetches.fetch_add(1, Ordering::SeqCst);
        let value = format!("TOKEN-{}", self.number.load(Ordering::SeqCst));
        Ok(Token::new(&value, Instant::now(), Duration::from_secs(7200)).expect("a token"))
    }
}

#[test]
fn a_token_that_dies_under_calls_of_many_threads_is_one_fetch_and_all_of_them_get_the_next_one() {
    const DEATHS: u64 = 500;
    let source = Arc::new(OneToken { number: AtomicU64::new(0), fetches: AtomicU64::new(0) });
    let (keeper, worker) = TokenKeeper::new(appid(), Arc::clone(&source), MemoryStore::new());
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let control = thread::spawn(move || runtime().block_on(worker.run()));
    let calls = at_once(|_| {
        let keeper = keeper.clone();
        runtime().block_on(async {
            let (mut refused, mut number) = (0_u64, 0);
            while number < DEATHS {
                let mut token = keeper.token(PATIENCE).await.expect("a token");
                let alive = source.number.load(Ordering::SeqCst);
                if token.expose() != format!("TOKEN-{alive}") {
                    refused += 1;
                    let refusal = Refusal { said: Said::Errcode(42001), chronic: false };
                    let Refresh::Another(another) = keeper.refresh(&token, refusal, PATIENCE).await else {
                        panic!("no other token than {alive}");
                    };
                    assert_ne!(another, token, "it was refused");
                    token = another;
                }
                token.mark_accepted();
                number = token.expose()["TOKEN-".len()..].parse().unwrap();
                // Whoever has the one that lives lets it die, once.
                let _ =
                    source.number.compare_exchange(number, number + 1, Ordering::SeqCst, Ordering::SeqCst);
            }
            refused
        })
    });
    drop(keeper);
    control.join().expect("the worker ends with its last keeper");
    let fetches = source.fetches.load(Ordering::SeqCst);
    let deaths = source.number.load(Ordering::SeqCst);
    assert!(fetches <= deaths + 1, "{fetches} fetches for {deaths} tokens that died under {calls:?} calls");
}

#[test]
fn a_call_sees_one_whole_file_of_client_keys_while_another_one_is_taken() {
    const KEYS: [&str; 2] = ["key-0123456789abcdef", "key-fedcba9876543210"];
    // Of two lengths, so that neither is taken for the other.
    let files =
        [format!("{} wx0123456789abcdef\n", KEYS[0]), format!("{} wx0123456789abcdef # other\n", KEYS[1])];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    std::fs::write(&path, &files[0]).unwrap();
    let keyring = Keyring::open(path.clone(), vec![appid()]).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = || {
            while !done.load(Ordering::Relaxed) {
                let clients = keyring.clients();
                let knows = KEYS.map(|key| clients.by_key(key).is_some());
                assert_ne!(knows[0], knows[1], "one of the two files, whole");
            }
        };
        for _ in 0..2 {
            scope.spawn(reader);
        }
        for round in 0..200 {
            let next = folder.path().join("next");
            std::fs::write(&next, &files[(round + 1) % 2]).unwrap();
            std::fs::rename(&next, &path).unwrap();
            keyring.look();
            assert!(keyring.clients().by_key(KEYS[(round + 1) % 2]).is_some(), "it was taken");
            thread::yield_now();
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn every_workers_counters_are_read_whole_while_they_are_written() {
    let hub = Hub::new([appid()]);
    let done = AtomicUsize::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut last = 0;
            while done.load(Ordering::SeqCst) < THREADS {
                let totals = hub.totals();
                assert!(totals.accepted >= last, "{} after {last}", totals.accepted);
                last = totals.accepted;
            }
        });
        scope.spawn(|| {
            at_once(|_| {
                let tally = hub.tally();
                for _ in 0..ROUNDS {
                    tally.connection_opened();
                    tally.connection_closed();
                }
                done.fetch_add(1, Ordering::SeqCst);
            });
        });
    });
    assert_eq!((hub.totals().accepted, hub.totals().open()), ((THREADS * ROUNDS) as u64, 0));
}
