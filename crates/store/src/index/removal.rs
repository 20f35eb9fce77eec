//! Entries go: with their segment, or because their queue is kept for a shorter time than the segment. The end of a queue
//! stays: queue offsets are never used twice. Called by the maintenance thread; the rest by recovery.

use super::{Entry, Queue, QueueIndex};
use crate::record::{HEADER_BYTES, PhysicalOffset, QueueNumber};

/// Where a queue began and ended, for a snapshot: no segment may be left that says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ends {
    pub(crate) queue: QueueNumber,
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// Name of their section in snapshots.
pub(crate) const SECTION: &str = "queues";
const ENDS_BYTES: usize = 20;

/// The content of the section.
pub(crate) fn encode(ends: &[Ends]) -> Vec<u8> {
    let mut out = Vec::with_capacity(ends.len() * ENDS_BYTES);
    for Ends { queue, start, end } in ends {
        out.extend_from_slice(&queue.0.to_le_bytes());
        out.extend_from_slice(&start.to_le_bytes());
        out.extend_from_slice(&end.to_le_bytes());
    }
    out
}

/// `None`: it is no such section.
pub(crate) fn decode(bytes: &[u8]) -> Option<Vec<Ends>> {
    let number = |bytes: &[u8]| Some(u64::from_le_bytes(bytes.try_into().ok()?));
    let ends = |bytes: &[u8]| {
        let queue = QueueNumber(u32::from_le_bytes(bytes[..4].try_into().ok()?));
        Some(Ends { queue, start: number(&bytes[4..12])?, end: number(&bytes[12..])? })
            .filter(|ends| ends.start <= ends.end)
    };
    let whole = bytes.len().is_multiple_of(ENDS_BYTES);
    bytes.chunks_exact(ENDS_BYTES).map(ends).collect::<Option<Vec<_>>>().filter(|_| whole)
}

impl QueueIndex {
    /// The oldest segment, which starts at `base` and has an index file, is no more.
    pub(crate) fn forget(&self, base: u64) {
        let Some(index) = self.files.write().remove(&base) else { return };
        for run in index.runs() {
            let queue = QueueNumber(run.queue);
            let mut shard = self.shard(queue).write();
            let Some(state) = shard.get_mut(&queue) else { continue };
            if state.sealed.first().is_some_and(|first| first.index.about().base == base) {
                state.sealed.remove(0);
            }
        }
    }

    /// Entries of `queue` in front of `to` are no more.
    pub(crate) fn trim(&self, queue: QueueNumber, to: u64) {
        if let Some(state) = self.shard(queue).write().get_mut(&queue) {
            state.floor = state.floor.max(to.min(state.end()));
        }
    }

    /// For every queue where it begins and ends.
    pub(crate) fn all_ends(&self) -> Vec<Ends> {
        let mut all = Vec::new();
        for shard in &self.shards {
            let shard = shard.read();
            all.extend(shard.iter().map(|(&queue, state)| Ends {
                queue,
                start: state.start(),
                end: state.end(),
            }));
        }
        all
    }

    /// In recovery, when the log has been read up to `log_end`: a queue ends where a snapshot says, though there may be
    /// nothing of it left. `Err`: that cannot be.
    pub(crate) fn restore(&self, ends: &Ends, log_end: u64) -> Result<(), String> {
        let Ends { queue, start, end } = *ends;
        let mut shard = self.shard(queue).write();
        let state = shard.entry(queue).or_insert_with(|| Queue::starting_at(end));
        let lost = end.saturating_sub(state.end());
        if lost > log_end / HEADER_BYTES as u64 {
            return Err(format!("queue {} ends at {} and ended at {end}", queue.0, state.end()));
        }
        // Its last records were lost to damage.
        state.recent.extend((0..lost).map(|_| Entry::lost(PhysicalOffset(log_end))));
        state.floor = state.floor.max(start);
        Ok(())
    }
}
