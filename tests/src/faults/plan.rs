//! Which fault comes next: from the seed alone. Every kind comes once before one comes again.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};

use super::servers::SETS;

/// No fault is begun when less is left.
pub(super) const SHORTEST: Duration = Duration::from_secs(5);
/// Between the end of a fault and the next, at least.
pub(super) const REST: Duration = Duration::from_secs(3);

macro_rules! kinds {
    ($($kind:ident $name:literal $says:literal)*) => {
        /// What is done; `docs/reliability.md` says it at length.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Kind {
            $(#[doc = $says] $kind,)*
        }

        impl Kind {
            /// All of them.
            pub const ALL: &[Kind] = &[$(Kind::$kind),*];

            /// The name it has in the test plan, and what it is.
            pub fn names(self) -> (&'static str, &'static str) {
                match self {
                    $(Kind::$kind => ($name, $says),)*
                }
            }
        }
    };
}

kinds! {
    Kill "F1" "SIGKILL, and a start after 0.2 to 8 s"
    Pause "F2" "SIGSTOP for 1 to 10 s, then SIGCONT"
    Partition "F3" "no packets between some and others for 5 to 12 s"
    OneWay "F4" "no packets in one direction for 5 to 12 s"
    Flap "F5" "a second without packets, a second with them, eight times"
    Loss "F6" "1, 5 or 20 % of the packets are lost for 10 s"
    Bandwidth "F7" "1 or 10 Mbit/s from the master for 10 s"
    Latency "F8" "20, 100 or 500 ms more to the ports of a master for 10 s, or no answer at all"
    Reset "F9" "all connections are reset"
    PowerCut "F10" "what was not flushed is gone"
    DiskError "F11" "every write and flush of a live process fails"
    DiskFull "F12" "no room on the disk for 8 s"
    FlushError "F13" "a flush of a live process fails once, and what was written is lost"
    Hang "F15" "the disk answers nothing for 5 s"
    SlowDisk "F16" "the disk answers for a tenth of the time for 20 s"
    Flip "F17" "one bit of a file is another"
    TornTail "F18" "the last bytes of the log are zeros or garbage after a kill"
    LostFile "F19" "cursor, snapshots or index files are gone"
    Clock "F20" "a clock is an hour ahead or behind for 10 s, or goes too fast"
    Twin "F21" "a second process on the same store"
    Impostor "F22" "a second broker with the same name and id"
    Rolling "F25" "SIGTERM and a start, one after the other, of a whole role"
    NoNamesrvs "F27" "no namesrv runs for 15 s"
}

impl fmt::Display for Kind {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(self.names().0)
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let kind = Kind::ALL.iter().find(|kind| kind.names().0 == text);
        kind.copied().ok_or_else(|| {
            let all: Vec<_> = Kind::ALL.iter().map(ToString::to_string).collect();
            format!("{text:?} is no fault; there are {}", all.join(", "))
        })
    }
}

/// One fault.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fault {
    pub(super) kind: Kind,
    /// The index of a broker set.
    pub(super) set: usize,
    /// Which form of it.
    pub(super) form: usize,
    /// Between 0 and 1: how long, or how much.
    pub(super) share: f64,
}

impl Fault {
    /// Between the two.
    pub(super) fn time(&self, from_ms: u64, to_ms: u64) -> Duration {
        Duration::from_millis(from_ms) + Duration::from_millis(to_ms - from_ms).mul_f64(self.share)
    }
}

/// See the module's comment.
#[derive(Debug)]
pub(super) struct Plan {
    random: StdRng,
    kinds: Vec<Kind>,
    coming: VecDeque<Kind>,
    /// How often each kind came, so that all its forms do.
    turns: Vec<usize>,
}

impl Plan {
    pub(super) fn new(seed: u64, kinds: &[Kind]) -> Self {
        let kinds = if kinds.is_empty() { Kind::ALL.to_vec() } else { kinds.to_vec() };
        let mut random = StdRng::seed_from_u64(seed);
        let turns = Kind::ALL.iter().map(|_| random.random_range(0..12)).collect();
        Self { random, kinds, coming: VecDeque::new(), turns }
    }

    pub(super) fn next(&mut self) -> Fault {
        if self.coming.is_empty() {
            self.kinds.shuffle(&mut self.random);
            self.coming.extend(&self.kinds);
        }
        let kind = self.coming.pop_front().expect("there are kinds");
        let turn = &mut self.turns[kind as usize];
        *turn += 1;
        let form = *turn;
        Fault { kind, set: self.random.random_range(0..SETS.len()), form, share: self.random.random() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_says_what_comes_and_every_kind_comes() {
        let list = |seed| {
            let mut plan = Plan::new(seed, &[]);
            (0..2 * Kind::ALL.len()).map(|_| format!("{:?}", plan.next())).collect::<Vec<_>>()
        };
        assert_eq!(list(7), list(7));
        assert_ne!(list(7), list(8));
        let mut plan = Plan::new(1, &[]);
        let mut first: Vec<_> = (0..Kind::ALL.len()).map(|_| plan.next().kind).collect();
        first.sort_unstable();
        assert_eq!(first, Kind::ALL);
        assert!("F99".parse::<Kind>().unwrap_err().contains("F1, F2"));
    }
}
