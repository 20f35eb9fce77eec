//! Which rights each call needs: one place for all of them. Pure; any thread.
//!
//! Those of clients are RocketMQ's: sending needs Pub on the topic; what has to do with receiving needs Sub on the group
//! and, where it is about messages of a topic, on the topic; a route needs one of them. What operators do to a topic or
//! group needs Create, Update, Delete or Get on it; what is about all of them needs Get, List or Update on the cluster.

use super::policy::{Actions, Kind, Right};
use crate::message;
use crate::proto::karman as v1;
use crate::proto::v2;
use crate::proto::v2::settings::PubSub;
use crate::validate::{dead_letter_topic, name_of};

/// A call that needs rights.
pub trait Needs {
    /// Names each of them; all are needed.
    fn needs(&self, each: &mut dyn FnMut(Right<'_>));
}

/// What an operator does.
pub trait Administers: Needs {
    /// Something is another way afterwards: it is written into the audit log.
    const CHANGES: bool;
    /// For super users only, whatever policies say: who may give rights may do everything.
    const SUPER: bool = false;
}

type Each<'a> = &'a mut dyn FnMut(Right<'_>);

fn topic(each: Each<'_>, actions: Actions, name: &str) {
    each(Right { actions, kind: Kind::Topic, name });
}

fn group(each: Each<'_>, actions: Actions, name: &str) {
    each(Right { actions, kind: Kind::Group, name });
}

/// The name of the cluster is filled in by who decides.
fn cluster(each: Each<'_>, actions: Actions) {
    each(Right { actions, kind: Kind::Cluster, name: "" });
}

fn topic_of(queue: Option<&v2::MessageQueue>) -> &str {
    name_of(queue.and_then(|queue| queue.topic.as_ref()))
}

impl Needs for v2::SendMessageRequest {
    fn needs(&self, each: Each<'_>) {
        let mut last = None;
        for message in &self.messages {
            let name = message::topic_to_send_to(message);
            // A batch is of one topic, or is refused; it is asked once.
            if last != Some(name) {
                topic(each, Actions::PUB, name);
                last = Some(name);
            }
        }
    }
}

impl Needs for v2::Settings {
    fn needs(&self, each: Each<'_>) {
        match &self.pub_sub {
            Some(PubSub::Publishing(publishing)) => {
                publishing.topics.iter().for_each(|name| topic(each, Actions::PUB, &name.name));
            }
            Some(PubSub::Subscription(subscription)) => {
                group(each, Actions::SUB, name_of(subscription.group.as_ref()));
                let entries = subscription.subscriptions.iter();
                entries.for_each(|entry| topic(each, Actions::SUB, name_of(entry.topic.as_ref())));
            }
            None => {}
        }
    }
}

impl Needs for v2::HeartbeatRequest {
    fn needs(&self, each: Each<'_>) {
        let is_producer = matches!(self.client_type(), v2::ClientType::Producer);
        let name = name_of(self.group.as_ref());
        // One that says that it produces has no group, or one that nothing is done with.
        if !is_producer || !name.is_empty() {
            group(each, Actions::SUB, name);
        }
    }
}

impl Needs for v2::NotifyClientTerminationRequest {
    fn needs(&self, each: Each<'_>) {
        if let Some(name) = self.group.as_ref().filter(|name| !name.name.is_empty()) {
            group(each, Actions::SUB, &name.name);
        }
    }
}

/// `call: on the topic|group, by the fields`.
macro_rules! needs {
    ($($request:ty: |$own:ident, $each:ident| $($kind:ident($actions:expr, $name:expr)),*;)*) => {
        $(impl Needs for $request {
            #[allow(unused_variables, reason = "what is about the cluster looks at no field")]
            fn needs(&self, $each: Each<'_>) {
                let $own = self;
                $($kind($each, $actions, $name);)*
            }
        })*
    };
}

const ROUTE: Actions = Actions::PUB.or(Actions::SUB);

needs! {
    v2::QueryRouteRequest: |own, each| topic(ROUTE, name_of(own.topic.as_ref()));
    v2::RecallMessageRequest: |own, each| topic(Actions::PUB, name_of(own.topic.as_ref()));
    v2::EndTransactionRequest: |own, each| topic(Actions::PUB, name_of(own.topic.as_ref()));
    v2::QueryOffsetRequest: |own, each| topic(Actions::SUB, topic_of(own.message_queue.as_ref()));
    v2::ChangeInvisibleDurationRequest: |own, each| group(Actions::SUB, name_of(own.group.as_ref()));
    v2::QueryAssignmentRequest: |own, each|
        group(Actions::SUB, name_of(own.group.as_ref())), topic(Actions::SUB, name_of(own.topic.as_ref()));
    v2::ReceiveMessageRequest: |own, each|
        group(Actions::SUB, name_of(own.group.as_ref())), topic(Actions::SUB, topic_of(own.message_queue.as_ref()));
    v2::AckMessageRequest: |own, each|
        group(Actions::SUB, name_of(own.group.as_ref())), topic(Actions::SUB, name_of(own.topic.as_ref()));
    v2::ForwardMessageToDeadLetterQueueRequest: |own, each|
        group(Actions::SUB, name_of(own.group.as_ref())), topic(Actions::SUB, name_of(own.topic.as_ref()));
    v2::PullMessageRequest: |own, each|
        group(Actions::SUB, name_of(own.group.as_ref())), topic(Actions::SUB, topic_of(own.message_queue.as_ref()));
    v2::UpdateOffsetRequest: |own, each|
        group(Actions::SUB, name_of(own.group.as_ref())), topic(Actions::SUB, topic_of(own.message_queue.as_ref()));
    v2::GetOffsetRequest: |own, each|
        group(Actions::SUB, name_of(own.group.as_ref())), topic(Actions::SUB, topic_of(own.message_queue.as_ref()));
    v2::SyncLiteSubscriptionRequest: |own, each|
        group(Actions::SUB, name_of(own.group.as_ref())), topic(Actions::SUB, name_of(own.topic.as_ref()));

    v1::CreateTopicRequest: |own, each|
        topic(Actions::CREATE, own.topic.as_ref().map_or("", |topic| &topic.name));
    v1::UpdateTopicRequest: |own, each|
        topic(Actions::UPDATE, own.topic.as_ref().map_or("", |topic| &topic.name));
    v1::DeleteTopicRequest: |own, each| topic(Actions::DELETE, &own.name);
    v1::DescribeTopicRequest: |own, each| topic(Actions::GET, &own.name);
    v1::CreateGroupRequest: |own, each|
        group(Actions::CREATE, own.group.as_ref().map_or("", |group| &group.name));
    v1::UpdateGroupRequest: |own, each|
        group(Actions::UPDATE, own.group.as_ref().map_or("", |group| &group.name));
    v1::DeleteGroupRequest: |own, each|
        group(Actions::DELETE, &own.name), topic(Actions::DELETE, &dead_letter_topic(&own.name));
    v1::DescribeGroupRequest: |own, each| group(Actions::GET, &own.name);
    v1::ResetOffsetRequest: |own, each| group(Actions::UPDATE, &own.group), topic(Actions::GET, &own.topic);
    v1::ForgetSubscriptionRequest: |own, each|
        group(Actions::UPDATE, &own.group), topic(Actions::GET, &own.topic);
    // Where they go is written in them: it may be any topic.
    v1::RedriveDeadLettersRequest: |own, each| group(Actions::UPDATE, &own.group), topic(Actions::PUB, "*");
    // An empty name asks for all.
    v1::ExplainMessageRequest: |own, each| topic(Actions::GET, or_all(&own.topic)), group(Actions::GET, or_all(&own.group));
    v1::QueryMessagesRequest: |own, each| topic(Actions::GET, &own.topic);
    // Those of all topics.
    v1::ListDelayedRequest: |_own, each| topic(Actions::GET, "*");
    v1::RestoreMessagesRequest: |own, each| topic(Actions::UPDATE, &own.topic);
}

/// No topic or group is called `*`: a policy for all of them is needed.
fn or_all(name: &str) -> &str {
    if name.is_empty() { "*" } else { name }
}

/// Calls that are about the cluster.
macro_rules! of_cluster {
    ($($request:ty: $actions:expr;)*) => {
        $(impl Needs for $request {
            fn needs(&self, each: Each<'_>) {
                cluster(each, $actions);
            }
        })*
    };
}

of_cluster! {
    v1::ListTopicsRequest: Actions::LIST;
    v1::ListGroupsRequest: Actions::LIST;
    v1::ListClientsRequest: Actions::LIST;
    v1::ListUsersRequest: Actions::LIST;
    v1::DescribeClusterRequest: Actions::GET;
    v1::DescribeConfigRequest: Actions::GET;
    v1::AskClientRequest: Actions::UPDATE;
    v1::VerifyStoreRequest: Actions::UPDATE;
    v1::ChangeUserRequest: Actions::UPDATE;
    v1::StoreUserRequest: Actions::UPDATE;

    v2::ChangeLogLevelRequest: Actions::UPDATE;
    v2::DeleteSubscriptionRequest: Actions::UPDATE;
    v2::ResetGroupOffsetRequest: Actions::UPDATE;
    v2::VerifyMessageRequest: Actions::UPDATE;
    v2::AdminSendMessageRequest: Actions::UPDATE;
    v2::PrintThreadStackTraceRequest: Actions::UPDATE;
    v2::DescribeTopicStatusRequest: Actions::GET;
    v2::ListSubscriptionRequest: Actions::GET;
    v2::DescribeSubscriptionRequest: Actions::GET;
    v2::DescribeGroupAccumulationRequest: Actions::GET;
    v2::ListConsumerConnectionRequest: Actions::GET;
    v2::ListMessageRequest: Actions::GET;
    v2::GetConsumerRunningInfoRequest: Actions::GET;
    v2::GetTopicRouteRequest: Actions::GET;
    v2::QueryTimeSpanRequest: Actions::GET;
    v2::GetProxyRuntimeStatsRequest: Actions::GET;
}

macro_rules! administers {
    (changes: $($change:ty),* ; looks: $($look:ty),* ; super: $($super:ty),* $(,)?) => {
        $(impl Administers for $change {
            const CHANGES: bool = true;
        })*
        $(impl Administers for $look {
            const CHANGES: bool = false;
        })*
        $(impl Administers for $super {
            const CHANGES: bool = true;
            const SUPER: bool = true;
        })*
    };
}

administers! {
    changes: v1::CreateTopicRequest, v1::UpdateTopicRequest, v1::DeleteTopicRequest, v1::CreateGroupRequest,
        v1::UpdateGroupRequest, v1::DeleteGroupRequest, v1::ResetOffsetRequest, v1::ForgetSubscriptionRequest, v1::RedriveDeadLettersRequest,
        v1::AskClientRequest, v1::VerifyStoreRequest, v1::RestoreMessagesRequest, v2::ChangeLogLevelRequest, v2::DeleteSubscriptionRequest,
        v2::ResetGroupOffsetRequest, v2::VerifyMessageRequest, v2::AdminSendMessageRequest,
        v2::PrintThreadStackTraceRequest;
    looks: v1::DescribeTopicRequest, v1::DescribeGroupRequest, v1::ExplainMessageRequest, v1::QueryMessagesRequest,
        v1::ListTopicsRequest, v1::ListGroupsRequest, v1::ListClientsRequest, v1::ListUsersRequest,
        v1::DescribeClusterRequest, v1::ListDelayedRequest, v1::DescribeConfigRequest, v2::DescribeTopicStatusRequest, v2::ListSubscriptionRequest,
        v2::DescribeSubscriptionRequest, v2::DescribeGroupAccumulationRequest, v2::ListConsumerConnectionRequest,
        v2::ListMessageRequest, v2::GetConsumerRunningInfoRequest, v2::GetTopicRouteRequest, v2::QueryTimeSpanRequest,
        v2::GetProxyRuntimeStatsRequest;
    super: v1::ChangeUserRequest, v1::StoreUserRequest,
}
