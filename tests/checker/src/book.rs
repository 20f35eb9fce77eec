//! Histories made by hand, for tests: written in the format and read from it.

use crate::event::{
    Deliver, Drained, End, Event, Fault, Flip, Group, Letter, Offset, Outcome, Receive, Release, Run, Send,
    VERSION,
};
use crate::{History, judge};

pub(crate) const BROKER: &str = "broker-a";
/// What every message has as its content.
pub(crate) const DIGEST: u32 = 7;
const HELD_MS: u64 = 10_000;

/// A history, line by line.
#[derive(Clone, Debug, Default)]
pub(crate) struct Book(pub(crate) String);

impl Book {
    /// A topic `t` with one orderly group `g`.
    pub(crate) fn new() -> Self {
        let run = Event::Run(Run { version: VERSION, repeat: "again".into() });
        Self::default().line(&run).group(Group {
            g: "g".into(),
            topic: "t".into(),
            attempts_max: 2,
            orderly: true,
            wants: None,
        })
    }

    pub(crate) fn line(mut self, event: &Event<'_>) -> Self {
        self.0 += &serde_json::to_string(event).unwrap();
        self.0.push('\n');
        self
    }

    pub(crate) fn group(self, group: Group<'_>) -> Self {
        let drained = Event::Drained(Drained { t: 0, g: group.g.clone() });
        self.line(&Event::Group(group)).line(&drained)
    }

    /// A send of `id` from 0 to 1 ms that `change` makes another.
    pub(crate) fn send_as<'a>(self, id: &'a str, change: impl FnOnce(&mut Send<'a>)) -> Self {
        let mut send = Send {
            b: 0,
            e: 1,
            m: id.into(),
            topic: "t".into(),
            to: BROKER.into(),
            out: Outcome::Ok,
            digest: DIGEST,
            lane: None,
            seq: None,
            due: None,
            half: false,
            label: None,
        };
        change(&mut send);
        self.line(&Event::Send(send))
    }

    pub(crate) fn send(self, id: &str) -> Self {
        self.send_as(id, |_| ())
    }

    /// `id` as number `seq` of the lane.
    pub(crate) fn send_in_lane(self, id: &str, seq: u64) -> Self {
        self.send_as(id, |send| (send.lane, send.seq) = (Some("lane".into()), Some(seq)))
    }

    /// From a place that belongs to the id.
    pub(crate) fn deliver(self, id: &str, t: u64) -> Self {
        self.deliver_as(id, t, |_| ())
    }

    pub(crate) fn deliver_as<'a>(self, id: &'a str, t: u64, change: impl FnOnce(&mut Deliver<'a>)) -> Self {
        let mut deliver = Deliver {
            t,
            given: None,
            until: t + HELD_MS,
            m: id.into(),
            g: "g".into(),
            broker: BROKER.into(),
            queue: 0,
            offset: id.bytes().map(u64::from).sum(),
            attempt: 1,
            digest: DIGEST,
        };
        change(&mut deliver);
        self.line(&Event::Deliver(deliver))
    }

    fn release(id: &str, b: u64, out: Outcome, until: Option<u64>) -> Release<'_> {
        Release { b, e: b + 1, m: id.into(), g: "g".into(), broker: BROKER.into(), out, until }
    }

    pub(crate) fn ack(self, id: &str, b: u64, out: Outcome) -> Self {
        self.line(&Event::Ack(Self::release(id, b, out, None)))
    }

    pub(crate) fn nack(self, id: &str, b: u64, out: Outcome, until: u64) -> Self {
        self.line(&Event::Nack(Self::release(id, b, out, Some(until))))
    }

    pub(crate) fn bury(self, id: &str, b: u64, out: Outcome) -> Self {
        self.line(&Event::Bury(Self::release(id, b, out, None)))
    }

    pub(crate) fn letter(self, id: &str, t: u64, attempts: u32) -> Self {
        self.letter_as(id, t, attempts, |_| ())
    }

    pub(crate) fn letter_as<'a>(
        self,
        id: &'a str,
        t: u64,
        attempts: u32,
        change: impl FnOnce(&mut Letter<'a>),
    ) -> Self {
        let mut letter = Letter {
            t,
            m: id.into(),
            g: "g".into(),
            broker: BROKER.into(),
            queue: 0,
            offset: id.bytes().map(u64::from).sum(),
            attempts,
            digest: DIGEST,
        };
        change(&mut letter);
        self.line(&Event::Letter(letter))
    }

    pub(crate) fn end(self, id: &str, b: u64, commit: bool, out: Outcome) -> Self {
        self.line(&Event::End(End { b, e: b + 1, m: id.into(), commit, asked: false, out }))
    }

    pub(crate) fn failed_receive(self, b: u64, e: u64) -> Self {
        self.line(&Event::Receive(Receive { b, e, g: "g".into(), broker: BROKER.into() }))
    }

    pub(crate) fn offset(self, t: u64, offset: u64) -> Self {
        self.line(&Event::Offset(Offset { t, g: "g".into(), broker: BROKER.into(), queue: 0, offset }))
    }

    pub(crate) fn kill(self, t: u64) -> Self {
        self.line(&Event::Kill(Fault { t, broker: BROKER.into() }))
    }

    pub(crate) fn flip(self, id: &str) -> Self {
        self.line(&Event::Flip(Flip { t: 0, m: id.into(), broker: BROKER.into() }))
    }

    /// The invariants that are violated.
    pub(crate) fn violated(self) -> Vec<&'static str> {
        let text = self.line(&Event::Done { t: 0 }).0;
        let history = History::read(text.as_bytes()).unwrap();
        let verdicts = judge(&history);
        verdicts.iter().filter(|verdict| verdict.violations > 0).map(|verdict| verdict.id).collect()
    }
}
