//! What became of held messages lately, so that who asks for the same thing twice gets the same answer. Pure.

use std::collections::{HashMap, VecDeque};

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
    order: VecDeque<u64>,
}

impl History {
    /// Remembers what became of a message. Nothing becomes of it later.
    pub fn add(&mut self, id: u64, outcome: Outcome) {
        if self.outcomes.insert(id, outcome).is_some() {
            return;
        }
        self.order.push_back(id);
        if self.order.len() > OUTCOMES_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.outcomes.remove(&oldest);
        }
    }

    /// What became of a message, if that is remembered.
    pub fn get(&self, id: u64) -> Option<&Outcome> {
        self.outcomes.get(&id)
    }

    /// All, the oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Outcome)> {
        self.order.iter().map(|id| (*id, &self.outcomes[id]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_forgotten_first_and_telling_it_twice_changes_nothing() {
        let mut history = History::default();
        let count = OUTCOMES_MAX as u64;
        for id in 0..count {
            history.add(id, Outcome::Committed);
            history.add(id, Outcome::Committed);
        }
        assert!(history.get(0).is_some());
        history.add(count, Outcome::RolledBack);
        assert_eq!((history.get(0), history.get(count)), (None, Some(&Outcome::RolledBack)));
        assert_eq!(history.iter().count(), OUTCOMES_MAX);
    }
}
