//! The bytes of a token. They are put together on the stack; a token costs one allocation, its text.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::Mac as _;

use super::{MAX_BROKER_NAME_BYTES, TokenError, TokenKey};

const VERSION: u8 = 1;
/// Version, kind, length of the broker's name.
const HEADER_BYTES: usize = 3;
/// 96 bits: 2^96 guesses at a message queue's door are out of reach, and a receipt handle stays short.
const TAG_BYTES: usize = 12;
/// The fields of a receipt handle, the largest.
const MAX_FIELDS_BYTES: usize = 36;
const MAX_TOKEN_BYTES: usize = HEADER_BYTES + MAX_BROKER_NAME_BYTES + MAX_FIELDS_BYTES + TAG_BYTES;
/// Of [`MAX_TOKEN_BYTES`] in base64. Longer texts are not looked at.
pub(super) const MAX_TEXT_BYTES: usize = MAX_TOKEN_BYTES.div_ceil(3) * 4;

pub(super) struct Writer {
    bytes: [u8; MAX_TOKEN_BYTES],
    filled: usize,
}

impl Writer {
    pub(super) fn new(kind: u8, broker: &str) -> Self {
        assert!(broker.len() <= MAX_BROKER_NAME_BYTES, "the broker's name was checked at start");
        let mut writer = Self { bytes: [0; MAX_TOKEN_BYTES], filled: 0 };
        writer.put(&[VERSION, kind, broker.len() as u8]);
        writer.put(broker.as_bytes());
        writer
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.filled..][..bytes.len()].copy_from_slice(bytes);
        self.filled += bytes.len();
    }

    pub(super) fn put_u32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }

    pub(super) fn put_u64(&mut self, value: u64) {
        self.put(&value.to_le_bytes());
    }

    pub(super) fn finish(mut self, key: &TokenKey) -> String {
        let tag = key.keyed.clone().chain_update(&self.bytes[..self.filled]).finalize().into_bytes();
        self.put(&tag[..TAG_BYTES]);
        URL_SAFE_NO_PAD.encode(&self.bytes[..self.filled])
    }
}

/// The signed part of a token whose tag was right.
pub(super) struct Reader {
    bytes: [u8; MAX_TOKEN_BYTES],
    at: usize,
    end: usize,
}

impl Reader {
    pub(super) fn new(kind: u8, key: &TokenKey, token: &str) -> Result<Self, TokenError> {
        let mut reader = Self::unverified(token)?;
        match reader.take(2)? {
            &[VERSION, found] if found == kind => {}
            &[VERSION, _] => return Err(TokenError::WrongKind),
            other => return Err(TokenError::UnsupportedVersion(other[0])),
        }
        let (signed, tag) =
            reader.bytes[..reader.end].split_last_chunk::<TAG_BYTES>().ok_or(TokenError::Malformed)?;
        // Compares in constant time.
        key.keyed.clone().chain_update(signed).verify_truncated_left(tag).map_err(|_| TokenError::Forged)?;
        reader.end -= TAG_BYTES;
        Ok(reader)
    }

    fn unverified(token: &str) -> Result<Self, TokenError> {
        if token.len() > MAX_TEXT_BYTES {
            return Err(TokenError::Malformed);
        }
        let mut bytes = [0; MAX_TOKEN_BYTES];
        let end = URL_SAFE_NO_PAD.decode_slice(token, &mut bytes).map_err(|_| TokenError::Malformed)?;
        Ok(Self { bytes, at: 0, end })
    }

    fn take(&mut self, size: usize) -> Result<&[u8], TokenError> {
        let taken = self.bytes[self.at..self.end].get(..size).ok_or(TokenError::Malformed)?;
        self.at += size;
        Ok(taken)
    }

    fn take_array<const SIZE: usize>(&mut self) -> Result<[u8; SIZE], TokenError> {
        self.take(SIZE).map(|taken| taken.try_into().expect("as many were taken"))
    }

    pub(super) fn broker(&mut self) -> Result<Arc<str>, TokenError> {
        let [size] = self.take_array()?;
        std::str::from_utf8(self.take(size.into())?).map(Arc::from).map_err(|_| TokenError::Malformed)
    }

    pub(super) fn take_u32(&mut self) -> Result<u32, TokenError> {
        self.take_array().map(u32::from_le_bytes)
    }

    pub(super) fn take_u64(&mut self) -> Result<u64, TokenError> {
        self.take_array().map(u64::from_le_bytes)
    }

    pub(super) fn finish(self) -> Result<(), TokenError> {
        if self.at == self.end { Ok(()) } else { Err(TokenError::Malformed) }
    }
}

pub(super) fn broker_name_of(token: &str) -> Option<String> {
    let mut reader = Reader::unverified(token).ok()?;
    let &[VERSION, _, size] = reader.take(HEADER_BYTES).ok()? else { return None };
    std::str::from_utf8(reader.take(size.into()).ok()?).ok().map(str::to_owned)
}
