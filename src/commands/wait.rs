//! `wait`: until a running sidecar is ready. For entrypoints, probes, and an image's HEALTHCHECK.

use std::time::Duration;

use tokio::time::Instant;
use wechat_sidecar::config::cli::{Probe, Wait};

use super::{complain, say};

/// How often it asks.
const EVERY: Duration = Duration::from_millis(200);

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) async fn wait(options: &Wait) -> u8 {
    let url = format!("http://{}{}", options.admin, options.probe.path());
    let client = match super::local_client(PATIENCE) {
        Ok(client) => client,
        Err(error) => {
            complain(&error);
            return 1;
        }
    };
    let deadline = Instant::now() + options.timeout;
    loop {
        let last = match ask(&client, &url).await {
            Ok(()) => {
                say(match options.probe {
                    Probe::Ready => "ready",
                    Probe::Live => "live",
                });
                return 0;
            }
            Err(reason) => reason,
        };
        if Instant::now() + EVERY > deadline {
            complain(&format!("not ready after {}: {last}", humantime::format_duration(options.timeout)));
            return 1;
        }
        tokio::time::sleep(EVERY).await;
    }
}

async fn ask(client: &reqwest::Client, url: &str) -> Result<(), String> {
    let reply = client.get(url).send().await.map_err(|error| {
        if error.is_connect() {
            format!("nothing listens at {url}; is wechat-sidecar running, and is admin_listen the same?")
        } else {
            format!("no answer from {url} ({})", error.without_url())
        }
    })?;
    if reply.status().is_success() {
        return Ok(());
    }
    let text = reply.text().await.unwrap_or_default();
    let problem = serde_json::from_str::<serde_json::Value>(&text).ok().and_then(|state| {
        if state["stopping"] == true {
            return Some("it is stopping".to_owned());
        }
        let accounts = state["accounts"].as_array()?;
        let waiting = accounts.iter().filter(|account| account["ready"] == false);
        let told: Vec<_> = waiting
            .map(|account| {
                let problem = account["problem"].as_str().unwrap_or("its first token is on the way");
                format!("{}: {problem}", account["appid"].as_str().unwrap_or("?"))
            })
            .collect();
        Some(told.join("; "))
    });
    Err(problem.unwrap_or_else(|| format!("{url} did not answer as wechat-sidecar does")))
}
