//! Drives the official Rust client for the scenarios of the test crate. The words on the command line and on stdout are
//! those of `tests/clients/python/driver.py`. The client of this version has a producer and a simple consumer; it cannot
//! recall, refuse a message, or send by priority or to lite topics.

mod consuming;
mod events;
mod messages;
mod options;
mod producing;

use std::io::Read as _;

use serde_json::json;

use crate::events::{emit, stop};
use crate::options::Options;

/// What no scenario can recover from: the client did not start, or the command line is wrong.
type Fatal = Box<dyn std::error::Error + Send + Sync>;

/// The options for which this client has nothing.
const UNSUPPORTED_OPTIONS: [&str; 3] = ["priority", "lite-count", "nack-attempts"];

fn watch_stdin() {
    // Whatever ends the input ends the driver.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    stop();
}

async fn run(scenario: &str, options: Options) -> Result<(), Fatal> {
    let missing =
        UNSUPPORTED_OPTIONS.iter().find(|&&name| options.number(name, 0).is_ok_and(|value| value > 0));
    if let Some(name) = missing {
        emit("unsupported", json!({"name": format!("--{name}")}));
        return Ok(());
    }
    match scenario {
        "produce" => producing::produce(options).await?,
        "produce-batch" => producing::produce_batch(options).await?,
        "transaction" => producing::transaction(options).await?,
        "consume-simple" => consuming::consume_simple(options).await?,
        _ => {
            emit("unsupported", json!({"name": scenario}));
            return Ok(());
        }
    }
    emit("done", json!({}));
    Ok(())
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    std::thread::spawn(watch_stdin);
    let mut words = std::env::args().skip(1);
    let scenario = words.next().unwrap_or_default();
    let result = match Options::parse(words) {
        Ok(options) => run(&scenario, options).await,
        Err(error) => Err(error),
    };
    if let Err(error) = &result {
        emit("fatal", events::failure(&error.to_string()));
    }
    // Tasks of the client sit in long polls.
    std::process::exit(i32::from(result.is_err()));
}
