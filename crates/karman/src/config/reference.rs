//! `karman config reference`: every key of a node, from the comments, types, defaults and checks of the configuration itself.

use std::fmt::Write as _;

use clap::Args;
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::Serialize;
use serde_json::Value;

use super::Role;
use super::rocketmq::RocketMq;
use crate::output::{self, Format, wrapped};

pub(super) const AFTER_HELP: &str = "\
Examples:
  karman config reference broker
  karman config reference namesrv -o json
  karman config reference > docs/configuration.md   # writes the page of this repository anew";

#[derive(Debug, Args)]
pub(crate) struct ReferenceArgs {
    /// The kind of node; without it both
    role: Option<Role>,
}

/// One key of a configuration.
#[derive(Debug, Serialize)]
pub(super) struct Key {
    pub(super) name: String,
    #[serde(rename = "type")]
    pub(super) kind: Kind,
    /// Not of numbers that count.
    unit: Option<&'static str>,
    pub(super) default: Value,
    description: String,
    /// What is allowed, as its errors say it.
    allowed: Vec<String>,
    /// Its name in the environment.
    env: String,
    rocketmq: Option<InRocketMq>,
    /// What it holds is not shown.
    secret: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    Text,
    Integer,
    Boolean,
}

/// A key that comes from RocketMQ.
#[derive(Serialize)]
struct Both {
    broker: Vec<Key>,
    namesrv: Vec<Key>,
}

#[derive(Debug, Serialize)]
struct InRocketMq {
    key: String,
    /// None if it depends on the machine, or there is none.
    default: Option<String>,
}

/// Units as the comments name them; the longest first.
const UNITS: [&str; 7] =
    ["bytes per second", "milliseconds", "seconds", "minutes", "hours", "percent", "bytes"];

pub(super) fn run(args: &ReferenceArgs, format: Format) -> anyhow::Result<()> {
    let (written, text) = match args.role {
        Some(role) => {
            let written = output::programs(format, &role.keys(), |keys| keys.iter().map(|key| &*key.name))?;
            (written, section(role))
        }
        None => {
            let both = Both { broker: Role::Broker.keys(), namesrv: Role::Namesrv.keys() };
            let names = output::programs(format, &both, |both| {
                both.broker.iter().chain(&both.namesrv).map(|key| &*key.name)
            });
            (names?, page())
        }
    };
    if !written {
        output::line(text.trim_end())?;
    }
    Ok(())
}

/// The keys of a configuration, by their names. `rules` are keys with what is allowed.
pub(super) fn keys<T: JsonSchema>(role: Role, rules: &[(&'static str, &'static str)]) -> Vec<Key> {
    let settings = SchemaSettings::default().with(|settings| settings.inline_subschemas = true);
    let schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    let rocketmq = RocketMq::of(role);
    let properties = schema["properties"].as_object().into_iter().flatten();
    properties.map(|(name, schema)| key(role, name, schema, rules, &rocketmq)).collect()
}

fn key(role: Role, name: &str, schema: &Value, rules: &[(&str, &str)], rocketmq: &RocketMq) -> Key {
    let kind = match schema["type"].as_str() {
        Some("integer") => Kind::Integer,
        Some("boolean") => Kind::Boolean,
        _ => Kind::Text,
    };
    let description = schema["description"].as_str().unwrap_or_default();
    let description = description.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut allowed: Vec<_> =
        rules.iter().filter(|rule| rule.0 == name).map(|rule| rule.1.to_owned()).collect();
    if allowed.is_empty() && kind == Kind::Text {
        allowed.extend(words(schema));
    }
    let same = rocketmq.same().find(|(key, _)| *key == name);
    let from = same.or_else(|| rocketmq.name_of(name).map(|theirs| (theirs, "")));
    Key {
        name: name.to_owned(),
        kind,
        unit: (kind == Kind::Integer).then(|| unit(&description)).flatten(),
        default: schema["default"].clone(),
        description,
        allowed,
        env: format!("{}{}", role.env_prefix(), upper_snake(name)),
        rocketmq: from.map(|(key, default)| InRocketMq {
            key: key.to_owned(),
            default: Some(default.to_owned()).filter(|default| !default.is_empty()),
        }),
        secret: schema["writeOnly"] == true,
    }
}

/// The words of a type that knows only some.
fn words(schema: &Value) -> Option<String> {
    let words: Vec<_> = schema["oneOf"].as_array()?.iter().filter_map(|one| one["const"].as_str()).collect();
    (!words.is_empty()).then(|| format!("{} is allowed", words.join(" or ")))
}

fn unit(description: &str) -> Option<&'static str> {
    let words = format!(" {} ", description.to_lowercase().replace([',', ';', ':', '.'], " "));
    UNITS.into_iter().find(|unit| words.contains(&format!(" {unit} ")))
}

/// `flushDiskType` as `FLUSH_DISK_TYPE`.
fn upper_snake(key: &str) -> String {
    let mut text = String::new();
    let mut small = false;
    for letter in key.chars() {
        if letter.is_uppercase() && small {
            text.push('_');
        }
        small = letter.is_lowercase();
        text.extend(letter.to_uppercase());
    }
    text
}

const INTRODUCTION: &str = "\
# Configuration

Every key of a broker and a namesrv. This page is `karman config reference`, made from the comments and checks in
`crates/broker/src/config.rs` and `crates/namesrv/src/config.rs`.

A value comes from the default, then the file of `--config` (TOML, one flat table), then the environment, then `--set key=value`;
the later wins. In the environment a key is written in upper snake case behind the kind of node: `flushDiskType` of a broker is
`KARMAN_BROKER__FLUSH_DISK_TYPE`, `clusterSecret` of a namesrv `KARMAN_NAMESRV__CLUSTER_SECRET`. A key that does not exist, or a value
that cannot be used, stops the start with what is allowed. `--print-config` shows what is in force and where it comes from, but
no secrets. A change needs a restart.

```sh
karman config check /etc/karman/broker.toml --role broker   # would it start?
karman config import broker.conf > broker.toml              # from RocketMQ's form
```

`deploy/config` has files to begin with. Keys are RocketMQ's where RocketMQ has one; its default is named where it is another.
";

/// The whole page.
fn page() -> String {
    format!("{INTRODUCTION}\n{}\n{}", section(Role::Broker), section(Role::Namesrv))
}

fn section(role: Role) -> String {
    let (title, program) = match role {
        Role::Broker => ("Keys of a broker", "karman-broker"),
        Role::Namesrv => ("Keys of a namesrv", "karman-namesrv"),
    };
    let mut text = format!("## {title}\n\nOf `{program}`, in the order of their names.\n");
    for key in role.keys() {
        let _ = write!(text, "\n### {}\n\n", key.name);
        for item in [Some(key.description.clone()), key.limits(), Some(key.facts())].into_iter().flatten() {
            let _ = writeln!(text, "{}", wrapped(0, &format!("- {item}")));
        }
    }
    text
}

impl Key {
    fn limits(&self) -> Option<String> {
        (!self.allowed.is_empty()).then(|| {
            let text = self.allowed.join("; ");
            let word = text.split([' ', ',']).next().unwrap_or_default();
            let is_word = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphabetic());
            let (first, rest) = text.split_at(usize::from(is_word));
            format!("{}{rest}.", first.to_uppercase())
        })
    }

    fn facts(&self) -> String {
        let kind = match (self.kind, self.secret) {
            (_, true) => "Text, never shown",
            (Kind::Text, _) => "Text",
            (Kind::Integer, _) => "Number",
            (Kind::Boolean, _) => "True or false",
        };
        let unit = self.unit.map(|unit| format!(" of {unit}")).unwrap_or_default();
        let default = match &self.default {
            Value::String(text) if text.is_empty() => "empty".to_owned(),
            Value::String(text) => format!("`{text}`"),
            other => format!("`{other}`"),
        };
        let ours = self.default.as_str().map_or_else(|| self.default.to_string(), str::to_owned);
        let rocketmq = match &self.rocketmq {
            None => "Not a key of RocketMQ.".to_owned(),
            Some(there) if there.key != self.name => format!("RocketMQ's `{}`.", there.key),
            Some(InRocketMq { default: Some(default), .. }) if *default != ours => {
                format!("RocketMQ's, where the default is `{default}`.")
            }
            Some(_) => "RocketMQ's.".to_owned(),
        };
        format!("{kind}{unit}; by default {default}. {rocketmq}")
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_page_in_the_documents_is_what_the_code_says() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md");
        let written = std::fs::read_to_string(path).unwrap_or_default();
        let command = "karman config reference > docs/configuration.md";
        assert!(
            written.trim_end() == page().trim_end(),
            "docs/configuration.md is not up to date: run `{command}`"
        );
    }

    #[test]
    fn every_key_is_described_and_every_number_has_a_unit_or_counts() {
        const COUNTS: [&str; 16] = [
            "brokerElectionPriority",
            "brokerId",
            "controllerSelfId",
            "dataThreads",
            "dedupMessagesMax",
            "defaultTopicQueueNums",
            "inSyncReplicas",
            "maxConnections",
            "maxConnectionsPerAddress",
            "maxLiteSubscriptionCount",
            "maxLiteTopics",
            "minInSyncReplicas",
            "otlpSamplesPerTenThousand",
            "popInflightMessageThreshold",
            "sendThreadPoolQueueCapacity",
            "transactionCheckMax",
        ];
        for key in [Role::Broker, Role::Namesrv].into_iter().flat_map(Role::keys) {
            assert!(key.description.len() > 10, "{} is not described", key.name);
            assert!(!key.default.is_null(), "{} has no default", key.name);
            let known = key.unit.is_some() || COUNTS.contains(&key.name.as_str());
            assert!(key.kind != Kind::Integer || known, "the comment of {} names no unit", key.name);
        }
    }

    #[test]
    fn what_is_like_a_password_is_never_shown() {
        let looks_secret = |name: &str| {
            let name = name.to_lowercase();
            let words = ["secret", "password", "credential", "token", "initauthenticationuser"];
            words.iter().any(|word| name.contains(word))
        };
        for role in [Role::Broker, Role::Namesrv] {
            let keys = role.keys();
            for key in &keys {
                assert_eq!(key.secret, looks_secret(&key.name), "{}: is its type Secret?", key.name);
            }
            assert!(keys.iter().any(|key| key.secret), "a {} has a secret", role.name());
        }
    }

    #[test]
    fn a_key_says_its_type_unit_limits_and_where_it_comes_from() {
        let keys = Role::Broker.keys();
        let facts = |name: &str| keys.iter().find(|key| key.name == name).map(Key::facts).unwrap_or_default();
        assert_eq!(
            facts("flushDiskType"),
            "Text; by default `SYNC_FLUSH`. RocketMQ's, where the default is `ASYNC_FLUSH`."
        );
        assert_eq!(facts("fileReservedTime"), "Number of hours; by default `72`. RocketMQ's.");
        assert_eq!(facts("clusterSecret"), "Text, never shown; by default empty. Not a key of RocketMQ.");
        assert_eq!(facts("tlsServerMode"), "Text; by default `permissive`. RocketMQ's `tls.server.mode`.");
        let key = keys.iter().find(|key| key.name == "flushDiskType").unwrap();
        assert_eq!(key.env, "KARMAN_BROKER__FLUSH_DISK_TYPE");
        assert_eq!(key.limits().unwrap(), "SYNC_FLUSH or ASYNC_FLUSH is allowed.");
    }
}
