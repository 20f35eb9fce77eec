//! The queue index: (queue, queue offset) -> where the record lies. Entries of sealed segments are read from their
//! `.idx` files, those of the active one are in memory. The log writer pushes, the maintenance thread moves entries
//! from memory to a file when one was written, everyone reads.

pub(crate) mod sealed;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use parking_lot::RwLock;

use crate::error::ReadError;
use crate::record::{PhysicalOffset, QueueNumber, QueueOffset};
use sealed::SealedIndex;

/// Queues share this many locks, so that readers of one do not meet the writer of another.
const SHARDS: usize = 64;

/// Where a record of a queue lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Of its first byte.
    pub physical_offset: PhysicalOffset,
    /// Of the whole record, in bytes.
    pub size: u32,
    /// As appended.
    pub tag_hash: u64,
}

/// Entries of one queue, behind one another.
#[derive(Debug, Default)]
pub(crate) struct Run {
    pub(crate) first_queue_offset: u64,
    pub(crate) entries: Vec<Entry>,
}

/// The runs of one segment, by queue number.
pub(crate) type SegmentRuns = BTreeMap<u32, Run>;

#[derive(Debug)]
pub(crate) struct QueueIndex {
    shards: Box<[RwLock<HashMap<QueueNumber, Queue>>]>,
}

#[derive(Debug, Default)]
struct Queue {
    /// In sealed segments; contiguous, in order, followed by `recent`.
    sealed: Vec<SealedRun>,
    first_recent: u64,
    recent: VecDeque<Entry>,
}

#[derive(Debug, Clone)]
struct SealedRun {
    first_queue_offset: u64,
    count: u32,
    /// Number of its first entry in the file.
    position: u32,
    index: Arc<SealedIndex>,
}

/// Where a read goes on.
enum Source {
    Done,
    Sealed(SealedRun),
}

impl QueueIndex {
    pub(crate) fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| RwLock::default()).collect() }
    }

    fn shard(&self, queue: QueueNumber) -> &RwLock<HashMap<QueueNumber, Queue>> {
        &self.shards[queue.0 as usize % SHARDS]
    }

    /// Adds the next entries of a queue; the first of them has `first_queue_offset`.
    pub(crate) fn push(
        &self,
        queue: QueueNumber,
        first_queue_offset: u64,
        entries: impl Iterator<Item = Entry>,
    ) {
        let mut shard = self.shard(queue).write();
        let state = shard.entry(queue).or_default();
        assert_eq!(state.end(), first_queue_offset, "entries of queue {} lie behind one another", queue.0);
        state.recent.extend(entries);
    }

    /// First queue offset and the one behind the last.
    pub(crate) fn range(&self, queue: QueueNumber) -> Range<u64> {
        self.shard(queue).read().get(&queue).map_or(0..0, |state| state.start()..state.end())
    }

    /// Appends up to `max` entries from `from` on to `out`.
    pub(crate) fn read(
        &self,
        queue: QueueNumber,
        from: QueueOffset,
        max: usize,
        out: &mut Vec<Entry>,
    ) -> Result<(), ReadError> {
        let (mut next, end) = (from.0, from.0.saturating_add(max as u64));
        loop {
            // A file is read without the lock: a page that has to come from the device must not stop the writer.
            let run = match self.read_recent(queue, &mut next, end, out) {
                Source::Done => return Ok(()),
                Source::Sealed(run) => run,
            };
            let skip = (next - run.first_queue_offset) as u32;
            let count = u64::from(run.count - skip).min(end - next) as u32;
            run.index.read(run.position + skip, count, out)?;
            next += u64::from(count);
        }
    }

    fn read_recent(&self, queue: QueueNumber, next: &mut u64, end: u64, out: &mut Vec<Entry>) -> Source {
        let shard = self.shard(queue).read();
        let Some(state) = shard.get(&queue) else { return Source::Done };
        let end = end.min(state.end());
        if *next >= end {
            return Source::Done;
        }
        if *next < state.first_recent {
            let behind = state.sealed.partition_point(|run| run.first_queue_offset <= *next);
            return behind.checked_sub(1).map_or(Source::Done, |at| Source::Sealed(state.sealed[at].clone()));
        }
        let (from, to) = (*next - state.first_recent, end - state.first_recent);
        out.extend(state.recent.range(from as usize..to as usize));
        *next = end;
        Source::Done
    }

    /// The entries in memory of records that lie below `end`.
    pub(crate) fn recent_below(&self, end: u64) -> SegmentRuns {
        let mut runs = SegmentRuns::new();
        for shard in &self.shards {
            for (queue, state) in shard.read().iter() {
                let count = state.recent.partition_point(|entry| entry.physical_offset.0 < end);
                if count > 0 {
                    let entries = state.recent.range(..count).copied().collect();
                    runs.insert(queue.0, Run { first_queue_offset: state.first_recent, entries });
                }
            }
        }
        runs
    }

    /// Whether the runs of `index` start where their queues end in this one; else the file is not of this log.
    pub(crate) fn continues_with(&self, index: &SealedIndex) -> bool {
        index.runs().all(|run| self.range(QueueNumber(run.queue)).end == run.first_queue_offset)
    }

    /// From now on the entries of a segment are read from its file; those in memory are forgotten.
    pub(crate) fn adopt(&self, index: &Arc<SealedIndex>) {
        for run in index.runs() {
            let queue = QueueNumber(run.queue);
            let mut shard = self.shard(queue).write();
            let state = shard.entry(queue).or_default();
            let in_memory = state.recent.len().min(run.count as usize);
            state.recent.drain(..in_memory);
            if state.recent.is_empty() {
                state.recent.shrink_to_fit();
            }
            state.first_recent = run.first_queue_offset + u64::from(run.count);
            state.sealed.push(SealedRun {
                first_queue_offset: run.first_queue_offset,
                count: run.count,
                position: run.position,
                index: index.clone(),
            });
        }
    }

    /// For every queue the offset of its next record.
    pub(crate) fn ends(&self) -> HashMap<QueueNumber, u64> {
        let mut ends = HashMap::new();
        for shard in &self.shards {
            ends.extend(shard.read().iter().map(|(queue, state)| (*queue, state.end())));
        }
        ends
    }
}

impl Queue {
    fn start(&self) -> u64 {
        self.sealed.first().map_or(self.first_recent, |run| run.first_queue_offset)
    }

    fn end(&self) -> u64 {
        self.first_recent + self.recent.len() as u64
    }
}
