//! How fast the disk of a directory is, and whether it keeps what it says it keeps. Blocks its thread for three seconds at
//! most; what it writes is gone when it ends.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::FallocateFlags;

use super::Finding;
use crate::output;

const FILE_BYTES: usize = 64 << 20;
const CHUNK_BYTES: usize = 1 << 20;
/// A send of one message, about.
const SMALL_BYTES: usize = 4096;
const SMALL_WRITES: usize = 200;
/// Each of the two parts ends after so long, however slow the disk is.
const PART: Duration = Duration::from_millis(1500);
/// No device that keeps what it is given is done sooner: a write to flash alone takes longer.
const HONEST: Duration = Duration::from_micros(15);
/// Each send waits for one.
const SLOW: Duration = Duration::from_millis(10);
/// What a broker writes at best is more than this.
const SLOW_BYTES_PER_SECOND: u64 = 50_000_000;

/// File systems by their magic numbers, and what is to be said of them.
const FILE_SYSTEMS: [(u64, &str); 4] = [
    (0x0102_1994, "tmpfs: it is in memory, and gone with the power"),
    (0x8584_58f6, "ramfs: it is in memory, and gone with the power"),
    (0x6969, "NFS: whether a sync reaches a disk is the server's affair, and so are locks"),
    (0x794c_7630, "overlay: the layers of a container are slower than a volume, and go with it"),
];

/// What was measured.
struct Measured {
    bytes_per_second: u64,
    /// Of a small write with its sync.
    median: Duration,
    p99: Duration,
}

/// The findings of a directory.
pub(super) fn look(directory: &Path) -> Vec<Finding> {
    let node = format!("here: {}", directory.display());
    let measured = match measure(directory) {
        Ok(measured) => measured,
        Err(error) => {
            let advice = "give a directory in which this user may write 64 MiB";
            return vec![Finding::error(
                "disk speed",
                &node,
                format!("it cannot be measured: {error}"),
                advice,
            )];
        }
    };
    let kind = rustix::fs::statfs(directory).ok().and_then(|statistics| {
        let magic = u64::try_from(statistics.f_type).ok()?;
        FILE_SYSTEMS.iter().find(|known| known.0 == magic).map(|known| known.1)
    });
    judge(&node, &measured, kind)
}

fn judge(node: &str, measured: &Measured, kind: Option<&str>) -> Vec<Finding> {
    let Measured { bytes_per_second, median, p99 } = *measured;
    let speed = format!("{}/s written and synced in chunks of 1 MiB", output::bytes(bytes_per_second));
    let speed = match bytes_per_second < SLOW_BYTES_PER_SECOND {
        true => Finding::warning(
            "disk speed",
            node,
            speed,
            "a broker's log wants a disk of its own, or a faster one",
        ),
        false => Finding::ok("disk speed", node, speed),
    };
    let told = format!("4 KiB and a sync: {median:.1?}, of 100 the slowest {p99:.1?}");
    let sync = if median < HONEST {
        let advice = "no disk keeps anything so fast: a cache without a battery, a virtual disk or a library answers for it. \
                      What is answered OK there may be lost with the power";
        Finding::warning("sync", node, told, advice)
    } else if median > SLOW {
        let advice = "each send of class `disk` waits for one: batches, a faster disk, or less beside it";
        Finding::warning("sync", node, told, advice)
    } else {
        Finding::ok("sync", node, told)
    };
    let kind = kind.map(|kind| {
        Finding::warning(
            "file system",
            node,
            kind.to_owned(),
            "put storePathRootDir on a local disk: ext4 or xfs",
        )
    });
    [speed, sync].into_iter().chain(kind).collect()
}

fn measure(directory: &Path) -> io::Result<Measured> {
    let file = tempfile::tempfile_in(directory)?;
    // As the broker does: the space is there before the first write, and the metadata with it.
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, FILE_BYTES as u64)?;
    file.sync_all()?;
    let (started, chunk) = (Instant::now(), vec![b'k'; CHUNK_BYTES]);
    let mut written = 0;
    while written < FILE_BYTES && started.elapsed() < PART {
        synced(&file, &chunk, written)?;
        written += CHUNK_BYTES;
    }
    let bytes_per_second = (written as f64 / started.elapsed().as_secs_f64()) as u64;
    let (started, small) = (Instant::now(), vec![b'k'; SMALL_BYTES]);
    let mut times = Vec::new();
    while times.len() < SMALL_WRITES && (times.is_empty() || started.elapsed() < PART) {
        let began = Instant::now();
        synced(&file, &small, times.len() * SMALL_BYTES)?;
        times.push(began.elapsed());
    }
    times.sort();
    let quantile = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
    Ok(Measured { bytes_per_second, median: quantile(50), p99: quantile(99) })
}

fn synced(file: &File, bytes: &[u8], at: usize) -> io::Result<()> {
    file.write_all_at(bytes, at as u64)?;
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    fn levels(bytes_per_second: u64, median_us: u64, kind: Option<&str>) -> Vec<(&'static str, Level)> {
        let median = Duration::from_micros(median_us);
        let findings = judge("here", &Measured { bytes_per_second, median, p99: median }, kind);
        assert!(findings.iter().all(|one| one.advice.is_some() == (one.level != Level::Ok)));
        findings.into_iter().map(|finding| (finding.check, finding.level)).collect()
    }

    #[test]
    fn a_sync_that_is_too_fast_to_be_true_is_told() {
        let good = [("disk speed", Level::Ok), ("sync", Level::Ok)];
        assert_eq!(levels(200_000_000, 400, None), good);
        assert_eq!(levels(5_000_000_000, 2, None), [good[0], ("sync", Level::Warning)]);
        let slow =
            [("disk speed", Level::Warning), ("sync", Level::Warning), ("file system", Level::Warning)];
        assert_eq!(levels(9_000_000, 30_000, Some("NFS")), slow);
    }

    #[test]
    fn a_directory_is_measured_and_left_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let findings = look(directory.path());
        assert!(findings.len() >= 2 && findings.iter().all(|one| one.level != Level::Error), "{findings:?}");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        let missing = look(Path::new("/does/not/exist"));
        assert!(
            missing[0].level == Level::Error && missing[0].node.contains("/does/not/exist"),
            "{missing:?}"
        );
    }
}
