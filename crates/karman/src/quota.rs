//! What `karman topic` and `karman user` have in common about quotas.

use clap::Args;
use karman_remoting::quota::RATE_MAX;

use crate::output::grouped;

/// How much may be sent in a second.
#[derive(Args, Debug)]
pub(crate) struct QuotaArgs {
    /// Messages that may be sent in a second, on each node; 0: as many as come
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(0..=RATE_MAX))]
    max_messages_per_second: Option<u64>,
    /// Bytes of messages that may be sent in a second, on each node; 0: as many as come
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(0..=RATE_MAX))]
    max_bytes_per_second: Option<u64>,
}

impl QuotaArgs {
    /// What was typed takes the place of what was.
    pub(crate) fn set(&self, messages: &mut u64, bytes: &mut u64) {
        *messages = self.max_messages_per_second.unwrap_or(*messages);
        *bytes = self.max_bytes_per_second.unwrap_or(*bytes);
    }

    /// Messages and bytes, where they were typed.
    pub(crate) fn typed(&self) -> (Option<u64>, Option<u64>) {
        (self.max_messages_per_second, self.max_bytes_per_second)
    }
}

/// For programs: 0 is none.
pub(crate) fn shown(quota: u64) -> Option<u64> {
    Some(quota).filter(|quota| *quota > 0)
}

/// For people; `None` when nothing is limited.
pub(crate) fn rates_in_words(messages: Option<u64>, bytes: Option<u64>) -> Option<String> {
    let messages = messages.map(|messages| format!("{} messages/s", grouped(messages)));
    let bytes = bytes.map(|bytes| format!("{} bytes/s", grouped(bytes)));
    let both: Vec<String> = messages.into_iter().chain(bytes).collect();
    (!both.is_empty()).then(|| both.join(" and "))
}
