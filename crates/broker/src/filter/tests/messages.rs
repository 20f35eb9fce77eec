//! Filters over encoded messages.

use std::collections::HashMap;

use bytes::Bytes;
use karman_remoting::message::EncodedMessage;
use karman_remoting::proto::v2;
use proptest::prelude::*;
use prost::Message as _;

use super::super::SqlFilter;

pub(super) fn encoded(
    properties: &[(&str, &str)],
    system_properties: v2::SystemProperties,
) -> EncodedMessage {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let message = v2::Message {
        topic: Some(v2::Resource { resource_namespace: String::new(), name: "orders".into() }),
        user_properties: properties.iter().map(owned).collect::<HashMap<_, _>>(),
        system_properties: Some(system_properties),
        body: Bytes::from_static(b"hello"),
    };
    EncodedMessage::read(message.encode_to_vec().into()).unwrap()
}

fn matches(expression: &str, message: &EncodedMessage) -> bool {
    let filter = SqlFilter::compile(expression).unwrap();
    filter.matches_message(&message.bytes, &message.system_properties_field).unwrap()
}

#[test]
fn a_message_is_judged_by_its_user_properties() {
    let message = encoded(&[("a", "1"), ("b", "x"), ("empty", "")], v2::SystemProperties::default());
    assert!(matches("a = 1 AND b = 'x' AND empty IS NULL AND c IS NULL", &message));
    assert!(!matches("a = 2", &message));
    assert!(!matches("c = 2", &message), "unknown is no match");
    let filter = SqlFilter::compile("b > 1").unwrap();
    assert!(filter.matches_message(&message.bytes, &message.system_properties_field).is_err());
}

#[test]
fn tag_keys_id_and_group_have_rocketmqs_names() {
    let system_properties = v2::SystemProperties {
        tag: Some("t".into()),
        keys: vec!["k1".into(), "k2".into(), "k3".into()],
        message_id: "01AB".into(),
        message_group: Some("g".into()),
        ..Default::default()
    };
    let message = encoded(&[("a", "1"), ("__SHARDINGKEY", "mine")], system_properties);
    for expression in [
        "TAGS = 't'",
        "KEYS = 'k1 k2 k3'",
        "KEYS CONTAINS 'k2'",
        "UNIQ_KEY = '01AB'",
        "__SHARDINGKEY = 'g'",
        "a = 1 AND TAGS IN ('s', 't')",
    ] {
        assert!(matches(expression, &message), "{expression}");
    }
    let one_key = v2::SystemProperties { keys: vec!["k".into()], ..Default::default() };
    assert!(matches("KEYS = 'k'", &encoded(&[], one_key)));
    let none = encoded(&[], v2::SystemProperties::default());
    assert!(matches("TAGS IS NULL AND KEYS IS NULL AND __SHARDINGKEY IS NULL", &none));
}

#[test]
fn a_message_without_system_properties_is_judged_too() {
    let message = v2::Message { user_properties: [("a".into(), "1".into())].into(), ..Default::default() };
    let message = EncodedMessage::read(message.encode_to_vec().into()).unwrap();
    assert!(matches("a = 1 AND KEYS IS NULL", &message));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn bytes_that_are_no_message_do_no_harm(
        bytes in prop::collection::vec(any::<u8>(), 0..64), start in 0_usize..64, length in 0_usize..64,
    ) {
        let filter = SqlFilter::compile("a = 1 OR TAGS = 'x' OR KEYS CONTAINS 'y'").unwrap();
        let start = start.min(bytes.len());
        let field = start..(start + length).min(bytes.len());
        let _ = filter.matches_message(&bytes, &field);
    }
}
