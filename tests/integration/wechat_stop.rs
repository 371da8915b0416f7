//! How the process ends: calls in flight finish, nothing new is taken, the grace period is kept, and a killed one
//! comes back with the token it had.

#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use wechat_sidecar::sim::{DropWhen, Kind, Sim};

use crate::wechat_process::Process;
use crate::wechat_rig::{APPID, Answer, App, SEND, Wechat, until, within};

/// A call that WeChat answers only when [`release`]d.
async fn hang(sim: &Sim, app: &App, id: &'static str) -> JoinHandle<Answer> {
    let before = sim.counts().all_calls();
    sim.gather(SEND, 2);
    let app = app.clone();
    let call = tokio::spawn(async move { app.message(id).await });
    within("the call is at WeChat", sim.until(|counts| counts.all_calls() == before + 1)).await;
    call
}

/// The second call that [`hang`] waits for, past the sidecar.
async fn release(sim: &Sim) {
    let mut wechat = TcpStream::connect(sim.plain_addr()).await.unwrap();
    let head = format!("POST {SEND} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    wechat.write_all(head.as_bytes()).await.unwrap();
    let mut reply = Vec::new();
    wechat.read_to_end(&mut reply).await.unwrap();
}

async fn refuses_connections(process: &Process) -> bool {
    TcpStream::connect(process.addresses.proxy).await.is_err()
}

#[tokio::test]
async fn a_stop_lets_calls_in_flight_finish_and_takes_no_others() {
    for format in ["text", "json"] {
        for signal in ["-TERM", "-INT"] {
            let wechat = Wechat::plain().await;
            let mut process = Process::ready(&wechat, &["--log-format", format]).await;
            let call = hang(&wechat.sim, &process.app, "in flight").await;
            process.signal(signal);
            process.until_logged("calls in flight have 30s to finish").await;
            until("accept has ended", async || refuses_connections(&process).await).await;
            let ready = process.app.admin("/readyz").await;
            assert_eq!((ready.status, ready.json()["stopping"].as_bool()), (503, Some(true)));
            assert_eq!(process.app.admin("/livez").await.status, 200);
            assert!(!call.is_finished() && process.has_ended().is_none());
            release(&wechat.sim).await;
            call.await.unwrap().assert_ok();
            let (status, log) = process.end().await;
            assert_eq!(status.code(), Some(0), "{log}");
            assert!(log.contains("stopped"), "{log}");
        }
    }
}

#[tokio::test]
async fn a_stop_does_not_wait_for_connections_without_a_call() {
    let wechat = Wechat::plain().await;
    let process = Process::ready(&wechat, &["--grace-period", "1h"]).await;
    // None of these ever closes its end: one that was used, one that never was, two with half a head.
    let mut open = Vec::new();
    for (whole, half) in
        [(true, ""), (false, ""), (true, "POST /cgi"), (false, "POST /cgi-bin/menu/create HTT")]
    {
        let mut connection = TcpStream::connect(process.addresses.proxy).await.unwrap();
        if whole {
            connection.write_all(b"GET /cgi-bin/user/get HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
            assert!(connection.read(&mut [0; 4096]).await.unwrap() > 100);
        }
        connection.write_all(half.as_bytes()).await.unwrap();
        open.push(connection);
    }
    let started = Instant::now();
    process.signal("-TERM");
    let (status, log) = process.end().await;
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    for mut connection in open {
        let mut left = Vec::new();
        let _ = within("the connection is closed", connection.read_to_end(&mut left)).await;
        assert_eq!(left, b"");
    }
}

#[tokio::test]
async fn what_is_left_when_the_grace_period_is_over_is_cut_and_the_stop_is_still_clean() {
    let wechat = Wechat::plain().await;
    let process = Process::ready(&wechat, &["--grace-period", "100ms"]).await;
    wechat.sim.gather(SEND, 2);
    let mut app = TcpStream::connect(process.addresses.proxy).await.unwrap();
    let head = format!("POST {SEND} HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{{}}");
    app.write_all(head.as_bytes()).await.unwrap();
    within("the call is at WeChat", wechat.sim.until(|counts| counts.all_calls() == 1)).await;
    process.signal("-TERM");
    let (status, log) = process.end().await;
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("the grace period is over"), "{log}");
    let mut reply = Vec::new();
    let _ = within("the call is cut", app.read_to_end(&mut reply)).await;
    assert_eq!(String::from_utf8_lossy(&reply), "", "nothing that could look like an answer");
}

#[tokio::test]
async fn a_call_that_meets_a_dead_token_during_the_stop_is_mended_too() {
    let wechat = Wechat::plain().await;
    let process = Process::ready(&wechat, &[]).await;
    let call = hang(&wechat.sim, &process.app, "in flight").await;
    wechat.sim.expire_now(APPID);
    process.signal("-TERM");
    until("accept has ended", async || refuses_connections(&process).await).await;
    release(&wechat.sim).await;
    let reply = call.await.unwrap();
    assert_eq!((reply.errcode(), reply.attempts()), (0, Some("2")));
    assert_eq!(process.end().await.0.code(), Some(0));
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    for (second, code) in [("-TERM", 143), ("-INT", 130)] {
        let wechat = Wechat::plain().await;
        let process = Process::ready(&wechat, &["--grace-period", "1h"]).await;
        let call = hang(&wechat.sim, &process.app, "in flight").await;
        process.signal("-TERM");
        process.until_logged("stopping").await;
        process.signal(second);
        let (status, log) = process.end().await;
        assert_eq!((status.code(), status.signal()), (Some(code), None), "{log}");
        call.abort();
    }
}

#[tokio::test]
async fn a_stop_before_the_first_token_is_a_clean_one() {
    let wechat = Wechat::plain().await;
    wechat.sim.hold_fetches();
    let process = Process::start(&wechat, &[]).await;
    within("the fetch comes", wechat.sim.until(|counts| counts.all_fetches() == 1)).await;
    process.signal("-TERM");
    let (status, log) = process.end().await;
    assert_eq!(status.code(), Some(0), "{log}");
}

#[tokio::test]
async fn a_download_in_flight_is_finished_whole() {
    let wechat = Wechat::plain().await;
    let process = Process::ready(&wechat, &["--workers", "1"]).await;
    let length = 40_000_000;
    let mut app = TcpStream::connect(process.addresses.proxy).await.unwrap();
    let head = format!("GET /cgi-bin/media/get?media_id=big-{length} HTTP/1.1\r\nhost: x\r\n\r\n");
    app.write_all(head.as_bytes()).await.unwrap();
    let mut reply = vec![0; 64 * 1024];
    app.read_exact(&mut reply).await.unwrap();
    process.signal("-TERM");
    until("accept has ended", async || refuses_connections(&process).await).await;
    within("the rest comes", app.read_to_end(&mut reply)).await.unwrap();
    let end = reply.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    assert_eq!(reply.len() - end, length, "the connection was closed after the last byte, not before");
    assert_eq!(process.end().await.0.code(), Some(0));
}

#[tokio::test]
async fn a_killed_sidecar_comes_back_with_the_token_it_had() {
    let wechat = Wechat::plain().await;
    let process = Process::ready(&wechat, &[]).await;
    process.app.message("before").await.assert_ok();
    let token = wechat.sim.live_token(APPID).unwrap();
    process.signal("-KILL");
    assert_eq!(process.end().await.0.signal(), Some(9));
    let process = Process::start(&wechat, &[]).await;
    // Not even ready, perhaps: the call waits for the fetch in flight.
    process.app.message("after").await.assert_ok();
    let counts = wechat.sim.counts();
    assert_eq!((counts.fetches.stable, counts.fetches.fresh, counts.refusals.len()), (2, 1, 0));
    let live = wechat.sim.live_tokens(APPID);
    assert_eq!(live.len(), 1);
    assert_eq!((live[0].token.as_str(), live[0].kind), (token.as_str(), Kind::Stable));
}

#[tokio::test]
async fn a_reply_that_broke_off_is_never_taken_for_a_whole_one() {
    let wechat = Wechat::plain().await;
    let process = Process::ready(&wechat, &[]).await;
    for sort in ["big", "chunked"] {
        wechat.sim.drop_connection("/cgi-bin/media/get", DropWhen::MidReply, 1);
        let mut app = TcpStream::connect(process.addresses.proxy).await.unwrap();
        let head = format!("GET /cgi-bin/media/get?media_id={sort}-1000000 HTTP/1.1\r\nhost: x\r\n\r\n");
        app.write_all(head.as_bytes()).await.unwrap();
        let mut reply = Vec::new();
        let _ = within("the reply ends", app.read_to_end(&mut reply)).await;
        assert!(reply.starts_with(b"HTTP/1.1 200") && reply.len() < 1_000_000);
        assert!(!reply.ends_with(b"0\r\n\r\n"), "{sort}");
    }
    process.app.message("and the next").await.assert_ok();
    process.signal("-TERM");
    let (_, log) = tokio::time::timeout(Duration::from_secs(20), process.end()).await.unwrap();
    assert!(log.contains("upstream-closed"), "{log}");
}

#[tokio::test]
async fn a_log_that_nobody_reads_holds_up_no_call_and_no_stop() {
    let wechat = Wechat::plain().await;
    let mut process = Process::ready(&wechat, &["--log", "trace"]).await;
    let unread = process.stop_reading().await;
    // A pipe takes 64 KiB, which are the lines of some 250 calls.
    for n in 0..600 {
        within("the call", process.app.message(&format!("call {n}"))).await.assert_ok();
    }
    process.signal("-TERM");
    until("the process ends", async || process.has_ended().is_some()).await;
    drop(unread);
    let (status, log) = process.end().await;
    assert_eq!(status.code(), Some(0));
    let told = log.lines().filter(|line| line.contains("INFO access: call")).count();
    assert!(log.contains("serving") && told < 600, "{told} of them were read");
}
