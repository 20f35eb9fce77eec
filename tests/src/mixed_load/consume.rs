//! Consumers: receive, and do with each message what the plan says. They go on until the runtime ends.

use std::sync::Arc;
use std::time::Duration;

use karman_checker::event::{self, Event};
use karman_remoting::proto::v2;
use tokio::time::Instant;

use super::Shared;
use super::broker::{Broker, PAUSE, Received};
use super::plan::{Deed, Filter, Reader, digest, id_of, now_ms};
use super::record::outcome;
use crate::raw::{receive_request, resource, seconds};

/// The shortest that a broker lets a consumer ask for.
pub(super) const INVISIBLE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_secs(4);
/// Who is answered at once that there is nothing asks again after this.
const IDLE: Duration = Duration::from_millis(300);
/// Between two looks at the progress of groups.
const LOOK: Duration = Duration::from_secs(1);

fn request(topic: &str, group: &str, broker: &Broker) -> v2::ReceiveMessageRequest {
    v2::ReceiveMessageRequest {
        invisible_duration: Some(seconds(INVISIBLE.as_secs().cast_signed())),
        long_polling_timeout: Some(seconds(POLL.as_secs().cast_signed())),
        ..receive_request(topic, group, &broker.name)
    }
}

/// A member of a group.
pub(super) async fn read(shared: Arc<Shared>, reader: Reader, broker: Broker) {
    let member = Member { shared, reader, broker };
    let (r#type, expression) = match reader.filter {
        Filter::All => (v2::FilterType::Tag, "*"),
        Filter::Tag(expression, _) => (v2::FilterType::Tag, expression),
        Filter::Sql(expression, _) => (v2::FilterType::Sql, expression),
    };
    let filter = v2::FilterExpression { r#type: r#type.into(), expression: expression.to_owned() };
    let request = v2::ReceiveMessageRequest {
        filter_expression: Some(filter),
        ..request(reader.kind.topic(), reader.name, &member.broker)
    };
    loop {
        let (b, began) = (now_ms(), Instant::now());
        let received = member.broker.receive(request.clone(), POLL).await;
        if !received.whole {
            let (g, broker) = (reader.name.into(), member.broker.name.as_str().into());
            member.shared.recorder.line(&Event::Receive(event::Receive { b, e: now_ms(), g, broker }));
        }
        let nothing = received.messages.is_empty();
        member.handle(b, received).await;
        if nothing {
            tokio::time::sleep_until(began + IDLE).await;
        }
    }
}

struct Member {
    shared: Arc<Shared>,
    reader: Reader,
    broker: Broker,
}

impl Member {
    /// `b`: when the call for the messages was begun.
    async fn handle(&self, b: u64, received: Received) {
        let mut acks = Vec::new();
        let mut others = Vec::new();
        for (t, message) in received.messages {
            let system = message.system_properties.clone().unwrap_or_default();
            let attempt = system.delivery_attempt().unsigned_abs();
            // They may have been on their way for long.
            let given = received.end_ms.unwrap_or(b).min(t);
            self.delivered(given, t, &message, &system);
            let deed = self.shared.plan.deed(&self.reader, id_of(&message), attempt);
            match deed {
                Deed::Ack => acks.push(system),
                Deed::Nack(_) | Deed::Bury => others.push((deed, system)),
                Deed::Forget => {}
            }
        }
        if !acks.is_empty() {
            self.ack(acks).await;
        }
        for (deed, system) in others {
            match deed {
                Deed::Nack(pause_ms) => self.nack(system, pause_ms).await,
                _ => self.bury(system).await,
            }
        }
    }

    fn delivered(&self, given: u64, t: u64, message: &v2::Message, system: &v2::SystemProperties) {
        let invisible = system.invisible_duration.unwrap_or_default();
        let invisible_ms = invisible.seconds * 1000 + i64::from(invisible.nanos) / 1_000_000;
        self.shared.recorder.line(&Event::Deliver(event::Deliver {
            t,
            given: Some(given).filter(|&given| given < t),
            until: given.saturating_add_signed(invisible_ms),
            m: id_of(message).into(),
            g: self.reader.name.into(),
            broker: self.broker.name.as_str().into(),
            queue: system.queue_id.unsigned_abs(),
            offset: system.queue_offset().unsigned_abs(),
            attempt: system.delivery_attempt().unsigned_abs(),
            digest: digest(message),
        }));
    }

    fn line<'a>(&'a self, id: &'a str, b: u64, status: Option<&v2::Status>) -> event::Release<'a> {
        event::Release {
            b,
            e: now_ms(),
            m: id.into(),
            g: self.reader.name.into(),
            broker: self.broker.name.as_str().into(),
            out: outcome(status),
            until: None,
        }
    }

    async fn ack(&self, done: Vec<v2::SystemProperties>) {
        let entries = done.iter().map(|system| v2::AckMessageEntry {
            message_id: system.message_id.clone(),
            receipt_handle: system.receipt_handle().to_owned(),
            lite_topic: None,
        });
        let request = v2::AckMessageRequest {
            group: resource(self.reader.name),
            topic: resource(self.reader.kind.topic()),
            entries: entries.collect(),
        };
        let b = now_ms();
        let statuses = self.broker.ack(request).await;
        for (index, system) in done.iter().enumerate() {
            let status = statuses.get(index).and_then(Option::as_ref);
            self.shared.recorder.line(&Event::Ack(self.line(&system.message_id, b, status)));
        }
    }

    async fn nack(&self, system: v2::SystemProperties, pause_ms: i64) {
        let nanos = i32::try_from(pause_ms % 1000).expect("below 1000") * 1_000_000;
        let request = v2::ChangeInvisibleDurationRequest {
            group: resource(self.reader.name),
            topic: resource(self.reader.kind.topic()),
            receipt_handle: system.receipt_handle().to_owned(),
            invisible_duration: Some(prost_types::Duration { seconds: pause_ms / 1000, nanos }),
            message_id: system.message_id.clone(),
            ..Default::default()
        };
        let b = now_ms();
        let status = self.broker.change_invisible(request).await;
        let until = Some(b.saturating_add_signed(pause_ms));
        let line = event::Release { until, ..self.line(&system.message_id, b, status.as_ref()) };
        self.shared.recorder.line(&Event::Nack(line));
    }

    async fn bury(&self, system: v2::SystemProperties) {
        let request = v2::ForwardMessageToDeadLetterQueueRequest {
            group: resource(self.reader.name),
            topic: resource(self.reader.kind.topic()),
            receipt_handle: system.receipt_handle().to_owned(),
            message_id: system.message_id.clone(),
            ..Default::default()
        };
        let b = now_ms();
        let status = self.broker.bury(request).await;
        self.shared.recorder.line(&Event::Bury(self.line(&system.message_id, b, status.as_ref())));
    }
}

/// Reads the dead letters of a group from one broker, by a group of its own.
pub(super) async fn undertake(shared: Arc<Shared>, reader: Reader, broker: Broker) {
    let (topic, group) = (format!("%DLQ%{}", reader.name), format!("undertaker-{}", reader.name));
    let request = request(&topic, &group, &broker);
    loop {
        let began = Instant::now();
        let received = broker.receive(request.clone(), POLL).await;
        let mut entries = Vec::new();
        for (t, message) in received.messages {
            let system = message.system_properties.clone().unwrap_or_default();
            let attempts = message.user_properties.get("DLQ_ATTEMPTS").and_then(|text| text.parse().ok());
            shared.recorder.line(&Event::Letter(event::Letter {
                t,
                m: id_of(&message).into(),
                g: reader.name.into(),
                broker: broker.name.as_str().into(),
                queue: system.queue_id.unsigned_abs(),
                offset: system.queue_offset().unsigned_abs(),
                attempts: attempts.unwrap_or_default(),
                digest: digest(&message),
            }));
            entries.push(v2::AckMessageEntry {
                message_id: system.message_id.clone(),
                receipt_handle: system.receipt_handle().to_owned(),
                lite_topic: None,
            });
        }
        if entries.is_empty() {
            // A broker without dead letters has no such topic.
            tokio::time::sleep_until(began + IDLE).await;
        } else {
            // Not acknowledged it is read again, from the same place.
            let (topic, group) = (resource(&topic), resource(&group));
            drop(broker.ack(v2::AckMessageRequest { group, topic, entries }).await);
        }
    }
}

/// Asks how far a group is with each queue of a broker.
pub(super) async fn look(shared: Arc<Shared>, reader: Reader, broker: Broker) {
    loop {
        for queue in 0..super::QUEUES {
            let id = i32::try_from(queue).expect("a few");
            let message_queue = v2::MessageQueue {
                topic: resource(reader.kind.topic()),
                broker: Some(v2::Broker { name: broker.name.clone(), ..Default::default() }),
                id,
                ..Default::default()
            };
            let group = resource(reader.name);
            let request = v2::GetOffsetRequest { group, message_queue: Some(message_queue) };
            if let Some(offset) = broker.offset(request).await {
                let (g, broker) = (reader.name.into(), broker.name.as_str().into());
                shared.recorder.line(&Event::Offset(event::Offset { t: now_ms(), g, broker, queue, offset }));
            }
        }
        tokio::time::sleep(LOOK.max(PAUSE)).await;
    }
}
