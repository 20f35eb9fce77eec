//! `karman backup`: what the cluster has, into files. One page of messages is in memory at a time.
//!
//! First how far the groups are, then what is delayed, then where the queues end: so a group is never further than the messages
//! reach, and what becomes visible meanwhile is in the backup twice rather than not at all; a restore takes it once. With that
//! written down it is decided what the backup holds, however often it is interrupted while the messages are read.

use std::collections::{BTreeMap, BTreeSet};

use karman_client::{ClientError, Code};
use karman_remoting::admin_front::QUERY_MAX;
use karman_remoting::proto::karman as v1;
use karman_remoting::proto::karman::query_messages_request::By;
use karman_remoting::proto::v2;
use karman_remoting::validate;

use super::directory::{COMPLETE, DELAYED, Directory, MANIFEST, messages_name};
use super::format::{
    Complete, FileSum, GroupCopy, HEADER_BYTES, Manifest, Page, PlaceCopy, QueueCopy, Reader, StoredCopy,
    TopicCopy, Writer,
};
use crate::cli::{Damaged, NotFound};
use crate::node::Node;
use crate::output::grouped;
use crate::progress::ProgressBar;
use crate::{time, user};

/// What is to be in a backup.
#[derive(Debug)]
pub(super) struct Wanted {
    /// Only these topics, and how far groups are with them; empty: everything.
    pub(super) topics: BTreeSet<String>,
    pub(super) settings_only: bool,
}

impl Wanted {
    fn has(&self, topic: &str) -> bool {
        self.topics.is_empty() || self.topics.contains(topic)
    }
}

/// How far a group is, as the cluster tells; what cannot be in a backup is noted.
async fn group(
    name: &str,
    wanted: &Wanted,
    notes: &mut Vec<String>,
    node: &Node,
) -> anyhow::Result<GroupCopy> {
    let describe = |topic: String| async move {
        let request = v1::DescribeGroupRequest { name: name.to_owned(), topic };
        node.answer(node.admin()?.describe_group(node.request(request))).await
    };
    let mut described = describe(String::new()).await?;
    if described.truncated {
        let topics: BTreeSet<String> = described.queues.drain(..).map(|queue| queue.topic).collect();
        for topic in topics {
            let part = describe(topic.clone()).await?;
            anyhow::ensure!(
                !part.truncated,
                "group {name:?} has more queues of topic {topic:?} than a broker tells"
            );
            described.queues.extend(part.queues);
        }
    }
    let mut config = described.groups.into_iter().next().unwrap_or_default();
    config.name = name.to_owned();
    let mut places: BTreeMap<(String, String), BTreeMap<u32, u64>> = BTreeMap::new();
    let (mut lite, mut clients) = (false, false);
    for queue in described.queues.into_iter().filter(|queue| wanted.has(&queue.topic)) {
        lite |= !queue.lite_topic.is_empty();
        clients |= !queue.client_id.is_empty();
        if queue.lite_topic.is_empty() && queue.client_id.is_empty() {
            let place = places.entry((queue.topic, queue.broker_name)).or_default();
            place.insert(queue.queue_id, queue.committed_offset);
        }
    }
    if lite {
        notes.push(format!("group {name}: how far it is with lite topics"));
    }
    if clients {
        notes.push(format!("group {name}: how far each of its clients is; it broadcasts"));
    }
    let place = |((topic, broker), committed): ((String, String), BTreeMap<u32, u64>)| {
        let queues = committed.keys().next_back().map_or(0, |last| last + 1);
        let committed = (0..queues).map(|queue| committed.get(&queue).copied().unwrap_or(0)).collect();
        PlaceCopy { topic, broker, committed }
    };
    Ok(GroupCopy { config, places: places.into_iter().map(place).collect() })
}

async fn groups(wanted: &Wanted, notes: &mut Vec<String>, node: &Node) -> anyhow::Result<Vec<GroupCopy>> {
    let listed = node.answer(node.admin()?.list_groups(node.request(v1::ListGroupsRequest {}))).await?;
    let names: BTreeSet<String> = listed.groups.into_iter().filter_map(|row| Some(row.group?.name)).collect();
    let mut groups = Vec::new();
    // What brokers keep for themselves has names that nobody may use.
    for name in names.iter().filter(|name| validate::group(name).is_ok()) {
        let copy = group(name, wanted, notes, node).await?;
        if wanted.topics.is_empty() || !copy.places.is_empty() {
            groups.push(copy);
        }
    }
    Ok(groups)
}

/// The topics of all brokers, with where their queues begin and end.
pub(super) async fn topics(
    wanted: &Wanted,
    notes: &mut Vec<String>,
    node: &Node,
) -> anyhow::Result<Vec<TopicCopy>> {
    let listed = node.answer(node.admin()?.list_topics(node.request(v1::ListTopicsRequest {}))).await?;
    let mut copies = Vec::new();
    for row in listed.topics {
        let Some(config) = row.topic.filter(|topic| wanted.has(&topic.name)) else { continue };
        if config.message_type() == v2::MessageType::Lite && row.message_count > 0 && !wanted.settings_only {
            let (count, broker) = (grouped(row.message_count), &row.broker_name);
            notes.push(format!("topic {}: {count} messages of its lite topics on {broker}", config.name));
        }
        copies.push(TopicCopy { config, broker: row.broker_name, queues: Vec::new() });
    }
    if let Some(missing) = wanted.topics.iter().find(|name| copies.iter().all(|copy| copy.name() != *name)) {
        return Err(NotFound(format!("no broker has topic {missing:?}")).into());
    }
    if wanted.settings_only {
        return Ok(copies);
    }
    for same in copies.chunk_by_mut(|a, b| a.name() == b.name()) {
        if same[0].config.message_type() == v2::MessageType::Lite {
            continue;
        }
        let request = v1::DescribeTopicRequest { name: same[0].name().to_owned(), at_ms: None };
        let described = node.answer(node.admin()?.describe_topic(node.request(request))).await?;
        for queue in described.queues {
            if let Some(copy) = same.iter_mut().find(|copy| copy.broker == queue.broker_name) {
                copy.queues.push(QueueCopy { begin: queue.min_offset, end: queue.max_offset });
            }
        }
    }
    Ok(copies)
}

/// Whether the error says that there is no such topic.
fn is_no_topic(error: &anyhow::Error) -> bool {
    let code = error.downcast_ref::<ClientError>().and_then(ClientError::code);
    code == Some(Code::TopicNotFound)
}

/// A backup on its way.
pub(super) struct Taking<'a> {
    pub(super) node: &'a Node,
    pub(super) directory: &'a Directory,
    pub(super) id: u64,
    pub(super) manifest: Manifest,
    /// Messages that were already there when this command began.
    pub(super) kept: u64,
    bar: ProgressBar,
    done: u64,
}

impl<'a> Taking<'a> {
    /// Decides what the backup will hold.
    pub(super) async fn begin(
        wanted: &Wanted,
        directory: &'a Directory,
        node: &'a Node,
    ) -> anyhow::Result<Self> {
        let begun_ms = time::now_ms();
        let described =
            node.answer(node.admin()?.describe_cluster(node.request(v1::DescribeClusterRequest {}))).await?;
        let mut notes = Vec::new();
        let groups = groups(wanted, &mut notes, node).await?;
        let users = if wanted.topics.is_empty() { user::list(node, "").await? } else { Vec::new() };
        let manifest = Manifest {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cluster: described.brokers.first().map(|broker| broker.cluster.clone()).unwrap_or_default(),
            begun_ms,
            brokers: described.brokers.into_iter().map(|broker| broker.broker_name).collect(),
            topics: Vec::new(),
            groups,
            users,
            settings_only: wanted.settings_only,
            notes,
        };
        let bar = ProgressBar::new(grouped);
        let mut taking = Self { node, directory, id: rand::random(), manifest, kept: 0, bar, done: 0 };
        if !wanted.settings_only {
            taking.delayed(wanted).await?;
        }
        let manifest = &mut taking.manifest;
        manifest.topics = topics(wanted, &mut manifest.notes, node).await?;
        let mut writer = directory.begin(MANIFEST, taking.id)?;
        writer.write(&taking.manifest)?;
        directory.keep(MANIFEST, writer)?;
        Ok(taking)
    }

    /// One that was interrupted.
    pub(super) fn again(id: u64, manifest: Manifest, directory: &'a Directory, node: &'a Node) -> Self {
        Self { node, directory, id, manifest, kept: 0, bar: ProgressBar::new(grouped), done: 0 }
    }

    /// What waits for its time, broker by broker.
    async fn delayed(&mut self, wanted: &Wanted) -> anyhow::Result<()> {
        let mut writer = self.directory.begin(DELAYED, self.id)?;
        for broker in &self.manifest.brokers {
            let (mut from, mut lost) = (None, 0);
            loop {
                let request = v1::ListDelayedRequest { broker_name: broker.clone(), from };
                let answer =
                    self.node.answer(self.node.admin()?.list_delayed(self.node.request(request))).await?;
                let copy = |delayed: v1::DelayedMessage| StoredCopy {
                    message: delayed.message.into(),
                    offset: 0,
                    topic: delayed.topic,
                    broker: broker.clone(),
                };
                let page = answer.messages.into_iter().filter(|message| wanted.has(&message.topic));
                let messages: Vec<StoredCopy> = page.map(copy).collect();
                if !messages.is_empty() {
                    writer.write(&Page { queue_id: 0, messages })?;
                }
                lost += answer.lost;
                match answer.next {
                    Some(next) => from = Some(next),
                    None => break,
                }
            }
            if lost > 0 {
                self.manifest.notes.push(format!("{lost} delayed messages on {broker}: damaged in its log"));
            }
        }
        self.directory.keep(DELAYED, writer)
    }

    /// Reads the messages, and says what every file came to be.
    pub(super) async fn messages(&mut self) -> anyhow::Result<Complete> {
        let total = self.manifest.topics.iter().map(TopicCopy::message_count).sum();
        for index in 0..self.manifest.topics.len() {
            if self.manifest.topics[index].message_count() > 0 {
                self.topic(index, total).await?;
            }
        }
        self.directory.sync()?;
        // What is said of the files is what is read of them.
        let mut files = vec![self.read(MANIFEST)?];
        if !self.manifest.settings_only {
            files.push(self.read(DELAYED)?);
        }
        for (index, topic) in self.manifest.topics.iter().enumerate() {
            if topic.message_count() > 0 {
                files.push(self.read(&messages_name(index))?);
            }
        }
        let complete = Complete { files, ended_ms: time::now_ms() };
        let mut writer = self.directory.begin(COMPLETE, self.id)?;
        writer.write(&complete)?;
        self.directory.keep(COMPLETE, writer)?;
        Ok(complete)
    }

    fn read(&self, name: &str) -> anyhow::Result<FileSum> {
        let mut reader = Reader::open(&self.directory.file(name), Some(self.id))?;
        if name == MANIFEST {
            while reader.next::<Manifest>()?.is_some() {}
        } else {
            while reader.next_page()?.is_some() {}
        }
        Ok(reader.sum())
    }

    /// The messages of a topic on one broker, from where its file ends.
    async fn topic(&mut self, index: usize, total: u64) -> anyhow::Result<()> {
        let topic = self.manifest.topics[index].clone();
        let path = self.directory.file(&messages_name(index));
        let (mut first, mut next) = (0, None);
        let mut writer = if path.exists() {
            let (whole, last) = whole_part(&path, self.id)?;
            self.kept += whole.messages;
            self.done += whole.messages;
            if let Some((queue_id, offset)) = last {
                (first, next) = (queue_id, Some(offset + 1));
            }
            match whole.bytes {
                0 => {
                    std::fs::remove_file(&path)?;
                    Writer::create(&path, self.id)?
                }
                bytes => Writer::go_on(&path, bytes)?,
            }
        } else {
            Writer::create(&path, self.id)?
        };
        for (queue_id, queue) in (0u32..).zip(&topic.queues).skip(first as usize) {
            let mut offset = next.take().unwrap_or(queue.begin);
            while offset < queue.end {
                self.bar.show(self.done, total);
                match self.page(&topic, queue_id, offset, queue.end).await {
                    Ok((page, behind)) => {
                        self.done += page.messages.len() as u64;
                        if !page.messages.is_empty() {
                            writer.write(&page)?;
                        }
                        offset = behind;
                    }
                    // It was deleted since the backup began; what was read of it stays.
                    Err(error) if is_no_topic(&error) => return writer.finish(),
                    Err(error) => return Err(error),
                }
            }
        }
        writer.finish()
    }

    /// Messages of a queue from an offset on, and where to go on.
    async fn page(
        &self,
        topic: &TopicCopy,
        queue_id: u32,
        offset: u64,
        end: u64,
    ) -> anyhow::Result<(Page, u64)> {
        let request = v1::QueryMessagesRequest {
            topic: topic.name().to_owned(),
            by: Some(By::Queue(v1::QueuePosition { queue_id, offset })),
            broker_name: topic.broker.clone(),
            max: QUERY_MAX,
            ..Default::default()
        };
        let answer = self.node.answer(self.node.admin()?.query_messages(self.node.request(request))).await?;
        // Where a whole page is lost to damage it is passed over.
        let behind =
            answer.messages.last().map_or(offset + u64::from(QUERY_MAX), |last| last.queue_offset + 1);
        let copy = |stored: v1::StoredMessage| StoredCopy {
            message: stored.message.into(),
            offset: stored.queue_offset,
            ..Default::default()
        };
        let messages = answer.messages.into_iter().filter(|message| message.queue_offset < end);
        Ok((Page { queue_id, messages: messages.map(copy).collect() }, behind))
    }
}

/// How far the file of an interrupted backup is whole, and the last message in it: queue and offset.
fn whole_part(path: &std::path::Path, id: u64) -> anyhow::Result<(FileSum, Option<(u32, u64)>)> {
    let mut last = None;
    if std::fs::metadata(path)?.len() < HEADER_BYTES as u64 {
        // It was interrupted before anything was written.
        return Ok((FileSum::default(), None));
    }
    let mut reader = Reader::open(path, Some(id))?;
    loop {
        match reader.next_page() {
            Ok(Some(page)) => {
                last = page.messages.last().map(|message| (page.queue_id, message.offset)).or(last);
            }
            Ok(None) => return Ok((reader.sum(), last)),
            Err(error) if error.is::<Damaged>() => return Ok((reader.sum(), last)),
            Err(error) => return Err(error),
        }
    }
}
