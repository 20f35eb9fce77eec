//! The Rust SDK of Karman: producers and consumers over one [`Client`].
//!
//! | to | there is |
//! |---|---|
//! | send messages: ordered, delayed, with a priority, with a time to live | [`Producer`], [`Message`] |
//! | send many: collected, and sent together | [`BatchingProducer`] |
//! | send, and keep on disk what cannot be sent now | [`SpoolingProducer`] |
//! | send a message if, and only if, something else is done | [`TransactionProducer`] |
//! | have a function called for each message | [`PushConsumer`] |
//! | ask for messages and acknowledge them one by one | [`SimpleConsumer`] |
//! | read messages one after the other, as a stream | [`SimpleConsumer::stream`], [`PullGroup`] |
//! | pull ahead, queues shared out among the members of a group as in RocketMQ | [`Client::pull_group`], [`AllocateStrategy`] |
//! | pull ahead, all queues at each consumer, with offsets in a file of its own | [`Client::pull_broadcast`] |
//! | read queues from an offset on | [`PullConsumer`] |
//! | send and read values, not bytes | [`Message::encoded`], [`MessageView::decoded`] with `Json`, [`Protobuf`] or [`Raw`] |
//! | have an effect once though its message comes twice | [`once`] with a [`MemoryStore`], a [`FileStore`] or a `RedisStore` |
//! | ask, and wait for the reply | [`Client::requester`], [`MessageView::reply`] |
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use karman_client::{Client, ClientOptions, FilterExpression, Message};
//!
//! # async fn example() -> Result<(), karman_client::ClientError> {
//! let client = Client::connect("127.0.0.1:8081", ClientOptions::default()).await?;
//!
//! let receipt = client.producer().send(Message::new("orders", "a book").tag("new")).await?;
//! println!("{} is stored at {}", receipt.message_id, receipt.broker);
//!
//! let consumer = client.simple_consumer("shipping", [("orders", FilterExpression::all())])?;
//! for message in consumer.receive(32, Duration::from_secs(30)).await? {
//!     println!("{:?}", message.body());
//!     consumer.ack(&message).await?;
//! }
//! client.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! Everything works on the tokio runtime that [`Client::connect`] was called on, in tasks that end with the client.
//! Every call has a deadline, made of [`ClientOptions::request_timeout`]. Every future may be dropped; what that means
//! for the message under way is said at each function.
//!
//! | feature | what it brings |
//! |---|---|
//! | `json`, on by default: most bodies are JSON, and the crates it takes are below this one anyway | the codec `Json` |
//! | `redis` | `RedisStore`, over the crate of that name |
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod allocate;
mod client;
mod codec;
mod consuming;
mod dedupe;
mod error;
mod members;
mod message;
mod message_id;
mod producer;
mod pull_consumer;
mod pull_group;
mod push_consumer;
mod request_reply;
mod retry;
mod route;
mod session;
mod simple_consumer;
mod spool;
mod transaction;
mod transport;
mod view;

pub use karman_remoting::auth::credentials::Credentials;
pub use karman_remoting::channel::ClientTls;
pub use karman_remoting::proto::v2::Code;

pub use self::allocate::{AllocateStrategy, AllocateWith, QueueName};
pub use self::client::{Client, ClientOptions};
#[cfg(feature = "json")]
pub use self::codec::Json;
pub use self::codec::{Codec, CodecError, Protobuf, Raw};
#[cfg(feature = "redis")]
pub use self::dedupe::RedisStore;
pub use self::dedupe::{
    Claim, ClaimToken, DedupeError, DedupeLimits, DedupeStore, FileStore, MemoryStore, OnceError, once,
};
pub use self::error::ClientError;
pub use self::message::{FilterExpression, Message};
pub use self::producer::{
    BatchingOptions, BatchingProducer, BatchingSink, BrokerChoice, ChooseBroker, Choosing, Delivery,
    Producer, ProducerOptions, SendReceipt,
};
pub use self::pull_consumer::{MessageQueue, PullConsumer, Pulled, QueryOffset};
pub use self::pull_group::{GroupMessage, PullGroup, PullGroupOptions};
pub use self::push_consumer::{PushConsumer, PushOptions};
pub use self::request_reply::{ReplyError, RequestError, Requester, RequesterOptions};
pub use self::simple_consumer::SimpleConsumer;
pub use self::spool::{Sent, SpoolingProducer};
pub use self::transaction::{Resolution, Transaction, TransactionProducer};
pub use self::view::{MessageView, ReceivedMessage};
