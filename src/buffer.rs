//! Buffers that a call fills and empties: [`Buffer`] is a `Vec<u8>` whose room goes to the thread's next one.
//!
//! A call needs four of them for a moment each (the target, both heads, what is written). To get one from the allocator
//! and give it back costs 150 instructions, and more under load: glibc's cache has seven places for each size, and where
//! dozens of calls wait for their answers it is always empty or full. What is used again is in the processor's cache, too.

use std::cell::RefCell;
use std::fmt;
use std::ops::{Deref, DerefMut};

/// The most that a thread keeps.
const MOST: usize = 16;

/// The largest that is kept, in bytes: more than a small call takes with its body, and no trace of a large one.
const LARGEST: usize = 32 * 1024;

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Bytes with room. SECURITY: may hold a credential, so it does not print them.
#[derive(Default, PartialEq, Eq)]
pub struct Buffer(Vec<u8>);

impl Buffer {
    /// An empty one with room for as many bytes.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        let mut room = SPARE.with_borrow_mut(Vec::pop).unwrap_or_default();
        room.reserve(capacity);
        Self(room)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if (1..=LARGEST).contains(&self.0.capacity()) {
            let mut room = std::mem::take(&mut self.0);
            room.clear();
            // The thread may be ending.
            let _ = SPARE.try_with(|spare| {
                let mut spare = spare.borrow_mut();
                if spare.len() < MOST {
                    spare.push(room);
                }
            });
        }
    }
}

impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl Clone for Buffer {
    fn clone(&self) -> Self {
        let mut other = Self::with_capacity(self.len());
        other.extend_from_slice(self);
        other
    }
}

impl Deref for Buffer {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.0
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> Vec<usize> {
        SPARE.with_borrow(|spare| spare.iter().map(Vec::capacity).collect())
    }

    #[test]
    fn room_is_used_again_empty_and_neither_much_nor_many_are_kept() {
        let mut first = Buffer::with_capacity(100);
        first.extend_from_slice(b"secret");
        let (at, room) = (first.as_ptr(), first.capacity());
        assert_eq!(format!("{first:?}"), "Buffer(6 bytes)");
        assert_eq!(**first.clone(), *b"secret");
        drop(first);
        SPARE.with_borrow_mut(|spare| spare.retain(|room| room.as_ptr() == at));
        assert_eq!(kept(), [room]);

        let second = Buffer::with_capacity(10);
        assert!(second.is_empty() && second.as_ptr() == at);
        drop((Buffer::with_capacity(LARGEST + 1), Buffer::default(), second));
        assert_eq!(kept(), [room], "nothing of a large one, and nothing of none");
        drop((0..2 * MOST).map(|_| Buffer::with_capacity(10)).collect::<Vec<_>>());
        assert_eq!(kept().len(), MOST);
        assert!(Buffer::with_capacity(1000).capacity() >= 1000);
    }
}
