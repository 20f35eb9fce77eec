//! Which member of a group reads which queues. Pure: every member computes the same from the same knowledge, and nobody
//! has to decide for all.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::NonZeroU16;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The name of a queue: what tells it from all others of a cluster.
///
/// ```no_run
/// # use karman_client::QueueName;
/// let queue = QueueName::new("orders", "broker-a", 3);
/// assert_eq!(queue.to_string(), "orders/broker-a/3");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueName {
    /// The topic it belongs to.
    pub topic: String,
    /// The name of its broker.
    pub broker: String,
    /// Its number on that broker.
    pub id: i32,
}

impl QueueName {
    /// The queue with the number `id` that `topic` has on `broker`.
    pub fn new(topic: impl Into<String>, broker: impl Into<String>, id: i32) -> Self {
        Self { topic: topic.into(), broker: broker.into(), id }
    }

    /// Of the broker `north@a` it is `north`. A broker without `@` is in no room.
    fn room(&self) -> Option<&str> {
        self.broker.split_once('@').map(|(room, _)| room)
    }

    /// The same on every machine and in every version.
    fn point(&self) -> u64 {
        xxh3_64_with_seed(self.to_string().as_bytes(), 0)
    }
}

impl fmt::Display for QueueName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.topic, self.broker, self.id)
    }
}

/// A function of the application's own that allocates queues.
#[derive(Clone)]
pub struct AllocateWith(Arc<Allocate>);

type Allocate = dyn Fn(&str, &[String], &[QueueName]) -> Vec<QueueName> + Send + Sync;

impl fmt::Debug for AllocateWith {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AllocateWith").finish_non_exhaustive()
    }
}

/// How the queues of a topic are shared out among the members of a group. All members of a group must use the same
/// strategy with the same settings: else queues have two owners, or none.
///
/// ```no_run
/// # use std::num::NonZeroU16;
/// # use karman_client::{AllocateStrategy, QueueName};
/// let queues: Vec<QueueName> = (0..4).map(|id| QueueName::new("orders", "broker-a", id)).collect();
/// let members = ["a".to_owned(), "b".to_owned()];
/// assert_eq!(AllocateStrategy::Averagely.allocate("a", &members, &queues), queues[..2]);
///
/// let evener = AllocateStrategy::ConsistentHash { virtual_nodes: NonZeroU16::MAX };
/// let nearby = AllocateStrategy::ByMachineRoom(["north".to_owned()].into());
/// # let _ = (evener, nearby);
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum AllocateStrategy {
    /// A run of neighbours for each member, of lengths that differ by at most one.
    #[default]
    Averagely,
    /// One queue for each member in turn, until there is none left. The queues of a broker are spread over all members.
    AveragelyByCircle,
    /// When a member comes or goes, only the queues move that it gets or had. The shares are less even, the less so the
    /// more points each member has on the ring; [`AllocateStrategy::consistent_hash`] takes RocketMQ's number.
    ConsistentHash {
        /// Points of a member on the ring.
        virtual_nodes: NonZeroU16,
    },
    /// Averagely, the queues of brokers of these rooms alone: a broker `north@a` is of the room `north`. Queues of other
    /// rooms, and of brokers without `@`, have no owner.
    ByMachineRoom(BTreeSet<String>),
    /// These, as far as there are such queues, whoever else is a member. That each queue has one owner is the affair of
    /// whoever wrote the configurations.
    ByConfiguration(BTreeSet<QueueName>),
    /// What a function of the application's own says, see [`AllocateStrategy::with`].
    With(AllocateWith),
}

/// Points of a member on the ring, as many as in RocketMQ.
const VIRTUAL_NODES: NonZeroU16 = NonZeroU16::new(10).expect("ten is not zero");

impl AllocateStrategy {
    /// [`AllocateStrategy::ConsistentHash`] with 10 points for each member.
    ///
    /// ```no_run
    /// # use karman_client::AllocateStrategy;
    /// let few_moves = AllocateStrategy::consistent_hash();
    /// # let _ = few_moves;
    /// ```
    pub fn consistent_hash() -> Self {
        Self::ConsistentHash { virtual_nodes: VIRTUAL_NODES }
    }

    /// Calls `allocate` with the member's own id, the ids of all members, and the readable queues of one topic, both in
    /// order and each once. Its answer is the member's own queues; what is not among the queues is passed over.
    ///
    /// ```no_run
    /// # use karman_client::{AllocateStrategy, QueueName};
    /// let first_takes_all = AllocateStrategy::with(|own: &str, members: &[String], queues: &[QueueName]| {
    ///     if members.first().is_some_and(|first| first == own) { queues.to_vec() } else { Vec::new() }
    /// });
    /// # let _ = first_takes_all;
    /// ```
    pub fn with(
        allocate: impl Fn(&str, &[String], &[QueueName]) -> Vec<QueueName> + Send + Sync + 'static,
    ) -> Self {
        Self::With(AllocateWith(Arc::new(allocate)))
    }

    /// The queues of `queues` that `own` reads when `members` are the members of the group, in order. In which order
    /// members and queues are given does not matter. Who is no member has no queues.
    ///
    /// It is meant for the queues of one topic: with those of several the shares are even over all of them, but not
    /// within each topic.
    pub fn allocate(&self, own: &str, members: &[String], queues: &[QueueName]) -> Vec<QueueName> {
        let members = in_order(members);
        let queues = in_order(queues);
        let Ok(at) = members.binary_search_by(|member| member.as_str().cmp(own)) else { return Vec::new() };
        match self {
            Self::Averagely => averagely(at, members.len(), &queues),
            Self::AveragelyByCircle => queues.into_iter().skip(at).step_by(members.len()).collect(),
            Self::ConsistentHash { virtual_nodes } => {
                let ring = Ring::new(&members, *virtual_nodes);
                queues.into_iter().filter(|queue| ring.owner(queue.point()) == Some(own)).collect()
            }
            Self::ByMachineRoom(rooms) => {
                by_machine_room(at, members.len(), queues.into_iter().filter(|queue| in_rooms(queue, rooms)))
            }
            Self::ByConfiguration(own) => queues.into_iter().filter(|queue| own.contains(queue)).collect(),
            Self::With(allocate) => {
                let wanted: BTreeSet<QueueName> = (allocate.0)(own, &members, &queues).into_iter().collect();
                queues.into_iter().filter(|queue| wanted.contains(queue)).collect()
            }
        }
    }
}

fn in_order<T: Ord + Clone>(items: &[T]) -> Vec<T> {
    let mut items = items.to_vec();
    items.sort();
    items.dedup();
    items
}

/// The run of the member number `at` of `count`: the first ones get what does not divide evenly.
fn averagely(at: usize, count: usize, queues: &[QueueName]) -> Vec<QueueName> {
    let (share, rest) = (queues.len() / count, queues.len() % count);
    let begin = at * share + at.min(rest);
    let end = begin + share + usize::from(at < rest);
    queues[begin..end].to_vec()
}

fn in_rooms(queue: &QueueName, rooms: &BTreeSet<String>) -> bool {
    queue.room().is_some_and(|room| rooms.contains(room))
}

/// Even runs, and what does not divide evenly one by one to the first members, from the end of the list.
fn by_machine_room(at: usize, count: usize, queues: impl Iterator<Item = QueueName>) -> Vec<QueueName> {
    let queues: Vec<QueueName> = queues.collect();
    let share = queues.len() / count;
    let run = queues[at * share..(at + 1) * share].iter();
    run.chain(queues.get(share * count + at)).cloned().collect()
}

/// Members at their points; a queue belongs to the next point from its own on.
struct Ring<'a>(BTreeMap<u64, &'a str>);

impl<'a> Ring<'a> {
    /// Of two members at the same point the first one has it, whoever else is there.
    fn new(members: &'a [String], virtual_nodes: NonZeroU16) -> Self {
        let mut points = BTreeMap::new();
        for member in members {
            for number in 1..=u64::from(virtual_nodes.get()) {
                points.entry(xxh3_64_with_seed(member.as_bytes(), number)).or_insert(member.as_str());
            }
        }
        Self(points)
    }

    fn owner(&self, point: u64) -> Option<&'a str> {
        let next = self.0.range(point..).next().or_else(|| self.0.first_key_value());
        next.map(|(_, member)| *member)
    }
}

#[cfg(test)]
mod tests;
