//! Who may enter: every call that comes from a client is asked here, before anything else is done with it.
//!
//! A call that waits (a long poll) is asked again whenever users change, and ends when its user may not make it any more.

use tonic::codegen::BoxStream;
use tonic::{Request, Response};

use super::{Front, UNKNOWN_WAIT};
use crate::auth::{self, Needs, Who};
use crate::proto::v2;
use crate::status::Rejection;

impl Front {
    /// Refuses what the caller may not do. A node that has just started waits a while before it says so, for users it
    /// may not have heard of.
    pub(super) async fn admit<T: Needs>(&self, request: &Request<T>) -> Result<Who, Rejection> {
        match self.auth.admit(request) {
            Err(_) if self.routes.is_learning() => {
                let _ = tokio::time::timeout(UNKNOWN_WAIT, self.routes.learnt()).await;
                self.auth.admit(request)
            }
            admitted => admitted,
        }
    }

    /// [`Self::admit`], and counts what is sent in the quotas of who sends it.
    pub(super) async fn admit_send(
        &self,
        request: &Request<v2::SendMessageRequest>,
    ) -> Result<(), Rejection> {
        self.admit(request).await?.may_send(&request.get_ref().messages)
    }

    /// [`Self::admit`] for who opens a stream: it is asked later what it wants.
    pub(super) async fn who<T>(&self, request: &Request<T>) -> Result<Who, Rejection> {
        match self.auth.who(request.metadata(), request.extensions()) {
            Err(_) if self.routes.is_learning() => {
                let _ = tokio::time::timeout(UNKNOWN_WAIT, self.routes.learnt()).await;
                self.auth.who(request.metadata(), request.extensions())
            }
            who => who,
        }
    }

    pub(super) async fn receive_while_allowed(
        &self,
        request: Request<v2::ReceiveMessageRequest>,
    ) -> Result<Response<BoxStream<v2::ReceiveMessageResponse>>, Rejection> {
        self.admit(&request).await?;
        if !self.auth.is_on() {
            return self.receive(request).await;
        }
        let revoked = self.revoked(&request)?;
        tokio::select! {
            received = self.receive(request) => received,
            rejection = revoked => Err(rejection),
        }
    }

    pub(super) async fn pull_while_allowed(
        &self,
        request: Request<v2::PullMessageRequest>,
    ) -> Result<Response<BoxStream<v2::PullMessageResponse>>, Rejection> {
        self.admit(&request).await?;
        if !self.auth.is_on() {
            return self.pull(request).await;
        }
        let revoked = self.revoked(&request)?;
        tokio::select! {
            pulled = self.pull(request) => pulled,
            rejection = revoked => Err(rejection),
        }
    }

    /// Why the call may not be made any more, when that is so.
    fn revoked<T: Needs + Clone>(
        &self,
        request: &Request<T>,
    ) -> Result<impl Future<Output = Rejection> + use<T>, Rejection> {
        // Subscribed before it is looked who it is: a change in between is seen.
        let (auth, mut changes) = (self.auth.clone(), self.auth.users().changes());
        let who = auth.who(request.metadata(), request.extensions())?;
        let (source, message) = (auth::source_of(request.extensions()), request.get_ref().clone());
        Ok(async move {
            loop {
                if changes.changed().await.is_err() {
                    // The users live as long as the door.
                    std::future::pending::<()>().await;
                }
                if let Err(rejection) = auth.still_allows(&who, &message, source) {
                    return rejection;
                }
            }
        })
    }
}
