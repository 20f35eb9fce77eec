//! How far something long has come: one line on stderr that is written over, on terminals only.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_millis(100);
const BAR_COLUMNS: usize = 30;

#[derive(Debug)]
pub(crate) struct ProgressBar {
    shown: bool,
    due: Option<Instant>,
    /// How a count is written.
    format: fn(u64) -> String,
}

impl ProgressBar {
    /// `format`: how a count is written, in at most 14 columns.
    pub(crate) fn new(format: fn(u64) -> String) -> Self {
        Self { shown: false, due: io::stderr().is_terminal().then(Instant::now), format }
    }

    pub(crate) fn show(&mut self, done: u64, total: u64) {
        if self.due.is_some_and(|due| Instant::now() >= due) {
            self.due = Some(Instant::now() + EVERY);
            self.shown = true;
            // A line that cannot be shown is not worth an end.
            let _ = write!(io::stderr(), "\r{}", text(done, total, self.format));
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

fn text(done: u64, total: u64, format: fn(u64) -> String) -> String {
    let share = if total == 0 { 1.0 } else { (done as f64 / total as f64).min(1.0) };
    let filled = (share * BAR_COLUMNS as f64) as usize;
    let bar = format!("{}{}", "#".repeat(filled), "-".repeat(BAR_COLUMNS - filled));
    format!("[{bar}] {:3.0} %  {:>10} of {:>10}", share * 100.0, format(done), format(total))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{bytes, grouped};

    #[test]
    fn the_bar_fits_a_line_and_fills_up() {
        assert_eq!(text(0, 0, bytes), text(1, 1, bytes).replace("1 B", "0 B"));
        assert!(text(512, 1024, bytes).starts_with("[###############---------------]  50 %"));
        for (done, total) in [(0, u64::MAX), (u64::MAX, u64::MAX), (7, 3)] {
            assert!(text(done, total, bytes).len() < 79, "{}", text(done, total, bytes));
        }
        assert!(text(1 << 40, 1 << 40, grouped).len() < 79);
    }
}
