//! A run that uses all of a store, several times opened and stopped, and what must be found after it: at any time the
//! content of the store is a prefix of what was appended, and no shorter than what was promised.

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use super::fault_disk::FaultDisk;
use super::support::*;
use crate::*;

const QUEUES: u32 = 5;

/// A record by the order in which it was appended.
type Number = usize;

#[derive(Debug)]
pub(super) struct MixedRun {
    pub(super) disk: Arc<FaultDisk>,
    pub(super) directory: TempDir,
    pub(super) random: Random,
    /// All that was ever appended or tried to.
    records: Vec<NewRecord>,
    generations: Vec<Generation>,
    /// Of the store that was opened last.
    seen: Arc<Seen>,
}

/// From one open to the next.
#[derive(Debug)]
struct Generation {
    /// What the open found, then what was appended.
    log: Vec<Number>,
    found: usize,
    /// Number of the event behind the open.
    opened_at: usize,
    acknowledged: Vec<Acknowledged>,
}

#[derive(Debug)]
struct Acknowledged {
    /// Number of the event behind the answer.
    at: usize,
    durability: Durability,
    first: Number,
    last: Number,
    physical_offset: PhysicalOffset,
}

/// What a store holds.
#[derive(Debug, Default, PartialEq, Eq)]
struct Content {
    queues: Vec<Vec<Number>>,
    projected: Vec<Number>,
}

/// What an interruption may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// The process: what was written is there.
    Process,
    /// The power, behind this many events.
    Power(usize),
}

impl MixedRun {
    pub(super) fn new(disk: FaultDisk, seed: u64) -> Self {
        let random = Random::quiet(seed);
        let (records, generations, seen) = (Vec::new(), Vec::new(), Arc::default());
        Self { disk: Arc::new(disk), directory: scratch_in_memory(), random, records, generations, seen }
    }

    /// Opens the store and holds what is found against what must be there after the end of a process.
    pub(super) fn open(&mut self) -> Result<Store, OpenError> {
        self.seen = Arc::default();
        // Snapshots as often as can be, and no flush that would happen to come before them.
        let config =
            StoreConfig { snapshot_interval: Duration::from_millis(2), ..config(self.directory.path()) };
        let store = Store::open_on(self.disk.clone(), config, vec![self.seen.clone()], Arc::new(Silent))?;
        let count = self.check(&store, &self.seen, Cut::Process).unwrap_or_else(|lost| panic!("{lost}"));
        let log = self.generations.last().map_or(Vec::new(), |last| last.log[..count].to_vec());
        let opened_at = self.disk.position();
        self.generations.push(Generation { log, found: count, opened_at, acknowledged: Vec::new() });
        Ok(store)
    }

    /// Appends `count` times, up to six at once. When the store stops it does too and says why.
    pub(super) fn append(&mut self, store: &Store, count: usize) -> Option<Arc<str>> {
        let mut waiting = VecDeque::new();
        let mut poison = None;
        for _ in 0..count {
            let first = self.records.len();
            let batch = self.draw_batch();
            self.records.extend(batch.iter().cloned());
            self.generation().log.extend(first..first + batch.len());
            let durability = [Durability::Memory, Durability::Disk][self.random.below(2) as usize];
            let append = store.append(batch, durability);
            waiting.push_back((first..self.records.len(), durability, append));
            if self.random.below(10) == 0 {
                // As the maintenance thread does from time to time. An error has poisoned the store.
                let _ = store.log.advance_cursor();
            }
            while waiting.len() as u64 > self.random.below(6) {
                let (numbers, durability, append) = waiting.pop_front().expect("it is not empty");
                self.take_answer(&mut poison, numbers, durability, append.and_then(Append::wait));
            }
            if poison.is_some() {
                break;
            }
        }
        for (numbers, durability, append) in waiting {
            self.take_answer(&mut poison, numbers, durability, append.and_then(Append::wait));
        }
        if let Some(reason) = &poison {
            for durability in [Durability::Memory, Durability::Disk] {
                let late = put(store, "late", durability);
                assert!(matches!(&late, Err(AppendError::Poisoned(why)) if why == reason), "{late:?}");
            }
        }
        poison
    }

    fn take_answer(
        &mut self,
        poison: &mut Option<Arc<str>>,
        numbers: std::ops::Range<Number>,
        durability: Durability,
        answer: Result<Appended, AppendError>,
    ) {
        let at = self.disk.position();
        match answer {
            Ok(Appended { physical_offset, .. }) => {
                // Those of class memory may have been answered before the flush that failed.
                let flushed = durability == Durability::Disk;
                assert!(poison.is_none() || !flushed, "flushed behind one that was not");
                let (first, last) = (numbers.start, numbers.end - 1);
                let acknowledged = Acknowledged { at, durability, first, last, physical_offset };
                self.generation().acknowledged.push(acknowledged);
            }
            Err(AppendError::DiskFull { .. }) => {
                self.generation().log.retain(|number| !numbers.contains(number));
            }
            Err(AppendError::Poisoned(reason)) => *poison = Some(reason),
            Err(other) => panic!("{other}"),
        }
    }

    /// Numbers of the events behind each open.
    pub(super) fn starts(&self) -> Vec<usize> {
        self.generations.iter().map(|generation| generation.opened_at).collect()
    }

    fn generation(&mut self) -> &mut Generation {
        self.generations.last_mut().expect("it was opened")
    }

    /// The records of one call.
    fn draw_batch(&mut self) -> Vec<NewRecord> {
        let random = &mut self.random;
        let queue = QueueNumber(random.below(u64::from(QUEUES)) as u32);
        let messages = random.below(10) < 7;
        let count = [1, 1, 1, 2, 5][random.below(5) as usize];
        let batch = (0..count).map(|index| {
            let size = match random.below(20) {
                0 if messages => 60_000 + random.below(60_000),
                1..5 if messages => random.below(9000),
                _ => random.below(400),
            };
            let number = self.records.len() + index;
            let payload = payload_of(number, size as usize);
            let record = match (messages, random.below(8)) {
                (true, 0) => NewRecord { kind: RecordKind::DeadLetter, ..message(queue, payload) },
                (true, _) => message(queue, payload),
                (false, 0..4) => other(RecordKind::Metadata, payload),
                (false, _) => other(RecordKind::Progress, payload),
            };
            NewRecord { keys: vec![key_of(number)], ..record }
        });
        batch.collect()
    }

    /// What the store holds, if all of it is what was appended.
    fn content(&self, store: &Store, seen: &Seen) -> Result<(Content, HashMap<Number, u64>), String> {
        let mut content = Content { queues: vec![Vec::new(); QUEUES as usize], projected: Vec::new() };
        let mut places = HashMap::new();
        let mut entries = Vec::new();
        for (queue, found) in content.queues.iter_mut().enumerate() {
            let queue = QueueNumber(queue as u32);
            entries.clear();
            store.entries(queue, QueueOffset(0), usize::MAX, &mut entries).map_err(text)?;
            for entry in &entries {
                let record = store.record(entry.physical_offset, entry.size).map_err(text)?;
                let number = self.number_of(&record.payload)?;
                let appended = &self.records[number];
                if (record.kind, record.queue) != (appended.kind, appended.queue) {
                    return Err(format!("record {number} was appended as {appended:?}"));
                }
                places.insert(number, record.physical_offset.0);
                found.push(number);
            }
        }
        for (at, payload) in seen.payloads.lock().iter() {
            let number = self.number_of(payload)?;
            places.insert(number, *at);
            content.projected.push(number);
        }
        for (number, at) in places.iter().filter(|(number, _)| *number % 8 == 0) {
            let mut found = Vec::new();
            store.find(key_of(*number), 0..u64::MAX, 2, &mut found).map_err(text)?;
            if !matches!(&found[..], [one] if one.physical_offset.0 == *at) {
                return Err(format!("record {number} at {at} is not found by its key: {found:?}"));
            }
        }
        Ok((content, places))
    }

    fn number_of(&self, payload: &[u8]) -> Result<Number, String> {
        let number = std::str::from_utf8(&payload[..10.min(payload.len())]).ok();
        let number = number.and_then(|digits| digits.parse::<Number>().ok());
        let known =
            number.filter(|number| self.records.get(*number).is_some_and(|own| own.payload == *payload));
        known.ok_or_else(|| format!("{} bytes that were never appended", payload.len()))
    }

    /// Holds the content of a store against what may and must be there; returns how many records of the log there are.
    fn check(&self, store: &Store, seen: &Seen, cut: Cut) -> Result<usize, String> {
        let (content, places) = self.content(store, seen)?;
        let count = places.len();
        let Some(generation) = self.generation_at(cut) else {
            return if count == 0 { Ok(0) } else { Err(format!("{count} records in a new store")) };
        };
        if !store.damage().is_empty() {
            return Err(format!("a cut taken for damage: {:?}", store.damage()));
        }
        let log = &generation.log;
        if count > log.len() || content != self.content_of(&log[..count]) {
            return Err(format!("{count} records that are no prefix of the log: {content:?}"));
        }
        if count < generation.found {
            return Err(format!("{count} records; {} had been served", generation.found));
        }
        for Acknowledged { at, durability, first, last, physical_offset } in &generation.acknowledged {
            let promised = match cut {
                Cut::Process => true,
                Cut::Power(point) => *at <= point && *durability == Durability::Disk,
            };
            if promised {
                if log[..count].last().is_none_or(|newest| newest < last) {
                    return Err(format!("{count} records; {last} was acknowledged as {durability:?}"));
                }
                if places[first] != physical_offset.0 {
                    return Err(format!("record {first} has moved to {}", places[first]));
                }
            }
        }
        Ok(count)
    }

    /// The last that was open when it was cut.
    fn generation_at(&self, cut: Cut) -> Option<&Generation> {
        match cut {
            Cut::Process => self.generations.last(),
            Cut::Power(point) => self.generations.iter().rfind(|generation| generation.opened_at <= point),
        }
    }

    fn content_of(&self, log: &[Number]) -> Content {
        let mut content = Content { queues: vec![Vec::new(); QUEUES as usize], projected: Vec::new() };
        for number in log {
            let NewRecord { kind, queue, .. } = &self.records[*number];
            if let Some(queue) = queue {
                content.queues[queue.0 as usize].push(*number);
            }
            if *kind != RecordKind::Message {
                content.projected.push(*number);
            }
        }
        content
    }

    /// Opens a copy of the store as it was left behind in `directory`, checks it, appends, and, if `twice`, checks what
    /// the next start finds.
    pub(super) fn check_copy(&self, directory: &Path, cut: Cut, twice: bool) -> Result<(), String> {
        let open = || {
            let seen = Arc::new(Seen::default());
            let disk = Arc::new(FaultDisk::default());
            let store = Store::open_on(disk, config(directory), vec![seen.clone()], Arc::new(Silent));
            store.map(|store| (store, seen)).map_err(|error| format!("it does not open: {error}"))
        };
        let (store, seen) = open()?;
        let count = self.check(&store, &seen, cut)?;
        // In a queue of its own, where the check does not look.
        put_in(&store, QueueNumber(QUEUES), "goes on", Durability::Disk).map_err(text)?;
        if read_all(&store, QueueNumber(QUEUES)) != ["goes on"] {
            return Err("what was appended cannot be read".into());
        }
        if twice {
            drop(store);
            let (store, seen) = open()?;
            let again = self.check(&store, &seen, cut)?;
            if again != count || read_all(&store, QueueNumber(QUEUES)) != ["goes on"] {
                return Err(format!("{count} records, {again} after the next start"));
            }
        }
        Ok(())
    }

    /// The store that was opened last still reads what it flushed.
    pub(super) fn check_reads(&self, store: &Store) -> Result<(), String> {
        self.check(store, &self.seen, Cut::Power(self.disk.position())).map(drop)
    }

    /// What was written is there: the store as the end of the process left it.
    pub(super) fn check_files(&self) -> Result<(), String> {
        self.check_copy(self.directory.path(), Cut::Process, false)
    }
}

fn text(error: impl ToString) -> String {
    error.to_string()
}

fn key_of(number: Number) -> u64 {
    key_hash(1, &number.to_le_bytes())
}

/// Ten digits and a filler that depends on them.
fn payload_of(number: Number, size: usize) -> String {
    let filler = (b'a' + (number % 26) as u8) as char;
    format!("{number:010}{}", filler.to_string().repeat(size))
}
