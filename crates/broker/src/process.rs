//! What this process uses, as the kernel counts it. Any thread; reads `/proc`.

/// Processor time and memory of this process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Used {
    /// User and system time of all threads, in steps of 10 ms.
    pub cpu_micros: u64,
    /// Resident set.
    pub resident_bytes: u64,
}

/// Files and connections of this process.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenFiles {
    /// Now.
    pub count: u32,
    /// So many it may have.
    pub limit: u32,
}

/// Ticks of `/proc/self/stat` are hundredths of a second on Linux (USER_HZ), whatever the kernel's own rate.
const MICROS_PER_TICK: u64 = 10_000;
/// The kernel counts memory there in KiB.
const KIB: u64 = 1024;

/// Zeros where the kernel does not say.
pub fn used() -> Used {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    Used {
        cpu_micros: ticks(&stat).unwrap_or(0) * MICROS_PER_TICK,
        resident_bytes: resident(&status).unwrap_or(0),
    }
}

/// Zeros where the kernel does not say. It lists each of them: not for what is asked often.
pub fn open_files() -> OpenFiles {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    OpenFiles { count: u32::try_from(open).unwrap_or(u32::MAX), limit: limit(&limits).unwrap_or(0) }
}

/// utime and stime, fields 14 and 15. The name in field 2 may hold anything, so the count begins behind it.
fn ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * KIB)
}

/// The soft limit: at that one an open fails.
fn limit(limits: &str) -> Option<u32> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(u32::MAX),
        count => count.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_the_process_does_not_confuse_the_count() {
        let stat = "7 (a) b c) S 1 2 3 4 5 6 7 8 9 10 100 23 0 0";
        assert_eq!(ticks(stat), Some(123));
    }

    #[test]
    fn this_process_uses_memory_and_files() {
        assert!(used().resident_bytes > 0);
        let files = open_files();
        assert!(files.count > 2 && files.count < files.limit, "{files:?}");
    }
}
