//! Who wrote which part of the log: one entry for each master, in order. Pure; kept by [`crate::commit_log::CommitLog`] under
//! a lock, followed by the log writer and in recovery, and part of each snapshot.
//!
//! A master begins with a record of kind [`crate::RecordKind::Epoch`] that is durable before anybody sees it. So no two
//! masters that know of one another write under the same number. Where nobody elects them two may all the same, and at the same
//! place: the record carries a random mark, and so does its entry. Two logs that have an entry in common are equal up to its end
//! in the shorter of the two. Which is all that is needed to find where they part.

/// What a master wrote begins here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochStart {
    /// Its number; greater than that of the one before.
    pub epoch: u32,
    /// Physical offset of its first record.
    pub start: u64,
    /// No other master has it, of whatever epoch: that of the record with which it began. 0 in front of the first one, and where that
    /// record was lost to damage.
    pub mark: u64,
}

/// The masters of a log, in order; the first entry may stand for a part that was deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Epochs(Vec<EpochStart>);

/// Name of their section in snapshots.
pub(crate) const SECTION: &str = "epochs";
const ENTRY_BYTES: usize = 20;

impl Default for Epochs {
    fn default() -> Self {
        Self(vec![EpochStart { epoch: 0, start: 0, mark: 0 }])
    }
}

impl Epochs {
    /// A record of that epoch lies at `found.start`, behind all that were noted so far. `false`: an earlier master cannot have
    /// written it.
    pub fn note(&mut self, found: EpochStart) -> bool {
        let last = self.last();
        if found.epoch > last.epoch {
            self.0.push(found);
        }
        found.epoch >= last.epoch
    }

    /// The master of what comes next.
    pub fn last(&self) -> EpochStart {
        *self.0.last().expect("there is always one")
    }

    /// All of them.
    pub fn list(&self) -> &[EpochStart] {
        &self.0
    }

    /// Those that had begun when the log ended at `end`.
    pub fn below(mut self, end: u64) -> Self {
        self.0.retain(|entry| entry.start < end);
        if self.0.is_empty() { Self::default() } else { self }
    }

    /// Of what lies in front of `range`, and of what lies behind it.
    pub(crate) fn around(&self, range: std::ops::Range<u64>) -> (u32, u32) {
        let before = self.0.iter().take_while(|entry| entry.start < range.start).last();
        let behind = self.0.iter().take_while(|entry| entry.start <= range.end).last();
        (before.map_or(0, |entry| entry.epoch), behind.map_or(0, |entry| entry.epoch))
    }

    /// Forgets those that ended in front of `log_start`.
    pub(crate) fn forget_below(&mut self, log_start: u64) {
        let ended = self.0.partition_point(|entry| entry.start <= log_start);
        self.0.drain(..ended.saturating_sub(1));
    }

    /// Up to where a log with these masters and one with `others` are the same, when they end at `end` and `others_end`.
    /// `None`: nothing that both still know is.
    pub fn common_end(&self, end: u64, others: &[EpochStart], others_end: u64) -> Option<u64> {
        let common = self.0.iter().rposition(|own| others.contains(own))?;
        let there = others.iter().position(|other| *other == self.0[common])?;
        let ends = |list: &[EpochStart], at: usize, end| list.get(at + 1).map_or(end, |next| next.start);
        Some(ends(&self.0, common, end).min(ends(others, there, others_end)))
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.0.len() * ENTRY_BYTES);
        for EpochStart { epoch, start, mark } in &self.0 {
            out.extend_from_slice(&epoch.to_le_bytes());
            out.extend_from_slice(&start.to_le_bytes());
            out.extend_from_slice(&mark.to_le_bytes());
        }
        out
    }

    /// `None`: it is no such section.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let entry = |bytes: &[u8]| {
            let epoch = u32::from_le_bytes(bytes[..4].try_into().ok()?);
            let start = u64::from_le_bytes(bytes[4..12].try_into().ok()?);
            Some(EpochStart { epoch, start, mark: u64::from_le_bytes(bytes[12..].try_into().ok()?) })
        };
        let whole = !bytes.is_empty() && bytes.len().is_multiple_of(ENTRY_BYTES);
        let list =
            bytes.chunks_exact(ENTRY_BYTES).map(entry).collect::<Option<Vec<_>>>().filter(|_| whole)?;
        let in_order = |pair: &[EpochStart]| pair[0].epoch < pair[1].epoch && pair[0].start <= pair[1].start;
        list.windows(2).all(in_order).then_some(Self(list))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epochs(list: &[(u32, u64)]) -> Epochs {
        Epochs(list.iter().map(|&(epoch, start)| begun(epoch, start)).collect())
    }

    fn begun(epoch: u32, start: u64) -> EpochStart {
        EpochStart { epoch, start, mark: 7 * u64::from(epoch) }
    }

    #[test]
    fn two_logs_part_at_the_end_of_the_newest_epoch_that_both_know() {
        type Log<'a> = (&'a [(u32, u64)], u64);
        let cases: [(Log, Log, Option<u64>); 9] = [
            // The same; one is behind.
            ((&[(0, 0), (1, 100)], 500), (&[(0, 0), (1, 100)], 500), Some(500)),
            ((&[(0, 0), (1, 100)], 500), (&[(0, 0), (1, 100)], 300), Some(300)),
            ((&[(0, 0), (1, 100)], 300), (&[(0, 0), (1, 100)], 500), Some(300)),
            // It missed a master, or wrote on as one that nobody else followed.
            ((&[(0, 0), (1, 100), (2, 400)], 900), (&[(0, 0), (1, 100)], 350), Some(350)),
            ((&[(0, 0), (1, 100), (2, 400)], 900), (&[(0, 0), (1, 100)], 700), Some(400)),
            // Both had masters of their own.
            ((&[(0, 0), (2, 400)], 900), (&[(0, 0), (1, 300)], 700), Some(300)),
            ((&[(0, 0), (1, 100), (3, 150)], 900), (&[(0, 0), (1, 100), (2, 120)], 700), Some(120)),
            // Two masters that wrote nothing but that they began.
            ((&[(0, 0), (1, 100), (2, 164)], 228), (&[(0, 0), (1, 100)], 164), Some(164)),
            // The one begins behind the end of the other.
            ((&[(7, 1000)], 2000), (&[(0, 0), (6, 900)], 950), None),
        ];
        for (own, other, expected) in cases {
            let (a, b) = (epochs(own.0), epochs(other.0));
            assert_eq!(a.common_end(own.1, b.list(), other.1), expected, "{own:?} {other:?}");
            assert_eq!(b.common_end(other.1, a.list(), own.1), expected, "{other:?} {own:?}");
        }
    }

    #[test]
    fn logs_part_where_two_masters_took_the_same_epoch_at_the_same_place() {
        let own = epochs(&[(0, 0), (1, 100), (2, 400)]);
        let mut other = own.clone();
        other.0[2].mark += 1;
        // Whatever came behind it.
        for (end, behind) in [(500, None), (900, Some(begun(3, 900)))] {
            other.0.extend(behind);
            assert_eq!(own.common_end(500, other.list(), end), Some(400));
            assert_eq!(other.common_end(end, own.list(), 500), Some(400));
        }
    }

    #[test]
    fn masters_come_one_after_the_other() {
        let mut log = Epochs::default();
        let mut note = |epoch, start| log.note(begun(epoch, start));
        assert!(note(0, 64) && note(3, 128) && note(3, 192));
        assert!(!note(2, 256), "an earlier master writes behind a later one");
        assert_eq!(log, epochs(&[(0, 0), (3, 128)]));
        assert_eq!(Epochs::decode(&log.encode()), Some(log.clone()));
        log.forget_below(127);
        assert_eq!(log, epochs(&[(0, 0), (3, 128)]));
        log.forget_below(128);
        assert_eq!(log, epochs(&[(3, 128)]));
        for bad in
            [&[][..], &[0; 19], &epochs(&[(1, 5), (1, 9)]).encode(), &epochs(&[(1, 5), (2, 4)]).encode()]
        {
            assert_eq!(Epochs::decode(bad), None);
        }
    }
}
