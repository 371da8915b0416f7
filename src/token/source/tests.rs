//! Both endpoints over real sockets: what goes out, byte for byte, and what every way of failing is called.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::*;

const SECRET: &str = "0123\"&+%456789abcdef";
const TOKEN: &str =
    "HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n{\"access_token\":\"TOK\",\"expires_in\":7200}";

fn source(endpoint: Endpoint, origin: &str) -> Source {
    hurried(endpoint, origin, Duration::from_secs(20))
}

fn hurried(endpoint: Endpoint, origin: &str, fetch_timeout: Duration) -> Source {
    let config = Config {
        endpoint,
        origin: Origin::parse(origin).unwrap(),
        roots: ExtraRoots::default(),
        connect_timeout: Duration::from_secs(10),
        fetch_timeout,
    };
    Source::new(&config, AppId::parse("wx0123456789abcdef").unwrap(), Secret::parse(SECRET).unwrap()).unwrap()
}

/// Answers one connection with `reply`, as it is, and hands back what was asked.
async fn answering(reply: impl Into<Vec<u8>>) -> (String, JoinHandle<String>) {
    let reply = reply.into();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    let asked = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let asked = read_request(&mut stream).await;
        // The client may hang up early, which is its right.
        let _ = stream.write_all(&reply).await;
        asked
    });
    (origin, asked)
}

async fn read_request(stream: &mut TcpStream) -> String {
    let mut request = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&request).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                return text;
            }
        }
        if stream.read_buf(&mut request).await.unwrap() == 0 {
            return String::from_utf8_lossy(&request).into_owned();
        }
    }
}

async fn failure(endpoint: Endpoint, origin: &str) -> FetchError {
    failure_of(&source(endpoint, origin)).await
}

async fn failure_of(source: &Source) -> FetchError {
    let error = source.fetch(Want::default()).await.unwrap_err();
    let told = format!("{error:?}");
    assert!(!told.contains(SECRET) && !told.contains("456789abcdef"), "{told}");
    assert!(!told.contains("cgi-bin") && !told.contains("TOK"), "{told}");
    error
}

#[tokio::test]
async fn stable_token_is_asked_in_normal_mode_with_the_secret_in_the_body() {
    let (origin, asked) = answering(TOKEN).await;
    let token = source(Endpoint::Stable, &origin).fetch(Want::default()).await.unwrap();
    assert_eq!(token.expose(), "TOK");
    assert!(token.remaining() > Duration::from_secs(7190));
    let asked = asked.await.unwrap();
    let (head, body) = asked.split_once("\r\n\r\n").unwrap();
    assert_eq!(
        body,
        r#"{"grant_type":"client_credential","appid":"wx0123456789abcdef","secret":"0123\"&+%456789abcdef","force_refresh":false}"#
    );
    let head = head.to_ascii_lowercase();
    let mut lines = head.lines();
    assert_eq!(lines.next(), Some("post /cgi-bin/stable_token http/1.1"));
    let mut headers: Vec<_> = lines.collect();
    headers.sort_unstable();
    assert_eq!(
        headers,
        [
            "accept: */*".to_owned(),
            format!("content-length: {}", body.len()),
            "content-type: application/json".to_owned(),
            format!("host: {}", origin.strip_prefix("http://").unwrap()),
            format!("user-agent: wechat-sidecar/{}", env!("CARGO_PKG_VERSION")),
        ]
    );
}

#[tokio::test]
async fn classic_token_is_asked_with_the_secret_escaped_in_the_query() {
    let (origin, asked) = answering(TOKEN).await;
    assert_eq!(source(Endpoint::Classic, &origin).fetch(Want::default()).await.unwrap().expose(), "TOK");
    let asked = asked.await.unwrap();
    assert!(
        asked.starts_with(
            "GET /cgi-bin/token?grant_type=client_credential&appid=wx0123456789abcdef&secret=0123%22%26%2B%25456789abcdef HTTP/1.1\r\n"
        ),
        "{asked}"
    );
    assert!(asked.ends_with("\r\n\r\n"));
}

#[tokio::test]
async fn a_proposed_secret_is_used_by_the_fetch_that_is_to_prove_it() {
    let (origin, asked) = answering(TOKEN).await;
    let source = source(Endpoint::Stable, &origin);
    source.propose_secret(Some(Secret::parse("another").unwrap()));
    source.fetch(Want { new_secret: true, ..Want::default() }).await.unwrap();
    assert!(asked.await.unwrap().contains(r#""secret":"another""#));
}

#[tokio::test]
async fn the_two_endpoints_have_their_own_pace() {
    let stable = source(Endpoint::Stable, "http://127.0.0.1:1");
    let classic = source(Endpoint::Classic, "http://127.0.0.1:1");
    assert_eq!((stable.name(), classic.name()), ("stable_token", "token"));
    for (pace, quota) in [(stable.pace(), 500_000), (classic.pace(), 2000)] {
        assert!(u64::from(pace.burst) + 86_400 / pace.refill.as_secs() < quota);
    }
    // The last token lives for five more minutes (wechat-api.md 1): nothing may run out before the fetch.
    assert!(classic.pace().ahead - classic.pace().jitter >= Duration::from_secs(300));
    assert_eq!(stable.pace().ahead, Duration::from_secs(300));
}

#[tokio::test]
async fn a_refusal_is_told_with_wechats_words_but_not_the_secret() {
    let body = r#"{"errcode":40125,"errmsg":"invalid appsecret 0123%22%26%2B%25456789abcdef rid: 1"}"#;
    let reply = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    for endpoint in [Endpoint::Stable, Endpoint::Classic] {
        let (origin, _asked) = answering(reply.clone()).await;
        let error = failure(endpoint, &origin).await;
        assert_eq!((error.class, error.errcode), (Class::Config, Some(40125)));
        assert!(error.sentence.contains("invalid appsecret *** rid: 1"), "{}", error.sentence);
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let (elsewhere, asked_elsewhere) = answering(TOKEN).await;
    for endpoint in [Endpoint::Stable, Endpoint::Classic] {
        let (origin, _asked) = answering(format!(
            "HTTP/1.1 307 Temporary Redirect\r\nLocation: {elsewhere}/cgi-bin/token\r\nContent-Length: 0\r\n\r\n"
        ))
        .await;
        assert!(failure(endpoint, &origin).await.sentence.contains("redirect"));
    }
    assert!(!asked_elsewhere.is_finished());
}

#[tokio::test]
async fn a_reply_without_end_is_not_read_to_its_end() {
    for head in [
        "HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n".to_owned(),
        format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n", 200_000),
    ] {
        let (origin, _asked) = answering([head.as_bytes(), &vec![b' '; 200_000]].concat()).await;
        assert!(failure(Endpoint::Stable, &origin).await.sentence.contains("longer than 65536"));
    }
}

#[tokio::test]
async fn a_silent_wechat_is_waited_for_no_longer_than_the_fetch_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    let patience = Duration::from_millis(300);
    for endpoint in [Endpoint::Stable, Endpoint::Classic] {
        let began = Instant::now();
        let error = failure_of(&hurried(endpoint, &origin, patience)).await;
        assert!(error.sentence.contains("did not answer the token request within 300ms"), "{error:?}");
        assert!(began.elapsed() >= patience);
    }
}

#[tokio::test]
async fn a_closed_port_a_hang_up_and_a_wrong_protocol_are_told_apart() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    for endpoint in [Endpoint::Stable, Endpoint::Classic] {
        let told = failure(endpoint, &closed).await.sentence;
        assert!(told.contains("no connection to") && told.contains("refused"), "{told}");

        let (origin, _asked) = answering("").await;
        let told = failure(endpoint, &origin).await.sentence;
        assert!(told.contains("broke off"), "{told}");

        let (origin, _asked) = answering("not HTTP at all\r\n\r\n").await;
        assert_eq!(failure(endpoint, &origin).await.class, Class::Transient);

        let (origin, _asked) = answering("HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n{\"access").await;
        let told = failure(endpoint, &origin).await.sentence;
        assert!(told.contains("broke off"), "{told}");

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = format!("https://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { listener.accept().await.unwrap().0.write_all(b"no TLS here").await });
        let told = failure(endpoint, &origin).await.sentence;
        assert!(told.contains("no trusted connection to https://"), "{told}");
    }
}
