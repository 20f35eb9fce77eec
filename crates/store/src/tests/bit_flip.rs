//! Bit rot: one bit in every byte of a segment of 256 KiB and of every other file. What is hit is found when it is read,
//! hides nothing else, and stops a start only where nothing else would do (the identity).
//!
//! Every byte of the segment is put before the scan that a start does; the store is opened anew for every byte of a
//! header and for a sample of the others. `KARMAN_BIT_FLIPS=all` opens it for each of the 262,144 bytes,
//! `KARMAN_BIT_SEED=<n>` repeats a run.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use tempfile::TempDir;

use super::fault_disk::FaultDisk;
use super::handmade::{Handmade, Laid};
use super::support::*;
use crate::disk::SystemDisk;
use crate::recovery::scan::{Bounds, Verdict, judge, walk};
use crate::segment::Segment;
use crate::*;

const SEGMENT: u64 = 256 << 10;
const QUEUES: u64 = 4;
/// Every record with a queue has this key besides its own.
const COMMON_KEY: u64 = 0x0123_4567_89ab_cdef;
/// Bytes behind the headers for which a store is opened.
const SAMPLE: u64 = 1500;

fn own_key(number: usize) -> u64 {
    key_hash(9, &(number as u64).to_le_bytes())
}

/// Every kind of record, without and with payload, padding and keys, and a blank at the end of the segment.
fn draw(random: &mut Random, number: usize) -> NewRecord {
    let text = format!("{number} {}", "x".repeat(random.below(60) as usize));
    match random.below(6) {
        0 => other(RecordKind::Metadata, text),
        1 => other(RecordKind::Progress, text),
        kind => {
            let size =
                [0, random.below(900), random.below(900), random.below(9000)][random.below(4) as usize];
            let kind = if kind == 2 { RecordKind::DeadLetter } else { RecordKind::Message };
            // Text, as the projection wants it.
            let payload = vec![b'a' + (number % 26) as u8; size as usize];
            let queue = QueueNumber(random.below(QUEUES) as u32);
            let keys = vec![own_key(number), COMMON_KEY];
            NewRecord { kind, keys, tag_hash: random.below(3), ..message(queue, payload) }
        }
    }
}

/// A store that was closed twice, with what was appended to it: a segment of `length` bytes with its index file, one behind
/// it that ends every queue, two snapshots.
struct Closed {
    scratch: TempDir,
    laid: Vec<Laid>,
    blank: u64,
    length: u64,
}

impl Closed {
    fn new(random: &mut Random, length: u64) -> Self {
        let scratch = scratch_in_memory();
        let mut log = Handmade::new(scratch.path());
        let mut number = 0;
        while log.end() < length - 12_000 {
            log.add(draw(random, number), 1000 + number as u64 / 3);
            number += 1;
        }
        let blank = log.end();
        log.roll(length);
        let mut laid = log.finish(MIB);
        open_seen(scratch.path()).unwrap().0.close().unwrap();
        let (store, _) = open_seen(scratch.path()).unwrap();
        let last = (0..QUEUES).map(|queue| message(QueueNumber(queue as u32), "the last"));
        for record in last.chain([other(RecordKind::Metadata, "last")]) {
            number += 1;
            let record = NewRecord { keys: vec![own_key(number), COMMON_KEY], ..record };
            let appended = store.append(vec![record.clone()], Durability::Disk).unwrap().wait().unwrap();
            laid.push(Laid {
                at: appended.physical_offset.0,
                size: record.encoded_bytes() as u32,
                queue_offset: appended.queue_offset.0,
                time_ms: appended.store_time_ms,
                record,
            });
        }
        store.close().unwrap();
        assert_eq!(laid[laid.len() - 5].at, length, "the second segment is in use");
        Self { scratch, laid, blank, length }
    }

    /// The record that a byte of the log belongs to.
    fn record_at(&self, at: u64) -> Option<usize> {
        self.laid.iter().position(|laid| (laid.at..laid.end()).contains(&at))
    }

    /// Everything must be as it was appended but for the record that the byte of the log at `flipped` belongs to.
    fn check(&self, directory: &Path, flipped: Option<u64>) -> Result<(), String> {
        let (store, seen) = open_seen(directory).map_err(|error| format!("it does not open: {error}"))?;
        let hit = flipped.and_then(|at| self.record_at(at));
        let blank = flipped.map(|_| (self.blank, self.length));
        let may_be_lost = hit.map(|hit| (self.laid[hit].at, self.laid[hit].end())).or(blank);
        let lost = store.damage();
        if lost.iter().any(|lost| Some((lost.from, lost.to)) != may_be_lost) {
            return Err(format!("{lost:?} is called damaged"));
        }
        for (number, laid) in self.laid.iter().enumerate() {
            let found = store.record(PhysicalOffset(laid.at), laid.size);
            match found {
                Err(ReadError::Lost { from, to })
                    if hit == Some(number) && (from, to) == (laid.at, laid.end()) => {}
                Ok(found) if hit != Some(number) && is_it(&found, laid) => {}
                found => return Err(format!("record {number} reads as {found:?}")),
            }
        }
        self.check_queues(&store, hit)?;
        self.check_keys(&store, hit)?;
        self.check_projection(&seen, hit)
    }

    fn check_queues(&self, store: &Store, hit: Option<usize>) -> Result<(), String> {
        for queue in (0..QUEUES as u32).map(QueueNumber) {
            let own: Vec<_> =
                (0..self.laid.len()).filter(|&number| self.laid[number].queue() == Some(queue)).collect();
            let range = store.queue_range(queue);
            // When its first record is lost, only an index file can say that there was one.
            let first = u64::from(hit == Some(own[0]) && range.start == 1);
            if range != (first..own.len() as u64) {
                return Err(format!("{queue:?} has {range:?}"));
            }
            let own = &own[first as usize..];
            let mut entries = Vec::new();
            again(|| store.entries(queue, QueueOffset(first), usize::MAX, &mut entries))?;
            for (&number, entry) in own.iter().zip(&entries) {
                let laid = &self.laid[number];
                let is_right = (entry.physical_offset.0, entry.size, entry.tag_hash)
                    == (laid.at, laid.size, laid.record.tag_hash);
                let may_be_lost = hit == Some(number) && entry.is_lost();
                if !is_right && !may_be_lost {
                    return Err(format!("{entry:?} instead of {laid:?}"));
                }
            }
            let lost = hit.filter(|hit| own.contains(hit) && entries[0].size > 0);
            let counted = again(|| store.count_by_tags(queue, 0..u64::MAX, &[]))?;
            if entries.len() != own.len() || counted + u64::from(lost.is_some()) < own.len() as u64 {
                return Err(format!("{} entries and {counted} counted in {queue:?}", entries.len()));
            }
            self.check_times(store, queue, own, hit)?;
        }
        Ok(())
    }

    fn check_times(
        &self,
        store: &Store,
        queue: QueueNumber,
        own: &[usize],
        hit: Option<usize>,
    ) -> Result<(), String> {
        for &number in own.iter().step_by(7) {
            let time = self.laid[number].time_ms;
            let later = own.iter().filter(|&&other| self.laid[other].time_ms >= time);
            let [any, intact] = [later.clone().next(), later.clone().find(|other| hit != Some(**other))]
                .map(|found| found.map(|found| self.laid[*found].queue_offset));
            let found = Some(again(|| store.offset_by_time(queue, time))?.0);
            if found != any && found != intact {
                return Err(format!("{queue:?} reaches time {time} at {found:?} instead of {any:?}"));
            }
        }
        Ok(())
    }

    fn check_keys(&self, store: &Store, hit: Option<usize>) -> Result<(), String> {
        let find = |key: u64| {
            let mut found = Vec::new();
            again(|| {
                found.clear();
                store.find(key, 0..u64::MAX, usize::MAX >> 1, &mut found)
            })?;
            Ok::<_, String>(found.iter().map(|record| record.physical_offset.0).collect::<Vec<_>>())
        };
        let intact = self.laid.iter().enumerate().rev().filter(|(number, _)| hit != Some(*number));
        let keyed = intact.filter(|(_, laid)| laid.record.keys.contains(&COMMON_KEY));
        let expected: Vec<_> = keyed.map(|(_, laid)| laid.at).collect();
        let found = find(COMMON_KEY)?;
        if found != expected {
            return Err(format!("{} records have the common key instead of {}", found.len(), expected.len()));
        }
        for laid in self.laid.iter().filter(|laid| !laid.record.keys.is_empty()).step_by(9) {
            let found = find(laid.record.keys[0])?;
            if found != [laid.at] && !(found.is_empty() && hit_is(hit, &self.laid, laid)) {
                return Err(format!("{found:?} has the key of {laid:?}"));
            }
        }
        Ok(())
    }

    /// Of what is lost a snapshot may know.
    fn check_projection(&self, seen: &Seen, hit: Option<usize>) -> Result<(), String> {
        let mut found = seen.payloads.lock().clone();
        let projected = self.laid.iter().filter(|laid| laid.record.kind != RecordKind::Message);
        let mut expected: BTreeMap<u64, Vec<u8>> =
            projected.map(|laid| (laid.at, laid.record.payload.to_vec())).collect();
        if let Some(hit) = hit {
            let at = self.laid[hit].at;
            if !found.contains_key(&at) {
                expected.remove(&at);
            }
        }
        found.retain(|at, payload| expected.get(at) != Some(payload));
        match found.len() {
            0 if seen.payloads.lock().len() == expected.len() => Ok(()),
            wrong => Err(format!("the projection has seen {wrong} records that were not so appended")),
        }
    }
}

fn hit_is(hit: Option<usize>, all: &[Laid], laid: &Laid) -> bool {
    hit.is_some_and(|hit| all[hit].at == laid.at)
}

fn is_it(found: &Record, laid: &Laid) -> bool {
    let Laid { at, queue_offset, time_ms, record, .. } = laid;
    (found.physical_offset.0, found.queue_offset.0, found.store_time_ms) == (*at, *queue_offset, *time_ms)
        && (found.kind, found.queue, found.tag_hash) == (record.kind, record.queue, record.tag_hash)
        && found.payload == record.payload
}

fn open_seen(directory: &Path) -> Result<(Store, Arc<Seen>), OpenError> {
    let (disk, seen) = (Arc::new(FaultDisk::default()), Arc::new(Seen::default()));
    let store = Store::open_on(disk, config(directory), vec![seen.clone()], Arc::new(Silent))?;
    Ok((store, seen))
}

/// A damaged part of an index file is built anew while the reader tries again.
fn again<T>(mut read: impl FnMut() -> Result<T, ReadError>) -> Result<T, String> {
    let deadline = Instant::now() + std::time::Duration::from_secs(20);
    loop {
        match read() {
            Err(ReadError::BadIndex { .. }) if Instant::now() < deadline => thread::yield_now(),
            other => return other.map_err(|error| error.to_string()),
        }
    }
}

/// A copy of a store's files that is put back after each try.
struct Copy {
    scratch: TempDir,
    files: Vec<(PathBuf, Vec<u8>)>,
}

impl Copy {
    fn of(directory: &Path, without: &[&str]) -> Self {
        let scratch = scratch_in_memory();
        let mut files = Vec::new();
        for part in ["", "commitlog", "snapshot"] {
            fs::create_dir_all(scratch.path().join(part)).unwrap();
            for file in fs::read_dir(directory.join(part)).unwrap().map(|file| file.unwrap().path()) {
                let name = Path::new(part).join(file.file_name().unwrap());
                if file.is_file() && !without.iter().any(|end| name.to_str().unwrap().ends_with(end)) {
                    files.push((name, fs::read(file).unwrap()));
                }
            }
        }
        let copy = Self { scratch, files };
        for (name, bytes) in &copy.files {
            // Zeros at the end are left out, as in blocks that were never written: a start does not read those.
            let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            fs::write(copy.path(name), &bytes[..used]).unwrap();
            let file = OpenOptions::new().write(true).open(copy.path(name)).unwrap();
            file.set_len(bytes.len() as u64).unwrap();
        }
        copy
    }

    fn path(&self, name: &Path) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn flip(&self, name: &Path, at: u64, bit: u8) {
        let file = OpenOptions::new().read(true).write(true).open(self.path(name)).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1 << bit], at).unwrap();
    }

    /// Makes the small files what they were. The segments must not have been changed by others: that is checked.
    fn restore(&self) -> Result<(), String> {
        for part in ["", "commitlog", "snapshot"] {
            for file in fs::read_dir(self.path(Path::new(part))).unwrap().map(|file| file.unwrap().path()) {
                let own = file.strip_prefix(self.scratch.path()).unwrap();
                if file.is_file() && !self.files.iter().any(|(name, _)| name == own) {
                    fs::remove_file(&file).unwrap();
                }
            }
        }
        for (name, bytes) in &self.files {
            let path = self.path(name);
            if name.extension().is_none_or(|extension| extension != "log") {
                fs::write(path, bytes).unwrap();
            } else if bytes.len() as u64 != MIB && fs::read(path).unwrap() != *bytes {
                return Err("the segment was changed".into());
            }
        }
        Ok(())
    }
}

fn seed() -> u64 {
    let given =
        std::env::var("KARMAN_BIT_SEED").ok().map(|text| text.parse().expect("KARMAN_BIT_SEED is a number"));
    let seed = given.unwrap_or_else(|| {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64
    });
    println!("KARMAN_BIT_SEED={seed} repeats this run");
    seed
}

/// Spreads `work` over the processors; each begins with what `start` gives.
fn spread<S, W: Sync>(work: &[W], start: impl Fn() -> S + Sync, each: impl Fn(&mut S, &W) + Sync) {
    let threads = thread::available_parallelism().unwrap().get();
    thread::scope(|scope| {
        for first in 0..threads {
            let (start, each) = (&start, &each);
            scope.spawn(move || {
                let mut state = start();
                work.iter().skip(first).step_by(threads).for_each(|one| each(&mut state, one));
            });
        }
    });
}

#[test]
fn the_scan_of_a_start_finds_every_flipped_byte_of_a_segment_and_goes_on_right_behind_it() {
    let mut random = Random::quiet(seed());
    let closed = Closed::new(&mut random, SEGMENT);
    let flips: Vec<(u64, u8)> = (0..SEGMENT).map(|at| (at, random.below(8) as u8)).collect();
    let log = seal_of(closed.scratch.path());
    let open = || {
        let copy = Copy::of(closed.scratch.path(), &[]);
        let segments = [0, SEGMENT].map(|base| {
            let path = segment_path(copy.scratch.path(), base);
            Arc::new(Segment::open(Arc::new(SystemDisk), path, base).unwrap())
        });
        let file = OpenOptions::new().write(true).open(segments[0].path()).unwrap();
        (copy, file, segments)
    };
    spread(&flips, open, |(_copy, file, [segment, later]), &(at, bit)| {
        let later = VecDeque::from([later.clone()]);
        // What the map shows is what the file holds.
        let was = segment.slice(at..at + 1)[0];
        file.write_all_at(&[was ^ 1 << bit], at).unwrap();
        let hit = closed.record_at(at);
        let from = hit.map_or(closed.blank, |hit| closed.laid[hit].at);
        let to = hit.map_or(SEGMENT, |hit| closed.laid[hit].end());
        match walk(segment, from, log, |header, _| assert_eq!(header.end(), SEGMENT)) {
            Ok(()) => {
                assert!(at >= closed.blank + HEADER_BYTES as u64, "bit {bit} of byte {at} is not found")
            }
            Err(stopped) => {
                assert_eq!(stopped.at, from, "bit {bit} of byte {at}");
                // What is known only from the record, from the later segment, from a cursor.
                for durable_below in [0, SEGMENT] {
                    let bounds = Bounds { durable_below, limit: u64::MAX, follows: false };
                    let verdict = judge(segment, stopped, &later, log, bounds).unwrap();
                    assert_eq!(verdict, Verdict::Damaged { to }, "bit {bit} of byte {at}");
                    // Without the cursor all that follows is searched for a mark: that the last of them shows.
                    if closed.laid.len() - 20 > hit.unwrap_or(0) && at % 64 != 0 {
                        break;
                    }
                }
            }
        }
        file.write_all_at(&[was], at).unwrap();
    });
}

#[test]
fn a_store_with_a_flipped_bit_in_a_segment_opens_and_lacks_at_most_the_record_that_was_hit() {
    let mut random = Random::quiet(seed());
    let closed = Closed::new(&mut random, SEGMENT);
    let all = match std::env::var("KARMAN_BIT_FLIPS") {
        Err(_) => false,
        Ok(text) => {
            assert_eq!(text, "all", "KARMAN_BIT_FLIPS is {text:?}");
            true
        }
    };
    let headers: Vec<u64> = closed.laid.iter().map(|laid| laid.at).chain([closed.blank]).collect();
    let in_header =
        |at: u64| headers.iter().any(|header| (*header..header + HEADER_BYTES as u64).contains(&at));
    let mut flips: Vec<(u64, u8)> = (0..SEGMENT).map(|at| (at, random.below(8) as u8)).collect();
    flips.retain(|(at, _)| all || in_header(*at) || random.below(SEGMENT) < SAMPLE);
    // Everything is there; the index files are not; nothing but the log is.
    let modes: [&[&str]; 3] = [&[], &[".idx"], &[".idx", ".snap", "cursor"]];
    let started = Instant::now();
    let open = || modes.map(|without| Copy::of(closed.scratch.path(), without));
    spread(&flips, open, |copies, &(at, bit)| {
        let copy = &copies[(at % 3) as usize];
        let name = Path::new("commitlog").join(segment::file_name(0, "log"));
        copy.flip(&name, at, bit);
        let mut checked = closed.check(copy.scratch.path(), Some(at));
        copy.flip(&name, at, bit);
        checked = checked.and_then(|()| copy.restore());
        checked.unwrap_or_else(|wrong| {
            panic!("bit {bit} of byte {at}, without {:?}: {wrong}", modes[(at % 3) as usize])
        });
    });
    println!("{} flips in {:?}", flips.len(), started.elapsed());
}

/// Every byte of every file that is not the log: it is built anew, or another is used, or the start is refused.
#[test]
fn a_flipped_bit_in_any_other_file_changes_no_answer() {
    let mut random = Random::quiet(seed());
    let closed = Closed::new(&mut random, 40 << 10);
    let open = || Copy::of(closed.scratch.path(), &[]);
    let files: Vec<_> =
        open().files.into_iter().filter(|(name, _)| name.extension().is_none_or(|e| e != "log")).collect();
    assert_eq!(files.len(), 6, "identity, cursor, lock, index file, two snapshots");
    let flips: Vec<_> = files
        .iter()
        .flat_map(|(name, bytes)| (0..bytes.len() as u64).map(move |at| (name, at)))
        .map(|(name, at)| (name, at, random.below(8) as u8))
        .collect();
    let started = Instant::now();
    spread(&flips, open, |copy, &(name, at, bit)| {
        copy.flip(name, at, bit);
        let checked = match name.to_str().unwrap() {
            "identity" => match open_seen(copy.scratch.path()) {
                Err(error @ OpenError::NotAStore { .. }) if error.to_string().contains("identity") => Ok(()),
                Err(error @ OpenError::NotAStore { .. }) if error.to_string().contains("version") => Ok(()),
                other => Err(format!("{:?}", other.map(drop))),
            },
            _ => closed.check(copy.scratch.path(), None),
        };
        let checked = checked.and_then(|()| copy.restore());
        checked.unwrap_or_else(|wrong| panic!("bit {bit} of byte {at} of {}: {wrong}", name.display()));
    });
    println!("{} flips in {:?}", flips.len(), started.elapsed());
}

/// What is written into the lock file, or its absence, means nothing; files of another name neither.
#[test]
fn the_lock_file_holds_nothing() {
    let closed = Closed::new(&mut Random::quiet(seed()), 40 << 10);
    let lock = closed.scratch.path().join("lock");
    fs::write(&lock, "anything").unwrap();
    closed.check(closed.scratch.path(), None).unwrap();
    fs::remove_file(&lock).unwrap();
    closed.check(closed.scratch.path(), None).unwrap();
}
