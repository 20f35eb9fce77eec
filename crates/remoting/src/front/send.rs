//! Sends: a message goes to this broker if it has the topic; one whose order matters goes to its home.
//!
//! Clients spread the messages of one message group over brokers, each in its own way (and C++ without looking at the
//! group), so the door brings them together: the home of a message group is chosen by rendezvous hashing over the names
//! of the masters that have the topic, the same at every door. A broker that joins or leaves moves its share of the
//! groups and no others. One that is away for a restart keeps them: their messages are refused until it is back, for they
//! would be delivered elsewhere before those that it holds.

use tonic::{Request, Response};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::{Front, Owner, call, failure_here};
use crate::metadata;
use crate::proto::karman::BrokerIdentity;
use crate::proto::v2;
use crate::relay::failure;
use crate::route_table::RouteTable;
use crate::status::Rejection;
use crate::{message, validate};

impl Front {
    pub(super) async fn send(
        &self,
        request: Request<v2::SendMessageRequest>,
    ) -> Result<Response<v2::SendMessageResponse>, Rejection> {
        let relayed = metadata::is_relayed(request.metadata());
        let messages = &request.get_ref().messages;
        let topic = messages.first().map(|first| message::topic_of(first)).unwrap_or_default();
        let message_type = self.routes.read().message_type(&topic);
        if !relayed && message_type.is_none_or(|kind| kind == v2::MessageType::Fifo) {
            // Who does not know the others yet, or not even its own topics, would give every message group a home of its own.
            self.routes.learnt().await;
        }
        let (mut owners, is_known) = self.owners_of_send(&topic, messages, relayed)?;
        if let [Owner::Here(_)] = owners[..]
            && let Some(client_id) = metadata::client_id_of(request.metadata())
            && is_known
        {
            self.clients.publishes(client_id, &topic);
        }
        let Some(last) = owners.pop() else {
            self.heard(&request)?;
            if messages.is_empty() {
                return Err(Rejection::NoMessage);
            }
            if relayed {
                return Err(self.not_here());
            }
            validate::topic(&topic)?;
            return Err(Rejection::TopicNotFound { topic });
        };
        // Another master takes the message when one cannot be reached; it has not been stored there, or may have been:
        // the client would retry just so.
        for owner in owners {
            let mut copy = Request::new(request.get_ref().clone());
            *copy.metadata_mut() = request.metadata().clone();
            match call!(self, owner, send_message, copy) {
                Err(Rejection::PeerUnavailable { .. }) => {}
                result => return result,
            }
        }
        call!(self, last, send_message, request)
    }

    /// The one home of messages whose order matters; any master that has the topic for the others. And whether anybody
    /// has it.
    fn owners_of_send(
        &self,
        topic: &str,
        messages: &[bytes::Bytes],
        relayed: bool,
    ) -> Result<(Vec<Owner<'_>>, bool), Rejection> {
        let routes = self.routes.read();
        let message_type = routes.message_type(topic);
        if !relayed
            && let Some(kind) = Ordered::of(message_type)
            && let Some(home) = home_of_batch(&routes, topic, messages, kind)?
        {
            return Ok((vec![self.owner_of(home)], true));
        }
        Ok((self.owners_by(&routes, topic, relayed), message_type.is_some()))
    }
}

/// What the order of messages is kept within.
#[derive(Clone, Copy)]
enum Ordered {
    MessageGroup,
    LiteTopic,
}

impl Ordered {
    fn of(message_type: Option<v2::MessageType>) -> Option<Self> {
        match message_type? {
            v2::MessageType::Fifo => Some(Self::MessageGroup),
            v2::MessageType::Lite => Some(Self::LiteTopic),
            _ => None,
        }
    }

    fn key(self, message: &[u8]) -> Option<&str> {
        match self {
            Self::MessageGroup => message::message_group_of(message),
            Self::LiteTopic => message::lite_topic_of(message),
        }
    }

    fn apart(self, index: usize, key: &str) -> Rejection {
        match self {
            Self::MessageGroup => Rejection::IllegalMessageGroup {
                index,
                rule: "a batch of a FIFO topic goes to one broker; its message groups live on different ones: send them apart",
            },
            Self::LiteTopic => Rejection::IllegalLiteTopic {
                name: validate::shortened(key),
                rule: "a batch goes to one broker; its lite topics live on different ones: send them apart",
            },
        }
    }
}

/// The home that all of a batch have in common. `None` when no message says what its order is kept within: whichever
/// broker gets them refuses them.
fn home_of_batch<'a>(
    routes: &'a RouteTable,
    topic: &str,
    messages: &[bytes::Bytes],
    kind: Ordered,
) -> Result<Option<&'a BrokerIdentity>, Rejection> {
    let mut common: Option<&BrokerIdentity> = None;
    for (index, message) in messages.iter().enumerate() {
        let Some(key) = kind.key(message) else { continue };
        let home = home(routes, topic, key, kind);
        match (common, home) {
            (None, _) => common = home,
            (Some(known), Some(other)) if known.broker_name != other.broker_name => {
                return Err(kind.apart(index, key));
            }
            _ => {}
        }
    }
    Ok(common)
}

/// The master that `key` lives on: the one whose name and the key give the greatest hash.
fn home<'a>(routes: &'a RouteTable, topic: &str, key: &str, kind: Ordered) -> Option<&'a BrokerIdentity> {
    let weight = |identity: &&BrokerIdentity| home_weight(&identity.broker_name, key);
    match kind {
        Ordered::MessageGroup => routes.homes_of(topic).max_by_key(weight),
        Ordered::LiteTopic => routes.masters_of(topic).map(|(identity, _)| identity).max_by_key(weight),
    }
}

/// Of the masters of a topic, the one with the greatest weight is the home of `key`, a message group or lite topic. A
/// client that knows it spares its sends the way through another.
pub fn home_weight(broker_name: &str, key: &str) -> u64 {
    xxh3_64_with_seed(key.as_bytes(), xxh3_64(broker_name.as_bytes()))
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::proto::karman::route_change::Change;
    use crate::proto::karman::{BrokerState, RouteChange, TopicRoute};
    use crate::proto::v2::MessageType;

    fn table(brokers: &[&str]) -> RouteTable {
        let mut table = RouteTable::default();
        for name in brokers {
            let identity = BrokerIdentity { broker_name: (*name).into(), ..Default::default() };
            let topic =
                TopicRoute { name: "t".into(), message_type: MessageType::Fifo.into(), ..Default::default() };
            let state = BrokerState { identity: Some(identity), topics: vec![topic], groups: vec![] };
            table.apply(RouteChange { change: Some(Change::Joined(state)) });
        }
        table
    }

    fn home_name(table: &RouteTable, key: &str) -> String {
        home(table, "t", key, Ordered::MessageGroup).expect("there are masters").broker_name.clone()
    }

    fn message(group: &str) -> bytes::Bytes {
        let system = v2::SystemProperties { message_group: Some(group.into()), ..Default::default() };
        v2::Message { system_properties: Some(system), ..Default::default() }.encode_to_vec().into()
    }

    #[test]
    fn the_home_of_a_message_group_never_changes() {
        // Written down: another hash in another version would mix up the order while a cluster is upgraded.
        let table = table(&["broker-a", "broker-b", "broker-c"]);
        let homes: String =
            (0..12).map(|n| home_name(&table, &format!("order-{n}")).pop().expect("a letter")).collect();
        assert_eq!(homes, "ccbaacabaaab");
    }

    #[test]
    fn homes_are_spread_and_only_those_of_a_broker_that_leaves_move() {
        let (three, two) = (table(&["a", "b", "c"]), table(&["a", "b"]));
        let mut counts = std::collections::BTreeMap::<String, u32>::new();
        for n in 0..3000 {
            let key = n.to_string();
            let home = home_name(&three, &key);
            if home != "c" {
                assert_eq!(home_name(&two, &key), home, "{key} moved without need");
            }
            *counts.entry(home).or_default() += 1;
        }
        assert!(counts.values().all(|count| (900..1100).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_message_group_waits_for_the_broker_that_holds_it_and_a_lite_topic_does_not() {
        let (mut left, two) = (table(&["a", "b", "c"]), table(&["a", "b"]));
        let at_c =
            (0..).map(|n| n.to_string()).find(|key| home_name(&left, key) == "c").expect("there is one");
        left.apply(RouteChange { change: Some(Change::Left("c".into())) });
        assert_eq!(home_name(&left, &at_c), "c");
        assert_eq!(home(&left, "t", &at_c, Ordered::LiteTopic), home(&two, "t", &at_c, Ordered::LiteTopic));
        // Also of a node that was not there yet when it left.
        let mut later = RouteTable::default();
        left.states()
            .into_iter()
            .for_each(|state| later.apply(RouteChange { change: Some(Change::Joined(state)) }));
        assert_ne!(home_name(&later, &at_c), "c");
        left.states_away().into_iter().for_each(|state| later.expect_back(state));
        assert_eq!(home_name(&later, &at_c), "c");
        let state = BrokerState {
            identity: Some(BrokerIdentity { broker_name: "c".into(), ..Default::default() }),
            ..Default::default()
        };
        left.apply(RouteChange { change: Some(Change::Joined(state)) });
        assert_eq!(home_name(&left, &at_c), home_name(&two, &at_c), "it came back without the topic");
    }

    #[tokio::test]
    async fn a_node_that_does_not_know_the_others_yet_waits_for_them() {
        let routes = crate::route_table::SharedRoutes::default();
        routes.learnt().await;
        routes.begin_to_learn();
        let soon = std::time::Duration::ZERO;
        assert!(tokio::time::timeout(soon, routes.learnt()).await.is_err());
        routes.end_to_learn();
        routes.learnt().await;
    }

    #[test]
    fn a_batch_has_a_home_when_its_message_groups_have_the_same() {
        let table = table(&["a", "b"]);
        let (here, there): (Vec<String>, Vec<String>) =
            (0..20).map(|n| n.to_string()).partition(|group| home_name(&table, group) == "a");
        let batch = |groups: &[&String]| {
            let messages: Vec<_> = groups.iter().map(|group| message(group)).collect();
            home_of_batch(&table, "t", &messages, Ordered::MessageGroup)
                .map(|home| home.map(|home| home.broker_name.clone()))
        };
        assert_eq!(batch(&[&here[0], &here[1]]), Ok(Some("a".into())));
        assert_eq!(batch(&[]), Ok(None));
        let apart = batch(&[&here[0], &here[1], &there[0]]);
        assert!(matches!(apart, Err(Rejection::IllegalMessageGroup { index: 2, .. })), "{apart:?}");
    }
}
