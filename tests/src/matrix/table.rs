//! The table of `docs/clients.md`: what stands there follows from the rows, the columns and what is known of their cells.

use std::fmt::Write as _;
use std::path::PathBuf;

use super::{COLUMNS, Exception, ROWS, exception};
use crate::driver::root;

const BEGIN: &str = "<!-- begin: written by client_matrix -->\n";
const END: &str = "<!-- end: written by client_matrix -->\n";

fn document() -> PathBuf {
    root().join("docs/clients.md")
}

/// What is before the table, the table, and what is behind it.
fn parts(document: &str) -> [&str; 3] {
    let (before, rest) = document.split_once(BEGIN).expect("the line before the table");
    let (table, behind) = rest.split_once(END).expect("the line behind the table");
    [before, table, behind]
}

/// Whether the table in the document is what it would be made.
pub fn is_written() -> bool {
    parts(&std::fs::read_to_string(document()).unwrap())[1] == table()
}

/// Writes the table into the document.
pub fn write() {
    let text = std::fs::read_to_string(document()).unwrap();
    let [before, _, behind] = parts(&text);
    std::fs::write(document(), [before, BEGIN, &table(), END, behind].concat()).unwrap();
}

fn table() -> String {
    let mut text = String::from("|");
    for language in COLUMNS {
        write!(text, " | {language:?} {}", language.version()).unwrap();
    }
    writeln!(text, " |\n|---{}|", "|---".repeat(COLUMNS.len())).unwrap();
    let mut defects = Vec::new();
    for (row, _) in ROWS {
        write!(text, "| {row}").unwrap();
        for language in COLUMNS {
            let cell = match exception(row, language) {
                None => "pass".to_owned(),
                Some(Exception::Lacks(..)) => "no such feature".to_owned(),
                Some(Exception::Defect(what)) => {
                    defects.push(format!("{}. {language:?}, {row}: {what}.", defects.len() + 1));
                    format!("defect {}", defects.len())
                }
            };
            write!(text, " | {cell}").unwrap();
        }
        writeln!(text, " |").unwrap();
    }
    writeln!(
        text,
        "\nDefects of the clients, and what the runs show nevertheless:\n\n{}",
        defects.join("\n")
    )
    .unwrap();
    text
}
