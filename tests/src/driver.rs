//! The official clients, each driven by a program under `tests/clients`. Their words are documented in `driver.py` there.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde::Deserialize;

use crate::process::Process;

/// Start of a JVM, of the client in it, its first route and settings, while others do the same on two cores.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// The Java client ends its long polls and background services one by one.
const STOP_DEADLINE: Duration = Duration::from_secs(90);
const EXAMPLE_DEADLINE: Duration = Duration::from_secs(150);

/// Which official client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// `org.apache.rocketmq:rocketmq-client-java`, TLS by default.
    Java,
    /// `rocketmq-python-client`, plaintext by default.
    Python,
    /// `github.com/apache/rocketmq-clients/golang/v5`, TLS by default.
    Go,
    /// `rocketmq-client-nodejs`, plaintext by default. It sees the queues with the number 0 alone.
    Node,
    /// The crate `rocketmq`, plaintext only. It has a producer and a simple consumer.
    Rust,
}

/// One line of a driver's output. Which fields are there depends on `event`; times are milliseconds since 1970.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "named in tests/clients/python/driver.py")]
pub struct Event {
    pub event: String,
    pub at: u64,
    pub began: u64,
    pub index: u64,
    pub id: Option<String>,
    pub topic: String,
    pub tag: Option<String>,
    pub keys: Vec<String>,
    pub properties: BTreeMap<String, String>,
    pub sha256: String,
    pub length: usize,
    pub attempt: u32,
    pub born: u64,
    pub corrupted: bool,
    pub code: Option<i32>,
    pub message: Option<String>,
    pub error: Option<String>,
    pub name: Option<String>,
    pub outcome: Option<String>,
    pub group: Option<String>,
    pub seq: Option<u64>,
    pub due: Option<u64>,
    pub priority: Option<i32>,
    pub lite: Option<String>,
    pub handle: Option<String>,
    pub decision: Option<String>,
}

/// A running driver.
#[derive(Debug)]
pub struct Driver {
    process: Process,
    /// Of the lines read so far; those behind are read when somebody asks.
    events: RefCell<Vec<Event>>,
}

/// The command line of one driver.
#[derive(Debug)]
pub struct Plan<'a> {
    /// Which client.
    pub language: Language,
    /// What to do; see `driver.py`.
    pub scenario: &'a str,
    /// The access point.
    pub endpoint: &'a str,
    /// The topic.
    pub topic: &'a str,
    /// More `--name value` pairs, without the dashes.
    pub options: &'a [(&'a str, &'a str)],
}

impl Driver {
    /// Starts a driver; its log and its client's log go to `directory`.
    pub fn start(plan: &Plan<'_>, directory: &Path) -> Driver {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let mut command = plan.language.command(directory);
        command.args([plan.scenario, "--endpoint", plan.endpoint, "--topic", plan.topic]);
        for (name, value) in plan.options {
            command.args([&format!("--{name}"), *value]);
        }
        let name = format!("{:?}-{}-{number}", plan.language, plan.scenario);
        Driver { process: Process::start(&name, command, directory), events: RefCell::default() }
    }

    /// Starts a driver and waits until its client has started.
    pub fn start_ready(plan: &Plan<'_>, directory: &Path) -> Driver {
        let driver = Driver::start(plan, directory);
        driver.wait_ready();
        driver
    }

    /// Waits until its client has started.
    pub fn wait_ready(&self) {
        self.process.wait_line("ready event", START_DEADLINE, |line| {
            let event = parse(line);
            assert!(event.event != "fatal", "the client did not start: {line}");
            (event.event == "ready").then_some(())
        });
    }

    /// Runs a driver until it ends by itself; what it reported.
    pub fn run(plan: &Plan<'_>, directory: &Path, deadline: Duration) -> Vec<Event> {
        let mut driver = Driver::start(plan, directory);
        let status = driver.process.wait_end(deadline);
        let events = driver.events();
        let fatal = events.iter().find(|event| event.event == "fatal");
        assert!(status.success() && fatal.is_none(), "{plan:?} ended with {status}: {fatal:?}");
        events
    }

    /// What was reported so far.
    pub fn events(&self) -> Vec<Event> {
        self.events_from(0)
    }

    /// What was reported so far, from number `from`.
    pub fn events_from(&self, from: usize) -> Vec<Event> {
        self.read();
        self.events.borrow()[from..].to_vec()
    }

    /// How often `event` was reported so far.
    pub fn count(&self, event: &str) -> usize {
        self.read();
        self.events.borrow().iter().filter(|one| one.event == event).count()
    }

    fn read(&self) {
        let mut events = self.events.borrow_mut();
        let lines = self.process.lines(events.len());
        events.extend(lines.iter().map(|line| parse(line)));
    }

    /// Waits until `event` was reported `count` times.
    pub fn wait_count(&mut self, event: &str, count: usize, deadline: Duration) {
        crate::until(&format!("{count} × {event}"), deadline, || {
            let seen = self.count(event);
            assert!(seen >= count || self.process.is_running(), "the driver ended after {seen} × {event}");
            (seen >= count).then_some(())
        });
    }

    /// Ends the driver in order; all that it reported.
    pub fn stop(mut self) -> Vec<Event> {
        self.process.close_stdin();
        self.process.wait_line("done event", STOP_DEADLINE, |line| line.contains("\"done\"").then_some(()));
        let status = self.process.wait_end(STOP_DEADLINE);
        assert!(status.success(), "the driver ended with {status}: {:?}", self.events().last());
        self.events()
    }
}

fn parse(line: &str) -> Event {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("not an event: {line}: {error}"))
}

impl Language {
    /// All of them.
    pub const ALL: [Language; 5] =
        [Language::Java, Language::Python, Language::Go, Language::Node, Language::Rust];

    /// The version that `tests/clients/setup` installs.
    pub fn version(self) -> &'static str {
        match self {
            Language::Java => "5.2.0",
            Language::Python => "5.1.2",
            Language::Go => "5.1.4",
            Language::Node => "1.0.8",
            Language::Rust => "5.0.0",
        }
    }

    /// The program under `examples/` that uses this client, started in `home`; what it has printed when it has ended well.
    pub fn example(self, endpoint: &str, home: &Path) -> String {
        let (clients, examples) = (root().join("target/clients"), root().join("examples"));
        let mut command = match self {
            Language::Python => {
                let mut command = Command::new(clients.join("python/bin/python"));
                command.arg("-B").arg(examples.join("python/orders.py"));
                command
            }
            Language::Java => {
                let mut command = Command::new("java");
                command.arg(format!("-Duser.home={}", home.display()));
                command.arg("-cp").arg(clients.join("java/lib/*")).arg(examples.join("java/Orders.java"));
                command
            }
            Language::Go => Command::new(clients.join("go/orders")),
            Language::Node => {
                let mut command = Command::new("node");
                command
                    .arg(examples.join("node/orders.js"))
                    .env("NODE_PATH", clients.join("node/node_modules"));
                command
            }
            Language::Rust => panic!("the Rust examples use the SDK"),
        };
        command.arg(endpoint).current_dir(home).env("HOME", home);
        Process::printed(&format!("{self:?}-example"), command, home, EXAMPLE_DEADLINE)
    }

    fn command(self, home: &Path) -> Command {
        let (clients, sources) = (root().join("target/clients"), root().join("tests/clients"));
        let mut command = match self {
            Language::Python => {
                let mut command = Command::new(clients.join("python/bin/python"));
                command.arg("-B").arg(sources.join("python/driver.py"));
                command
            }
            Language::Java => {
                let mut command = Command::new("java");
                // Short-lived programs: a small heap, the simple collector, and no second compiler.
                command.args(["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]);
                // Asked about transactions by as many brokers at once as there are processors, the client stands still for
                // ever: `docs/clients.md`.
                command.arg("-XX:ActiveProcessorCount=8");
                command.arg(format!("-Duser.home={}", home.display()));
                command.arg("-jar").arg(clients.join("java/driver.jar"));
                command
            }
            Language::Go => Command::new(clients.join("go/driver")),
            Language::Node => {
                let mut command = Command::new("node");
                command.arg(sources.join("node/driver.js"));
                command.env("NODE_PATH", clients.join("node/node_modules"));
                command
            }
            Language::Rust => Command::new(clients.join("rust/release/driver")),
        };
        // The clients write their logs under it.
        command.current_dir(home).env("HOME", home);
        command
    }
}

/// The directory of the workspace.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}
