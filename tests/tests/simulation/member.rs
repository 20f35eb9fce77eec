//! A broker and its controllers: what the broker's `attend` and `member` tasks do around `role`. It renews its lease, hears who is
//! master, becomes that or stops to be it; and it crashes.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use karman_broker::replication::role::{self, Renewals, Turn};
use karman_namesrv::controller::leases::{Report, usable};
use karman_store::Durability;
use rand::Rng as _;

use super::controllers::Says;
use super::judge::Violation;
use super::log::Log;
use super::streams::{Leading, Stream};
use super::world::{Bug, CONTROLLERS, Clock, Event, LEASE, SET, World};

const RENEWAL_MICROS: u64 = 250_000;
/// Of the broker's `attend`.
const SILENCE_MAX: Duration = Duration::from_secs(1);
/// Of the broker's `member`.
const LEAD_TIMEOUT_MICROS: u64 = 5_000_000;
/// How much too late a lease ends, if that is planted.
const LATE: Duration = Duration::from_millis(800);
/// Messages that wait; the store's inbox is bounded too.
const WAITING_MAX: usize = 200;

/// What a broker is told of its set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) epoch: u32,
    pub(crate) version: u64,
    pub(crate) master: Option<i32>,
    pub(crate) in_sync: BTreeSet<i32>,
    pub(crate) log_epoch: u32,
}

/// What a controller says on a broker's stream.
#[derive(Debug)]
pub(crate) enum Order {
    State(State),
    Granted { number: u64 },
    Refused,
    NotLeader,
}

pub(crate) struct Broker {
    pub(crate) up: bool,
    pub(crate) paused_until: u64,
    pub(crate) clock: Clock,
    pub(crate) log: Log,
    controller: usize,
    stream: u64,
    /// When a controller said something last.
    heard: u64,
    renewals: Renewals,
    pub(crate) state: Option<State>,
    /// There is a state that it has not acted on.
    news: bool,
    /// The epoch in which it asks for a lease.
    asks: u32,
    /// The epoch in which it is the master; 0: it is a slave.
    pub(crate) leads: u32,
    /// Which epoch it begins, since when.
    begins: Option<(u32, u64)>,
    pub(crate) leading: Option<Leading>,
    pub(crate) following: Option<Stream>,
}

impl Broker {
    pub(crate) fn new(clock: Clock, start: Instant, bug: Option<Bug>) -> Self {
        Self {
            up: true,
            paused_until: 0,
            clock,
            log: Log::new(start, bug),
            controller: 0,
            stream: 0,
            heard: 0,
            renewals: Renewals::default(),
            state: None,
            news: false,
            asks: 0,
            leads: 0,
            begins: None,
            leading: None,
            following: None,
        }
    }

    /// Its controller, and the stream there.
    pub(crate) fn attends(&self) -> (usize, u64) {
        (self.controller, self.stream)
    }

    /// Whether clients find a master here.
    pub(crate) fn takes_messages(&self, now: u64) -> bool {
        self.up && self.paused_until <= now && self.leads > 0 && self.log.waiting() < WAITING_MAX
    }
}

impl World {
    pub(crate) fn renew(&mut self, id: usize) {
        self.after(RENEWAL_MICROS, Event::Renew(id));
        let now = self.instant(id);
        let trusts = self.trusts();
        let breaks = self.apart && !self.calm() && self.chance(4);
        let broker = &mut self.brokers[id];
        if !broker.up {
            return;
        }
        let silent = self.now.saturating_sub(broker.heard) > SILENCE_MAX.as_micros() as u64;
        if broker.stream == 0 || silent || breaks || broker.renewals.are_ignored(now, SILENCE_MAX) {
            return self.attend_another(id);
        }
        let number = broker.renewals.next(broker.asks, now);
        let (controller, stream, master_of) = (broker.controller, broker.stream, broker.asks);
        let mut report = Report { epoch: broker.log.epoch(), end: broker.log.end(), master_of };
        if trusts {
            report.epoch = report.epoch.max(broker.state.as_ref().map_or(0, |state| state.epoch));
        }
        self.say(controller, id, stream, Says::Renewal { number, report });
        if !self.calm() && self.quiet_until < self.now && self.rng.random_range(0..400) == 0 {
            self.hand_over(id);
        }
    }

    /// A planted bug: nobody looks at what a log says of its epoch.
    fn trusts(&self) -> bool {
        matches!(self.bug, Some(Bug::TrustsNewDisk | Bug::NoNewEpoch))
    }

    /// A new stream; what was on its way on the former one may arrive or not.
    fn attend_another(&mut self, id: usize) {
        let any = self.rng.random_range(0..CONTROLLERS);
        let controller = if self.calm() || self.chance(80) { self.controllers.leader } else { any };
        let stream = self.fresh();
        let broker = &mut self.brokers[id];
        (broker.controller, broker.stream, broker.heard) = (controller, stream, self.now);
        broker.renewals = Renewals::default();
        if let Some(leading) = &mut broker.leading {
            leading.in_sync.propose_again();
        }
        let log_epoch = broker.log.epoch();
        self.say(controller, id, stream, Says::Present { log_epoch });
    }

    /// A master answers nothing any more, and says so.
    fn hand_over(&mut self, id: usize) {
        let to = self.chance(50).then(|| self.rng.random_range(0..3));
        let now = self.instant(id);
        let broker = &mut self.brokers[id];
        if broker.leads > 0 {
            broker.asks = 0;
            broker.log.fence.set(Some(now));
            let (controller, stream, epoch) = (broker.controller, broker.stream, broker.leads);
            self.say(controller, id, stream, Says::Resign { epoch, to });
        }
    }

    pub(crate) fn obey_order(&mut self, id: usize, stream: u64, order: Order) -> Result<(), Violation> {
        let now = self.now;
        let late = self.bug == Some(Bug::LateLease);
        let broker = &mut self.brokers[id];
        if !broker.up || broker.stream != stream {
            return Ok(());
        }
        broker.heard = now;
        match order {
            Order::State(state) => {
                let age = |state: &State| (state.epoch, state.version);
                let is_old = broker.state.as_ref().is_some_and(|known| role::is_old(age(known), age(&state)));
                if !is_old && broker.state.as_ref() != Some(&state) {
                    broker.state = Some(state);
                    broker.news = true;
                    self.turn(id)?;
                    return self.counts(id);
                }
            }
            Order::Granted { number } => {
                let granted = broker.renewals.granted(number, usable(LEASE));
                let valid = granted.filter(|(epoch, _)| *epoch == broker.asks && *epoch > 0);
                if let Some((_, until)) = valid {
                    let until = if late { until + LATE } else { until };
                    broker.log.fence.set(Some(until));
                    return self.publish(id);
                }
            }
            Order::Refused => {
                if let Some(leading) = &mut broker.leading {
                    leading.in_sync.propose_again();
                }
            }
            Order::NotLeader => broker.stream = 0,
        }
        Ok(())
    }

    /// Does what the last state asks for, unless it begins an epoch: that it ends first.
    fn turn(&mut self, id: usize) -> Result<(), Violation> {
        let broker = &mut self.brokers[id];
        if broker.begins.is_some() || !std::mem::take(&mut broker.news) {
            return Ok(());
        }
        let Some(state) = &broker.state else { return Ok(()) };
        let (epoch, elected) = (state.epoch, state.master == Some(id as i32));
        match role::turn(broker.leads, elected, epoch) {
            Turn::Stay => {
                let master = state.master;
                self.follows_still(id, epoch, master);
            }
            Turn::Lead => self.promote(id, epoch),
            Turn::Follow { then_lead } => {
                self.demote(id);
                if then_lead {
                    self.promote(id, epoch);
                }
            }
        }
        Ok(())
    }

    fn promote(&mut self, id: usize, epoch: u32) {
        self.leave_master(id);
        let (now, record) = (self.instant(id), self.fresh());
        let (begins, trusts) = (self.bug != Some(Bug::NoNewEpoch), self.trusts());
        let broker = &mut self.brokers[id];
        broker.asks = 0;
        let least = broker.state.as_ref().map_or(0, |state| state.log_epoch);
        if !role::may_begin(broker.log.epoch(), epoch, if trusts { 0 } else { least }) {
            let (controller, stream) = (broker.controller, broker.stream);
            return self.say(controller, id, stream, Says::Resign { epoch, to: Some(id as i32) });
        }
        broker.asks = epoch;
        broker.log.fence.set(Some(now));
        broker.log.lead(begins.then_some(epoch), record);
        broker.begins = Some((epoch, self.now));
        self.flush(id);
    }

    /// Its first record is durable, and it has a lease.
    pub(crate) fn begun(&mut self, id: usize) -> Result<(), Violation> {
        let broker = &mut self.brokers[id];
        let Some((epoch, _)) = broker.begins.take() else { return Ok(()) };
        broker.leads = epoch;
        broker.log.recovered = None;
        broker.leading = Some(Leading::new(id as i32, epoch, broker.log.end()));
        self.judge.begins(id, epoch, &self.brokers[id].log)?;
        self.trace.note(self.now, format!("{id} is master in epoch {epoch}"));
        let opening = self.brokers[id].log.opening;
        let soon = self.rng.random_range(0..20_000);
        self.after(soon, Event::Agrees { broker: id, opening });
        self.turn(id)
    }

    fn demote(&mut self, id: usize) {
        self.trace.note(self.now, format!("{id} is no master any more"));
        let broker = &mut self.brokers[id];
        (broker.asks, broker.leads, broker.begins) = (0, 0, None);
        broker.log.reopen();
        self.leave_slaves(id);
    }

    /// What a broker does from time to time.
    pub(crate) fn sweep(&mut self, id: usize) -> Result<(), Violation> {
        let next = self.rng.random_range(150_000..250_000);
        self.after(next, Event::Sweep(id));
        if !self.brokers[id].up {
            return Ok(());
        }
        if self.brokers[id].begins.is_some_and(|(_, since)| self.now - since > LEAD_TIMEOUT_MICROS) {
            // It was granted no lease.
            self.demote(id);
            self.turn(id)?;
        }
        if self.brokers[id].leads > 0 {
            self.look_after_slaves(id)?;
            self.counts(id)
        } else {
            self.look_for_master(id);
            Ok(())
        }
    }

    /// The process ends, or the power goes; it is started again some time later.
    pub(crate) fn crash(&mut self, id: usize, power: bool) {
        if !self.brokers[id].up {
            return;
        }
        let flushed = self.brokers[id].log.progress.flushed();
        let end = self.brokers[id].log.end();
        // What was not flushed may have reached the device by itself.
        let kept = if power { self.rng.random_range(flushed..=end) } else { end };
        self.trace.note(self.now, format!("{id} ends at {end}, keeps {kept}"));
        self.leave_slaves(id);
        self.leave_master(id);
        let broker = &mut self.brokers[id];
        broker.log.cut(kept);
        (broker.up, broker.paused_until, broker.stream) = (false, 0, 0);
        (broker.state, broker.news) = (None, false);
        (broker.asks, broker.leads, broker.begins) = (0, 0, None);
        let later = self.rng.random_range(100_000..8_000_000);
        self.after(later, Event::Start(id));
    }

    /// It comes back with an empty disk; not two of those that are agreed on, and not the only one: nothing is promised of that. Nor
    /// while something else fails in the same two seconds: who is elected for what it said of its log before it lost that, and has
    /// not begun, looks like one that never had more (`docs/testing.md`).
    pub(crate) fn lose_disk(&mut self, id: usize) {
        let Some(set) = self.controllers.state.get(SET).filter(|_| self.is_well()) else { return };
        // What was proposed may be agreed on whenever.
        let next =
            self.proposed.iter().filter(|(epoch, version, _)| (*epoch, *version) == (set.epoch, set.version));
        let possible = next.map(|(_, _, in_sync)| in_sync).chain([&set.in_sync]);
        let keeps =
            |other: &i32| *other != id as i32 && self.judge.has_all(&self.brokers[*other as usize].log);
        if possible.into_iter().all(|in_sync| in_sync.iter().any(keeps)) {
            self.crash(id, true);
            self.trace.note(self.now, format!("{id} loses its disk"));
            self.brokers[id].log.cut(0);
            self.quiet_until = self.now + 2_000_000;
        }
    }

    pub(crate) fn start_broker(&mut self, id: usize) {
        self.brokers[id].up = true;
    }

    /// What a client sends.
    pub(crate) fn append(&mut self, id: usize, class: Durability) -> Result<(), Violation> {
        let broker = &self.brokers[id];
        let enough = broker.leading.as_ref().is_some_and(|leading| leading.in_sync.suffices());
        if class >= Durability::Replicated && !enough {
            return Ok(());
        }
        let record = self.fresh();
        self.brokers[id].log.append(record, class);
        self.flush(id);
        self.pump(id);
        Ok(())
    }

    /// A flush begins, if none is under way.
    pub(crate) fn flush(&mut self, broker: usize) {
        let log = &mut self.brokers[broker].log;
        if !log.flushing && log.progress.flushed() <= log.end() {
            log.flushing = true;
            let (opening, to) = (log.opening, log.end());
            let takes = self.rng.random_range(100..self.flush_delay[broker]);
            self.after(takes, Event::Flushed { broker, opening, to });
        }
    }

    pub(crate) fn flushed(&mut self, id: usize, opening: u64, to: u64) -> Result<(), Violation> {
        let broker = &mut self.brokers[id];
        if !broker.up || broker.log.opening != opening {
            return Ok(());
        }
        broker.log.flushing = false;
        broker.log.progress.advance_flushed(to);
        if broker.log.end() > to {
            self.flush(id);
        }
        if self.brokers[id].log.leads() {
            return self.publish(id);
        }
        self.acknowledge(id);
        Ok(())
    }

    /// Shows and answers what may be.
    pub(crate) fn publish(&mut self, id: usize) -> Result<(), Violation> {
        let now = self.instant(id);
        let done = self.brokers[id].log.publish(now);
        for one in &done {
            if one.begins {
                self.begun(id)?;
            } else {
                let broker = &self.brokers[id];
                self.judge.answers(id, broker.leads, &broker.log, *one)?;
            }
        }
        if !done.is_empty() {
            self.pump(id);
        }
        Ok(())
    }
}
