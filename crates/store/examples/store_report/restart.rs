//! Rows about starting: a store of many segments, and one of many queues.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use karman_store::{QueueNumber, Silent};
use rustix::fs::Advice;

use crate::child::OpenStore;
use crate::fill::{BATCH, Filler};
use crate::options::Options;
use crate::rows::Rounds;
use crate::{Outcome, config, open};

/// Queues of the large log.
const QUEUES: u64 = 64;

/// Each round: [ms until accepted, until served: after a clean stop; after a kill; after a clean stop with nothing
/// cached; segments].
pub(crate) fn segments(options: &Options, round: Rounds<'_>) -> Outcome<()> {
    let directory = large_log(options)?;
    for _ in 0..options.rounds {
        let clean = OpenStore::start(&directory)?.kill_under_load()?;
        let killed = OpenStore::start(&directory)?.close()?;
        evict(&directory)?;
        let cold = OpenStore::start(&directory)?.close()?;
        let times = [clean, killed, cold].map(|opened| [opened.accepted_ms, opened.served_ms]);
        let mut values = times.concat();
        values.push(files_named(&directory, "log")? as f64);
        round(values);
    }
    Ok(())
}

/// Makes the log that rows share, once.
pub(crate) fn large_log(options: &Options) -> Outcome<std::path::PathBuf> {
    if let Some(directory) = options.large_log.get() {
        return Ok(directory.path().to_owned());
    }
    let directory = options.scratch()?;
    let store = open(directory.path(), Arc::new(Silent))?;
    // The last segment ends up half full and is filled further by those who are killed.
    let end = options.log_bytes.saturating_sub(config(directory.path()).segment_size_bytes / 2);
    let (mut filler, mut batches) = (Filler::new(&store, options.size_bytes), 0);
    while store.watermarks().written < end {
        filler.batch(QueueNumber((batches % QUEUES) as u32))?;
        batches += 1;
    }
    filler.end()?;
    store.close()?;
    Ok(options.large_log.get_or_init(|| directory).path().to_owned())
}

/// Each round: [ms until accepted, until served, anonymous bytes a queue, files].
pub(crate) fn queues(options: &Options, round: Rounds<'_>) -> Outcome<()> {
    let (directory, empty) = (options.scratch()?, options.scratch()?);
    let store = open(directory.path(), Arc::new(Silent))?;
    let mut filler = Filler::new(&store, options.size_bytes);
    for batch in 0..options.messages / BATCH {
        filler.batch(QueueNumber((batch % u64::from(options.queues)) as u32))?;
    }
    filler.end()?;
    store.close()?;
    drop(store);
    for _ in 0..options.rounds {
        let none = OpenStore::start(empty.path())?.close()?;
        let opened = OpenStore::start(directory.path())?.close()?;
        let per_queue = (opened.anonymous_bytes - none.anonymous_bytes) / f64::from(options.queues);
        let files = files_named(directory.path(), "")? as f64;
        round(vec![opened.accepted_ms, opened.served_ms, per_queue, files]);
    }
    Ok(())
}

/// Files below `directory` with this extension; of any if it is empty.
fn files_named(directory: &Path, extension: &str) -> Outcome<usize> {
    let mut count = 0;
    visit(directory, &mut |path| {
        count += usize::from(extension.is_empty() || path.extension().is_some_and(|own| own == extension));
        Ok(())
    })?;
    Ok(count)
}

/// Lets the kernel forget the files' pages, as if the machine had just been switched on.
fn evict(directory: &Path) -> Outcome<()> {
    visit(directory, &mut |path| Ok(rustix::fs::fadvise(File::open(path)?, 0, None, Advice::DontNeed)?))
}

fn visit(directory: &Path, file: &mut dyn FnMut(&Path) -> Outcome<()>) -> Outcome<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() { visit(&path, file)? } else { file(&path)? }
    }
    Ok(())
}
