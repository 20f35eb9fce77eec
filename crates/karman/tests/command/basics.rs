use std::process::Command;

use crate::support::{Dev, json, karman, stderr, stdout};

#[test]
fn an_endpoint_without_a_node_says_how_to_start_one() {
    for arguments in [&["topic", "list"][..], &["message", "send", "orders", "--body", "a book"]] {
        let output = karman("127.0.0.1:1", arguments);
        assert_eq!(output.status.code(), Some(1));
        assert!(
            stderr(&output).contains("127.0.0.1:1") && stderr(&output).contains("karman dev"),
            "{}",
            stderr(&output)
        );
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_wrong_command_line_exits_2() {
    for arguments in [
        &["topic", "delete", "orders", "--yes", "--dry-run"][..],
        &["topic", "create", "orders", "--type", "odd"],
        &["message", "send", "orders"],
    ] {
        assert_eq!(karman("127.0.0.1:1", arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn a_message_goes_through_a_development_node_and_outlives_it() {
    let data = tempfile::tempdir().unwrap();
    let dev = Dev::start(data.path());
    let run = |arguments: &[&str]| karman(&dev.endpoint, arguments);
    assert_eq!(json(&run(&["-o", "json", "topic", "list"]))[0]["queues"], 2);
    let sent = json(&run(&[
        "-o", "json", "message", "send", "orders", "--body", "a book", "--tag", "new", "--key", "k",
    ]));
    let missing = run(&["topic", "show", "bills"]);
    assert_eq!(missing.status.code(), Some(3), "{}", stderr(&missing));
    assert_eq!(dev.stop(), Some(0));

    let dev = Dev::start(data.path());
    let receive = ["-o", "json", "message", "receive", "orders", "--group", "shipping", "--wait", "10"];
    let received = json(&karman(&dev.endpoint, &receive));
    assert_eq!(received["message_id"], sent["message_id"]);
    assert_eq!(
        (&received["body"], &received["tag"], &received["keys"][0]),
        (&"a book".into(), &"new".into(), &"k".into())
    );
    let empty =
        karman(&dev.endpoint, &["message", "receive", "orders", "--group", "shipping", "--wait", "1"]);
    assert!(empty.status.success() && empty.stdout.is_empty() && stderr(&empty).contains("no message"));
    assert_eq!(dev.stop(), Some(0));
}

#[test]
fn the_ceiling_needs_no_node_and_knows_its_servers_cpu() {
    let figures =
        json(&karman("127.0.0.1:1", &["-o", "json", "bench", "ceiling", "--seconds", "1", "--batch", "2"]));
    assert!(figures["messages"].as_u64().unwrap() > 0 && figures["errors"] == 0, "{figures}");
    assert!(figures["server_cpu_us_per_message"].as_f64().unwrap() > 0.0, "{figures}");
}

#[test]
fn sends_on_schedule_arrive_at_the_consumer() {
    let data = tempfile::tempdir().unwrap();
    let dev = Dev::start(data.path());
    let arguments = ["-o", "json", "bench", "latency", "orders", "--rate", "100", "--seconds", "1"];
    let figures = json(&karman(&dev.endpoint, &arguments));
    assert_eq!((&figures["messages"], &figures["received"]), (&100.into(), &100.into()), "{figures}");
    assert!(figures["receive_p50_us"].as_u64() > Some(0));
    assert_eq!(dev.stop(), Some(0));
}

#[test]
fn it_is_each_program_by_whose_name_it_is_called() {
    let directory = tempfile::tempdir().unwrap();
    for (name, key) in [("karman-namesrv", "controllerPeers = "), ("karman-broker", "brokerName = ")] {
        let called = directory.path().join(name);
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_karman"), &called).unwrap();
        let output = Command::new(&called).arg("--print-config").output().unwrap();
        assert!(output.status.success() && stdout(&output).contains(key), "{name}: {}", stderr(&output));
        let refused = Command::new(&called).arg("--no-such-option").output().unwrap();
        assert!(stderr(&refused).contains(&format!("Usage: {name}")), "{}", stderr(&refused));
    }
}
