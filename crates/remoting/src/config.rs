//! Configuration of the server binaries: defaults, then a TOML file, the environment, and `--set`; the later wins.
//!
//! Keys are RocketMQ's, spelled as in its documents (`flushDiskType`). In the environment a key is written in upper
//! snake case behind the prefix (`KARMAN_BROKER__FLUSH_DISK_TYPE`). Used once, at start, by the thread that starts.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::secret::HIDDEN;

/// A configuration and where each value came from.
#[derive(Debug)]
pub struct Loaded<T> {
    /// What is in force.
    pub config: T,
    /// For each key, in the order of the names: the key, its value (of a [`Secret`](crate::secret::Secret) what is shown of it), and
    /// its origin: `default`, `file PATH`, `env NAME` or `--set`.
    pub origins: Vec<(String, String, String)>,
}

impl<T> Loaded<T> {
    /// For `--print-config`: a line of valid TOML for each key, with where its value came from.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for (key, value, origin) in &self.origins {
            let plain = value.parse::<i64>().is_ok() || matches!(value.as_str(), "true" | "false");
            let quoted = if plain { value.clone() } else { format!("{value:?}") };
            text.push_str(&format!("{key} = {quoted}  # {origin}\n"));
        }
        text
    }
}

/// A value that cannot be used though it has the right type: what the owner of the keys says of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} = {value:?}: {allowed}")]
pub struct Unusable {
    /// The key, as in the file.
    pub key: &'static str,
    /// What it was set to.
    pub value: String,
    /// What may be used.
    pub allowed: &'static str,
}

/// Why a configuration was refused. The text names the key, what was given, where, and what is allowed.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("read the configuration file {path}: {source}", path = path.display())]
    ReadFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("the configuration file {path} is not valid TOML: line {line}: {reason}", path = path.display())]
    NotToml {
        /// The file.
        path: PathBuf,
        /// The first line of it is 1. What stands there is not shown: it may be a secret.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
    /// An argument of `--set` has no `=`.
    #[error("--set {argument:?} is not of the form key=value")]
    NotAssignment {
        /// The argument.
        argument: String,
    },
    /// There is no such key.
    #[error("unknown key {key:?} ({origin}); did you mean {nearest:?}?")]
    UnknownKey {
        /// As it was written.
        key: String,
        /// Where.
        origin: String,
        /// The known key most like it.
        nearest: String,
    },
    /// A value has the wrong type or is out of range.
    #[error("{key} = {value} ({origin}) is refused: {reason}")]
    InvalidValue {
        /// The key.
        key: String,
        /// What was given.
        value: String,
        /// Where.
        origin: String,
        /// What is allowed.
        reason: String,
    },
    /// Each value is right, but they do not go together, or the defaults themselves do not.
    #[error("the configuration is refused: {0}")]
    Refused(String),
}

/// Loads a `T`: a flat struct whose serde names are the keys, with a default for each.
///
/// `env_prefix` ends with its separator (`KARMAN_BROKER__`); `sets` are the arguments of `--set`, each `key=value`.
pub fn load<T: DeserializeOwned + Serialize + Default>(
    env_prefix: &str,
    file: Option<&Path>,
    sets: &[String],
) -> Result<Loaded<T>, ConfigError> {
    load_with(env_prefix, std::env::vars_os(), file, sets)
}

fn load_with<T: DeserializeOwned + Serialize + Default>(
    env_prefix: &str,
    env: impl Iterator<Item = (OsString, OsString)>,
    file: Option<&Path>,
    sets: &[String],
) -> Result<Loaded<T>, ConfigError> {
    let keys = Keys(table(&T::default())?.into_iter().map(|(key, _)| key).collect());
    let mut given = file.map_or_else(|| Ok(Layer::new()), |path| file_layer(&keys, path))?;
    given.extend(env_layer(&keys, env_prefix, env)?);
    given.extend(set_layer(&keys, sets)?);
    let mut values = serde_json::Map::new();
    for (key, given) in &given {
        values.insert(key.clone(), accepted::<T>(key, given)?);
    }
    let config: T =
        serde_json::from_value(values.into()).map_err(|error| ConfigError::Refused(error.to_string()))?;
    let origins = table(&config)?
        .into_iter()
        .map(|(key, value)| {
            let origin = given.get(&key).map_or("default", |given| &given.origin).to_owned();
            (key, value, origin)
        })
        .collect();
    Ok(Loaded { config, origins })
}

/// Keys and values of a configuration for an operator: of a [`Secret`](crate::secret::Secret) only whether it is set.
pub fn shown<T: Serialize>(config: &T) -> Vec<(String, String)> {
    table(config).expect("a configuration that was loaded is a flat table")
}

/// Keys and values of a configuration as text; a struct is a flat table of them.
fn table<T: Serialize>(config: &T) -> Result<Vec<(String, String)>, ConfigError> {
    match serde_json::to_value(config) {
        Ok(serde_json::Value::Object(table)) => {
            Ok(table.into_iter().map(|(key, value)| (key, text(value))).collect())
        }
        Ok(other) => Err(ConfigError::Refused(format!("it is not a table of keys but {other}"))),
        Err(error) => Err(ConfigError::Refused(error.to_string())),
    }
}

fn text(value: serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text,
        serde_json::Value::Null => String::new(),
        other => other.to_string(),
    }
}

struct Keys(Vec<String>);

impl Keys {
    fn check(&self, key: &str, origin: &str) -> Result<(), ConfigError> {
        if self.0.iter().any(|known| known == key) { Ok(()) } else { Err(self.unknown(key, origin)) }
    }

    /// The key that `FLUSH_DISK_TYPE` stands for. Compared without underscores and case, for RocketMQ's own spelling
    /// is not regular (`brokerIP1`).
    fn of_env(&self, name: &str, origin: &str) -> Result<String, ConfigError> {
        let squeezed = name.replace('_', "");
        let found = self.0.iter().find(|known| known.eq_ignore_ascii_case(&squeezed));
        found.cloned().ok_or_else(|| self.unknown(name, origin))
    }

    fn unknown(&self, key: &str, origin: &str) -> ConfigError {
        let folded = |key: &str| key.replace('_', "").to_lowercase();
        let wanted = folded(key);
        let nearest = self.0.iter().min_by_key(|known| strsim::damerau_levenshtein(&folded(known), &wanted));
        ConfigError::UnknownKey {
            key: key.to_owned(),
            origin: origin.to_owned(),
            nearest: nearest.cloned().unwrap_or_default(),
        }
    }
}

/// A value as it was written, and where.
struct Given {
    value: serde_json::Value,
    origin: String,
}

/// The values of one origin.
type Layer = BTreeMap<String, Given>;

fn file_layer(keys: &Keys, path: &Path) -> Result<Layer, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::ReadFile { path: path.to_owned(), source })?;
    let table: serde_json::Map<_, _> = toml::from_str(&text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = 1 + before.matches('\n').count();
        ConfigError::NotToml { path: path.to_owned(), line, reason: error.message().to_owned() }
    })?;
    let origin = format!("file {}", path.display());
    let mut layer = Layer::new();
    for (key, value) in table {
        keys.check(&key, &origin)?;
        layer.insert(key, Given { value, origin: origin.clone() });
    }
    Ok(layer)
}

fn env_layer(
    keys: &Keys,
    prefix: &str,
    env: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Layer, ConfigError> {
    let mut layer = Layer::new();
    for (name, value) in env {
        let Some(key) = name.to_str().and_then(|name| name.strip_prefix(prefix)) else { continue };
        let origin = format!("env {prefix}{key}");
        let key = keys.of_env(key, &origin)?;
        layer.insert(key, Given { value: value.to_string_lossy().into(), origin });
    }
    Ok(layer)
}

fn set_layer(keys: &Keys, sets: &[String]) -> Result<Layer, ConfigError> {
    let mut layer = Layer::new();
    for argument in sets {
        let (key, value) = argument
            .split_once('=')
            .ok_or_else(|| ConfigError::NotAssignment { argument: argument.clone() })?;
        let key = key.trim();
        keys.check(key, "--set")?;
        layer.insert(key.to_owned(), Given { value: value.trim().into(), origin: "--set".to_owned() });
    }
    Ok(layer)
}

/// The value as `T` takes it. Each key is tried alone, so that the one to blame is known; strictly, by serde's rules.
fn accepted<T: DeserializeOwned + Serialize>(
    key: &str,
    given: &Given,
) -> Result<serde_json::Value, ConfigError> {
    let mut reason = String::new();
    for candidate in candidates(&given.value) {
        let alone = serde_json::Map::from_iter([(key.to_owned(), candidate.clone())]);
        match serde_json::from_value::<T>(alone.into()) {
            Ok(_) => return Ok(candidate),
            Err(error) => reason = error.to_string(),
        }
    }
    let hidden = is_secret::<T>(key);
    Err(ConfigError::InvalidValue {
        key: key.to_owned(),
        value: if hidden { HIDDEN.to_owned() } else { text(given.value.clone()) },
        origin: given.origin.clone(),
        reason: if hidden { "a text is allowed".to_owned() } else { reason },
    })
}

/// Whether what the key holds is not shown: then it is not in an error either.
fn is_secret<T: DeserializeOwned + Serialize>(key: &str) -> bool {
    let probe = serde_json::Map::from_iter([(key.to_owned(), "probe".into())]);
    let shown = serde_json::from_value::<T>(probe.into()).and_then(serde_json::to_value);
    shown.is_ok_and(|shown| shown[key] == HIDDEN)
}

/// What a value may stand for. A text may stand for a number or a truth value: the environment and `--set` have only
/// texts.
fn candidates(value: &serde_json::Value) -> Vec<serde_json::Value> {
    let scalar = value.as_str().and_then(|text| serde_json::from_str(text).ok());
    let scalar = scalar.filter(|scalar: &serde_json::Value| scalar.is_number() || scalar.is_boolean());
    [Some(value.clone()), scalar].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests;
