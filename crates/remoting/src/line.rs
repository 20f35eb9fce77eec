//! Lines: whether the connection still exists on which something went out to a client.
//!
//! What a broker hands to a push consumer it renews until it is acknowledged. What was lost with its connection nobody will
//! acknowledge, though the client lives on; so it is renewed only as long as its [`Line`] is open.
//!
//! A node that relays receives keeps one stream open to the master for each client connection they come from
//! (`Line::hold_at` there, [`RelayedLines`] at the master). The stream ends with that connection, with the relaying node,
//! and with the way between the two: in each case the line is closed, and nobody has to tell it. On the data threads.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dashmap::DashMap;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, Stream};
use parking_lot::Mutex;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use crate::auth::Peer;
use crate::between::Between;
use crate::metadata;
use crate::proto::karman as v1;
use crate::proto::karman::BrokerIdentity;
use crate::proto::karman::relay_server::Relay;
use crate::relay::Peers;

/// A receive does not wait longer for its line; it is relayed without one then.
const HOLD_TIMEOUT: Duration = Duration::from_secs(1);
/// Client connections that other nodes may relay from to one master. Each is a stream, whose number per connection is bounded
/// as well.
const RELAYED_MAX: usize = 100_000;

/// A connection of a client. A clone is the same connection.
#[derive(Clone, Debug, Default)]
pub struct Line(Arc<State>);

#[derive(Debug, Default)]
struct State {
    closed: CancellationToken,
    /// The numbers that masters gave it, by the broker's name.
    held_at: Mutex<HashMap<String, Held>>,
}

#[derive(Debug)]
struct Held {
    /// Of the master's process.
    incarnation: u64,
    number: u64,
}

impl PartialEq for Line {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Line {}

impl Line {
    /// One that does not exist any more.
    fn closed() -> Self {
        let line = Self::default();
        line.0.closed.cancel();
        line
    }

    /// Whether what went out with it may still arrive, or has arrived for all that is known.
    pub fn is_open(&self) -> bool {
        !self.0.closed.is_cancelled()
    }

    /// The line is closed when this is dropped.
    pub fn open_until_dropped(&self) -> DropGuard {
        self.0.closed.clone().drop_guard()
    }

    /// Before a receive of this line is relayed: the number by which the master knows it. `None`: the master could not be told;
    /// it will not renew what it hands out.
    pub(crate) async fn hold_at(&self, peer: &BrokerIdentity, peers: &Peers) -> Option<u64> {
        if let Some(held) = self.0.held_at.lock().get(&peer.broker_name)
            && held.incarnation == peer.incarnation
        {
            return Some(held.number);
        }
        match tokio::time::timeout(HOLD_TIMEOUT, open(peer, peers)).await {
            Ok(Ok((number, stream))) => {
                let held = Held { incarnation: peer.incarnation, number };
                self.0.held_at.lock().insert(peer.broker_name.clone(), held);
                tokio::spawn(self.clone().keep(peer.broker_name.clone(), number, stream));
                Some(number)
            }
            Ok(Err(error)) => {
                tracing::debug!(broker = peer.broker_name, %error, "a relayed receive has no line");
                None
            }
            Err(_) => None,
        }
    }

    /// Keeps the stream as long as both the line and the stream last.
    async fn keep(self, broker: String, number: u64, mut stream: Streaming<v1::HoldLineResponse>) {
        // The master says nothing more: whatever comes is the end.
        let _ = self.0.closed.run_until_cancelled(stream.message()).await;
        let mut held_at = self.0.held_at.lock();
        if held_at.get(&broker).is_some_and(|held| held.number == number) {
            held_at.remove(&broker);
        }
    }
}

async fn open(
    peer: &BrokerIdentity,
    peers: &Peers,
) -> Result<(u64, Streaming<v1::HoldLineResponse>), Status> {
    let request = peers.request_of_node(v1::HoldLineRequest {});
    let lines = peers.lines(peer).map_err(|rejection| Status::unavailable(rejection.to_string()))?;
    let mut stream = { lines }.hold_line(request).await?.into_inner();
    let first = stream.message().await?;
    Ok((first.ok_or_else(|| Status::unavailable("it ended at once"))?.number, stream))
}

/// At a master: the connections that other nodes relay receives from.
#[derive(Debug)]
pub struct RelayedLines {
    next: AtomicU64,
    open: DashMap<u64, Line>,
}

impl Default for RelayedLines {
    fn default() -> Self {
        // Not from 1: a relaying node may not know yet that this is another process than the one that gave it a number.
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let next = AtomicU64::new(u64::try_from(since_1970.as_nanos()).unwrap_or_default());
        Self { next, open: DashMap::new() }
    }
}

impl RelayedLines {
    /// The line on which the answer to a request will go out. A request that came over no socket has one that stays open.
    pub fn of<T>(&self, request: &Request<T>) -> Line {
        if !metadata::is_relayed(request.metadata()) {
            return request.extensions().get::<Peer>().map(|peer| peer.line.clone()).unwrap_or_default();
        }
        let line = metadata::line_of(request.metadata()).and_then(|number| self.open.get(&number));
        line.map_or_else(Line::closed, |line| line.clone())
    }
}

/// The gRPC face of [`RelayedLines`].
#[derive(Debug)]
pub struct RelayService {
    /// Where they are kept.
    pub lines: Arc<RelayedLines>,
    /// What nodes show that call.
    pub between: Between,
    /// Cancelled when streams are to end.
    pub stopping: CancellationToken,
}

#[tonic::async_trait]
impl Relay for RelayService {
    async fn hold_line(
        &self,
        request: Request<v1::HoldLineRequest>,
    ) -> Result<Response<BoxStream<v1::HoldLineResponse>>, Status> {
        self.between.check(&request, "node")?;
        if self.lines.open.len() >= RELAYED_MAX {
            return Err(Status::resource_exhausted(format!("{RELAYED_MAX} lines are held")));
        }
        let (number, line) = (self.lines.next.fetch_add(1, Ordering::Relaxed), Line::default());
        let close = line.open_until_dropped();
        self.lines.open.insert(number, line);
        let stopping = self.stopping.clone().cancelled_owned().boxed();
        let lines = self.lines.clone();
        Ok(Response::new(Box::pin(Hold { number, is_said: false, lines, stopping, _close: close })))
    }
}

/// The stream of one line: its number, then nothing.
struct Hold {
    number: u64,
    is_said: bool,
    lines: Arc<RelayedLines>,
    stopping: BoxFuture<'static, ()>,
    _close: DropGuard,
}

impl Stream for Hold {
    type Item = Result<v1::HoldLineResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if !std::mem::replace(&mut self.is_said, true) {
            return Poll::Ready(Some(Ok(v1::HoldLineResponse { number: self.number })));
        }
        self.stopping.poll_unpin(context).map(|()| None)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.lines.open.remove(&self.number);
    }
}
