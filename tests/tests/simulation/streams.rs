//! Replication between brokers: what the broker's `master`, `slave` and `agree` tasks do around `in_sync` and `role`. A slave says
//! hello, cuts its log if it has to, takes frames and acknowledges; its master says who counts.

use std::collections::BTreeMap;
use std::time::Duration;

use karman_broker::replication::in_sync::{Demands, InSync, LogEnd, Marks};
use karman_broker::replication::role::{self, FirstStep};
use karman_store::EpochStart;

use super::controllers::Says;
use super::judge::Violation;
use super::log::Record;
use super::world::{Bug, World};

const DEMANDS: Demands = Demands { replicas: 2, all: false, behind_max: Duration::from_secs(15) };
/// Records of one frame.
const FRAME_MAX: u64 = 64;
/// Who is silent for longer is gone.
const SILENCE_MAX_MICROS: u64 = 10_000_000;
const HEARTBEAT_MICROS: u64 = 1_000_000;
const CONNECT_MICROS: u64 = 2_000_000;

/// What brokers say to one another.
#[derive(Debug)]
pub(crate) enum Peer {
    Hello {
        stream: u64,
        epochs: Vec<EpochStart>,
        end: u64,
    },
    /// `None`: it does not take this slave, or is no master.
    Welcome {
        stream: u64,
        opening: u64,
        session: u64,
        step: Option<FirstStep>,
    },
    Frame {
        stream: u64,
        start: u64,
        records: Vec<Record>,
        confirmed: u64,
    },
    Ack {
        opening: u64,
        session: u64,
        acked: Marks,
    },
    /// The slave has ended the stream.
    Bye {
        opening: u64,
        session: u64,
    },
    /// The master has.
    Over {
        stream: u64,
    },
}

/// A slave's stream, as its master knows it.
struct Session {
    number: u64,
    stream: u64,
    next: u64,
    told: u64,
    said: u64,
    heard: u64,
}

/// What a master knows.
pub(crate) struct Leading {
    own: i32,
    epoch: u32,
    pub(crate) in_sync: InSync,
    sessions: BTreeMap<usize, Session>,
    agrees: bool,
}

impl Leading {
    pub(crate) fn new(own: i32, epoch: u32, end: u64) -> Self {
        let in_sync = InSync::new(DEMANDS, end).of_controllers();
        Self { own, epoch, in_sync, sessions: BTreeMap::new(), agrees: false }
    }
}

/// A slave's stream, as the slave knows it.
#[derive(Debug)]
pub(crate) struct Stream {
    master: usize,
    epoch: u32,
    number: u64,
    heard: u64,
    /// Which opening of its master's log, and the session there.
    welcomed: Option<(u64, u64)>,
}

impl World {
    pub(crate) fn look_for_master(&mut self, id: usize) {
        let (now, number) = (self.now, self.fresh());
        let broker = &mut self.brokers[id];
        if broker.log.leads() {
            return;
        }
        if let Some(stream) = &broker.following {
            let patience = if stream.welcomed.is_some() { SILENCE_MAX_MICROS } else { CONNECT_MICROS };
            if now - stream.heard > patience {
                self.leave_master(id);
            } else if stream.welcomed.is_some() {
                return self.acknowledge(id);
            } else {
                return;
            }
        }
        let broker = &mut self.brokers[id];
        let Some(state) = &broker.state else { return };
        let Some(master) = state.master.map(|master| master as usize).filter(|master| *master != id) else {
            return;
        };
        broker.following = Some(Stream { master, epoch: state.epoch, number, heard: now, welcomed: None });
        let (epochs, end) = (broker.log.epochs(), broker.log.end());
        self.tell(id, master, Peer::Hello { stream: number, epochs, end });
    }

    /// Ends a stream to another master than the one of this state.
    pub(crate) fn follows_still(&mut self, id: usize, epoch: u32, master: Option<i32>) {
        let same = |stream: &Stream| stream.epoch == epoch && Some(stream.master as i32) == master;
        if self.brokers[id].following.as_ref().is_some_and(|stream| !same(stream)) {
            self.leave_master(id);
        }
    }

    pub(crate) fn leave_master(&mut self, id: usize) {
        let Some(Stream { master, welcomed, .. }) = self.brokers[id].following.take() else { return };
        if let Some((opening, session)) = welcomed {
            self.tell(id, master, Peer::Bye { opening, session });
        }
    }

    /// A master is none any more.
    pub(crate) fn leave_slaves(&mut self, id: usize) {
        let Some(leading) = self.brokers[id].leading.take() else { return };
        for (slave, session) in leading.sessions {
            self.tell(id, slave, Peer::Over { stream: session.stream });
        }
    }

    pub(crate) fn hear_peer(&mut self, from: usize, to: usize, message: Peer) -> Result<(), Violation> {
        if !self.brokers[to].up {
            return Ok(());
        }
        match message {
            Peer::Hello { stream, epochs, end } => self.hello(to, from, stream, &epochs, end),
            Peer::Ack { opening, session, acked } => self.acked(to, (from, session), opening, acked),
            Peer::Bye { opening, session } => {
                if self.brokers[to].log.opening == opening {
                    self.left(to, from, session);
                }
                Ok(())
            }
            Peer::Welcome { stream, opening, session, step } => {
                self.welcome(to, stream, (opening, session), step);
                Ok(())
            }
            Peer::Frame { stream, start, records, confirmed } => {
                self.take(to, stream, start, &records, confirmed);
                Ok(())
            }
            Peer::Over { stream } => {
                if self.brokers[to].following.as_ref().is_some_and(|own| own.number == stream) {
                    self.brokers[to].following = None;
                }
                Ok(())
            }
        }
    }

    fn hello(
        &mut self,
        id: usize,
        slave: usize,
        stream: u64,
        epochs: &[EpochStart],
        end: u64,
    ) -> Result<(), Violation> {
        let (now, elapsed, session) = (self.now, self.elapsed(id), self.fresh());
        let bug = self.bug;
        let broker = &mut self.brokers[id];
        let opening = broker.log.opening;
        let Some(leading) = &mut broker.leading else {
            self.tell(id, slave, Peer::Welcome { stream, opening, session, step: None });
            return Ok(());
        };
        let theirs = epochs.last().map_or(0, |last| last.epoch);
        let common = broker.log.common_end(epochs, end);
        let mut step = role::first_step(broker.log.epoch(), theirs, common, end);
        if let (Some(FirstStep::Cut(to)), Some(Bug::WrongCut)) = (&mut step, bug) {
            *to += 1;
            if *to == end {
                step = Some(FirstStep::Follow);
            }
        }
        if step == Some(FirstStep::Follow) {
            let address = format!("n:{slave}");
            let written = broker.log.end();
            match leading.in_sync.join(slave as i32, session, &address, end, written, elapsed) {
                Ok(()) => {
                    let session =
                        Session { number: session, stream, next: end, told: 0, said: now, heard: now };
                    leading.sessions.insert(slave, session);
                }
                Err(_) => step = None,
            }
        }
        self.tell(id, slave, Peer::Welcome { stream, opening, session, step });
        self.pump(id);
        Ok(())
    }

    /// Gives slaves what there is.
    pub(crate) fn pump(&mut self, id: usize) {
        let now = self.now;
        let broker = &mut self.brokers[id];
        let Some(leading) = &mut broker.leading else { return };
        let confirmed = broker.log.progress.confirmed();
        let mut frames = Vec::new();
        for (slave, session) in &mut leading.sessions {
            while session.next < broker.log.end()
                || session.told != confirmed
                || now - session.said > HEARTBEAT_MICROS
            {
                let (start, stream) = (session.next, session.stream);
                let records = broker.log.records(start, FRAME_MAX).to_vec();
                session.next += records.len() as u64;
                (session.told, session.said) = (confirmed, now);
                frames.push((*slave, Peer::Frame { stream, start, records, confirmed }));
            }
        }
        frames.into_iter().for_each(|(slave, frame)| self.tell(id, slave, frame));
    }

    fn left(&mut self, id: usize, slave: usize, number: u64) {
        let Some(leading) = &mut self.brokers[id].leading else { return };
        leading.in_sync.leave(slave as i32, number);
        leading.sessions.retain(|other, session| *other != slave || session.number != number);
    }

    fn acked(
        &mut self,
        id: usize,
        (slave, number): (usize, u64),
        opening: u64,
        acked: Marks,
    ) -> Result<(), Violation> {
        let (now, elapsed) = (self.now, self.elapsed(id));
        let broker = &mut self.brokers[id];
        let Some(leading) = broker.leading.as_mut().filter(|_| broker.log.opening == opening) else {
            return Ok(());
        };
        if let Some(session) = leading.sessions.get_mut(&slave).filter(|session| session.number == number) {
            session.heard = now;
        }
        let log = LogEnd { confirmed: broker.log.progress.confirmed(), end: broker.log.end() };
        leading.in_sync.ack(slave as i32, number, acked, log, elapsed);
        self.replicated(id)
    }

    /// What slaves have is answered and shown.
    fn replicated(&mut self, id: usize) -> Result<(), Violation> {
        let broker = &mut self.brokers[id];
        if let Some(marks) = broker.leading.as_mut().and_then(|leading| leading.in_sync.marks()) {
            broker.log.progress.advance_replicated(marks.written, marks.flushed);
        }
        self.publish(id)
    }

    /// A master begins to agree with the controllers on who counts.
    pub(crate) fn agrees(&mut self, id: usize, opening: u64) -> Result<(), Violation> {
        let broker = &mut self.brokers[id];
        if !broker.up || broker.log.opening != opening {
            return Ok(());
        }
        if let Some(leading) = &mut broker.leading {
            leading.agrees = true;
        }
        self.counts(id)
    }

    /// A master hears who counts, and says who should.
    pub(crate) fn counts(&mut self, id: usize) -> Result<(), Violation> {
        let broker = &mut self.brokers[id];
        let Some(leading) = broker.leading.as_mut().filter(|leading| leading.agrees) else { return Ok(()) };
        let own = Some(leading.own);
        if let Some(state) =
            broker.state.as_ref().filter(|state| state.epoch == leading.epoch && state.master == own)
        {
            leading.in_sync.control(leading.own, state.in_sync.clone(), state.version);
        }
        if let Some((version, in_sync)) = leading.in_sync.propose() {
            let epoch = leading.epoch;
            let (controller, stream) = broker.attends();
            self.proposed.push((epoch, version, in_sync.clone()));
            self.say(controller, id, stream, Says::Sync { epoch, version, in_sync });
        }
        self.replicated(id)
    }

    pub(crate) fn look_after_slaves(&mut self, id: usize) -> Result<(), Violation> {
        let (now, elapsed) = (self.now, self.elapsed(id));
        let Some(leading) = &mut self.brokers[id].leading else { return Ok(()) };
        let silent = |session: &Session| now - session.heard > SILENCE_MAX_MICROS;
        let gone: Vec<_> = leading
            .sessions
            .iter()
            .filter(|(_, session)| silent(session))
            .map(|(id, session)| (*id, session.number))
            .collect();
        leading.in_sync.expire(elapsed);
        gone.into_iter().for_each(|(slave, number)| self.left(id, slave, number));
        self.pump(id);
        Ok(())
    }

    fn welcome(&mut self, id: usize, number: u64, welcomed: (u64, u64), step: Option<FirstStep>) {
        let now = self.now;
        let broker = &mut self.brokers[id];
        let Some(stream) = broker.following.as_mut().filter(|stream| stream.number == number) else { return };
        match step {
            Some(FirstStep::Follow) => (stream.welcomed, stream.heard) = (Some(welcomed), now),
            Some(FirstStep::Cut(to)) => {
                broker.following = None;
                self.trace.note(now, format!("{id} is cut to {to} of {}", self.brokers[id].log.end()));
                self.brokers[id].log.cut(to);
                self.look_for_master(id);
            }
            // Nothing is ever deleted from the beginning of a log here: there is no copy to begin with.
            Some(FirstStep::Copy) | None => broker.following = None,
        }
    }

    fn take(&mut self, id: usize, number: u64, start: u64, records: &[Record], confirmed: u64) {
        let now = self.now;
        let broker = &mut self.brokers[id];
        let welcomed = |stream: &&mut Stream| stream.number == number && stream.welcomed.is_some();
        let Some(stream) = broker.following.as_mut().filter(welcomed) else { return };
        stream.heard = now;
        if !broker.log.take(start, records, confirmed) {
            return self.leave_master(id);
        }
        if !records.is_empty() {
            self.flush(id);
        }
        if self.chance(30) {
            self.acknowledge(id);
        }
    }

    /// Tells the master what is written and flushed.
    pub(crate) fn acknowledge(&mut self, id: usize) {
        let bug = self.bug;
        let broker = &self.brokers[id];
        let Some(stream) = &broker.following else { return };
        let (Some((opening, session)), master) = (stream.welcomed, stream.master) else { return };
        let written = broker.log.progress.written();
        let flushed = if bug == Some(Bug::CountsWritten) { written } else { broker.log.progress.flushed() };
        self.tell(id, master, Peer::Ack { opening, session, acked: Marks { written, flushed } });
    }
}
