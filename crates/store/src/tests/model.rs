//! The index against a model that reads everything from front to back: built live as the log writer and the maintenance
//! thread do it, and rebuilt from the bytes of the log as recovery does it.
//!
//! `KARMAN_MODEL_CASES=<n>` draws more than 10,000 histories, `KARMAN_MODEL_SEED=<n>` repeats a run.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

use super::support::*;
use crate::directory::LogId;
use crate::index::QueueIndex;
use crate::index::contents::Contents;
use crate::index::sealed::{self, IndexedSegment, SealedIndex};
use crate::record::{self, Place, Seal};
use crate::*;

const LOG: LogId = LogId(*b"a log of a model");
const SEAL: Seal = Seal(4711);
/// Room for every gap that a history can have; only the records of it exist.
const SEGMENT: u64 = 64 << 20;
const QUEUES: u32 = 3;
const KEYS: u64 = 5;

#[derive(Debug, Clone)]
enum Step {
    Append {
        queue: Option<u32>,
        tag: u64,
        keys: Vec<u64>,
        payload: usize,
        /// Bytes of other records in front of it: time marks lie far apart.
        gap: u64,
        later_ms: u64,
    },
    /// The next record lies in the next segment.
    Roll,
    /// The maintenance thread writes the index file of the oldest filled segment.
    Seal,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let queue = prop::option::weighted(0.85, 0..QUEUES);
    let keys = prop::collection::vec(0..KEYS, 0..4);
    let gap = prop_oneof![3 => Just(0), 1 => (0..60_000_u64).prop_map(|words| words * 8)];
    let later = prop_oneof![2 => Just(0), 1 => 1..4_u64];
    let append = (queue, 0..3_u64, keys, 0..40_usize, gap, later).prop_map(
        |(queue, tag, keys, payload, gap, later_ms)| Step::Append {
            queue,
            tag,
            keys,
            payload,
            gap,
            later_ms,
        },
    );
    prop::collection::vec(prop_oneof![8 => append, 1 => Just(Step::Roll), 1 => Just(Step::Seal)], 0..30)
}

/// A record of the log, as it was appended.
#[derive(Debug)]
struct Known {
    at: u64,
    time_ms: u64,
    queue: Option<u32>,
    keys: Vec<u64>,
    entry: Entry,
    bytes: Bytes,
}

/// A history, the index it leaves, and all there is to know of it.
struct History {
    live: QueueIndex,
    known: Vec<Known>,
    /// Where segments start; the last is being written.
    bases: Vec<u64>,
    /// Filled and without index file.
    filled: VecDeque<u64>,
    files: BTreeMap<u64, Bytes>,
    ends: BTreeMap<u32, u64>,
}

fn about(base: u64) -> IndexedSegment {
    IndexedSegment { log: LOG, base, length: SEGMENT }
}

fn adopt(index: &QueueIndex, base: u64, contents: &mut Contents) -> Bytes {
    let bytes = Bytes::from(sealed::encode(about(base), contents));
    let sealed = SealedIndex::read(PathBuf::from("model.idx"), bytes.clone(), about(base)).unwrap();
    index.adopt(&Arc::new(sealed));
    bytes
}

impl History {
    fn of(steps: &[Step]) -> Self {
        let mut history = Self {
            live: QueueIndex::new(),
            known: Vec::new(),
            bases: vec![0],
            filled: VecDeque::new(),
            files: BTreeMap::new(),
            ends: BTreeMap::new(),
        };
        steps.iter().for_each(|step| history.take(step));
        history
    }

    fn take(&mut self, step: &Step) {
        let base = self.bases[self.bases.len() - 1];
        match step {
            Step::Append { queue, tag, keys, payload, gap, later_ms } => {
                let last = self
                    .known
                    .last()
                    .map_or((0, 1000), |last| (last.at + u64::from(last.entry.size), last.time_ms));
                let (at, time_ms) = (last.0.max(base) + gap, last.1 + later_ms);
                let kind = if queue.is_some() { RecordKind::Message } else { RecordKind::Progress };
                let record = NewRecord {
                    kind,
                    queue: queue.map(QueueNumber),
                    tag_hash: *tag,
                    mark: 0,
                    keys: keys.clone(),
                    payload: vec![7; *payload].into(),
                };
                self.append(base, at, time_ms, record);
            }
            Step::Roll => {
                self.filled.push_back(base);
                self.bases.push(base + SEGMENT);
            }
            Step::Seal => {
                if let Some(base) = self.filled.pop_front() {
                    let mut contents = self.live.contents_below(&(base..base + SEGMENT));
                    self.files.insert(base, adopt(&self.live, base, &mut contents));
                }
            }
        }
    }

    /// As the log writer does it.
    fn append(&mut self, base: u64, at: u64, time_ms: u64, record: NewRecord) {
        let next = record.queue.map(|queue| self.ends.entry(queue.0).or_default());
        let queue_offset = next.as_ref().map_or(0, |next| **next);
        let size = record.encoded_bytes() as u32;
        let entry = Entry { physical_offset: PhysicalOffset(at), size, tag_hash: record.tag_hash };
        self.live.unsealed.add(base, at, time_ms, &record.keys);
        if let (Some(next), Some(queue)) = (next, record.queue) {
            self.live.push(queue, queue_offset, [entry].into_iter());
            *next += 1;
        }
        let place = Place {
            physical_offset: at,
            queue_offset,
            store_time_ms: time_ms,
            flushed_before: false,
            epoch: 0,
        };
        let mut bytes = Vec::new();
        record::encode(&record, place, SEAL, &mut bytes);
        let (queue, keys) = (record.queue.map(|queue| queue.0), record.keys);
        self.known.push(Known { at, time_ms, queue, keys, entry, bytes: bytes.into() });
    }

    /// From the bytes of the log alone, as recovery does it: with index files for all segments below `sealed_below`, the
    /// rest in memory, as after a start on a full disk. Returns the files too.
    fn rebuilt(&self, sealed_below: u64) -> (QueueIndex, BTreeMap<u64, Bytes>) {
        let (index, mut files) = (QueueIndex::new(), BTreeMap::new());
        for &base in &self.bases {
            let mut contents = Contents::default();
            for known in self.known.iter().filter(|known| (base..base + SEGMENT).contains(&known.at)) {
                let header = record::decode(&known.bytes, known.at, SEAL).unwrap();
                contents.add(base, &header, &known.bytes, 0).unwrap();
            }
            if base < sealed_below {
                files.insert(base, adopt(&index, base, &mut contents));
            } else {
                index.keep(base, &contents).unwrap();
            }
        }
        (index, files)
    }

    fn own(&self, queue: u32) -> Vec<&Known> {
        self.known.iter().filter(|known| known.queue == Some(queue)).collect()
    }

    fn check(&self, index: &QueueIndex, random: &mut Random) -> Result<(), TestCaseError> {
        let ends: BTreeMap<u32, u64> = index.ends().into_iter().map(|(queue, end)| (queue.0, end)).collect();
        prop_assert_eq!(&ends, &self.ends);
        for queue in 0..=QUEUES {
            let own = self.own(queue);
            let number = QueueNumber(queue);
            prop_assert_eq!(index.range(number), 0..own.len() as u64);
            let (from, max) = (random.below(own.len() as u64 + 2), random.below(12) as usize);
            for (from, max) in [(0, usize::MAX), (from, max)] {
                let mut found = Vec::new();
                index.read(number, QueueOffset(from), max, &mut found).unwrap();
                let expected: Vec<_> =
                    own.iter().skip(from as usize).take(max).map(|known| known.entry).collect();
                prop_assert_eq!(found, expected, "{} entries from {} of queue {}", max, from, queue);
            }
            self.check_times(index, queue, &own)?;
        }
        (0..=KEYS).try_for_each(|key| self.check_key(index, key, random))
    }

    fn check_times(&self, index: &QueueIndex, queue: u32, own: &[&Known]) -> Result<(), TestCaseError> {
        let last = self.known.last().map_or(1000, |last| last.time_ms);
        for time_ms in 999..=last + 1 {
            let window = index.around_time(QueueNumber(queue), time_ms).unwrap();
            let time_of = |entry: &Entry| own.iter().find(|known| known.entry == *entry).unwrap().time_ms;
            let within = window.entries.iter().position(|entry| time_of(entry) >= time_ms);
            let found = within.map_or(window.or_else, |at| window.first + at as u64);
            let expected = own.iter().position(|known| known.time_ms >= time_ms).unwrap_or(own.len());
            prop_assert_eq!(found, expected as u64, "queue {} at {}", queue, time_ms);
        }
        Ok(())
    }

    /// As [`Store::find`] goes through memory and files.
    fn check_key(&self, index: &QueueIndex, key: u64, random: &mut Random) -> Result<(), TestCaseError> {
        let whole = self.bases.len() as u64 * SEGMENT;
        let from = random.below(whole);
        for range in [0..u64::MAX, from..from + random.below(whole), from..u64::MAX] {
            let mut found = index.unsealed.find(key, &range);
            for file in index.files().iter().rev() {
                found.extend(file.find(key, &range).unwrap());
            }
            // A key that a record has twice is one in a file.
            found.dedup();
            prop_assert_eq!(found, self.with_key(key, &range), "key {} in {:?}", key, range);
        }
        Ok(())
    }

    fn with_key(&self, key: u64, range: &Range<u64>) -> Vec<u64> {
        let keyed = self.known.iter().rev().filter(|known| known.keys.contains(&key));
        keyed.map(|known| known.at).filter(|at| range.contains(at)).collect()
    }
}

/// A number given by the environment; the current time else for seeds.
pub(super) fn given(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is {text:?}; it must be a number")))
}

pub(super) fn model_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = given("KARMAN_MODEL_SEED").unwrap_or(now.as_nanos() as u64);
    println!("KARMAN_MODEL_SEED={seed} repeats this run");
    seed
}

pub(super) fn model_cases() -> u32 {
    given("KARMAN_MODEL_CASES").unwrap_or(10_000) as u32
}

/// Runs `cases` of a property with what `seed` gives.
pub(super) fn for_all<S: Strategy>(
    seed: u64,
    cases: u32,
    strategy: S,
    property: impl Fn(S::Value) -> Result<(), TestCaseError>,
) {
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let run = TestRunner::new_with_rng(config, random).run(&strategy, property);
    run.unwrap_or_else(|failed| panic!("KARMAN_MODEL_SEED={seed}: {failed}"));
}

#[test]
fn an_index_rebuilt_from_the_log_is_the_live_one_and_both_are_what_a_linear_scan_finds() {
    for_all(model_seed(), model_cases(), (steps(), any::<u64>()), |(steps, seed)| {
        let history = History::of(&steps);
        let mut random = Random::quiet(seed);
        history.check(&history.live, &mut random)?;
        // Up to the last segment, which is always in memory.
        let all = history.bases[history.bases.len() - 1];
        let (rebuilt, files) = history.rebuilt(all);
        history.check(&rebuilt, &mut random)?;
        for (base, bytes) in &history.files {
            prop_assert_eq!(bytes, &files[base], "the index file of the segment at {}", base);
        }
        let some = random.below(history.bases.len() as u64) * SEGMENT;
        history.check(&history.rebuilt(some).0, &mut random)
    });
}

/// More keys than fit a chunk of those in memory.
#[test]
fn keys_are_found_in_every_chunk_of_a_segment_in_memory() {
    let index = QueueIndex::new();
    let mut known: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for at in (0..50).map(|number| number * 40_000) {
        let keys: Vec<u64> = (0..4095).map(|key| (key * at / 8) % 30_011).collect();
        index.unsealed.add(0, at, 1, &keys);
        keys.iter().for_each(|key| known.entry(*key).or_default().push(at));
    }
    for (key, places) in known.iter().step_by(53) {
        let found = index.unsealed.find(*key, &(40_000..u64::MAX));
        let expected: Vec<u64> = places.iter().rev().copied().filter(|at| *at > 0).collect();
        assert_eq!(found, expected, "key {key}");
    }
    assert_eq!(index.unsealed.of(0).0.len(), 50 * 4095);
}
