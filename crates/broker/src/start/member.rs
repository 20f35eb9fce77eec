//! A broker of a set that has controllers: it is a slave until it is elected, and one again when another is. One task of whoever
//! started it; it changes roles one after the other.

use std::sync::Arc;
use std::time::Duration;

use karman_remoting::between::Between;
use karman_remoting::proto::karman as v1;
use karman_store::Durability;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Role, Running, SHUTDOWN_GRACE, StartError, master, slave};
use crate::advertise;
use crate::config::BrokerConfig;
use crate::control::Control;
use crate::open::{Opened, open};
use crate::replication::attend::Attending;
use crate::replication::role::{self, Turn};
use crate::replication::slave::{open_if_usable, store_is_there};

/// A lease comes within this, or somebody else was elected.
const LEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// A successor is elected within this, if there can be one.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(3);

/// See the module's comment.
#[derive(Debug)]
pub struct Member {
    config: BrokerConfig,
    between: Between,
    attending: Arc<Attending>,
    control: Control,
    stopping: CancellationToken,
    running: Running,
    /// The epoch in which it is the master; 0: it is a slave.
    leads: u32,
}

impl Member {
    /// Starts it as a slave.
    pub fn start(config: &BrokerConfig) -> Result<Self, StartError> {
        let invalid = config.invalid();
        if !invalid.is_empty() {
            return Err(StartError::Config(invalid));
        }
        let between = config.between()?;
        let opened = open_if_usable(config)?;
        let control = Control::start().map_err(StartError::Thread)?;
        let internal = super::address(&config.internal_listen_address);
        let present = v1::Present {
            cluster: config.broker_cluster_name.clone(),
            broker_name: config.broker_name.clone(),
            broker_id: config.broker_id,
            address: advertise::advertised(&config.internal_advertised_address, internal),
            priority: config.broker_election_priority,
            log_epoch: 0,
        };
        let (attending, attendant) = Attending::new(config.controllers(), between.clone(), present);
        attending.has_opened(opened.as_ref().map(|opened| opened.store.clone()));
        let stopping = CancellationToken::new();
        control.spawn(attendant.run(stopping.clone()));
        let running = slave::start(config, &between, false, Some(attending.clone()), opened)?;
        Ok(Self { config: config.clone(), between, attending, control, stopping, running, leads: 0 })
    }

    /// What it is at the moment.
    pub fn running(&self) -> &Running {
        &self.running
    }

    /// Until `stop`: then a master hands over first. `Err` when the store has failed, or a role could not be taken.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> Result<(), String> {
        let mut states = self.attending.state.subscribe();
        let mut wishes = self.attending.hand_over.subscribe();
        tokio::pin!(stop);
        loop {
            let mut failed = self.running.failed();
            tokio::select! {
                () = &mut stop => break,
                Ok(reason) = failed.wait_for(Option::is_some) => {
                    return Err(format!("the store has failed: {}", reason.as_deref().unwrap_or_default()));
                }
                Ok(()) = states.changed() => {
                    let state = states.borrow_and_update().clone();
                    if let Some(state) = state {
                        self = self.obey(&state).await.map_err(|error| error.to_string())?;
                    }
                }
                Ok(()) = wishes.changed() => {
                    let wish = *wishes.borrow_and_update();
                    if let Some(wish) = wish.filter(|wish| wish.epoch == self.leads && self.leads > 0) {
                        self.resign(wish.to);
                    }
                }
            }
        }
        self.stop(&mut states).await
    }

    async fn obey(self, state: &v1::SetState) -> Result<Self, StartError> {
        let elected = state.master == Some(self.config.broker_id);
        match role::turn(self.leads, elected, state.epoch) {
            Turn::Stay => Ok(self),
            Turn::Lead => self.promote(state).await,
            Turn::Follow { then_lead } => {
                let other = self.demote().await?;
                if then_lead { other.promote(state).await } else { Ok(other) }
            }
        }
    }

    /// Nothing is answered any more from here on; the controllers elect another.
    fn resign(&self, to: Option<i32>) {
        tracing::info!(epoch = self.leads, to, "hands over");
        self.attending.leads(0);
        self.attending.resign(self.leads, to);
    }

    /// Becomes the master of the epoch of `state`.
    async fn promote(mut self, state: &v1::SetState) -> Result<Self, StartError> {
        let epoch = state.epoch;
        let former = self.running;
        let (opened, rest) = former.end_to_follow().await;
        let may_begin = |log_epoch| role::may_begin(log_epoch, epoch, state.log_epoch);
        let opened = match opened {
            // On a new disk it makes no log of its own: it could follow nobody with that.
            None if !store_is_there(&self.config) && !may_begin(0) => None,
            // Or with one that it cannot use any more.
            None if store_is_there(&self.config) => open_if_usable(&self.config)?,
            // Nobody of the set has a log yet.
            None => Some(open(&self.config, true, None)?),
            opened => opened,
        };
        self.attending.has_opened(opened.as_ref().map(|opened| opened.store.clone()));
        let opened = match opened {
            Some(opened) if may_begin(opened.store.epoch()) => opened,
            opened => {
                tracing::info!(epoch, "was the master before it was started; asks to be elected anew");
                self.attending.resign(epoch, Some(self.config.broker_id));
                self.running = slave_again(&self.config, &self.between, &self.attending, opened, rest)?;
                return Ok(self);
            }
        };
        self.attending.leads(epoch);
        let begun = opened.store.lead(epoch, Durability::Disk).map_err(StartError::Epoch)?;
        let began_ms = match tokio::time::timeout(LEAD_TIMEOUT, begun).await {
            Ok(begun) => begun.map_err(StartError::Epoch)?.store_time_ms,
            Err(_) => {
                tracing::warn!(epoch, "was elected, but is granted no lease");
                self.attending.leads(0);
                let _ = opened.store.close();
                self.attending.has_opened(None);
                drop(opened);
                self.running = slave_again(&self.config, &self.between, &self.attending, None, rest)?;
                return Ok(self);
            }
        };
        tracing::info!(epoch, "is the master now");
        rest.retire();
        let (config, between, attending) =
            (self.config.clone(), self.between.clone(), self.attending.clone());
        // It waits for the log.
        let start = move || master::start(&config, &between, opened, began_ms, Some(attending));
        let started = tokio::task::spawn_blocking(start).await;
        self.running = started.unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()))?;
        self.leads = epoch;
        tokio::spawn(rest.end());
        Ok(self)
    }

    /// Becomes a slave again.
    async fn demote(mut self) -> Result<Self, StartError> {
        tracing::warn!(epoch = self.leads, "is not the master any more");
        self.attending.leads(0);
        self.attending.has_opened(None);
        let former = self.running;
        former.retire();
        // Its store is closed in a moment; until then this one's finds it locked.
        self.running = slave::start(&self.config, &self.between, true, Some(self.attending.clone()), None)?;
        self.leads = 0;
        former.abandon();
        if let Err(reason) = former.shutdown().await {
            tracing::warn!(reason, "the former role did not end in order");
        }
        Ok(self)
    }

    async fn stop(self, states: &mut watch::Receiver<Option<v1::SetState>>) -> Result<(), String> {
        if self.leads > 0 {
            self.resign(None);
            let own = Some(self.config.broker_id);
            let another =
                |state: &Option<v1::SetState>| state.as_ref().is_some_and(|state| state.master != own);
            let _ = tokio::time::timeout(HAND_OVER_TIMEOUT, states.wait_for(another)).await;
        }
        self.stopping.cancel();
        self.running.abandon();
        let ended = self.running.shutdown().await;
        let control = self.control;
        // Its task has been told to end.
        let _ = tokio::task::spawn_blocking(move || control.join(SHUTDOWN_GRACE)).await;
        ended
    }
}

/// Goes on as the slave that it was.
fn slave_again(
    config: &BrokerConfig,
    between: &Between,
    attending: &Arc<Attending>,
    opened: Option<Opened>,
    rest: Rest,
) -> Result<Running, StartError> {
    rest.retire();
    let running = slave::start(config, between, true, Some(attending.clone()), opened)?;
    tokio::spawn(rest.end());
    Ok(running)
}

/// What is left of a slave that does not follow any more: its doors.
#[derive(Debug)]
struct Rest(Running);

impl Rest {
    fn retire(&self) {
        self.0.retire();
    }

    async fn end(self) {
        let _ = self.0.shutdown().await;
    }
}

impl Running {
    /// Ends to follow, and gives back what was opened.
    async fn end_to_follow(mut self) -> (Option<Opened>, Rest) {
        let Role::Slave(slave) = std::mem::replace(&mut self.role, Role::Over) else {
            return (None, Rest(self));
        };
        let ended = tokio::task::spawn_blocking(move || slave.end()).await;
        (ended.ok().flatten(), Rest(self))
    }

    /// Leaves the routes, and makes room for another role of this broker. Requests go on.
    fn retire(&self) {
        self.ready.store(false, std::sync::atomic::Ordering::Relaxed);
        self.registered.cancel();
        self.role.stop();
        if let Some(probe) = self.probe.lock().take() {
            probe.stop();
        }
    }

    /// What waits for the log is not waited for any more.
    fn abandon(&self) {
        if let Role::Master(master) = &self.role {
            let store = master.broker.store.clone();
            let _ = store.close();
        }
    }
}
