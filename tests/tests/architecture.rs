//! Which crate may use which: the directions of dependency that keep the parts apart.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;

/// The crates of the workspace and what each may use of the others.
const ALLOWED: [(&str, &[&str]); 9] = [
    ("karman-remoting", &[]),
    ("karman-store", &[]),
    ("karman-client", &["karman-remoting"]),
    ("karman-namesrv", &["karman-remoting"]),
    ("karman-broker", &["karman-remoting", "karman-store"]),
    ("karman", &["karman-remoting", "karman-store", "karman-client", "karman-namesrv", "karman-broker"]),
    ("karman-examples", &["karman-remoting", "karman-client"]),
    // The broker and the namesrv for the simulation of their protocol; all else drives them as processes.
    (
        "karman-tests",
        &[
            "karman-remoting",
            "karman-store",
            "karman-client",
            "karman-checker",
            "karman-broker",
            "karman-namesrv",
        ],
    ),
    // It judges what the others did, so it knows none of them.
    ("karman-checker", &[]),
];

/// The store is a library that knows nothing of the network.
const NOT_IN_STORE: [&str; 6] = ["tonic", "hyper", "prost", "axum", "rustls", "socket2"];

fn packages() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(karman_tests::driver::root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

fn dependencies(package: &Value) -> Vec<&str> {
    package["dependencies"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect()
}

#[test]
fn crates_depend_only_in_the_allowed_directions() {
    let allowed = BTreeMap::from(ALLOWED);
    let packages = packages();
    for package in &packages {
        let name = package["name"].as_str().unwrap();
        let may_use =
            allowed.get(name).unwrap_or_else(|| panic!("{name} is a new crate: say here what it may use"));
        for dependency in dependencies(package) {
            let inside = allowed.contains_key(dependency);
            assert!(!inside || may_use.contains(&dependency), "{name} must not use {dependency}");
        }
    }
    assert_eq!(packages.len(), ALLOWED.len(), "a crate of the list is gone");
}

#[test]
fn the_store_knows_no_network() {
    for package in packages().iter().filter(|package| package["name"] == "karman-store") {
        for dependency in dependencies(package) {
            assert!(!NOT_IN_STORE.contains(&dependency), "karman-store must not use {dependency}");
        }
    }
}

#[test]
fn no_crate_is_a_drawer_for_everything() {
    for package in packages() {
        let name = package["name"].as_str().unwrap().to_owned();
        let drawer = ["common", "util", "model"].iter().find(|word| name.contains(*word));
        assert!(drawer.is_none(), "{name}: a shared type belongs to the crate that owns it");
    }
}
