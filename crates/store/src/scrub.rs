//! The scrub: reads what is stored, at a bounded rate, so that damage is known before somebody needs what it hit. One pass
//! after the other on the thread `store-scrub`, which owns nothing; the same with progress for whoever asks by
//! [`Store::verify`], on the caller's thread.
//!
//! It never poisons the store: what cannot be read is damage, and reading went on without it so far. It holds a segment
//! for one read at a time, so that one that is deleted meanwhile is not kept.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::{Condvar, Mutex};

use crate::Store;
use crate::commit_log::CommitLog;
use crate::error::OpenError;
use crate::index::sealed::{IndexedSegment, SealedIndex};
use crate::report::{IndexState, Progress, Report, SegmentReport};
use crate::verify::{self, Halt, Source, Visited};

/// What the scrub has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ScrubStatus {
    /// Passes over the whole log that were completed since the store was opened.
    pub passes: u64,
    /// The segment that is being verified, by where it starts; `None` between two passes.
    pub position: Option<u64>,
    /// Bytes read since the store was opened.
    pub verified_bytes: u64,
    /// When the last pass was completed, in milliseconds since 1970.
    pub last_completed_ms: Option<u64>,
}

/// What the scrub's thread and those who ask share.
#[derive(Debug, Default)]
pub(crate) struct Scrub {
    state: Mutex<State>,
    stopped: Condvar,
}

#[derive(Debug, Default)]
struct State {
    stop: bool,
    status: ScrubStatus,
}

impl Scrub {
    /// Ends the thread, and what callers are doing, at once.
    pub(crate) fn stop(&self) {
        self.state.lock().stop = true;
        self.stopped.notify_all();
    }

    /// `Err`: the store is being closed.
    fn wait_until(&self, deadline: Instant) -> Result<(), Halt> {
        let mut state = self.state.lock();
        while !state.stop {
            if self.stopped.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        if state.stop { Err(Halt::Told) } else { Ok(()) }
    }

    fn note(&self, what: impl FnOnce(&mut ScrubStatus)) {
        what(&mut self.state.lock().status);
    }
}

/// Verifies pass after pass until the store is closed.
fn run(log: &CommitLog) {
    loop {
        let began = Instant::now();
        if pass(log).and_then(|()| log.scrub.wait_until(began + log.config.scrub_interval)).is_err() {
            return;
        }
    }
}

fn pass(log: &CommitLog) -> Result<(), Halt> {
    let bases: Vec<u64> = log.segments.load().iter().map(|segment| segment.base()).collect();
    // The last one is still being written.
    let sealed = bases.split_last().map_or(&[][..], |(_, sealed)| sealed);
    for &base in sealed {
        log.scrub.note(|status| status.position = Some(base));
        let mut read = |bytes| {
            log.scrub.note(|status| status.verified_bytes += bytes);
            true
        };
        verify_segment(log, base, log.config.scrub_bytes_per_second, &mut read)?;
    }
    log.scrub.note(|status| {
        (status.passes, status.position) = (status.passes + 1, None);
        status.last_completed_ms = Some(now_ms());
    });
    Ok(())
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

/// `None`: it is no part of the log any more. Reports what is damaged, and has a damaged index file built anew.
fn verify_segment(
    log: &CommitLog,
    base: u64,
    bytes_per_second: u64,
    read: &mut dyn FnMut(u64) -> bool,
) -> Result<Option<SegmentReport>, Halt> {
    let Some(segment) = log.segment_of(base).filter(|segment| segment.base() == base) else {
        return Ok(None);
    };
    let (length_bytes, upto) = (segment.length(), segment.end().min(log.progress.confirmed()));
    drop(segment);
    let about = IndexedSegment { log: log.directory.log, base, length: length_bytes };
    let mut live = Live::new(log, base, bytes_per_second, read);
    let (mut damage, since_ms) = (Vec::new(), now_ms());
    let verified = verify::segment(&mut live, about, upto, &mut |visited| {
        if let Visited::Invalid(stretch) = visited {
            log.damages.add_read(stretch.damage(), since_ms);
            damage.push(stretch.damage());
        }
    });
    let verified = match verified {
        Ok(verified) => verified,
        Err(Halt::Gone) => return Ok(None),
        Err(Halt::Told) => return Err(Halt::Told),
    };
    if let IndexState::Damaged(reason) = &verified.index {
        tracing::error!(segment = base, reason, "an index file is damaged and built anew");
        log.wishes.rebuild_index(base);
    }
    Ok(Some(verified.report(about, damage)))
}

/// The files of a segment of an open store. Reading them ends when the store is closed, or the segment deleted.
pub(crate) struct Live<'a> {
    log: &'a CommitLog,
    base: u64,
    /// 0: as fast as the device is.
    bytes_per_second: u64,
    /// When the next read may begin.
    next: Instant,
    /// Hears of what is going to be read; `false` ends it.
    read: &'a mut dyn FnMut(u64) -> bool,
}

impl<'a> Live<'a> {
    pub(crate) fn new(
        log: &'a CommitLog,
        base: u64,
        bytes_per_second: u64,
        read: &'a mut dyn FnMut(u64) -> bool,
    ) -> Self {
        Self { log, base, bytes_per_second, next: Instant::now(), read }
    }
}

impl Source for Live<'_> {
    fn pace(&mut self, bytes: u64) -> Result<(), Halt> {
        self.log.scrub.wait_until(self.next)?;
        if let Some(nanos) = (bytes * 1_000_000_000).checked_div(self.bytes_per_second) {
            self.next = self.next.max(Instant::now()) + Duration::from_nanos(nanos);
        }
        if (self.read)(bytes) { Ok(()) } else { Err(Halt::Told) }
    }

    fn read(&mut self, at: u64, into: &mut [u8]) -> Result<io::Result<()>, Halt> {
        let segment = self.log.segment_of(at).filter(|segment| segment.base() == self.base);
        segment.map(|segment| segment.read_at(at, into)).ok_or(Halt::Gone)
    }

    /// A segment that is full has no holes.
    fn data_from(&self, at: u64) -> u64 {
        at
    }

    fn index_file(&self) -> io::Result<Option<File>> {
        let Some(index) = self.log.index.file_of(self.base) else { return Ok(None) };
        match File::open(index.path()) {
            // Deleted just now, with its segment.
            Err(_) if self.log.index.file_of(self.base).is_none() => Ok(None),
            opened => opened.map(Some),
        }
    }

    fn index(&self) -> Option<Arc<SealedIndex>> {
        self.log.index.file_of(self.base)
    }
}

impl Store {
    pub(crate) fn start_scrub(&self) -> Result<(), OpenError> {
        if self.log.config.scrub_bytes_per_second > 0 {
            let log = self.log.clone();
            let scrub = thread::Builder::new().name("store-scrub".into()).spawn(move || run(&log));
            let scrub = scrub.map_err(OpenError::io("start a thread for", &self.log.config.directory))?;
            self.threads.lock().as_mut().expect("the store is being opened").scrub = Some(scrub);
        }
        Ok(())
    }

    /// What the scrub has done so far.
    pub fn scrub_status(&self) -> ScrubStatus {
        self.log.scrub.state.lock().status
    }

    /// Verifies the confirmed part of the log and its index files at once, at no more than `bytes_per_second` (0: as fast
    /// as the device is). Blocks; `progress` is told how far it has come, and its `false` ends it. What is damaged is known
    /// to [`Store::damage`] from then on. `None`: it was ended early, by `progress` or because the store was closed.
    pub fn verify(
        &self,
        bytes_per_second: u64,
        progress: &mut dyn FnMut(Progress) -> bool,
    ) -> Option<Report> {
        let log = &*self.log;
        let bases: Vec<(u64, u64)> =
            log.segments.load().iter().map(|segment| (segment.base(), segment.end())).collect();
        let end = log.progress.confirmed();
        let index_bytes = |base| log.index.file_of(base).map_or(0, |index| index.length_bytes());
        let bytes = |&(base, to): &(u64, u64)| to.min(end).saturating_sub(base) + index_bytes(base);
        let total_bytes = bases.iter().map(bytes).sum();
        let (mut verified_bytes, mut segments) = (0_u64, Vec::with_capacity(bases.len()));
        for (base, _) in bases {
            let mut read = |bytes: u64| {
                verified_bytes = (verified_bytes + bytes).min(total_bytes);
                progress(Progress { verified_bytes, total_bytes })
            };
            segments.extend(verify_segment(log, base, bytes_per_second, &mut read).ok()?);
        }
        Some(Report { segments, findings: Vec::new() })
    }
}
