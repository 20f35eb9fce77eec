//! What an operator sees of a consumer group: its settings, how far it is with each queue, and its clients.
//!
//! From the live state, the index, and one record for each queue with messages that wait; blocks when that record has to
//! come from the device.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

use karman_remoting::admin_front::refuse_connected;
use karman_remoting::proto::karman as v1;
use karman_remoting::status::{Rejection, ok};
use karman_remoting::validate;
use karman_store::{Entry, QueueNumber, QueueOffset};

use crate::broker::Broker;
use crate::catalog::Topic;
use crate::lite::LiteGroup;
use crate::lite::topics::LiteTopic;
use crate::pop::QueueState;
use crate::progress::GroupTopic;
use crate::service::redrive::REDRIVE_GROUP;

/// Entries that are looked at for one that is not lost.
const LOOKED_AT_MAX: usize = 32;
/// Queues and clients of one answer; more do not fit into a message.
const QUEUES_MAX: usize = 10_000;
const CLIENTS_MAX: usize = 10_000;

/// What waits for a group in a topic, and what it had.
#[derive(Default)]
struct Sums {
    ready: u64,
    inflight: u64,
    out: u64,
}

impl Broker {
    /// A group on this broker. One that is not here has no settings in the answer; its clients may be known all the same.
    pub fn describe_group(
        &self,
        request: &v1::DescribeGroupRequest,
    ) -> Result<v1::DescribeGroupResponse, Rejection> {
        validate::group(&request.name)?;
        if !request.topic.is_empty() {
            validate::topic(&request.topic)?;
        }
        let mut clients = self.named(self.clients.members(&request.name));
        let mut truncated = clients.len() > CLIENTS_MAX;
        clients.truncate(CLIENTS_MAX);
        let mut response = v1::DescribeGroupResponse {
            status: Some(ok()),
            clients,
            contradictions: self.clients.contradictions(&request.name),
            ..Default::default()
        };
        let Some(group) = self.catalog.group(&request.name) else { return Ok(response) };
        response.groups.push(group.config.clone());
        let mut rows = self.progress.of_group(group.number);
        let is_asked = |topic: &Topic| request.topic.is_empty() || topic.name() == request.topic;
        rows.retain(|row| is_asked(&row.topic));
        rows.sort_by(|a, b| (a.topic.name(), &a.client).cmp(&(b.topic.name(), &b.client)));
        let lite = self.lite.of_group(group.number);
        let lite = lite.iter().filter(|row| is_asked(&row.topic)).flat_map(|row| self.lite_states(row));
        let all = rows.iter().flat_map(|row| self.queue_states(row)).chain(lite);
        // One more, to know whether there are more.
        response.queues = all.take(QUEUES_MAX + 1).collect();
        truncated |= response.queues.len() > QUEUES_MAX;
        response.queues.truncate(QUEUES_MAX);
        response.truncated = truncated;
        Ok(response)
    }

    /// Deletes a group that has no members here, or has some all the same where that is asked for.
    pub async fn delete_group(&self, request: &v1::DeleteGroupRequest) -> Result<(), Rejection> {
        let name = &request.name;
        validate::group(name)?;
        if name == REDRIVE_GROUP {
            return Err(Rejection::GroupNotFound { group: name.clone() });
        }
        if !request.force {
            refuse_connected(name, &self.clients.members(name))?;
        }
        self.catalog_writer.delete_group(name).await
    }

    /// How far a group is with each lite topic that one of its clients subscribed to, by name.
    fn lite_states(&self, row: &LiteGroup) -> Vec<v1::QueueProgressState> {
        let mut lite_topics = self.lite.topics.of_topic(row.topic.number);
        lite_topics.sort_by(|a, b| a.name.cmp(&b.name));
        let state = |lite: &Arc<LiteTopic>| {
            let cursor = row.run(|pop| pop.cursor(lite.queue.0).cloned())?;
            let range = self.store.queue_range(lite.queue);
            let floor = cursor.floor.max(range.start);
            // Only the first message that is not done was ever delivered.
            let inflight = u64::from(cursor.attempt > 0 && floor < range.end);
            Some(v1::QueueProgressState {
                broker_name: self.name.to_string(),
                topic: row.topic.name().to_owned(),
                min_offset: range.start,
                max_offset: range.end,
                committed_offset: floor,
                ready_count: range.end.saturating_sub(floor + inflight),
                inflight_count: inflight,
                oldest_ready_ms: self.first_stored_ms(lite.queue, floor + inflight),
                lite_topic: lite.name.to_string(),
                committed_stored_ms: self.last_stored_ms(lite.queue, range.start..floor),
                ..Default::default()
            })
        };
        lite_topics.iter().filter_map(state).take(QUEUES_MAX + 1).collect()
    }

    /// The clients of a group, or those that send to a topic or read it; all when neither is said.
    pub fn list_clients(
        &self,
        request: &v1::ListClientsRequest,
    ) -> Result<v1::ListClientsResponse, Rejection> {
        let mut clients = if request.group.is_empty() {
            self.clients.clients()
        } else {
            validate::group(&request.group)?;
            self.clients.members(&request.group)
        };
        if !request.topic.is_empty() {
            validate::topic(&request.topic)?;
            let topic = &request.topic;
            clients.retain(|client| {
                client.publishing.contains(topic)
                    || client.subscriptions.iter().any(|subscription| subscription.topic == *topic)
            });
        }
        let truncated = clients.len() > CLIENTS_MAX;
        clients.truncate(CLIENTS_MAX);
        Ok(v1::ListClientsResponse { status: Some(ok()), clients: self.named(clients), truncated })
    }

    /// With this node's name, which the registry does not know.
    fn named(&self, clients: Vec<v1::ClientState>) -> Vec<v1::ClientState> {
        let named = |client| v1::ClientState { broker_name: self.name.to_string(), ..client };
        clients.into_iter().map(named).collect()
    }

    /// Every group with each topic that it reads. The group that marks redriven letters is the broker's own business.
    pub fn group_summaries(&self) -> Vec<v1::GroupSummary> {
        let mut topics: HashMap<u32, BTreeMap<String, Sums>> = HashMap::new();
        for row in self.progress.all() {
            let (inflight, next) = row.run(|pop| pop.counts());
            let ranges = row.topic.queues.iter().map(|&queue| self.store.queue_range(QueueNumber(queue)));
            // What was deleted unread is not ready any more.
            let ready = ranges.zip(next).map(|(range, next)| range.end.saturating_sub(next.max(range.start)));
            let of_group = topics.entry(row.group).or_default();
            let sums = of_group.entry(row.topic.name().to_owned()).or_default();
            // Each client of a broadcasting group has all messages; the last of them counts.
            sums.ready = sums.ready.max(ready.sum());
            sums.inflight += inflight as u64;
            sums.out += row.delivered.traffic.counts().0;
        }
        for row in self.lite.all() {
            let cursors = row.run(|pop| pop.cursors());
            let waits = cursors.iter().map(|&(queue, ref cursor)| {
                let range = self.store.queue_range(QueueNumber(queue));
                range.end.saturating_sub(cursor.floor.max(range.start))
            });
            let waits = waits.sum::<u64>();
            // One of each lite topic at most is with a consumer, or waits for its retry.
            let inflight = cursors.iter().filter(|(_, cursor)| cursor.visible_at_ms > 0).count() as u64;
            let of_group = topics.entry(row.group).or_default();
            let out = row.delivered.traffic.counts().0;
            let sums = Sums { ready: waits.saturating_sub(inflight), inflight, out };
            of_group.insert(row.topic.name().to_owned(), sums);
        }
        let mut summaries = Vec::new();
        for group in self.catalog.groups().iter().filter(|group| group.name() != REDRIVE_GROUP) {
            let summary = |topic: String, sums: Sums| v1::GroupSummary {
                group: Some(group.config.clone()),
                broker_name: self.name.to_string(),
                topic,
                ready_count: sums.ready,
                inflight_count: sums.inflight,
                messages_out: sums.out,
            };
            match topics.remove(&group.number) {
                Some(of_group) => {
                    summaries.extend(of_group.into_iter().map(|(topic, sums)| summary(topic, sums)))
                }
                None => summaries.push(summary(String::new(), Sums::default())),
            }
        }
        summaries
    }

    /// How far a group is with each queue of a topic.
    pub fn queue_states(&self, row: &GroupTopic) -> Vec<v1::QueueProgressState> {
        let all = 0..row.topic.queue_nums();
        let states: Vec<QueueState> = row.run(|pop| all.filter_map(|id| pop.queue_state(id)).collect());
        let of_queue = |(queue_id, (state, &queue)): (u32, (&QueueState, &u32))| {
            let range = self.store.queue_range(QueueNumber(queue));
            // What was deleted unread is not ready any more.
            let ready = state.next.max(range.start)..range.end;
            v1::QueueProgressState {
                broker_name: self.name.to_string(),
                topic: row.topic.name().to_owned(),
                queue_id,
                min_offset: range.start,
                max_offset: range.end,
                committed_offset: state.floor.max(range.start),
                ready_count: ready.end.saturating_sub(ready.start),
                inflight_count: state.inflight,
                withheld_count: state.withheld,
                oldest_ready_ms: self.first_stored_ms(QueueNumber(queue), ready.start),
                lite_topic: String::new(),
                client_id: row.client.as_deref().unwrap_or_default().to_owned(),
                committed_stored_ms: self.last_stored_ms(QueueNumber(queue), range.start..state.floor),
            }
        };
        (0..).zip(states.iter().zip(&row.topic.queues)).map(of_queue).collect()
    }

    /// When the first message of a queue from `from` on was stored; 0 if there is none.
    pub fn first_stored_ms(&self, queue: QueueNumber, from: u64) -> u64 {
        let mut entries = Vec::new();
        match self.store.entries(queue, QueueOffset(from), LOOKED_AT_MAX, &mut entries) {
            Ok(()) => self.stored_ms(entries.iter()),
            Err(_) => 0,
        }
    }

    /// When the last message of a queue with an offset in `range` was stored; 0 if there is none.
    pub fn last_stored_ms(&self, queue: QueueNumber, range: Range<u64>) -> u64 {
        let from = range.start.max(range.end.saturating_sub(LOOKED_AT_MAX as u64));
        let mut entries = Vec::new();
        let count = range.end.saturating_sub(from) as usize;
        match self.store.entries(queue, QueueOffset(from), count, &mut entries) {
            Ok(()) => self.stored_ms(entries.iter().rev()),
            Err(_) => 0,
        }
    }

    /// When the first of these messages that can be read was stored.
    fn stored_ms<'a>(&self, entries: impl Iterator<Item = &'a Entry>) -> u64 {
        let kept = entries.filter(|entry| !entry.is_lost());
        let mut records = kept.filter_map(|entry| self.store.record(entry.physical_offset, entry.size).ok());
        records.next().map_or(0, |record| record.store_time_ms)
    }
}
