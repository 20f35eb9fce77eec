//! Connections that have not shown yet that they speak HTTP/2: so many, and when another comes, the one that has taken longest goes.
//!
//! Whoever means well is through in a few round trips. Making the next one wait instead, as this server once did, let a thousand
//! connections that said nothing keep everybody out for the whole timeout, over and over. Shared by the data threads.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// See the module's comment.
#[derive(Debug)]
pub(super) struct Pending {
    max: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// In the order they came; cancelled: it is given up.
    pending: BTreeMap<u64, CancellationToken>,
}

/// One of them; it is over when this is dropped.
#[derive(Debug)]
pub(super) struct Handshake {
    number: u64,
    all: Arc<Pending>,
    given_up: CancellationToken,
}

impl Pending {
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, state: Mutex::default() })
    }

    /// One more; what it does ends with `stop`, or when it is given up.
    pub(super) fn begin(self: &Arc<Self>, stop: &CancellationToken) -> Handshake {
        let given_up = stop.child_token();
        let mut state = self.state.lock();
        let number = state.next;
        state.next += 1;
        state.pending.insert(number, given_up.clone());
        if state.pending.len() > self.max
            && let Some((_, oldest)) = state.pending.pop_first()
        {
            oldest.cancel();
        }
        Handshake { number, all: self.clone(), given_up }
    }
}

impl Handshake {
    /// Its output; `None` when it was given up before.
    pub(super) async fn run<T>(&self, handshake: impl Future<Output = T>) -> Option<T> {
        self.given_up.run_until_cancelled(handshake).await
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.all.state.lock().pending.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_goes_and_who_is_done_makes_room() {
        let (pending, stop) = (Pending::new(2), CancellationToken::new());
        let [one, two] = [(); 2].map(|()| pending.begin(&stop));
        drop(two);
        let three = pending.begin(&stop);
        assert_eq!(one.run(async { 1 }).await, Some(1));
        let four = pending.begin(&stop);
        assert_eq!(one.run(std::future::pending::<()>()).await, None);
        assert_eq!((three.run(async { 3 }).await, four.run(async { 4 }).await), (Some(3), Some(4)));
        stop.cancel();
        assert_eq!(four.run(std::future::pending::<()>()).await, None);
        drop((one, three, four));
        assert!(pending.state.lock().pending.is_empty());
    }
}
