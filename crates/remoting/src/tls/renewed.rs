//! The certificate of a server, read anew when its files have changed. Handshakes on the data threads look, once a second at
//! most; there is no watcher. Connections that are open stay as they are.
//!
//! Certificate and key are two files: one that does not fit the other, or cannot be read, leaves in force what was, and is
//! looked at again when either of them changes.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::{TlsError, read};

/// Between two looks at the files.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// See the module's comment.
#[derive(Debug)]
pub(super) struct Renewed {
    cert: PathBuf,
    key: PathBuf,
    current: ArcSwap<CertifiedKey>,
    looked: Mutex<Looked>,
}

#[derive(Debug)]
struct Looked {
    at: Instant,
    found: [Option<Stamp>; 2],
}

/// Of a file, what changes with its content: length, time of the last change, inode.
type Stamp = (u64, i64, i64, u64);

impl Renewed {
    /// Reads both files.
    pub(super) fn open(cert: PathBuf, key: PathBuf) -> Result<Self, TlsError> {
        // Before they are read: what changes in between is seen.
        let found = [&cert, &key].map(stamp);
        let current = ArcSwap::from_pointee(read(&cert, &key)?);
        Ok(Self { cert, key, current, looked: Mutex::new(Looked { at: Instant::now(), found }) })
    }

    /// Nobody waits for who looks already.
    fn look(&self, every: Duration) {
        let Some(mut looked) = self.looked.try_lock() else { return };
        if looked.at.elapsed() < every {
            return;
        }
        looked.at = Instant::now();
        let found = [&self.cert, &self.key].map(stamp);
        if found == looked.found {
            return;
        }
        looked.found = found;
        match read(&self.cert, &self.key) {
            Ok(read) => {
                self.current.store(Arc::new(read));
                tracing::info!(cert = %self.cert.display(), "the certificate has changed and is used from now on");
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

impl ResolvesServerCert for Renewed {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.look(LOOK_EVERY);
        Some(self.current.load_full())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::tls::Tls;

    fn leaf(renewed: &Renewed) -> Vec<u8> {
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
        let renewed = Renewed::open(cert.clone(), key.clone()).unwrap();
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
        assert_eq!(after, leaf(&Renewed::open(other_cert, other_key).unwrap()));
    }
}
