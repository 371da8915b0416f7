//! What anyone who reaches the admin port may see: the page, the status, the metrics and the probes. Nothing here acts
//! or shows a token or a secret.

use std::rc::Rc;

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};

use super::page::Page;
use super::status::Overview;
use super::{Reply, metrics, reply};

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// The paths, for who is told what there is.
pub(super) const PATHS: [&str; 6] = ["/", "/livez", "/metrics", "/readyz", "/startupz", "/status"];

/// What they show.
pub(super) struct Views {
    overview: Rc<Overview>,
    page: Page,
}

impl Views {
    pub(super) fn new(overview: Rc<Overview>) -> Self {
        Self { overview, page: Page::new() }
    }

    /// The view at a path; `None` where there is none. `wrong_keys`, if anyone counts them, is for those who look at
    /// readiness.
    pub(super) fn get(&self, path: &str, query: &str, wrong_keys: Option<u64>) -> Option<Reply> {
        Some(match path {
            "/" => self.page(),
            "/livez" => reply(StatusCode::OK, TEXT, "ok\n"),
            "/startupz" => self.probe(query, wrong_keys, |started, _| started),
            "/readyz" => self.probe(query, wrong_keys, |_, ready| ready),
            "/status" => reply(StatusCode::OK, JSON, json(&self.overview.snapshot())),
            "/metrics" => reply(StatusCode::OK, metrics::CONTENT_TYPE, metrics::exposition(&self.overview)),
            _ => return None,
        })
    }

    fn page(&self) -> Reply {
        let mut page = reply(StatusCode::OK, "text/html; charset=utf-8", self.page.html.clone());
        if let Ok(policy) = HeaderValue::from_str(&self.page.policy) {
            page.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
        }
        page.headers_mut().insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        page
    }

    /// Whether all accounts, or the one that is asked about, have had a token, or have one.
    fn probe(&self, query: &str, wrong_keys: Option<u64>, wanted: impl Fn(bool, bool) -> bool) -> Reply {
        let asked = form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == "account");
        let snapshot = self.overview.snapshot();
        let mut accounts = snapshot.accounts;
        if let Some((_, appid)) = &asked {
            accounts.retain(|account| account.appid == **appid);
            if accounts.is_empty() {
                let told = "there is no such account here; give an appid of the settings";
                return reply(StatusCode::NOT_FOUND, JSON, json(&serde_json::json!({ "error": told })));
            }
        }
        let started = accounts.iter().all(|account| account.last_refresh.is_some());
        let ready = !snapshot.stopping && accounts.iter().all(|account| account.ready);
        let shown: Vec<_> = accounts
            .into_iter()
            .map(|account| {
                serde_json::json!({
                    "appid": account.appid,
                    "ready": account.ready,
                    "token": account.token,
                    "life_left_seconds": account.life_left_seconds,
                    "problem": account.problem,
                    "next_fetch_in_seconds": account.next_fetch_in_seconds,
                })
            })
            .collect();
        let mut body = serde_json::json!({
            "ready": ready, "started": started, "stopping": snapshot.stopping, "accounts": shown,
        });
        if let Some(wrong) = wrong_keys {
            body["wrong_keys"] = wrong.into();
        }
        let well = wanted(started, ready);
        let status = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        reply(status, JSON, json(&body))
    }
}

fn json(value: &impl serde::Serialize) -> Bytes {
    let mut text = serde_json::to_string(value).unwrap_or_default();
    text.push('\n');
    text.into()
}
