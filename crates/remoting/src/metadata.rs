//! The `x-mq-*` headers: who calls, and whether a door has relayed the call already. Pure; any thread.

use std::time::Duration;

use tonic::Status;
use tonic::metadata::{Ascii, KeyAndValueRef, MetadataMap, MetadataValue};

use crate::secret::Secret;
use crate::status::Rejection;

/// Set by a door that relays. A request that carries it is executed here or refused, never relayed again: routes that
/// disagree for a moment cannot make a loop.
const HOP: &str = "x-karman-hop";

/// Set by a door that relays a receive: the number that the master gave to the client's connection (see [`crate::line`]).
const LINE: &str = "x-karman-line";

/// The longest client id that is remembered, in bytes.
const CLIENT_ID_MAX_BYTES: usize = 255;

/// The SDK of a client (`x-mq-language`); they do not all understand the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Language {
    Java,
    Cpp,
    DotNet,
    Go,
    Rust,
    Python,
    Php,
    Node,
    /// It does not say, or says something else.
    #[default]
    Other,
}

impl Language {
    /// From an SDK's own word, which is not the enum's.
    fn of(word: &str) -> Self {
        match word {
            "JAVA" => Self::Java,
            "CPP" => Self::Cpp,
            "DOTNET" | "DOT_NET" => Self::DotNet,
            "GO" | "GOLANG" => Self::Go,
            "RUST" => Self::Rust,
            "PYTHON" => Self::Python,
            "PHP" => Self::Php,
            // Node announces itself as "HTTP".
            "HTTP" | "NODE_JS" | "NODEJS" => Self::Node,
            _ => Self::Other,
        }
    }

    /// As people call it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Java => "Java",
            Self::Cpp => "C++",
            Self::DotNet => "C#",
            Self::Go => "Go",
            Self::Rust => "Rust",
            Self::Python => "Python",
            Self::Php => "PHP",
            Self::Node => "Node.js",
            Self::Other => "unknown",
        }
    }
}

/// The caller, from its headers.
#[derive(Clone, Debug)]
pub struct Caller {
    /// `x-mq-client-id`: the same on all connections of one client object.
    pub client_id: String,
    /// From `x-mq-language`.
    pub language: Language,
    /// A door has relayed this request.
    pub relayed: bool,
    /// How long the client will wait from now on, if it said so (`grpc-timeout`).
    pub timeout: Option<Duration>,
}

impl Caller {
    /// Reads the headers of a request; without a client id there is no caller.
    pub fn of(metadata: &MetadataMap) -> Result<Self, Rejection> {
        let text = |key: &str| metadata.get(key).and_then(|value| value.to_str().ok());
        let client_id = text("x-mq-client-id").unwrap_or_default();
        if client_id.is_empty() {
            return Err(Rejection::ClientIdRequired);
        }
        if client_id.len() > CLIENT_ID_MAX_BYTES {
            return Err(Rejection::BadRequest(format!(
                "x-mq-client-id has {} bytes, the limit is {CLIENT_ID_MAX_BYTES}",
                client_id.len()
            )));
        }
        let language = text("x-mq-language").map_or(Language::Other, Language::of);
        Ok(Self {
            client_id: client_id.to_owned(),
            language,
            relayed: is_relayed(metadata),
            timeout: timeout_of(metadata),
        })
    }
}

/// The headers that a client of ours puts before its calls.
pub fn of_client(id: MetadataValue<Ascii>, version: &'static str) -> MetadataMap {
    let mut headers = MetadataMap::with_capacity(8);
    headers.insert("x-mq-client-id", id);
    headers.insert("x-mq-language", MetadataValue::from_static("RUST"));
    headers.insert("x-mq-protocol", MetadataValue::from_static("v2"));
    headers.insert("x-mq-client-version", MetadataValue::from_static(version));
    headers
}

/// `grpc-timeout`: up to eight digits and a unit. Some clients send decades.
pub fn timeout_of(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let count: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

/// The id of the caller, if it says it.
pub fn client_id_of(metadata: &MetadataMap) -> Option<&str> {
    metadata.get("x-mq-client-id").and_then(|value| value.to_str().ok())
}

/// Whether a door has relayed this request already.
pub fn is_relayed(metadata: &MetadataMap) -> bool {
    metadata.contains_key(HOP)
}

/// The headers a relayed request keeps, with the hop mark. The signature stays here: the door has verified it.
pub fn for_relay(metadata: &MetadataMap) -> MetadataMap {
    let mut kept = MetadataMap::with_capacity(16);
    for entry in metadata.iter() {
        if let KeyAndValueRef::Ascii(key, value) = entry
            && (key.as_str().starts_with("x-mq-") || key == SECRET || key == LINE)
        {
            kept.insert(key.clone(), value.clone());
        }
    }
    kept.insert(HOP, MetadataValue::from_static("1"));
    kept
}

/// Says, before a call is relayed, on which line its answer goes out. What the caller itself said of it is worth nothing.
pub fn set_line(metadata: &mut MetadataMap, number: Option<u64>) {
    match number {
        Some(number) => drop(metadata.insert(LINE, MetadataValue::from(number))),
        None => drop(metadata.remove(LINE)),
    }
}

/// The number of the line on which the answer to a relayed call goes out.
pub fn line_of(metadata: &MetadataMap) -> Option<u64> {
    metadata.get(LINE)?.to_str().ok()?.parse().ok()
}

/// Carries the cluster secret between nodes and from the tools.
const SECRET: &str = "x-karman-secret";

/// Adds the cluster secret to an outgoing call; an empty secret adds nothing.
pub fn add_secret(metadata: &mut MetadataMap, secret: &Secret) {
    if let Ok(value) = MetadataValue::try_from(secret.reveal())
        && !secret.is_empty()
    {
        metadata.insert(SECRET, value);
    }
}

/// Whether a call may use the internal services. An empty `secret` allows everyone, as RocketMQ does by default.
pub fn has_secret(metadata: &MetadataMap, secret: &Secret) -> bool {
    let given = metadata.get(SECRET).map_or(&b""[..], |value| value.as_bytes());
    // Compared without an early exit, so that the time taken does not tell how much of a guess was right.
    let wanted = secret.reveal().as_bytes();
    wanted.is_empty()
        || (given.len() == wanted.len()
            && given.iter().zip(wanted).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0)
}

/// [`has_secret`], or a refusal of `who` calls.
pub fn check_secret(metadata: &MetadataMap, secret: &Secret, who: &str) -> Result<(), Status> {
    let refused =
        || format!("the {who} does not carry this cluster's secret (clusterSecret); give both the same");
    if has_secret(metadata, secret) { Ok(()) } else { Err(Status::permission_denied(refused())) }
}

/// Whether a call carries the secret of a cluster that has one.
pub fn carries_secret(metadata: &MetadataMap, secret: &Secret) -> bool {
    !secret.is_empty() && has_secret(metadata, secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_without_client_id_has_no_caller() {
        assert_eq!(Caller::of(&MetadataMap::new()).unwrap_err(), Rejection::ClientIdRequired);
    }

    #[test]
    fn relaying_keeps_the_clients_headers_and_marks_the_hop() {
        let mut metadata = MetadataMap::new();
        metadata.insert("x-mq-client-id", MetadataValue::from_static("me"));
        metadata.insert("te", MetadataValue::from_static("trailers"));
        metadata.insert("authorization", MetadataValue::from_static("a signature"));
        let kept = for_relay(&metadata);
        assert_eq!(Caller::of(&kept).unwrap().client_id, "me");
        assert!(is_relayed(&kept) && !kept.contains_key("te") && !kept.contains_key("authorization"));
    }

    #[test]
    fn timeouts_of_decades_are_read() {
        let timeout = |text: &'static str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", MetadataValue::from_static(text));
            timeout_of(&metadata)
        };
        assert_eq!(timeout("31536000M"), Some(Duration::from_secs(31_536_000 * 60)));
        assert_eq!(timeout("23500m"), Some(Duration::from_millis(23_500)));
        for bad in ["", "S", "12", "123456789S", "-1S", "1x"] {
            assert_eq!(timeout(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_secret_must_match_when_there_is_one() {
        let mut metadata = MetadataMap::new();
        assert!(has_secret(&metadata, &Secret::default()));
        assert!(!has_secret(&metadata, &"open sesame".into()));
        add_secret(&mut metadata, &"open sesamf".into());
        assert!(!has_secret(&metadata, &"open sesame".into()));
        add_secret(&mut metadata, &"open sesame".into());
        assert!(has_secret(&metadata, &"open sesame".into()));
    }
}
