//! Whether the members of a consumer group subscribe to the same. Pure; owned by the registry, behind its lock.
//!
//! Members that subscribe to the same are kept together, so a group that agrees costs nothing to judge, however many
//! members it has.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, OnceLock};

use crate::proto::v2::{FilterExpression, FilterType};

/// Different sets of subscriptions that are compared; a group with more is contradicted enough.
const KINDS_JUDGED_MAX: usize = 64;
/// Filters of one topic that a contradiction names.
const VARIANTS_MAX: usize = 4;
/// Topics that [`Judgement::words`] tells of.
const TOPICS_TOLD_MAX: usize = 64;

/// What a member wants of a topic; equal wishes are equal values.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Filter {
    is_sql: bool,
    expression: String,
}

impl Filter {
    pub(super) fn of(sent: Option<&FilterExpression>) -> Self {
        let is_sql = sent.is_some_and(|filter| filter.r#type() == FilterType::Sql);
        let text = sent.map_or("", |filter| filter.expression.trim());
        let expression = if is_sql {
            text.to_owned()
        } else if text.is_empty() {
            "*".to_owned()
        } else {
            let tags: BTreeSet<&str> = text.split("||").map(str::trim).collect();
            Vec::from_iter(tags).join(" || ")
        };
        Self { is_sql, expression }
    }

    /// Whether [`Self::of`] would give this.
    pub(super) fn is(&self, sent: Option<&FilterExpression>) -> bool {
        let same_text = sent.is_some_and(|filter| {
            self.expression == filter.expression && self.is_sql == (filter.r#type() == FilterType::Sql)
        });
        same_text || *self == Self::of(sent)
    }

    pub(super) fn expression(&self) -> FilterExpression {
        let kind = if self.is_sql { FilterType::Sql } else { FilterType::Tag };
        FilterExpression { r#type: kind.into(), expression: self.expression.clone() }
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", if self.is_sql { "SQL" } else { "TAG" }, self.expression)
    }
}

/// The subscriptions of one member.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Subscriptions {
    pub(super) topics: BTreeMap<Arc<str>, Filter>,
    /// The client listed them in its settings: it does not subscribe to a topic that is missing. Of a client that is
    /// only known by what it received, nobody knows that.
    pub(super) is_whole: bool,
}

/// The members of one group.
#[derive(Debug, Default)]
pub(super) struct Group {
    members: HashMap<Arc<str>, Arc<Subscriptions>>,
    /// Members by what they subscribe to: one entry where all agree.
    kinds: BTreeMap<Arc<Subscriptions>, BTreeSet<Arc<str>>>,
    /// Made when it is asked for, dropped when a member changes.
    judgement: OnceLock<Judgement>,
    /// What the last log line about the group said.
    pub(super) is_reported: bool,
}

impl Group {
    /// A member came, or subscribes to something else now.
    pub(super) fn insert(&mut self, client_id: &Arc<str>, subscriptions: Arc<Subscriptions>) {
        self.remove(client_id);
        self.kinds.entry(subscriptions.clone()).or_default().insert(client_id.clone());
        self.members.insert(client_id.clone(), subscriptions);
    }

    /// A member is gone.
    pub(super) fn remove(&mut self, client_id: &str) {
        self.judgement.take();
        let Some(subscriptions) = self.members.remove(client_id) else { return };
        if let Some(clients) = self.kinds.get_mut(&subscriptions) {
            clients.remove(client_id);
            if clients.is_empty() {
                self.kinds.remove(&subscriptions);
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub(super) fn members(&self) -> impl Iterator<Item = &Arc<str>> {
        self.members.keys()
    }

    pub(super) fn judgement(&self) -> &Judgement {
        self.judgement.get_or_init(|| judge(&self.kinds))
    }

    /// In what a member is contradicted about `topic`.
    pub(super) fn contradiction(&self, topic: &str, client_id: &str) -> Option<String> {
        let variants = self.judgement().topics.get(topic)?;
        let own = self.members.get(client_id)?.topics.get(topic)?;
        let other = variants.iter().find(|variant| variant.filter.as_ref() != Some(own))?;
        Some(format!("this client subscribes {topic:?} with {own}, {other}"))
    }
}

/// The topics that members of a group disagree about.
#[derive(Debug, Default)]
pub(super) struct Judgement {
    /// At least two each; those who do not subscribe come last.
    topics: BTreeMap<Arc<str>, Vec<Variant>>,
}

/// One of the things that members want of a topic, and one of those who do.
#[derive(Debug)]
struct Variant {
    client_id: Arc<str>,
    /// `None`: the client does not subscribe to the topic.
    filter: Option<Filter>,
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.filter {
            Some(filter) => write!(f, "client {:?} with {filter}", self.client_id),
            None => write!(f, "client {:?} not at all", self.client_id),
        }
    }
}

impl Judgement {
    pub(super) fn is_contradicted(&self) -> bool {
        !self.topics.is_empty()
    }

    /// One sentence for each topic in dispute.
    pub(super) fn words(&self) -> Vec<String> {
        let sentence = |(topic, variants): (&Arc<str>, &Vec<Variant>)| {
            let others: Vec<String> = variants.iter().skip(1).map(Variant::to_string).collect();
            let first = &variants[0];
            let filter = first.filter.as_ref().map_or_else(String::new, Filter::to_string);
            format!("client {:?} subscribes {topic:?} with {filter}, {}", first.client_id, others.join(", "))
        };
        self.topics.iter().take(TOPICS_TOLD_MAX).map(sentence).collect()
    }
}

fn judge(kinds: &BTreeMap<Arc<Subscriptions>, BTreeSet<Arc<str>>>) -> Judgement {
    if kinds.len() < 2 {
        return Judgement::default();
    }
    let mut judged: Vec<(&Subscriptions, &Arc<str>)> = kinds
        .iter()
        .take(KINDS_JUDGED_MAX)
        .filter_map(|(subscriptions, clients)| Some((&**subscriptions, clients.first()?)))
        .collect();
    judged.sort_by_key(|(_, client_id)| *client_id);
    let topics: BTreeSet<&Arc<str>> =
        judged.iter().flat_map(|(subscriptions, _)| subscriptions.topics.keys()).collect();
    let disputed = topics.into_iter().filter_map(|topic| {
        let mut variants: Vec<Variant> = Vec::new();
        for (subscriptions, client_id) in &judged {
            let filter = subscriptions.topics.get(topic);
            let is_known = filter.is_some() || subscriptions.is_whole;
            let is_new = variants.iter().all(|variant| variant.filter.as_ref() != filter);
            if is_known && is_new && variants.len() < VARIANTS_MAX {
                variants.push(Variant { client_id: (*client_id).clone(), filter: filter.cloned() });
            }
        }
        // Somebody subscribes to it, or it would not be a topic here.
        variants.sort_by_key(|variant| variant.filter.is_none());
        (variants.len() > 1).then(|| (topic.clone(), variants))
    });
    Judgement { topics: disputed.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(expression: &str) -> FilterExpression {
        FilterExpression { r#type: FilterType::Tag.into(), expression: expression.into() }
    }

    fn subscriptions(is_whole: bool, topics: &[(&str, &str)]) -> Arc<Subscriptions> {
        let topics =
            topics.iter().map(|(topic, tags)| (Arc::from(*topic), Filter::of(Some(&tag(tags))))).collect();
        Arc::new(Subscriptions { topics, is_whole })
    }

    #[test]
    fn filters_that_mean_the_same_are_equal() {
        for (one, other) in [("", "*"), (" a||b ", "b || a"), ("a || a", "a")] {
            assert_eq!(Filter::of(Some(&tag(one))), Filter::of(Some(&tag(other))), "{one:?} {other:?}");
            assert!(Filter::of(Some(&tag(one))).is(Some(&tag(other))));
        }
        assert!(Filter::of(None).is(Some(&tag("*"))));
        let sql = FilterExpression { r#type: FilterType::Sql.into(), expression: "a || b".into() };
        assert!(!Filter::of(Some(&sql)).is(Some(&tag("a || b"))));
        assert_eq!(Filter::of(Some(&sql)).expression(), sql);
    }

    #[test]
    fn members_that_want_the_same_do_not_contradict_each_other() {
        let mut group = Group::default();
        for client in ["a", "b", "c"] {
            group.insert(&client.into(), subscriptions(true, &[("orders", "x || y"), ("pay", "*")]));
        }
        // What it has not received yet is not said.
        group.insert(&"d".into(), subscriptions(false, &[("orders", "y||x")]));
        assert!(!group.judgement().is_contradicted(), "{:?}", group.judgement().words());
    }

    #[test]
    fn a_contradiction_names_the_clients_and_what_they_want() {
        let mut group = Group::default();
        group.insert(&"A".into(), subscriptions(true, &[("orders", "a")]));
        group.insert(&"B".into(), subscriptions(true, &[("orders", "b"), ("pay", "*")]));
        assert_eq!(
            group.judgement().words(),
            [
                r#"client "A" subscribes "orders" with TAG "a", client "B" with TAG "b""#,
                r#"client "B" subscribes "pay" with TAG "*", client "A" not at all"#,
            ]
        );
        assert_eq!(
            group.contradiction("orders", "B").unwrap(),
            r#"this client subscribes "orders" with TAG "b", client "A" with TAG "a""#
        );
        assert_eq!(group.contradiction("other", "B"), None);
        group.insert(&"A".into(), subscriptions(true, &[("orders", "b"), ("pay", "*")]));
        assert!(!group.judgement().is_contradicted());
        group.insert(&"A".into(), subscriptions(true, &[]));
        assert!(group.judgement().is_contradicted());
        group.remove("A");
        assert!(!group.judgement().is_contradicted() && !group.is_empty());
    }

    #[test]
    fn a_group_whose_members_all_differ_is_judged_within_bounds() {
        let mut group = Group::default();
        for n in 0..1000 {
            let wanted = [("orders".to_owned(), n.to_string()), (format!("own-{n}"), "*".to_owned())];
            let wanted: Vec<_> = wanted.iter().map(|(topic, tags)| (topic.as_str(), tags.as_str())).collect();
            group.insert(&n.to_string().into(), subscriptions(true, &wanted));
        }
        let words = group.judgement().words();
        assert!(words.len() <= TOPICS_TOLD_MAX && words.iter().all(|words| words.len() < 1000));
    }
}
