//! The bound on memory held by requests: bytes of request bodies in flight, counted as they arrive.
//!
//! Flow control bounds what a connection may send unasked, not what thousands of connections send together; this does, and no
//! address alone takes all. A client's call is refused with TOO_MANY_REQUESTS in the body: a gRPC error would make the client
//! give up this node. Runs on the data threads as a tower layer around the routes; costs two atomic additions per data frame.
//!
//! A call holds something too that sends nothing, or does not read its answer: [`CALL_BYTES`] and its headers, until its answer is
//! out. A body that does not come to its end is given up after [`BODY_TIMEOUT`].

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use tokio::time::Sleep;
use tonic::Status;
use tonic::body::Body;
use tonic::codec::{EncodeBody, SingleMessageCompressionOverride};
use tonic_prost::ProstEncoder;
use tower::{Layer, Service};

use super::framing::Framing;
use crate::auth::Peer;
use crate::proto::v2;
use crate::proto::v2::messaging_service_server;
use crate::status::Rejection;

/// What a call takes besides its body and headers: its stream, what it waits in, the first buffer of its decoder.
const CALL_BYTES: usize = 8 * 1024;
/// A body comes to its end in so long, or is refused: else a byte now and then would hold the call for ever. Streams that go on are
/// answered before.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// Counts the bytes of request bodies held by this process and refuses what goes over the limit. A clone is a handle.
///
/// A request holds its body from its arrival until it is answered; a request that is answered with a stream, until the stream
/// begins: afterwards HTTP/2 flow control bounds it. Of each the call itself is held until the end of its answer.
#[derive(Clone, Debug)]
pub struct Admission(Arc<Counter>);

#[derive(Debug)]
struct Counter {
    limit_bytes: usize,
    held_bytes: AtomicUsize,
}

impl Admission {
    /// Refuses what would make more than `limit_bytes` held at once: with TOO_MANY_REQUESTS calls of clients, with
    /// RESOURCE_EXHAUSTED the others.
    pub fn new(limit_bytes: usize) -> Self {
        Self(Arc::new(Counter { limit_bytes, held_bytes: AtomicUsize::new(0) }))
    }

    /// Bytes held now.
    pub fn held_bytes(&self) -> usize {
        self.0.held_bytes.load(Ordering::Relaxed)
    }
}

impl<S> Layer<S> for Admission {
    type Service = Admitted<S>;

    fn layer(&self, inner: S) -> Admitted<S> {
        Admitted { inner, admission: self.clone() }
    }
}

/// A service behind [`Admission`].
#[derive(Clone, Debug)]
pub struct Admitted<S> {
    inner: S,
    admission: Admission,
}

impl<S: Service<Request<CountedBody>, Response = Response<Body>>> Service<Request<Body>> for Admitted<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = CountedResponse<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let service = request.uri().path().split('/').nth(1);
        let is_of_client = service == Some(messaging_service_server::SERVICE_NAME);
        let framing = Framing::of(request.uri().path());
        let of_address = request.extensions().get::<Peer>().map(|peer| peer.held_bytes.clone());
        let headers = request.headers().iter();
        let headers: usize = headers.map(|(name, value)| name.as_str().len() + value.len()).sum();
        // Measured: with the table they stand in, and what the HTTP/2 library keeps of them, headers take twice their length.
        let call_bytes = CALL_BYTES + 2 * headers;
        let mut share = Share {
            admission: self.admission.clone(),
            of_address: of_address.unwrap_or_default(),
            call_bytes: 0,
            body_bytes: AtomicUsize::new(0),
            answered: AtomicBool::new(false),
            refused: OnceLock::new(),
        };
        let is_let_in = share.take(call_bytes).is_ok();
        if is_let_in {
            share.call_bytes = call_bytes;
        }
        let share = Arc::new(share);
        let inner = is_let_in.then(|| {
            let share = share.clone();
            self.inner.call(request.map(|inner| CountedBody { inner, share, framing, end: None }))
        });
        CountedResponse { inner, share, is_of_client }
    }
}

/// What one request holds; given back when it is answered, or when it is dropped unanswered.
#[derive(Debug)]
struct Share {
    admission: Admission,
    /// What all connections from the same address hold.
    of_address: Arc<AtomicUsize>,
    call_bytes: usize,
    body_bytes: AtomicUsize,
    answered: AtomicBool,
    refused: OnceLock<Rejection>,
}

impl Share {
    fn add(&self, bytes: usize) -> (usize, usize) {
        let held = &self.admission.0.held_bytes;
        (held.fetch_add(bytes, Ordering::Relaxed), self.of_address.fetch_add(bytes, Ordering::Relaxed))
    }

    fn sub(&self, bytes: usize) {
        self.admission.0.held_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.of_address.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn take(&self, bytes: usize) -> Result<(), Status> {
        let limit_bytes = self.admission.0.limit_bytes;
        let of_address_limit = limit_bytes / 4 * 3;
        let (held, of_address) = self.add(bytes);
        if held.saturating_add(bytes) <= limit_bytes && of_address.saturating_add(bytes) <= of_address_limit {
            return Ok(());
        }
        self.sub(bytes);
        let why = match held.saturating_add(bytes) > limit_bytes {
            true => format!("the node holds {held} bytes of requests and may hold {limit_bytes}"),
            false => format!(
                "the node holds {of_address} bytes of requests from this address and may hold {of_address_limit}"
            ),
        };
        Err(self.refuse(Rejection::TooManyRequests(format!("{why}; send again later, or send less at once"))))
    }

    fn take_body(&self, bytes: usize) -> Result<(), Status> {
        if !self.answered.load(Ordering::Relaxed) {
            self.take(bytes)?;
            self.body_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The call is refused, whatever its service makes of it.
    fn refuse(&self, rejection: Rejection) -> Status {
        Status::resource_exhausted(self.refused.get_or_init(|| rejection).to_string())
    }

    fn give_back_body(&self) {
        self.sub(self.body_bytes.swap(0, Ordering::Relaxed));
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.give_back_body();
        self.sub(self.call_bytes);
    }
}

/// A request body whose bytes are counted.
#[derive(Debug)]
pub struct CountedBody {
    inner: Body,
    share: Arc<Share>,
    framing: Option<Framing>,
    /// When it is given up; made when it is waited for.
    end: Option<Pin<Box<Sleep>>>,
}

impl CountedBody {
    /// Whether it has been waited for long enough.
    fn is_over(&mut self, context: &mut Context<'_>) -> bool {
        let end = self.end.get_or_insert_with(|| Box::pin(tokio::time::sleep(BODY_TIMEOUT)));
        end.as_mut().poll(context).is_ready() && !self.share.answered.load(Ordering::Relaxed)
    }
}

impl http_body::Body for CountedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(context) else {
            if self.share.answered.load(Ordering::Relaxed) || !self.is_over(context) {
                return Poll::Pending;
            }
            let seconds = BODY_TIMEOUT.as_secs();
            return Poll::Ready(Some(Err(self.share.refuse(Rejection::BodyTimeout { seconds }))));
        };
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            if let Err(refused) = self.share.take_body(data.len()) {
                return Poll::Ready(Some(Err(refused)));
            }
            if let Some(framing) = &mut self.framing
                && let Err(rejection) = framing.pass(data)
            {
                return Poll::Ready(Some(Err(self.share.refuse(rejection))));
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

pin_project_lite::pin_project! {
    /// The answer to a counted request.
    #[derive(Debug)]
    pub struct CountedResponse<F> {
        // There is none where the call was refused when it came.
        #[pin]
        inner: Option<F>,
        share: Arc<Share>,
        is_of_client: bool,
    }
}

impl<E, F: Future<Output = Result<Response<Body>, E>>> Future for CountedResponse<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let response = match this.inner.as_pin_mut() {
            Some(inner) => ready!(inner.poll(context)),
            None => {
                let rejection = this.share.refused.get().map(ToString::to_string);
                Ok(Status::resource_exhausted(rejection.unwrap_or_default()).into_http())
            }
        };
        this.share.answered.store(true, Ordering::Relaxed);
        this.share.give_back_body();
        let response = match this.share.refused.get().filter(|_| *this.is_of_client) {
            // What the service made of a body that broke off is an error of the transport.
            Some(rejection) => response.map(|_| refusal(rejection)),
            None => response,
        };
        let share = this.share.clone();
        Poll::Ready(
            response.map(|response| response.map(|inner| Body::new(HeldBody { inner, _share: share }))),
        )
    }
}

/// The body of an answer: the call holds its share until it is out.
struct HeldBody {
    inner: Body,
    _share: Arc<Share>,
}

impl http_body::Body for HeldBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.inner).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// An answer of the clients' service that has nothing but a status. Whatever the call: it is field 1 of every answer and
/// of every frame.
fn refusal(rejection: &Rejection) -> Response<Body> {
    let answer = v2::HeartbeatResponse { status: Some(rejection.into()) };
    let body = EncodeBody::new_server(
        ProstEncoder::default(),
        tokio_stream::once(Ok(answer)),
        None,
        SingleMessageCompressionOverride::default(),
        None,
    );
    let mut response = Response::new(Body::new(body));
    response.headers_mut().insert(http::header::CONTENT_TYPE, tonic::metadata::GRPC_CONTENT_TYPE);
    response
}
