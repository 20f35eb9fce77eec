//! `karman store stat`.

use karman_store::IndexState;
use karman_store::offline::{Offline, SegmentStat, Stat};
use serde::Serialize;

use crate::output::{self, Format, bytes, grouped, number, text};
use crate::time;

#[derive(Serialize)]
struct StatJson {
    owner: Option<String>,
    log_id: Option<String>,
    log_start: u64,
    flushed: Option<u64>,
    queues: u64,
    quarantined_files: u64,
    segments: Vec<SegmentJson>,
    snapshots: Vec<SnapshotJson>,
}

#[derive(Serialize)]
struct SegmentJson {
    base: u64,
    length_bytes: u64,
    allocated_bytes: u64,
    entries: Option<u64>,
    first_store_ms: Option<u64>,
    last_store_ms: Option<u64>,
    index: &'static str,
}

#[derive(Serialize)]
struct SnapshotJson {
    log_offset: u64,
    bytes: u64,
    intact: bool,
}

fn index_word(index: &IndexState) -> &'static str {
    match index {
        IndexState::None => "none",
        IndexState::Sound => "yes",
        IndexState::Damaged(_) => "damaged",
    }
}

impl From<Stat> for StatJson {
    fn from(stat: Stat) -> Self {
        let segment = |segment: SegmentStat| SegmentJson {
            base: segment.base,
            length_bytes: segment.length_bytes,
            allocated_bytes: segment.allocated_bytes,
            entries: segment.entries,
            first_store_ms: segment.store_times_ms.map(|(first, _)| first),
            last_store_ms: segment.store_times_ms.map(|(_, last)| last),
            index: index_word(&segment.index),
        };
        Self {
            owner: stat.owner,
            log_id: stat.log_id,
            log_start: stat.log_start,
            flushed: stat.flushed,
            queues: stat.queues,
            quarantined_files: stat.quarantined,
            segments: stat.segments.into_iter().map(segment).collect(),
            snapshots: stat
                .snapshots
                .into_iter()
                .map(|own| SnapshotJson { log_offset: own.log_offset, bytes: own.bytes, intact: own.intact })
                .collect(),
        }
    }
}

pub(super) fn run(offline: &Offline, format: Format) -> anyhow::Result<()> {
    let stat = StatJson::from(offline.stat()?);
    if output::nameless(format, &stat)? { Ok(()) } else { print(&stat) }
}

fn print(stat: &StatJson) -> anyhow::Result<()> {
    let unknown = || "cannot be read".to_owned();
    let offset = |offset: Option<u64>| offset.map_or_else(unknown, grouped);
    output::line(&format!("owner        {}", stat.owner.clone().unwrap_or_else(unknown)))?;
    output::line(&format!("log id       {}", stat.log_id.clone().unwrap_or_else(unknown)))?;
    output::line(&format!("log starts   {}", grouped(stat.log_start)))?;
    output::line(&format!("durable to   {} at least", offset(stat.flushed)))?;
    output::line(&format!("queues       {} in full segments", grouped(stat.queues)))?;
    if stat.quarantined_files > 0 {
        output::line(&format!("quarantine   {} files", stat.quarantined_files))?;
    }
    output::line("")?;
    let time = |ms: Option<u64>| ms.map_or("-".to_owned(), time::format_ms);
    let cells = |segment: &SegmentJson| {
        vec![
            segment.base.to_string(),
            bytes(segment.length_bytes),
            segment.entries.map_or("-".to_owned(), grouped),
            time(segment.first_store_ms),
            time(segment.last_store_ms),
            segment.index.to_owned(),
        ]
    };
    let columns = [
        number("SEGMENT"),
        number("SIZE"),
        number("ENTRIES"),
        text("STORED FROM"),
        text("TO"),
        text("INDEX"),
    ];
    output::table(&columns, stat.segments.iter().map(cells).collect())?;
    output::line("")?;
    let cells = |own: &SnapshotJson| {
        vec![own.log_offset.to_string(), bytes(own.bytes), if own.intact { "yes" } else { "no" }.to_owned()]
    };
    let columns = [number("SNAPSHOT OF"), number("SIZE"), text("INTACT")];
    Ok(output::table(&columns, stat.snapshots.iter().map(cells).collect())?)
}
