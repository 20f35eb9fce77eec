//! The controller: which broker of a set is its master. A namesrv has one when it is told to; routes and everything else a
//! namesrv does go on whatever becomes of it.
//!
//! [`sets`] is what the controllers agree on, [`leases`] what the leading one knows beside; both are pure. `raft` has the consensus
//! and its files, `lead` elects and grants, `service` speaks with brokers, `operate` with operators. Owns the thread `controller` and
//! its workers; brokers' streams run on the namesrv's data thread.

mod lead;
pub mod leases;
mod operate;
mod raft;
mod service;
pub mod sets;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use karman_remoting::between::Between;
use tokio_util::sync::CancellationToken;

use self::lead::Lead;
pub use self::raft::OpenError;
use self::raft::{Consensus, ConsensusError};
pub use self::service::ControllerService;

/// The consensus waits for its disk on one, and answers on the other.
const WORKERS: usize = 2;
const CONTROLLERS_MAX: usize = 7;
/// How long its tasks may take to end.
const SHUTDOWN: Duration = Duration::from_secs(2);

/// How to run a controller.
#[derive(Clone, Debug)]
pub struct ControllerOptions {
    /// `controllerDLegerGroup`
    pub group: String,
    /// `controllerSelfId`
    pub self_id: u64,
    /// `controllerPeers`: who forms the group.
    pub peers: BTreeMap<u64, String>,
    /// `controllerStorePath`
    pub store_path: PathBuf,
    /// What controllers and brokers show.
    pub between: Between,
    /// `controllerLeaseMillis`
    pub lease: Duration,
    /// `enableElectUncleanMaster`
    pub unclean: bool,
}

/// Reads `1-host:port;2-host:port`, RocketMQ's form with or without the `n` in front of an id. The number of controllers is odd.
pub fn parse_peers(text: &str) -> Result<BTreeMap<u64, String>, String> {
    let mut peers = BTreeMap::new();
    for peer in text.split(';').map(str::trim).filter(|peer| !peer.is_empty()) {
        let refused = || format!("{peer:?} is no controller: ID-HOST:PORT is, the id being 1 or more");
        let (id, address) = peer.split_once('-').ok_or_else(refused)?;
        let id = id.strip_prefix('n').unwrap_or(id).parse().ok().filter(|id| *id > 0).ok_or_else(refused)?;
        let parsed: Option<tonic::transport::Uri> = format!("http://{address}").parse().ok();
        let authority =
            parsed.as_ref().and_then(|uri| uri.authority()).filter(|_| !address.contains(['/', '@', '?']));
        let usable = authority
            .is_some_and(|name| !name.host().is_empty() && name.port_u16().is_some_and(|port| port > 0));
        if !usable {
            return Err(refused());
        }
        if peers.values().any(|known| known == address) || peers.insert(id, address.to_owned()).is_some() {
            return Err(format!("{peer:?} is named twice, by its id or its address"));
        }
    }
    if peers.len() % 2 == 0 || peers.len() > CONTROLLERS_MAX {
        let count = peers.len();
        return Err(format!(
            "{count} controllers are refused: 1, 3, 5 or 7 are allowed, so that a majority is clear"
        ));
    }
    Ok(peers)
}

/// Why there is no controller.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// It cannot take part.
    #[error(transparent)]
    Consensus(#[from] ConsensusError),
    /// A thread could not be made.
    #[error("start the controller's threads: {0}")]
    Thread(#[source] io::Error),
}

/// A running controller. Dropping it stops it without waiting.
#[derive(Debug)]
pub struct Controller {
    lead: Arc<Lead>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Controller {
    /// Opens its directory and takes part; `stopping` ends the brokers' streams.
    pub fn start(options: ControllerOptions, stopping: CancellationToken) -> Result<Self, ControllerError> {
        let (report, opened) = std::sync::mpsc::channel();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let thread = std::thread::Builder::new().name("controller".into()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(WORKERS)
                .thread_name("controller-io")
                .enable_all()
                .build();
            let runtime = match runtime {
                Ok(runtime) => runtime,
                Err(error) => return drop(report.send(Err(ControllerError::Thread(error)))),
            };
            runtime.block_on(async {
                match Consensus::open(Arc::new(options)).await {
                    Ok(consensus) => {
                        let lead = Lead::new(consensus, stopping);
                        let _ = report.send(Ok(lead.clone()));
                        run(lead, stopped).await;
                    }
                    Err(error) => drop(report.send(Err(error.into()))),
                }
            });
            runtime.shutdown_timeout(SHUTDOWN);
        });
        let thread = Some(thread.map_err(ControllerError::Thread)?);
        let ended = || ControllerError::Thread(io::Error::other("it has ended"));
        let lead = opened.recv().map_err(|_| ended())??;
        Ok(Self { lead, stop, thread })
    }

    /// Its gRPC face.
    pub fn service(&self) -> ControllerService {
        ControllerService::new(self.lead.clone())
    }

    /// What an outsider may know; a handle.
    pub fn status(&self) -> ControllerStatus {
        ControllerStatus(self.lead.clone())
    }

    /// Ends the consensus and joins its thread.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // It panics no more than what it runs, which was logged.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn run(lead: Arc<Lead>, stopped: CancellationToken) {
    let consensus = lead.consensus.clone();
    let tasks = [
        tokio::spawn(lead.clone().watch()),
        tokio::spawn(lead.clone().grant()),
        tokio::spawn(lead.elect()),
        tokio::spawn({
            let consensus = consensus.clone();
            async move { consensus.form().await }
        }),
        tokio::spawn({
            let consensus = consensus.clone();
            async move { consensus.recall().await }
        }),
    ];
    stopped.cancelled().await;
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    if let Err(error) = consensus.raft.shutdown().await {
        tracing::warn!(%error, "the consensus did not end in order");
    }
}

/// What the probe tells of a controller.
#[derive(Clone, Debug)]
pub struct ControllerStatus(Arc<Lead>);

impl ControllerStatus {
    /// Why it has stopped; `None`: it runs, with a majority or without.
    pub fn failure(&self) -> Option<String> {
        self.0.failed()
    }

    /// In the OpenMetrics format, without its end.
    pub fn metrics(&self) -> String {
        let consensus = &self.0.consensus;
        let (term, leads) = {
            let metrics = consensus.raft.metrics();
            let metrics = metrics.borrow();
            (metrics.current_term, Consensus::leads_in(&metrics).is_some())
        };
        let sets = consensus.agreed.sets.lock().0.len();
        let applied = consensus.agreed.applied.load(Ordering::Relaxed);
        let gauges = [
            ("leader", u64::from(leads), "1 if this controller leads."),
            ("up", u64::from(self.failure().is_none()), "0 if it has stopped because of an error."),
            ("term", term, "Term of the consensus."),
            ("applied", applied, "Last command that was followed."),
            ("sets", sets as u64, "Broker sets."),
        ];
        let mut text = String::new();
        for (name, value, help) in gauges {
            let name = format!("karman_controller_{name}");
            let _ = writeln!(text, "# TYPE {name} gauge\n# HELP {name} {help}\n{name} {value}");
        }
        // Of the one that leads alone: the others do not hear the masters. Names of sets need no escapes.
        let served = self.0.with(|leases, sets, now| {
            let is_served = |name: &str, set: &sets::BrokerSet| {
                set.master.is_some_and(|id| leases.is_serving(name, id, set.epoch, now))
            };
            sets.0.iter().map(|(name, set)| (name.clone(), is_served(name, set))).collect::<Vec<_>>()
        });
        let name = "karman_controller_set_served";
        let _ =
            writeln!(text, "# TYPE {name} gauge\n# HELP {name} 1 if the set has a master that is heard of.");
        for (set, is_served) in served.unwrap_or_default() {
            let _ = writeln!(text, "{name}{{set=\"{set}\"}} {}", u8::from(is_served));
        }
        let elections = consensus.agreed.elections.load(Ordering::Relaxed);
        let name = "karman_controller_elections";
        let help = "Masters that this controller had elected while it led.";
        let _ = writeln!(text, "# TYPE {name} counter\n# HELP {name} {help}\n{name}_total {elections}");
        text
    }
}
