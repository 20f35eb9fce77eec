//! What comes by itself in lite topics: messages that are due again, dead ones, clients that fell silent, and lite topics
//! that nobody uses. One task on the control thread.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::subscriptions::SYNC_TIMEOUT_MS;
use super::topics::LiteTopic;
use super::{LiteGroup, LiteTable};
use crate::broker::Broker;
use crate::service::dead_letter;

/// How often silent clients are looked for.
const CLIENTS_EVERY: Duration = Duration::from_secs(5);
/// How often unused lite topics are looked for.
const TOPICS_EVERY: Duration = Duration::from_secs(60);
/// What is due within this time is looked at together.
const TICK_MIN: Duration = Duration::from_millis(2);
/// Messages of one group that become due in one look.
const DUE_MAX: usize = 4096;
/// Lite topics looked at in one go, between which others run.
const LOOK_MAX: usize = 4096;

/// Runs until the broker stops.
pub async fn keep(broker: Arc<Broker>) {
    let (mut clients_at, mut topics_at) = (Instant::now() + CLIENTS_EVERY, Instant::now() + TOPICS_EVERY);
    loop {
        let next_ms = tick(&broker).await;
        if clients_at <= Instant::now() {
            clients_at = Instant::now() + CLIENTS_EVERY;
            forget_silent(&broker);
        }
        if topics_at <= Instant::now() {
            topics_at = Instant::now() + TOPICS_EVERY;
            end_idle(&broker).await;
        }
        let due =
            Instant::now() + next_ms.map_or(CLIENTS_EVERY, |at_ms| broker.clock.until(at_ms).max(TICK_MIN));
        tokio::select! {
            () = tokio::time::sleep_until(due.min(clients_at)) => {}
            () = broker.lite.shared.alarm.notified() => {}
            () = broker.stopping.cancelled() => return,
        }
    }
}

/// Lets what is due be delivered again and buries the dead; when the next is due.
async fn tick(broker: &Broker) -> Option<u64> {
    let shared = &broker.lite.shared;
    // Whatever comes into a schedule from here on says so.
    shared.alarm_ms.store(u64::MAX, Ordering::Release);
    let mut next_ms: Option<u64> = None;
    for row in broker.lite.all() {
        let Some(group) = broker.catalog.group_numbered(row.group) else { continue };
        let is_alive = |client: &str| broker.clients.is_alive(client);
        // Not as a command: those set the alarm off.
        let (dead, due_ms) = {
            let mut pop = row.pop.lock();
            let dead = pop.tick(broker.clock.now_ms(), group.attempts_max(), DUE_MAX, &is_alive);
            (dead, pop.next_due_ms())
        };
        row.see_arrivals();
        next_ms = due_ms.into_iter().chain(next_ms).min();
        dead_letter::bury_all_lite(broker, &row, &dead).await;
    }
    shared.alarm_ms.fetch_min(next_ms.unwrap_or(u64::MAX), Ordering::AcqRel);
    next_ms
}

fn forget_silent(broker: &Broker) {
    for row in broker.lite.all() {
        let silent = row.run(|pop| pop.subscriptions.expire(broker.clock.now_ms()));
        for client in silent {
            tracing::info!(client = &*client, topic = row.topic.name(), "silent lite consumer is forgotten");
        }
    }
}

/// Ends lite topics that had neither a message nor a subscriber for as long as their parent says.
async fn end_idle(broker: &Broker) {
    let (now_ms, started_ms) = (broker.clock.now_ms(), broker.clock.started_ms());
    // Clients say what they subscribe to only after a while.
    if now_ms < started_ms + SYNC_TIMEOUT_MS {
        return;
    }
    let mut closed = Vec::new();
    for some in broker.lite.topics.all().chunks(LOOK_MAX) {
        closed.extend(some.iter().filter(|lite| is_over(&broker.lite, lite, now_ms, started_ms)).cloned());
        tokio::task::yield_now().await;
    }
    if closed.is_empty() {
        return;
    }
    let count = closed.len();
    match broker.lite_writer.end(closed.clone()).await {
        Ok(()) => tracing::info!(count, "lite topics are over: nobody used them"),
        Err(error) => {
            tracing::warn!(count, %error, "the end of lite topics was not recorded; they stay");
            closed.iter().for_each(|lite| lite.reopen(now_ms));
        }
    }
}

/// Closes a lite topic whose time is over.
fn is_over(table: &LiteTable, lite: &LiteTopic, now_ms: u64, started_ms: u64) -> bool {
    let Some(expiration_ms) = lite.topic.lite_expiration_ms() else { return false };
    let since_ms = now_ms.saturating_sub(expiration_ms);
    if !lite.is_idle(since_ms, started_ms) {
        return false;
    }
    if table.is_wanted(lite.topic.number, lite.queue.0) {
        // Who waits for a message must not lose the place where it will come. Its time begins anew.
        lite.touch(now_ms);
        return false;
    }
    lite.close(since_ms, started_ms)
}

impl LiteGroup {
    /// Whoever waits looks at the new settings of the group.
    pub fn settings_changed(&self) {
        self.run(|pop| pop.subscriptions.wake_all());
    }
}

#[cfg(test)]
mod tests {
    use karman_remoting::proto::karman as v1;

    use super::*;
    use crate::lite::pop::Start;
    use crate::lite::subscriptions::Claim;
    use crate::lite::topics::LiteTopics;
    use crate::lite::topics::tests::{made, parent};
    use crate::records::{Change, TopicRecord};

    const MINUTE_MS: u64 = 60_000;

    #[test]
    fn a_lite_topic_is_over_when_nobody_used_it_or_waits_for_it() {
        let (catalog, topic) = parent();
        let topics = Arc::new(LiteTopics::new(catalog.clone()));
        let table = LiteTable::new(catalog.clone(), topics.clone());
        topics.change(made(topic.number, "waited-for", 8));
        topics.change(made(topic.number, "used", 9));
        topics.change(made(topic.number, "left", 10));
        let lite = |name| topics.named(topic.number, name).unwrap();
        let is_over = |name, minute: u64| is_over(&table, &lite(name), minute * MINUTE_MS, 0);
        assert!(!is_over("left", 1_000_000), "the parent says nothing of the kind");
        let config = v1::TopicConfig { lite_expiration_minutes: 15, ..topic.config() };
        let (number, queues) = (topic.number, topic.queues.clone());
        catalog.change(Change::Topic(TopicRecord { number, queues, config }));

        let (row, client) = (table.open(7, &topic), Arc::from("me"));
        row.run(|pop| {
            pop.subscriptions.synced(&client, 0);
            pop.subscribe(&client, &[(8, Start::Last)], Claim::Share, 0, &|_| 0..0);
        });
        lite("used").touch(10 * MINUTE_MS);
        assert!(!is_over("left", 15));
        assert!(is_over("left", 16) && !lite("left").touch(16 * MINUTE_MS));
        assert!(!is_over("used", 25) && is_over("used", 26));
        assert!(!is_over("waited-for", 26));
        assert_eq!(row.run(|pop| pop.subscriptions.expire(SYNC_TIMEOUT_MS + 1)).len(), 1);
        assert_eq!((table.subscriptions(), is_over("waited-for", 41)), (0, false), "its time began anew");
        assert!(is_over("waited-for", 42));
    }
}
