//! What became of held messages lately, so that who asks for the same thing twice gets the same answer. Pure.

use std::collections::{HashMap, VecDeque};

use karman_store::PhysicalOffset;

/// So many are remembered; the oldest are forgotten first. At 10,000 transactions a second that is ten seconds.
pub const OUTCOMES_MAX: usize = 100_000;

/// What became of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A transaction was committed: the message is visible.
    Committed,
    /// A transaction was rolled back.
    RolledBack,
    /// Nobody decided a transaction for too long.
    GivenUp,
    /// A half message was lost, or its topic deleted.
    Dropped,
    /// A delayed message was taken back; its message id.
    Recalled(Box<str>),
}

/// The last [`OUTCOMES_MAX`] outcomes by the ids of the messages.
#[derive(Debug, Default)]
pub struct History {
    outcomes: HashMap<u64, Outcome>,
    /// With the places of the records that said so, which only grow.
    order: VecDeque<(PhysicalOffset, u64)>,
}

impl History {
    /// Remembers what became of a message, as the record at `at` says. A record that is applied once more, after a snapshot
    /// that has it already, changes nothing: what it says may have been forgotten by now.
    pub fn add(&mut self, at: PhysicalOffset, id: u64, outcome: Outcome) {
        let is_old = self.order.back().is_some_and(|(last, _)| at < *last);
        if is_old || self.outcomes.contains_key(&id) {
            return;
        }
        self.outcomes.insert(id, outcome);
        self.order.push_back((at, id));
        if self.order.len() > OUTCOMES_MAX
            && let Some((_, oldest)) = self.order.pop_front()
        {
            self.outcomes.remove(&oldest);
        }
    }

    /// What became of a message, if that is remembered.
    pub fn get(&self, id: u64) -> Option<&Outcome> {
        self.outcomes.get(&id)
    }

    /// All with their places and ids, the oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (PhysicalOffset, u64, &Outcome)> {
        self.order.iter().map(|(at, id)| (*at, *id, &self.outcomes[id]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_forgotten_first_and_applying_a_record_again_changes_nothing() {
        let mut history = History::default();
        let count = OUTCOMES_MAX as u64 + 1;
        let add = |history: &mut History, at| history.add(PhysicalOffset(at), at, Outcome::Committed);
        (0..count).for_each(|at| add(&mut history, at));
        assert_eq!((history.get(0), history.get(1)), (None, Some(&Outcome::Committed)));
        let before: Vec<_> = history.iter().map(|(_, id, _)| id).collect();
        (0..count).for_each(|at| add(&mut history, at));
        assert_eq!(history.iter().map(|(_, id, _)| id).collect::<Vec<_>>(), before);
        assert_eq!(before.len(), OUTCOMES_MAX);
    }
}
