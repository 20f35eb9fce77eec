use std::time::{Duration, Instant};

use crate::support::{Dev, karman, stderr};

/// From the start of the process to its end: nobody waits for a command.
const BOUND: Duration = Duration::from_millis(50);
/// Other tests run beside this one: the fastest run tells what the command needs, the median what the machine does besides.
/// On a machine that is full it takes more runs until one of them has a core for itself.
const RUNS: std::ops::RangeInclusive<usize> = 8..=50;

#[test]
fn a_command_is_done_before_anybody_waits_for_it() {
    let data = tempfile::tempdir().unwrap();
    let dev = Dev::start(data.path());
    let build = if cfg!(debug_assertions) { "debug" } else { "release" };
    for arguments in [&["--help"][..], &["topic", "list"]] {
        let run = || {
            let started = Instant::now();
            let output = karman(&dev.endpoint, arguments);
            assert!(output.status.success(), "{}", stderr(&output));
            started.elapsed()
        };
        let mut times = Vec::new();
        while times.len() < *RUNS.start() || (times[0] > BOUND && times.len() < *RUNS.end()) {
            times.push(run());
            times.sort();
        }
        let [fastest, median] = [times[0], times[times.len() / 2]].map(|time| time.as_secs_f64() * 1e3);
        println!("karman {arguments:?}: fastest {fastest:.1} ms, median {median:.1} ms ({build} build)");
        assert!(times[0] <= BOUND, "karman {arguments:?} needs {fastest:.1} ms at best");
    }
}
