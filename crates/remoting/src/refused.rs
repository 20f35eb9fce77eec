//! Which nodes another refused lately, and why: those that are not who they say, or cannot take what they are sent, for the
//! operator who asks what is wrong. They try again several times a second, so who is not heard of for a while is gone, or mended.
//!
//! Whoever can connect can be refused, so all of it is bounded, in number and in length, and strangers have places of their own:
//! however many come, they take none of those who showed that they belong here.
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
/// More are not remembered.
const MAX: usize = 64;
/// More strangers are not.
const STRANGERS_MAX: usize = 16;
/// What is kept of each text.
const TEXT_MAX_CHARS: usize = 512;

/// How far the refused one came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Came {
    /// It has not shown what nodes of this cluster have.
    AsStranger,
    /// It has, or nothing is asked for.
    AsNode,
}

impl Came {
    const fn max(self) -> usize {
        match self {
            Self::AsStranger => STRANGERS_MAX,
            Self::AsNode => MAX,
        }
    }
}

#[derive(Debug)]
struct Refused {
    why: String,
    since: Duration,
    seen: Duration,
    told: Duration,
}

/// By how far they came, who they say they are, and the kind of refusal.
#[derive(Debug, Default)]
pub struct RefusedBrokers(BTreeMap<(Came, String, String), Refused>);

impl RefusedBrokers {
    /// Whether to say so in the log: it is news, or was not told for a minute. What is of one `kind` has one place, whatever
    /// its reason says of numbers.
    pub fn add(&mut self, came: Came, who: &str, kind: &str, why: &str, now: Duration) -> bool {
        self.0.retain(|_, refused| now.saturating_sub(refused.seen) <= KEPT);
        let (key, why) = ((came, bounded(who), bounded(kind)), bounded(why));
        if let Some(known) = self.0.get_mut(&key) {
            known.why = why;
            known.seen = now;
            let is_due = now.saturating_sub(known.told) >= TOLD_EVERY;
            if is_due {
                known.told = now;
            }
            return is_due;
        }
        let has_place = self.0.keys().filter(|(other, ..)| *other == came).count() < came.max();
        if has_place {
            self.0.insert(key, Refused { why, since: now, seen: now, told: now });
        }
        has_place
    }

    /// It is taken now.
    pub fn forget(&mut self, came: Came, who: &str) {
        let who = bounded(who);
        self.0.retain(|(other, name, _), _| (*other, name) != (came, &who));
    }

    /// Those of the last seconds; the newest first. That order stays while they try again and again.
    pub fn lately(&self, now: Duration) -> Vec<RefusedBroker> {
        let lately = self.0.iter().filter(|(_, refused)| now.saturating_sub(refused.seen) <= KEPT);
        let mut lately: Vec<_> = lately.collect();
        lately.sort_by_key(|(_, refused)| std::cmp::Reverse(refused.since));
        lately
            .into_iter()
            .map(|((_, who, _), refused)| RefusedBroker { who: who.clone(), why: refused.why.clone() })
            .collect()
    }
}

/// What others say of themselves goes to terminals and logs.
fn bounded(text: &str) -> String {
    text.chars().take(TEXT_MAX_CHARS).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
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
    pub fn is_news(&self, came: Came, who: &str, kind: &str, why: &str) -> bool {
        self.known.lock().add(came, who, kind, why, self.began.elapsed())
    }

    /// See [`RefusedBrokers::forget`].
    pub fn forget(&self, came: Came, who: &str) {
        self.known.lock().forget(came, who);
    }

    /// See [`RefusedBrokers::lately`].
    pub fn lately(&self) -> Vec<RefusedBroker> {
        self.known.lock().lately(self.began.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::Came::{AsNode, AsStranger};
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_refusal_is_news_once_a_minute_and_forgotten_when_it_is_not_repeated() {
        let mut refused = RefusedBrokers::default();
        assert!(refused.add(AsNode, "b", "one", "at 1", SECOND));
        assert!(!refused.add(AsNode, "b", "one", "at 5", 5 * SECOND));
        assert_eq!(refused.lately(15 * SECOND), [RefusedBroker { who: "b".into(), why: "at 5".into() }]);
        assert_eq!(refused.lately(16 * SECOND), []);
        assert!(refused.add(AsNode, "b", "two", "two", 6 * SECOND), "for another reason");
        assert!(refused.add(AsNode, "b", "two", "two", 17 * SECOND), "it was away");
        let told = (18..140).filter(|&second| refused.add(AsNode, "b", "two", "two", second * SECOND));
        assert_eq!(told.collect::<Vec<_>>(), [77, 137]);
    }

    #[test]
    fn many_are_not_remembered() {
        let mut refused = RefusedBrokers::default();
        let known =
            (0..100).filter(|number| refused.add(AsNode, &number.to_string(), "no", "no", SECOND)).count();
        assert_eq!((known, refused.lately(SECOND).len()), (MAX, MAX));
        assert!(refused.add(AsNode, "late", "no", "no", 12 * SECOND), "the others are gone");
    }

    #[test]
    fn strangers_push_out_nobody_who_belongs_here() {
        let mut refused = RefusedBrokers::default();
        let guesses =
            (0..1000).filter(|n| refused.add(AsStranger, &n.to_string(), "no", "no", SECOND)).count();
        assert_eq!(guesses, STRANGERS_MAX);
        assert!(refused.add(AsNode, "b", "taken", "taken", 2 * SECOND));
        let lately = refused.lately(2 * SECOND);
        assert_eq!(lately.len(), STRANGERS_MAX + 1);
        assert_eq!(lately[0].who, "b", "the newest is the first");
    }

    #[test]
    fn who_is_taken_at_last_is_forgotten_and_nobody_else() {
        let mut refused = RefusedBrokers::default();
        for (came, who, kind) in
            [(AsNode, "a", "one"), (AsNode, "a", "two"), (AsNode, "b", "one"), (AsStranger, "a", "one")]
        {
            refused.add(came, who, kind, kind, SECOND);
        }
        refused.forget(AsNode, "a");
        let left: Vec<_> = refused.lately(SECOND).into_iter().map(|refused| refused.who).collect();
        assert_eq!(left, ["a", "b"], "the stranger, and the other");
    }

    #[test]
    fn what_others_say_of_themselves_is_short_and_has_no_control_characters() {
        let mut refused = RefusedBrokers::default();
        let long = "\u{1b}[2J".repeat(10_000);
        refused.add(AsNode, &long, &long, &long, SECOND);
        assert!(!refused.add(AsNode, &long, &long, &long, SECOND), "it is the same");
        let lately = refused.lately(SECOND);
        for text in [&lately[0].who, &lately[0].why] {
            assert!(text.chars().count() == TEXT_MAX_CHARS && !text.contains(char::is_control), "{text}");
        }
        refused.forget(AsNode, &long);
        assert_eq!(refused.lately(SECOND), []);
    }
}
