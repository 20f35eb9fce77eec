//! What `karman backup` and `karman restore` say at the end.

use std::path::Path;

use serde::Serialize;

use super::format::{Complete, TopicCopy};
use super::plan::Plan;
use super::restore::Restored;
use super::take::Taking;
use crate::output::{self, Format, bytes, grouped, number, text};
use crate::time;

#[derive(Serialize)]
pub(super) struct BackupJson {
    directory: String,
    /// False: it is only what would be done.
    done: bool,
    /// Milliseconds since 1970. None: it has not begun.
    begun_ms: Option<u64>,
    topics: Vec<TopicJson>,
    groups: Vec<String>,
    users: Vec<String>,
    messages: u64,
    /// Messages that an interrupted command had brought already.
    messages_before: u64,
    delayed: u64,
    /// Messages that were to be in it and are not: they were damaged, or deleted meanwhile.
    lost: u64,
    bytes: u64,
    /// What is left out.
    not_kept: Vec<String>,
}

#[derive(Serialize)]
struct TopicJson {
    topic: String,
    broker: String,
    messages: u64,
}

impl TopicJson {
    fn of(topic: &TopicCopy) -> Self {
        let messages = topic.message_count();
        Self { topic: topic.name().to_owned(), broker: topic.broker.clone(), messages }
    }
}

impl BackupJson {
    pub(super) fn planned(directory: &Path, topics: Vec<TopicCopy>, notes: Vec<String>) -> Self {
        Self {
            directory: directory.display().to_string(),
            done: false,
            begun_ms: None,
            messages: topics.iter().map(TopicCopy::message_count).sum(),
            topics: topics.iter().map(TopicJson::of).collect(),
            groups: Vec::new(),
            users: Vec::new(),
            messages_before: 0,
            delayed: 0,
            lost: 0,
            bytes: 0,
            not_kept: notes,
        }
    }

    pub(super) fn made(directory: &Path, taking: &Taking<'_>, complete: &Complete) -> Self {
        let manifest = &taking.manifest;
        let is_delayed = |name: &str| name == super::directory::DELAYED;
        let count = |delayed: bool| {
            let files = complete.files.iter().filter(|file| is_delayed(&file.name) == delayed);
            files.map(|file| file.messages).sum::<u64>()
        };
        let wanted: u64 = manifest.topics.iter().map(TopicCopy::message_count).sum();
        Self {
            directory: directory.display().to_string(),
            done: true,
            begun_ms: Some(manifest.begun_ms),
            topics: manifest.topics.iter().map(TopicJson::of).collect(),
            groups: manifest.groups.iter().map(|group| group.config.name.clone()).collect(),
            users: manifest.users.iter().map(|user| user.name.clone()).collect(),
            messages: count(false),
            messages_before: taking.kept,
            delayed: count(true),
            lost: wanted.saturating_sub(count(false)),
            bytes: complete.files.iter().map(|file| file.bytes).sum(),
            not_kept: manifest.notes.clone(),
        }
    }

    pub(super) fn print(&self, format: Format) -> anyhow::Result<()> {
        if output::nameless(format, self)? {
            return Ok(());
        }
        let cells = |row: &TopicJson| vec![row.topic.clone(), row.broker.clone(), grouped(row.messages)];
        let columns = [text("TOPIC"), text("BROKER"), number("MESSAGES")];
        output::table(&columns, self.topics.iter().map(cells).collect())?;
        output::line("")?;
        if self.done {
            let (messages, delayed) = (grouped(self.messages), grouped(self.delayed));
            output::line(&format!("{messages} messages and {delayed} delayed ones, {}", bytes(self.bytes)))?;
            let (groups, users) = (self.groups.len(), self.users.len());
            output::line(&format!("{groups} groups, {users} users; every file was read again"))?;
        } else {
            output::line(&format!("{} messages; nothing was written yet", grouped(self.messages)))?;
        }
        if self.lost > 0 {
            let lost = grouped(self.lost);
            output::paragraph(0, &format!("lost: {lost} messages were damaged, or deleted meanwhile"))?;
        }
        self.not_kept.iter().try_for_each(|note| Ok(output::paragraph(0, &format!("not kept: {note}"))?))
    }
}

#[derive(Serialize)]
pub(super) struct RestoreJson {
    directory: String,
    /// False: it is only what would be done.
    done: bool,
    begun_ms: u64,
    cluster: String,
    topics: Vec<RestoredTopicJson>,
    groups: Vec<String>,
    /// Messages that were put into queues, or would be.
    messages: u64,
    delayed: u64,
    bytes: u64,
    /// Why nothing can be restored.
    conflicts: Vec<String>,
    /// What the backup leaves out, and what is left to do by hand.
    not_kept: Vec<String>,
}

#[derive(Serialize)]
struct RestoredTopicJson {
    topic: String,
    /// That it was on.
    from: String,
    broker: String,
    messages: u64,
    /// How many of them were there before.
    there: u64,
}

impl RestoreJson {
    pub(super) fn planned(directory: &Path, plan: &Plan) -> Self {
        let manifest = plan.manifest();
        let topic = |(index, topic): (usize, &TopicCopy)| RestoredTopicJson {
            topic: topic.name().to_owned(),
            from: topic.broker.clone(),
            broker: plan.brokers[&topic.broker].clone(),
            messages: plan.checked.queues[index].iter().map(|queue| queue.messages).sum(),
            there: plan.there(index),
        };
        let topics: Vec<RestoredTopicJson> = manifest.topics.iter().enumerate().map(topic).collect();
        Self {
            directory: directory.display().to_string(),
            done: false,
            begun_ms: manifest.begun_ms,
            cluster: manifest.cluster.clone(),
            messages: topics.iter().map(|topic| topic.messages.saturating_sub(topic.there)).sum(),
            topics,
            groups: manifest.groups.iter().map(|group| group.config.name.clone()).collect(),
            delayed: plan.checked.delayed,
            bytes: plan.checked.bytes,
            conflicts: plan.conflicts.clone(),
            not_kept: manifest.notes.clone(),
        }
    }

    pub(super) fn done(directory: &Path, plan: &Plan, restored: Restored) -> Self {
        let planned = Self::planned(directory, plan);
        let Restored { messages, delayed, notes } = restored;
        let not_kept = planned.not_kept.into_iter().chain(notes).collect();
        Self { done: true, messages, delayed, not_kept, ..planned }
    }

    pub(super) fn print(&self, format: Format) -> anyhow::Result<()> {
        if output::nameless(format, self)? {
            return Ok(());
        }
        let cells = |row: &RestoredTopicJson| {
            vec![row.topic.clone(), row.broker.clone(), grouped(row.messages), grouped(row.there)]
        };
        let columns = [text("TOPIC"), text("BROKER"), number("MESSAGES"), number("THERE")];
        output::table(&columns, self.topics.iter().map(cells).collect())?;
        output::line("")?;
        let (messages, delayed, groups) = (grouped(self.messages), grouped(self.delayed), self.groups.len());
        let at = time::format_ms(self.begun_ms);
        let what = if self.done { "restored" } else { "nothing was changed yet" };
        output::line(&format!("backup of {at}: {} in files that are whole", bytes(self.bytes)))?;
        output::line(&format!("{messages} messages, {delayed} delayed ones, {groups} groups: {what}"))?;
        self.not_kept.iter().try_for_each(|note| Ok(output::paragraph(0, &format!("not kept: {note}"))?))
    }
}
