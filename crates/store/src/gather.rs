//! Many who wait on one thread are woken at once.
//!
//! The log writer answers whoever waited for one flush, a hundred callers, in one go. Each of them to be woken by it would be
//! a system call each (a runtime is told through an eventfd, every time), and the runtime would look at them one by one with
//! everything else in between: a gRPC server wrote each response by itself. So the log writer puts their wakers into the
//! [`Mailbox`] of their thread, and wakes the one task there that wakes all of them: which costs no system call, and what they
//! answer goes out together.
//!
//! Whoever wakes many does so within [`together`]: each thread is told once, when all are in its mailbox.
//!
//! A mailbox belongs to a runtime and a thread, and comes into being with the first that waits. Wakers are put into it by any
//! thread; its task ends with its runtime, after which everybody is woken directly.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::Mutex;
use tokio::runtime::{Handle, Id};

thread_local! {
    static MAILBOX: RefCell<Option<Arc<Mailbox>>> = const { RefCell::new(None) };
    /// Whether this thread wakes many just now.
    static IS_WAKING: Cell<bool> = const { Cell::new(false) };
    /// Whom it has to wake in the end.
    static POSTMEN: RefCell<Vec<Waker>> = const { RefCell::new(Vec::new()) };
}

/// Runs `wake`, which wakes many; their threads are told when it is done.
pub(crate) fn together(wake: impl FnOnce()) {
    IS_WAKING.set(true);
    wake();
    IS_WAKING.set(false);
    let mut postmen = POSTMEN.take();
    postmen.drain(..).for_each(Waker::wake);
    // Keeps its memory.
    POSTMEN.set(postmen);
}

/// A future that is woken together with others of its thread: for what another thread makes ready, many at a time. Costs an
/// allocation; outside a runtime it is the future itself.
#[derive(Debug)]
pub struct Gathered<F> {
    future: F,
    /// Who polled last, and the waker that stands for it.
    waker: Option<(Waker, Waker)>,
}

impl<F> Gathered<F> {
    /// Woken with others from now on.
    pub fn new(future: F) -> Self {
        Self { future, waker: None }
    }

    pub(crate) fn get_mut(&mut self) -> &mut F {
        &mut self.future
    }

    pub(crate) fn into_inner(self) -> F {
        self.future
    }
}

impl<F: Future + Unpin> Future for Gathered<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Self { future, waker } = &mut *self;
        let task = context.waker();
        if !waker.as_ref().is_some_and(|(known, _)| known.will_wake(task)) {
            let gathered = Mailbox::here().map(|mailbox| Gathering { mailbox, task: task.clone() });
            let gathered = gathered.map_or_else(|| task.clone(), |gathering| Arc::new(gathering).into());
            *waker = Some((task.clone(), gathered));
        }
        let waker = waker.as_ref().map_or(task, |(_, gathered)| gathered);
        Pin::new(future).poll(&mut Context::from_waker(waker))
    }
}

/// Wakes a task by way of the mailbox of its thread.
struct Gathering {
    mailbox: Arc<Mailbox>,
    task: Waker,
}

impl Wake for Gathering {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.mailbox.wake(self.task.clone());
    }
}

/// Who is to be woken on a thread.
#[derive(Debug)]
struct Mailbox {
    runtime: Id,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    woken: Vec<Waker>,
    /// The task that wakes them; there while it sleeps. Invariant: then `woken` is empty.
    postman: Option<Waker>,
    /// The runtime has ended, or is about to.
    is_closed: bool,
}

impl Mailbox {
    /// That of this thread in the runtime that it works for now.
    fn here() -> Option<Arc<Self>> {
        let runtime = Handle::try_current().ok()?;
        MAILBOX.with_borrow_mut(|slot| {
            let usable =
                |mailbox: &&Arc<Self>| mailbox.runtime == runtime.id() && !mailbox.state.lock().is_closed;
            if let Some(mailbox) = slot.as_ref().filter(usable) {
                return Some(mailbox.clone());
            }
            let mailbox = Arc::new(Self { runtime: runtime.id(), state: Mutex::default() });
            runtime.spawn(Postman { mailbox: mailbox.clone(), round: Vec::new() });
            *slot = Some(mailbox.clone());
            Some(mailbox)
        })
    }

    fn wake(&self, task: Waker) {
        let mut state = self.state.lock();
        if state.is_closed {
            drop(state);
            return task.wake();
        }
        state.woken.push(task);
        let postman = state.postman.take();
        drop(state);
        match postman {
            Some(postman) if IS_WAKING.get() => POSTMEN.with_borrow_mut(|postmen| postmen.push(postman)),
            Some(postman) => postman.wake(),
            None => {}
        }
    }
}

/// The task of a mailbox.
struct Postman {
    mailbox: Arc<Mailbox>,
    /// Keeps its memory.
    round: Vec<Waker>,
}

impl Future for Postman {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Self { mailbox, round } = &mut *self;
        {
            let mut state = mailbox.state.lock();
            if state.woken.is_empty() {
                state.postman = Some(context.waker().clone());
                return Poll::Pending;
            }
            std::mem::swap(&mut state.woken, round);
        }
        round.drain(..).for_each(Waker::wake);
        // Behind those who were just woken: meanwhile more may have come together.
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Drop for Postman {
    fn drop(&mut self) {
        let woken = {
            let mut state = self.mailbox.state.lock();
            state.is_closed = true;
            std::mem::take(&mut state.woken)
        };
        woken.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::{Duration, Instant};

    use tokio::runtime::{Builder, Runtime};
    use tokio::sync::oneshot;

    use super::*;

    fn runtime() -> Runtime {
        Builder::new_current_thread().enable_all().build().unwrap()
    }

    const SOON: Duration = Duration::from_secs(5);

    #[test]
    fn those_who_were_answered_together_run_before_what_they_wake() {
        let log = Arc::new(Mutex::new(Vec::new()));
        runtime().block_on(async {
            let notify = Arc::new(tokio::sync::Notify::new());
            let (mut senders, mut tasks) = (Vec::new(), Vec::new());
            for number in 0..3 {
                let (sender, answer) = oneshot::channel::<()>();
                senders.push(sender);
                let (log, notify) = (log.clone(), notify.clone());
                tasks.push(tokio::spawn(async move {
                    Gathered::new(answer).await.unwrap();
                    log.lock().push(number.to_string());
                    notify.notify_one();
                }));
            }
            let writes = log.clone();
            let connection = tokio::spawn(async move {
                notify.notified().await;
                writes.lock().push("written".into());
            });
            // All of them wait.
            tokio::task::yield_now().await;
            // From another thread, while this one is busy.
            std::thread::spawn(|| senders.into_iter().for_each(|sender| sender.send(()).unwrap()))
                .join()
                .unwrap();
            for task in tasks {
                tokio::time::timeout(SOON, task).await.unwrap().unwrap();
            }
            tokio::time::timeout(SOON, connection).await.unwrap().unwrap();
        });
        assert_eq!(*log.lock(), ["0", "1", "2", "written"]);
    }

    /// Fails where it is only looked at because its time is over.
    async fn is_answered_soon() {
        let began = Instant::now();
        tokio::time::timeout(SOON, Gathered::new(answered_soon())).await.unwrap().unwrap();
        assert!(began.elapsed() < SOON, "it was not woken");
    }

    #[test]
    fn a_thread_that_works_for_another_runtime_has_another_mailbox() {
        let first = runtime();
        first.block_on(is_answered_soon());
        // The first one still lives, and nobody runs its tasks.
        runtime().block_on(is_answered_soon());
        drop(first);
        // May have the number of one that ended.
        (0..3).for_each(|_| runtime().block_on(is_answered_soon()));
    }

    struct IsWoken(AtomicBool);

    impl Wake for IsWoken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    #[test]
    fn what_is_answered_when_the_runtime_has_ended_is_not_lost() {
        let runtime = runtime();
        let (sender, answer) = oneshot::channel::<()>();
        let mut gathered = Gathered::new(answer);
        let is_woken = Arc::new(IsWoken(AtomicBool::new(false)));
        runtime.block_on(async {
            let waker = is_woken.clone().into();
            assert!(Pin::new(&mut gathered).poll(&mut Context::from_waker(&waker)).is_pending());
            // Its postman is at work.
            tokio::task::yield_now().await;
        });
        drop(runtime);
        sender.send(()).unwrap();
        assert!(is_woken.0.load(Ordering::SeqCst));
        // Outside a runtime it is the future itself.
        let mut context = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut gathered).poll(&mut context).is_ready());
    }

    fn answered_soon() -> oneshot::Receiver<()> {
        let (sender, answer) = oneshot::channel();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            let _ = sender.send(());
        });
        answer
    }
}
