//! Keepers whose token comes from another keeper, as it does from a central token server.

use super::*;
use crate::token::source::Supplier;

/// A central server without its network, and how long it takes to say what it has.
#[derive(Clone)]
struct Passed(TokenKeeper, Duration);

impl TokenSource for Passed {
    fn name(&self) -> &'static str {
        "passed"
    }

    fn pace(&self) -> Pace {
        Pace { ahead: secs(120), look_again: Some(secs(60)), ..WeChat::stable().pace() }
    }

    fn supplier(&self) -> Supplier {
        Supplier::Central
    }

    async fn fetch(&self, want: Want<'_>) -> Result<Token, FetchError> {
        let brought = match want.refused.and_then(|refused| self.0.find(refused.fingerprint())) {
            None => {
                let token = self.0.token(WAIT).await.map_err(|none| FetchError::transient(none.message));
                sleep(self.1).await;
                return token;
            }
            Some(refused) => {
                if want.news {
                    refused.mark_accepted();
                }
                let refusal = Refusal { said: Said::Reported, chronic: !want.news };
                self.0.refresh(&refused, refusal, secs(8)).await
            }
        };
        match brought {
            Refresh::Another(token) | Refresh::Same(token) => Ok(token),
            Refresh::No(why) => Err(FetchError::transient(why)),
        }
    }
}

fn follower(central: &TokenKeeper, latency: Duration) -> (TokenKeeper, JoinHandle<()>) {
    let appid = AppId::parse("wx0123456789abcdef").unwrap();
    let (keeper, worker) = TokenKeeper::new(appid, Passed(central.clone(), latency), MemoryStore::new());
    (keeper, tokio::spawn(worker.run()))
}

fn followers(central: &TokenKeeper, number: usize) -> Vec<(TokenKeeper, JoinHandle<()>)> {
    (0..number).map(|_| follower(central, Duration::ZERO)).collect()
}

#[tokio::test(start_paused = true)]
async fn sixty_four_followers_of_a_central_server_cost_it_no_fetch_more() {
    for (wechat, most) in [(WeChat::stable(), 4), (WeChat::classic(), 4)] {
        let (central, _worker) = wechat.kept();
        let followers = followers(&central, 64);
        let end = Instant::now() + 6 * HOUR;
        while Instant::now() < end {
            sleep(secs(300)).await;
            for (follower, _) in &followers {
                assert!(follower.current().expect("a token at any time").remaining() > secs(60));
            }
        }
        assert!((3..=most).contains(&wechat.fetches()), "{}", wechat.fetches());
        let foreign: u64 = followers.iter().map(|(follower, _)| follower.status().foreign_rotations).sum();
        assert_eq!(foreign, 0, "another token from a central server is no stranger's");
        assert!(followers.iter().all(|(follower, _)| follower.status().failures == 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_rotation_is_known_to_followers_within_a_minute_or_by_one_refusal() {
    let wechat = WeChat::stable();
    let (central, _worker) = wechat.kept();
    let followers = followers(&central, 64);
    for (follower, _) in &followers {
        follower.token(WAIT).await.unwrap();
    }
    sleep(HOUR).await;
    // One of them, or the server itself, hears it from WeChat; the rest looks.
    let old = central.current().unwrap();
    wechat.with(Rules::rotate);
    let new = another(central.refresh(&old, CHRONIC, WAIT).await);
    sleep(secs(73)).await;
    assert!(followers.iter().all(|(follower, _)| follower.current().as_ref() == Some(&new)));
    // All hear it at once: one fetch.
    wechat.with(Rules::rotate);
    let news = Refusal { chronic: false, ..CHRONIC };
    let calls: JoinSet<_> = followers
        .iter()
        .map(|(follower, _)| {
            let (follower, held) = (follower.clone(), follower.current().unwrap());
            held.mark_accepted();
            async move { another(follower.refresh(&held, news, WAIT).await) }
        })
        .collect();
    let mut tokens = calls.join_all().await;
    tokens.dedup();
    assert_eq!((tokens.len(), wechat.fetches()), (1, 3));
    // WeChat refuses and holds to its token: the breaker is the server's, whoever asks.
    let held = tokens.remove(0);
    let until = Instant::now() + HOUR;
    while Instant::now() < until {
        for (follower, _) in &followers {
            follower.refresh(&held, CHRONIC, WAIT).await;
        }
        sleep(secs(1)).await;
    }
    let fetches = wechat.fetches() - 3;
    assert!((200..=240).contains(&fetches), "one in 16 s, not one for each of 64: {fetches}");
    assert_eq!(central.current(), Some(held));
}

#[tokio::test(start_paused = true)]
async fn a_look_under_way_is_no_answer_to_a_refusal() {
    let wechat = WeChat::stable();
    let (central, _worker) = wechat.kept();
    let (follower, _following) = follower(&central, secs(3));
    let held = follower.token(secs(10)).await.unwrap();
    held.mark_accepted();
    while follower.status().next_attempt.is_some() {
        sleep(Duration::from_millis(100)).await;
    }
    // It is being told of the token that WeChat refuses now.
    wechat.with(Rules::rotate);
    let news = Refusal { chronic: false, ..CHRONIC };
    let refreshing: JoinSet<_> = (0..10)
        .map(|_| {
            let (follower, held) = (follower.clone(), held.clone());
            async move { another(follower.refresh(&held, news, secs(10)).await) }
        })
        .collect();
    assert!(refreshing.join_all().await.iter().all(|token| token.expose() == "TOKEN_2"));
    assert_eq!(wechat.fetches(), 2);
}
