//! The signature that our programs put before operators' calls: it is of one call, at one node. Pure; any thread.
//!
//! `authorization: Karman-HMAC-SHA1 Credential=<access key>,
//! SignedHeaders=:path;x-karman-node;x-karman-nonce;x-mq-date-time, Signature=<hex>`, the signature being HMAC-SHA1 with the secret
//! over the scheme and the four values, each on a line of its own. So whoever has read it cannot send it again: the node remembers
//! the nonce for as long as the time counts, and the number in `x-karman-node` is that of one node until it is started anew. A node
//! tells its number to whoever asks with [`ASKS`].
//!
//! What a client signs is one line, and a header has no more than one: neither of the two signatures is ever the other, though both
//! are made with the same key.

use super::signature::{self, Claim, Keyed};
use crate::civil;

/// The header with the number of the node that the call is for; also of the answer to who asks for it.
pub const NODE: &str = "x-karman-node";
/// The header with a number that no other call has.
pub const NONCE: &str = "x-karman-nonce";
/// The header of a call that asks for the number of the node, and for nothing else.
pub const ASKS: &str = "x-karman-asks";

/// What an `authorization` header of this kind begins with.
pub const SCHEME: &str = "Karman-HMAC-SHA1";
const SIGNED: &str = ":path;x-karman-node;x-karman-nonce;x-mq-date-time";

/// How far the clock of an operator may be from that of the node, either way. Milliseconds.
pub const SKEW_MAX_MS: u64 = 300_000;

/// What is signed.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// Of the method: `/karman.v1.Admin/ListTopics`
    pub path: &'a str,
    /// The node's number.
    pub node: &'a str,
    /// As [`random`] makes them.
    pub nonce: &'a str,
    /// As [`civil::format_ms`] writes it.
    pub date_time: &'a str,
}

impl Call<'_> {
    fn text(&self) -> String {
        let Self { path, node, nonce, date_time } = self;
        format!("{SCHEME}\n{path}\n{node}\n{nonce}\n{date_time}")
    }

    /// The `authorization` header of this call.
    pub fn sign(&self, access_key: &str, key: &Keyed) -> String {
        signature::sign_as(SCHEME, SIGNED, access_key, key, &self.text())
    }

    /// Whether `claim` was made with this key, of this call.
    pub fn is_signed(&self, claim: &Claim<'_>, key: &Keyed) -> bool {
        claim.is_of(key, &self.text())
    }
}

/// Reads the header; `None` when it is none of an operator.
pub fn parse(header: &str) -> Option<Claim<'_>> {
    Claim::parse_as(SCHEME, header)
}

/// 128 random bits, as 32 digits: the number of a node, or of a call.
pub fn random() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// What [`random`] wrote.
pub fn parse_nonce(text: &str) -> Option<u128> {
    let is_nonce = text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    u128::from_str_radix(text, 16).ok().filter(|_| is_nonce)
}

/// When it was signed, milliseconds since 1970, if that is just now.
pub fn signed_just_now(date_time: &str, now_ms: u64) -> Option<u64> {
    civil::parse_ms(date_time).filter(|signed_ms| signed_ms.abs_diff(now_ms) <= SKEW_MAX_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALL: Call<'static> = Call {
        path: "/karman.v1.Admin/DeleteTopic",
        node: "00000000000000000000000000000001",
        nonce: "00000000000000000000000000000002",
        date_time: "2026-11-28 08:00:00",
    };

    #[test]
    fn a_signature_is_of_one_method_of_one_node_once_and_at_one_time() {
        let key = signature::key("secret of root");
        let header = CALL.sign("root", &key);
        let claim = parse(&header).expect(&header);
        assert_eq!(claim.access_key, "root");
        assert!(CALL.is_signed(&claim, &key));
        assert!(!CALL.is_signed(&claim, &signature::key("secret of rooT")));
        let other = "00000000000000000000000000000003";
        for call in [
            Call { path: "/karman.v1.Admin/CreateTopic", ..CALL },
            Call { node: other, ..CALL },
            Call { nonce: other, ..CALL },
            Call { date_time: "2026-11-28 08:00:01", ..CALL },
        ] {
            assert!(!call.is_signed(&claim, &key), "{call:?}");
        }
    }

    #[test]
    fn what_a_client_signs_is_no_operator_s_and_the_other_way_round() {
        let key = signature::key("secret of root");
        let of_client = signature::sign("root", &key, CALL.date_time);
        assert_eq!(parse(&of_client), None);
        assert!(!CALL.is_signed(&Claim::parse(&of_client).expect("a client's"), &key));
        assert_eq!(Claim::parse(&CALL.sign("root", &key)), None);
    }

    #[test]
    fn a_nonce_has_one_spelling() {
        assert_eq!(parse_nonce(CALL.nonce), Some(2));
        assert!(parse_nonce(&random()).is_some());
        for other in ["", "2", "+0000000000000000000000000000002", "0000000000000000000000000000000A"] {
            assert_eq!(parse_nonce(other), None, "{other}");
        }
    }
}
