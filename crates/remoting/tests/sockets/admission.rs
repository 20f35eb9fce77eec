use bytes::Bytes;
use karman_remoting::proto::v2::{Code, FilterExpression, ReceiveMessageRequest};
use karman_remoting::server::{Admission, Limits, ServerOptions};
use karman_remoting::wire::SendMessageRequest;
use karman_remoting::wire::receive_message_response::Content;

use crate::support::*;

fn message(bytes: usize) -> SendMessageRequest {
    SendMessageRequest { messages: vec![Bytes::from(vec![0; bytes])] }
}

#[tokio::test]
async fn requests_over_the_limit_are_refused_until_others_are_answered() {
    let admission = Admission::new(1_000_000);
    let limits = Limits { admission: admission.clone(), ..Limits::default() };
    let (server, calls) = start(ServerOptions { limits, ..options() });
    let client = plaintext(&server);
    let mut first_client = client.clone();
    let first = tokio::spawn(async move { first_client.send_message(message(700_000)).await });
    calls.until_waiting(1).await;
    assert!((700_000..801_000).contains(&admission.held_bytes()), "{}", admission.held_bytes());

    let refused = soon(client.clone().send_message(message(700_000))).await.expect("the transport is well");
    // Three quarters of it: the rest is for other addresses.
    let refused = refused.into_inner().status.expect("a status");
    assert_eq!(refused.code(), Code::TooManyRequests, "{refused:?}");
    assert!(refused.message.contains("750000"), "{refused:?}");
    assert!((700_000..801_000).contains(&admission.held_bytes()), "the refused request holds nothing");

    // So it is where the answer is a stream.
    let expression = "e".repeat(700_000);
    let receive = ReceiveMessageRequest {
        filter_expression: Some(FilterExpression { expression, ..Default::default() }),
        ..Default::default()
    };
    let mut frames = soon(client.clone().receive_message(receive)).await.expect("well").into_inner();
    let frame = soon(frames.message()).await.expect("well").expect("a frame");
    assert!(
        matches!(&frame.content, Some(Content::Status(status)) if status.code() == Code::TooManyRequests),
        "{frame:?}"
    );
    assert!(soon(frames.message()).await.expect("ends well").is_none());

    calls.go_on.add_permits(2);
    soon(first).await.expect("no panic").expect("the first is served");
    soon(client.clone().send_message(message(700_000))).await.expect("there is room again");
    until(|| admission.held_bytes() == 0).await;
    server.shutdown().await;
}

#[tokio::test]
async fn a_request_that_is_given_up_holds_nothing() {
    let admission = Admission::new(1_000_000);
    let limits = Limits { admission: admission.clone(), ..Limits::default() };
    let (server, calls) = start(ServerOptions { limits, ..options() });
    let mut client = plaintext(&server);
    let given_up = tokio::spawn(async move { client.send_message(message(500_000)).await });
    calls.until_waiting(1).await;
    given_up.abort();
    until(|| admission.held_bytes() == 0).await;
    server.shutdown().await;
}

#[tokio::test]
async fn a_message_of_the_largest_size_passes() {
    let (server, calls) = start(options());
    calls.go_on.add_permits(1);
    soon(plaintext(&server).send_message(message(31 * 1024 * 1024))).await.expect("served");
    server.shutdown().await;
}
