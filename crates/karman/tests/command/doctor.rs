use serde_json::Value;

use crate::support::{Dev, karman, stderr, stdout};

fn findings(output: &std::process::Output) -> (Value, Vec<(String, String, String)>) {
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let row = |one: &Value| (text(&one["level"]), text(&one["check"]), text(&one["node"]));
    let rows = report["findings"].as_array().unwrap().iter().map(row).collect();
    (report, rows)
}

#[test]
fn a_node_that_is_well_has_no_errors_and_one_that_is_gone_is_named_with_what_to_do() {
    let data = tempfile::tempdir().unwrap();
    let dev = Dev::start(data.path());
    let disk = data.path().to_str().unwrap();
    let well = karman(&dev.endpoint, &["-o", "json", "doctor", "--disk", disk]);
    let (report, rows) = findings(&well);
    // The disk of the machine may be as full as it likes.
    let errors = rows.iter().filter(|row| row.0 == "error" && row.1 != "disk").count();
    assert_eq!((errors, well.status.success()), (0, report["errors"] == 0), "{report}");
    let at = format!("{} (broker-a)", dev.endpoint);
    let here = format!("here: {disk}");
    for (check, node) in [
        ("disk speed", &here),
        ("sync", &here),
        ("cluster", &format!("{} (asked)", dev.endpoint)),
        ("advertised", &"broker-a".to_owned()),
        ("disk", &"broker-a".to_owned()),
        ("open files", &"broker-a".to_owned()),
        ("reachable", &at),
        ("tls", &at),
        ("clock", &at),
    ] {
        assert!(rows.iter().any(|row| row.1 == check && row.2 == *node), "{check} of {node}: {report}");
    }
    let message = |check: &str| {
        let all = report["findings"].as_array().unwrap();
        all.iter().find(|one| one["check"] == check).unwrap()["message"].as_str().unwrap().to_owned()
    };
    assert!(message("tls").starts_with("TLS and plaintext; certificate until "), "{report}");
    assert_eq!(message("clock"), "as here, to a second");

    let gone = "127.0.0.1:1";
    let table = karman(&dev.endpoint, &["doctor", gone]);
    assert_eq!(table.status.code(), Some(1));
    let text = stdout(&table);
    assert!(
        text.contains("ERROR") && text.contains("->") && text.lines().all(|line| line.chars().count() <= 80),
        "{text}"
    );
    assert!(stderr(&table).contains("see above"), "{}", stderr(&table));
    let names = karman(&dev.endpoint, &["-o", "name", "doctor", gone]);
    assert!(stdout(&names).lines().any(|line| line == gone), "{}", stdout(&names));

    let nobody = karman(gone, &["-o", "json", "doctor"]);
    let (report, rows) = findings(&nobody);
    assert_eq!((nobody.status.code(), &report["errors"]), (Some(1), &2.into()), "{report}");
    assert!(rows.iter().any(|row| row.1 == "cluster" && row.2 == "127.0.0.1:1 (asked)"), "{report}");
}
