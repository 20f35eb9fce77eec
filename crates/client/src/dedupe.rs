//! Effects that happen once though their message comes twice.
//!
//! Delivery is at least once: a consumer that is killed between its work and the acknowledgement gets the message again.
//! A store remembers which messages a group has done, by their ids, and [`once`] asks it before it begins.
//!
//! Called by handlers, on their tasks. What a store remembers is its own; see the modules of the three.

mod file;
mod log;
mod memory;
#[cfg(feature = "redis")]
mod redis;
mod table;

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::FutureExt as _;

pub use self::file::FileStore;
pub use self::memory::MemoryStore;
#[cfg(feature = "redis")]
pub use self::redis::RedisStore;
use crate::view::MessageView;

/// What a store remembers, and for how long.
///
/// ```
/// use std::time::Duration;
///
/// use karman_client::DedupeLimits;
///
/// // 200 messages a second, remembered for a day.
/// let limits = DedupeLimits::default().window(Duration::from_secs(86_400)).capacity(20_000_000);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DedupeLimits {
    /// For how long a message that is done is known; 1 h by default. Longer than a message that was done may take to come
    /// again: after a broker or its network was away, for example.
    pub window: Duration,
    /// For how long a message that somebody has begun with is kept from others; 5 min by default. Longer than an effect
    /// takes, for then another may begin, and shorter than the retries of the group last, for who died meanwhile holds it
    /// so long in a store that outlives him.
    pub claim: Duration,
    /// How many ids are remembered at most; 1,000,000 by default: 280 messages a second for an hour. One takes about 140
    /// bytes of memory. `RedisStore` does not count them: Redis has a limit of its own.
    pub capacity: usize,
}

impl Default for DedupeLimits {
    fn default() -> Self {
        Self { window: Duration::from_secs(3600), claim: Duration::from_secs(300), capacity: 1_000_000 }
    }
}

impl DedupeLimits {
    /// What is done is known for so long.
    #[must_use]
    pub fn window(mut self, window: Duration) -> Self {
        self.window = window;
        self
    }

    /// Who has begun keeps others away for so long.
    #[must_use]
    pub fn claim(mut self, claim: Duration) -> Self {
        self.claim = claim;
        self
    }

    /// So many ids at most.
    #[must_use]
    pub fn capacity(mut self, capacity: usize) -> Self {
        self.capacity = capacity;
        self
    }
}

/// Tells one claim from a later one of the same message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClaimToken(u64);

impl ClaimToken {
    /// One that nobody else has.
    ///
    /// ```
    /// use karman_client::ClaimToken;
    ///
    /// assert_ne!(ClaimToken::random(), ClaimToken::random());
    /// ```
    pub fn random() -> Self {
        Self(rand::random())
    }
}

impl fmt::Display for ClaimToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What a store knows of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Nothing. It is the caller's from now on, who says [`DedupeStore::done`] or, with the token, [`DedupeStore::release`].
    New(ClaimToken),
    /// Somebody has begun with it.
    InProgress,
    /// It is done.
    Done,
}

/// Remembers the messages that a group has done. Use it through [`once`].
///
/// ```
/// use karman_client::{Claim, DedupeError, DedupeLimits, DedupeStore, MemoryStore};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), DedupeError> {
/// let store = MemoryStore::new(DedupeLimits::default());
/// assert!(matches!(store.claim("shipping", "01AB").await?, Claim::New(_)));
/// assert_eq!(store.claim("shipping", "01AB").await?, Claim::InProgress);
/// store.done("shipping", "01AB").await?;
/// assert_eq!(store.claim("shipping", "01AB").await?, Claim::Done);
/// // Another group does its own work.
/// assert!(matches!(store.claim("billing", "01AB").await?, Claim::New(_)));
/// # Ok(())
/// # }
/// ```
pub trait DedupeStore: Send + Sync {
    /// Asks for a message; of all who ask at the same time one is told [`Claim::New`].
    fn claim(&self, group: &str, message_id: &str)
    -> impl Future<Output = Result<Claim, DedupeError>> + Send;

    /// The effect has happened: the message is known as done when this returns, whoever had claimed it.
    fn done(&self, group: &str, message_id: &str) -> impl Future<Output = Result<(), DedupeError>> + Send;

    /// The effect has not happened: the message may be claimed again at once. Nothing, when the claim was over and another
    /// holds the message.
    fn release(
        &self,
        group: &str,
        message_id: &str,
        token: ClaimToken,
    ) -> impl Future<Output = Result<(), DedupeError>> + Send;
}

/// Why a store did not answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DedupeError {
    /// To forget one of the ids would break the promise that it stands for.
    #[error(
        "the store remembers {capacity} message ids, as many as it may, and none is older than its window of {} s; raise the capacity or shorten the window",
        .window.as_secs()
    )]
    Full {
        /// How many it may remember.
        capacity: usize,
        /// For how long it does.
        window: Duration,
    },
    /// Two processes would not know of each other.
    #[error(
        "the store in {directory:?} is in use by another process; give each its own directory, or use Redis for all"
    )]
    InUse {
        /// Where it is.
        directory: PathBuf,
    },
    /// There is something else.
    #[error("{file:?} is no store of message ids; give another directory")]
    Foreign {
        /// Which file.
        file: PathBuf,
    },
    /// What was answered as done cannot be read any more.
    #[error(
        "{file:?} is damaged at byte {offset}, and what lies behind was promised to be kept; restore the file, or remove it when it does no harm that messages are done again"
    )]
    Damaged {
        /// Which file.
        file: PathBuf,
        /// Of the first record that is not what was written.
        offset: u64,
    },
    /// The disk said no.
    #[error("{path:?}: {error}; look at the disk and at who may write there")]
    Io {
        /// Which file or directory.
        path: PathBuf,
        /// What it said.
        error: std::io::Error,
    },
    /// What is on disk is not known since an earlier error of the disk, which was logged.
    #[error("the store in {directory:?} has failed to write before; mend the disk and open the store again")]
    Failed {
        /// Where it is.
        directory: PathBuf,
    },
    /// Redis did not do it; whether it has, is not known.
    #[cfg(feature = "redis")]
    #[error("Redis: {why}; check that it runs at the address given and what its log says")]
    Redis {
        /// What it or the connection said.
        why: String,
    },
    /// Redis may forget what was promised to be kept.
    #[cfg(feature = "redis")]
    #[error(
        "Redis throws away keys when its memory is full (maxmemory-policy {policy}); set it to noeviction, or give the ids a Redis of their own"
    )]
    RedisEvicts {
        /// What it is set to.
        policy: String,
    },
}

/// Why [`once`] did not do it.
#[derive(Debug, thiserror::Error)]
pub enum OnceError<E> {
    /// Another consumer has begun with it, or began and died. It comes again; the claim ends by itself.
    #[error("message {message_id} is being handled elsewhere, or was when a consumer died; it comes again")]
    InProgress {
        /// Which message.
        message_id: String,
    },
    /// The store did not answer, and the effect was not begun.
    #[error("whether message {message_id} is done is not known: {error}")]
    Store {
        /// Which message.
        message_id: String,
        /// What the store said.
        error: DedupeError,
    },
    /// The effect's own error.
    #[error("{0}")]
    Effect(E),
}

/// Has `effect` happen once for a message of a group: from the handler of a [`PushConsumer`](crate::PushConsumer), whose
/// result this is, or before an acknowledgement.
///
/// `Ok` when the effect has succeeded now, or had before: then `effect` is dropped without having begun. When it returns
/// an error or panics, the message is released and comes again.
///
/// ```
/// use karman_client::{
///     Client, ClientError, DedupeLimits, FilterExpression, MemoryStore, MessageView, PushConsumer, PushOptions, once,
/// };
///
/// async fn ship(order: &MessageView) -> std::io::Result<()> {
///     println!("{:?}", order.body());
///     Ok(())
/// }
///
/// fn consumer(client: &Client) -> Result<PushConsumer, ClientError> {
///     let store = MemoryStore::new(DedupeLimits::default());
///     let handle = move |order: MessageView| {
///         let store = store.clone();
///         async move { once(&store, "shipping", &order, ship(&order)).await }
///     };
///     let orders = [("orders", FilterExpression::all())];
///     client.push_consumer("shipping", orders, &PushOptions::default(), handle)
/// }
/// ```
///
/// # What it promises
///
/// For each message id and group at most one effect that succeeds, within [`DedupeLimits::window`], as long as the store
/// lives: [`MemoryStore`] as long as the process, [`FileStore`] as long as its disk, `RedisStore` as long as what Redis keeps.
/// The id is that of the message, not of what it says: a producer that sends the same order in a second call makes a
/// second message. For the same reason who reads a topic once more on purpose, after `karman offset reset`, does nothing
/// with it within the window.
///
/// # What it does not
///
/// - **A crash between the effect and the note of it.** The message comes again, and so does the effect. (The other order,
///   note first, would lose the effect instead.) The same when the future is dropped half-way, when an effect takes longer
///   than [`DedupeLimits::claim`] and another begins, and when the note fails, which is logged: then the message is done all
///   the same, for to fail it would bring it back for certain.
/// - **Effects that fail half-way** are begun again.
///
/// An effect on a database does better without a store: write the message id in the same transaction as the effect, to a
/// column that takes each value once. Then there is no moment between the two. An effect on another service does so when
/// that takes the message id as the name of the request and does each name once.
pub async fn once<S, F, E>(
    store: &S,
    group: &str,
    message: &MessageView,
    effect: F,
) -> Result<(), OnceError<E>>
where
    S: DedupeStore,
    F: Future<Output = Result<(), E>>,
{
    let id = message.message_id();
    let token = match store.claim(group, id).await {
        Ok(Claim::New(token)) => token,
        Ok(Claim::Done) => return Ok(()),
        Ok(Claim::InProgress) => return Err(OnceError::InProgress { message_id: id.to_owned() }),
        Err(error) => return Err(OnceError::Store { message_id: id.to_owned(), error }),
    };
    let result = AssertUnwindSafe(effect).catch_unwind().await;
    if let Ok(Ok(())) = result {
        if let Err(error) = store.done(group, id).await {
            tracing::error!(message_id = id, group, %error, "a message is done and the store does not know it");
        }
        return Ok(());
    }
    if let Err(error) = store.release(group, id, token).await {
        tracing::warn!(message_id = id, group, %error, "a message that failed stays claimed for its time");
    }
    match result {
        Ok(result) => result.map_err(OnceError::Effect),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

#[cfg(test)]
mod tests;
