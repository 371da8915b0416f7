//! The Unix socket in place of a port: the same calls, for those whom the file's mode lets in and who are on the list.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use wechat_sidecar::app::{App, BindError};

use crate::rig::{RawUpstream, Setup, Sidecar, Tokens, within};

const CALL: &str = "GET /cgi-bin/x HTTP/1.1\r\nHost: any.name.at.all\r\nConnection: close\r\n\r\n";

/// What comes back for these bytes, until the other side closes.
async fn call(socket: &Path, bytes: &str) -> String {
    let mut stream = UnixStream::connect(socket).await.expect("the sidecar accepts");
    let _ = stream.write_all(bytes.as_bytes()).await;
    let mut reply = String::new();
    within("the reply", stream.read_to_string(&mut reply)).await.expect("text and an end");
    reply
}

async fn listening(upstream: &RawUpstream, path: &Path, more: &[(&'static str, &str)]) -> Sidecar {
    let listen = format!("unix:{}", path.display());
    let settings: Vec<_> =
        [("listen", &listen[..]), ("workers", "2")].into_iter().chain(more.iter().copied()).collect();
    // Names are asked for on ports only.
    let sidecar = Sidecar::set(upstream, &settings).await;
    assert_eq!(sidecar.socket.as_deref(), Some(path));
    sidecar
}

#[tokio::test]
async fn an_app_calls_through_the_socket_and_its_file_goes_with_the_stop() {
    let (upstream, dir) = (RawUpstream::start().await, tempfile::tempdir().unwrap());
    let path = dir.path().join("sidecar.sock");
    let sidecar = listening(&upstream, &path, &[]).await;
    let file = std::fs::metadata(&path).unwrap();
    assert!(file.file_type().is_socket());
    assert_eq!(file.permissions().mode() & 0o777, 0o600, "nobody else by default");
    for _ in 0..5 {
        let reply = call(&path, CALL).await;
        assert!(
            reply.starts_with("HTTP/1.1 200 OK\r\n") && reply.ends_with(r#"{"errcode":0,"errmsg":"ok"}"#),
            "{reply}"
        );
    }
    assert_eq!(upstream.calls(), 5);
    assert!(
        call(&path, "GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.contains("not-allowed")
    );
    sidecar.stop().await;
    assert!(!path.exists());
}

#[tokio::test]
async fn whoever_is_not_on_the_list_is_told_and_gets_nothing() {
    let (upstream, dir) = (RawUpstream::start().await, tempfile::tempdir().unwrap());
    let me = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(dir.path()).unwrap());
    let path = dir.path().join("others.sock");
    let (others, with_me) = ((me + 1).to_string(), format!("{},{me}", me + 1));
    let sidecar = listening(&upstream, &path, &[("listen_uids", &others), ("listen_mode", "0666")]).await;
    let reply = call(&path, CALL).await;
    assert!(reply.starts_with("HTTP/1.1 403 ") && reply.contains("x-wechat-sidecar-error: peer"), "{reply}");
    assert!(reply.contains(&format!("the user {me}")), "{reply}");
    assert_eq!(upstream.connections(), 0);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o666);
    drop(sidecar);
    let path = dir.path().join("me.sock");
    let _sidecar = listening(&upstream, &path, &[("listen_uids", &with_me)]).await;
    assert!(call(&path, CALL).await.starts_with("HTTP/1.1 200 OK"));
}

#[tokio::test]
async fn a_socket_that_is_used_is_an_error_and_one_that_a_crash_left_is_replaced() {
    let (upstream, dir) = (RawUpstream::start().await, tempfile::tempdir().unwrap());
    let path = dir.path().join("sidecar.sock");
    // As a crash leaves it: the file is there, and nobody listens.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let sidecar = listening(&upstream, &path, &[]).await;
    assert!(call(&path, CALL).await.starts_with("HTTP/1.1 200 OK"));
    let tokens = Tokens::start().await;
    let listen = format!("unix:{}", path.display());
    let mut second = None;
    let _ = Setup::with_settings(&upstream.origin(), &tokens, &[("listen", &listen)])
        .with(|config| second = Some(config.clone()));
    match App::bind(second.unwrap()).map(drop).unwrap_err() {
        error @ BindError::Socket { .. } => {
            assert!(error.to_string().contains("another process listens there"), "{error}")
        }
        other => panic!("{other}"),
    }
    assert!(call(&path, CALL).await.starts_with("HTTP/1.1 200 OK"), "the first goes on");
    sidecar.stop().await;

    std::fs::write(&path, "notes").unwrap();
    let mut third = None;
    let _ = Setup::with_settings(&upstream.origin(), &tokens, &[("listen", &listen)])
        .with(|config| third = Some(config.clone()));
    let error = App::bind(third.unwrap()).map(drop).unwrap_err();
    assert!(error.to_string().contains("remove it"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "notes", "nothing of others is removed");
}
