//! Logs written by hand: segment lengths, store times and gaps that a store would not make within a test.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::support::*;
use crate::record::{self, Content, Place, Seal};
use crate::*;

/// A record that was laid down and where it lies.
#[derive(Debug, Clone)]
pub(super) struct Laid {
    pub(super) at: u64,
    pub(super) size: u32,
    pub(super) queue_offset: u64,
    pub(super) time_ms: u64,
    pub(super) record: NewRecord,
}

impl Laid {
    pub(super) fn end(&self) -> u64 {
        self.at + u64::from(self.size)
    }

    pub(super) fn queue(&self) -> Option<QueueNumber> {
        self.record.queue
    }
}

/// Writes segments one behind the other, of any length that is a multiple of a page.
pub(super) struct Handmade {
    directory: PathBuf,
    seal: Seal,
    base: u64,
    bytes: Vec<u8>,
    next: HashMap<QueueNumber, u64>,
    pub(super) laid: Vec<Laid>,
}

impl Handmade {
    /// In a new store, of which nothing but the identity is kept.
    pub(super) fn new(directory: &Path) -> Self {
        drop(open(directory));
        fs::remove_file(segment_path(directory, 0)).unwrap();
        fs::remove_file(directory.join(cursor::FILE_NAME)).unwrap();
        let (seal, next) = (seal_of(directory), HashMap::new());
        Self { directory: directory.to_owned(), seal, base: 0, bytes: Vec::new(), next, laid: Vec::new() }
    }

    /// Where the next record will lie.
    pub(super) fn end(&self) -> u64 {
        self.base + self.bytes.len() as u64
    }

    pub(super) fn add(&mut self, record: NewRecord, time_ms: u64) {
        let next = record.queue.map(|queue| self.next.entry(queue).or_default());
        let queue_offset = next.as_ref().map_or(0, |next| **next);
        next.into_iter().for_each(|next| *next += 1);
        let (at, size) = (self.end(), record.encoded_bytes() as u32);
        let place = Place {
            physical_offset: at,
            queue_offset,
            store_time_ms: time_ms,
            flushed_before: false,
            epoch: 0,
        };
        record::encode(&record, place, self.seal, &mut self.bytes);
        self.laid.push(Laid { at, size, queue_offset, time_ms, record });
    }

    /// The next record of `queue` leaves out so many places.
    pub(super) fn skip(&mut self, queue: QueueNumber, places: u64) {
        *self.next.entry(queue).or_default() += places;
    }

    /// So many bytes were given up by a repair.
    pub(super) fn give_up(&mut self, bytes: u32) {
        let end = self.bytes.len() + bytes as usize;
        record::encode_filler(Content::Lost, self.end(), bytes, 0, 0, self.seal, &mut self.bytes);
        self.bytes.resize(end, 0xe5);
    }

    /// Ends the segment at `length` bytes; what is free of it is a blank over bytes that mean nothing.
    pub(super) fn roll(&mut self, length: u64) {
        let (at, rest) = (self.end(), length - self.bytes.len() as u64);
        if rest >= HEADER_BYTES as u64 {
            let time = self.laid.last().map_or(0, |laid| laid.time_ms);
            record::encode_filler(Content::Blank, at, rest as u32, time, 0, self.seal, &mut self.bytes);
        }
        self.bytes.resize(length as usize, 0xe5);
        fs::write(segment_path(&self.directory, self.base), &self.bytes).unwrap();
        self.base += length;
        self.bytes.clear();
    }

    /// Writes the last segment, which goes on being written, and says where it starts.
    pub(super) fn finish(mut self, length: u64) -> Vec<Laid> {
        assert!(self.bytes.len() as u64 <= length);
        self.bytes.resize(length as usize, 0);
        fs::write(segment_path(&self.directory, self.base), &self.bytes).unwrap();
        self.laid
    }
}
