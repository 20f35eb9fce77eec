//! Request and reply: a service that computes squares, requesters that wait for its answers, each for its own.
//!
//! The pattern and its limits are described in `docs/request-reply.md`.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Context as _, ensure};
use karman_client::{
    Client, ClientOptions, FilterExpression, Message, MessageView, PushConsumer, PushOptions,
    RequesterOptions,
};
use karman_examples::Operator;
use karman_remoting::proto::v2::MessageType;

const REQUESTS: &str = "squares-requests";
const REPLIES: &str = "squares-replies";

const TIMEOUT: Duration = Duration::from_secs(5);
/// For an answer that will not come.
const SHORT_TIMEOUT: Duration = Duration::from_secs(1);

/// Answers every request that can be answered. A request may come again: squaring twice does no harm.
fn service(client: &Client) -> anyhow::Result<PushConsumer> {
    let producer = client.producer();
    let handle = move |request: MessageView| {
        let producer = producer.clone();
        async move {
            let number = std::str::from_utf8(request.body()).ok().and_then(|text| text.parse::<u64>().ok());
            let Some(square) = number.and_then(|number| number.checked_mul(number)) else {
                // An error is an answer too. This service keeps silent, to show what the requester sees.
                println!("service: {:?} has no square", request.body());
                return anyhow::Ok(());
            };
            producer.send(request.reply(square.to_string())?).await?;
            Ok(())
        }
    };
    let subscription = [(REQUESTS, FilterExpression::all())];
    Ok(client.push_consumer("squares", subscription, &PushOptions::default(), handle)?)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let endpoint = karman_examples::endpoint_argument()?;
    let client = Client::connect(&endpoint, ClientOptions::default()).await?;
    let operator = Operator::new(&endpoint)?;
    for topic in [REQUESTS, REPLIES] {
        operator.topic(&client, topic, MessageType::Normal).await?;
    }
    let service = service(&client)?;
    let options = RequesterOptions::default();
    let anna = client.requester(REPLIES, "squares-requesters", &options).await?;
    let berta = client.requester(REPLIES, "squares-requesters", &options).await?;
    for number in 1..=5_u64 {
        for (name, requester) in [("anna", &anna), ("berta", &berta)] {
            let request = Message::new(REQUESTS, number.to_string());
            let reply = requester.request(request, TIMEOUT).await?;
            println!("{name}: {number} squared is {:?}", reply.body());
            ensure!(reply.body() == number.pow(2).to_string().as_bytes(), "that is wrong");
        }
    }
    let silence = anna.request(Message::new(REQUESTS, "a word"), SHORT_TIMEOUT).await;
    let error = silence.err().context("there is an answer to what has none")?;
    println!("anna: {error}");
    ensure!(
        anna.late_replies() + berta.late_replies() == 0,
        "a reply came to a requester that it was not for"
    );
    ensure!(service.shutdown(TIMEOUT).await, "the service did not come to its end");
    client.close().await;
    println!("every request has its own answer, and what has none ended in time");
    Ok(())
}
