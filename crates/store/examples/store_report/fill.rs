//! Fills stores, as fast as they take it.

use std::collections::VecDeque;

use bytes::Bytes;
use karman_store::{Append, Durability, QueueNumber, Store};

use crate::{Outcome, message};

/// Appends that may be under way at a time.
const UNDER_WAY: usize = 32;
/// Messages of one append.
pub(crate) const BATCH: u64 = 10;

/// Appends batches until it is dropped or told to end.
pub(crate) struct Filler<'a> {
    store: &'a Store,
    payload: Bytes,
    messages: u64,
    under_way: VecDeque<Append>,
}

impl<'a> Filler<'a> {
    pub(crate) fn new(store: &'a Store, size_bytes: usize) -> Self {
        Self { store, payload: Bytes::from(vec![b'f'; size_bytes]), messages: 0, under_way: VecDeque::new() }
    }

    pub(crate) fn batch(&mut self, queue: QueueNumber) -> Outcome<()> {
        let numbers = self.messages..self.messages + BATCH;
        self.messages = numbers.end;
        let messages = numbers.map(|number| message(queue, number, self.payload.clone())).collect();
        self.under_way.push_back(self.store.append(messages, Durability::Memory)?);
        if self.under_way.len() >= UNDER_WAY {
            self.under_way.drain(..UNDER_WAY / 2).try_for_each(|append| append.wait().map(|_| ()))?;
        }
        Ok(())
    }

    /// Waits for what is under way; how many messages there are.
    pub(crate) fn end(self) -> Outcome<u64> {
        self.under_way.into_iter().try_for_each(|append| append.wait().map(|_| ()))?;
        Ok(self.messages)
    }
}
