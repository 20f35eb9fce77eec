//! `karman store dump`.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use karman_store::offline::{Dumped, Offline, What};
use karman_store::{QueueNumber, RecordKind};
use serde::Serialize;

use super::DumpArgs;
use crate::output::{self, Format};
use crate::time;

#[derive(Serialize)]
#[serde(rename_all = "snake_case", tag = "what")]
enum DumpedJson<'a> {
    Record {
        physical_offset: u64,
        length_bytes: u32,
        kind: &'static str,
        store_ms: u64,
        queue: Option<u32>,
        queue_offset: Option<u64>,
        tag_hash: u64,
        /// Hexadecimal: they are 64 bits, more than a JSON number holds everywhere.
        keys: Vec<String>,
        payload_bytes: u32,
        payload: Option<&'a str>,
        payload_base64: Option<String>,
    },
    Blank {
        physical_offset: u64,
        length_bytes: u32,
    },
    Lost {
        physical_offset: u64,
        length_bytes: u32,
    },
    NoRecord {
        from: u64,
        to: u64,
        reason: &'a str,
    },
}

fn kind_word(kind: RecordKind) -> &'static str {
    match kind {
        RecordKind::Message => "message",
        RecordKind::DeadLetter => "dead-letter",
        RecordKind::Metadata => "metadata",
        RecordKind::Progress => "progress",
        RecordKind::Held => "held",
        RecordKind::Released => "released",
        RecordKind::Settled => "settled",
        RecordKind::Kept => "kept",
        RecordKind::Epoch => "epoch",
    }
}

pub(super) fn run(offline: &Offline, args: &DumpArgs, format: Format) -> anyhow::Result<()> {
    let range = args.from..args.to.unwrap_or(u64::MAX);
    anyhow::ensure!(range.start < range.end, "--to {} is not behind --from {}", range.end, range.start);
    let what = What { range, queue: args.queue.map(QueueNumber), payload: args.payload };
    if format == Format::Table {
        output::line(&row(["OFFSET", "LENGTH", "KIND", "QUEUE", "AT", "STORED"].map(str::to_owned)))?;
    }
    let (mut left, mut failed) = (args.max.unwrap_or(u64::MAX), None);
    offline.dump(&what, &mut |dumped| {
        if left == 0 {
            return false;
        }
        left -= 1;
        let printed = match format {
            Format::Table => print(&dumped),
            _ => output::one_of_many(format, &json(&dumped), "").map(drop),
        };
        failed = printed.err();
        failed.is_none()
    })?;
    failed.map_or(Ok(()), Err)
}

fn row([offset, length, kind, queue, at, stored]: [String; 6]) -> String {
    format!("{offset:>14} {length:>10} {kind:<11} {queue:>6} {at:>10} {stored}")
}

fn print(dumped: &Dumped) -> anyhow::Result<()> {
    let none = || "-".to_owned();
    match dumped {
        Dumped::Record { physical_offset, length_bytes, kind, store_time_ms, queue, payload, .. } => {
            let (queue, at) =
                queue.map_or_else(|| (none(), none()), |(queue, at)| (queue.0.to_string(), at.to_string()));
            let (offset, length) = (physical_offset.to_string(), length_bytes.to_string());
            let stored = time::format_ms(*store_time_ms);
            output::line(&row([offset, length, kind_word(*kind).to_owned(), queue, at, stored]))?;
            if let Some(payload) = payload {
                output::line(&payload.escape_ascii().to_string())?;
            }
        }
        Dumped::Filler { physical_offset, length_bytes, lost } => {
            let kind = if *lost { "lost" } else { "blank" };
            let (offset, length) = (physical_offset.to_string(), length_bytes.to_string());
            output::line(&row([offset, length, kind.to_owned(), none(), none(), none()]))?;
        }
        Dumped::None(stretch) => {
            let (offset, length) = (stretch.from.to_string(), (stretch.to - stretch.from).to_string());
            let reason = format!("- ({})", stretch.reason);
            output::line(&row([offset, length, "no record".to_owned(), none(), none(), reason]))?;
        }
    }
    Ok(())
}

fn json(dumped: &Dumped) -> DumpedJson<'_> {
    match dumped {
        Dumped::Record {
            physical_offset,
            length_bytes,
            kind,
            store_time_ms,
            queue,
            tag_hash,
            keys,
            payload_bytes,
            payload,
        } => {
            let text = payload.as_ref().and_then(|payload| std::str::from_utf8(payload).ok());
            let binary = payload.as_ref().filter(|_| text.is_none());
            DumpedJson::Record {
                physical_offset: *physical_offset,
                length_bytes: *length_bytes,
                kind: kind_word(*kind),
                store_ms: *store_time_ms,
                queue: queue.map(|(queue, _)| queue.0),
                queue_offset: queue.map(|(_, at)| at),
                tag_hash: *tag_hash,
                keys: keys.iter().map(|key| format!("{key:016x}")).collect(),
                payload_bytes: *payload_bytes,
                payload: text,
                payload_base64: binary.map(|payload| BASE64_STANDARD.encode(payload)),
            }
        }
        Dumped::Filler { physical_offset, length_bytes, lost } => {
            let (physical_offset, length_bytes) = (*physical_offset, *length_bytes);
            match lost {
                true => DumpedJson::Lost { physical_offset, length_bytes },
                false => DumpedJson::Blank { physical_offset, length_bytes },
            }
        }
        Dumped::None(stretch) => {
            DumpedJson::NoRecord { from: stretch.from, to: stretch.to, reason: &stretch.reason }
        }
    }
}
