//! A place for messages while no broker can be reached: the disk of the machine that sends.
//!
//! One task of the client owns the directory ([`files`]): it writes what is to be kept, many messages with one sync, and
//! sends what is kept as soon as brokers answer again, in the order in which it came.

mod files;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use karman_remoting::message::EncodedMessage;
use karman_remoting::settings::MAX_BODY_SIZE_BYTES;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};

use self::files::Files;
use crate::error::ClientError;
use crate::message::{Message, Outgoing};
use crate::producer::{Batch, Inner, Producer, SendReceipt};

/// Messages that wait to be written; more wait to be heard.
const ASKING: usize = 1024;
/// Messages in one request.
const BATCH: usize = 256;
/// While no broker takes a message the first is tried again after so long, twice as long each time ...
const PAUSE: Duration = Duration::from_millis(500);
/// ... and at most so long.
const PAUSE_MAX: Duration = Duration::from_secs(15);

/// What became of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sent {
    /// A broker has stored it.
    Stored(SendReceipt),
    /// It is on the disk of this machine, and will be sent when brokers can be reached.
    Spooled {
        /// The id that it will be delivered with.
        message_id: String,
    },
}

/// Sends messages, and keeps them on disk while no broker takes them; made by [`Producer::spooling`]. A clone is a handle
/// to the same.
///
/// A message is kept when its attempts have failed for a reason that another attempt may mend, and at once while it is
/// known that nothing can be sent. While messages are kept, those with a message group or a lite topic are kept behind them,
/// so that they arrive in their order. What is kept survives the end of the process and of the machine; the next process
/// that opens the directory sends it. A message may be stored twice: when an attempt has stored it unnoticed, and after a
/// crash; its id is the same, by which a broker tells within its `dedupWindowMinutes`.
///
/// What no server takes, for its topic is gone or its time too far ahead, is put into `refused.spool` in the directory,
/// counted by [`SpoolingProducer::refused`], and told in the log.
#[derive(Clone, Debug)]
pub struct SpoolingProducer(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    producer: Arc<Inner>,
    shared: Arc<Shared>,
    asks: mpsc::Sender<Ask>,
    bytes_max: u64,
    /// Ends the task; what is kept stays.
    _stop: DropGuard,
}

#[derive(Debug, Default)]
struct Shared {
    /// Bytes on disk that are not sent.
    bytes: AtomicU64,
    /// Messages that are about to be written.
    entering: AtomicU64,
    refused: AtomicU64,
    /// The last attempt to send what is kept has failed.
    is_cut_off: AtomicBool,
}

/// A message to be kept, and whom to tell when it is.
#[derive(Debug)]
struct Ask {
    message: Bytes,
    told: oneshot::Sender<Result<(), String>>,
}

impl Producer {
    /// A producer that keeps messages in `directory` while no broker takes them, `bytes_max` bytes at most. Sends what
    /// an earlier process has left there.
    ///
    /// ```no_run
    /// # use karman_client::{Client, ClientError, Message, Sent};
    /// # async fn example(client: Client) -> Result<(), ClientError> {
    /// let producer = client.producer().spooling("/var/spool/orders", 1 << 30).await?;
    /// match producer.send(Message::new("orders", "a book")).await? {
    ///     Sent::Stored(receipt) => println!("stored by {}", receipt.broker),
    ///     Sent::Spooled { message_id } => println!("{message_id} is kept and will be sent"),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn spooling(
        &self,
        directory: impl AsRef<Path>,
        bytes_max: u64,
    ) -> Result<SpoolingProducer, ClientError> {
        let directory: PathBuf = directory.as_ref().to_owned();
        let producer = self.inner();
        producer.client.check_open()?;
        let opened = tokio::task::spawn_blocking({
            let directory = directory.clone();
            move || Files::open(&directory)
        });
        let files = opened.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        let files = files.map_err(|error| ClientError::Spool {
            directory: directory.clone(),
            why: format!("it cannot be opened: {error}"),
        })?;
        let shared = Arc::new(Shared { bytes: AtomicU64::new(files.bytes()), ..Shared::default() });
        let (asks, asked) = mpsc::channel(ASKING);
        let stop = producer.client.stop_token();
        let keeper = Keeper { files: Some(files), producer: producer.clone(), shared: shared.clone() };
        producer.client.spawn(keeper.run(asked, stop.clone()));
        let handle = Handle { producer, shared, asks, bytes_max, _stop: stop.drop_guard() };
        Ok(SpoolingProducer(Arc::new(handle)))
    }
}

impl SpoolingProducer {
    /// Sends a message, or keeps it. Fails when a server refuses it, and when it can be neither sent nor kept; then it is
    /// not known to be anywhere.
    pub async fn send(&self, message: Message) -> Result<Sent, ClientError> {
        let Handle { producer, shared, .. } = &*self.0;
        producer.client.check_open()?;
        let topic: Arc<str> = message.topic().into();
        let outgoing = producer.outgoing(0, message, SystemTime::now(), false)?;
        let must_queue = outgoing.order_key.is_some() && self.is_keeping();
        if must_queue || (shared.is_cut_off.load(Ordering::Relaxed) && self.is_keeping()) {
            return self.keep(outgoing).await;
        }
        let batch = Batch { topic, in_transaction: false, messages: vec![outgoing] };
        match producer.deliver(&batch).await {
            Ok(mut stored) => {
                let stored = stored.pop().expect("there is one result for each message")?;
                Ok(Sent::Stored(stored.receipt))
            }
            Err(error) if error.is_retryable() => {
                tracing::debug!(%error, "a message is kept");
                let outgoing = batch.messages.into_iter().next().expect("it was put there");
                self.keep(outgoing).await
            }
            Err(error) => Err(error),
        }
    }

    /// Bytes on disk that are not sent yet.
    pub fn kept_bytes(&self) -> u64 {
        self.0.shared.bytes.load(Ordering::Relaxed)
    }

    /// Messages that no server took, since the directory was opened.
    pub fn refused(&self) -> u64 {
        self.0.shared.refused.load(Ordering::Relaxed)
    }

    fn is_keeping(&self) -> bool {
        let shared = &self.0.shared;
        shared.bytes.load(Ordering::Acquire) > 0 || shared.entering.load(Ordering::Acquire) > 0
    }

    async fn keep(&self, message: Outgoing) -> Result<Sent, ClientError> {
        let Handle { shared, asks, bytes_max, producer, .. } = &*self.0;
        let timeout = producer.session.transport.request_timeout;
        if self.kept_bytes() + message.bytes.len() as u64 > *bytes_max {
            let limit = format!("the spool holds {bytes_max} bytes, as many as it may; send later");
            return Err(ClientError::Full { limit, waited: Duration::ZERO });
        }
        let _entering = Entering::new(shared);
        let (told, answer) = oneshot::channel();
        let asked = asks.send(Ask { message: message.bytes, told });
        match tokio::time::timeout(timeout, asked).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(ClientError::Closed),
            Err(_) => {
                let limit = format!("{ASKING} messages wait to be written to the spool; its disk is slow");
                return Err(ClientError::Full { limit, waited: timeout });
            }
        }
        let written = answer.await.map_err(|_| ClientError::Closed)?;
        written.map_err(|why| ClientError::Spool { directory: PathBuf::new(), why })?;
        Ok(Sent::Spooled { message_id: message.id })
    }
}

/// Counts a message that is about to be kept, for those of its group that come behind it.
struct Entering<'a>(&'a Shared);

impl<'a> Entering<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.entering.fetch_add(1, Ordering::AcqRel);
        Self(shared)
    }
}

impl Drop for Entering<'_> {
    fn drop(&mut self) {
        self.0.entering.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The task that owns the directory.
struct Keeper {
    /// Absent while a thread has it.
    files: Option<Files>,
    producer: Arc<Inner>,
    shared: Arc<Shared>,
}

impl Keeper {
    /// Writes first: somebody waits for that.
    async fn run(mut self, mut asks: mpsc::Receiver<Ask>, stop: CancellationToken) {
        let mut pause = PAUSE;
        let mut next_attempt = tokio::time::Instant::now();
        let mut waiting = Vec::with_capacity(ASKING);
        loop {
            let has_some = self.shared.bytes.load(Ordering::Acquire) > 0;
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                count = asks.recv_many(&mut waiting, ASKING) => {
                    if count == 0 { break; }
                    self.write(std::mem::take(&mut waiting)).await;
                }
                () = tokio::time::sleep_until(next_attempt), if has_some => {
                    let is_cut_off = match stop.run_until_cancelled(self.drain()).await {
                        Some(Ok(())) => false,
                        Some(Err(error)) => {
                            tracing::warn!(%error, "what is kept cannot be sent yet");
                            true
                        }
                        None => break,
                    };
                    self.shared.is_cut_off.store(is_cut_off, Ordering::Relaxed);
                    pause = if is_cut_off { (pause * 2).min(PAUSE_MAX) } else { PAUSE };
                    next_attempt = tokio::time::Instant::now() + if is_cut_off { pause } else { Duration::ZERO };
                }
            }
        }
        // Whoever asks now is told that the client is closed.
        asks.close();
    }

    async fn write(&mut self, asks: Vec<Ask>) {
        let messages: Vec<Bytes> = asks.iter().map(|ask| ask.message.clone()).collect();
        let written = self.on_disk(move |files| files.append(&messages)).await;
        let written = written.map_err(|error| format!("the message cannot be written: {error}"));
        for ask in asks {
            // Whoever does not listen any more finds its message sent later.
            let _ = ask.told.send(written.clone());
        }
    }

    /// Sends the next messages that share a request.
    async fn drain(&mut self) -> Result<(), ClientError> {
        let spool =
            |error: io::Error| ClientError::Spool { directory: PathBuf::new(), why: error.to_string() };
        let bytes = self.on_disk(|files| files.peek(BATCH)).await.map_err(spool)?;
        let mut parts = vec![bytes];
        while let Some(mut part) = parts.pop() {
            let Some(batch) = self.batch_of(&part).await? else {
                // Written by what is no version of this one.
                return self.give_up(part.drain(..1).collect(), "it cannot be read").await.map_err(spool);
            };
            let rest = part.split_off(batch.messages.len());
            match self.producer.deliver(&batch).await {
                Ok(_) => self.on_disk(move |files| files.finish(&part)).await.map_err(spool)?,
                Err(error) if error.is_retryable() || error == ClientError::Closed => return Err(error),
                Err(error) if part.len() == 1 => {
                    self.give_up(part, &error.to_string()).await.map_err(spool)?;
                }
                // A server refuses a request as a whole.
                Err(_) => {
                    let second = part.split_off(part.len() / 2);
                    parts.extend([second, part]);
                }
            }
            if !rest.is_empty() {
                // What is behind it comes with the next attempt, at once.
                return Ok(());
            }
        }
        Ok(())
    }

    /// The first of `messages` that may share a request: of one topic, and of one home where they keep an order. `None`:
    /// the first cannot be read.
    async fn batch_of(&self, messages: &[Bytes]) -> Result<Option<Batch>, ClientError> {
        let mut batch: Option<Batch> = None;
        let (mut home, mut size) = (None::<String>, 0);
        for bytes in messages {
            let Ok(message) = EncodedMessage::read(bytes.clone()) else { break };
            let system = message.system_properties;
            let order_key = system.message_group.or(system.lite_topic);
            let own_home = match &order_key {
                None => None,
                Some(key) => {
                    let route = self.producer.session.routes.get(&message.topic).await?;
                    route.home(key, &[]).map(|broker| broker.name.clone())
                }
            };
            let outgoing = Outgoing {
                id: system.message_id,
                order_key,
                key: system.keys.into_iter().next(),
                body_size: message.body_size,
                bytes: bytes.clone(),
            };
            size += outgoing.body_size;
            match &mut batch {
                None => {
                    let messages = vec![outgoing];
                    batch = Some(Batch { topic: message.topic.into(), in_transaction: false, messages });
                    home = own_home;
                }
                Some(batch) if *batch.topic == *message.topic && home == own_home => {
                    if size > MAX_BODY_SIZE_BYTES {
                        break;
                    }
                    batch.messages.push(outgoing);
                }
                Some(_) => break,
            }
        }
        Ok(batch)
    }

    /// Puts a message aside that no server takes.
    async fn give_up(&mut self, messages: Vec<Bytes>, why: &str) -> io::Result<()> {
        let known = messages.first().and_then(|bytes| EncodedMessage::read(bytes.clone()).ok());
        let (topic, id) =
            known.map(|known| (known.topic, known.system_properties.message_id)).unwrap_or_default();
        tracing::error!(topic, message_id = id, why, "a kept message is refused; it is in refused.spool");
        self.shared.refused.fetch_add(1, Ordering::Relaxed);
        let aside = move |files: &mut Files| {
            messages.first().map_or(Ok(()), |message| files.refuse(message))?;
            files.finish(&messages)
        };
        self.on_disk(aside).await
    }

    /// Runs what blocks on a thread for that, and says how much is kept afterwards.
    async fn on_disk<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Files) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let Some(mut files) = self.files.take() else {
            return Err(io::Error::other("the spool failed before; open it anew"));
        };
        let shared = self.shared.clone();
        let done = tokio::task::spawn_blocking(move || {
            let result = work(&mut files);
            shared.bytes.store(files.bytes(), Ordering::Release);
            (files, result)
        });
        let (files, result) = done.await.map_err(io::Error::other)?;
        self.files = Some(files);
        result
    }
}
