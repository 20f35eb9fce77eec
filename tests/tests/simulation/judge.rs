//! What must hold, after every step: the invariants S1, S3, S11 and S12 of `docs/reliability.md`, over what brokers answered.

use std::collections::BTreeMap;

use karman_store::Durability;

use super::log::{Log, Waiting};

/// An invariant that does not hold.
#[derive(Clone, Debug)]
pub(crate) struct Violation {
    pub(crate) invariant: &'static str,
    pub(crate) what: String,
}

impl Violation {
    pub(crate) fn new(invariant: &'static str, what: String) -> Self {
        Self { invariant, what }
    }
}

/// What was promised so far.
#[derive(Debug, Default)]
pub(crate) struct Judge {
    /// The chain of the log at each place, up to the last one that was answered as replicated: settled for ever.
    settled: Vec<u64>,
    /// Who answered in an epoch.
    masters: BTreeMap<u32, usize>,
    pub(crate) answered: [u64; 2],
}

impl Judge {
    /// A broker begins to lead: it must have all that was answered as replicated.
    pub(crate) fn begins(&mut self, broker: usize, epoch: u32, log: &Log) -> Result<(), Violation> {
        self.leads(broker, epoch)?;
        let end = self.settled.len() as u64;
        let promised = self.settled.last().copied().unwrap_or(0);
        match log.chain(end) {
            Some(chain) if chain == promised => Ok(()),
            found => Err(Violation::new(
                "S1",
                format!(
                    "broker {broker} leads in epoch {epoch} without all that was answered as replicated: that ends at {end}, its log \
                     at {} ({})",
                    log.end(),
                    if found.is_none() { "it is too short" } else { "it holds something else" }
                ),
            )),
        }
    }

    fn leads(&mut self, broker: usize, epoch: u32) -> Result<(), Violation> {
        let master = *self.masters.entry(epoch).or_insert(broker);
        let what = || format!("brokers {master} and {broker} lead in epoch {epoch}");
        if master == broker { Ok(()) } else { Err(Violation::new("S11", what())) }
    }

    /// A broker answers OK.
    pub(crate) fn answers(
        &mut self,
        broker: usize,
        epoch: u32,
        log: &Log,
        done: Waiting,
    ) -> Result<(), Violation> {
        self.leads(broker, epoch)?;
        self.answered[usize::from(done.durability >= Durability::Replicated)] += 1;
        if done.durability < Durability::Replicated {
            return Ok(());
        }
        let known = (self.settled.len() as u64).min(done.end);
        let expected = known.checked_sub(1).map_or(0, |last| self.settled[last as usize]);
        if log.chain(known) != Some(expected) {
            let what = format!(
                "broker {broker} answers for {} in epoch {epoch}, in front of {known} others answered for something else",
                done.end
            );
            return Err(Violation::new("S3", what));
        }
        for end in known + 1..=done.end {
            self.settled.push(log.chain(end).expect("what is answered is written"));
        }
        Ok(())
    }

    /// Whether all that was answered as replicated is on the device of this broker.
    pub(crate) fn has_all(&self, log: &Log) -> bool {
        let end = self.settled.len() as u64;
        log.progress.flushed() >= end && log.chain(end) == Some(self.settled.last().copied().unwrap_or(0))
    }

    /// What can be seen at two brokers is the same; only in runs in which everything is answered as replicated: what a class
    /// below has answered may be taken back by a failover, and be seen elsewhere until then.
    pub(crate) fn see(&self, logs: [(usize, &Log); 2]) -> Result<(), Violation> {
        let end = logs[0].1.seen().min(logs[1].1.seen());
        if logs[0].1.chain(end) == logs[1].1.chain(end) {
            return Ok(());
        }
        let (one, other) = (logs[0].0, logs[1].0);
        Err(Violation::new(
            "S12",
            format!("in front of {end} brokers {one} and {other} show different records"),
        ))
    }

    /// Everybody was left alone for long enough.
    pub(crate) fn ends(&self, logs: &[&Log]) -> Result<(), Violation> {
        let settled = self.settled.len() as u64;
        for (id, log) in logs.iter().enumerate() {
            let (end, first) = (log.end(), logs[0]);
            if end != first.end() || log.chain(end) != first.chain(end) {
                let what = format!(
                    "in the end the logs of brokers 0 and {id} are not equal: they end at {} and {end}",
                    first.end()
                );
                return Err(Violation::new("S12", what));
            }
            if log.chain(settled) != self.settled.last().copied().or(Some(0)) {
                return Err(Violation::new(
                    "S1",
                    format!("in the end broker {id} lacks what was answered in front of {settled}"),
                ));
            }
        }
        Ok(())
    }
}
