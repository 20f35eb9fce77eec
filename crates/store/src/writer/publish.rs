//! Making what was written visible: index, listener and projections first, then who waits is answered. In log order, so
//! what needs less than the record in front of it is seen after that one, though its caller is answered before.
//! On the log writer's thread.

use std::sync::atomic::Ordering;

use super::LogWriter;
use crate::commit_log::CommitLog;
use crate::error::AppendError;
use crate::gather;
use crate::inbox::{Answer, Reply};
use crate::index::Entry;
use crate::record::{self, NewRecord, PhysicalOffset, Place, RecordKind};
use crate::{Appended, Durability};

/// A request that has its place.
#[derive(Debug)]
pub(super) struct Placed {
    /// Where the segment starts that they lie in.
    pub(super) base: u64,
    /// Physical offset behind the last.
    pub(super) end: u64,
    pub(super) records: Vec<NewRecord>,
    /// What they take in the log.
    pub(super) bytes: usize,
    pub(super) durability: Durability,
    pub(super) epoch: u32,
    pub(super) appended: Appended,
    /// Taken when it is used.
    pub(super) reply: Option<Reply>,
}

impl Placed {
    /// Who appends something else than messages may rely on it: when it is answered, the projections have seen it.
    fn may_be_answered_before_it_is_seen(&self) -> bool {
        self.reply.is_some() && !self.records.iter().any(|record| record.kind != RecordKind::Message)
    }

    fn answer(mut self, result: Result<Appended, AppendError>) {
        let reply = self.reply.take();
        send(reply, result, self.records);
    }
}

fn send(reply: Option<Reply>, result: Result<Appended, AppendError>, records: Vec<NewRecord>) {
    if let Some(reply) = reply {
        // The caller may have stopped waiting; its records are in the log all the same.
        let _ = reply.send(Answer { result, records });
    }
}

impl LogWriter {
    /// Makes visible what is durable enough, then answers: records, index entries and listener, projections, callers. Says
    /// how many requests that were.
    pub(super) fn publish(&mut self) -> Result<usize, AppendError> {
        if !self.publish_received()? || !self.log.fence.is_open() {
            return Ok(0);
        }
        let progress = &self.log.progress;
        let done = self.placed.iter().take_while(|placed| progress.reached(placed.durability, placed.end));
        let count = done.count();
        let end = match count.checked_sub(1).map(|last| &self.placed[last]) {
            // Behind the last one only a blank can lie.
            _ if count == self.placed.len() => self.position,
            Some(last) => last.end,
            None => return Ok(0),
        };
        progress.advance_confirmed(end);
        gather::together(|| {
            for placed in self.placed.iter().take(count) {
                publish_entries(&self.log, placed);
                publish_to_projections(&self.log, placed);
            }
            progress.advance_applied(end);
            for placed in self.placed.drain(..count) {
                self.placed_bytes -= placed.bytes;
                let appended = placed.appended;
                placed.answer(Ok(appended));
            }
        });
        if count > 0 {
            self.log.tell_followers();
        }
        Ok(count)
    }

    /// Answers those behind the first `former` that wait for no more than `reached`, though they cannot be seen yet: a
    /// memory-class producer does not wait for the flush of others, nor a disk-class one for their replicas.
    pub(super) fn answer_early(&mut self, former: usize, reached: Durability) {
        if !self.log.fence.is_open() {
            return;
        }
        let new = self.placed.iter_mut().skip(former);
        gather::together(|| {
            for placed in new.filter(|placed| placed.durability <= reached) {
                if placed.may_be_answered_before_it_is_seen() {
                    // Its records are not published, so they cannot be given away yet.
                    send(placed.reply.take(), Ok(placed.appended), Vec::new());
                }
            }
        });
    }

    /// Tells everybody who waits that it will not come about.
    pub(super) fn fail(&mut self, error: &AppendError) {
        self.placed_bytes = 0;
        self.placed.drain(..).for_each(|placed| placed.answer(Err(error.clone())));
        self.received.fail(error);
    }
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
                epoch: placed.epoch,
            };
            let record = record::placed(record, place);
            log.projections.iter().for_each(|projection| projection.apply(&record));
            log.projected.fetch_add(1, Ordering::Release);
        }
        next += record.encoded_bytes() as u64;
        next_in_queue += u64::from(record.queue.is_some());
    }
}
