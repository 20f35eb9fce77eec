//! Each call of the service: on all brokers, and what they answered as one.

use futures_util::future::join_all;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use super::merge::{self, Answered, collected, respond};
use super::{AdminFront, BROKER_TIMEOUT};
use crate::front::standby::marked;
use crate::metadata;
use crate::proto::karman::admin_server::Admin;
use crate::proto::karman::{self as v1, BrokerIdentity};
use crate::proto::v2::{self, Code};
use crate::relay::failure;
use crate::status::{Answer as _, ok};

#[tonic::async_trait]
impl Admin for AdminFront {
    async fn create_topic(
        &self,
        request: Request<v1::CreateTopicRequest>,
    ) -> Result<Response<v1::CreateTopicResponse>, Status> {
        let name = request.get_ref().topic.clone().unwrap_or_default().name;
        let answers: Vec<Answered<v1::CreateTopicResponse>> = door!(self, create_topic, request);
        let (status, brokers) = merge::results(answers);
        self.wait_for_routes(&name, &brokers).await;
        Ok(Response::new(v1::CreateTopicResponse { status: Some(status), brokers }))
    }

    async fn delete_topic(
        &self,
        request: Request<v1::DeleteTopicRequest>,
    ) -> Result<Response<v1::DeleteTopicResponse>, Status> {
        let answers: Vec<Answered<v1::DeleteTopicResponse>> = door!(self, delete_topic, request);
        let (status, brokers) = merge::results(merge::without(answers, Code::TopicNotFound));
        Ok(Response::new(v1::DeleteTopicResponse { status: Some(status), brokers }))
    }

    async fn update_topic(
        &self,
        request: Request<v1::UpdateTopicRequest>,
    ) -> Result<Response<v1::UpdateTopicResponse>, Status> {
        let (metadata, message) = enter!(self, update_topic, request);
        let brokers = match self.brokers_asked(&message.broker_name) {
            Ok(brokers) => brokers,
            Err(rejection) => return Ok(Response::new(rejection.into())),
        };
        let answers: Vec<Answered<v1::UpdateTopicResponse>> =
            on_brokers!(self, brokers, update_topic, &metadata, message);
        let (status, brokers) = merge::results(merge::without(answers, Code::TopicNotFound));
        Ok(Response::new(v1::UpdateTopicResponse { status: Some(status), brokers }))
    }

    async fn create_group(
        &self,
        request: Request<v1::CreateGroupRequest>,
    ) -> Result<Response<v1::CreateGroupResponse>, Status> {
        let answers: Vec<Answered<v1::CreateGroupResponse>> = door!(self, create_group, request);
        let (status, brokers) = merge::results(answers);
        Ok(Response::new(v1::CreateGroupResponse { status: Some(status), brokers }))
    }

    async fn update_group(
        &self,
        request: Request<v1::UpdateGroupRequest>,
    ) -> Result<Response<v1::UpdateGroupResponse>, Status> {
        let (metadata, message) = enter!(self, update_group, request);
        Ok(Response::new(self.change_group(&metadata, message).await))
    }

    async fn delete_group(
        &self,
        request: Request<v1::DeleteGroupRequest>,
    ) -> Result<Response<v1::DeleteGroupResponse>, Status> {
        let (metadata, message) = enter!(self, delete_group, request);
        Ok(Response::new(self.delete_group_everywhere(&metadata, message).await))
    }

    async fn list_topics(
        &self,
        request: Request<v1::ListTopicsRequest>,
    ) -> Result<Response<v1::ListTopicsResponse>, Status> {
        let answers: Vec<Answered<v1::ListTopicsResponse>> = door!(self, list_topics, request);
        respond(collected(answers, |answer| answer.topics).map(|mut topics| {
            let name = |row: &v1::TopicSummary| row.topic.as_ref().map(|topic| topic.name.clone());
            topics.sort_by_key(|row| (name(row), row.broker_name.clone()));
            v1::ListTopicsResponse { status: Some(ok()), topics }
        }))
    }

    async fn describe_topic(
        &self,
        request: Request<v1::DescribeTopicRequest>,
    ) -> Result<Response<v1::DescribeTopicResponse>, Status> {
        let name = request.get_ref().name.clone();
        let answers: Vec<Answered<v1::DescribeTopicResponse>> = door!(self, describe_topic, request);
        respond(collected(answers, |answer| vec![answer]).and_then(|parts| merge::topic(name, parts)))
    }

    async fn list_groups(
        &self,
        request: Request<v1::ListGroupsRequest>,
    ) -> Result<Response<v1::ListGroupsResponse>, Status> {
        let answers: Vec<Answered<v1::ListGroupsResponse>> = door!(self, list_groups, request);
        respond(collected(answers, |answer| answer.groups).map(|mut groups| {
            let name = |row: &v1::GroupSummary| row.group.as_ref().map(|group| group.name.clone());
            groups.sort_by_key(|row| (name(row), row.broker_name.clone(), row.topic.clone()));
            v1::ListGroupsResponse { status: Some(ok()), groups }
        }))
    }

    async fn describe_group(
        &self,
        request: Request<v1::DescribeGroupRequest>,
    ) -> Result<Response<v1::DescribeGroupResponse>, Status> {
        let name = request.get_ref().name.clone();
        let answers: Vec<Answered<v1::DescribeGroupResponse>> = door!(self, describe_group, request);
        respond(collected(answers, |answer| vec![answer]).and_then(|parts| merge::group(name, parts)))
    }

    async fn reset_offset(
        &self,
        request: Request<v1::ResetOffsetRequest>,
    ) -> Result<Response<v1::ResetOffsetResponse>, Status> {
        let (metadata, message) = enter!(self, reset_offset, request);
        respond(self.reset(&metadata, message).await)
    }

    async fn redrive_dead_letters(
        &self,
        request: Request<v1::RedriveDeadLettersRequest>,
    ) -> Result<Response<v1::RedriveDeadLettersResponse>, Status> {
        let answers: Vec<Answered<v1::RedriveDeadLettersResponse>> =
            door!(self, redrive_dead_letters, request);
        Ok(Response::new(merge::redriven(merge::without(answers, Code::ConsumerGroupNotFound))))
    }

    async fn explain_message(
        &self,
        request: Request<v1::ExplainMessageRequest>,
    ) -> Result<Response<v1::ExplainMessageResponse>, Status> {
        let topic = request.get_ref().topic.clone();
        let answers: Vec<Answered<v1::ExplainMessageResponse>> = door!(self, explain_message, request);
        let place = if topic.is_empty() { Ok(()) } else { self.check_place(&topic, "") };
        let traces =
            place.map_err(v2::Status::from).and_then(|()| collected(answers, |answer| answer.traces));
        respond(traces.map(|mut traces| {
            traces.sort_by_key(|trace| (trace.broker_name.clone(), trace.physical_offset));
            v1::ExplainMessageResponse { status: Some(ok()), traces }
        }))
    }

    async fn list_clients(
        &self,
        request: Request<v1::ListClientsRequest>,
    ) -> Result<Response<v1::ListClientsResponse>, Status> {
        let answers: Vec<Answered<v1::ListClientsResponse>> = door!(self, list_clients, request);
        respond(collected(answers, |answer| vec![answer]).map(merge::clients))
    }

    async fn ask_client(
        &self,
        request: Request<v1::AskClientRequest>,
    ) -> Result<Response<v1::AskClientResponse>, Status> {
        let client_id = request.get_ref().client_id.clone();
        let answers: Vec<Answered<v1::AskClientResponse>> = door!(self, ask_client, request);
        respond(merge::asked(client_id, answers))
    }

    async fn forget_subscription(
        &self,
        request: Request<v1::ForgetSubscriptionRequest>,
    ) -> Result<Response<v1::ForgetSubscriptionResponse>, Status> {
        let answers: Vec<Answered<v1::ForgetSubscriptionResponse>> =
            door!(self, forget_subscription, request);
        let answers =
            merge::without(merge::without(answers, Code::TopicNotFound), Code::ConsumerGroupNotFound);
        let (status, _) = merge::results(answers);
        Ok(Response::new(v1::ForgetSubscriptionResponse { status: Some(status) }))
    }

    async fn describe_config(
        &self,
        request: Request<v1::DescribeConfigRequest>,
    ) -> Result<Response<v1::DescribeConfigResponse>, Status> {
        self.admit(request.metadata(), request.extensions(), request.get_ref(), "describe_config")?;
        let mut nodes = vec![self.config.as_ref().clone()];
        if !metadata::is_relayed(request.metadata()) {
            let (metadata, _, message) = request.into_parts();
            let mut brokers = self.brokers();
            brokers.retain(|broker| broker.broker_name != self.node_name());
            let answers: Vec<Answered<v1::DescribeConfigResponse>> =
                on_brokers!(self, brokers, describe_config, &metadata, message);
            nodes.extend(answers.into_iter().flat_map(|(broker, answer)| match answer {
                Ok(answer) => answer.nodes,
                Err(status) => {
                    let node = broker.broker_name;
                    vec![v1::NodeConfig { node, status: Some(status), values: vec![] }]
                }
            }));
        }
        Ok(Response::new(v1::DescribeConfigResponse { status: Some(ok()), nodes }))
    }

    async fn query_messages(
        &self,
        request: Request<v1::QueryMessagesRequest>,
    ) -> Result<Response<v1::QueryMessagesResponse>, Status> {
        let asked = request.get_ref().clone();
        let (answers, why): (Vec<Answered<v1::QueryMessagesResponse>>, _) =
            door_or_standby!(self, query_messages, request);
        let place = match why {
            // The master's routes may be gone.
            Some(_) => Ok(()),
            None => self.check_place(&asked.topic, &asked.broker_name).map_err(v2::Status::from),
        };
        let parts = place.and_then(|()| collected(answers, |answer| vec![answer]));
        let answer = respond(parts.map(|parts| merge::messages(parts, asked.by.as_ref(), asked.max)))?;
        Ok(match why {
            Some((broker, why)) => marked(answer, &broker, &why),
            None => answer,
        })
    }

    async fn list_delayed(
        &self,
        request: Request<v1::ListDelayedRequest>,
    ) -> Result<Response<v1::ListDelayedResponse>, Status> {
        let (metadata, message) = enter!(self, list_delayed, request);
        let brokers = self.broker_named(&message.broker_name);
        respond(match brokers {
            Ok(brokers) => {
                let answers: Vec<Answered<v1::ListDelayedResponse>> =
                    on_brokers!(self, brokers, list_delayed, &metadata, message);
                merge::only(answers)
            }
            Err(rejection) => Err(rejection.into()),
        })
    }

    async fn restore_messages(
        &self,
        request: Request<v1::RestoreMessagesRequest>,
    ) -> Result<Response<v1::RestoreMessagesResponse>, Status> {
        let (metadata, message) = enter!(self, restore_messages, request);
        let brokers = self.broker_named(&message.broker_name);
        respond(match brokers {
            Ok(brokers) => {
                let answers: Vec<Answered<v1::RestoreMessagesResponse>> =
                    on_brokers!(self, brokers, restore_messages, &metadata, message);
                merge::only(answers)
            }
            Err(rejection) => Err(rejection.into()),
        })
    }

    async fn verify_store(
        &self,
        request: Request<v1::VerifyStoreRequest>,
    ) -> Result<Response<BoxStream<v1::VerifyStoreResponse>>, Status> {
        let (metadata, message) = enter!(self, verify_store, request);
        Ok(Response::new(self.verify_all(&metadata, message).await))
    }

    async fn change_user(
        &self,
        request: Request<v1::ChangeUserRequest>,
    ) -> Result<Response<v1::ChangeUserResponse>, Status> {
        let (metadata, message) = enter!(self, change_user, request);
        Ok(Response::new(self.change_user_everywhere(&metadata, message).await))
    }

    async fn list_users(
        &self,
        request: Request<v1::ListUsersRequest>,
    ) -> Result<Response<v1::ListUsersResponse>, Status> {
        let (_, message) = enter!(self, list_users, request);
        respond(self.users_known(&message.name).map_err(v2::Status::from))
    }

    async fn store_user(
        &self,
        request: Request<v1::StoreUserRequest>,
    ) -> Result<Response<v1::StoreUserResponse>, Status> {
        let _ = enter!(self, store_user, request);
        Err(Status::permission_denied("users are changed with ChangeUser"))
    }

    async fn describe_cluster(
        &self,
        request: Request<v1::DescribeClusterRequest>,
    ) -> Result<Response<v1::DescribeClusterResponse>, Status> {
        let answers: Vec<Answered<v1::DescribeClusterResponse>> = door!(self, describe_cluster, request);
        let mut brokers = Vec::new();
        for (identity, answer) in answers {
            match answer {
                Ok(answer) => brokers.extend(answer.brokers),
                // Here the hole is the news: the row says why it is empty.
                Err(status) => brokers.push(v1::BrokerStatus {
                    cluster: identity.cluster,
                    broker_name: identity.broker_name,
                    broker_id: identity.broker_id,
                    internal_address: identity.internal_address,
                    version: identity.version,
                    status: Some(status),
                    ..Default::default()
                }),
            }
        }
        brokers.sort_by(|a, b| a.broker_name.cmp(&b.broker_name));
        let refused = self.refusals.lately();
        Ok(Response::new(v1::DescribeClusterResponse { status: Some(ok()), brokers, refused }))
    }
}
