//! What may go, what must go, and when no more is taken in: rules only, no clock and no files. The maintenance thread asks
//! about the oldest segment, and again about the next one when that is gone (`cleanup.rs`).
//!
//! Names, units and defaults are RocketMQ's; `docs/adr/0011-retention.md` says where the rules differ.

use std::time::Duration;

use crate::error::{AppendError, OpenError};

/// How long and how much of the log is kept. Nothing that a start still needs goes, whatever this says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retention {
    /// A segment has expired when its last record is older than this, unless one of its queues is kept for longer.
    /// `fileReservedTime`; default: 72 h.
    pub reserved: Duration,
    /// The hours of the day, local time, in which expired segments go; 0 to 23. `deleteWhen`; default: 4.
    pub delete_hours: Vec<u8>,
    /// When the segments take more than this, the oldest go, expired or not; the one that is written and the one behind
    /// it count and stay. Default: no limit.
    pub size_limit_bytes: Option<u64>,
    /// When more of the file system is used, expired segments go at any hour. `diskMaxUsedSpaceRatio`; default: 75.
    pub max_used_percent: u8,
    /// When more of the file system is used, the oldest go, expired or not. `diskSpaceCleanForciblyRatio`; default: 85.
    pub clean_forcibly_percent: u8,
    /// When more of the file system is used, no messages are taken in. `diskSpaceWarningLevelRatio`; default: 90.
    pub warning_percent: u8,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            reserved: Duration::from_secs(72 * 3600),
            delete_hours: vec![4],
            size_limit_bytes: None,
            max_used_percent: 75,
            clean_forcibly_percent: 85,
            warning_percent: 90,
        }
    }
}

impl Retention {
    pub(crate) fn check(&self, segment_size_bytes: u64) -> Result<(), OpenError> {
        let refuse = |key, value: String, allowed| Err(OpenError::Config { key, value, allowed });
        if self.delete_hours.iter().any(|hour| *hour > 23) {
            return refuse(
                "retention.delete_hours",
                format!("{:?}", self.delete_hours),
                "hours from 0 to 23",
            );
        }
        if let Some(limit) = self.size_limit_bytes.filter(|limit| *limit < 3 * segment_size_bytes) {
            let allowed = "at least three segments: one written, one behind it, one to be read";
            return refuse("retention.size_limit_bytes", limit.to_string(), allowed);
        }
        let ladder = [self.max_used_percent, self.clean_forcibly_percent, self.warning_percent];
        if ladder[0] == 0 || ladder[2] > 100 || !ladder.is_sorted() {
            return refuse(
                "retention.max_used_percent, clean_forcibly_percent and warning_percent",
                format!("{ladder:?}"),
                "1 to 100, none below the one in front of it",
            );
        }
        Ok(())
    }
}

/// How much of a file system is used, as `df` counts it: what is kept for root is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Space {
    pub(crate) used_bytes: u64,
    pub(crate) available_bytes: u64,
}

impl Space {
    fn total(self) -> u128 {
        u128::from(self.used_bytes) + u128::from(self.available_bytes)
    }

    fn is_used_over(self, percent: u8) -> bool {
        u128::from(self.used_bytes) * 100 > self.total() * u128::from(percent)
    }

    /// Rounded up, so that it is over a limit exactly when the exact figure is.
    pub(crate) fn used_percent(self) -> u8 {
        let percent = (u128::from(self.used_bytes) * 100).div_ceil(self.total().max(1));
        u8::try_from(percent).expect("a part is at most 100 % of the whole")
    }

    /// What it will be when `bytes` have been given back.
    pub(crate) fn with_freed(self, bytes: u64) -> Self {
        let bytes = bytes.min(self.used_bytes);
        Self {
            used_bytes: self.used_bytes - bytes,
            available_bytes: self.available_bytes.saturating_add(bytes),
        }
    }
}

/// The oldest segment there is, which is filled and has its index.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Oldest {
    /// Physical offset behind it.
    pub(crate) end: u64,
    pub(crate) last_store_time_ms: u64,
    /// The longest time for which one of the queues in it is kept.
    pub(crate) reserved: Duration,
}

/// What the decision depends on besides the segment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Situation {
    pub(crate) now_ms: u64,
    /// Of the day, local time.
    pub(crate) hour: u8,
    /// Length of all segments, with the one behind that is written, made or not.
    pub(crate) log_bytes: u64,
    pub(crate) space: Space,
    /// What lies below is contained in both snapshots that are kept: if the newest turns out bad, the log from the
    /// other one on is still there.
    pub(crate) covered: u64,
}

/// Why a segment goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// It has expired and it is the hour for that.
    Expired,
    /// It has expired and the disk is used beyond the first rung.
    ExpiredDiskUsed,
    SizeLimit,
    /// The disk is used beyond the second rung.
    DiskUsed,
}

/// What becomes of the oldest segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Stays,
    /// It would go, but a start may still need it until there is another snapshot.
    AwaitsSnapshot(Reason),
    Goes(Reason),
}

/// Whether the oldest segment goes now.
pub(crate) fn judge(rules: &Retention, situation: &Situation, oldest: &Oldest) -> Verdict {
    let Some(reason) = reason(rules, situation, oldest) else { return Verdict::Stays };
    if oldest.end <= situation.covered { Verdict::Goes(reason) } else { Verdict::AwaitsSnapshot(reason) }
}

fn reason(rules: &Retention, situation: &Situation, oldest: &Oldest) -> Option<Reason> {
    let age_ms = situation.now_ms.saturating_sub(oldest.last_store_time_ms);
    if u128::from(age_ms) >= oldest.reserved.as_millis() {
        if rules.delete_hours.contains(&situation.hour) {
            return Some(Reason::Expired);
        }
        if situation.space.is_used_over(rules.max_used_percent) {
            return Some(Reason::ExpiredDiskUsed);
        }
    }
    if rules.size_limit_bytes.is_some_and(|limit| situation.log_bytes > limit) {
        return Some(Reason::SizeLimit);
    }
    situation.space.is_used_over(rules.clean_forcibly_percent).then_some(Reason::DiskUsed)
}

/// Why no messages are taken in, if that is so. What consumers and operators record is small and goes on.
pub(crate) fn refusal(rules: &Retention, space: Space) -> Option<AppendError> {
    let (used_percent, limit_percent) = (space.used_percent(), rules.warning_percent);
    space.is_used_over(limit_percent).then_some(AppendError::DiskUsed { used_percent, limit_percent })
}

#[cfg(test)]
mod tests;
