//! What a restore would do with a cluster, and what is in its way. It asks and changes nothing.

use std::collections::BTreeMap;

use karman_client::{ClientError, Code};
use karman_remoting::proto::karman as v1;

use super::check::{self, Asked, Checked, Counted};
use super::compare::Comparing;
use super::directory::{Begun, Directory};
use super::format::{Complete, GroupCopy, Manifest, TopicCopy};
use crate::cli::Incomplete;
use crate::node::Node;
use crate::user;

/// Names of brokers that were copied, and those of the cluster that take their place.
pub(super) type Brokers = BTreeMap<String, String>;

/// A backup and what becomes of it.
pub(super) struct Plan {
    pub(super) begun: Begun,
    pub(super) checked: Checked,
    pub(super) brokers: Brokers,
    /// Names of topics and groups that the cluster has.
    pub(super) topics_there: Vec<String>,
    pub(super) groups_there: Vec<String>,
    pub(super) users_there: Vec<v1::User>,
    /// Why nothing can be restored.
    pub(super) conflicts: Vec<String>,
}

impl Plan {
    pub(super) fn manifest(&self) -> &Manifest {
        &self.begun.manifest
    }

    /// How many messages of a topic of the manifest are in the cluster.
    pub(super) fn there(&self, index: usize) -> u64 {
        self.checked.queues[index].iter().map(Counted::there).sum()
    }
}

/// Each broker that was copied has one of the cluster for itself: the one of its name, or the one that `map` says.
fn brokers_for(manifest: &Manifest, cluster: &[String], map: &[(String, String)]) -> anyhow::Result<Brokers> {
    let wrong = |text: String| anyhow::Error::from(Incomplete(text));
    let mut brokers = Brokers::new();
    for (from, to) in map {
        if !manifest.brokers.contains(from) {
            let known = manifest.brokers.join(", ");
            return Err(wrong(format!("--broker {from}={to}: the backup is of the brokers {known}")));
        }
        brokers.insert(from.clone(), to.clone());
    }
    for name in &manifest.brokers {
        brokers.entry(name.clone()).or_insert_with(|| name.clone());
    }
    let needed = |name: &String| manifest.topics.iter().any(|topic| topic.broker == *name);
    for (from, to) in brokers.iter().filter(|(from, _)| needed(from)) {
        if !cluster.contains(to) {
            let known = cluster.join(", ");
            let how = format!("say which of its brokers ({known}) takes its place with --broker {from}=NAME");
            return Err(wrong(format!("the cluster has no broker {to}; {how}")));
        }
        if let Some((other, _)) =
            brokers.iter().find(|(other, at)| *other != from && *at == to && needed(other))
        {
            return Err(wrong(format!(
                "{from} and {other} would both go to broker {to}; each needs one of its own"
            )));
        }
    }
    Ok(brokers)
}

/// Looks at everything that the restore touches, then reads the backup.
pub(super) async fn plan(
    directory: &Directory,
    map: &[(String, String)],
    node: &Node,
) -> anyhow::Result<Plan> {
    let (begun, complete) = check::open(directory)?;
    let described =
        node.answer(node.admin()?.describe_cluster(node.request(v1::DescribeClusterRequest {}))).await?;
    let cluster: Vec<String> = described.brokers.into_iter().map(|broker| broker.broker_name).collect();
    let brokers = brokers_for(&begun.manifest, &cluster, map)?;
    let listed = node.answer(node.admin()?.list_topics(node.request(v1::ListTopicsRequest {}))).await?;
    let mut looking = Looking {
        node,
        manifest: &begun.manifest,
        brokers: &brokers,
        listed: listed.topics,
        conflicts: Vec::new(),
    };
    let asked = looking.topics().await?;
    let groups_there = looking.groups().await?;
    let Looking { listed, mut conflicts, .. } = looking;
    let mut topics_there: Vec<String> = listed.into_iter().filter_map(|row| Some(row.topic?.name)).collect();
    topics_there.dedup();
    let checked = read(directory, &begun, &complete, asked)?;
    let comparing = Comparing { directory, begun: &begun, brokers: &brokers, checked: &checked, node };
    conflicts.extend(comparing.other_messages().await?);
    let users_there = if begun.manifest.users.is_empty() { Vec::new() } else { user::list(node, "").await? };
    Ok(Plan { begun, checked, brokers, topics_there, groups_there, users_there, conflicts })
}

fn read(
    directory: &Directory,
    begun: &Begun,
    complete: &Complete,
    mut asked: Vec<Vec<Asked>>,
) -> anyhow::Result<Checked> {
    let manifest = &begun.manifest;
    let places = manifest.groups.iter().flat_map(|group| &group.places);
    for place in places {
        let is_of = |topic: &TopicCopy| topic.name() == place.topic && topic.broker == place.broker;
        let Some(index) = manifest.topics.iter().position(is_of) else { continue };
        for (queue, committed) in asked[index].iter_mut().zip(&place.committed) {
            queue.offsets.insert(*committed, 0);
        }
    }
    check::check(directory, begun, complete, asked)
}

struct Looking<'a> {
    node: &'a Node,
    manifest: &'a Manifest,
    brokers: &'a Brokers,
    listed: Vec<v1::TopicSummary>,
    conflicts: Vec<String>,
}

impl Looking<'_> {
    /// How many messages each queue of the backup has in the cluster.
    async fn topics(&mut self) -> anyhow::Result<Vec<Vec<Asked>>> {
        let mut all = Vec::with_capacity(self.manifest.topics.len());
        for copy in &self.manifest.topics {
            let mut asked = vec![Asked::default(); copy.queues.len()];
            let broker = &self.brokers[&copy.broker];
            let is_it = |row: &&v1::TopicSummary| {
                row.broker_name == *broker
                    && row.topic.as_ref().is_some_and(|topic| topic.name == copy.name())
            };
            if let Some(there) = self.listed.iter().find(is_it).and_then(|row| row.topic.clone()) {
                self.compare(copy, &there);
                let request = v1::DescribeTopicRequest { name: copy.name().to_owned(), at_ms: None };
                let described =
                    self.node.answer(self.node.admin()?.describe_topic(self.node.request(request))).await?;
                for queue in described.queues.iter().filter(|queue| queue.broker_name == *broker) {
                    if let Some(asked) = asked.get_mut(queue.queue_id as usize) {
                        asked.have = queue.max_offset;
                    }
                }
            }
            all.push(asked);
        }
        Ok(all)
    }

    fn compare(&mut self, copy: &TopicCopy, there: &v1::TopicConfig) {
        let same_type = there.message_type == copy.config.message_type;
        if !same_type || (there.queue_nums as usize) < copy.queues.len() {
            let words = |topic: &v1::TopicConfig| {
                let kind = topic.message_type().as_str_name().to_ascii_lowercase();
                format!("{kind} with {} queues", topic.queue_nums)
            };
            let (was, is) = (words(&copy.config), words(there));
            self.conflicts.push(format!("topic {} was {was} and is {is}", copy.name()));
        }
    }

    /// Groups that are there; one that is delivered to would read what is not restored yet.
    async fn groups(&mut self) -> anyhow::Result<Vec<String>> {
        let mut there = Vec::new();
        for copy in &self.manifest.groups {
            let name = copy.config.name.clone();
            let request = v1::DescribeGroupRequest { name: name.clone(), topic: String::new() };
            let asked = self.node.answer(self.node.admin()?.describe_group(self.node.request(request))).await;
            let described = match asked {
                Ok(described) => described,
                Err(error) if is_no_group(&error) => continue,
                Err(error) => return Err(error),
            };
            for config in described.groups {
                let as_copied = v1::GroupConfig { suspended: copy.config.suspended, ..config.clone() };
                if as_copied != copy.config {
                    self.conflicts.push(format!("group {name} is there with other settings"));
                    break;
                }
                if !config.suspended {
                    let how = format!("suspend it first (karman group suspend {name})");
                    self.conflicts.push(format!("group {name} is there and is delivered to: {how}"));
                    break;
                }
            }
            there.push(name);
        }
        Ok(there)
    }
}

fn is_no_group(error: &anyhow::Error) -> bool {
    let code = error.downcast_ref::<ClientError>().and_then(ClientError::code);
    code == Some(Code::ConsumerGroupNotFound)
}

/// Where a group is with each queue of a topic once that is restored.
pub(super) fn place_in<'a>(
    plan: &'a Plan,
    group: &'a GroupCopy,
) -> impl Iterator<Item = (&'a TopicCopy, u32, u64)> {
    group.places.iter().flat_map(move |place| {
        let topics = plan.manifest().topics.iter().zip(&plan.checked.queues);
        let mut own = topics.filter(|(topic, _)| topic.name() == place.topic && topic.broker == place.broker);
        let (topic, queues) =
            own.next().map_or((None, &[][..]), |(topic, queues)| (Some(topic), &queues[..]));
        (0u32..).zip(queues).zip(&place.committed).filter_map(move |((queue_id, queue), committed)| {
            Some((topic?, queue_id, *queue.asked.offsets.get(committed)?))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_broker_of_a_backup_has_one_of_the_cluster_for_itself() {
        let topic = |broker: &str| TopicCopy { broker: broker.into(), ..Default::default() };
        let manifest = Manifest {
            brokers: vec!["a".into(), "b".into(), "idle".into()],
            topics: vec![topic("a"), topic("b")],
            ..Default::default()
        };
        let brokers = |cluster: &[&str], map: &[(&str, &str)]| {
            let cluster: Vec<String> = cluster.iter().map(|name| (*name).to_owned()).collect();
            let map: Vec<_> = map.iter().map(|(from, to)| ((*from).into(), (*to).into())).collect();
            let brokers = brokers_for(&manifest, &cluster, &map).map_err(|error| error.to_string())?;
            Ok::<_, String>(format!("{} {}", brokers["a"], brokers["b"]))
        };
        assert_eq!(brokers(&["a", "b"], &[]), Ok("a b".into()));
        assert_eq!(brokers(&["a", "c"], &[("b", "c")]), Ok("a c".into()));
        assert_eq!(brokers(&["a", "b"], &[("a", "b"), ("b", "a")]), Ok("b a".into()));
        assert!(brokers(&["a", "c"], &[]).unwrap_err().contains("--broker b=NAME"));
        assert!(brokers(&["a", "c"], &[("b", "a")]).unwrap_err().contains("both go to broker a"));
        assert!(brokers(&["a", "b"], &[("x", "a")]).unwrap_err().contains("a, b, idle"));
    }
}
