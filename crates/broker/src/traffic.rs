//! Counts of what goes through a topic, or from it to a group, since the start of the process. Any thread; each addition is
//! one atomic.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::spread::{Scale, Spread};

/// Bytes; the bounds of RocketMQ's `rocketmq_message_size`.
pub(crate) static SIZES: Scale =
    Scale { bounds: &[1 << 10, 4 << 10, 512 << 10, 1 << 20, 2 << 20, 4 << 20], unit: 1 };

/// What producers stored in a topic.
#[derive(Debug)]
pub struct Stored {
    /// All of it.
    pub traffic: Traffic,
    /// The mean size of the messages of each request, as RocketMQ counts sizes.
    pub sizes: Spread,
}

impl Default for Stored {
    fn default() -> Self {
        Self { traffic: Traffic::default(), sizes: Spread::new(&SIZES) }
    }
}

impl Stored {
    /// So many more came with one request; `bytes` are those of their records in the log.
    pub fn add(&self, messages: u64, bytes: u64) {
        self.traffic.add(messages, bytes);
        self.sizes.add(bytes / messages.max(1), messages);
    }
}

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
