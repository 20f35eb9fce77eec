//! The consensus of the controllers (openraft): one order of [`Command`]s, kept on disk by a majority before any of them is
//! followed. Its tasks, and its waits for the disk, are on the controller's threads; a handle may be used from any thread.

mod files;
mod forgotten;
mod log;
mod log_file;
#[expect(clippy::result_large_err, reason = "the error is openraft's")]
mod machine;
mod network;

use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;

use karman_remoting::proto::karman::ConsentMessage;
use openraft::error::{ClientWriteError, InitializeError, RaftError};
use openraft::{BasicNode, Config, LogId, Raft, ServerState, SnapshotPolicy};
use tonic::Status;

use self::files::Directory;
pub use self::files::OpenError;
use self::forgotten::FirstLeader;
use self::log::Log;
pub(super) use self::machine::Agreed;
use self::machine::Machine;
use self::network::{Formation, Network};
use super::ControllerOptions;
use super::sets::{Command, Refused};

const HEARTBEAT_MS: u64 = 100;
const ELECTION_MS: (u64, u64) = (500, 900);
/// A snapshot is a few kilobytes; a restart follows as many commands as came since.
const COMMANDS_PER_SNAPSHOT: u64 = 1000;
const COMMANDS_KEPT: u64 = 500;
const COMMANDS_DROPPED_AT_ONCE: u64 = 250;
const SNAPSHOT_TIMEOUT_MS: u64 = 5000;
/// How often the first controller asks whether all others are there, until the group is formed.
const FORM_RETRY: Duration = Duration::from_millis(200);

openraft::declare_raft_types!(
    /// What the consensus is about.
    pub(super) Types:
        D = Command,
        R = Result<(), Refused>,
);

type Entry = openraft::Entry<Types>;
/// A controller, by its address.
type Peer = BasicNode;
pub(super) type RaftMetrics = openraft::RaftMetrics<u64, Peer>;

/// Why a command was not followed, or not known to be.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotWritten {
    /// By all controllers alike.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// This controller does not lead any more.
    #[error("this controller does not lead")]
    NotLeader,
    /// The consensus has stopped.
    #[error("the controller has stopped: {0}")]
    Stopped(String),
    /// Whether a majority has it will turn out.
    #[error("no majority of the controllers has answered within {0} ms")]
    NoMajority(u128),
}

/// A handle of the running consensus.
#[derive(Clone)]
pub(super) struct Consensus {
    pub(super) raft: Raft<Types>,
    pub(super) agreed: Arc<Agreed>,
    pub(super) options: Arc<ControllerOptions>,
    directory: Arc<Directory>,
    network: Network,
    /// As long as this controller does not vote.
    first_leader: Arc<FirstLeader>,
}

impl std::fmt::Debug for Consensus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consensus").finish_non_exhaustive()
    }
}

/// Why there is no consensus.
#[derive(Debug, thiserror::Error)]
pub enum ConsensusError {
    /// Its directory cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Openraft refuses.
    #[error("start the consensus: {0}")]
    Raft(String),
}

impl Consensus {
    /// Opens the directory and takes part, as far as it can.
    pub(super) async fn open(options: Arc<ControllerOptions>) -> Result<Self, ConsensusError> {
        let (root, id) = (&options.store_path, options.self_id);
        let directory = Arc::new(Directory::open(root, &options.group, id)?);
        let machine = Machine::open(directory.clone())?;
        let log = Log::open(directory.clone(), machine.applied())?;
        let config = Config {
            cluster_name: options.group.clone(),
            heartbeat_interval: HEARTBEAT_MS,
            election_timeout_min: ELECTION_MS.0,
            election_timeout_max: ELECTION_MS.1,
            install_snapshot_timeout: SNAPSHOT_TIMEOUT_MS,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(COMMANDS_PER_SNAPSHOT),
            max_in_snapshot_log_to_keep: COMMANDS_KEPT,
            purge_batch_size: COMMANDS_DROPPED_AT_ONCE,
            replication_lag_threshold: 2 * COMMANDS_PER_SNAPSHOT,
            enable_elect: directory.votes(),
            ..Config::default()
        };
        let refused = |error: &dyn std::fmt::Display| ConsensusError::Raft(error.to_string());
        let config = Arc::new(config.validate().map_err(|error| refused(&error))?);
        let network = Network::new(options.group.clone(), options.between.clone());
        let agreed = machine.agreed();
        let raft = Raft::new(id, config, network.clone(), log, machine).await;
        let raft = raft.map_err(|error| refused(&error))?;
        Ok(Self { raft, agreed, options, directory, network, first_leader: Arc::default() })
    }

    /// Forms the group, if this is the controller that has to and there is none. Ends when there is one.
    ///
    /// A group is formed when all say that they have none: what had one must not be forgotten because a disk was lost.
    pub(super) async fn form(&self) {
        let options = &self.options;
        if options.peers.keys().next() != Some(&options.self_id) {
            return;
        }
        while !matches!(self.raft.is_initialized().await, Ok(true) | Err(_)) {
            match self.are_all_new().await {
                Ok(true) => match self.initialize().await {
                    Ok(()) => return tracing::info!("the controllers have formed a group"),
                    Err(error) => tracing::warn!(%error, "the controllers could not form a group"),
                },
                Ok(false) => {
                    let why = "its directory is new, but the other controllers have a group already";
                    return tracing::warn!(why, "this controller waits to be told by its leader");
                }
                Err(error) => tracing::debug!(%error, "not all controllers are there to form a group"),
            }
            tokio::time::sleep(FORM_RETRY).await;
        }
    }

    async fn are_all_new(&self) -> Result<bool, Status> {
        for other in self.others() {
            if self.network.form(other, false).await? == Formation::Exists {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn others(&self) -> impl Iterator<Item = (u64, &str)> {
        let others = self.options.peers.iter().filter(|(id, _)| **id != self.options.self_id);
        others.map(|(id, address)| (*id, address.as_str()))
    }

    /// All have said that they are new. Before that nobody may be made to vote: one of those that have not answered yet may
    /// know what was agreed.
    async fn initialize(&self) -> Result<(), Status> {
        for other in self.others() {
            self.network.form(other, true).await?;
        }
        self.let_vote().await?;
        let peers = self.options.peers.iter();
        let peers: BTreeMap<u64, Peer> = peers.map(|(id, address)| (*id, Peer::new(address))).collect();
        match self.raft.initialize(peers).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(Status::internal(error.to_string())),
        }
    }

    /// Another controller wants to form the group, or does, for all are new.
    async fn join_formation(&self, all_are_new: bool) -> Result<Formation, Status> {
        if self.raft.is_initialized().await.map_err(|error| Status::unavailable(error.to_string()))? {
            return Ok(Formation::Exists);
        }
        if all_are_new {
            self.let_vote().await?;
        }
        Ok(Formation::Agrees)
    }

    /// Its leader says that all up to `commit` was agreed; perhaps this one has it.
    async fn has_caught_up_with(&self, commit: LogId<u64>) -> Result<(), Status> {
        let applied = self.raft.metrics().borrow().last_applied;
        if !self.directory.votes() && applied.is_some_and(|applied| applied.index >= commit.index) {
            tracing::info!(index = commit.index, "this controller has caught up and votes from now on");
            self.let_vote().await?;
        }
        Ok(())
    }

    async fn let_vote(&self) -> Result<(), Status> {
        let directory = self.directory.clone();
        let done = tokio::task::spawn_blocking(move || directory.let_vote()).await;
        done.map_err(std::io::Error::other).flatten().map_err(|error| Status::internal(error.to_string()))?;
        self.raft.runtime_config().elect(true);
        Ok(())
    }

    /// Has a command followed, by all controllers.
    pub(super) async fn write(&self, command: Command) -> Result<(), NotWritten> {
        match self.raft.client_write(command).await {
            Ok(written) => Ok(written.data?),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => Err(NotWritten::NotLeader),
            Err(error) => Err(NotWritten::Stopped(error.to_string())),
        }
    }

    /// [`Consensus::write`] that gives up to wait; what becomes of the command is open then.
    pub(super) async fn write_within(&self, command: Command, timeout: Duration) -> Result<(), NotWritten> {
        let written = tokio::time::timeout(timeout, self.write(command)).await;
        written.unwrap_or(Err(NotWritten::NoMajority(timeout.as_millis())))
    }

    /// Waits until a quorum has said that this controller leads, after this call, and all that was agreed before is followed
    /// here. `false`: it is not so, or not known in time.
    pub(super) async fn leads_still(&self, timeout: Duration) -> bool {
        let confirmed = tokio::time::timeout(timeout, self.raft.ensure_linearizable()).await;
        matches!(confirmed, Ok(Ok(_)))
    }

    /// The term in which this controller leads; `None`: it does not. Sees what [`RaftMetrics`] show.
    pub(super) fn leads_in(metrics: &RaftMetrics) -> Option<u64> {
        let leads = metrics.state == ServerState::Leader && metrics.running_state.is_ok();
        leads.then_some(metrics.current_term)
    }

    /// Where the leader is, if it is known.
    pub(super) fn leader_address(&self) -> Option<String> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let leader = metrics.current_leader?;
        metrics.membership_config.membership().get_node(&leader).map(|node| node.addr.clone())
    }

    /// What another controller is answered.
    pub(super) async fn answer(&self, asked: ConsentMessage) -> Result<ConsentMessage, Status> {
        network::answer(self, asked).await
    }
}
