//! Reads that the door of a slave answers from its own copy when its master does not. Nothing that has to be recorded: what a
//! consumer has received or acknowledged is in the log, and only a master writes that.

use std::fmt;
use std::sync::Arc;

use tonic::metadata::AsciiMetadataValue;
use tonic::{Request, Response};

use super::Front;
use crate::proto::v2;
use crate::proto::v2::messaging_service_server::MessagingService;
use crate::status::Rejection;

/// Says in the headers of an answer that a slave gave it, and why.
pub const ANSWERED_BY_SLAVE: &str = "x-karman-answered-by-slave";

/// The slave in the same process.
#[derive(Clone)]
pub struct Standby {
    /// `brokerName`: that of its master too.
    pub broker_name: String,
    /// Pulls and looks up offsets; `None`: it does not (`slaveReadEnable`).
    pub reads: Option<Arc<dyn MessagingService>>,
}

impl fmt::Debug for Standby {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Standby").field("broker_name", &self.broker_name).finish_non_exhaustive()
    }
}

/// Calls `$at_owner` of the door and, when the master cannot be reached, `$method` of the own slave.
macro_rules! or_standby {
    ($front:expr, $request:expr, $at_owner:ident, $method:ident) => {{
        let request = $request;
        let again = $front.standby_of(&request, request.get_ref().message_queue.as_ref());
        match ($front.$at_owner(request).await, again) {
            (Err(rejection), Some((standby, again))) => {
                match (crate::front::standby::unreached(&rejection), standby.reads) {
                    (Some(why), Some(reads)) => {
                        let answer = reads.$method(again).await.map_err(|status| failure_here(&status))?;
                        Ok(crate::front::standby::marked(answer, &standby.broker_name, &why))
                    }
                    (Some(why), None) => Err(Rejection::PeerUnavailable {
                        broker: standby.broker_name,
                        why: format!("{why}; its slave here answers reads only with slaveReadEnable=true"),
                    }),
                    (None, _) => Err(rejection),
                }
            }
            (answer, _) => answer,
        }
    }};
}
pub(super) use or_standby;

/// Why the owner did not answer, if it is that which is wrong.
pub(super) fn unreached(rejection: &Rejection) -> Option<String> {
    match rejection {
        Rejection::PeerUnavailable { why, .. } | Rejection::PeerTimeout { why, .. } => Some(why.clone()),
        _ => None,
    }
}

/// An answer that says who gave it.
pub(crate) fn marked<T>(mut answer: Response<T>, broker: &str, why: &str) -> Response<T> {
    let text: String =
        why.chars().map(|c| if c.is_ascii() && !c.is_ascii_control() { c } else { ' ' }).collect();
    tracing::debug!(broker, why, "a slave answers for its master");
    if let Ok(text) = AsciiMetadataValue::try_from(format!("the master of {broker} does not answer: {text}"))
    {
        answer.metadata_mut().insert(ANSWERED_BY_SLAVE, text);
    }
    answer
}

impl Front {
    /// The door of a slave.
    #[must_use]
    pub fn with_standby(mut self, standby: Standby) -> Self {
        self.standby = Some(standby);
        self
    }

    pub(super) fn stands_by_for(&self, broker: &str) -> bool {
        self.standby.as_ref().is_some_and(|standby| standby.broker_name == broker)
    }

    /// The slave that has the queue too, and the request once more.
    pub(super) fn standby_of<T: Clone>(
        &self,
        request: &Request<T>,
        queue: Option<&v2::MessageQueue>,
    ) -> Option<(Standby, Request<T>)> {
        let broker = super::queues::broker_of(queue);
        let standby = self.standby.as_ref().filter(|standby| standby.broker_name == broker)?;
        let mut again = Request::new(request.get_ref().clone());
        *again.metadata_mut() = request.metadata().clone();
        Some((standby.clone(), again))
    }
}
