//! Which brokers are here, by their registration streams.
//!
//! A pure state machine: the time and the number of the stream are arguments, and every change of the route table comes
//! back as a value that the caller applies and pushes on. Owned by [`crate::registration`], behind its lock.

use std::collections::BTreeMap;
use std::time::Duration;

use karman_remoting::proto::karman::route_change::Change;
use karman_remoting::proto::karman::{BrokerDelta, BrokerState, RouteChange};
use karman_remoting::validate;

/// Numbers the registration streams of this process.
pub type StreamId = u64;

/// Why a report ends its stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistrationError {
    /// A report before the broker's state, or for another broker.
    #[error(
        "the first report of a stream is the broker's whole state, and all reports are about that broker"
    )]
    NotRegistered,
    /// The state does not say who reports.
    #[error("broker name {0:?} is refused: use 1 to 127 of a-z A-Z 0-9 - _ .")]
    IllegalName(String),
    /// It belongs elsewhere.
    #[error(
        "the broker's brokerClusterName is {theirs:?}, and that of {whose} {ours:?}; correct it, or the broker's namesrvAddr"
    )]
    OtherCluster {
        /// The broker's.
        theirs: String,
        /// Who has another.
        whose: &'static str,
        /// What it should be.
        ours: String,
    },
    /// Another broker has its place.
    #[error(
        "brokerId {id} of broker {name:?} is the broker at {address}, which is registered; every broker of a set needs a brokerId \
         of its own, and every set a brokerName"
    )]
    Taken {
        /// `brokerName`
        name: String,
        /// `brokerId`; the master's is 0.
        id: i32,
        /// Of the one that is there.
        address: String,
    },
    /// A younger process registered under the same name.
    #[error(
        "broker {0:?} has been registered by a later master, or by a process that was started later; is the name used twice?"
    )]
    Superseded(String),
}

#[derive(Debug)]
struct Session {
    stream: StreamId,
    cluster: String,
    /// For other nodes.
    address: String,
    /// Of its mastership, and of its process.
    age: (u32, u64),
    heard: Duration,
}

/// `brokerName` and `brokerId`.
type Key = (String, i32);

/// The brokers that are registered; see the module's comment. Slaves are too, to be told the routes, but have no row.
#[derive(Debug)]
pub struct RouteInfo {
    sessions: BTreeMap<Key, Session>,
    /// Empty: whichever comes.
    cluster: String,
    silence_max: Duration,
}

impl RouteInfo {
    /// A broker that was silent for longer than `silence_max` is dropped. One of another `cluster` is refused, if there is one.
    pub fn new(silence_max: Duration, cluster: String) -> Self {
        Self { sessions: BTreeMap::new(), cluster, silence_max }
    }

    /// A broker reports its whole state at the time `now`. A newer stream of the same process replaces the older one, and so does a
    /// later process at the same address; one at another address waits until the place is free.
    /// `None`: it is a slave.
    pub fn register(
        &mut self,
        now: Duration,
        stream: StreamId,
        state: BrokerState,
    ) -> Result<Option<RouteChange>, RegistrationError> {
        let identity = state.identity.clone().unwrap_or_default();
        let key = (identity.broker_name, identity.broker_id);
        let age = (identity.epoch, identity.incarnation);
        if !validate::is_node_name(&key.0) {
            return Err(RegistrationError::IllegalName(validate::shortened(&key.0)));
        }
        let (cluster, address) = (identity.cluster, identity.internal_address);
        self.check_cluster(&key.0, &cluster)?;
        if let Some(known) = self.sessions.get(&key) {
            // Of an epoch there is one master, whoever was elected; without controllers all are of one.
            if known.age.0 == age.0 && known.address != address {
                let (name, id) = key;
                return Err(RegistrationError::Taken { name, id, address: known.address.clone() });
            }
            if known.age > age {
                return Err(RegistrationError::Superseded(key.0));
            }
        }
        let is_master = key.1 == 0;
        self.sessions.insert(key, Session { stream, cluster, address, age, heard: now });
        Ok(is_master.then_some(RouteChange { change: Some(Change::Joined(state)) }))
    }

    /// All brokers of a set are of one cluster, and of that of this namesrv, if it is told one.
    fn check_cluster(&self, name: &str, theirs: &str) -> Result<(), RegistrationError> {
        let own = Some(("this namesrv", &self.cluster)).filter(|(_, cluster)| !cluster.is_empty());
        let mut of_set = self.sessions.range((name.to_owned(), i32::MIN)..=(name.to_owned(), i32::MAX));
        let other = of_set.find(|(_, session)| session.cluster != theirs);
        let other = other.map(|(_, session)| ("the others of its brokerName", &session.cluster));
        let mut differs = own.into_iter().chain(other).filter(|(_, ours)| *ours != theirs);
        differs.next().map_or(Ok(()), |(whose, ours)| {
            let theirs = validate::shortened(theirs);
            Err(RegistrationError::OtherCluster { theirs, whose, ours: ours.clone() })
        })
    }

    /// A registered broker reports a change.
    pub fn change(
        &mut self,
        now: Duration,
        stream: StreamId,
        delta: BrokerDelta,
    ) -> Result<RouteChange, RegistrationError> {
        let key = (delta.broker_name.clone(), 0);
        let session = self.sessions.get_mut(&key).filter(|session| session.stream == stream);
        session.ok_or(RegistrationError::NotRegistered)?.heard = now;
        Ok(RouteChange { change: Some(Change::Changed(delta)) })
    }

    /// The broker of `stream` is alive.
    pub fn heartbeat(&mut self, now: Duration, stream: StreamId) -> Result<(), RegistrationError> {
        let session = self.sessions.values_mut().find(|session| session.stream == stream);
        session.ok_or(RegistrationError::NotRegistered)?.heard = now;
        Ok(())
    }

    /// A stream ended; its broker leaves, unless a newer stream has taken its place.
    pub fn closed(&mut self, stream: StreamId) -> Option<RouteChange> {
        let key = self.sessions.iter().find(|(_, session)| session.stream == stream)?.0.clone();
        self.leave(key)
    }

    /// Drops the brokers that were silent for too long.
    pub fn expire(&mut self, now: Duration) -> Vec<RouteChange> {
        let silent = |session: &Session| now.saturating_sub(session.heard) > self.silence_max;
        let all = self.sessions.iter();
        let keys: Vec<_> = all.filter(|(_, session)| silent(session)).map(|(key, _)| key.clone()).collect();
        keys.into_iter().filter_map(|key| self.leave(key)).collect()
    }

    fn leave(&mut self, key: Key) -> Option<RouteChange> {
        self.sessions.remove(&key);
        let (name, broker_id) = key;
        (broker_id == 0).then_some(RouteChange { change: Some(Change::Left(name)) })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use karman_remoting::proto::karman::{BrokerIdentity, TopicRoute};
    use karman_remoting::route_table::RouteTable;
    use proptest::prelude::*;

    use super::*;

    const SILENCE_MAX: Duration = Duration::from_secs(10);

    fn state(name: &str, incarnation: u64, topics: &[&str]) -> BrokerState {
        let identity = BrokerIdentity { broker_name: name.into(), incarnation, ..Default::default() };
        let topics =
            topics.iter().map(|topic| TopicRoute { name: (*topic).into(), ..Default::default() }).collect();
        BrokerState { identity: Some(identity), topics, groups: vec![] }
    }

    #[test]
    fn a_broker_leaves_when_its_stream_ends_or_it_is_silent() {
        let mut info = RouteInfo::new(SILENCE_MAX, String::new());
        info.register(Duration::ZERO, 1, state("a", 1, &[])).unwrap();
        info.register(Duration::ZERO, 2, state("b", 1, &[])).unwrap();
        assert_eq!(info.closed(1).unwrap().change, Some(Change::Left("a".into())));
        assert!(info.expire(SILENCE_MAX).is_empty());
        let later = SILENCE_MAX + Duration::from_millis(1);
        assert_eq!(info.expire(later)[0].change, Some(Change::Left("b".into())));
        assert_eq!(info.heartbeat(later, 2), Err(RegistrationError::NotRegistered));
    }

    #[test]
    fn the_end_of_a_replaced_stream_changes_nothing() {
        let mut info = RouteInfo::new(SILENCE_MAX, String::new());
        info.register(Duration::ZERO, 1, state("a", 1, &[])).unwrap();
        info.register(Duration::ZERO, 2, state("a", 1, &[])).unwrap();
        assert_eq!(info.closed(1), None);
        assert!(info.heartbeat(Duration::ZERO, 2).is_ok());
    }

    #[test]
    fn the_process_started_later_keeps_the_name() {
        let mut info = RouteInfo::new(SILENCE_MAX, String::new());
        info.register(Duration::ZERO, 1, state("a", 7, &[])).unwrap();
        let refused = info.register(Duration::ZERO, 2, state("a", 6, &[]));
        assert_eq!(refused, Err(RegistrationError::Superseded("a".into())));
    }

    #[test]
    fn a_broker_without_a_usable_name_is_refused() {
        let mut info = RouteInfo::new(SILENCE_MAX, String::new());
        assert!(matches!(
            info.register(Duration::ZERO, 1, state("../x", 1, &[])),
            Err(RegistrationError::IllegalName(_))
        ));
        assert!(info.register(Duration::ZERO, 1, BrokerState::default()).is_err());
    }

    fn at(address: &str, cluster: &str, id: i32, epoch: u32, incarnation: u64) -> BrokerState {
        let identity = BrokerIdentity {
            broker_name: "a".into(),
            broker_id: id,
            cluster: cluster.into(),
            internal_address: address.into(),
            epoch,
            incarnation,
            ..Default::default()
        };
        BrokerState { identity: Some(identity), ..Default::default() }
    }

    #[test]
    fn a_place_that_another_broker_has_is_not_given_away_until_it_leaves_or_a_later_master_is_elected() {
        for id in [0, 2] {
            let mut info = RouteInfo::new(SILENCE_MAX, String::new());
            info.register(Duration::ZERO, 1, at("one:1", "c", id, 4, 1)).unwrap();
            let taken = Err(RegistrationError::Taken { name: "a".into(), id, address: "one:1".into() });
            assert_eq!(info.register(Duration::ZERO, 2, at("two:1", "c", id, 4, 9)), taken);
            assert!(info.heartbeat(SILENCE_MAX, 1).is_ok(), "the first is still there");
            info.register(Duration::ZERO, 3, at("one:1", "c", id, 4, 2)).unwrap();
            info.closed(3);
            info.register(Duration::ZERO, 4, at("two:1", "c", id, 4, 9)).unwrap();
            info.register(Duration::ZERO, 5, at("one:1", "c", id, 5, 2)).unwrap();
            let deposed = info.register(Duration::ZERO, 6, at("two:1", "c", id, 4, 9));
            assert_eq!(deposed, Err(RegistrationError::Superseded("a".into())));
        }
    }

    #[test]
    fn a_broker_of_another_cluster_than_its_set_or_its_namesrv_is_refused() {
        let other = |theirs: &str, whose, ours: &str| {
            Err(RegistrationError::OtherCluster { theirs: theirs.into(), whose, ours: ours.into() })
        };
        let mut any = RouteInfo::new(SILENCE_MAX, String::new());
        any.register(Duration::ZERO, 1, at("one:1", "c", 0, 1, 1)).unwrap();
        let refused = any.register(Duration::ZERO, 2, at("two:1", "d", 1, 0, 1));
        assert_eq!(refused, other("d", "the others of its brokerName", "c"));
        let mut own = RouteInfo::new(SILENCE_MAX, "c".into());
        assert_eq!(
            own.register(Duration::ZERO, 1, at("two:1", "d", 0, 1, 1)),
            other("d", "this namesrv", "c")
        );
        own.register(Duration::ZERO, 2, at("one:1", "c", 0, 1, 1)).unwrap();
    }

    #[derive(Clone, Debug)]
    enum Event {
        Register { broker: &'static str, stream: StreamId },
        Change { broker: &'static str, stream: StreamId, topic: &'static str },
        Heartbeat { stream: StreamId },
        Close { stream: StreamId },
        Pass { seconds: u64 },
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let broker = || prop::sample::select(vec!["a", "b", "c"]);
        let event = prop_oneof![
            (broker(), 0..6_u64).prop_map(|(broker, stream)| Event::Register { broker, stream }),
            (broker(), 0..6_u64, prop::sample::select(vec!["t", "u"]))
                .prop_map(|(broker, stream, topic)| Event::Change { broker, stream, topic }),
            (0..6_u64).prop_map(|stream| Event::Heartbeat { stream }),
            (0..6_u64).prop_map(|stream| Event::Close { stream }),
            (1..8_u64).prop_map(|seconds| Event::Pass { seconds }),
        ];
        prop::collection::vec(event, 0..60)
    }

    proptest! {
        /// The table built from the changes names exactly the brokers whose own stream is open and was heard in time.
        #[test]
        fn the_table_holds_exactly_the_live_brokers(events in events()) {
            let mut info = RouteInfo::new(SILENCE_MAX, String::new());
            let mut table = RouteTable::default();
            let mut now = Duration::ZERO;
            let mut model: BTreeMap<&str, (StreamId, Duration)> = BTreeMap::new();
            for event in events {
                let changes: Vec<RouteChange> = match event {
                    Event::Register { broker, stream } => {
                        // A stream belongs to one broker.
                        if model.iter().any(|(name, (open, _))| *open == stream && *name != broker) { continue }
                        model.insert(broker, (stream, now));
                        info.register(now, stream, state(broker, 1, &["t"])).into_iter().flatten().collect()
                    }
                    Event::Change { broker, stream, topic } => {
                        let known = model.get_mut(broker).filter(|(open, _)| *open == stream);
                        let expected = known.is_some();
                        if let Some((_, heard)) = known { *heard = now }
                        let topics = vec![TopicRoute { name: topic.into(), ..Default::default() }];
                        let delta = BrokerDelta { broker_name: broker.into(), topics, ..Default::default() };
                        let result = info.change(now, stream, delta);
                        prop_assert_eq!(result.is_ok(), expected);
                        result.into_iter().collect()
                    }
                    Event::Heartbeat { stream } => {
                        let known = model.values_mut().find(|(open, _)| *open == stream);
                        prop_assert_eq!(info.heartbeat(now, stream).is_ok(), known.is_some());
                        if let Some((_, heard)) = known { *heard = now }
                        vec![]
                    }
                    Event::Close { stream } => {
                        model.retain(|_, (open, _)| *open != stream);
                        info.closed(stream).into_iter().collect()
                    }
                    Event::Pass { seconds } => {
                        now += Duration::from_secs(seconds);
                        model.retain(|_, (_, heard)| now - *heard <= SILENCE_MAX);
                        info.expire(now)
                    }
                };
                for change in changes { table.apply(change) }
                let names: Vec<_> = table.brokers().map(|broker| broker.broker_name.clone()).collect();
                prop_assert_eq!(names, model.keys().map(|name| (*name).to_owned()).collect::<Vec<_>>());
            }
        }
    }
}
