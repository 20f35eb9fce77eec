//! What verifying a store says: the same for a running and for a stopped one. Plain data.

use std::fmt;

use crate::damage::Damage;

/// How far verifying has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the log and of index files that were read.
    pub verified_bytes: u64,
    /// How many there are.
    pub total_bytes: u64,
}

/// The state of an index file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IndexState {
    /// There is none: the segment is the last one, or a start will write it.
    None,
    /// All its checksums are right, and it leads to every record.
    Sound,
    /// Why it has to be built anew, which happens by itself.
    Damaged(String),
}

/// What a segment holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentReport {
    /// Physical offset of its first byte.
    pub base: u64,
    /// Its size.
    pub length_bytes: u64,
    /// Intact ones.
    pub records: u64,
    /// What a repair has given up earlier.
    pub given_up_bytes: u64,
    /// Of its first and last record, in milliseconds since 1970.
    pub store_times_ms: Option<(u64, u64)>,
    /// Its index file.
    pub index: IndexState,
    /// What is not as it was written.
    pub damage: Vec<Damage>,
}

/// How bad a [`Finding`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// As it may be after a crash; the next start deals with it by itself.
    Note,
    /// Something was lost, or is not as it was written.
    Problem,
    /// The store does not open like this.
    StopsStart,
}

/// Something besides damaged records, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What was found, and where.
    pub what: String,
    /// What to do; empty for a note.
    pub remedy: String,
}

impl Finding {
    pub(crate) fn note(what: String) -> Self {
        Self { severity: Severity::Note, what, remedy: String::new() }
    }

    pub(crate) fn problem(what: String, remedy: impl Into<String>) -> Self {
        Self { severity: Severity::Problem, what, remedy: remedy.into() }
    }

    pub(crate) fn stops_start(what: String, remedy: impl Into<String>) -> Self {
        Self { severity: Severity::StopsStart, what, remedy: remedy.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if self.remedy.is_empty() { Ok(()) } else { write!(f, "; {}", self.remedy) }
    }
}

/// The result of verifying a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// In order.
    pub segments: Vec<SegmentReport>,
    /// Everything that is not about a single record.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Stretches of the log that are not as they were written, in order.
    pub fn damage(&self) -> impl Iterator<Item = &Damage> {
        self.segments.iter().flat_map(|segment| &segment.damage)
    }

    /// Nothing is lost and nothing needs a repair.
    pub fn is_sound(&self) -> bool {
        let is_note = |finding: &Finding| finding.severity == Severity::Note;
        let is_index_sound = |segment: &SegmentReport| !matches!(segment.index, IndexState::Damaged(_));
        self.damage().next().is_none()
            && self.findings.iter().all(is_note)
            && self.segments.iter().all(is_index_sound)
    }
}
