use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Node, json as parsed, stderr};

impl Node {
    fn send(&self, body: &str) -> String {
        let sent = self.done(&["message", "send", "orders", "--body", body]);
        sent["message_id"].as_str().unwrap().to_owned()
    }

    fn receive(&self, group: &str, more: &[&str]) -> Vec<Value> {
        let receive = ["message", "receive", "orders", "--group", group, "--wait", "2"];
        self.lines(&[&receive, more].concat())
    }
}

fn sum(rows: &Value, name: &str) -> u64 {
    rows.as_array().unwrap().iter().map(|row| row[name].as_u64().unwrap()).sum()
}

#[test]
fn settings_of_topics_and_groups_are_made_shown_and_changed_one_by_one() {
    let node = Node::start();
    node.done(&[
        "topic",
        "create",
        "bills",
        "--type",
        "fifo",
        "--queues",
        "2",
        "--ttl",
        "1h",
        "--dedup-window-minutes",
        "5",
    ]);
    node.done(&["topic", "update", "bills", "--reserved-hours", "48"]);
    let shown = node.done(&["topic", "show", "bills"]);
    assert_eq!(
        [&shown["type"], &shown["ttl_seconds"], &shown["dedup_window_minutes"], &shown["reserved_hours"]],
        [&json!("fifo"), &json!(3600), &json!(5), &json!(48)]
    );
    node.done(&["topic", "update", "bills", "--ttl", "0s"]);
    assert!(node.done(&["topic", "show", "bills"])["ttl_seconds"].is_null());
    assert!(node.table(&["topic", "show", "bills"]).contains("kept 48 h"));

    node.done(&["group", "create", "shipping", "--retry-max-times", "3", "--retry-steps", "1s,1m"]);
    node.done(&["group", "update", "shipping", "--orderly"]);
    let shown = node.done(&["group", "show", "shipping"]);
    assert_eq!(
        [&shown["retry_max_times"], &shown["retry_steps_ms"], &shown["orderly"], &shown["suspended"]],
        [&json!(3), &json!([1000, 60_000]), &json!(true), &json!(false)]
    );
    node.done(&["group", "suspend", "shipping"]);
    assert_eq!(node.done(&["group", "list"])[0]["suspended"], true);
    assert!(node.table(&["group", "show", "shipping"]).contains("suspended"));
    node.done(&["group", "resume", "shipping"]);
    assert_eq!(node.done(&["group", "show", "shipping"])["suspended"], false);

    for missing in [
        &["group", "show", "nobody"][..],
        &["group", "suspend", "nobody"],
        &["group", "lag", "nobody"],
        &["topic", "update", "nothing", "--ttl", "1h"],
        &["offset", "skip", "nobody", "orders", "--yes"],
        &["offset", "skip", "shipping", "nothing", "--yes"],
        &["dlq", "redrive", "nobody", "--yes"],
        &["dlq", "show", "shipping"],
    ] {
        let output = node.run(missing);
        assert_eq!(output.status.code(), Some(3), "{missing:?}: {}", stderr(&output));
    }
    for wrong in [
        &["group", "update", "shipping"][..],
        &["topic", "update", "bills"],
        &["group", "create", "x", "--retry-steps", "1s", "--retry-exponential", "1s,2s,2"],
        &["offset", "reset", "shipping", "orders"],
        &["message", "send", "orders", "--body", "x", "--delay", "level-19"],
    ] {
        assert_eq!(node.run(wrong).status.code(), Some(2), "{wrong:?}");
    }
    let refused = node.run(&["topic", "update", "orders", "--ttl", "1500ms"]);
    assert!(stderr(&refused).contains("whole seconds"), "{}", stderr(&refused));
    assert_eq!(node.dev.stop(), Some(0));
}

#[test]
fn a_group_is_looked_at_and_moved() {
    let node = Node::start();
    for number in 0..6 {
        node.send(&number.to_string());
    }
    assert_eq!(node.receive("shipping", &["--count", "2"]).len(), 2);
    assert_eq!(node.receive("shipping", &["--no-ack"]).len(), 1);
    let shown = node.done(&["group", "show", "shipping"]);
    let queues = &shown["queues"];
    assert_eq!(
        (sum(queues, "ready"), sum(queues, "inflight"), sum(queues, "max_offset")),
        (3, 1, 6),
        "{shown}"
    );
    let lag = node.done(&["group", "lag", "shipping"]);
    assert_eq!((&lag[0]["ready"], &lag[0]["inflight"], &lag[0]["queues"]), (&json!(3), &json!(1), &json!(2)));
    assert!(lag[0]["oldest_ready_ms"].as_u64().unwrap() > 0);
    node.table(&["group", "show", "shipping"]);
    node.table(&["group", "lag", "shipping"]);
    assert_eq!(node.lines(&["message", "peek", "orders", "--group", "shipping"]).len(), 3);

    let before = node.done(&["group", "show", "shipping", "--topic", "orders"]);
    let planned = node.done(&["offset", "reset", "shipping", "orders", "--earliest", "--dry-run"]);
    assert_eq!((&planned["done"], planned["moves"].as_array().unwrap().len()), (&json!(false), 2));
    assert_eq!((sum(&planned["moves"], "to"), sum(&planned["moves"], "inflight")), (0, 1), "{planned}");
    let unconfirmed = node.run(&["offset", "reset", "shipping", "orders", "--earliest"]);
    assert_eq!(unconfirmed.status.code(), Some(2));
    assert!(stderr(&unconfirmed).contains("--yes"), "{}", stderr(&unconfirmed));
    assert_eq!(node.done(&["group", "show", "shipping", "--topic", "orders"])["queues"], before["queues"]);
    assert!(
        node.table(&["offset", "skip", "shipping", "orders", "--dry-run"]).contains("nothing was changed")
    );

    let moved = node.done(&["offset", "reset", "shipping", "orders", "--earliest", "--yes"]);
    assert_eq!((&moved["done"], &moved["moves"]), (&json!(true), &planned["moves"]));
    assert_eq!(node.receive("shipping", &["--count", "6"]).len(), 6, "all of them again");
    let out_of_range = node.run(&["offset", "reset", "shipping", "orders", "--offset", "99", "--yes"]);
    assert_eq!(out_of_range.status.code(), Some(1));
    assert!(stderr(&out_of_range).contains("between 0 and 3"), "{}", stderr(&out_of_range));

    node.done(&["group", "create", "billing"]);
    node.done(&["offset", "clone", "billing", "orders", "--from", "shipping", "--yes"]);
    assert!(node.receive("billing", &[]).is_empty(), "it never read, and begins where the other is");
    node.done(&["offset", "reset", "billing", "orders", "--at", "1h", "--queue", "0", "--yes"]);
    assert_eq!(node.receive("billing", &["--count", "6"]).len(), 3, "one queue of two");
    node.done(&["offset", "skip", "shipping", "orders", "--yes"]);
    assert_eq!(node.dev.stop(), Some(0));
}

#[test]
fn messages_are_found_by_time_and_place_and_looked_at_without_being_taken() {
    let node = Node::start();
    let ids: Vec<String> = (0..5).map(|number| node.send(&number.to_string())).collect();
    let bodies = |arguments: &[&str]| -> Vec<Value> {
        let command = [&["message", "query", "orders"], arguments].concat();
        node.lines(&command).iter().map(|line| line["body"].clone()).collect()
    };
    assert_eq!(bodies(&["--time", "--begin", "1h"]), ["0", "1", "2", "3", "4"], "the first stored first");
    assert_eq!(bodies(&["--time", "--max", "2"]), ["0", "1"]);
    assert_eq!(node.run(&["message", "query", "orders", "--time", "--end", "1h"]).status.code(), Some(3));
    let third = node.lines(&["message", "query", "orders", "--id", &ids[2]])[0]["store_ms"].to_string();
    assert!(bodies(&["--time", "--begin", &third]).contains(&json!("2")));
    assert_eq!(bodies(&["--queue", "0", "--offset", "0"]).len(), 1);
    assert_eq!(bodies(&["--queue", "0", "--offset", "0", "--max", "64"]).len(), 3);
    let peeked = node.lines(&["message", "peek", "orders", "--max", "2"]);
    assert_eq!(peeked.iter().map(|line| &line["body"]).collect::<Vec<_>>(), ["3", "4"]);
    assert_eq!(node.receive("shipping", &["--count", "5"]).len(), 5);
    let empty = node.run(&["message", "peek", "orders", "--group", "shipping"]);
    assert!(empty.status.success() && empty.stdout.is_empty() && stderr(&empty).contains("no message"));
    assert_eq!(node.dev.stop(), Some(0));
}

#[test]
fn why_tells_where_a_message_is_at_each_step() {
    let node = Node::start();
    let id = node.send("a book");
    let why = |more: &[&str]| node.done(&[&["message", "why", &id], more].concat());
    let trace = why(&[]);
    assert_eq!((trace.as_array().unwrap().len(), &trace[0]["kind"]), (1, &json!("message")), "{trace}");
    assert_eq!(
        (&trace[0]["state"], &trace[0]["durable"]),
        (&json!("no group reads the topic"), &json!(true))
    );

    node.done(&["group", "create", "late"]);
    let unread = why(&["orders", "--group", "late"]);
    assert!(unread[0]["groups"][0]["reason"].as_str().unwrap().contains("has not read"), "{unread}");
    assert_eq!(node.receive("shipping", &["--no-ack"]).len(), 1);
    let held = why(&["orders"])[0]["groups"][0].clone();
    assert_eq!(
        (&held["group"], &held["state"], &held["attempt"]),
        (&json!("shipping"), &json!("delivered"), &json!(1))
    );
    assert!(held["visible_at_ms"].as_u64().unwrap() > 0, "{held}");
    assert!(node.table(&["message", "why", &id]).contains("group shipping: delivered"));

    node.done(&["offset", "reset", "shipping", "orders", "--earliest", "--yes"]);
    let state = || why(&["orders", "--group", "shipping"])[0]["groups"][0]["state"].clone();
    assert_eq!(state(), "waiting");
    assert_eq!(node.receive("shipping", &[]).len(), 1);
    assert_eq!(state(), "done");

    let unknown = node.run(&["message", "why", "no-such-id", "orders"]);
    assert_eq!(unknown.status.code(), Some(3), "{}", stderr(&unknown));
    assert_eq!(node.dev.stop(), Some(0));
}

#[test]
fn messages_of_each_kind_are_sent_by_hand() {
    let node = Node::start();
    for kind in ["fifo", "priority"] {
        node.done(&["topic", "create", kind, "--type", kind]);
    }
    let send = |topic: &str, more: &[&str]| {
        node.run(&[&["message", "send", topic, "--body", "a book"], more].concat())
    };
    parsed(&send("fifo", &["--message-group", "customer-7"]));
    parsed(&send("priority", &["--priority", "3"]));
    let refused = send("orders", &["--message-group", "customer-7"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("FIFO") && stderr(&refused).contains("orders"), "{}", stderr(&refused));
    assert_eq!(node.dev.stop(), Some(0));
}

#[test]
fn a_group_is_deleted_with_all_it_has_and_one_of_its_name_begins_anew() {
    let node = Node::start();
    for number in 0..3 {
        node.send(&number.to_string());
    }
    assert_eq!(node.receive("shipping", &["--count", "2"]).len(), 2);
    assert_eq!(node.receive("billing", &["--count", "3"]).len(), 3);
    node.done(&["topic", "create", "%DLQ%shipping", "--queues", "1"]);
    node.done(&["message", "send", "%DLQ%shipping", "--body", "dead"]);

    let delete = ["group", "delete", "shipping"];
    let doomed = node.done(&[&delete[..], &["--dry-run"]].concat());
    assert_eq!((&doomed["done"], &doomed["members"]), (&json!(false), &json!([])), "{doomed}");
    let (progress, letters) = (&doomed["progress"][0], &doomed["dead_letters"][0]);
    assert_eq!(
        [&progress["topic"], &progress["queues"], &progress["ready"]],
        [&json!("orders"), &json!(2), &json!(1)]
    );
    assert_eq!([&letters["topic"], &letters["messages"]], [&json!("%DLQ%shipping"), &json!(1)]);
    let table = node.table(&[&delete[..], &["--dry-run"]].concat());
    assert!(
        ["progress", "dead letters", "nothing was deleted"].iter().all(|text| table.contains(text)),
        "{table}"
    );
    let unconfirmed = node.run(&delete);
    assert_eq!(unconfirmed.status.code(), Some(2));
    assert!(stderr(&unconfirmed).contains("--yes"), "{}", stderr(&unconfirmed));
    for how in ["--dry-run", "--yes"] {
        let nobody = node.run(&["group", "delete", "nobody", how]);
        assert_eq!(nobody.status.code(), Some(3), "{how}: {}", stderr(&nobody));
    }
    assert_eq!(node.run(&["group", "delete", "shipping", "--yes", "--dry-run"]).status.code(), Some(2));

    a_member_keeps_its_group(&node);
    let deleted = node.done(&[&delete[..], &["--yes", "--force"]].concat());
    assert_eq!(
        (&deleted["name"], &deleted["brokers"][0]["code"]),
        (&json!("shipping"), &json!("OK")),
        "{deleted}"
    );
    let is_gone = |node: &Node| {
        let groups: Vec<Value> = node.done(&["group", "list"]).as_array().unwrap().clone();
        let names: Vec<&str> = groups.iter().map(|row| row["group"].as_str().unwrap()).collect();
        assert!(names.contains(&"billing") && !names.contains(&"shipping"), "{names:?}");
        let topics = node.table(&["topic", "list"]);
        assert!(topics.contains("orders") && !topics.contains("%DLQ%"), "{topics}");
    };
    is_gone(&node);
    let node = node.killed_and_started();
    is_gone(&node);
    assert_eq!(node.receive("shipping", &["--count", "3"]).len(), 3, "from the beginning");
    assert_eq!(node.receive("billing", &[]).len(), 0, "others stay where they are");
    node.table(&["group", "delete", "billing", "--yes"]);
    assert_eq!(node.dev.stop(), Some(0));
}

/// Deleting is refused while a client is connected, and changes nothing.
fn a_member_keeps_its_group(node: &Node) {
    let mut member = Command::new(env!("CARGO_BIN_EXE_karman"));
    let receive =
        ["message", "receive", "orders", "--group", "shipping", "--count", "9", "--wait", "60", "--no-ack"];
    member.env("KARMAN_ENDPOINT", &node.dev.endpoint).args(receive).stdout(Stdio::null());
    let mut member = member.spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while node.done(&["group", "show", "shipping"])["clients"] == json!([]) {
        assert!(Instant::now() < deadline, "it never becomes a member");
    }
    let refused = node.run(&["group", "delete", "shipping", "--yes"]);
    let said = stderr(&refused);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("FORBIDDEN") && said.contains("1 members are connected"), "{said}");
    let table = node.table(&["group", "delete", "shipping", "--dry-run"]);
    assert!(table.contains("connected: ") && table.contains("--force"), "{table}");
    member.kill().unwrap();
    member.wait().unwrap();
}
