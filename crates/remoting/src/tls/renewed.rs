//! What is made of certificates and keys in files, made anew when the files have changed. Handshakes look, once a second at
//! most; there is no watcher. Connections that are open stay as they are. Any thread.
//!
//! Several files belong together: where one does not fit the others, or cannot be read, what was stays in force, and is
//! looked at again when one of them changes.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fmt, fs};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::TlsError;

/// Between two looks at the files.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Makes it of the files.
type Read<T, const N: usize> = Box<dyn Fn(&[PathBuf; N]) -> Result<T, TlsError> + Send + Sync>;

/// See the module's comment. `N` files, of which some may be unnamed; `T` is what is made of them.
pub(crate) struct Renewed<T, const N: usize> {
    files: [PathBuf; N],
    read: Read<T, N>,
    current: ArcSwap<T>,
    looked: Mutex<Looked<N>>,
}

#[derive(Debug)]
struct Looked<const N: usize> {
    at: Instant,
    found: [Option<Stamp>; N],
}

/// Of a file, what changes with its content: length, time of the last change, inode.
type Stamp = (u64, i64, i64, u64);

impl<T, const N: usize> fmt::Debug for Renewed<T, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Renewed").field("files", &self.files).finish_non_exhaustive()
    }
}

impl<T, const N: usize> Renewed<T, N> {
    /// Reads all files.
    pub(super) fn open(
        files: [PathBuf; N],
        read: impl Fn(&[PathBuf; N]) -> Result<T, TlsError> + Send + Sync + 'static,
    ) -> Result<Self, TlsError> {
        // Before they are read: what changes in between is seen.
        let found = files.each_ref().map(stamp);
        let current = ArcSwap::from_pointee(read(&files)?);
        Ok(Self {
            files,
            read: Box::new(read),
            current,
            looked: Mutex::new(Looked { at: Instant::now(), found }),
        })
    }

    /// What is in force now.
    pub(crate) fn current(&self) -> Arc<T> {
        self.look(LOOK_EVERY);
        self.current.load_full()
    }

    /// Nobody waits for who looks already.
    fn look(&self, every: Duration) {
        let Some(mut looked) = self.looked.try_lock() else { return };
        if looked.at.elapsed() < every {
            return;
        }
        looked.at = Instant::now();
        let found = self.files.each_ref().map(stamp);
        if found == looked.found {
            return;
        }
        looked.found = found;
        match (self.read)(&self.files) {
            Ok(read) => {
                self.current.store(Arc::new(read));
                tracing::info!(files = ?self.files, "the certificate has changed and is used from now on");
            }
            Err(error) => {
                tracing::warn!(%error, "the certificate has changed and cannot be used; the one before stays in force");
            }
        }
    }
}

fn stamp(path: &PathBuf) -> Option<Stamp> {
    // Through links: Kubernetes swaps the one that leads to the files of a secret.
    fs::metadata(path).ok().map(|found| (found.len(), found.mtime(), found.mtime_nsec(), found.ino()))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rustls::sign::CertifiedKey;

    use super::*;
    use crate::tls::{Tls, certified};

    fn open(cert: PathBuf, key: PathBuf) -> Renewed<CertifiedKey, 2> {
        Renewed::open([cert, key], |[cert, key]| certified(cert, key)).unwrap()
    }

    fn leaf(renewed: &Renewed<CertifiedKey, 2>) -> Vec<u8> {
        renewed.look(Duration::ZERO);
        renewed.current.load().cert[0].to_vec()
    }

    #[test]
    fn files_that_changed_are_used_once_they_fit_and_what_cannot_be_used_changes_nothing() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for dir in [&one, &other] {
            Tls::self_signed(dir.path(), &[]).unwrap();
        }
        let files = |dir: &Path| (dir.join("cert.pem"), dir.join("key.pem"));
        let ((cert, key), (other_cert, other_key)) = (files(one.path()), files(other.path()));
        let renewed = open(cert.clone(), key.clone());
        let before = leaf(&renewed);
        for useless in ["", "not PEM"] {
            fs::write(&cert, useless).unwrap();
            assert_eq!(leaf(&renewed), before);
        }
        fs::remove_file(&cert).unwrap();
        assert_eq!(leaf(&renewed), before);
        // The certificate comes first, and does not fit the key yet.
        fs::copy(&other_cert, &cert).unwrap();
        assert_eq!(leaf(&renewed), before);
        fs::copy(&other_key, &key).unwrap();
        let after = leaf(&renewed);
        assert_ne!(after, before);
        assert_eq!(after, leaf(&open(other_cert, other_key)));
    }
}
