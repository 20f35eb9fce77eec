//! OpenTelemetry traces of what the broker does: a span for each send, for each receive that gave messages, and for batches of records
//! that a slave has acknowledged. Off unless `otlpEndpoint` says where they go; then [`Broker::traces`](crate::broker::Broker::traces)
//! is `None`, and that is all a call looks at.
//!
//! Spans are made on whichever thread serves the call. They go through a bounded queue to one thread of their own (`export`); what
//! finds no place in it, or does not arrive, is counted and forgotten.

mod context;
mod export;

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use karman_remoting::message::EncodedMessage;
use karman_remoting::proto::v2::{self, Code};
use karman_remoting::status::Rejection;
use karman_store::{Durability, Record};
use opentelemetry::trace::{
    Link, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt as _, TraceId, TraceState, Tracer as _,
    TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::ExporterBuildError;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SamplingResult, SdkTracer, SdkTracerProvider, ShouldSample};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::config::BrokerConfig;
use crate::pop::Delivery;
use crate::records::message_of;

/// Messages of one call whose contexts are looked at: a span has no more links.
const LINKS_MAX: usize = 32;

/// Why traces could not begin.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// The exporter does not take what it was told.
    #[error(
        "otlpEndpoint {endpoint:?} cannot be used: {source}; http://HOST:PORT of an OTLP/gRPC receiver is needed"
    )]
    Endpoint {
        /// As configured.
        endpoint: String,
        /// What it said.
        source: ExporterBuildError,
    },
    /// The thread or its runtime could not be made.
    #[error("start the thread of traces: {0}")]
    Thread(#[from] std::io::Error),
}

/// Makes spans and has them sent. One for each broker that is traced.
#[derive(Debug)]
pub struct Traces {
    tracer: SdkTracer,
    dropped: Arc<AtomicU64>,
    stopping: CancellationToken,
    exporter: Mutex<Option<JoinHandle<()>>>,
}

impl Traces {
    /// As configured; `None`: they are off. Connects later, when there is a span.
    pub fn start(config: &BrokerConfig) -> Result<Option<Arc<Self>>, TracesError> {
        if config.otlp_endpoint.is_empty() {
            return Ok(None);
        }
        let resource = Resource::builder_empty().with_attributes([
            KeyValue::new("service.name", config.otlp_service_name.clone()),
            KeyValue::new("service.namespace", config.broker_cluster_name.clone()),
            KeyValue::new("service.instance.id", format!("{}-{}", config.broker_name, config.broker_id)),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        ]);
        let resource = resource.build();
        let (dropped, stopping) = (Arc::new(AtomicU64::new(0)), CancellationToken::new());
        let (queue, exporter) =
            export::start(&config.otlp_endpoint, &resource, dropped.clone(), stopping.clone())?;
        let ratio = f64::from(config.otlp_samples_per_ten_thousand) / 10_000.0;
        let provider = SdkTracerProvider::builder()
            .with_resource(resource)
            .with_sampler(Followed(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(ratio)))))
            .with_span_processor(queue)
            .build();
        let tracer = provider.tracer("karman-broker");
        Ok(Some(Arc::new(Self { tracer, dropped, stopping, exporter: Mutex::new(Some(exporter)) })))
    }

    /// Spans that were made and did not reach the receiver, since the start.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Sends what there is, for a bounded time (`export::FLUSH_MAX`). Blocks.
    pub fn close(&self) {
        self.stopping.cancel();
        if let Some(exporter) = self.exporter.lock().take() {
            // It panicked only where the log says why.
            let _ = exporter.join();
        }
    }

    /// The span of a send that has just begun: the child of the first context that is sampled, or else of the first, with links to the
    /// others.
    pub fn send(&self, messages: &[EncodedMessage]) -> Context {
        let mut contexts: Vec<_> = messages.iter().filter_map(context::of).take(LINKS_MAX).collect();
        let first = contexts.iter().position(SpanContext::is_sampled).unwrap_or(0);
        let parent = (!contexts.is_empty()).then(|| contexts.remove(first));
        let span = self.begin("send", SpanKind::Server, parent, contexts);
        if span.span().is_recording() {
            let topic = messages.first().map(|message| message.topic.clone()).unwrap_or_default();
            span.span().set_attributes(messaging("send", topic));
            span.span().set_attributes(counted(messages));
        }
        span
    }

    /// The span of a receive that has found `messages`, linked to their contexts.
    pub fn receive(
        &self,
        topic: &str,
        group: Option<&str>,
        messages: &VecDeque<(Delivery, Record)>,
    ) -> Context {
        let read = |record: &Record| EncodedMessage::read(record.payload.slice_ref(message_of(record))).ok();
        let first: Vec<_> = messages.iter().take(LINKS_MAX).filter_map(|(_, record)| read(record)).collect();
        let span =
            self.begin("receive", SpanKind::Server, None, first.iter().filter_map(context::of).collect());
        if span.span().is_recording() {
            span.span().set_attributes(messaging("receive", topic.to_owned()));
            let group = group.map(|group| KeyValue::new("messaging.consumer.group.name", group.to_owned()));
            span.span().set_attributes(group);
            match messages.len() {
                1 => span.span().set_attributes(counted(&first)),
                count => span.span().set_attribute(message_count(count)),
            }
        }
        span
    }

    /// The span of records on their way to a slave; `None`: this batch is not sampled.
    pub fn replicate(&self, broker_id: i32, start: u64, end: u64) -> Option<Context> {
        let span = self.begin("replicate", SpanKind::Internal, None, Vec::new());
        span.span().is_recording().then(|| {
            span.span().set_attributes([
                KeyValue::new("messaging.system", "rocketmq"),
                KeyValue::new("karman.replica.broker_id", i64::from(broker_id)),
                KeyValue::new("karman.log.start", start.cast_signed()),
                KeyValue::new("karman.log.bytes", end.saturating_sub(start).cast_signed()),
            ]);
            span
        })
    }

    fn begin(
        &self,
        name: &'static str,
        kind: SpanKind,
        parent: Option<SpanContext>,
        links: Vec<SpanContext>,
    ) -> Context {
        let above = match parent {
            Some(parent) => Context::new().with_remote_span_context(parent),
            None => Context::new(),
        };
        let links = links.into_iter().map(link).collect();
        let span = SpanBuilder::from_name(name).with_kind(kind).with_links(links);
        let span = self.tracer.build_with_context(span, &above);
        above.with_span(span)
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        self.stopping.cancel();
    }
}

/// Ends the span of a send with what it was answered.
pub fn end_send(span: &Context, answered: &Result<v2::SendMessageResponse, Rejection>) {
    let failed = match answered {
        Ok(response) => {
            response.status.as_ref().filter(|status| status.code() != Code::Ok).map(v2::Status::code)
        }
        Err(rejection) => Some(rejection.code()),
    };
    if let Some(code) = failed {
        failed_with(span, code.as_str_name());
    }
    span.span().end();
}

/// How far what the span is of has come; recorded only where it is sampled.
pub fn note(span: &Context, what: &'static str, durability: Durability) {
    let class = match durability {
        Durability::Memory => "memory",
        Durability::Disk => "disk",
        Durability::Replicated => "replicated",
        Durability::ReplicatedDisk => "replicated_disk",
    };
    span.span().add_event(what, vec![KeyValue::new("karman.durability", class)]);
}

/// Says that the span's work failed: `why` is one of a few words.
pub fn failed_with(span: &Context, why: &'static str) {
    span.span().set_attribute(KeyValue::new("error.type", why));
    span.span().set_status(Status::error(Cow::Borrowed(why)));
}

/// What all spans of messages say, by OpenTelemetry's names.
fn messaging(operation: &'static str, topic: String) -> [KeyValue; 4] {
    [
        KeyValue::new("messaging.system", "rocketmq"),
        KeyValue::new("messaging.operation.name", operation),
        KeyValue::new("messaging.operation.type", operation),
        KeyValue::new("messaging.destination.name", topic),
    ]
}

fn message_count(count: usize) -> KeyValue {
    KeyValue::new("messaging.batch.message_count", i64::try_from(count).unwrap_or(i64::MAX))
}

/// How many, how large together, and which if it is one.
fn counted(messages: &[EncodedMessage]) -> Vec<KeyValue> {
    let bytes = messages.iter().map(|message| message.body_size).sum::<usize>();
    let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
    let mut all = vec![message_count(messages.len()), KeyValue::new("messaging.message.body.size", bytes)];
    if let [message] = messages
        && !message.system_properties.message_id.is_empty()
    {
        all.push(KeyValue::new("messaging.message.id", message.system_properties.message_id.clone()));
    }
    all
}

/// A call without a context of its own is sampled when one of its messages' is.
#[derive(Clone, Debug)]
struct Followed(Sampler);

impl ShouldSample for Followed {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace_id: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        static ALWAYS: OnceLock<Sampler> = OnceLock::new();
        let has_parent = parent.is_some_and(|parent| parent.span().span_context().is_valid());
        let follow = !has_parent && links.iter().any(|link| link.span_context.is_sampled());
        let sampler = if follow { ALWAYS.get_or_init(|| Sampler::AlwaysOn) } else { &self.0 };
        sampler.should_sample(parent, trace_id, name, kind, attributes, links)
    }
}

/// Without the state of other vendors, which may have 512 bytes: a span has many links, and thousands of spans may wait.
fn link(to: SpanContext) -> Link {
    let bare = SpanContext::new(
        to.trace_id(),
        to.span_id(),
        to.trace_flags(),
        to.is_remote(),
        TraceState::default(),
    );
    Link::with_context(bare)
}

#[cfg(test)]
mod tests;
