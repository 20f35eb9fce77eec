//! Three brokers of one set, three controllers, clients and what happens between them, in virtual time: one queue of events, one
//! source of chance. Whatever is not modelled is that of the crates: who may lead and for how long (`sets`, `leases`), who counts
//! (`in_sync`), what a broker makes of what it is told (`role`), and what a log knows of its masters and marks (`store::cores`).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

use karman_namesrv::controller::leases::DRIFT_PERCENT;
use karman_store::Durability;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::controllers::{Controllers, Says};
use super::judge::{Judge, Violation};
use super::member::{Broker, Order};
use super::streams::Peer;

pub(crate) const LEASE: Duration = Duration::from_millis(1500);
pub(crate) const SET: &str = "a";
pub(crate) const CONTROLLERS: usize = 3;
pub(crate) const BROKERS: usize = 3;
/// Then faults end, and everybody has to come to an end.
const TROUBLE_MICROS: u64 = 40_000_000;
const END_MICROS: u64 = 60_000_000;
/// Clients send nothing any more from then on.
const LAST_SEND_MICROS: u64 = 57_000_000;
/// Events that are kept for who reads about a failure.
const KEPT: usize = 400;

/// What may be broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// M5: what asks for replicas is answered when the master has flushed it.
    AnswersBeforeReplication,
    /// A master goes on for a while when its lease is over.
    LateLease,
    /// A new leader of the controllers does not wait for what its predecessor granted.
    LeaderDoesNotWait,
    /// A leader goes on to grant while the election that ends the epoch is under way.
    GrantsWhileElecting,
    /// A slave keeps one record that its master does not have.
    WrongCut,
    /// Who lacks something is elected when nobody else is there.
    UncleanElection,
    /// A master goes on in the epoch in which its log ends.
    NoNewEpoch,
    /// A slave says that it has flushed what it has written.
    CountsWritten,
    /// Who comes back with a new disk is taken for what it was.
    TrustsNewDisk,
    /// A slave shows what it finds in its log when it is started.
    ShowsRecovered,
}

/// What a clock shows: some time ago plus what passed, by its own measure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    offset: u64,
    parts_per_million: u64,
}

impl Clock {
    fn random(rng: &mut StdRng) -> Self {
        let drift = u64::from(DRIFT_PERCENT) * 10_000;
        let parts_per_million = rng.random_range(1_000_000 - drift..=1_000_000 + drift);
        Self { offset: rng.random_range(20_000_000..21_000_000), parts_per_million }
    }

    pub(crate) fn at(self, micros: u64) -> Duration {
        Duration::from_micros(self.offset + micros * self.parts_per_million / 1_000_000)
    }
}

#[derive(Debug)]
pub(crate) enum Event {
    Tick(usize),
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
    /// A quorum was asked, at some time between the renewal's arrival and now.
    Confirmed {
        controller: usize,
        term: u64,
        broker: usize,
        stream: u64,
        number: u64,
        epoch: u32,
        yes: bool,
    },
    Trouble,
    Heal(Vec<(usize, usize)>),
    Start(usize),
    Renew(usize),
    Sweep(usize),
    /// A master begins to agree on who counts.
    Agrees {
        broker: usize,
        opening: u64,
    },
    Flushed {
        broker: usize,
        opening: u64,
        to: u64,
    },
    Send,
    Says {
        controller: usize,
        broker: usize,
        stream: u64,
        says: Says,
    },
    Order {
        broker: usize,
        stream: u64,
        order: Order,
    },
    Peer {
        from: usize,
        to: usize,
        message: Peer,
    },
}

/// What happened, as a number that differs when anything else happened.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    pub(crate) hash: u64,
    pub(crate) events: u64,
    last: VecDeque<String>,
    prints: bool,
}

impl Trace {
    fn add(&mut self, at: u64, event: &Event) {
        self.events += 1;
        let kind = match event {
            Event::Tick(id) => [1, *id as u64, 0],
            Event::LeaderChange => [2, 0, 0],
            Event::Learn { controller, term } => [3, *controller as u64, *term],
            Event::Noop { term } => [4, *term, 0],
            Event::Agree { term, count, .. } => [5, *term, *count as u64],
            Event::Follow(id) => [6, *id as u64, 0],
            Event::Confirmed { broker, number, .. } => [7, *broker as u64, *number],
            Event::Trouble => [8, 0, 0],
            Event::Heal(links) => [9, links.len() as u64, 0],
            Event::Start(id) => [10, *id as u64, 0],
            Event::Renew(id) => [11, *id as u64, 0],
            Event::Sweep(id) => [12, *id as u64, 0],
            Event::Agrees { broker, opening } => [13, *broker as u64, *opening],
            Event::Flushed { broker, to, .. } => [14, *broker as u64, *to],
            Event::Send => [15, 0, 0],
            Event::Says { broker, stream, .. } => [16, *broker as u64, *stream],
            Event::Order { broker, stream, .. } => [17, *broker as u64, *stream],
            Event::Peer { from, to, .. } => [18, *from as u64, *to as u64],
        };
        for number in [at].into_iter().chain(kind) {
            self.hash = (self.hash ^ number).wrapping_mul(0x0000_0100_0000_01B3).rotate_left(23);
        }
        let dull = matches!(event, Event::Tick(_) | Event::Sweep(_) | Event::Renew(_) | Event::Send);
        if self.prints && !dull {
            self.note(at, format!("{event:?}"));
        }
    }

    pub(crate) fn note(&mut self, at: u64, line: String) {
        if !self.prints {
            return;
        }
        self.last.push_back(format!("{:>12.6} {line}", at as f64 / 1e6));
        if self.last.len() > KEPT {
            self.last.pop_front();
        }
    }

    pub(crate) fn lines(&self) -> String {
        self.last.iter().map(|line| format!("    {line}\n")).collect()
    }
}

pub(crate) struct World {
    pub(crate) bug: Option<Bug>,
    /// Everything is sent as replicated: what is shown is never taken back then.
    pub(crate) strict: bool,
    /// Masters and controllers lose one another again and again, for about as long as a lease.
    pub(crate) apart: bool,
    pub(crate) rng: StdRng,
    pub(crate) now: u64,
    /// What takes time takes up to so many microseconds; it changes with every trouble.
    pub(crate) delay: u64,
    /// The same of what a majority has to agree on, and of a flush.
    pub(crate) agree_delay: u64,
    pub(crate) flush_delay: [u64; BROKERS],
    events: BinaryHeap<Reverse<(u64, u64)>>,
    bodies: BTreeMap<u64, Event>,
    count: u64,
    /// How many reasons there are that nothing goes from one node to another: controllers first, then brokers.
    pub(crate) cuts: [[u32; CONTROLLERS + BROKERS]; CONTROLLERS + BROKERS],
    /// When the last word of a stream arrives: its words stay in order.
    pub(crate) streams: [[u64; BROKERS]; BROKERS],
    pub(crate) controllers: Controllers,
    pub(crate) brokers: Vec<Broker>,
    pub(crate) judge: Judge,
    pub(crate) trace: Trace,
    pub(crate) next_id: u64,
    /// Who was proposed as in sync, in which epoch and to follow which version.
    pub(crate) proposed: Vec<(u32, u64, BTreeSet<i32>)>,
    /// Nothing else fails until then.
    pub(crate) quiet_until: u64,
    start: Instant,
}

impl World {
    pub(crate) fn new(seed: u64, bug: Option<Bug>, prints: bool) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let start = Instant::now();
        let strict = rng.random_bool(0.5);
        let about_leases = matches!(bug, Some(Bug::LeaderDoesNotWait | Bug::GrantsWhileElecting));
        let (apart, restless) = (rng.random_bool(0.4) || about_leases, rng.random_bool(0.3));
        let clocks = [0; CONTROLLERS].map(|_| Clock::random(&mut rng));
        let controllers = Controllers::new(clocks, restless);
        let brokers = (0..BROKERS).map(|_| Broker::new(Clock::random(&mut rng), start, bug)).collect();
        let mut world = Self {
            bug,
            strict,
            apart,
            rng,
            now: 0,
            delay: 5_000,
            agree_delay: 5_000,
            flush_delay: [2_000; BROKERS],
            events: BinaryHeap::new(),
            bodies: BTreeMap::new(),
            count: 0,
            cuts: Default::default(),
            streams: Default::default(),
            controllers,
            brokers,
            judge: Judge::default(),
            trace: Trace { prints, ..Trace::default() },
            next_id: 1,
            proposed: Vec::new(),
            quiet_until: 0,
            start,
        };
        (0..CONTROLLERS).for_each(|id| world.after(id as u64, Event::Tick(id)));
        for id in 0..BROKERS {
            world.after(id as u64, Event::Renew(id));
            world.after(id as u64, Event::Sweep(id));
        }
        world.after(0, Event::LeaderChange);
        world.after(1_000_000, Event::Trouble);
        world.after(1_000, Event::Send);
        world
    }

    pub(crate) fn after(&mut self, micros: u64, event: Event) {
        self.count += 1;
        self.events.push(Reverse((self.now + micros, self.count)));
        self.bodies.insert(self.count, event);
    }

    pub(crate) fn calm(&self) -> bool {
        self.now >= TROUBLE_MICROS
    }

    pub(crate) fn chance(&mut self, percent: u32) -> bool {
        self.rng.random_range(0..100) < percent
    }

    /// The monotonic clock of a broker.
    pub(crate) fn instant(&self, broker: usize) -> Instant {
        self.start + self.elapsed(broker)
    }

    pub(crate) fn elapsed(&self, broker: usize) -> Duration {
        self.brokers[broker].clock.at(self.now)
    }

    pub(crate) fn fresh(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// How long a word takes from one node to another: mostly soon, sometimes late; `None`: it does not arrive.
    fn takes(&mut self, from: usize, to: usize) -> Option<u64> {
        if self.cuts[from][to] > 0 {
            return None;
        }
        if self.calm() {
            return Some(1000);
        }
        match self.rng.random_range(0..60) {
            0 => None,
            1 => Some(self.rng.random_range(100_000..3_000_000)),
            _ => Some(self.rng.random_range(0..self.delay)),
        }
    }

    pub(crate) fn say(&mut self, controller: usize, broker: usize, stream: u64, says: Says) {
        if let Some(micros) = self.takes(CONTROLLERS + broker, controller) {
            self.after(micros, Event::Says { controller, broker, stream, says });
        }
    }

    pub(crate) fn order(&mut self, controller: usize, broker: usize, stream: u64, order: Order) {
        if let Some(micros) = self.takes(controller, CONTROLLERS + broker) {
            self.after(micros, Event::Order { broker, stream, order });
        }
    }

    /// Words from one broker to another come in order, but for a few.
    pub(crate) fn tell(&mut self, from: usize, to: usize, message: Peer) {
        let Some(micros) = self.takes(CONTROLLERS + from, CONTROLLERS + to) else { return };
        let mut at = self.now + micros;
        if self.rng.random_range(0..200) > 0 {
            at = at.max(self.streams[from][to] + 1);
            self.streams[from][to] = at;
        }
        self.after(at - self.now, Event::Peer { from, to, message });
    }

    pub(crate) fn run(&mut self) -> Result<(), Violation> {
        while let Some(Reverse((at, number))) = self.events.pop() {
            if at > END_MICROS {
                break;
            }
            self.now = at;
            let Some(event) = self.bodies.remove(&number) else { continue };
            if let Some(resumed) = self.paused(&event) {
                self.after(resumed - at, event);
                continue;
            }
            self.trace.add(at, &event);
            self.happen(event)?;
            self.check()?;
        }
        self.end()
    }

    /// Until when whom it happens to stands still.
    fn paused(&self, event: &Event) -> Option<u64> {
        let broker = match event {
            Event::Renew(id) | Event::Sweep(id) => *id,
            Event::Agrees { broker, .. } | Event::Flushed { broker, .. } | Event::Order { broker, .. } => {
                *broker
            }
            Event::Peer { to, .. } => *to,
            _ => return None,
        };
        let until = self.brokers[broker].paused_until;
        (self.brokers[broker].up && until > self.now).then_some(until)
    }

    /// Who may answer: whose lease is not over, by its own clock.
    pub(crate) fn answering(&self) -> Vec<usize> {
        let may = |id: &usize| {
            let broker = &self.brokers[*id];
            broker.up && broker.log.leads() && broker.log.fence.is_open_at(self.instant(*id))
        };
        (0..BROKERS).filter(may).collect()
    }

    fn check(&self) -> Result<(), Violation> {
        let answering = self.answering();
        if answering.len() > 1 {
            return Err(Violation::new("S11", format!("brokers {answering:?} may answer at the same time")));
        }
        if !self.strict {
            return Ok(());
        }
        let logs = [0, 1, 2].map(|id: usize| (id, &self.brokers[id].log));
        [[0, 1], [0, 2], [1, 2]]
            .into_iter()
            .try_for_each(|[one, other]| self.judge.see([logs[one], logs[other]]))
    }

    fn end(&self) -> Result<(), Violation> {
        let fails = |what: String| Err(Violation::new("L1", what));
        if self.answering().len() != 1 {
            return fails(format!("nobody is master in the end: {:?}", self.controllers.state.get(SET)));
        }
        if self.judge.answered[1] == 0 {
            return fails("nothing was ever answered".into());
        }
        let logs: Vec<_> = self.brokers.iter().map(|broker| &broker.log).collect();
        self.judge.ends(&logs)
    }

    fn happen(&mut self, event: Event) -> Result<(), Violation> {
        match event {
            Event::Tick(id) => self.tick(id),
            Event::LeaderChange => self.change_leader(),
            Event::Learn { controller, term } => self.learn(controller, term),
            Event::Noop { term } => self.noop(term),
            Event::Agree { controller, term, count } => self.agreed_on(controller, term, count),
            Event::Follow(id) => self.follow(id),
            Event::Confirmed { controller, term, broker, stream, number, epoch, yes } => {
                if yes {
                    self.confirmed((controller, term), (broker, stream), number, epoch);
                }
            }
            Event::Trouble => self.trouble(),
            Event::Heal(links) => links
                .into_iter()
                .for_each(|(from, to)| self.cuts[from][to] = self.cuts[from][to].saturating_sub(1)),
            Event::Start(id) => self.start_broker(id),
            Event::Renew(id) => self.renew(id),
            Event::Sweep(id) => return self.sweep(id),
            Event::Agrees { broker, opening } => return self.agrees(broker, opening),
            Event::Flushed { broker, opening, to } => return self.flushed(broker, opening, to),
            Event::Send => return self.client(),
            Event::Says { controller, broker, stream, says } => self.hear(controller, broker, stream, says),
            Event::Order { broker, stream, order } => return self.obey_order(broker, stream, order),
            Event::Peer { from, to, message } => return self.hear_peer(from, to, message),
        }
        Ok(())
    }

    /// A message of a client, to whoever thinks that it is the master.
    fn client(&mut self) -> Result<(), Violation> {
        let next = self.rng.random_range(2_000..60_000);
        if self.now + next < LAST_SEND_MICROS {
            self.after(next, Event::Send);
        }
        let lowest = if self.strict { 1 } else { 0 };
        let classes = [Durability::Disk, Durability::Replicated, Durability::ReplicatedDisk];
        let class = classes[self.rng.random_range(lowest..3)];
        let masters: Vec<usize> =
            (0..BROKERS).filter(|id| self.brokers[*id].takes_messages(self.now)).collect();
        if masters.is_empty() {
            return Ok(());
        }
        let broker = masters[self.rng.random_range(0..masters.len())];
        self.append(broker, class)
    }
}
