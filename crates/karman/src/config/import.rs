//! `karman config import`: a configuration of RocketMQ, in Java's properties form, as one of ours, and what became of each key.

mod values;

use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;
use serde_json::{Map, Value};

use self::values::Properties;
use super::Role;
use super::reference::{Key, Kind};
use super::rocketmq::{Fate, RocketMq};
use crate::output::{self, Format, wrapped};

pub(super) const AFTER_HELP: &str = "\
The TOML goes to stdout, what became of each key to stderr; with -o json both are in one object on stdout.

Exit codes: 0 a node starts with what came out, 1 it does not yet, and why; 2 the command line is wrong

Examples:
  karman config import broker.conf > broker.toml
  karman config import namesrv.properties --role namesrv -o json";

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// The configuration of RocketMQ: broker.conf, namesrv.conf, controller.conf or a file of that form
    file: PathBuf,
    /// The kind of node it is for; without it, the one that knows more of the keys
    #[arg(long)]
    role: Option<Role>,
}

/// What came out.
#[derive(Debug, Serialize)]
struct Imported {
    role: Role,
    toml: String,
    /// Of the file, in its order.
    keys: Vec<Line>,
    /// Not in the file, and not the same here as in RocketMQ.
    defaults: Vec<Default>,
    /// Why a node does not start with it yet.
    problems: Vec<String>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Line {
    key: String,
    fate: Word,
    /// What it became.
    to: Vec<String>,
    note: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    Mapped,
    NotNeeded,
    NotSupported,
    /// Neither RocketMQ nor we know it.
    Unknown,
}

/// A key with another default in RocketMQ.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Default {
    key: String,
    rocketmq: String,
    here: String,
}

pub(super) fn run(args: &ImportArgs, format: Format) -> anyhow::Result<()> {
    let file = args.file.as_path();
    let text = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
    let properties =
        Properties::parse(&text).with_context(|| format!("read {} as properties", file.display()))?;
    let role = args.role.unwrap_or_else(|| likely_role(&properties));
    let imported = import(role, &properties, file);
    if !output::nameless(format, &imported)? {
        output::line(imported.toml.trim_end())?;
        imported.report(&mut io::stderr().lock())?;
    }
    let problems: String = imported.problems.iter().map(|problem| format!("\n  {problem}")).collect();
    anyhow::ensure!(problems.is_empty(), "a {} does not start with it yet:{problems}", role.name());
    Ok(())
}

/// The role whose keys these are rather.
fn likely_role(properties: &Properties) -> Role {
    let known = |role| {
        let table = RocketMq::of(role);
        properties
            .iter()
            .filter(|(key, _)| table.fate(key).is_some() || values::is_special(role, key))
            .count()
    };
    if known(Role::Namesrv) > known(Role::Broker) { Role::Namesrv } else { Role::Broker }
}

fn import(role: Role, properties: &Properties, file: &Path) -> Imported {
    let (table, ours) = (RocketMq::of(role), role.keys());
    let mut taken = Taken { role, ours: &ours, values: Vec::new() };
    let keys = properties.iter().map(|(key, value)| taken.line(key, value, &table, properties)).collect();
    let values = taken.values;
    let is_set = |key: &str| values.iter().any(|value| value.key == key);
    let mut defaults = Vec::new();
    for (key, rocketmq) in table.same().filter(|(key, default)| !default.is_empty() && !is_set(key)) {
        let here = ours.iter().find(|known| known.name == key).map(|known| shown(&known.default));
        defaults.extend(here.filter(|here| here != rocketmq).map(|here| Default {
            key: key.to_owned(),
            rocketmq: rocketmq.to_owned(),
            here,
        }));
    }
    let mut problems =
        match role.refused(values.iter().map(|one| (one.key.clone(), one.value.clone())).collect()) {
            Ok(refused) => refused.iter().map(ToString::to_string).collect(),
            Err(error) => vec![error.to_string()],
        };
    if role == Role::Broker && !is_set("namesrvAddr") {
        problems.push("namesrvAddr is not in the file: without it a broker runs alone, and RocketMQ takes it from elsewhere too".into());
    }
    let mut toml = format!("# {} of RocketMQ, by `karman config import`.\n", name(file));
    for Taking { key, value, from } in &values {
        let comment = if from == key { String::new() } else { format!("  # {from}") };
        toml.push_str(&format!("{key} = {}{comment}\n", as_toml(value)));
    }
    Imported { role, toml, keys, defaults, problems }
}

fn name(file: &Path) -> String {
    // One line: it stands in a comment.
    file.file_name().unwrap_or_default().to_string_lossy().replace(char::is_control, " ")
}

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn as_toml(value: &Value) -> String {
    match value {
        Value::String(text) => toml::Value::String(text.clone()).to_string(),
        other => other.to_string(),
    }
}

/// What our configuration gets.
struct Taken<'a> {
    role: Role,
    ours: &'a [Key],
    values: Vec<Taking>,
}

struct Taking {
    key: String,
    value: Value,
    /// RocketMQ's key.
    from: String,
}

impl Taken<'_> {
    fn line(&mut self, key: &str, value: &str, table: &RocketMq, properties: &Properties) -> Line {
        if let Some(special) = values::special(self.role, key, value, properties) {
            return match special {
                Ok(special) => self.take(key, special.pairs, special.note),
                Err(what) => line(key, Word::NotSupported, what),
            };
        }
        let note = table.note(key, value).unwrap_or_default().to_owned();
        match table.fate(key) {
            Some(Fate::Same) => self.take(key, vec![(key.to_owned(), value.to_owned())], note),
            Some(Fate::Renamed(names)) => {
                self.take(key, names.iter().map(|name| (name.clone(), value.to_owned())).collect(), note)
            }
            Some(Fate::NotNeeded(why)) => line(key, Word::NotNeeded, why.to_owned()),
            Some(Fate::NotSupported(_)) if matches!(value, "" | "false") => {
                line(key, Word::NotNeeded, "it is off".to_owned())
            }
            Some(Fate::NotSupported(what)) => line(key, Word::NotSupported, what.to_owned()),
            None => line(key, Word::Unknown, "neither RocketMQ 5.3 nor Karman has such a key".to_owned()),
        }
    }

    /// Takes all pairs, or none if one has not the type that it has here.
    fn take(&mut self, from: &str, pairs: Vec<(String, String)>, note: String) -> Line {
        let mut taken = Vec::new();
        for (key, text) in pairs {
            match self.typed(&key, &text) {
                Ok(value) => taken.push(Taking { key, value, from: from.to_owned() }),
                Err(why) => return line(from, Word::NotSupported, why),
            }
        }
        let to = taken.iter().map(|one| one.key.clone()).collect();
        for one in taken {
            // Two of RocketMQ's keys may say one of ours together.
            self.values.retain(|known| known.key != one.key);
            self.values.push(one);
        }
        Line { key: from.to_owned(), fate: Word::Mapped, to, note }
    }

    fn typed(&self, key: &str, text: &str) -> Result<Value, String> {
        let kind = self.ours.iter().find(|known| known.name == key).map_or(Kind::Text, |known| known.kind);
        let value = match kind {
            Kind::Text => Some(Value::from(text)),
            Kind::Integer => text.parse::<i64>().ok().map(Value::from),
            Kind::Boolean => text.to_lowercase().parse::<bool>().ok().map(Value::from),
        };
        let value = value.ok_or_else(|| {
            let wanted = if kind == Kind::Integer { "a whole number" } else { "true or false" };
            format!("{text:?} is not {wanted}, and was left out")
        })?;
        match self.role.refused(Map::from_iter([(key.to_owned(), value.clone())])) {
            Ok(_) => Ok(value),
            Err(error) => Err(format!("{text:?} was left out: {error}")),
        }
    }
}

fn line(key: &str, fate: Word, note: String) -> Line {
    Line { key: key.to_owned(), fate, to: Vec::new(), note }
}

impl Imported {
    fn report(&self, out: &mut impl io::Write) -> io::Result<()> {
        for Line { key, fate, to, note } in &self.keys {
            let what = match fate {
                Word::Mapped if to[..] == [key.clone()] => "mapped".to_owned(),
                Word::Mapped => format!("mapped to {}", to.join(" and ")),
                Word::NotNeeded => "not needed".to_owned(),
                Word::NotSupported => "NOT SUPPORTED".to_owned(),
                Word::Unknown => "UNKNOWN".to_owned(),
            };
            let note = if note.is_empty() { String::new() } else { format!(": {note}") };
            writeln!(out, "{}", wrapped(0, &format!("{key}: {what}{note}")))?;
        }
        for Default { key, rocketmq, here } in &self.defaults {
            let text = format!("{key}: not in the file; by default {rocketmq} in RocketMQ, {here} here");
            writeln!(out, "{}", wrapped(0, &text))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
