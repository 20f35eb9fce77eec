//! Which nodes another refused lately, and why: those that are not who they say, or cannot take what they are sent, for the
//! operator who asks what is wrong. They try again several times a second, so who is not heard of for a while is gone, or mended.
//!
//! [`RefusedBrokers`] is pure, the time is an argument; the controller that leads has it under its own lock. [`Refusals`] is the same
//! with a lock and a clock, for any thread.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::proto::karman::RefusedBroker;

/// How long a refusal is remembered after it was repeated last.
const KEPT: Duration = Duration::from_secs(10);
/// The same is told once in so long.
const TOLD_EVERY: Duration = Duration::from_secs(60);
/// More are not remembered: whoever can connect can be refused.
const MAX: usize = 64;

#[derive(Debug)]
struct Refused {
    why: String,
    seen: Duration,
    told: Duration,
}

/// By who they say they are, and the kind of refusal.
#[derive(Debug, Default)]
pub struct RefusedBrokers(BTreeMap<(String, String), Refused>);

impl RefusedBrokers {
    /// Whether to say so in the log: it is news, or was not told for a minute. What is of one `kind` has one place, whatever
    /// its reason says of numbers.
    pub fn add(&mut self, who: &str, kind: &str, why: &str, now: Duration) -> bool {
        self.0.retain(|_, refused| now.saturating_sub(refused.seen) <= KEPT);
        let key = (who.to_owned(), kind.to_owned());
        if let Some(known) = self.0.get_mut(&key) {
            why.clone_into(&mut known.why);
            known.seen = now;
            let is_due = now.saturating_sub(known.told) >= TOLD_EVERY;
            if is_due {
                known.told = now;
            }
            return is_due;
        }
        let has_place = self.0.len() < MAX;
        if has_place {
            self.0.insert(key, Refused { why: why.to_owned(), seen: now, told: now });
        }
        has_place
    }

    /// Those of the last seconds, by who they are.
    pub fn lately(&self, now: Duration) -> Vec<RefusedBroker> {
        let lately = self.0.iter().filter(|(_, refused)| now.saturating_sub(refused.seen) <= KEPT);
        lately
            .map(|((who, _), refused)| RefusedBroker { who: who.clone(), why: refused.why.clone() })
            .collect()
    }
}

/// See the module's comment.
#[derive(Debug)]
pub struct Refusals {
    began: Instant,
    known: Mutex<RefusedBrokers>,
}

impl Default for Refusals {
    fn default() -> Self {
        Self { began: Instant::now(), known: Mutex::default() }
    }
}

impl Refusals {
    /// See [`RefusedBrokers::add`].
    pub fn is_news(&self, who: &str, kind: &str, why: &str) -> bool {
        self.known.lock().add(who, kind, why, self.began.elapsed())
    }

    /// See [`RefusedBrokers::lately`].
    pub fn lately(&self) -> Vec<RefusedBroker> {
        self.known.lock().lately(self.began.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_refusal_is_news_once_a_minute_and_forgotten_when_it_is_not_repeated() {
        let mut refused = RefusedBrokers::default();
        assert!(refused.add("b", "one", "at 1", SECOND));
        assert!(!refused.add("b", "one", "at 5", 5 * SECOND));
        assert_eq!(refused.lately(15 * SECOND), [RefusedBroker { who: "b".into(), why: "at 5".into() }]);
        assert_eq!(refused.lately(16 * SECOND), []);
        assert!(refused.add("b", "two", "two", 6 * SECOND), "for another reason");
        assert!(refused.add("b", "two", "two", 17 * SECOND), "it was away");
        let told = (18..140).filter(|&second| refused.add("b", "two", "two", second * SECOND));
        assert_eq!(told.collect::<Vec<_>>(), [77, 137]);
    }

    #[test]
    fn many_are_not_remembered() {
        let mut refused = RefusedBrokers::default();
        let known = (0..100).filter(|number| refused.add(&number.to_string(), "no", "no", SECOND)).count();
        assert_eq!((known, refused.lately(SECOND).len()), (MAX, MAX));
        assert!(refused.add("late", "no", "no", 12 * SECOND), "the others are gone");
    }
}
