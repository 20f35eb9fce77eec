//! What a broker does with the controllers, and nothing else of a broker.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use karman_remoting::proto::karman::attendance::Says;
use karman_remoting::proto::karman::controller_client::ControllerClient;
use karman_remoting::proto::karman::order::Order as Kind;
use karman_remoting::proto::karman::{Attendance, Present, Renewal, Resignation, SetState, SyncChange};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

use crate::cluster::{Cluster, eventually, with_secret};

const RENEW_INTERVAL: Duration = Duration::from_millis(150);

#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) state: Option<SetState>,
    /// How often something was granted.
    pub(crate) grants: u64,
    /// Until when it may acknowledge, as master of the epoch.
    pub(crate) until: Option<(u32, Instant)>,
    /// When it first knew itself as master of the epoch.
    pub(crate) master_since: Option<(u32, Instant)>,
    pub(crate) refused: Vec<String>,
    /// Why its last stream ended.
    pub(crate) ended: Option<Status>,
    resigned: u32,
}

pub(crate) struct FakeBroker {
    pub(crate) id: i32,
    pub(crate) known: Arc<Mutex<Known>>,
    pub(crate) says: mpsc::Sender<Says>,
    _task: AbortOnDropHandle<()>,
}

impl FakeBroker {
    /// It looks for the leader among all controllers of the cluster.
    pub(crate) fn start(cluster: &Cluster, id: i32) -> Self {
        Self::at(cluster, id, &format!("127.0.0.1:{}", 20_000 + id))
    }

    pub(crate) fn at(cluster: &Cluster, id: i32, address: &str) -> Self {
        let known = Arc::<Mutex<Known>>::default();
        let (says, said) = mpsc::channel(16);
        let present = Present {
            cluster: "c".into(),
            broker_name: "a".into(),
            broker_id: id,
            address: address.into(),
            priority: id,
            log_epoch: 0,
        };
        let addresses = cluster.addresses.values().cloned().collect();
        let task = Task { id, present, known: known.clone(), number: 0, sent: BTreeMap::new() };
        let task = tokio::spawn(task.run(addresses, said));
        Self { id, known, says, _task: AbortOnDropHandle::new(task) }
    }

    pub(crate) fn state(&self) -> Option<SetState> {
        self.known.lock().state.clone()
    }

    /// The epoch in which it may acknowledge now.
    pub(crate) fn acknowledges(&self) -> Option<u32> {
        let known = self.known.lock();
        let (epoch, until) = known.until?;
        let is_master = known.state.as_ref()?.master == Some(self.id) && known.state.as_ref()?.epoch == epoch;
        (is_master && known.resigned != epoch && Instant::now() < until).then_some(epoch)
    }

    pub(crate) async fn acknowledging(&self) -> u32 {
        eventually("it is master", async || self.acknowledges()).await
    }

    pub(crate) async fn granted_more(&self, count: u64) {
        let before = self.known.lock().grants;
        let more = async || (self.known.lock().grants >= before + count).then_some(());
        eventually("more grants", more).await;
    }

    /// As its master, says who is in sync; waits until all know it.
    pub(crate) async fn in_sync(&self, ids: &[i32]) {
        let SetState { epoch, version, .. } = self.state().unwrap();
        let change = SyncChange { epoch, version, in_sync: ids.to_vec() };
        self.says.send(Says::Sync(change)).await.unwrap();
        eventually("in sync", async || self.state().filter(|state| state.in_sync == ids)).await;
    }
}

struct Task {
    id: i32,
    present: Present,
    known: Arc<Mutex<Known>>,
    number: u64,
    sent: BTreeMap<u64, (u32, Instant)>,
}

impl Task {
    async fn run(mut self, addresses: Vec<String>, mut said: mpsc::Receiver<Says>) {
        let mut next = 0;
        loop {
            let address = &addresses[next % addresses.len()];
            next += 1;
            if let Err(status) = self.attend(address, &mut said).await {
                self.known.lock().ended = Some(status);
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    async fn attend(&mut self, address: &str, said: &mut mpsc::Receiver<Says>) -> Result<(), Status> {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
        let channel = endpoint.connect().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let (out, says) = mpsc::channel(16);
        let request = with_secret(ReceiverStream::new(says));
        let say = async |says| {
            let gone = |_| Status::cancelled("gone");
            out.send(Attendance { says: Some(says) }).await.map_err(gone)
        };
        say(Says::Present(self.present.clone())).await?;
        let mut orders = ControllerClient::new(channel).attend(request).await?.into_inner();
        let mut renew = tokio::time::interval(RENEW_INTERVAL);
        loop {
            tokio::select! {
                _ = renew.tick() => say(self.renewal()).await?,
                Some(more) = said.recv() => say(more).await?,
                order = orders.message() => match order?.and_then(|order| order.order) {
                    None | Some(Kind::Leader(_)) => return Ok(()),
                    Some(order) => if let Some(answer) = self.ordered(order) { say(answer).await? },
                },
            }
        }
    }

    fn renewal(&mut self) -> Says {
        let known = self.known.lock();
        let own = known.state.as_ref().filter(|state| state.master == Some(self.id));
        let master_of = own.map_or(0, |state| state.epoch);
        let master_of = if known.resigned == master_of { 0 } else { master_of };
        self.number += 1;
        self.sent.insert(self.number, (master_of, Instant::now()));
        // Who is in sync has what its master wrote.
        let counts = |state: &&SetState| state.in_sync.contains(&self.id);
        let log_epoch = known.state.as_ref().filter(counts).map_or(0, |state| state.epoch);
        Says::Renewal(Renewal { number: self.number, master_of, log_epoch, log_end: 0 })
    }

    fn ordered(&mut self, order: Kind) -> Option<Says> {
        let mut known = self.known.lock();
        match order {
            Kind::State(state) => {
                if state.master == Some(self.id) && known.master_since.is_none_or(|(of, _)| of != state.epoch)
                {
                    known.master_since = Some((state.epoch, Instant::now()));
                }
                known.state = Some(state);
                None
            }
            Kind::Granted(granted) => {
                let (epoch, sent) = self.sent[&granted.number];
                known.grants += 1;
                known.until = Some((epoch, sent + Duration::from_millis(granted.usable_ms)));
                None
            }
            Kind::Refused(why) => {
                known.refused.push(why);
                None
            }
            Kind::HandOver(hand_over) => {
                known.resigned = hand_over.epoch;
                Some(Says::Resignation(Resignation { epoch: hand_over.epoch, to: hand_over.to }))
            }
            Kind::Leader(_) => None,
        }
    }
}
