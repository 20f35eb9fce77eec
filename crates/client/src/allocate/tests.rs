use proptest::prelude::*;

use super::*;

type Owners = BTreeMap<QueueName, Vec<String>>;

/// What all members together make of it.
fn owners(strategy: &AllocateStrategy, members: &[String], queues: &[QueueName]) -> Owners {
    let mut owners: Owners = queues.iter().map(|queue| (queue.clone(), Vec::new())).collect();
    for member in members {
        for queue in strategy.allocate(member, members, queues) {
            owners.get_mut(&queue).expect("it is one of the queues").push(member.clone());
        }
    }
    owners
}

fn shares(strategy: &AllocateStrategy, members: &[String], queues: &[QueueName]) -> Vec<usize> {
    members.iter().map(|member| strategy.allocate(member, members, queues).len()).collect()
}

fn differ_by_one_at_most(shares: &[usize]) -> bool {
    shares.iter().max().unwrap_or(&0) - shares.iter().min().unwrap_or(&0) <= 1
}

fn rooms() -> BTreeSet<String> {
    ["north".to_owned(), "south".to_owned()].into()
}

fn first_of_circle() -> AllocateStrategy {
    AllocateStrategy::with(|own, members, queues| {
        let mine = |at: usize| members[at % members.len()] == own;
        queues.iter().enumerate().filter(|(at, _)| mine(*at)).map(|(_, queue)| queue.clone()).collect()
    })
}

/// Those under which each queue that is given has an owner.
fn for_all_queues() -> impl Strategy<Value = AllocateStrategy> {
    prop_oneof![
        Just(AllocateStrategy::Averagely),
        Just(AllocateStrategy::AveragelyByCircle),
        (1..40_u16).prop_map(|nodes| AllocateStrategy::ConsistentHash {
            virtual_nodes: NonZeroU16::new(nodes).expect("from one on")
        }),
        Just(first_of_circle()),
    ]
}

fn any_strategy() -> impl Strategy<Value = AllocateStrategy> {
    prop_oneof![for_all_queues(), Just(AllocateStrategy::ByMachineRoom(rooms()))]
}

fn any_members() -> impl Strategy<Value = Vec<String>> {
    prop::collection::btree_set("[a-z]{1,3}@[0-9]{1,2}", 1..12)
        .prop_map(|names| names.into_iter().collect::<Vec<_>>())
        .prop_shuffle()
}

fn any_queues() -> impl Strategy<Value = Vec<QueueName>> {
    let broker = prop::sample::select(vec!["north@a", "north@b", "south@a", "west@a", "a", "northern"]);
    let queue = (prop::sample::select(vec!["orders", "bills"]), broker, 0..8);
    prop::collection::btree_set(queue, 0..60)
        .prop_map(|names| {
            names.into_iter().map(|(topic, broker, id)| QueueName::new(topic, broker, id)).collect::<Vec<_>>()
        })
        .prop_shuffle()
}

proptest! {
    #[test]
    fn every_queue_has_exactly_one_owner(
        strategy in for_all_queues(), members in any_members(), queues in any_queues(),
    ) {
        for (queue, owners) in owners(&strategy, &members, &queues) {
            prop_assert_eq!(owners.len(), 1, "{} of {:?}", queue, owners);
        }
    }

    #[test]
    fn averagely_and_by_circle_give_shares_that_differ_by_at_most_one(
        members in any_members(), queues in any_queues(),
    ) {
        for strategy in [AllocateStrategy::Averagely, AllocateStrategy::AveragelyByCircle] {
            let shares = shares(&strategy, &members, &queues);
            prop_assert!(differ_by_one_at_most(&shares), "{strategy:?}: {shares:?}");
        }
    }

    /// Read forwards a member joins, backwards it leaves.
    #[test]
    fn consistent_hash_moves_only_the_queues_of_the_member_that_joins_or_leaves(
        members in any_members(), joins in "[A-Z]{1,3}", queues in any_queues(),
    ) {
        let strategy = AllocateStrategy::consistent_hash();
        let mut more = members.clone();
        more.push(joins.clone());
        let (before, after) = (owners(&strategy, &members, &queues), owners(&strategy, &more, &queues));
        for (queue, owner) in &after {
            prop_assert!(*owner == [joins.clone()] || *owner == before[queue], "{queue}: {owner:?}");
        }
    }

    #[test]
    fn machine_room_keeps_to_its_rooms_and_shares_them_out_evenly(
        members in any_members(), queues in any_queues(),
    ) {
        let strategy = AllocateStrategy::ByMachineRoom(rooms());
        for (queue, owners) in owners(&strategy, &members, &queues) {
            let inside = queue.broker.starts_with("north@") || queue.broker.starts_with("south@");
            prop_assert_eq!(owners.len(), usize::from(inside), "{}: {:?}", queue, owners);
        }
        prop_assert!(differ_by_one_at_most(&shares(&strategy, &members, &queues)));
    }

    #[test]
    fn configurations_that_share_out_the_queues_give_each_one_owner_and_nothing_that_is_not_there(
        queues in any_queues(), seed in any::<u64>(),
    ) {
        let members = ["a".to_owned(), "b".to_owned()];
        let of_a = |queue: &QueueName| (queue.point() ^ seed).is_multiple_of(2);
        let (mut a, mut b): (BTreeSet<QueueName>, BTreeSet<QueueName>) =
            queues.iter().cloned().partition(of_a);
        a.insert(QueueName::new("gone", "a", 0));
        b.insert(QueueName::new("gone", "a", 1));
        let a = AllocateStrategy::ByConfiguration(a).allocate("a", &members, &queues);
        let b = AllocateStrategy::ByConfiguration(b).allocate("b", &members, &queues);
        prop_assert_eq!(in_order(&[a, b].concat()), in_order(&queues));
    }

    #[test]
    fn the_order_in_which_members_and_queues_are_known_does_not_matter(
        strategy in any_strategy(), members in any_members(), queues in any_queues(),
    ) {
        // Each of them twice, too.
        let turned = |items: &[String]| items.iter().rev().chain(items).cloned().collect::<Vec<_>>();
        let turned_queues: Vec<QueueName> = queues.iter().rev().chain(&queues).cloned().collect();
        for member in &members {
            let own = strategy.allocate(member, &members, &queues);
            prop_assert!(own.is_sorted(), "{own:?}");
            prop_assert_eq!(own, strategy.allocate(member, &turned(&members), &turned_queues));
        }
    }

    #[test]
    fn who_is_no_member_has_no_queues(
        strategy in any_strategy(), members in any_members(), queues in any_queues(),
    ) {
        prop_assert!(strategy.allocate("nobody", &members, &queues).is_empty());
        prop_assert!(strategy.allocate("nobody", &[], &queues).is_empty());
    }
}

fn five() -> Vec<QueueName> {
    (0..5).map(|id| QueueName::new("orders", "north@a", id)).collect()
}

fn ids(strategy: &AllocateStrategy) -> Vec<Vec<i32>> {
    let members = ["a".to_owned(), "b".to_owned(), "c".to_owned()];
    let ids = |member: &String| {
        strategy.allocate(member, &members, &five()).iter().map(|queue| queue.id).collect::<Vec<_>>()
    };
    members.iter().map(ids).collect()
}

#[test]
fn three_members_share_five_queues_as_in_rocketmq() {
    assert_eq!(ids(&AllocateStrategy::Averagely), [vec![0, 1], vec![2, 3], vec![4]]);
    assert_eq!(ids(&AllocateStrategy::AveragelyByCircle), [vec![0, 3], vec![1, 4], vec![2]]);
    assert_eq!(ids(&AllocateStrategy::ByMachineRoom(rooms())), [vec![0, 3], vec![1, 4], vec![2]]);
}

/// Members of different versions must agree: this may never change.
#[test]
fn consistent_hash_is_the_same_for_ever() {
    assert_eq!(ids(&AllocateStrategy::consistent_hash()), [vec![], vec![2, 3, 4], vec![0, 1]]);
}

#[test]
fn what_an_own_function_makes_up_is_passed_over() {
    let strategy = AllocateStrategy::with(|_, _, _| vec![QueueName::new("gone", "a", 0)]);
    assert_eq!(ids(&strategy), [vec![0; 0], vec![], vec![]]);
}
