//! Which message ids were stored lately, so that a producer that sends one twice does not store it twice.
//!
//! A producer that got no answer sends again under the same id; the first may be stored, or about to be. So an id is
//! claimed before it is stored: whoever brings it meanwhile waits for the first, and then gets its result. The table holds
//! hashes and places, two generations of bounded size; what is claimed to be stored is read and compared before it counts.
//! It follows from the log: a start fills it from the keys of the index. Used by data threads; a lock is held for the ids of
//! one request.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use karman_store::{Append, AppendError, Appended, PhysicalOffset, key_hash};
use parking_lot::Mutex;
use tokio::sync::watch;

/// How long ids are remembered where a topic does not say it.
pub const WINDOW_DEFAULT_MINUTES: u32 = 10;
/// Ids of messages and keys of users do not meet in the index: topics have numbers below this bit.
const ID_SCOPE: u32 = 1 << 31;

/// The hash by which a message is found by its id.
pub fn id_hash(topic: u32, message_id: &str) -> u64 {
    key_hash(topic | ID_SCOPE, message_id.as_bytes())
}

/// Keys are hashes already.
#[derive(Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("the table's keys are u64");
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

type Table<V> = HashMap<u64, V, BuildHasherDefault<AsItIs>>;

/// What is known of an id.
#[derive(Debug)]
pub enum Known {
    /// Nothing: it is claimed now for whoever asked.
    Unknown,
    /// Something with this hash is stored there.
    Stored(PhysicalOffset),
    /// Another request is storing it; ends when that is decided.
    Pending(watch::Receiver<()>),
}

#[derive(Debug, Default)]
struct State {
    current: Table<PhysicalOffset>,
    former: Table<PhysicalOffset>,
    /// Nothing in `former` is younger. Milliseconds since 1970.
    since_ms: u64,
    /// The latest time that was seen: who settles late brings an earlier one. Milliseconds since 1970.
    latest_ms: u64,
    /// What is claimed; who waits for it is told by the end of the channel, which is made for the first that does.
    pending: Table<Option<watch::Sender<()>>>,
}

impl State {
    fn place(&self, hash: u64) -> Option<PhysicalOffset> {
        self.current.get(&hash).or_else(|| self.former.get(&hash)).copied()
    }
}

/// See the module's comment.
#[derive(Debug)]
pub struct Dedupe {
    /// Ids of one generation.
    generation_max: usize,
    state: Mutex<State>,
    /// The longest window asked for. Milliseconds.
    window_ms: AtomicU64,
    /// Sends that were answered with an earlier result.
    pub repeated: AtomicU64,
}

impl Dedupe {
    /// Remembers at most `ids_max` ids, and never fewer than the last half of that, for at least `window_ms`.
    pub fn new(ids_max: usize, window_ms: u64) -> Self {
        Self {
            generation_max: (ids_max / 2).max(1),
            state: Mutex::default(),
            window_ms: AtomicU64::new(window_ms),
            repeated: AtomicU64::new(0),
        }
    }

    /// What is known of each id, in order; those that are unknown are claimed, and belong into a [`Sending`].
    pub fn claim(&self, hashes: &[u64], window_ms: u64) -> Vec<Known> {
        self.window_ms.fetch_max(window_ms, Ordering::Relaxed);
        let mut state = self.state.lock();
        let known = |hash: &u64| {
            if let Some(waiters) = state.pending.get_mut(hash) {
                return Known::Pending(waiters.get_or_insert_with(|| watch::Sender::new(())).subscribe());
            }
            if let Some(at) = state.place(*hash) {
                return Known::Stored(at);
            }
            state.pending.insert(*hash, None);
            Known::Unknown
        };
        hashes.iter().map(known).collect()
    }

    /// What is stored under the hash, at `at`, is not what was sent, or too old: the id is claimed as if nothing were known.
    /// False when another request has claimed it meanwhile, or stored it: then something else is known by now.
    pub fn claim_anyway(&self, hash: u64, at: PhysicalOffset) -> bool {
        let mut state = self.state.lock();
        let is_free = !state.pending.contains_key(&hash) && state.place(hash) == Some(at);
        if is_free {
            state.pending.insert(hash, None);
        }
        is_free
    }

    /// Claims were not used: who waits for them goes on.
    pub fn release(&self, hashes: impl IntoIterator<Item = u64>) {
        let mut state = self.state.lock();
        for hash in hashes {
            state.pending.remove(&hash);
        }
    }

    /// A key that the index has; for a start, in the order of the log.
    pub fn restore(&self, hash: u64, at: PhysicalOffset, now_ms: u64) {
        self.remember(&mut self.state.lock(), hash, at, now_ms);
    }

    fn remember(&self, state: &mut State, hash: u64, at: PhysicalOffset, now_ms: u64) {
        state.latest_ms = state.latest_ms.max(now_ms);
        let now_ms = state.latest_ms;
        let is_old = now_ms.saturating_sub(state.since_ms) > self.window_ms.load(Ordering::Relaxed).max(1);
        if state.current.len() >= self.generation_max || is_old && !state.current.is_empty() {
            // Both keep their memory: growing anew would hold up everyone who sends.
            let State { current, former, .. } = state;
            std::mem::swap(current, former);
            current.clear();
        }
        if state.current.is_empty() {
            state.since_ms = now_ms;
        }
        state.current.insert(hash, at);
    }

    fn settle(&self, sent: &[(u64, u64)], first: PhysicalOffset, now_ms: u64) {
        let mut state = self.state.lock();
        for &(hash, behind) in sent {
            self.remember(&mut state, hash, PhysicalOffset(first.0 + behind), now_ms);
            state.pending.remove(&hash);
        }
    }
}

/// An append under way, with the claims of its ids: the future of its result. What becomes of the claims does not hang on
/// whether somebody still waits: when this is dropped too early it goes on by itself.
#[derive(Debug)]
pub struct Sending {
    append: Option<Append>,
    dedupe: Arc<Dedupe>,
    /// Hash of each claimed id, and how many bytes behind the first record its record lies.
    claimed: Vec<(u64, u64)>,
    /// It goes on by itself already.
    is_detached: bool,
}

impl Sending {
    /// An append whose records have these ids.
    pub fn new(append: Append, dedupe: Arc<Dedupe>, claimed: Vec<(u64, u64)>) -> Self {
        Self { append: Some(append), dedupe, claimed, is_detached: false }
    }
}

impl Future for Sending {
    type Output = Result<Appended, AppendError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let append = self.append.as_mut().expect("not polled after it was ready");
        let result = ready!(Pin::new(append).poll(context));
        self.append = None;
        match &result {
            Ok(appended) => {
                self.dedupe.settle(&self.claimed, appended.physical_offset, appended.store_time_ms);
            }
            Err(_) => self.dedupe.release(self.claimed.iter().map(|(hash, _)| *hash)),
        }
        Poll::Ready(result)
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if self.append.is_none() || self.claimed.is_empty() || self.is_detached {
            return;
        }
        let (append, claimed) = (self.append.take(), std::mem::take(&mut self.claimed));
        let rest = Self { append, dedupe: self.dedupe.clone(), claimed, is_detached: true };
        // It ends with the answer of the log writer, which comes in any case. Without a runtime the process ends.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            drop(runtime.spawn(async move { drop(rest.await) }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(dedupe: &Dedupe, hash: u64) -> Option<u64> {
        match dedupe.claim(&[hash], 1000).pop() {
            Some(Known::Stored(at)) => Some(at.0),
            Some(Known::Unknown) => {
                dedupe.release([hash]);
                None
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_id_is_pending_until_it_is_settled_and_then_known() {
        let dedupe = Dedupe::new(100, 0);
        assert!(matches!(dedupe.claim(&[7], 1000)[..], [Known::Unknown]));
        let [Known::Pending(mut waiting)] = <[Known; 1]>::try_from(dedupe.claim(&[7], 1000)).unwrap() else {
            panic!("it is pending")
        };
        assert!(!waiting.has_changed().unwrap());
        dedupe.settle(&[(7, 0)], PhysicalOffset(64), 5);
        assert!(waiting.has_changed().is_err(), "whoever waits is told by the end of the channel");
        assert!(waiting.borrow_and_update().eq(&()));
        assert_eq!(stored(&dedupe, 7), Some(64));
    }

    #[test]
    fn what_another_has_stored_since_it_was_looked_up_is_not_claimed() {
        let dedupe = Dedupe::new(100, 0);
        dedupe.restore(7, PhysicalOffset(64), 1);
        // Two that find the same and take it for too old.
        assert!(dedupe.claim_anyway(7, PhysicalOffset(64)));
        assert!(!dedupe.claim_anyway(7, PhysicalOffset(64)));
        dedupe.settle(&[(7, 0)], PhysicalOffset(128), 5);
        assert!(!dedupe.claim_anyway(7, PhysicalOffset(64)), "the other was faster");
        assert_eq!(stored(&dedupe, 7), Some(128));
    }

    #[test]
    fn a_released_id_is_free_again() {
        let dedupe = Dedupe::new(100, 0);
        dedupe.claim(&[7], 1000);
        dedupe.release([7]);
        assert_eq!(stored(&dedupe, 7), None);
    }

    #[test]
    fn old_ids_go_when_there_are_too_many_or_their_time_is_over() {
        let dedupe = Dedupe::new(20, 0);
        for hash in 0..25 {
            dedupe.restore(hash, PhysicalOffset(hash), 1);
        }
        assert_eq!(
            (stored(&dedupe, 9), stored(&dedupe, 10), stored(&dedupe, 24)),
            (None, Some(10), Some(24))
        );
        dedupe.restore(100, PhysicalOffset(100), 2000);
        dedupe.restore(101, PhysicalOffset(101), 4000);
        assert_eq!(
            (stored(&dedupe, 24), stored(&dedupe, 100), stored(&dedupe, 101)),
            (None, Some(100), Some(101))
        );
    }
}

#[cfg(test)]
mod model;
