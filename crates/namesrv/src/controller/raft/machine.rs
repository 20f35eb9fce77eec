//! The state machine under the consensus: [`Sets`], and their snapshots. Owned by the consensus; everybody may read
//! [`Agreed`], which is locked for one command or one look.

use std::io::Cursor;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use openraft::storage::RaftStateMachine;
use openraft::{
    EntryPayload, LogId, OptionalSend, RaftSnapshotBuilder, Snapshot, SnapshotMeta, StorageError,
    StorageIOError, StoredMembership,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::files::{Directory, OpenError};
use super::log::blocking;
use super::{Entry, Peer, Types};
use crate::controller::sets::{Command, Refused, Sets};

const SNAPSHOT: &str = "snapshot";

/// What was agreed on, as far as this controller knows.
#[derive(Debug)]
pub(in crate::controller) struct Agreed {
    pub(in crate::controller) sets: Mutex<Sets>,
    /// Counts the commands that changed something, and snapshots that were taken over.
    pub(in crate::controller) changes: watch::Sender<u64>,
    /// Index of the last entry that was followed.
    pub(in crate::controller) applied: AtomicU64,
    /// Masters that this controller had elected while it led.
    pub(in crate::controller) elections: AtomicU64,
}

impl Agreed {
    fn set_applied(&self, log_id: LogId<u64>) {
        self.applied.store(log_id.index, Ordering::Relaxed);
    }
}

type Meta = SnapshotMeta<u64, Peer>;

/// As it is on disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Kept {
    meta: Meta,
    sets: Sets,
}

impl Kept {
    fn to_snapshot(&self) -> Result<Snapshot<Types>, StorageError<u64>> {
        let json = serde_json::to_vec(&self.sets);
        let json =
            json.map_err(|error| StorageIOError::read_snapshot(Some(self.meta.signature()), &error))?;
        Ok(Snapshot { meta: self.meta.clone(), snapshot: Box::new(Cursor::new(json)) })
    }
}

/// The last snapshot, replaced by newer ones only.
#[derive(Debug)]
struct Shelf {
    directory: Arc<Directory>,
    kept: Mutex<Option<Kept>>,
}

impl Shelf {
    fn put(&self, kept: &Kept) -> Result<(), StorageError<u64>> {
        let mut last = self.kept.lock();
        if last.as_ref().is_some_and(|last| last.meta.last_log_id > kept.meta.last_log_id) {
            return Ok(());
        }
        let written = blocking(|| self.directory.write(SNAPSHOT, kept));
        written.map_err(|error| StorageIOError::write_snapshot(Some(kept.meta.signature()), &error))?;
        *last = Some(kept.clone());
        Ok(())
    }
}

#[derive(Debug)]
pub(super) struct Machine {
    agreed: Arc<Agreed>,
    shelf: Arc<Shelf>,
    applied: Option<LogId<u64>>,
    membership: StoredMembership<u64, Peer>,
}

pub(super) struct Builder {
    shelf: Arc<Shelf>,
    kept: Kept,
}

impl Machine {
    /// As the last snapshot has it.
    pub(super) fn open(directory: Arc<Directory>) -> Result<Self, OpenError> {
        let kept: Option<Kept> = directory.read(SNAPSHOT)?;
        let (meta, sets) = kept.clone().map(|kept| (kept.meta, kept.sets)).unwrap_or_default();
        let agreed = Agreed {
            sets: Mutex::new(sets),
            changes: watch::Sender::new(0),
            applied: AtomicU64::new(meta.last_log_id.map_or(0, |last| last.index)),
            elections: AtomicU64::new(0),
        };
        Ok(Self {
            agreed: Arc::new(agreed),
            shelf: Arc::new(Shelf { directory, kept: Mutex::new(kept) }),
            applied: meta.last_log_id,
            membership: meta.last_membership,
        })
    }

    pub(super) fn agreed(&self) -> Arc<Agreed> {
        self.agreed.clone()
    }

    /// The last entry that it has.
    pub(super) fn applied(&self) -> Option<LogId<u64>> {
        self.applied
    }

    fn follow(&mut self, command: &Command, term: u64) -> Result<(), Refused> {
        let done = self.agreed.sets.lock().apply(command, term);
        if done.is_ok() {
            self.agreed.changes.send_modify(|count| *count += 1);
        }
        done
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotBuilder = Builder;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogId<u64>>, StoredMembership<u64, Peer>), StorageError<u64>> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Result<(), Refused>>, StorageError<u64>>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut answers = Vec::new();
        for entry in entries {
            self.applied = Some(entry.log_id);
            answers.push(match entry.payload {
                EntryPayload::Blank => Ok(()),
                EntryPayload::Normal(command) => self.follow(&command, entry.log_id.leader_id.term),
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(entry.log_id), membership);
                    Ok(())
                }
            });
            self.agreed.set_applied(entry.log_id);
        }
        Ok(answers)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let snapshot_id = self.applied.map_or_else(String::new, |applied| applied.to_string());
        let (last_log_id, last_membership) = (self.applied, self.membership.clone());
        let meta = Meta { last_log_id, last_membership, snapshot_id };
        Builder { shelf: self.shelf.clone(), kept: Kept { meta, sets: self.agreed.sets.lock().clone() } }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError<u64>> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &Meta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError<u64>> {
        let sets: Sets = serde_json::from_slice(snapshot.get_ref())
            .map_err(|error| StorageIOError::read_snapshot(Some(meta.signature()), &error))?;
        self.shelf.put(&Kept { meta: meta.clone(), sets: sets.clone() })?;
        *self.agreed.sets.lock() = sets;
        (self.applied, self.membership) = (meta.last_log_id, meta.last_membership.clone());
        self.applied.into_iter().for_each(|applied| self.agreed.set_applied(applied));
        self.agreed.changes.send_modify(|count| *count += 1);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, StorageError<u64>> {
        let kept = self.shelf.kept.lock().clone();
        kept.map(|kept| kept.to_snapshot()).transpose()
    }
}

impl RaftSnapshotBuilder<Types> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, StorageError<u64>> {
        self.shelf.put(&self.kept)?;
        self.kept.to_snapshot()
    }
}
