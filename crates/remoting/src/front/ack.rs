//! Acknowledgements: one request may hold handles of several brokers; each answer comes back in its place.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use tonic::{Request, Response};

use super::tokens::NOT_A_HANDLE;
use super::{Front, Owner, call, failure_here};
use crate::proto::v2;
use crate::relay::failure;
use crate::status::{Rejection, summary};
use crate::token;

/// Handles in one request.
const ENTRIES_MAX: usize = 4096;

impl Front {
    pub(super) async fn ack(
        &self,
        request: Request<v2::AckMessageRequest>,
    ) -> Result<Response<v2::AckMessageResponse>, Rejection> {
        let relayed = self.heard(&request)?.relayed;
        let entries = &request.get_ref().entries;
        if entries.is_empty() || entries.len() > ENTRIES_MAX {
            let why =
                format!("a request acknowledges 1 to {ENTRIES_MAX} messages, this one {}", entries.len());
            return Err(Rejection::BadRequest(why));
        }
        let brokers: Vec<Option<String>> =
            entries.iter().map(|entry| token::broker_name_of(&entry.receipt_handle)).collect();
        if brokers.iter().all(|broker| broker == &brokers[0]) {
            return self.ack_at(brokers[0].as_deref(), relayed, request).await;
        }
        self.ack_at_several(&brokers, relayed, &request).await
    }

    /// All handles name one broker, or none names any.
    async fn ack_at(
        &self,
        broker: Option<&str>,
        relayed: bool,
        request: Request<v2::AckMessageRequest>,
    ) -> Result<Response<v2::AckMessageResponse>, Rejection> {
        let result = match broker {
            None => Err(Rejection::InvalidReceiptHandle { why: NOT_A_HANDLE }),
            Some(broker) => self.owner_named(broker, relayed).await,
        };
        match result {
            Ok(owner) => call!(self, owner, ack_message, request),
            Err(rejection) => {
                let refused = |entry: &v2::AckMessageEntry| v2::AckMessageResultEntry {
                    message_id: entry.message_id.clone(),
                    receipt_handle: entry.receipt_handle.clone(),
                    status: Some((&rejection).into()),
                };
                let entries = request.get_ref().entries.iter().map(refused).collect();
                Ok(Response::new(v2::AckMessageResponse { status: Some((&rejection).into()), entries }))
            }
        }
    }

    async fn ack_at_several(
        &self,
        brokers: &[Option<String>],
        relayed: bool,
        request: &Request<v2::AckMessageRequest>,
    ) -> Result<Response<v2::AckMessageResponse>, Rejection> {
        let mut results = vec![v2::AckMessageResultEntry::default(); brokers.len()];
        let mut places: BTreeMap<&Option<String>, Vec<usize>> = BTreeMap::new();
        for (place, broker) in brokers.iter().enumerate() {
            places.entry(broker).or_default().push(place);
        }
        let (group, topic) = (&request.get_ref().group, &request.get_ref().topic);
        let parts = places.into_iter().map(|(broker, places)| async move {
            let entries: Vec<_> =
                places.iter().map(|&place| request.get_ref().entries[place].clone()).collect();
            let (group, topic) = (group.clone(), topic.clone());
            let mut part = Request::new(v2::AckMessageRequest { group, topic, entries: entries.clone() });
            *part.metadata_mut() = request.metadata().clone();
            let answered = self.ack_at(broker.as_deref(), relayed, part).await;
            (places, entries, answered.map_or_else(v2::AckMessageResponse::from, Response::into_inner))
        });
        for (places, sent, response) in join_all(parts).await {
            for (index, place) in places.into_iter().enumerate() {
                // A refusal of the whole part may have no entries; it stands for each.
                results[place] =
                    response.entries.get(index).cloned().unwrap_or_else(|| v2::AckMessageResultEntry {
                        message_id: sent[index].message_id.clone(),
                        receipt_handle: sent[index].receipt_handle.clone(),
                        status: response.status.clone(),
                    });
            }
        }
        let status = summary(results.iter().filter_map(|entry| entry.status.as_ref()));
        Ok(Response::new(v2::AckMessageResponse { status: Some(status), entries: results }))
    }
}
