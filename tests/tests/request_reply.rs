//! The example of `docs/request-reply.md`: every requester gets its own answers, and none where there is none; and what
//! else a requester of the SDK promises.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use karman_client::{
    Client, ClientError, ClientOptions, FilterExpression, Json, Message, MessageView, PushConsumer,
    PushOptions, RequestError, RequesterOptions,
};
use karman_remoting::proto::v2::MessageType;
use karman_tests::{Cluster, Raw};
use tokio::sync::Semaphore;

const DEADLINE: Duration = Duration::from_secs(30);

fn answers(cluster: &Cluster) {
    let printed = cluster.example("request_reply");
    for part in ["5 squared is b\"25\"", "no reply within 1000 ms", "every request has its own answer"] {
        assert!(printed.contains(part), "{part:?} is not in:\n{printed}");
    }
}

#[test]
fn requests_are_answered() {
    answers(&Cluster::builder().dev().start());
}

#[test]
fn requests_are_answered_with_two_brokers() {
    answers(&Cluster::builder().namesrvs(1).brokers(2).start());
}

/// Answers numbers with their squares, each for one permit of `may`. What is none gets no answer, and adds one to `silent`.
fn squares(client: &Client, may: Arc<Semaphore>, silent: Arc<Semaphore>) -> PushConsumer {
    let producer = client.producer();
    let handle = move |request: MessageView| {
        let (producer, may, silent) = (producer.clone(), may.clone(), silent.clone());
        async move {
            let Ok(number) = request.decoded::<u64, _>(Json) else {
                silent.add_permits(1);
                return Ok(());
            };
            may.acquire().await?.forget();
            producer.send(request.reply_encoded(Json, &(number * number))?).await?;
            anyhow::Ok(())
        }
    };
    let requests = [("requests", FilterExpression::all())];
    client.push_consumer("squares", requests, &PushOptions::default(), handle).unwrap()
}

fn number(number: u64) -> Message {
    Message::encoded("requests", Json, &number).unwrap()
}

#[test]
fn a_request_that_is_not_answered_in_time_is_an_error_and_its_reply_is_dropped_and_counted() {
    let cluster = Cluster::builder().dev().start();
    let endpoint = cluster.brokers[0].endpoint();
    let raw = Raw::connect(&endpoint);
    for topic in ["requests", "replies"] {
        raw.create_topic(topic, MessageType::Normal);
        cluster.wait_route(topic);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let client = Client::connect(&endpoint, ClientOptions::default()).await.unwrap();
        let (may, silent) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let _service = squares(&client, may.clone(), silent.clone());
        let options = RequesterOptions::default().pending_max(1);
        let requester = client.requester("replies", "requesters", &options).await.unwrap();

        // Long enough for a service that is there to get it.
        let error = requester.request(number(3), Duration::from_secs(3)).await.unwrap_err();
        assert!(matches!(error, RequestError::NoReply { .. }), "{error}");
        may.add_permits(1);
        let late = async {
            while requester.late_replies() == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(DEADLINE, late).await.expect("the late reply is counted");

        let pending = tokio::spawn({
            let requester = requester.clone();
            async move {
                loop {
                    match requester.request(number(4), DEADLINE).await {
                        // That is the other one.
                        Err(RequestError::TooManyPending { .. }) => tokio::task::yield_now().await,
                        result => break result,
                    }
                }
            }
        });
        let busy = async {
            while !matches!(
                requester.request(number(5), Duration::from_millis(1)).await,
                Err(RequestError::TooManyPending { max: 1 })
            ) {}
        };
        tokio::time::timeout(DEADLINE, busy).await.expect("one more than may wait is refused");
        // For whatever came before it, too.
        may.add_permits(1000);
        let reply = pending.await.unwrap().unwrap();
        assert_eq!(reply.decoded::<u64, _>(Json).unwrap(), 16);

        let forgotten = tokio::spawn({
            let requester = requester.clone();
            async move { requester.request(Message::new("requests", "no number"), DEADLINE).await }
        });
        let sent = tokio::time::timeout(DEADLINE, silent.acquire()).await;
        sent.expect("the service gets it").unwrap().forget();
        client.close().await;
        let error = forgotten.await.unwrap().unwrap_err();
        assert!(matches!(error, RequestError::Send(ClientError::Closed)), "{error}");
    });
}
