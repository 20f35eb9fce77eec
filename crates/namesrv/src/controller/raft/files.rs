//! The controller's directory: who may use it, and small files that are replaced as a whole. Used by the threads of the
//! consensus; see [`Directory::write`] for what a crash can leave.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

const IDENTITY: &str = "identity";
/// First word of every file that is replaced as a whole; then the version, the CRC32C of what follows, and JSON.
const MAGIC: &str = "karman-controller 1 ";
const CRC_DIGITS: usize = 8;

/// Why a controller's directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The system refused something.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was done.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process has it.
    #[error("another process uses {0}; two controllers need directories of their own (controllerStorePath)")]
    Locked(PathBuf),
    /// It is somebody else's.
    #[error(
        "{directory} belongs to controller {found_id} of group {found:?}, this is controller {self_id} of group {group:?}: \
         correct controllerSelfId, controllerDLegerGroup or controllerStorePath"
    )]
    Foreign {
        /// The directory.
        directory: PathBuf,
        /// Its group.
        found: String,
        /// Its controller.
        found_id: u64,
        /// `controllerDLegerGroup`
        group: String,
        /// `controllerSelfId`
        self_id: u64,
    },
    /// What was flushed once is not there any more, or not as it was.
    #[error(
        "{path} is damaged at byte {offset} ({why}). Do not cut it: what this controller agreed to is in it. Move the directory \
         away and start with an empty one: the other controllers have everything, and this one votes when it has it too; one \
         controller at a time"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// In words.
        why: String,
    },
}

impl OpenError {
    pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }
}

/// Whose directory it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    group: String,
    self_id: u64,
    /// Whether this one may vote. One that has lost its disk has forgotten what it agreed to; until it has caught up with
    /// a leader its vote could bring about another that lacks it.
    votes: bool,
}

/// A locked directory.
#[derive(Debug)]
pub(super) struct Directory {
    root: PathBuf,
    identity: Mutex<Identity>,
    /// Locked while open.
    _lock: File,
}

impl Directory {
    /// Opens or makes the directory of controller `self_id` of `group`.
    pub(super) fn open(root: &Path, group: &str, self_id: u64) -> Result<Self, OpenError> {
        fs::create_dir_all(root).map_err(OpenError::io("create", root))?;
        let path = root.join("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(OpenError::io("open", &path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::Locked(root.to_owned())),
            Err(TryLockError::Error(error)) => return Err(OpenError::io("lock", &path)(error)),
        }
        // What a crash may have put in place without its being durable.
        for directory in root.ancestors().take(2).filter(|path| !path.as_os_str().is_empty()) {
            sync_directory(directory).map_err(OpenError::io("flush", directory))?;
        }
        let fresh = Identity { group: group.to_owned(), self_id, votes: false };
        let found: Option<Identity> = read(root, IDENTITY)?;
        if let Some(found) = &found
            && (found.group != group || found.self_id != self_id)
        {
            return Err(OpenError::Foreign {
                directory: root.to_owned(),
                found: found.group.clone(),
                found_id: found.self_id,
                group: group.to_owned(),
                self_id,
            });
        }
        let is_new = found.is_none();
        let left = ["log", "vote", "snapshot"].iter().find(|name| root.join(name).exists());
        if let Some(left) = left.filter(|_| is_new) {
            let why = format!("it is missing, but {left:?} is there");
            return Err(OpenError::Damaged { path: root.join(IDENTITY), offset: 0, why });
        }
        let identity = Mutex::new(found.unwrap_or(fresh));
        let directory = Self { root: root.to_owned(), identity, _lock: lock };
        if is_new {
            let identity = directory.identity.lock().clone();
            directory.write(IDENTITY, &identity).map_err(OpenError::io("write", &root.join(IDENTITY)))?;
        }
        Ok(directory)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Whether this controller may vote.
    pub(super) fn votes(&self) -> bool {
        self.identity.lock().votes
    }

    /// It may from now on, also after a restart.
    pub(super) fn let_vote(&self) -> io::Result<()> {
        let mut identity = self.identity.lock();
        if !identity.votes {
            let voting = Identity { votes: true, ..identity.clone() };
            self.write(IDENTITY, &voting)?;
            *identity = voting;
        }
        Ok(())
    }

    /// Replaces a file: a crash leaves the old one or the new one. When this returns the new one is durable.
    pub(super) fn write(&self, name: &str, value: &impl Serialize) -> io::Result<()> {
        let json = serde_json::to_string(value)?;
        let text = format!("{MAGIC}{:0CRC_DIGITS$x}\n{json}", crc32c::crc32c(json.as_bytes()));
        self.replace(name, text.as_bytes()).map(drop)
    }

    /// [`Directory::write`] of bytes as they are; the file stays open.
    pub(super) fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<File> {
        let aside = self.root.join(format!("{name}.new"));
        let mut file = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(&aside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&aside, self.root.join(name))?;
        sync_directory(&self.root)?;
        Ok(file)
    }

    /// What [`Directory::write`] wrote last; `None`: nothing.
    pub(super) fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, OpenError> {
        read(&self.root, name)
    }
}

fn read<T: DeserializeOwned>(root: &Path, name: &str) -> Result<Option<T>, OpenError> {
    let path = root.join(name);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(OpenError::io("read", &path)(error)),
    };
    decode(&bytes).map(Some).map_err(|why| OpenError::Damaged { path, offset: 0, why })
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let rest = bytes.strip_prefix(MAGIC.as_bytes()).ok_or("it does not begin as a controller's file")?;
    let (crc, json) = rest.split_at_checked(CRC_DIGITS).ok_or("it is too short")?;
    let crc = std::str::from_utf8(crc).ok().and_then(|crc| u32::from_str_radix(crc, 16).ok());
    let json = json.strip_prefix(b"\n").ok_or("it is too short")?;
    if crc != Some(crc32c::crc32c(json)) {
        return Err("its checksum is wrong".to_owned());
    }
    serde_json::from_slice(json).map_err(|error| error.to_string())
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests;
