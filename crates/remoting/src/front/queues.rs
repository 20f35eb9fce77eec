//! Calls about one queue: they go to the broker that the queue names.

use tonic::codegen::BoxStream;
use tonic::{Request, Response};

use super::standby::or_standby;
use super::{Front, Owner, call, failure_here};
use crate::auth::Peer;
use crate::proto::v2;
use crate::relay::failure;
use crate::status::Rejection;
use crate::{metadata, settings, validate};

/// [`call`] for the calls that answer with a stream of frames.
macro_rules! stream {
    ($front:expr, $owner:expr, $method:ident, $request:expr) => {
        match $owner {
            Owner::Here(service) => service.$method($request).await.map_err(|status| failure_here(&status)),
            Owner::There(peer) => {
                let relayed = $front.peers.relayed($request);
                let answered = $front.peers.messaging(&peer)?.$method(relayed).await;
                let answered = answered.map_err(|status| failure(&peer, &status))?;
                Ok(answered.map(|frames| Box::pin(frames) as BoxStream<_>))
            }
        }
    };
}

impl Front {
    pub(super) async fn receive(
        &self,
        mut request: Request<v2::ReceiveMessageRequest>,
    ) -> Result<Response<BoxStream<v2::ReceiveMessageResponse>>, Rejection> {
        let caller = self.heard(&request)?;
        let relayed = caller.relayed;
        let queue = request.get_ref().message_queue.as_ref();
        let owner = match broker_of(queue) {
            "" => {
                let topic = validate::topic_of(queue.and_then(|queue| queue.topic.as_ref()))?;
                self.until_topic_known(topic, relayed).await;
                let owner = self.owners_of_topic(topic, relayed).pop();
                owner.ok_or_else(|| match relayed {
                    true => self.not_here(),
                    false => Rejection::TopicNotFound { topic: topic.to_owned() },
                })?
            }
            broker => self.owner_named(broker, relayed).await?,
        };
        match &owner {
            Owner::Here(_) => self.note_subscription(&caller.client_id, request.get_ref())?,
            Owner::There(peer) => {
                let line = match request.extensions().get::<Peer>() {
                    Some(Peer { line, .. }) if request.get_ref().auto_renew => {
                        line.hold_at(peer, &self.peers).await
                    }
                    _ => None,
                };
                metadata::set_line(request.metadata_mut(), line);
            }
        }
        stream!(self, owner, receive_message, request)
    }

    /// Remembers what a consumer receives, which its settings may not have said here. Names that the broker refuses are
    /// left to it.
    fn note_subscription(
        &self,
        client_id: &str,
        request: &v2::ReceiveMessageRequest,
    ) -> Result<(), Rejection> {
        let group = validate::name_of(request.group.as_ref());
        let topic = validate::name_of(request.message_queue.as_ref().and_then(|queue| queue.topic.as_ref()));
        let client_type = self.clients.client_type(client_id).unwrap_or_default();
        {
            let routes = self.routes.read();
            settings::check_lite(client_type, routes.group(group), [topic])?;
            if routes.message_type(topic).is_none() || validate::group(group).is_err() {
                return Ok(());
            }
        }
        self.clients.subscribed(client_id, group, topic, request.filter_expression.as_ref());
        Ok(())
    }

    pub(super) async fn pull(
        &self,
        request: Request<v2::PullMessageRequest>,
    ) -> Result<Response<BoxStream<v2::PullMessageResponse>>, Rejection> {
        or_standby!(self, request, pull_at_owner, pull_message)
    }

    async fn pull_at_owner(
        &self,
        request: Request<v2::PullMessageRequest>,
    ) -> Result<Response<BoxStream<v2::PullMessageResponse>>, Rejection> {
        let relayed = self.heard(&request)?.relayed;
        let owner = self.owner_of_queue(request.get_ref().message_queue.as_ref(), relayed).await?;
        stream!(self, owner, pull_message, request)
    }

    pub(super) async fn offset_of_queue(
        &self,
        request: Request<v2::QueryOffsetRequest>,
    ) -> Result<Response<v2::QueryOffsetResponse>, Rejection> {
        or_standby!(self, request, offset_at_owner, query_offset)
    }

    async fn offset_at_owner(
        &self,
        request: Request<v2::QueryOffsetRequest>,
    ) -> Result<Response<v2::QueryOffsetResponse>, Rejection> {
        let relayed = self.heard(&request)?.relayed;
        let owner = self.owner_of_queue(request.get_ref().message_queue.as_ref(), relayed).await?;
        call!(self, owner, query_offset, request)
    }

    pub(super) async fn stored_offset_of_queue(
        &self,
        request: Request<v2::GetOffsetRequest>,
    ) -> Result<Response<v2::GetOffsetResponse>, Rejection> {
        or_standby!(self, request, stored_offset_at_owner, get_offset)
    }

    async fn stored_offset_at_owner(
        &self,
        request: Request<v2::GetOffsetRequest>,
    ) -> Result<Response<v2::GetOffsetResponse>, Rejection> {
        let relayed = self.heard(&request)?.relayed;
        let owner = self.owner_of_queue(request.get_ref().message_queue.as_ref(), relayed).await?;
        call!(self, owner, get_offset, request)
    }

    pub(super) async fn update_offset_of_queue(
        &self,
        request: Request<v2::UpdateOffsetRequest>,
    ) -> Result<Response<v2::UpdateOffsetResponse>, Rejection> {
        let relayed = self.heard(&request)?.relayed;
        let owner = self.owner_of_queue(request.get_ref().message_queue.as_ref(), relayed).await?;
        call!(self, owner, update_offset, request)
    }

    /// The broker that a queue names. One that names none is clear only where one broker has the topic: an offset of
    /// another broker's queue is worth nothing.
    async fn owner_of_queue(
        &self,
        queue: Option<&v2::MessageQueue>,
        relayed: bool,
    ) -> Result<Owner<'_>, Rejection> {
        let broker = broker_of(queue);
        if relayed || !broker.is_empty() {
            return self.owner_named(broker, relayed).await;
        }
        let topic = validate::topic_of(queue.and_then(|queue| queue.topic.as_ref()))?;
        self.until_topic_known(topic, relayed).await;
        let routes = self.routes.read();
        let mut masters = routes.masters_of(topic);
        match (masters.next(), masters.count()) {
            (None, _) => Err(Rejection::TopicNotFound { topic: topic.to_owned() }),
            (Some((identity, _)), 0) => Ok(self.owner_of(identity)),
            (Some(_), others) => Err(Rejection::BadRequest(format!(
                "{} brokers have queues of topic {topic:?}; message_queue.broker.name must say which one is meant",
                others + 1
            ))),
        }
    }
}

pub(super) fn broker_of(queue: Option<&v2::MessageQueue>) -> &str {
    queue.and_then(|queue| queue.broker.as_ref()).map_or("", |broker| broker.name.as_str())
}
