//! `/metrics`: everything that is counted, in Prometheus' text format. Names are `wechat_sidecar_*`, with units; those
//! of the process are the ones that every client library gives. The README's table is held against it by a test.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet, prometheus_text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::status::{Overview, Snapshot};
use crate::metrics::process::Usage;
use crate::metrics::{Distribution, Totals};
use crate::telemetry;
use crate::token::keeper::Counted;

/// The format's content type.
pub const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;

/// Everything that is counted, as it is now.
#[must_use]
pub fn exposition(overview: &Overview) -> String {
    let counted = overview.accounts().iter().map(|account| account.keeper().status().counted).collect();
    let read = Read {
        totals: overview.hub().totals(),
        snapshot: overview.snapshot(),
        counted,
        usage: Usage::read(),
        tasks: overview.hub().tasks(),
        lines_left_out: telemetry::left_out(),
    };
    let mut registry = Registry::default();
    registry.register_collector(Box::new(read));
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = prometheus_text::encode(&mut text, &registry);
    text
}

/// Everything that was read for one answer.
#[derive(Debug)]
struct Read {
    totals: Totals,
    snapshot: Snapshot,
    /// Of the accounts, in the snapshot's order.
    counted: Vec<Counted>,
    usage: Option<Usage>,
    tasks: usize,
    lines_left_out: u64,
}

type Label<'a> = (&'static str, &'a str);

impl Collector for Read {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Out(&mut encoder);
        self.calls(&mut out)?;
        self.tokens(&mut out)?;
        self.sidecar(&mut out)?;
        self.usage.map_or(Ok(()), |usage| process(&mut out, &usage))
    }
}

impl Read {
    fn calls(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let totals = &self.totals;
        out.counters(
            "wechat_sidecar_calls",
            "Calls that ended, by account, what they wanted, what became of them and WeChat's errcode",
            totals.calls().map(|calls| {
                let labels = [
                    ("account", calls.account),
                    ("action", calls.action.name()),
                    ("outcome", calls.outcome.name()),
                    ("errcode", calls.errcode.name()),
                ];
                (labels, calls.count)
            }),
        )?;
        let codes: Vec<_> =
            totals.refusals().map(|(account, code, n)| (account, code.to_string(), n)).collect();
        out.counters(
            "wechat_sidecar_refusals",
            "Calls whose token WeChat refused, by the code of the first refusal",
            codes.iter().map(|(account, code, n)| ([("account", *account), ("errcode", code.as_str())], *n)),
        )?;
        out.counters(
            "wechat_sidecar_replays",
            "Calls that WeChat was sent twice, because it had refused their token",
            totals.replays().map(|(account, n)| ([("account", account)], n)),
        )?;
        for (name, help, distribution) in [
            ("wechat_sidecar_call_duration", "Calls from their head to the reply's last byte", &totals.whole),
            ("wechat_sidecar_upstream_duration", "Of a call, waiting for WeChat", &totals.upstream),
            ("wechat_sidecar_token_wait", "Of a call that waited for a token, that wait", &totals.token_wait),
            (
                "wechat_sidecar_overhead",
                "Of a call, the sidecar's own work until the reply's head",
                &totals.own,
            ),
        ] {
            out.histogram(name, help, distribution)?;
        }
        Ok(())
    }

    fn tokens(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let accounts = &self.snapshot.accounts;
        let both = || accounts.iter().map(|account| account.appid.as_str()).zip(&self.counted);
        out.counters(
            "wechat_sidecar_fetches",
            "Token fetches that ended, by why they were made and what they came to",
            both().flat_map(|(appid, counted)| {
                // The others begin when there is one: most reasons never meet most failures.
                let told = counted.fetches.iter().filter(|(_, outcome, n)| *n > 0 || *outcome == "fetched");
                told.map(move |(reason, outcome, n)| {
                    ([("account", appid), ("reason", *reason), ("outcome", *outcome)], *n)
                })
            }),
        )?;
        out.counters(
            "wechat_sidecar_store_operations",
            "What was asked of the token store, and whether it worked",
            both().flat_map(|(appid, counted)| {
                counted.store.iter().map(move |(asked, outcome, n)| {
                    ([("account", appid), ("operation", *asked), ("outcome", *outcome)], *n)
                })
            }),
        )?;
        out.counters(
            "wechat_sidecar_leases",
            "Asks for the right to fetch: acquired, held by another replica, or failed",
            both().flat_map(|(appid, counted)| {
                counted
                    .leases
                    .iter()
                    .map(move |(outcome, n)| ([("account", appid), ("outcome", *outcome)], *n))
            }),
        )?;
        out.counters(
            "wechat_sidecar_adoptions",
            "Tokens taken from the store that another replica fetched",
            both().map(|(appid, counted)| ([("account", appid)], counted.adoptions)),
        )?;
        out.counters(
            "wechat_sidecar_foreign_rotations",
            "Young tokens that someone else who fetches for this appid voided",
            accounts.iter().map(|a| ([("account", a.appid.as_str())], a.foreign_rotations)),
        )?;
        out.gauges(
            "wechat_sidecar_ready",
            "Whether the account has a token that lives: 1 or 0",
            None,
            accounts.iter().map(|a| ([("account", a.appid.as_str())], u64::from(a.ready))),
        )?;
        out.gauges(
            "wechat_sidecar_token_life",
            "What is left of the token's life; 0 without one",
            Some(&Unit::Seconds),
            accounts
                .iter()
                .map(|a| ([("account", a.appid.as_str())], a.life_left_seconds.unwrap_or_default())),
        )?;
        out.gauges(
            "wechat_sidecar_next_fetch",
            "Until the next token fetch; 0 while one is under way",
            Some(&Unit::Seconds),
            accounts
                .iter()
                .map(|a| ([("account", a.appid.as_str())], a.next_fetch_in_seconds.unwrap_or_default())),
        )?;
        out.gauges(
            "wechat_sidecar_breaker",
            "How long the breaker holds the next fetch for a refused token back; 0 when it does not",
            Some(&Unit::Seconds),
            accounts.iter().map(|a| ([("account", a.appid.as_str())], a.breaker_seconds.unwrap_or_default())),
        )
    }

    fn sidecar(&self, out: &mut Out<'_, '_>) -> fmt::Result {
        let snapshot = &self.snapshot;
        out.counter(
            "wechat_sidecar_connections_accepted",
            "Connections of apps that were accepted",
            snapshot.connections.accepted,
        )?;
        out.gauge(
            "wechat_sidecar_connections_open",
            "Connections of apps that are open",
            None,
            snapshot.connections.open,
        )?;
        out.gauge(
            "wechat_sidecar_replay_budget_used",
            "What calls in flight keep of their bodies, so that they can go again",
            Some(&Unit::Bytes),
            snapshot.replay_budget.used_bytes,
        )?;
        out.gauge(
            "wechat_sidecar_replay_budget",
            "What they may keep together (replay_budget)",
            Some(&Unit::Bytes),
            snapshot.replay_budget.limit_bytes,
        )?;
        out.gauge(
            "wechat_sidecar_tasks",
            "Tasks that are alive: some for each thread, and one for each connection",
            None,
            self.tasks as u64,
        )?;
        out.gauge(
            "wechat_sidecar_stopping",
            "Whether a stop was asked for: 1 or 0",
            None,
            u64::from(snapshot.stopping),
        )?;
        out.counter(
            "wechat_sidecar_log_lines_left_out",
            "Log lines that were left out because they repeated themselves, or because nobody read the log",
            self.lines_left_out,
        )?;
        let workers = snapshot.workers.to_string();
        let labels = [("version", snapshot.version), ("workers", workers.as_str())];
        out.metric("wechat_sidecar_build", "This sidecar", None, MetricType::Info)?.encode_info(&labels)
    }
}

fn process(out: &mut Out<'_, '_>, usage: &Usage) -> fmt::Result {
    let seconds = Some(&Unit::Seconds);
    let bytes = Some(&Unit::Bytes);
    let mut cpu = out.metric("process_cpu", "CPU time, user and system", seconds, MetricType::Counter)?;
    cpu.encode_counter::<NoLabelSet, _, f64>(&usage.cpu_seconds, None)?;
    let mut start =
        out.metric("process_start_time", "When the process began, since 1970", seconds, MetricType::Gauge)?;
    start.encode_gauge(&usage.started_at)?;
    out.gauge("process_resident_memory", "Memory that is really there", bytes, usage.resident_bytes)?;
    out.gauge("process_virtual_memory", "Address space", bytes, usage.virtual_bytes)?;
    out.gauge("process_open_fds", "Open files", None, usage.open_files)?;
    if let Some(limit) = usage.max_files {
        out.gauge("process_max_fds", "The limit on open files", None, limit)?;
    }
    out.gauge("process_threads", "Threads", None, usage.threads)
}

/// The encoder, with words for what is written here.
struct Out<'a, 'e>(&'a mut DescriptorEncoder<'e>);

impl Out<'_, '_> {
    fn metric<'s>(
        &'s mut self,
        name: &'s str,
        help: &str,
        unit: Option<&'s Unit>,
        kind: MetricType,
    ) -> Result<MetricEncoder<'s>, fmt::Error> {
        self.0.encode_descriptor(name, help, unit, kind)
    }

    fn counters<'l, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        series: impl Iterator<Item = ([Label<'l>; N], u64)>,
    ) -> fmt::Result {
        let mut metric = self.metric(name, help, None, MetricType::Counter)?;
        for (labels, count) in series {
            metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, f64>(&count, None)?;
        }
        Ok(())
    }

    fn counter(&mut self, name: &str, help: &str, count: u64) -> fmt::Result {
        let mut metric = self.metric(name, help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, _, f64>(&count, None)
    }

    fn gauges<'l, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        series: impl Iterator<Item = ([Label<'l>; N], u64)>,
    ) -> fmt::Result
    where
        [Label<'l>; N]: EncodeLabelSet,
    {
        let mut metric = self.metric(name, help, unit, MetricType::Gauge)?;
        for (labels, value) in series {
            metric.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    fn gauge(&mut self, name: &str, help: &str, unit: Option<&Unit>, value: u64) -> fmt::Result {
        self.metric(name, help, unit, MetricType::Gauge)?.encode_gauge(&value)
    }

    fn histogram(&mut self, name: &str, help: &str, distribution: &Distribution) -> fmt::Result {
        let buckets: Vec<_> = distribution.buckets().collect();
        let mut metric = self.metric(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
        metric.encode_histogram::<NoLabelSet>(
            distribution.sum_seconds(),
            distribution.count(),
            &buckets,
            None,
        )
    }
}
