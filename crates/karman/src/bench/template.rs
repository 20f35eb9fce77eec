//! Messages for the load, encoded once: each is a copy with its own id and send time written over the template's.
//!
//! Encoding each message anew would make the load cost more than the server; sending the same bytes over and over would
//! measure a server that gets the same id a million times.

use std::time::{Instant, SystemTime};

use bytes::{BufMut as _, Bytes, BytesMut};
use karman_remoting::proto::v2;
use prost::Message as _;

/// The digits of an id that differ between the messages of a run.
const SEQUENCE_DIGITS: usize = 16;
/// The digits of a message group.
const GROUP_DIGITS: usize = 8;
/// Nanoseconds since the run's epoch, and the run's mark: the head of a body that has room for it.
const STAMP_BYTES: usize = 16;

pub(crate) struct Template {
    bytes: Vec<u8>,
    sequence_at: usize,
    /// Where the message group lies, and how many there are; 0: the messages have none.
    group_at: usize,
    message_groups: u32,
    /// Where the stamp lies, if the body has room.
    stamp_at: Option<usize>,
    run: Run,
}

/// What tells the messages of one run from all others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    epoch: Instant,
    mark: u64,
}

impl Run {
    pub(crate) fn new() -> Self {
        Self { epoch: Instant::now(), mark: rand::random() }
    }

    /// When the message with this body was to be sent, if it is one of this run.
    pub(crate) fn sent_at(&self, body: &[u8]) -> Option<Instant> {
        let (nanos, rest) = body.split_first_chunk::<8>()?;
        let (mark, _) = rest.split_first_chunk::<8>()?;
        let ours = u64::from_le_bytes(*mark) == self.mark;
        ours.then(|| self.epoch + std::time::Duration::from_nanos(u64::from_le_bytes(*nanos)))
    }
}

impl Template {
    /// Ordered messages of so many message groups; 0: normal ones.
    pub(crate) fn new(topic: &str, body_size: usize, message_groups: u32, run: Run) -> Self {
        let id =
            format!("01{:012X}{:04X}{:016X}", rand::random::<u64>() >> 16, std::process::id() & 0xffff, 0);
        let is_fifo = message_groups > 0;
        let message_type = if is_fifo { v2::MessageType::Fifo } else { v2::MessageType::Normal };
        let message_group = "group-".to_owned() + &"0".repeat(GROUP_DIGITS);
        let message = v2::Message {
            topic: Some(v2::Resource { resource_namespace: String::new(), name: topic.to_owned() }),
            user_properties: Default::default(),
            system_properties: Some(v2::SystemProperties {
                message_id: id.clone(),
                body_encoding: v2::Encoding::Identity.into(),
                message_type: message_type.into(),
                message_group: is_fifo.then(|| message_group.clone()),
                born_timestamp: Some(SystemTime::now().into()),
                born_host: "bench".to_owned(),
                ..Default::default()
            }),
            body: (0..body_size).map(|index| b'a' + (index % 26) as u8).collect(),
        };
        let bytes = message.encode_to_vec();
        let end_of = |text: &str| {
            let at = bytes.windows(text.len()).position(|window| window == text.as_bytes());
            at.expect("the message holds it") + text.len()
        };
        let sequence_at = end_of(&id) - SEQUENCE_DIGITS;
        let group_at = if is_fifo { end_of(&message_group) - GROUP_DIGITS } else { 0 };
        // The body is the last field.
        let stamp_at = (body_size >= STAMP_BYTES).then(|| bytes.len() - body_size);
        Self { bytes, sequence_at, group_at, message_groups, stamp_at, run }
    }

    /// `count` messages with the ids `first..`, all stamped with `scheduled`. One allocation for their bytes.
    pub(crate) fn messages(&self, first: u64, count: usize, scheduled: Instant) -> Vec<Bytes> {
        let size = self.bytes.len();
        let mut room = BytesMut::with_capacity(size * count);
        let nanos = scheduled.saturating_duration_since(self.run.epoch).as_nanos() as u64;
        for index in 0..count {
            room.put_slice(&self.bytes);
            let message = &mut room[index * size..];
            let sequence = first + index as u64;
            write_hex(sequence, &mut message[self.sequence_at..self.sequence_at + SEQUENCE_DIGITS]);
            if let Some(group) = sequence.checked_rem(self.message_groups.into()) {
                write_hex(group, &mut message[self.group_at..self.group_at + GROUP_DIGITS]);
            }
            if let Some(at) = self.stamp_at {
                message[at..at + 8].copy_from_slice(&nanos.to_le_bytes());
                message[at + 8..at + STAMP_BYTES].copy_from_slice(&self.run.mark.to_le_bytes());
            }
        }
        let all = room.freeze();
        (0..count).map(|index| all.slice(index * size..(index + 1) * size)).collect()
    }
}

fn write_hex(mut number: u64, digits: &mut [u8]) {
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789ABCDEF"[(number & 15) as usize];
        number >>= 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_differ_in_id_and_time_and_are_messages() {
        let run = Run::new();
        let template = Template::new("orders", 100, 0, run);
        let scheduled = run.epoch + std::time::Duration::from_micros(123);
        let messages = template.messages(0xab, 2, scheduled);
        let decoded: Vec<_> =
            messages.iter().map(|bytes| v2::Message::decode(bytes.clone()).unwrap()).collect();
        let id = |index: usize| decoded[index].system_properties.clone().unwrap().message_id;
        assert!(id(0).ends_with("00000000000000AB") && id(1).ends_with("00000000000000AC"));
        assert_eq!((id(0).len(), decoded[0].body.len()), (34, 100));
        assert_eq!(run.sent_at(&decoded[1].body), Some(scheduled));
        assert_eq!(Run::new().sent_at(&decoded[1].body), None, "another run's");
    }

    #[test]
    fn ordered_messages_take_the_groups_in_turn() {
        let run = Run::new();
        let messages = Template::new("orders", 100, 3, run).messages(4, 3, run.epoch);
        let groups = messages.into_iter().map(|bytes| {
            let system = v2::Message::decode(bytes).unwrap().system_properties.unwrap();
            assert_eq!(system.message_type, v2::MessageType::Fifo as i32);
            system.message_group.unwrap()
        });
        assert_eq!(groups.collect::<Vec<_>>(), ["group-00000001", "group-00000002", "group-00000000"]);
    }

    #[test]
    fn a_body_without_room_has_no_stamp() {
        let run = Run::new();
        let messages = Template::new("orders", 15, 0, run).messages(0, 1, Instant::now());
        let body = v2::Message::decode(messages[0].clone()).unwrap().body;
        assert_eq!((body.as_ref(), run.sent_at(&body)), (&b"abcdefghijklmno"[..], None));
    }
}
