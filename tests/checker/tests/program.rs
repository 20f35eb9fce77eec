//! The program as a script sees it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

/// A message that was sent and never came.
const LOST: &str = r#"{"run":{"version":1,"repeat":"again"}}
{"group":{"g":"g","topic":"t","attempts_max":2}}
{"send":{"b":0,"e":1,"m":"lost","topic":"t","to":"broker-a","out":"ok","digest":7}}
{"drained":{"t":9,"g":"g"}}
{"done":{"t":9}}
"#;
/// It comes.
const CAME: &str = r#"{"deliver":{"t":2,"until":9,"m":"lost","g":"g","broker":"broker-a","queue":0,"offset":0,"attempt":1,"digest":7}}
{"ack":{"b":3,"e":4,"m":"lost","g":"g","broker":"broker-a","out":"ok"}}
"#;

/// The exit code and what is on stdout and stderr.
fn judge(name: &str, history: &str, arguments: &[&str]) -> (i32, String, String) {
    let file = std::env::temp_dir().join(format!("karman-checker-{}-{name}", std::process::id()));
    std::fs::write(&file, history).unwrap();
    let output =
        Command::new(env!("CARGO_BIN_EXE_karman-checker")).arg(&file).args(arguments).output().unwrap();
    std::fs::remove_file(&file).unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn the_exit_code_says_whether_every_invariant_holds() {
    let (code, table, _) = judge("well", &(LOST.to_owned() + CAME), &[]);
    assert_eq!(code, 0, "{table}");
    assert!(table.contains("every invariant holds; the run again: again"), "{table}");
    let (code, json, _) = judge("lost", LOST, &["-o", "json"]);
    assert_eq!(code, 1);
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(report["verdicts"][1]["violations"], 1);
    assert!(report["lines"]["lost"][0].as_str().unwrap().contains("send"), "{json}");
    let (code, table, error) = judge("nonsense", "nonsense\n", &[]);
    assert_eq!((code, &*table), (2, ""));
    assert!(error.contains("line 1"), "{error}");
}

/// Else nobody would notice that a bug cannot be planted any more until he tries.
#[test]
fn the_planted_bugs_fit_the_sources() {
    let own = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = std::fs::read_dir(own.join("planted")).unwrap().map(|file| file.unwrap().path());
    let patches: Vec<_> = files.filter(|path| path.extension().is_some_and(|end| end == "patch")).collect();
    assert_eq!(patches.len(), 10);
    for patch in patches {
        let mut git = Command::new("git");
        let output =
            git.args(["apply", "--check"]).arg(&patch).current_dir(own.join("../..")).output().unwrap();
        assert!(output.status.success(), "{}: {}", patch.display(), String::from_utf8_lossy(&output.stderr));
    }
}
