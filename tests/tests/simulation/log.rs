//! The log of a broker as the simulation has it: records of length one instead of bytes, what a power cut takes of them, and the rules
//! of the log writer (`karman-store`, `writer/publish.rs` and `writer/follow.rs`) over the store's own epochs, marks and fence.

use std::collections::VecDeque;
use std::time::Instant;

use karman_store::cores::{Epochs, Fence, Progress};
use karman_store::{Durability, EpochStart};

use super::world::Bug;

/// A place of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) epoch: u32,
    /// No two records of a run have the same.
    pub(crate) id: u64,
    /// It begins its epoch.
    pub(crate) begins: bool,
    /// Of this and all in front of it: logs with the same one at a place are equal up to there.
    pub(crate) chain: u64,
}

/// Who waits for what ends at `end`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiting {
    pub(crate) end: u64,
    pub(crate) durability: Durability,
    /// The first of an epoch: its master begins when that is answered.
    pub(crate) begins: bool,
    answered: bool,
}

/// What may be shown of what a master sent.
#[derive(Clone, Copy, Debug)]
struct Received {
    shown: u64,
    end: u64,
    confirmed: u64,
}

#[derive(Debug)]
pub(crate) struct Log {
    records: Vec<Record>,
    epochs: Epochs,
    pub(crate) progress: Progress,
    pub(crate) fence: Fence,
    /// How often it was opened: what was under way before is nothing any more.
    pub(crate) opening: u64,
    follows: bool,
    epoch: u32,
    received: Received,
    waiting: VecDeque<Waiting>,
    /// A flush is under way.
    pub(crate) flushing: bool,
    /// Where it ended when it was opened, until a master has said that all of that can be seen.
    pub(crate) recovered: Option<u64>,
    start: Instant,
    bug: Option<Bug>,
}

impl Log {
    pub(crate) fn new(start: Instant, bug: Option<Bug>) -> Self {
        Self {
            records: Vec::new(),
            epochs: Epochs::default(),
            progress: Progress::recovered(0, 0),
            fence: Fence::new(start),
            opening: 0,
            follows: true,
            epoch: 0,
            received: Received { shown: 0, end: 0, confirmed: 0 },
            waiting: VecDeque::new(),
            flushing: false,
            recovered: None,
            start,
            bug,
        }
    }

    pub(crate) fn end(&self) -> u64 {
        self.records.len() as u64
    }

    /// The master in whose epoch it ends.
    pub(crate) fn epoch(&self) -> u32 {
        self.epochs.last().epoch
    }

    pub(crate) fn epochs(&self) -> Vec<EpochStart> {
        self.epochs.list().to_vec()
    }

    pub(crate) fn common_end(&self, others: &[EpochStart], end: u64) -> Option<u64> {
        self.epochs.common_end(self.end(), others, end)
    }

    /// The chain of everything in front of `end`; `None`: it ends before.
    pub(crate) fn chain(&self, end: u64) -> Option<u64> {
        match end.checked_sub(1) {
            None => Some(0),
            Some(last) => self.records.get(last as usize).map(|record| record.chain),
        }
    }

    pub(crate) fn records(&self, from: u64, max: u64) -> &[Record] {
        let upto = self.end().min(from + max);
        &self.records[from as usize..upto as usize]
    }

    /// It follows no master.
    pub(crate) fn leads(&self) -> bool {
        !self.follows
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    fn push(&mut self, id: u64, begins: bool) {
        let chain = self.records.last().map_or(0, |last| last.chain);
        let chain =
            (chain ^ id ^ u64::from(self.epoch) << 40).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
        self.records.push(Record { epoch: self.epoch, id, begins, chain });
        self.progress.advance_written(self.end());
    }

    /// A message, of a master.
    pub(crate) fn append(&mut self, id: u64, durability: Durability) {
        assert!(!self.follows, "a slave writes what its master wrote");
        self.push(id, false);
        self.waiting.push_back(Waiting { end: self.end(), durability, begins: false, answered: false });
    }

    /// Begins an epoch; `number`: a planted bug is that it goes on in the one before.
    pub(crate) fn lead(&mut self, epoch: Option<u32>, id: u64) {
        self.follows = false;
        if let Some(epoch) = epoch {
            self.epoch = epoch;
            let begun = EpochStart { epoch, start: self.end(), mark: id };
            assert!(self.epochs.note(begun), "an earlier master begins");
            self.push(id, true);
        }
        let durability = Durability::Disk;
        self.waiting.push_back(Waiting { end: self.end(), durability, begins: true, answered: false });
    }

    /// What a master sent; `false`: it does not continue this log.
    pub(crate) fn take(&mut self, start: u64, records: &[Record], confirmed: u64) -> bool {
        let mut epoch = self.epoch;
        let fits = |record: &Record| {
            let next = record.epoch == epoch || (record.begins && record.epoch > epoch);
            epoch = record.epoch;
            next
        };
        if start != self.end() || !self.follows || !records.iter().all(fits) {
            return false;
        }
        for record in records {
            self.epochs.note(EpochStart { epoch: record.epoch, start: self.end(), mark: record.id });
            self.records.push(*record);
        }
        self.epoch = epoch;
        self.progress.advance_written(self.end());
        self.received.end = self.end();
        self.received.confirmed = self.received.confirmed.max(confirmed);
        self.recovered = self.recovered.filter(|recovered| *recovered > confirmed);
        self.publish_received(false);
        true
    }

    /// Up to where it shows what others show, or may be shown.
    pub(crate) fn seen(&self) -> u64 {
        let hides = self.recovered.is_some() && self.bug != Some(Bug::ShowsRecovered);
        if hides { 0 } else { self.progress.confirmed() }
    }

    fn reached(&self, durability: Durability, end: u64) -> bool {
        let alone = self.bug == Some(Bug::AnswersBeforeReplication);
        let durability = if alone { durability.min(Durability::Disk) } else { durability };
        self.progress.reached(durability, end)
    }

    fn publish_received(&mut self, open: bool) -> bool {
        let Received { shown, end, confirmed } = self.received;
        let to = match self.follows {
            true => confirmed.min(end),
            false if self.progress.reached(Durability::Disk, end) && open => end,
            false => shown,
        };
        if to > shown {
            self.progress.advance_confirmed(to);
            self.received.shown = to;
        }
        to == end
    }

    /// Answers whom it may; says whom.
    pub(crate) fn publish(&mut self, now: Instant) -> Vec<Waiting> {
        let open = self.fence.is_open_at(now);
        if !self.publish_received(open) || !open || self.follows {
            return Vec::new();
        }
        let mut answered = Vec::new();
        while let Some(first) =
            self.waiting.front().copied().filter(|one| self.reached(one.durability, one.end))
        {
            self.waiting.pop_front();
            self.progress.advance_confirmed(first.end);
            if !first.answered {
                answered.push(first);
            }
        }
        // Who waits for less is answered before it can be seen, if it is a message.
        let flushed = self.progress.flushed();
        for one in
            self.waiting.iter_mut().filter(|one| one.durability == Durability::Disk && one.end <= flushed)
        {
            if !one.answered && !one.begins {
                one.answered = true;
                answered.push(*one);
            }
        }
        answered
    }

    /// Opens it anew, as a slave's. What it finds it flushes.
    pub(crate) fn reopen(&mut self) {
        let end = self.end();
        self.progress = Progress::recovered(0, end);
        self.fence = Fence::new(self.start);
        self.epochs = self.epochs.clone().below(end);
        self.epoch = self.epochs.last().epoch;
        self.received = Received { shown: end, end, confirmed: end };
        (self.opening, self.follows, self.flushing) = (self.opening + 1, true, false);
        self.waiting.clear();
        self.recovered = Some(end);
    }

    /// What lies behind is gone.
    pub(crate) fn cut(&mut self, to: u64) {
        self.records.truncate(to as usize);
        self.reopen();
    }
}
