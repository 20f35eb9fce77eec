//! What an SQL filter costs: `cargo run --release -p karman-broker --example filter_cost`. Warm, one thread, the median of
//! five rounds, and time on the processor, so that other programs do not count.

use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use karman_broker::filter::{FilterCache, MAX_CONTAINS, MAX_DEPTH, SqlFilter};
use karman_remoting::message::EncodedMessage;
use karman_remoting::proto::v2;
use prost::Message as _;

/// All of it is evaluated: each part is TRUE.
const FIVE: &str = "amount > 99.5 AND region = 'eu-west' AND level BETWEEN 2 AND 5 \
                    AND color IN ('red', 'green', 'blue', 'white') AND customer STARTSWITH 'C-17'";
const PROPERTIES: [(&str, &str); 5] = [
    ("amount", "129.90"),
    ("region", "eu-west"),
    ("level", "3"),
    ("color", "green"),
    ("customer", "C-1700231"),
];

/// A message of 1 KiB, encoded.
fn message(properties: impl Iterator<Item = (String, String)>) -> EncodedMessage {
    let system_properties = v2::SystemProperties {
        tag: Some("paid".into()),
        keys: vec!["order-4711".into(), "customer-17".into()],
        message_id: "01AABBCCDDEEFF0011223344556677889900".into(),
        born_host: "host-17".into(),
        ..Default::default()
    };
    let mut message = v2::Message {
        topic: Some(v2::Resource { resource_namespace: String::new(), name: "orders".into() }),
        user_properties: properties.collect(),
        system_properties: Some(system_properties),
        body: Bytes::new(),
    };
    message.body = vec![0; 1024_usize.saturating_sub(message.encoded_len() + 3)].into();
    EncodedMessage::read(message.encode_to_vec().into()).expect("it was encoded just now")
}

/// How long this thread was on a processor.
fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("the kernel keeps schedstat");
    let nanoseconds = text.split(' ').next().and_then(|first| first.parse().ok());
    Duration::from_nanos(nanoseconds.expect("it begins with the time on the processor"))
}

/// The median of five rounds, each long enough for a clock that may move every 4 ms only.
fn cost<T>(mut once: impl FnMut() -> T) -> Duration {
    let mut round = |times: u32| {
        let started = processor_time();
        (0..times).for_each(|_| {
            black_box(once());
        });
        processor_time() - started
    };
    let mut times = 1;
    while round(times) < Duration::from_millis(200) {
        times *= 2;
    }
    let mut rounds: [Duration; 5] = std::array::from_fn(|_| round(times));
    rounds.sort_unstable();
    rounds[2] / times
}

fn say(what: &str, cost: Duration) {
    println!("{what:<64} {:>9} ns", cost.as_nanos());
}

fn over_message(what: &str, expression: &str, message: &EncodedMessage) {
    let filter = SqlFilter::compile(expression).expect("an expression");
    let field = &message.system_properties_field;
    say(what, cost(|| filter.matches_message(black_box(&message.bytes), field)));
}

fn main() {
    let filter = SqlFilter::compile(FIVE).expect("an expression");
    let find = |name: &str| PROPERTIES.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
    assert_eq!(filter.matches(&find), Ok(Some(true)));
    say("5 properties, looked up by the caller", cost(|| filter.matches(black_box(&find))));

    let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    let usual = message(PROPERTIES.into_iter().map(owned));
    assert_eq!(filter.matches_message(&usual.bytes, &usual.system_properties_field), Ok(true));
    over_message("5 properties, in an encoded message of 1 KiB", FIVE, &usual);
    over_message("the first of 5 parts is FALSE, same message", &FIVE.replace('>', "<"), &usual);
    over_message("1 property, same message", "level > 2", &usual);
    over_message("TAGS and KEYS, same message", "TAGS = 'paid' AND KEYS CONTAINS 'r-17'", &usual);

    let many = message((0..128).map(|i| (format!("name{i:03}"), format!("{i}{}", "0".repeat(60)))));
    let names: Vec<String> = (0..32).map(|i| format!("name{i:03} = 'x'")).collect();
    over_message("32 of 128 properties", &names.join(" OR "), &many);
    let long = message([("a".to_owned(), "xyxxy".repeat(3200)), ("b".into(), "1".repeat(128))].into_iter());
    let contains = vec!["a CONTAINS 'xyxyy'"; MAX_CONTAINS].join(" OR ");
    over_message("32 times CONTAINS in 16 KB", &contains, &long);
    over_message("1,020 comparisons with a number of 128 digits", &vec!["b<1"; 1020].join(" OR "), &long);

    say("to compile 5 properties", cost(|| SqlFilter::compile(black_box(FIVE))));
    let list = format!("a IN ({})", vec!["'abcd'"; 1024].join(","));
    say("to compile a list of 1,024", cost(|| SqlFilter::compile(&list)));
    let cache = FilterCache::new(256);
    say("to find 5 properties in the cache", cost(|| cache.get(black_box(FIVE))));

    let deepest = format!("{}a = 1{}", "NOT (".repeat(MAX_DEPTH), ")".repeat(MAX_DEPTH));
    let on_little_stack = std::thread::Builder::new().stack_size(128 * 1024);
    let evaluate = move || SqlFilter::compile(&deepest).map(|filter| filter.matches(&|_| Some("1")));
    let deep =
        on_little_stack.spawn(evaluate).expect("a thread").join().expect("a stack of 128 KiB is enough");
    println!("the deepest expression, compiled and evaluated on a stack of 128 KiB: {deep:?}");
}
