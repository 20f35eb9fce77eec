//! The table against a model: a list of all that was stored, in the order of the log.
//!
//! `KARMAN_MODEL_CASES=<n>` draws more than 10,000 histories; a history that fails is printed, made as short as it goes.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const GENERATION_MAX: usize = 3;
const WINDOW_MS: u64 = 100;

#[derive(Clone, Debug)]
enum Step {
    /// Somebody sends this id; it is answered after other steps, unless it is known.
    Send {
        hash: u64,
    },
    /// The log writer stores one that is under way.
    Store {
        nth: usize,
    },
    /// It answers one, not always in the order of the log; what was not stored has failed.
    Answer {
        nth: usize,
    },
    /// Something else lies where the id is said to be.
    SendOther {
        hash: u64,
    },
    Pass {
        millis: u64,
    },
    /// The process ends.
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..12_u64).prop_map(|hash| Step::Send { hash }),
        6 => (0..4_usize).prop_map(|nth| Step::Store { nth }),
        6 => (0..4_usize).prop_map(|nth| Step::Answer { nth }),
        1 => (0..12_u64).prop_map(|hash| Step::SendOther { hash }),
        3 => (1..70_u64).prop_map(|millis| Step::Pass { millis }),
        1 => Just(Step::Crash),
    ];
    prop::collection::vec(step, 1..80)
}

struct Model {
    table: Dedupe,
    /// Id and time of all that is in the log; the place is the index.
    log: Vec<(u64, u64)>,
    /// Places of what was answered, in that order.
    answered: Vec<usize>,
    /// Ids, and where they are stored if they are.
    under_way: Vec<(u64, Option<usize>)>,
    now_ms: u64,
}

impl Model {
    /// Where the id was stored last, and whether it must be known: it is young, and few were answered behind it.
    fn stored(&self, hash: u64) -> Option<(u64, bool)> {
        let nth = self.answered.iter().rposition(|&place| self.log[place].0 == hash)?;
        let place = self.answered[nth];
        let is_young = self.log[place].1 + WINDOW_MS >= self.now_ms;
        Some((place as u64, is_young && self.answered.len() - nth <= GENERATION_MAX))
    }

    fn is_under_way(&self, hash: u64) -> bool {
        self.under_way.iter().any(|(id, _)| *id == hash)
    }

    fn look(&self, hash: u64) -> Option<u64> {
        let known = self.table.claim(&[hash], WINDOW_MS).pop().unwrap();
        let stored = self.stored(hash);
        match known {
            Known::Pending(_) => assert!(self.is_under_way(hash), "nobody sends {hash}"),
            Known::Stored(at) => {
                assert!(!self.is_under_way(hash));
                assert_eq!(Some(at.0), stored.map(|(place, _)| place), "not where {hash} was stored last");
                return Some(at.0);
            }
            Known::Unknown => {
                assert!(!self.is_under_way(hash), "{hash} is under way, and sent once more");
                assert!(!stored.is_some_and(|(_, must)| must), "{hash} is stored, and sent once more");
                self.table.release([hash]);
            }
        }
        None
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Send { hash } => {
                if self.look(hash).is_none() && !self.is_under_way(hash) {
                    self.table.claim(&[hash], WINDOW_MS);
                    self.under_way.push((hash, None));
                }
            }
            Step::SendOther { hash } => {
                if let Some(at) = self.look(hash) {
                    assert!(!self.table.claim_anyway(hash, PhysicalOffset(at + 1)), "it is not there");
                    assert!(self.table.claim_anyway(hash, PhysicalOffset(at)));
                    self.under_way.push((hash, None));
                }
            }
            Step::Store { nth } => {
                if let Some((hash, place @ None)) = self.under_way.get_mut(nth) {
                    *place = Some(self.log.len());
                    self.log.push((*hash, self.now_ms));
                }
            }
            Step::Answer { nth } if nth < self.under_way.len() => match self.under_way.remove(nth) {
                (hash, Some(place)) => {
                    self.answered.push(place);
                    self.table.settle(&[(hash, 0)], PhysicalOffset(place as u64), self.log[place].1);
                }
                (hash, None) => self.table.release([hash]),
            },
            Step::Answer { .. } => {}
            Step::Pass { millis } => self.now_ms += millis,
            Step::Crash => {
                self.under_way.clear();
                self.answered = (0..self.log.len()).collect();
                self.table = Dedupe::new(2 * GENERATION_MAX, WINDOW_MS);
                for (place, &(hash, at_ms)) in self.log.iter().enumerate() {
                    if at_ms + WINDOW_MS >= self.now_ms {
                        self.table.restore(hash, PhysicalOffset(place as u64), self.now_ms);
                    }
                }
            }
        }
        let state = self.table.state.lock();
        assert!(state.current.len() + state.former.len() <= 2 * GENERATION_MAX);
        assert_eq!(
            state.pending.keys().copied().collect::<BTreeSet<_>>(),
            self.under_way.iter().map(|(hash, _)| *hash).collect()
        );
    }
}

fn cases() -> u32 {
    std::env::var("KARMAN_MODEL_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(10_000)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    #[test]
    fn what_was_stored_lately_is_known_and_nothing_else_is(steps in steps()) {
        let table = Dedupe::new(2 * GENERATION_MAX, WINDOW_MS);
        let (log, answered, under_way) = Default::default();
        let mut model = Model { table, log, answered, under_way, now_ms: 1_000 };
        for step in steps {
            model.step(step);
            for hash in 0..12 {
                model.look(hash);
            }
        }
    }
}
