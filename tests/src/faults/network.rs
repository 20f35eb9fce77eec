//! Namespaces of the network, one for each server, on one bridge; and what is done to packets between them. Owned by the thread of
//! the run.

use std::path::Path;

use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::loop_device::run;

/// Everything that a run makes is called so: a run removes what is there of an earlier one.
const PREFIX: &str = "kmf-";
const BRIDGE: &str = "kmf-br";
/// Where a container engine runs, what a bridge forwards is dropped unless it says otherwise.
const FORWARD: &[&str] = &["FORWARD", "-i", BRIDGE, "-o", BRIDGE, "-j", "ACCEPT"];
const NET: &str = "10.213.77";

/// The place of a server in the network.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// Of the namespace.
    pub(super) name: String,
    pub(super) ip: String,
}

/// The network of a run.
#[derive(Debug)]
pub(super) struct Network(());

/// What happens to packets that come from some place.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rule {
    Drop,
    /// So many of a hundred are lost.
    Lose(u32),
    /// Connections are reset.
    Reset,
}

/// The address of host number `host`; the load is number 1.
pub(super) fn address(host: usize) -> String {
    format!("{NET}.{host}")
}

impl Network {
    /// The bridge; the load is at its own address.
    pub(super) fn new() -> Self {
        let root = rustix::process::geteuid().is_root();
        assert!(
            root,
            "the fault run needs root: it makes network namespaces and file systems. It is never skipped."
        );
        clear();
        let network = Self(());
        must("ip", &["link", "add", BRIDGE, "type", "bridge"]);
        must("ip", &["addr", "add", &format!("{}/24", address(1)), "dev", BRIDGE]);
        must("ip", &["link", "set", BRIDGE, "up"]);
        must("iptables", &[&["-w", "-I"], FORWARD].concat());
        network
    }

    /// One more place, with the number `host`.
    pub(super) fn place(&self, name: &str, host: usize) -> Place {
        let place = Place { name: format!("{PREFIX}{name}"), ip: address(host) };
        let (inner, outer) = (place.device(), format!("{PREFIX}o{host}"));
        must("ip", &["netns", "add", &place.name]);
        must("ip", &["link", "add", &outer, "type", "veth", "peer", "name", &inner, "netns", &place.name]);
        must("ip", &["link", "set", &outer, "master", BRIDGE, "up"]);
        place.inside("ip", &["addr", "add", &format!("{}/24", place.ip), "dev", &inner]);
        place.inside("ip", &["link", "set", &inner, "up"]);
        place.inside("ip", &["link", "set", "lo", "up"]);
        place
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        clear();
    }
}

impl Place {
    fn device(&self) -> String {
        format!("{PREFIX}i{}", self.ip.rsplit('.').next().unwrap_or_default())
    }

    fn inside(&self, program: &str, arguments: &[&str]) {
        let all = ["netns", "exec", &self.name, program].into_iter().chain(arguments.iter().copied());
        must("ip", &all.collect::<Vec<_>>());
    }

    /// From now on, to what comes from `ip`.
    pub(super) fn from(&self, ip: &str, rule: Rule) {
        let share;
        let rule = match rule {
            Rule::Drop => vec!["-j", "DROP"],
            Rule::Reset => vec!["-p", "tcp", "-j", "REJECT", "--reject-with", "tcp-reset"],
            Rule::Lose(percent) => {
                share = format!("{}", f64::from(percent) / 100.0);
                vec!["-m", "statistic", "--mode", "random", "--probability", &share, "-j", "DROP"]
            }
        };
        let all = ["-w", "-A", "INPUT", "-s", ip].into_iter().chain(rule);
        self.inside("iptables", &all.collect::<Vec<_>>());
    }

    /// No more bits a second leave it than `rate` says.
    pub(super) fn slow(&self, rate: &str) {
        let device = self.device();
        let shape = ["root", "tbf", "rate", rate, "burst", "32kbit", "latency", "400ms"];
        let all = ["qdisc", "add", "dev", &device].into_iter().chain(shape);
        self.inside("tc", &all.collect::<Vec<_>>());
    }

    /// Connections to `port` that are made from now on come to `other` instead.
    pub(super) fn redirect(&self, port: u16, other: u16) {
        let (port, other) = (port.to_string(), other.to_string());
        let rule = ["-p", "tcp", "--dport", &port, "-j", "REDIRECT", "--to-ports", &other];
        let all = ["-w", "-t", "nat", "-A", "PREROUTING"].into_iter().chain(rule);
        self.inside("iptables", &all.collect::<Vec<_>>());
    }

    /// All packets pass again; connections still go where they are sent.
    pub(super) fn pass(&self) {
        self.inside("iptables", &["-w", "-F", "INPUT"]);
    }

    /// Nothing is done to packets any more.
    pub(super) fn heal(&self) {
        self.pass();
        self.inside("iptables", &["-w", "-t", "nat", "-F", "PREROUTING"]);
        // There may be none.
        let del = ["netns", "exec", &self.name, "tc", "qdisc", "del", "dev", &self.device(), "root"];
        let _ = run("ip", &del);
    }
}

/// Ends what runs in namespaces of a run and removes them.
fn clear() {
    for namespace in run("ip", &["netns", "list"]).unwrap_or_default().lines() {
        let Some(name) = namespace.split(' ').next().filter(|name| name.starts_with(PREFIX)) else {
            continue;
        };
        for process in run("ip", &["netns", "pids", name]).unwrap_or_default().split_whitespace() {
            let _ = run("kill", &["-9", process]);
        }
        let _ = run("ip", &["netns", "del", name]);
    }
    while run("iptables", &[&["-w", "-D"], FORWARD].concat()).is_ok() {}
    // Connections that nobody ends any more keep a namespace, and so its link, for a while.
    for link in run("ip", &["-o", "link"]).unwrap_or_default().lines() {
        let name = link.split(' ').nth(1).and_then(|name| name.split(['@', ':']).next());
        if let Some(name) = name.filter(|name| name.starts_with(PREFIX)) {
            let _ = run("ip", &["link", "del", name]);
        }
    }
}

/// What is mounted from now on by this thread, and by what it starts, is seen by nobody else. Whoever copied a mount meanwhile, as
/// containers do, would keep a disk alive whose power was cut.
#[allow(unsafe_code, reason = "there is no safe wrapper of this call")]
pub(super) fn mount_alone() {
    // SAFETY: no file descriptors are unshared.
    let unshared = unsafe { unshare_unsafe(UnshareFlags::NEWNS) };
    unshared.expect("root may have mounts of its own");
    must("mount", &["--make-rprivate", "/"]);
}

/// Ends what an earlier run has left, unmounts what that has mounted under `directory`, and removes that.
pub(super) fn clear_mounts(directory: &Path) {
    let _ = run("pkill", &["-9", "-f", &format!("storePathRootDir={}/", directory.display())]);
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let below = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    for mounted in below.filter(|mounted| Path::new(mounted).starts_with(directory)) {
        let _ = run("fsfreeze", &["--unfreeze", mounted]);
        let _ = run("umount", &["--lazy", mounted]);
    }
    let _ = std::fs::remove_dir_all(directory);
}

fn must(program: &str, arguments: &[&str]) {
    run(program, arguments).unwrap_or_else(|error| {
        panic!(
            "{error}\nThe fault run needs root and the packages iproute2 and iptables. It is never skipped."
        )
    });
}
