//! `karman completions` and `karman man`: the command line as shells and `man` read it. No node is asked; main thread.

use std::io::{self, Write as _};
use std::path::Path;

use anyhow::Context as _;
use clap::Command;
use clap_complete::Shell;

pub(crate) const COMPLETIONS_HELP: &str = "\
Example:
  karman completions bash > /usr/share/bash-completion/completions/karman
  karman completions zsh > /usr/share/zsh/site-functions/_karman
  karman completions fish > /usr/share/fish/vendor_completions.d/karman.fish
  source <(karman completions bash)                  # only in this shell";

pub(crate) const MAN_HELP: &str = "\
Pages that are there already are written anew.

Example:
  karman man /usr/share/man/man1
  karman man pages && man -l pages/karman-topic-create.1";

pub(crate) fn completions(shell: Shell, command: &mut Command) -> anyhow::Result<()> {
    // In one piece: what makes it ends the program when the output is closed.
    let mut script = Vec::new();
    clap_complete::generate(shell, command, "karman", &mut script);
    Ok(io::stdout().lock().write_all(&script)?)
}

pub(crate) fn man(directory: &Path, command: Command) -> anyhow::Result<()> {
    let written = std::fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(command.disable_help_subcommand(true), directory));
    written.with_context(|| format!("write manual pages to {}", directory.display()))
}
