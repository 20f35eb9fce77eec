//! [`Leases`] and [`Sets`] under everything that may happen between brokers and controllers, in virtual time: clocks that drift,
//! messages that are lost or late, brokers that stop and come back, leaders that are deposed and do not know it.
//!
//! The consensus is a model: a term has one leader; a new leader has all that was agreed and perhaps what others had begun; what it
//! confirms is that no other was elected before. `KARMAN_SEEDS` runs that many seeds instead of 200, `KARMAN_SEED` one.

mod brokers;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::leases::{DRIFT_PERCENT, Leases, Report, usable};
use super::sets::{Command, Member, Sets};

const LEASE: Duration = Duration::from_millis(1500);
const SET: &str = "a";
const CONTROLLERS: usize = 3;
const BROKERS: usize = 3;
/// Then faults end, and everybody has to come to an end.
const TROUBLE_MICROS: u64 = 40_000_000;
const END_MICROS: u64 = 65_000_000;

/// What a clock shows: some time ago plus what passed, by its own measure.
#[derive(Clone, Copy, Debug)]
struct Clock {
    offset: u64,
    rate: f64,
}

impl Clock {
    fn random(rng: &mut StdRng) -> Self {
        let drift = f64::from(DRIFT_PERCENT) / 100.0;
        Self { offset: rng.random_range(0..1_000_000), rate: rng.random_range(1.0 - drift..1.0 + drift) }
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, clippy::cast_sign_loss)]
    fn at(self, micros: u64) -> Duration {
        Duration::from_micros(self.offset + (micros as f64 * self.rate) as u64)
    }
}

#[derive(Clone, Debug)]
struct Entry {
    term: u64,
    command: Command,
}

struct Controller {
    clock: Clock,
    /// While it believes that it leads.
    leases: Option<Leases>,
    applied: Sets,
    applied_count: usize,
    /// Behind `agreed[..base]`; not agreed on yet.
    pending: Vec<Entry>,
    base: usize,
}

#[derive(Default)]
struct Broker {
    up: bool,
    /// No message comes or goes.
    cut: bool,
    /// Which controller it asks.
    asks: usize,
    epoch: u32,
    master: bool,
    /// Of the epoch; it has stopped acknowledging.
    resigned: bool,
    number: u64,
    /// When it sent which renewal, by its clock.
    sent: BTreeMap<u64, Duration>,
    until: Option<Duration>,
    /// A new process has a new life.
    life: u32,
}

#[derive(Debug)]
enum Event {
    Tick(usize),
    Trouble,
    Heal(usize),
    LeaderChange,
    Learn {
        controller: usize,
        term: u64,
    },
    Noop {
        term: u64,
    },
    Agree {
        controller: usize,
        term: u64,
        count: usize,
    },
    Follow(usize),
    Renew(usize),
    Renewal {
        controller: usize,
        broker: usize,
        life: u32,
        number: u64,
        master_of: u32,
    },
    /// A quorum was asked, at some time between its arrival and now.
    Confirmed {
        controller: usize,
        broker: usize,
        life: u32,
        number: u64,
        epoch: u32,
        yes: bool,
    },
    Granted {
        broker: usize,
        life: u32,
        number: u64,
    },
    State {
        broker: usize,
        life: u32,
        epoch: u32,
        master: Option<i32>,
    },
    Resignation {
        controller: usize,
        broker: usize,
        epoch: u32,
    },
}

struct World {
    rng: StdRng,
    now: u64,
    /// What takes time takes up to so many microseconds; it changes with every trouble.
    delay: u64,
    /// The same of what a majority has to agree on.
    agree_delay: u64,
    events: BinaryHeap<Reverse<(u64, u64)>>,
    bodies: BTreeMap<u64, Event>,
    count: u64,
    controllers: Vec<Controller>,
    clocks: Vec<Clock>,
    brokers: Vec<Broker>,
    agreed: Vec<Entry>,
    state: Sets,
    term: u64,
    leader: usize,
    /// The leader's first entry is agreed on.
    settled: bool,
    masters: BTreeMap<u32, i32>,
    acknowledged: u64,
    elections: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut state = Sets::default();
        let mut agreed = Vec::new();
        for id in 0..BROKERS {
            let member = Member { address: format!("n:{id}"), priority: 0 };
            let (set, cluster) = (SET.to_owned(), "c".to_owned());
            let id = i32::try_from(id).unwrap();
            let entry = Entry { term: 1, command: Command::Join { set, cluster, id, member, epoch: 0 } };
            state.apply(&entry.command, 1).unwrap();
            agreed.push(entry);
        }
        let mut controller = || Controller {
            clock: Clock::random(&mut rng),
            leases: None,
            applied: Sets::default(),
            applied_count: 0,
            pending: Vec::new(),
            base: 0,
        };
        let controllers = (0..CONTROLLERS).map(|_| controller()).collect();
        let clocks = (0..BROKERS).map(|_| Clock::random(&mut rng)).collect();
        let brokers = (0..BROKERS).map(|_| Broker { up: true, ..Broker::default() }).collect();
        let mut world = Self {
            rng,
            now: 0,
            delay: 30_000,
            agree_delay: 30_000,
            events: BinaryHeap::new(),
            bodies: BTreeMap::new(),
            count: 0,
            controllers,
            clocks,
            brokers,
            agreed,
            state,
            term: 1,
            leader: 0,
            settled: false,
            masters: BTreeMap::new(),
            acknowledged: 0,
            elections: 0,
        };
        (0..CONTROLLERS).for_each(|id| world.after(id as u64, Event::Tick(id)));
        (0..BROKERS).for_each(|id| world.after(id as u64, Event::Renew(id)));
        world.after(0, Event::LeaderChange);
        world.after(1_000_000, Event::Trouble);
        world
    }

    fn after(&mut self, micros: u64, event: Event) {
        self.count += 1;
        self.events.push(Reverse((self.now + micros, self.count)));
        self.bodies.insert(self.count, event);
    }

    fn calm(&self) -> bool {
        self.now >= TROUBLE_MICROS
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.rng.random_range(0..100) < percent
    }

    /// A message to or from a broker: mostly soon, sometimes late, sometimes never.
    fn send(&mut self, broker: usize, event: Event) {
        if self.calm() {
            return self.after(1000, event);
        }
        if self.brokers[broker].cut {
            return;
        }
        match self.rng.random_range(0..30) {
            0 => {}
            1 => {
                let late = self.rng.random_range(100_000..3_000_000);
                self.after(late, event);
            }
            _ => {
                let soon = self.rng.random_range(0..self.delay);
                self.after(soon, event);
            }
        }
    }

    fn run(&mut self) {
        while let Some(Reverse((at, number))) = self.events.pop() {
            if at > END_MICROS {
                break;
            }
            self.now = at;
            let event = self.bodies.remove(&number).expect("each has a body");
            self.happen(event);
            self.check();
        }
        assert!(self.acknowledging().len() == 1, "nobody is master in the end: {:?}", self.state);
        assert!(self.acknowledged > 0 && self.elections > 0);
    }

    fn acknowledging(&self) -> Vec<usize> {
        let may = |id: &usize| {
            let (broker, clock) = (&self.brokers[*id], self.clocks[*id]);
            let in_time = broker.until.is_some_and(|until| clock.at(self.now) < until);
            broker.up && broker.master && !broker.resigned && in_time
        };
        (0..BROKERS).filter(may).collect()
    }

    fn check(&mut self) {
        let acknowledging = self.acknowledging();
        assert!(acknowledging.len() <= 1, "{acknowledging:?} acknowledge at {} us", self.now);
        self.acknowledged += acknowledging.len() as u64;
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Tick(id) => self.tick(id),
            Event::Trouble => self.trouble(),
            Event::Heal(broker) => self.brokers[broker].cut = false,
            Event::LeaderChange => self.change_leader(),
            Event::Learn { controller, term } => self.learn(controller, term),
            Event::Noop { term } if term == self.term => {
                self.settled = true;
                let count = self.controllers[self.leader].pending.len();
                self.agree(count);
            }
            Event::Agree { controller, term, count } if term == self.term && self.settled => {
                assert_eq!(controller, self.leader);
                let count = (self.controllers[controller].base + count).saturating_sub(self.agreed.len());
                self.agree(count);
            }
            Event::Noop { .. } | Event::Agree { .. } => {}
            Event::Follow(id) => self.follow(id),
            Event::Renew(id) => self.renew(id),
            Event::Renewal { controller, broker, life, number, master_of } => {
                self.renewal(controller, (broker, life), number, master_of);
            }
            Event::Confirmed { controller, broker, life, number, epoch, yes } => {
                self.confirmed(controller, (broker, life), number, epoch, yes);
            }
            Event::Granted { broker, life, number } => {
                let own = &mut self.brokers[broker];
                if own.life == life
                    && let Some(sent) = own.sent.get(&number)
                {
                    own.until = own.until.max(Some(*sent + usable(LEASE)));
                }
            }
            Event::State { broker, life, epoch, master } => self.told(broker, life, epoch, master),
            Event::Resignation { controller, broker, epoch } => {
                let own = &mut self.controllers[controller];
                let now = own.clock.at(self.now);
                if let Some(leases) = &mut own.leases {
                    leases.resign(&own.applied, SET, broker as i32, epoch, None, now);
                }
            }
        }
    }

    fn tick(&mut self, id: usize) {
        let tick = self.rng.random_range(1000..50_000);
        self.after(tick, Event::Tick(id));
        let own = &mut self.controllers[id];
        let now = own.clock.at(self.now);
        let Some(leases) = &mut own.leases else { return };
        let (term, due) = (leases.term(), leases.elections(&own.applied, now, 0));
        due.into_iter().for_each(|command| self.propose(id, term, command));
        self.tell_all(id);
    }

    /// What a leader knows of the set, to everybody who asks it.
    fn tell_all(&mut self, id: usize) {
        let Some(set) = self.controllers[id].applied.get(SET) else { return };
        let (epoch, master) = (set.epoch, set.master);
        for broker in 0..BROKERS {
            if self.brokers[broker].asks == id {
                let life = self.brokers[broker].life;
                self.send(broker, Event::State { broker, life, epoch, master });
            }
        }
    }

    /// Into its own log; into those of the others perhaps, if they are as long.
    fn propose(&mut self, id: usize, term: u64, command: Command) {
        let deposed = id != self.leader;
        // The consensus knows before the leases do that it leads in another term.
        let term = if deposed { term } else { self.term };
        let entry = Entry { term, command };
        let agreed = self.agreed.len();
        let own = &mut self.controllers[id];
        // One that was deposed may have been left behind for good.
        if deposed && own.base != agreed {
            return;
        }
        own.pending.push(entry);
        let (count, log) = (own.pending.len(), own.pending.clone());
        if deposed {
            return;
        }
        for other in (0..CONTROLLERS).filter(|other| *other != id) {
            if self.chance(60) {
                self.controllers[other].pending = log.clone();
                self.controllers[other].base = agreed;
            }
        }
        let after = self.rng.random_range(0..self.agree_delay);
        self.after(after, Event::Agree { controller: id, term, count });
    }

    /// A majority has the next `count` of the leader's entries.
    fn agree(&mut self, count: usize) {
        let own = &mut self.controllers[self.leader];
        let count = count.min(own.pending.len());
        for entry in own.pending.drain(..count).collect::<Vec<_>>() {
            let before = self.state.get(SET).cloned().unwrap_or_default();
            let done = self.state.apply(&entry.command, entry.term);
            if let Command::Elect { epoch, term, master, unclean, .. } = &entry.command {
                match done {
                    Ok(()) => {
                        self.elections += 1;
                        assert!(*unclean || before.in_sync.contains(master), "{entry:?} of {before:?}");
                        let now = self.state.get(SET).map_or(0, |set| set.epoch);
                        assert_eq!(self.masters.insert(now, *master), None, "two masters of epoch {now}");
                    }
                    Err(_) => {
                        let leases = self.controllers[self.leader].leases.as_mut();
                        leases.into_iter().for_each(|leases| leases.not_elected(SET, *epoch, *term));
                    }
                }
            }
            self.agreed.push(entry);
        }
        let agreed = self.agreed.len();
        self.controllers[self.leader].base = agreed;
        self.follow(self.leader);
        let leader = self.leader;
        for id in (0..CONTROLLERS).filter(|id| *id != leader) {
            let late = self.rng.random_range(0..self.agree_delay);
            self.after(late, Event::Follow(id));
        }
    }

    fn follow(&mut self, id: usize) {
        let own = &mut self.controllers[id];
        for entry in &self.agreed[own.applied_count..] {
            let _ = own.applied.apply(&entry.command, entry.term);
        }
        own.applied_count = self.agreed.len();
        if own.leases.is_some() {
            self.tell_all(id);
        }
    }

    fn change_leader(&mut self) {
        // Mostly it leads for a while; sometimes for moments.
        let (shortest, longest) = if self.chance(20) { (50_000, 900_000) } else { (3_000_000, 15_000_000) };
        let next = if self.calm() { END_MICROS } else { self.rng.random_range(shortest..longest) };
        self.after(next, Event::LeaderChange);
        self.term += 1;
        self.settled = false;
        self.leader = self.rng.random_range(0..CONTROLLERS);
        let agreed = self.agreed.len();
        let own = &mut self.controllers[self.leader];
        if own.base != agreed {
            // What it had is not what was agreed on since.
            (own.pending, own.base) = (Vec::new(), agreed);
        }
        let (controller, term) = (self.leader, self.term);
        let learns = self.rng.random_range(0..300_000);
        self.after(learns, Event::Learn { controller, term });
        let noop = self.rng.random_range(0..self.agree_delay);
        self.after(noop, Event::Noop { term });
        // Those that were deposed learn it late.
        for id in (0..CONTROLLERS).filter(|id| *id != controller) {
            let late = if self.calm() { 100_000 } else { self.rng.random_range(0..6_000_000) };
            self.after(late, Event::Learn { controller: id, term });
        }
    }

    fn learn(&mut self, id: usize, term: u64) {
        let leads = term == self.term && id == self.leader;
        let own = &mut self.controllers[id];
        if leads {
            own.leases = Some(Leases::new(term, LEASE, false, own.clock.at(self.now)));
        } else if own.leases.as_ref().is_some_and(|leases| leases.term() < term) {
            own.leases = None;
        }
    }

    /// A broker is cut off, is killed, or comes back; and everything gets faster or slower.
    fn trouble(&mut self) {
        let next = self.rng.random_range(200_000..4_000_000);
        self.after(next, Event::Trouble);
        let delays = [500, 5000, 30_000, 300_000];
        self.delay = delays[self.rng.random_range(0..4)];
        self.agree_delay = delays[self.rng.random_range(0..4)];
        if self.calm() {
            (self.delay, self.agree_delay) = (1000, 2000);
            self.brokers.iter_mut().for_each(|broker| (broker.up, broker.cut) = (true, false));
            return;
        }
        let id = self.rng.random_range(0..BROKERS);
        let master = self.brokers.iter().position(|broker| broker.up && broker.master).unwrap_or(id);
        if self.chance(60) {
            // For about as long as it takes to elect around it.
            self.brokers[master].cut = true;
            let ends = self.rng.random_range(1_000_000..2_500_000);
            return self.after(ends, Event::Heal(master));
        }
        let asks = self.rng.random_range(0..CONTROLLERS);
        let broker = &mut self.brokers[id];
        if !broker.up {
            broker.up = true;
            return;
        }
        // A new process knows nothing of what it was, but that it was the master once; it acknowledges nothing as such.
        let Broker { life, number, epoch, master, cut, .. } = *broker;
        let (life, resigned) = (life + 1, master);
        *broker = Broker { up: false, cut, asks, life, number, epoch, master, resigned, ..Broker::default() };
    }
}

fn number_of(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|value| value.parse().ok())
}

#[test]
fn two_masters_never_acknowledge_at_the_same_time() {
    let seeds = match number_of("KARMAN_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number_of("KARMAN_SEEDS").unwrap_or(200),
    };
    for seed in seeds {
        let run = std::panic::catch_unwind(|| World::new(seed).run());
        assert!(run.is_ok(), "KARMAN_SEED={seed} fails");
    }
}
