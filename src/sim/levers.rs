//! What a test makes WeChat do wrong: the levers, and which of them a request meets.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::Barrier;

use super::errcode::Errcode;

/// As `times`: until the levers are reset.
pub const FOREVER: u32 = u32::MAX;

/// How a token fetch fails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FetchFailure {
    /// HTTP 200 with this errcode.
    Errcode(i64),
    /// This HTTP status and an HTML page, as a gateway answers.
    Status(u16),
    /// The connection closes without an answer.
    Drop,
    /// No answer ever comes.
    Hang,
    /// HTTP 200 with something that is no JSON.
    Garbage,
    /// HTTP 200 with an empty body.
    Empty,
    /// HTTP 200 with exactly this body.
    Body(String),
}

/// When a connection is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DropWhen {
    /// After the request was read and judged, before any byte of the reply.
    BeforeReply,
    /// After half of the reply's body.
    MidReply,
}

/// A reply a test wrote itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Canned {
    /// The body, as it is.
    pub body: String,
    /// The HTTP status.
    pub status: u16,
    /// The content type.
    pub content_type: String,
}

impl Default for Canned {
    fn default() -> Self {
        let body = r#"{"errcode":-1,"errmsg":"system error"}"#.to_owned();
        Self { body, status: 200, content_type: super::message::JSON_ENCODING.to_owned() }
    }
}

/// How the refusal of a token is written. WeChat keeps to none of them (`wechat-api.md` 3.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalShape {
    /// `{"errcode":40001,"errmsg":"..."}`
    #[default]
    Plain,
    /// The code is a string: `{"errcode":"40001",...}`
    String,
    /// The code comes last: `{"ip_list":[],"errmsg":"...","errcode":40001}`
    Last,
    /// White space everywhere, and a line feed before the brace.
    Spaced,
    /// Not strict JSON: a raw control character in the text.
    Control,
    /// Inside `base_resp`, as device interfaces have it. No token refusal at the top level.
    Nested,
}

/// What `expires_in` a fetch is told instead of the truth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpiresIn {
    /// Not at all.
    Absent,
    /// This JSON value, sensible or not.
    Value(Value),
}

#[derive(Clone, Debug)]
enum Effect {
    Delay(Duration),
    Drop(DropWhen),
    Canned(Canned),
    Refuse(Errcode),
    Gather(Arc<Barrier>),
}

#[derive(Debug)]
struct CallLever {
    prefix: String,
    effect: Effect,
    left: u32,
}

/// What a business call meets.
#[derive(Clone, Debug, Default)]
pub(crate) struct CallPlan {
    pub(crate) delay: Duration,
    pub(crate) drop: Option<DropWhen>,
    pub(crate) canned: Option<Canned>,
    pub(crate) refuse: Option<Errcode>,
    pub(crate) gather: Option<Arc<Barrier>>,
}

/// Every lever's position.
#[derive(Debug)]
pub(crate) struct Levers {
    failures: VecDeque<(FetchFailure, u32)>,
    calls: Vec<CallLever>,
    pub(crate) fetch_delay: Duration,
    pub(crate) expires_in: Option<ExpiresIn>,
    pub(crate) shape: RefusalShape,
    pub(crate) caller_ip: String,
}

impl Default for Levers {
    fn default() -> Self {
        Self {
            failures: VecDeque::new(),
            calls: Vec::new(),
            fetch_delay: Duration::ZERO,
            expires_in: None,
            shape: RefusalShape::Plain,
            // The address in the captured sample (`wechat-api.md` 1), which is surely not the test's own.
            caller_ip: "101.45.43.1".to_owned(),
        }
    }
}

impl Levers {
    pub(crate) fn fail_fetches(&mut self, failure: FetchFailure, times: u32) {
        if times > 0 {
            self.failures.push_back((failure, times));
        }
    }

    /// How the next fetch fails, if it does.
    pub(crate) fn next_failure(&mut self) -> Option<FetchFailure> {
        let (failure, left) = self.failures.front_mut()?;
        let failure = failure.clone();
        if spend(left) {
            self.failures.pop_front();
        }
        Some(failure)
    }

    /// A delay stays; a new one for the same prefix takes its place, and zero removes it.
    pub(crate) fn delay(&mut self, prefix: &str, delay: Duration) {
        self.calls.retain(|lever| !(lever.prefix == prefix && matches!(lever.effect, Effect::Delay(_))));
        if !delay.is_zero() {
            self.add(prefix, Effect::Delay(delay), FOREVER);
        }
    }

    pub(crate) fn drop_connection(&mut self, prefix: &str, when: DropWhen, times: u32) {
        self.add(prefix, Effect::Drop(when), times);
    }

    pub(crate) fn fail_calls(&mut self, prefix: &str, canned: Canned, times: u32) {
        self.add(prefix, Effect::Canned(canned), times);
    }

    pub(crate) fn always_refuse(&mut self, prefix: &str, errcode: Errcode) {
        self.add(prefix, Effect::Refuse(errcode), FOREVER);
    }

    /// The next `count` calls wait for each other and are then judged together.
    pub(crate) fn gather(&mut self, prefix: &str, count: u32) {
        let barrier = Arc::new(Barrier::new(usize::try_from(count).unwrap_or(1).max(1)));
        self.add(prefix, Effect::Gather(barrier), count);
    }

    fn add(&mut self, prefix: &str, effect: Effect, times: u32) {
        if times > 0 {
            self.calls.push(CallLever { prefix: prefix.to_owned(), effect, left: times });
        }
    }

    /// What a call meets: of each sort of lever the oldest whose prefix fits. Only what is used is used up.
    pub(crate) fn plan(&mut self, path: &str) -> CallPlan {
        let mut plan = CallPlan::default();
        let mut delayed = false;
        self.calls.retain_mut(|lever| {
            if !path.starts_with(&lever.prefix) {
                return true;
            }
            let used = match &lever.effect {
                Effect::Delay(delay) => {
                    let first = !std::mem::replace(&mut delayed, true);
                    plan.delay = if first { *delay } else { plan.delay };
                    first
                }
                Effect::Drop(when) => plan.drop.is_none() && plan.drop.replace(*when).is_none(),
                Effect::Canned(canned) => {
                    plan.canned.is_none() && plan.canned.replace(canned.clone()).is_none()
                }
                Effect::Refuse(errcode) => plan.refuse.is_none() && plan.refuse.replace(*errcode).is_none(),
                Effect::Gather(barrier) => {
                    plan.gather.is_none() && plan.gather.replace(Arc::clone(barrier)).is_none()
                }
            };
            !(used && spend(&mut lever.left))
        });
        plan
    }

    /// What is set, for people.
    pub(crate) fn shown(&self) -> Value {
        let failures: Vec<Value> =
            self.failures.iter().map(|(how, left)| serde_json::json!({"how": how, "times": left})).collect();
        let calls: Vec<Value> = self
            .calls
            .iter()
            .map(|lever| {
                let effect =
                    format!("{:?}", lever.effect).split([' ', '{', '(']).next().map(str::to_lowercase);
                serde_json::json!({"prefix": lever.prefix, "effect": effect, "times": lever.left})
            })
            .collect();
        serde_json::json!({
            "fetch_failures": failures,
            "calls": calls,
            "fetch_delay_ms": u64::try_from(self.fetch_delay.as_millis()).unwrap_or(u64::MAX),
            "expires_in": self.expires_in,
            "refusal_shape": self.shape,
        })
    }
}

/// One use less; true when that was the last.
fn spend(left: &mut u32) -> bool {
    if *left != FOREVER {
        *left = left.saturating_sub(1);
    }
    *left == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_come_in_the_order_they_were_set_and_as_often() {
        let mut levers = Levers::default();
        levers.fail_fetches(FetchFailure::Errcode(-1), 2);
        levers.fail_fetches(FetchFailure::Drop, 1);
        levers.fail_fetches(FetchFailure::Empty, 0);
        let seen: Vec<_> = std::iter::from_fn(|| levers.next_failure()).collect();
        let busy = FetchFailure::Errcode(-1);
        assert_eq!(seen, [busy.clone(), busy, FetchFailure::Drop]);
        levers.fail_fetches(FetchFailure::Hang, FOREVER);
        assert!((0..100).all(|_| levers.next_failure() == Some(FetchFailure::Hang)));
    }

    #[test]
    fn a_lever_moves_only_the_paths_it_names_and_wears_out() {
        let mut levers = Levers::default();
        levers.drop_connection("/cgi-bin/a", DropWhen::MidReply, 1);
        levers.always_refuse("/wxa", Errcode::NOT_LATEST);
        levers.delay("/", Duration::from_secs(1));
        levers.delay("/", Duration::from_secs(2));
        assert!(levers.plan("/cgi-bin/b").drop.is_none());
        let plan = levers.plan("/cgi-bin/ab");
        assert_eq!((plan.drop, plan.delay), (Some(DropWhen::MidReply), Duration::from_secs(2)));
        assert!(levers.plan("/cgi-bin/ab").drop.is_none());
        assert_eq!(levers.plan("/wxa/x").refuse, Some(Errcode::NOT_LATEST));
        levers.delay("/", Duration::ZERO);
        assert_eq!(levers.plan("/wxa/x").delay, Duration::ZERO);
    }

    #[test]
    fn two_levers_of_a_sort_on_one_path_take_turns() {
        let mut levers = Levers::default();
        let canned = |body: &str| Canned { body: body.to_owned(), ..Canned::default() };
        levers.fail_calls("/a", canned("1"), 1);
        levers.fail_calls("/a", canned("2"), 1);
        let bodies: Vec<_> = (0..3).map(|_| levers.plan("/a").canned.map(|canned| canned.body)).collect();
        assert_eq!(bodies, [Some("1".to_owned()), Some("2".to_owned()), None]);
    }
}
