use bytes::Bytes;
use proptest::prelude::*;

use crate::record::*;

fn records() -> impl Strategy<Value = (NewRecord, Place)> {
    let kind = prop_oneof![
        Just(RecordKind::Message),
        Just(RecordKind::DeadLetter),
        Just(RecordKind::Metadata),
        Just(RecordKind::Progress)
    ];
    let payload = prop::collection::vec(any::<u8>(), 0..300);
    let place = (any::<u64>(), any::<u64>(), any::<u64>(), any::<bool>());
    (kind, 0..u32::MAX, any::<u64>(), any::<u64>(), payload, place).prop_map(
        |(
            kind,
            queue,
            tag_hash,
            mark,
            payload,
            (physical_offset, queue_offset, store_time_ms, flushed_before),
        )| {
            let queue = kind.has_queue().then_some(QueueNumber(queue));
            let record = NewRecord { kind, queue, tag_hash, mark, payload: payload.into() };
            (record, Place { physical_offset, queue_offset, store_time_ms, flushed_before })
        },
    )
}

fn encoded(record: &NewRecord, place: Place) -> Bytes {
    let mut out = Vec::new();
    encode(record, place, &mut out);
    out.into()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_record_is_read_as_it_was_written((record, place) in records()) {
        let bytes = encoded(&record, place);
        prop_assert_eq!(bytes.len(), encoded_bytes(record.payload.len()));
        prop_assert_eq!(decode_record(&bytes, place.physical_offset).unwrap(), placed(&record, place));
        prop_assert_eq!(decode(&bytes, place.physical_offset).unwrap().flushed_before, place.flushed_before);
    }

    #[test]
    fn any_flipped_bit_is_detected((record, place) in records()) {
        let bytes = encoded(&record, place);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            // Bytes behind the record must not make a longer one of it.
            flipped.resize(bytes.len() * 2, 0);
            prop_assert!(decode(&flipped, place.physical_offset).is_err(), "bit {} is not covered", bit);
        }
    }

    #[test]
    fn a_record_is_not_valid_at_another_place((record, place) in records(), elsewhere in any::<u64>()) {
        prop_assume!(elsewhere != place.physical_offset);
        prop_assert_eq!(
            decode(&encoded(&record, place), elsewhere).unwrap_err(),
            Invalid::Offset(place.physical_offset)
        );
    }

    #[test]
    fn any_prefix_of_a_record_is_invalid((record, place) in records()) {
        let bytes = encoded(&record, place);
        for length in 0..bytes.len() {
            prop_assert!(decode(&bytes[..length], place.physical_offset).is_err());
        }
    }

    #[test]
    fn arbitrary_bytes_are_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), at in any::<u64>()) {
        prop_assert!(decode(&bytes, at).is_err());
    }
}

#[test]
fn a_blank_covers_the_rest_of_a_segment_whatever_lies_there() {
    let mut bytes = Vec::new();
    encode_blank(4096, 1000, 5, &mut bytes);
    bytes.resize(1000, 0xee);
    let header = decode(&bytes, 4096).unwrap();
    assert_eq!((header.kind, header.length), (None, 1000));
    assert_eq!(decode_record(&bytes.into(), 4096), Err(Invalid::Blank));
}
