//! Slaves that a master does not take, or that give up what it sends, for its log: whoever asks why a set is not whole looks there first.
//! They try again several times a second. Any thread; the time is an argument.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The same is told once in so long.
const TOLD_EVERY: Duration = Duration::from_secs(60);
/// More is not told in that time: whoever can connect can be refused.
const MAX: usize = 64;

/// What was told when: of whom, and what.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<BTreeMap<(String, String), Instant>>);

impl Refusals {
    /// Whether to say now that `what` happened to `who`.
    pub fn is_news(&self, who: &str, what: &str, now: Instant) -> bool {
        let mut told = self.0.lock();
        told.retain(|_, at| now.saturating_duration_since(*at) < TOLD_EVERY);
        let key = (who.to_owned(), what.to_owned());
        let is_news = told.len() < MAX && !told.contains_key(&key);
        if is_news {
            told.insert(key, now);
        }
        is_news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_told_once_a_minute_and_not_without_bound() {
        let (refusals, began) = (Refusals::default(), Instant::now());
        let is_news = |who: &str, what: &str, seconds| {
            refusals.is_news(who, what, began + Duration::from_secs(seconds))
        };
        assert!(is_news("a", "one", 0) && is_news("a", "two", 1) && is_news("b", "one", 1));
        assert!(!is_news("a", "one", 1) && !is_news("a", "two", 59) && !is_news("a", "one", 59));
        assert!(is_news("a", "one", 60) && !is_news("a", "one", 61));
        let told = (0..1000).filter(|number| is_news(&number.to_string(), "one", 200)).count();
        assert_eq!(told, MAX);
        assert!(is_news("late", "one", 260));
    }
}
