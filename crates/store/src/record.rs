//! The log record: what callers hand in, what they get back, and the bytes in between. Pure functions, any thread.
//!
//! The layout is described in `docs/storage-format.md`. Whoever decodes a record says where it was found and in which
//! log; a record that names another place is stale and refused, so bytes of a former life of the file never pass as
//! data, nor does a record of another log, nor one that somebody wrote into a payload.

use bytes::Bytes;

/// Bytes of a record in front of its payload.
pub const HEADER_BYTES: usize = 64;
/// Largest payload of one record.
pub const MAX_PAYLOAD_BYTES: usize = 32 << 20;
/// Most keys of one record.
pub const MAX_KEYS: usize = 0xfff;
/// Longest record that is none of the fillers.
pub(crate) const MAX_RECORD_BYTES: usize = HEADER_BYTES + MAX_PAYLOAD_BYTES + MAX_KEYS * KEY_BYTES;

const VERSION: u8 = 1;
pub(crate) const ALIGN: usize = 8;
/// The CRC covers all that lies behind it.
const CRC_COVERS_FROM: usize = 8;
/// Where a header says where it lies.
pub(crate) const OWN_OFFSET_AT: usize = 16;
const NO_QUEUE: u32 = u32::MAX;
const BLANK: u8 = 0;
const LOST: u8 = 255;
const KEY_BYTES: usize = 8;
const PADDING_MASK: u16 = 0b0111;
/// Everything in front of this record had been flushed when the record was written. Recovery tells damage from a
/// torn tail by it: in front of such a record nothing can be torn.
const FLUSHED_BEFORE: u16 = 0b1000;
/// The number of keys stands in the flags from this bit on.
const KEYS_SHIFT: u32 = 4;

/// The hash under which [`crate::Store::find`] finds a record. Names in one scope do not meet those of another.
pub fn key_hash(scope: u32, name: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(name, u64::from(scope))
}

/// What the checksums of a log start from; follows from the log's id, so that records of another log are not valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seal(pub(crate) u32);

/// Number of a queue (of one topic); the broker interns names. `u32::MAX` is reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueNumber(pub u32);

/// Position in a queue, counted in messages from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueOffset(pub u64);

/// Position in the log, counted in bytes from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PhysicalOffset(pub u64);

/// What a record is. Everything but `Message` is shown to the projections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RecordKind {
    /// A message; belongs to a queue.
    Message = 1,
    /// A message moved to a dead letter queue; belongs to that queue.
    DeadLetter = 2,
    /// Topics, groups, settings; has no queue.
    Metadata = 3,
    /// Consumer progress; has no queue.
    Progress = 4,
    /// A message that nobody may see yet; has no queue.
    Held = 5,
    /// A message that was held and may be seen from now on; belongs to a queue.
    Released = 6,
    /// What became of held messages otherwise; has no queue.
    Settled = 7,
    /// A `Held` record once more, because the segment with it was to go; has no queue. Not a `Held` one: the message may
    /// have been released while it was copied, and whoever follows the log must not take the copy for another message.
    Kept = 8,
    /// A master begins to write; all behind it, up to the next one, is its work. Has no queue.
    Epoch = 9,
}

impl RecordKind {
    /// What consumers and operators record goes on when there is no room for messages, and what lets a segment go.
    pub(crate) fn may_use_reserve(self) -> bool {
        matches!(self, Self::Metadata | Self::Progress | Self::Settled | Self::Kept | Self::Epoch)
    }

    /// What a record becomes when it is appended once more.
    pub(crate) fn again(self) -> Self {
        if self == Self::Held { Self::Kept } else { self }
    }

    /// Records of this kind lie in a queue and are indexed.
    pub fn has_queue(self) -> bool {
        matches!(self, Self::Message | Self::DeadLetter | Self::Released)
    }
}

impl TryFrom<u8> for RecordKind {
    type Error = Invalid;

    fn try_from(value: u8) -> Result<Self, Invalid> {
        match value {
            1 => Ok(Self::Message),
            2 => Ok(Self::DeadLetter),
            3 => Ok(Self::Metadata),
            4 => Ok(Self::Progress),
            5 => Ok(Self::Held),
            6 => Ok(Self::Released),
            7 => Ok(Self::Settled),
            8 => Ok(Self::Kept),
            9 => Ok(Self::Epoch),
            other => Err(Invalid::Kind(other)),
        }
    }
}

/// A record to append.
#[derive(Debug, Clone)]
pub struct NewRecord {
    /// What it is.
    pub kind: RecordKind,
    /// Where it belongs; exactly the kinds that have a queue name one.
    pub queue: Option<QueueNumber>,
    /// Hash of the message's tag, kept in the index.
    pub tag_hash: u64,
    /// Opaque to the store, kept in the header.
    pub mark: u64,
    /// What it can be found by ([`key_hash`]), at most [`MAX_KEYS`].
    pub keys: Vec<u64>,
    /// At most [`MAX_PAYLOAD_BYTES`].
    pub payload: Bytes,
}

/// A record of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// What it is.
    pub kind: RecordKind,
    /// Of the master that wrote it; 0 in what was written before the first one began.
    pub epoch: u32,
    /// Where it lies in the log.
    pub physical_offset: PhysicalOffset,
    /// When it was written, in milliseconds since 1970; never less than that of the record in front of it.
    pub store_time_ms: u64,
    /// The queue it lies in.
    pub queue: Option<QueueNumber>,
    /// Where it lies in that queue; 0 without one.
    pub queue_offset: QueueOffset,
    /// As appended.
    pub tag_hash: u64,
    /// As appended.
    pub mark: u64,
    /// As appended; shares memory with the log.
    pub payload: Bytes,
}

/// What is wrong with bytes that should be a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Invalid {
    /// The length cannot be that of a record at this place.
    #[error("length {0} is not possible here")]
    Length(u32),
    /// The record was written for another place.
    #[error("it says that it lies at {0}")]
    Offset(u64),
    /// The bytes do not have the checksum they were written with.
    #[error("checksum mismatch")]
    Checksum,
    /// It fills the end of a segment and carries nothing.
    #[error("it is a blank")]
    Blank,
    /// A repair has given up what was here.
    #[error("it was lost to damage")]
    Lost,
    /// Intact, but of another format version.
    #[error("format version {0}")]
    Version(u8),
    /// Intact, but of an unknown kind.
    #[error("kind {0}")]
    Kind(u8),
    /// Intact, but with flags or lengths that no version 1 record has.
    #[error("flags {0:#06x}")]
    Flags(u16),
}

impl Invalid {
    /// The record is as it was written, by a version this one does not know: neither torn nor damaged.
    pub(crate) fn is_unsupported(self) -> bool {
        matches!(self, Self::Version(_) | Self::Kind(_) | Self::Flags(_))
    }
}

/// What the log writer adds to a [`NewRecord`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) physical_offset: u64,
    pub(crate) queue_offset: u64,
    pub(crate) store_time_ms: u64,
    pub(crate) flushed_before: bool,
    pub(crate) epoch: u32,
}

/// What lies behind a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    Record(RecordKind),
    /// Nothing: it fills the end of a segment.
    Blank,
    /// Something that a repair has given up.
    Lost,
}

impl Content {
    fn code(self) -> u8 {
        match self {
            Content::Record(kind) => kind as u8,
            Content::Blank => BLANK,
            Content::Lost => LOST,
        }
    }
}

/// A decoded header.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    pub(crate) length: u32,
    pub(crate) content: Content,
    pub(crate) flushed_before: bool,
    pub(crate) key_count: u16,
    pub(crate) epoch: u32,
    pub(crate) physical_offset: u64,
    pub(crate) store_time_ms: u64,
    pub(crate) queue: Option<QueueNumber>,
    pub(crate) payload_length: u32,
    pub(crate) queue_offset: u64,
    pub(crate) tag_hash: u64,
    pub(crate) mark: u64,
}

impl NewRecord {
    /// Bytes it takes in the log.
    pub fn encoded_bytes(&self) -> usize {
        encoded_bytes(self.payload.len(), self.keys.len())
    }
}

/// Bytes a record with a payload of this size and so many keys takes in the log.
pub(crate) fn encoded_bytes(payload_bytes: usize, keys: usize) -> usize {
    (HEADER_BYTES + payload_bytes).next_multiple_of(ALIGN) + keys * KEY_BYTES
}

/// Appends the record's bytes to `out`.
pub(crate) fn encode(record: &NewRecord, place: Place, log: Seal, out: &mut Vec<u8>) {
    let (start, length) = (out.len(), record.encoded_bytes());
    let unpadded = HEADER_BYTES + record.payload.len();
    let padding = unpadded.next_multiple_of(ALIGN) - unpadded;
    let header = Header {
        length: u32::try_from(length).expect("payloads are limited to 32 MiB"),
        content: Content::Record(record.kind),
        flushed_before: place.flushed_before,
        key_count: record.keys.len() as u16,
        epoch: place.epoch,
        physical_offset: place.physical_offset,
        store_time_ms: place.store_time_ms,
        queue: record.queue,
        payload_length: record.payload.len() as u32,
        queue_offset: place.queue_offset,
        tag_hash: record.tag_hash,
        mark: record.mark,
    };
    out.extend_from_slice(&header.to_bytes(padding as u16));
    out.extend_from_slice(&record.payload);
    out.extend_from_slice(&[0; ALIGN][..padding]);
    record.keys.iter().for_each(|key| out.extend_from_slice(&key.to_le_bytes()));
    seal(&mut out[start..], log);
}

/// The record as readers see it, without a way through its bytes.
pub(crate) fn placed(record: &NewRecord, place: Place) -> Record {
    Record {
        kind: record.kind,
        epoch: place.epoch,
        physical_offset: PhysicalOffset(place.physical_offset),
        store_time_ms: place.store_time_ms,
        queue: record.queue,
        queue_offset: QueueOffset(place.queue_offset),
        tag_hash: record.tag_hash,
        mark: record.mark,
        payload: record.payload.clone(),
    }
}

/// Appends a header without content, [`Content::Blank`] or [`Content::Lost`], that stands for `length` bytes.
pub(crate) fn encode_filler(
    content: Content,
    physical_offset: u64,
    length: u32,
    store_time_ms: u64,
    epoch: u32,
    log: Seal,
    out: &mut Vec<u8>,
) {
    let start = out.len();
    let header = Header {
        length,
        content,
        flushed_before: false,
        key_count: 0,
        epoch,
        physical_offset,
        store_time_ms,
        queue: None,
        payload_length: length - HEADER_BYTES as u32,
        queue_offset: 0,
        tag_hash: 0,
        mark: 0,
    };
    out.extend_from_slice(&header.to_bytes(0));
    seal(&mut out[start..], log);
}

fn seal(record: &mut [u8], log: Seal) {
    let crc = crc32c::crc32c_append(log.0, &record[CRC_COVERS_FROM..]);
    record[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// Decodes the record of `log` that starts at `bytes[0]`, found at `physical_offset`. `bytes` may reach further.
pub(crate) fn decode(bytes: &[u8], physical_offset: u64, log: Seal) -> Result<Header, Invalid> {
    let Some(head) = bytes.first_chunk::<HEADER_BYTES>() else { return Err(Invalid::Length(0)) };
    let covered = checked_bytes(head, physical_offset, bytes.len() as u64)?;
    decode_checked(&bytes[..covered], log)
}

/// How many bytes of the record with this header its checksum is about. `room` are those that it may have in all.
pub(crate) fn checked_bytes(
    head: &[u8; HEADER_BYTES],
    physical_offset: u64,
    room: u64,
) -> Result<usize, Invalid> {
    let length = u32_at(head, 0);
    let length_bytes = length as usize;
    if length_bytes < HEADER_BYTES || !length_bytes.is_multiple_of(ALIGN) || u64::from(length) > room {
        return Err(Invalid::Length(length));
    }
    let own_offset = u64_at(head, OWN_OFFSET_AT);
    if own_offset != physical_offset {
        return Err(Invalid::Offset(own_offset));
    }
    // What lies under a filler is not its content: it may be as long as a segment.
    Ok(if matches!(head[9], BLANK | LOST) { HEADER_BYTES } else { length_bytes })
}

/// The length that a header names, whatever it is worth.
pub(crate) fn length_of(head: &[u8; HEADER_BYTES]) -> u32 {
    u32_at(head, 0)
}

/// Decodes a record of which only the part that its checksum is about is there, see [`checked_bytes`].
pub(crate) fn decode_checked(covered: &[u8], log: Seal) -> Result<Header, Invalid> {
    let Some(head) = covered.first_chunk::<HEADER_BYTES>() else { return Err(Invalid::Length(0)) };
    if crc32c::crc32c_append(log.0, &covered[CRC_COVERS_FROM..]) != u32_at(head, 4) {
        return Err(Invalid::Checksum);
    }
    Header::from_bytes(head)
}

/// Decodes a header found at `physical_offset` without the record behind it, so without its checksum.
pub(crate) fn peek(bytes: &[u8], physical_offset: u64) -> Result<Header, Invalid> {
    let head = bytes.first_chunk::<HEADER_BYTES>().ok_or(Invalid::Length(0))?;
    match u64_at(head, 16) {
        own if own == physical_offset => Header::from_bytes(head),
        other => Err(Invalid::Offset(other)),
    }
}

/// Decodes the record that fills `bytes`, without copying its payload.
pub(crate) fn decode_record(bytes: &Bytes, physical_offset: u64, log: Seal) -> Result<Record, Invalid> {
    let header = decode(bytes, physical_offset, log)?;
    if header.length as usize != bytes.len() {
        return Err(Invalid::Length(header.length));
    }
    header.record(bytes)
}

impl Header {
    fn to_bytes(self, padding: u16) -> [u8; HEADER_BYTES] {
        let flushed_before = if self.flushed_before { FLUSHED_BEFORE } else { 0 };
        let flags = padding | flushed_before | (self.key_count << KEYS_SHIFT);
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&self.length.to_le_bytes());
        bytes[8] = VERSION;
        bytes[9] = self.content.code();
        bytes[10..12].copy_from_slice(&flags.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.physical_offset.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.store_time_ms.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.queue.map_or(NO_QUEUE, |queue| queue.0).to_le_bytes());
        bytes[36..40].copy_from_slice(&self.payload_length.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.queue_offset.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.tag_hash.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.mark.to_le_bytes());
        bytes
    }

    fn from_bytes(head: &[u8; HEADER_BYTES]) -> Result<Self, Invalid> {
        if head[8] != VERSION {
            return Err(Invalid::Version(head[8]));
        }
        let content = match head[9] {
            BLANK => Content::Blank,
            LOST => Content::Lost,
            other => Content::Record(RecordKind::try_from(other)?),
        };
        let (length, payload_length) = (u32_at(head, 0), u32_at(head, 36));
        let flags = u16::from_le_bytes([head[10], head[11]]);
        let (padding, key_count) = (u64::from(flags & PADDING_MASK), flags >> KEYS_SHIFT);
        let keys_bytes = u64::from(key_count) * KEY_BYTES as u64;
        let sum = HEADER_BYTES as u64 + u64::from(payload_length) + padding + keys_bytes;
        if sum != u64::from(length) {
            // The checksum of a filler does not cover its length, which says where the log goes on.
            let is_record = matches!(content, Content::Record(_));
            return Err(if is_record { Invalid::Flags(flags) } else { Invalid::Length(length) });
        }
        let queue = u32_at(head, 32);
        Ok(Self {
            length,
            content,
            flushed_before: flags & FLUSHED_BEFORE != 0,
            key_count,
            epoch: u32_at(head, 12),
            physical_offset: u64_at(head, 16),
            store_time_ms: u64_at(head, 24),
            queue: (queue != NO_QUEUE).then_some(QueueNumber(queue)),
            payload_length,
            queue_offset: u64_at(head, 40),
            tag_hash: u64_at(head, 48),
            mark: u64_at(head, 56),
        })
    }

    /// Physical offset behind it.
    pub(crate) fn end(&self) -> u64 {
        self.physical_offset + u64::from(self.length)
    }

    /// The keys of the record this is the header of; `bytes` starts with it.
    pub(crate) fn keys<'a>(&self, bytes: &'a [u8]) -> impl Iterator<Item = u64> + use<'a> {
        let end = self.length as usize;
        let keys = &bytes[end - usize::from(self.key_count) * KEY_BYTES..end];
        keys.chunks_exact(KEY_BYTES).map(|key| u64::from_le_bytes(key.try_into().expect("eight bytes")))
    }

    /// The record this is the header of; `bytes` starts with it.
    pub(crate) fn record(&self, bytes: &Bytes) -> Result<Record, Invalid> {
        let kind = match self.content {
            Content::Record(kind) => kind,
            Content::Blank => return Err(Invalid::Blank),
            Content::Lost => return Err(Invalid::Lost),
        };
        Ok(Record {
            kind,
            epoch: self.epoch,
            physical_offset: PhysicalOffset(self.physical_offset),
            store_time_ms: self.store_time_ms,
            queue: self.queue,
            queue_offset: QueueOffset(self.queue_offset),
            tag_hash: self.tag_hash,
            mark: self.mark,
            payload: bytes.slice(HEADER_BYTES..HEADER_BYTES + self.payload_length as usize),
        })
    }
}

fn u32_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes of a fixed array"))
}

fn u64_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes of a fixed array"))
}
