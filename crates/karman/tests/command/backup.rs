use serde_json::Value;

use crate::support::{Node, json, karman, stderr};

#[test]
fn a_backup_is_shown_before_it_is_made_and_says_what_it_holds() {
    let (node, target) = (Node::start(), Node::start());
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("backup");
    let directory = directory.to_str().unwrap();
    node.done(&["topic", "create", "sessions", "--type", "lite"]);
    for body in ["one", "two"] {
        node.done(&["message", "send", "orders", "--body", body]);
    }
    node.done(&["message", "send", "sessions", "--body", "hello", "--lite-topic", "s-1"]);
    let done = node.done(&["message", "receive", "orders", "--group", "shipping", "--wait", "5"]);

    let planned = node.done(&["backup", directory, "--dry-run"]);
    assert_eq!((&planned["done"], &planned["messages"]), (&false.into(), &2.into()), "{planned}");
    assert!(!std::path::Path::new(directory).exists());
    let table = node.table(&["backup", directory]);
    assert!(table.contains("2 messages and 0 delayed ones") && table.contains("1 groups"), "{table}");
    assert!(table.contains("not kept: topic sessions: 1 messages of its lite topics"), "{table}");

    let planned = target.done(&["restore", directory, "--dry-run", "--broker", &renamed(&node, &target)]);
    assert_eq!(
        (&planned["done"], &planned["messages"], &planned["topics"][0]["there"]),
        (&false.into(), &2.into(), &0.into())
    );
    let broker = renamed(&node, &target);
    let table = target.table(&["restore", directory, "--broker", &broker]);
    assert!(table.contains("2 messages, 0 delayed ones, 1 groups: restored"), "{table}");
    assert_eq!(target.done(&["group", "show", "shipping"])["suspended"], false);
    let rest = target.lines(&["message", "receive", "orders", "--group", "shipping", "--wait", "2"]);
    let bodies: Vec<&Value> = rest.iter().map(|message| &message["body"]).collect();
    assert_eq!(bodies, [if done["body"] == "one" { "two" } else { "one" }]);
}

fn renamed(node: &Node, target: &Node) -> String {
    let name = |node: &Node| node.done(&["cluster", "list"])[0]["broker"].as_str().unwrap().to_owned();
    format!("{}={}", name(node), name(target))
}

#[test]
fn what_cannot_be_backed_up_or_restored_says_why() {
    let node = Node::start();
    let parent = tempfile::tempdir().unwrap();
    let path = |name: &str| parent.path().join(name).to_str().unwrap().to_owned();
    let refused = |arguments: &[&str], code: i32, words: &str| {
        let output = node.run(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", stderr(&output));
        assert!(
            stderr(&output).contains(words) && output.stdout.is_empty(),
            "{arguments:?}: {}",
            stderr(&output)
        );
    };
    refused(&["restore", &path("nothing")], 3, "there is no backup");
    refused(&["backup", &path("some"), "--topic", "bills"], 3, "no broker has topic \"bills\"");
    refused(&["restore", &path("some"), "--broker", "a"], 2, "FROM=TO");
    std::fs::create_dir(path("mine")).unwrap();
    std::fs::write(path("mine/letter"), "dear").unwrap();
    refused(&["backup", &path("mine")], 1, "holds \"letter\"");

    let (some, settings) = (path("one"), path("settings"));
    node.done(&["topic", "create", "bills"]);
    node.done(&["message", "send", "bills", "--body", "of light"]);
    let made = node.done(&["backup", &some, "--topic", "orders"]);
    assert_eq!((made["topics"].as_array().unwrap().len(), &made["messages"]), (1, &0.into()), "{made}");
    refused(&["backup", &some], 1, "complete backup");
    let made = node.done(&["backup", &settings, "--settings-only"]);
    assert_eq!((made["topics"].as_array().unwrap().len(), &made["messages"]), (2, &0.into()), "{made}");
    // What is there as it was is left as it is.
    let again = node.done(&["restore", &settings]);
    assert_eq!((&again["done"], &again["messages"]), (&true.into(), &0.into()), "{again}");
    assert_eq!(json(&karman(&node.dev.endpoint, &["-o", "json", "topic", "list"]))[0]["messages"], 1);
}
