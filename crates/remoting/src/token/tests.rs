use proptest::prelude::*;

use super::*;

fn key() -> TokenKey {
    TokenKey::new([7; 32])
}

fn receipt() -> ReceiptHandle {
    ReceiptHandle {
        broker: "broker-a".into(),
        group_id: 1,
        topic_id: 2,
        queue_id: 3,
        queue_offset: 4,
        revision: 5,
        attempt: 6,
        expires_ms: 1_700_000_000_000,
    }
}

fn broker() -> impl Strategy<Value = Arc<str>> {
    "[a-zA-Z0-9_-]{0,127}".prop_map(Arc::from)
}

fn any_receipt() -> impl Strategy<Value = ReceiptHandle> {
    (broker(), any::<[u32; 3]>(), any::<u64>(), any::<[u32; 2]>(), any::<u64>()).prop_map(
        |(broker, [group_id, topic_id, queue_id], queue_offset, [revision, attempt], expires_ms)| {
            ReceiptHandle {
                broker,
                group_id,
                topic_id,
                queue_id,
                queue_offset,
                revision,
                attempt,
                expires_ms,
            }
        },
    )
}

proptest! {
    #[test]
    fn tokens_come_back_as_they_were(
        receipt in any_receipt(), topic_id: u32, timer_id: u64, deliver_ms: u64, half_id: u64, check_ms: u64,
    ) {
        let broker = receipt.broker.clone();
        let recall = RecallHandle { broker: broker.clone(), topic_id, timer_id, deliver_ms };
        let transaction = TransactionId { broker: broker.clone(), topic_id, half_id, check_ms };
        let texts = [receipt.encode(&key()), recall.encode(&key()), transaction.encode(&key())];
        prop_assert_eq!(ReceiptHandle::decode_verified(&key(), &texts[0]), Ok(receipt));
        prop_assert_eq!(RecallHandle::decode_verified(&key(), &texts[1]), Ok(recall));
        prop_assert_eq!(TransactionId::decode_verified(&key(), &texts[2]), Ok(transaction));
        for text in texts {
            prop_assert!(text.len() <= 300, "{} characters", text.len());
            let name = broker_name_of(&text);
            prop_assert_eq!(name.as_deref(), Some(&*broker));
        }
    }

    #[test]
    fn a_changed_character_is_refused(receipt in any_receipt(), at: prop::sample::Index, other in "[A-Za-z0-9_-]") {
        let text = receipt.encode(&key());
        let at = at.index(text.len());
        prop_assume!(text[at..=at] != other);
        let changed = format!("{}{other}{}", &text[..at], &text[at + 1..]);
        prop_assert!(ReceiptHandle::decode_verified(&key(), &changed).is_err());
    }

    #[test]
    fn any_text_is_read_without_panic(text in ".{0,320}") {
        prop_assert!(ReceiptHandle::decode_verified(&key(), &text).is_err());
        broker_name_of(&text);
    }
}

#[test]
fn every_changed_byte_is_refused() {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    let bytes = URL_SAFE_NO_PAD.decode(receipt().encode(&key())).expect("base64");
    for at in 0..bytes.len() {
        for change in 1..=255 {
            let mut changed = bytes.clone();
            changed[at] ^= change;
            let refused = ReceiptHandle::decode_verified(&key(), &URL_SAFE_NO_PAD.encode(changed));
            let expected = match at {
                0 => TokenError::UnsupportedVersion(1 ^ change),
                1 => TokenError::WrongKind,
                _ => TokenError::Forged,
            };
            assert_eq!(refused, Err(expected), "byte {at}");
        }
    }
}

#[test]
fn each_refusal_has_its_reason() {
    let text = receipt().encode(&key());
    let decode = |text: &str| ReceiptHandle::decode_verified(&key(), text);
    assert_eq!(decode(""), Err(TokenError::Malformed));
    assert_eq!(decode("not a token"), Err(TokenError::Malformed));
    assert_eq!(decode(&"A".repeat(301)), Err(TokenError::Malformed));
    assert!(decode(&text[..text.len() - 4]).is_err());
    assert_eq!(ReceiptHandle::decode_verified(&TokenKey::new([8; 32]), &text), Err(TokenError::Forged));
    assert_eq!(RecallHandle::decode_verified(&key(), &text), Err(TokenError::WrongKind));
    assert_eq!(broker_name_of("not a token"), None);
    assert_eq!(format!("{:?}", key()), "TokenKey(..)");
}
