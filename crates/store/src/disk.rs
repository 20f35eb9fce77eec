//! Every operation of the store that changes files, behind one trait so that tests can watch them, make them fail and
//! lose what was not flushed; and the reads of segments that must survive a failing device. Called by the log writer, the
//! maintenance thread, the scrub and the opening thread.
//!
//! Files are opened, mapped and read whole without it: what a read finds is checked by whoever reads.

use std::fmt::Debug;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileExt};
use std::path::Path;

use rustix::fs::FallocateFlags;

use crate::retention::Space;

/// The mode of new directories: what is stored is nobody else's to read.
pub(crate) const PRIVATE: u32 = 0o700;

/// What the store does to its files. Implemented by [`SystemDisk`] and by the tests' failing disk.
pub(crate) trait Disk: Debug + Send + Sync {
    /// Makes an empty file, or empties the one that is there, to read and write. Its name is durable after
    /// `sync_directory`.
    fn create_file(&self, path: &Path) -> io::Result<File>;
    /// Reserves the blocks of `file` up to `length`, which becomes its size.
    fn allocate(&self, file: &File, length: u64) -> io::Result<()>;
    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Fills `into` with what lies at `offset`. Where the device fails this is an error; a map would end the process.
    fn read_at(&self, file: &File, into: &mut [u8], offset: u64) -> io::Result<()>;
    /// Makes what was written to `file` durable. Not to be tried again when it fails: the kernel forgets the pages.
    fn sync_data(&self, file: &File) -> io::Result<()>;
    /// Replaces `to` by `from`; durable after `sync_directory`.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Durable after `sync_directory`.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Makes one directory; its parent exists. Durable after `sync_directory` of the parent.
    fn create_directory(&self, path: &Path) -> io::Result<()>;
    /// Makes names in `directory` durable.
    fn sync_directory(&self, directory: &Path) -> io::Result<()>;
    /// How much of the file system that `directory` is on is used.
    fn space(&self, directory: &Path) -> io::Result<Space>;
}

/// The operating system's files.
#[derive(Debug)]
pub(crate) struct SystemDisk;

impl Disk for SystemDisk {
    fn create_file(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)
    }

    fn allocate(&self, file: &File, length: u64) -> io::Result<()> {
        Ok(rustix::fs::fallocate(file, FallocateFlags::empty(), 0, length)?)
    }

    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }

    fn read_at(&self, file: &File, into: &mut [u8], offset: u64) -> io::Result<()> {
        file.read_exact_at(into, offset)
    }

    fn sync_data(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().mode(PRIVATE).create(path)
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        File::open(directory)?.sync_all()
    }

    fn space(&self, directory: &Path) -> io::Result<Space> {
        let statistics = rustix::fs::statvfs(directory)?;
        let bytes = |blocks: u64| blocks.saturating_mul(statistics.f_frsize);
        Ok(Space {
            used_bytes: bytes(statistics.f_blocks.saturating_sub(statistics.f_bfree)),
            available_bytes: bytes(statistics.f_bavail),
        })
    }
}

/// Extension of files that are not in place yet.
pub(crate) const ASIDE: &str = "tmp";

/// Puts `bytes` at `path` so that after a crash either the former file is there or this one, whole.
pub(crate) fn replace_file(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let aside = path.with_added_extension(ASIDE);
    let written = write_aside(disk, &aside, path, bytes);
    if written.is_err() {
        // Leaves no half file that takes space of a full disk; the next start would remove it as well.
        let _ = disk.remove_file(&aside);
    }
    written
}

fn write_aside(disk: &dyn Disk, aside: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let file = disk.create_file(aside)?;
    disk.write_at(&file, bytes, 0)?;
    disk.sync_data(&file)?;
    put_in_place(disk, aside, path)
}

/// Gives a file that was written aside its name, durably.
pub(crate) fn put_in_place(disk: &dyn Disk, aside: &Path, path: &Path) -> io::Result<()> {
    disk.rename(aside, path)?;
    let directory = path.parent().expect("files of a store lie in its directory");
    // The file is in place by now and may be gone after a crash: not even for want of room can that be tried again.
    disk.sync_directory(directory).map_err(io::Error::other)
}

/// The file system is full: for files nobody waits for, a reason to try later rather than to stop.
pub(crate) fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
