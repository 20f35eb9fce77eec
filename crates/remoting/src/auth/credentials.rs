//! What a client of ours signs its calls with, as the official clients sign theirs. Any thread.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tonic::metadata::{MetadataMap, MetadataValue};

use super::signature::{self, AUTHORIZATION, DATE_TIME, Keyed};
use crate::civil;

/// An access key and its secret. The secret is never printed.
#[derive(Clone)]
pub struct Credentials {
    access_key: Arc<str>,
    key: Keyed,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("access_key", &self.access_key).finish_non_exhaustive()
    }
}

impl Credentials {
    /// `None` when the access key cannot stand in a header.
    pub fn new(access_key: &str, secret_key: &str) -> Option<Self> {
        MetadataValue::try_from(access_key).ok()?;
        Some(Self { access_key: access_key.into(), key: signature::key(secret_key) })
    }

    /// Puts the time and its signature into the headers of a call.
    pub fn sign(&self, headers: &mut MetadataMap) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let date_time = civil::format_ms(u64::try_from(since.as_millis()).unwrap_or_default());
        let header = signature::sign(&self.access_key, &self.key, &date_time);
        let ascii = "a time, and an access key that was checked";
        headers.insert(DATE_TIME, MetadataValue::try_from(date_time).expect(ascii));
        headers.insert(AUTHORIZATION, MetadataValue::try_from(header).expect(ascii));
    }
}
