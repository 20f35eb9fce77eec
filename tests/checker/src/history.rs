//! A history in memory: names are numbers, operations lie in arrays sorted by message and group.
//!
//! 90 bytes and twice the id for each message, 56 for each delivery, 40 for each acknowledgement: 500,000 messages with two
//! groups each take about 200 MB, whatever the size of the file.

use std::collections::HashMap;
use std::io::BufRead;

use anyhow::{Context as _, bail, ensure};

use crate::event::{self, Event, Outcome, VERSION};
use crate::names::Names;

mod cluster;
pub use cluster::{Injected, Lead, Stretch};

/// Deliveries, acknowledgements and messages that are read, together; more are refused.
pub const OPERATIONS_MAX: usize = 50_000_000;
/// A longer line is not of a history.
const LINE_MAX_BYTES: u64 = 64 << 10;

/// A time that never comes.
pub const NEVER: u64 = u64::MAX;

/// What is known of one message, over all attempts to send it.
#[derive(Clone, Debug)]
pub struct Message {
    /// Its topic; `None` when nobody sent it.
    pub topic: Option<u32>,
    pub digest: u32,
    pub lane: Option<u32>,
    pub seq: u64,
    pub due: Option<u64>,
    pub half: bool,
    pub label: Option<u32>,
    /// When the first attempt was begun.
    pub began: u64,
    /// When an attempt was answered with OK first; [`NEVER`]: not at all.
    pub stored: u64,
    /// When that attempt was begun.
    pub attempt: u64,
    /// A bit of what is stored was flipped: it may be lost, but must not come out wrong.
    pub flipped: bool,
    /// When a commit was begun first that was not refused, and whether one was answered with OK.
    pub commit: (u64, bool),
    /// A rollback was answered with OK.
    pub rolled_back: bool,
}

impl Message {
    fn new() -> Self {
        Self {
            topic: None,
            digest: 0,
            lane: None,
            seq: 0,
            due: None,
            half: false,
            label: None,
            began: NEVER,
            stored: NEVER,
            attempt: NEVER,
            flipped: false,
            commit: (NEVER, false),
            rolled_back: false,
        }
    }

    /// Whether it must come to everyone who wants it: the cluster has taken that on.
    pub fn is_promised(&self) -> bool {
        self.stored != NEVER && (!self.half || self.commit.1)
    }
}

/// A consumer group.
#[derive(Clone, Debug)]
pub struct Group {
    pub topic: u32,
    pub attempts_max: u32,
    pub orderly: bool,
    pub wants: Option<Vec<u32>>,
    pub drained: bool,
    /// Calls for messages without an answer: begin, end, broker.
    pub failed_receives: Vec<(u64, u64, u32)>,
}

impl Group {
    /// Whether its filter lets a message pass.
    pub fn wants(&self, message: &Message) -> bool {
        let wants = self.wants.as_ref();
        wants.is_none_or(|labels| message.label.is_some_and(|label| labels.contains(&label)))
    }
}

/// Where a message lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub broker: u32,
    pub queue: u32,
    pub offset: u64,
}

/// A message came to a group.
#[derive(Clone, Copy, Debug)]
pub struct Delivery {
    pub message: u32,
    pub group: u32,
    pub t: u64,
    /// The broker gave it then or later.
    pub given: u64,
    pub until: u64,
    pub place: Place,
    pub attempt: u32,
    pub digest: u32,
}

/// What a consumer said about a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    Ack,
    Nack,
    Bury,
}

/// A consumer said something about a message.
#[derive(Clone, Copy, Debug)]
pub struct Release {
    pub message: u32,
    pub group: u32,
    pub b: u64,
    pub e: u64,
    pub broker: u32,
    pub word: Word,
    pub out: Outcome,
    pub until: u64,
}

/// A dead letter.
#[derive(Clone, Copy, Debug)]
pub struct Letter {
    pub message: u32,
    pub group: u32,
    pub t: u64,
    pub place: Place,
    pub attempts: u32,
    pub digest: u32,
}

/// How far a group was with a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Progress {
    pub group: u32,
    pub broker: u32,
    pub queue: u32,
    pub t: u64,
    pub offset: u64,
}

/// Everything about one message and one group, each in the order of time.
#[derive(Clone, Copy, Debug)]
pub struct Case<'a> {
    pub deliveries: &'a [Delivery],
    pub releases: &'a [Release],
    pub letters: &'a [Letter],
}

/// See the module's comment.
#[derive(Debug, Default)]
pub struct History {
    pub messages: Vec<Message>,
    pub groups: Vec<Group>,
    pub deliveries: Vec<Delivery>,
    pub releases: Vec<Release>,
    pub letters: Vec<Letter>,
    pub progress: Vec<Progress>,
    /// When, and which broker.
    pub kills: Vec<(u64, u32)>,
    /// What was done to the cluster.
    pub faults: Vec<Injected>,
    /// Who became master.
    pub leads: Vec<Lead>,
    /// Masters whose disk failed: when, which set, which of its brokers.
    pub failed: Vec<(u64, u32, u32)>,
    /// The logs of all brokers, as they were at the end.
    pub stretches: Vec<Stretch>,
    /// Nodes whose words were read, and what those said of a panic.
    pub words: Vec<(String, Option<String>)>,
    /// The writer came to its end.
    pub done: bool,
    /// The command that repeats the run.
    pub repeat: String,
    ids: Names,
    names: Names,
    brokers: Names,
    group_numbers: HashMap<u32, u32>,
}

impl History {
    /// Reads a history. An error says the line and what is wrong with it.
    pub fn read(mut from: impl BufRead) -> anyhow::Result<Self> {
        let mut history = Self::default();
        let mut line = String::new();
        for number in 1u64.. {
            line.clear();
            let mut bounded = std::io::Read::take(&mut from, LINE_MAX_BYTES);
            let read = bounded.read_line(&mut line).with_context(|| format!("read line {number}"))?;
            if read == 0 {
                break;
            }
            ensure!(line.ends_with('\n'), "line {number} is longer than {LINE_MAX_BYTES} bytes, or cut off");
            let event = serde_json::from_str(&line).with_context(|| format!("line {number} is no event"))?;
            history.add(&event).with_context(|| format!("line {number}"))?;
            let operations = history.messages.len() + history.deliveries.len() + history.releases.len();
            ensure!(operations <= OPERATIONS_MAX, "line {number}: more than {OPERATIONS_MAX} operations");
        }
        history.sort();
        Ok(history)
    }

    fn add(&mut self, event: &Event<'_>) -> anyhow::Result<()> {
        match event {
            Event::Run(run) => {
                ensure!(run.version == VERSION, "version {} is not {VERSION}", run.version);
                self.repeat = run.repeat.to_string();
            }
            Event::Group(group) => self.add_group(group)?,
            Event::Send(send) => self.add_send(send)?,
            Event::End(end) => self.add_end(end),
            Event::Receive(receive) => {
                let (group, broker) = (self.group(&receive.g)?, self.brokers.number(&receive.broker));
                let failed = (receive.b, receive.e, broker);
                self.groups[group as usize].failed_receives.push(failed);
            }
            Event::Deliver(deliver) => self.add_delivery(deliver)?,
            Event::Ack(release) => self.add_release(release, Word::Ack)?,
            Event::Nack(release) => self.add_release(release, Word::Nack)?,
            Event::Bury(release) => self.add_release(release, Word::Bury)?,
            Event::Letter(letter) => self.add_letter(letter)?,
            Event::Offset(at) => {
                let (group, broker) = (self.group(&at.g)?, self.brokers.number(&at.broker));
                self.progress.push(Progress { group, broker, queue: at.queue, t: at.t, offset: at.offset });
            }
            Event::Kill(fault) => self.kills.push((fault.t, self.brokers.number(&fault.broker))),
            Event::Up(_) => {}
            Event::Inject(_)
            | Event::Heal(_)
            | Event::Leads(_)
            | Event::Failed(_)
            | Event::Stretch(_)
            | Event::Words(_) => {
                self.add_of_cluster(event)?;
            }
            Event::Flip(flip) => self.message(&flip.m).flipped = true,
            Event::Drained(drained) => {
                let group = self.group(&drained.g)?;
                self.groups[group as usize].drained = true;
            }
            Event::Done { .. } => self.done = true,
        }
        Ok(())
    }

    fn add_group(&mut self, group: &event::Group<'_>) -> anyhow::Result<()> {
        let name = self.names.number(&group.g);
        let number = u32::try_from(self.groups.len()).context("too many groups")?;
        ensure!(self.group_numbers.insert(name, number).is_none(), "group {} is there twice", group.g);
        let wants = group.wants.as_ref();
        self.groups.push(Group {
            topic: self.names.number(&group.topic),
            attempts_max: group.attempts_max,
            orderly: group.orderly,
            wants: wants.map(|labels| labels.iter().map(|label| self.names.number(label)).collect()),
            drained: false,
            failed_receives: Vec::new(),
        });
        Ok(())
    }

    fn add_send(&mut self, send: &event::Send<'_>) -> anyhow::Result<()> {
        let topic = self.names.number(&send.topic);
        let lane = send.lane.as_ref().map(|lane| self.names.number(lane));
        let label = send.label.as_ref().map(|label| self.names.number(label));
        let message = self.message(&send.m);
        if message.topic.is_none() {
            message.topic = Some(topic);
            (message.digest, message.half, message.due) = (send.digest, send.half, send.due);
            (message.lane, message.seq, message.label) = (lane, send.seq.unwrap_or_default(), label);
        } else {
            let same = message.topic == Some(topic) && message.digest == send.digest;
            ensure!(same, "message {} was sent with another content before", send.m);
        }
        message.began = message.began.min(send.b);
        match send.out {
            Outcome::Ok if send.e < message.stored => (message.stored, message.attempt) = (send.e, send.b),
            Outcome::Ok => {}
            Outcome::Refused | Outcome::Unknown => {}
        }
        Ok(())
    }

    fn add_end(&mut self, end: &event::End<'_>) {
        let message = self.message(&end.m);
        match (end.commit, end.out) {
            (_, Outcome::Refused) => {}
            (true, out) => {
                message.commit = (message.commit.0.min(end.b), message.commit.1 || out == Outcome::Ok);
            }
            (false, out) => message.rolled_back |= out == Outcome::Ok,
        }
    }

    fn add_delivery(&mut self, deliver: &event::Deliver<'_>) -> anyhow::Result<()> {
        let (message, group) = (self.ids_number(&deliver.m), self.group(&deliver.g)?);
        let place = self.place(&deliver.broker, deliver.queue, deliver.offset);
        let event::Deliver { t, given, until, attempt, digest, .. } = *deliver;
        let given = given.unwrap_or(t);
        self.deliveries.push(Delivery { message, group, t, given, until, place, attempt, digest });
        Ok(())
    }

    fn add_release(&mut self, release: &event::Release<'_>, word: Word) -> anyhow::Result<()> {
        let (message, group) = (self.ids_number(&release.m), self.group(&release.g)?);
        let broker = self.brokers.number(&release.broker);
        let event::Release { b, e, out, until, .. } = *release;
        let until = until.unwrap_or(b);
        self.releases.push(Release { message, group, b, e, broker, word, out, until });
        Ok(())
    }

    fn add_letter(&mut self, letter: &event::Letter<'_>) -> anyhow::Result<()> {
        let (message, group) = (self.ids_number(&letter.m), self.group(&letter.g)?);
        let place = self.place(&letter.broker, letter.queue, letter.offset);
        let event::Letter { t, attempts, digest, .. } = *letter;
        self.letters.push(Letter { message, group, t, place, attempts, digest });
        Ok(())
    }

    fn place(&mut self, broker: &str, queue: u32, offset: u64) -> Place {
        Place { broker: self.brokers.number(broker), queue, offset }
    }

    fn ids_number(&mut self, id: &str) -> u32 {
        let number = self.ids.number(id);
        if self.messages.len() <= number as usize {
            self.messages.push(Message::new());
        }
        number
    }

    fn message(&mut self, id: &str) -> &mut Message {
        let number = self.ids_number(id);
        &mut self.messages[number as usize]
    }

    fn group(&mut self, name: &str) -> anyhow::Result<u32> {
        let number = self.names.number(name);
        match self.group_numbers.get(&number) {
            Some(&group) => Ok(group),
            None => bail!("group {name} was not introduced"),
        }
    }

    fn sort(&mut self) {
        self.deliveries.sort_by_key(|delivery| (delivery.message, delivery.group, delivery.t));
        self.releases.sort_by_key(|release| (release.message, release.group, release.b));
        self.letters.sort_by_key(|letter| (letter.message, letter.group, letter.t));
        self.progress.sort_unstable();
        self.leads.sort_unstable();
        self.stretches.sort_unstable();
    }

    /// The id of a message.
    pub fn id(&self, message: u32) -> &str {
        self.ids.text(message)
    }

    /// The name of a broker.
    pub fn broker_name(&self, broker: u32) -> &str {
        self.brokers.text(broker)
    }

    /// The name of a topic, lane or label.
    pub fn name(&self, number: u32) -> &str {
        self.names.text(number)
    }

    /// The name of a group.
    pub fn group_name(&self, group: u32) -> &str {
        let name = self.group_numbers.iter().find(|&(_, &number)| number == group);
        name.map_or("?", |(&name, _)| self.names.text(name))
    }

    /// All messages with their numbers.
    pub fn numbered(&self) -> impl Iterator<Item = (u32, &Message)> {
        (0u32..).zip(&self.messages)
    }

    /// The groups that read the topic of `message` and want it.
    pub fn readers(&self, message: &Message) -> impl Iterator<Item = (u32, &Group)> {
        let groups = (0u32..).zip(&self.groups);
        groups.filter(move |(_, group)| message.topic == Some(group.topic) && group.wants(message))
    }

    /// Everything about `message` and `group`.
    pub fn case(&self, message: u32, group: u32) -> Case<'_> {
        let key = (message, group);
        Case {
            deliveries: part(&self.deliveries, |one| (one.message, one.group).cmp(&key)),
            releases: part(&self.releases, |one| (one.message, one.group).cmp(&key)),
            letters: part(&self.letters, |one| (one.message, one.group).cmp(&key)),
        }
    }

    /// All cases in which something was delivered.
    pub fn cases(&self) -> impl Iterator<Item = Case<'_>> {
        let same = |a: &Delivery, b: &Delivery| (a.message, a.group) == (b.message, b.group);
        self.deliveries.chunk_by(same).map(|one| self.case(one[0].message, one[0].group))
    }

    /// Whether `broker` was killed in that time, or another broker of the set became its master.
    pub fn killed(&self, broker: u32, from: u64, to: u64) -> bool {
        let led = self.leads.iter().map(|lead| (lead.t, lead.broker));
        self.kills.iter().copied().chain(led).any(|(t, other)| other == broker && from <= t && t <= to)
    }
}

/// The part of a sorted slice that is equal by `by`.
fn part<T>(sorted: &[T], by: impl Fn(&T) -> std::cmp::Ordering) -> &[T] {
    let start = sorted.partition_point(|one| by(one).is_lt());
    let rest = &sorted[start..];
    &rest[..rest.partition_point(|one| by(one).is_eq())]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        format!("{:#}", History::read(text.as_bytes()).unwrap_err())
    }

    #[test]
    fn what_is_no_history_is_refused_with_its_line() {
        assert!(error("{\"done\":{\"t\":1}}\nnonsense\n").starts_with("line 2 is no event"));
        assert!(error("{\"done\":{\"t\":1}}").contains("line 1 is longer"), "cut off");
        assert!(error(&"x".repeat(100_000)).contains("line 1 is longer"));
        assert!(error("{\"run\":{\"version\":9,\"repeat\":\"\"}}\n").contains("version 9"));
        let stranger = "{\"drained\":{\"t\":1,\"g\":\"who\"}}\n";
        assert!(error(stranger).contains("group who was not introduced"));
    }

    #[test]
    fn a_part_of_a_sorted_slice_is_found() {
        let sorted = [1, 2, 2, 2, 4];
        assert_eq!(part(&sorted, |one| one.cmp(&2)), [2, 2, 2]);
        assert!(part(&sorted, |one| one.cmp(&3)).is_empty());
        assert_eq!(part(&sorted, |one| one.cmp(&4)), [4]);
    }
}
