//! The part of the controller that leads: grants, elections, and which broker has which stream. Tasks on the controller's
//! threads; the state they share with the brokers' streams sits behind one lock that is held for one look.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use karman_remoting::channel::ChannelPool;
use karman_remoting::proto::karman::order::Order as Kind;
use karman_remoting::proto::karman::{Granted, HandOver, Order, RefusedBroker};
use karman_remoting::refused::{Came, RefusedBrokers};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::leases::{self, Leases};
use super::raft::{Consensus, NotWritten};
use super::sets::{Command, Sets};

/// How often it is looked for masters that are silent.
const TICK: Duration = Duration::from_millis(50);
/// A confirmation that takes longer is of no use to a master.
const CONFIRM_TIMEOUT: Duration = Duration::from_millis(500);

/// `brokerName` and `brokerId`.
pub(super) type Key = (String, i32);

/// A broker's stream.
#[derive(Debug)]
struct Session {
    number: u64,
    orders: mpsc::Sender<Order>,
    /// Another stream of the same broker has taken its place.
    superseded: CancellationToken,
}

/// A renewal of a master that waits for the confirmation.
#[derive(Debug)]
struct Waiting {
    session: u64,
    number: u64,
    epoch: u32,
}

#[derive(Debug, Default)]
struct State {
    /// While it leads.
    leases: Option<Leases>,
    sessions: BTreeMap<Key, Session>,
    next_session: u64,
    /// At most one of each broker: the last stands for those before it.
    waiting: BTreeMap<Key, Waiting>,
    refused: RefusedBrokers,
}

/// See the module's comment.
#[derive(Debug)]
pub(super) struct Lead {
    pub(super) consensus: Consensus,
    /// To the leader, for what operators ask.
    pub(super) relays: ChannelPool,
    /// Ends the streams of brokers.
    pub(super) stopping: CancellationToken,
    started: Instant,
    state: Mutex<State>,
    /// The term in which it leads.
    term: watch::Sender<Option<u64>>,
    /// Why the consensus has stopped.
    failed: watch::Sender<Option<String>>,
    granting: Notify,
    electing: Notify,
}

impl Lead {
    pub(super) fn new(consensus: Consensus, stopping: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            relays: ChannelPool::of_nodes(consensus.options.between.clone()),
            consensus,
            stopping,
            started: Instant::now(),
            state: Mutex::default(),
            term: watch::Sender::new(None),
            failed: watch::Sender::new(None),
            granting: Notify::new(),
            electing: Notify::new(),
        })
    }

    /// The time of [`Leases`].
    pub(super) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    pub(super) fn term(&self) -> watch::Receiver<Option<u64>> {
        self.term.subscribe()
    }

    /// Why the consensus has stopped, if it has.
    pub(super) fn failed(&self) -> Option<String> {
        self.failed.borrow().clone()
    }

    /// Looks at the leader's knowledge; `None`: it does not lead.
    pub(super) fn with<T>(&self, look: impl FnOnce(&mut Leases, &Sets, Duration) -> T) -> Option<T> {
        let mut state = self.state.lock();
        let leases = state.leases.as_mut()?;
        let sets = self.consensus.agreed.sets.lock();
        Some(look(leases, &sets, self.now()))
    }

    /// Somebody is not who it says, or may not be here.
    pub(super) fn refused(&self, came: Came, who: &str, status: &Status) {
        let why = status.message();
        let is_news = self.state.lock().refused.add(came, who, why, why, self.now());
        if is_news {
            tracing::warn!(who, why, "a broker is refused");
        }
    }

    /// Who was refused in the last seconds.
    pub(super) fn refused_lately(&self) -> Vec<RefusedBroker> {
        self.state.lock().refused.lately(self.now())
    }

    /// A stream of a broker begins; one that it had ends.
    pub(super) fn attended(&self, key: Key, orders: mpsc::Sender<Order>) -> (u64, CancellationToken) {
        let mut state = self.state.lock();
        state.next_session += 1;
        let (number, superseded) = (state.next_session, CancellationToken::new());
        let session = Session { number, orders, superseded: superseded.clone() };
        if let Some(before) = state.sessions.insert(key, session) {
            before.superseded.cancel();
        }
        (number, superseded)
    }

    /// It has ended.
    pub(super) fn left(&self, key: &Key, number: u64) {
        let mut state = self.state.lock();
        if state.sessions.get(key).is_some_and(|session| session.number == number) {
            state.sessions.remove(key);
        }
    }

    /// The renewal of a master: granted when it is confirmed that this controller leads after it came.
    pub(super) fn renew(&self, key: Key, session: u64, number: u64, epoch: u32) {
        self.state.lock().waiting.insert(key, Waiting { session, number, epoch });
        self.granting.notify_one();
    }

    /// A master has resigned.
    pub(super) fn elect_now(&self) {
        self.electing.notify_one();
    }

    /// Asks the master for its place; `false`: it is not there.
    pub(super) fn hand_over(&self, key: &Key, epoch: u32, to: Option<i32>) -> bool {
        let state = self.state.lock();
        let order = Order { order: Some(Kind::HandOver(HandOver { epoch, to })) };
        state.sessions.get(key).is_some_and(|session| session.orders.try_send(order).is_ok())
    }

    /// Follows what the consensus says of itself, until it ends.
    pub(super) async fn watch(self: Arc<Self>) {
        let mut metrics = self.consensus.raft.metrics();
        loop {
            let (leads_in, running) = {
                let metrics = metrics.borrow_and_update();
                (Consensus::leads_in(&metrics), metrics.running_state.clone())
            };
            self.leads(leads_in);
            if let Err(error) = running {
                return self.fail(error.to_string());
            }
            if metrics.changed().await.is_err() {
                return self.fail("its tasks have ended".to_owned());
            }
        }
    }

    fn fail(&self, why: String) {
        self.leads(None);
        tracing::error!(why, "the controller has stopped; the namesrv goes on without it");
        self.failed.send_replace(Some(why));
    }

    /// What an earlier leadership knew is forgotten: another may have granted since.
    fn leads(&self, term: Option<u64>) {
        let mut state = self.state.lock();
        if state.leases.as_ref().map(Leases::term) == term {
            return;
        }
        let options = &self.consensus.options;
        state.leases = term.map(|term| Leases::new(term, options.lease, options.unclean, self.now()));
        state.waiting.clear();
        match term {
            Some(term) => tracing::info!(term, "this controller leads"),
            None => tracing::info!("this controller does not lead any more"),
        }
        self.term.send_replace(term);
    }

    /// Grants what is confirmed; one confirmation serves all who wait when it begins.
    pub(super) async fn grant(self: Arc<Self>) {
        loop {
            self.granting.notified().await;
            let (term, waiting) = {
                let mut state = self.state.lock();
                (state.leases.as_ref().map(Leases::term), std::mem::take(&mut state.waiting))
            };
            if waiting.is_empty() || !self.consensus.leads_still(CONFIRM_TIMEOUT).await {
                continue;
            }
            let mut state = self.state.lock();
            let State { leases, sessions, .. } = &mut *state;
            let Some(leases) = leases.as_mut().filter(|leases| Some(leases.term()) == term) else { continue };
            let sets = self.consensus.agreed.sets.lock();
            let usable = leases::usable(self.consensus.options.lease);
            for (key, renewal) in waiting {
                let Some(session) = sessions.get(&key).filter(|own| own.number == renewal.session) else {
                    continue;
                };
                if leases.grant(&sets, &key.0, key.1, renewal.epoch, self.now()) {
                    let usable_ms = u64::try_from(usable.as_millis()).unwrap_or(u64::MAX);
                    let granted = Granted { number: renewal.number, usable_ms };
                    // A broker that does not read renews again.
                    let _ = session.orders.try_send(Order { order: Some(Kind::Granted(granted)) });
                }
            }
        }
    }

    /// Elects whom it is time to elect.
    pub(super) async fn elect(self: Arc<Self>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = self.electing.notified() => {}
            }
            let due = self.with(|leases, sets, now| leases.elections(sets, now, now_ms()));
            for command in due.unwrap_or_default() {
                // Each waits for its majority alone. It ends with the consensus.
                tokio::spawn(self.clone().write(command));
            }
        }
    }

    async fn write(self: Arc<Self>, command: Command) {
        let Command::Elect { set, epoch, term, master, unclean, reason, .. } = command.clone() else {
            return;
        };
        let written = self.consensus.write(command).await;
        self.consensus.agreed.elections.fetch_add(u64::from(written.is_ok()), Ordering::Relaxed);
        match written {
            Ok(()) if unclean => {
                tracing::warn!(set, master, reason, "elected a master that may lack messages");
            }
            Ok(()) => tracing::info!(set, master, reason, "elected a master"),
            Err(NotWritten::Refused(refused)) => {
                tracing::info!(set, master, %refused, "an election was refused");
                self.with(|leases, _, _| leases.not_elected(&set, epoch, term));
            }
            // Whether it counts will turn out; what is granted before might outlive it, so nothing is.
            Err(error) => tracing::warn!(set, master, %error, "an election was not confirmed"),
        }
    }
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    u64::try_from(now).unwrap_or(u64::MAX)
}
