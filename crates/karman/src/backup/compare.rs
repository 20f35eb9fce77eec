//! Whether what is in the queues of a cluster is the beginning of a backup's. It asks and changes nothing.

use std::collections::HashSet;

use karman_remoting::admin_front::QUERY_MAX;
use karman_remoting::message::EncodedMessage;
use karman_remoting::proto::karman as v1;
use karman_remoting::proto::karman::query_messages_request::By;
use karman_remoting::proto::v2::MessageType;

use super::check::{Checked, Counted};
use super::directory::{Begun, DELAYED, Directory};
use super::format::{Reader, TopicCopy};
use super::plan::Brokers;
use crate::node::Node;

/// Delayed messages of an earlier restore that were delivered since, by topic and id; their ids are in memory.
const DELIVERED_MAX: usize = 1_000_000;

pub(super) struct Comparing<'a> {
    pub(super) directory: &'a Directory,
    pub(super) begun: &'a Begun,
    pub(super) brokers: &'a Brokers,
    pub(super) checked: &'a Checked,
    pub(super) node: &'a Node,
}

impl Comparing<'_> {
    /// Topics whose queues hold something else than the beginning of the backup's.
    pub(super) async fn other_messages(&self) -> anyhow::Result<Vec<String>> {
        let (mut foreign, mut delivered) = (Vec::new(), HashSet::new());
        for (topic, queues) in self.begun.manifest.topics.iter().zip(&self.checked.queues) {
            for (queue_id, queue) in (0u32..).zip(queues).filter(|(_, queue)| queue.asked.have > 0) {
                if !self.is_beginning(topic, queue_id, queue, &mut delivered).await? {
                    foreign.push(topic.name().to_owned());
                    break;
                }
            }
        }
        if !delivered.is_empty() {
            let mut reader = Reader::open(&self.directory.file(DELAYED), Some(self.begun.id))?;
            while let Some(page) = reader.next_page()? {
                for stored in page.messages {
                    let id = EncodedMessage::read(stored.message)?.system_properties.message_id;
                    delivered.remove(&(stored.topic, id));
                }
            }
            foreign.extend(delivered.into_iter().map(|(topic, _)| topic));
        }
        foreign.sort();
        foreign.dedup();
        let conflict = |topic: &String| {
            let how = format!("delete it first (karman topic delete {topic})");
            format!("topic {topic} has messages that are not of this backup: {how}")
        };
        Ok(foreign.iter().map(conflict).collect())
    }

    /// Whether a queue holds messages of the backup. Behind all of them a queue of delayed messages may have some whose time
    /// has come since an earlier restore; they are added to `delivered`.
    async fn is_beginning(
        &self,
        topic: &TopicCopy,
        queue_id: u32,
        queue: &Counted,
        delivered: &mut HashSet<(String, String)>,
    ) -> anyhow::Result<bool> {
        let there = queue.there();
        if there > 0 && self.ids(topic, queue_id, there - 1, 1).await?.pop() != queue.last_id()? {
            return Ok(false);
        }
        if queue.asked.have > there && topic.config.message_type() != MessageType::Delay {
            return Ok(false);
        }
        let mut offset = there;
        while offset < queue.asked.have {
            let ids = self.ids(topic, queue_id, offset, QUERY_MAX).await?;
            offset += ids.len() as u64;
            let is_too_much = delivered.len() + ids.len() > DELIVERED_MAX;
            if ids.is_empty() || is_too_much {
                return Ok(false);
            }
            delivered.extend(ids.into_iter().map(|id| (topic.name().to_owned(), id)));
        }
        Ok(true)
    }

    /// The ids of messages of a queue from a place on.
    async fn ids(
        &self,
        topic: &TopicCopy,
        queue_id: u32,
        offset: u64,
        max: u32,
    ) -> anyhow::Result<Vec<String>> {
        let request = v1::QueryMessagesRequest {
            topic: topic.name().to_owned(),
            by: Some(By::Queue(v1::QueuePosition { queue_id, offset })),
            broker_name: self.brokers[&topic.broker].clone(),
            max,
            ..Default::default()
        };
        let request = self.node.request(request);
        let answer = self.node.answer(self.node.admin()?.query_messages(request)).await?;
        let id = |stored: v1::StoredMessage| {
            Ok(EncodedMessage::read(stored.message.into())?.system_properties.message_id)
        };
        answer.messages.into_iter().map(id).collect()
    }
}
