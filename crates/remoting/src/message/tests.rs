//! Reading, completing and delivering encoded messages.

use super::*;

fn sent() -> v2::Message {
    v2::Message {
        topic: Some(v2::Resource { resource_namespace: String::new(), name: "orders".into() }),
        user_properties: [("a".to_owned(), "1".to_owned())].into(),
        system_properties: Some(v2::SystemProperties {
            tag: Some("t".into()),
            keys: vec!["k1".into(), "k2".into()],
            message_id: "01AB".into(),
            queue_id: 7,
            delivery_attempt: Some(9),
            body_encoding: v2::Encoding::Identity.into(),
            ..Default::default()
        }),
        body: Bytes::from_static(b"hello"),
    }
}

fn added() -> v2::SystemProperties {
    v2::SystemProperties {
        receipt_handle: Some("handle".into()),
        queue_id: 3,
        queue_offset: Some(42),
        delivery_attempt: Some(1),
        ..Default::default()
    }
}

#[test]
fn reading_finds_what_a_broker_needs() {
    let read = EncodedMessage::read(sent().encode_to_vec().into()).unwrap();
    assert_eq!(read.topic, "orders");
    assert_eq!(read.body_size, 5);
    assert_eq!(read.user_properties, [(Bytes::from_static(b"a"), Bytes::from_static(b"1"))]);
    assert_eq!(tag_of(&read.bytes, &read.system_properties_field), "t");
    let body = body_of(&read.bytes, &read.system_properties_field);
    assert_eq!(&read.bytes[body], b"hello");
}

#[test]
fn user_properties_are_read_without_decoding_the_message() {
    let mut bytes = sent().encode_to_vec();
    assert_eq!(user_properties_of(&bytes).collect::<Vec<_>>(), [("a", "1")]);
    let more = v2::Message {
        user_properties: [("a".to_owned(), "2".to_owned()), (String::new(), String::new())].into(),
        ..Default::default()
    };
    bytes.extend(more.encode_to_vec());
    assert_eq!(user_property_of(&bytes, "a"), Some("2"), "the last one counts, as for every decoder");
    assert_eq!(user_property_of(&bytes, ""), Some(""));
    assert_eq!(user_property_of(&bytes, "b"), None);
}

#[test]
fn what_rocketmq_keeps_among_the_properties_is_read_by_its_names() {
    let mut message = sent();
    message.system_properties.as_mut().unwrap().message_group = Some("g".into());
    let read = EncodedMessage::read(message.encode_to_vec().into()).unwrap();
    let texts: Vec<_> = system_texts_of(&read.bytes, &read.system_properties_field).collect();
    let expected =
        [("TAGS", "t"), ("KEYS", "k1"), ("KEYS", "k2"), ("UNIQ_KEY", "01AB"), ("__SHARDINGKEY", "g")];
    assert_eq!(texts, expected);
    assert_eq!(keys_of(&read.bytes, &read.system_properties_field).as_deref(), Some("k1 k2"));
    assert_eq!(keys_of(&read.bytes, &(0..0)), None);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(2000))]

    #[test]
    fn user_properties_are_what_a_decoder_finds(
        sent in proptest::collection::vec(("[ab]{0,2}", ".{0,4}"), 0..6),
    ) {
        let one = |(key, value): &(String, String)| v2::Message {
            user_properties: [(key.clone(), value.clone())].into(),
            ..Default::default()
        };
        let bytes: Vec<u8> = sent.iter().flat_map(|entry| one(entry).encode_to_vec()).collect();
        let decoded = v2::Message::decode(&*bytes).unwrap().user_properties;
        proptest::prop_assert_eq!(user_properties_of(&bytes).count(), sent.len());
        for key in ["", "a", "b", "aa", "ab", "ba", "bb", "c"] {
            proptest::prop_assert_eq!(user_property_of(&bytes, key), decoded.get(key).map(|value| &**value));
        }
    }
}

#[test]
fn a_delivered_message_has_the_producers_and_the_brokers_fields_each_once() {
    let read = EncodedMessage::read(sent().encode_to_vec().into()).unwrap();
    let bytes = delivered(&read.bytes, read.system_properties_field.clone(), &added(), &mut BytesMut::new());
    let mut expected = sent();
    let properties = expected.system_properties.as_mut().unwrap();
    properties.receipt_handle = Some("handle".into());
    properties.queue_id = 3;
    properties.queue_offset = Some(42);
    properties.delivery_attempt = Some(1);
    assert_eq!(v2::Message::decode(bytes.clone()).unwrap(), expected);
    let again = EncodedMessage::read_once(&bytes).unwrap();
    assert!(again.is_some(), "an embedded field occurs twice");
}

#[test]
fn a_message_without_system_properties_gets_them_on_delivery() {
    let mut message = sent();
    message.system_properties = None;
    let read = EncodedMessage::read(message.encode_to_vec().into()).unwrap();
    assert!(read.system_properties_field.is_empty());
    let bytes = delivered(&read.bytes, read.system_properties_field, &added(), &mut BytesMut::new());
    assert_eq!(v2::Message::decode(bytes).unwrap().system_properties, Some(added()));
}

#[test]
fn a_message_with_a_repeated_field_is_merged_once() {
    let mut bytes = sent().encode_to_vec();
    let more = v2::Message {
        system_properties: Some(v2::SystemProperties { tag: Some("later".into()), ..Default::default() }),
        ..Default::default()
    };
    bytes.extend(more.encode_to_vec());
    let read = EncodedMessage::read(bytes.into()).unwrap();
    assert_eq!(read.system_properties.tag(), "later");
    assert_eq!(read.system_properties.message_id, "01AB");
    assert_eq!(tag_of(&read.bytes, &read.system_properties_field), "later");
}

#[test]
fn a_door_finds_what_the_order_is_kept_within() {
    let mut message = sent();
    assert_eq!(message_group_of(&message.encode_to_vec()), None);
    let system = message.system_properties.as_mut().unwrap();
    (system.message_group, system.lite_topic) = (Some("g".into()), Some("l".into()));
    let mut bytes = message.encode_to_vec();
    assert_eq!((message_group_of(&bytes), lite_topic_of(&bytes)), (Some("g"), Some("l")));
    let again = v2::SystemProperties { message_group: Some("h".into()), ..Default::default() };
    bytes.extend(v2::Message { system_properties: Some(again), ..Default::default() }.encode_to_vec());
    let read = EncodedMessage::read(bytes.clone().into()).unwrap();
    assert_eq!(message_group_of(&bytes), read.system_properties.message_group.as_deref());
    for cut in 0..bytes.len() {
        message_group_of(&bytes[..cut]);
    }
}

#[test]
fn a_field_of_another_type_is_refused() {
    let mut number_for_body = sent().encode_to_vec();
    number_for_body.extend([4 << 3, 1]);
    assert!(EncodedMessage::read(number_for_body.into()).is_err());
    let mut number_for_key = sent().encode_to_vec();
    number_for_key.extend([2 << 3 | 2, 2, 1 << 3, 1]);
    assert!(EncodedMessage::read(number_for_key.into()).is_err());
}

#[test]
fn a_dead_letter_says_where_it_came_from_when_it_is_delivered() {
    let mut message = sent();
    let origin = v2::DeadLetterQueue { topic: "orders".into(), message_id: "01AB".into() };
    message.system_properties.as_mut().unwrap().dead_letter_queue = Some(origin.clone());
    let read = EncodedMessage::read(message.encode_to_vec().into()).unwrap();
    let bytes = delivered(&read.bytes, read.system_properties_field, &added(), &mut BytesMut::new());
    let system = v2::Message::decode(bytes).unwrap().system_properties.unwrap();
    assert_eq!(system.dead_letter_queue, Some(origin));
}

#[test]
fn bytes_that_are_no_message_are_refused() {
    assert!(EncodedMessage::read(Bytes::from_static(b"\xff\xff\xff")).is_err());
    let whole = sent().encode_to_vec();
    for cut in 1..whole.len() {
        // Never a panic; a prefix that happens to end between two fields is a message.
        let _ = EncodedMessage::read(Bytes::copy_from_slice(&whole[..cut]));
    }
}
