//! Taking back the end of a log: what a replica has and its master has not. Or all of it, when it cannot be used any more. It stays in
//! the quarantine.

use std::io;
use std::ops::Range;

use super::Offline;
use super::repair::files;
use crate::cursor::{self, Cursor, Promise};
use crate::directory::{IDENTITY, Identity, LogId};
use crate::error::OpenError;
use crate::recovery::segment_files;
use crate::segment::{Segment, file_name};
use crate::snapshot;

impl Offline {
    /// Takes the part of the log from `range.start` on out of the store; `range.end` is where the log ends. A snapshot that
    /// may know of it goes too. Interrupted, it leaves a store whose log ends somewhere in between.
    pub fn cut(&self, range: Range<u64>) -> Result<(), OpenError> {
        self.take_out(self.log_id()?, range).map_err(OpenError::io("cut the log in", &self.root))
    }

    /// Which log it is.
    pub fn log_id(&self) -> Result<LogId, OpenError> {
        let path = self.root.join(IDENTITY);
        let identity = std::fs::read(&path).map_err(OpenError::io("read", &path))?;
        let identity = Identity::read(&identity)
            .map_err(|reason| OpenError::NotAStore { directory: self.root.clone(), reason })?;
        Ok(identity.log)
    }

    /// Takes the whole log out of the store, with what follows from it, for a copy of another one that comes in its place. Which log it
    /// is the directory still says. Interrupted, it leaves a store that cannot be opened, as it was, or an empty one.
    pub fn set_aside(&self) -> Result<(), OpenError> {
        self.take_all_out().map_err(OpenError::io("set the log aside in", &self.root))
    }

    fn take_all_out(&self) -> io::Result<()> {
        // The cursor first: it would say that segments are missing. From the last segment to the first, as above.
        let cursor = self.root.join(cursor::FILE_NAME);
        if cursor.try_exists()? {
            files::set_aside(self, &cursor)?;
        }
        for (_, path) in snapshot::list(&self.root.join("snapshot"))? {
            files::set_aside(self, &path)?;
        }
        for (_, path) in segment_files(&self.commit_log())?.into_iter().rev() {
            let index = path.with_extension("idx");
            if index.try_exists()? {
                files::set_aside(self, &index)?;
            }
            files::set_aside(self, &path)?;
        }
        Ok(())
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
