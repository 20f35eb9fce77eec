//! A stored message as a consumer gets it: the producer's bytes with the broker's fields in its system properties.

use bytes::{Bytes, BytesMut};
use karman_remoting::message::{body_of, delivered};
use karman_remoting::proto::v2;
use karman_store::Record;
use sha1::{Digest as _, Sha1};

use crate::broker::Broker;
use crate::clock::timestamp;
use crate::mark::Mark;
use crate::records::message_of;

/// The message in `record`, built in `room`. `added`: the fields of this delivery; what is the same for all of them is
/// filled in here.
pub fn message(broker: &Broker, record: &Record, added: v2::SystemProperties, room: &mut BytesMut) -> Bytes {
    let stored = message_of(record);
    let field = Mark(record.mark).field(stored.len());
    let added = v2::SystemProperties {
        body_digest: Some(digest(&stored[body_of(stored, &field)])),
        store_timestamp: Some(timestamp(record.store_time_ms)),
        store_host: broker.store_host.clone(),
        queue_offset: Some(record.queue_offset.0.cast_signed()),
        ..added
    };
    delivered(stored, field, &added, room)
}

/// SHA-1 in upper-case hex: understood by every client, and half the work of MD5 on processors that have it in hardware.
pub fn digest(body: &[u8]) -> v2::Digest {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let digit = |half: u8| char::from(DIGITS[usize::from(half)]);
    let mut checksum = String::with_capacity(40);
    for byte in Sha1::digest(body) {
        checksum.push(digit(byte >> 4));
        checksum.push(digit(byte & 15));
    }
    v2::Digest { r#type: v2::DigestType::Sha1.into(), checksum }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_sha1_in_upper_case() {
        assert_eq!(digest(b"abc").checksum, "A9993E364706816ABA3E25717850C26C9CD0D89D");
    }
}
