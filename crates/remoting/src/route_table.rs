//! The route table: which broker has which topic, as every node sees it.
//!
//! A state machine over [`RouteChange`]s without I/O, which knows the time only of those who left. A namesrv feeds it from registration streams, a
//! broker from what namesrvs push; both answer QueryRoute from it with the same code, which is why it lives here. It is
//! shared as [`SharedRoutes`]; readers and writers of a node hold the lock for one look-up or one change.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{RwLock, RwLockReadGuard};
use tokio::sync::watch;

use crate::proto::karman::route_change::Change;
use crate::proto::karman::{BrokerDelta, BrokerIdentity, BrokerState, GroupConfig, RouteChange, TopicRoute};
use crate::proto::v2::{Assignment, Broker, MessageQueue, MessageType, Permission, Resource};

mod away;

use away::Away;

/// A route table that all threads of a node read and some change. Cheap to clone.
#[derive(Clone, Default)]
pub struct SharedRoutes(Arc<Shared>);

#[derive(Default)]
struct Shared {
    table: RwLock<RouteTable>,
    /// This node has just started and does not know the others yet; it waits for them until then.
    learning: watch::Sender<Option<Instant>>,
    listener: OnceLock<Listener>,
}

type Listener = Box<dyn Fn(&SharedRoutes, &GroupsChanged) + Send + Sync>;

/// Which consumer groups a change may have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupsChanged {
    /// These.
    Some(Vec<String>),
    /// A broker came or left: whichever it knows.
    Any,
}

impl GroupsChanged {
    fn by(change: &RouteChange) -> Option<Self> {
        match change.change.as_ref()? {
            Change::Joined(_) | Change::Left(_) => Some(Self::Any),
            Change::Changed(delta) => {
                let changed = delta.groups.iter().map(|group| &group.name);
                let groups: Vec<String> = changed.chain(&delta.removed_groups).cloned().collect();
                (!groups.is_empty()).then_some(Self::Some(groups))
            }
        }
    }
}

impl SharedRoutes {
    /// Other nodes are not known yet: a namesrv will tell of them, or they register here.
    pub fn begin_to_learn(&self) {
        self.0.learning.send_replace(Some(Instant::now() + LEARNING_MAX));
    }

    /// They have.
    pub fn end_to_learn(&self) {
        self.0.learning.send_if_modified(|until| until.take().is_some());
    }

    /// Whether other nodes are still waited for.
    pub fn is_learning(&self) -> bool {
        self.0.learning.borrow().is_some_and(|until| Instant::now() < until)
    }

    /// Waits until other nodes are known, or it seems that nobody will tell of them.
    pub async fn learnt(&self) {
        let mut learning = self.0.learning.subscribe();
        let Some(until) = *learning.borrow() else { return };
        // Nobody told of any: what is known is all there is.
        let _ = tokio::time::timeout_at(until.into(), learning.wait_for(Option::is_none)).await;
    }

    /// For one look-up. Never twice in one thread: a writer that waits in between would stop both.
    pub fn read(&self) -> RwLockReadGuard<'_, RouteTable> {
        self.0.table.read()
    }

    /// Applies one change, and tells the listener when it is about groups.
    pub fn apply(&self, change: RouteChange) {
        let groups = GroupsChanged::by(&change);
        self.0.table.write().apply(change);
        if let (Some(groups), Some(listener)) = (groups, self.0.listener.get()) {
            listener(self, &groups);
        }
    }

    /// Brokers that left before this node began to listen.
    pub fn expect_back(&self, away: Vec<BrokerState>) {
        let mut table = self.0.table.write();
        away.into_iter().for_each(|state| table.expect_back(state));
    }

    /// Calls `listener` after every change that is about groups, on the thread that made it. The first listener stays.
    pub(crate) fn listen(&self, listener: impl Fn(&Self, &GroupsChanged) + Send + Sync + 'static) {
        let _ = self.0.listener.set(Box::new(listener));
    }
}

impl fmt::Debug for SharedRoutes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.table.fmt(f)
    }
}

/// A node that hears from no namesrv for so long after its start takes what it knows for all there is.
const LEARNING_MAX: Duration = Duration::from_secs(15);

/// Queue number in an assignment that means "all queues of this broker".
const WHOLE_BROKER: i32 = -1;

/// What one broker has reported.
#[derive(Clone, Debug, Default, PartialEq)]
struct BrokerEntry {
    identity: BrokerIdentity,
    topics: BTreeMap<String, TopicRoute>,
    groups: BTreeMap<String, GroupConfig>,
}

impl BrokerEntry {
    fn of(state: BrokerState) -> Option<Self> {
        let topics = state.topics.into_iter().map(|topic| (topic.name.clone(), topic)).collect();
        let groups = state.groups.into_iter().map(|group| (group.name.clone(), group)).collect();
        Some(Self { identity: state.identity?, topics, groups })
    }

    fn state(&self) -> BrokerState {
        BrokerState {
            identity: Some(self.identity.clone()),
            topics: self.topics.values().cloned().collect(),
            groups: self.groups.values().cloned().collect(),
        }
    }
}

/// All brokers of a cluster and their topics.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RouteTable {
    brokers: BTreeMap<String, BrokerEntry>,
    /// Topic to the names of the brokers that have it, and as what: an index over `brokers`, kept equal by
    /// [`Self::apply`].
    topics: HashMap<String, BTreeMap<String, MessageType>>,
    /// Brokers that are not in `brokers` any more.
    away: Away,
}

impl RouteTable {
    /// Applies one change. A change of an unknown broker is ignored: its whole state follows.
    pub fn apply(&mut self, change: RouteChange) {
        match change.change {
            Some(Change::Joined(state)) => self.join(state),
            Some(Change::Changed(delta)) => self.change(delta),
            Some(Change::Left(name)) => {
                if let Some(entry) = self.remove(&name) {
                    self.away.left(entry, Instant::now());
                }
            }
            None => {}
        }
    }

    fn join(&mut self, state: BrokerState) {
        let Some(entry) = BrokerEntry::of(state) else { return };
        let name = entry.identity.broker_name.clone();
        self.remove(&name);
        self.away.back(&name);
        for topic in entry.topics.values() {
            self.topics.entry(topic.name.clone()).or_default().insert(name.clone(), topic.message_type());
        }
        self.brokers.insert(name, entry);
    }

    /// A broker left before this table was begun, and is expected back. What is known better stays.
    pub fn expect_back(&mut self, state: BrokerState) {
        let Some(entry) = BrokerEntry::of(state) else { return };
        let name = &entry.identity.broker_name;
        if !self.brokers.contains_key(name) && !self.is_expected_back(name) {
            self.away.left(entry, Instant::now());
        }
    }

    /// The last state of every broker that is expected back.
    pub fn states_away(&self) -> Vec<BrokerState> {
        self.away.expected(Instant::now()).map(BrokerEntry::state).collect()
    }

    fn change(&mut self, delta: BrokerDelta) {
        let Some(entry) = self.brokers.get_mut(&delta.broker_name) else { return };
        for name in delta.removed_topics {
            if entry.topics.remove(&name).is_some() {
                forget(&mut self.topics, &name, &delta.broker_name);
            }
        }
        for topic in delta.topics {
            let brokers = self.topics.entry(topic.name.clone()).or_default();
            brokers.insert(delta.broker_name.clone(), topic.message_type());
            entry.topics.insert(topic.name.clone(), topic);
        }
        for name in delta.removed_groups {
            entry.groups.remove(&name);
        }
        entry.groups.extend(delta.groups.into_iter().map(|group| (group.name.clone(), group)));
    }

    fn remove(&mut self, name: &str) -> Option<BrokerEntry> {
        let entry = self.brokers.remove(name)?;
        for topic in entry.topics.keys() {
            forget(&mut self.topics, topic, name);
        }
        Some(entry)
    }

    /// The whole state of every broker, by name.
    pub fn states(&self) -> Vec<BrokerState> {
        self.brokers.values().map(BrokerEntry::state).collect()
    }

    /// The whole state of one broker.
    pub fn state(&self, broker: &str) -> Option<BrokerState> {
        self.brokers.get(broker).map(BrokerEntry::state)
    }

    /// Every broker, by name.
    pub fn brokers(&self) -> impl Iterator<Item = &BrokerIdentity> {
        self.brokers.values().map(|entry| &entry.identity)
    }

    /// One broker.
    pub fn broker(&self, name: &str) -> Option<&BrokerIdentity> {
        self.brokers.get(name).map(|entry| &entry.identity)
    }

    /// Whether a broker that is not here left lately and is expected back.
    pub fn is_expected_back(&self, name: &str) -> bool {
        self.away.expects(name, Instant::now())
    }

    /// A group's policy, from the first broker by name that knows the group.
    pub fn group(&self, name: &str) -> Option<&GroupConfig> {
        self.brokers.values().find_map(|entry| entry.groups.get(name))
    }

    /// Whether `broker` has `topic`.
    pub fn has(&self, broker: &str, topic: &str) -> bool {
        self.topics.get(topic).is_some_and(|brokers| brokers.contains_key(broker))
    }

    /// The type of `topic`, as the first broker by name has it.
    pub fn message_type(&self, topic: &str) -> Option<MessageType> {
        self.topics.get(topic)?.values().next().copied()
    }

    /// The masters that have `topic`, by name.
    pub fn masters_of(&self, topic: &str) -> impl Iterator<Item = (&BrokerIdentity, &TopicRoute)> {
        let names = self.topics.get(topic).into_iter().flat_map(BTreeMap::keys);
        names
            .filter_map(|name| self.brokers.get(name))
            .filter(|entry| entry.identity.broker_id == 0)
            .filter_map(|entry| Some((&entry.identity, entry.topics.get(topic)?)))
    }

    /// Where message groups of a topic may live: its masters, and those that left lately and are expected back.
    pub fn homes_of(&self, topic: &str) -> impl Iterator<Item = &BrokerIdentity> {
        let here = self.masters_of(topic).map(|(identity, _)| identity);
        here.chain(self.away.masters_of(topic, Instant::now()))
    }

    /// The answer to QueryRoute: the queues of every master, in the order of broker names and queue numbers, so that
    /// two answers are equal whenever the routes are. Empty when nobody has the topic.
    pub fn queues_of(&self, topic: &Resource) -> Vec<MessageQueue> {
        let mut queues = Vec::new();
        for (identity, route) in self.masters_of(&topic.name) {
            for id in 0..route.read_queue_nums.max(route.write_queue_nums) {
                let permission = permission_of(route, id);
                // A queue that nobody may use is left out: the C# client cannot read NONE.
                if permission != Permission::None {
                    queues.push(queue(topic, identity, route, id.cast_signed(), permission));
                }
            }
        }
        queues
    }

    /// The answer to QueryAssignment: each readable master once, since the broker shares its queues out itself.
    pub fn assignments_of(&self, topic: &Resource) -> Vec<Assignment> {
        let readable = self
            .masters_of(&topic.name)
            .filter(|(_, route)| route.read_queue_nums > 0 && can_read(route.permission()));
        readable
            .map(|(identity, route)| Assignment {
                message_queue: Some(queue(topic, identity, route, WHOLE_BROKER, route.permission())),
            })
            .collect()
    }
}

fn forget(topics: &mut HashMap<String, BTreeMap<String, MessageType>>, topic: &str, broker: &str) {
    if let Some(brokers) = topics.get_mut(topic) {
        brokers.remove(broker);
        if brokers.is_empty() {
            topics.remove(topic);
        }
    }
}

fn can_read(permission: Permission) -> bool {
    matches!(permission, Permission::Read | Permission::ReadWrite)
}

fn can_write(permission: Permission) -> bool {
    matches!(permission, Permission::Write | Permission::ReadWrite)
}

/// While a topic is being resized it has more queues of one kind than of the other.
fn permission_of(route: &TopicRoute, id: u32) -> Permission {
    let read = id < route.read_queue_nums && can_read(route.permission());
    let write = id < route.write_queue_nums && can_write(route.permission());
    match (read, write) {
        (true, true) => Permission::ReadWrite,
        (true, false) => Permission::Read,
        (false, true) => Permission::Write,
        (false, false) => Permission::None,
    }
}

fn queue(
    topic: &Resource,
    identity: &BrokerIdentity,
    route: &TopicRoute,
    id: i32,
    permission: Permission,
) -> MessageQueue {
    // Never UNSPECIFIED: Java and C# refuse the whole route for one unknown type.
    let accepted = match route.message_type() {
        MessageType::Unspecified => MessageType::Normal,
        known => known,
    };
    MessageQueue {
        topic: Some(topic.clone()),
        id,
        permission: permission.into(),
        broker: Some(Broker {
            name: identity.broker_name.clone(),
            id: identity.broker_id,
            endpoints: identity.endpoints.clone(),
        }),
        accept_message_types: vec![accepted.into()],
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn identity(name: &str) -> BrokerIdentity {
        BrokerIdentity { broker_name: name.into(), ..Default::default() }
    }

    fn route(name: &str, queues: u32) -> TopicRoute {
        TopicRoute {
            name: name.into(),
            message_type: MessageType::Normal.into(),
            read_queue_nums: queues,
            write_queue_nums: queues,
            permission: Permission::ReadWrite.into(),
        }
    }

    fn joined(name: &str, topics: Vec<TopicRoute>) -> RouteChange {
        let state = BrokerState { identity: Some(identity(name)), topics, groups: vec![] };
        RouteChange { change: Some(Change::Joined(state)) }
    }

    fn resource(name: &str) -> Resource {
        Resource { resource_namespace: String::new(), name: name.into() }
    }

    #[test]
    fn a_route_lists_the_queues_of_every_master_in_a_stable_order() {
        let mut table = RouteTable::default();
        table.apply(joined("b", vec![route("t", 1)]));
        table.apply(joined("a", vec![route("t", 2)]));
        let ids: Vec<_> = table
            .queues_of(&resource("t"))
            .into_iter()
            .map(|queue| (queue.broker.unwrap().name, queue.id, queue.permission))
            .collect();
        let both = i32::from(Permission::ReadWrite);
        assert_eq!(ids, [("a".into(), 0, both), ("a".into(), 1, both), ("b".into(), 0, both)]);
        assert_eq!(table.assignments_of(&resource("t")).len(), 2);
        assert!(table.queues_of(&resource("other")).is_empty());
    }

    #[test]
    fn assignments_name_each_broker_once_whatever_the_type_of_the_topic() {
        for kind in [MessageType::Normal, MessageType::Fifo, MessageType::Lite] {
            let mut table = RouteTable::default();
            for broker in ["b", "a"] {
                let topic = TopicRoute { message_type: kind.into(), ..route("t", 4) };
                table.apply(joined(broker, vec![topic]));
            }
            let assigned = table.assignments_of(&resource("t")).into_iter().filter_map(|a| a.message_queue);
            let assigned: Vec<_> = assigned.map(|queue| (queue.broker.unwrap().name, queue.id)).collect();
            assert_eq!(assigned, [("a".into(), WHOLE_BROKER), ("b".into(), WHOLE_BROKER)], "{kind:?}");
            assert_eq!(table.message_type("t"), Some(kind));
        }
    }

    #[test]
    fn a_topic_that_is_resized_has_queues_for_one_direction() {
        let mut table = RouteTable::default();
        table.apply(joined("a", vec![TopicRoute { write_queue_nums: 1, ..route("t", 2) }]));
        let permissions: Vec<_> =
            table.queues_of(&resource("t")).iter().map(MessageQueue::permission).collect();
        assert_eq!(permissions, [Permission::ReadWrite, Permission::Read]);
    }

    fn changes() -> impl Strategy<Value = Vec<RouteChange>> {
        let broker = prop::sample::select(vec!["a", "b", "c"]);
        let topics = || prop::collection::vec((prop::sample::select(vec!["t", "u", "v"]), 1..4_u32), 0..4);
        let change = (broker, 0..3, topics(), topics()).prop_map(|(broker, kind, topics, removed)| {
            let topics = topics.into_iter().map(|(name, queues)| route(name, queues)).collect();
            match kind {
                0 => joined(broker, topics),
                1 => RouteChange { change: Some(Change::Left(broker.into())) },
                _ => {
                    let removed_topics = removed.into_iter().map(|(name, _)| name.into()).collect();
                    let broker_name = broker.into();
                    let delta = BrokerDelta { broker_name, topics, removed_topics, ..Default::default() };
                    RouteChange { change: Some(Change::Changed(delta)) }
                }
            }
        });
        prop::collection::vec(change, 0..40)
    }

    /// What the table should hold, kept in the plainest way.
    fn model(changes: &[RouteChange]) -> BTreeMap<String, BTreeMap<String, u32>> {
        let mut model: BTreeMap<String, BTreeMap<String, u32>> = BTreeMap::new();
        for change in changes {
            match change.change.clone().unwrap() {
                Change::Joined(state) => {
                    let topics = state.topics.into_iter().map(|topic| (topic.name, topic.read_queue_nums));
                    model.insert(state.identity.unwrap().broker_name, topics.collect());
                }
                Change::Left(name) => drop(model.remove(&name)),
                Change::Changed(delta) => {
                    if let Some(topics) = model.get_mut(&delta.broker_name) {
                        topics.retain(|name, _| !delta.removed_topics.contains(name));
                        topics.extend(
                            delta.topics.into_iter().map(|topic| (topic.name, topic.read_queue_nums)),
                        );
                    }
                }
            }
        }
        model
    }

    proptest! {
        #[test]
        fn any_sequence_of_changes_gives_what_the_model_gives(changes in changes()) {
            let mut table = RouteTable::default();
            for change in changes.clone() {
                table.apply(change);
            }
            let model = model(&changes);
            for topic in ["t", "u", "v"] {
                let found: Vec<_> = table.queues_of(&resource(topic)).into_iter()
                    .map(|queue| (queue.broker.unwrap().name, queue.id)).collect();
                let expected: Vec<_> = model.iter()
                    .filter_map(|(broker, topics)| Some((broker, *topics.get(topic)?)))
                    .flat_map(|(broker, queues)| (0..queues.cast_signed()).map(move |id| (broker.clone(), id)))
                    .collect();
                prop_assert_eq!(found, expected);
            }
            // A table built from the whole state is the same table: what a node that connects later is given.
            let mut copy = RouteTable::default();
            for state in table.states() {
                copy.apply(RouteChange { change: Some(Change::Joined(state)) });
            }
            table.away = Away::default();
            prop_assert_eq!(copy, table);
        }
    }
}
