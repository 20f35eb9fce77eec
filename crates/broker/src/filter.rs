//! SQL92 filters: RocketMQ's grammar and rules, compiled once and evaluated for each message.
//!
//! Whoever reads a subscription compiles it, through [`FilterCache`]; whoever delivers evaluates. Pure; any thread.
//! `docs/filters.md` has the grammar, the rules for missing properties and for types, and what differs from RocketMQ.
//!
//! Nothing that a user writes makes a filter large, deep or slow: the limits below are checked while it is compiled.

mod cache;
mod condition;
mod lexer;
mod parser;
#[cfg(test)]
mod tests;

use std::ops::Range;

use karman_remoting::message::{keys_of, system_texts_of, user_properties_of};

pub use cache::FilterCache;
use condition::Condition;

/// Longest expression.
pub const MAX_EXPRESSION_BYTES: usize = 8 * 1024;
/// Words, constants, names and signs in an expression.
pub const MAX_TOKENS: usize = 4096;
/// Parentheses within parentheses.
pub const MAX_DEPTH: usize = 64;
/// Different properties that an expression names: each is compared with each property of each message.
pub const MAX_PROPERTIES: usize = 32;
/// Strings in one list of `IN`.
pub const MAX_IN_STRINGS: usize = 1024;
/// `CONTAINS` in an expression: each reads a whole property, which may have 16 KiB.
pub const MAX_CONTAINS: usize = 32;

/// Under this name an expression sees the keys of a message, joined by a space.
const KEYS: &str = "KEYS";

/// Why an expression is no filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at position {position}: {why}")]
pub struct SqlError {
    /// In characters from 0.
    pub position: usize,
    /// What was found there, and what may stand there instead.
    pub why: String,
}

impl SqlError {
    fn new(position: usize, why: impl Into<String>) -> Self {
        Self { position, why: why.into() }
    }
}

/// A message could not be judged. It counts as one that does not match.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the comparison at position {position} of the filter needs a number, and the property of the message is none"
)]
pub struct EvaluateError {
    /// Of the operator in the expression, in characters from 0.
    pub position: usize,
}

/// A compiled expression.
#[derive(Debug)]
pub struct SqlFilter {
    condition: Condition,
    /// What the expression names, each once; the condition knows them by position.
    properties: Box<[Box<str>]>,
}

impl SqlFilter {
    /// Reads an expression.
    pub fn compile(expression: &str) -> Result<Self, SqlError> {
        parser::parse(expression)
    }

    /// TRUE, FALSE, or unknown (`None`), for a message with these properties; only TRUE is a match.
    pub fn matches<'a>(
        &self,
        property: &dyn Fn(&str) -> Option<&'a str>,
    ) -> Result<Option<bool>, EvaluateError> {
        self.condition.evaluate(&|index| present(property(&self.properties[index])))
    }

    /// Whether a stored message matches. `system_properties_field` is where they lie in it.
    ///
    /// One walk over the message finds all that the expression names. Nothing is allocated, unless it names `KEYS` and
    /// the message has several.
    pub fn matches_message(
        &self,
        message: &[u8],
        system_properties_field: &Range<usize>,
    ) -> Result<bool, EvaluateError> {
        let mut texts = [None; MAX_PROPERTIES];
        let system = system_texts_of(message, system_properties_field);
        for (name, text) in user_properties_of(message).chain(system) {
            if let Some(index) = self.index(name) {
                texts[index] = present(Some(text));
            }
        }
        let keys;
        if let Some(index) = self.index(KEYS) {
            keys = keys_of(message, system_properties_field);
            texts[index] = keys.as_deref();
        }
        let result = self.condition.evaluate(&|index| texts[index])?;
        Ok(result == Some(true))
    }

    fn index(&self, name: &str) -> Option<usize> {
        self.properties.iter().position(|known| **known == *name)
    }
}

/// An empty property is a missing one, as in RocketMQ, whose log does not keep it.
fn present(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
}
