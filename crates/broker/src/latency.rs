//! How long this broker took for the calls of clients, by call and answer: `rocketmq_rpc_latency`. Any thread; a call that went well
//! costs two atomics and two looks at the clock.

use std::collections::BTreeMap;
use std::time::Instant;

use karman_remoting::proto::v2::Code;
use parking_lot::Mutex;

use crate::spread::{Scale, Spread};

/// Milliseconds; those of RocketMQ.
pub static MILLIS: Scale = Scale { bounds: &[1, 3, 5, 7, 10, 100, 1000, 2000, 3000], unit: 1000 };

/// Names and values.
pub type CallLabels = [(&'static str, &'static str); 4];

/// A call that the own broker answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the calls of the public protocol")]
pub enum Call {
    QueryRoute,
    SendMessage,
    ReceiveMessage,
    AckMessage,
    ChangeInvisibleDuration,
    ForwardMessageToDeadLetterQueue,
    PullMessage,
    UpdateOffset,
    GetOffset,
    QueryOffset,
    EndTransaction,
    RecallMessage,
    SyncLiteSubscription,
}

impl Call {
    const ALL: [(Self, &'static str); 13] = [
        (Self::QueryRoute, "query_route"),
        (Self::SendMessage, "send_message"),
        (Self::ReceiveMessage, "receive_message"),
        (Self::AckMessage, "ack_message"),
        (Self::ChangeInvisibleDuration, "change_invisible_duration"),
        (Self::ForwardMessageToDeadLetterQueue, "forward_message_to_dead_letter_queue"),
        (Self::PullMessage, "pull_message"),
        (Self::UpdateOffset, "update_offset"),
        (Self::GetOffset, "get_offset"),
        (Self::QueryOffset, "query_offset"),
        (Self::EndTransaction, "end_transaction"),
        (Self::RecallMessage, "recall_message"),
        (Self::SyncLiteSubscription, "sync_lite_subscription"),
    ];

    /// It may wait until there is something to answer.
    fn is_long_polling(self) -> bool {
        matches!(self, Self::ReceiveMessage | Self::PullMessage)
    }
}

/// See the module's comment.
#[derive(Debug)]
pub struct Latencies {
    /// Of those that were answered OK, by call.
    well: [Spread; Call::ALL.len()],
    /// Of the others.
    other: Mutex<BTreeMap<(Call, Code), Spread>>,
}

impl Default for Latencies {
    fn default() -> Self {
        Self { well: std::array::from_fn(|_| Spread::new(&MILLIS)), other: Mutex::default() }
    }
}

impl Latencies {
    /// A call that `began` then is answered now.
    pub fn add(&self, call: Call, code: Code, began: Instant) {
        let micros = began.elapsed().as_micros() as u64;
        match code {
            Code::Ok => self.well[call as usize].add(micros, 1),
            code => {
                let mut other = self.other.lock();
                other.entry((call, code)).or_insert_with(|| Spread::new(&MILLIS)).add(micros, 1);
            }
        }
    }

    /// Each call and answer, with the labels of RocketMQ.
    pub fn for_each(&self, mut show: impl FnMut(CallLabels, &Spread)) {
        let labels = |call: Call, code: Code| {
            let waits = if call.is_long_polling() { "true" } else { "false" };
            [
                ("protocol_type", "grpc"),
                ("request_code", Call::ALL[call as usize].1),
                ("response_code", code.as_str_name()),
                ("is_long_polling", waits),
            ]
        };
        for ((call, _), took) in Call::ALL.into_iter().zip(&self.well) {
            show(labels(call, Code::Ok), took);
        }
        for (&(call, code), took) in &*self.other.lock() {
            show(labels(call, code), took);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_has_its_place_and_name() {
        for (at, (call, name)) in Call::ALL.into_iter().enumerate() {
            assert_eq!(call as usize, at);
            let words: Vec<_> = format!("{call:?}")
                .chars()
                .flat_map(|c| c.is_uppercase().then_some('_').into_iter().chain(c.to_lowercase()))
                .collect();
            assert_eq!(words.into_iter().skip(1).collect::<String>(), name);
        }
    }

    #[test]
    fn a_refusal_is_counted_by_its_code() {
        let latencies = Latencies::default();
        latencies.add(Call::SendMessage, Code::Ok, Instant::now());
        latencies.add(Call::SendMessage, Code::TopicNotFound, Instant::now());
        let mut all = Vec::new();
        latencies.for_each(|labels, _| all.push(labels));
        assert_eq!(all.len(), Call::ALL.len() + 1);
        let refused = all[Call::ALL.len()];
        assert_eq!(refused[1..3], [("request_code", "send_message"), ("response_code", "TOPIC_NOT_FOUND")]);
    }
}
