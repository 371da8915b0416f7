//! The AppSecret that fetches are made with, and one that is to take its place: [`SecretSlot`]. A new one is taken when
//! a fetch has proved it, and not before; until then the old one goes on.

use std::sync::{PoisonError, RwLock};

use crate::credentials::Secret;

pub(super) struct SecretSlot(RwLock<Held>);

struct Held {
    current: Secret,
    proposed: Option<Secret>,
}

impl SecretSlot {
    pub(super) fn new(current: Secret) -> Self {
        Self(RwLock::new(Held { current, proposed: None }))
    }

    /// The secret for one fetch: the one in force, or, for the fetch that is to prove it, the proposed one.
    pub(super) fn get(&self, proving: bool) -> Secret {
        let held = self.0.read().unwrap_or_else(PoisonError::into_inner);
        held.proposed.as_ref().filter(|_| proving).unwrap_or(&held.current).clone()
    }

    /// Has the next fetch that is made to prove a secret prove this one. `None` takes the proposal back.
    pub(super) fn propose(&self, secret: Option<Secret>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).proposed = secret;
    }

    /// A fetch with this secret was answered with a token.
    pub(super) fn proved(&self, secret: &Secret) {
        let mut held = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(proposed) = held.proposed.take_if(|proposed| proposed == secret) {
            held.current = proposed;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proposed_secret_is_in_force_when_it_is_proved_and_not_before() {
        let secret = |text| Secret::parse(text).unwrap();
        let slot = SecretSlot::new(secret("old"));
        assert_eq!(slot.get(true).expose(), "old", "there is none to prove");
        slot.propose(Some(secret("new")));
        assert_eq!((slot.get(false).expose(), slot.get(true).expose()), ("old", "new"));
        slot.proved(&secret("old"));
        assert_eq!(slot.get(false).expose(), "old", "a fetch with the old one proves nothing");
        slot.propose(None);
        slot.proved(&secret("new"));
        assert_eq!(slot.get(true).expose(), "old", "it was taken back");
        slot.propose(Some(secret("new")));
        slot.proved(&secret("new"));
        assert_eq!(slot.get(false).expose(), "new");
    }
}
