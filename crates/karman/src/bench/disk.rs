//! What the disk alone can do with the bytes of a log: new files, their space reserved ahead as a broker's is, written
//! once from front to back, each chunk followed by an fdatasync.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::FallocateFlags;

/// A segment of the log.
const FILE_BYTES: u64 = 1024 * 1024 * 1024;

/// Bytes per second made durable in chunks of `chunk_bytes`, in files that are made in `dir` and removed. Blocks the
/// thread for `time`.
pub(crate) fn bytes_per_second(dir: &Path, chunk_bytes: usize, time: Duration) -> io::Result<f64> {
    let chunk = vec![b'k'; chunk_bytes];
    let mut files = vec![segment(dir)?];
    let (start, mut written, mut at) = (Instant::now(), 0u64, 0u64);
    while start.elapsed() < time {
        if at + chunk_bytes as u64 > FILE_BYTES {
            // Kept until the end, as segments are: their memory is not given to the next one.
            files.push(segment(dir)?);
            at = 0;
        }
        let file = files.last().expect("there is at least one");
        file.write_all_at(&chunk, at)?;
        file.sync_data()?;
        at += chunk_bytes as u64;
        written += chunk_bytes as u64;
    }
    Ok(written as f64 / start.elapsed().as_secs_f64())
}

fn segment(dir: &Path) -> io::Result<File> {
    let file = tempfile::tempfile_in(dir)?;
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, FILE_BYTES)?;
    Ok(file)
}
