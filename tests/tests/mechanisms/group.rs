//! What a group gets, with the official clients on two brokers: the most important first; what it is told when its members
//! contradict one another, and when it is moved while it runs.

use karman_tests::stage::{DEADLINE, create_topic, deliveries, ids, named, two_brokers};
use karman_tests::{Cluster, Driver, Language, Ledger, Stage, until};

const TOPIC: &str = "prices";
const GROUP: &str = "watching";

fn cluster(kind: &str) -> Cluster {
    let cluster = two_brokers();
    create_topic(&cluster, TOPIC, kind);
    cluster
}

/// Each broker gives its most important messages first, and they all fit into one answer: the priority rises once at
/// most, where the answer of the other broker begins.
fn the_most_important_come_first(language: Language) {
    let cluster = cluster("priority");
    let stage = Stage::through_namesrv(&cluster, language);
    let options = [("count", "40"), ("priority", "5"), ("threads", "1"), ("seed", "priority")];
    let produced = stage.produce(TOPIC, &options);
    let options = [("group", GROUP), ("count", "40"), ("threads", "1"), ("batch", "32")];
    let consumed = stage.run("consume-simple", TOPIC, &options);
    let mut ledger = Ledger::default();
    ledger.add(produced);
    let priority = |id: &Option<String>| ledger.sent[id.as_deref().unwrap()].priority.unwrap();
    let priorities: Vec<i32> = named(&consumed, "message").map(|event| priority(&event.id)).collect();
    let rises = priorities.windows(2).filter(|pair| pair[0] < pair[1]).count();
    assert!(rises <= 1, "{priorities:?}");
    ledger.add(consumed);
    ledger.assert_exactly_once();
}

fn a_group_that_is_moved_back_gets_all_again(language: Language) {
    let cluster = cluster("normal");
    let stage = Stage::through_namesrv(&cluster, language);
    let mut ledger = Ledger::default();
    ledger.add(stage.produce(TOPIC, &[("count", "40"), ("seed", "again")]));
    let mut consumer = stage.start("consume-push", TOPIC, &[("group", GROUP)]);
    consumer.wait_count("consumed", 40, DEADLINE);
    let reset = |to: &str| cluster.karman(&["offset", "reset", GROUP, TOPIC, to, "--yes"]);
    reset("--earliest");
    consumer.wait_count("consumed", 80, DEADLINE);
    // What is skipped is not seen, what comes after it is.
    cluster.karman(&["group", "suspend", GROUP]);
    let skipped = stage.produce(TOPIC, &[("count", "20"), ("seed", "skipped")]);
    reset("--latest");
    cluster.karman(&["group", "resume", GROUP]);
    ledger.add(stage.produce(TOPIC, &[("count", "20"), ("seed", "after")]));
    consumer.wait_count("consumed", 100, DEADLINE);
    let consumed = consumer.stop();
    let seen = deliveries(&consumed);
    assert!(ids(&skipped, "sent").iter().all(|id| !seen.contains_key(id)), "skipped, but seen");
    let twice = seen.values().filter(|deliveries| deliveries.len() == 2).count();
    assert_eq!((seen.len(), twice), (60, 40));
    ledger.add(consumed);
    ledger.assert_nothing_lost();
}

#[test]
fn the_most_important_come_first_to_java() {
    the_most_important_come_first(Language::Java);
}

#[test]
fn the_most_important_come_first_to_python() {
    the_most_important_come_first(Language::Python);
}

#[test]
fn the_most_important_come_first_to_go() {
    the_most_important_come_first(Language::Go);
}

#[test]
fn the_most_important_come_first_to_node() {
    the_most_important_come_first(Language::Node);
}

#[test]
fn java_sees_that_its_group_is_moved() {
    a_group_that_is_moved_back_gets_all_again(Language::Java);
}

#[test]
fn python_sees_that_its_group_is_moved() {
    a_group_that_is_moved_back_gets_all_again(Language::Python);
}

#[test]
fn members_that_want_different_things_are_reported() {
    let cluster = cluster("normal");
    let member = |language, filter| {
        let stage = Stage::through_namesrv(&cluster, language);
        stage.start("consume-push", TOPIC, &[("group", GROUP), ("filter", filter)])
    };
    cluster.karman(&["group", "create", GROUP]);
    let show = || -> serde_json::Value {
        serde_json::from_str(&cluster.karman(&["-o", "json", "group", "show", GROUP])).unwrap()
    };
    let words = || show()["contradictions"].as_array().unwrap().clone();
    let java = member(Language::Java, "red");
    let is_known = || (!show()["clients"].as_array().unwrap().is_empty()).then_some(());
    until("the member is known", DEADLINE, is_known);
    assert!(words().is_empty(), "{:?}", words());
    let python = member(Language::Python, "red || blue");
    let said = until("the contradiction is told", DEADLINE, || words().first().cloned());
    let said = said.as_str().unwrap();
    assert!(said.contains(TOPIC) && said.contains("blue"), "{said}");
    let shown = cluster.karman(&["group", "show", GROUP]);
    assert!(shown.contains("contradiction: "), "{shown}");
    java.stop();
    python.stop();
}

const PUSHING: [Language; 4] = [Language::Java, Language::Python, Language::Go, Language::Node];

/// One push consumer of each language, all of one group.
fn members(cluster: &Cluster) -> Vec<Driver> {
    let member = |language| {
        Stage::through_namesrv(cluster, language).start("consume-push", TOPIC, &[("group", GROUP)])
    };
    PUSHING.map(member).into()
}

#[test]
fn members_of_all_languages_share_a_group() {
    let cluster = cluster("normal");
    let members = members(&cluster);
    let stage = Stage::through_namesrv(&cluster, Language::Go);
    let mut ledger = Ledger::default();
    ledger.add(stage.produce(TOPIC, &[("count", "800"), ("pause", "10"), ("seed", "shared")]));
    let consumed = || -> usize { members.iter().map(|member| member.count("consumed")).sum() };
    until("all is consumed", DEADLINE, || (consumed() >= 800).then_some(()));
    for member in members {
        let events = member.stop();
        assert!(named(&events, "message").next().is_some(), "a member of the group got nothing");
        ledger.add(events);
    }
    ledger.assert_exactly_once();
}

#[test]
fn each_member_of_a_broadcasting_group_gets_everything() {
    let cluster = cluster("normal");
    cluster.karman(&["group", "create", GROUP, "--broadcast"]);
    let members = members(&cluster);
    let stage = Stage::through_namesrv(&cluster, Language::Node);
    let produced = stage.produce(TOPIC, &[("count", "80"), ("seed", "broadcast")]);
    for mut member in members {
        member.wait_count("consumed", 80, DEADLINE);
        let mut ledger = Ledger::default();
        ledger.add(produced.clone());
        ledger.add(member.stop());
        ledger.assert_exactly_once();
    }
}
