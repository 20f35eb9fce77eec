//! What the last attempts to receive were answered with, by the key of the attempt. Owned by its [`Pop`](super::Pop).
//!
//! A client whose stream broke repeats its call with the same `attempt_id`. In an orderly group the messages it did not
//! get would hold up their message groups until their invisible time ends; instead it gets them once more.

use std::collections::VecDeque;

use super::{Delivery, Position};

/// Attempts remembered; who repeats one does so at once.
const ATTEMPTS_MAX: usize = 256;

/// See the module's comment.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    recent: VecDeque<(u64, Vec<(Position, u32)>)>,
}

impl Attempts {
    /// What the attempt was answered with: place and revision of each message. Known no more then.
    pub(super) fn forget(&mut self, key: u64) -> Vec<(Position, u32)> {
        let at = self.recent.iter().position(|(own, _)| *own == key);
        at.and_then(|at| self.recent.remove(at)).map(|(_, answered)| answered).unwrap_or_default()
    }

    /// The attempt was answered with `deliveries`.
    pub(super) fn remember(&mut self, key: u64, deliveries: &[Delivery]) {
        if deliveries.is_empty() {
            return;
        }
        if self.recent.len() == ATTEMPTS_MAX {
            self.recent.pop_front();
        }
        let answered = deliveries.iter().map(|delivery| (delivery.position, delivery.revision)).collect();
        self.recent.push_back((key, answered));
    }
}
