//! Results for people and for programs, on stdout. Notes and errors go to stderr and never here.

use std::collections::HashSet;
use std::io::{self, Write as _};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::cli::Incomplete;

/// What is said of `-o name` where there is nothing to name.
pub(crate) const NAMELESS: &str =
    "-o name is refused: this result has no names; table, json and yaml show it";

/// What every terminal has.
const WIDTH_COLUMNS: u16 = 80;

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people; fits 80 columns
    Table,
    /// For programs; keys do not change
    Json,
    /// The same keys
    Yaml,
    /// For scripts: names or ids alone, each once, one a line
    Name,
}

/// A column: its title, and whether it holds numbers.
pub(crate) struct Column(pub(crate) &'static str, pub(crate) Align);

#[derive(Clone, Copy)]
pub(crate) enum Align {
    Left,
    Right,
}

pub(crate) const fn text(title: &'static str) -> Column {
    Column(title, Align::Left)
}

pub(crate) const fn number(title: &'static str) -> Column {
    Column(title, Align::Right)
}

/// Writes a result as programs read it. False: it is for people, and the caller writes it.
pub(crate) fn programs<'a, T, N>(
    format: Format,
    value: &'a T,
    names: impl FnOnce(&'a T) -> N,
) -> anyhow::Result<bool>
where
    T: Serialize,
    N: IntoIterator<Item = &'a str>,
{
    match format {
        Format::Table => return Ok(false),
        Format::Json => json(value)?,
        Format::Yaml => write_yaml(io::stdout().lock(), value)?,
        Format::Name => write_names(io::stdout().lock(), names(value))?,
    }
    Ok(true)
}

/// The same of a result that has no name.
pub(crate) fn nameless(format: Format, value: &impl Serialize) -> anyhow::Result<bool> {
    if format == Format::Name {
        return Err(Incomplete(NAMELESS.to_owned()).into());
    }
    programs(format, value, |_| [])
}

/// The same of one of several results: a line of JSON each, or a document of YAML.
pub(crate) fn one_of_many(format: Format, value: &impl Serialize, name: &str) -> anyhow::Result<bool> {
    if format == Format::Yaml {
        line("---")?;
    }
    if format == Format::Name {
        line(name)?;
        return Ok(true);
    }
    programs(format, value, |_| [])
}

pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    write_json(io::stdout().lock(), value)
}

fn write_yaml(mut out: impl io::Write, value: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_saphyr::to_string(value)?;
    writeln!(out, "{}", text.trim_end())?;
    Ok(())
}

/// Brokers tell of what is on several of them several times.
fn write_names<'a>(mut out: impl io::Write, names: impl IntoIterator<Item = &'a str>) -> io::Result<()> {
    let mut written = HashSet::new();
    for name in names.into_iter().filter(|name| !name.is_empty()) {
        if written.insert(name) {
            writeln!(out, "{name}")?;
        }
    }
    Ok(())
}

fn write_json(mut out: impl io::Write, value: &impl Serialize) -> anyhow::Result<()> {
    // An error of the output as such: a closed pipe ends the command quietly.
    serde_json::to_writer(&mut out, value).map_err(io::Error::from)?;
    writeln!(out)?;
    Ok(())
}

pub(crate) fn line(text: &str) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{text}")
}

/// Writes words that fit the width; `indent` stands in front of the first line, two columns more in front of the others.
pub(crate) fn paragraph(indent: usize, text: &str) -> io::Result<()> {
    line(&wrapped(indent, text))
}

pub(crate) fn wrapped(indent: usize, text: &str) -> String {
    let (mut whole, mut column) = (" ".repeat(indent), indent);
    for word in text.split_whitespace() {
        let width = word.chars().count();
        if column > indent && column + 1 + width > usize::from(WIDTH_COLUMNS) {
            whole.push('\n');
            whole.push_str(&" ".repeat(indent + 2));
            column = indent + 2;
        } else if column > indent {
            whole.push(' ');
            column += 1;
        }
        whole.push_str(word);
        column += width;
    }
    whole
}

pub(crate) fn table(columns: &[Column], rows: Vec<Vec<String>>) -> io::Result<()> {
    line(&format_table(columns, rows))
}

/// The same as text.
pub(crate) fn format_table(columns: &[Column], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(WIDTH_COLUMNS)
        .set_header(columns.iter().map(|column| column.0))
        .add_rows(rows);
    for (column, Column(_, align)) in table.column_iter_mut().zip(columns) {
        column.set_padding((0, 1));
        if matches!(align, Align::Right) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

/// `1234567` as `1,234,567`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in the largest unit that leaves at least one.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_fit_eighty_columns() {
        let columns = [text("NAME"), number("COUNT"), text("REMARK")];
        let long = "a remark of many words that goes on and on ".repeat(5);
        let text = format_table(&columns, vec![vec!["n".repeat(60), "12".into(), long]]);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert_eq!(format_table(&columns[..2], vec![vec!["a".into(), "7".into()]]), "NAME COUNT\na        7");
    }

    #[test]
    fn a_reader_that_has_seen_enough_is_told_apart_from_what_cannot_be_written() {
        struct Closed;
        impl io::Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let error = write_json(Closed, &["a", "b"]).unwrap_err();
        let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
        assert_eq!(kind, Some(io::ErrorKind::BrokenPipe), "{error:?}");
    }

    #[test]
    fn yaml_has_the_keys_of_json_and_keeps_texts_apart_from_what_they_look_like() {
        #[derive(Serialize)]
        struct Row {
            name: &'static str,
            r#type: Option<u32>,
            keys: Vec<&'static str>,
        }
        let mut out = Vec::new();
        write_yaml(&mut out, &[Row { name: "no", r#type: None, keys: vec!["4711", "a: b"] }]).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text, "- name: \"no\"\n  type: null\n  keys:\n  - \"4711\"\n  - \"a: b\"\n");
    }

    #[test]
    fn a_name_is_written_once() {
        let mut out = Vec::new();
        write_names(&mut out, ["a", "b", "", "a"]).unwrap();
        assert_eq!(out, b"a\nb\n");
    }

    #[test]
    fn paragraphs_fit_eighty_columns() {
        let text = wrapped(2, &"some words ".repeat(20));
        assert!(text.lines().count() == 3 && text.lines().all(|line| line.len() <= 80), "{text}");
        assert!(text.starts_with("  some words some") && text.contains("\n    "), "{text}");
    }

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([7, 1536, 3 << 30].map(bytes), ["7 B", "1.5 KiB", "3.0 GiB"]);
    }
}
