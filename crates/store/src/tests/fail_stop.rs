//! Every call to the disk fails once, in a run that uses all of a store: what follows is the end of appending or, where
//! only room is missing, a refusal, and nothing that was acknowledged is lost to either.

use std::time::Duration;

use super::device::{Device, Luck};
use super::fault_disk::{Call, EIO, ENOSPC, FaultDisk};
use super::mixed_run::{Cut, MixedRun};
use super::support::*;
use crate::*;

const SEED: u64 = 20_240_817;
const APPENDS: usize = 50;

fn new_run() -> MixedRun {
    MixedRun::new(FaultDisk::recording(Duration::ZERO), SEED)
}

/// Opens, appends and closes, so often that all is done that a store does; ends with the first error.
fn run_through(run: &mut MixedRun, stopped: impl FnOnce(&MixedRun, &Store, Result<(), CloseError>)) {
    for _ in 0..4 {
        let store = match run.open() {
            Ok(store) => store,
            Err(OpenError::Io { source, .. }) if source.to_string().contains("os error 5") => return,
            Err(other) => panic!("{other}"),
        };
        run.append(&store, APPENDS);
        let closed = store.close();
        if run.disk.hits() > 0 {
            return stopped(run, &store, closed);
        }
        closed.unwrap();
    }
}

/// How often such a call is made when none fails.
fn count_calls(call: Call) -> u64 {
    let mut run = new_run();
    run_through(&mut run, |_, _, _| unreachable!("nothing fails"));
    run.disk.count(call)
}

/// Nothing was kept that was not synced: the least that a power cut leaves.
fn check_what_is_durable(run: &MixedRun) -> Result<(), String> {
    let events = run.disk.events();
    let mut device = Device::default();
    device.advance(&events, events.len());
    let left = scratch_in_memory();
    device.write_image(run.directory.path(), left.path(), Luck::NONE, &mut Random::quiet(0)).unwrap();
    run.check_copy(left.path(), Cut::Power(events.len()), false)
}

/// A store that has stopped says why, takes nothing and is read from.
fn check_that_it_has_stopped(
    run: &MixedRun,
    store: &Store,
    closed: Result<(), CloseError>,
) -> Result<(), String> {
    let reason = store.poisoned().borrow().clone().ok_or("it goes on")?;
    if !reason.contains("os error 5") {
        return Err(format!("it stopped because {reason}"));
    }
    if !matches!(&closed, Err(CloseError::Poisoned(why)) if *why == reason) {
        return Err(format!("close said {closed:?}"));
    }
    run.check_reads(store)
}

fn fail_each(call: Call) {
    let (count, mut stops) = (count_calls(call), 0);
    for number in 0..count {
        let mut run = new_run();
        run.disk.fail_one(call, "", number, EIO, 1000);
        let mut checked = Ok(());
        run_through(&mut run, |run, store, closed| {
            checked = check_that_it_has_stopped(run, store, closed);
            stops += 1;
        });
        run.disk.heal();
        let checked = checked.and_then(|()| check_what_is_durable(&run)).and_then(|()| run.check_files());
        checked.unwrap_or_else(|wrong| panic!("{call:?} number {number} of {count} failed: {wrong}"));
    }
    println!("{call:?}: {count} calls, {stops} stopped a store that was open");
    assert!(stops > 0);
}

#[test]
fn every_write_that_fails_stops_the_store() {
    fail_each(Call::Write);
}

#[test]
fn every_flush_that_fails_stops_the_store() {
    fail_each(Call::Sync);
}

#[test]
fn every_change_of_a_name_that_fails_stops_the_store() {
    for call in [Call::CreateFile, Call::Rename, Call::RemoveFile, Call::SyncDirectory] {
        fail_each(call);
    }
}

#[test]
fn every_allocation_that_fails_stops_the_store() {
    fail_each(Call::Allocate);
}

/// The next process finds names that are in place but not durable, and builds upon them.
#[test]
fn a_process_killed_at_any_change_of_a_name_takes_nothing_from_the_next_one() {
    for call in [Call::CreateFile, Call::CreateDirectory, Call::Rename, Call::RemoveFile, Call::SyncDirectory]
    {
        for number in 0..count_calls(call) {
            let mut run = new_run();
            run.disk.kill_at(Some(call), number, 0);
            run_through(&mut run, |_, _, _| {});
            run.disk.heal();
            let store = run.open().unwrap();
            run.append(&store, 10);
            drop(store);
            let name = format!("killed at {call:?} number {number}");
            check_what_is_durable(&run).unwrap_or_else(|lost| panic!("{name}, then a power cut: {lost}"));
        }
    }
}

#[test]
fn a_full_disk_refuses_and_skips_but_never_stops_the_store() {
    let mut met = 0;
    for call in [Call::CreateFile, Call::Allocate, Call::Write, Call::Sync] {
        for number in 0.. {
            let mut run = new_run();
            run.disk.fail_one(call, ".tmp", number, ENOSPC, 1000);
            for _ in 0..4 {
                // There was no room for the very first segment.
                let Ok(store) = run.open() else { continue };
                let hits = run.disk.hits();
                let poison = run.append(&store, APPENDS);
                let closed = store.close();
                assert!(poison.is_none() && !matches!(closed, Err(CloseError::Poisoned(_))), "{closed:?}");
                met += run.disk.hits() - hits;
            }
            let checked = check_what_is_durable(&run).and_then(|()| run.check_files());
            checked.unwrap_or_else(|wrong| panic!("{call:?} number {number} found no room: {wrong}"));
            if run.disk.hits() == 0 {
                break;
            }
        }
    }
    // How often depends on how the threads take turns.
    assert!(met > 10, "{met} times there was no room for an open store");
}

#[test]
fn a_full_disk_when_a_new_name_is_made_durable_stops_the_store() {
    let mut run = new_run();
    let store = run.open().unwrap();
    run.disk.fail_one(Call::SyncDirectory, "commitlog", 0, ENOSPC, 0);
    run.append(&store, APPENDS * 4);
    // The maintenance thread makes the next segment, when it comes to it.
    eventually("it stops", || store.poisoned().borrow().is_some());
    let poison = store.poisoned().borrow().clone().unwrap();
    assert!(poison.contains("os error 28"), "{poison}");
    drop(store);
    check_what_is_durable(&run).unwrap();
}
