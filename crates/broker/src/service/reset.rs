//! Moving a group on a topic: to the beginning, the end, a time, an offset, or to where another group is.
//!
//! The plan is made first and is all that a dry run does. Each progress is moved by one record, which is in the log when
//! the call is answered.

use std::sync::Arc;

use karman_remoting::proto::karman as v1;
use karman_remoting::proto::karman::reset_offset_request::To;
use karman_remoting::status::{Rejection, ok};
use karman_remoting::validate;
use karman_store::QueueNumber;

use crate::broker::Broker;
use crate::catalog::Topic;
use crate::progress::{self, GroupTopic};
use crate::records::GroupRecord;
use crate::refuse;
use crate::service::query::no_queue;

/// Where a progress goes: the number of a queue, and the offset of the first message that is not done then.
type Target = (u32, u64);

impl Broker {
    /// Moves a group, or says what would change.
    pub async fn reset_offset(
        self: &Arc<Self>,
        request: v1::ResetOffsetRequest,
    ) -> Result<v1::ResetOffsetResponse, Rejection> {
        validate::group(&request.group)?;
        validate::topic(&request.topic)?;
        let topic = self.topic(&request.topic)?;
        if topic.is_lite() {
            return Err(Rejection::BadRequest(format!(
                "topic {:?} has lite topics; a client says with its subscription where it begins in each",
                topic.name()
            )));
        }
        let (broker, planned) = (self.clone(), (request.clone(), topic.clone()));
        // A time is looked up in the index, which may have to come from the device.
        let targets = tokio::task::spawn_blocking(move || broker.targets(&planned.0, &planned.1)).await;
        let targets = targets.unwrap_or_else(|error| Err(Rejection::Internal(error.to_string())))?;
        let group = self.catalog.group(&request.group);
        if request.dry_run {
            let moves = self.planned_moves(group.as_deref(), &topic, &targets)?;
            return Ok(v1::ResetOffsetResponse { status: Some(ok()), moves });
        }
        let group = group.ok_or(Rejection::GroupNotFound { group: request.group })?;
        let mut rows = self.rows_of(&group, &topic);
        if rows.is_empty() && !group.config.broadcast {
            rows.push(self.progress_of(&group, &topic, None).await?);
        }
        let mut moves = Vec::with_capacity(rows.len() * targets.len());
        for row in &rows {
            moves.extend(self.moves_of(row, &targets));
            let durability = self.progress_durability(&row.topic);
            progress::reset(&self.store, durability, row, &targets, self.revision_base).await?;
        }
        tracing::info!(group = group.name(), topic = topic.name(), "group was moved");
        Ok(v1::ResetOffsetResponse { status: Some(ok()), moves })
    }

    /// A group has never read a topic any more. Not while one of its clients reads it: that would begin anew at once.
    pub async fn forget_subscription(
        &self,
        request: &v1::ForgetSubscriptionRequest,
    ) -> Result<v1::ForgetSubscriptionResponse, Rejection> {
        validate::group(&request.group)?;
        let topic = self.topic(validate::topic(&request.topic).map(|()| &request.topic)?)?;
        let group = self.catalog.group(&request.group);
        let group = group.ok_or_else(|| Rejection::GroupNotFound { group: request.group.clone() })?;
        let members = self.clients.members(group.name());
        let reads =
            |client: &&v1::ClientState| client.subscriptions.iter().any(|one| one.topic == topic.name());
        if let Some(client) = members.iter().find(reads) {
            return Err(Rejection::Forbidden {
                what: format!(
                    "forgetting how far group {:?} is with topic {:?}, which client {:?} reads,",
                    group.name(),
                    topic.name(),
                    client.client_id
                ),
                rule: "its clients must stop first",
            });
        }
        for row in self.rows_of(&group, &topic) {
            self.progress.forget(&self.store, &row).await?;
        }
        tracing::info!(group = group.name(), topic = topic.name(), "subscription was forgotten");
        Ok(v1::ForgetSubscriptionResponse { status: Some(ok()) })
    }

    /// What a group has of a topic: one progress, or of a broadcasting group one for each client.
    pub fn rows_of(&self, group: &GroupRecord, topic: &Topic) -> Vec<Arc<GroupTopic>> {
        let mut rows = self.progress.of_group(group.number);
        let is_own = |row: &GroupTopic| row.client.is_some() == group.config.broadcast;
        rows.retain(|row| row.topic.number == topic.number && is_own(row));
        rows.sort_by(|a, b| a.client.cmp(&b.client));
        rows
    }

    /// The queues that a request names, and the place it names in each.
    fn targets(&self, request: &v1::ResetOffsetRequest, topic: &Topic) -> Result<Vec<Target>, Rejection> {
        let queues = match request.queue_id {
            Some(id) if topic.queue(id).is_none() => return Err(no_queue(topic, id.into())),
            Some(id) => id..id + 1,
            None => 0..topic.queue_nums(),
        };
        let like = match &request.to {
            Some(To::LikeGroup(name)) => self.places_of(name, topic)?,
            _ => Vec::new(),
        };
        queues.map(|id| Ok((id, self.target(request, topic, id, &like)?))).collect()
    }

    fn target(
        &self,
        request: &v1::ResetOffsetRequest,
        topic: &Topic,
        queue_id: u32,
        like: &[u64],
    ) -> Result<u64, Rejection> {
        let queue = QueueNumber(topic.queues[queue_id as usize]);
        let range = self.store.queue_range(queue);
        match &request.to {
            Some(To::Earliest(_)) => Ok(range.start),
            Some(To::Latest(_)) => Ok(range.end),
            Some(To::AtMs(at_ms)) => {
                let offset = self.store.offset_by_time(queue, *at_ms);
                offset.map(|offset| offset.0).map_err(|error| refuse::read(&error))
            }
            Some(To::Offset(offset)) if (range.start..=range.end).contains(offset) => Ok(*offset),
            Some(To::Offset(offset)) => Err(Rejection::IllegalOffset {
                offset: i64::try_from(*offset).unwrap_or(i64::MAX),
                min: range.start,
                max: range.end,
            }),
            Some(To::LikeGroup(_)) => Ok(like[queue_id as usize].clamp(range.start, range.end)),
            None => {
                let what = "a reset says where to: earliest, latest, a time, an offset, or another group";
                Err(Rejection::BadRequest(what.to_owned()))
            }
        }
    }

    /// How far a group is with each queue, or where it will begin. The door knows that the group exists somewhere.
    fn places_of(&self, name: &str, topic: &Topic) -> Result<Vec<u64>, Rejection> {
        validate::group(name)?;
        let Some(group) = self.catalog.group(name) else { return self.starts(None, topic) };
        if group.config.broadcast {
            return Err(Rejection::BadRequest(format!(
                "group {name:?} is broadcasting: each of its clients has a place of its own"
            )));
        }
        match self.progress.get(group.number, topic.number, None) {
            Some(row) => Ok(floors_of(&row)),
            None => self.starts(Some(&group), topic),
        }
    }

    /// Where a group begins that has not read the topic.
    fn starts(&self, group: Option<&GroupRecord>, topic: &Topic) -> Result<Vec<u64>, Rejection> {
        let unknown = GroupRecord::default();
        progress::starts(&self.store, group.unwrap_or(&unknown), topic)
    }

    /// What would change. A group that has not read the topic, or is not here yet, would begin somewhere else.
    fn planned_moves(
        &self,
        group: Option<&GroupRecord>,
        topic: &Topic,
        targets: &[Target],
    ) -> Result<Vec<v1::OffsetMove>, Rejection> {
        let rows = group.map_or_else(Vec::new, |group| self.rows_of(group, topic));
        if !rows.is_empty() || group.is_some_and(|group| group.config.broadcast) {
            return Ok(rows.iter().flat_map(|row| self.moves_of(row, targets)).collect());
        }
        let starts = self.starts(group, topic)?;
        let from_start = |&(queue_id, to): &Target| v1::OffsetMove {
            broker_name: self.name.to_string(),
            queue_id,
            from: starts[queue_id as usize],
            to,
            ..Default::default()
        };
        Ok(targets.iter().map(from_start).collect())
    }

    fn moves_of(&self, row: &GroupTopic, targets: &[Target]) -> Vec<v1::OffsetMove> {
        let one = |&(queue_id, to): &Target| {
            let state = row.run(|pop| pop.queue_state(queue_id))?;
            let range = self.store.queue_range(row.topic.queue(queue_id)?);
            Some(v1::OffsetMove {
                broker_name: self.name.to_string(),
                queue_id,
                from: state.floor.max(range.start),
                to,
                inflight_count: state.inflight,
                client_id: row.client.as_deref().unwrap_or_default().to_owned(),
            })
        };
        targets.iter().filter_map(one).collect()
    }
}

fn floors_of(row: &GroupTopic) -> Vec<u64> {
    let floor = |queue_id| row.run(|pop| pop.queue_state(queue_id)).map_or(0, |state| state.floor);
    (0..row.topic.queue_nums()).map(floor).collect()
}
