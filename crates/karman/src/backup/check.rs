//! Reads every file of a backup before anything is restored, and counts what a restore must know of the queues. Blocks.

use std::collections::BTreeMap;

use bytes::Bytes;
use karman_remoting::message::EncodedMessage;

use super::directory::{Begun, DELAYED, Directory, MANIFEST, messages_name};
use super::format::{Complete, FileSum, Manifest, Reader, TopicCopy};
use crate::cli::{Damaged, NotFound};
use crate::output::grouped;
use crate::progress::ProgressBar;

/// What is asked of a queue of the backup.
#[derive(Clone, Debug, Default)]
pub(super) struct Asked {
    /// How many messages its queue in the cluster has.
    pub(super) have: u64,
    /// Offsets in the cluster that was copied; how many messages of the backup lie in front of each.
    pub(super) offsets: BTreeMap<u64, u64>,
}

/// A queue of the backup.
#[derive(Clone, Debug, Default)]
pub(super) struct Counted {
    pub(super) messages: u64,
    /// The message with the number [`Asked::have`], counted from 1, or the last if there are fewer.
    last: Option<Bytes>,
    pub(super) asked: Asked,
}

impl Counted {
    fn see(&mut self, offset: u64, message: &Bytes) {
        // What lies behind the message has one message more in front of it.
        for count in self.asked.offsets.range_mut(offset + 1..).map(|(_, count)| count) {
            *count += 1;
        }
        self.messages += 1;
        if self.messages <= self.asked.have {
            self.last = Some(message.clone());
        }
    }

    /// How many of its messages the queue in the cluster has, if it is that of this backup.
    pub(super) fn there(&self) -> u64 {
        self.asked.have.min(self.messages)
    }

    /// The id of the last of those.
    pub(super) fn last_id(&self) -> anyhow::Result<Option<String>> {
        let read = |last: &Bytes| Ok(EncodedMessage::read(last.clone())?.system_properties.message_id);
        self.last.as_ref().map(read).transpose()
    }
}

/// A backup that was read through.
#[derive(Debug)]
pub(super) struct Checked {
    /// Of each topic of the manifest, by queue id.
    pub(super) queues: Vec<Vec<Counted>>,
    pub(super) delayed: u64,
    pub(super) bytes: u64,
}

impl Checked {
    pub(super) fn messages(&self) -> u64 {
        self.queues.iter().flatten().map(|queue| queue.messages).sum()
    }
}

/// Opens a backup that is complete.
pub(super) fn open(directory: &Directory) -> anyhow::Result<(Begun, Complete)> {
    let missing = || NotFound("there is no backup".to_owned());
    let begun = directory.begun()?.ok_or_else(missing)?;
    anyhow::ensure!(
        directory.has(super::directory::COMPLETE),
        "the backup was interrupted and is not complete; `karman backup` with the same directory goes on with it"
    );
    let complete = directory.complete(begun.id)?;
    Ok((begun, complete))
}

/// Reads all files; `asked` is of each topic of the manifest, by queue id.
pub(super) fn check(
    directory: &Directory,
    begun: &Begun,
    complete: &Complete,
    asked: Vec<Vec<Asked>>,
) -> anyhow::Result<Checked> {
    let Begun { id, manifest } = begun;
    let sums: BTreeMap<&str, &FileSum> = complete.files.iter().map(|sum| (sum.name.as_str(), sum)).collect();
    let sum_of = |name: &str| {
        let missing =
            || Damaged(format!("{}: {name} is in no list of files", directory.file(name).display()));
        sums.get(name).copied().ok_or_else(missing)
    };
    let mut reader = Reader::open(&directory.file(MANIFEST), Some(*id))?;
    while reader.next::<Manifest>()?.is_some() {}
    reader.check(sum_of(MANIFEST)?)?;
    let total = complete.files.iter().map(|sum| sum.messages).sum();
    let mut bar = ProgressBar::new(grouped);
    let mut done = 0;
    let mut checked = Checked {
        queues: Vec::with_capacity(manifest.topics.len()),
        delayed: 0,
        bytes: complete.files.iter().map(|sum| sum.bytes).sum(),
    };
    if !manifest.settings_only {
        let mut reader = Reader::open(&directory.file(DELAYED), Some(*id))?;
        while let Some(page) = reader.next_page()? {
            checked.delayed += page.messages.len() as u64;
        }
        reader.check(sum_of(DELAYED)?)?;
        done += checked.delayed;
    }
    for ((index, topic), asked) in manifest.topics.iter().enumerate().zip(asked) {
        let mut queues: Vec<Counted> =
            asked.into_iter().map(|asked| Counted { asked, ..Counted::default() }).collect();
        if topic.message_count() > 0 {
            let name = messages_name(index);
            let mut reader = Reader::open(&directory.file(&name), Some(*id))?;
            while let Some(page) = reader.next_page()? {
                let queue =
                    queues.get_mut(page.queue_id as usize).ok_or_else(|| no_queue(topic, page.queue_id))?;
                for stored in &page.messages {
                    queue.see(stored.offset, &stored.message);
                }
                done += page.messages.len() as u64;
                bar.show(done, total);
            }
            reader.check(sum_of(&name)?)?;
        }
        checked.queues.push(queues);
    }
    Ok(checked)
}

fn no_queue(topic: &TopicCopy, queue_id: u32) -> Damaged {
    Damaged(format!("the backup is damaged: topic {} has no queue {queue_id}", topic.name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_become_how_many_messages_lie_in_front() {
        let offsets = [3, 5, 6, 8, 100].into_iter().map(|offset| (offset, 0)).collect();
        let mut queue = Counted { asked: Asked { have: 0, offsets }, ..Counted::default() };
        // The queue began at 5 when it was copied; 6 is lost.
        for offset in [5, 7, 8] {
            queue.see(offset, &Bytes::new());
        }
        assert_eq!(Vec::from_iter(queue.asked.offsets), [(3, 0), (5, 0), (6, 1), (8, 2), (100, 3)]);
    }
}
