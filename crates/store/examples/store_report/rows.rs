//! The rows: what each measures and what it is to reach.

use karman_store::Durability;

use crate::append::{self, Load};
use crate::options::Options;
use crate::{Outcome, disturbance, query, read, restart};

/// One figure of a row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figure {
    pub(crate) name: &'static str,
    pub(crate) goal: Goal,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Goal {
    /// Only told.
    None,
    AtLeast(f64),
    AtMost(f64),
}

/// Takes what a round has measured: a value for each figure of the row.
pub(crate) type Rounds<'a> = &'a mut dyn FnMut(Vec<f64>);

pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) figures: &'static [Figure],
    /// The row is met when one of its figures is; else all must be.
    pub(crate) one_goal_suffices: bool,
    /// Measures all rounds.
    pub(crate) measure: fn(&Options, Rounds<'_>) -> Outcome<()>,
}

const fn told(name: &'static str) -> Figure {
    Figure { name, goal: Goal::None }
}

const fn at_least(name: &'static str, value: f64) -> Figure {
    Figure { name, goal: Goal::AtLeast(value) }
}

const fn at_most(name: &'static str, value: f64) -> Figure {
    Figure { name, goal: Goal::AtMost(value) }
}

const BATCH: Figure = told("appends a batch");
const WRITER: Figure = told("log writer, ns an append");
const PRODUCERS: Figure = told("producers, ns an append");
const HAND_OVER: Figure = told("of the hand-over");
const P50: Figure = told("p50, us");
const P99: Figure = told("p99, us");
const DISK: &str = "log's bytes to the disk's";

pub(crate) const ROWS: &[Row] = &[
    Row {
        name: "disk-64",
        about: "durable append, 64 waiting producers",
        figures: &[
            at_least("appends/s", 120_000.0),
            at_least("of the bare loop", 0.8),
            HAND_OVER,
            BATCH,
            WRITER,
            PRODUCERS,
            P50,
            P99,
            told(DISK),
        ],
        one_goal_suffices: false,
        measure: |options, round| appends(options, Durability::Disk, 64, false, round),
    },
    Row {
        name: "disk-64-recycled",
        about: "the same, deleted segments used again",
        figures: &[
            at_least("appends/s", 120_000.0),
            at_least("of the bare loop", 0.8),
            HAND_OVER,
            BATCH,
            WRITER,
            PRODUCERS,
            P50,
            P99,
            told(DISK),
        ],
        one_goal_suffices: false,
        measure: |options, round| appends(options, Durability::Disk, 64, true, round),
    },
    Row {
        name: "disk-512",
        about: "durable append, 512 waiting producers",
        figures: &[
            at_least("appends/s", 200_000.0),
            told("of the bare loop"),
            HAND_OVER,
            BATCH,
            WRITER,
            PRODUCERS,
            P50,
            P99,
            at_least(DISK, 1.0),
        ],
        one_goal_suffices: true,
        measure: |options, round| appends(options, Durability::Disk, 512, false, round),
    },
    Row {
        name: "memory-64",
        about: "append of class memory, 64 producers",
        figures: &[
            at_least("appends/s", 1_000_000.0),
            HAND_OVER,
            told("hand-over, appends/s"),
            BATCH,
            WRITER,
            PRODUCERS,
            P50,
            P99,
        ],
        one_goal_suffices: false,
        measure: |options, round| appends(options, Durability::Memory, 64, false, round),
    },
    Row {
        name: "memory-64-recycled",
        about: "the same, deleted segments used again",
        figures: &[
            at_least("appends/s", 1_000_000.0),
            HAND_OVER,
            told("hand-over, appends/s"),
            BATCH,
            WRITER,
            PRODUCERS,
            P50,
            P99,
        ],
        one_goal_suffices: false,
        measure: |options, round| appends(options, Durability::Memory, 64, true, round),
    },
    // What an append leaves in memory, its entry and its keys, has to go somewhere: growing that is the thousandth.
    Row {
        name: "allocations",
        about: "on the log writer's thread, steady state, 64 producers",
        figures: &[at_most("allocations an append", 0.001), told("releases an append")],
        one_goal_suffices: false,
        measure: |options, round| every_round(options, round, append::allocations_round),
    },
    Row {
        name: "read",
        about: "sequential read of a queue, warm, checksums verified",
        figures: &[
            at_least("entries/s", 2_000_000.0),
            at_least("GB/s of payload", 2.0),
            at_most("bytes copied", 0.0),
            told("allocations a record"),
        ],
        one_goal_suffices: false,
        measure: read::measure,
    },
    Row {
        name: "restart",
        about: "a log of many segments",
        figures: &[
            at_most("clean stop: accepts after ms", 1000.0),
            at_most("clean stop: serves after ms", 1000.0),
            at_most("kill -9: accepts after ms", 1000.0),
            at_most("kill -9: serves after ms", 1000.0),
            told("nothing cached: accepts after ms"),
            told("nothing cached: serves after ms"),
            told("segments"),
        ],
        one_goal_suffices: false,
        measure: restart::segments,
    },
    Row {
        name: "queues",
        about: "restart with many queues",
        figures: &[
            at_most("accepts after ms", 1000.0),
            at_most("serves after ms", 1000.0),
            at_most("bytes of memory a queue", 1536.0),
            told("files"),
        ],
        one_goal_suffices: false,
        measure: restart::queues,
    },
    Row {
        name: "disturbance",
        about: "p99.9 of appends beside other work",
        figures: &[
            told("undisturbed, us"),
            at_most("segments roll, times that", 2.0),
            at_most("snapshots, times that", 2.0),
            at_most("segments are deleted, times that", 2.0),
        ],
        one_goal_suffices: false,
        measure: disturbance::measure,
    },
    Row {
        name: "query",
        about: "messages by key in the log of `restart`, warm",
        figures: &[
            told("p50, us"),
            at_most("p99, us", 5000.0),
            told("messages found by each"),
            told("p99 of unknown keys, us"),
            told("all keys visited, keys/s"),
        ],
        one_goal_suffices: false,
        measure: query::measure,
    },
];

fn appends(
    options: &Options,
    durability: Durability,
    producers: u32,
    recycles: bool,
    round: Rounds<'_>,
) -> Outcome<()> {
    let load = Load { durability, producers, size_bytes: options.size_bytes, recycles };
    every_round(options, round, |options| append::round(options, load))
}

fn every_round(
    options: &Options,
    round: Rounds<'_>,
    measure: impl Fn(&Options) -> Outcome<Vec<f64>>,
) -> Outcome<()> {
    for _ in 0..options.rounds {
        round(measure(options)?);
    }
    Ok(())
}
