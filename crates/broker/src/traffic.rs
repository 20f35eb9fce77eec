//! Counts of what goes through a topic, or from it to a group, since the start of the process. Any thread; each addition is
//! one atomic.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a group had of a topic.
#[derive(Debug, Default)]
pub struct Delivered {
    /// Each delivery counts.
    pub traffic: Traffic,
    letters: AtomicU64,
}

impl Delivered {
    /// One more was copied to the dead letters.
    pub fn is_dead(&self) {
        self.letters.fetch_add(1, Ordering::Relaxed);
    }

    /// Dead letters so far.
    pub fn letters(&self) -> u64 {
        self.letters.load(Ordering::Relaxed)
    }
}

/// See the module's comment.
#[derive(Debug, Default)]
pub struct Traffic {
    messages: AtomicU64,
    bytes: AtomicU64,
}

impl Traffic {
    /// So many more; `bytes` are those of their records in the log.
    pub fn add(&self, messages: u64, bytes: u64) {
        self.messages.fetch_add(messages, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Messages and bytes so far.
    pub fn counts(&self) -> (u64, u64) {
        (self.messages.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
}
