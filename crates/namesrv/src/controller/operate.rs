//! What operators may ask of the controllers. One that does not lead passes it on to the one that does. Runs on the data
//! thread.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use karman_remoting::metadata;
use karman_remoting::proto::karman::controller_client::ControllerClient;
use karman_remoting::proto::karman::{self as v1, ControllerState};
use karman_remoting::proto::v2;
use karman_remoting::proto::v2::Code;
use karman_remoting::server::MAX_DECODING_SIZE_BYTES;
use karman_remoting::status;
use openraft::{BasicNode, ChangeMembers};
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

use super::lead::Lead;
use super::leases::Leases;
use super::parse_peers;
use super::raft::{NotWritten, RaftMetrics};
use super::service::set_state;
use super::sets::{Command, Refused, Sets};

/// How long the others wait for the leader.
const RELAY_TIMEOUT: Duration = Duration::from_secs(40);
/// How long a hand-over, or the election around a dead master, may take; operators wait a little longer.
const ELECT_TIMEOUT: Duration = Duration::from_secs(6);
const WRITE_TIMEOUT: Duration = Duration::from_secs(3);
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(1);
/// A new controller has so long to get what was agreed.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(15);
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);

/// Asks the leader, if that is another. `None`: it is this one, or nobody is known to lead.
macro_rules! relayed {
    ($lead:expr, $metadata:expr, $method:ident, $message:expr) => {
        match elsewhere($lead, $metadata) {
            Some(leader) => {
                let channel = $lead.relays.get(&leader);
                let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
                let client = ControllerClient::new(channel);
                let mut client = client.max_decoding_message_size(MAX_DECODING_SIZE_BYTES);
                let mut request = Request::new($message.clone());
                *request.metadata_mut() = metadata::for_relay($metadata);
                $lead.consensus.options.between.sign(&mut request);
                request.set_timeout(RELAY_TIMEOUT);
                Some(client.$method(request).await?.into_inner())
            }
            None => None,
        }
    };
}

fn elsewhere(lead: &Lead, metadata: &MetadataMap) -> Option<String> {
    let here = lead.term().borrow().is_some() || metadata::is_relayed(metadata);
    lead.consensus.leader_address().filter(|_| !here)
}

fn refused(code: Code, message: impl Into<String>) -> v2::Status {
    v2::Status { code: code.into(), message: message.into() }
}

fn nobody_leads(lead: &Lead) -> v2::Status {
    let why = lead.failed().map_or_else(
        || "no controller leads: fewer than half of them can be reached".to_owned(),
        |why| format!("this controller has stopped: {why}"),
    );
    refused(Code::HaNotAvailable, why)
}

fn of_refusal(error: &Refused) -> v2::Status {
    let missing = matches!(error, Refused::UnknownSet(_) | Refused::UnknownMember { .. });
    refused(if missing { Code::NotFound } else { Code::Forbidden }, error.to_string())
}

pub(super) async fn describe(
    lead: &Lead,
    metadata: &MetadataMap,
    message: v1::DescribeControllerRequest,
) -> Result<v1::DescribeControllerResponse, Status> {
    if let Some(answer) = relayed!(lead, metadata, describe_controller, message) {
        return Ok(answer);
    }
    // A new leader may not have followed everything yet.
    let is_current = lead.term().borrow().is_some() && lead.consensus.leads_still(CONFIRM_TIMEOUT).await;
    let known = lead.with(|leases, sets, now| {
        let sets = sets.0.iter();
        sets.map(|(name, set)| set_state(name, set, Some((&*leases, now)))).collect::<Vec<_>>()
    });
    let leads = known.filter(|_| is_current);
    let status = if leads.is_some() { status::ok() } else { nobody_leads(lead) };
    let sets = leads.unwrap_or_else(|| {
        let sets = lead.consensus.agreed.sets.lock();
        sets.0.iter().map(|(name, set)| set_state(name, set, None)).collect()
    });
    let metrics = lead.consensus.raft.metrics().borrow().clone();
    let controllers = controllers(&metrics);
    let leader = lead.consensus.leader_address().unwrap_or_default();
    let refused = lead.refused_lately();
    Ok(v1::DescribeControllerResponse { status: Some(status), leader, controllers, sets, refused })
}

fn controllers(metrics: &RaftMetrics) -> Vec<ControllerState> {
    let membership = metrics.membership_config.membership();
    let voters: BTreeSet<u64> = membership.voter_ids().collect();
    let applied = |id: &u64| {
        let own = (*id == metrics.id).then_some(metrics.last_applied).flatten();
        let other =
            metrics.replication.as_ref().and_then(|replication| replication.get(id).copied().flatten());
        own.or(other).map_or(0, |log_id| log_id.index)
    };
    let state = |(id, node): (&u64, &BasicNode)| ControllerState {
        id: *id,
        address: node.addr.clone(),
        voter: voters.contains(id),
        term: metrics.current_term,
        applied: applied(id),
    };
    membership.nodes().map(state).collect()
}

pub(super) async fn elect(
    lead: &Lead,
    metadata: &MetadataMap,
    message: v1::ElectRequest,
) -> Result<v1::ElectResponse, Status> {
    if let Some(answer) = relayed!(lead, metadata, elect, message) {
        return Ok(answer);
    }
    let v1::ElectRequest { broker_name: set, broker_id: to } = message;
    let elected = elect_other(lead, set, to).await;
    let (status, epoch) = elected.map_or_else(|refused| refused, |epoch| (status::ok(), epoch));
    Ok(v1::ElectResponse { status: Some(status), epoch })
}

/// Has `to`, or the best, take the master's place; the epoch that it begins, or is in.
async fn elect_other(lead: &Lead, set: String, to: Option<i32>) -> Result<u32, (v2::Status, u32)> {
    let not_available = |why: String, epoch| Err((refused(Code::HaNotAvailable, why), epoch));
    let epoch = match lead.with(|leases, sets, now| may_elect(leases, sets, now, &set, to)) {
        None => return Err((nobody_leads(lead), 0)),
        Some(Err(status)) => return Err((status, 0)),
        Some(Ok(Wanted::Is(epoch))) => return Ok(epoch),
        Some(Ok(Wanted::After { epoch, asks })) => {
            if let Some(master) = asks
                && !lead.hand_over(&(set.clone(), master), epoch, to)
            {
                let why =
                    format!("master {master} of set {set:?} cannot be asked to hand over now; try again");
                return not_available(why, 0);
            }
            epoch
        }
    };
    let mut changes = lead.consensus.agreed.changes.subscribe();
    let elected = async {
        loop {
            let now = lead.consensus.agreed.sets.lock().get(&set).map(|set| (set.epoch, set.master));
            if let Some((now, master)) = now.filter(|(now, _)| *now != epoch) {
                return Ok((now, master));
            }
            changes.changed().await?;
        }
    };
    match tokio::time::timeout(ELECT_TIMEOUT, elected).await {
        Ok(Ok((epoch, master))) if to.is_none_or(|to| master == Some(to)) => Ok(epoch),
        Ok(Ok((epoch, master))) => {
            let why = format!("broker {} was elected instead, in epoch {epoch}", master.unwrap_or_default());
            not_available(why, epoch)
        }
        Ok(Err::<_, tokio::sync::watch::error::RecvError>(_)) | Err(_) => {
            let seconds = ELECT_TIMEOUT.as_secs();
            let why = format!(
                "set {set:?} has no other master after {seconds} s; `karman cluster show` tells more"
            );
            not_available(why, 0)
        }
    }
}

pub(super) async fn drain_member(
    lead: &Lead,
    metadata: &MetadataMap,
    message: v1::DrainMemberRequest,
) -> Result<v1::DrainMemberResponse, Status> {
    if let Some(answer) = relayed!(lead, metadata, drain_member, message) {
        return Ok(answer);
    }
    let v1::DrainMemberRequest { broker_name: name, broker_id: id, undo } = message;
    let drained = drain(lead, &name, id, !undo).await;
    let status = drained.err().unwrap_or_else(status::ok);
    let sets = lead.consensus.agreed.sets.lock();
    let in_sync = sets.get(&name).map(|set| set.in_sync.iter().filter(|other| **other != id).count());
    Ok(v1::DrainMemberResponse { status: Some(status), in_sync_beside: in_sync.unwrap_or(0) as u32 })
}

/// A master hands over; nobody elects it meanwhile. A refusal leaves all as it was.
async fn drain(lead: &Lead, set: &str, id: i32, drained: bool) -> Result<(), v2::Status> {
    let leads = |sets: &Sets| sets.get(set).is_some_and(|own| own.master == Some(id));
    if lead.term().borrow().is_none() {
        return Err(nobody_leads(lead));
    }
    tracing::info!(set, id, drained, "an operator drains a member, or undoes it");
    let write = async |drained| {
        let command = Command::Drain { set: set.to_owned(), id, drained };
        lead.consensus.write_within(command, WRITE_TIMEOUT).await.map_err(|error| match error {
            NotWritten::Refused(error) => of_refusal(&error),
            error => refused(Code::HaNotAvailable, error.to_string()),
        })
    };
    let agreed = &lead.consensus.agreed.sets;
    let former = agreed.lock().get(set).is_some_and(|own| own.drained.contains(&id));
    write(drained).await?;
    if !drained || !leads(&agreed.lock()) {
        return Ok(());
    }
    let handed_over = elect_other(lead, set.to_owned(), None).await;
    if !leads(&agreed.lock()) {
        return Ok(());
    }
    write(former).await?;
    let again = || format!("broker {id} of set {set:?} was elected again: nobody else could be");
    Err(handed_over.map_or_else(|(status, _)| status, |_| refused(Code::HaNotAvailable, again())))
}

/// What an operator's election comes to.
enum Wanted {
    /// It is the master already, in that epoch.
    Is(u32),
    /// The next one, after that epoch; `asks`: the master that has to hand over first.
    After { epoch: u32, asks: Option<i32> },
}

fn may_elect(
    leases: &mut Leases,
    sets: &Sets,
    now: Duration,
    name: &str,
    to: Option<i32>,
) -> Result<Wanted, v2::Status> {
    let set = sets.get(name).ok_or_else(|| of_refusal(&Refused::UnknownSet(name.to_owned())))?;
    if let Some(to) = to {
        if !set.members.contains_key(&to) {
            return Err(of_refusal(&Refused::UnknownMember { set: name.to_owned(), id: to }));
        }
        if set.master == Some(to) {
            return Ok(Wanted::Is(set.epoch));
        }
        if !leases.is_alive(name, to, now) {
            return Err(refused(Code::HaNotAvailable, format!("broker {to} of set {name:?} is not there")));
        }
        if set.master.is_some() && !set.in_sync.contains(&to) {
            return Err(of_refusal(&Refused::NotInSync { set: name.to_owned(), id: to }));
        }
        leases.wish(name, set.epoch, to);
    }
    let Some(master) = set.master else { return Ok(Wanted::After { epoch: set.epoch, asks: None }) };
    let mut others = set.in_sync.iter().filter(|id| **id != master);
    if !others.any(|id| leases.is_alive(name, *id, now)) {
        let why = format!(
            "no other broker of set {name:?} is there and in sync: nobody could take the place of {master}"
        );
        return Err(refused(Code::HaNotAvailable, why));
    }
    let asks = leases.is_serving(name, master, set.epoch, now).then_some(master);
    Ok(Wanted::After { epoch: set.epoch, asks })
}

pub(super) async fn remove_member(
    lead: &Lead,
    metadata: &MetadataMap,
    message: v1::RemoveMemberRequest,
) -> Result<v1::RemoveMemberResponse, Status> {
    if let Some(answer) = relayed!(lead, metadata, remove_member, message) {
        return Ok(answer);
    }
    let v1::RemoveMemberRequest { broker_name: set, broker_id: id } = message;
    let status = match lead.with(|leases, _, now| leases.is_alive(&set, id, now)) {
        None => nobody_leads(lead),
        Some(true) => {
            let why = format!("broker {id} of set {set:?} is there and would come back: stop it first");
            refused(Code::Forbidden, why)
        }
        Some(false) => {
            tracing::info!(set, id, "an operator removes a member");
            match lead.consensus.write_within(Command::Remove { set, id }, WRITE_TIMEOUT).await {
                Ok(()) => status::ok(),
                Err(NotWritten::Refused(error)) => of_refusal(&error),
                Err(error) => refused(Code::HaNotAvailable, error.to_string()),
            }
        }
    };
    Ok(v1::RemoveMemberResponse { status: Some(status) })
}

pub(super) async fn change_controllers(
    lead: &Lead,
    metadata: &MetadataMap,
    message: v1::ChangeControllersRequest,
) -> Result<v1::ChangeControllersResponse, Status> {
    if let Some(answer) = relayed!(lead, metadata, change_controllers, message) {
        return Ok(answer);
    }
    let status = match parse_peers(&message.controllers.join(";")) {
        _ if lead.term().borrow().is_none() => nobody_leads(lead),
        Err(why) => refused(Code::BadRequest, why),
        Ok(wanted) => change(lead, wanted).await.err().unwrap_or_else(status::ok),
    };
    Ok(v1::ChangeControllersResponse { status: Some(status) })
}

async fn change(lead: &Lead, wanted: BTreeMap<u64, String>) -> Result<(), v2::Status> {
    let raft = &lead.consensus.raft;
    let membership = raft.metrics().borrow().membership_config.membership().clone();
    tracing::info!(?wanted, "an operator changes the controllers");
    for (id, address) in &wanted {
        match membership.get_node(id) {
            Some(known) if known.addr == *address => {}
            Some(known) => {
                let why = format!(
                    "controller {id} is known at {}; give it another id, or remove it first and then add it",
                    known.addr
                );
                return Err(refused(Code::BadRequest, why));
            }
            None => {
                let joined = raft.add_learner(*id, BasicNode::new(address), true);
                let joined = tokio::time::timeout(CATCH_UP_TIMEOUT, joined).await;
                let joined = joined.map_err(|_| "it does not follow in time".to_owned());
                let joined = joined.and_then(|joined| joined.map_err(|error| error.to_string()));
                if let Err(why) = joined {
                    let forget = ChangeMembers::RemoveNodes(BTreeSet::from([*id]));
                    let _ = tokio::time::timeout(CHANGE_TIMEOUT, raft.change_membership(forget, false)).await;
                    let why = format!("controller {id} at {address} was not added: {why}");
                    return Err(refused(Code::HaNotAvailable, why));
                }
            }
        }
    }
    let voters: BTreeSet<u64> = wanted.keys().copied().collect();
    let changed = tokio::time::timeout(CHANGE_TIMEOUT, raft.change_membership(voters, false)).await;
    let failed =
        |why: String| refused(Code::HaNotAvailable, format!("the controllers were not changed: {why}"));
    let changed = changed.map_err(|_| failed("no majority of the new ones answers".to_owned()))?;
    changed.map(drop).map_err(|error| failed(error.to_string()))
}
