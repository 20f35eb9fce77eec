//! The format of a history: one JSON object a line, in any order. This is its definition, for writers and readers.
//!
//! A line is `{"KIND":{...}}`. All times are milliseconds since 1970 by the one clock of the machine on which servers and
//! clients ran; `b` is when an operation was begun, `e` when its answer came or was given up, `t` when something was seen.
//! `m` is a message id, `g` a consumer group. A writer puts down what it asked for and what it saw, never what it thinks
//! about it.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// What became of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Answered with OK.
    Ok,
    /// Answered with a code that says that nothing was changed.
    Refused,
    /// No answer, or one that leaves it open: it may have been done, and may be done yet.
    Unknown,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Event<'a> {
    /// Who made the history.
    #[serde(borrow)]
    Run(Run<'a>),
    /// A group that reads one topic to its end.
    Group(Group<'a>),
    /// One attempt to send.
    Send(Send<'a>),
    /// One attempt to end a transaction.
    End(End<'a>),
    /// A call for messages that failed: deliveries may have been on their way. Those that went well show in deliveries.
    Receive(Receive<'a>),
    /// A message came.
    Deliver(Deliver<'a>),
    /// A consumer acknowledges.
    Ack(Release<'a>),
    /// A consumer wants a message to be visible at another time.
    Nack(Release<'a>),
    /// A consumer gives a message up, to the dead letters.
    Bury(Release<'a>),
    /// A dead letter of a group was read.
    Letter(Letter<'a>),
    /// How far a group is with a queue.
    Offset(Offset<'a>),
    /// SIGKILL of a broker.
    Kill(Fault<'a>),
    /// A broker is ready again.
    Up(Fault<'a>),
    /// Something is done to servers, disks, clocks or the network.
    Inject(Inject<'a>),
    /// It is undone, and everything works again.
    Heal(Heal),
    /// A broker became the master of its set.
    Leads(Leads<'a>),
    /// A broker that leads its set was given an error by its disk.
    Failed(Failed<'a>),
    /// A stretch of the log of one broker, read when all had stopped.
    Stretch(Stretch<'a>),
    /// What a process wrote to its log was read.
    Words(Words<'a>),
    /// One bit of the stored body of a message was flipped.
    Flip(Flip<'a>),
    /// Nothing is left for a group; it and its dead letters were read to their end.
    Drained(Drained<'a>),
    /// The writer came to its end: nothing is missing.
    Done { t: u64 },
}

/// See [`Event::Run`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run<'a> {
    /// Of the format: [`VERSION`].
    pub version: u32,
    /// The command that repeats the run.
    #[serde(borrow)]
    pub repeat: Cow<'a, str>,
}

/// The version of the format that is read.
pub const VERSION: u32 = 1;

/// See [`Event::Group`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Group<'a> {
    #[serde(borrow)]
    pub g: Cow<'a, str>,
    #[serde(borrow)]
    pub topic: Cow<'a, str>,
    /// After so many deliveries a message is dead.
    pub attempts_max: u32,
    /// Messages of one lane come one by one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub orderly: bool,
    /// Its filter, as the labels of the messages that pass; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wants: Option<Vec<Cow<'a, str>>>,
}

/// See [`Event::Send`]. The attempts of one message say the same but for `b`, `e`, `to` and `out`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Send<'a> {
    pub b: u64,
    pub e: u64,
    #[serde(borrow)]
    pub m: Cow<'a, str>,
    #[serde(borrow)]
    pub topic: Cow<'a, str>,
    /// The broker.
    #[serde(borrow)]
    pub to: Cow<'a, str>,
    pub out: Outcome,
    /// Of body, tag, keys, properties and times: what comes out must be what went in.
    pub digest: u32,
    /// The message group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lane: Option<Cow<'a, str>>,
    /// Place in the lane; the next is begun when this one was answered or given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// The time at which it is to be delivered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due: Option<u64>,
    /// A half message: not to be seen before a commit.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub half: bool,
    /// What filters go by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<Cow<'a, str>>,
}

/// See [`Event::End`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct End<'a> {
    pub b: u64,
    pub e: u64,
    #[serde(borrow)]
    pub m: Cow<'a, str>,
    pub commit: bool,
    /// It answers a question of the broker.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub asked: bool,
    pub out: Outcome,
}

/// See [`Event::Receive`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Receive<'a> {
    pub b: u64,
    pub e: u64,
    #[serde(borrow)]
    pub g: Cow<'a, str>,
    #[serde(borrow)]
    pub broker: Cow<'a, str>,
}

/// See [`Event::Deliver`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Deliver<'a> {
    pub t: u64,
    /// When the broker gave it, if that is known to be, or may be, earlier; absent: at `t`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given: Option<u64>,
    /// The end of its invisible time, as the consumer was told.
    pub until: u64,
    #[serde(borrow)]
    pub m: Cow<'a, str>,
    #[serde(borrow)]
    pub g: Cow<'a, str>,
    #[serde(borrow)]
    pub broker: Cow<'a, str>,
    pub queue: u32,
    pub offset: u64,
    pub attempt: u32,
    pub digest: u32,
}

/// See [`Event::Ack`], [`Event::Nack`] and [`Event::Bury`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Release<'a> {
    pub b: u64,
    pub e: u64,
    #[serde(borrow)]
    pub m: Cow<'a, str>,
    #[serde(borrow)]
    pub g: Cow<'a, str>,
    #[serde(borrow)]
    pub broker: Cow<'a, str>,
    pub out: Outcome,
    /// Of a nack: when the message is visible again at the earliest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<u64>,
}

/// See [`Event::Letter`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Letter<'a> {
    pub t: u64,
    /// The message that died.
    #[serde(borrow)]
    pub m: Cow<'a, str>,
    /// The group for which it died.
    #[serde(borrow)]
    pub g: Cow<'a, str>,
    #[serde(borrow)]
    pub broker: Cow<'a, str>,
    pub queue: u32,
    pub offset: u64,
    /// What it says of its deliveries.
    pub attempts: u32,
    pub digest: u32,
}

/// See [`Event::Offset`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Offset<'a> {
    pub t: u64,
    #[serde(borrow)]
    pub g: Cow<'a, str>,
    #[serde(borrow)]
    pub broker: Cow<'a, str>,
    pub queue: u32,
    pub offset: u64,
}

/// See [`Event::Kill`] and [`Event::Up`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fault<'a> {
    pub t: u64,
    #[serde(borrow)]
    pub broker: Cow<'a, str>,
}

/// See [`Event::Inject`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Inject<'a> {
    /// Of the run; [`Heal`] has the same.
    pub number: u32,
    pub t: u64,
    /// `F1` to `F27`.
    #[serde(borrow)]
    pub kind: Cow<'a, str>,
    /// To whom and how.
    #[serde(borrow)]
    pub what: Cow<'a, str>,
    /// The broker set whose clock it sets, and by how much at most. Milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skew: Option<(Cow<'a, str>, u64)>,
}

/// See [`Event::Heal`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Heal {
    pub number: u32,
    pub t: u64,
}

/// See [`Event::Leads`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Leads<'a> {
    pub t: u64,
    /// The set.
    #[serde(borrow)]
    pub broker: Cow<'a, str>,
    /// Which broker of the set.
    pub id: u32,
    pub epoch: u32,
}

/// See [`Event::Failed`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failed<'a> {
    /// From when on nothing can be written.
    pub t: u64,
    /// The set.
    #[serde(borrow)]
    pub broker: Cow<'a, str>,
    pub id: u32,
}

/// See [`Event::Stretch`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stretch<'a> {
    /// The set.
    #[serde(borrow)]
    pub broker: Cow<'a, str>,
    pub id: u32,
    /// Physical offset of its first record.
    pub at: u64,
    /// Up to the end of its last record; what lies under blanks counts as zeros.
    pub bytes: u64,
    pub sum: u32,
    /// The lowest and the highest epoch of its records.
    pub epochs: (u32, u32),
}

/// See [`Event::Words`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Words<'a> {
    #[serde(borrow)]
    pub node: Cow<'a, str>,
    pub lines: u64,
    /// The first line that says that a thread panicked.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub panic: Option<Cow<'a, str>>,
}

/// See [`Event::Flip`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Flip<'a> {
    pub t: u64,
    #[serde(borrow)]
    pub m: Cow<'a, str>,
    #[serde(borrow)]
    pub broker: Cow<'a, str>,
}

/// See [`Event::Drained`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Drained<'a> {
    pub t: u64,
    #[serde(borrow)]
    pub g: Cow<'a, str>,
}

impl Event<'_> {
    /// The message it is about.
    pub fn message(&self) -> Option<&str> {
        match self {
            Event::Send(send) => Some(&send.m),
            Event::End(end) => Some(&end.m),
            Event::Deliver(deliver) => Some(&deliver.m),
            Event::Ack(release) | Event::Nack(release) | Event::Bury(release) => Some(&release.m),
            Event::Letter(letter) => Some(&letter.m),
            Event::Flip(flip) => Some(&flip.m),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_short_and_read_without_copies() {
        let line = r#"{"ack":{"b":1,"e":2,"m":"id","g":"group","broker":"broker-a","out":"ok"}}"#;
        let event: Event<'_> = serde_json::from_str(line).unwrap();
        let Event::Ack(release) = &event else { panic!("{event:?}") };
        assert!(matches!(release.m, Cow::Borrowed("id")), "{:?}", release.m);
        assert_eq!(serde_json::to_string(&event).unwrap(), line);
        assert_eq!(event.message(), Some("id"));
        assert!(serde_json::from_str::<Event<'_>>(&line.replace("ok", "maybe")).is_err());
        assert_eq!(serde_json::to_string(&Event::Done { t: 3 }).unwrap(), r#"{"done":{"t":3}}"#);
    }
}
