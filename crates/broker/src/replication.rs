//! One CommitLog on several brokers: a master gives it out ([`master`]), slaves take it ([`slave`]), and which of them count
//! is decided in [`in_sync`]. The store keeps the bytes equal; everything else a broker knows follows from them.
//!
//! [`Followers`] is what the master's parts share: the service that hears acknowledgements, and sends that ask for
//! replicas. Any thread; its lock is held for one step of the pure core.

pub mod attend;
pub mod in_sync;
pub mod master;
pub mod repair;
pub mod role;
pub mod slave;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use karman_remoting::proto::karman as v1;
use karman_remoting::refused::{Came, Refusals};
use karman_remoting::status::Rejection;
use karman_store::{Durability, Store};
use parking_lot::Mutex;

use in_sync::{Demands, InSync, LogEnd, Marks};

/// The slaves of this master.
#[derive(Debug)]
pub struct Followers {
    store: Arc<Store>,
    set: Mutex<InSync>,
    demands: Demands,
    refusals: Refusals,
    started: Instant,
    next_session: AtomicU64,
}

impl Followers {
    /// Of a master with this log; `controlled`: its slaves may be here before the controllers have said who of them counts.
    pub fn new(store: Arc<Store>, demands: Demands, controlled: bool) -> Self {
        let set = InSync::new(demands, store.watermarks().written);
        let set = Mutex::new(if controlled { set.of_controllers() } else { set });
        let (refusals, started) = (Refusals::default(), Instant::now());
        Self { store, set, demands, refusals, started, next_session: AtomicU64::new(1) }
    }

    /// Refuses what asks for replicas while too few count.
    pub fn check(&self, durability: Durability) -> Result<(), Rejection> {
        if durability < Durability::Replicated {
            return Ok(());
        }
        let set = self.set.lock();
        if self.demands.replicas > 1 && set.suffices() {
            return Ok(());
        }
        Err(Rejection::TooFewReplicas { count: set.count(), needed: self.demands.replicas.max(2) })
    }

    /// Internal addresses of the slaves that have all that can be seen.
    pub fn in_sync(&self) -> Vec<String> {
        let set = self.set.lock();
        set.followers()
            .filter(|(_, follower)| follower.in_sync)
            .map(|(_, follower)| follower.address.clone())
            .collect()
    }

    /// So many must have what asks for replicas, the master included.
    pub fn needed(&self) -> usize {
        self.demands.replicas
    }

    /// A slave has connected; `Err` with the address of another one that has this id.
    fn join(&self, replica: &v1::Replica, written: u64) -> Result<u64, String> {
        let session = self.next_session.fetch_add(1, Ordering::Relaxed);
        let end = self.store.watermarks().written;
        let (id, address, now) = (replica.broker_id, &replica.address, self.started.elapsed());
        self.set.lock().join(id, session, address, written, end, now)?;
        Ok(session)
    }

    fn ack(&self, id: i32, session: u64, ack: v1::Ack) {
        let log = self.store.watermarks();
        let marks = {
            let mut set = self.set.lock();
            let counted = set.count();
            let (acked, log) = (
                Marks { written: ack.written, flushed: ack.flushed },
                LogEnd { confirmed: log.confirmed, end: log.written },
            );
            set.ack(id, session, acked, log, self.started.elapsed());
            if set.count() > counted {
                tracing::info!(broker_id = id, count = set.count(), "a slave counts");
            }
            set.marks()
        };
        if let Some(marks) = marks {
            self.store.replicated(marks.written, marks.flushed);
        }
    }

    fn leave(&self, id: i32, session: u64) {
        let mut set = self.set.lock();
        set.leave(id, session);
        tracing::warn!(broker_id = id, count = set.count(), "a slave is gone");
    }

    /// Slaves that are behind for too long do not count any more. To be called several times a second.
    pub fn expire(&self) {
        let (expired, strangers, marks) = {
            let (mut set, now) = (self.set.lock(), self.started.elapsed());
            (set.expire(now), set.strangers(now), set.marks())
        };
        for (broker_id, address) in strangers {
            tracing::warn!(
                broker_id,
                address,
                "a slave that the controllers do not know as a broker of this set: it follows and never counts; give it \
                 enableControllerMode, or stop it"
            );
        }
        for id in expired {
            tracing::warn!(broker_id = id, "a slave is too far behind to count");
        }
        if let Some(marks) = marks {
            self.store.replicated(marks.written, marks.flushed);
        }
    }

    /// What the controllers say of who counts; this master is `own`.
    pub fn control(&self, own: i32, state: &v1::SetState) {
        let marks = {
            let mut set = self.set.lock();
            set.set_members(state.members.iter().map(|member| member.broker_id).collect());
            if set.control(own, state.in_sync.iter().copied().collect(), state.version) {
                let v1::SetState { version, in_sync, .. } = state;
                tracing::info!(version, ?in_sync, "these brokers of the set count from now on");
            }
            set.marks()
        };
        if let Some(marks) = marks {
            self.store.replicated(marks.written, marks.flushed);
        }
    }

    /// What should count from now on, see [`InSync::propose`].
    pub fn propose(&self) -> Option<(u64, BTreeSet<i32>)> {
        self.set.lock().propose()
    }

    /// See [`InSync::propose_again`].
    pub fn propose_again(&self) {
        self.set.lock().propose_again();
    }

    /// For `karman cluster list` and metrics.
    pub fn status(&self) -> (Vec<v1::ReplicaStatus>, usize, usize) {
        let (end, now) = (self.store.watermarks().written, self.started.elapsed());
        let set = self.set.lock();
        let replicas = set.followers().map(|(broker_id, follower)| v1::ReplicaStatus {
            broker_id,
            address: follower.address.clone(),
            in_sync: follower.in_sync,
            lag_bytes: end.saturating_sub(follower.written),
            lag_ms: match follower.written < end {
                true => now.saturating_sub(follower.caught_up).as_millis() as u64,
                false => 0,
            },
            flushed_lag_bytes: end.saturating_sub(follower.flushed),
        });
        (replicas.collect(), set.count(), self.demands.replicas)
    }
    /// A slave is not taken, or gives up what it is sent: also told in this log, for whoever looks for the slave looks there.
    pub fn refuse(&self, came: Came, who: &str, kind: &str, why: &str) {
        if self.refusals.is_news(came, who, kind, why) {
            tracing::warn!(who, why, "a slave is refused");
        }
    }

    /// Which slaves were refused in the last seconds, and why.
    pub fn refused(&self) -> Vec<v1::RefusedBroker> {
        self.refusals.lately()
    }
}
