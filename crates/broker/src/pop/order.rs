//! The order of an orderly group in one queue: which message of each message group may be with a consumer. Pure; owned by its
//! [`PopQueue`](super::queue::PopQueue).
//!
//! Everything that is not done stands in the line of its message group, in the order of the queue. Only the front of a
//! line may be delivered; what stands behind it is withheld, whatever the other lines do. Message groups are told apart
//! by a hash: two with the same hash wait for one another, which delays but never disorders.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap, VecDeque};

/// See the module's comment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// Of each line. A tree: a hash table that has just grown takes twice as much for each, and there may be a million.
    fronts: BTreeMap<u32, u64>,
    /// What stands behind them. Most lines have one message, and nothing here.
    behind: HashMap<u32, VecDeque<u64>>,
    /// Some of what is in flight stands in no line: it was read from records, which do not tell message groups.
    pub is_stale: bool,
}

impl Order {
    /// Nothing is known of what is in flight.
    pub fn stale() -> Self {
        Self { is_stale: true, ..Self::default() }
    }

    /// The message at `offset`, behind all that joined before, stands in the line of its message group. True when it is
    /// the front.
    pub fn join(&mut self, message_group: u32, offset: u64) -> bool {
        match self.fronts.entry(message_group) {
            Entry::Occupied(_) => {
                self.behind.entry(message_group).or_default().push_back(offset);
                false
            }
            Entry::Vacant(line) => {
                line.insert(offset);
                true
            }
        }
    }

    /// Whether the message may be delivered. What stands in no line may: it is the last of its message group.
    pub fn is_front(&self, message_group: u32, offset: u64) -> bool {
        self.fronts.get(&message_group).is_none_or(|&front| front == offset)
    }

    /// The message at the front of a line.
    pub fn front_of(&self, message_group: u32) -> Option<u64> {
        self.fronts.get(&message_group).copied()
    }

    /// The message at `offset` is done; the new front of its line, if it was the front. Those that were done out of
    /// their turn are left in the line until they come to its front; `waits` tells them from the others.
    pub fn leave(&mut self, message_group: u32, offset: u64, waits: impl Fn(u64) -> bool) -> Option<u64> {
        let Entry::Occupied(mut front) = self.fronts.entry(message_group) else { return None };
        if *front.get() != offset {
            return None;
        }
        let behind = self.behind.get_mut(&message_group);
        let next = behind.and_then(|line| std::iter::from_fn(|| line.pop_front()).find(|&next| waits(next)));
        if let Some(next) = next {
            front.insert(next);
        } else {
            front.remove();
            self.behind.remove(&message_group);
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_of_a_line_comes_to_the_front_and_other_lines_do_not_care() {
        let mut order = Order::default();
        assert!(order.join(1, 10) && !order.join(1, 11) && order.join(2, 12) && !order.join(1, 13));
        assert!(order.is_front(1, 10) && !order.is_front(1, 11) && order.is_front(2, 12));
        assert_eq!(order.leave(1, 10, |_| true), Some(11));
        assert_eq!(order.leave(2, 12, |_| true), None);
        assert!(order.join(2, 14), "the line of 2 was empty");
        assert_eq!(order.leave(1, 11, |_| true), Some(13));
    }

    #[test]
    fn what_was_done_out_of_its_turn_is_passed_over() {
        let mut order = Order::default();
        for offset in 1..=4 {
            order.join(7, offset);
        }
        assert_eq!(order.leave(7, 3, |_| true), None, "it is not the front");
        assert_eq!(order.leave(7, 1, |offset| offset != 2 && offset != 3), Some(4));
        assert_eq!(order.leave(7, 4, |_| false), None);
        assert!(order.join(7, 5));
    }
}
