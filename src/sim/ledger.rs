//! What the simulated WeChat saw: [`Counts`], and the last requests in full ([`Seen`]).
//!
//! Both are bounded, so that a simulation may stand under load for weeks.

use std::collections::{BTreeMap, HashMap, VecDeque};

use bytes::Bytes;
use serde::Serialize;

use super::errcode::Errcode;
use super::rules::Kind;

/// How many requests are kept.
pub const SEEN: usize = 4096;
/// How many bytes of bodies are kept with them, all together.
const SEEN_BODIES: usize = 16 * 1024 * 1024;
/// How many paths are counted one by one; the rest is counted as [`OTHER_PATHS`].
const PATHS: usize = 1024;
/// What a path beyond the limit is counted as.
const OTHER_PATHS: &str = "(other)";
/// How many `x-call-id` values are followed.
const CALL_IDS: usize = 1_000_000;

/// Token fetches by what they asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Fetches {
    /// `GET /cgi-bin/token`.
    pub classic: u64,
    /// `POST /cgi-bin/stable_token`, forced or not.
    pub stable: u64,
    /// Of the stable ones, those with `force_refresh`.
    pub forced: u64,
    /// Fetches that were given a token.
    pub granted: u64,
    /// Grants whose token was made for them.
    pub fresh: u64,
    /// Fetches that a lever made fail, whatever the account.
    pub failed: u64,
    /// Fetches that were refused, by errcode.
    pub refusals: BTreeMap<i64, u64>,
}

/// How often what happened since the start, or since the counts were reset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Connections accepted.
    pub connections: u64,
    /// Requests of any kind that arrived whole.
    pub requests: u64,
    /// Token fetches.
    pub fetches: Fetches,
    /// Calls, which is every request but fetches, by path.
    pub calls: BTreeMap<String, u64>,
    /// Calls whose token or secret was good and that no lever refused.
    pub accepted: u64,
    /// Calls answered with an errcode other than 0, by errcode.
    pub refusals: BTreeMap<i64, u64>,
    /// Calls with more than one `access_token`.
    pub duplicate_tokens: u64,
    /// Calls whose token was never issued here.
    pub unknown_tokens: u64,
    /// Of those, tokens that call themselves a sidecar's or a placeholder: a placeholder that was not replaced.
    pub placeholders: u64,
    /// Requests answered with 412 because they were chunked.
    pub chunked_refused: u64,
    /// Requests whose body broke off.
    pub broken_off: u64,
    /// How often the call id seen most was sent (header `x-call-id`).
    pub max_sends_of_a_call: u64,
    /// How often the call id accepted most was accepted: above 1, a call was carried out twice.
    pub max_accepts_of_a_call: u64,
}

impl Counts {
    /// Fetches of both kinds.
    #[must_use]
    pub fn all_fetches(&self) -> u64 {
        self.fetches.classic + self.fetches.stable
    }

    /// Calls on all paths.
    #[must_use]
    pub fn all_calls(&self) -> u64 {
        self.calls.values().sum()
    }

    /// Calls on one path.
    #[must_use]
    pub fn calls_to(&self, path: &str) -> u64 {
        self.calls.get(path).copied().unwrap_or(0)
    }

    /// Calls refused with one errcode.
    #[must_use]
    pub fn refused_with(&self, errcode: i64) -> u64 {
        self.refusals.get(&errcode).copied().unwrap_or(0)
    }
}

/// A request as it came.
#[derive(Clone, Debug, Serialize)]
pub struct Seen {
    /// Counts up from 1.
    pub number: u64,
    /// The connection it came on, counting up from 1.
    pub connection: u64,
    /// Whether it came over TLS.
    pub tls: bool,
    /// The method.
    pub method: String,
    /// The request target exactly as received.
    pub target: String,
    /// The headers in order; names in lower case, a repeated name's values side by side.
    pub headers: Vec<(String, String)>,
    /// The body's length.
    pub body_length: u64,
    /// The body's SHA-256 in lower-case hex.
    pub body_sha256: String,
    /// The body's first 64 KiB.
    #[serde(skip)]
    pub body_head: Bytes,
    /// The HTTP status it was answered with; 0 when it was not answered.
    pub status: u16,
    /// The errcode it was answered with, if the reply has one.
    pub errcode: Option<i64>,
    /// The account whose token or secret it carried.
    pub appid: Option<String>,
}

impl Seen {
    /// The values of a header, by its lower-case name.
    pub fn header<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.headers.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The target without its query.
    #[must_use]
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }
}

/// The book everything is written into.
#[derive(Default)]
pub(crate) struct Ledger {
    pub(crate) counts: Counts,
    seen: VecDeque<Seen>,
    bodies: usize,
    number: u64,
    sent: HashMap<String, (u64, u64)>,
}

impl Ledger {
    /// A token fetch arrived.
    pub(crate) fn fetch(&mut self, kind: Kind, force: bool) {
        let fetches = &mut self.counts.fetches;
        match kind {
            Kind::Classic => fetches.classic += 1,
            Kind::Stable => fetches.stable += 1,
        }
        fetches.forced += u64::from(force);
    }

    /// A call arrived.
    pub(crate) fn call(&mut self, path: &str, call_id: Option<&str>) {
        let calls = &mut self.counts.calls;
        let known = calls.contains_key(path) || calls.len() < PATHS;
        *calls.entry(if known { path } else { OTHER_PATHS }.to_owned()).or_default() += 1;
        let sends = self.call_id(call_id).map_or(0, |sends| {
            sends.0 += 1;
            sends.0
        });
        self.counts.max_sends_of_a_call = self.counts.max_sends_of_a_call.max(sends);
    }

    /// A call was carried out, or refused.
    pub(crate) fn judged(&mut self, errcode: Option<Errcode>, call_id: Option<&str>) {
        match errcode {
            Some(Errcode(code)) if code != 0 => *self.counts.refusals.entry(code).or_default() += 1,
            _ => {
                self.counts.accepted += 1;
                let accepts = self.call_id(call_id).map_or(0, |sends| {
                    sends.1 += 1;
                    sends.1
                });
                self.counts.max_accepts_of_a_call = self.counts.max_accepts_of_a_call.max(accepts);
            }
        }
    }

    /// How often a call id was sent and accepted.
    pub(crate) fn sends_of(&self, call_id: &str) -> (u64, u64) {
        self.sent.get(call_id).copied().unwrap_or_default()
    }

    /// A request to remember.
    pub(crate) fn saw(&mut self, mut seen: Seen) {
        self.number += 1;
        seen.number = self.number;
        self.bodies += seen.body_head.len();
        self.seen.push_back(seen);
        while self.seen.len() > SEEN || self.bodies > SEEN_BODIES {
            let Some(oldest) = self.seen.pop_front() else { break };
            self.bodies -= oldest.body_head.len();
        }
    }

    pub(crate) fn seen(&self) -> impl DoubleEndedIterator<Item = &Seen> {
        self.seen.iter()
    }

    /// Forgets everything; connections keep their numbers.
    pub(crate) fn reset(&mut self) {
        *self = Self { number: self.number, ..Self::default() };
    }

    fn call_id(&mut self, call_id: Option<&str>) -> Option<&mut (u64, u64)> {
        let call_id = call_id?;
        if self.sent.len() >= CALL_IDS && !self.sent.contains_key(call_id) {
            return None;
        }
        Some(self.sent.entry(call_id.to_owned()).or_default())
    }
}
