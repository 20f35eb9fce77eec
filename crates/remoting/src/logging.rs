//! Log lines of the binaries: to stderr, for people or for machines. Set up once, before anything else runs.

use std::io::{self, IsTerminal as _};
use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Level, or directives per target, such as `info,karman_broker=debug`.
const LEVEL_VARIABLE: &str = "KARMAN_LOG";
/// `human` or `json`.
const FORMAT_VARIABLE: &str = "KARMAN_LOG_FORMAT";

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// `KARMAN_LOG` is not a level or a list of directives.
    #[error("{LEVEL_VARIABLE}={value:?} is refused: {source}")]
    Level {
        /// What it holds.
        value: String,
        /// What is wrong.
        source: tracing_subscriber::filter::ParseError,
    },
    /// `KARMAN_LOG_FORMAT` is neither `human` nor `json`.
    #[error("{FORMAT_VARIABLE}={value:?} is refused: human and json are allowed")]
    Format {
        /// What it holds.
        value: String,
    },
    /// This process has logging already.
    #[error("logging is set up already")]
    Twice,
    /// This process was started without [`init`].
    #[error("this process has no log of its own whose level could be changed")]
    NotSetUp,
}

/// Puts another filter in the place of the one in force.
type Reload = Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>;

static RELOAD: OnceLock<Reload> = OnceLock::new();

/// Sends the process's log to stderr, as `KARMAN_LOG` (default `info`) and `KARMAN_LOG_FORMAT` (default `human` with
/// colours on a terminal, else `json`) say.
pub fn init() -> Result<(), LoggingError> {
    let terminal = io::stderr().is_terminal();
    let variable = |name| std::env::var(name).unwrap_or_default();
    let filter = filter(variable(LEVEL_VARIABLE))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(terminal);
    let (done, reload): (_, Reload) = if json(variable(FORMAT_VARIABLE), terminal)? {
        let lines = lines.json().flatten_event(true).with_filter_reloading();
        let handle = lines.reload_handle();
        (lines.finish().try_init(), Box::new(move |filter| handle.reload(filter)))
    } else {
        let lines = lines.with_filter_reloading();
        let handle = lines.reload_handle();
        (lines.finish().try_init(), Box::new(move |filter| handle.reload(filter)))
    };
    done.map_err(|_| LoggingError::Twice)?;
    RELOAD.set(reload).map_err(|_| LoggingError::Twice)
}

/// From now on the log holds what `level` says, as `KARMAN_LOG` would; until the end of the process.
pub fn change(level: &str) -> Result<(), LoggingError> {
    let filter = filter(level.to_owned())?;
    let reload = RELOAD.get().ok_or(LoggingError::NotSetUp)?;
    reload(filter).map_err(|_| LoggingError::NotSetUp)
}

/// An empty variable is as good as none. What operators do is written down at every level, unless it says `audit=off`.
fn filter(level: String) -> Result<EnvFilter, LoggingError> {
    let directives = if level.is_empty() { "info" } else { &level };
    let directives = format!("audit=info,{directives}");
    EnvFilter::try_new(directives).map_err(|source| LoggingError::Level { value: level, source })
}

fn json(format: String, terminal: bool) -> Result<bool, LoggingError> {
    match format.as_str() {
        "human" => Ok(false),
        "json" => Ok(true),
        "" => Ok(!terminal),
        _ => Err(LoggingError::Format { value: format }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_follows_the_variable_then_the_terminal() {
        let json = |format: &str, terminal| json(format.to_owned(), terminal).unwrap();
        assert!(json("", false) && !json("", true));
        assert!(json("json", true) && !json("human", false));
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        let format = json("xml".to_owned(), true).expect_err("refused").to_string();
        assert!(format.contains("KARMAN_LOG_FORMAT") && format.contains("xml"), "{format}");
        let level = filter("info,=nonsense=".to_owned()).expect_err("refused").to_string();
        assert!(level.contains("KARMAN_LOG=") && level.contains("nonsense"), "{level}");
        assert_eq!(filter(String::new()).unwrap().to_string(), "audit=info,info");
    }
}
