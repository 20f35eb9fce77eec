//! Which broker a message goes to: as the application wishes, past brokers that fail or are much slower than others.
//!
//! [`Brokers`] belongs to one producer and is asked on any task. The protocol leaves the queue to the broker: what RocketMQ
//! users know as the choice of a queue is here the choice of its broker.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use karman_remoting::front::home_weight;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::route::{BrokerRoute, Route};

/// A broker is slow when it takes so many times as long as the fastest one ...
const SLOW_FACTOR: u32 = 4;
/// ... and so much longer.
const SLOW_MIN: Duration = Duration::from_millis(20);
/// A slow broker is asked so often whether it still is one, by a message that somebody waits for.
const SLOW_PAUSE: Duration = Duration::from_secs(1);
/// A broker that failed is left alone for so long, twice as long after each further failure ...
const FAILED_PAUSE: Duration = Duration::from_secs(1);
/// ... and at most so long.
const FAILED_PAUSE_MAX: Duration = Duration::from_secs(30);
/// Brokers remembered. More are a cluster of which one forgets what was seen.
const BROKERS_MAX: usize = 4096;

/// Which broker takes a message. Messages with a message group or a lite topic go to the broker that keeps their order,
/// whatever is chosen here.
///
/// Each choice passes by a broker that failed in the last seconds, or that is much slower than the others, while there is
/// another one.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum BrokerChoice {
    /// One queue after the other, so that a broker gets as many messages as it has queues.
    #[default]
    RoundRobin,
    /// Any queue.
    Random,
    /// By the first key of the message: the same key goes to the same broker while the same brokers are there. Messages
    /// without a key go round.
    Key,
    /// Brokers of this zone, one after the other, and those of others only when none of it can be used. A broker
    /// `north@a` is of the zone `north`, the way RocketMQ's machine rooms are told.
    Zone(String),
    /// As a function says.
    Custom(ChooseBroker),
}

impl BrokerChoice {
    /// As `choose` says: it is given the message's topic, its first key, and the names of the brokers, and answers the
    /// place of the wanted one among them; a number that is too high begins anew from the first one.
    ///
    /// ```
    /// use karman_client::BrokerChoice;
    ///
    /// let by_length = BrokerChoice::custom(|wanted| wanted.key.map_or(0, str::len));
    /// ```
    pub fn custom(choose: impl Fn(&Choosing<'_>) -> usize + Send + Sync + 'static) -> Self {
        Self::Custom(ChooseBroker(Arc::new(choose)))
    }
}

/// What a [`BrokerChoice::custom`] decides by.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Choosing<'a> {
    /// The topic of the message.
    pub topic: &'a str,
    /// The first key of the message.
    pub key: Option<&'a str>,
    /// The brokers with a writable queue of the topic, by name, in the same order each time while they are the same.
    pub brokers: &'a [&'a str],
}

/// A function of the application's.
#[derive(Clone)]
pub struct ChooseBroker(Arc<dyn Fn(&Choosing<'_>) -> usize + Send + Sync>);

impl fmt::Debug for ChooseBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ChooseBroker").finish_non_exhaustive()
    }
}

/// What was seen of one broker.
#[derive(Debug, Default)]
struct Seen {
    /// Of late, each call counting for an eighth. Zero before the first.
    latency: Duration,
    /// One after the other.
    failures: u32,
    /// Better others until then.
    avoided_until: Option<Instant>,
}

/// The choice of one producer, with what it has seen.
#[derive(Debug, Default)]
pub(crate) struct Brokers {
    choice: BrokerChoice,
    turn: AtomicUsize,
    seen: Mutex<HashMap<String, Seen>>,
}

impl Brokers {
    pub(crate) fn new(choice: BrokerChoice) -> Self {
        Self { choice, ..Self::default() }
    }

    /// Where a message of `topic` goes that has already been tried at `failed`. `None`: the topic has no writable queue.
    pub(crate) fn choose(
        &self,
        topic: &str,
        key: Option<&str>,
        route: &Route,
        failed: &[Arc<BrokerRoute>],
        now: Instant,
    ) -> Option<Arc<BrokerRoute>> {
        let (queues, brokers) = (route.writable(), route.writers());
        let turn = || self.turn.fetch_add(1, Ordering::Relaxed);
        match (&self.choice, key) {
            (BrokerChoice::RoundRobin, _) | (BrokerChoice::Key, None) => {
                self.first(from(queues, turn()), failed, now)
            }
            (BrokerChoice::Random, _) => {
                self.first(from(queues, rand::random_range(..usize::MAX)), failed, now)
            }
            (BrokerChoice::Key, Some(key)) => {
                let mut ranked: Vec<_> = brokers.iter().collect();
                ranked.sort_by_cached_key(|broker| std::cmp::Reverse(home_weight(&broker.name, key)));
                self.first(ranked.into_iter(), failed, now)
            }
            (BrokerChoice::Zone(zone), _) => {
                let turn = turn();
                let is_here = |broker: &&Arc<BrokerRoute>| {
                    broker.name.split_once('@').is_some_and(|(name, _)| name == zone)
                };
                let here = from(queues, turn).filter(is_here);
                self.sound(here, failed, now).or_else(|| self.first(from(queues, turn), failed, now))
            }
            (BrokerChoice::Custom(choose), _) => {
                let names: Vec<&str> = brokers.iter().map(|broker| broker.name.as_str()).collect();
                let place = choose.0(&Choosing { topic, key, brokers: &names });
                self.first(from(brokers, place), failed, now)
            }
        }
    }

    /// A broker answered, whatever it said.
    pub(crate) fn answered(&self, name: &str, took: Duration, now: Instant) {
        let mut seen = self.seen.lock();
        let best = seen.iter().filter(|(other, seen)| *other != name && seen.failures == 0);
        let best = best.map(|(_, seen)| seen.latency).filter(|latency| !latency.is_zero()).min();
        let own = entry(&mut seen, name);
        // One that was left alone is judged by what it does now.
        let is_first = own.latency.is_zero() || own.avoided_until.is_some();
        own.latency = if is_first { took } else { (own.latency * 7 + took) / 8 };
        own.failures = 0;
        let is_slow = best.is_some_and(|best| {
            own.latency > best.saturating_mul(SLOW_FACTOR) && own.latency > best.saturating_add(SLOW_MIN)
        });
        own.avoided_until = is_slow.then(|| now + SLOW_PAUSE);
    }

    /// A broker did not take a call that another one may take.
    pub(crate) fn failed(&self, name: &str, now: Instant) {
        let mut seen = self.seen.lock();
        let own = entry(&mut seen, name);
        let pause = FAILED_PAUSE.saturating_mul(1 << own.failures.min(5)).min(FAILED_PAUSE_MAX);
        own.failures = own.failures.saturating_add(1);
        own.avoided_until = Some(now + pause);
    }

    /// The first that this call has not failed at and that is sound; else the first that it has not failed at; else the
    /// first.
    fn first<'a>(
        &self,
        mut in_order: impl Iterator<Item = &'a Arc<BrokerRoute>> + Clone,
        failed: &[Arc<BrokerRoute>],
        now: Instant,
    ) -> Option<Arc<BrokerRoute>> {
        let sound = self.sound(in_order.clone(), failed, now);
        sound
            .or_else(|| in_order.clone().find(|broker| !holds(failed, broker)).cloned())
            .or_else(|| in_order.next().cloned())
    }

    fn sound<'a>(
        &self,
        mut in_order: impl Iterator<Item = &'a Arc<BrokerRoute>>,
        failed: &[Arc<BrokerRoute>],
        now: Instant,
    ) -> Option<Arc<BrokerRoute>> {
        let mut seen = self.seen.lock();
        let found = in_order.find(|broker| {
            let until = seen.get(&broker.name).and_then(|seen| seen.avoided_until);
            !holds(failed, broker) && until.is_none_or(|until| until <= now)
        })?;
        // The one that asks whether it is sound again; others wait for what it finds.
        if let Some(until) = seen.get_mut(&found.name).and_then(|seen| seen.avoided_until.as_mut()) {
            *until = now + SLOW_PAUSE;
        }
        Some(found.clone())
    }
}

fn entry<'a>(seen: &'a mut HashMap<String, Seen>, name: &str) -> &'a mut Seen {
    if seen.len() >= BROKERS_MAX && !seen.contains_key(name) {
        seen.clear();
    }
    seen.entry(name.to_owned()).or_default()
}

fn holds(brokers: &[Arc<BrokerRoute>], one: &BrokerRoute) -> bool {
    brokers.iter().any(|broker| broker.name == one.name)
}

/// All of them, beginning with the one whose turn it is.
fn from(brokers: &[Arc<BrokerRoute>], turn: usize) -> impl Iterator<Item = &Arc<BrokerRoute>> + Clone {
    let (before, after) = brokers.split_at(turn.checked_rem(brokers.len()).unwrap_or(0));
    after.iter().chain(before)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use karman_remoting::proto::v2;

    use super::*;

    fn route(names: &[&str]) -> Route {
        let broker =
            |name: &&str| Arc::new(BrokerRoute::new(*name, format!("{name}:1"), v2::Endpoints::default()));
        Route::of_writers(names.iter().map(broker).collect())
    }

    fn chosen(brokers: &Brokers, route: &Route, key: Option<&str>, now: Instant) -> String {
        brokers.choose("t", key, route, &[], now).unwrap().name.clone()
    }

    fn counts(brokers: &Brokers, route: &Route, now: Instant) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        (0..300).for_each(|_| *counts.entry(chosen(brokers, route, None, now)).or_default() += 1);
        counts
    }

    #[test]
    fn brokers_take_turns() {
        let (brokers, route) = (Brokers::default(), route(&["a", "b", "c"]));
        let counts = counts(&brokers, &route, Instant::now());
        assert_eq!(counts.into_values().collect::<Vec<_>>(), [100, 100, 100]);
    }

    #[test]
    fn a_topic_without_queues_has_no_broker() {
        for choice in [BrokerChoice::RoundRobin, BrokerChoice::Random, BrokerChoice::custom(|_| 7)] {
            let brokers = Brokers::new(choice);
            assert!(brokers.choose("t", None, &route(&[]), &[], Instant::now()).is_none());
        }
    }

    #[test]
    fn a_broker_that_failed_is_left_alone_longer_each_time_and_comes_back_by_one_message() {
        let (brokers, route, mut now) = (Brokers::default(), route(&["a", "b"]), Instant::now());
        for pause in [1, 2, 4, 8, 16, 30, 30] {
            brokers.failed("a", now);
            now += Duration::from_secs(pause) - Duration::from_millis(1);
            assert_eq!(counts(&brokers, &route, now), BTreeMap::from([("b".to_owned(), 300)]), "{pause}");
            now += Duration::from_millis(1);
            // One message asks; the others go on past it until it has answered.
            assert_eq!(counts(&brokers, &route, now)["a"], 1, "{pause}");
        }
        brokers.answered("a", Duration::from_millis(1), now);
        assert_eq!(counts(&brokers, &route, now)["a"], 150);
        brokers.failed("a", now);
        brokers.failed("b", now);
        // All failed: one of them it must be.
        assert_eq!(counts(&brokers, &route, now)["a"], 150);
    }

    #[test]
    fn a_broker_is_slow_beside_others_and_by_more_than_a_little() {
        let (brokers, route, now) = (Brokers::default(), route(&["a", "b"]), Instant::now());
        let ms = Duration::from_millis;
        for _ in 0..100 {
            brokers.answered("b", ms(1), now);
            brokers.answered("a", ms(15), now);
        }
        assert_eq!(counts(&brokers, &route, now)["a"], 150, "15 ms are not worth it");
        for _ in 0..100 {
            brokers.answered("a", ms(60), now);
        }
        assert_eq!(counts(&brokers, &route, now).get("a"), None);
        let later = now + SLOW_PAUSE;
        assert_eq!(counts(&brokers, &route, later)["a"], 1);
        brokers.answered("a", ms(2), later);
        assert_eq!(counts(&brokers, &route, later)["a"], 150, "it is as fast as before");
    }

    #[test]
    fn a_key_keeps_its_broker_and_moves_only_with_it() {
        let (brokers, now) = (Brokers::new(BrokerChoice::Key), Instant::now());
        let (three, two) = (route(&["a", "b", "c"]), route(&["a", "b"]));
        let keys: Vec<String> = (0..200).map(|n| format!("order-{n}")).collect();
        let mut used = BTreeMap::<String, usize>::new();
        for key in &keys {
            let home = chosen(&brokers, &three, Some(key), now);
            assert_eq!(home, chosen(&brokers, &three, Some(key), now));
            if home != "c" {
                assert_eq!(home, chosen(&brokers, &two, Some(key), now), "{key} moved without need");
            }
            *used.entry(home).or_default() += 1;
        }
        assert!(used.len() == 3 && used.values().all(|&count| count > 30), "{used:?}");
    }

    #[test]
    fn a_zone_is_left_only_when_nothing_of_it_can_be_used() {
        let brokers = Brokers::new(BrokerChoice::Zone("north".into()));
        let (route, now) = (route(&["north@a", "south@a", "north@b", "plain"]), Instant::now());
        let seen = counts(&brokers, &route, now);
        assert_eq!(seen.keys().collect::<Vec<_>>(), ["north@a", "north@b"]);
        brokers.failed("north@a", now);
        assert_eq!(counts(&brokers, &route, now), BTreeMap::from([("north@b".to_owned(), 300)]));
        brokers.failed("north@b", now);
        assert_eq!(counts(&brokers, &route, now).keys().collect::<Vec<_>>(), ["plain", "south@a"]);
    }

    #[test]
    fn a_function_chooses_among_the_names() {
        let by_key = |wanted: &Choosing<'_>| {
            assert_eq!((wanted.topic, wanted.brokers), ("t", &["a", "b"][..]));
            wanted.key.map_or(0, str::len)
        };
        let (brokers, route, now) =
            (Brokers::new(BrokerChoice::custom(by_key)), route(&["a", "b"]), Instant::now());
        assert_eq!(chosen(&brokers, &route, Some("1"), now), "b");
        assert_eq!(chosen(&brokers, &route, Some("12"), now), "a");
    }
}
