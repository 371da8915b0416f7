//! What the bridge does with what it finds, and what it takes. Over a whole sidecar it is tested from outside.

use std::time::Duration;

use tokio::time::{Instant, advance};
use zeroize::Zeroizing;

use super::adopt::Adopting;
use super::*;
use crate::token::redis;
use crate::token::redis_rig as rig;
use crate::token::source::{FetchError, Pace, Supplier, TokenSource, Want};

const APPS: &str = "50_a-token-that-an-app-fetched-for-itself_0123456789";

fn bridge(adopts: bool) -> Bridge {
    bridge_to(redis_at("redis://127.0.0.1:1"), adopts)
}

fn redis_at(url: &str) -> Redis {
    Redis::new(redis::Config { address: address(url), roots: None })
}

fn bridge_to(redis: Redis, adopts: bool) -> Bridge {
    let (appid, secret) = (AppId::parse("wxAPPID").unwrap(), Secret::parse("5ec2e7").unwrap());
    Bridge::new(appid, Some(&secret), &[plain()], redis, adopts, |token| token.starts_with("PLACEHOLDER"))
}

fn address(url: &str) -> Address {
    Address::parse(url).unwrap()
}

fn plain() -> Format {
    Format::parse("wxjava-mp").unwrap()
}

fn token(name: &str, life: u64) -> Token {
    let value = format!("50_one-of-ours-{name}-0123456789012345678901234567890123456789");
    Token::new(&value, Instant::now(), Duration::from_secs(life)).unwrap()
}

fn found(value: &str, ttl: Option<u64>) -> Option<Found> {
    let value = Zeroizing::new(value.as_bytes().to_vec());
    Some(Found { value, ttl: ttl.map(Duration::from_secs) })
}

#[tokio::test(start_paused = true)]
async fn what_is_gone_is_written_and_what_is_there_is_left() {
    let bridge = bridge(false);
    let ours = token("now", 7200);
    bridge.remember(&ours);
    let act = |found: Option<Found>, new| bridge.act(&plain(), found.as_ref(), &ours, new);
    assert_eq!(act(None, true), Act::Write(7140));
    assert_eq!(act(None, false), Act::Write(7140));
    for new in [true, false] {
        assert_eq!(act(found(ours.expose(), Some(7140)), new), Act::Leave);
        assert_eq!(act(found(ours.expose(), None), new), Act::Write(7140), "it would be there for ever");
        assert_eq!(act(found(ours.expose(), Some(7200)), new), Act::Write(7140), "or too long");
    }
    advance(Duration::from_secs(7000)).await;
    assert_eq!(act(None, false), Act::Write(140));
}

#[tokio::test(start_paused = true)]
async fn an_apps_own_token_is_left_until_there_is_a_new_one() {
    for adopts in [false, true] {
        let bridge = bridge(adopts);
        let ours = token("now", 7200);
        bridge.remember(&ours);
        let act = |found: Option<Found>, new| bridge.act(&plain(), found.as_ref(), &ours, new);
        assert_eq!(act(found(APPS, Some(7000)), false), Act::Leave);
        // Where it may be taken, it is not overwritten either.
        let expected = if adopts { Act::Leave } else { Act::Write(7140) };
        assert_eq!(act(found(APPS, Some(7000)), true), expected);
        assert_eq!(act(found(APPS, None), true), Act::Write(7140), "which is never taken");
        assert_eq!(act(found("", Some(7000)), true), Act::Write(7140));
    }
}

#[tokio::test(start_paused = true)]
async fn an_older_token_of_ours_and_a_placeholder_are_replaced() {
    for adopts in [false, true] {
        let bridge = bridge(adopts);
        let (before, ours) = (token("before", 7200), token("now", 7200));
        bridge.remember(&before);
        bridge.remember(&ours);
        for value in [before.expose(), "PLACEHOLDER-of-an-app-that-has-moved-0123456789"] {
            for new in [true, false] {
                let act = bridge.act(&plain(), found(value, Some(7000)).as_ref(), &ours, new);
                assert_eq!(act, Act::Write(7140), "{value}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn near_its_end_a_token_is_taken_back_and_none_of_another_is() {
    let bridge = bridge(false);
    let (before, ours) = (token("before", 7200), token("now", 7200));
    bridge.remember(&before);
    bridge.remember(&ours);
    advance(Duration::from_secs(7140)).await;
    let act = |found: Option<Found>| bridge.act(&plain(), found.as_ref(), &ours, false);
    assert_eq!(act(found(ours.expose(), Some(1))), Act::Delete);
    assert_eq!(act(found(before.expose(), Some(1))), Act::Delete);
    assert_eq!(act(found(APPS, Some(1))), Act::Leave);
    assert_eq!(act(None), Act::Leave);
    let brief = token("brief", 1);
    assert_eq!(bridge.act(&plain(), None, &brief, true), Act::Leave, "no whole second is left of it");
}

#[tokio::test(start_paused = true)]
async fn only_a_sound_token_of_another_is_taken() {
    let bridge = bridge(true);
    let ours = token("now", 7200);
    bridge.remember(&ours);
    let take =
        |value: &str, ttl: Option<u64>| bridge.take(&plain(), value.as_bytes(), ttl.map(Duration::from_secs));
    let taken = take(APPS, Some(7000)).unwrap();
    assert_eq!(
        (taken.expose(), taken.remaining()),
        (APPS, Duration::from_secs(6995)),
        "WeChat counted from earlier"
    );
    assert!(!taken.was_accepted(), "whether WeChat takes it is yet to be seen");
    let long = "x".repeat(4097);
    for (value, ttl, why) in [
        (APPS, None, "no end"),
        (APPS, Some(86_401), "more than a day"),
        ("", Some(7000), "too short"),
        ("short", Some(7000), "too short"),
        (&long, Some(7000), "longer than 4096"),
        ("a token with white space in it, and quite a lot of it", Some(7000), "white space"),
        ("50_a\r\nHost: example.com_0123456789012345678901234567890", Some(7000), "control"),
        ("PLACEHOLDER-of-an-app-that-has-moved-0123456789", Some(7000), "placeholder"),
        (ours.expose(), Some(7000), "ours"),
    ] {
        let told = take(value, ttl).unwrap_err();
        assert!(told.contains(why), "{told}");
    }
    let php = Format::parse("easywechat=k").unwrap();
    let value = format!("s:{}:\"{APPS}\";", APPS.len());
    let life = Some(Duration::from_secs(7000));
    assert!(bridge.take(&php, value.as_bytes(), life).unwrap_err().contains("not taken"));
}

#[test]
fn the_warning_names_who_gets_it_and_how_it_ends() {
    let appid = AppId::parse("wxAPPID").unwrap();
    let of = |parts: &[&str]| {
        let formats: Vec<_> = parts.iter().map(|part| Format::parse(part).unwrap()).collect();
        Bridge::warning(&appid, &formats, &address("redis://:5ec2e7@h"))
    };
    let warning = of(&["wxjava-mp", "wechatpy=app"]);
    for part in [
        "REAL",
        "redis://h:6379/0",
        "wxjava-mp (wx:access_token:wxAPPID)",
        "app:wxAPPID_access_token",
        "remove the setting",
    ] {
        assert!(warning.contains(part), "{warning}");
    }
    assert!(!warning.contains("APPSECRET") && !warning.contains("5ec2e7"), "{warning}");
    let warning = of(&["easywechat=official_account.access_token.{appid}.{secret}.0"]);
    assert!(warning.contains("APPSECRET") && warning.contains("{secret}"), "{warning}");
}

/// Whoever would issue a token.
struct Issuer(Supplier);

impl TokenSource for Issuer {
    fn name(&self) -> &'static str {
        "issuer"
    }

    fn pace(&self) -> Pace {
        let second = Duration::from_secs(1);
        Pace {
            ahead: second * 300,
            jitter: second,
            burst: 9,
            refill: second,
            refusal_wait: second,
            voids_the_last: true,
            look_again: None,
        }
    }

    fn supplier(&self) -> Supplier {
        self.0
    }

    async fn fetch(&self, _: Want<'_>) -> Result<Token, FetchError> {
        Ok(token("fetched", 7200))
    }
}

#[tokio::test]
async fn a_token_is_taken_only_where_one_would_be_fetched_from_wechat_and_any_will_do() {
    let server = rig::Server::start(&[]);
    let redis = redis_at(&server.url());
    let running = tokio::spawn(redis.clone().run());
    let set = |value: &str, ttl: &str| server.cli(&["SET", "wx:access_token:wxAPPID", value, "EX", ttl]);
    set(APPS, "7000");
    let source =
        |supplier, adopts| Adopting::new(Issuer(supplier), Some(Arc::new(bridge_to(redis.clone(), adopts))));
    let is_taken = async |source: &Adopting<Issuer>, want| source.fetch(want).await.unwrap().expose() == APPS;
    let theirs = Token::new(APPS, Instant::now(), Duration::from_secs(7000)).unwrap();
    let other = token("other", 7000);
    let of_wechat = source(Supplier::WeChat, true);
    assert!(is_taken(&of_wechat, Want::default()).await);
    assert!(is_taken(&of_wechat, Want { refused: Some(&other), ..Want::default() }).await);
    assert!(
        !is_taken(&of_wechat, Want { refused: Some(&theirs), ..Want::default() }).await,
        "it is the bad one"
    );
    assert!(
        !is_taken(&of_wechat, Want { afresh: true, ..Want::default() }).await,
        "a fetch is what is wanted"
    );
    assert!(!is_taken(&source(Supplier::WeChat, false), Want::default()).await, "nobody asked for it");
    for supplier in [Supplier::Central, Supplier::Store] {
        assert!(!is_taken(&source(supplier, true), Want::default()).await, "others fetch");
    }
    set(APPS, "300");
    assert!(!is_taken(&of_wechat, Want::default()).await, "it would be renewed at once");
    running.abort();
}
