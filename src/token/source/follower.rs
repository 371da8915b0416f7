//! No fetch at all: [`FollowerSource`], for a replica that lives by what the others put into their common store
//! (`role = follower`). It needs no AppSecret and no whitelisted address.

use std::time::Duration;

use super::errcode::{Class, FetchError};
use super::{Pace, Supplier, TokenSource, Want};
use crate::token::Token;

/// Nothing is fetched, so nothing has to be saved. The others renew with 300 s left or more; with less than this they
/// have missed their time, and that is to be told.
const FOLLOWER: Pace = Pace {
    ahead: Duration::from_secs(120),
    jitter: Duration::from_secs(20),
    burst: 120,
    refill: Duration::from_secs(1),
    refusal_wait: Duration::from_secs(16),
    voids_the_last: false,
    look_again: None,
};

/// What there is to know comes by itself, as news; this is how often the lack of it is looked at again.
const LOOK: Duration = Duration::from_secs(5);

/// One who never fetches.
pub struct FollowerSource;

impl TokenSource for FollowerSource {
    fn name(&self) -> &'static str {
        "follower"
    }

    fn pace(&self) -> Pace {
        FOLLOWER
    }

    fn supplier(&self) -> Supplier {
        Supplier::Store
    }

    /// Is asked when the store had nothing for too long, and says so.
    async fn fetch(&self, want: Want<'_>) -> Result<Token, FetchError> {
        let sentence = match (want.force, want.refused) {
            (true, _) => {
                "a follower never fetches (role = follower); force the refresh at a sidecar with role = fetcher"
            }
            (false, Some(_)) => {
                "WeChat refused the token and nobody fetches another: this sidecar is a follower (role = follower), and no other has put a new one into the store; run one with role = fetcher on the same store, with the same prefix and token_endpoint"
            }
            (false, None) => {
                "nobody fetches: this sidecar is a follower (role = follower), and there is no token with life left in the store; run one with role = fetcher on the same store, with the same prefix and token_endpoint"
            }
        };
        Err(FetchError {
            class: Class::Config,
            retry_after: LOOK,
            at_most: LOOK,
            ..FetchError::transient(sentence)
        })
    }
}
