//! The log writer: one thread that owns the tail of the log. It takes what waits in the inbox, gives it its place,
//! writes it with one `pwrite`, flushes at most once, makes it visible and answers.
//!
//! Group commit has no timer: what arrives during a flush is the next batch. What replicas must have is made visible when
//! they do (`publish.rs`); the log writer does not wait for them. Where this store is the replica, what it writes comes from
//! a master (`follow.rs`).

mod follow;
mod publish;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::commit_log::{CommitLog, INITIALISE_BYTES, PREPARE_AT, PanicGuard};
use crate::cursor::REACH_BYTES;
use crate::error::AppendError;
use crate::inbox::{Request, Work};
use crate::index::ByQueue;
use crate::record::{self, Content, HEADER_BYTES, PhysicalOffset, Place, QueueOffset};
use crate::segment::{PAGE_BYTES, Segment};
use crate::{Appended, Durability};
use follow::Received;
use publish::Placed;

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
    /// Not kept up to date while a master is followed.
    next_queue_offsets: ByQueue<u64>,
    store_time_ms: u64,
    /// Of the master that writes: this one, or the one that is followed.
    epoch: u32,
    /// Requests that have their place, in log order, until they can be seen.
    placed: VecDeque<Placed>,
    /// What they take in the log.
    placed_bytes: usize,
    /// What a master sent. It lies in front of all of `placed`.
    received: Received,
    /// Filled segments of which not all can be seen yet, or whose index file was not asked for.
    filled: VecDeque<Arc<Segment>>,
    /// Where the log ended when the next segment, or more of its blocks, were asked for last.
    prepare_asked_at: u64,
    /// Limit of the cursor when it was asked to move on.
    advance_asked_at: u64,
}

impl LogWriter {
    /// Goes on where the log ends: at `position`, in its last segment.
    pub(crate) fn new(log: Arc<CommitLog>, position: u64, store_time_ms: u64) -> Self {
        let active = log.active();
        let buffer_base = position - position % PAGE_BYTES;
        let epoch = log.epochs.lock().last().epoch;
        Self {
            buffer: active.slice(buffer_base..position).to_vec(),
            buffer_base,
            initialised: active.initialised().max(position.next_multiple_of(PAGE_BYTES)),
            next_queue_offsets: log.index.ends(),
            store_time_ms,
            epoch,
            placed: VecDeque::new(),
            placed_bytes: 0,
            received: Received::nothing_yet(position),
            filled: VecDeque::new(),
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
        while self.log.inbox.take(&mut batch, self.may_take_bytes()) {
            if let Err(error) = self.append(&mut batch) {
                self.fail(&error);
                batch.drain(..).for_each(|request| request.refuse(error.clone()));
            }
        }
        self.log.inbox.refuse_rest();
        let error = self.log.check_poison().err().unwrap_or(AppendError::Unconfirmed);
        self.fail(&error);
    }

    /// What waits for replicas is bounded as what waits to be written is.
    fn may_take_bytes(&self) -> usize {
        if self.placed_bytes < self.log.config.inbox_bytes { self.log.config.batch_bytes } else { 0 }
    }

    /// Appends a batch. An error means that the store is poisoned; who was not answered yet must be told.
    fn append(&mut self, batch: &mut VecDeque<Request>) -> Result<(), AppendError> {
        self.log.check_poison()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.store_time_ms = self.store_time_ms.max(now.as_millis() as u64);
        let started = Instant::now();
        let (former, mut wants_disk) = (self.placed.len(), false);
        while let Some(request) = batch.front() {
            let waited = started.saturating_duration_since(request.arrived);
            let prepared = match waited > self.log.config.append_deadline {
                true => Err(AppendError::Expired { waited_ms: waited.as_millis() as u64 }),
                false => self.prepare(request),
            };
            if let Err(error @ AppendError::Poisoned(_)) = prepared {
                return Err(error);
            }
            let Some(request) = batch.pop_front() else { break };
            match prepared {
                Ok(()) => {
                    wants_disk |= request.durability >= Durability::Disk;
                    self.place(request);
                }
                Err(refused) => request.refuse(refused),
            }
        }
        if self.position > self.log.progress.written() {
            self.write(wants_disk)?;
            self.log.tell_followers();
            if wants_disk {
                self.answer_early(former, Durability::Memory);
                self.log.flush(&self.active, self.position)?;
            }
        }
        let published = self.publish()?;
        self.answer_early(former.saturating_sub(published), Durability::Disk);
        self.ask_maintenance(wants_disk);
        Ok(())
    }

    /// Whatever can be wrong with a request, before anything of it is done.
    fn prepare(&mut self, request: &Request) -> Result<(), AppendError> {
        match &request.work {
            Work::Raw { raw, .. } => return self.take_raw(raw),
            Work::Lead { epoch, .. } => self.prepare_to_lead(*epoch)?,
            Work::Records(_) if self.log.follows() => return Err(AppendError::Follows),
            Work::Records(_) => {}
        }
        self.make_room(request)
    }

    /// Rolls to the next segment if the request does not fit: all records of a request lie in one.
    fn make_room(&mut self, request: &Request) -> Result<(), AppendError> {
        let bytes = request.bytes as u64;
        let reserve = (self.active.length() / RESERVE_PART).min(MAX_RESERVE_BYTES);
        let may_use_reserve = match &request.work {
            Work::Records(records) => records.iter().all(|record| record.kind.may_use_reserve()),
            Work::Raw { .. } | Work::Lead { .. } => true,
        };
        loop {
            let end = self.position + bytes;
            if end <= self.active.end() - if may_use_reserve { 0 } else { reserve } {
                return Ok(());
            }
            self.log.prepare_next(self.log.config.segment_size_bytes)?;
            if end <= self.active.end() {
                return Ok(());
            }
            self.roll(self.log.config.segment_size_bytes)?;
        }
    }

    /// Fills the rest of the active segment with a blank and goes on in the next one, which has `length` bytes.
    fn roll(&mut self, length: u64) -> Result<(), AppendError> {
        self.log.prepare_next(length)?;
        let rest = self.active.end() - self.position;
        if rest >= HEADER_BYTES as u64 {
            let length = u32::try_from(rest).expect("segments have at most 2 GiB");
            let (at, time, seal) = (self.position, self.store_time_ms, self.log.seal);
            record::encode_filler(Content::Blank, at, length, time, self.epoch, seal, &mut self.buffer);
        }
        self.write(false)?;
        self.position = self.active.end();
        self.log.progress.advance_written(self.position);
        // Nothing is written to a segment before the one in front of it is flushed: so recovery finds at most one
        // segment that ends early, and a flush of the active one is a flush of the log.
        self.log.flush(&self.active, self.position)?;
        let filled = std::mem::replace(&mut self.active, self.log.activate_next());
        self.filled.push_back(filled);
        self.buffer.clear();
        (self.buffer_base, self.initialised) = (self.position, self.active.initialised());
        Ok(())
    }

    /// Gives the records their offsets and puts their bytes into the buffer.
    fn place(&mut self, request: Request) {
        let Request { work, bytes, durability, reply, .. } = request;
        let records = match work {
            Work::Records(records) => records,
            Work::Lead { epoch, mark } => self.lead(epoch, mark, durability),
            Work::Raw { confirmed, .. } => return self.received.add(self.position, confirmed, reply),
        };
        let queue = records.iter().find_map(|record| record.queue);
        let mut queue_offset =
            queue.and_then(|queue| self.next_queue_offsets.get(&queue).copied()).unwrap_or(0);
        let appended = Appended {
            physical_offset: PhysicalOffset(self.position),
            queue_offset: QueueOffset(queue_offset),
            store_time_ms: self.store_time_ms,
        };
        let flushed = self.log.progress.flushed();
        for record in &records {
            let place = Place {
                physical_offset: self.position,
                queue_offset: if record.queue.is_some() { queue_offset } else { 0 },
                store_time_ms: self.store_time_ms,
                flushed_before: flushed >= self.position,
                epoch: self.epoch,
            };
            record::encode(record, place, self.log.seal, &mut self.buffer);
            self.position += record.encoded_bytes() as u64;
            queue_offset += u64::from(record.queue.is_some());
        }
        if let Some(queue) = queue {
            self.next_queue_offsets.insert(queue, queue_offset);
        }
        let (base, end) = (self.active.base(), self.position);
        self.placed_bytes += bytes;
        let reply = Some(reply);
        self.placed.push_back(Placed {
            base,
            end,
            records,
            bytes,
            durability,
            epoch: self.epoch,
            appended,
            reply,
        });
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
        // Its index is complete when all of it can be seen.
        while self.filled.front().is_some_and(|segment| segment.end() <= log.progress.applied()) {
            self.filled.pop_front().into_iter().for_each(|segment| log.wishes.seal(segment));
        }
    }
}
