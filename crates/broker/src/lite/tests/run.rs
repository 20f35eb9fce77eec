//! The core and the model through the same steps, in any order.

use std::collections::{BTreeSet, HashSet};
use std::ops::Range;
use std::sync::Arc;

use karman_remoting::line::Line;
use proptest::prelude::*;

use super::model::{Lite, Model};
use super::{ATTEMPTS_MAX, ask, held};
use crate::lite::pop::{Ask, Handed, LitePop, Start};
use crate::lite::subscriptions::Claim;
use crate::pop::queue::RENEWAL_MS;
use crate::pop::{Position, Renewal};
use crate::records::QueueProgress;

const CLIENTS: [&str; 3] = ["a", "b", "c"];
const QUEUES: u32 = 4;

#[derive(Clone, Debug)]
enum Step {
    Store { queue: u32 },
    Subscribe { client: usize, queue: u32, start: Start, claim: Claim },
    Complete { client: usize, queues: BTreeSet<u32> },
    Terminate { client: usize },
    Take { client: usize, max: usize },
    Repeat { client: usize },
    Ack { nth: usize },
    Nack { nth: usize, delay_ms: u64, counts: bool },
    PutBack { nth: usize },
    Pass { millis: u64 },
    Retire { queue: u32, count: u64 },
    Live { alive: bool },
    Gone { queue: u32 },
    Crash,
    Snapshot,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (client, queue, nth) = (|| 0..CLIENTS.len(), || 0..QUEUES, || 0..6_usize);
    let start = prop_oneof![
        6 => Just(Start::Last), 1 => Just(Start::Min), 1 => Just(Start::Max),
        1 => (0..9_u64).prop_map(Start::At), 1 => (0..4_u64).prop_map(Start::Tail),
    ];
    let claim = prop_oneof![4 => Just(Claim::Share), 1 => Just(Claim::Evict), 1 => Just(Claim::Yield)];
    let step = prop_oneof![
        4 => queue().prop_map(|queue| Step::Store { queue }),
        4 => (client(), queue(), start, claim)
            .prop_map(|(client, queue, start, claim)| Step::Subscribe { client, queue, start, claim }),
        1 => (client(), prop::collection::btree_set(queue(), 0..4))
            .prop_map(|(client, queues)| Step::Complete { client, queues }),
        1 => client().prop_map(|client| Step::Terminate { client }),
        6 => (client(), 1..4_usize).prop_map(|(client, max)| Step::Take { client, max }),
        1 => client().prop_map(|client| Step::Repeat { client }),
        4 => nth().prop_map(|nth| Step::Ack { nth }),
        2 => (nth(), 0..300_u64, any::<bool>())
            .prop_map(|(nth, delay_ms, counts)| Step::Nack { nth, delay_ms, counts }),
        1 => nth().prop_map(|nth| Step::PutBack { nth }),
        3 => prop_oneof![4 => 1..150_u64, 1 => Just(RENEWAL_MS)].prop_map(|millis| Step::Pass { millis }),
        1 => (queue(), 1..4_u64).prop_map(|(queue, count)| Step::Retire { queue, count }),
        1 => any::<bool>().prop_map(|alive| Step::Live { alive }),
        1 => queue().prop_map(|queue| Step::Gone { queue }),
        1 => Just(Step::Crash),
        1 => Just(Step::Snapshot),
    ];
    prop::collection::vec(step, 0..90)
}

/// The core and the model side by side, with the log of the core and who holds what.
struct Run {
    pop: LitePop,
    model: Model,
    log: Vec<QueueProgress>,
    ranges: Vec<Range<u64>>,
    now_ms: u64,
    holding: Vec<Handed>,
    /// The last call of each client, by its key.
    calls: Vec<(u64, Vec<Handed>)>,
    keys: u64,
    /// Revisions are above.
    base: u32,
}

impl Run {
    fn new() -> Self {
        Self {
            pop: LitePop::default(),
            model: Model::default(),
            log: Vec::new(),
            ranges: vec![0..0; QUEUES as usize],
            now_ms: 1,
            holding: Vec::new(),
            calls: vec![(0, Vec::new()); CLIENTS.len()],
            keys: 0,
            base: 0,
        }
    }

    fn range(&self) -> impl Fn(u32) -> Range<u64> + use<> {
        let ranges = self.ranges.clone();
        move |queue| ranges[queue as usize].clone()
    }

    fn log(&mut self, queue: u32) {
        self.log.extend(self.pop.record(queue));
        self.model.logs(queue);
    }

    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Store { queue } => {
                self.ranges[queue as usize].end += 1;
                self.pop.arrived(queue);
            }
            Step::Subscribe { client, queue, start, claim } => self.subscribe(client, queue, start, claim)?,
            Step::Complete { client, queues } => {
                self.pop.keep(CLIENTS[client], &queues.iter().copied().collect::<HashSet<_>>());
                self.model.wants.retain(|(own, queue)| *own != client || queues.contains(queue));
                queues
                    .into_iter()
                    .try_for_each(|queue| self.subscribe(client, queue, Start::Last, Claim::Share))?;
            }
            Step::Terminate { client } => {
                self.pop.subscriptions.drop_client(CLIENTS[client]);
                self.calls[client].1.clear();
                self.model.wants.retain(|(own, _)| *own != client);
            }
            Step::Take { client, max } => self.take(client, max)?,
            Step::Repeat { client } => self.repeat(client)?,
            Step::Ack { nth } => {
                if let Some(handed) = self.held_one(nth)? {
                    self.finish(handed.position);
                }
            }
            Step::Nack { nth, delay_ms, counts } => {
                if let Some(handed) = self.held_one(nth)? {
                    let until_ms = self.now_ms + delay_ms;
                    let revision = self.pop.change(&held(&handed), until_ms, counts);
                    let lite = self.model.lites.get_mut(&handed.position.queue_id).unwrap();
                    lite.paused = !counts;
                    (lite.until_ms, lite.handle, lite.renewed_ms) = (until_ms, Some(revision), 0);
                    self.log(handed.position.queue_id);
                    self.holding.push(Handed { revision, visible_at_ms: until_ms, ..handed });
                }
            }
            Step::PutBack { nth } if nth < self.holding.len() => {
                let handed = self.holding.swap_remove(nth);
                let lite = self.model.lites.get_mut(&handed.position.queue_id);
                let is_last = |lite: &&mut Lite| {
                    lite.floor == Some(handed.position.offset) && lite.handle == Some(handed.revision)
                };
                if let Some(lite) = lite.filter(is_last) {
                    self.pop.put_back(handed.position, handed.revision);
                    (lite.until_ms, lite.handle, lite.renewed_ms) = (0, None, 0);
                    lite.paused = true;
                }
            }
            Step::PutBack { .. } => {}
            Step::Pass { millis } => self.now_ms += millis,
            Step::Retire { queue, count } => {
                let range = &mut self.ranges[queue as usize];
                range.start = (range.start + count).min(range.end);
            }
            Step::Live { alive } => self.model.alive = alive,
            Step::Gone { queue } => {
                self.pop.forget(queue);
                // Its number is not used again, so there are no handles for it; here it is.
                self.base += 1000;
                self.holding.retain(|handed| handed.position.queue_id != queue);
                self.log.retain(|progress| progress.queue_id != queue);
                self.model.lites.remove(&queue);
                self.model.logged.remove(&queue);
                self.model.wants.retain(|(_, own)| *own != queue);
            }
            Step::Crash => self.restart(self.log.clone()),
            Step::Snapshot => {
                for queue in self.model.lites.keys().copied().collect::<Vec<_>>() {
                    self.model.logs(queue);
                }
                self.log = self.pop.snapshot();
                // A snapshot may be read over records that it contains already.
                let twice = [self.log.clone(), self.log.clone()].concat();
                self.restart(twice);
            }
        }
        self.tick()?;
        self.check()
    }

    fn subscribe(
        &mut self,
        client: usize,
        queue: u32,
        start: Start,
        claim: Claim,
    ) -> Result<(), TestCaseError> {
        let (name, range) = (Arc::from(CLIENTS[client]), self.range());
        self.pop.subscriptions.synced(&name, self.now_ms);
        let done = self.pop.subscribe(&name, &[(queue, start)], claim, self.base, &range);
        self.pop.recorded(&[queue]);
        let others: Vec<usize> = (0..CLIENTS.len())
            .filter(|other| *other != client && self.model.wants.contains(&(*other, queue)))
            .collect();
        let lost = match claim {
            Claim::Share => vec![],
            Claim::Evict => others,
            Claim::Yield if others.is_empty() => vec![],
            Claim::Yield => vec![client],
        };
        let told: BTreeSet<&str> = done.lost.iter().map(|(client, _)| &**client).collect();
        prop_assert_eq!(told, lost.iter().map(|client| CLIENTS[*client]).collect::<BTreeSet<_>>());
        self.model.wants.retain(|(own, other)| *other != queue || !lost.contains(own));
        if lost.contains(&client) {
            return Ok(());
        }
        self.model.wants.insert((client, queue));
        let known = self.model.lites.get(&queue).and_then(|lite| lite.floor);
        let Range { start: first, end } = range(queue);
        let floor = match start {
            Start::Last => known.unwrap_or(end),
            Start::Min => first,
            Start::Max => end,
            Start::At(offset) => offset.max(first).min(end),
            Start::Tail(count) => known.unwrap_or(end).saturating_sub(count).max(first).min(end),
        };
        if known.is_none() || start != Start::Last {
            self.model.move_to(queue, floor);
            self.log.extend(done.records);
            self.model.logs(queue);
        }
        Ok(())
    }

    fn take(&mut self, client: usize, max: usize) -> Result<(), TestCaseError> {
        self.keys += 1;
        let (range, renew) = (self.range(), client == 0);
        let ask = Ask {
            renewal: renew.then(|| Renewal::of(CLIENTS[client].into(), Line::default(), self.now_ms)),
            attempt_key: Some(self.keys),
            revision_base: self.base,
            ..ask(CLIENTS[client], self.now_ms, max)
        };
        let (handed, more) = self.pop.take(&ask, &range);
        let wanted = self.model.wants.iter().filter(|(own, _)| *own == client).map(|(_, queue)| *queue);
        let there: BTreeSet<u32> =
            wanted.filter(|queue| self.model.is_deliverable(*queue, &range(*queue))).collect();
        prop_assert_eq!((handed.len(), more), (there.len().min(max), false), "what is there: {:?}", there);
        for message in &handed {
            let Position { queue_id, offset } = message.position;
            prop_assert!(there.contains(&queue_id), "{:?} is not to be delivered", message);
            // What is in front was deleted or is done.
            let floor = self.model.lites[&queue_id].floor.unwrap();
            prop_assert_eq!(offset, floor.max(range(queue_id).start));
            if floor < offset {
                self.model.move_to(queue_id, offset);
            }
            self.model.delivers(message, self.now_ms, renew, false);
            prop_assert_eq!(message.attempt, self.model.lites[&queue_id].attempt);
            if message.attempt > 1 {
                self.log(queue_id);
            }
        }
        self.holding.extend(handed.iter().cloned());
        self.calls[client] = (self.keys, handed);
        Ok(())
    }

    /// A client repeats its last call: it gets what nobody has had since.
    fn repeat(&mut self, client: usize) -> Result<(), TestCaseError> {
        let (key, answered) = self.calls[client].clone();
        let is_same = |handed: &&Handed| {
            self.pop.cursor(handed.position.queue_id).is_some_and(|cursor| {
                cursor.floor == handed.position.offset && cursor.revision == handed.revision
            })
        };
        let expected: Vec<Position> = answered.iter().filter(is_same).map(|handed| handed.position).collect();
        let (range, renew) = (self.range(), client == 0);
        let ask = Ask {
            renewal: renew.then(|| Renewal::of(CLIENTS[client].into(), Line::default(), self.now_ms)),
            attempt_key: Some(key),
            revision_base: self.base,
            ..ask(CLIENTS[client], self.now_ms, 0)
        };
        let handed = self.pop.take(&ask, &range).0;
        prop_assert_eq!(handed.iter().map(|handed| handed.position).collect::<Vec<_>>(), expected);
        for message in &handed {
            let before = self.model.lites[&message.position.queue_id].attempt;
            self.model.delivers(message, self.now_ms, renew, true);
            prop_assert_eq!(message.attempt, before);
            self.holding.retain(|held| held.position != message.position);
        }
        self.holding.extend(handed.iter().cloned());
        self.calls[client] = (key, handed);
        Ok(())
    }

    /// One of those that clients hold, if its handle is good; the core and the model must agree about that.
    fn held_one(&mut self, nth: usize) -> Result<Option<Handed>, TestCaseError> {
        if nth >= self.holding.len() {
            return Ok(None);
        }
        let handed = self.holding.swap_remove(nth);
        let alive = self.model.alive;
        let checked = self.pop.check(self.now_ms, &held(&handed), &|_| alive);
        let good = self.model.is_good(&handed, self.now_ms);
        prop_assert_eq!(checked.is_ok(), good, "{:?}: {:?}", handed, checked);
        Ok(good.then_some(handed))
    }

    fn finish(&mut self, position: Position) {
        self.pop.finish(position, self.ranges[position.queue_id as usize].end);
        self.model.move_to(position.queue_id, position.offset + 1);
        self.log(position.queue_id);
    }

    fn tick(&mut self) -> Result<(), TestCaseError> {
        let alive = self.model.alive;
        let dead = self.pop.tick(self.now_ms, ATTEMPTS_MAX, 100, &|_| alive);
        prop_assert_eq!(dead.iter().copied().collect::<BTreeSet<_>>(), self.model.tick(self.now_ms));
        dead.into_iter().for_each(|position| self.finish(position));
        Ok(())
    }

    fn restart(&mut self, log: Vec<QueueProgress>) {
        self.pop = LitePop::default();
        log.iter().for_each(|progress| self.pop.apply(progress));
        self.model.lites = self.model.logged.clone();
        self.model.wants.clear();
        self.holding.clear();
        self.calls.iter_mut().for_each(|call| call.1.clear());
    }

    /// What can be delivered is in the line of everyone who wants it, and nothing wakes for nothing.
    fn check(&self) -> Result<(), TestCaseError> {
        prop_assert_eq!(self.pop.subscriptions.count(), self.model.wants.len());
        for &(client, queue) in &self.model.wants {
            let there = self.model.is_deliverable(queue, &self.ranges[queue as usize]);
            prop_assert!(!there || self.pop.subscriptions.is_in_line(CLIENTS[client], queue), "{queue}");
        }
        let waiting = self.model.lites.values().filter(|lite| lite.until_ms > 0).map(|lite| lite.until_ms);
        prop_assert_eq!(self.pop.next_due_ms(), waiting.min());
        Ok(())
    }

    /// Whoever goes on asking and acknowledging gets all the rest, one behind the other.
    fn drain(&mut self) -> Result<(), TestCaseError> {
        for queue in 0..QUEUES {
            self.subscribe(1, queue, Start::Last, Claim::Share)?;
        }
        self.model.alive = false;
        for _ in 0..2000 {
            self.now_ms += 1000;
            self.tick()?;
            self.take(1, 9)?;
            for handed in std::mem::take(&mut self.holding) {
                if self.model.is_good(&handed, self.now_ms) {
                    self.finish(handed.position);
                }
            }
            if (0..QUEUES).all(|queue| !self.model.has_more(queue, &self.ranges[queue as usize])) {
                return Ok(());
            }
        }
        Err(TestCaseError::fail("something was never delivered"))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12_000))]

    /// What a client gets is exactly what the model says: of each lite topic it wants the next message, unless that is
    /// with somebody; over acknowledgements, refusals, pauses, expiries, deletions, crashes and snapshots.
    #[test]
    fn lite_topics_are_read_as_the_model_says(steps in steps()) {
        let mut run = Run::new();
        for step in steps {
            run.step(step)?;
        }
        run.drain()?;
    }
}
