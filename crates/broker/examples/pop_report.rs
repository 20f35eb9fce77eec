//! What consuming costs in the core, without a network and a log: processor time for each message that is taken and
//! acknowledged, and memory for each that is in flight.
//!
//! `cargo run --release -p karman-broker --example pop_report`. Medians of five rounds; ratios are to the first row. With the
//! name of a row of memory as its argument it measures that alone.
#![allow(clippy::unwrap_used, reason = "a report fails by panicking")]

use std::process::Command;
use std::time::Instant;

use karman_broker::pop::{NoEntries, Pop, Renewal, Surroundings, Take};
use karman_broker::process;
use karman_remoting::line::Line;
use karman_store::{Entry, PhysicalOffset, QueueOffset};

const ROUNDS: usize = 5;
/// Messages of one round.
const MESSAGES: u64 = 200_000;
const BATCH: usize = 32;
const MEMORY_ROWS: [&str; 2] = ["not orderly", "orderly, groups of one"];

/// A topic whose queues hold `per_queue` messages each, of so many message groups.
struct Topic {
    per_queue: u64,
    message_groups: u64,
}

impl Surroundings for Topic {
    fn entries(
        &self,
        queue_id: u32,
        from: QueueOffset,
        max: usize,
        out: &mut Vec<Entry>,
    ) -> Result<(), NoEntries> {
        let end = self.per_queue.min(from.0 + max as u64);
        out.extend((from.0..end).map(|offset| {
            let group =
                offset.wrapping_mul(0x9e37_79b9).wrapping_add(u64::from(queue_id)) % self.message_groups;
            Entry { physical_offset: PhysicalOffset(offset), size: 1024, tag_hash: (group + 1) << 32 }
        }));
        Ok(())
    }

    fn wants(&self, _entry: &Entry) -> bool {
        true
    }

    fn is_alive(&self, _client_id: &str) -> bool {
        true
    }
}

fn ask(orderly: bool) -> Take {
    Take {
        now_ms: 1,
        max: BATCH,
        invisible_ms: 60_000,
        renewal: Some(Renewal::of("client".into(), Line::default(), 1)),
        attempts_max: 17,
        inflight_max: usize::MAX,
        revision_base: 0,
        scan_max: 4096,
        orderly,
        last_queue_first: false,
        attempt_key: None,
    }
}

/// Nanoseconds for each message that is taken and acknowledged, with `inflight` others in flight all the time. Topics are
/// asked in turns.
fn cost_ns(topics: usize, queues: usize, inflight: u64, message_groups: u64, orderly: bool) -> f64 {
    let all_queues = (topics * queues) as u64;
    // Queues are emptied in turns, a batch at a time: some have more to give than others.
    let per_queue = 2 * (MESSAGES + inflight).div_ceil(all_queues) + BATCH as u64;
    let topic = Topic { per_queue, message_groups };
    let ask = ask(orderly);
    let mut pops: Vec<Pop> = (0..topics).map(|_| Pop::new(&vec![0; queues])).collect();
    let mut held = 0;
    let mut turn = 0;
    while held < inflight {
        let taken = pops[turn % topics].take(&ask, &topic).deliveries.len() as u64;
        held += taken;
        turn += 1;
        assert!(taken > 0 || topics > 1, "nothing is left");
    }
    let (began, mut done) = (Instant::now(), 0);
    while done < MESSAGES {
        let pop = &mut pops[turn % topics];
        turn += 1;
        let deliveries = pop.take(&ask, &topic).deliveries;
        done += deliveries.len() as u64;
        for delivery in &deliveries {
            pop.finish(delivery.position);
        }
        assert!(!deliveries.is_empty() || topics > 1, "nothing is left");
    }
    began.elapsed().as_nanos() as f64 / done as f64
}

fn median(mut measure: impl FnMut() -> f64) -> f64 {
    let mut rounds: Vec<f64> = (0..ROUNDS).map(|_| measure()).collect();
    rounds.sort_by(f64::total_cmp);
    rounds[ROUNDS / 2]
}

fn main() {
    if let Some(order) = std::env::args().nth(1) {
        return memory(&order);
    }
    println!("{:<58} {:>8} {:>7}", "taken and acknowledged, batches of 32", "ns each", "ratio");
    let mut first = None;
    for (what, topics, queues, inflight) in [
        ("1 queue, nothing else in flight", 1, 1, 0),
        ("8 queues", 1, 8, 0),
        ("8 queues, 1,000 in flight", 1, 8, 1_000),
        ("8 queues, 100,000 in flight", 1, 8, 100_000),
        ("1,024 queues", 1, 1024, 0),
        ("100,000 queues of 100 topics", 100, 1000, 0),
    ] {
        let ns = median(|| cost_ns(topics, queues, inflight, 1, false));
        let first = *first.get_or_insert(ns);
        println!("{what:<58} {ns:>8.0} {:>7.2}", ns / first);
    }
    let plain = median(|| cost_ns(1, 8, 0, 100_000, false));
    let orderly = median(|| cost_ns(1, 8, 0, 100_000, true));
    println!("{:<58} {orderly:>8.0} {:>7.2}", "orderly, 100,000 message groups, 8 queues", orderly / plain);

    // Each in a process of its own: memory that was given back is not given out again for another's figure.
    for order in MEMORY_ROWS {
        let program = std::env::current_exe().unwrap();
        assert!(Command::new(program).arg(order).status().unwrap().success());
    }
}

/// Prints the memory for each of a million messages in flight.
fn memory(order: &str) {
    const INFLIGHT: u64 = 1_000_000;
    let row = MEMORY_ROWS.iter().position(|row| *row == order);
    let orderly = row.unwrap_or_else(|| panic!("{order:?} is none of {MEMORY_ROWS:?}")) == 1;
    let message_groups = if orderly { u64::MAX >> 33 } else { 1 };
    let topic = Topic { per_queue: INFLIGHT, message_groups };
    let before = process::used().resident_bytes;
    let mut pop = Pop::new(&[0; 8]);
    let mut held = 0;
    while held < INFLIGHT {
        held += pop.take(&ask(orderly), &topic).deliveries.len() as u64;
    }
    let bytes = process::used().resident_bytes.saturating_sub(before) as f64 / held as f64;
    println!("{:<58} {bytes:>8.0}", format!("bytes for each message in flight, {order}"));
}
