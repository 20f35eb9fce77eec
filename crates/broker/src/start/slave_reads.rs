//! What a slave reads of its own copy when its master does not answer (`slaveReadEnable`): pulls, offsets of queues and groups, and
//! operators' look-ups of messages, below what its master has shown. It writes nothing. On the data threads.

use std::sync::Arc;

use karman_remoting::proto::karman as v1;
use karman_remoting::proto::karman::admin_server::Admin;
use karman_remoting::proto::v2;
use karman_remoting::proto::v2::messaging_service_server::MessagingService;
use karman_remoting::status::Rejection;
use parking_lot::Mutex;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

use super::master;
use crate::broker::Broker;
use crate::config::BrokerConfig;
use crate::dedupe::Dedupe;
use crate::open::Opened;
use crate::service::admin::AdminService;
use crate::service::messaging::Messaging;
use crate::service::pull;

/// See the module's comment.
#[derive(Debug)]
pub(super) struct SlaveReads {
    config: BrokerConfig,
    /// What the slave has opened and may show at the moment.
    opened: Arc<Mutex<Option<Opened>>>,
    /// Over the store that it had opened when it was last asked.
    broker: Mutex<Option<Arc<Broker>>>,
    stopping: CancellationToken,
}

impl SlaveReads {
    pub(super) fn new(
        config: &BrokerConfig,
        opened: Arc<Mutex<Option<Opened>>>,
        stopping: CancellationToken,
    ) -> Self {
        Self { config: config.clone(), opened, broker: Mutex::default(), stopping }
    }

    fn messaging(&self) -> Result<Messaging, Rejection> {
        self.broker().map(Messaging)
    }

    fn broker(&self) -> Result<Arc<Broker>, Rejection> {
        let none = |why: &str| Rejection::PeerUnavailable {
            broker: self.config.broker_name.clone(),
            why: format!("its slave here {why}; try again later"),
        };
        let opened = self
            .opened
            .lock()
            .clone()
            .ok_or_else(|| none("has not heard yet how much of its log may be shown"))?;
        let mut broker = self.broker.lock();
        if let Some(broker) = broker.as_ref().filter(|broker| Arc::ptr_eq(&broker.store, &opened.store)) {
            return Ok(broker.clone());
        }
        // A master records it before anything else; a slave records nothing.
        if opened.catalog.token_key().is_none() {
            return Err(none("has nothing of its master's log yet"));
        }
        let (deltas, _) = broadcast::channel(1);
        // The tasks are for what is written, and nothing is here.
        // Nor does it give out handles.
        let assembled = master::assemble(&self.config, opened, 0, &deltas, Arc::new(Dedupe::new(0, 0)));
        let (mut made, _tasks) = assembled.map_err(|error| none(&format!("cannot read its log: {error}")))?;
        made.stopping = self.stopping.clone();
        let made = Arc::new(made);
        *broker = Some(made.clone());
        tracing::warn!(
            broker = self.config.broker_name,
            "answers reads in place of its master, which does not"
        );
        Ok(made)
    }
}

#[tonic::async_trait]
impl MessagingService for SlaveReads {
    async fn pull_message(
        &self,
        request: Request<v2::PullMessageRequest>,
    ) -> Result<Response<BoxStream<v2::PullMessageResponse>>, Status> {
        match self.messaging() {
            Ok(messaging) => messaging.pull_message(request).await,
            Err(rejection) => Ok(Response::new(pull::nothing(rejection))),
        }
    }

    async fn get_offset(
        &self,
        request: Request<v2::GetOffsetRequest>,
    ) -> Result<Response<v2::GetOffsetResponse>, Status> {
        match self.messaging() {
            Ok(messaging) => messaging.get_offset(request).await,
            Err(rejection) => Ok(Response::new(rejection.into())),
        }
    }

    async fn query_offset(
        &self,
        request: Request<v2::QueryOffsetRequest>,
    ) -> Result<Response<v2::QueryOffsetResponse>, Status> {
        match self.messaging() {
            Ok(messaging) => messaging.query_offset(request).await,
            Err(rejection) => Ok(Response::new(rejection.into())),
        }
    }
}

#[tonic::async_trait]
impl Admin for SlaveReads {
    async fn query_messages(
        &self,
        request: Request<v1::QueryMessagesRequest>,
    ) -> Result<Response<v1::QueryMessagesResponse>, Status> {
        match self.broker() {
            Ok(broker) => AdminService(broker).query_messages(request).await,
            Err(rejection) => Ok(Response::new(rejection.into())),
        }
    }
}
