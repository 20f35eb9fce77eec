//! What is sent, and what consumers do with it: all of it follows from the seed and the message, not from the moment.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use karman_remoting::proto::v2::{self, MessageType};
use prost_types::Timestamp;

use super::Options;
use crate::raw::resource;

/// Message groups.
pub(super) const LANES: u64 = 200;
/// The properties that a dead letter has beside those of its message begin so.
const LETTER_PREFIX: &str = "DLQ_";
/// What bodies are made of.
const FILLER_BYTES: usize = 8 << 10;

/// A kind of message; each has a topic of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Normal,
    Fifo,
    Delay,
    Transaction,
    Filter,
    Large,
}

/// All kinds, in the order of [`Options::shares`].
pub(super) const KINDS: [Kind; 6] =
    [Kind::Normal, Kind::Fifo, Kind::Delay, Kind::Transaction, Kind::Filter, Kind::Large];

impl Kind {
    /// Its topic.
    pub(super) fn topic(self) -> &'static str {
        match self {
            Kind::Normal => "mixed-normal",
            Kind::Fifo => "mixed-fifo",
            Kind::Delay => "mixed-delay",
            Kind::Transaction => "mixed-transaction",
            Kind::Filter => "mixed-filter",
            Kind::Large => "mixed-large",
        }
    }

    /// What its topic takes.
    pub(super) fn message_type(self) -> MessageType {
        match self {
            Kind::Fifo => MessageType::Fifo,
            Kind::Delay => MessageType::Delay,
            Kind::Transaction => MessageType::Transaction,
            Kind::Normal | Kind::Filter | Kind::Large => MessageType::Normal,
        }
    }
}

/// A group and its manners. Chances are in a thousand messages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) attempts_max: u32,
    pub(super) filter: Filter,
    /// Refused at each attempt, until it is dead.
    pub(super) poison: u64,
    /// Given up at once.
    pub(super) bury: u64,
    /// Left to expire at its first attempt.
    pub(super) forget: u64,
    /// Refused at its first attempt.
    pub(super) nack: u64,
}

/// What a group wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filter {
    All,
    /// An expression, and the labels of what it lets pass.
    Tag(&'static str, &'static [&'static str]),
    Sql(&'static str, &'static [&'static str]),
}

const CALM: Reader = Reader {
    name: "steady",
    kind: Kind::Normal,
    attempts_max: 17,
    filter: Filter::All,
    poison: 0,
    bury: 0,
    forget: 0,
    nack: 10,
};

/// All groups.
pub(super) const READERS: [Reader; 8] = [
    CALM,
    Reader { name: "bad", attempts_max: 3, poison: 10, bury: 5, forget: 100, nack: 50, ..CALM },
    Reader {
        name: "ordered",
        kind: Kind::Fifo,
        attempts_max: 3,
        poison: 3,
        bury: 2,
        forget: 10,
        nack: 40,
        ..CALM
    },
    Reader { name: "timely", kind: Kind::Delay, ..CALM },
    Reader { name: "paid", kind: Kind::Transaction, forget: 5, ..CALM },
    Reader {
        name: "tags",
        kind: Kind::Filter,
        filter: Filter::Tag("red || blue", &["red-high", "red-low", "blue-high", "blue-low"]),
        ..CALM
    },
    Reader {
        name: "sql",
        kind: Kind::Filter,
        filter: Filter::Sql("amount >= 50 AND color <> 'blue'", &["red-high", "green-high"]),
        ..CALM
    },
    Reader { name: "heavy", kind: Kind::Large, ..CALM },
];

/// What becomes of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decision {
    pub(super) commit: bool,
    /// Only when the broker asks.
    pub(super) when_asked: bool,
}

/// What a consumer does with a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    Ack,
    /// Visible again after so many milliseconds.
    Nack(i64),
    Forget,
    Bury,
}

/// One message to be sent.
#[derive(Clone, Debug)]
pub(super) struct Planned {
    pub(super) kind: Kind,
    pub(super) message: v2::Message,
    pub(super) digest: u32,
    pub(super) lane: Option<(u64, u64)>,
    pub(super) due_ms: Option<u64>,
    pub(super) label: Option<String>,
}

impl Planned {
    /// Its id.
    pub(super) fn id(&self) -> &str {
        id_of(&self.message)
    }
}

/// See the module's comment.
#[derive(Debug)]
pub(super) struct Plan {
    seed: u64,
    shares: [u64; 6],
    large_bytes: (u64, u64),
    delay_ms: (u64, u64),
    filler: Vec<u8>,
}

/// The next place in each lane.
#[derive(Debug)]
pub(super) struct Places(Vec<u64>);

impl Default for Places {
    fn default() -> Self {
        Self(vec![0; usize::try_from(LANES).expect("a few")])
    }
}

impl Plan {
    /// The plan of a run.
    pub(super) fn new(options: &Options) -> Self {
        let mut filler = Vec::with_capacity(FILLER_BYTES);
        for index in 0.. {
            if filler.len() >= FILLER_BYTES {
                break;
            }
            filler.extend(mix(options.seed, index).to_le_bytes());
        }
        Self {
            seed: options.seed,
            shares: options.shares,
            large_bytes: options.large_bytes,
            delay_ms: options.delay_ms,
            filler,
        }
    }

    /// A number that belongs to message `index`, another for each `purpose`.
    fn roll(&self, index: u64, purpose: u64) -> u64 {
        mix(mix(self.seed, purpose), index)
    }

    /// Message `index`; asked for in order, for the places in lanes are given so.
    pub(super) fn message(&self, index: u64, places: &mut Places) -> Planned {
        let kind = self.kind(index);
        let id = format!("{:08x}-{index:08x}", self.seed as u32);
        let born_ms = now_ms();
        let mut system = v2::SystemProperties {
            message_id: id.clone(),
            message_type: kind.message_type().into(),
            body_encoding: v2::Encoding::Identity.into(),
            born_host: "mixed-load".to_owned(),
            born_timestamp: Some(timestamp(born_ms)),
            keys: vec![format!("key-{index}")],
            tag: Some(format!("tag-{}", index % 5)),
            ..Default::default()
        };
        let mut properties = BTreeMap::from([("index", index.to_string())]);
        let (mut lane, mut due_ms, mut label) = (None, None, None);
        match kind {
            Kind::Fifo => {
                let number = self.roll(index, 1) % LANES;
                let place = &mut places.0[number as usize];
                lane = Some((number, *place));
                *place += 1;
                system.message_group = Some(lane_name(number));
            }
            Kind::Delay => {
                let (min, max) = self.delay_ms;
                let due = born_ms + min + self.roll(index, 2) % (max - min + 1);
                due_ms = Some(due);
                system.delivery_timestamp = Some(timestamp(due));
            }
            Kind::Filter => {
                let roll = self.roll(index, 3);
                let (color, amount) = (["red", "green", "blue"][(roll % 3) as usize], roll / 3 % 100);
                system.tag = Some(color.to_owned());
                properties.extend([("color", color.to_owned()), ("amount", amount.to_string())]);
                label = Some(format!("{color}-{}", if amount >= 50 { "high" } else { "low" }));
            }
            Kind::Normal | Kind::Transaction | Kind::Large => {}
        }
        let message = v2::Message {
            topic: resource(kind.topic()),
            user_properties: properties.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
            system_properties: Some(system),
            body: self.body(kind, index, &id),
        };
        Planned { kind, digest: digest(&message), message, lane, due_ms, label }
    }

    fn kind(&self, index: u64) -> Kind {
        let mut roll = self.roll(index, 4) % self.shares.iter().sum::<u64>().max(1);
        for (kind, &share) in KINDS.into_iter().zip(&self.shares) {
            if roll < share {
                return kind;
            }
            roll -= share;
        }
        Kind::Normal
    }

    /// It begins with [`body_mark`]; the rest differs from message to message.
    fn body(&self, kind: Kind, index: u64, id: &str) -> Bytes {
        let roll = self.roll(index, 5);
        let size = match kind {
            Kind::Large => {
                let (min, max) = self.large_bytes;
                min + roll % (max - min + 1)
            }
            _ => [128, 1024][(roll % 2) as usize],
        };
        let mut body = body_mark(id).into_bytes();
        let size = usize::try_from(size).expect("a message fits into memory").max(body.len());
        body.reserve_exact(size - body.len());
        let start = usize::try_from(roll % FILLER_BYTES as u64).expect("an index of the filler");
        body.extend(self.filler.iter().cycle().skip(start).take(size - body.len()));
        body.into()
    }

    /// 60 of 100 are committed, 20 rolled back, of the others the producer says nothing until it is asked.
    pub(super) fn decision(&self, id: &str) -> Decision {
        let roll = self.roll(hash(id), 6) % 100;
        Decision { commit: !(60..90).contains(&roll), when_asked: roll >= 80 }
    }

    /// What `reader` does with delivery `attempt` of message `id`.
    pub(super) fn deed(&self, reader: &Reader, id: &str, attempt: u32) -> Deed {
        let number = mix(hash(id), hash(reader.name));
        let roll = self.roll(number, 7) % 1000;
        let pause_ms = i64::try_from(self.roll(number, 8) % 800).expect("below 800");
        let (bury, forget) = (reader.poison + reader.bury, reader.poison + reader.bury + reader.forget);
        match roll {
            _ if roll < reader.poison => Deed::Nack(pause_ms),
            _ if roll < bury => Deed::Bury,
            _ if attempt == 1 && roll < forget => Deed::Forget,
            _ if attempt == 1 && roll < forget + reader.nack => Deed::Nack(pause_ms),
            _ => Deed::Ack,
        }
    }
}

/// The name of a message group.
pub(super) fn lane_name(number: u64) -> String {
    format!("lane-{number}")
}

/// With what the body of a message begins: it is found by that in the files of a broker.
pub(super) fn body_mark(id: &str) -> String {
    format!("the body of {id};")
}

/// The id of a message.
pub(super) fn id_of(message: &v2::Message) -> &str {
    message.system_properties.as_ref().map_or("", |system| &system.message_id)
}

/// Of everything that a producer says; what a broker adds is not in it.
pub(super) fn digest(message: &v2::Message) -> u32 {
    let system = message.system_properties.clone().unwrap_or_default();
    let mut properties: Vec<_> =
        message.user_properties.iter().filter(|(key, _)| !key.starts_with(LETTER_PREFIX)).collect();
    properties.sort();
    let head = format!(
        "{:?} {:?} {:?} {properties:?} {:?} {:?} {:?}",
        system.message_id,
        system.tag,
        system.keys,
        system.born_timestamp,
        system.delivery_timestamp,
        system.message_group
    );
    crc32c::crc32c_append(crc32c::crc32c(head.as_bytes()), &message.body)
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
    u64::try_from(since.as_millis()).expect("the clock is before the year 500,000,000")
}

fn timestamp(ms: u64) -> Timestamp {
    Timestamp {
        seconds: i64::try_from(ms / 1000).expect("milliseconds fit"),
        nanos: i32::try_from(ms % 1000).expect("below 1000") * 1_000_000,
    }
}

/// A number that belongs to number `index` of a run.
pub(super) fn spread(seed: u64, index: u64) -> u64 {
    mix(seed, index)
}

fn hash(text: &str) -> u64 {
    text.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| mix(hash, u64::from(byte)))
}

/// Spreads two numbers over one (SplitMix64).
fn mix(a: u64, b: u64) -> u64 {
    let mut mixed = a ^ b.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_are_what_was_asked_for_and_the_plan_is_the_seeds() {
        let options = Options { seed: 7, ..Options::default() };
        let (one, other) = (Plan::new(&options), Plan::new(&options));
        let (mut places, mut others) = (Places::default(), Places::default());
        let mut counts = [0_u64; 6];
        for index in 0..10_000 {
            let kind = one.kind(index);
            counts[KINDS.iter().position(|&other| other == kind).unwrap()] += 1;
        }
        for (count, share) in counts.into_iter().zip(options.shares) {
            assert!(count.abs_diff(share * 100) < 150, "{counts:?}");
        }
        for index in 0..100 {
            let (a, b) = (one.message(index, &mut places), other.message(index, &mut others));
            assert_eq!((a.id(), a.kind, a.lane, &a.message.body), (b.id(), b.kind, b.lane, &b.message.body));
        }
        let poisoned = (0..10_000).filter(|index| {
            let id = format!("id-{index}");
            let deeds = [1, 2, 3].map(|attempt| one.deed(&READERS[1], &id, attempt));
            deeds.iter().all(|deed| matches!(deed, Deed::Nack(_)))
        });
        assert!(poisoned.count().abs_diff(100) < 50);
    }

    #[test]
    fn the_digest_is_of_all_that_was_sent() {
        let planned = Plan::new(&Options::default()).message(0, &mut Places::default());
        let mut letter = planned.message.clone();
        letter.user_properties.insert("DLQ_REASON".into(), "x".into());
        assert_eq!(digest(&letter), planned.digest);
        let changes: [fn(&mut v2::Message); 4] = [
            |message| message.body = Bytes::from_static(b"x"),
            |message| drop(message.user_properties.insert("more".into(), "x".into())),
            |message| message.system_properties.as_mut().unwrap().keys.push("x".into()),
            |message| message.system_properties.as_mut().unwrap().born_timestamp = None,
        ];
        for change in changes {
            let mut changed = planned.message.clone();
            change(&mut changed);
            assert_ne!(digest(&changed), planned.digest);
        }
    }
}
