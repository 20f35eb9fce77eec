use std::path::Path;
use std::process::{Command, Output};

use crate::support::{Dev, json, stderr, stdout};

/// The command in a home directory of its own, with nothing of a target in its environment but what `env` says.
fn at_home(home: &Path, env: &[(&str, &str)], arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_karman"));
    for name in ["ENDPOINT", "CONTEXT", "CLUSTER_SECRET", "ACCESS_KEY", "SECRET_KEY"] {
        command.env_remove(format!("KARMAN_{name}"));
    }
    command.env("XDG_CONFIG_HOME", home).envs(env.iter().copied()).args(arguments).output().unwrap()
}

#[test]
fn a_context_says_where_commands_go_and_never_what_the_secret_is() {
    let home = tempfile::tempdir().unwrap();
    let data = tempfile::tempdir().unwrap();
    let dev = Dev::start(data.path());
    let run = |env: &[(&str, &str)], arguments: &[&str]| at_home(home.path(), env, arguments);
    let done = |arguments: &[&str]| {
        let output = run(&[], arguments);
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        let text = stdout(&output) + &stderr(&output);
        assert!(!text.contains("pssst"), "{arguments:?}: {text}");
        stdout(&output)
    };
    assert_eq!(done(&["context", "list", "-o", "name"]), "");
    let added = ["context", "add", "local", "-e", &dev.endpoint, "--cluster-secret", "pssst", "--use"];
    done(&added);
    done(&["context", "add", "gone", "-e", "127.0.0.1:1", "--access-key", "ops", "--secret-key-file", "f"]);
    let table = done(&["context", "list"]);
    assert!(table.contains(&format!("* local   {}", dev.endpoint)) && table.contains("ops"), "{table}");
    assert_eq!(done(&["context", "list", "-o", "name"]), "gone\nlocal\n");
    assert!(
        done(&["context", "show", "gone"])
            .contains(&format!("{}/f", std::env::current_dir().unwrap().display()))
    );
    let shown = json(&run(&[], &["-o", "json", "context", "show"]));
    assert_eq!((&shown["context"], &shown["cluster_secret"]), (&"local".into(), &true.into()));

    assert!(done(&["topic", "list"]).contains("orders"), "the context in use");
    let gone = [("KARMAN_CONTEXT", "gone"), ("KARMAN_SECRET_KEY", "secret")];
    let unreachable = run(&gone[..], &["topic", "list"]);
    assert!(stderr(&unreachable).contains("/f"), "its secret is in a file: {}", stderr(&unreachable));
    std::fs::write(home.path().join("key"), "12345678").unwrap();
    let key = home.path().join("key");
    let unreachable = run(&gone[..], &["--secret-key-file", key.to_str().unwrap(), "topic", "list"]);
    assert!(stderr(&unreachable).starts_with("karman: context gone: "), "{}", stderr(&unreachable));
    assert!(run(&gone[..], &["--context", "local", "topic", "list"]).status.success(), "it is typed");
    assert!(run(&gone[..], &["-e", &dev.endpoint, "topic", "list"]).status.success(), "it is typed");
    let elsewhere = [("KARMAN_ENDPOINT", "127.0.0.1:1")];
    let unreachable = run(&elsewhere, &["topic", "list"]);
    assert!(
        stderr(&unreachable).starts_with("karman: 127.0.0.1:1 cannot be reached"),
        "{}",
        stderr(&unreachable)
    );

    done(&["context", "remove", "local"]);
    let nowhere = run(&[], &["context", "show"]);
    assert!(nowhere.status.code() == Some(2) && stderr(&nowhere).contains("context list"));
    done(&["context", "use", "gone"]);
    done(&["context", "use", "--none"]);
    assert_eq!(json(&run(&[], &["-o", "json", "context", "list"]))[0]["in_use"], false);
}

#[test]
fn what_is_wrong_with_a_context_is_said_with_what_to_do() {
    let home = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| at_home(home.path(), &[("KARMAN_ENDPOINT", "n:1")], arguments);
    assert!(run(&["context", "add", "prod", "-e", "n:1"]).status.success());
    for (arguments, code, texts) in [
        (&["--context", "prd", "topic", "list"][..], 3, ["\"prd\"", "there are prod"]),
        (&["context", "use", "prd"], 3, ["\"prd\"", "karman context add"]),
        (&["context", "remove", "prd"], 3, ["\"prd\"", "there are prod"]),
        (&["context", "add", "prod", "-e", "n:2"], 1, ["\"prod\"", "--replace"]),
        // What is in the environment is not what was typed.
        (&["context", "add", "other"], 2, ["karman context add other", "-e HOST:PORT"]),
        (&["context", "add", "other", "-e", "n"], 1, ["\"n\"", "HOST:PORT is allowed"]),
        (&["context", "add", "an other", "-e", "n:1"], 2, ["\"an other\"", "a-z"]),
        (&["context", "use"], 2, ["<NAME>", "Usage"]),
    ] {
        let output = run(arguments);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        assert!(texts.iter().all(|part| text.contains(part)) && output.stdout.is_empty(), "{text}");
    }
    std::fs::write(home.path().join("karman/contexts.toml"), "current = \"a\"\npssst").unwrap();
    let homeless = at_home(Path::new("/dev/null"), &[], &["context", "list", "-o", "json"]);
    assert_eq!(json(&homeless), serde_json::json!([]));
    let unwritable = at_home(Path::new("/dev/null"), &[], &["context", "add", "a", "-e", "n:1"]);
    assert!(stderr(&unwritable).contains("/dev/null/karman/contexts.toml"), "{}", stderr(&unwritable));
    let broken = at_home(home.path(), &[], &["topic", "list"]);
    assert!(
        stderr(&broken).contains("line 2 of ") && !stderr(&broken).contains("pssst"),
        "{}",
        stderr(&broken)
    );
    assert!(
        run(&["config", "reference", "broker", "-o", "name"]).status.success(),
        "who needs no node needs no file"
    );
}
