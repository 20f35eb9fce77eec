//! Which brokers have the queues of a topic: asked for once, kept, refreshed every 30 s and after failures.
//!
//! [`Routes`] is shared by everything of one client; calls read it on any task, one task of the client refreshes it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use karman_remoting::channel::address_of;
use karman_remoting::front::home_weight;
use karman_remoting::proto::v2;
use parking_lot::Mutex;
use tokio::sync::{Notify, OnceCell};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error::ClientError;
use crate::transport::{Transport, answer};

const REFRESH_INTERVAL: Duration = Duration::from_secs(30);
/// Failures come in swarms; the routes are asked for at most so often.
const REFRESH_PAUSE: Duration = Duration::from_secs(1);
/// A topic that nobody asked for this long is forgotten.
const IDLE_MAX: Duration = Duration::from_secs(600);
/// Topics remembered; a further one takes the place of the one longest unused.
const TOPICS_MAX: usize = 4096;

/// A broker and where its clients find it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct BrokerRoute {
    pub(crate) name: String,
    /// `host:port`
    pub(crate) endpoint: String,
    endpoints: v2::Endpoints,
}

impl BrokerRoute {
    pub(crate) fn new(
        name: impl Into<String>,
        endpoint: impl Into<String>,
        endpoints: v2::Endpoints,
    ) -> Self {
        Self { name: name.into(), endpoint: endpoint.into(), endpoints }
    }

    /// "Any queue of this broker", as a receive names it.
    pub(crate) fn any_queue(&self, topic: &str) -> v2::MessageQueue {
        self.queue(topic, -1)
    }

    pub(crate) fn queue(&self, topic: &str, id: i32) -> v2::MessageQueue {
        let broker = v2::Broker { name: self.name.clone(), id: 0, endpoints: Some(self.endpoints.clone()) };
        v2::MessageQueue {
            topic: Some(resource(topic)),
            id,
            permission: v2::Permission::ReadWrite.into(),
            broker: Some(broker),
            accept_message_types: Vec::new(),
        }
    }
}

pub(crate) fn resource(name: &str) -> v2::Resource {
    v2::Resource { resource_namespace: String::new(), name: name.to_owned() }
}

/// The masters of one topic.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Route {
    /// The broker of each writable queue, so arranged that neighbours differ where they can.
    writable: Vec<Arc<BrokerRoute>>,
    /// Each broker with a writable queue, once, by name.
    writers: Vec<Arc<BrokerRoute>>,
    /// Each broker with a readable queue, once.
    readable: Vec<Arc<BrokerRoute>>,
    /// Each readable queue: its broker, and its number there.
    queues: Vec<(Arc<BrokerRoute>, i32)>,
}

impl Route {
    fn read(queues: Vec<v2::MessageQueue>) -> Self {
        let mut brokers: HashMap<String, Arc<BrokerRoute>> = HashMap::new();
        let mut known: Vec<(i32, Arc<BrokerRoute>, v2::Permission)> = Vec::with_capacity(queues.len());
        for queue in queues {
            let permission = queue.permission();
            // Only masters (id 0) take messages and keep consumers' progress.
            let Some(broker) = queue.broker.filter(|broker| broker.id == 0) else { continue };
            let Some(endpoints) = broker.endpoints else { continue };
            let Some(endpoint) = address_of(&endpoints) else { continue };
            let broker = brokers
                .entry(broker.name.clone())
                .or_insert_with(|| Arc::new(BrokerRoute::new(broker.name, endpoint, endpoints)));
            known.push((queue.id, broker.clone(), permission));
        }
        known.sort_by(|a, b| (a.0, &a.1.name).cmp(&(b.0, &b.1.name)));
        let mut route = Self::default();
        for (id, broker, permission) in known {
            if matches!(permission, v2::Permission::Write | v2::Permission::ReadWrite) {
                route.writable.push(broker.clone());
            }
            if matches!(permission, v2::Permission::Read | v2::Permission::ReadWrite) {
                if !route.readable.iter().any(|other| other.name == broker.name) {
                    route.readable.push(broker.clone());
                }
                route.queues.push((broker, id));
            }
        }
        route.with_writers()
    }

    fn with_writers(mut self) -> Self {
        self.writers = self.writable.clone();
        self.writers.sort_by(|a, b| a.name.cmp(&b.name));
        self.writers.dedup_by(|a, b| a.name == b.name);
        self
    }

    /// The broker of each writable queue, in an order in which neighbours differ where they can.
    pub(crate) fn writable(&self) -> &[Arc<BrokerRoute>] {
        &self.writable
    }

    /// Each broker with a writable queue, once, by name.
    pub(crate) fn writers(&self) -> &[Arc<BrokerRoute>] {
        &self.writers
    }

    /// The home of what is kept in order within `key`, so that it need not be relayed there. Another one when that has
    /// failed: each knows the home.
    pub(crate) fn home(&self, key: &str, failed: &[Arc<BrokerRoute>]) -> Option<&Arc<BrokerRoute>> {
        let weight = |broker: &&Arc<BrokerRoute>| home_weight(&broker.name, key);
        let sound = |broker: &&Arc<BrokerRoute>| !failed.iter().any(|other| other.name == broker.name);
        let best = self.writers.iter().filter(sound).max_by_key(weight);
        best.or_else(|| self.writers.iter().max_by_key(weight))
    }

    pub(crate) fn queues(&self) -> &[(Arc<BrokerRoute>, i32)] {
        &self.queues
    }

    pub(crate) fn readable(&self) -> &[Arc<BrokerRoute>] {
        &self.readable
    }

    /// Where the brokers are found; an endpoint may occur more than once.
    pub(crate) fn endpoints(&self) -> impl Iterator<Item = &str> {
        self.writable.iter().chain(&self.readable).map(|broker| broker.endpoint.as_str())
    }
}

#[derive(Debug)]
struct Topic {
    /// The first answer is awaited once, however many calls want it.
    route: OnceCell<Mutex<Arc<Route>>>,
    last_used: Mutex<Instant>,
    /// The last that was heard of it is that it is not there.
    denied: AtomicBool,
}

#[derive(Debug)]
pub(crate) struct Routes {
    transport: Transport,
    topics: Mutex<HashMap<String, Arc<Topic>>>,
    suspected: Notify,
}

impl Routes {
    pub(crate) fn new(transport: Transport) -> Self {
        Self { transport, topics: Mutex::default(), suspected: Notify::new() }
    }

    /// The route as it is known; asks for it when the topic is new.
    pub(crate) async fn get(&self, topic: &str) -> Result<Arc<Route>, ClientError> {
        let entry = self.entry(topic);
        let first = entry
            .route
            .get_or_try_init(|| async { self.query(topic).await.map(|route| Mutex::new(Arc::new(route))) });
        // When it is not answered the next in line asks: for no longer than is left of its own time.
        let timeout = self.transport.request_timeout;
        let route = tokio::time::timeout(timeout, first).await.map_err(|_| ClientError::Timeout {
            endpoint: self.transport.access_point.to_string(),
            timeout,
        })??;
        Ok(route.lock().clone())
    }

    /// The route if it is known.
    pub(crate) fn known(&self, topic: &str) -> Option<Arc<Route>> {
        Some(self.topics.lock().get(topic)?.route.get()?.lock().clone())
    }

    /// The route if it is known; the topic is in use, though perhaps nobody asks for its route.
    pub(crate) fn in_use(&self, topic: &str) -> Option<Arc<Route>> {
        let topics = self.topics.lock();
        let entry = topics.get(topic)?;
        *entry.last_used.lock() = Instant::now();
        Some(entry.route.get()?.lock().clone())
    }

    /// A broker of some route failed: all routes are asked for anew, soon. The caller goes on with what it has.
    pub(crate) fn suspect(&self) {
        self.suspected.notify_one();
    }

    /// A server says that there is no such topic. One that has just started may not know it yet: the route is forgotten
    /// when the next that is heard of it is the same.
    pub(crate) fn denied(&self, topic: &str) {
        let mut topics = self.topics.lock();
        let is_doubted = |entry: &Arc<Topic>| !entry.denied.swap(true, Ordering::Relaxed);
        if topics.get(topic).is_some_and(is_doubted) {
            drop(topics);
            self.suspect();
        } else {
            topics.remove(topic);
        }
    }

    fn entry(&self, topic: &str) -> Arc<Topic> {
        let mut topics = self.topics.lock();
        let now = Instant::now();
        if let Some(entry) = topics.get(topic) {
            *entry.last_used.lock() = now;
            return entry.clone();
        }
        if topics.len() >= TOPICS_MAX {
            let longest_unused =
                topics.iter().min_by_key(|(_, entry)| *entry.last_used.lock()).map(|(name, _)| name.clone());
            if let Some(name) = longest_unused {
                topics.remove(&name);
            }
        }
        let (route, last_used) = (OnceCell::new(), Mutex::new(now));
        let entry = Arc::new(Topic { route, last_used, denied: AtomicBool::new(false) });
        topics.insert(topic.to_owned(), entry.clone());
        entry
    }

    async fn query(&self, topic: &str) -> Result<Route, ClientError> {
        let endpoint = &self.transport.access_point;
        let timeout = self.transport.request_timeout;
        let request = v2::QueryRouteRequest {
            topic: Some(resource(topic)),
            endpoints: self.transport.access_point_endpoints(),
        };
        let mut service = self.transport.service(endpoint)?;
        let call = service.query_route(self.transport.request(request, timeout));
        let response = answer(endpoint, timeout, call).await?;
        ClientError::of_status(endpoint, response.status)?;
        Ok(Route::read(response.message_queues))
    }

    /// Refreshes until `stop`. One task of the client.
    pub(crate) async fn keep_fresh(&self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.suspected.notified() => {}
                () = tokio::time::sleep(REFRESH_INTERVAL) => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.refresh() => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(REFRESH_PAUSE) => {}
            }
        }
    }

    async fn refresh(&self) {
        self.forget_idle(Instant::now());
        let topics: Vec<(String, Arc<Topic>)> =
            self.topics.lock().iter().map(|(name, entry)| (name.clone(), entry.clone())).collect();
        for (name, entry) in topics {
            if entry.route.initialized() {
                self.refreshed(&name, &entry, self.query(&name).await);
            }
        }
    }

    fn forget_idle(&self, now: Instant) {
        self.topics.lock().retain(|_, entry| now.duration_since(*entry.last_used.lock()) < IDLE_MAX);
    }

    fn refreshed(&self, name: &str, entry: &Topic, answer: Result<Route, ClientError>) {
        match answer {
            Ok(fresh) => {
                entry.denied.store(false, Ordering::Relaxed);
                if let Some(route) = entry.route.get() {
                    *route.lock() = Arc::new(fresh);
                }
            }
            Err(error) if error.code() == Some(v2::Code::TopicNotFound) => self.denied(name),
            // What was known stays in use: brokers live on when the access point does not.
            Err(error) => tracing::debug!(topic = name, %error, "the route could not be refreshed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use karman_remoting::channel::ChannelPool;

    use super::*;
    use crate::session::{Role, Session};

    fn queue(broker: &str, id: i32, permission: v2::Permission) -> v2::MessageQueue {
        let address = v2::Address { host: broker.to_owned(), port: 8081 };
        let endpoints =
            v2::Endpoints { scheme: v2::AddressScheme::DomainName.into(), addresses: vec![address] };
        v2::MessageQueue {
            id,
            permission: permission.into(),
            broker: Some(v2::Broker { name: broker.into(), id: 0, endpoints: Some(endpoints) }),
            ..Default::default()
        }
    }

    fn two_brokers() -> Route {
        use v2::Permission::{Read, ReadWrite};
        Route::read(vec![
            queue("a", 0, ReadWrite),
            queue("a", 1, ReadWrite),
            queue("b", 0, ReadWrite),
            queue("b", 1, Read),
        ])
    }

    fn names(brokers: &[Arc<BrokerRoute>]) -> Vec<&str> {
        brokers.iter().map(|broker| broker.name.as_str()).collect()
    }

    impl Route {
        /// Of brokers with one queue each, by name.
        pub(crate) fn of_writers(brokers: Vec<Arc<BrokerRoute>>) -> Self {
            Self { writable: brokers, ..Self::default() }.with_writers()
        }
    }

    impl Routes {
        /// As if `topic` had been asked for.
        fn learned(&self, topic: &str) -> Arc<Topic> {
            let entry = self.entry(topic);
            entry.route.set(Mutex::new(Arc::new(two_brokers()))).unwrap();
            entry
        }
    }

    fn routes() -> Routes {
        Routes::new(Transport::new(ChannelPool::new(), "n:1".into(), Duration::ZERO, None))
    }

    #[test]
    fn a_topic_that_a_consumer_reads_is_not_idle_however_it_reads() {
        let routes = Arc::new(routes());
        let learned = *routes.learned("orders").last_used.lock();
        let (client_type, group) = (v2::ClientType::PullConsumer, "shipping".to_owned());
        let role = Role::Consumer { client_type, group, subscriptions: Arc::default() };
        let session = Session::new(routes.transport.renamed(), routes.clone(), role);
        session.declare("orders");
        while Instant::now() == learned {}
        assert_eq!(session.endpoints().len(), 2);
        routes.forget_idle(learned + IDLE_MAX);
        assert_eq!(session.endpoints().len(), 2, "its brokers would take it for gone");
    }

    #[test]
    fn a_route_is_forgotten_when_its_topic_is_denied_twice_in_a_row() {
        let routes = routes();
        let entry = routes.learned("orders");
        let denied = || {
            let status = v2::Status { code: v2::Code::TopicNotFound.into(), message: String::new() };
            Err(ClientError::of_status("n:1", Some(status)).unwrap_err())
        };
        for _ in 0..2 {
            routes.denied("orders");
            assert!(routes.known("orders").is_some(), "by a broker that has just started, perhaps");
            routes.refreshed("orders", &entry, Ok(two_brokers()));
        }
        routes.denied("orders");
        routes.refreshed("orders", &entry, denied());
        assert!(routes.known("orders").is_none());
    }

    #[test]
    fn writable_queues_alternate_between_brokers_and_readable_brokers_occur_once() {
        let route = two_brokers();
        assert_eq!(names(&route.writable), ["a", "b", "a"]);
        assert_eq!(names(&route.writers), ["a", "b"]);
        assert_eq!(names(&route.readable), ["a", "b"]);
        assert_eq!(route.readable[1].endpoint, "b:8081");
        let queues: Vec<_> = route.queues().iter().map(|(broker, id)| (broker.name.as_str(), *id)).collect();
        assert_eq!(queues, [("a", 0), ("b", 0), ("a", 1), ("b", 1)]);
    }

    #[test]
    fn what_is_kept_in_order_goes_to_its_home_while_that_works() {
        let route = two_brokers();
        let homes: Vec<_> = (0..64).map(|n| route.home(&n.to_string(), &[]).unwrap()).collect();
        assert!(["a", "b"].iter().all(|name| homes.iter().any(|home| home.name == *name)));
        let home = route.home("17", &[]).unwrap();
        assert_eq!(route.home("17", &[]).unwrap(), home);
        assert_ne!(route.home("17", std::slice::from_ref(home)).unwrap(), home);
        assert_eq!(route.home("17", &route.writable.clone()).unwrap(), home);
    }

    #[test]
    fn slaves_and_brokers_without_address_are_left_out() {
        let mut slave = queue("a", 0, v2::Permission::ReadWrite);
        slave.broker.as_mut().unwrap().id = 1;
        let mut nowhere = queue("b", 0, v2::Permission::ReadWrite);
        nowhere.broker.as_mut().unwrap().endpoints = None;
        assert_eq!(Route::read(vec![slave, nowhere]), Route::default());
    }
}
