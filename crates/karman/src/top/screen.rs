//! The terminal: a screen of its own that goes when this does, and keys as they are pressed.

use std::io::{self, Read as _, Write as _};
use std::thread;

use anyhow::Context as _;
use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr,
};
use tokio::sync::mpsc;

use super::view::Size;

/// Another screen, without cursor; and back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
const HOME: &str = "\x1b[H";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";
/// Keys that were pressed and not looked at; more are dropped.
const KEYS_MAX: usize = 16;
/// Where no terminal says its size.
const USUAL: Size = Size { columns: 80, rows: 24 };

/// What was pressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Quit,
    Sort,
}

impl Key {
    fn of(byte: u8) -> Option<Self> {
        match byte {
            b'q' | b'Q' => Some(Self::Quit),
            b's' | b'S' => Some(Self::Sort),
            _ => None,
        }
    }
}

/// See the module's comment.
pub(super) struct Screen {
    /// How keys were read before.
    before: Option<Termios>,
    keys: mpsc::Receiver<Key>,
}

impl Screen {
    pub(super) fn open() -> anyhow::Result<Self> {
        // Whose input comes from elsewhere has no keys, and Ctrl-C.
        let before = tcgetattr(io::stdin()).ok();
        if let Some(before) = &before {
            let mut raw = before.clone();
            raw.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
            raw.special_codes[SpecialCodeIndex::VMIN] = 1;
            raw.special_codes[SpecialCodeIndex::VTIME] = 0;
            tcsetattr(io::stdin(), OptionalActions::Now, &raw).context("read keys from the terminal")?;
        }
        let (pressed, keys) = mpsc::channel(KEYS_MAX);
        let screen = Self { before, keys };
        // It ends with the process: nothing else ends a read from a terminal.
        let read = move || {
            let mut byte = [0];
            while io::stdin().lock().read_exact(&mut byte).is_ok() {
                if Key::of(byte[0]).is_some_and(|key| pressed.blocking_send(key).is_err()) {
                    return;
                }
            }
        };
        thread::Builder::new().name("keys".into()).spawn(read).context("start the thread that reads keys")?;
        write(ENTER)?;
        Ok(screen)
    }

    pub(super) fn size(&self) -> Size {
        let known = tcgetwinsize(io::stdout()).ok().filter(|size| size.ws_row > 0 && size.ws_col > 0);
        known.map_or(USUAL, |size| Size { columns: size.ws_col.min(USUAL.columns), rows: size.ws_row })
    }

    pub(super) fn draw(&self, lines: &[String]) -> anyhow::Result<()> {
        write(&drawn(lines))?;
        Ok(())
    }

    /// The next key; never, when none can come.
    pub(super) async fn key(&mut self) -> Key {
        match self.keys.recv().await {
            Some(key) => key,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        let _ = write(LEAVE);
        if let Some(before) = &self.before {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}

/// Over what is there, line by line: a screen that is cleared first flickers.
fn drawn(lines: &[String]) -> String {
    let lines: Vec<String> = lines.iter().map(|line| format!("{line}{CLEAR_LINE}")).collect();
    format!("{HOME}{}{CLEAR_BELOW}", lines.join("\r\n"))
}

fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
