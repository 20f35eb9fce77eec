//! The master's side of replication: who may follow, what a slave has to do first, and the stream of frames. One task for
//! each slave on the internal server's thread; what may have to come from the device is read on blocking threads.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use karman_remoting::auth::source_of;
use karman_remoting::between::Between;
use karman_remoting::proto::karman as v1;
use karman_remoting::proto::karman::copy_response::Part;
use karman_remoting::proto::karman::follow_request::Request as Asked;
use karman_remoting::proto::karman::follow_response::Response as Said;
use karman_remoting::proto::karman::replication_server::Replication;
use karman_remoting::proto::karman::welcome::First;
use karman_remoting::refused::Came;
use karman_store::{EpochStart, RawRecords, Store, StoreCopy};
use opentelemetry::Context;
use opentelemetry::trace::TraceContextExt as _;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use super::Followers;
use super::role::{self, FirstStep};
use crate::traces::{self, Traces};

/// Records of one frame, unless a single one is larger.
const FRAME_BYTES: usize = 256 << 10;
/// Frames that wait for a slave that reads slowly; more than a network takes at once.
const FRAMES_MAX: usize = 16;
/// What lies further behind the end is expected on the device, not in memory.
const COLD_BYTES: u64 = 64 << 20;
/// A slave that is silent for longer is gone.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(10);
const HEARTBEAT: Duration = Duration::from_secs(1);

/// The gRPC face of a master.
#[derive(Debug)]
pub struct ReplicationService {
    /// What is given out.
    pub store: Arc<Store>,
    /// Who takes it.
    pub followers: Arc<Followers>,
    /// Makes spans of some of it.
    pub traces: Option<Arc<Traces>>,
    /// `brokerClusterName`
    pub cluster: String,
    /// `brokerName`
    pub broker_name: String,
    /// What slaves show.
    pub between: Between,
    /// `mappedFileSizeCommitLog`
    pub segment_bytes: u64,
    /// What is acknowledged may wait for the slaves' devices.
    pub flush: bool,
    /// Ends the streams.
    pub stopping: CancellationToken,
}

type Frames = mpsc::Sender<Result<v1::FollowResponse, Status>>;

#[tonic::async_trait]
impl Replication for ReplicationService {
    async fn follow(
        &self,
        request: Request<Streaming<v1::FollowRequest>>,
    ) -> Result<Response<BoxStream<v1::FollowResponse>>, Status> {
        let from = self.admit(&request)?;
        let mut asked = request.into_inner();
        let first = tokio::time::timeout(SILENCE_MAX, asked.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no hello within 10 s"))??;
        let Some(Asked::Hello(hello)) = first.and_then(|first| first.request) else {
            return Err(Status::invalid_argument("the first request of a stream is hello"));
        };
        let replica = self.known(hello.replica.as_ref(), &from)?.clone();
        let who = named(&replica);
        let first = self.first(&hello).map_err(|status| self.refused(Came::AsNode, &who, status))?;
        let (frames, sent) = mpsc::channel(FRAMES_MAX);
        let welcome = v1::Welcome {
            log_id: self.store.log_id().0.to_vec(),
            segment_bytes: self.segment_bytes,
            flush: self.flush,
            first: Some(first),
        };
        tracing::info!(
            broker_id = replica.broker_id,
            address = replica.address,
            end = hello.end,
            ?first,
            "a slave says hello"
        );
        let welcome = v1::FollowResponse { response: Some(Said::Welcome(welcome)) };
        frames.try_send(Ok(welcome)).map_err(|_| Status::internal("an empty channel has room"))?;
        if matches!(first, First::Nothing(_)) {
            let joined = self.followers.join(&replica, hello.end).map_err(|other| {
                let id = replica.broker_id;
                let status = Status::failed_precondition(format!(
                    "brokerId {id} of broker {:?} belongs to the slave at {other}; give {} another one",
                    self.broker_name, replica.address
                ));
                self.refused(Came::AsNode, &who, status)
            })?;
            let session = Session {
                store: self.store.clone(),
                followers: self.followers.clone(),
                traces: self.traces.clone(),
                traced: Mutex::default(),
                id: replica.broker_id,
                session: joined,
                who,
            };
            let stopping = self.stopping.clone();
            tokio::spawn(async move {
                let ended = stopping.run_until_cancelled(session.run(hello.end, asked, &frames)).await;
                if let Some(Err(status)) = ended {
                    // It may be gone.
                    let _ = frames.try_send(Err(status));
                }
            });
        }
        Ok(Response::new(Box::pin(ReceiverStream::new(sent))))
    }

    async fn copy(
        &self,
        request: Request<v1::CopyRequest>,
    ) -> Result<Response<BoxStream<v1::CopyResponse>>, Status> {
        let from = self.admit(&request)?;
        self.known(request.get_ref().replica.as_ref(), &from)?;
        let (parts, sent) = mpsc::channel(FRAMES_MAX);
        let store = self.store.clone();
        let stopping = self.stopping.clone();
        tokio::task::spawn_blocking(move || {
            let copied = store.copy().and_then(|copy| give(&store, &copy, &parts, &stopping));
            if let Err(error) = copied {
                tracing::warn!(%error, "a copy for a slave ended");
                let _ = parts.blocking_send(Err(Status::unavailable(format!("the copy ended: {error}"))));
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(sent))))
    }
}

/// Sends all of a copy, at the pace of who takes it.
fn give(
    store: &Store,
    copy: &StoreCopy,
    parts: &mpsc::Sender<Result<v1::CopyResponse, Status>>,
    stopping: &CancellationToken,
) -> io::Result<()> {
    let send = |part| {
        let response = Ok(v1::CopyResponse { part: Some(part) });
        match stopping.is_cancelled() {
            true => Err(io::Error::other("the master stops")),
            false => parts.blocking_send(response).map_err(|_| io::Error::other("the slave is gone")),
        }
    };
    let snapshot = copy.snapshot();
    send(Part::Begin(v1::CopyBegin {
        log_id: store.log_id().0.to_vec(),
        log_start: copy.log_start(),
        end: copy.end(),
        snapshot_offset: snapshot.map(|(offset, _)| offset),
        snapshot_bytes: snapshot.map_or(0, |(_, bytes)| bytes.len() as u64),
    }))?;
    for piece in snapshot.into_iter().flat_map(|(_, bytes)| bytes.chunks(FRAME_BYTES)) {
        send(Part::Snapshot(piece.to_vec()))?;
    }
    let mut at = copy.log_start();
    while let Some(piece) = copy.piece(at, FRAME_BYTES)? {
        at += piece.bytes.len() as u64;
        let (segment, segment_bytes) = (piece.segment, piece.segment_bytes);
        send(Part::Log(v1::LogPiece { segment, segment_bytes, at: piece.at, bytes: piece.bytes }))?;
    }
    Ok(())
}

impl ReplicationService {
    /// Where it comes from, for what is said of one that is not known yet.
    fn admit<T>(&self, request: &Request<T>) -> Result<String, Status> {
        let from = source_of(request.extensions());
        // Its port is another one each time.
        let from = from.map_or_else(|| "an unknown address".to_owned(), |from| from.ip().to_string());
        match self.between.check(request, "slave") {
            Ok(()) => Ok(from),
            Err(status) => Err(self.refused(Came::AsStranger, &from, status)),
        }
    }

    fn refused(&self, came: Came, who: &str, status: Status) -> Status {
        self.followers.refuse(came, who, status.message(), status.message());
        status
    }

    fn known<'a>(&self, replica: Option<&'a v1::Replica>, from: &str) -> Result<&'a v1::Replica, Status> {
        let replica = replica.ok_or_else(|| Status::invalid_argument("it does not say who it is"));
        let replica = replica.map_err(|status| self.refused(Came::AsNode, from, status))?;
        self.is_of_this_set(replica).map_err(|status| self.refused(Came::AsNode, &named(replica), status))?;
        Ok(replica)
    }

    fn is_of_this_set(&self, replica: &v1::Replica) -> Result<(), Status> {
        for (key, theirs, ours) in [
            ("brokerClusterName", &replica.cluster, &self.cluster),
            ("brokerName", &replica.broker_name, &self.broker_name),
        ] {
            if theirs != ours {
                let what = format!(
                    "the slave's {key} is {theirs:?}, its master's {ours:?}; correct it, or the slave's haMasterAddress"
                );
                return Err(Status::failed_precondition(what));
            }
        }
        match replica.broker_id > 0 {
            true => Ok(()),
            false => Err(Status::failed_precondition(format!(
                "the slave's brokerId is {}; 0 is the master's, use 1 and up",
                replica.broker_id
            ))),
        }
    }

    /// What a slave has to do before it can follow.
    fn first(&self, hello: &v1::Hello) -> Result<First, Status> {
        if hello.log_id.is_empty() {
            // What fits one segment comes as fast as frames.
            let all = self.store.watermarks();
            let small = all.log_start == 0 && all.written < self.segment_bytes;
            return Ok(if small { First::Nothing(true) } else { First::Copy(true) });
        }
        if hello.log_id != self.store.log_id().0 {
            return Err(Status::failed_precondition(
                "the slave holds another log than its master; it begins with an empty directory: move that one away if \
                 nothing in it is needed",
            ));
        }
        let begun = |&v1::Epoch { epoch, start, mark }: &v1::Epoch| EpochStart { epoch, start, mark };
        let epochs: Vec<_> = hello.epochs.iter().map(begun).collect();
        let (ours, theirs) = (self.store.epoch(), epochs.last().map_or(0, |last| last.epoch));
        let common = self.store.common_end(&epochs, hello.end);
        match role::first_step(ours, theirs, common, hello.end) {
            Some(FirstStep::Follow) => Ok(First::Nothing(true)),
            Some(FirstStep::Cut(to)) => Ok(First::Cut(to)),
            Some(FirstStep::Copy) => Ok(First::Copy(true)),
            None => Err(Status::failed_precondition(format!(
                "the slave has followed a master of epoch {theirs}, and this one's is {ours}: this is not the master any more. \
                 Start that one as the master; or, if what it wrote is not needed, move the slave's store away"
            ))),
        }
    }
}

/// Who a slave says that it is.
fn named(replica: &v1::Replica) -> String {
    let v1::Replica { broker_id, broker_name, address, .. } = replica;
    format!("brokerId {broker_id} of broker {broker_name:?} at {address}")
}

/// One slave's stream.
struct Session {
    store: Arc<Store>,
    followers: Arc<Followers>,
    traces: Option<Arc<Traces>>,
    /// One batch at most that is traced, and where the log ends with it; until the slave has it.
    traced: Mutex<Option<(u64, Context)>>,
    id: i32,
    session: u64,
    who: String,
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some((_, span)) = self.traced.lock().take() {
            traces::failed_with(&span, "slave left");
            span.span().end();
        }
        self.followers.leave(self.id, self.session);
    }
}

impl Session {
    /// Until either side ends it.
    async fn run(
        &self,
        from: u64,
        asked: Streaming<v1::FollowRequest>,
        frames: &Frames,
    ) -> Result<(), Status> {
        tokio::select! {
            ended = self.give(from, frames) => ended,
            ended = self.hear(asked) => ended,
        }
    }

    async fn hear(&self, mut asked: Streaming<v1::FollowRequest>) -> Result<(), Status> {
        loop {
            let request = tokio::time::timeout(SILENCE_MAX, asked.message()).await;
            let request = request.map_err(|_| Status::deadline_exceeded("the slave is silent"))??;
            match request.map(|request| request.request) {
                Some(Some(Asked::Ack(ack))) => {
                    self.trace_ack(ack.written);
                    self.followers.ack(self.id, self.session, ack);
                }
                Some(Some(Asked::GivesUp(why))) => {
                    let why = format!("it cannot take what it is sent: {why}");
                    // Places differ from one time to the next.
                    self.followers.refuse(Came::AsNode, &self.who, "gives up", &why);
                    return Ok(());
                }
                Some(_) => return Err(Status::invalid_argument("acks follow a hello, and nothing else")),
                None => return Ok(()),
            }
        }
    }

    /// Sends what there is from `next` on, and what comes.
    async fn give(&self, mut next: u64, frames: &Frames) -> Result<(), Status> {
        // Before the first look: what comes in between is not missed.
        let mut advanced = self.store.advanced();
        let mut told = 0;
        loop {
            advanced.mark_unchanged();
            let raw = self.read(next).await?;
            let log = self.store.watermarks();
            if raw.bytes.is_empty() && log.confirmed == told {
                // A heartbeat, if nothing comes.
                let _ = tokio::time::timeout(HEARTBEAT, advanced.changed()).await;
                if advanced.has_changed().unwrap_or(false) {
                    continue;
                }
            }
            self.trace_batch(next, raw.end);
            (next, told) = (raw.end, log.confirmed);
            let RawRecords { start, bytes: records, segment_bytes, .. } = raw;
            let frame = v1::Frame { start, records, segment_bytes, confirmed: told, end: log.written };
            let frame = v1::FollowResponse { response: Some(Said::Frame(frame)) };
            if frames.send(Ok(frame)).await.is_err() {
                return Ok(());
            }
        }
    }

    /// Records from `start` to `end` go out now.
    fn trace_batch(&self, start: u64, end: u64) {
        let Some(traces) = &self.traces else { return };
        let mut traced = self.traced.lock();
        if traced.is_none() && end > start {
            *traced = traces.replicate(self.id, start, end).map(|span| (end, span));
        }
    }

    /// The slave has the log up to `written`.
    fn trace_ack(&self, written: u64) {
        if self.traces.is_none() {
            return;
        }
        let arrived = self.traced.lock().take_if(|(end, _)| *end <= written);
        if let Some((_, span)) = arrived {
            span.span().end();
        }
    }

    async fn read(&self, from: u64) -> Result<RawRecords, Status> {
        let read = if self.store.watermarks().written.saturating_sub(from) > COLD_BYTES {
            let store = self.store.clone();
            let read = tokio::task::spawn_blocking(move || store.raw(from, FRAME_BYTES)).await;
            read.map_err(|error| Status::internal(error.to_string()))?
        } else {
            self.store.raw(from, FRAME_BYTES)
        };
        read.map_err(|error| Status::unavailable(format!("the master cannot read what comes next: {error}")))
    }
}
