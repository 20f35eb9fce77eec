//! What became of one message in the groups that read its topic, in words. Part of [`super::explain`].

use karman_remoting::civil;
use karman_remoting::proto::karman as v1;
use karman_remoting::proto::v2;
use karman_remoting::validate;
use karman_store::{QueueNumber, QueueOffset};
use prost::Message as _;

use crate::broker::Broker;
use crate::lite::LiteGroup;
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

/// Groups, and clients of broadcasting ones, that are told of one record.
const FATES_MAX: usize = 1000;

/// The fate of a message in each group that reads the topic, or in the one that is asked for.
pub(super) fn of_groups(broker: &Broker, found: &Found<'_>, asked: &str) -> Vec<v1::GroupTrace> {
    // Nobody has what is held.
    let Some(queue) = found.record.queue else { return Vec::new() };
    let named = |number: u32| {
        let group = broker.catalog.group_numbered(number)?;
        let is_asked = group.name() != REDRIVE_GROUP && (asked.is_empty() || group.name() == asked);
        is_asked.then_some(group)
    };
    let mut fates = Vec::new();
    if let Some(position) = found.position() {
        let mut rows = broker.progress.all();
        rows.retain(|row| row.topic.number == found.topic.number);
        rows.sort_by(|a, b| (a.group, &a.client).cmp(&(b.group, &b.client)));
        for row in rows {
            let Some(group) = named(row.group) else { continue };
            fates.push(Fate::of_row(broker, found, queue, &group, &row, position));
        }
    } else {
        let mut rows = broker.lite.all();
        rows.retain(|row| row.topic.number == found.topic.number);
        rows.sort_by_key(|row| row.group);
        for row in rows {
            let Some(group) = named(row.group) else { continue };
            fates.extend(Fate::of_lite(broker, found, queue, &group, &row));
        }
    }
    if fates.is_empty() && !asked.is_empty() {
        let topic = found.topic.name();
        let reason = format!("the group has not read topic {topic} on broker {} yet", broker.name);
        let (group, state) = (asked.to_owned(), WAITING.to_owned());
        return vec![v1::GroupTrace { group, state, reason, ..Default::default() }];
    }
    fates.truncate(FATES_MAX);
    fates.into_iter().map(|fate| fate.trace()).collect()
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

/// One message in one group; of a broadcasting group, with one client.
struct Fate<'a> {
    broker: &'a Broker,
    found: &'a Found<'a>,
    group: GroupRecord,
    queue: QueueNumber,
    /// Of a broadcasting group.
    client: Option<String>,
    state: MessageState,
    /// How many messages of the queue come before one that waits.
    in_front: u64,
    /// Where the message is that a withheld one waits for, and what became of that.
    front: Option<(u64, MessageState)>,
}

impl<'a> Fate<'a> {
    fn of_row(
        broker: &'a Broker,
        found: &'a Found<'a>,
        queue: QueueNumber,
        group: &GroupRecord,
        row: &GroupTopic,
        position: Position,
    ) -> Self {
        let start = broker.store.queue_range(queue).start;
        let (state, next, front) = row.run(|pop| {
            let state = pop.message_state(position);
            let next = pop.queue_state(position.queue_id).map_or(0, |state| state.next);
            let front = match state {
                MessageState::Withheld { front } => {
                    Some((front, pop.message_state(Position { offset: front, ..position })))
                }
                _ => None,
            };
            (state, next, front)
        });
        Self {
            broker,
            found,
            group: group.clone(),
            queue,
            client: row.client.as_deref().map(str::to_owned),
            state,
            in_front: position.offset.saturating_sub(next.max(start)),
            front,
        }
    }

    /// A lite topic is read strictly one message behind the other. `None`: the group has nothing to do with it.
    fn of_lite(
        broker: &'a Broker,
        found: &'a Found<'a>,
        queue: QueueNumber,
        group: &GroupRecord,
        row: &LiteGroup,
    ) -> Option<Self> {
        let cursor = row.run(|pop| pop.cursor(queue.0).cloned())?;
        let floor = cursor.floor.max(broker.store.queue_range(queue).start);
        let offset = found.record.queue_offset.0;
        let at_floor = MessageState::InFlight {
            attempt: cursor.attempt,
            visible_at_ms: cursor.visible_at_ms,
            holder: cursor.renewed_for.and_then(|renewal| renewal.holder()),
        };
        let (state, front) = if offset < floor {
            (MessageState::Done, None)
        } else if offset == floor {
            (at_floor, None)
        } else {
            (MessageState::Withheld { front: floor }, Some((floor, at_floor)))
        };
        let (group, in_front) = (group.clone(), offset.saturating_sub(floor));
        Some(Self { broker, found, group, queue, client: None, state, in_front, front })
    }

    fn trace(&self) -> v1::GroupTrace {
        let mut trace = v1::GroupTrace {
            group: self.group.name().to_owned(),
            client_id: self.client.clone().unwrap_or_default(),
            ..Default::default()
        };
        let (word, reason) = match &self.state {
            MessageState::Waiting => (WAITING, self.waiting()),
            MessageState::Withheld { .. } => (WITHHELD, self.withheld()),
            MessageState::Done => self.done(),
            MessageState::InFlight { attempt: 0, .. } => (WAITING, self.waiting()),
            MessageState::InFlight { attempt, visible_at_ms, holder } => {
                trace.attempt = *attempt;
                trace.visible_at_ms = *visible_at_ms;
                if let Some(holder) = holder {
                    trace.client_id = holder.to_string();
                }
                self.in_flight(*attempt, *visible_at_ms, holder.as_deref())
            }
        };
        trace.state = word.to_owned();
        trace.reason = reason;
        trace
    }

    /// Not delivered yet.
    fn waiting(&self) -> String {
        let place = match self.in_front {
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
        // Subscriptions to lite topics have no filter.
        if self.found.topic.is_lite() {
            return Wish::Wanted;
        }
        let topic = self.found.topic.name();
        let subscriptions = members.iter().flat_map(|member| &member.subscriptions);
        let mut wish = Wish::NotSubscribed;
        for subscription in subscriptions.filter(|subscription| subscription.topic == topic) {
            let Ok(wanted) = Wanted::of(subscription.filter.as_ref(), &self.broker.filters) else { continue };
            let record = &self.found.record;
            match wanted.really_wants(message_of(record), Mark(record.mark)) {
                Ok(true) => return Wish::Wanted,
                Ok(false) => wish = Wish::Unwanted("no client's filter matches it".to_owned()),
                Err(error) => {
                    let what = "the filter cannot be put to it, which counts as no match";
                    wish = Wish::Unwanted(format!("{what}: {error}"));
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
        let until = civil::format_ms(visible_at_ms);
        if visible_at_ms <= self.broker.clock.now_ms() && holder.is_none() {
            let reason = format!("attempt {attempt} ended at {until} without an acknowledgement; {then}");
            return (RETRYING, self.unless_suspended(&reason));
        }
        let reason = match holder {
            Some(client) if self.broker.clients.is_alive(client) => {
                format!("attempt {attempt} is with client {client}, which keeps it while it lives")
            }
            Some(client) => {
                format!(
                    "attempt {attempt} was with client {client}, which is gone; invisible until {until}, {then}"
                )
            }
            // Who receives without renewal, and who gives back, both set a time and nothing else.
            None => {
                format!(
                    "attempt {attempt} is with a client or was refused by it; invisible until {until}, {then}"
                )
            }
        };
        (DELIVERED, reason)
    }

    /// Behind an earlier message of its message group or lite topic.
    fn withheld(&self) -> String {
        let Some((front, state)) = &self.front else { return String::new() };
        let system = self.system_properties_at(*front).unwrap_or_default();
        let id = &system.message_id;
        let place = match (&system.message_group, &system.lite_topic) {
            (Some(group), _) => format!("message {id} of message group {group}"),
            (None, Some(lite)) => format!("message {id} of lite topic {lite}"),
            (None, None) => format!("message {id}"),
        };
        let why = match state {
            MessageState::InFlight { attempt: 0, .. } | MessageState::Waiting => {
                "it is delivered next".to_owned()
            }
            MessageState::InFlight { attempt, visible_at_ms, holder } => {
                self.in_flight(*attempt, *visible_at_ms, holder.as_deref()).1
            }
            MessageState::Withheld { .. } | MessageState::Done => "it has just been done".to_owned(),
        };
        self.unless_suspended(&format!("{place} comes before it: {why}"))
    }

    /// The state does not say how it came to be done, but the dead letters do.
    fn done(&self) -> (&'static str, String) {
        if let Some((topic, since_ms)) = self.dead_letter() {
            return (DEAD, format!("dead letter in topic {topic} since {}", civil::format_ms(since_ms)));
        }
        if let Wish::Unwanted(why) = self.wish() {
            return (DONE, format!("passed over, if it was not acknowledged under another filter: {why}"));
        }
        let how = "acknowledged, or passed over: by a filter, for its age, by a reset, or as older than the group's start";
        (DONE, how.to_owned())
    }

    /// The first letter of this group that the message became after it was stored here: its topic and time.
    fn dead_letter(&self) -> Option<(String, u64)> {
        let topic = self.broker.catalog.topic(&validate::dead_letter_topic(self.group.name()))?;
        let letters = self.broker.carrying(&topic, &self.found.system().message_id).ok()?;
        let is_own = |letter: &Found<'_>| {
            let origin = letter.system().dead_letter_queue;
            letter.record.physical_offset > self.found.record.physical_offset
                && origin.is_some_and(|origin| origin.topic == self.found.topic.name())
        };
        let since_ms = letters.into_iter().find(is_own)?.record.store_time_ms;
        Some((topic.name().to_owned(), since_ms))
    }

    fn system_properties_at(&self, offset: u64) -> Option<v2::SystemProperties> {
        let mut entries = Vec::with_capacity(1);
        let store = &self.broker.store;
        store.entries(self.queue, QueueOffset(offset), 1, &mut entries).ok()?;
        let entry = entries.first().filter(|entry| !entry.is_lost())?;
        let record = store.record(entry.physical_offset, entry.size).ok()?;
        v2::Message::decode(message_of(&record)).ok()?.system_properties
    }
}
