//! Message ids of the form all official clients share: 34 upper-case hex digits.
//!
//! `01`, six bytes that tell machines apart, two of the process id, four of seconds since 2021, four of a sequence.
//! The official clients take the MAC address for the six bytes; ours are random, which is as unique and tells nobody
//! which machine it was. Any thread.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// 2021-01-01T00:00:00Z in seconds since 1970.
const EPOCH_SECONDS: u64 = 1_609_459_200;

#[derive(Debug)]
pub(crate) struct MessageIds {
    /// Six bytes.
    origin: u64,
    process: u16,
    sequence: AtomicU32,
}

impl MessageIds {
    pub(crate) fn new() -> Self {
        let process = (std::process::id() & 0xffff) as u16;
        Self { origin: rand::random::<u64>() >> 16, process, sequence: AtomicU32::new(rand::random()) }
    }

    /// The id of a message that is made at `now`.
    pub(crate) fn next(&self, now: SystemTime) -> String {
        self.at(now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
    }

    fn at(&self, now_seconds: u64) -> String {
        // Wraps after 136 years, as in every client.
        let seconds = now_seconds.saturating_sub(EPOCH_SECONDS) & 0xffff_ffff;
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        format!("01{:012X}{:04X}{seconds:08X}{sequence:08X}", self.origin, self.process)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_the_form_the_contract_describes() {
        let ids = MessageIds { origin: 0x0102_0304_05ab, process: 0x12, sequence: AtomicU32::new(u32::MAX) };
        assert_eq!(ids.at(EPOCH_SECONDS + 16), "010102030405AB001200000010FFFFFFFF");
        assert_eq!(ids.at(EPOCH_SECONDS + 16), "010102030405AB00120000001000000000");
        assert_eq!(MessageIds::new().next(SystemTime::now()).len(), 34);
    }
}
