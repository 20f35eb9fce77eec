//! A Redis of the test's own, from Debian's package. Owned by one test.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::cluster::free_port;
use crate::process::Process;

const DEADLINE: Duration = Duration::from_secs(30);

/// A running Redis, which keeps what it is told on disk. Dropping it kills it.
#[derive(Debug)]
pub struct Redis {
    process: Process,
    port: u16,
    directory: TempDir,
}

impl Redis {
    /// An empty one, with more arguments.
    pub fn start(arguments: &[&str]) -> Redis {
        let (directory, port) = (TempDir::with_prefix("karman-redis-").unwrap(), free_port());
        let process = run(port, directory.path(), arguments);
        Redis { process, port, directory }
    }

    /// `redis://HOST:PORT`
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again where it was, with what it has kept.
    pub fn restart(&mut self) {
        self.process = run(self.port, self.directory.path(), &[]);
    }
}

fn run(port: u16, directory: &Path, arguments: &[&str]) -> Process {
    let found = Command::new("redis-server").arg("--version").output();
    assert!(
        found.is_ok(),
        "there is no redis-server; install it with `apt-get install redis-server`, as `ci/test` does"
    );
    let mut command = Command::new("redis-server");
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
    command.args(["--appendonly", "yes", "--appendfsync", "always"]).args(arguments).current_dir(directory);
    let process = Process::start("redis", command, directory);
    process.wait_line("word that it is ready", DEADLINE, |line| {
        line.contains("Ready to accept connections").then_some(())
    });
    process
}
