//! The file of a [`FileStore`](super::FileStore): which messages are done, one record for each, appended.
//!
//! Owned by the store's writer thread. `done` begins with eight bytes that say what it is; a record is a key (16 bytes),
//! the time at which it was done (8, milliseconds since 1970, little-endian) and the CRC32C of both (4). A write that a
//! crash has torn was answered to nobody, and is cut off at the next start. It is at most one batch: what is wrong further
//! from the end was promised to somebody, and stops the start. Within the last batch the two cannot be told apart.

use std::fs::{self, File, TryLockError};
use std::io::{self, BufReader, BufWriter, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use super::DedupeError;
use super::table::Key;

const MAGIC: &[u8; 8] = b"KARONCE1";
const RECORD_LEN: usize = Key::LEN + 8 + 4;
/// Records that are written, and flushed, at once.
pub(super) const BATCH_MAX: usize = 128;

#[derive(Debug)]
pub(super) struct Log {
    directory: PathBuf,
    file: File,
    /// In the file, also those that nobody asks for any more.
    records: u64,
    /// Held until the log is dropped.
    _lock: File,
}

impl Log {
    /// Opens the log in `directory`, which is made when it is not there, and calls `restore` for what it holds.
    pub(super) fn open(directory: &Path, mut restore: impl FnMut(Key, u64)) -> Result<Self, DedupeError> {
        let io = |error| DedupeError::Io { path: directory.to_owned(), error };
        make(directory).map_err(io)?;
        let lock = lock(directory)?;
        let path = directory.join("done");
        let file = match File::options().read(true).write(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => rewritten(directory, &[]).map_err(io)?,
            result => result.map_err(|error| DedupeError::Io { path: path.clone(), error })?,
        };
        let mut log = Self { directory: directory.to_owned(), file, records: 0, _lock: lock };
        let failed = |error| DedupeError::Io { path: path.clone(), error };
        let len = log.file.metadata().map_err(failed)?.len();
        let end = log.read(&path, len, &mut restore)?;
        if end < len {
            if len - end > (BATCH_MAX * RECORD_LEN) as u64 {
                return Err(DedupeError::Damaged { file: path, offset: end });
            }
            tracing::warn!(?path, bytes = len - end, "a write that was torn by a crash is cut off");
            log.file.set_len(end).and_then(|()| log.file.sync_all()).map_err(failed)?;
        }
        log.file.seek(SeekFrom::Start(end)).map_err(failed)?;
        Ok(log)
    }

    /// Where the good records end.
    fn read(
        &mut self,
        path: &Path,
        len: u64,
        restore: &mut impl FnMut(Key, u64),
    ) -> Result<u64, DedupeError> {
        let failed = |error| DedupeError::Io { path: path.to_owned(), error };
        self.file.rewind().map_err(failed)?;
        let mut reader = BufReader::with_capacity(1 << 16, &self.file);
        let mut magic = [0; MAGIC.len()];
        // The file is renamed to its name when it is whole: what is shorter is something else.
        if len < magic.len() as u64 {
            return Err(DedupeError::Foreign { file: path.to_owned() });
        }
        reader.read_exact(&mut magic).map_err(failed)?;
        if magic != *MAGIC {
            return Err(DedupeError::Foreign { file: path.to_owned() });
        }
        let mut end = magic.len() as u64;
        let mut record = [0; RECORD_LEN];
        while end + RECORD_LEN as u64 <= len {
            reader.read_exact(&mut record).map_err(failed)?;
            let Some((key, at)) = decode(&record) else { break };
            restore(key, at);
            self.records += 1;
            end += RECORD_LEN as u64;
        }
        Ok(end)
    }

    pub(super) fn records(&self) -> u64 {
        self.records
    }

    /// At most [`BATCH_MAX`] records; on disk when this returns. After an error nothing more may be written.
    pub(super) fn append(&mut self, records: &[(Key, u64)]) -> io::Result<()> {
        let bytes: Vec<u8> = records.iter().flat_map(|&(key, at)| encode(key, at)).collect();
        self.file.write_all(&bytes)?;
        self.file.sync_data()?;
        self.records += records.len() as u64;
        Ok(())
    }

    /// Every write fails from now on.
    #[cfg(test)]
    pub(super) fn break_disk(&mut self) {
        self.file = File::open(self.directory.join("done")).unwrap();
    }

    /// Puts a file with these records alone in the place of what is there.
    pub(super) fn rewrite(&mut self, records: &[(Key, u64)]) -> io::Result<()> {
        self.file = rewritten(&self.directory, records)?;
        self.records = records.len() as u64;
        Ok(())
    }
}

/// A new directory is there after a power cut too.
fn make(directory: &Path) -> io::Result<()> {
    match fs::create_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        result => result?,
    }
    let parent = directory.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

fn lock(directory: &Path) -> Result<File, DedupeError> {
    let path = directory.join("lock");
    let open = File::options().create(true).truncate(false).write(true).open(&path);
    let file = open.map_err(|error| DedupeError::Io { path: path.clone(), error })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(DedupeError::InUse { directory: directory.to_owned() }),
        Err(TryLockError::Error(error)) => Err(DedupeError::Io { path, error }),
    }
}

/// Written aside, flushed, and only then renamed; ready for the next record.
fn rewritten(directory: &Path, records: &[(Key, u64)]) -> io::Result<File> {
    let aside = directory.join("done.new");
    let mut writer = BufWriter::new(File::create(&aside)?);
    writer.write_all(MAGIC)?;
    for &(key, at) in records {
        writer.write_all(&encode(key, at))?;
    }
    let file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    drop(file);
    let path = directory.join("done");
    fs::rename(&aside, &path)?;
    File::open(directory)?.sync_all()?;
    let mut file = File::options().read(true).write(true).open(&path)?;
    file.seek(SeekFrom::End(0))?;
    Ok(file)
}

fn encode(key: Key, at: u64) -> [u8; RECORD_LEN] {
    let mut record = [0; RECORD_LEN];
    record[..Key::LEN].copy_from_slice(&key.0);
    record[Key::LEN..Key::LEN + 8].copy_from_slice(&at.to_le_bytes());
    let crc = crc32c::crc32c(&record[..Key::LEN + 8]);
    record[Key::LEN + 8..].copy_from_slice(&crc.to_le_bytes());
    record
}

/// `None`: these bytes were not written as a record.
fn decode(record: &[u8; RECORD_LEN]) -> Option<(Key, u64)> {
    let (content, crc) = record.split_last_chunk::<4>()?;
    if crc32c::crc32c(content) != u32::from_le_bytes(*crc) {
        return None;
    }
    let (key, at) = content.split_first_chunk::<{ Key::LEN }>()?;
    Some((Key(*key), u64::from_le_bytes(at.try_into().ok()?)))
}
