//! Namesrvs come and go; clients and brokers do not notice.

use std::time::Duration;

use karman_tests::driver::Plan;
use karman_tests::{Cluster, Driver, Event, Language, Ledger, Raw, until};

const TOPIC: &str = "namesrv-loss";
const DEADLINE: Duration = Duration::from_secs(120);
/// The clients ask for routes each 30 s: long enough that they find nobody once.
const WITHOUT_NAMESRV: Duration = Duration::from_secs(35);

/// Producers pause between two sends: what they send in the time without namesrvs is consumed on two slow cores too.
fn driver(cluster: &Cluster, language: Language, scenario: &str, endpoint: &str, group: &str) -> Driver {
    let options = [("threads", "4"), ("group", group), ("seed", "loss"), ("pause", "20")];
    let plan = Plan { language, scenario, endpoint, topic: TOPIC, options: &options };
    Driver::start_ready(&plan, cluster.path())
}

fn no_send_failed(events: &[Event]) {
    let failed: Vec<_> = events.iter().filter(|event| event.event == "failed").collect();
    assert!(failed.is_empty(), "{} sends failed: {:?}", failed.len(), failed.first());
}

/// Waits until each producer has sent some more.
fn advance(producers: &mut [Driver]) {
    for producer in producers {
        let sent = producer.count("sent");
        producer.wait_count("sent", sent + 200, DEADLINE);
    }
}

#[test]
fn clients_with_routes_go_on_when_all_namesrvs_are_gone() {
    let mut cluster = Cluster::builder().namesrvs(2).brokers(2).start();
    cluster.create_topic(TOPIC);
    let endpoint = cluster.namesrvs[0].endpoint();
    let languages = [Language::Java, Language::Python];
    let mut producers = languages.map(|language| driver(&cluster, language, "produce", &endpoint, "unused"));
    let consumers =
        languages.map(|language| driver(&cluster, language, "consume-simple", &endpoint, "going-on"));
    advance(&mut producers);
    cluster.namesrvs.iter_mut().for_each(|namesrv| namesrv.kill());

    let gone = std::time::Instant::now();
    until("a time without namesrvs", DEADLINE, || (gone.elapsed() >= WITHOUT_NAMESRV).then_some(()));
    advance(&mut producers);
    let mut ledger = Ledger::default();
    for producer in producers {
        let events = producer.stop();
        no_send_failed(&events);
        ledger.add(events);
    }
    until("everything is consumed", DEADLINE, || {
        let acked: usize = consumers.iter().map(|consumer| consumer.count("acked")).sum();
        (acked >= ledger.sent.len()).then_some(())
    });
    consumers.into_iter().for_each(|consumer| ledger.add(consumer.stop()));
    ledger.assert_exactly_once();

    // A broker is an access point of its own: it knows the routes, also of its neighbour.
    let raw = Raw::connect(&cluster.brokers[0].endpoint());
    let mut brokers = raw.route_brokers(TOPIC);
    brokers.dedup();
    assert!(brokers.contains(&"broker-a".to_owned()), "{brokers:?}");

    cluster.namesrvs.iter_mut().for_each(|namesrv| namesrv.start());
    cluster.wait_route(TOPIC);
}
