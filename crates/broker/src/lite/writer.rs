//! The one task that makes lite topics and ends them.
//!
//! One owner, so two requests for the same name cannot both find it free. What waits while a record is written comes into
//! the next one: a hundred thousand lite topics take as many flushes as there is room for requests in between. Runs on the
//! control thread.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures_util::future::join_all;
use karman_remoting::status::Rejection;
use karman_store::{Append, Durability, NewRecord, RecordKind, Store};
use prost::Message as _;
use tokio::sync::{mpsc, oneshot};

use super::topics::{LiteTopic, LiteTopics};
use crate::catalog::{Catalog, Topic};
use crate::records::{Change, LiteTopicRecord, LiteTopicsGone, LiteTopicsRecord, Metadata};
use crate::refuse;

/// Requests that may wait.
const REQUESTS_MAX: usize = 4096;
/// Lite topics in one record.
const RECORD_MAX: usize = 4096;

type Reply<T> = oneshot::Sender<Result<T, Rejection>>;

#[derive(Debug)]
struct Make {
    topic: Arc<Topic>,
    names: Vec<String>,
    reply: Reply<()>,
}

#[derive(Debug)]
enum Request {
    Make(Make),
    /// Closed ones.
    End(Vec<Arc<LiteTopic>>, Reply<()>),
}

/// Asks the task. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LiteWriter {
    requests: mpsc::Sender<Request>,
}

impl LiteWriter {
    /// The handle, and the task to spawn; the task ends when the last handle is dropped. `lite_topics_max`: of one parent.
    pub fn new(
        catalog: Arc<Catalog>,
        topics: Arc<LiteTopics>,
        store: Arc<Store>,
        lite_topics_max: usize,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (requests, received) = mpsc::channel(REQUESTS_MAX);
        let task = Task { catalog, topics, store, lite_topics_max };
        (Self { requests }, task.run(received))
    }

    async fn ask<T>(&self, make: impl FnOnce(Reply<T>) -> Request) -> Result<T, Rejection> {
        let (reply, answer) = oneshot::channel();
        let stopping = || Rejection::Internal("the broker is stopping".into());
        self.requests.send(make(reply)).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?
    }

    /// Makes the lite topics of these names that are not there, or about to go. They are durable then.
    pub async fn make(&self, topic: &Arc<Topic>, names: Vec<String>) -> Result<(), Rejection> {
        self.ask(|reply| Request::Make(Make { topic: topic.clone(), names, reply })).await
    }

    /// Ends lite topics that were closed.
    pub async fn end(&self, closed: Vec<Arc<LiteTopic>>) -> Result<(), Rejection> {
        self.ask(|reply| Request::End(closed, reply)).await
    }
}

struct Task {
    catalog: Arc<Catalog>,
    topics: Arc<LiteTopics>,
    store: Arc<Store>,
    lite_topics_max: usize,
}

impl Task {
    async fn run(self, mut requests: mpsc::Receiver<Request>) {
        let mut waiting = Vec::new();
        while requests.recv_many(&mut waiting, REQUESTS_MAX).await > 0 {
            let mut makes = Vec::with_capacity(waiting.len());
            for request in waiting.drain(..) {
                match request {
                    Request::Make(make) => makes.push(make),
                    // A requester that has gone away does not undo what it asked for.
                    Request::End(closed, reply) => drop(reply.send(self.end(closed).await)),
                }
            }
            self.make_all(makes).await;
        }
    }

    async fn end(&self, closed: Vec<Arc<LiteTopic>>) -> Result<(), Rejection> {
        for some in closed.chunks(RECORD_MAX) {
            let queues = some.iter().map(|lite| lite.queue.0).collect();
            let append = append(&self.store, Change::LiteTopicsGone(LiteTopicsGone { queues }))?;
            append.await.map_err(refuse::append)?;
        }
        Ok(())
    }

    /// What is new of all requests is written together.
    async fn make_all(&self, makes: Vec<Make>) {
        let mut new = New::default();
        let mut accepted = Vec::with_capacity(makes.len());
        for make in makes {
            match new.add(self, &make) {
                Ok(()) => accepted.push(make),
                Err(rejection) => drop(make.reply.send(Err(rejection))),
            }
        }
        let written = self.write(new.named).await;
        // The record is applied before its append is answered.
        accepted.into_iter().for_each(|make| drop(make.reply.send(written.clone())));
    }

    async fn write(&self, new: Vec<(u32, String)>) -> Result<(), Rejection> {
        let record = |(queue, (topic, name))| LiteTopicRecord { topic, name, queue };
        let queues = self.catalog.take_queues(new.len())?;
        let made: Vec<LiteTopicRecord> = queues.zip(new).map(record).collect();
        let mut appends = Vec::new();
        for some in made.chunks(RECORD_MAX) {
            appends.push(append(&self.store, Change::LiteTopics(LiteTopicsRecord { made: some.to_vec() }))?);
        }
        join_all(appends)
            .await
            .into_iter()
            .try_for_each(|appended| appended.map(drop))
            .map_err(refuse::append)
    }
}

/// Names that are to become lite topics.
#[derive(Default)]
struct New {
    named: Vec<(u32, String)>,
    by_topic: HashMap<u32, HashSet<String>>,
}

impl New {
    /// What of a request is new; all of it or nothing.
    fn add(&mut self, task: &Task, make: &Make) -> Result<(), Rejection> {
        let number = make.topic.number;
        if task.catalog.topic_numbered(number).is_none() {
            return Err(Rejection::TopicNotFound { topic: make.topic.name().to_owned() });
        }
        let planned = self.by_topic.entry(number).or_default();
        // What is about to go is made anew, under another number.
        let is_there = |name: &str| task.topics.named(number, name).is_some_and(|lite| lite.is_open());
        let is_new = |name: &&String| !planned.contains(*name) && !is_there(name);
        let new: HashSet<String> = make.names.iter().filter(is_new).cloned().collect();
        let (count, limit) = (task.topics.count_of(number) + planned.len() + new.len(), task.lite_topics_max);
        if !new.is_empty() && count > limit {
            let topic = make.topic.name().to_owned();
            return Err(Rejection::LiteTopicQuotaExceeded { topic, limit });
        }
        self.named.extend(new.iter().map(|name| (number, name.clone())));
        planned.extend(new);
        Ok(())
    }
}

fn append(store: &Store, change: Change) -> Result<Append, Rejection> {
    let payload = Metadata { change: Some(change) }.encode_to_vec().into();
    let (kind, keys) = (RecordKind::Metadata, Vec::new());
    let record = NewRecord { kind, queue: None, tag_hash: 0, mark: 0, keys, payload };
    // Metadata is always durable: a lite topic whose messages are on disk must be there too.
    store.append(vec![record], Durability::Disk).map_err(refuse::append)
}

#[cfg(test)]
mod tests {
    use karman_store::{Silent, StoreConfig};

    use super::*;
    use crate::lite::topics::tests::parent;

    struct Node {
        catalog: Arc<Catalog>,
        topics: Arc<LiteTopics>,
        store: Arc<Store>,
    }

    /// The parent is made anew each time, with the same numbers.
    fn open(directory: &std::path::Path) -> (Node, Arc<Topic>) {
        let (catalog, topic) = parent();
        let topics = Arc::new(LiteTopics::new(catalog.clone()));
        let config = StoreConfig { segment_size_bytes: 1 << 22, ..StoreConfig::new(directory) };
        let store = Store::open(config, vec![topics.clone()], Arc::new(Silent)).unwrap();
        catalog.reserve_queues(topics.queue_count());
        (Node { catalog, topics, store: Arc::new(store) }, topic)
    }

    impl Node {
        /// Runs `test` beside the task of a writer.
        fn run(&self, max: usize, test: impl AsyncFnOnce(LiteWriter)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let (catalog, topics) = (self.catalog.clone(), self.topics.clone());
            let (writer, task) = LiteWriter::new(catalog, topics, self.store.clone(), max);
            runtime.block_on(async { futures_util::future::join(task, test(writer)).await });
        }
    }

    fn name(number: usize) -> String {
        format!("s-{number}")
    }

    #[test]
    fn many_who_ask_at_once_for_the_same_names_get_the_same_lite_topics_in_few_records() {
        let directory = tempfile::tempdir().unwrap();
        let (node, topic) = open(directory.path());
        node.run(10_000, async |writer| {
            let asks = (0..2000).map(|ask| writer.make(&topic, vec![name(ask % 500), name(ask % 700)]));
            assert!(join_all(asks).await.iter().all(Result::is_ok));
        });
        assert_eq!((node.topics.count_of(topic.number), node.topics.count()), (700, 700));
        let queues: HashSet<u32> = node.topics.all().iter().map(|lite| lite.queue.0).collect();
        assert!(queues.len() == 700 && queues.iter().all(|queue| !topic.queues.contains(queue)));
        assert!(node.store.watermarks().confirmed < 40_000, "{:?}", node.store.watermarks());
    }

    #[test]
    fn a_request_beyond_the_limit_makes_nothing_and_known_names_are_no_request() {
        let directory = tempfile::tempdir().unwrap();
        let (node, topic) = open(directory.path());
        node.run(3, async |writer| {
            let refused = writer.make(&topic, (0..4).map(name).collect()).await;
            assert!(
                matches!(refused, Err(Rejection::LiteTopicQuotaExceeded { limit: 3, .. })),
                "{refused:?}"
            );
            assert_eq!(node.topics.count(), 0);
            assert_eq!(writer.make(&topic, (0..3).map(name).collect()).await, Ok(()));
            assert_eq!(writer.make(&topic, vec![name(0), name(1)]).await, Ok(()));
            assert!(writer.make(&topic, vec![name(3)]).await.is_err());
        });
    }

    #[test]
    fn what_ends_and_is_made_again_is_another_also_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let (node, topic) = open(directory.path());
        let named = |node: &Node, number| node.topics.named(topic.number, &name(number));
        node.run(10, async |writer| {
            writer.make(&topic, vec![name(0), name(1)]).await.unwrap();
            let (first, other) = (named(&node, 0).unwrap(), named(&node, 1).unwrap());
            assert!(first.close(1, 0) && other.close(1, 0));
            // One is asked for before its end is written, the other never again.
            writer.make(&topic, vec![name(0)]).await.unwrap();
            writer.end(vec![first.clone(), other]).await.unwrap();
            assert_ne!(named(&node, 0).unwrap().queue, first.queue);
            assert!(named(&node, 1).is_none() && node.topics.owner_of(first.queue).is_none());
        });
        let before = named(&node, 0).unwrap().queue;
        node.store.close().unwrap();
        let (again, _) = open(directory.path());
        assert_eq!((named(&again, 0).unwrap().queue, again.topics.count()), (before, 1));
        again.run(10, async |writer| {
            writer.make(&topic, vec![name(2)]).await.unwrap();
            assert!(named(&again, 2).unwrap().queue.0 > before.0);
        });
    }
}
