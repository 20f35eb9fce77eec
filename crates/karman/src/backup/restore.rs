//! `karman restore`: what a backup holds, into a cluster. A restore keeps no notes of its own: the ends of the queues say how far
//! it is, and a broker takes messages only at the end that the restore expects. One request is in memory at a time.
//!
//! Groups are suspended until everything is where it was: a consumer that is there already would read what is done.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::Context as _;
use bytes::Bytes;
use karman_remoting::proto::karman as v1;
use karman_remoting::proto::karman::change_user_request::Change;
use karman_remoting::proto::karman::reset_offset_request::To;

use super::check::Counted;
use super::directory::{DELAYED, Directory, messages_name};
use super::format::{Page, Reader, TopicCopy};
use super::plan::{Plan, place_in};
use crate::node::Node;
use crate::output::grouped;
use crate::progress::ProgressBar;
use crate::user;

/// Messages of a request, and their bytes if they are more than one page.
const REQUEST_MESSAGES: usize = 1024;
const REQUEST_BYTES: usize = 1 << 20;

/// What was done.
#[derive(Debug, Default)]
pub(super) struct Restored {
    pub(super) messages: u64,
    pub(super) delayed: u64,
    /// What is left to do by hand, in words.
    pub(super) notes: Vec<String>,
}

pub(super) struct Restoring<'a> {
    pub(super) node: &'a Node,
    pub(super) directory: &'a Directory,
    pub(super) plan: &'a Plan,
    pub(super) new_secrets: Option<&'a Path>,
}

impl Restoring<'_> {
    pub(super) async fn run(&self) -> anyhow::Result<Restored> {
        let mut restored = Restored::default();
        self.topics().await?;
        self.groups().await?;
        if !self.plan.manifest().settings_only {
            let total = self.plan.checked.messages();
            let mut bar = ProgressBar::new(grouped);
            for index in 0..self.plan.manifest().topics.len() {
                let (seen, before) = (self.seen(index), restored.messages);
                self.messages(index, |done| bar.show(seen + done, total)).await?;
                restored.messages = before + self.count(index) - self.plan.there(index);
            }
            restored.delayed = self.delayed().await?;
        }
        self.places().await?;
        self.users(&mut restored.notes).await?;
        Ok(restored)
    }

    fn count(&self, index: usize) -> u64 {
        self.plan.checked.queues[index].iter().map(|queue| queue.messages).sum()
    }

    /// Messages of the topics in front.
    fn seen(&self, index: usize) -> u64 {
        (0..index).map(|index| self.count(index)).sum()
    }

    /// Makes the topics that are missing, on all brokers: with the settings of the first that had it, and as many queues as
    /// any had.
    async fn topics(&self) -> anyhow::Result<()> {
        for same in self.plan.manifest().topics.chunk_by(|a, b| a.name() == b.name()) {
            if self.plan.topics_there.iter().any(|name| name == same[0].name()) {
                continue;
            }
            let queue_nums = same.iter().map(|copy| copy.config.queue_nums).max().unwrap_or(0);
            let topic = v1::TopicConfig { queue_nums, ..same[0].config.clone() };
            let request = v1::CreateTopicRequest { topic: Some(topic), if_not_exists: true };
            self.node.answer(self.node.admin()?.create_topic(self.node.request(request))).await?;
        }
        Ok(())
    }

    async fn groups(&self) -> anyhow::Result<()> {
        for copy in &self.plan.manifest().groups {
            if !self.plan.groups_there.contains(&copy.config.name) {
                let group = v1::GroupConfig { suspended: true, ..copy.config.clone() };
                let request = v1::CreateGroupRequest { group: Some(group) };
                self.node.answer(self.node.admin()?.create_group(self.node.request(request))).await?;
            }
        }
        Ok(())
    }

    /// The messages of a topic on one broker, from where its queues end.
    async fn messages(&self, index: usize, mut done: impl FnMut(u64)) -> anyhow::Result<()> {
        let topic = &self.plan.manifest().topics[index];
        if topic.message_count() == 0 {
            return Ok(());
        }
        let path = self.directory.file(&messages_name(index));
        let mut reader = Reader::open(&path, Some(self.plan.begun.id))?;
        let queues = &self.plan.checked.queues[index];
        // How many of each queue have been read: also where the next one goes.
        let mut read = vec![0; queues.len()];
        let (mut request, mut seen) = (Request::default(), 0);
        while let Some(page) = reader.next_page()? {
            let queue = page.queue_id as usize;
            let [number, have] = [read.get(queue).copied(), queues.get(queue).map(Counted::there)]
                .map(|count| count.context("the backup has changed since it was checked"));
            let (number, have, count) = (number?, have?, page.messages.len() as u64);
            if request.has_no_room_for(&page) {
                self.put(topic, std::mem::take(&mut request)).await?;
                done(seen);
            }
            request.add(page, number, have.saturating_sub(number));
            read[queue] += count;
            seen += count;
        }
        self.put(topic, request).await
    }

    async fn put(&self, topic: &TopicCopy, request: Request) -> anyhow::Result<()> {
        if request.messages.is_empty() {
            return Ok(());
        }
        let message = v1::RestoreMessagesRequest {
            topic: topic.name().to_owned(),
            broker_name: self.plan.brokers[&topic.broker].clone(),
            queue_id: request.queue_id,
            offset: Some(request.offset),
            messages: request.messages,
        };
        self.node.answer(self.node.admin()?.restore_messages(self.node.request(message))).await?;
        Ok(())
    }

    /// What waits for its time. Those that the topic has are passed over: it was released while it was copied, or an earlier
    /// restore came so far.
    async fn delayed(&self) -> anyhow::Result<u64> {
        let mut reader = Reader::open(&self.directory.file(DELAYED), Some(self.plan.begun.id))?;
        let mut restored = 0;
        while let Some(page) = reader.next_page()? {
            let mut by_place: BTreeMap<(String, String), Vec<Bytes>> = BTreeMap::new();
            for stored in page.messages {
                by_place.entry((stored.topic, stored.broker)).or_default().push(stored.message);
            }
            for ((topic, broker), messages) in by_place {
                let is_known = |copy: &TopicCopy| copy.name() == topic && copy.broker == broker;
                // Its topic was deleted while the backup was made.
                if !self.plan.manifest().topics.iter().any(is_known) {
                    continue;
                }
                let count = messages.len() as u64;
                let broker_name = self.plan.brokers[&broker].clone();
                let request =
                    v1::RestoreMessagesRequest { topic, broker_name, queue_id: 0, offset: None, messages };
                let request = self.node.request(request);
                let answer = self.node.answer(self.node.admin()?.restore_messages(request)).await?;
                restored += count - u64::from(answer.passed_over);
            }
        }
        Ok(restored)
    }

    /// Groups go where they were, and are delivered to again unless they were suspended.
    async fn places(&self) -> anyhow::Result<()> {
        for copy in &self.plan.manifest().groups {
            for (topic, queue_id, offset) in place_in(self.plan, copy) {
                let request = v1::ResetOffsetRequest {
                    group: copy.config.name.clone(),
                    topic: topic.name().to_owned(),
                    broker_name: self.plan.brokers[&topic.broker].clone(),
                    queue_id: Some(queue_id),
                    to: Some(To::Offset(offset)),
                    dry_run: false,
                };
                self.node.answer(self.node.admin()?.reset_offset(self.node.request(request))).await?;
            }
            if !copy.config.suspended {
                let request = v1::UpdateGroupRequest { group: Some(copy.config.clone()) };
                self.node.answer(self.node.admin()?.update_group(self.node.request(request))).await?;
            }
        }
        Ok(())
    }

    /// What users may do, where the cluster says nothing of it yet.
    async fn users(&self, notes: &mut Vec<String>) -> anyhow::Result<()> {
        for copy in &self.plan.manifest().users {
            let there = self.plan.users_there.iter().find(|user| user.name == copy.name);
            if there.is_none() && !self.make(copy, notes).await? {
                continue;
            }
            let known = there.map(|user| user.policies.as_slice()).unwrap_or_default();
            let mut missing = Vec::new();
            for policy in &copy.policies {
                match known.iter().find(|known| known.resource == policy.resource) {
                    None => missing.push(policy.clone()),
                    Some(known) if known == policy => {}
                    Some(_) => {
                        let (name, resource) = (&copy.name, &policy.resource);
                        notes.push(format!("user {name}: another policy for {resource} is there and stays"));
                    }
                }
            }
            if !missing.is_empty() {
                let policies = Change::PutPolicies(v1::Policies { policies: missing });
                user::change(self.node, &copy.name, policies).await?;
            }
        }
        Ok(())
    }

    /// A user that is missing, with a new secret: a backup has none. False: nobody said where that may be written.
    async fn make(&self, copy: &v1::User, notes: &mut Vec<String>) -> anyhow::Result<bool> {
        let Some(path) = self.new_secrets else {
            notes.push(format!(
                "user {}: not made, for a backup has no secrets; --new-secrets FILE makes new ones",
                copy.name
            ));
            return Ok(false);
        };
        let secret = user::new_secret();
        // Written first: a user whose secret nobody knows could not be used.
        let mut options = OpenOptions::new();
        let mut file = options.append(true).create(true).mode(0o600).open(path);
        let written = file.as_mut().map_err(|error| std::io::Error::from(error.kind())).and_then(|file| {
            writeln!(file, "{} {secret}", copy.name)?;
            file.sync_all()
        });
        written.with_context(|| format!("write the new secret to {}", path.display()))?;
        let new = v1::NewUser {
            secret: Some(v1::Secret { text: secret }),
            user_type: copy.user_type,
            disabled: copy.disabled,
            messages_per_second: copy.messages_per_second,
            bytes_per_second: copy.bytes_per_second,
            connections_max: copy.connections_max,
        };
        user::change(self.node, &copy.name, Change::Create(new)).await?;
        Ok(true)
    }
}

/// Messages that follow each other in one queue.
#[derive(Default)]
struct Request {
    queue_id: u32,
    /// Of the first.
    offset: u64,
    messages: Vec<Bytes>,
    bytes: usize,
}

impl Request {
    fn has_no_room_for(&self, page: &Page) -> bool {
        let is_full = self.messages.len() >= REQUEST_MESSAGES || self.bytes >= REQUEST_BYTES;
        !self.messages.is_empty() && (is_full || self.queue_id != page.queue_id)
    }

    /// Adds a page whose first message has a number in its queue, without those that are there.
    fn add(&mut self, page: Page, number: u64, there: u64) {
        let skipped = usize::try_from(there).unwrap_or(usize::MAX).min(page.messages.len());
        if self.messages.is_empty() {
            (self.queue_id, self.offset) = (page.queue_id, number + skipped as u64);
        }
        let messages = page.messages.into_iter().skip(skipped).map(|stored| stored.message);
        for message in messages {
            self.bytes += message.len();
            self.messages.push(message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::format::StoredCopy;

    fn page(queue_id: u32, count: usize) -> Page {
        let stored = StoredCopy { message: Bytes::from_static(b"message"), ..Default::default() };
        Page { queue_id, messages: vec![stored; count] }
    }

    #[test]
    fn a_request_goes_on_where_the_queue_ends() {
        let mut request = Request::default();
        request.add(page(3, 64), 0, 100);
        assert!(request.messages.is_empty() && !request.has_no_room_for(&page(4, 1)));
        request.add(page(3, 64), 64, 36);
        request.add(page(3, 64), 128, 0);
        assert_eq!((request.queue_id, request.offset, request.messages.len()), (3, 100, 92));
        assert!(request.has_no_room_for(&page(4, 1)) && !request.has_no_room_for(&page(3, 1)));
        request.bytes = REQUEST_BYTES;
        assert!(request.has_no_room_for(&page(3, 1)));
    }
}
