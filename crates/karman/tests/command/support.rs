//! The command, and a node to use it on.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

pub fn karman(endpoint: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_karman"));
    command
        .env_remove("KARMAN_CLUSTER_SECRET")
        .env("KARMAN_ENDPOINT", endpoint)
        .args(arguments)
        .output()
        .unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", stderr(output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// `karman dev` on free ports; killed if the test fails.
pub struct Dev {
    child: Child,
    pub endpoint: String,
    pub metrics: String,
}

impl Dev {
    pub fn start(data: &std::path::Path) -> Self {
        let any = "127.0.0.1:0";
        let mut child = Command::new(env!("CARGO_BIN_EXE_karman"))
            .args([
                "dev",
                "--grpc",
                any,
                "--namesrv",
                any,
                "--internal",
                any,
                "--metrics",
                any,
                "--topic",
                "orders:normal:2",
            ])
            .arg("--data")
            .arg(data)
            .env("KARMAN_LOG", "warn")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["karman", "ready", endpoint, namesrv, metrics] = words[..] else {
            panic!("not ready: {line:?}")
        };
        assert!(namesrv.starts_with("namesrv=127.0.0.1:") && metrics.starts_with("metrics=127.0.0.1:"));
        let value = |word: &str| word.split_once('=').unwrap().1.to_owned();
        Self { child, endpoint: value(endpoint), metrics: value(metrics) }
    }

    pub fn stop(mut self) -> Option<i32> {
        kill_process(Pid::from_raw(self.child.id().cast_signed()).unwrap(), Signal::TERM).unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // Gone already when the test stopped it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A node with its command, answers as JSON.
pub struct Node {
    pub dev: Dev,
    data: tempfile::TempDir,
}

impl Node {
    pub fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        Self { dev: Dev::start(data.path()), data }
    }

    /// The same data in another process, after the first was killed.
    pub fn killed_and_started(self) -> Self {
        drop(self.dev);
        Self { dev: Dev::start(self.data.path()), data: self.data }
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        karman(&self.dev.endpoint, &[&["-o", "json"], arguments].concat())
    }

    pub fn done(&self, arguments: &[&str]) -> Value {
        json(&self.run(arguments))
    }

    pub fn lines(&self, arguments: &[&str]) -> Vec<Value> {
        let output = self.run(arguments);
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub fn table(&self, arguments: &[&str]) -> String {
        let output = karman(&self.dev.endpoint, arguments);
        assert!(output.status.success(), "{}", stderr(&output));
        let text = stdout(&output);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        text
    }
}
