//! The store's directory: who may use it ([`Directory::open`] takes the lock) and what lies where. Used by the opening
//! thread; the paths by everyone.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::copy;
use crate::disk::{self, Disk};
use crate::error::OpenError;
use crate::record::Seal;

const MAGIC: &[u8; 8] = b"KARMSTOR";
/// Raised when an older version could no longer read a store.
const FORMAT_VERSION: u32 = 1;
/// Without the owner's name.
const IDENTITY_BYTES: usize = 34;
/// Longest name of an owner.
pub(crate) const MAX_OWNER_BYTES: usize = 1024;
pub(crate) const IDENTITY: &str = "identity";
const RESTORES: &str = "`karman store repair` can restore it from other files";

/// Names a log and all its replicas: random, given when the first of their stores is made; carried by files that must not
/// be mixed up with those of another log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogId(pub [u8; 16]);

impl LogId {
    fn random() -> io::Result<Self> {
        let mut id = [0; 16];
        File::open("/dev/urandom")?.read_exact(&mut id)?;
        Ok(Self(id))
    }

    /// What the checksums of this log's records start from.
    pub(crate) fn seal(self) -> Seal {
        Seal(crc32c::crc32c(&self.0))
    }
}

/// What the file `identity` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) log: LogId,
    /// Whose store this is; no other may open it.
    pub(crate) owner: String,
}

/// A locked directory with an identity.
#[derive(Debug)]
pub(crate) struct Directory {
    pub(crate) root: PathBuf,
    pub(crate) commit_log: PathBuf,
    pub(crate) snapshots: PathBuf,
    pub(crate) log: LogId,
    /// Locked while open.
    pub(crate) lock: File,
}

impl Directory {
    /// Opens or creates the directory of `owner`, for `log` if that is given, and locks it for this process.
    pub(crate) fn open(
        disk: &dyn Disk,
        root: &Path,
        owner: &str,
        log: Option<LogId>,
    ) -> Result<Self, OpenError> {
        create_root(disk, root).map_err(OpenError::io("create", root))?;
        let lock = lock(disk, root)?;
        if root.join(copy::MARKER).exists() {
            return Err(OpenError::HalfCopied { directory: root.to_owned() });
        }
        let (commit_log, snapshots) = (root.join("commitlog"), root.join("snapshot"));
        let path = root.join(IDENTITY);
        let identity = match fs::read(&path) {
            Ok(bytes) => Identity::read(&bytes)
                .map_err(|reason| OpenError::NotAStore { directory: root.to_owned(), reason })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                create(disk, root, [&commit_log, &snapshots], owner, log)
                    .map_err(OpenError::io("create a store in", root))??
            }
            Err(error) => return Err(OpenError::io("read", &path)(error)),
        };
        if identity.owner != owner {
            let (directory, found) = (root.to_owned(), identity.owner);
            return Err(OpenError::ForeignOwner { directory, found, expected: owner.to_owned() });
        }
        if log.is_some_and(|expected| expected != identity.log) {
            return Err(OpenError::ForeignLog { directory: root.to_owned() });
        }
        for part in [root, &commit_log, &snapshots] {
            remove_half_written(disk, part).map_err(OpenError::io("clean up", part))?;
            // A process that was killed may have put files in place whose names are not durable.
            disk.sync_directory(part).map_err(OpenError::io("flush", part))?;
        }
        Ok(Self { root: root.to_owned(), commit_log, snapshots, log: identity.log, lock })
    }
}

/// Creates what is missing of the path, durably. The last part that is there may be the work of a process that was
/// killed before it was durable.
fn create_root(disk: &dyn Disk, root: &Path) -> io::Result<()> {
    let root = std::path::absolute(root)?;
    if root.join("identity").exists() {
        return Ok(());
    }
    let missing: Vec<_> = root.ancestors().take_while(|part| !part.exists()).collect();
    missing.iter().rev().try_for_each(|part| create_directory(disk, part))?;
    let mut parents = root.ancestors().skip(1).take(missing.len() + 1);
    parents.try_for_each(|parent| disk.sync_directory(parent))
}

/// Another process may make it at the same time.
fn create_directory(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    match disk.create_directory(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        created => created,
    }
}

pub(crate) fn lock(disk: &dyn Disk, root: &Path) -> Result<File, OpenError> {
    let path = root.join("lock");
    // Made anew each time: it holds nothing.
    let file = disk.create_file(&path).map_err(OpenError::io("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked { directory: root.to_owned() }),
        Err(TryLockError::Error(error)) => Err(OpenError::io("lock", &path)(error)),
    }
}

/// Files are written aside under this extension; what a crash left of them was never part of the store.
fn remove_half_written(disk: &dyn Disk, directory: &Path) -> io::Result<()> {
    for file in fs::read_dir(directory)? {
        let path = file?.path();
        if path.extension().is_some_and(|extension| extension == disk::ASIDE) {
            disk.remove_file(&path)?;
        }
    }
    Ok(())
}

/// The identity comes last: where it is, the rest is durable.
fn create(
    disk: &dyn Disk,
    root: &Path,
    parts: [&Path; 2],
    owner: &str,
    log: Option<LogId>,
) -> io::Result<Result<Identity, OpenError>> {
    for part in parts {
        create_directory(disk, part)?;
        if fs::read_dir(part)?.next().is_some() {
            let reason =
                format!("{} holds files but the file identity is missing; {RESTORES}", part.display());
            return Ok(Err(OpenError::NotAStore { directory: root.to_owned(), reason }));
        }
    }
    disk.sync_directory(root)?;
    let identity = Identity { log: log.map_or_else(LogId::random, Ok)?, owner: owner.to_owned() };
    identity.write(disk, root)?;
    Ok(Ok(identity))
}

impl Identity {
    /// Replaces the file.
    pub(crate) fn write(&self, disk: &dyn Disk, root: &Path) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(IDENTITY_BYTES + self.owner.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes.extend_from_slice(&self.log.0);
        bytes.extend_from_slice(&(self.owner.len() as u16).to_le_bytes());
        bytes.extend_from_slice(self.owner.as_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        disk::replace_file(disk, &root.join(IDENTITY), &bytes)
    }

    /// They are of a format version that this one does not know.
    pub(crate) fn is_of_other_version(bytes: &[u8]) -> bool {
        let version = bytes.strip_prefix(MAGIC).and_then(<[u8]>::first_chunk);
        version.is_some_and(|version| u32::from_le_bytes(*version) != FORMAT_VERSION)
            && bytes.split_last_chunk().is_some_and(|(body, crc)| crc32c::crc32c(body).to_le_bytes() == *crc)
    }

    /// Reads the file's bytes; the error says why they are no identity of this version.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() < IDENTITY_BYTES || bytes[..8] != *MAGIC {
            return Err(format!("the file identity is not one of a store; {RESTORES}"));
        }
        let version = u32::from_le_bytes(bytes[8..12].try_into().expect("four bytes"));
        if version != FORMAT_VERSION {
            return Err(format!("it has format version {version}, known is {FORMAT_VERSION}"));
        }
        let damaged = || format!("the file identity does not match its checksum; {RESTORES}");
        let (body, crc) = bytes.split_last_chunk::<4>().ok_or_else(damaged)?;
        let owner_bytes = usize::from(u16::from_le_bytes([body[28], body[29]]));
        if body.len() != 30 + owner_bytes || crc32c::crc32c(body).to_le_bytes() != *crc {
            return Err(damaged());
        }
        let owner = String::from_utf8(body[30..].to_vec()).map_err(|_| damaged())?;
        Ok(Self { log: LogId(body[12..28].try_into().expect("sixteen bytes")), owner })
    }
}
