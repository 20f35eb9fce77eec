//! What the driver says: one JSON object per line on stdout. And when it ends: when it is told to stop.

use std::future::Future;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rocketmq::error::ClientError;
use serde_json::{json, Value};
use tokio::sync::watch;

static STOPPED: LazyLock<watch::Sender<bool>> = LazyLock::new(|| watch::Sender::new(false));

pub fn stop() {
    STOPPED.send_replace(true);
}

pub fn is_stopped() -> bool {
    *STOPPED.borrow()
}

pub async fn wait_stopped() {
    // The sender lives as long as the process.
    let _ = STOPPED.subscribe().wait_for(|stopped| *stopped).await;
}

/// True when the driver was stopped meanwhile.
pub async fn pause(duration: Duration) -> bool {
    if !duration.is_zero() {
        let _ = tokio::time::timeout(duration, wait_stopped()).await;
    }
    is_stopped()
}

pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

pub fn emit(event: &str, fields: Value) {
    println!("{}", with(json!({"event": event, "at": now()}), fields));
}

/// Both objects in one.
pub fn with(mut first: Value, second: Value) -> Value {
    if let (Value::Object(first), Value::Object(second)) = (&mut first, second) {
        first.extend(second);
    }
    first
}

/// What is to be said of an error. The client keeps the server's code by its name only, in the text.
pub fn failure(message: &str) -> Value {
    json!({"code": null, "message": message, "error": "ClientError"})
}

/// Waits for a call of the client, which panics where it cannot reach a broker: then that is its error.
pub async fn guarded<T: Send + 'static>(
    call: impl Future<Output = Result<T, ClientError>> + Send + 'static,
) -> Result<T, String> {
    match tokio::spawn(call).await {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(panic) => Err(format!("the client gave up: {panic}")),
    }
}

/// Stops the driver when so many messages are done; never when it begins at 0.
pub struct Countdown(AtomicI64);

impl Countdown {
    pub fn new(count: u64) -> Countdown {
        Countdown(AtomicI64::new(i64::try_from(count).unwrap_or(i64::MAX)))
    }

    pub fn one(&self) {
        if self.0.fetch_sub(1, Ordering::Relaxed) == 1 {
            stop();
        }
    }
}
