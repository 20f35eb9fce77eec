//! When a master is to be replaced, and by whom: what the leading controller knows beside the state that all agree on. Pure:
//! the time is an argument, and an election comes back as a command. Owned by `lead.rs`, behind its lock; forgotten when
//! leadership is.
//!
//! **Two masters of a set never acknowledge at the same time.** A master acknowledges until `lease`, less the drift that is
//! allowed its clock, after it *sent* the last renewal that was granted. A renewal is granted only by a controller that was the leader
//! after the renewal came (a quorum said so) and has followed all that was agreed before, only to the master of the epoch, and not while
//! the election of another is under way. The leader elects somebody else when more than `lease`, and the drift allowed its own clock, has
//! passed since it granted the last one, which was later than it was sent; or when the master said that it acknowledges nothing any more. A new
//! leader does not know what its predecessor granted; but nothing that was sent after it was elected was granted by another, for the quorum
//! that elected it would not have confirmed the other. So it waits for as long from then. What a leader decided counts in its own term
//! only. Clocks are monotonic; setting them changes nothing.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use super::sets::{BrokerSet, Command, Sets};

/// Two clocks may differ by this part of the time that passes; real ones do by a thousandth of that.
pub const DRIFT_PERCENT: u32 = 5;
/// A set without a history waits for its members for so long, and begins with the most complete of them.
pub const GATHER: Duration = Duration::from_secs(3);
/// A master that is there has so long to begin, or to go on, as one.
pub const TAKE_OVER: Duration = Duration::from_secs(5);

/// How long after it sent a renewal a master may acknowledge.
pub fn usable(lease: Duration) -> Duration {
    lease * (100 - DRIFT_PERCENT) / 100
}

/// How long after it granted one the leader must not elect another.
fn blocked(lease: Duration) -> Duration {
    lease * (100 + DRIFT_PERCENT) / 100
}

/// What a member says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Last epoch in its log.
    pub epoch: u32,
    /// Where that ends.
    pub end: u64,
    /// The epoch in which it is the master; 0: it is not.
    pub master_of: u32,
}

#[derive(Clone, Copy, Debug)]
struct Heard {
    at: Duration,
    report: Report,
}

#[derive(Clone, Copy, Debug)]
struct Resigned {
    epoch: u32,
    at: Duration,
    to: Option<i32>,
}

/// See the module's comment.
#[derive(Debug)]
pub struct Leases {
    term: u64,
    lease: Duration,
    /// `enableElectUncleanMaster`
    unclean: bool,
    /// When this controller began to lead.
    since: Duration,
    /// When the master of a set, in an epoch, was last granted its lease.
    granted: BTreeMap<String, (u32, Duration)>,
    heard: BTreeMap<(String, i32), Heard>,
    /// Since when members of a set are heard of.
    gathering: BTreeMap<String, Duration>,
    /// When the epoch of a set was first seen.
    begun: BTreeMap<String, (u32, Duration)>,
    /// Masters that have stopped acknowledging.
    resigned: BTreeMap<String, Resigned>,
    /// The epochs that elections under way end: what is granted now could outlive them.
    under_way: BTreeMap<String, u32>,
    /// Whom an operator would have as the next master, after which epoch.
    wished: BTreeMap<String, (u32, i32)>,
}

impl Leases {
    /// Of a controller that was elected for `term` before `now`.
    pub fn new(term: u64, lease: Duration, unclean: bool, now: Duration) -> Self {
        Self {
            term,
            lease,
            unclean,
            since: now,
            granted: BTreeMap::new(),
            heard: BTreeMap::new(),
            gathering: BTreeMap::new(),
            begun: BTreeMap::new(),
            resigned: BTreeMap::new(),
            under_way: BTreeMap::new(),
            wished: BTreeMap::new(),
        }
    }

    /// In which it leads.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// A member is alive.
    pub fn hear(&mut self, set: &str, id: i32, report: Report, now: Duration) {
        let mut of_set = self.heard.range((set.to_owned(), i32::MIN)..=(set.to_owned(), i32::MAX));
        if !of_set.any(|(_, heard)| now.saturating_sub(heard.at) <= self.lease) {
            self.gathering.insert(set.to_owned(), now);
        }
        self.heard.insert((set.to_owned(), id), Heard { at: now, report });
    }

    /// Whether the renewal of `id` in `epoch` may be granted. The caller has confirmed that it still leads, after the
    /// renewal came; `sets` are as of then or later.
    pub fn grant(&mut self, sets: &Sets, set: &str, id: i32, epoch: u32, now: Duration) -> bool {
        let may = is_master(sets, set, id, epoch)
            && !self.has_resigned(set, epoch)
            && self.under_way.get(set) != Some(&epoch);
        if may {
            self.granted.insert(set.to_owned(), (epoch, now));
        }
        may
    }

    /// The master of `epoch` acknowledges nothing any more, whatever becomes of its lease; `to`: whom it would have next.
    /// `false`: it is not that.
    pub fn resign(
        &mut self,
        sets: &Sets,
        set: &str,
        id: i32,
        epoch: u32,
        to: Option<i32>,
        now: Duration,
    ) -> bool {
        let may = is_master(sets, set, id, epoch);
        if may && !self.has_resigned(set, epoch) {
            self.resigned.insert(set.to_owned(), Resigned { epoch, at: now, to });
        }
        may
    }

    /// An operator would have `to` as the master that follows the one of `epoch`, if it can be.
    pub fn wish(&mut self, set: &str, epoch: u32, to: i32) {
        self.wished.insert(set.to_owned(), (epoch, to));
    }

    /// Whether a member was heard of lately.
    pub fn is_alive(&self, set: &str, id: i32, now: Duration) -> bool {
        let heard = self.heard.get(&(set.to_owned(), id));
        heard.is_some_and(|heard| now.saturating_sub(heard.at) <= self.lease)
    }

    /// Whether a member said lately that it is the master of that epoch, and has not resigned.
    pub fn is_serving(&self, set: &str, id: i32, epoch: u32, now: Duration) -> bool {
        let claims = self.report(set, id).is_some_and(|report| report.master_of == epoch);
        claims && self.is_alive(set, id, now) && !self.has_resigned(set, epoch)
    }

    /// What a member said last.
    pub fn report(&self, set: &str, id: i32) -> Option<Report> {
        self.heard.get(&(set.to_owned(), id)).map(|heard| heard.report)
    }

    /// Who is to be elected now. `at_ms`: milliseconds since 1970, for people. Until [`Leases::not_elected`] says that
    /// nothing came of one, nothing is granted in the epoch that it ends.
    pub fn elections(&mut self, sets: &Sets, now: Duration, at_ms: u64) -> Vec<Command> {
        self.heard.retain(|(set, id), _| sets.get(set).is_some_and(|set| set.members.contains_key(id)));
        self.gathering.retain(|set, _| sets.get(set).is_some());
        // A set that is made anew begins with the epochs of one that was.
        let is_epoch_of = |set: &str, epoch: u32| sets.get(set).is_some_and(|set| set.epoch == epoch);
        self.under_way.retain(|set, epoch| is_epoch_of(set, *epoch));
        self.resigned.retain(|set, resigned| is_epoch_of(set, resigned.epoch));
        let mut due = Vec::new();
        for (name, set) in &sets.0 {
            if self.begun.get(name).is_none_or(|(epoch, _)| *epoch != set.epoch) {
                self.begun.insert(name.clone(), (set.epoch, now));
            }
            if self.under_way.get(name) == Some(&set.epoch) {
                continue;
            }
            let Some(reason) = self.reason(name, set, now) else { continue };
            let Some((master, unclean)) = self.best(name, set, now) else { continue };
            self.under_way.insert(name.clone(), set.epoch);
            let (set, epoch, term) = (name.clone(), set.epoch, self.term);
            let log_epoch = self.report(&set, master).unwrap_or_default().epoch;
            due.push(Command::Elect { set, epoch, term, master, unclean, log_epoch, at_ms, reason });
        }
        due
    }

    /// The election that was to end `epoch`, decided in `term`, was refused.
    pub fn not_elected(&mut self, set: &str, epoch: u32, term: u64) {
        if self.term == term && self.under_way.get(set) == Some(&epoch) {
            self.under_way.remove(set);
        }
    }

    fn has_resigned(&self, set: &str, epoch: u32) -> bool {
        self.resigned.get(set).is_some_and(|resigned| resigned.epoch == epoch)
    }

    /// Why the set needs a master; `None`: it has one, or may have.
    fn reason(&self, name: &str, set: &BrokerSet, now: Duration) -> Option<String> {
        let Some(master) = set.master else {
            let since = self.gathering.get(name)?;
            return (now.saturating_sub(*since) > GATHER).then(|| "it has no master yet".to_owned());
        };
        if self.has_resigned(name, set.epoch) {
            return Some(format!("master {master} has handed over"));
        }
        let granted = self.granted.get(name).filter(|(epoch, _)| *epoch == set.epoch);
        let last = granted.map_or(self.since, |(_, at)| *at);
        let silent = now.saturating_sub(last);
        if silent <= blocked(self.lease) || self.is_serving(name, master, set.epoch, now) {
            return None;
        }
        if !self.is_alive(name, master, now) {
            return Some(format!("master {master} was silent for {} ms", silent.as_millis()));
        }
        let begun = self.begun.get(name).map_or(now, |(_, at)| *at);
        let idle = now.saturating_sub(last.max(begun));
        let ms = idle.as_millis();
        (idle > TAKE_OVER).then(|| format!("broker {master} is there, but was not its master for {ms} ms"))
    }

    /// The most complete of the living that have everything, who are not to be stopped if there are such; and whether it may
    /// lack something (`true`).
    fn best(&self, name: &str, set: &BrokerSet, now: Duration) -> Option<(i32, bool)> {
        let living = || set.members.keys().copied().filter(|id| self.is_alive(name, *id, now));
        let report = |id: &i32| self.report(name, *id).unwrap_or_default();
        let has_its_log = |id: &i32| report(id).epoch >= set.log_epoch;
        let counts = |id: &i32| set.in_sync.contains(id) && has_its_log(id);
        let others = living().filter(|id| counts(id) && set.master != Some(*id));
        let others: Vec<_> = others.collect();
        let resigned = self.resigned.get(name).filter(|resigned| resigned.epoch == set.epoch);
        let wished = self.wished.get(name).filter(|(epoch, _)| *epoch == set.epoch).map(|(_, to)| *to);
        let wished = wished.or_else(|| resigned.and_then(|resigned| resigned.to));
        if let Some(wished) = wished.filter(|wished| others.contains(wished)) {
            return Some((wished, false));
        }
        let complete = |id: &i32| {
            let Report { epoch, end, .. } = report(id);
            let priority = set.members.get(id).map_or(i32::MAX, |member| member.priority);
            ((epoch, end), Reverse(priority), Reverse(*id))
        };
        // All of these have what was acknowledged.
        let rank = |id: &i32| (!set.drained.contains(id), complete(id));
        if let Some(best) = others.into_iter().max_by_key(rank) {
            return Some((best, false));
        }
        if let Some(master) =
            set.master.filter(|master| self.is_alive(name, *master, now) && has_its_log(master))
        {
            // Nobody could follow it: it has everything, and goes on in an epoch of its own.
            let waited = resigned.is_none_or(|resigned| now.saturating_sub(resigned.at) > self.lease);
            return waited.then_some((master, false));
        }
        let may_lose = set.master.is_none() || self.unclean;
        may_lose.then(|| living().max_by_key(complete)).flatten().map(|best| (best, true))
    }
}

fn is_master(sets: &Sets, set: &str, id: i32, epoch: u32) -> bool {
    sets.get(set).is_some_and(|own| own.master == Some(id) && own.epoch == epoch)
}

#[cfg(test)]
mod tests;
