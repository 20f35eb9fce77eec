//! What the kernel says about this process, and order statistics.

use std::fs;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use crate::Outcome;

/// Processor time of one thread, from a moment on.
pub(crate) struct CpuTime {
    schedstat: PathBuf,
    start_ns: u64,
}

impl CpuTime {
    /// Of the thread with this name, of which there must be one.
    pub(crate) fn of_thread(name: &str) -> Outcome<Self> {
        for task in fs::read_dir("/proc/self/task")? {
            let path = task?.path();
            if fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name) {
                let mut time = Self { schedstat: path.join("schedstat"), start_ns: 0 };
                time.start_ns = time.elapsed_ns()?;
                return Ok(time);
            }
        }
        Err(format!("there is no thread {name}").into())
    }

    pub(crate) fn of_this_thread() -> Outcome<Self> {
        let mut time = Self { schedstat: "/proc/thread-self/schedstat".into(), start_ns: 0 };
        time.start_ns = time.elapsed_ns()?;
        Ok(time)
    }

    pub(crate) fn elapsed_ns(&self) -> Outcome<u64> {
        let text = fs::read_to_string(&self.schedstat)?;
        let on_cpu_ns: u64 = text.split(' ').next().unwrap_or_default().parse()?;
        Ok(on_cpu_ns - self.start_ns)
    }
}

/// What the processors do, from a moment on.
pub(crate) struct Processors {
    all: u64,
    idle: u64,
    own: u64,
}

impl Processors {
    pub(crate) fn now() -> Outcome<Self> {
        let all = fs::read_to_string("/proc/stat")?;
        let all = ticks(all.lines().next().unwrap_or_default(), 1..9)?;
        let own = fs::read_to_string("/proc/self/stat")?;
        // Behind the name, which may hold spaces: user and system time, of this process and of children that ended.
        let own = ticks(own.rsplit(')').next().unwrap_or_default(), 11..15)?;
        Ok(Self { all: all.iter().sum(), idle: all[3] + all[4], own: own.iter().sum() })
    }

    /// The part of all processors' time that other processes, and the kernel's own threads, have had since.
    pub(crate) fn used_by_others(&self) -> Outcome<f64> {
        let now = Self::now()?;
        let all = (now.all - self.all).max(1);
        let others = all.saturating_sub(now.idle - self.idle).saturating_sub(now.own - self.own);
        Ok(others as f64 / all as f64)
    }
}

fn ticks(line: &str, columns: Range<usize>) -> Outcome<Vec<u64>> {
    let columns = line.split_whitespace().skip(columns.start).take(columns.len());
    Ok(columns.map(str::parse).collect::<Result<_, _>>()?)
}

/// A line of `/proc/self/status` that is in kB, as bytes.
pub(crate) fn memory_bytes(key: &str) -> Outcome<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let kilobytes =
        line.and_then(|line| line.split_whitespace().next()).ok_or(format!("no {key} in status"))?;
    Ok(kilobytes.parse::<u64>()? << 10)
}

/// The value below which `part` of the sorted values lie.
pub(crate) fn quantile(sorted: &[u32], part: f64) -> f64 {
    let last = sorted.len().saturating_sub(1) as f64;
    sorted.get((last * part) as usize).copied().map_or(f64::NAN, f64::from)
}

pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// An hour at most.
pub(crate) fn microseconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}
