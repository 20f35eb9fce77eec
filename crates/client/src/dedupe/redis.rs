//! The store of many machines: a key in Redis for each message. Any task; one connection, made anew when it breaks.
//!
//! A key is `karman:once:GROUP:ID` (no group's name has a colon in it), its value the token of a claim, or `done`; Redis
//! forgets it when its time is over.

use std::fmt;
use std::time::Duration;

use ::redis::aio::{ConnectionManager, ConnectionManagerConfig};
use ::redis::{Client, FromRedisValue, RedisError};

use super::{Claim, ClaimToken, DedupeError, DedupeLimits, DedupeStore};

/// For one command, and for one attempt to connect.
const TIMEOUT: Duration = Duration::from_secs(3);
const DONE: &str = "done";
/// Removes a claim, unless it is over and another's, or done.
const RELEASE: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";

/// Remembers in Redis (6 or later, or Valkey), for consumers on many machines. Feature `redis`. A clone is a handle to the
/// same.
///
/// It is as durable as that Redis: with `appendfsync everysec`, its default for the append-only file, a power cut forgets
/// the last second, and without replication and `WAIT` a failover may forget more. Its memory is the limit: a key takes about
/// 180 bytes for [`DedupeLimits::window`]; `maxmemory-policy` must be `noeviction`, so that a full one refuses and does not
/// forget. Who dies with a claim holds it for [`DedupeLimits::claim`].
///
/// ```no_run
/// use karman_client::{DedupeError, DedupeLimits, RedisStore};
///
/// # async fn example() -> Result<(), DedupeError> {
/// let store = RedisStore::connect("redis://127.0.0.1:6379/0", DedupeLimits::default()).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RedisStore {
    connection: ConnectionManager,
    limits: DedupeLimits,
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl RedisStore {
    /// Connects to `redis://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE]`. Fails within some seconds when nothing answers there,
    /// and when that Redis throws away keys for lack of memory ([`DedupeError::RedisEvicts`]).
    pub async fn connect(url: &str, limits: DedupeLimits) -> Result<Self, DedupeError> {
        let client = Client::open(url).map_err(failed)?;
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(TIMEOUT))
            .set_response_timeout(Some(TIMEOUT))
            .set_number_of_retries(1);
        let connection = ConnectionManager::new_with_config(client, config).await.map_err(failed)?;
        let store = Self { connection, limits };
        let memory: String = store.call(::redis::cmd("INFO").arg("memory")).await?;
        match evicts(&memory) {
            Some(policy) => Err(DedupeError::RedisEvicts { policy: policy.to_owned() }),
            None => Ok(store),
        }
    }

    async fn call<T: FromRedisValue>(&self, command: &::redis::Cmd) -> Result<T, DedupeError> {
        // A handle to the one connection, which takes commands of all at once.
        let mut connection = self.connection.clone();
        command.query_async(&mut connection).await.map_err(failed)
    }
}

impl DedupeStore for RedisStore {
    async fn claim(&self, group: &str, message_id: &str) -> Result<Claim, DedupeError> {
        let (key, token) = (key(group, message_id), ClaimToken::random());
        let mut set = ::redis::cmd("SET");
        set.arg(&key).arg(token.to_string()).arg("NX").arg("PX").arg(millis(self.limits.claim));
        let set: Option<String> = self.call(&set).await?;
        if set.is_some() {
            return Ok(Claim::New(token));
        }
        let found: Option<String> = self.call(::redis::cmd("GET").arg(&key)).await?;
        // None: it ended between the two. Who comes again gets it.
        Ok(if found.as_deref() == Some(DONE) { Claim::Done } else { Claim::InProgress })
    }

    async fn done(&self, group: &str, message_id: &str) -> Result<(), DedupeError> {
        let mut set = ::redis::cmd("SET");
        set.arg(key(group, message_id)).arg(DONE).arg("PX").arg(millis(self.limits.window));
        self.call(&set).await
    }

    async fn release(&self, group: &str, message_id: &str, token: ClaimToken) -> Result<(), DedupeError> {
        let mut release = ::redis::cmd("EVAL");
        release.arg(RELEASE).arg(1).arg(key(group, message_id)).arg(token.to_string());
        self.call::<i64>(&release).await.map(drop)
    }
}

fn key(group: &str, message_id: &str) -> String {
    format!("karman:once:{group}:{message_id}")
}

/// Redis takes no time of zero.
fn millis(duration: Duration) -> u64 {
    // A thousand years: further ahead than its clock reaches it would refuse.
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).clamp(1, 31_536_000_000_000)
}

/// The policy of a Redis that may throw away keys, from what it says of its memory.
fn evicts(memory: &str) -> Option<&str> {
    let value =
        |name: &str| memory.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'));
    value("maxmemory_policy").filter(|policy| *policy != "noeviction" && value("maxmemory") != Some("0"))
}

fn failed(error: RedisError) -> DedupeError {
    DedupeError::Redis { why: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redis_with_a_limit_and_a_policy_that_evicts_is_told_by_it() {
        let memory = |limit: u64, policy: &str| {
            format!(
                "# Memory\r\nused_memory:1\r\nmaxmemory:{limit}\r\nmaxmemory_human:x\r\nmaxmemory_policy:{policy}\r\n"
            )
        };
        assert_eq!(evicts(&memory(100, "volatile-lru")), Some("volatile-lru"));
        assert_eq!(evicts(&memory(100, "noeviction")), None);
        assert_eq!(evicts(&memory(0, "allkeys-lru")), None);
    }

    #[test]
    fn times_are_such_as_redis_takes() {
        assert_eq!([Duration::ZERO, Duration::from_secs(5)].map(millis), [1, 5000]);
        assert!(millis(Duration::MAX) < i64::MAX as u64 / 2);
    }
}
