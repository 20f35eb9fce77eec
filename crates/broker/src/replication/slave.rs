//! The slave's side of replication: finds its master, makes its store the same log, and takes what comes. One task on the
//! thread `broker-slave`, which it may block: it also opens, copies and closes the store.
//!
//! Whatever goes wrong with a master is told once and tried again; only what this broker's own store cannot do ends it.

mod copying;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use karman_remoting::between::{Between, ConnectError, why};
use karman_remoting::proto::karman as v1;
use karman_remoting::proto::karman::follow_request::Request as Ask;
use karman_remoting::proto::karman::follow_response::Response as Said;
use karman_remoting::proto::karman::replication_client::ReplicationClient;
use karman_remoting::proto::karman::welcome::First;
use karman_remoting::route_table::SharedRoutes;
use karman_remoting::server::MAX_DECODING_SIZE_BYTES;
use karman_store::offline::Offline;
use karman_store::{Append, AppendError, Durability, EpochStart, LogId, OpenError, RawRecords, Watermarks};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use super::attend::Attending;
use super::master::SILENCE_MAX;
use super::repair::{OpenStore, Repairs, repaired_bytes};
use crate::config::BrokerConfig;
use crate::open::{Opened, open, store_config};

/// Frames that may wait for the log writer.
const WAITING_MAX: usize = 64;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(1);
const GIVE_UP_TIMEOUT: Duration = Duration::from_millis(500);
/// A slave with nothing to say says so.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// What a slave shows of itself.
#[derive(Clone, Debug, Default)]
pub struct SlaveStatus {
    /// Where its master is.
    pub master: String,
    /// It follows.
    pub connected: bool,
    /// Why it does not.
    pub why: String,
    /// Where the master's log ended when it last said so.
    pub master_end: u64,
    /// Its own log; `None` as long as it has none.
    pub log: Option<Watermarks>,
    /// Bytes of it that are known to be lost, and that were fetched from its master.
    pub damaged: (u64, u64),
}

/// What a slave is made of.
#[derive(Debug)]
pub struct Slave {
    /// What it was told.
    pub config: BrokerConfig,
    /// What it shows its master.
    pub between: Between,
    /// Who it is.
    pub replica: v1::Replica,
    /// Where its master is found, unless the configuration says it.
    pub routes: SharedRoutes,
    /// Who says which broker its master is, if controllers do.
    pub attending: Option<Arc<Attending>>,
    /// What it shows.
    pub status: Arc<Mutex<SlaveStatus>>,
    /// The store it has open, for whoever repairs its own.
    pub store: OpenStore,
    /// All that it has opened, for reads of clients, once a master has said that all of its log may be seen with which it was
    /// opened: the end of that may be taken back.
    pub opened: Arc<Mutex<Option<Opened>>>,
    /// Why its store has failed, once it has.
    pub failed: watch::Sender<Option<Arc<str>>>,
    /// Ends it.
    pub stopping: CancellationToken,
}

/// Why following ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("no master of broker {0:?} is registered with the namesrvs; start it, or set haMasterAddress")]
    NoMaster(String),
    #[error("the controllers have elected no master of broker {0:?} but this one, or none yet")]
    NotElected(String),
    #[error("the controllers have elected another master")]
    OtherMaster,
    #[error("{}", why(.0))]
    Master(#[from] tonic::Status),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the master is silent")]
    Silent,
    #[error("the master ended the stream")]
    Over,
    #[error("the master said something else than was asked: {0}")]
    Nonsense(&'static str),
    #[error(transparent)]
    Refused(#[from] AppendError),
    /// Of the own store: nothing that a master can change.
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("cannot copy the master's store: {0}")]
    Copy(#[from] std::io::Error),
}

/// A log that is there and cannot be opened any more.
struct Unusable {
    log: LogId,
    why: OpenError,
}

impl Slave {
    /// Until it is told to stop; gives back what it has opened.
    pub async fn run(self, mut opened: Option<Opened>) -> Option<Opened> {
        self.has_opened(opened.as_ref());
        let mut pause = RETRY_MIN;
        while !self.stopping.is_cancelled() {
            let ended = tokio::select! {
                () = self.stopping.cancelled() => break,
                ended = self.follow(&mut opened) => ended,
                () = self.other_master() => Err(Ended::OtherMaster),
            };
            self.note(&opened, &ended);
            match ended {
                // Something was changed here; now it goes on.
                Ok(()) | Err(Ended::OtherMaster) => pause = RETRY_MIN,
                Err(Ended::Refused(AppendError::Poisoned(reason))) => {
                    self.failed.send_replace(Some(reason));
                    break;
                }
                Err(Ended::Open(error)) if !matches!(error, OpenError::Locked { .. }) => {
                    self.failed.send_replace(Some(error.to_string().into()));
                    break;
                }
                Err(_) => {
                    self.stopping.run_until_cancelled(tokio::time::sleep(pause)).await;
                    pause = (pause * 2).min(RETRY_MAX);
                }
            }
        }
        opened
    }

    /// Comes when the controllers name another master than now.
    async fn other_master(&self) {
        let Some(attending) = &self.attending else { return std::future::pending().await };
        let mut states = attending.state.subscribe();
        let master = |state: &Option<v1::SetState>| state.as_ref().map(|state| (state.epoch, state.master));
        let now = master(&states.borrow_and_update());
        // The sender is as old as this.
        let _ = states.wait_for(|state| master(state) != now).await;
    }

    /// The controllers hear how far the log is; others may read it.
    fn has_opened(&self, opened: Option<&Opened>) {
        *self.opened.lock() = None;
        *self.store.lock() = opened.map(|opened| Arc::downgrade(&opened.store)).unwrap_or_default();
        if let Some(attending) = &self.attending {
            attending.has_opened(opened.map(|opened| opened.store.clone()));
        }
    }

    fn note(&self, opened: &Option<Opened>, ended: &Result<(), Ended>) {
        let mut status = self.status.lock();
        status.log = opened.as_ref().map(|opened| opened.store.watermarks());
        status.connected = false;
        let Err(error) = ended else { return };
        let why = error.to_string();
        if status.why != why {
            tracing::warn!(master = status.master, reason = why, "does not follow its master; tries again");
            status.why = why;
        }
    }

    /// One stream, from finding the master to its end. `Ok`: the store was changed so that it can follow now.
    async fn follow(&self, opened: &mut Option<Opened>) -> Result<(), Ended> {
        let address = self.master_address()?;
        self.status.lock().master.clone_from(&address);
        let mut master = self.connect(&address).await?;
        let unusable = match opened.is_none() && store_is_there(&self.config) {
            true => self.open_or_name(opened)?,
            false => None,
        };
        let is_usable = unusable.is_none();
        let hello = self.hello(opened.as_ref(), unusable.as_ref()).await?;
        let (asks, asked) = mpsc::channel(WAITING_MAX);
        let hello = v1::FollowRequest { request: Some(Ask::Hello(hello)) };
        asks.try_send(hello).map_err(|_| Ended::Over)?;
        let request = self.between.request(ReceiverStream::new(asked));
        let mut said =
            timeout(SILENCE_MAX, master.follow(request)).await.map_err(|_| Ended::Silent)??.into_inner();
        let Said::Welcome(welcome) = next(&mut said).await? else {
            return Err(Ended::Nonsense("its first word is no welcome"));
        };
        let log = LogId(welcome.log_id.as_slice().try_into().map_err(|_| Ended::Nonsense("no log id"))?);
        match (welcome.first, &opened) {
            (Some(First::Nothing(_)), _) if is_usable => {}
            (Some(First::Cut(to)), Some(_)) => return self.cut(opened, to),
            (Some(First::Copy(_)), _) => return self.copy(opened, unusable, &mut master).await,
            _ => return Err(Ended::Nonsense("it does not say what comes first")),
        }
        if opened.is_none() {
            *opened = Some(open(&self.config, true, Some(log))?);
            self.has_opened(opened.as_ref());
        }
        let Some(log) = opened.as_ref() else { return Ok(()) };
        let flush = welcome.flush || self.config.flush_disk_type == "SYNC_FLUSH";
        let durability = if flush { Durability::Disk } else { Durability::Memory };
        tracing::info!(master = address, end = log.store.watermarks().written, "follows its master");
        let (waiting, written) = mpsc::channel(WAITING_MAX);
        let repairs = Repairs::new(log.store.clone(), self.replica.clone(), self.between.clone());
        let ended = tokio::select! {
            ended = self.take(log, &mut said, durability, waiting) => ended,
            ended = acknowledge(log, written, asks.clone()) => ended,
            () = repairs.run(|| vec![address.clone()]) => return self.reopen(opened),
        };
        if let Err(Ended::Refused(why)) = &ended {
            give_up(why, &asks, &mut said).await;
        }
        ended
    }

    /// Opens its store. If no snapshot is left that a start could use, as behind a deep cut: says so, and which log it is. The master hears
    /// nothing more of that, and gives a copy.
    fn open_or_name(&self, opened: &mut Option<Opened>) -> Result<Option<Unusable>, Ended> {
        match open(&self.config, true, None) {
            Ok(own) => *opened = Some(own),
            Err(why @ OpenError::NoSnapshot { .. }) => {
                let log = Offline::open(&store_config(&self.config).directory)?.log_id()?;
                return Ok(Some(Unusable { log, why }));
            }
            Err(error) => return Err(error.into()),
        }
        self.has_opened(opened.as_ref());
        Ok(None)
    }

    /// Opens its store anew: what follows from it lacked what was damaged and is repaired.
    fn reopen(&self, opened: &mut Option<Opened>) -> Result<(), Ended> {
        tracing::warn!("all that was damaged is repaired: opens its log anew");
        self.has_opened(None);
        if let Some(former) = opened.take() {
            let _ = former.store.close();
        }
        *opened = Some(open(&self.config, true, None)?);
        self.has_opened(opened.as_ref());
        Ok(())
    }

    fn master_address(&self) -> Result<String, Ended> {
        if let Some(attending) = &self.attending {
            let state = attending.state.borrow();
            let others = |id: &i32| *id != self.config.broker_id;
            let master = state.as_ref().and_then(|state| {
                let id = state.master.filter(others)?;
                state.members.iter().find(|member| member.broker_id == id)
            });
            let none = || Ended::NotElected(self.config.broker_name.clone());
            return master.map(|master| master.address.clone()).ok_or_else(none);
        }
        if !self.config.ha_master_address.is_empty() {
            return Ok(self.config.ha_master_address.clone());
        }
        let routes = self.routes.read();
        let master = routes
            .broker(&self.config.broker_name)
            .ok_or(Ended::NoMaster(self.config.broker_name.clone()))?;
        Ok(master.internal_address.clone())
    }

    async fn connect(&self, address: &str) -> Result<ReplicationClient<Channel>, Ended> {
        let limited = |endpoint: Endpoint| endpoint.connect_timeout(CONNECT_TIMEOUT);
        let channel = self.between.connect(address, limited).await?;
        Ok(ReplicationClient::new(channel).max_decoding_message_size(2 * MAX_DECODING_SIZE_BYTES))
    }

    async fn hello(&self, opened: Option<&Opened>, unusable: Option<&Unusable>) -> Result<v1::Hello, Ended> {
        let store = opened.map(|opened| &opened.store);
        if let Some(store) = store {
            // What a former master sent may wait for the log writer: the log goes on while its end is told.
            let nothing = RawRecords { start: 0, end: 0, bytes: Bytes::new(), segment_bytes: 0 };
            store.append_raw(nothing, 0, Durability::Memory)?.await?;
        }
        let epochs = store.map(|store| store.epochs()).unwrap_or_default();
        let log = store.map(|store| store.log_id()).or(unusable.map(|unusable| unusable.log));
        Ok(v1::Hello {
            replica: Some(self.replica.clone()),
            log_id: log.map(|log| log.0.to_vec()).unwrap_or_default(),
            epochs: epochs
                .into_iter()
                .map(|EpochStart { epoch, start, mark }| v1::Epoch { epoch, start, mark })
                .collect(),
            end: store.map_or(0, |store| store.watermarks().written),
        })
    }

    /// Takes back what its master does not have.
    fn cut(&self, opened: &mut Option<Opened>, to: u64) -> Result<(), Ended> {
        let Some(store) = opened.take().map(|opened| opened.store) else { return Ok(()) };
        self.has_opened(None);
        // What a former master sent is written by this, and belongs to what is cut. It may fail; what is there is cut all the same.
        let _ = store.close_to_cut();
        let end = store.watermarks().written;
        tracing::error!(
            from = to,
            end,
            bytes = end.saturating_sub(to),
            "its master does not have the end of this log: it is cut, a copy stays in quarantine"
        );
        drop(store);
        Offline::open(&store_config(&self.config).directory)?.cut(to..end)?;
        Ok(())
    }

    /// Hands frames to the log writer, and who waits for it to `waiting`.
    async fn take(
        &self,
        opened: &Opened,
        said: &mut Streaming<v1::FollowResponse>,
        durability: Durability,
        waiting: mpsc::Sender<Append>,
    ) -> Result<(), Ended> {
        let found = opened.store.watermarks().written;
        loop {
            let Said::Frame(frame) = next(said).await? else {
                return Err(Ended::Nonsense("a second welcome"));
            };
            if frame.confirmed >= found {
                self.opened.lock().get_or_insert_with(|| opened.clone());
            }
            {
                let mut status = self.status.lock();
                status.connected = true;
                status.why.clear();
                (status.master_end, status.log) = (frame.end, Some(opened.store.watermarks()));
                let damaged = opened.store.damage().iter().map(|damage| damage.to - damage.from).sum();
                status.damaged = (damaged, repaired_bytes(&opened.store));
            }
            let v1::Frame { start, records: bytes, segment_bytes, confirmed, .. } = frame;
            // The store looks at the bytes; where they end it finds itself.
            let raw = RawRecords { start, end: start, bytes, segment_bytes };
            let append = opened.store.append_raw(raw, confirmed, durability)?;
            if waiting.send(append).await.is_err() {
                return Ok(());
            }
        }
    }
}

/// Tells the master what is written, as soon as it is.
async fn acknowledge(
    opened: &Opened,
    mut written: mpsc::Receiver<Append>,
    asks: mpsc::Sender<v1::FollowRequest>,
) -> Result<(), Ended> {
    let mut next = None;
    loop {
        let Watermarks { written: end, flushed, .. } = opened.store.watermarks();
        let ack = v1::FollowRequest { request: Some(Ask::Ack(v1::Ack { written: end, flushed })) };
        if asks.send(ack).await.is_err() {
            return Err(Ended::Over);
        }
        let first = match next.take() {
            Some(append) => Ok(Some(append)),
            None => timeout(HEARTBEAT, written.recv()).await,
        };
        match first {
            Ok(Some(append)) => append.await.map(drop)?,
            Ok(None) => return Err(Ended::Over),
            Err(_) => {}
        }
        // One word for all that are done; what comes meanwhile does not hold it up.
        while next.is_none()
            && let Ok(mut append) = written.try_recv()
        {
            match append.answered() {
                Some(done) => drop(done?),
                None => next = Some(append),
            }
        }
    }
}

/// Tells the master why; whether it hears that changes nothing.
async fn give_up(
    why: &AppendError,
    asks: &mpsc::Sender<v1::FollowRequest>,
    said: &mut Streaming<v1::FollowResponse>,
) {
    let last = v1::FollowRequest { request: Some(Ask::GivesUp(why.to_string())) };
    let heard = async {
        // The stream must live until it is sent. The master ends it then.
        let _ = asks.send(last).await;
        while let Ok(Some(_)) = said.message().await {}
    };
    let _ = timeout(GIVE_UP_TIMEOUT, heard).await;
}

async fn next(said: &mut Streaming<v1::FollowResponse>) -> Result<Said, Ended> {
    let response = timeout(SILENCE_MAX, said.message()).await.map_err(|_| Ended::Silent)??;
    response.ok_or(Ended::Over)?.response.ok_or(Ended::Nonsense("nothing"))
}

/// What a member of a set has, when it may be that of a slave. `None`: nothing, half of a copy, or a log that cannot be used any more; what
/// becomes of that [`Slave`] says.
pub fn open_if_usable(config: &BrokerConfig) -> Result<Option<Opened>, OpenError> {
    match store_is_there(config).then(|| open(config, true, None)).transpose() {
        Err(error @ OpenError::NoSnapshot { .. }) => {
            tracing::error!(%error, "it has to begin with a copy of its master's store");
            Ok(None)
        }
        opened => opened,
    }
}

/// Half of a copy is no store.
pub fn store_is_there(config: &BrokerConfig) -> bool {
    let directory = store_config(config).directory;
    let has = |file: &str| directory.join(file).exists();
    has("identity") && !has("copying")
}

#[cfg(test)]
mod tests;
