use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use serde_json::Value;

use crate::support::{Dev, json, karman, stderr};

/// Each line of the output is an object.
fn lines(output: &std::process::Output) -> Vec<Value> {
    assert!(output.status.success(), "{}", stderr(output));
    String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn stored_messages_are_found_by_id_key_place_and_time() {
    let data = tempfile::tempdir().unwrap();
    let dev = Dev::start(data.path());
    let run = |arguments: &[&str]| karman(&dev.endpoint, &[&["-o", "json"], arguments].concat());
    let send = |body: &str, key: &str| {
        json(&run(&["message", "send", "orders", "--body", body, "--key", key, "--property", "a=b"]))
    };
    let sent = [send("one", "k"), send("two", "other"), send("three", "k")];
    let get = |arguments: &[&str]| lines(&run(&[&["message", "query", "orders"], arguments].concat()));

    let id = sent[1]["message_id"].as_str().unwrap();
    let found = get(&["--id", id]);
    assert_eq!(found.len(), 1);
    assert_eq!((&found[0]["body"], &found[0]["keys"][0]), (&"two".into(), &"other".into()));
    assert_eq!(found[0]["properties"]["a"], "b");
    let bodies = |found: &[Value]| found.iter().map(|one| one["body"].clone()).collect::<Vec<_>>();
    assert_eq!(bodies(&get(&["--key", "k"])), ["three", "one"], "the last stored first");
    assert_eq!(bodies(&get(&["--key", "k", "--max", "1"])), ["three"]);
    let place = |name: &str| found[0][name].to_string();
    let (queue, offset) = (place("queue"), place("offset"));
    assert_eq!(bodies(&get(&["--queue", &queue, "--offset", &offset])), ["two"]);
    assert_eq!(bodies(&get(&["--position", &place("position")])), ["two"]);
    let third = get(&["--key", "k", "--max", "1"])[0]["store_ms"].to_string();
    assert!(bodies(&get(&["--key", "k", "--begin", &third])).contains(&"three".into()));
    assert_eq!(bodies(&get(&["--key", "k", "--begin", "1h", "--end", "2100-01-01"])).len(), 2);

    for missing in [
        &["--id", "nobody"][..],
        &["--key", "k", "--end", "1"],
        &["--queue", "0", "--offset", "99"],
        &["--position", "8"],
    ] {
        let output = run(&[&["message", "query", "orders"], missing].concat());
        assert_eq!(output.status.code(), Some(3), "{missing:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty());
    }
    assert_eq!(run(&["message", "query", "bills", "--id", id]).status.code(), Some(3));
    let output = run(&["message", "query", "orders", "--queue", "77", "--offset", "0"]);
    assert!(stderr(&output).contains("no queue 77"), "{}", stderr(&output));
    for wrong in
        [&["--queue", "0"][..], &[], &["--id", "1", "--key", "2"], &["--key", "k", "--begin", "soon"]]
    {
        let output = run(&[&["message", "query", "orders"], wrong].concat());
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
    }
    let text = karman(&dev.endpoint, &["message", "query", "orders", "--id", id]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains(id) && text.contains("\ntwo\n"), "{text}");

    let shown = json(&run(&["topic", "show", "orders", "--at", &third]));
    let queues = shown["queues"].as_array().unwrap();
    let at: u64 = queues.iter().map(|queue| queue["offset_at"].as_u64().unwrap()).sum();
    assert!(at <= 2, "{shown}");
    assert!(json(&run(&["topic", "show", "orders"]))["queues"][0]["offset_at"].is_null());
    assert_eq!(dev.stop(), Some(0));
}

/// The value of a metric.
pub fn metric(address: &str, name: &str) -> u64 {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).trim().parse().unwrap()
}
