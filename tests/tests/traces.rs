//! Spans of real brokers, as a receiver of OTLP sees them; and brokers that have no receiver.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use karman_remoting::proto::v2;
use karman_tests::raw::{is_ok, message, raw, take};
use karman_tests::stage::counted;
use karman_tests::{Cluster, until};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::net::TcpListener as Listener;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

const DEADLINE: Duration = Duration::from_secs(30);
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// What came, each span with the attributes of its resource.
type Came = Arc<Mutex<Vec<(Span, HashMap<String, String>)>>>;

#[derive(Clone, Default)]
struct Collector(Came);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut came = self.0.lock().unwrap();
        for of_resource in request.into_inner().resource_spans {
            let resource = texts(&of_resource.resource.unwrap_or_default().attributes);
            let spans = of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            came.extend(spans.map(|span| (span, resource.clone())));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// A receiver at work: its runtime, where it is, what it got.
fn collector() -> (Runtime, String, Came) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = runtime.block_on(Listener::bind("127.0.0.1:0")).unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let collector = Collector::default();
    let came = collector.0.clone();
    let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(collector));
    runtime.spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    (runtime, endpoint, came)
}

fn texts(attributes: &[KeyValue]) -> HashMap<String, String> {
    let text = |value: &Option<AnyValue>| match value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    attributes.iter().map(|attribute| (attribute.key.clone(), text(&attribute.value))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn traced(topic: &str, id: &str, traceparent: &str) -> v2::Message {
    let mut message = message(topic, id);
    message.user_properties.insert("traceparent".into(), traceparent.into());
    message
}

/// The first span of that name.
fn span(came: &Came, name: &str) -> (Span, HashMap<String, String>) {
    until(&format!("a span {name:?} came"), DEADLINE, || {
        came.lock().unwrap().iter().find(|(span, _)| span.name == name).cloned()
    })
}

#[test]
fn a_send_and_a_receive_are_spans_of_the_trace_that_the_message_carries() {
    let (_runtime, endpoint, came) = collector();
    let cluster = Cluster::builder()
        .namesrvs(1)
        .brokers(1)
        .set("otlpEndpoint", &endpoint)
        .set("otlpServiceName", "shop-broker")
        .set("otlpSamplesPerTenThousand", "0")
        .start();
    cluster.create_topic("orders");
    let raw = raw(&cluster);
    // Neither has a context that is sampled, so neither leaves anything.
    is_ok(raw.send(&[message("orders", "none")]).status);
    is_ok(raw.send(&[traced("orders", "bad", "00-1-2-01")]).status);
    is_ok(raw.send(&[traced("orders", "unsampled", &format!("00-{TRACE}-{PARENT}-00"))]).status);
    is_ok(raw.send(&[traced("orders", "sampled", &format!("00-{TRACE}-{PARENT}-01"))]).status);

    let (sent, resource) = span(&came, "send");
    assert_eq!((hex(&sent.trace_id), hex(&sent.parent_span_id)), (TRACE.into(), PARENT.into()));
    assert_eq!(resource["service.name"], "shop-broker");
    let attributes = texts(&sent.attributes);
    for (key, value) in [
        ("messaging.system", "rocketmq"),
        ("messaging.operation.name", "send"),
        ("messaging.destination.name", "orders"),
        ("messaging.batch.message_count", "1"),
        ("messaging.message.id", "sampled"),
    ] {
        assert_eq!(attributes.get(key).map(String::as_str), Some(value), "{key} of {attributes:?}");
    }
    assert_ne!(attributes["messaging.message.body.size"], "0");
    let events: Vec<_> = sent.events.iter().map(|event| event.name.as_str()).collect();
    assert_eq!(events, ["stored", "confirmed"]);
    assert!(sent.start_time_unix_nano <= sent.end_time_unix_nano);

    until("the sampled message came", DEADLINE, || {
        take(&raw, "orders", "shop")
            .iter()
            .find(|message| {
                message.system_properties.as_ref().is_some_and(|system| system.message_id == "sampled")
            })
            .map(drop)
    });
    let (received, _) = span(&came, "receive");
    let links: Vec<_> = received.links.iter().map(|link| (hex(&link.trace_id), hex(&link.span_id))).collect();
    assert!(links.contains(&(TRACE.into(), PARENT.into())), "{links:?}");
    let attributes = texts(&received.attributes);
    assert_eq!(attributes["messaging.destination.name"], "orders");
    assert_eq!(attributes["messaging.consumer.group.name"], "shop");
    let sends = came.lock().unwrap().iter().filter(|(span, _)| span.name == "send").count();
    assert_eq!(sends, 1, "only what is sampled leaves a span");
}

#[test]
fn what_a_slave_has_acknowledged_is_a_span_of_its_master() {
    let (_runtime, endpoint, came) = collector();
    let cluster = Cluster::builder()
        .namesrvs(1)
        .brokers(1)
        .slaves(1)
        .set("otlpEndpoint", &endpoint)
        .set("otlpSamplesPerTenThousand", "10000")
        .start();
    cluster.create_topic("orders");
    is_ok(raw(&cluster).send(&[message("orders", "1")]).status);
    let (replicated, _) = span(&came, "replicate");
    let attributes = texts(&replicated.attributes);
    assert_ne!(attributes["karman.log.bytes"], "0");
    assert_ne!(attributes["karman.replica.broker_id"], "0");
}

#[test]
fn a_receiver_that_takes_nothing_slows_no_send_and_what_is_lost_is_counted() {
    // It accepts connections and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let mut cluster = Cluster::builder()
        .namesrvs(1)
        .brokers(1)
        .set("otlpEndpoint", &endpoint)
        .set("otlpSamplesPerTenThousand", "10000")
        .start();
    cluster.create_topic("orders");
    let raw = raw(&cluster);
    let began = Instant::now();
    let mut sent = 0;
    until("spans were dropped", DEADLINE, || {
        is_ok(raw.send(&[message("orders", &format!("{sent}"))]).status);
        sent += 1;
        (counted(&cluster, "karman_trace_spans_dropped_total") > 0).then_some(())
    });
    assert!(sent > 10, "{sent} sends in {:?}", began.elapsed());
    let began = Instant::now();
    cluster.brokers[0].stop();
    assert!(began.elapsed() < DEADLINE, "the broker stopped after {:?}", began.elapsed());
}
