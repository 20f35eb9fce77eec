//! How far the log is written, flushed, confirmed and applied: [`Progress`] is moved by the log writer and the
//! maintenance thread and read by everyone.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::Durability;

/// Physical offsets up to which (exclusive) something holds for the whole log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watermarks {
    /// Where the log starts.
    pub log_start: u64,
    /// The kernel has it: survives the end of the process.
    pub written: u64,
    /// The device has it: survives the loss of power. Never more than `written`.
    pub flushed: u64,
    /// It has the durability that was asked for and can be read. Never more than `written`.
    pub confirmed: u64,
}

/// See the module's comment.
#[derive(Debug)]
pub struct Progress {
    log_start: AtomicU64,
    written: AtomicU64,
    flushed: AtomicU64,
    confirmed: AtomicU64,
    /// Up to here entries are readable and projections have seen the records; follows `confirmed` closely.
    applied: AtomicU64,
    /// The kernels of all replicas that count have it. Says nothing of this one.
    replicated_written: AtomicU64,
    /// Their devices have it. Never more than `replicated_written`.
    replicated_flushed: AtomicU64,
}

impl Progress {
    /// Everything up to `end` is flushed and applied.
    pub fn recovered(log_start: u64, end: u64) -> Self {
        let at_end = || AtomicU64::new(end);
        let log_start = AtomicU64::new(log_start);
        let (replicated_written, replicated_flushed) = (AtomicU64::new(0), AtomicU64::new(0));
        Self {
            log_start,
            written: at_end(),
            flushed: at_end(),
            confirmed: at_end(),
            applied: at_end(),
            replicated_written,
            replicated_flushed,
        }
    }

    /// Whether what ends at `end` and was written is as durable as this.
    pub fn reached(&self, durability: Durability, end: u64) -> bool {
        let replicas = match durability {
            Durability::Memory => return true,
            Durability::Disk => u64::MAX,
            Durability::Replicated => self.replicated_written.load(Ordering::Acquire),
            Durability::ReplicatedDisk => self.replicated_flushed.load(Ordering::Acquire),
        };
        self.flushed() >= end && replicas >= end
    }

    /// Loaded so that `flushed <= written` and `confirmed <= written` hold in what is returned.
    pub fn load(&self) -> Watermarks {
        let (flushed, confirmed) = (self.flushed(), self.confirmed());
        Watermarks {
            log_start: self.log_start.load(Ordering::Acquire),
            written: self.written(),
            flushed,
            confirmed,
        }
    }

    /// The kernel has so much.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    /// The device has so much.
    pub fn flushed(&self) -> u64 {
        self.flushed.load(Ordering::Acquire)
    }

    /// So much can be seen.
    pub fn confirmed(&self) -> u64 {
        self.confirmed.load(Ordering::Acquire)
    }

    pub(crate) fn applied(&self) -> u64 {
        self.applied.load(Ordering::Acquire)
    }

    pub(crate) fn advance_log_start(&self, to: u64) {
        advance(&self.log_start, to);
    }

    /// The kernel has so much by now.
    pub fn advance_written(&self, to: u64) {
        advance(&self.written, to);
    }

    /// The device has so much by now.
    pub fn advance_flushed(&self, to: u64) {
        advance(&self.flushed, to);
    }

    /// So much can be seen by now.
    pub fn advance_confirmed(&self, to: u64) {
        advance(&self.confirmed, to);
    }

    pub(crate) fn advance_applied(&self, to: u64) {
        advance(&self.applied, to);
    }

    /// All replicas that count have so much by now.
    pub fn advance_replicated(&self, written: u64, flushed: u64) {
        advance(&self.replicated_written, written);
        advance(&self.replicated_flushed, flushed.min(written));
    }
}

/// Watermarks never go back, whoever moves them. Release: who sees the new value sees the bytes below it.
fn advance(mark: &AtomicU64, to: u64) {
    mark.fetch_max(to, Ordering::AcqRel);
}
