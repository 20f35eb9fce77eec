//! The store of one process, for tests and for effects that end with the process. Any thread; its lock is held for a
//! few look-ups.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use super::table::{Key, Table};
use super::{Claim, ClaimToken, DedupeError, DedupeLimits, DedupeStore};

/// Remembers in memory, as long as the process runs: an effect is repeated after a restart, not while consumers come and
/// go. A clone is a handle to the same.
///
/// ```
/// use karman_client::{DedupeLimits, MemoryStore};
///
/// let store = MemoryStore::new(DedupeLimits::default().capacity(10_000));
/// ```
#[derive(Clone, Debug)]
pub struct MemoryStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    table: Mutex<Table>,
    began: Instant,
}

impl MemoryStore {
    /// An empty one.
    pub fn new(limits: DedupeLimits) -> Self {
        Self(Arc::new(Inner { table: Mutex::new(Table::new(limits)), began: Instant::now() }))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.0.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl DedupeStore for MemoryStore {
    async fn claim(&self, group: &str, message_id: &str) -> Result<Claim, DedupeError> {
        let key = Key::new(group, message_id);
        self.0.table.lock().claim(key, ClaimToken::random(), self.now())
    }

    async fn done(&self, group: &str, message_id: &str) -> Result<(), DedupeError> {
        self.0.table.lock().done(Key::new(group, message_id), self.now());
        Ok(())
    }

    async fn release(&self, group: &str, message_id: &str, token: ClaimToken) -> Result<(), DedupeError> {
        self.0.table.lock().release(Key::new(group, message_id), token);
        Ok(())
    }
}
