//! The signature that clients put before their calls. Pure; any thread.
//!
//! `authorization: MQv2-HMAC-SHA1 Credential=<access key>[/region/service], SignedHeaders=x-mq-date-time,
//! Signature=<hex>`, the signature being HMAC-SHA1 over the value of `x-mq-date-time` with the secret. Nothing else is
//! signed and the time of a client's call is not checked, for the official clients write it in four forms and three time zones: who
//! reads a call on its way can send it again. That is what TLS is for. Operators' calls, which come from our own programs, are signed
//! in another way (see [`super::operator`]): what a client signed is never one of them.

use hmac::{Hmac, Mac as _};
use sha1::Sha1;

/// The header with the signature.
pub const AUTHORIZATION: &str = "authorization";
/// The header that is signed.
pub const DATE_TIME: &str = "x-mq-date-time";

const SCHEME: &str = "MQv2-HMAC-SHA1";
const DIGEST_BYTES: usize = 20;

/// A secret, worked in. Is never printed.
pub type Keyed = Hmac<Sha1>;

/// What an `authorization` header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim<'a> {
    /// Who it claims to be: a user's name.
    pub access_key: &'a str,
    digest: [u8; DIGEST_BYTES],
}

/// A key from a secret.
pub fn key(secret: &str) -> Keyed {
    Keyed::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length")
}

impl<'a> Claim<'a> {
    /// Reads the header; `None` when it is none.
    pub fn parse(header: &'a str) -> Option<Self> {
        Self::parse_as(SCHEME, header)
    }

    /// The same of another scheme.
    pub(super) fn parse_as(scheme: &str, header: &'a str) -> Option<Self> {
        let fields = header.trim().strip_prefix(scheme)?.strip_prefix(' ')?;
        let field = |name: &str| {
            let mut all = fields.split(',').map(str::trim);
            all.find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
        };
        // Go and C++ say for which region and service it is.
        let access_key = field("Credential")?.split('/').next()?;
        Some(Self { access_key, digest: from_hex(field("Signature")?)? })
    }

    /// Whether it was signed with this key, over this text: of a client's call the time. Takes as long whatever differs.
    pub fn is_of(&self, key: &Keyed, signed: &str) -> bool {
        key.clone().chain_update(signed).verify_slice(&self.digest).is_ok()
    }
}

/// The header of a client of ours.
pub fn sign(access_key: &str, key: &Keyed, date_time: &str) -> String {
    sign_as(SCHEME, DATE_TIME, access_key, key, date_time)
}

/// The header of another scheme: `headers` are those that `signed` is made of.
pub(super) fn sign_as(scheme: &str, headers: &str, access_key: &str, key: &Keyed, signed: &str) -> String {
    let digest = key.clone().chain_update(signed).finalize().into_bytes();
    let mut text = format!("{scheme} Credential={access_key}, SignedHeaders={headers}, Signature=");
    for byte in digest {
        text.push(char::from(HEX[usize::from(byte >> 4)]));
        text.push(char::from(HEX[usize::from(byte & 15)]));
    }
    text
}

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Java, Node, C# and C++ write it in upper case, the others in lower case.
fn from_hex(text: &str) -> Option<[u8; DIGEST_BYTES]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * DIGEST_BYTES {
        return None;
    }
    let mut bytes = [0; DIGEST_BYTES];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |at: usize| char::from(pair[at]).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        *byte = digit(0)? << 4 | digit(1)?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// HMAC-SHA1 with key "key" of a text whose digest is written in many books.
    const TEXT: &str = "The quick brown fox jumps over the lazy dog";
    const DIGEST: &str = "de7c9b85b8b78aa6bc8a7a36f70a90701c9db4d9";

    #[test]
    fn the_signature_is_that_of_the_standard() {
        assert_eq!(
            sign("me", &key("key"), TEXT),
            format!("MQv2-HMAC-SHA1 Credential=me, SignedHeaders=x-mq-date-time, Signature={DIGEST}")
        );
    }

    #[test]
    fn every_official_spelling_is_read() {
        let upper = DIGEST.to_uppercase();
        for (credential, digest) in
            [("me", upper.as_str()), ("me//Rocketmq", DIGEST), ("me/cn-hangzhou/RocketMQ", upper.as_str())]
        {
            let header = format!(
                "MQv2-HMAC-SHA1 Credential={credential}, SignedHeaders=x-mq-date-time, Signature={digest}"
            );
            let claim = Claim::parse(&header).expect(&header);
            assert_eq!(claim.access_key, "me");
            assert!(claim.is_of(&key("key"), TEXT));
            assert!(!claim.is_of(&key("kez"), TEXT));
            assert!(!claim.is_of(&key("key"), "another time"));
        }
    }

    #[test]
    fn what_is_no_signature_is_none() {
        let long = "f".repeat(70_000);
        for bad in [
            "",
            "Basic bWU6a2V5",
            "MQv2-HMAC-SHA1",
            "MQv2-HMAC-SHA1 Credential=me",
            "MQv2-HMAC-SHA1 Credential=me, Signature=",
            "MQv2-HMAC-SHA1 Credential=me, Signature=zz7c9b85b8b78aa6bc8a7a36f70a90701c9db4d9",
            "MQv2-HMAC-SHA1 Signature=de7c9b85b8b78aa6bc8a7a36f70a90701c9db4d9",
            "MQv2-HMAC-SHA1 Credential=me, Signature=\u{e9}e7c9b85b8b78aa6bc8a7a36f70a90701c9db4d",
            &format!("MQv2-HMAC-SHA1 Credential=me, Signature={long}"),
        ] {
            assert_eq!(Claim::parse(bad), None, "{}", &bad[..bad.len().min(80)]);
        }
    }
}
