//! What the registry of clients costs a call: `cargo run --release -p karman-remoting --example client_cost`.

use std::hint::black_box;
use std::time::Instant;

use karman_remoting::clients::ClientRegistry;
use karman_remoting::proto::v2::{FilterExpression, FilterType};

const ROUNDS: u32 = 2_000_000;
const MEMBERS: usize = 1000;

fn each(name: &str, mut call: impl FnMut()) {
    let started = Instant::now();
    for _ in 0..ROUNDS {
        call();
    }
    println!("{name}: {:?}", started.elapsed() / ROUNDS);
}

fn main() {
    let registry = ClientRegistry::default();
    let tag =
        |expression: &str| FilterExpression { r#type: FilterType::Tag.into(), expression: expression.into() };
    let filter = tag("a || b");
    let members: Vec<String> = (0..MEMBERS).map(|n| format!("host-1@{n}@0@abcdef")).collect();
    let started = Instant::now();
    for member in &members {
        registry.subscribed(member, "billing", "orders", Some(&filter));
        registry.publishes(member, "orders");
        black_box(registry.contradicts("billing", "orders", member));
    }
    println!("a new member of a growing group: {:?}", started.elapsed() / MEMBERS as u32);
    let member = &members[MEMBERS / 2];
    each("heard", || registry.heard(black_box(member)));
    each("publishes, known", || registry.publishes(black_box(member), "orders"));
    each("subscribed, unchanged", || {
        registry.subscribed(black_box(member), "billing", "orders", Some(&filter));
    });
    each("contradicts, agreed", || {
        black_box(registry.contradicts("billing", "orders", black_box(member)));
    });
    registry.subscribed(&members[0], "billing", "orders", Some(&tag("c")));
    each("contradicts, contradicted", || {
        black_box(registry.contradicts("billing", "orders", black_box(member)));
    });
}
