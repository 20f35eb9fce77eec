use bytes::Bytes;
use proptest::prelude::*;

use crate::record::*;

const LOG: Seal = Seal(0x1234_5678);

fn records() -> impl Strategy<Value = (NewRecord, Place)> {
    let kind = prop_oneof![
        Just(RecordKind::Message),
        Just(RecordKind::DeadLetter),
        Just(RecordKind::Metadata),
        Just(RecordKind::Progress)
    ];
    let payload = prop::collection::vec(any::<u8>(), 0..300);
    let keys = prop::collection::vec(any::<u64>(), 0..5);
    let place = (any::<u64>(), any::<u64>(), any::<u64>(), any::<bool>(), any::<u32>());
    (kind, 0..u32::MAX, any::<u64>(), any::<u64>(), keys, payload, place).prop_map(
        |(
            kind,
            queue,
            tag_hash,
            mark,
            keys,
            payload,
            (physical_offset, queue_offset, store_time_ms, flushed_before, epoch),
        )| {
            let queue = kind.has_queue().then_some(QueueNumber(queue));
            let record = NewRecord { kind, queue, tag_hash, mark, keys, payload: payload.into() };
            (record, Place { physical_offset, queue_offset, store_time_ms, flushed_before, epoch })
        },
    )
}

fn encoded(record: &NewRecord, place: Place) -> Bytes {
    let mut out = Vec::new();
    encode(record, place, LOG, &mut out);
    out.into()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_record_is_read_as_it_was_written((record, place) in records()) {
        let bytes = encoded(&record, place);
        prop_assert_eq!(bytes.len(), record.encoded_bytes());
        let header = decode(&bytes, place.physical_offset, LOG).unwrap();
        prop_assert_eq!(header.keys(&bytes).collect::<Vec<_>>(), record.keys.clone());
        prop_assert_eq!(decode_record(&bytes, place.physical_offset, LOG).unwrap(), placed(&record, place));
        prop_assert_eq!(header.flushed_before, place.flushed_before);
    }

    #[test]
    fn any_flipped_bit_is_detected((record, place) in records()) {
        let bytes = encoded(&record, place);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            // Bytes behind the record must not make a longer one of it.
            flipped.resize(bytes.len() * 2, 0);
            prop_assert!(decode(&flipped, place.physical_offset, LOG).is_err(), "bit {} is not covered", bit);
        }
    }

    #[test]
    fn a_record_is_not_valid_at_another_place((record, place) in records(), elsewhere in any::<u64>()) {
        prop_assume!(elsewhere != place.physical_offset);
        prop_assert_eq!(
            decode(&encoded(&record, place), elsewhere, LOG).unwrap_err(),
            Invalid::Offset(place.physical_offset)
        );
    }

    #[test]
    fn a_record_of_another_log_is_not_valid((record, place) in records(), other in any::<u32>()) {
        prop_assume!(Seal(other) != LOG);
        let bytes = encoded(&record, place);
        prop_assert_eq!(decode(&bytes, place.physical_offset, Seal(other)).unwrap_err(), Invalid::Checksum);
    }

    #[test]
    fn any_prefix_of_a_record_is_invalid((record, place) in records()) {
        let bytes = encoded(&record, place);
        for length in 0..bytes.len() {
            prop_assert!(decode(&bytes[..length], place.physical_offset, LOG).is_err());
        }
    }

    #[test]
    fn arbitrary_bytes_are_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), at in any::<u64>()) {
        prop_assert!(decode(&bytes, at, LOG).is_err());
    }
}

#[test]
fn a_filler_covers_its_stretch_whatever_lies_there() {
    for (content, invalid) in [(Content::Blank, Invalid::Blank), (Content::Lost, Invalid::Lost)] {
        let mut bytes = Vec::new();
        encode_filler(content, 4096, 1000, 5, 7, LOG, &mut bytes);
        bytes.resize(1000, 0xee);
        let header = decode(&bytes, 4096, LOG).unwrap();
        assert_eq!((header.content, header.length), (content, 1000));
        assert_eq!(decode_record(&bytes.into(), 4096, LOG), Err(invalid));
    }
}

/// A longer one would hide intact records behind it, a shorter one would show what lies under it.
#[test]
fn any_flipped_bit_of_a_filler_is_detected() {
    for content in [Content::Blank, Content::Lost] {
        let mut bytes = Vec::new();
        encode_filler(content, 4096, 1000, 5, 7, LOG, &mut bytes);
        bytes.resize(1 << 20, 0xee);
        for bit in 0..HEADER_BYTES * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            let found = decode(&bytes, 4096, LOG);
            assert!(found.is_err_and(|why| !why.is_unsupported()), "bit {bit} of {content:?}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

/// As `docs/storage-format.md` says it: another version has to find the same bits.
#[test]
fn a_key_sets_six_bits_of_its_block_of_the_bloom_filter() {
    let log = crate::directory::LogId([7; 16]);
    let about = crate::index::sealed::IndexedSegment { log, base: 0, length: 1 << 20 };
    for (a, b, odd) in [(5, 3, 3), (5, 2, 3), (500, 0, 1), (0, 510, 511)] {
        let keys = vec![((b << 9) | a, 0)];
        let mut contents = crate::index::contents::Contents { keys, ..Default::default() };
        let bytes = crate::index::sealed::encode(about, &mut contents);
        // Behind the header: no runs, no marks, one block.
        let block = &bytes[80..144];
        let set: Vec<u64> =
            (0..512).filter(|bit| block[bit / 8] & 1 << (bit % 8) != 0).map(|b| b as u64).collect();
        let mut expected: Vec<u64> = (0..6).map(|i| (a + i * odd) % 512).collect();
        expected.sort_unstable();
        assert_eq!(set, expected, "a = {a}, b = {b}");
    }
}
