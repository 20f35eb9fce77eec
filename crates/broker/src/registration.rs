//! This broker's registration with the namesrvs, and its copy of their route tables.
//!
//! One task for each namesrv keeps a stream open: the own state first, then changes and heartbeats; the whole route
//! table comes back, then its changes. Runs on the control thread. The own row of the route table is never taken from a
//! namesrv; the other rows stay when all namesrvs are gone, since what is known is better than nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use karman_remoting::auth::users::Users;
use karman_remoting::between::{Between, why};
use karman_remoting::proto::karman::broker_report::Report;
use karman_remoting::proto::karman::registration_client::RegistrationClient;
use karman_remoting::proto::karman::route_change::Change;
use karman_remoting::proto::karman::route_update::Update;
use karman_remoting::proto::karman::{
    self as v1, BrokerDelta, BrokerReport, BrokerState, Heartbeat, RouteChange, RouteUpdate,
};
use karman_remoting::route_table::SharedRoutes;
use karman_remoting::server::MAX_DECODING_SIZE_BYTES;
use parking_lot::Mutex;
use rand::Rng as _;
use tokio::sync::{broadcast, mpsc};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;
use tonic::{Status, Streaming};

use crate::config::BrokerConfig;

/// Reports that may wait for a namesrv that reads slowly.
const REPORTS_MAX: usize = 1024;
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// What this broker reports.
#[derive(Debug)]
pub enum Own {
    /// Its row of the route table, and its changes from the one task that makes them.
    Master {
        /// `brokerName`
        broker_name: String,
        /// The changes.
        deltas: broadcast::Sender<BrokerDelta>,
    },
    /// That it is there; the row is its master's.
    Slave(BrokerState),
}

impl Own {
    /// The row that nobody else tells.
    fn row(&self) -> Option<&str> {
        match self {
            Self::Master { broker_name, .. } => Some(broker_name),
            Self::Slave(_) => None,
        }
    }

    fn state(&self, routes: &SharedRoutes) -> Result<BrokerState, Status> {
        let state = match self {
            Self::Master { broker_name, .. } => routes.read().state(broker_name),
            Self::Slave(state) => Some(state.clone()),
        };
        state.ok_or_else(|| Status::internal("this broker is not in its own route table"))
    }

    fn changes(&self) -> Option<broadcast::Receiver<BrokerDelta>> {
        match self {
            Self::Master { deltas, .. } => Some(deltas.subscribe()),
            Self::Slave(_) => None,
        }
    }
}

/// The next change; never comes where there are none.
async fn changed(
    changes: &mut Option<broadcast::Receiver<BrokerDelta>>,
) -> Result<BrokerDelta, broadcast::error::RecvError> {
    match changes {
        Some(changes) => changes.recv().await,
        None => std::future::pending().await,
    }
}

/// What all registrations of this broker share.
#[derive(Debug)]
pub struct Registrations {
    own: Own,
    routes: SharedRoutes,
    users: Users,
    holders: Mutex<Holders>,
    between: Between,
    heartbeat_interval: Duration,
    silence_max: Duration,
}

/// Who says what: a broker is gone when the last connected namesrv that named it drops it.
#[derive(Debug, Default)]
struct Holders {
    /// The namesrvs that have sent their table on a stream that is still open, as bits.
    connected: u64,
    /// For each other broker the namesrvs that name it, as bits.
    named_by: BTreeMap<String, u64>,
}

impl Registrations {
    /// `routes` holds a master's row; `users` are told of, and heard of, on the same streams.
    pub fn new(
        own: Own,
        routes: SharedRoutes,
        users: Users,
        config: &BrokerConfig,
        between: Between,
    ) -> Self {
        Self {
            own,
            routes,
            users,
            holders: Mutex::default(),
            between,
            heartbeat_interval: Duration::from_millis(config.broker_heartbeat_interval),
            silence_max: Duration::from_millis(config.broker_not_active_timeout_millis),
        }
    }

    /// Keeps this broker registered with the namesrv at `address` until `stopping`. `index` tells namesrvs apart.
    pub async fn keep(&self, index: usize, address: String, stopping: CancellationToken) {
        let mut pause = RETRY_MIN;
        while !stopping.is_cancelled() {
            let connected = Instant::now();
            let ended = stopping.run_until_cancelled(self.serve(index, &address)).await;
            self.holders.lock().connected &= !bit(index);
            let Some(Err(status)) = ended else { continue };
            tracing::warn!(address, status = why(&status), "registration ended; it is begun anew");
            if connected.elapsed() > RETRY_MAX {
                pause = RETRY_MIN;
            }
            let jittered = pause.mul_f64(rand::rng().random_range(0.5..1.0));
            stopping.run_until_cancelled(tokio::time::sleep(jittered)).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    /// One stream, from its beginning to its end.
    async fn serve(&self, index: usize, address: &str) -> Result<(), Status> {
        let limited = |endpoint: Endpoint| endpoint.connect_timeout(CONNECT_TIMEOUT);
        let channel = self.between.connect(address, limited).await;
        let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
        let mut client = RegistrationClient::new(channel).max_decoding_message_size(MAX_DECODING_SIZE_BYTES);
        let (reports, sent) = mpsc::channel(REPORTS_MAX);
        // Subscribed before the state is read: a change in between is reported twice rather than never.
        let mut deltas = self.own.changes();
        let (mut user_changes, mut told) = (self.users.changes(), 0);
        user_changes.mark_changed();
        report(&reports, Report::Full(self.own.state(&self.routes)?))?;
        let request = self.between.request(ReceiverStream::new(sent));
        let registering = tokio::time::timeout(self.silence_max, client.register(request)).await;
        let mut updates = registering.map_err(|_| silent())??.into_inner();
        tracing::info!(address, "registered");
        let mut heartbeat = tokio::time::interval(self.heartbeat_interval);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                update = self.next(&mut updates) => self.apply(index, update?),
                delta = changed(&mut deltas) => match delta {
                    Ok(delta) => report(&reports, Report::Delta(delta))?,
                    // Too far behind to tell one by one.
                    Err(_) => report(&reports, Report::Full(self.own.state(&self.routes)?))?,
                },
                // The users live as long as this.
                Ok(()) = user_changes.changed() => {
                    let (users, last) = self.users.since(told);
                    told = last;
                    if !users.is_empty() {
                        report(&reports, Report::Users(v1::Users { users }))?;
                    }
                }
                _ = heartbeat.tick() => report(&reports, Report::Heartbeat(Heartbeat {}))?,
            }
        }
    }

    /// The next update; a namesrv that is silent for too long is as good as gone.
    async fn next(&self, updates: &mut Streaming<RouteUpdate>) -> Result<RouteUpdate, Status> {
        let update =
            tokio::time::timeout(self.silence_max, updates.message()).await.map_err(|_| silent())??;
        update.ok_or_else(|| Status::unavailable("the namesrv ended the stream"))
    }

    fn apply(&self, index: usize, update: RouteUpdate) {
        match update.update {
            Some(Update::Full(table)) => {
                // First: who does not know them yet would give their message groups to others.
                self.routes.expect_back(table.away);
                self.replace(index, table.brokers);
            }
            Some(Update::Change(change)) => self.change(index, change),
            Some(Update::Users(users)) => self.users.merge(users.users),
            Some(Update::Heartbeat(_)) | None => {}
        }
    }

    /// All that one namesrv knows, in place of what it knew.
    fn replace(&self, index: usize, brokers: Vec<BrokerState>) {
        let named = |state: &BrokerState, name: &str| {
            state.identity.as_ref().is_some_and(|identity| identity.broker_name == name)
        };
        let dropped: Vec<String> = {
            let mut holders = self.holders.lock();
            holders.connected |= bit(index);
            let held =
                holders.named_by.iter().filter(|(_, bits)| **bits & bit(index) != 0).map(|(name, _)| name);
            held.filter(|name| !brokers.iter().any(|state| named(state, name))).cloned().collect()
        };
        for name in dropped {
            self.change(index, RouteChange { change: Some(Change::Left(name)) });
        }
        for state in brokers {
            self.change(index, RouteChange { change: Some(Change::Joined(state)) });
        }
        self.routes.end_to_learn();
    }

    fn change(&self, index: usize, change: RouteChange) {
        let name = match &change.change {
            Some(Change::Joined(state)) => {
                state.identity.as_ref().map_or("", |identity| identity.broker_name.as_str())
            }
            Some(Change::Changed(delta)) => &delta.broker_name,
            Some(Change::Left(name)) => name,
            None => return,
        };
        if self.own.row() == Some(name) {
            return;
        }
        let mut holders = self.holders.lock();
        match &change.change {
            Some(Change::Joined(_)) => *holders.named_by.entry(name.to_owned()).or_default() |= bit(index),
            Some(Change::Left(_)) => {
                let connected = holders.connected;
                let bits = holders.named_by.entry(name.to_owned()).or_default();
                *bits &= !bit(index);
                // One that is gone itself may not have heard.
                if *bits & connected != 0 {
                    return;
                }
                holders.named_by.remove(name);
            }
            Some(Change::Changed(_)) | None => {}
        }
        self.routes.apply(change);
    }
}

fn silent() -> Status {
    Status::deadline_exceeded("the namesrv is silent")
}

/// More than 64 namesrvs share bits, which at worst keeps a broker in the table until it is named again.
fn bit(index: usize) -> u64 {
    1 << (index % 64)
}

fn report(reports: &mpsc::Sender<BrokerReport>, report: Report) -> Result<(), Status> {
    // Never waits: a namesrv that does not read is given up.
    let report = BrokerReport { report: Some(report) };
    reports
        .try_send(report)
        .map_err(|_| Status::unavailable("the namesrv does not read, or the stream has ended"))
}

#[cfg(test)]
mod tests {
    use karman_remoting::proto::karman::BrokerIdentity;

    use super::*;

    fn registrations() -> Registrations {
        let (deltas, _) = broadcast::channel(8);
        let own = Own::Master { broker_name: "own".into(), deltas };
        Registrations::new(
            own,
            SharedRoutes::default(),
            Users::default(),
            &BrokerConfig::default(),
            Between::default(),
        )
    }

    fn state(name: &str) -> BrokerState {
        let identity = BrokerIdentity { broker_name: name.into(), ..Default::default() };
        BrokerState { identity: Some(identity), ..Default::default() }
    }

    fn names(registrations: &Registrations) -> Vec<String> {
        registrations.routes.read().brokers().map(|broker| broker.broker_name.clone()).collect()
    }

    #[test]
    fn a_broker_is_gone_when_the_last_namesrv_drops_it() {
        let registrations = registrations();
        registrations.replace(0, vec![state("a"), state("own")]);
        registrations.replace(1, vec![state("a"), state("b")]);
        assert_eq!(names(&registrations), ["a", "b"]);
        registrations.replace(0, vec![]);
        assert_eq!(names(&registrations), ["a", "b"]);
        registrations.change(1, RouteChange { change: Some(Change::Left("a".into())) });
        assert_eq!(names(&registrations), ["b"]);
    }

    #[tokio::test]
    async fn the_first_table_of_a_namesrv_tells_all_there_is() {
        let registrations = registrations();
        registrations.routes.begin_to_learn();
        registrations.change(0, RouteChange { change: Some(Change::Joined(state("a"))) });
        assert!(tokio::time::timeout(Duration::ZERO, registrations.routes.learnt()).await.is_err());
        registrations.replace(0, vec![state("a"), state("b")]);
        registrations.routes.learnt().await;
    }

    #[test]
    fn a_namesrv_that_is_gone_does_not_hold_a_broker() {
        let registrations = registrations();
        registrations.replace(0, vec![state("a")]);
        registrations.replace(1, vec![state("a")]);
        registrations.holders.lock().connected &= !bit(0);
        registrations.change(1, RouteChange { change: Some(Change::Left("a".into())) });
        assert!(names(&registrations).is_empty());
    }
}
