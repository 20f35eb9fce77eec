//! What a history says of servers: what was done to them, and what was seen of them.

use anyhow::Context as _;

use super::{History, NEVER};
use crate::event::{self, Event};

/// Something that was done to the cluster.
#[derive(Clone, Debug)]
pub struct Injected {
    pub number: u32,
    pub t: u64,
    /// When it was undone; [`NEVER`]: not at all.
    pub healed: u64,
    pub kind: String,
    pub what: String,
    /// Broker set, and milliseconds.
    pub skew: Option<(u32, u64)>,
}

/// A broker that became the master of its set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lead {
    pub broker: u32,
    pub epoch: u32,
    pub id: u32,
    pub t: u64,
}

/// A stretch of the log of broker `id` of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stretch {
    pub broker: u32,
    pub at: u64,
    pub id: u32,
    pub bytes: u64,
    pub sum: u32,
    pub epochs: (u32, u32),
}

impl History {
    /// What was done to the servers, and what was seen of them.
    pub(super) fn add_of_cluster(&mut self, event: &Event<'_>) -> anyhow::Result<()> {
        match event {
            Event::Inject(inject) => {
                let skew = inject.skew.as_ref().map(|(broker, ms)| (self.brokers.number(broker), *ms));
                let (kind, what) = (inject.kind.to_string(), inject.what.to_string());
                let event::Inject { number, t, .. } = *inject;
                self.faults.push(Injected { number, t, healed: NEVER, kind, what, skew });
            }
            Event::Heal(heal) => {
                let fault = self.faults.iter_mut().find(|fault| fault.number == heal.number);
                fault.with_context(|| format!("fault {} was not done", heal.number))?.healed = heal.t;
            }
            Event::Leads(lead) => {
                let broker = self.brokers.number(&lead.broker);
                let event::Leads { t, id, epoch, .. } = *lead;
                self.leads.push(Lead { broker, epoch, id, t });
            }
            Event::Failed(failed) => {
                self.failed.push((failed.t, self.brokers.number(&failed.broker), failed.id));
            }
            Event::Stretch(stretch) => {
                let broker = self.brokers.number(&stretch.broker);
                let event::Stretch { id, at, bytes, sum, epochs, .. } = *stretch;
                self.stretches.push(Stretch { broker, at, id, bytes, sum, epochs });
            }
            Event::Words(words) => {
                let panic = words.panic.as_ref().map(ToString::to_string);
                self.words.push((words.node.to_string(), panic));
            }
            _ => {}
        }
        Ok(())
    }

    /// By how many milliseconds the clock of `broker` may have been wrong at that time.
    pub fn skew(&self, broker: u32, t: u64) -> u64 {
        let at = self.faults.iter().filter(|fault| fault.t <= t && t <= fault.healed);
        at.filter_map(|fault| fault.skew)
            .filter(|skew| skew.0 == broker)
            .map(|skew| skew.1)
            .max()
            .unwrap_or(0)
    }

    /// When messages that lie on `broker` were answered OK, and when that attempt was begun; in order. Of a message
    /// that lies on several nobody knows which of them answered.
    pub fn accepted(&self, broker: u32) -> Vec<(u64, u64)> {
        let mut places: Vec<_> = self.deliveries.iter().map(|one| (one.message, one.place.broker)).collect();
        places.sort_unstable();
        places.dedup();
        let alone = places.chunk_by(|a, b| a.0 == b.0).filter(|one| one.len() == 1 && one[0].1 == broker);
        let messages = alone.map(|one| &self.messages[one[0].0 as usize]);
        let mut accepted: Vec<_> = messages
            .filter(|message| message.stored != NEVER)
            .map(|message| (message.stored, message.attempt))
            .collect();
        accepted.sort_unstable();
        accepted
    }
}
