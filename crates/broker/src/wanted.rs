//! What a consumer wants of a topic: its filter, ready to be put to index entries and messages. Pure; any thread.

use karman_remoting::message::tag_of;
use karman_remoting::proto::v2::FilterExpression;
use karman_remoting::status::Rejection;
use karman_remoting::validate::{self, TagFilter};
use karman_store::Entry;

use crate::label::{Label, tag_hash};
use crate::mark::Mark;

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
}

impl Wanted {
    /// Reads a filter expression; an absent one wants everything.
    pub fn of(expression: Option<&FilterExpression>) -> Result<Self, Rejection> {
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
        4096
    }

    /// By what the index says; false is certain.
    pub fn may_want(&self, entry: &Entry) -> bool {
        match self {
            Self::All => true,
            Self::AnyOf { hashes, .. } => hashes.contains(&Label::in_entry(entry).tag()),
        }
    }

    /// By the message itself: two tags may have one hash.
    pub fn really_wants(&self, message: &[u8], mark: Mark) -> bool {
        match self {
            Self::All => true,
            Self::AnyOf { tags, .. } => {
                let tag = tag_of(message, &mark.field(message.len()));
                tags.iter().any(|wanted| wanted == tag)
            }
        }
    }
}
