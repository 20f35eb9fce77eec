//! Mending: a stretch of the log that is known to be damaged gets its bytes back from another broker's copy of the same log,
//! while the store is open. Who fetches them is not the store's matter: [`Store::intact`] gives, [`Store::mend`] takes.
//! Any thread; blocks for as long as the device takes.
//!
//! Bytes are put in place: in such a stretch nobody has found a record, so nothing that a reader relies on changes, and a
//! crash leaves less damage than there was. Only filled segments with an index file are mended, which the log writer does
//! not touch any more; the maintenance thread builds their index anew then. An error of the device leaves the stretch as
//! damaged as it was known to be, and does not poison the store: nobody was promised anything.

use std::sync::Arc;

use bytes::Bytes;

use crate::commit_log::CommitLog;
use crate::damage::Damage;
use crate::error::{MendError, ReadError};
use crate::record::{self, Content, HEADER_BYTES, Header};
use crate::scrub::now_ms;
use crate::segment::{PAGE_BYTES, Segment};
use crate::{RawRecords, Store};

/// A stretch of the log that was damaged and is not any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mended {
    /// Physical offset of its first byte.
    pub from: u64,
    /// Physical offset behind its last one.
    pub to: u64,
    /// Who had them, as told to [`Store::mend`].
    pub source: String,
    /// When the last of them was put in place, in milliseconds since 1970.
    pub mended_ms: u64,
}

impl Store {
    /// Damage that can be mended, in log order. What is in the segment that is being written can be when that is filled.
    pub fn mendable(&self) -> Vec<Damage> {
        let mut all = self.log.damages.list();
        all.retain(|damage| self.log.mendable_segment(damage).is_some());
        all
    }

    /// What was mended since the store was opened; of the oldest only so many are kept.
    pub fn mended(&self) -> Vec<Mended> {
        self.log.damages.mended()
    }

    /// The projections lack what was damaged at the start, though all of that is mended now: they get it when the store is
    /// opened anew.
    pub fn wants_reopening(&self) -> bool {
        self.log
            .state_lacks_from
            .is_some_and(|from| !self.log.damages.list().iter().any(|damage| damage.to > from))
    }

    /// For another broker's [`Store::mend`]: whole confirmed records from `from` on, where one starts, up to about
    /// `max_bytes` of one segment, each found intact. `Err`: not even the first one is.
    pub fn intact(&self, from: u64, max_bytes: usize) -> Result<RawRecords, ReadError> {
        let log = &*self.log;
        let segment_of = |at| log.segment_of(at).map_or((0, 0), |segment| (segment.end(), segment.length()));
        let (segment_end, segment_bytes) = segment_of(from);
        let (mut bytes, mut at) = (Vec::new(), from);
        while at == from || at + HEADER_BYTES as u64 <= segment_end.min(log.progress.confirmed()) {
            let (header, covered) = match log.intact(at) {
                Ok(found) => found,
                Err(error) if bytes.is_empty() => return Err(error),
                Err(_) => break,
            };
            if !bytes.is_empty() && bytes.len() + covered.len() > max_bytes {
                break;
            }
            bytes.extend_from_slice(&covered);
            at = header.end();
            if !matches!(header.content, Content::Record(_)) {
                break;
            }
        }
        Ok(RawRecords { start: from, bytes: bytes.into(), end: at, segment_bytes })
    }

    /// Puts `bytes`, which [`Store::intact`] of another store with this log gave for `from`, in place of the damage that
    /// starts there, durably. Says where the rest of it starts, if any is left. `source` is told by [`Store::mended`].
    pub fn mend(&self, from: u64, bytes: &[u8], source: &str) -> Result<Option<u64>, MendError> {
        let log = &*self.log;
        let damage = log.damages.at(from).filter(|damage| damage.from == from);
        let damage = damage.ok_or(MendError::NotDamaged { from })?;
        let segment = log.mendable_segment(&damage).ok_or(MendError::NotDamaged { from })?;
        let (end, used) = log.check(&segment, &damage, bytes)?;
        let put = log.put(&segment, from, &bytes[..used]).and_then(|()| segment.flush());
        put.map_err(|error| MendError::Device { path: segment.path().to_owned(), error: Arc::new(error) })?;
        let whole = damage.to.saturating_sub(end) < HEADER_BYTES as u64 && damage.to == segment.end();
        let to = if whole { damage.to } else { end };
        log.damages.mend(Mended { from, to, source: source.to_owned(), mended_ms: now_ms() });
        if to < damage.to {
            return Ok(Some(to));
        }
        log.wishes.rebuild_index(segment.base());
        Ok(None)
    }
}

impl CommitLog {
    fn mendable_segment(&self, damage: &Damage) -> Option<Arc<Segment>> {
        let segment = self.segment_of(damage.from)?;
        let is_filled = self.index.file_of(segment.base()).is_some();
        (damage.from < damage.to && damage.to <= segment.end() && is_filled).then_some(segment)
    }

    /// The record or filler at `at`, and the bytes that its checksum is about.
    fn intact(&self, at: u64) -> Result<(Header, Bytes), ReadError> {
        let header = self.header_from_file(at)?;
        if let Content::Record(_) = header.content {
            return self.record_from_file(at);
        }
        let bytes = Bytes::from(self.read_file(at, HEADER_BYTES as u32)?);
        let header = record::decode_checked(&bytes, self.seal);
        Ok((header.map_err(|reason| self.unreadable(at, HEADER_BYTES as u32, reason))?, bytes))
    }

    /// Whether `bytes` are what was in front of the damage: records of this log, for this place, of masters that can have
    /// written here, one behind the other and none beyond the next intact one. Says up to where they reach, and how many of
    /// the bytes that takes.
    fn check(&self, segment: &Segment, damage: &Damage, bytes: &[u8]) -> Result<(u64, usize), MendError> {
        let (mut oldest, newest) = self.epochs.lock().around(damage.from..damage.to);
        let (mut at, mut used) = (damage.from, 0);
        while at < damage.to && used < bytes.len() {
            let invalid = |reason| MendError::Invalid { at, reason };
            let head =
                bytes[used..].first_chunk::<HEADER_BYTES>().ok_or(invalid(record::Invalid::Length(0)))?;
            let room = segment.end() - at;
            let covered = record::checked_bytes(head, at, room).map_err(invalid)?;
            let record =
                bytes.get(used..used + covered).ok_or(invalid(record::Invalid::Length(covered as u32)))?;
            let header = record::decode_checked(record, self.seal).map_err(invalid)?;
            match header.content {
                Content::Lost => return Err(invalid(record::Invalid::Lost)),
                Content::Record(_) if header.epoch < oldest || header.epoch > newest => {
                    return Err(MendError::Epoch { at, epoch: header.epoch, oldest, newest });
                }
                Content::Record(_) => oldest = header.epoch,
                Content::Blank => {}
            }
            if header.end() > damage.to {
                return Err(MendError::Beyond { at, end: header.end(), next: damage.to });
            }
            (at, used) = (header.end(), used + covered);
        }
        if used == 0 { Err(MendError::Nothing { from: damage.from }) } else { Ok((at, used)) }
    }

    /// Writes whole pages: a device gives a page that it could not read again only when all of it is written.
    fn put(&self, segment: &Segment, from: u64, bytes: &[u8]) -> std::io::Result<()> {
        let (first, end) = (from - from % PAGE_BYTES, from + bytes.len() as u64);
        let behind = end.next_multiple_of(PAGE_BYTES);
        let mut pages = vec![0; (behind - first) as usize];
        let (front, rest) = pages.split_at_mut((from - first) as usize);
        let (own, back) = rest.split_at_mut(bytes.len());
        own.copy_from_slice(bytes);
        if !front.is_empty() {
            segment.read_at(first, front)?;
        }
        if !back.is_empty()
            && let Err(error) = segment.read_at(end, back)
        {
            // Of what is damaged as well, nothing is lost.
            let is_damaged = self.damages.at(end).is_some_and(|damage| damage.to >= behind);
            if !is_damaged {
                return Err(error);
            }
            back.fill(0);
        }
        segment.write_pages(first, &pages)
    }
}
