//! Verifying a segment and its index file, record by record: the one way for the scrub, for a running store and for a
//! stopped one. Reads with `pread` into a buffer: where the device fails, a map would end the process. On the thread of
//! whoever asks.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::damage::Damage;
use crate::index::sealed::{IndexedSegment, SealedIndex, check_file};
use crate::record::{self, ALIGN, Content, HEADER_BYTES, Header, Invalid, MAX_RECORD_BYTES, Seal};
use crate::report::{IndexState, SegmentReport};
use crate::segment::PAGE_BYTES;

/// So much is read at once, and so much at least is held.
const PIECE_BYTES: u64 = 256 << 10;

/// Why verifying ended early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Halt {
    /// Whoever asked wants no more.
    Told,
    /// The segment left the log meanwhile.
    Gone,
}

/// The files of one segment.
pub(crate) trait Source {
    /// Called in front of every read of so many bytes; may take its time.
    fn pace(&mut self, bytes: u64) -> Result<(), Halt>;
    /// Fills `into` with what lies at `at` in the log.
    fn read(&mut self, at: u64, into: &mut [u8]) -> Result<io::Result<()>, Halt>;
    /// Where the next byte may lie that is not zero.
    fn data_from(&self, at: u64) -> u64;
    /// Its index file, to be read as a file.
    fn index_file(&self) -> io::Result<Option<File>>;
    /// Its index file, to look something up. Only asked for when the file was found intact.
    fn index(&self) -> Option<Arc<SealedIndex>>;
}

/// What is no record.
#[derive(Debug, Clone)]
pub(crate) struct Stretch {
    pub(crate) from: u64,
    /// Where the next valid record is, or the end of what was looked at.
    pub(crate) to: u64,
    pub(crate) why: Invalid,
    /// What the device said, if it was asked in vain.
    unreadable: Option<String>,
}

impl Stretch {
    pub(crate) fn reason(&self) -> String {
        match &self.unreadable {
            Some(error) => format!("it cannot be read: {error}"),
            None => self.why.to_string(),
        }
    }

    pub(crate) fn damage(&self) -> Damage {
        Damage { from: self.from, to: self.to, reason: self.reason() }
    }
}

/// What lies at a place of the log.
#[derive(Debug)]
pub(crate) enum Visited<'a> {
    /// A record or filler, with the bytes that its checksum is about.
    Valid(&'a Header, &'a [u8]),
    Invalid(Stretch),
}

/// What a segment holds.
#[derive(Debug)]
pub(crate) struct Verified {
    pub(crate) records: u64,
    /// Of fillers that a repair has left.
    pub(crate) given_up_bytes: u64,
    /// Of the first and the last record.
    pub(crate) store_times_ms: Option<(u64, u64)>,
    pub(crate) index: IndexState,
}

/// Verifies the index file of `about` and the records in front of `upto`; `visit` sees what is there.
pub(crate) fn segment(
    source: &mut dyn Source,
    about: IndexedSegment,
    upto: u64,
    visit: &mut dyn FnMut(&Visited<'_>),
) -> Result<Verified, Halt> {
    let index = index_file(source, about)?;
    let mut verified = Verified { records: 0, given_up_bytes: 0, store_times_ms: None, index };
    let (mut at, mut reader) = (about.base, Reader::new(source, upto));
    let mut unindexed = None;
    while let Some(next) = reader.next(at, about.log.seal(), |source, visited| {
        if let Visited::Valid(header, bytes) = &visited {
            verified.see(header);
            let is_record = matches!(header.content, Content::Record(_));
            if is_record && verified.index == IndexState::Sound && unindexed.is_none() {
                // Asked for each time: it must not keep the file of a segment that was deleted.
                unindexed = source.index().and_then(|index| index.misses(header, bytes));
            }
        }
        visit(&visited);
    })? {
        at = next;
    }
    if let Some(reason) = unindexed {
        verified.index = IndexState::Damaged(reason);
    }
    Ok(verified)
}

/// Visits what lies in `range`, which starts with a record or with something that is none; `visit` ends it by `false`.
pub(crate) fn records(
    source: &mut dyn Source,
    range: Range<u64>,
    log: Seal,
    visit: &mut dyn FnMut(&Visited<'_>) -> bool,
) -> Result<(), Halt> {
    let mut reader = Reader::new(source, range.end);
    let (mut at, mut goes_on) = (range.start, true);
    while let Some(next) = reader.next(at, log, |_, visited| goes_on = visit(&visited))? {
        if !goes_on {
            return Err(Halt::Told);
        }
        at = next;
    }
    Ok(())
}

impl Verified {
    pub(crate) fn report(self, about: IndexedSegment, damage: Vec<Damage>) -> SegmentReport {
        let Self { records, given_up_bytes, store_times_ms, index } = self;
        let IndexedSegment { base, length: length_bytes, .. } = about;
        SegmentReport { base, length_bytes, records, given_up_bytes, store_times_ms, index, damage }
    }

    fn see(&mut self, header: &Header) {
        match header.content {
            Content::Blank => {}
            Content::Lost => self.given_up_bytes += u64::from(header.length),
            Content::Record(_) => {
                self.records += 1;
                let first = self.store_times_ms.map_or(header.store_time_ms, |(first, _)| first);
                self.store_times_ms = Some((first, header.store_time_ms));
            }
        }
    }
}

fn index_file(source: &mut dyn Source, about: IndexedSegment) -> Result<IndexState, Halt> {
    let unreadable = |error: io::Error| IndexState::Damaged(format!("it cannot be read: {error}"));
    let file = match source.index_file() {
        Ok(Some(file)) => file,
        Ok(None) => return Ok(IndexState::None),
        Err(error) => return Ok(unreadable(error)),
    };
    let checked = check_file(&file, about, &mut |at, into: &mut [u8]| {
        source.pace(into.len() as u64)?;
        Ok(file.read_exact_at(into, at))
    })?;
    Ok(match checked {
        Ok(Ok(())) => IndexState::Sound,
        Ok(Err(reason)) => IndexState::Damaged(reason),
        Err(error) => unreadable(error),
    })
}

/// Holds a part of a segment.
struct Reader<'a> {
    source: &'a mut dyn Source,
    /// Nothing behind it is looked at.
    end: u64,
    buffer: Vec<u8>,
    /// Where the first byte of the buffer lies.
    start: u64,
    /// Pages that could not be read and are zeros in the buffer.
    bad: Vec<(Range<u64>, String)>,
}

impl<'a> Reader<'a> {
    fn new(source: &'a mut dyn Source, end: u64) -> Self {
        Self { source, end, buffer: Vec::new(), start: 0, bad: Vec::new() }
    }

    /// Visits what is at `at` and says where the next is.
    fn next(
        &mut self,
        at: u64,
        log: Seal,
        visit: impl FnOnce(&dyn Source, Visited<'_>),
    ) -> Result<Option<u64>, Halt> {
        if at + HEADER_BYTES as u64 > self.end {
            return Ok(None);
        }
        let (why, to) = match self.decode(at, log)? {
            Ok((header, covered)) => match self.bad_in(at..at + covered as u64) {
                None => {
                    let from = (at - self.start) as usize;
                    visit(&*self.source, Visited::Valid(&header, &self.buffer[from..from + covered]));
                    return Ok(Some(header.end()));
                }
                Some(_) => (Invalid::Checksum, header.end()),
            },
            Err((why, length)) if why.is_unsupported() => (why, at + u64::from(length)),
            Err((why, _)) => (why, self.next_valid(at + ALIGN as u64, log)?.unwrap_or(self.end)),
        };
        let unreadable = self.bad_in(at..to);
        self.bad.retain(|(range, _)| range.end > to);
        visit(&*self.source, Visited::Invalid(Stretch { from: at, to, why, unreadable }));
        Ok(Some(to))
    }

    fn bad_in(&self, range: Range<u64>) -> Option<String> {
        let overlaps = |bad: &&(Range<u64>, String)| bad.0.start < range.end && range.start < bad.0.end;
        self.bad.iter().find(overlaps).map(|(_, error)| error.clone())
    }

    /// The record or filler at `at` and how many bytes of it are checked; or what is wrong and which length it names.
    #[expect(clippy::type_complexity, reason = "used once, and said in words")]
    fn decode(&mut self, at: u64, log: Seal) -> Result<Result<(Header, usize), (Invalid, u32)>, Halt> {
        let room = self.end - at;
        let Some(&head) = self.fill(at, HEADER_BYTES)?.first_chunk::<HEADER_BYTES>() else {
            return Ok(Err((Invalid::Length(0), 0)));
        };
        let length = record::length_of(&head);
        let covered = match record::checked_bytes(&head, at, room) {
            Ok(covered) if covered <= MAX_RECORD_BYTES => covered,
            Ok(_) => return Ok(Err((Invalid::Length(length), length))),
            Err(why) => return Ok(Err((why, length))),
        };
        let decoded = record::decode_checked(&self.fill(at, covered)?[..covered], log);
        Ok(decoded.map(|header| (header, covered)).map_err(|why| (why, length)))
    }

    fn next_valid(&mut self, from: u64, log: Seal) -> Result<Option<u64>, Halt> {
        let mut at = from;
        while at + HEADER_BYTES as u64 <= self.end {
            if at >= self.start + self.buffer.len() as u64 {
                let data = self.source.data_from(at).next_multiple_of(ALIGN as u64);
                if data > at {
                    at = data;
                    continue;
                }
            }
            let piece = self.fill(at, HEADER_BYTES)?;
            let places = (piece.len() - HEADER_BYTES) / ALIGN + 1;
            let claims = |place: &usize| {
                let (own, here) = (place * ALIGN + record::OWN_OFFSET_AT, at + (place * ALIGN) as u64);
                piece[own..own + 8] == here.to_le_bytes()
            };
            match (0..places).find(claims) {
                Some(place) => {
                    let here = at + (place * ALIGN) as u64;
                    // What a newer version wrote ends the stretch as well.
                    match self.decode(here, log)? {
                        Ok(_) => return Ok(Some(here)),
                        Err((why, _)) if why.is_unsupported() => return Ok(Some(here)),
                        Err(_) => at = here + ALIGN as u64,
                    }
                }
                None => at += (places * ALIGN) as u64,
            }
        }
        Ok(None)
    }

    /// The bytes from `at` on, at least `bytes` of them, which lie in front of the end.
    fn fill(&mut self, at: u64, bytes: usize) -> Result<&[u8], Halt> {
        let need_to = at + bytes as u64;
        let held_to = self.start + self.buffer.len() as u64;
        if at < self.start || at > held_to {
            self.buffer.clear();
            self.start = at - at % PAGE_BYTES;
        } else if need_to > held_to {
            // Whole pages are read, so that a bad one is known by where it lies.
            let keep_from = at - at % PAGE_BYTES;
            self.buffer.drain(..(keep_from.max(self.start) - self.start) as usize);
            self.start = keep_from.max(self.start);
            self.buffer.shrink_to(2 * PIECE_BYTES as usize);
        }
        while self.start + (self.buffer.len() as u64) < need_to {
            let from = self.start + self.buffer.len() as u64;
            let to = (from + PIECE_BYTES).min(self.end);
            self.read_piece(from..to)?;
        }
        Ok(&self.buffer[(at - self.start) as usize..])
    }

    fn read_piece(&mut self, range: Range<u64>) -> Result<(), Halt> {
        let held = self.buffer.len();
        self.source.pace(range.end - range.start)?;
        self.buffer.resize(held + (range.end - range.start) as usize, 0);
        if self.source.read(range.start, &mut self.buffer[held..])?.is_ok() {
            return Ok(());
        }
        for from in range.clone().step_by(PAGE_BYTES as usize) {
            // Each may take seconds: whoever waits for the end does not wait for all.
            self.source.pace(0)?;
            let to = (from + PAGE_BYTES).min(range.end);
            let page = held + (from - range.start) as usize..held + (to - range.start) as usize;
            if let Err(error) = self.source.read(from, &mut self.buffer[page.clone()])? {
                self.buffer[page].fill(0);
                self.bad.push((from..to, error.to_string()));
            }
        }
        Ok(())
    }
}
