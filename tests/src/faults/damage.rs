//! What is done to disks and to the files of brokers.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use karman_checker::event::{self, Event};

use super::inject::Injection;
use super::logs;
use super::plan::Kind;
use super::servers::{MEMBERS, SETS};
use crate::cluster::program;
use crate::files;
use crate::mixed_load::now_ms;
use crate::{let_run, until};

const REPAIR_DEADLINE: Duration = Duration::from_secs(60);
/// What is written in one piece at least.
const PAGE_BYTES: u64 = 4096;

impl Injection<'_> {
    /// Which file, for people too.
    pub(super) fn harmed_file(&self) -> &'static str {
        let form = self.fault.form;
        match self.fault.kind {
            Kind::LostFile => ["cursor", "snapshot", "idx"][form % 3],
            Kind::Flip => ["log, under a running broker", "log", "idx", "snapshot"][form % 4],
            _ if form % 4 < 2 => "log, the end of it zeros",
            _ => "log, the end of it garbage",
        }
    }

    /// All at the same moment, as far as they can be.
    pub(super) fn cut_power(&mut self, hit: &[usize]) {
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
    pub(super) fn fail_disk(&mut self, index: usize) {
        let set = index / MEMBERS;
        let leads = self.servers.master_of(set) == Some(index);
        let is_thin = self.fault.kind == Kind::FlushError;
        let server = self.server(index);
        match is_thin {
            true => server.disk().fill_backing(),
            false => server.disk().cut_power(),
        }
        let t = now_ms();
        let (status, _) = server.node.wait_end();
        server.running = false;
        assert_eq!(status.code(), Some(1), "a broker whose disk fails ends with an error: {status}");
        if is_thin {
            server.disk().free_backing();
        }
        server.disk().remount();
        server.start();
        // Of a slave no answers are expected, nor missed.
        if leads {
            let id = u32::try_from(index % MEMBERS + 1).expect("a few");
            self.load.line(&Event::Failed(event::Failed { t, broker: SETS[set].into(), id }));
        }
    }

    pub(super) fn lose_files(&mut self, index: usize) {
        let what = self.harmed_file();
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

    /// One bit of a full segment, under a running master: what is read then must be found, and fetched from a slave.
    pub(super) fn flip_under(&mut self, index: usize) {
        let server = self.server(index);
        let segments = files::segments(&server.log_directory()).expect("the log of a broker can be read");
        let before = server.repairs();
        // The last one is written on.
        let Some((_, path)) = segments.iter().rev().nth(1) else {
            eprintln!("       no segment is full yet; another file, when it is stopped");
            return self.damage(index);
        };
        self.flip_record(path);
        let server = self.server(index);
        let mut command = Command::new(program("karman"));
        let (endpoint, set) = (server.node.endpoint(), SETS[index / MEMBERS]);
        command.args(["-e", &endpoint, "store", "verify", "--live", "--broker", set]);
        // Its exit code says that something was damaged.
        let output = command.output().expect("karman runs");
        let found = || server.repairs() > before;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        until(&format!("what is flipped is repaired\n{text}"), REPAIR_DEADLINE, || found().then_some(()));
    }

    /// Of a stopped broker, which is started then.
    pub(super) fn damage(&mut self, index: usize) {
        let server = self.server(index);
        let (store, before) = (server.disk().path().join("store"), server.repairs());
        server.kill();
        let segments = files::segments(&server.log_directory()).expect("the log of a broker can be read");
        let mut is_repaired = false;
        match (self.fault.kind, self.fault.form % 4) {
            (Kind::TornTail, form) => {
                tear(&segments, self.fault.share, if form < 2 { 0 } else { 0x5a });
            }
            // What is damaged of a segment that is not full waits until it is.
            (_, 0 | 1) if segments.len() > 1 => {
                self.flip_record(&segments[segments.len() - 2].1);
                is_repaired = true;
            }
            (_, 2) => self.flip_in_newest(&store.join("commitlog"), "idx"),
            _ => self.flip_in_newest(&store.join("snapshot"), "snap"),
        }
        let server = self.server(index);
        server.start();
        if is_repaired {
            until("what is flipped is repaired", REPAIR_DEADLINE, || {
                (server.repairs() > before).then_some(())
            });
        }
    }

    /// One bit in the first half of the records of a segment: what is behind is flushed for long.
    fn flip_record(&self, path: &Path) {
        let (records, _) = logs::records(path).expect("a segment can be read");
        let of = |count: usize| (count as f64 * self.fault.share) as usize;
        let (at, length) = records[of(records.len() / 2)];
        flip(path, at + of(length as usize) as u64);
    }

    /// One bit in the last file of the directory that ends so, if there is one.
    fn flip_in_newest(&self, directory: &Path, end: &str) {
        let entries = fs::read_dir(directory).expect("the directory of a stopped broker can be read");
        let paths = entries.map(|entry| entry.expect("an entry can be read").path());
        let mut paths: Vec<PathBuf> =
            paths.filter(|path| path.extension().is_some_and(|e| e == end)).collect();
        paths.sort();
        let Some(path) = paths.last() else { return };
        let length = fs::metadata(path).expect("a file of a stopped broker can be looked at").len();
        flip(path, (length as f64 * self.fault.share) as u64);
    }
}

fn flip(path: &Path, at: u64) {
    files::flip(path, at).expect("a byte of a broker's file can be changed");
    eprintln!("       byte {at} of {}", path.display());
}

/// The last bytes of the log, a page of them at most, become `other`.
fn tear(segments: &[(u64, PathBuf)], share: f64, other: u8) {
    let mut ends =
        segments.iter().rev().map(|(_, path)| (path, logs::records(path).expect("a segment can be read").1));
    // The last one may have been made ahead.
    let (path, end) = ends.find(|(_, end)| *end > 0).expect("a log that was written has a record");
    let length = ((PAGE_BYTES as f64 * share) as u64 + 1).min(end);
    let file = File::options().write(true).open(path).expect("a file of a stopped broker can be opened");
    file.write_all_at(&vec![other; length as usize], end - length).expect("it can be written");
    eprintln!("       the last {length} bytes of {}", path.display());
}
