//! Writing what a master wrote: its bytes as they are, at the places where it has them, when they continue this log. They
//! are seen here when the master says that they can be seen there. And the way out of it: to lead.
//! On the log writer's thread.

use std::sync::atomic::Ordering;

use super::LogWriter;
use crate::commit_log::CommitLog;
use crate::epochs::EpochStart;
use crate::error::AppendError;
use crate::inbox::{Answer, Reply};
use crate::index::Entry;
use crate::record::{
    self, Content, HEADER_BYTES, Header, NewRecord, PhysicalOffset, QueueOffset, RecordKind,
};
use crate::replica::RawRecords;
use crate::segment::{PAGE_BYTES, Segment};
use crate::{Appended, Durability};

/// What a master sent, as far as it is not behind us.
#[derive(Debug)]
pub(super) struct Received {
    /// Everything in front of it can be seen.
    shown: u64,
    /// Where it ends; `shown <= end`.
    end: u64,
    /// Up to where the master says that it can be seen.
    confirmed: u64,
    /// What it needs to be seen when no master says so any more.
    durability: Durability,
    /// Who waits for what was received in this batch to be written.
    replies: Vec<Reply>,
}

impl Received {
    /// All up to `position` can be seen.
    pub(super) fn nothing_yet(position: u64) -> Self {
        let durability = Durability::Memory;
        Self { shown: position, end: position, confirmed: position, durability, replies: Vec::new() }
    }

    /// What was put into the buffer ends at `end`.
    pub(super) fn add(&mut self, end: u64, confirmed: u64, reply: Reply) {
        self.end = end;
        self.confirmed = self.confirmed.max(confirmed);
        self.replies.push(reply);
    }

    pub(super) fn fail(&mut self, error: &AppendError) {
        for reply in self.replies.drain(..) {
            let _ = reply.send(Answer { result: Err(error.clone()), records: Vec::new() });
        }
    }
}

/// What is known of raw records once they were looked at.
struct Checked {
    /// Physical offset behind them.
    end: u64,
    /// They end with something that has no content.
    filler: bool,
    begun: Vec<EpochStart>,
    store_time_ms: u64,
}

impl LogWriter {
    /// Learns where each queue goes on: behind what is seen, and what was received and is not.
    pub(super) fn prepare_to_lead(&mut self, epoch: u32) -> Result<(), AppendError> {
        if epoch <= self.epoch {
            return Err(AppendError::Invalid(
                "its epoch must be greater than that of every record of the log",
            ));
        }
        // What came in this same batch is read below too: it must not be in the buffer alone.
        if self.position > self.log.progress.written() {
            self.write(false)?;
        }
        let mut next = self.log.index.ends();
        let (log, received) = (self.log.clone(), self.received.shown..self.received.end);
        walk(&log, received, |_, header, _| {
            if let Some(queue) = header.queue {
                next.insert(queue, header.queue_offset + 1);
            }
            Ok(())
        })
        .map_err(|reason| log.poison_because(reason.into()))?;
        self.next_queue_offsets = next;
        Ok(())
    }

    /// Goes on as the master of an epoch, told apart by `mark`; what it begins with is returned. What was received is seen when that is durable
    /// enough.
    pub(super) fn lead(&mut self, epoch: u32, mark: u64, durability: Durability) -> Vec<NewRecord> {
        self.epoch = epoch;
        self.received.durability = durability;
        self.log.following.store(false, Ordering::Release);
        self.log.epochs.lock().note(EpochStart { epoch, start: self.position, mark });
        let (kind, payload) = (RecordKind::Epoch, bytes::Bytes::new());
        vec![NewRecord { kind, queue: None, tag_hash: 0, mark, keys: Vec::new(), payload }]
    }

    /// Puts what a master sent into the buffer, when it continues this log: else nothing of it.
    pub(super) fn take_raw(&mut self, raw: &RawRecords) -> Result<(), AppendError> {
        if !self.log.follows() {
            return Err(AppendError::Invalid("this store follows no master"));
        }
        if raw.bytes.is_empty() {
            return Ok(());
        }
        let refuse = |reason| Err(AppendError::NotNext { at: raw.start, reason });
        let is_full = self.active.end() - self.position < HEADER_BYTES as u64;
        let next = if is_full { self.active.end() } else { self.position };
        if raw.start != next {
            return refuse(format!("it ends at {}", self.position));
        }
        if !is_full && raw.segment_bytes != self.active.length() {
            let length = self.active.length();
            return refuse(format!("a segment of {} bytes, which has {length} here", raw.segment_bytes));
        }
        let segment_end = if is_full { next + raw.segment_bytes } else { self.active.end() };
        let Checked { end, filler, begun, store_time_ms } = self.look_at(raw, segment_end)?;
        if is_full {
            self.roll(raw.segment_bytes)?;
        }
        self.buffer.extend_from_slice(&raw.bytes);
        self.position = end;
        if filler && end < segment_end {
            self.step_over()?;
        }
        self.store_time_ms = self.store_time_ms.max(store_time_ms);
        let mut epochs = self.log.epochs.lock();
        for master in begun {
            epochs.note(master);
            self.epoch = master.epoch;
        }
        Ok(())
    }

    /// Checks every record before a byte of any is taken.
    fn look_at(&self, raw: &RawRecords, segment_end: u64) -> Result<Checked, AppendError> {
        let (mut at, mut rest, mut epoch) = (raw.start, &raw.bytes[..], self.epoch);
        let (mut filler, mut begun, mut store_time_ms) = (false, Vec::new(), 0);
        while !rest.is_empty() {
            let refuse = |reason: String| AppendError::NotNext { at, reason };
            let invalid = |why: record::Invalid| refuse(why.to_string());
            if filler {
                return Err(refuse("something lies behind what has no content".into()));
            }
            let head = rest.first_chunk().ok_or_else(|| refuse("a header is cut off".into()))?;
            let covered = record::checked_bytes(head, at, segment_end.saturating_sub(at)).map_err(invalid)?;
            let covered = rest.get(..covered).ok_or_else(|| refuse("a record is cut off".into()))?;
            let header = record::decode_checked(covered, self.log.seal).map_err(invalid)?;
            match header.content {
                Content::Record(RecordKind::Epoch) if header.epoch > epoch => {
                    epoch = header.epoch;
                    begun.push(EpochStart { epoch, start: at, mark: header.mark });
                }
                Content::Record(_) if header.epoch != epoch => {
                    return Err(refuse(format!("a record of epoch {} in epoch {epoch}", header.epoch)));
                }
                Content::Blank if header.end() != segment_end => {
                    return Err(refuse("a blank that does not fill its segment".into()));
                }
                Content::Record(_) => {}
                Content::Blank | Content::Lost => filler = true,
            }
            store_time_ms = store_time_ms.max(header.store_time_ms);
            (at, rest) = (header.end(), &rest[covered.len()..]);
        }
        Ok(Checked { end: at, filler, begun, store_time_ms })
    }

    /// Goes on behind something that has no content, inside the segment: what lies under it is not kept.
    fn step_over(&mut self) -> Result<(), AppendError> {
        let written_page = self.position - self.position % PAGE_BYTES;
        self.write(false)?;
        if written_page > self.buffer_base {
            self.buffer.clear();
            self.buffer_base = written_page;
        }
        self.buffer.resize((self.position - self.buffer_base) as usize, 0);
        Ok(())
    }

    /// Makes visible what was received, as far as it may be seen, and answers those whose bytes are written now. Whether
    /// all of it can be seen.
    pub(super) fn publish_received(&mut self) -> Result<bool, AppendError> {
        let Received { shown, end, confirmed, durability, .. } = self.received;
        let to = match self.log.follows() {
            true => confirmed.min(end),
            false if self.log.progress.reached(durability, end) && self.log.fence.is_open() => end,
            false => shown,
        };
        if to > shown {
            self.log.progress.advance_confirmed(to);
            walk(&self.log, shown..to, |segment, header, bytes| show(&self.log, segment, header, bytes))
                .map_err(|reason| self.log.poison_because(reason.into()))?;
            self.log.progress.advance_applied(to);
            self.received.shown = to;
            self.log.tell_followers();
        }
        for reply in self.received.replies.drain(..) {
            let physical_offset = PhysicalOffset(self.position);
            let appended =
                Appended { physical_offset, queue_offset: QueueOffset(0), store_time_ms: self.store_time_ms };
            let _ = reply.send(Answer { result: Ok(appended), records: Vec::new() });
        }
        Ok(to == end)
    }
}

/// Visits the headers of a part of the log that was written and looked at, each with the bytes of its record.
fn walk(
    log: &CommitLog,
    range: std::ops::Range<u64>,
    mut visit: impl FnMut(&Segment, &Header, &bytes::Bytes) -> Result<(), String>,
) -> Result<(), String> {
    let mut at = range.start;
    while at < range.end {
        let segment = log.segment_of(at).ok_or_else(|| format!("nothing lies at {at}"))?;
        while at < range.end.min(segment.end()) {
            if segment.end() - at < HEADER_BYTES as u64 {
                at = segment.end();
                continue;
            }
            let head = segment.slice(at..at + HEADER_BYTES as u64);
            let header =
                record::peek(&head, at).map_err(|why| format!("what was received at {at}: {why}"))?;
            if matches!(header.content, Content::Record(_)) {
                visit(&segment, &header, &segment.slice(at..header.end()))?;
            }
            at = header.end();
        }
    }
    Ok(())
}

/// Index entries and listener, projections.
fn show(log: &CommitLog, segment: &Segment, header: &Header, bytes: &bytes::Bytes) -> Result<(), String> {
    let (at, keys) = (header.physical_offset, header.keys(bytes).collect::<Vec<_>>());
    log.index.unsealed.add(segment.base(), at, header.store_time_ms, &keys);
    if let Some(queue) = header.queue {
        let entry =
            Entry { physical_offset: PhysicalOffset(at), size: header.length, tag_hash: header.tag_hash };
        log.index.push_behind_lost(queue, header.queue_offset, entry)?;
        log.listener.confirmed(queue, 1);
    }
    if header.content != Content::Record(RecordKind::Message) {
        let record = header.record(bytes).map_err(|why| format!("what was received at {at}: {why}"))?;
        log.projections.iter().for_each(|projection| projection.apply(&record));
        log.projected.fetch_add(1, Ordering::Release);
    }
    Ok(())
}
