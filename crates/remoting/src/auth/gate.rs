//! The gate of the operators' services: who calls is found before anything of the call is read or decoded. A tower layer around a
//! generated server, on the data threads. One call is clients' too and goes through: the service itself decides about it.
//!
//! Where it is missing the service refuses everything: what it finds out is not in a call's headers.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::task::{Context, Poll};

use futures_util::future::Either;
use tonic::Status;
use tonic::body::Body;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::server::NamedService;
use tower::Service;

use super::operator::{ASKS, NODE};
use super::operators::{Entered, audit};
use super::{Auth, source_of};
use crate::validate::shortened;

/// Who is a member of a group, which its members may ask, too: the service decides about that call.
const MEMBERS: &str = "/apache.rocketmq.v2.Admin/ListConsumerConnection";

/// See the module's comment.
#[derive(Clone, Debug)]
pub struct Gate<S> {
    auth: Auth,
    inner: S,
}

impl<S> Gate<S> {
    /// The one in front of `inner`, a service for operators, to which `auth` lets in.
    pub fn new(auth: Auth, inner: S) -> Self {
        Self { auth, inner }
    }
}

impl<S: NamedService> NamedService for Gate<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Gate<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Either<S::Future, Ready<Result<Self::Response, Infallible>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let metadata = MetadataMap::from_headers(request.headers().clone());
        if metadata.contains_key(ASKS) {
            return refused(Status::permission_denied("it is said in the headers"), self.auth.node());
        }
        let path = request.uri().path();
        match self.auth.enter(&metadata, request.extensions(), path) {
            Ok(entered) => {
                request.extensions_mut().insert(entered);
                Either::Left(self.inner.call(request))
            }
            Err(why) if path == MEMBERS => {
                request.extensions_mut().insert(Entered::Client(why));
                Either::Left(self.inner.call(request))
            }
            Err(why) => {
                let call = name_of(path);
                // What it wanted is not known: nothing of it was decoded.
                audit(&call, None, &metadata, source_of(request.extensions()), "", Some(&why));
                refused(Status::permission_denied(why.to_string()), self.auth.node())
            }
        }
    }
}

fn refused<F>(mut status: Status, node: &str) -> Either<F, Ready<Result<http::Response<Body>, Infallible>>> {
    let digits = MetadataValue::try_from(node).expect("digits");
    status.metadata_mut().insert(NODE, digits);
    Either::Right(ready(Ok(status.into_http())))
}

/// `list_topics` of `/karman.v1.Admin/ListTopics`, as calls are named in the audit log.
fn name_of(path: &str) -> String {
    let method = path.rsplit('/').next().unwrap_or_default();
    let mut name = String::new();
    for letter in shortened(method).chars() {
        if letter.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_lowercase());
    }
    name
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tower::service_fn;

    use super::super::{Who, operator};
    use super::*;

    /// What the gate of a cluster with a secret answers to a call with these headers, and how often it has let one through.
    fn answered(headers: &[(&'static str, &str)]) -> (http::Response<Body>, usize) {
        let let_in = AtomicUsize::new(0);
        let inner = service_fn(|request: http::Request<Body>| {
            let entered = request.extensions().get::<Entered>().cloned();
            assert!(matches!(entered, Some(Entered::Operator(Who::Cluster))), "{entered:?}");
            let_in.fetch_add(1, Ordering::Relaxed);
            ready(Ok(http::Response::new(Body::empty())))
        });
        let auth = Auth::off("open sesame".into());
        let mut request = http::Request::new(Body::empty());
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().expect("a header"));
        }
        let mut gate = Gate::new(auth.clone(), inner);
        let answer = futures_util::FutureExt::now_or_never(gate.call(request)).expect("it does not wait");
        let answer = answer.expect("infallible");
        let number = answer.headers().get(NODE);
        assert!(number.is_none_or(|number| number == auth.node()));
        (answer, let_in.into_inner())
    }

    #[test]
    fn a_call_is_refused_by_its_headers_before_the_service_sees_it() {
        let (answer, let_in) = answered(&[]);
        assert_eq!((&answer.headers()["grpc-status"], let_in), (&"7".parse().expect("a header"), 0));
        let (_, let_in) = answered(&[("x-karman-secret", "open sesamf")]);
        assert_eq!(let_in, 0);
        let (answer, let_in) = answered(&[("x-karman-secret", "open sesame")]);
        assert_eq!((answer.headers().get("grpc-status"), let_in), (None, 1));
    }

    #[test]
    fn who_asks_for_the_number_of_the_node_is_told_it_and_let_in_nowhere() {
        let (answer, let_in) = answered(&[("x-karman-secret", "open sesame"), (ASKS, "node")]);
        let number = answer.headers()[NODE].to_str().expect("digits");
        assert!(operator::parse_nonce(number).is_some(), "{number}");
        assert_eq!(let_in, 0);
    }

    #[test]
    fn calls_are_named_as_in_the_rest_of_the_audit_log() {
        assert_eq!(name_of("/karman.v1.Admin/ListTopics"), "list_topics");
        assert_eq!(name_of(""), "");
        assert!(name_of(&"a".repeat(70_000)).len() < 1000);
    }
}
