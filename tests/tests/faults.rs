//! The fault run in short: a fault each 10 s for `KARMAN_FAULT_SECONDS` (120), judged by the checker. The whole one is a
//! command: see `docs/reliability.md`. Needs root, and fails without it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;

use karman_tests::faults::{Options, run};

#[test]
fn nothing_that_was_promised_is_broken_by_faults() {
    let seconds = std::env::var("KARMAN_FAULT_SECONDS").map_or(120, |text| text.parse().unwrap());
    let options =
        Options { seconds, rate: 200, every_seconds: 10, seed: karman_tests::seed(), kinds: Vec::new() };
    // It stays, with the logs of all servers.
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("faults");
    let _ = std::fs::remove_dir_all(&out);
    let summary = run(&options, &out, &Arc::default()).unwrap();
    let report = summary.report.as_ref().unwrap();
    eprintln!("{}\n{}", summary.markdown(), report.table());
    assert!(summary.is_well(), "see {}", out.display());
    // A check that has looked at nothing has shown nothing; not every run has a disk that fails.
    for verdict in report.verdicts.iter().filter(|verdict| verdict.id != "S13") {
        assert!(verdict.checked > 0, "{} has looked at nothing", verdict.id);
    }
}
