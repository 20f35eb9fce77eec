//! How far something long has come: one line on stderr that is written over, on terminals only.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use crate::output::bytes;

const EVERY: Duration = Duration::from_millis(100);
const BAR_COLUMNS: usize = 30;

#[derive(Debug)]
pub(super) struct ProgressBar {
    shown: bool,
    due: Option<Instant>,
}

impl ProgressBar {
    pub(super) fn new() -> Self {
        Self { shown: false, due: io::stderr().is_terminal().then(Instant::now) }
    }

    pub(super) fn show(&mut self, done: u64, total: u64) {
        if self.due.is_some_and(|due| Instant::now() >= due) {
            self.due = Some(Instant::now() + EVERY);
            self.shown = true;
            // A line that cannot be shown is not worth an end.
            let _ = write!(io::stderr(), "\r{}", text(done, total));
        }
    }
}

impl Drop for ProgressBar {
    fn drop(&mut self) {
        if self.shown {
            // Leaves an empty line to write on.
            let _ = write!(io::stderr(), "\r{:79}\r", "");
        }
    }
}

fn text(done: u64, total: u64) -> String {
    let share = if total == 0 { 1.0 } else { (done as f64 / total as f64).min(1.0) };
    let filled = (share * BAR_COLUMNS as f64) as usize;
    let bar = format!("{}{}", "#".repeat(filled), "-".repeat(BAR_COLUMNS - filled));
    format!("[{bar}] {:3.0} %  {:>10} of {:>10}", share * 100.0, bytes(done), bytes(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_fits_a_line_and_fills_up() {
        assert_eq!(text(0, 0), text(1, 1).replace("1 B", "0 B"));
        assert!(text(512, 1024).starts_with("[###############---------------]  50 %"));
        for (done, total) in [(0, u64::MAX), (u64::MAX, u64::MAX), (7, 3)] {
            assert!(text(done, total).len() < 79, "{}", text(done, total));
        }
    }
}
