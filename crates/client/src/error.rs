//! Why a call failed, and what to do about it. Pure.

use std::error::Error as _;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use karman_remoting::channel::ChannelError;
use karman_remoting::proto::v2;
use karman_remoting::status::Rejection;

/// Why a call failed. The text says what was wrong and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The access point cannot be read.
    #[error("access point {access_point:?} is refused: {why}; give host:port, or https://host:port for TLS")]
    AccessPoint {
        /// What was given.
        access_point: String,
        /// What is wrong with it.
        why: String,
    },
    /// There is no connection to the node, and the call did not reach it.
    #[error(
        "{endpoint} cannot be reached: {why}; check that a node runs there and that the address is right"
    )]
    Unreachable {
        /// `host:port`
        endpoint: String,
        /// What the connection said.
        why: String,
    },
    /// The connection broke under the call. Whether it was carried out is not known.
    #[error("the connection to {endpoint} broke: {why}; whether it carried out the call is not known")]
    Disconnected {
        /// `host:port`
        endpoint: String,
        /// What the connection said.
        why: String,
    },
    /// No answer in time. Whether the call was carried out is not known.
    #[error("{endpoint} did not answer within {} ms; whether it carried out the call is not known", .timeout.as_millis())]
    Timeout {
        /// `host:port`
        endpoint: String,
        /// How long the call waited.
        timeout: Duration,
    },
    /// The server understood the call and said no.
    #[error("{endpoint} refused: {message} ({})", .code.as_str_name())]
    Refused {
        /// `host:port`
        endpoint: String,
        /// The contract's code.
        code: v2::Code,
        /// What the server wrote: the value that was wrong, and the rule.
        message: String,
    },
    /// What came back is not an answer of the `apache.rocketmq.v2` contract.
    #[error(
        "{endpoint} gave an answer that the protocol does not know: {why}; is it a RocketMQ 5 or Karman endpoint?"
    )]
    Protocol {
        /// `host:port`
        endpoint: String,
        /// What is wrong with it.
        why: String,
    },
    /// The route of the topic has no queue for this.
    #[error("topic {topic:?} has no {wanted} queue; look at its permission and at which brokers are up")]
    NoQueue {
        /// The topic.
        topic: String,
        /// `readable` or `writable`.
        wanted: &'static str,
    },
    /// The members of a group cannot be known, so its queues cannot be shared out.
    #[error(
        "who is in group {group:?} cannot be known: {why}; sharing queues needs \
         apache.rocketmq.v2.Admin/ListConsumerConnection, which Karman has for whoever may receive in the group (Sub), and \
         Apache RocketMQ has not: use a push or simple consumer there, or AllocateStrategy::ByConfiguration, which asks nobody"
    )]
    Members {
        /// The group.
        group: String,
        /// What the server said.
        why: String,
    },
    /// The file in which a broadcasting consumer keeps its offsets cannot be used.
    #[error(
        "the file of offsets {path:?} cannot be used: {why}; mend that, or move it and its `.previous` away to begin anew"
    )]
    Offsets {
        /// The file.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// The message breaks a rule that every server has; it was not sent.
    #[error("{message} ({}); it was not sent", .code.as_str_name())]
    Illegal {
        /// What a server would have answered.
        code: v2::Code,
        /// What a server would have written: the value that is wrong, and the rule.
        message: String,
    },
    /// The client holds as much as it may, and nothing of it came to an end in time. The message was not taken.
    #[error("no room for another message within {} ms: {limit}", .waited.as_millis())]
    Full {
        /// Which limit it is, and what to do.
        limit: String,
        /// How long the call waited.
        waited: Duration,
    },
    /// The message waited too long for its turn to be sent; it was never on its way.
    #[error("the message was not sent within {} ms; the brokers take less than is sent, or cannot be reached", .waited.as_millis())]
    Expired {
        /// How long it may wait.
        waited: Duration,
    },
    /// The directory that messages are kept in cannot be used.
    #[error("the spool cannot be used: {why}{}", told_directory(.directory))]
    Spool {
        /// The directory, where the call did not name another.
        directory: PathBuf,
        /// What the system said.
        why: String,
    },
    /// An argument breaks a rule that holds before anything is sent.
    #[error("{0}")]
    InvalidArgument(String),
    /// [`Client::close`](crate::Client::close) was called before.
    #[error("the client is closed; connect a new one")]
    Closed,
}

impl ClientError {
    /// The contract's code, when the server refused or would have.
    pub fn code(&self) -> Option<v2::Code> {
        match self {
            Self::Refused { code, .. } | Self::Illegal { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// Whether the same call may succeed on another node, or here a moment later.
    pub(crate) fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Disconnected { .. } | Self::Timeout { .. } => true,
            // The blocks of the contract: 4xxxx is the caller's fault, 5xxxx the server's.
            Self::Refused { code, .. } => {
                *code == v2::Code::TooManyRequests
                    || *code == v2::Code::RequestTimeout
                    || ((*code as i32) / 10_000 == 5 && *code != v2::Code::NotImplemented)
            }
            _ => false,
        }
    }

    /// Whether the node may have carried out the call all the same.
    pub(crate) fn is_uncertain(&self) -> bool {
        match self {
            Self::Disconnected { .. } | Self::Timeout { .. } => true,
            // Servers that gave up waiting; what they waited for goes on.
            Self::Refused { code, .. } => matches!(
                code,
                v2::Code::RequestTimeout
                    | v2::Code::ProxyTimeout
                    | v2::Code::MasterPersistenceTimeout
                    | v2::Code::SlavePersistenceTimeout
            ),
            _ => false,
        }
    }

    /// Whether the node's door, not what it knows, is what failed.
    pub(crate) fn is_of_connection(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Disconnected { .. })
    }

    /// What a server would have answered.
    pub(crate) fn illegal(rejection: Rejection) -> Self {
        Self::Illegal { code: rejection.code(), message: rejection.to_string() }
    }

    pub(crate) fn protocol(endpoint: &str, why: impl Into<String>) -> Self {
        Self::Protocol { endpoint: endpoint.to_owned(), why: why.into() }
    }

    pub(crate) fn channel(endpoint: &str, error: &ChannelError) -> Self {
        Self::AccessPoint { access_point: endpoint.to_owned(), why: error.to_string() }
    }

    /// A gRPC error of a call that had `timeout`. In this protocol that is one of the transport, unless there was no body
    /// to refuse in. For other programs of Karman.
    #[doc(hidden)]
    pub fn transport(endpoint: &str, timeout: Duration, status: &tonic::Status) -> Self {
        let endpoint = endpoint.to_owned();
        let refused = |endpoint, code| Self::Refused { endpoint, code, message: status.message().to_owned() };
        match status.code() {
            tonic::Code::DeadlineExceeded => Self::Timeout { endpoint, timeout },
            // Both ends of tonic tell a deadline so.
            tonic::Code::Cancelled if status.message() == tonic::TimeoutExpired(()).to_string() => {
                Self::Timeout { endpoint, timeout }
            }
            tonic::Code::ResourceExhausted => refused(endpoint, v2::Code::TooManyRequests),
            tonic::Code::InvalidArgument => refused(endpoint, v2::Code::BadRequest),
            tonic::Code::Unavailable if never_connected(status) => {
                Self::Unreachable { endpoint, why: told(status) }
            }
            // A connection that broke under a call is told as UNKNOWN or CANCELLED, according to the moment.
            tonic::Code::Unavailable | tonic::Code::Unknown | tonic::Code::Cancelled => {
                Self::Disconnected { endpoint, why: told(status) }
            }
            code => Self::Protocol { endpoint, why: format!("gRPC {code:?}: {}", status.message()) },
        }
    }

    /// What the `status` of an answer means.
    pub(crate) fn of_status(endpoint: &str, status: Option<v2::Status>) -> Result<(), Self> {
        let Some(status) = status else { return Err(Self::protocol(endpoint, "the answer has no status")) };
        match v2::Code::try_from(status.code) {
            Ok(v2::Code::Ok) => Ok(()),
            Ok(code) => Err(Self::Refused { endpoint: endpoint.to_owned(), code, message: status.message }),
            Err(_) => Err(Self::protocol(endpoint, format!("code {}: {}", status.code, status.message))),
        }
    }
}

fn told_directory(directory: &Path) -> String {
    if directory.as_os_str().is_empty() {
        String::new()
    } else {
        format!(" (directory {})", directory.display())
    }
}

/// The connection was not made, so that the call was never sent.
fn never_connected(status: &tonic::Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The message of `status` with its causes: tonic's own is often only "transport error".
fn told(status: &tonic::Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = status.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            // Writing to a String cannot fail.
            let _ = write!(text, ": {more}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: v2::Code) -> ClientError {
        ClientError::of_status("n:1", Some(v2::Status { code: code.into(), message: "why".into() }))
            .unwrap_err()
    }

    #[test]
    fn only_what_another_attempt_can_mend_is_tried_again() {
        for code in [v2::Code::TooManyRequests, v2::Code::InternalServerError, v2::Code::ProxyTimeout] {
            assert!(refused(code).is_retryable(), "{code:?}");
        }
        for code in [v2::Code::TopicNotFound, v2::Code::MessageBodyTooLarge, v2::Code::NotImplemented] {
            assert!(!refused(code).is_retryable(), "{code:?}");
        }
        assert!(
            ClientError::transport("n:1", Duration::ZERO, &tonic::Status::unavailable("x")).is_retryable()
        );
        assert!(!ClientError::Closed.is_retryable());
    }

    fn transport(status: &tonic::Status) -> ClientError {
        ClientError::transport("n:1", Duration::from_secs(3), status)
    }

    #[test]
    fn a_deadline_that_passed_at_the_server_or_here_is_a_timeout() {
        let expired = || tonic::TimeoutExpired(());
        let here = tonic::Status::from_error(Box::new(expired()));
        let there = tonic::Status::cancelled(expired().to_string());
        for status in [here, there, tonic::Status::deadline_exceeded("too late")] {
            assert!(matches!(transport(&status), ClientError::Timeout { .. }), "{status:?}");
        }
        let broken = tonic::Status::cancelled("h2 protocol error");
        assert!(matches!(transport(&broken), ClientError::Disconnected { .. }));
    }

    #[test]
    fn what_a_server_refuses_by_the_transport_is_a_refusal() {
        let busy = transport(&tonic::Status::resource_exhausted("the node holds enough"));
        assert_eq!((busy.code(), busy.is_retryable()), (Some(v2::Code::TooManyRequests), true));
        let wrong = transport(&tonic::Status::invalid_argument("the settings name no group"));
        assert_eq!((wrong.code(), wrong.is_retryable()), (Some(v2::Code::BadRequest), false));
        assert!(wrong.to_string().contains("name no group"));
    }

    #[test]
    fn an_answer_without_status_is_no_success() {
        assert!(matches!(ClientError::of_status("n:1", None), Err(ClientError::Protocol { .. })));
        let unknown = v2::Status { code: 12_345, message: String::new() };
        assert!(matches!(ClientError::of_status("n:1", Some(unknown)), Err(ClientError::Protocol { .. })));
    }

    #[test]
    fn the_text_names_the_node_the_reason_and_the_code() {
        assert_eq!(refused(v2::Code::TopicNotFound).to_string(), "n:1 refused: why (TOPIC_NOT_FOUND)");
    }
}
