//! The bound on memory held by requests: bytes of request bodies in flight, counted as they arrive.
//!
//! Flow control bounds what a connection may send unasked, not what thousands of connections send together; this does.
//! A client's call is refused with TOO_MANY_REQUESTS in the body: a gRPC error would make the client give up this node.
//! Runs on the data threads as a tower layer around the routes; costs one atomic addition per data frame.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;
use tonic::codec::{EncodeBody, SingleMessageCompressionOverride};
use tonic_prost::ProstEncoder;
use tower::{Layer, Service};

use crate::proto::v2;
use crate::proto::v2::messaging_service_server;
use crate::status::Rejection;

/// Counts the bytes of request bodies held by this process and refuses what goes over the limit. A clone is a handle.
///
/// A request holds its bytes from their arrival until it is answered; a request that is answered with a stream, until
/// the stream begins: afterwards HTTP/2 flow control bounds it.
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
        let share = Arc::new(Share {
            admission: self.admission.clone(),
            held_bytes: AtomicUsize::new(0),
            answered: AtomicBool::new(false),
            refused: OnceLock::new(),
        });
        let service = request.uri().path().split('/').nth(1);
        let is_of_client = service == Some(messaging_service_server::SERVICE_NAME);
        let request = request.map(|inner| CountedBody { inner, share: share.clone() });
        CountedResponse { inner: self.inner.call(request), share, is_of_client }
    }
}

/// What one request holds; given back when it is answered, or when it is dropped unanswered.
#[derive(Debug)]
struct Share {
    admission: Admission,
    held_bytes: AtomicUsize,
    answered: AtomicBool,
    refused: OnceLock<Rejection>,
}

impl Share {
    fn take(&self, bytes: usize) -> Result<(), Status> {
        if self.answered.load(Ordering::Relaxed) {
            return Ok(());
        }
        let Counter { limit_bytes, held_bytes } = &*self.admission.0;
        let held_before = held_bytes.fetch_add(bytes, Ordering::Relaxed);
        if held_before.saturating_add(bytes) > *limit_bytes {
            held_bytes.fetch_sub(bytes, Ordering::Relaxed);
            let why = format!(
                "the node holds {held_before} bytes of requests and may hold {limit_bytes}; send again later, or send less at once"
            );
            let rejection = self.refused.get_or_init(|| Rejection::TooManyRequests(why));
            return Err(Status::resource_exhausted(rejection.to_string()));
        }
        self.held_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn give_back(&self) {
        let bytes = self.held_bytes.swap(0, Ordering::Relaxed);
        self.admission.0.held_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// A request body whose bytes are counted.
#[derive(Debug)]
pub struct CountedBody {
    inner: Body,
    share: Arc<Share>,
}

impl http_body::Body for CountedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
            && let Err(refused) = self.share.take(data.len())
        {
            return Poll::Ready(Some(Err(refused)));
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
        #[pin]
        inner: F,
        share: Arc<Share>,
        is_of_client: bool,
    }
}

impl<E, F: Future<Output = Result<Response<Body>, E>>> Future for CountedResponse<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let response = ready!(this.inner.poll(context));
        this.share.answered.store(true, Ordering::Relaxed);
        this.share.give_back();
        match this.share.refused.get().filter(|_| *this.is_of_client) {
            // What the service made of a body that broke off is an error of the transport.
            Some(rejection) => Poll::Ready(response.map(|_| refusal(rejection))),
            None => Poll::Ready(response),
        }
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
