//! The signals that end a server process. Awaited on the main thread.

use std::io;

use tokio::signal::unix::{SignalKind, signal};

/// Returns at the first SIGINT or SIGTERM. From then on a second one ends the process at once: a crash is a normal
/// event and tested more than the orderly way.
pub async fn stop() -> io::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
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
    Ok(())
}
