//! What became of one message in the groups that read its topic, in words. Part of [`super::explain`].

use karman_remoting::civil;
use karman_remoting::proto::karman as v1;
use karman_remoting::proto::v2;
use karman_remoting::validate;
use karman_store::{QueueNumber, QueueOffset, Record};
use prost::Message as _;

use crate::broker::Broker;
use crate::catalog::Topic;
use crate::mark::Mark;
use crate::pop::{MessageState, Position};
use crate::progress::GroupTopic;
use crate::records::{GroupRecord, message_of};
use crate::service::explain::Found;
use crate::service::redrive::REDRIVE_GROUP;
use crate::wanted::Wanted;

/// The group's state, a word for programs.
const WAITING: &str = "waiting";
const DELIVERED: &str = "delivered";
const WITHHELD: &str = "withheld";
const RETRYING: &str = "retrying";
const DONE: &str = "done";
const DEAD: &str = "dead";

/// The fate of a message in each group that reads the topic, or in the one that is asked for.
pub(super) fn of_groups(broker: &Broker, found: &Found<'_>, asked: &str) -> Vec<v1::GroupTrace> {
    let Some(position) = found.position() else { return Vec::new() };
    let mut traces = Vec::new();
    for group in broker.catalog.groups() {
        let name = group.name();
        if name == REDRIVE_GROUP || (!asked.is_empty() && name != asked) {
            continue;
        }
        let rows = broker.rows_of(&group, found.topic);
        if rows.is_empty() && name == asked {
            traces.push(unread(broker, &group, found.topic));
        }
        traces.extend(rows.iter().map(|row| Fate { broker, group: &group, row, found, position }.trace()));
    }
    traces
}

fn unread(broker: &Broker, group: &GroupRecord, topic: &Topic) -> v1::GroupTrace {
    let reason = format!("the group has not read topic {} on broker {} yet", topic.name(), broker.name);
    v1::GroupTrace { group: group.name().to_owned(), state: WAITING.to_owned(), reason, ..Default::default() }
}

/// What the clients of a group want of a topic.
enum Wish {
    /// There are none.
    Nobody,
    NotSubscribed,
    /// Why not.
    Unwanted(String),
    Wanted,
}

struct Letter {
    topic: String,
    since_ms: u64,
}

/// One message in one group; of a broadcasting group, with one client.
struct Fate<'a> {
    broker: &'a Broker,
    group: &'a GroupRecord,
    row: &'a GroupTopic,
    found: &'a Found<'a>,
    position: Position,
}

impl Fate<'_> {
    fn trace(&self) -> v1::GroupTrace {
        let state = self.row.pop.lock().message_state(self.position);
        let mut trace = v1::GroupTrace {
            group: self.group.name().to_owned(),
            client_id: self.row.client.as_deref().unwrap_or_default().to_owned(),
            ..Default::default()
        };
        let (word, reason) = match state {
            MessageState::Waiting => (WAITING, self.waiting()),
            MessageState::Withheld { front } => (WITHHELD, self.withheld(front)),
            MessageState::Done => self.done(),
            MessageState::InFlight { attempt: 0, .. } => {
                (WAITING, self.unless_suspended("it is delivered next"))
            }
            MessageState::InFlight { attempt, visible_at_ms, holder } => {
                trace.attempt = attempt;
                trace.visible_at_ms = visible_at_ms;
                if let Some(holder) = &holder {
                    trace.client_id = holder.to_string();
                }
                self.in_flight(attempt, visible_at_ms, holder.as_deref())
            }
        };
        trace.state = word.to_owned();
        trace.reason = reason;
        trace
    }

    /// Not looked at yet.
    fn waiting(&self) -> String {
        let start = self.queue().map_or(0, |queue| self.broker.store.queue_range(queue).start);
        let next = self.row.pop.lock().queue_state(self.position.queue_id).map_or(0, |state| state.next);
        let in_front = self.position.offset.saturating_sub(next.max(start));
        let place = match in_front {
            0 => "it is the next of its queue".to_owned(),
            1 => "1 message of its queue comes before it".to_owned(),
            count => format!("{count} messages of its queue come before it"),
        };
        self.unless_suspended(&match self.wish() {
            Wish::Wanted => place,
            Wish::Nobody => format!("{place}; no client of the group has been heard from lately"),
            Wish::NotSubscribed => format!("{place}; no client of the group subscribes to the topic"),
            Wish::Unwanted(why) => format!("{place}; it will be passed over: {why}"),
        })
    }

    /// What the clients of the group want of the topic.
    fn wish(&self) -> Wish {
        let members = self.broker.clients.members(self.group.name());
        if members.is_empty() {
            return Wish::Nobody;
        }
        let topic = self.row.topic.name();
        let subscriptions = members.iter().flat_map(|member| &member.subscriptions);
        let mut wish = Wish::NotSubscribed;
        for subscription in subscriptions.filter(|subscription| subscription.topic == topic) {
            let Ok(wanted) = Wanted::of(subscription.filter.as_ref(), &self.broker.filters) else { continue };
            let record = &self.found.record;
            match wanted.really_wants(message_of(record), Mark(record.mark)) {
                Ok(true) => return Wish::Wanted,
                Ok(false) => wish = Wish::Unwanted("no client's filter matches it".to_owned()),
                Err(error) => {
                    wish = Wish::Unwanted(format!(
                        "the filter cannot be put to it, which counts as no match: {error}"
                    ));
                }
            }
        }
        wish
    }

    fn unless_suspended(&self, reason: &str) -> String {
        if self.group.config.suspended {
            return format!("the group is suspended; karman group resume {} goes on", self.group.name());
        }
        reason.to_owned()
    }

    fn in_flight(&self, attempt: u32, visible_at_ms: u64, holder: Option<&str>) -> (&'static str, String) {
        let then = if attempt >= self.group.attempts_max() {
            "then it becomes a dead letter".to_owned()
        } else {
            format!("then attempt {} follows", attempt + 1)
        };
        if visible_at_ms <= self.broker.clock.now_ms() && holder.is_none() {
            let reason = format!(
                "attempt {attempt} ended at {} without an acknowledgement; {then}",
                civil::format_ms(visible_at_ms)
            );
            return (RETRYING, self.unless_suspended(&reason));
        }
        let until = civil::format_ms(visible_at_ms);
        match holder {
            Some(client) if self.broker.clients.is_alive(client) => (
                DELIVERED,
                format!("attempt {attempt} is with client {client}, which keeps it while it lives"),
            ),
            Some(client) => (
                DELIVERED,
                format!(
                    "attempt {attempt} was with client {client}, which is gone; invisible until {until}, {then}"
                ),
            ),
            // Who receives without renewal, and who gives back, both set a time and nothing else.
            None => (
                DELIVERED,
                format!(
                    "attempt {attempt} is with a client or was refused by it; invisible until {until}, {then}"
                ),
            ),
        }
    }

    /// Behind an earlier message of its message group.
    fn withheld(&self, front: u64) -> String {
        let at = Position { offset: front, ..self.position };
        let state = self.row.pop.lock().message_state(at);
        let message = self.record(at).and_then(|record| v2::Message::decode(message_of(&record)).ok());
        let system = message.and_then(|message| message.system_properties).unwrap_or_default();
        let (id, message_group) = (system.message_id, system.message_group.unwrap_or_default());
        let why = match state {
            MessageState::InFlight { attempt: 0, .. } | MessageState::Waiting => {
                "is delivered next".to_owned()
            }
            MessageState::InFlight { attempt, visible_at_ms, holder } => {
                self.in_flight(attempt, visible_at_ms, holder.as_deref()).1
            }
            MessageState::Withheld { .. } | MessageState::Done => "has just been done".to_owned(),
        };
        self.unless_suspended(&format!(
            "message {id} of message group {message_group} comes before it: {why}"
        ))
    }

    /// The state does not say how it came to be done, but the dead letters do.
    fn done(&self) -> (&'static str, String) {
        if let Some(letter) = self.dead_letter() {
            let since = civil::format_ms(letter.since_ms);
            return (DEAD, format!("dead letter in topic {} since {since}", letter.topic));
        }
        if let Wish::Unwanted(why) = self.wish() {
            return (DONE, format!("passed over, if it was not acknowledged under another filter: {why}"));
        }
        let how = "acknowledged, or passed over: by a filter, for its age, by a reset, or as older than the group's start";
        (DONE, how.to_owned())
    }

    /// The first letter of this group that the message became after it was stored here.
    fn dead_letter(&self) -> Option<Letter> {
        let topic = self.broker.catalog.topic(&validate::dead_letter_topic(self.group.name()))?;
        let letters = self.broker.carrying(&topic, &self.found.system().message_id).ok()?;
        let is_own = |letter: &Found<'_>| {
            let origin = letter.system().dead_letter_queue;
            letter.record.physical_offset > self.found.record.physical_offset
                && origin.is_some_and(|origin| origin.topic == self.found.topic.name())
        };
        let since_ms = letters.into_iter().find(is_own)?.record.store_time_ms;
        Some(Letter { topic: topic.name().to_owned(), since_ms })
    }

    fn queue(&self) -> Option<QueueNumber> {
        self.row.topic.queue(self.position.queue_id)
    }

    fn record(&self, at: Position) -> Option<Record> {
        let mut entries = Vec::with_capacity(1);
        let store = &self.broker.store;
        store.entries(self.row.topic.queue(at.queue_id)?, QueueOffset(at.offset), 1, &mut entries).ok()?;
        let entry = entries.first().filter(|entry| !entry.is_lost())?;
        store.record(entry.physical_offset, entry.size).ok()
    }
}
