//! The heads of requests that have passed the guard, as they came: [`Heads`] keeps those of a connection in their order,
//! and a [`RawHead`] is one of them.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;

use crate::server::framing::wanted::Wanted;
use crate::syntax::{self, Field};

/// The heads of requests that have passed and that hyper hands over one by one, as they came.
#[derive(Clone, Debug, Default)]
pub struct Heads(pub(super) Rc<RefCell<Passed>>);

#[derive(Debug, Default)]
pub(super) struct Passed {
    /// What came of the head that is read.
    pub(super) part: Vec<u8>,
    pub(super) whole: VecDeque<RawHead>,
    /// How many there were.
    pub(super) number: u64,
    /// Some of the last one's body is still to come.
    pub(super) in_body: bool,
    /// Which lines of a plain head hyper is given.
    pub(super) wanted: Wanted,
    /// Where those it is not given are in what was read last.
    pub(super) withheld: Vec<Range<usize>>,
}

/// A request's head, byte for byte, and where its lines are.
#[derive(Debug, Default)]
pub struct RawHead {
    pub(super) text: Vec<u8>,
    pub(super) lines: Vec<syntax::Line>,
    /// How many of them hyper was not given.
    pub(super) withheld: usize,
}

/// What is kept of a head's buffers for the next one: a large head is one of a kind.
const LARGEST_KEPT: usize = 4 * 1024;

thread_local! {
    /// The buffers of the last head of this worker that was done with. A head is read and written anew within one turn
    /// of its task, so that one is enough for nearly all.
    static SPARE: Cell<(Vec<u8>, Vec<syntax::Line>)> = const { Cell::new((Vec::new(), Vec::new())) };
}

impl RawHead {
    /// An empty one, with room.
    pub(super) fn new() -> Self {
        let (text, lines) = SPARE.take();
        Self { text, lines, withheld: 0 }
    }

    /// A head that was found sound.
    #[must_use]
    pub fn sound(text: &[u8]) -> Self {
        let mut head = Self::new();
        head.text.extend_from_slice(text);
        head.lines.extend(syntax::lines(&head.text));
        head
    }

    /// All of it, with the empty line at its end.
    #[must_use]
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    /// Its field lines.
    #[must_use]
    pub fn lines(&self) -> &[syntax::Line] {
        &self.lines
    }

    /// The value of each `Host`.
    pub fn hosts(&self) -> impl Iterator<Item = &[u8]> {
        let hosts = self.lines.iter().filter(|line| line.field == Field::Host);
        hosts.map(|line| line.of(&self.text).1.trim_ascii())
    }

    /// How many of them hyper has read.
    #[must_use]
    pub fn read(&self) -> usize {
        self.lines.len() - self.withheld
    }
}

impl Drop for RawHead {
    fn drop(&mut self) {
        if (1..=LARGEST_KEPT).contains(&self.text.capacity()) {
            self.text.clear();
            self.lines.clear();
            let buffers = (std::mem::take(&mut self.text), std::mem::take(&mut self.lines));
            let _ = SPARE.try_with(|spare| spare.set(buffers));
        }
    }
}

impl Heads {
    /// Of a connection whose reader wants these lines.
    #[must_use]
    pub fn of(wanted: Wanted) -> Self {
        Self(Rc::new(RefCell::new(Passed { wanted, ..Passed::default() })))
    }

    /// Whether some of the body of the request that came last is still to come.
    #[must_use]
    pub fn is_in_body(&self) -> bool {
        self.0.borrow().in_body
    }

    /// The oldest, which is that of the request hyper hands over next.
    #[must_use]
    pub fn take(&self) -> Option<RawHead> {
        self.0.borrow_mut().whole.pop_front()
    }
}
