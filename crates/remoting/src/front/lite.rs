//! Subscriptions to lite topics: most clients tell one node, so that node tells every broker of the parent topic.

use futures_util::future::join_all;
use tonic::{Request, Response};

use super::{Front, Owner, call, failure_here};
use crate::proto::v2::{self, Code};
use crate::relay::failure;
use crate::status::{Rejection, ok};
use crate::validate;

impl Front {
    pub(super) async fn sync_lite(
        &self,
        request: Request<v2::SyncLiteSubscriptionRequest>,
    ) -> Result<v2::SyncLiteSubscriptionResponse, Rejection> {
        let relayed = self.heard(&request)?.relayed;
        let topic = validate::topic_of(request.get_ref().topic.as_ref())?;
        validate::group_of(request.get_ref().group.as_ref())?;
        self.until_topic_known(topic, relayed).await;
        let owners: Vec<Owner<'_>> = if relayed {
            self.local.iter().map(|local| Owner::Here(&*local.service)).collect()
        } else {
            self.routes.read().masters_of(topic).map(|(identity, _)| self.owner_of(identity)).collect()
        };
        if owners.is_empty() {
            return Err(Rejection::TopicNotFound { topic: topic.to_owned() });
        }
        let calls = owners.into_iter().map(|owner| async {
            let mut copy = Request::new(request.get_ref().clone());
            *copy.metadata_mut() = request.metadata().clone();
            call!(self, owner, sync_lite_subscription, copy).map(Response::into_inner)
        });
        merged(join_all(calls).await)
    }
}

/// The first refusal of a broker, else OK. A broker that is not reached is passed over while another answers: clients
/// send their whole set every 30 s.
fn merged(
    answers: Vec<Result<v2::SyncLiteSubscriptionResponse, Rejection>>,
) -> Result<v2::SyncLiteSubscriptionResponse, Rejection> {
    let mut unreached = None;
    let mut accepted = false;
    for answer in answers {
        match answer {
            Ok(response) if response.status.as_ref().is_none_or(|status| status.code == Code::Ok as i32) => {
                accepted = true;
            }
            Ok(response) => return Ok(response),
            Err(rejection) => unreached = Some(rejection),
        }
    }
    match unreached {
        Some(rejection) if !accepted => Err(rejection),
        _ => Ok(v2::SyncLiteSubscriptionResponse { status: Some(ok()) }),
    }
}
