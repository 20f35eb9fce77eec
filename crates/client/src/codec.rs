//! Values as bodies of messages, and back. Pure.
//!
//! A message that was made of a value says in a property how it is written. Who reads it with another codec is told so,
//! and does not take for an order what is none.

use std::error::Error;

use bytes::Bytes;

use crate::message::Message;
use crate::view::MessageView;

/// The property that says how the body is written: a media type such as `application/json`.
const CONTENT_TYPE_PROPERTY: &str = "content-type";

/// Why a value did not become a body, or a body no value.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The value cannot be written so.
    #[error("a message for {topic:?} cannot be written as {content_type}: {why}")]
    Unwritable {
        /// Where it was to go.
        topic: String,
        /// What it was to be.
        content_type: &'static str,
        /// What the library said.
        why: Box<dyn Error + Send + Sync>,
    },
    /// The message says that it is written in another way.
    #[error(
        "message {message_id} of {topic:?} is {found:?} and was to be read as {wanted:?}; read it with the codec that it was written with"
    )]
    WrongCodec {
        /// Which message.
        message_id: String,
        /// Its topic.
        topic: String,
        /// What its property `content-type` says.
        found: String,
        /// What the codec reads.
        wanted: &'static str,
    },
    /// The body is not what the codec reads, or not this kind of value.
    #[error("the body of message {message_id} of {topic:?} cannot be read as {content_type}: {why}")]
    Unreadable {
        /// Which message.
        message_id: String,
        /// Its topic.
        topic: String,
        /// What the codec reads.
        content_type: &'static str,
        /// What the library said.
        why: Box<dyn Error + Send + Sync>,
    },
}

/// A way to write values of the type `T` as bytes. Your own is a type with two functions:
///
/// ```
/// use bytes::Bytes;
/// use karman_client::{Codec, Message};
///
/// struct Text;
///
/// impl Codec<String> for Text {
///     const CONTENT_TYPE: &str = "text/plain";
///     type Error = std::string::FromUtf8Error;
///
///     fn encode(text: &String) -> Result<Bytes, Self::Error> {
///         Ok(text.clone().into())
///     }
///
///     fn decode(body: &Bytes) -> Result<String, Self::Error> {
///         String::from_utf8(body.to_vec())
///     }
/// }
///
/// let message = Message::encoded("orders", Text, &"a book".to_owned())?;
/// assert_eq!(message, Message::new("orders", "a book").property("content-type", "text/plain"));
/// # Ok::<(), karman_client::CodecError>(())
/// ```
pub trait Codec<T> {
    /// What messages say they are: a media type, without parameters.
    const CONTENT_TYPE: &str;
    /// Why a value cannot be written or read.
    type Error: Into<Box<dyn Error + Send + Sync>>;

    /// The body for a value.
    fn encode(value: &T) -> Result<Bytes, Self::Error>;

    /// The value of a body.
    fn decode(body: &Bytes) -> Result<T, Self::Error>;
}

/// JSON, `application/json`, of all that `serde` writes and reads. Feature `json`.
///
/// ```
/// use karman_client::{Json, Message};
///
/// let order = vec![("a book".to_owned(), 2)];
/// let message = Message::encoded("orders", Json, &order)?;
/// let same = Message::new("orders", r#"[["a book",2]]"#).property("content-type", "application/json");
/// assert_eq!(message, same);
/// # Ok::<(), karman_client::CodecError>(())
/// ```
#[cfg(feature = "json")]
#[derive(Clone, Copy, Debug)]
pub struct Json;

#[cfg(feature = "json")]
impl<T: serde::Serialize + serde::de::DeserializeOwned> Codec<T> for Json {
    const CONTENT_TYPE: &str = "application/json";
    type Error = serde_json::Error;

    fn encode(value: &T) -> Result<Bytes, Self::Error> {
        serde_json::to_vec(value).map(Bytes::from)
    }

    fn decode(body: &Bytes) -> Result<T, Self::Error> {
        serde_json::from_slice(body)
    }
}

/// Protobuf, `application/x-protobuf`, of the messages that `prost` makes.
///
/// The bytes do not say of which message type they are: keep to one for a topic. A value whose fields are all at their
/// defaults has no bytes, and the server takes no empty body.
///
/// ```
/// use karman_client::{Message, Protobuf};
///
/// // Any message that prost has made; a string alone is the well-known type StringValue.
/// let message = Message::encoded("orders", Protobuf, &"a book".to_owned())?;
/// let same = Message::new("orders", "\n\x06a book").property("content-type", "application/x-protobuf");
/// assert_eq!(message, same);
/// # Ok::<(), karman_client::CodecError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Protobuf;

impl<T: prost::Message + Default> Codec<T> for Protobuf {
    const CONTENT_TYPE: &str = "application/x-protobuf";
    type Error = prost::DecodeError;

    fn encode(value: &T) -> Result<Bytes, Self::Error> {
        Ok(value.encode_to_vec().into())
    }

    fn decode(body: &Bytes) -> Result<T, Self::Error> {
        T::decode(body.clone())
    }
}

/// Bytes as they are, `application/octet-stream`. [`MessageView::body`] has the bytes of a message whatever it says of
/// itself.
///
/// ```
/// use bytes::Bytes;
/// use karman_client::{Message, Raw};
///
/// let message = Message::encoded("orders", Raw, &Bytes::from_static(b"\x00\x01"))?;
/// let same = Message::new("orders", &b"\x00\x01"[..]).property("content-type", "application/octet-stream");
/// assert_eq!(message, same);
/// # Ok::<(), karman_client::CodecError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Raw;

impl Codec<Bytes> for Raw {
    const CONTENT_TYPE: &str = "application/octet-stream";
    type Error = std::convert::Infallible;

    fn encode(value: &Bytes) -> Result<Bytes, Self::Error> {
        Ok(value.clone())
    }

    fn decode(body: &Bytes) -> Result<Bytes, Self::Error> {
        Ok(body.clone())
    }
}

impl Message {
    /// A message for `topic` whose body is `value`, and whose property `content-type` says how it is written.
    ///
    /// ```
    /// use karman_client::{Message, Protobuf};
    ///
    /// let message = Message::encoded("orders", Protobuf, &"a book".to_owned())?.tag("new").key("17");
    /// # Ok::<(), karman_client::CodecError>(())
    /// ```
    pub fn encoded<T, C: Codec<T>>(
        topic: impl Into<String>,
        _codec: C,
        value: &T,
    ) -> Result<Self, CodecError> {
        let topic = topic.into();
        match C::encode(value) {
            Ok(body) => Ok(Self::new(topic, body).property(CONTENT_TYPE_PROPERTY, C::CONTENT_TYPE)),
            Err(why) => Err(CodecError::Unwritable { topic, content_type: C::CONTENT_TYPE, why: why.into() }),
        }
    }
}

impl MessageView {
    /// The value in the body.
    ///
    /// A message that does not say how it is written is read all the same: producers in other languages, or older ones,
    /// do not know the property. What stands behind a `;` in it is not looked at.
    ///
    /// ```
    /// use karman_client::{CodecError, MessageView, Protobuf};
    ///
    /// fn title(order: &MessageView) -> Result<String, CodecError> {
    ///     order.decoded(Protobuf)
    /// }
    /// ```
    pub fn decoded<T, C: Codec<T>>(&self, _codec: C) -> Result<T, CodecError> {
        let found = self.property(CONTENT_TYPE_PROPERTY).unwrap_or_default();
        let media_type = found.split(';').next().unwrap_or_default().trim();
        if !media_type.is_empty() && !media_type.eq_ignore_ascii_case(C::CONTENT_TYPE) {
            return Err(CodecError::WrongCodec {
                message_id: self.message_id().to_owned(),
                topic: self.topic().to_owned(),
                found: found.to_owned(),
                wanted: C::CONTENT_TYPE,
            });
        }
        C::decode(self.body()).map_err(|why| CodecError::Unreadable {
            message_id: self.message_id().to_owned(),
            topic: self.topic().to_owned(),
            content_type: C::CONTENT_TYPE,
            why: why.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::message::Birth;

    fn delivered(message: Message) -> MessageView {
        let birth = Birth { time: SystemTime::UNIX_EPOCH, host: "here", in_transaction: false };
        MessageView::decode(message.encode(0, "01AB".into(), &birth).unwrap().bytes, "n:1").unwrap()
    }

    #[cfg(feature = "json")]
    #[test]
    fn a_value_comes_back_as_json() {
        let order = vec![("a book".to_owned(), 2)];
        let view = delivered(Message::encoded("orders", Json, &order).unwrap());
        assert_eq!(view.body(), r#"[["a book",2]]"#);
        assert_eq!(view.decoded::<Vec<(String, i32)>, _>(Json).unwrap(), order);
    }

    #[test]
    fn a_value_comes_back_as_protobuf_and_as_bytes() {
        let duration = prost_types::Duration { seconds: 5, nanos: 7 };
        let view = delivered(Message::encoded("orders", Protobuf, &duration).unwrap());
        assert_eq!(view.decoded::<prost_types::Duration, _>(Protobuf).unwrap(), duration);
        let bytes = Bytes::from_static(&[0, 255]);
        let view = delivered(Message::encoded("orders", Raw, &bytes).unwrap());
        assert_eq!(view.decoded(Raw).unwrap(), bytes);
    }

    #[cfg(feature = "json")]
    #[test]
    fn the_wrong_codec_is_told_which_message_what_it_is_and_what_was_wanted() {
        // These bytes are JSON as well: without the property they would be taken for it.
        let view = delivered(Message::encoded("orders", Raw, &Bytes::from_static(b"17")).unwrap());
        let error = view.decoded::<u32, _>(Json).unwrap_err().to_string();
        for part in ["01AB", "orders", "application/octet-stream", "application/json"] {
            assert!(error.contains(part), "{part} is not in {error}");
        }
    }

    #[test]
    fn a_body_that_cannot_be_read_is_an_error_that_names_the_message() {
        let view = delivered(Message::new("orders", &b"\xff"[..]));
        let error = view.decoded::<prost_types::Duration, _>(Protobuf).unwrap_err();
        assert!(matches!(error, CodecError::Unreadable { .. }));
        assert!(error.to_string().contains("01AB"), "{error}");
    }

    #[test]
    fn parameters_and_the_case_of_a_content_type_do_not_matter_and_it_may_be_missing() {
        let with = |content_type: &str| {
            delivered(Message::new("orders", "17").property(CONTENT_TYPE_PROPERTY, content_type))
        };
        for same in ["application/octet-stream", "Application/Octet-Stream ; version=2", ""] {
            assert_eq!(with(same).decoded(Raw).unwrap(), "17", "{same:?}");
        }
        assert!(with("application/octet").decoded(Raw).is_err());
        assert_eq!(delivered(Message::new("orders", "17")).decoded(Raw).unwrap(), "17");
    }
}
