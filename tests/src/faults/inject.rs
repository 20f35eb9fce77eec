//! Does one fault and undoes it. The thread of the run waits here meanwhile; the load goes on.

use std::time::Duration;

use super::WHOLE_DEADLINE;
use super::network::{Rule, address};
use super::plan::{Fault, Kind};
use super::relay::{Answers, Relay};
use super::servers::{MEMBERS, PORTS, SETS, Server, Servers, THIN};
use crate::mixed_load::Load;
use crate::{let_run, until};

const FLAPS: u32 = 8;
const CUT_OFF_FIRST: Duration = Duration::from_millis(300);
const HOUR_SECONDS: i64 = 3600;
/// Until a server has read its clock again.
const CLOCK_READ: Duration = Duration::from_secs(3);
const REFUSAL_DEADLINE: Duration = Duration::from_secs(10);
/// For so long an impostor tries.
const IMPOSTURE: Duration = Duration::from_secs(6);

/// A fault with those that it hits. Brokers by their index.
#[derive(Debug)]
pub(super) struct Injection<'a> {
    pub(super) fault: Fault,
    pub(super) servers: &'a mut Servers,
    pub(super) load: &'a Load,
    pub(super) master: usize,
}

impl Injection<'_> {
    /// The brokers of the set that do not lead it.
    fn slaves(&self) -> Vec<usize> {
        let set = self.fault.set * MEMBERS;
        (set..set + MEMBERS).filter(|&index| index != self.master).collect()
    }

    /// Whom it hits: brokers, and namesrvs behind them.
    fn hit(&self) -> Vec<usize> {
        let (slaves, brokers) = (self.slaves(), self.servers.brokers.len());
        let namesrvs = brokers..brokers + self.servers.namesrvs.len();
        let form = self.fault.form;
        match self.fault.kind {
            Kind::Kill | Kind::Rolling => match form % 4 {
                0 => vec![self.master],
                1 => namesrvs.collect(),
                2 if self.fault.kind == Kind::Kill => vec![slaves[form / 4 % 2]],
                _ => (0..brokers).collect(),
            },
            Kind::PowerCut => match form % 4 {
                0 => vec![self.master],
                1 => vec![self.master, slaves[0]],
                2 => vec![slaves[0]],
                _ => vec![self.master, slaves[0], slaves[1]],
            },
            Kind::Pause | Kind::Partition | Kind::Clock if form % 6 == 5 => {
                vec![namesrvs.start + form / 6 % 3]
            }
            Kind::Pause | Kind::Partition | Kind::DiskFull | Kind::Twin | Kind::SlowDisk | Kind::Hang
                if form % 3 == 1 =>
            {
                vec![slaves[0]]
            }
            // The disk of one broker alone can lose what it was given.
            Kind::FlushError => vec![THIN],
            Kind::LostFile => vec![slaves[form / 3 % 2]],
            Kind::Flip if !form.is_multiple_of(4) => vec![slaves[form / 4 % 2]],
            Kind::TornTail if form.is_multiple_of(2) => vec![slaves[form / 2 % 2]],
            Kind::NoNamesrvs => namesrvs.collect(),
            _ => vec![self.master],
        }
    }

    /// What it has written last is with nobody else when it is killed.
    fn is_cut_off_first(&self) -> bool {
        self.fault.kind == Kind::Kill && self.fault.form % 8 == 4
    }

    pub(super) fn server(&mut self, index: usize) -> &mut Server {
        let brokers = self.servers.brokers.len();
        match index.checked_sub(brokers) {
            Some(namesrv) => &mut self.servers.namesrvs[namesrv],
            None => &mut self.servers.brokers[index],
        }
    }

    /// For people.
    pub(super) fn told(&mut self) -> String {
        let hit = self.hit();
        let leads = self.master;
        let name = |index: usize| {
            let name = self.server(index).node.name().to_owned();
            if index == leads { name + " (master)" } else { name }
        };
        let names: Vec<_> = hit.into_iter().map(name).collect();
        let how = match self.fault.kind {
            Kind::Partition => self.others().1,
            Kind::Kill if self.is_cut_off_first() => "after it was cut off from brokers",
            Kind::OneWay if self.fault.form.is_multiple_of(2) => "hears nobody",
            Kind::OneWay => "is heard by nobody",
            Kind::LostFile | Kind::Flip | Kind::TornTail => self.harmed_file(),
            Kind::Latency => self.latency().1,
            Kind::Clock => self.clock().1,
            Kind::Loss => ["1 %", "5 %", "20 %"][self.fault.form % 3],
            Kind::Bandwidth => self.rate(),
            _ => "",
        };
        format!("{} {how}", names.join(", ")).trim_end().to_owned()
    }

    /// Whose clock is wrong, and by how many milliseconds at most.
    pub(super) fn skew(&self) -> Option<(&'static str, u64)> {
        let set = SETS.get(self.hit()[0] / MEMBERS).filter(|_| self.fault.kind == Kind::Clock)?;
        let most = self.clock().0.into_iter().map(i64::unsigned_abs).max()?;
        Some((set, most * 1000))
    }

    /// From whom a partition cuts off.
    fn others(&self) -> (Vec<String>, &'static str) {
        let addresses = |servers: &[Server]| servers.iter().map(|one| one.place.ip.clone()).collect();
        match self.fault.form % 6 {
            2 => (addresses(&self.servers.brokers), "is cut off from brokers"),
            3 => (addresses(&self.servers.namesrvs), "is cut off from namesrvs"),
            4 => (vec![address(1)], "is cut off from clients"),
            _ => {
                let all = self.servers.all().map(|one| one.place.ip.clone());
                (all.chain([address(1)]).collect(), "is cut off from all")
            }
        }
    }

    fn rate(&self) -> &'static str {
        ["1mbit", "10mbit"][self.fault.form % 2]
    }

    fn latency(&self) -> (Answers, &'static str) {
        match self.fault.form % 4 {
            0 => (Answers::Never, "takes connections and never answers"),
            1 => (Answers::After(Duration::from_millis(20)), "20 ms"),
            2 => (Answers::After(Duration::from_millis(100)), "100 ms"),
            _ => (Answers::After(Duration::from_millis(500)), "500 ms"),
        }
    }

    /// How many seconds a clock is ahead, one after the other, each for a second; and for people.
    fn clock(&self) -> (Vec<i64>, &'static str) {
        match self.fault.form % 3 {
            0 => (vec![HOUR_SECONDS; 10], "an hour ahead"),
            1 => (vec![-HOUR_SECONDS; 10], "an hour behind"),
            _ => ((1..=10).collect(), "a second more each second"),
        }
    }

    /// Does it, and undoes it.
    pub(super) fn run(&mut self) {
        let hit = self.hit();
        match self.fault.kind {
            Kind::Kill | Kind::NoNamesrvs => {
                if self.is_cut_off_first() {
                    let place = self.server(self.master).place.clone();
                    self.servers.brokers.iter().for_each(|other| place.from(&other.place.ip, Rule::Drop));
                    let_run(CUT_OFF_FIRST);
                }
                hit.iter().for_each(|&index| self.server(index).kill());
                let away = match self.fault.kind {
                    Kind::Kill => self.fault.time(200, 8000),
                    _ => Duration::from_secs(15),
                };
                let_run(away);
                hit.iter().for_each(|&index| self.server(index).start());
            }
            Kind::Pause => {
                self.server(hit[0]).pause();
                let_run(self.fault.time(1000, 10_000));
            }
            Kind::Partition | Kind::OneWay | Kind::Flap | Kind::Loss => self.harm_network(hit[0]),
            Kind::Bandwidth | Kind::Reset | Kind::Latency => self.harm_network(hit[0]),
            Kind::PowerCut => self.cut_power(&hit),
            Kind::DiskError | Kind::FlushError => self.fail_disk(hit[0]),
            Kind::Hang => {
                let frozen = self.server(hit[0]).disk().freeze();
                let_run(Duration::from_secs(5));
                drop(frozen);
            }
            Kind::SlowDisk => {
                for _ in 0..20 {
                    let frozen = self.server(hit[0]).disk().freeze();
                    let_run(Duration::from_millis(900));
                    drop(frozen);
                    let_run(Duration::from_millis(100));
                }
            }
            Kind::Flip if self.fault.form.is_multiple_of(4) => self.flip_under(hit[0]),
            Kind::Flip | Kind::TornTail => self.damage(hit[0]),
            Kind::Clock => {
                for ahead_seconds in self.clock().0 {
                    self.server(hit[0]).set_clock(ahead_seconds);
                    let_run(Duration::from_secs(1));
                }
                self.server(hit[0]).set_clock(0);
                let_run(CLOCK_READ);
            }
            Kind::DiskFull => {
                self.server(hit[0]).disk().fill();
                let_run(Duration::from_secs(8));
                self.server(hit[0]).disk().free();
            }
            Kind::LostFile => self.lose_files(hit[0]),
            Kind::Twin => self.start_twin(hit[0]),
            Kind::Impostor => self.start_impostor(hit[0]),
            Kind::Rolling => self.roll(&hit),
        }
        self.servers.heal();
    }

    /// One after the other, each when the one before it counts again.
    fn roll(&mut self, hit: &[usize]) {
        for &index in hit {
            self.server(index).stop();
            self.server(index).start();
            super::wait_whole(self.servers);
        }
    }

    fn harm_network(&mut self, index: usize) {
        let ip = self.server(index).place.ip.clone();
        let all: Vec<_> = self.servers.all().map(|one| one.place.clone()).collect();
        let place = self.server(index).place.clone();
        let long = self.fault.time(5000, 12_000);
        let everyone = format!("{}/24", address(0));
        match self.fault.kind {
            Kind::Partition => {
                for other in self.others().0.iter().filter(|other| **other != ip) {
                    place.from(other, Rule::Drop);
                    all.iter().filter(|one| one.ip == *other).for_each(|one| one.from(&ip, Rule::Drop));
                }
                let_run(long);
            }
            Kind::OneWay if self.fault.form.is_multiple_of(2) => {
                place.from(&everyone, Rule::Drop);
                let_run(long);
            }
            Kind::OneWay => {
                all.iter().filter(|one| one.ip != ip).for_each(|one| one.from(&ip, Rule::Drop));
                let_run(long);
            }
            Kind::Flap => {
                for _ in 0..FLAPS {
                    place.from(&everyone, Rule::Drop);
                    let_run(Duration::from_secs(1));
                    place.heal();
                    let_run(Duration::from_secs(1));
                }
            }
            Kind::Loss => {
                place.from(&everyone, Rule::Lose([1, 5, 20][self.fault.form % 3]));
                let_run(Duration::from_secs(10));
            }
            Kind::Bandwidth => {
                place.slow(self.rate());
                let_run(Duration::from_secs(10));
            }
            Kind::Latency => {
                let seed = self.fault.share.to_bits();
                let relay = Relay::before(&place, PORTS, self.latency().0, seed);
                // What is connected connects anew.
                place.from(&everyone, Rule::Reset);
                let_run(Duration::from_millis(300));
                place.pass();
                let_run(Duration::from_secs(10));
                drop(relay);
            }
            _ => {
                place.from(&everyone, Rule::Reset);
                let_run(Duration::from_millis(500));
            }
        }
    }

    /// Ports of its own: the store must be what stops it.
    fn ports(server: &Server) -> Vec<String> {
        let ip = &server.place.ip;
        ["grpc", "internal", "metrics"]
            .iter()
            .zip(20_001..)
            .map(|(name, port)| format!("{name}ListenAddress={ip}:{port}"))
            .collect()
    }

    fn start_twin(&mut self, index: usize) {
        let server = self.server(index);
        let mut twin = server.node.twin(&format!("{}-twin", server.node.name()), &Self::ports(server));
        let status = twin.wait_end(REFUSAL_DEADLINE);
        assert!(!status.success(), "a second process on a store is refused: {status}\n{}", twin.log());
    }

    fn start_impostor(&mut self, index: usize) {
        let server = self.server(index);
        let mut settings = Self::ports(server);
        let directory = tempfile::TempDir::with_prefix("karman-impostor-").expect("a directory");
        settings.push(format!("storePathRootDir={}", directory.path().display()));
        let name = format!("{}-impostor", server.node.name());
        let mut impostor = server.node.twin(&name, &settings);
        let_run(IMPOSTURE);
        let log = impostor.log();
        impostor.kill();
        for word in ["is the master now", "follows its master"] {
            assert!(!log.contains(word), "a second broker of the same id is let in: {log}");
        }
        assert!(log.contains("needs a brokerId of its own"), "it is not told why: {log}");
    }
}

/// Waits until a fault can be done to the set, and does nothing else.
pub(super) fn prepare<'a>(fault: Fault, servers: &'a mut Servers, load: &'a Load) -> Injection<'a> {
    let master = until("the set has a master", WHOLE_DEADLINE, || servers.master_of(fault.set));
    Injection { fault, servers, load, master }
}
