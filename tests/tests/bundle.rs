//! A bundle of a secured cluster with a broker down: everything that can be known is in it, and no secret.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

use karman_tests::Cluster;
use karman_tests::cluster::{ROOT, program};
use serde_json::Value;

const SHOP_SECRET: &str = "a secret of the shop";
const BODY: &str = "what only its reader may see";

#[test]
fn a_bundle_has_what_nodes_say_and_no_secret_and_names_who_is_silent() {
    let mut cluster = Cluster::builder().namesrvs(1).brokers(2).secured().start();
    cluster.create_topic("orders");
    std::fs::write(cluster.path().join("shop"), SHOP_SECRET).unwrap();
    cluster.karman(&["user", "create", "shop", "--secret-file", "shop"]);
    cluster.karman(&["message", "send", "orders", "--body", BODY]);
    cluster.karman(&["message", "receive", "orders", "--group", "shipping", "--wait", "5"]);
    cluster.brokers[1].kill();
    let (endpoint, dead) = (cluster.brokers[0].endpoint(), cluster.brokers[1].endpoint());
    let run = |arguments: &[&str]| {
        let mut command = Command::new(program("karman"));
        command.args(["-o", "json", "-e", &endpoint]).args(arguments).current_dir(cluster.path());
        command.env("KARMAN_ACCESS_KEY", ROOT.0).env("KARMAN_SECRET_KEY", ROOT.1);
        command.output().unwrap()
    };
    let output =
        run(&["bundle", "b.tar.gz", "--node", &dead, "--log", "broker-a.log", "--log", "no-such.log"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let bundle: Value = serde_json::from_slice(&output.stdout).unwrap();
    let problems = bundle["problems"].to_string();
    assert!(problems.contains("no-such.log") && problems.contains(&dead), "{problems}");

    let unpacked =
        Command::new("tar").args(["xzf", "b.tar.gz"]).current_dir(cluster.path()).status().unwrap();
    assert!(unpacked.success());
    let read = |name: &str| {
        let path = cluster.path().join("karman-bundle").join(name);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}; {bundle}"))
    };
    let config: Value = serde_json::from_str(&read("config.json")).unwrap();
    let own = config.as_array().unwrap().iter().find(|node| node["node"] == "broker-a").unwrap();
    assert_eq!(own["config"]["clusterSecret"], "<hidden>", "{own}");
    assert_eq!(own["config"]["initAuthenticationUser"], "<hidden>", "{own}");
    assert!(read("metrics/broker-a.txt").contains("rocketmq_"));
    assert!(read("users.json").contains("shop") && read("versions.json").contains("architecture"));
    assert!(read("doctor.json").contains(&dead) && read("missing.txt").contains(&dead));
    assert!(bundle["entries"].to_string().contains("broker-a.log"), "{bundle}");

    let mut all = String::new();
    for entry in bundle["entries"].as_array().unwrap() {
        all += &read(entry["name"].as_str().unwrap());
    }
    for secret in [ROOT.1, SHOP_SECRET, "the-secret-of-the-cluster", BODY] {
        assert!(!all.contains(secret), "{secret:?} is in the bundle");
    }
    let again = run(&["bundle", "b.tar.gz"]);
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(!again.status.success() && said.contains("make b.tar.gz"), "{said}");
}
