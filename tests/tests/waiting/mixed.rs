//! The mixed load in short, judged by the checker. The long one is a command: see `docs/testing.md`.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use karman_checker::History;
use karman_checker::report::Report;
use karman_tests::mixed_load::{Options, run};

#[test]
fn brokers_that_are_killed_under_a_mixed_load_break_no_invariant() {
    let options = Options {
        messages: 20_000,
        seconds: 40,
        kill_every_seconds: 11,
        seed: karman_tests::seed(),
        large_bytes: (64 << 10, 256 << 10),
        delay_ms: (500, 8000),
        flips: 2,
        ..Options::default()
    };
    // It stays when the test fails, for the program `karman-checker`.
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mixed.jsonl");
    let summary = run(options, &file);
    eprintln!("{summary:?}");
    let open = || BufReader::new(File::open(&file).unwrap());
    let mut report = Report::of(&History::read(open()).unwrap());
    report.explain(3, open()).unwrap();
    let table = report.table();
    eprintln!("{table}");
    assert!(report.is_well(), "{}: {table}", file.display());
    assert_eq!(summary.kills, 3);
    // A check that has looked at nothing has shown nothing.
    let of_cluster = ["S11", "S12", "S13", "S14"];
    for verdict in report.verdicts.iter().filter(|verdict| !of_cluster.contains(&verdict.id)) {
        assert!(verdict.checked > 0, "{} has looked at nothing", verdict.id);
    }
    assert!(report.figures.dead_letters > 50 && report.figures.again > 500, "{:?}", report.figures);
}
