//! The row about queries: all messages with a key, wherever in the log they lie; and all keys of the log.

use std::sync::Arc;
use std::time::Instant;

use karman_store::{Silent, Store};

use crate::options::Options;
use crate::process::{self, quantile};
use crate::restart::large_log;
use crate::rows::Rounds;
use crate::{KEYS, Outcome, open, order_key};

const QUERIES: u64 = 1000;
/// More than there are of any key in the default log.
const MOST: usize = 64;

/// Each round: [p50, p99 in us of keys that are there, messages found by each; p99 of keys that are not; keys visited a
/// second].
pub(crate) fn measure(options: &Options, round: Rounds<'_>) -> Outcome<()> {
    let store = open(&large_log(options)?, Arc::new(Silent))?;
    // Keys are used one after the other, so in a small log the last ones are not.
    let messages = store.watermarks().confirmed / options.size_bytes.next_multiple_of(8) as u64 / 2;
    let known = |number: u64| number * (KEYS.min(messages) / QUERIES);
    let unknown = |number: u64| KEYS + number;
    // The first pass brings the pages in.
    times(&store, known)?;
    for _ in 0..options.rounds {
        let (there, found) = times(&store, known)?;
        let (absent, none) = times(&store, unknown)?;
        if found == 0 || none != 0 {
            return Err(format!("found {found} messages by known keys and {none} by unknown ones").into());
        }
        let each = found as f64 / QUERIES as f64;
        let absent = quantile(&absent, 0.99);
        round(vec![quantile(&there, 0.5), quantile(&there, 0.99), each, absent, keys_per_second(&store)?]);
    }
    Ok(store.close()?)
}

/// How long queries take in us, sorted, and how much they find together.
fn times(store: &Store, key: impl Fn(u64) -> u64) -> Outcome<(Vec<u32>, usize)> {
    let (mut times_us, mut found, mut count) = (Vec::new(), Vec::new(), 0);
    for number in 0..QUERIES {
        let start = Instant::now();
        store.find(order_key(key(number)), 0..u64::MAX, MOST, &mut found)?;
        times_us.push(process::microseconds(start.elapsed()));
        count += found.len();
        found.clear();
    }
    times_us.sort_unstable();
    Ok((times_us, count))
}

/// How fast all keys of the log are visited.
fn keys_per_second(store: &Store) -> Outcome<f64> {
    let (start, mut count, mut sum) = (Instant::now(), 0_u64, 0_u64);
    store.keys_since(0, &mut |key, at| {
        count += 1;
        sum = sum.wrapping_add(key ^ at.0);
    })?;
    std::hint::black_box(sum);
    Ok(count as f64 / start.elapsed().as_secs_f64())
}
