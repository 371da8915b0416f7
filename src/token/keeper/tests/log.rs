//! What an operator reads: a token's life, told once, and never the token.

use super::*;

/// What is logged on this thread from now on, until the guards go.
fn logged() -> (Arc<Mutex<Vec<u8>>>, impl Sized) {
    #[derive(Clone)]
    struct Sink(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let log = Arc::<Mutex<Vec<u8>>>::default();
    let sink = Sink(Arc::clone(&log));
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::INFO)
        .with_ansi(false)
        .with_writer(move || sink.clone())
        .finish();
    // While there is but one subscriber, tracing asks only the thread that comes to a log line first whether anybody
    // listens to it, and that may be another test's. So there are two.
    let second = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::default());
    let first = tracing::subscriber::set_default(subscriber);
    tracing::callsite::rebuild_interest_cache();
    (log, (first, second))
}

#[tokio::test(start_paused = true)]
async fn the_log_tells_a_tokens_life_once_and_never_the_token() {
    let (log, _guard) = logged();
    let read = || String::from_utf8(log.lock().unwrap().clone()).unwrap();
    let count = |what: &str| read().lines().filter(|line| line.contains(what)).count();

    let wechat = WeChat::stable();
    let (keeper, _worker) = wechat.kept();
    let mut token = keeper.token(WAIT).await.unwrap();
    let first = token.fingerprint().to_string();
    assert_eq!(count("fetched a token"), 1);
    assert!(read().contains(&first) && read().contains("life_s=7200") && read().contains("reason=startup"));

    // Someone else, twice within the hour and once after it.
    for pause in [60, 60, 3600] {
        sleep(secs(pause)).await;
        token.mark_accepted();
        wechat.with(Rules::rotate);
        token = another(keeper.refresh(&token, CHRONIC, WAIT).await);
    }
    assert_eq!(count("WeChat refused the token"), 3);
    assert_eq!(count("someone else is fetching"), 2);
    assert!(read().contains(&format!("{first} was refused with 40001")));

    // The same again.
    sleep(secs(60)).await;
    keeper.refresh(&token, CHRONIC, WAIT).await;
    assert_eq!(count("the same again"), 1);

    // An outage of a day is a line every ten minutes, and one more when its kind changes.
    wechat.fails(busy());
    sleep(DAY).await;
    let told = count("no token was fetched");
    assert!((120..=145).contains(&told), "{told}");
    wechat.fails(refusal(Class::Config, 40125, 60, 600));
    sleep(secs(120)).await;
    assert_eq!(count("errcode=40125"), 1);
    wechat.recovers();
    sleep(secs(1200)).await;
    assert_eq!(count("succeed again"), 1);
    assert!(!read().contains("TOKEN_"));
}
