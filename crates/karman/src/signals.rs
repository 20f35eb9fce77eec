//! Ctrl-C and SIGTERM, for commands that can end early.

use karman_remoting::signals;
use tokio_util::sync::CancellationToken;

/// A token that the first signal cancels; the second ends the process at once.
pub(crate) fn stop_on_signals() -> CancellationToken {
    let stop = CancellationToken::new();
    let signalled = stop.clone();
    // Lives as long as the runtime, which is as long as the command.
    match signals::stop() {
        Ok(stopped) => drop(tokio::spawn(async move {
            stopped.await;
            signalled.cancel();
        })),
        Err(error) => eprintln!("karman: signals are not heeded: {error}"),
    }
    stop
}
