//! Which clients of a group want which lite topics, and which of these may have something for them. Pure but for one
//! thing: who has something is woken. Owned by its [`LitePop`](super::pop::LitePop).
//!
//! Every client has a line of lite topics that are ready. What comes into a line is a lite topic that has something, and
//! it comes when that begins to be so, by a message, an acknowledgement or a time; so a client finds its next message
//! without a look at the lite topics that have none. Being in a line promises nothing: another client of the group may
//! have been faster.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use tokio::sync::Notify;

use crate::pop::attempts::Attempts;

/// A client that did not say for so long what it wants is forgotten; clients say it every 30 s. Milliseconds.
pub const SYNC_TIMEOUT_MS: u64 = 180_000;
/// Clients of one group on one parent.
const CLIENTS_MAX: usize = 100_000;

/// Places in a line of lite topics that its client lost, or had twice, which are not worth a clean-up.
const LINE_SLACK: usize = 64;

/// What a new subscriber does to those who are there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Nothing: the messages of the lite topic go to one or the other.
    Share,
    /// It takes the lite topic from them.
    Evict,
    /// It does without the lite topic when somebody has it.
    Yield,
}

/// A client.
#[derive(Debug)]
pub struct Subscriber {
    /// By queue of the lite topic; whether it is in the line.
    lites: HashMap<u32, bool>,
    line: VecDeque<u32>,
    synced_ms: u64,
    /// Told when something comes into the line. One waiter is woken; it passes the word on if there is more.
    arrived: Arc<Notify>,
    pub(super) attempts: Attempts,
}

/// See the module's comment.
#[derive(Debug, Default)]
pub struct Subscriptions {
    clients: HashMap<Arc<str>, Subscriber>,
    by_queue: HashMap<u32, Vec<Arc<str>>>,
    /// Clients and queues that belong together.
    count: usize,
}

impl Subscriptions {
    /// How many subscriptions there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// How many lite topics a client wants.
    pub fn count_of(&self, client: &str) -> usize {
        self.clients.get(client).map_or(0, |subscriber| subscriber.lites.len())
    }

    /// Whether a client wants a lite topic.
    pub fn has(&self, client: &str, queue: u32) -> bool {
        self.clients.get(client).is_some_and(|subscriber| subscriber.lites.contains_key(&queue))
    }

    /// Who wants a lite topic.
    pub fn subscribers(&self, queue: u32) -> &[Arc<str>] {
        self.by_queue.get(&queue).map_or(&[], Vec::as_slice)
    }

    /// A client, and that it is there; `None`: there are too many.
    pub fn subscriber(&mut self, client: &Arc<str>, now_ms: u64) -> Option<&mut Subscriber> {
        if !self.clients.contains_key(client) && self.clients.len() >= CLIENTS_MAX {
            return None;
        }
        Some(self.clients.entry(client.clone()).or_insert_with(|| Subscriber {
            lites: HashMap::new(),
            line: VecDeque::new(),
            synced_ms: now_ms,
            arrived: Arc::default(),
            attempts: Attempts::default(),
        }))
    }

    /// A client says at `now_ms` what it wants.
    pub fn synced(&mut self, client: &Arc<str>, now_ms: u64) -> bool {
        self.subscriber(client, now_ms).map(|subscriber| subscriber.synced_ms = now_ms).is_some()
    }

    /// A client that is there wants a lite topic from now on. `None` when it has to do without; else those who lost it.
    pub fn add(&mut self, client: &Arc<str>, queue: u32, claim: Claim) -> Option<Vec<Arc<str>>> {
        let mut lost = Vec::new();
        if claim != Claim::Share {
            lost.extend(self.subscribers(queue).iter().filter(|other| *other != client).cloned());
        }
        if claim == Claim::Yield && !lost.is_empty() {
            // It may be one of several from before the lite topic was to have one only.
            self.remove_one(client, queue);
            return None;
        }
        for other in &lost {
            self.remove_one(other, queue);
        }
        let subscriber = self.clients.get_mut(client)?;
        if let Entry::Vacant(new) = subscriber.lites.entry(queue) {
            new.insert(false);
            self.by_queue.entry(queue).or_insert_with(|| Vec::with_capacity(1)).push(client.clone());
            self.count += 1;
        }
        Some(lost)
    }

    /// A client does not want some of its lite topics any more.
    pub fn remove(&mut self, client: &str, mut goes: impl FnMut(u32) -> bool) {
        let Some(subscriber) = self.clients.get_mut(client) else { return };
        let mut gone = Vec::new();
        subscriber.lites.retain(|&queue, _| {
            let stays = !goes(queue);
            gone.extend((!stays).then_some(queue));
            stays
        });
        if !gone.is_empty() {
            let lites = &subscriber.lites;
            subscriber.line.retain(|queue| lites.contains_key(queue));
        }
        self.forget(client, gone);
    }

    /// The same for one of them. What is in the line of it is passed over when its turn comes: nothing is searched for.
    fn remove_one(&mut self, client: &str, queue: u32) {
        let subscriber = self.clients.get_mut(client);
        if subscriber.is_some_and(|subscriber| subscriber.lites.remove(&queue).is_some()) {
            self.forget(client, vec![queue]);
        }
    }

    /// A client does not want any but these.
    pub fn keep(&mut self, client: &str, kept: &HashSet<u32>) {
        self.remove(client, |queue| !kept.contains(&queue));
    }

    /// A client is gone.
    pub fn drop_client(&mut self, client: &str) {
        let Some(subscriber) = self.clients.remove(client) else { return };
        self.forget(client, subscriber.lites.into_keys().collect());
        // Who still waits for it registers anew.
        subscriber.arrived.notify_waiters();
    }

    fn forget(&mut self, client: &str, queues: Vec<u32>) {
        for queue in queues {
            self.count -= 1;
            if let Some(clients) = self.by_queue.get_mut(&queue) {
                clients.retain(|own| **own != *client);
                if clients.is_empty() {
                    self.by_queue.remove(&queue);
                }
            }
        }
    }

    /// A lite topic is no more.
    pub fn drop_queue(&mut self, queue: u32) {
        for client in self.by_queue.get(&queue).cloned().unwrap_or_default() {
            self.remove_one(&client, queue);
        }
    }

    /// Forgets clients that were silent for too long; who they were.
    pub fn expire(&mut self, now_ms: u64) -> Vec<Arc<str>> {
        let is_silent =
            |subscriber: &Subscriber| now_ms.saturating_sub(subscriber.synced_ms) > SYNC_TIMEOUT_MS;
        let silent = self.clients.iter().filter(|(_, subscriber)| is_silent(subscriber));
        let silent: Vec<Arc<str>> = silent.map(|(client, _)| client.clone()).collect();
        silent.iter().for_each(|client| self.drop_client(client));
        silent
    }

    /// A lite topic has something: it comes into the line of all that want it.
    pub fn ready(&mut self, queue: u32) {
        for client in self.by_queue.get(&queue).into_iter().flatten() {
            if let Some(subscriber) = self.clients.get_mut(client) {
                subscriber.line_up(queue);
            }
        }
    }

    /// The same, for one of them.
    pub fn ready_for(&mut self, client: &str, queue: u32) {
        if let Some(subscriber) = self.clients.get_mut(client) {
            subscriber.line_up(queue);
        }
    }

    /// The next lite topic in the line of a client.
    pub fn next(&mut self, client: &str) -> Option<u32> {
        let subscriber = self.clients.get_mut(client)?;
        while let Some(queue) = subscriber.line.pop_front() {
            if let Some(in_line @ true) = subscriber.lites.get_mut(&queue) {
                *in_line = false;
                return Some(queue);
            }
        }
        None
    }

    /// Wakes everyone who waits: the settings of the group have changed.
    pub fn wake_all(&self) {
        self.clients.values().for_each(|subscriber| subscriber.arrived.notify_one());
    }

    #[cfg(test)]
    pub(super) fn is_in_line(&self, client: &str, queue: u32) -> bool {
        self.clients.get(client).is_some_and(|subscriber| {
            subscriber.lites.get(&queue) == Some(&true) && subscriber.line.contains(&queue)
        })
    }
}

impl Subscriber {
    /// What is told when something comes into its line.
    pub fn arrived(&self) -> Arc<Notify> {
        self.arrived.clone()
    }

    fn line_up(&mut self, queue: u32) {
        if let Some(in_line @ false) = self.lites.get_mut(&queue) {
            *in_line = true;
            self.line.push_back(queue);
            self.arrived.notify_one();
            if self.line.len() > 2 * self.lites.len() + LINE_SLACK {
                let mut seen = HashSet::with_capacity(self.lites.len());
                self.line.retain(|queue| self.lites.get(queue) == Some(&true) && seen.insert(*queue));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_does_not_grow_by_what_its_client_loses_and_gets_again() {
        let (mut all, me) = (Subscriptions::default(), Arc::from("me"));
        assert!(all.synced(&me, 0));
        for queue in 0..3 {
            all.add(&me, queue, Claim::Share);
        }
        for _ in 0..1000 {
            (0..3).for_each(|queue| all.ready(queue));
            all.remove_one(&me, 1);
            all.add(&me, 1, Claim::Share);
        }
        assert!(all.clients[&me].line.len() <= 2 * 3 + LINE_SLACK);
        (0..3).for_each(|queue| all.ready(queue));
        let mut given: Vec<u32> = std::iter::from_fn(|| all.next("me")).collect();
        given.sort_unstable();
        assert_eq!((given, all.count()), (vec![0, 1, 2], 3));
    }
}
