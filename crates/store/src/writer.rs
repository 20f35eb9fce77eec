//! The log writer: one thread that owns the tail of the log. It takes what waits in the inbox, gives it its place,
//! writes it with one `pwrite`, flushes at most once, makes it visible and answers.
//!
//! Group commit has no timer: what arrives during a flush is the next batch.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::commit_log::{CommitLog, INITIALISE_BYTES, PREPARE_AT, PanicGuard};
use crate::cursor::REACH_BYTES;
use crate::error::AppendError;
use crate::inbox::{Answer, Reply, Request};
use crate::index::{ByQueue, Entry};
use crate::record::{self, Content, HEADER_BYTES, NewRecord, PhysicalOffset, Place, QueueOffset, RecordKind};
use crate::segment::{PAGE_BYTES, Segment};
use crate::{Appended, Durability};

/// The maintenance thread is asked to flush when this much is not: a later flush would take long.
const DIRTY_BYTES: u64 = 32 << 20;
/// Where the maintenance thread has not initialised the blocks ahead of the log, as in the first segment: now and then
/// more zeros than the batch needs are written behind it, so that not each flush waits for the file system's journal.
const ZERO_AHEAD_BYTES: u64 = 1 << 20;
/// At the end of a segment this part, at most `MAX_RESERVE_BYTES`, takes messages only when the next segment is
/// there: on a full disk consumers go on recording their progress in it.
const RESERVE_PART: u64 = 16;
const MAX_RESERVE_BYTES: u64 = 8 << 20;
/// Memory kept for the next batch.
const KEPT_BUFFER_BYTES: usize = 8 << 20;

static ZEROS: [u8; ZERO_AHEAD_BYTES as usize] = [0; ZERO_AHEAD_BYTES as usize];

#[derive(Debug)]
pub(crate) struct LogWriter {
    log: Arc<CommitLog>,
    active: Arc<Segment>,
    /// Physical offset of the next record.
    position: u64,
    /// What goes to the file next: from the start of the page in which the written part ends, up to `position`.
    buffer: Vec<u8>,
    /// Physical offset of `buffer[0]`, a page boundary.
    buffer_base: u64,
    /// Blocks in front of this were written before, if only with zeros.
    initialised: u64,
    next_queue_offsets: ByQueue<u64>,
    store_time_ms: u64,
    /// Requests of this batch that have their place, in log order.
    placed: Vec<Placed>,
    /// Segments filled in this batch.
    filled: Vec<Arc<Segment>>,
    /// Where the log ended when the next segment, or more of its blocks, were asked for last.
    prepare_asked_at: u64,
    /// Limit of the cursor when it was asked to move on.
    advance_asked_at: u64,
}

#[derive(Debug)]
struct Placed {
    /// Where the segment starts that they lie in.
    base: u64,
    records: Vec<NewRecord>,
    durability: Durability,
    appended: Appended,
    /// Taken when it is used.
    reply: Option<Reply>,
}

impl Placed {
    /// A memory-class producer of messages need not wait for the flush of others. Who appends something else may
    /// rely on it: when it is answered, the projections have seen it.
    fn is_answered_when_written(&self) -> bool {
        self.durability == Durability::Memory && !is_projected(&self.records)
    }

    fn answer(mut self, result: Result<Appended, AppendError>) {
        let reply = self.reply.take();
        send(reply, result, self.records);
    }

    /// Before the records are published, so they cannot be given away yet.
    fn answer_early(&mut self) {
        send(self.reply.take(), Ok(self.appended), Vec::new());
    }
}

fn send(reply: Option<Reply>, result: Result<Appended, AppendError>, records: Vec<NewRecord>) {
    if let Some(reply) = reply {
        // The caller may have stopped waiting; its records are in the log all the same.
        let _ = reply.send(Answer { result, records });
    }
}

impl LogWriter {
    /// Goes on where the log ends: at `position`, in its last segment.
    pub(crate) fn new(log: Arc<CommitLog>, position: u64, store_time_ms: u64) -> Self {
        let active = log.active();
        let buffer_base = position - position % PAGE_BYTES;
        Self {
            buffer: active.slice(buffer_base..position).to_vec(),
            buffer_base,
            initialised: active.initialised().max(position.next_multiple_of(PAGE_BYTES)),
            next_queue_offsets: log.index.ends(),
            store_time_ms,
            placed: Vec::new(),
            filled: Vec::new(),
            prepare_asked_at: 0,
            advance_asked_at: 0,
            position,
            active,
            log,
        }
    }

    /// Runs until the inbox is closed and empty, or the store is poisoned.
    pub(crate) fn run(mut self) {
        let _guard = PanicGuard(self.log.clone());
        let mut batch = VecDeque::new();
        while self.log.inbox.take(&mut batch, self.log.config.batch_bytes) {
            if let Err(error) = self.append(&mut batch) {
                self.placed.drain(..).for_each(|placed| placed.answer(Err(error.clone())));
                batch.drain(..).for_each(|request| request.refuse(error.clone()));
            }
        }
    }

    /// Appends a batch. An error means that the store is poisoned; who was not answered yet must be told.
    fn append(&mut self, batch: &mut VecDeque<Request>) -> Result<(), AppendError> {
        self.log.check_poison()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.store_time_ms = self.store_time_ms.max(now.as_millis() as u64);
        let started = Instant::now();
        while let Some(request) = batch.pop_front() {
            let waited = started.saturating_duration_since(request.arrived);
            if waited > self.log.config.append_deadline {
                request.refuse(AppendError::Expired { waited_ms: waited.as_millis() as u64 });
                continue;
            }
            match self.make_room(&request) {
                Ok(()) => self.place(request),
                Err(error @ AppendError::Poisoned(_)) => {
                    batch.push_front(request);
                    return Err(error);
                }
                Err(refused) => request.refuse(refused),
            }
        }
        let wants_disk = self.placed.iter().any(|placed| placed.durability == Durability::Disk);
        if !self.placed.is_empty() {
            self.write(wants_disk)?;
            if wants_disk {
                let placed = self.placed.iter_mut().filter(|placed| placed.is_answered_when_written());
                placed.for_each(Placed::answer_early);
                self.log.flush(&self.active, self.position)?;
            }
        }
        self.publish();
        self.ask_maintenance(wants_disk);
        Ok(())
    }

    /// Rolls to the next segment if the request does not fit: all records of a request lie in one.
    fn make_room(&mut self, request: &Request) -> Result<(), AppendError> {
        let bytes = request.bytes as u64;
        let reserve = (self.active.length() / RESERVE_PART).min(MAX_RESERVE_BYTES);
        let may_use_reserve = request.records.iter().all(|record| record.kind.may_use_reserve());
        loop {
            let end = self.position + bytes;
            if end <= self.active.end() - if may_use_reserve { 0 } else { reserve } {
                return Ok(());
            }
            self.log.prepare_next()?;
            if end <= self.active.end() {
                return Ok(());
            }
            self.roll()?;
        }
    }

    /// Fills the rest of the active segment with a blank and goes on in the next one.
    fn roll(&mut self) -> Result<(), AppendError> {
        self.log.prepare_next()?;
        let rest = self.active.end() - self.position;
        if rest >= HEADER_BYTES as u64 {
            let length = u32::try_from(rest).expect("segments have at most 2 GiB");
            let (at, time, seal) = (self.position, self.store_time_ms, self.log.seal);
            record::encode_filler(Content::Blank, at, length, time, seal, &mut self.buffer);
        }
        self.write(false)?;
        self.position = self.active.end();
        self.log.progress.advance_written(self.position);
        // Nothing is written to a segment before the one in front of it is flushed: so recovery finds at most one
        // segment that ends early, and a flush of the active one is a flush of the log.
        self.log.flush(&self.active, self.position)?;
        let filled = std::mem::replace(&mut self.active, self.log.activate_next());
        self.filled.push(filled);
        self.buffer.clear();
        (self.buffer_base, self.initialised) = (self.position, self.active.initialised());
        Ok(())
    }

    /// Gives the records their offsets and puts their bytes into the buffer.
    fn place(&mut self, request: Request) {
        let queue = request.records.iter().find_map(|record| record.queue);
        let mut queue_offset =
            queue.and_then(|queue| self.next_queue_offsets.get(&queue).copied()).unwrap_or(0);
        let appended = Appended {
            physical_offset: PhysicalOffset(self.position),
            queue_offset: QueueOffset(queue_offset),
            store_time_ms: self.store_time_ms,
        };
        let flushed = self.log.progress.flushed();
        for record in &request.records {
            let place = Place {
                physical_offset: self.position,
                queue_offset: if record.queue.is_some() { queue_offset } else { 0 },
                store_time_ms: self.store_time_ms,
                flushed_before: flushed >= self.position,
            };
            record::encode(record, place, self.log.seal, &mut self.buffer);
            self.position += record.encoded_bytes() as u64;
            queue_offset += u64::from(record.queue.is_some());
        }
        if let Some(queue) = queue {
            self.next_queue_offsets.insert(queue, queue_offset);
        }
        let Request { records, durability, reply, .. } = request;
        let base = self.active.base();
        self.placed.push(Placed { base, records, durability, appended, reply: Some(reply) });
    }

    /// Writes the buffer as whole pages and keeps the bytes of the page that is not full yet.
    fn write(&mut self, flush_follows: bool) -> Result<(), AppendError> {
        let used = self.buffer.len();
        self.buffer.resize(used.next_multiple_of(PAGE_BYTES as usize), 0);
        let write = |at, pages| {
            let written = self.active.write_pages(at, pages);
            written.map_err(|error| self.log.poison("write", self.active.path(), &error))
        };
        let end = self.buffer_base + self.buffer.len() as u64;
        let furthest = end + ZERO_AHEAD_BYTES;
        if furthest > self.log.limit.load(Ordering::Acquire) {
            // The maintenance thread was too slow. A batch is far smaller than the cursor's reach.
            self.log.flush(&self.active, self.log.progress.written())?;
            self.log.advance_cursor()?;
            if furthest > self.log.limit.load(Ordering::Acquire) {
                return Err(self.log.poison_because("the cursor cannot be moved: the disk is full".into()));
            }
        }
        write(self.buffer_base, &self.buffer)?;
        if end > self.initialised {
            self.initialised = end;
            // Large batches write their own way; for them zeros would only cost bandwidth.
            if flush_follows && self.buffer.len() < ZEROS.len() / 4 {
                let ahead = ZERO_AHEAD_BYTES.min(self.active.end() - end);
                write(end, &ZEROS[..ahead as usize])?;
                self.initialised = end + ahead;
            }
        }
        self.log.progress.advance_written(self.position);
        let full = used - used % PAGE_BYTES as usize;
        self.buffer.truncate(used);
        self.buffer.drain(..full);
        self.buffer.shrink_to(KEPT_BUFFER_BYTES);
        self.buffer_base += full as u64;
        Ok(())
    }

    /// Makes the batch visible, then answers: records, index entries and listener, projections, callers.
    fn publish(&mut self) {
        self.log.progress.advance_confirmed(self.position);
        for placed in &self.placed {
            publish_entries(&self.log, placed);
            publish_to_projections(&self.log, placed);
        }
        self.log.progress.advance_applied(self.position);
        // Nothing else in between: whoever is woken by the first answer finds the next ones there when it is done.
        self.placed.drain(..).for_each(|placed| {
            let appended = placed.appended;
            placed.answer(Ok(appended));
        });
    }

    fn ask_maintenance(&mut self, wants_disk: bool) {
        let log = &self.log;
        let start = self.active.base() + self.active.length() / PREPARE_AT;
        if self.position > start && self.prepare_asked_at < start {
            self.prepare_asked_at = self.position;
            log.wishes.prepare();
        }
        // Who does not wait for flushes gains nothing by it.
        let step = INITIALISE_BYTES.min(self.active.length() / 16);
        if wants_disk && self.position > start && self.position - self.prepare_asked_at >= step {
            self.prepare_asked_at = self.position;
            log.wishes.initialise();
        }
        if self.position - log.progress.flushed() > DIRTY_BYTES {
            log.wishes.flush();
        }
        let limit = log.limit.load(Ordering::Acquire);
        if self.position + REACH_BYTES / 2 > limit && self.advance_asked_at != limit {
            self.advance_asked_at = limit;
            log.wishes.flush();
        }
        self.filled.drain(..).for_each(|segment| log.wishes.seal(segment));
    }
}

fn is_projected(records: &[NewRecord]) -> bool {
    records.iter().any(|record| record.kind != RecordKind::Message)
}

fn publish_entries(log: &CommitLog, placed: &Placed) {
    let Appended { physical_offset, queue_offset, store_time_ms } = placed.appended;
    let (mut next, mut count) = (physical_offset.0, 0);
    for record in &placed.records {
        log.index.unsealed.add(placed.base, next, store_time_ms, &record.keys);
        next += record.encoded_bytes() as u64;
    }
    let Some(queue) = placed.records.iter().find_map(|record| record.queue) else { return };
    next = physical_offset.0;
    let entries = placed.records.iter().filter_map(|record| {
        let size = record.encoded_bytes() as u32;
        let physical_offset = PhysicalOffset(next);
        next += u64::from(size);
        count += u32::from(record.queue.is_some());
        record.queue.map(|_| Entry { physical_offset, size, tag_hash: record.tag_hash })
    });
    log.index.push(queue, queue_offset.0, entries);
    log.listener.confirmed(queue, count);
}

fn publish_to_projections(log: &CommitLog, placed: &Placed) {
    let Appended { physical_offset, queue_offset, store_time_ms } = placed.appended;
    let (mut next, mut next_in_queue) = (physical_offset.0, queue_offset.0);
    for record in &placed.records {
        if record.kind != RecordKind::Message {
            let place = Place {
                physical_offset: next,
                queue_offset: if record.queue.is_some() { next_in_queue } else { 0 },
                store_time_ms,
                flushed_before: false,
            };
            let record = record::placed(record, place);
            log.projections.iter().for_each(|projection| projection.apply(&record));
            log.projected.fetch_add(1, Ordering::Release);
        }
        next += record.encoded_bytes() as u64;
        next_in_queue += u64::from(record.queue.is_some());
    }
}
