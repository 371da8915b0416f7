//! OpenTelemetry traces (feature `otel`): a span a call reaches a collector, in the caller's trace, and tells no secret.

#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

use std::ffi::OsString;
use std::sync::{Arc, Mutex};

use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use wechat_sidecar::sim::DEFAULT_SECRET;

use crate::wechat_process::{Process, command};
use crate::wechat_rig::{APPID, Wechat, until};

/// A collector: the bodies of what was posted to `/v1/traces`.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<u8>>>);

impl Collector {
    async fn start(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = format!("http://{}", listener.local_addr().unwrap());
        let collector = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let collector = collector.clone();
                tokio::spawn(async move {
                    let service = service_fn(|request: Request<Incoming>| {
                        let collector = collector.clone();
                        async move {
                            assert_eq!(
                                (request.method(), request.uri().path()),
                                (&Method::POST, "/v1/traces")
                            );
                            let body = request.into_body().collect().await.unwrap().to_bytes();
                            collector.0.lock().unwrap().extend_from_slice(&body);
                            Ok::<_, std::convert::Infallible>(Response::new(Full::<Bytes>::default()))
                        }
                    });
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        at
    }

    fn has(&self, bytes: &[u8]) -> bool {
        self.0.lock().unwrap().windows(bytes.len()).any(|window| window == bytes)
    }
}

#[tokio::test]
async fn a_call_is_a_span_in_the_callers_trace() {
    let collector = Collector::default();
    let endpoint = collector.start().await;
    let wechat = Wechat::plain().await;
    let mut args = vec![OsString::from("run")];
    args.extend(wechat.settings(&[]));
    let mut env = wechat.env();
    env.push(("OTEL_EXPORTER_OTLP_ENDPOINT".into(), endpoint.into()));
    let process = Process::spawn(command(args, env)).await;
    process.app.until_ready().await;
    let token = wechat.sim.live_token(APPID).unwrap();
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    let request = process.app.request(Method::GET, "/cgi-bin/user/get?next_openid=private-openid");
    let request = request.header("traceparent", &parent);
    process.app.send(request.body(Full::default()).unwrap()).await.assert_ok();
    let seen = wechat.sim.seen().pop().unwrap();
    assert!(seen.headers.iter().any(|(name, value)| name == "traceparent" && *value == parent), "as it came");
    process.signal("-TERM");
    let (status, log) = process.end().await;
    assert_eq!(status.code(), Some(0), "{log}");
    until("the collector has the span", async || collector.has(b"/cgi-bin/user/get")).await;
    let trace_bytes: Vec<u8> =
        (0..16).map(|n| u8::from_str_radix(&trace[2 * n..2 * n + 2], 16).unwrap()).collect();
    assert!(collector.has(&trace_bytes), "the caller's trace goes on");
    for word in ["wechat.outcome", "wechat-sidecar", APPID, "append-token"] {
        assert!(collector.has(word.as_bytes()), "{word}");
    }
    for secret in [token.as_str(), DEFAULT_SECRET, "private-openid"] {
        assert!(!collector.has(secret.as_bytes()), "{secret}");
    }
}

#[tokio::test]
async fn a_collector_that_is_not_there_costs_no_call() {
    let wechat = Wechat::plain().await;
    let mut args = vec![OsString::from("run")];
    args.extend(wechat.settings(&[]));
    let mut env = wechat.env();
    env.push(("OTEL_EXPORTER_OTLP_ENDPOINT".into(), "http://127.0.0.1:1".into()));
    let process = Process::spawn(command(args, env)).await;
    process.app.until_ready().await;
    process.app.message("-").await.assert_ok();
    process.signal("-TERM");
    assert_eq!(process.end().await.0.code(), Some(0));
}
