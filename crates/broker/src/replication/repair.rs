//! Repair: what is damaged of this broker's log is fetched from another broker of its set, which has the same log, while it
//! serves. [`RepairService`] gives; [`Repairs`] is one task that takes: of a slave on `broker-slave`, of a master on
//! `broker-control`. What waits for the device runs on blocking threads.
//!
//! One stretch at a time, at a bounded rate. What cannot be had is asked for again later and later; it stays damage and is
//! reported as such.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use karman_remoting::between::{Between, ConnectError, why};
use karman_remoting::proto::karman as v1;
use karman_remoting::proto::karman::repair_client::RepairClient;
use karman_remoting::proto::karman::repair_server::Repair;
use karman_remoting::server::MAX_DECODING_SIZE_BYTES;
use karman_store::{Damage, MendError, ReadError, Store};
use parking_lot::Mutex;
use tonic::transport::Endpoint;
use tonic::{Request, Response, Status};

/// Records of one answer, unless a single one is larger.
const ANSWER_BYTES: usize = 1 << 20;
/// No more is fetched in a second: whoever gives it and whoever takes it have other things to do.
const BYTES_PER_SECOND: u64 = 32 << 20;
const LOOK_EVERY: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(10);
const RETRY_MIN: Duration = Duration::from_secs(10);
const RETRY_MAX: Duration = Duration::from_secs(600);

/// The store of a broker, while it has one open.
pub type OpenStore = Arc<Mutex<Weak<Store>>>;

/// The gRPC face of a broker that has a log.
#[derive(Debug)]
pub struct RepairService {
    /// What is given out.
    pub store: OpenStore,
    /// `brokerClusterName`
    pub cluster: String,
    /// `brokerName`
    pub broker_name: String,
    /// What brokers show that ask.
    pub between: Between,
}

#[tonic::async_trait]
impl Repair for RepairService {
    async fn read(&self, request: Request<v1::ReadRequest>) -> Result<Response<v1::ReadResponse>, Status> {
        self.between.check(&request, "broker")?;
        let v1::ReadRequest { replica, log_id, start } = request.into_inner();
        let replica = replica.ok_or_else(|| Status::invalid_argument("it does not say who it is"))?;
        if (&replica.cluster, &replica.broker_name) != (&self.cluster, &self.broker_name) {
            let (v1::Replica { cluster, broker_name, .. }, own) =
                (&replica, (&self.cluster, &self.broker_name));
            let what = format!(
                "this is broker {:?} of cluster {:?}, not {broker_name:?} of {cluster:?}",
                own.1, own.0
            );
            return Err(Status::failed_precondition(what));
        }
        let store = self.store.lock().upgrade();
        let store = store.ok_or_else(|| Status::unavailable("this broker has no log open at the moment"))?;
        if log_id != store.log_id().0 {
            return Err(Status::failed_precondition("this broker holds another log"));
        }
        let read = tokio::task::spawn_blocking(move || store.intact(start, ANSWER_BYTES)).await;
        match read.map_err(|error| Status::internal(error.to_string()))? {
            Ok(raw) => Ok(Response::new(v1::ReadResponse { records: raw.bytes.to_vec() })),
            Err(error @ ReadError::OutOfRange { .. }) => Err(Status::out_of_range(error.to_string())),
            Err(error) => Err(Status::data_loss(error.to_string())),
        }
    }
}

/// Why a stretch was not repaired.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("no other broker of the set is connected and in sync")]
    Alone,
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("{address}: {}", why(.status))]
    Refused { address: String, status: Status },
    #[error("{address}: {error}")]
    Mend { address: String, error: MendError },
    #[error("the thread that wrote it panicked")]
    Panicked,
}

/// See the module's comment.
#[derive(Debug)]
pub struct Repairs {
    store: Arc<Store>,
    /// Who asks.
    own: v1::Replica,
    between: Between,
    /// By where a stretch ends: when it may be tried again, and how long it was waited for that.
    tried: HashMap<u64, (Instant, Duration)>,
}

impl Repairs {
    /// Of this log.
    pub fn new(store: Arc<Store>, own: v1::Replica, between: Between) -> Self {
        Self { store, own, between, tried: HashMap::new() }
    }

    /// Until all that the state lacks is there and the store has to be opened anew for it. `sources`: the internal addresses
    /// of brokers that have this log at the moment.
    pub async fn run(mut self, sources: impl Fn() -> Vec<String>) {
        while !self.store.wants_reopening() {
            tokio::time::sleep(LOOK_EVERY).await;
            for damage in self.due() {
                self.repair(&damage, sources()).await;
            }
        }
    }

    fn due(&mut self) -> Vec<Damage> {
        let mut damage = self.store.mendable();
        self.tried.retain(|to, _| damage.iter().any(|known| known.to == *to));
        let now = Instant::now();
        damage.retain(|damage| self.tried.get(&damage.to).is_none_or(|(again, _)| *again <= now));
        damage
    }

    async fn repair(&mut self, damage: &Damage, sources: Vec<String>) {
        let mut failed = Failed::Alone;
        for address in sources {
            match self.fetch(damage, &address).await {
                Ok(()) => {
                    let Damage { from, to, .. } = damage;
                    tracing::warn!(from, to, "what was damaged of the log is repaired from {address}");
                    return;
                }
                Err(error) => failed = error,
            }
        }
        let waited = self.tried.get(&damage.to).map(|(_, waited)| *waited);
        let pause = waited.map_or(RETRY_MIN, |waited| (waited * 2).min(RETRY_MAX));
        self.tried.insert(damage.to, (Instant::now() + pause, pause));
        let (from, to, again_s) = (damage.from, damage.to, pause.as_secs());
        tracing::warn!(from, to, reason = %failed, again_s, "what is damaged of the log is not repaired");
    }

    async fn fetch(&self, damage: &Damage, address: &str) -> Result<(), Failed> {
        let limited = |endpoint: Endpoint| endpoint.connect_timeout(TIMEOUT).timeout(TIMEOUT);
        let channel = self.between.connect(address, limited).await?;
        let mut broker = RepairClient::new(channel).max_decoding_message_size(2 * MAX_DECODING_SIZE_BYTES);
        let mut rest = Some(damage.from);
        while let Some(start) = rest {
            let log_id = self.store.log_id().0.to_vec();
            let request = v1::ReadRequest { replica: Some(self.own.clone()), log_id, start };
            let read = broker.read(self.between.request(request)).await;
            let read = read.map_err(|status| Failed::Refused { address: address.to_owned(), status })?;
            let (store, records, source) =
                (self.store.clone(), read.into_inner().records, address.to_owned());
            let pause = Duration::from_micros(records.len() as u64 * 1_000_000 / BYTES_PER_SECOND);
            let mended = tokio::task::spawn_blocking(move || store.mend(start, &records, &source)).await;
            let mended = mended.map_err(|_| Failed::Panicked)?;
            rest = mended.map_err(|error| Failed::Mend { address: address.to_owned(), error })?;
            tokio::time::sleep(pause).await;
        }
        Ok(())
    }
}

/// Bytes that were fetched from others, of what is remembered.
pub fn repaired_bytes(store: &Store) -> u64 {
    store.mended().iter().map(|mended| mended.to - mended.from).sum()
}
