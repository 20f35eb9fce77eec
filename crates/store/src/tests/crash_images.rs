//! Power cuts: every write is watched, and at many points the files are put together as a device could hold them then:
//! what was flushed, and of what was not any subset of pages.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::support::*;
use crate::disk::{Disk, SystemDisk};
use crate::*;

const PAGE: usize = 4096;

#[derive(Debug, Default, Clone)]
struct Shadow {
    /// Empty until it was put in place.
    path: PathBuf,
    durable: Vec<u8>,
    /// Pages written since the last flush, in order.
    unflushed: Vec<(usize, Vec<u8>)>,
}

#[derive(Debug)]
struct Image {
    /// Messages answered with the disk class before.
    answered: u64,
    files: Vec<(PathBuf, Vec<u8>)>,
}

#[derive(Debug)]
struct Watch {
    shadows: HashMap<u64, Shadow>,
    images: Vec<Image>,
    random: Random,
    writes: u64,
}

#[derive(Debug)]
struct WatchedDisk {
    watch: Mutex<Watch>,
    answered: AtomicU64,
}

impl Watch {
    /// The directory holds what was flushed, in files that were put in place.
    fn keep_image(&mut self, answered: u64) {
        let mut files = Vec::new();
        for shadow in self.shadows.values().filter(|shadow| !shadow.path.as_os_str().is_empty()) {
            let mut bytes = shadow.durable.clone();
            let keep_in_256 = self.random.below(257);
            for (at, page) in &shadow.unflushed {
                if self.random.below(256) < keep_in_256 {
                    bytes[*at..*at + page.len()].copy_from_slice(page);
                }
            }
            files.push((shadow.path.clone(), bytes));
        }
        self.images.push(Image { answered, files });
    }
}

impl Disk for WatchedDisk {
    fn create_file(&self, path: &Path) -> io::Result<File> {
        SystemDisk.create_file(path)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        SystemDisk.remove_file(path)
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        SystemDisk.create_directory(path)
    }

    fn allocate(&self, file: &File, length: u64) -> io::Result<()> {
        SystemDisk.allocate(file, length)?;
        self.watch.lock().shadows.entry(file.metadata()?.ino()).or_default().durable =
            vec![0; length as usize];
        Ok(())
    }

    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        SystemDisk.write_at(file, bytes, offset)?;
        let mut watch = self.watch.lock();
        let shadow = watch.shadows.entry(file.metadata()?.ino()).or_default();
        for (number, page) in bytes.chunks(PAGE).enumerate() {
            let at = offset as usize + number * PAGE;
            shadow.durable.resize(shadow.durable.len().max(at + page.len()), 0);
            shadow.unflushed.push((at, page.to_vec()));
        }
        watch.writes += 1;
        if watch.writes.is_multiple_of(2) {
            watch.keep_image(self.answered.load(Ordering::Acquire));
        }
        Ok(())
    }

    fn sync_data(&self, file: &File) -> io::Result<()> {
        let mut watch = self.watch.lock();
        let shadow = watch.shadows.entry(file.metadata()?.ino()).or_default();
        for (at, page) in std::mem::take(&mut shadow.unflushed) {
            shadow.durable[at..at + page.len()].copy_from_slice(&page);
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let inode = fs::metadata(from)?.ino();
        SystemDisk.rename(from, to)?;
        let mut watch = self.watch.lock();
        watch.shadows.retain(|_, shadow| shadow.path != to);
        watch.shadows.entry(inode).or_default().path = to.to_owned();
        Ok(())
    }

    fn sync_directory(&self, _directory: &Path) -> io::Result<()> {
        Ok(())
    }

    fn available_bytes(&self, directory: &Path) -> io::Result<u64> {
        SystemDisk.available_bytes(directory)
    }
}

fn payload(number: u64) -> Vec<u8> {
    vec![number as u8; (number as usize * 7919) % 9000]
}

#[test]
fn a_power_cut_at_any_write_loses_nothing_that_was_flushed_and_never_stops_the_start() {
    let scratch = scratch();
    let watch =
        Watch { shadows: HashMap::new(), images: Vec::new(), random: Random::seeded(4711), writes: 0 };
    let disk = Arc::new(WatchedDisk { watch: Mutex::new(watch), answered: AtomicU64::new(0) });
    let store = Store::open_on(disk.clone(), config(scratch.path()), Vec::new(), Arc::new(Silent)).unwrap();
    for round in 0..60 {
        for (first, class) in [(round * 6, Durability::Memory), (round * 6 + 3, Durability::Disk)] {
            let records = (first..first + 3).map(|number| message(QUEUE, payload(number))).collect();
            store.append(records, class).unwrap().wait().unwrap();
        }
        disk.answered.store((round + 1) * 6, Ordering::Release);
    }
    drop(store);
    let images = std::mem::take(&mut disk.watch.lock().images);
    assert!(images.len() >= 60, "{} images", images.len());
    let mut torn = 0;
    for (number, Image { answered, files }) in images.into_iter().enumerate() {
        let crashed = scratch_in_memory();
        for part in ["commitlog", "snapshot"] {
            fs::create_dir(crashed.path().join(part)).unwrap();
        }
        for (path, bytes) in files {
            fs::write(crashed.path().join(path.strip_prefix(scratch.path()).unwrap()), bytes).unwrap();
        }
        let store = open(crashed.path());
        let found = read_all(&store, QUEUE);
        assert!(found.len() as u64 >= answered, "image {number}: {} of {answered} answered", found.len());
        torn += u64::from(found.len() as u64 != answered);
        for (offset, found) in found.iter().enumerate() {
            assert!(*found == payload(offset as u64), "image {number}, message {offset}");
        }
        put(&store, "goes on", Durability::Disk).unwrap();
    }
    assert!(torn > 5, "only {torn} images show what was not flushed");
}
