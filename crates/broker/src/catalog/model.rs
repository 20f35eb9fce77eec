//! Topics, groups and lite topics against a model: what the log's records say, one behind the other.
//!
//! `KARMAN_MODEL_CASES=<n>` draws more than 10,000 histories; a history that fails is printed, made as short as it goes.

use std::collections::{BTreeMap, BTreeSet};

use karman_store::{PhysicalOffset, QueueOffset};
use proptest::prelude::*;

use super::*;
use crate::catalog_writer::topic_named;
use crate::lite::topics::LiteTopics;
use crate::records::{LiteTopicRecord, LiteTopicsGone, LiteTopicsRecord};

#[derive(Clone, Debug)]
enum Step {
    /// A topic is made, or has new settings.
    Topic {
        name: u8,
        ttl_seconds: u64,
    },
    Delete {
        name: u8,
    },
    Group {
        name: u8,
        suspended: bool,
    },
    DeleteGroup {
        name: u8,
    },
    /// A lite topic of a parent is made.
    Lite {
        parent: u8,
        name: u8,
    },
    LiteGone {
        parent: u8,
        name: u8,
    },
    /// Everything is made anew from the records.
    Crash,
    /// The same from a snapshot, which may contain some of the records already that are read behind it.
    Snapshot {
        again: usize,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..3_u8, 0..4_u64).prop_map(|(name, ttl_seconds)| Step::Topic { name, ttl_seconds }),
        2 => (0..3_u8).prop_map(|name| Step::Delete { name }),
        2 => (0..2_u8, any::<bool>()).prop_map(|(name, suspended)| Step::Group { name, suspended }),
        1 => (0..2_u8).prop_map(|name| Step::DeleteGroup { name }),
        4 => (0..3_u8, 0..3_u8).prop_map(|(parent, name)| Step::Lite { parent, name }),
        2 => (0..3_u8, 0..3_u8).prop_map(|(parent, name)| Step::LiteGone { parent, name }),
        1 => Just(Step::Crash),
        2 => (0..8_usize).prop_map(|again| Step::Snapshot { again }),
    ];
    prop::collection::vec(step, 1..40)
}

/// The projections, beside what they are to say.
#[derive(Default)]
struct Run {
    parts: Parts,
    log: Vec<Change>,
    topics: BTreeMap<u8, TopicRecord>,
    groups: BTreeMap<u8, GroupRecord>,
    /// By number of the parent, and name.
    lites: BTreeMap<(u32, u8), u32>,
    /// Numbers of topics, groups and queues that are or were in use.
    used: (BTreeSet<u32>, BTreeSet<u32>, BTreeSet<u32>),
}

struct Parts {
    catalog: Arc<Catalog>,
    lites: LiteTopics,
}

impl Default for Parts {
    fn default() -> Self {
        let catalog = Arc::new(Catalog::default());
        Self { lites: LiteTopics::new(catalog.clone()), catalog }
    }
}

impl Parts {
    fn apply(&self, change: &Change) {
        let metadata = Metadata { change: Some(change.clone()) };
        let record = Record {
            kind: RecordKind::Metadata,
            epoch: 0,
            physical_offset: PhysicalOffset(0),
            store_time_ms: 0,
            queue: None,
            queue_offset: QueueOffset(0),
            tag_hash: 0,
            mark: 0,
            payload: metadata.encode_to_vec().into(),
        };
        self.catalog.apply(&record);
        self.lites.apply(&record);
    }

    /// As a start makes them.
    fn started(snapshot: Option<&Self>, records: &[Change]) -> Self {
        let parts = Self::default();
        if let Some(saved) = snapshot {
            parts.catalog.restore(&saved.catalog.snapshot()).unwrap();
            parts.lites.restore(&saved.lites.snapshot()).unwrap();
        }
        records.iter().for_each(|record| parts.apply(record));
        parts.catalog.reserve_queues(parts.lites.queue_count());
        parts
    }
}

impl Run {
    fn step(&mut self, step: &Step) {
        let catalog = self.parts.catalog.clone();
        match *step {
            Step::Topic { name, ttl_seconds } => {
                let config = v1::TopicConfig { ttl_seconds, ..topic_named(&format!("t{name}"), 2) };
                let config = v1::TopicConfig { message_type: MessageType::Lite.into(), ..config };
                let record = match self.topics.get(&name) {
                    Some(known) => TopicRecord { config, ..known.clone() },
                    None => catalog.next_topic(config).unwrap(),
                };
                if self.topics.insert(name, record.clone()).is_none() {
                    assert!(self.used.0.insert(record.number), "{record:?}");
                    assert!(record.queues.iter().all(|queue| self.used.2.insert(*queue)), "{record:?}");
                }
                self.write(Change::Topic(record));
            }
            Step::Delete { name } => {
                let Some(record) = self.topics.remove(&name) else { return };
                self.lites.retain(|(parent, _), _| *parent != record.number);
                self.write(Change::TopicDeleted(record.number));
            }
            Step::Group { name, suspended } => {
                let config = v1::GroupConfig { name: format!("g{name}"), suspended, ..Default::default() };
                let record = match self.groups.get(&name) {
                    Some(known) => GroupRecord { config, ..known.clone() },
                    None => catalog.next_group(config),
                };
                if self.groups.insert(name, record.clone()).is_none() {
                    assert!(self.used.1.insert(record.number), "{record:?}");
                }
                self.write(Change::Group(record));
            }
            Step::DeleteGroup { name } => {
                let Some(record) = self.groups.remove(&name) else { return };
                self.write(Change::GroupDeleted(record.number));
            }
            Step::Lite { parent, name } => {
                let Some(number) = self.topics.get(&parent).map(|parent| parent.number) else { return };
                if self.lites.contains_key(&(number, name)) {
                    return;
                }
                let queue = catalog.take_queues(1).unwrap().start;
                assert!(self.used.2.insert(queue));
                self.lites.insert((number, name), queue);
                let made = vec![LiteTopicRecord { topic: number, name: format!("l{name}"), queue }];
                self.write(Change::LiteTopics(LiteTopicsRecord { made }));
            }
            Step::LiteGone { parent, name } => {
                let Some(number) = self.topics.get(&parent).map(|parent| parent.number) else { return };
                let Some(queue) = self.lites.remove(&(number, name)) else { return };
                self.write(Change::LiteTopicsGone(LiteTopicsGone { queues: vec![queue] }));
            }
            Step::Crash => self.parts = Parts::started(None, &self.log),
            Step::Snapshot { again } => {
                let from = self.log.len().saturating_sub(again);
                self.parts = Parts::started(Some(&self.parts), &self.log[from..]);
            }
        }
    }

    fn write(&mut self, change: Change) {
        self.parts.apply(&change);
        self.log.push(change);
    }

    fn check(&self) {
        let Parts { catalog, lites } = &self.parts;
        assert_eq!(catalog.topics().len(), self.topics.len());
        for name in 0..3 {
            let there = catalog.topic(&format!("t{name}")).map(|topic| topic.record());
            assert_eq!(there.as_ref(), self.topics.get(&name), "topic {name}");
            if let Some(record) = there {
                let numbered = catalog.topic_numbered(record.number).map(|topic| topic.record());
                assert_eq!(numbered.as_ref(), Some(&record));
                let owner = |queue: &u32| catalog.owner_of(QueueNumber(*queue)).map(|topic| topic.number);
                assert!(record.queues.iter().all(|queue| owner(queue) == Some(record.number)));
            }
        }
        assert_eq!(catalog.groups().len(), self.groups.len());
        for name in 0..2 {
            let there = catalog.group(&format!("g{name}"));
            assert_eq!(there.as_deref(), self.groups.get(&name), "group {name}");
        }
        assert_eq!(lites.count(), self.lites.len());
        for (&(parent, name), &queue) in &self.lites {
            let named = lites.named(parent, &format!("l{name}")).map(|lite| lite.queue.0);
            assert_eq!(named, Some(queue), "lite topic {name} of {parent}");
            let owner = lites.owner_of(QueueNumber(queue)).map(|lite| lite.topic.number);
            assert_eq!(owner, Some(parent));
        }
        let numbers: BTreeSet<u32> = self.topics.values().map(|topic| topic.number).collect();
        let count: usize = numbers.iter().map(|number| lites.count_of(*number)).sum();
        assert_eq!(count, self.lites.len(), "and no other names");
    }
}

fn cases() -> u32 {
    std::env::var("KARMAN_MODEL_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(10_000)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_there_is_follows_from_the_records(steps in steps()) {
        let mut run = Run::default();
        for step in steps {
            run.step(&step);
            run.check();
        }
    }
}
