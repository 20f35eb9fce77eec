use bytes::Bytes;
use prost::Message as _;

use super::*;

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn message(properties: &[(&str, &str)], trace_context: Option<&str>) -> EncodedMessage {
    let message = v2::Message {
        user_properties: properties.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
        system_properties: Some(v2::SystemProperties {
            trace_context: trace_context.map(str::to_owned),
            ..Default::default()
        }),
        ..Default::default()
    };
    EncodedMessage::read(Bytes::from(message.encode_to_vec())).unwrap()
}

#[test]
fn the_context_is_that_of_the_user_property_and_else_that_of_the_system_property() {
    let other = "00-11111111111111111111111111111111-2222222222222222-00";
    let found =
        context::of(&message(&[("traceparent", PARENT), ("tracestate", "a=b")], Some(other))).unwrap();
    assert_eq!(found.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(found.span_id().to_string(), "b7ad6b7169203331");
    assert!(found.is_sampled());
    assert_eq!(found.trace_state().get("a"), Some("b"));
    let found = context::of(&message(&[], Some(other))).unwrap();
    assert_eq!(found.span_id().to_string(), "2222222222222222");
    assert!(!found.is_sampled());
}

#[test]
fn a_malformed_context_is_ignored() {
    for bad in [
        "",
        "00",
        "00-1-2-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1",
        "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
        "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
    ] {
        assert_eq!(context::of(&message(&[("traceparent", bad)], None)), None, "{bad:?}");
    }
    let newer = format!("01{}-more", &PARENT[2..]);
    assert!(context::of(&message(&[("traceparent", &newer)], None)).is_some());
}

#[test]
fn traces_are_off_by_default() {
    assert!(Traces::start(&BrokerConfig::default()).unwrap().is_none());
}

#[test]
fn spans_that_nobody_takes_are_counted_and_hold_up_nothing() {
    let config = BrokerConfig { otlp_endpoint: "http://127.0.0.1:1".into(), ..BrokerConfig::default() };
    let traces = Traces::start(&config).unwrap().unwrap();
    let began = std::time::Instant::now();
    for _ in 0..20_000 {
        traces.send(&[message(&[("traceparent", PARENT)], None)]).span().end();
    }
    traces.close();
    assert_eq!(traces.dropped(), 20_000);
    assert!(began.elapsed() < std::time::Duration::from_secs(30), "took {:?}", began.elapsed());
}
