//! The index of the log: (queue, queue offset) -> where the record lies; key -> records; time -> place in the log. What is
//! about sealed segments is read from their `.idx` files, the rest is in memory. The log writer adds, the maintenance
//! thread moves entries from memory to a file when one was written, everyone reads.

pub(crate) mod contents;
pub(crate) mod removal;
pub(crate) mod sealed;
pub(crate) mod unsealed;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Range;
use std::sync::Arc;

use parking_lot::RwLock;

use crate::error::ReadError;
use crate::record::{HEADER_BYTES, PhysicalOffset, QueueNumber, QueueOffset};
use contents::{Contents, Run};
use sealed::{DirectoryRun, SealedIndex};
use unsealed::Unsealed;

/// By queue, cheap to look up: each append does it several times.
pub(crate) type ByQueue<T> = HashMap<QueueNumber, T, BuildHasherDefault<QueueHasher>>;

/// The broker numbers its queues, no stranger does: nobody can choose numbers that collide.
#[derive(Debug, Default)]
pub(crate) struct QueueHasher(u64);

impl Hasher for QueueHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32(u32::from(*byte)));
    }

    fn write_u32(&mut self, number: u32) {
        // By the golden ratio, as Fibonacci hashing does; the table uses the high and the low bits.
        let spread = (self.0 ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = spread ^ spread >> 32;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

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

impl Entry {
    /// Stands for a record that was lost, in front of the record at `physical_offset`.
    pub(crate) fn lost(physical_offset: PhysicalOffset) -> Self {
        Self { physical_offset, size: 0, tag_hash: 0 }
    }

    /// The record that had this place in its queue was lost to damage of the log; nobody can read it.
    pub fn is_lost(&self) -> bool {
        self.size == 0
    }
}

#[derive(Debug)]
pub(crate) struct QueueIndex {
    shards: Box<[RwLock<ByQueue<Queue>>]>,
    /// The files, by where their segment starts.
    files: RwLock<BTreeMap<u64, Arc<SealedIndex>>>,
    pub(crate) unsealed: Unsealed,
}

#[derive(Debug, Default)]
struct Queue {
    /// In sealed segments, in order, followed by `recent`. What is missing between two was lost.
    sealed: Vec<SealedRun>,
    /// What lies in front of it is no more, though its segment may still be there.
    floor: u64,
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

impl SealedRun {
    fn of(run: DirectoryRun, index: &Arc<SealedIndex>) -> Self {
        let DirectoryRun { first_queue_offset, count, position, .. } = run;
        Self { first_queue_offset, count, position, index: index.clone() }
    }

    fn end(&self) -> u64 {
        self.first_queue_offset + u64::from(self.count)
    }
}

/// Where a read goes on.
enum Source {
    Done,
    /// What was asked for is no more; the queue begins here.
    Deleted(u64),
    /// Up to this queue offset nothing is left; the next record of the queue lies at or behind the physical offset.
    Lost(u64, PhysicalOffset),
    Sealed(SealedRun),
}

/// Among which entries of a queue the first with a certain store time is.
pub(crate) struct TimeWindow {
    /// Those that have to be looked at, from this queue offset on.
    pub(crate) first: u64,
    pub(crate) entries: Vec<Entry>,
    /// The one behind them, if it is none of them.
    pub(crate) or_else: u64,
}

impl QueueIndex {
    pub(crate) fn new() -> Self {
        let shards = (0..SHARDS).map(|_| RwLock::default()).collect();
        Self { shards, files: RwLock::default(), unsealed: Unsealed::default() }
    }

    fn shard(&self, queue: QueueNumber) -> &RwLock<ByQueue<Queue>> {
        &self.shards[queue.0 as usize % SHARDS]
    }

    /// Adds the next entries of a queue; the first of them has `first_queue_offset`, which is where the queue ends.
    pub(crate) fn push(
        &self,
        queue: QueueNumber,
        first_queue_offset: u64,
        entries: impl Iterator<Item = Entry>,
    ) {
        let mut shard = self.shard(queue).write();
        let state = shard.entry(queue).or_insert_with(|| Queue::starting_at(first_queue_offset));
        assert_eq!(state.end(), first_queue_offset, "entries of queue {} lie behind one another", queue.0);
        state.recent.extend(entries);
    }

    /// Adds an entry that another store has at `queue_offset`. Places in front of it that are missing were lost there. `Err`
    /// if its place is taken, or if more are missing than there can have been.
    pub(crate) fn push_behind_lost(
        &self,
        queue: QueueNumber,
        queue_offset: u64,
        entry: Entry,
    ) -> Result<(), String> {
        let mut shard = self.shard(queue).write();
        let state = shard.entry(queue).or_insert_with(|| Queue::starting_at(queue_offset));
        match queue_offset.checked_sub(state.end()) {
            Some(lost) if lost <= entry.physical_offset.0 / HEADER_BYTES as u64 => {
                state.recent.extend((0..lost).map(|_| Entry::lost(entry.physical_offset)));
                state.recent.push_back(entry);
                Ok(())
            }
            _ => Err(format!("queue {} ends at {} and goes on at {queue_offset}", queue.0, state.end())),
        }
    }

    /// Adds the contents of the segment at `base` in memory, in recovery. Places that are missing in front of a run were
    /// lost; `Err` if they are more than there can have been, or if the run's places are taken.
    pub(crate) fn keep(&self, base: u64, contents: &Contents) -> Result<(), String> {
        self.unsealed.restore(base, contents);
        for (&number, run) in &contents.runs {
            let queue = QueueNumber(number);
            let mut shard = self.shard(queue).write();
            let state = shard.entry(queue).or_insert_with(|| Queue::starting_at(run.first_queue_offset));
            match run.first_queue_offset.checked_sub(state.end()) {
                Some(lost) if lost <= base / HEADER_BYTES as u64 => {
                    let behind = run.entries.first().map_or(PhysicalOffset(base), |e| e.physical_offset);
                    state.recent.extend((0..lost).map(|_| Entry::lost(behind)));
                    state.recent.extend(&run.entries);
                }
                _ => {
                    let (end, first) = (state.end(), run.first_queue_offset);
                    return Err(format!("queue {number} ends at {end} and goes on at {first}"));
                }
            }
        }
        Ok(())
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
            match self.read_recent(queue, &mut next, end, out) {
                Source::Done => return Ok(()),
                // Deleted meanwhile, behind what was read.
                Source::Deleted(_) if next > from.0 => return Ok(()),
                Source::Deleted(minimum) => {
                    return Err(ReadError::BelowMinimum { queue, offset: from.0, minimum });
                }
                Source::Lost(upto, behind) => {
                    out.extend((next..upto).map(|_| Entry::lost(behind)));
                    next = upto;
                }
                Source::Sealed(run) => {
                    let skip = (next - run.first_queue_offset) as u32;
                    let count = u64::from(run.count - skip).min(end - next) as u32;
                    run.index.entries(run.position + skip, count, out)?;
                    next += u64::from(count);
                }
            }
        }
    }

    fn read_recent(&self, queue: QueueNumber, next: &mut u64, end: u64, out: &mut Vec<Entry>) -> Source {
        let shard = self.shard(queue).read();
        let Some(state) = shard.get(&queue) else { return Source::Done };
        let end = end.min(state.end());
        if *next < state.start() {
            return Source::Deleted(state.start());
        }
        if *next >= end {
            return Source::Done;
        }
        if *next < state.first_recent {
            let at = state.sealed.partition_point(|run| run.end() <= *next);
            return match state.sealed.get(at) {
                Some(run) if run.first_queue_offset <= *next => Source::Sealed(run.clone()),
                Some(run) => {
                    Source::Lost(run.first_queue_offset.min(end), PhysicalOffset(run.index.about().base))
                }
                None => {
                    let behind = state.recent.front().map_or(PhysicalOffset(u64::MAX), |e| e.physical_offset);
                    Source::Lost(state.first_recent.min(end), behind)
                }
            };
        }
        let (from, to) = (*next - state.first_recent, end - state.first_recent);
        out.extend(state.recent.range(from as usize..to as usize));
        *next = end;
        Source::Done
    }

    /// Where to look for the first entry of `queue` with a store time of at least `time_ms`. Costs two binary searches
    /// and what lies between two time marks of one segment.
    pub(crate) fn around_time(&self, queue: QueueNumber, time_ms: u64) -> Result<TimeWindow, ReadError> {
        let recent_window = self.unsealed.window(time_ms);
        let (run, or_else) = {
            let shard = self.shard(queue).read();
            let Some(state) = shard.get(&queue) else {
                return Ok(TimeWindow { first: 0, entries: Vec::new(), or_else: 0 });
            };
            let at = state.sealed.partition_point(|run| run.index.store_times_ms().1 < time_ms);
            let Some(run) = state.sealed.get(at) else {
                let in_front = |offset| state.recent.partition_point(|e| e.physical_offset.0 < offset);
                let (from, to) = (in_front(recent_window.start), in_front(recent_window.end));
                return Ok(TimeWindow {
                    first: state.first_recent + from as u64,
                    entries: state.recent.range(from..to.max(from)).copied().collect(),
                    or_else: state.first_recent + to as u64,
                });
            };
            // All of a later segment is younger than the last record of this one.
            let next = state.sealed.get(at + 1).map_or(state.first_recent, |run| run.first_queue_offset);
            (run.clone(), next)
        };
        let window = run.index.window(time_ms);
        let in_front = |offset| run.index.count_in_front(run.position, run.count, offset);
        let (from, to) = (in_front(window.start)?, in_front(window.end)?);
        let mut entries = Vec::new();
        run.index.entries(run.position + from, to - from, &mut entries)?;
        let first = run.first_queue_offset + u64::from(from);
        let or_else = if to < run.count { run.first_queue_offset + u64::from(to) } else { or_else };
        Ok(TimeWindow { first, entries, or_else })
    }

    /// The index files, by where their segments start.
    pub(crate) fn files(&self) -> Vec<Arc<SealedIndex>> {
        self.files.read().values().cloned().collect()
    }

    pub(crate) fn file_of(&self, base: u64) -> Option<Arc<SealedIndex>> {
        self.files.read().get(&base).cloned()
    }

    /// What is in memory of the segment that lies at `range`, in front of which nothing is.
    pub(crate) fn contents_below(&self, range: &Range<u64>) -> Contents {
        let (keys, marks) = self.unsealed.of(range.start);
        Contents { runs: self.recent_below(range.end), keys, marks }
    }

    /// The entries in memory of records that lie below `end`.
    fn recent_below(&self, end: u64) -> BTreeMap<u32, Run> {
        let mut runs = BTreeMap::new();
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

    /// Whether the runs of `index` start where their queues end here, or behind places that were lost; else the file is
    /// not of this log.
    pub(crate) fn continues_with(&self, index: &SealedIndex) -> bool {
        index.runs().all(|run| {
            let queue = QueueNumber(run.queue);
            // Earlier ones may have been deleted.
            self.shard(queue).read().get(&queue).is_none_or(|state| run.first_queue_offset >= state.end())
        })
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
            state.sealed.push(SealedRun::of(run, index));
        }
        let base = index.about().base;
        self.files.write().insert(base, index.clone());
        self.unsealed.forget(base);
    }

    /// Reads a segment's entries from another file, which was built anew because a part of the former was damaged. It may
    /// have fewer entries, where records were lost, or more: a device may give again what it did not give before.
    pub(crate) fn replace(&self, index: &Arc<SealedIndex>) {
        let base = index.about().base;
        self.files.write().insert(base, index.clone());
        let kept: HashSet<u32> = index.runs().map(|run| run.queue).collect();
        for shard in &self.shards {
            for (_, state) in shard.write().iter_mut().filter(|(queue, _)| !kept.contains(&queue.0)) {
                state.sealed.retain(|run| run.index.about().base != base);
            }
        }
        for run in index.runs() {
            let queue = QueueNumber(run.queue);
            let mut shard = self.shard(queue).write();
            let run = SealedRun::of(run, index);
            let state = shard.entry(queue).or_insert_with(|| Queue::starting_at(run.end()));
            state.make_room_for(&run);
            let at = state.sealed.partition_point(|own| own.index.about().base < base);
            match state.sealed.get_mut(at).filter(|own| own.index.about().base == base) {
                Some(own) => *own = run,
                None => state.sealed.insert(at, run),
            }
        }
    }

    /// The number behind the highest of a queue.
    pub(crate) fn queue_count(&self) -> u32 {
        let highest = self.shards.iter().filter_map(|shard| shard.read().keys().map(|queue| queue.0).max());
        highest.max().map_or(0, |highest| highest + 1)
    }

    /// For every queue the offset of its next record.
    pub(crate) fn ends(&self) -> ByQueue<u64> {
        self.all_ends().into_iter().map(|ends| (ends.queue, ends.end)).collect()
    }
}

impl Queue {
    /// Without entries; earlier ones may have been deleted.
    fn starting_at(first_queue_offset: u64) -> Self {
        Self { first_recent: first_queue_offset, ..Self::default() }
    }

    /// Where recovery has found nothing of the end of the queue, its places were held as lost.
    fn make_room_for(&mut self, run: &SealedRun) {
        let held = run.end().saturating_sub(self.first_recent).min(self.recent.len() as u64);
        let lost = self.recent.iter().take(held as usize).take_while(|entry| entry.is_lost()).count();
        self.recent.drain(..lost);
        self.first_recent += lost as u64;
    }

    fn start(&self) -> u64 {
        self.floor.max(self.sealed.first().map_or(self.first_recent, |run| run.first_queue_offset))
    }

    fn end(&self) -> u64 {
        self.first_recent + self.recent.len() as u64
    }
}
