//! Asking before something is changed that nothing brings back.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use crate::cli::Incomplete;

/// Whether to go on: `yes` was given, or somebody at the terminal says so. A script must give it.
pub(crate) fn confirm(question: &str, yes: bool) -> anyhow::Result<bool> {
    if yes {
        return Ok(true);
    }
    if !io::stdin().is_terminal() {
        let how = "nothing was changed; give --yes to do it, or --dry-run to see only what it would do";
        return Err(Incomplete(how.to_owned()).into());
    }
    let mut terminal = io::stderr().lock();
    write!(terminal, "{question} [y/N] ")?;
    terminal.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    let agreed = matches!(answer.trim(), "y" | "Y" | "yes");
    if !agreed {
        eprintln!("karman: nothing was changed");
    }
    Ok(agreed)
}
