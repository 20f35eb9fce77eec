//! One server under test, as a process.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use crate::process::Process;

/// A server that has not said `karman ready` by now does not start. Generous: tests share two cores with JVMs.
const START_DEADLINE: Duration = Duration::from_secs(60);
const STOP_DEADLINE: Duration = Duration::from_secs(20);

/// One server process that keeps its addresses and its directory when it is started again.
#[derive(Debug)]
pub struct Node {
    name: String,
    program: &'static str,
    arguments: Vec<String>,
    directory: PathBuf,
    /// The network namespace in which it runs.
    namespace: Option<String>,
    environment: Vec<(&'static str, String)>,
    process: Option<Process>,
    ready: HashMap<String, String>,
}

impl Node {
    pub(crate) fn new(name: &str, program: &'static str, arguments: Vec<String>, directory: &Path) -> Node {
        let (name, directory) = (name.to_owned(), directory.to_owned());
        Node {
            name,
            program,
            arguments,
            directory,
            namespace: None,
            environment: Vec::new(),
            process: None,
            ready: HashMap::new(),
        }
    }

    /// The same with more in its environment.
    pub(crate) fn with(mut self, environment: Vec<(&'static str, String)>) -> Node {
        self.environment = environment;
        self
    }

    /// The same in a network namespace.
    pub(crate) fn within(mut self, namespace: &str) -> Node {
        self.namespace = Some(namespace.to_owned());
        self
    }

    /// The same process once more, whatever becomes of it; with more `--set`, of which the last of a key counts.
    pub(crate) fn twin(&self, name: &str, settings: &[String]) -> Process {
        let mut command = self.command();
        command.args(settings.iter().flat_map(|setting| ["--set", setting]));
        Process::start(name, command, &self.directory)
    }

    fn command(&self) -> Command {
        let mut command = match &self.namespace {
            // It becomes the program: the child is the server itself. (`ip netns exec` would give it mounts of its own,
            // and a disk that is mounted there too cannot be unmounted here.)
            Some(namespace) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/run/netns/{namespace}")).arg(program(self.program));
                command
            }
            None => Command::new(program(self.program)),
        };
        command.args(&self.arguments).current_dir(&self.directory).env("KARMAN_LOG", "info");
        command.envs(self.environment.iter().map(|(key, value)| (key, value)));
        command
    }

    /// A node started by hand, for tests of the command line.
    pub fn start_with(program: &'static str, arguments: &[&str], directory: &Path) -> Node {
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let mut node = Node::new(program, program, arguments, directory);
        node.start();
        node
    }

    /// Starts the node and waits until it is ready.
    pub fn start(&mut self) {
        assert!(self.process.is_none(), "{} runs already", self.name);
        let process = Process::start(&self.name, self.command(), &self.directory);
        self.ready = process.wait_line("ready line", START_DEADLINE, |line| {
            let fields = line.strip_prefix("karman ready ")?;
            Some(
                fields
                    .split(' ')
                    .filter_map(|f| f.split_once('='))
                    .map(|(k, v)| (k.into(), v.into()))
                    .collect(),
            )
        });
        self.process = Some(process);
    }

    /// What it has written to its log so far.
    pub fn log(&self) -> String {
        self.process.as_ref().expect("a running node").log()
    }

    /// The name of the node, of a broker that is no slave the name in routes.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where clients connect.
    pub fn endpoint(&self) -> String {
        self.ready["endpoint"].clone()
    }

    /// What the ready line said of `key`.
    pub fn ready(&self, key: &str) -> &str {
        &self.ready[key]
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.process.take().expect("a running node").kill();
    }

    /// SIGSTOP: it does nothing any more until it is resumed, or killed.
    pub fn pause(&mut self) {
        self.process.as_mut().expect("a running node").pause();
    }

    /// The processor time it has taken since it was started.
    pub fn processor_time(&self) -> Duration {
        self.process.as_ref().expect("a running node").processor_time()
    }

    /// The memory it holds.
    pub fn resident_bytes(&self) -> u64 {
        self.process.as_ref().expect("a running node").resident_bytes()
    }

    /// SIGCONT: it goes on.
    pub fn resume(&mut self) {
        self.process.as_mut().expect("a running node").resume();
    }

    /// True while it runs.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(Process::is_running)
    }

    /// Waits until the node ends by itself; its status, and all it has written to its log.
    pub fn wait_end(&mut self) -> (ExitStatus, String) {
        let mut process = self.process.take().expect("a running node");
        (process.wait_end(STOP_DEADLINE), process.log())
    }

    /// SIGTERM, and the end in order: exit code 0.
    pub fn stop(&mut self) {
        let mut process = self.process.take().expect("a running node");
        process.terminate();
        let status = process.wait_end(STOP_DEADLINE);
        assert!(status.success(), "{} ended with {status}", self.name);
    }
}

/// Where the binaries of this build are: beside the program or test that runs, or in `KARMAN_BIN_DIR`.
pub fn program(name: &str) -> PathBuf {
    let beside = || {
        let own = std::env::current_exe().ok()?;
        let directory = own.parent()?;
        // The tests themselves lie one deeper.
        let deeper = directory.file_name().is_some_and(|name| name == "deps");
        if deeper { directory.parent().map(Path::to_owned) } else { Some(directory.to_owned()) }
    };
    let directory = std::env::var_os("KARMAN_BIN_DIR").map(PathBuf::from).or_else(beside);
    directory.unwrap_or_default().join(name)
}
