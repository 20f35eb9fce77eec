//! The registration streams of the brokers: reports in, the whole route table and then every change out.
//!
//! Each stream is driven by the connection that carries it. The state they share sits behind one lock that is held for
//! one change; a change is applied and published under it, so every stream sees the same order.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use karman_remoting::auth::source_of;
use karman_remoting::auth::users::Users;
use karman_remoting::between::Between;
use karman_remoting::proto::karman::broker_report::Report;
use karman_remoting::proto::karman::registration_server::Registration;
use karman_remoting::proto::karman::route_update::Update;
use karman_remoting::proto::karman::{
    self as v1, BrokerIdentity, BrokerReport, BrokerState, Heartbeat, RouteChange, RouteTable, RouteUpdate,
};
use karman_remoting::refused::{Came, Refusals};
use karman_remoting::route_table::SharedRoutes;
use karman_remoting::validate;
use parking_lot::Mutex;
use tokio::sync::{broadcast, watch};
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use crate::route_info::{RegistrationError, RouteInfo, StreamId};

/// Changes that a slow broker may be behind; beyond, it gets the whole table again.
const CHANGES_MAX: usize = 1024;
/// How often a broker hears from its namesrv.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// A namesrv that has just started knows few brokers. What it knows is pushed once they had time to register; until then
/// they keep the routes they have.
const SETTLE: Duration = Duration::from_millis(1500);

/// The state all streams share.
#[derive(Debug)]
pub struct Registrations {
    info: Mutex<RouteInfo>,
    routes: SharedRoutes,
    users: Users,
    changes: broadcast::Sender<RouteChange>,
    next_stream: AtomicU64,
    started: Instant,
    between: Between,
    /// Who may not register, and was told of in the log.
    refusals: Arc<Refusals>,
    stopping: CancellationToken,
}

impl Registrations {
    /// Registrations feed `routes` and `users`; `info` decides who may be there, and brokers must show what `between` says. Who is
    /// refused goes to `refusals`. Streams end with `stopping`.
    pub fn new(
        routes: SharedRoutes,
        users: Users,
        info: RouteInfo,
        between: Between,
        refusals: Arc<Refusals>,
        stopping: CancellationToken,
    ) -> Arc<Self> {
        routes.begin_to_learn();
        Arc::new(Self {
            info: Mutex::new(info),
            routes,
            users,
            changes: broadcast::channel(CHANGES_MAX).0,
            next_stream: AtomicU64::new(1),
            started: Instant::now(),
            between,
            refusals,
            stopping,
        })
    }

    /// Drops the brokers that were silent for too long; called every few hundred milliseconds.
    pub fn expire(&self) {
        if self.started.elapsed() >= SETTLE {
            self.routes.end_to_learn();
        }
        let mut info = self.info.lock();
        for change in info.expire(self.started.elapsed()) {
            tracing::warn!(?change, "broker was silent for too long");
            self.publish(change);
        }
    }

    /// Called with the lock on `info` held, so that the table and all streams see one order.
    fn publish(&self, change: RouteChange) {
        self.routes.apply(change.clone());
        // No receiver means no broker is connected.
        let _ = self.changes.send(change);
    }

    fn receive(&self, stream: StreamId, from: &str, report: BrokerReport) -> Result<(), RegistrationError> {
        let now = self.started.elapsed();
        let mut info = self.info.lock();
        let change = match report.report {
            Some(Report::Full(state)) => {
                let who = named(&state);
                let change = info.register(now, stream, state).inspect_err(|error| {
                    self.refused(Came::AsNode, &who, &error.to_string());
                })?;
                self.refusals.forget(Came::AsNode, &who);
                // Not before: who shows the secret may be refused after all, and others at its address go on without it.
                self.refusals.forget(Came::AsStranger, from);
                tracing::info!(stream, slave = change.is_none(), "broker registered");
                let Some(change) = change else { return Ok(()) };
                change
            }
            Some(Report::Delta(delta)) => info.change(now, stream, delta)?,
            Some(Report::Users(users)) => {
                info.heartbeat(now, stream)?;
                self.users.merge(users.users);
                return Ok(());
            }
            Some(Report::Heartbeat(_)) => return info.heartbeat(now, stream),
            None => return Ok(()),
        };
        self.publish(change);
        Ok(())
    }

    fn closed(&self, stream: StreamId) {
        let mut info = self.info.lock();
        if let Some(change) = info.closed(stream) {
            tracing::info!(stream, ?change, "registration stream ended");
            self.publish(change);
        }
    }

    /// Where the broker comes from. Says so in this log too if it is refused: whoever looks for a broker looks here.
    fn admit<T>(&self, request: &Request<T>) -> Result<String, Status> {
        let from = source_of(request.extensions());
        let from = from.map_or_else(|| "an unknown address".to_owned(), |from| from.ip().to_string());
        let who = format!("a broker at {from}");
        let checked = self.between.check(request, "broker");
        checked.inspect_err(|status| self.refused(Came::AsStranger, &who, status.message()))?;
        Ok(who)
    }

    fn refused(&self, came: Came, who: &str, why: &str) {
        if self.refusals.is_news(came, who, why, why) {
            tracing::warn!(who, why, "a broker is refused");
        }
    }

    /// The whole table, and every change behind it.
    fn subscribe(&self) -> (RouteTable, broadcast::Receiver<RouteChange>) {
        let _order = self.info.lock();
        let changes = self.changes.subscribe();
        let routes = self.routes.read();
        (RouteTable { brokers: routes.states(), away: routes.states_away() }, changes)
    }
}

/// Who a broker says that it is.
fn named(state: &BrokerState) -> String {
    let identity = state.identity.as_ref();
    identity.map_or_else(
        || "a broker without a name".to_owned(),
        |BrokerIdentity { broker_name, broker_id, internal_address, .. }| {
            let [name, address] = [broker_name, internal_address].map(|text| validate::shortened(text));
            format!("broker {broker_id} of set {name} at {address}")
        },
    )
}

/// The gRPC face.
#[derive(Debug)]
pub struct RegistrationService(pub Arc<Registrations>);

#[tonic::async_trait]
impl Registration for RegistrationService {
    async fn register(
        &self,
        request: Request<Streaming<BrokerReport>>,
    ) -> Result<Response<BoxStream<RouteUpdate>>, Status> {
        let from = self.0.admit(&request)?;
        let id = self.0.next_stream.fetch_add(1, Ordering::Relaxed);
        let mut heartbeat = tokio::time::interval(HEARTBEAT_INTERVAL);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut user_changes = self.0.users.changes();
        user_changes.mark_changed();
        let stream = BrokerStream {
            user_changes,
            told: 0,
            id,
            from,
            inbound: request.into_inner(),
            changes: None,
            heartbeat,
            registrations: self.0.clone(),
        };
        let updates = futures_util::stream::unfold(Some(stream), |stream| async {
            let mut stream = stream?;
            match stream.next().await? {
                Ok(update) => Some((Ok(RouteUpdate { update: Some(update) }), Some(stream))),
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(Box::pin(updates)))
    }
}

struct BrokerStream {
    user_changes: watch::Receiver<u64>,
    /// The last change of users that this broker was told of.
    told: u64,
    id: StreamId,
    from: String,
    inbound: Streaming<BrokerReport>,
    /// `None` until the whole table has been pushed.
    changes: Option<broadcast::Receiver<RouteChange>>,
    heartbeat: Interval,
    registrations: Arc<Registrations>,
}

impl Drop for BrokerStream {
    fn drop(&mut self) {
        self.registrations.closed(self.id);
    }
}

impl BrokerStream {
    async fn next(&mut self) -> Option<Result<Update, Status>> {
        loop {
            tokio::select! {
                () = self.registrations.stopping.cancelled() => return None,
                received = self.inbound.message() => match received {
                    Ok(Some(report)) => {
                        if let Err(error) = self.registrations.receive(self.id, &self.from, report) {
                            return Some(Err(Status::invalid_argument(error.to_string())));
                        }
                    }
                    Ok(None) | Err(_) => return None,
                },
                // The users live as long as the streams.
                Ok(()) = self.user_changes.changed() => {
                    let (users, last) = self.registrations.users.since(self.told);
                    self.told = last;
                    if !users.is_empty() {
                        return Some(Ok(Update::Users(v1::Users { users })));
                    }
                }
                update = pushed(&mut self.changes) => return Some(Ok(update)),
                _ = self.heartbeat.tick() => {
                    if self.changes.is_none() && self.registrations.started.elapsed() >= SETTLE {
                        let (table, changes) = self.registrations.subscribe();
                        self.changes = Some(changes);
                        return Some(Ok(Update::Full(table)));
                    }
                    return Some(Ok(Update::Heartbeat(Heartbeat {})));
                }
            }
        }
    }
}

/// The next change to push; pending until the table has been pushed, and from a lag until it is pushed again.
async fn pushed(changes: &mut Option<broadcast::Receiver<RouteChange>>) -> Update {
    if let Some(receiver) = changes
        && let Ok(change) = receiver.recv().await
    {
        return Update::Change(change);
    }
    // Too far behind: the next heartbeat pushes the whole table again.
    *changes = None;
    std::future::pending().await
}
