//! The way of spans out of the process: a queue of [`QUEUE_MAX`], and the thread `otlp` with a runtime of its own, which sends what is
//! in it. Nobody waits for it but [`close`](super::Traces::close), and that for [`FLUSH_MAX`].
//!
//! The library's batch processor is not used: it does not tell how many spans it has dropped, and its thread sleeps between
//! retries, where no shutdown reaches it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanExporter as _, SpanProcessor};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::TracesError;

/// Spans that wait to be sent; some megabytes.
const QUEUE_MAX: usize = 4096;
/// Spans of one request.
const BATCH_MAX: usize = 512;
/// A span waits so long for others to go with it.
const GATHER: Duration = Duration::from_millis(200);
/// A request may take so long.
const EXPORT_MAX: Duration = Duration::from_secs(5);
/// What is left at the end may take so long.
pub(super) const FLUSH_MAX: Duration = Duration::from_secs(2);

/// Where spans are put when they have ended.
#[derive(Debug)]
pub(super) struct Queue {
    spans: mpsc::Sender<SpanData>,
    dropped: Arc<AtomicU64>,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.spans.try_send(span).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// Starts the thread; it ends when `stopping` says so.
pub(super) fn start(
    endpoint: &str,
    resource: &Resource,
    dropped: Arc<AtomicU64>,
    stopping: CancellationToken,
) -> Result<(Queue, JoinHandle<()>), TracesError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let exporter = {
        // The channel looks for one when it is made.
        let _entered = runtime.enter();
        SpanExporter::builder().with_tonic().with_endpoint(endpoint).with_timeout(EXPORT_MAX).build()
    };
    let mut exporter =
        exporter.map_err(|source| TracesError::Endpoint { endpoint: endpoint.to_owned(), source })?;
    exporter.set_resource(resource);
    let (spans, ended) = mpsc::channel(QUEUE_MAX);
    let mut sending = Sending { exporter, ended, dropped: dropped.clone(), failed: false };
    let thread = std::thread::Builder::new().name("otlp".to_owned()).spawn(move || {
        runtime.block_on(sending.run(&stopping));
        // A name that is being looked up must not hold up the end.
        runtime.shutdown_background();
    });
    Ok((Queue { spans, dropped }, thread?))
}

struct Sending {
    exporter: SpanExporter,
    ended: mpsc::Receiver<SpanData>,
    dropped: Arc<AtomicU64>,
    /// The last request was not taken.
    failed: bool,
}

impl Sending {
    async fn run(&mut self, stopping: &CancellationToken) {
        let too_late = async {
            stopping.cancelled().await;
            tokio::time::sleep(FLUSH_MAX).await;
        };
        tokio::select! {
            () = self.send_all(stopping) => {}
            () = too_late => {}
        }
        self.ended.close();
        self.dropped.fetch_add(self.ended.len() as u64, Ordering::Relaxed);
    }

    /// Until all is sent that was made before `stopping`.
    async fn send_all(&mut self, stopping: &CancellationToken) {
        while let Some(first) = self.next(stopping).await {
            let mut lost = Unsent { count: 1, dropped: &self.dropped };
            stopping.run_until_cancelled(tokio::time::sleep(GATHER)).await;
            let mut batch = vec![first];
            while batch.len() < BATCH_MAX {
                let Ok(span) = self.ended.try_recv() else { break };
                batch.push(span);
            }
            lost.count = batch.len() as u64;
            match tokio::time::timeout(EXPORT_MAX, self.exporter.export(batch)).await {
                Ok(Ok(())) => {
                    lost.count = 0;
                    self.failed = false;
                }
                Ok(Err(error)) => say(&mut self.failed, &error.to_string()),
                Err(_) => say(&mut self.failed, "no answer in time"),
            }
        }
    }

    async fn next(&mut self, stopping: &CancellationToken) -> Option<SpanData> {
        tokio::select! {
            biased;
            span = self.ended.recv() => return span,
            () = stopping.cancelled() => self.ended.close(),
        }
        self.ended.recv().await
    }
}

/// Once, until it goes well again.
fn say(failed: &mut bool, error: &str) {
    if !std::mem::replace(failed, true) {
        tracing::warn!(
            error,
            "traces do not reach otlpEndpoint; spans are dropped (karman_trace_spans_dropped)"
        );
    }
}

/// Spans that are neither in the queue nor with the receiver; lost when this is dropped.
struct Unsent<'a> {
    count: u64,
    dropped: &'a AtomicU64,
}

impl Drop for Unsent<'_> {
    fn drop(&mut self) {
        self.dropped.fetch_add(self.count, Ordering::Relaxed);
    }
}
