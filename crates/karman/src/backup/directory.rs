//! The directory of a backup: what is in it, and that only one command writes there. On the main thread; blocks.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use prost::Message;
use rustix::fs::{FlockOperation, flock};

use super::format::{Complete, Manifest, Reader, Writer};
use crate::cli::{Damaged, NotFound};

pub(super) const MANIFEST: &str = "manifest.kbk";
pub(super) const DELAYED: &str = "delayed.kbk";
pub(super) const COMPLETE: &str = "complete.kbk";
/// Half written.
const TEMPORARY: &str = ".tmp";

/// The file of a topic on a broker, by its place in the manifest.
pub(super) fn messages_name(index: usize) -> String {
    format!("{:06}.kbk", index + 1)
}

/// A backup that has begun.
pub(super) struct Begun {
    pub(super) id: u64,
    pub(super) manifest: Manifest,
}

/// A directory that nobody else writes to as long as this lives.
pub(super) struct Directory {
    path: PathBuf,
    _lock: File,
}

impl Directory {
    /// Makes it if it is missing; refuses one in which something else is.
    pub(super) fn make(path: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(path).with_context(|| format!("make {}", path.display()))?;
        let own = Self::locked(path, FlockOperation::NonBlockingLockExclusive)?;
        for entry in fs::read_dir(path).with_context(|| format!("read {}", path.display()))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let is_ours = name.ends_with(".kbk") || name.ends_with(".kbk.tmp");
            anyhow::ensure!(
                is_ours,
                "{} holds {name:?}, which is of no backup: name an empty directory",
                path.display()
            );
        }
        Ok(own)
    }

    /// One that is only read.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        if !path.join(MANIFEST).exists() {
            return Err(NotFound(format!("there is no backup in {}", path.display())).into());
        }
        Self::locked(path, FlockOperation::NonBlockingLockShared)
    }

    fn locked(path: &Path, how: FlockOperation) -> anyhow::Result<Self> {
        let lock = File::open(path).with_context(|| format!("open {}", path.display()))?;
        flock(&lock, how).with_context(|| format!("another command is using {}", path.display()))?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.file(name).exists()
    }

    /// A file that is written under another name until [`Directory::keep`].
    pub(super) fn begin(&self, name: &str, id: u64) -> anyhow::Result<Writer> {
        let path = self.file(&format!("{name}{TEMPORARY}"));
        if path.exists() {
            fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
        Writer::create(&path, id)
    }

    /// It is whole: from now on it has its name, also after a crash.
    pub(super) fn keep(&self, name: &str, writer: Writer) -> anyhow::Result<()> {
        writer.finish()?;
        let renamed = fs::rename(self.file(&format!("{name}{TEMPORARY}")), self.file(name));
        renamed.with_context(|| format!("rename {name}{TEMPORARY}"))?;
        self.sync()
    }

    /// The names in it are on the disk.
    pub(super) fn sync(&self) -> anyhow::Result<()> {
        let synced = File::open(&self.path).and_then(|directory| directory.sync_all());
        synced.with_context(|| format!("flush {}", self.path.display()))
    }

    pub(super) fn begun(&self) -> anyhow::Result<Option<Begun>> {
        if !self.has(MANIFEST) {
            return Ok(None);
        }
        let mut reader = Reader::open(&self.file(MANIFEST), None)?;
        let manifest: Manifest = self.only_frame(&mut reader, MANIFEST)?;
        Ok(Some(Begun { id: reader.id, manifest }))
    }

    pub(super) fn complete(&self, id: u64) -> anyhow::Result<Complete> {
        let mut reader = Reader::open(&self.file(COMPLETE), Some(id))?;
        self.only_frame(&mut reader, COMPLETE)
    }

    fn only_frame<T: Message + Default>(&self, reader: &mut Reader, name: &str) -> anyhow::Result<T> {
        let frame = reader.next()?;
        let rest: Option<T> = reader.next()?;
        match (frame, rest) {
            (Some(frame), None) => Ok(frame),
            _ => Err(Damaged(format!(
                "{} is damaged: it holds another number of frames than one",
                self.file(name).display()
            ))
            .into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_with_something_else_in_it_or_in_use_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("backup");
        let own = Directory::make(&path).unwrap();
        let second = Directory::make(&path).map(drop).unwrap_err();
        assert!(format!("{second:#}").contains("another command is using"), "{second:#}");
        drop(own);
        fs::write(path.join("notes.txt"), b"mine").unwrap();
        let refused = Directory::make(&path).map(drop).unwrap_err().to_string();
        assert!(refused.contains("notes.txt") && refused.contains("empty directory"), "{refused}");
        assert!(Directory::open(&path).map(drop).unwrap_err().is::<NotFound>());
    }
}
