//! The rows of the progress table, by group.
//!
//! Plain data, used by [`super::ProgressTable`] alone, under its lock.

use std::collections::HashMap;
use std::sync::Arc;

use super::GroupTopic;

/// Whose progress it is, by numbers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct RowKey {
    /// Number of the group.
    pub(super) group: u32,
    /// Number of the topic.
    pub(super) topic: u32,
    /// Of a broadcasting group: the client.
    pub(super) client: Option<Arc<str>>,
}

/// The rows of a group, by topic and client.
type GroupRows = HashMap<(u32, Option<Arc<str>>), Arc<GroupTopic>>;

/// All rows.
#[derive(Debug, Default)]
pub(super) struct Rows {
    of_group: HashMap<u32, GroupRows>,
    count: usize,
}

impl Rows {
    /// How many rows there are.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// The rows of a group.
    pub(super) fn of_group(&self, group: u32) -> impl Iterator<Item = &Arc<GroupTopic>> {
        self.of_group.get(&group).into_iter().flat_map(HashMap::values)
    }

    /// The row of a key.
    pub(super) fn get(&self, key: &RowKey) -> Option<&Arc<GroupTopic>> {
        self.of_group.get(&key.group)?.get(&(key.topic, key.client.clone()))
    }

    /// A new row; its key is free.
    pub(super) fn insert(&mut self, key: RowKey, row: Arc<GroupTopic>) {
        self.of_group.entry(key.group).or_default().insert((key.topic, key.client), row);
        self.count += 1;
    }

    /// Takes a row out.
    pub(super) fn remove(&mut self, key: &RowKey) -> Option<Arc<GroupTopic>> {
        let of_group = self.of_group.get_mut(&key.group)?;
        let removed = of_group.remove(&(key.topic, key.client.clone()))?;
        if of_group.is_empty() {
            self.of_group.remove(&key.group);
        }
        self.count -= 1;
        Some(removed)
    }

    /// Takes all rows of a topic out.
    pub(super) fn remove_topic(&mut self, topic: u32) {
        self.of_group.retain(|_, rows| {
            rows.retain(|(own, _), _| *own != topic);
            !rows.is_empty()
        });
        self.count = self.of_group.values().map(HashMap::len).sum();
    }

    /// Takes all rows of a group out.
    pub(super) fn remove_group(&mut self, group: u32) -> impl Iterator<Item = Arc<GroupTopic>> + use<> {
        let removed = self.of_group.remove(&group).unwrap_or_default();
        self.count -= removed.len();
        removed.into_values()
    }

    /// Every row.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<GroupTopic>> {
        self.of_group.values().flat_map(HashMap::values)
    }
}
