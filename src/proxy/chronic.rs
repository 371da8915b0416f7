//! Which paths are refused whatever token they carry: [`Chronic`] remembers those whose replay was refused, too.
//!
//! An interface that the account has no right to may answer 40001 for ever. A fetch does not help it, and where every
//! fetch voids the last token it harms all others; so its refusals wait for a breaker (`token/keeper/pacing.rs`). A
//! refusal on any other path is news, and is cured at once.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::credentials::AppId;

/// Paths that are remembered, per worker. An app that is refused on more of them has a larger trouble, which the
/// budget on fetches bounds.
const MOST: usize = 64;

/// The paths of one worker whose refusals no new token has cured, the latest last.
#[derive(Debug, Default)]
pub struct Chronic(RefCell<VecDeque<u64>>);

impl Chronic {
    /// Whether this path's last replay was refused.
    #[must_use]
    pub fn has(&self, appid: &AppId, path: &str) -> bool {
        let paths = self.0.borrow();
        !paths.is_empty() && paths.contains(&name(appid, path))
    }

    /// A new token did not help.
    pub fn add(&self, appid: &AppId, path: &str) {
        let name = name(appid, path);
        let mut paths = self.0.borrow_mut();
        paths.retain(|&path| path != name);
        if paths.len() == MOST {
            paths.pop_front();
        }
        paths.push_back(name);
    }

    /// WeChat took a token here.
    pub fn remove(&self, appid: &AppId, path: &str) {
        let mut paths = self.0.borrow_mut();
        if !paths.is_empty() {
            let name = name(appid, path);
            paths.retain(|&path| path != name);
        }
    }
}

fn name(appid: &AppId, path: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (appid, path).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_chronic_from_a_refused_replay_to_the_next_success_and_the_list_is_short() {
        let chronic = Chronic::default();
        let (ours, other) = (AppId::parse("wx1").unwrap(), AppId::parse("wx2").unwrap());
        chronic.add(&ours, "/a");
        assert!(chronic.has(&ours, "/a") && !chronic.has(&other, "/a") && !chronic.has(&ours, "/b"));
        chronic.remove(&ours, "/a");
        assert!(!chronic.has(&ours, "/a"));
        for n in 0..1000 {
            chronic.add(&ours, "/again");
            chronic.add(&ours, &format!("/{n}"));
        }
        assert!(chronic.has(&ours, "/again") && chronic.has(&ours, "/999") && !chronic.has(&ours, "/0"));
        assert_eq!(chronic.0.borrow().len(), MOST);
    }
}
