//! A plain connection to Redis, made again when it breaks: [`Redis`].

use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{AsyncConnectionConfig, Client, Cmd, FromRedisValue, RedisError};
use tokio::sync::Mutex;
use tokio::time::timeout;

/// The longest one thing may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// What went wrong, in a sentence without a secret.
pub(super) type Fault = String;

/// A Redis, and the connection to it while there is one.
pub struct Redis {
    client: Client,
    connection: Mutex<Option<MultiplexedConnection>>,
}

impl Redis {
    /// The Redis at this URL. Nothing is connected yet.
    ///
    /// # Errors
    /// A sentence, without the URL, in which a password may stand.
    pub fn new(url: &str) -> Result<Self, String> {
        let client = Client::open(url).map_err(|error| {
            format!("it is no URL of a Redis ({}); write it as redis://host:6379/0", error.category())
        })?;
        Ok(Self { client, connection: Mutex::new(None) })
    }

    /// Sends one command and waits for the answer.
    pub(super) async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Fault> {
        let mut kept = self.connection.lock().await;
        let asked = timeout(PATIENCE, async {
            let mut connection = match &*kept {
                Some(connection) => connection.clone(),
                None => self.connect().await?,
            };
            let answer = command.query_async(&mut connection).await;
            Ok((answer, connection))
        });
        let answer = match asked.await {
            Ok(Ok((answer, connection))) => {
                *kept = Some(connection);
                answer
            }
            Ok(Err(error)) => Err(error),
            Err(_) => {
                *kept = None;
                return Err(format!("no answer within {PATIENCE:?}"));
            }
        };
        answer.map_err(|error| {
            if error.is_unrecoverable_error() {
                *kept = None;
            }
            told(&error)
        })
    }

    async fn connect(&self) -> Result<MultiplexedConnection, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(PATIENCE))
            .set_response_timeout(Some(PATIENCE));
        self.client.get_multiplexed_async_connection_with_config(&config).await
    }
}

/// An error in words that are safe to show. SECURITY: never the server's whole sentence: one about a command that it
/// does not know repeats what stood in it, keys and values.
fn told(error: &RedisError) -> String {
    match error.code() {
        Some(code) => format!("Redis refused with {code}"),
        None if error.is_io_error() => error.to_string(),
        None => error.category().to_owned(),
    }
}
