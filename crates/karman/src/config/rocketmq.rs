//! What becomes of the keys of RocketMQ's configuration files: a table that is compiled in. Pure.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Role;

const TABLE: &str = include_str!("rocketmq.toml");

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    node: Keys,
    broker: Keys,
    namesrv: Keys,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Keys {
    /// Key and its default in RocketMQ.
    same: BTreeMap<String, String>,
    renamed: BTreeMap<String, Vec<String>>,
    notes: BTreeMap<String, String>,
    not_needed: Vec<Group>,
    not_supported: Vec<Group>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    why: String,
    keys: Vec<String>,
}

/// What becomes of a key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fate<'a> {
    /// It is one of ours.
    Same,
    /// It is one or more of ours, with the same value.
    Renamed(&'a [String]),
    /// What it is for is not needed here, and why.
    NotNeeded(&'a str),
    /// What it is for does not exist here, and what to do about it.
    NotSupported(&'a str),
}

/// RocketMQ's keys of one role.
#[derive(Debug)]
pub(super) struct RocketMq([Keys; 2]);

impl RocketMq {
    pub(super) fn of(role: Role) -> Self {
        let table: Table = toml::from_str(TABLE).expect("the table was tested");
        Self([table.node, if role == Role::Broker { table.broker } else { table.namesrv }])
    }

    pub(super) fn fate(&self, key: &str) -> Option<Fate<'_>> {
        self.0.iter().find_map(|keys| {
            let same = keys.same.contains_key(key).then_some(Fate::Same);
            same.or_else(|| keys.renamed.get(key).map(|names| Fate::Renamed(names)))
                .or_else(|| why(&keys.not_needed, key).map(Fate::NotNeeded))
                .or_else(|| why(&keys.not_supported, key).map(Fate::NotSupported))
        })
    }

    /// What is to be looked at after an import.
    pub(super) fn note(&self, key: &str, value: &str) -> Option<&str> {
        let of_value = format!("{key}={value}");
        let mut notes = self.0.iter().flat_map(|keys| &keys.notes);
        notes.find(|(known, _)| *known == key || **known == of_value).map(|(_, note)| note.as_str())
    }

    /// Keys that are ours too, with RocketMQ's default; empty if that depends on the machine, or there is none.
    pub(super) fn same(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().flat_map(|keys| &keys.same).map(|(key, default)| (key.as_str(), default.as_str()))
    }

    /// RocketMQ's name for a key of ours that has another there.
    pub(super) fn name_of(&self, ours: &str) -> Option<&str> {
        let mut renamed = self.0.iter().flat_map(|keys| &keys.renamed);
        renamed.find(|(_, names)| names.iter().any(|name| name == ours)).map(|(theirs, _)| theirs.as_str())
    }
}

fn why<'a>(groups: &'a [Group], key: &str) -> Option<&'a str> {
    groups.iter().find(|group| group.keys.iter().any(|known| known == key)).map(|group| group.why.as_str())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Everything of a role, with what is done with it.
    fn all(table: &RocketMq) -> Vec<(&str, bool)> {
        let mut all = Vec::new();
        for keys in &table.0 {
            all.extend(keys.same.keys().chain(keys.renamed.keys()).map(|key| (key.as_str(), true)));
            let groups = keys.not_needed.iter().chain(&keys.not_supported);
            all.extend(groups.flat_map(|group| &group.keys).map(|key| (key.as_str(), false)));
        }
        all
    }

    // The counts are those of RocketMQ's classes.
    #[test]
    fn every_key_of_rocketmq_has_one_fate_and_what_we_have_is_taken() {
        for (role, count) in [(Role::Broker, 509), (Role::Namesrv, 98)] {
            let (table, ours) = (RocketMq::of(role), role.keys());
            let is_ours = |key: &str| ours.iter().any(|known| known.name == key);
            let mut seen = BTreeSet::new();
            for (key, taken) in all(&table) {
                assert!(seen.insert(key.to_owned()), "{key} of a {} is there twice", role.name());
                assert!(
                    taken || !is_ours(key),
                    "{key} is a key of ours now: move it to [{}.same]",
                    role.name()
                );
            }
            for (key, _) in table.same() {
                assert!(is_ours(key), "a {} has no key {key}", role.name());
            }
            for key in table.0.iter().flat_map(|keys| keys.renamed.values().flatten()) {
                assert!(is_ours(key), "a {} has no key {key}", role.name());
            }
            assert_eq!(seen.len(), count, "keys of a {}", role.name());
        }
    }

    #[test]
    fn a_key_is_known_by_its_role() {
        let broker = RocketMq::of(Role::Broker);
        assert_eq!(broker.fate("flushDiskType"), Some(Fate::Same));
        assert!(matches!(broker.fate("transientStorePoolEnable"), Some(Fate::NotNeeded(_))));
        assert!(matches!(broker.fate("messageDelayLevel"), Some(Fate::NotSupported(_))));
        assert_eq!(broker.fate("kvConfigPath"), None);
        assert_eq!(broker.name_of("tlsServerMode"), Some("tls.server.mode"));
        assert!(matches!(RocketMq::of(Role::Namesrv).fate("kvConfigPath"), Some(Fate::NotNeeded(_))));
    }
}
