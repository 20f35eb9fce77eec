//! `karman cluster show | elect | drain | replicas | controllers`: the controllers and what they say of the broker sets.

use std::fmt;
use std::time::Duration;

use clap::{Args, Subcommand};
use karman_client::ClientError;
use karman_remoting::proto::karman as v1;
use karman_remoting::proto::karman::controller_client::ControllerClient;
use karman_remoting::server::MAX_DECODING_SIZE_BYTES;
use karman_remoting::status::Answer;
use serde::Serialize;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use crate::cluster::{RefusedJson, refused_by, refused_by_namesrv};
use crate::node::{Node, code_of, message_of};
use crate::output::{self, Format, grouped, number, text};
use crate::time;

/// New controllers are brought up to date before they count.
const TIMEOUT: Duration = Duration::from_secs(45);
/// What brokers say belongs to it, and one that hangs must not hide the rest.
const BROKERS_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug, Args)]
pub(crate) struct ElectArgs {
    /// The broker set, by its brokerName
    set: String,
    /// brokerId of the next master; left out, the most complete one
    #[arg(long, value_name = "ID")]
    to: Option<i32>,
}

#[derive(Debug, Args)]
pub(crate) struct DrainArgs {
    /// The broker set, by its brokerName
    set: String,
    /// brokerId of the one that is to be stopped
    id: i32,
    /// It may be elected again
    #[arg(long)]
    undo: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ReplicasCommand {
    /// Forget a broker of a set that will not come back
    #[command(after_help = "Example:\n  karman -e namesrv-1:9876 cluster replicas remove broker-a 2")]
    Remove {
        /// The broker set, by its brokerName
        set: String,
        /// brokerId
        id: i32,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ControllersCommand {
    /// Say who the controllers are from now on, all of them
    #[command(
        after_help = "A new controller is a running namesrv with enableControllerInNamesrv, an empty controllerStorePath and \
                      a controllerSelfId that none had before; its controllerPeers name all of them.\n\nExample:\n  \
                      karman -e namesrv-1:9876 cluster controllers set 1-namesrv-1:9876 2-namesrv-2:9876 4-namesrv-4:9876"
    )]
    Set {
        /// ID-HOST:PORT of each: 1, 3, 5 or 7 of them
        #[arg(required = true)]
        controllers: Vec<String>,
    },
}

#[derive(Serialize)]
pub(crate) struct ShowJson {
    leader: String,
    controllers: Vec<ControllerJson>,
    sets: Vec<SetJson>,
    refused: Vec<RefusedJson>,
    code: &'static str,
    message: String,
}

#[derive(Serialize)]
struct ControllerJson {
    id: u64,
    address: String,
    role: &'static str,
    term: u64,
    applied: u64,
}

#[derive(Serialize)]
struct SetJson {
    set: String,
    cluster: String,
    epoch: u32,
    master: Option<i32>,
    version: u64,
    in_sync: Vec<i32>,
    elected_ms: u64,
    reason: String,
    members: Vec<MemberJson>,
}

#[derive(Serialize)]
struct MemberJson {
    broker_id: i32,
    address: String,
    priority: i32,
    role: &'static str,
    alive: bool,
    drained: bool,
    in_sync: bool,
    log_epoch: u32,
    log_end: u64,
}

impl From<v1::SetState> for SetJson {
    fn from(set: v1::SetState) -> Self {
        let member = |member: v1::SetMember| MemberJson {
            role: if set.master == Some(member.broker_id) { "master" } else { "slave" },
            in_sync: set.in_sync.contains(&member.broker_id),
            broker_id: member.broker_id,
            address: member.address,
            priority: member.priority,
            alive: member.alive,
            drained: member.drained,
            log_epoch: member.log_epoch,
            log_end: member.log_end,
        };
        let members = set.members.into_iter().map(member).collect();
        Self {
            set: set.broker_name,
            cluster: set.cluster,
            epoch: set.epoch,
            master: set.master,
            version: set.version,
            in_sync: set.in_sync,
            elected_ms: set.elected_ms,
            reason: set.reason,
            members,
        }
    }
}

fn client(node: &Node) -> anyhow::Result<ControllerClient<Channel>> {
    Ok(ControllerClient::new(node.channel()?).max_decoding_message_size(MAX_DECODING_SIZE_BYTES))
}

fn request<T>(node: &Node, message: T) -> Request<T> {
    let mut request = node.request(message);
    request.set_timeout(TIMEOUT);
    request
}

/// The node that was asked has no controller.
#[derive(Debug)]
pub(crate) struct NoController {
    endpoint: String,
}

impl fmt::Display for NoController {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = "-e must name a namesrv that has one (enableControllerInNamesrv)";
        write!(f, "{} has no controller: {how}", self.endpoint)
    }
}

impl std::error::Error for NoController {}

/// The answer, and whether it is a refusal.
async fn answer<T: Answer>(
    node: &Node,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> anyhow::Result<(T, anyhow::Result<()>)> {
    let endpoint = || node.endpoint.clone();
    let called = tokio::time::timeout(TIMEOUT, call).await;
    let called = called.map_err(|_| ClientError::Timeout { endpoint: endpoint(), timeout: TIMEOUT })?;
    let response = match called {
        Err(status) if status.code() == Code::Unimplemented => {
            return Err(NoController { endpoint: endpoint() }.into());
        }
        Err(status) => return Err(node.failure(&status).into()),
        Ok(response) => response.into_inner(),
    };
    let checked = node.check(response.status(), &[]);
    Ok((response, checked))
}

/// What a controller knows, and whether that is enough to act on.
pub(crate) async fn describe(
    node: &Node,
) -> anyhow::Result<(v1::DescribeControllerResponse, anyhow::Result<()>)> {
    let mut client = client(node)?;
    answer(node, client.describe_controller(request(node, v1::DescribeControllerRequest {}))).await
}

/// Which brokers the namesrv refuses to register, and masters to follow. What is not told in time is said, and left out.
async fn refused_elsewhere(node: &Node) -> anyhow::Result<Vec<RefusedJson>> {
    let mut admin = node.admin()?;
    let call = node.answer(admin.describe_cluster(node.request(v1::DescribeClusterRequest {})));
    let mut response = match tokio::time::timeout(BROKERS_TIMEOUT, call).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => {
            eprintln!("karman: whom the namesrv and the masters refuse is not known: {error}");
            return Ok(Vec::new());
        }
        Err(_) => {
            let seconds = BROKERS_TIMEOUT.as_secs();
            eprintln!(
                "karman: whom the namesrv and the masters refuse is not known: no answer within {seconds} s"
            );
            return Ok(Vec::new());
        }
    };
    let mut refused = refused_by_namesrv(&mut response);
    refused.extend(response.brokers.iter_mut().flat_map(refused_by));
    Ok(refused)
}

pub(crate) async fn show(node: &Node, format: Format) -> anyhow::Result<()> {
    let (shown, checked) = shown(node).await?;
    if !output::programs(format, &shown, |shown| shown.sets.iter().map(|set| set.set.as_str()))? {
        tables(shown)?;
    }
    checked
}

/// What the controllers know, as programs read it, and whether one leads.
pub(crate) async fn shown(node: &Node) -> anyhow::Result<(ShowJson, anyhow::Result<()>)> {
    let (response, checked) = describe(node).await?;
    let elsewhere = refused_elsewhere(node).await?;
    let leader = response.leader;
    let controller = |own: v1::ControllerState| ControllerJson {
        role: match own.voter {
            true if own.address == leader => "leader",
            true => "follower",
            false => "learner",
        },
        id: own.id,
        address: own.address,
        term: own.term,
        applied: own.applied,
    };
    let shown = ShowJson {
        controllers: response.controllers.into_iter().map(controller).collect(),
        sets: response.sets.into_iter().map(SetJson::from).collect(),
        refused: response
            .refused
            .into_iter()
            .map(|refused| RefusedJson::new("the controller", refused))
            .chain(elsewhere)
            .collect(),
        code: code_of(response.status.as_ref()).as_str_name(),
        message: message_of(response.status.as_ref()).to_owned(),
        leader,
    };
    Ok((shown, checked))
}

fn tables(shown: ShowJson) -> anyhow::Result<()> {
    let columns = [number("ID"), text("CONTROLLER"), text("ROLE"), number("TERM"), number("APPLIED")];
    let cells = |own: ControllerJson| {
        vec![own.id.to_string(), own.address, own.role.into(), own.term.to_string(), grouped(own.applied)]
    };
    output::table(&columns, shown.controllers.into_iter().map(cells).collect())?;
    for refused in &shown.refused {
        output::paragraph(0, &refused.to_string())?;
    }
    if shown.sets.is_empty() {
        return Ok(());
    }
    output::line("")?;
    let told: Vec<String> = shown.sets.iter().map(told).collect();
    let columns = [
        text("SET"),
        number("ID"),
        text("ADDRESS"),
        text("ROLE"),
        text("STATE"),
        text("IN SYNC"),
        number("EPOCH"),
        number("LOG END"),
    ];
    let cells = |set: SetJson| {
        let name = set.set;
        set.members.into_iter().map(move |own| {
            vec![
                name.clone(),
                own.broker_id.to_string(),
                own.address,
                own.role.into(),
                match (own.alive, own.drained) {
                    (true, true) => "drained",
                    (true, false) => "alive",
                    (false, _) => "silent",
                }
                .into(),
                if own.in_sync { "yes" } else { "no" }.into(),
                own.log_epoch.to_string(),
                grouped(own.log_end),
            ]
        })
    };
    output::table(&columns, shown.sets.into_iter().flat_map(cells).collect())?;
    output::line("")?;
    told.iter().try_for_each(|told| output::paragraph(0, told))?;
    Ok(())
}

/// Why the master is who it is.
fn told(set: &SetJson) -> String {
    let SetJson { set: name, cluster, epoch, reason, .. } = set;
    match set.master {
        Some(master) => {
            let at = time::format_ms(set.elected_ms);
            format!("{name} ({cluster}): broker {master} is master in epoch {epoch}, since {at}: {reason}")
        }
        None => format!("{name} ({cluster}): nobody was elected yet"),
    }
}

pub(crate) async fn elect(args: ElectArgs, node: &Node) -> anyhow::Result<()> {
    let ElectArgs { set, to } = args;
    let mut client = client(node)?;
    let message = v1::ElectRequest { broker_name: set.clone(), broker_id: to };
    let (response, checked) = answer(node, client.elect(request(node, message))).await?;
    checked?;
    eprintln!("karman: set {set} is in epoch {}; `karman cluster show` shows its master", response.epoch);
    Ok(())
}

pub(crate) async fn drain(args: DrainArgs, node: &Node) -> anyhow::Result<()> {
    let DrainArgs { set, id, undo } = args;
    let mut client = client(node)?;
    let message = v1::DrainMemberRequest { broker_name: set.clone(), broker_id: id, undo };
    let (response, checked) = answer(node, client.drain_member(request(node, message))).await?;
    checked?;
    let beside = response.in_sync_beside;
    match undo {
        true => eprintln!("karman: broker {id} of set {set} may be elected again"),
        false => eprintln!(
            "karman: broker {id} of set {set} is not its master and may be stopped; in sync beside it: {beside}"
        ),
    }
    Ok(())
}

pub(crate) async fn replicas(command: ReplicasCommand, node: &Node) -> anyhow::Result<()> {
    let ReplicasCommand::Remove { set, id } = command;
    let mut client = client(node)?;
    let message = v1::RemoveMemberRequest { broker_name: set.clone(), broker_id: id };
    answer(node, client.remove_member(request(node, message))).await?.1?;
    eprintln!("karman: broker {id} of set {set} is forgotten; if it starts again it joins again");
    Ok(())
}

pub(crate) async fn controllers(command: ControllersCommand, node: &Node) -> anyhow::Result<()> {
    let ControllersCommand::Set { controllers } = command;
    let mut client = client(node)?;
    let count = controllers.len();
    let message = v1::ChangeControllersRequest { controllers };
    answer(node, client.change_controllers(request(node, message))).await?.1?;
    eprintln!("karman: there are {count} controllers now");
    Ok(())
}
