use crate::support::{Dev, json, karman, stderr, stdout};

#[test]
fn every_result_can_be_written_as_yaml_or_as_names() {
    let data = tempfile::tempdir().unwrap();
    let dev = Dev::start(data.path());
    let run = |format: &str, arguments: &[&str]| {
        let output = karman(&dev.endpoint, &[&["-o", format], arguments].concat());
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        stdout(&output)
    };
    let list = run("yaml", &["topic", "list"]);
    assert!(list.starts_with("- topic: orders\n  type: normal\n  queues: 2\n"), "{list}");
    assert!(list.ends_with("messages: 0\n"), "{list}");
    assert_eq!(run("name", &["group", "create", "shipping"]), "shipping\n");
    let id = run("name", &["message", "send", "orders", "--body", "a: book", "--key", "4711"]);
    run("name", &["message", "send", "orders", "--body", "tea", "--key", "4711"]);

    let query = ["message", "query", "orders", "--key", "4711"];
    let names = run("name", &query);
    assert!(names.lines().count() == 2 && names.contains(&id), "{names}");
    let documents = run("yaml", &query);
    assert_eq!(documents.lines().filter(|line| *line == "---").count(), 2, "{documents}");
    let texts = ["\nbody: \"a: book\"\n", "\nkeys:\n- \"4711\"\n", "\nbody_base64: null\n"];
    assert!(texts.iter().all(|text| documents.contains(text)), "{documents}");

    let received = run("name", &["message", "receive", "orders", "--group", "shipping", "--count", "2"]);
    assert_eq!(received.lines().count(), 2, "{received}");
    for (arguments, names) in [
        (&["topic", "list"][..], "orders\n"),
        (&["topic", "show", "orders"], "orders\n"),
        (&["group", "list"], "shipping\n"),
        (&["group", "lag", "shipping"], "orders\n"),
        (&["offset", "skip", "shipping", "orders", "--dry-run"], "shipping\n"),
        (&["message", "why", id.trim()], "orders\n"),
        (&["dlq", "list"], ""),
        (&["user", "list"], ""),
        (&["ready", &dev.metrics], &format!("{}\n", dev.metrics)),
    ] {
        assert_eq!(run("name", arguments), names, "{arguments:?}");
        assert!(!run("yaml", arguments).is_empty(), "{arguments:?}");
    }
    let broker = json(&karman(&dev.endpoint, &["-o", "json", "cluster", "list"]))[0]["broker"].clone();
    assert_eq!(run("name", &["cluster", "list"]).trim(), broker);
    assert!(run("name", &["client", "list"]).lines().count() >= 2);

    let secret = karman(&dev.endpoint, &["-o", "name", "user", "create", "shop"]);
    assert!(stderr(&secret).contains("--secret-file"), "{}", stderr(&secret));
    let nameless = karman(&dev.endpoint, &["-o", "name", "bench", "produce", "orders"]);
    assert!(stderr(&nameless).contains("has no names"), "{}", stderr(&nameless));
    for refused in [&secret, &nameless] {
        assert!(refused.status.code() == Some(2) && refused.stdout.is_empty());
    }
    assert_eq!(run("name", &["user", "list"]), "", "it was refused before it was made");
}
