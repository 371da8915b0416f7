//! What happens when: the [`Schedule`] of a seed, as data, so that it can be printed.

use std::fmt;

use super::super::*;
use super::store::{Lost, Mood};
use super::wechat::Network;

/// How long things go wrong.
const FAULTS: u64 = 900;

/// How long everything may take to settle afterwards: a fetch that failed is tried again within six minutes...
const CALM: Duration = secs(400);

/// ...but where a fetch voids the token before it, that one works for five more minutes, and a breaker that closed over
/// the next one waits for as long.
const CALM_OF_CLASSIC: Duration = secs(1000);

/// One thing that happens.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// From now on fetches fare so.
    Network(Network),
    /// From now on the store is so, for all.
    Store(Mood),
    /// One replica loses, or finds, its way to the store.
    Cut(usize, bool),
    /// The store forgets.
    Loses(Lost),
    /// Someone else fetches: the token dies at once, or in five minutes.
    Rotate {
        at_once: bool,
    },
    Crash(usize),
    Start(usize),
    /// One path is refused whatever the token.
    Odd(bool),
}

/// All that happens to one world.
#[derive(Clone)]
pub(super) struct Schedule {
    pub(super) seed: u64,
    pub(super) replicas: usize,
    pub(super) classic: bool,
    /// The first replica never fetches.
    pub(super) follower: bool,
    pub(super) life: Duration,
    /// How long it may take to settle.
    pub(super) calm: Duration,
    pub(super) events: Vec<(Duration, Event)>,
}

impl Schedule {
    pub(super) fn of(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let replicas = rng.usize(1..=5);
        let classic = rng.bool();
        let life = secs([7200, 7200, 1200, 700, 330, 90][rng.usize(..6)]);
        let mut events = Vec::new();
        for _ in 0..rng.usize(1..25) {
            let at = Duration::from_millis(rng.u64(..FAULTS * 1000));
            let until = at + Duration::from_millis(rng.u64(1..120_000));
            let number = rng.usize(..replicas);
            let (event, end) = match rng.u8(..9) {
                0 | 1 => {
                    let all = [
                        Network::Slow,
                        Network::Failing,
                        Network::Hanging,
                        Network::LosesReplies,
                        Network::OverQuota,
                    ];
                    (Event::Network(all[rng.usize(..all.len())]), Some(Event::Network(Network::Well)))
                }
                2 => {
                    let all = [Mood::Down, Mood::Hanging, Mood::Slow, Mood::Forgetful];
                    (Event::Store(all[rng.usize(..all.len())]), Some(Event::Store(Mood::Well)))
                }
                3 => (Event::Cut(number, true), Some(Event::Cut(number, false))),
                4 => (Event::Loses(if rng.bool() { Lost::All } else { Lost::TheLast }), None),
                5 | 6 => (Event::Rotate { at_once: rng.u8(..3) > 0 }, None),
                7 => (Event::Crash(number), Some(Event::Start(number))),
                _ => (Event::Odd(true), Some(Event::Odd(false))),
            };
            events.push((at, event));
            events.extend(end.map(|end| (until.min(secs(FAULTS)), end)));
        }
        events.sort_by_key(|&(at, _)| at);
        // Whatever overlapped: now it is over.
        let over = [Event::Network(Network::Well), Event::Store(Mood::Well), Event::Odd(false)];
        events.extend(over.map(|event| (secs(FAULTS), event)));
        for number in 0..replicas {
            events.push((secs(FAULTS), Event::Cut(number, false)));
            events.push((secs(FAULTS), Event::Start(number)));
        }
        let calm = if classic { CALM_OF_CLASSIC } else { CALM };
        Self { seed, calm, replicas, classic, follower: rng.u8(..5) == 0, life, events }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, replicas, classic, follower, life, .. } = self;
        writeln!(
            f,
            "seed {seed}: {replicas} replicas, classic {classic}, follower {follower}, life {life:?}"
        )?;
        self.events.iter().try_for_each(|(at, event)| writeln!(f, "{:9.3} {event:?}", at.as_secs_f64()))
    }
}
