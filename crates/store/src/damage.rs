//! What is known to be lost of the log. Found by recovery, by reads and by the scrub; kept in memory, since each start
//! and each scrub finds it again; `karman store repair` makes it part of the log. Any thread.

use std::collections::VecDeque;

use parking_lot::{Mutex, RwLock};

use crate::error::ReadError;
use crate::mend::Mended;

/// More are reported in the log file only.
const KEPT: usize = 1024;
/// So much of what was mended is remembered.
const MENDED_KEPT: usize = 256;

/// A stretch of the log that does not hold what was written there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Physical offset of its first byte.
    pub from: u64,
    /// Physical offset of what is intact again.
    pub to: u64,
    /// How that is known.
    pub reason: String,
}

impl Damage {
    pub(crate) fn report(&self) {
        let Self { from, to, reason } = self;
        tracing::error!(from, to, reason, "the log is damaged here; what lies behind it is not");
    }
}

impl From<Damage> for ReadError {
    fn from(damage: Damage) -> Self {
        Self::Lost { from: damage.from, to: damage.to }
    }
}

/// Damage by where it starts, without repetition.
#[derive(Debug, Default)]
pub(crate) struct Damages {
    list: RwLock<Vec<Damage>>,
    mended: Mutex<VecDeque<Mended>>,
}

impl Damages {
    pub(crate) fn recovered(list: Vec<Damage>) -> Self {
        let damages = Self::default();
        for damage in list {
            damages.insert(damage);
        }
        damages
    }

    /// Adds what was found and reports it, unless it is known. What recovery has found is reported already.
    pub(crate) fn add(&self, damage: Damage) {
        if self.insert(damage.clone()) {
            damage.report();
        }
    }

    /// As [`Damages::add`], of one who began to read at `since_ms` (since 1970): what was mended from then on may have been
    /// read before.
    pub(crate) fn add_read(&self, damage: Damage, since_ms: u64) {
        let is_mended =
            |known: &Mended| known.mended_ms >= since_ms && known.from < damage.to && damage.from < known.to;
        let is_mended = self.mended.lock().iter().any(is_mended);
        if !is_mended {
            self.add(damage);
        }
    }

    fn insert(&self, damage: Damage) -> bool {
        let mut list = self.list.write();
        let at = list.partition_point(|known| known.from < damage.from);
        // Of no length: a place that contradicts another.
        let end = |damage: &Damage| damage.to.max(damage.from + 1);
        let overlaps = |known: &Damage| known.from < end(&damage) && damage.from < end(known);
        let before = at.checked_sub(1).and_then(|before| list.get(before));
        if before.is_some_and(overlaps) || list.get(at).is_some_and(overlaps) {
            return false;
        }
        if list.len() < KEPT {
            list.insert(at, damage);
        }
        true
    }

    /// The stretch that `offset` lies in.
    pub(crate) fn at(&self, offset: u64) -> Option<Damage> {
        let list = self.list.read();
        let behind = list.partition_point(|known| known.from <= offset);
        list.get(behind.checked_sub(1)?).filter(|known| offset < known.to).cloned()
    }

    /// The last stretch that ends at or in front of `offset`.
    pub(crate) fn in_front_of(&self, offset: u64) -> Option<Damage> {
        let list = self.list.read();
        let behind = list.partition_point(|known| known.to <= offset);
        list.get(behind.checked_sub(1)?).cloned()
    }

    /// What lies below `log_start` is no more.
    pub(crate) fn forget_below(&self, log_start: u64) {
        self.list.write().retain(|known| known.to > log_start);
    }

    pub(crate) fn list(&self) -> Vec<Damage> {
        self.list.read().clone()
    }

    /// The front of a stretch, or all of it, is as it was written again.
    pub(crate) fn mend(&self, new: Mended) {
        let Mended { from, to, .. } = new;
        self.remember(new);
        self.list.write().retain_mut(|known| {
            if known.from == from {
                known.from = to;
            }
            known.from < known.to || known.from != to
        });
    }

    fn remember(&self, new: Mended) {
        let mut all = self.mended.lock();
        if let Some(last) = all.back_mut()
            && (last.to, &last.source) == (new.from, &new.source)
        {
            (last.to, last.mended_ms) = (new.to, new.mended_ms);
            return;
        }
        if all.len() == MENDED_KEPT {
            all.pop_front();
        }
        all.push_back(new);
    }

    pub(crate) fn mended(&self) -> Vec<Mended> {
        self.mended.lock().iter().cloned().collect()
    }
}
