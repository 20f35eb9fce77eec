//! Official clients at work on one topic, and the judgement of what became of it. Owned by one test.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use karman_remoting::proto::v2::Code;

use crate::driver::Plan;
use crate::ledger::check_content;
use crate::raw::{receive_request, seconds};
use crate::{Cluster, Driver, Event, Language, Ledger, Raw, until};

/// Generous: the clients wait up to half a minute before they try a broker again that was away.
const DEADLINE: Duration = Duration::from_secs(120);
const GROUPS: &str = "8";

/// A producer and a consumer of each language. Dropping it kills them.
#[derive(Debug)]
pub struct Load {
    topic: String,
    producers: Vec<Driver>,
    consumers: Vec<Driver>,
}

impl Load {
    /// Makes `topic` and starts Java and Python at `endpoint`; returns when they run.
    pub fn start(cluster: &Cluster, endpoint: &str, topic: &str) -> Load {
        cluster.create_topic(topic);
        let driver = |language, scenario, options: &[(&str, &str)]| {
            Driver::start_ready(&Plan { language, scenario, endpoint, topic, options }, cluster.path())
        };
        // Not faster than consumers on slow cores can follow.
        let paced = |seed| [("seed", seed), ("threads", "2"), ("pause", "2")];
        let producer = |language, seed| driver(language, "produce", &paced(seed));
        // A thread of a simple consumer asks one broker at a time, and waits there for 20 s when it has nothing.
        let options = [("group", topic), ("threads", "16"), ("invisible", "10")];
        let consumer = |language| driver(language, "consume-simple", &options);
        Load {
            topic: topic.to_owned(),
            producers: vec![producer(Language::Java, "java"), producer(Language::Python, "python")],
            consumers: vec![consumer(Language::Java), consumer(Language::Python)],
        }
    }

    /// Starts one language at `endpoint`: ordered messages of some message groups, and a push consumer. `topic` is there, for
    /// ordered messages, and nobody else sends to it. Logs go to `directory`.
    pub fn ordered(language: Language, endpoint: &str, topic: &str, directory: &Path) -> Load {
        let driver = |scenario, options: &[(&str, &str)]| {
            Driver::start_ready(&Plan { language, scenario, endpoint, topic, options }, directory)
        };
        let paced = [("seed", "ordered"), ("threads", "2"), ("pause", "20"), ("group-count", GROUPS)];
        Load {
            topic: topic.to_owned(),
            producers: vec![driver("produce", &paced)],
            consumers: vec![driver("consume-push", &[("group", topic), ("threads", "16")])],
        }
    }

    /// Waits until each producer has sent `more` messages that are acknowledged.
    pub fn advance(&mut self, more: usize) {
        let targets: Vec<usize> =
            self.producers.iter().map(|producer| producer.count("sent") + more).collect();
        for (producer, target) in self.producers.iter_mut().zip(targets) {
            producer.wait_count("sent", target, DEADLINE);
        }
    }

    /// How many messages are acknowledged.
    pub fn sent(&self) -> usize {
        self.producers.iter().map(|producer| producer.count("sent")).sum()
    }

    /// Waits until each producer has reported `more` sends that failed; these.
    pub fn wait_failed(&mut self, more: usize) -> Vec<Event> {
        let mut failures = Vec::new();
        for producer in &mut self.producers {
            let before = producer.count("failed");
            producer.wait_count("failed", before + more, DEADLINE);
            let failed = producer.events().into_iter().filter(|event| event.event == "failed");
            failures.extend(failed.skip(before));
        }
        failures
    }

    /// Waits until the consumers were given, and have acknowledged, as many messages as are acknowledged now.
    pub fn wait_consumed(&self) {
        let sent = self.sent();
        until("what was sent is consumed", DEADLINE, || {
            let acked: usize = self.consumers.iter().map(|consumer| consumer.count("acked")).sum();
            (acked >= sent).then_some(())
        });
    }

    /// Stops the producers; what they sent. The consumers go on.
    pub fn stop_sending(&mut self) -> Ledger {
        let mut ledger = Ledger::default();
        for producer in self.producers.drain(..) {
            ledger.add(producer.stop());
        }
        ledger
    }

    /// Stops the producers; panics unless all that was acknowledged is in the log, and is delivered, whole, to the
    /// consumers, which it stops then.
    pub fn finish(self, cluster: &Cluster) -> Ledger {
        self.finish_at(&owners(cluster))
    }

    /// The same with brokers, or sets, by a door to each and its name.
    pub fn finish_at(mut self, owners: &[(String, String)]) -> Ledger {
        let mut ledger = self.stop_sending();
        let lost = ledger.not_among(&held_by(owners, &self.topic));
        let (count, sent) = (lost.len(), ledger.sent.len());
        assert!(lost.is_empty(), "{count} of {sent} acknowledged messages lost, one is {:?}", lost[0]);
        let mut seen = vec![0; self.consumers.len()];
        let mut waiting: HashSet<String> = ledger.sent.keys().cloned().collect();
        // Not "acknowledged by a consumer": the answer to that may have been lost with the broker.
        until("all that was acknowledged is delivered", DEADLINE, || {
            for (consumer, seen) in self.consumers.iter().zip(&mut seen) {
                let events = consumer.events_from(*seen);
                *seen += events.len();
                let delivered = events.iter().filter(|event| event.event == "message");
                for id in delivered.filter_map(|event| event.id.as_ref()) {
                    waiting.remove(id);
                }
            }
            waiting.is_empty().then_some(())
        });
        for consumer in self.consumers {
            let events = consumer.stop();
            for event in events.iter().filter(|event| event.event == "message") {
                let seed = event.keys.iter().find_map(|key| key.strip_prefix("key-")?.split('-').next());
                check_content(event, &self.topic, seed.unwrap());
            }
            ledger.add(events);
        }
        ledger.assert_nothing_lost();
        let deliveries: usize = ledger.delivered.values().map(Vec::len).sum();
        eprintln!("{sent} messages, {deliveries} deliveries");
        ledger
    }
}

fn owners(cluster: &Cluster) -> Vec<(String, String)> {
    cluster.brokers.iter().map(|broker| (broker.endpoint(), broker.name().to_owned())).collect()
}

/// The ids of the messages of `topic` that the brokers still hold: what a group gets that never received before. A
/// consumer that was there all the time may have been given a message before it was lost.
pub fn held_ids(cluster: &Cluster, topic: &str) -> HashSet<String> {
    held_by(&owners(cluster), topic)
}

fn held_by(owners: &[(String, String)], topic: &str) -> HashSet<String> {
    let mut ids = HashSet::new();
    for (door, broker) in owners {
        let raw = Raw::connect(door);
        let mut request = receive_request(topic, "held", broker);
        request.invisible_duration = Some(seconds(600));
        request.long_polling_timeout = Some(seconds(1));
        loop {
            let (status, messages) = raw.receive(request.clone());
            if status.code == Code::MessageNotFound as i32 {
                break;
            }
            assert_eq!(status.code, Code::Ok as i32, "{status:?}");
            ids.extend(
                messages.into_iter().filter_map(|message| Some(message.system_properties?.message_id)),
            );
        }
    }
    ids
}
