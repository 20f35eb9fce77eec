//! What the index of one segment says, gathered record by record: by recovery from the log, by the maintenance thread
//! from what the log writer left in memory. Plain data.

use std::collections::BTreeMap;

use super::Entry;
use crate::record::{ALIGN, Header, PhysicalOffset};

/// Between two time marks lies about so much of the log: whoever looks for a time reads at most this.
const MARK_EVERY_BYTES: u64 = 256 << 10;

/// Entries of one queue, behind one another.
#[derive(Debug, Default)]
pub(crate) struct Run {
    pub(crate) first_queue_offset: u64,
    pub(crate) entries: Vec<Entry>,
}

/// A record with its store time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) store_time_ms: u64,
    pub(crate) physical_offset: u64,
}

/// Some records of one segment with their times, far enough apart to be few. In log order; times never decrease.
#[derive(Debug, Default, Clone)]
pub(crate) struct Marks {
    pub(crate) list: Vec<Mark>,
    next: u64,
    /// Of the last record seen, marked or not.
    pub(crate) last_store_time_ms: u64,
}

impl Marks {
    /// Those that were written earlier.
    pub(crate) fn of(list: Vec<Mark>, last_store_time_ms: u64) -> Self {
        let next = list.last().map_or(0, |last| last.physical_offset + MARK_EVERY_BYTES);
        Self { list, next, last_store_time_ms }
    }

    pub(crate) fn see(&mut self, physical_offset: u64, store_time_ms: u64) {
        self.last_store_time_ms = store_time_ms;
        if physical_offset >= self.next {
            self.list.push(Mark { store_time_ms, physical_offset });
            self.next = physical_offset + MARK_EVERY_BYTES;
        }
    }
}

/// A key and the place of its record: bytes from the start of the segment, divided by the alignment of records.
pub(crate) type KeyAt = (u64, u32);

/// Of an offset between two records: that of the second.
pub(crate) fn key_position(base: u64, physical_offset: u64) -> u32 {
    (physical_offset - base).div_ceil(ALIGN as u64) as u32
}

pub(crate) fn key_offset(base: u64, position: u32) -> u64 {
    base + u64::from(position) * ALIGN as u64
}

/// Runs by queue number, keys, marks.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub(crate) runs: BTreeMap<u32, Run>,
    pub(crate) keys: Vec<KeyAt>,
    pub(crate) marks: Marks,
}

impl Contents {
    /// Adds the next record of the segment that starts at `base`; `bytes` starts with it. Places of its queue that are
    /// missing in front of it were lost: `Err` if they are more than `lost_max`, or if the place is taken.
    pub(crate) fn add(
        &mut self,
        base: u64,
        header: &Header,
        bytes: &[u8],
        lost_max: u64,
    ) -> Result<(), String> {
        self.marks.see(header.physical_offset, header.store_time_ms);
        let position = key_position(base, header.physical_offset);
        self.keys.extend(header.keys(bytes).map(|key| (key, position)));
        let Some(queue) = header.queue else { return Ok(()) };
        let run = self
            .runs
            .entry(queue.0)
            .or_insert_with(|| Run { first_queue_offset: header.queue_offset, entries: Vec::new() });
        let expected = run.first_queue_offset + run.entries.len() as u64;
        let physical_offset = PhysicalOffset(header.physical_offset);
        match header.queue_offset.checked_sub(expected) {
            Some(lost) if lost <= lost_max => {
                run.entries.extend((0..lost).map(|_| Entry::lost(physical_offset)));
            }
            _ => {
                let (at, found) = (header.physical_offset, header.queue_offset);
                return Err(format!(
                    "the record at {at} is number {found} of queue {}, not {expected}",
                    queue.0
                ));
            }
        }
        run.entries.push(Entry { physical_offset, size: header.length, tag_hash: header.tag_hash });
        Ok(())
    }
}
