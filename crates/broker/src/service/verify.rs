//! Verifying what this broker has stored while it runs, for operators: one at a time, on a thread of its own, with its
//! progress as a stream. It ends when the stream is dropped or the broker stops.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use karman_remoting::proto::karman as v1;
use karman_remoting::status::{Rejection, ok};
use karman_store::{IndexState, Mended, Progress, Report};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::codegen::BoxStream;

use crate::broker::Broker;

/// Between two answers about its progress.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);
/// So much is listed in a report.
const LISTED_MAX: usize = 1024;
/// A slower one would take longer to read a piece than anyone waits for its end.
const BYTES_PER_SECOND_MIN: u64 = 1 << 20;

type Answer = Result<v1::VerifyStoreResponse, Status>;

/// Begins to verify; says how far it is, and at last what was found.
pub fn verify(broker: &Arc<Broker>, request: &v1::VerifyStoreRequest) -> BoxStream<v1::VerifyStoreResponse> {
    if !request.broker_name.is_empty() && *broker.name != request.broker_name {
        return Box::pin(tokio_stream::empty());
    }
    let rate = match request.bytes_per_second {
        0 => 0,
        rate => rate.max(BYTES_PER_SECOND_MIN),
    };
    if broker.verifying.swap(true, Ordering::AcqRel) {
        let what = "the store is being verified already; wait for that to end".to_owned();
        return refused(broker, Rejection::TooManyRequests(what));
    }
    // A full channel holds back the reading: whoever asks sets the pace.
    let (answers, stream) = mpsc::channel(4);
    let verified = broker.clone();
    let began =
        std::thread::Builder::new().name("verify".into()).spawn(move || run(&verified, rate, &answers));
    if let Err(error) = began {
        broker.verifying.store(false, Ordering::Release);
        return refused(broker, Rejection::Internal(format!("no thread to verify the store with: {error}")));
    }
    Box::pin(ReceiverStream::new(stream))
}

fn refused(broker: &Broker, rejection: Rejection) -> BoxStream<v1::VerifyStoreResponse> {
    let answer = v1::VerifyStoreResponse { broker_name: broker.name.to_string(), ..rejection.into() };
    Box::pin(tokio_stream::once(Ok(answer)))
}

fn run(broker: &Broker, bytes_per_second: u64, answers: &mpsc::Sender<Answer>) {
    let mut last = (Instant::now(), Progress { verified_bytes: 0, total_bytes: 0 });
    let report = broker.store.verify(bytes_per_second, &mut |progress| {
        if answers.is_closed() || broker.stopping.is_cancelled() {
            return false;
        }
        if last.0.elapsed() >= PROGRESS_EVERY {
            last.0 = Instant::now();
            // When the former is not taken yet this one is not needed.
            let _ = answers.try_send(Ok(answer(broker, progress, None)));
        }
        last.1 = progress;
        true
    });
    broker.verifying.store(false, Ordering::Release);
    let end = match report {
        Some(report) => answer(broker, last.1, Some(of(&report, &broker.store.mended()))),
        None => {
            let rejection =
                Rejection::Internal("the broker stops: the store was not verified to its end".into());
            v1::VerifyStoreResponse { broker_name: broker.name.to_string(), ..rejection.into() }
        }
    };
    // Nobody listens any more if this fails.
    let _ = answers.blocking_send(Ok(end));
}

fn answer(broker: &Broker, progress: Progress, report: Option<v1::StoreReport>) -> v1::VerifyStoreResponse {
    v1::VerifyStoreResponse {
        status: Some(ok()),
        broker_name: broker.name.to_string(),
        verified_bytes: progress.verified_bytes,
        total_bytes: progress.total_bytes,
        report,
    }
}

fn of(report: &Report, mended: &[Mended]) -> v1::StoreReport {
    let damage = report.damage().take(LISTED_MAX).map(|damage| v1::DamagedStretch {
        from: damage.from,
        to: damage.to,
        reason: damage.reason.clone(),
    });
    let indexes = report.segments.iter().filter_map(|segment| match &segment.index {
        IndexState::Damaged(reason) => {
            Some(v1::DamagedIndex { segment: segment.base, reason: reason.clone() })
        }
        IndexState::None | IndexState::Sound => None,
    });
    v1::StoreReport {
        segments: u32::try_from(report.segments.len()).unwrap_or(u32::MAX),
        records: report.segments.iter().map(|segment| segment.records).sum(),
        given_up_bytes: report.segments.iter().map(|segment| segment.given_up_bytes).sum(),
        damaged_bytes: report.damage().map(|damage| damage.to - damage.from).sum(),
        damage: damage.collect(),
        indexes: indexes.take(LISTED_MAX).collect(),
        repaired: mended.iter().map(repaired).collect(),
    }
}

fn repaired(mended: &Mended) -> v1::RepairedStretch {
    let Mended { from, to, source, mended_ms } = mended;
    v1::RepairedStretch { from: *from, to: *to, source: source.clone(), repaired_ms: *mended_ms }
}

impl Broker {
    /// Bytes of the log that are known to be lost.
    pub fn damaged_bytes(&self) -> u64 {
        self.store.damage().iter().map(|damage| damage.to - damage.from).sum()
    }
}
