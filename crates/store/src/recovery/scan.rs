//! Reading a segment from front to back, and what becomes of a place where that fails: a torn tail, which is cut, or
//! damage, behind which it goes on. Pure but for the reading, through the map; on the opening thread. (`verify.rs` reads a
//! store that is open.)
//!
//! How the two are told apart: a flush makes everything in front of it durable, so a crash can tear only what was
//! written after the last one. Hence an invalid record is damage if the cursor or a snapshot says that its place was
//! flushed, if a record behind it was written after a flush (its header says so), or if a later segment holds records.
//! Otherwise all behind it is of the same unflushed stretch, of which a power cut may keep any page and lose any other;
//! nobody was promised it. On a replica headers do not count: what they say was true on the machine that wrote them. What is
//! cut there too much is sent once more.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::record::{self, ALIGN, HEADER_BYTES, Header, Invalid, Seal};
use crate::segment::Segment;

/// Where reading ended and why.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stopped {
    pub(crate) at: u64,
    pub(crate) why: Invalid,
}

/// Visits records and fillers from `from` to the end of the segment or to the first that is not valid.
pub(crate) fn walk(
    segment: &Segment,
    from: u64,
    log: Seal,
    mut visit: impl FnMut(&Header, &Bytes),
) -> Result<(), Stopped> {
    let rest = segment.slice(from..segment.end());
    let mut at = from;
    while at + HEADER_BYTES as u64 <= segment.end() {
        let bytes = rest.slice((at - from) as usize..);
        let header = record::decode(&bytes, at, log).map_err(|why| Stopped { at, why })?;
        visit(&header, &bytes);
        at = header.end();
    }
    Ok(())
}

/// What is known of a log that may have ended anyhow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Everything in front of it had been flushed.
    pub(crate) durable_below: u64,
    /// Nothing was ever written at or behind it.
    pub(crate) limit: u64,
    /// What headers say was flushed was so on another machine: the records were received.
    pub(crate) follows: bool,
}

/// What an invalid place is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Here the log ends. Behind it, up to `used`, lie valid records that must not be taken for its continuation.
    Torn { used: u64 },
    /// Lost; the log goes on at `to`.
    Damaged { to: u64 },
    /// A newer version has written it.
    Unsupported,
}

/// Judges the place where reading `segment` has stopped; `later` are the segments behind it.
pub(crate) fn judge(
    segment: &Segment,
    stopped: Stopped,
    later: &VecDeque<Arc<Segment>>,
    log: Seal,
    bounds: Bounds,
) -> io::Result<Verdict> {
    if stopped.why.is_unsupported() {
        return Ok(Verdict::Unsupported);
    }
    let Stopped { at, .. } = stopped;
    let durable_to = bounds.durable_below.min(segment.end());
    let (mut first, mut used) = (None, at);
    let mut search = Search::new(segment, at, bounds.limit, log)?;
    while let Some(found) = search.next() {
        let first = *first.get_or_insert(found.at);
        if first < durable_to || (found.flushed_before && !bounds.follows) {
            return Ok(Verdict::Damaged { to: first });
        }
        used = found.end;
    }
    if at < durable_to {
        return Ok(Verdict::Damaged { to: durable_to });
    }
    for other in later {
        if Search::new(other, other.base(), bounds.limit, log)?.next().is_some() {
            return Ok(Verdict::Damaged { to: first.unwrap_or(segment.end()) });
        }
    }
    Ok(Verdict::Torn { used })
}

/// A valid record in a stretch that may hold anything.
#[derive(Debug, Clone, Copy)]
struct Found {
    at: u64,
    end: u64,
    flushed_before: bool,
}

static ZEROS: [u8; 4096] = [0; 4096];

/// Looks at every place where a record may start.
struct Search {
    /// From `from` to the end of the segment.
    bytes: Bytes,
    from: u64,
    log: Seal,
    at: u64,
    end: u64,
    data: std::vec::IntoIter<Range<u64>>,
    here: Range<u64>,
}

impl Search {
    fn new(segment: &Segment, from: u64, limit: u64, log: Seal) -> io::Result<Self> {
        let end = limit.min(segment.end());
        let data = if from < end { segment.data_in(from..end)? } else { Vec::new() };
        let bytes = segment.slice(from..segment.end());
        Ok(Self { bytes, from, log, at: from, end, data: data.into_iter(), here: from..from })
    }

    fn next(&mut self) -> Option<Found> {
        loop {
            if self.at >= self.here.end || self.at + HEADER_BYTES as u64 > self.end {
                self.here = self.data.next()?;
                self.at = self.at.max(self.here.start).next_multiple_of(ALIGN as u64);
                continue;
            }
            let (at, bytes) = (self.at, &self.bytes[(self.at - self.from) as usize..]);
            if bytes.starts_with(&ZEROS) {
                // Most of what follows a log was written ahead with zeros; no record starts with one.
                self.at += ZEROS.len() as u64;
                continue;
            }
            self.at += ALIGN as u64;
            match record::decode(bytes, at, self.log) {
                Ok(header) => {
                    self.at = header.end();
                    return Some(Found { at, end: header.end(), flushed_before: header.flushed_before });
                }
                Err(why) if why.is_unsupported() => {
                    return Some(Found { at, end: self.at, flushed_before: false });
                }
                Err(_) => {}
            }
        }
    }
}
