//! What a power cut leaves: a model of a device under a file system that keeps what was synced, and of everything else
//! whatever it likes: any pages, any sectors of a page, any names.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::fault_disk::{Event, FileId, PAGE, SECTOR};
use super::support::Random;

type Pages = BTreeMap<u64, Arc<[u8]>>;

/// A device that has seen the beginning of a recording.
#[derive(Debug, Default)]
pub(super) struct Device {
    seen: usize,
    files: BTreeMap<FileId, Contents>,
    names: Names,
    /// Changes of names that no sync of their directory covers yet, with their event numbers.
    unsynced: Vec<(usize, Event)>,
}

#[derive(Debug, Default, Clone)]
struct Contents {
    length: u64,
    /// By page number; what is missing is zeros.
    pages: Pages,
    unsynced: Vec<(usize, Event)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    Directory,
    File(FileId),
}

#[derive(Debug, Default, Clone)]
struct Names(BTreeMap<PathBuf, Node>);

/// How much of what was not synced is there all the same, in 256ths.
#[derive(Debug, Clone, Copy)]
pub(super) struct Luck {
    pages: u64,
    names: u64,
    /// Pages of which only some sectors are there.
    torn: u64,
}

impl Luck {
    /// Nothing is there that was not synced.
    pub(super) const NONE: Self = Self { pages: 0, names: 0, torn: 0 };

    /// Often all or nothing: the mean of many pages alone would never show these.
    pub(super) fn draw(random: &mut Random) -> Self {
        let mut rate = || match random.below(8) {
            0 => 0,
            1 | 2 => 256,
            _ => random.below(257),
        };
        Self { pages: rate(), names: rate(), torn: if rate() == 0 { 64 } else { 0 } }
    }
}

impl Device {
    /// Does what was done up to event number `point`.
    pub(super) fn advance(&mut self, events: &[Event], point: usize) {
        for (number, event) in events.iter().enumerate().take(point).skip(self.seen) {
            self.see(number, event);
        }
        self.seen = point;
    }

    fn see(&mut self, number: usize, event: &Event) {
        match event {
            Event::Create { file, .. } => {
                self.files.insert(*file, Contents::default());
                self.unsynced.push((number, event.clone()));
            }
            Event::Rename { .. } | Event::Remove { .. } | Event::CreateDirectory { .. } => {
                self.unsynced.push((number, event.clone()));
            }
            Event::Resize { file, .. } | Event::Write { file, .. } => {
                self.file(*file).unsynced.push((number, event.clone()));
            }
            Event::Sync { file, since } => self.file(*file).sync(*since),
            Event::SyncFailed { file, since } => {
                self.file(*file).unsynced.retain(|(number, _)| number >= since);
            }
            Event::SyncDirectory { path, since } => {
                let names = &mut self.names;
                self.unsynced.retain(|(number, change)| {
                    let covered = number < since && directory_of(change) == path;
                    if covered {
                        names.change(change);
                    }
                    !covered
                });
            }
        }
    }

    fn file(&mut self, file: FileId) -> &mut Contents {
        self.files.get_mut(&file).expect("it was created")
    }

    /// Puts together in the empty directory `to` what `from` could hold after a power cut now.
    pub(super) fn write_image(
        &self,
        from: &Path,
        to: &Path,
        luck: Luck,
        random: &mut Random,
    ) -> io::Result<()> {
        let mut names = self.names.clone();
        for (_, change) in &self.unsynced {
            if random.below(256) < luck.names {
                names.change(change);
            }
        }
        // Directories sort in front of what they hold; what lies in one that was lost is lost.
        for (path, node) in names.0 {
            let path = to.join(path.strip_prefix(from).expect("the store stays in its directory"));
            match node {
                _ if !path.parent().is_some_and(Path::is_dir) => {}
                Node::Directory => fs::create_dir(&path)?,
                Node::File(file) => self.files[&file].after_a_power_cut(luck, random).write(&path)?,
            }
        }
        Ok(())
    }
}

fn directory_of(change: &Event) -> &Path {
    match change {
        Event::Create { path, .. } | Event::Remove { path } | Event::CreateDirectory { path } => {
            path.parent()
        }
        Event::Rename { from, to, .. } => {
            assert_eq!(from.parent(), to.parent(), "a rename inside of one directory");
            to.parent()
        }
        other => unreachable!("{other:?} changes no name"),
    }
    .expect("it lies in a directory")
}

impl Names {
    fn change(&mut self, change: &Event) {
        let names = &mut self.0;
        match change {
            Event::Create { file, path } => drop(names.insert(path.clone(), Node::File(*file))),
            Event::CreateDirectory { path } => drop(names.insert(path.clone(), Node::Directory)),
            Event::Remove { path } => drop(names.remove(path)),
            Event::Rename { file, to, .. } => {
                // A file has one name, even if what gave it an earlier one was lost.
                names.retain(|_, node| *node != Node::File(*file));
                names.insert(to.clone(), Node::File(*file));
            }
            other => unreachable!("{other:?} changes no name"),
        }
    }
}

impl Contents {
    fn sync(&mut self, since: usize) {
        let kept = self.unsynced.partition_point(|(number, _)| *number < since);
        for (_, change) in self.unsynced.drain(..kept).collect::<Vec<_>>() {
            self.change(&change, None);
        }
    }

    fn after_a_power_cut(&self, luck: Luck, random: &mut Random) -> Self {
        let mut found = Self { length: self.length, pages: self.pages.clone(), unsynced: Vec::new() };
        for (_, change) in &self.unsynced {
            if random.below(256) >= luck.pages {
                continue;
            }
            let torn = random.below(256) < luck.torn;
            found.change(change, torn.then_some(&mut *random));
        }
        found
    }

    fn change(&mut self, change: &Event, torn: Option<&mut Random>) {
        match change {
            Event::Write { range, bytes, .. } => self.write_page(range, bytes.as_ref(), torn),
            Event::Resize { length: 0, .. } => {
                self.length = 0;
                self.pages.clear();
            }
            Event::Resize { length, .. } => self.length = self.length.max(*length),
            other => unreachable!("{other:?} changes no contents"),
        }
    }

    /// All of it, or, if it is `torn`, any of its sectors.
    fn write_page(&mut self, range: &Range<u64>, bytes: Option<&Arc<[u8]>>, mut torn: Option<&mut Random>) {
        self.length = self.length.max(range.end);
        let number = range.start / PAGE as u64;
        let length = (range.end - range.start) as usize;
        if length == PAGE && torn.is_none() {
            match bytes {
                Some(bytes) => drop(self.pages.insert(number, bytes.clone())),
                None => drop(self.pages.remove(&number)),
            }
            return;
        }
        let before = self.pages.get(&number);
        let mut page = before.map_or_else(|| vec![0; PAGE], |page| page.to_vec());
        let target = &mut page[(range.start % PAGE as u64) as usize..][..length];
        for at in (0..length).step_by(SECTOR) {
            if torn.as_mut().is_some_and(|random| random.below(2) == 0) {
                continue;
            }
            let sector = at..(at + SECTOR).min(length);
            match bytes {
                Some(bytes) => target[sector.clone()].copy_from_slice(&bytes[sector]),
                None => target[sector].fill(0),
            }
        }
        self.pages.insert(number, page.into());
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        let file = File::create(path)?;
        file.set_len(self.length)?;
        for (number, page) in &self.pages {
            let at = number * PAGE as u64;
            let length = self.length.saturating_sub(at).min(PAGE as u64);
            file.write_all_at(&page[..length as usize], at)?;
        }
        Ok(())
    }
}
