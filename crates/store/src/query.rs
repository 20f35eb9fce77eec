//! Finding messages other than one behind the other: by time, by tag, by key, by position. Called from any thread; blocks
//! for as long as the pages it needs take to come.

use std::ops::Range;

use crate::commit_log::CommitLog;
use crate::error::ReadError;
use crate::index::Entry;
use crate::record::{Header, PhysicalOffset, QueueNumber, QueueOffset, Record};
use crate::{Damage, Store};

/// Entries read at a time when many have to be looked at.
const CHUNK: usize = 1024;

/// A file of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Physical offset of its first byte.
    pub base: u64,
    /// Its size.
    pub length_bytes: u64,
    /// Store times of its first and last record, in milliseconds since 1970; `None` while it has no index file.
    pub store_times_ms: Option<(u64, u64)>,
}

impl Store {
    /// The offset of the first entry of `queue` that was stored at `time_ms` (milliseconds since 1970) or later; the end of
    /// the queue if there is none. Exact to the entry; records that were lost have no time and are passed over.
    pub fn offset_by_time(&self, queue: QueueNumber, time_ms: u64) -> Result<QueueOffset, ReadError> {
        self.log.offset_by_time(queue, time_ms)
    }

    /// How many entries of `queue` in `range` have one of the tag hashes; all that are not lost if there are none.
    pub fn count_by_tags(
        &self,
        queue: QueueNumber,
        range: Range<u64>,
        tag_hashes: &[u64],
    ) -> Result<u64, ReadError> {
        let wanted = |entry: &&Entry| {
            !entry.is_lost() && (tag_hashes.is_empty() || tag_hashes.contains(&entry.tag_hash))
        };
        let own = self.queue_range(queue);
        let (mut at, end) = (range.start.max(own.start), range.end.min(own.end));
        let (mut count, mut entries) = (0, Vec::with_capacity(CHUNK));
        while at < end {
            entries.clear();
            let chunk = (end - at).min(CHUNK as u64) as usize;
            self.entries(queue, QueueOffset(at), chunk, &mut entries)?;
            if entries.is_empty() {
                break;
            }
            count += entries.iter().filter(wanted).count() as u64;
            at += entries.len() as u64;
        }
        Ok(count)
    }

    /// Appends to `out` up to `max` records that were appended with `key` and stored at a time in `times_ms`, the last
    /// first. Costs a probe of a bloom filter for each segment of that time, and the reading of what is found.
    pub fn find(
        &self,
        key: u64,
        times_ms: Range<u64>,
        max: usize,
        out: &mut Vec<Record>,
    ) -> Result<(), ReadError> {
        let enough = out.len() + max;
        let index = &self.log.index;
        let places = index.unsealed.window(times_ms.start).start..index.unsealed.window(times_ms.end).end;
        // In this order: what moves from memory into a file meanwhile is seen twice, not missed.
        let in_memory = index.unsealed.find(key, &places);
        let files = index.files();
        let mut last = u64::MAX;
        let mut take = |at: u64, out: &mut Vec<Record>| {
            if at < last && out.len() < enough {
                last = at;
                // What was damaged since it was indexed is reported, and does not hide the rest.
                let record = self.keyed_record(at, key).filter(|r| times_ms.contains(&r.store_time_ms));
                out.extend(record);
            }
            out.len() < enough
        };
        if !in_memory.into_iter().all(|at| take(at, out)) {
            return Ok(());
        }
        for file in files.iter().rev() {
            let (first, last) = file.store_times_ms();
            if first >= times_ms.end || last < times_ms.start {
                continue;
            }
            let places = file.window(times_ms.start).start..file.window(times_ms.end).end;
            let mut found = self.log.healing(file.find(key, &places))?;
            if !found.all(|at| take(at, out)) {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Visits every key of the records that were stored at `time_ms` or later, with the place of its record, and some keys
    /// of the last 256 KiB or so in front of them. In the order of the log. Reads nothing but the index, and holds the keys
    /// of one segment: millions of keys a second. `Err` before anything was visited when an index file is damaged; it is
    /// being built anew then.
    pub fn keys_since(
        &self,
        time_ms: u64,
        visit: &mut dyn FnMut(u64, PhysicalOffset),
    ) -> Result<(), ReadError> {
        let index = &self.log.index;
        let from = index.unsealed.window(time_ms).start;
        // In this order: what moves from memory into a file meanwhile is in both, not in neither.
        let in_memory = index.unsealed.keys();
        let mut files = index.files();
        files.retain(|file| file.store_times_ms().1 >= time_ms);
        files.iter().try_for_each(|file| self.log.healing(file.check_keys()))?;
        for file in &files {
            let from = file.window(time_ms).start;
            let keys = file.keys().filter(|(at, _)| *at >= from);
            let mut keys: Vec<(u64, u64)> = keys.map(|(at, (key, _))| (at, key)).collect();
            // A file has them in the order of their hashes.
            keys.sort_unstable();
            keys.into_iter().for_each(|(at, key)| visit(key, PhysicalOffset(at)));
        }
        let behind = files.last().map_or(0, |file| file.about().base + file.about().length);
        for segment in in_memory.iter().filter(|segment| segment.base >= behind) {
            let keys = segment.iter().filter(|(_, at)| *at >= from);
            keys.for_each(|(key, at)| visit(key, PhysicalOffset(at)));
        }
        Ok(())
    }

    fn keyed_record(&self, at: u64, key: u64) -> Option<Record> {
        let header = self.log.header(at).ok()?;
        let record = self.record(PhysicalOffset(at), header.length).ok()?;
        let bytes = self.log.segment_of(at)?.slice(at..header.end());
        header.keys(&bytes).any(|own| own == key).then_some(record)
    }

    /// Reads the confirmed record that starts at `at`.
    pub fn record_at(&self, at: PhysicalOffset) -> Result<Record, ReadError> {
        let header = self.log.header(at.0)?;
        self.record(at, header.length)
    }

    /// What is known to be lost.
    pub fn damage(&self) -> Vec<Damage> {
        self.log.damages.list()
    }

    /// The files of the log, in order; the last is being written.
    pub fn segments(&self) -> Vec<SegmentInfo> {
        let info = |segment: &std::sync::Arc<crate::segment::Segment>| SegmentInfo {
            base: segment.base(),
            length_bytes: segment.length(),
            store_times_ms: self.log.index.file_of(segment.base()).map(|file| file.store_times_ms()),
        };
        self.log.segments.load().iter().map(info).collect()
    }
}

impl CommitLog {
    /// See [`Store::offset_by_time`].
    pub(crate) fn offset_by_time(&self, queue: QueueNumber, time_ms: u64) -> Result<QueueOffset, ReadError> {
        let window = self.healing(self.index.around_time(queue, time_ms))?;
        let first = self.index.range(queue).start;
        for (offset, entry) in (window.first..).zip(&window.entries) {
            if !entry.is_lost() && self.is_stored_since(entry.physical_offset.0, queue, time_ms)? {
                return Ok(QueueOffset(offset.max(first)));
            }
        }
        self.first_kept(queue, window.or_else.max(first))
    }

    /// Whether an intact record of `queue` lies at `at` that was stored at `time_ms` or later. From the file, since the
    /// maintenance thread asks too; it shortens queues by the answer, so what the device does not give now must not count
    /// as lost.
    fn is_stored_since(&self, at: u64, queue: QueueNumber, time_ms: u64) -> Result<bool, ReadError> {
        let fits = |header: Header| header.store_time_ms >= time_ms && header.queue == Some(queue);
        // A header is not checked, so a time may be wrong; the record it belongs to is.
        let header = self.header_from_file(at);
        match header.and_then(|header| Ok(fits(header) && fits(self.record_from_file(at)?.0))) {
            Err(error @ ReadError::Device { .. }) => Err(error),
            found => Ok(found.unwrap_or(false)),
        }
    }

    /// The first offset from `at` on whose record was not lost; the end of the queue if there is none.
    fn first_kept(&self, queue: QueueNumber, mut at: u64) -> Result<QueueOffset, ReadError> {
        let mut entries = Vec::new();
        loop {
            entries.clear();
            self.healing(self.index.read(queue, QueueOffset(at), 32, &mut entries))?;
            match entries.iter().position(|entry| !entry.is_lost()) {
                Some(lost) => return Ok(QueueOffset(at + lost as u64)),
                None if entries.is_empty() => return Ok(QueueOffset(at)),
                None => at += entries.len() as u64,
            }
        }
    }
}
