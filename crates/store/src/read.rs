//! Reading records of the log where they lie. Any thread; blocks for as long as the pages it needs take to come.

use std::sync::Arc;

use bytes::Bytes;

use crate::Watermarks;
use crate::commit_log::CommitLog;
use crate::damage::Damage;
use crate::error::ReadError;
use crate::record::{self, HEADER_BYTES, Header, Invalid, MAX_RECORD_BYTES, NewRecord, Record};
use crate::segment::Segment;

impl CommitLog {
    /// Reads the confirmed record of `size` bytes at `at`; 0 stands for one that is known to be lost.
    pub(crate) fn record(&self, at: u64, size: u32) -> Result<Record, ReadError> {
        if size == 0 {
            let lost = self.damages.in_front_of(at);
            return Err(lost.map_or(ReadError::Lost { from: at, to: at }, ReadError::from));
        }
        let bytes = self.readable(at, size)?.slice(at..at + u64::from(size));
        let record = record::decode_record(&bytes, at, self.seal);
        record.map_err(|reason| {
            if reason == Invalid::Checksum || self.is_damaged_start(at) {
                let (from, to) = (at, at + u64::from(size));
                self.damages.add(Damage { from, to, reason: reason.to_string() });
            }
            self.unreadable(at, size, reason)
        })
    }

    /// The confirmed record that starts at `at`, to be appended once more. Read from the file.
    pub(crate) fn copy_of(&self, at: u64) -> Result<NewRecord, ReadError> {
        let (header, bytes) = self.record_from_file(at)?;
        let record = header.record(&bytes).map_err(|reason| self.unreadable(at, header.length, reason))?;
        Ok(NewRecord {
            kind: record.kind,
            queue: record.queue,
            tag_hash: record.tag_hash,
            mark: record.mark,
            keys: header.keys(&bytes).collect(),
            payload: record.payload,
        })
    }

    /// The header at a place below the confirmed watermark, whose own offset is checked; its checksum is not.
    pub(crate) fn header(&self, at: u64) -> Result<Header, ReadError> {
        let segment = self.readable(at, HEADER_BYTES as u32)?;
        let bytes = segment.slice(at..segment.end().min(at + HEADER_BYTES as u64));
        record::peek(&bytes, at).map_err(|reason| self.unreadable(at, HEADER_BYTES as u32, reason))
    }

    /// As [`CommitLog::header`], but where the device fails that is an error, and not the end of the process: for what is
    /// read without anybody having asked.
    pub(crate) fn header_from_file(&self, at: u64) -> Result<Header, ReadError> {
        let bytes = self.read_file(at, HEADER_BYTES as u32)?;
        record::peek(&bytes, at).map_err(|reason| self.unreadable(at, HEADER_BYTES as u32, reason))
    }

    /// The intact record that starts at a place below the confirmed watermark, likewise.
    pub(crate) fn record_from_file(&self, at: u64) -> Result<(Header, Bytes), ReadError> {
        let size = self.header_from_file(at)?.length;
        // Not checked yet: no memory is taken for what cannot be a record.
        if size as usize > MAX_RECORD_BYTES {
            return Err(self.unreadable(at, size, Invalid::Length(size)));
        }
        let bytes = Bytes::from(self.read_file(at, size)?);
        let header = record::decode(&bytes, at, self.seal);
        Ok((header.map_err(|reason| self.unreadable(at, size, reason))?, bytes))
    }

    pub(crate) fn read_file(&self, at: u64, size: u32) -> Result<Vec<u8>, ReadError> {
        let segment = self.readable(at, size)?;
        let mut bytes = vec![0; size as usize];
        match segment.read_at(at, &mut bytes) {
            Ok(()) => Ok(bytes),
            Err(error) => Err(ReadError::Device { offset: at, size, error: Arc::new(error) }),
        }
    }

    /// Whether a record starts at `at` whose header is not what was written: the records in front of it lead there. A
    /// place where none starts was asked for by mistake.
    pub(crate) fn is_damaged_start(&self, at: u64) -> bool {
        let Some(segment) = self.segment_of(at) else { return false };
        let mut next = segment.base();
        while next < at {
            next = match self.header(next) {
                Ok(header) => header.end(),
                Err(ReadError::Lost { to, .. }) => to,
                Err(_) => return false,
            };
        }
        next == at && self.header(at).is_err()
    }

    /// The segment with a range of the log that may be read.
    fn readable(&self, at: u64, size: u32) -> Result<Arc<Segment>, ReadError> {
        let Watermarks { log_start, confirmed, .. } = self.progress.load();
        let end = at.checked_add(u64::from(size)).filter(|end| *end <= confirmed && at >= log_start);
        let segment = end.and_then(|end| self.segment_of(at).filter(|segment| end <= segment.end()));
        segment.ok_or_else(|| {
            // Once more: it may have been deleted just now, and the error says so.
            let Watermarks { log_start, confirmed, .. } = self.progress.load();
            ReadError::OutOfRange { offset: at, size, log_start, confirmed }
        })
    }

    pub(crate) fn unreadable(&self, at: u64, size: u32, reason: Invalid) -> ReadError {
        if reason == Invalid::Lost {
            return ReadError::Lost { from: at, to: at + u64::from(size) };
        }
        self.damages.at(at).map_or(ReadError::Corrupt { offset: at, size, reason }, ReadError::from)
    }

    /// A damaged part of an index file is built anew.
    pub(crate) fn healing<T>(&self, read: Result<T, ReadError>) -> Result<T, ReadError> {
        if let Err(ReadError::BadIndex { segment, .. }) = &read {
            self.wishes.rebuild_index(*segment);
        }
        read
    }
}
