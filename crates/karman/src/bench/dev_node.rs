//! A node of its own for a bench: `karman dev` in another process, on free ports, with nothing in its log.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::process::Child;

use super::ceiling::{cpu_micros, start_child, value_of};

const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// A directory under `parent` that goes when the handle does.
pub(super) fn directory(parent: &Path) -> anyhow::Result<TempDir> {
    let made = tempfile::Builder::new().prefix("karman-bench-").tempdir_in(parent);
    made.with_context(|| format!("make a directory in {parent:?}"))
}

/// `karman dev` as a process of its own.
pub(super) struct DevNode {
    child: Child,
    pub(super) endpoint: String,
}

impl DevNode {
    /// Keeps everything under `dir`; `topics` as `karman dev --topic` takes them.
    pub(super) async fn start(dir: &Path, topics: &[String]) -> anyhow::Result<Self> {
        let data = dir.join("data");
        let data = data.to_str().context("the name of the directory is not UTF-8")?;
        let any = "127.0.0.1:0";
        let mut arguments = vec!["dev", "--data", data];
        for option in ["--grpc", "--namesrv", "--internal", "--metrics"] {
            arguments.extend([option, any]);
        }
        for topic in topics {
            arguments.extend(["--topic", topic]);
        }
        let (child, line) = start_child(&arguments).await?;
        Ok(Self { child, endpoint: value_of(&line, "endpoint")? })
    }

    /// User and system time since its start.
    pub(super) fn cpu_micros(&self) -> anyhow::Result<u64> {
        cpu_micros(&self.child).context("read the processor time of the node")
    }

    pub(super) fn memory(&self) -> anyhow::Result<Memory> {
        let id = self.child.id().context("the node ended by itself")?;
        let status =
            std::fs::read_to_string(format!("/proc/{id}/status")).context("read the node's memory")?;
        Memory::of(&status).context("the node's memory is not in its status")
    }

    /// `kill -9`.
    pub(super) async fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill().await.context("kill the node")
    }

    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        let pid = self.child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        kill_process(pid.context("the node ended by itself")?, Signal::TERM)?;
        let status = tokio::time::timeout(STOP_TIMEOUT, self.child.wait()).await;
        let status = status
            .with_context(|| format!("the node did not stop within {} s", STOP_TIMEOUT.as_secs()))??;
        anyhow::ensure!(status.success(), "the node did not stop in order: {status}");
        Ok(())
    }
}

/// What a process holds of the machine's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Memory {
    /// With pages of files that it has mapped, which the kernel may take back.
    pub(super) resident_bytes: u64,
    /// The most of that so far.
    pub(super) peak_bytes: u64,
    /// Without files.
    pub(super) anonymous_bytes: u64,
}

impl Memory {
    /// Of `/proc/PID/status`, in KiB there.
    fn of(status: &str) -> Option<Self> {
        let kib = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
            line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
        };
        Some(Self {
            resident_bytes: kib("VmRSS")? * 1024,
            peak_bytes: kib("VmHWM")? * 1024,
            anonymous_bytes: kib("RssAnon")? * 1024,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_the_status_of_a_process() {
        let status = "Name:\tkarman\nVmHWM:\t    30 kB\nVmRSS:\t    20 kB\nRssAnon:\t    10 kB\n";
        let memory = Memory { resident_bytes: 20_480, peak_bytes: 30_720, anonymous_bytes: 10_240 };
        assert_eq!(Memory::of(status), Some(memory));
        assert_eq!(Memory::of("Name:\tkarman\n"), None);
    }
}
