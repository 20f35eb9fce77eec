//! The control thread: one runtime for everything that is not a client's call.
//!
//! It runs the catalog's writer, the registrations and the sweeps, so that none of them waits for a busy data thread.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::broker::Broker;
use crate::replication::attend::Attending;
use crate::service::dead_letter;

/// How often dead messages are looked for that nobody asks for, and silent clients.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// A client of a broadcasting group that was silent for longer is gone: the next one has another id.
const BROADCAST_KEPT_MS: u64 = 3_600_000;

/// The running thread.
#[derive(Debug)]
pub struct Control {
    /// Where its tasks are spawned.
    pub runtime: tokio::runtime::Handle,
    /// All its tasks.
    pub tasks: TaskTracker,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Control {
    /// Starts the thread.
    pub fn start() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let (all, stopped) = (tasks.clone(), stop.clone());
        let thread = std::thread::Builder::new().name("broker-control".into()).spawn(move || {
            runtime.block_on(async {
                stopped.cancelled().await;
                all.wait().await;
            });
        })?;
        Ok(Self { runtime: handle, tasks, stop, thread: Some(thread) })
    }

    /// Runs `task` on the thread. It must end when what it works for ends.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn_on(task, &self.runtime);
    }

    /// Waits for the tasks, which have been told to end, and joins the thread; gives up after `grace`.
    pub fn join(mut self, grace: Duration) {
        self.tasks.close();
        self.stop.cancel();
        let deadline = std::time::Instant::now() + grace;
        let Some(thread) = self.thread.take() else { return };
        while !thread.is_finished() && std::time::Instant::now() < deadline {
            std::thread::park_timeout(Duration::from_millis(1));
        }
        if thread.is_finished() {
            // It panicked only if a task did, which has been logged.
            let _ = thread.join();
        } else {
            tracing::warn!("a task of the control thread does not end; left behind");
        }
    }
}

/// How often slaves are looked at that are behind.
const FOLLOWERS_INTERVAL: Duration = Duration::from_millis(200);

/// Slaves that are behind for too long do not count any more.
pub async fn sweep_followers(broker: Arc<Broker>) {
    let mut tick = tokio::time::interval(FOLLOWERS_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while broker.stopping.run_until_cancelled(tick.tick()).await.is_some() {
        broker.followers.expire();
    }
}

/// Records users that this log does not know yet: those of the configuration, and those that other brokers have.
pub async fn record_users(broker: Arc<Broker>) {
    let users = broker.catalog.users().clone();
    let mut changes = users.changes();
    changes.mark_changed();
    let mut seen = 0;
    while let Some(Ok(())) = broker.stopping.run_until_cancelled(changes.changed()).await {
        let (changed, last) = users.since(seen);
        let mut is_recorded = true;
        for user in changed {
            let version = user.version;
            if broker.catalog.user_version(&user.name) >= version {
                continue;
            }
            // Whatever the log has is older.
            if let Err(error) = broker.catalog_writer.user(user, version).await {
                tracing::warn!(%error, "a user could not be recorded; it is tried again");
                is_recorded = false;
            }
        }
        if is_recorded {
            seen = last;
        } else {
            broker.stopping.run_until_cancelled(tokio::time::sleep(SWEEP_INTERVAL)).await;
            changes.mark_changed();
        }
    }
}

/// Agrees with the controllers on which slaves of this master, which is `own`, count.
pub async fn agree(broker: Arc<Broker>, own: i32, attending: Arc<Attending>) {
    let (mut states, mut doubts) = (attending.state.subscribe(), attending.doubt.subscribe());
    let mut tick = tokio::time::interval(FOLLOWERS_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let epoch = broker.store.epoch();
    let mut known = states.borrow_and_update().clone();
    loop {
        if let Some(state) = known.take().filter(|state| state.epoch == epoch && state.master == Some(own)) {
            broker.followers.control(own, &state);
        }
        if let Some((version, in_sync)) = broker.followers.propose() {
            tracing::info!(?in_sync, version, "proposes who counts");
            if !attending.sync(epoch, version, in_sync) {
                broker.followers.propose_again();
            }
        }
        tokio::select! {
            () = broker.stopping.cancelled() => return,
            _ = tick.tick() => {}
            Ok(()) = states.changed() => known = states.borrow_and_update().clone(),
            Ok(()) = doubts.changed() => broker.followers.propose_again(),
        }
    }
}

/// Looks after what nobody asks for: dead messages of groups without receivers, and clients that fell silent.
pub async fn sweep(broker: Arc<Broker>) {
    let mut tick = tokio::time::interval(SWEEP_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while broker.stopping.run_until_cancelled(tick.tick()).await.is_some() {
        broker.clients.expire();
        for row in broker.progress.all() {
            dead_letter::sweep(&broker, &row).await;
            let silent_ms = broker.clock.now_ms().saturating_sub(row.last_seen_ms(broker.clock.started_ms()));
            if row.client.is_some() && silent_ms > BROADCAST_KEPT_MS {
                broker.progress.end(&broker.store, &row);
            }
        }
    }
}
