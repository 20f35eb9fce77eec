//! A disk that can fail: ext4 in a file, mounted through a loop device. Owned by one test, which declares it in front of
//! the cluster that lives on it: processes must be gone before a file system can be.
//!
//! Needs root, a kernel with loop devices and ext4, and the tools of e2fsprogs, mount and util-linux; says so otherwise.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::fs::{FallocateFlags, fallocate, statvfs, syncfs};
use tempfile::TempDir;

use crate::until;

/// Processes that were killed still hold their files for a moment.
const UNMOUNT_DEADLINE: Duration = Duration::from_secs(20);
const BLOCK_BYTES: u64 = 4096;
/// What `mkfs.ext4` takes of a thin device before the first file, and of a large one; journals in MB.
const THIN_METADATA_BYTES: u64 = 5 << 20;
const THIN_JOURNAL: &str = "size=4";
const LARGE_THIN_METADATA_BYTES: u64 = 80 << 20;
const LARGE_THIN_JOURNAL: &str = "size=64";
/// Largest request in KiB, as the kernel takes it: one block, and as it was.
const SINGLE_BLOCKS: &str = "4";
const DEFAULT_LIMIT: &str = "0";

/// Where the image of a thin device lies.
#[derive(Debug)]
enum Backing {
    Memory(PathBuf),
    Disk(Box<LoopDevice>),
}

impl Backing {
    fn path(&self) -> &Path {
        match self {
            Backing::Memory(mounted) => mounted,
            Backing::Disk(disk) => disk.path(),
        }
    }
}

/// A mounted file system of its own. Dropping it unmounts and removes everything, whatever state it is in.
#[derive(Debug)]
pub struct LoopDevice {
    image: PathBuf,
    mounted: PathBuf,
    /// What holds the image, if its blocks are to be had only as long as there is room in that.
    backing: Option<Backing>,
    _directory: TempDir,
}

impl LoopDevice {
    /// A file system of `bytes`; the image grows as it is written.
    pub fn new(bytes: u64) -> LoopDevice {
        Self::new_in(&std::env::temp_dir(), bytes)
    }

    /// The same with everything below `directory`.
    pub fn new_in(directory: &Path, bytes: u64) -> LoopDevice {
        let device = Self::unmade(directory);
        device.make(bytes, &[]);
        device
    }

    /// A file system that says it has `bytes` but can keep only `backing_bytes`: beyond that, what was written is not
    /// kept, and only the next flush says so.
    pub fn thin(bytes: u64, backing_bytes: u64) -> LoopDevice {
        let mut device = Self::unmade(&std::env::temp_dir());
        let memory = device.image.with_file_name("memory");
        std::fs::create_dir(&memory).unwrap();
        device.image = memory.join("image");
        device.backing = Some(Backing::Memory(memory.clone()));
        let size = format!("size={backing_bytes}");
        must("mount", &["-t", "tmpfs", "-o", &size, "karman-test", text(&memory)]);
        device.make(bytes, &["-N", "1024", "-J", THIN_JOURNAL, "-E", "packed_meta_blocks=1"]);
        device.reserve(THIN_METADATA_BYTES);
        device
    }

    /// The same below `directory`, as large as it says it is until [`LoopDevice::fill_backing`].
    pub fn thin_in(directory: &Path, bytes: u64) -> LoopDevice {
        let below = Self::new_in(directory, bytes + bytes / 8);
        let mut device = Self::unmade(directory);
        device.image = below.path().join("image");
        device.backing = Some(Backing::Disk(Box::new(below)));
        device.make(bytes, &["-N", "4096", "-J", LARGE_THIN_JOURNAL, "-E", "packed_meta_blocks=1"]);
        device.reserve(LARGE_THIN_METADATA_BYTES);
        device
    }

    /// Directories for it. From here on, what fails is cleaned up by the drop.
    fn unmade(parent: &Path) -> LoopDevice {
        let directory = TempDir::with_prefix_in("karman-disk-", parent).unwrap();
        let [mounted, image] = ["mounted", "image"].map(|name| directory.path().join(name));
        std::fs::create_dir(&mounted).unwrap();
        LoopDevice { image, mounted, backing: None, _directory: directory }
    }

    fn make(&self, bytes: u64, arguments: &[&str]) {
        File::create_new(&self.image).unwrap().set_len(bytes).unwrap();
        let all = ["-q", "-m", "0"].iter().chain(arguments).copied().chain([text(&self.image)]);
        must("mkfs.ext4", &all.collect::<Vec<_>>());
        self.mount();
    }

    /// Only files are to fail: without its journal ext4 becomes read-only, and no flush says OK any more.
    fn reserve(&self, metadata_bytes: u64) {
        let image = File::options().write(true).open(&self.image).unwrap();
        fallocate(&image, FallocateFlags::KEEP_SIZE, 0, metadata_bytes).unwrap();
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mounted
    }

    fn mount(&self) {
        must("mount", &["-o", "loop", text(&self.image), text(&self.mounted)]);
    }

    /// Lets a thin device be written block by block. Of a larger request that finds room for its front only, the loop
    /// driver says that it is done (Linux 6.18): no flush would ever fail for what was lost then.
    fn limit_requests(&self, kib: &str) -> Result<(), String> {
        if self.backing.is_none() {
            return Ok(());
        }
        let device = run("losetup", &["--noheadings", "--output=NAME", "--associated", text(&self.image)])?;
        let name = device.trim().trim_start_matches("/dev/");
        let limit = format!("/sys/block/{name}/queue/max_sectors_kb");
        std::fs::write(&limit, kib).map_err(|error| format!("write {kib} to {limit}: {error}"))
    }

    /// The kernel keeps the limit for whoever gets the loop device next.
    fn before_unmount(&self) {
        let _ = self.limit_requests(DEFAULT_LIMIT);
    }

    /// Cuts the power of the disk: what was not flushed never reaches it, and every call fails with EIO from now on.
    pub fn cut_power(&self) {
        shut_down(&File::open(&self.mounted).unwrap()).unwrap_or_else(|error| {
            panic!("shut down the file system in {}: {error}", self.mounted.display())
        });
    }

    /// What a start of the machine does: forgets the page cache, replays the journal. Nobody may use the disk.
    pub fn remount(&self) {
        self.before_unmount();
        until("nobody uses the disk", UNMOUNT_DEADLINE, || run("umount", &[text(&self.mounted)]).ok());
        self.mount();
    }

    /// Lets every write and flush wait until the answer is dropped.
    pub fn freeze(&self) -> Frozen<'_> {
        must("fsfreeze", &["--freeze", text(&self.mounted)]);
        Frozen(&self.mounted)
    }

    /// Takes all the space there is.
    pub fn fill(&self) {
        fill(&self.mounted);
    }

    /// Gives back what [`LoopDevice::fill`] has taken.
    pub fn free(&self) {
        std::fs::remove_file(filler(&self.mounted)).unwrap();
    }

    /// Takes all that a thin device could still keep.
    pub fn fill_backing(&self) {
        // Names that are only in memory yet get their blocks.
        syncfs(File::open(&self.mounted).unwrap()).unwrap();
        self.limit_requests(SINGLE_BLOCKS).unwrap();
        let backing = self.backing.as_ref().expect("a thin device");
        let frozen = self.freeze();
        if let Backing::Disk(_) = backing {
            // What holds zeros in advance would still be kept.
            let from = LARGE_THIN_METADATA_BYTES.to_string();
            let length =
                (std::fs::metadata(&self.image).unwrap().len() - LARGE_THIN_METADATA_BYTES).to_string();
            must("fallocate", &["--dig-holes", "--offset", &from, "--length", &length, text(&self.image)]);
        }
        fill(backing.path());
        drop(frozen);
    }

    /// Gives back what [`LoopDevice::fill_backing`] has taken.
    pub fn free_backing(&self) {
        std::fs::remove_file(filler(self.backing.as_ref().expect("a thin device").path())).unwrap();
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        self.before_unmount();
        // Lazily: a test that fails may leave processes behind that are just ending. Not mounted is fine too.
        let _ = run("umount", &["--lazy", text(&self.mounted)]);
        if let Some(Backing::Memory(mounted)) = &self.backing {
            let _ = run("umount", &["--lazy", text(mounted)]);
        }
    }
}

/// A disk that hangs, until this is dropped.
#[derive(Debug)]
pub struct Frozen<'a>(&'a Path);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        // A panic here while another one unwinds would end the tests and leave the disk frozen all the same.
        if let Err(error) = run("fsfreeze", &["--unfreeze", text(self.0)]) {
            eprintln!("{error}");
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary directories have plain names")
}

fn filler(directory: &Path) -> PathBuf {
    directory.join("filler")
}

/// Reserves blocks, in ever smaller steps, until there is none. Others may take some meanwhile.
fn fill(directory: &Path) {
    let file = File::create_new(filler(directory)).unwrap();
    let free = statvfs(directory).unwrap();
    let (mut taken, mut step) = (0, free.f_bavail * free.f_frsize);
    while step >= BLOCK_BYTES {
        match fallocate(&file, FallocateFlags::empty(), taken, step) {
            Ok(()) => taken += step,
            Err(rustix::io::Errno::NOSPC) => {
                step = (step / 2).next_multiple_of(BLOCK_BYTES).min(step - BLOCK_BYTES)
            }
            Err(error) => panic!("fill {}: {error}", directory.display()),
        }
    }
}

fn must(program: &str, arguments: &[&str]) {
    run(program, arguments).unwrap_or_else(|error| {
        panic!(
            "{error}\nThe tests of the disk need root, loop devices and ext4 in the kernel, and the packages \
             e2fsprogs, mount and util-linux. They are never skipped."
        )
    });
}

/// What the program wrote to stdout, or what went wrong.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let failed = |why: String| format!("{program} {}: {why}", arguments.join(" "));
    let output = Command::new(program).args(arguments).output().map_err(|error| failed(error.to_string()))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}

/// `EXT4_IOC_SHUTDOWN` without flushing the journal.
#[allow(unsafe_code, reason = "there is no safe wrapper of this call")]
fn shut_down(root: &File) -> io::Result<()> {
    use rustix::ioctl::{Opcode, Setter, ioctl, opcode};
    const SHUTDOWN: Opcode = opcode::read::<u32>(b'X', 125);
    const NO_LOG_FLUSH: u32 = 2;
    // SAFETY: the kernel reads one u32 behind the pointer and keeps nothing; `Setter` passes such a pointer. On a file
    // system that does not know the number it answers ENOTTY.
    unsafe { ioctl(root, Setter::<SHUTDOWN, u32>::new(NO_LOG_FLUSH))? };
    Ok(())
}
