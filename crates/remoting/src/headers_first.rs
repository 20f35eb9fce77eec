//! The controller's service: who may not call is refused by the headers of his call, before anything of it is read or decoded. A tower
//! layer around a generated server, on the data threads. That of operators has more to find out: [`crate::auth::Gate`].

use std::convert::Infallible;
use std::fmt;
use std::future::{Ready, ready};
use std::task::{Context, Poll};

use futures_util::future::Either;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::server::NamedService;
use tonic::{Request, Status};
use tower::Service;

/// See the module's comment. `F` is given a call without its message, and the name of its method.
#[derive(Clone)]
pub struct HeadersFirst<S, F> {
    inner: S,
    admit: F,
}

impl<S, F> HeadersFirst<S, F>
where
    F: Fn(&Request<()>, &str) -> Result<(), Status>,
{
    /// In front of `inner`: what `admit` refuses does not come to it.
    pub fn new(inner: S, admit: F) -> Self {
        Self { inner, admit }
    }
}

impl<S, F> fmt::Debug for HeadersFirst<S, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeadersFirst").finish_non_exhaustive()
    }
}

impl<S: NamedService, F> NamedService for HeadersFirst<S, F> {
    const NAME: &'static str = S::NAME;
}

impl<S, F> Service<http::Request<Body>> for HeadersFirst<S, F>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    F: Fn(&Request<()>, &str) -> Result<(), Status>,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Either<S::Future, Ready<Result<Self::Response, Infallible>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let metadata = MetadataMap::from_headers(request.headers().clone());
        let call = Request::from_parts(metadata, request.extensions().clone(), ());
        let method = request.uri().path().rsplit('/').next().unwrap_or_default();
        match (self.admit)(&call, method) {
            Ok(()) => Either::Left(self.inner.call(request)),
            Err(status) => Either::Right(ready(Ok(status.into_http()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::FutureExt as _;
    use tower::service_fn;

    use super::*;
    use crate::between::Between;
    use crate::metadata::add_secret;

    #[test]
    fn who_does_not_know_the_secret_does_not_come_to_the_service() {
        let calls = AtomicUsize::new(0);
        let inner = service_fn(|_| {
            calls.fetch_add(1, Ordering::Relaxed);
            ready(Ok(http::Response::new(Body::empty())))
        });
        let between = Between::plaintext("open sesame".into());
        let mut service = HeadersFirst::new(inner, |call: &Request<()>, method: &str| {
            assert_eq!(method, "Read");
            between.check(call, "broker")
        });
        let mut answer = |secret: &str| {
            let mut metadata = MetadataMap::new();
            add_secret(&mut metadata, &secret.into());
            let mut request = http::Request::new(Body::empty());
            *request.headers_mut() = metadata.into_headers();
            *request.uri_mut() = "/karman.v1.Repair/Read".parse().expect("a path");
            let answer = service.call(request).now_or_never().expect("it does not wait").expect("infallible");
            Status::from_header_map(answer.headers()).map(|status| status.code())
        };
        assert_eq!(answer("open sesamf"), Some(tonic::Code::PermissionDenied));
        assert_eq!(answer("open sesame"), None);
        assert_eq!(calls.into_inner(), 1);
    }
}
