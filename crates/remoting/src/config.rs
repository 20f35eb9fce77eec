//! Configuration of the server binaries: defaults, then a TOML file, the environment, and `--set`; the later wins.
//!
//! Keys are RocketMQ's, spelled as in its documents (`flushDiskType`). In the environment a key is written in upper
//! snake case behind the prefix (`KARMAN_BROKER__FLUSH_DISK_TYPE`). Used once, at start, by the thread that starts.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use config::{FileFormat, Map, Source, Value, ValueKind};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A configuration and where each value came from.
#[derive(Debug)]
pub struct Loaded<T> {
    /// What is in force.
    pub config: T,
    /// For each key, in the order of the names: the key, its value, and its origin: `default`, `file PATH`,
    /// `env NAME` or `--set`.
    pub origins: Vec<(String, String, String)>,
}

impl<T> Loaded<T> {
    /// For `--print-config`: a line of valid TOML for each key, with where its value came from. Secrets are not shown.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for (key, value, origin) in &self.origins {
            let secret = key.ends_with("Secret") || key == "initAuthenticationUser";
            let shown = if secret && !value.is_empty() { "<hidden>" } else { value };
            let plain = shown.parse::<i64>().is_ok() || matches!(shown, "true" | "false");
            let quoted = if plain { shown.to_owned() } else { format!("{shown:?}") };
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
    #[error("the configuration file {path} is not valid TOML: {source}", path = path.display())]
    NotToml {
        /// The file.
        path: PathBuf,
        /// Line and column, and what is wrong there.
        source: config::ConfigError,
    },
    /// An argument of `--set` has no `=`.
    #[error("--set {argument:?} is not of the form key=value")]
    NotAssignment {
        /// The argument.
        argument: String,
    },
    /// There is no such key.
    #[error("unknown key {key:?} ({origin}); the nearest known key is {nearest:?}")]
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
    let mut builder = config::Config::builder();
    if let Some(path) = file {
        builder = builder.add_source(file_layer(&keys, path)?);
    }
    builder = builder.add_source(env_layer(&keys, env_prefix, env)?).add_source(set_layer(&keys, sets)?);
    let given: Map<String, Value> = builder
        .build()
        .and_then(|merged| merged.cache.into_table())
        .map_err(|error| ConfigError::Refused(error.to_string()))?;
    let mut values = serde_json::Map::new();
    for (key, value) in &given {
        values.insert(key.clone(), accepted::<T>(key, value)?);
    }
    let config: T =
        serde_json::from_value(values.into()).map_err(|error| ConfigError::Refused(error.to_string()))?;
    let origins = table(&config)?
        .into_iter()
        .map(|(key, value)| {
            let origin = given.get(&key).and_then(Value::origin).unwrap_or("default").to_owned();
            (key, value, origin)
        })
        .collect();
    Ok(Loaded { config, origins })
}

/// Keys and values of a configuration as text; a struct is a flat table of them.
fn table<T: Serialize>(config: &T) -> Result<Vec<(String, String)>, ConfigError> {
    match serde_json::to_value(config) {
        Ok(serde_json::Value::Object(table)) => {
            let text = |value| match value {
                serde_json::Value::String(text) => text,
                serde_json::Value::Null => String::new(),
                other => other.to_string(),
            };
            Ok(table.into_iter().map(|(key, value)| (key, text(value))).collect())
        }
        Ok(other) => Err(ConfigError::Refused(format!("it is not a table of keys but {other}"))),
        Err(error) => Err(ConfigError::Refused(error.to_string())),
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

/// The values of one origin; each carries the name of it.
#[derive(Clone, Debug, Default)]
struct Layer(Map<String, Value>);

impl Layer {
    fn insert(&mut self, key: String, origin: String, kind: impl Into<ValueKind>) {
        self.0.insert(key, Value::new(Some(&origin), kind));
    }
}

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, config::ConfigError> {
        Ok(self.0.clone())
    }
}

fn file_layer(keys: &Keys, path: &Path) -> Result<Layer, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::ReadFile { path: path.to_owned(), source })?;
    let table = config::File::from_str(&text, FileFormat::Toml)
        .collect()
        .map_err(|source| ConfigError::NotToml { path: path.to_owned(), source })?;
    let origin = format!("file {}", path.display());
    let mut layer = Layer::default();
    for (key, value) in table {
        keys.check(&key, &origin)?;
        layer.insert(key, origin.clone(), value.kind);
    }
    Ok(layer)
}

fn env_layer(
    keys: &Keys,
    prefix: &str,
    env: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Layer, ConfigError> {
    let mut layer = Layer::default();
    for (name, value) in env {
        let Some(key) = name.to_str().and_then(|name| name.strip_prefix(prefix)) else { continue };
        let origin = format!("env {prefix}{key}");
        let key = keys.of_env(key, &origin)?;
        layer.insert(key, origin, value.to_string_lossy().into_owned());
    }
    Ok(layer)
}

fn set_layer(keys: &Keys, sets: &[String]) -> Result<Layer, ConfigError> {
    let mut layer = Layer::default();
    for argument in sets {
        let (key, value) = argument
            .split_once('=')
            .ok_or_else(|| ConfigError::NotAssignment { argument: argument.clone() })?;
        let key = key.trim();
        keys.check(key, "--set")?;
        layer.insert(key.to_owned(), "--set".to_owned(), value.trim());
    }
    Ok(layer)
}

/// The value as `T` takes it. Each key is tried alone, so that the one to blame is known; strictly, by serde's rules.
fn accepted<T: DeserializeOwned>(key: &str, value: &Value) -> Result<serde_json::Value, ConfigError> {
    let mut reason = String::new();
    for candidate in candidates(value) {
        let alone = serde_json::Map::from_iter([(key.to_owned(), candidate.clone())]);
        match serde_json::from_value::<T>(alone.into()) {
            Ok(_) => return Ok(candidate),
            Err(error) => reason = error.to_string(),
        }
    }
    Err(ConfigError::InvalidValue {
        key: key.to_owned(),
        value: value.to_string(),
        origin: value.origin().unwrap_or_default().to_owned(),
        reason,
    })
}

/// What a value may stand for. A text may stand for a number or a truth value: the environment and `--set` have only
/// texts.
fn candidates(value: &Value) -> Vec<serde_json::Value> {
    let as_given = value.clone().try_deserialize().unwrap_or_default();
    let scalar = match &as_given {
        serde_json::Value::String(text) => serde_json::from_str(text).ok(),
        _ => None,
    };
    let scalar = scalar.filter(|scalar: &serde_json::Value| scalar.is_number() || scalar.is_boolean());
    [Some(as_given), scalar].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests;
