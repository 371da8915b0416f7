//! The corpus: hostile and broken requests and replies as data, one file a subject in `corpus/`, each with its outcome.
//!
//! A request's outcome is every reply the app gets, every byte the upstream gets, and what becomes of the connection:
//! ended, or in step, which the next call on it shows. A reply's outcome is what the app gets, how often the call was
//! sent, and whether the next call may use the connection. Each is played in one piece and in small ones.

pub(crate) mod entry;
mod replies;
mod requests;
