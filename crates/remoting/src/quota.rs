//! Quotas: how many messages and bytes a second a topic takes, or a user sends, and how many connections a user has.
//!
//! The core, a bucket, is pure: the time is an argument. Around it [`Sends`] and [`Places`] count for one topic or user; any
//! thread, and each lock is held for a few additions. Whoever has no quota comes by none of them. Why it is so: ADR 0029.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::status::Rejection;

/// Nothing that is sent here comes near it; more would be a mistake in the unit.
pub const RATE_MAX: u64 = 1_000_000_000_000;
/// Names that are told apart in what is shown of refusals.
pub const NAMES_MAX: usize = 1_000;
/// The name of all the others together.
pub const OTHERS: &str = "_others";

const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// A token bucket that holds what one second brings, seen from the other side: how much of it is used up.
///
/// Something is left, or the next is refused: so one that is larger than the whole bucket passes too, and what it took too
/// much is waited for afterwards. In any time t at most rate * (t + 1 s) and the last one come through.
#[derive(Debug, Default)]
struct Meter {
    /// In billionths, so that nothing is lost between two that follow closely.
    used: u128,
    at: Option<Instant>,
}

impl Meter {
    /// What has come back by `now` at `rate` a second; how long to wait until something is left, if nothing is.
    fn look(&mut self, rate: u64, now: Instant) -> Result<(), Duration> {
        let since = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.at = self.at.max(Some(now));
        self.used = self.used.saturating_sub(since.as_nanos() * u128::from(rate));
        let whole = u128::from(rate) * NANOS_PER_SECOND;
        match self.used.checked_sub(whole) {
            None => Ok(()),
            Some(too_much) => {
                let nanos = too_much / u128::from(rate.max(1)) + 1;
                Err(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
            }
        }
    }

    fn take(&mut self, amount: u64) {
        self.used += u128::from(amount) * NANOS_PER_SECOND;
    }
}

/// What may be sent in a second; 0: as much as can be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Messages per second.
    pub messages: u64,
    /// Bytes of encoded messages per second.
    pub bytes: u64,
}

impl Rates {
    /// Nothing is limited.
    pub fn is_unlimited(self) -> bool {
        self == Self::default()
    }

    /// Refuses what can only be a mistake; `whose` is named.
    pub fn check(self, whose: &str) -> Result<(), Rejection> {
        for (value, unit) in [(self.messages, "messages"), (self.bytes, "bytes")] {
            if value > RATE_MAX {
                return Err(Rejection::BadRequest(format!(
                    "the quota of {whose} would be {value} {unit} per second, the limit is {RATE_MAX}; 0 is none"
                )));
            }
        }
        Ok(())
    }
}

/// How often something was refused, since the start of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refusals {
    /// Sends, because of their messages.
    pub messages: u64,
    /// Sends, because of their bytes.
    pub bytes: u64,
    /// Calls, because of the connection they came over.
    pub connections: u64,
}

impl Refusals {
    /// By name, the first [`NAMES_MAX`] of those who were refused something; the rest together.
    pub fn by_name(all: impl Iterator<Item = (String, Self)>) -> Vec<(String, Self)> {
        let mut refused = all.filter(|(_, refusals)| *refusals != Self::default());
        let mut named: Vec<_> = refused.by_ref().take(NAMES_MAX).collect();
        let rest = refused.fold(Self::default(), |sum, (_, more)| Self {
            messages: sum.messages + more.messages,
            bytes: sum.bytes + more.bytes,
            connections: sum.connections + more.connections,
        });
        if rest != Self::default() {
            named.push((OTHERS.to_owned(), rest));
        }
        named
    }

    /// The counts, each with the word of its quota.
    pub fn counts(self) -> [(&'static str, u64); 3] {
        [("messages", self.messages), ("bytes", self.bytes), ("connections", self.connections)]
    }
}

/// Counts the sends of one user, or to one topic.
#[derive(Debug, Default)]
pub struct Sends {
    meters: Mutex<(Meter, Meter)>,
    refused_messages: AtomicU64,
    refused_bytes: AtomicU64,
}

impl Sends {
    /// Counts a send, or refuses it: `whose` quota it is, and `remedy`, how to change it, are in the text. What is refused is
    /// not counted.
    pub fn take(
        &self,
        rates: Rates,
        (messages, bytes): (u64, u64),
        now: Instant,
        whose: impl fmt::Display,
        remedy: impl fmt::Display,
    ) -> Result<(), Rejection> {
        let mut meters = self.meters.lock();
        let (of_messages, of_bytes) = &mut *meters;
        for (rate, unit, meter, refused) in [
            (rates.messages, "messages", &mut *of_messages, &self.refused_messages),
            (rates.bytes, "bytes", &mut *of_bytes, &self.refused_bytes),
        ] {
            let Some(wait) = (rate > 0).then(|| meter.look(rate, now).err()).flatten() else { continue };
            refused.fetch_add(1, Ordering::Relaxed);
            let wait_ms = wait.as_millis() + 1;
            return Err(Rejection::TooManyRequests(format!(
                "{whose} has used up its quota of {rate} {unit} per second; send again in {wait_ms} ms, send less, or raise it: {remedy}"
            )));
        }
        // Of what has no limit nothing is kept: it would be there when it gets one.
        for (rate, meter, amount) in [(rates.messages, of_messages, messages), (rates.bytes, of_bytes, bytes)]
        {
            if rate > 0 {
                meter.take(amount);
            }
        }
        Ok(())
    }

    /// What was refused so far.
    pub fn refusals(&self) -> Refusals {
        Refusals {
            messages: self.refused_messages.load(Ordering::Relaxed),
            bytes: self.refused_bytes.load(Ordering::Relaxed),
            connections: 0,
        }
    }
}

/// Counts the connections of one user.
#[derive(Debug, Default)]
pub struct Places {
    taken: AtomicU32,
    refused: AtomicU64,
}

/// The place of one connection; given back when it is dropped.
#[derive(Debug)]
pub struct Place(Arc<Places>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Place {
    /// Whether it is one of these.
    pub fn is_of(&self, places: &Arc<Places>) -> bool {
        Arc::ptr_eq(&self.0, places)
    }
}

impl Places {
    /// One more, unless there are `max` already; 0: as many as come. They are counted without a limit too: it may get one.
    pub fn take(self: &Arc<Self>, max: u32) -> Option<Place> {
        let place = Place(self.clone());
        let before = self.taken.fetch_add(1, Ordering::Relaxed);
        if max > 0 && before >= max {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(place)
    }

    /// How many were refused so far.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn take(sends: &Sends, rates: Rates, amount: (u64, u64), now: Instant) -> Result<(), Rejection> {
        sends.take(rates, amount, now, "topic \"t\"", "raise it")
    }

    fn text(refused: Result<(), Rejection>) -> String {
        refused.expect_err("it is used up").to_string()
    }

    #[test]
    fn a_second_s_worth_passes_at_once_and_then_what_time_brings() {
        let (sends, start) = (Sends::default(), Instant::now());
        let rates = Rates { messages: 10, bytes: 0 };
        for _ in 0..10 {
            assert_eq!(take(&sends, rates, (1, 1000), start), Ok(()));
        }
        let refused = text(take(&sends, rates, (1, 1000), start));
        assert!(refused.contains("topic \"t\" has used up its quota of 10 messages per second"), "{refused}");
        assert!(refused.contains("send again in 1 ms"), "{refused}");
        assert_eq!(take(&sends, rates, (1, 1), start + Duration::from_millis(1)), Ok(()));
        let refused = text(take(&sends, rates, (1, 1), start + Duration::from_millis(2)));
        assert!(refused.contains("send again in 99 ms"), "{refused}");
        assert_eq!(sends.refusals(), Refusals { messages: 2, ..Refusals::default() });
    }

    #[test]
    fn one_that_is_larger_than_a_second_passes_and_is_waited_for() {
        let (sends, start) = (Sends::default(), Instant::now());
        let rates = Rates { messages: 0, bytes: 1000 };
        assert_eq!(take(&sends, rates, (1, 4000), start), Ok(()));
        let refused = text(take(&sends, rates, (1, 1), start));
        assert!(refused.contains("1000 bytes per second; send again in 3001 ms"), "{refused}");
        assert!(take(&sends, rates, (1, 1), start + Duration::from_millis(2999)).is_err());
        assert_eq!(take(&sends, rates, (1, 1), start + Duration::from_millis(3001)), Ok(()));
        // A higher quota holds at once, and pays back what is owed sooner.
        assert_eq!(take(&sends, rates, (1, 60_000), start + Duration::from_secs(9)), Ok(()));
        let raised = Rates { bytes: 100_000, ..rates };
        assert_eq!(take(&sends, raised, (1, 1), start + Duration::from_secs(9)), Ok(()));
    }

    #[test]
    fn a_send_that_one_quota_refuses_costs_nothing_of_the_other() {
        let (sends, start) = (Sends::default(), Instant::now());
        let rates = Rates { messages: 5, bytes: 10 };
        assert_eq!(take(&sends, rates, (1, 10), start), Ok(()));
        for _ in 0..20 {
            assert!(text(take(&sends, rates, (1, 10), start)).contains("10 bytes per second"));
        }
        for n in 1..5 {
            let later = start + Duration::from_secs(n);
            assert_eq!(take(&sends, Rates { messages: 5, bytes: 10 }, (1, 10), later), Ok(()), "{n}");
        }
    }

    #[test]
    fn connections_are_counted_and_given_back() {
        let places = Arc::new(Places::default());
        let (one, two) = (places.take(2), places.take(2));
        assert!(one.is_some() && two.is_some() && places.take(2).is_none());
        assert!(places.take(0).is_some(), "without a limit");
        drop(one);
        assert!(places.take(2).is_some());
        assert_eq!(places.refused(), 1);
    }

    #[test]
    fn names_that_are_shown_are_bounded() {
        let one = Refusals { messages: 1, ..Refusals::default() };
        let all =
            (0..2 * NAMES_MAX).map(|n| (n.to_string(), if n % 10 == 0 { Refusals::default() } else { one }));
        let shown = Refusals::by_name(all);
        assert_eq!(shown.len(), NAMES_MAX + 1);
        let total: u64 = shown.iter().map(|(_, refusals)| refusals.messages).sum();
        assert_eq!((shown[NAMES_MAX].0.as_str(), total), (OTHERS, 1800));
    }

    proptest! {
        /// Whatever comes, in whatever steps: never more than the rate, one second's burst and the last one.
        #[test]
        fn no_more_than_the_rate_comes_through(
            rate in 1..5_000_u64,
            steps in prop::collection::vec((0..400_u64, 1..9_000_u64), 1..200),
        ) {
            let (sends, start) = (Sends::default(), Instant::now());
            let (mut at, mut passed) = (Duration::ZERO, 0);
            for (wait_ms, bytes) in steps {
                at += Duration::from_millis(wait_ms);
                if take(&sends, Rates { messages: 0, bytes: rate }, (1, bytes), start + at).is_ok() {
                    let allowed = u128::from(rate) * (at.as_millis() + 1000) / 1000;
                    prop_assert!(u128::from(passed) <= allowed, "{passed} before {at:?}");
                    passed += bytes;
                }
            }
        }
    }
}
