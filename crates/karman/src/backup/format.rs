//! The files of a backup (`docs/backup.md`): frames with checksums, so that a flipped bit is found and named, and a file
//! that was cut short goes on where it is whole. Used by the backup and by the restore, on the main thread; blocks.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bytes::Bytes;
use karman_remoting::proto::karman as v1;
use prost::Message;

use crate::cli::Damaged;

/// In front of every file: this, the id of the backup, and a checksum of both.
const MAGIC: &[u8; 8] = b"KARMBAK1";
pub(super) const HEADER_BYTES: usize = 20;
/// In front of every frame: the length of its content, and the checksum of that length and the content.
const FRAME_HEAD_BYTES: usize = 8;
/// A page of messages has 4 MiB, or one message; a list of a million queues less than 32 MiB.
const FRAME_MAX_BYTES: usize = 256 << 20;

/// What the cluster was like when the backup began.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Manifest {
    /// Of the command that made it.
    #[prost(string, tag = "1")]
    pub(super) version: String,
    #[prost(string, tag = "2")]
    pub(super) cluster: String,
    /// Milliseconds since 1970.
    #[prost(uint64, tag = "3")]
    pub(super) begun_ms: u64,
    #[prost(string, repeated, tag = "4")]
    pub(super) brokers: Vec<String>,
    /// By name, then broker.
    #[prost(message, repeated, tag = "5")]
    pub(super) topics: Vec<TopicCopy>,
    #[prost(message, repeated, tag = "6")]
    pub(super) groups: Vec<GroupCopy>,
    /// Without their secrets.
    #[prost(message, repeated, tag = "7")]
    pub(super) users: Vec<v1::User>,
    /// It was made without messages.
    #[prost(bool, tag = "8")]
    pub(super) settings_only: bool,
    /// What is left out, in words.
    #[prost(string, repeated, tag = "9")]
    pub(super) notes: Vec<String>,
}

/// A topic on one broker.
#[derive(Clone, PartialEq, Message)]
pub(super) struct TopicCopy {
    #[prost(message, required, tag = "1")]
    pub(super) config: v1::TopicConfig,
    #[prost(string, tag = "2")]
    pub(super) broker: String,
    /// By queue id; none of a topic of type LITE, or of a backup without messages.
    #[prost(message, repeated, tag = "3")]
    pub(super) queues: Vec<QueueCopy>,
}

impl TopicCopy {
    pub(super) fn name(&self) -> &str {
        &self.config.name
    }

    /// Messages that are to be copied.
    pub(super) fn message_count(&self) -> u64 {
        self.queues.iter().map(|queue| queue.end - queue.begin).sum()
    }
}

/// Which messages of a queue are in the backup: those with an offset from `begin` to below `end`.
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct QueueCopy {
    #[prost(uint64, tag = "1")]
    pub(super) begin: u64,
    #[prost(uint64, tag = "2")]
    pub(super) end: u64,
}

/// A group, and how far it was.
#[derive(Clone, PartialEq, Message)]
pub(super) struct GroupCopy {
    #[prost(message, required, tag = "1")]
    pub(super) config: v1::GroupConfig,
    #[prost(message, repeated, tag = "2")]
    pub(super) places: Vec<PlaceCopy>,
}

/// How far a group was with a topic on one broker.
#[derive(Clone, PartialEq, Message)]
pub(super) struct PlaceCopy {
    #[prost(string, tag = "1")]
    pub(super) topic: String,
    #[prost(string, tag = "2")]
    pub(super) broker: String,
    /// By queue id: everything below is done.
    #[prost(uint64, repeated, tag = "3")]
    pub(super) committed: Vec<u64>,
}

/// Messages of one queue, or delayed ones.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Page {
    #[prost(uint32, tag = "1")]
    pub(super) queue_id: u32,
    #[prost(message, repeated, tag = "2")]
    pub(super) messages: Vec<StoredCopy>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct StoredCopy {
    /// `apache.rocketmq.v2.Message`, as stored.
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) message: Bytes,
    /// Of one in a queue.
    #[prost(uint64, tag = "2")]
    pub(super) offset: u64,
    /// Of a delayed one.
    #[prost(string, tag = "3")]
    pub(super) topic: String,
    #[prost(string, tag = "4")]
    pub(super) broker: String,
}

/// Written last: with it a backup is complete.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Complete {
    #[prost(message, repeated, tag = "1")]
    pub(super) files: Vec<FileSum>,
    /// Milliseconds since 1970.
    #[prost(uint64, tag = "2")]
    pub(super) ended_ms: u64,
}

/// What a file must be.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct FileSum {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(uint64, tag = "2")]
    pub(super) bytes: u64,
    /// CRC32C of the whole file.
    #[prost(fixed32, tag = "3")]
    pub(super) checksum: u32,
    #[prost(uint64, tag = "4")]
    pub(super) messages: u64,
}

fn header(id: u64) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..16].copy_from_slice(&id.to_le_bytes());
    let checksum = crc32c::crc32c(&bytes[..16]);
    bytes[16..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

fn damaged(path: &Path, at: u64, what: &str) -> anyhow::Error {
    Damaged(format!("{} is damaged at byte {at}: {what}", path.display())).into()
}

/// Reads frame after frame, each checked.
pub(super) struct Reader {
    path: PathBuf,
    file: BufReader<File>,
    length: u64,
    at: u64,
    checksum: u32,
    messages: u64,
    pub(super) id: u64,
}

impl Reader {
    /// Also checks that the file is one of a backup, and of the one with `id` if that is said.
    pub(super) fn open(path: &Path, id: Option<u64>) -> anyhow::Result<Self> {
        let opened = File::open(path).and_then(|file| Ok((file.metadata()?.len(), file)));
        let (length, file) = opened.with_context(|| format!("open {}", path.display()))?;
        let mut bytes = [0; HEADER_BYTES];
        let mut file = BufReader::with_capacity(1 << 20, file);
        if length < HEADER_BYTES as u64 {
            return Err(damaged(path, 0, "it is shorter than its header"));
        }
        file.read_exact(&mut bytes).with_context(|| format!("read {}", path.display()))?;
        let own = u64::from_le_bytes(std::array::from_fn(|index| bytes[8 + index]));
        if bytes != header(own) {
            return Err(damaged(path, 0, "its header is not that of a backup's file"));
        }
        if id.is_some_and(|id| id != own) {
            return Err(damaged(path, 8, "it belongs to another backup"));
        }
        let checksum = crc32c::crc32c(&bytes);
        let path = path.to_owned();
        Ok(Self { path, file, length, at: HEADER_BYTES as u64, checksum, messages: 0, id: own })
    }

    /// The next frame; `None` at the end of the file.
    pub(super) fn next<T: Message + Default>(&mut self) -> anyhow::Result<Option<T>> {
        if self.at == self.length {
            return Ok(None);
        }
        let left = self.length - self.at;
        let mut head = [0; FRAME_HEAD_BYTES];
        if left < FRAME_HEAD_BYTES as u64 {
            return Err(damaged(&self.path, self.at, "it ends inside a frame"));
        }
        let read = self.file.read_exact(&mut head);
        read.with_context(|| format!("read {}", self.path.display()))?;
        let [length, expected] = [0, 4].map(|at| u32::from_le_bytes(std::array::from_fn(|i| head[at + i])));
        if u64::from(length) > left - FRAME_HEAD_BYTES as u64 || length as usize > FRAME_MAX_BYTES {
            return Err(damaged(&self.path, self.at, "a frame is longer than the rest of the file"));
        }
        let mut content = vec![0; length as usize];
        let read = self.file.read_exact(&mut content);
        read.with_context(|| format!("read {}", self.path.display()))?;
        if crc32c::crc32c_append(crc32c::crc32c(&head[..4]), &content) != expected {
            return Err(damaged(&self.path, self.at, "the checksum of a frame is another one"));
        }
        let content = Bytes::from(content);
        let frame = T::decode(content.clone());
        let frame = frame.map_err(|error| damaged(&self.path, self.at, &error.to_string()))?;
        self.checksum = crc32c::crc32c_append(crc32c::crc32c_append(self.checksum, &head), &content);
        self.at += (FRAME_HEAD_BYTES + content.len()) as u64;
        Ok(Some(frame))
    }

    /// The next page, whose messages count.
    pub(super) fn next_page(&mut self) -> anyhow::Result<Option<Page>> {
        let page: Option<Page> = self.next()?;
        self.messages += page.as_ref().map_or(0, |page| page.messages.len() as u64);
        Ok(page)
    }

    /// What was read, for the list of all files.
    pub(super) fn sum(&self) -> FileSum {
        FileSum {
            name: file_name(&self.path),
            bytes: self.at,
            checksum: self.checksum,
            messages: self.messages,
        }
    }

    /// Refuses a file that is whole, and yet not what was written.
    pub(super) fn check(&self, expected: &FileSum) -> anyhow::Result<()> {
        if self.sum() == *expected {
            return Ok(());
        }
        let (bytes, messages) = (expected.bytes, expected.messages);
        let what =
            format!("it was written with {bytes} bytes and {messages} messages, and is another file now");
        Err(damaged(&self.path, self.at, &what))
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Writes frame after frame.
#[derive(Debug)]
pub(super) struct Writer {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Writer {
    /// A new file; one that is there is an error.
    pub(super) fn create(path: &Path, id: u64) -> anyhow::Result<Self> {
        let file = File::create_new(path).with_context(|| format!("make {}", path.display()))?;
        let mut writer = Self { path: path.to_owned(), file: BufWriter::with_capacity(1 << 20, file) };
        writer.put(&header(id))?;
        Ok(writer)
    }

    /// The file of an interrupted backup; `whole` of its bytes stay.
    pub(super) fn go_on(path: &Path, whole: u64) -> anyhow::Result<Self> {
        let open = || {
            let mut file = File::options().write(true).open(path)?;
            file.set_len(whole)?;
            file.seek(SeekFrom::End(0))?;
            io::Result::Ok(file)
        };
        let file = open().with_context(|| format!("open {}", path.display()))?;
        Ok(Self { path: path.to_owned(), file: BufWriter::with_capacity(1 << 20, file) })
    }

    fn put(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.file.write_all(bytes).with_context(|| format!("write {}", self.path.display()))
    }

    pub(super) fn write(&mut self, frame: &impl Message) -> anyhow::Result<()> {
        let content = frame.encode_to_vec();
        anyhow::ensure!(
            content.len() <= FRAME_MAX_BYTES,
            "{} would have a frame of {} bytes, the limit is {FRAME_MAX_BYTES}",
            self.path.display(),
            content.len()
        );
        let length = u32::try_from(content.len()).unwrap_or(u32::MAX).to_le_bytes();
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&length), &content).to_le_bytes();
        self.put(&length)?;
        self.put(&checksum)?;
        self.put(&content)
    }

    /// Everything is on the disk.
    pub(super) fn finish(mut self) -> anyhow::Result<()> {
        let flushed = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        flushed.with_context(|| format!("write {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(queue_id: u32, count: u64) -> Page {
        let message =
            |offset| StoredCopy { message: Bytes::from_static(b"a book"), offset, ..Default::default() };
        Page { queue_id, messages: (0..count).map(message).collect() }
    }

    fn written(path: &Path) -> FileSum {
        let mut writer = Writer::create(path, 7).unwrap();
        [page(0, 3), page(1, 2)].iter().for_each(|page| writer.write(page).unwrap());
        writer.finish().unwrap();
        let mut reader = Reader::open(path, Some(7)).unwrap();
        while reader.next_page().unwrap().is_some() {}
        reader.sum()
    }

    fn read_all(path: &Path, sum: &FileSum) -> Result<(), String> {
        let read = || {
            let mut reader = Reader::open(path, Some(7))?;
            while reader.next_page()?.is_some() {}
            reader.check(sum)
        };
        read().map_err(|error| error.to_string())
    }

    #[test]
    fn every_flipped_bit_is_found_and_the_file_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("00001.kbk");
        let sum = written(&path);
        assert_eq!((sum.messages, read_all(&path, &sum)), (5, Ok(())));
        let whole = std::fs::read(&path).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, bytes).unwrap();
            let said = read_all(&path, &sum).unwrap_err();
            assert!(said.contains("00001.kbk is damaged at byte"), "bit {bit}: {said}");
        }
    }

    #[test]
    fn a_file_that_lacks_its_end_or_is_of_another_backup_is_damaged() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("00001.kbk");
        let sum = written(&path);
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(read_all(&path, &sum).is_err(), "{length} bytes");
        }
        std::fs::write(&path, &whole).unwrap();
        let other = Reader::open(&path, Some(8)).map(drop).unwrap_err().to_string();
        assert!(other.contains("another backup"), "{other}");
    }

    #[test]
    fn a_file_goes_on_behind_what_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("00001.kbk");
        let whole = written(&path).bytes;
        let mut torn = std::fs::read(&path).unwrap();
        torn.extend_from_slice(&[9, 0, 0, 0, 1]);
        std::fs::write(&path, torn).unwrap();
        let mut writer = Writer::go_on(&path, whole).unwrap();
        writer.write(&page(1, 1)).unwrap();
        writer.finish().unwrap();
        let mut reader = Reader::open(&path, Some(7)).unwrap();
        while reader.next_page().unwrap().is_some() {}
        assert_eq!(reader.sum().messages, 6);
    }
}
