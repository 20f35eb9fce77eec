//! How far a broadcasting consumer is, in a file of its own. Blocks on the disk: not to be called where that may not be.
//!
//! The file is written anew each time: beside it, flushed, renamed, and the directory flushed. The one before is kept, and
//! used when the last one turns out to be damaged. Text, so that people can read it, with tabs between the
//! fields:
//!
//! ```text
//! karman-offsets 1 shipping
//! 4711 3 broker-a orders
//! sum 0123456789abcdef
//! ```

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::{fs, io};

use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_64;

use crate::allocate::QueueName;
use crate::error::ClientError;

/// Queues of one file.
const QUEUES_MAX: usize = 100_000;
/// A longer file is none of ours: a line has two names of 255 bytes at most and two numbers.
const BYTES_MAX: u64 = 64 << 20;

type Offsets = BTreeMap<QueueName, i64>;

#[derive(Debug)]
pub(super) struct OffsetFile {
    path: PathBuf,
    group: String,
    offsets: Mutex<Known>,
    /// Held while the file is written. Whether the file there is a good one: only that is kept as the one before.
    writing: Mutex<Written>,
    /// Nobody else writes the file as long as this is open.
    _lock: File,
}

#[derive(Debug)]
struct Known {
    offsets: Offsets,
    /// Counts the changes.
    changes: u64,
}

#[derive(Debug)]
struct Written {
    is_good: bool,
    /// The changes that are in it.
    changes: u64,
}

impl OffsetFile {
    /// Reads what is there. A file that is damaged is reported, and the one before is used.
    pub(super) fn open(path: PathBuf, group: &str) -> Result<Self, ClientError> {
        let bad = |why: String| ClientError::Offsets { path: path.display().to_string(), why };
        if group.contains(char::is_control) {
            return Err(ClientError::InvalidArgument(format!("group {group:?} has control characters")));
        }
        let lock = lock(&beside(&path, "lock")).map_err(bad)?;
        let (offsets, is_good) = match read(&path, group) {
            Ok(Some(offsets)) => (offsets, true),
            Ok(None) => (read(&beside(&path, "previous"), group).map_err(bad)?.unwrap_or_default(), false),
            Err(why) => {
                let previous = read(&beside(&path, "previous"), group);
                let Ok(Some(offsets)) = previous else { return Err(bad(why)) };
                tracing::error!(path = %path.display(), why, "the file of offsets is damaged; the one before is used, some messages come again");
                (offsets, false)
            }
        };
        let offsets = Mutex::new(Known { offsets, changes: 0 });
        let writing = Mutex::new(Written { is_good, changes: 0 });
        Ok(Self { path, group: group.to_owned(), offsets, writing, _lock: lock })
    }

    pub(super) fn get(&self, queue: &QueueName) -> Option<i64> {
        self.offsets.lock().offsets.get(queue).copied()
    }

    /// Writes these, and what was there. When it has returned they survive a power cut.
    pub(super) fn store(&self, offsets: Vec<(QueueName, i64)>) -> Result<(), ClientError> {
        let bad = |why: String| ClientError::Offsets { path: self.path.display().to_string(), why };
        let wanted = {
            let mut known = self.offsets.lock();
            known.offsets.extend(offsets);
            known.changes += 1;
            known.changes
        };
        let mut written = self.writing.lock();
        if written.changes >= wanted {
            // Another one has taken them along.
            return Ok(());
        }
        let (text, changes) = {
            let known = self.offsets.lock();
            if known.offsets.len() > QUEUES_MAX {
                return Err(bad(format!("{} queues, of at most {QUEUES_MAX}", known.offsets.len())));
            }
            (text(&self.group, &known.offsets), known.changes)
        };
        self.replace(&text, &mut written).map_err(|error| bad(error.to_string()))?;
        written.changes = changes;
        Ok(())
    }

    fn replace(&self, text: &str, written: &mut Written) -> io::Result<()> {
        let new = beside(&self.path, "new");
        let mut file = File::create(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        if written.is_good {
            written.is_good = false;
            fs::rename(&self.path, beside(&self.path, "previous"))?;
        }
        fs::rename(&new, &self.path)?;
        let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()?;
        written.is_good = true;
        Ok(())
    }
}

/// `offsets` and `previous` make `offsets.previous`.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    name.into()
}

fn lock(path: &Path) -> Result<File, String> {
    let open = OpenOptions::new().create(true).truncate(false).write(true).open(path);
    let file = open.map_err(|error| error.to_string())?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err("another consumer uses it: give each one a file".to_owned()),
        Err(fs::TryLockError::Error(error)) => Err(error.to_string()),
    }
}

fn text(group: &str, offsets: &Offsets) -> String {
    let mut text = format!("karman-offsets 1 {group}\n");
    for (QueueName { topic, broker, id }, offset) in offsets {
        text.push_str(&format!("{offset}\t{id}\t{broker}\t{topic}\n"));
    }
    let sum = xxh3_64(text.as_bytes());
    text.push_str(&format!("sum {sum:016x}\n"));
    text
}

/// `None`: there is no such file. The error says what is wrong with it.
fn read(path: &Path, group: &str) -> Result<Option<Offsets>, String> {
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file.map_err(|error| error.to_string())?,
    };
    let mut text = String::new();
    file.take(BYTES_MAX).read_to_string(&mut text).map_err(|error| error.to_string())?;
    parse(&text, group).map(Some)
}

fn parse(text: &str, group: &str) -> Result<Offsets, String> {
    let (lines, sum) = text.rsplit_once("sum ").ok_or("its end is missing")?;
    if u64::from_str_radix(sum.trim_end(), 16) != Ok(xxh3_64(lines.as_bytes())) {
        return Err("its sum does not fit".to_owned());
    }
    let mut lines = lines.lines();
    let head = lines.next().unwrap_or_default();
    match head.strip_prefix("karman-offsets 1 ") {
        Some(of) if of == group => {}
        Some(of) => return Err(format!("it is of the group {of:?}, not of {group:?}")),
        None => return Err(format!("it begins with {head:?}, not with karman-offsets 1")),
    }
    let line = |line: &str| {
        let mut fields = line.splitn(4, '\t');
        let mut field = || fields.next().ok_or_else(|| format!("line {line:?} is too short"));
        let number = |text: &str| text.parse().map_err(|_| format!("{text:?} in line {line:?} is no number"));
        let (offset, id): (i64, i64) = (number(field()?)?, number(field()?)?);
        let id = i32::try_from(id).map_err(|_| format!("line {line:?} names no queue"))?;
        let broker = field()?.to_owned();
        Ok((QueueName::new(field()?, broker, id), offset))
    };
    lines.map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(id: i32) -> QueueName {
        QueueName::new("orders", "broker-a", id)
    }

    fn open(directory: &tempfile::TempDir) -> Result<OffsetFile, ClientError> {
        OffsetFile::open(directory.path().join("offsets"), "shipping")
    }

    #[test]
    fn what_was_stored_is_there_for_the_next_one() {
        let directory = tempfile::tempdir().unwrap();
        let file = open(&directory).unwrap();
        assert_eq!(file.get(&queue(0)), None);
        file.store(vec![(queue(0), 7), (queue(1), i64::MAX)]).unwrap();
        file.store(vec![(queue(0), 8)]).unwrap();
        drop(file);
        let file = open(&directory).unwrap();
        assert_eq!([0, 1, 2].map(|id| file.get(&queue(id))), [Some(8), Some(i64::MAX), None]);
    }

    #[test]
    fn a_damaged_file_gives_way_to_the_one_before_which_is_not_lost_by_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("offsets");
        let file = open(&directory).unwrap();
        file.store(vec![(queue(0), 7)]).unwrap();
        file.store(vec![(queue(0), 8)]).unwrap();
        drop(file);
        let whole = fs::read_to_string(&path).unwrap();
        for damaged in [&whole[..whole.len() / 2], "", &whole.replace('8', "9"), &format!("\0{whole}")] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(open(&directory).unwrap().get(&queue(0)), Some(7), "{damaged:?}");
        }
        // What is written next does not put the damaged one in the place of the good one.
        let file = open(&directory).unwrap();
        file.store(vec![(queue(0), 9)]).unwrap();
        drop(file);
        fs::write(&path, "").unwrap();
        assert_eq!(open(&directory).unwrap().get(&queue(0)), Some(7));
    }

    #[test]
    fn a_crash_between_the_renames_leaves_the_one_before() {
        let directory = tempfile::tempdir().unwrap();
        let file = open(&directory).unwrap();
        file.store(vec![(queue(0), 7)]).unwrap();
        drop(file);
        let path = directory.path().join("offsets");
        fs::rename(&path, beside(&path, "previous")).unwrap();
        assert_eq!(open(&directory).unwrap().get(&queue(0)), Some(7));
    }

    #[test]
    fn a_file_that_cannot_be_used_is_an_error_that_names_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("offsets");
        let file = open(&directory).unwrap();
        file.store(vec![(queue(0), 7)]).unwrap();
        let said = |result: Result<OffsetFile, ClientError>| result.unwrap_err().to_string();
        assert!(said(open(&directory)).contains("another consumer uses it"));
        drop(file);
        let other = said(OffsetFile::open(path.clone(), "billing"));
        assert!(other.contains("shipping") && other.contains("billing"), "{other}");
        fs::write(&path, "nonsense").unwrap();
        let damaged = said(open(&directory));
        assert!(
            damaged.contains(path.to_str().unwrap()) && damaged.contains("its end is missing"),
            "{damaged}"
        );
        let nowhere = OffsetFile::open(directory.path().join("no").join("offsets"), "shipping");
        assert!(matches!(nowhere, Err(ClientError::Offsets { .. })));
    }
}
