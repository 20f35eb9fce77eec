//! A server with a service whose calls last as long as a test wants.

use std::future::pending;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use karman_remoting::between::Between;
use karman_remoting::proto::v2::messaging_service_client::MessagingServiceClient;
use karman_remoting::proto::v2::messaging_service_server::{MessagingService, MessagingServiceServer};
use karman_remoting::proto::v2::{
    AckMessageRequest, AckMessageResponse, HeartbeatRequest, HeartbeatResponse, QueryRouteRequest,
    QueryRouteResponse, ReceiveMessageRequest, SendMessageResponse, Status as BodyStatus, TelemetryCommand,
};
use karman_remoting::server::{
    Limits, MAX_DECODING_SIZE_BYTES, Server, ServerOptions, TlsMode, with_health_and_reflection,
};
use karman_remoting::tls::Tls;
use karman_remoting::wire::receive_message_response::Content;
use karman_remoting::wire::{ReceiveMessageResponse, SendMessageRequest};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status, Streaming};

/// For whatever must come to pass; fails the test when it does not.
pub(crate) const SOON: Duration = Duration::from_secs(20);

type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What the test sees of the calls, and how it lets them go on.
#[derive(Debug)]
pub(crate) struct Calls {
    /// Calls that have begun and wait.
    pub(crate) waiting: AtomicUsize,
    /// Frames handed to the server by endless streams.
    pub(crate) frames: AtomicUsize,
    /// Each permit lets one waiting call finish.
    pub(crate) go_on: Semaphore,
    /// What an acknowledgement blocks its thread on.
    pub(crate) block_on: Mutex<Option<std::sync::mpsc::Receiver<()>>>,
}

impl Calls {
    async fn wait(&self) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        self.go_on.acquire().await.expect("never closed").forget();
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }

    pub(crate) async fn until_waiting(&self, count: usize) {
        until(|| self.waiting.load(Ordering::SeqCst) == count).await;
    }
}

pub(crate) const FRAME_BYTES: usize = 64 * 1024;

struct Service(Arc<Calls>);

fn ok() -> Option<BodyStatus> {
    Some(BodyStatus { code: 20000, message: "OK".into() })
}

#[tonic::async_trait]
impl MessagingService for Service {
    /// Names the thread that served it.
    async fn query_route(
        &self,
        _: Request<QueryRouteRequest>,
    ) -> Result<Response<QueryRouteResponse>, Status> {
        let thread = std::thread::current().name().unwrap_or_default().to_owned();
        let status = BodyStatus { code: 20000, message: thread };
        Ok(Response::new(QueryRouteResponse { status: Some(status), ..Default::default() }))
    }

    /// Panics.
    async fn heartbeat(&self, _: Request<HeartbeatRequest>) -> Result<Response<HeartbeatResponse>, Status> {
        panic!("as the test wants");
    }

    /// Blocks its thread, as no service may.
    async fn ack_message(
        &self,
        _: Request<AckMessageRequest>,
    ) -> Result<Response<AckMessageResponse>, Status> {
        self.0.waiting.fetch_add(1, Ordering::SeqCst);
        if let Some(released) = self.0.block_on.lock().take() {
            // Its sender is dropped, never used.
            let _ = released.recv();
        }
        Err(Status::unimplemented("it only blocks"))
    }

    /// Waits.
    async fn send_message(
        &self,
        _: Request<SendMessageRequest>,
    ) -> Result<Response<SendMessageResponse>, Status> {
        self.0.wait().await;
        Ok(Response::new(SendMessageResponse { status: ok(), ..Default::default() }))
    }

    /// Waits, then answers; with `auto_renew` sends frames for ever instead.
    async fn receive_message(
        &self,
        request: Request<ReceiveMessageRequest>,
    ) -> Result<Response<BoxStream<ReceiveMessageResponse>>, Status> {
        let calls = self.0.clone();
        if request.get_ref().auto_renew {
            let frames = stream::repeat_with(move || {
                calls.frames.fetch_add(1, Ordering::SeqCst);
                let content = Some(Content::Message(Bytes::from_static(&[0; FRAME_BYTES])));
                Ok(ReceiveMessageResponse { content })
            });
            return Ok(Response::new(frames.boxed()));
        }
        let answer = stream::once(async move {
            calls.wait().await;
            Ok(ReceiveMessageResponse { content: ok().map(Content::Status) })
        });
        Ok(Response::new(answer.boxed()))
    }

    /// Sends back what comes, and never ends by itself.
    async fn telemetry(
        &self,
        request: Request<Streaming<TelemetryCommand>>,
    ) -> Result<Response<BoxStream<TelemetryCommand>>, Status> {
        Ok(Response::new(request.into_inner().chain(stream::once(pending())).boxed()))
    }
}

/// Options on any free loopback port, plaintext, with a grace no test should need.
pub(crate) fn options() -> ServerOptions {
    ServerOptions {
        name: "test",
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        threads: 1,
        tls: None,
        tls_mode: TlsMode::Permissive,
        nodes: Between::default(),
        shutdown_grace: SOON,
        takes_over: false,
        limits: Limits::default(),
    }
}

pub(crate) fn start(options: ServerOptions) -> (Server, Arc<Calls>) {
    let calls = Arc::new(Calls {
        waiting: AtomicUsize::new(0),
        frames: AtomicUsize::new(0),
        go_on: Semaphore::new(0),
        block_on: Mutex::new(None),
    });
    let service = MessagingServiceServer::new(Service(calls.clone()))
        .max_decoding_message_size(MAX_DECODING_SIZE_BYTES);
    let routes = with_health_and_reflection(Routes::new(service));
    (Server::start(options, routes).expect("start"), calls)
}

/// A self-signed certificate for `names`, and the PEM of it.
pub(crate) fn certificate(names: &[&str]) -> (Tls, Vec<u8>) {
    let dir = tempfile::tempdir().expect("temporary directory");
    let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
    let tls = Tls::self_signed(dir.path(), &names).expect("certificate");
    (tls, std::fs::read(dir.path().join("cert.pem")).expect("cert.pem"))
}

/// A plaintext channel of its own, as a client of another make would have it.
pub(crate) fn plaintext(server: &Server) -> MessagingServiceClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{}", server.local_addr())).expect("address");
    MessagingServiceClient::new(endpoint.connect_lazy())
}

pub(crate) async fn until(condition: impl Fn() -> bool) {
    let polled = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(SOON, polled).await.expect("the condition comes true");
}

/// Waits for what must come to pass.
pub(crate) async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(SOON, future).await.expect("in time")
}

pub(crate) async fn connect_and_send(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.expect("connect");
    stream.set_nodelay(true).expect("nodelay");
    stream.write_all(bytes).await.expect("write");
    stream
}

/// Reads what still comes until the peer closes; a reset is a close.
pub(crate) async fn read_until_closed(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // The bytes before a reset are kept.
    let _ = soon(stream.read_to_end(&mut bytes)).await;
    bytes
}
