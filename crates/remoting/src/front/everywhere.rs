//! Calls that concern every broker: a client's heartbeat and termination, and a topic that is to be made.
//!
//! Only a door without a broker passes heartbeats on. The official clients send theirs to every broker they know; the
//! one that talks to its access point alone (Rust) is passed on from there.

use std::time::Duration;

use futures_util::future::join_all;
use tonic::{Request, Response};

use super::{Front, Owner, call, failure_here};
use crate::metadata;
use crate::proto::karman::BrokerIdentity;
use crate::proto::v2;
use crate::relay::failure;
use crate::status::{Rejection, ok};
use crate::validate;

/// A heartbeat must be answered fast; a broker that is slower misses one.
const PASS_ON_TIMEOUT: Duration = Duration::from_secs(1);

impl Front {
    pub(super) async fn beat(
        &self,
        request: Request<v2::HeartbeatRequest>,
    ) -> Result<v2::HeartbeatResponse, Rejection> {
        let caller = self.heard(&request)?;
        let group = validate::name_of(request.get_ref().group.as_ref());
        if !group.is_empty() {
            validate::group(group)?;
        }
        self.clients.heartbeat(&caller.client_id, request.get_ref().client_type(), group);
        if self.local.is_none() && !caller.relayed {
            let pass_on = self.all_brokers().into_iter().map(|peer| {
                let copy = self.peers.request(request.metadata(), request.get_ref().clone());
                async move { self.peers.messaging(&peer).ok()?.heartbeat(copy).await.ok() }
            });
            // Whoever is not reached hears the next one.
            let _ = tokio::time::timeout(PASS_ON_TIMEOUT, join_all(pass_on)).await;
        }
        Ok(v2::HeartbeatResponse { status: Some(ok()) })
    }

    pub(super) async fn terminate(
        &self,
        request: Request<v2::NotifyClientTerminationRequest>,
    ) -> Result<v2::NotifyClientTerminationResponse, Rejection> {
        let caller = self.heard(&request)?;
        self.clients.terminated(&caller.client_id);
        if let Some(local) = &self.local {
            // What the client held becomes visible to the others of its group.
            let answered = local.service.notify_client_termination(request).await;
            return answered.map(Response::into_inner).map_err(|status| failure_here(&status));
        }
        if !caller.relayed {
            let pass_on = self.all_brokers().into_iter().map(|peer| {
                let copy = self.peers.request(request.metadata(), request.get_ref().clone());
                async move { self.peers.messaging(&peer).ok()?.notify_client_termination(copy).await.ok() }
            });
            let _ = tokio::time::timeout(PASS_ON_TIMEOUT, join_all(pass_on)).await;
        }
        Ok(v2::NotifyClientTerminationResponse { status: Some(ok()) })
    }

    /// Asks each broker that creates unknown topics for the route; the queues of those that did.
    pub(super) async fn create_topic_by_asking(
        &self,
        request: Request<v2::QueryRouteRequest>,
    ) -> Vec<v2::MessageQueue> {
        let relayed = metadata::is_relayed(request.metadata());
        let creating = self.all_brokers().into_iter().filter(|broker| broker.auto_create_topics);
        let mut queues: Vec<v2::MessageQueue> = Vec::new();
        for broker in creating {
            let here = self.local.as_ref().filter(|_| self.is_local(&broker.broker_name));
            let owner = match here {
                Some(local) => Owner::Here(&*local.service),
                None if relayed => continue,
                None => Owner::There(broker),
            };
            let mut copy = Request::new(request.get_ref().clone());
            *copy.metadata_mut() = request.metadata().clone();
            let Ok(response) = call!(self, owner, query_route, copy) else { continue };
            for queue in response.into_inner().message_queues {
                if !queues.contains(&queue) {
                    queues.push(queue);
                }
            }
        }
        queues
    }

    fn all_brokers(&self) -> Vec<BrokerIdentity> {
        self.routes.read().brokers().cloned().collect()
    }
}
