//! What waits for the log writer, bounded in bytes. Any thread pushes, without ever waiting; the log writer takes.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::oneshot;

use crate::error::AppendError;
use crate::record::NewRecord;
use crate::replica::RawRecords;
use crate::{Appended, Durability};

/// A batch of so many requests says that more will come at once.
const BUSY_REQUESTS: usize = 8;
/// How long the log writer looks for more after such a batch before it sleeps.
const LOOK_AGAIN: Duration = Duration::from_micros(20);

/// The result of an append, and its records: to be freed by who made them, which costs less than on another thread and
/// nothing of the log writer's time.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) result: Result<Appended, AppendError>,
    pub(crate) records: Vec<NewRecord>,
}

pub(crate) type Reply = oneshot::Sender<Answer>;

/// What the log writer is to do.
#[derive(Debug)]
pub(crate) enum Work {
    /// To append these.
    Records(Vec<NewRecord>),
    /// To append what the followed log holds. Done when it is written, or flushed if that was asked for.
    Raw { raw: RawRecords, confirmed: u64 },
    /// To follow no longer, and to begin an epoch.
    Lead { epoch: u32, mark: u64 },
}

/// A piece of work and who waits for it.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) work: Work,
    /// What it will take in the log.
    pub(crate) bytes: usize,
    pub(crate) durability: Durability,
    pub(crate) arrived: Instant,
    pub(crate) reply: Reply,
}

impl Request {
    /// Says that nothing of it was appended.
    pub(crate) fn refuse(self, error: AppendError) {
        let records = if let Work::Records(records) = self.work { records } else { Vec::new() };
        // The caller may have stopped waiting.
        let _ = self.reply.send(Answer { result: Err(error), records });
    }
}

#[derive(Debug)]
pub(crate) struct Inbox {
    limit_bytes: usize,
    state: Mutex<State>,
    pushed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Request>,
    bytes: usize,
    closed: Option<AppendError>,
    /// Something else has come about that the log writer waits for.
    nudged: bool,
    /// The last batch was of many requests.
    was_busy: bool,
}

impl State {
    /// Moves at most `batch_bytes` of what waits to `batch`, at least one request: who waits for little does not wait for
    /// the write of a large one that came later.
    fn give(&mut self, batch: &mut VecDeque<Request>, batch_bytes: usize) {
        if self.bytes <= batch_bytes && batch.is_empty() {
            // The usual case. Producers wait for this lock: both queues keep their memory and change places.
            std::mem::swap(&mut self.waiting, batch);
            self.bytes = 0;
            return;
        }
        let mut taken = 0;
        let fits = |taken: usize, request: &mut Request| taken == 0 || taken + request.bytes <= batch_bytes;
        while let Some(request) = self.waiting.pop_front_if(|request| fits(taken, request)) {
            taken += request.bytes;
            batch.push_back(request);
        }
        self.bytes -= taken;
    }
}

impl Inbox {
    pub(crate) fn new(limit_bytes: usize) -> Self {
        Self { limit_bytes, state: Mutex::default(), pushed: Condvar::new() }
    }

    pub(crate) fn push(&self, request: Request) -> Result<(), AppendError> {
        let mut state = self.state.lock();
        if let Some(error) = &state.closed {
            return Err(error.clone());
        }
        if state.bytes + request.bytes > self.limit_bytes {
            let (bytes, waiting_bytes) = (request.bytes, state.bytes);
            return Err(AppendError::Overloaded { bytes, waiting_bytes, limit_bytes: self.limit_bytes });
        }
        state.bytes += request.bytes;
        state.waiting.push_back(request);
        drop(state);
        self.pushed.notify_one();
        Ok(())
    }

    /// Lets the log writer look after what it waits for beside requests.
    pub(crate) fn nudge(&self) {
        self.state.lock().nudged = true;
        self.pushed.notify_one();
    }

    /// Waits for requests and moves at most `batch_bytes` of them, at least one, to `batch`; none if it was nudged. With 0
    /// it only waits for that. `false`: none will come.
    pub(crate) fn take(&self, batch: &mut VecDeque<Request>, batch_bytes: usize) -> bool {
        let mut state = self.state.lock();
        if state.was_busy && state.waiting.is_empty() {
            MutexGuard::unlocked(&mut state, || self.look_again());
        }
        while state.waiting.is_empty() || batch_bytes == 0 {
            if std::mem::take(&mut state.nudged) {
                return true;
            }
            if state.closed.is_some() {
                return false;
            }
            self.pushed.wait(&mut state);
        }
        state.nudged = false;
        // Whoever is about to push goes first: on busy cores one flush then serves many. On an idle machine there is
        // nobody to give way to, and this costs a microsecond.
        MutexGuard::unlocked(&mut state, std::thread::yield_now);
        state.give(batch, batch_bytes);
        state.was_busy = batch.len() >= BUSY_REQUESTS;
        true
    }

    /// Waits a moment without going to sleep: those who were just answered come back soon, and to be woken costs both
    /// sides more than this.
    fn look_again(&self) {
        let start = Instant::now();
        while start.elapsed() < LOOK_AGAIN && self.state.lock().waiting.is_empty() {
            std::thread::yield_now();
        }
    }

    /// Refuses what comes from now on; the log writer still gets what waits.
    pub(crate) fn close(&self) {
        self.state.lock().closed.get_or_insert(AppendError::Closed);
        self.pushed.notify_one();
    }

    /// Refuses what waits, with the error of what comes from now on. The log writer has ended.
    pub(crate) fn refuse_rest(&self) {
        let error = self.state.lock().closed.clone().unwrap_or(AppendError::Closed);
        self.fail(&error);
    }

    /// Refuses what comes from now on and what waits.
    pub(crate) fn fail(&self, error: &AppendError) {
        let refused = {
            let mut state = self.state.lock();
            state.closed = Some(error.clone());
            state.bytes = 0;
            std::mem::take(&mut state.waiting)
        };
        self.pushed.notify_one();
        for request in refused {
            request.refuse(error.clone());
        }
    }
}
