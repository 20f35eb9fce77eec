//! Dead letters that go back to the topics they came from.
//!
//! A letter goes back as one record, which also acknowledges the letter for a group that nobody else uses: a crash leaves
//! both or neither, and a letter goes back once. One call at a time, on a thread that may block; it goes on when the
//! caller has gone away.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use karman_remoting::message::EncodedMessage;
use karman_remoting::proto::karman as v1;
use karman_remoting::proto::v2;
use karman_remoting::status::{Rejection, ok};
use karman_remoting::validate;
use karman_remoting::validate::message::DEAD_LETTER_PROPERTIES;
use karman_store::{Append, Entry, NewRecord, QueueNumber, QueueOffset, Record, RecordKind};
use prost::Message as _;

use crate::broker::Broker;
use crate::catalog::Topic;
use crate::dedupe::id_hash;
use crate::label::Label;
use crate::pop::{MessageState, Position};
use crate::progress::GroupTopic;
use crate::records::{Origin, message_of};
use crate::refuse;
use crate::service::send::{self, keys_of, mark_of};

/// Whose progress on dead letters says which went back. Clients cannot use a name like this.
pub const REDRIVE_GROUP: &str = "CID_RMQ_SYS_REDRIVE";

/// Letters of one call that does not say how many, and of one that does.
const MAX_DEFAULT: u32 = 1000;
/// Letters behind the first that has not gone back; what lies further is left for later, since each that stays in front
/// of one that goes is remembered.
const LOOKED_AT_MAX: u64 = 100_000;
/// Letters with one message id: it died so often.
const SAME_ID_MAX: usize = 64;
/// Letters that stay and are named.
const SKIPPED_MAX: usize = 32;
/// Entries read at once.
const CHUNK: usize = 256;
/// Appends that are not answered yet, in number and bytes.
const PENDING_MAX: usize = 256;
const PENDING_MAX_BYTES: usize = 8 << 20;

/// The one call that may run.
struct Turn(Arc<Broker>);

impl Turn {
    fn take(broker: &Arc<Broker>) -> Result<Self, Rejection> {
        if broker.redriving.swap(true, Ordering::AcqRel) {
            let what = "dead letters are being sent back already; wait for that to end".to_owned();
            return Err(Rejection::TooManyRequests(what));
        }
        Ok(Self(broker.clone()))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.redriving.store(false, Ordering::Release);
    }
}

impl Broker {
    /// Sends dead letters of a group back, or counts them.
    pub async fn redrive_dead_letters(
        self: &Arc<Self>,
        request: v1::RedriveDeadLettersRequest,
    ) -> Result<v1::RedriveDeadLettersResponse, Rejection> {
        validate::group(&request.group)?;
        let Some(letters) = self.catalog.topic(&validate::dead_letter_topic(&request.group)) else {
            return match self.catalog.group(&request.group) {
                Some(_) => Ok(v1::RedriveDeadLettersResponse { status: Some(ok()), ..Default::default() }),
                None => Err(Rejection::GroupNotFound { group: request.group }),
            };
        };
        let row = if request.dry_run {
            let group = self.catalog.group(REDRIVE_GROUP);
            group.and_then(|group| self.progress.get(group.number, letters.number, None))
        } else {
            let group = v1::GroupConfig { name: REDRIVE_GROUP.to_owned(), ..Default::default() };
            let (group, _) = self.catalog_writer.group(group).await?;
            Some(self.progress_of(&group, &letters, None).await?)
        };
        let turn = Turn::take(self)?;
        let redriven = tokio::task::spawn_blocking(move || {
            let max = if request.max == 0 { MAX_DEFAULT } else { request.max };
            let redrive = Redrive {
                broker: &turn.0,
                letters: &letters,
                row: row.as_deref(),
                dry_run: request.dry_run,
                max,
                answer: v1::RedriveDeadLettersResponse { status: Some(ok()), ..Default::default() },
                pending: Vec::new(),
                pending_bytes: 0,
            };
            let answer = redrive.run(&request.message_id);
            if !request.dry_run {
                tracing::info!(group = request.group, count = answer.count, "dead letters went back");
            }
            answer
        });
        redriven.await.map_err(|error| Rejection::Internal(error.to_string()))
    }
}

/// Where a letter goes, and as what.
type Original = (Arc<Topic>, QueueNumber, EncodedMessage);

/// A call under way.
struct Redrive<'a> {
    broker: &'a Broker,
    letters: &'a Topic,
    /// Says which letters went back; `None`: none did.
    row: Option<&'a GroupTopic>,
    dry_run: bool,
    max: u32,
    answer: v1::RedriveDeadLettersResponse,
    pending: Vec<Append>,
    pending_bytes: usize,
}

impl Redrive<'_> {
    /// What was done; what failed is said beside it, for what has gone back until then is gone.
    fn run(mut self, message_id: &str) -> v1::RedriveDeadLettersResponse {
        self.forget_deleted();
        let looked = if message_id.is_empty() {
            (0..self.letters.queue_nums()).try_for_each(|queue_id| self.queue(queue_id))
        } else {
            self.one(message_id)
        };
        // Also after an error: the next call must find what this one has sent.
        let settled = self.settle();
        if let Err(rejection) = looked.and(settled) {
            self.answer.failure = Some(rejection.into());
            self.answer.more = true;
        }
        self.answer
    }

    /// Letters that were deleted need not be remembered any more.
    fn forget_deleted(&self) {
        let Some(row) = self.row.filter(|_| !self.dry_run) else { return };
        for queue_id in 0..self.letters.queue_nums() {
            let start = self.range(queue_id).start;
            row.run(|pop| {
                let floor = pop.queue_state(queue_id).map_or(start, |state| state.floor);
                for offset in floor..start {
                    pop.finish(Position { queue_id, offset });
                }
            });
        }
    }

    fn range(&self, queue_id: u32) -> Range<u64> {
        self.letters.queue(queue_id).map_or(0..0, |queue| self.broker.store.queue_range(queue))
    }

    /// The offsets of a queue that are looked at: from the first letter that did not go back.
    fn window(&self, queue_id: u32) -> Range<u64> {
        let range = self.range(queue_id);
        let state = self.row.and_then(|row| row.run(|pop| pop.queue_state(queue_id)));
        let from = state.map_or(range.start, |state| state.floor.max(range.start));
        from..range.end.min(from + LOOKED_AT_MAX)
    }

    fn went_back(&self, position: Position) -> bool {
        self.row.is_some_and(|row| row.run(|pop| pop.message_state(position)) == MessageState::Done)
    }

    /// All letters of a queue, in their order.
    fn queue(&mut self, queue_id: u32) -> Result<(), Rejection> {
        let window = self.window(queue_id);
        let queue = QueueNumber(self.letters.queues[queue_id as usize]);
        let (mut at, mut entries) = (window.start, Vec::with_capacity(CHUNK));
        while at < window.end {
            entries.clear();
            let count = CHUNK.min((window.end - at) as usize);
            let found = self.broker.store.entries(queue, QueueOffset(at), count, &mut entries);
            found.map_err(|error| refuse::read(&error))?;
            if entries.is_empty() {
                break;
            }
            for entry in &entries {
                let position = Position { queue_id, offset: at };
                at += 1;
                if self.went_back(position) {
                    continue;
                }
                if self.answer.count as usize + self.pending.len() >= self.max as usize {
                    self.answer.more = true;
                    return Ok(());
                }
                self.entry(position, entry)?;
            }
        }
        self.answer.more |= window.end < self.range(queue_id).end;
        Ok(())
    }

    fn entry(&mut self, position: Position, entry: &Entry) -> Result<(), Rejection> {
        if entry.is_lost() {
            return Ok(());
        }
        match self.broker.store.record(entry.physical_offset, entry.size) {
            Ok(record) => self.letter(position, &record),
            Err(error) if error.is_final() => Ok(()),
            Err(error) => Err(refuse::read(&error)),
        }
    }

    /// The letters with one message id.
    fn one(&mut self, message_id: &str) -> Result<(), Rejection> {
        let mut found = Vec::new();
        let hash = id_hash(self.letters.number, message_id);
        let times = 0..u64::MAX;
        self.broker.store.find(hash, times, SAME_ID_MAX, &mut found).map_err(|error| refuse::read(&error))?;
        for record in found.iter().rev() {
            let queue_id = self.letters.queues.iter().position(|own| record.queue == Some(QueueNumber(*own)));
            let Some(queue_id) = queue_id.and_then(|id| u32::try_from(id).ok()) else { continue };
            let position = Position { queue_id, offset: record.queue_offset.0 };
            if self.went_back(position) {
                self.skip(message_id, "it went back before");
            } else if !self.window(queue_id).contains(&position.offset) {
                self.skip(
                    message_id,
                    "more than 100000 letters in front of it did not go back; send these first",
                );
            } else {
                self.letter(position, record)?;
            }
        }
        Ok(())
    }

    fn letter(&mut self, position: Position, record: &Record) -> Result<(), Rejection> {
        let (topic, queue, message) = match self.original(record) {
            Ok(original) => original,
            Err((message_id, why)) => {
                self.skip(&message_id, &why);
                return Ok(());
            }
        };
        let Some(row) = self.row.filter(|_| !self.dry_run) else {
            self.answer.count += 1;
            return Ok(());
        };
        let origin = Origin {
            group: row.group,
            topic: self.letters.number,
            queue_id: position.queue_id,
            offset: position.offset,
        };
        let record = NewRecord {
            kind: RecordKind::DeadLetter,
            queue: Some(queue),
            tag_hash: Label::of(&message.system_properties).0,
            mark: mark_of(&message).0,
            keys: keys_of(&message.system_properties, topic.number),
            payload: origin.before(&message.bytes),
        };
        self.pending_bytes += record.payload.len();
        let durability = self.broker.durability_of(&topic);
        self.pending.push(self.broker.store.append(vec![record], durability).map_err(refuse::append)?);
        if self.pending.len() >= PENDING_MAX || self.pending_bytes >= PENDING_MAX_BYTES {
            self.settle()?;
        }
        Ok(())
    }

    /// Waits for all that was handed to the log and counts what went back; the first that failed is the error.
    fn settle(&mut self) -> Result<(), Rejection> {
        self.pending_bytes = 0;
        let mut settled = Ok(());
        for append in self.pending.drain(..) {
            match append.wait() {
                Ok(_) => self.answer.count += 1,
                Err(error) => settled = settled.and(Err(refuse::append(error))),
            }
        }
        settled
    }

    /// The topic and queue that a letter goes to, and the message as it was there; or why it cannot go back.
    fn original(&self, record: &Record) -> Result<Original, (String, String)> {
        let message = v2::Message::decode(message_of(record));
        let mut message =
            message.map_err(|error| (format!("{:?}", record.queue_offset), error.to_string()))?;
        let system = message.system_properties.get_or_insert_default();
        let message_id = system.message_id.clone();
        let refused = |why: String| (message_id.clone(), why);
        let Some(origin) = system.dead_letter_queue.take() else {
            return Err(refused("it does not say where it came from".into()));
        };
        let Some(topic) = self.broker.catalog.topic(&origin.topic) else {
            return Err(refused(format!("topic {} does not exist on this broker any more", origin.topic)));
        };
        let Some(queue) = self.queue_in(&topic, system) else {
            let lite_topic = system.lite_topic();
            return Err(refused(format!("lite topic {lite_topic} of topic {} is no more", origin.topic)));
        };
        message.topic = Some(v2::Resource { resource_namespace: String::new(), name: origin.topic });
        DEAD_LETTER_PROPERTIES.iter().for_each(|name| drop(message.user_properties.remove(*name)));
        let encoded = EncodedMessage::read(message.encode_to_vec().into());
        encoded.map(|encoded| (topic, queue, encoded)).map_err(|error| refused(error.to_string()))
    }

    /// `None`: the lite topic of the message is gone.
    fn queue_in(&self, topic: &Arc<Topic>, system: &v2::SystemProperties) -> Option<QueueNumber> {
        if !topic.is_lite() {
            return Some(send::queue_of(topic, system));
        }
        let lite = self.broker.lite.topics.named(topic.number, system.lite_topic())?;
        // From here on it is in use and stays.
        lite.touch(self.broker.clock.now_ms()).then_some(lite.queue)
    }

    fn skip(&mut self, message_id: &str, why: &str) {
        if self.answer.skipped.len() < SKIPPED_MAX {
            self.answer.skipped.push(format!("{message_id}: {why}"));
        }
    }
}
