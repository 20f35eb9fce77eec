//! One file of the log. Written with page-aligned `pwrite` by the log writer alone, read by everyone through one shared
//! read-only map. The only module with `unsafe`: the map.
//!
//! Bytes below the published `written` watermark never change (the tail page is rewritten with the bytes it has), so a
//! reader that stays below it reads stable memory. The page cache is one: what `pwrite` put there, the map shows. A file is
//! given another place in the log only when the last reader of its map is gone.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use memmap2::Mmap;
use rustix::fs::{Advice, SeekFrom};

use crate::disk::{self, Disk};

/// Unit of writing: a partial page that is not cached would have to be read before it can be written.
pub(crate) const PAGE_BYTES: u64 = 4096;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// A segment file of fixed length.
#[derive(Debug)]
pub(crate) struct Segment {
    base: u64,
    length: u64,
    path: PathBuf,
    file: File,
    map: Bytes,
    /// Shared with the map: as long as anyone reads, there are two.
    mapped: Arc<()>,
    /// Physical offset up to which all blocks were written before, if only with zeros.
    initialised: AtomicU64,
    disk: Arc<dyn Disk>,
}

/// A segment that is no part of the log any more. Its space is given back when it is dropped and nobody reads it.
#[derive(Debug)]
pub(crate) struct Discarded {
    length: u64,
    path: PathBuf,
    file: File,
    mapped: Arc<()>,
    disk: Arc<dyn Disk>,
}

impl Discarded {
    /// Whether somebody still reads what it held.
    pub(crate) fn is_read(&self) -> bool {
        Arc::strong_count(&self.mapped) > 1
    }

    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Gives the file a new place in the log, durably: after a crash it has this one or the former. Only for one that is
    /// not read.
    pub(crate) fn recycle(self, base: u64) -> io::Result<Segment> {
        assert!(!self.is_read(), "bytes that somebody reads do not change");
        let Self { length, path: former, file, disk, .. } = self;
        let directory = former.parent().expect("segments lie in the commitlog directory");
        let path = directory.join(file_name(base, "log"));
        refuse_to_replace(&path)?;
        disk.rename(&former, &path)?;
        disk.sync_directory(directory)?;
        let initialised = base + written_front(&file)?;
        Segment::map(disk, path, file, base, length, initialised)
    }
}

impl Segment {
    /// Makes an empty segment durable under its name: after a crash it is there in full length or not at all.
    pub(crate) fn create(disk: Arc<dyn Disk>, directory: &Path, base: u64, length: u64) -> io::Result<Self> {
        let path = directory.join(file_name(base, "log"));
        let aside = path.with_added_extension(disk::ASIDE);
        refuse_to_replace(&path)?;
        let created = Self::create_aside(&*disk, &aside, &path, length);
        match created {
            Ok(file) => Self::map(disk, path, file, base, length, base),
            Err(error) => {
                // Gives the space back; a leftover is removed by the next start.
                let _ = disk.remove_file(&aside);
                Err(error)
            }
        }
    }

    fn create_aside(disk: &dyn Disk, aside: &Path, path: &Path, length: u64) -> io::Result<File> {
        let file = disk.create_file(aside)?;
        disk.allocate(&file, length)?;
        disk.sync_data(&file)?;
        disk::put_in_place(disk, aside, path)?;
        Ok(file)
    }

    /// Opens the segment file that starts at `base`.
    pub(crate) fn open(disk: Arc<dyn Disk>, path: PathBuf, base: u64) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        let length = file.metadata()?.len();
        if length == 0 || !length.is_multiple_of(PAGE_BYTES) || length > crate::config::MAX_SEGMENT_BYTES {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{length} bytes is no segment length"),
            ));
        }
        let initialised = base + written_front(&file)?;
        Self::map(disk, path, file, base, length, initialised)
    }

    fn map(
        disk: Arc<dyn Disk>,
        path: PathBuf,
        file: File,
        base: u64,
        length: u64,
        initialised: u64,
    ) -> io::Result<Self> {
        let mapped = Arc::new(());
        let map = map_shared(&file, mapped.clone())?;
        Ok(Self { base, length, path, file, map, mapped, initialised: initialised.into(), disk })
    }

    /// The end of its life in the log; those who read it go on.
    pub(crate) fn discard(self) -> Discarded {
        let Self { length, path, file, mapped, disk, .. } = self;
        Discarded { length, path, file, mapped, disk }
    }

    /// Physical offset of its first byte.
    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    /// Physical offset behind its last byte.
    pub(crate) fn end(&self) -> u64 {
        self.base + self.length
    }

    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the first block lies that was never written.
    pub(crate) fn initialised(&self) -> u64 {
        self.initialised.load(Ordering::Acquire)
    }

    /// Writes zeros to the next `bytes` of blocks that were never written, durably. Not once records are written to it.
    pub(crate) fn initialise(&self, bytes: u64) -> io::Result<()> {
        let (mut at, end) = (self.initialised(), (self.initialised() + bytes).min(self.end()));
        while at < end {
            let step = (end - at).min(ZEROS.len() as u64);
            self.disk.write_at(&self.file, &ZEROS[..step as usize], at - self.base)?;
            at += step;
        }
        self.flush()?;
        self.initialised.store(end, Ordering::Release);
        Ok(())
    }

    /// The bytes of a range of the log inside this segment, shared. While the log is being written the range must
    /// lie below `written`.
    pub(crate) fn slice(&self, range: Range<u64>) -> Bytes {
        assert!(
            range.start >= self.base && range.end <= self.end(),
            "{range:?} lies in segment {}",
            self.base
        );
        self.map.slice((range.start - self.base) as usize..(range.end - self.base) as usize)
    }

    /// Reads a range of the log inside this segment from the file: where the device fails, that is an error. While the
    /// log is being written the range must lie below `written`.
    pub(crate) fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.disk.read_at(&self.file, into, at - self.base)
    }

    /// Writes whole pages at a page boundary.
    pub(crate) fn write_pages(&self, at: u64, pages: &[u8]) -> io::Result<()> {
        debug_assert!(at.is_multiple_of(PAGE_BYTES) && (pages.len() as u64).is_multiple_of(PAGE_BYTES));
        assert!(at >= self.base && at + pages.len() as u64 <= self.end(), "a write stays inside its segment");
        self.disk.write_at(&self.file, pages, at - self.base)
    }

    /// Makes what was written durable.
    pub(crate) fn flush(&self) -> io::Result<()> {
        self.disk.sync_data(&self.file)
    }

    /// Lets the pages from `from` on be read from the device again. What a failed flush left behind in the page cache
    /// looks written but is not; recovery must not see it.
    pub(crate) fn forget_cache(&self, from: u64) -> io::Result<()> {
        self.flush()?;
        Ok(rustix::fs::fadvise(&self.file, from - self.base, None, Advice::DontNeed)?)
    }

    /// The parts of `range` that may hold something else than zeros. Blocks that were reserved but never written are
    /// skipped without being read. All are asked for before any is read: pages that are in the cache count as data, and
    /// reading one part brings in the beginning of what lies behind it.
    pub(crate) fn data_in(&self, range: Range<u64>) -> io::Result<Vec<Range<u64>>> {
        let (mut parts, mut next) = (Vec::new(), range.start);
        while next < range.end {
            let start = match rustix::fs::seek(&self.file, SeekFrom::Data(next - self.base)) {
                Err(rustix::io::Errno::NXIO) => break,
                start => start?,
            };
            let end = rustix::fs::seek(&self.file, SeekFrom::Hole(start))?;
            next = (self.base + end).min(range.end);
            if self.base + start < next {
                parts.push(self.base + start..next);
            }
        }
        Ok(parts)
    }

    /// Overwrites `range` with zeros, durably. Only while nobody reads there: in recovery.
    pub(crate) fn erase(&self, range: Range<u64>) -> io::Result<()> {
        let mut at = range.start;
        while at < range.end {
            let step = (range.end - at).min(ZEROS.len() as u64);
            self.disk.write_at(&self.file, &ZEROS[..step as usize], at - self.base)?;
            at += step;
        }
        self.flush()
    }
}

/// Name of the file of a segment that starts at `base`.
pub(crate) fn file_name(base: u64, extension: &str) -> String {
    format!("{base:020}.{extension}")
}

/// Bytes in front of the first block that was never written: a block that was only reserved is a hole to this.
fn written_front(file: &File) -> io::Result<u64> {
    Ok(rustix::fs::seek(file, SeekFrom::Hole(0))?)
}

/// Renaming over a segment would replace records.
fn refuse_to_replace(path: &Path) -> io::Result<()> {
    match path.try_exists()? {
        true => Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a segment already")),
        false => Ok(()),
    }
}

/// Maps a whole file for reading. The `Bytes` and every slice of it keep the map alive.
pub(crate) fn map_read_only(file: &File) -> io::Result<Bytes> {
    map_shared(file, Arc::new(()))
}

/// A map, and what tells that it is there: dropped when the map is gone.
struct Map {
    map: Mmap,
    _mapped: Arc<()>,
}

impl AsRef<[u8]> for Map {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

fn map_shared(file: &File, mapped: Arc<()>) -> io::Result<Bytes> {
    // SAFETY: the mapped file must not be truncated, and bytes behind a live `&[u8]` must not change. Nobody shortens
    // files of a store: the directory is locked, segments keep the length they are made with, and index files are
    // replaced by rename. Of a segment that is being written, `Segment::slice` is only asked for ranges below
    // `written`, whose bytes never change; `Bytes` keeps pointer and length, no reference to the rest. A file is written
    // anew from its start only by `Discarded::recycle`, which checks that this map is gone.
    let map = unsafe { Mmap::map(file)? };
    Ok(Bytes::from_owner(Map { map, _mapped: mapped }))
}
