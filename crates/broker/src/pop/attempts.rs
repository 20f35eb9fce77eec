//! What the last attempts to receive were answered with, by the key of the attempt. Owned by its [`Pop`](super::Pop) or
//! [`LitePop`](crate::lite::pop::LitePop).
//!
//! A client whose stream broke repeats its call with the same `attempt_id`. In an orderly group the messages it did not
//! get would hold up their message groups until their invisible time ends; instead it gets them once more.

use std::collections::VecDeque;

use super::Position;

/// See the module's comment.
#[derive(Debug, Default)]
pub(crate) struct Attempts {
    recent: VecDeque<(u64, Vec<(Position, u32)>)>,
}

impl Attempts {
    /// What the attempt was answered with: place and revision of each message. Known no more then.
    pub(crate) fn forget(&mut self, key: u64) -> Vec<(Position, u32)> {
        let at = self.recent.iter().position(|(own, _)| *own == key);
        at.and_then(|at| self.recent.remove(at)).map(|(_, answered)| answered).unwrap_or_default()
    }

    /// The attempt was answered with this: place and revision of each message. Of `max` attempts the last are known.
    pub(crate) fn remember(&mut self, key: u64, answered: Vec<(Position, u32)>, max: usize) {
        if answered.is_empty() {
            return;
        }
        if self.recent.len() == max {
            self.recent.pop_front();
        }
        self.recent.push_back((key, answered));
    }
}
