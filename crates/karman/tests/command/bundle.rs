use crate::support::{Node, stderr};

#[test]
fn a_bundle_is_a_file_of_its_own_and_says_what_is_in_it() {
    let node = Node::start();
    let parent = tempfile::tempdir().unwrap();
    let path = |name: &str| parent.path().join(name).to_str().unwrap().to_owned();
    node.done(&["group", "create", "shipping"]);
    let bundle = node.done(&["bundle", &path("one.tar.gz"), "--metrics", &node.dev.metrics]);
    // It listens where there was room, which its configuration does not know.
    let problems = bundle["problems"].as_array().unwrap();
    let is_metrics = |problem: &&serde_json::Value| problem.as_str().unwrap().starts_with("metrics of ");
    assert_eq!(problems.iter().filter(is_metrics).count(), 1, "{bundle}");
    let entries = bundle["entries"].to_string();
    let names = ["cluster", "config", "topics", "routes", "groups", "clients", "users", "doctor", "versions"];
    assert!(names.iter().all(|name| entries.contains(&format!("{name}.json"))), "{entries}");
    assert!(entries.contains("metrics/"), "{entries}");
    let table = node.table(&["bundle", &path("two.tgz")]);
    assert!(table.contains(" files, ") && table.contains("two.tgz"), "{table}");
    for (file, code, words) in [("two.tgz", 1, "make "), ("notes.txt", 2, ".tar.gz")] {
        let output = node.run(&["bundle", &path(file)]);
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        assert!(stderr(&output).contains(words) && output.stdout.is_empty(), "{}", stderr(&output));
    }
}

#[test]
fn what_a_node_is_configured_with_is_shown_by_key() {
    let node = Node::start();
    let all = node.done(&["cluster", "config"]);
    let broker = all.as_array().unwrap().iter().find(|row| row["config"]["fileReservedTime"] == "72");
    let name = broker.unwrap_or_else(|| panic!("{all}"))["node"].as_str().unwrap();
    let one = node.done(&["cluster", "config", "--broker", name, "--key", "deleteWhen"]);
    assert_eq!(one[0]["config"], serde_json::json!({"deleteWhen": "04"}), "{one}");
    let table = node.table(&["cluster", "config", "--key", "fileReservedTime"]);
    assert!(table.contains("fileReservedTime") && table.contains("72"), "{table}");
    for (arguments, words) in [(["--key", "noSuchKey"], "noSuchKey"), (["--broker", "broker-x"], "broker-x")]
    {
        let output = node.run(&[&["cluster", "config"], &arguments[..]].concat());
        assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
        assert!(stderr(&output).contains(words) && output.stdout.is_empty(), "{}", stderr(&output));
    }
}
