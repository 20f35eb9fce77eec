//! Writes the history. Shared by all tasks; a line is written under a lock that is held for that long.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use karman_checker::event::{Event, Outcome};
use karman_remoting::proto::v2;

/// See the module's comment.
#[derive(Debug)]
pub(super) struct Recorder {
    file: Mutex<BufWriter<File>>,
    sent: AtomicU64,
    delivered: AtomicU64,
    /// When something was delivered last.
    last_delivery_ms: AtomicU64,
}

impl Recorder {
    /// A history in a new file.
    pub(super) fn create(path: &Path) -> std::io::Result<Self> {
        let file = Mutex::new(BufWriter::with_capacity(1 << 20, File::create(path)?));
        let zero = AtomicU64::default;
        Ok(Self { file, sent: zero(), delivered: zero(), last_delivery_ms: zero() })
    }

    /// One line.
    pub(super) fn line(&self, event: &Event<'_>) {
        match event {
            Event::Send(send) if send.out == Outcome::Ok => drop(self.sent.fetch_add(1, Ordering::Relaxed)),
            Event::Deliver(deliver) => {
                self.delivered.fetch_add(1, Ordering::Relaxed);
                self.last_delivery_ms.fetch_max(deliver.t, Ordering::Relaxed);
            }
            Event::Letter(letter) => drop(self.last_delivery_ms.fetch_max(letter.t, Ordering::Relaxed)),
            _ => {}
        }
        let mut line = serde_json::to_vec(event).expect("an event is plain data");
        line.push(b'\n');
        self.file.lock().unwrap().write_all(&line).expect("the history can be written");
    }

    /// Sends answered OK, deliveries, and when the last of those was.
    pub(super) fn counts(&self) -> (u64, u64, u64) {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (read(&self.sent), read(&self.delivered), read(&self.last_delivery_ms))
    }

    /// Everything is in the file.
    pub(super) fn flush(&self) {
        self.file.lock().unwrap().flush().expect("the history can be written");
    }
}

/// What an answer says: of a call without an answer, and of an error of the server, nobody knows.
pub(super) fn outcome(status: Option<&v2::Status>) -> Outcome {
    match status.map_or(0, |status| status.code) {
        code if code == v2::Code::Ok as i32 => Outcome::Ok,
        code if (40_000..50_000).contains(&code) && code != v2::Code::RequestTimeout as i32 => {
            Outcome::Refused
        }
        _ => Outcome::Unknown,
    }
}
