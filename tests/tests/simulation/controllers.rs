//! The controllers: the crate's `sets` and `leases` on a model of the consensus. A term has one leader; a new leader has all
//! that was agreed and perhaps what others had begun; what it confirms is that no other was elected before. Leaders that were deposed
//! do not know it for a while.

use std::collections::BTreeSet;
use std::time::Duration;

use karman_namesrv::controller::leases::{Leases, Report};
use karman_namesrv::controller::sets::{Command, Member, Refused, Sets};
use rand::Rng as _;

use super::member::{Order, State};
use super::world::{BROKERS, Bug, CONTROLLERS, Clock, Event, LEASE, SET, World};

/// What a broker says to a controller, on one of its streams.
#[derive(Debug)]
pub(crate) enum Says {
    Present { log_epoch: u32 },
    Renewal { number: u64, report: Report },
    Sync { epoch: u32, version: u64, in_sync: BTreeSet<i32> },
    Resign { epoch: u32, to: Option<i32> },
}

#[derive(Clone, Debug)]
struct Entry {
    term: u64,
    command: Command,
    /// Whose proposal it is, on which stream.
    by: Option<(usize, u64)>,
}

struct Controller {
    clock: Clock,
    /// While it believes that it leads.
    leases: Option<Leases>,
    /// The newest stream of each broker.
    streams: [u64; BROKERS],
    applied: Sets,
    applied_count: usize,
    /// Behind `agreed[..base]`; not agreed on yet.
    pending: Vec<Entry>,
    base: usize,
}

pub(crate) struct Controllers {
    all: Vec<Controller>,
    agreed: Vec<Entry>,
    pub(crate) state: Sets,
    term: u64,
    pub(crate) leader: usize,
    /// The leader's first entry is agreed on.
    settled: bool,
    pub(crate) elections: u64,
    /// Leaders come and go.
    restless: bool,
}

impl Controllers {
    /// They know their brokers, and nothing else.
    pub(crate) fn new(clocks: [Clock; CONTROLLERS], restless: bool) -> Self {
        let (mut state, mut agreed) = (Sets::default(), Vec::new());
        for id in 0..BROKERS as i32 {
            let command = join(id, 0);
            assert_eq!(state.apply(&command, 1), Ok(()));
            agreed.push(Entry { term: 1, command, by: None });
        }
        let controller = |clock| Controller {
            clock,
            leases: None,
            streams: [0; BROKERS],
            applied: Sets::default(),
            applied_count: 0,
            pending: Vec::new(),
            base: 0,
        };
        let all = clocks.into_iter().map(controller).collect();
        Self { all, agreed, state, term: 1, leader: 0, settled: false, elections: 0, restless }
    }
}

fn join(id: i32, epoch: u32) -> Command {
    let member = Member { address: format!("n:{}", id + 1), priority: 0 };
    Command::Join { set: SET.to_owned(), cluster: "c".to_owned(), id, member, epoch }
}

impl World {
    fn controller_now(&self, id: usize) -> Duration {
        self.controllers.all[id].clock.at(self.now)
    }

    pub(crate) fn tick(&mut self, id: usize) {
        let tick = self.rng.random_range(10_000..50_000);
        self.after(tick, Event::Tick(id));
        self.elect(id);
    }

    fn elect(&mut self, id: usize) {
        let now = self.controller_now(id);
        let wall: u64 = self.rng.random();
        let own = &mut self.controllers.all[id];
        let Some(leases) = &mut own.leases else { return };
        let (term, due) = (leases.term(), leases.elections(&own.applied, now, wall));
        if self.bug == Some(Bug::GrantsWhileElecting)
            && let Some(Command::Elect { epoch, .. }) = due.first()
        {
            leases.not_elected(SET, *epoch, term);
        }
        due.into_iter().for_each(|command| self.propose(id, term, command, None));
    }

    /// What a leader knows of the set.
    fn state(&self, id: usize) -> Option<State> {
        let set = self.controllers.all[id].applied.get(SET)?;
        Some(State {
            epoch: set.epoch,
            version: set.version,
            master: set.master,
            in_sync: set.in_sync.clone(),
            log_epoch: set.log_epoch,
        })
    }

    fn tell_state(&mut self, id: usize, broker: usize) {
        let stream = self.controllers.all[id].streams[broker];
        let Some(state) = self.state(id).filter(|_| stream > 0) else { return };
        self.order(id, broker, stream, Order::State(state));
    }

    /// Into its own log; into those of the others perhaps, if they are as long.
    fn propose(&mut self, id: usize, term: u64, command: Command, by: Option<(usize, u64)>) {
        let group = &mut self.controllers;
        let deposed = id != group.leader;
        // The consensus knows before the leases do that it leads in another term.
        let term = if deposed { term } else { group.term };
        let agreed = group.agreed.len();
        let own = &mut group.all[id];
        // One that was deposed may have been left behind for good.
        if deposed && own.base != agreed {
            return;
        }
        own.pending.push(Entry { term, command, by });
        let (count, log) = (own.pending.len(), own.pending.clone());
        if deposed {
            return;
        }
        for other in (0..CONTROLLERS).filter(|other| *other != id) {
            if self.chance(60) {
                let other = &mut self.controllers.all[other];
                (other.pending, other.base) = (log.clone(), agreed);
            }
        }
        let after = self.rng.random_range(0..self.agree_delay);
        self.after(after, Event::Agree { controller: id, term, count });
    }

    pub(crate) fn noop(&mut self, term: u64) {
        if term == self.controllers.term {
            self.controllers.settled = true;
            let count = self.controllers.all[self.controllers.leader].pending.len();
            self.agree(count);
        }
    }

    pub(crate) fn agreed_on(&mut self, controller: usize, term: u64, count: usize) {
        let group = &self.controllers;
        if term == group.term && group.settled {
            assert_eq!(controller, group.leader, "a term has one leader");
            let count = (group.all[controller].base + count).saturating_sub(group.agreed.len());
            self.agree(count);
        }
    }

    /// A majority has the next `count` of the leader's entries.
    fn agree(&mut self, count: usize) {
        let leader = self.controllers.leader;
        let own = &mut self.controllers.all[leader];
        let count = count.min(own.pending.len());
        for entry in own.pending.drain(..count).collect::<Vec<_>>() {
            let done = self.controllers.state.apply(&entry.command, entry.term);
            self.answer(leader, &entry, &done);
            self.controllers.agreed.push(entry);
        }
        let agreed = self.controllers.agreed.len();
        self.controllers.all[leader].base = agreed;
        self.follow(leader);
        for id in (0..CONTROLLERS).filter(|id| *id != leader) {
            let late = self.rng.random_range(0..self.agree_delay);
            self.after(late, Event::Follow(id));
        }
    }

    fn answer(&mut self, leader: usize, entry: &Entry, done: &Result<(), Refused>) {
        if let Command::Elect { epoch, term, master, .. } = &entry.command {
            match done {
                Ok(()) => {
                    self.controllers.elections += 1;
                    self.trace.note(self.now, format!("elected {master}, ends epoch {epoch}"));
                }
                Err(_) => {
                    let leases = self.controllers.all[leader].leases.as_mut();
                    leases.into_iter().for_each(|leases| leases.not_elected(SET, *epoch, *term));
                }
            }
        }
        if let (Some((broker, stream)), Err(_)) = (entry.by, done) {
            self.order(leader, broker, stream, Order::Refused);
        }
    }

    pub(crate) fn follow(&mut self, id: usize) {
        let group = &mut self.controllers;
        let own = &mut group.all[id];
        if own.applied_count == group.agreed.len() {
            return;
        }
        for entry in &group.agreed[own.applied_count..] {
            // What was refused is refused by all.
            let _ = own.applied.apply(&entry.command, entry.term);
        }
        own.applied_count = group.agreed.len();
        if own.leases.is_some() {
            (0..BROKERS).for_each(|broker| self.tell_state(id, broker));
        }
    }

    pub(crate) fn change_leader(&mut self) {
        // Mostly it leads for a while; sometimes for moments.
        let moments = if self.controllers.restless { 70 } else { 20 };
        let (shortest, longest) =
            if self.chance(moments) { (50_000, 900_000) } else { (3_000_000, 15_000_000) };
        let next = self.rng.random_range(shortest..longest);
        if !self.calm() || self.controllers.term == 1 {
            self.after(next, Event::LeaderChange);
        }
        let leader = self.rng.random_range(0..CONTROLLERS);
        let group = &mut self.controllers;
        (group.term, group.settled, group.leader) = (group.term + 1, false, leader);
        let (agreed, term) = (group.agreed.len(), group.term);
        let own = &mut group.all[leader];
        if own.base != agreed {
            // What it had is not what was agreed on since.
            (own.pending, own.base) = (Vec::new(), agreed);
        }
        let learns = self.rng.random_range(0..300_000);
        self.after(learns, Event::Learn { controller: leader, term });
        let noop = self.rng.random_range(0..self.agree_delay);
        self.after(noop, Event::Noop { term });
        // Those that were deposed learn it late.
        for id in (0..CONTROLLERS).filter(|id| *id != leader) {
            let late = if self.calm() { 100_000 } else { self.rng.random_range(0..6_000_000) };
            self.after(late, Event::Learn { controller: id, term });
        }
    }

    pub(crate) fn learn(&mut self, id: usize, term: u64) {
        let mut now = self.controller_now(id);
        if self.bug == Some(Bug::LeaderDoesNotWait) {
            now -= Duration::from_secs(10);
        }
        let unclean = self.bug == Some(Bug::UncleanElection);
        let leads = term == self.controllers.term && id == self.controllers.leader;
        let own = &mut self.controllers.all[id];
        if leads {
            own.leases = Some(Leases::new(term, LEASE, unclean, now));
            own.streams = [0; BROKERS];
        } else if own.leases.as_ref().is_some_and(|leases| leases.term() < term) {
            own.leases = None;
        }
    }

    pub(crate) fn hear(&mut self, id: usize, broker: usize, stream: u64, says: Says) {
        let now = self.controller_now(id);
        let own = &mut self.controllers.all[id];
        let Some(leases) = &mut own.leases else { return self.order(id, broker, stream, Order::NotLeader) };
        if let Says::Present { log_epoch } = says {
            if own.applied.get(SET).is_some_and(|set| set.epoch_before >= log_epoch) {
                own.streams[broker] = stream;
                return self.tell_state(id, broker);
            }
            // It waits until that is agreed on: here it comes again.
            let term = leases.term();
            self.propose(id, term, join(broker as i32, log_epoch), None);
            return self.order(id, broker, stream, Order::NotLeader);
        }
        if own.streams[broker] != stream {
            return;
        }
        let term = leases.term();
        match says {
            Says::Renewal { number, report } => {
                leases.hear(SET, broker as i32, report, now);
                if report.master_of > 0 {
                    // The answers of the quorum are from now or later; that they have come is known later still.
                    let group = &self.controllers;
                    let yes = group.settled && term == group.term && id == group.leader;
                    let takes = self.rng.random_range(0..self.agree_delay);
                    let epoch = report.master_of;
                    let asked = Event::Confirmed { controller: id, term, broker, stream, number, epoch, yes };
                    self.after(takes, asked);
                }
                self.tell_state(id, broker);
            }
            Says::Sync { epoch, version, in_sync } => {
                let set = own.applied.get(SET);
                if set.is_some_and(|set| set.epoch == epoch && set.master == Some(broker as i32)) {
                    let command = Command::Sync { set: SET.to_owned(), epoch, version, in_sync };
                    return self.propose(id, term, command, Some((broker, stream)));
                }
                self.order(id, broker, stream, Order::Refused);
            }
            Says::Resign { epoch, to } => {
                match leases.resign(&own.applied, SET, broker as i32, epoch, to, now) {
                    true => self.elect(id),
                    false => self.order(id, broker, stream, Order::Refused),
                }
            }
            Says::Present { .. } => {}
        }
    }

    /// A quorum has said that this controller led when a renewal had come.
    pub(crate) fn confirmed(
        &mut self,
        (id, term): (usize, u64),
        (broker, stream): (usize, u64),
        number: u64,
        epoch: u32,
    ) {
        let now = self.controller_now(id);
        let own = &mut self.controllers.all[id];
        let Some(leases) = own.leases.as_mut().filter(|leases| leases.term() == term) else { return };
        if own.streams[broker] == stream && leases.grant(&own.applied, SET, broker as i32, epoch, now) {
            self.order(id, broker, stream, Order::Granted { number });
        }
    }
}
