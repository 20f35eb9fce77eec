//! What an operator sees of a consumer group: its settings, how far it is with each queue, and its clients.
//!
//! From the live state, the index, and one record for each queue with messages that wait; blocks when that record has to
//! come from the device.

use std::ops::Range;

use karman_remoting::proto::karman as v1;
use karman_remoting::status::{Rejection, ok};
use karman_remoting::validate;
use karman_store::{Entry, QueueNumber, QueueOffset};

use crate::broker::Broker;
use crate::lite::LiteGroup;
use crate::pop::QueueState;
use crate::progress::GroupTopic;

/// Entries that are looked at for one that is not lost.
const LOOKED_AT_MAX: usize = 32;

/// Lite topics in one answer.
const LITE_SHOWN_MAX: usize = 10_000;

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
        let mut response = v1::DescribeGroupResponse {
            status: Some(ok()),
            clients: self.named(self.clients.members(&request.name)),
            contradictions: self.clients.contradictions(&request.name),
            ..Default::default()
        };
        let Some(group) = self.catalog.group(&request.name) else { return Ok(response) };
        response.groups.push(group.config.clone());
        let mut rows = self.progress.all();
        let is_asked = |row: &GroupTopic| request.topic.is_empty() || row.topic.name() == request.topic;
        rows.retain(|row| row.group == group.number && is_asked(row));
        rows.sort_by(|a, b| (a.topic.name(), &a.client).cmp(&(b.topic.name(), &b.client)));
        response.queues = rows.iter().flat_map(|row| self.queue_states(row)).collect();
        for row in self.lite.of_group(group.number) {
            if request.topic.is_empty() || row.topic.name() == request.topic {
                response.queues.extend(self.lite_states(&row));
            }
        }
        Ok(response)
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
        Ok(v1::ListClientsResponse { status: Some(ok()), clients: self.named(clients) })
    }

    /// With this node's name, which the registry does not know.
    fn named(&self, clients: Vec<v1::ClientState>) -> Vec<v1::ClientState> {
        let named = |client| v1::ClientState { broker_name: self.name.to_string(), ..client };
        clients.into_iter().map(named).collect()
    }

    /// How far a group is with each queue of a topic.
    pub fn queue_states(&self, row: &GroupTopic) -> Vec<v1::QueueProgressState> {
        let states: Vec<QueueState> = {
            let pop = row.pop.lock();
            (0..row.topic.queue_nums()).filter_map(|queue_id| pop.queue_state(queue_id)).collect()
        };
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

    /// How far a group is with the lite topics in which it has something to do, by their names.
    fn lite_states(&self, row: &LiteGroup) -> Vec<v1::QueueProgressState> {
        let mut states = Vec::new();
        for (queue_id, cursor) in row.run(|pop| pop.cursors()) {
            let queue = QueueNumber(queue_id);
            let Some(lite) = self.lite.topics.owner_of(queue) else { continue };
            let range = self.store.queue_range(queue);
            let is_held = cursor.visible_at_ms > 0;
            let ready = cursor.floor.max(range.start) + u64::from(is_held)..range.end;
            if ready.is_empty() && !is_held {
                continue;
            }
            states.push(v1::QueueProgressState {
                broker_name: self.name.to_string(),
                topic: row.topic.name().to_owned(),
                queue_id,
                min_offset: range.start,
                max_offset: range.end,
                committed_offset: cursor.floor.max(range.start),
                ready_count: ready.end.saturating_sub(ready.start),
                inflight_count: u64::from(is_held),
                lite_topic: lite.name.to_string(),
                ..Default::default()
            });
        }
        states.sort_by(|a, b| a.lite_topic.cmp(&b.lite_topic));
        states.truncate(LITE_SHOWN_MAX);
        for state in &mut states {
            let from = state.committed_offset + state.inflight_count;
            let queue = QueueNumber(state.queue_id);
            state.oldest_ready_ms = self.first_stored_ms(queue, from);
            state.committed_stored_ms = self.last_stored_ms(queue, state.min_offset..state.committed_offset);
        }
        states
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
