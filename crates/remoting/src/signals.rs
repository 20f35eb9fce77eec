//! The signals that end a server process. Awaited on the main thread.

use std::io;

use tokio::signal::unix::{SignalKind, signal};

/// Takes SIGINT and SIGTERM from now on; to be called on a runtime, before others are told that this process is ready. What is
/// returned ends at the first of them. From then on a second one ends the process at once: a crash is a normal event and
/// tested more than the orderly way.
pub fn stop() -> io::Result<impl Future<Output = ()>> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tokio::spawn(async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            std::process::exit(130);
        });
    })
}
