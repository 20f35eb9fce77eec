//! Opens the connection of one channel, and refuses at once while the next attempt is not due.
//!
//! tonic reconnects whenever a call comes; with a dead peer each call in turn would wait for a connect timeout of its
//! own, and a peer that closes at once would be hammered. Runs on the runtime of its channel.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::transport::Uri;
use tower::Service;

use super::CONNECT_TIMEOUT;
use crate::between::Between;
use crate::transport::Transport;

const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(5);
/// An attempt this long after the previous one was due begins the row anew: a connection held in between.
const NEW_ROW_AFTER: Duration = Duration::from_secs(10);

pub(super) struct Connector {
    between: Between,
    address: Arc<str>,
    backoff: Arc<Mutex<Backoff>>,
}

/// Why no connection was opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("connect to {address}: {source}")]
    Failed { address: Arc<str>, source: io::Error },
    #[error("connect to {address}: not tried again for {wait_ms} ms")]
    TooEarly { address: Arc<str>, wait_ms: u128 },
}

impl Connector {
    pub(super) fn new(address: &str, between: Between) -> Self {
        let backoff = Backoff { attempts: 0, due: Instant::now() };
        Self { between, address: address.into(), backoff: Arc::new(Mutex::new(backoff)) }
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Transport>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let (between, address, backoff) = (self.between.clone(), self.address.clone(), self.backoff.clone());
        Box::pin(async move {
            let begun = backoff.lock().begin(Instant::now(), rand::random_range(0.5..1.0));
            if let Err(wait) = begun {
                return Err(ConnectError::TooEarly { address, wait_ms: wait.as_millis() });
            }
            let connected = tokio::time::timeout(CONNECT_TIMEOUT, between.dial(&address)).await;
            match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(stream) => Ok(TokioIo::new(stream)),
                Err(source) => {
                    backoff.lock().failed(Instant::now(), rand::random_range(0.5..1.0));
                    Err(ConnectError::Failed { address, source })
                }
            }
        })
    }
}

/// When the next attempt is due. Pure: time and `jitter` (0 to 1) are arguments.
///
/// An attempt that succeeds delays the next one too: a peer may take connections and close them.
#[derive(Debug)]
struct Backoff {
    attempts: u32,
    due: Instant,
}

impl Backoff {
    /// Begins an attempt, or says how long to wait for the next one.
    fn begin(&mut self, now: Instant, jitter: f64) -> Result<(), Duration> {
        if now < self.due {
            return Err(self.due - now);
        }
        if now - self.due > NEW_ROW_AFTER {
            self.attempts = 0;
        }
        self.due = now + self.delay(jitter);
        self.attempts = self.attempts.saturating_add(1);
        Ok(())
    }

    /// An attempt failed: the delay counts from its end, it may have taken longer than the delay.
    fn failed(&mut self, now: Instant, jitter: f64) {
        self.attempts = self.attempts.saturating_sub(1);
        self.due = now + self.delay(jitter);
        self.attempts += 1;
    }

    fn delay(&self, jitter: f64) -> Duration {
        FIRST_DELAY.saturating_mul(1 << self.attempts.min(10)).min(LONGEST_DELAY).mul_f64(jitter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_spaced_out_more_and_more_and_start_over_after_a_rest() {
        let start = Instant::now();
        let mut backoff = Backoff { attempts: 0, due: start };
        let mut now = start;
        let mut delays = Vec::new();
        for _ in 0..8 {
            assert_eq!(backoff.begin(now, 1.0), Ok(()));
            backoff.failed(now, 1.0);
            let wait = backoff.begin(now, 1.0).expect_err("too early");
            delays.push(wait.as_millis());
            now += wait;
        }
        assert_eq!(delays, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        now += NEW_ROW_AFTER + Duration::from_millis(1);
        assert_eq!(backoff.begin(now, 1.0), Ok(()));
        assert_eq!(backoff.begin(now, 1.0), Err(FIRST_DELAY));
    }

    #[test]
    fn a_peer_that_accepts_and_closes_is_not_hammered() {
        let start = Instant::now();
        let mut backoff = Backoff { attempts: 0, due: start };
        assert_eq!(backoff.begin(start, 1.0), Ok(()));
        assert_eq!(backoff.begin(start + Duration::from_millis(99), 1.0), Err(Duration::from_millis(1)));
        assert_eq!(backoff.begin(start + FIRST_DELAY, 1.0), Ok(()));
        assert_eq!(backoff.begin(start + FIRST_DELAY, 1.0), Err(FIRST_DELAY * 2));
    }
}
