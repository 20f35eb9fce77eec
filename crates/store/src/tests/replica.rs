//! Two stores with one log: what a master writes and a replica takes, in one process and without a network.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;

use super::support::*;
use crate::*;

/// A new replica of the store's log.
pub(super) fn replica_of(master: &Store, directory: &Path) -> (Store, Arc<Seen>) {
    let config = StoreConfig { follows: true, log: Some(master.log_id()), ..config(directory) };
    let seen = Arc::new(Seen::default());
    (Store::open(config, vec![seen.clone()], Arc::new(Silent)).unwrap(), seen)
}

pub(super) fn master(directory: &Path) -> (Store, Arc<Seen>) {
    let seen = Arc::new(Seen::default());
    let store = Store::open(config(directory), vec![seen.clone()], Arc::new(Silent)).unwrap();
    (store, seen)
}

/// Hands over what the replica does not have, in pieces of about `piece` bytes.
pub(super) fn feed(master: &Store, replica: &Store, piece: usize, durability: Durability) {
    loop {
        let raw = master.raw(replica.watermarks().written, piece).unwrap();
        let done = raw.bytes.is_empty();
        replica.append_raw(raw, master.watermarks().confirmed, durability).unwrap().wait().unwrap();
        if done {
            return;
        }
    }
}

/// The bytes of all records of a log, and where each of them lies.
pub(super) fn all_of(store: &Store) -> Vec<(u64, bytes::Bytes)> {
    let (mut at, mut all) = (store.watermarks().log_start, Vec::new());
    loop {
        let raw = store.raw(at, 1).unwrap();
        if raw.bytes.is_empty() {
            return all;
        }
        let length = u32::from_le_bytes(raw.bytes[..4].try_into().unwrap());
        at = raw.start + u64::from(length);
        all.push((raw.start, raw.bytes));
    }
}

/// Messages of many sizes in a few queues, with other records in between, over several segments.
pub(super) fn fill(store: &Store, records: u64, seed: u64) {
    let mut random = Random::seeded(seed);
    let mut last = None;
    for number in 0..records {
        let durability = if random.below(5) == 0 { Durability::Disk } else { Durability::Memory };
        let record = match random.below(6) {
            0 => other(RecordKind::Progress, format!("progress {number}")),
            _ => {
                let queue = QueueNumber(random.below(7) as u32);
                let mut record = message(queue, vec![number as u8; random.below(30_000) as usize]);
                record.keys = (0..random.below(4)).map(|key| number * 10 + key).collect();
                record
            }
        };
        last = Some(store.append(vec![record], durability).unwrap());
    }
    last.unwrap().wait().unwrap();
    // A message in memory may be answered before it can be seen.
    store.append(vec![other(RecordKind::Progress, "end")], Durability::Disk).unwrap().wait().unwrap();
}

#[test]
fn a_replica_is_its_master_byte_by_byte() {
    for (piece, seed) in [(1, 71), (20_000, 72), (256 << 10, 73), (16 << 20, 74)] {
        let (here, there) = (scratch(), scratch());
        let (master, seen) = master(here.path());
        let (replica, seen_there) = replica_of(&master, there.path());
        assert!(master.lead(1, Durability::Disk).unwrap().wait().is_ok());
        for round in 0..3 {
            fill(&master, 150, seed + 10 * round);
            feed(&master, &replica, piece, Durability::Memory);
        }
        assert_eq!(replica.watermarks().confirmed, master.watermarks().confirmed);
        assert!(all_of(&master) == all_of(&replica), "the logs differ");
        assert_eq!(master.epochs(), replica.epochs());
        for queue in (0..8).map(QueueNumber) {
            assert_eq!(read_all(&master, queue), read_all(&replica, queue));
        }
        assert_eq!(seen.list(), seen_there.list());
        for key in 0..1500 {
            let find = |store: &Store| {
                let mut found = Vec::new();
                store.find(key, 0..u64::MAX, 100, &mut found).unwrap();
                found
            };
            assert_eq!(find(&master), find(&replica));
        }
        // What it makes of the log itself is the same too.
        master.close().unwrap();
        replica.close().unwrap();
        let index =
            |directory: &Path, base| std::fs::read(directory.join(format!("commitlog/{base:020}.idx")));
        let sealed = (0..).map(|number| number * MIB).take_while(|base| index(here.path(), *base).is_ok());
        let compared = sealed.inspect(|&base| {
            assert_eq!(index(here.path(), base).unwrap(), index(there.path(), base).unwrap());
        });
        assert!(compared.count() > 3, "several segments were filled");
    }
}

#[test]
fn nothing_is_seen_at_a_replica_before_its_master_shows_it() {
    let (here, there) = (scratch(), scratch());
    let (master, _) = master(here.path());
    let (replica, seen) = replica_of(&master, there.path());
    put(&master, "first", Durability::Disk).unwrap();
    let shown = master.watermarks().confirmed;
    master.append(vec![other(RecordKind::Progress, "second")], Durability::Disk).unwrap().wait().unwrap();
    put(&master, "third", Durability::Disk).unwrap();

    let raw = master.raw(0, 1 << 20).unwrap();
    replica.append_raw(raw, shown, Durability::Disk).unwrap().wait().unwrap();
    let marks = replica.watermarks();
    assert_eq!((marks.written, marks.flushed), (master.watermarks().written, master.watermarks().written));
    assert_eq!(marks.confirmed, shown);
    assert_eq!(read_all(&replica, QUEUE), ["first"]);
    assert!(seen.list().is_empty());

    // News without records.
    let nothing = master.raw(master.watermarks().written, 1).unwrap();
    assert!(nothing.bytes.is_empty());
    replica.append_raw(nothing, master.watermarks().confirmed, Durability::Memory).unwrap().wait().unwrap();
    eventually("the rest is seen", || read_all(&replica, QUEUE) == ["first", "third"]);
    assert_eq!(seen.list(), ["second"]);
}

#[test]
fn what_does_not_continue_the_log_is_refused_whole() {
    let (here, there, elsewhere) = (scratch(), scratch(), scratch());
    let (master, _) = master(here.path());
    let (stranger, _) = self::master(elsewhere.path());
    let (replica, _) = replica_of(&master, there.path());
    for store in [&master, &stranger] {
        ["one", "two", "three"]
            .into_iter()
            .for_each(|text| assert!(put(store, text, Durability::Disk).is_ok()));
    }
    let raw = master.raw(0, 1 << 20).unwrap();
    let one = master.raw(0, 1).unwrap().bytes.len();
    let changed = |at: usize| {
        let mut bytes = BytesMut::from(&raw.bytes[..]);
        bytes[at] ^= 1;
        RawRecords { bytes: bytes.freeze(), ..raw.clone() }
    };
    let part = |range: std::ops::Range<usize>, start| RawRecords {
        start,
        bytes: raw.bytes.slice(range),
        ..raw.clone()
    };
    let refused = [
        ("a gap", part(one..raw.bytes.len(), one as u64)),
        ("a place that others have", part(0..one, 64)),
        ("half a header", part(0..one + 20, 0)),
        ("half a record", part(0..2 * one - 8, 0)),
        ("a flipped bit in the last record", changed(raw.bytes.len() - 3)),
        ("a flipped bit in an epoch", changed(one + 12)),
        ("another log's", stranger.raw(0, 1 << 20).unwrap()),
        ("another length of the segment", RawRecords { segment_bytes: 2 * MIB, ..raw.clone() }),
    ];
    for (what, raw) in refused {
        let answer = replica.append_raw(raw, u64::MAX, Durability::Disk).unwrap().wait();
        assert!(matches!(answer, Err(AppendError::NotNext { .. })), "{what}: {answer:?}");
        assert_eq!(replica.watermarks().written, 0, "{what}");
    }
    assert!(matches!(put(&replica, "mine", Durability::Disk), Err(AppendError::Follows)));
    // None of that has spoilt anything.
    feed(&master, &replica, 1 << 20, Durability::Disk);
    assert_eq!(read_all(&replica, QUEUE), ["one", "two", "three"]);
    let again = replica.append_raw(raw, 0, Durability::Disk).unwrap().wait();
    assert!(matches!(again, Err(AppendError::NotNext { at: 0, .. })));
    // And a master takes nothing from anybody.
    let answer = master.append_raw(replica.raw(0, 1).unwrap(), 0, Durability::Disk).unwrap().wait();
    assert!(matches!(answer, Err(AppendError::Invalid(_))));
}

#[test]
fn a_record_of_an_earlier_master_is_refused() {
    let (here, there, old) = (scratch(), scratch(), scratch());
    let (master, _) = master(here.path());
    let (replica, _) = replica_of(&master, there.path());
    let (deposed, _) = replica_of(&master, old.path());
    master.lead(4, Durability::Disk).unwrap().wait().unwrap();
    feed(&master, &deposed, 1 << 20, Durability::Disk);
    feed(&master, &replica, 1 << 20, Durability::Disk);
    replica.lead(9, Durability::Disk).unwrap().wait().unwrap();
    put(&deposed, "mine", Durability::Disk).unwrap_err();
    deposed.lead(5, Durability::Disk).unwrap().wait().unwrap();
    put(&deposed, "mine", Durability::Disk).unwrap();
    // A third one, that follows the newer of the two.
    let place = scratch();
    let (third, _) = replica_of(&master, place.path());
    feed(&replica, &third, 1 << 20, Durability::Disk);
    let at = third.watermarks().written;
    put(&deposed, "x", Durability::Disk).unwrap();
    let answer = third.append_raw(deposed.raw(at, 1).unwrap(), 0, Durability::Disk).unwrap().wait();
    assert!(
        matches!(&answer, Err(AppendError::NotNext { reason, .. }) if reason.contains("epoch")),
        "{answer:?}"
    );
    // Where the two part is known to both.
    let common = replica.common_end(&deposed.epochs(), deposed.watermarks().written).unwrap();
    assert_eq!(common, 64, "behind the beginning of epoch 4");
    assert!(matches!(replica.lead(9, Durability::Disk).unwrap().wait(), Err(AppendError::Invalid(_))));
}

#[test]
fn an_append_waits_for_the_replicas_that_it_asks_for() {
    let place = scratch();
    let (store, seen) = master(place.path());
    let append =
        |text: &'static str, durability| store.append(vec![message(QUEUE, text)], durability).unwrap();
    put(&store, "before", Durability::Disk).unwrap();
    let mut replicated = append("replicated", Durability::Replicated);
    let mut on_their_disks = append("on their disks", Durability::ReplicatedDisk);
    // Those who ask for less are answered, but seen in their turn.
    let disk = append("disk", Durability::Disk).wait().unwrap();
    append("memory", Durability::Memory).wait().unwrap();
    let mut progress = store.append(vec![other(RecordKind::Progress, "p")], Durability::Disk).unwrap();
    assert_eq!(disk.queue_offset, QueueOffset(3));
    assert_eq!(read_all(&store, QUEUE), ["before"]);
    for waits in [&mut replicated, &mut on_their_disks, &mut progress] {
        assert!(is_pending(waits));
    }
    let end = store.watermarks().written;
    let first = store.raw(0, 1).unwrap().bytes.len() as u64;
    store.replicated(first + 10, first + 10);
    assert!(is_pending(&mut replicated), "a part of it is not enough");
    store.replicated(end, first);
    replicated.wait().unwrap();
    eventually("it is seen", || read_all(&store, QUEUE) == ["before", "replicated"]);
    assert!(is_pending(&mut on_their_disks) && seen.list().is_empty());
    store.replicated(end, end);
    on_their_disks.wait().unwrap();
    progress.wait().unwrap();
    assert_eq!(read_all(&store, QUEUE), ["before", "replicated", "on their disks", "disk", "memory"]);
    assert_eq!(seen.list(), ["p"]);
}

#[test]
fn a_master_without_lease_answers_nothing_and_goes_on_when_it_has_one_again() {
    let place = scratch();
    let (store, seen) = master(place.path());
    put(&store, "before", Durability::Memory).unwrap();
    store.answer_until(Some(Instant::now()));
    let mut waiting = [Durability::Memory, Durability::Disk]
        .map(|class| store.append(vec![message(QUEUE, "in between")], class).unwrap());
    let mut progress = store.append(vec![other(RecordKind::Progress, "p")], Durability::Memory).unwrap();
    let written = |count: u64| store.watermarks().written >= count * 64;
    eventually("they are written", || written(4));
    store.replicated(u64::MAX, u64::MAX);
    assert!(waiting.iter_mut().all(is_pending) && is_pending(&mut progress));
    assert_eq!((read_all(&store, QUEUE).len(), seen.list().len()), (1, 0));
    store.answer_until(Some(Instant::now() + Duration::from_secs(60)));
    waiting.into_iter().for_each(|append| assert!(append.wait().is_ok()));
    progress.wait().unwrap();
    assert_eq!(read_all(&store, QUEUE).len(), 3);
    // A lease ends by itself.
    let until = Instant::now() + Duration::from_millis(20);
    store.answer_until(Some(until));
    eventually("it is over", || Instant::now() > until);
    let before = store.watermarks().written;
    let mut late = store.append(vec![message(QUEUE, "late")], Durability::Memory).unwrap();
    eventually("it is written", || store.watermarks().written > before);
    assert!(is_pending(&mut late));
    store.answer_until(None);
    put(&store, "last", Durability::Disk).unwrap();
}

fn is_pending(append: &mut Append) -> bool {
    use std::future::Future;
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    std::pin::Pin::new(append).poll(&mut context).is_pending()
}

#[test]
fn what_waits_for_replicas_is_bounded_and_told_when_the_store_closes() {
    let place = scratch();
    let config = StoreConfig { inbox_bytes: 100_000, ..config(place.path()) };
    let store = Store::open(config, Vec::new(), Arc::new(Silent)).unwrap();
    let mut waiting = Vec::new();
    let refused = loop {
        match store.append(vec![message(QUEUE, vec![7; 10_000])], Durability::Replicated) {
            Ok(append) => waiting.push(append),
            Err(error) => break error,
        }
        assert!(waiting.len() < 100, "nothing bounds them");
        std::thread::yield_now();
    };
    assert!(matches!(refused, AppendError::Overloaded { .. }), "{refused}");
    store.close().unwrap();
    let written = store.watermarks().written;
    let answers: Vec<_> = waiting.into_iter().map(|append| append.wait().unwrap_err()).collect();
    let in_log = answers.iter().filter(|error| matches!(error, AppendError::Unconfirmed)).count();
    let others = answers.iter().filter(|error| matches!(error, AppendError::Closed)).count();
    assert_eq!((in_log + others, written), (answers.len(), in_log as u64 * 10_064));
}

#[test]
fn a_replica_goes_on_as_master_where_the_log_ends() {
    let (here, there) = (scratch(), scratch());
    let (master, _) = master(here.path());
    let (replica, seen) = replica_of(&master, there.path());
    master.lead(1, Durability::Disk).unwrap().wait().unwrap();
    put(&master, "one", Durability::Disk).unwrap();
    let shown = master.watermarks().confirmed;
    put(&master, "two", Durability::Disk).unwrap();
    master.append(vec![other(RecordKind::Progress, "p")], Durability::Disk).unwrap().wait().unwrap();
    let raw = master.raw(0, 1 << 20).unwrap();
    replica.append_raw(raw, shown, Durability::Memory).unwrap().wait().unwrap();
    assert_eq!(read_all(&replica, QUEUE), ["one"]);

    let mut leads = replica.lead(2, Durability::Replicated).unwrap();
    let three = replica.append(vec![message(QUEUE, "three")], Durability::Disk).unwrap();
    three.wait().unwrap();
    assert!(is_pending(&mut leads));
    assert_eq!(seen.list(), [""], "that its master began");
    assert_eq!(
        read_all(&replica, QUEUE),
        ["one"],
        "what only the former master confirmed waits for its replicas"
    );
    replica.replicated(u64::MAX, 0);
    leads.wait().unwrap();
    eventually("all is seen", || read_all(&replica, QUEUE) == ["one", "two", "three"]);
    assert_eq!(seen.list(), ["", "p", ""]);
    assert_eq!(replica.epoch(), 2);
    replica.close().unwrap();

    let again = open(there.path());
    assert_eq!(read_all(&again, QUEUE), ["one", "two", "three"]);
    let epochs: Vec<_> = again.epochs().iter().map(|begun| begun.epoch).collect();
    assert_eq!(epochs, [0, 1, 2]);
}

#[test]
fn a_replica_that_leads_at_once_goes_on_behind_what_it_has_just_received() {
    for _ in 0..10 {
        let (here, there) = (scratch(), scratch());
        let ((master, _), queue) = (master(here.path()), QueueNumber(3));
        let (replica, _) = replica_of(&master, there.path());
        master.lead(1, Durability::Disk).unwrap().wait().unwrap();
        master.append(vec![message(queue, "0")], Durability::Disk).unwrap().wait().unwrap();
        let first = master.raw(0, 1 << 20).unwrap();
        let shown = master.watermarks().confirmed;
        master.append(vec![message(queue, "1")], Durability::Disk).unwrap().wait().unwrap();
        let second = master.raw(shown, 1 << 20).unwrap();
        // While the first is flushed, the others become one batch.
        let first = replica.append_raw(first, shown, Durability::Disk).unwrap();
        let second = replica.append_raw(second, shown, Durability::Memory).unwrap();
        let leads = replica.lead(2, Durability::Disk).unwrap();
        first.wait().unwrap();
        second.wait().unwrap();
        leads.wait().unwrap();
        let own = replica.append(vec![message(queue, "2")], Durability::Disk).unwrap().wait().unwrap();
        assert_eq!(own.queue_offset, QueueOffset(2));
    }
}

#[test]
fn a_replica_that_was_killed_goes_on_where_it_was() {
    let (here, there) = (scratch(), scratch());
    let (master, seen) = master(here.path());
    let mut random = Random::seeded(75);
    for round in 0..12 {
        fill(&master, 40, 100 + round);
        let (replica, seen_there) = replica_of(&master, there.path());
        let pieces = 1 + random.below(30_000) as usize;
        feed(&master, &replica, pieces, Durability::Memory);
        assert!(all_of(&master) == all_of(&replica));
        assert_eq!(seen.list(), seen_there.list());
        if random.below(3) == 0 {
            replica.close().unwrap();
        }
    }
    assert!(master.watermarks().written > 3 * MIB);
}

#[test]
fn another_log_is_not_made_a_replica() {
    let (here, there) = (scratch(), scratch());
    let (master, _) = master(here.path());
    put(&open(there.path()), "mine", Durability::Disk).unwrap();
    let config = StoreConfig { follows: true, log: Some(master.log_id()), ..config(there.path()) };
    let refused = Store::open(config, Vec::new(), Arc::new(Silent)).unwrap_err();
    assert!(matches!(refused, OpenError::ForeignLog { .. }), "{refused}");
    assert_eq!(read_all(&open(there.path()), QUEUE), ["mine"]);
}

/// Makes a store in `to` of what is in `from`.
pub(super) fn copy(from: &Store, to: &Path, piece: usize) {
    let copy = from.copy().unwrap();
    let mut target = CopyTarget::begin(&config(to), from.log_id(), copy.log_start()).unwrap();
    if let Some((offset, bytes)) = copy.snapshot() {
        target.snapshot(offset, bytes).unwrap();
    }
    let mut at = copy.log_start();
    while let Some(piece) = copy.piece(at, piece).unwrap() {
        target.piece(&piece).unwrap();
        at += piece.bytes.len() as u64;
    }
    target.finish(copy.end()).unwrap();
}

#[test]
fn a_replica_begins_with_a_copy_of_what_is_left_of_a_log() {
    let (here, there) = (scratch(), scratch());
    let seen = Arc::new(Seen::default());
    let short = Retention { size_limit_bytes: Some(4 * MIB), ..config(here.path()).retention };
    let config_here = StoreConfig {
        retention: short,
        cleanup_interval: Duration::from_millis(5),
        snapshot_interval_bytes: MIB / 2,
        flush_interval: Duration::from_millis(10),
        ..config(here.path())
    };
    let master = Store::open(config_here, vec![seen.clone()], Arc::new(Silent)).unwrap();
    master.lead(1, Durability::Disk).unwrap().wait().unwrap();
    for round in 0..6 {
        fill(&master, 100, 300 + round);
    }
    eventually("the first segment is gone", || {
        put(&master, "more", Durability::Disk).unwrap();
        master.watermarks().log_start > MIB
    });
    // Another store was there before, of the same log but too far behind.
    drop(replica_of(&master, there.path()));
    copy(&master, there.path(), 100_000);
    let (replica, seen_there) = replica_of(&master, there.path());
    feed(&master, &replica, 1 << 20, Durability::Disk);
    assert_eq!(replica.watermarks().written, master.watermarks().written);
    assert_eq!(seen.list(), seen_there.list());
    for queue in (0..8).map(QueueNumber) {
        let range = master.queue_range(queue);
        assert_eq!(replica.queue_range(queue).end, range.end);
        let entries = |store: &Store| {
            let mut entries = Vec::new();
            store.entries(queue, QueueOffset(range.start), 100_000, &mut entries).unwrap();
            entries
        };
        assert_eq!(entries(&master), entries(&replica));
    }
    assert_eq!(master.epochs().last(), replica.epochs().last());
}

#[test]
fn half_a_copy_is_no_store_and_is_begun_anew() {
    let (here, there) = (scratch(), scratch());
    let (master, _) = master(here.path());
    fill(&master, 100, 81);
    let half = master.copy().unwrap();
    let mut target = CopyTarget::begin(&config(there.path()), master.log_id(), 0).unwrap();
    let piece = half.piece(0, 50_000).unwrap().unwrap();
    target.piece(&piece).unwrap();
    for wrong in [
        piece.clone(),
        CopiedPiece { at: 60_000, ..piece.clone() },
        CopiedPiece { segment_bytes: 8, at: 50_000, ..piece },
    ] {
        assert!(target.piece(&wrong).is_err());
    }
    assert!(target.snapshot(0, b"none").is_err());
    assert!(target.finish(half.end()).is_err(), "it is not all");
    assert!(matches!(try_open(there.path()), Err(OpenError::HalfCopied { .. })));
    copy(&master, there.path(), 50_000);
    let (replica, _) = replica_of(&master, there.path());
    assert!(all_of(&master) == all_of(&replica));
}
