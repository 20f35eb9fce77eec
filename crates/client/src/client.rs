//! The client: one access point, the routes learned from it, and all background tasks of its producers and consumers.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use karman_remoting::auth::credentials::Credentials;
use karman_remoting::channel::{ChannelPool, ClientTls};
use karman_remoting::proto::v2::ClientType;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::consuming::Consuming;
use crate::error::ClientError;
use crate::message::FilterExpression;
use crate::message_id::MessageIds;
use crate::producer::{Producer, ProducerOptions};
use crate::pull_consumer::PullConsumer;
use crate::pull_group::{PullGroup, PullGroupOptions};
use crate::push_consumer::{Handler, PushConsumer, PushOptions};
use crate::route::Routes;
use crate::session::{Role, Session, Subscriptions};
use crate::simple_consumer::SimpleConsumer;
use crate::transaction::{Checker, Resolution, TransactionProducer};
use crate::transport::Transport;
use crate::view::MessageView;

/// How long [`Client::close`] waits for farewells that nobody answers.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How a [`Client`] calls.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// For one attempt of one call; long polls wait so much longer than their own time. 3 s by default.
    pub request_timeout: Duration,
    /// Speaks TLS, judging the servers' certificates so. `None`, the default, means plaintext, and for an access point
    /// `https://host:port` [`ClientTls::TrustAll`], as the Java and Go clients do.
    pub tls: Option<ClientTls>,
    /// Who this client is, where the cluster asks for it (`authenticationEnabled`). `None`, the default, signs nothing. A
    /// signature can be used again by whoever reads it on its way: use TLS.
    pub credentials: Option<Credentials>,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self { request_timeout: Duration::from_secs(3), tls: None, credentials: None }
    }
}

/// A connection to a cluster. A clone is a handle to the same.
///
/// When the last handle and the last producer and consumer made from it are dropped, its tasks end by themselves;
/// [`Client::close`] waits for that.
#[derive(Clone, Debug)]
pub struct Client(pub(crate) Arc<Shared>);

#[derive(Debug)]
pub(crate) struct Shared {
    transport: Transport,
    routes: Arc<Routes>,
    pub(crate) ids: MessageIds,
    tasks: TaskTracker,
    stop: CancellationToken,
    runtime: Handle,
    /// Ends the tasks with the last handle.
    _stop_on_drop: DropGuard,
}

impl Shared {
    pub(crate) fn check_open(&self) -> Result<(), ClientError> {
        if self.stop.is_cancelled() { Err(ClientError::Closed) } else { Ok(()) }
    }

    /// Ends with the client.
    pub(crate) fn stop_token(&self) -> CancellationToken {
        self.stop.child_token()
    }

    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        self.tasks.spawn_on(task, &self.runtime)
    }

    /// A client id of its own, known to the brokers until the guard is dropped.
    fn open_session(&self, role: Role) -> (Arc<Session>, DropGuard) {
        let session = Arc::new(Session::new(self.transport.renamed(), self.routes.clone(), role));
        let stop = self.stop.child_token();
        self.tasks.spawn_on(session.clone().run(stop.clone()), &self.runtime);
        (session, stop.drop_guard())
    }
}

impl Client {
    /// Finds the cluster through any of its nodes, namesrv or broker: `host:port`, or `https://host:port` for TLS.
    ///
    /// Fails within [`ClientOptions::request_timeout`] when nothing listens there. Must be called on a tokio runtime,
    /// which the background tasks then run on.
    pub async fn connect(access_point: &str, options: ClientOptions) -> Result<Self, ClientError> {
        let (address, https) = parse(access_point)?;
        let tls = options.tls.or(https.then_some(ClientTls::TrustAll));
        let pool = tls.map_or_else(ChannelPool::new, ChannelPool::with_tls);
        let transport = Transport::new(pool, address, options.request_timeout, options.credentials);
        // Checks the form of the address.
        transport.service(&transport.access_point)?;
        probe(&transport).await?;

        let routes = Arc::new(Routes::new(transport.renamed()));
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let refresher = routes.clone();
        let refresher_stop = stop.clone();
        tasks.spawn(async move { refresher.keep_fresh(refresher_stop).await });
        Ok(Self(Arc::new(Shared {
            transport,
            routes,
            ids: MessageIds::new(),
            tasks,
            _stop_on_drop: stop.clone().drop_guard(),
            stop,
            runtime: Handle::current(),
        })))
    }

    /// A producer. One is enough for a process: it may be cloned and used by all tasks at once.
    pub fn producer(&self) -> Producer {
        self.producer_with(&ProducerOptions::default())
    }

    /// A producer with options of its own.
    ///
    /// ```no_run
    /// # use karman_client::{BrokerChoice, Client, ClientError, Message, ProducerOptions};
    /// # async fn example(client: Client) -> Result<(), ClientError> {
    /// let nearby = ProducerOptions::default().choice(BrokerChoice::Zone("north".into()));
    /// client.producer_with(&nearby).send(Message::new("orders", "a book")).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn producer_with(&self, options: &ProducerOptions) -> Producer {
        self.producer_of(Role::Producer { topics: Vec::new(), checker: None }, options)
    }

    /// A producer of transactions on `topics`, each of the type TRANSACTION. `check` is asked about messages of these
    /// topics that were left without a decision; it says what it finds the application to have done, for example whether
    /// the order that the message tells of is in the database.
    ///
    /// It is asked from now on, also about what a producer of an earlier process left. Up to 64 questions of a broker are
    /// answered at the same time; each may take as long as it likes, and the broker asks again from time to time.
    pub fn transaction_producer<T, F, D>(
        &self,
        topics: impl IntoIterator<Item = T>,
        check: F,
    ) -> TransactionProducer
    where
        T: Into<String>,
        F: Fn(MessageView) -> D + Send + Sync + 'static,
        D: Future<Output = Resolution> + Send + 'static,
    {
        let topics = topics.into_iter().map(Into::into).collect();
        let role = Role::Producer { topics, checker: Some(Checker::new(check)) };
        TransactionProducer::new(self.producer_of(role, &ProducerOptions::default()))
    }

    fn producer_of(&self, role: Role, options: &ProducerOptions) -> Producer {
        let (session, guard) = self.0.open_session(role);
        Producer::new(self.0.clone(), session, options, guard)
    }

    /// A consumer of `group` for the topics of `subscriptions`, each with what is wanted of it.
    ///
    /// All consumers of a group must have the same subscriptions. Topics are looked up by the first receive.
    pub fn simple_consumer<T: Into<String>>(
        &self,
        group: impl Into<String>,
        subscriptions: impl IntoIterator<Item = (T, FilterExpression)>,
    ) -> Result<SimpleConsumer, ClientError> {
        let subscriptions = collect(subscriptions);
        self.consuming(ClientType::SimpleConsumer, group.into(), subscriptions).map(SimpleConsumer::new)
    }

    /// A consumer of `group` that calls `handle` for each message of the topics of `subscriptions`, from now on. A topic
    /// that is not there yet is waited for.
    ///
    /// All consumers of a group must have the same subscriptions. See [`PushConsumer`] for what the result of `handle`
    /// means.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use karman_client::{Client, ClientError, FilterExpression, MessageView, PushOptions};
    /// # async fn example(client: Client) -> Result<(), ClientError> {
    /// let ship = |order: MessageView| async move {
    ///     println!("{:?}", order.body());
    ///     Ok::<(), std::io::Error>(())
    /// };
    /// let orders = [("orders", FilterExpression::tag("new || urgent"))];
    /// let consumer = client.push_consumer("shipping", orders, &PushOptions::default(), ship)?;
    /// // ... until the process is to end:
    /// consumer.shutdown(Duration::from_secs(30)).await;
    /// # Ok(())
    /// # }
    /// ```
    pub fn push_consumer<T, F, H, E>(
        &self,
        group: impl Into<String>,
        subscriptions: impl IntoIterator<Item = (T, FilterExpression)>,
        options: &PushOptions,
        handle: F,
    ) -> Result<PushConsumer, ClientError>
    where
        T: Into<String>,
        F: Fn(MessageView) -> H + Send + Sync + 'static,
        H: Future<Output = Result<(), E>> + Send + 'static,
        E: std::fmt::Display,
    {
        let subscriptions = collect(subscriptions);
        let consuming = self.consuming(ClientType::PushConsumer, group.into(), subscriptions)?;
        Ok(PushConsumer::start(consuming, options, Handler::new(handle)))
    }

    /// A consumer that reads queues by itself and keeps its place in them, with the broker as the place of `group` or
    /// wherever it likes.
    pub fn pull_consumer(&self, group: impl Into<String>) -> Result<PullConsumer, ClientError> {
        let group = group.into();
        if group.is_empty() {
            return Err(ClientError::InvalidArgument("a pull consumer needs a group".into()));
        }
        self.consuming_of(ClientType::PullConsumer, group, Arc::default()).map(PullConsumer::new)
    }

    /// A consumer that shares the queues of the topics of `subscriptions` with the other members of `group`, and pulls those
    /// that are its own, from now on. A topic that is not there yet is waited for. See [`PullGroup`].
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use karman_client::{Client, ClientError, FilterExpression, PullGroupOptions};
    /// # async fn example(client: Client) -> Result<(), ClientError> {
    /// let orders = [("orders", FilterExpression::all())];
    /// let mut consumer = client.pull_group("shipping", orders, &PullGroupOptions::default())?;
    /// for message in consumer.poll(Duration::from_secs(1)).await? {
    ///     println!("{:?}", message.body());
    ///     message.done();
    /// }
    /// consumer.shutdown().await
    /// # }
    /// ```
    pub fn pull_group<T: Into<String>>(
        &self,
        group: impl Into<String>,
        subscriptions: impl IntoIterator<Item = (T, FilterExpression)>,
        options: &PullGroupOptions,
    ) -> Result<PullGroup, ClientError> {
        let subscriptions = collect(subscriptions);
        let consuming = self.consuming(ClientType::PullConsumer, group.into(), subscriptions)?;
        Ok(PullGroup::shared(consuming, options))
    }

    /// A consumer that reads all queues of the topics of `subscriptions`, whoever else reads them, and keeps in `file` how
    /// far it is. Each consumer needs a file of its own, also those of one process; beside it lie others with its name and
    /// an ending. A damaged file is reported in the log, and the one before is used: some messages come again.
    ///
    /// [`PullGroupOptions::begin`] says where a queue begins that the file does not know.
    /// [`PullGroupOptions::strategy`] is not looked at. Reads and locks the file before it returns.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use karman_client::{Client, ClientError, FilterExpression, PullGroupOptions, QueryOffset};
    /// # async fn example(client: Client) -> Result<(), ClientError> {
    /// let prices = [("prices", FilterExpression::all())];
    /// let options = PullGroupOptions::default().begin(QueryOffset::End);
    /// let mut consumer = client.pull_broadcast("displays", prices, "display-7.offsets", &options)?;
    /// for message in consumer.poll(Duration::from_secs(1)).await? {
    ///     println!("{:?}", message.body());
    ///     message.done();
    /// }
    /// consumer.shutdown().await
    /// # }
    /// ```
    pub fn pull_broadcast<T: Into<String>>(
        &self,
        group: impl Into<String>,
        subscriptions: impl IntoIterator<Item = (T, FilterExpression)>,
        file: impl Into<PathBuf>,
        options: &PullGroupOptions,
    ) -> Result<PullGroup, ClientError> {
        let subscriptions = collect(subscriptions);
        let consuming = self.consuming(ClientType::PullConsumer, group.into(), subscriptions)?;
        PullGroup::broadcasting(consuming, file.into(), options)
    }

    fn consuming(
        &self,
        client_type: ClientType,
        group: String,
        subscriptions: Subscriptions,
    ) -> Result<Consuming, ClientError> {
        if group.is_empty() || subscriptions.is_empty() {
            let what = "a consumer needs a group and at least one subscription";
            return Err(ClientError::InvalidArgument(what.into()));
        }
        self.consuming_of(client_type, group, subscriptions)
    }

    fn consuming_of(
        &self,
        client_type: ClientType,
        group: String,
        subscriptions: Subscriptions,
    ) -> Result<Consuming, ClientError> {
        self.0.check_open()?;
        let role = Role::Consumer { client_type, group: group.clone(), subscriptions: subscriptions.clone() };
        let (session, open) = self.0.open_session(role);
        Ok(Consuming { client: self.0.clone(), session, group, subscriptions, _open: open })
    }

    /// Says farewell to the brokers and ends all tasks; takes at most 5 s. A push consumer is better shut down before, for
    /// what its handlers have not finished by then comes again. Calls of producers and consumers fail with
    /// [`ClientError::Closed`] from now on, those under way end as they would have.
    pub async fn close(self) {
        self.0.stop.cancel();
        self.0.tasks.close();
        if tokio::time::timeout(CLOSE_TIMEOUT, self.0.tasks.wait()).await.is_err() {
            tracing::warn!("some tasks of the client did not end in time; left behind");
        }
    }
}

fn collect<T: Into<String>>(subscriptions: impl IntoIterator<Item = (T, FilterExpression)>) -> Subscriptions {
    subscriptions.into_iter().map(|(topic, filter)| (topic.into(), filter)).collect()
}

/// Whether anything listens: a wrong address should be told at once, not by the first send.
async fn probe(transport: &Transport) -> Result<(), ClientError> {
    let endpoint = &*transport.access_point;
    let timeout = transport.request_timeout;
    match tokio::time::timeout(timeout, TcpStream::connect(endpoint)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => {
            Err(ClientError::Unreachable { endpoint: endpoint.to_owned(), why: error.to_string() })
        }
        Err(_) => Err(ClientError::Unreachable {
            endpoint: endpoint.to_owned(),
            why: format!("no connection within {} ms", timeout.as_millis()),
        }),
    }
}

/// `host:port` and whether TLS was asked for.
fn parse(access_point: &str) -> Result<(String, bool), ClientError> {
    let (rest, https) = match access_point.trim().split_once("://") {
        None => (access_point.trim(), false),
        Some(("http", rest)) => (rest, false),
        Some(("https", rest)) => (rest, true),
        Some((scheme, _)) => {
            let why = format!("the scheme {scheme:?} is not known");
            return Err(ClientError::AccessPoint { access_point: access_point.to_owned(), why });
        }
    };
    Ok((rest.trim_end_matches('/').to_owned(), https))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_points_are_read_with_and_without_scheme() {
        assert_eq!(parse("n:1").unwrap(), ("n:1".into(), false));
        assert_eq!(parse("http://n:1/").unwrap(), ("n:1".into(), false));
        assert_eq!(parse(" https://n:1").unwrap(), ("n:1".into(), true));
        assert!(matches!(parse("dns://n:1"), Err(ClientError::AccessPoint { .. })));
    }

    #[tokio::test]
    async fn connecting_to_what_is_no_address_or_does_not_listen_fails_with_the_reason() {
        let connect = |access_point: &'static str| Client::connect(access_point, ClientOptions::default());
        assert!(matches!(connect("no port").await, Err(ClientError::AccessPoint { .. })));
        assert!(matches!(connect("127.0.0.1:1").await, Err(ClientError::Unreachable { .. })));
    }
}
