//! The nonces of operators' calls that were taken: none is taken twice. Owned by [`super::Auth`], under a lock that is held for a look-up;
//! no clock of its own.
//!
//! A nonce is remembered for as long as the time counts that was signed with it, and its bucket is the minute of that time. Only
//! nonces of calls whose signature was right come here. What would be one too many is refused: to forget one earlier would let the
//! call be sent again. No user has more than a part of the room, so that nobody keeps the other operators out.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::operator::SKEW_MAX_MS;

/// Nonces that are remembered, of all users: some 10 MB. Clocks that agree give them back after five minutes.
pub(super) const NONCES_MAX: usize = 262_144;
/// Of those, of one user.
pub(super) const NONCES_OF_USER_MAX: usize = NONCES_MAX / 4;

const MINUTE_MS: u64 = 60_000;

/// Why a call is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error(
        "a call with this x-karman-nonce was taken already: one that was recorded cannot be sent again; sign each call anew"
    )]
    Known,
    #[error(
        "the clock of this node has gone back: what was signed then may have been taken already; sign it anew"
    )]
    Forgotten,
    #[error(
        "this user has made {NONCES_OF_USER_MAX} signed operator's calls in the last minutes and the node remembers no more of them; call again in some minutes, or less often"
    )]
    TooManyOfUser,
    #[error(
        "the node remembers the {NONCES_MAX} signed operator's calls of the last minutes and has no room for another; call again in some minutes, or with the cluster's secret"
    )]
    TooMany,
}

/// Of one user, by the minute of the time that was signed.
type ByMinute = BTreeMap<u64, HashSet<u128>>;

/// See the module's comment.
#[derive(Debug, Default)]
pub(super) struct Nonces {
    users: HashMap<String, ByMinute>,
    held: usize,
    /// Earlier minutes are forgotten; what was signed in them is not taken, whatever the clock says now.
    kept_from: u64,
}

impl Nonces {
    /// Takes a call of `user`, signed at `signed_ms`, of which somebody has seen that this is just now, and remembers it.
    pub(super) fn take(
        &mut self,
        user: &str,
        nonce: u128,
        signed_ms: u64,
        now_ms: u64,
    ) -> Result<(), Refused> {
        self.forget(now_ms);
        let minute = signed_ms / MINUTE_MS;
        if minute < self.kept_from {
            return Err(Refused::Forgotten);
        }
        if let Some(known) = self.users.get(user) {
            if known.get(&minute).is_some_and(|known| known.contains(&nonce)) {
                return Err(Refused::Known);
            }
            if known.values().map(HashSet::len).sum::<usize>() >= NONCES_OF_USER_MAX {
                return Err(Refused::TooManyOfUser);
            }
        }
        if self.held >= NONCES_MAX {
            return Err(Refused::TooMany);
        }
        self.users.entry(user.to_owned()).or_default().entry(minute).or_default().insert(nonce);
        self.held += 1;
        Ok(())
    }

    /// Drops what was signed too long ago to be taken.
    fn forget(&mut self, now_ms: u64) {
        let kept_from = now_ms.saturating_sub(SKEW_MAX_MS) / MINUTE_MS;
        if kept_from <= self.kept_from {
            return;
        }
        self.kept_from = kept_from;
        self.users.retain(|_, minutes| {
            *minutes = minutes.split_off(&kept_from);
            !minutes.is_empty()
        });
        self.held = self.users.values().flat_map(BTreeMap::values).map(HashSet::len).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: u64 = 1_800_000_000_000;

    #[test]
    fn a_nonce_is_taken_once_for_as_long_as_its_time_counts() {
        let mut nonces = Nonces::default();
        for signed_ms in [NOW_MS - SKEW_MAX_MS, NOW_MS, NOW_MS + SKEW_MAX_MS] {
            assert_eq!(nonces.take("root", 1, signed_ms, NOW_MS), Ok(()));
            for later_ms in (0..=2 * SKEW_MAX_MS).step_by(1000) {
                let now_ms = NOW_MS + later_ms;
                if signed_ms.abs_diff(now_ms) <= SKEW_MAX_MS {
                    let mut same = Nonces { users: nonces.users.clone(), ..nonces };
                    assert_eq!(same.take("root", 1, signed_ms, now_ms), Err(Refused::Known), "{later_ms}");
                }
            }
        }
        assert_eq!(nonces.take("ann", 1, NOW_MS, NOW_MS), Ok(()), "of another user");
    }

    #[test]
    fn what_is_too_old_to_be_taken_gives_its_room_back() {
        let mut nonces = Nonces::default();
        for nonce in 0..100 {
            nonces.take("root", nonce, NOW_MS, NOW_MS).expect("room");
        }
        let later_ms = NOW_MS + SKEW_MAX_MS + MINUTE_MS;
        nonces.take("ann", 1, later_ms, later_ms).expect("room");
        assert_eq!((nonces.held, nonces.users.len()), (1, 1));
        // A clock that goes back makes nothing new that was forgotten.
        assert_eq!(nonces.take("root", 1, NOW_MS, NOW_MS), Err(Refused::Forgotten));
    }

    #[test]
    fn where_no_more_can_be_remembered_calls_are_refused_and_one_user_fills_a_part() {
        let mut nonces = Nonces::default();
        for user in ["a", "b", "c", "d"] {
            for nonce in 0..NONCES_OF_USER_MAX as u128 {
                nonces.take(user, nonce, NOW_MS, NOW_MS).expect("room");
            }
            let one_more = nonces.take(user, u128::MAX, NOW_MS, NOW_MS);
            assert_eq!(one_more, Err(Refused::TooManyOfUser));
            assert_eq!(nonces.take(user, 0, NOW_MS, NOW_MS), Err(Refused::Known), "nothing was forgotten");
        }
        assert_eq!(nonces.take("root", 0, NOW_MS, NOW_MS), Err(Refused::TooMany));
    }
}
