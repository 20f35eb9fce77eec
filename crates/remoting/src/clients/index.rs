//! Who is in which group and who publishes what: an index over the clients. Owned by the registry, behind its lock.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::client::Client;
use super::groups::{Filter, Group, Subscriptions};
use super::{FILTER_MAX_BYTES, NAME_MAX_BYTES, TOPICS_MAX};
use crate::proto::v2::{FilterExpression, Subscription};
use crate::validate::name_of;

/// Groups that one call of [`Index::report`] tells of; the others wait for the next.
const REPORTED_MAX: usize = 16;

/// See the module's comment. Every change is made here and to the client in one step.
#[derive(Debug, Default)]
pub(super) struct Index {
    pub(super) groups: HashMap<Arc<str>, Group>,
    pub(super) producers: HashMap<Arc<str>, Producers>,
    /// Groups whose members changed since they were last reported.
    changed: HashSet<Arc<str>>,
}

/// The producers of a topic, so that they can be asked in turns.
#[derive(Debug, Default)]
pub(super) struct Producers {
    pub(super) client_ids: Vec<Arc<str>>,
    /// Where each is in `client_ids`: thousands may leave at once.
    places: HashMap<Arc<str>, usize>,
}

impl Producers {
    /// The client is not among them yet.
    fn insert(&mut self, client_id: &str) {
        let client_id: Arc<str> = client_id.into();
        self.places.insert(client_id.clone(), self.client_ids.len());
        self.client_ids.push(client_id);
    }

    fn remove(&mut self, client_id: &str) {
        let Some(place) = self.places.remove(client_id) else { return };
        self.client_ids.swap_remove(place);
        if let Some(moved) = self.client_ids.get(place) {
            self.places.insert(moved.clone(), place);
        }
    }
}

impl Index {
    /// A client sends to `topic`.
    pub(super) fn publishes(&mut self, client_id: &str, client: &mut Client, topic: &str) {
        if client.publishing.contains(topic) || client.publishing.len() >= TOPICS_MAX {
            return;
        }
        let known = self.producers.get_key_value(topic).map(|(topic, _)| topic.clone());
        let topic = known.unwrap_or_else(|| topic.into());
        client.publishing.insert(topic.clone());
        self.producers.entry(topic).or_default().insert(client_id);
    }

    /// A client is in `group`; nothing is known of what it subscribes to.
    pub(super) fn joins(&mut self, client_id: &str, client: &mut Client, group: &str) {
        self.enter(client_id, client, group, Subscriptions::default());
    }

    /// A client listed all that it subscribes to.
    pub(super) fn announced(&mut self, client_id: &str, client: &mut Client, said: &Subscription) {
        let group = name_of(said.group.as_ref());
        let is_short = |filter: Option<&FilterExpression>| {
            filter.is_none_or(|filter| filter.expression.len() <= FILTER_MAX_BYTES)
        };
        let entries =
            said.subscriptions.iter().filter(|entry| is_short(entry.expression.as_ref())).take(TOPICS_MAX);
        let topics = entries
            .map(|entry| (Arc::from(name_of(entry.topic.as_ref())), Filter::of(entry.expression.as_ref())));
        let subscriptions = Subscriptions { topics: topics.collect(), is_whole: true };
        if client.group.as_deref() != Some(group) || *client.subscriptions != subscriptions {
            self.enter(client_id, client, group, subscriptions);
        }
    }

    /// A client receives from `topic` for `group`.
    pub(super) fn subscribed(
        &mut self,
        client_id: &str,
        client: &mut Client,
        group: &str,
        topic: &str,
        filter: Option<&FilterExpression>,
    ) {
        let mut subscriptions = if client.group.as_deref() == Some(group) {
            Subscriptions::clone(&client.subscriptions)
        } else {
            Subscriptions::default()
        };
        if subscriptions.topics.len() >= TOPICS_MAX && !subscriptions.topics.contains_key(topic) {
            return;
        }
        subscriptions.topics.insert(topic.into(), Filter::of(filter));
        self.enter(client_id, client, group, subscriptions);
    }

    fn enter(&mut self, client_id: &str, client: &mut Client, group: &str, subscriptions: Subscriptions) {
        if group.len() > NAME_MAX_BYTES {
            return;
        }
        if client.group.as_deref() != Some(group) {
            self.leave_group(client_id, client);
            let known = self.groups.get_key_value(group).map(|(group, _)| group.clone());
            client.group = Some(known.unwrap_or_else(|| group.into()));
        }
        client.subscriptions = Arc::new(subscriptions);
        if let Some(group) = &client.group {
            let members = self.groups.entry(group.clone()).or_default();
            members.insert(&client_id.into(), client.subscriptions.clone());
            self.changed.insert(group.clone());
        }
    }

    /// A client is gone.
    pub(super) fn left(&mut self, client_id: &str, client: &Client) {
        self.leave_group(client_id, client);
        for topic in &client.publishing {
            if let Some(producers) = self.producers.get_mut(topic) {
                producers.remove(client_id);
                if producers.client_ids.is_empty() {
                    self.producers.remove(topic);
                }
            }
        }
    }

    fn leave_group(&mut self, client_id: &str, client: &Client) {
        let Some(name) = &client.group else { return };
        let Some(group) = self.groups.get_mut(name) else { return };
        group.remove(client_id);
        if group.is_empty() {
            self.groups.remove(name);
            self.changed.remove(name);
        } else {
            self.changed.insert(name.clone());
        }
    }

    /// Logs which groups have come to contradict themselves, or to agree again, since the last time.
    pub(super) fn report(&mut self) {
        let mut reported = 0;
        let groups = &mut self.groups;
        self.changed.retain(|name| {
            let Some(group) = groups.get_mut(name) else { return false };
            let is_contradicted = group.judgement().is_contradicted();
            if is_contradicted == group.is_reported {
                return false;
            }
            reported += 1;
            if reported > REPORTED_MAX {
                return true;
            }
            group.is_reported = is_contradicted;
            if is_contradicted {
                let words = group.judgement().words().join("; ");
                tracing::warn!(group = &**name, "members of a group subscribe to different things: {words}");
            } else {
                tracing::info!(group = &**name, "all members of the group subscribe to the same again");
            }
            false
        });
    }
}
