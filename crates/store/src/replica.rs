//! Two stores with one log: what a master gives out of its own, and what a replica takes in. Any thread; nothing here talks to
//! a network or decides who is master.
//!
//! A replica opens with [`crate::StoreConfig::follows`] and is fed by [`Store::append_raw`] with what [`Store::raw`] of its
//! master gave: the same bytes at the same places, each checked before any of it is written. They are seen there, by
//! readers and projections, when the master says so. [`Store::lead`] makes a master of it, for good.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::watch;

use crate::commit_log::CommitLog;
use crate::error::{AppendError, ReadError};
use crate::inbox::Work;
use crate::record::{self, Content, HEADER_BYTES};
use crate::{Append, Durability, EpochStart, LogId, Store};

/// Whole records as they lie in a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawRecords {
    /// Physical offset of the first.
    pub start: u64,
    /// One behind the other. Of what has no content, as the blank at the end of a segment, only the header; nothing follows
    /// it.
    pub bytes: Bytes,
    /// Physical offset behind the last, what has no content included.
    pub end: u64,
    /// Length of the segment in which they lie.
    pub segment_bytes: u64,
}

impl Store {
    /// Which log this is.
    pub fn log_id(&self) -> LogId {
        self.log.directory.log
    }

    /// The masters that wrote this log, in order. What was deleted of it may be left out.
    pub fn epochs(&self) -> Vec<EpochStart> {
        self.log.epochs.lock().list().to_vec()
    }

    /// Up to where this log, as far as it is written, and one that the masters `others` wrote and that ends at `end` are the
    /// same. `None`: that is not known, or it lies in front of this log.
    pub fn common_end(&self, others: &[EpochStart], end: u64) -> Option<u64> {
        let written = self.log.progress.written();
        let common = self.log.epochs.lock().common_end(written, others, end)?;
        (common >= self.log.progress.load().log_start).then_some(common)
    }

    /// The written records from `from` on, at most `max_bytes` of them but at least one; none if there are none. `from` is
    /// where a record ends or begins. Not only what is confirmed: that is what replicas are for.
    pub fn raw(&self, from: u64, max_bytes: usize) -> Result<RawRecords, ReadError> {
        self.log.raw(from, max_bytes as u64)
    }

    /// Says that something was written, or can be seen.
    pub fn advanced(&self) -> watch::Receiver<()> {
        self.log.advanced.subscribe()
    }

    /// All replicas that count have so much of the log written, and flushed. What waits for that is answered and seen. Never
    /// goes back.
    pub fn replicated(&self, written: u64, flushed: u64) {
        self.log.progress.advance_replicated(written, flushed);
        self.log.inbox.nudge();
    }

    /// Adds what a master has behind the end of this log. `confirmed`: up to where that can be seen there, and so here.
    /// The answer comes when it is written or, with [`Durability::Disk`], flushed. Records that do not continue this log
    /// are refused with [`AppendError::NotNext`], and nothing of them is written. Without records it only tells `confirmed`.
    pub fn append_raw(
        &self,
        raw: RawRecords,
        confirmed: u64,
        durability: Durability,
    ) -> Result<Append, AppendError> {
        let bytes = raw.bytes.len();
        self.log.ask(Work::Raw { raw, confirmed }, bytes, durability)
    }

    /// Begins an epoch, which must be greater than all before, with a record of its own, and follows no master from now
    /// on. What was received and cannot be seen yet is seen when it is as durable as that record.
    pub fn lead(&self, epoch: u32, durability: Durability) -> Result<Append, AppendError> {
        // Not the time: with clocks that are behind the log two masters would have the same.
        let mark = RandomState::new().build_hasher().finish();
        let work = Work::Lead { epoch, mark };
        self.log.ask(work, record::encoded_bytes(0, 0), durability.max(Durability::Disk))
    }

    /// Nothing is answered or shown from `until` on, as if its class were not met yet, until a later time is set; `None`:
    /// without end, as at first. For the lease of a master: what it does not answer in time another one may.
    pub fn answer_until(&self, until: Option<Instant>) {
        self.log.fence.set(until);
        self.log.inbox.nudge();
    }

    /// Whether that time has not come: what is shown now is what everybody else is shown.
    pub fn may_answer(&self) -> bool {
        self.log.fence.is_open()
    }

    /// The master in whose epoch the log ends.
    pub fn epoch(&self) -> u32 {
        self.log.epochs.lock().last().epoch
    }
}

impl CommitLog {
    fn raw(&self, from: u64, max_bytes: u64) -> Result<RawRecords, ReadError> {
        let (size, confirmed) = (HEADER_BYTES as u32, self.progress.written());
        let log_start = self.progress.load().log_start;
        let mut start = from;
        loop {
            let segment = (start >= log_start).then(|| self.segment_of(start)).flatten();
            let Some(segment) = segment else {
                return Err(ReadError::OutOfRange { offset: from, size, log_start, confirmed });
            };
            if start + HEADER_BYTES as u64 > segment.end() && segment.end() < confirmed {
                start = segment.end();
                continue;
            }
            let (upto, mut cut, mut end) = (confirmed.min(segment.end()), start, start);
            let mut next = start;
            while next < upto {
                let at = next;
                let head = segment.slice(at..(at + HEADER_BYTES as u64).min(segment.end()));
                let header = record::peek(&head, at).map_err(|reason| ReadError::Corrupt {
                    offset: at,
                    size,
                    reason,
                })?;
                next = header.end();
                let is_record = matches!(header.content, Content::Record(_));
                let behind = if is_record { next } else { at + HEADER_BYTES as u64 };
                if behind > segment.end() || (behind - start > max_bytes && at > start) {
                    break;
                }
                (cut, end) = (behind, next);
                if !is_record || segment.end() - next < HEADER_BYTES as u64 {
                    break;
                }
            }
            return Ok(RawRecords {
                start,
                bytes: segment.slice(start..cut),
                end,
                segment_bytes: segment.length(),
            });
        }
    }
}
