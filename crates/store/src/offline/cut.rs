//! Taking back the end of a log: what a replica has and its master has not. A copy of it stays in the quarantine.

use std::io;
use std::ops::Range;

use super::Offline;
use super::repair::files;
use crate::cursor::{Cursor, Promise};
use crate::directory::{IDENTITY, Identity, LogId};
use crate::error::OpenError;
use crate::recovery::segment_files;
use crate::segment::{Segment, file_name};
use crate::snapshot;

impl Offline {
    /// Takes the part of the log from `range.start` on out of the store; `range.end` is where the log ends. A snapshot that
    /// may know of it goes too. Interrupted, it leaves a store whose log ends somewhere in between.
    pub fn cut(&self, range: Range<u64>) -> Result<(), OpenError> {
        let failed = || OpenError::io("cut the log in", &self.root);
        let identity = std::fs::read(self.root.join(IDENTITY)).map_err(failed())?;
        let identity = Identity::read(&identity)
            .map_err(|reason| OpenError::NotAStore { directory: self.root.clone(), reason })?;
        self.take_out(identity.log, range).map_err(failed())
    }

    fn take_out(&self, log: LogId, range: Range<u64>) -> io::Result<()> {
        let mut segments = Vec::new();
        for (base, path) in segment_files(&self.commit_log())? {
            segments.push(Segment::open(self.disk.clone(), path, base)?);
        }
        for segment in segments.iter().filter(|segment| segment.end() > range.start) {
            let part = range.start.max(segment.base())..range.end.min(segment.end());
            if part.start < part.end {
                files::keep_copy(self, segment.path(), segment.base(), part)?;
            }
        }
        for (offset, path) in snapshot::list(&self.root.join("snapshot"))? {
            let snapshot = snapshot::parse(&path, &std::fs::read(&path)?, log, offset);
            if snapshot.is_none_or(|snapshot| snapshot.reaches_to() > range.start) {
                self.disk.remove_file(&path)?;
            }
        }
        self.disk.sync_directory(&self.root.join("snapshot"))?;
        self.lower_cursor(log, range.start)?;
        // From the last to the first: the files that are left are always those of one log.
        for segment in segments.iter().rev().filter(|segment| segment.end() > range.start) {
            let index = self.commit_log().join(file_name(segment.base(), "idx"));
            if index.try_exists()? {
                self.disk.remove_file(&index)?;
            }
            if segment.base() >= range.start && segment.base() > segments[0].base() {
                self.disk.remove_file(segment.path())?;
            } else {
                segment.erase(range.start..range.end.min(segment.end()))?;
            }
            self.disk.sync_directory(&self.commit_log())?;
        }
        Ok(())
    }

    /// What is not flushed any more is no damage.
    fn lower_cursor(&self, log: LogId, to: u64) -> io::Result<()> {
        let (mut cursor, known) = Cursor::open(&self.disk, &self.root, log)?;
        // If that is not known it stays so: no promise is better than a wrong one.
        let Some(log_start) = known.log_start else { return Ok(()) };
        let promise = Promise { log_start, flushed: known.flushed.min(to), limit: known.limit };
        // Twice: the former says more than is true.
        cursor.write(promise)?;
        cursor.write(promise)
    }
}
