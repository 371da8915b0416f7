//! Who is let in: what stands before everything on the admin port that acts or hands something out.
//!
//! SECURITY: a web page in a browser on this machine can send requests to it. So one that carries the marks of a page
//! (`Origin`, `Sec-Fetch-Site`), or names us by a host that may be the page's own (DNS rebinding), gets nothing. Past
//! that, either a key is asked for ([`Callers`]), or the caller is on this machine ([`is_here`]).

use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use http::{HeaderMap, HeaderName, Request, header};
use tokio::time::Instant;

use super::keys::{Key, Keys};
use crate::error::{Cause, Failure};
use crate::hosts;
use crate::server::Connection;

/// Refuses what a web page may have sent. `names` are those we go by beside addresses and localhost.
pub(super) fn no_web_page<B>(request: &Request<B>, names: &[String]) -> Result<(), Failure> {
    let headers = request.headers();
    let refused = |what: &str| Err(Failure::new(Cause::CrossSite, what));
    if headers.contains_key(header::ORIGIN) {
        return refused(
            "the request has an Origin, so it comes from a web page, and none may act here; nothing was done. Send it from a program, without that header",
        );
    }
    // Only what a person typed into the address bar has none; browsers do not let a page leave it out.
    if headers.get_all("sec-fetch-site").iter().any(|site| site != "none") {
        return refused(
            "the request has a Sec-Fetch-Site, so it comes from a web page, and none may act here; nothing was done. Send it from a program, without that header",
        );
    }
    let mut hosts = headers.get_all(header::HOST).iter().map(|host| host.to_str().unwrap_or_default());
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Failure::new(
            Cause::BadHost,
            "the head has several Host headers; nothing was done. Send one",
        ));
    }
    let named = request.uri().authority().map(http::uri::Authority::as_str);
    if [host, named].into_iter().flatten().all(|host| is_ours(host, names)) {
        Ok(())
    } else {
        refused(
            "the request names a host that this admin port does not go by, as one from a web page does that had its own name lead here; nothing was done. Use the address, or add the name to admin_hosts",
        )
    }
}

/// An address cannot be made to lead here by someone else; a name can.
fn is_ours(authority: &str, names: &[String]) -> bool {
    let Some((host, _)) = hosts::split(authority) else { return false };
    let host = host.strip_suffix('.').unwrap_or(host);
    host.parse::<IpAddr>().is_ok()
        || host.eq_ignore_ascii_case("localhost")
        || names.iter().any(|name| name.eq_ignore_ascii_case(host))
}

/// Whether the caller is on this machine (or in this pod), and does not speak for someone who is not.
///
/// SECURITY: not all of 127.0.0.0/8: a service mesh brings what comes from outside by another address of it (Istio by
/// 127.0.0.6), and who calls from here by none but these two.
pub(super) fn is_here<B>(request: &Request<B>, connection: &Connection) -> bool {
    const PASSED_ON: [&str; 3] = ["forwarded", "via", "x-real-ip"];
    let passed_on =
        |name: &HeaderName| PASSED_ON.contains(&name.as_str()) || name.as_str().starts_with("x-forwarded-");
    let here = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    connection.peer().is_some_and(|peer| here.contains(&peer.ip().to_canonical()))
        && !request.headers().keys().any(passed_on)
}

/// Requests that may come in a row with one key, and how many a second after that: hundreds of followers may share
/// one, and all of them come at once when a token dies.
const KEY_BURST: u32 = 1000;
const KEY_REFILL: Duration = Duration::from_millis(10);

/// What a wrong key waits for its answer: a guess costs time, and no two the same.
const SLOWED: std::ops::Range<u64> = 250..1000;
/// The most that wait at a time. Beyond it the answer comes at once, since waiting costs memory, and is no better.
const MOST_SLOWED: usize = 64;
/// Wrong keys are told again after this long.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// Those who hold the keys of one file.
pub(super) struct Callers {
    keys: Keys,
    /// The setting that names the file.
    setting: &'static str,
    budgets: Vec<Bucket>,
    wrong: Cell<u64>,
    slowed: Cell<usize>,
    told_at: Cell<Option<Instant>>,
}

impl Callers {
    pub(super) fn new(keys: Keys, setting: &'static str) -> Self {
        let budgets = (0..keys.len()).map(|_| Bucket::new(KEY_BURST, KEY_REFILL)).collect();
        Self { keys, setting, budgets, wrong: Cell::new(0), slowed: Cell::new(0), told_at: Cell::new(None) }
    }

    /// Requests with a key that is none of ours, so far.
    pub(super) fn wrong(&self) -> u64 {
        self.wrong.get()
    }

    /// The key a request carries, if it is one of ours and was not used too often.
    pub(super) async fn admit(&self, headers: &HeaderMap, connection: &Connection) -> Result<&Key, Failure> {
        let setting = self.setting;
        let Some(presented) = bearer(headers) else {
            return Err(Failure::new(
                Cause::NoKey,
                format!("the request has no key; send one of {setting} as Authorization: Bearer KEY"),
            ));
        };
        let Some((at, key)) = self.keys.find(presented) else {
            self.slow_down(connection).await;
            return Err(Failure::new(
                Cause::NoKey,
                format!(
                    "the key is none of {setting}; check it, letter by letter, with the line of that file"
                ),
            ));
        };
        self.budgets[at].take().map_err(|wait| too_often("with this key", wait))?;
        Ok(key)
    }

    /// A wrong key is counted, told once a minute, and answered late.
    async fn slow_down(&self, connection: &Connection) {
        let times = self.wrong.get() + 1;
        self.wrong.set(times);
        if self.told_at.get().is_none_or(|at| at.elapsed() >= TELL_AGAIN) {
            self.told_at.set(Some(Instant::now()));
            let peer = connection.peer().map(|peer| peer.ip().to_canonical().to_string());
            tracing::warn!(
                peer,
                times,
                setting = self.setting,
                "a request came with a wrong key; if it is from one of yours, give it a key of that file"
            );
        }
        if self.slowed.get() >= MOST_SLOWED {
            return;
        }
        let _slowed = Slowed::new(&self.slowed);
        tokio::time::sleep(Duration::from_millis(fastrand::u64(SLOWED))).await;
    }
}

/// One who waits, as long as it is there.
struct Slowed<'a>(&'a Cell<usize>);

impl<'a> Slowed<'a> {
    fn new(count: &'a Cell<usize>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Slowed<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// The key of `Authorization: Bearer KEY`.
pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, key) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

/// The refusal of one who comes too often.
pub(super) fn too_often(what: &str, wait: Duration) -> Failure {
    Failure {
        cause: Cause::RateLimited,
        message: format!(
            "too many requests {what}; nothing was done. Come again after Retry-After, and ask less often"
        ),
        retry_after: Some(wait),
    }
}

/// A token bucket, as one instant: when it will be full again.
pub(super) struct Bucket {
    burst: u32,
    refill: Duration,
    full_at: Cell<Instant>,
}

impl Bucket {
    pub(super) fn new(burst: u32, refill: Duration) -> Self {
        Self { burst, refill, full_at: Cell::new(Instant::now()) }
    }

    /// Takes one, or says how long until there is one.
    pub(super) fn take(&self) -> Result<(), Duration> {
        let now = Instant::now();
        let full_at = self.full_at.get().max(now) + self.refill;
        let room = self.refill * self.burst;
        match (full_at - now).checked_sub(room) {
            None | Some(Duration::ZERO) => {
                self.full_at.set(full_at);
                Ok(())
            }
            Some(wait) => Err(wait),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(headers: &[(&str, &str)], uri: &str) -> Result<(), Cause> {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let names = ["central.example.com".to_owned()];
        no_web_page(&request.body(()).unwrap(), &names).map_err(|failure| failure.cause)
    }

    #[test]
    fn what_a_web_page_may_have_sent_is_refused() {
        for host in [
            "127.0.0.1:7201",
            "[::1]:7201",
            "10.0.0.7",
            "localhost",
            "LocalHost:7201",
            "localhost.:1",
            "central.example.com:7201",
            "Central.Example.com",
        ] {
            assert_eq!(checked(&[("host", host)], "/refresh"), Ok(()), "{host}");
        }
        assert_eq!(checked(&[], "/refresh"), Ok(()), "HTTP/1.0 has none, and no browser speaks it");
        assert_eq!(checked(&[("host", "localhost"), ("sec-fetch-site", "none")], "/"), Ok(()));
        for host in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "central.example.com.evil.example",
            "evil.example@127.0.0.1",
            "",
            "[::1",
            "127.0.0.1:x",
        ] {
            assert_eq!(checked(&[("host", host)], "/refresh"), Err(Cause::CrossSite), "{host}");
        }
        for (name, value) in [
            ("origin", "http://127.0.0.1:7201"),
            ("origin", "null"),
            ("origin", ""),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-origin"),
            ("sec-fetch-site", ""),
        ] {
            assert_eq!(
                checked(&[("host", "localhost"), (name, value)], "/"),
                Err(Cause::CrossSite),
                "{name}"
            );
        }
        let two = [("host", "localhost"), ("sec-fetch-site", "none"), ("sec-fetch-site", "cross-site")];
        assert_eq!(checked(&two, "/"), Err(Cause::CrossSite));
        assert_eq!(checked(&[("host", "localhost"), ("host", "localhost")], "/"), Err(Cause::BadHost));
        let absolute = checked(&[("host", "localhost")], "http://evil.example/refresh");
        assert_eq!(absolute, Err(Cause::CrossSite));
    }

    #[test]
    fn who_is_here_is_on_this_machine_and_speaks_for_himself() {
        let here = |peer: &str, header: Option<&str>| {
            let mut request = Request::builder();
            if let Some(name) = header {
                request = request.header(name, "10.0.0.7");
            }
            is_here(&request.body(()).unwrap(), &Connection::from(peer.parse().unwrap()))
        };
        for peer in ["127.0.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert!(here(peer, None), "{peer}");
            for passed_on in ["x-forwarded-for", "x-forwarded-proto", "forwarded", "via", "x-real-ip"] {
                assert!(!here(peer, Some(passed_on)), "{peer} {passed_on}");
            }
        }
        for peer in ["127.0.0.6:1", "10.0.0.7:1", "[2001:db8::7]:1", "[::ffff:10.0.0.7]:1"] {
            assert!(!here(peer, None), "{peer}");
        }
        assert!(!is_here(&Request::new(()), &Connection::default()));
    }

    #[test]
    fn a_key_is_what_follows_bearer() {
        let of = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, http::HeaderValue::from_static(value));
            bearer(&headers).map(str::to_owned)
        };
        assert_eq!(of("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(of("bearer  abc ").as_deref(), Some("abc"));
        for none in ["", "abc", "Bearer", "Basic abc", "Bearerabc"] {
            assert_eq!(of(none), None, "{none}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_bucket_is_a_burst_and_then_a_trickle() {
        let bucket = Bucket::new(3, Duration::from_secs(10));
        for _ in 0..2 {
            for _ in 0..3 {
                assert_eq!(bucket.take(), Ok(()));
            }
            assert_eq!(bucket.take(), Err(Duration::from_secs(10)));
            tokio::time::advance(Duration::from_secs(4)).await;
            assert_eq!(bucket.take(), Err(Duration::from_secs(6)));
            tokio::time::advance(Duration::from_secs(6)).await;
            assert_eq!(bucket.take(), Ok(()));
            assert!(bucket.take().is_err());
            tokio::time::advance(Duration::from_secs(86_400)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_wrong_key_is_counted_and_slowed_but_no_more_wait_than_a_few() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("keys"), "0123456789abcdef wx1").unwrap();
        let keys = Keys::read(&dir.path().join("keys")).unwrap();
        let callers = std::rc::Rc::new(Callers::new(keys, "central_keys_file"));
        let wrong = |key: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, format!("Bearer {key}").parse().unwrap());
            headers
        };
        let connection = Connection::default();
        assert!(callers.admit(&wrong("0123456789abcdef"), &connection).await.is_ok());
        let local = tokio::task::LocalSet::new();
        for n in 0..MOST_SLOWED {
            let (callers, headers, connection) =
                (std::rc::Rc::clone(&callers), wrong(&format!("guess{n}")), connection.clone());
            local.spawn_local(async move {
                let began = Instant::now();
                let failure = callers.admit(&headers, &connection).await.err().unwrap();
                assert_eq!(failure.cause, Cause::NoKey);
                assert!(!failure.message.contains("guess"));
                assert!((250..1001).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
            });
        }
        let flooded = std::rc::Rc::clone(&callers);
        local
            .run_until(async move {
                while flooded.slowed.get() < MOST_SLOWED {
                    tokio::task::yield_now().await;
                }
                let began = Instant::now();
                for _ in 0..1000 {
                    assert!(flooded.admit(&wrong("guess"), &connection).await.is_err());
                }
                assert_eq!(began.elapsed(), Duration::ZERO);
            })
            .await;
        local.await;
        assert_eq!((callers.wrong(), callers.slowed.get()), (1064, 0));
        let failure = callers.admit(&HeaderMap::new(), &Connection::default()).await.err().unwrap();
        assert!(failure.message.contains("Authorization: Bearer KEY"));
        assert_eq!(callers.wrong(), 1064, "none at all is no guess");
        for _ in 0..KEY_BURST {
            let _ = callers.budgets[0].take();
        }
        let failure = callers.admit(&wrong("0123456789abcdef"), &Connection::default()).await.err().unwrap();
        assert_eq!((failure.cause, failure.retry_after.is_some()), (Cause::RateLimited, true));
    }
}
