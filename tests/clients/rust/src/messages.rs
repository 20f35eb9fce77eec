//! What is sent follows from a seed and an index alone, so that a test can say what must arrive.

use std::collections::HashMap;

use rocketmq::model::message::{Message, MessageBuilder, MessageView};
use serde_json::{json, Value};
use sha2::{Digest, Sha256};

use crate::events::{emit, now};
use crate::options::Options;
use crate::Fatal;

const COLOURS: [&str; 3] = ["red", "green", "blue"];

/// SHA-256 in counter mode over `seed:index`; the length follows from the same hash unless `size` is given.
fn body_of(seed: &str, index: u64, size: usize) -> Vec<u8> {
    let root = Sha256::digest(format!("{seed}:{index}"));
    let length = if size > 0 { size } else { 1 + usize::from(u16::from_be_bytes([root[0], root[1]])) % 2048 };
    let mut body = Vec::with_capacity(length + 32);
    for block in 0u32.. {
        if body.len() >= length {
            break;
        }
        body.extend(Sha256::new().chain_update(root).chain_update(block.to_be_bytes()).finalize());
    }
    body.truncate(length);
    body
}

fn builder(
    options: &Options,
    index: u64,
    properties: HashMap<String, String>,
) -> Result<MessageBuilder, Fatal> {
    let seed = options.get("seed").unwrap_or("seed");
    let size = usize::try_from(options.number("size", 0)?)?;
    Ok(MessageBuilder::builder()
        .set_topic(options.text("topic")?)
        .set_body(body_of(seed, index, size))
        .set_tag(COLOURS[usize::try_from(index % 3)?])
        .set_keys(vec![format!("key-{seed}-{index}"), format!("seventh-{}", index % 7)])
        .set_properties(properties))
}

fn properties_of(index: u64) -> HashMap<String, String> {
    let text = format!("größe {index} 漢字 🚀");
    HashMap::from([("index".to_owned(), index.to_string()), ("text".to_owned(), text)])
}

/// Message `index`, and what its `sent` event says of its kind.
pub fn message_of(options: &Options, index: u64) -> Result<(impl Message, Value), Fatal> {
    let mut properties = properties_of(index);
    let groups = options.number("group-count", 0)?;
    let (delay, spread) = (options.number("delay", 0)?, options.number("delay-spread", 0)?);
    if groups > 0 {
        properties.insert("seq".to_owned(), (index / groups).to_string());
    }
    let mut message = builder(options, index, properties)?;
    let mut kind = json!({});
    if groups > 0 {
        let group = format!("g{}", index % groups);
        kind = json!({"group": group, "seq": index / groups});
        message = message.set_message_group(group);
    }
    if delay > 0 || spread > 0 {
        // The client knows whole seconds only.
        let seconds = (now() + delay + (index * 7919).checked_rem(spread).unwrap_or(0)).div_ceil(1000);
        kind["due"] = json!(seconds * 1000);
        message = message.set_delivery_timestamp(i64::try_from(seconds)?);
    }
    Ok((message.build()?, kind))
}

/// Half message `index`.
pub fn half_message_of(options: &Options, index: u64) -> Result<impl Message, Fatal> {
    Ok(builder(options, index, properties_of(index))?.enable_transaction().build()?)
}

pub fn report(view: &MessageView) {
    let mut keys = view.keys().to_vec();
    keys.sort();
    let sha256: String = Sha256::digest(view.body()).iter().map(|byte| format!("{byte:02x}")).collect();
    let seq = view.properties().get("seq").and_then(|seq| seq.parse::<u64>().ok());
    emit(
        "message",
        json!({
            "id": view.message_id(), "topic": view.topic(), "tag": view.tag(), "keys": keys,
            "properties": view.properties(), "sha256": sha256, "length": view.body().len(),
            "attempt": view.delivery_attempt(), "born": view.born_timestamp() * 1000, "corrupted": false,
            "group": view.message_group(), "seq": seq,
            "due": view.delivery_timestamp().map(|seconds| seconds * 1000),
        }),
    );
}
