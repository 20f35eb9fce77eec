//! How messages become bytes and back: as tonic's own codec does it, with smaller buffers. The build script names it to the generated
//! code; runs wherever a call does.
//!
//! tonic gives each call a buffer of 8 KiB as soon as it begins, for the request, and one for the answer. Most are a few hundred
//! bytes, and a call that only waits (a long poll, an attacker's) should take as little as it can. A message of 1 KiB with its envelope
//! finds room in the first buffer of its request.

use std::marker::PhantomData;

use prost::Message;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

const REQUEST_BYTES: usize = 2048;
const ANSWER_BYTES: usize = 1024;
/// So many bytes of a stream are encoded before they are handed on: tonic's own.
const YIELD_BYTES: usize = 32 * 1024;

/// See the module's comment.
#[derive(Debug)]
pub struct SmallBuffers<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for SmallBuffers<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for SmallBuffers<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(ANSWER_BYTES, YIELD_BYTES))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(REQUEST_BYTES, YIELD_BYTES))
    }
}
