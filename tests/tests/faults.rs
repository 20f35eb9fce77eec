//! The fault run in short: a fault each 10 s for `KARMAN_FAULT_SECONDS` (120), judged by the checker, while official clients send
//! and receive ordered messages beside its load. The whole one is a command: see `docs/reliability.md`. Needs root, and fails
//! without it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use karman_remoting::proto::karman::GroupConfig;
use karman_remoting::proto::v2::{Code, MessageType};
use karman_tests::faults::{Cluster, Options, run};
use karman_tests::{Language, Load, Raw, until};

/// Longer than any run.
const FAULTS_DEADLINE: Duration = Duration::from_secs(3600);

/// Java and Python, each with a topic of its own: nothing is lost, and each message group comes in order.
fn official_clients(cluster: &Cluster<'_>, logs: &Path) {
    let raw = Raw::connect(&cluster.owners[0].0);
    // What it takes is not done before the next is looked at.
    let held = GroupConfig { name: "held".into(), orderly: Some(false), ..Default::default() };
    assert_eq!(raw.make_group(held).code(), Code::Ok);
    let loads = [Language::Java, Language::Python].map(|language| {
        let topic = format!("ordered-{language:?}");
        assert_eq!(raw.create_topic(&topic, MessageType::Fifo).code(), Code::Ok);
        Load::ordered(language, cluster.access_point, &topic, logs)
    });
    cluster.ready.store(true, Ordering::Relaxed);
    until("all faults are over", FAULTS_DEADLINE, || cluster.healed.load(Ordering::Relaxed).then_some(()));
    for mut load in loads {
        // Whatever became of it in between: it goes on by itself.
        load.advance(50);
        load.finish_at(cluster.owners).assert_in_order(&HashSet::new());
    }
}

#[test]
fn nothing_that_was_promised_is_broken_by_faults() {
    let seconds = std::env::var("KARMAN_FAULT_SECONDS").map_or(120, |text| text.parse().unwrap());
    let options =
        Options { seconds, rate: 200, every_seconds: 10, seed: karman_tests::seed(), kinds: Vec::new() };
    // It stays, with the logs of all servers.
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("faults");
    let logs = out.with_extension("clients");
    for old in [&out, &logs] {
        let _ = std::fs::remove_dir_all(old);
    }
    std::fs::create_dir_all(&logs).unwrap();
    let beside = |cluster: &Cluster<'_>| official_clients(cluster, &logs);
    let summary = run(&options, &out, &Arc::default(), beside).unwrap();
    let report = summary.report.as_ref().unwrap();
    eprintln!("{}\n{}", summary.markdown(), report.table());
    assert!(summary.is_well(), "see {}", out.display());
    // A check that has looked at nothing has shown nothing; not every run has a disk that fails.
    for verdict in report.verdicts.iter().filter(|verdict| verdict.id != "S13") {
        assert!(verdict.checked > 0, "{} has looked at nothing", verdict.id);
    }
}
