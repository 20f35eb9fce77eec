//! Servers under test: `karman dev`, or namesrvs and brokers as processes of their own.

mod node;
mod secured;

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use karman_remoting::proto::v2::{Code, MessageType};
use serde_json::Value;
use tempfile::TempDir;

use crate::process::Process;
use crate::raw::Raw;

pub use self::node::{Node, program};
pub use self::secured::{CLUSTER_SECRET, ROOT, internal_tls};

const ROUTE_DEADLINE: Duration = Duration::from_secs(15);
const EXAMPLE_DEADLINE: Duration = Duration::from_secs(150);

/// What all brokers belong to, and namesrvs ask for.
const CLUSTER: &str = "test";
/// The segments of the log are small, so that tests cross from one to the next.
const SEGMENT_BYTES: u64 = 64 << 20;

/// A free port below the range from which the kernel takes the ports of outgoing connections: a client that tries to
/// reach a killed server for a while would otherwise end up connected to itself, and the server could not come back.
pub(crate) fn free_port() -> u16 {
    const FIRST: u16 = 15_000;
    const COUNT: u16 = 15_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let spread = u16::try_from(std::process::id() % u32::from(COUNT)).unwrap_or_default();
    loop {
        let port = FIRST + (spread.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed))) % COUNT;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn free_address() -> String {
    format!("127.0.0.1:{}", free_port())
}

/// What is to be started.
#[derive(Debug)]
pub struct Builder {
    directory: TempDir,
    dev: bool,
    namesrvs: usize,
    brokers: usize,
    slaves: usize,
    controllers: bool,
    members: usize,
    settings: Vec<String>,
    /// Settings that namesrvs have as well.
    of_all: Vec<String>,
    secured: bool,
}

impl Builder {
    /// Everything in one process: `karman dev`.
    pub fn dev(mut self) -> Self {
        self.dev = true;
        self
    }

    /// So many namesrvs.
    pub fn namesrvs(mut self, count: usize) -> Self {
        self.namesrvs = count;
        self
    }

    /// So many brokers, each of a set of its own.
    pub fn brokers(mut self, count: usize) -> Self {
        self.brokers = count;
        self
    }

    /// Namesrvs are controllers too, and so many brokers are one set, `broker-a`, whose master they elect. `set` is for
    /// those then.
    pub fn controlled(mut self, members: usize) -> Self {
        self.controllers = true;
        self.members = members;
        self
    }

    /// So many slaves of the first broker.
    pub fn slaves(mut self, count: usize) -> Self {
        self.slaves = count;
        self
    }

    /// One more `--set` of each broker that is no slave.
    pub fn set(mut self, key: &str, value: &str) -> Self {
        self.settings.push(format!("{key}={value}"));
        self
    }

    /// Starts all and waits until each is ready.
    pub fn start(self) -> Cluster {
        let mut cluster = Cluster {
            namesrvs: Vec::new(),
            brokers: Vec::new(),
            slaves: Vec::new(),
            members: Vec::new(),
            secured: self.secured,
            of_all: self.of_all,
            directory: self.directory,
        };
        if self.dev {
            cluster.brokers.push(dev(cluster.path()));
        }
        let addresses: Vec<_> = (0..self.namesrvs).map(|_| free_address()).collect();
        for index in 0..self.namesrvs {
            let controllers = if self.controllers { &addresses[..] } else { &[] };
            let more = cluster.of_all.clone();
            cluster.namesrvs.push(namesrv(index, &addresses[index], controllers, more, cluster.path()));
        }
        let namesrvs: Vec<String> = cluster.namesrvs.iter().map(Node::endpoint).collect();
        let settings = [&cluster.of_all[..], &self.settings].concat();
        for index in 0..self.brokers {
            cluster.brokers.push(broker(index, &namesrvs.join(";"), &settings, cluster.path()));
        }
        for id in 1..=self.members {
            let mut member = cluster.member(id, &self.settings);
            member.start();
            cluster.members.push(member);
        }
        for id in 1..=self.slaves {
            let mut slave = cluster.slave(id, &[]);
            slave.start();
            cluster.slaves.push(slave);
        }
        cluster.wait_whole();
        cluster
    }
}

fn dev(directory: &Path) -> Node {
    let mut arguments = vec!["dev".to_owned(), "--data".to_owned(), "data".to_owned()];
    for flag in ["--grpc", "--namesrv", "--internal", "--metrics"] {
        arguments.extend([flag.to_owned(), free_address()]);
    }
    let mut node = Node::new("dev", "karman", arguments, directory);
    node.start();
    node
}

pub(crate) fn sets(settings: impl IntoIterator<Item = String>) -> Vec<String> {
    settings.into_iter().flat_map(|setting| ["--set".to_owned(), setting]).collect()
}

fn namesrv(index: usize, address: &str, controllers: &[String], more: Vec<String>, directory: &Path) -> Node {
    let name = format!("namesrv-{index}");
    let mut settings = vec![
        format!("grpcListenAddress={address}"),
        format!("metricsListenAddress={}", free_address()),
        format!("storePathRootDir={}", directory.join(&name).display()),
        format!("brokerClusterName={CLUSTER}"),
    ];
    if !controllers.is_empty() {
        let peers: Vec<_> = controllers
            .iter()
            .enumerate()
            .map(|(index, address)| format!("{}-{address}", index + 1))
            .collect();
        settings.extend([
            "enableControllerInNamesrv=true".to_owned(),
            format!("controllerPeers={}", peers.join(";")),
            format!("controllerSelfId={}", index + 1),
            format!("controllerStorePath={}", directory.join(&name).join("controller").display()),
        ]);
    }
    settings.extend(more);
    let mut node = Node::new(&name, "karman-namesrv", sets(settings), directory);
    node.start();
    node
}

fn broker(index: usize, namesrvs: &str, more: &[String], directory: &Path) -> Node {
    let name = format!("broker-{}", char::from(b'a' + u8::try_from(index).unwrap()));
    let mut node = broker_in(&name, &name, namesrvs, more, directory);
    node.start();
    node
}

/// A broker that keeps everything in `own` inside the directory; not started.
fn broker_in(name: &str, own: &str, namesrvs: &str, more: &[String], directory: &Path) -> Node {
    let settings = [
        format!("brokerClusterName={CLUSTER}"),
        format!("brokerName={name}"),
        format!("namesrvAddr={namesrvs}"),
        format!("storePathRootDir={}", directory.join(own).display()),
        format!("grpcListenAddress={}", free_address()),
        format!("internalListenAddress={}", free_address()),
        format!("metricsListenAddress={}", free_address()),
        format!("mappedFileSizeCommitLog={SEGMENT_BYTES}"),
        // However full the disk of this machine is: no test depends on that without saying so.
        "diskMaxUsedSpaceRatio=100".to_owned(),
        "diskSpaceCleanForciblyRatio=100".to_owned(),
        "diskSpaceWarningLevelRatio=100".to_owned(),
    ];
    let arguments = sets(settings.into_iter().chain(more.iter().cloned()));
    Node::new(own, "karman-broker", arguments, directory)
}

/// Servers that belong together, and a directory that goes with them.
#[derive(Debug)]
pub struct Cluster {
    /// None when everything is one process.
    pub namesrvs: Vec<Node>,
    /// The brokers; `karman dev` counts as one.
    pub brokers: Vec<Node>,
    /// Slaves of the first broker, from `brokerId` 1 on.
    pub slaves: Vec<Node>,
    /// The brokers of the set that elects its master, from `brokerId` 1 on.
    pub members: Vec<Node>,
    secured: bool,
    /// Settings that every node has.
    of_all: Vec<String>,
    directory: TempDir,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.directory.disable_cleanup(true);
            eprintln!("the files of the failed test are in {}", self.path().display());
        }
    }
}

impl Cluster {
    /// Says what is to be started.
    pub fn builder() -> Builder {
        Builder {
            directory: TempDir::with_prefix("karman-test-").unwrap(),
            dev: false,
            namesrvs: 0,
            brokers: 0,
            slaves: 0,
            controllers: false,
            members: 0,
            settings: Vec::new(),
            of_all: Vec::new(),
            secured: false,
        }
    }

    /// A slave of the first broker, with more `--set`; not started.
    pub fn slave(&self, id: usize, more: &[&str]) -> Node {
        let mut settings = vec!["brokerRole=SLAVE".to_owned(), format!("brokerId={id}")];
        settings.extend(more.iter().map(|&setting| setting.to_owned()));
        self.broker_set_member(&format!("broker-a-{id}"), &settings)
    }

    /// A member of the set that elects its master; not started.
    pub fn member(&self, id: usize, more: &[String]) -> Node {
        let namesrvs: Vec<String> = self.namesrvs.iter().map(Node::endpoint).collect();
        let mut settings = vec![
            "enableControllerMode=true".to_owned(),
            format!("brokerId={id}"),
            format!("controllerAddr={}", namesrvs.join(";")),
        ];
        settings.extend(more.iter().cloned());
        self.broker_set_member(&format!("broker-a-{id}"), &settings)
    }

    /// A broker of the first broker's name that keeps everything in the directory `own`; not started.
    pub fn broker_set_member(&self, own: &str, settings: &[String]) -> Node {
        let namesrvs: Vec<String> = self.namesrvs.iter().map(Node::endpoint).collect();
        let settings = [&self.of_all[..], settings].concat();
        broker_in("broker-a", own, &namesrvs.join(";"), &settings, self.path())
    }

    /// One more broker of a set of its own.
    pub fn add_broker(&mut self) {
        let namesrvs: Vec<String> = self.namesrvs.iter().map(Node::endpoint).collect();
        self.brokers.push(broker(self.brokers.len(), &namesrvs.join(";"), &self.of_all, self.path()));
        self.wait_whole();
    }

    /// Where the servers and drivers of this cluster keep their files.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Runs the command `karman -e ENDPOINT ...` against the first broker, or namesrv; its stdout. Panics when it fails.
    pub fn karman(&self, arguments: &[&str]) -> String {
        self.karman_at(
            self.brokers.first().or(self.namesrvs.first()).expect("a cluster has a node"),
            arguments,
        )
    }

    /// The same against `node`.
    pub fn karman_at(&self, node: &Node, arguments: &[&str]) -> String {
        let endpoint = node.endpoint();
        let mut command = Command::new(program("karman"));
        command.args(["-e", &endpoint]).args(arguments).current_dir(self.path());
        if self.secured {
            command.env("KARMAN_ACCESS_KEY", ROOT.0).env("KARMAN_SECRET_KEY", ROOT.1);
        }
        let output = command.output().unwrap();
        let (stdout, stderr) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "karman {arguments:?}: {}\n{stdout}{stderr}", output.status);
        stdout.into_owned()
    }

    /// The figures of `karman bench produce` for some seconds; `load`: how it sends. Panics when no send is answered OK.
    pub fn produce(&self, topic: &str, seconds: u64, load: &[&str]) -> Value {
        let seconds = seconds.to_string();
        let command = ["-o", "json", "bench", "produce", topic, "--seconds", &seconds];
        serde_json::from_str(&self.karman(&[&command[..], load].concat())).unwrap()
    }

    /// Runs a program of `examples/` with the first broker as its endpoint; what it has printed. Panics when it fails.
    pub fn example(&self, name: &str) -> String {
        let mut command = Command::new(program(name));
        command.arg(self.brokers[0].endpoint());
        Process::printed(name, command, self.path(), EXAMPLE_DEADLINE)
    }

    /// Waits until every node knows every broker: a topic is made where the asked node knows a broker.
    pub fn wait_whole(&self) {
        let sets = self.brokers.len() + usize::from(!self.members.is_empty());
        for node in self.namesrvs.iter().chain(&self.brokers) {
            let raw = self.raw(node);
            crate::until(&format!("{} knows all brokers", node.name()), ROUTE_DEADLINE, || {
                (raw.known_brokers() == sets).then_some(())
            });
        }
    }

    /// Creates a topic for normal messages and waits until every node that a client may ask knows it on every broker.
    pub fn create_topic(&self, name: &str) {
        let status = self.raw(&self.brokers[0]).create_topic(name, MessageType::Normal);
        assert_eq!(status.code, Code::Ok as i32, "create {name}: {status:?}");
        self.wait_route(name);
    }

    /// Waits until the dead letters of `group` can be read; a broker that holds none has no such topic.
    pub fn wait_dead_letters(&self, group: &str) {
        let topic = format!("%DLQ%{group}");
        for node in self.namesrvs.iter().chain(&self.brokers) {
            let raw = Raw::connect(&node.endpoint());
            crate::until(&format!("{} knows {topic}", node.name()), ROUTE_DEADLINE, || {
                (!raw.route_brokers(&topic).is_empty()).then_some(())
            });
        }
    }

    /// Waits until every namesrv knows `topic`.
    pub fn wait_topic(&self, topic: &str) {
        for node in &self.namesrvs {
            let raw = Raw::connect(&node.endpoint());
            crate::until(&format!("{} knows {topic}", node.name()), ROUTE_DEADLINE, || {
                (!raw.route_brokers(topic).is_empty()).then_some(())
            });
        }
    }

    /// Waits until every node answers `QueryRoute` for `topic` with all brokers.
    pub fn wait_route(&self, topic: &str) {
        for node in self.namesrvs.iter().chain(&self.brokers) {
            let raw = self.raw(node);
            crate::until(&format!("{} knows {topic} on all brokers", node.name()), ROUTE_DEADLINE, || {
                let mut brokers = raw.route_brokers(topic);
                brokers.dedup();
                (brokers.len() == self.brokers.len()).then_some(())
            });
        }
    }
}
