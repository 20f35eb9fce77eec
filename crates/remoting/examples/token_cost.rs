//! What a receipt handle costs: `cargo run --release -p karman-remoting --example token_cost`.

use std::hint::black_box;
use std::time::Instant;

use karman_remoting::token::{ReceiptHandle, TokenKey};

const ROUNDS: u32 = 1_000_000;

fn main() {
    let key = TokenKey::new([7; 32]);
    let mut handle = ReceiptHandle {
        broker: "broker-a".into(),
        group_id: 1,
        topic_id: 2,
        queue_id: 3,
        queue_offset: 4,
        revision: 5,
        attempt: 6,
        expires_ms: 7,
    };
    let started = Instant::now();
    for offset in 0..ROUNDS {
        handle.queue_offset = offset.into();
        black_box(handle.encode(&key));
    }
    let encode = started.elapsed() / ROUNDS;
    let text = handle.encode(&key);
    let started = Instant::now();
    for _ in 0..ROUNDS {
        black_box(ReceiptHandle::decode_verified(&key, black_box(&text))).expect("it was made with this key");
    }
    println!("a receipt handle: encode {encode:?}, decode {:?}", started.elapsed() / ROUNDS);
}
