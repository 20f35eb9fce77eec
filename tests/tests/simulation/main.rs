//! The whole replication protocol in virtual time: leases and elections, who counts, epochs and cuts, under lost, late and reordered
//! words, one-way partitions, crashes, power cuts, brokers that stand still, slow disks, drifting clocks, deposed leaders.
//!
//! `KARMAN_SEEDS` runs that many seeds instead of 200, `KARMAN_SEED` one and prints what happened at its end, with `KARMAN_BUG` and a
//! planted bug if that is named. The same seed gives the same trace. Tests run it on all cores; a run is one thread and no I/O.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod controllers;
mod judge;
mod log;
mod member;
mod streams;
mod trouble;
mod world;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use judge::Violation;
use world::{Bug, World};

/// What came of a run.
#[derive(Debug, Default)]
struct Outcome {
    trace: u64,
    events: u64,
    elections: u64,
    /// Of class `disk`, and as replicated.
    answered: [u64; 2],
    violation: Option<Violation>,
    lines: String,
}

fn run(seed: u64, bug: Option<Bug>, prints: bool) -> Outcome {
    let mut world = World::new(seed, bug, prints);
    let ended = catch_unwind(AssertUnwindSafe(|| world.run()));
    let violation = match ended {
        Ok(ended) => ended.err(),
        Err(_) => Some(Violation::new("S14", "it panicked".into())),
    };
    Outcome {
        trace: world.trace.hash,
        events: world.trace.events,
        elections: world.controllers.elections,
        answered: world.judge.answered,
        violation,
        lines: world.trace.lines(),
    }
}

fn number_of(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|value| value.parse().ok())
}

fn command(seed: u64) -> String {
    format!("KARMAN_SEED={seed} cargo test -p karman-tests --test simulation -- --nocapture every_seed")
}

/// Runs seeds on all cores; what came of them, in their order. Ends early when one fails.
fn run_all(seeds: Range<u64>, bug: Option<Bug>) -> Vec<(u64, Outcome)> {
    let (next, end) = (AtomicU64::new(seeds.start), AtomicU64::new(seeds.end));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let work = || {
        let mut done = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end.load(Ordering::Relaxed) {
                return done;
            }
            let outcome = run(seed, bug, false);
            if outcome.violation.is_some() {
                end.fetch_min(seed + 1, Ordering::Relaxed);
            }
            done.push((seed, outcome));
        }
    };
    let mut all: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    all.sort_by_key(|(seed, _)| *seed);
    all
}

const BUGS: [Bug; 10] = [
    Bug::AnswersBeforeReplication,
    Bug::LateLease,
    Bug::LeaderDoesNotWait,
    Bug::GrantsWhileElecting,
    Bug::WrongCut,
    Bug::UncleanElection,
    Bug::NoNewEpoch,
    Bug::CountsWritten,
    Bug::TrustsNewDisk,
    Bug::ShowsRecovered,
];

#[test]
fn what_was_answered_holds_in_every_seed() {
    if let Some(seed) = number_of("KARMAN_SEED") {
        let bug = BUGS
            .into_iter()
            .find(|bug| std::env::var("KARMAN_BUG").is_ok_and(|name| name == format!("{bug:?}")));
        let outcome = run(seed, bug, true);
        println!("{}seed {seed}: trace {:016x}, {} events", outcome.lines, outcome.trace, outcome.events);
        assert!(outcome.violation.is_none(), "{:?}\n{}", outcome.violation, command(seed));
        return;
    }
    let seeds = number_of("KARMAN_SEEDS").unwrap_or(200);
    let all = run_all(0..seeds, None);
    let sum = |of: fn(&Outcome) -> u64| all.iter().map(|(_, outcome)| of(outcome)).sum::<u64>();
    println!(
        "{} seeds: {} events, {} elections, {} messages answered as flushed, {} as replicated",
        all.len(),
        sum(|outcome| outcome.events),
        sum(|outcome| outcome.elections),
        sum(|outcome| outcome.answered[0]),
        sum(|outcome| outcome.answered[1]),
    );
    for (seed, outcome) in &all {
        let Some(Violation { invariant, what }) = &outcome.violation else { continue };
        panic!("{invariant}: {what} (trace {:016x}); again with\n    {}", outcome.trace, command(*seed));
    }
}

/// The bug is found within these seeds, by an invariant that it must violate.
fn is_found(bug: Bug, invariants: &[&str], seeds: Range<u64>) {
    let all = run_all(seeds.clone(), Some(bug));
    let found = all.into_iter().find_map(|(seed, outcome)| Some((seed, outcome.violation?)));
    let (seed, Violation { invariant, what }) =
        found.unwrap_or_else(|| panic!("{bug:?} is not found in seeds {seeds:?}"));
    println!("{bug:?}: {invariant} in seed {seed}: {what}");
    assert!(
        invariants.contains(&invariant),
        "{bug:?} was found by {invariant} instead of {invariants:?}: {what}"
    );
}

#[test]
fn answering_before_replication_is_found() {
    is_found(Bug::AnswersBeforeReplication, &["S1"], 0..20);
}

#[test]
fn a_lease_that_ends_too_late_is_found() {
    is_found(Bug::LateLease, &["S11"], 0..100);
}

#[test]
fn a_leader_that_does_not_wait_for_its_predecessors_grants_is_found() {
    is_found(Bug::LeaderDoesNotWait, &["S11"], 0..200);
}

#[test]
fn a_grant_while_another_is_elected_is_found() {
    // One in five thousand seeds.
    is_found(Bug::GrantsWhileElecting, &["S11"], 4600..4700);
}

#[test]
fn a_wrong_cut_is_found() {
    is_found(Bug::WrongCut, &["S12", "S1"], 0..20);
}

#[test]
fn an_unclean_election_is_found() {
    is_found(Bug::UncleanElection, &["S1"], 0..20);
}

#[test]
fn a_master_that_begins_no_epoch_is_found() {
    is_found(Bug::NoNewEpoch, &["S3", "S12"], 0..20);
}

#[test]
fn a_slave_that_counts_by_what_it_has_written_is_found() {
    is_found(Bug::CountsWritten, &["S1"], 0..200);
}

#[test]
fn a_new_disk_that_is_taken_for_the_old_one_is_found() {
    is_found(Bug::TrustsNewDisk, &["S1"], 0..500);
}

#[test]
fn a_slave_that_shows_what_it_finds_is_found() {
    is_found(Bug::ShowsRecovered, &["S12"], 0..100);
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let (first, again, other) = (run(7, None, false), run(7, None, true), run(8, None, false));
    println!("trace {:016x}", first.trace);
    assert_eq!((first.trace, first.events), (again.trace, again.events));
    assert_ne!(first.trace, other.trace);
}
