use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::support::{Dev, Node, json, karman, stderr};

const DEADLINE: Duration = Duration::from_secs(30);

#[test]
fn one_sample_tells_rates_and_what_waits() {
    let node = Node::start();
    node.done(&["message", "send", "orders", "--body", "one"]);
    node.done(&["message", "receive", "orders", "--group", "shipping", "--wait", "5"]);
    let idle = node.done(&["top", "--every", "200ms"]);
    assert_eq!(
        (&idle["topics"][0]["in_per_second"], &idle["groups"][0]["ready"]),
        (&0.0.into(), &0.into()),
        "{idle}"
    );

    let (rates, _) = std::thread::scope(|scope| {
        let rates = scope.spawn(|| node.done(&["top", "--every", "3s"]));
        let sent =
            scope.spawn(|| node.done(&["bench", "produce", "orders", "--rate", "100", "--seconds", "4"]));
        (rates.join().unwrap(), sent.join().unwrap())
    });
    let number = |row: &serde_json::Value, name: &str| row[name].as_f64().unwrap();
    let (broker, topic, group) = (&rates["brokers"][0], &rates["topics"][0], &rates["groups"][0]);
    assert_eq!(
        (&topic["topic"], &group["group"], &group["topic"]),
        (&"orders".into(), &"shipping".into(), &"orders".into())
    );
    assert!(number(topic, "in_per_second") > 1.0 && number(broker, "in_per_second") > 1.0, "{rates}");
    assert!(number(group, "ready") > 1.0 && number(topic, "messages") > 1.0, "{rates}");
    assert!(broker["disk_used_percent"].is_u64() && number(broker, "log_bytes") > 0.0, "{rates}");

    let received = std::thread::scope(|scope| {
        let rates = scope.spawn(|| node.done(&["top", "--every", "3s", "--sort", "out"]));
        // As long as it counts, whenever it begins to.
        while !rates.is_finished() {
            node.lines(&[
                "message", "receive", "orders", "--group", "shipping", "--wait", "1", "--count", "2",
            ]);
        }
        rates.join().unwrap()
    });
    assert!(number(&received["groups"][0], "out_per_second") > 1.0, "{received}");
    assert!(number(&received["topics"][0], "out_per_second") > 1.0, "{received}");

    let table = node.table(&["top", "--once", "--every", "200ms"]);
    let titles = ["BROKER", "TOPIC", "GROUP"];
    assert!(titles.iter().all(|title| table.lines().any(|line| line.starts_with(title))), "{table}");
    assert_eq!(json(&karman(&node.dev.endpoint, &["-o", "json", "top"]))["errors"], serde_json::json!([]));
}

#[test]
fn what_cannot_be_watched_says_why() {
    let data = tempfile::tempdir().unwrap();
    let dev = Dev::start(data.path());
    for (endpoint, arguments, code, words) in [
        (dev.endpoint.as_str(), &["top"][..], 2, "--once"),
        (&dev.endpoint, &["top", "--once", "--every", "1ms"], 2, "200ms to 1h"),
        ("127.0.0.1:1", &["top", "--once"], 1, "karman dev"),
    ] {
        let output = karman(endpoint, arguments);
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        assert!(stderr(&output).contains(words) && output.stdout.is_empty(), "{}", stderr(&output));
    }
}

#[test]
fn on_a_terminal_it_draws_sorts_and_ends_by_keys_and_leaves_the_terminal_as_it_was() {
    let data = tempfile::tempdir().unwrap();
    let dev = Dev::start(data.path());
    let control = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&control).unwrap();
    unlockpt(&control).unwrap();
    let name = ptsname(&control, Vec::new()).unwrap().into_string().unwrap();
    let terminal = || Stdio::from(File::options().read(true).write(true).open(&name).unwrap());
    let kept = File::open(&name).unwrap();
    let before = rustix::termios::tcgetattr(&kept).unwrap().local_modes;
    let mut child = Command::new(env!("CARGO_BIN_EXE_karman"))
        .args(["-e", &dev.endpoint, "top", "--every", "200ms"])
        .stdin(terminal())
        .stdout(terminal())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (mut keys, mut screen) = (File::from(control.try_clone().unwrap()), File::from(control));
    let (said, drawn) = std::sync::mpsc::channel();
    // It ends with the test: the terminal stays open.
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = screen.read(&mut bytes) {
            said.send(String::from_utf8_lossy(&bytes[..count]).into_owned()).ok();
        }
    });
    let mut all = String::new();
    let mut wait_for = |words: &str| {
        let deadline = Instant::now() + DEADLINE;
        while !all.contains(words) {
            let left = deadline.saturating_duration_since(Instant::now());
            all += &drawn.recv_timeout(left).unwrap_or_else(|_| panic!("no {words:?} in {all:?}"));
        }
    };
    wait_for("by ready");
    wait_for("orders");
    keys.write_all(b"s").unwrap();
    wait_for("by in");
    keys.write_all(b"q").unwrap();
    wait_for("\u{1b}[?1049l");
    assert!(child.wait().unwrap().success());
    assert_eq!(rustix::termios::tcgetattr(&kept).unwrap().local_modes, before);
}
