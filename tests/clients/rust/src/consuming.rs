//! The scenario that consumes.

use std::sync::Arc;
use std::time::Duration;

use rocketmq::conf::SimpleConsumerOption;
use rocketmq::model::common::{FilterExpression, FilterType};
use rocketmq::model::message::MessageView;
use rocketmq::SimpleConsumer;
use serde_json::json;
use tokio::time::sleep;

use crate::events::{emit, failure, guarded, is_stopped, now, pause, wait_stopped, with, Countdown};
use crate::messages::report;
use crate::options::Options;
use crate::Fatal;

const FAILURE_PAUSE: Duration = Duration::from_millis(100);

pub async fn consume_simple(options: Options) -> Result<(), Fatal> {
    let mut option = SimpleConsumerOption::default();
    option.set_consumer_group(options.text("group")?);
    option.set_topics(vec![options.text("topic")?]);
    let mut consumer = SimpleConsumer::new(option, options.client()?)?;
    consumer.start().await?;
    emit("ready", json!({}));
    let consumer = Arc::new(consumer);
    let countdown = Arc::new(Countdown::new(options.number("count", 0)?));
    for _ in 0..options.number("threads", 4)? {
        let (consumer, options, countdown) = (consumer.clone(), options.clone(), countdown.clone());
        tokio::spawn(async move {
            if let Err(error) = receive_until_done(&consumer, &options, &countdown).await {
                emit("fatal", failure(&error.to_string()));
            }
        });
    }
    wait_stopped().await;
    Ok(())
}

async fn receive_until_done(
    consumer: &Arc<SimpleConsumer>,
    options: &Options,
    countdown: &Countdown,
) -> Result<(), Fatal> {
    let filter_type =
        if options.get("filter-type") == Some("sql") { FilterType::Sql } else { FilterType::Tag };
    let topic = options.text("topic")?;
    let batch = i32::try_from(options.number("batch", 32)?)?;
    let invisible = Duration::from_secs(options.number("invisible", 30)?);
    while !is_stopped() {
        let filter = FilterExpression::new(filter_type, options.get("filter").unwrap_or("*"));
        let (receiver, topic) = (consumer.clone(), topic.clone());
        let receive = async move { receiver.receive_with(&topic, &filter, batch, invisible).await };
        let views = match guarded(receive).await {
            Ok(views) => views,
            Err(error) => {
                emit("receive-failed", failure(&error));
                pause(FAILURE_PAUSE).await;
                continue;
            }
        };
        // All at once: when a message was delivered must not hang on how long the acknowledgements of others take.
        views.iter().for_each(report);
        for view in views {
            sleep(options.milliseconds("work")?).await;
            handle(consumer, options, countdown, view).await?;
        }
    }
    Ok(())
}

async fn handle(
    consumer: &Arc<SimpleConsumer>,
    options: &Options,
    countdown: &Countdown,
    view: MessageView,
) -> Result<(), Fatal> {
    if u64::try_from(view.delivery_attempt())? <= options.number("ignore-attempts", 0)? {
        return Ok(());
    }
    let fields = json!({"id": view.message_id(), "began": now()});
    let consumer = consumer.clone();
    match guarded(async move { consumer.ack(&view).await }).await {
        Ok(()) => {
            emit("acked", fields);
            countdown.one();
        }
        Err(error) => emit("ack-failed", with(fields, failure(&error))),
    }
    Ok(())
}
