use std::path::Path;

use crate::support::{Dev, karman, stderr, stdout};

/// What is typed most, in an order that tells a story. ID is that of the message that was sent.
const COMMANDS: [&[&str]; 10] = [
    &["topic", "create", "bills", "--queues", "1"],
    &["topic", "list"],
    &["message", "send", "bills", "--body", "a book", "--key", "4711"],
    &["message", "query", "bills", "--key", "4711"],
    &["message", "peek", "bills"],
    &["message", "receive", "bills", "--group", "shipping"],
    &["group", "show", "shipping"],
    &["message", "why", "ID"],
    &["offset", "reset", "shipping", "bills", "--earliest", "--dry-run"],
    &["cluster", "list"],
];
const BEGIN: &str = "<!-- transcript -->\n";
const END: &str = "<!-- end of transcript -->";
/// Has the test write the page instead of reading it.
const WRITE: &str = "KARMAN_WRITE_TRANSCRIPT";

fn quoted(word: &str) -> String {
    if word.contains(' ') { format!("'{word}'") } else { word.to_owned() }
}

fn transcript(dev: &Dev) -> String {
    let (mut text, mut id) = ("```console\n".to_owned(), String::new());
    for command in COMMANDS {
        let words: Vec<&str> = command.iter().map(|word| if *word == "ID" { &id } else { *word }).collect();
        let output = karman(&dev.endpoint, &words);
        assert!(output.status.success(), "{words:?}: {}", stderr(&output));
        let typed: Vec<String> = words.iter().copied().map(quoted).collect();
        text += &format!("$ karman {}\n{}\n", typed.join(" "), stdout(&output));
        if command[1] == "send" {
            id = stdout(&output).lines().nth(1).and_then(|row| row.split(' ').next()).unwrap().to_owned();
        }
    }
    text.trim_end().to_owned() + "\n```\n"
}

/// What stays when it is run again: words without their numbers, whatever the widths of columns.
fn shape(transcript: &str) -> Vec<String> {
    let is_id = |word: &str| word.len() == 34 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let word = |word: &str| match is_id(word) {
        true => "ID".to_owned(),
        false => word.chars().filter(|character| !character.is_ascii_digit()).collect(),
    };
    transcript.split_whitespace().map(word).collect()
}

#[test]
fn the_transcript_in_the_documentation_is_what_the_commands_write() {
    let data = tempfile::tempdir().unwrap();
    let transcript = transcript(&Dev::start(data.path()));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/cli.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).unwrap();
    let (written, after) = rest.split_once(END).unwrap();
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(path, [before, BEGIN, &transcript, END, after].concat()).unwrap();
        return;
    }
    let how = format!("docs/cli.md is out of date: {WRITE}=1 cargo test -p karman --test command transcript");
    assert_eq!(shape(&transcript), shape(written), "{how}");
}
