//! What brokers do in the simulation: they renew their leases, hear grants and elections, say who has everything.

use super::*;

impl World {
    pub(super) fn renew(&mut self, id: usize) {
        let pause = self.rng.random_range(150_000..450_000);
        self.after(pause, Event::Renew(id));
        self.renew_now(id);
    }

    pub(super) fn renew_now(&mut self, id: usize) {
        let clock = self.clocks[id];
        if !self.brokers[id].up {
            return;
        }
        // It finds the leader, or one that believes it leads.
        let lost = self.controllers[self.brokers[id].asks].leases.is_none();
        if lost || self.chance(5) {
            let any = self.rng.random_range(0..CONTROLLERS);
            self.brokers[id].asks = if self.calm() || self.chance(80) { self.leader } else { any };
        }
        let resigns = !self.calm() && self.chance(1);
        let broker = &mut self.brokers[id];
        broker.resigned |= resigns && broker.master;
        let (controller, epoch, life) = (broker.asks, broker.epoch, broker.life);
        if broker.master && broker.resigned {
            self.send(id, Event::Resignation { controller, broker: id, epoch });
        }
        let broker = &mut self.brokers[id];
        broker.number += 1;
        broker.sent.insert(broker.number, clock.at(self.now));
        let (number, master_of) = (broker.number, if broker.master && !broker.resigned { epoch } else { 0 });
        self.send(id, Event::Renewal { controller, broker: id, life, number, master_of });
    }

    pub(super) fn renewal(&mut self, id: usize, (broker, life): (usize, u32), number: u64, master_of: u32) {
        let own = &mut self.controllers[id];
        let now = own.clock.at(self.now);
        let Some(leases) = &mut own.leases else { return };
        let report = Report { epoch: 0, end: number, master_of };
        leases.hear(SET, broker as i32, report, now);
        if master_of == 0 {
            return;
        }
        // The answers of the quorum are from now or later; that they have come is known later still.
        let yes = self.settled && leases.term() == self.term && id == self.leader;
        let asked = Event::Confirmed { controller: id, broker, life, number, epoch: master_of, yes };
        let takes = self.rng.random_range(0..self.agree_delay);
        self.after(takes, asked);
        if yes && self.chance(50) {
            self.sync(id, broker as i32, master_of);
        }
    }

    pub(super) fn confirmed(
        &mut self,
        id: usize,
        (broker, life): (usize, u32),
        number: u64,
        epoch: u32,
        yes: bool,
    ) {
        let own = &mut self.controllers[id];
        let now = own.clock.at(self.now);
        let Some(leases) = own.leases.as_mut().filter(|_| yes) else { return };
        if leases.grant(&own.applied, SET, broker as i32, epoch, now) {
            self.send(broker, Event::Granted { broker, life, number });
        }
    }

    /// The master names some of those that are up.
    pub(super) fn sync(&mut self, id: usize, master: i32, epoch: u32) {
        let Some(set) = self.controllers[id].applied.get(SET) else { return };
        if set.epoch != epoch || set.master != Some(master) {
            return;
        }
        let (version, known) = (set.version, set.in_sync.clone());
        let mut in_sync = BTreeSet::from([master]);
        for other in 0..BROKERS {
            if self.brokers[other].up && (self.calm() || self.chance(90)) {
                in_sync.insert(other as i32);
            }
        }
        if in_sync != known {
            let command = Command::Sync { set: SET.to_owned(), epoch, version, in_sync };
            self.propose(id, self.term, command);
        }
    }

    pub(super) fn told(&mut self, id: usize, life: u32, epoch: u32, master: Option<i32>) {
        let own = &mut self.brokers[id];
        if own.life != life || epoch <= own.epoch || master.is_none() {
            return;
        }
        own.epoch = epoch;
        own.master = master == Some(id as i32);
        // What was granted in an earlier epoch is nothing in this one.
        (own.resigned, own.until) = (false, None);
        own.sent.clear();
        if own.master {
            self.renew_now(id);
        }
    }
}
