//! What a consumer wants of a topic: its filter, ready to be put to index entries and messages. Pure; any thread.

use std::sync::Arc;

use karman_remoting::message::tag_of;
use karman_remoting::proto::v2::{FilterExpression, FilterType};
use karman_remoting::status::Rejection;
use karman_remoting::validate::{self, TagFilter};
use karman_store::Entry;

use crate::filter::{EvaluateError, FilterCache, SqlFilter};
use crate::label::{Label, tag_hash};
use crate::mark::Mark;

/// Entries that one look at the queues puts to a filter.
const SCAN_MAX: usize = 4096;
/// The same where each message has to be read.
const SCAN_MAX_SQL: usize = 512;

/// See the module's comment.
#[derive(Debug)]
pub enum Wanted {
    /// Everything.
    All,
    /// What has one of these tags.
    AnyOf {
        /// As the consumer wrote them.
        tags: Vec<String>,
        /// Of each tag.
        hashes: Vec<u32>,
    },
    /// What an expression over its properties is true of.
    Sql(Arc<SqlFilter>),
}

impl Wanted {
    /// Reads a filter expression; an absent one wants everything.
    pub fn of(expression: Option<&FilterExpression>, compiled: &FilterCache) -> Result<Self, Rejection> {
        if let Some(unknown) = expression.filter(|filter| FilterType::try_from(filter.r#type).is_err()) {
            let rule = format!("filter type {} is not known", unknown.r#type);
            return Err(Rejection::IllegalFilter {
                expression: validate::shortened(&unknown.expression),
                rule,
            });
        }
        if let Some(sql) = expression.filter(|expression| expression.r#type() == FilterType::Sql) {
            let refused = |error: crate::filter::SqlError| Rejection::IllegalFilter {
                expression: validate::shortened(&sql.expression),
                rule: error.to_string(),
            };
            return compiled.get(&sql.expression).map(Self::Sql).map_err(refused);
        }
        Ok(match validate::tag_filter(expression)? {
            TagFilter::All => Self::All,
            TagFilter::AnyOf(tags) => {
                let hashes = tags.iter().map(|tag| tag_hash(tag)).collect();
                Self::AnyOf { tags, hashes }
            }
        })
    }

    /// How many entries one look at the queues may put to it.
    pub fn scan_max(&self) -> usize {
        if self.needs_message() { SCAN_MAX_SQL } else { SCAN_MAX }
    }

    /// Nothing in the index says what it wants.
    pub fn needs_message(&self) -> bool {
        matches!(self, Self::Sql(_))
    }

    /// By what the index says; false is certain.
    pub fn may_want(&self, entry: &Entry) -> bool {
        match self {
            Self::All | Self::Sql(_) => true,
            Self::AnyOf { hashes, .. } => hashes.contains(&Label::in_entry(entry).tag()),
        }
    }

    /// By the message itself: two tags may have one hash. An error means that the expression cannot be put to the
    /// message, which does not match then.
    pub fn really_wants(&self, message: &[u8], mark: Mark) -> Result<bool, EvaluateError> {
        let field = mark.field(message.len());
        match self {
            Self::All => Ok(true),
            Self::AnyOf { tags, .. } => {
                let tag = tag_of(message, &field);
                Ok(tags.iter().any(|wanted| wanted == tag))
            }
            Self::Sql(filter) => filter.matches_message(message, &field),
        }
    }
}
