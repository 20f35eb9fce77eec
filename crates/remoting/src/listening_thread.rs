//! A named thread that runs its own `current_thread` runtime and has a listener. Data threads and the probe are such.

use std::io;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Some of tokio's own work blocks (name resolution); services should not.
const MAX_BLOCKING_THREADS: usize = 4;
/// For blocking work that is still running when everything else has ended.
const RUNTIME_SHUTDOWN: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(crate) struct ListeningThread {
    handle: JoinHandle<()>,
    /// Resolves, by the sender's drop, as the thread's last act.
    ended: oneshot::Receiver<()>,
}

impl ListeningThread {
    /// Runs `main` on a new thread, until it ends; what it spawned and left is dropped then.
    ///
    /// The runtime is made on the thread itself: on failure a caller that runs one could not drop it.
    pub(crate) fn start<F: Future<Output = ()>>(
        name: String,
        listener: std::net::TcpListener,
        main: impl FnOnce(TcpListener) -> F + Send + 'static,
    ) -> io::Result<Self> {
        let (report, started) = std::sync::mpsc::channel();
        let (ending, ended) = oneshot::channel();
        let handle = std::thread::Builder::new().name(name).spawn(move || {
            match prepare(listener) {
                Ok((runtime, listener)) => {
                    report.send(Ok(())).expect("the starter waits for it");
                    runtime.block_on(main(listener));
                    runtime.shutdown_timeout(RUNTIME_SHUTDOWN);
                }
                Err(error) => report.send(Err(error)).expect("the starter waits for it"),
            }
            drop(ending);
        })?;
        started.recv().expect("the thread reports before it does anything else")?;
        Ok(Self { handle, ended })
    }

    /// Waits for the end of `main`, which has been told to end. Blocks.
    pub(crate) fn join_blocking(self) {
        if self.handle.join().is_err() {
            tracing::error!("a thread with a listener panicked");
        }
    }

    /// Waits for the end of `main`. `None` when the deadline came first; the thread is left behind then.
    pub(crate) async fn join(self, deadline: Instant) -> Option<std::thread::Result<()>> {
        // An error is what a dropped sender gives.
        let _ = tokio::time::timeout_at(deadline, self.ended).await.ok()?;
        Some(self.handle.join())
    }
}

fn prepare(listener: std::net::TcpListener) -> io::Result<(Runtime, TcpListener)> {
    listener.set_nonblocking(true)?;
    let runtime =
        Builder::new_current_thread().enable_all().max_blocking_threads(MAX_BLOCKING_THREADS).build()?;
    let listener = runtime.block_on(async { TcpListener::from_std(listener) })?;
    Ok((runtime, listener))
}
