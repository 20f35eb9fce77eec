//! The spool's directory: messages in the order in which they came, on disk before anybody is told so.
//!
//! Files `<number>.spool` hold records of length (u32, little endian), CRC-32C of the message (u32) and the message as it
//! travels; the last is written, the first is read. `cursor` says how far the first is done; it is not synced, so that
//! after a crash some messages are sent again, under their old ids. `refused.spool` has what no server takes, in the same
//! form, and `*.damaged` what cannot be read though it was written once. One process at a time: `lock` is locked. All calls block; they come from one task, on a thread for that.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;

/// Begins a further file.
const FILE_BYTES: u64 = 16 * 1024 * 1024;
/// A message with all that belongs to it has less.
const RECORD_BYTES_MAX: u32 = 8 * 1024 * 1024;
const HEAD_BYTES: u64 = 8;
const CURSOR_BYTES: usize = 20;

#[derive(Debug)]
pub(super) struct Files {
    directory: PathBuf,
    /// Held as long as this is.
    _lock: File,
    /// Numbers and sizes in bytes of the files that are not done, the oldest first.
    files: VecDeque<(u64, u64)>,
    next_number: u64,
    /// The end of the last file, if it is written on.
    tail: Option<File>,
    /// How far the first file is done.
    done: u64,
}

impl Files {
    /// Opens a directory, which is made if it is not there. What a crash has left half written at the end is cut off.
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(directory)?;
        if let Some(parent) = directory.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            // A new directory is there after a power cut, too.
            File::open(parent)?.sync_all()?;
        }
        let lock =
            OpenOptions::new().create(true).truncate(false).write(true).open(directory.join("lock"))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => io::Error::other("another process has it open"),
            TryLockError::Error(error) => error,
        })?;
        let mut numbers = Vec::new();
        for entry in std::fs::read_dir(directory)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(".spool")?.parse::<u64>().ok());
            numbers.extend(number);
        }
        numbers.sort_unstable();
        let next_number = numbers.last().map_or(0, |last| last + 1);
        let mut own = Self {
            directory: directory.to_owned(),
            _lock: lock,
            files: VecDeque::new(),
            next_number,
            tail: None,
            done: 0,
        };
        for number in numbers {
            let size = own.sound_size(number, number + 1 == next_number)?;
            if size == 0 {
                std::fs::remove_file(own.path(number))?;
            } else {
                own.files.push_back((number, size));
            }
        }
        own.done = own.read_cursor().unwrap_or(0);
        own.sync_directory()?;
        Ok(own)
    }

    /// Bytes that are not done.
    pub(super) fn bytes(&self) -> u64 {
        self.files.iter().map(|(_, size)| size).sum::<u64>() - self.done
    }

    /// Writes messages and syncs them. After an error nothing of them counts.
    pub(super) fn append(&mut self, messages: &[Bytes]) -> io::Result<()> {
        if self.tail.is_none() || self.files.back().is_none_or(|(_, size)| *size >= FILE_BYTES) {
            let number = self.next_number;
            self.tail = Some(OpenOptions::new().create_new(true).write(true).open(self.path(number))?);
            self.next_number += 1;
            self.files.push_back((number, 0));
            self.sync_directory()?;
        }
        let mut records = Vec::with_capacity(messages.iter().map(|message| message.len() + 8).sum());
        messages.iter().for_each(|message| write_record(&mut records, message));
        let tail = self.tail.as_mut().expect("it was opened above");
        let written = tail.write_all(&records).and_then(|()| tail.sync_data());
        let size = &mut self.files.back_mut().expect("it was opened above").1;
        match written {
            Ok(()) => *size += records.len() as u64,
            // What the file holds behind its size is not known: a further file follows, and it is cut here.
            Err(error) => {
                let cut = tail.set_len(*size).and_then(|()| tail.sync_data());
                self.tail = None;
                if let Err(cut) = cut {
                    tracing::error!(%cut, "what was not written to the spool cannot be cut off");
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// The next messages that are not done, at most `max` of them and of one file.
    pub(super) fn peek(&mut self, max: usize) -> io::Result<Vec<Bytes>> {
        let Some(&(number, size)) = self.files.front() else { return Ok(Vec::new()) };
        let mut file = File::open(self.path(number))?;
        file.seek(SeekFrom::Start(self.done))?;
        let mut reader = BufReader::new(file.take(size - self.done));
        let mut messages = Vec::new();
        while messages.len() < max
            && let Some(message) = read_record(&mut reader)?
        {
            messages.push(message);
        }
        if messages.is_empty() {
            // It was sound when it was opened or written.
            return Err(io::Error::other(format!(
                "{} is damaged at {}",
                self.path(number).display(),
                self.done
            )));
        }
        Ok(messages)
    }

    /// The first `messages` of what [`Files::peek`] gave are done.
    pub(super) fn finish(&mut self, messages: &[Bytes]) -> io::Result<()> {
        self.done += messages.iter().map(|message| HEAD_BYTES + message.len() as u64).sum::<u64>();
        let Some(&(number, size)) = self.files.front() else { return Ok(()) };
        if self.done < size {
            return self.write_cursor(number);
        }
        if self.files.len() == 1 {
            self.tail = None;
        }
        self.files.pop_front();
        self.done = 0;
        std::fs::remove_file(self.path(number))?;
        self.sync_directory()
    }

    /// Keeps a message that no server takes.
    pub(super) fn refuse(&mut self, message: &Bytes) -> io::Result<()> {
        let mut file =
            OpenOptions::new().create(true).append(true).open(self.directory.join("refused.spool"))?;
        let mut record = Vec::new();
        write_record(&mut record, message);
        file.write_all(&record)?;
        file.sync_data()?;
        self.sync_directory()
    }

    fn path(&self, number: u64) -> PathBuf {
        self.directory.join(format!("{number:020}.spool"))
    }

    /// How much of a file can be read; the rest is cut off. A crash leaves such a rest at the end of the last file; elsewhere it
    /// is damage, and kept beside it.
    fn sound_size(&self, number: u64, is_last: bool) -> io::Result<u64> {
        let path = self.path(number);
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        let size = file.metadata()?.len();
        let mut reader = BufReader::new(&file);
        let mut sound = 0;
        while let Some(message) = read_record(&mut reader)? {
            sound += HEAD_BYTES + message.len() as u64;
        }
        if sound < size {
            let (path_shown, bytes) = (path.display(), size - sound);
            if is_last {
                tracing::warn!(path = %path_shown, bytes, "the end of a spool file was not written whole; it is cut off");
            } else {
                std::fs::copy(&path, path.with_extension("damaged"))?;
                tracing::error!(path = %path_shown, bytes, "a spool file is damaged; all of it is kept as *.damaged");
            }
            file.set_len(sound)?;
            file.sync_data()?;
        }
        Ok(sound)
    }

    fn read_cursor(&self) -> Option<u64> {
        let text: [u8; CURSOR_BYTES] = std::fs::read(self.directory.join("cursor")).ok()?.try_into().ok()?;
        let (content, crc) = text.split_at(16);
        if crc32c::crc32c(content).to_le_bytes() != crc {
            return None;
        }
        let number = u64::from_le_bytes(content[..8].try_into().ok()?);
        let done = u64::from_le_bytes(content[8..].try_into().ok()?);
        let &(first, size) = self.files.front()?;
        (number == first && done < size).then_some(done)
    }

    fn write_cursor(&self, number: u64) -> io::Result<()> {
        let mut content = [number.to_le_bytes(), self.done.to_le_bytes()].concat();
        content.extend(crc32c::crc32c(&content).to_le_bytes());
        std::fs::write(self.directory.join("cursor"), content)
    }

    fn sync_directory(&self) -> io::Result<()> {
        File::open(&self.directory)?.sync_all()
    }
}

fn write_record(records: &mut Vec<u8>, message: &Bytes) {
    let length = u32::try_from(message.len()).expect("a message is far smaller");
    records.extend(length.to_le_bytes());
    records.extend(crc32c::crc32c(message).to_le_bytes());
    records.extend_from_slice(message);
}

/// `None`: the end, or what is no whole record.
fn read_record(reader: &mut impl io::Read) -> io::Result<Option<Bytes>> {
    let mut head = [0; 8];
    if !fill(reader, &mut head)? {
        return Ok(None);
    }
    let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
    let crc = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
    if length == 0 || length > RECORD_BYTES_MAX {
        return Ok(None);
    }
    let mut message = vec![0; length as usize];
    let is_whole = fill(reader, &mut message)? && crc32c::crc32c(&message) == crc;
    Ok(is_whole.then(|| message.into()))
}

fn fill(reader: &mut impl io::Read, buffer: &mut [u8]) -> io::Result<bool> {
    match reader.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(range: std::ops::Range<u32>) -> Vec<Bytes> {
        range.map(|n| Bytes::from(format!("message {n}").repeat(1 + n as usize % 7))).collect()
    }

    fn all(files: &mut Files) -> Vec<Bytes> {
        let mut all = Vec::new();
        while let next = files.peek(3).unwrap()
            && !next.is_empty()
        {
            files.finish(&next).unwrap();
            all.extend(next);
        }
        all
    }

    #[test]
    fn what_was_written_is_read_in_its_order_and_then_gone() {
        let directory = tempfile::tempdir().unwrap();
        let mut files = Files::open(directory.path()).unwrap();
        files.append(&messages(0..10)).unwrap();
        files.append(&messages(10..11)).unwrap();
        assert_eq!(all(&mut files), messages(0..11));
        assert_eq!(files.bytes(), 0);
        let left = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name());
        assert!(left.into_iter().all(|name| !name.to_str().unwrap().ends_with(".spool")));
        files.append(&messages(11..20)).unwrap();
        assert_eq!(all(&mut files), messages(11..20));
    }

    #[test]
    fn a_further_process_goes_on_where_the_first_was_and_not_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let mut files = Files::open(directory.path()).unwrap();
        files.append(&messages(0..10)).unwrap();
        let next = files.peek(4).unwrap();
        files.finish(&next).unwrap();
        assert!(Files::open(directory.path()).unwrap_err().to_string().contains("another process"));
        drop(files);
        let mut files = Files::open(directory.path()).unwrap();
        files.append(&messages(10..12)).unwrap();
        assert_eq!(all(&mut files), messages(4..12));
    }

    #[test]
    fn damage_in_front_of_other_files_is_kept_and_costs_what_is_behind_it_in_its_file_alone() {
        let directory = tempfile::tempdir().unwrap();
        Files::open(directory.path()).unwrap().append(&messages(0..4)).unwrap();
        // Another process writes another file.
        Files::open(directory.path()).unwrap().append(&messages(4..8)).unwrap();
        let first = directory.path().join(format!("{:020}.spool", 0));
        let mut bytes = std::fs::read(&first).unwrap();
        let third = 16 + messages(0..2).iter().map(Bytes::len).sum::<usize>();
        bytes[third + 9] ^= 1;
        std::fs::write(&first, &bytes).unwrap();
        let mut files = Files::open(directory.path()).unwrap();
        assert_eq!(all(&mut files), [messages(0..2), messages(4..8)].concat());
        assert_eq!(std::fs::read(first.with_extension("damaged")).unwrap(), bytes);
    }

    #[test]
    fn whatever_is_at_the_end_of_the_last_file_what_was_synced_is_there() {
        let whole = {
            let directory = tempfile::tempdir().unwrap();
            Files::open(directory.path()).unwrap().append(&messages(0..3)).unwrap();
            std::fs::read(directory.path().join(format!("{:020}.spool", 0))).unwrap()
        };
        let last = 8 + messages(2..3)[0].len();
        for cut in 0..=last {
            for garbage in [&[][..], &[0; 9], &[0xff; 9]] {
                let directory = tempfile::tempdir().unwrap();
                let kept = [&whole[..whole.len() - cut], garbage].concat();
                std::fs::write(directory.path().join(format!("{:020}.spool", 0)), kept).unwrap();
                std::fs::write(directory.path().join("cursor"), garbage).unwrap();
                let mut files = Files::open(directory.path()).unwrap();
                files.append(&messages(3..4)).unwrap();
                let expected =
                    if cut == 0 { messages(0..4) } else { [messages(0..2), messages(3..4)].concat() };
                assert_eq!(all(&mut files), expected, "{cut} bytes cut, {garbage:?} behind");
            }
        }
    }
}
