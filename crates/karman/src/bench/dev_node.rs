//! A node of its own for a bench: `karman dev` in another process, on free ports, with nothing in its log.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::process::Child;

use super::ceiling::{start_child, value_of};

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
