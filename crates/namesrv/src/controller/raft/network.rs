//! What controllers say to one another, over the namesrvs' port: `Consent` with the consensus's messages as JSON. The calling
//! side belongs to the consensus; [`answer`] runs on the data thread.

use std::collections::HashMap;
use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;

use karman_remoting::between::Between;
use karman_remoting::proto::karman::ConsentMessage;
use karman_remoting::proto::karman::controller_client::ControllerClient;
use karman_remoting::server::MAX_DECODING_SIZE_BYTES;
use openraft::error::{
    Fatal, InstallSnapshotError, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, Snapshot, SnapshotMeta, Vote};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::forgotten::Memory;
use super::{Consensus, Peer, Types};

/// Shorter than the time after which a follower would be leader.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(300);
/// A controller that cannot be reached is tried again after so long; it is expected back, and calls for an election if it waits.
const RETRY: Duration = Duration::from_millis(100);
const FORM_TIMEOUT: Duration = Duration::from_secs(2);
const MEMORY_TIMEOUT: Duration = Duration::from_secs(1);

const APPEND: &str = "append";
const VOTE: &str = "vote";
const SNAPSHOT: &str = "snapshot";
const FORM: &str = "form";
const MEMORY: &str = "memory";

/// Around everything: nobody listens to another group, or to what is for somebody else.
#[derive(Debug, Serialize, Deserialize)]
struct Envelope<T> {
    group: String,
    to: u64,
    message: T,
}

/// A whole snapshot; the state as text, for JSON has no bytes.
#[derive(Debug, Serialize, Deserialize)]
struct WholeSnapshot {
    vote: Vote<u64>,
    meta: SnapshotMeta<u64, Peer>,
    sets: String,
}

/// What a controller says when a group is to be formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Formation {
    /// It has nothing yet, and joins when all have nothing.
    Agrees,
    /// It is in a group already.
    Exists,
}

/// The other controllers.
#[derive(Clone, Debug)]
pub(super) struct Network {
    group: String,
    between: Between,
    channels: Arc<Mutex<HashMap<String, Channel>>>,
}

impl Network {
    pub(super) fn new(group: String, between: Between) -> Self {
        Self { group, between, channels: Arc::default() }
    }

    fn channel(&self, address: &str) -> Result<Channel, Status> {
        let mut channels = self.channels.lock();
        if let Some(channel) = channels.get(address) {
            return Ok(channel.clone());
        }
        let limited = |endpoint: Endpoint| endpoint.connect_timeout(CONNECT_TIMEOUT);
        let channel = self.between.connect_lazily(address, limited);
        let channel = channel.map_err(|error| Status::invalid_argument(error.to_string()))?;
        channels.insert(address.to_owned(), channel.clone());
        Ok(channel)
    }

    async fn call<T: Serialize, R: DeserializeOwned>(
        &self,
        (to, address): (u64, &str),
        kind: &str,
        message: T,
        timeout: Duration,
    ) -> Result<R, Status> {
        let unusable = |error: serde_json::Error| Status::internal(error.to_string());
        let body = Envelope { group: self.group.clone(), to, message };
        let body = serde_json::to_vec(&body).map_err(unusable)?;
        let mut request = self.between.request(ConsentMessage { kind: kind.to_owned(), body });
        request.set_timeout(timeout);
        let client = ControllerClient::new(self.channel(address)?);
        let mut client = client.max_decoding_message_size(MAX_DECODING_SIZE_BYTES);
        let answer = tokio::time::timeout(timeout, client.consent(request)).await;
        let answer = answer.map_err(|_| Status::deadline_exceeded("no answer in time"))??;
        serde_json::from_slice(&answer.into_inner().body).map_err(unusable)
    }

    /// Asks whether it has a group already; if not, and `all_are_new`, it is in this one from now on.
    pub(super) async fn form(&self, to: (u64, &str), all_are_new: bool) -> Result<Formation, Status> {
        self.call(to, FORM, all_are_new, FORM_TIMEOUT).await
    }

    /// Asks what it knows, for one that has forgotten it.
    pub(super) async fn remember(&self, of: (u64, &str)) -> Result<Memory, Status> {
        self.call(of, MEMORY, (), MEMORY_TIMEOUT).await
    }
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Connection;

    async fn new_client(&mut self, target: u64, node: &Peer) -> Connection {
        Connection { network: self.clone(), target, address: node.addr.clone() }
    }
}

/// To one controller.
pub(super) struct Connection {
    network: Network,
    target: u64,
    address: String,
}

impl Connection {
    async fn call<T: Serialize, R: DeserializeOwned>(
        &self,
        kind: &str,
        message: T,
        option: &RPCOption,
    ) -> Result<R, Unreachable> {
        let to = (self.target, self.address.as_str());
        let answer = self.network.call(to, kind, message, option.hard_ttl()).await;
        answer.map_err(|status| {
            tracing::debug!(controller = self.target, kind, %status, "a controller did not answer");
            Unreachable::new(&status)
        })
    }
}

type RpcError<E = RaftError<u64>> = RPCError<u64, Peer, E>;

impl RaftNetwork<Types> for Connection {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, RpcError> {
        self.call(APPEND, rpc, &option).await.map_err(RPCError::Unreachable)
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<u64>,
        option: RPCOption,
    ) -> Result<VoteResponse<u64>, RpcError> {
        self.call(VOTE, rpc, &option).await.map_err(RPCError::Unreachable)
    }

    async fn install_snapshot(
        &mut self,
        _: InstallSnapshotRequest<Types>,
        _: RPCOption,
    ) -> Result<InstallSnapshotResponse<u64>, RpcError<RaftError<u64, InstallSnapshotError>>> {
        let status = Status::unimplemented("snapshots are sent as a whole");
        Err(RPCError::Unreachable(Unreachable::new(&status)))
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote<u64>,
        snapshot: Snapshot<Types>,
        _: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<u64>, StreamingError<Types, Fatal<u64>>> {
        let sets = String::from_utf8(snapshot.snapshot.into_inner())
            .map_err(|error| StreamingError::Unreachable(Unreachable::new(&error)))?;
        let whole = WholeSnapshot { vote, meta: snapshot.meta, sets };
        self.call(SNAPSHOT, whole, &option).await.map_err(StreamingError::Unreachable)
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(RETRY))
    }
}

/// What another controller is answered.
pub(super) async fn answer(own: &Consensus, asked: ConsentMessage) -> Result<ConsentMessage, Status> {
    let body = match asked.kind.as_str() {
        APPEND => {
            let rpc: AppendEntriesRequest<Types> = open(own, &asked)?;
            let (leader, commit) = (rpc.vote.leader_id, rpc.leader_commit);
            own.may_follow(leader)?;
            let answer = own.raft.append_entries(rpc).await.map_err(stopped)?;
            // What a leader has committed of its own covers all that was ever committed.
            if let Some(commit) = commit.filter(|commit| commit.leader_id == leader) {
                own.has_caught_up_with(commit).await?;
            }
            serde_json::to_vec(&answer)
        }
        VOTE => {
            let rpc: VoteRequest<u64> = open(own, &asked)?;
            if !own.directory.votes() {
                let why = "its directory is new, and it has not caught up with the group yet";
                return Err(Status::failed_precondition(why));
            }
            serde_json::to_vec(&own.raft.vote(rpc).await.map_err(stopped)?)
        }
        SNAPSHOT => {
            let whole: WholeSnapshot = open(own, &asked)?;
            own.may_follow(whole.vote.leader_id)?;
            let snapshot = Box::new(Cursor::new(whole.sets.into_bytes()));
            let snapshot = Snapshot { meta: whole.meta, snapshot };
            serde_json::to_vec(&own.raft.install_full_snapshot(whole.vote, snapshot).await.map_err(stopped)?)
        }
        FORM => {
            let all_are_new = open(own, &asked)?;
            serde_json::to_vec(&own.join_formation(all_are_new).await?)
        }
        MEMORY => {
            let () = open(own, &asked)?;
            serde_json::to_vec(&own.memory().await?)
        }
        other => return Err(Status::unimplemented(format!("{other:?} is nothing controllers say"))),
    };
    let body = body.map_err(|error| Status::internal(error.to_string()))?;
    Ok(ConsentMessage { kind: asked.kind, body })
}

fn open<T: DeserializeOwned>(own: &Consensus, asked: &ConsentMessage) -> Result<T, Status> {
    let envelope: Result<Envelope<T>, _> = serde_json::from_slice(&asked.body);
    let envelope = envelope.map_err(|error| Status::invalid_argument(error.to_string()))?;
    if envelope.group != own.options.group || envelope.to != own.options.self_id {
        let (group, id) = (&own.options.group, own.options.self_id);
        let why = format!("this is controller {id} of group {group:?}: compare controllerPeers");
        return Err(Status::failed_precondition(why));
    }
    Ok(envelope.message)
}

fn stopped(error: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("the controller has stopped: {error}"))
}
