//! The other ways in which a group may wait before it tries a refused message again.

use karman_tests::matrix::refused_until_dead_and_redriven;
use karman_tests::stage::two_brokers;
use karman_tests::{Language, Stage};

fn refused(language: Language, policy: [&str; 2], waits_ms: [u64; 2]) {
    let cluster = two_brokers();
    let stage = Stage::through_namesrv(&cluster, language);
    refused_until_dead_and_redriven(&stage, "orders", policy, waits_ms);
}

#[test]
fn what_java_refuses_waits_by_a_curve_too() {
    refused(Language::Java, ["--retry-exponential", "1s,60s,2"], [1000, 2000]);
}

/// Python knows steps only; it is given those that the curve takes.
#[test]
fn what_python_refuses_waits_by_a_curve_too() {
    refused(Language::Python, ["--retry-exponential", "1s,60s,2"], [1000, 2000]);
}

/// Node knows a curve only, and takes its seconds for milliseconds.
#[test]
fn what_node_refuses_dies_when_the_group_has_steps() {
    refused(Language::Node, ["--retry-steps", "1s,2s"], [1, 2]);
}
