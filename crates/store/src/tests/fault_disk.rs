//! The one disk of the tests. It works on real files, can be told to fail, tear, stall, lie, fill up or stop dead, and
//! notes everything it did in the order it was done: [`super::device`] makes crash images of that.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::disk::{Disk, SystemDisk};
use crate::retention::Space;

pub(super) const EIO: i32 = 5;
pub(super) const ENOSPC: i32 = 28;
/// A device writes this much or nothing.
pub(super) const SECTOR: usize = 512;
pub(super) const PAGE: usize = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    CreateFile,
    Allocate,
    Write,
    Sync,
    Rename,
    RemoveFile,
    CreateDirectory,
    SyncDirectory,
}

/// A file, whatever its name is at the moment.
pub(super) type FileId = u64;

/// Something that was done. Nothing of it is durable before the sync that follows it.
#[derive(Debug, Clone)]
pub(super) enum Event {
    Create {
        file: FileId,
        path: PathBuf,
    },
    Resize {
        file: FileId,
        length: u64,
    },
    /// Bytes inside of one page; `None` for zeros.
    Write {
        file: FileId,
        range: Range<u64>,
        bytes: Option<Arc<[u8]>>,
    },
    /// Covers what was done before event number `since`, when the call came.
    Sync {
        file: FileId,
        since: usize,
    },
    /// The kernel forgets what it could not write: no later sync covers it.
    SyncFailed {
        file: FileId,
        since: usize,
    },
    Rename {
        file: FileId,
        from: PathBuf,
        to: PathBuf,
    },
    Remove {
        path: PathBuf,
    },
    CreateDirectory {
        path: PathBuf,
    },
    SyncDirectory {
        path: PathBuf,
        since: usize,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// The call fails; a write has put this much of its bytes into the file.
    Fail { errno: i32, keep_bytes: usize },
    /// The same, for a process that is dead: the kernel keeps what it has.
    Dead { keep_bytes: usize },
    /// It says yes and does nothing.
    Lie,
    /// It waits for [`FaultDisk::heal`].
    Stall,
}

#[derive(Debug)]
struct Rule {
    /// Any if none.
    call: Option<Call>,
    /// Only for paths that end with this.
    end: &'static str,
    /// Which of the calls that match, counted from 0.
    numbers: Range<u64>,
    matched: u64,
    effect: Effect,
}

#[derive(Debug, Default)]
struct State {
    rules: Vec<Rule>,
    /// How often a rule took effect.
    hits: u64,
    stalled: u64,
    calls: Vec<Call>,
    free_bytes: Option<u64>,
    space: Option<Space>,
    /// Files, by how their paths end, with a stretch that the device does not give.
    unreadable: Vec<(String, Range<u64>)>,
    events: Option<Vec<Event>>,
    /// By inode, of the files that were made since the recording began.
    files: HashMap<u64, FileId>,
}

/// Without being told anything it does everything but wait for the device: these tests end processes at most in
/// thought, and the page cache outlives that.
#[derive(Debug, Default)]
pub(super) struct FaultDisk {
    state: Mutex<State>,
    changed: Condvar,
    sync_takes: Duration,
}

/// What becomes of a call that was let through.
#[derive(Debug, Clone, Copy)]
enum Verdict {
    Go { since: usize },
    Lie,
    Fail { errno: i32, keep_bytes: usize, dead: bool, since: usize },
}

impl Verdict {
    /// For calls that do all or nothing. `false`: only say that it was done.
    fn all_or_nothing(self) -> io::Result<bool> {
        match self {
            Self::Go { .. } => Ok(true),
            Self::Lie => Ok(false),
            Self::Fail { errno, .. } => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

impl FaultDisk {
    /// Notes from now on what is done; the directory it is used for is empty. Syncs that take their time let a test
    /// see an answer that was given before.
    pub(super) fn recording(sync_takes: Duration) -> Self {
        let state = State { events: Some(Vec::new()), ..State::default() };
        Self { state: Mutex::new(state), changed: Condvar::new(), sync_takes }
    }

    fn add(&self, call: Option<Call>, end: &'static str, numbers: Range<u64>, effect: Effect) {
        self.state.lock().rules.push(Rule { call, end, numbers, matched: 0, effect });
    }

    /// Every such call fails from now on.
    pub(super) fn fail(&self, call: Call, errno: i32) {
        self.add(Some(call), "", 0..u64::MAX, Effect::Fail { errno, keep_bytes: 0 });
    }

    /// One call fails: the one in front of which there were `number` others, on paths that end with `end`. A write
    /// gets as far as `keep_bytes`.
    pub(super) fn fail_one(&self, call: Call, end: &'static str, number: u64, errno: i32, keep_bytes: usize) {
        self.add(Some(call), end, number..number + 1, Effect::Fail { errno, keep_bytes });
    }

    /// The process is as good as dead from the call on in front of which there were `number` others, of this kind or,
    /// without one, of any. If it dies in a write, `keep_bytes` of it are in the file.
    pub(super) fn kill_at(&self, call: Option<Call>, number: u64, keep_bytes: usize) {
        self.add(call, "", number..u64::MAX, Effect::Dead { keep_bytes });
    }

    /// Such calls, on paths that end with `end`, do nothing and say that it is done.
    pub(super) fn lie_about(&self, call: Call, end: &'static str) {
        self.add(Some(call), end, 0..u64::MAX, Effect::Lie);
    }

    /// Reads that touch `range` of the file whose path ends with `end` fail from now on.
    pub(super) fn make_unreadable(&self, end: String, range: Range<u64>) {
        self.state.lock().unreadable.push((end, range));
    }

    /// Such calls wait until [`FaultDisk::heal`].
    pub(super) fn stall(&self, call: Call) {
        self.add(Some(call), "", 0..u64::MAX, Effect::Stall);
    }

    /// Takes back all that was told, and gives the disk its real size.
    pub(super) fn heal(&self) {
        let mut state = self.state.lock();
        state.rules.clear();
        state.unreadable.clear();
        (state.free_bytes, state.space) = (None, None);
        drop(state);
        self.changed.notify_all();
    }

    /// What fits on the disk from now on.
    pub(super) fn set_free_bytes(&self, bytes: u64) {
        self.state.lock().free_bytes = Some(bytes);
    }

    /// What the file system says about itself from now on; as much fits as before.
    pub(super) fn set_space(&self, used_bytes: u64, available_bytes: u64) {
        self.state.lock().space = Some(Space { used_bytes, available_bytes });
    }

    /// How often a call or a read failed, stalled or lied as told.
    pub(super) fn hits(&self) -> u64 {
        self.state.lock().hits
    }

    /// Calls that wait in a stall.
    pub(super) fn stalled(&self) -> u64 {
        self.state.lock().stalled
    }

    /// How often such a call came, failed or not.
    pub(super) fn count(&self, call: Call) -> u64 {
        self.state.lock().calls.iter().filter(|other| **other == call).count() as u64
    }

    /// Number of the next event.
    pub(super) fn position(&self) -> usize {
        self.state.lock().since()
    }

    /// What was done since the recording began.
    pub(super) fn events(&self) -> Vec<Event> {
        self.state.lock().events.clone().expect("it records")
    }

    fn begin(&self, call: Call, path: impl Fn() -> PathBuf) -> Verdict {
        let mut state = self.state.lock();
        state.calls.push(call);
        loop {
            let since = state.since();
            match state.effect(call, &path) {
                None => return Verdict::Go { since },
                Some(Effect::Lie) => return Verdict::Lie,
                Some(Effect::Fail { errno, keep_bytes }) => {
                    return Verdict::Fail { errno, keep_bytes, dead: false, since };
                }
                Some(Effect::Dead { keep_bytes }) => {
                    return Verdict::Fail { errno: EIO, keep_bytes, dead: true, since };
                }
                Some(Effect::Stall) => self.wait_out_the_stall(&mut state),
            }
        }
    }

    fn wait_out_the_stall(&self, state: &mut MutexGuard<'_, State>) {
        state.stalled += 1;
        let deadline = Instant::now() + Duration::from_secs(60);
        while state.rules.iter().any(|rule| rule.effect == Effect::Stall) {
            let late = self.changed.wait_until(state, deadline).timed_out();
            assert!(!late, "nobody ended the stall");
        }
        state.stalled -= 1;
    }

    fn note(&self, event: impl FnOnce(&mut State) -> Event) {
        let mut state = self.state.lock();
        if state.events.is_some() {
            let event = event(&mut state);
            state.events.as_mut().expect("it is there").push(event);
        }
    }

    /// Writes and notes page by page.
    fn write_and_note(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        SystemDisk.write_at(file, bytes, offset)?;
        let inode = inode(file);
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let length = (PAGE - (at % PAGE as u64) as usize).min(rest.len());
            let (page, behind) = rest.split_at(length);
            let kept = (*page != [0; PAGE][..length]).then(|| page.into());
            let range = at..at + length as u64;
            self.note(|state| Event::Write { file: state.files[&inode], range, bytes: kept });
            (at, rest) = (at + length as u64, behind);
        }
        Ok(())
    }
}

impl State {
    fn since(&self) -> usize {
        self.events.as_ref().map_or(0, Vec::len)
    }

    /// Of the first rule that has one for this call.
    fn effect(&mut self, call: Call, path: impl Fn() -> PathBuf) -> Option<Effect> {
        let mut found = None;
        for rule in &mut self.rules {
            let of_this_call = rule.call.is_none_or(|own| own == call);
            if !of_this_call || !(rule.end.is_empty() || ends_with(&path(), rule.end)) {
                continue;
            }
            let number = rule.matched;
            rule.matched += 1;
            if found.is_none() && rule.numbers.contains(&number) {
                found = Some(rule.effect);
                if let Effect::Dead { keep_bytes } = &mut rule.effect {
                    // Now it is dead for every call, and writes nothing more.
                    (rule.call, *keep_bytes) = (None, 0);
                }
            }
        }
        self.hits += u64::from(found.is_some());
        found
    }

    /// Takes the room for a file to grow from `had` to `length`, if there is a limit.
    fn charge(&mut self, had: u64, length: u64) -> io::Result<()> {
        if let Some(free) = &mut self.free_bytes {
            let left = free.checked_sub(length.saturating_sub(had));
            *free = left.ok_or_else(|| io::Error::from_raw_os_error(ENOSPC))?;
        }
        Ok(())
    }

    fn give_back(&mut self, path: &Path) {
        if let (Some(free), Ok(file)) = (&mut self.free_bytes, fs::metadata(path)) {
            *free += file.len();
        }
    }
}

fn ends_with(path: &Path, end: &str) -> bool {
    path.to_str().is_some_and(|path| path.ends_with(end))
}

fn inode(file: &File) -> u64 {
    file.metadata().unwrap().ino()
}

/// Where an open file lies now.
fn path_of(file: &File) -> PathBuf {
    fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap()
}

impl Disk for FaultDisk {
    fn create_file(&self, path: &Path) -> io::Result<File> {
        self.begin(Call::CreateFile, || path.to_owned()).all_or_nothing()?;
        let known = path.exists();
        self.state.lock().give_back(path);
        let file = SystemDisk.create_file(path)?;
        self.note(|state| match known {
            true => Event::Resize { file: state.files[&inode(&file)], length: 0 },
            false => {
                let new = state.since() as FileId;
                state.files.insert(inode(&file), new);
                Event::Create { file: new, path: path.to_owned() }
            }
        });
        Ok(file)
    }

    fn allocate(&self, file: &File, length: u64) -> io::Result<()> {
        self.begin(Call::Allocate, || path_of(file)).all_or_nothing()?;
        self.state.lock().charge(file.metadata()?.len(), length)?;
        SystemDisk.allocate(file, length)?;
        self.note(|state| Event::Resize { file: state.files[&inode(file)], length });
        Ok(())
    }

    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        match self.begin(Call::Write, || path_of(file)) {
            Verdict::Lie => return Ok(()),
            Verdict::Go { .. } => {}
            Verdict::Fail { errno, keep_bytes, .. } => {
                self.write_and_note(file, &bytes[..keep_bytes.min(bytes.len())], offset)?;
                return Err(io::Error::from_raw_os_error(errno));
            }
        }
        self.state.lock().charge(file.metadata()?.len(), offset + bytes.len() as u64)?;
        self.write_and_note(file, bytes, offset)
    }

    fn read_at(&self, file: &File, into: &mut [u8], offset: u64) -> io::Result<()> {
        let read = offset..offset + into.len() as u64;
        let mut state = self.state.lock();
        let is_hit = |(end, range): &(String, Range<u64>)| {
            range.start < read.end && read.start < range.end && ends_with(&path_of(file), end)
        };
        if state.unreadable.iter().any(is_hit) {
            state.hits += 1;
            return Err(io::Error::from_raw_os_error(EIO));
        }
        drop(state);
        SystemDisk.read_at(file, into, offset)
    }

    fn sync_data(&self, file: &File) -> io::Result<()> {
        let id = |state: &mut State| state.files[&inode(file)];
        match self.begin(Call::Sync, || path_of(file)) {
            Verdict::Lie => Ok(()),
            Verdict::Go { since } => {
                std::thread::sleep(self.sync_takes);
                self.note(|state| Event::Sync { file: id(state), since });
                Ok(())
            }
            Verdict::Fail { errno, dead, since, .. } => {
                if !dead {
                    self.note(|state| Event::SyncFailed { file: id(state), since });
                }
                Err(io::Error::from_raw_os_error(errno))
            }
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        if !self.begin(Call::Rename, || to.to_owned()).all_or_nothing()? {
            return Ok(());
        }
        self.state.lock().give_back(to);
        SystemDisk.rename(from, to)?;
        let (inode, from, to) = (fs::metadata(to)?.ino(), from.to_owned(), to.to_owned());
        self.note(|state| Event::Rename { file: state.files[&inode], from, to });
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        if !self.begin(Call::RemoveFile, || path.to_owned()).all_or_nothing()? {
            return Ok(());
        }
        self.state.lock().give_back(path);
        SystemDisk.remove_file(path)?;
        self.note(|_| Event::Remove { path: path.to_owned() });
        Ok(())
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        if !self.begin(Call::CreateDirectory, || path.to_owned()).all_or_nothing()? {
            return Ok(());
        }
        SystemDisk.create_directory(path)?;
        self.note(|_| Event::CreateDirectory { path: path.to_owned() });
        Ok(())
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        match self.begin(Call::SyncDirectory, || directory.to_owned()) {
            Verdict::Go { since } => {
                self.note(|_| Event::SyncDirectory { path: directory.to_owned(), since });
                Ok(())
            }
            verdict => verdict.all_or_nothing().map(drop),
        }
    }

    fn space(&self, directory: &Path) -> io::Result<Space> {
        let state = self.state.lock();
        match (state.space, state.free_bytes) {
            (Some(space), _) => Ok(space),
            (None, Some(available_bytes)) => Ok(Space { used_bytes: 0, available_bytes }),
            (None, None) => SystemDisk.space(directory),
        }
    }
}
