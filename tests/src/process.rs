//! A child process: its lines on stdout, its log on stderr, its end. Owned by one test; a thread of its own reads stdout.

use std::fs::File;
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

const SHOWN_ON_FAILURE_LINES: usize = 40;

#[derive(Debug, Default)]
struct Output {
    lines: Mutex<(Vec<String>, /* ended */ bool)>,
    changed: Condvar,
}

/// A running child process. Dropping it kills it, and shows the end of its log when the test is failing.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    output: Arc<Output>,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; its stderr goes to `NAME.log` in `directory`, behind what is there, and its
    /// stdout is kept in `NAME.out` too.
    pub fn start(name: &str, mut command: Command, directory: &Path) -> Process {
        let log = directory.join(format!("{name}.log"));
        let stderr = File::options().create(true).append(true).open(&log).unwrap();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr);
        let mut child = command.spawn().unwrap_or_else(|error| {
            panic!("start {command:?}: {error}; `ci/test` builds and installs all that the tests start")
        });
        let output = Arc::new(Output::default());
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut copy = File::create(directory.join(format!("{name}.out"))).unwrap();
        let lines = output.clone();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                // For whoever looks into a failure; the test reads the lines from memory.
                let _ = writeln!(copy, "{line}");
                lines.lines.lock().unwrap().0.push(line);
                lines.changed.notify_all();
            }
            lines.lines.lock().unwrap().1 = true;
            lines.changed.notify_all();
        });
        Process { name: name.to_owned(), child, output, log }
    }

    /// Runs `command` to its end; what it has printed. Panics when it fails.
    pub fn printed(name: &str, command: Command, directory: &Path, deadline: Duration) -> String {
        let mut process = Process::start(name, command, directory);
        let status = process.wait_end(deadline);
        let printed = process.lines(0).join("\n");
        assert!(status.success(), "{name} ended with {status}:\n{printed}\n{}", process.log());
        printed
    }

    /// The lines on stdout so far, from number `from`.
    pub fn lines(&self, from: usize) -> Vec<String> {
        self.locked().0.get(from..).unwrap_or_default().to_vec()
    }

    fn locked(&self) -> MutexGuard<'_, (Vec<String>, bool)> {
        self.output.lines.lock().unwrap()
    }

    /// Waits for the first line on which `pick` answers; panics at the deadline or when the process ends without one.
    pub fn wait_line<T>(&self, what: &str, deadline: Duration, pick: impl Fn(&str) -> Option<T>) -> T {
        let end = Instant::now() + deadline;
        let mut seen = 0;
        let mut lines = self.locked();
        loop {
            if let Some(found) = lines.0[seen..].iter().find_map(|line| pick(line)) {
                return found;
            }
            seen = lines.0.len();
            let left = end.saturating_duration_since(Instant::now());
            let failed = if lines.1 { "ended" } else { "is silent" };
            if lines.1 || left.is_zero() {
                drop(lines);
                panic!("{} {failed}, no {what} within {deadline:?}", self.name);
            }
            lines = self.output.changed.wait_timeout(lines, left).unwrap().0;
        }
    }

    /// Ends the input of the process.
    pub fn close_stdin(&mut self) {
        drop(self.child.stdin.take());
    }

    /// SIGKILL; returns when the process is gone.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM.
    pub fn terminate(&mut self) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).unwrap();
    }

    /// SIGSTOP.
    pub fn pause(&mut self) {
        kill_process(Pid::from_child(&self.child), Signal::STOP).unwrap();
    }

    /// SIGCONT.
    pub fn resume(&mut self) {
        kill_process(Pid::from_child(&self.child), Signal::CONT).unwrap();
    }

    /// The processor time it has taken.
    pub fn processor_time(&self) -> Duration {
        const TICK: Duration = Duration::from_millis(10);
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // The name, in parentheses, may hold anything; behind it come the state and the numbers 4 to 52.
        let numbers: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        let [user, system]: [u32; 2] = [numbers[11], numbers[12]].map(|ticks| ticks.parse().unwrap());
        TICK * (user + system)
    }

    /// The memory it holds.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Everything it has written to stderr.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Waits for the process to end by itself, and for the last line of its output.
    pub fn wait_end(&mut self, deadline: Duration) -> ExitStatus {
        let name = self.name.clone();
        let status = crate::until(&format!("{name} ends"), deadline, || self.child.try_wait().unwrap());
        let output = self.output.clone();
        crate::until("the end of its output", deadline, || output.lines.lock().unwrap().1.then_some(()));
        status
    }

    /// True while the process runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when the process is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(SHOWN_ON_FAILURE_LINES)..];
            eprintln!("--- the end of the log of {}:\n{}\n---", self.name, tail.join("\n"));
        }
    }
}
