//! What fails, and when.

use rand::Rng as _;

use super::member::Broker;
use super::world::{BROKERS, CONTROLLERS, Event, World};

impl World {
    /// Something fails; and everything gets faster or slower.
    pub(crate) fn trouble(&mut self) {
        let next = self.rng.random_range(50_000..2_000_000);
        self.after(next, Event::Trouble);
        if self.calm() {
            (self.delay, self.agree_delay, self.flush_delay) = (1000, 2000, [1000; BROKERS]);
            self.cuts = Default::default();
            (0..BROKERS).for_each(|id| self.brokers[id].paused_until = 0);
            return (0..BROKERS).for_each(|id| self.start_broker(id));
        }
        if self.now < self.quiet_until {
            return;
        }
        let delays = [500, 5_000, 30_000, 300_000];
        self.delay = delays[self.rng.random_range(0..4)];
        self.agree_delay = delays[self.rng.random_range(0..4)];
        for id in 0..BROKERS {
            self.flush_delay[id] = delays[self.rng.random_range(0..4)];
        }
        let any = self.rng.random_range(0..BROKERS);
        let master = self.brokers.iter().position(|broker| broker.up && broker.leads > 0);
        let broker = master.filter(|_| self.rng.random_bool(0.5)).unwrap_or(any);
        self.trace.note(self.now, format!("trouble for {broker}"));
        if self.apart && self.chance(50) {
            self.agree_delay = 300_000;
        }
        if self.apart && self.chance(60) {
            return self.part(broker);
        }
        match self.rng.random_range(0..21) {
            0..=7 => self.cut(broker),
            8..=9 => self.crash(broker, false),
            10..=12 => self.crash(broker, true),
            13..=14 => (0..BROKERS).for_each(|id| self.crash(id, true)),
            15 => (0..BROKERS).filter(|id| *id != broker).for_each(|id| self.crash(id, true)),
            19 => self.lose_disk(broker),
            16..=18 => {
                self.brokers[broker].paused_until = self.now + self.rng.random_range(200_000..6_000_000)
            }
            _ => {}
        }
    }

    /// There is a master, everybody hears everybody, nobody stands still.
    pub(crate) fn is_well(&self) -> bool {
        let is_up = |broker: &Broker| broker.up && broker.paused_until <= self.now;
        let all_up = self.brokers.iter().all(is_up) && self.cuts.iter().flatten().all(|cut| *cut == 0);
        all_up && self.answering().len() == 1
    }

    /// A broker and the controllers do not hear one another for about as long as it takes to elect around it; its slaves follow.
    fn part(&mut self, broker: usize) {
        let own = CONTROLLERS + broker;
        let links: Vec<_> = (0..CONTROLLERS).flat_map(|id| [(id, own), (own, id)]).collect();
        links.iter().for_each(|(from, to)| self.cuts[*from][*to] += 1);
        let ends = self.rng.random_range(1_000_000..2_500_000);
        self.after(ends, Event::Heal(links));
    }

    /// Nothing goes between some nodes, in one direction or both, for about as long as it takes to elect around that.
    fn cut(&mut self, broker: usize) {
        let own = CONTROLLERS + broker;
        let others: Vec<usize> = match self.rng.random_range(0..4) {
            0 => (0..CONTROLLERS).collect(),
            1 => (CONTROLLERS..CONTROLLERS + BROKERS).filter(|id| *id != own).collect(),
            2 => vec![CONTROLLERS + (broker + 1) % BROKERS],
            _ => (0..CONTROLLERS + BROKERS).filter(|id| *id != own).collect(),
        };
        let ways = self.rng.random_range(1..=3);
        let mut links = Vec::new();
        for other in others {
            links.extend((ways & 1 > 0).then_some((own, other)));
            links.extend((ways & 2 > 0).then_some((other, own)));
        }
        links.iter().for_each(|(from, to)| self.cuts[*from][*to] += 1);
        let ends = self.rng.random_range(300_000..4_000_000);
        self.after(ends, Event::Heal(links));
    }
}
