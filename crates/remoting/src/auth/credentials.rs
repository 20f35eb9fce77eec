//! What our programs sign their calls with: clients' as the official clients sign theirs, operators' one by one. Any thread.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderValue};
use tonic::metadata::{MetadataMap, MetadataValue};

use super::operator::{self, Call, NODE, NONCE};
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

    /// Puts the time and its signature into the headers of a client's call.
    pub fn sign(&self, headers: &mut MetadataMap) {
        let date_time = now();
        let header = signature::sign(&self.access_key, &self.key, &date_time);
        headers.insert(DATE_TIME, MetadataValue::try_from(date_time).expect(ASCII));
        headers.insert(AUTHORIZATION, MetadataValue::try_from(header).expect(ASCII));
    }

    /// Puts what is asked of an operator's call into its headers: it is the one call of `path`, to the node with this number.
    pub fn sign_operator_s(&self, headers: &mut HeaderMap, path: &str, node: &str) {
        let (date_time, nonce) = (now(), operator::random());
        let call = Call { path, node, nonce: &nonce, date_time: &date_time };
        let header = call.sign(&self.access_key, &self.key);
        for (name, value) in
            [(AUTHORIZATION, &*header), (DATE_TIME, &date_time), (NONCE, &nonce), (NODE, node)]
        {
            headers.insert(name, HeaderValue::from_str(value).expect(ASCII));
        }
    }
}

const ASCII: &str = "a time, digits, what came in a header, and an access key that was checked";

fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    civil::format_ms(u64::try_from(since.as_millis()).unwrap_or_default())
}
