//! Calls against a whole broker in this process, where what happens between two of them matters.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use karman_remoting::metadata::{Caller, Language};
use karman_remoting::proto::karman as v1;
use karman_remoting::proto::v2;
use prost::Message as _;
use tempfile::TempDir;

use crate::broker::Broker;
use crate::catalog::Topic;
use crate::catalog_writer::topic_named;
use crate::config::BrokerConfig;
use crate::start::{Running, start};

/// A broker with a directory of its own.
struct Node {
    broker: Arc<Broker>,
    running: Running,
    _directory: TempDir,
}

impl Node {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let any_port = || "127.0.0.1:0".to_owned();
        let config = BrokerConfig {
            store_path_root_dir: directory.path().to_str().unwrap().to_owned(),
            grpc_listen_address: any_port(),
            internal_listen_address: any_port(),
            metrics_listen_address: any_port(),
            mapped_file_size_commit_log: 64 << 20,
            disk_max_used_space_ratio: 100,
            disk_space_clean_forcibly_ratio: 100,
            disk_space_warning_level_ratio: 100,
            data_threads: 1,
            ..BrokerConfig::default()
        };
        let running = tokio::task::spawn_blocking(move || start(&config)).await.unwrap().unwrap();
        Self { broker: running.broker(), running, _directory: directory }
    }

    async fn topic(&self, config: v1::TopicConfig) -> Arc<Topic> {
        self.broker.catalog_writer.topic(config).await.unwrap().0
    }

    async fn send(&self, topic: &Topic, message_id: &str) -> v2::SendResultEntry {
        let messages = vec![message(topic, message_id).encode_to_vec().into()];
        let mut response = self.broker.send(v2::SendMessageRequest { messages }).await.unwrap();
        response.entries.remove(0)
    }

    fn count(&self, topic: &Topic) -> u64 {
        let ranges =
            topic.queues.iter().map(|queue| self.broker.store.queue_range(karman_store::QueueNumber(*queue)));
        ranges.map(|range| range.end - range.start).sum()
    }

    async fn stop(self) {
        drop(self.broker);
        self.running.shutdown().await.unwrap();
    }
}

fn message(topic: &Topic, message_id: &str) -> v2::Message {
    v2::Message {
        topic: Some(resource(topic.name())),
        system_properties: Some(v2::SystemProperties {
            message_id: message_id.to_owned(),
            ..Default::default()
        }),
        body: b"body".as_slice().into(),
        ..Default::default()
    }
}

fn resource(name: &str) -> v2::Resource {
    v2::Resource { name: name.to_owned(), ..Default::default() }
}

#[expect(dead_code)]
fn caller() -> Caller {
    Caller { client_id: "me".to_owned(), language: Language::Rust, relayed: false, timeout: None }
}

#[tokio::test]
async fn a_message_that_is_answered_early_is_known_when_it_is_sent_again() {
    const COUNT: u64 = 1000;
    let node = Node::start().await;
    let durability = v1::Durability::Memory.into();
    let dedup = v1::TopicConfig { durability, dedup_window_minutes: Some(10), ..topic_named("memory", 1) };
    let (memory, disk) = (node.topic(dedup).await, node.topic(topic_named("disk", 1)).await);
    // Their flushes let those be answered that wait for none.
    let flushing = async {
        for n in 0.. {
            node.send(&disk, &format!("disk-{n}")).await;
        }
    };
    let sending = async {
        for n in 0..COUNT {
            let id = format!("memory-{n}");
            let first = node.send(&memory, &id).await;
            assert_eq!(node.send(&memory, &id).await, first);
        }
    };
    tokio::select! {
        () = flushing => unreachable!("it does not end"),
        () = sending => {}
    }
    assert_eq!(node.count(&memory), COUNT);
    assert_eq!(node.broker.dedupe.repeated.load(Ordering::Relaxed), COUNT);
    node.stop().await;
}
