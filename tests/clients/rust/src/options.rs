//! The command line: a scenario, then pairs of `--name value`.

use std::collections::HashMap;
use std::time::Duration;

use rocketmq::conf::ClientOption;

use crate::Fatal;

/// The values by name.
#[derive(Clone, Debug)]
pub struct Options(HashMap<String, String>);

impl Options {
    pub fn parse(words: impl Iterator<Item = String>) -> Result<Options, Fatal> {
        let mut values = HashMap::new();
        let mut words = words;
        while let Some(name) = words.next() {
            let name = name.strip_prefix("--").ok_or_else(|| format!("{name}: not a --name"))?.to_owned();
            let value = words.next().ok_or_else(|| format!("--{name} needs a value"))?;
            values.insert(name, value);
        }
        Ok(Options(values))
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    pub fn text(&self, name: &str) -> Result<String, Fatal> {
        Ok(self.get(name).ok_or_else(|| format!("--{name} is required"))?.to_owned())
    }

    pub fn number(&self, name: &str, fallback: u64) -> Result<u64, Fatal> {
        match self.get(name) {
            Some(value) => Ok(value.parse().map_err(|_| format!("--{name} {value}: not a number"))?),
            None => Ok(fallback),
        }
    }

    pub fn milliseconds(&self, name: &str) -> Result<Duration, Fatal> {
        Ok(Duration::from_millis(self.number(name, 0)?))
    }

    pub fn client(&self) -> Result<ClientOption, Fatal> {
        let mut option = ClientOption::default();
        option.set_access_url(self.text("endpoint")?);
        if let Some(access_key) = self.get("access-key") {
            option.set_access_key(access_key);
            option.set_secret_key(self.text("secret-key")?);
        }
        Ok(option)
    }
}
