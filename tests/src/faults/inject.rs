//! Does one fault and undoes it. The thread of the run waits here meanwhile; the load goes on.

use std::time::Duration;

use karman_checker::event::{self, Event};

use super::WHOLE_DEADLINE;
use super::network::{Rule, address};
use super::plan::{Fault, Kind};
use super::servers::{MEMBERS, SETS, Server, Servers};
use crate::mixed_load::{Load, now_ms};
use crate::{let_run, until};

const FLAPS: u32 = 8;
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
            Kind::Pause | Kind::Partition if form % 6 == 5 => vec![namesrvs.start + form / 6 % 3],
            Kind::Pause | Kind::Partition | Kind::DiskFull | Kind::Twin if form % 3 == 1 => vec![slaves[0]],
            Kind::LostFile => vec![slaves[form / 3 % 2]],
            Kind::NoNamesrvs => namesrvs.collect(),
            _ => vec![self.master],
        }
    }

    fn server(&mut self, index: usize) -> &mut Server {
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
            Kind::OneWay if self.fault.form.is_multiple_of(2) => "hears nobody",
            Kind::OneWay => "is heard by nobody",
            Kind::LostFile => self.lost(),
            Kind::Loss => ["1 %", "5 %", "20 %"][self.fault.form % 3],
            Kind::Bandwidth => self.rate(),
            _ => "",
        };
        format!("{} {how}", names.join(", ")).trim_end().to_owned()
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

    fn lost(&self) -> &'static str {
        ["cursor", "snapshot", "idx"][self.fault.form % 3]
    }

    /// Does it, and undoes it.
    pub(super) fn run(&mut self) {
        let hit = self.hit();
        match self.fault.kind {
            Kind::Kill | Kind::NoNamesrvs => {
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
            Kind::Partition | Kind::OneWay | Kind::Flap | Kind::Loss | Kind::Bandwidth | Kind::Reset => {
                self.harm_network(hit[0]);
            }
            Kind::PowerCut => self.cut_power(&hit),
            Kind::DiskError => self.fail_disk(hit[0]),
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
            _ => {
                place.from(&everyone, Rule::Reset);
                let_run(Duration::from_millis(500));
            }
        }
    }

    /// All at the same moment, as far as they can be.
    fn cut_power(&mut self, hit: &[usize]) {
        hit.iter().for_each(|&index| self.server(index).pause());
        for &index in hit {
            self.server(index).disk().cut_power();
        }
        hit.iter().for_each(|&index| self.server(index).kill());
        hit.iter().for_each(|&index| self.server(index).disk().remount());
        let_run(self.fault.time(0, 4000));
        hit.iter().for_each(|&index| self.server(index).start());
    }

    /// It must end by itself, and say that it failed.
    fn fail_disk(&mut self, index: usize) {
        let failed = event::Failed {
            t: 0,
            broker: SETS[index / MEMBERS].into(),
            id: u32::try_from(index % MEMBERS + 1).expect("a few"),
        };
        let server = self.server(index);
        server.disk().cut_power();
        let t = now_ms();
        let (status, _) = server.node.wait_end();
        server.running = false;
        assert_eq!(status.code(), Some(1), "a broker whose disk fails ends with an error: {status}");
        self.load.line(&Event::Failed(event::Failed { t, ..failed }));
        self.server(index).disk().remount();
        self.server(index).start();
    }

    fn lose_files(&mut self, index: usize) {
        let what = self.lost();
        let server = self.server(index);
        server.kill();
        let store = server.disk().path().join("store");
        let directory = match what {
            "cursor" => store.clone(),
            "snapshot" => store.join("snapshot"),
            _ => store.join("commitlog"),
        };
        for entry in std::fs::read_dir(&directory).expect("the directory of a stopped broker can be read") {
            let path = entry.expect("an entry can be read").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name == what || name.ends_with(".idx") || (what == "snapshot" && name.ends_with(".snap")) {
                std::fs::remove_file(&path).expect("a file of a stopped broker can be removed");
            }
        }
        server.start();
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
    }
}

/// Waits until a fault can be done to the set, and does nothing else.
pub(super) fn prepare<'a>(fault: Fault, servers: &'a mut Servers, load: &'a Load) -> Injection<'a> {
    let master = until("the set has a master", WHOLE_DEADLINE, || servers.master_of(fault.set));
    Injection { fault, servers, load, master }
}
