use std::process::Command;

use crate::support::{karman, stderr, stdout};

fn script(shell: &str) -> String {
    let output = karman("127.0.0.1:1", &["completions", shell]);
    assert!(output.status.success(), "{}", stderr(&output));
    stdout(&output)
}

#[test]
fn shells_complete_commands_and_options() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("karman.bash");
    std::fs::write(&path, script("bash")).unwrap();
    let complete = r#"
        source "$1"
        shift
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
        _karman karman "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        echo "${COMPREPLY[@]}""#;
    for (line, expected) in [
        (&["karman", "top"][..], "topic top"),
        (&["karman", "topic", "cre"], "create"),
        (&["karman", "topic", "create", "orders", "--ty"], "--type"),
        (&["karman", "topic", "create", "orders", "--type", "fi"], "fifo"),
    ] {
        let mut bash = Command::new("bash");
        let output = bash.args(["-c", complete, "bash"]).arg(&path).args(line).output().unwrap();
        assert_eq!(stdout(&output).trim(), expected, "{line:?}: {}", stderr(&output));
    }
    assert!(script("zsh").starts_with("#compdef karman"));
    assert!(script("fish").contains("complete -c karman"));
}

#[test]
fn every_command_gets_a_manual_page_with_its_examples() {
    let directory = tempfile::tempdir().unwrap();
    let pages = directory.path().join("made/man1");
    let output = karman("127.0.0.1:1", &["man", pages.to_str().unwrap()]);
    assert!(output.status.success(), "{}", stderr(&output));
    let page = std::fs::read_to_string(pages.join("karman-topic-create.1")).unwrap();
    assert!(page.contains("Create a topic on all brokers") && page.contains("invoices"), "{page}");
    for name in ["karman.1", "karman-message-why.1", "karman-cluster-replicas-remove.1"] {
        assert!(pages.join(name).is_file(), "{name}");
    }
    let refused = karman("127.0.0.1:1", &["man", "/dev/null/pages"]);
    assert!(stderr(&refused).contains("/dev/null/pages"), "{}", stderr(&refused));
    assert_eq!(refused.status.code(), Some(1));
}
