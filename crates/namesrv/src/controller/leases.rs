//! When a master is to be replaced, and by whom: what the leading controller knows beside the state that all agree on. Pure:
//! the time is an argument, and an election comes back as a command. Forgotten when leadership is.
//!
//! **Two masters of a set never acknowledge at the same time.** A master acknowledges until `lease`, less the drift that is
//! allowed its clock, after it *sent* the last renewal that was granted. A renewal is granted only by a controller that was the leader
//! after the renewal came (a quorum said so), and only to the master of the epoch. The leader elects somebody else when more than `lease`,
//! and the drift allowed its own clock, has passed since it granted the last one, which was later than it was sent. A new
//! leader does not know what its predecessor granted; but nothing was granted after it was elected, for the quorum that elected it
//! would not have confirmed the other. So it waits for as long from then. Clocks are monotonic; setting them changes nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use super::sets::{BrokerSet, Command, Sets};

/// Two clocks may differ by this part of the time that passes; real ones do by a thousandth of that.
pub const DRIFT_PERCENT: u32 = 5;
/// A set without a history waits for its members for so long, and begins with the most complete of them.
pub const GATHER: Duration = Duration::from_secs(3);

/// How long after it sent a renewal a master may acknowledge.
pub fn usable(lease: Duration) -> Duration {
    lease * (100 - DRIFT_PERCENT) / 100
}

/// How long after it granted one the leader must not elect another.
fn blocked(lease: Duration) -> Duration {
    lease * (100 + DRIFT_PERCENT) / 100
}

/// What a member says of its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Last epoch in it.
    pub epoch: u32,
    /// Where it ends.
    pub end: u64,
}

#[derive(Clone, Copy, Debug)]
struct Heard {
    at: Duration,
    report: Report,
}

/// See the module's comment.
#[derive(Debug)]
pub struct Leases {
    lease: Duration,
    /// When this controller began to lead.
    since: Duration,
    /// When the master of a set, in an epoch, was last granted its lease.
    granted: BTreeMap<String, (u32, Duration)>,
    heard: BTreeMap<(String, i32), Heard>,
    /// Masters that have stopped acknowledging, by their epoch, and whom they would have as successor.
    resigned: BTreeMap<String, (u32, Option<i32>)>,
    first_heard: BTreeMap<String, Duration>,
    /// `enableElectUncleanMaster`
    unclean: bool,
}

impl Leases {
    /// Of a controller that leads since `now`.
    pub fn new(lease: Duration, unclean: bool, now: Duration) -> Self {
        Self {
            lease,
            since: now,
            granted: BTreeMap::new(),
            heard: BTreeMap::new(),
            resigned: BTreeMap::new(),
            first_heard: BTreeMap::new(),
            unclean,
        }
    }

    /// A member is alive.
    pub fn hear(&mut self, set: &str, id: i32, report: Report, now: Duration) {
        self.heard.insert((set.to_owned(), id), Heard { at: now, report });
        self.first_heard.entry(set.to_owned()).or_insert(now);
    }

    /// Whether the renewal of `id` in `epoch` may be granted. The caller has confirmed that it still leads, after the
    /// renewal came.
    pub fn grant(&mut self, sets: &Sets, set: &str, id: i32, epoch: u32, now: Duration) -> bool {
        let is_master = sets.get(set).is_some_and(|own| own.master == Some(id) && own.epoch == epoch);
        let resigned = self.resigned.get(set).is_some_and(|(of, _)| *of == epoch);
        if is_master && !resigned {
            self.granted.insert(set.to_owned(), (epoch, now));
        }
        is_master && !resigned
    }

    /// The master of `epoch` acknowledges nothing any more, whatever becomes of its lease; `to`: whom it would have next.
    pub fn resign(&mut self, set: &str, epoch: u32, to: Option<i32>) {
        self.resigned.insert(set.to_owned(), (epoch, to));
    }

    /// Whether a member was heard of lately.
    pub fn is_alive(&self, set: &str, id: i32, now: Duration) -> bool {
        let heard = self.heard.get(&(set.to_owned(), id));
        heard.is_some_and(|heard| now.saturating_sub(heard.at) <= self.lease)
    }

    /// What a member said last.
    pub fn report(&self, set: &str, id: i32) -> Option<Report> {
        self.heard.get(&(set.to_owned(), id)).map(|heard| heard.report)
    }

    /// Who is to be elected now. `at_ms`: milliseconds since 1970, for people.
    pub fn elections(&self, sets: &Sets, now: Duration, at_ms: u64) -> Vec<Command> {
        let due = sets.0.iter().filter_map(|(name, set)| self.election(name, set, now));
        let command = |(set, epoch, master, unclean, reason)| Command::Elect {
            set,
            epoch,
            master,
            unclean,
            at_ms,
            reason,
        };
        due.map(command).collect()
    }

    fn election(
        &self,
        name: &str,
        set: &BrokerSet,
        now: Duration,
    ) -> Option<(String, u32, i32, bool, String)> {
        let resigned = self.resigned.get(name).filter(|(epoch, _)| *epoch == set.epoch);
        let reason = match (set.master, resigned) {
            (None, _) => {
                let since = self.first_heard.get(name)?;
                (now.saturating_sub(*since) > GATHER).then(|| "it has no master yet".to_owned())?
            }
            (Some(master), Some(_)) => format!("master {master} has handed over"),
            (Some(master), None) => {
                let granted = self.granted.get(name).filter(|(epoch, _)| *epoch == set.epoch);
                let last = granted.map_or(self.since, |(_, at)| *at);
                if now.saturating_sub(last) <= blocked(self.lease) || self.is_alive(name, master, now) {
                    return None;
                }
                format!("master {master} was silent for {} ms", now.saturating_sub(last).as_millis())
            }
        };
        let wished = resigned.and_then(|(_, to)| *to);
        let (master, unclean) = self.best(name, set, wished, now)?;
        Some((name.to_owned(), set.epoch, master, unclean, reason))
    }

    /// The most complete of the living that have everything.
    fn best(&self, name: &str, set: &BrokerSet, wished: Option<i32>, now: Duration) -> Option<(i32, bool)> {
        let living = || set.members.keys().copied().filter(|id| self.is_alive(name, *id, now));
        // One that has handed over would be asked again.
        let leaves = |id: &i32| self.resigned.contains_key(name) && set.master == Some(*id);
        let in_sync: Vec<_> = living().filter(|id| set.in_sync.contains(id) && !leaves(id)).collect();
        if let Some(wished) = wished.filter(|wished| in_sync.contains(wished)) {
            return Some((wished, false));
        }
        let rank = |id: &i32| {
            let report = self.report(name, *id).map_or((0, 0), |report| (report.epoch, report.end));
            let priority = set.members.get(id).map_or(i32::MAX, |member| member.priority);
            (report, std::cmp::Reverse(priority), std::cmp::Reverse(*id))
        };
        if let Some(best) = in_sync.into_iter().max_by_key(rank) {
            return Some((best, false));
        }
        let may_lose = set.master.is_none() || self.unclean;
        may_lose.then(|| living().max_by_key(rank)).flatten().map(|best| (best, true))
    }
}
