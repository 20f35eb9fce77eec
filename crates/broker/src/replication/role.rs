//! What a broker makes of what controllers say, and a master of what a slave says of its log: pure, the time is an argument.
//! Used by the tasks that keep the streams ([`super::attend`], [`super::master`]) and the one that changes roles.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Renewals of a slave are not answered.
const SENT_MAX: usize = 64;

/// The renewals that were sent on a stream, until they are answered.
#[derive(Debug, Default)]
pub struct Renewals {
    number: u64,
    /// In which epoch, and when.
    sent: BTreeMap<u64, (u32, Instant)>,
}

impl Renewals {
    /// One is sent by the master of `epoch`, 0 for a slave, not before `now`: a lease is never longer than it should be.
    pub fn next(&mut self, epoch: u32, now: Instant) -> u64 {
        self.number += 1;
        self.sent.insert(self.number, (epoch, now));
        if self.sent.len() > SENT_MAX {
            self.sent.pop_first();
        }
        self.number
    }

    /// A master has asked, and is not granted anything for longer than this.
    pub fn are_ignored(&self, now: Instant, silence_max: Duration) -> bool {
        let mut asked = self.sent.values().filter(|(epoch, _)| *epoch > 0);
        asked.next().is_some_and(|(_, sent)| now.saturating_duration_since(*sent) > silence_max)
    }

    /// One is granted: in which epoch, and until when. It counts from when it was sent, however late this comes.
    pub fn granted(&mut self, number: u64, usable: Duration) -> Option<(u32, Instant)> {
        let sent = self.sent.remove(&number);
        self.sent.retain(|earlier, _| *earlier > number);
        sent.map(|(epoch, sent)| (epoch, sent + usable))
    }
}

/// Whether the state of a set, as epoch and version, is older than what is known: of a controller that was deposed.
pub fn is_old(known: (u32, u64), state: (u32, u64)) -> bool {
    known > state
}

/// What a broker has to do about a state of its set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It is what it should be.
    Stay,
    /// A slave becomes the master.
    Lead,
    /// A master becomes a slave, and then the master of another epoch if `then_lead`.
    Follow {
        /// It was elected again.
        then_lead: bool,
    },
}

/// `leads`: the epoch in which it is the master, or 0; `elected`: it is the master of `epoch`.
pub fn turn(leads: u32, elected: bool, epoch: u32) -> Turn {
    match leads {
        0 if elected => Turn::Lead,
        leads if leads > 0 && !(elected && epoch == leads) => Turn::Follow { then_lead: elected },
        _ => Turn::Stay,
    }
}

/// Whether who is elected may begin `epoch`, with a log that ends in `log_epoch`. If that is this epoch, it was the master of it before it
/// was started anew, and does not know what it wrote last: slaves may have what it has lost. If it is less than the `least`
/// with which it counts, the log is another one than that for which it was elected: on a new disk.
pub fn may_begin(log_epoch: u32, epoch: u32, least: u32) -> bool {
    log_epoch < epoch && log_epoch >= least
}

/// What a slave has to do before it can follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstStep {
    /// Nothing.
    Follow,
    /// It takes back what lies behind.
    Cut(u64),
    /// It begins with a copy.
    Copy,
}

/// Of a slave whose log ends at `end` in epoch `theirs`, and is that of its master, which is at epoch `own`, up to `common`. `None`: it
/// has followed a later master.
pub fn first_step(own: u32, theirs: u32, common: Option<u64>, end: u64) -> Option<FirstStep> {
    (theirs <= own).then_some(match common {
        None => FirstStep::Copy,
        Some(common) if common < end => FirstStep::Cut(common),
        Some(_) => FirstStep::Follow,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_counts_from_when_its_renewal_was_sent() {
        let (start, usable) = (Instant::now(), Duration::from_millis(1000));
        let at = |ms| start + Duration::from_millis(ms);
        let mut renewals = Renewals::default();
        let (first, second, third) =
            (renewals.next(5, at(0)), renewals.next(5, at(250)), renewals.next(6, at(500)));
        assert!(!renewals.are_ignored(at(1000), usable) && renewals.are_ignored(at(1001), usable));
        assert_eq!(renewals.granted(second, usable), Some((5, at(1250))));
        assert_eq!(renewals.granted(first, usable), None, "a later one was granted");
        assert!(!renewals.are_ignored(at(1500), usable));
        assert_eq!(renewals.granted(third, usable), Some((6, at(1500))));
        assert_eq!(renewals.granted(third, usable), None);
        for _ in 0..2 * SENT_MAX {
            renewals.next(0, at(600));
        }
        assert!(
            renewals.sent.len() <= SENT_MAX && !renewals.are_ignored(at(9000), usable),
            "a slave asks nothing"
        );
    }

    #[test]
    fn a_master_is_that_of_one_epoch() {
        let then_lead = true;
        for (leads, elected, epoch, expected) in [
            (0, false, 5, Turn::Stay),
            (0, true, 5, Turn::Lead),
            (5, true, 5, Turn::Stay),
            (5, true, 6, Turn::Follow { then_lead }),
            (5, false, 6, Turn::Follow { then_lead: false }),
        ] {
            assert_eq!(turn(leads, elected, epoch), expected);
        }
        assert!(may_begin(4, 5, 4) && !may_begin(5, 5, 4) && !may_begin(5, 5, 5) && !may_begin(6, 5, 4));
        assert!(may_begin(0, 1, 0), "a new set");
        assert!(!may_begin(0, 5, 4) && !may_begin(0, 5, 5), "on a new disk");
    }
}
