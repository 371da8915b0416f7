//! Which lines of a head hyper is given: [`Wanted`].
//!
//! hyper makes a name, a value and an entry in a map of every header (`perf.md`: 300 instructions and more for each),
//! and nobody looks at most of them: they go to WeChat as they came. So a line of a plain head that neither hyper nor
//! the handler reads goes by hyper. SECURITY: only where the guard has found all of the head sound by stricter rules
//! than hyper's, and never a line that says where the body ends or what becomes of the connection. The `Host` goes by it,
//! too: whoever judges it reads it in the raw head.

use std::rc::Rc;

use http::HeaderName;

use crate::syntax::Field;

/// The names of the lines that are read; all, unless it is said which.
#[derive(Clone, Debug, Default)]
pub struct Wanted(Option<Rc<Names>>);

#[derive(Debug)]
struct Names {
    names: Vec<HeaderName>,
    /// For each last five bits of a first letter, a bit for each length that there is: hardly any other name has both.
    lengths: [u64; 32],
    /// The longest head that is taken apart. A longer one is hyper's to refuse, which has to see all of it.
    max_head: usize,
}

/// The most lines of a head that is taken apart: hyper refuses more than 100.
pub(super) const MAX_LINES: usize = 100;

/// Where a name of this beginning and length is in [`Names::lengths`].
fn place(name: &[u8]) -> (usize, u32) {
    (usize::from(name.first().copied().unwrap_or_default() & 31), name.len().min(63) as u32)
}

impl Wanted {
    /// All of them.
    #[must_use]
    pub fn all() -> Self {
        Self(None)
    }

    /// Those of these names and those that hyper needs, of heads up to `max_head` bytes.
    #[must_use]
    pub fn only(names: impl IntoIterator<Item = HeaderName>, max_head: usize) -> Self {
        let names: Vec<_> = names.into_iter().collect();
        let mut lengths = [0; 32];
        for name in &names {
            let (letter, length) = place(name.as_str().as_bytes());
            lengths[letter] |= 1 << length;
        }
        Self(Some(Rc::new(Names { names, lengths, max_head })))
    }

    /// Whether heads of this size are taken apart at all.
    pub(super) fn takes_apart(&self, length: usize, lines: usize) -> bool {
        self.0.as_ref().is_some_and(|names| length <= names.max_head && lines <= MAX_LINES)
    }

    /// Whether a line of this name is read.
    pub(super) fn has(&self, field: Field, name: &[u8]) -> bool {
        match field {
            Field::Other | Field::AcceptEncoding | Field::ContentEncoding | Field::Host => {}
            // All that hyper itself looks at is known by more than its name.
            _ => return true,
        }
        let Some(only) = &self.0 else { return true };
        let (letter, length) = place(name);
        only.lengths[letter] >> length & 1 == 1
            && only.names.iter().any(|known| known.as_str().as_bytes().eq_ignore_ascii_case(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has(wanted: &Wanted, name: &str) -> bool {
        wanted.has(Field::of(name.as_bytes()), name.as_bytes())
    }

    #[test]
    fn a_name_is_wanted_in_any_case_and_what_hyper_needs_always_is() {
        let wanted = Wanted::only([HeaderName::from_static("x-mine")], 100);
        for name in ["X-Mine", "content-LENGTH", "Transfer-Encoding", "TE", "Expect", "Connection", "upgrade"]
        {
            assert!(has(&wanted, name), "{name}");
        }
        let long = "x".repeat(80);
        for name in ["X-Nine", "x-min", "Accept", "Authorization", "Host", &long] {
            assert!(!has(&wanted, name) && has(&Wanted::all(), name), "{name}");
        }
        let long = HeaderName::from_bytes(long.as_bytes()).unwrap();
        assert!(has(&Wanted::only([long.clone()], 100), long.as_str()));
        assert!(wanted.takes_apart(100, 100) && !wanted.takes_apart(101, 1) && !wanted.takes_apart(1, 101));
        assert!(!Wanted::all().takes_apart(1, 1));
    }
}
