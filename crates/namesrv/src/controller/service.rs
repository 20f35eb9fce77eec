//! The controller's gRPC face: the streams of brokers, and what controllers say to one another. Each stream is a task of the
//! data thread that carries it; what it may do is decided by [`super::lead`].

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use karman_remoting::auth::source_of;
use karman_remoting::between::Between;
use karman_remoting::headers_first::HeadersFirst;
use karman_remoting::proto::karman::attendance::Says;
use karman_remoting::proto::karman::controller_server::{Controller, ControllerServer};
use karman_remoting::proto::karman::order::Order as Kind;
use karman_remoting::proto::karman::{self as v1, Attendance, Order, Present, SetState};
use karman_remoting::refused::Came;
use karman_remoting::server::MAX_DECODING_SIZE_BYTES;
use karman_remoting::validate;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::codegen::BoxStream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::lead::{Key, Lead};
use super::leases::{Leases, Report};
use super::operate;
use super::raft::NotWritten;
use super::sets::{BrokerSet, Command, EPOCH_MAX, Member, Sets};

/// Orders that a broker may be behind.
const ORDERS_MAX: usize = 64;
/// How long a broker waits for a majority.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);
/// The first word of a stream must come within so long.
const PRESENT_TIMEOUT: Duration = Duration::from_secs(5);
const ADDRESS_MAX_BYTES: usize = 255;

/// See the module's comment.
#[derive(Clone, Debug)]
pub struct ControllerService(pub(super) Arc<Lead>);

impl ControllerService {
    pub(super) fn new(lead: Arc<Lead>) -> Self {
        Self(lead)
    }

    fn between(&self) -> &Between {
        &self.0.consensus.options.between
    }

    /// Who may call `method`: brokers, controllers, operators. Asked before anything of the call is decoded.
    fn admit(&self, call: &Request<()>, method: &str) -> Result<(), Status> {
        match method {
            "Attend" => self.between().check(call, "broker").inspect_err(|status| {
                let from = source_of(call.extensions());
                let from = from.map_or_else(|| "an unknown address".to_owned(), |from| from.ip().to_string());
                self.0.refused(Came::AsStranger, &format!("a broker at {from}"), status);
            }),
            "Consent" => self.between().check(call, "controller"),
            _ => self.between().check_operator(call),
        }
    }

    /// What is served: the calls of those that may make them.
    #[expect(clippy::type_complexity, reason = "a closure has no name")]
    pub fn guarded(
        self,
    ) -> HeadersFirst<
        ControllerServer<Self>,
        impl Fn(&Request<()>, &str) -> Result<(), Status> + Clone + Send + Sync + 'static,
    > {
        let server = ControllerServer::new(self.clone()).max_decoding_message_size(MAX_DECODING_SIZE_BYTES);
        HeadersFirst::new(server, move |call: &Request<()>, method: &str| self.admit(call, method))
    }
}

#[tonic::async_trait]
impl Controller for ControllerService {
    async fn attend(
        &self,
        request: Request<Streaming<Attendance>>,
    ) -> Result<Response<BoxStream<Order>>, Status> {
        let (out, orders) = mpsc::channel(ORDERS_MAX);
        let (lead, inbound) = (self.0.clone(), request.into_inner());
        tokio::spawn(async move {
            // A broker that is gone needs no answer.
            if let Err(Some(status)) = attend(lead, inbound, &out).await {
                let _ = out.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(orders))))
    }

    async fn consent(
        &self,
        request: Request<v1::ConsentMessage>,
    ) -> Result<Response<v1::ConsentMessage>, Status> {
        self.0.consensus.answer(request.into_inner()).await.map(Response::new)
    }

    async fn describe_controller(
        &self,
        request: Request<v1::DescribeControllerRequest>,
    ) -> Result<Response<v1::DescribeControllerResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        operate::describe(&self.0, &metadata, message).await.map(Response::new)
    }

    async fn elect(&self, request: Request<v1::ElectRequest>) -> Result<Response<v1::ElectResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        operate::elect(&self.0, &metadata, message).await.map(Response::new)
    }

    async fn drain_member(
        &self,
        request: Request<v1::DrainMemberRequest>,
    ) -> Result<Response<v1::DrainMemberResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        operate::drain_member(&self.0, &metadata, message).await.map(Response::new)
    }

    async fn remove_member(
        &self,
        request: Request<v1::RemoveMemberRequest>,
    ) -> Result<Response<v1::RemoveMemberResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        operate::remove_member(&self.0, &metadata, message).await.map(Response::new)
    }

    async fn change_controllers(
        &self,
        request: Request<v1::ChangeControllersRequest>,
    ) -> Result<Response<v1::ChangeControllersResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        operate::change_controllers(&self.0, &metadata, message).await.map(Response::new)
    }
}

/// Why a stream ends: `None` says nothing to the broker, for it is gone or another stream of it is there.
type Ended = Option<Status>;

type Out = mpsc::Sender<Result<Order, Status>>;

async fn attend(lead: Arc<Lead>, mut inbound: Streaming<Attendance>, out: &Out) -> Result<(), Ended> {
    let mut term = lead.term();
    if term.borrow_and_update().is_none() {
        return name_leader(&lead, out).await;
    }
    let first = tokio::time::timeout(PRESENT_TIMEOUT, inbound.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("the first word of a stream is `present`"))?;
    let Some(Attendance { says: Some(Says::Present(present)) }) = first.map_err(|_| None)? else {
        return Err(Some(Status::invalid_argument("the first word of a stream is `present`")));
    };
    check(&present)?;
    let key = (present.broker_name.clone(), present.broker_id);
    let joined = join(&lead, &present).await.inspect_err(|status| {
        // Another code says that the controllers cannot agree at the moment.
        if matches!(status.code(), Code::AlreadyExists | Code::FailedPrecondition) {
            let Present { broker_name, broker_id, address, .. } = &present;
            let who = format!("broker {broker_id} of set {broker_name} at {address}");
            lead.refused(Came::AsNode, &who, status);
        }
    });
    if !joined? {
        return name_leader(&lead, out).await;
    }
    let (sender, orders) = mpsc::channel(ORDERS_MAX);
    let (number, superseded) = lead.attended(key.clone(), sender);
    let own = Attended { lead, key, number, superseded, sent: None };
    own.serve(inbound, orders, term, out).await
}

fn check(present: &Present) -> Result<(), Status> {
    let refused = |what: String| Err(Status::invalid_argument(what));
    let Present { cluster, broker_name, broker_id, address, log_epoch, .. } = present;
    if let Some(name) = [cluster, broker_name].into_iter().find(|name| !validate::is_node_name(name)) {
        return refused(format!("the name {name:?} is refused: use 1 to 127 of a-z A-Z 0-9 - _ ."));
    }
    if *broker_id < 0 || *log_epoch > EPOCH_MAX {
        return refused(format!("brokerId {broker_id} with a log of epoch {log_epoch} is refused"));
    }
    let host_and_port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    let port = host_and_port.and_then(|(_, port)| port.parse::<u16>().ok());
    if address.len() > ADDRESS_MAX_BYTES || port.is_none_or(|port| port == 0) {
        return refused(format!("the address {address:?} is refused: HOST:PORT is needed"));
    }
    Ok(())
}

/// A broker becomes a member, if it is none. `false`: this controller does not lead.
async fn join(lead: &Lead, present: &Present) -> Result<bool, Status> {
    let Present { cluster, broker_name, broker_id, address, priority, log_epoch } = present;
    let member = Member { address: address.clone(), priority: *priority };
    let known = lead.with(|leases, sets, now| {
        let Some(set) = sets.get(broker_name) else { return Ok(false) };
        let known = set.members.get(broker_id);
        let moved = known.filter(|known| known.address != *address);
        match moved.filter(|_| leases.is_alive(broker_name, *broker_id, now)) {
            Some(known) => Err(Status::already_exists(format!(
                "brokerId {broker_id} of set {broker_name:?} is the broker at {}, which is alive; every broker of a set \
                 needs a brokerId of its own",
                known.address
            ))),
            None => Ok(known == Some(&member) && set.cluster == *cluster && set.epoch_before >= *log_epoch),
        }
    });
    let Some(known) = known else { return Ok(false) };
    if known? {
        return Ok(true);
    }
    let (set, cluster) = (broker_name.clone(), cluster.clone());
    let command = Command::Join { set, cluster, id: *broker_id, member, epoch: *log_epoch };
    match lead.consensus.write_within(command, WRITE_TIMEOUT).await {
        Ok(()) => {
            tracing::info!(set = broker_name, broker_id, address, "a broker has joined");
            Ok(true)
        }
        Err(NotWritten::NotLeader) => Ok(false),
        Err(NotWritten::Refused(refused)) => Err(Status::failed_precondition(refused.to_string())),
        Err(error) => Err(Status::unavailable(error.to_string())),
    }
}

async fn name_leader(lead: &Lead, out: &Out) -> Result<(), Ended> {
    let leader = lead.consensus.leader_address().filter(|_| lead.failed().is_none()).unwrap_or_default();
    send(out, Kind::Leader(leader)).await
}

async fn send(out: &Out, order: Kind) -> Result<(), Ended> {
    out.send(Ok(Order { order: Some(order) })).await.map_err(|_| None)
}

/// A broker that is there.
struct Attended {
    lead: Arc<Lead>,
    key: Key,
    number: u64,
    superseded: CancellationToken,
    /// What it was told last.
    sent: Option<BrokerSet>,
}

impl Drop for Attended {
    fn drop(&mut self) {
        self.lead.left(&self.key, self.number);
    }
}

impl Attended {
    async fn serve(
        mut self,
        mut inbound: Streaming<Attendance>,
        mut orders: mpsc::Receiver<Order>,
        mut term: watch::Receiver<Option<u64>>,
        out: &Out,
    ) -> Result<(), Ended> {
        let mut changes = self.lead.consensus.agreed.changes.subscribe();
        let stopping = self.lead.stopping.clone();
        self.tell(out).await?;
        loop {
            tokio::select! {
                biased;
                () = stopping.cancelled() => return Err(None),
                () = self.superseded.cancelled() => return Err(None),
                // Also when it leads again, in another term: the broker begins anew.
                _ = term.changed() => return name_leader(&self.lead, out).await,
                _ = changes.changed() => self.tell(out).await?,
                Some(order) = orders.recv() => out.send(Ok(order)).await.map_err(|_| None)?,
                said = inbound.message() => match said {
                    Ok(Some(Attendance { says: Some(says) })) => self.said(says, out).await?,
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => return Err(None),
                },
            }
        }
    }

    /// The state of its set, if that is news.
    async fn tell(&mut self, out: &Out) -> Result<(), Ended> {
        let name = &self.key.0;
        let sent = self.sent.as_ref();
        let news = self.lead.with(|leases, sets, now| {
            let set = sets.get(name).filter(|set| sent != Some(*set))?;
            Some((set_state(name, set, Some((leases, now))), set.clone()))
        });
        let Some((state, set)) = news.flatten() else { return Ok(()) };
        self.sent = Some(set);
        send(out, Kind::State(state)).await
    }

    async fn refuse(&mut self, why: String, out: &Out) -> Result<(), Ended> {
        send(out, Kind::Refused(why)).await?;
        self.sent = None;
        self.tell(out).await
    }

    async fn said(&mut self, says: Says, out: &Out) -> Result<(), Ended> {
        let (set, id) = (&self.key.0, self.key.1);
        match says {
            Says::Present(_) => {
                Err(Some(Status::invalid_argument("`present` is the first word of a stream only")))
            }
            Says::Renewal(renewal) => {
                let v1::Renewal { number, master_of, log_epoch, log_end } = renewal;
                let report = Report { epoch: log_epoch, end: log_end, master_of };
                self.lead.with(|leases, _, now| leases.hear(set, id, report, now));
                if master_of > 0 {
                    self.lead.renew(self.key.clone(), self.number, number, master_of);
                }
                Ok(())
            }
            Says::Sync(change) => self.sync(change, out).await,
            Says::Resignation(resignation) => {
                let v1::Resignation { epoch, to } = resignation;
                let done = self.lead.with(|leases, sets, now| leases.resign(sets, set, id, epoch, to, now));
                if done == Some(true) {
                    tracing::info!(set, id, epoch, "a master has resigned");
                    self.lead.elect_now();
                    return Ok(());
                }
                self.refuse(format!("broker {id} is not the master of epoch {epoch}"), out).await
            }
        }
    }

    async fn sync(&mut self, change: v1::SyncChange, out: &Out) -> Result<(), Ended> {
        let (set, id) = (self.key.0.clone(), self.key.1);
        let v1::SyncChange { epoch, version, in_sync } = change;
        // Who is master of an epoch never changes; whether it is over is seen when the command is followed.
        let is_master = |_: &mut Leases, sets: &Sets, _| {
            sets.get(&set).is_some_and(|own| own.epoch == epoch && own.master == Some(id))
        };
        if self.lead.with(is_master) != Some(true) {
            return self.refuse(format!("broker {id} is not the master of epoch {epoch}"), out).await;
        }
        let in_sync: BTreeSet<i32> = in_sync.into_iter().collect();
        let command = Command::Sync { set, epoch, version, in_sync };
        match self.lead.consensus.write_within(command, WRITE_TIMEOUT).await {
            Ok(()) => Ok(()),
            Err(error) => self.refuse(error.to_string(), out).await,
        }
    }
}

/// As brokers and operators are told; `knows`: what the leader knows beside, and the time.
pub(super) fn set_state(name: &str, set: &BrokerSet, knows: Option<(&Leases, Duration)>) -> SetState {
    let member = |(id, member): (&i32, &Member)| {
        let report = knows.and_then(|(leases, _)| leases.report(name, *id)).unwrap_or_default();
        v1::SetMember {
            broker_id: *id,
            address: member.address.clone(),
            priority: member.priority,
            alive: knows.is_some_and(|(leases, now)| leases.is_alive(name, *id, now)),
            log_epoch: report.epoch,
            log_end: report.end,
            drained: set.drained.contains(id),
        }
    };
    SetState {
        broker_name: name.to_owned(),
        epoch: set.epoch,
        master: set.master,
        version: set.version,
        in_sync: set.in_sync.iter().copied().collect(),
        members: set.members.iter().map(member).collect(),
        elected_ms: set.elected_ms,
        reason: set.reason.clone(),
        cluster: set.cluster.clone(),
        log_epoch: set.log_epoch,
    }
}
