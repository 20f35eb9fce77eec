//! The servers of a fault run: three namesrvs with controllers, two sets of three brokers. Owned by the thread of the run.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{FlockOperation, flock};

use super::network::{self, Network, Place};
use super::wait_whole;
use crate::LoopDevice;
use crate::cluster::{self, Node, program};
use crate::mixed_load::Target;

/// `brokerName` of each set.
pub(super) const SETS: [&str; 2] = ["broker-a", "broker-b"];
/// Brokers of a set.
pub(super) const MEMBERS: usize = 3;
const NAMESRVS: usize = 3;
/// Sparse: what is written is taken.
const DISK_BYTES: u64 = 16 << 30;
const SEGMENT_BYTES: u64 = 64 << 20;
/// The broker whose disk can lose what it was given.
pub(super) const THIN: usize = SETS.len() * MEMBERS - 1;
const NAMESRV_PORT: u16 = 9876;
const PORT: u16 = 8081;
const INTERNAL_PORT: u16 = 10911;
/// Of a broker: clients, and other nodes.
pub(super) const PORTS: &[u16] = &[PORT, INTERNAL_PORT];

/// One broker, or a namesrv.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) node: Node,
    pub(super) place: Place,
    pub(super) paused: bool,
    pub(super) running: bool,
    /// Where a broker's store is.
    pub(super) disk: Option<LoopDevice>,
    /// By how many seconds its clock is wrong: a file that it reads each second.
    clock: PathBuf,
}

/// See the module's comment.
#[derive(Debug)]
pub(super) struct Servers {
    pub(super) namesrvs: Vec<Server>,
    /// Set by set.
    pub(super) brokers: Vec<Server>,
    /// Names, and how they ended.
    ended: Vec<(String, String)>,
    /// Goes last.
    network: Network,
    work: PathBuf,
    /// Locked: there is no other run.
    _alone: File,
}

impl Server {
    pub(super) fn kill(&mut self) {
        if self.running {
            self.node.kill();
        }
        (self.running, self.paused) = (false, false);
    }

    pub(super) fn start(&mut self) {
        if !self.running {
            self.node.start();
        }
        self.running = true;
    }

    pub(super) fn stop(&mut self) {
        if self.running {
            self.node.stop();
        }
        self.running = false;
    }

    pub(super) fn pause(&mut self) {
        self.node.pause();
        self.paused = true;
    }

    pub(super) fn resume(&mut self) {
        if self.paused {
            self.node.resume();
        }
        self.paused = false;
    }

    /// So many seconds ahead of all others, within a second.
    pub(super) fn set_clock(&self, ahead_seconds: i64) {
        std::fs::write(&self.clock, format!("{ahead_seconds:+}\n")).expect("a small file can be written");
    }

    pub(super) fn disk(&self) -> &LoopDevice {
        self.disk.as_ref().expect("a broker has a disk")
    }

    /// How often it has said that something damaged came back from another broker. It runs.
    pub(super) fn repairs(&self) -> usize {
        self.node.log().matches("is repaired from").count()
    }

    /// The directory of a broker's log.
    pub(super) fn log_directory(&self) -> PathBuf {
        self.disk().path().join("store/commitlog")
    }
}

impl Servers {
    /// Starts all of them; what they log goes to `out`.
    pub(super) fn start(out: &Path) -> Self {
        let out = out.canonicalize().expect("the directory was made");
        let work = std::env::temp_dir().join("karman-fault-run");
        let alone = File::create(work.with_extension("lock")).expect("a file can be made");
        let locked = flock(&alone, FlockOperation::NonBlockingLockExclusive);
        assert!(locked.is_ok(), "another fault run is under way; it has the same names: wait for its end");
        network::clear_mounts(&work);
        network::mount_alone();
        let network = Network::new();
        std::fs::create_dir_all(&work).expect("a directory for disks can be made");
        let mut servers = Self {
            namesrvs: Vec::new(),
            brokers: Vec::new(),
            ended: Vec::new(),
            network,
            work,
            _alone: alone,
        };
        for id in 1..=NAMESRVS {
            let place = servers.network.place(&format!("n{id}"), 10 + id);
            servers.namesrvs.push(namesrv(id, place, &servers.work, &out));
        }
        for (set, name) in SETS.iter().enumerate() {
            for id in 1..=MEMBERS {
                let place = servers.network.place(&format!("b{set}{id}"), 20 + set * 10 + id);
                let disk = match servers.brokers.len() {
                    THIN => LoopDevice::thin_in(&servers.work, DISK_BYTES),
                    _ => LoopDevice::new_in(&servers.work, DISK_BYTES),
                };
                servers.brokers.push(broker(name, id, place, disk, &servers.work, &out));
            }
        }
        servers.all_mut().for_each(Server::start);
        wait_whole(&servers);
        servers
    }

    /// Namesrvs first.
    pub(super) fn all(&self) -> impl Iterator<Item = &Server> {
        self.namesrvs.iter().chain(&self.brokers)
    }

    /// Namesrvs first.
    pub(super) fn all_mut(&mut self) -> impl Iterator<Item = &mut Server> {
        self.namesrvs.iter_mut().chain(&mut self.brokers)
    }

    /// All nodes that a client may ask.
    pub(super) fn doors(&self) -> Vec<String> {
        self.all().map(|server| server.node.endpoint()).collect()
    }

    /// All namesrvs, as clients are told them.
    pub(super) fn namesrvs(&self) -> String {
        namesrv_addresses().join(";")
    }

    /// A door to each set, and its name.
    pub(super) fn owners(&self) -> Vec<(String, String)> {
        self.targets().into_iter().map(|set| (set.endpoints[0].clone(), set.name)).collect()
    }

    /// The doors of each set.
    pub(super) fn targets(&self) -> Vec<Target> {
        let doors = |members: &[Server]| members.iter().map(|one| one.node.endpoint()).collect();
        let sets = SETS.iter().zip(self.brokers.chunks(MEMBERS));
        sets.map(|(name, members)| Target { name: (*name).to_owned(), endpoints: doors(members) }).collect()
    }

    /// What the first namesrv that answers says of all sets.
    fn listed(&self) -> Vec<serde_json::Value> {
        for namesrv in self.namesrvs.iter().filter(|one| one.running && !one.paused) {
            let mut command = Command::new(program("karman"));
            command.args(["-e", &namesrv.node.endpoint(), "-o", "json", "cluster", "list"]);
            if let Ok(output) = command.output()
                && output.status.success()
                && let Ok(sets) = serde_json::from_slice(&output.stdout)
            {
                return sets;
            }
        }
        Vec::new()
    }

    /// Whether every set has a master that counts all its members.
    pub(super) fn is_whole(&self) -> bool {
        let sets = self.listed();
        let whole = sets.iter().filter(|set| set["in_sync"].as_u64() == Some(MEMBERS as u64));
        whole.count() == SETS.len()
    }

    /// Which broker leads a set, if one does: its index among all.
    pub(super) fn master_of(&self, set: usize) -> Option<usize> {
        let sets = self.listed();
        let leads = |index: &usize| {
            let address = format!("{}:{INTERNAL_PORT}", self.brokers[*index].place.ip);
            sets.iter().any(|set| set["internal_address"].as_str() == Some(&address))
        };
        (set * MEMBERS..(set + 1) * MEMBERS).find(leads)
    }

    /// Undoes whatever was done to processes and packets.
    pub(super) fn heal(&mut self) {
        let mut ended = Vec::new();
        for server in self.all_mut() {
            server.place.heal();
            server.set_clock(0);
            server.resume();
            if server.running && !server.node.is_running() {
                let (status, _) = server.node.wait_end();
                ended.push((server.node.name().to_owned(), format!("ended by itself: {status}")));
                server.running = false;
            }
            server.start();
        }
        ended.iter().for_each(|(name, how)| eprintln!("{name} {how}"));
        self.ended.extend(ended);
    }

    /// Whether a server ended that nobody had killed, and no disk had failed.
    pub(super) fn ended_by_itself(&self, name: &str) -> Option<String> {
        self.ended.iter().find(|(other, _)| other == name).map(|(_, how)| how.clone())
    }

    /// Stops slaves in front of their masters, who have nobody to hand over to then: nothing is written that the others
    /// do not get. Namesrvs go last.
    pub(super) fn stop(&mut self) {
        let masters: Vec<_> = (0..SETS.len()).filter_map(|set| self.master_of(set)).collect();
        let slaves = (0..self.brokers.len()).filter(|index| !masters.contains(index)).collect::<Vec<_>>();
        slaves.iter().chain(&masters).for_each(|&index| self.brokers[index].stop());
        self.namesrvs.iter_mut().for_each(Server::stop);
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        // One that ended by itself is gone already; nothing may stop this.
        self.namesrvs.clear();
        for server in self.brokers.drain(..) {
            let Server { node, disk, .. } = server;
            // Processes go before what they stand on.
            drop(node);
            drop(disk);
        }
        network::clear_mounts(&self.work);
    }
}

fn namesrv_addresses() -> Vec<String> {
    (1..=NAMESRVS).map(|id| format!("{}:{NAMESRV_PORT}", network::address(10 + id))).collect()
}

fn namesrv(id: usize, place: Place, work: &Path, out: &Path) -> Server {
    let name = format!("namesrv-{id}");
    let root = work.join(&name);
    let peers: Vec<_> =
        (1..).zip(namesrv_addresses()).map(|(id, address): (usize, _)| format!("{id}-{address}")).collect();
    let settings = [
        format!("grpcListenAddress={}:{NAMESRV_PORT}", place.ip),
        format!("metricsListenAddress={}:5557", place.ip),
        format!("storePathRootDir={}", root.display()),
        "enableControllerInNamesrv=true".to_owned(),
        format!("controllerPeers={}", peers.join(";")),
        format!("controllerSelfId={id}"),
        format!("controllerStorePath={}", root.join("controller").display()),
    ];
    let node = Node::new(&name, "karman-namesrv", cluster::sets(settings), out).within(&place.name);
    server(node, place, None, work)
}

/// It lives in a time of its own.
fn server(node: Node, place: Place, disk: Option<LoopDevice>, work: &Path) -> Server {
    let clock = work.join(format!("{}.clock", node.name()));
    let environment = vec![
        ("LD_PRELOAD", faketime().display().to_string()),
        ("FAKETIME_TIMESTAMP_FILE", clock.display().to_string()),
        ("FAKETIME_CACHE_DURATION", "1".to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ("FAKETIME_DISABLE_SHM", "1".to_owned()),
    ];
    let node = node.with(environment);
    let server = Server { node, place, paused: false, running: false, disk, clock };
    server.set_clock(0);
    server
}

/// The library that tells a process another time.
fn faketime() -> PathBuf {
    let libraries = std::fs::read_dir("/usr/lib").into_iter().flatten().filter_map(Result::ok);
    let mut found = libraries.map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"));
    found
        .find(|path| path.exists())
        .expect("the fault run needs the package libfaketime; it is never skipped")
}

fn broker(set: &str, id: usize, place: Place, disk: LoopDevice, work: &Path, out: &Path) -> Server {
    let namesrvs = namesrv_addresses().join(";");
    let settings = [
        "brokerClusterName=test".to_owned(),
        format!("brokerName={set}"),
        format!("brokerId={id}"),
        "enableControllerMode=true".to_owned(),
        format!("controllerAddr={namesrvs}"),
        format!("namesrvAddr={namesrvs}"),
        format!("storePathRootDir={}", disk.path().display()),
        format!("grpcListenAddress={}:{PORT}", place.ip),
        format!("internalListenAddress={}:{INTERNAL_PORT}", place.ip),
        format!("metricsListenAddress={}:5557", place.ip),
        format!("mappedFileSizeCommitLog={SEGMENT_BYTES}"),
        // What is damaged is to be found soon.
        "scrubRateBytesPerSecond=100000000".to_owned(),
        // Everybody may lose power at once.
        "defaultDurability=replicated_disk".to_owned(),
        // Long outages are no reason to give a transaction up.
        "transactionTimeOut=2000".to_owned(),
        "transactionCheckInterval=2000".to_owned(),
        "transactionCheckMax=1000".to_owned(),
        "diskMaxUsedSpaceRatio=100".to_owned(),
        "diskSpaceCleanForciblyRatio=100".to_owned(),
        "diskSpaceWarningLevelRatio=100".to_owned(),
    ];
    let name = format!("{set}-{id}");
    let node = Node::new(&name, "karman-broker", cluster::sets(settings), out).within(&place.name);
    server(node, place, Some(disk), work)
}
