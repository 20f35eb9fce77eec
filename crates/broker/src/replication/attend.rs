//! A broker and its controllers: one stream to the controller that leads, kept by one task on the control thread. It hears who
//! is master, says that this broker is alive and how far its log is, and brings the lease of a master, which the store
//! is told at once.
//!
//! The lease counts from when the renewal was sent, on the monotonic clock: however late its answer comes, and whatever this process or the
//! controller sleeps in between, nothing is answered when another master may have been elected.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use karman_remoting::between::{Between, why};
use karman_remoting::proto::karman as v1;
use karman_remoting::proto::karman::attendance::Says;
use karman_remoting::proto::karman::controller_client::ControllerClient;
use karman_remoting::proto::karman::order::Order as Ordered;
use karman_store::Store;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::Endpoint;

use super::role::{self, Renewals};

/// Several fit into a lease.
const RENEWAL_INTERVAL: Duration = Duration::from_millis(250);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A controller whose connection says nothing for so long is gone, and one that grants nothing to a master leads no more.
const SILENCE_MAX: Duration = Duration::from_secs(1);
/// Before another controller is tried.
const PAUSE: Duration = Duration::from_millis(100);
/// Words that wait for the stream.
const SAYS_MAX: usize = 64;

/// What the log of this broker is at the moment, and whether it leads.
#[derive(Debug, Default)]
struct Own {
    store: Option<Arc<Store>>,
    /// The epoch in which this broker is the master.
    leads: u32,
}

/// See the module's comment. Shared by the task, and by whoever acts on what it hears.
#[derive(Debug)]
pub struct Attending {
    /// What the controllers said of this broker's set last.
    pub state: watch::Sender<Option<v1::SetState>>,
    /// An operator wants another master.
    pub hand_over: watch::Sender<Option<v1::HandOver>>,
    /// It is not known any more what became of the last sync change.
    pub doubt: watch::Sender<u64>,
    own: Mutex<Own>,
    says: mpsc::Sender<Says>,
}

/// How to reach the controllers, and as whom.
#[derive(Debug)]
pub struct Attendant {
    /// `controllerAddr`
    pub controllers: Vec<String>,
    /// What this broker shows them.
    pub between: Between,
    /// Who this is; its log is filled in.
    pub present: v1::Present,
    said: mpsc::Receiver<Says>,
    attending: Arc<Attending>,
}

impl Attending {
    /// What is shared, and what the task is made of.
    pub fn new(controllers: Vec<String>, between: Between, present: v1::Present) -> (Arc<Self>, Attendant) {
        let (says, said) = mpsc::channel(SAYS_MAX);
        let attending = Arc::new(Self {
            state: watch::Sender::new(None),
            hand_over: watch::Sender::new(None),
            doubt: watch::Sender::new(0),
            own: Mutex::default(),
            says,
        });
        let attendant = Attendant { controllers, between, present, said, attending: attending.clone() };
        (attending, attendant)
    }

    /// This broker has opened its log, or closed it.
    pub fn has_opened(&self, store: Option<Arc<Store>>) {
        let mut own = self.own.lock();
        own.leads = 0;
        own.store = store;
    }

    /// From now on this broker is the master of `epoch`, and asks for its lease; 0: it is not any more.
    pub fn leads(&self, epoch: u32) {
        let mut own = self.own.lock();
        own.leads = epoch;
        if let Some(store) = &own.store {
            store.answer_until(Some(Instant::now()));
        }
    }

    /// Says who has everything.
    pub fn sync(&self, epoch: u32, version: u64, in_sync: BTreeSet<i32>) -> bool {
        let change = v1::SyncChange { epoch, version, in_sync: in_sync.into_iter().collect() };
        self.says.try_send(Says::Sync(change)).is_ok()
    }

    /// This broker answers nothing any more as the master of `epoch`.
    pub fn resign(&self, epoch: u32, to: Option<i32>) {
        // Full: it is said again, or the lease ends.
        let _ = self.says.try_send(Says::Resignation(v1::Resignation { epoch, to }));
    }

    fn log(&self) -> (u32, u32, u64) {
        let own = self.own.lock();
        let store = own.store.as_ref();
        (
            own.leads,
            store.map_or(0, |store| store.epoch()),
            store.map_or(0, |store| store.watermarks().written),
        )
    }

    /// A lease for `epoch` until then.
    fn granted(&self, epoch: u32, until: Instant) {
        let own = self.own.lock();
        if let Some(store) = own.store.as_ref().filter(|_| own.leads == epoch && epoch > 0) {
            store.answer_until(Some(until));
        }
    }
}

impl Attendant {
    /// Keeps a stream to the leading controller until it is told to stop.
    pub async fn run(mut self, stopping: CancellationToken) {
        let (mut next, mut hint, mut told) = (0, None::<String>, String::new());
        while !stopping.is_cancelled() {
            let address =
                hint.take().unwrap_or_else(|| self.controllers[next % self.controllers.len()].clone());
            let ended = stopping.run_until_cancelled(self.attend(&address)).await;
            // What was on its way may arrive or not.
            self.attending.doubt.send_modify(|doubts| *doubts += 1);
            match ended {
                None => return,
                Some(Ok(leader)) if !leader.is_empty() && leader != address => {
                    hint = Some(leader);
                    continue;
                }
                Some(Ok(_)) => {}
                Some(Err(status)) => {
                    let reason = why(&status);
                    if told != reason {
                        tracing::warn!(address, reason, "no controller at the moment; tries all");
                        told = reason;
                    }
                }
            }
            next += 1;
            stopping.run_until_cancelled(tokio::time::sleep(PAUSE)).await;
        }
    }

    /// One stream. Ends with the address of the controller that leads instead.
    async fn attend(&mut self, address: &str) -> Result<String, Status> {
        let watched = |endpoint: Endpoint| {
            let endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT).keep_alive_while_idle(true);
            endpoint.http2_keep_alive_interval(SILENCE_MAX).keep_alive_timeout(SILENCE_MAX)
        };
        let channel = self.between.connect(address, watched).await;
        let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
        let (says, said) = mpsc::channel(SAYS_MAX);
        say(&says, Says::Present(v1::Present { log_epoch: self.attending.log().1, ..self.present.clone() }))?;
        let request = self.between.request(ReceiverStream::new(said));
        let answer = timeout(SILENCE_MAX, ControllerClient::new(channel).attend(request)).await;
        let mut orders = answer.map_err(|_| silent())??.into_inner();
        let mut renewals = Renewals::default();
        let mut tick = tokio::time::interval(RENEWAL_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                order = orders.message() => {
                    let order = order?.and_then(|order| order.order);
                    let Some(order) = order else {
                        return Err(Status::unavailable("the controller ended the stream"));
                    };
                    if let Ordered::Leader(leader) = order {
                        return Ok(leader);
                    }
                    self.obey(order, &mut renewals);
                }
                Some(word) = self.said.recv() => say(&says, word)?,
                _ = tick.tick() => {
                    if renewals.are_ignored(Instant::now(), SILENCE_MAX) {
                        return Err(silent());
                    }
                    let (master_of, log_epoch, log_end) = self.attending.log();
                    let number = renewals.next(master_of, Instant::now());
                    say(&says, Says::Renewal(v1::Renewal { number, master_of, log_epoch, log_end }))?;
                }
            }
        }
    }

    fn obey(&self, order: Ordered, renewals: &mut Renewals) {
        match order {
            Ordered::State(state) => {
                self.attending.state.send_if_modified(|known| {
                    let age = |state: &v1::SetState| (state.epoch, state.version);
                    let is_news = known.as_ref() != Some(&state);
                    let is_old = known.as_ref().is_some_and(|known| role::is_old(age(known), age(&state)));
                    if is_news && !is_old {
                        *known = Some(state);
                    }
                    is_news && !is_old
                });
            }
            Ordered::Granted(v1::Granted { number, usable_ms }) => {
                if let Some((epoch, until)) = renewals.granted(number, Duration::from_millis(usable_ms)) {
                    self.attending.granted(epoch, until);
                }
            }
            Ordered::Refused(reason) => {
                tracing::warn!(reason, "the controller refuses a change");
                self.attending.doubt.send_modify(|doubts| *doubts += 1);
            }
            Ordered::HandOver(wish) => {
                self.attending.hand_over.send_replace(Some(wish));
            }
            Ordered::Leader(_) => {}
        }
    }
}

fn say(says: &mpsc::Sender<v1::Attendance>, word: Says) -> Result<(), Status> {
    let attendance = v1::Attendance { says: Some(word) };
    says.try_send(attendance).map_err(|_| Status::unavailable("the controller does not read"))
}

fn silent() -> Status {
    Status::deadline_exceeded("the controller is silent")
}
