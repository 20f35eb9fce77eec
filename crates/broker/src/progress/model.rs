//! Which groups have come how far with which topics, against a model: what the log's records say, one behind the other. What
//! a row is made of has a model of its own ([`crate::pop`]).
//!
//! `KARMAN_MODEL_CASES=<n>` draws more than 10,000 histories; a history that fails is printed, made as short as it goes.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use karman_remoting::proto::karman as v1;
use karman_store::{PhysicalOffset, QueueOffset};
use proptest::prelude::*;

use super::*;
use crate::catalog_writer::topic_named;
use crate::pop::MessageState;

/// Nothing happens at or behind this offset.
const END: u64 = 24;

/// A group, a topic, and a client of a broadcasting group.
type Who = (u8, u8, Option<u8>);

#[derive(Clone, Debug)]
enum Step {
    Begin(Who),
    /// Messages are done: the first, and how many.
    Done(Who, u64, u64),
    Reset(Who, u64),
    End(Who),
    /// A message has become a dead letter.
    Buried(u8, u8, u64),
    /// A topic is deleted, and another of its name made.
    Anew(u8),
    /// A group is deleted, and another of its name made.
    GroupAnew(u8),
    /// Everything is made anew from the records.
    Crash,
    /// The same from a snapshot, which may contain some of the records already that are read behind it.
    Snapshot(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let who = || (0..2_u8, 0..2_u8, prop::option::weighted(0.3, 0..2_u8));
    let step = prop_oneof![
        3 => who().prop_map(Step::Begin),
        6 => (who(), 0..END - 6, 1..6_u64).prop_map(|(who, first, count)| Step::Done(who, first, count)),
        2 => (who(), 0..END).prop_map(|(who, to)| Step::Reset(who, to)),
        1 => who().prop_map(Step::End),
        2 => (0..2_u8, 0..2_u8, 0..END).prop_map(|(group, topic, offset)| Step::Buried(group, topic, offset)),
        1 => (0..2_u8).prop_map(Step::Anew),
        1 => (0..2_u8).prop_map(Step::GroupAnew),
        1 => Just(Step::Crash),
        2 => (0..8_usize).prop_map(Step::Snapshot),
    ];
    prop::collection::vec(step, 1..60)
}

struct Run {
    catalog: Arc<Catalog>,
    table: ProgressTable,
    log: Vec<Record>,
    /// What is done.
    rows: BTreeMap<Who, BTreeSet<u64>>,
}

fn record(kind: RecordKind, payload: Bytes) -> Record {
    Record {
        kind,
        epoch: 0,
        physical_offset: PhysicalOffset(0),
        store_time_ms: 0,
        queue: None,
        queue_offset: QueueOffset(0),
        tag_hash: 0,
        mark: 0,
        payload,
    }
}

fn metadata(change: Change) -> Record {
    record(RecordKind::Metadata, Metadata { change: Some(change) }.encode_to_vec().into())
}

impl Run {
    fn new() -> Self {
        let catalog = Arc::new(Catalog::default());
        let mut run =
            Self { table: ProgressTable::new(catalog.clone()), catalog, log: vec![], rows: BTreeMap::new() };
        run.make(0);
        run.make(1);
        (0..2).for_each(|group| run.make_group(group));
        run
    }

    fn make_group(&mut self, group: u8) {
        let config = v1::GroupConfig { name: format!("g{group}"), ..Default::default() };
        self.write(metadata(Change::Group(self.catalog.next_group(config))));
    }

    fn group(&self, group: u8) -> u32 {
        self.catalog.group(&format!("g{group}")).unwrap().number
    }

    fn make(&mut self, topic: u8) {
        let made = self.catalog.next_topic(topic_named(&format!("t{topic}"), 2)).unwrap();
        self.write(metadata(Change::Topic(made)));
    }

    fn number(&self, topic: u8) -> u32 {
        self.catalog.topic(&format!("t{topic}")).unwrap().number
    }

    /// Both projections see every record.
    fn write(&mut self, record: Record) {
        self.catalog.apply(&record);
        self.table.apply(&record);
        self.log.push(record);
    }

    fn progress(&mut self, (group, topic, client): Who, queue: Option<QueueProgress>) {
        let progress = Progress {
            group: self.group(group),
            topic: self.number(topic),
            client: client.map(|client| format!("c{client}")),
            ended: queue.is_none(),
            queues: queue.into_iter().collect(),
        };
        self.write(record(RecordKind::Progress, progress.encode_to_vec().into()));
    }

    /// `from`: the number of the first record that is read.
    fn restart(&mut self, from_snapshot: bool, from: usize) {
        let catalog = Arc::new(Catalog::default());
        let table = ProgressTable::new(catalog.clone());
        if from_snapshot {
            catalog.restore(&self.catalog.snapshot()).unwrap();
            table.restore(&self.table.snapshot()).unwrap();
        }
        for record in &self.log[from..] {
            catalog.apply(record);
            table.apply(record);
        }
        (self.catalog, self.table) = (catalog, table);
    }

    fn step(&mut self, step: Step) {
        let queue = QueueProgress::default();
        match step {
            Step::Begin(who) => {
                if let Entry::Vacant(row) = self.rows.entry(who) {
                    row.insert(BTreeSet::new());
                    self.progress(who, Some(queue));
                }
            }
            Step::Done(who, first, count) => {
                if let Some(done) = self.rows.get_mut(&who) {
                    done.extend(first..first + count);
                    self.progress(who, Some(QueueProgress { done: vec![first, count], ..queue }));
                }
            }
            Step::Reset(who, to) => {
                if let Some(done) = self.rows.get_mut(&who) {
                    *done = (0..to).collect();
                    self.progress(who, Some(QueueProgress { floor: to, reset: true, ..queue }));
                }
            }
            Step::End(who) => {
                if self.rows.remove(&who).is_some() {
                    self.progress(who, None);
                }
            }
            Step::Buried(group, topic, offset) => {
                if let Some(done) = self.rows.get_mut(&(group, topic, None)) {
                    done.insert(offset);
                    let origin =
                        Origin { group: self.group(group), topic: self.number(topic), queue_id: 0, offset };
                    self.write(record(RecordKind::DeadLetter, origin.before(b"")));
                }
            }
            Step::Anew(topic) => {
                self.rows.retain(|(_, own, _), _| *own != topic);
                self.write(metadata(Change::TopicDeleted(self.number(topic))));
                self.make(topic);
            }
            Step::GroupAnew(group) => {
                self.rows.retain(|(own, _, _), _| *own != group);
                let gone = self.group(group);
                self.write(metadata(Change::GroupDeleted(gone)));
                self.make_group(group);
                // What was under way when the group went counts for nothing.
                let late = Progress { group: gone, topic: self.number(0), ..Progress::default() };
                self.write(record(RecordKind::Progress, late.encode_to_vec().into()));
            }
            Step::Crash => self.restart(false, 0),
            Step::Snapshot(again) => self.restart(true, self.log.len().saturating_sub(again)),
        }
    }

    fn check(&self) {
        assert_eq!(self.table.all().len(), self.rows.len());
        for (&(group, topic, client), done) in &self.rows {
            let client = client.map(|client| format!("c{client}"));
            let row = self.table.get(self.group(group), self.number(topic), client.as_deref());
            let row = row.expect("the row is there");
            let state = |offset| row.run(|pop| pop.message_state(Position { queue_id: 0, offset }));
            let there: BTreeSet<u64> =
                (0..END).filter(|&offset| state(offset) == MessageState::Done).collect();
            assert_eq!(&there, done, "group {group} on {topic}, client {client:?}");
        }
    }
}

fn cases() -> u32 {
    std::env::var("KARMAN_MODEL_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(10_000)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn how_far_groups_are_follows_from_the_records(steps in steps()) {
        let mut run = Run::new();
        for step in steps {
            run.step(step);
            run.check();
        }
    }
}
