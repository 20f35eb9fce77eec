//! A channel for operators' calls, each of which is signed when it is made. Used by our own programs, on the runtime of the channel.
//!
//! A signature is for one node, so the node is asked for its number before each call, on the same connection: it is another one when
//! the node has been started anew, and a command makes few calls.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::header::{CONTENT_TYPE, HeaderValue, TE};
use http::{HeaderMap, Method, Request, Response, Uri, Version};
use tonic::Status;
use tonic::body::Body;
use tonic::metadata::GRPC_CONTENT_TYPE;
use tonic::transport::Channel;
use tower::{Service, ServiceExt as _};

use super::credentials::Credentials;
use super::operator::{ASKS, NODE};

type Failed = Box<dyn Error + Send + Sync>;

const TIMEOUT: &str = "grpc-timeout";

/// See the module's comment.
#[derive(Clone, Debug)]
pub struct SignedChannel {
    channel: Channel,
    credentials: Option<Credentials>,
}

impl SignedChannel {
    /// `channel` for calls that `credentials` sign; without them, as it is.
    pub fn new(channel: Channel, credentials: Option<Credentials>) -> Self {
        Self { channel, credentials }
    }
}

impl Service<Request<Body>> for SignedChannel {
    type Response = Response<Body>;
    type Error = Failed;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Failed>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        self.channel.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let Some(credentials) = self.credentials.clone() else {
            let answer = self.channel.call(request);
            return Box::pin(async move { Ok(answer.await?) });
        };
        let question = self.channel.call(question(request.uri().clone(), request.headers()));
        let mut channel = self.channel.clone();
        Box::pin(async move {
            let node = number(&question.await?)?;
            let path = request.uri().path().to_owned();
            credentials.sign_operator_s(request.headers_mut(), &path, &node);
            Ok(channel.ready().await?.call(request).await?)
        })
    }
}

/// Asks for the number of the node, with the deadline of the call that is to be made then.
fn question(uri: Uri, headers: &HeaderMap) -> Request<Body> {
    let mut question = Request::new(Body::empty());
    (*question.method_mut(), *question.version_mut(), *question.uri_mut()) =
        (Method::POST, Version::HTTP_2, uri);
    let asks = question.headers_mut();
    asks.insert(CONTENT_TYPE, GRPC_CONTENT_TYPE);
    asks.insert(TE, HeaderValue::from_static("trailers"));
    asks.insert(ASKS, HeaderValue::from_static("node"));
    if let Some(timeout) = headers.get(TIMEOUT) {
        asks.insert(TIMEOUT, timeout.clone());
    }
    question
}

fn number(answer: &Response<Body>) -> Result<String, Failed> {
    let number = answer.headers().get(NODE).and_then(|number| number.to_str().ok());
    let refused = || {
        let said = Status::from_header_map(answer.headers());
        let said = said.map(|status| format!(": {}", status.message())).unwrap_or_default();
        Status::failed_precondition(format!(
            "the node does not say for whom a call is to be signed: is it a node of Karman, of the same version?{said}"
        ))
    };
    Ok(number.ok_or_else(refused)?.to_owned())
}
