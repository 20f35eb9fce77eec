//! What is read when all servers have stopped: their logs for people, and the CommitLogs of the brokers.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use anyhow::Context as _;
use karman_checker::event::{self, Event};

use super::servers::{MEMBERS, SETS, Servers};
use crate::files::segments;
use crate::mixed_load::History;

/// About so much of a log is one line of the history.
const STRETCH_BYTES: u64 = 1 << 20;
const HEADER_BYTES: usize = 64;
const BLANK: u8 = 0;

/// Reads all and writes it down.
pub(super) fn write(servers: &Servers, out: &Path, history: &History) -> anyhow::Result<()> {
    for server in servers.all() {
        let name = server.node.name();
        let file =
            File::open(out.join(format!("{name}.log"))).with_context(|| format!("the log of {name}"))?;
        let (mut lines, mut panic) = (0, None);
        for line in BufReader::new(file).lines() {
            let line = String::from_utf8_lossy(line.unwrap_or_default().as_bytes()).into_owned();
            lines += 1;
            if panic.is_none() && line.contains("panicked at") {
                panic = Some(line.clone());
            }
            if let Some(leads) = leads_of(name, &line) {
                history.line(&Event::Leads(leads));
            }
        }
        let panic = panic.or_else(|| servers.ended_by_itself(name)).map(Into::into);
        history.line(&Event::Words(event::Words { node: name.into(), lines, panic }));
    }
    for (set, members) in SETS.iter().zip(servers.brokers.chunks(MEMBERS)) {
        let directories: Vec<_> = members.iter().map(super::servers::Server::log_directory).collect();
        let mut common = (0, u64::MAX);
        for directory in &directories {
            let (from, to) = extent(directory)?;
            eprintln!("{}: {from} to {to}", directory.display());
            common = (common.0.max(from), common.1.min(to));
        }
        for (id, directory) in (1..).zip(&directories) {
            compare(set, id, directory, common, history)?;
        }
    }
    Ok(())
}

/// A line in which a broker says that it leads.
fn leads_of<'a>(name: &'a str, line: &str) -> Option<event::Leads<'a>> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    if line["message"] != "is the master now" {
        return None;
    }
    let (set, id) = name.rsplit_once('-')?;
    let t = milliseconds(line["timestamp"].as_str()?)?;
    let epoch = u32::try_from(line["epoch"].as_u64()?).ok()?;
    Some(event::Leads { t, broker: set.into(), id: id.parse().ok()?, epoch })
}

/// `2026-11-26T20:12:26.123456Z` as milliseconds since 1970.
fn milliseconds(text: &str) -> Option<u64> {
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<u64>().ok();
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    // Years that begin with March end with the day that some of them lack.
    let (year, month) = if month < 3 { (year - 1, month + 9) } else { (year, month - 3) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    let days = days.checked_sub(719_468)?;
    let seconds = days * 86_400 + number(11, 13)? * 3600 + number(14, 16)? * 60 + number(17, 19)?;
    Some(seconds * 1000 + number(20, 23)?)
}

/// Shows each record: its place, its bytes (of a blank the header alone), its length, its epoch. It ends where the next place
/// holds none.
fn walk(directory: &Path, mut show: impl FnMut(u64, &[u8], u64, u32)) -> anyhow::Result<(u64, u64)> {
    let segments = segments(directory).with_context(|| format!("read {}", directory.display()))?;
    let first = segments.first().map_or(0, |segment| segment.0);
    let mut next = first;
    for (start, path) in segments {
        if start != next {
            break;
        }
        let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        next = walk_segment(start, &bytes, &mut show);
        if next < start + bytes.len() as u64 {
            break;
        }
    }
    Ok((first, next))
}

/// The same for one of them; where it ends.
fn walk_segment(start: u64, bytes: &[u8], mut show: impl FnMut(u64, &[u8], u64, u32)) -> u64 {
    let mut at = 0;
    while let Some(record) = bytes.get(at..).filter(|rest| rest.len() >= HEADER_BYTES) {
        let number = |from: usize| u32::from_le_bytes(record[from..from + 4].try_into().expect("four bytes"));
        let place = u64::from_le_bytes(record[16..24].try_into().expect("eight bytes"));
        let length = number(0) as usize;
        let is_record = length >= HEADER_BYTES && length.is_multiple_of(8) && length <= record.len();
        if place != start + at as u64 || !is_record {
            return start + at as u64;
        }
        let seen = if record[9] == BLANK { HEADER_BYTES } else { length };
        show(place, &record[..seen], length as u64, number(12));
        at += length;
    }
    start + bytes.len() as u64
}

/// Where the records of a segment file lie in it, blanks left out, and where the last one ends.
pub(super) fn records(path: &Path) -> anyhow::Result<(Vec<(u64, u64)>, u64)> {
    let start = path.file_stem().and_then(|name| name.to_str()?.parse().ok()).context("a segment's name")?;
    let bytes = std::fs::read(path)?;
    let mut found = Vec::new();
    let end = walk_segment(start, &bytes, |at, record, length, _| {
        if record.len() as u64 == length {
            found.push((at - start, length));
        }
    });
    Ok((found, end - start))
}

fn extent(directory: &Path) -> anyhow::Result<(u64, u64)> {
    walk(directory, |_, _, _, _| ())
}

fn compare(
    set: &str,
    id: u32,
    directory: &Path,
    common: (u64, u64),
    history: &History,
) -> anyhow::Result<()> {
    let mut stretch: Option<event::Stretch<'_>> = None;
    walk(directory, |at, bytes, length, epoch| {
        if at < common.0 || at >= common.1 {
            return;
        }
        if let Some(done) = stretch.take_if(|one| one.at / STRETCH_BYTES != at / STRETCH_BYTES) {
            history.line(&Event::Stretch(done));
        }
        let new = event::Stretch { broker: set.into(), id, at, bytes: 0, sum: 0, epochs: (epoch, epoch) };
        let one = stretch.get_or_insert(new);
        one.bytes += length;
        one.sum = crc32c::crc32c_append(one.sum, bytes);
        one.epochs = (one.epochs.0.min(epoch), one.epochs.1.max(epoch));
    })?;
    if let Some(last) = stretch {
        history.line(&Event::Stretch(last));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_line_is_read() {
        assert_eq!(milliseconds("1970-01-01T00:00:00.007000Z"), Some(7));
        assert_eq!(milliseconds("2000-02-29T12:00:01.500000Z"), Some(951_825_601_500));
        assert_eq!(milliseconds("nonsense"), None);
        let line = r#"{"timestamp":"1970-01-01T00:00:01.000000Z","message":"is the master now","epoch":3}"#;
        let leads = leads_of("broker-a-2", line).unwrap();
        assert_eq!((leads.t, &*leads.broker, leads.id, leads.epoch), (1000, "broker-a", 2, 3));
    }
}
