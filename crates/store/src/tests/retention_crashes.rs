//! Deletion is interrupted at every call, and by power cuts at any time: no start is refused, nothing that should be there
//! is missing, and nothing comes back as something else.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::device::{Device, Luck};
use super::fault_disk::{Event, FaultDisk};
use super::retention::{by_size, check_numbered, eventually_gone, fill, numbered, quick};
use super::support::*;
use crate::*;

const GONE: QueueNumber = QueueNumber(8);

pub(super) fn copy_all(from: &Path, to: &Path) {
    for part in ["", "commitlog", "snapshot"] {
        fs::create_dir_all(to.join(part)).unwrap();
        for entry in fs::read_dir(from.join(part)).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                fs::copy(entry.path(), to.join(part).join(entry.file_name())).unwrap();
            }
        }
    }
}

/// Nothing goes within a test.
fn keeps_all(directory: &Path) -> StoreConfig {
    StoreConfig { snapshot_interval_bytes: 400_000, ..config(directory) }
}

const IMAGES: u64 = 400;

fn is_removal(event: &Event) -> bool {
    matches!(event, Event::Remove { path } if path.extension().is_some_and(|kind| kind == "log"))
}

fn open_on(disk: &Arc<FaultDisk>, config: StoreConfig) -> Result<Store, OpenError> {
    let seen: Arc<dyn Projection> = Arc::new(Seen::default());
    Store::open_on(disk.clone(), config, vec![seen], Arc::new(Silent))
}

#[test]
fn a_deletion_that_ends_at_any_call_is_finished_by_the_next_start() {
    let full = scratch_in_memory();
    let disk = Arc::new(FaultDisk::default());
    let store =
        open_on(&disk, StoreConfig { flush_interval: Duration::from_millis(3), ..keeps_all(full.path()) });
    let store = store.unwrap();
    put_in(&store, GONE, "x", Durability::Disk).unwrap();
    fill(&store, QUEUE, 6);
    // Both snapshots reach so far that all but two segments can go: the log does not grow any more, so no other will come.
    let late = || {
        let segments = store.segments();
        let kept_from = segments[segments.len() - 2].base;
        let snapshots = snapshot::list(&full.path().join("snapshot")).unwrap();
        snapshots.len() == 2 && snapshots.iter().all(|(at, _)| *at >= kept_from)
    };
    while !late() {
        put_in(&store, QUEUE, numbered(store.queue_range(QUEUE).end), Durability::Disk).unwrap();
        // Slowly, so that the snapshots are not left behind for ever.
        std::thread::sleep(Duration::from_millis(5));
    }
    let end = store.queue_range(QUEUE).end;
    drop(store);
    let mut deleted = 0;
    for call in 0.. {
        let scratch = scratch_in_memory();
        copy_all(full.path(), scratch.path());
        let disk = Arc::new(FaultDisk::default());
        disk.kill_at(None, call, 0);
        if let Ok(store) = open_on(&disk, quick(scratch.path(), by_size(3))) {
            eventually("the end of the process or of the deletion", || {
                store.poisoned().borrow().is_some() || store.segments().len() <= 2
            });
        }
        let was_killed = disk.hits() > 0;
        disk.heal();
        let store =
            open_on(&disk, keeps_all(scratch.path())).unwrap_or_else(|error| panic!("call {call}: {error}"));
        let start = store.watermarks().log_start;
        deleted += u64::from(start > 0);
        assert_eq!(store.segments()[0].base, start);
        assert_eq!(store.queue_range(QUEUE).end, end, "call {call}");
        assert_eq!(store.queue_range(GONE), if start > 0 { 1..1 } else { 0..1 }, "call {call}");
        assert_eq!(store.damage(), [], "call {call}");
        check_numbered(&store, QUEUE);
        for entry in fs::read_dir(scratch.path().join("commitlog")).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(name[..20].parse::<u64>().unwrap() >= start, "{name} was left, call {call}");
        }
        put(&store, numbered(end), Durability::Disk).unwrap();
        if !was_killed {
            assert!(deleted > 5 && start > 0, "{deleted} of {call} got to a deletion");
            return;
        }
    }
}

#[test]
fn a_power_cut_while_segments_go_and_are_used_again_loses_nothing() {
    let seed =
        std::env::var("KARMAN_CRASH_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_260_401);
    println!("KARMAN_CRASH_SEED={seed} repeats this run");
    let mut random = Random::quiet(seed);
    let directory = scratch_in_memory();
    let disk = Arc::new(FaultDisk::recording(Duration::from_micros(50)));
    // Number of the event behind each answer.
    let mut answered = Vec::new();
    let mut append = |store: &Store| {
        put(store, numbered(answered.len() as u64), Durability::Disk).unwrap();
        answered.push(disk.position());
    };
    // First many go at once, then one after the other.
    let config = StoreConfig { flush_interval: Duration::from_millis(3), ..keeps_all(directory.path()) };
    let store = open_on(&disk, config).unwrap();
    put_in(&store, GONE, "x", Durability::Disk).unwrap();
    (0..80).for_each(|_| append(&store));
    drop(store);
    let store = open_on(&disk, quick(directory.path(), by_size(3))).unwrap();
    for _ in 0..80 {
        append(&store);
        eventually_gone("the limit", &store, || store.segments().len() <= 2);
    }
    assert!(store.queue_range(QUEUE).start > 100);
    drop(store);
    let events = disk.events();
    let is_recycled = |event: &&Event| matches!(event, Event::Rename { from, .. } if from.extension().is_some_and(|kind| kind == "log"));
    assert!(events.iter().filter(is_recycled).count() > 5, "files are used again");
    let removals: Vec<_> =
        events.iter().enumerate().filter(|(_, event)| is_removal(event)).map(|(at, _)| at).collect();
    let mut draw = |image: u64| match image % 2 {
        0 => random.below(events.len() as u64 + 1) as usize,
        // Shortly behind a removal.
        _ => (removals[random.below(removals.len() as u64) as usize] + random.below(8) as usize)
            .min(events.len()),
    };
    let mut points: Vec<_> = (0..IMAGES).map(&mut draw).collect();
    points.sort_unstable();
    let (mut device, mut deletions) = (Device::default(), 0);
    for (image, point) in points.into_iter().enumerate() {
        device.advance(&events, point);
        let scratch = scratch_in_memory();
        let luck = Luck::draw(&mut random);
        device.write_image(directory.path(), scratch.path(), luck, &mut random).unwrap();
        // Without it nobody knows where the log begins, or how far to look behind a tear: among old bytes, then.
        let cursor = scratch.path().join(cursor::FILE_NAME);
        let loses_cursor = image % 4 == 3 && cursor.exists();
        if loses_cursor {
            fs::write(cursor, [7; 8192]).unwrap();
        }
        let disk = Arc::new(FaultDisk::default());
        let store = open_on(&disk, keeps_all(scratch.path()));
        let store = store.unwrap_or_else(|error| panic!("image {image}, behind event {point}: {error}"));
        let promised = answered.partition_point(|at| *at <= point) as u64;
        let range = store.queue_range(QUEUE);
        assert!(
            range.end >= promised,
            "image {image}, behind event {point}: {range:?}, {promised} were promised"
        );
        check_numbered(&store, QUEUE);
        assert_eq!(store.damage(), [], "image {image}, behind event {point}");
        if store.watermarks().log_start > 0 {
            deletions += 1;
            assert!(loses_cursor || store.queue_range(GONE) == (1..1), "image {image}, behind event {point}");
        }
        assert_eq!(put(&store, numbered(range.end), Durability::Disk).unwrap().queue_offset.0, range.end);
    }
    assert!(deletions > 100, "{deletions} of {IMAGES} images have deleted something");
}
