//! Who was refused lately, and why: brokers that are not who they say, for the operator who asks what is wrong. What is refused
//! tries again several times a second, so who is not heard of for a while is gone, or mended. Pure; the lock is [`super::lead`]'s.

use std::collections::BTreeMap;
use std::time::Duration;

use karman_remoting::proto::karman::RefusedBroker;

/// How long a refusal is remembered after it was repeated last.
const KEPT: Duration = Duration::from_secs(10);
/// More are not remembered: whoever can connect can be refused.
const MAX: usize = 32;

#[derive(Debug)]
struct Refused {
    why: String,
    seen: Duration,
}

/// By who they say they are.
#[derive(Debug, Default)]
pub(super) struct RefusedBrokers(BTreeMap<String, Refused>);

impl RefusedBrokers {
    /// True: this is news.
    pub(super) fn add(&mut self, who: String, why: &str, now: Duration) -> bool {
        self.0.retain(|_, refused| now.saturating_sub(refused.seen) <= KEPT);
        if let Some(known) = self.0.get_mut(&who).filter(|known| known.why == why) {
            known.seen = now;
            return false;
        }
        let has_place = self.0.len() < MAX || self.0.contains_key(&who);
        if has_place {
            self.0.insert(who, Refused { why: why.to_owned(), seen: now });
        }
        has_place
    }

    pub(super) fn lately(&self, now: Duration) -> Vec<RefusedBroker> {
        let lately = self.0.iter().filter(|(_, refused)| now.saturating_sub(refused.seen) <= KEPT);
        lately.map(|(who, refused)| RefusedBroker { who: who.clone(), why: refused.why.clone() }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_refusal_is_news_once_and_forgotten_when_it_is_not_repeated() {
        let mut refused = RefusedBrokers::default();
        assert!(refused.add("b".into(), "one", SECOND));
        assert!(!refused.add("b".into(), "one", 5 * SECOND));
        assert_eq!(refused.lately(15 * SECOND).len(), 1);
        assert_eq!(refused.lately(16 * SECOND), []);
        assert!(refused.add("b".into(), "two", 6 * SECOND), "for another reason");
        assert!(refused.add("b".into(), "two", 17 * SECOND), "it was away");
    }

    #[test]
    fn many_are_not_remembered() {
        let mut refused = RefusedBrokers::default();
        let known = (0..100).filter(|number| refused.add(number.to_string(), "no", SECOND)).count();
        assert_eq!((known, refused.lately(SECOND).len()), (MAX, MAX));
        assert!(refused.add("late".into(), "no", 12 * SECOND), "the others are gone");
    }
}
