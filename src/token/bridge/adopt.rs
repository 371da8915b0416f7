//! Takes a token that an app fetched for itself, where we would fetch another: [`Adopting`], a source in front of the
//! real one.
//!
//! A source, because the keeper asks its source exactly when it needs a token that neither it nor the store has, names
//! the one that was refused, and goes on with what it is brought like with any other: it stays the only writer, and
//! there is no second way in. As a store, an app's Redis would have to win or lose against ours whenever someone
//! looks, and would be looked at when nobody needs a token.
//!
//! With the classic endpoint this saves the fetch that would void the app's token, and the one with which the app
//! would answer.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::{Bridge, keys};
use crate::token::Token;
use crate::token::source::{FetchError, Pace, Supplier, TokenSource, Want};

/// The longest that looking may take, in all: calls may be waiting for the token.
const PATIENCE: Duration = Duration::from_millis(500);

/// A source that first looks for a token which an app fetched.
pub struct Adopting<S> {
    source: S,
    bridge: Option<Arc<Bridge>>,
}

impl<S: TokenSource> Adopting<S> {
    /// `source`, and before it, if there is one that adopts, `bridge`.
    pub fn new(source: S, bridge: Option<Arc<Bridge>>) -> Self {
        Self { source, bridge: bridge.filter(|bridge| bridge.adopts) }
    }
}

impl<S: TokenSource> TokenSource for Adopting<S> {
    fn name(&self) -> &'static str {
        self.source.name()
    }

    fn pace(&self) -> Pace {
        self.source.pace()
    }

    fn supplier(&self) -> Supplier {
        self.source.supplier()
    }

    async fn fetch(&self, want: Want<'_>) -> Result<Token, FetchError> {
        // Who wants a fetch for its own sake is not helped with what was fetched before; and where others fetch for us,
        // they decide.
        let may_adopt = !want.afresh && self.supplier() == Supplier::WeChat;
        if let Some(bridge) = self.bridge.as_ref().filter(|_| may_adopt) {
            // One that would be renewed at once is not worth it; and so it is never the one that is being renewed.
            let least = self.source.pace().ahead;
            if let Ok(Some(token)) = timeout(PATIENCE, bridge.find(want.refused, least)).await {
                return Ok(token);
            }
        }
        self.source.fetch(want).await
    }
}

impl Bridge {
    /// A token that an app fetched, lives for longer than `least`, and is not the `refused` one.
    async fn find(&self, refused: Option<&Token>, least: Duration) -> Option<Token> {
        let mut best: Option<Token> = None;
        for place in self.places.iter().filter(|place| place.format.is_adoptable()) {
            let (appid, format) = (&self.appid, place.format.name());
            let found = match keys::get(&self.redis, &place.key).await {
                Ok(Some(found)) => found,
                Ok(None) => continue,
                Err(error) => {
                    tracing::debug!(%appid, format, %error, "cannot look for a token that an app fetched");
                    continue;
                }
            };
            let taken = match self.take(&place.format, &found.value, found.ttl) {
                Ok(token) if Some(&token) == refused => Err("it was refused"),
                Ok(token) if token.remaining() <= least => Err("it ends soon"),
                taken => taken,
            };
            match taken {
                Ok(token) if best.as_ref().is_none_or(|best| best.expires_at() < token.expires_at()) => {
                    best = Some(token);
                }
                Ok(_) => {}
                Err(why) => tracing::debug!(%appid, format, why, "left the token of an app where it is"),
            }
        }
        if let Some(token) = &best {
            tracing::info!(
                appid = %self.appid, token = %token.fingerprint(), life_s = token.remaining().as_secs(),
                "took a token that an app fetched for itself, instead of fetching another"
            );
        }
        best
    }
}
