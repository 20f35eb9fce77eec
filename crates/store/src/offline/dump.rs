//! Showing what lies in the log of a stopped store, record by record.

use std::ops::Range;

use super::survey::{Files, Survey};
use super::{Offline, examine};
use crate::damage::Damage;
use crate::error::OpenError;
use crate::record::{Content, HEADER_BYTES, QueueNumber, RecordKind};
use crate::verify::{self, Visited};

/// Which part of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct What {
    /// Records that start in here; what lies at its start may be the middle of one, which is passed over.
    pub range: Range<u64>,
    /// Only those of a queue.
    pub queue: Option<QueueNumber>,
    /// With payloads.
    pub payload: bool,
}

/// What lies at a place of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dumped {
    /// A record.
    Record {
        /// Where it lies.
        physical_offset: u64,
        /// Of the whole record.
        length_bytes: u32,
        /// What it is.
        kind: RecordKind,
        /// When it was written, in milliseconds since 1970.
        store_time_ms: u64,
        /// The queue it lies in, and where.
        queue: Option<(QueueNumber, u64)>,
        /// As appended.
        tag_hash: u64,
        /// The hashes it is found by.
        keys: Vec<u64>,
        /// Size of the payload.
        payload_bytes: u32,
        /// The payload, if it was asked for.
        payload: Option<Vec<u8>>,
    },
    /// Fills the end of a segment, or what a repair has given up.
    Filler {
        /// Where it lies.
        physical_offset: u64,
        /// What it stands for.
        length_bytes: u32,
        /// Something was lost here.
        lost: bool,
    },
    /// No record: damage, or the end of what was written.
    None(Damage),
}

pub(super) fn dump(
    offline: &Offline,
    what: &What,
    visit: &mut dyn FnMut(Dumped) -> bool,
) -> Result<(), OpenError> {
    let survey = Survey::of(offline)?;
    let Some(log) = survey.log else {
        let reason = "no file says which log this is".to_owned();
        return Err(OpenError::NotAStore { directory: offline.root.clone(), reason });
    };
    let mut goes_on = true;
    let in_range = |file: &&super::survey::SegmentFile| {
        file.length > 0 && file.base < what.range.end && file.end() > what.range.start
    };
    for file in survey.files.iter().filter(in_range) {
        if let (Some(queue), Some(index)) = (what.queue, file.index(log).1)
            && index.runs().all(|run| run.queue != queue.0)
        {
            continue;
        }
        let mut read = |_| true;
        let mut source = Files::open(file, log, &mut read)?;
        let range = file.base..file.end().min(survey.known.limit.max(file.base));
        // From the start of the segment: where records start is only known from there.
        let walked = verify::records(&mut source, range, log.seal(), &mut |visited| {
            if goes_on && let Some(dumped) = dumped(visited, what) {
                goes_on = visit(dumped);
            }
            goes_on
        });
        if goes_on {
            walked.map_err(examine::ended_early(&file.path))?;
        } else {
            return Ok(());
        }
    }
    Ok(())
}

fn dumped(visited: &Visited<'_>, what: &What) -> Option<Dumped> {
    let (header, bytes) = match visited {
        Visited::Valid(header, bytes) => (header, bytes),
        Visited::Invalid(stretch) => {
            let is_in = stretch.from < what.range.end && stretch.to > what.range.start;
            return is_in.then(|| Dumped::None(stretch.damage()));
        }
    };
    let (physical_offset, length_bytes) = (header.physical_offset, header.length);
    if !what.range.contains(&physical_offset) || what.queue.is_some_and(|queue| header.queue != Some(queue)) {
        return None;
    }
    let Content::Record(kind) = header.content else {
        return Some(Dumped::Filler { physical_offset, length_bytes, lost: header.content == Content::Lost });
    };
    let payload = HEADER_BYTES..HEADER_BYTES + header.payload_length as usize;
    Some(Dumped::Record {
        physical_offset,
        length_bytes,
        kind,
        store_time_ms: header.store_time_ms,
        queue: header.queue.map(|queue| (queue, header.queue_offset)),
        tag_hash: header.tag_hash,
        keys: header.keys(bytes).collect(),
        payload_bytes: header.payload_length,
        payload: what.payload.then(|| bytes[payload].to_vec()),
    })
}
