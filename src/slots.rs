//! How much runs at once: [`Slots`] are so many places, and a [`Slot`] is one of them, given back on drop.
//!
//! One atomic for all workers, and no lock: who finds none free is told so, and waits elsewhere or not at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A number of places. Cheap to clone: clones share them.
#[derive(Clone, Debug)]
pub struct Slots(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    most: usize,
    used: AtomicUsize,
}

impl Slots {
    /// So many places.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self(Arc::new(Inner { most, used: AtomicUsize::new(0) }))
    }

    /// As many as anyone asks for.
    #[must_use]
    pub fn unlimited() -> Self {
        Self::new(usize::MAX)
    }

    /// How many there are.
    #[must_use]
    pub fn most(&self) -> usize {
        self.0.most
    }

    /// How many are taken now.
    #[must_use]
    pub fn used(&self) -> usize {
        self.0.used.load(Ordering::Relaxed)
    }

    /// A place, if one is free.
    #[must_use]
    pub fn take(&self) -> Option<Slot> {
        // In one step: whoever added first and then looked would for that moment hold a place that somebody else, coming
        // when one has just become free, would then not find.
        let Inner { most, used } = &*self.0;
        let taken =
            used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| (used < *most).then(|| used + 1));
        taken.is_ok().then(|| Slot(self.clone()))
    }
}

/// A place that is taken.
#[derive(Debug)]
pub struct Slot(Slots);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.0.used.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_free_again_when_it_is_dropped_and_never_too_many_are_taken() {
        let slots = Slots::new(2);
        let (one, two) = (slots.take().unwrap(), slots.clone().take().unwrap());
        assert!(slots.take().is_none());
        assert_eq!(slots.used(), 2, "who found none has taken none");
        drop(one);
        assert!(slots.take().is_some());
        drop(two);
        assert_eq!(slots.used(), 0);
        assert!(Slots::new(0).take().is_none());
    }
}
