//! OpenTelemetry traces (feature `otel`): one span a call, sent over OTLP/HTTP to whatever the standard variable
//! `OTEL_EXPORTER_OTLP_ENDPOINT` names; without it there are none. `OTEL_SERVICE_NAME`, `OTEL_TRACES_SAMPLER` and the
//! others mean what they always do.
//!
//! A span continues the trace of the `traceparent` that came with the call, which goes on to WeChat as it came: WeChat
//! hears of no span of ours. Spans wait in a bounded queue for a thread of their own, and are dropped when it is full: a
//! slow collector costs no call. SECURITY: a span has a path and no query, as the access log.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{
    Span, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState, Tracer,
    TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

use crate::tls;

static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// The longest one export, or the last one at the end, may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Ends by drop: what waits is sent.
#[derive(Debug)]
pub struct Traces(SdkTracerProvider);

/// Begins to trace, if the environment says where to.
///
/// # Errors
/// A sentence: the exporter cannot be made.
pub fn init() -> Result<Option<Traces>, String> {
    let named = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    if !named("OTEL_EXPORTER_OTLP_ENDPOINT") && !named("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") {
        return Ok(None);
    }
    // A blocking client has a runtime of its own, which cannot be made on ours.
    let provider = std::thread::spawn(provider).join().unwrap_or_else(|_| Err("it panicked".to_owned()));
    let provider = provider.map_err(|error| {
        format!("traces cannot be exported ({error}); check OTEL_EXPORTER_OTLP_ENDPOINT, or unset it")
    })?;
    let _ = TRACER.set(provider.tracer("wechat-sidecar"));
    Ok(Some(Traces(provider)))
}

fn provider() -> Result<SdkTracerProvider, String> {
    let client = opentelemetry_otlp_client().map_err(|error| error.to_string())?;
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(client)
        .with_protocol(Protocol::HttpBinary)
        .build()
        .map_err(|error| error.to_string())?;
    let mut resource = Resource::builder();
    if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
        resource = resource.with_service_name("wechat-sidecar");
    }
    let resource =
        resource.with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION"))).build();
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
}

fn opentelemetry_otlp_client() -> reqwest::Result<reqwest::blocking::Client> {
    reqwest::blocking::Client::builder()
        .tls_backend_preconfigured((*tls::client_config(&Default::default())).clone())
        .timeout(PATIENCE)
        .build()
}

impl Drop for Traces {
    fn drop(&mut self) {
        let provider = self.0.clone();
        // Waits, which a runtime's thread may not.
        let ended = std::thread::spawn(move || provider.shutdown_with_timeout(PATIENCE)).join();
        if !matches!(ended, Ok(Ok(()))) {
            tracing::warn!("the last traces could not be sent; check the collector");
        }
    }
}

/// A call that is under way.
#[derive(Debug)]
pub struct Call(opentelemetry_sdk::trace::Span);

/// What became of it.
#[derive(Clone, Copy, Debug)]
pub struct Ended<'a> {
    /// The account's appid.
    pub account: &'a str,
    /// What it wanted.
    pub action: &'static str,
    /// What became of it.
    pub outcome: &'static str,
    /// The status the app got.
    pub status: u16,
    /// WeChat's errcode, if it named one.
    pub errcode: Option<i64>,
    /// How often WeChat was sent it.
    pub attempts: u32,
    /// Waiting for WeChat.
    pub upstream: Duration,
    /// Waiting for a token.
    pub token_wait: Duration,
    /// Whether it is a failure of ours or of the way to WeChat.
    pub failed: bool,
}

impl Call {
    /// Opens a span, if there are traces; one that continues the caller's.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "spans are dated by the wall clock")]
    pub fn open(method: &str, path: &str, traceparent: Option<&[u8]>) -> Option<Self> {
        let tracer = TRACER.get()?;
        let parent = traceparent
            .and_then(remote)
            .map_or_else(Context::new, |parent| Context::new().with_remote_span_context(parent));
        let span = tracer
            .span_builder(method.to_owned())
            .with_kind(SpanKind::Server)
            .with_start_time(SystemTime::now())
            .with_attributes([
                KeyValue::new("http.request.method", method.to_owned()),
                KeyValue::new("url.path", path.escape_default().to_string()),
            ])
            .start_with_context(tracer, &parent);
        Some(Self(span))
    }

    /// Ends it.
    pub fn end(mut self, ended: &Ended<'_>) {
        let span = &mut self.0;
        span.set_attributes([
            KeyValue::new("http.response.status_code", i64::from(ended.status)),
            KeyValue::new("wechat.account", ended.account.to_owned()),
            KeyValue::new("wechat.action", ended.action),
            KeyValue::new("wechat.outcome", ended.outcome),
            KeyValue::new("wechat.attempts", i64::from(ended.attempts)),
            KeyValue::new("wechat.upstream_seconds", ended.upstream.as_secs_f64()),
            KeyValue::new("wechat.token_wait_seconds", ended.token_wait.as_secs_f64()),
        ]);
        if let Some(errcode) = ended.errcode {
            span.set_attribute(KeyValue::new("wechat.errcode", errcode));
        }
        if ended.failed {
            span.set_status(Status::error(ended.outcome));
        }
        span.end();
    }
}

/// Who called, by a W3C `traceparent`.
fn remote(traceparent: &[u8]) -> Option<SpanContext> {
    let mut parts = std::str::from_utf8(traceparent).ok()?.split('-');
    let (_version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let flags = u8::from_str_radix(flags, 16).ok()?;
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        TraceFlags::new(flags & 1),
        true,
        TraceState::NONE,
    );
    context.is_valid().then_some(context)
}
