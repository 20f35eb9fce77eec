//! Index files of a stopped store: built anew from the log, or from a sound one when some of its records are given up.

use std::ops::Range;

use super::Offline;
use super::examine::ended_early;
use super::survey::{Files, SegmentFile, Survey, stretch_of};
use crate::directory::LogId;
use crate::error::OpenError;
use crate::index::Entry;
use crate::index::contents::{Contents, Marks, Run};
use crate::index::sealed::{self, SealedIndex};
use crate::record::{Content, HEADER_BYTES, PhysicalOffset};
use crate::report::Progress;
use crate::verify::{self, Visited};

/// Builds the index files of full segments: of those that have one, and of those in front of them.
pub(super) fn rebuild(
    offline: &Offline,
    only: Option<u64>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<u64>, OpenError> {
    let survey = Survey::of(offline)?;
    let not_a_store = |reason: String| OpenError::NotAStore { directory: offline.root.clone(), reason };
    let Some(log) = survey.log else { return Err(not_a_store("no file says which log this is".into())) };
    let files: Vec<&SegmentFile> = survey.log_files().filter(|file| file.length > 0).collect();
    if let Some(base) = only
        && files.iter().all(|file| file.base != base)
    {
        let directory = offline.commit_log();
        let found = format!("there are {} segments", files.len());
        return Err(OpenError::MissingSegment { directory, offset: base, found });
    }
    let wanted: Vec<_> = files.into_iter().filter(|file| only.is_none_or(|base| file.base == base)).collect();
    let total_bytes = wanted.iter().map(|file| file.padded()).sum();
    let (mut verified_bytes, mut built) = (0_u64, Vec::new());
    for file in wanted {
        let mut read = |bytes: u64| {
            verified_bytes = (verified_bytes + bytes).min(total_bytes);
            progress(Progress { verified_bytes, total_bytes });
            true
        };
        let (mut contents, is_full) = from_log(file, log, &mut read)?;
        // What is still being written has its index in memory.
        let has_one = file.index_path().exists();
        if is_full || has_one {
            write(offline, file, log, &mut contents)?;
            built.push(file.base);
        } else if only.is_some() {
            let what =
                format!("segment {} is not full: its index is made in memory by the next start", file.base);
            return Err(OpenError::io("build an index file for", &file.path)(std::io::Error::other(what)));
        }
    }
    Ok(built)
}

pub(super) fn write(
    offline: &Offline,
    file: &SegmentFile,
    log: LogId,
    contents: &mut Contents,
) -> Result<(), OpenError> {
    let path = file.index_path();
    sealed::write(&*offline.disk, &path, file.about(log), contents).map_err(OpenError::io("write", &path))
}

/// What a segment holds, stepping over damage as a running store would, and whether it is written to its end.
pub(super) fn from_log(
    file: &SegmentFile,
    log: LogId,
    read: &mut dyn FnMut(u64) -> bool,
) -> Result<(Contents, bool), OpenError> {
    let mut source = Files::open(file, log, read)?;
    let (mut contents, mut lost_bytes, mut is_full) = (Contents::default(), 0, true);
    let walked = verify::records(&mut source, file.base..file.end(), log.seal(), &mut |visited| {
        match visited {
            Visited::Valid(header, bytes) => match header.content {
                Content::Blank => {}
                Content::Lost => lost_bytes += u64::from(header.length),
                // A record that contradicts another is reported by whoever opens the store.
                Content::Record(_) => {
                    let _ = contents.add(file.base, header, bytes, lost_bytes / HEADER_BYTES as u64);
                }
            },
            Visited::Invalid(stretch) => {
                lost_bytes += stretch.to - stretch.from;
                is_full = stretch.to < file.end();
            }
        }
        true
    });
    walked.map_err(ended_early(&file.path))?;
    Ok((contents, is_full))
}

/// What a sound index file says, without what it says of records in `lost`: their places in queues stay taken.
pub(super) fn without(index: &SealedIndex, lost: &[Range<u64>]) -> Contents {
    let mut contents = Contents {
        marks: Marks::of(index.marks().collect(), index.store_times_ms().1),
        ..Contents::default()
    };
    contents.keys =
        index.keys().filter(|(at, _)| stretch_of(*at, lost).is_none()).map(|(_, key)| key).collect();
    for run in index.runs() {
        let mut entries = Vec::new();
        // Its entries were checked.
        let _ = index.entries(run.position, run.count, &mut entries);
        for entry in &mut entries {
            if let Some(stretch) = stretch_of(entry.physical_offset.0, lost) {
                *entry = Entry::lost(PhysicalOffset(stretch.end));
            }
        }
        contents.runs.insert(run.queue, Run { first_queue_offset: run.first_queue_offset, entries });
    }
    contents
}
